//! Columns as Avro: bound to a schema, and written row by row.

pub mod schema;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, Decimal256Array, Float32Array,
    Float64Array, Int64Array, StringArray, StructArray, UInt32Array, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Decimal128Type, Decimal256Type, Float32Type, Float64Type, TimeUnit, UInt32Type, UInt64Type,
    i256,
};

use crate::codec::avro::encode::{self, zigzag};
use crate::codec::avro::node::{Field as SchemaField, Kind, Logical, Node, Record};

use super::times::per_second;
use super::{Misfit, Unfit, is_duration, is_int, is_long, is_null, plain, span, whole};

/// Digits of Arrow's narrower decimal.
const DECIMAL128_DIGITS_MAX: u8 = 38;

/// A column and the type it is written as.
pub struct Column {
    nulls: Option<NullBuffer>,
    /// In a union, the branches of null and of a value.
    null_branch: Option<i64>,
    branch: Option<i64>,
    put: Put,
}

/// How a value that is not null is written.
enum Put {
    Null,
    Boolean(BooleanArray),
    /// Numbers, and times in their unit, each of which is `factor` of the schema's.
    Whole {
        values: Int64Array,
        factor: i64,
    },
    /// As a number with a sign.
    Unsigned(UInt64Array),
    F32(Float32Array),
    F64(Float64Array),
    /// Bytes and text, with their length.
    Bytes(BinaryArray),
    Fixed {
        values: BinaryArray,
        size: usize,
    },
    Enum {
        values: StringArray,
        symbols: HashMap<Arc<str>, i64>,
    },
    Decimal128 {
        values: Decimal128Array,
        /// The first number with a digit too many.
        limit: u128,
        /// Of a fixed type.
        size: Option<usize>,
    },
    Decimal256 {
        values: Decimal256Array,
        limit: i256,
        size: Option<usize>,
    },
    Uuid {
        values: StringArray,
        is_fixed: bool,
    },
    Duration(Box<[UInt32Array; 3]>),
    List {
        offsets: OffsetBuffer<i32>,
        items: Box<Column>,
    },
    Map {
        offsets: OffsetBuffer<i32>,
        keys: BinaryArray,
        values: Box<Column>,
    },
    Record(Vec<Member>),
}

/// A field of a record.
struct Member {
    name: String,
    value: Value,
}

enum Value {
    Column(Box<Column>),
    /// The schema's default: no column has its name.
    Constant(Vec<u8>),
}

/// Binds a column to the type it is written as.
///
/// # Errors
/// [`Unfit`], naming the column.
pub fn bind(node: &Node, array: &ArrayRef) -> Result<Column, Unfit> {
    let nulls = array.logical_nulls();
    let Kind::Union(arms) = &node.kind else {
        return Ok(Column { nulls, null_branch: None, branch: None, put: put(node, array)? });
    };
    let null_branch = arms.iter().position(|arm| arm.kind == Kind::Null).map(|index| index as i64);
    if *array.data_type() == DataType::Null && null_branch.is_some() {
        return Ok(Column { nulls, null_branch, branch: None, put: Put::Null });
    }
    let mut unfit = None;
    for (index, arm) in arms.iter().enumerate().filter(|(_, arm)| arm.kind != Kind::Null) {
        match put(arm, array) {
            Ok(put) => return Ok(Column { nulls, null_branch, branch: Some(index as i64), put }),
            Err(error) => unfit = unfit.or(Some(error)),
        }
    }
    Err(unfit.unwrap_or_else(|| cannot(node, array)))
}

fn cannot(node: &Node, array: &ArrayRef) -> Unfit {
    Unfit::new(format!("is {}, which cannot be written as {}", array.data_type(), node.describe()))
}

fn put(node: &Node, array: &ArrayRef) -> Result<Put, Unfit> {
    let values = plain(array)?;
    let found = match node.logical {
        Some(logical) => logical_put(node, logical, &values)?,
        None => plain_put(node, array, &values)?,
    };
    found.ok_or_else(|| cannot(node, array))
}

