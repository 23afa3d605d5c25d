//! Rows as PostgreSQL reads them in a binary `COPY`: by the type of each target column, without a value in between.
//!
//! `postgres-types` encodes one boxed value after the other; here a column's type is looked at once per batch. Whole
//! numbers are checked against their column, so that none is cut.

use std::fmt::Write;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int64Array,
    IntervalMonthDayNanoArray, StringArray, UInt64Array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Decimal256Type, DurationMicrosecondType, DurationMillisecondType,
    DurationNanosecondType, DurationSecondType, IntervalUnit, Time64MicrosecondType, Time64NanosecondType,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use arrow::error::ArrowError;
use uuid::Uuid;

use crate::render;

use super::partial::Missing;
use super::types::{Form, is_nested, micros};

/// What every binary copy begins with: the signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Instead of a number of columns, behind the last row.
const TRAILER: i16 = -1;

/// A piece that is sent when it is this long: few messages, and the server reads while we go on.
const PIECE_BYTES: usize = 256 * 1024;

/// Days from 1970-01-01 to PostgreSQL's 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

const OUT_OF_RANGE: &str = "a number that the column cannot hold";
const TIME_OUT_OF_RANGE: &str = "a time that PostgreSQL cannot hold";

/// A value that its column will never take. It does not say the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` has {problem}")]
pub struct Unfit {
    pub column: String,
    pub problem: &'static str,
}

/// The values of one column of the copy.
pub struct Column {
    name: String,
    is_key: bool,
    nulls: Option<NullBuffer>,
    values: Values,
}

enum Values {
    Null,
    Bool(BooleanArray),
    Whole(Int64Array, Form),
    Unsigned(UInt64Array, Form),
    /// Decimals of 128 or 256 bits, and their scale.
    Decimal(ArrayRef, i8),
    F32(Float32Array, Form),
    F64(Float64Array),
    Text(StringArray, Form),
    Bytes(BinaryArray),
    Date(Date32Array),
    /// Numbers of some unit since an epoch, as microseconds since `epoch`.
    Micros {
        values: Int64Array,
        unit: (i64, i64),
        epoch: i64,
    },
    Elapsed(Int64Array, (i64, i64)),
    Interval(IntervalMonthDayNanoArray),
    Nested(render::Values, Form),
}

impl Column {
    /// `values` [fit](super::types::fits) into `form`.
    ///
    /// # Errors
    /// If Arrow cannot cast them: a bug of ours, or a column of more than two gigabytes.
    pub fn new(name: &str, values: &ArrayRef, form: Form, is_key: bool) -> Result<Self, ArrowError> {
        let plain = match values.data_type() {
            DataType::Dictionary(_, value) => cast(values, value)?,
            _ => values.clone(),
        };
        Ok(Self {
            name: name.to_owned(),
            is_key,
            nulls: plain.logical_nulls(),
            values: Values::new(&plain, form)?,
        })
    }

    fn put(&self, row: usize, out: &mut Vec<u8>, scratch: &mut String) -> Result<(), Unfit> {
        let unfit = |problem| Unfit { column: self.name.clone(), problem };
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            if self.is_key {
                return Err(unfit("null, and it is part of the key"));
            }
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            return Ok(());
        }
        self.values.put(row, out, scratch).map_err(unfit)
    }
}

