//! What sinks have made durable, and the checks that every step of it has to pass.

use std::collections::{BTreeMap, BTreeSet};

use sidestream::model::{Conflict, Move, Offset, PositionKey, Positions, Reason};

use super::Flaw;
use super::cluster::Cluster;

/// A row is the record it came from.
pub type Row = (PositionKey, i64);

/// Which records a sink is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    Good,
    /// Those that cannot be decoded.
    Letters,
    All,
}

pub fn is_bad(offset: i64) -> bool {
    offset % 5 == 3
}

impl Feed {
    pub fn wants(self, offset: i64) -> bool {
        match self {
            Self::Good => !is_bad(offset),
            Self::Letters => is_bad(offset),
            Self::All => true,
        }
    }
}

/// A target with a store of its own: rows and positions change together or not at all.
pub struct Target {
    feed: Feed,
    pub positions: Positions,
    rows: BTreeMap<PositionKey, Vec<i64>>,
    /// All moves, by the position they started from.
    history: BTreeMap<PositionKey, Vec<Move>>,
}

impl Target {
    pub fn new(feed: Feed) -> Self {
        Self { feed, positions: Positions::default(), rows: BTreeMap::new(), history: BTreeMap::new() }
    }

    /// Takes rows and moves if every move starts where its position stands.
    pub fn apply(
        &mut self,
        moves: &[Move],
        rows: &[Row],
        cluster: &Cluster,
        flaw: Option<Flaw>,
    ) -> Result<(), Conflict> {
        if flaw == Some(Flaw::TargetsDoNotCompare) {
            for step in moves {
                self.positions.restore(step.key, step.topic.clone(), step.end);
            }
        } else {
            let before = self.positions.clone();
            self.positions.apply(moves)?;
            for step in moves {
                self.check_step(step, &before, cluster);
            }
        }
        for (key, offset) in rows {
            let known = self.rows.entry(*key).or_default();
            assert!(
                known.last().is_none_or(|last| last < offset),
                "row {offset} of {key:?} is doubled or out of order: {known:?}"
            );
            known.push(*offset);
        }
        for step in moves {
            self.check_rows(step, cluster);
        }
        Ok(())
    }

    /// The chain, held apart from the positions that the code under test folds.
    fn check_step(&mut self, step: &Move, before: &Positions, cluster: &Cluster) {
        let history = self.history.entry(step.key).or_default();
        let stands = history.last().map(|last| last.end.next);
        assert_eq!(stands, step.start, "the chain of {:?} is broken", step.key);
        let log = cluster.log(&step.key);
        match &step.reason {
            Reason::Start { .. } if step.start.is_none() => {
                // What was there before anybody looked begins as the route says.
                let topic_id = step.key.topic_id;
                let was_known = before.knows(topic_id) || before.former_id(&step.topic, topic_id).is_some();
                let is_whole = was_known && cluster.whole.contains(&step.key);
                let start = step.end.next.get();
                assert!(!is_whole || start <= log.first, "{:?} begins at {start}, not whole", step.key);
            }
            Reason::Lost => assert!(step.end.next.get() <= log.first, "{step:?} skips what is there"),
            Reason::Data | Reason::Idle => {
                let end = step.end.next.get();
                assert!(step.start.is_some_and(|start| start.get() < end) && end <= log.end());
                let count = log.records(step.start.unwrap().get(), end).count() as u64;
                assert_eq!(step.records, count, "{step:?} is over records that were not read");
            }
            _ => {}
        }
        let epoch = self.positions.get(&step.key).and_then(|position| position.epoch);
        let epoch_before = before.get(&step.key).and_then(|position| position.epoch);
        assert!(epoch.is_some() || epoch_before.is_none(), "the epoch of {:?} is forgotten", step.key);
        assert!(epoch.is_none_or(|epoch| epoch.0 <= log.epoch), "an epoch that never was");
        // Of the last record before the position, or of a later one that came with it.
        let start = step.start.unwrap_or(step.end.next);
        let last = log.records(start.get(), step.end.next.get()).last();
        let is_data = step.reason == Reason::Data;
        assert!(!is_data || step.end.epoch.map(|epoch| epoch.0) >= last.map(|(_, epoch)| epoch));
        history.push(step.clone());
    }

