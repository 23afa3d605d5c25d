//! Parquet files.

use std::fs::File;
use std::io;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{Format, RowWriter};

/// A row group is closed at this many encoded bytes: it is held in memory until then, and readers
/// fetch it as a whole.
const ROW_GROUP_BYTES_MAX: usize = 32 << 20;

/// `parquet:` of a sink. Snappy, as Spark writes by default.
#[derive(Debug)]
pub struct ParquetFormat;

impl Format for ParquetFormat {
    fn extension(&self) -> &'static str {
        "parquet"
    }

    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("sidestream ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        Ok(Box::new(ParquetWriter { writer }))
    }
}

struct ParquetWriter {
    writer: ArrowWriter<File>,
}

impl RowWriter for ParquetWriter {
    fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
        self.writer.write(rows)?;
        if self.writer.in_progress_size() >= ROW_GROUP_BYTES_MAX {
            self.writer.flush()?;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    fn finish(self: Box<Self>) -> io::Result<File> {
        Ok(self.writer.into_inner()?)
    }
}
