//! Sinks that their route goes on without (`required: false`): they leave when they fail or are too slow, and come back
//! beside the others.
//!
//! One that is away is given nothing, and holds up neither its lane nor the group. It is asked again and again where it
//! stands. When it says so, it is read for from there, by the consumer for what catches up however near it is: a sink that
//! fails each time it is written to must not send the front back each time. After a while without a failure it joins the
//! front as others do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::engine::batching::Taken;
use crate::engine::catching::Reader;
use crate::engine::message::{Committed, Report};
use crate::engine::{chain, retry};
use crate::model::{
    Classify, Fault, Move, Offset, Position, PositionKey, Positions, SinkSet, TopicName, TopicPartition,
};
use crate::sink::{SinkError, Store};

use super::resume::{Asked, Setback};
use super::{Lane, State};

/// A sink that came back is read for by itself so long at least: it may fail again at once. In unit tests it does.
const BESIDE_MIN: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 10_000 });

/// What needs a person is tried again all the same, as no restart does: so often that whoever has acted sees it soon, and
/// seldom enough for what costs a log line and a refused login each time.
const PERSON_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 60_000 });

/// How often a sink at work is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// At the end, and when it stores where it begins, a sink that works is waited for so long.
const WHOLE_MAX: Duration = Duration::from_secs(5);

/// Why a sink is given nothing.
#[derive(Debug, Clone, Copy)]
enum Away {
    /// It works, and has to finish first what it has; or a required sink catches up, with which it would share a reader.
    Waiting,
    /// It has to say where it stands; then it is asked.
    Failed { attempt: u32, at: Instant },
}

/// What a lane knows of the sinks that are not required.
#[derive(Debug, Default)]
pub struct Optional {
    away: BTreeMap<usize, Away>,
    /// Those that came back, and until when they read by themselves.
    beside: BTreeMap<usize, Instant>,
    /// Where the others stood when a partition was taken up: there a sink begins that could not say yet whether it was
    /// ever here.
    begins: BTreeMap<PositionKey, Offset>,
    /// The last batch that was read for such sinks alone, if it was one record.
    kept: Option<Taken>,
    /// The engine has not been told who left or came back.
    is_news: bool,
}

impl Optional {
    /// Has it failed, and not said since where it stands?
    pub fn has_failed(&self, sink: usize) -> bool {
        matches!(self.away.get(&sink), Some(Away::Failed { .. }))
    }

    /// The sinks that read by themselves however near they are.
    pub fn beside(&self) -> SinkSet {
        self.beside.keys().copied().collect()
    }

    /// Where a sink without a position begins in a partition, unless it says so itself.
    pub fn begin(&self, key: &PositionKey) -> Option<Offset> {
        self.begins.get(key).copied()
    }

    pub fn forget(&mut self, key: &PositionKey) {
        self.begins.remove(key);
    }
}

impl Lane {
    pub(super) fn is_optional(&self, index: usize) -> bool {
        !self.ledger.required().contains(index)
    }

    /// Sinks of this set that are not required.
    fn optional_of(&self, sinks: SinkSet) -> SinkSet {
        sinks.minus(sinks.minus(self.ledger.optional()))
    }

    fn optional_sinks(&self) -> SinkSet {
        self.ledger.optional()
    }

    /// Does a required sink catch up somewhere? Another one, further behind, would drag it back.
    fn has_required_apart(&self) -> bool {
        let required = self.ledger.required();
        let is_apart = |key| required.iter().any(|sink| self.ledger.apart(key).contains(sink));
        self.keys.values().any(is_apart)
    }

    /// When something has to be done for sinks that are away, or of which an answer is awaited.
    pub(super) fn optional_due(&self) -> Option<Instant> {
        let soon = Instant::now() + LOOK_INTERVAL;
        let is_blocked = !self.optional.away.is_empty() && self.has_required_apart();
        let away = self.optional.away.values().map(|away| match away {
            Away::Failed { at, .. } if !is_blocked => *at,
            Away::Failed { at, .. } => (*at).max(soon),
            Away::Waiting => soon,
        });
        away.chain(self.awaits_late().then_some(soon)).min()
    }

    /// Is it still to be told what became of the last batch of a sink that is flushed after each? The next one waits.
    pub(super) fn awaits_late(&self) -> bool {
        let late = self.optional_of(self.late).minus(self.ledger.away());
        late.iter().any(|index| self.ledger.is_pending(index))
    }

