use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use serde_json::json;

use super::*;
use crate::codec::avro::encode;
use crate::codec::avro::node::Node;
use crate::codec::{DecodedTypes, Decoder, Decoders, Raw, Registered};
use crate::config::plan::{RawForm, Recursion, Tombstones};
use crate::model::{
    Chunk, ChunkBuilder, Incoming, Offset, Partition, SchemaId, TimestampType, TopicName, TopicPartition,
};

/// A value, and the header `__value_schema_id` if it is not empty.
type Given = (Option<Vec<u8>>, Vec<u8>);

fn chunk(values: &[Given]) -> Chunk {
    let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
    let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
    for (offset, (value, header)) in (0..).zip(values) {
        let incoming = Incoming {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: None,
            value: value.as_deref(),
        };
        let named = (frame::VALUE_ID_HEADER.as_bytes(), Some(header.as_slice()));
        builder.push(incoming, Some(named).filter(|_| !header.is_empty()).into_iter());
    }
    builder.finish(Offset::ZERO)
}

fn id(number: u32) -> SchemaKey {
    SchemaId(number).into()
}

fn framed(number: u32, payload: &[u8]) -> Given {
    let mut bytes = Vec::new();
    frame::write_prefix(SchemaId(number), &mut bytes);
    bytes.extend_from_slice(payload);
    (Some(bytes), Vec::new())
}

fn learnt(kind: &str, text: &str) -> Learnt {
    Learnt::Schema { kind: kind.to_owned(), text: text.to_owned(), references: Vec::new() }
}

fn record(name: &str, fields: Value) -> Value {
    json!({"type": "record", "name": name, "namespace": "shop", "fields": fields})
}

fn created() -> Value {
    record("Created", json!([{"name": "id", "type": "long"}]))
}

fn paid() -> Value {
    record("Paid", json!([{"name": "cents", "type": "long"}]))
}

fn encoded(schema: &Value, value: &Value) -> Vec<u8> {
    let node = Node::parse(&schema.to_string(), &[]).unwrap();
    encode::value(&node, value).unwrap()
}

fn decoder(codec: Registered, name: &str) -> Decoder {
    let codec = codec.of_type(Some(name.to_owned()));
    Decoder::typed(Box::new(codec), Box::new(Raw::for_keys(RawForm::Bytes)))
}

fn decoders(types: [(&str, Registered); 2]) -> Decoders {
    let names = types.iter().map(|(name, _)| (*name).to_owned()).collect();
    let each = types.into_iter().map(|(name, codec)| decoder(codec, name)).collect();
    Decoders::new(each, Some(Sorter::new(names, Framing::Confluent)))
}

/// Both types of `schema`, or of one each.
fn avro(schemas: [&Value; 2]) -> Decoders {
    let codec = |name: &str, schema: &Value| {
        let (node, _) = Node::parse_record(&schema.to_string(), &[], Recursion::Refuse, name).unwrap();
        Registered::avro(node, Tombstones::Skip).unwrap()
    };
    let names = ["shop.Created", "shop.Paid"];
    decoders([(names[0], codec(names[0], schemas[0])), (names[1], codec(names[1], schemas[1]))])
}

fn missing(decoders: &Decoders, chunk: &Chunk) -> Vec<SchemaKey> {
    decoders.missing(&chunk.records().collect::<Vec<_>>())
}

fn decode(decoders: &Decoders, chunk: &Chunk) -> DecodedTypes {
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    let decoded = decoders.decode(&records, Decoder::decode).unwrap();
    for (own, decoder) in decoded.types.iter().zip(decoders.each()) {
        assert_eq!(&own.rows.schema(), decoder.batch_schema());
        assert_eq!(own.origins.len(), own.rows.num_rows());
    }
    decoded
}

/// The first column of each type's rows.
fn numbers(decoded: &DecodedTypes) -> [Vec<i64>; 2] {
    [0, 1].map(|place| decoded.types[place].rows.column(0).as_primitive::<Int64Type>().values().to_vec())
}

