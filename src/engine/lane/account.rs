//! What a lane tells of itself: counted per chunk, batch and flush, shown on its board.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::engine::batching::Taken;
use crate::engine::tally::{Outcome, Tally};
use crate::model::{Chunk, Fault, Offset, PositionKey, Positions, TopicPartition};
use crate::sink::Settled;
use crate::status::{LaneBoard, LaneStatus, LastBatch, SinkStatus, Stage, State as Shown, Trouble};

use super::{Lane, LaneSink, State};

/// Between two batches the board is written no more often than this: to count what is held takes a look at every chunk.
const SHOW_INTERVAL: Duration = Duration::from_millis(250);

/// Ranges of the last batch that are shown; a pattern may match thousands of topics.
const RANGES_SHOWN_MAX: usize = 100;

/// A lane's counts, and where they are shown.
pub struct Account {
    board: Arc<LaneBoard>,
    tally: Tally,
    status: LaneStatus,
    shown_at: Option<Instant>,
    /// Records in buffers then.
    shown_held: usize,
    is_news: bool,
}

impl Account {
    pub fn new(board: Arc<LaneBoard>, sinks: &[LaneSink]) -> Self {
        let status =
            |sink: &LaneSink| SinkStatus { is_required: sink.is_required, ..SinkStatus::new(&sink.name) };
        let sinks = sinks.iter().map(status).collect();
        let status = LaneStatus { sinks, ..LaneStatus::default() };
        Self { board, tally: Tally::default(), status, shown_at: None, shown_held: 0, is_news: true }
    }

    pub fn read(&mut self, chunk: &Chunk) {
        self.tally.read(chunk.record_count(), chunk.byte_count());
    }

    pub fn decoded(&mut self, rows: usize, took: Duration) {
        self.tally.decoded(rows);
        self.took(Stage::Decode, took);
    }

    pub fn took(&mut self, stage: Stage, took: Duration) {
        let stage = &mut self.status.stages[stage as usize];
        stage.all.observe(took);
        stage.last = took;
    }

    /// A call to write was answered.
    pub fn wrote(&mut self, sink: usize, took: Duration) {
        self.status.sinks[sink].write.observe(took);
    }

    pub fn flushed(&mut self, sink: usize, took: Duration, settled: Settled) {
        let status = &mut self.status.sinks[sink];
        status.flush.observe(took);
        status.last_flush = Some(Timestamp::now());
        (status.rows, status.bytes, status.files) = (settled.rows, settled.bytes, settled.files);
        self.took(Stage::Flush, took);
        self.is_news = true;
    }

    pub fn failed(&mut self, sink: usize, fault: Fault) {
        self.status.sinks[sink].failed(fault);
        // Nothing waits for one that is not required.
        if self.status.sinks[sink].is_required {
            self.status.waiting.failed();
        }
        self.is_news = true;
    }

    /// The route goes on without a sink, for a reason with a hint; `None`: it is back.
    pub fn away(&mut self, sink: usize, why: Option<(&str, Option<&str>)>) {
        self.status.sinks[sink].away = why.map(|(message, hint)| Trouble::now(message, hint));
        self.is_news = true;
    }

    /// A sink that nobody waits for goes on behind offsets that the brokers do not have any more.
    pub fn skipped(&mut self, sink: usize, offsets: u64) {
        self.status.sinks[sink].skipped += offsets;
        self.is_news = true;
    }

    /// Offsets that a sink is behind those that are waited for.
    pub fn owed(&self, sink: usize) -> u64 {
        self.status.sinks[sink].owed
    }

    /// A sink has gone on without a record that it refuses.
    pub fn let_go(&mut self, sink: usize) {
        self.status.sinks[sink].let_go += 1;
        self.is_news = true;
    }

    /// Keeps an error to be shown, whether or not it passes.
    pub fn trouble(&mut self, message: &str, hint: Option<&str>) {
        self.status.trouble = Some(Trouble::now(message, hint));
        self.is_news = true;
    }

    pub fn waits_for_schemas(&mut self, count: usize) {
        self.status.schemas_waiting = count;
        self.is_news = true;
    }

    /// The versions of subjects that are read as, and how many subjects have a newer one.
    pub fn reads_as(&mut self, versions: Arc<[String]>, newer_count: usize) {
        self.status.reader_schemas = versions;
        self.status.schemas_newer = newer_count;
        self.is_news = true;
    }

    pub fn schema_changed(&mut self) {
        self.status.schema_changes += 1;
    }

