//! Where the records of a lane are. Pure.
//!
//! A record that was read is held (in a buffer, in a batch), or accepted by all sinks of the lane and not durable in all
//! of them yet, or settled. What is none of these was let go, and is abandoned: it is read again, or all sinks had it
//! before. So `read = settled + bad + dropped + abandoned + in flight` at any moment, and each record of a topic is
//! settled, bad or dropped once, however often it was read.
//!
//! With sinks that are behind, a record is read for each set of sinks that wants it, and counts where the last of them
//! takes it: at the front it is abandoned as soon as the sinks there have it, and in flight again when it is read for
//! those that catch up. One whole count for both readers needs no more than that, wherever they pass each other.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{Offset, PositionKey};
use crate::status::Counts;

/// Ranges of one partition that are kept apart. Sinks of one lane that flush at very different times would leave
/// thousands between them; beyond this the oldest two are put together. A cut within one, which follows only if a sink
/// is thrown back behind what all its siblings hold, then shares its records out by offsets.
const RANGES_MAX: usize = 64;

/// What became of the records of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub rows: u64,
    pub dropped: u64,
    pub bad: BTreeMap<&'static str, u64>,
}

impl Outcome {
    fn records(&self) -> u64 {
        self.rows + self.dropped + self.bad.values().sum::<u64>()
    }

    fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.dropped += other.dropped;
        for (code, count) in other.bad {
            *self.bad.entry(code).or_default() += count;
        }
    }

    /// Takes a part of `of` parts away.
    fn take_share(&mut self, part: u64, of: u64) -> Self {
        let share = |count: &mut u64| {
            let taken = u128::from(*count) * u128::from(part) / u128::from(of.max(1));
            let taken = u64::try_from(taken).unwrap_or(*count);
            *count -= taken;
            taken
        };
        Self {
            rows: share(&mut self.rows),
            dropped: share(&mut self.dropped),
            bad: self.bad.iter_mut().map(|(code, count)| (*code, share(count))).collect(),
        }
    }
}

#[derive(Debug)]
struct Range {
    start: Offset,
    end: Offset,
    outcome: Outcome,
    /// Of several: it ends behind what is settled for as long as more come in, so it gives up its share.
    is_merged: bool,
}

/// The records of one lane.
#[derive(Debug, Default)]
pub struct Tally {
    read: u64,
    bytes: u64,
    decoded: u64,
    settled: Outcome,
    /// Accepted by all sinks of the lane, and not durable in all of them.
    pending: BTreeMap<PositionKey, VecDeque<Range>>,
}

impl Tally {
    /// Records were taken into the buffer.
    pub fn read(&mut self, records: usize, bytes: usize) {
        self.read += records as u64;
        self.bytes += bytes as u64;
    }

    /// Rows were made of records.
    pub fn decoded(&mut self, rows: usize) {
        self.decoded += rows as u64;
    }

    /// All sinks have taken a range: the last of them just now.
    pub fn accepted(&mut self, key: PositionKey, start: Offset, end: Offset, outcome: Outcome) {
        let ranges = self.pending.entry(key).or_default();
        ranges.push_back(Range { start, end, outcome, is_merged: false });
        if ranges.len() > RANGES_MAX
            && let (Some(mut first), Some(second)) = (ranges.pop_front(), ranges.pop_front())
        {
            first.start = first.start.min(second.start);
            first.end = first.end.max(second.end);
            first.outcome.add(second.outcome);
            first.is_merged = true;
            ranges.push_front(first);
        }
    }

    /// All sinks have everything before `next` durable.
    pub fn settle(&mut self, key: &PositionKey, next: Offset) {
        let Some(ranges) = self.pending.get_mut(key) else {
            return;
        };
        // A range that is read again for one sink alone may stand behind one that ends later.
        let mut left = VecDeque::new();
        for mut range in ranges.drain(..) {
            if range.end <= next {
                self.settled.add(range.outcome);
                continue;
            }
            if range.is_merged && range.start < next {
                let (done, whole) = (next.get() - range.start.get(), range.end.get() - range.start.get());
                let share = range.outcome.take_share(done.unsigned_abs(), whole.unsigned_abs());
                self.settled.add(share);
                range.start = next;
            }
            left.push_back(range);
        }
        *ranges = left;
    }

    /// What comes from `next` on is read again.
    pub fn abandon(&mut self, key: &PositionKey, next: Offset) {
        let Some(ranges) = self.pending.get_mut(key) else {
            return;
        };
        ranges.retain_mut(|range| {
            if range.end > next && range.start < next {
                let (kept, whole) = (next.get() - range.start.get(), range.end.get() - range.start.get());
                range.outcome = range.outcome.take_share(kept.unsigned_abs(), whole.unsigned_abs());
                range.end = next;
            }
            range.end <= next
        });
    }

    /// A partition went, or the lane has stopped for all of them (`None`).
    pub fn forget(&mut self, key: Option<&PositionKey>) {
        match key {
            Some(key) => {
                self.pending.remove(key);
            }
            None => self.pending.clear(),
        }
    }

