//! From a taken batch to rows in sinks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow::array::Array;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use tokio::task::block_in_place;
use tracing::warn;

use crate::codec::{DecodedBatch, Decoder, Rejected, letters};
use crate::config::plan::BadRecords;
use crate::cores;
use crate::engine::batching::Taken;
use crate::engine::chain;
use crate::engine::message::Place;
use crate::engine::tally::Outcome;
use crate::failpoint;
use crate::handler::Traced;
use crate::model::{
    Classify, Deletes, Fault, Move, Offset, Position, PositionKey, Reason, RecordRef, TopicName, ranges,
};

use super::{Feed, Lane, State, changes};
use crate::sink::SinkError;
use crate::status::Stage;

/// A decoded batch: all columns of `batch` in SQL, and what was set aside.
struct Ready {
    rows: RecordBatch,
    /// For each row, the number of its record.
    origins: Arc<[u32]>,
    /// Numbers of records whose rows are there only for views that ask what happened.
    gone: Vec<u32>,
    deletes: Deletes,
    records: u64,
    /// Records that are left out by a rule: of which part of the batch, and where in it.
    dropped: Vec<(usize, Offset)>,
    bad: Vec<Bad>,
    /// The rows of `bad`, if a sink wants them.
    letters: Option<RecordBatch>,
}

impl Ready {
    /// What became of the records `[start, end)` of a part of the batch.
    fn outcome(&self, taken: &Taken, part: usize, start: Offset, end: Offset) -> Outcome {
        let is_within = move |offset: i64| (start.get()..end.get()).contains(&offset);
        let mut outcome = Outcome::default();
        let mut set_aside = BTreeSet::new();
        for bad in self.bad.iter().filter(|bad| bad.part == part && is_within(bad.offset().get())) {
            *outcome.bad.entry(bad.rejected.code).or_default() += 1;
            set_aside.insert(bad.offset().get());
        }
        let records = taken.parts[part].records().filter(|record| is_within(record.offset()));
        let good = (records.count() as u64).saturating_sub(set_aside.len() as u64);
        let is_dropped = |(of, offset): &&(usize, Offset)| *of == part && is_within(offset.get());
        outcome.dropped = self.dropped.iter().filter(is_dropped).count() as u64;
        outcome.rows = good.saturating_sub(outcome.dropped);
        outcome
    }
}

/// A record that was set aside, and where it is.
struct Bad {
    rejected: Rejected,
    part: usize,
    place: Place,
}

impl Bad {
    fn offset(&self) -> Offset {
        self.place.offset.unwrap_or_default()
    }
}

fn place_of(record: &RecordRef<'_>) -> Place {
    Place::new(record.source(), Offset::new(record.offset()))
}

/// What Arrow's offsets reach.
const COLUMN_BYTES_MAX: usize = i32::MAX as usize;

