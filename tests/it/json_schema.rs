use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use sidestream::registry::embedded::EmbeddedRegistry;

use crate::pipeline::routes;
use crate::support::data::Record;
use crate::support::program::Workplace;
use crate::support::{self, Services, data};

fn money() -> Value {
    json!({"$id": "http://acme.example/money.json", "type": "object", "required": ["cents"], "properties": {
        "cents": {"type": "integer"}, "currency": {"enum": ["EUR", "CHF"]}}})
}

fn version(number: usize) -> Value {
    let mut schema = json!({"$id": "http://acme.example/order.json", "type": "object", "required": ["id"],
        "additionalProperties": false, "properties": {
            "id": {"type": "integer"},
            "total": {"$ref": "http://acme.example/money.json"},
            "at": {"oneOf": [{"type": "null"}, {"type": "string", "format": "date-time"}]},
            "counts": {"type": "object", "additionalProperties": {"type": "integer"}}}});
    if number == 2 {
        schema["properties"]["note"] = json!({"type": ["string", "null"]});
    }
    schema
}

/// Both versions of the schema, registered with what they reference; their ids.
fn register(services: &Services, topic: &str) -> [u32; 2] {
    let subject = format!("{topic}-money");
    data::register_body(services, &subject, &json!({"schemaType": "JSON", "schema": money().to_string()}));
    [1, 2].map(|number| {
        let references =
            json!([{"name": "http://acme.example/money.json", "subject": subject, "version": 1}]);
        let body =
            json!({"schemaType": "JSON", "schema": version(number).to_string(), "references": references});
        data::register_body(services, &format!("{topic}-value"), &body)
    })
}

fn order(id: i64) -> Value {
    let mut order = json!({"id": id, "total": {"cents": id * 10, "currency": "EUR"}, "counts": {"a": id},
        "at": format!("2026-01-02T03:04:05.{id:06}Z")});
    if id % 2 == 1 {
        order["note"] = json!(format!("n{id}"));
    }
    order
}

fn framed(id: u32, text: &str) -> Vec<u8> {
    [&[0][..], &id.to_be_bytes(), text.as_bytes()].concat()
}

fn codes(rows: &[Value]) -> BTreeSet<&str> {
    rows.iter().map(|row| row["code"].as_str().unwrap()).collect()
}

