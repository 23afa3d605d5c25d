//! Records to complete batches: the columns of their values, and the `_` columns that somebody reads.
//!
//! It keeps nothing from one call to the next: several threads may decode slices of one batch, and their rows
//! put together are those of the whole.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatchOptions, UInt32Array};
use arrow::compute::{filter, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::model::{Deletes, RecordRef, SchemaKey, SchemaVersion, code};

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
    /// Some sink wants to know which keys are gone.
    takes_deletes: bool,
}

/// A decoded batch. Every record is a row, rejected once, dropped, or a delete; a delete may be a row besides.
#[derive(Debug)]
pub struct DecodedBatch {
    /// Always of [`Decoder::batch_schema`].
    pub rows: RecordBatch,
    /// For each row, the index of its record, ascending.
    pub origins: Vec<u32>,
    /// Keys that are gone, if somebody wants them. They are never null.
    pub deletes: Deletes,
    /// Indexes of records whose row tells of a change that leaves none, ascending.
    pub gone: Vec<u32>,
    /// In the order of the records.
    pub rejected: Vec<Rejected>,
    /// Records dropped by an explicit rule (`tombstones: skip`; deletes that nobody wants).
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
        Self { value, key, origins, batch: Arc::clone(&fields), fields, takes_deletes: false }
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
        self.absent().into_iter().map(|(_, field)| field).chain(self.value.offered()).collect()
    }

    fn absent(&self) -> Vec<(Origin, Field)> {
        let absent = Origin::meta().filter(|origin| !self.origins.contains(origin));
        absent.map(|origin| (origin, origin.field(self.value.as_ref(), self.key.as_ref()))).collect()
    }

    /// Gives every batch these of the columns that are [offered](Decoder::offered), in that order.
    #[must_use]
    pub fn with_meta(mut self, columns: &[Field]) -> Self {
        let mut fields = self.batch.fields().to_vec();
        let is_named = |field: &Field| columns.iter().any(|column| column.name() == field.name());
        for (origin, field) in self.absent() {
            if is_named(&field) {
                self.origins.push(origin);
                fields.push(Arc::new(field));
            }
        }
        let own: Vec<Field> = self.value.offered().into_iter().filter(is_named).collect();
        let first = self.value.schema().fields().len();
        self.value.give(&own);
        for (index, field) in own.into_iter().enumerate() {
            self.origins.push(Origin::Value(first + index));
            fields.push(Arc::new(field));
        }
        self.batch = Arc::new(Schema::new(fields));
        self
    }

    /// Gives batches the keys that are gone: some sink keeps the newest row of each key. With `tells_unavailable` all such
    /// sinks know of columns whose values were not sent.
    #[must_use]
    pub fn with_deletes(mut self, tells_unavailable: bool) -> Self {
        self.takes_deletes = true;
        self.value.keep_newest(tells_unavailable);
        self
    }

    /// The type of column `_key`, and of the keys of deletes.
    pub fn key_type(&self) -> DataType {
        self.key.schema().field(0).data_type().clone()
    }

    /// Keys are looked at only if somebody reads them.
    fn reads_keys(&self) -> bool {
        self.has_key_column() || self.takes_deletes
    }

    fn has_key_column(&self) -> bool {
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
            let mut seen: HashSet<SchemaKey> = missing.iter().copied().collect();
            missing.extend(self.key.missing(records).into_iter().filter(|key| seen.insert(*key)));
        }
        missing
    }

    /// The batch that comes next names these schemas: what was learnt of others may be forgotten.
    pub fn need(&mut self, keys: &Arc<HashSet<SchemaKey>>) {
        self.key.need(keys);
        self.value.need(keys);
    }

    /// Takes what the registry has under `key`, which values, keys or both may name.
    pub fn learn(&mut self, key: SchemaKey, schema: Learnt) {
        if self.reads_keys() {
            self.key.learn(key, schema.clone());
        }
        self.value.learn(key, schema);
    }

    /// As [`Decoder::learn`], of a schema that no value names which comes here.
    pub fn learn_of_keys(&mut self, key: SchemaKey, schema: Learnt) {
        if self.reads_keys() {
            self.key.learn(key, schema);
        }
    }

    /// Decodes all of `records`. A record whose value is bad is not asked for its key.
    ///
    /// # Errors
    /// Only for defects of ours: columns that do not fit together.
    pub fn decode(&self, records: &[RecordRef<'_>]) -> Result<DecodedBatch, ArrowError> {
        let Decoded { columns: mut values, mut rows, mut deletes, gone, mut rejected, mut dropped } =
            self.value.decode(records)?;
        if !self.takes_deletes {
            // What is a row besides is not dropped.
            dropped += deletes.iter().filter(|index| gone.binary_search(index).is_err()).count();
            deletes.clear();
        }
        let (mut row_keys, mut keys) = (None, None);
        if self.has_key_column() || !deletes.is_empty() {
            let asked = if self.has_key_column() { united(&rows, &deletes) } else { deletes.clone() };
            let read = self.read_keys(records, &asked, &deletes)?;
            if !read.rejected.is_empty() {
                values = values
                    .iter()
                    .map(|column| filter(column, &rows.iter().map(|row| Some(read.is_good(*row))).collect()))
                    .collect::<Result<_, _>>()?;
                rows.retain(|row| read.is_good(*row));
                deletes.retain(|index| read.is_good(*index));
            }
            if self.has_key_column() {
                row_keys = Some(read.of(&rows)?);
            }
            if !deletes.is_empty() {
                keys = Some(read.of(&deletes)?);
            }
            rejected.extend(read.rejected);
            rejected.sort_by_key(|bad| bad.index);
        }
        let kept: Vec<RecordRef<'_>> = rows.iter().map(|row| records[*row as usize]).collect();
        let columns = self.origins.iter().map(|origin| match origin {
            Origin::Value(index) => Ok(Arc::clone(&values[*index])),
            Origin::Key => {
                row_keys.clone().ok_or_else(|| ArrowError::SchemaError("keys without a column".to_owned()))
            }
            Origin::Meta(column) => Ok(column.build(&kept, self.value.framing())),
        });
        let columns = columns.collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(kept.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.batch), columns, &options)?;
        // A change that leaves no row, and deletes no key of its own.
        let is_truncation = |number: &&u32| {
            let is_delete = deletes.binary_search(number).is_ok();
            self.takes_deletes && !is_delete && rows.binary_search(number).is_ok()
        };
        let truncations = gone.iter().filter(is_truncation).copied().collect();
        let deletes = Deletes { origins: deletes, keys, truncations };
        Ok(DecodedBatch { rows: batch, origins: rows, deletes, gone, rejected, dropped })
    }

    /// The keys of the records with these indexes; those of `deletes` must be there.
    fn read_keys(
        &self,
        records: &[RecordRef<'_>],
        asked: &[u32],
        deletes: &[u32],
    ) -> Result<Keys, ArrowError> {
        let read: Vec<RecordRef<'_>> = asked.iter().map(|index| records[*index as usize]).collect();
        let mut decoded = self.key.decode(&read)?;
        let column = decoded.columns.pop();
        let column = column.ok_or_else(|| ArrowError::SchemaError("keys without a column".to_owned()))?;
        let indexes: Vec<u32> = decoded.rows.iter().map(|row| asked[*row as usize]).collect();
        let mut rejected: Vec<Rejected> = decoded
            .rejected
            .into_iter()
            .map(|bad| Rejected {
                index: asked[bad.index] as usize,
                message: format!("key: {}", bad.message),
                ..bad
            })
            .collect();
        let is_null = |index: &&u32| indexes.binary_search(index).is_ok_and(|place| column.is_null(place));
        rejected.extend(deletes.iter().filter(is_null).map(|index| Rejected {
            index: *index as usize,
            code: code::NO_KEY,
            message: "it deletes a row and has no key that says which".to_owned(),
            schema_id: None,
        }));
        rejected.sort_by_key(|bad| bad.index);
        Ok(Keys { column, indexes, rejected })
    }
}

/// Decoded keys.
struct Keys {
    column: ArrayRef,
    /// For each key in the column, the index of its record, ascending.
    indexes: Vec<u32>,
    /// In the order of the records.
    rejected: Vec<Rejected>,
}

impl Keys {
    fn is_good(&self, index: u32) -> bool {
        self.rejected.binary_search_by_key(&(index as usize), |bad| bad.index).is_err()
    }

    /// The keys of these records, which are good.
    fn of(&self, records: &[u32]) -> Result<ArrayRef, ArrowError> {
        if records == self.indexes {
            return Ok(Arc::clone(&self.column));
        }
        let place = |index: &u32| {
            let place = self.indexes.binary_search(index);
            place
                .map(|place| place as u32)
                .map_err(|_| ArrowError::SchemaError("a record without a key".to_owned()))
        };
        let places = records.iter().map(place).collect::<Result<Vec<u32>, _>>()?;
        take(&self.column, &UInt32Array::from(places), None)
    }
}

/// All numbers of both lists, which are ascending; each once.
fn united(left: &[u32], right: &[u32]) -> Vec<u32> {
    let mut all = [left, right].concat();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests;
