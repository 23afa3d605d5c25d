//! Runs a [`Program`]: from the bytes of one record into columns.
//!
//! The bytes are hostile until shown otherwise. Every length is checked against the bytes that are left
//! before anything is allocated for it, so a record never costs more than in proportion to its size.

use arrow::datatypes::i256;

use super::big_decimal;
use super::program::{DefaultOp, Op, Program, RecordOp, SkipOp, Step, ValueOp};
use crate::codec::columns::{Column, Data, Overflow, push_offset};

/// Defaults of fields that a writer lacks may add this many bytes to one record. They cost nothing on
/// the wire, so without a bound a small record with many items could grow without one.
const DEFAULT_BYTES_MAX: usize = 1 << 20;

/// What is wrong with a record's bytes. Codes are stable: they are in metrics and dead letters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("the record ends in the middle of a value")]
    Truncated,
    #[error("{0} bytes are left over after the last field")]
    Trailing(usize),
    #[error("a number is longer than its type allows")]
    Overflow,
    #[error("a length is negative")]
    NegativeLength,
    #[error("a text is not UTF-8")]
    Utf8,
    #[error("{0} is not a boolean")]
    Boolean(u8),
    #[error("branch {} of a union does not exist", small(*.0))]
    UnionBranch(i64),
    #[error("symbol {} of an enum does not exist", small(*.0))]
    EnumSymbol(i64),
    #[error("the reader's enum has neither the writer's symbol {0} nor a default")]
    UnknownSymbol(i64),
    #[error("{0}")]
    Refused(String),
    #[error("a decimal has more digits than its type, or than are taken")]
    Decimal,
    #[error("a uuid has {0} bytes instead of 16")]
    Uuid(usize),
    #[error("the columns of the batch grew beyond 2 GiB; set a smaller `batch:`")]
    Size,
}

/// A number that was read where another kind of value may have been: as long as it is small it tells more of the
/// schema than of the record, which errors do not quote.
fn small(number: i64) -> String {
    if (0..=255).contains(&number) { number.to_string() } else { "beyond 255".to_owned() }
}

impl Problem {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Trailing(_) => "trailing_bytes",
            Self::Overflow | Self::Decimal => "overflow",
            Self::Utf8 => "invalid_utf8",
            Self::Size => "size",
            Self::NegativeLength
            | Self::Boolean(_)
            | Self::UnionBranch(_)
            | Self::EnumSymbol(_)
            | Self::UnknownSymbol(_)
            | Self::Refused(_)
            | Self::Uuid(_) => "type_mismatch",
        }
    }
}

impl From<Overflow> for Problem {
    fn from(_: Overflow) -> Self {
        Self::Size
    }
}

/// A [`Problem`] and the field it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadValue {
    pub path: Vec<String>,
    pub problem: Problem,
}

impl<P: Into<Problem>> From<P> for BadValue {
    fn from(problem: P) -> Self {
        Self { path: Vec::new(), problem: problem.into() }
    }
}

type Result<T> = std::result::Result<T, BadValue>;

