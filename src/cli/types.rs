//! The table of types in `docs/types.md`: what becomes of each in Arrow, and of that in each sink. It is made by the code
//! that does it, of one value for each type.

use std::fmt::Write;

use anyhow::{Context, anyhow};
use arrow::array::{Array, ArrayRef, StructArray};
use arrow::datatypes::{DataType, FieldRef, Fields};

use crate::codec::avro::arrow_type;
use crate::codec::avro::node::Node;
use crate::codec::columns::Column;
use crate::codec::{JsonColumn, json_schema, protobuf};
use crate::config::plan::{Recursion, SchemaFormat};
use crate::encode;
use crate::render::Values;
use crate::sink::file::parquet_type;
use crate::sink::{delta, postgres};

/// A column of one row.
struct Sample {
    /// As in a schema.
    written: &'static str,
    field: FieldRef,
    array: ArrayRef,
}

/// What a sink makes of a column.
type Show = fn(&Sample) -> anyhow::Result<String>;

/// The sinks. Those that write alike share a column.
const SINKS: [(&str, Show); 6] = [
    ("Parquet", in_parquet),
    ("JSON Lines, Kafka", in_json),
    ("CSV, screen", in_csv),
    ("Avro", in_avro),
    ("PostgreSQL", in_postgres),
    ("Delta", in_delta),
];

