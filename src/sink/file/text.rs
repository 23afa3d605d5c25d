//! JSON Lines and CSV files: rows become text side by side on cores that are free.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::config::plan::TextCompression;
use crate::cores;
use crate::render::{JsonRows, Values};

use super::{Format, RowWriter};

/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 256 << 10;

/// `jsonl:` of a sink: one object per line.
#[derive(Debug, Default)]
pub struct JsonLinesFormat {
    pub compression: TextCompression,
}

/// `csv:` of a sink: a header line, RFC 4180 quoting, null as nothing.
#[derive(Debug, Default)]
pub struct CsvFormat {
    pub compression: TextCompression,
}

impl Format for JsonLinesFormat {
    fn extension(&self) -> &'static str {
        match self.compression {
            TextCompression::None => "jsonl",
            TextCompression::Gzip(_) => "jsonl.gz",
            TextCompression::Zstd(_) => "jsonl.zst",
        }
    }

    fn open_bytes(&self) -> usize {
        open_bytes(self.compression)
    }

    fn begin(&self, file: File, _: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        Ok(Box::new(TextWriter { text: Text::begin(file, self.compression)?, put: put_json }))
    }
}

impl Format for CsvFormat {
    fn extension(&self) -> &'static str {
        match self.compression {
            TextCompression::None => "csv",
            TextCompression::Gzip(_) => "csv.gz",
            TextCompression::Zstd(_) => "csv.zst",
        }
    }

    fn open_bytes(&self) -> usize {
        open_bytes(self.compression)
    }

    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        let mut writer = TextWriter { text: Text::begin(file, self.compression)?, put: put_csv };
        let mut header = Vec::new();
        for (index, field) in schema.fields().iter().enumerate() {
            put_cell(index, field.name().as_bytes(), false, &mut header);
        }
        header.extend_from_slice(b"\r\n");
        writer.text.write_all(&header)?;
        Ok(Box::new(writer))
    }
}

/// What an open file holds in memory: the buffer, and what its compression looks back on, rounded up. Of zstd it is the
/// window and the tables that its levels have.
fn open_bytes(compression: TextCompression) -> usize {
    BUFFER_BYTES
        + match compression {
            TextCompression::None => 0,
            TextCompression::Gzip(_) => 512 << 10,
            TextCompression::Zstd(..=2) => 2 << 20,
            TextCompression::Zstd(3..=4) => 5 << 20,
            TextCompression::Zstd(5..=8) => 10 << 20,
            TextCompression::Zstd(9..) => 18 << 20,
        }
}

/// The text of a file on its way there. One stream from the first byte to the last: not all readers go on behind the end
/// of a first one.
enum Text {
    Plain(Counted),
    Gzip(Box<GzEncoder<Counted>>),
    Zstd(Box<zstd::Encoder<'static, Counted>>),
}

/// A file, and the bytes that went to it.
struct Counted {
    file: BufWriter<File>,
    size: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Text {
    fn begin(file: File, compression: TextCompression) -> io::Result<Self> {
        let file = Counted { file: BufWriter::with_capacity(BUFFER_BYTES, file), size: 0 };
        Ok(match compression {
            TextCompression::None => Self::Plain(file),
            TextCompression::Gzip(level) => {
                Self::Gzip(Box::new(GzEncoder::new(file, Compression::new(level))))
            }
            TextCompression::Zstd(level) => {
                let mut encoder = zstd::Encoder::new(file, level)?;
                // gzip has one by itself.
                encoder.include_checksum(true)?;
                Self::Zstd(Box::new(encoder))
            }
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.write_all(bytes),
            Self::Gzip(encoder) => encoder.write_all(bytes),
            Self::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Plain(file) => file.size,
            Self::Gzip(encoder) => encoder.get_ref().size,
            Self::Zstd(encoder) => encoder.get_ref().size,
        }
    }

    fn finish(self) -> io::Result<File> {
        let counted = match self {
            Self::Plain(file) => file,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        counted.file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// The text of a file that was compressed as its name says.
///
/// # Errors
/// If there is nothing to decompress it with.
pub fn read(file: File, name: &str) -> io::Result<Box<dyn BufRead>> {
    Ok(if name.ends_with(".gz") {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file)))
    } else if name.ends_with(".zst") {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, zstd::Decoder::new(file)?))
    } else {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, file))
    })
}

struct TextWriter {
    text: Text,
    put: fn(&RecordBatch, &mut Vec<u8>) -> io::Result<()>,
}

impl RowWriter for TextWriter {
    fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
        let row_count = rows.num_rows();
        let cores = cores::lend(row_count / cores::ROWS_MIN);
        let size = row_count.div_ceil(cores.count()).max(1);
        let slices = (0..row_count).step_by(size).map(|at| rows.slice(at, size.min(row_count - at)));
        let put = self.put;
        let texts = cores.map(slices.collect(), |rows| {
            let mut bytes = Vec::new();
            put(&rows, &mut bytes).map(|()| bytes)
        });
        for text in texts {
            self.text.write_all(&text?)?;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.text.size()
    }

    fn finish(self: Box<Self>) -> io::Result<File> {
        self.text.finish()
    }
}

