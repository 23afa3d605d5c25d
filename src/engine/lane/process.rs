//! From a taken batch to rows in sinks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow::error::ArrowError;
use tokio::task::block_in_place;
use tracing::warn;

use crate::config::plan::BadRecords;
use crate::engine::batching::Taken;
use crate::engine::chain;
use crate::failpoint;
use crate::handler::Traced;
use crate::model::{Classify, Fault, Move, Position, PositionKey, Reason, RecordRef, SinkSet, TopicName};

use super::evaluate::Evaluated;
use super::ready::{Bad, Ready, place_of};
use super::{Feed, Lane, LaneSink, State, changes};
use crate::sink::SinkError;
use crate::status::Stage;

impl Lane {
    /// Does what is due: recovery, batches, flushes.
    pub(super) async fn advance(&mut self) {
        if matches!(self.state, State::Recovering { .. }) {
            self.recover().await;
        }
        if !matches!(self.state, State::Running) {
            return self.flush_due().await;
        }
        self.recover_apart().await;
        if self.resume_retry.is_none_or(|(at, _)| at <= Instant::now()) {
            self.resume().await;
        }
        self.evolve().await;
        while matches!(self.state, State::Running) && !self.waits_for_schemas() {
            let Some(taken) = self.staged.take().or_else(|| self.next_batch()) else {
                break;
            };
            let missing = {
                let records: Vec<RecordRef<'_>> = taken.records().collect();
                self.parts.decoders.missing(&records)
            };
            if !missing.is_empty() {
                self.look_up(missing);
                self.staged = Some(taken);
                continue;
            }
            let newer = self.newer_in(&taken);
            if newer.is_empty() {
                self.process(taken).await;
            } else {
                self.stop_before(taken, newer).await;
            }
            if std::mem::take(&mut self.has_let_go) {
                // At once: after a crash the dead letter would be written again.
                self.flush_all().await;
            }
            self.flush_due().await;
            self.kept = None;
            self.show();
        }
        if matches!(self.state, State::Running) && self.lookup.is_none() && !self.failed.is_empty() {
            self.end_failed().await;
        }
        self.flush_due().await;
    }

    pub(super) async fn process(&mut self, taken: Taken) {
        failpoint::hit("lane.batch.taken");
        self.taken_last = taken.records().count();
        self.alone = taken.records().next().filter(|_| self.taken_last == 1).map(|record| place_of(&record));
        let begun = Instant::now();
        let mut ready = match block_in_place(|| self.decode(&taken)) {
            Ok(ready) => ready,
            Err(error) => {
                let message = format!("failed to build a batch: {}", chain(&error));
                return self.stop(message, None, None).await;
            }
        };
        failpoint::hit("lane.batch.decoded");
        self.account.decoded(ready.row_count(), begun.elapsed());
        // Where a view that fails on a record stops the route, that record may be before the one that is known.
        if self.parts.bad_records != BadRecords::Stop
            && let Some(first) = ready.stops_at()
        {
            return self.stop_at_bad_record(taken, &ready, first).await;
        }
        let Some(evaluated) = self.evaluate(&taken, &mut ready).await else {
            return;
        };
        if let Some(first) = ready.stops_at() {
            return self.stop_at_bad_record(taken, &ready, first).await;
        }
        if self.write_counted(&taken, &mut ready, &evaluated).await {
            if self.is_searching {
                let is_wide = [self.buffer.widen(), self.behind.widen()];
                self.is_searching = is_wide.contains(&false);
                if !self.is_searching {
                    self.late = SinkSet::EMPTY;
                }
            }
            let offsets: i64 = taken.parts.iter().map(|part| part.end.get() - part.start.get()).sum();
            self.ends.passed.fetch_add(offsets.unsigned_abs(), Ordering::Relaxed);
            self.kept = Some(taken).filter(|_| self.taken_last == 1);
        }
    }

