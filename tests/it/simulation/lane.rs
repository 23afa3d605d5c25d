//! A lane without its task: ledger, buffer and positions are the code under test, what joins them is as in `engine::lane`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sidestream::config::plan::{BatchLimits, OnDataLoss};
use sidestream::engine::batching::{Buffer, Part, Taken};
use sidestream::engine::catching::{Reader, Stand};
use sidestream::engine::ledger::Ledger;
use sidestream::engine::message::{Committed, Control, Durable, Report, Stop};
use sidestream::engine::retry;
use sidestream::model::metadata::IdentityHash;
use sidestream::model::{
    Chunk, Move, Offset, Position, PositionKey, Positions, Reason, SinkSet, Start, StartHash, TopicName,
    TopicPartition,
};

use super::cluster::{Topic, at};
use super::targets::{Feed, Row, is_bad};
use super::world::{LETTERS, Outside};
use super::{Flaw, Scope};

mod behind;

/// Bytes a lane may hold for each of its readers before that one fetches nothing more.
pub const HELD_MAX: usize = 4096;

/// Records of a batch.
const ROWS_MAX: usize = 7;

/// The same where sinks are to be several batches behind each other.
const ROWS_MAX_WHOLE: usize = 4;

/// The sink whose positions are beside the group's offsets.
pub const GROUP_IDENTITY: &str = "second/topic";

/// Where a sink keeps its positions.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// In the target of this place.
    Own(usize),
    Group,
}

/// One sink: what it has accepted since its last flush.
struct SinkState {
    kind: Kind,
    feed: Feed,
    moves: Vec<Move>,
    rows: Vec<Row>,
    /// Of a sink without a store.
    settled: Positions,
}

impl SinkState {
    fn new(kind: Kind, feed: Feed) -> Self {
        Self { kind, feed, moves: Vec::new(), rows: Vec::new(), settled: Positions::default() }
    }

    fn is_own(&self) -> bool {
        matches!(self.kind, Kind::Own(_))
    }
}

/// Something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// It is tried again.
    Passes,
    /// It needs a person.
    Stops,
}

/// A report, and what caught up in each partition when it was made, where anything did.
pub struct Said {
    pub report: Report,
    pub apart: BTreeMap<TopicPartition, SinkSet>,
}

struct Recovering {
    sinks: SinkSet,
    attempt: u32,
    at: Instant,
}

type Asked = BTreeMap<TopicPartition, Committed>;

pub struct Lane {
    ledger: Ledger,
    /// What the front's reader brings.
    buffer: Buffer,
    /// What is read for sinks that catch up.
    behind: Buffer,
    /// The last batch was for sinks that catch up: the front is next.
    was_behind: bool,
    pub keys: BTreeMap<TopicPartition, PositionKey>,
    stored: Vec<Positions>,
    sinks: Vec<SinkState>,
    recovering: Option<Recovering>,
    /// Sinks that failed while they catch up everywhere.
    apart: Option<Recovering>,
    is_stopped: bool,
    /// What the engine has told, to be carried out before anything else.
    controls: VecDeque<Control>,
    to_resume: Asked,
    retry_at: Option<Instant>,
    /// Partitions when this process first looked.
    counts: BTreeMap<TopicName, i32>,
    pub inbox: VecDeque<Chunk>,
    pub held: Arc<AtomicUsize>,
    pub behind_inbox: VecDeque<Chunk>,
    pub behind_held: Arc<AtomicUsize>,
    has_letters: bool,
    is_searching: bool,
    letters_may_wait: bool,
    /// Under which name it writes to targets: later ones adopt what former ones have.
    owner: u64,
    rows_max: usize,
    pub reports: Vec<Said>,
}

