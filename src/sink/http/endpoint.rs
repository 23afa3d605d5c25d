//! The server that rows go to: one request, and what its answer means.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Identity, Method, Response, StatusCode, Url, redirect};

use crate::config::plan::{ClientCertificate, Http, HttpForm, HttpMethod, Login};
use crate::model::Fault;

/// Of an answer so much is read, and thrown away: then the connection can be used again.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Asked to wait longer than this, we ask again earlier.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Options no client can be made of. Names files, never what is in them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sink `{identity}`: {what} cannot be used: {problem}")]
pub struct HttpOptionsError {
    pub identity: String,
    pub what: String,
    pub problem: String,
}

/// A request, ready to be sent.
#[derive(Default)]
pub struct Rows {
    pub body: Vec<u8>,
    /// Their keys, with commas between.
    pub keys: String,
    pub count: usize,
}

/// Why rows are not settled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the server answered {status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
    /// It may have taken them all the same.
    #[error("the server did not answer: {0}")]
    Lost(String),
}

impl Failure {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Status { status, .. } => fault(*status),
            Self::Lost(_) => Fault::Transient,
        }
    }

    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Lost(_) => None,
        }
    }

    pub fn hint(&self) -> Option<&'static str> {
        let Self::Status { status, .. } = self else {
            return None;
        };
        match status.as_u16() {
            300..=399 => Some("redirects are not followed: put the URL it leads to into the file"),
            401 | 403 | 407 => {
                Some("look at `basic_auth`, `bearer_token` or the headers, and at the rights there")
            }
            404 | 405 | 410 => Some("look at `url` and `method`"),
            413 => Some("make `max_bytes` or the rows smaller"),
            415 => Some("look at `format`, and at a header `content-type`"),
            431 => Some("make `max_rows` smaller, or put keys into the objects with `key_field`"),
            _ => None,
        }
    }
}

/// What an answer without success means: it passes, it is about the rows, or about us.
fn fault(status: StatusCode) -> Fault {
    match status.as_u16() {
        408 | 425 | 429 | 500..=599 => Fault::Transient,
        // A login, a path or a form that is wrong is wrong for all rows: to look for one to blame would be a lie.
        401 | 403 | 404 | 405 | 407 | 410 | 415 | 431 => Fault::Stop,
        400..=499 => Fault::Refused,
        _ => Fault::Stop,
    }
}

/// A client of one URL.
pub struct Endpoint {
    client: Client,
    method: Method,
    url: Url,
    headers: HeaderMap,
    /// The header for keys, if they are not in the bodies.
    key_header: Option<HeaderName>,
}

impl Endpoint {
    /// # Errors
    /// [`HttpOptionsError`]
    pub fn new(identity: &str, options: &Http) -> Result<Self, HttpOptionsError> {
        let unusable = |what: &str, problem: String| HttpOptionsError {
            identity: identity.to_owned(),
            what: what.to_owned(),
            problem,
        };
        // What a server answers must not decide whom we send rows and passwords to.
        let mut client = Client::builder().redirect(redirect::Policy::none()).timeout(options.timeout);
        if let Some(path) = &options.ca_file {
            let certificates =
                authorities(path).map_err(|problem| unusable(&shown("ca_file", path), problem))?;
            client = client.tls_certs_merge(certificates);
        }
        if let Some(files) = &options.client_certificate {
            let what = format!(
                "{} with {}",
                shown("client_cert_file", &files.certificate),
                shown("client_key_file", &files.key)
            );
            client = client.identity(our_identity(files).map_err(|problem| unusable(&what, problem))?);
        }
        let client = client.build().map_err(|error| unusable("`http`", root_cause(&error)))?;
        // The error of a URL does not say the URL.
        let url = Url::parse(&options.url).map_err(|error| unusable("`url`", error.to_string()))?;
        let headers = headers(options).map_err(|name| unusable(&name, "it is no header".to_owned()))?;
        let key_header = match (options.form, &options.key_field) {
            (HttpForm::Row, _) => Some(HeaderName::from_static("idempotency-key")),
            (_, None) => Some(HeaderName::from_static("idempotency-keys")),
            (_, Some(_)) => None,
        };
        let method = match options.method {
            HttpMethod::Post => Method::POST,
            HttpMethod::Put => Method::PUT,
            HttpMethod::Patch => Method::PATCH,
        };
        Ok(Self { client, method, url, headers, key_header })
    }

