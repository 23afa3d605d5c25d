//! A layer below schema_registry_converter's calls: several URLs tried in order, bounded answers, and errors that
//! keep their status. Calls that it does not have go through the same layer.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::http::Extensions;
use async_trait::async_trait;
use reqwest::{Request, Response, StatusCode, Url};
use reqwest_middleware::{ClientWithMiddleware, Middleware, Next};
use schema_registry_converter::error::SRCError;
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::config::plan::Login;

/// The largest answer that is read. Schemas are text written by people; more is a mistake or an attack.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Asked to wait longer than this, we ask again earlier.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// What is kept of a registry's own words.
const MESSAGE_CHARS_MAX: usize = 2000;

/// An answer that is not a schema.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    #[error("HTTP {status}{}", remark(*status, *code))]
    Status {
        status: StatusCode,
        /// Confluent's `error_code`.
        code: Option<u32>,
        /// Its words for it. They may quote the schema that was sent, and nothing else of ours.
        message: Option<String>,
        retry_after: Option<Duration>,
    },
    #[error("its answer is larger than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    /// Of several URLs; with what is wrong with each.
    #[error("none of its {} URLs answers: {}", problems.len(), problems.join("; "))]
    NoneAnswers {
        problems: Vec<String>,
        /// The shortest wait that one of them asked for.
        retry_after: Option<Duration>,
    },
}

/// What there is to say of a status.
fn remark(status: StatusCode, code: Option<u32>) -> String {
    match code {
        Some(code) => format!(", error {code}"),
        None if status.is_redirection() => ", and redirects are not followed".to_owned(),
        None => String::new(),
    }
}

impl Refusal {
    /// Is that node of the registry away, so that another one should be asked? A limit of calls (429) is none of
    /// these: it would be evaded at the next node.
    fn is_away(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error() || status.is_redirection() || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::TooLarge | Self::NoneAnswers { .. } => false,
        }
    }
}

/// The last error of a chain: without URLs, which may hold a password.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// The base URLs of one registry. Calls go to the one that answered last; if it is away, the others are tried in
/// order.
#[derive(Debug)]
pub struct Nodes {
    bases: Vec<Url>,
    current: AtomicUsize,
}

impl Nodes {
    /// # Errors
    /// The place of a text that is no URL, and why.
    pub fn new(urls: &[String]) -> Result<Self, (usize, String)> {
        let parse =
            |(index, url): (usize, &String)| Url::parse(url).map_err(|error| (index, error.to_string()));
        let bases = urls.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { bases, current: AtomicUsize::new(0) })
    }

    /// Places of nodes in the order they are to be tried.
    fn order(&self) -> Vec<usize> {
        let first = self.current.load(Ordering::Relaxed);
        (0..self.bases.len()).map(|turn| (first + turn) % self.bases.len()).collect()
    }

    /// A call, which is made for the first node, as a call of another one.
    fn call_of(&self, request: &Request, node: usize) -> Option<Request> {
        let mut request = request.try_clone()?;
        if node > 0 {
            let base = |node: usize| self.bases.get(node).map(|url| url.as_str().trim_end_matches('/'));
            let path = request.url().as_str().strip_prefix(base(0)?)?;
            let url = Url::parse(&format!("{}{path}", base(node)?)).ok()?;
            *request.url_mut() = url;
        }
        Some(request)
    }

    /// Host and port, which are no secret.
    fn name(&self, node: usize) -> String {
        let url = &self.bases[node];
        let host = url.host_str().unwrap_or_default();
        match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    fn answered(&self, node: usize) {
        let before = self.current.swap(node, Ordering::Relaxed);
        if before != node {
            let (from, to) = (self.name(before), self.name(node));
            warn!(from, to, "one node of the schema registry is away, another one answers");
        }
    }

    /// What became of a call that no node has answered.
    fn none_answers(
        &self,
        mut failures: Vec<(usize, reqwest_middleware::Error)>,
    ) -> reqwest_middleware::Error {
        if failures.len() == 1
            && let Some((_, error)) = failures.pop()
        {
            return error;
        }
        let problem = |(node, error): &(usize, reqwest_middleware::Error)| {
            let problem = refusal(error).map_or_else(|| root_cause(error), |refusal| refusal.to_string());
            format!("{}: {problem}", self.name(*node))
        };
        let wait = |error: &reqwest_middleware::Error| match refusal(error) {
            Some(Refusal::Status { retry_after, .. }) => *retry_after,
            _ => None,
        };
        let retry_after = failures.iter().filter_map(|(_, error)| wait(error)).min();
        let refusal = Refusal::NoneAnswers { problems: failures.iter().map(problem).collect(), retry_after };
        reqwest_middleware::Error::Middleware(refusal.into())
    }
}