impl Lane {
    /// The first lane has dead letters, the second one a sink without a store.
    pub fn new(place: usize, scope: Scope, flaw: Option<Flaw>, owner: u64) -> Self {
        let sinks = match place {
            0 => vec![
                SinkState::new(Kind::Own(0), Feed::Good),
                SinkState::new(Kind::Own(1), Feed::Good),
                SinkState::new(Kind::Own(LETTERS), Feed::Letters),
            ],
            _ => vec![SinkState::new(Kind::Group, Feed::All), SinkState::new(Kind::Own(3), Feed::All)],
        };
        let rows_max = if scope == Scope::Whole { ROWS_MAX_WHOLE } else { ROWS_MAX };
        let limits = BatchLimits { rows_max, bytes_max: 1 << 20, age_max: Duration::from_millis(300) };
        Self {
            ledger: Ledger::new(sinks.len()),
            buffer: Buffer::new(limits),
            behind: Buffer::of(Reader::CatchUp, limits),
            was_behind: false,
            keys: BTreeMap::new(),
            stored: vec![Positions::default(); sinks.len()],
            sinks,
            recovering: None,
            apart: None,
            is_stopped: false,
            controls: VecDeque::new(),
            to_resume: Asked::new(),
            retry_at: None,
            counts: BTreeMap::new(),
            inbox: VecDeque::new(),
            held: Arc::default(),
            behind_inbox: VecDeque::new(),
            behind_held: Arc::default(),
            has_letters: false,
            is_searching: false,
            letters_may_wait: flaw == Some(Flaw::LettersComeLater),
            owner,
            rows_max,
            reports: Vec::new(),
        }
    }

    pub fn sink_count(&self) -> usize {
        self.sinks.len()
    }

    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// A chunk waits that the lane would take now.
    pub fn has_chunks(&self) -> bool {
        let is_behind = self.apart.is_none() && !self.behind_inbox.is_empty();
        self.recovering.is_none() && (!self.inbox.is_empty() || is_behind)
    }

    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub fn behind_held(&self) -> usize {
        self.behind_held.load(Ordering::Relaxed)
    }

    /// Nothing is buffered, and nothing accepted that is not durable.
    pub fn is_idle(&self) -> bool {
        self.buffer.due().is_none()
            && self.behind.due().is_none()
            && (0..self.sinks.len()).all(|sink| !self.ledger.is_pending(sink))
            && self.sinks.iter().all(|sink| sink.moves.is_empty())
    }

    /// Where the sink without a store stands.
    pub fn group_next(&self, key: &PositionKey) -> Option<Offset> {
        let place = self.sinks.iter().position(|sink| !sink.is_own())?;
        self.stored[place].get(key).map(|position| position.next)
    }

    fn say(&mut self, report: Report) {
        let mut apart = BTreeMap::new();
        if matches!(report, Report::Progress(_)) {
            let each = self.keys.iter().map(|(source, key)| (source, self.ledger.apart(key)));
            apart = each
                .filter(|(_, sinks)| !sinks.is_empty())
                .map(|(source, sinks)| (source.clone(), sinks))
                .collect();
        }
        self.reports.push(Said { report, apart });
    }

    // What the engine tells.

    /// Where sinks may catch up there is time between what is told and what is done.
    pub fn tell(&mut self, control: Control, outside: &mut Outside) {
        if outside.scope == Scope::Whole {
            self.controls.push_back(control);
        } else {
            self.obey(control, outside);
        }
    }

    pub fn obey_all(&mut self, outside: &mut Outside) {
        while let Some(control) = self.controls.pop_front() {
            self.obey(control, outside);
        }
    }

    fn obey(&mut self, control: Control, outside: &mut Outside) {
        match control {
            Control::Resume(partitions) => {
                for (source, committed) in partitions {
                    // What was asked first came from the group itself.
                    self.to_resume.entry(source).or_insert(committed);
                }
            }
            Control::Assigned(assigned) => self.assigned(assigned, outside),
            Control::Look(partitions) => {
                // While something is held up, nothing joins.
                let is_working = self.recovering.is_none() && !self.is_stopped && self.apart.is_none();
                let stands = self.stands(partitions.iter().filter(|_| is_working));
                self.say(Report::Stands(stands));
            }
            Control::Lost { source, .. } => self.lost(&source, outside),
            // Lanes know all topics, give up what the engine takes at once, and end with their instance.
            other => unreachable!("{other:?}"),
        }
    }

    // Chunks and batches.

