//! The Avro schema of a column type.

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use serde_json::{Map, Value, json};

use crate::encode::{Unfit, check_name, is_duration, no_form};

/// Where a type stands: records and fixed types are named after their column, within the name of the record around it,
/// so that no two of them have one name.
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Name<'_> {
    fn full(&self) -> String {
        if self.namespace.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}.{}", self.namespace, self.name)
        }
    }

    /// The beginning of a named type.
    fn declare(&self, kind: &str) -> Map<String, Value> {
        let mut declared = Map::new();
        declared.insert("type".to_owned(), json!(kind));
        declared.insert("name".to_owned(), json!(self.name));
        if !self.namespace.is_empty() {
            declared.insert("namespace".to_owned(), json!(self.namespace));
        }
        declared
    }
}

/// The schema of values of `data_type`; `name` is that of its record, in full.
pub fn schema(data_type: &DataType, name: &str) -> Result<Value, Unfit> {
    let (namespace, name) = name.rsplit_once('.').unwrap_or(("", name));
    one(data_type, &Name { namespace, name })
}

fn one(data_type: &DataType, name: &Name<'_>) -> Result<Value, Unfit> {
    let logical = |kind: &str, logical: &str| Ok(json!({"type": kind, "logicalType": logical}));
    match data_type {
        DataType::Null => Ok(json!("null")),
        DataType::Boolean => Ok(json!("boolean")),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
            Ok(json!("int"))
        }
        DataType::Int64 | DataType::UInt32 => Ok(json!("long")),
        // Avro's longest number has a sign: a decimal takes all of them.
        DataType::UInt64 => Ok(decimal(20, 0)),
        DataType::Float16 | DataType::Float32 => Ok(json!("float")),
        DataType::Float64 => Ok(json!("double")),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(json!("string")),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Ok(json!("bytes")),
        DataType::FixedSizeBinary(size) => {
            let mut fixed = name.declare("fixed");
            fixed.insert("size".to_owned(), json!(size));
            Ok(Value::Object(fixed))
        }
        DataType::Date32 => logical("int", "date"),
        DataType::Time32(_) => logical("int", "time-millis"),
        DataType::Time64(TimeUnit::Microsecond) => logical("long", "time-micros"),
        DataType::Timestamp(unit, zone) => {
            let local = if zone.is_some() { "" } else { "local-" };
            let unit = match unit {
                TimeUnit::Second | TimeUnit::Millisecond => "millis",
                TimeUnit::Microsecond => "micros",
                TimeUnit::Nanosecond => "nanos",
            };
            logical("long", &format!("{local}timestamp-{unit}"))
        }
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            match u8::try_from(*scale) {
                Ok(scale) if scale <= *precision => Ok(decimal(*precision, scale)),
                _ => Err(no_form(data_type, "Avro")),
            }
        }
        DataType::Dictionary(_, value) => one(value, name),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Ok(json!({"type": "array", "items": optional(item, name)?}))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                Ok(json!({"type": "map", "values": optional(&fields[1], name)?}))
            }
            _ => Err(no_form(data_type, "Avro")),
        },
        DataType::Struct(fields) if is_duration(fields) => {
            let mut fixed = name.declare("fixed");
            fixed.insert("size".to_owned(), json!(12));
            fixed.insert("logicalType".to_owned(), json!("duration"));
            Ok(Value::Object(fixed))
        }
        DataType::Struct(fields) => record(fields, name),
        _ => Err(no_form(data_type, "Avro")),
    }
}

fn decimal(precision: u8, scale: u8) -> Value {
    json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
}

/// A union with null first, so that null can be the default.
fn optional(field: &Field, name: &Name<'_>) -> Result<Value, Unfit> {
    let value = one(field.data_type(), name)?;
    let is_null = field.data_type() == &DataType::Null;
    Ok(if field.is_nullable() && !is_null { json!(["null", value]) } else { value })
}

fn record(fields: &Fields, name: &Name<'_>) -> Result<Value, Unfit> {
    let namespace = name.full();
    let mut declared = Vec::with_capacity(fields.len());
    for field in fields {
        let own = field.name().as_str();
        check_name(own)?;
        let inner = Name { namespace: &namespace, name: own };
        let value = optional(field, &inner).map_err(|unfit| unfit.inside(own))?;
        declared.push(if field.is_nullable() {
            json!({"name": own, "type": value, "default": null})
        } else {
            json!({"name": own, "type": value})
        });
    }
    let mut record = name.declare("record");
    record.insert("fields".to_owned(), Value::Array(declared));
    Ok(Value::Object(record))
}