    /// Writes a batch without records that the route stops at; `true` if all its sinks took it, and it is counted.
    async fn write_counted(&mut self, taken: &Taken, ready: &mut Ready, evaluated: &Evaluated) -> bool {
        self.tell_refused(ready.bad.iter().map(|bad| (&bad.rejected, &bad.place)));
        self.log_skipped(ready);
        if !self.write(taken, ready, evaluated).await {
            return false;
        }
        self.count_accepted(taken, ready);
        self.summary.records += ready.records;
        self.summary.bad += ready.bad.len() as u64;
        self.summary.dropped += ready.dropped.len() as u64;
        true
    }

    /// Counts a batch that all its sinks have taken. A record counts when the last sink of the lane has it: what one that
    /// is behind reads again is let go here, and counted then.
    fn count_accepted(&mut self, taken: &Taken, ready: &Ready) {
        let good = ready.records.saturating_sub((ready.bad.len() + ready.dropped.len()) as u64);
        self.account.batch_taken(taken, good);
        for (place, part) in taken.parts.iter().enumerate() {
            let mut start = part.start;
            for end in self.ledger.complete(&part.key, part.start) {
                self.account.accepted(part.key, start, end, ready.outcome(taken, place, start, end));
                start = end;
            }
        }
    }

    /// The good prefix is written and made durable; then the route stops before the bad record, the `first` one that it
    /// stops at.
    async fn stop_at_bad_record(&mut self, taken: Taken, ready: &Ready, first: usize) {
        let stops = ready.bad.iter().filter(|bad| bad.policy == BadRecords::Stop);
        let prefix = taken.before(stops.map(|bad| (bad.part, bad.offset())));
        let Bad { rejected, place, .. } = &ready.bad[first];
        let (source, offset) = (&place.source, ready.bad[first].offset());
        let id = rejected.schema_id.map(|key| format!(", schema {key}")).unwrap_or_default();
        let message =
            format!("bad record at {source} offset {offset}{id}: {} ({})", rejected.message, rejected.code);
        if let Some(prefix) = prefix {
            match block_in_place(|| self.decode(&prefix)) {
                Ok(mut ready) => {
                    let evaluated = self.evaluate(&prefix, &mut ready).await;
                    // What fails only now is before the bad record: it comes first after the next start.
                    if let Some(evaluated) = evaluated.filter(|_| ready.stops_at().is_none()) {
                        self.write_counted(&prefix, &mut ready, &evaluated).await;
                    }
                }
                Err(error) => {
                    let (topic, partition) = (source.topic.as_str(), source.partition.0);
                    warn!(
                        route = self.parts.route,
                        topic,
                        partition,
                        offset = offset.get(),
                        error = chain(&error),
                        "the records before a bad one could not be written"
                    );
                }
            }
        }
        self.flush_all().await;
        // If a sink failed meanwhile, the record comes again after it has recovered.
        if matches!(self.state, State::Running) {
            self.stop(message, Some(ready.bad[first].remedy()), Some(place.clone())).await;
        }
    }

    /// The first of each kind; the table at exit has the number of all.
    fn log_skipped(&self, ready: &Ready) {
        let now = Instant::now();
        let mut by_code: BTreeMap<&str, (u64, &Bad)> = BTreeMap::new();
        for bad in ready.bad.iter().filter(|bad| bad.policy == BadRecords::Skip) {
            by_code.entry(bad.rejected.code).or_insert((0, bad)).0 += 1;
        }
        for (code, (count, first)) in by_code {
            let Some(count) = self.repeats.say(code, count, now) else {
                continue;
            };
            let source = &first.place.source;
            warn!(
                route = self.parts.route,
                topic = source.topic.as_str(),
                partition = source.partition.0,
                offset = first.offset().get(),
                schema = first.rejected.schema_id.map(|key| key.to_string()),
                code,
                reason = first.rejected.message,
                count,
                "bad records skipped"
            );
        }
    }