    fn pending(&self) -> u64 {
        self.pending.values().flatten().map(|range| range.outcome.records()).sum()
    }

    /// The counts now, with `held` records in buffers and batches.
    pub fn counts(&self, held: usize) -> Counts {
        let in_flight = self.pending() + held as u64;
        let known = self.settled.records() + in_flight;
        debug_assert!(self.read >= known, "{} were read, {known} are known", self.read);
        Counts {
            read: self.read,
            bytes: self.bytes,
            decoded: self.decoded,
            settled: self.settled.rows,
            bad: self.settled.bad.clone(),
            dropped: self.settled.dropped,
            abandoned: self.read.saturating_sub(known),
            in_flight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Partition, TopicId};

    fn key(partition: i32) -> PositionKey {
        PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(1)), partition: Partition(partition) }
    }

    fn at(raw: u64) -> Offset {
        Offset::new(i64::try_from(raw).unwrap()).unwrap()
    }

    fn rows(rows: u64) -> Outcome {
        Outcome { rows, ..Outcome::default() }
    }

    /// settled, bad, dropped, abandoned, in flight.
    #[track_caller]
    fn shape(tally: &Tally, held: usize) -> [u64; 5] {
        let counts = tally.counts(held);
        let shape = [counts.settled, counts.bad_total(), counts.dropped, counts.abandoned, counts.in_flight];
        assert_eq!(counts.read, shape.iter().sum::<u64>());
        shape
    }

    #[test]
    fn records_are_settled_once_all_sinks_have_them() {
        let mut tally = Tally::default();
        tally.read(10, 100);
        assert_eq!(shape(&tally, 10), [0, 0, 0, 0, 10]);
        let outcome = Outcome { rows: 5, dropped: 2, bad: BTreeMap::from([("framing", 1)]) };
        tally.accepted(key(0), at(0), at(8), outcome);
        assert_eq!(shape(&tally, 2), [0, 0, 0, 0, 10]);
        tally.settle(&key(0), at(7));
        assert_eq!(shape(&tally, 2), [0, 0, 0, 0, 10]);
        tally.settle(&key(0), at(8));
        assert_eq!(shape(&tally, 2), [5, 1, 2, 0, 2]);
        // The buffer was dropped.
        assert_eq!(shape(&tally, 0), [5, 1, 2, 2, 0]);
    }

    #[test]
    fn what_is_read_again_is_abandoned_and_settled_once() {
        let mut tally = Tally::default();
        tally.read(20, 0);
        tally.accepted(key(0), at(0), at(10), rows(10));
        tally.accepted(key(0), at(10), at(20), rows(10));
        // One sink has lost what comes after 10; another has made nothing durable.
        tally.abandon(&key(0), at(10));
        assert_eq!(shape(&tally, 0), [0, 0, 0, 10, 10]);
        tally.read(10, 0);
        tally.accepted(key(0), at(10), at(20), rows(10));
        tally.settle(&key(0), at(20));
        assert_eq!(shape(&tally, 0), [20, 0, 0, 10, 0]);
        tally.read(5, 0);
        tally.accepted(key(1), at(0), at(5), rows(5));
        tally.forget(Some(&key(1)));
        assert_eq!(shape(&tally, 0), [20, 0, 0, 15, 0]);
    }

    #[test]
    fn many_ranges_stay_few_and_a_cut_within_one_shares_out() {
        let mut tally = Tally::default();
        let count = RANGES_MAX as u64 * 10;
        for number in 0..count {
            tally.read(3, 0);
            let outcome = Outcome { rows: 2, dropped: 0, bad: BTreeMap::from([("framing", 1)]) };
            tally.accepted(key(0), at(number * 3), at(number * 3 + 3), outcome);
        }
        assert_eq!(tally.pending[&key(0)].len(), RANGES_MAX);
        // Half of the oldest range, which holds nearly all.
        let oldest = count - RANGES_MAX as u64 + 1;
        tally.abandon(&key(0), at(oldest * 3 / 2));
        let [.., abandoned, in_flight] = shape(&tally, 0);
        assert_eq!(abandoned + in_flight, count * 3);
        assert!(in_flight.abs_diff(oldest * 3 / 2) <= 2, "{in_flight}");
        tally.settle(&key(0), at(oldest * 3 / 2));
        assert_eq!(shape(&tally, 0)[4], 0);
    }

    /// Two sinks that become durable in turns, each of many batches: what both have is settled all the same.
    #[test]
    fn sinks_out_of_step_settle_what_both_have() {
        let mut tally = Tally::default();
        let (mut one, mut two) = (0, 0);
        for batch in 0..10_000_u64 {
            tally.read(1, 1);
            tally.accepted(key(0), at(batch), at(batch + 1), rows(1));
            if batch % 300 == 0 {
                one = batch + 1;
            }
            if batch % 300 == 150 {
                two = batch + 1;
            }
            tally.settle(&key(0), at(one.min(two)));
            let [settled, .., in_flight] = shape(&tally, 0);
            assert_eq!((settled, in_flight), (one.min(two), batch + 1 - one.min(two)));
        }
    }
}
