//! Hive partitions: which directory below the sink's path a row belongs to.
//!
//! A directory is `name=value` for each level. Values are the text forms of `render`, escaped as Hive and
//! Spark escape them, so their readers get back what was put in. A `/` is among what is escaped and every
//! directory begins with a checked name: no value leads anywhere else.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::row::{Row, RowConverter, SortField};

use crate::render::Values;

/// What Hive calls the partition of null and of the empty text: a directory cannot be named by either.
const NO_VALUE: &str = "__HIVE_DEFAULT_PARTITION__";

/// What Hive and Spark escape, besides control characters.
const ESCAPED: &str = "\"#%'*/:=?\\{[]^\x7f";

/// What file systems take as the name of a directory.
const NAME_BYTES_MAX: usize = 255;

/// Computes the values of a batch's rows, a column for each level.
pub type PartitionValues =
    Box<dyn Fn(&RecordBatch) -> Result<Vec<ArrayRef>, Box<dyn Error + Send + Sync>> + Send + Sync>;

/// How the rows of a sink are spread over directories.
pub struct Partitioning {
    /// From the outermost directory inwards.
    names: Vec<String>,
    values: PartitionValues,
    /// The columns that are written: readers take those with the name of a level from the directories.
    kept: Vec<usize>,
    schema: SchemaRef,
}

/// Rows of a batch that belong to one directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Below the sink's path, with `/`.
    pub directory: String,
    /// The value of each level as text; of null it is empty.
    pub values: Vec<String>,
    /// Places in the batch, ascending.
    rows: Vec<u64>,
}

/// Rows that cannot be spread.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    #[error("an expression of `partition_by` failed")]
    Expression { source: Box<dyn Error + Send + Sync> },
    #[error(
        "a value of partition `{name}` makes a directory name of {length} bytes, \
         and file systems take {NAME_BYTES_MAX}"
    )]
    TooLong { name: String, length: usize },
    #[error("failed to split the rows by partition")]
    Split(#[from] ArrowError),
}

impl PartitionError {
    /// What helps.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Expression { .. } => {
                "guard the expression in `partition_by`, for example with `try_cast` or `nullif`"
            }
            Self::TooLong { .. } => "shorten the value in `partition_by`, for example with `left(…, 50)`",
            Self::Split(_) => "give `partition_by` an expression of a plain type: text, a number, a date",
        }
    }
}

impl fmt::Debug for Partitioning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partitioning").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Partitioning {
    /// Spreads rows of `schema` by `values`, of which there is one for each of `names`.
    pub fn new(names: Vec<String>, schema: &SchemaRef, values: PartitionValues) -> Self {
        let fields = schema.fields();
        let kept: Vec<usize> =
            (0..fields.len()).filter(|column| !names.contains(fields[*column].name())).collect();
        let written: Vec<FieldRef> = kept.iter().map(|column| fields[*column].clone()).collect();
        let schema = Arc::new(Schema::new_with_metadata(written, schema.metadata().clone()));
        Self { names, values, kept, schema }
    }

    /// The schema of what is written.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The columns of `rows` that are written, and which of the rows go where.
    ///
    /// # Errors
    /// If a value cannot be computed or cannot be the name of a directory.
    pub fn split(&self, rows: &RecordBatch) -> Result<(RecordBatch, Vec<Piece>), PartitionError> {
        let columns = (self.values)(rows).map_err(|source| PartitionError::Expression { source })?;
        let is_whole = |column: &ArrayRef| column.len() == rows.num_rows();
        if columns.len() != self.names.len() || !columns.iter().all(is_whole) {
            // No row may be passed over.
            let message = "the values of partitions are not those of the rows".to_owned();
            return Err(ArrowError::InvalidArgumentError(message).into());
        }
        let written = rows.project(&self.kept)?;
        Ok((written, self.pieces(&columns)?))
    }

    /// In the order of the first row of each.
    fn pieces(&self, columns: &[ArrayRef]) -> Result<Vec<Piece>, PartitionError> {
        let fields = columns.iter().map(|column| SortField::new(column.data_type().clone()));
        let keys = RowConverter::new(fields.collect())?.convert_columns(columns)?;
        let values: Vec<Values> = columns.iter().map(Values::new).collect::<Result<_, _>>()?;
        let mut pieces: Vec<Piece> = Vec::new();
        // Text is made once for each value, not for each row.
        let mut by_value: HashMap<Row<'_>, usize> = HashMap::new();
        // Values that differ may have one directory: null and the empty text.
        let mut by_directory: HashMap<String, usize> = HashMap::new();
        for (row, key) in keys.iter().enumerate() {
            let piece = match by_value.entry(key) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(value) => {
                    let values = texts(&values, row);
                    let directory = self.directory(&values)?;
                    let next = pieces.len();
                    let piece = *by_directory.entry(directory.clone()).or_insert(next);
                    if piece == next {
                        pieces.push(Piece { directory, values, rows: Vec::new() });
                    }
                    *value.insert(piece)
                }
            };
            pieces[piece].rows.push(row as u64);
        }
        Ok(pieces)
    }

    fn directory(&self, values: &[String]) -> Result<String, PartitionError> {
        let mut directory = String::new();
        for (name, value) in self.names.iter().zip(values) {
            let level = format!("{name}={}", escaped(value));
            if level.len() > NAME_BYTES_MAX {
                return Err(PartitionError::TooLong { name: name.clone(), length: level.len() });
            }
            if !directory.is_empty() {
                directory.push('/');
            }
            directory.push_str(&level);
        }
        Ok(directory)
    }

    /// The names of the levels, from the outermost one inwards.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// The values of a row as text.
