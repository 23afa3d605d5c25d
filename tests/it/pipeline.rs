use std::collections::BTreeSet;

use arrow::array::{Array, StringArray};
use rdkafka::Message;
use rdkafka::message::Headers;
use serde_json::{Value, json};

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually, files};
use crate::support::{self, Services};

pub fn first_version() -> Value {
    json!({"type": "record", "name": "Order", "namespace": "shop", "fields": [
        {"name": "id", "type": "long"},
        {"name": "customer", "type": "string"},
        {"name": "amount", "type": "double"}
    ]})
}

pub fn second_version() -> Value {
    json!({"type": "record", "name": "Order", "namespace": "shop", "fields": [
        {"name": "amount", "type": "double"},
        {"name": "id", "type": "long"},
        {"name": "customer", "type": "string"},
        {"name": "note", "type": ["null", "string"], "default": null}
    ]})
}

/// Orders `ids`, spread over partitions, every other one of the second version.
pub struct Orders {
    ids: [u32; 2],
    schemas: [apache_avro::Schema; 2],
}

impl Orders {
    pub fn register(services: &Services, topic: &str) -> Self {
        let versions = [first_version(), second_version()];
        let subject = format!("{topic}-value");
        Self {
            ids: [0, 1].map(|version| data::register(services, &subject, &versions[version])),
            schemas: [0, 1].map(|version| apache_avro::Schema::parse(&versions[version]).unwrap()),
        }
    }

    pub fn record(&self, id: i64, partitions: i32) -> Record {
        let version = usize::try_from(id % 2).unwrap();
        let value = if version == 0 {
            json!({"id": id, "customer": format!("c{}", id % 10), "amount": id as f64 / 4.0})
        } else {
            json!({"amount": id as f64 / 4.0, "id": id, "customer": format!("c{}", id % 10), "note": format!("n{id}")})
        };
        let bytes = data::framed(self.ids[version], &self.schemas[version], &value);
        Record {
            key: Some(format!("k{id}").into_bytes()),
            timestamp: Some(1_700_000_000_000 + id),
            ..Record::new(i32::try_from(id % i64::from(partitions)).unwrap(), bytes)
        }
    }
}

pub fn routes(services: &Services, group: &str, topic: &str, extra: &str) -> String {
    format!(
        r#"
version: 1
kafka:
  bootstrap.servers: "{}"
  group.id: {group}
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
schema_registry: {{url: "{}"}}
routes:
  orders:
    topics: [{topic}]
    start: earliest
    key: string
{extra}
"#,
        services.bootstrap, services.registry
    )
}