impl Program {
    /// Appends one record to `columns`, the reader's fields in order.
    ///
    /// # Errors
    /// What is wrong with the bytes; then the columns hold parts of the record and have to be truncated.
    pub fn decode(&self, bytes: &[u8], columns: &mut [Column]) -> Result<()> {
        let mut cursor = Cursor { bytes, defaults_left: DEFAULT_BYTES_MAX };
        cursor.record(&self.record, columns)?;
        match cursor.bytes.len() {
            0 => Ok(()),
            left => Err(Problem::Trailing(left).into()),
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    defaults_left: usize,
}

impl<'a> Cursor<'a> {
    fn record(&mut self, op: &RecordOp, columns: &mut [Column]) -> Result<()> {
        for step in &op.steps {
            match step {
                Step::Read { name, column, op } => {
                    self.op(op, &mut columns[*column]).map_err(|mut bad| {
                        bad.path.insert(0, name.clone());
                        bad
                    })?;
                }
                Step::Skip(skip) => self.skip(skip)?,
            }
        }
        for default in &op.defaults {
            self.default(default, &mut columns[default.column])?;
        }
        Ok(())
    }

    fn default(&mut self, default: &DefaultOp, column: &mut Column) -> Result<()> {
        let left = self.defaults_left.checked_sub(default.bytes.len());
        self.defaults_left = left.ok_or(Problem::Size)?;
        let mut cursor = Cursor { bytes: &default.bytes, defaults_left: self.defaults_left };
        cursor.op(&default.op, column)?;
        self.defaults_left = cursor.defaults_left;
        Ok(())
    }

    fn op(&mut self, op: &Op, column: &mut Column) -> Result<()> {
        match op {
            Op::Value(value) => {
                self.value(value, &mut column.data)?;
                column.mark_valid();
            }
            Op::Null => column.push_null(),
            Op::Union(arms) => {
                let branch = self.long()?;
                let arm = usize::try_from(branch).ok().and_then(|index| arms.get(index));
                self.op(arm.ok_or(Problem::UnionBranch(branch))?, column)?;
            }
            Op::Refused(why) => return Err(Problem::Refused(why.clone()).into()),
        }
        Ok(())
    }

    fn value(&mut self, op: &ValueOp, data: &mut Data) -> Result<()> {
        match (op, data) {
            (ValueOp::LongToI64 { factor, is_int }, Data::I64(values)) => {
                let value = if *is_int { i64::from(self.int()?) } else { self.long()? };
                values.push(value.checked_mul(*factor).ok_or(Problem::Overflow)?);
            }
            (ValueOp::Text, Data::Bytes { offsets, bytes }) => {
                let raw = self.sized()?;
                std::str::from_utf8(raw).map_err(|_| Problem::Utf8)?;
                bytes.extend_from_slice(raw);
                push_offset(offsets, bytes.len())?;
            }
            (ValueOp::IntToI32, Data::I32(values)) => values.push(self.int()?),
            (ValueOp::DoubleToF64, Data::F64(values)) => {
                values.push(f64::from_le_bytes(self.array()?));
            }
            (ValueOp::Boolean, Data::Boolean(values)) => values.append(self.boolean()?),
            (ValueOp::FloatToF32, Data::F32(values)) => {
                values.push(f32::from_le_bytes(self.array()?));
            }
            (ValueOp::FloatToF64, Data::F64(values)) => {
                values.push(f64::from(f32::from_le_bytes(self.array()?)));
            }
            (ValueOp::ZigzagToF32, Data::F32(values)) => values.push(self.long()? as f32),
            (ValueOp::ZigzagToF64, Data::F64(values)) => values.push(self.long()? as f64),
            (ValueOp::Bytes, Data::Bytes { offsets, bytes }) => {
                bytes.extend_from_slice(self.sized()?);
                push_offset(offsets, bytes.len())?;
            }
            (ValueOp::FixedToBytes(size), Data::Bytes { offsets, bytes }) => {
                bytes.extend_from_slice(self.take(*size)?);
                push_offset(offsets, bytes.len())?;
            }
            (ValueOp::Fixed(size), Data::Fixed { bytes, .. }) => {
                bytes.extend_from_slice(self.take(*size)?);
            }
            (ValueOp::Enum(symbols), Data::Bytes { offsets, bytes }) => {
                bytes.extend_from_slice(self.symbol(symbols)?.as_bytes());
                push_offset(offsets, bytes.len())?;
            }
            (ValueOp::List(op), Data::List { offsets, item }) => {
                self.blocks(1, |cursor| cursor.op(op, item))?;
                push_offset(offsets, item.len())?;
            }
            (ValueOp::Map(op), Data::List { offsets, item }) => {
                self.blocks(1, |cursor| cursor.entry(op, item))?;
                push_offset(offsets, item.len())?;
            }
            (ValueOp::Record(record), Data::Struct { len, fields }) => {
                self.record(record, fields)?;
                *len += 1;
            }
            (other, data) => self.rare_value(other, data)?,
        }
        Ok(())
    }

    fn rare_value(&mut self, op: &ValueOp, data: &mut Data) -> Result<()> {
        match (op, data) {
            (ValueOp::Nothing, Data::Null(len)) => *len += 1,
            (ValueOp::Decimal { fixed, precision }, data) => {
                let raw = match fixed {
                    Some(size) => self.take(*size)?,
                    None => self.sized()?,
                };
                push_decimal(raw, *precision, data)?;
            }
            (ValueOp::BigDecimal, Data::Bytes { offsets, bytes }) => {
                let mut inner = Cursor { bytes: self.sized()?, defaults_left: 0 };
                let unscaled = inner.sized()?;
                let scale = inner.int()?;
                if !inner.bytes.is_empty() {
                    return Err(Problem::Trailing(inner.bytes.len()).into());
                }
                let text = big_decimal::text(unscaled, scale).ok_or(Problem::Decimal)?;
                bytes.extend_from_slice(text.as_bytes());
                push_offset(offsets, bytes.len())?;
            }
            (ValueOp::Uuid { is_fixed }, Data::Bytes { offsets, bytes }) => {
                let raw = if *is_fixed { self.take(16)? } else { self.sized()? };
                let uuid = uuid::Uuid::from_slice(raw).map_err(|_| Problem::Uuid(raw.len()))?;
                let mut text = uuid::Uuid::encode_buffer();
                bytes.extend_from_slice(uuid.hyphenated().encode_lower(&mut text).as_bytes());
                push_offset(offsets, bytes.len())?;
            }
            (ValueOp::Duration, Data::Struct { len, fields }) => {
                for field in fields.iter_mut() {
                    let value = u32::from_le_bytes(self.array()?);
                    if let Data::U32(values) = &mut field.data {
                        values.push(value);
                    }
                }
                *len += 1;
            }
            // The program was compiled for these columns.
            (op, _) => unreachable!("{op:?} into a column of another type"),
        }
        Ok(())
    }

    fn entry(&mut self, op: &Op, entries: &mut Column) -> Result<()> {
        let Data::Struct { len, fields } = &mut entries.data else {
            unreachable!("a map's entries are structs")
        };
        let [key, value] = fields.as_mut_slice() else {
            unreachable!("a map's entries have a key and a value")
        };
        self.value(&ValueOp::Text, &mut key.data)?;
        self.op(op, value)?;
        *len += 1;
        entries.mark_valid();
        Ok(())
    }

    /// Avro's blocks: a count, then as many items, until a count of 0. A negative count is followed by
    /// the block's size in bytes. `size_min` is what an item takes at least.
    fn blocks(&mut self, size_min: usize, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        loop {
            let mut count = self.long()?;
            if count < 0 {
                self.long()?;
                count = count.checked_neg().ok_or(Problem::Overflow)?;
            }
            if count == 0 {
                return Ok(());
            }
            let fits = usize::try_from(count)
                .ok()
                .and_then(|count| count.checked_mul(size_min.max(1)))
                .is_some_and(|bytes| bytes <= self.bytes.len());
            if !fits {
                return Err(Problem::Truncated.into());
            }
            for _ in 0..count {
                item(self)?;
            }
        }
    }

    fn skip(&mut self, op: &SkipOp) -> Result<()> {
        match op {
            SkipOp::Nothing => {}
            SkipOp::Zigzag => {
                self.long()?;
            }
            SkipOp::Boolean => {
                self.boolean()?;
            }
            SkipOp::Bytes(size) => {
                self.take(*size)?;
            }
            SkipOp::Sized => {
                self.sized()?;
            }
            SkipOp::Enum(symbol_count) => {
                let symbol = self.long()?;
                if !usize::try_from(symbol).is_ok_and(|symbol| symbol < *symbol_count) {
                    return Err(Problem::EnumSymbol(symbol).into());
                }
            }
            SkipOp::Array { item, size_min } => {
                self.blocks(*size_min, |cursor| cursor.skip(item))?;
            }
            SkipOp::Map { value, size_min } => self.blocks(*size_min, |cursor| {
                cursor.sized()?;
                cursor.skip(value)
            })?,
            SkipOp::Record(fields) => {
                for field in fields {
                    self.skip(field)?;
                }
            }
            SkipOp::Union(arms) => {
                let branch = self.long()?;
                let arm = usize::try_from(branch).ok().and_then(|index| arms.get(index));
                self.skip(arm.ok_or(Problem::UnionBranch(branch))?)?;
            }
        }
        Ok(())
    }

    fn symbol<'s>(&mut self, symbols: &'s [Option<std::sync::Arc<str>>]) -> Result<&'s str> {
        let index = self.long()?;
        let symbol = usize::try_from(index).ok().and_then(|index| symbols.get(index));
        match symbol {
            Some(Some(symbol)) => Ok(symbol),
            Some(None) => Err(Problem::UnknownSymbol(index).into()),
            None => Err(Problem::EnumSymbol(index).into()),
        }
    }

