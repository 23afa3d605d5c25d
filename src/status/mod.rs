//! What the program tells of itself: boards that are written once per batch, flush or decision, and read when somebody
//! asks.
//!
//! Nothing here is touched per record, and a reader holds a writer up no longer than a copy takes. `metrics` and `admin`
//! make texts of it.

mod histogram;
mod lane;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use histogram::{BOUNDS, Histogram};
pub use lane::{
    About, Counts, FAULTS, HeldBack, LaneBoard, LaneStatus, LaneView, LastBatch, SinkStatus, Stage,
    StageStatus, State, Trouble, Waiting,
};

/// Codes of client errors that are counted by name: there are some two hundred, of which few ever come.
const ERROR_CODES_MAX: usize = 100;

/// Under this name everything is counted that comes beyond a limit.
pub const OTHER: &str = "other";

/// Why partitions are ours and not fetched, as metrics name it: the group's offsets are not known, a route has not said
/// where its sinks stand, the group has not taken a first commit.
pub const HELD_BACK: [&str; 3] = ["offsets", "positions", "commit"];

/// What is held at this moment, and whether that is as much as may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub bytes: u64,
    pub is_full: bool,
}

/// Looks at a measure that is kept elsewhere.
pub type Reading = Box<dyn Fn() -> Held + Send + Sync>;

/// The board of the process.
pub struct Board {
    group: String,
    started: Timestamp,
    since: Instant,
    /// One for each consumer group: that of the file, and those of isolated routes.
    engines: Mutex<Vec<Engine>>,
    lanes: Mutex<Vec<Arc<LaneBoard>>>,
    /// What lanes have counted that are no more, by the names of their routes in the file.
    ended: Mutex<BTreeMap<String, LaneStatus>>,
    registry: Arc<RegistryCounts>,
    sources: Mutex<Vec<Arc<SourceCounts>>>,
    memory: OnceLock<(Reading, u64)>,
}

/// An engine, and when its loop last turned; `None` before it runs.
#[derive(Default)]
struct Engine {
    status: EngineStatus,
    turned: Option<Instant>,
}

/// What the engine tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// Some topic is subscribed, so that there is a group to be in.
    pub is_subscribed: bool,
    /// The group has told us what is ours, perhaps nothing.
    pub has_joined: bool,
    /// It ends.
    pub is_draining: bool,
    /// It has ended; others may still run.
    pub has_ended: bool,
    /// Partitions that are ours.
    pub owned: usize,
    pub assigned: u64,
    pub revoked: u64,
    /// Revoked by being thrown out.
    pub lost: u64,
    pub commits: u64,
    pub commits_failed: u64,
    pub last_commit: Option<Timestamp>,
    /// Partitions that are not fetched yet, in the order of [`HELD_BACK`].
    pub held_back: [usize; HELD_BACK.len()],
}

/// The process at one moment.
pub struct View {
    pub group: String,
    pub started: Timestamp,
    pub uptime: Duration,
    /// Since the engine's loop last turned; `None` before it runs.
    pub beat: Option<Duration>,
    pub engine: EngineStatus,
    pub lanes: Vec<LaneView>,
    /// What lanes have counted that are no more, by the names of their routes in the file: counters never go down.
    pub ended: BTreeMap<String, LaneStatus>,
    pub held_bytes: u64,
    pub budget_bytes: u64,
    pub at: Instant,
}

impl Board {
    pub fn new(group: &str) -> Arc<Self> {
        Arc::new(Self {
            group: group.to_owned(),
            started: Timestamp::now(),
            since: Instant::now(),
            engines: Mutex::default(),
            lanes: Mutex::default(),
            ended: Mutex::default(),
            registry: Arc::default(),
            sources: Mutex::default(),
            memory: OnceLock::new(),
        })
    }

    /// Takes in one more engine, and says by which place it is known.
    pub fn add_engine(&self) -> usize {
        let mut engines = self.engines();
        engines.push(Engine::default());
        engines.len() - 1
    }

    fn engines(&self) -> MutexGuard<'_, Vec<Engine>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what an engine tells.
    pub fn engine(&self, place: usize, change: impl FnOnce(&mut EngineStatus)) {
        if let Some(engine) = self.engines().get_mut(place) {
            change(&mut engine.status);
        }
    }

    /// An engine's loop has turned, and owns so many partitions.
    pub fn turn(&self, place: usize, owned: usize) {
        let now = Instant::now();
        if let Some(engine) = self.engines().get_mut(place) {
            engine.turned = Some(now);
            engine.status.owned = owned;
        }
        for lane in self.lanes().iter() {
            lane.sample(now);
        }
    }

