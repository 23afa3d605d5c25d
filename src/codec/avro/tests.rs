use std::sync::Arc;

use apache_avro::writer::datum::GenericDatumWriter;
use arrow::array::AsArray;
use arrow::datatypes::i256;
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::decode::Problem;
use super::node::Node;
use super::{arrow_type, encode, program};
use crate::codec::columns::Column;

fn node(schema: &Value) -> Node {
    Node::parse(&schema.to_string(), &[]).unwrap()
}

fn record(fields: Value) -> Value {
    json!({"type": "record", "name": "R", "fields": fields})
}

/// Decodes `rows`, written with `writer`, as `reader`; bad rows are given as their problem.
fn decode(writer: &Value, reader: &Value, rows: &[Vec<u8>]) -> (RecordBatch, Vec<Problem>) {
    let (writer, reader) = (node(writer), node(reader));
    let schema = arrow_type::schema(&reader, false).unwrap();
    let program = program::compile(&writer, &reader).unwrap();
    let mut columns: Vec<Column> = schema.fields().iter().map(|field| Column::new(field).unwrap()).collect();
    let mut problems = Vec::new();
    let mut count = 0;
    for row in rows {
        match program.decode(row, &mut columns) {
            Ok(()) => count += 1,
            Err(bad) => {
                columns.iter_mut().for_each(|column| column.truncate(count));
                problems.push(bad.problem);
            }
        }
    }
    let arrays = columns.into_iter().map(|column| column.finish().unwrap()).collect();
    (RecordBatch::try_new(schema, arrays).unwrap(), problems)
}

fn encoded(schema: &Value, rows: &[Value]) -> Vec<Vec<u8>> {
    rows.iter().map(|row| encode::value(&node(schema), row).unwrap()).collect()
}

fn show(batch: &RecordBatch) -> Vec<String> {
    let text = pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string();
    text.lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().join("|"))
        .collect()
}

#[test]
fn every_type_is_read() {
    let schema = record(json!([
        {"name": "b", "type": "boolean"},
        {"name": "i", "type": "int"},
        {"name": "l", "type": ["null", "long"]},
        {"name": "f", "type": "float"},
        {"name": "d", "type": "double"},
        {"name": "s", "type": "string"},
        {"name": "y", "type": "bytes"},
        {"name": "x", "type": {"type": "fixed", "name": "X", "size": 2}},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "tm", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "tu", "type": {"type": "long", "logicalType": "time-micros"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
        {"name": "nano", "type": {"type": "long", "logicalType": "timestamp-nanos"}},
        {"name": "dec", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "big", "type": {"type": "bytes", "logicalType": "decimal", "precision": 50, "scale": 1}},
        {"name": "uuid", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "xs", "type": {"type": "array", "items": ["null", "int"]}},
        {"name": "m", "type": {"type": "map", "values": "string"}},
        {"name": "r", "type": ["null", {"type": "record", "name": "N", "fields": [
            {"name": "a", "type": "int"}, {"name": "c", "type": ["null", "string"]}]}]}
    ]));
    let full = json!({
        "b": true, "i": -5, "l": i64::MIN, "f": 1.5, "d": -0.25, "s": "ü", "y": "\u{0}\u{ff}",
        "x": "ab", "e": "B", "day": 19000, "tm": 1, "tu": 2, "at": 1500, "local": 1,
        "nano": 7, "dec": -12345, "big": 15, "uuid": "c0ffee00-0000-4000-8000-000000000001",
        "xs": [1, null, 3], "m": {"k": "v"}, "r": {"a": 1, "c": "z"}
    });
    let mut empty = full.clone();
    for (key, value) in [("l", Value::Null), ("xs", json!([])), ("m", json!({})), ("r", Value::Null)] {
        empty[key] = value;
    }
    let (batch, problems) = decode(&schema, &schema, &encoded(&schema, &[full, empty]));
    assert_eq!(problems, []);
    assert_eq!(
        show(&batch)[1..],
        [
            "|true|-5|-9223372036854775808|1.5|-0.25|ü|00ff|6162|B|2022-01-08|00:00:00.001|00:00:00.000002|\
             1970-01-01T00:00:01.500Z|1970-01-01T00:00:00.000001|1970-01-01T00:00:00.000000007Z|-123.45|1.5|\
             c0ffee00-0000-4000-8000-000000000001|[1, , 3]|{k: v}|{a: 1, c: z}|",
            "|true|-5||1.5|-0.25|ü|00ff|6162|B|2022-01-08|00:00:00.001|00:00:00.000002|\
             1970-01-01T00:00:01.500Z|1970-01-01T00:00:00.000001|1970-01-01T00:00:00.000000007Z|-123.45|1.5|\
             c0ffee00-0000-4000-8000-000000000001|[]|{}||",
        ]
    );
}

#[test]
fn a_writer_version_is_read_as_the_reader_schema() {
    let writer = record(json!([
        {"name": "gone", "type": {"type": "array", "items": {"type": "map", "values": "double"}}},
        {"name": "n", "type": "int"},
        {"name": "old_name", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["NEW", "A"]}},
        {"name": "u", "type": ["string", "null"]}
    ]));
    let reader = record(json!([
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "n", "type": "double"},
        {"name": "name", "aliases": ["old_name"], "type": ["null", "string"], "default": null},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["OTHER", "A"], "default": "OTHER"}},
        {"name": "u", "type": ["null", "string"]},
        {"name": "added", "type": {"type": "array", "items": "int"}, "default": [4, 5]},
        {"name": "note", "type": ["null", "string"], "default": null}
    ]));
    let rows = [json!({
        "gone": [{"a": 1.0}, {}], "n": 3, "old_name": "x", "at": 2, "e": "NEW", "u": null
    })];
    let (batch, problems) = decode(&writer, &reader, &encoded(&writer, &rows));
    assert_eq!(problems, []);
    assert_eq!(show(&batch)[1], "|1970-01-01T00:00:00.002Z|3.0|x|OTHER||[4, 5]||");
}

