//! Going on without a record that a sink refuses, and dead letters that come beside the batches of their sinks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use tracing::warn;

use crate::codec::limits::cut;
use crate::codec::{Rejected, letters};
use crate::config::plan::BadRecords;
use crate::engine::batching::{Part, Taken};
use crate::engine::chain;
use crate::engine::tally::Outcome;
use crate::model::{Batch, Move, Offset, Position, PositionKey, Reason, SinkSet, code};
use crate::sink::SinkError;

use super::ready::{Bad, Ready, place_of};
use super::{Feed, Lane};

/// A record that sinks of a transaction refuse. What their siblings and the dead letters had of it went with the
/// transaction: it is read again, and comes to these without rows, together with its dead letter.
#[derive(Debug)]
pub struct Excused {
    key: PositionKey,
    offset: Offset,
    /// What was said of each sink.
    sinks: BTreeMap<usize, String>,
}

impl Lane {
    /// Does a sink go on without a record that it refuses?
    pub(super) fn lets_go(&self, index: usize) -> bool {
        self.parts.refused_rows != BadRecords::Stop && self.parts.sinks[index].feed != Feed::DeadLetters
    }

    /// Goes on without the one record of a batch that a sink refused when it was written.
    pub(super) async fn let_go_written(
        &mut self,
        index: usize,
        error: &SinkError,
        taken: &Taken,
        moves: &[Move],
        ready: &mut Ready,
    ) -> bool {
        let message = self.refusal(index, error);
        if !self.let_go(index, &message, taken, moves).await {
            return false;
        }
        self.has_let_go = true;
        // Once, whatever else is wrong with it and however many sinks refuse it.
        let mut records = taken
            .parts
            .iter()
            .enumerate()
            .flat_map(|(part, own)| own.records().map(move |record| (part, record)));
        if ready.bad.is_empty()
            && let Some((part, record)) = records.next()
        {
            let rejected = Rejected { index: 0, code: code::SINK_REFUSAL, message, schema_id: None };
            let policy = self.parts.refused_rows;
            ready.bad.push(Bad { rejected, policy, part, place: place_of(&record) });
        }
        true
    }

    /// The same for a batch that all its sinks have taken, and that one refused when it was flushed.
    pub(super) async fn let_go_flushed(&mut self, index: usize, error: &SinkError, taken: &Taken) -> bool {
        // One that nobody waits for decides nothing: the record was counted when the others had it.
        let is_counted = |part: &&Part| {
            let accepted = self.ledger.accepted_by_required(&part.key);
            accepted.is_some_and(|accepted| accepted >= part.end) && !self.is_optional(index)
        };
        let counted: Vec<&Part> = taken.parts.iter().filter(is_counted).collect();
        let message = self.refusal(index, error);
        let moves = self.moves(taken);
        if !self.let_go(index, &message, taken, &moves).await {
            return false;
        }
        for part in counted {
            // As a good record: it is counted anew.
            self.account.abandon(&part.key, part.start);
            let count = part.records().count() as u64;
            let outcome =
                Outcome { bad: BTreeMap::from([(code::SINK_REFUSAL, count)]), ..Outcome::default() };
            self.account.accepted(part.key, part.start, part.end, outcome);
            self.summary.bad += count;
        }
        match self.settle(index).await {
            Ok(()) => true,
            Err(error) => {
                self.sink_failed(index, error).await;
                false
            }
        }
    }

    fn refusal(&self, index: usize, error: &SinkError) -> String {
        let name = &self.parts.sinks[index].name;
        cut(format!("sink `{name}` refuses what became of it: {}", chain(error)))
    }

