//! `value: bytes | string | json`: the record as Spark's Kafka source gives it, undecoded.
//!
//! `json` is validated JSON text. The columns are `_key, value, _topic, _partition, _offset, _timestamp,
//! _timestamp_type, _headers`, and `*` means all of them.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use serde::de::IgnoredAny;

use crate::config::plan::{KeyForm, RawForm};
use crate::model::{RecordRef, SchemaId};

use super::meta::{MetaColumn, key_problem};
use super::{Codec, Decoded, Learnt, Rejected};

/// Lands records as they are.
#[derive(Debug)]
pub struct Raw {
    form: RawForm,
    key: KeyForm,
    schema: SchemaRef,
}

impl Raw {
    pub fn new(form: RawForm, key: KeyForm) -> Self {
        let data_type = match form {
            RawForm::Bytes => DataType::Binary,
            RawForm::String | RawForm::Json => DataType::Utf8,
        };
        let mut fields = vec![MetaColumn::Key(key).field(), Field::new("value", data_type, true)];
        fields.extend(AFTER.iter().map(|column| column.field()));
        Self { form, key, schema: Arc::new(Schema::new(fields)) }
    }

    fn problem(&self, record: &RecordRef<'_>) -> Option<(&'static str, String)> {
        if let Some(problem) = key_problem(self.key, record) {
            return Some(("invalid_utf8", problem.to_owned()));
        }
        let value = record.value()?;
        match self.form {
            RawForm::Bytes => None,
            RawForm::String => std::str::from_utf8(value)
                .err()
                .map(|_| ("invalid_utf8", "the value is not UTF-8 text; set `value: bytes`".to_owned())),
            RawForm::Json => serde_json::from_slice::<IgnoredAny>(value)
                .err()
                .map(|error| ("type_mismatch", format!("the value is not JSON: {error}"))),
        }
    }
}

/// The columns behind `value`.
const AFTER: [MetaColumn; 6] = [
    MetaColumn::Topic,
    MetaColumn::Partition,
    MetaColumn::Offset,
    MetaColumn::Timestamp,
    MetaColumn::TimestampType,
    MetaColumn::Headers,
];

impl Codec for Raw {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn missing(&self, _: &[RecordRef<'_>]) -> Vec<SchemaId> {
        Vec::new()
    }

    fn learn(&mut self, _: SchemaId, _: Learnt) {
        // It names no ids, so it is told of none.
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        let (mut kept, mut rows, mut rejected) = (Vec::with_capacity(records.len()), Vec::new(), Vec::new());
        for (index, record) in records.iter().enumerate() {
            match self.problem(record) {
                Some((code, message)) => rejected.push(Rejected { index, code, message, schema_id: None }),
                None => {
                    rows.push(index as u32);
                    kept.push(*record);
                }
            }
        }
        let value: ArrayRef = match self.form {
            RawForm::Bytes => {
                let mut values = BinaryBuilder::new();
                kept.iter().for_each(|record| values.append_option(record.value()));
                Arc::new(values.finish())
            }
            RawForm::String | RawForm::Json => {
                let mut values = StringBuilder::new();
                for record in &kept {
                    // Checked above.
                    values.append_option(record.value().map(String::from_utf8_lossy));
                }
                Arc::new(values.finish())
            }
        };
        let mut columns = vec![MetaColumn::Key(self.key).build(&kept), value];
        columns.extend(AFTER.iter().map(|column| column.build(&kept)));
        Ok(Decoded { columns, rows, rejected, dropped: 0 })
    }
}
