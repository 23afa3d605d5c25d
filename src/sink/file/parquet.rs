//! Parquet files.

use std::fs::File;
use std::io;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{Format, RowWriter};

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
        Ok(self.writer.write(rows)?)
    }

    fn size(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// The row group: it is in memory until it is closed.
    fn held(&self) -> usize {
        self.writer.in_progress_size()
    }

    fn relieve(&mut self) -> io::Result<()> {
        Ok(self.writer.flush()?)
    }

    fn finish(self: Box<Self>) -> io::Result<File> {
        Ok(self.writer.into_inner()?)
    }
}
