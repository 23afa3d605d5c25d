//! From `url` to a session: TLS, limits, and what happens to a connection that nobody answers on.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;
use tokio::task::JoinSet;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

use super::error::PostgresError;

/// A server that is there accepts a connection at once; other addresses of the host are tried after this.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// With TLS and the login. A server that is frozen accepts connections too.
const LOGIN_MAX: Duration = Duration::from_secs(30);

/// So long nothing is acknowledged before a connection counts as lost, and an idle one is asked after it.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// Limits of a transaction, in the server's words: what `options` of the URL says goes before.
///
/// - A lock that is not had within 10 s is held by somebody who works on the whole table, or has stopped: the batch is tried
///   again, and others of the lane go on meanwhile.
/// - A client that has stopped in the middle of a transaction keeps its locks for a minute. Between its statements is nothing
///   of ours but, for a batch with dead letters, the writes of its siblings and of those, which take seconds.
/// - A statement merges one batch: what takes longer than two minutes waits for something that does not come.
const LIMITS: [(&str, &str); 3] =
    [("lock_timeout", "10s"), ("idle_in_transaction_session_timeout", "60s"), ("statement_timeout", "120s")];

/// A server that does not answer within this is gone: it ends every statement earlier by itself, unless `options` of the
/// URL allow more.
const ANSWER_MAX: Duration = Duration::from_secs(150);

/// What is needed to log in. Never shown.
#[derive(Clone)]
pub struct Login {
    config: Config,
    ca_file: Option<PathBuf>,
    begin: String,
    answer_max: Duration,
}

impl Login {
    /// # Errors
    /// What is wrong with the URL, without any of it.
    pub fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, &'static str> {
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
        if !is_url {
            return Err("it does not begin with `postgresql://`");
        }
        // The parser's own words may hold a part of a password that was not escaped.
        let mut config: Config = checked(url).parse().map_err(|_| {
            "it is no URL of PostgreSQL: `postgresql://user:password@host:5432/database?sslmode=require`, with `%40` for an \
             `@` in the password, and so on"
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err("it names no host");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_MAX);
        }
        config.tcp_user_timeout(UNACKNOWLEDGED_MAX);
        config.keepalives_idle(UNACKNOWLEDGED_MAX);
        if config.get_application_name().is_none() {
            config.application_name("sidestream");
        }
        let options = config.get_options().unwrap_or_default().to_owned();
        let limits: String = LIMITS
            .iter()
            .filter(|(name, _)| !says(&options, name))
            .map(|(name, value)| format!("; SET LOCAL {name} = '{value}'"))
            .collect();
        let answer_max = if says(&options, "statement_timeout") { ANSWER_MAX * 24 } else { ANSWER_MAX };
        let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED{limits}");
        Ok(Self { config, ca_file: ca_file.map(Path::to_path_buf), begin, answer_max })
    }

    /// The statements that a transaction begins with.
    #[cfg(test)]
    pub fn begin(&self) -> &str {
        &self.begin
    }

    /// # Errors
    /// [`PostgresError`]
    pub async fn connect(&self) -> Result<Session, PostgresError> {
        let Ok(connected) = tokio::time::timeout(LOGIN_MAX, self.log_in()).await else {
            let seconds = LOGIN_MAX.as_secs();
            return Err(PostgresError::transient(format!("nobody has answered a login for {seconds} s")));
        };
        let session = connected?;
        // Notices would go to the log, and a trigger's may quote a row.
        session.run("SET client_min_messages = error").await?;
        Ok(session)
    }

    async fn log_in(&self) -> Result<Session, PostgresError> {
        Ok(match self.tls()? {
            None => {
                let (client, connection) = Box::pin(self.config.connect(NoTls)).await?;
                Session::new(client, connection, self)
            }
            Some(tls) => {
                let (client, connection) = Box::pin(self.config.connect(tls)).await?;
                Session::new(client, connection, self)
            }
        })
    }

    /// `None`: plain.
    fn tls(&self) -> Result<Option<MakeRustlsConnect>, PostgresError> {
        let mode = self.config.get_ssl_mode();
        if mode == SslMode::Disable {
            return Ok(None);
        }
        let unusable = |problem: String| {
            PostgresError::stop(
                format!("TLS cannot be used: {problem}"),
                "say `ca_file`, or `sslmode=disable` in `url`",
            )
        };
        let authorities = match &self.ca_file {
            Some(path) => authorities(path).map_err(unusable)?,
            None => Vec::new(),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = match Verifier::new_with_extra_roots(authorities, provider.clone()) {
            Ok(verifier) => verifier,
            // A machine without any authority. Plain is what `prefer` allows.
            Err(_) if mode == SslMode::Prefer && self.ca_file.is_none() => return Ok(None),
            Err(error) => return Err(unusable(error.to_string())),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Some(MakeRustlsConnect::new(config)))
    }
}

/// The URL with a mode that the parser knows: certificate and host are always checked, as `verify-full` asks for.
fn checked(url: &str) -> String {
    let Some((head, query)) = url.rsplit_once('?') else {
        return url.to_owned();
    };
    let parameters = query.split('&').map(|parameter| match parameter {
        "sslmode=verify-full" | "sslmode=verify-ca" => "sslmode=require",
        other => other,
    });
    format!("{head}?{}", parameters.collect::<Vec<_>>().join("&"))
}

/// Do these options of a session set `name`? They are words such as `-c name=value`, `-cname=value` or `--name=value`; a
/// setting may end in another one's name.
fn says(options: &str, name: &str) -> bool {
    options.split_whitespace().any(|word| {
        let word = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or(word);
        let said = word.split_once('=').map_or(word, |(said, _)| said);
        said.replace('-', "_").eq_ignore_ascii_case(name)
    })
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let pem = fs::read(path).map_err(|error| format!("`{shown}` (`ca_file`): {error}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("`{shown}` (`ca_file`) has no certificate in PEM form")),
        Err(error) => Err(format!("`{shown}` (`ca_file`): {error}")),
    }
}

/// A connection. When it is dropped, the server rolls back what is open.
pub struct Session {
    client: Client,
    begin: String,
    answer_max: Duration,
    /// Ends with the session.
    _driver: JoinSet<()>,
}

impl Session {
    fn new(
        client: Client,
        connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
        login: &Login,
    ) -> Self {
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                // Whoever waits for an answer is told that the connection is gone; this is why.
                debug!(error = %PostgresError::from(error), "a connection to PostgreSQL ended");
            }
        });
        Self { client, begin: login.begin.clone(), answer_max: login.answer_max, _driver: driver }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits for an answer of the server, not for ever.
    ///
    /// # Errors
    /// [`PostgresError`]
    pub async fn answer<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PostgresError> {
        match tokio::time::timeout(self.answer_max, asked).await {
            Ok(answer) => answer.map_err(PostgresError::from),
            Err(_) => {
                let seconds = self.answer_max.as_secs();
                Err(PostgresError::transient(format!("the server has not answered for {seconds} s")))
            }
        }
    }

    /// Runs statements without parameters.
    ///
    /// # Errors
    /// [`PostgresError`]
    pub async fn run(&self, statements: &str) -> Result<(), PostgresError> {
        self.answer(self.client.batch_execute(statements)).await
    }

    /// Begins a transaction with its level and its limits. With a stricter one, whoever changes a row meanwhile would be an
    /// error, and we compare what we move ourselves.
    ///
    /// # Errors
    /// [`PostgresError`]
    pub async fn begin(&self) -> Result<(), PostgresError> {
        self.run(&self.begin).await
    }
}
