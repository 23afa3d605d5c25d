//! How one value of a column is written as a Protobuf type.

use std::collections::HashMap;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, Float64Array, Int64Array, StringArray,
    UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type, TimeUnit, UInt64Type};
use protox::prost_reflect::{EnumDescriptor, Kind, MessageDescriptor};

use crate::codec::avro::encode::zigzag;
use crate::encode::times::{SECOND_MAX, SECOND_MIN, Times, per_second};
use crate::encode::{Misfit, Unfit, is_int, is_long, plain, whole};
use crate::render::Values;

use super::{BITS32, BITS64, BYTES, Message, VARINT, prefixed, tag, varint};

pub enum Op {
    /// Also negative ones, which take ten bytes.
    Varint(Int64Array),
    Unsigned(UInt64Array),
    Zigzag(Int64Array),
    /// The lower half is what counts.
    Bits32(Int64Array),
    Bits64(Int64Array),
    UnsignedBits64(UInt64Array),
    Boolean(BooleanArray),
    F32(Float32Array),
    F64(Float64Array),
    /// Bytes and text.
    Bytes(BinaryArray),
    /// What becomes text first.
    Text(Box<Text>),
    Enum {
        values: StringArray,
        numbers: HashMap<String, i32>,
    },
    /// `google.protobuf.Timestamp`
    Timestamp {
        values: Int64Array,
        per_second: i64,
    },
    /// `google.protobuf.StringValue` and its like.
    Wrapper {
        tag: Vec<u8>,
        op: Box<Op>,
    },
    Message(Message),
}

pub struct Text {
    values: Values,
    times: Option<Times>,
}

impl Op {
    /// Binds values to a type. Nulls among them are not looked at.
    pub fn bind(kind: &Kind, array: &ArrayRef) -> Result<Self, Unfit> {
        let values = plain(array)?;
        let found = match kind {
            Kind::Message(message) => message_op(message, &values)?,
            Kind::Enum(descriptor) if *values.data_type() == DataType::Utf8 => {
                Some(Self::Enum { values: values.as_string().clone(), numbers: numbers(descriptor) })
            }
            Kind::String => text(&values)?,
            Kind::Bool if *values.data_type() == DataType::Boolean => {
                Some(Self::Boolean(values.as_boolean().clone()))
            }
            Kind::Bytes if *values.data_type() == DataType::Binary => {
                Some(Self::Bytes(values.as_binary().clone()))
            }
            Kind::Float if *values.data_type() == DataType::Float32 => {
                Some(Self::F32(values.as_primitive::<Float32Type>().clone()))
            }
            Kind::Double if values.data_type().is_floating() => {
                Some(Self::F64(cast(&values, &DataType::Float64)?.as_primitive::<Float64Type>().clone()))
            }
            other => number(other, &values)?,
        };
        found.ok_or_else(|| {
            Unfit::new(format!("is {}, which cannot be written as `{kind:?}`", array.data_type()))
        })
    }

    pub fn kind_of_tag(&self) -> u32 {
        match self {
            Self::Varint(_) | Self::Unsigned(_) | Self::Zigzag(_) | Self::Boolean(_) | Self::Enum { .. } => {
                VARINT
            }
            Self::Bits32(_) | Self::F32(_) => BITS32,
            Self::Bits64(_) | Self::UnsignedBits64(_) | Self::F64(_) => BITS64,
            Self::Bytes(_)
            | Self::Text(_)
            | Self::Timestamp { .. }
            | Self::Wrapper { .. }
            | Self::Message(_) => BYTES,
        }
    }

    /// Is it what a reader makes of a field that is not there?
    pub fn is_zero(&self, row: usize) -> bool {
        match self {
            Self::Varint(values) | Self::Zigzag(values) | Self::Bits32(values) | Self::Bits64(values) => {
                values.value(row) == 0
            }
            Self::Unsigned(values) | Self::UnsignedBits64(values) => values.value(row) == 0,
            Self::Boolean(values) => !values.value(row),
            // Minus zero is another number.
            Self::F32(values) => values.value(row).to_bits() == 0,
            Self::F64(values) => values.value(row).to_bits() == 0,
            Self::Bytes(values) => values.value(row).is_empty(),
            Self::Enum { values, numbers } => numbers.get(values.value(row)) == Some(&0),
            Self::Text(_) | Self::Timestamp { .. } | Self::Wrapper { .. } | Self::Message(_) => false,
        }
    }

