//! The sinks of a batch at work: each in a task of its own, all at the same time.
//!
//! A lane waits for all of them: nothing is cut off in the middle because another one has failed. What went well is taken
//! in first; then failures are dealt with, in the order of the sinks. Flushes go side by side too, dead letters before all
//! others. A sink that holds locks is flushed at once behind its write: a sibling may wait for them, or take its time.

use std::panic;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::error::ArrowError;
use tokio::task::JoinSet;
use tracing::warn;

use crate::engine::batching::Taken;
use crate::engine::chain;
use crate::failpoint;
use crate::handler::Traced;
use crate::model::{Batch, Classify, Deletes, Fault, Move, Positions, SinkSet};
use crate::sink::{SinkError, Store};
use crate::status::Stage;

use super::evaluate::Evaluated;
use super::ready::Ready;
use super::{Feed, Lane, LaneSink, State, changes};

/// What a sink is to do.
enum Work {
    /// With `is_whole` it is flushed too if it takes the batch.
    Write {
        batch: Batch,
        is_whole: bool,
    },
    Flush,
}

/// What became of it.
struct Done {
    index: usize,
    written: Option<Written>,
    flushed: Option<Flushed>,
}

struct Written {
    took: Duration,
    result: Result<(), SinkError>,
}

/// What became of a flush.
pub(super) struct Flushed {
    index: usize,
    took: Duration,
    /// The stored positions.
    result: Result<Positions, SinkError>,
}

impl LaneSink {
    async fn work(&mut self, index: usize, work: Work) -> Done {
        let Work::Write { batch, is_whole } = work else {
            return Done { index, written: None, flushed: Some(self.flush(index).await) };
        };
        let begun = Instant::now();
        let result = self.written(&batch).await;
        let took = begun.elapsed();
        let flushed = if is_whole && result.is_ok() { Some(self.flush(index).await) } else { None };
        Done { index, written: Some(Written { took, result }), flushed }
    }

    async fn flush(&mut self, index: usize) -> Flushed {
        let begun = Instant::now();
        let result = self.flushed().await;
        Flushed { index, took: begun.elapsed(), result }
    }

    async fn written(&mut self, batch: &Batch) -> Result<(), SinkError> {
        failpoint::hit("lane.sink.writing");
        self.sink.write(batch).await?;
        SinkError::point("lane.sink.written")
    }

    async fn flushed(&mut self) -> Result<Positions, SinkError> {
        let is_letters = self.feed == Feed::DeadLetters;
        if is_letters {
            failpoint::hit("letters.flushing");
        } else {
            failpoint::hit("lane.sink.flushing");
        }
        let positions = self.sink.flush().await?;
        if is_letters {
            SinkError::point("letters.flushed")?;
        } else {
            SinkError::point("lane.sink.flushed")?;
        }
        Ok(positions)
    }
}

/// Lets these sinks do their work at the same time, the last of them in this task; returns when all of them have, in their
/// order. A sink that panics does so here.
async fn side_by_side(sinks: &mut Vec<LaneSink>, mut all: Vec<(usize, Work)>) -> Vec<Done> {
    let Some((last, work)) = all.pop() else {
        return Vec::new();
    };
    if all.is_empty() {
        return vec![sinks[last].work(last, work).await];
    }
    let mut places: Vec<Option<LaneSink>> = std::mem::take(sinks).into_iter().map(Some).collect();
    let mut tasks = JoinSet::new();
    for (index, work) in all {
        if let Some(mut sink) = places[index].take() {
            tasks.spawn(async move {
                let done = sink.work(index, work).await;
                (sink, done)
            });
        }
    }
    let mut done = Vec::new();
    if let Some(sink) = &mut places[last] {
        done.push(sink.work(last, work).await);
    }
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok((sink, one)) => {
                places[one.index] = Some(sink);
                done.push(one);
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => panic::resume_unwind(panic),
                // The runtime ends, and with it this task.
                Err(_) => std::future::pending().await,
            },
        }
    }
    *sinks = places.into_iter().flatten().collect();
    done.sort_by_key(|done| done.index);
    done
}