fn codes(decoded: &DecodedTypes) -> Vec<(usize, &'static str)> {
    decoded.rejected.iter().map(|bad| (bad.index, bad.code)).collect()
}

/// Every record is a row of its type, rejected once, or dropped; neighbours of a bad one are as they would be without it.
#[test]
fn records_go_by_the_name_of_their_schema() {
    let newer =
        record("Created", json!([{"name": "note", "type": "string"}, {"name": "id", "type": "long"}]));
    let other = record("Other", json!([{"name": "id", "type": "long"}]));
    let mut decoders = avro([&created(), &paid()]);
    let chunk = chunk(&[
        framed(1, &encoded(&created(), &json!({"id": 10}))),
        framed(2, &encoded(&paid(), &json!({"cents": 20}))),
        (None, Vec::new()),
        framed(3, &encoded(&other, &json!({"id": 1}))),
        (Some(b"plain".to_vec()), Vec::new()),
        framed(9, &[2]),
        framed(4, &encoded(&newer, &json!({"note": "n", "id": 11}))),
        framed(1, &[]),
        framed(2, &encoded(&paid(), &json!({"cents": 21}))),
    ]);
    assert_eq!(missing(&decoders, &chunk), [1, 2, 3, 9, 4].map(id));
    for (number, schema) in [(1, created()), (2, paid()), (3, other), (4, newer)] {
        decoders.learn(id(number), learnt("AVRO", &schema.to_string()));
    }
    decoders.learn(id(9), Learnt::Unknown);
    assert!(missing(&decoders, &chunk).is_empty());
    let decoded = decode(&decoders, &chunk);
    assert_eq!(numbers(&decoded), [vec![10, 11], vec![20, 21]]);
    assert_eq!([0, 1].map(|place| decoded.types[place].origins.to_vec()), [[0, 6], [1, 8]]);
    assert_eq!(decoded.dropped, [2]);
    assert_eq!(
        codes(&decoded),
        [(3, code::RECORD_TYPE), (4, "framing"), (5, "unknown_id"), (7, "truncated")]
    );
    assert_eq!(decoded.rejected[0].message, "its type `shop.Other` is none of the route's `record_types`");
    assert_eq!(decoded.rejected[0].schema_id, Some(id(3)));
    assert_eq!(decoders.refusals(id(9)).collect::<Vec<_>>(), ["the registry has no schema id 9"]);
    assert_eq!(decoders.refusals(id(3)).count(), 0);
}

/// Also one branch that has no Arrow form, as nobody reads it.
#[test]
fn records_of_a_union_go_by_their_branch() {
    let tree = record("Tree", json!([{"name": "left", "type": ["null", "Tree"]}]));
    let union = json!(["null", created(), paid(), tree, "string"]);
    let mut decoders = avro([&union, &union]);
    decoders.learn(id(1), learnt("AVRO", &union.to_string()));
    // Each type may have a schema of its own besides, and a version that has more.
    decoders.learn(id(2), learnt("AVRO", &created().to_string()));
    let wider = record("Paid", json!([{"name": "cents", "type": "int"}, {"name": "by", "type": "string"}]));
    decoders.learn(id(3), learnt("AVRO", &json!([wider, created()]).to_string()));
    let (ten, twenty) = (encoded(&created(), &json!({"id": 10})), encoded(&paid(), &json!({"cents": 20})));
    let branch = |number: u8, value: &[u8]| [&[number * 2][..], value].concat();
    let chunk = chunk(&[
        framed(1, &branch(1, &ten)),
        framed(1, &branch(2, &twenty)),
        framed(1, &branch(3, &[0])),
        framed(1, &branch(0, &[])),
        framed(1, &branch(4, &[2, b'x'])),
        framed(1, &branch(5, &ten)),
        framed(1, &[]),
        framed(1, &branch(1, &[20, 0])),
        framed(2, &encoded(&created(), &json!({"id": 11}))),
        framed(3, &branch(0, &encoded(&wider, &json!({"cents": 21, "by": "me"})))),
        // The same branch in more bytes than are needed.
        framed(1, &[&[0x82, 0][..], &ten].concat()),
        framed(1, &[1]),
    ]);
    let decoded = decode(&decoders, &chunk);
    assert_eq!(numbers(&decoded), [vec![10, 11, 10], vec![20, 21]]);
    let expected = [
        (2, code::RECORD_TYPE),
        (3, code::RECORD_TYPE),
        (4, code::RECORD_TYPE),
        (5, "type_mismatch"),
        (6, "truncated"),
        (7, "trailing_bytes"),
        (11, "type_mismatch"),
    ];
    assert_eq!(codes(&decoded), expected);
    let said: Vec<&str> = decoded.rejected[..3].iter().map(|bad| bad.message.as_str()).collect();
    for (message, name) in said.iter().zip(["shop.Tree", "null", "string"]) {
        assert!(message.starts_with(&format!("its type `{name}` is")), "{message}");
    }
    assert_eq!(decoded.rejected[3].message, "branch 5 of a union does not exist");
}