fn texts(values: &[Values], row: usize) -> Vec<String> {
    let text = |values: &Values| {
        let mut text = Vec::new();
        values.write_plain(row, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    values.iter().map(text).collect()
}

impl Piece {
    /// Its rows out of those of the whole batch, in their order.
    ///
    /// # Errors
    /// If they would be more than a column can hold.
    pub fn take(&self, all: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        if self.rows.len() == all.num_rows() {
            return Ok(all.clone());
        }
        take_record_batch(all, &UInt64Array::from_iter_values(self.rows.iter().copied()))
    }
}

/// A value as part of a directory's name, as Hive's `FileUtils.escapePathName` writes it.
fn escaped(value: &str) -> String {
    if value.is_empty() {
        return NO_VALUE.to_owned();
    }
    let mut escaped = String::with_capacity(value.len());
    for char in value.chars() {
        if char < ' ' || ESCAPED.contains(char) {
            escaped.push_str(&format!("%{:02X}", u32::from(char)));
        } else {
            escaped.push(char);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, StringArray, TimestampMillisecondArray};
    use arrow::datatypes::{DataType, Field, Int64Type};

    use super::*;

    /// Rows of a text and their number, partitioned by the text.
    fn rows(texts: Vec<Option<&str>>) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("text", DataType::Utf8, true),
            Field::new("id", DataType::Int64, false),
        ]);
        let ids = Int64Array::from_iter_values(0..texts.len() as i64);
        let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(texts)), Arc::new(ids)];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn by_text(names: &[&str], schema: &SchemaRef) -> Partitioning {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let count = names.len();
        let values = move |rows: &RecordBatch| {
            Ok::<_, Box<dyn Error + Send + Sync>>(vec![rows.column(0).clone(); count])
        };
        Partitioning::new(names, schema, Box::new(values))
    }

    fn directories(pieces: &[Piece]) -> Vec<&str> {
        pieces.iter().map(|piece| piece.directory.as_str()).collect()
    }

    #[test]
    fn names_are_escaped_as_hive_does() {
        for (value, expected) in [
            ("CH", "CH"),
            ("2026-11-01T00:00:00Z", "2026-11-01T00%3A00%3A00Z"),
            ("a/b", "a%2Fb"),
            ("..", ".."),
            ("../../etc", "..%2F..%2Fetc"),
            ("\"#%'*/:=?\\{[]^", "%22%23%25%27%2A%2F%3A%3D%3F%5C%7B%5B%5D%5E"),
            ("\0\n\u{1f}\u{7f}", "%00%0A%1F%7F"),
            ("}<> |&;,.~_-+!$()@`", "}<> |&;,.~_-+!$()@`"),
            ("Zürich 東京", "Zürich 東京"),
            ("", "__HIVE_DEFAULT_PARTITION__"),
        ] {
            assert_eq!(escaped(value), expected, "{value:?}");
        }
    }

    #[test]
    fn rows_keep_their_order_and_null_is_the_empty_text() {
        let rows = rows(vec![Some("b"), None, Some("a"), Some("b"), Some(""), Some(".."), Some("a/b")]);
        let partitioning = by_text(&["p"], &rows.schema());
        let (written, pieces) = partitioning.split(&rows).unwrap();
        assert_eq!(directories(&pieces), ["p=b", "p=__HIVE_DEFAULT_PARTITION__", "p=a", "p=..", "p=a%2Fb"]);
        let ids: Vec<Vec<i64>> = pieces
            .iter()
            .map(|piece| piece.take(&written).unwrap())
            .map(|rows| rows.column(1).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        assert_eq!(ids, [vec![0, 3], vec![1, 4], vec![2], vec![5], vec![6]]);
    }

    #[test]
    fn levels_nest_and_columns_of_their_names_are_left_out() {
        let rows = rows(vec![Some("x"), Some("x")]);
        let partitioning = by_text(&["text", "again"], &rows.schema());
        let (written, pieces) = partitioning.split(&rows).unwrap();
        assert_eq!(directories(&pieces), ["text=x/again=x"]);
        assert_eq!(&written.schema(), partitioning.schema());
        let names: Vec<&String> = partitioning.schema().fields().iter().map(|field| field.name()).collect();
        assert_eq!(names, ["id"]);
        assert_eq!(pieces[0].take(&written).unwrap(), written);
    }

    #[test]
    fn values_of_other_types_have_their_text_form() {
        let rows = rows(vec![Some("x")]);
        let values = |_: &RecordBatch| {
            let time: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![1_500]).with_timezone("UTC"));
            Ok::<_, Box<dyn Error + Send + Sync>>(vec![time])
        };
        let partitioning = Partitioning::new(vec!["at".to_owned()], &rows.schema(), Box::new(values));
        let (_, pieces) = partitioning.split(&rows).unwrap();
        assert_eq!(directories(&pieces), ["at=1970-01-01T00%3A00%3A01.500Z"]);
    }

    #[test]
    fn a_name_that_no_file_system_takes_is_refused() {
        let (longest, colons) = ("x".repeat(NAME_BYTES_MAX - 2), ":".repeat(100));
        let good = rows(vec![Some(longest.as_str())]);
        by_text(&["p"], &good.schema()).split(&good).unwrap();
        // Each colon takes three bytes.
        let rows = rows(vec![Some(colons.as_str())]);
        let error = by_text(&["p"], &rows.schema()).split(&rows).unwrap_err();
        assert!(matches!(&error, PartitionError::TooLong { name, length: 302 } if name == "p"), "{error}");
    }
}
