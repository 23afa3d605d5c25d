//! Who reads with the front of a partition, and who catches up (PROTOCOL §4). Pure.
//!
//! Sinks near the front share one reader. A sink, or a whole lane, that is more than a window behind would drag the
//! others back, or wait for ever: it has a reader of its own until it is within a batch of the front. Then the
//! front's reader is sent back to where it stands, and the sinks that have more pass over what they have: so that
//! nothing is missed and nothing comes twice whatever happened meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Offset, SinkSet};

/// Batches that a sink may be behind without reading by itself.
const WINDOW_BATCHES: usize = 4;

/// Who brings records to a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// The member of the group: it reads where the fastest are.
    Front,
    /// A consumer of the lane's own, for what is behind.
    CatchUp,
}

/// Where a lane's sinks stand in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    /// What each sink has accepted.
    pub accepted: Vec<Offset>,
    /// Its sinks of dead letters. None of the others moves past a bad record that is nowhere, so they cannot be
    /// left behind alone.
    pub letters: SinkSet,
    /// Records in a batch of this lane.
    pub rows_max: usize,
    /// Nothing is read for these: their route goes on without them.
    pub away: SinkSet,
    /// These were away a moment ago, and read by themselves however near they are: the front is not sent back for a sink
    /// that may fail again at once.
    pub beside: SinkSet,
}

impl Stand {
    /// Where a reader of these sinks begins; `None` if there is none of them.
    pub fn lowest(&self, sinks: SinkSet) -> Option<Offset> {
        self.of(sinks).min()
    }

    /// The front, or the lane's part in it, as far as these sinks have come.
    fn highest(&self, sinks: SinkSet) -> Option<Offset> {
        self.of(sinks).max()
    }

    fn of(&self, sinks: SinkSet) -> impl Iterator<Item = Offset> + '_ {
        let each = self.accepted.iter().enumerate();
        let is_of = move |sink: usize| sinks.contains(sink) && !self.away.contains(sink);
        each.filter(move |(sink, _)| is_of(*sink)).map(|(_, accepted)| *accepted)
    }

    /// Is `at` more than so many batches behind `front`? Offsets stand for records: there are never more.
    fn is_behind(&self, at: Offset, front: Offset, batches: usize) -> bool {
        let records = i64::try_from(self.rows_max.saturating_mul(batches)).unwrap_or(i64::MAX);
        at.get().saturating_add(records) < front.get()
    }

    /// The sinks that are too far behind their siblings to keep step with them, or read by themselves anyway.
    fn stragglers(&self) -> SinkSet {
        let near = SinkSet::ALL.minus(self.beside);
        let Some(front) = self.lowest(self.letters).or_else(|| self.highest(near)) else {
            return SinkSet::EMPTY;
        };
        let is_behind = |(sink, at): &(usize, &Offset)| {
            self.beside.contains(*sink) || self.is_behind(**at, front, WINDOW_BATCHES)
        };
        let each = self.accepted.iter().enumerate().filter(|(sink, _)| !self.letters.contains(*sink));
        each.filter(is_behind).map(|(sink, _)| sink).filter(|sink| !self.away.contains(*sink)).collect()
    }

    /// The sinks that read by themselves, of which `known` did so far.
    pub fn apart(&self, known: SinkSet) -> SinkSet {
        self.beside.iter().fold(known, SinkSet::with).minus(self.away)
    }
}

/// Which sinks of each lane have to catch up in a partition: [`SinkSet::ALL`] for a whole lane that is behind the
/// others. At least one lane has none or not all.
pub fn split<K: Copy + Ord>(stands: &BTreeMap<K, Stand>) -> BTreeMap<K, SinkSet> {
    let stragglers: BTreeMap<K, SinkSet> =
        stands.iter().map(|(lane, stand)| (*lane, stand.stragglers())).collect();
    let begins = |lane: &K, stand: &Stand| stand.lowest(SinkSet::ALL.minus(stragglers[lane]));
    let front = stands.iter().filter_map(|(lane, stand)| begins(lane, stand)).max();
    let each = stands.iter().map(|(lane, stand)| {
        let is_whole = begins(lane, stand)
            .zip(front)
            .is_some_and(|(begin, front)| stand.is_behind(begin, front, WINDOW_BATCHES));
        (*lane, if is_whole { SinkSet::ALL } else { stragglers[lane] })
    });
    each.collect()
}