    /// The rows of a range are all there as soon as the position has passed it.
    fn check_rows(&self, step: &Move, cluster: &Cluster) {
        let (Some(start), Reason::Data | Reason::Idle) = (step.start, &step.reason) else {
            return;
        };
        let records = cluster.log(&step.key).records(start.get(), step.end.next.get());
        let wanted: Vec<i64> =
            records.map(|(offset, _)| offset).filter(|offset| self.feed.wants(*offset)).collect();
        let rows = self.rows.get(&step.key).map_or(&[][..], Vec::as_slice);
        let from = rows.partition_point(|offset| *offset < start.get());
        let to = rows.partition_point(|offset| *offset < step.end.next.get());
        assert_eq!(rows[from..to], wanted, "rows of {step:?}");
    }

    pub fn next(&self, key: &PositionKey) -> Option<Offset> {
        self.positions.get(key).map(|position| position.next)
    }

    /// At the end: exactly the records from the first sight on, but for what was lost.
    pub fn audit(&self, key: &PositionKey, cluster: &Cluster) {
        let history = self.history.get(key).map_or(&[][..], Vec::as_slice);
        let begin = history.first().map_or(0, |first| first.end.next.get());
        let is_lost = |offset: i64| {
            let mut lost = history.iter().filter(|step| step.reason == Reason::Lost);
            lost.any(|step| {
                step.start.is_some_and(|start| start.get() <= offset) && offset < step.end.next.get()
            })
        };
        let end = self.next(key).map_or(0, Offset::get);
        let expected: Vec<i64> = cluster
            .log(key)
            .records(begin, end)
            .map(|(offset, _)| offset)
            .filter(|offset| self.feed.wants(*offset) && !is_lost(*offset))
            .collect();
        let rows = self.rows.get(key).cloned().unwrap_or_default();
        assert_eq!(rows, expected, "lost or doubled rows in {key:?}");
    }
}

/// A target without a store: rows may come twice, and must come once.
#[derive(Default)]
pub struct Delivered {
    rows: BTreeMap<PositionKey, BTreeSet<i64>>,
    /// Where reading was promised to begin: the standing at the first assignment there ever was.
    promised: BTreeMap<PositionKey, i64>,
    lost: BTreeMap<PositionKey, Vec<(i64, i64)>>,
    /// Up to here everything was found to be there.
    checked: BTreeMap<PositionKey, i64>,
}

impl Delivered {
    pub fn promise(&mut self, key: PositionKey, from: Offset) {
        let from = from.get();
        self.promised.entry(key).or_insert(from);
    }

    pub fn take(&mut self, rows: &[Row]) {
        for (key, offset) in rows {
            self.rows.entry(*key).or_default().insert(*offset);
        }
    }

    pub fn lose(&mut self, step: &Move, cluster: &Cluster) {
        let end = step.end.next.get();
        assert!(end <= cluster.log(&step.key).first, "{step:?} skips what is there");
        let start = step.start.map_or(0, Offset::get);
        self.lost.entry(step.key).or_default().push((start, end));
    }

    /// Nothing below `next` is missing.
    pub fn check(&mut self, key: &PositionKey, next: i64, cluster: &Cluster) {
        let Some(promised) = self.promised.get(key) else {
            return;
        };
        let checked = self.checked.entry(*key).or_insert(*promised);
        let rows = self.rows.get(key);
        let lost = self.lost.get(key).map_or(&[][..], Vec::as_slice);
        for (offset, _) in cluster.log(key).records(*checked, next) {
            let is_there = rows.is_some_and(|rows| rows.contains(&offset));
            let is_lost = lost.iter().any(|(start, end)| (*start..*end).contains(&offset));
            assert!(is_there || is_lost, "{offset} of {key:?} is nowhere, and {next} is committed");
        }
        *checked = (*checked).max(next);
    }
}
