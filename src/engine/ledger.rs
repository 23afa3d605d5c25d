//! Where every sink of a lane stands in every partition. Pure.
//!
//! A sink has two offsets per partition: what it has **accepted** (written, perhaps only in memory) and
//! what is **durable** (its stored position). Invariants, asserted here and attacked by the simulation:
//!
//! - `durable <= accepted`, and both only grow, except when a sink's positions are read again;
//! - a sink accepts only ranges that begin exactly where it stands;
//! - what may be committed to the group is the minimum of the required sinks' durable offsets;
//! - of a partition, each sink is served by one reader: that of the front, or the one for what catches up;
//! - a sink that is away is served by none, and keeps its place.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Move, Offset, PositionKey, Positions, SinkSet};

use super::catching::Reader;

/// The sinks of one lane.
#[derive(Debug)]
pub struct Ledger {
    sink_count: usize,
    /// The others are those that their route goes on without.
    required: SinkSet,
    /// Of those, the ones that are given nothing now.
    away: SinkSet,
    partitions: BTreeMap<PositionKey, Vec<Standing>>,
    /// Sinks that catch up, by themselves; no entry where none does.
    apart: BTreeMap<PositionKey, SinkSet>,
}

#[derive(Debug, Clone, Copy)]
struct Standing {
    durable: Offset,
    accepted: Offset,
}

impl Ledger {
    pub fn new(sink_count: usize) -> Self {
        Self::of(sink_count, (0..sink_count).collect())
    }

    /// Of sinks that are not all required. One of them is.
    pub fn of(sink_count: usize, required: SinkSet) -> Self {
        assert!((1..=SinkSet::SINKS_MAX).contains(&sink_count) && !required.is_empty());
        let (partitions, apart) = (BTreeMap::new(), BTreeMap::new());
        Self { sink_count, required, away: SinkSet::EMPTY, partitions, apart }
    }

    /// The sinks that the others and the group wait for.
    pub fn required(&self) -> SinkSet {
        self.required
    }

    /// The sinks that nobody waits for.
    pub fn optional(&self) -> SinkSet {
        (0..self.sink_count).collect::<SinkSet>().minus(self.required)
    }

    /// The sinks that nothing is read for.
    pub fn away(&self) -> SinkSet {
        self.away
    }

    /// A sink that is not required is given nothing any more, or takes part again.
    pub fn set_away(&mut self, sink: usize, is_away: bool) {
        debug_assert!(!self.required.contains(sink), "nothing goes on without a sink that is required");
        let others = self.away.minus(SinkSet::EMPTY.with(sink));
        self.away = if is_away { others.with(sink) } else { others };
    }

    /// What a sink had accepted and not made durable is gone.
    pub fn throw_back(&mut self, sink: usize) {
        for standings in self.partitions.values_mut() {
            standings[sink].accepted = standings[sink].durable;
        }
    }

    /// A sink that was away stands here.
    pub fn stand(&mut self, sink: usize, key: &PositionKey, next: Offset) {
        if let Some(standings) = self.partitions.get_mut(key) {
            standings[sink] = Standing { durable: next, accepted: next };
        }
    }

    /// What a sink has durable of a partition.
    pub fn durable(&self, sink: usize, key: &PositionKey) -> Option<Offset> {
        Some(self.partitions.get(key)?.get(sink)?.durable)
    }

    /// Takes up a partition: `durable` holds the stored position of each sink, in their order.
    pub fn assign(&mut self, key: PositionKey, durable: &[Offset]) {
        assert_eq!(durable.len(), self.sink_count);
        let standings = durable.iter().map(|offset| Standing { durable: *offset, accepted: *offset });
        self.partitions.insert(key, standings.collect());
        self.apart.remove(&key);
    }

    pub fn revoke(&mut self, key: &PositionKey) {
        self.partitions.remove(key);
        self.apart.remove(key);
    }

    /// These sinks catch up in a partition, and no others. `true` if that is news.
    pub fn set_apart(&mut self, key: PositionKey, sinks: SinkSet) -> bool {
        if sinks.is_empty() {
            return self.apart.remove(&key).is_some();
        }
        self.apart.insert(key, sinks) != Some(sinks)
    }

    /// The sinks that catch up in a partition.
    pub fn apart(&self, key: &PositionKey) -> SinkSet {
        self.apart.get(key).copied().unwrap_or_default()
    }

    /// The sinks of a partition that a reader serves.
    pub fn served(&self, key: &PositionKey, reader: Reader) -> SinkSet {
        let all: SinkSet = (0..self.sink_count).collect();
        let front = all.minus(self.apart(key));
        let served = match reader {
            Reader::Front => front,
            Reader::CatchUp => all.minus(front),
        };
        served.minus(self.away)
    }

    /// What each sink has accepted.
    pub fn accepted(&self, key: &PositionKey) -> Option<Vec<Offset>> {
        let standings = self.partitions.get(key)?;
        Some(standings.iter().map(|standing| standing.accepted).collect())
    }

