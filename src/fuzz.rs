//! Bytes from outside, as a fuzzer sends them: whatever they are, nothing may panic, and no record may spoil another.
//!
//! `fuzz/` has the targets for cargo-fuzz, `tests/it/fuzzing.rs` runs the same ones on changed files of `fuzz/corpus`.

use std::path::Path;
use std::sync::LazyLock;

use serde_json::json;

use crate::codec::avro::encode;
use crate::codec::avro::node::Node;
use crate::codec::{Codec, Learnt, Raw, Registered, Side, frame, json_schema, protobuf};
use crate::config::plan::{Framing, RawForm, Recursion, Tombstones};
use crate::config::{self, Environment};
use crate::model::metadata::GroupMetadata;
use crate::model::{
    Chunk, ChunkBuilder, Incoming, Offset, Partition, RecordRef, Reference, SchemaId, TimestampType,
    TopicName, TopicPartition, code,
};
use crate::sink::file;

/// What a fuzzer is let loose on.
#[derive(Debug)]
pub struct Target {
    /// As in `fuzz/fuzz_targets` and `fuzz/corpus`.
    pub name: &'static str,
    run: fn(&[u8]),
}

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

pub static TARGETS: [Target; 11] = [
    target("framing", framing),
    target("avro", |bytes| between(&AVRO, &[0; 11], &framed(bytes))),
    target("protobuf", |bytes| between(&PROTOBUF, &[0], &framed(bytes))),
    target("json", |bytes| between(&JSON, b"{\"id\": 1}", &framed(bytes))),
    target("raw", raw),
    target("avro_schema", avro_schema),
    target("protobuf_schema", protobuf_schema),
    target("json_schema", json_schema_of),
    target("metadata", metadata),
    target("log_entry", file::fold),
    target("routes", routes),
];

impl Target {
    /// # Panics
    /// That is what fuzzers look for.
    pub fn run(&self, bytes: &[u8]) {
        (self.run)(bytes);
    }
}

/// Runs a target by its name.
///
/// # Panics
/// As [`Target::run`], and if there is none.
pub fn run(name: &str, bytes: &[u8]) {
    match TARGETS.iter().find(|target| target.name == name) {
        Some(target) => target.run(bytes),
        None => panic!("there is no target `{name}`"),
    }
}

/// Types within types, some of which are read as others.
static AVRO: LazyLock<Registered> = LazyLock::new(|| {
    let writer = json!({"type": "record", "name": "W", "fields": [
        {"name": "id", "type": "long"},
        {"name": "gone", "type": {"type": "map", "values": ["null", {"type": "array", "items": "bytes"}]}},
        {"name": "note", "type": ["null", "string"]},
        {"name": "state", "type": {"type": "enum", "name": "S", "symbols": ["A", "B"]}},
        {"name": "items", "type": {"type": "array", "items": {"type": "record", "name": "I", "fields": [
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2}},
            {"name": "tags", "type": {"type": "map", "values": "int"}},
            {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]}]}}},
        {"name": "raw", "type": {"type": "fixed", "name": "F", "size": 4}},
        {"name": "ok", "type": ["boolean", "null"]}]});
    let reader = json!({"type": "record", "name": "W", "fields": [
        {"name": "id", "type": "double"},
        {"name": "note", "type": ["null", "string"]},
        {"name": "state", "type": "string"},
        {"name": "items", "type": {"type": "array", "items": {"type": "record", "name": "I", "fields": [
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 2}},
            {"name": "tags", "type": {"type": "map", "values": "long"}},
            {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
            {"name": "new", "type": {"type": "array", "items": "int"}, "default": [1, 2]}]}}},
        {"name": "raw", "type": "bytes"},
        {"name": "ok", "type": ["null", "boolean"]}]});
    let node = Node::parse(&reader.to_string(), &[]).expect("the schema is ours");
    let codec = Registered::avro(node, Tombstones::Keep).expect("the schema is ours");
    learnt(codec, "AVRO", &writer.to_string())
});

