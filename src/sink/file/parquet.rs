//! Parquet files: columns are encoded side by side on cores that are free.

use std::fs::File;
use std::io;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::{
    ArrowColumnWriter, ArrowLeafColumn, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, GzipLevel, Type, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::printer::print_schema;

use super::read::BoxedRows;
use super::{Format, RowWriter};
use crate::config::plan::{ParquetCompression, ParquetOptions, Statistics};
use crate::cores;

/// `parquet:` of a sink.
#[derive(Debug)]
pub struct ParquetFormat {
    pub options: ParquetOptions,
}

/// What is wrong with the columns that the options name, if anything. `partitions` are those that are not in the files.
///
/// # Errors
/// The problem, for the reader of the file.
pub fn check_columns(schema: &Schema, partitions: &[&str], options: &ParquetOptions) -> Result<(), String> {
    for (name, column) in &options.columns {
        let Ok(field) = schema.field_with_name(name) else {
            return Err(format!("`columns` names `{name}`, and there is no such column"));
        };
        if partitions.contains(&name.as_str()) {
            return Err(format!("`columns` names `{name}`, which is a partition and not in the files"));
        }
        if column.has_bloom_filter && !may_filter(field.data_type()) {
            return Err(format!("column `{name}` holds only booleans, for which there is no bloom filter"));
        }
    }
    Ok(())
}

/// Is there anything in a column that a bloom filter can be made of?
fn may_filter(data_type: &DataType) -> bool {
    match data_type {
        DataType::Boolean | DataType::Null => false,
        DataType::Struct(fields) => fields.iter().any(|field| may_filter(field.data_type())),
        DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => {
            may_filter(item.data_type())
        }
        _ => true,
    }
}

fn compression(compression: ParquetCompression) -> Result<Compression, ParquetError> {
    Ok(match compression {
        ParquetCompression::None => Compression::UNCOMPRESSED,
        ParquetCompression::Snappy => Compression::SNAPPY,
        // What the format first called LZ4 was never the same in two implementations.
        ParquetCompression::Lz4 => Compression::LZ4_RAW,
        ParquetCompression::Gzip(level) => Compression::GZIP(GzipLevel::try_new(level)?),
        ParquetCompression::Zstd(level) => Compression::ZSTD(ZstdLevel::try_new(level)?),
    })
}

fn statistics(statistics: Statistics) -> EnabledStatistics {
    match statistics {
        Statistics::None => EnabledStatistics::None,
        Statistics::Group => EnabledStatistics::Chunk,
        Statistics::Page => EnabledStatistics::Page,
    }
}

fn properties(options: &ParquetOptions, schema: &Schema) -> Result<WriterProperties, ParquetError> {
    let mut properties = WriterProperties::builder()
        .set_compression(compression(options.compression)?)
        .set_dictionary_enabled(options.has_dictionary)
        .set_statistics_enabled(statistics(options.statistics))
        // Row groups are ended below; filters are made for this number of values.
        .set_max_row_group_row_count(Some(options.group_rows_max))
        .set_created_by(concat!("sidestream ", env!("CARGO_PKG_VERSION")).to_owned());
    if options.columns.is_empty() {
        return Ok(properties.build());
    }
    for leaf in ArrowSchemaConverter::new().convert(schema)?.columns() {
        let path = leaf.path();
        let Some(column) = path.parts().first().and_then(|name| options.columns.get(name)) else {
            continue;
        };
        if let Some(has_dictionary) = column.has_dictionary {
            properties = properties.set_column_dictionary_enabled(path.clone(), has_dictionary);
        }
        if let Some(level) = column.statistics {
            properties = properties.set_column_statistics_enabled(path.clone(), statistics(level));
        }
        if column.has_bloom_filter && leaf.physical_type() != Type::BOOLEAN {
            properties = properties.set_column_bloom_filter_enabled(path.clone(), true);
        }
    }
    Ok(properties.build())
}

/// Rows of a file, so many at a time, with those of its columns that are named.
///
/// # Errors
/// If it cannot be read, or is no Parquet file.
pub fn read(file: File, columns: &[&str], rows_max: usize) -> io::Result<BoxedRows> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(io::Error::other)?;
    let all = builder.parquet_schema().root_schema().get_fields().iter().enumerate();
    let named = all.filter(|(_, column)| columns.contains(&column.name())).map(|(place, _)| place);
    let mask = ProjectionMask::roots(builder.parquet_schema(), named);
    let reader = builder.with_projection(mask).with_batch_size(rows_max).build();
    let reader = reader.map_err(io::Error::other)?;
    Ok(Box::new(reader.map(|rows| rows.map_err(io::Error::other))))
}

