//! From a taken batch to rows in sinks.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arrow::error::ArrowError;
use tokio::task::block_in_place;
use tracing::warn;

use crate::config::plan::BadRecords;
use crate::engine::batching::Taken;
use crate::engine::chain;
use crate::failpoint;
use crate::model::{Move, Position, PositionKey, Reason, RecordRef, SinkSet, TopicName};

use super::evaluate::Evaluated;
use super::ready::{Bad, Ready, place_of};
use super::{Lane, State};

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
        self.tend().await;
        if self.resume_retry.is_none_or(|(at, _)| at <= Instant::now()) {
            self.resume().await;
        }
        self.evolve().await;
        while matches!(self.state, State::Running) && !self.waits_for_schemas() {
            self.leave_slow();
            let Some(taken) = self.staged.take().or_else(|| self.next_batch()) else {
                break;
            };
            let missing = {
                let records: Vec<RecordRef<'_>> = taken.records().collect();
                let missing = self.parts.decoders.missing(&records);
                if !missing.is_empty() {
                    self.parts.decoders.need(&records);
                }
                missing
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
        self.tell_away().await;
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
            // What is read for others brings the row no nearer, nor does what a sink refused that nobody waits for. One that
            // was found comes alone.
            if self.excused.is_none()
                && taken
                    .sinks
                    .iter()
                    .any(|sink| self.searching.contains(sink) && self.has_accepted(sink, &taken))
            {
                let is_wide = [self.buffer.widen(), self.behind.widen()];
                if !is_wide.contains(&false) {
                    (self.searching, self.late) = (SinkSet::EMPTY, SinkSet::EMPTY);
                }
            }
            let offsets: i64 = taken.parts.iter().map(|part| part.end.get() - part.start.get()).sum();
            self.ends.passed.fetch_add(offsets.unsigned_abs(), Ordering::Relaxed);
            self.keep(taken);
        }
    }

    /// Writes a batch without records that the route stops at; `true` if all its sinks took it, and it is counted.
    async fn write_counted(&mut self, taken: &Taken, ready: &mut Ready, evaluated: &Evaluated) -> bool {
        self.tell_refused(ready.bad.iter().map(|bad| (&bad.rejected, &bad.place)));
        self.log_skipped(ready);
        if !self.set_excused_aside(taken, ready).await {
            return false;
        }
        if !self.write(taken, ready, evaluated).await {
            return false;
        }
        // What is read again for sinks that nobody waits for was counted with the others.
        if taken.sinks.minus(self.ledger.required()) == taken.sinks {
            return true;
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
}
