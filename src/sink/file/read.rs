//! Committed files, read back.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

use arrow::record_batch::RecordBatch;

use super::avro::AvroBlocks;
use super::{parquet, text};

/// Rows of a Parquet file.
pub type BoxedRows = Box<dyn Iterator<Item = io::Result<RecordBatch>>>;

/// Rows of a Parquet file that are read at a time: a column of them fits into Arrow's offsets where each has 32 MiB.
const ROWS_MAX: usize = 64;

/// Bytes of a line: base64 of more than what a record may have.
const LINE_BYTES_MAX: u64 = 4 << 30;

/// Names of files that can be read back end so.
const EXTENSIONS: [&str; 5] = [".parquet", ".avro", ".jsonl", ".jsonl.gz", ".jsonl.zst"];

/// An open file, by what its name ends in.
pub enum Contents {
    Rows(BoxedRows),
    Blocks(AvroBlocks),
    Lines(Lines),
}

impl Contents {
    /// Opens a file of ours. Of Parquet, these columns are read.
    ///
    /// # Errors
    /// If it cannot be read, or is none of ours.
    pub fn open(path: &Path, columns: &[&str]) -> io::Result<Self> {
        let name = path.to_string_lossy();
        let file = File::open(path)?;
        Ok(if name.ends_with(".parquet") {
            Self::Rows(parquet::read(file, columns, ROWS_MAX)?)
        } else if name.ends_with(".avro") {
            Self::Blocks(AvroBlocks::open(file)?)
        } else {
            Self::Lines(Lines(text::read(file, &name)?))
        })
    }
}

/// Lines of a file of text.
pub struct Lines(Box<dyn BufRead>);

impl Lines {
    /// Up to `count` lines, without their ends; none at the end of the file.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn take(&mut self, count: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let mut line = Vec::new();
            if self.0.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.pop() != Some(b'\n') {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its last line has no end"));
            }
            lines.push(line);
        }
        Ok(lines)
    }
}

/// Is it the name of a file that can be read back?
pub fn is_readable(name: &str) -> bool {
    EXTENSIONS.iter().any(|extension| name.ends_with(extension))
}

/// How many rows a file of ours has.
///
/// # Errors
/// If it cannot be read.
pub fn count(path: &Path) -> io::Result<u64> {
    match Contents::open(path, &[])? {
        Contents::Rows(_) => parquet::count(File::open(path)?),
        Contents::Blocks(blocks) => blocks.count(),
        Contents::Lines(Lines(mut text)) => {
            let mut all = 0;
            loop {
                let buffer = text.fill_buf()?;
                if buffer.is_empty() {
                    return Ok(all);
                }
                let length = buffer.len();
                all += buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
                text.consume(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;
    use crate::config::plan::{AvroCodec, ParquetCompression, ParquetOptions, Statistics, TextCompression};
    use crate::sink::file::{AvroFormat, Format, JsonLinesFormat, ParquetFormat};

    fn formats() -> Vec<Box<dyn Format>> {
        let options = ParquetOptions {
            compression: ParquetCompression::Snappy,
            group_rows_max: 50,
            has_dictionary: true,
            statistics: Statistics::Page,
            columns: std::collections::BTreeMap::new(),
        };
        let text = |compression| Box::new(JsonLinesFormat { compression }) as Box<dyn Format>;
        vec![
            Box::new(ParquetFormat { options }),
            Box::new(AvroFormat { codec: AvroCodec::Snappy, record_name: "R".to_owned() }),
            text(TextCompression::None),
            text(TextCompression::Gzip(6)),
            text(TextCompression::Zstd(3)),
        ]
    }

    #[test]
    fn files_of_each_format_are_counted_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let column = |from: i64| Arc::new(Int64Array::from_iter_values(from..from + 150)) as ArrayRef;
        let rows = RecordBatch::try_from_iter([("a", column(0)), ("b", column(1000))]).unwrap();
        for format in formats() {
            let path = dir.path().join(format!("x.{}", format.extension()));
            assert!(is_readable(&path.to_string_lossy()));
            let mut writer = format.begin(File::create_new(&path).unwrap(), &rows.schema()).unwrap();
            writer.write(&rows).unwrap();
            drop(writer.finish().unwrap());
            assert_eq!(count(&path).unwrap(), 150, "{}", path.display());
            let read = match Contents::open(&path, &["b"]).unwrap() {
                Contents::Rows(batches) => {
                    let batches: Vec<RecordBatch> = batches.map(|rows| rows.unwrap()).collect();
                    assert!(
                        batches.iter().all(|rows| rows.num_columns() == 1 && rows.num_rows() <= ROWS_MAX)
                    );
                    batches.iter().map(RecordBatch::num_rows).sum::<usize>()
                }
                Contents::Blocks(mut blocks) => {
                    let mut all = 0;
                    while let Some((count, _)) = blocks.next_block().unwrap() {
                        all += count;
                    }
                    all
                }
                Contents::Lines(mut lines) => {
                    let first = lines.take(100).unwrap();
                    assert_eq!(first[7], br#"{"a":7,"b":1007}"#);
                    first.len() + lines.take(100).unwrap().len()
                }
            };
            assert_eq!(read, 150, "{}", path.display());
        }
        assert!(!is_readable("x.csv") && !is_readable("x.jsonl.staged"));
    }

    #[test]
    fn a_line_without_an_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, "{}\n{").unwrap();
        let Contents::Lines(mut lines) = Contents::open(&path, &[]).unwrap() else { panic!() };
        assert!(lines.take(2).is_err());
    }
}