    fn boolean(&mut self) -> Result<bool> {
        match self.take(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Problem::Boolean(other).into()),
        }
    }

    fn sized(&mut self) -> Result<&'a [u8]> {
        let len = self.long()?;
        self.take(usize::try_from(len).map_err(|_| Problem::NegativeLength)?)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(Problem::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(Problem::Truncated)?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn int(&mut self) -> Result<i32> {
        let value = self.long()?;
        Ok(i32::try_from(value).map_err(|_| Problem::Overflow)?)
    }

    #[inline]
    fn long(&mut self) -> Result<i64> {
        let mut raw = 0u64;
        for (index, byte) in self.bytes.iter().enumerate() {
            // The tenth byte holds the last of 64 bits.
            if index == 9 && *byte > 1 {
                return Err(Problem::Overflow.into());
            }
            raw |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[index + 1..];
                return Ok((raw >> 1) as i64 ^ -((raw & 1) as i64));
            }
        }
        Err(Problem::Truncated.into())
    }
}

/// Appends a big-endian two's complement number.
fn push_decimal(raw: &[u8], precision: u8, data: &mut Data) -> Result<()> {
    let sign = if raw.first().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
    // Leading bytes that only repeat the sign are allowed.
    let redundant = raw.iter().take_while(|byte| **byte == sign).count();
    let mut wide = [sign; 32];
    let tail = &raw[redundant..];
    let start = wide.len().checked_sub(tail.len()).ok_or(Problem::Decimal)?;
    wide[start..].copy_from_slice(tail);
    if (wide[0] ^ sign) & 0x80 != 0 {
        // 32 bytes without room for the sign.
        return Err(Problem::Decimal.into());
    }
    let value = i256::from_be_bytes(wide);
    match data {
        Data::I128(values) => {
            let value = value.to_i128().ok_or(Problem::Decimal)?;
            let limit = 10u128.pow(u32::from(precision.min(38)));
            if value.unsigned_abs() >= limit {
                return Err(Problem::Decimal.into());
            }
            values.push(value);
        }
        Data::I256(values) => {
            let limit = i256::from_i128(10).wrapping_pow(u32::from(precision));
            if value >= limit || value <= limit.wrapping_neg() {
                return Err(Problem::Decimal.into());
            }
            values.push(value);
        }
        _ => unreachable!("a decimal into a column of another type"),
    }
    Ok(())
}
