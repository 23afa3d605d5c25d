use std::time::Duration;

use crate::pipeline::{Orders, routes};
use crate::support::program::{Workplace, eventually, files, pause};
use crate::support::{self, data};

/// `KILL_ROUNDS` makes more of them.
const ROUNDS_DEFAULT: u64 = 10;

fn rounds() -> u64 {
    std::env::var("KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS_DEFAULT)
}

/// Killed again and again, at another moment each time, while rows flow; then the files hold every record once.
#[test]
fn kills_lose_and_double_nothing() {
    let Some(services) = support::services("kills_lose_and_double_nothing") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("kills"), support::unique("group"));
    data::create_topic(&services, &topic, 4);
    let orders = Orders::register(&services, &topic);
    // Small batches and files: a kill meets every step often.
    let extra = "
    batch: {max_rows: 200, max_age: 50ms}
    views:
      odd: SELECT id, note FROM batch WHERE id % 2 = 1
    sinks:
      archive: {parquet: {path: out/archive, roll: {max_rows: 500, max_age: 100ms}}}
      odd: {from: odd, parquet: {path: out/odd, roll: {max_rows: 300, max_age: 150ms}}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, extra));
    let mut total = 0;
    // Counted by name: reading all files of many rounds would put the kill off.
    let file_count = || files(&place.path("out/archive"), ".parquet").len();
    for round in 0..rounds() {
        let mut service = place.start(&["run"]);
        let next = total + 4000;
        let seen = file_count();
        data::produce(&services, &topic, (total..next).map(|id| orders.record(id, 4)));
        total = next;
        eventually("the service writes", || file_count() > seen);
        // Anywhere within the next steps; the spread does not have to be random to differ by round.
        pause(Duration::from_millis(7 * round % 100));
        service.kill();
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (archive, _) = data::parquet_rows(&place.path("out/archive"));
    let mut ids = data::numbers(&archive, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..total).collect::<Vec<_>>());
    let (odd, _) = data::parquet_rows(&place.path("out/odd"));
    let mut ids = data::numbers(&odd, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..total).filter(|id| id % 2 == 1).collect::<Vec<_>>());
}
