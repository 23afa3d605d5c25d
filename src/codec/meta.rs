//! The `_` columns: what Spark's Kafka source calls key, topic, partition, offset, timestamp, headers.
//!
//! They are built only for the views that name them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, ListBuilder, StringBuilder, StructBuilder,
    TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

use crate::config::plan::KeyForm;
use crate::model::{RecordRef, TimestampType};

use super::frame;

/// One of the `_` columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaColumn {
    Key(KeyForm),
    Topic,
    Partition,
    Offset,
    Timestamp,
    TimestampType,
    Headers,
    SchemaId,
}

impl MetaColumn {
    /// All of them, with the route's key form.
    pub fn all(key: KeyForm) -> [MetaColumn; 8] {
        [
            MetaColumn::Key(key),
            MetaColumn::Topic,
            MetaColumn::Partition,
            MetaColumn::Offset,
            MetaColumn::Timestamp,
            MetaColumn::TimestampType,
            MetaColumn::Headers,
            MetaColumn::SchemaId,
        ]
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Key(_) => "_key",
            Self::Topic => "_topic",
            Self::Partition => "_partition",
            Self::Offset => "_offset",
            Self::Timestamp => "_timestamp",
            Self::TimestampType => "_timestamp_type",
            Self::Headers => "_headers",
            Self::SchemaId => "_schema_id",
        }
    }

    pub fn field(self) -> Field {
        let (data_type, is_nullable) = match self {
            Self::Key(KeyForm::Bytes) => (DataType::Binary, true),
            Self::Key(KeyForm::String) => (DataType::Utf8, true),
            Self::Topic => (DataType::Utf8, false),
            Self::Partition => (DataType::Int32, false),
            Self::Offset => (DataType::Int64, false),
            Self::Timestamp => (DataType::Timestamp(TimeUnit::Millisecond, Some(Arc::from("UTC"))), true),
            Self::TimestampType => (DataType::Int32, true),
            Self::Headers => {
                let header = Field::new("item", DataType::Struct(header_fields()), false);
                (DataType::List(Arc::new(header)), true)
            }
            Self::SchemaId => (DataType::UInt32, true),
        };
        Field::new(self.name(), data_type, is_nullable)
    }

    /// The column for `records`. Text that is not UTF-8 was rejected before, except in header names,
    /// where it is replaced.
    pub fn build(self, records: &[RecordRef<'_>]) -> ArrayRef {
        match self {
            Self::Key(KeyForm::Bytes) => {
                let mut keys = BinaryBuilder::new();
                records.iter().for_each(|record| keys.append_option(record.key()));
                Arc::new(keys.finish())
            }
            Self::Key(KeyForm::String) => {
                let mut keys = StringBuilder::new();
                for record in records {
                    keys.append_option(record.key().map(String::from_utf8_lossy));
                }
                Arc::new(keys.finish())
            }
            Self::Topic => {
                let mut topics = StringBuilder::new();
                for record in records {
                    topics.append_value(record.source().topic.as_str());
                }
                Arc::new(topics.finish())
            }
            Self::Partition => {
                let numbers = records.iter().map(|record| record.source().partition.0);
                Arc::new(Int32Array::from_iter_values(numbers))
            }
            Self::Offset => Arc::new(Int64Array::from_iter_values(records.iter().map(RecordRef::offset))),
            Self::Timestamp => {
                let times = records.iter().map(|record| {
                    (record.timestamp_type() != TimestampType::None).then(|| record.timestamp_ms())
                });
                Arc::new(TimestampMillisecondArray::from_iter(times).with_timezone("UTC"))
            }
            Self::TimestampType => {
                let types = records.iter().map(|record| match record.timestamp_type() {
                    TimestampType::None => None,
                    TimestampType::Create => Some(0),
                    TimestampType::LogAppend => Some(1),
                });
                Arc::new(Int32Array::from_iter(types))
            }
            Self::Headers => build_headers(records),
            Self::SchemaId => {
                let ids = records.iter().map(|record| {
                    let (id, _) = frame::prefix(record.value()?).ok()?;
                    Some(id.0)
                });
                Arc::new(UInt32Array::from_iter(ids))
            }
        }
    }
}

/// A header: its name and its bytes (Spark's form).
pub fn header_fields() -> Fields {
    Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)])
}

fn build_headers(records: &[RecordRef<'_>]) -> ArrayRef {
    let entries = StructBuilder::from_fields(header_fields(), 0);
    let item = Field::new("item", DataType::Struct(header_fields()), false);
    let mut lists = ListBuilder::new(entries).with_field(item);
    for record in records {
        for (name, value) in record.headers() {
            let entries = lists.values();
            if let Some(names) = entries.field_builder::<StringBuilder>(0) {
                names.append_value(String::from_utf8_lossy(name));
            }
            if let Some(values) = entries.field_builder::<BinaryBuilder>(1) {
                values.append_option(value);
            }
            entries.append(true);
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}

/// A text key that is not UTF-8 makes its record bad.
pub fn key_problem(form: KeyForm, record: &RecordRef<'_>) -> Option<&'static str> {
    let is_bad = form == KeyForm::String && record.key().is_some_and(|key| std::str::from_utf8(key).is_err());
    is_bad.then_some("the key is not UTF-8 text; set `key: bytes`, or find out who wrote it")
}