#[test]
fn one_topic_of_two_versions_becomes_parquet_once() {
    let Some(services) = support::services("one_topic_of_two_versions_becomes_parquet_once") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("orders"), support::unique("group"));
    data::create_topic(&services, &topic, 3);
    let orders = Orders::register(&services, &topic);
    data::produce(&services, &topic, (0..5000).map(|id| orders.record(id, 3)));
    let extra = "
    batch: {max_rows: 700, max_age: 200ms}
    views:
      large: |
        SELECT id, upper(customer) AS who, _key, _partition, _offset
        FROM batch WHERE amount >= 500
    sinks:
      archive: {parquet: {path: out/archive}}
      large: {from: large, parquet: {path: out/large}}
      parts: {from: large, parquet: {path: out/parts, partition_by: {who: who, odd: 'id % 2 = 1'}}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, extra));
    let finished = place.run(&["run", "--until", "latest"]).expect_code(0);
    assert!(finished.stdout.contains("5000"), "{}", finished.stdout);

    let (archive, file_count) = data::parquet_rows(&place.path("out/archive"));
    let mut ids = data::numbers(&archive, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..5000).collect::<Vec<_>>());
    // Interleaved versions give no more files than one.
    assert_eq!(file_count, 1);
    let notes: usize = archive
        .iter()
        .map(|batch| batch.column_by_name("note").unwrap())
        .map(|notes| notes.len() - notes.null_count())
        .sum();
    assert_eq!(notes, 2500);

    let (large, _) = data::parquet_rows(&place.path("out/large"));
    assert_eq!(data::numbers(&large, "id").into_iter().collect::<BTreeSet<_>>(), (2000..5000).collect());
    for batch in &large {
        let column = |name| {
            let column = batch.column_by_name(name).unwrap();
            column.as_any().downcast_ref::<StringArray>().unwrap().clone()
        };
        let ids = data::numbers(std::slice::from_ref(batch), "id");
        for (row, id) in ids.iter().enumerate() {
            assert_eq!(column("_key").value(row), format!("k{id}"));
            assert_eq!(column("who").value(row), format!("C{}", id % 10));
        }
    }
    // The same rows by directory, without the column that the directory says.
    let mut parts: Vec<i64> = Vec::new();
    for digit in 0..10 {
        let dir = place.path(&format!("out/parts/who=C{digit}/odd={}", digit % 2 == 1));
        let (rows, file_count) = data::parquet_rows(&dir);
        let ids = data::numbers(&rows, "id");
        assert!(ids.iter().all(|id| id % 10 == digit), "{}", dir.display());
        assert!(rows.iter().all(|batch| batch.column_by_name("who").is_none()));
        assert_eq!(file_count, 1, "{}", dir.display());
        parts.extend(ids);
    }
    parts.sort_unstable();
    assert_eq!(parts, (2000..5000).collect::<Vec<_>>());
    assert_no_lag(&services, &group, &topic);

    // A second run goes on where the first ended.
    data::produce(&services, &topic, (5000..5300).map(|id| orders.record(id, 3)));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (archive, file_count) = data::parquet_rows(&place.path("out/archive"));
    let mut ids = data::numbers(&archive, "id");
    ids.sort_unstable();
    assert_eq!((ids, file_count), ((0..5300).collect::<Vec<_>>(), 2));
    assert_eq!(files(&place.path("out"), ".staged"), Vec::<std::path::PathBuf>::new());
    assert_no_lag(&services, &group, &topic);
}

pub fn assert_no_lag(services: &Services, group: &str, topic: &str) {
    for (partition, (committed, end)) in data::committed_and_ends(services, group, topic) {
        assert_eq!(committed, Some(end), "partition {partition}");
    }
}

#[test]
fn a_service_commits_by_age_and_drains_on_sigterm() {
    let Some(services) = support::services("a_service_commits_by_age_and_drains_on_sigterm") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("service"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let orders = Orders::register(&services, &topic);
    let extra = "
    batch: {max_age: 100ms}
    sinks:
      archive: {parquet: {path: out/archive, roll: {max_age: 300ms}}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, extra));
    let mut service = place.start(&["run"]);
    data::produce(&services, &topic, (0..100).map(|id| orders.record(id, 2)));
    eventually("the first rows are in sight", || {
        data::numbers(&data::parquet_rows(&place.path("out/archive")).0, "id").len() == 100
    });
    eventually("lag is 0", || {
        data::committed_and_ends(&services, &group, &topic)
            .values()
            .all(|(committed, end)| *committed == Some(*end))
    });
    data::produce(&services, &topic, (100..150).map(|id| orders.record(id, 2)));
    eventually("later rows too", || {
        data::numbers(&data::parquet_rows(&place.path("out/archive")).0, "id").len() == 150
    });
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
}

