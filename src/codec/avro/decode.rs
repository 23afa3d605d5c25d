//! Runs a [`Program`]: from the bytes of one record into columns.
//!
//! The bytes are hostile until shown otherwise. Every length is checked against the bytes that are left
//! before anything is allocated for it, so a record never costs more than in proportion to its size.

use arrow::datatypes::i256;

use super::big_decimal;
use super::program::{DefaultOp, Op, Program, RecordOp, SkipOp, Step, ValueOp};
use crate::codec::columns::{Column, Data, Overflow, push_offset};
use crate::codec::limits::{DEFAULT_BYTES_MAX, LEVELS_MAX, Spare, Spent, TEXT_MAX, TEXT_MIN, TEXT_PER_BYTE};
use crate::model::code;

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
    #[error("a text is no time with an offset, of the years 1 to 9999")]
    Time,
    #[error("the columns of the batch grew beyond 2 GiB; set a smaller `batch:`")]
    Size,
    #[error("it fills more columns, or becomes more text, than a record of its size may")]
    Amplified,
    #[error("a value nests deeper than {LEVELS_MAX} levels")]
    Depth,
}

/// A number that was read where another kind of value may have been: as long as it is small it tells more of the
/// schema than of the record, which errors do not quote.
fn small(number: i64) -> String {
    if (0..=255).contains(&number) { number.to_string() } else { "beyond 255".to_owned() }
}

impl Problem {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Truncated => code::TRUNCATED,
            Self::Trailing(_) => code::TRAILING_BYTES,
            Self::Overflow | Self::Decimal => code::OVERFLOW,
            Self::Utf8 => code::INVALID_UTF8,
            Self::Size | Self::Amplified => code::SIZE,
            Self::Depth => code::DEPTH,
            Self::NegativeLength
            | Self::Boolean(_)
            | Self::UnionBranch(_)
            | Self::EnumSymbol(_)
            | Self::UnknownSymbol(_)
            | Self::Refused(_)
            | Self::Uuid(_)
            | Self::Time => code::TYPE_MISMATCH,
        }
    }
}

impl From<Overflow> for Problem {
    fn from(_: Overflow) -> Self {
        Self::Size
    }
}

impl From<Spent> for Problem {
    fn from(_: Spent) -> Self {
        Self::Amplified
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

pub type Result<T> = std::result::Result<T, BadValue>;

impl Program {
    /// Appends one record to `columns`, the reader's fields in order.
    ///
    /// # Errors
    /// What is wrong with the bytes; then the columns hold parts of the record and have to be truncated.
    pub fn decode(&self, bytes: &[u8], columns: &mut [Column]) -> Result<()> {
        let mut cursor = Cursor { bytes, program: self, budget: Budget::of(bytes.len()), levels: 0 };
        cursor.record(&self.record, columns)?;
        match cursor.bytes.len() {
            0 => Ok(()),
            left => Err(Problem::Trailing(left).into()),
        }
    }

    /// As [`Program::decode`], for the first of several records; answers with the bytes behind it.
    ///
    /// # Errors
    /// Likewise.
    pub fn decode_first<'b>(&self, bytes: &'b [u8], columns: &mut [Column]) -> Result<&'b [u8]> {
        let mut cursor = Cursor { bytes, program: self, budget: Budget::of(bytes.len()), levels: 0 };
        cursor.record(&self.record, columns)?;
        Ok(&bytes[bytes.len() - cursor.bytes.len()..])
    }

    /// Shows the bytes of the writer's first `count` fields, by their places, none of which this program reads.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn pass_over<'b>(
        &self,
        bytes: &'b [u8],
        count: usize,
        mut see: impl FnMut(usize, &'b [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut cursor = Cursor { bytes, program: self, budget: Budget::of(bytes.len()), levels: 0 };
        for (place, step) in self.record.steps.iter().take(count).enumerate() {
            let start = bytes.len() - cursor.bytes.len();
            if let Step::Skip(skip) = step {
                cursor.skip(skip)?;
            }
            see(place, &bytes[start..bytes.len() - cursor.bytes.len()])?;
        }
        Ok(())
    }
}

