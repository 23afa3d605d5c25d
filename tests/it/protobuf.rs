use std::collections::BTreeSet;

use protox::prost_reflect::prost::Message as _;
use protox::prost_reflect::{DynamicMessage, MessageDescriptor, Value};
use serde_json::json;

use crate::pipeline::routes;
use crate::support::data::Record;
use crate::support::program::Workplace;
use crate::support::{self, Services, data};

const MONEY: &str =
    "syntax = \"proto3\"; package acme; message Money { string currency = 1; int64 cents = 2; }";

fn version(number: usize) -> String {
    let added = if number == 1 { "" } else { "optional string note = 5; repeated string tags = 6;" };
    format!(
        "syntax = \"proto3\"; package shop; import \"acme/money.proto\"; import \"google/protobuf/timestamp.proto\"; \
         message Envelope {{ string id = 1; }} \
         message Order {{ int64 id = 1; acme.Money total = 2; google.protobuf.Timestamp at = 3; map<string, int32> counts = 4; {added} }}"
    )
}

/// Both versions of the schema, registered with what they import; their ids.
fn register(services: &Services, topic: &str) -> [u32; 2] {
    let subject = format!("{topic}-money");
    data::register_body(services, &subject, &json!({"schemaType": "PROTOBUF", "schema": MONEY}));
    [1, 2].map(|number| {
        let references = json!([{"name": "acme/money.proto", "subject": subject, "version": 1}]);
        let body = json!({"schemaType": "PROTOBUF", "schema": version(number), "references": references});
        data::register_body(services, &format!("{topic}-value"), &body)
    })
}

struct Texts(String);

impl protox::file::FileResolver for Texts {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        match name {
            "order.proto" => protox::file::File::from_source(name, &self.0),
            "acme/money.proto" => protox::file::File::from_source(name, MONEY),
            _ => protox::file::GoogleFileResolver::new().open_file(name),
        }
    }
}

fn descriptor(number: usize) -> MessageDescriptor {
    let mut compiler = protox::Compiler::with_file_resolver(Texts(version(number)));
    compiler.open_file("order.proto").unwrap();
    compiler.descriptor_pool().get_message_by_name("shop.Order").unwrap()
}

fn order(descriptor: &MessageDescriptor, id: i64) -> Vec<u8> {
    let mut order = DynamicMessage::new(descriptor.clone());
    let inner = |name: &str, fields: [(&str, Value); 2]| {
        let kind = descriptor.get_field_by_name(name).unwrap().kind();
        let mut message = DynamicMessage::new(kind.as_message().unwrap().clone());
        fields.into_iter().for_each(|(name, value)| message.set_field_by_name(name, value));
        Value::Message(message)
    };
    order.set_field_by_name("id", Value::I64(id));
    let money = [("currency", Value::String("EUR".to_owned())), ("cents", Value::I64(id * 10))];
    order.set_field_by_name("total", inner("total", money));
    order.set_field_by_name("at", inner("at", [("seconds", Value::I64(id)), ("nanos", Value::I32(5_000))]));
    if descriptor.get_field_by_name("note").is_some() {
        order.set_field_by_name("note", Value::String(format!("n{id}")));
    }
    order.encode_to_vec()
}

/// Two versions, interleaved, with a reference and well-known types; bad ones aside, byte for byte.
#[test]
fn protobuf_of_two_versions_becomes_parquet_once() {
    let Some(services) = support::services("protobuf_of_two_versions_becomes_parquet_once") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("protobuf"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let ids = register(&services, &topic);
    let descriptors = [1, 2].map(descriptor);
    // Order is the second message of its file.
    let framed = |id: i64, indexes: &[u8]| {
        let version = usize::try_from(id % 2).unwrap();
        [&[0][..], &ids[version].to_be_bytes(), indexes, &order(&descriptors[version], id)].concat()
    };
    let bad = [framed(1, &[0]), framed(2, &[2, 2, 0xff]), framed(3, &[2, 40]), vec![0, 0, 0]];
    let good = (0..2000).map(|id| Record::new(i32::try_from(id / 2 % 2).unwrap(), framed(id, &[2, 2])));
    data::produce(&services, &topic, good.chain(bad.iter().map(|bytes| Record::new(0, bytes.clone()))));
    let extra = "
    value: {protobuf: {message: shop.Order}}
    bad_records: {dead_letter: bad}
    views:
      flat: |
        SELECT id, total['cents'] AS cents, total['currency'] AS currency, note, at, cardinality(tags) AS tags FROM batch
    sinks:
      all: {parquet: {path: out/all}}
      flat: {from: flat, jsonl: {path: out/flat}}
";
    let text = routes(&services, &group, &topic, extra);
    let text = text.replace("routes:\n", "dead_letters:\n  bad: {jsonl: {path: out/bad}}\nroutes:\n");
    let place = Workplace::new(&text);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (rows, _) = data::parquet_rows(&place.path("out/all"));
    let mut ids = data::numbers(&rows, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..2000).collect::<Vec<_>>());
    let lines = |dir: &str| data::json_rows(&place.path(dir));
    let flat = lines("out/flat");
    assert_eq!(flat.len(), 2000);
    for row in flat {
        let id = row["id"].as_i64().unwrap();
        let note = if id % 2 == 1 { json!(format!("n{id}")) } else { json!(null) };
        assert_eq!((&row["cents"], &row["currency"], &row["note"]), (&json!(id * 10), &json!("EUR"), &note));
        let at = row["at"].as_str().unwrap();
        assert!(at.ends_with(".000005Z"), "{at}");
    }
    let letters = lines("out/bad");
    let codes: BTreeSet<&str> = letters.iter().map(|row| row["code"].as_str().unwrap()).collect();
    assert_eq!(letters.len(), bad.len(), "{codes:?}");
    assert_eq!(codes, BTreeSet::from(["framing", "schema_type", "type_mismatch"]));
}

/// A route that says another format than the subject has, stops and says so.
#[test]
fn a_pinned_format_is_kept() {
    let Some(services) = support::services("a_pinned_format_is_kept") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("pinned"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    register(&services, &topic);
    let extra = "    value: avro\n    sinks:\n      all: {parquet: {path: out/all}}\n";
    let place = Workplace::new(&routes(&services, &group, &topic, extra));
    let refused = place.run(&["run", "--until", "latest"]).expect_code(1);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("it is PROTOBUF, and the route says AVRO"), "{said}");
}
