//! What a lane does when something fails: recover by itself, look for a row that is refused, or stop.

use std::time::Instant;

use tracing::{debug, info, warn};

use crate::config::plan::OnDataLoss;
use crate::engine::batching::Taken;
use crate::engine::message::{Place, Report, Stop};
use crate::engine::{chain, retry};
use crate::model::{Classify, Fault, Move, SinkSet, TopicPartition};
use crate::sink::{SinkError, Store};

use super::ready::Ready;
use super::{CHUNKS_MAX, CONFLICTS_MAX, Feed, Lane, State};

/// A partition that the source cannot go on with.
#[derive(Debug)]
pub enum Failed {
    Stop(TopicPartition, Stop),
    /// The brokers do not have what comes next.
    Lost(TopicPartition, Stop),
}

impl Failed {
    pub fn source(&self) -> &TopicPartition {
        match self {
            Self::Stop(source, _) | Self::Lost(source, _) => source,
        }
    }
}

impl Lane {
    /// The source has handed on what it could read of a partition, and cannot go on. That comes first.
    pub(super) async fn set_failed(&mut self, failed: Failed) {
        if !matches!(self.state, State::Running) {
            // Whoever recovers reads it again, and meets this again.
            return;
        }
        // It was sent before this was told, so it is among what waits.
        for _ in 0..CHUNKS_MAX {
            let Ok(chunk) = self.ends.chunks.try_recv() else {
                break;
            };
            self.take(chunk).await;
        }
        for _ in 0..CHUNKS_MAX {
            let Ok(chunk) = self.ends.behind.try_recv() else {
                break;
            };
            self.take(chunk).await;
        }
        self.failed.push(failed);
    }

    /// Everything that came before is in the sinks: now what failed is dealt with.
    pub(super) async fn end_failed(&mut self) {
        for failed in std::mem::take(&mut self.failed) {
            self.flush_all().await;
            if !matches!(self.state, State::Running) {
                // A sink does not have it yet. It is read again, and this is met again.
                return;
            }
            match failed {
                Failed::Stop(_, Stop { message, hint, place }) => self.stop(message, hint, place).await,
                Failed::Lost(source, stop) => self.lost(source, stop).await,
            }
        }
    }

    /// The source cannot go on: at one place, or at all.
    pub(super) async fn source_failed(&mut self, stop: Stop) {
        match stop.place.as_ref().map(|place| place.source.clone()) {
            Some(source) => self.set_failed(Failed::Stop(source, stop)).await,
            None => self.fail(stop).await,
        }
    }

    /// Stops after everything that was taken is durable.
    pub(super) async fn fail(&mut self, stop: Stop) {
        self.flush_all().await;
        self.stop(stop.message, stop.hint, stop.place).await;
    }

    /// The brokers do not have what is wanted next. Going on begins with a look at what they have.
    async fn lost(&mut self, source: TopicPartition, stop: Stop) {
        match self.parts.on_data_loss {
            OnDataLoss::Stop => {
                // The range begins where the sinks stand, which have all that was taken.
                let named = self.lost_range(&source).await;
                self.fail(named.unwrap_or(stop)).await;
            }
            OnDataLoss::Continue => {
                self.give_up(std::slice::from_ref(&source), false).await;
                // If the brokers find nothing wrong when they are asked, this must not go round at full speed.
                let attempt = self.resume_retry.map_or(1, |(_, attempt)| attempt + 1);
                self.resume_retry = Some((Instant::now() + retry::pause(attempt), attempt));
                self.report(Report::Rewind(vec![source])).await;
            }
        }
    }

    pub(super) async fn abandon_all(&mut self) {
        let mut failed = SinkSet::EMPTY;
        for (index, sink) in self.parts.sinks.iter_mut().enumerate() {
            sink.sink.abandon().await;
            failed = failed.with(index);
        }
        self.recover_at(failed, 0, Instant::now());
    }

