//! One port for those who watch: `/metrics`, `/health`, `/ready`, `/status`. It only answers, and changes nothing.

mod connections;
mod ends;
mod page;
mod report;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::error;

use crate::kafka::Cluster;
use crate::metrics;
use crate::model::{Classify, Fault, Hint};
use crate::status::{Board, View};

use connections::{Connections, Limits};
use ends::{Ends, lag_of};

/// The loop turns twice a second; one that has not for so long is stuck, and only a restart helps. Longer than the
/// shutdown takes.
const BEAT_MAX: Duration = Duration::from_secs(30);

/// Requests that are answered at the same time. Each copies the boards; those who come beyond are asked to come again.
const REQUESTS_MAX: usize = 16;

/// Nobody listens here.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on `{address}`, for those who watch (`admin:`)")]
pub struct ListenError {
    address: String,
    source: io::Error,
}

impl Classify for ListenError {
    fn fault(&self) -> Fault {
        Fault::Stop
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "end what listens there, or set another `admin: {listen: \"host:port\"}`, or `listen: off`"
                    .into()
            }
            io::ErrorKind::PermissionDenied => "choose a port above 1023".into(),
            _ => "`admin: {listen: \"host:port\"}` names an address of this machine; 0.0.0.0 is all of them"
                .into(),
        })
    }
}

/// A port that answers until this is dropped.
pub struct Server {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Server {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What the pages are made of.
#[derive(Clone)]
struct Eyes {
    board: Arc<Board>,
    ends: Arc<Ends>,
    room: Arc<Semaphore>,
}

/// Listens on `address`, a host and a port.
///
/// # Errors
/// [`ListenError`] if the address cannot be had.
pub async fn serve(
    address: &str,
    board: Arc<Board>,
    cluster: Arc<dyn Cluster>,
) -> Result<Server, ListenError> {
    serve_within(Limits::USUAL, address, board, cluster).await
}

async fn serve_within(
    limits: Limits,
    address: &str,
    board: Arc<Board>,
    cluster: Arc<dyn Cluster>,
) -> Result<Server, ListenError> {
    let failed = |source| ListenError { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    let room = Arc::new(Semaphore::new(REQUESTS_MAX));
    let eyes = Eyes { board, ends: Arc::new(Ends::new(cluster)), room };
    let mut task = JoinSet::new();
    task.spawn(async move {
        if let Err(error) = axum::serve(Connections::new(listener, limits), router(eyes)).await {
            error!(%error, "the admin port ended");
        }
    });
    Ok(Server { address: local, _task: task })
}

fn router(eyes: Eyes) -> Router {
    Router::new()
        .route("/", get(show_status))
        .route("/status", get(show_status))
        .route("/metrics", get(show_metrics))
        .route("/health", get(show_health))
        .route("/ready", get(show_ready))
        .layer(middleware::from_fn_with_state(eyes.clone(), guard))
        .with_state(eyes)
}

/// No page is kept by anybody, and none may load or run anything.
async fn guard(State(eyes): State<Eyes>, request: Request, next: Next) -> Response {
    // Whoever asks whether it lives must not be told no because others look at pages: these two cost nothing.
    let is_probe = ["/health", "/ready"].contains(&request.uri().path());
    let room = if is_probe { None } else { eyes.room.try_acquire().ok() };
    if room.is_none() && !is_probe {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many requests at the same time\n").into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body:#}\n")).into_response()
}

async fn show_health(State(eyes): State<Eyes>) -> Response {
    match unhealthy(eyes.board.beat()) {
        None => answer(StatusCode::OK, &json!({"status": "ok"})),
        Some(reason) => {
            answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "stuck", "reasons": [reason]}))
        }
    }
}

fn unhealthy(beat: Option<Duration>) -> Option<String> {
    // Before the loop runs, the start waits for brokers: a restart would not bring them back.
    let beat = beat.filter(|beat| *beat >= BEAT_MAX)?;
    Some(format!("the engine's loop has not turned for {} s", beat.as_secs()))
}

async fn show_ready(State(eyes): State<Eyes>) -> Response {
    let reasons = unready(&eyes.board.view());
    if reasons.is_empty() {
        answer(StatusCode::OK, &json!({"status": "ready"}))
    } else {
        answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "not ready", "reasons": reasons}))
    }
}

/// Why the program does not do all of its work; empty if it does.
fn unready(view: &View) -> Vec<String> {
    let mut reasons: Vec<String> = unhealthy(view.beat).into_iter().collect();
    let engine = &view.engine;
    if engine.is_draining {
        reasons.push("it is ending".to_owned());
    } else if view.beat.is_none() {
        reasons.push("it is starting, and asks brokers and registry".to_owned());
    } else if engine.is_subscribed && !engine.has_joined {
        reasons.push("the group has not given it any partitions yet".to_owned());
    }
    for lane in &view.lanes {
        if let Some(stop) = &lane.stop {
            reasons.push(format!("route `{}` has stopped: {}", lane.route, stop.message));
            continue;
        }
        for (held, waited) in lane.overdue_partitions(view.at) {
            let (route, shown, reason) = (&lane.route, held.shown(), &held.reason);
            reasons.push(format!("route `{route}`: {shown} ({} s): {reason}", waited.as_secs()));
        }
        if let Some(waited) = lane.overdue(view.at) {
            let trouble = lane.status.trouble.as_ref();
            let trouble = trouble.map(|trouble| format!("; last error: {}", trouble.message));
            reasons.push(format!(
                "route `{}` ({}): nothing has become durable for {} s, and at most {} s are to be expected{}",
                lane.route,
                lane.state.name(),
                waited.as_secs(),
                lane.patience.as_secs(),
                trouble.unwrap_or_default()
            ));
        }
    }
    reasons
}

async fn show_metrics(State(eyes): State<Eyes>) -> Response {
    // First where the partitions end: counts that are looked at afterwards are of one moment.
    let ends = eyes.ends.of(&eyes.board.view()).await;
    let view = eyes.board.view();
    let lags: Vec<_> = view.lanes.iter().map(|lane| lag_of(lane, &ends)).collect();
    match metrics::page(&eyes.board, &view, &lags) {
        Ok(page) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Err(error) => {
            error!(%error, "the page of metrics could not be made");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn show_status(
    State(eyes): State<Eyes>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let ends = eyes.ends.of(&eyes.board.view()).await;
    let view = eyes.board.view();
    let only = query.get("route").map(String::as_str);
    let reasons = unready(&view);
    let Some(report) = report::report(&view, &ends, &reasons, only) else {
        let problem = json!({"error": "there is no such route", "hint": "GET /status names them all"});
        return answer(StatusCode::NOT_FOUND, &problem);
    };
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        Html(page::html(&report)).into_response()
    } else {
        answer(StatusCode::OK, &report)
    }
}

#[cfg(test)]
mod tests;