    pub fn deliver(&mut self, outside: &mut Outside) {
        if self.recovering.is_some() {
            return;
        }
        let is_behind = self.apart.is_none()
            && !self.behind_inbox.is_empty()
            && (self.inbox.is_empty() || outside.dice.one_in(2));
        let inbox = if is_behind { &mut self.behind_inbox } else { &mut self.inbox };
        let Some(chunk) = inbox.pop_front() else {
            return;
        };
        if self.is_stopped {
            return;
        }
        // What follows it shows that it is missing; without anything behind it, nobody could.
        let is_followed =
            inbox.iter().any(|next| next.source == chunk.source && next.assignment == chunk.assignment);
        if is_followed && outside.fails(40) {
            return;
        }
        let Some(key) = self.keys.get(&chunk.source).copied() else {
            return;
        };
        let source = chunk.source.clone();
        let is_behind = self.behind.assignment_of(&key) == Some(chunk.assignment);
        let buffer = if is_behind { &mut self.behind } else { &mut self.buffer };
        if buffer.push(&key, Arc::new(chunk), outside.now).is_err() {
            buffer.remove(&key);
            self.read_again(&[source]);
        }
    }

    pub fn batch(&mut self, outside: &mut Outside) {
        if self.recovering.is_some() || self.is_stopped {
            return;
        }
        let Some(taken) = self.next_batch(outside.now) else {
            return;
        };
        let moves = self.moves(&taken);
        let rows: Vec<Row> = taken
            .parts
            .iter()
            .flat_map(|part| part.records().map(move |record| (part.key, record.offset())))
            .collect();
        let has_letter_sink = self.sinks.iter().any(|sink| sink.feed == Feed::Letters);
        let has_bad = has_letter_sink && rows.iter().any(|(_, offset)| is_bad(*offset));
        let mut is_taken = true;
        for index in taken.sinks.iter() {
            if !self.is_working(index) {
                is_taken = false;
            } else if outside.fails(25) {
                is_taken = false;
                self.sink_failed(index, Setback::Passes, outside);
            } else if rows.len() > 1 && outside.fails(80) {
                is_taken = false;
                self.narrow(index, rows.len(), outside);
            } else {
                self.ledger.accept(index, &moves);
                self.has_letters |= has_bad;
                let sink = &mut self.sinks[index];
                sink.moves.extend(moves.iter().cloned());
                let feed = sink.feed;
                sink.rows.extend(rows.iter().filter(|(_, offset)| feed.wants(*offset)));
            }
            if self.is_stopped {
                return;
            }
        }
        if is_taken && self.is_searching {
            self.is_searching = [self.buffer.widen(), self.behind.widen()].contains(&false);
        }
    }

    fn moves(&self, taken: &Taken) -> Vec<Move> {
        let names: BTreeMap<&PositionKey, &TopicName> =
            self.keys.iter().map(|(source, key)| (key, &source.topic)).collect();
        let step = |part: &Part| {
            let records = part.records().count() as u64;
            Some(Move {
                key: part.key,
                topic: (*names.get(&part.key)?).clone(),
                start: Some(part.start),
                end: Position { next: part.end, epoch: part.epoch },
                reason: if records > 0 { Reason::Data } else { Reason::Idle },
                records,
            })
        };
        taken.parts.iter().filter_map(step).collect()
    }

    // Flushes, dead letters first.

    fn is_working(&self, sink: usize) -> bool {
        let failed = self.recovering.as_ref().or(self.apart.as_ref());
        !self.is_stopped && failed.is_none_or(|recovering| !recovering.sinks.contains(sink))
    }

    fn letter_sinks(&self) -> Vec<usize> {
        (0..self.sinks.len()).filter(|sink| self.sinks[*sink].feed == Feed::Letters).collect()
    }

    fn is_held(&self, sink: usize) -> bool {
        self.has_letters
            && !self.letters_may_wait
            && self.sinks[sink].feed != Feed::Letters
            && self
                .letter_sinks()
                .into_iter()
                .any(|letter| !self.is_working(letter) || self.ledger.is_behind(letter, sink))
    }

    fn are_letters_settled(&self) -> bool {
        self.letter_sinks().into_iter().all(|letter| {
            self.is_working(letter)
                && self.sinks[letter].moves.is_empty()
                && (0..self.sinks.len()).all(|other| !self.ledger.is_behind(letter, other))
        })
    }