    /// The record's dead letter becomes durable, if there is to be one, then the sink takes its range without rows.
    /// `false`: the record comes again, in a transaction without rows for this sink, or the route has stopped.
    async fn let_go(&mut self, index: usize, message: &str, taken: &Taken, moves: &[Move]) -> bool {
        let letter = match self.letter_of(taken, message) {
            Ok(letter) => letter,
            Err(error) => {
                let message = format!("failed to build a dead letter: {}", chain(&error));
                self.stop(message, None, None).await;
                return false;
            }
        };
        // After an error a sink begins anew, from what it has stored. That has to be all that came before.
        let mut expected = self.stand_of(index);
        expected.extend(moves.iter().filter_map(|step| Some((step.key, step.start?))));
        self.parts.sinks[index].sink.abandon().await;
        if !self.reset_positions(SinkSet::EMPTY.with(index), 0).await {
            return false;
        }
        if self.stand_of(index) != expected {
            let failed = self.abandon_with(index).await;
            self.recover_at(failed, 0, Instant::now());
            return false;
        }
        if self.is_in_transactions() {
            self.excuse(index, message, taken).await;
            return false;
        }
        if let (Some(letter), Some(step)) = (letter, moves.first()) {
            let letters = self.letter_sinks().map(|sink| (sink, letter.clone())).collect();
            if !self.add_letters(step.key, letters).await {
                return false;
            }
        }
        let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
        let batch = Batch::of_rows(moves.to_vec(), nothing);
        if let Err(error) = self.parts.sinks[index].sink.write(&batch).await {
            self.sink_failed(index, error).await;
            return false;
        }
        self.ledger.accept(index, moves);
        self.account.let_go(index);
        self.say_let_go(index, message, taken);
        true
    }

    /// Remembers that a sink refuses the one record of a batch, and reads it again for all.
    async fn excuse(&mut self, index: usize, message: &str, taken: &Taken) {
        if self.is_excused(index, taken) {
            // It was given nothing of it. A defect of ours, which must not go round.
            return self
                .stop(format!("{message}, without having been given a row"), None, self.alone.clone())
                .await;
        }
        let Some((key, offset)) = the_record(taken) else {
            return;
        };
        self.say_let_go(index, message, taken);
        let known = self.excused.take().filter(|known| (known.key, known.offset) == (key, offset));
        let mut excused = known.unwrap_or(Excused { key, offset, sinks: BTreeMap::new() });
        excused.sinks.insert(index, message.to_owned());
        self.excused = Some(excused);
        // Until it has passed it comes alone: what a view makes of several is no record's own.
        self.buffer.narrow(1);
        self.behind.narrow(1);
        self.abandon_all().await;
    }

    /// Does a batch hold nothing but the record that a sink refuses?
    pub(super) fn is_excused(&self, index: usize, taken: &Taken) -> bool {
        self.excused_in(taken).is_some_and(|excused| excused.sinks.contains_key(&index))
    }

    fn excused_in(&self, taken: &Taken) -> Option<&Excused> {
        let (key, offset) = the_record(taken)?;
        self.excused.as_ref().filter(|excused| (excused.key, excused.offset) == (key, offset))
    }

    /// Makes the record that sinks of a transaction refuse a bad one, if this batch is it. `false`: its dead letter could
    /// not be written, and the batch comes again, or the route has stopped.
    pub(super) async fn set_excused_aside(&mut self, taken: &Taken, ready: &mut Ready) -> bool {
        let message = self.excused_in(taken).and_then(|excused| excused.sinks.values().next().cloned());
        let (Some(message), Some(record)) = (message, taken.records().next()) else {
            return true;
        };
        self.has_let_go = true;
        if !ready.bad.is_empty() {
            // Once, whatever else is wrong with it.
            return true;
        }
        let letter = match self.letter_of(taken, &message) {
            Ok(letter) => letter,
            Err(error) => return self.misfit(&error).await,
        };
        let part = taken.parts.iter().position(|part| part.records().next().is_some()).unwrap_or_default();
        let rejected = Rejected { index: 0, code: code::SINK_REFUSAL, message, schema_id: None };
        let policy = self.parts.refused_rows;
        ready.bad.push(Bad { rejected, policy, part, place: place_of(&record) });
        ready.letters.clone_from(&letter);
        let (Some(letter), Some((key, _))) = (letter, the_record(taken)) else {
            return true;
        };
        // Those that have passed it, where its sink reads by itself.
        let passed = self.letter_sinks().filter(|sink| !taken.sinks.contains(*sink));
        let passed: Vec<_> = passed.map(|sink| (sink, letter.clone())).collect();
        self.add_letters(key, passed).await
    }

