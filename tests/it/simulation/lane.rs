//! A lane without its task: ledger, buffer and positions are the code under test, what joins them is as in `engine::lane`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sidestream::config::plan::BatchLimits;
use sidestream::engine::batching::{Buffer, Part, Taken};
use sidestream::engine::catching::Stand;
use sidestream::engine::ledger::Ledger;
use sidestream::engine::message::{Committed, Durable, Report};
use sidestream::engine::retry;
use sidestream::model::metadata::IdentityHash;
use sidestream::model::{
    Chunk, Move, Offset, Position, PositionKey, Positions, Reason, SinkSet, Start, StartHash, TopicName,
    TopicPartition,
};

use super::Flaw;
use super::cluster::{Topic, at};
use super::targets::{Feed, Row, is_bad};
use super::world::{LETTERS, Outside};

/// Bytes a lane may hold before nothing more is fetched for it.
pub const HELD_MAX: usize = 4096;

/// Records of a batch.
const ROWS_MAX: usize = 7;

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

/// Something failed, and was dealt with.
pub struct Setback;

struct Recovering {
    sinks: SinkSet,
    attempt: u32,
    at: Instant,
}

type Asked = BTreeMap<TopicPartition, Committed>;

pub struct Lane {
    ledger: Ledger,
    buffer: Buffer,
    pub keys: BTreeMap<TopicPartition, PositionKey>,
    stored: Vec<Positions>,
    sinks: Vec<SinkState>,
    recovering: Option<Recovering>,
    pub to_resume: Asked,
    retry_at: Option<Instant>,
    /// Partitions when this process first looked.
    counts: BTreeMap<TopicName, i32>,
    pub inbox: VecDeque<Chunk>,
    pub held: Arc<AtomicUsize>,
    has_letters: bool,
    is_searching: bool,
    letters_may_wait: bool,
    pub reports: Vec<Report>,
}

impl Lane {
    /// The first lane has dead letters, the second one a sink without a store.
    pub fn new(place: usize, flaw: Option<Flaw>) -> Self {
        let sinks = match place {
            0 => vec![
                SinkState::new(Kind::Own(0), Feed::Good),
                SinkState::new(Kind::Own(1), Feed::Good),
                SinkState::new(Kind::Own(LETTERS), Feed::Letters),
            ],
            _ => vec![SinkState::new(Kind::Group, Feed::All), SinkState::new(Kind::Own(3), Feed::All)],
        };
        let limits =
            BatchLimits { rows_max: ROWS_MAX, bytes_max: 1 << 20, age_max: Duration::from_millis(300) };
        Self {
            ledger: Ledger::new(sinks.len()),
            buffer: Buffer::new(limits),
            keys: BTreeMap::new(),
            stored: vec![Positions::default(); sinks.len()],
            sinks,
            recovering: None,
            to_resume: Asked::new(),
            retry_at: None,
            counts: BTreeMap::new(),
            inbox: VecDeque::new(),
            held: Arc::default(),
            has_letters: false,
            is_searching: false,
            letters_may_wait: flaw == Some(Flaw::LettersComeLater),
            reports: Vec::new(),
        }
    }

    pub fn sink_count(&self) -> usize {
        self.sinks.len()
    }

    pub fn is_running(&self) -> bool {
        self.recovering.is_none()
    }

    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Nothing is buffered, and nothing accepted that is not durable.
    pub fn is_idle(&self) -> bool {
        self.buffer.due().is_none()
            && (0..self.sinks.len()).all(|sink| !self.ledger.is_pending(sink))
            && self.sinks.iter().all(|sink| sink.moves.is_empty())
    }

    /// Where the sink without a store stands.
    pub fn group_next(&self, key: &PositionKey) -> Option<Offset> {
        let place = self.sinks.iter().position(|sink| !sink.is_own())?;
        self.stored[place].get(key).map(|position| position.next)
    }

    // Chunks and batches.

    pub fn deliver(&mut self, outside: &mut Outside) {
        if self.recovering.is_some() {
            return;
        }
        let Some(chunk) = self.inbox.pop_front() else {
            return;
        };
        // What follows it shows that it is missing; without anything behind it, nobody could.
        let is_followed =
            self.inbox.iter().any(|next| next.source == chunk.source && next.assignment == chunk.assignment);
        if is_followed && outside.fails(40) {
            return;
        }
        let Some(key) = self.keys.get(&chunk.source).copied() else {
            return;
        };
        let source = chunk.source.clone();
        if self.buffer.push(&key, Arc::new(chunk), outside.now).is_err() {
            self.buffer.remove(&key);
            self.reports.push(Report::Rewind(vec![source]));
        }
    }

