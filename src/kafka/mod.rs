//! The only place that consumes from Kafka.
//!
//! One thread owns the consumer and always polls (`source`); it reports what happens and carries out
//! what the engine decides. Questions about the cluster (offsets, topic ids) go through another client
//! (`cluster`), so that they never hold up polling.

mod catch_up;
mod cluster;
mod event;
#[expect(unsafe_code, reason = "librdkafka through its C API, in this module alone")]
mod ffi;
mod gauge;
mod hold;
mod membership;
mod mock;
mod properties;
mod settings;
mod slot;
mod source;
mod triage;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::model::Chunk;

pub use catch_up::KafkaSources;
pub use cluster::{Cluster, ClusterError, KafkaCluster, TopicInfo};
pub use event::{Assignment, Command, Commit, Event};
pub use ffi::version;
pub use gauge::{Budget, Charge, Gauge};
pub use membership::{Fence, Membership};
pub use mock::MockBroker;
pub use properties::refused_properties;
pub use settings::{client_config, consumer_config, producer_config};
pub use source::{KafkaSource, SourceError};
pub use triage::Verdict;

/// Where records come from. Implemented by Kafka, and by scripts in tests.
///
/// It never decides what a rebalance means: it reports it and waits for the answer.
#[async_trait]
pub trait Source: Send {
    /// The next event; `None` after [`Event::Closed`]. Cancel-safe.
    async fn next(&mut self) -> Option<Event>;

    /// Carries out a decision, in the order of the calls.
    ///
    /// # Errors
    /// [`SourceError::Ended`] if the source is gone.
    fn send(&self, command: Command) -> Result<(), SourceError>;
}

/// Makes sources that are told what to read and are members of no group.
pub trait Sources: Send + Sync {
    /// # Errors
    /// [`SourceError`] if the configuration is refused; brokers that are away are no error.
    fn start(&self) -> Result<Box<dyn Source>, SourceError>;
}

/// Where the chunks of a partition go: a lane's inbox.
pub trait Outlet: fmt::Debug + Send {
    /// Takes the chunk, or gives it back if there is no room. Never blocks.
    ///
    /// # Errors
    /// The chunk, to be offered again.
    fn offer(&self, chunk: Chunk) -> Result<(), Chunk>;

    /// What this outlet holds, in bytes.
    fn gauge(&self) -> &Arc<Gauge>;
}