#[test]
fn a_bad_record_stops_its_route_before_it_and_says_where() {
    let Some(services) = support::services("a_bad_record_stops_its_route_before_it_and_says_where") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("bad"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    let orders = Orders::register(&services, &topic);
    let mut records: Vec<Record> = (0..10).map(|id| orders.record(id, 1)).collect();
    records.insert(6, Record::new(0, b"{\"id\": 6}".to_vec()));
    data::produce(&services, &topic, records);
    let sinks = "
    sinks:
      archive: {parquet: {path: out/archive}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, sinks));
    let finished = place.run(&["run", "--until", "latest"]).expect_code(1);
    let expected = format!("bad record at {topic}/0 offset 6: the first byte is 0x7b, not the magic byte");
    assert!(finished.stdout.contains(&expected), "{}", finished.stdout);
    assert!(
        finished.stdout.contains("hint: mend the producer, or set `bad_records: {dead_letter: …}` or `skip`")
    );
    let ids = |place: &Workplace| data::numbers(&data::parquet_rows(&place.path("out/archive")).0, "id");
    assert_eq!(ids(&place), (0..6).collect::<Vec<_>>());

    // The user edits the route; the rest comes, and nothing twice.
    let skip = format!("    bad_records: skip\n{sinks}");
    std::fs::write(place.path("routes.yaml"), routes(&services, &group, &topic, &skip)).unwrap();
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let mut all = ids(&place);
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<_>>());
}

/// One batch into a file and two topics: the value as JSON of all columns, and as Spark's sink columns.
#[test]
fn rows_become_records_of_topics() {
    let Some(services) = support::services("rows_become_records_of_topics") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("fan"), support::unique("group"));
    let (json_topic, column_topic) = (support::unique("json"), support::unique("columns"));
    data::create_topic(&services, &topic, 2);
    data::create_topic(&services, &json_topic, 2);
    data::create_topic(&services, &column_topic, 1);
    let orders = Orders::register(&services, &topic);
    data::produce(&services, &topic, (0..1000).map(|id| orders.record(id, 2)));
    let extra = format!(
        "
    batch: {{max_rows: 300}}
    views:
      large: SELECT id, amount, note FROM batch WHERE amount >= 200
      columns: SELECT '{column_topic}' AS topic, _key AS key, customer AS value, _headers AS headers FROM batch
    sinks:
      archive: {{parquet: {{path: out/archive}}}}
      alerts: {{from: large, kafka: {{topic: {json_topic}, key: {{column: id}}}}}}
      raw: {{from: columns, kafka: {{}}}}
      screen: {{from: large, console: {{max_rows: 1}}}}
"
    );
    let place = Workplace::new(&routes(&services, &group, &topic, &extra));
    let shown = place.run(&["run", "--until", "latest"]).expect_code(0).stdout;
    assert!(shown.contains("-- orders/screen: ") && shown.contains("id  | amount | note"), "{shown}");
    let mut alerts: Vec<i64> = Vec::new();
    for message in data::consume(&services, &json_topic) {
        let row: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        let id = row["id"].as_i64().unwrap();
        assert_eq!(message.key().unwrap(), id.to_string().as_bytes());
        let note = if id % 2 == 1 { json!(format!("n{id}")) } else { Value::Null };
        assert_eq!(row, json!({"id": id, "amount": id as f64 / 4.0, "note": note}));
        alerts.push(id);
    }
    alerts.sort_unstable();
    assert_eq!(alerts, (800..1000).collect::<Vec<_>>());
    let raw = data::consume(&services, &column_topic);
    let mut pairs: Vec<(String, String)> = raw
        .iter()
        .map(|message| (message.key().unwrap().to_vec(), message.payload().unwrap().to_vec()))
        .map(|(key, value)| (String::from_utf8(key).unwrap(), String::from_utf8(value).unwrap()))
        .collect();
    pairs.sort();
    let mut expected: Vec<(String, String)> =
        (0..1000).map(|id| (format!("k{id}"), format!("c{}", id % 10))).collect();
    expected.sort();
    assert_eq!(pairs, expected);
    assert_no_lag(&services, &group, &topic);

    // Nothing comes twice from a clean end: positions of these sinks are with the group.
    data::produce(&services, &topic, (1000..1100).map(|id| orders.record(id, 2)));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(data::consume(&services, &json_topic).len(), 300);
    assert_eq!(data::consume(&services, &column_topic).len(), 1100);
    assert_no_lag(&services, &group, &topic);
}