/// How a type is written in an Avro schema, and a value of it as typed JSON has it.
const AVRO: [(&str, &str); 32] = [
    (r#""null""#, "null"),
    (r#""boolean""#, "true"),
    (r#""int""#, "5"),
    (r#""long""#, "5"),
    (r#""float""#, "1.5"),
    (r#""double""#, "1.5"),
    (r#""bytes""#, r#""AP8=""#),
    (r#""string""#, r#""text""#),
    (r#"{"type": "fixed", "name": "F", "size": 2}"#, r#""AP8=""#),
    (r#"{"type": "enum", "name": "E", "symbols": ["A", "B"]}"#, r#""B""#),
    (r#"{"type": "array", "items": "int"}"#, "[1, 2]"),
    (r#"{"type": "map", "values": "long"}"#, r#"{"k": 1}"#),
    (r#"{"type": "record", "name": "P", "fields": [{"name": "n", "type": "int"}]}"#, r#"{"n": 1}"#),
    (r#"["null", "long"]"#, "null"),
    (r#"["null", "long", "string"]"#, r#"{"long": 5}"#),
    (
        r#"{"type": "record", "name": "T", "fields": [{"name": "next", "type": ["null", "T"]}]}"#,
        r#"{"next": {"next": null}}"#,
    ),
    (r#"{"type": "int", "logicalType": "date"}"#, r#""2026-01-02""#),
    (r#"{"type": "int", "logicalType": "time-millis"}"#, r#""03:04:05.678""#),
    (r#"{"type": "long", "logicalType": "time-micros"}"#, r#""03:04:05.678""#),
    (r#"{"type": "long", "logicalType": "timestamp-millis"}"#, r#""2026-01-02T03:04:05.678Z""#),
    (r#"{"type": "long", "logicalType": "timestamp-micros"}"#, r#""2026-01-02T03:04:05.678Z""#),
    (r#"{"type": "long", "logicalType": "timestamp-nanos"}"#, r#""2026-01-02T03:04:05.678Z""#),
    (r#"{"type": "long", "logicalType": "local-timestamp-millis"}"#, r#""2026-01-02T03:04:05.678""#),
    (r#"{"type": "long", "logicalType": "local-timestamp-micros"}"#, r#""2026-01-02T03:04:05.678""#),
    (r#"{"type": "long", "logicalType": "local-timestamp-nanos"}"#, r#""2026-01-02T03:04:05.678""#),
    (r#"{"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}"#, "-123.45"),
    (
        r#"{"type": "bytes", "logicalType": "decimal", "precision": 50, "scale": 2}"#,
        r#""123456789012345678901234567890123456789.25""#,
    ),
    (r#"{"type": "bytes", "logicalType": "big-decimal"}"#, r#""1.50""#),
    (r#"{"type": "string", "logicalType": "uuid"}"#, r#""c0ffee00-0000-4000-8000-000000000001""#),
    (r#"["null", {"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"}]"#, "null"),
    (r#"{"type": "array", "items": ["null", "int"]}"#, "[1, null]"),
    (r#"{"type": "map", "values": ["int", "string"]}"#, r#"{"k": {"string": "x"}}"#),
];

/// How a field is written in a Protobuf file, and the bytes of one message. `M` is the message around it.
const PROTOBUF: [(&str, &[u8]); 29] = [
    ("int32 v = 1;", &[8, 5]),
    ("sint32 v = 1;", &[8, 9]),
    ("sfixed32 v = 1;", &[13, 5, 0, 0, 0]),
    ("uint32 v = 1;", &[8, 5]),
    ("fixed32 v = 1;", &[13, 5, 0, 0, 0]),
    ("int64 v = 1;", &[8, 5]),
    ("sint64 v = 1;", &[8, 9]),
    ("sfixed64 v = 1;", &[9, 5, 0, 0, 0, 0, 0, 0, 0]),
    ("uint64 v = 1;", &[8, 5]),
    ("fixed64 v = 1;", &[9, 5, 0, 0, 0, 0, 0, 0, 0]),
    ("float v = 1;", &[13, 0, 0, 0xc0, 0x3f]),
    ("double v = 1;", &[9, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f]),
    ("bool v = 1;", &[8, 1]),
    ("string v = 1;", &[10, 4, b't', b'e', b'x', b't']),
    ("bytes v = 1;", &[10, 2, 0, 0xff]),
    ("E v = 1;", &[8, 1]),
    ("optional int32 v = 1;", &[]),
    ("P v = 1;", &[10, 2, 8, 1]),
    ("repeated int32 v = 1;", &[10, 2, 1, 2]),
    ("map<string, int64> v = 1;", &[10, 5, 10, 1, b'k', 16, 1]),
    ("oneof o { int32 v = 1; string w = 2; }", &[8, 5]),
    ("M v = 1;", &[10, 2, 10, 0]),
    ("google.protobuf.Timestamp v = 1;", &[10, 2, 8, 1]),
    ("google.protobuf.Duration v = 1;", &[10, 2, 8, 1]),
    ("google.protobuf.StringValue v = 1;", &[10, 3, 10, 1, b'x']),
    ("google.protobuf.Int64Value v = 1;", &[10, 2, 8, 5]),
    ("google.protobuf.Struct v = 1;", &[10, 9, 10, 7, 10, 1, b'k', 18, 2, 32, 1]),
    ("google.protobuf.Value v = 1;", &[10, 2, 32, 1]),
    ("google.protobuf.Any v = 1;", &[10, 0]),
];

/// How a required property is written in a JSON Schema, and a value.
const JSON_SCHEMA: [(&str, &str); 23] = [
    (r#"{"type": "integer"}"#, "5"),
    (r#"{"type": "integer", "connect.type": "int32"}"#, "5"),
    (r#"{"type": "number"}"#, "1.5"),
    (r#"{"type": "number", "connect.type": "float32"}"#, "1.5"),
    (r#"{"type": "boolean"}"#, "true"),
    (r#"{"type": "null"}"#, "null"),
    (r#"{"type": "string"}"#, r#""text""#),
    (r#"{"type": "string", "connect.type": "bytes"}"#, r#""AP8=""#),
    (r#"{"type": "string", "format": "date"}"#, r#""2026-01-02""#),
    (r#"{"type": "string", "format": "date-time"}"#, r#""2026-01-02T03:04:05.678Z""#),
    (r#"{"type": "string", "format": "uuid"}"#, r#""c0ffee00-0000-4000-8000-000000000001""#),
    (r#"{"type": "integer", "title": "org.apache.kafka.connect.data.Date"}"#, "20455"),
    (r#"{"type": "integer", "title": "org.apache.kafka.connect.data.Time"}"#, "1500"),
    (r#"{"type": "integer", "title": "org.apache.kafka.connect.data.Timestamp"}"#, "1500"),
    (r#"{"enum": ["A", "B"]}"#, r#""B""#),
    (r#"{"type": "array", "items": {"type": "integer"}}"#, "[1, 2]"),
    (r#"{"type": "object", "properties": {"n": {"type": "integer"}}}"#, r#"{"n": 1}"#),
    (r#"{"type": "object", "additionalProperties": {"type": "integer"}}"#, r#"{"k": 1}"#),
    (r#"{"type": "object"}"#, r#"{"k": [1]}"#),
    (r#"{"oneOf": [{"type": "null"}, {"type": "integer"}]}"#, "null"),
    (r#"{"type": ["integer", "string"]}"#, "5"),
    (
        r#"{"oneOf": [{"title": "Card", "properties": {"card": {"type": "string"}}, "required": ["card"]}, {"type": "string"}]}"#,
        r#"{"card": "x"}"#,
    ),
    ("{}", r#"[1, "x"]"#),
];

/// Markdown, between the two lines that `docs/types.md` has around it.
///
/// # Errors
/// If a type of the table cannot be read any more.
pub fn markdown() -> anyhow::Result<String> {
    let mut out =
        String::from("<!-- types: made by `sidestream config-schema --types`; a test keeps it fresh -->\n");
    table("Avro", &AVRO.map(|(written, json)| avro(written, json)), &mut out)?;
    table("Protobuf", &PROTOBUF.map(|(written, bytes)| of_protobuf(written, bytes)), &mut out)?;
    table("JSON Schema", &JSON_SCHEMA.map(|(written, json)| of_json_schema(written, json)), &mut out)?;
    out.push_str("\n<!-- types: end -->\n");
    Ok(out)
}

fn table(format: &str, samples: &[anyhow::Result<Sample>], out: &mut String) -> anyhow::Result<()> {
    let sinks: Vec<&str> = SINKS.iter().map(|(name, _)| *name).collect();
    let rule = "---|".repeat(sinks.len());
    write!(out, "\n| {format} | Arrow | {} |\n|---|---|{rule}\n", sinks.join(" | "))?;
    for sample in samples {
        let sample = sample.as_ref().map_err(|error| anyhow!("{format}: {error:#}"))?;
        let null = if sample.field.is_nullable() { ", nullable" } else { "" };
        let data_type = format!("{}{null}", sample.field.data_type());
        write!(out, "| {} | {} |", code(sample.written), code(&data_type))?;
        for (_, show) in SINKS {
            write!(out, " {} |", code(&show(sample)?))?;
        }
        out.push('\n');
    }
    Ok(())
}

/// Text as it is; nothing stays nothing.
fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{}`", text.replace('|', "\\|")) }
}

fn avro(written: &'static str, json: &str) -> anyhow::Result<Sample> {
    let text =
        format!(r#"{{"type": "record", "name": "R", "fields": [{{"name": "v", "type": {written}}}]}}"#);
    let node = Node::parse_with(&text, &[], Recursion::Json)?;
    of_json(written, node, json)
}

fn of_json_schema(written: &'static str, json: &str) -> anyhow::Result<Sample> {
    let text = format!(r#"{{"properties": {{"v": {written}}}, "required": ["v"]}}"#);
    let node = json_schema::parse_with(&text, &[], Recursion::Json)?;
    of_json(written, node, json)
}

/// The field `v` of a record, with a value.
fn of_json(written: &'static str, node: Node, json: &str) -> anyhow::Result<Sample> {
    let schema = arrow_type::schema(&node, false)?;
    let mut record = JsonColumn::new(node, DataType::Struct(schema.fields().clone()))?;
    record.push(Some(format!(r#"{{"v": {json}}}"#).as_bytes()));
    let record = record.finish()?;
    let columns = record.as_any().downcast_ref::<StructArray>();
    let columns = columns.with_context(|| format!("{written} is no column"))?;
    anyhow::ensure!(columns.null_count() == 0, "{json} is no {written}");
    Ok(Sample { written, field: schema.fields()[0].clone(), array: columns.column(0).clone() })
}

fn of_protobuf(written: &'static str, bytes: &[u8]) -> anyhow::Result<Sample> {
    let imports = ["timestamp", "duration", "wrappers", "struct", "any"]
        .map(|name| format!("import \"google/protobuf/{name}.proto\"; "))
        .concat();
    let text = format!(
        "syntax = \"proto3\"; {imports} message M {{ {written} }} message P {{ int32 n = 1; }} enum E {{ A = 0; B = 1; }}"
    );
    let file = protobuf::parse(&text, &[])?.recursive(Recursion::Json);
    let reader = protobuf::Reader::new(&file, Some("M"), false)?;
    let fields = reader.schema().fields().clone();
    let mut columns = fields.iter().map(Column::new).collect::<Result<Vec<_>, _>>()?;
    let payload = [&[0][..], bytes].concat();
    let decoded = reader.writer(&file).decode(&payload, &mut columns, &mut protobuf::Scratch::default());
    decoded.map_err(|bad| anyhow!("{written}: {}", bad.message))?;
    let column = columns.into_iter().next().with_context(|| format!("{written} is no column"))?;
    Ok(Sample { written, field: fields[0].clone(), array: column.finish()? })
}

fn in_parquet(sample: &Sample) -> anyhow::Result<String> {
    Ok(parquet_type(&sample.field)?)
}

fn in_json(sample: &Sample) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    Values::new(&sample.array)?.write(0, &mut bytes);
    Ok(String::from_utf8(bytes)?)
}

fn in_csv(sample: &Sample) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    Values::new(&sample.array)?.write_plain(0, &mut bytes);
    Ok(String::from_utf8(bytes)?)
}

/// The type in the schema that is made of the columns; nothing where there is none.
fn in_avro(sample: &Sample) -> anyhow::Result<String> {
    let row = DataType::Struct(Fields::from(vec![sample.field.clone()]));
    let Ok(text) = encode::schema_text(SchemaFormat::Avro, &row, "R", None) else {
        return Ok(String::new());
    };
    let schema: serde_json::Value = serde_json::from_str(&text)?;
    Ok(schema["fields"][0]["type"].to_string())
}

/// The type of the column that is created.
fn in_postgres(sample: &Sample) -> anyhow::Result<String> {
    postgres::declared(sample.field.data_type()).map_err(|data_type| anyhow!("no column takes {data_type}"))
}

/// The type of the column that is created; nothing where there is none.
fn in_delta(sample: &Sample) -> anyhow::Result<String> {
    Ok(delta::declared(sample.field.data_type()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_table_is_a_column_of_every_sink() {
        let text = markdown().unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, AVRO.len() + PROTOBUF.len() + JSON_SCHEMA.len());
        let row = |written: &str| {
            let start = format!("| `{written}` |");
            text.lines().find(|line| line.starts_with(&start)).unwrap_or_default().to_owned()
        };
        assert!(row("\"int\"").contains("| `INT32` | `5` | `5` |"), "{text}");
        assert!(row("int64 v = 1;").contains("| `Int64` | `INT64` | `5` | `5` |"), "{text}");
        let union = row("[\"null\", \"long\", \"string\"]");
        assert!(union.contains("`group` | `{\"long\":5,\"string\":null}`"), "{union}");
        assert!(union.ends_with("| `jsonb` | `struct<long: long, string: string>` |"), "{union}");
        let date = row("{\"type\": \"string\", \"format\": \"date\"}");
        assert!(date.contains("| `Date32` | `INT32 (DATE)` | `\"2026-01-02\"` | `2026-01-02` |"), "{date}");
    }
}
