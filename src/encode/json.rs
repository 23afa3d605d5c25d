//! Columns as JSON with a JSON Schema. The text is `render`'s; what has no text there, or none that its schema allows, is
//! refused.

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float64Array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Float32Type, Float64Type, TimeUnit};
use serde_json::{Map, Value, json};

use crate::codec::avro::arrow_type::nullable;
use crate::codec::avro::node::{Kind, Logical, Node};
use crate::render::Values;

use super::times::Times;
use super::{Misfit, Unfit, is_int, is_null, no_form, plain, span};

/// Old enough for every validator, and what Confluent's serialisers write.
const DIALECT: &str = "http://json-schema.org/draft-07/schema#";

/// The schema of values of `data_type`, with the title `name`.
pub fn schema(data_type: &DataType, name: &str) -> Result<Value, Unfit> {
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!(DIALECT));
    schema.insert("title".to_owned(), json!(name));
    if let Value::Object(own) = one(data_type)? {
        schema.extend(own);
    }
    Ok(Value::Object(schema))
}

/// `connect.type` is what Kafka Connect, and our own reader, take the exact type from.
fn one(data_type: &DataType) -> Result<Value, Unfit> {
    Ok(match data_type {
        DataType::Null => json!({"type": "null"}),
        DataType::Boolean => json!({"type": "boolean"}),
        DataType::Int8 => json!({"type": "integer", "connect.type": "int8"}),
        DataType::Int16 | DataType::UInt8 => json!({"type": "integer", "connect.type": "int16"}),
        DataType::Int32 | DataType::UInt16 => json!({"type": "integer", "connect.type": "int32"}),
        DataType::Int64 | DataType::UInt32 => json!({"type": "integer", "connect.type": "int64"}),
        DataType::UInt64 => json!({"type": "integer"}),
        DataType::Float16 | DataType::Float32 => json!({"type": "number", "connect.type": "float32"}),
        DataType::Float64 => json!({"type": "number", "connect.type": "float64"}),
        // All digits are in the text; whoever reads them as a double loses some.
        DataType::Decimal128(..) | DataType::Decimal256(..) => json!({"type": "number"}),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => json!({"type": "string"}),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            json!({"type": "string", "contentEncoding": "base64", "connect.type": "bytes"})
        }
        DataType::Date32 => json!({"type": "string", "format": "date"}),
        DataType::Timestamp(_, Some(_)) => json!({"type": "string", "format": "date-time"}),
        // The formats of JSON Schema want an offset.
        DataType::Timestamp(_, None)
        | DataType::Time32(TimeUnit::Millisecond)
        | DataType::Time64(TimeUnit::Microsecond) => json!({"type": "string"}),
        DataType::Dictionary(_, value) => one(value)?,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            json!({"type": "array", "items": optional(item)?})
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                json!({"type": "object", "additionalProperties": optional(&fields[1])?})
            }
            _ => return Err(no_form(data_type, "JSON Schema")),
        },
        DataType::Struct(fields) => object(fields)?,
        _ => return Err(no_form(data_type, "JSON Schema")),
    })
}

fn optional(field: &Field) -> Result<Value, Unfit> {
    let value = one(field.data_type())?;
    let is_null = field.data_type() == &DataType::Null;
    Ok(if field.is_nullable() && !is_null { json!({"oneOf": [{"type": "null"}, value]}) } else { value })
}

/// Closed: under the registry's rules only then a column may be added without breaking those who read.
fn object(fields: &Fields) -> Result<Value, Unfit> {
    let mut properties = Map::new();
    for field in fields {
        let value = optional(field).map_err(|unfit| unfit.inside(field.name()))?;
        properties.insert(field.name().clone(), value);
    }
    let required: Vec<&str> =
        fields.iter().filter(|field| !field.is_nullable()).map(|field| field.name().as_str()).collect();
    let mut object = json!({"type": "object", "additionalProperties": false, "properties": properties});
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    Ok(object)
}

/// Values that become texts.
pub struct Json {
    values: Values,
    check: Check,
}