/// `start:` is resolved once, for every partition, and stored before any data.
#[test]
fn a_start_is_stored_and_means_the_same_after_a_crash() {
    let Some(services) = support::services("a_start_is_stored_and_means_the_same_after_a_crash") else {
        return;
    };
    let _turn = support::turn();
    let cases = [
        ("start: -10", (90..100).collect::<Vec<i64>>()),
        ("start: 2023-11-14T22:13:20.095Z", (95..100).collect()),
        ("start: latest", Vec::new()),
        ("start: {TOPIC: {0: 97}}", (97..100).collect()),
    ];
    for (start, first) in cases {
        let (topic, group) = (support::unique("start"), support::unique("group"));
        data::create_topic(&services, &topic, 1);
        let orders = Orders::register(&services, &topic);
        data::produce(&services, &topic, (0..100).map(|id| orders.record(id, 1)));
        let sinks = "    sinks: {archive: {parquet: {path: out}}}\n";
        let text = routes(&services, &group, &topic, sinks);
        let place = Workplace::new(&text.replace("start: earliest", &start.replace("TOPIC", &topic)));
        place.run(&["run", "--until", "latest"]).expect_code(0);
        let ids = || {
            let mut ids = data::numbers(&data::parquet_rows(&place.path("out")).0, "id");
            ids.sort_unstable();
            ids
        };
        assert_eq!(ids(), first, "{start}");
        // What comes later is read, whatever the start says now.
        data::produce(&services, &topic, (100..105).map(|id| orders.record(id, 1)));
        place.run(&["run", "--until", "latest"]).expect_code(0);
        assert_eq!(ids(), first.into_iter().chain(100..105).collect::<Vec<_>>(), "{start}");
    }
}

/// Two instances of one group share a directory; one is killed, the other takes over.
#[test]
fn two_instances_share_the_work_and_one_takes_over() {
    let Some(services) = support::services("two_instances_share_the_work_and_one_takes_over") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("pair"), support::unique("group"));
    data::create_topic(&services, &topic, 4);
    let orders = Orders::register(&services, &topic);
    let extra = "
    batch: {max_rows: 100, max_age: 50ms}
    sinks:
      archive: {parquet: {path: out, roll: {max_age: 100ms}}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, extra));
    let mut one = place.start(&["run"]);
    let mut two = place.start(&["run"]);
    data::produce(&services, &topic, (0..2000).map(|id| orders.record(id, 4)));
    let count = || data::numbers(&data::parquet_rows(&place.path("out")).0, "id").len();
    eventually("the first half", || count() == 2000);
    one.kill();
    data::produce(&services, &topic, (2000..4000).map(|id| orders.record(id, 4)));
    eventually("the second half", || count() == 4000);
    let mut ids = data::numbers(&data::parquet_rows(&place.path("out")).0, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..4000).collect::<Vec<_>>());
    assert_eq!(two.terminate(), Some(0), "{}", two.log());
}

/// Bad records of several kinds go to a topic and to files, byte for byte; their neighbours are rows.
#[test]
fn bad_records_become_dead_letters_byte_for_byte() {
    let Some(services) = support::services("bad_records_become_dead_letters_byte_for_byte") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("mixed"), support::unique("group"));
    let letters = support::unique("letters");
    data::create_topic(&services, &topic, 2);
    data::create_topic(&services, &letters, 1);
    let orders = Orders::register(&services, &topic);
    let cut = |id: i64| {
        let mut record = orders.record(id, 2);
        let value = record.value.as_mut().unwrap();
        value.truncate(value.len() - 3);
        record
    };
    let kinds: [(&str, Vec<u8>); 3] =
        [("framing", b"plain text".to_vec()), ("framing", Vec::new()), ("truncated", cut(50).value.unwrap())];
    let mut records: Vec<Record> = (0..100).map(|id| orders.record(id, 2)).collect();
    for (index, (_, bytes)) in kinds.iter().enumerate() {
        let bad = Record { key: Some(format!("bad{index}").into_bytes()), ..Record::new(0, bytes.clone()) };
        records.insert(10 + index * 20, bad);
    }
    data::produce(&services, &topic, records);
    let extra = "
    bad_records: {dead_letter: [topic, files]}
    sinks:
      archive: {parquet: {path: out/archive}}
