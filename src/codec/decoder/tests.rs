use arrow::array::Int64Array;
use arrow::compute::concat_batches;
use arrow::datatypes::DataType;
use arrow::util::pretty::pretty_format_columns;
use serde_json::{Value, json};

use super::*;
use crate::codec::avro::encode;
use crate::codec::avro::node::Node;
use crate::codec::{JsonKeys, Raw, Registered, TypedJson, frame};
use crate::config::plan::{RawForm, Tombstones};
use crate::model::{
    Chunk, ChunkBuilder, Incoming, Offset, Partition, SchemaId, TimestampType, TopicName, TopicPartition,
};

type Bytes = Option<Vec<u8>>;

/// Key, value, and the name of a header if it is not empty.
type Given = (Bytes, Bytes, &'static [u8]);

fn chunk(records: &[Given]) -> Chunk {
    let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
    let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
    for (offset, (key, value, header)) in (0..).zip(records) {
        let incoming = Incoming {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: key.as_deref(),
            value: value.as_deref(),
        };
        let header = Some((*header, Some(&b"x"[..]))).filter(|(name, _)| !name.is_empty());
        builder.push(incoming, header.into_iter());
    }
    builder.finish(Offset::ZERO)
}

/// Records with these keys and the values `{"n": 0}`, `{"n": 1}`, …
fn numbered(keys: &[Bytes]) -> Chunk {
    let records: Vec<Given> =
        keys.iter().enumerate().map(|(n, key)| (key.clone(), number(n), &b""[..])).collect();
    chunk(&records)
}

fn number(n: usize) -> Bytes {
    Some(json!({"n": n}).to_string().into_bytes())
}

fn node(schema: &Value) -> Node {
    Node::parse(&schema.to_string(), &[]).unwrap()
}

fn numbers() -> Box<dyn Codec> {
    let schema = json!({"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]});
    Box::new(TypedJson::new(node(&schema), Tombstones::Skip).unwrap())
}

/// A decoder of numbers whose keys are read.
fn keyed(key: Box<dyn Codec>) -> Decoder {
    let decoder = Decoder::typed(numbers(), key);
    let key = decoder.offered().into_iter().find(|field| field.name() == "_key").unwrap();
    decoder.with_meta(&[key])
}

fn decode(decoder: &Decoder, chunk: &Chunk) -> DecodedBatch {
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    let decoded = decoder.decode(&records).unwrap();
    assert_eq!(&decoded.rows.schema(), decoder.batch_schema());
    decoded
}

fn column(rows: &RecordBatch, name: &str) -> Vec<String> {
    let column = rows.column_by_name(name).unwrap();
    let text = pretty_format_columns(name, &[Arc::clone(column)]).unwrap().to_string();
    // The header is the first of the lines with bars.
    let lines = text.lines().filter(|line| line.starts_with('|')).skip(1);
    lines.map(|line| line.trim_matches(['|', ' ']).to_owned()).collect()
}

fn rejections(decoded: &DecodedBatch) -> Vec<(usize, &str, &str)> {
    decoded.rejected.iter().map(|bad| (bad.index, bad.code, bad.message.as_str())).collect()
}

fn framed(id: u32, schema: &Value, value: &Value) -> Bytes {
    let mut bytes = Vec::new();
    frame::write_prefix(SchemaId(id), &mut bytes);
    bytes.extend(encode::value(&node(schema), value).unwrap());
    Some(bytes)
}

fn id(number: u32) -> SchemaKey {
    SchemaId(number).into()
}

fn avro(schema: &Value) -> Learnt {
    Learnt::Schema { kind: "AVRO".to_owned(), text: schema.to_string(), references: Vec::new() }
}

fn text(text: &str) -> Bytes {
    Some(text.as_bytes().to_vec())
}

/// All neighbours of a bad key are rows, with their own keys.
#[test]
fn keys_as_they_are_are_checked_by_their_form() {
    let keys = [text("null"), Some(vec![0xff]), None, text("{"), text("[1]")];
    let of_form = |form| decode(&keyed(Box::new(Raw::for_keys(form))), &numbered(&keys));
    let bytes = of_form(RawForm::Bytes);
    assert_eq!(column(&bytes.rows, "_key"), ["6e756c6c", "ff", "", "7b", "5b315d"]);
    assert!(bytes.rejected.is_empty());

    let strings = of_form(RawForm::String);
    assert_eq!(column(&strings.rows, "_key"), ["null", "", "{", "[1]"]);
    assert_eq!(column(&strings.rows, "n"), ["0", "2", "3", "4"]);
    let not_text = "key: not UTF-8 text; set `key: bytes`, or find out who wrote it";
    assert_eq!(rejections(&strings), [(1, "invalid_utf8", not_text)]);

    let texts = of_form(RawForm::Json);
    assert_eq!(column(&texts.rows, "_key"), ["null", "", "[1]"]);
    assert_eq!(column(&texts.rows, "n"), ["0", "2", "4"]);
    let codes: Vec<_> = texts.rejected.iter().map(|bad| (bad.index, bad.code)).collect();
    assert_eq!(codes, [(1, "invalid_utf8"), (3, "type_mismatch")]);
    assert!(texts.rejected[1].message.starts_with("key: not JSON: "), "{:?}", texts.rejected);
}

#[test]
fn keys_of_the_registry_are_structs_or_single_values() {
    let first = json!({"type": "record", "name": "K", "fields": [{"name": "id", "type": "int"}]});
    let reader = json!({"type": "record", "name": "K", "fields": [
        {"name": "id", "type": "long"}, {"name": "shop", "type": "string", "default": "main"}]});
    let mut decoder = keyed(Box::new(Registered::avro_keys(node(&reader)).unwrap()));
    let mut cut = framed(2, &reader, &json!({"id": 300, "shop": "x"})).unwrap();
    cut.truncate(6);
    let keys = [
        framed(1, &first, &json!({"id": 7})),
        text("plain"),
        None,
        framed(2, &reader, &json!({"id": 8, "shop": "b"})),
        Some(cut),
        framed(3, &first, &json!({"id": 9})),
        framed(4, &json!("string"), &json!("s")),
    ];
    let chunk = numbered(&keys);
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    assert_eq!(decoder.missing(&records), [1, 2, 3, 4].map(id));
    for (number, learnt) in
        [(1, avro(&first)), (2, avro(&reader)), (3, Learnt::Unknown), (4, avro(&json!("string")))]
    {
        decoder.learn(id(number), learnt);
    }
    assert!(decoder.missing(&records).is_empty());
    let decoded = decode(&decoder, &chunk);
    assert_eq!(column(&decoded.rows, "_key"), ["{id: 7, shop: main}", "", "{id: 8, shop: b}"]);
    assert_eq!(column(&decoded.rows, "n"), ["0", "2", "3"]);
    let rejected = rejections(&decoded);
    let codes: Vec<_> = rejected.iter().map(|(index, code, _)| (*index, *code)).collect();
    assert_eq!(codes, [(1, "framing"), (4, "truncated"), (5, "unknown_id"), (6, "refused_schema")]);
    assert_eq!(rejected[1].2, "key: field `id`: the record ends in the middle of a value");
    assert_eq!(decoded.rejected[1].schema_id, Some(id(2)));

    let mut decoder = keyed(Box::new(Registered::avro_keys(node(&json!("long"))).unwrap()));
    decoder.learn(id(1), avro(&json!("long")));
    let keys = [framed(1, &json!("long"), &json!(-5)), Some(vec![0, 0, 0, 0, 1]), None];
    let decoded = decode(&decoder, &numbered(&keys));
    let field = decoder.batch_schema().field_with_name("_key").unwrap();
    assert_eq!((field.data_type(), field.is_nullable()), (&DataType::Int64, true));
    assert_eq!(column(&decoded.rows, "_key"), ["-5", ""]);
    let cut = "key: the record ends in the middle of a value";
    assert_eq!(rejections(&decoded), [(1, "truncated", cut)]);
}

#[test]
fn typed_json_keys_are_structs_or_single_values() {
    let schema = json!({"type": "record", "name": "K", "fields": [
        {"name": "id", "type": "long"}, {"name": "tag", "type": ["null", "string"], "default": null}]});
    let decoder = keyed(Box::new(JsonKeys::new(node(&schema)).unwrap()));
    let keys =
        [text(r#"{"id": 1}"#), text(r#"{"id": "x"}"#), None, text("5"), text(r#"{"id": 2, "tag": "t"}"#)];
    let decoded = decode(&decoder, &numbered(&keys));
    assert_eq!(column(&decoded.rows, "_key"), ["{id: 1, tag: }", "", "{id: 2, tag: t}"]);
    assert_eq!(
        rejections(&decoded),
        [
            (1, "type_mismatch", "key: field `id`: this text is not long"),
            (3, "type_mismatch", "key: this number is not record `K`"),
        ]
    );

    let decoder = keyed(Box::new(JsonKeys::new(node(&json!("string"))).unwrap()));
    let decoded = decode(&decoder, &numbered(&[text(r#""a""#), text("a"), text("null"), None]));
    assert_eq!(column(&decoded.rows, "_key"), ["a", ""]);
    let codes: Vec<_> = decoded.rejected.iter().map(|bad| (bad.index, bad.code)).collect();
    assert_eq!(codes, [(1, "type_mismatch"), (2, "type_mismatch")]);
}

#[test]
fn a_record_is_rejected_once_and_a_dropped_one_not_at_all() {
    let bad = || Some(vec![0xff]);
    let records: [Given; 4] =
        [(bad(), text("{"), b""), (bad(), None, b""), (bad(), number(2), b""), (text("k"), number(3), b"")];
    let decoder = keyed(Box::new(Raw::for_keys(RawForm::String)));
    let decoded = decode(&decoder, &chunk(&records));
    assert_eq!((column(&decoded.rows, "n"), decoded.dropped), (vec!["3".to_owned()], 1));
    let codes: Vec<_> = decoded.rejected.iter().map(|bad| (bad.index, bad.code)).collect();
    assert_eq!(codes, [(0, "type_mismatch"), (2, "invalid_utf8")]);
    assert!(!decoded.rejected[0].message.starts_with("key"), "{:?}", decoded.rejected);
}

#[test]
fn keys_that_nobody_reads_are_not_looked_at() {
    let keys = [Some(vec![0xff]), Some(vec![0, 0, 0, 0, 9]), None];
    for key in [
        Box::new(Raw::for_keys(RawForm::String)) as Box<dyn Codec>,
        Box::new(Registered::avro_keys(node(&json!("long"))).unwrap()),
    ] {
        let decoder = Decoder::typed(numbers(), key);
        let chunk = numbered(&keys);
        assert!(decoder.missing(&chunk.records().collect::<Vec<_>>()).is_empty());
        let decoded = decode(&decoder, &chunk);
        assert!(decoded.rejected.is_empty());
        assert_eq!(column(&decoded.rows, "n"), ["0", "1", "2"]);
        assert_eq!(decoded.rows.num_columns(), 1);
    }
}

#[test]
fn records_as_they_are_have_their_keys_among_the_fields() {
    let value = Raw::new(RawForm::Json, Tombstones::Keep);
    let decoder = Decoder::raw(Box::new(value), Box::new(JsonKeys::new(node(&json!("int"))).unwrap()));
    let names: Vec<&str> = decoder.schema().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(
        names,
        ["_key", "value", "_topic", "_partition", "_offset", "_timestamp", "_timestamp_type", "_headers"]
    );
    let offered = decoder.offered();
    assert_eq!(offered.iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["_schema_id"]);
    let decoder = decoder.with_meta(&offered);
    assert_eq!(decoder.schema().fields().len() + 1, decoder.batch_schema().fields().len());
    let records: [Given; 3] = [(text("1"), text("{}"), b""), (text("x"), text("{}"), b""), (None, None, b"")];
    let decoded = decode(&decoder, &chunk(&records));
    assert_eq!(column(&decoded.rows, "_key"), ["1", ""]);
    assert_eq!(column(&decoded.rows, "_offset"), ["0", "2"]);
    assert_eq!(decoded.rejected.len(), 1);
}

/// What several threads do with one batch.
#[test]
fn slices_put_together_are_the_whole() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    let schema = json!({"type": "record", "name": "K", "fields": [{"name": "id", "type": "long"}]});
    let mut decoder = keyed(Box::new(Registered::avro_keys(node(&schema)).unwrap()));
    is_shared(&decoder);
    decoder.learn(id(1), avro(&schema));
    let keys: Vec<Bytes> = (0..40)
        .map(|id| match id % 5 {
            0 => text("bad"),
            1 => None,
            _ => framed(1, &schema, &json!({"id": id})),
        })
        .collect();
    let chunk = numbered(&keys);
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    let whole = decoder.decode(&records).unwrap();
    assert_eq!((whole.rows.num_rows(), whole.rejected.len()), (32, 8));
    for cut in [0, 1, 17, 40] {
        let (before, after) = records.split_at(cut);
        let slices = [decoder.decode(before).unwrap(), decoder.decode(after).unwrap()];
        let rows = concat_batches(decoder.batch_schema(), slices.iter().map(|slice| &slice.rows)).unwrap();
        assert_eq!(rows, whole.rows);
        let indices = slices[0].rejected.iter().map(|bad| bad.index);
        let indices: Vec<usize> =
            indices.chain(slices[1].rejected.iter().map(|bad| bad.index + cut)).collect();
        assert_eq!(indices, whole.rejected.iter().map(|bad| bad.index).collect::<Vec<_>>());
    }
    let numbers = whole.rows.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
    assert!(numbers.values().iter().all(|n| n % 5 != 0));
}

/// A header of the other side's name, or of any other, is none.
#[test]
fn values_and_keys_have_headers_of_their_own() {
    let schema = json!({"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]});
    let long = json!("long");
    let value = Registered::avro(node(&schema), Tombstones::Keep).unwrap();
    let decoder = Decoder::typed(Box::new(value), Box::new(Registered::avro_keys(node(&long)).unwrap()));
    let offered = decoder.offered();
    let mut decoder = decoder.with_meta(&offered[..1]);
    decoder.learn(id(1), avro(&schema));
    decoder.learn(id(2), avro(&long));
    let record = |n: i64, header: &'static str| -> Given {
        (framed(2, &long, &json!(n)), framed(1, &schema, &json!({"n": n})), header.as_bytes())
    };
    let records = [record(0, frame::VALUE_ID_HEADER), record(1, "other"), record(2, frame::KEY_ID_HEADER)];
    let decoded = decode(&decoder, &chunk(&records));
    assert_eq!(column(&decoded.rows, "n"), ["1"]);
    assert_eq!(column(&decoded.rows, "_key"), ["1"]);
    let rejected = rejections(&decoded);
    let codes: Vec<_> = rejected.iter().map(|(index, code, _)| (*index, *code)).collect();
    assert_eq!(codes, [(0, "framing"), (2, "framing")]);
    assert!(rejected[0].2.starts_with("its header `__value_schema_id` is neither"), "{rejected:?}");
    assert!(rejected[1].2.starts_with("key: its header `__key_schema_id` is neither"), "{rejected:?}");
}