    /// Keeps a batch of one record until its sinks were flushed.
    pub(super) fn keep(&mut self, taken: Taken) {
        let is_optional = self.optional_of(taken.sinks) == taken.sinks;
        let kept = (self.taken_last == 1).then_some(taken);
        if is_optional {
            self.optional.kept = kept;
        } else {
            self.kept = kept;
        }
    }

    /// Goes on without the sinks that have as much to do as they may have.
    pub(super) fn leave_slow(&mut self) {
        for index in self.optional_sinks().minus(self.ledger.away()).iter() {
            if !self.parts.sinks[index].sink.is_full() {
                continue;
            }
            let sink = self.parts.sinks[index].name.clone();
            if let Some(times) = self.repeats.say(&format!("slow {sink}"), 1, Instant::now()) {
                let route = self.parts.route.as_str();
                info!(route, sink, times, "the sink is slower than its route, which goes on; it catches up");
            }
            self.account.away(index, Some(("it is slower than its route", None)));
            self.go_away(index, Away::Waiting);
        }
    }

    /// A sink failed, and was told to let go of what it held. The route goes on without it.
    pub(super) fn optional_failed(&mut self, index: usize, fault: Fault, message: &str, hint: Option<&str>) {
        let before = self.failures.failed(index);
        let pause = match fault {
            Fault::Stop | Fault::Refused => PERSON_PAUSE,
            Fault::Transient | Fault::Conflict => retry::pause(before.saturating_add(1)),
        };
        self.say_away(index, message, hint);
        self.leave(index, before, Instant::now() + pause);
    }

    fn say_away(&mut self, index: usize, error: &str, hint: Option<&str>) {
        self.account.away(index, Some((error, hint)));
        let sink = &self.parts.sinks[index].name;
        if let Some(times) = self.repeats.say(&format!("without {sink}"), 1, Instant::now()) {
            let route = self.parts.route.as_str();
            warn!(
                route,
                sink, error, hint, times, "the route goes on without a sink; it catches up when it is back"
            );
        }
    }

    /// Takes those out of these sinks that are not required: they are asked by themselves where they stand. Returns the
    /// others.
    pub(super) fn leave_failed(&mut self, failed: SinkSet, attempt: u32, now: Instant) -> SinkSet {
        let optional = self.optional_of(failed);
        for index in optional.iter().filter(|index| !self.optional.has_failed(*index)).collect::<Vec<_>>() {
            self.leave(index, attempt, now + retry::pause(attempt.saturating_add(1)));
        }
        failed.minus(optional)
    }

    fn leave(&mut self, index: usize, attempt: u32, at: Instant) {
        self.ledger.throw_back(index);
        self.go_away(index, Away::Failed { attempt: attempt.saturating_add(1), at });
    }

    fn go_away(&mut self, index: usize, away: Away) {
        self.optional.away.insert(index, away);
        self.optional.beside.remove(&index);
        self.optional.kept = None;
        self.optional.is_news = true;
        self.ledger.set_away(index, true);
        // What is read for nobody any more.
        for key in self.keys.values() {
            for (reader, buffer) in [(Reader::Front, &mut self.buffer), (Reader::CatchUp, &mut self.behind)] {
                if self.ledger.served(key, reader).is_empty() {
                    buffer.remove(key);
                }
            }
        }
    }

    /// Lets go of what sinks that are not required hold: it cannot become durable in time, and must not later.
    pub(super) async fn leave_pending(&mut self, sinks: SinkSet) {
        for index in self.optional_of(sinks).iter() {
            if self.optional.has_failed(index) {
                continue;
            }
            if self.ledger.is_pending(index) || self.parts.sinks[index].sink.is_busy() {
                self.parts.sinks[index].sink.abandon().await;
                self.leave(index, 0, Instant::now());
            }
        }
    }

    /// Of a sink that works and waits, positions have to be read again: partitions come, which others may have moved.
    pub(super) async fn leave_waiting(&mut self) {
        let waiting = self.optional.away.iter().filter(|(_, away)| matches!(away, Away::Waiting));
        let waiting: Vec<usize> = waiting.map(|(index, _)| *index).collect();
        for index in waiting {
            self.parts.sinks[index].sink.abandon().await;
            self.leave(index, 0, Instant::now());
        }
    }

