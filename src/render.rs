//! Values as text: one table for JSON, CSV and everything that prints (`docs/types.md`).
//!
//! Decimals are JSON numbers with all their digits; bytes are base64; times are RFC 3339 with the digits of
//! their type; NaN and infinities are null; a time beyond year 9999 is its number. Whatever Arrow type has no
//! line here is shown as Arrow shows it.

use std::io::Write;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, GenericBinaryArray, GenericStringArray, OffsetSizeTrait,
    PrimitiveArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type,
    Int8Type, Int16Type, Int32Type, Int64Type, SchemaRef, Time32MillisecondType, Time64MicrosecondType,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::fmt::temporal::DateTimePrinter;

/// A batch whose rows can be written as JSON objects.
pub struct JsonRows {
    /// `"name":` and the column.
    columns: Vec<(Vec<u8>, Values)>,
    row_count: usize,
}

impl JsonRows {
    /// # Errors
    /// If a column cannot be read as what its type says.
    pub fn new(batch: &RecordBatch) -> Result<Self, ArrowError> {
        let schema: SchemaRef = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            let mut name = Vec::new();
            put_text(field.name(), &mut name);
            name.push(b':');
            Ok((name, Values::new(column)?))
        });
        Ok(Self { columns: columns.collect::<Result<_, ArrowError>>()?, row_count: batch.num_rows() })
    }

    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// Appends row `row` as one object, without an end of line.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        out.push(b'{');
        for (index, (name, values)) in self.columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(name);
            values.write(row, out);
        }
        out.push(b'}');
    }
}

/// One column, with its type looked at once.
pub struct Values {
    array: ArrayRef,
    kind: Kind,
}

enum Kind {
    Null,
    Boolean(BooleanArray),
    Text(GenericStringArray<i32>),
    Bytes(GenericBinaryArray<i32>),
    /// Whole numbers and decimals: printed as they are.
    Number,
    F32(PrimitiveArray<Float32Type>),
    F64(PrimitiveArray<Float64Type>),
    Time(fn(&ArrayRef, usize, &mut Vec<u8>)),
    List {
        offsets: Vec<usize>,
        items: Box<Values>,
    },
    Map {
        offsets: Vec<usize>,
        keys: Box<Values>,
        values: Box<Values>,
    },
    Struct(Vec<(Vec<u8>, Values)>),
    Other,
}