/// The lanes whose sinks have caught up in a partition: those within a batch of the front. Each lane comes with the
/// sinks of it that catch up. If nobody is at the front, those that are furthest are the front.
pub fn near<K: Copy + Ord>(lanes: &BTreeMap<K, (Stand, SinkSet)>) -> BTreeSet<K> {
    let front = lanes.values().filter_map(|(stand, apart)| stand.highest(SinkSet::ALL.minus(*apart))).max();
    let furthest = || lanes.values().filter_map(|(stand, apart)| stand.lowest(*apart)).max();
    let Some(front) = front.or_else(furthest) else {
        return BTreeSet::new();
    };
    let is_near = |stand: &Stand, apart: SinkSet| {
        let lowest = stand.lowest(apart.minus(stand.beside));
        lowest.is_some_and(|lowest| !stand.is_behind(lowest, front, 1))
    };
    lanes.iter().filter(|(_, (stand, apart))| is_near(stand, *apart)).map(|(lane, _)| *lane).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand(accepted: &[i64]) -> Stand {
        let accepted = accepted.iter().map(|raw| Offset::new(*raw).unwrap()).collect();
        let none = SinkSet::EMPTY;
        Stand { accepted, letters: none, rows_max: 10, away: none, beside: none }
    }

    fn sinks(sinks: &[usize]) -> SinkSet {
        sinks.iter().copied().collect()
    }

    fn apart(stands: &[Stand]) -> Vec<SinkSet> {
        split(&stands.iter().cloned().enumerate().collect()).into_values().collect()
    }

    #[test]
    fn a_sink_more_than_a_window_behind_its_siblings_reads_alone() {
        assert_eq!(apart(&[stand(&[100, 60, 59, 100])]), [sinks(&[2])]);
        assert_eq!(apart(&[stand(&[5, 5])]), [SinkSet::EMPTY]);
        assert_eq!(apart(&[stand(&[0])]), [SinkSet::EMPTY]);
    }

    #[test]
    fn dead_letters_are_never_left_behind_alone() {
        let mut lane = stand(&[100, 0, 20]);
        lane.letters = sinks(&[2]);
        assert_eq!(apart(&[lane.clone()]), [SinkSet::EMPTY]);
        lane.accepted[2] = Offset::new(90).unwrap();
        assert_eq!(apart(&[lane.clone()]), [sinks(&[1])]);
        // Nor does the lane hold up another one.
        lane.accepted[2] = Offset::new(20).unwrap();
        assert_eq!(apart(&[lane, stand(&[100])]), [SinkSet::ALL, SinkSet::EMPTY]);
    }

    /// Where one that is away stands moves nobody; one that comes back reads by itself, and leads nowhere either.
    #[test]
    fn sinks_that_are_away_or_come_back_hold_nobody_back() {
        let mut lane = stand(&[100, 0]);
        lane.away = sinks(&[1]);
        assert_eq!(apart(&[lane.clone()]), [SinkSet::EMPTY]);
        assert_eq!(
            (lane.lowest(SinkSet::ALL), lane.apart(sinks(&[1]))),
            (lane.lowest(sinks(&[0])), SinkSet::EMPTY)
        );
        (lane.away, lane.beside) = (SinkSet::EMPTY, sinks(&[1]));
        for stood in [0, 99, 500] {
            lane.accepted[1] = Offset::new(stood).unwrap();
            assert_eq!(apart(&[lane.clone()]), [sinks(&[1])]);
            assert_eq!(lane.apart(SinkSet::EMPTY), sinks(&[1]));
            assert!(near(&BTreeMap::from([(0, (lane.clone(), sinks(&[1])))])).is_empty());
        }
        lane.accepted[1] = Offset::new(95).unwrap();
        lane.beside = SinkSet::EMPTY;
        assert_eq!(near(&BTreeMap::from([(0, (lane, sinks(&[1])))])), BTreeSet::from([0]));
    }

    #[test]
    fn a_lane_behind_the_others_reads_alone_and_some_lane_is_the_front() {
        let lanes = [stand(&[1000, 20]), stand(&[950]), stand(&[990])];
        assert_eq!(apart(&lanes), [sinks(&[1]), SinkSet::ALL, SinkSet::EMPTY]);
        assert_eq!(apart(&[stand(&[960]), stand(&[1000])]), [SinkSet::EMPTY, SinkSet::EMPTY]);
    }

    #[test]
    fn who_is_within_a_batch_of_the_front_joins() {
        let near = |lanes: &[(Stand, SinkSet)]| -> Vec<usize> {
            near(&lanes.iter().cloned().enumerate().collect()).into_iter().collect()
        };
        let front = (stand(&[100]), SinkSet::EMPTY);
        assert_eq!(near(&[front.clone(), (stand(&[89]), SinkSet::ALL)]), Vec::<usize>::new());
        assert_eq!(near(&[front.clone(), (stand(&[90]), SinkSet::ALL)]), [1]);
        assert_eq!(near(&[(stand(&[100, 95, 50]), sinks(&[1]))]), [0]);
        assert_eq!(near(&[(stand(&[100, 95, 50]), sinks(&[1, 2]))]), Vec::<usize>::new());
        // It went past the front.
        assert_eq!(near(&[front, (stand(&[300]), SinkSet::ALL)]), [1]);
        // Nobody else is left.
        let both = [(stand(&[10]), SinkSet::ALL), (stand(&[70]), SinkSet::ALL)];
        assert_eq!(near(&both), [1]);
    }

    /// Whoever joins is not split off again at once, and nobody who is split off would join at once.
    #[test]
    fn joining_and_splitting_do_not_alternate() {
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let stands: BTreeMap<usize, Stand> = (0..random.usize(1..4))
                .map(|lane| {
                    let accepted: Vec<i64> = (0..random.usize(1..4)).map(|_| random.i64(0..120)).collect();
                    (lane, stand(&accepted))
                })
                .collect();
            let apart = split(&stands);
            assert!(apart.values().any(|sinks| *sinks != SinkSet::ALL), "seed {seed}");
            let lanes: BTreeMap<usize, (Stand, SinkSet)> =
                stands.iter().map(|(lane, stand)| (*lane, (stand.clone(), apart[lane]))).collect();
            let joining = near(&lanes);
            assert!(joining.is_empty(), "seed {seed}: {lanes:?}: {joining:?}");
        }
    }
}
