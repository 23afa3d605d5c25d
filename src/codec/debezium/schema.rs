//! Schemas of change events: which part of them is the table's row, and what Kafka Connect says of a column besides its
//! Avro type.
//!
//! Debezium's times are plain numbers and texts to Avro. Their meaning stands beside the type, as `connect.name`, and
//! becomes the logical type that Avro has for it.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field as ArrowField, Fields, TimeUnit};
use serde_json::Value;

use crate::codec::avro::arrow_type::nullable;
use crate::codec::avro::node::{DEPTH_MAX, FIELDS_MAX, Field, Kind, Logical, Node, Record, SchemaError};
use crate::codec::avro::program::compile;
use crate::config::plan::Recursion;
use crate::model::Reference;

/// Digits of a decimal whose schema does not say how many it has: as many as 128 bits hold.
const PRECISION: u64 = 38;

/// Ends of the names of schemas of the topics beside those of tables.
const CONTROLS: [&str; 4] = ["Heartbeat", "TransactionMetadataValue", "SchemaChangeValue", "MessageValue"];

/// What the name of a schema tells: not of a table's topic.
pub fn is_control(name: &str) -> bool {
    let is_debezium = name.starts_with("io.debezium.");
    is_debezium && CONTROLS.contains(&name.rsplit('.').next().unwrap_or_default())
}

/// Parses a schema of events or of rows: Avro's, or Kafka Connect's as it stands in JSON records, or a record with one.
///
/// # Errors
/// [`SchemaError`], naming the field.
pub fn parse(text: &str, references: &[Reference], recursion: Recursion) -> Result<Node, SchemaError> {
    let json = serde_json::from_str::<Value>(text).unwrap_or_default();
    let inner = json.get("schema").filter(|_| json.get("payload").is_some()).unwrap_or(&json);
    if inner.get("type").and_then(Value::as_str) == Some("struct") {
        return Connect { path: Vec::new(), field_count: 0 }.node(inner);
    }
    let mut node = Node::parse_with(text, references, recursion)?;
    let mut names = Names::default();
    names.collect(&json, "");
    names.annotate(&mut node, &json, "");
    Ok(node)
}

pub fn node_of(record: Record) -> Node {
    Node::plain(Kind::Record(record))
}

pub fn no_envelope(record: &Record) -> SchemaError {
    SchemaError::Unsupported {
        path: record.name.clone(),
        what: "no envelope of change events, which has `op`, `before` and `after`".to_owned(),
    }
}

/// The row of a table in a schema of events; a schema of a topic beside those of tables as it is, and that of a file may
/// be the row's itself. All its fields may be null.
///
/// # Errors
/// [`SchemaError`] if it is no such schema.
pub fn table(node: &Node, is_of_file: bool) -> Result<Record, SchemaError> {
    let Some((Node { kind: Kind::Record(record), .. }, _)) = nullable(node) else {
        return Err(SchemaError::NotARecord("a single value or a union"));
    };
    let field = |name: &str| record.fields.iter().find(|field| field.name == name);
    let row = match (field("op"), field("after").or_else(|| field("before"))) {
        _ if is_control(&record.name) => record,
        (Some(_), Some(image)) => match nullable(&image.node) {
            Some((Node { kind: Kind::Record(row), .. }, _)) => row,
            _ => return Err(no_envelope(record)),
        },
        _ if is_of_file => record,
        _ => return Err(no_envelope(record)),
    };
    let fields = row.fields.iter().map(|field| Field {
        default: field.default.clone().or(Some(Value::Null)),
        node: optional(field.node.clone()),
        ..field.clone()
    });
    Ok(Record { name: row.name.clone(), fields: fields.collect() })
}

fn optional(node: Node) -> Node {
    match node.kind {
        Kind::Null => node,
        Kind::Union(mut arms) => {
            if arms.iter().all(|arm| arm.kind != Kind::Null) {
                arms.insert(0, Node::plain(Kind::Null));
            }
            Node::plain(Kind::Union(arms))
        }
        _ => Node::plain(Kind::Union(vec![Node::plain(Kind::Null), node])),
    }
}

