//! Dead letters of files: rows that are records of a topic again, as if it had been a topic that they went to.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, Int64Array, ListArray, ListBuilder, StringArray,
    StructBuilder,
};
use arrow::datatypes::{DataType, Field, Int64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::codec::avro::node::{Node, SchemaError};
use crate::codec::avro::program::{Program, compile};
use crate::codec::avro::{arrow_type, decode};
use crate::codec::columns::Column;
use crate::codec::meta::header_fields;
use crate::model::{ChunkBuilder, Incoming, Offset, TimestampType};

use super::put;

const KEY: &str = "key";
const VALUE: &str = "value";
const HEADERS: &str = "headers";
const TIMESTAMP: &str = "source_timestamp_ms";

/// The columns that a letter is made of again; the others are in its headers.
pub const STORED: [&str; 4] = [KEY, VALUE, HEADERS, TIMESTAMP];

/// Why rows are no dead letters. It does not say their values.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error("it has no column `{0}` of dead letters")]
    Column(&'static str),
    #[error("line {0} is no dead letter")]
    Line(usize),
    #[error("its schema cannot be read")]
    Schema(#[from] SchemaError),
    #[error("its records do not have its schema: {0}")]
    Record(decode::Problem),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
}

/// Letters as they are in the columns of a file.
#[derive(Debug)]
pub struct StoredLetters {
    keys: BinaryArray,
    values: BinaryArray,
    headers: ListArray,
    names: StringArray,
    header_values: BinaryArray,
    timestamps: Int64Array,
}

impl StoredLetters {
    /// # Errors
    /// [`StoredError::Column`]
    pub fn new(rows: &RecordBatch) -> Result<Self, StoredError> {
        let bytes = |name: &'static str| {
            let column = rows.column_by_name(name).and_then(|column| column.as_binary_opt::<i32>());
            column.cloned().ok_or(StoredError::Column(name))
        };
        let column = |name: &str| rows.column_by_name(name);
        let wrong = StoredError::Column(HEADERS);
        let Some(headers) = column(HEADERS).and_then(|column| column.as_list_opt::<i32>()) else {
            return Err(wrong);
        };
        let Some(entries) = headers.values().as_struct_opt() else {
            return Err(wrong);
        };
        let names = entries.column_by_name("key").and_then(|names| names.as_string_opt::<i32>());
        let values = entries.column_by_name("value").and_then(|values| values.as_binary_opt::<i32>());
        let (Some(names), Some(header_values)) = (names, values) else {
            return Err(wrong);
        };
        let timestamps = column(TIMESTAMP).and_then(|column| column.as_primitive_opt::<Int64Type>());
        Ok(Self {
            keys: bytes(KEY)?,
            values: bytes(VALUE)?,
            headers: headers.clone(),
            names: names.clone(),
            header_values: header_values.clone(),
            timestamps: timestamps.cloned().ok_or(StoredError::Column(TIMESTAMP))?,
        })
    }

    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// Appends the letter of a row, as the record at `offset`.
    pub fn push(&self, row: usize, offset: Offset, builder: &mut ChunkBuilder) {
        let record = Incoming {
            offset,
            timestamp_ms: self.timestamps.value(row),
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: bytes_at(&self.keys, row),
            value: bytes_at(&self.values, row),
        };
        let offsets = self.headers.value_offsets();
        let headers = (offsets[row] as usize..offsets[row + 1] as usize)
            .map(|at| (self.names.value(at).as_bytes(), bytes_at(&self.header_values, at)));
        builder.push(record, headers);
    }
}

fn bytes_at(column: &BinaryArray, row: usize) -> Option<&[u8]> {
    column.is_valid(row).then(|| column.value(row))
}

/// A line of JSON.
#[derive(Deserialize)]
struct Line {
    key: Option<String>,
    value: Option<String>,
    headers: Vec<LineHeader>,
    source_timestamp_ms: i64,
}

#[derive(Deserialize)]
struct LineHeader {
    key: String,
    value: Option<String>,
}

/// The letters of lines of JSON, the first of which is line `first` of its file.
///
/// # Errors
/// [`StoredError::Line`]
pub fn from_json(first: usize, lines: &[Vec<u8>]) -> Result<StoredLetters, StoredError> {
    let (mut keys, mut values) = (BinaryBuilder::new(), BinaryBuilder::new());
    let item = Field::new("item", DataType::Struct(header_fields()), false);
    let mut headers = ListBuilder::new(StructBuilder::from_fields(header_fields(), 0)).with_field(item);
    let mut timestamps = Vec::with_capacity(lines.len());
    for (number, line) in lines.iter().enumerate() {
        let wrong = || StoredError::Line(first + number);
        // What the parser says may quote a value.
        let line: Line = serde_json::from_slice(line).map_err(|_| wrong())?;
        let bytes = |text: Option<String>| match text {
            Some(text) => STANDARD.decode(text).map(Some).map_err(|_| wrong()),
            None => Ok(None),
        };
        keys.append_option(bytes(line.key)?);
        values.append_option(bytes(line.value)?);
        for header in line.headers {
            put(headers.values(), &header.key, bytes(header.value)?.as_deref());
        }
        headers.append(true);
        timestamps.push(line.source_timestamp_ms);
    }
    let headers = headers.finish();
    let entries = headers.values().as_struct();
    let (names, header_values) =
        (entries.column(0).as_string().clone(), entries.column(1).as_binary().clone());
    Ok(StoredLetters {
        keys: keys.finish(),
        values: values.finish(),
        headers,
        names,
        header_values,
        timestamps: Int64Array::from(timestamps),
    })
}

/// Reads the records of an Avro file of ours.
pub struct AvroLetters {
    schema: SchemaRef,
    program: Program,
}

impl AvroLetters {
    /// For the schema in the file's header.
    ///
    /// # Errors
    /// [`StoredError::Schema`]
    pub fn new(schema: &str) -> Result<Self, StoredError> {
        let node = Node::parse(schema, &[])?;
        Ok(Self { schema: arrow_type::schema(&node, false)?, program: compile(&node, &node)? })
    }

    /// The letters of a block of so many records.
    ///
    /// # Errors
    /// [`StoredError::Record`]
    pub fn decode(&self, count: usize, block: &[u8]) -> Result<StoredLetters, StoredError> {
        let fields = self.schema.fields();
        let mut columns = fields.iter().map(Column::new).collect::<Result<Vec<_>, _>>()?;
        let mut rest = block;
        for _ in 0..count {
            let read = self.program.decode_first(rest, &mut columns);
            rest = read.map_err(|bad| StoredError::Record(bad.problem))?;
        }
        if !rest.is_empty() {
            return Err(StoredError::Record(decode::Problem::Trailing(rest.len())));
        }
        let columns = columns.into_iter().map(Column::finish).collect::<Result<Vec<ArrayRef>, _>>()?;
        StoredLetters::new(&RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Rejected;
    use crate::codec::letters::{build, originals};
    use crate::model::{Chunk, Partition, TopicName, TopicPartition};

    fn incoming<'a>(offset: i64, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Incoming<'a> {
        Incoming {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 1000 + offset,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key,
            value,
        }
    }

    fn source(topic: &str) -> TopicPartition {
        TopicPartition::new(&TopicName::new(topic), Partition(3))
    }

    /// Three bad records, and their rows.
    fn letters() -> (Chunk, RecordBatch) {
        let mut builder = ChunkBuilder::new(source("orders"), 1, Offset::ZERO);
        let own: [(&[u8], Option<&[u8]>); 2] = [(b"trace", Some(b"\xff\x00")), (b"none", None)];
        builder.push(incoming(4, Some(b"k"), Some(b"\x00\xfe")), own.into_iter());
        builder.push(incoming(6, None, Some(b"")), std::iter::empty());
        builder.push(incoming(7, Some(b""), None), std::iter::empty());
        let chunk = builder.finish(Offset::new(8).unwrap());
        let rejected =
            Rejected { index: 0, code: "framing", message: "no magic".to_owned(), schema_id: None };
        let rows = {
            let each: Vec<_> = chunk.records().map(|record| (record, &rejected)).collect();
            build("r", &each).unwrap()
        };
        (chunk, rows)
    }

    /// What the route gets of stored letters is what it had.
    #[track_caller]
    fn assert_again(stored: &StoredLetters, records: &Chunk) {
        let mut builder = ChunkBuilder::new(source("stored"), 5, Offset::ZERO);
        for row in 0..stored.count() {
            stored.push(row, Offset::new(10 + row as i64).unwrap(), &mut builder);
        }
        let (again, others) = originals(builder.finish(Offset::new(20).unwrap()), "r");
        assert_eq!((others, again.record_count(), again.end.get()), (0, records.record_count(), 20));
        for (number, (again, record)) in again.records().zip(records.records()).enumerate() {
            assert_eq!((again.key(), again.value()), (record.key(), record.value()));
            assert_eq!(again.headers().collect::<Vec<_>>(), record.headers().collect::<Vec<_>>());
            assert_eq!(again.offset(), 10 + number as i64);
            assert_eq!((again.first_source(), again.first_offset()), (record.source(), record.offset()));
            assert_eq!(again.timestamp_ms(), record.timestamp_ms());
        }
    }

    #[test]
    fn columns_are_records_again() {
        let (records, rows) = letters();
        assert_again(&StoredLetters::new(&rows).unwrap(), &records);
        // Also a part of them.
        let part = StoredLetters::new(&rows.slice(1, 2)).unwrap();
        let mut builder = ChunkBuilder::new(source("stored"), 5, Offset::ZERO);
        part.push(0, Offset::ZERO, &mut builder);
        let (again, _) = originals(builder.finish(Offset::ZERO), "r");
        assert_eq!(again.records().next().unwrap().first_offset(), 6);
        let missing = rows.project(&[0, 1, 7]).unwrap();
        let error = StoredLetters::new(&missing).unwrap_err().to_string();
        assert_eq!(error, "it has no column `headers` of dead letters");
    }

    #[test]
    fn lines_are_records_again_and_errors_do_not_quote_them() {
        let (records, rows) = letters();
        let json = crate::render::JsonRows::new(&rows).unwrap();
        let lines: Vec<Vec<u8>> = (0..rows.num_rows())
            .map(|row| {
                let mut line = Vec::new();
                json.write(row, &mut line);
                line
            })
            .collect();
        assert_again(&from_json(1, &lines).unwrap(), &records);
        for wrong in [&b"{\"key\": \"secret\"}"[..], b"secret", b"{\"key\": \"se*ret\", \"headers\": []}"] {
            let error = from_json(7, &[lines[0].clone(), wrong.to_vec()]).unwrap_err().to_string();
            assert_eq!(error, "line 8 is no dead letter");
        }
    }

    #[test]
    fn a_block_that_is_not_of_its_schema_is_told() {
        let node = r#"{"type": "record", "name": "L", "fields": [
            {"name": "key", "type": ["null", "bytes"]}, {"name": "value", "type": ["null", "bytes"]},
            {"name": "headers", "type": {"type": "array", "items": {"type": "record", "name": "H", "fields": [
                {"name": "key", "type": "string"}, {"name": "value", "type": ["null", "bytes"]}]}}},
            {"name": "source_timestamp_ms", "type": "long"}]}"#;
        let letters = AvroLetters::new(node).unwrap();
        // A key of one byte, no value, no headers, 1 ms.
        let block = [2, 2, b'k', 0, 0, 2];
        let read = letters.decode(1, &block).unwrap();
        assert_eq!((read.count(), read.keys.value(0), read.timestamps.value(0)), (1, &b"k"[..], 1));
        let twice = letters.decode(2, &[block, block].concat()).unwrap();
        assert_eq!(twice.count(), 2);
        for (count, bytes) in [(1, &block[..5]), (2, &block[..]), (0, &block[..]), (usize::MAX, &[][..])] {
            let error = letters.decode(count, bytes).unwrap_err();
            assert!(matches!(error, StoredError::Record(_)), "{error}");
        }
        let short =
            AvroLetters::new(r#"{"type": "record", "name": "L", "fields": [{"name": "a", "type": "int"}]}"#);
        let error = short.unwrap().decode(1, &[2]).unwrap_err().to_string();
        assert!(error.contains("no column `"), "{error}");
    }
}