impl Lane {
    /// Writes to every sink of the batch; `true` if all took it that are waited for.
    pub(super) async fn write(&mut self, taken: &Taken, ready: &mut Ready, evaluated: &Evaluated) -> bool {
        let moves = self.moves(taken);
        let work = match self.batches(taken, ready, evaluated, &moves) {
            Ok(work) => work,
            Err(error) => return self.misfit(&error).await,
        };
        let (begun, mut failed) = (Instant::now(), Vec::new());
        let all = side_by_side(&mut self.parts.sinks, work).await;
        for Done { index, written, flushed } in all {
            self.flushed.extend(flushed);
            let Some(Written { took, result }) = written else {
                continue;
            };
            self.account.wrote(index, took);
            match result {
                Ok(()) => {
                    self.ledger.accept(index, &moves);
                    // Also where records are read again for a sink that catches up: it waits for dead letters that are not
                    // durable.
                    self.has_letters |= ready.letters.is_some();
                }
                Err(error) => failed.push((index, error)),
            }
        }
        self.account.took(Stage::Write, begun.elapsed());
        for (index, error) in failed {
            if self.is_stopped() {
                return false;
            }
            if error.fault() != Fault::Refused {
                self.sink_failed(index, error).await;
            } else if self.is_working(index) {
                // Else it failed when a row that a sibling refused was dealt with, and reads this again.
                self.refused(index, error, taken, &moves, ready).await;
            }
        }
        // Each has it, and still has it after what was done for others.
        let required = self.ledger.required();
        let mut waited = taken.sinks.iter().filter(|sink| required.contains(*sink));
        !self.is_stopped() && waited.all(|sink| self.is_working(sink) && self.has_accepted(sink, taken))
    }

    /// Does a sink have all of a batch?
    pub(super) fn has_accepted(&self, sink: usize, taken: &Taken) -> bool {
        taken.parts.iter().all(|part| {
            let accepted = self.ledger.accepted(&part.key);
            accepted.is_some_and(|accepted| accepted[sink] >= part.end)
        })
    }

    /// What each sink of a batch is given, but for those that have failed or are away.
    fn batches(
        &self,
        taken: &Taken,
        ready: &Ready,
        evaluated: &Evaluated,
        moves: &[Move],
    ) -> Result<Vec<(usize, Work)>, ArrowError> {
        let takes_places = taken.sinks.iter().any(|sink| self.parts.sinks[sink].sink.takes_places());
        let offsets: Arc<[i64]> = match takes_places {
            true => taken.records().map(|record| record.offset()).collect(),
            false => Arc::default(),
        };
        // No sink moves past a bad record that is nowhere.
        let may_flush = !self.has_letters && ready.letters.is_none();
        let (mut all, no_deletes) = (Vec::new(), Deletes::default());
        for index in taken.sinks.minus(self.ledger.away()).iter().filter(|index| self.is_working(*index)) {
            let LaneSink { feed, record_type, sink, .. } = &self.parts.sinks[index];
            // In a transaction, what it refuses is nothing to it when that is read again.
            let refuses = self.is_excused(index, taken);
            let rows = match *feed {
                _ if refuses => None,
                Feed::View(view) => evaluated.views[*record_type].get(view).cloned().flatten(),
                Feed::DeadLetters => ready.letters.clone().map(Traced::of),
                Feed::Fields => {
                    let count = self.parts.decoders.each()[*record_type].schema().fields().len();
                    Some(changes::fields(&evaluated.inputs[*record_type], count)?)
                }
            };
            let deletes = if refuses { &no_deletes } else { &ready.types[*record_type].deletes };
            let batch = if sink.takes_places() {
                changes::placed(moves.to_vec(), rows, &offsets)
            } else {
                changes::batch(moves.to_vec(), rows, deletes, sink.takes_deletes())?
            };
            all.push((index, Work::Write { batch, is_whole: may_flush && sink.holds_locks() }));
        }
        Ok(all)
    }

    /// Flushes sinks that are due; in a bounded run all of them, once everything was read.
    pub(super) async fn flush_due(&mut self) {
        let now = Instant::now();
        let is_over = matches!(self.state, State::Running)
            && self.staged.is_none()
            && !self.keys.is_empty()
            && self.buffer.is_drained()
            && self.behind.is_drained();
        let is_due = |index: &usize| {
            let due = self.parts.sinks[*index].sink.flush_due();
            due.is_some_and(|due| due <= now || is_over || self.late.contains(*index))
        };
        let due: SinkSet = (0..self.parts.sinks.len()).filter(is_due).collect();
        if self.flush(due).await {
            self.report_progress().await;
        }
    }

    /// Flushes every sink that has something.
    pub(super) async fn flush_all(&mut self) {
        let is_moved = self.flush((0..self.parts.sinks.len()).collect()).await;
        self.has_letters &= !self.are_letters_settled();
        if is_moved {
            self.report_progress().await;
        }
    }