    /// Sinks that catch up give way to a required one that does: both would read from where the slower one stands.
    pub(super) fn give_way(&mut self) {
        if !self.has_required_apart() {
            return;
        }
        let reads_beside = |index: &usize| {
            let mut apart = self.keys.values().map(|key| self.ledger.apart(key));
            apart.any(|apart| apart != SinkSet::ALL && apart.contains(*index))
        };
        let all = self.optional_sinks().minus(self.ledger.away());
        let all: Vec<usize> = all.iter().filter(reads_beside).collect();
        for index in all {
            self.account.away(index, Some(("it waits for a required sink that catches up", None)));
            self.go_away(index, Away::Waiting);
        }
    }

    /// Looks after those that are away.
    pub(super) async fn tend(&mut self) {
        let now = Instant::now();
        self.optional.beside.retain(|_, until| *until > now);
        if !self.optional.away.is_empty() && !self.has_required_apart() {
            let away: Vec<(usize, Away)> =
                self.optional.away.iter().map(|(index, away)| (*index, *away)).collect();
            for (index, away) in away {
                match away {
                    Away::Failed { attempt, at } if at <= now => self.come_back(index, attempt).await,
                    Away::Waiting if !self.parts.sinks[index].sink.is_busy() => self.back(index),
                    Away::Failed { .. } | Away::Waiting => {}
                }
            }
        }
        self.tell_away().await;
    }

    /// Asks a sink that failed where it stands, and goes on from there.
    async fn come_back(&mut self, index: usize, attempt: u32) {
        let later = |pause: Duration| Away::Failed { attempt, at: Instant::now() + pause };
        let away = match self.parts.sinks[index].sink.positions().await {
            Ok(positions) => {
                // If it fails again meanwhile, it is among them again.
                self.optional.away.remove(&index);
                match self.take_back(index, positions).await {
                    Ok(()) => return self.back(index),
                    Err(Setback::Sink | Setback::Letters) if self.optional.away.contains_key(&index) => {
                        return;
                    }
                    Err(Setback::Brokers(error)) => {
                        self.account.trouble(&chain(&error), error.hint().as_deref());
                        later(retry::pause(attempt))
                    }
                    Err(Setback::Stop { message, hint, .. }) => {
                        self.say_away(index, &message, Some(hint));
                        later(PERSON_PAUSE)
                    }
                    Err(Setback::Sink | Setback::Letters) => later(retry::pause(attempt)),
                }
            }
            // The answer is on its way.
            Err(_) if self.parts.sinks[index].sink.is_busy() => later(LOOK_INTERVAL),
            Err(error) => {
                self.account.failed(index, error.fault());
                let hint = error.hint().map(|hint| hint.into_owned());
                self.say_away(index, &chain(&error), hint.as_deref());
                let pause = match error.fault() {
                    Fault::Stop | Fault::Refused => PERSON_PAUSE,
                    Fault::Transient | Fault::Conflict => retry::pause(attempt),
                };
                Away::Failed { attempt: attempt.saturating_add(1), at: Instant::now() + pause }
            }
        };
        self.optional.away.insert(index, away);
    }

    /// Takes in where a sink stands that was away: what it never saw begins where the others stood then, and what the
    /// brokers have deleted meanwhile is passed over.
    async fn take_back(&mut self, index: usize, positions: Positions) -> Result<(), Setback> {
        self.stored[index] = positions;
        if self.keys.is_empty() {
            return Ok(());
        }
        let only = SinkSet::EMPTY.with(index);
        let none = Committed::default();
        let sources: Vec<TopicPartition> = self.keys.keys().cloned().collect();
        let asked: Asked<'_> = sources.iter().map(|source| (source, &none)).collect();
        let infos = self.describe(&asked).await?;
        let recreated = self.recreated(&infos, only)?;
        self.first_sight(&asked, &infos, &recreated, only).await?;
        self.restate_start(&asked, &infos, only).await?;
        self.pass_lost(&sources, &infos, only).await?;
        for key in self.keys.values() {
            match self.stored[index].get(key) {
                Some(position) => self.ledger.stand(index, key, position.next),
                None => return Err(Setback::Sink),
            }
        }
        Ok(())
    }