impl Json {
    /// Binds values to a schema that somebody has registered, or to the one made of them.
    pub fn bind(node: Option<&Node>, array: &ArrayRef) -> Result<Self, Unfit> {
        Ok(Self { check: Check::of(node, array)?, values: Values::new(array)? })
    }

    pub fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Misfit> {
        self.check.check(row)?;
        self.values.write(row, out);
        Ok(())
    }
}

/// What has to be looked at before a value becomes text.
struct Check {
    nulls: Option<NullBuffer>,
    is_nullable: bool,
    inner: Inner,
}

enum Inner {
    /// Every value has a text.
    Nothing,
    F32(Float32Array),
    F64(Float64Array),
    Times(Times),
    List {
        offsets: OffsetBuffer<i32>,
        items: Box<Check>,
    },
    Struct(Vec<(String, Check)>),
}

impl Check {
    fn of(node: Option<&Node>, array: &ArrayRef) -> Result<Self, Unfit> {
        let values = plain(array)?;
        let (node, is_nullable) = match node {
            None => (None, true),
            Some(node) => {
                let (value, is_nullable) = nullable(node).unwrap_or((node, true));
                let is_null = is_nullable && *values.data_type() == DataType::Null;
                if !is_null && !suits(value, values.data_type()) {
                    let wanted = value.describe();
                    return Err(Unfit::new(format!(
                        "is {}, which cannot be written as {wanted}",
                        array.data_type()
                    )));
                }
                (Some(value), is_nullable)
            }
        };
        Ok(Self { nulls: array.logical_nulls(), is_nullable, inner: Inner::of(node, &values)? })
    }

    fn check(&self, row: usize) -> Result<(), Misfit> {
        if is_null(self.nulls.as_ref(), row) {
            return if self.is_nullable {
                Ok(())
            } else {
                Err(Misfit::new("is null, and its schema has no null"))
            };
        }
        let is_number = match &self.inner {
            Inner::Nothing => true,
            Inner::F32(values) => values.value(row).is_finite(),
            Inner::F64(values) => values.value(row).is_finite(),
            Inner::Times(times) => return times.check(row),
            Inner::List { offsets, items } => {
                return span(offsets, row).try_for_each(|item| items.check(item));
            }
            Inner::Struct(fields) => {
                return fields
                    .iter()
                    .try_for_each(|(name, check)| check.check(row).map_err(|misfit| misfit.inside(name)));
            }
        };
        if is_number { Ok(()) } else { Err(Misfit::new("is NaN or infinite, and JSON has neither")) }
    }

    /// Can a value be refused?
    fn is_needed(&self) -> bool {
        let has_nulls = !self.is_nullable && self.nulls.is_some();
        has_nulls || !matches!(self.inner, Inner::Nothing)
    }
}

impl Inner {
    fn of(node: Option<&Node>, values: &ArrayRef) -> Result<Self, Unfit> {
        let is_any = node.is_some_and(|node| node.logical == Some(Logical::Json));
        let node = node.filter(|_| !is_any);
        let nested = |offsets: &OffsetBuffer<i32>, items: Check| {
            if items.is_needed() {
                Self::List { offsets: offsets.clone(), items: Box::new(items) }
            } else {
                Self::Nothing
            }
        };
        Ok(match values.data_type() {
            DataType::Float32 => Self::F32(values.as_primitive::<Float32Type>().clone()),
            DataType::Float64 => Self::F64(values.as_primitive::<Float64Type>().clone()),
            DataType::List(_) => {
                let list = values.as_list::<i32>();
                let item = match node.map(|node| &node.kind) {
                    Some(Kind::Array(item)) => Some(item.as_ref()),
                    _ => None,
                };
                nested(list.offsets(), Check::of(item, list.values())?)
            }
            DataType::Map(..) => {
                let map = values.as_map();
                let value = match node.map(|node| &node.kind) {
                    Some(Kind::Map(value)) => Some(value.as_ref()),
                    _ => None,
                };
                nested(map.offsets(), Check::of(value, map.values())?)
            }
            DataType::Struct(fields) => {
                let columns = values.as_struct().columns();
                let mut checks = Vec::new();
                if let Some(missing) = node.and_then(|node| missing(node, fields)) {
                    return Err(Unfit::new("is not there, and the schema requires it").inside(missing));
                }
                for (field, column) in fields.iter().zip(columns) {
                    let check = property(node, field)
                        .and_then(|node| Check::of(node, column))
                        .map_err(|unfit| unfit.inside(field.name()))?;
                    if check.is_needed() {
                        checks.push((field.name().clone(), check));
                    }
                }
                if checks.is_empty() { Self::Nothing } else { Self::Struct(checks) }
            }
            _ => Times::of(values)?.map_or(Self::Nothing, Self::Times),
        })
    }
}

