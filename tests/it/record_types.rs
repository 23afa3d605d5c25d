use std::collections::BTreeSet;
use std::path::Path;

use protox::prost_reflect::prost::Message as _;
use protox::prost_reflect::{DynamicMessage, Value as Field};
use serde_json::{Value, json};

use crate::pipeline::routes;
use crate::support;
use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually};

/// A namespace of the test's own: subjects of record names are those of the whole registry.
fn namespace() -> String {
    support::unique("acme").replace('-', "_")
}

fn record(name: &str, fields: Value) -> Value {
    json!({"type": "record", "name": name, "fields": fields})
}

/// A record type with an id and, in its second version, a note.
fn versions(name: &str) -> [Value; 2] {
    let id = json!({"name": "id", "type": "long"});
    let note = json!({"name": "note", "type": ["null", "string"], "default": null});
    [record(name, json!([id])), record(name, json!([note, id]))]
}

/// A value without its frame.
fn payload(schema: &Value, value: &Value) -> Vec<u8> {
    let schema = apache_avro::Schema::parse(schema).unwrap();
    data::framed(0, &schema, value).split_off(5)
}

fn framed(id: u32, payload: &[u8]) -> Vec<u8> {
    [&[0][..], &id.to_be_bytes(), payload].concat()
}

/// Of two partitions by turns.
fn placed(id: i64, value: Vec<u8>) -> Record {
    Record {
        key: Some(format!("k{id}").into_bytes()),
        ..Record::new(i32::try_from(id / 4 % 2).unwrap(), value)
    }
}