    /// A sink takes part again, beside the others.
    fn back(&mut self, index: usize) {
        self.optional.away.remove(&index);
        self.optional.beside.insert(index, Instant::now() + BESIDE_MIN);
        self.optional.is_news = true;
        self.ledger.set_away(index, false);
        for key in self.keys.values() {
            let apart = self.ledger.apart(key).with(index);
            self.ledger.set_apart(*key, apart);
        }
        self.account.away(index, None);
        let sink = &self.parts.sinks[index].name;
        if let Some(times) = self.repeats.say(&format!("back {sink}"), 1, Instant::now()) {
            info!(route = self.parts.route, sink, times, "a sink is back, and catches up");
        }
    }

    /// Tells the engine who reads by itself now, and for whom nothing is read.
    pub(super) async fn tell_away(&mut self) {
        if !self.optional.is_news || !matches!(self.state, State::Running) {
            return;
        }
        self.optional.is_news = false;
        self.settle_account();
        let stands = self.stands(self.keys.keys());
        if !stands.is_empty() {
            self.report(Report::CatchUp(stands)).await;
        }
    }

    /// Such a sink refused some row when it was flushed. It is looked for in what is read for it alone.
    pub(super) async fn optional_refused(&mut self, index: usize, error: SinkError) -> bool {
        if !self.lets_go(index) {
            self.sink_failed(index, error).await;
            return false;
        }
        self.account.failed(index, Fault::Refused);
        if let Some(taken) = self.optional.kept.take()
            && self.holds_only(index, &taken)
        {
            return self.let_go_flushed(index, &error, &taken).await;
        }
        let records = self.behind.rows_max().max(2);
        self.narrow(index, error, records, true).await;
        false
    }

    /// Is this batch all that a sink has taken and not made durable?
    fn holds_only(&self, index: usize, taken: &Taken) -> bool {
        let of = |key: &PositionKey| taken.parts.iter().find(|part| part.key == *key);
        self.keys.values().all(|key| {
            let durable = self.ledger.durable(index, key);
            let accepted = self.ledger.accepted(key).and_then(|accepted| accepted.get(index).copied());
            match of(key) {
                Some(part) => (durable, accepted) == (Some(part.start), Some(part.end)),
                None => durable == accepted,
            }
        })
    }

    /// Makes these moves durable, also in a sink that works in the background and may take a moment.
    pub(super) async fn settle_whole(&mut self, index: usize, moves: &[Move]) -> Result<(), SinkError> {
        let deadline = Instant::now() + WHOLE_MAX;
        loop {
            self.settle(index).await?;
            let is_stored = |step: &Move| {
                let stored = self.stored[index].get(&step.key);
                stored.is_some_and(|position| position.next == step.end.next)
            };
            if !self.is_optional(index) || moves.iter().all(is_stored) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let action = "store where it begins".to_owned();
                return Err(SinkError::Transient { action, hint: None, source: "it takes too long".into() });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// At the end: what sinks that work have taken becomes durable, if that is soon done. The others are told of.
    pub(super) async fn finish_optional(&mut self) {
        let deadline = Instant::now() + WHOLE_MAX;
        while self.is_optional_pending() && !self.is_stopped() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.flush_all().await;
        }
        self.settle_account();
        for index in self.optional_sinks().iter() {
            let (sink, offsets) = (&self.parts.sinks[index].name, self.account.owed(index));
            if offsets > 0 {
                let route = self.parts.route.as_str();
                warn!(
                    route,
                    sink,
                    offsets,
                    "a sink is behind its route at the end; the next start goes on where it stands"
                );
            }
        }
    }

    fn is_optional_pending(&self) -> bool {
        self.optional_sinks().iter().any(|index| self.ledger.is_pending(index))
    }

    /// A partition is taken up while a sink cannot say where it stands: if it was never here, it begins with the others.
    pub(super) fn note_begin(&mut self, key: PositionKey, topic: &TopicName) {
        let required = self.ledger.required();
        let stored = self.stored.iter().enumerate().filter(|(index, _)| required.contains(*index));
        let Some(next) = stored.filter_map(|(_, stored)| Some(stored.get(&key)?.next)).min() else {
            return;
        };
        let next = *self.optional.begins.entry(key).or_insert(next);
        for index in self.ledger.away().iter() {
            let (sink, stored) = (&mut self.parts.sinks[index].sink, &mut self.stored[index]);
            // The group keeps it, whatever comes.
            if sink.store() == Store::Group && stored.get(&key).is_none() {
                let position = Position { next, epoch: None };
                sink.restore(key, topic, position);
                stored.restore(key, topic.clone(), position);
            }
        }
    }
}
