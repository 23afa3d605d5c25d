//! What one lane tells of itself, and what follows from it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::model::{Fault, Offset, TopicPartition};

use super::{Histogram, Reading};

/// Rates are those of the last minute: samples this far apart, and so many of them.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
const SAMPLES_MAX: usize = 13;

/// What a lane is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum State {
    /// Its schema is fetched, its views are bound.
    #[default]
    Waiting,
    Running,
    /// Something outside failed; it tries again by itself.
    Recovering,
    /// It needs a person.
    Stopped,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Running, Self::Recovering, Self::Stopped];

    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Recovering => "recovering",
            Self::Stopped => "stopped",
        }
    }
}

/// An error, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub message: String,
    pub hint: Option<String>,
    pub at: Timestamp,
}

impl Trouble {
    pub fn now(message: &str, hint: Option<&str>) -> Self {
        Self { message: message.to_owned(), hint: hint.map(str::to_owned), at: Timestamp::now() }
    }
}

/// Records of a lane. Each that was read is in exactly one place:
///
/// `read = settled + bad + dropped + abandoned + in_flight`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub read: u64,
    /// Keys, values and headers of what was read.
    pub bytes: u64,
    /// Rows that were made of records, also of those that were read again.
    pub decoded: u64,
    /// Good records that are durable in all sinks.
    pub settled: u64,
    /// Bad records, by code (`model::code`), once everything else of their range is durable.
    pub bad: BTreeMap<&'static str, u64>,
    /// Left out by a rule.
    pub dropped: u64,
    /// Read, and let go before they were durable in all sinks, or had by all sinks before: what is not durable is read
    /// again, also for sinks that catch up what the others have.
    pub abandoned: u64,
    /// Held now, or with sinks that have not made them durable yet.
    pub in_flight: u64,
}

impl Counts {
    pub fn bad_total(&self) -> u64 {
        self.bad.values().sum()
    }

    /// What is over and done with.
    pub fn done(&self) -> u64 {
        self.settled + self.bad_total() + self.dropped
    }

    fn absorb(&mut self, other: Self) {
        self.read += other.read;
        self.bytes += other.bytes;
        self.decoded += other.decoded;
        self.settled += other.settled;
        self.dropped += other.dropped;
        // Nobody will make durable what it held.
        self.abandoned += other.abandoned + other.in_flight;
        for (code, count) in other.bad {
            *self.bad.entry(code).or_default() += count;
        }
    }
}

/// One sink of a lane.
#[derive(Debug, Clone)]
pub struct SinkStatus {
    pub name: Arc<str>,
    pub rows: u64,
    pub bytes: u64,
    pub files: u64,
    pub write: Histogram,
    pub flush: Histogram,
    /// Failed calls, in the order of [`FAULTS`].
    pub failures: [u64; FAULTS.len()],
    /// Records that it refused, and that its route went on without.
    pub let_go: u64,
    pub last_flush: Option<Timestamp>,
    /// The others and the group wait for it.
    pub is_required: bool,
    /// Why its route goes on without it now.
    pub away: Option<Trouble>,
    /// Offsets that the required sinks have durable and it has not.
    pub owed: u64,
    /// Offsets that it never saw, as the brokers had deleted them before it was back.
    pub skipped: u64,
}

impl SinkStatus {
    pub fn new(name: &str) -> Self {
        Self {
            name: Arc::from(name),
            rows: 0,
            bytes: 0,
            files: 0,
            write: Histogram::default(),
            flush: Histogram::default(),
            failures: [0; FAULTS.len()],
            let_go: 0,
            last_flush: None,
            is_required: true,
            away: None,
            owed: 0,
            skipped: 0,
        }
    }

    fn absorb(&mut self, other: &Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.files += other.files;
        self.write.add(&other.write);
        self.flush.add(&other.flush);
        for (count, other) in self.failures.iter_mut().zip(other.failures) {
            *count += other;
        }
        self.last_flush = self.last_flush.max(other.last_flush);
        self.skipped += other.skipped;
    }

    pub fn failed(&mut self, fault: Fault) {
        if let Some(place) = FAULTS.iter().position(|(known, _)| *known == fault) {
            self.failures[place] += 1;
        }
    }
}

/// Faults with the names that metrics have for them.
pub const FAULTS: [(Fault, &str); 4] = [
    (Fault::Transient, "transient"),
    (Fault::Conflict, "conflict"),
    (Fault::Refused, "refused"),
    (Fault::Stop, "stop"),
];

/// A part of the work on a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Decode,
    Views,
    /// To all sinks of the batch.
    Write,
    /// Of one sink.
    Flush,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Decode, Self::Views, Self::Write, Self::Flush];

    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Views => "views",
            Self::Write => "write",
            Self::Flush => "flush",
        }
    }
}

