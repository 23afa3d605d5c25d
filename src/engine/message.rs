//! What the engine and its lanes tell each other.

use std::collections::BTreeMap;

use crate::model::metadata::{GroupMetadata, MetadataError};
use crate::model::{LeaderEpoch, Offset, SinkSet, StartHash, TopicName, TopicPartition};

use super::catching::Stand;
use super::lane::Seen;

/// A lane, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub usize);

/// What the engine tells a lane. Chunks come on a channel of their own.
///
/// Order between the two: a chunk of an assignment is fetched only after [`Control::Assigned`] was sent,
/// and a lane reads what is on this channel first.
#[derive(Debug)]
pub enum Control {
    /// Topics of the route, new ones too. Comes before any of their partitions.
    Topics(BTreeMap<TopicName, Seen>),
    /// Say where these partitions go on; answered by [`Report::Ready`].
    Resume(BTreeMap<TopicPartition, Committed>),
    /// Chunks of these follow.
    Assigned(Vec<Assigned>),
    /// Say where the sinks stand in these partitions; answered by [`Report::Stands`].
    Look(Vec<TopicPartition>),
    /// Give these up; answered by [`Report::Released`]. If they are lost, nothing of them may be kept.
    Revoke { partitions: Vec<TopicPartition>, is_lost: bool },
    /// The source cannot go on with a topic of this lane: stop.
    Fail(Stop),
    /// The brokers do not have what comes next of a partition: stop, or go on with what they have.
    Lost { source: TopicPartition, stop: Stop },
    /// Make everything durable and end; answered by [`Report::Drained`].
    Drain,
}

/// What a lane tells the engine.
#[derive(Debug)]
pub enum Report {
    Ready(BTreeMap<TopicPartition, Stand>),
    Released(Vec<TopicPartition>),
    /// Fetch these again from where the lane stands: something that was read is needed again.
    Rewind(Vec<TopicPartition>),
    /// The same for what catches up in these partitions, from here.
    CatchUp(BTreeMap<TopicPartition, Stand>),
    /// Where the sinks stand; nothing while the lane, or what catches up in it, is held up.
    Stands(BTreeMap<TopicPartition, Stand>),
    /// What is durable in all required sinks now.
    Progress(BTreeMap<TopicPartition, Durable>),
    /// Needs a person or an edit. The lane takes nothing any more.
    Stopped(Stop),
    /// It has ended.
    Drained,
}

/// What the group has for a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    pub offset: Option<Offset>,
    pub metadata: GroupMetadata,
    /// The offset was committed by something else than sidestream.
    pub is_foreign: bool,
}

impl Committed {
    /// Reads what the group has for a partition, and what is wrong with the string beside the offset.
    pub fn read(known: Option<&(Offset, String)>) -> (Self, Option<MetadataError>) {
        let Some((offset, text)) = known else {
            return (Self::default(), None);
        };
        let (metadata, error) = match GroupMetadata::parse(text) {
            Ok(metadata) => (metadata, None),
            Err(error) => (GroupMetadata::default(), Some(error)),
        };
        let is_foreign = !GroupMetadata::is_ours(text);
        (Self { offset: Some(*offset), metadata, is_foreign }, error)
    }

    /// Did something else than sidestream put the group elsewhere than at `next`, where a sink with a store of its own
    /// stands? It is not obeyed there, so it is told.
    pub fn is_moved_from(&self, next: Offset) -> bool {
        self.is_foreign && self.offset.is_some_and(|offset| offset != next)
    }
}

/// What a lane reads of a partition, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    pub source: TopicPartition,
    /// The sinks that catch up; the others read with the front.
    pub apart: SinkSet,
    /// Chunks of the front begin anew. Without it the front goes on as it does, unless nobody is left there.
    pub front: Option<Reading>,
    /// The same for what catches up.
    pub catch_up: Option<Reading>,
}

/// An assignment, as a lane sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub from: Offset,
    pub number: u64,
    /// Nothing at or after it is read.
    pub end: Option<Offset>,
}

/// What a lane has durable of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    /// In all sinks that do not catch up; in all sinks if all of them do.
    pub next: Offset,
    /// In all sinks.
    pub settled: Offset,
    /// All sinks catch up.
    pub is_apart: bool,
    pub epoch: Option<LeaderEpoch>,
    /// Commit logs of its file sinks: identity, log id, last entry.
    pub logs: Vec<(String, String, u64)>,
    /// Positions of its sinks without a store of their own: identity, next offset.
    pub positions: Vec<(String, Offset)>,
    /// What those of them were started with that say so themselves: identity, hash.
    pub starts: Vec<(String, StartHash)>,
}

/// Where in a topic something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub source: TopicPartition,
    pub offset: Option<Offset>,
}

impl Place {
    pub fn new(source: &TopicPartition, offset: Option<Offset>) -> Self {
        Self { source: source.clone(), offset }
    }
}

/// Why a route stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub message: String,
    pub hint: Option<String>,
    /// Where it stopped, if that is one place. The message tells it too.
    pub place: Option<Place>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_a_tool_committed_is_told_from_ours() {
        let at = |raw| Offset::new(raw).unwrap();
        for (text, next, is_moved) in [
            // A commit of ours that came late, or is ahead of a sink that was added.
            ("ss1 l0011223344556677=abcd.17", 9, false),
            ("ss1", 9, false),
            ("", 9, true),
            ("{\"by\":\"a tool\"}", 9, true),
            // It happens to be where the sink is.
            ("", 5, false),
        ] {
            let (committed, error) = Committed::read(Some(&(at(5), text.to_owned())));
            assert_eq!(committed.is_moved_from(at(next)), is_moved, "{text}");
            assert_eq!(error.is_some(), text.starts_with('{'));
        }
        assert!(!Committed::read(None).0.is_moved_from(at(9)));
    }
}