    /// One sink, as when it says that it is due.
    pub fn flush_due(&mut self, index: usize, outside: &mut Outside) {
        if self.flush(index, outside) {
            self.report_progress(outside);
        }
    }

    pub fn flush_all(&mut self, outside: &mut Outside) {
        let mut is_moved = false;
        for index in 0..self.sinks.len() {
            is_moved |= self.flush(index, outside);
        }
        self.has_letters &= !self.are_letters_settled();
        if is_moved {
            self.report_progress(outside);
        }
    }

    fn flush(&mut self, index: usize, outside: &mut Outside) -> bool {
        if self.sinks[index].moves.is_empty() || !self.is_working(index) || self.is_held(index) {
            return false;
        }
        if self.has_letters && !self.letters_may_wait && self.sinks[index].feed != Feed::Letters {
            if let Err((letter, setback)) = self.settle_letters(outside) {
                self.sink_failed(letter, setback, outside);
                return false;
            }
            if self.is_held(index) {
                return false;
            }
        }
        let settled = self.settle(index, outside);
        if let Err(setback) = settled {
            self.sink_failed(index, setback, outside);
        }
        settled.is_ok()
    }

    /// The sink that failed, if one did.
    fn settle_letters(&mut self, outside: &mut Outside) -> Result<(), (usize, Setback)> {
        for letter in self.letter_sinks() {
            if !self.sinks[letter].moves.is_empty() {
                self.settle(letter, outside).map_err(|setback| (letter, setback))?;
            }
        }
        self.has_letters = !self.are_letters_settled();
        Ok(())
    }

    fn settle(&mut self, index: usize, outside: &mut Outside) -> Result<(), Setback> {
        let sink = &mut self.sinks[index];
        let moves = std::mem::take(&mut sink.moves);
        let rows = std::mem::take(&mut sink.rows);
        let positions = match sink.kind {
            Kind::Own(target) => outside.write_own((target, self.owner), &moves, &rows)?,
            Kind::Group => {
                outside.write_group(&moves, &rows)?;
                sink.settled.apply(&moves).map_err(|_| Setback::Passes)?;
                sink.settled.clone()
            }
        };
        self.ledger.settle(index, &positions);
        self.stored[index] = positions;
        Ok(())
    }

    pub fn report_progress(&mut self, outside: &Outside) {
        let all: SinkSet = (0..self.sinks.len()).collect();
        let durable = self.keys.iter().filter_map(|(source, key)| {
            let settled = self.ledger.committable(key, all)?;
            let front = self.ledger.served(key, Reader::Front);
            let next = if outside.flaw == Some(Flaw::AcceptedIsCommitted) {
                self.ledger.resume_at(key)?
            } else {
                self.ledger.committable(key, front).unwrap_or(settled)
            };
            let mut stored = self.stored.iter().filter_map(|positions| positions.get(key));
            let epoch = stored.find(|position| position.next == next).and_then(|position| position.epoch);
            let positions = self.group_next(key).map(|next| (GROUP_IDENTITY.to_owned(), next));
            let positions = positions.into_iter().collect();
            let durable = Durable {
                next,
                settled,
                is_apart: front.is_empty(),
                epoch,
                logs: Vec::new(),
                positions,
                starts: Vec::new(),
            };
            Some((source.clone(), durable))
        });
        let durable: BTreeMap<TopicPartition, Durable> = durable.collect();
        self.say(Report::Progress(durable));
    }

    // Failures.

    /// Ends the lane's work until somebody acts.
    fn stop(&mut self) {
        if std::mem::replace(&mut self.is_stopped, true) {
            return;
        }
        (self.recovering, self.apart) = (None, None);
        (0..self.sinks.len()).for_each(|index| self.abandon(index));
        self.drop_buffered();
        let message = "it needs a person".to_owned();
        self.say(Report::Stopped(Stop { message, hint: None, place: None }));
    }

    fn abandon(&mut self, index: usize) {
        self.sinks[index].moves.clear();
        self.sinks[index].rows.clear();
    }

