//! A layer below schema_registry_converter's calls: bounded answers, and errors that keep their status.

use std::error::Error;
use std::time::Duration;

use ::http::Extensions;
use async_trait::async_trait;
use reqwest::{Request, Response, StatusCode};
use reqwest_middleware::{Middleware, Next};

/// The largest answer that is read. Schemas are text written by people; more is a mistake or an attack.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Asked to wait longer than this, we ask again earlier.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// An answer that is not a schema.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    #[error("HTTP {status}{}", code.map(|code| format!(", error {code}")).unwrap_or_default())]
    Status {
        status: StatusCode,
        /// Confluent's `error_code`.
        code: Option<u32>,
        retry_after: Option<Duration>,
    },
    #[error("its answer is larger than {BODY_BYTES_MAX} bytes")]
    TooLarge,
}

/// The last error of a chain: without URLs, which may hold a password.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Turns refusals into typed errors before the client loses what they were.
pub struct Guard;

#[async_trait]
impl Middleware for Guard {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let response = next.run(request, extensions).await?;
        let status = response.status();
        let retry_after = retry_after(&response);
        let body = bounded(response).await?;
        if status.is_success() {
            return Ok(Response::from(::http::Response::new(body)));
        }
        #[derive(serde::Deserialize)]
        struct Answer {
            error_code: u32,
        }
        let code = serde_json::from_slice::<Answer>(&body).ok().map(|answer| answer.error_code);
        let refusal = Refusal::Status { status, code, retry_after };
        Err(reqwest_middleware::Error::Middleware(refusal.into()))
    }
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
