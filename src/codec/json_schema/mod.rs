//! JSON Schemas of the registry as types, drafts 4 to 2020-12: what of them says which type a value has. Constraints
//! (`pattern`, `minimum`, `enum`, …) are checked by [`Validation`] only. `docs/types.md` has the table for users.
//!
//! A value may be under several schemas at once (`allOf`, `$ref` beside others): all of them are gathered as facts, and
//! the type is made of those. What has several types is a choice of them, what has none is JSON text. Nothing is
//! fetched: a `$ref` leads into the document, or to a reference that the registry has with it.

mod bounds;
mod choice;
mod facts;
mod refs;
mod validate;

use serde_json::Value;

use crate::config::plan::Recursion;
use crate::model::Reference;

use super::avro::node::{Field, Kind, Logical, Node, Record, SchemaError};
use super::limits::{
    DEFAULTS_BYTES_MAX, DEPTH_MAX, FIELDS_MAX, LOOKS_MAX, NESTING_MAX, SCHEMA_BYTES_MAX, STEPS_MAX,
    TYPE_BYTES, cut, on_deep_stack,
};

use facts::{Facts, kinds};
use refs::{At, Document};

pub use validate::Validation;

/// The type of a schema's values. One that contains itself is refused.
///
/// # Errors
/// [`SchemaError`], naming the property.
pub fn parse(text: &str, references: &[Reference]) -> Result<Node, SchemaError> {
    parse_with(text, references, Recursion::Refuse)
}

/// As [`parse`], with what becomes of a type that contains itself.
///
/// # Errors
/// Likewise.
pub fn parse_with(text: &str, references: &[Reference], recursion: Recursion) -> Result<Node, SchemaError> {
    deep(|| parse_here(text, references, recursion))
}

/// Reads a schema on a stack of its own.
fn deep<T: Send>(read: impl Fn() -> Result<T, SchemaError> + Sync) -> Result<T, SchemaError> {
    let done = on_deep_stack(read);
    done.unwrap_or_else(|| Err(SchemaError::InvalidJsonSchema("reading it fails".to_owned())))
}

fn parse_here(text: &str, references: &[Reference], recursion: Recursion) -> Result<Node, SchemaError> {
    let root = document(text)?;
    let others = documents(references)?;
    let mut compiler = Compiler::new(&root, &others, recursion);
    let (node, _) = compiler.typed(&[Document::of(&root, "").whole()])?;
    Ok(node)
}

fn document(text: &str) -> Result<Value, SchemaError> {
    serde_json::from_str(text).map_err(|error| SchemaError::InvalidJsonSchema(error.to_string()))
}

/// What a schema references, by name.
fn documents(references: &[Reference]) -> Result<Vec<(String, Value)>, SchemaError> {
    references.iter().map(|other| Ok((other.name.clone(), document(&other.text)?))).collect()
}

/// The title of a schema, by which serialisers call its type.
pub fn title(text: &str) -> Option<String> {
    let schema: Value = serde_json::from_str(text).ok()?;
    Some(schema.get("title")?.as_str()?.to_owned())
}

struct Compiler<'s> {
    /// What the schema references, by name.
    references: &'s [(String, Value)],
    recursion: Recursion,
    /// Names of the properties around.
    path: Vec<String>,
    /// Where the `$ref`s around this value lead: one that leads there again has no end.
    open: Vec<&'s Value>,
    depth: usize,
    steps: usize,
    looks: usize,
    field_count: usize,
    default_bytes: usize,
    /// Of [`SCHEMA_BYTES_MAX`].
    bytes_left: usize,
}

impl<'s> Compiler<'s> {
    fn new(root: &'s Value, references: &'s [(String, Value)], recursion: Recursion) -> Self {
        Self {
            references,
            recursion,
            path: Vec::new(),
            open: vec![root],
            depth: 0,
            steps: 0,
            looks: 0,
            field_count: 0,
            default_bytes: 0,
            bytes_left: SCHEMA_BYTES_MAX,
        }
    }

    fn path(&self) -> String {
        if self.path.is_empty() { "$".to_owned() } else { self.path.join(".") }
    }

    fn unsupported(&self, what: impl Into<String>) -> SchemaError {
        SchemaError::Unsupported { path: self.path(), what: what.into() }
    }

    fn enter(&mut self) -> Result<(), SchemaError> {
        self.steps += 1;
        self.depth += 1;
        if self.depth > NESTING_MAX || self.path.len() > DEPTH_MAX {
            return Err(SchemaError::TooDeep);
        }
        if self.steps > STEPS_MAX || self.looks > LOOKS_MAX {
            return Err(self.unsupported("its `$ref`s and choices make it too large"));
        }
        Ok(())
    }

