//! Schemas and records that were made to do harm. Each of them would take gigabytes, minutes or the stack of the process
//! without the limits of [`super::limits`].

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::avro::decode::Problem;
use super::avro::node::{Kind, Node, SchemaError};
use super::avro::{arrow_type, encode, program};
use super::columns::Column;
use super::json::{Unfit, put_row};
use super::limits::{
    CELLS_MAX, CELLS_MIN, CELLS_PER_BYTE, DEFAULT_BYTES_MAX, FIELDS_MAX, MESSAGE_BYTES_MAX, PAIRS_MAX,
};
use super::{Codec, Learnt, Registered, frame, json_schema, protobuf};
use crate::config::plan::{Recursion, Tombstones};
use crate::model::{
    ChunkBuilder, Incoming, Offset, Partition, RecordRef, Reference, SchemaId, TimestampType, TopicName,
    TopicPartition, code,
};

/// For a schema, which is read once: far longer than any of it takes on a slow machine that is busy, and far shorter than
/// without limits.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a record may cost of a processor. In a build for tests our own code is hardly optimised, and what it calls of
/// arrow and serde_json not at all: thirty times as much, where without limits it would be minutes.
const RECORD_CPU_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 3000 } else { 100 });

/// Bytes of a value in columns that has one byte in a record, or is one cell: at most a decimal of 256 bits, with its bit
/// of validity and an offset.
const VALUE_BYTES: usize = 40;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time that this thread has had of a processor: other tests run beside it. Where the kernel does not tell, what the clock
/// says.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok());
    nanos.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// What columns may hold after a record of so many bytes, whatever became of it: what it has bytes for, what it may fill
/// without, and defaults. Buffers double as they grow.
fn held_max(bytes: usize) -> usize {
    let cells = bytes.saturating_mul(CELLS_PER_BYTE).clamp(CELLS_MIN, CELLS_MAX);
    2 * VALUE_BYTES * (bytes + cells + DEFAULT_BYTES_MAX)
}

/// Decodes one record of so many bytes, and holds what that costs against what it may.
#[track_caller]
fn decoded<T>(bytes: usize, columns: &mut [Column], work: impl FnOnce(&mut [Column]) -> T) -> T {
    let begun = cpu();
    let done = work(columns);
    let spent = cpu().saturating_sub(begun);
    assert!(spent < RECORD_CPU_MAX, "a record of {bytes} bytes took {spent:?}");
    let held: usize = columns.iter().map(Column::capacity_bytes).sum();
    assert!(held <= held_max(bytes), "after a record of {bytes} bytes columns hold {held}");
    done
}

fn soon<T>(work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    done
}

fn record(name: &str, fields: &[Value]) -> Value {
    json!({"type": "record", "name": name, "fields": fields})
}

fn refusal(schema: &Value) -> SchemaError {
    refusal_of(&schema.to_string(), &[])
}

fn refusal_of(text: &str, references: &[Reference]) -> SchemaError {
    soon(|| Node::parse(text, references)).expect_err("the schema is refused")
}

fn node(schema: &Value) -> Node {
    soon(|| Node::parse(&schema.to_string(), &[])).unwrap_or_else(|error| panic!("{error}"))
}

fn columns(reader: &Node) -> Vec<Column> {
    let schema = arrow_type::schema(reader, false).unwrap();
    schema.fields().iter().map(|field| Column::new(field).unwrap()).collect()
}

/// What is wrong with a record; and that it costs no more than it may.
fn avro_problem(writer: &Value, reader: &Value, bytes: &[u8]) -> Problem {
    let (writer, reader) = (node(writer), node(reader));
    let program = program::compile(&writer, &reader).unwrap();
    let mut columns = columns(&reader);
    let done = decoded(bytes.len(), &mut columns, |columns| program.decode(bytes, columns));
    let bad = done.expect_err("the record is bad");
    columns.iter_mut().for_each(|column| column.truncate(0));
    assert!(columns.iter().all(Column::is_empty));
    bad.problem
}