impl Values {
    /// # Errors
    /// If the column cannot be cast to the type that is printed.
    pub fn new(column: &ArrayRef) -> Result<Self, ArrowError> {
        let array = match column.data_type() {
            DataType::Dictionary(_, value) => cast(column, value)?,
            DataType::LargeUtf8 | DataType::Utf8View => cast(column, &DataType::Utf8)?,
            DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                cast(column, &DataType::Binary)?
            }
            DataType::Float16 => cast(column, &DataType::Float32)?,
            DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                cast(column, &DataType::List(item.clone()))?
            }
            DataType::Date64 => cast(column, &DataType::Date32)?,
            _ => column.clone(),
        };
        let kind = Self::kind(&array)?;
        Ok(Self { array, kind })
    }

    fn kind(array: &ArrayRef) -> Result<Kind, ArrowError> {
        Ok(match array.data_type() {
            DataType::Null => Kind::Null,
            DataType::Boolean => Kind::Boolean(array.as_boolean().clone()),
            DataType::Utf8 => Kind::Text(array.as_string().clone()),
            DataType::Binary => Kind::Bytes(array.as_binary().clone()),
            DataType::Float32 => Kind::F32(array.as_primitive().clone()),
            DataType::Float64 => Kind::F64(array.as_primitive().clone()),
            data_type if data_type.is_integer() => Kind::Number,
            DataType::Decimal128(..) | DataType::Decimal256(..) => Kind::Number,
            data_type if data_type.is_temporal() => match time_writer(data_type) {
                Some(write) => Kind::Time(write),
                None => Kind::Other,
            },
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                Kind::List { offsets: offsets(list.offsets()), items: Box::new(Self::new(list.values())?) }
            }
            DataType::Map(..) => {
                let map = array.as_map();
                Kind::Map {
                    offsets: offsets(map.offsets()),
                    keys: Box::new(Self::new(map.keys())?),
                    values: Box::new(Self::new(map.values())?),
                }
            }
            DataType::Struct(fields) => {
                let columns = fields.iter().zip(array.as_struct().columns()).map(|(field, column)| {
                    let mut name = Vec::new();
                    put_text(field.name(), &mut name);
                    name.push(b':');
                    Ok((name, Self::new(column)?))
                });
                Kind::Struct(columns.collect::<Result<_, ArrowError>>()?)
            }
            _ => Kind::Other,
        })
    }

    pub fn is_null(&self, row: usize) -> bool {
        self.array.is_null(row) || matches!(self.kind, Kind::Null)
    }

    /// Appends the value of `row` as JSON.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            out.extend_from_slice(b"null");
            return;
        }
        match &self.kind {
            Kind::Null => out.extend_from_slice(b"null"),
            Kind::Boolean(values) => {
                out.extend_from_slice(if values.value(row) { b"true" } else { b"false" });
            }
            Kind::Text(values) => put_text(values.value(row), out),
            Kind::Bytes(values) => put_bytes(values.value(row), out),
            Kind::Number => put_number(&self.array, row, out),
            Kind::F32(values) => put_float(f64::from(values.value(row)), &values.value(row), out),
            Kind::F64(values) => put_float(values.value(row), &values.value(row), out),
            Kind::Time(write) => write(&self.array, row, out),
            Kind::List { offsets, items } => {
                out.push(b'[');
                for item in offsets[row]..offsets[row + 1] {
                    if item > offsets[row] {
                        out.push(b',');
                    }
                    items.write(item, out);
                }
                out.push(b']');
            }
            Kind::Map { offsets, keys, values } => {
                out.push(b'{');
                for entry in offsets[row]..offsets[row + 1] {
                    if entry > offsets[row] {
                        out.push(b',');
                    }
                    keys.write_key(entry, out);
                    out.push(b':');
                    values.write(entry, out);
                }
                out.push(b'}');
            }
            Kind::Struct(columns) => {
                out.push(b'{');
                for (index, (name, values)) in columns.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(name);
                    values.write(row, out);
                }
                out.push(b'}');
            }
            Kind::Other => put_text(&shown(&self.array, row), out),
        }
    }

    /// A map's key: JSON knows only text there.
    fn write_key(&self, row: usize, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::Text(values) => put_text(values.value(row), out),
            _ => put_text(&shown(&self.array, row), out),
        }
    }

    /// The value of `row` as a record's bytes: bytes and text as they are, everything else as text.
    pub fn to_bytes(&self, row: usize) -> Option<Vec<u8>> {
        if self.is_null(row) {
            return None;
        }
        if let Kind::Bytes(values) = &self.kind {
            return Some(values.value(row).to_vec());
        }
        let mut bytes = Vec::new();
        self.write_plain(row, &mut bytes);
        Some(bytes)
    }

    /// Appends the value of `row` without quotes of JSON, for CSV; nested values stay JSON. Null is nothing.
    pub fn write_plain(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            return;
        }
        match &self.kind {
            Kind::Text(values) => out.extend_from_slice(values.value(row).as_bytes()),
            Kind::F32(_) | Kind::F64(_) | Kind::Bytes(_) | Kind::Time(_) | Kind::Other => {
                let mut json = Vec::new();
                self.write(row, &mut json);
                match json.as_slice() {
                    b"null" => {}
                    [b'"', text @ .., b'"'] => out.extend_from_slice(text),
                    other => out.extend_from_slice(other),
                }
            }
            _ => self.write(row, out),
        }
    }
}

fn offsets<O: OffsetSizeTrait>(offsets: &[O]) -> Vec<usize> {
    offsets.iter().map(|offset| offset.as_usize()).collect()
}

/// As Arrow shows it: for types without a form of their own here.
fn shown(array: &ArrayRef, row: usize) -> String {
    let options = FormatOptions::default();
    match ArrayFormatter::try_new(array, &options) {
        Ok(formatter) => formatter.value(row).to_string(),
        Err(error) => format!("({error})"),
    }
}

/// Appends a JSON string.
pub fn put_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => put(out, format_args!("\\u{byte:04x}")),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Appends formatted text; writing to a vector cannot fail.
fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    if out.write_fmt(text).is_err() {
        unreachable!("a vector takes everything")
    }
}

/// Appends bytes as JSON.
pub fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.push(b'"');
}

/// Appends a number of 32 or 64 bits as JSON; `value` is the same number.
pub fn put_float<T: serde::Serialize>(value: f64, as_it_is: &T, out: &mut Vec<u8>) {
    // serde_json prints the shortest text that reads back as the same number.
    if !value.is_finite() || serde_json::to_writer(&mut *out, as_it_is).is_err() {
        out.extend_from_slice(b"null");
    }
}