    /// Where the front's reader has to go on, for the sink of its that is furthest behind.
    pub fn resume_at(&self, key: &PositionKey) -> Option<Offset> {
        self.lowest(key, Reader::Front)
    }

    /// Where a reader has to go on, for the sink of its that is furthest behind.
    pub fn lowest(&self, key: &PositionKey, reader: Reader) -> Option<Offset> {
        let standings = self.partitions.get(key)?;
        self.served(key, reader).iter().map(|sink| standings[sink].accepted).min()
    }

    /// Which of the sinks that a reader serves want the offset `at`, and where that set changes.
    pub fn interest(&self, key: &PositionKey, reader: Reader, at: Offset) -> (SinkSet, Option<Offset>) {
        let Some(standings) = self.partitions.get(key) else {
            return (SinkSet::EMPTY, None);
        };
        let served = self.served(key, reader);
        let wanting = served.iter().filter(|sink| standings[*sink].accepted <= at).collect();
        let accepted = served.iter().map(|sink| standings[sink].accepted);
        (wanting, accepted.filter(|accepted| *accepted > at).min())
    }

    /// `sink` has taken these moves.
    pub fn accept(&mut self, sink: usize, moves: &[Move]) {
        for step in moves {
            let Some(standings) = self.partitions.get_mut(&step.key) else {
                continue;
            };
            let standing = &mut standings[sink];
            assert_eq!(Some(standing.accepted), step.start, "a batch must begin where its sink stands");
            standing.accepted = step.end.next;
        }
    }

    /// `sink` reports what is durable now.
    pub fn settle(&mut self, sink: usize, positions: &Positions) {
        for (key, standings) in &mut self.partitions {
            let Some(position) = positions.get(key) else {
                continue;
            };
            let standing = &mut standings[sink];
            standing.durable = standing.durable.max(position.next.min(standing.accepted));
        }
    }

    /// `sink` dropped what was not durable and its positions were read again. Returns the partitions
    /// where it now stands elsewhere than what it had accepted: their reading has to be restarted.
    pub fn reset(&mut self, sink: usize, positions: &Positions) -> Vec<PositionKey> {
        let mut moved = Vec::new();
        for (key, standings) in &mut self.partitions {
            let standing = &mut standings[sink];
            // A position that is gone is not "zero": the lane stops on it before it comes here.
            let Some(position) = positions.get(key) else {
                continue;
            };
            if position.next != standing.accepted {
                moved.push(*key);
            }
            *standing = Standing { durable: position.next, accepted: position.next };
        }
        moved
    }

    /// Has `sink` not taken everything that `other` has?
    pub fn is_behind(&self, sink: usize, other: usize) -> bool {
        self.partitions.values().any(|standings| standings[sink].accepted < standings[other].accepted)
    }

    /// Has `sink` accepted anything that is not durable?
    pub fn is_pending(&self, sink: usize) -> bool {
        self.partitions.values().any(|standings| standings[sink].accepted > standings[sink].durable)
    }

    /// Offsets at and above `from` up to which all required sinks have accepted everything: the last one is how far that
    /// goes, the others are where a sink on the way there is durable, and may be thrown back to. Nothing if one stands at
    /// `from` or below.
    pub fn complete(&self, key: &PositionKey, from: Offset) -> BTreeSet<Offset> {
        let Some(lowest) = self.accepted_by_required(key).filter(|lowest| *lowest > from) else {
            return BTreeSet::new();
        };
        let durable = self.of_required(key).map(|standing| standing.durable);
        durable.filter(|durable| *durable > from && *durable < lowest).chain([lowest]).collect()
    }

    /// What all required sinks have accepted, whoever serves them.
    pub fn accepted_by_required(&self, key: &PositionKey) -> Option<Offset> {
        self.of_required(key).map(|standing| standing.accepted).min()
    }

    fn of_required(&self, key: &PositionKey) -> impl Iterator<Item = &Standing> {
        let standings = self.partitions.get(key).into_iter().flatten().enumerate();
        standings.filter(move |(sink, _)| self.required.contains(*sink)).map(|(_, standing)| standing)
    }

    /// The minimum of the durable offsets of `required` sinks.
    pub fn committable(&self, key: &PositionKey, required: SinkSet) -> Option<Offset> {
        let standings = self.partitions.get(key)?;
        required.iter().map(|sink| standings[sink].durable).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Partition, Position, Reason, TopicId, TopicName};