";
    let targets = format!(
        "dead_letters:\n  topic: {{kafka: {{topic: {letters}}}}}\n  files: {{jsonl: {{path: out/bad}}}}\nroutes:\n"
    );
    let text = routes(&services, &group, &topic, extra).replace("routes:\n", &targets);
    let place = Workplace::new(&text);
    let finished = place.run(&["run", "--until", "latest"]).expect_code(0);
    let mut ids = data::numbers(&data::parquet_rows(&place.path("out/archive")).0, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    let written = data::consume(&services, &letters);
    assert_eq!(written.len(), 3, "{}", finished.stdout);
    for (index, (message, (code, bytes))) in written.iter().zip(&kinds).enumerate() {
        assert_eq!(message.payload().unwrap_or_default(), bytes);
        assert_eq!(message.key().unwrap(), format!("bad{index}").as_bytes());
        let headers = message.headers().unwrap();
        let header = |name: &str| {
            let found = headers.iter().find(|header| header.key == format!("__connect.errors.{name}"));
            String::from_utf8(found.unwrap().value.unwrap().to_vec()).unwrap()
        };
        assert_eq!(header("topic"), topic);
        assert_eq!(header("partition"), "0");
        assert_eq!(header("exception.class.name"), *code);
    }
    let mut lines: Vec<Value> = Vec::new();
    for file in files(&place.path("out/bad/orders"), ".jsonl") {
        let text = std::fs::read_to_string(file).unwrap();
        lines.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    let codes: Vec<&str> = lines.iter().map(|line| line["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["framing", "framing", "truncated"]);
    assert_eq!(lines[0]["value"], "cGxhaW4gdGV4dA==");
    assert_no_lag(&services, &group, &topic);
    // A second run doubles nothing.
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(data::consume(&services, &letters).len(), 3);
}

/// Keys of the registry are a struct that views take apart; one that cannot be read makes its record bad.
#[test]
fn keys_of_the_registry_are_taken_apart() {
    let Some(services) = support::services("keys_of_the_registry_are_taken_apart") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("keyed"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let orders = Orders::register(&services, &topic);
    let schema = json!({"type": "record", "name": "OrderKey", "namespace": "shop", "fields": [
        {"name": "id", "type": "long"}
    ]});
    let key_id = data::register(&services, &format!("{topic}-key"), &schema);
    let key_schema = apache_avro::Schema::parse(&schema).unwrap();
    let keyed = |id: i64| {
        let key = data::framed(key_id, &key_schema, &json!({"id": id * 10}));
        Record { key: Some(key), ..orders.record(id, 2) }
    };
    let mut records: Vec<Record> = (0..100).map(keyed).collect();
    records.insert(30, Record { key: Some(b"plain".to_vec()), ..orders.record(1000, 2) });
    records.insert(60, Record { key: None, ..orders.record(1001, 2) });
    data::produce(&services, &topic, records);
    let extra = "
    bad_records: {dead_letter: files}
    views:
      keyed: SELECT id, _key['id'] AS key_id FROM batch
    sinks:
      keyed: {from: keyed, jsonl: {path: out/keyed}}
";
    let targets = "dead_letters:\n  files: {jsonl: {path: out/bad}}\nroutes:\n";
    let text = routes(&services, &group, &topic, extra)
        .replace("routes:\n", targets)
        .replace("key: string", "key: registry");
    let place = Workplace::new(&text);
    place.run(&["check"]).expect_code(0);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let lines = |dir: &str| -> Vec<Value> {
        let texts =
            files(&place.path(dir), ".jsonl").into_iter().map(|path| std::fs::read_to_string(path).unwrap());
        texts
            .flat_map(|text| {
                text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
            })
            .collect()
    };
    let mut rows: Vec<(i64, Option<i64>)> =
        lines("out/keyed").iter().map(|row| (row["id"].as_i64().unwrap(), row["key_id"].as_i64())).collect();
    rows.sort_unstable();
    let mut expected: Vec<(i64, Option<i64>)> = (0..100).map(|id| (id, Some(id * 10))).collect();
    expected.push((1001, None));
    assert_eq!(rows, expected);
    let letters = lines("out/bad/orders");
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0]["key"], &letters[0]["code"]), (&json!("cGxhaW4="), &json!("framing")));
    let message = letters[0]["message"].as_str().unwrap();
    assert!(message.starts_with("key: the first byte is 0x70, not the magic byte"), "{message}");
    assert_no_lag(&services, &group, &topic);
}

/// The end of a partition may hold nothing that is ever delivered: markers and aborted records.
#[test]
fn a_bounded_run_ends_behind_aborted_transactions_of_a_compacted_topic() {
    let Some(services) =
        support::services("a_bounded_run_ends_behind_aborted_transactions_of_a_compacted_topic")
    else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("compacted"), support::unique("group"));
    let settings =
        [("cleanup.policy", "compact"), ("segment.ms", "100"), ("min.cleanable.dirty.ratio", "0.01")];
    data::create_topic_with(&services, &topic, 2, &settings);
    let orders = Orders::register(&services, &topic);
    data::produce(&services, &topic, (0..100).map(|id| orders.record(id, 2)));
    data::produce_transaction(&services, &topic, (100..150).map(|id| orders.record(id, 2)), true);
    data::produce_transaction(&services, &topic, (1000..1100).map(|id| orders.record(id, 2)), false);
    let sinks = "
    sinks:
      archive: {parquet: {path: out}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, sinks));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let ids = || {
        let mut ids = data::numbers(&data::parquet_rows(&place.path("out")).0, "id");
        ids.sort_unstable();
        ids
    };
    // Every key is written once, so compaction takes nothing away; aborted rows are nobody's.
    assert_eq!(ids(), (0..150).collect::<Vec<_>>());
    assert_no_lag(&services, &group, &topic);
    // Only an aborted transaction since: the run ends all the same, and lag is 0 again.
    data::produce_transaction(&services, &topic, (2000..2010).map(|id| orders.record(id, 2)), false);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(ids(), (0..150).collect::<Vec<_>>());
    assert_no_lag(&services, &group, &topic);
}

