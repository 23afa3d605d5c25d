//! Which Arrow type an Avro type becomes. `docs/types.md` has the table for users.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use super::node::{Arm, Kind, Logical, Node, Record, SchemaError};
use crate::codec::limits::FIXED_BYTES_MAX;

/// Digits a 128-bit decimal holds.
const DECIMAL128_DIGITS_MAX: u8 = 38;

/// The Arrow schema of a record type. With `nullable`, every top-level column is nullable: rows of
/// nulls stand for tombstones.
///
/// # Errors
/// [`SchemaError`] with the path of a type that has no Arrow form.
pub fn schema(node: &Node, nullable: bool) -> Result<SchemaRef, SchemaError> {
    let Kind::Record(record) = &node.kind else {
        return Err(SchemaError::NotARecord(match node.kind {
            Kind::Union(_) => "a union",
            Kind::Choice(_) => "one of several types",
            _ if node.logical == Some(Logical::Json) => {
                "any JSON (it has no `properties`, or a choice of types that is none of columns)"
            }
            _ => "a single value",
        }));
    };
    if record.fields.is_empty() {
        return Err(SchemaError::NotARecord("a record without fields"));
    }
    let fields = fields(record, "")?;
    let fields: Fields = if nullable {
        fields.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect()
    } else {
        fields
    };
    Ok(Arc::new(Schema::new(fields)))
}

fn fields(record: &Record, path: &str) -> Result<Fields, SchemaError> {
    record.fields.iter().map(|entry| field(&entry.name, &entry.node, path)).collect()
}

/// A node without its null branch, and whether it had one. A union of several other branches is itself, and a struct
/// with a member for each. `None` if it has no branches at all.
pub fn nullable(node: &Node) -> Option<(&Node, bool)> {
    let Kind::Union(arms) = &node.kind else {
        return Some((node, node.kind == Kind::Null));
    };
    let mut others = members(arms);
    let has_null = arms.iter().any(|arm| arm.kind == Kind::Null);
    match (others.next(), others.next()) {
        (Some(only), None) => Some((only, has_null)),
        (None, _) => arms.first().map(|null| (null, true)),
        (Some(_), Some(_)) => Some((node, has_null)),
    }
}

/// The branches of a union that become members of its struct, in order.
pub fn members(arms: &[Node]) -> impl Iterator<Item = &Node> {
    arms.iter().filter(|arm| arm.kind != Kind::Null)
}

/// What the members are called: the name of their type, with its namespace only where two would be called the same.
pub fn member_names(arms: &[Node]) -> Vec<&str> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for arm in members(arms) {
        *counts.entry(arm.branch_short_name()).or_default() += 1;
    }
    let name = |arm| match Node::branch_short_name(arm) {
        short if counts[short] == 1 => short,
        _ => Node::branch_name(arm),
    };
    members(arms).map(name).collect()
}

fn field(name: &str, node: &Node, path: &str) -> Result<Field, SchemaError> {
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let Some((value, is_nullable)) = nullable(node) else {
        return Err(SchemaError::Union { path });
    };
    Ok(Field::new(name, data_type(value, &path)?, is_nullable))
}

fn data_type(node: &Node, path: &str) -> Result<DataType, SchemaError> {
    let utc = || Some(Arc::from("UTC"));
    Ok(match (&node.kind, node.logical) {
        (_, Some(Logical::Date)) => DataType::Date32,
        (_, Some(Logical::TimeMillis)) => DataType::Time32(TimeUnit::Millisecond),
        (_, Some(Logical::TimeMicros)) => DataType::Time64(TimeUnit::Microsecond),
        (_, Some(Logical::TimestampMillis)) => DataType::Timestamp(TimeUnit::Millisecond, utc()),
        (_, Some(Logical::TimestampMicros)) => DataType::Timestamp(TimeUnit::Microsecond, utc()),
        (_, Some(Logical::TimestampNanos)) => DataType::Timestamp(TimeUnit::Nanosecond, utc()),
        (_, Some(Logical::LocalTimestampMillis)) => DataType::Timestamp(TimeUnit::Millisecond, None),
        (_, Some(Logical::LocalTimestampMicros)) => DataType::Timestamp(TimeUnit::Microsecond, None),
        (_, Some(Logical::LocalTimestampNanos)) => DataType::Timestamp(TimeUnit::Nanosecond, None),
        (_, Some(Logical::Decimal { precision, scale })) => {
            if precision <= DECIMAL128_DIGITS_MAX {
                DataType::Decimal128(precision, scale)
            } else {
                DataType::Decimal256(precision, scale)
            }
        }
        (_, Some(Logical::Uuid | Logical::BigDecimal | Logical::Json)) => DataType::Utf8,
        // Arrow's month-day-nano interval cannot be written to Parquet.
        (_, Some(Logical::Duration)) => DataType::Struct(
            ["months", "days", "millis"]
                .map(|part| Field::new(part, DataType::UInt32, false))
                .into_iter()
                .collect(),
        ),
        (Kind::Null, None) => DataType::Null,
        (Kind::Boolean, None) => DataType::Boolean,
        (Kind::Int, None) => DataType::Int32,
        (Kind::Long, None) => DataType::Int64,
        (Kind::Float, None) => DataType::Float32,
        (Kind::Double, None) => DataType::Float64,
        (Kind::Bytes, None) => DataType::Binary,
        (Kind::String | Kind::Enum(_), None) => DataType::Utf8,
        (Kind::Fixed { size, .. }, None) => match i32::try_from(*size) {
            Ok(width @ 1..) if *size <= FIXED_BYTES_MAX => DataType::FixedSizeBinary(width),
            _ => {
                return Err(SchemaError::Unsupported {
                    path: path.to_owned(),
                    what: format!("a fixed of {size} bytes"),
                });
            }
        },
        (Kind::Array(item), None) => DataType::List(Arc::new(field("item", item, path)?)),
        (Kind::Map(value), None) => {
            let entries = vec![Field::new("key", DataType::Utf8, false), field("value", value, path)?];
            let entries = Field::new("entries", DataType::Struct(entries.into()), false);
            DataType::Map(Arc::new(entries), false)
        }
        (Kind::Record(record), None) => DataType::Struct(fields(record, path)?),
        (Kind::Union(arms), None) => {
            let members = members(arms).zip(member_names(arms)).map(|(arm, name)| member(name, arm, path));
            DataType::Struct(members.collect::<Result<_, _>>()?)
        }
        (Kind::Choice(arms), None) => {
            let members = arms.iter().map(|Arm { name, node, .. }| member(name, node, path));
            DataType::Struct(members.collect::<Result<_, _>>()?)
        }
    })
}

/// Of all members of such a struct one is not null.
fn member(name: &str, node: &Node, path: &str) -> Result<Field, SchemaError> {
    Ok(field(name, node, path)?.with_nullable(true))
}