fn put_json(rows: &RecordBatch, out: &mut Vec<u8>) -> io::Result<()> {
    let rows = JsonRows::new(rows).map_err(io::Error::other)?;
    for row in 0..rows.row_count() {
        rows.write(row, out);
        out.push(b'\n');
    }
    Ok(())
}

fn put_csv(rows: &RecordBatch, out: &mut Vec<u8>) -> io::Result<()> {
    let columns = rows.columns().iter().map(Values::new).collect::<Result<Vec<_>, _>>();
    let columns = columns.map_err(io::Error::other)?;
    let mut cell = Vec::new();
    for row in 0..rows.num_rows() {
        for (index, values) in columns.iter().enumerate() {
            cell.clear();
            values.write_plain(row, &mut cell);
            put_cell(index, &cell, values.is_null(row), out);
        }
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

/// Quotes what needs it; an empty text is quoted, so that it differs from null.
fn put_cell(index: usize, cell: &[u8], is_null: bool, out: &mut Vec<u8>) {
    if index > 0 {
        out.push(b',');
    }
    let is_special = |byte: &u8| matches!(byte, b',' | b'"' | b'\r' | b'\n');
    if is_null || (!cell.is_empty() && !cell.iter().any(is_special)) {
        out.extend_from_slice(cell);
        return;
    }
    out.push(b'"');
    for byte in cell {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn written(format: &dyn Format) -> String {
        let schema: SchemaRef = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("a,b", DataType::Utf8, true),
        ]));
        let texts = StringArray::from(vec![Some("say \"hi\""), Some(""), None]);
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2, 3])), Arc::new(texts)];
        let rows = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let mut writer = format.begin(tempfile::tempfile().unwrap(), &schema).unwrap();
        writer.write(&rows).unwrap();
        let size = writer.size();
        let mut file = writer.finish().unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn json_lines() {
        assert_eq!(
            written(&JsonLinesFormat::default()),
            "{\"id\":1,\"a,b\":\"say \\\"hi\\\"\"}\n{\"id\":2,\"a,b\":\"\"}\n{\"id\":3,\"a,b\":null}\n"
        );
    }

    /// More rows than one core takes: the same text as row by row.
    #[test]
    fn rows_keep_their_order_on_several_cores() {
        let row_count = 3 * cores::ROWS_MIN + 1;
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..row_count as i64));
        let rows = RecordBatch::try_from_iter([("id", ids)]).unwrap();
        let mut writer =
            JsonLinesFormat::default().begin(tempfile::tempfile().unwrap(), &rows.schema()).unwrap();
        writer.write(&rows).unwrap();
        let mut file = writer.finish().unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let expected: String = (0..row_count).map(|id| format!("{{\"id\":{id}}}\n")).collect();
        assert!(text == expected);
    }

    #[test]
    fn csv_tells_empty_from_null() {
        assert_eq!(written(&CsvFormat::default()), "id,\"a,b\"\r\n1,\"say \"\"hi\"\"\"\r\n2,\"\"\r\n3,\r\n");
    }

    /// Random text, so that what is compressed does not fit into buffers.
    fn texts(row_count: usize) -> RecordBatch {
        let mut random = fastrand::Rng::with_seed(5);
        let texts = (0..row_count).map(|_| Some(random.u128(..).to_string()));
        let texts: ArrayRef = Arc::new(texts.collect::<StringArray>());
        RecordBatch::try_from_iter([("text", texts)]).unwrap()
    }

    fn bytes(format: &dyn Format, rows: &RecordBatch) -> Vec<u8> {
        let mut writer = format.begin(tempfile::tempfile().unwrap(), &rows.schema()).unwrap();
        for at in (0..rows.num_rows()).step_by(1000) {
            writer.write(&rows.slice(at, 1000.min(rows.num_rows() - at))).unwrap();
        }
        assert!(writer.size() > 0);
        let size = writer.size();
        let mut file = writer.finish().unwrap();
        assert!(file.metadata().unwrap().len() >= size);
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Read by decoders that stop at the end of the first stream.
    #[test]
    fn compressed_files_are_one_stream_with_the_same_text() {
        let rows = texts(30_000);
        for [compressed, plain] in
            [TextCompression::Gzip(6), TextCompression::Zstd(3), TextCompression::Zstd(9)]
                .map(|compression| [compression, TextCompression::None])
        {
            let formats: [[Box<dyn Format>; 2]; 2] = [
                [compressed, plain]
                    .map(|compression| Box::new(JsonLinesFormat { compression }) as Box<dyn Format>),
                [compressed, plain].map(|compression| Box::new(CsvFormat { compression }) as Box<dyn Format>),
            ];
            for [compressed, plain] in formats {
                let expected = bytes(plain.as_ref(), &rows);
                let packed = bytes(compressed.as_ref(), &rows);
                assert!(packed.len() * 10 < expected.len() * 9, "{compressed:?}");
                let mut text = Vec::new();
                if compressed.extension() == format!("{}.gz", plain.extension()) {
                    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut text).unwrap();
                } else {
                    assert_eq!(compressed.extension(), format!("{}.zst", plain.extension()));
                    let mut decoder = zstd::Decoder::new(packed.as_slice()).unwrap().single_frame();
                    decoder.read_to_end(&mut text).unwrap();
                }
                assert!(text == expected, "{compressed:?}");
                assert!(compressed.open_bytes() > plain.open_bytes());
            }
        }
    }
}
