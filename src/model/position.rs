//! Progress: positions and the moves that change them (PROTOCOL §1).
//!
//! A position is the next offset wanted of a partition. Positions change only by [`Move`]s, and a
//! move is valid only if it starts where the stored position stands. One property follows and
//! holds everywhere: the moves of a partition form a chain, `end_i == start_{i+1}`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Partition, StartHash, TopicId, TopicName};

/// An offset of a partition. Never negative: Kafka's negative "offsets" are commands, not places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Offset(i64);

impl Offset {
    pub const ZERO: Offset = Offset(0);
    pub const MAX: Offset = Offset(i64::MAX);

    /// `None` if `raw` is negative.
    pub fn new(raw: i64) -> Option<Self> {
        (raw >= 0).then_some(Self(raw))
    }

    pub fn get(self) -> i64 {
        self.0
    }

    /// The offset after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl TryFrom<i64> for Offset {
    type Error = String;

    fn try_from(raw: i64) -> Result<Self, String> {
        Self::new(raw).ok_or_else(|| format!("offset {raw} is negative"))
    }
}

impl From<Offset> for i64 {
    fn from(offset: Offset) -> i64 {
        offset.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The epoch of a partition's leader when a record was written; it grows with every election.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaderEpoch(pub i32);

/// What a position belongs to. The cluster is not in it: a store of positions belongs to one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PositionKey {
    pub topic_id: TopicId,
    pub partition: Partition,
}

/// The next offset wanted, and the leader epoch of the last record before it, if one was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub next: Offset,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<LeaderEpoch>,
}

/// Why a position moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Records were settled.
    Data,
    /// First sight of the topic: the resolved `start:` of the route. Also, from a position to itself, that the route
    /// was edited since.
    Start {
        /// What the start was resolved from; another hash than the last one means an edit.
        hash: StartHash,
    },
    /// Nothing was there: control records, compacted or aborted offsets, the end of the partition.
    Idle,
    /// Records a sink may miss were skipped on purpose.
    Skipped,
    /// The source lost the range, and the user said to go on.
    Lost,
    /// An operator moved it.
    Reset,
    /// Taken over from another identity.
    Adopt,
}

/// The one record of progress. There is no progress outside of moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    #[serde(flatten)]
    pub key: PositionKey,
    /// For people who read the log; the key decides.
    pub topic: TopicName,
    /// The position before; `None` at first sight.
    pub start: Option<Offset>,
    pub end: Position,
    pub reason: Reason,
    /// Records in the range that were settled, whatever became of them.
    pub records: u64,
}

/// Moves as people read them: `topic/partition [start, end)`.
pub fn ranges(moves: &[Move]) -> String {
    let shown = moves.iter().map(|step| {
        let start = step.start.unwrap_or_default();
        format!("{}/{} [{start}, {})", step.topic, step.key.partition, step.end.next)
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// A move that does not start where the stored position stands: somebody else moved it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "position of `{topic}/{}` stands at {}, not at {} where this move starts",
    key.partition,
    show(*.stored),
    show(*.start)
)]
pub struct Conflict {
    pub key: PositionKey,
    pub topic: TopicName,
    pub stored: Option<Offset>,
    pub start: Option<Offset>,
}

fn show(offset: Option<Offset>) -> String {
    offset.map_or_else(|| "none".to_owned(), |offset| offset.to_string())
}

/// The fold of a chain of moves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    positions: BTreeMap<PositionKey, Position>,
    /// The name each topic had: tells a topic that was deleted and created again from a new one.
    names: BTreeMap<TopicId, TopicName>,
    /// Of the last `start` move.
    start_hash: Option<StartHash>,
}

impl Positions {
    pub fn get(&self, key: &PositionKey) -> Option<Position> {
        self.positions.get(key).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&PositionKey, &TopicName, &Position)> {
        self.positions.iter().filter_map(|(key, position)| {
            let name = self.names.get(&key.topic_id)?;
            Some((key, name, position))
        })
    }

    /// What the sink was last started with, if it ever was.
    pub fn start_hash(&self) -> Option<&StartHash> {
        self.start_hash.as_ref()
    }

    pub fn restore_start_hash(&mut self, hash: Option<StartHash>) {
        self.start_hash = hash;
    }

    /// Has any partition of this topic a position?
    pub fn knows(&self, topic_id: TopicId) -> bool {
        self.names.contains_key(&topic_id)
    }

