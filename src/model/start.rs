//! Where a route starts reading a topic it has not seen before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Offset, Partition, TopicName};

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
    fn parts_do_not_run_into_each_other() {
        assert_ne!(StartHash::of(&["ab", "c"]), StartHash::of(&["a", "bc"]));
        assert_eq!(StartHash::of(&["ab"]).0.len(), 16);
    }
}
