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
    About, Counts, FAULTS, LaneBoard, LaneStatus, LaneView, LastBatch, SinkStatus, Stage, StageStatus, State,
    Trouble, Waiting,
};

/// Codes of client errors that are counted by name: there are some two hundred, of which few ever come.
const ERROR_CODES_MAX: usize = 100;

/// Under this name everything is counted that comes beyond a limit.
pub const OTHER: &str = "other";

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
    /// When the engine's loop last turned: milliseconds after `since`, and one more; 0 before it runs.
    turned: AtomicU64,
    engine: Mutex<EngineStatus>,
    lanes: Mutex<Vec<Arc<LaneBoard>>>,
    registry: Arc<RegistryCounts>,
    source: OnceLock<Arc<SourceCounts>>,
    memory: OnceLock<(Reading, u64)>,
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
    /// Partitions that are ours.
    pub owned: usize,
    pub assigned: u64,
    pub revoked: u64,
    /// Revoked by being thrown out.
    pub lost: u64,
    pub commits: u64,
    pub commits_failed: u64,
    pub last_commit: Option<Timestamp>,
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
            turned: AtomicU64::new(0),
            engine: Mutex::default(),
            lanes: Mutex::default(),
            registry: Arc::default(),
            source: OnceLock::new(),
            memory: OnceLock::new(),
        })
    }

    /// Changes what the engine tells.
    pub fn engine(&self, change: impl FnOnce(&mut EngineStatus)) {
        change(&mut self.engine.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The engine's loop has turned, and owns so many partitions.
    pub fn turn(&self, owned: usize) {
        let now = Instant::now();
        let millis = u64::try_from(now.duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        self.turned.store(millis.saturating_add(1), Ordering::Relaxed);
        self.engine(|engine| engine.owned = owned);
        for lane in self.lanes().iter() {
            lane.sample(now);
        }
    }

    pub fn add_lane(&self, lane: Arc<LaneBoard>) {
        self.lanes().push(lane);
    }

    fn lanes(&self) -> MutexGuard<'_, Vec<Arc<LaneBoard>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where calls to the registry are counted.
    pub fn registry(&self) -> &Arc<RegistryCounts> {
        &self.registry
    }

    /// Told once: what the consumer's thread counts.
    pub fn watch_source(&self, counts: Arc<SourceCounts>) {
        self.source.get_or_init(|| counts);
    }

    pub fn source(&self) -> Option<&SourceCounts> {
        self.source.get().map(Arc::as_ref)
    }

    /// Told once: what all lanes hold, and how much that may be in bytes.
    pub fn watch_memory(&self, held: Reading, budget_bytes: u64) {
        self.memory.get_or_init(|| (held, budget_bytes));
    }

    /// Since the engine's loop last turned; `None` before it runs. Waits for nobody.
    pub fn beat(&self) -> Option<Duration> {
        let turned = self.turned.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.since.elapsed().saturating_sub(Duration::from_millis(turned)))
    }

    pub fn view(&self) -> View {
        let at = Instant::now();
        // Copied first: no lane waits for another's copy.
        let lanes = self.lanes().clone();
        let (held_bytes, budget_bytes) =
            self.memory.get().map_or((0, 0), |(held, budget)| (held().bytes, *budget));
        View {
            group: self.group.clone(),
            started: self.started,
            uptime: at.duration_since(self.since),
            beat: self.beat(),
            engine: self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            lanes: lanes.iter().map(|lane| lane.view(at)).collect(),
            held_bytes,
            budget_bytes,
            at,
        }
    }
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
    fn there_is_no_beat_before_the_loop_runs() {
        let board = Board::new("g");
        assert_eq!(board.beat(), None);
        board.turn(3);
        assert!(board.beat().unwrap() < Duration::from_secs(5));
        assert_eq!(board.view().engine.owned, 3);
    }
}
