//! Dead letters: bad records as rows, byte for byte, with what was wrong.
//!
//! The headers are the record's own, followed by Kafka Connect's `__connect.errors.*`, from which
//! [`originals`] makes the record again. A header name that is not UTF-8 is the one thing that is not kept as it was:
//! clients cannot write it.

mod stored;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, ListBuilder, StringArray, StringBuilder, StructBuilder,
    UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::model::{
    Chunk, ChunkBuilder, Incoming, Offset, Original, Partition, RecordRef, SchemaKey, TimestampType,
    TopicName, TopicPartition, code,
};

use super::Rejected;
use super::meta::header_fields;

pub use stored::{AvroLetters, STORED, StoredError, StoredLetters, from_json};

/// Of the headers that are added, the first of which is [`TOPIC`].
const PREFIX: &str = "__connect.errors.";
const TOPIC: &str = "topic";
const PARTITION: &str = "partition";
const OFFSET: &str = "offset";
/// Ours; Kafka Connect has none.
const TIMESTAMP: &str = "timestamp";
const ROUTE: &str = "connector.name";

/// All that are added, in their order.
const ADDED: [&str; 8] =
    [TOPIC, PARTITION, OFFSET, TIMESTAMP, ROUTE, "stage", "exception.class.name", "exception.message"];

/// The columns of dead letters. `key`, `value`, `headers` are what a Kafka sink writes.
pub fn schema() -> SchemaRef {
    let header = Field::new("item", DataType::Struct(header_fields()), false);
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Binary, true),
        Field::new("value", DataType::Binary, true),
        Field::new("headers", DataType::List(Arc::new(header)), false),
        Field::new("route", DataType::Utf8, false),
        Field::new("source_topic", DataType::Utf8, false),
        Field::new("source_partition", DataType::Int32, false),
        Field::new("source_offset", DataType::Int64, false),
        Field::new("source_timestamp_ms", DataType::Int64, false),
        Field::new("schema_id", DataType::UInt32, true),
        Field::new("code", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, false),
    ]))
}

