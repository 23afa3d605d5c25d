//! Reads a sink's files as any reader would: everything in sight that has the extension, without a look at the log.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use arrow::array::{
    Array, BinaryArray, Float64Array, Int32Array, Int64Array, ListArray, StringArray, StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::model::{Fields, Form, sha};
use crate::routes::{Feed, SinkPlace};
use crate::topics::{SEQ, UUID};

/// A row, as far as it can be compared with a record.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Partition and offset, if the row has them.
    pub place: Option<(i32, i64)>,
    pub seq: Option<u64>,
    pub uuid: Option<String>,
    pub key: Option<String>,
    /// Of the bytes of the value, if the row has it; of no bytes where it is null.
    pub sha: Option<String>,
    /// Is the value null? `None`: the row has fields of its own instead.
    pub is_null: Option<bool>,
    /// What in the row does not belong together.
    pub fault: Option<String>,
}

/// A file in sight.
#[derive(Debug, Clone)]
pub struct DataFile {
    /// Below the sink's directory, with `/`.
    pub path: String,
    pub rows: Vec<Row>,
}

/// All files of a sink that are in sight. None if there is no directory.
pub fn data_files(root: &Path, sink: &SinkPlace) -> Result<Vec<DataFile>, String> {
    let mut paths = Vec::new();
    let suffix = format!(".{}", sink.feed.extension());
    find(root, "", &suffix, &mut paths)?;
    paths.sort();
    let read = |path: String| -> Result<DataFile, String> {
        let file = root.join(&path);
        let rows = match sink.feed {
            Feed::Archive => parquet_rows(&file, sink.form),
            Feed::Lines | Feed::Letters => json_rows(&file, sink),
        };
        let rows = rows.map_err(|e| format!("cannot read {}: {e}", file.display()))?;
        Ok(DataFile { path, rows })
    };
    paths.into_iter().map(read).collect()
}

/// Names that begin with `_` or `.` are out of sight, as they are for Spark and Hive.
fn find(root: &Path, below: &str, suffix: &str, found: &mut Vec<String>) -> Result<(), String> {
    let dir = root.join(below);
    let cannot = |e: std::io::Error| format!("cannot list {}: {e}", dir.display());
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(cannot(e)),
    };
    for entry in entries {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(['_', '.']) {
            continue;
        }
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.path().is_dir() {
            find(root, &path, suffix, found)?;
        } else if path.ends_with(suffix) {
            found.push(path);
        }
    }
    Ok(())
}

fn parquet_rows(path: &Path, form: Form) -> Result<Vec<Row>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
    let mut rows = Vec::new();
    for batch in reader.map_err(|e| e.to_string())? {
        let batch = batch.map_err(|e| e.to_string())?;
        if form.is_typed() {
            typed_rows(&batch, &mut rows)?;
        } else {
            whole_rows(&batch, form, &mut rows)?;
        }
    }
    Ok(rows)
}

/// A column as an array of `T`, whose data type is `kind`. `None`: there is no such column.
fn column<T: Array + Clone + 'static>(
    batch: &RecordBatch,
    name: &str,
    kind: &DataType,
) -> Result<Option<T>, String> {
    let Some(found) = batch.column_by_name(name) else {
        return Ok(None);
    };
    let cast = cast(found, kind).map_err(|e| format!("column `{name}`: {e}"))?;
    match cast.as_any().downcast_ref::<T>() {
        Some(array) => Ok(Some(array.clone())),
        None => Err(format!("column `{name}` is {}", found.data_type())),
    }
}

fn list(batch: &RecordBatch, name: &str) -> Result<Option<ListArray>, String> {
    let Some(found) = batch.column_by_name(name) else {
        return Ok(None);
    };
    let list = found.as_any().downcast_ref::<ListArray>().cloned();
    list.map(Some).ok_or_else(|| format!("column `{name}` is {}", found.data_type()))
}

fn text(array: &Option<StringArray>, row: usize) -> Option<String> {
    array.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row).to_owned())
}

fn bytes(array: &Option<BinaryArray>, row: usize) -> Option<Vec<u8>> {
    array.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row).to_vec())
}

fn whole(array: &Option<Int64Array>, row: usize) -> Option<i64> {
    array.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row))
}

/// Rows that have a column for each field.
fn typed_rows(batch: &RecordBatch, rows: &mut Vec<Row>) -> Result<(), String> {
    let seq = column::<Int64Array>(batch, "seq", &DataType::Int64)?;
    let uuid = column::<StringArray>(batch, "uuid", &DataType::Utf8)?;
    let found_sha = column::<StringArray>(batch, "sha", &DataType::Utf8)?;
    let payload = column::<BinaryArray>(batch, "payload", &DataType::Binary)?;
    let ratio = column::<Float64Array>(batch, "ratio", &DataType::Float64)?;
    let note = column::<StringArray>(batch, "note", &DataType::Utf8)?;
    let level = column::<Int32Array>(batch, "level", &DataType::Int32)?;
    let tags = list(batch, "tags")?;
    for row in 0..batch.num_rows() {
        let fields = Fields {
            seq: whole(&seq, row).and_then(|seq| u64::try_from(seq).ok()),
            uuid: text(&uuid, row),
            sha: text(&found_sha, row),
            payload: bytes(&payload, row),
            ratio: ratio.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row)),
            tags: match &tags {
                Some(tags) if tags.is_valid(row) => Some(texts(&tags.value(row))?),
                _ => None,
            },
            note: note.is_some().then(|| text(&note, row)),
            level: level.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row)),
            is_whole: true,
        };
        rows.push(of_fields(fields, None));
    }
    Ok(())
}

