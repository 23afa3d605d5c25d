//! Dead letters in files of each format, in a table and as records with a schema: there once, byte for byte; and those in
//! files read again.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::Message;
use serde_json::Value;

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, files};
use crate::support::{self, Services};

const ORDER: &str = r#"{"type": "record", "name": "Order", "fields": [
    {"name": "id", "type": "long"}, {"name": "amount", "type": "AMOUNT"}]}"#;

/// A broker, a topic of orders, and one that they are copied to.
struct Stage {
    services: Services,
    topic: String,
    copy: String,
}

impl Stage {
    fn new(test: &str) -> Option<Self> {
        let services = support::services(test)?;
        let (topic, copy) = (support::unique("orders"), support::unique("copy"));
        data::create_topic(&services, &topic, 2);
        data::create_topic(&services, &copy, 1);
        Some(Self { services, topic, copy })
    }

    /// A working directory whose route `orders`, and those of `others`, put letters into `target`.
    fn place(&self, target: &str, others: &str) -> Workplace {
        let Self { services, topic, copy } = self;
        let place = Workplace::new(&format!(
            "
version: 1
kafka:
  bootstrap.servers: \"{}\"
  group.id: {topic}-group
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
  message.max.bytes: 100000
schema_registry: {{url: \"{}\"}}
dead_letters: {{bad: {target}}}
defaults:
  start: earliest
  batch: {{max_rows: 100, max_age: 50ms}}
  value: {{json: {{schema: {{file: order.avsc}}}}}}
  bad_records: {{dead_letter: bad}}
routes:
  orders:
    topics: [{topic}]
    sinks:
      files: {{jsonl: {{path: out/orders, roll: {{max_age: 100ms}}}}}}
      copy: {{kafka: {{topic: {copy}}}}}
{others}",
            services.bootstrap, services.registry
        ));
        amounts(&place, "long");
        place
    }

    /// Orders with these numbers. The amount of every fifth is no whole number.
    fn produce(&self, numbers: std::ops::Range<i64>) {
        let records = numbers.map(|id| Record::new((id % 2) as i32, order(id).into_bytes()));
        data::produce(&self.services, &self.topic, records);
    }

    /// The numbers of the orders that were copied, as often as they were.
    fn copied(&self) -> Vec<i64> {
        let all = data::consume(&self.services, &self.copy);
        let mut ids: Vec<i64> = all
            .iter()
            .map(|message| {
                let row: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                row["id"].as_i64().unwrap()
            })
            .collect();
        ids.sort_unstable();
        ids
    }
}

fn order(id: i64) -> String {
    let part = if id % 5 == 3 { ".5" } else { "" };
    format!(r#"{{"id": {id}, "amount": {id}{part}}}"#)
}

/// Mends the route, or breaks it.
fn amounts(place: &Workplace, kind: &str) {
    std::fs::write(place.path("order.avsc"), ORDER.replace("AMOUNT", kind)).unwrap();
}

fn run(place: &Workplace) {
    place.run(&["run", "--until", "latest"]).expect_code(0);
}

fn replay(place: &Workplace) {
    place.run(&["replay", "--route", "orders"]).expect_code(0);
}

/// The numbers of the orders in files, as often as they are there.
fn in_files(place: &Workplace) -> Vec<i64> {
    let rows = data::json_rows(&place.path("out/orders"));
    let mut ids: Vec<i64> = rows.iter().map(|row| row["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// Beside the service; what is still bad is a letter again, and all that the next replay reads.
fn letters_are_replayed(stage: &Stage, format: &str, suffix: &str) {
    let target = format!("{{{format}: {{path: out/bad, roll: {{max_age: 100ms}}}}}}");
    let place = stage.place(&target, "");
    stage.produce(0..300);
    data::produce(&stage.services, &stage.topic, [Record::new(0, b"no order".to_vec())]);
    run(&place);
    let whole: Vec<i64> = (0..300).filter(|id| id % 5 != 3).collect();
    assert_eq!((in_files(&place), stage.copied()), (whole.clone(), whole), "{format}");
    let count = || {
        let all = files(&place.path("out/bad/orders"), suffix);
        all.iter().filter(|path| !path.to_string_lossy().contains("_sidestream")).count()
    };
    let before = count();
    assert!(before > 0, "{format}");
    let mut service = place.start(&["run"]);
    amounts(&place, "double");
    for round in 1..=2 {
        replay(&place);
        let all: Vec<i64> = (0..300).collect();
        assert_eq!((in_files(&place), stage.copied()), (all.clone(), all), "{format}");
        assert_eq!(count(), before + round, "{format}");
    }
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    // It takes what was replayed neither for an edit nor for its own.
    run(&place);
    assert_eq!(in_files(&place).len(), 300, "{format}");
    assert_eq!(stage.copied().len(), 300, "{format}");
}

#[test]
fn letters_in_files_of_each_format_become_rows_once_they_are_mended() {
    let name = "letters_in_files_of_each_format_become_rows_once_they_are_mended";
    let formats = [("jsonl", ".jsonl"), ("parquet", ".parquet"), ("avro", ".avro")];
    for (format, suffix) in formats {
        let Some(stage) = Stage::new(name) else {
            return;
        };
        let _turn = support::turn();
        letters_are_replayed(&stage, format, suffix);
    }
}

/// Killed at many steps; the next one goes on, and no row comes twice into files.
#[test]
fn a_replay_that_is_killed_goes_on_where_it_was() {
    let Some(stage) = Stage::new("a_replay_that_is_killed_goes_on_where_it_was") else {
        return;
    };
    let _turn = support::turn();
    let place = stage.place("{jsonl: {path: out/bad, compression: zstd}}", "");
    let mut total = 0;
    // The first one is come to only by the first replay.
    for point in [
        "lane.start.storing",
        "engine.assign.sent",
        "lane.batch.decoded",
        "file.entry.linked",
        "lane.sink.flushed",
        "lane.progress.reported:2",
        "engine.leaving",
    ] {
        amounts(&place, "long");
        stage.produce(total..total + 200);
        total += 200;
        run(&place);
        amounts(&place, "double");
        let armed = ("SIDESTREAM_FAILPOINT", format!("{point}=kill"));
        let ended = place.run_with((armed.0, &armed.1), &["replay", "--route", "orders"]);
        assert!(ended.code != Some(0) && ended.stderr.contains("fail point"), "{point}: {}", ended.stderr);
        replay(&place);
        let all: Vec<i64> = (0..total).collect();
        assert_eq!(in_files(&place), all, "{point}");
        // A topic has them at least once.
        assert!(
            stage.copied().into_iter().collect::<BTreeSet<i64>>() == all.into_iter().collect::<BTreeSet<_>>(),
            "{point}"
        );
    }
}

/// Two routes share a table. Whatever is killed, each of their letters is there once; and what a sink refuses is there
/// byte for byte.
#[test]
fn letters_in_a_table_are_there_once() {
    let name = "letters_in_a_table_are_there_once";
    let (Some(stage), Some(postgres)) = (Stage::new(name), support::own_postgres(name)) else {
        return;
    };
    let _turn = support::turn();
    let target = "{postgres: {url: \"${URL}\", table: bad}}";
    let second = format!(
        "  second: {{topics: [{}], sinks: {{files: {{jsonl: {{path: out/second}}}}}}}}\n",
        stage.topic
    );
    let place = stage.place(target, &second).with("URL", postgres.url());
    let checked = place.run(&["check"]).expect_code(0).stdout;
    let guarantee =
        "sink dead_letter/bad: exactly once: rows and positions are one transaction; letters of records";
    assert!(checked.contains(guarantee), "{checked}");
    let mut total = 0;
    for point in
        ["postgres.opened", "postgres.copied", "postgres.merged", "postgres.committed", "letters.flushed"]
    {
        stage.produce(total..total + 100);
        total += 100;
        let armed = ("SIDESTREAM_FAILPOINT", format!("{point}=kill"));
        let ended = place.run_with((armed.0, &armed.1), &["run", "--until", "latest"]);
        assert!(ended.code != Some(0) && ended.stderr.contains("fail point"), "{point}: {}", ended.stderr);
        run(&place);
        let told = postgres.sql(
            "SELECT route, count(*), count(DISTINCT (source_partition, source_offset)) FROM bad GROUP BY 1 ORDER BY 1;",
        );
        let bad = total / 5;
        assert_eq!(told, [format!("orders|{bad}|{bad}"), format!("second|{bad}|{bad}")], "{point}");
    }
    assert_eq!(in_files(&place), (0..total).filter(|id| id % 5 != 3).collect::<Vec<_>>());
    let columns = "source_topic, source_partition, source_offset, convert_from(value, 'UTF8'), key IS NULL, schema_id IS NULL";
    let first = postgres.sql(&format!(
        "SELECT {columns} FROM bad WHERE route = 'orders' ORDER BY source_partition DESC, source_offset LIMIT 1;"
    ));
    assert_eq!(first, [format!("{}|1|1|{}|t|t", stage.topic, order(3))]);
    let header = postgres.sql(
        "SELECT headers->0->>'key', convert_from(decode(headers->0->>'value', 'base64'), 'UTF8') FROM bad LIMIT 1;",
    );
    assert_eq!(header, [format!("__connect.errors.topic|{}", stage.topic)]);

    // Too large for the topic that it is copied to, and only for that.
    let large = format!(r#"{{"id": {total}, "amount": 1, "more": "{}"}}"#, "x".repeat(150_000));
    let schema = ORDER
        .replace("AMOUNT", "long")
        .replace("]}", r#", {"name": "more", "type": "string", "default": ""}]}"#);
    std::fs::write(place.path("order.avsc"), schema).unwrap();
    data::produce(&stage.services, &stage.topic, [Record::new(0, large.clone().into_bytes())]);
    run(&place);
    let refused = postgres.sql(
        "SELECT route, octet_length(value), md5(value), code FROM bad WHERE code = 'sink_refusal' ORDER BY 1;",
    );
    let expected = postgres.sql(&format!("SELECT md5('{large}');"));
    assert_eq!(refused, [format!("orders|{}|{}|sink_refusal", large.len(), expected[0])]);
    assert!(in_files(&place).contains(&total));

    let told = place.run(&["replay", "--route", "orders"]).expect_code(2).stderr;
    assert!(told.contains("the dead letters in `bad` cannot be replayed: it is a table"), "{told}");
}

/// All columns of a letter as one record of the registry; its key and headers are as ever.
#[test]
fn letters_with_a_schema_are_read_by_other_routes() {
    let Some(stage) = Stage::new("letters_with_a_schema_are_read_by_other_routes") else {
        return;
    };
    let _turn = support::turn();
    for format in ["avro", "protobuf", "json_schema", "json"] {
        let letters = support::unique("letters");
        data::create_topic(&stage.services, &letters, 1);
        let group = support::unique("group");
        let target = format!("{{kafka: {{topic: {letters}, format: {format}}}}}");
        let place = stage.place(&target, "");
        let text = std::fs::read_to_string(place.path("routes.yaml")).unwrap();
        let own = format!("{}-group", stage.topic);
        std::fs::write(place.path("routes.yaml"), text.replace(&own, &group)).unwrap();
        if format == "avro" {
            stage.produce(0..50);
            let bad = Record { key: Some(b"\x00k".to_vec()), ..Record::new(0, b"\xff\x00".to_vec()) };
            data::produce(&stage.services, &stage.topic, [bad]);
        }
        let checked = place.run(&["check"]).expect_code(0).stdout;
        let subject = format!("sink dead_letter/bad: values: subject {letters}-value, compatible");
        assert!(checked.contains(&subject) == (format != "json"), "{checked}");
        run(&place);
        let told = place.run(&["replay", "--route", "orders"]).expect_code(2).stderr;
        assert!(told.contains("its `format` is not `original`"), "{told}");

        let written = data::consume(&stage.services, &letters);
        assert_eq!(written.len(), 11, "{format}");
        let keys: BTreeSet<_> = written.iter().map(|letter| letter.key().map(<[u8]>::to_vec)).collect();
        assert_eq!(keys, BTreeSet::from([None, Some(b"\x00k".to_vec())]));
        let rows = match format {
            "json" => {
                let rows =
                    written.iter().map(|letter| serde_json::from_slice(letter.payload().unwrap()).unwrap());
                rows.collect::<Vec<Value>>()
            }
            _ => read_back(&stage.services, &letters, format),
        };
        let values: BTreeSet<Vec<u8>> =
            rows.iter().map(|row| STANDARD.decode(row["value"].as_str().unwrap()).unwrap()).collect();
        let bad = (0..50).filter(|id| id % 5 == 3).map(|id| order(id).into_bytes());
        assert_eq!(values, bad.chain([b"\xff\x00".to_vec()]).collect::<BTreeSet<_>>(), "{format}");
        for row in &rows {
            assert_eq!(row["route"], "orders", "{format}");
            assert_eq!(row["source_topic"], stage.topic.as_str(), "{format}");
            let headers = row["headers"].as_array().unwrap();
            assert_eq!(headers[0]["key"], "__connect.errors.topic", "{format}");
        }
    }
}

/// The rows of a topic, by a route of its own.
fn read_back(services: &Services, topic: &str, value: &str) -> Vec<Value> {
    let place = Workplace::new(&format!(
        "
version: 1
kafka: {{bootstrap.servers: \"{}\", group.id: {topic}-readers}}
schema_registry: {{url: \"{}\"}}
routes:
  letters:
    topics: [{topic}]
    start: earliest
    value: {value}
    sinks: {{all: {{jsonl: {{path: out/all}}}}}}
",
        services.bootstrap, services.registry
    ));
    run(&place);
    data::json_rows(&place.path("out/all"))
}
