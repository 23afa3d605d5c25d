//! What the source reports and what it is told.

use std::fmt;

use crate::model::{LeaderEpoch, Offset, TopicName, TopicPartition};

use super::Outlet;
use super::triage::Verdict;

/// What happened at the consumer. Records do not come this way: they go to the outlets.
#[derive(Debug)]
pub enum Event {
    /// The group gave us partitions. Nothing is fetched before [`Command::Assign`].
    Assigned(Vec<TopicPartition>),
    /// The group takes partitions away, and waits for [`Command::Release`].
    Revoked {
        partitions: Vec<TopicPartition>,
        /// They may belong to somebody else already: nothing may be committed for them.
        is_lost: bool,
    },
    /// An error that concerns one partition, or the whole client.
    Failed { source: Option<TopicPartition>, offset: Option<Offset>, message: String, verdict: Verdict },
    /// Outlets that have held up a partition most of the time, while others had room.
    Held(Vec<(TopicPartition, Vec<usize>)>),
    /// The answer to a [`Command::Commit`].
    Committed(Result<(), String>),
    /// The consumer is closed; nothing follows.
    Closed,
}

/// What the engine decided.
#[derive(Debug)]
pub enum Command {
    /// Outlets by number, which assignments name.
    Connect(Vec<(usize, Box<dyn Outlet>)>),
    /// All topics that are wanted, in place of those before.
    Subscribe(Vec<TopicName>),
    /// Fetch these partitions from here on. Those that are fetched already start again.
    Assign(Vec<Assignment>),
    /// Stop fetching these; they stay ours in the group.
    Unassign(Vec<TopicPartition>),
    /// Nothing more of this partition goes to this outlet; the others do not notice.
    Detach {
        source: TopicPartition,
        outlet: usize,
    },
    /// Give these back to the group: the answer to [`Event::Revoked`].
    Release(Vec<TopicPartition>),
    Commit(Vec<Commit>),
    /// Leave the group and end.
    Close,
}

/// Where to fetch a partition from.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub source: TopicPartition,
    pub from: Offset,
    /// Put on every chunk: chunks of an older assignment are recognised by it.
    pub number: u64,
    /// Who gets the chunks.
    pub outlets: Vec<usize>,
}

/// An offset for the group.
#[derive(Clone, PartialEq, Eq)]
pub struct Commit {
    pub source: TopicPartition,
    pub next: Offset,
    pub epoch: Option<LeaderEpoch>,
    pub metadata: String,
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.source, self.next)
    }
}