    fn sink_failed(&mut self, index: usize, setback: Setback, outside: &Outside) {
        self.abandon(index);
        if setback == Setback::Stops {
            return self.stop();
        }
        let attempt = match (&self.recovering, &self.apart) {
            (Some(recovering), _) => recovering.attempt,
            (None, Some(apart)) if apart.sinks.contains(index) => apart.attempt,
            (None, _) => 0,
        };
        self.recover_at(SinkSet::EMPTY.with(index), attempt, outside.now);
    }

    /// A row was refused: smaller batches, from where the sink stands.
    fn narrow(&mut self, index: usize, records: usize, outside: &mut Outside) {
        self.is_searching = true;
        self.buffer.narrow(records / 2);
        self.behind.narrow(records / 2);
        if self.sinks[index].is_own() {
            if let Err((letter, setback)) = self.settle_letters(outside) {
                return self.sink_failed(letter, setback, outside);
            }
            if !self.is_held(index)
                && let Err(setback) = self.settle(index, outside)
            {
                return self.sink_failed(index, setback, outside);
            }
        }
        self.abandon(index);
        self.recover_at(SinkSet::EMPTY.with(index), 0, outside.now);
    }

    fn recover_at(&mut self, failed: SinkSet, attempt: u32, now: Instant) {
        if self.recover_apart_at(failed, now) || self.is_stopped {
            return;
        }
        let apart = self.apart.take().map_or(SinkSet::EMPTY, |apart| apart.sinks);
        let before = self.recovering.as_ref().map_or(SinkSet::EMPTY, |recovering| recovering.sinks);
        let sinks = failed.iter().chain(apart.iter()).fold(before, SinkSet::with);
        self.drop_buffered();
        self.recovering =
            Some(Recovering { sinks, attempt: attempt + 1, at: now + retry::pause(attempt + 1) });
    }

    pub fn recover(&mut self, outside: &mut Outside) {
        self.recover_all(outside);
        if self.recovering.is_none() {
            self.recover_apart(outside);
        }
    }

    fn recover_all(&mut self, outside: &mut Outside) {
        let Some(Recovering { sinks, attempt, at }) = self.recovering else {
            return;
        };
        if at > outside.now || !self.reset_positions(sinks, attempt, outside) {
            return;
        }
        self.recovering = None;
        // A commit whose reply was lost has moved positions all the same.
        self.report_progress(outside);
        let sources: Vec<TopicPartition> = self.keys.keys().cloned().collect();
        self.drop_buffered();
        self.read_again(&sources);
    }

    /// Reads where these sinks stand; `false` if one does not say.
    fn reset_positions(&mut self, sinks: SinkSet, attempt: u32, outside: &mut Outside) -> bool {
        for index in sinks.iter() {
            match self.read_positions(index, outside) {
                Ok(positions) => {
                    // Whatever it held would come beside what it reads again.
                    assert!(self.sinks[index].moves.is_empty(), "a sink that failed was given a batch");
                    self.ledger.reset(index, &positions);
                    self.stored[index] = positions;
                }
                Err(Setback::Stops) => {
                    self.stop();
                    return false;
                }
                Err(Setback::Passes) => {
                    self.recover_at(sinks, attempt, outside.now);
                    return false;
                }
            }
        }
        true
    }

    fn drop_buffered(&mut self) {
        for key in self.keys.values() {
            self.buffer.remove(key);
            self.behind.remove(key);
        }
    }

    fn read_positions(&self, index: usize, outside: &mut Outside) -> Result<Positions, Setback> {
        let sink = &self.sinks[index];
        match sink.kind {
            Kind::Own(target) => outside.read_own((target, self.owner)),
            Kind::Group => Ok(sink.settled.clone()),
        }
    }

    // Partitions come and go.

    pub fn give_up(&mut self, partitions: &[TopicPartition], is_lost: bool, outside: &mut Outside) {
        if !is_lost {
            self.flush_all(outside);
        }
        let is_left = (0..self.sinks.len()).any(|sink| self.ledger.is_pending(sink));
        if is_lost || (is_left && !self.is_stopped) {
            let all: SinkSet = (0..self.sinks.len()).collect();
            all.iter().for_each(|index| self.abandon(index));
            self.recover_at(all, 0, outside.now);
        }
        for source in partitions {
            self.to_resume.remove(source);
            if let Some(key) = self.keys.remove(source) {
                self.ledger.revoke(&key);
                self.buffer.remove(&key);
                self.behind.remove(&key);
            }
        }
    }