#[test]
fn messages_of_a_file_go_by_their_indexes() {
    let text = "syntax = \"proto3\"; package shop; message Created { int64 id = 1; } \
                message Paid { message Line { int64 cents = 1; } } message Other { int64 n = 1; }";
    let file = protobuf::parse(text, &[]).unwrap();
    let codec = |name| Registered::protobuf(&file, Some(name), Tombstones::Skip).unwrap();
    let names = ["shop.Created", "shop.Paid.Line"];
    let mut decoders = decoders(names.map(|name| (name, codec(name))));
    decoders.learn(id(1), learnt("PROTOBUF", text));
    let message = |indexes: &[u8], number: u8| framed(1, &[indexes, &[8, number]].concat());
    let beside =
        |indexes: &[u8], number: u8| (Some(vec![8, number]), [&[0, 0, 0, 0, 1][..], indexes].concat());
    let chunk = chunk(&[
        message(&[0], 10),
        message(&[4, 2, 0], 20),
        message(&[2, 0], 11),
        message(&[2, 4], 1),
        message(&[2, 40], 1),
        message(&[0x80], 1),
        beside(&[4, 2, 0], 21),
        beside(&[0], 12),
        beside(&[], 1),
        beside(&[0, 7], 1),
    ]);
    let decoded = decode(&decoders, &chunk);
    assert_eq!(numbers(&decoded), [vec![10, 11, 12], vec![20, 21]]);
    let framing = [4, 5, 8, 9].map(|index| (index, "framing"));
    assert_eq!(codes(&decoded), [&[(3, code::RECORD_TYPE)][..], &framing].concat());
    assert!(decoded.rejected[0].message.starts_with("its type `shop.Other` is"));
}

