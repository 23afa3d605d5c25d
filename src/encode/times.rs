//! Which times have a text: those of years 1 to 9999, and those of one day.

use std::ops::RangeInclusive;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, TimeUnit};

use super::{Misfit, Unfit, whole};

/// 0001-01-01T00:00:00Z.
pub const SECOND_MIN: i64 = -62_135_596_800;

/// 9999-12-30T22:00:00Z: the last one that can be shown in every time zone, and that `render` writes as a time.
pub const SECOND_MAX: i64 = 253_402_207_200;

const DAY_SECONDS: i64 = 86_400;

/// Times of a column, which have to be within a range.
pub struct Times {
    values: Int64Array,
    range: RangeInclusive<i64>,
}

impl Times {
    /// `None` for types that are no times.
    pub fn of(array: &ArrayRef) -> Result<Option<Self>, Unfit> {
        let range = match array.data_type() {
            DataType::Date32 => SECOND_MIN / DAY_SECONDS..=SECOND_MAX / DAY_SECONDS,
            DataType::Time32(unit) | DataType::Time64(unit) => 0..=DAY_SECONDS * per_second(*unit) - 1,
            DataType::Timestamp(unit, _) => {
                let per_second = per_second(*unit);
                SECOND_MIN.saturating_mul(per_second)..=SECOND_MAX.saturating_mul(per_second)
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { values: whole(array)?, range }))
    }

    pub fn check(&self, row: usize) -> Result<(), Misfit> {
        if self.range.contains(&self.values.value(row)) {
            return Ok(());
        }
        Err(Misfit::new("is a time beyond those that have a text (years 1 to 9999, hours 0 to 23)"))
    }
}

pub fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}