/// The rows of `letters`.
///
/// # Errors
/// Only for defects of ours.
pub fn build(route: &str, letters: &[(RecordRef<'_>, &Rejected)]) -> Result<RecordBatch, ArrowError> {
    let (mut keys, mut values) = (BinaryBuilder::new(), BinaryBuilder::new());
    for (record, _) in letters {
        keys.append_option(record.key());
        values.append_option(record.value());
    }
    let records = || letters.iter().map(|(record, _)| record);
    let reasons = || letters.iter().map(|(_, rejected)| rejected);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(keys.finish()),
        Arc::new(values.finish()),
        headers(route, letters),
        Arc::new(StringArray::from_iter_values(letters.iter().map(|_| route))),
        Arc::new(StringArray::from_iter_values(records().map(|record| record.first_source().topic.as_str()))),
        Arc::new(Int32Array::from_iter_values(records().map(|record| record.first_source().partition.0))),
        Arc::new(Int64Array::from_iter_values(records().map(RecordRef::first_offset))),
        Arc::new(Int64Array::from_iter_values(records().map(RecordRef::timestamp_ms))),
        Arc::new(UInt32Array::from_iter(
            reasons().map(|reason| reason.schema_id.and_then(SchemaKey::id).map(|id| id.0)),
        )),
        Arc::new(StringArray::from_iter_values(reasons().map(|reason| reason.code))),
        Arc::new(StringArray::from_iter_values(reasons().map(|reason| reason.message.as_str()))),
    ];
    RecordBatch::try_new(schema(), columns)
}

fn headers(route: &str, letters: &[(RecordRef<'_>, &Rejected)]) -> ArrayRef {
    let item = Field::new("item", DataType::Struct(header_fields()), false);
    let mut lists = ListBuilder::new(StructBuilder::from_fields(header_fields(), 0)).with_field(item);
    let names = ADDED.map(|name| format!("{PREFIX}{name}"));
    for (record, rejected) in letters {
        for (name, value) in record.headers() {
            put(lists.values(), &String::from_utf8_lossy(name), value);
        }
        let source = record.first_source();
        let values: [&str; 8] = [
            source.topic.as_str(),
            &source.partition.to_string(),
            &record.first_offset().to_string(),
            &record.timestamp_ms().to_string(),
            route,
            stage(rejected.code),
            rejected.code,
            &rejected.message,
        ];
        for (name, value) in names.iter().zip(values) {
            put(lists.values(), name, Some(value.as_bytes()));
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}

/// What was done with the record when it failed, in Kafka Connect's words.
fn stage(code: &str) -> &'static str {
    match code {
        code::SQL_EVALUATION => "TRANSFORMATION",
        code::SINK_REFUSAL => "TASK_PUT",
        _ => "VALUE_CONVERTER",
    }
}

/// The records that those of a dead-letter topic were before `route` set them aside; and how many of the chunk are not
/// letters of the route, which are left out.
pub fn originals(letters: Chunk, route: &str) -> (Chunk, usize) {
    let mut builder = ChunkBuilder::new(letters.source.clone(), letters.assignment, letters.start);
    let mut others = 0;
    for letter in letters.records() {
        let Some((own, original, timestamp_ms)) = original(&letter, route) else {
            others += 1;
            continue;
        };
        let incoming = Incoming {
            offset: Offset::new(letter.offset()).unwrap_or_default(),
            timestamp_ms,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: letter.key(),
            value: letter.value(),
        };
        builder.push_original(incoming, letter.headers().take(own), original);
    }
    let end = letters.end;
    (builder.finish(end).in_place_of(letters), others)
}

/// How many headers are the record's own, where it was, and its timestamp.
fn original(letter: &RecordRef<'_>, route: &str) -> Option<(usize, Original, i64)> {
    // From the last `…topic` on they are of the letter: a record may have been a dead letter of Kafka Connect before.
    let first = format!("{PREFIX}{TOPIC}");
    let (mut own, mut count) = (None, 0);
    for (number, (name, _)) in letter.headers().enumerate() {
        if name == first.as_bytes() {
            own = Some(number);
        }
        count = number + 1;
    }
    let own = own?;
    let mut added: Vec<(&str, &str)> = Vec::with_capacity(count - own);
    for (name, value) in letter.headers().skip(own) {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        if let (Some(name), Some(value)) = (text(name), value.and_then(text)) {
            added.push((name.strip_prefix(PREFIX)?, value));
        }
    }
    let find = |name: &str| added.iter().find(|(added, _)| *added == name).map(|(_, value)| *value);
    if find(ROUTE)? != route {
        return None;
    }
    let partition = Partition(find(PARTITION)?.parse().ok()?);
    let source = TopicPartition::new(&TopicName::new(find(TOPIC)?), partition);
    let offset = find(OFFSET)?.parse().ok()?;
    // Letters of earlier versions do not say.
    let timestamp_ms = match find(TIMESTAMP) {
        Some(text) => text.parse().ok()?,
        None => letter.timestamp_ms(),
    };
    Some((own, Original { source, offset }, timestamp_ms))
}

fn put(entries: &mut StructBuilder, name: &str, value: Option<&[u8]>) {
    if let Some(names) = entries.field_builder::<StringBuilder>(0) {
        names.append_value(name);
    }
    if let Some(values) = entries.field_builder::<BinaryBuilder>(1) {
        values.append_option(value);
    }
    entries.append(true);
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};

    use super::*;

    fn chunk(headers: &[(&str, &str)]) -> Chunk {
        let source = TopicPartition::new(&TopicName::new("letters"), Partition(0));
        let mut builder = ChunkBuilder::new(source, 3, Offset::ZERO);
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        let incoming = Incoming {
            offset: Offset::new(7).unwrap(),
            timestamp_ms: 99,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: Some(b"k"),
            value: None,
        };
        builder.push(incoming, headers);
        builder.finish(Offset::new(9).unwrap())
    }

    /// The headers of the letter that a record becomes.
    fn letter(record: RecordRef<'_>) -> Vec<(String, String)> {
        let rejected =
            Rejected { index: 0, code: "framing", message: "no magic".to_owned(), schema_id: None };
        let rows = build("orders", &[(record, &rejected)]).unwrap();
        let headers = rows.column_by_name("headers").unwrap().as_list::<i32>().value(0);
        let headers = headers.as_struct();
        let (names, values) = (headers.column(0).as_string::<i32>(), headers.column(1).as_binary::<i32>());
        let text = |at| String::from_utf8(values.value(at).to_vec()).unwrap();
        (0..headers.len()).map(|at| (names.value(at).to_owned(), text(at))).collect()
    }

    #[test]
    fn a_letter_becomes_its_record_again() {
        let own = [("trace", "1"), ("__connect.errors.topic", "of somebody else")];
        let record = chunk(&own);
        let headers = letter(record.records().next().unwrap());
        let headers: Vec<(&str, &str)> = headers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let (read, others) = originals(chunk(&headers), "orders");
        assert_eq!((others, read.start.get(), read.end.get(), read.assignment), (0, 0, 9, 3));
        let again = read.records().next().unwrap();
        assert_eq!(again.first_source().to_string(), record.source.to_string());
        assert_eq!((again.first_offset(), again.offset(), again.timestamp_ms()), (7, 7, 99));
        assert_eq!((again.key(), again.value()), (Some(&b"k"[..]), None));
        let kept: Vec<_> = again.headers().map(|(name, value)| (name, value.unwrap())).collect();
        let own = own.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        assert_eq!(kept, own);
        // Set aside once more it says the same.
        assert_eq!(letter(again), letter(record.records().next().unwrap()));
    }

    #[test]
    fn what_is_no_letter_of_the_route_is_left_out() {
        let record = chunk(&[]);
        let headers = letter(record.records().next().unwrap());
        let headers: Vec<(&str, &str)> = headers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        for (what, route) in [(&headers[..], "clicks"), (&headers[1..], "orders"), (&[], "orders")] {
            let (read, others) = originals(chunk(what), route);
            assert_eq!((others, read.record_count(), read.end.get()), (1, 0, 9), "{what:?}");
        }
    }
}
