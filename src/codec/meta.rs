//! The `_` columns: what Spark's Kafka source calls key, topic, partition, offset, timestamp, headers.
//!
//! They are built only for the views that name them. The key's is the work of a codec.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, ListBuilder, StringBuilder, StructBuilder,
    TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

use crate::config::plan::Framing;
use crate::model::{RecordRef, TimestampType};

use super::{Side, frame};

/// The column of keys.
pub const KEY: &str = "_key";

/// What a change did: `c`, `u`, `d`, `r`, `t`. Views that name it see all changes, also those that leave no row.
pub const OP: &str = "_op";

/// One of the `_` columns besides [`KEY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaColumn {
    Topic,
    Partition,
    Offset,
    Timestamp,
    TimestampType,
    Headers,
    SchemaId,
}

impl MetaColumn {
    pub const ALL: [MetaColumn; 7] = [
        MetaColumn::Topic,
        MetaColumn::Partition,
        MetaColumn::Offset,
        MetaColumn::Timestamp,
        MetaColumn::TimestampType,
        MetaColumn::Headers,
        MetaColumn::SchemaId,
    ];

    pub fn name(self) -> &'static str {
        match self {
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

    /// The column for `records`, whose values name their schemas by `framing`. Bytes of header names that are not UTF-8
    /// are replaced.
    pub fn build(self, records: &[RecordRef<'_>], framing: Framing) -> ArrayRef {
        match self {
            Self::Topic => {
                let mut topics = StringBuilder::new();
                for record in records {
                    topics.append_value(record.first_source().topic.as_str());
                }
                Arc::new(topics.finish())
            }
            Self::Partition => {
                let numbers = records.iter().map(|record| record.first_source().partition.0);
                Arc::new(Int32Array::from_iter_values(numbers))
            }
            Self::Offset => {
                Arc::new(Int64Array::from_iter_values(records.iter().map(RecordRef::first_offset)))
            }
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
                    let frame = frame::parse(framing, Side::Value, record, record.value()?).ok()?;
                    frame.schema.id().map(|id| id.0)
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