fn refusal(error: &reqwest_middleware::Error) -> Option<&Refusal> {
    match error {
        reqwest_middleware::Error::Middleware(inner) => inner.downcast_ref(),
        reqwest_middleware::Error::Reqwest(_) => None,
    }
}

/// Finds a node that answers, and turns refusals into typed errors before the client loses what they were.
pub struct Guard(pub Arc<Nodes>);

#[async_trait]
impl Middleware for Guard {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let mut failures = Vec::new();
        for node in self.0.order() {
            let Some(call) = self.0.call_of(&request, node) else {
                continue;
            };
            let answer = ask(call, extensions, next.clone()).await;
            match answer {
                Err(error) if refusal(&error).is_none_or(Refusal::is_away) => failures.push((node, error)),
                answered => {
                    self.0.answered(node);
                    return answered.map(|body| Response::from(::http::Response::new(body)));
                }
            }
        }
        Err(self.0.none_answers(failures))
    }
}

/// One call, and the body of its answer.
async fn ask(
    request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> reqwest_middleware::Result<Vec<u8>> {
    let response = next.run(request, extensions).await?;
    let status = response.status();
    let retry_after = retry_after(&response);
    let body = bounded(response).await?;
    if status.is_success() {
        return Ok(body);
    }
    #[derive(serde::Deserialize)]
    struct Answer {
        error_code: u32,
        message: Option<String>,
    }
    let answer = serde_json::from_slice::<Answer>(&body).ok();
    let code = answer.as_ref().map(|answer| answer.error_code);
    let message = answer.and_then(|answer| answer.message);
    let message = message.map(|message| message.chars().take(MESSAGE_CHARS_MAX).collect());
    let refusal = Refusal::Status { status, code, message, retry_after };
    Err(reqwest_middleware::Error::Middleware(refusal.into()))
}

fn retry_after(response: &Response) -> Option<Duration> {
    // The other form, a date, is rare: then our own back-off decides.
    let seconds = response.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

async fn bounded(mut response: Response) -> reqwest_middleware::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(reqwest_middleware::Error::Middleware(Refusal::TooLarge.into()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Calls that schema_registry_converter does not have. Their errors are its errors.
#[derive(Debug)]
pub struct Calls {
    client: ClientWithMiddleware,
    /// The first of the URLs, without a slash at its end.
    base: String,
    login: Option<Login>,
}

impl Calls {
    pub fn new(client: ClientWithMiddleware, base: &str, login: Option<Login>) -> Self {
        Self { client, base: base.trim_end_matches('/').to_owned(), login }
    }

    /// The context that is in the URL, without its dot and colons; empty for the default one.
    pub fn context(&self) -> &str {
        let rest = self.base.split_once("/contexts/").map_or("", |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default().trim_matches(':').trim_start_matches('.')
    }

    /// What is at `path`, which begins with a slash.
    ///
    /// # Errors
    /// As those of schema_registry_converter's calls, with a [`Refusal`] as a source.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, SRCError> {
        let request = self.client.get(format!("{}{path}", self.base));
        let request = match &self.login {
            Some(Login::Basic { username, password }) => request.basic_auth(username, Some(password)),
            Some(Login::Bearer { token }) => request.bearer_auth(token),
            None => request,
        };
        let failed = |error: reqwest_middleware::Error| {
            SRCError::retryable_with_cause(error, "http call to schema registry failed")
        };
        let response = request.send().await.map_err(failed)?;
        let body = response.bytes().await.map_err(|error| failed(error.into()))?;
        serde_json::from_slice(&body)
            .map_err(|error| SRCError::non_retryable_with_cause(error, "could not parse the answer"))
    }
}
