use std::collections::BTreeSet;

use serde_json::json;

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually, files};
use crate::support::{self};

/// Every fourth order is paid.
const PAID_EVERY: i64 = 4;

/// What `foreachBatch` is for: one batch, two sinks, and a crash in the middle of it. See `docs/examples/side-outputs.md`.
#[test]
fn two_sinks_have_the_rows_of_one_batch_once() {
    let test = "two_sinks_have_the_rows_of_one_batch_once";
    let Some(services) = support::services(test) else {
        return;
    };
    let _turn = support::turn();
    let Some(postgres) = support::own_postgres(test) else {
        return;
    };
    let (topic, group) = (support::unique("orders"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let record = |id: i64| {
        let order = json!({"id": id, "customer": format!("c{}", id % 7), "amount": 2.5, "is_paid": id % PAID_EVERY == 0});
        Record::new(i32::try_from(id % 2).unwrap(), order.to_string().into_bytes())
    };
    data::produce(&services, &topic, (0..20_000).map(record));

    let example = include_str!("../../docs/examples/side-outputs.md");
    let block = |language: &str| {
        let (_, after) = example.split_once(&format!("```{language}\n")).unwrap();
        after.split_once("```").unwrap().0
    };
    let batches = "    batch: {max_rows: 500, max_age: 50ms}\n    views:\n";
    let routes = block("yaml")
        .replace("side-outputs", &group)
        .replace("[orders]", &format!("[{topic}]"))
        .replace("localhost:9092", &services.bootstrap)
        // Small batches and files, so that the crash comes between two of them.
        .replace("    views:\n", batches)
        .replace("{path: out/orders}", "{path: out/orders, roll: {max_rows: 700}}");
    let place = Workplace::new(&routes).with("DATABASE_URL", postgres.url());
    std::fs::write(place.path("order.avsc"), block("json")).unwrap();
    let checked = place.run(&["check"]).expect_code(0).stdout;
    for expected in ["exactly once: files and positions", "exactly once: rows and positions"] {
        assert!(checked.contains(expected), "no {expected:?} in {checked}");
    }

    let mut service = place.start(&["run"]);
    eventually("files are in sight", || !files(&place.path("out/orders"), ".parquet").is_empty());
    service.kill();
    data::produce(&services, &topic, (20_000..21_000).map(record));
    place.run(&["run", "--until", "latest"]).expect_code(0);

    let (batches, _) = data::parquet_rows(&place.path("out/orders"));
    let archived = data::numbers(&batches, "id");
    assert_eq!(archived.len(), 21_000);
    assert_eq!(archived.into_iter().collect::<BTreeSet<_>>(), (0..21_000).collect());
    let told = postgres.sql(
        "select count(*), count(distinct id), sum(id), count(*) filter (where id % 4 <> 0) from paid_orders;",
    );
    let sum: i64 = (0..21_000).step_by(4).sum();
    assert_eq!(told, [format!("5250|5250|{sum}|0")]);
}
