//! Change events in JSON, bare or as `{"schema": …, "payload": …}`.
//!
//! The schema in a record is not read but for its name: rows are read as the route's schema says. A column that this
//! schema does not have is an error, so that one added to the table is not lost without a word.

use std::collections::HashSet;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::codec::avro::big_decimal;
use crate::codec::avro::node::{Kind, Logical, Node, Record};
use crate::codec::columns::{Column, Data, push_offset};
use crate::codec::json::{put_any, put_object};
use crate::model::code;

use super::schema::{self, SourceType, is_control};
use super::{Bad, Event, Image, Op};

static SOURCE: LazyLock<Node> = LazyLock::new(schema::source_node);

/// Takes an event apart; what happened and the source go into `head`.
///
/// # Errors
/// If it is no event.
pub fn read<'w, 'b>(json: Value, head: &mut [Column]) -> Result<Event<'w, 'b>, Bad> {
    let (name, json) = unwrapped(json);
    if name.is_some_and(|name| is_control(&name)) || json.is_null() {
        return Ok(Event::Control);
    }
    let Value::Object(mut event) = json else {
        return Err(Bad::new(code::TYPE_MISMATCH, "no change event: it is not an object"));
    };
    let Some(text) = event.get("op").and_then(Value::as_str) else {
        if has_control_shape(&event) {
            return Ok(Event::Control);
        }
        return Err(Bad::new(code::TYPE_MISMATCH, "no change event: it has no text `op`"));
    };
    let op = Op::of(text)
        .ok_or_else(|| Bad::new(code::TYPE_MISMATCH, "field `op`: it is no change that is known"))?;
    let mut columns = head.iter_mut();
    if let Some(column) = columns.next() {
        put_text(text, column)?;
    }
    if let Some(column) = columns.next() {
        let source = source(event.get("source"));
        put_any(&SOURCE, &source, column)?;
    }
    let mut image =
        |name: &str| event.get_mut(name).map(Value::take).filter(|row| !row.is_null()).map(Image::Json);
    Ok(Event::Change { op, before: image("before"), after: image("after") })
}

/// The payload of a record that has its schema with it, with the schema's name; others as they are.
pub fn unwrapped(mut json: Value) -> (Option<String>, Value) {
    let Some(both) = json.as_object_mut().filter(|both| both.len() == 2) else {
        return (None, json);
    };
    let name = both.get("schema").map(|schema| schema.get("name").and_then(Value::as_str).map(str::to_owned));
    match (name, both.get_mut("payload").map(Value::take)) {
        (Some(name), Some(payload)) => (name, payload),
        // What was taken is put back.
        (None, Some(payload)) => {
            both.insert("payload".to_owned(), payload);
            (None, json)
        }
        (_, None) => (None, json),
    }
}

/// What the topics beside those of tables hold: times only (heartbeats), a transaction's begin or end, statements that
/// changed a table.
fn has_control_shape(event: &Map<String, Value>) -> bool {
    let has = |name: &str| event.contains_key(name);
    let is_heartbeat =
        !event.is_empty() && event.keys().all(|name| matches!(name.as_str(), "ts_ms" | "ts_us" | "ts_ns"));
    let is_transaction = has("status") && has("id") && has("data_collections");
    let is_schema_change = has("source") && has("ddl") && has("tableChanges");
    is_heartbeat || is_transaction || is_schema_change
}

/// The fields of a source that column `_source` has; what is of another type is null.
fn source(json: Option<&Value>) -> Value {
    let Some(json) = json.filter(|json| json.is_object()) else {
        return Value::Null;
    };
    let field = |(name, given, kind): (&str, &str, SourceType)| {
        let value = match (kind, json.get(given)) {
            (SourceType::Text, Some(Value::String(text))) => Value::String(text.clone()),
            // Older connectors say so of `snapshot`.
            (SourceType::Text, Some(Value::Bool(is_so))) => Value::String(is_so.to_string()),
            (SourceType::Number | SourceType::Time, Some(Value::Number(number))) if number.is_i64() => {
                Value::Number(number.clone())
            }
            _ => Value::Null,
        };
        (name.to_owned(), value)
    };
    Value::Object(schema::SOURCE_FIELDS.into_iter().map(field).collect())
}

/// Puts a row into the table's columns.
///
/// # Errors
/// What does not fit; then the columns may hold parts of it and have to be truncated.
pub fn put(row: &Record, image: Value, values: &mut [Column]) -> Result<(), Bad> {
    let Value::Object(mut image) = image else {
        return Err(Bad::new(code::TYPE_MISMATCH, "no change event: its row is not an object"));
    };
    let known = row.fields.iter().filter(|field| image.contains_key(&field.name)).count();
    if known < image.len() {
        let names: HashSet<&str> = row.fields.iter().map(|field| field.name.as_str()).collect();
        let is_unknown = |name: &&String| !names.contains(name.as_str());
        let name = image.keys().find(is_unknown).cloned().unwrap_or_default();
        return Err(Bad::new(
            code::UNKNOWN_COLUMN,
            format!("the route's schema has no column `{name}`: write a new one into its file"),
        ));
    }
    for field in &row.fields {
        if let Some(value) = image.get_mut(&field.name) {
            mend(&field.node, value);
        }
    }
    Ok(put_object(row, &Value::Object(image), values)?)
}

/// Kafka Connect writes a decimal as its unscaled bytes in base64, which could also be read as other digits.
fn mend(node: &Node, value: &mut Value) {
    if let Some(Logical::Decimal { scale, .. }) = node.logical {
        let raw = value.as_str().and_then(|text| STANDARD.decode(text).ok());
        if let Some(text) = raw.and_then(|raw| big_decimal::text(&raw, i32::from(scale))) {
            *value = Value::String(text);
        }
        return;
    }
    match (&node.kind, value) {
        (Kind::Union(arms), value) => arms.iter().for_each(|arm| mend(arm, value)),
        (Kind::Array(item), Value::Array(values)) => values.iter_mut().for_each(|value| mend(item, value)),
        (Kind::Map(item), Value::Object(values)) => values.values_mut().for_each(|value| mend(item, value)),
        (Kind::Record(record), Value::Object(values)) => {
            for field in &record.fields {
                if let Some(value) = values.get_mut(&field.name) {
                    mend(&field.node, value);
                }
            }
        }
        _ => {}
    }
}

fn put_text(text: &str, column: &mut Column) -> Result<(), Bad> {
    if let Data::Bytes { offsets, bytes } = &mut column.data {
        bytes.extend_from_slice(text.as_bytes());
        push_offset(offsets, bytes.len()).map_err(|_| {
            Bad::new(code::SIZE, "the columns of the batch grew beyond 2 GiB; set a smaller `batch:`")
        })?;
    }
    column.mark_valid();
    Ok(())
}