impl Values {
    fn new(array: &ArrayRef, form: Form) -> Result<Self, ArrowError> {
        Ok(match array.data_type() {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool(array.as_boolean().clone()),
            DataType::UInt64 => Self::Unsigned(array.as_primitive().clone(), form),
            data_type if data_type.is_integer() => {
                Self::Whole(cast(array, &DataType::Int64)?.as_primitive().clone(), form)
            }
            DataType::Decimal128(_, scale) | DataType::Decimal256(_, scale) => {
                Self::Decimal(array.clone(), *scale)
            }
            DataType::Float16 | DataType::Float32 => {
                Self::F32(cast(array, &DataType::Float32)?.as_primitive().clone(), form)
            }
            DataType::Float64 => Self::F64(array.as_primitive().clone()),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Self::Text(cast(array, &DataType::Utf8)?.as_string().clone(), form)
            }
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => {
                Self::Bytes(cast(array, &DataType::Binary)?.as_binary().clone())
            }
            DataType::Date32 | DataType::Date64 => {
                Self::Date(cast(array, &DataType::Date32)?.as_primitive::<Date32Type>().clone())
            }
            DataType::Time32(_) => {
                let times = cast(array, &DataType::Time64(TimeUnit::Microsecond))?;
                Self::micros(times.as_primitive::<Time64MicrosecondType>().reinterpret_cast(), (1, 1), 0)
            }
            DataType::Time64(TimeUnit::Nanosecond) => {
                let values = array.as_primitive::<Time64NanosecondType>().reinterpret_cast();
                Self::micros(values, micros(TimeUnit::Nanosecond), 0)
            }
            DataType::Time64(_) => {
                Self::micros(array.as_primitive::<Time64MicrosecondType>().reinterpret_cast(), (1, 1), 0)
            }
            DataType::Timestamp(unit, _) => {
                let values = match unit {
                    TimeUnit::Second => array.as_primitive::<TimestampSecondType>().reinterpret_cast(),
                    TimeUnit::Millisecond => {
                        array.as_primitive::<TimestampMillisecondType>().reinterpret_cast()
                    }
                    TimeUnit::Microsecond => {
                        array.as_primitive::<TimestampMicrosecondType>().reinterpret_cast()
                    }
                    TimeUnit::Nanosecond => {
                        array.as_primitive::<TimestampNanosecondType>().reinterpret_cast()
                    }
                };
                Self::micros(values, micros(*unit), EPOCH_MICROS)
            }
            DataType::Duration(unit) => {
                let values = match unit {
                    TimeUnit::Second => array.as_primitive::<DurationSecondType>().reinterpret_cast(),
                    TimeUnit::Millisecond => {
                        array.as_primitive::<DurationMillisecondType>().reinterpret_cast()
                    }
                    TimeUnit::Microsecond => {
                        array.as_primitive::<DurationMicrosecondType>().reinterpret_cast()
                    }
                    TimeUnit::Nanosecond => array.as_primitive::<DurationNanosecondType>().reinterpret_cast(),
                };
                Self::Elapsed(values, micros(*unit))
            }
            DataType::Interval(_) => {
                let interval = cast(array, &DataType::Interval(IntervalUnit::MonthDayNano))?;
                Self::Interval(interval.as_primitive().clone())
            }
            nested if is_nested(nested) => Self::Nested(render::Values::new(array)?, form),
            other => return Err(ArrowError::NotYetImplemented(format!("{other} in a copy"))),
        })
    }

    fn micros(values: Int64Array, unit: (i64, i64), epoch: i64) -> Self {
        Self::Micros { values, unit, epoch }
    }

    /// Appends the length and the bytes of a value that is not null.
    fn put(&self, row: usize, out: &mut Vec<u8>, scratch: &mut String) -> Result<(), &'static str> {
        match self {
            Self::Null => out.extend_from_slice(&(-1_i32).to_be_bytes()),
            Self::Bool(values) => fixed([u8::from(values.value(row))], out),
            Self::Whole(values, form) => put_whole(values.value(row), *form, out, scratch)?,
            Self::Unsigned(values, Form::Numeric { .. }) => {
                put_number(&values.value(row), 0, out, scratch)?;
            }
            Self::Unsigned(values, form) => {
                let value = i64::try_from(values.value(row)).map_err(|_| OUT_OF_RANGE)?;
                put_whole(value, *form, out, scratch)?;
            }
            Self::Decimal(values, scale) => match values.data_type() {
                DataType::Decimal128(..) => {
                    put_number(&values.as_primitive::<Decimal128Type>().value(row), *scale, out, scratch)?;
                }
                _ => put_number(&values.as_primitive::<Decimal256Type>().value(row), *scale, out, scratch)?,
            },
            Self::F32(values, Form::Float8) => fixed(f64::from(values.value(row)).to_be_bytes(), out),
            Self::F32(values, _) => fixed(values.value(row).to_be_bytes(), out),
            Self::F64(values) => fixed(values.value(row).to_be_bytes(), out),
            Self::Text(values, form) => put_text(values.value(row), *form, out)?,
            Self::Bytes(values) => counted(out, |out| out.extend_from_slice(values.value(row)))?,
            Self::Date(values) => {
                let days = values.value(row).checked_sub(EPOCH_DAYS);
                // The least and the greatest number are infinities there.
                let days = days.filter(|days| ![i32::MIN, i32::MAX].contains(days));
                fixed(days.ok_or(TIME_OUT_OF_RANGE)?.to_be_bytes(), out);
            }
            Self::Micros { values, unit, epoch } => {
                let time = in_micros(values.value(row), *unit).and_then(|time| time.checked_sub(*epoch));
                let time = time.filter(|time| ![i64::MIN, i64::MAX].contains(time));
                fixed(time.ok_or(TIME_OUT_OF_RANGE)?.to_be_bytes(), out);
            }
            Self::Elapsed(values, unit) => {
                let time = in_micros(values.value(row), *unit).ok_or(TIME_OUT_OF_RANGE)?;
                put_interval(time, 0, 0, out);
            }
            Self::Interval(values) => {
                let value = values.value(row);
                put_interval(value.nanoseconds.div_euclid(1_000), value.days, value.months, out);
            }
            Self::Nested(values, form) => counted(out, |out| {
                if *form == Form::Jsonb {
                    out.push(JSONB_VERSION);
                }
                values.write(row, out);
            })?,
        }
        Ok(())
    }
}

