//! Avro object container files: a header with the schema, then blocks of rows, compressed one by one.
//!
//! The format: <https://avro.apache.org/docs/1.12.0/specification/#object-container-files>. Rows become blocks side by side
//! on cores that are free.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, StructArray, new_empty_array};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use uuid::Uuid;

use crate::config::plan::{AvroCodec, SchemaFormat};
use crate::cores;
use crate::encode::{Unfit, Writer, schema_text};

use super::{Format, RowWriter};

/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 256 << 10;

/// Bytes of a block before it is compressed. Readers hold a block at a time, and some spread work by blocks; this is what
/// Avro's own writers end them at.
const BLOCK_BYTES: usize = 64_000;

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// zlib's own default.
const DEFLATE_LEVEL: u8 = 6;

/// `avro:` of a sink.
#[derive(Debug)]
pub struct AvroFormat {
    pub codec: AvroCodec,
    /// In full.
    pub record_name: String,
}

impl AvroFormat {
    /// The schema of a file as text, and what writes its rows.
    ///
    /// # Errors
    /// [`Unfit`], naming the column that has no form in Avro.
    pub fn writer(schema: &SchemaRef, record_name: &str) -> Result<(String, Writer), Unfit> {
        let data_type = DataType::Struct(schema.fields().clone());
        let text = schema_text(SchemaFormat::Avro, &data_type, record_name, None)?;
        let writer = Writer::derived(SchemaFormat::Avro, &text, record_name)?;
        writer.bind(&new_empty_array(&data_type))?;
        Ok((text, writer))
    }
}

impl Format for AvroFormat {
    fn extension(&self) -> &'static str {
        "avro"
    }

    fn open_bytes(&self) -> usize {
        BUFFER_BYTES
    }

    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        let (text, writer) = Self::writer(schema, &self.record_name).map_err(io::Error::other)?;
        let sync = Uuid::new_v4().into_bytes();
        let mut begun = AvroWriter {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            size: 0,
            blocks: Blocks { writer, codec: self.codec, sync },
        };
        begun.append(&header(&text, self.codec, sync))?;
        Ok(Box::new(begun))
    }
}

/// The magic bytes, a map of two entries, and the marker that ends each block.
fn header(schema: &str, codec: AvroCodec, sync: [u8; 16]) -> Vec<u8> {
    let codec = match codec {
        AvroCodec::None => "null",
        AvroCodec::Deflate => "deflate",
        AvroCodec::Snappy => "snappy",
        AvroCodec::Zstd => "zstandard",
    };
    let mut header = MAGIC.to_vec();
    put_long(2, &mut header);
    for (key, value) in [("avro.schema", schema), ("avro.codec", codec)] {
        for text in [key, value] {
            put_long(text.len(), &mut header);
            header.extend_from_slice(text.as_bytes());
        }
    }
    put_long(0, &mut header);
    header.extend_from_slice(&sync);
    header
}

/// What a file of ours begins with.
const MAGIC: &[u8; 4] = b"Obj\x01";

/// Bytes of a block, and of an entry of the header: what Arrow's offsets reach holds the largest row.
const LENGTH_MAX: u64 = i32::MAX as u64;

/// Reads a file of ours, block by block.
pub struct AvroBlocks {
    file: BufReader<File>,
    schema: String,
    codec: AvroCodec,
    sync: [u8; 16],
}