/// How many rows a file has.
///
/// # Errors
/// Likewise.
pub fn count(file: File) -> io::Result<u64> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(io::Error::other)?;
    let count = builder.metadata().file_metadata().num_rows();
    u64::try_from(count).map_err(io::Error::other)
}

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

    /// Filters are as large from the beginning as they may have to be: at most two bytes for each row.
    fn open_bytes(&self) -> usize {
        let filters = self.options.columns.values().filter(|column| column.has_bloom_filter).count();
        (256 << 10) + filters.saturating_mul(self.options.group_rows_max).saturating_mul(2)
    }

    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        let properties = properties(&self.options, schema)?;
        // It also puts the Arrow schema into the file.
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        let (writer, factory) = writer.into_serialized_writer()?;
        Ok(Box::new(ParquetWriter {
            writer,
            factory,
            schema: schema.clone(),
            group_rows_max: self.options.group_rows_max,
            columns: Vec::new(),
            rows: 0,
        }))
    }
}

struct ParquetWriter {
    writer: SerializedFileWriter<File>,
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    group_rows_max: usize,
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
            let count = (rows.num_rows() - at).min(self.group_rows_max - self.rows);
            self.append(&rows.slice(at, count))?;
            at += count;
            if self.rows >= self.group_rows_max {
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
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BooleanBuilder, Int64Array, ListArray, ListBuilder, StringArray};
    use arrow::datatypes::{Int64Type, TimeUnit};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use parquet::file::properties::ReaderProperties;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::file::serialized_reader::ReadOptionsBuilder;

    use super::*;
    use crate::config::plan::ParquetColumn;

    fn options() -> ParquetOptions {
        ParquetOptions {
            compression: ParquetCompression::Snappy,
            group_rows_max: 1 << 20,
            has_dictionary: true,
            statistics: Statistics::Page,
            columns: BTreeMap::new(),
        }
    }

