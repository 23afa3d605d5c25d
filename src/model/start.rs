//! Where a route starts reading a topic it has not seen before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Offset, Partition, TopicName, TopicPartition};

/// A time to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePoint {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    At(i64),
    /// Milliseconds before the moment of the first start.
    Ago(i64),
}

/// `start:` of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    /// The first record at or after this time, per partition; the end where there is none.
    Time(TimePoint),
    /// This many offsets before the end, per partition, not before the first one kept.
    Last(u64),
    /// Given offsets; a partition that is not named starts at earliest.
    Offsets(BTreeMap<TopicName, BTreeMap<Partition, Offset>>),
}

impl Start {
    /// The offset this is in a partition that keeps `[first, end)`; `at_time` is the first record at or after
    /// the start's time, if there is one.
    pub fn resolve(
        &self,
        source: &TopicPartition,
        (first, end): (Offset, Offset),
        at_time: Option<Offset>,
    ) -> Offset {
        match self {
            Self::Earliest => first,
            Self::Latest => end,
            // No record that new: the end, so that nothing old is read.
            Self::Time(_) => at_time.unwrap_or(end),
            Self::Last(count) => {
                let back = i64::try_from(*count).unwrap_or(i64::MAX);
                Offset::new(end.get() - back).unwrap_or_default().max(first)
            }
            Self::Offsets(topics) => {
                let given = topics.get(&source.topic).and_then(|offsets| offsets.get(&source.partition));
                given.copied().unwrap_or(first)
            }
        }
    }
}

/// A short digest of what decides where a route starts: its topics, excludes and `start:`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StartHash(pub String);

impl StartHash {
    /// Digest of `parts`, 16 hex digits: enough to tell an edit, never used for identity.
    pub fn of(parts: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        Self(super::metadata::hex(&hasher.finalize()[..8]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_offsets_within_a_partition() {
        let topic = TopicName::new("t");
        let source = TopicPartition::new(&topic, Partition(1));
        let at = |raw| Offset::new(raw).unwrap();
        let bounds = (at(10), at(50));
        let given = BTreeMap::from([(topic, BTreeMap::from([(Partition(1), at(33))]))]);
        for (start, by_time, expected) in [
            (Start::Earliest, None, 10),
            (Start::Latest, None, 50),
            (Start::Time(TimePoint::At(0)), Some(at(20)), 20),
            (Start::Time(TimePoint::At(0)), None, 50),
            (Start::Last(5), None, 45),
            (Start::Last(u64::MAX), None, 10),
            (Start::Offsets(given), None, 33),
            (Start::Offsets(BTreeMap::new()), None, 10),
        ] {
            assert_eq!(start.resolve(&source, bounds, by_time), at(expected), "{start:?}");
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(StartHash::of(&["ab", "c"]), StartHash::of(&["a", "bc"]));
        assert_eq!(StartHash::of(&["ab"]).0.len(), 16);
    }
}