/// Decodes slices of the records side by side, as many as cores are free.
fn decode_on_free_cores(decoder: &Decoder, records: &[RecordRef<'_>]) -> Result<DecodedBatch, ArrowError> {
    let cores = cores::lend(records.len() / cores::ROWS_MIN);
    if cores.count() == 1 {
        return decoder.decode(records);
    }
    let size = records.len().div_ceil(cores.count());
    let parts = cores.map(records.chunks(size).collect(), |slice| decoder.decode(slice));
    let memory = |part: &Result<DecodedBatch, ArrowError>| {
        part.as_ref().map_or(0, |part| part.rows.get_array_memory_size())
    };
    if parts.iter().map(memory).sum::<usize>() >= COLUMN_BYTES_MAX {
        // A column would not fit; decoded as one, the record that is too much is a bad record.
        return decoder.decode(records);
    }
    let mut batches = Vec::with_capacity(parts.len());
    let (mut rejected, mut dropped) = (Vec::new(), 0);
    let (mut origins, mut gone, mut deletes, mut keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, part) in parts.into_iter().enumerate() {
        let part = part?;
        let before = number * size;
        let moved = part.rejected.into_iter().map(|bad| Rejected { index: before + bad.index, ..bad });
        rejected.extend(moved);
        let shift = |number: u32| before as u32 + number;
        origins.extend(part.origins.into_iter().map(shift));
        gone.extend(part.gone.into_iter().map(shift));
        deletes.extend(part.deletes.origins.into_iter().map(shift));
        keys.extend(part.deletes.keys);
        dropped += part.dropped;
        batches.push(part.rows);
    }
    let rows = arrow::compute::concat_batches(decoder.batch_schema(), &batches)?;
    let keys: Vec<&dyn Array> = keys.iter().map(AsRef::as_ref).collect();
    let keys = if keys.is_empty() { None } else { Some(arrow::compute::concat(&keys)?) };
    let deletes = Deletes { origins: deletes, keys };
    Ok(DecodedBatch { rows, origins, deletes, gone, rejected, dropped })
}

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
                self.parts.decoder.missing(&records)
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
            self.flush_due().await;
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
        let ready = match block_in_place(|| self.decode(&taken)) {
            Ok(ready) => ready,
            Err(error) => {
                let message = format!("failed to build a batch: {}", chain(&error));
                return self.stop(message, None, None).await;
            }
        };
        failpoint::hit("lane.batch.decoded");
        self.account.decoded(ready.rows.num_rows(), begun.elapsed());
        if let (BadRecords::Stop, Some(_)) = (self.parts.bad_records, ready.bad.first()) {
            return self.stop_at_bad_record(taken, &ready).await;
        }
        self.tell_refused(ready.bad.iter().map(|bad| (&bad.rejected, &bad.place)));
        if self.parts.bad_records == BadRecords::Skip {
            self.log_bad(&ready);
        }
        if self.write(&taken, &ready).await {
            self.count_accepted(&taken, &ready);
            if self.is_searching {
                let is_wide = [self.buffer.widen(), self.behind.widen()];
                self.is_searching = is_wide.contains(&false);
            }
            let offsets: i64 = taken.parts.iter().map(|part| part.end.get() - part.start.get()).sum();
            self.ends.passed.fetch_add(offsets.unsigned_abs(), Ordering::Relaxed);
            self.summary.records += ready.records;
            self.summary.bad += ready.bad.len() as u64;
            self.summary.dropped += ready.dropped.len() as u64;
        }
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

    /// The good prefix is written and made durable; then the route stops before the bad record.
    async fn stop_at_bad_record(&mut self, taken: Taken, ready: &Ready) {
        let cuts = ready.bad.iter().map(|bad| (bad.part, bad.offset()));
        let prefix = taken.before(cuts);
        let Bad { rejected, place, .. } = &ready.bad[0];
        let (source, offset) = (&place.source, ready.bad[0].offset());
        let id = rejected.schema_id.map(|key| format!(", schema {key}")).unwrap_or_default();
        let message =
            format!("bad record at {source} offset {offset}{id}: {} ({})", rejected.message, rejected.code);
        if let Some(prefix) = prefix {
            match block_in_place(|| self.decode(&prefix)) {
                Ok(ready) => {
                    if self.write(&prefix, &ready).await {
                        self.count_accepted(&prefix, &ready);
                        self.summary.records += ready.records;
                        self.summary.dropped += ready.dropped.len() as u64;
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
            let hint = "mend the producer, or set `bad_records: {dead_letter: …}` or `skip` for this route"
                .to_owned();
            self.stop(message, Some(hint), Some(place.clone())).await;
        }
    }

    /// The first of each kind; the table at exit has the number of all.
    fn log_bad(&self, ready: &Ready) {
        let now = Instant::now();
        let mut by_code: BTreeMap<&str, (u64, &Bad)> = BTreeMap::new();
        for bad in &ready.bad {
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

    fn decode(&self, taken: &Taken) -> Result<Ready, ArrowError> {
        let records: Vec<RecordRef<'_>> = taken.records().collect();
        let decoded = decode_on_free_cores(&self.parts.decoder, &records)?;
        let dropped = match decoded.dropped {
            0 => Vec::new(),
            _ => changes::left_out(records.len(), &decoded),
        };
        let ends = taken.parts.iter().scan(0, |end, part| {
            *end += part.records().count();
            Some(*end)
        });
        let ends: Vec<usize> = ends.collect();
        let place = |number: usize| {
            let part = ends.partition_point(|end| *end <= number);
            Some((part, Offset::new(records[number].offset())?))
        };
        let dropped = dropped.into_iter().filter_map(place).collect();
        let DecodedBatch { rows, origins, deletes, gone, rejected, .. } = decoded;
        let has_sink = self.parts.sinks.iter().any(|sink| sink.feed == Feed::DeadLetters);
        let letters = if has_sink && !rejected.is_empty() {
            let letters: Vec<_> =
                rejected.iter().map(|rejected| (records[rejected.index], rejected)).collect();
            Some(letters::build(&self.parts.route, &letters)?)
        } else {
            None
        };
        let bad = rejected
            .into_iter()
            .map(|rejected| {
                let record = &records[rejected.index];
                Bad { part: taken.part_of(rejected.index), rejected, place: place_of(record) }
            })
            .collect();
        let origins = origins.into();
        Ok(Ready { rows, origins, gone, deletes, records: records.len() as u64, dropped, bad, letters })
    }

    /// Writes to every sink of the batch; `true` if all of them took it.
    async fn write(&mut self, taken: &Taken, ready: &Ready) -> bool {
        let moves = self.moves(taken);
        let takes_deletes = taken.sinks.iter().any(|sink| self.parts.sinks[sink].sink.takes_deletes());
        let takes_places = taken.sinks.iter().any(|sink| self.parts.sinks[sink].sink.takes_places());
        let is_traced = takes_deletes || takes_places;
        let offsets: Arc<[i64]> = match takes_places {
            true => taken.records().map(|record| record.offset()).collect(),
            false => Arc::default(),
        };
        let input = match changes::input(&ready.rows, &ready.origins, &ready.gone, is_traced) {
            Ok(input) => input,
            Err(error) => return self.misfit(&error).await,
        };
        let wanted: BTreeSet<usize> = taken
            .sinks
            .iter()
            .filter_map(|sink| match self.parts.sinks[sink].feed {
                Feed::View(view) => Some(view),
                Feed::Fields | Feed::DeadLetters => None,
            })
            .collect();
        let views = if wanted.is_empty() || ready.rows.num_rows() == 0 {
            Vec::new()
        } else {
            let begun = Instant::now();
            let run = self.parts.handler.run(input.clone(), &wanted).await;
            self.account.took(Stage::Views, begun.elapsed());
            match run {
                Ok(views) => views,
                Err(error) => {
                    let ranges = ranges(&moves);
                    let message = format!("{} on {ranges}", chain(&error));
                    let hint = "guard the expression in the view, for example with `try_cast` or `nullif`";
                    self.flush_all().await;
                    let place = self.alone.clone();
                    self.stop(message, Some(hint.to_owned()), place).await;
                    return false;
                }
            }
        };
        let value_count = self.parts.decoder.schema().fields().len();
        let (mut is_taken, mut writing) = (true, Duration::ZERO);
        for index in taken.sinks.iter() {
            if !self.is_working(index) {
                // It failed when a row that a sibling refused was dealt with: it reads this again, and must not hold it
                // twice until then.
                is_taken = false;
                continue;
            }
            let rows = match self.parts.sinks[index].feed {
                Feed::View(view) => Ok(views.get(view).cloned().flatten()),
                Feed::DeadLetters => Ok(ready.letters.clone().map(Traced::of)),
                Feed::Fields => changes::fields(&input, value_count).map(Some),
            };
            let takes_deletes = self.parts.sinks[index].sink.takes_deletes();
            let takes_places = self.parts.sinks[index].sink.takes_places();
            let batch = rows.and_then(|rows| {
                if takes_places {
                    return Ok(changes::placed(moves.clone(), rows, &offsets));
                }
                changes::batch(moves.clone(), rows, &ready.deletes, takes_deletes)
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
                    is_taken = false;
                    self.refused(index, error, taken.records().count()).await;
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
    async fn misfit(&mut self, error: &ArrowError) -> bool {
        let message = format!("failed to build a batch: {}", chain(error));
        self.stop(message, None, None).await;
        false
    }

    fn moves(&self, taken: &Taken) -> Vec<Move> {
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
            if may_flush && due.is_some_and(|due| due <= now || is_over) {
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
            Err(error) => {
                self.flush_failed(index, error).await;
                false
            }
        }
    }

    async fn flush_failed(&mut self, index: usize, error: SinkError) {
        if error.fault() != Fault::Refused {
            return self.sink_failed(index, error).await;
        }
        // The target refused it only when it came there. Batches of one record are flushed one by one.
        let records = self.buffer.rows_max().min(self.taken_last);
        if records <= 1 {
            self.settle_others(index).await;
            self.sink_failed(index, error).await;
        } else {
            self.account.failed(index, Fault::Refused);
            self.narrow(index, error, records).await;
        }
    }
}