fn of_fields(fields: Fields, place: Option<(i32, i64)>) -> Row {
    let fault = fields.fault();
    Row { place, seq: fields.seq, uuid: fields.uuid, fault, ..Row::default() }
}

fn texts(items: &dyn Array) -> Result<Vec<String>, String> {
    let items = cast(items, &DataType::Utf8).map_err(|e| e.to_string())?;
    let items = items.as_any().downcast_ref::<StringArray>().ok_or("items are no text")?;
    Ok(items.iter().flatten().map(str::to_owned).collect())
}

/// Rows that have the value as it came, and the record's coordinates and headers.
fn whole_rows(batch: &RecordBatch, form: Form, rows: &mut Vec<Row>) -> Result<(), String> {
    let partition = column::<Int64Array>(batch, "_partition", &DataType::Int64)?;
    let offset = column::<Int64Array>(batch, "_offset", &DataType::Int64)?;
    let value = column::<BinaryArray>(batch, "value", &DataType::Binary)?;
    let key = match form {
        Form::Compact => column::<StringArray>(batch, "_key", &DataType::Utf8)?,
        _ => None,
    };
    let headers = list(batch, "_headers")?.ok_or("there is no column `_headers`")?;
    for row in 0..batch.num_rows() {
        let value = bytes(&value, row);
        let headers = struct_headers(&headers.value(row))?;
        rows.push(Row {
            place: place(whole(&partition, row), whole(&offset, row)),
            key: text(&key, row),
            ..of_value(value.as_deref(), &headers)
        });
    }
    Ok(())
}

fn place(partition: Option<i64>, offset: Option<i64>) -> Option<(i32, i64)> {
    Some((i32::try_from(partition?).ok()?, offset?))
}

/// Names and values.
type HeaderList = Vec<(String, Vec<u8>)>;

fn struct_headers(items: &dyn Array) -> Result<HeaderList, String> {
    let items = items.as_any().downcast_ref::<StructArray>().ok_or("headers are no structs")?;
    let part = |name: &str, kind: &DataType| {
        let part = items.column_by_name(name).ok_or_else(|| format!("headers have no `{name}`"))?;
        cast(part, kind).map_err(|e| format!("headers: {e}"))
    };
    let (keys, values) = (part("key", &DataType::Utf8)?, part("value", &DataType::Binary)?);
    let keys = keys.as_any().downcast_ref::<StringArray>().ok_or("header keys are no text")?;
    let values = values.as_any().downcast_ref::<BinaryArray>().ok_or("header values are no bytes")?;
    let all = (0..items.len()).map(|row| (keys.value(row).to_owned(), values.value(row).to_vec()));
    Ok(all.collect())
}

fn of_value(value: Option<&[u8]>, headers: &[(String, Vec<u8>)]) -> Row {
    let header = |name: &str| {
        let (_, value) = headers.iter().find(|(key, _)| key == name)?;
        String::from_utf8(value.clone()).ok()
    };
    Row {
        seq: header(SEQ).and_then(|seq| seq.parse().ok()),
        uuid: header(UUID),
        sha: Some(sha(value.unwrap_or_default())),
        is_null: Some(value.is_none()),
        ..Row::default()
    }
}

fn json_rows(path: &Path, sink: &SinkPlace) -> Result<Vec<Row>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut rows = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let row = line.map_err(|e| e.to_string()).and_then(|line| {
            let value: Value = serde_json::from_str(&line).map_err(|e| e.to_string())?;
            json_row(&value, sink)
        });
        rows.push(row.map_err(|e| format!("line {}: {e}", index + 1))?);
    }
    Ok(rows)
}

fn json_row(row: &Value, sink: &SinkPlace) -> Result<Row, String> {
    if sink.feed == Feed::Letters {
        return letter(row, &sink.topic);
    }
    let found = place(row["_partition"].as_i64(), row["_offset"].as_i64());
    let owned = |name: &str| row[name].as_str().map(str::to_owned);
    if sink.form.is_typed() {
        let (seq, uuid, sha) = (row["seq"].as_u64(), owned("uuid"), owned("sha"));
        return Ok(of_fields(Fields { seq, uuid, sha, ..Fields::default() }, found));
    }
    let value = match sink.form {
        Form::Raw => base64(&row["value"])?,
        _ => owned("value").map(String::into_bytes),
    };
    let headers = json_headers(&row["_headers"])?;
    Ok(Row { place: found, key: owned("_key"), ..of_value(value.as_deref(), &headers) })
}

/// A dead letter.
fn letter(row: &Value, topic: &str) -> Result<Row, String> {
    let headers = json_headers(&row["headers"])?;
    let value = base64(&row["value"])?;
    let source = row["source_topic"].as_str().unwrap_or_default();
    Ok(Row {
        place: place(row["source_partition"].as_i64(), row["source_offset"].as_i64()),
        fault: (source != topic).then(|| format!("it names topic `{source}`")),
        ..of_value(value.as_deref(), &headers)
    })
}

/// Bytes in JSON; `None` for null.
fn base64(value: &Value) -> Result<Option<Vec<u8>>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => STANDARD.decode(text).map(Some).map_err(|e| format!("bytes: {e}")),
        other => Err(format!("bytes are no text: {other}")),
    }
}

/// None where there is no such column.
fn json_headers(list: &Value) -> Result<HeaderList, String> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let header = |item: &Value| -> Result<(String, Vec<u8>), String> {
        let key = item["key"].as_str().unwrap_or_default().to_owned();
        Ok((key, base64(&item["value"])?.unwrap_or_default()))
    };
    items.iter().map(header).collect()
}