/// Types of what a source tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceType {
    Text,
    Number,
    /// Milliseconds of the epoch.
    Time,
}

/// What column `_source` has of a source: the name there, the name Debezium gives it, the type. Each database has some
/// of the last five.
pub const SOURCE_FIELDS: [(&str, &str, SourceType); 12] = [
    ("connector", "connector", SourceType::Text),
    ("name", "name", SourceType::Text),
    ("ts_ms", "ts_ms", SourceType::Time),
    ("snapshot", "snapshot", SourceType::Text),
    ("db", "db", SourceType::Text),
    ("schema", "schema", SourceType::Text),
    ("table", "table", SourceType::Text),
    ("tx_id", "txId", SourceType::Number),
    ("lsn", "lsn", SourceType::Number),
    ("gtid", "gtid", SourceType::Text),
    ("file", "file", SourceType::Text),
    ("pos", "pos", SourceType::Number),
];

/// The fields of column `_source`, all of which may be null.
pub fn source_fields() -> Fields {
    let fields = SOURCE_FIELDS.into_iter().map(|(name, _, kind)| {
        let data_type = match kind {
            SourceType::Text => DataType::Utf8,
            SourceType::Number => DataType::Int64,
            SourceType::Time => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        };
        ArrowField::new(name, data_type, true)
    });
    fields.collect()
}

/// The type that column `_source` is read as.
pub fn source_node() -> Node {
    let fields = SOURCE_FIELDS.into_iter().map(|(name, given, kind)| {
        let node = match kind {
            SourceType::Text => Node::plain(Kind::String),
            SourceType::Number => Node::plain(Kind::Long),
            SourceType::Time => Node::logical(Kind::Long, Logical::TimestampMillis),
        };
        Field {
            name: name.to_owned(),
            aliases: vec![given.to_owned()],
            default: Some(Value::Null),
            node: optional(node),
        }
    });
    optional(node_of(Record { name: "source".to_owned(), fields: fields.collect() }))
}

/// What is read of an event besides its rows: what happened, and where `source` is wanted, this node of the writer's
/// (`Some(None)` if it has none).
pub fn head(source: Option<Option<&Node>>) -> Node {
    let field =
        |name: &str, default, node| Field { name: name.to_owned(), aliases: Vec::new(), default, node };
    let mut fields = vec![field("op", None, Node::plain(Kind::String))];
    if let Some(writer) = source {
        fields.push(field("source", Some(Value::Null), readable(source_node(), writer)));
    }
    node_of(Record { name: "head".to_owned(), fields })
}

/// The source with names that lead nowhere for what this writer has as another type: what `lsn` is differs by database,
/// and a column nobody may ask for must not make an event unreadable.
fn readable(mut source: Node, writer: Option<&Node>) -> Node {
    let Some((writer, _)) = writer.and_then(nullable) else {
        return source;
    };
    if let Kind::Union(arms) = &mut source.kind {
        let records = arms.iter_mut().filter_map(|arm| match &mut arm.kind {
            Kind::Record(record) => Some(record),
            _ => None,
        });
        for field in records.flat_map(|record| &mut record.fields) {
            let Some((node, _)) = nullable(&field.node) else {
                continue;
            };
            // Without null, which fits whatever the rest is.
            let alone = Field { node: node.clone(), default: None, ..field.clone() };
            let alone = Record { name: "source".to_owned(), fields: vec![alone] };
            if compile(writer, &node_of(alone)).is_err() {
                field.name = format!("\0{}", field.name);
                field.aliases.clear();
            }
        }
    }
    source
}