static PROTOBUF: LazyLock<Registered> = LazyLock::new(|| {
    let text = "syntax = \"proto3\"; import \"google/protobuf/struct.proto\"; import \"google/protobuf/timestamp.proto\";
        message Order {
            int64 id = 1; string note = 2; repeated sint32 packed = 3; map<string, Line> lines = 4;
            oneof pay { string card = 5; Line voucher = 6; }
            google.protobuf.Value any = 7; google.protobuf.Timestamp at = 8; State state = 9; repeated Line more = 10;
            message Line { optional double price = 1; Line2 inner = 2; }
            message Line2 { bytes raw = 1; repeated fixed64 numbers = 2; }
            enum State { NONE = 0; PAID = 1; }
        }";
    let file = protobuf::parse(text, &[]).expect("the schema is ours");
    let codec = Registered::protobuf(&file, None, Tombstones::Keep).expect("the schema is ours");
    learnt(codec, "PROTOBUF", text)
});

static JSON: LazyLock<Registered> = LazyLock::new(|| {
    let schema = json!({"type": "object", "required": ["id"], "properties": {
        "id": {"type": "integer"}, "total": {"type": "number"}, "note": {"type": "string", "default": "none"},
        "at": {"type": "string", "format": "date-time"}, "day": {"type": "string", "format": "date"},
        "key": {"type": "string", "format": "uuid"}, "any": {},
        "lines": {"type": "array", "items": {"type": "object", "properties": {
            "counts": {"type": "object", "additionalProperties": {"type": "integer", "connect.type": "int32"}},
            "is_gift": {"oneOf": [{"type": "null"}, {"type": "boolean"}]}}}}}})
    .to_string();
    let node = json_schema::parse(&schema, &[]).expect("the schema is ours");
    let codec = Registered::json(node, Tombstones::Keep).expect("the schema is ours");
    learnt(codec, "JSON", &schema)
});

const ID: SchemaId = SchemaId(1);