impl AvroBlocks {
    /// # Errors
    /// If the header is not one of ours, or the file cannot be read.
    pub fn open(file: File) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut magic = [0; 4];
        file.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(damaged("it is no Avro file"));
        }
        let (mut schema, mut codec) = (None, "null".to_owned());
        loop {
            let count = take_long(&mut file)?;
            if count == 0 {
                break;
            }
            if count < 0 {
                take_long(&mut file)?;
            }
            for _ in 0..count.unsigned_abs() {
                let (key, value) = (take_text(&mut file)?, take_text(&mut file)?);
                match key.as_str() {
                    "avro.schema" => schema = Some(value),
                    "avro.codec" => codec = value,
                    _ => {}
                }
            }
        }
        let codec = match codec.as_str() {
            "null" => AvroCodec::None,
            "deflate" => AvroCodec::Deflate,
            "snappy" => AvroCodec::Snappy,
            "zstandard" => AvroCodec::Zstd,
            _ => return Err(damaged("its codec is not one of ours")),
        };
        let mut sync = [0; 16];
        file.read_exact(&mut sync)?;
        let schema = schema.ok_or_else(|| damaged("it has no schema"))?;
        Ok(Self { file, schema, codec, sync })
    }

    /// The schema of its records, as text.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The next block: how many records it has, and their bytes; `None` at the end.
    ///
    /// # Errors
    /// If it is not whole, or the file cannot be read.
    pub fn next_block(&mut self) -> io::Result<Option<(usize, Vec<u8>)>> {
        let Some((count, bytes)) = self.compressed()? else {
            return Ok(None);
        };
        let bytes = match self.codec {
            AvroCodec::None => bytes,
            AvroCodec::Deflate => {
                let whole = miniz_oxide::inflate::decompress_to_vec_with_limit(&bytes, LENGTH_MAX as usize);
                whole.map_err(|_| damaged("a block cannot be decompressed"))?
            }
            AvroCodec::Snappy => {
                // Behind the bytes is their checksum.
                let (bytes, sum) =
                    bytes.split_last_chunk::<4>().ok_or_else(|| damaged("a block cannot be decompressed"))?;
                let whole = snap::raw::Decoder::new().decompress_vec(bytes).map_err(io::Error::other)?;
                if crc32fast::hash(&whole).to_be_bytes() != *sum {
                    return Err(damaged("a block does not have its checksum"));
                }
                whole
            }
            AvroCodec::Zstd => {
                let mut whole = Vec::new();
                zstd::Decoder::new(bytes.as_slice())?.take(LENGTH_MAX).read_to_end(&mut whole)?;
                whole
            }
        };
        Ok(Some((count, bytes)))
    }

    /// How many records are left.
    ///
    /// # Errors
    /// As [`AvroBlocks::next_block`].
    pub fn count(mut self) -> io::Result<u64> {
        let mut all = 0;
        while let Some((count, _)) = self.compressed()? {
            all += count as u64;
        }
        Ok(all)
    }

    fn compressed(&mut self) -> io::Result<Option<(usize, Vec<u8>)>> {
        if self.file.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let count = usize::try_from(take_long(&mut self.file)?);
        let count = count.map_err(|_| damaged("a block has no number of records"))?;
        let bytes = take_bytes(&mut self.file)?;
        let mut sync = [0; 16];
        self.file.read_exact(&mut sync)?;
        if sync != self.sync {
            return Err(damaged("a block does not end where it should"));
        }
        Ok(Some((count, bytes)))
    }
}

fn damaged(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// Avro's number: seven bits in each byte, the lowest first, the sign in the lowest of all.
fn take_long(file: &mut impl Read) -> io::Result<i64> {
    let mut packed: u64 = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        file.read_exact(&mut byte)?;
        packed |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok((packed >> 1) as i64 ^ -((packed & 1) as i64));
        }
    }
    Err(damaged("a number is too long"))
}

fn take_bytes(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = u64::try_from(take_long(file)?).ok().filter(|length| *length <= LENGTH_MAX);
    let length = length.ok_or_else(|| damaged("a length is out of bounds"))?;
    // What is not there is not allocated for.
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(damaged("it ends in the middle of something")) }
}

fn take_text(file: &mut impl Read) -> io::Result<String> {
    String::from_utf8(take_bytes(file)?).map_err(|_| damaged("a text is not UTF-8"))
}