    /// The brokers no longer have what comes next.
    fn lost(&mut self, source: &TopicPartition, outside: &mut Outside) {
        if outside.on_data_loss == OnDataLoss::Stop {
            self.flush_all(outside);
            return self.stop();
        }
        self.give_up(std::slice::from_ref(source), false, outside);
        self.retry_at = Some(outside.now + retry::pause(1));
        self.say(Report::Rewind(vec![source.clone()]));
    }

    pub fn resume(&mut self, outside: &mut Outside) {
        let waits = self.retry_at.is_some_and(|at| at > outside.now);
        if self.recovering.is_some() || self.is_stopped || self.to_resume.is_empty() || waits {
            return;
        }
        self.retry_at = None;
        let asked = std::mem::take(&mut self.to_resume);
        let (known, unknown): (Asked, Asked) =
            asked.into_iter().partition(|(source, _)| self.keys.contains_key(source));
        self.say_ready(known.keys());
        if unknown.is_empty() {
            return;
        }
        self.to_resume.clone_from(&unknown);
        match self.take_up(&unknown, outside) {
            Ok(()) => {
                self.to_resume.clear();
                self.report_progress(outside);
                self.say_ready(unknown.keys());
            }
            Err(Setback::Stops) => self.stop(),
            Err(Setback::Passes) => self.retry_at = Some(outside.now + retry::pause(1)),
        }
    }