    /// May a sink be flushed now, and has it something to be?
    fn has_to_flush(&self, index: usize) -> bool {
        let is_flushed = self.flushed.iter().any(|flushed| flushed.index == index);
        self.is_working(index)
            && !self.is_held(index)
            && !is_flushed
            && self.parts.sinks[index].sink.flush_due().is_some()
    }

    /// Flushes those of these sinks that have something; `true` if one has moved. Dead letters go first: no sibling moves
    /// past a bad record that is nowhere.
    pub(super) async fn flush(&mut self, sinks: SinkSet) -> bool {
        let letters: SinkSet = self.letter_sinks().collect();
        let mut left = self.those_to_flush(sinks);
        let mut is_moved = false;
        if self.is_in_transactions() && !left.is_empty() {
            // All in one call, or one would learn that the transaction is gone, and read again alone, before the one learns it
            // whose row was refused.
            is_moved =
                self.flush_side_by_side(self.those_to_flush((0..self.parts.sinks.len()).collect())).await;
            self.has_letters &= !self.are_letters_settled();
            return is_moved;
        }
        if self.has_letters && !left.minus(letters).is_empty() {
            is_moved = self.flush_side_by_side(self.those_to_flush(letters)).await;
            self.has_letters = !self.are_letters_settled();
            // One that could not be made durable holds the others.
            left = self.those_to_flush(left.minus(letters));
        }
        is_moved | self.flush_side_by_side(left).await
    }

    /// Do all sinks of the lane share their transactions? They do, or none does.
    pub(super) fn is_in_transactions(&self) -> bool {
        self.parts.sinks.iter().any(|sink| sink.sink.store() == Store::Transaction)
    }

    fn those_to_flush(&self, sinks: SinkSet) -> SinkSet {
        sinks.iter().filter(|index| self.has_to_flush(*index)).collect()
    }

    async fn flush_side_by_side(&mut self, sinks: SinkSet) -> bool {
        let work = sinks.iter().map(|index| (index, Work::Flush)).collect();
        let (mut is_moved, mut failed) = (false, Vec::new());
        let all = side_by_side(&mut self.parts.sinks, work).await;
        // Those that came at once behind their writes are told now, when the batch is counted.
        let mut flushed = std::mem::take(&mut self.flushed);
        flushed.extend(all.into_iter().filter_map(|done| done.flushed));
        for Flushed { index, took, result } in flushed {
            match result {
                Ok(positions) => {
                    is_moved = true;
                    self.settled(index, took, positions);
                }
                Err(error) => failed.push((index, error)),
            }
        }
        // A refusal first: in transactions it is why its siblings failed, and all of them begin anew then.
        failed.sort_by_key(|(_, error)| error.fault() != Fault::Refused);
        for (index, error) in failed {
            if self.is_stopped() {
                break;
            }
            if !self.is_in_transactions() || self.is_working(index) {
                is_moved |= self.flush_failed(index, error).await;
            }
        }
        is_moved
    }

    /// Makes durable what a sink has taken.
    pub(super) async fn settle(&mut self, index: usize) -> Result<(), SinkError> {
        let Flushed { took, result, .. } = self.parts.sinks[index].flush(index).await;
        self.settled(index, took, result?);
        Ok(())
    }

    /// A sink was flushed, and stands here now.
    fn settled(&mut self, index: usize, took: Duration, positions: Positions) {
        if self.is_optional(index) && positions == self.stored[index] {
            // It works in the background, and has not come to it yet.
            return;
        }
        self.account.flushed(index, took, self.parts.sinks[index].settled());
        self.conflicts[index] = 0;
        self.failures.settled(index);
        self.ledger.settle(index, &positions);
        self.stored[index] = positions;
        self.pass_excused();
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
            let has_some = self.is_working(other) && self.parts.sinks[other].sink.flush_due().is_some();
            if settled.is_ok() && has_some && !self.is_held(other) {
                settled = self.settle(other).await;
            }
        }
        if let Err(error) = settled {
            // The route stops anyway; what is not stored is read again.
            warn!(route = self.parts.route, error = chain(&error), "a sink could not be flushed");
        }
        self.report_progress().await;
    }

    /// `true` if the sink has moved all the same.
    async fn flush_failed(&mut self, index: usize, error: SinkError) -> bool {
        if error.fault() != Fault::Refused {
            self.sink_failed(index, error).await;
            return false;
        }
        if self.is_optional(index) {
            return self.optional_refused(index, error).await;
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