const JSONB_VERSION: u8 = 1;

fn in_micros(value: i64, (times, by): (i64, i64)) -> Option<i64> {
    value.checked_mul(times).map(|value| value.div_euclid(by))
}

fn fixed<const N: usize>(bytes: [u8; N], out: &mut Vec<u8>) {
    // None is longer than 16 bytes.
    out.extend_from_slice(&(N as i32).to_be_bytes());
    out.extend_from_slice(&bytes);
}

/// Appends what `put` appends, with its length before it.
fn counted(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) -> Result<(), &'static str> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    put(out);
    let length = i32::try_from(out.len() - start - 4).map_err(|_| "a value of more than two gigabytes")?;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn put_whole(value: i64, form: Form, out: &mut Vec<u8>, scratch: &mut String) -> Result<(), &'static str> {
    match form {
        Form::Int2 => fixed(i16::try_from(value).map_err(|_| OUT_OF_RANGE)?.to_be_bytes(), out),
        Form::Int4 => fixed(i32::try_from(value).map_err(|_| OUT_OF_RANGE)?.to_be_bytes(), out),
        Form::Numeric { .. } => put_number(&value, 0, out, scratch)?,
        // Only types that fit without rounding come here.
        Form::Float4 => fixed((value as f32).to_be_bytes(), out),
        Form::Float8 => fixed((value as f64).to_be_bytes(), out),
        _ => fixed(value.to_be_bytes(), out),
    }
    Ok(())
}

fn put_text(text: &str, form: Form, out: &mut Vec<u8>) -> Result<(), &'static str> {
    match form {
        Form::Uuid => {
            let uuid = Uuid::try_parse(text).map_err(|_| "text that is no uuid")?;
            fixed(uuid.into_bytes(), out);
            Ok(())
        }
        _ => counted(out, |out| {
            if form == Form::Jsonb {
                out.push(JSONB_VERSION);
            }
            out.extend_from_slice(text.as_bytes());
        }),
    }
}

fn put_interval(micros: i64, days: i32, months: i32, out: &mut Vec<u8>) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&micros.to_be_bytes());
    bytes[8..12].copy_from_slice(&days.to_be_bytes());
    bytes[12..].copy_from_slice(&months.to_be_bytes());
    fixed(bytes, out);
}

/// Appends a `numeric`: groups of four decimal digits, aligned to the point. `unscaled` is shown as its digits, with a
/// sign before them.
fn put_number(
    unscaled: &impl std::fmt::Display,
    scale: i8,
    out: &mut Vec<u8>,
    scratch: &mut String,
) -> Result<(), &'static str> {
    scratch.clear();
    write!(scratch, "{unscaled}").map_err(|_| OUT_OF_RANGE)?;
    let (is_negative, digits) = match scratch.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, scratch.as_str()),
    };
    let digits = digits.trim_start_matches('0').as_bytes();
    let behind = usize::from(scale.max(0).unsigned_abs());
    // A negative scale is zeros before the point.
    let zeros = usize::from(scale.min(0).unsigned_abs());
    let count = digits.len() + zeros;
    // The digit `place` places before the point; from -1 on those behind it.
    let digit = |place: isize| -> i16 {
        let index = count as isize - behind as isize - 1 - place;
        let digit = usize::try_from(index).ok().and_then(|index| digits.get(index));
        digit.map_or(0, |digit| i16::from(digit - b'0'))
    };
    let before = count.saturating_sub(behind);
    let (first, last) = (before.div_ceil(4) as isize - 1, -(behind.div_ceil(4) as isize));
    let group =
        |weight: isize| -> i16 { (0..4).rev().fold(0, |sum, place| sum * 10 + digit(weight * 4 + place)) };
    let first = (last..=first).rev().find(|weight| group(*weight) != 0);
    let last = (last..=first.unwrap_or(last - 1)).find(|weight| group(*weight) != 0);
    counted(out, |out| {
        let (Some(first), Some(last)) = (first, last) else {
            for part in [0, 0, 0, behind as i16] {
                out.extend_from_slice(&part.to_be_bytes());
            }
            return;
        };
        let sign: i16 = if is_negative { 0x4000 } else { 0 };
        // At most 77 digits, behind at most 128 places: all of this is small.
        for part in [(first - last + 1) as i16, first as i16, sign, behind as i16] {
            out.extend_from_slice(&part.to_be_bytes());
        }
        for weight in (last..=first).rev() {
            out.extend_from_slice(&group(weight).to_be_bytes());
        }
    })
}

/// One row of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Row(usize),
    /// One of the keys that are gone.
    Delete(usize),
}