    /// A file of `options` with 2,500 rows, in two batches.
    fn written(options: ParquetOptions, dir: &tempfile::TempDir) -> SerializedFileReader<File> {
        let item = Field::new_list_field(DataType::Boolean, true);
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
            Field::new_list("flags", item, true),
        ]));
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..2500));
        let names: ArrayRef =
            Arc::new((0..2500).map(|id| Some(format!("n{}", id % 9))).collect::<StringArray>());
        let mut flags = ListBuilder::new(BooleanBuilder::new());
        for id in 0..2500 {
            flags.values().append_value(id % 2 == 0);
            flags.append(true);
        }
        let columns: Vec<ArrayRef> = vec![ids, names, Arc::new(flags.finish())];
        let rows = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let path = dir.path().join("x.parquet");
        let format = ParquetFormat { options };
        let mut writer = format.begin(File::create(&path).unwrap(), &schema).unwrap();
        writer.write(&rows.slice(0, 700)).unwrap();
        writer.write(&rows.slice(700, 1800)).unwrap();
        writer.finish().unwrap();
        let read = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
        let read: Vec<RecordBatch> = read.build().unwrap().map(Result::unwrap).collect();
        assert_eq!(arrow::compute::concat_batches(&schema, &read).unwrap(), rows);
        let properties = ReaderProperties::builder().set_read_bloom_filter(true).build();
        let options = ReadOptionsBuilder::new().with_reader_properties(properties).build();
        SerializedFileReader::new_with_options(File::open(&path).unwrap(), options).unwrap()
    }

    #[test]
    fn every_codec_is_in_the_file_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        for (codec, expected) in [
            (ParquetCompression::None, "UNCOMPRESSED"),
            (ParquetCompression::Snappy, "SNAPPY"),
            (ParquetCompression::Lz4, "LZ4_RAW"),
            (ParquetCompression::Gzip(9), "GZIP"),
            (ParquetCompression::Zstd(1), "ZSTD"),
        ] {
            let reader = written(ParquetOptions { compression: codec, ..options() }, &dir);
            for column in reader.metadata().row_group(0).columns() {
                let shown = format!("{:?}", column.compression_codec());
                assert!(shown.starts_with(expected), "{codec:?}: {shown}");
            }
        }
    }

    #[test]
    fn columns_have_the_options_that_name_them() {
        let dir = tempfile::tempdir().unwrap();
        let filtered = ParquetColumn { has_dictionary: None, statistics: None, has_bloom_filter: true };
        let bare = ParquetColumn {
            has_dictionary: Some(false),
            statistics: Some(Statistics::None),
            has_bloom_filter: false,
        };
        let columns = BTreeMap::from([("id".to_owned(), filtered), ("flags".to_owned(), bare)]);
        let chosen = ParquetOptions { group_rows_max: 1000, columns, ..options() };
        let reader = written(chosen, &dir);
        let groups = reader.metadata().row_groups();
        assert_eq!(groups.iter().map(|group| group.num_rows()).collect::<Vec<_>>(), [1000, 1000, 500]);
        for (number, group) in groups.iter().enumerate() {
            let [id, name, flags] = group.columns() else { panic!() };
            assert!(id.bloom_filter_offset().is_some() && name.bloom_filter_offset().is_none());
            assert!(id.statistics().is_some() && name.statistics().is_some() && flags.statistics().is_none());
            assert!(name.dictionary_page_offset().is_some() && flags.dictionary_page_offset().is_none());
            let of_group = reader.get_row_group(number).unwrap();
            let filter = of_group.get_column_bloom_filter(0).unwrap();
            let first = number as i64 * 1000;
            assert!(filter.check(&first) && filter.check(&(first + 499)));
            // One in twenty of the others may seem to be there.
            let seen = (10_000..11_000_i64).filter(|other| filter.check(other)).count();
            assert!(seen < 200, "{seen}");
        }
        let plain = written(
            ParquetOptions { has_dictionary: false, statistics: Statistics::Group, ..options() },
            &dir,
        );
        for column in plain.metadata().row_group(0).columns() {
            assert!(column.dictionary_page_offset().is_none() && column.statistics().is_some());
            assert!(column.column_index_offset().is_none());
        }
        let default = written(options(), &dir);
        assert!(default.metadata().row_group(0).column(0).column_index_offset().is_some());
    }

    #[test]
    fn named_columns_have_to_be_there() {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("is_new", DataType::Boolean, false),
        ]);
        let problem = |name: &str, partitions: &[&str]| {
            let column = ParquetColumn { has_dictionary: None, statistics: None, has_bloom_filter: true };
            let columns = BTreeMap::from([(name.to_owned(), column)]);
            check_columns(&schema, partitions, &ParquetOptions { columns, ..options() })
        };
        assert_eq!(problem("id", &[]), Ok(()));
        assert!(problem("idd", &[]).unwrap_err().contains("there is no such column"));
        assert!(problem("id", &["id"]).unwrap_err().contains("is a partition"));
        assert!(problem("is_new", &[]).unwrap_err().contains("no bloom filter"));
    }

    #[test]
    fn filters_count_as_memory_of_open_files() {
        let filtered = ParquetColumn { has_dictionary: None, statistics: None, has_bloom_filter: true };
        let columns = BTreeMap::from([("a".to_owned(), filtered), ("b".to_owned(), filtered)]);
        let many = ParquetFormat { options: ParquetOptions { columns, ..options() } };
        assert!(many.open_bytes() > 4 << 20);
        assert!(ParquetFormat { options: options() }.open_bytes() < 1 << 20);
    }

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
        let format = ParquetFormat { options: options() };
        let mut writer = format.begin(File::create_new(&path).unwrap(), &schema).unwrap();
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
