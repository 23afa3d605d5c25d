//! Dead letters: bad records as rows, byte for byte, with what was wrong.
//!
//! The headers are the record's own, followed by Kafka Connect's `__connect.errors.*`. A header name that is
//! not UTF-8 is the one thing that is not kept as it was: clients cannot write it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, ListBuilder, StringArray, StringBuilder, StructBuilder,
    UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::model::{RecordRef, SchemaKey};

use super::Rejected;
use super::meta::header_fields;

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
        Arc::new(StringArray::from_iter_values(records().map(|record| record.source().topic.as_str()))),
        Arc::new(Int32Array::from_iter_values(records().map(|record| record.source().partition.0))),
        Arc::new(Int64Array::from_iter_values(records().map(RecordRef::offset))),
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
    for (record, rejected) in letters {
        for (name, value) in record.headers() {
            put(lists.values(), &String::from_utf8_lossy(name), value);
        }
        let source = record.source();
        let context = [
            ("topic", source.topic.to_string()),
            ("partition", source.partition.to_string()),
            ("offset", record.offset().to_string()),
            ("connector.name", route.to_owned()),
            ("stage", "VALUE_CONVERTER".to_owned()),
            ("exception.class.name", rejected.code.to_owned()),
            ("exception.message", rejected.message.clone()),
        ];
        for (name, value) in context {
            put(lists.values(), &format!("__connect.errors.{name}"), Some(value.as_bytes()));
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
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