    /// Sends rows, and waits until the server has said that it has them. Gives them back as a number of rows and bytes.
    ///
    /// # Errors
    /// [`Failure`]; whether the server has the rows is unknown then.
    pub async fn send(&self, rows: Rows) -> Result<(usize, usize), Failure> {
        let taken = (rows.count, rows.body.len());
        let mut request =
            self.client.request(self.method.clone(), self.url.clone()).headers(self.headers.clone());
        if let Some(name) = &self.key_header {
            request = request.header(name.clone(), rows.keys);
        }
        let answer = request.body(rows.body).send().await;
        let answer = answer.map_err(|error| Failure::Lost(root_cause(&error.without_url())))?;
        let status = answer.status();
        let retry_after = retry_after(&answer);
        read_bounded(answer).await;
        if status.is_success() { Ok(taken) } else { Err(Failure::Status { status, retry_after }) }
    }
}

/// The headers of every request, or the name of one that cannot be sent.
fn headers(options: &Http) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let content_type = match options.form {
        HttpForm::Lines => "application/x-ndjson",
        HttpForm::Array | HttpForm::Row => "application/json",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let login = options.login.as_ref().map(|login| match login {
        Login::Basic { username, password } => {
            let pair = format!("{username}:{password}");
            format!("Basic {}", STANDARD.encode(pair))
        }
        Login::Bearer { token } => format!("Bearer {token}"),
    });
    let given = options.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    for (name, value) in given.chain(login.map(|login| (AUTHORIZATION.as_str().to_owned(), login))) {
        let put = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value));
        let (Ok(known), Ok(mut value)) = put else {
            return Err(format!("header `{name}`"));
        };
        value.set_sensitive(true);
        headers.insert(known, value);
    }
    Ok(headers)
}

fn retry_after(answer: &Response) -> Option<Duration> {
    // The other form, a date, is rare: then our own pause decides.
    let seconds = answer.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// The status has said it all: an answer that breaks off changes nothing.
async fn read_bounded(mut answer: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = answer.chunk().await {
        read += chunk.len();
        if read > ANSWER_BYTES_MAX {
            break;
        }
    }
}

/// The last error of a chain: without URLs.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn shown(key: &str, path: &Path) -> String {
    format!("`{}` (`{key}`)", path.display())
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, String> {
    let pem = fs::read(path).map_err(|error| error.to_string())?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| root_cause(&error))?;
    if certificates.is_empty() {
        return Err("there is no certificate in PEM form in it".to_owned());
    }
    // They are only parsed when a client is built, and that error would not name the file: build one here.
    let trial = Client::builder().tls_certs_only(certificates.clone()).build();
    trial.map_err(|error| root_cause(&error))?;
    Ok(certificates)
}

fn our_identity(files: &ClientCertificate) -> Result<Identity, String> {
    let mut pem = fs::read(&files.certificate).map_err(|error| error.to_string())?;
    pem.push(b'\n');
    pem.extend(fs::read(&files.key).map_err(|error| error.to_string())?);
    let identity = Identity::from_pem(&pem).map_err(|error| root_cause(&error))?;
    // As with authorities: whether they belong together is only seen here.
    let trial = Client::builder().tls_certs_only([]).identity(identity.clone()).build();
    trial.map_err(|error| root_cause(&error))?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_who_must_act() {
        for (codes, expected) in [
            (&[408, 425, 429, 500, 502, 503, 504, 599][..], Fault::Transient),
            (&[400, 402, 406, 409, 412, 413, 422, 451, 499], Fault::Refused),
            (&[100, 300, 301, 302, 307, 308, 304, 401, 403, 404, 405, 407, 410, 415, 431], Fault::Stop),
        ] {
            for code in codes {
                assert_eq!(fault(StatusCode::from_u16(*code).unwrap()), expected, "{code}");
            }
        }
    }
}
