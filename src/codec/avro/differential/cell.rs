//! The one form that values of all three implementations are brought into before they are compared.

use std::collections::BTreeMap;

use apache_avro::types::Value as Datum;
use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Decimal256Type, FieldRef, Float32Type, Float64Type, Int32Type,
    Int64Type, Time32MillisecondType, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, UInt32Type, i256,
};
use arrow::record_batch::RecordBatch;

use super::generate::RENAMED_FIELD;
use crate::codec::avro::arrow_type;
use crate::codec::avro::node::{Field, Kind, Node};

/// A value. Times are their numbers, enums and uuids their text, unions the value of their branch.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Boolean(bool),
    Int(i64),
    /// Bits, so that -0.0 is not 0.0; all NaN are one.
    Float(u32),
    Double(u64),
    Decimal(i256),
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<Cell>),
    /// Writers may have any order.
    Map(BTreeMap<String, Cell>),
    /// Fields in order, under the names they have in the writer.
    Record(Vec<(String, Cell)>),
}

impl Cell {
    pub fn float(value: f32) -> Self {
        let value = if value.is_nan() { f32::NAN } else { value };
        Self::Float(value.to_bits())
    }

    pub fn double(value: f64) -> Self {
        let value = if value.is_nan() { f64::NAN } else { value };
        Self::Double(value.to_bits())
    }

    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub fn duration(months: u32, days: u32, millis: u32) -> Self {
        let parts = [("months", months), ("days", days), ("millis", millis)];
        Self::Record(parts.map(|(name, value)| (name.to_owned(), Self::Int(value.into()))).into())
    }

    /// A number of two's complement, whatever its length.
    pub fn decimal(bytes: &[u8]) -> Self {
        let sign = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let tail = &bytes[bytes.len().saturating_sub(32)..];
        let mut wide = [sign; 32];
        wide[32 - tail.len()..].copy_from_slice(tail);
        Self::Decimal(i256::from_be_bytes(wide))
    }

    /// The field of the name that the writer has for it.
    pub fn field(name: &str, value: Cell) -> (String, Cell) {
        (name.strip_suffix(RENAMED_FIELD).unwrap_or(name).to_owned(), value)
    }
}

/// The rows of a batch that is of the schema `node`, each a record.
pub fn of_rows(node: &Node, batch: &RecordBatch) -> Vec<Cell> {
    let rows = StructArray::from(batch.clone());
    (0..rows.len()).map(|row| of_node(node, &rows, row)).collect()
}

/// A value of a column of this codec. Of a union of several types, it is that of the one member that is not null.
fn of_node(node: &Node, array: &dyn Array, row: usize) -> Cell {
    if array.is_null(row) {
        return Cell::Null;
    }
    let (node, _) = arrow_type::nullable(node).unwrap();
    match (&node.kind, node.logical) {
        (Kind::Union(arms), None) => {
            let members = arrow_type::members(arms).zip(array.as_struct().columns());
            let there: Vec<_> = members.filter(|(_, member)| member.is_valid(row)).collect();
            assert_eq!(there.len(), 1, "members of a union that are not null");
            of_node(there[0].0, there[0].1.as_ref(), row)
        }
        (Kind::Array(item), None) => {
            let items = array.as_list::<i32>().value(row);
            Cell::List((0..items.len()).map(|at| of_node(item, items.as_ref(), at)).collect())
        }
        (Kind::Map(value), None) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1));
            let entry = |at| (keys.value(at).to_owned(), of_node(value, values.as_ref(), at));
            Cell::Map((0..entries.len()).map(entry).collect())
        }
        (Kind::Record(record), None) => {
            let fields = record.fields.iter().zip(array.as_struct().columns());
            let cell = |(field, column): (&Field, &ArrayRef)| {
                Cell::field(&field.name, of_node(&field.node, column.as_ref(), row))
            };
            Cell::Record(fields.map(cell).collect())
        }
        _ => of_array(array, row),
    }
}

