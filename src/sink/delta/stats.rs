//! What an entry of the log says of a data file, by which readers skip it: rows, and of each column nulls, lowest and highest
//! value. Bounds may be wider than the values, never narrower; where that is in doubt there are none. Pure.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{max, max_string, min, min_string};
use arrow::datatypes::{
    ArrowNumericType, DataType, Date32Type, Int8Type, Int16Type, Int32Type, Int64Type, SchemaRef, TimeUnit,
    TimestampMicrosecondType,
};
use arrow::record_batch::RecordBatch;
use serde_json::{Map, Value, json};

use crate::render;

/// So many columns have statistics, from the first one on: as other writers do it by default.
const COLUMNS_MAX: usize = 32;

/// Longer text has no bounds: a prefix would be a lower one, and a higher one has no simple form.
const TEXT_BYTES_MAX: usize = 64;

/// A value that has an order and a form in JSON.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Bound {
    Whole(i64),
    /// Days since 1970.
    Date(i32),
    /// Microseconds since 1970, of an instant or of a clock on a wall.
    Time(i64),
    Text(String),
}

/// Of one column.
#[derive(Debug, Clone)]
struct Column {
    name: String,
    nulls: usize,
    /// The lowest and the highest value so far.
    bounds: Option<(Bound, Bound)>,
    /// There is a value that has no bounds.
    is_unbounded: bool,
    is_instant: bool,
}

/// Of one file.
#[derive(Debug, Clone)]
pub struct Stats {
    rows: usize,
    /// Of columns that are not nested, in their places.
    columns: Vec<Option<Column>>,
}

impl Stats {
    pub fn new(files: &SchemaRef) -> Self {
        let columns = files.fields().iter().take(COLUMNS_MAX).map(|field| {
            let is_instant = matches!(field.data_type(), DataType::Timestamp(_, Some(_)));
            (!field.data_type().is_nested()).then(|| Column {
                name: field.name().clone(),
                nulls: 0,
                bounds: None,
                is_unbounded: false,
                is_instant,
            })
        });
        Self { rows: 0, columns: columns.collect() }
    }

    /// Notes rows of the file.
    pub fn add(&mut self, rows: &RecordBatch) {
        self.rows += rows.num_rows();
        for (column, values) in self.columns.iter_mut().zip(rows.columns()) {
            if let Some(column) = column {
                column.add(values);
            }
        }
    }

    /// As the log has it: JSON as text.
    pub fn text(&self) -> String {
        let (mut lowest, mut highest, mut nulls) = (Map::new(), Map::new(), Map::new());
        for column in self.columns.iter().flatten() {
            nulls.insert(column.name.clone(), json!(column.nulls));
            let Some((low, high)) = column.bounds.as_ref().filter(|_| !column.is_unbounded) else {
                continue;
            };
            let low = low.rendered(column.is_instant, i64::div_euclid);
            // Readers know thousandths only: rounded up it is never too low.
            let high = high.rendered(column.is_instant, |micros, unit| {
                micros.div_euclid(unit).saturating_add(i64::from(micros.rem_euclid(unit) > 0))
            });
            if let (Some(low), Some(high)) = (low, high) {
                lowest.insert(column.name.clone(), low);
                highest.insert(column.name.clone(), high);
            }
        }
        json!({"numRecords": self.rows, "minValues": lowest, "maxValues": highest, "nullCount": nulls})
            .to_string()
    }
}

impl Column {
    fn add(&mut self, values: &ArrayRef) {
        self.nulls += values.null_count();
        if self.is_unbounded || values.null_count() == values.len() {
            return;
        }
        let Some((low, high)) = bounds(values) else {
            self.is_unbounded = true;
            return;
        };
        self.bounds = Some(match self.bounds.take() {
            Some((lowest, highest)) => (lowest.min(low), highest.max(high)),
            None => (low, high),
        });
    }
}

/// The lowest and the highest value of a column, if it has bounds.
fn bounds(values: &ArrayRef) -> Option<(Bound, Bound)> {
    fn of<T>(values: &ArrayRef, bound: impl Fn(T::Native) -> Bound) -> Option<(Bound, Bound)>
    where
        T: ArrowNumericType,
    {
        let values = values.as_primitive_opt::<T>()?;
        Some((bound(min(values)?), bound(max(values)?)))
    }
    match values.data_type() {
        DataType::Int8 => of::<Int8Type>(values, |value| Bound::Whole(i64::from(value))),
        DataType::Int16 => of::<Int16Type>(values, |value| Bound::Whole(i64::from(value))),
        DataType::Int32 => of::<Int32Type>(values, |value| Bound::Whole(i64::from(value))),
        DataType::Int64 => of::<Int64Type>(values, Bound::Whole),
        DataType::Date32 => of::<Date32Type>(values, Bound::Date),
        DataType::Timestamp(TimeUnit::Microsecond, _) => of::<TimestampMicrosecondType>(values, Bound::Time),
        DataType::Utf8 => {
            let values = values.as_string_opt::<i32>()?;
            let (low, high) = (min_string(values)?, max_string(values)?);
            let is_short = low.len() <= TEXT_BYTES_MAX && high.len() <= TEXT_BYTES_MAX;
            is_short.then(|| (Bound::Text(low.to_owned()), Bound::Text(high.to_owned())))
        }
        _ => None,
    }
}

impl Bound {
    /// `None` if it has no form that all readers know.
    fn rendered(&self, is_instant: bool, divide: impl Fn(i64, i64) -> i64) -> Option<Value> {
        let mut text = Vec::new();
        match self {
            Self::Whole(value) => return Some(json!(value)),
            Self::Text(value) => return Some(json!(value)),
            Self::Date(days) => render::put_date(*days, &mut text),
            Self::Time(micros) => {
                render::put_time(is_instant, divide(*micros, 1000), 1_000_000, 3, &mut text);
            }
        }
        let value: Value = serde_json::from_slice(&text).ok()?;
        // Years of four digits; what is beyond has a sign before them, or is a number.
        let has_year = |text: &str| {
            text.split_once('-')
                .is_some_and(|(year, _)| year.len() == 4 && year.bytes().all(|it| it.is_ascii_digit()))
        };
        value.as_str().is_some_and(has_year).then_some(value)
    }
}
