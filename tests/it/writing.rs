use std::collections::BTreeMap;

use apache_avro::types::Value as Datum;
use serde_json::{Value, json};

use crate::pipeline::{Orders, routes};
use crate::support::program::{Workplace, files};
use crate::support::{self, Services, data};

const COLUMNS: &str = "id, customer, amount, note, pair, ids, at";

const MADE: &str = "
    views:
      made: |
        SELECT id, customer, amount, note, named_struct('id', id, 'twice', id * 2) AS pair,
          make_array(id, id + 1) AS ids, to_timestamp_micros(id) AS at
        FROM batch
";

/// Rows by their id.
fn by_id(rows: Vec<Value>) -> BTreeMap<i64, Value> {
    let count = rows.len();
    let rows: BTreeMap<i64, Value> = rows.into_iter().map(|row| (row["id"].as_i64().unwrap(), row)).collect();
    assert_eq!(rows.len(), count, "an id came twice");
    rows
}

/// Routes that read topics back into `out/<name>`, with the key as column `k`.
fn back(services: &Services, group: &str, topics: &[(&str, &str, &str)]) -> String {
    let mut text = format!(
        "version: 1\nkafka: {{bootstrap.servers: \"{}\", group.id: {group}}}\nschema_registry: {{url: \"{}\"}}\nroutes:\n",
        services.bootstrap, services.registry
    );
    for (name, topic, key) in topics {
        text.push_str(&format!(
            "  {name}:
    topics: [{topic}]
    start: earliest
    key: {key}
    value: {name}
    views: {{all: 'SELECT {COLUMNS}, _key AS k FROM batch'}}
    sinks: {{all: {{from: all, jsonl: {{path: out/{name}}}}}}}
"
        ));
    }
    text
}

/// Avro in; Avro, Protobuf and JSON Schema out, and read back by routes of their own; files read by Avro's own library.
#[test]
fn what_is_written_with_a_schema_is_read_back() {
    let Some(services) = support::services("what_is_written_with_a_schema_is_read_back") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("writing"), support::unique("group"));
    let outs = ["avro", "protobuf", "json_schema"].map(|format| (format, format!("{topic}.{format}")));
    data::create_topic(&services, &topic, 2);
    outs.iter().for_each(|(_, out)| data::create_topic(&services, out, 2));
    let orders = Orders::register(&services, &topic);
    data::produce(&services, &topic, (0..2000).map(|id| orders.record(id, 2)));
    let [avro, protobuf, json] = outs.each_ref().map(|(_, out)| out);
    let extra = format!(
        "{MADE}    sinks:
      own: {{from: made, jsonl: {{path: out/own}}}}
      files: {{from: made, avro: {{path: out/files, codec: deflate, record_name: shop.Made}}}}
      avro: {{from: made, kafka: {{topic: {avro}, key: {{column: id, format: avro}}, value: {{format: avro}}}}}}
      protobuf: {{from: made, kafka: {{topic: {protobuf}, key: {{column: id}}, value: {{format: protobuf, record_name: shop.Made}}}}}}
      json: {{from: made, kafka: {{topic: {json}, key: {{column: id, format: json_schema}}, value: {{format: json_schema}}}}}}
"
    );
    let place = Workplace::new(&routes(&services, &group, &topic, &extra));
    let checked = place.run(&["check"]).expect_code(0).stdout;
    assert!(checked.contains(&format!("sink avro: keys: subject {avro}-key, compatible")), "{checked}");
    assert!(
        checked.contains(&format!("sink protobuf: values: subject {protobuf}-value, compatible")),
        "{checked}"
    );
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let own = by_id(data::json_rows(&place.path("out/own")));
    assert_eq!(own.keys().copied().collect::<Vec<_>>(), (0..2000).collect::<Vec<_>>());
    check_files(&place, &own);

    let topics = [
        ("avro", avro.as_str(), "avro"),
        ("protobuf", protobuf.as_str(), "string"),
        ("json_schema", json.as_str(), "json_schema"),
    ];
    let reading = Workplace::new(&back(&services, &support::unique("group"), &topics));
    reading.run(&["run", "--until", "latest"]).expect_code(0);
    for (name, _, key) in topics {
        let mut read = by_id(data::json_rows(&reading.path(&format!("out/{name}"))));
        for (id, row) in &mut read {
            let k = row.as_object_mut().unwrap().remove("k").unwrap();
            assert_eq!(k, if key == "string" { json!(id.to_string()) } else { json!(id) }, "{name}");
        }
        assert_eq!(read, own, "{name}");
    }
}