fn ids(dir: &Path) -> Vec<i64> {
    let rows = data::json_rows(dir);
    let mut ids: Vec<i64> = rows.iter().map(|row| row["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

fn every(count: i64, rest: i64) -> Vec<i64> {
    (0..count).filter(|id| id % 4 == rest).collect()
}

fn codes(dir: &Path) -> BTreeSet<String> {
    data::json_rows(dir).iter().map(|row| row["code"].as_str().unwrap().to_owned()).collect()
}

fn with_letters(text: &str) -> String {
    text.replace("routes:\n", "dead_letters:\n  bad: {jsonl: {path: out/bad}}\nroutes:\n")
}

/// Two versions of one type and one of another, interleaved with tombstones and with a type that nobody asked for.
#[test]
fn types_by_record_name_have_sinks_of_their_own() {
    let Some(services) = support::services("types_by_record_name_have_sinks_of_their_own") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group, space) = (support::unique("types"), support::unique("group"), namespace());
    data::create_topic(&services, &topic, 2);
    let [created, paid, other] = ["Created", "Paid", "Other"].map(|name| format!("{space}.{name}"));
    let (first, second) = (versions(&created), versions(&paid));
    let created_ids = [0, 1].map(|number| data::register(&services, &created, &first[number]));
    // TopicRecordNameStrategy for this one.
    let paid_id = data::register(&services, &format!("{topic}-{paid}"), &second[0]);
    let other_id = data::register(&services, &other, &record(&other, json!([{"name": "x", "type": "int"}])));
    let value = |id: i64| match id % 4 {
        0 if id % 8 == 0 => framed(created_ids[0], &payload(&first[0], &json!({"id": id}))),
        0 => framed(created_ids[1], &payload(&first[1], &json!({"note": "n", "id": id}))),
        1 => framed(paid_id, &payload(&second[0], &json!({"id": id}))),
        _ => framed(other_id, &[2]),
    };
    let records = (0..2000).map(|id| match id % 4 {
        3 => Record { value: None, ..placed(id, Vec::new()) },
        _ => placed(id, value(id)),
    });
    data::produce(&services, &topic, records);
    let file = |others: &str, group: &str| {
        let extra = format!(
            "
    batch: {{max_rows: 300}}
    record_types:
      {created}: {{sinks: {{all: {{jsonl: {{path: out/created}}}}}}}}
      {paid}:
        subject: '{{topic}}-{{record}}'
        views:
          late: SELECT id, id * 2 AS twice, _key AS name FROM batch WHERE id >= 1000
        sinks:
          all: {{jsonl: {{path: out/paid}}}}
          late: {{from: late, jsonl: {{path: out/late}}}}
      {others}
"
        );
        with_letters(&routes(&services, group, &topic, &extra))
    };
    let place = Workplace::new(&file("\"*\": {bad_records: skip}", &group));
    let checked = place.run(&["check"]).expect_code(0).stdout;
    for expected in [
        format!("reads records of type {created} as the newest version of subject `{created}`"),
        format!("reads records of type {paid} as the newest version of subject `{topic}-{paid}`"),
        "records of other types: dropped".to_owned(),
        "records without a value have no type: they are dropped".to_owned(),
        format!("sink {paid}/late: exactly once"),
    ] {
        assert!(checked.contains(&expected), "no {expected:?} in\n{checked}");
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(ids(&place.path("out/created")), every(2000, 0));
    for row in data::json_rows(&place.path("out/created")) {
        let note = if row["id"].as_i64().unwrap() % 8 == 0 { json!(null) } else { json!("n") };
        assert_eq!(row["note"], note, "{row}");
    }
    assert_eq!(ids(&place.path("out/paid")), every(2000, 1));
    let late: Vec<i64> = every(2000, 1).into_iter().filter(|id| *id >= 1000).collect();
    assert_eq!(ids(&place.path("out/late")), late);
    for row in data::json_rows(&place.path("out/late")) {
        let id = row["id"].as_i64().unwrap();
        assert_eq!((&row["twice"], &row["name"]), (&json!(id * 2), &json!(format!("k{id}"))), "{row}");
    }
    // All sinks have passed all records, whosever they are.
    for (partition, (committed, end)) in data::committed_and_ends(&services, &group, &topic) {
        assert_eq!(committed, Some(end), "partition {partition}");
    }
    // Nobody says anything of other types: they are bad records, by their own code, and the first one stops the route.
    let group = support::unique("group");
    let stopped = Workplace::new(&file("", &group)).run(&["run", "--until", "latest"]).expect_code(1);
    let said = format!("{}{}", stopped.stdout, stopped.stderr);
    let expected = format!("its type `{other}` is none of the route's `record_types` (record_type)");
    assert!(said.contains(&expected), "no {expected:?} in\n{said}");
}

/// The topic's subject has a union: a record's first bytes say which of its types it is.
#[test]
fn types_of_a_union_have_sinks_of_their_own() {
    let Some(services) = support::services("types_of_a_union_have_sinks_of_their_own") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group, space) = (support::unique("union"), support::unique("group"), namespace());
    data::create_topic(&services, &topic, 2);
    let [created, paid, other] = ["Created", "Paid", "Other"].map(|name| format!("{space}.{name}"));
    let [created_schema, paid_schema, other_schema] =
        [&created, &paid, &other].map(|name| versions(name)[0].clone());
    let union = json!([created_schema, paid_schema, other_schema]);
    let id = data::register(&services, &format!("{topic}-value"), &union);
    // Zigzag: the number of a branch, doubled.
    let value = |record: i64| {
        let payload = payload(&created_schema, &json!({"id": record}));
        framed(id, &[&[u8::try_from(record % 4 * 2).unwrap()][..], &payload].concat())
    };
    data::produce(&services, &topic, (0..1000).map(|record| placed(record, value(record))));
    let extra = format!(
        "
    value: avro
    subject: '{{topic}}-value'
    bad_records: {{dead_letter: bad}}
    record_types:
      {created}: {{sinks: {{all: {{jsonl: {{path: out/created}}}}}}}}
      {paid}: {{sinks: {{all: {{parquet: {{path: out/paid}}}}}}}}
"
    );
    let place = Workplace::new(&with_letters(&routes(&services, &group, &topic, &extra)));
    place.run(&["check"]).expect_code(0);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(ids(&place.path("out/created")), every(1000, 0));
    let mut paid = data::numbers(&data::parquet_rows(&place.path("out/paid")).0, "id");
    paid.sort_unstable();
    assert_eq!(paid, every(1000, 1));
    // Half of them are of a type that the route does not name, half of a branch that there is not.
    let letters = data::json_rows(&place.path("out/bad"));
    assert_eq!(letters.len(), 500);
    let found: Vec<usize> = ["record_type", "type_mismatch"]
        .map(|code| letters.iter().filter(|letter| letter["code"] == code).count())
        .to_vec();
    assert_eq!(found, [250, 250]);
    assert!(letters.iter().all(|letter| letter["schema_id"] == json!(id)));
}

const PROTO: &str = "syntax = \"proto3\"; package shop; message Created { int64 id = 1; string note = 2; } \
                     message Batch { message Paid { int64 id = 1; } } message Other { int64 id = 1; }";

/// One file has several messages: a record's indexes say which of them it is.
#[test]
fn messages_of_one_file_have_sinks_of_their_own() {
    let Some(services) = support::services("messages_of_one_file_have_sinks_of_their_own") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("messages"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let body = json!({"schemaType": "PROTOBUF", "schema": PROTO});
    let schema = data::register_body(&services, &format!("{topic}-value"), &body);
    let mut compiler = protox::Compiler::with_file_resolver(Text);
    compiler.open_file("shop.proto").unwrap();
    let pool = compiler.descriptor_pool();
    let names = ["shop.Created", "shop.Batch.Paid", "shop.Other"];
    let indexes: [&[u8]; 3] = [&[0], &[4, 2, 0], &[2, 4]];
    let value = |id: i64| {
        let kind = usize::try_from(id % 4).unwrap();
        let mut message = DynamicMessage::new(pool.get_message_by_name(names[kind]).unwrap());
        message.set_field_by_name("id", Field::I64(id));
        framed(schema, &[indexes[kind], &message.encode_to_vec()].concat())
    };
    let records = (0..1000).map(|id| match id % 4 {
        3 => placed(id, framed(schema, &[2, 40])),
        _ => placed(id, value(id)),
    });
    data::produce(&services, &topic, records);
    let extra = "
    value: protobuf
    subject: '{topic}-value'
    bad_records: {dead_letter: bad}
    record_types:
      shop.Created: {sinks: {all: {jsonl: {path: out/created}}}}
      shop.Batch.Paid: {sinks: {all: {jsonl: {path: out/paid}}}}
      \"*\": {bad_records: {dead_letter: bad}}
";
    let place = Workplace::new(&with_letters(&routes(&services, &group, &topic, extra)));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    // Messages leave out numbers that are 0.
    assert_eq!(ids(&place.path("out/created")), every(1000, 0));
    assert_eq!(ids(&place.path("out/paid")), every(1000, 1));
    assert_eq!(codes(&place.path("out/bad")), BTreeSet::from(["framing", "record_type"].map(str::to_owned)));
    assert_eq!(data::json_rows(&place.path("out/bad")).len(), 500);
}

struct Text;

impl protox::file::FileResolver for Text {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        protox::file::File::from_source(name, PROTO)
    }
}

/// A newer version of one type widens what is written of that type, and of no other.
#[test]
fn each_type_follows_its_own_subject() {
    let Some(services) = support::services("each_type_follows_its_own_subject") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group, space) = (support::unique("follows"), support::unique("group"), namespace());
    data::create_topic(&services, &topic, 2);
    let [created, paid] = ["Created", "Paid"].map(|name| format!("{space}.{name}"));
    let (first, second) = (versions(&created), versions(&paid));
    let register = |subject: &str, schema: &Value| data::register(&services, subject, schema);
    let (one, other) = (register(&created, &first[0]), register(&paid, &second[0]));
    let old = |id: i64| match id % 2 {
        0 => placed(id, framed(one, &payload(&first[0], &json!({"id": id})))),
        _ => placed(id, framed(other, &payload(&second[0], &json!({"id": id})))),
    };
    data::produce(&services, &topic, (0..400).map(old));
    let extra = format!(
        "
    batch: {{max_rows: 100, max_age: 50ms}}
    record_types:
      {created}: {{sinks: {{all: {{jsonl: {{path: out/created, roll: {{max_age: 100ms}}}}}}}}}}
      {paid}: {{sinks: {{all: {{jsonl: {{path: out/paid, roll: {{max_age: 100ms}}}}}}}}}}
"
    );
    let place = Workplace::new(&routes(&services, &group, &topic, &extra));
    let (all_created, all_paid) = (place.path("out/created"), place.path("out/paid"));
    let mut service = place.start(&["run"]);
    eventually("both types are written", || ids(&all_created).len() == 200 && ids(&all_paid).len() == 200);
    let two = register(&created, &first[1]);
    let mixed = |id: i64| match id % 4 {
        0 => placed(id, framed(two, &payload(&first[1], &json!({"note": "n", "id": id})))),
        _ => old(id),
    };
    data::produce(&services, &topic, (400..800).map(mixed));
    eventually("both go on", || ids(&all_created).len() == 400 && ids(&all_paid).len() == 400);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    let log = service.log();
    let taken: Vec<&str> =
        log.lines().filter(|line| line.contains("the route reads as a newer schema")).collect();
    assert_eq!(taken.len(), 1, "{log}");
    assert!(
        taken[0].contains(&format!("{created}/all")) && !taken[0].contains(&format!("{paid}/all")),
        "{log}"
    );
    for row in data::json_rows(&all_created) {
        let id = row["id"].as_i64().unwrap();
        assert_eq!(row["note"] == json!("n"), id >= 400 && id % 4 == 0, "{row}");
    }
    assert!(data::json_rows(&all_paid).iter().all(|row| row.get("note").is_none()));
}