    fn key() -> PositionKey {
        PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(1)), partition: Partition(0) }
    }

    fn at(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    fn step(start: i64, end: i64) -> Move {
        Move {
            key: key(),
            topic: TopicName::new("t"),
            start: Offset::new(start),
            end: Position { next: at(end), epoch: None },
            reason: Reason::Data,
            records: 0,
        }
    }

    #[test]
    fn sinks_behind_are_served_alone_until_they_catch_up() {
        let mut ledger = Ledger::new(3);
        ledger.assign(key(), &[at(10), at(30), at(10)]);
        assert_eq!(ledger.resume_at(&key()), Some(at(10)));
        let both = SinkSet::EMPTY.with(0).with(2);
        assert_eq!(ledger.interest(&key(), Reader::Front, at(10)), (both, Some(at(30))));
        assert_eq!(ledger.interest(&key(), Reader::Front, at(30)), (both.with(1), None));
        ledger.accept(0, &[step(10, 30)]);
        assert_eq!(ledger.committable(&key(), both), Some(at(10)));
    }

    #[test]
    fn a_sink_that_lost_its_rows_asks_for_them_again() {
        let mut ledger = Ledger::new(2);
        ledger.assign(key(), &[at(0), at(0)]);
        for sink in 0..2 {
            ledger.accept(sink, &[step(0, 20)]);
        }
        let mut stored = Positions::default();
        stored.restore(key(), TopicName::new("t"), step(0, 5).end);
        assert!(!ledger.is_behind(1, 0));
        assert_eq!(ledger.reset(1, &stored), [key()]);
        assert!(ledger.is_behind(1, 0) && !ledger.is_behind(0, 1));
        assert_eq!(ledger.interest(&key(), Reader::Front, at(5)), (SinkSet::EMPTY.with(1), Some(at(20))));
        assert!(ledger.is_pending(0) && !ledger.is_pending(1));
    }

    #[test]
    fn each_sink_is_served_by_one_reader() {
        let mut ledger = Ledger::new(3);
        ledger.assign(key(), &[at(10), at(90), at(80)]);
        assert!(ledger.set_apart(key(), SinkSet::EMPTY.with(0)));
        assert!(!ledger.set_apart(key(), SinkSet::EMPTY.with(0)));
        assert_eq!(ledger.resume_at(&key()), Some(at(80)));
        assert_eq!(ledger.lowest(&key(), Reader::CatchUp), Some(at(10)));
        // The one that catches up wants nothing of the front, even what is ahead of it; and the other way round.
        assert_eq!(ledger.interest(&key(), Reader::Front, at(80)), (SinkSet::EMPTY.with(2), Some(at(90))));
        assert_eq!(ledger.interest(&key(), Reader::CatchUp, at(95)), (SinkSet::EMPTY.with(0), None));
        assert!(ledger.set_apart(key(), SinkSet::ALL));
        assert_eq!(ledger.resume_at(&key()), None);
        assert_eq!(ledger.interest(&key(), Reader::Front, at(95)), (SinkSet::EMPTY, None));
        assert!(ledger.set_apart(key(), SinkSet::EMPTY));
        assert_eq!(ledger.resume_at(&key()), Some(at(10)));
        assert_eq!(ledger.lowest(&key(), Reader::CatchUp), None);
    }

    /// One that is away wants nothing, whoever reads; what counts and what is committed does not wait for it.
    #[test]
    fn nobody_waits_for_a_sink_that_is_away() {
        let mut ledger = Ledger::of(2, SinkSet::EMPTY.with(0));
        ledger.assign(key(), &[at(10), at(10)]);
        for sink in 0..2 {
            ledger.accept(sink, &[step(10, 20)]);
        }
        ledger.set_away(1, true);
        ledger.throw_back(1);
        assert!(!ledger.is_pending(1) && ledger.is_pending(0));
        assert_eq!(ledger.interest(&key(), Reader::Front, at(20)), (SinkSet::EMPTY.with(0), None));
        ledger.accept(0, &[step(20, 30)]);
        assert_eq!(ledger.complete(&key(), at(20)), BTreeSet::from([at(30)]));
        let mut stored = Positions::default();
        stored.restore(key(), TopicName::new("t"), step(10, 30).end);
        ledger.settle(0, &stored);
        assert_eq!(ledger.committable(&key(), ledger.required()), Some(at(30)));
        // It comes back to be read for beside the others.
        ledger.set_apart(key(), SinkSet::EMPTY.with(1));
        assert_eq!(ledger.lowest(&key(), Reader::CatchUp), None);
        ledger.set_away(1, false);
        ledger.stand(1, &key(), at(12));
        assert_eq!(ledger.lowest(&key(), Reader::CatchUp), Some(at(12)));
        assert_eq!(ledger.lowest(&key(), Reader::Front), Some(at(30)));
    }

    #[test]
    fn a_range_is_complete_once_the_last_sink_has_it() {
        let mut ledger = Ledger::new(2);
        ledger.assign(key(), &[at(10), at(10)]);
        assert!(ledger.set_apart(key(), SinkSet::EMPTY.with(0)));
        ledger.accept(1, &[step(10, 30)]);
        assert!(ledger.complete(&key(), at(10)).is_empty());
        let mut stored = Positions::default();
        stored.restore(key(), TopicName::new("t"), step(10, 20).end);
        ledger.settle(1, &stored);
        ledger.accept(0, &[step(10, 25)]);
        // The second sink may be thrown back to 20, which must not cut what is counted as one.
        assert_eq!(ledger.complete(&key(), at(10)), BTreeSet::from([at(20), at(25)]));
        assert_eq!(ledger.accepted_by_required(&key()), Some(at(25)));
    }
}
