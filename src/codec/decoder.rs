//! Records to complete batches: the columns of their values, and the `_` columns that somebody reads.
//!
//! It keeps nothing from one call to the next: several threads may decode slices of one batch, and their rows
//! put together are those of the whole.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatchOptions};
use arrow::compute::filter;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::model::{RecordRef, SchemaKey, SchemaVersion};

use super::meta::MetaColumn;
use super::{Codec, Decoded, Learnt, Rejected, Side};

/// What records of a route become.
pub struct Decoder {
    value: Box<dyn Codec>,
    /// Its one column is `_key`.
    key: Box<dyn Codec>,
    /// What each column of a batch is made from.
    origins: Vec<Origin>,
    /// The first columns of a batch.
    fields: SchemaRef,
    batch: SchemaRef,
}

/// A decoded batch. Every record is a row, rejected once, or dropped.
#[derive(Debug)]
pub struct DecodedBatch {
    /// Always of [`Decoder::batch_schema`].
    pub rows: RecordBatch,
    /// In the order of the records.
    pub rejected: Vec<Rejected>,
    /// Records dropped by an explicit rule (`tombstones: skip`).
    pub dropped: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A column of the value, by its place.
    Value(usize),
    Key,
    Meta(MetaColumn),
}

impl Origin {
    /// Every `_` column.
    fn meta() -> impl Iterator<Item = Self> {
        [Self::Key].into_iter().chain(MetaColumn::ALL.map(Self::Meta))
    }

    fn field(self, value: &dyn Codec, key: &dyn Codec) -> Field {
        match self {
            Self::Value(index) => value.schema().field(index).clone(),
            Self::Key => key.schema().field(0).clone(),
            Self::Meta(column) => column.field(),
        }
    }
}

impl Decoder {
    /// Batches of the value's fields. `_` columns are added by [`Decoder::with_meta`].
    pub fn typed(value: Box<dyn Codec>, key: Box<dyn Codec>) -> Self {
        let origins = (0..value.schema().fields().len()).map(Origin::Value).collect();
        Self::of(value, key, origins)
    }

    /// Batches of records as Spark's Kafka source gives them: the `_` columns are fields like `value`.
    pub fn raw(value: Box<dyn Codec>, key: Box<dyn Codec>) -> Self {
        let mut origins = vec![Origin::Key];
        origins.extend((0..value.schema().fields().len()).map(Origin::Value));
        // As Spark's source has them, which knows no schemas.
        let behind = MetaColumn::ALL.into_iter().filter(|column| *column != MetaColumn::SchemaId);
        origins.extend(behind.map(Origin::Meta));
        Self::of(value, key, origins)
    }

    fn of(value: Box<dyn Codec>, key: Box<dyn Codec>, origins: Vec<Origin>) -> Self {
        let fields = origins.iter().map(|origin| origin.field(value.as_ref(), key.as_ref()));
        let fields = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Self { value, key, origins, batch: Arc::clone(&fields), fields }
    }

    /// The fields that `*` and a sink of `batch` mean: the first columns of every batch.
    pub fn schema(&self) -> &SchemaRef {
        &self.fields
    }

    /// All columns of every batch.
    pub fn batch_schema(&self) -> &SchemaRef {
        &self.batch
    }

    /// The `_` columns that batches can be given besides.
    pub fn offered(&self) -> Vec<Field> {
        self.absent().into_iter().map(|(_, field)| field).collect()
    }

    fn absent(&self) -> Vec<(Origin, Field)> {
        let absent = Origin::meta().filter(|origin| !self.origins.contains(origin));
        absent.map(|origin| (origin, origin.field(self.value.as_ref(), self.key.as_ref()))).collect()
    }

    /// Gives every batch these of the columns that are [offered](Decoder::offered).
    #[must_use]
    pub fn with_meta(mut self, columns: &[Field]) -> Self {
        let mut fields = self.batch.fields().to_vec();
        for (origin, field) in self.absent() {
            if columns.iter().any(|column| column.name() == field.name()) {
                self.origins.push(origin);
                fields.push(Arc::new(field));
            }
        }
        self.batch = Arc::new(Schema::new(fields));
        self
    }