/// How long a stage took: all times together, and the last one.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageStatus {
    pub all: Histogram,
    pub last: Duration,
}

/// The last batch that was taken by its sinks.
#[derive(Debug, Clone)]
pub struct LastBatch {
    pub at: Timestamp,
    pub records: u64,
    pub rows: u64,
    /// Some of its ranges.
    pub ranges: Vec<(TopicPartition, Offset, Offset)>,
}

/// A lane that failed and holds nothing for so long has nothing to do any more: longer than the pause between attempts,
/// after which it would hold something again.
const CALM_AFTER: Duration = Duration::from_secs(20);

/// Since when something waits without anything having become durable.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waiting {
    since: Option<Instant>,
    calm_since: Option<Instant>,
    /// Something failed since the last progress: that nothing is held then may only be the pause before the next attempt.
    has_failed: bool,
}

impl Waiting {
    pub fn failed(&mut self) {
        self.has_failed = true;
    }

    pub fn update(&mut self, is_waiting: bool, has_progressed: bool, now: Instant) {
        if has_progressed || self.is_calm(now) {
            self.since = None;
            self.has_failed = false;
        }
        if is_waiting {
            self.since.get_or_insert(now);
            self.calm_since = None;
        } else {
            self.calm_since.get_or_insert(now);
            if !self.has_failed {
                self.since = None;
            }
        }
    }

    fn is_calm(&self, now: Instant) -> bool {
        self.calm_since.is_some_and(|since| now.saturating_duration_since(since) >= CALM_AFTER)
    }

    pub fn since(&self, now: Instant) -> Option<Instant> {
        self.since.filter(|_| !self.is_calm(now))
    }
}

/// What a lane tells at the end of each batch and flush.
#[derive(Debug, Clone, Default)]
pub struct LaneStatus {
    /// Never [`State::Stopped`]: that is told by the engine, which also knows of lanes that have failed.
    pub state: State,
    pub counts: Counts,
    pub sinks: Vec<SinkStatus>,
    pub batches: u64,
    /// In the order of [`Stage::ALL`].
    pub stages: [StageStatus; Stage::ALL.len()],
    /// Ids that the registry is asked for.
    pub schemas_waiting: usize,
    /// How often another reader schema was taken since the start.
    pub schema_changes: u64,
    /// Subjects with a newer version than the one that is read as.
    pub schemas_newer: usize,
    /// The versions of subjects that are read as.
    pub reader_schemas: Arc<[String]>,
    pub waiting: Waiting,
    /// Next offset of each sink, for the partitions that are taken up.
    pub partitions: Arc<BTreeMap<TopicPartition, Vec<Offset>>>,
    pub last_batch: Option<LastBatch>,
    /// The last error that it has met, whether or not it is over.
    pub trouble: Option<Trouble>,
}

impl LaneStatus {
    /// Takes in what another lane of the same route has counted.
    pub fn absorb(&mut self, other: Self) {
        self.counts.absorb(other.counts);
        self.batches += other.batches;
        for (stage, other) in self.stages.iter_mut().zip(&other.stages) {
            stage.all.add(&other.all);
        }
        for sink in other.sinks {
            match self.sinks.iter_mut().find(|known| known.name == sink.name) {
                Some(known) => known.absorb(&sink),
                None => self.sinks.push(sink),
            }
        }
    }
}

/// Partitions that are ours and not fetched yet, for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    /// One of them: the one that has waited for longest.
    pub source: TopicPartition,
    /// How many others there are.
    pub others: usize,
    pub reason: String,
    pub hint: Option<String>,
    pub since: Instant,
}

impl HeldBack {
    /// Which they are, for people.
    pub fn shown(&self) -> String {
        match self.others {
            0 => format!("{} waits", self.source),
            1 => format!("{} and one other partition wait", self.source),
            others => format!("{} and {others} other partitions wait", self.source),
        }
    }
}

/// What the engine knows of a lane from the beginning.
pub struct About {
    /// The route's name in the file; for one of a `per_topic` route, without the topic.
    pub entry: String,
    /// So long nothing may become durable before the program is not ready.
    pub patience: Duration,
    /// What the lane holds.
    pub held: Reading,
}

/// Where a lane writes, and everybody else reads.
pub struct LaneBoard {
    route: String,
    since: Instant,
    about: OnceLock<About>,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    status: LaneStatus,
    stop: Option<Trouble>,
    held_back: Vec<HeldBack>,
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    read: u64,
    done: u64,
}

/// A lane at one moment.
#[derive(Debug, Clone)]
pub struct LaneView {
    pub route: String,
    pub entry: String,
    pub state: State,
    pub stop: Option<Trouble>,
    pub status: LaneStatus,
    pub held_bytes: u64,
    /// It holds its share of the memory, so nothing is fetched for it.
    pub is_full: bool,
    pub patience: Duration,
    pub waiting_since: Option<Instant>,
    /// What has waited for longest comes first.
    pub held_back: Vec<HeldBack>,
    /// Records per second in the last minute: read, and done with.
    pub rates: (f64, f64),
}

