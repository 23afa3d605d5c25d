//! Which schema may follow another one in what a sink has written.
//!
//! Columns may come, go, and become nullable or not: readers take files of both. A column that stays keeps its type, or
//! gets one that holds all values of the former, as Iceberg allows it; others would break whoever reads both.

use std::fmt;

use arrow::datatypes::{DataType, Field, Fields};

/// A column that would become another one under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Dotted names from the top.
    pub path: String,
    pub from: DataType,
    pub into: DataType,
}

/// As messages put it behind the word "column".
impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {} and would become {}", self.path, self.from, self.into)
    }
}

/// May rows with the columns `into` follow those with the columns `from`?
///
/// # Errors
/// The first column that may not.
pub fn check(from: &Fields, into: &Fields) -> Result<(), Changed> {
    columns(from, into, "")
}

fn columns(from: &Fields, into: &Fields, path: &str) -> Result<(), Changed> {
    for former in from {
        if let Some((_, field)) = into.find(former.name()) {
            column(former, field, path)?;
        }
    }
    Ok(())
}

fn column(from: &Field, into: &Field, path: &str) -> Result<(), Changed> {
    let path = if path.is_empty() { from.name().clone() } else { format!("{path}.{}", from.name()) };
    match (from.data_type(), into.data_type()) {
        (DataType::Struct(from), DataType::Struct(into)) => columns(from, into, &path),
        (DataType::List(from), DataType::List(into)) => column(from, into, &path),
        (DataType::Map(from, _), DataType::Map(into, _)) => column(from, into, &path),
        (from, into) if from == into || is_promoted(from, into) => Ok(()),
        (from, into) => Err(Changed { path, from: from.clone(), into: into.clone() }),
    }
}

fn is_promoted(from: &DataType, into: &DataType) -> bool {
    use DataType as T;
    match (from, into) {
        (T::Null, _)
        | (T::Int32, T::Int64)
        | (T::UInt32, T::UInt64 | T::Int64)
        | (T::Float32, T::Float64) => true,
        (T::Decimal128(digits, scale), T::Decimal128(more, same) | T::Decimal256(more, same))
        | (T::Decimal256(digits, scale), T::Decimal256(more, same)) => scale == same && digits <= more,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn fields(columns: &[(&str, DataType)]) -> Fields {
        columns.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true)).collect()
    }

    fn list(item: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("item", item, false)))
    }

    #[test]
    fn columns_come_go_and_grow() {
        let from = fields(&[
            ("a", DataType::Int32),
            ("b", DataType::Float32),
            ("c", DataType::Decimal128(10, 2)),
            ("d", DataType::Struct(fields(&[("x", list(DataType::Int32)), ("y", DataType::Utf8)]))),
            ("e", DataType::Null),
            ("gone", DataType::Utf8),
        ]);
        let into = fields(&[
            ("new", DataType::Utf8),
            ("d", DataType::Struct(fields(&[("z", DataType::Utf8), ("x", list(DataType::Int64))]))),
            ("a", DataType::Int64),
            ("b", DataType::Float64),
            ("c", DataType::Decimal256(50, 2)),
            ("e", DataType::Utf8),
        ]);
        assert_eq!(check(&from, &into), Ok(()));
        // Back again is another matter.
        assert_eq!(check(&into, &from).unwrap_err().path, "d.x.item");
    }

    #[test]
    fn a_column_that_becomes_another_one_is_named() {
        let text = DataType::Utf8;
        for (from, into, path) in [
            (DataType::Int64, text.clone(), "a"),
            (DataType::Int64, DataType::Int32, "a"),
            (DataType::Int32, DataType::Float64, "a"),
            (DataType::Decimal128(10, 2), DataType::Decimal128(10, 3), "a"),
            (DataType::Decimal128(10, 2), DataType::Decimal128(9, 2), "a"),
            (list(text.clone()), list(DataType::Int64), "a.item"),
            (list(text.clone()), text.clone(), "a"),
            (
                DataType::Struct(fields(&[("x", text.clone())])),
                DataType::Struct(fields(&[("x", DataType::Boolean)])),
                "a.x",
            ),
        ] {
            let changed = check(&fields(&[("a", from)]), &fields(&[("a", into)])).unwrap_err();
            assert_eq!(changed.path, path, "{changed}");
        }
        let changed = check(&fields(&[("a", DataType::Int64)]), &fields(&[("a", text)])).unwrap_err();
        assert_eq!(changed.to_string(), "`a` is Int64 and would become Utf8");
    }
}
