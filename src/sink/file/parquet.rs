//! Parquet files: columns are encoded side by side on cores that are free.

use std::fs::File;
use std::io;

use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_writer::{
    ArrowColumnWriter, ArrowLeafColumn, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::printer::print_schema;

use super::{Format, RowWriter};
use crate::cores;

/// Readers skip and spread work by row groups; this is what Arrow's own writer ends them at.
const GROUP_ROWS_MAX: usize = 1 << 20;

/// `parquet:` of a sink. Snappy, as Spark writes by default.
#[derive(Debug)]
pub struct ParquetFormat;

/// What a column is in a file, in Parquet's words: for the table of types.
///
/// # Errors
/// If there is no such type in Parquet.
pub fn parquet_type(column: &Field) -> io::Result<String> {
    const NAME: &str = "x";
    let column = column.clone().with_name(NAME);
    let converted = ArrowSchemaConverter::new().convert(&Schema::new(vec![column]))?;
    let mut text = Vec::new();
    converted.root_schema().get_fields().iter().for_each(|column| print_schema(&mut text, column));
    // `OPTIONAL INT64 x (TIMESTAMP(MILLIS,true));`, and of a group what is in it.
    let text = String::from_utf8_lossy(&text);
    let first = text.lines().next().unwrap_or_default().trim_end_matches([';', '{', ' ']);
    let (_, without_repetition) = first.split_once(' ').unwrap_or_default();
    Ok(without_repetition.replacen(&format!(" {NAME}"), "", 1))
}

impl Format for ParquetFormat {
    fn extension(&self) -> &'static str {
        "parquet"
    }

    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("sidestream ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        // It also puts the Arrow schema into the file.
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        let (writer, factory) = writer.into_serialized_writer()?;
        Ok(Box::new(ParquetWriter { writer, factory, schema: schema.clone(), columns: Vec::new(), rows: 0 }))
    }
}

struct ParquetWriter {
    writer: SerializedFileWriter<File>,
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    /// The leaf columns of the open row group; none if there is none.
    columns: Vec<ArrowColumnWriter>,
    /// Of the open row group.
    rows: usize,
}

impl ParquetWriter {
    fn append(&mut self, rows: &RecordBatch) -> Result<(), ParquetError> {
        if self.columns.is_empty() {
            let number = self.writer.flushed_row_groups().len();
            self.columns = self.factory.create_column_writers(number)?;
        }
        let mut leaves: Vec<ArrowLeafColumn> = Vec::with_capacity(self.columns.len());
        for (field, column) in self.schema.fields().iter().zip(rows.columns()) {
            leaves.extend(compute_leaves(field, column)?);
        }
        let pairs: Vec<_> = self.columns.iter_mut().zip(leaves).collect();
        let cores = cores::lend((rows.num_rows() / cores::ROWS_MIN).min(pairs.len()));
        cores.map(pairs, |(writer, leaf)| writer.write(&leaf)).into_iter().collect::<Result<(), _>>()?;
        self.rows += rows.num_rows();
        Ok(())
    }

    fn close_group(&mut self) -> Result<(), ParquetError> {
        self.rows = 0;
        if self.columns.is_empty() {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        for column in std::mem::take(&mut self.columns) {
            column.close()?.append_to_row_group(&mut group)?;
        }
        group.close()?;
        Ok(())
    }
}

impl RowWriter for ParquetWriter {
    fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
        let mut at = 0;
        while at < rows.num_rows() {
            let count = (rows.num_rows() - at).min(GROUP_ROWS_MAX - self.rows);
            self.append(&rows.slice(at, count))?;
            at += count;
            if self.rows >= GROUP_ROWS_MAX {
                self.close_group()?;
            }
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        (self.writer.bytes_written() + self.held()) as u64
    }

    /// The row group: it is in memory until it is closed.
    fn held(&self) -> usize {
        self.columns.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum()
    }

    fn relieve(&mut self) -> io::Result<()> {
        Ok(self.close_group()?)
    }

    fn finish(mut self: Box<Self>) -> io::Result<File> {
        self.close_group()?;
        Ok(self.writer.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray};
    use arrow::datatypes::{DataType, Int64Type, TimeUnit};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    #[test]
    fn types_have_parquets_names() {
        for (data_type, expected) in [
            (DataType::Int64, "INT64"),
            (DataType::Utf8, "BYTE_ARRAY (STRING)"),
            (
                DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
                "INT64 (TIMESTAMP(MILLIS,true))",
            ),
        ] {
            assert_eq!(parquet_type(&Field::new("name", data_type, true)).unwrap(), expected);
        }
        let list = Field::new_list("xs", Field::new_list_field(DataType::Int64, true), true);
        assert_eq!(parquet_type(&list).unwrap(), "group (LIST)");
    }

    /// Nested and flat columns over several row groups and batches of every size are read as they were written.
    #[test]
    fn what_is_written_is_read() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
            Field::new_list("items", Field::new_list_field(DataType::Int64, true), true),
        ]));
        let batch = |from: i64, to: i64| {
            let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(from..to));
            let names = (from..to).map(|id| (id % 3 != 0).then(|| format!("n{id}")));
            let names: ArrayRef = Arc::new(names.collect::<StringArray>());
            let items = (from..to).map(|id| (id % 5 != 0).then(|| (0..id % 4).map(Some).collect::<Vec<_>>()));
            let items: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(items));
            RecordBatch::try_new(schema.clone(), vec![ids, names, items]).unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let mut writer = ParquetFormat.begin(File::create_new(&path).unwrap(), &schema).unwrap();
        writer.write(&batch(0, 10)).unwrap();
        writer.write(&batch(10, 10)).unwrap();
        writer.relieve().unwrap();
        writer.relieve().unwrap();
        assert_eq!(writer.held(), 0);
        writer.write(&batch(10, 30_000)).unwrap();
        assert!(writer.held() > 0);
        writer.finish().unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        assert_eq!(reader.schema().fields(), schema.fields());
        let read: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
        let read = arrow::compute::concat_batches(&schema, &read).unwrap();
        assert_eq!(read, batch(0, 30_000));
    }
}