fn long(number: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::zigzag(number, &mut bytes);
    bytes
}

/// An array in one block, of items that are all these bytes.
fn array(count: usize, item: &[u8]) -> Vec<u8> {
    [long(count as i64), item.repeat(count), vec![0]].concat()
}

fn array_of(name: &str, items: Value) -> Value {
    record(name, &[json!({"name": "xs", "type": {"type": "array", "items": items}})])
}

/// A record of so many fields of a type.
fn wide(name: &str, count: usize, field: impl Fn(usize) -> Value) -> Value {
    record(name, &(0..count).map(field).collect::<Vec<Value>>())
}

#[test]
fn defaults_of_defaults_are_not_followed() {
    // Each type has the one before as its field, and `{}` as default: apache-avro resolves it twice at every level.
    let types = (0..900).map(|number| match number {
        0 => record("T0", &[json!({"name": "n", "type": "int", "default": 1})]),
        _ => {
            let before = format!("T{}", number - 1);
            record(&format!("T{number}"), &[json!({"name": "f", "type": [before, "null"], "default": {}})])
        }
    });
    assert_eq!(refusal(&Value::Array(types.collect())), SchemaError::TooDeep);
    // As deep as a schema may be, and each default in its place.
    let mut schema = record("L0", &[json!({"name": "n", "type": "int", "default": 7})]);
    for level in 1..30 {
        let field = json!({"name": "f", "type": schema, "default": {"fields": [{"default": 1}]}});
        schema = record(&format!("L{level}"), &[field]);
    }
    let Kind::Record(top) = node(&schema).kind else { panic!("no record") };
    assert_eq!(top.fields[0].default, Some(json!({"fields": [{"default": 1}]})));
}

#[test]
fn what_is_named_in_many_places_is_paid_for_in_each() {
    let repeated = |first: Value, name: &str| {
        let fields = (0..4000).map(|number| {
            let ty = if number == 0 { first.clone() } else { json!(name) };
            json!({"name": format!("f{number}"), "type": ty})
        });
        record("Top", &fields.collect::<Vec<Value>>())
    };
    let symbols: Vec<String> = (0..20_000).map(|number| format!("S{number}")).collect();
    let symbols = json!({"type": "enum", "name": "E", "symbols": symbols});
    let text = "x".repeat(200_000);
    let default = record("D", &[json!({"name": "x", "type": "string", "default": text})]);
    for (first, name) in [(symbols, "E"), (default, "D")] {
        let error = refusal(&repeated(first, name)).to_string();
        assert!(error.contains("take more than") && error.len() < 1000, "{}", error.len());
    }
    let inner = record("B", &[json!({"name": "x", "type": "int"})]);
    let mut top = repeated(inner, "B");
    top["namespace"] = json!("n".repeat(200_000));
    let error = refusal(&top).to_string();
    assert!(error.contains("a name of more than"), "{}", error.len());
}

#[test]
fn types_that_double_and_unions_of_many_are_refused() {
    let doubling = (0..50).map(|number| match number {
        0 => record("T0", &[json!({"name": "n", "type": "int"})]),
        _ => {
            let before = format!("T{}", number - 1);
            let fields = ["a", "b"].map(|name| json!({"name": name, "type": before}));
            record(&format!("T{number}"), &fields)
        }
    });
    assert_eq!(refusal(&Value::Array(doubling.collect())), SchemaError::TooWide);
    let branches: Vec<Value> = (0..5000).map(|number| record(&format!("T{number}"), &[])).collect();
    let error = refusal(&record("Top", &[json!({"name": "u", "type": branches})])).to_string();
    assert!(error.contains("a union of more than"), "{error}");
}

