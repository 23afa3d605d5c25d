//! `bytes | string | json`: values or keys as they are, undecoded.
//!
//! `json` is validated JSON text.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use serde::de::IgnoredAny;

use crate::config::plan::{RawForm, Tombstones};
use crate::model::{RecordRef, code};

use super::meta::KEY;
use super::{Codec, Decoded, Rejected, Side};

/// Lands values or keys as they are: one column.
#[derive(Debug)]
pub struct Raw {
    side: Side,
    form: RawForm,
    tombstones: Tombstones,
    schema: SchemaRef,
}

impl Raw {
    /// The column `value`.
    pub fn new(form: RawForm, tombstones: Tombstones) -> Self {
        Self::of(Side::Value, form, tombstones)
    }

    /// The column `_key`, null where there is no key.
    pub fn for_keys(form: RawForm) -> Self {
        Self::of(Side::Key, form, Tombstones::Keep)
    }

    fn of(side: Side, form: RawForm, tombstones: Tombstones) -> Self {
        let name = match side {
            Side::Value => "value",
            Side::Key => KEY,
        };
        let data_type = match form {
            RawForm::Bytes => DataType::Binary,
            RawForm::String | RawForm::Json => DataType::Utf8,
        };
        let schema = Arc::new(Schema::new(vec![Field::new(name, data_type, true)]));
        Self { side, form, tombstones, schema }
    }

    fn problem(&self, bytes: &[u8]) -> Option<(&'static str, String)> {
        if self.form == RawForm::Bytes {
            return None;
        }
        // serde_json does not look at the text of what it skips.
        if std::str::from_utf8(bytes).is_err() {
            let message = match self.side {
                Side::Value => "the value is not UTF-8 text; set `value: bytes`",
                Side::Key => "not UTF-8 text; set `key: bytes`, or find out who wrote it",
            };
            return Some((code::INVALID_UTF8, message.to_owned()));
        }
        if self.form == RawForm::String {
            return None;
        }
        let error = serde_json::from_slice::<IgnoredAny>(bytes).err()?;
        let what = match self.side {
            Side::Value => "the value is not JSON",
            Side::Key => "not JSON",
        };
        Some((code::TYPE_MISMATCH, format!("{what}: {error}")))
    }
}

impl Codec for Raw {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        let (mut kept, mut rows, mut rejected) = (Vec::with_capacity(records.len()), Vec::new(), Vec::new());
        let (mut deletes, mut dropped) = (Vec::new(), 0);
        for (index, record) in records.iter().enumerate() {
            let bytes = self.side.bytes(record);
            match (bytes, self.tombstones) {
                (None, Tombstones::Skip) => {
                    dropped += 1;
                    continue;
                }
                (None, Tombstones::Delete) => {
                    deletes.push(index as u32);
                    continue;
                }
                _ => {}
            }
            match bytes.and_then(|bytes| self.problem(bytes)) {
                Some((code, message)) => rejected.push(Rejected { index, code, message, schema_id: None }),
                None => {
                    rows.push(index as u32);
                    kept.push(bytes);
                }
            }
        }
        let column: ArrayRef = match self.form {
            RawForm::Bytes => {
                let mut column = BinaryBuilder::new();
                kept.iter().for_each(|bytes| column.append_option(*bytes));
                Arc::new(column.finish())
            }
            RawForm::String | RawForm::Json => {
                let mut column = StringBuilder::new();
                for bytes in kept {
                    // Checked above.
                    column.append_option(bytes.map(String::from_utf8_lossy));
                }
                Arc::new(column.finish())
            }
        };
        Ok(Decoded { columns: vec![column], rows, deletes, gone: Vec::new(), rejected, dropped })
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
            let decoded = Raw::new(form, tombstones).decode(&records).unwrap();
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
        let deleting = Raw::new(RawForm::Bytes, Tombstones::Delete).decode(&records).unwrap();
        assert_eq!((deleting.rows, deleting.deletes, deleting.dropped), (vec![0, 1, 2, 4], vec![3], 0));
    }
}
