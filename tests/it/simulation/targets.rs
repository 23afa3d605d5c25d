//! What sinks have made durable, and the checks that every step of it has to pass.

use std::collections::{BTreeMap, BTreeSet};

use sidestream::model::{Move, Offset, Position, PositionKey, Positions, Reason, TopicPartition};

use super::Flaw;
use super::cluster::{Cluster, Log};
use super::lane::Setback;

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

/// Ranges of a partition that need not be there.
type Ranges = Vec<(i64, i64)>;

/// Forgets what lies at and behind an offset to which a position was led back: all of that is wanted once more.
fn cut(ranges: &mut Ranges, from: i64) {
    ranges.retain_mut(|(start, end)| {
        *end = from.min(*end);
        *start < *end
    });
}

fn is_within(ranges: &[(i64, i64)], offset: i64) -> bool {
    ranges.iter().any(|(start, end)| (*start..*end).contains(&offset))
}

/// A target with a store of its own: rows and positions change together or not at all.
pub struct Target {
    feed: Feed,
    pub positions: Positions,
    /// Where a position was led back, those behind it begin again: what was there before counts no more.
    rows: BTreeMap<PositionKey, Vec<i64>>,
    /// All moves, by the position they started from.
    history: BTreeMap<PositionKey, Vec<Move>>,
    /// Where each partition begins.
    begins: BTreeMap<PositionKey, i64>,
    /// What was lost, or passed over by an operator.
    skipped: BTreeMap<PositionKey, Ranges>,
    /// Partitions that have no position here, and in which an operator has moved siblings: it begins beside them.
    beside: BTreeSet<PositionKey>,
    /// Who writes there.
    owner: u64,
    /// What the one before had, if nobody looks at who commits.
    former: Option<Positions>,
}

impl Target {
    pub fn new(feed: Feed) -> Self {
        Self {
            feed,
            positions: Positions::default(),
            rows: BTreeMap::new(),
            history: BTreeMap::new(),
            begins: BTreeMap::new(),
            skipped: BTreeMap::new(),
            beside: BTreeSet::new(),
            owner: 0,
            former: None,
        }
    }

    /// Where `owner` stands. A later one adopts what the one before has, which then can write no more.
    pub fn open(&mut self, owner: u64, flaw: Option<Flaw>) -> Result<Positions, Setback> {
        if owner > self.owner {
            self.owner = owner;
            self.former = (flaw == Some(Flaw::AdoptionCopies)).then(|| self.positions.clone());
        }
        self.positions_of(owner)
    }

    pub fn positions_of(&self, owner: u64) -> Result<Positions, Setback> {
        if owner == self.owner {
            Ok(self.positions.clone())
        } else {
            self.former.clone().ok_or(Setback::Stops)
        }
    }

    /// Takes rows and moves of `owner` if every move starts where its position stands.
    pub fn apply(
        &mut self,
        owner: u64,
        (moves, rows): (&[Move], &[Row]),
        cluster: &Cluster,
        flaw: Option<Flaw>,
    ) -> Result<(), Setback> {
        if owner != self.owner {
            let former = self.former.as_mut().ok_or(Setback::Stops)?;
            former.apply(moves).map_err(|_| Setback::Passes)?;
            self.take(rows);
            return Ok(());
        }
        if flaw == Some(Flaw::TargetsDoNotCompare) {
            for step in moves {
                self.positions.restore(step.key, step.topic.clone(), step.end);
            }
        } else {
            let before = self.positions.clone();
            self.positions.apply(moves).map_err(|_| Setback::Passes)?;
            for step in moves {
                self.check_step(step, &before, cluster);
                self.turn(step);
            }
        }
        self.take(rows);
        for step in moves {
            self.check_rows(step, cluster);
        }
        Ok(())
    }

    /// Moves a position, as an operator does.
    pub fn reset(&mut self, source: &TopicPartition, key: PositionKey, to: Offset, cluster: &Cluster) {
        let Some(from) = self.next(&key).filter(|from| *from != to) else {
            return;
        };
        let step = Move {
            key,
            topic: source.topic.clone(),
            start: Some(from),
            end: Position { next: to, epoch: None },
            reason: Reason::Reset,
            records: 0,
        };
        let moved = self.apply(self.owner, (&[step], &[]), cluster, None);
        assert_eq!(moved, Ok(()), "nobody else moves positions meanwhile");
    }

    /// An operator moves sinks of its route in a partition.
    pub fn follow(&mut self, key: PositionKey) {
        if self.next(&key).is_none() {
            self.beside.insert(key);
        }
    }

    fn take(&mut self, rows: &[Row]) {
        for (key, offset) in rows {
            let known = self.rows.entry(*key).or_default();
            assert!(
                known.last().is_none_or(|last| last < offset),
                "row {offset} of {key:?} is doubled or out of order: {known:?}"
            );
            known.push(*offset);
        }
    }

