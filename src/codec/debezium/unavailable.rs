//! What PostgreSQL's connector sends for a large value that did not change and is not in the log (TOAST).
//!
//! The placeholder is Debezium's default, `unavailable.value.placeholder`. Columns that are not text hold its bytes: as
//! bytes, as a list of numbers, as the one item or key.

use arrow::datatypes::DataType;

use crate::codec::columns::{Column, Data};

const PLACEHOLDER: &[u8] = b"__debezium_unavailable_value";

/// May a value of such a column not be sent? What is never large always is.
pub fn is_possible(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Map(..))
}

/// Is the last value of a column the placeholder?
pub fn is_last(data: &Data) -> bool {
    match data {
        Data::Bytes { offsets, .. } => is_placeholder(data, offsets.len().saturating_sub(2)),
        Data::List { offsets, item } => match offsets.as_slice() {
            [.., start, end] => is_list(*start as usize, *end as usize, item),
            _ => false,
        },
        _ => false,
    }
}

/// Is the text or are the bytes at this place the placeholder?
fn is_placeholder(data: &Data, place: usize) -> bool {
    let Data::Bytes { offsets, bytes } = data else {
        return false;
    };
    let (Some(start), Some(end)) = (offsets.get(place), offsets.get(place + 1)) else {
        return false;
    };
    &bytes[*start as usize..*end as usize] == PLACEHOLDER
}

fn is_list(start: usize, end: usize, item: &Column) -> bool {
    let numbers = || PLACEHOLDER.iter().map(|byte| i64::from(*byte));
    match &item.data {
        Data::Bytes { .. } => end - start == 1 && is_placeholder(&item.data, start),
        Data::I32(values) => values[start..end].iter().map(|value| i64::from(*value)).eq(numbers()),
        Data::I64(values) => values[start..end].iter().copied().eq(numbers()),
        // A map.
        Data::Struct { fields, .. } => match fields.as_slice() {
            [key, _] => end - start == 1 && is_placeholder(&key.data, start),
            _ => false,
        },
        _ => false,
    }
}