/// How values are written as a logical type, if they can be.
fn logical_put(node: &Node, logical: Logical, values: &ArrayRef) -> Result<Option<Put>, Unfit> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond};
    let unit = match logical {
        Logical::TimeMillis | Logical::TimestampMillis | Logical::LocalTimestampMillis => Millisecond,
        Logical::TimeMicros | Logical::TimestampMicros | Logical::LocalTimestampMicros => Microsecond,
        _ => Nanosecond,
    };
    Ok(match (logical, values.data_type()) {
        (Logical::Date, DataType::Date32) => Some(Put::Whole { values: whole(values)?, factor: 1 }),
        (Logical::TimeMillis | Logical::TimeMicros, DataType::Time32(own) | DataType::Time64(own)) => {
            scaled(values, *own, unit)?
        }
        (
            Logical::TimestampMillis | Logical::TimestampMicros | Logical::TimestampNanos,
            DataType::Timestamp(own, Some(_)),
        )
        | (
            Logical::LocalTimestampMillis | Logical::LocalTimestampMicros | Logical::LocalTimestampNanos,
            DataType::Timestamp(own, None),
        ) => scaled(values, *own, unit)?,
        (Logical::Decimal { precision, scale }, _) => decimal(node, precision, scale, values)?,
        (Logical::Uuid, DataType::Utf8) => uuid_put(node, values.as_string().clone()),
        (Logical::Duration, DataType::Struct(fields)) if is_duration(fields) => {
            let parts = values.as_struct();
            let parts = [0, 1, 2].map(|part| parts.column(part).as_primitive::<UInt32Type>().clone());
            Some(Put::Duration(Box::new(parts)))
        }
        _ => None,
    })
}

/// A time in a unit that is as fine or finer: no digit is lost.
fn scaled(values: &ArrayRef, own: TimeUnit, unit: TimeUnit) -> Result<Option<Put>, Unfit> {
    let factor = per_second(unit) / per_second(own);
    Ok(if factor == 0 { None } else { Some(Put::Whole { values: whole(values)?, factor }) })
}

fn decimal(node: &Node, precision: u8, scale: i8, values: &ArrayRef) -> Result<Option<Put>, Unfit> {
    let size = match &node.kind {
        Kind::Bytes => None,
        Kind::Fixed { size, .. } => Some(*size),
        _ => return Ok(None),
    };
    let digits = u32::from(precision);
    let narrow = |values: &ArrayRef| Put::Decimal128 {
        values: values.as_primitive::<Decimal128Type>().clone(),
        limit: 10_u128.pow(digits.min(u32::from(DECIMAL128_DIGITS_MAX))),
        size,
    };
    Ok(match values.data_type() {
        DataType::Decimal128(_, own) if *own == scale => Some(narrow(values)),
        DataType::Decimal256(_, own) if *own == scale => Some(Put::Decimal256 {
            values: values.as_primitive::<Decimal256Type>().clone(),
            limit: i256::from_i128(10).wrapping_pow(digits),
            size,
        }),
        data_type if data_type.is_integer() && scale == 0 => {
            Some(narrow(&cast(values, &DataType::Decimal128(20, 0))?))
        }
        _ => None,
    })
}

fn uuid_put(node: &Node, values: StringArray) -> Option<Put> {
    match &node.kind {
        Kind::String => Some(Put::Bytes(values.into())),
        Kind::Bytes => Some(Put::Uuid { values, is_fixed: false }),
        Kind::Fixed { size: 16, .. } => Some(Put::Uuid { values, is_fixed: true }),
        _ => None,
    }
}