    /// Keys are looked at only if somebody reads them.
    fn reads_keys(&self) -> bool {
        self.origins.contains(&Origin::Key)
    }

    /// The codec of a side; `None` for keys that nobody reads.
    fn codec(&self, side: Side) -> Option<&dyn Codec> {
        match side {
            Side::Value => Some(self.value.as_ref()),
            Side::Key => Some(self.key.as_ref()).filter(|_| self.reads_keys()),
        }
    }

    /// The version of a subject that values or keys are read as, if it was taken from one.
    pub fn version(&self, side: Side) -> Option<&SchemaVersion> {
        self.codec(side)?.version()
    }

    /// Why nothing can be read on a side that was written with a schema, which was learnt.
    pub fn refusal(&self, side: Side, key: SchemaKey) -> Option<&str> {
        self.codec(side)?.refusal(key)
    }

    /// The schemas that a record names: of its value, and of its key if that is read.
    pub fn named(&self, record: &RecordRef<'_>) -> impl Iterator<Item = SchemaKey> {
        let named = Side::BOTH.map(|side| self.codec(side).and_then(|codec| codec.named(record)));
        named.into_iter().flatten()
    }

    /// Schemas that `records` name and that have to be learnt first.
    pub fn missing(&self, records: &[RecordRef<'_>]) -> Vec<SchemaKey> {
        let mut missing = self.value.missing(records);
        if self.reads_keys() {
            for key in self.key.missing(records) {
                if !missing.contains(&key) {
                    missing.push(key);
                }
            }
        }
        missing
    }

    /// Takes what the registry has under `key`, which values, keys or both may name.
    pub fn learn(&mut self, key: SchemaKey, schema: Learnt) {
        if self.reads_keys() {
            self.key.learn(key, schema.clone());
        }
        self.value.learn(key, schema);
    }

    /// Decodes all of `records`. A record whose value is bad is not asked for its key.
    ///
    /// # Errors
    /// Only for defects of ours: columns that do not fit together.
    pub fn decode(&self, records: &[RecordRef<'_>]) -> Result<DecodedBatch, ArrowError> {
        let Decoded { columns: mut values, rows, mut rejected, dropped } = self.value.decode(records)?;
        let mut kept: Vec<RecordRef<'_>> = rows.iter().map(|row| records[*row as usize]).collect();
        let mut keys: Option<ArrayRef> = None;
        if self.reads_keys() {
            let mut decoded = self.key.decode(&kept)?;
            if !decoded.rejected.is_empty() {
                values = at_rows(&values, kept.len(), &decoded.rows)?;
                kept = decoded.rows.iter().map(|row| kept[*row as usize]).collect();
                rejected.extend(decoded.rejected.into_iter().map(|bad| Rejected {
                    index: rows[bad.index] as usize,
                    message: format!("key: {}", bad.message),
                    ..bad
                }));
                rejected.sort_by_key(|bad| bad.index);
            }
            keys = decoded.columns.pop();
        }
        let columns = self.origins.iter().map(|origin| match origin {
            Origin::Value(index) => Ok(Arc::clone(&values[*index])),
            Origin::Key => {
                keys.clone().ok_or_else(|| ArrowError::SchemaError("keys without a column".to_owned()))
            }
            Origin::Meta(column) => Ok(column.build(&kept, self.value.framing())),
        });
        let columns = columns.collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(kept.len()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.batch), columns, &options)?;
        Ok(DecodedBatch { rows, rejected, dropped })
    }
}

/// The columns, which have `row_count` rows, with these rows only.
fn at_rows(columns: &[ArrayRef], row_count: usize, rows: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
    let mut is_kept = vec![false; row_count];
    for row in rows {
        is_kept[*row as usize] = true;
    }
    let mask = BooleanArray::from(is_kept);
    columns.iter().map(|column| filter(column, &mask)).collect()
}

#[cfg(test)]
mod tests;