impl LaneBoard {
    pub fn new(route: &str) -> Arc<Self> {
        Arc::new(Self {
            route: route.to_owned(),
            since: Instant::now(),
            about: OnceLock::new(),
            shown: Mutex::default(),
        })
    }

    /// Told once, by the engine.
    pub fn describe(&self, about: About) {
        self.about.get_or_init(|| about);
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn show(&self, status: LaneStatus) {
        self.lock().status = status;
    }

    pub fn stopped(&self, message: &str, hint: Option<&str>) {
        self.lock().stop.get_or_insert_with(|| Trouble::now(message, hint));
    }

    /// Told by the engine: the partitions that are not fetched yet for this lane.
    pub fn hold_back(&self, held_back: Vec<HeldBack>) {
        self.lock().held_back = held_back;
    }

    /// A partition is not this instance's any more. A lane that works says so itself, one that has stopped does not.
    pub fn forget(&self, source: &TopicPartition) {
        let mut shown = self.lock();
        if shown.status.partitions.contains_key(source) {
            Arc::make_mut(&mut shown.status.partitions).remove(source);
        }
    }

    /// Keeps a sample for the rates, now and then.
    pub fn sample(&self, now: Instant) {
        let mut shown = self.lock();
        let is_due = |last: &Sample| now.duration_since(last.at) >= SAMPLE_INTERVAL;
        if shown.samples.back().is_none_or(is_due) {
            let counts = &shown.status.counts;
            let sample = Sample { at: now, read: counts.read, done: counts.done() };
            if shown.samples.len() >= SAMPLES_MAX {
                shown.samples.pop_front();
            }
            shown.samples.push_back(sample);
        }
    }

    pub fn view(&self, now: Instant) -> LaneView {
        let about = self.about.get();
        let held = about.map(|about| (about.held)()).unwrap_or_default();
        let shown = self.lock();
        let status = shown.status.clone();
        let (state, waiting_since) = match (&shown.stop, status.state) {
            (Some(_), _) => (State::Stopped, None),
            (None, State::Waiting) => (State::Waiting, Some(self.since)),
            (None, state) => (state, status.waiting.since(now)),
        };
        LaneView {
            route: self.route.clone(),
            entry: about.map_or_else(|| self.route.clone(), |about| about.entry.clone()),
            state,
            stop: shown.stop.clone(),
            held_back: shown.held_back.clone(),
            rates: shown.samples.front().map_or((0.0, 0.0), |first| rates(*first, &status.counts, now)),
            status,
            held_bytes: held.bytes,
            is_full: held.is_full,
            patience: about.map_or(Duration::MAX, |about| about.patience),
            waiting_since,
        }
    }
}

fn rates(first: Sample, counts: &Counts, now: Instant) -> (f64, f64) {
    let seconds = now.saturating_duration_since(first.at).as_secs_f64();
    if seconds <= 0.0 {
        return (0.0, 0.0);
    }
    let per_second = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
    (per_second(first.read, counts.read), per_second(first.done, counts.done()))
}

impl LaneView {
    /// So long nothing has become durable although something waits, if that is longer than it may be.
    pub fn overdue(&self, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.waiting_since?);
        (waited > self.patience).then_some(waited)
    }

    /// What has been held back for longer than it may be.
    pub fn overdue_partitions(&self, now: Instant) -> impl Iterator<Item = (&HeldBack, Duration)> {
        let waited = move |held: &HeldBack| now.saturating_duration_since(held.since);
        let each = self.held_back.iter().map(move |held| (held, waited(held)));
        each.filter(move |(_, waited)| *waited > self.patience)
    }

    /// Why nothing comes, as far as is known here.
    pub fn paused_for(&self) -> Vec<String> {
        let reasons = [
            ("it holds its share of `memory`", self.is_full),
            ("a sink failed, and it is tried again", self.state == State::Recovering),
            ("schemas are not known yet", self.status.schemas_waiting > 0),
        ];
        let known = reasons.into_iter().filter(|(_, holds)| *holds).map(|(reason, _)| reason.to_owned());
        let held_back = self.held_back.iter().map(|held| {
            let hint = held.hint.as_ref().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            format!("{}: {}{hint}", held.shown(), held.reason)
        });
        known.chain(held_back).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Partition, TopicName};
    use crate::status::Held;