/// A count or a length: Avro's number, which is never below zero here.
fn put_long(number: usize, out: &mut Vec<u8>) {
    let mut rest = (number as u64) << 1;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

struct AvroWriter {
    file: BufWriter<File>,
    size: u64,
    blocks: Blocks,
}

/// What makes blocks of rows.
struct Blocks {
    writer: Writer,
    codec: AvroCodec,
    sync: [u8; 16],
}

impl Blocks {
    /// Blocks of all rows, one after the other.
    fn of(&self, rows: &RecordBatch) -> io::Result<Vec<u8>> {
        let values: ArrayRef = Arc::new(StructArray::from(rows.clone()));
        let bound = self.writer.bind(&values).map_err(io::Error::other)?;
        let mut blocks = Vec::new();
        let mut block = Vec::new();
        let mut count = 0;
        for row in 0..rows.num_rows() {
            let written = bound.write(row, &mut block);
            written.map_err(|misfit| io::Error::new(io::ErrorKind::InvalidData, misfit))?;
            count += 1;
            if block.len() >= BLOCK_BYTES {
                self.end(count, &block, &mut blocks)?;
                block.clear();
                count = 0;
            }
        }
        if count > 0 {
            self.end(count, &block, &mut blocks)?;
        }
        Ok(blocks)
    }

    fn end(&self, count: usize, block: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        put_long(count, out);
        let compressed = match self.codec {
            AvroCodec::None => None,
            AvroCodec::Deflate => Some(miniz_oxide::deflate::compress_to_vec(block, DEFLATE_LEVEL)),
            AvroCodec::Snappy => {
                let mut bytes = snap::raw::Encoder::new().compress_vec(block).map_err(io::Error::other)?;
                bytes.extend_from_slice(&crc32fast::hash(block).to_be_bytes());
                Some(bytes)
            }
            AvroCodec::Zstd => Some(zstd::bulk::compress(block, ZSTD_LEVEL)?),
        };
        let bytes = compressed.as_deref().unwrap_or(block);
        put_long(bytes.len(), out);
        out.extend_from_slice(bytes);
        out.extend_from_slice(&self.sync);
        Ok(())
    }
}

impl AvroWriter {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

impl RowWriter for AvroWriter {
    fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
        let row_count = rows.num_rows();
        let cores = cores::lend(row_count / cores::ROWS_MIN);
        let size = row_count.div_ceil(cores.count()).max(1);
        let slices = (0..row_count).step_by(size).map(|at| rows.slice(at, size.min(row_count - at)));
        let blocks = &self.blocks;
        let parts = cores.map(slices.collect(), |rows| blocks.of(&rows));
        drop(cores);
        for part in parts {
            self.append(&part?)?;
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use apache_avro::types::Value;
    use arrow::array::{Decimal128Array, Float64Array, Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;
    use crate::encode::Misfit;

    fn rows(count: i64) -> RecordBatch {
        let names = (0..count).map(|id| (id % 3 > 0).then(|| format!("name {id}")));
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
        ]);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from_iter_values(0..count)), Arc::new(names.collect::<StringArray>())];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    /// The file that becomes of batches.
    fn written(codec: AvroCodec, batches: &[RecordBatch]) -> Vec<u8> {
        let format = AvroFormat { codec, record_name: "shop.Row".to_owned() };
        let mut writer = format.begin(tempfile::tempfile().unwrap(), &batches[0].schema()).unwrap();
        for rows in batches {
            writer.write(rows).unwrap();
        }
        let size = writer.size();
        let mut file = writer.finish().unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn expected(count: i64) -> Vec<Value> {
        (0..count)
            .map(|id| {
                let name = if id % 3 > 0 {
                    Value::Union(1, Box::new(Value::String(format!("name {id}"))))
                } else {
                    Value::Union(0, Box::new(Value::Null))
                };
                Value::Record(vec![("id".to_owned(), Value::Long(id)), ("name".to_owned(), name)])
            })
            .collect()
    }

    #[test]
    fn files_of_all_codecs_are_read_by_avros_own_reader() {
        // More rows than one core takes, and more than a block.
        let count = 3 * cores::ROWS_MIN as i64 + 1;
        for codec in [AvroCodec::None, AvroCodec::Deflate, AvroCodec::Snappy, AvroCodec::Zstd] {
            let bytes = written(codec, &[rows(count), rows(5), rows(0)]);
            let reader = apache_avro::Reader::new(bytes.as_slice()).unwrap();
            let read: Vec<Value> = reader.map(|value| value.unwrap()).collect();
            assert_eq!(read, [expected(count), expected(5)].concat(), "{codec:?}");
        }
    }

    #[test]
    fn files_are_read_into_the_columns_they_were() {
        let rows = rows(1000);
        for codec in [AvroCodec::None, AvroCodec::Deflate, AvroCodec::Snappy, AvroCodec::Zstd] {
            let bytes = written(codec, std::slice::from_ref(&rows));
            let reader = arrow_avro::reader::ReaderBuilder::new().build(io::Cursor::new(bytes)).unwrap();
            let batches: Vec<RecordBatch> = reader.map(|batch| batch.unwrap()).collect();
            let read = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
            assert_eq!(read.num_rows(), rows.num_rows());
            for (read, own) in read.columns().iter().zip(rows.columns()) {
                assert_eq!(read, own, "{codec:?}");
            }
        }
    }

    #[test]
    fn blocks_are_read_back_and_damage_is_told() {
        let count = 3 * cores::ROWS_MIN as i64 + 1;
        let open = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file.rewind().unwrap();
            AvroBlocks::open(file)
        };
        for codec in [AvroCodec::None, AvroCodec::Deflate, AvroCodec::Snappy, AvroCodec::Zstd] {
            let bytes = written(codec, &[rows(count), rows(5)]);
            let plain = written(AvroCodec::None, &[rows(count), rows(5)]);
            let blocks = |bytes: &[u8]| {
                let mut blocks = open(bytes).unwrap();
                let mut all = (0, Vec::new());
                while let Some((count, bytes)) = blocks.next_block().unwrap() {
                    all.0 += count;
                    all.1.extend(bytes);
                }
                all
            };
            assert!(blocks(&bytes) == blocks(&plain), "{codec:?}");
            let opened = open(&bytes).unwrap();
            assert!(opened.schema().contains("shop"), "{}", opened.schema());
            assert_eq!(opened.count().unwrap(), count as u64 + 5);
            let cut = open(&bytes[..bytes.len() - 20]).unwrap();
            assert!(cut.count().is_err());
            let mut other = bytes.clone();
            let last = other.len() - 1;
            other[last] ^= 1;
            assert!(open(&other).unwrap().count().is_err());
        }
        assert!(open(b"Obj\x02").is_err());
        assert!(open(b"Obj\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn a_file_without_rows_is_a_file() {
        let bytes = written(AvroCodec::Snappy, &[rows(0)]);
        let reader = apache_avro::Reader::new(bytes.as_slice()).unwrap();
        assert_eq!(reader.count(), 0);
    }

    #[test]
    fn a_row_that_does_not_fit_is_refused_as_one() {
        // Arrow lets a column hold more digits than its type says.
        let numbers = Decimal128Array::from(vec![1, 1_000]).with_precision_and_scale(3, 0).unwrap();
        let rows = RecordBatch::try_from_iter([("n", Arc::new(numbers) as ArrayRef)]).unwrap();
        let format = AvroFormat { codec: AvroCodec::None, record_name: "R".to_owned() };
        let mut writer = format.begin(tempfile::tempfile().unwrap(), &rows.schema()).unwrap();
        writer.write(&rows.slice(0, 1)).unwrap();
        let error = writer.write(&rows).unwrap_err();
        assert!(error.get_ref().unwrap().is::<Misfit>(), "{error:?}");
        assert_eq!(error.to_string(), "column `n` has more digits than its schema");
    }

    #[test]
    fn columns_without_a_form_are_named() {
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.5]));
        let rows = RecordBatch::try_from_iter([("a-b", floats)]).unwrap();
        let unfit = AvroFormat::writer(&rows.schema(), "R").unwrap_err().to_string();
        assert!(unfit.starts_with("column `a-b` has a name that this format does not take"), "{unfit}");
    }
}