#[test]
fn json_goes_by_the_title_of_its_schema() {
    let schema = |title: &str, name: &str| {
        json!({"title": title, "type": "object", "properties": {(name): {"type": "integer"}}}).to_string()
    };
    let codec = |title: &str, name: &str| {
        let node = json_schema::parse(&schema(title, name), &[]).unwrap();
        Registered::json(node, Tombstones::Skip).unwrap()
    };
    let mut decoders = decoders([("Created", codec("Created", "id")), ("Paid", codec("Paid", "cents"))]);
    for (number, title, name) in [(1, "Created", "id"), (2, "Paid", "cents"), (3, "Other", "id")] {
        decoders.learn(id(number), learnt("JSON", &schema(title, name)));
    }
    decoders.learn(id(4), learnt("JSON", "{}"));
    decoders
        .learn(id(5), learnt("AVRO", &json!({"type": "record", "name": "Paid", "fields": []}).to_string()));
    decoders.learn(id(6), learnt("XML", "<a/>"));
    decoders.learn(id(7), learnt("AVRO", "{"));
    decoders.learn(id(8), Learnt::Unusable("too large".to_owned()));
    let text = |number, text: &str| framed(number, text.as_bytes());
    let chunk = chunk(&[
        text(2, r#"{"cents": 20}"#),
        text(1, r#"{"id": 10}"#),
        text(3, r#"{"id": 1}"#),
        text(4, r#"{"id": 1}"#),
        text(5, "{}"),
        text(6, "{}"),
        text(7, "{}"),
        text(8, "{}"),
        text(1, r#"{"id": "x"}"#),
    ]);
    let decoded = decode(&decoders, &chunk);
    assert_eq!(numbers(&decoded), [vec![10], vec![20]]);
    let expected = [
        (2, code::RECORD_TYPE),
        (3, code::RECORD_TYPE),
        (4, "schema_type"),
        (5, "schema_type"),
        (6, "refused_schema"),
        (7, "refused_schema"),
        (8, "type_mismatch"),
    ];
    assert_eq!(codes(&decoded), expected);
    assert_eq!(decoded.rejected[1].message, "its schema has no title, which would say its type");
}

#[test]
fn avro_names_are_full_names() {
    for (schema, expected) in [
        (json!("shop.Paid"), "shop.Paid"),
        (json!({"type": "record", "name": "Paid"}), "Paid"),
        (json!({"type": "record", "name": "Paid", "namespace": ""}), "Paid"),
        (json!({"type": "record", "name": "Paid", "namespace": "a.b"}), "a.b.Paid"),
        (json!({"type": "record", "name": "c.Paid", "namespace": "a.b"}), "c.Paid"),
        (json!({"type": "long", "logicalType": "timestamp-millis"}), "long"),
        (json!({"type": {"type": "record", "name": "Paid"}}), "Paid"),
        (json!({"type": "array", "items": "long"}), "array"),
        (json!(["null", "long"]), "union"),
    ] {
        assert_eq!(avro_name(&schema), expected);
    }
}

/// A message about a type is as long as messages are, whatever the schema calls it.
#[test]
fn endless_names_are_cut() {
    let sorter = Sorter::new(vec!["a".to_owned()], Framing::Confluent);
    let Kind::Other(message) = sorter.kind(&"é".repeat(100_000)) else { panic!() };
    assert!(message.len() < 500, "{}", message.len());
}

#[test]
fn schemas_of_former_batches_are_forgotten_and_those_of_the_batch_at_hand_are_not() {
    let mut decoders = avro([&created(), &paid()]);
    let learn_all = |decoders: &mut Decoders, chunk: &Chunk| {
        let keys = missing(decoders, chunk);
        decoders.need(&chunk.records().collect::<Vec<_>>());
        for key in &keys {
            let answer = match *key == id(1) {
                true => learnt("AVRO", &created().to_string()),
                false => Learnt::Unknown,
            };
            decoders.learn(*key, answer);
        }
        keys.len()
    };
    let good = framed(1, &encoded(&created(), &json!({"id": 5})));
    assert_eq!(learn_all(&mut decoders, &chunk(std::slice::from_ref(&good))), 1);
    let garbage = chunk(&(10..10_010).map(|number| framed(number, &[])).collect::<Vec<_>>());
    assert_eq!(learn_all(&mut decoders, &garbage), 10_000);
    assert!(missing(&decoders, &garbage).is_empty());
    let next = chunk(&[good, framed(10, &[])]);
    assert_eq!(missing(&decoders, &next), [id(1)]);
    assert_eq!(learn_all(&mut decoders, &next), 1);
    // It has made room, but not of what the batch names besides.
    assert_eq!(missing(&decoders, &garbage).len(), 9_999);
    assert!(missing(&decoders, &next).is_empty());
    let decoded = decode(&decoders, &next);
    assert_eq!((numbers(&decoded), codes(&decoded)), ([vec![5], vec![]], vec![(1, "unknown_id")]));
}
