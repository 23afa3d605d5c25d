use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::support::data::Record;
use crate::support::program::{Workplace, eventually};
use crate::support::{self, data};

/// Requests, and each row with its key.
type Log = (usize, Vec<(String, String)>);

/// What a server took.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Log>>);

impl Taken {
    fn row_count(&self) -> usize {
        self.0.lock().unwrap().1.len()
    }
}

/// Takes every request, and says of each seventh that it did not.
async fn take(State(taken): State<Taken>, headers: HeaderMap, body: String) -> StatusCode {
    let keys = headers["idempotency-keys"].to_str().unwrap().split(',');
    let mut taken = taken.0.lock().unwrap();
    let rows = body.lines().map(str::to_owned);
    let before = taken.1.len();
    taken.1.extend(keys.map(str::to_owned).zip(rows));
    assert_eq!(taken.1.len() - before, body.lines().count());
    taken.0 += 1;
    if taken.0 % 7 == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

fn start(runtime: &Runtime) -> (String, Taken) {
    let taken = Taken::default();
    let router = Router::new().fallback(take).with_state(taken.clone());
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/rows", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, taken)
}

/// Killed again and again, before a server that says of some rows that it has not taken them: all come, and those that
/// come twice have the key they had.
#[test]
fn kills_lose_nothing_and_repeated_rows_keep_their_keys() {
    let Some(services) = support::services("kills_lose_nothing_and_repeated_rows_keep_their_keys") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("posted"), support::unique("group"));
    data::create_topic(&services, &topic, 3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (url, taken) = start(&runtime);
    let place = Workplace::new(&format!(
        "version: 1
kafka:
  bootstrap.servers: \"{}\"
  group.id: {group}
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
routes:
  posted:
    topics: [{topic}]
    start: earliest
    value: string
    batch: {{max_rows: 200, max_age: 50ms}}
    views:
      rows: SELECT value FROM batch WHERE value NOT LIKE '%0'
    sinks:
      server: {{from: rows, http: {{url: \"{url}\", max_rows: 30}}}}
",
        services.bootstrap
    ));
    let check = place.run(&["check"]).expect_code(0);
    assert!(check.stdout.contains("at least once: every row is answered with 2xx"), "{}", check.stdout);
    let mut total = 0;
    for _ in 0..4 {
        let mut service = place.start(&["run"]);
        let seen = taken.row_count();
        let next = total + 2000;
        let record = |number: i32| Record::new(number % 3, format!("row-{number}").into_bytes());
        data::produce(&services, &topic, (total..next).map(record));
        total = next;
        eventually("the service writes", || taken.row_count() > seen + 500);
        service.kill();
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (_, rows) = taken.0.lock().unwrap().clone();
    let mut keys: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (key, row) in &rows {
        keys.entry(row).or_default().insert(key);
    }
    let expected: BTreeSet<String> = (0..total)
        .filter(|number| number % 10 != 0)
        .map(|number| format!("{{\"value\":\"row-{number}\"}}"))
        .collect();
    assert!(keys.keys().copied().eq(expected.iter().map(String::as_str)), "rows are missing or strange");
    assert!(keys.values().all(|keys| keys.len() == 1), "a row had two keys");
    let distinct: BTreeSet<&str> = keys.values().flatten().copied().collect();
    assert_eq!(distinct.len(), keys.len());
    // Each seventh request was sent again at least.
    assert!(rows.len() > keys.len());
}