    pub fn add_lane(&self, lane: Arc<LaneBoard>) {
        self.lanes().push(lane);
    }

    /// A lane is no more: nothing is shown of it but what it has counted.
    pub fn end_lane(&self, lane: &Arc<LaneBoard>) {
        let last = lane.view(Instant::now());
        // Both at once for whoever looks: a record is counted in one place.
        let mut lanes = self.lanes();
        let before = lanes.len();
        lanes.retain(|known| !Arc::ptr_eq(known, lane));
        if lanes.len() < before {
            self.ended().entry(last.entry).or_default().absorb(last.status);
        }
    }

    fn ended(&self) -> MutexGuard<'_, BTreeMap<String, LaneStatus>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self) -> MutexGuard<'_, Vec<Arc<LaneBoard>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where calls to the registry are counted.
    pub fn registry(&self) -> &Arc<RegistryCounts> {
        &self.registry
    }

    /// Told once for each member of a group: what its thread counts. Consumers that catch up come and go, and are not
    /// counted.
    pub fn watch_source(&self, counts: Arc<SourceCounts>) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(counts);
    }

    pub fn sources(&self) -> Vec<Arc<SourceCounts>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Told once: what all lanes hold, and how much that may be in bytes.
    pub fn watch_memory(&self, held: Reading, budget_bytes: u64) {
        self.memory.get_or_init(|| (held, budget_bytes));
    }

    /// Since the loop turned that has stood still for longest; `None` before all run. Waits for no longer than a copy
    /// takes.
    pub fn beat(&self) -> Option<Duration> {
        let engines = self.engines();
        let living = engines.iter().filter(|engine| !engine.status.has_ended);
        let turned: Option<Vec<Instant>> = living.map(|engine| engine.turned).collect();
        Some(turned?.into_iter().min()?.elapsed())
    }

    pub fn view(&self) -> View {
        let at = Instant::now();
        // Copied first: no lane waits for another's copy.
        let (lanes, ended) = {
            let lanes = self.lanes();
            (lanes.clone(), self.ended().clone())
        };
        let (held_bytes, budget_bytes) =
            self.memory.get().map_or((0, 0), |(held, budget)| (held().bytes, *budget));
        View {
            group: self.group.clone(),
            started: self.started,
            uptime: at.duration_since(self.since),
            beat: self.beat(),
            engine: together(&self.engines()),
            lanes: lanes.iter().map(|lane| lane.view(at)).collect(),
            ended,
            held_bytes,
            budget_bytes,
            at,
        }
    }
}

/// What all engines tell: joined is who waits for none of its groups.
fn together(engines: &[Engine]) -> EngineStatus {
    let mut all = EngineStatus { has_ended: !engines.is_empty(), ..EngineStatus::default() };
    all.is_draining = all.has_ended;
    let mut is_waiting = false;
    for Engine { status, .. } in engines {
        if !status.has_ended {
            all.is_subscribed |= status.is_subscribed;
            is_waiting |= status.is_subscribed && !status.has_joined;
            all.owned += status.owned;
            for (count, other) in all.held_back.iter_mut().zip(status.held_back) {
                *count += other;
            }
        }
        all.has_joined |= status.has_joined;
        all.is_draining &= status.is_draining || status.has_ended;
        all.has_ended &= status.has_ended;
        all.assigned += status.assigned;
        all.revoked += status.revoked;
        all.lost += status.lost;
        all.commits += status.commits;
        all.commits_failed += status.commits_failed;
        all.last_commit = all.last_commit.max(status.last_commit);
    }
    all.has_joined &= !is_waiting;
    all
}

/// How the registry answered a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Found,
    Unknown,
    Unauthorised,
    Unavailable,
    Unusable,
}

impl Answer {
    pub const ALL: [Self; 5] =
        [Self::Found, Self::Unknown, Self::Unauthorised, Self::Unavailable, Self::Unusable];

    pub fn name(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Unknown => "unknown",
            Self::Unauthorised => "unauthorised",
            Self::Unavailable => "unavailable",
            Self::Unusable => "unusable",
        }
    }
}

/// Calls to the registry, and what spared them.
#[derive(Debug, Default)]
pub struct RegistryCounts {
    answers: [AtomicU64; Answer::ALL.len()],
    in_memory: AtomicU64,
    on_disk: AtomicU64,
}