/// The meaning of a type that Kafka Connect calls by this name.
fn logical(name: &str, kind: &Kind, parameters: &Value) -> Option<Logical> {
    Some(match (name, kind) {
        ("org.apache.kafka.connect.data.Decimal", Kind::Bytes) => return decimal(parameters),
        ("org.apache.kafka.connect.data.Date" | "io.debezium.time.Date", Kind::Int) => Logical::Date,
        ("org.apache.kafka.connect.data.Time" | "io.debezium.time.Time", Kind::Int) => Logical::TimeMillis,
        ("io.debezium.time.MicroTime", Kind::Long) => Logical::TimeMicros,
        ("org.apache.kafka.connect.data.Timestamp", Kind::Long) => Logical::TimestampMillis,
        // Of columns without a time zone.
        ("io.debezium.time.Timestamp", Kind::Long) => Logical::LocalTimestampMillis,
        ("io.debezium.time.MicroTimestamp", Kind::Long) => Logical::LocalTimestampMicros,
        ("io.debezium.time.NanoTimestamp", Kind::Long) => Logical::LocalTimestampNanos,
        // ISO text of an instant.
        ("io.debezium.time.ZonedTimestamp", Kind::String) => Logical::TimestampMicros,
        _ => return None,
    })
}

/// Parameters are texts.
fn decimal(parameters: &Value) -> Option<Logical> {
    let number = |name: &str| parameters.get(name).and_then(Value::as_str);
    let scale: i8 = number("scale")?.parse().ok()?;
    let precision = number("connect.decimal.precision").map_or(Ok(PRECISION), str::parse).ok()?;
    let precision = u8::try_from(precision).ok().filter(|precision| (1..=76).contains(precision))?;
    let is_possible = i16::from(scale) <= i16::from(precision);
    is_possible.then_some(Logical::Decimal { precision, scale })
}

/// Reads Kafka Connect's schemas as its JSON converter writes them.
struct Connect {
    path: Vec<String>,
    field_count: usize,
}

impl Connect {
    fn unsupported(&self, what: impl Into<String>) -> SchemaError {
        SchemaError::Unsupported { path: self.path.join("."), what: what.into() }
    }

    fn node(&mut self, schema: &Value) -> Result<Node, SchemaError> {
        if self.path.len() > DEPTH_MAX {
            return Err(SchemaError::TooDeep);
        }
        let text = |name: &str| schema.get(name).and_then(Value::as_str);
        let inner = |name: &str| schema.get(name).unwrap_or(&Value::Null);
        let kind = match text("type") {
            Some("boolean") => Kind::Boolean,
            Some("int8" | "int16" | "int32") => Kind::Int,
            Some("int64") => Kind::Long,
            Some("float" | "float32") => Kind::Float,
            Some("double" | "float64") => Kind::Double,
            Some("bytes") => Kind::Bytes,
            Some("string") => Kind::String,
            Some("array") => Kind::Array(Box::new(self.nested("items", inner("items"))?)),
            Some("map") if inner("keys").get("type").and_then(Value::as_str) == Some("string") => {
                Kind::Map(Box::new(self.nested("values", inner("values"))?))
            }
            Some("map") => return Err(self.unsupported("a map whose keys are no texts")),
            Some("struct") => Kind::Record(self.record(schema)?),
            _ => return Err(self.unsupported("its `type` is none of Kafka Connect's")),
        };
        let logical = text("name").and_then(|name| logical(name, &kind, inner("parameters")));
        let node = Node { kind, logical };
        Ok(if inner("optional").as_bool() == Some(true) { optional(node) } else { node })
    }

    fn nested(&mut self, step: &str, schema: &Value) -> Result<Node, SchemaError> {
        self.path.push(step.to_owned());
        let node = self.node(schema);
        self.path.pop();
        node
    }

    fn record(&mut self, schema: &Value) -> Result<Record, SchemaError> {
        let given = schema.get("fields").and_then(Value::as_array);
        let given = given.ok_or_else(|| self.unsupported("a struct without `fields`"))?;
        self.field_count += given.len();
        if self.field_count > FIELDS_MAX {
            return Err(SchemaError::TooWide);
        }
        let mut fields = Vec::with_capacity(given.len());
        for field in given {
            let Some(name) = field.get("field").and_then(Value::as_str) else {
                return Err(self.unsupported("a field without a name"));
            };
            let node = self.nested(name, field)?;
            fields.push(Field { name: name.to_owned(), aliases: Vec::new(), default: None, node });
        }
        let name = schema.get("name").and_then(Value::as_str).unwrap_or("struct");
        Ok(Record { name: name.to_owned(), fields })
    }
}