/// Two versions, interleaved, with a reference; bad ones aside.
#[test]
fn json_of_two_schemas_becomes_parquet_once() {
    let Some(services) = support::services("json_of_two_schemas_becomes_parquet_once") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("json-schema"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let ids = register(&services, &topic);
    let good = (0..2000).map(|id| {
        let version = usize::try_from(id % 2).unwrap();
        Record::new(i32::try_from(id / 2 % 2).unwrap(), framed(ids[version], &order(id).to_string()))
    });
    let bad = [
        framed(ids[0], r#"{"id": 9223372036854775808}"#),
        framed(ids[1], r#"{"id": 1, "total": {}}"#),
        framed(ids[0], r#"{"id": 1"#),
        b"{\"id\": 1}".to_vec(),
    ];
    let bad_count = bad.len();
    data::produce(&services, &topic, good.chain(bad.into_iter().map(|bytes| Record::new(0, bytes))));
    let extra = "
    value: json_schema
    bad_records: {dead_letter: bad}
    views:
      flat: |
        SELECT id, total['cents'] AS cents, total['currency'] AS currency, note, at FROM batch
    sinks:
      all: {parquet: {path: out/all}}
      flat: {from: flat, jsonl: {path: out/flat}}
";
    let text = routes(&services, &group, &topic, extra);
    let text = text.replace("routes:\n", "dead_letters:\n  bad: {jsonl: {path: out/bad}}\nroutes:\n");
    let place = Workplace::new(&text);
    place.run(&["check"]).expect_code(0);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (rows, _) = data::parquet_rows(&place.path("out/all"));
    let mut found = data::numbers(&rows, "id");
    found.sort_unstable();
    assert_eq!(found, (0..2000).collect::<Vec<_>>());
    let flat = data::json_rows(&place.path("out/flat"));
    assert_eq!(flat.len(), 2000);
    for row in flat {
        let id = row["id"].as_i64().unwrap();
        let note = if id % 2 == 1 { json!(format!("n{id}")) } else { json!(null) };
        let at = json!(format!("2026-01-02T03:04:05.{id:06}Z"));
        assert_eq!(
            row,
            json!({"id": id, "cents": id * 10, "currency": "EUR", "note": note, "at": at}),
            "{row}"
        );
    }
    let letters = data::json_rows(&place.path("out/bad"));
    assert_eq!(letters.len(), bad_count);
    assert_eq!(codes(&letters), BTreeSet::from(["framing", "overflow", "type_mismatch"]));
}

/// Records that name their schema by a GUID in a header. The registry of the other tests has none: this one is ours.
#[test]
fn schemas_are_found_by_guids_in_headers() {
    let Some(mut services) = support::services("schemas_are_found_by_guids_in_headers") else {
        return;
    };
    let _turn = support::turn();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let registry = runtime.block_on(EmbeddedRegistry::start()).unwrap();
    services.registry = registry.url();
    let (topic, group) = (support::unique("guids"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    let schema = json!({"type": "record", "name": "R", "fields": [{"name": "id", "type": "long"}]});
    let id = data::register(&services, &format!("{topic}-value"), &schema);
    let guid = guid(&services, &format!("{topic}-value"));
    let zigzag = |n: u8| vec![n * 2];
    let named = [&[1][..], &guid].concat();
    let by_id = [&[0][..], &id.to_be_bytes()].concat();
    let records: [(Vec<u8>, Vec<&[u8]>); 5] = [
        (zigzag(1), vec![&named[..]]),
        (zigzag(2), vec![&by_id[..]]),
        (zigzag(3), vec![&named[..], &named]),
        (zigzag(4), vec![&named[..], &by_id]),
        ([by_id.clone(), zigzag(5)].concat(), vec![]),
    ];
    produce(&services, &topic, &records);
    let run = |value: &str, dir: &str| {
        let extra = format!(
            "    value: {value}\n    bad_records: {{dead_letter: bad}}\n    sinks:\n      all: {{jsonl: {{path: out/all}}}}\n"
        );
        let text = routes(&services, &format!("{group}-{dir}"), &topic, &extra);
        let text = text.replace("routes:\n", "dead_letters:\n  bad: {jsonl: {path: out/bad}}\nroutes:\n");
        let place = Workplace::new(&text);
        place.run(&["run", "--until", "latest"]).expect_code(0);
        let rows = data::json_rows(&place.path("out/all"));
        let ids: Vec<i64> = rows.iter().map(|row| row["id"].as_i64().unwrap()).collect();
        let bad = data::json_rows(&place.path("out/bad"));
        assert!(bad.iter().all(|row| row["code"] == "framing"), "{bad:?}");
        (ids, bad.len())
    };
    assert_eq!(run("avro", "confluent"), (vec![1, 2, 3, 5], 1));
    assert_eq!(run("{avro: {framing: header}}", "header"), (vec![1, 2, 3], 2));
    assert_eq!(run("{avro: {framing: prefix}}", "prefix"), (vec![5], 4));
}

/// The GUID of a subject's newest version.
fn guid(services: &Services, subject: &str) -> [u8; 16] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("{}/subjects/{subject}/versions/latest", services.registry);
    let answer = runtime
        .block_on(async { reqwest::Client::new().get(url).send().await.unwrap().text().await.unwrap() });
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["guid"].as_str().unwrap().parse::<uuid::Uuid>().unwrap().into_bytes()
}

fn produce(services: &Services, topic: &str, records: &[(Vec<u8>, Vec<&[u8]>)]) {
    let mut config = ClientConfig::new();
    let producer: BaseProducer = config.set("bootstrap.servers", &services.bootstrap).create().unwrap();
    for (value, headers) in records {
        let headers = headers.iter().fold(OwnedHeaders::new(), |all, header| {
            all.insert(Header { key: "__value_schema_id", value: Some(*header) })
        });
        let record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).partition(0).payload(value.as_slice()).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}