    /// A sink will never take some row of a batch. Smaller batches are tried until its record is alone in one; `true` if
    /// the sink has gone on without it then.
    pub(super) async fn refused(
        &mut self,
        index: usize,
        error: SinkError,
        taken: &Taken,
        moves: &[Move],
        ready: &mut Ready,
    ) -> bool {
        self.account.failed(index, Fault::Refused);
        let records = taken.records().count();
        if records > 1 {
            self.narrow(index, error, records, false).await;
            return false;
        }
        // Everything before the record is settled, with this sink too.
        self.flush_all().await;
        if self.has_letters && self.parts.sinks[index].feed != Feed::DeadLetters {
            // But for a failing sink of dead letters: the record comes again when that has caught up.
            self.narrow(index, error, records, false).await;
            return false;
        }
        if records == 1 && self.lets_go(index) && self.is_working(index) {
            return self.let_go_written(index, &error, taken, moves, ready).await;
        }
        if self.is_optional(index) {
            self.sink_failed(index, error).await;
            return false;
        }
        if matches!(self.state, State::Running) {
            let name = &self.parts.sinks[index].name;
            let hint = error.hint().map(|hint| hint.into_owned());
            let message = format!("sink `{name}` refuses what became of a record: {}", chain(&error));
            let place = self.alone.clone();
            self.stop(message, hint, place).await;
        }
        false
    }

    /// Goes on with batches that are half as large, from where the sink stands. With `holds_it` the sink has taken the row,
    /// and refused it when it was flushed.
    pub(super) async fn narrow(&mut self, index: usize, error: SinkError, records: usize, holds_it: bool) {
        if self.searching.is_empty() {
            let sink = &self.parts.sinks[index].name;
            warn!(
                route = self.parts.route,
                sink,
                error = chain(&error),
                "looking for the row that is refused"
            );
        }
        self.searching = self.searching.with(index);
        // Half of it; what is taken then doubles the next one. Each batch that is taken brings the row at least half
        // as near again, so that a few dozen batches find it among tens of thousands.
        if !self.is_optional(index) {
            self.buffer.narrow(records / 2);
        }
        self.behind.narrow(records / 2);
        // Batches before this one are settled, or the search would begin anew each time: after what was set aside in
        // them. Dead letters that are not there yet come first; the search begins anew until they are.
        if holds_it || self.is_in_transactions() {
            self.late = self.late.with(index);
        } else if self.parts.sinks[index].sink.store() == Store::Own {
            if let Err((letter, error)) = self.settle_letters().await {
                return self.sink_failed(letter, error).await;
            }
            if !self.is_held(index)
                && let Err(error) = self.settle(index).await
            {
                return self.sink_failed(index, error).await;
            }
        }
        let failed = self.abandon_with(index).await;
        self.recover_at(failed, 0, Instant::now());
    }

    /// A sink failed: what it accepted is gone. Decides by the fault what follows.
    pub(super) async fn sink_failed(&mut self, index: usize, error: SinkError) {
        self.account.failed(index, error.fault());
        self.parts.sinks[index].sink.abandon().await;
        let name = self.parts.sinks[index].name.clone();
        let fault = match error.fault() {
            Fault::Conflict => {
                self.conflicts[index] += 1;
                if self.conflicts[index] >= CONFLICTS_MAX { Fault::Stop } else { Fault::Conflict }
            }
            other => other,
        };
        let hint = error.hint().map(|hint| hint.into_owned());
        let message = chain(&error);
        self.account.trouble(&format!("sink `{name}`: {message}"), hint.as_deref());
        if self.is_optional(index) {
            return self.optional_failed(index, fault, &message, hint.as_deref());
        }
        match fault {
            Fault::Stop | Fault::Refused => {
                let place = self.alone.clone().filter(|_| fault == Fault::Refused);
                self.stop(format!("sink `{name}`: {message}"), hint, place).await;
            }
            Fault::Transient | Fault::Conflict => {
                let before = self.failures.failed(index);
                let attempt = match (&self.state, &self.apart) {
                    (State::Recovering { attempt, .. }, _) => *attempt,
                    // It was said.
                    (_, Some(recovery)) if recovery.sinks.contains(index) => recovery.attempt,
                    _ => {
                        self.say_paused(&name, &message, hint.as_deref());
                        0
                    }
                };
                let failed = self.abandon_with(index).await;
                self.recover_at(failed, attempt.max(before), Instant::now());
            }
        }
    }