    /// Is what sinks refused behind them for good?
    pub(super) fn pass_excused(&mut self) {
        let is_past = |excused: &mut Excused| {
            let mut stands = excused.sinks.keys().map(|sink| self.stored[*sink].get(&excused.key));
            stands.all(|stand| stand.is_some_and(|stand| stand.next > excused.offset))
        };
        for sink in self.excused.take_if(is_past).iter().flat_map(|excused| excused.sinks.keys()) {
            self.account.let_go(*sink);
        }
    }

    /// The partition goes, or its topic.
    pub(super) fn forget_excused(&mut self, key: &PositionKey) {
        self.excused.take_if(|excused| excused.key == *key);
    }

    /// The dead letter of the one record of a batch; `None` if the file wants none.
    fn letter_of(&self, taken: &Taken, message: &str) -> Result<Option<RecordBatch>, ArrowError> {
        let Some(record) = taken.records().next() else {
            return Ok(None);
        };
        if self.parts.refused_rows != BadRecords::DeadLetter {
            return Ok(None);
        }
        let message = message.to_owned();
        let rejected = Rejected { index: 0, code: code::SINK_REFUSAL, message, schema_id: None };
        letters::build(&self.parts.route, &[(record, &rejected)]).map(Some)
    }

    /// What a sink has accepted, of all partitions.
    fn stand_of(&self, index: usize) -> BTreeMap<PositionKey, Offset> {
        let each = self.keys.values().filter_map(|key| Some((*key, self.accepted(index, key)?)));
        each.collect()
    }

    fn accepted(&self, index: usize, key: &PositionKey) -> Option<Offset> {
        self.ledger.accepted(key)?.get(index).copied()
    }

    fn say_let_go(&self, index: usize, message: &str, taken: &Taken) {
        let sink = &self.parts.sinks[index].name;
        let Some(record) = taken.records().next() else {
            return;
        };
        let Some(times) = self.repeats.say(&format!("let go by {sink}"), 1, Instant::now()) else {
            return;
        };
        warn!(
            route = self.parts.route,
            sink,
            topic = record.source().topic.as_str(),
            partition = record.source().partition.0,
            offset = record.offset(),
            code = code::SINK_REFUSAL,
            reason = message,
            times,
            "a sink goes on without a record that it refuses"
        );
    }

    /// Writes dead letters of records that their sinks have passed already, or do not find bad by themselves: rows in an
    /// empty range where each of these sinks stands, durable before this returns or in the same transaction. Not so, they may
    /// come again after a crash.
    /// `false`: that failed, and everything that is not durable is read again.
    pub(super) async fn add_letters(&mut self, key: PositionKey, letters: Vec<(usize, RecordBatch)>) -> bool {
        for (letter, rows) in letters {
            let step = self.step_in_place(letter, &key).filter(|_| self.is_working(letter));
            let Some(step) = step else {
                self.abandon_all().await;
                return false;
            };
            let batch = Batch::of_rows(vec![step.clone()], rows);
            let written = self.parts.sinks[letter].sink.write(&batch).await;
            let settled = match written {
                Ok(()) => {
                    self.ledger.accept(letter, &[step]);
                    // In a transaction with what its record becomes otherwise.
                    if self.is_in_transactions() { Ok(()) } else { self.settle(letter).await }
                }
                Err(error) => Err(error),
            };
            if let Err(error) = settled {
                self.sink_failed(letter, error).await;
                if !self.is_stopped() {
                    self.abandon_all().await;
                }
                return false;
            }
        }
        true
    }

    /// A move of a sink from where it stands to there: rows without a range.
    fn step_in_place(&self, index: usize, key: &PositionKey) -> Option<Move> {
        let (source, _) = self.keys.iter().find(|(_, own)| *own == key)?;
        let next = self.accepted(index, key)?;
        Some(Move {
            key: *key,
            topic: source.topic.clone(),
            start: Some(next),
            end: Position { next, epoch: None },
            reason: Reason::Data,
            records: 0,
        })
    }
}

/// Where the record of a batch is, if it has only one.
fn the_record(taken: &Taken) -> Option<(PositionKey, Offset)> {
    let mut all =
        taken.parts.iter().flat_map(|part| part.records().map(move |record| (part.key, record.offset())));
    let (key, offset) = all.next()?;
    all.next().is_none().then_some((key, Offset::new(offset)?))
}