/// What Avro's own library reads in the files of `out/files`.
fn check_files(place: &Workplace, own: &BTreeMap<i64, Value>) {
    let files = files(&place.path("out/files"), ".avro");
    let mut ids = Vec::new();
    for path in files.iter().filter(|path| !path.to_string_lossy().contains("_sidestream")) {
        let reader = apache_avro::Reader::new(std::fs::File::open(path).unwrap()).unwrap();
        for record in reader {
            let Datum::Record(fields) = record.unwrap() else { panic!("no record") };
            let fields: BTreeMap<String, Datum> = fields.into_iter().collect();
            let plain = |name: &str| match &fields[name] {
                Datum::Union(_, value) => value.as_ref().clone(),
                other => other.clone(),
            };
            let Datum::Long(id) = plain("id") else { panic!("no id") };
            let row = &own[&id];
            let note = row["note"].as_str().map_or(Datum::Null, |note| Datum::String(note.to_owned()));
            assert_eq!(plain("note"), note);
            assert_eq!(plain("customer"), Datum::String(row["customer"].as_str().unwrap().to_owned()));
            assert_eq!(plain("amount"), Datum::Double(row["amount"].as_f64().unwrap()));
            ids.push(id);
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, own.keys().copied().collect::<Vec<_>>());
}

/// A subject that others keep: written with what it has, or not at all; and what the registry refuses is told.
#[test]
fn the_registry_decides_what_may_be_written() {
    let Some(services) = support::services("the_registry_decides_what_may_be_written") else {
        return;
    };
    let _turn = support::turn();
    let (topic, out) = (support::unique("decided"), support::unique("decided-out"));
    data::create_topic(&services, &topic, 1);
    data::create_topic(&services, &out, 1);
    let orders = Orders::register(&services, &topic);
    data::produce(&services, &topic, (0..100).map(|id| orders.record(id, 1)));
    let place = |view: &str, value: &str| {
        let extra = format!(
            "    views: {{made: '{view}'}}
    sinks: {{out: {{from: made, kafka: {{topic: {out}, value: {{format: avro, {value}}}}}}}}}
"
        );
        Workplace::new(&routes(&services, &support::unique("group"), &topic, &extra))
    };
    let fails = |view: &str, value: &str, expected: &str| {
        let finished = place(view, value).run(&["run", "--until", "latest"]).expect_code(1);
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(said.contains(expected), "no {expected:?} in {said}");
    };
    let view = "SELECT id, customer FROM batch";
    fails(view, "auto_register: false", "does not have the schema of these columns");
    fails(view, "use_latest: true", "has no schema");
    place(view, "record_name: shop.Row").run(&["run", "--until", "latest"]).expect_code(0);
    // Now it is there.
    place(view, "record_name: shop.Row, auto_register: false")
        .run(&["run", "--until", "latest"])
        .expect_code(0);
    // Another type under the same name. Not every registry wants old records to be readable unless it is told.
    data::set_compatibility(&services, &format!("{out}-value"), "BACKWARD");
    let other = "SELECT id, id AS customer FROM batch";
    fails(other, "record_name: shop.Row", "incompatible");
    let checked = place(other, "record_name: shop.Row").run(&["check"]).expect_code(2);
    assert!(checked.stderr.contains("incompatible with subject"), "{}", checked.stderr);

    let newest = json!({"type": "record", "name": "shop.Row", "fields": [
        {"name": "source", "type": "string", "default": "shop"},
        {"name": "customer", "type": ["null", "string"], "default": null},
        {"name": "id", "type": ["null", "long"], "default": null}]});
    let id = data::register(&services, &format!("{out}-value"), &newest);
    let newest = apache_avro::Schema::parse(&newest).unwrap();
    let before = data::consume(&services, &out).len();
    assert_eq!(before, 200);
    place(view, "use_latest: true").run(&["run", "--until", "latest"]).expect_code(0);
    fails(
        "SELECT id, customer, amount FROM batch",
        "use_latest: true",
        "column `amount` is no field of `shop.Row`",
    );
    let reader = apache_avro::reader::datum::GenericDatumReader::builder(&newest).build().unwrap();
    let messages = data::consume(&services, &out);
    assert_eq!(messages.len(), before + 100);
    for (number, message) in (0..).zip(&messages[before..]) {
        let payload = rdkafka::Message::payload(message).unwrap();
        assert_eq!(payload[..5], [&[0][..], &id.to_be_bytes()].concat());
        let mut rest = &payload[5..];
        let Datum::Record(fields) = reader.read_value(&mut rest).unwrap() else { panic!("no record") };
        assert!(rest.is_empty());
        assert_eq!(fields[0].1, Datum::String("shop".to_owned()));
        assert_eq!(fields[2].1, Datum::Union(1, Box::new(Datum::Long(number))));
    }
}
