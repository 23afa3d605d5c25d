use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::config::plan::{HttpMethod, Login};
use crate::model::{Classify, Deletes, Move, Offset, Partition, Reason, TopicId};

/// What a server was sent.
#[derive(Debug, Clone, PartialEq)]
struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: String,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn keys(&self) -> Vec<&str> {
        self.header("idempotency-keys").unwrap().split(',').collect()
    }
}

/// A server that answers what it is told, and 200 when nothing is left.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<Vec<Answer>>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    RetryAfter(u16, &'static str),
    Redirect,
    Never,
    Endless,
}

async fn answer(
    State(script): State<Script>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    script.requests.lock().unwrap().push(Request { method, path: uri.path().to_owned(), headers, body });
    let next = script.answers.lock().unwrap().pop();
    let status = |code: u16| StatusCode::from_u16(code).unwrap();
    match next.unwrap_or(Answer::Status(200)) {
        Answer::Status(code) => (status(code), "hunter2 of the server").into_response(),
        Answer::RetryAfter(code, after) => (status(code), [("retry-after", after)]).into_response(),
        Answer::Redirect => (status(307), [("location", "/elsewhere")]).into_response(),
        Answer::Never => std::future::pending().await,
        Answer::Endless => "x".repeat(4 << 20).into_response(),
    }
}

/// Starts a server that gives these answers, in this order.
async fn start(tasks: &mut JoinSet<()>, answers: &[Answer]) -> (String, Script) {
    let script = Script::default();
    *script.answers.lock().unwrap() = answers.iter().rev().copied().collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/in", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(script.clone());
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, script)
}

fn options(url: &str) -> Http {
    Http {
        url: url.to_owned(),
        method: HttpMethod::Post,
        form: HttpForm::Lines,
        headers: BTreeMap::new(),
        login: None,
        ca_file: None,
        client_certificate: None,
        timeout: Duration::from_secs(30),
        rows_max: 2,
        bytes_max: 1 << 20,
        concurrency: 1,
        key_field: None,
        view: "batch".to_owned(),
    }
}

fn sink(options: &Http) -> HttpSink {
    HttpSink::new("r/s".to_owned(), options).unwrap()
}

fn step(partition: i32, start: i64, end: i64, records: u64) -> Move {
    Move {
        key: PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(5)), partition: Partition(partition) },
        topic: TopicName::new("t"),
        start: Offset::new(start),
        end: Position { next: Offset::new(end).unwrap(), epoch: None },
        reason: Reason::Data,
        records,
    }
}

/// Rows of these ids, of the records of these numbers.
fn batch(moves: Vec<Move>, offsets: &[i64], origins: &[u32], ids: &[i64]) -> Batch {
    let ids: ArrayRef = Arc::new(Int64Array::from(ids.to_vec()));
    Batch {
        moves,
        rows: RecordBatch::try_from_iter([("id", ids)]).unwrap(),
        origins: Some(origins.into()),
        offsets: Some(offsets.into()),
        deletes: Deletes::default(),
    }
}

/// Five rows of four records of two partitions; one record has two rows.
fn five() -> Batch {
    let moves = vec![step(0, 0, 9, 2), step(1, 3, 3, 0), step(2, 5, 8, 2)];
    batch(moves, &[3, 7, 5, 6], &[0, 1, 1, 2, 3], &[1, 2, 3, 4, 5])
}

#[test]
fn a_row_has_one_key_however_batches_are_cut() {
    let whole = keys::of_rows(&five(), "r/s", "batch").unwrap();
    let parts = [
        batch(vec![step(0, 0, 4, 1)], &[3], &[0], &[1]),
        batch(vec![step(0, 4, 9, 1), step(2, 5, 6, 1)], &[7, 5], &[0, 0, 1], &[2, 3, 4]),
        // The record before it became nothing.
        batch(vec![step(2, 5, 8, 2)], &[5, 6], &[1], &[5]),
    ];
    let again: Vec<String> =
        parts.iter().flat_map(|part| keys::of_rows(part, "r/s", "batch").unwrap()).collect();
    assert_eq!(whole, again);
    assert!(whole.iter().all(|key| key.len() == 22));
    let mut all = whole;
    all.extend(keys::of_rows(&five(), "r/x", "batch").unwrap());
    all.extend(keys::of_rows(&five(), "r/s", "other").unwrap());
    let ranges = Batch { origins: None, ..five() };
    let of_ranges = keys::of_rows(&ranges, "r/s", "batch").unwrap();
    assert_eq!(of_ranges, keys::of_rows(&ranges, "r/s", "batch").unwrap());
    all.extend(of_ranges);
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!((all.len(), count), (20, 20));
    let astray = batch(vec![step(0, 0, 4, 1)], &[3], &[1], &[1]);
    assert_eq!(keys::of_rows(&astray, "r/s", "batch"), None);
}