    /// The type of a value that is under all of `schemas`, and its default.
    fn typed(&mut self, schemas: &[At<'s>]) -> Result<(Node, Option<&'s Value>), SchemaError> {
        self.enter()?;
        let mut facts = Facts::default();
        for at in schemas {
            self.gather(*at, &mut facts)?;
        }
        self.choose(&mut facts)?;
        let around = self.open.len();
        self.open.append(&mut facts.targets);
        let node = self.node(&facts)?;
        self.open.truncate(around);
        self.depth -= 1;
        Ok((node, facts.default))
    }

    fn nested(&mut self, step: &str, schemas: &[At<'s>]) -> Result<(Node, Option<&'s Value>), SchemaError> {
        self.path.push(step.to_owned());
        let typed = self.typed(schemas);
        self.path.pop();
        typed
    }

    fn node(&mut self, facts: &Facts<'s>) -> Result<Node, SchemaError> {
        let all = facts.kinds();
        let is_nullable = all & kinds::NULL != 0 || facts.may_be_null;
        let node = match all & !kinds::NULL {
            _ if facts.is_anything => json(),
            _ if !facts.arms.is_empty() => self.choice(facts)?,
            0 if is_nullable => return Ok(Node::plain(Kind::Null)),
            0 => return Err(self.unsupported("no value can be of all the types that it is said to have")),
            kinds::BOOLEAN => Node::plain(Kind::Boolean),
            kinds::STRING => string(facts),
            kinds::INTEGER => integer(facts),
            kinds::FRACTION | kinds::NUMBER => number(facts),
            kinds::ARRAY => self.array(facts)?,
            kinds::OBJECT => self.object(facts)?,
            several if several == kinds::ALL & !kinds::NULL => json(),
            several => self.types(several, facts)?,
        };
        Ok(if is_nullable { optional(node) } else { node })
    }

    fn array(&mut self, facts: &Facts<'s>) -> Result<Node, SchemaError> {
        let item = if facts.items.is_empty() || facts.is_tuple {
            optional(json())
        } else {
            self.nested("items", &facts.items)?.0
        };
        Ok(Node::plain(Kind::Array(Box::new(item))))
    }

    fn object(&mut self, facts: &Facts<'s>) -> Result<Node, SchemaError> {
        // A property that must not be there has no column.
        let is_there = |schemas: &[At<'s>]| schemas.iter().all(|at| *at.schema != Value::Bool(false));
        let properties = || facts.properties.iter().filter(|(_, schemas)| is_there(schemas));
        self.count_fields(properties().count())?;
        if properties().next().is_none() {
            if facts.additional.is_empty() || facts.has_patterns {
                return Ok(json());
            }
            let (value, _) = self.nested("additionalProperties", &facts.additional)?;
            return Ok(Node::plain(Kind::Map(Box::new(value))));
        }
        let name = facts.title.or_else(|| self.path.last().map(String::as_str)).unwrap_or("object");
        let name = cut(name.to_owned());
        self.keep(name.len())?;
        let mut fields = Vec::new();
        for (name, schemas) in properties() {
            self.keep(name.len())?;
            let (node, default) = self.nested(name, schemas)?;
            fields.push(Field {
                name: (*name).to_owned(),
                aliases: Vec::new(),
                default: self.default(default)?,
                node: if facts.required.contains(name) { node } else { optional(node) },
            });
        }
        Ok(Node::plain(Kind::Record(Record { name, fields })))
    }

    /// So many bytes of the schema have one more place in the type.
    fn keep(&mut self, bytes: usize) -> Result<(), SchemaError> {
        self.bytes_left = self.bytes_left.checked_sub(TYPE_BYTES + bytes).ok_or_else(|| {
            self.unsupported(format!("the types up to here take more than {SCHEMA_BYTES_MAX} bytes"))
        })?;
        Ok(())
    }

    fn count_fields(&mut self, count: usize) -> Result<(), SchemaError> {
        self.field_count += count;
        if self.field_count > FIELDS_MAX { Err(SchemaError::TooWide) } else { Ok(()) }
    }

    fn default(&mut self, default: Option<&Value>) -> Result<Option<Value>, SchemaError> {
        let Some(default) = default.filter(|default| !default.is_null()) else {
            return Ok(None);
        };
        self.default_bytes += default.to_string().len();
        if self.default_bytes > DEFAULTS_BYTES_MAX {
            return Err(self.unsupported(format!("defaults of more than {DEFAULTS_BYTES_MAX} bytes in all")));
        }
        Ok(Some(default.clone()))
    }
}

/// Any value, as its text.
fn json() -> Node {
    Node::logical(Kind::String, Logical::Json)
}

fn optional(node: Node) -> Node {
    match node.kind {
        Kind::Null | Kind::Union(_) => node,
        _ => Node::plain(Kind::Union(vec![Node::plain(Kind::Null), node])),
    }
}

/// The formats that have a type of their own keep `string` as what is written: a number is none of them.
fn string(facts: &Facts<'_>) -> Node {
    if facts.connect_type == Some("bytes") {
        return Node::plain(Kind::Bytes);
    }
    match facts.format {
        Some("date") => Node::logical(Kind::String, Logical::Date),
        Some("date-time") => Node::logical(Kind::String, Logical::TimestampMicros),
        Some("uuid") => Node::logical(Kind::String, Logical::Uuid),
        _ => Node::plain(Kind::String),
    }
}

fn number(facts: &Facts<'_>) -> Node {
    match facts.connect_type {
        Some("float32") => Node::plain(Kind::Float),
        _ => Node::plain(Kind::Double),
    }
}

/// Kafka Connect's converter says by titles what its numbers mean.
fn integer(facts: &Facts<'_>) -> Node {
    match (facts.title, facts.connect_type) {
        (Some("org.apache.kafka.connect.data.Date"), _) => Node::logical(Kind::Int, Logical::Date),
        (Some("org.apache.kafka.connect.data.Time"), _) => Node::logical(Kind::Int, Logical::TimeMillis),
        (Some("org.apache.kafka.connect.data.Timestamp"), _) => {
            Node::logical(Kind::Long, Logical::TimestampMillis)
        }
        (_, Some("int8" | "int16" | "int32")) => Node::plain(Kind::Int),
        _ => Node::plain(Kind::Long),
    }
}

#[cfg(test)]
mod tests;