/// The type of a property, if the schema says one for these objects.
fn property<'n>(node: Option<&'n Node>, field: &Field) -> Result<Option<&'n Node>, Unfit> {
    match node.map(|node| &node.kind) {
        Some(Kind::Record(record)) => {
            let found = record.fields.iter().find(|own| own.name == *field.name());
            let unknown = || Unfit::new("is no property of the schema: leave it out in a view");
            found.map(|own| Some(&own.node)).ok_or_else(unknown)
        }
        Some(Kind::Map(value)) => Ok(Some(value.as_ref())),
        _ => Ok(None),
    }
}

/// A property that has to be there and has no column.
fn missing<'n>(node: &'n Node, fields: &Fields) -> Option<&'n str> {
    let Kind::Record(record) = &node.kind else { return None };
    let is_wanted = |node: &Node| nullable(node).is_some_and(|(_, is_nullable)| !is_nullable);
    let is_there = |name: &str| fields.iter().any(|field| field.name() == name);
    let mut missing = record.fields.iter().filter(|own| is_wanted(&own.node) && !is_there(&own.name));
    missing.next().map(|own| own.name.as_str())
}

/// Is the text of such a column one that the type allows? What is below it is looked at by itself.
fn suits(node: &Node, data_type: &DataType) -> bool {
    let is_text = |data_type: &DataType| {
        let is_time = matches!(
            data_type,
            DataType::Date32
                | DataType::Timestamp(..)
                | DataType::Time32(TimeUnit::Millisecond)
                | DataType::Time64(TimeUnit::Microsecond)
        );
        is_time || matches!(data_type, DataType::Utf8)
    };
    let is_number = |data_type: &DataType| {
        let is_decimal = matches!(data_type, DataType::Decimal128(..) | DataType::Decimal256(..));
        is_decimal || data_type.is_integer() || data_type.is_floating()
    };
    match (&node.kind, node.logical) {
        (_, Some(Logical::Json)) => {
            is_text(data_type)
                || is_number(data_type)
                || data_type.is_nested()
                || matches!(data_type, DataType::Null | DataType::Boolean | DataType::Binary)
        }
        (Kind::String, Some(Logical::Date)) => matches!(data_type, DataType::Date32 | DataType::Utf8),
        (Kind::String, Some(Logical::TimestampMicros)) => {
            matches!(data_type, DataType::Timestamp(_, Some(_)) | DataType::Utf8)
        }
        (Kind::String, Some(Logical::Uuid)) => *data_type == DataType::Utf8,
        // Kafka Connect's numbers of days and milliseconds.
        (_, Some(_)) => false,
        (Kind::Null, None) => *data_type == DataType::Null,
        (Kind::Boolean, None) => *data_type == DataType::Boolean,
        (Kind::Int, None) => is_int(data_type),
        (Kind::Long, None) => data_type.is_integer(),
        (Kind::Float | Kind::Double, None) => is_number(data_type),
        (Kind::Bytes, None) => *data_type == DataType::Binary,
        (Kind::String, None) => is_text(data_type),
        (Kind::Array(_), None) => matches!(data_type, DataType::List(_)),
        (Kind::Map(_), None) => matches!(data_type, DataType::Map(..) | DataType::Struct(_)),
        (Kind::Record(_), None) => matches!(data_type, DataType::Struct(_)),
        // What is within is that of no one arm: the schema's owner has to know.
        (Kind::Choice(arms), None) => {
            arms.iter().any(|arm| nullable(&arm.node).is_some_and(|(node, _)| suits(node, data_type)))
        }
        (Kind::Fixed { .. } | Kind::Enum(_) | Kind::Union(_), None) => false,
    }
}
