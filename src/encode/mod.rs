//! Rows as bytes in the formats of the schema registry: a schema for the columns, and each row written with it.
//!
//! Pure, and without an object tree: a [`Writer`] is bound to the arrays of a batch, and a row goes straight from them
//! into bytes. Schemas are read by the codecs' own parsers, so that what is written is what is read. `docs/types.md` has
//! the tables of types for users.

mod avro;
mod json;
mod protobuf;
mod times;

use std::borrow::Cow;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Fields, Int64Type};
use arrow::error::ArrowError;
use protox::prost_reflect::MessageDescriptor;

use crate::codec::avro::node::Node;
use crate::codec::{frame, json_schema};
use crate::config::plan::SchemaFormat;
use crate::model::{Reference, SchemaId};

/// A column that has no form in a schema: a mistake in the file, for all rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {problem}", place(.path))]
pub struct Unfit {
    path: String,
    problem: Cow<'static, str>,
}

/// A value that has no form in a schema: the row is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {problem}", place(.path))]
pub struct Misfit {
    path: String,
    problem: &'static str,
}

fn place(path: &str) -> String {
    if path.is_empty() { "the value".to_owned() } else { format!("column `{path}`") }
}

/// A path that is one step longer at its start.
fn longer(name: &str, path: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{name}.{path}") }
}

impl Unfit {
    pub fn new(problem: impl Into<Cow<'static, str>>) -> Self {
        Self { path: String::new(), problem: problem.into() }
    }

    /// There is no such column.
    pub fn missing(name: &str) -> Self {
        Self::new("is not there").inside(name)
    }

    /// The same, of something within column or field `name`.
    #[must_use]
    pub fn inside(self, name: &str) -> Self {
        Self { path: longer(name, &self.path), problem: self.problem }
    }
}

impl From<ArrowError> for Unfit {
    fn from(error: ArrowError) -> Self {
        Self::new(format!("cannot be read: {error}"))
    }
}

impl Misfit {
    fn new(problem: &'static str) -> Self {
        Self { path: String::new(), problem }
    }

    /// The same, of something within column or field `name`.
    #[must_use]
    pub fn inside(self, name: &str) -> Self {
        Self { path: longer(name, &self.path), problem: self.problem }
    }
}

/// The text of a schema for values of `data_type`. `name` is that of its record, in full. `before` is what the subject
/// has now, with its references: fields of Protobuf keep their numbers.
///
/// # Errors
/// [`Unfit`], naming the column.
pub fn schema_text(
    format: SchemaFormat,
    data_type: &DataType,
    name: &str,
    before: Option<(&str, &[Reference])>,
) -> Result<String, Unfit> {
    match format {
        SchemaFormat::Avro => Ok(avro::schema::schema(data_type, name)?.to_string()),
        SchemaFormat::JsonSchema => Ok(json::schema(data_type, name)?.to_string()),
        SchemaFormat::Protobuf => {
            // One that does not compile, or has another message, says nothing of numbers.
            let before = before
                .and_then(|(text, references)| crate::codec::protobuf::parse(text, references).ok())
                .and_then(|file| file.message(Some(name)).ok());
            protobuf::schema::schema(data_type, name, before.as_ref())
        }
    }
}

/// A schema that rows are written with.
#[derive(Debug, Clone)]
pub enum Writer {
    Avro(Node),
    Protobuf {
        message: MessageDescriptor,
        /// The path of the message in its file, as records have it.
        indexes: Vec<u8>,
    },
    /// `None`: it was made of the columns, so that they fit it.
    Json(Option<Node>),
}

impl Writer {
    /// For a text that [`schema_text`] has made.
    ///
    /// # Errors
    /// [`Unfit`] if the format's own rules are against it.
    pub fn derived(format: SchemaFormat, text: &str, name: &str) -> Result<Self, Unfit> {
        match format {
            SchemaFormat::JsonSchema => Ok(Self::Json(None)),
            SchemaFormat::Avro | SchemaFormat::Protobuf => Self::registered(format, text, &[], Some(name)),
        }
    }

    /// For a schema that somebody has registered. `name` is the message of Protobuf, if not the first one.
    ///
    /// # Errors
    /// [`Unfit`] if it cannot be used.
    pub fn registered(
        format: SchemaFormat,
        text: &str,
        references: &[Reference],
        name: Option<&str>,
    ) -> Result<Self, Unfit> {
        let unusable = |error: String| Unfit::new(format!("cannot be written: {error}"));
        Ok(match format {
            SchemaFormat::Avro => {
                Self::Avro(Node::parse(text, references).map_err(|error| unusable(error.to_string()))?)
            }
            SchemaFormat::JsonSchema => {
                let node = json_schema::parse(text, references);
                Self::Json(Some(node.map_err(|error| unusable(error.to_string()))?))
            }
            SchemaFormat::Protobuf => {
                let file = crate::codec::protobuf::parse(text, references)
                    .map_err(|error| unusable(error.to_string()))?;
                let message = file.message(name).map_err(|error| unusable(error.to_string()))?;
                let names = file.names();
                let path = names.iter().find(|(_, name)| name == message.full_name());
                let indexes = protobuf::indexes(path.map_or(&[0_u64][..], |(path, _)| path.as_slice()));
                Self::Protobuf { message, indexes }
            }
        })
    }

