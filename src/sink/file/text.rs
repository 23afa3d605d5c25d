//! JSON Lines and CSV files: rows become text side by side on cores that are free.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use crate::cores;
use crate::render::{JsonRows, Values};

use super::{Format, RowWriter};

/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 256 << 10;

/// `jsonl:` of a sink: one object per line.
#[derive(Debug)]
pub struct JsonLinesFormat;

/// `csv:` of a sink: a header line, RFC 4180 quoting, null as nothing.
#[derive(Debug)]
pub struct CsvFormat;

impl Format for JsonLinesFormat {
    fn extension(&self) -> &'static str {
        "jsonl"
    }

    fn begin(&self, file: File, _: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        Ok(Box::new(TextWriter {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            size: 0,
            put: put_json,
        }))
    }
}

impl Format for CsvFormat {
    fn extension(&self) -> &'static str {
        "csv"
    }

    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let mut writer = TextWriter { file, size: 0, put: put_csv };
        let mut header = Vec::new();
        for (index, field) in schema.fields().iter().enumerate() {
            put_cell(index, field.name().as_bytes(), false, &mut header);
        }
        header.extend_from_slice(b"\r\n");
        writer.append(&header)?;
        Ok(Box::new(writer))
    }
}

struct TextWriter {
    file: BufWriter<File>,
    size: u64,
    put: fn(&RecordBatch, &mut Vec<u8>) -> io::Result<()>,
}

impl TextWriter {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        self.file.write_all(bytes)
    }
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
            self.append(&text?)?;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn finish(self: Box<Self>) -> io::Result<File> {
        self.file.into_inner().map_err(io::IntoInnerError::into_error)
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
            written(&JsonLinesFormat),
            "{\"id\":1,\"a,b\":\"say \\\"hi\\\"\"}\n{\"id\":2,\"a,b\":\"\"}\n{\"id\":3,\"a,b\":null}\n"
        );
    }

    /// More rows than one core takes: the same text as row by row.
    #[test]
    fn rows_keep_their_order_on_several_cores() {
        let row_count = 3 * cores::ROWS_MIN + 1;
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..row_count as i64));
        let rows = RecordBatch::try_from_iter([("id", ids)]).unwrap();
        let mut writer = JsonLinesFormat.begin(tempfile::tempfile().unwrap(), &rows.schema()).unwrap();
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
        assert_eq!(written(&CsvFormat), "id,\"a,b\"\r\n1,\"say \"\"hi\"\"\"\r\n2,\"\"\r\n3,\r\n");
    }
}