/// Rows and deletes in the order of their records: a delete comes after the rows of lower numbers, and before those of
/// higher ones. Without `origins` there are only rows.
pub fn order(rows: usize, origins: Option<&[u32]>, deletes: &[u32]) -> Vec<Step> {
    let mut steps = Vec::with_capacity(rows + deletes.len());
    let mut gone = deletes.iter().enumerate().peekable();
    for row in 0..rows {
        if let Some(origin) = origins.and_then(|origins| origins.get(row)) {
            while let Some((delete, _)) = gone.next_if(|(_, number)| *number < origin) {
                steps.push(Step::Delete(delete));
            }
        }
        steps.push(Step::Row(row));
    }
    steps.extend(gone.map(|(delete, _)| Step::Delete(delete)));
    steps
}

/// Those of the steps that are of records behind this one.
pub fn behind(number: u32, steps: &[Step], origins: &[u32], deletes: &[u32]) -> Vec<Step> {
    let is_behind = |step: &&Step| {
        let of_record = match step {
            Step::Row(row) => origins.get(*row),
            Step::Delete(delete) => deletes.get(*delete),
        };
        of_record.is_some_and(|record| *record > number)
    };
    steps.iter().filter(is_behind).copied().collect()
}

/// The pieces of a binary copy, and their bytes together.
pub struct Encoded {
    pub pieces: Vec<Vec<u8>>,
    pub bytes: u64,
    /// Places of the columns whose values some row leaves out.
    pub missing: Vec<usize>,
    /// All rows of the target are deleted before.
    pub is_truncated: bool,
}

/// All rows of a batch that is appended.
///
/// # Errors
/// [`Unfit`]
pub fn append(columns: &[Column], rows: usize) -> Result<Encoded, Unfit> {
    let mut writer = Writer::new();
    for row in 0..rows {
        writer.begin(columns.len());
        for column in columns {
            column.put(row, &mut writer.piece, &mut writer.scratch)?;
        }
        writer.end();
    }
    Ok(writer.finish())
}

/// Rows and deletes of a batch that is merged by key, each with its number and whether it is a delete, and with what is
/// `missing` of it where rows may leave values out. `keys` has the keys that are gone, where `columns` has a key.
///
/// # Errors
/// [`Unfit`]
pub fn upsert(
    columns: &[Column],
    keys: &[Option<Column>],
    steps: &[Step],
    missing: Option<Missing>,
) -> Result<Encoded, Unfit> {
    let mut writer = Writer::new();
    for (number, step) in steps.iter().enumerate() {
        writer.begin(columns.len().max(keys.len()) + 2 + usize::from(missing.is_some()));
        match step {
            Step::Row(row) => {
                for column in columns {
                    column.put(*row, &mut writer.piece, &mut writer.scratch)?;
                }
            }
            Step::Delete(delete) => {
                for key in keys {
                    match key {
                        Some(key) => key.put(*delete, &mut writer.piece, &mut writer.scratch)?,
                        None => writer.piece.extend_from_slice(&(-1_i32).to_be_bytes()),
                    }
                }
            }
        }
        fixed((number as i64).to_be_bytes(), &mut writer.piece);
        fixed([u8::from(matches!(step, Step::Delete(_)))], &mut writer.piece);
        if let Some(missing) = &missing {
            let mask = match step {
                Step::Row(row) => missing.mask(*row),
                Step::Delete(_) => None,
            };
            put_mask(mask, &mut writer.piece);
        }
        writer.end();
    }
    let missing = missing.map(|missing| missing.columns).unwrap_or_default();
    Ok(Encoded { missing, ..writer.finish() })
}

fn put_mask(mask: Option<&[u8]>, out: &mut Vec<u8>) {
    // One byte for each column, of which a table has at most 1600.
    let length = mask.map_or(-1, |mask| mask.len() as i32);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(mask.unwrap_or_default());
}

struct Writer {
    done: Vec<Vec<u8>>,
    piece: Vec<u8>,
    scratch: String,
}

impl Writer {
    fn new() -> Self {
        Self { done: Vec::new(), piece: HEADER.to_vec(), scratch: String::new() }
    }

    fn begin(&mut self, columns: usize) {
        // A table has at most 1600 columns.
        self.piece.extend_from_slice(&(columns as i16).to_be_bytes());
    }

    fn end(&mut self) {
        if self.piece.len() >= PIECE_BYTES {
            let next = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
            self.done.push(std::mem::replace(&mut self.piece, next));
        }
    }

    fn finish(mut self) -> Encoded {
        self.piece.extend_from_slice(&TRAILER.to_be_bytes());
        self.done.push(self.piece);
        let bytes = self.done.iter().map(|piece| piece.len() as u64).sum();
        Encoded { pieces: self.done, bytes, missing: Vec::new(), is_truncated: false }
    }
}