    /// What goes with a sink that has failed: in transactions all others, or some would commit their share of a record
    /// before the rest of it.
    pub(super) async fn abandon_with(&mut self, index: usize) -> SinkSet {
        self.parts.sinks[index].sink.abandon().await;
        if !self.is_in_transactions() {
            return SinkSet::EMPTY.with(index);
        }
        for other in (0..self.parts.sinks.len()).filter(|other| *other != index) {
            self.parts.sinks[other].sink.abandon().await;
        }
        (0..self.parts.sinks.len()).collect()
    }

    /// A sink may fail, recover and fail again many times a second.
    fn say_paused(&mut self, sink: &str, error: &str, hint: Option<&str>) {
        let times = self.repeats.say(&format!("paused by {sink}"), 1, Instant::now());
        self.is_pause_said |= times.is_some();
        if let Some(times) = times {
            warn!(route = self.parts.route, sink, error, hint, times, "route paused");
        }
    }

    pub(super) fn recover_at(&mut self, failed: SinkSet, attempt: u32, now: Instant) {
        let failed = self.leave_failed(failed, attempt, now);
        if failed.is_empty() || self.recover_apart_at(failed, attempt, now) {
            return;
        }
        let failed = match self.apart.take() {
            Some(recovery) => recovery.sinks.iter().fold(failed, SinkSet::with),
            None => failed,
        };
        let (sinks, attempt) = match &self.state {
            State::Stopped => return,
            // Whatever else fails meanwhile, what has failed often is not tried sooner for that.
            State::Recovering { sinks, attempt: known, .. } => {
                (failed.iter().fold(*sinks, SinkSet::with), attempt.max(known.saturating_sub(1)))
            }
            State::Running => (failed, attempt),
        };
        self.staged = None;
        self.lookup = None;
        self.failed.clear();
        // Everything is read again from where the sinks stand then.
        self.drop_buffered();
        self.state = State::Recovering { sinks, attempt: attempt + 1, at: now + retry::pause(attempt + 1) };
    }

    /// Tries to read the positions of the sinks that failed, and starts reading again where they are.
    pub(super) async fn recover(&mut self) {
        let State::Recovering { sinks, attempt, at } = self.state else {
            return;
        };
        if at > Instant::now() {
            return;
        }
        if !self.reset_positions(sinks, attempt).await {
            return;
        }
        self.state = State::Running;
        if std::mem::take(&mut self.is_pause_said) {
            info!(route = self.parts.route, "route resumed");
        }
        // A commit whose reply was lost has moved positions all the same.
        self.report_progress().await;
        self.abandon_account();
        let sources: Vec<TopicPartition> = self.keys.keys().cloned().collect();
        self.drop_buffered();
        self.read_again(&sources).await;
    }

    /// Reads where these sinks stand; `false` if one does not say: then it stops the lane, or is asked again later.
    pub(super) async fn reset_positions(&mut self, sinks: SinkSet, attempt: u32) -> bool {
        for index in sinks.iter() {
            match self.parts.sinks[index].sink.positions().await {
                Ok(positions) => {
                    let stored = &self.stored[index];
                    if self.keys.values().any(|key| positions.get(key) != stored.get(key)) {
                        // A commit whose reply was lost has made something durable all the same.
                        self.failures.settled(index);
                    }
                    self.ledger.reset(index, &positions);
                    self.stored[index] = positions;
                    self.pass_excused();
                }
                Err(error) if error.fault() == Fault::Stop => {
                    self.sink_failed(index, error).await;
                    return false;
                }
                Err(error) => {
                    debug!(route = self.parts.route, error = chain(&error), "still paused");
                    self.account.failed(index, error.fault());
                    self.recover_at(sinks, attempt, Instant::now());
                    return false;
                }
            }
        }
        true
    }

    pub(super) fn drop_buffered(&mut self) {
        for key in self.keys.values() {
            self.buffer.remove(key);
            self.behind.remove(key);
        }
    }

    /// Ends the lane's work until somebody acts.
    pub(super) async fn stop(&mut self, message: String, hint: Option<String>, place: Option<Place>) {
        if self.is_stopped() {
            return;
        }
        self.state = State::Stopped;
        self.failed.clear();
        self.apart = None;
        self.staged = None;
        self.lookup = None;
        for sink in &mut self.parts.sinks {
            sink.sink.abandon().await;
        }
        self.drop_buffered();
        self.account.forget(None);
        let stop = Stop { message, hint, place };
        self.summary.stop = Some(stop.clone());
        self.report(Report::Stopped(stop)).await;
    }
}