    #[test]
    fn a_stop_is_kept_whatever_the_lane_shows_afterwards() {
        let board = LaneBoard::new("r");
        let now = Instant::now();
        assert_eq!(board.view(now).state, State::Waiting);
        board.stopped("first", Some("hint"));
        board.stopped("second", None);
        board.show(LaneStatus { state: State::Running, ..LaneStatus::default() });
        let view = board.view(now);
        assert_eq!((view.state, view.stop.unwrap().message.as_str()), (State::Stopped, "first"));
    }

    #[test]
    fn rates_are_those_of_the_last_minute() {
        let board = LaneBoard::new("r");
        let start = Instant::now();
        let show = |read, settled| {
            let counts = Counts { read, settled, in_flight: read - settled, ..Counts::default() };
            board.show(LaneStatus { counts, ..LaneStatus::default() });
        };
        board.sample(start);
        show(1000, 500);
        assert_eq!(board.view(start + Duration::from_secs(10)).rates, (100.0, 50.0));
        // Nothing more comes: what was before the last minute does not count any more.
        for step in 1..40 {
            board.sample(start + SAMPLE_INTERVAL * step);
        }
        assert_eq!(board.view(start + Duration::from_secs(200)).rates, (0.0, 0.0));
    }

    #[test]
    fn what_waits_too_long_is_overdue_and_what_is_stopped_waits_for_nothing() {
        let board = LaneBoard::new("r");
        let patience = Duration::from_secs(80);
        board.describe(About { entry: "r".to_owned(), patience, held: Box::new(Held::default) });
        let now = Instant::now();
        let show = |since: Option<Instant>| {
            let mut waiting = Waiting::default();
            if let Some(since) = since {
                waiting.update(true, false, since);
            }
            board.show(LaneStatus { state: State::Running, waiting, ..LaneStatus::default() });
        };
        show(None);
        let late = now + patience + Duration::from_secs(1);
        assert_eq!(board.view(late).overdue(late), None);
        show(Some(now));
        assert_eq!(board.view(now + patience).overdue(now + patience), None);
        assert_eq!(board.view(late).overdue(late), Some(Duration::from_secs(81)));
        board.stopped("no", None);
        assert_eq!(board.view(late).overdue(late), None);
    }

    #[test]
    fn attempts_that_fail_are_one_wait_until_there_is_progress_or_calm() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for attempt in 0..10 {
            // Rows are read, the flush fails, and nothing is held until they are read again.
            waiting.update(true, false, at(attempt * 10));
            waiting.failed();
            waiting.update(false, false, at(attempt * 10 + 1));
        }
        assert_eq!(waiting.since(at(100)), Some(start));
        let mut mended = waiting;
        mended.update(true, true, at(100));
        assert_eq!(mended.since(at(101)), Some(at(100)));
        mended.update(false, true, at(102));
        assert_eq!(mended.since(at(102)), None);
        // Or its partitions went to somebody else.
        assert_eq!(waiting.since(at(120)), None);
        waiting.update(true, false, at(130));
        assert_eq!(waiting.since(at(130)), Some(at(130)));
    }

    #[test]
    fn what_is_held_back_is_a_reason_with_a_hint_and_overdue_after_a_while() {
        let board = LaneBoard::new("r");
        let patience = Duration::from_secs(80);
        board.describe(About { entry: "r".to_owned(), patience, held: Box::new(Held::default) });
        board.show(LaneStatus { state: State::Running, ..LaneStatus::default() });
        let now = Instant::now();
        let source = TopicPartition::new(&TopicName::new("t"), Partition(3));
        let (reason, hint) = ("no".to_owned(), Some("do".to_owned()));
        board.hold_back(vec![HeldBack { source, others: 2, reason, hint, since: now }]);
        let late = now + patience + Duration::from_secs(1);
        let view = board.view(late);
        assert_eq!(view.paused_for(), ["t/3 and 2 other partitions wait: no; hint: do"]);
        // The lane itself waits for nothing.
        assert_eq!(view.overdue(late), None);
        assert_eq!(view.overdue_partitions(now + patience).count(), 0);
        let overdue: Vec<Duration> = view.overdue_partitions(late).map(|(_, waited)| waited).collect();
        assert_eq!(overdue, [Duration::from_secs(81)]);
        board.hold_back(Vec::new());
        assert!(board.view(late).paused_for().is_empty());
    }

    #[test]
    fn a_partition_that_went_is_forgotten() {
        let board = LaneBoard::new("r");
        let sources = [0, 1].map(|number| TopicPartition::new(&TopicName::new("t"), Partition(number)));
        let partitions = sources.iter().map(|source| (source.clone(), vec![Offset::ZERO])).collect();
        board.show(LaneStatus { partitions: Arc::new(partitions), ..LaneStatus::default() });
        board.forget(&sources[0]);
        let left: Vec<TopicPartition> =
            board.view(Instant::now()).status.partitions.keys().cloned().collect();
        assert_eq!(left, [sources[1].clone()]);
    }
}