    /// What stands before each record: the schema's id, and the message's place in its file.
    pub fn prefix(&self, id: SchemaId) -> Vec<u8> {
        let mut prefix = Vec::new();
        frame::write_prefix(id, &mut prefix);
        if let Self::Protobuf { indexes, .. } = self {
            prefix.extend_from_slice(indexes);
        }
        prefix
    }

    /// Binds the schema to values, one for each row. An empty array shows whether the type fits.
    ///
    /// # Errors
    /// [`Unfit`], naming the column.
    pub fn bind(&self, values: &ArrayRef) -> Result<Bound, Unfit> {
        let kind = match self {
            Self::Avro(node) => BoundKind::Avro(Box::new(avro::bind(node, values)?)),
            Self::Protobuf { message, .. } => match values.data_type() {
                DataType::Struct(_) => {
                    BoundKind::Protobuf(protobuf::Message::bind(message, values.as_struct())?)
                }
                _ => return Err(Unfit::new(protobuf::NO_MESSAGE)),
            },
            Self::Json(node) => BoundKind::Json(Box::new(json::Json::bind(node.as_ref(), values)?)),
        };
        Ok(Bound { nulls: values.logical_nulls(), kind })
    }
}

/// Values bound to the schema they are written with.
pub struct Bound {
    nulls: Option<NullBuffer>,
    kind: BoundKind,
}

enum BoundKind {
    Avro(Box<avro::Column>),
    Protobuf(protobuf::Message),
    Json(Box<json::Json>),
}

impl Bound {
    /// Has the row no value? A record then has no key, or is a tombstone.
    pub fn is_null(&self, row: usize) -> bool {
        is_null(self.nulls.as_ref(), row)
    }

    /// Appends the value of `row`, without what stands before it.
    ///
    /// # Errors
    /// [`Misfit`], naming the column; `out` then holds a part of the value.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Misfit> {
        match &self.kind {
            BoundKind::Avro(column) => column.write(row, out),
            BoundKind::Protobuf(message) => message.write(row, out),
            BoundKind::Json(json) => json.write(row, out),
        }
    }
}

fn is_null(nulls: Option<&NullBuffer>, row: usize) -> bool {
    nulls.is_some_and(|nulls| nulls.is_null(row))
}

/// The items of a list or the entries of a map.
fn span(offsets: &OffsetBuffer<i32>, row: usize) -> std::ops::Range<usize> {
    offsets[row] as usize..offsets[row + 1] as usize
}

/// Types that differ only in how they are held become one.
fn plain(array: &ArrayRef) -> Result<ArrayRef, Unfit> {
    Ok(match array.data_type() {
        DataType::Dictionary(_, value) => plain(&cast(array, value)?)?,
        DataType::LargeUtf8 | DataType::Utf8View => cast(array, &DataType::Utf8)?,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            cast(array, &DataType::Binary)?
        }
        DataType::Float16 => cast(array, &DataType::Float32)?,
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            cast(array, &DataType::List(item.clone()))?
        }
        _ => array.clone(),
    })
}

/// Whole numbers of up to 64 bits, and times in their unit.
fn whole(array: &ArrayRef) -> Result<Int64Array, Unfit> {
    Ok(cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

/// Whole numbers that fit into 32 bits.
fn is_int(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16
    )
}

/// Whole numbers that fit into 64 bits.
fn is_long(data_type: &DataType) -> bool {
    is_int(data_type) || matches!(data_type, DataType::Int64 | DataType::UInt32)
}

/// What Avro's durations are read as.
fn is_duration(fields: &Fields) -> bool {
    let parts = fields.iter().map(|field| (field.name().as_str(), field.data_type(), field.is_nullable()));
    parts.eq(["months", "days", "millis"].map(|name| (name, &DataType::UInt32, false)))
}

/// Letters, digits and `_`, no digit first: what Avro and Protobuf take for a name.
fn check_name(name: &str) -> Result<(), Unfit> {
    let is_letter = |char: char| char.is_ascii_alphanumeric() || char == '_';
    if !name.is_empty()
        && name.chars().all(is_letter)
        && !name.starts_with(|char: char| char.is_ascii_digit())
    {
        return Ok(());
    }
    let problem = "has a name that this format does not take (letters, digits and `_`, no digit first): give it \
                   another one in a view";
    Err(Unfit::new(problem).inside(name))
}

fn no_form(data_type: &DataType, format: &str) -> Unfit {
    Unfit::new(format!("is {data_type}, which has no form in {format}: cast it in a view, or leave it out"))
}

#[cfg(test)]
mod tests;
