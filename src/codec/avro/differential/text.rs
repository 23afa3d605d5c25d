//! The text of a schema, for everybody to parse: parsed by the codec it has to give the same node again.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::generate::{NAMESPACE, RENAMED_TYPE, name_of};
use crate::codec::avro::node::{Field, Kind, Logical, Node};

/// The schema as JSON text. A type that was there before is its name alone.
pub fn schema_text(node: &Node) -> String {
    schema(node, &mut HashSet::new()).to_string()
}

fn schema(node: &Node, seen: &mut HashSet<String>) -> Value {
    let mut head = Map::new();
    if let Some(name) = name_of(node) {
        if !seen.insert(name.to_owned()) {
            return json!(name);
        }
        let local = name.rsplit_once('.').map_or(name, |(_, local)| local);
        head.insert("name".to_owned(), json!(local));
        if seen.len() == 1 {
            // Types inside inherit it.
            head.insert("namespace".to_owned(), json!(NAMESPACE));
        }
        if let Some(old) = local.strip_suffix(RENAMED_TYPE) {
            head.insert("aliases".to_owned(), json!([old]));
        }
    }
    let (kind, more) = match &node.kind {
        Kind::Null => ("null", json!({})),
        Kind::Boolean => ("boolean", json!({})),
        Kind::Int => ("int", json!({})),
        Kind::Long => ("long", json!({})),
        Kind::Float => ("float", json!({})),
        Kind::Double => ("double", json!({})),
        Kind::Bytes => ("bytes", json!({})),
        Kind::String => ("string", json!({})),
        Kind::Union(arms) => return arms.iter().map(|arm| schema(arm, seen)).collect(),
        Kind::Choice(_) => panic!("no type of Avro"),
        Kind::Array(item) => ("array", json!({"items": schema(item, seen)})),
        Kind::Map(value) => ("map", json!({"values": schema(value, seen)})),
        Kind::Fixed { size, .. } => ("fixed", json!({"size": size})),
        Kind::Enum(symbols) => {
            let names: Vec<&str> = symbols.symbols.iter().map(|symbol| &**symbol).collect();
            match &symbols.default {
                Some(default) => ("enum", json!({"symbols": names, "default": &**default})),
                None => ("enum", json!({"symbols": names})),
            }
        }
        Kind::Record(record) => {
            let fields: Vec<Value> = record.fields.iter().map(|field| field_schema(field, seen)).collect();
            ("record", json!({"fields": fields}))
        }
    };
    head.insert("type".to_owned(), json!(kind));
    head.extend(more.as_object().cloned().unwrap_or_default());
    head.extend(logical_schema(node.logical));
    if head.len() == 1 { json!(kind) } else { Value::Object(head) }
}

fn field_schema(field: &Field, seen: &mut HashSet<String>) -> Value {
    let mut text = json!({"name": field.name, "type": schema(&field.node, seen)});
    if let Some(default) = &field.default {
        text["default"] = default.clone();
    }
    if !field.aliases.is_empty() {
        text["aliases"] = json!(field.aliases);
    }
    text
}

fn logical_schema(logical: Option<Logical>) -> Map<String, Value> {
    use Logical as L;
    let name = match logical {
        // JSON text is no type of Avro.
        None | Some(L::Json) => return Map::new(),
        Some(L::Date) => "date",
        Some(L::TimeMillis) => "time-millis",
        Some(L::TimeMicros) => "time-micros",
        Some(L::TimestampMillis) => "timestamp-millis",
        Some(L::TimestampMicros) => "timestamp-micros",
        Some(L::TimestampNanos) => "timestamp-nanos",
        Some(L::LocalTimestampMillis) => "local-timestamp-millis",
        Some(L::LocalTimestampMicros) => "local-timestamp-micros",
        Some(L::LocalTimestampNanos) => "local-timestamp-nanos",
        Some(L::BigDecimal) => "big-decimal",
        Some(L::Uuid) => "uuid",
        Some(L::Duration) => "duration",
        Some(L::Decimal { .. }) => "decimal",
    };
    let mut attributes = Map::new();
    attributes.insert("logicalType".to_owned(), json!(name));
    if let Some(L::Decimal { precision, scale }) = logical {
        attributes.insert("precision".to_owned(), json!(precision));
        attributes.insert("scale".to_owned(), json!(scale));
    }
    attributes
}