/// The number that bytes begin with, as values of unions do with that of their branch, and the bytes behind it.
///
/// # Errors
/// If there is no number.
#[inline]
pub fn long(bytes: &[u8]) -> Result<(i64, &[u8])> {
    let mut raw = 0u64;
    for (index, byte) in bytes.iter().enumerate() {
        // The tenth byte holds the last of 64 bits.
        if index == 9 && *byte > 1 {
            return Err(Problem::Overflow.into());
        }
        raw |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(((raw >> 1) as i64 ^ -((raw & 1) as i64), &bytes[index + 1..]));
        }
    }
    Err(Problem::Truncated.into())
}

/// What a record may still make of bytes that it does not have.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Bytes of defaults.
    defaults: usize,
    /// Columns without a value.
    spare: Spare,
    /// Bytes of JSON text.
    pub text: usize,
}

impl Budget {
    fn of(len: usize) -> Self {
        Self {
            defaults: DEFAULT_BYTES_MAX,
            spare: Spare::of(len),
            text: len.saturating_mul(TEXT_PER_BYTE).clamp(TEXT_MIN, TEXT_MAX),
        }
    }
}

/// Reads the bytes of one record.
pub struct Cursor<'a> {
    bytes: &'a [u8],
    pub program: &'a Program,
    pub budget: Budget,
    /// Objects and arrays that are open, where they are counted.
    levels: usize,
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
        self.with_default(default, |cursor| cursor.op(&default.op, column))
    }

    /// Reads a default as if it were there.
    pub fn with_default(
        &mut self,
        default: &DefaultOp,
        read: impl FnOnce(&mut Cursor<'_>) -> Result<()>,
    ) -> Result<()> {
        // A default of no bytes is work, too.
        let left = self.budget.defaults.checked_sub(default.bytes.len().max(1));
        self.budget.defaults = left.ok_or(Problem::Amplified)?;
        let mut cursor =
            Cursor { bytes: &default.bytes, program: self.program, budget: self.budget, levels: self.levels };
        read(&mut cursor)?;
        self.budget = cursor.budget;
        Ok(())
    }

    /// Reads what is inside an object or an array, if there are not too many around it.
    pub fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if self.levels >= LEVELS_MAX {
            return Err(Problem::Depth.into());
        }
        self.levels += 1;
        let done = read(self);
        self.levels -= 1;
        done
    }

    fn op(&mut self, op: &Op, column: &mut Column) -> Result<()> {
        match op {
            Op::Value(value) => {
                self.value(value, &mut column.data)?;
                column.mark_valid();
            }
            Op::Null => {
                // It has a byte, for one of them.
                self.budget.spare.take(column.width().saturating_sub(1))?;
                column.push_null();
            }
            Op::Member(index, value) => self.member(*index, value, column)?,
            Op::Union(arms) => {
                let arm = self.branch(arms)?;
                self.op(arm, column)?;
            }
            Op::Refused(why) => return Err(Problem::Refused(why.clone()).into()),
        }
        Ok(())
    }

    /// A value for one member of a struct, and null for the others.
    fn member(&mut self, index: usize, op: &ValueOp, column: &mut Column) -> Result<()> {
        let Data::Struct { len, fields } = &mut column.data else {
            unreachable!("the members of a union are a struct")
        };
        for (at, field) in fields.iter_mut().enumerate() {
            if at == index {
                self.value(op, &mut field.data)?;
                field.mark_valid();
            } else {
                self.budget.spare.take(field.width())?;
                field.push_null();
            }
        }
        *len += 1;
        column.mark_valid();
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
                let symbol = self.symbol(symbols)?;
                self.budget.spare.take_text(symbol)?;
                bytes.extend_from_slice(symbol.as_bytes());
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
                bytes.extend_from_slice(self.big_decimal()?.as_bytes());
                push_offset(offsets, bytes.len())?;
            }
            (ValueOp::Uuid { is_fixed }, Data::Bytes { offsets, bytes }) => {
                let mut text = uuid::Uuid::encode_buffer();
                let uuid = self.uuid(*is_fixed)?;
                bytes.extend_from_slice(uuid.hyphenated().encode_lower(&mut text).as_bytes());
                push_offset(offsets, bytes.len())?;
            }
            (ValueOp::TextToMicros, Data::I64(values)) => {
                let text = std::str::from_utf8(self.sized()?).map_err(|_| Problem::Utf8)?;
                let time = text.parse::<jiff::Timestamp>().map_err(|_| Problem::Time)?;
                values.push(time.as_microsecond());
            }
            (ValueOp::Json(index), Data::Bytes { offsets, bytes }) => {
                self.json(*index, bytes)?;
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

    /// A number that has its scale with it.
    pub fn big_decimal(&mut self) -> Result<String> {
        let bytes = self.sized()?;
        let mut inner = Cursor { bytes, ..*self };
        let unscaled = inner.sized()?;
        let scale = inner.int()?;
        if !inner.bytes.is_empty() {
            return Err(Problem::Trailing(inner.bytes.len()).into());
        }
        Ok(big_decimal::text(unscaled, scale).ok_or(Problem::Decimal)?)
    }

    pub fn uuid(&mut self, is_fixed: bool) -> Result<uuid::Uuid> {
        let raw = if is_fixed { self.take(16)? } else { self.sized()? };
        Ok(uuid::Uuid::from_slice(raw).map_err(|_| Problem::Uuid(raw.len()))?)
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
    pub fn blocks(&mut self, size_min: usize, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
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

    /// The arm of a union that is there.
    pub fn branch<'o, O>(&mut self, arms: &'o [O]) -> Result<&'o O> {
        let branch = self.long()?;
        let arm = usize::try_from(branch).ok().and_then(|index| arms.get(index));
        Ok(arm.ok_or(Problem::UnionBranch(branch))?)
    }

    pub fn skip(&mut self, op: &SkipOp) -> Result<()> {
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
                self.deeper(|cursor| cursor.blocks(*size_min, |cursor| cursor.skip(item)))?;
            }
            SkipOp::Map { value, size_min } => self.deeper(|cursor| {
                cursor.blocks(*size_min, |cursor| {
                    cursor.sized()?;
                    cursor.skip(value)
                })
            })?,
            SkipOp::Record(fields) => {
                self.deeper(|cursor| fields.iter().try_for_each(|field| cursor.skip(field)))?;
            }
            SkipOp::Union(arms) => {
                let arm = self.branch(arms)?;
                self.skip(arm)?;
            }
            SkipOp::Again(index) => {
                let program = self.program;
                self.skip(&program.skips[*index])?;
            }
        }
        Ok(())
    }

    pub fn symbol<'s>(&mut self, symbols: &'s [Option<std::sync::Arc<str>>]) -> Result<&'s str> {
        let index = self.long()?;
        let symbol = usize::try_from(index).ok().and_then(|index| symbols.get(index));
        match symbol {
            Some(Some(symbol)) => Ok(symbol),
            Some(None) => Err(Problem::UnknownSymbol(index).into()),
            None => Err(Problem::EnumSymbol(index).into()),
        }
    }

    pub fn boolean(&mut self) -> Result<bool> {
        match self.take(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Problem::Boolean(other).into()),
        }
    }

    pub fn sized(&mut self) -> Result<&'a [u8]> {
        let len = self.long()?;
        self.take(usize::try_from(len).map_err(|_| Problem::NegativeLength)?)
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(Problem::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(Problem::Truncated)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub fn int(&mut self) -> Result<i32> {
        let value = self.long()?;
        Ok(i32::try_from(value).map_err(|_| Problem::Overflow)?)
    }

    #[inline]
    pub fn long(&mut self) -> Result<i64> {
        let (number, rest) = long(self.bytes)?;
        self.bytes = rest;
        Ok(number)
    }
}

/// Appends a big-endian two's complement number.
pub fn push_decimal(raw: &[u8], precision: u8, data: &mut Data) -> Result<()> {
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