/// The records of an Avro schema's text by their full names, each with the namespace around it.
#[derive(Default)]
struct Names<'s>(BTreeMap<String, (&'s Value, String)>);

impl<'s> Names<'s> {
    fn collect(&mut self, schema: &'s Value, namespace: &str) {
        if let Value::Array(arms) = schema {
            arms.iter().for_each(|arm| self.collect(arm, namespace));
            return;
        }
        match schema.get("type") {
            Some(Value::String(kind)) if kind == "record" => {
                let (name, own) = full_name(schema, namespace);
                self.0.insert(name, (schema, namespace.to_owned()));
                for field in fields(schema) {
                    if let Some(inner) = field.get("type") {
                        self.collect_type(field, inner, &own);
                    }
                }
            }
            Some(inner) => self.collect_type(schema, inner, namespace),
            None => {}
        }
    }

    /// `inner` is the type in `around`, which is a field or a schema: its items or values may be beside it.
    fn collect_type(&mut self, around: &'s Value, inner: &'s Value, namespace: &str) {
        match inner.as_str() {
            Some("array") => around.get("items").into_iter().for_each(|items| self.collect(items, namespace)),
            Some("map") => {
                around.get("values").into_iter().for_each(|values| self.collect(values, namespace))
            }
            Some(_) => {}
            None => self.collect(inner, namespace),
        }
    }

    /// Gives types that have none the logical type that their `connect.name` means. `node` was made of `schema`.
    fn annotate(&self, node: &mut Node, schema: &Value, namespace: &str) {
        if let Value::String(name) = schema {
            let full = if name.contains('.') { name.clone() } else { join(namespace, name) };
            // Names of plain types are none of these.
            if let Some((schema, around)) = self.0.get(&full).or_else(|| self.0.get(name)) {
                self.annotate(node, schema, around);
            }
            return;
        }
        let inner = schema.get("type").unwrap_or(&Value::Null);
        let below = |name: &str| schema.get(name).unwrap_or(&Value::Null);
        if inner.is_object() || inner.is_array() {
            return self.annotate(node, inner, namespace);
        }
        match (inner.as_str(), &mut node.kind) {
            (None, Kind::Union(nodes)) => {
                let arms = schema.as_array().into_iter().flatten();
                nodes.iter_mut().zip(arms).for_each(|(node, arm)| self.annotate(node, arm, namespace));
            }
            (Some("record"), Kind::Record(record)) => {
                let (_, own) = full_name(schema, namespace);
                for (field, json) in record.fields.iter_mut().zip(fields(schema)) {
                    let inner = json.get("type").unwrap_or(&Value::Null);
                    self.annotate(&mut field.node, inner, &own);
                }
            }
            (Some("array"), Kind::Array(item)) => self.annotate(item, below("items"), namespace),
            (Some("map"), Kind::Map(value)) => self.annotate(value, below("values"), namespace),
            (Some(_), kind) if node.logical.is_none() => {
                let name = schema.get("connect.name").and_then(Value::as_str);
                node.logical = name.and_then(|name| logical(name, kind, &Value::Null));
            }
            _ => {}
        }
    }
}

fn fields(record: &Value) -> impl Iterator<Item = &Value> {
    record.get("fields").and_then(Value::as_array).into_iter().flatten()
}

fn join(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

/// A named type's full name, and the namespace within it.
fn full_name(schema: &Value, around: &str) -> (String, String) {
    let text = |name: &str| schema.get(name).and_then(Value::as_str);
    let name = text("name").unwrap_or_default();
    match name.rsplit_once('.') {
        Some((own, _)) => (name.to_owned(), own.to_owned()),
        None => {
            let own = text("namespace").unwrap_or(around);
            (join(own, name), own.to_owned())
        }
    }
}
