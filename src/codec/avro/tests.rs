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
use crate::config::plan::Recursion;
use crate::render::JsonRows;

/// Tests that schemas are refused which contain themselves are beside `node`.
fn node(schema: &Value) -> Node {
    Node::parse_with(&schema.to_string(), &[], Recursion::Json).unwrap()
}

/// The rows as JSON Lines has them.
fn lines(batch: &RecordBatch) -> Vec<String> {
    let rows = JsonRows::new(batch).unwrap();
    let line = |row| {
        let mut line = Vec::new();
        rows.write(row, &mut line);
        String::from_utf8(line).unwrap()
    };
    (0..rows.row_count()).map(line).collect()
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

#[test]
fn a_union_of_several_types_is_a_struct_of_nullables() {
    let named = |name: &str, field: &str| json!({"type": "record", "name": name, "fields": [{"name": field, "type": "int"}]});
    let schema = record(json!([
        {"name": "u", "type": ["null", "int", "string", named("a.P", "x"), named("b.P", "y"), named("Q", "z")]},
        {"name": "xs", "type": {"type": "array", "items": ["long", "boolean"]}},
        {"name": "m", "type": {"type": "map", "values": ["double", {"type": "array", "items": "int"}]}}
    ]));
    let values = [json!(null), json!(5), json!("x"), json!({"x": 1}), json!({"y": 2}), json!({"z": 3})];
    let row = |u: &Value| json!({"u": u, "xs": [1, true], "m": {"k": [2]}});
    let rows: Vec<Value> = values.iter().map(row).collect();
    let (batch, problems) = decode(&schema, &schema, &encoded(&schema, &rows));
    assert_eq!(problems, []);
    let none = r#""int":null,"string":null,"a.P":null,"b.P":null,"Q":null"#;
    let expected = [
        "null".to_owned(),
        format!("{{{}}}", none.replace("\"int\":null", "\"int\":5")),
        format!("{{{}}}", none.replace("\"string\":null", "\"string\":\"x\"")),
        format!("{{{}}}", none.replace("\"a.P\":null", "\"a.P\":{\"x\":1}")),
        format!("{{{}}}", none.replace("\"b.P\":null", "\"b.P\":{\"y\":2}")),
        format!("{{{}}}", none.replace("\"Q\":null", "\"Q\":{\"z\":3}")),
    ];
    let rest = r#""xs":[{"long":1,"boolean":null},{"long":null,"boolean":true}],"m":{"k":{"double":null,"array":[2]}}"#;
    let expected: Vec<String> = expected.iter().map(|u| format!("{{\"u\":{u},{rest}}}")).collect();
    assert_eq!(lines(&batch), expected);
    // A member is nullable whatever the union is; the struct is, if null is a branch.
    let fields = batch.schema();
    assert!(fields.field(0).is_nullable() && !fields.field(1).is_nullable());
}

#[test]
fn the_branch_of_a_reader_is_the_nearest_that_takes_the_type() {
    let named = |name: &str, fields: Value| json!({"type": "record", "name": name, "fields": fields});
    let x = || json!([{"name": "x", "type": "int"}]);
    let wide = || json!([{"name": "x", "type": "int"}, {"name": "y", "type": "int"}]);
    let symbols = |name: &str| json!({"type": "enum", "name": name, "symbols": ["A"]});
    for (writer, reader, value, expected) in [
        // What it is, not what it could become; then the first that it can become.
        (json!("int"), json!(["long", "int"]), json!(1), r#"{"long":null,"int":1}"#),
        (json!("int"), json!(["double", "long"]), json!(1), r#"{"double":1.0,"long":null}"#),
        (json!("string"), json!(["long", "bytes"]), json!("x"), r#"{"long":null,"bytes":"eA=="}"#),
        (json!(["null", "int"]), json!(["string", "int", "null"]), json!(1), r#"{"string":null,"int":1}"#),
        (json!(["null", "int"]), json!(["string", "int", "null"]), json!(null), "null"),
        (json!(["boolean", "string"]), json!(["string", "int"]), json!("x"), r#"{"string":"x","int":null}"#),
        // By the full name, else by the name, else by what fits.
        (
            named("b.P", x()),
            json!([named("a.P", x()), named("b.P", x())]),
            json!({"x": 1}),
            r#"{"a.P":null,"b.P":{"x":1}}"#,
        ),
        (
            named("c.P", x()),
            json!([named("a.O", x()), named("a.P", x())]),
            json!({"x": 1}),
            r#"{"O":null,"P":{"x":1}}"#,
        ),
        (
            named("New", x()),
            json!([named("Wide", wide()), named("Old", x())]),
            json!({"x": 1}),
            r#"{"Wide":null,"Old":{"x":1}}"#,
        ),
        (symbols("E"), json!([symbols("D"), symbols("E")]), json!("A"), r#"{"D":null,"E":"A"}"#),
        // One of a union's branches, where the reader has no union of several.
        (json!(["int", "string"]), json!("long"), json!(1), "1"),
    ] {
        let field = |ty: &Value| record(json!([{"name": "v", "type": ty}]));
        let rows = encoded(&field(&writer), &[json!({"v": value})]);
        let (batch, problems) = decode(&field(&writer), &field(&reader), &rows);
        assert_eq!(problems, [], "{writer} as {reader}");
        assert_eq!(lines(&batch), [format!("{{\"v\":{expected}}}")], "{writer} as {reader}");
    }
    let field = |ty: Value| node(&record(json!([{"name": "v", "type": ty}])));
    let error = program::compile(&field(json!("boolean")), &field(json!(["int", "string"]))).unwrap_err();
    let expected = "`v`: the writer's boolean cannot be read as the reader's union of int, string";
    assert_eq!(error.to_string(), expected);
    // A branch without a place is bad only where it occurs.
    let (writer, reader) = (json!(["boolean", "int"]), json!(["int", "string"]));
    let field = |ty: Value| record(json!([{"name": "v", "type": ty}]));
    let rows = encoded(&field(writer.clone()), &[json!({"v": true}), json!({"v": 1})]);
    let (batch, problems) = decode(&field(writer), &field(reader), &rows);
    assert_eq!(lines(&batch), [r#"{"v":{"int":1,"string":null}}"#]);
    assert!(matches!(problems.as_slice(), [Problem::Refused(_)]), "{problems:?}");
}

/// One byte for each item says which of many columns is not null.
#[test]
fn a_union_of_wide_records_stays_small() {
    let fields = |from: usize| -> Vec<Value> {
        (from..from + 2000)
            .map(|name| json!({"name": format!("f{name}"), "type": "int", "default": 0}))
            .collect()
    };
    let wide = |name: &str, from| json!({"type": "record", "name": name, "fields": fields(from)});
    let reader = record(json!([{"name": "xs", "type": {"type": "array", "items":
        ["null", "boolean", wide("A", 0), wide("B", 2000)]}}]));
    let writer = record(json!([{"name": "xs", "type": {"type": "array", "items": ["null", "boolean"]}}]));
    let count = 50_000;
    let mut row = Vec::new();
    encode::zigzag(count, &mut row);
    row.extend(std::iter::repeat_n([2, 1], usize::try_from(count).unwrap()).flatten());
    row.push(0);
    let (batch, problems) = decode(&writer, &reader, &[row]);
    assert_eq!((batch.num_rows(), problems), (0, vec![Problem::Amplified]));
}

fn tree() -> Value {
    record(json!([
        {"name": "value", "type": "int"},
        {"name": "children", "type": {"type": "array", "items": "R"}}
    ]))
}

#[test]
fn a_record_that_contains_itself_is_json_text_from_there_on() {
    // 1, with 2 and 3 below it, and 4 below 3.
    let row = vec![2, 4, 4, 0, 6, 2, 8, 0, 0, 0];
    let (batch, problems) = decode(&tree(), &tree(), &[row.clone(), row[..8].to_vec()]);
    assert_eq!(problems, [Problem::Truncated]);
    assert_eq!(batch.num_rows(), 1);
    let items = batch.column(1).as_list::<i32>().value(0);
    let texts: Vec<&str> = items.as_string::<i32>().iter().flatten().collect();
    assert_eq!(
        texts,
        [r#"{"value":2,"children":[]}"#, r#"{"value":3,"children":[{"value":4,"children":[]}]}"#]
    );
    // A reader that does not want it goes past it.
    let reader = record(json!([{"name": "value", "type": "long"}]));
    let (batch, problems) = decode(&tree(), &reader, &[row]);
    assert_eq!((lines(&batch), problems), (vec![r#"{"value":1}"#.to_owned()], vec![]));
}

#[test]
fn text_is_of_the_reader_in_the_forms_of_all_text() {
    let at = json!({"type": "long", "logicalType": "timestamp-millis"});
    let number = json!({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2});
    let uuid = json!({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"});
    let fields = |first: Value, more: Value| {
        let mut fields = vec![
            first,
            json!({"name": "at", "type": at}),
            json!({"name": "d", "type": number}),
            json!({"name": "b", "type": "bytes"}),
            json!({"name": "u", "type": ["null", "long", "string"]}),
            json!({"name": "m", "type": {"type": "map", "values": "float"}}),
            json!({"name": "id", "type": uuid}),
        ];
        fields.extend(more.as_array().unwrap().iter().cloned());
        record(json!([{"name": "next", "type": ["null", {"type": "record", "name": "N", "fields": [
            {"name": "v", "type": {"type": "record", "name": "V", "fields": fields}},
            {"name": "next", "type": ["null", "N"]}]}]}]))
    };
    let writer = fields(json!({"name": "n", "type": "int"}), json!([]));
    let reader = fields(
        json!({"name": "m2", "aliases": ["n"], "type": "double"}),
        json!([{"name": "note", "type": "string", "default": "d\"q"}]),
    );
    let v = [
        vec![2],                               // n: 1
        vec![0xb8, 0x17],                      // at: 1500
        vec![4, 0xcf, 0xc7],                   // d: -123.45
        vec![4, 0, 0xff],                      // b
        vec![4, 2, b'x'],                      // u: a string
        vec![2, 2, b'k', 0, 0, 0xc0, 0x7f, 0], // m: NaN
        vec![0xab; 16],                        // id
    ]
    .concat();
    // An N in an N: the second one is text.
    let row = [&[2][..], &v, &[2], &v, &[0]].concat();
    let (batch, problems) = decode(&writer, &reader, &[row]);
    assert_eq!(problems, []);
    let next = batch.column(0).as_struct().column(1).as_string::<i32>();
    let id = "abababab-abab-abab-abab-abababababab";
    let expected = format!(
        r#"{{"v":{{"m2":1.0,"at":"1970-01-01T00:00:01.500Z","d":-123.45,"b":"AP8=","u":{{"string":"x"}},"m":{{"k":null}},"id":"{id}","note":"d\"q"}},"next":null}}"#
    );
    assert_eq!(next.value(0), expected);
    serde_json::from_str::<Value>(next.value(0)).unwrap();
}

#[test]
fn values_without_end_are_bad() {
    let list = record(json!([{"name": "next", "type": ["null", "R"]}]));
    let row = |levels: usize| [vec![2; levels], vec![0]].concat();
    let reader = record(json!([{"name": "other", "type": "int", "default": 1}]));
    for reader in [&list, &reader] {
        let rows = [row(90), row(150), row(1_000_000), row(2)];
        let (batch, problems) = decode(&list, reader, &rows);
        assert_eq!(batch.num_rows(), 2);
        assert_eq!(problems, [Problem::Depth, Problem::Depth]);
        assert_eq!(problems[0].code(), "depth");
    }
    // Names are not on the wire: a few bytes must not become a book.
    let long = "n".repeat(1000);
    let wide = record(json!([
        {"name": long, "type": "int", "default": 1},
        {"name": "xs", "type": {"type": "array", "items": "R"}}
    ]));
    let count = 100_000;
    let mut row = vec![0];
    encode::zigzag(1, &mut row);
    row.push(0);
    encode::zigzag(count, &mut row);
    row.extend(std::iter::repeat_n([0, 0], usize::try_from(count).unwrap()).flatten());
    row.extend([0, 0]);
    let (_, problems) = decode(&wide, &wide, &[row]);
    assert_eq!(problems, [Problem::Amplified]);
}