/// How values are written as a type without a further meaning, if they can be.
fn plain_put(node: &Node, array: &ArrayRef, values: &ArrayRef) -> Result<Option<Put>, Unfit> {
    Ok(match (&node.kind, values.data_type()) {
        (Kind::Null, DataType::Null) => Some(Put::Null),
        (Kind::Boolean, DataType::Boolean) => Some(Put::Boolean(values.as_boolean().clone())),
        (Kind::Int, own) if is_int(own) => Some(Put::Whole { values: whole(values)?, factor: 1 }),
        (Kind::Long, own) if is_long(own) => Some(Put::Whole { values: whole(values)?, factor: 1 }),
        (Kind::Long, DataType::UInt64) => Some(Put::Unsigned(values.as_primitive::<UInt64Type>().clone())),
        (Kind::Float, DataType::Float32) => Some(Put::F32(values.as_primitive::<Float32Type>().clone())),
        (Kind::Double, DataType::Float32 | DataType::Float64) => {
            Some(Put::F64(cast(values, &DataType::Float64)?.as_primitive::<Float64Type>().clone()))
        }
        (Kind::String | Kind::Bytes, DataType::Utf8) => {
            Some(Put::Bytes(values.as_string::<i32>().clone().into()))
        }
        (Kind::Bytes, DataType::Binary) => Some(Put::Bytes(values.as_binary().clone())),
        (Kind::Fixed { size, .. }, DataType::Binary) => {
            let own = if let DataType::FixedSizeBinary(own) = array.data_type() {
                Some(*own as usize)
            } else {
                None
            };
            let fits = own.is_none_or(|own| own == *size);
            fits.then(|| Put::Fixed { values: values.as_binary().clone(), size: *size })
        }
        (Kind::Enum(symbols), DataType::Utf8) => Some(Put::Enum {
            values: values.as_string().clone(),
            symbols: symbols.symbols.iter().cloned().zip(0..).collect(),
        }),
        (Kind::Array(item), DataType::List(_)) => {
            let list = values.as_list::<i32>();
            let items = Box::new(bind(item, list.values())?);
            Some(Put::List { offsets: list.offsets().clone(), items })
        }
        (Kind::Map(value), DataType::Map(..)) => {
            let map = values.as_map();
            let keys = keys(map.keys())?;
            let values = Box::new(bind(value, map.values())?);
            keys.map(|keys| Put::Map { offsets: map.offsets().clone(), keys, values })
        }
        (Kind::Record(record), DataType::Struct(_)) => Some(members(record, values.as_struct())?),
        _ => None,
    })
}

/// Avro's maps have keys of text only; numbers are their digits.
fn keys(keys: &ArrayRef) -> Result<Option<BinaryArray>, Unfit> {
    let keys = plain(keys)?;
    let has_text = *keys.data_type() == DataType::Boolean || keys.data_type().is_integer();
    Ok(match keys.data_type() {
        DataType::Utf8 => Some(keys.as_string::<i32>().clone().into()),
        _ if has_text => Some(cast(&keys, &DataType::Utf8)?.as_string::<i32>().clone().into()),
        _ => None,
    })
}

/// Columns and fields are matched by their names.
fn members(record: &Record, array: &StructArray) -> Result<Put, Unfit> {
    let names = array.fields().iter().map(|field| field.name().as_str());
    let mut columns: HashMap<&str, &ArrayRef> = names.zip(array.columns()).collect();
    let mut members = Vec::with_capacity(record.fields.len());
    for field in &record.fields {
        let value = match columns.remove(field.name.as_str()) {
            Some(column) => bind(&field.node, column).map(|column| Value::Column(Box::new(column))),
            None => default(field).map(Value::Constant),
        };
        let value = value.map_err(|unfit| unfit.inside(&field.name))?;
        members.push(Member { name: field.name.clone(), value });
    }
    // The first of them in the order of the columns.
    let extra = array.fields().iter().find(|field| columns.contains_key(field.name().as_str()));
    match extra {
        Some(extra) => {
            let problem = format!("is no field of `{}`: leave it out in a view", record.name);
            Err(Unfit::new(problem).inside(extra.name()))
        }
        None => Ok(Put::Record(members)),
    }
}

fn default(field: &SchemaField) -> Result<Vec<u8>, Unfit> {
    let Some(default) = &field.default else {
        return Err(Unfit::new("is not there, and the schema has no default for it"));
    };
    encode::value(&field.node, default)
        .map_err(|error| Unfit::new(format!("is not there, and its default is of no use: {error}")))
}

impl Column {
    pub fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Misfit> {
        if is_null(self.nulls.as_ref(), row) {
            return match self.null_branch {
                Some(branch) => {
                    zigzag(branch, out);
                    Ok(())
                }
                None if matches!(self.put, Put::Null) => Ok(()),
                None => Err(Misfit::new("is null, and its schema has no null")),
            };
        }
        if let Some(branch) = self.branch {
            zigzag(branch, out);
        }
        self.put.write(row, out)
    }
}