fn put_number(array: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    fn whole<T: ArrowPrimitiveType>(array: &ArrayRef, row: usize, out: &mut Vec<u8>)
    where
        T::Native: std::fmt::Display,
    {
        put(out, format_args!("{}", array.as_primitive::<T>().value(row)));
    }
    match array.data_type() {
        DataType::Int8 => whole::<Int8Type>(array, row, out),
        DataType::Int16 => whole::<Int16Type>(array, row, out),
        DataType::Int32 => whole::<Int32Type>(array, row, out),
        DataType::Int64 => whole::<Int64Type>(array, row, out),
        DataType::UInt8 => whole::<UInt8Type>(array, row, out),
        DataType::UInt16 => whole::<UInt16Type>(array, row, out),
        DataType::UInt32 => whole::<UInt32Type>(array, row, out),
        DataType::UInt64 => whole::<UInt64Type>(array, row, out),
        DataType::Decimal128(..) => {
            out.extend_from_slice(array.as_primitive::<Decimal128Type>().value_as_string(row).as_bytes());
        }
        DataType::Decimal256(..) => {
            out.extend_from_slice(array.as_primitive::<Decimal256Type>().value_as_string(row).as_bytes());
        }
        _ => put_text(&shown(array, row), out),
    }
}

/// How a value of this type is printed; `None` for durations and intervals.
fn time_writer(data_type: &DataType) -> Option<fn(&ArrayRef, usize, &mut Vec<u8>)> {
    Some(match data_type {
        DataType::Date32 => |array, row, out| {
            put_date(array.as_primitive::<Date32Type>().value(row), out);
        },
        DataType::Time32(TimeUnit::Millisecond) => |array, row, out| {
            let value = i64::from(array.as_primitive::<Time32MillisecondType>().value(row));
            put_time_of_day(value, 1_000_000, 3, out);
        },
        DataType::Time64(TimeUnit::Microsecond) => |array, row, out| {
            put_time_of_day(array.as_primitive::<Time64MicrosecondType>().value(row), 1_000, 6, out);
        },
        DataType::Timestamp(TimeUnit::Second, _) => |array, row, out| {
            put_timestamp(
                array,
                array.as_primitive::<TimestampSecondType>().value(row),
                1_000_000_000,
                0,
                out,
            );
        },
        DataType::Timestamp(TimeUnit::Millisecond, _) => |array, row, out| {
            put_timestamp(
                array,
                array.as_primitive::<TimestampMillisecondType>().value(row),
                1_000_000,
                3,
                out,
            );
        },
        DataType::Timestamp(TimeUnit::Microsecond, _) => |array, row, out| {
            put_timestamp(array, array.as_primitive::<TimestampMicrosecondType>().value(row), 1_000, 6, out);
        },
        DataType::Timestamp(TimeUnit::Nanosecond, _) => |array, row, out| {
            put_timestamp(array, array.as_primitive::<TimestampNanosecondType>().value(row), 1, 9, out);
        },
        _ => return None,
    })
}

/// Appends a date, which is days since 1970, as JSON.
pub fn put_date(days: i32, out: &mut Vec<u8>) {
    match jiff::Timestamp::from_second(i64::from(days) * 86_400) {
        Ok(time) => put(out, format_args!("\"{}\"", time.to_zoned(jiff::tz::TimeZone::UTC).date())),
        Err(_) => put(out, format_args!("{days}")),
    }
}

