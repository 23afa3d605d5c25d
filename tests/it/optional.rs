use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::net::TcpListener;

use crate::support::data::Record;
use crate::support::program::{Workplace, eventually};
use crate::support::{self, data};

/// The rows that a server took.
type Rows = Arc<Mutex<BTreeSet<String>>>;

async fn take(State(rows): State<Rows>, body: String) -> StatusCode {
    rows.lock().unwrap().extend(body.lines().map(str::to_owned));
    StatusCode::OK
}

/// A server that is away holds up neither files nor the group, also when the program is ended and started meanwhile; when
/// it is there it gets all of it.
#[test]
fn a_route_goes_on_without_a_server_that_is_not_required() {
    let Some(services) = support::services("a_route_goes_on_without_a_server_that_is_not_required") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("hooked"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // Nobody listens there until the test does.
    let place: SocketAddr =
        runtime.block_on(async { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() });
    let workplace = Workplace::new(&format!(
        "version: 1
kafka:
  bootstrap.servers: \"{}\"
  group.id: {group}
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
routes:
  hooked:
    topics: [{topic}]
    start: earliest
    value: string
    batch: {{max_rows: 100, max_age: 50ms}}
    views:
      rows: SELECT value FROM batch
    sinks:
      archive: {{from: rows, jsonl: {{path: out, roll: {{max_age: 200ms}}}}}}
      hook: {{from: rows, required: false, http: {{url: \"http://{place}/rows\"}}}}
",
        services.bootstrap
    ));
    let check = workplace.run(&["check"]).expect_code(0);
    assert!(check.stdout.contains("not required: the route goes on without it"), "{}", check.stdout);
    let mut total = 0;
    let expected = |total: i32| -> BTreeSet<String> {
        (0..total).map(|number| format!("{{\"value\":\"row-{number}\"}}")).collect()
    };
    for _ in 0..2 {
        let mut service = workplace.start(&["run"]);
        let next = total + 1000;
        let record = |number: i32| Record::new(number % 2, format!("row-{number}").into_bytes());
        data::produce(&services, &topic, (total..next).map(record));
        total = next;
        eventually("the group is at the end", || {
            let committed = data::committed(&services, &group, &topic);
            committed.values().map(|(offset, _)| *offset).sum::<i64>() == i64::from(total)
        });
        service.kill();
    }
    assert_eq!(data::json_rows(&workplace.path("out")).len(), usize::try_from(total).unwrap());
    let rows = Rows::default();
    let router = Router::new().fallback(take).with_state(rows.clone());
    let mut service = workplace.start(&["run"]);
    let listener = runtime.block_on(TcpListener::bind(place)).unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
    eventually("the server has what it missed", || *rows.lock().unwrap() == expected(total));
    assert_eq!(service.terminate(), Some(0));
    assert_eq!(data::json_rows(&workplace.path("out")).len(), usize::try_from(total).unwrap());
}