    /// Writes to every sink of the batch; `true` if all of them took it.
    async fn write(&mut self, taken: &Taken, ready: &mut Ready, evaluated: &Evaluated) -> bool {
        let moves = self.moves(taken);
        let takes_places = taken.sinks.iter().any(|sink| self.parts.sinks[sink].sink.takes_places());
        let offsets: Arc<[i64]> = match takes_places {
            true => taken.records().map(|record| record.offset()).collect(),
            false => Arc::default(),
        };
        let (mut is_taken, mut writing) = (true, Duration::ZERO);
        for index in taken.sinks.iter() {
            if !self.is_working(index) {
                // It failed when a row that a sibling refused was dealt with: it reads this again, and must not hold it
                // twice until then.
                is_taken = false;
                continue;
            }
            let LaneSink { feed, record_type, .. } = self.parts.sinks[index];
            let rows = match feed {
                Feed::View(view) => Ok(evaluated.views[record_type].get(view).cloned().flatten()),
                Feed::DeadLetters => Ok(ready.letters.clone().map(Traced::of)),
                Feed::Fields => {
                    let count = self.parts.decoders.each()[record_type].schema().fields().len();
                    changes::fields(&evaluated.inputs[record_type], count).map(Some)
                }
            };
            let takes_deletes = self.parts.sinks[index].sink.takes_deletes();
            let takes_places = self.parts.sinks[index].sink.takes_places();
            let deletes = &ready.types[record_type].deletes;
            let batch = rows.and_then(|rows| {
                if takes_places {
                    return Ok(changes::placed(moves.clone(), rows, &offsets));
                }
                changes::batch(moves.clone(), rows, deletes, takes_deletes)
            });
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return self.misfit(&error).await,
            };
            failpoint::hit("lane.sink.writing");
            let begun = Instant::now();
            let written = self.parts.sinks[index].sink.write(&batch).await;
            writing += begun.elapsed();
            self.account.wrote(index, begun.elapsed());
            match written.and_then(|()| SinkError::point("lane.sink.written")) {
                Ok(()) => {
                    self.ledger.accept(index, &moves);
                    // After each: all dead letters may have been settled in between, for a sibling that refused a row. Also
                    // where records are read again for a sink that catches up: it waits for those that are not durable.
                    self.has_letters |= ready.letters.is_some();
                }
                Err(error) if error.fault() == Fault::Refused => {
                    is_taken &= self.refused(index, error, taken, &moves, ready).await;
                }
                Err(error) => {
                    is_taken = false;
                    self.sink_failed(index, error).await;
                }
            }
            if self.is_stopped() {
                return false;
            }
        }
        self.account.took(Stage::Write, writing);
        is_taken
    }

    /// Stops for columns that do not fit together: a defect of ours. `false`, as nothing was written.
    pub(super) async fn misfit(&mut self, error: &ArrowError) -> bool {
        let message = format!("failed to build a batch: {}", chain(error));
        self.stop(message, None, None).await;
        false
    }

    pub(super) fn moves(&self, taken: &Taken) -> Vec<Move> {
        let names: BTreeMap<&PositionKey, &TopicName> =
            self.keys.iter().map(|(source, key)| (key, &source.topic)).collect();
        taken
            .parts
            .iter()
            .filter_map(|part| {
                let records = part.records().count() as u64;
                Some(Move {
                    key: part.key,
                    topic: (*names.get(&part.key)?).clone(),
                    start: Some(part.start),
                    end: Position { next: part.end, epoch: part.epoch },
                    reason: if records > 0 { Reason::Data } else { Reason::Idle },
                    records,
                })
            })
            .collect()
    }

    /// Flushes sinks that are due; in a bounded run all of them, once everything was read.
    async fn flush_due(&mut self) {
        let now = Instant::now();
        let is_over = matches!(self.state, State::Running)
            && self.staged.is_none()
            && !self.keys.is_empty()
            && self.buffer.is_drained()
            && self.behind.is_drained();
        let mut is_moved = false;
        for index in 0..self.parts.sinks.len() {
            let due = self.parts.sinks[index].sink.flush_due();
            let may_flush = self.is_working(index) && !self.is_held(index);
            let is_late = self.late.contains(index);
            if may_flush && due.is_some_and(|due| due <= now || is_over || is_late) {
                is_moved |= self.flush(index).await;
            }
        }
        if is_moved {
            self.report_progress().await;
        }
    }

    /// Flushes every sink that has something.
    pub(super) async fn flush_all(&mut self) {
        let mut is_moved = false;
        for index in 0..self.parts.sinks.len() {
            let may_flush = self.is_working(index) && !self.is_held(index);
            if may_flush && self.parts.sinks[index].sink.flush_due().is_some() {
                is_moved |= self.flush(index).await;
            }
        }
        self.has_letters &= !self.are_letters_settled();
        if is_moved {
            self.report_progress().await;
        }
    }

    /// Flushes one sink. Dead letters go first: no sibling moves past a bad record that is nowhere.
    pub(super) async fn flush(&mut self, index: usize) -> bool {
        if self.has_letters && self.parts.sinks[index].feed != Feed::DeadLetters {
            if let Err((letter, error)) = self.settle_letters().await {
                self.flush_failed(letter, error).await;
                return false;
            }
            if self.is_held(index) {
                return false;
            }
        }
        self.flush_one(index).await
    }

    /// Makes durable what a sink has taken.
    pub(super) async fn settle(&mut self, index: usize) -> Result<(), SinkError> {
        let is_letters = self.parts.sinks[index].feed == Feed::DeadLetters;
        if is_letters {
            failpoint::hit("letters.flushing");
        } else {
            failpoint::hit("lane.sink.flushing");
        }
        let begun = Instant::now();
        let positions = self.parts.sinks[index].sink.flush().await?;
        if is_letters {
            SinkError::point("letters.flushed")?;
        } else {
            SinkError::point("lane.sink.flushed")?;
        }
        self.account.flushed(index, begun.elapsed(), self.parts.sinks[index].settled());
        self.conflicts[index] = 0;
        self.failures.settled(index);
        self.ledger.settle(index, &positions);
        self.stored[index] = positions;
        Ok(())
    }

    /// Makes the dead letters durable that their sinks have taken; the sink that failed, if one did.
    pub(super) async fn settle_letters(&mut self) -> Result<(), (usize, SinkError)> {
        for letter in self.letter_sinks().collect::<Vec<_>>() {
            if self.parts.sinks[letter].sink.flush_due().is_some() {
                self.settle(letter).await.map_err(|error| (letter, error))?;
            }
        }
        self.has_letters = !self.are_letters_settled();
        Ok(())
    }

    /// Makes durable what the other sinks have taken, dead letters first, before the route stops for `index`.
    async fn settle_others(&mut self, index: usize) {
        if self.parts.sinks[index].feed == Feed::DeadLetters {
            // It is the dead letters that fail: nobody moves past them.
            return;
        }
        let mut settled = self.settle_letters().await.map_err(|(_, error)| error);
        for other in (0..self.parts.sinks.len()).filter(|other| *other != index) {
            if settled.is_ok() && self.parts.sinks[other].sink.flush_due().is_some() && !self.is_held(other) {
                settled = self.settle(other).await;
            }
        }
        if let Err(error) = settled {
            // The route stops anyway; what is not stored is read again.
            warn!(route = self.parts.route, error = chain(&error), "a sink could not be flushed");
        }
        self.report_progress().await;
    }

    async fn flush_one(&mut self, index: usize) -> bool {
        match self.settle(index).await {
            Ok(()) => true,
            Err(error) => self.flush_failed(index, error).await,
        }
    }

    /// `true` if the sink has moved all the same.
    async fn flush_failed(&mut self, index: usize, error: SinkError) -> bool {
        if error.fault() != Fault::Refused {
            self.sink_failed(index, error).await;
            return false;
        }
        // The target refused it only when it came there. While the row is looked for, each batch is flushed by itself.
        let records = self.buffer.rows_max().min(self.taken_last);
        if records > 1 {
            self.account.failed(index, Fault::Refused);
            self.narrow(index, error, records, true).await;
            return false;
        }
        if let Some(taken) = self.kept.take().filter(|_| self.lets_go(index)) {
            self.account.failed(index, Fault::Refused);
            return self.let_go_flushed(index, &error, &taken).await;
        }
        self.settle_others(index).await;
        self.sink_failed(index, error).await;
        false
    }
}