    /// All sinks of a batch have taken it, as so many rows.
    pub fn batch_taken(&mut self, taken: &Taken, rows: u64) {
        let ranges = taken.parts.iter().filter_map(|part| {
            let first = part.records().next()?;
            Some((first.source().clone(), part.start, part.end))
        });
        self.status.last_batch = Some(LastBatch {
            at: Timestamp::now(),
            records: taken.records().count() as u64,
            rows,
            ranges: ranges.take(RANGES_SHOWN_MAX).collect(),
        });
        self.status.batches += 1;
        self.is_news = true;
    }

    /// All sinks of the lane have taken a range.
    pub fn accepted(&mut self, key: PositionKey, start: Offset, end: Offset, outcome: Outcome) {
        self.tally.accepted(key, start, end, outcome);
    }

    pub fn settle(&mut self, key: &PositionKey, next: Offset) {
        self.tally.settle(key, next);
    }

    /// What comes from `next` on is read again.
    pub fn abandon(&mut self, key: &PositionKey, next: Offset) {
        self.tally.abandon(key, next);
        self.is_news = true;
    }

    /// A partition went; `None`: the lane has stopped.
    pub fn forget(&mut self, key: Option<&PositionKey>) {
        self.tally.forget(key);
        self.is_news = true;
    }

    fn is_due(&self, state: Shown, holds: bool, now: Instant) -> bool {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= SHOW_INTERVAL;
        // Records that no sink wants any more go without a word, and perhaps nothing comes after them.
        let is_empty = !holds && self.shown_held > 0;
        self.is_news || is_empty || state != self.status.state || self.shown_at.is_none_or(is_old)
    }

    fn show(&mut self, state: Shown, held: usize, is_held_back: bool, now: Instant) {
        let status = &mut self.status;
        let before = status.counts.done();
        status.counts = self.tally.counts(held);
        let is_waiting = status.counts.in_flight > 0 || is_held_back || state == Shown::Recovering;
        status.waiting.update(is_waiting, status.counts.done() > before, now);
        status.state = state;
        self.board.show(status.clone());
        (self.shown_at, self.shown_held, self.is_news) = (Some(now), held, false);
    }
}

impl Lane {
    /// Writes to the lane's board, if there is news or it is time. Never while a batch is at work, whose records are
    /// neither in the buffer nor with the sinks.
    pub(super) fn show(&mut self) {
        let now = Instant::now();
        let state = match self.state {
            State::Recovering { .. } => Shown::Recovering,
            // So it is while only what catches up has failed: the front goes on.
            State::Running if self.apart.is_some() => Shown::Recovering,
            // The engine tells that a lane has stopped.
            State::Running | State::Stopped => Shown::Running,
        };
        let holds = self.staged.is_some() || self.buffer.due().or_else(|| self.behind.due()).is_some();
        if !self.account.is_due(state, holds, now) {
            return;
        }
        if self.lookup.is_none() {
            self.account.waits_for_schemas(usize::from(self.evolving.is_awaited()));
        }
        let staged = self.staged.as_ref().map_or(0, |taken| taken.records().count());
        let held = self.buffer.left() + self.behind.left() + staged;
        self.account.show(state, held, !self.to_resume.is_empty(), now);
    }

    /// Counts what all sinks have durable now, and notes where each of them stands.
    pub(super) fn settle_account(&mut self) {
        let required = self.ledger.required();
        for key in self.keys.values() {
            if let Some(next) = self.ledger.committable(key, required) {
                self.account.settle(key, next);
            }
        }
        for sink in (0..self.parts.sinks.len()).filter(|sink| !required.contains(*sink)) {
            let owed = self.keys.values().filter_map(|key| {
                let (next, own) = (self.ledger.committable(key, required)?, self.ledger.durable(sink, key)?);
                u64::try_from(next.get() - own.get()).ok()
            });
            self.account.status.sinks[sink].owed = owed.sum();
        }
        let standing = |key: &PositionKey| {
            let sinks = self.stored.iter().enumerate();
            let next = |(sink, stored): (usize, &Positions)| {
                let stored = stored.get(key).map(|position| position.next);
                // Of one that could not say yet where it stands: where it begins if it was never here.
                stored.or_else(|| self.ledger.durable(sink, key).filter(|_| !required.contains(sink)))
            };
            sinks.map(next).collect::<Option<Vec<Offset>>>()
        };
        let partitions: BTreeMap<TopicPartition, Vec<Offset>> =
            self.keys.iter().filter_map(|(source, key)| Some((source.clone(), standing(key)?))).collect();
        self.account.status.partitions = Arc::new(partitions);
        self.account.is_news = true;
    }

    /// What sinks have lost is read again, by whichever reader.
    pub(super) fn abandon_account(&mut self) {
        for key in self.keys.values() {
            if let Some(next) = self.ledger.accepted_by_required(key) {
                self.account.abandon(key, next);
            }
        }
    }
}