    fn say_ready<'a>(&mut self, sources: impl Iterator<Item = &'a TopicPartition>) {
        let ready = self.stands(sources);
        if !ready.is_empty() {
            self.say(Report::Ready(ready));
        }
    }

    fn stands<'a>(
        &self,
        sources: impl Iterator<Item = &'a TopicPartition>,
    ) -> BTreeMap<TopicPartition, Stand> {
        let letters: SinkSet = self.letter_sinks().into_iter().collect();
        let stand = |source: &TopicPartition| {
            let accepted = self.ledger.accepted(self.keys.get(source)?)?;
            let (away, beside) = (SinkSet::EMPTY, SinkSet::EMPTY);
            Some(Stand { accepted, letters, rows_max: self.rows_max, away, beside })
        };
        sources.filter_map(|source| Some((source.clone(), stand(source)?))).collect()
    }

    fn take_up(&mut self, asked: &Asked, outside: &mut Outside) -> Result<(), Setback> {
        if self.has_letters {
            self.flush_all(outside);
            if self.has_letters {
                return Err(Setback::Passes);
            }
        }
        for index in 0..self.sinks.len() {
            match self.read_positions(index, outside) {
                Ok(positions) => self.stored[index] = positions,
                Err(setback) => {
                    self.sink_failed(index, setback, outside);
                    return Err(setback);
                }
            }
        }
        if outside.fails(30) {
            // The brokers do not answer.
            return Err(Setback::Passes);
        }
        for (name, topic) in &outside.cluster.topics {
            self.counts.entry(name.clone()).or_insert(topic.partition_count);
        }
        let recreated = self.recreated(outside);
        if !recreated.is_empty() && outside.on_data_loss == OnDataLoss::Stop {
            return Err(Setback::Stops);
        }
        self.restore(asked, outside, &recreated);
        self.first_sight(asked, outside, &recreated)?;
        self.enter(asked, outside)
    }

    fn recreated(&self, outside: &Outside) -> BTreeSet<TopicName> {
        let is_recreated = |name: &TopicName, topic: &Topic| {
            self.stored.iter().any(|stored| stored.former_id(name, topic.id).is_some())
        };
        let topics = outside.cluster.topics.iter();
        topics.filter(|(name, topic)| is_recreated(name, topic)).map(|(name, _)| name.clone()).collect()
    }

    fn restore(&mut self, asked: &Asked, outside: &Outside, recreated: &BTreeSet<TopicName>) {
        let identity = IdentityHash::of(GROUP_IDENTITY);
        for (sink, stored) in self.sinks.iter_mut().zip(&mut self.stored) {
            if sink.is_own() {
                continue;
            }
            for (source, committed) in asked.iter().filter(|(source, _)| !recreated.contains(&source.topic)) {
                let next = committed.metadata.position(&identity).or(committed.offset);
                if let (Some(next), Some(key)) = (next, outside.cluster.key(source)) {
                    let position = Position { next, epoch: None };
                    sink.settled.restore(key, source.topic.clone(), position);
                    stored.restore(key, source.topic.clone(), position);
                }
            }
        }
    }

    fn first_sight(
        &mut self,
        asked: &Asked,
        outside: &mut Outside,
        recreated: &BTreeSet<TopicName>,
    ) -> Result<(), Setback> {
        let hash = StartHash("h".to_owned());
        let mut own = self.sinks.iter().zip(&self.stored).filter(|(sink, _)| sink.is_own());
        let is_unchanged = own.any(|(_, stored)| stored.start_hash() == Some(&hash));
        for index in 0..self.sinks.len() {
            let is_own = self.sinks[index].is_own();
            let mut moves = Vec::new();
            for source in outside.cluster.sources() {
                let Some(key) = outside.cluster.key(&source) else {
                    continue;
                };
                if self.stored[index].get(&key).is_some() || !(is_own || asked.contains_key(&source)) {
                    continue;
                }
                let is_new = is_unchanged || recreated.contains(&source.topic);
                let next = self.start(index, &source, &key, is_new, outside);
                moves.push(Move {
                    key,
                    topic: source.topic.clone(),
                    start: None,
                    end: Position { next, epoch: None },
                    reason: Reason::Start { hash: hash.clone() },
                    records: 0,
                });
            }
            if !moves.is_empty() {
                self.store_moves(index, moves, outside)?;
            }
        }
        Ok(())
    }

    /// Where a sink begins in a partition it has no position for.
    fn start(
        &self,
        index: usize,
        source: &TopicPartition,
        key: &PositionKey,
        is_new: bool,
        outside: &Outside,
    ) -> Offset {
        let is_added = match self.sinks[index].kind {
            Kind::Own(_) => self.stored[index].knows(key.topic_id),
            Kind::Group => self.counts.get(&source.topic).is_some_and(|count| source.partition.0 >= *count),
        };
        let siblings = self.stored.iter().filter_map(|stored| stored.get(key));
        let sibling = siblings.map(|position| position.next).min().filter(|_| !is_added);
        let log = outside.cluster.log(key);
        let bounds = (at(log.first), at(log.end()));
        let start = if is_added || is_new { &Start::Earliest } else { &outside.start };
        sibling.unwrap_or_else(|| start.resolve(source, bounds, None))
    }

    fn store_moves(&mut self, index: usize, moves: Vec<Move>, outside: &mut Outside) -> Result<(), Setback> {
        self.sinks[index].moves.extend(moves);
        let stored = self.settle(index, outside);
        if let Err(setback) = stored {
            self.sink_failed(index, setback, outside);
        }
        stored
    }

    /// Moves over what the brokers have lost, and enters the partitions in the ledger.
    fn enter(&mut self, asked: &Asked, outside: &mut Outside) -> Result<(), Setback> {
        let sources: Vec<(TopicPartition, PositionKey)> =
            asked.keys().filter_map(|source| Some((source.clone(), outside.cluster.key(source)?))).collect();
        for index in 0..self.sinks.len() {
            let mut moves = Vec::new();
            for (source, key) in &sources {
                let log = outside.cluster.log(key);
                let next = self.stored[index].get(key).unwrap().next;
                let to = next.get().clamp(log.first, log.end());
                if to != next.get() {
                    if outside.on_data_loss == OnDataLoss::Stop {
                        return Err(Setback::Stops);
                    }
                    moves.push(Move {
                        key: *key,
                        topic: source.topic.clone(),
                        start: Some(next),
                        end: Position { next: at(to), epoch: None },
                        reason: Reason::Lost,
                        records: 0,
                    });
                }
            }
            if !moves.is_empty() {
                self.store_moves(index, moves, outside)?;
            }
        }
        for (source, key) in sources {
            let durable: Vec<Offset> =
                self.stored.iter().map(|stored| stored.get(&key).unwrap().next).collect();
            self.ledger.assign(key, &durable);
            self.keys.insert(source, key);
        }
        Ok(())
    }
}