impl Put {
    fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Misfit> {
        match self {
            Self::Null => {}
            Self::Boolean(values) => out.push(u8::from(values.value(row))),
            Self::Whole { values, factor } => {
                let number = values.value(row).checked_mul(*factor);
                zigzag(
                    number.ok_or_else(|| Misfit::new("is a time beyond 64 bits in its schema's unit"))?,
                    out,
                );
            }
            Self::Unsigned(values) => {
                let number = i64::try_from(values.value(row));
                zigzag(number.map_err(|_| Misfit::new("is a number beyond `long`"))?, out);
            }
            Self::F32(values) => out.extend_from_slice(&values.value(row).to_le_bytes()),
            Self::F64(values) => out.extend_from_slice(&values.value(row).to_le_bytes()),
            Self::Bytes(values) => put_bytes(values.value(row), out),
            Self::Fixed { values, size } => {
                let bytes = values.value(row);
                if bytes.len() != *size {
                    return Err(Misfit::new("has not the number of bytes that its schema wants"));
                }
                out.extend_from_slice(bytes);
            }
            Self::Enum { values, symbols } => {
                let symbol = symbols.get(values.value(row));
                zigzag(*symbol.ok_or_else(|| Misfit::new("is no symbol of its enum"))?, out);
            }
            Self::Decimal128 { values, limit, size } => {
                let number = values.value(row);
                check_digits(number.unsigned_abs() < *limit)?;
                put_number(&number.to_be_bytes(), *size, out)?;
            }
            Self::Decimal256 { values, limit, size } => {
                let number = values.value(row);
                check_digits(number.checked_abs().is_some_and(|number| number < *limit))?;
                put_number(&number.to_be_bytes(), *size, out)?;
            }
            Self::Uuid { values, is_fixed } => {
                let uuid = values.value(row).parse::<uuid::Uuid>();
                let uuid = uuid.map_err(|_| Misfit::new("is no UUID"))?;
                if *is_fixed {
                    out.extend_from_slice(uuid.as_bytes());
                } else {
                    put_bytes(uuid.as_bytes(), out);
                }
            }
            Self::Duration(parts) => {
                for part in parts.iter() {
                    out.extend_from_slice(&part.value(row).to_le_bytes());
                }
            }
            Self::List { offsets, items } => {
                let span = span(offsets, row);
                put_count(span.len(), out);
                for item in span {
                    items.write(item, out)?;
                }
                out.push(0);
            }
            Self::Map { offsets, keys, values } => {
                let span = span(offsets, row);
                put_count(span.len(), out);
                for entry in span {
                    put_bytes(keys.value(entry), out);
                    values.write(entry, out)?;
                }
                out.push(0);
            }
            Self::Record(members) => {
                for member in members {
                    match &member.value {
                        Value::Column(column) => {
                            column.write(row, out).map_err(|misfit| misfit.inside(&member.name))?;
                        }
                        Value::Constant(bytes) => out.extend_from_slice(bytes),
                    }
                }
            }
        }
        Ok(())
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    zigzag(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

/// The items of an array or a map are one block; none is a block of its own.
fn put_count(count: usize, out: &mut Vec<u8>) {
    if count > 0 {
        zigzag(count as i64, out);
    }
}

fn check_digits(fits: bool) -> Result<(), Misfit> {
    if fits { Ok(()) } else { Err(Misfit::new("has more digits than its schema")) }
}

/// A number of a decimal, from its big-endian bytes: the fewest that keep its sign, or as many as a fixed type has.
fn put_number(bytes: &[u8], size: Option<usize>, out: &mut Vec<u8>) -> Result<(), Misfit> {
    let is_sign = |pair: &&[u8]| matches!((pair[0], pair[1] >> 7), (0, 0) | (0xff, 1));
    let short = &bytes[bytes.windows(2).take_while(is_sign).count()..];
    let Some(size) = size else {
        put_bytes(short, out);
        return Ok(());
    };
    let fill = size.checked_sub(short.len()).ok_or_else(|| Misfit::new("has more digits than its schema"))?;
    let sign = if short.first().is_some_and(|first| first >> 7 == 1) { 0xff } else { 0 };
    out.resize(out.len() + fill, sign);
    out.extend_from_slice(short);
    Ok(())
}