impl RegistryCounts {
    pub fn answered(&self, answer: Answer) {
        self.answers[answer as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn answers(&self, answer: Answer) -> u64 {
        self.answers[answer as usize].load(Ordering::Relaxed)
    }

    pub fn found_in_memory(&self) {
        self.in_memory.fetch_add(1, Ordering::Relaxed);
    }

    pub fn found_on_disk(&self) {
        self.on_disk.fetch_add(1, Ordering::Relaxed);
    }

    /// Found in memory, and on disk.
    pub fn hits(&self) -> (u64, u64) {
        (self.in_memory.load(Ordering::Relaxed), self.on_disk.load(Ordering::Relaxed))
    }
}

/// What the consumer's thread counts.
#[derive(Debug, Default)]
pub struct SourceCounts {
    /// Partitions that are paused because a lane holds its share of the memory.
    full: AtomicUsize,
    /// Partitions that are paused because a lane has no room for one more chunk.
    waiting: AtomicUsize,
    errors: Mutex<BTreeMap<String, u64>>,
}

impl SourceCounts {
    pub fn paused(&self, full: usize, waiting: usize) {
        self.full.store(full, Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    /// Paused partitions by reason.
    pub fn paused_for(&self) -> [(&'static str, usize); 2] {
        [("memory", self.full.load(Ordering::Relaxed)), ("inbox", self.waiting.load(Ordering::Relaxed))]
    }

    /// Counts an error by the name of its code.
    pub fn failed(&self, code: &str) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = errors.contains_key(code) || errors.len() < ERROR_CODES_MAX;
        *errors.entry(if is_known { code } else { OTHER }.to_owned()).or_default() += 1;
    }

    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_errors_are_bounded() {
        let counts = SourceCounts::default();
        for number in 0..1000 {
            counts.failed(&format!("ERR_{number}"));
        }
        counts.failed("ERR_7");
        let errors = counts.errors();
        assert_eq!(errors.len(), ERROR_CODES_MAX + 1);
        assert_eq!((errors["ERR_7"], errors[OTHER]), (2, 900));
    }

    #[test]
    fn there_is_no_beat_before_all_loops_run() {
        let board = Board::new("g");
        assert_eq!(board.beat(), None);
        let (first, second) = (board.add_engine(), board.add_engine());
        board.turn(first, 3);
        assert_eq!(board.beat(), None);
        board.turn(second, 2);
        assert!(board.beat().unwrap() < Duration::from_secs(5));
        assert_eq!(board.view().engine.owned, 5);
    }

    #[test]
    fn who_waits_for_one_group_has_not_joined_and_who_has_ended_counts_no_more() {
        let board = Board::new("g");
        let (first, second) = (board.add_engine(), board.add_engine());
        for place in [first, second] {
            board.turn(place, 1);
            board.engine(place, |told| (told.is_subscribed, told.commits) = (true, 2));
        }
        board.engine(first, |told| told.has_joined = true);
        assert!(!board.view().engine.has_joined);
        board.engine(second, |told| (told.is_draining, told.has_ended) = (true, true));
        let engine = board.view().engine;
        assert!(engine.has_joined && !engine.is_draining);
        assert_eq!((engine.owned, engine.commits), (1, 4));
    }
    #[test]
    fn what_a_lane_that_is_no_more_has_counted_stays_counted() {
        let board = Board::new("g");
        for (topic, read) in [("a", 3), ("b", 5), ("c", 7)] {
            let lane = LaneBoard::new(&format!("each/{topic}"));
            let entry = "each".to_owned();
            lane.describe(About { entry, patience: Duration::ZERO, held: Box::new(Held::default) });
            let mut sink = SinkStatus::new("files");
            (sink.rows, sink.last_flush) = (read, Some(Timestamp::UNIX_EPOCH));
            sink.failed(crate::model::Fault::Transient);
            let bad = BTreeMap::from([("framing", read)]);
            let counts = Counts { read: 2 * read, settled: read, bad, ..Counts::default() };
            lane.show(LaneStatus { counts, sinks: vec![sink], batches: 1, ..LaneStatus::default() });
            board.add_lane(lane.clone());
            if topic != "c" {
                board.end_lane(&lane);
                // Once.
                board.end_lane(&lane);
            }
        }
        let view = board.view();
        let left: Vec<&str> = view.lanes.iter().map(|lane| lane.route.as_str()).collect();
        assert_eq!(left, ["each/c"]);
        let ended = &view.ended["each"];
        assert_eq!((ended.counts.read, ended.counts.settled, ended.counts.bad["framing"]), (16, 8, 8));
        let sink = &ended.sinks[0];
        assert_eq!((ended.sinks.len(), sink.rows, sink.failures[0], ended.batches), (1, 8, 2, 2));
    }
}