    /// A topic of this name that has positions under another id: it was deleted and created again.
    pub fn former_id(&self, name: &TopicName, topic_id: TopicId) -> Option<TopicId> {
        if self.knows(topic_id) {
            return None;
        }
        let former = self.names.iter().find(|(_, known)| *known == name);
        former.map(|(id, _)| *id)
    }

    /// Sets a position as it was stored, without a move: for checkpoints.
    pub fn restore(&mut self, key: PositionKey, name: TopicName, position: Position) {
        self.positions.insert(key, position);
        self.names.insert(key.topic_id, name);
    }

    /// Checks that all of `moves` may be applied, one after the other.
    ///
    /// # Errors
    /// The first move that does not start at its position, taking earlier moves into account.
    pub fn check(&self, moves: &[Move]) -> Result<(), Conflict> {
        let mut trial: BTreeMap<PositionKey, Offset> = BTreeMap::new();
        for step in moves {
            let stored =
                trial.get(&step.key).copied().or_else(|| self.get(&step.key).map(|position| position.next));
            if stored != step.start {
                return Err(Conflict { key: step.key, topic: step.topic.clone(), stored, start: step.start });
            }
            trial.insert(step.key, step.end.next);
        }
        Ok(())
    }

    /// Applies all of `moves` or none.
    ///
    /// # Errors
    /// As [`Positions::check`].
    pub fn apply(&mut self, moves: &[Move]) -> Result<(), Conflict> {
        self.check(moves)?;
        for step in moves {
            // A move without records says nothing about epochs: keep the one known, but for a place nobody read up to.
            let known = self.get(&step.key).and_then(|position| position.epoch);
            let epoch = step.end.epoch.or_else(|| known.filter(|_| step.reason != Reason::Reset));
            let next = step.end.next;
            if let Reason::Start { hash } = &step.reason {
                self.start_hash = Some(hash.clone());
            }
            self.restore(step.key, step.topic.clone(), Position { next, epoch });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(start: Option<i64>, end: i64) -> Move {
        Move {
            key: PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(7)), partition: Partition(3) },
            topic: TopicName::new("orders"),
            start: start.and_then(Offset::new),
            end: Position { next: Offset::new(end).unwrap(), epoch: None },
            reason: Reason::Data,
            records: 1,
        }
    }

    #[test]
    fn moves_form_a_chain() {
        let mut positions = Positions::default();
        positions.apply(&[step(None, 5), step(Some(5), 9)]).unwrap();
        assert_eq!(positions.get(&step(None, 0).key).unwrap().next, Offset::new(9).unwrap());
    }

    #[test]
    fn a_move_from_elsewhere_is_refused_and_changes_nothing() {
        let mut positions = Positions::default();
        positions.apply(&[step(None, 5)]).unwrap();
        let before = positions.clone();
        for bad in [vec![step(None, 6)], vec![step(Some(4), 6)], vec![step(Some(5), 6), step(Some(5), 7)]] {
            positions.apply(&bad).unwrap_err();
            assert_eq!(positions, before);
        }
    }

    #[test]
    fn a_reset_leads_anywhere_and_forgets_the_epoch() {
        let mut positions = Positions::default();
        let mut read = step(None, 9);
        read.end.epoch = Some(LeaderEpoch(2));
        positions.apply(&[read]).unwrap();
        let reset = |start, end| Move { reason: Reason::Reset, ..step(Some(start), end) };
        positions.apply(&[reset(8, 0)]).unwrap_err();
        positions.apply(&[reset(9, 4)]).unwrap();
        let standing = positions.get(&step(None, 0).key).unwrap();
        assert_eq!((standing.next.get(), standing.epoch), (4, None));
    }

    #[test]
    fn the_form_on_disk_is_fixed() {
        let mut step = step(Some(5), 9);
        step.end.epoch = Some(LeaderEpoch(2));
        assert_eq!(
            serde_json::to_string(&step).unwrap(),
            r#"{"topic_id":"00000000-0000-0000-0000-000000000007","partition":3,"topic":"orders","start":5,"end":{"next":9,"epoch":2},"reason":"data","records":1}"#
        );
        let back: Move = serde_json::from_str(&serde_json::to_string(&step).unwrap()).unwrap();
        assert_eq!(back, step);
        serde_json::from_str::<Position>(r#"{"next":-1}"#).unwrap_err();
    }
}