#[test]
fn two_hundred_partitions_are_one_file() {
    let Some(services) = support::services("two_hundred_partitions_are_one_file") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("wide"), support::unique("group"));
    data::create_topic(&services, &topic, 200);
    let orders = Orders::register(&services, &topic);
    data::produce(&services, &topic, (0..4000).map(|id| orders.record(id, 200)));
    let sinks = "
    sinks:
      archive: {parquet: {path: out}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, sinks));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (rows, file_count) = data::parquet_rows(&place.path("out"));
    let mut ids = data::numbers(&rows, "id");
    ids.sort_unstable();
    assert_eq!((ids, file_count), ((0..4000).collect::<Vec<_>>(), 1));
    assert_no_lag(&services, &group, &topic);
}

/// The main job: the repository's own routes on a real cluster, filled by `datagen`; what is in the sinks is
/// what an independent reader finds in the topics.
#[test]
fn three_topics_of_three_schemas_go_where_routes_yaml_says() {
    let Some(services) = support::services("three_topics_of_three_schemas_go_where_routes_yaml_says") else {
        return;
    };
    let _turn = support::turn();
    let group = support::unique("group");
    for topic in ["shop.orders", "shop.clicks", "shop.users"] {
        data::create_topic(&services, topic, 3);
    }
    let routes =
        include_str!("../../routes.yaml").replace("group.id: shop-router", &format!("group.id: {group}"));
    let place = Workplace::new(&routes)
        .with("KAFKA_BOOTSTRAP_SERVERS", &services.bootstrap)
        .with("SCHEMA_REGISTRY_URL", &services.registry);
    let schemas = format!("{}/avro", env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir(place.path("avro")).unwrap();
    let users = "shop.users.json.avsc";
    std::fs::copy(format!("{schemas}/{users}"), place.path(&format!("avro/{users}"))).unwrap();
    place
        .run(&[
            "datagen",
            "--schemas",
            &schemas,
            "--records",
            "3000",
            "--bad-every",
            "100",
            "--tombstone-every",
            "70",
        ])
        .expect_code(0);
    place.run(&["check"]).expect_code(0);
    place.run(&["run", "--until", "latest"]).expect_code(0);

    // By key and place, from the topics as they are.
    let counted = |topic: &str| {
        let all = data::consume(&services, topic);
        let tombstones = all.iter().filter(|message| message.payload().is_none()).count();
        let bad = all.iter().filter(|message| message.payload() == Some(b"{\"not\": \"framed\"}")).count();
        (all.len(), tombstones, bad)
    };
    let parquet = |dir: &str| -> usize {
        data::parquet_rows(&place.path(dir)).0.iter().map(|batch| batch.num_rows()).sum()
    };
    let lines = |dir: &str, suffix: &str| -> usize {
        let texts =
            files(&place.path(dir), suffix).into_iter().map(|path| std::fs::read_to_string(path).unwrap());
        texts.map(|text| text.lines().count()).sum()
    };
    for (topic, route) in [("shop.orders", "orders"), ("shop.clicks", "clicks"), ("shop.users", "users")] {
        let (all, tombstones, bad) = counted(topic);
        assert_eq!((all, bad), (3000, 30), "{topic}");
        let rows = match route {
            // A tombstone is a row of nulls here, and nothing in the other two.
            "orders" => parquet("out/orders"),
            "clicks" => lines("out/clicks", ".jsonl") + tombstones,
            _ => parquet("out/users") + tombstones,
        };
        assert_eq!(rows, all - bad, "{topic}");
        assert_eq!(lines(&format!("out/dead-letters/{route}"), ".jsonl"), bad, "{topic}");
        assert_no_lag(&services, &group, topic);
    }
    // Rows of the view are those of the archive that it says.
    let (orders, _) = data::parquet_rows(&place.path("out/orders"));
    let paid: usize = orders
        .iter()
        .map(|batch| batch.column_by_name("amount").unwrap())
        .map(|column| column.as_any().downcast_ref::<arrow::array::Decimal128Array>().unwrap().clone())
        .map(|amounts| amounts.iter().flatten().filter(|amount| *amount > 0).count())
        .sum();
    assert_eq!(parquet("out/paid"), paid);
}

/// A sink that will never take a row: what is before its record is written, and the route says which it is.
#[test]
fn a_refused_row_is_found_among_thousands() {
    let Some(services) = support::services("a_refused_row_is_found_among_thousands") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group, copy) =
        (support::unique("refused"), support::unique("group"), support::unique("copy"));
    data::create_topic(&services, &topic, 2);
    data::create_topic(&services, &copy, 1);
    let values = (0..4000).map(|number| {
        // One that is larger than may be sent, and that no file system takes as a directory.
        let value = if number == 2501 { "x".repeat(200_000) } else { format!("v{number}") };
        Record::new(number % 2, value.into_bytes())
    });
    data::produce(&services, &topic, values);
    let text = format!(
        "    value: string\n    batch: {{max_rows: 3000, max_age: 200ms}}\n    views:\n      rows: SELECT value FROM batch\n    \
         sinks:\n      copy: {{kafka: {{topic: {copy}}}}}\n      \
         files: {{jsonl: {{path: out/files, partition_by: {{first: \"CASE WHEN length(value) > 100 THEN value ELSE left(value, 2) END\"}}}}}}\n"
    );
    let text = routes(&services, &group, &topic, &text)
        .replace("  session", "  message.max.bytes: 100000\n  session");
    let place = Workplace::new(&text);
    let finished = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(finished.stdout.contains(&format!("{topic}/1 [1250, 1251)")), "{}", finished.stdout);
    // Everything before it of its partition is there, with both sinks.
    let written: BTreeSet<String> = files(&place.path("out/files"), ".jsonl")
        .iter()
        .flat_map(|file| {
            std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .map(|line| serde_json::from_str::<Value>(&line).unwrap()["value"].as_str().unwrap().to_owned())
        .collect();
    let copied: BTreeSet<String> = data::consume(&services, &copy)
        .iter()
        .map(|message| String::from_utf8(message.payload().unwrap().to_vec()).unwrap())
        .collect();
    for number in (1..2501).step_by(2) {
        assert!(written.contains(&format!("v{number}")), "v{number} is not in the files");
        assert!(copied.contains(&format!("v{number}")), "v{number} is not in the topic");
    }
}

/// Rows of a large batch are rendered side by side and sent in order.
#[test]
fn a_kafka_sink_keeps_the_order_of_a_large_batch() {
    let Some(services) = support::services("a_kafka_sink_keeps_the_order_of_a_large_batch") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group, copy) =
        (support::unique("ordered"), support::unique("group"), support::unique("copy"));
    data::create_topic(&services, &topic, 1);
    data::create_topic(&services, &copy, 1);
    let values: Vec<String> = (0..30_000).map(|number| format!("v{number}")).collect();
    data::produce(&services, &topic, values.iter().map(|value| Record::new(0, value.clone().into_bytes())));
    let text = format!(
        "    value: string\n    views:\n      rows: SELECT value FROM batch\n    sinks:\n      \
         copy: {{from: rows, kafka: {{topic: {copy}}}}}\n"
    );
    let place = Workplace::new(&routes(&services, &group, &topic, &text));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let copied: Vec<String> = data::consume(&services, &copy)
        .iter()
        .map(|message| String::from_utf8_lossy(message.payload().unwrap()).into_owned())
        .collect();
    assert!(copied == values);
}

/// A bounded run beside a member that lives: refused, or together with it.
#[test]
fn a_bounded_run_joins_a_group_only_when_told_to() {
    let Some(services) = support::services("a_bounded_run_joins_a_group_only_when_told_to") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("together"), support::unique("group"));
    data::create_topic(&services, &topic, 4);
    let orders = Orders::register(&services, &topic);
    data::produce(&services, &topic, (0..4000).map(|id| orders.record(id, 4)));
    let extra = "
    batch: {max_age: 100ms}
    sinks:
      archive: {parquet: {path: out/archive, roll: {max_age: 200ms}}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, extra));
    let mut service = place.start(&["run"]);
    eventually("the service has rows", || !files(&place.path("out/archive"), ".parquet").is_empty());
    let refused = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(
        refused.stderr.contains("1 live members") && refused.stderr.contains("--join"),
        "{}",
        refused.stderr
    );
    data::produce(&services, &topic, (4000..8000).map(|id| orders.record(id, 4)));
    // What the service has counts as read once it is committed.
    place.run(&["run", "--until", "latest", "--join"]).expect_code(0);
    let ids = || {
        let (archive, _) = data::parquet_rows(&place.path("out/archive"));
        let mut ids = data::numbers(&archive, "id");
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(), (0..8000).collect::<Vec<_>>());
    assert_eq!(service.terminate(), Some(0));
    assert_eq!(ids(), (0..8000).collect::<Vec<_>>());
}
