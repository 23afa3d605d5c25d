//! The nouns that flow through sidestream: topics, positions, moves, records, batches, faults.
//!
//! Nothing here does I/O, awaits, or knows Kafka clients, SQL or files. The types that end up on
//! disk or in the group's metadata ([`Move`], [`Position`], [`metadata::GroupMetadata`]) live here so that
//! the formats can be tested without any of those.

mod batch;
pub mod code;
mod fault;
pub mod metadata;
mod position;
mod record;
mod schema;
mod start;
mod topic;

pub use batch::{Batch, Deletes, SinkSet};
pub use fault::{Classify, Fault, Hint};
pub use position::{Conflict, LeaderEpoch, Move, Offset, Position, PositionKey, Positions, Reason, ranges};
pub use record::{
    Charge, Chunk, ChunkBuilder, Headers, Incoming, Original, RecordRef, SchemaId, SchemaKey, SharedChunk,
    TimestampType,
};
pub use schema::{Reference, SchemaVersion};
pub use start::{Start, StartHash, TimePoint};
pub use topic::{ClusterId, Partition, TopicId, TopicName, TopicPartition};