#[test]
fn texts_that_lead_deeper_and_deeper_end_no_thread() {
    let nested = |name: &str, levels: usize, inner: Value| {
        let ty = (0..levels).fold(inner, |items, _| json!({"type": "array", "items": items}));
        record(name, &[json!({"name": "f", "type": ty})])
    };
    let chain = |count: usize, levels: usize| {
        // What is referenced comes first, as the registry's client hands it on.
        let texts = (1..=count).rev().map(|number| {
            let inner = if number == count { json!("int") } else { json!(format!("T{}", number + 1)) };
            let name = format!("T{number}");
            let text = nested(&name, levels, inner).to_string();
            Reference { name, text }
        });
        refusal_of(&nested("T0", levels, json!("T1")).to_string(), &texts.collect::<Vec<_>>())
    };
    // Read, and found to be too deep; and not read at all.
    assert_eq!(chain(16, 30), SchemaError::TooDeep);
    assert_eq!(chain(200, 100), SchemaError::TooDeep);
    // Within one text, brackets without an end.
    assert!(matches!(refusal_of(&"[".repeat(500_000), &[]), SchemaError::Invalid(_)));
    // A reference that its parser is not prepared for.
    let strange = json!({"name": "A", "type": record("B", &[])}).to_string();
    let strange = Reference { name: "A".to_owned(), text: strange };
    refusal_of(r#"{"type": "record", "name": "T", "fields": [{"name": "a", "type": "C"}]}"#, &[strange]);
}

#[test]
fn nulls_and_defaults_of_wide_records_have_a_bound() {
    let optional = |inner: Value| json!(["null", inner]);
    let wide_ints = wide("W", 2000, |number| json!({"name": format!("f{number}"), "type": "int"}));
    let nulls = array_of("Top", optional(wide_ints));
    assert_eq!(avro_problem(&nulls, &nulls, &array(200_000, &[0])), Problem::Amplified);
    // What is said with bytes of its own is not counted.
    let leaves = node(&array_of("Top", optional(json!("int"))));
    let program = program::compile(&leaves, &leaves).unwrap();
    let mut filled = columns(&leaves);
    program.decode(&array(CELLS_MAX + FIELDS_MAX + 1, &[0]), &mut filled).unwrap();
    // The writer has one byte for each item, the reader 5000 fields that cost nothing.
    let item = |count: usize| {
        wide("I", count, |number| match number {
            0 => json!({"name": "b", "type": "boolean"}),
            _ => json!({"name": format!("f{number}"), "type": "null", "default": null}),
        })
    };
    let (writer, reader) = (array_of("Top", item(1)), array_of("Top", item(5000)));
    assert_eq!(avro_problem(&writer, &reader, &array(200_000, &[1])), Problem::Amplified);
}

#[test]
fn long_defaults_are_paid_for() {
    let item = |fields: &[Value]| array_of("Top", record("I", fields));
    let written = json!({"name": "b", "type": "boolean"});
    let default = json!({"name": "t", "type": "string", "default": "x".repeat(10_000)});
    let (writer, reader) = (item(std::slice::from_ref(&written)), item(&[written.clone(), default]));
    assert_eq!(avro_problem(&writer, &reader, &array(200, &[1])), Problem::Amplified);
    // As many as there is room for.
    let (writer, reader) = (node(&writer), node(&reader));
    let program = program::compile(&writer, &reader).unwrap();
    let (mut columns, bytes) = (columns(&reader), array(DEFAULT_BYTES_MAX / 10_002, &[1]));
    decoded(bytes.len(), &mut columns, |columns| program.decode(&bytes, columns)).unwrap();
}

/// None of the writer's branches can be read as any of the reader's, and each is held against all.
#[test]
fn unions_of_many_against_unions_of_many_are_refused() {
    let union = |prefix: &str, fields: &[Value]| {
        let branches = (0..900).map(|number| record(&format!("{prefix}{number}"), fields));
        record("Top", &[json!({"name": "u", "type": branches.collect::<Vec<Value>>()})])
    };
    let (writer, reader) = (union("W", &[]), union("R", &[json!({"name": "n", "type": "int"})]));
    let (writer, reader) = (node(&writer), node(&reader));
    let error = soon(|| program::compile(&writer, &reader)).unwrap_err().to_string();
    assert!(error.contains(&format!("more than {PAIRS_MAX} pairs of branches")), "{error}");
}

#[test]
fn long_symbols_are_paid_for() {
    let symbol = format!("S{}", "x".repeat(100_000));
    let schema = array_of("Top", json!({"type": "enum", "name": "E", "symbols": [symbol]}));
    assert_eq!(avro_problem(&schema, &schema, &array(100_000, &[0])), Problem::Amplified);
}

#[test]
fn counts_and_lengths_are_held_against_the_bytes_that_are_there() {
    let strings = array_of("Top", json!("string"));
    let skipping = record("Top", &[json!({"name": "n", "type": "int", "default": 0})]);
    for reader in [&strings, &skipping] {
        for count in [i64::MAX, 1 << 40, 1 << 31, 100, -1, -100, i64::MIN + 1, i64::MIN] {
            let problem = avro_problem(&strings, reader, &[long(count), long(i64::MAX), vec![0]].concat());
            let expected = [Problem::Truncated, Problem::Overflow, Problem::NegativeLength];
            assert!(expected.contains(&problem), "{count}: {problem}");
        }
    }
    let decimal = json!({"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 2});
    let decimal = record("Top", &[json!({"name": "n", "type": decimal})]);
    let digits = [long(1 << 20), vec![0x55; 1 << 20]].concat();
    assert_eq!(avro_problem(&decimal, &decimal, &digits), Problem::Decimal);
}

#[test]
fn nulls_of_long_fixed_are_paid_for() {
    let optional = |size: usize| json!(["null", {"type": "fixed", "name": "F", "size": size}]);
    let schema = array_of("Top", optional(60_000));
    assert_eq!(avro_problem(&schema, &schema, &array(10_000, &[0])), Problem::Amplified);
    let longer = node(&array_of("Top", optional(1 << 30)));
    let error = arrow_type::schema(&longer, false).unwrap_err().to_string();
    assert!(error.contains("a fixed of 1073741824 bytes"), "{error}");
}

/// A value of each level can be what its only name says, and a record with a field of that name.
#[test]
fn unions_within_unions_are_not_tried_for_ever() {
    let schema = (0..28).fold(json!("int"), |inner, level| {
        record(&format!("n{level}.X"), &[json!({"name": "X", "type": [inner, "string"]})])
    });
    let reader = node(&record("Top", &[json!({"name": "X", "type": [schema, "boolean"]})]));
    let text = format!("{}true{}", "{\"X\": ".repeat(100), "}".repeat(100));
    assert_eq!(json_problem(&reader, &text).code, code::SIZE);
}

fn json_reader(schema: &Value) -> Node {
    soon(|| json_schema::parse(&schema.to_string(), &[])).unwrap_or_else(|error| panic!("{error}"))
}

fn json_problem(reader: &Node, text: &str) -> Unfit {
    let Kind::Record(record) = &reader.kind else { panic!("no record") };
    let mut columns = columns(reader);
    let done = decoded(text.len(), &mut columns, |columns| put_row(record, text.as_bytes(), columns));
    done.expect_err("the record is bad")
}

#[test]
fn what_json_leaves_out_has_a_bound() {
    let properties: serde_json::Map<String, Value> =
        (0..2000).map(|number| (format!("f{number}"), json!({"type": "integer"}))).collect();
    let items = json!({"type": "array", "items": {"type": "object", "properties": properties}});
    let reader = json_reader(&json!({"type": "object", "properties": {"xs": items}}));
    let empty = format!("{{\"xs\": [{}{{}}]}}", "{},".repeat(100_000));
    assert_eq!(json_problem(&reader, &empty).code, code::SIZE);
    let text = json!({"type": "string", "default": "x".repeat(10_000)});
    let items = json!({"type": "array", "items": {"type": "object", "properties": {"t": text}}});
    let reader = json_reader(&json!({"type": "object", "properties": {"xs": items}}));
    assert_eq!(json_problem(&reader, &empty).code, code::SIZE);
}

#[test]
fn json_of_any_depth_and_numbers_of_any_length_are_bad_records() {
    let reader = json_reader(&json!({"type": "object", "properties": {"n": {"type": "integer"}, "any": {}}}));
    for open in ["[", "{\"a\":"] {
        let deep = format!("{{\"any\": {}", open.repeat(200_000));
        assert_eq!(json_problem(&reader, &deep).code, code::DEPTH);
    }
    let digits = "9".repeat(1 << 20);
    assert_eq!(json_problem(&reader, &format!("{{\"n\": {digits}}}")).code, code::TYPE_MISMATCH);
    assert_eq!(json_problem(&reader, "{\"n\": 1e999999999}").code, code::TYPE_MISMATCH);
    assert_eq!(json_problem(&reader, "{\"n\": 1e300}").code, code::OVERFLOW);
}

#[test]
fn json_schemas_that_look_everywhere_are_refused() {
    let definitions: serde_json::Map<String, Value> =
        (0..5000).map(|number| (format!("d{number}"), json!({"$anchor": format!("a{number}")}))).collect();
    let properties: serde_json::Map<String, Value> =
        (0..5000).map(|number| (format!("p{number}"), json!({"$ref": "#a4999"}))).collect();
    let schema = json!({"type": "object", "$defs": definitions, "properties": properties});
    let error = soon(|| json_schema::parse(&schema.to_string(), &[])).unwrap_err().to_string();
    assert!(error.contains("too large"), "{error}");
    // Names of any length, in places of any number.
    let long = "x".repeat(500_000);
    let properties: serde_json::Map<String, Value> =
        (0..2000).map(|number| (format!("p{number}"), json!({"$ref": "#/$defs/d"}))).collect();
    let inner = json!({"type": "object", "properties": {long: {"type": "integer"}}});
    let schema = json!({"type": "object", "$defs": {"d": inner}, "properties": properties});
    let error = soon(|| json_schema::parse(&schema.to_string(), &[])).unwrap_err().to_string();
    assert!(error.contains("take more than"), "{}", error.len());
}

#[test]
fn choices_of_json_schemas_are_paid_for() {
    let parse = |arms: Vec<Value>, definition: Value| {
        let choice = json!({"oneOf": arms});
        let schema = json!({"type": "object", "$defs": {"d": definition}, "properties": {"x": choice}});
        soon(|| json_schema::parse(&schema.to_string(), &[])).unwrap_err().to_string()
    };
    // What tells one arm from another is kept with each.
    let values = json!({"k": {"enum": ["x".repeat(300_000)]}});
    let definition = json!({"type": "object", "title": "T", "properties": values});
    let error = parse(vec![json!({"$ref": "#/$defs/d"}); 200], definition);
    assert!(error.contains("take more than"), "{}", error.len());
    // Names have to be made for arms of one name.
    let alike = json!({"type": "object", "title": "T", "properties": {"a": {"type": "integer"}}});
    let error = parse(vec![alike; 3000], json!({}));
    assert!(error.contains("too large"), "{error}");
}

const OPTIONS: &str = "syntax = \"proto2\"; import \"google/protobuf/descriptor.proto\";
    message M { optional M a = 1; }
    extend google.protobuf.FileOptions { optional M x = 50000; }
    message Order { optional int32 id = 1 [deprecated = true]; enum E { option allow_alias = true; A = 0; B = 0; } }\n";

#[test]
fn options_of_protobuf_schemas_are_not_read() {
    let plain = soon(|| protobuf::parse(OPTIONS, &[])).unwrap();
    let nested = format!("{OPTIONS}option (x) = {{{}{}}};", "a {".repeat(50_000), "}".repeat(50_000));
    let named = format!("{OPTIONS}option (x){} = {{}};", ".a".repeat(50_000));
    for text in [nested, named] {
        let file = soon(|| protobuf::parse(&text, &[])).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(file.names(), plain.names());
    }
    let deep = format!("syntax = \"proto3\"; {}{}", "message A {".repeat(50_000), "}".repeat(50_000));
    assert!(matches!(soon(|| protobuf::parse(&deep, &[])), Err(protobuf::SchemaError::Invalid(_))));
}

#[test]
fn enums_are_kept_once_and_their_names_are_paid_for() {
    let symbols: String = (0..5000).map(|number| format!("S{number} = {number}; ")).collect();
    let fields: String = (1..3000).map(|number| format!("E f{number} = {number}; ")).collect();
    let text = format!("syntax = \"proto3\"; message M {{ {fields} }} enum E {{ {symbols} }}");
    let file = soon(|| protobuf::parse(&text, &[])).unwrap_or_else(|error| panic!("{error}"));
    soon(|| protobuf::Reader::new(&file, None, false)).unwrap();
    let long = format!("S{}", "x".repeat(100_000));
    let text = format!("syntax = \"proto3\"; message M {{ repeated E es = 1; }} enum E {{ {long} = 0; }}");
    let file = soon(|| protobuf::parse(&text, &[])).unwrap_or_else(|error| panic!("{error}"));
    // Indexes of the first message, and 100,000 zeros in one length.
    assert_is_bad(&file, &[vec![0, 10, 0xa0, 0x8d, 0x06], vec![0; 100_000]].concat(), code::SIZE);
}

#[track_caller]
fn assert_is_bad(file: &protobuf::File, payload: &[u8], code: &str) {
    let reader = protobuf::Reader::new(file, None, false).unwrap();
    let mut columns: Vec<Column> =
        reader.schema().fields().iter().map(|field| Column::new(field).unwrap()).collect();
    let mut scratch = protobuf::Scratch::default();
    let writer = reader.writer(file);
    let done = decoded(payload.len(), &mut columns, |columns| writer.decode(payload, columns, &mut scratch));
    let bad = done.unwrap_err();
    assert_eq!(bad.code, code, "{}", bad.message);
}

#[test]
fn groups_within_groups_have_an_end() {
    let file = soon(|| protobuf::parse("syntax = \"proto3\"; message M { int32 id = 1; }", &[])).unwrap();
    // Of a field that the message has, and of one that it lacks.
    for start in [0x0b_u8, 0x1b] {
        assert_is_bad(&file, &[vec![0], vec![start; 100_000]].concat(), code::DEPTH);
    }
}

#[test]
fn names_of_fields_in_text_are_paid_for() {
    let long = "n".repeat(100_000);
    let text = format!("syntax = \"proto3\"; message M {{ repeated M xs = 1; int32 {long} = 2; }}");
    let file = soon(|| protobuf::parse(&text, &[])).unwrap_or_else(|error| panic!("{error}"));
    // Indexes of the first message, and messages of no bytes.
    let payload = [vec![0], [10, 0].repeat(1000)].concat();
    assert_is_bad(&file.recursive(Recursion::Json), &payload, code::SIZE);
}

/// A schema is refused once and its records are many: what is said of each stays short.
#[test]
fn refusals_of_endless_schemas_are_short() {
    let reader = node(&record("R", &[json!({"name": "n", "type": "int"})]));
    let mut codec = Registered::avro(reader, Tombstones::Skip).unwrap();
    let long = "x".repeat(500_000);
    let writer = record("R", &[json!({"name": "n", "type": long})]);
    let learnt = Learnt::Schema { kind: "AVRO".to_owned(), text: writer.to_string(), references: Vec::new() };
    codec.learn(SchemaId(1).into(), learnt);
    let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
    let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
    let mut value = Vec::new();
    frame::write_prefix(SchemaId(1), &mut value);
    let incoming = Incoming {
        offset: Offset::ZERO,
        timestamp_ms: 0,
        timestamp_type: TimestampType::Create,
        epoch: None,
        key: None,
        value: Some(&value),
    };
    builder.push(incoming, std::iter::empty());
    let chunk = builder.finish(Offset::ZERO);
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    let rejected = codec.decode(&records).unwrap().rejected;
    assert_eq!(rejected[0].code, code::REFUSED_SCHEMA);
    assert!(rejected[0].message.len() < MESSAGE_BYTES_MAX + 10, "{}", rejected[0].message.len());
}
