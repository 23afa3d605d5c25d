//! Partitions that are ours and not fetched, as it is not known yet where to begin: since when, and why. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::model::TopicPartition;
use crate::status::HELD_BACK;

use super::message::LaneId;

/// What a partition waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// What the group has for it could not be read yet.
    Offsets,
    /// A lane has not said where its sinks stand.
    Answer(LaneId),
    /// The group does not have yet where a sink without a store of its own begins.
    FirstCommit,
}

impl Cause {
    /// Its place in [`HELD_BACK`].
    fn place(self) -> usize {
        match self {
            Self::Offsets => 0,
            Self::Answer(_) => 1,
            Self::FirstCommit => 2,
        }
    }
}

/// Partitions of a lane that wait for the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub cause: Cause,
    /// The one that has waited for longest.
    pub source: TopicPartition,
    pub since: Instant,
    /// How many others there are.
    pub others: usize,
}

/// What is held back, for which lanes.
#[derive(Debug, Default)]
pub struct HeldBack {
    partitions: BTreeMap<(LaneId, TopicPartition), (Cause, Instant)>,
}

impl HeldBack {
    /// Takes in what waits now. What waited before does so since then, whatever it waited for.
    pub fn update(&mut self, causes: BTreeMap<(LaneId, TopicPartition), Cause>, now: Instant) {
        let before = std::mem::take(&mut self.partitions);
        let since = |key: &(LaneId, TopicPartition)| before.get(key).map_or(now, |(_, since)| *since);
        self.partitions =
            causes.into_iter().map(|(key, cause)| (key.clone(), (cause, since(&key)))).collect();
    }

    /// What each lane waits for, longest first.
    pub fn by_lane(&self) -> BTreeMap<LaneId, Vec<Waiting>> {
        let mut lanes: BTreeMap<LaneId, BTreeMap<Cause, Waiting>> = BTreeMap::new();
        for ((lane, source), (cause, since)) in &self.partitions {
            let fresh = || Waiting { cause: *cause, source: source.clone(), since: *since, others: 0 };
            let causes = lanes.entry(*lane).or_default();
            let Some(waiting) = causes.get_mut(cause) else {
                causes.insert(*cause, fresh());
                continue;
            };
            let others = waiting.others + 1;
            if *since < waiting.since {
                *waiting = fresh();
            }
            waiting.others = others;
        }
        let sorted = lanes.into_iter().map(|(lane, causes)| {
            let mut all: Vec<Waiting> = causes.into_values().collect();
            all.sort_by_key(|waiting| waiting.since);
            (lane, all)
        });
        sorted.collect()
    }

    /// How many partitions wait, in the order of [`HELD_BACK`].
    pub fn counts(&self) -> [usize; HELD_BACK.len()] {
        let mut sources: [BTreeSet<&TopicPartition>; HELD_BACK.len()] = Default::default();
        for ((_, source), (cause, _)) in &self.partitions {
            sources[cause.place()].insert(source);
        }
        sources.map(|sources| sources.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Partition, TopicName};

    fn source(number: i32) -> TopicPartition {
        TopicPartition::new(&TopicName::new("t"), Partition(number))
    }

    fn causes(causes: &[(usize, i32, Cause)]) -> BTreeMap<(LaneId, TopicPartition), Cause> {
        causes.iter().map(|(lane, number, cause)| ((LaneId(*lane), source(*number)), *cause)).collect()
    }

    #[test]
    fn a_partition_waits_since_it_was_held_back_whatever_it_waits_for() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut held = HeldBack::default();
        held.update(causes(&[(0, 1, Cause::Offsets)]), start);
        held.update(causes(&[(0, 0, Cause::FirstCommit), (0, 1, Cause::FirstCommit)]), at(70));
        let waiting = |cause, number, since, others| Waiting { cause, source: source(number), since, others };
        assert_eq!(
            held.by_lane(),
            BTreeMap::from([(LaneId(0), vec![waiting(Cause::FirstCommit, 1, start, 1)])])
        );
        // It went on, and is held back again.
        held.update(causes(&[(0, 0, Cause::FirstCommit)]), at(80));
        held.update(causes(&[(0, 0, Cause::FirstCommit), (0, 1, Cause::Offsets)]), at(90));
        assert_eq!(
            held.by_lane()[&LaneId(0)],
            [waiting(Cause::FirstCommit, 0, at(70), 0), waiting(Cause::Offsets, 1, at(90), 0)]
        );
        held.update(BTreeMap::new(), at(100));
        assert!(held.by_lane().is_empty());
    }

    #[test]
    fn a_partition_of_two_lanes_counts_once() {
        let mut held = HeldBack::default();
        let answer = Cause::Answer(LaneId(1));
        held.update(
            causes(&[(0, 0, answer), (1, 0, answer), (1, 1, answer), (0, 2, Cause::Offsets)]),
            Instant::now(),
        );
        assert_eq!(held.counts(), [1, 2, 0]);
        assert_eq!(held.by_lane()[&LaneId(1)][0].others, 1);
    }
}