/// Appends a time of day as JSON.
pub fn put_time_of_day(value: i64, nanos_per_unit: i128, digits: usize, out: &mut Vec<u8>) {
    let nanos = i128::from(value) * nanos_per_unit;
    if !(0..86_400_000_000_000).contains(&nanos) {
        put(out, format_args!("{value}"));
        return;
    }
    let (seconds, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let fraction = &format!("{nanos:09}")[..digits];
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    put(out, format_args!("\"{hour:02}:{minute:02}:{second:02}.{fraction}\""));
}

/// With a time zone it is an instant.
fn put_timestamp(array: &ArrayRef, value: i64, nanos_per_unit: i128, digits: u8, out: &mut Vec<u8>) {
    let is_instant = matches!(array.data_type(), DataType::Timestamp(_, Some(_)));
    put_time(is_instant, value, nanos_per_unit, digits, out);
}

/// Appends a time as JSON: an instant, in UTC, or what a clock on a wall showed.
pub fn put_time(is_instant: bool, value: i64, nanos_per_unit: i128, digits: u8, out: &mut Vec<u8>) {
    let printer = DateTimePrinter::new().precision(Some(digits));
    let Ok(time) = jiff::Timestamp::from_nanosecond(i128::from(value) * nanos_per_unit) else {
        put(out, format_args!("{value}"));
        return;
    };
    let text = if is_instant {
        printer.timestamp_to_string(&time)
    } else {
        printer.datetime_to_string(&time.to_zoned(jiff::tz::TimeZone::UTC).datetime())
    };
    put(out, format_args!("\"{text}\""));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray, MapBuilder,
        StringArray, StringBuilder, StructArray, Time32MillisecondArray, TimestampMicrosecondArray,
        TimestampMillisecondArray,
    };
    use arrow::datatypes::{Field, Schema};

    use super::*;

    fn rendered(column: ArrayRef) -> Vec<String> {
        let values = Values::new(&column).unwrap();
        (0..column.len())
            .map(|row| {
                let (mut json, mut plain) = (Vec::new(), Vec::new());
                values.write(row, &mut json);
                values.write_plain(row, &mut plain);
                format!("{} {}", String::from_utf8(json).unwrap(), String::from_utf8(plain).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_table_of_text_forms() {
        let decimals = Decimal128Array::from(vec![Some(-12345), Some(7), None]);
        assert_eq!(
            rendered(Arc::new(decimals.with_precision_and_scale(9, 2).unwrap())),
            ["-123.45 -123.45", "0.07 0.07", "null "]
        );
        assert_eq!(
            rendered(Arc::new(Float64Array::from(vec![1.0, f64::NAN, f64::NEG_INFINITY, 0.1]))),
            ["1.0 1.0", "null ", "null ", "0.1 0.1"]
        );
        assert_eq!(rendered(Arc::new(BinaryArray::from_vec(vec![b"\x00\xff"]))), ["\"AP8=\" AP8="]);
        assert_eq!(
            rendered(Arc::new(StringArray::from(vec!["a\"b\\\n\u{1}ü"]))),
            ["\"a\\\"b\\\\\\n\\u0001ü\" a\"b\\\n\u{1}ü"]
        );
        let millis = TimestampMillisecondArray::from(vec![1_500, -1, i64::MAX]);
        assert_eq!(
            rendered(Arc::new(millis.with_timezone("UTC"))),
            [
                "\"1970-01-01T00:00:01.500Z\" 1970-01-01T00:00:01.500Z",
                "\"1969-12-31T23:59:59.999Z\" 1969-12-31T23:59:59.999Z",
                "9223372036854775807 9223372036854775807"
            ]
        );
        assert_eq!(
            rendered(Arc::new(TimestampMicrosecondArray::from(vec![1]))),
            ["\"1970-01-01T00:00:00.000001\" 1970-01-01T00:00:00.000001"]
        );
        assert_eq!(rendered(Arc::new(Date32Array::from(vec![19000]))), ["\"2022-01-08\" 2022-01-08"]);
        assert_eq!(
            rendered(Arc::new(Time32MillisecondArray::from(vec![3_661_001]))),
            ["\"01:01:01.001\" 01:01:01.001"]
        );
    }

    #[test]
    fn nested_values_are_json_everywhere() {
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
        assert_eq!(rendered(Arc::new(list)), ["[1,null] [1,null]", "null "]);
        let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        map.keys().append_value("k");
        map.values().append_value("v");
        map.append(true).unwrap();
        assert_eq!(rendered(Arc::new(map.finish())), ["{\"k\":\"v\"} {\"k\":\"v\"}"]);
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![5]));
        let fields = vec![(Arc::new(Field::new("n", DataType::Int64, false)), numbers.clone())];
        assert_eq!(rendered(Arc::new(StructArray::from(fields))), ["{\"n\":5} {\"n\":5}"]);
        let schema = Arc::new(Schema::new(vec![Field::new("a \"b\"", DataType::Int64, false)]));
        let rows = JsonRows::new(&RecordBatch::try_new(schema, vec![numbers]).unwrap()).unwrap();
        let mut out = Vec::new();
        rows.write(0, &mut out);
        assert_eq!(out, b"{\"a \\\"b\\\"\":5}");
    }
}