/// A value of an Arrow column as this codec makes them.
pub fn of_array(array: &dyn Array, row: usize) -> Cell {
    if array.is_null(row) {
        return Cell::Null;
    }
    match array.data_type() {
        DataType::Null => Cell::Null,
        DataType::Boolean => Cell::Boolean(array.as_boolean().value(row)),
        DataType::Int32 => Cell::Int(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::UInt32 => Cell::Int(array.as_primitive::<UInt32Type>().value(row).into()),
        DataType::Int64 => Cell::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::Date32 => Cell::Int(array.as_primitive::<Date32Type>().value(row).into()),
        DataType::Time32(_) => Cell::Int(array.as_primitive::<Time32MillisecondType>().value(row).into()),
        DataType::Time64(_) => Cell::Int(array.as_primitive::<Time64MicrosecondType>().value(row)),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            Cell::Int(array.as_primitive::<TimestampMillisecondType>().value(row))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Cell::Int(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Timestamp(_, _) => Cell::Int(array.as_primitive::<TimestampNanosecondType>().value(row)),
        DataType::Float32 => Cell::float(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Cell::double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, _) => {
            Cell::Decimal(i256::from_i128(array.as_primitive::<Decimal128Type>().value(row)))
        }
        DataType::Decimal256(_, _) => Cell::Decimal(array.as_primitive::<Decimal256Type>().value(row)),
        DataType::Binary => Cell::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        DataType::FixedSizeBinary(_) => Cell::Bytes(array.as_fixed_size_binary().value(row).to_vec()),
        DataType::Utf8 => Cell::text(array.as_string::<i32>().value(row)),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            Cell::List((0..items.len()).map(|item| of_array(items.as_ref(), item)).collect())
        }
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1));
            let entry = |entry| (keys.value(entry).to_owned(), of_array(values.as_ref(), entry));
            Cell::Map((0..entries.len()).map(entry).collect())
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns().iter();
            let field = |(field, column): (&FieldRef, &ArrayRef)| {
                Cell::field(field.name(), of_array(column.as_ref(), row))
            };
            Cell::Record(fields.iter().zip(columns).map(field).collect())
        }
        other => panic!("this codec makes no columns of type {other}"),
    }
}

/// A value of apache-avro.
pub fn of_datum(datum: &Datum) -> Cell {
    match datum {
        Datum::Null => Cell::Null,
        Datum::Boolean(value) => Cell::Boolean(*value),
        Datum::Int(value) | Datum::Date(value) | Datum::TimeMillis(value) => Cell::Int((*value).into()),
        Datum::Long(value)
        | Datum::TimeMicros(value)
        | Datum::TimestampMillis(value)
        | Datum::TimestampMicros(value)
        | Datum::TimestampNanos(value)
        | Datum::LocalTimestampMillis(value)
        | Datum::LocalTimestampMicros(value)
        | Datum::LocalTimestampNanos(value) => Cell::Int(*value),
        Datum::Float(value) => Cell::float(*value),
        Datum::Double(value) => Cell::double(*value),
        Datum::Bytes(bytes) | Datum::Fixed(_, bytes) => Cell::Bytes(bytes.clone()),
        Datum::String(text) | Datum::Enum(_, text) => Cell::text(text),
        Datum::Uuid(uuid) => Cell::Text(uuid.hyphenated().to_string()),
        // They cannot give back a decimal of no bytes, which is zero.
        Datum::Decimal(decimal) => Cell::decimal(&Vec::<u8>::try_from(decimal).unwrap_or_else(|_| vec![0])),
        Datum::Duration(parts) => {
            Cell::duration(parts.months().into(), parts.days().into(), parts.millis().into())
        }
        Datum::Union(_, value) => of_datum(value),
        Datum::Array(items) => Cell::List(items.iter().map(of_datum).collect()),
        Datum::Map(entries) => {
            Cell::Map(entries.iter().map(|(key, value)| (key.clone(), of_datum(value))).collect())
        }
        Datum::Record(fields) => {
            Cell::Record(fields.iter().map(|(name, value)| Cell::field(name, of_datum(value))).collect())
        }
        Datum::BigDecimal(_) => panic!("no schema here has a big-decimal"),
    }
}
