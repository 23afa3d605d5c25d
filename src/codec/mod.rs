//! Bytes to Arrow. Synchronous, without I/O: the engine fetches schemas and hands them in.
//!
//! Every record of a batch ends in exactly one place: a row, the rejected, or the dropped. A bad record
//! never spoils its neighbours. New formats are a file here and an arm in `cli::build`. A [`Decoder`] puts what
//! codecs make of values and of keys together.

pub mod avro;
pub mod columns;
pub mod debezium;
mod decoder;
mod decoders;
mod fill;
pub mod frame;
mod json;
pub mod json_schema;
mod key;
mod known;
pub mod letters;
pub mod limits;
pub mod meta;
pub mod protobuf;
mod raw;
mod registered;
mod sorter;
pub mod widen;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{Field, SchemaRef};
use arrow::error::ArrowError;

use crate::config::plan::Framing;
use crate::model::{RecordRef, Reference, SchemaKey, SchemaVersion};

pub use decoder::{DecodedBatch, Decoder};
pub use decoders::{DecodedTypes, Decoders, TypeRows};
pub use json::{JsonColumn, TypedJson};
pub use key::JsonKeys;
pub use raw::Raw;
pub use registered::Registered;
pub use sorter::Sorter;

/// Turns raw records into columns of one fixed Arrow schema.
pub trait Codec: Send + Sync {
    /// The columns that [`Codec::decode`] fills, the same for every batch.
    fn schema(&self) -> &SchemaRef;

    /// `_` columns that it could fill besides those of its schema.
    fn offered(&self) -> Vec<Field> {
        Vec::new()
    }

    /// Makes its schema end in these of the columns that are [offered](Codec::offered).
    fn give(&mut self, _columns: &[Field]) {}

    /// Some sink keeps the newest row of each key: a change that it cannot be told is a bad record. With
    /// `tells_unavailable` such sinks know of columns whose values were not sent.
    fn keep_newest(&mut self, _tells_unavailable: bool) {}

    /// How records name their schemas; where the column `_schema_id` has them from.
    fn framing(&self) -> Framing {
        Framing::Confluent
    }

    /// Schemas that `records` name and that have to be learnt first. None, unless records name schemas.
    fn missing(&self, _records: &[RecordRef<'_>]) -> Vec<SchemaKey> {
        Vec::new()
    }

    /// The batch that comes next names these schemas: what was learnt of others may be forgotten.
    fn need(&mut self, _keys: &Arc<HashSet<SchemaKey>>) {}

    /// Takes a schema the registry has under `key`. One that cannot be used makes the records that name it
    /// bad, not the batch. A codec that misses none is told of none.
    fn learn(&mut self, _key: SchemaKey, _schema: Learnt) {}

    /// The schema that a record names. None, unless records name schemas.
    fn named(&self, _record: &RecordRef<'_>) -> Option<SchemaKey> {
        None
    }

    /// Why nothing can be read that was written with a schema, which was learnt.
    fn refusal(&self, _key: SchemaKey) -> Option<&str> {
        None
    }

    /// The version of a subject that everything is read as, if it was taken from one.
    fn version(&self) -> Option<&SchemaVersion> {
        None
    }

    /// Decodes all of `records`. Every one is a row, rejected, dropped, or a delete; a delete may be a row besides.
    ///
    /// # Errors
    /// Only for defects of ours: columns that do not fit together.
    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError>;
}

/// Which bytes of a record a codec reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Value,
    Key,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Value, Self::Key];

    fn bytes<'a>(self, record: &RecordRef<'a>) -> Option<&'a [u8]> {
        match self {
            Self::Value => record.value(),
            Self::Key => record.key(),
        }
    }
}

/// What the registry said of a schema that records name.
#[derive(Debug, Clone)]
pub enum Learnt {
    Schema {
        /// `AVRO`, `PROTOBUF`, `JSON`.
        kind: String,
        text: String,
        references: Vec<Reference>,
    },
    /// The registry does not know it, and the grace for it is over.
    Unknown,
    /// It cannot be used: not parseable, too large.
    Unusable(String),
    /// The route takes no schemas of other subjects than its own, which this is.
    Foreign(String),
}

impl Learnt {
    /// Of all its text, in bytes.
    fn size(&self) -> usize {
        match self {
            Self::Schema { kind: _, text, references } => {
                let of_references =
                    references.iter().map(|reference| reference.name.len() + reference.text.len());
                text.len() + of_references.sum::<usize>()
            }
            Self::Unknown => 0,
            Self::Unusable(why) | Self::Foreign(why) => why.len(),
        }
    }
}

/// Decoded records.
#[derive(Debug)]
pub struct Decoded {
    /// One array per field of the schema.
    pub columns: Vec<ArrayRef>,
    /// For each row, the index of its record, ascending.
    pub rows: Vec<u32>,
    /// Indexes of records that say that their key is gone, ascending.
    pub deletes: Vec<u32>,
    /// Indexes of records whose row tells of a change that leaves none, ascending.
    pub gone: Vec<u32>,
    pub rejected: Vec<Rejected>,
    /// Records dropped by an explicit rule (`tombstones: skip`).
    pub dropped: usize,
}

/// A record that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub index: usize,
    /// Stable, for metrics and dead letters.
    pub code: &'static str,
    pub message: String,
    pub schema_id: Option<SchemaKey>,
}

#[cfg(test)]
mod hostile;
