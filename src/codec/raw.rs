//! `value: bytes | string | json`: the record as Spark's Kafka source gives it, undecoded.
//!
//! `json` is validated JSON text. The columns are `_key, value, _topic, _partition, _offset, _timestamp,
//! _timestamp_type, _headers`, and `*` means all of them.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use serde::de::IgnoredAny;

use crate::config::plan::{KeyForm, RawForm, Tombstones};
use crate::model::{RecordRef, SchemaId};

use super::meta::{MetaColumn, key_problem};
use super::{Codec, Decoded, Learnt, Rejected};

/// Lands records as they are.
#[derive(Debug)]
pub struct Raw {
    form: RawForm,
    key: KeyForm,
    tombstones: Tombstones,
    schema: SchemaRef,
}

impl Raw {
    pub fn new(form: RawForm, key: KeyForm, tombstones: Tombstones) -> Self {
        let data_type = match form {
            RawForm::Bytes => DataType::Binary,
            RawForm::String | RawForm::Json => DataType::Utf8,
        };
        let mut fields = vec![MetaColumn::Key(key).field(), Field::new("value", data_type, true)];
        fields.extend(AFTER.iter().map(|column| column.field()));
        Self { form, key, tombstones, schema: Arc::new(Schema::new(fields)) }
    }

    fn problem(&self, record: &RecordRef<'_>) -> Option<(&'static str, String)> {
        if let Some(problem) = key_problem(self.key, record) {
            return Some(("invalid_utf8", problem.to_owned()));
        }
        let value = record.value()?;
        if self.form == RawForm::Bytes {
            return None;
        }
        // serde_json does not look at the text of what it skips.
        if std::str::from_utf8(value).is_err() {
            return Some(("invalid_utf8", "the value is not UTF-8 text; set `value: bytes`".to_owned()));
        }
        if self.form == RawForm::String {
            return None;
        }
        let error = serde_json::from_slice::<IgnoredAny>(value).err()?;
        Some(("type_mismatch", format!("the value is not JSON: {error}")))
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
        let mut dropped = 0;
        for (index, record) in records.iter().enumerate() {
            if record.value().is_none() && self.tombstones == Tombstones::Skip {
                dropped += 1;
                continue;
            }
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
        Ok(Decoded { columns, rows, rejected, dropped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChunkBuilder, Incoming, Offset, Partition, TimestampType, TopicName, TopicPartition};

    #[test]
    fn every_record_is_a_row_or_has_a_reason() {
        let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
        let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
        let values: [Option<&[u8]>; 5] =
            [Some(b"{\"a\": 1}"), Some(b"{\"a\": \"\xff\"}"), Some(b"{"), None, Some(b"\xff")];
        for (offset, value) in (0..).zip(values) {
            let incoming = Incoming {
                offset: Offset::new(offset).unwrap(),
                timestamp_ms: 0,
                timestamp_type: TimestampType::Create,
                epoch: None,
                key: None,
                value,
            };
            builder.push(incoming, std::iter::empty());
        }
        let chunk = builder.finish(Offset::ZERO);
        let records: Vec<RecordRef<'_>> = chunk.records().collect();
        let decode = |form, tombstones| {
            let decoded = Raw::new(form, KeyForm::Bytes, tombstones).decode(&records).unwrap();
            let codes: Vec<(usize, &str)> =
                decoded.rejected.iter().map(|rejected| (rejected.index, rejected.code)).collect();
            (decoded.rows, codes, decoded.dropped)
        };
        let (utf8, mismatch) = ("invalid_utf8", "type_mismatch");
        assert_eq!(decode(RawForm::Bytes, Tombstones::Keep), (vec![0, 1, 2, 3, 4], vec![], 0));
        assert_eq!(decode(RawForm::String, Tombstones::Skip), (vec![0, 2], vec![(1, utf8), (4, utf8)], 1));
        assert_eq!(
            decode(RawForm::Json, Tombstones::Keep),
            (vec![0, 3], vec![(1, utf8), (2, mismatch), (4, utf8)], 0)
        );
    }
}
