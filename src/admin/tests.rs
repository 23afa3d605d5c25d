use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use async_trait::async_trait;

use super::*;
use crate::kafka::{ClusterError, TopicInfo};
use crate::model::{ClusterId, Offset, Partition, Start, TopicName, TopicPartition};
use crate::status::{About, Counts, Held, HeldBack, LaneBoard, LaneStatus, SinkStatus, State as LaneState};

/// Every partition ends at 10, unless the brokers are away.
#[derive(Default)]
struct Ten {
    asked: AtomicUsize,
    is_away: bool,
}

#[async_trait]
impl Cluster for Ten {
    async fn id(&self) -> Result<ClusterId, ClusterError> {
        Ok(ClusterId("c".to_owned()))
    }

    async fn member_count(&self) -> Result<usize, ClusterError> {
        Ok(0)
    }

    async fn names(&self) -> Result<BTreeSet<TopicName>, ClusterError> {
        Ok(BTreeSet::new())
    }

    async fn describe(
        &self,
        _: &BTreeSet<TopicName>,
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, ClusterError>>, ClusterError> {
        Ok(BTreeMap::new())
    }

    async fn resolve(
        &self,
        _: &[(TopicPartition, &Start)],
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClusterError> {
        Ok(BTreeMap::new())
    }

    async fn bounds(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, Offset)>, ClusterError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_away {
            return Err(ClusterError::Answer { what: "ends", problem: "away".to_owned() });
        }
        Ok(sources.iter().map(|source| (source.clone(), (Offset::ZERO, at(10)))).collect())
    }

    async fn committed(
        &self,
        _: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, ClusterError> {
        Ok(BTreeMap::new())
    }
}

fn at(raw: i64) -> Offset {
    Offset::new(raw).unwrap()
}

/// A board with a route of `count` partitions, at offsets 4 and 7 of two sinks.
fn board(count: i32) -> (Arc<Board>, Arc<LaneBoard>) {
    let board = Board::new("g");
    board.add_engine();
    let lane = LaneBoard::new("orders");
    let held = Box::new(Held::default);
    lane.describe(About { entry: "orders".to_owned(), patience: Duration::from_secs(80), held });
    let sources = (0..count).map(|number| TopicPartition::new(&TopicName::new("t"), Partition(number)));
    let partitions = sources.map(|source| (source, vec![at(7), at(4)])).collect();
    lane.show(LaneStatus {
        state: LaneState::Running,
        counts: Counts { read: 4, settled: 4, ..Counts::default() },
        sinks: ["a", "b"].map(SinkStatus::new).to_vec(),
        partitions: Arc::new(partitions),
        ..LaneStatus::default()
    });
    board.add_lane(lane.clone());
    (board, lane)
}

struct Page {
    status: u16,
    kind: String,
    text: String,
}

async fn get_page(server: &Server, path: &str, accept: &str) -> Page {
    let url = format!("http://{}{path}", server.address());
    let answer = reqwest::Client::new().get(url).header("accept", accept).send().await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    Page { status: answer.status().as_u16(), kind, text: answer.text().await.unwrap() }
}

#[test]
fn a_loop_that_does_not_turn_is_unhealthy_and_a_start_is_not() {
    assert_eq!(unhealthy(None), None);
    assert_eq!(unhealthy(Some(Duration::from_secs(29))), None);
    assert!(unhealthy(Some(BEAT_MAX)).is_some_and(|reason| reason.contains("30 s")));
}

#[test]
fn ready_is_who_has_joined_and_has_no_stopped_route() {
    let (board, lane) = board(1);
    let reasons = || unready(&board.view());
    assert!(reasons()[0].contains("starting"), "{:?}", reasons());
    board.turn(0, 0);
    board.engine(0, |told| told.is_subscribed = true);
    assert!(reasons()[0].contains("has not given it any partitions"), "{:?}", reasons());
    board.engine(0, |told| told.has_joined = true);
    assert_eq!(reasons(), Vec::<String>::new());
    lane.stopped("a bad record", Some("mend it"));
    assert_eq!(reasons(), ["route `orders` has stopped: a bad record"]);
    board.engine(0, |told| told.is_draining = true);
    assert_eq!(reasons()[0], "it is ending");
}

#[test]
fn a_route_that_makes_nothing_durable_is_not_ready() {
    let (board, lane) = board(1);
    board.turn(0, 1);
    board.engine(0, |told| told.has_joined = true);
    let mut status = lane.view(Instant::now()).status;
    status.state = LaneState::Recovering;
    status.trouble = Some(crate::status::Trouble::now("the disk is full", None));
    let now = Instant::now();
    status.waiting.update(true, false, now);
    lane.show(status);
    let mut view = board.view();
    assert_eq!(unready(&view), Vec::<String>::new());
    view.at = now + Duration::from_secs(90);
    let reasons = unready(&view);
    assert!(reasons[0].contains("`orders` (recovering): nothing has become durable for 90 s"), "{reasons:?}");
    assert!(reasons[0].contains("80 s") && reasons[0].contains("the disk is full"), "{reasons:?}");
}

#[test]
fn a_partition_that_is_held_back_for_long_is_not_ready() {
    let (board, lane) = board(1);
    board.turn(0, 1);
    board.engine(0, |told| (told.has_joined, told.held_back) = (true, [0, 0, 3]));
    let source = TopicPartition::new(&TopicName::new("t"), Partition(4));
    let reason = "the group has not taken a first commit".to_owned();
    let hint = Some("give the right to".to_owned());
    lane.hold_back(vec![HeldBack { source, others: 2, reason, hint, since: Instant::now() }]);
    let mut view = board.view();
    assert_eq!(unready(&view), Vec::<String>::new());
    let page = metrics::page(&board, &view, &[None]).unwrap();
    assert!(page.contains("sidestream_partitions_paused{reason=\"commit\"} 3\n"), "{page}");
    view.at += Duration::from_secs(90);
    let reasons = unready(&view);
    assert!(
        reasons[0].starts_with("route `orders`: t/4 and 2 other partitions wait (90 s): the group has not"),
        "{reasons:?}"
    );
    let report = report::report(&view, &BTreeMap::new(), &reasons, None).unwrap();
    let paused = &report["routes"]["orders"]["paused"];
    assert!(paused[0].as_str().unwrap().ends_with("first commit; hint: give the right to"), "{paused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_say_what_the_boards_say_and_ask_the_brokers_once() {
    let (board, lane) = board(30);
    board.turn(0, 30);
    let cluster = Arc::new(Ten::default());
    let server = serve("127.0.0.1:0", board, cluster.clone()).await.unwrap();
    let metrics = get_page(&server, "/metrics", "*/*").await;
    assert_eq!((metrics.status, metrics.kind.as_str()), (200, metrics::CONTENT_TYPE));
    // The slower sink stands at 4, the end is 10.
    assert!(metrics.text.contains("sidestream_lag_records{route=\"orders\"} 180\n"), "{}", metrics.text);
    assert!(metrics.text.contains("sidestream_lag_records_max{route=\"orders\"} 6\n"), "{}", metrics.text);

    let status = get_page(&server, "/status", "*/*").await;
    let report: Value = serde_json::from_str(&status.text).unwrap();
    let route = &report["routes"]["orders"];
    assert_eq!(
        route["partitions"]["t/0"],
        json!({"next": {"a": 7, "b": 4}, "durable": 4, "end": 10, "lag": 6})
    );
    assert_eq!(
        (route["partitions"].as_object().unwrap().len(), &route["partitionsNotShown"]),
        (20, &json!(10))
    );
    let one = get_page(&server, "/status?route=orders", "*/*").await;
    let one: Value = serde_json::from_str(&one.text).unwrap();
    assert_eq!(one["routes"]["orders"]["partitions"].as_object().unwrap().len(), 30);
    assert_eq!(get_page(&server, "/status?route=none", "*/*").await.status, 404);
    assert_eq!(cluster.asked.load(Ordering::SeqCst), 1);

    let page = get_page(&server, "/", "text/html,application/xhtml+xml").await;
    assert!(page.kind.starts_with("text/html") && page.text.contains("<td>orders"), "{}", page.text);
    assert_eq!(get_page(&server, "/health", "*/*").await.status, 200);
    lane.stopped("no", None);
    let ready = get_page(&server, "/ready", "*/*").await;
    assert!(ready.status == 503 && ready.text.contains("route `orders` has stopped: no"), "{}", ready.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_away_leave_lag_out_and_nothing_else() {
    let (board, _lane) = board(2);
    let cluster = Arc::new(Ten { is_away: true, ..Ten::default() });
    let server = serve("127.0.0.1:0", board, cluster).await.unwrap();
    let metrics = get_page(&server, "/metrics", "*/*").await;
    assert!(
        metrics.text.contains("sidestream_records_settled_total{route=\"orders\"} 4\n"),
        "{}",
        metrics.text
    );
    assert!(!metrics.text.contains("sidestream_lag_records{"), "{}", metrics.text);
    let status = get_page(&server, "/status", "*/*").await;
    let report: Value = serde_json::from_str(&status.text).unwrap();
    assert_eq!(report["routes"]["orders"]["lag"], Value::Null);
    assert_eq!(report["routes"]["orders"]["partitions"]["t/1"]["durable"], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_is_an_error_with_a_remedy() {
    let (first, _) = board(1);
    let server = serve("127.0.0.1:0", first, Arc::new(Ten::default())).await.unwrap();
    let (second, _) = board(1);
    let address = server.address().to_string();
    let failed = serve(&address, second, Arc::new(Ten::default())).await.err().unwrap();
    assert!(failed.to_string().contains(&address), "{failed}");
    assert!(failed.hint().unwrap().contains("listen: off"));
}

/// What hangs, fails.
const DEADLINE: Duration = Duration::from_secs(20);

async fn serve_for(limits: Limits) -> Server {
    let (board, _) = board(1);
    serve_within(limits, "127.0.0.1:0", board, Arc::new(Ten::default())).await.unwrap()
}

/// A connection on which these bytes were sent.
fn sent(server: &Server, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_request_holds_no_connection_for_long() {
    let limits = Limits { request: Duration::from_millis(300), ..Limits::USUAL };
    let server = serve_for(limits).await;
    let begun = Instant::now();
    let half = |_| sent(&server, b"GET /health HTTP/1.1\r\nHost: ");
    let held: Vec<TcpStream> = (0..connections::CONNECTIONS_MAX).map(half).collect();
    // All places are taken until their time is over.
    let answer = tokio::time::timeout(DEADLINE, get_page(&server, "/health", "*/*")).await;
    assert_eq!(answer.expect("somebody else gets in").status, 200);
    assert!(begun.elapsed() >= limits.request);
    for mut stream in held {
        let mut rest = Vec::new();
        // Closed or reset, and nothing was said; still open would be another error.
        let closed = stream.read_to_end(&mut rest);
        let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        assert!(closed.as_ref().map_or_else(is_reset, |count| *count == 0), "{closed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_byte_by_byte_holds_no_connection_for_long() {
    let server = serve_for(Limits { request: Duration::from_millis(300), ..Limits::USUAL }).await;
    let begun = Instant::now();
    let mut slow = sent(&server, b"GET /health HTTP/1.1\r\nx: ");
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    while slow.write_all(b"x").is_ok() {
        assert!(begun.elapsed() < DEADLINE, "it is still open");
        tick.tick().await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_old_is_closed_after_its_answer() {
    let server = serve_for(Limits { whole: Duration::from_millis(300), ..Limits::USUAL }).await;
    let mut stream = sent(&server, b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}