    /// Takes in from where on rows are wanted once, now that a position was moved without records.
    fn turn(&mut self, step: &Move) {
        let to = step.end.next.get();
        let begin = self.begins.entry(step.key).or_insert(to);
        *begin = to.min(*begin);
        let skipped = self.skipped.entry(step.key).or_default();
        match step.start.map(Offset::get) {
            Some(from) if to < from => {
                cut(skipped, to);
                if let Some(rows) = self.rows.get_mut(&step.key) {
                    rows.retain(|offset| *offset < to);
                }
            }
            Some(from) if matches!(step.reason, Reason::Lost | Reason::Reset) => skipped.push((from, to)),
            _ => {}
        }
    }

    /// The chain, held apart from the positions that the code under test folds.
    fn check_step(&mut self, step: &Move, before: &Positions, cluster: &Cluster) {
        let history = self.history.entry(step.key).or_default();
        let stands = history.last().map(|last| last.end.next);
        assert_eq!(stands, step.start, "the chain of {:?} is broken", step.key);
        let log = cluster.log(&step.key);
        match &step.reason {
            Reason::Start { .. } if step.start.is_none() => {
                // What was there before anybody looked begins as the route says, and beside siblings that were moved what
                // had no position.
                let topic_id = step.key.topic_id;
                let was_known = before.knows(topic_id) || before.former_id(&step.topic, topic_id).is_some();
                let is_beside = self.beside.contains(&step.key);
                let is_whole = was_known && !is_beside && cluster.whole.contains(&step.key);
                let start = step.end.next.get();
                assert!(!is_whole || start <= log.first, "{:?} begins at {start}, not whole", step.key);
            }
            Reason::Lost => check_lost(step, log),
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
        let is_forgotten = epoch.is_none() && epoch_before.is_some();
        assert!(!is_forgotten || step.reason == Reason::Reset, "the epoch of {:?} is forgotten", step.key);
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

    /// Is this record not wanted here: before where the partition begins, lost, or passed over by an operator?
    pub fn is_left_out(&self, key: &PositionKey, offset: i64) -> bool {
        let begin = self.begins.get(key).copied().unwrap_or_default();
        offset < begin || self.skipped.get(key).is_some_and(|skipped| is_within(skipped, offset))
    }

    /// At the end: exactly the records that are wanted.
    pub fn audit(&self, key: &PositionKey, cluster: &Cluster) {
        let end = self.next(key).map_or(0, Offset::get);
        let records = cluster.log(key).records(0, end).map(|(offset, _)| offset);
        let expected: Vec<i64> =
            records.filter(|offset| self.feed.wants(*offset) && !self.is_left_out(key, *offset)).collect();
        let rows = self.rows.get(key).cloned().unwrap_or_default();
        assert_eq!(rows, expected, "lost or doubled rows in {key:?}");
    }
}

/// Retention has passed what is lost, or the partition ended before it.
fn check_lost(step: &Move, log: &Log) {
    let end = step.end.next.get();
    let is_truncated = step.start.is_some_and(|start| start.get() > log.end()) && end == log.end();
    assert!(end <= log.first || is_truncated, "{step:?} skips what is there");
}

/// A target without a store: rows may come twice, and must come once.
#[derive(Default)]
pub struct Delivered {
    rows: BTreeMap<PositionKey, BTreeSet<i64>>,
    /// Where reading was promised to begin: the standing at the first assignment there ever was.
    promised: BTreeMap<PositionKey, i64>,
    /// What was lost, or passed over by an operator.
    skipped: BTreeMap<PositionKey, Ranges>,
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
        check_lost(step, cluster.log(&step.key));
        let start = step.start.map_or(0, Offset::get);
        self.skip(step.key, start, step.end.next.get());
    }

    /// Nothing of `[from, to)` need be there.
    pub fn skip(&mut self, key: PositionKey, from: i64, to: i64) {
        self.skipped.entry(key).or_default().push((from, to));
    }

    /// Everything from here on has to come, also what has come.
    pub fn begin_again(&mut self, key: &PositionKey, from: i64) {
        if let Some(rows) = self.rows.get_mut(key) {
            rows.retain(|offset| *offset < from);
        }
        if let Some(skipped) = self.skipped.get_mut(key) {
            cut(skipped, from);
        }
        for known in [&mut self.promised, &mut self.checked] {
            if let Some(known) = known.get_mut(key) {
                *known = from.min(*known);
            }
        }
    }

    /// Nothing below `next` is missing.
    pub fn check(&mut self, key: &PositionKey, next: i64, cluster: &Cluster) {
        let Some(promised) = self.promised.get(key) else {
            return;
        };
        let checked = self.checked.entry(*key).or_insert(*promised);
        let rows = self.rows.get(key);
        let skipped = self.skipped.get(key).map_or(&[][..], Vec::as_slice);
        for (offset, _) in cluster.log(key).records(*checked, next) {
            let is_there = rows.is_some_and(|rows| rows.contains(&offset));
            assert!(
                is_there || is_within(skipped, offset),
                "{offset} of {key:?} is nowhere, and {next} is committed"
            );
        }
        *checked = (*checked).max(next);
    }
}