#[tokio::test]
async fn forms_on_the_wire() {
    let mut tasks = JoinSet::new();
    for (form, content_type, bodies) in [
        (
            HttpForm::Lines,
            "application/x-ndjson",
            vec!["{\"id\":1}\n{\"id\":2}\n", "{\"id\":3}\n{\"id\":4}\n", "{\"id\":5}\n"],
        ),
        (
            HttpForm::Array,
            "application/json",
            vec!["[{\"id\":1},{\"id\":2}]", "[{\"id\":3},{\"id\":4}]", "[{\"id\":5}]"],
        ),
    ] {
        let (url, script) = start(&mut tasks, &[Answer::Status(201), Answer::Endless]).await;
        let headers = BTreeMap::from([("x-api".to_owned(), "hunter2".to_owned())]);
        let login = Some(Login::Bearer { token: "t".to_owned() });
        let mut sink = sink(&Http { form, headers, login, method: HttpMethod::Put, ..options(&url) });
        for step in five().moves {
            let position = Position { next: step.start.unwrap(), epoch: None };
            sink.restore(step.key, &step.topic, position);
        }
        sink.write(&five()).await.unwrap();
        assert_eq!(sink.settled().rows, 0);
        let positions = sink.flush().await.unwrap();
        assert_eq!(positions.get(&step(2, 5, 8, 2).key).unwrap().next.get(), 8);
        assert_eq!(sink.settled().rows, 5);
        let requests = script.requests.lock().unwrap().clone();
        assert_eq!(requests.iter().map(|request| request.body.as_str()).collect::<Vec<_>>(), bodies);
        let keys: Vec<&str> = requests.iter().flat_map(Request::keys).collect();
        assert_eq!(keys, keys::of_rows(&five(), "r/s", "batch").unwrap());
        for request in &requests {
            assert_eq!((request.method.clone(), request.path.as_str()), (Method::PUT, "/in"));
            assert_eq!(request.header("content-type"), Some(content_type));
            assert_eq!(
                (request.header("x-api"), request.header("authorization")),
                (Some("hunter2"), Some("Bearer t"))
            );
        }
    }
}