#[test]
fn incompatible_schemas_name_the_field() {
    let cases = [
        (json!("string"), json!("int"), "the writer's string cannot be read as the reader's int"),
        (json!("long"), json!("int"), "the writer's long"),
        (
            json!({"type": "long", "logicalType": "timestamp-micros"}),
            json!({"type": "long", "logicalType": "timestamp-millis"}),
            "TimestampMicros",
        ),
        (
            json!({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}),
            json!({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 3}),
            "decimal(9, 2)",
        ),
        (json!("long"), json!({"type": "int", "logicalType": "date"}), "(Date)"),
        (json!("long"), json!({"type": "int", "logicalType": "time-millis"}), "(TimeMillis)"),
        (json!("int"), json!({"type": "string", "logicalType": "uuid"}), "(Uuid)"),
        (
            json!({"type": "bytes", "logicalType": "decimal", "precision": 9}),
            json!({"type": "bytes", "logicalType": "uuid"}),
            "(decimal(9, 0)) cannot be read as the reader's bytes (Uuid)",
        ),
        (
            json!({"type": "fixed", "name": "D", "size": 12, "logicalType": "decimal", "precision": 9}),
            json!({"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"}),
            "(Duration)",
        ),
    ];
    for (from, into, expected) in cases {
        let nest = |inner: &Value| {
            record(json!([{"name": "o", "type":
                {"type": "record", "name": "O", "fields": [{"name": "v", "type": inner}]}}]))
        };
        let error = program::compile(&node(&nest(&from)), &node(&nest(&into))).unwrap_err();
        assert!(error.to_string().starts_with("`o.v`: "), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let writer = record(json!([]));
    let reader = record(json!([{"name": "v", "type": "int"}]));
    let error = program::compile(&node(&writer), &node(&reader)).unwrap_err();
    assert!(error.to_string().contains("`v`: the reader needs this field"), "{error}");
}

#[test]
fn a_name_wins_over_an_alias() {
    let writer = record(json!([{"name": "old", "type": "int"}, {"name": "new", "type": "int"}]));
    let reader = record(json!([{"name": "new", "type": "int", "aliases": ["old"]}]));
    let rows = encoded(&writer, &[json!({"old": 1, "new": 2}), json!({"old": 3, "new": 4})]);
    let (batch, problems) = decode(&writer, &reader, &rows);
    assert_eq!(problems, []);
    assert_eq!(show(&batch)[1..], ["|2|", "|4|"]);
}

#[test]
fn a_branch_that_lacks_a_field_is_bad_only_where_it_occurs() {
    let inner = |fields: Value| json!({"type": "record", "name": "N", "fields": fields});
    let field = |ty: Value| record(json!([{"name": "o", "type": ty}]));
    let old = inner(json!([{"name": "a", "type": "int"}]));
    let new = inner(json!([{"name": "a", "type": "int"}, {"name": "b", "type": "int"}]));
    let writer = field(json!(["null", old]));
    let rows = encoded(&writer, &[json!({"o": null}), json!({"o": {"a": 1}})]);
    let (batch, problems) = decode(&writer, &field(json!(["null", new])), &rows);
    assert_eq!(show(&batch)[1..], ["||"]);
    let [Problem::Refused(why)] = problems.as_slice() else { panic!("{problems:?}") };
    assert!(why.starts_with("`o.b`: the reader needs this field"), "{why}");
    // Without any branch that fits, the schema is refused; a branch that failed leaves no step in the path.
    let error = program::compile(&node(&writer), &node(&field(new))).unwrap_err();
    assert!(error.to_string().starts_with("`o.b`: the reader needs this field"), "{error}");
    let writer = field(json!([old, "string"]));
    let reader = field(inner(json!([{"name": "a", "type": "string"}])));
    let error = program::compile(&node(&writer), &node(&reader)).unwrap_err();
    assert!(error.to_string().starts_with("`o`: the writer's union"), "{error}");
}

#[test]
fn decimals_of_76_digits_take_32_bytes() {
    let schema = record(json!([
        {"name": "d", "type": {"type": "bytes", "logicalType": "decimal", "precision": 76, "scale": 0}}
    ]));
    let row = |bytes: &[u8]| {
        let mut row = Vec::new();
        encode::zigzag(bytes.len() as i64, &mut row);
        row.extend_from_slice(bytes);
        row
    };
    let largest = i256::from_i128(10).wrapping_pow(76).wrapping_sub(i256::ONE);
    let bytes = [largest.to_be_bytes(), largest.wrapping_neg().to_be_bytes()];
    // One more; and 2^256 - 1, which 32 bytes without a sign would make -1.
    let beyond = largest.wrapping_add(i256::ONE).to_be_bytes();
    let unsigned = [&[0u8][..], &[0xff; 32]].concat();
    let rows = [row(&bytes[0]), row(&beyond), row(&unsigned), row(&bytes[1])];
    let (batch, problems) = decode(&schema, &schema, &rows);
    assert_eq!(problems, [Problem::Decimal, Problem::Decimal]);
    let nines = "9".repeat(76);
    assert_eq!(show(&batch)[1..], [format!("|{nines}|"), format!("|-{nines}|")]);
}

fn nested_schema() -> Value {
    record(json!([
        {"name": "id", "type": "long"},
        {"name": "items", "type": {"type": "array", "items": {"type": "record", "name": "I", "fields": [
            {"name": "sku", "type": "string"}, {"name": "tags", "type": {"type": "map", "values": "int"}}]}}},
        {"name": "ok", "type": ["null", "boolean"]}
    ]))
}

fn nested_row(id: i64) -> Value {
    json!({"id": id, "items": [{"sku": "aa", "tags": {"x": 1}}, {"sku": "bbb", "tags": {}}], "ok": true})
}

#[test]
fn bad_records_are_told_apart_and_spoil_nobody() {
    let schema = nested_schema();
    let good = encoded(&schema, &[nested_row(1), nested_row(2)]);
    let mut trailing = good[0].clone();
    trailing.push(0);
    let cut = good[0][..good[0].len() - 1].to_vec();
    let mut bad_text = good[0].clone();
    bad_text[3] = 0xff;
    // 2^31 items claimed by five bytes.
    let bomb = [&[2u8][..], &[0xfe, 0xff, 0xff, 0xff, 0x0f]].concat();
    let mut bad_branch = good[0].clone();
    let last = bad_branch.len() - 2;
    bad_branch[last] = 8;
    let long = vec![0xff; 11];
    let rows = [good[0].clone(), trailing, cut, bad_text, bomb, bad_branch, long, good[1].clone()];
    let (batch, problems) = decode(&schema, &schema, &rows);
    assert_eq!(
        problems,
        [
            Problem::Trailing(1),
            Problem::Truncated,
            Problem::Utf8,
            Problem::Truncated,
            Problem::UnionBranch(4),
            Problem::Overflow,
        ]
    );
    assert_eq!(batch, decode(&schema, &schema, &good).0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bytes are: no panic, no row of its own, the neighbours as they were.
    #[test]
    fn damaged_records_spoil_nobody(cut in 0usize..40, flips in prop::collection::vec((0usize..40, any::<u8>()), 1..4)) {
        let schema = nested_schema();
        let good = encoded(&schema, &[nested_row(1), nested_row(2)]);
        let mut bad = good[0].clone();
        for (at, byte) in flips {
            let len = bad.len();
            bad[at % len] ^= byte;
        }
        bad.truncate(cut.max(1));
        let (batch, problems) = decode(&schema, &schema, &[good[0].clone(), bad, good[1].clone()]);
        let alone = decode(&schema, &schema, &good).0;
        if problems.is_empty() {
            prop_assert_eq!(batch.num_rows(), 3);
        } else {
            prop_assert_eq!(&batch, &alone);
        }
        prop_assert_eq!(batch.slice(0, 1), alone.slice(0, 1));
        prop_assert_eq!(batch.slice(batch.num_rows() - 1, 1), alone.slice(1, 1));
    }
}

#[test]
fn a_nullable_reader_takes_rows_of_nulls() {
    let schema = node(&nested_schema());
    let arrow = arrow_type::schema(&schema, true).unwrap();
    let mut columns: Vec<Column> = arrow.fields().iter().map(|field| Column::new(field).unwrap()).collect();
    columns.iter_mut().for_each(Column::push_null);
    let arrays = columns.into_iter().map(|column| column.finish().unwrap()).collect();
    let batch = RecordBatch::try_new(Arc::clone(&arrow), arrays).unwrap();
    assert_eq!(batch.num_rows(), 1);
}

/// apache-avro writes what we show: numbers of any size, each with its own scale.
#[test]
fn big_decimals_are_text() {
    let schema = record(json!([{"name": "n", "type": {"type": "bytes", "logicalType": "big-decimal"}}]));
    let theirs = apache_avro::Schema::parse(&schema).unwrap();
    let numbers = ["0", "-1.50", "123456789012345678901234567890.000000001", "7000"];
    let mut rows: Vec<Vec<u8>> = numbers
        .iter()
        .map(|number| {
            let number = apache_avro::types::Value::BigDecimal(number.parse().unwrap());
            let value = apache_avro::types::Value::Record(vec![("n".to_owned(), number)]);
            GenericDatumWriter::builder(&theirs).build().unwrap().write_value_to_vec(value).unwrap()
        })
        .collect();
    // A scale that would make gigabytes of text, and a number that is cut off.
    rows.push(vec![14, 2, 5, 0xfe, 0xff, 0xff, 0xff, 0x0f]);
    rows.push(vec![4, 4, 5]);
    let (batch, problems) = decode(&schema, &schema, &rows);
    assert_eq!(problems, [Problem::Decimal, Problem::Truncated]);
    let texts: Vec<&str> = batch.column(0).as_string::<i32>().iter().flatten().collect();
    assert_eq!(texts, numbers);
}