fn learnt(mut codec: Registered, kind: &str, text: &str) -> Registered {
    let schema = Learnt::Schema { kind: kind.to_owned(), text: text.to_owned(), references: Vec::new() };
    codec.learn(ID.into(), schema);
    codec
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_prefix(ID, &mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// A header's value, and the record's.
type Given<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

fn chunk(records: &[Given<'_>]) -> Chunk {
    let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
    let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
    let mut offset = Offset::ZERO;
    for (header, value) in records {
        let incoming = Incoming {
            offset,
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: None,
            value: *value,
        };
        let name = frame::VALUE_ID_HEADER.as_bytes();
        builder.push(incoming, header.iter().map(|value| (name, Some(*value))));
        offset = offset.next();
    }
    builder.finish(offset)
}

/// A record between two good ones and two tombstones, which have to be rows whatever becomes of it.
fn between(codec: &Registered, good: &[u8], bytes: &[u8]) {
    let good = framed(good);
    decode(codec, &[Some(&good), None, Some(bytes), None, Some(&good)]);
}

/// Every record but the third has to be a row.
fn decode(codec: &dyn Codec, values: &[Option<&[u8]>]) {
    let records: Vec<Given<'_>> = values.iter().map(|value| (None, *value)).collect();
    let chunk = chunk(&records);
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    let decoded = codec.decode(&records).expect("columns fit together");
    let rows = decoded.rows.len();
    assert_eq!(rows + decoded.rejected.len() + decoded.dropped, records.len());
    assert!(decoded.columns.iter().all(|column| column.len() == rows), "columns of different lengths");
    let mut others = (0..records.len() as u32).filter(|index| *index != 2);
    assert!(others.all(|index| decoded.rows.contains(&index)), "a record has spoilt another");
    let is_known = |code: &str| code::TABLE.iter().any(|(known, _)| *known == code);
    assert!(decoded.rejected.iter().all(|bad| is_known(bad.code) && bad.message.len() < 10_000));
}

/// The first byte says how long the header is.
fn framing(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first() else {
        return;
    };
    let (header, value) = rest.split_at(usize::from(*len).min(rest.len()));
    for header in [None, Some(header)] {
        let chunk = chunk(&[(header, Some(value))]);
        for record in chunk.records() {
            for framing in [Framing::Confluent, Framing::Header, Framing::Prefix, Framing::Apicurio] {
                for side in [Side::Value, Side::Key] {
                    if let Ok(frame) = frame::parse(framing, side, &record, value) {
                        assert!(frame.payload.len() <= value.len());
                    }
                }
            }
        }
    }
}

fn raw(bytes: &[u8]) {
    for form in [RawForm::Bytes, RawForm::String, RawForm::Json] {
        decode(&Raw::new(form, Tombstones::Keep), &[Some(b"{}"), None, Some(bytes), None, Some(b"1")]);
    }
}

/// A schema and those that it references: texts between lines of `===`, each of the others below its name.
fn texts(bytes: &[u8]) -> Option<(&str, Vec<Reference>)> {
    let mut parts = std::str::from_utf8(bytes).ok()?.split("\n===\n");
    let text = parts.next()?;
    let references = parts.filter_map(|part| {
        let (name, text) = part.split_once('\n')?;
        Some(Reference { name: name.to_owned(), text: text.to_owned() })
    });
    Some((text, references.collect()))
}

/// Reads a text as a record of its own schema.
fn read_itself(mut codec: Registered, kind: &str, text: &str, references: Vec<Reference>) {
    let schema = Learnt::Schema { kind: kind.to_owned(), text: text.to_owned(), references };
    codec.learn(ID.into(), schema);
    decode(&codec, &[None, None, Some(&framed(text.as_bytes())), None, None]);
}

fn avro_schema(bytes: &[u8]) {
    let Some((text, references)) = texts(bytes) else {
        return;
    };
    let Ok(node) = Node::parse_with(text, &references, Recursion::Json) else {
        return;
    };
    // Defaults of all kinds.
    encode::value(&node, &json!({})).ok();
    if let Ok(codec) = Registered::avro(node, Tombstones::Keep) {
        read_itself(codec.recursive(Recursion::Json), "AVRO", text, references);
    }
}

fn protobuf_schema(bytes: &[u8]) {
    let Some((text, references)) = texts(bytes) else {
        return;
    };
    if let Ok(file) = protobuf::parse(text, &references).map(|file| file.recursive(Recursion::Json))
        && let Ok(codec) = Registered::protobuf(&file, None, Tombstones::Keep)
    {
        read_itself(codec, "PROTOBUF", text, references);
    }
}

fn json_schema_of(bytes: &[u8]) {
    let Some((text, references)) = texts(bytes) else {
        return;
    };
    if let Ok(node) = json_schema::parse_with(text, &references, Recursion::Json)
        && let Ok(codec) = Registered::json(node, Tombstones::Keep)
    {
        read_itself(codec.validated(true), "JSON", text, references);
    }
}

fn metadata(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(read) = GroupMetadata::parse(text)
        && let Ok(written) = read.render()
    {
        assert_eq!(GroupMetadata::parse(&written).as_ref(), Ok(&read), "{text:?} became {written:?}");
    }
}

/// Without files of the machine: a fuzzer finds those that have no end.
fn routes(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let text = text.replace("${file:", "${FILE:-");
    let environment = Environment::new([("NAME".to_owned(), "value".to_owned())], Path::new("nowhere"));
    if let Err(problems) = config::read(&text, &environment) {
        assert!(!config::render("routes.yaml", &text, &problems).is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or a target would only look at records that are bad from the start.
    #[test]
    fn good_records_are_good() {
        for (codec, good) in [(&*AVRO, &[0; 11][..]), (&*PROTOBUF, &[0]), (&*JSON, b"{\"id\": 1}")] {
            let good = framed(good);
            let chunk = chunk(&[(None, Some(&good))]);
            let decoded = codec.decode(&chunk.records().collect::<Vec<_>>()).unwrap();
            assert_eq!(decoded.rejected, []);
        }
    }
}