    pub fn batch(&mut self, outside: &mut Outside) {
        let is_due = self.buffer.is_ready(outside.now) || self.held() >= HELD_MAX;
        if self.recovering.is_some() || !is_due {
            return;
        }
        let Some(taken) = self.buffer.take(&self.ledger) else {
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
                self.sink_failed(index, outside);
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
        }
        if is_taken && self.is_searching {
            self.is_searching = !self.buffer.widen();
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
        self.recovering.as_ref().is_none_or(|recovering| !recovering.sinks.contains(sink))
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
            if let Err(letter) = self.settle_letters(outside) {
                self.sink_failed(letter, outside);
                return false;
            }
            if self.is_held(index) {
                return false;
            }
        }
        let is_settled = self.settle(index, outside).is_ok();
        if !is_settled {
            self.sink_failed(index, outside);
        }
        is_settled
    }

    /// The sink that failed, if one did.
    fn settle_letters(&mut self, outside: &mut Outside) -> Result<(), usize> {
        for letter in self.letter_sinks() {
            if !self.sinks[letter].moves.is_empty() {
                self.settle(letter, outside).map_err(|Setback| letter)?;
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
            Kind::Own(target) => outside.write_own(target, &moves, &rows)?,
            Kind::Group => {
                outside.write_group(&moves, &rows)?;
                sink.settled.apply(&moves).map_err(|_| Setback)?;
                sink.settled.clone()
            }
        };
        self.ledger.settle(index, &positions);
        self.stored[index] = positions;
        Ok(())
    }

    pub fn report_progress(&mut self, outside: &Outside) {
        let required: SinkSet = (0..self.sinks.len()).collect();
        let durable = self.keys.iter().filter_map(|(source, key)| {
            let next = if outside.flaw == Some(Flaw::AcceptedIsCommitted) {
                self.ledger.resume_at(key)?
            } else {
                self.ledger.committable(key, required)?
            };
            let mut stored = self.stored.iter().filter_map(|positions| positions.get(key));
            let epoch = stored.find(|position| position.next == next).and_then(|position| position.epoch);
            let positions = self.group_next(key).map(|next| (GROUP_IDENTITY.to_owned(), next));
            let positions = positions.into_iter().collect();
            let durable = Durable {
                next,
                settled: next,
                is_apart: false,
                epoch,
                logs: Vec::new(),
                positions,
                starts: Vec::new(),
            };
            Some((source.clone(), durable))
        });
        let durable: BTreeMap<TopicPartition, Durable> = durable.collect();
        self.reports.push(Report::Progress(durable));
    }

    // Failures.

    fn abandon(&mut self, index: usize) {
        self.sinks[index].moves.clear();
        self.sinks[index].rows.clear();
    }

    fn sink_failed(&mut self, index: usize, outside: &Outside) {
        self.abandon(index);
        let attempt = self.recovering.as_ref().map_or(0, |recovering| recovering.attempt);
        self.recover_at(SinkSet::EMPTY.with(index), attempt, outside.now);
    }

    /// A row was refused: smaller batches, from where the sink stands.
    fn narrow(&mut self, index: usize, records: usize, outside: &mut Outside) {
        self.is_searching = true;
        self.buffer.narrow(records / 2);
        if self.sinks[index].is_own() {
            if let Err(letter) = self.settle_letters(outside) {
                return self.sink_failed(letter, outside);
            }
            if !self.is_held(index) && self.settle(index, outside).is_err() {
                return self.sink_failed(index, outside);
            }
        }
        self.abandon(index);
        self.recover_at(SinkSet::EMPTY.with(index), 0, outside.now);
    }

    fn recover_at(&mut self, failed: SinkSet, attempt: u32, now: Instant) {
        let before = self.recovering.as_ref().map_or(SinkSet::EMPTY, |recovering| recovering.sinks);
        let sinks = failed.iter().fold(before, SinkSet::with);
        self.drop_buffered();
        self.recovering =
            Some(Recovering { sinks, attempt: attempt + 1, at: now + retry::pause(attempt + 1) });
    }

    pub fn recover(&mut self, outside: &mut Outside) {
        let Some(Recovering { sinks, attempt, at }) = self.recovering else {
            return;
        };
        if at > outside.now {
            return;
        }
        for index in sinks.iter() {
            let Some(positions) = self.read_positions(index, outside) else {
                return self.recover_at(sinks, attempt, outside.now);
            };
            // Whatever it held would come beside what it reads again.
            assert!(self.sinks[index].moves.is_empty(), "a sink that failed was given a batch");
            self.ledger.reset(index, &positions);
            self.stored[index] = positions;
        }
        self.recovering = None;
        // A commit whose reply was lost has moved positions all the same.
        self.report_progress(outside);
        let sources: Vec<TopicPartition> = self.keys.keys().cloned().collect();
        self.drop_buffered();
        if !sources.is_empty() {
            self.reports.push(Report::Rewind(sources));
        }
    }

    fn drop_buffered(&mut self) {
        for key in self.keys.values() {
            self.buffer.remove(key);
        }
    }

    /// None if they cannot be read.
    fn read_positions(&self, index: usize, outside: &mut Outside) -> Option<Positions> {
        let sink = &self.sinks[index];
        match sink.kind {
            Kind::Own(target) => (!outside.fails(20)).then(|| outside.targets[target].positions.clone()),
            Kind::Group => Some(sink.settled.clone()),
        }
    }

    // Partitions come and go.

    pub fn give_up(&mut self, partitions: &[TopicPartition], is_lost: bool, outside: &mut Outside) {
        if !is_lost {
            self.flush_all(outside);
        }
        let is_left = (0..self.sinks.len()).any(|sink| self.ledger.is_pending(sink));
        if is_lost || is_left {
            let all: SinkSet = (0..self.sinks.len()).collect();
            all.iter().for_each(|index| self.abandon(index));
            self.recover_at(all, 0, outside.now);
        }
        for source in partitions {
            self.to_resume.remove(source);
            if let Some(key) = self.keys.remove(source) {
                self.ledger.revoke(&key);
                self.buffer.remove(&key);
            }
        }
    }

    /// The brokers no longer have what comes next.
    pub fn lost(&mut self, source: &TopicPartition, outside: &mut Outside) {
        self.give_up(std::slice::from_ref(source), false, outside);
        self.retry_at = Some(outside.now + retry::pause(1));
        self.reports.push(Report::Rewind(vec![source.clone()]));
    }

    pub fn assigned(&mut self, source: &TopicPartition, number: u64, from: Offset) {
        let Some(key) = self.keys.get(source) else {
            return;
        };
        if self.ledger.resume_at(key).is_some_and(|at| at < from) {
            self.buffer.remove(key);
            self.reports.push(Report::Rewind(vec![source.clone()]));
        } else {
            self.buffer.restart(*key, number, from, None);
        }
    }

    pub fn resume(&mut self, outside: &mut Outside) {
        let waits = self.retry_at.is_some_and(|at| at > outside.now);
        if self.recovering.is_some() || self.to_resume.is_empty() || waits {
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
        if self.take_up(&unknown, outside).is_ok() {
            self.to_resume.clear();
            self.report_progress(outside);
            self.say_ready(unknown.keys());
        } else {
            self.retry_at = Some(outside.now + retry::pause(1));
        }
    }

    fn say_ready<'a>(&mut self, sources: impl Iterator<Item = &'a TopicPartition>) {
        let letters: SinkSet = self.letter_sinks().into_iter().collect();
        let stand = |source: &TopicPartition| {
            let accepted = self.ledger.accepted(self.keys.get(source)?)?;
            Some(Stand { accepted, letters, rows_max: ROWS_MAX })
        };
        let ready: BTreeMap<TopicPartition, Stand> =
            sources.filter_map(|source| Some((source.clone(), stand(source)?))).collect();
        if !ready.is_empty() {
            self.reports.push(Report::Ready(ready));
        }
    }

    fn take_up(&mut self, asked: &Asked, outside: &mut Outside) -> Result<(), Setback> {
        if self.has_letters {
            self.flush_all(outside);
            if self.has_letters {
                return Err(Setback);
            }
        }
        for index in 0..self.sinks.len() {
            let Some(positions) = self.read_positions(index, outside) else {
                self.sink_failed(index, outside);
                return Err(Setback);
            };
            self.stored[index] = positions;
        }
        if outside.fails(30) {
            // The brokers do not answer.
            return Err(Setback);
        }
        for (name, topic) in &outside.cluster.topics {
            self.counts.entry(name.clone()).or_insert(topic.partition_count);
        }
        let recreated = self.recreated(outside);
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
        if stored.is_err() {
            self.sink_failed(index, outside);
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