    pub fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Misfit> {
        match self {
            Self::Varint(values) => varint(values.value(row) as u64, out),
            Self::Unsigned(values) => varint(values.value(row), out),
            Self::Zigzag(values) => zigzag(values.value(row), out),
            Self::Bits32(values) => out.extend_from_slice(&(values.value(row) as u32).to_le_bytes()),
            Self::Bits64(values) => out.extend_from_slice(&values.value(row).to_le_bytes()),
            Self::UnsignedBits64(values) => out.extend_from_slice(&values.value(row).to_le_bytes()),
            Self::Boolean(values) => out.push(u8::from(values.value(row))),
            Self::F32(values) => out.extend_from_slice(&values.value(row).to_le_bytes()),
            Self::F64(values) => out.extend_from_slice(&values.value(row).to_le_bytes()),
            Self::Bytes(values) => {
                let bytes = values.value(row);
                varint(bytes.len() as u64, out);
                out.extend_from_slice(bytes);
            }
            Self::Text(text) => {
                if let Some(times) = &text.times {
                    times.check(row)?;
                }
                return prefixed(out, |out| {
                    text.values.write_plain(row, out);
                    Ok(())
                });
            }
            Self::Enum { values, numbers } => {
                let name = values.value(row);
                // Readers give a number without a name as its digits.
                let number = numbers.get(name).copied().or_else(|| name.parse().ok());
                let number = number.ok_or_else(|| Misfit::new("is no value of its enum"))?;
                varint(i64::from(number) as u64, out);
            }
            Self::Timestamp { values, per_second } => {
                return put_timestamp(values.value(row), *per_second, out);
            }
            Self::Wrapper { tag, op } => {
                return prefixed(out, |out| {
                    if op.is_zero(row) {
                        return Ok(());
                    }
                    out.extend_from_slice(tag);
                    op.write(row, out)
                });
            }
            Self::Message(message) => return prefixed(out, |out| message.write(row, out)),
        }
        Ok(())
    }
}

fn put_timestamp(value: i64, per_second: i64, out: &mut Vec<u8>) -> Result<(), Misfit> {
    let seconds = value.div_euclid(per_second);
    let nanos = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
    if !(SECOND_MIN..=SECOND_MAX).contains(&seconds) {
        return Err(Misfit::new(
            "is a time outside the years 1 to 9999, and Protobuf's timestamps end there",
        ));
    }
    prefixed(out, |out| {
        for (number, part) in [(1, seconds), (2, nanos)] {
            if part != 0 {
                out.extend_from_slice(&tag(number, VARINT));
                varint(part as u64, out);
            }
        }
        Ok(())
    })
}

fn number(kind: &Kind, values: &ArrayRef) -> Result<Option<Op>, Unfit> {
    let own = values.data_type();
    let is_unsigned = matches!(own, DataType::UInt8 | DataType::UInt16 | DataType::UInt32);
    let unsigned = || values.as_primitive::<UInt64Type>().clone();
    Ok(match kind {
        Kind::Int32 if is_int(own) => Some(Op::Varint(whole(values)?)),
        Kind::Int64 if is_long(own) => Some(Op::Varint(whole(values)?)),
        Kind::Sint32 if is_int(own) => Some(Op::Zigzag(whole(values)?)),
        Kind::Sint64 if is_long(own) => Some(Op::Zigzag(whole(values)?)),
        Kind::Sfixed32 if is_int(own) => Some(Op::Bits32(whole(values)?)),
        Kind::Sfixed64 if is_long(own) => Some(Op::Bits64(whole(values)?)),
        Kind::Uint32 if is_unsigned => Some(Op::Varint(whole(values)?)),
        Kind::Fixed32 if is_unsigned => Some(Op::Bits32(whole(values)?)),
        Kind::Uint64 if is_unsigned => Some(Op::Varint(whole(values)?)),
        Kind::Fixed64 if is_unsigned => Some(Op::Bits64(whole(values)?)),
        Kind::Uint64 if *own == DataType::UInt64 => Some(Op::Unsigned(unsigned())),
        Kind::Fixed64 if *own == DataType::UInt64 => Some(Op::UnsignedBits64(unsigned())),
        _ => None,
    })
}

/// Text, and what has a text in one form only.
fn text(values: &ArrayRef) -> Result<Option<Op>, Unfit> {
    Ok(match values.data_type() {
        DataType::Utf8 => Some(Op::Bytes(values.as_string::<i32>().clone().into())),
        DataType::Date32
        | DataType::Time32(TimeUnit::Millisecond)
        | DataType::Time64(TimeUnit::Microsecond)
        | DataType::Timestamp(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => {
            Some(Op::Text(Box::new(Text { values: Values::new(values)?, times: Times::of(values)? })))
        }
        _ => None,
    })
}

fn message_op(message: &MessageDescriptor, values: &ArrayRef) -> Result<Option<Op>, Unfit> {
    let well_known = message.full_name().strip_prefix("google.protobuf.").unwrap_or_default();
    Ok(match (well_known, values.data_type()) {
        ("Timestamp", DataType::Timestamp(unit, Some(_))) => {
            Some(Op::Timestamp { values: whole(values)?, per_second: per_second(*unit) })
        }
        // Recursive, and read as JSON text: nothing of ours writes them.
        ("Timestamp" | "Struct" | "Value" | "ListValue", _) => None,
        (
            "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value"
            | "BoolValue" | "StringValue" | "BytesValue",
            _,
        ) => match message.get_field(1) {
            Some(field) => {
                let op = Op::bind(&field.kind(), values)?;
                Some(Op::Wrapper { tag: tag(1, op.kind_of_tag()), op: Box::new(op) })
            }
            None => None,
        },
        (_, DataType::Struct(_)) => Some(Op::Message(Message::bind(message, values.as_struct())?)),
        _ => None,
    })
}

fn numbers(descriptor: &EnumDescriptor) -> HashMap<String, i32> {
    descriptor.values().map(|value| (value.name().to_owned(), value.number())).collect()
}