#[tokio::test]
async fn one_row_per_request_has_its_key_beside_it_and_a_field_has_it_within() {
    let mut tasks = JoinSet::new();
    let expected = keys::of_rows(&five(), "r/s", "batch").unwrap();
    let (url, script) = start(&mut tasks, &[]).await;
    let mut rows = sink(&Http { form: HttpForm::Row, rows_max: 1, ..options(&url) });
    rows.write(&five()).await.unwrap();
    let requests = script.requests.lock().unwrap().clone();
    let found: Vec<&str> =
        requests.iter().map(|request| request.header("idempotency-key").unwrap()).collect();
    assert_eq!(found, expected);
    assert_eq!(requests[4].body, "{\"id\":5}");
    let (url, script) = start(&mut tasks, &[]).await;
    let key_field = Some("a \"key\"".to_owned());
    let mut lines = sink(&Http { key_field, rows_max: 1000, ..options(&url) });
    lines.write(&five()).await.unwrap();
    let requests = script.requests.lock().unwrap().clone();
    assert_eq!((requests.len(), requests[0].header("idempotency-keys")), (1, None));
    let rows: Vec<serde_json::Value> =
        requests[0].body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (row, key) in rows.iter().zip(&expected) {
        assert_eq!(row["a \"key\""], *key);
    }
    assert_eq!(rows.iter().map(|row| row["id"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn bodies_are_bounded_and_a_large_row_goes_alone() {
    let mut tasks = JoinSet::new();
    let (url, script) = start(&mut tasks, &[]).await;
    // Two rows of nine bytes.
    let mut sink = sink(&Http { rows_max: 1000, bytes_max: 19, concurrency: 3, ..options(&url) });
    sink.write(&five()).await.unwrap();
    let mut sizes: Vec<usize> =
        script.requests.lock().unwrap().iter().map(|request| request.body.lines().count()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 2, 2]);
    let mut small = self::sink(&Http { bytes_max: 1, ..options(&url) });
    small.write(&five()).await.unwrap();
    assert_eq!(script.requests.lock().unwrap().len(), 3 + 5);
}

/// What was sent before a failure is sent again, under the same keys; after a pause that the server may choose.
#[tokio::test]
async fn what_passes_is_tried_again_under_the_same_keys() {
    let mut tasks = JoinSet::new();
    let answers = [Answer::Status(200), Answer::RetryAfter(503, "7"), Answer::Status(200)];
    let (url, script) = start(&mut tasks, &answers).await;
    let mut sink = sink(&options(&url));
    let error = sink.write(&five()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
    sink.abandon().await;
    assert_eq!(sink.flush_due(), None);
    let pausing = sink.positions().await.unwrap_err();
    assert_eq!(pausing.fault(), Fault::Transient);
    let left = sink.wait_until.unwrap().saturating_duration_since(Instant::now());
    assert!(left > Duration::from_secs(5) && left <= Duration::from_secs(7), "{left:?}");
    // As if the time had passed.
    sink.wait_until = Some(Instant::now());
    sink.positions().await.unwrap();
    sink.write(&five()).await.unwrap();
    let requests = script.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 2 + 3);
    assert_eq!((&requests[0].body, requests[0].keys()), (&requests[2].body, requests[2].keys()));
    assert_eq!((&requests[1].body, requests[1].keys()), (&requests[3].body, requests[3].keys()));
    assert_eq!((sink.failures, sink.wait_until), (0, None));
}

#[tokio::test]
async fn answers_say_who_must_act_and_are_not_quoted() {
    let mut tasks = JoinSet::new();
    for (answer, expected) in [
        (Answer::Status(429), Fault::Transient),
        (Answer::Status(500), Fault::Transient),
        (Answer::Never, Fault::Transient),
        (Answer::Status(400), Fault::Refused),
        (Answer::Status(422), Fault::Refused),
        (Answer::Status(401), Fault::Stop),
        (Answer::Redirect, Fault::Stop),
    ] {
        let (url, script) = start(&mut tasks, &[answer]).await;
        let timeout = Duration::from_millis(500);
        let mut sink = sink(&Http { timeout, ..options(&format!("{url}?token=hunter2")) });
        let error = sink.write(&five()).await.unwrap_err();
        assert_eq!(error.fault(), expected);
        let shown = format!("{error} {error:?} {:?}", error.hint());
        assert!(!shown.contains("hunter2") && shown.contains("`r/s`"), "{shown}");
        // Nobody was asked elsewhere.
        assert!(script.requests.lock().unwrap().iter().all(|request| request.path == "/in"));
        assert!(sink.positions.accepted().is_empty());
    }
}

/// The server has the rows, and its answer is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_no_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/in", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut heads = Vec::new();
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"] {
            let (mut connection, _) = listener.accept().unwrap();
            let mut read = Vec::new();
            let mut bytes = [0; 4096];
            while !String::from_utf8_lossy(&read).contains("{\"id\":5}\n") {
                let count = connection.read(&mut bytes).unwrap();
                assert!(count > 0);
                read.extend_from_slice(&bytes[..count]);
            }
            connection.write_all(answer.as_bytes()).unwrap();
            let head = String::from_utf8(read).unwrap();
            heads.push(head.lines().find(|line| line.starts_with("idempotency-keys")).unwrap().to_owned());
        }
        heads
    });
    let mut sink = sink(&Http { rows_max: 100, ..options(&url) });
    let error = sink.write(&five()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
    sink.abandon().await;
    sink.write(&five()).await.unwrap();
    let heads = server.join().unwrap();
    assert_eq!(heads[0], heads[1]);
}

#[tokio::test]
async fn nobody_there_is_transient() {
    // Bound and given up: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut sink = sink(&options(&format!("http://{free}/")));
    assert_eq!(sink.write(&five()).await.unwrap_err().fault(), Fault::Transient);
    let empty = Batch::of_rows(vec![step(0, 0, 9, 0)], five().rows.slice(0, 0));
    sink.write(&empty).await.unwrap();
    assert!(sink.flush_due().is_some());
}

#[test]
fn pauses_grow_and_a_server_may_ask_for_more() {
    let millis = |failures, after| pause(failures, after).as_millis();
    assert_eq!([1, 2, 4, 99].map(|failures| millis(failures, None)), [100, 200, 800, 30_000]);
    assert_eq!(millis(1, Some(Duration::from_secs(9))), 9_000);
    assert_eq!(millis(99, Some(Duration::from_secs(1))), 30_000);
}

#[test]
fn a_key_needs_a_field_of_its_own() {
    let of = |key_field: Option<&str>| {
        let options = Http { key_field: key_field.map(str::to_owned), ..options("http://h/") };
        check_columns(&five().rows.schema(), &options)
    };
    assert_eq!((of(None), of(Some("key"))), (Ok(()), Ok(())));
    assert!(of(Some("id")).unwrap_err().contains("there is a column of that name"));
}

#[test]
fn files_of_certificates_are_named_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    for content in ["", "hunter2"] {
        std::fs::write(&path, content).unwrap();
        let options = Http { ca_file: Some(path.clone()), ..options("https://h/") };
        let error = HttpSink::new("r/s".to_owned(), &options).err().unwrap().to_string();
        assert!(
            error.contains("ca.pem") && error.contains("ca_file") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
