//! The engine's loop: what the source and the lanes report, and what follows.
//!
//! All decisions about partitions are made here, one at a time; lanes and the source only carry them out.

mod assignment;
mod catching;
mod closing;
mod failures;
mod following;
mod held_back;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::plan::Route;
use crate::failpoint;
use crate::kafka::{Budget, Cluster, ClusterError, Command, Event, Source, SourceError, Sources};
use crate::model::{Offset, TopicName, TopicPartition};

use super::Watcher;
use super::catching::{Reader, Stand};
use super::group::Group;
use super::held_back::HeldBack;
use super::lane::{LaneFactory, LaneHandle, Summary};
use super::message::{Control, Durable, LaneId, Report, Stop};
use crate::repeat::Repeats;
use crate::sink::Store;
use crate::status::Board;
use catching::{Apart, CatchUp};
use following::Gone;
use held_back::Uncommitted;

/// How often offsets are committed while there is progress.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);

/// A lane that has not released revoked partitions by then is not waited for: its late writes lose
/// their compare-and-set. Well below `max.poll.interval.ms`.
const RELEASE_MAX: Duration = Duration::from_secs(30);

/// For lanes to become durable at shutdown; below the 30 s that container runtimes give.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// For the last commit, and for leaving the group.
const CLOSE_MAX: Duration = Duration::from_secs(4);

/// Asking all brokers' topics more often would cost them more than it tells.
const REFRESH_MIN: Duration = Duration::from_millis(100);

/// Reports of lanes that wait for the engine, which takes them at once.
const REPORTS_MAX: usize = 1024;

/// What the engine runs on.
pub struct EngineParts {
    pub source: Box<dyn Source>,
    /// Read for what catches up.
    pub catch_up: Box<dyn Sources>,
    pub cluster: Arc<dyn Cluster>,
    pub routes: Vec<Route>,
    /// Routes of the file that are not run here; what they write is not read all the same.
    pub others: Vec<Route>,
    pub factory: Arc<dyn LaneFactory>,
    /// For records held by all lanes.
    pub budget: Arc<Budget>,
    /// The topics that the cluster has at the start, if a route needs to know.
    pub names: BTreeSet<TopicName>,
    /// Routes, by their place, that this group has run before with the same topics and start.
    pub ran_before: BTreeSet<usize>,
    /// How often topics are matched against patterns.
    pub topic_refresh: Duration,
    /// Of a bounded run.
    pub until: Option<Until>,
    /// Is told how far it is.
    pub watcher: Option<Box<dyn Watcher>>,
    /// What the engine and its lanes tell of themselves.
    pub board: Arc<Board>,
}

/// What a bounded run reads.
#[derive(Debug, Default)]
pub struct Until {
    /// Where each partition ends.
    pub ends: BTreeMap<TopicPartition, Offset>,
    /// Topics that cannot be read, and why.
    pub missing: BTreeMap<TopicName, Stop>,
}

/// The client cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the Kafka client cannot go on: {0}")]
    Client(String),
    #[error("the Kafka client is gone")]
    Source(#[from] SourceError),
}

/// Runs until the bounded run is over, `shutdown` is cancelled, or the client cannot go on. Whatever
/// happens, lanes are drained first.
pub async fn run(parts: EngineParts, shutdown: CancellationToken) -> (Vec<Summary>, Result<(), EngineError>) {
    let (report_tx, reports) = mpsc::channel(REPORTS_MAX);
    let is_bounded = parts.until.is_some();
    let until = parts.until.unwrap_or_default();
    let mut engine = Engine {
        place: parts.board.add_engine(),
        source: parts.source,
        catch_up: parts.catch_up,
        readers: BTreeMap::new(),
        apart: BTreeMap::new(),
        stands: BTreeMap::new(),
        looking: BTreeSet::new(),
        unstored: BTreeMap::new(),
        cluster: parts.cluster,
        factory: parts.factory,
        budget: parts.budget,
        routes: parts.routes,
        others: parts.others,
        ran_before: parts.ran_before,
        topic_refresh: parts.topic_refresh,
        lanes: Vec::new(),
        connected: 0,
        route_lanes: BTreeMap::new(),
        topic_lanes: BTreeMap::new(),
        gone: Gone::new(),
        leaving: BTreeSet::new(),
        names: Vec::new(),
        stores: Vec::new(),
        tasks: JoinSet::new(),
        by_task: HashMap::new(),
        summaries: BTreeMap::new(),
        followed: BTreeSet::new(),
        subscribed: BTreeSet::new(),
        by_topic: BTreeMap::new(),
        report_tx,
        reports,
        until: is_bounded.then_some(until.ends),
        watcher: parts.watcher,
        board: parts.board,
        expected: BTreeMap::new(),
        done: BTreeSet::new(),
        is_asking_names: false,
        has_joined: false,
        group: Group::default(),
        asking: BTreeSet::new(),
        questions: JoinSet::new(),
        pending: BTreeMap::new(),
        releasing: Vec::new(),
        stopped: BTreeSet::new(),
        drained: BTreeSet::new(),
        assignment: 0,
        committing: 0,
        uncommitted: None,
        unread: None,
        held_back: HeldBack::default(),
        shown_held_back: BTreeSet::new(),
        repeats: Repeats::default(),
    };
    let result = match engine.start(&parts.names, until.missing).await {
        Ok(()) => engine.work(&shutdown).await,
        Err(error) => Err(error),
    };
    engine.board.engine(engine.place, |told| told.is_draining = true);
    engine.close().await;
    engine.board.engine(engine.place, |told| told.has_ended = true);
    (engine.summaries().await, result)
}

/// A question to the brokers, under way.
enum Answer {
    /// What the group has for partitions we were given.
    Given {
        partitions: Vec<TopicPartition>,
        attempt: u32,
        committed: Result<BTreeMap<TopicPartition, (Offset, String)>, ClusterError>,
    },
    /// How far other members are with partitions of a bounded run.
    Others(BTreeMap<TopicPartition, (Offset, String)>),
    /// The topics the cluster has.
    Names(Result<BTreeSet<TopicName>, ClusterError>),
}

struct Engine {
    source: Box<dyn Source>,
    catch_up: Box<dyn Sources>,
    /// Consumers of lanes that catch up.
    readers: BTreeMap<LaneId, CatchUp>,
    /// What catches up.
    apart: BTreeMap<(LaneId, TopicPartition), Apart>,
    /// Where lanes last said they stand, in partitions where something catches up.
    stands: BTreeMap<(LaneId, TopicPartition), Stand>,
    /// Lanes that were asked where they stand, and have not said.
    looking: BTreeSet<LaneId>,
    /// What catches up and waits for the group to know where it begins.
    unstored: BTreeMap<(LaneId, TopicPartition), Stand>,
    cluster: Arc<dyn Cluster>,
    factory: Arc<dyn LaneFactory>,
    budget: Arc<Budget>,
    routes: Vec<Route>,
    others: Vec<Route>,
    ran_before: BTreeSet<usize>,
    topic_refresh: Duration,
    lanes: Vec<LaneHandle>,
    /// So many of them have an outlet at the source.
    connected: usize,
    /// The lane of each route that is not `per_topic`.
    route_lanes: BTreeMap<usize, LaneId>,
    /// The lane of each topic of a route that is `per_topic`.
    topic_lanes: BTreeMap<(usize, TopicName), LaneId>,
    /// Of those, what is not there any more.
    gone: Gone,
    /// Lanes that end by themselves, as their topics are gone.
    leaving: BTreeSet<LaneId>,
    /// The lanes' routes, in their order.
    names: Vec<String>,
    /// Where the lanes' sinks keep their positions: `Group` if one of them has no store of its own.
    stores: Vec<Store>,
    tasks: JoinSet<(LaneId, Summary)>,
    by_task: HashMap<task::Id, LaneId>,
    summaries: BTreeMap<LaneId, Summary>,
    /// Topics that routes, by their place, have taken up.
    followed: BTreeSet<(usize, TopicName)>,
    subscribed: BTreeSet<TopicName>,
    by_topic: BTreeMap<TopicName, Vec<LaneId>>,
    report_tx: mpsc::Sender<(LaneId, Report)>,
    reports: mpsc::Receiver<(LaneId, Report)>,
    until: Option<BTreeMap<TopicPartition, Offset>>,
    watcher: Option<Box<dyn Watcher>>,
    board: Arc<Board>,
    /// On the board: there is an engine for each group.
    place: usize,
    /// Offsets of each partition that a lane will have gone through.
    expected: BTreeMap<(LaneId, TopicPartition, Reader), u64>,
    /// Partitions of a bounded run that a lane has finished, whoever owns them now.
    done: BTreeSet<(LaneId, TopicPartition)>,
    /// The cluster is being asked for its topics.
    is_asking_names: bool,
    /// The group has told us what is ours; what is not belongs to others.
    has_joined: bool,
    group: Group,
    /// Partitions we were given, and do not know what the group has for them.
    asking: BTreeSet<TopicPartition>,
    questions: JoinSet<Answer>,
    /// Partitions whose lanes are asked where they go on.
    pending: BTreeMap<TopicPartition, Pending>,
    releasing: Vec<Releasing>,
    stopped: BTreeSet<LaneId>,
    drained: BTreeSet<LaneId>,
    assignment: u64,
    /// Commits under way.
    committing: usize,
    /// Since commits do not arrive.
    uncommitted: Option<Uncommitted>,
    /// Why the group's offsets could not be read, and what to do about it.
    unread: Option<(String, Option<String>)>,
    held_back: HeldBack,
    /// Lanes whose boards show something of it.
    shown_held_back: BTreeSet<LaneId>,
    /// Errors that pass, as they were said.
    repeats: Repeats,
}

struct Pending {
    waiting: BTreeSet<LaneId>,
    stands: BTreeMap<LaneId, Stand>,
    since: Instant,
    /// What caught up joins the front; until then all goes on as it does.
    is_join: bool,
}

struct Releasing {
    partitions: Vec<TopicPartition>,
    waiting: BTreeSet<LaneId>,
    deadline: Instant,
    is_lost: bool,
}

impl Engine {
    async fn work(&mut self, shutdown: &CancellationToken) -> Result<(), EngineError> {
        let mut refresh = tokio::time::interval_at(
            tokio::time::Instant::now() + self.topic_refresh,
            self.topic_refresh.max(REFRESH_MIN),
        );
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let is_growing = self.until.is_none() && self.routes.iter().any(|route| route.topics.is_pattern());
        let mut tick = tokio::time::interval(COMMIT_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.source.next() => match event {
                    Some(event) => self.on_event(event).await?,
                    None => return Err(SourceError::Ended.into()),
                },
                (lane, event) = catching::next(&mut self.readers) => self.on_catch_up(lane, event).await?,
                report = self.reports.recv() => {
                    if let Some((lane, report)) = report {
                        self.on_report(lane, report).await?;
                    }
                }
                Some(answer) = self.questions.join_next(), if !self.questions.is_empty() => {
                    if let Ok(answer) = answer {
                        self.on_answer(answer).await?;
                    }
                }
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    self.on_ended(ended).await?;
                }
                _ = tick.tick() => {
                    self.board.turn(self.place, self.group.owned().count());
                    self.commit()?;
                    self.release(Instant::now())?;
                    self.look(Instant::now()).await?;
                    self.ask_others();
                    self.tell_held_back(Instant::now());
                    self.tell_progress();
                }
                _ = refresh.tick(), if is_growing => self.ask_names(),
                () = shutdown.cancelled() => return Ok(()),
            }
            if self.is_over() {
                return Ok(());
            }
        }
    }

    async fn on_event(&mut self, event: Event) -> Result<(), EngineError> {
        match event {
            Event::Assigned(partitions) => self.on_assigned(partitions).await?,
            Event::Revoked { partitions, is_lost } => self.on_revoked(partitions, is_lost).await?,
            Event::Held(held) => self.on_held(held).await?,
            Event::Committed(result) => {
                let has_arrived = result.is_ok();
                self.on_committed(result);
                // Partitions may have waited for it. What failed is sent again at the next tick.
                if has_arrived {
                    self.assign_ready().await?;
                    self.read_waiting().await?;
                }
            }
            Event::Failed { source, offset, message, verdict } => {
                self.on_failed(source, offset, message, verdict).await?;
            }
            Event::Closed => return Err(SourceError::Ended.into()),
        }
        Ok(())
    }

    /// In a bounded run, looks how far other members are with what they own: once a second or so, as long
    /// as something is left.
    fn ask_others(&mut self) {
        let Some(until) = self.until.as_ref().filter(|_| self.has_joined) else {
            return;
        };
        let others: Vec<TopicPartition> = until
            .keys()
            .filter(|source| !self.group.owns(source) && !self.asking.contains(*source))
            .filter(|source| !self.is_done(source))
            .cloned()
            .collect();
        if others.is_empty() || !self.questions.is_empty() {
            return;
        }
        let cluster = self.cluster.clone();
        self.questions.spawn(async move {
            // Unreadable: it is asked again at the next tick.
            Answer::Others(cluster.committed(&others).await.unwrap_or_default())
        });
    }

    fn tell_progress(&mut self) {
        if let Some(watcher) = &mut self.watcher {
            let total = self.expected.values().sum();
            watcher.expect(total);
            // What is read again after a setback was counted before.
            watcher.reached(self.lanes.iter().map(LaneHandle::passed).sum::<u64>().min(total));
        }
    }

    fn is_releasing(&self, source: &TopicPartition) -> bool {
        self.releasing.iter().any(|releasing| releasing.partitions.contains(source))
    }

    fn lanes_of(&self, topic: &TopicName) -> Vec<LaneId> {
        self.by_topic.get(topic).cloned().unwrap_or_default()
    }

    fn live_lanes_of(&self, topic: &TopicName) -> BTreeSet<LaneId> {
        self.lanes_of(topic).into_iter().filter(|lane| !self.stopped.contains(lane)).collect()
    }

    async fn tell(&self, lane: LaneId, control: Control) {
        if self.lanes[lane.0].control.send(control).await.is_err() {
            debug!(lane = lane.0, "a lane that has ended was told something");
        }
    }

    async fn on_report(&mut self, lane: LaneId, report: Report) -> Result<(), EngineError> {
        match report {
            Report::Ready(stands) => {
                let mut alone = BTreeMap::new();
                for (source, stand) in stands {
                    if !self.answered(lane, &source, Some(&stand)) {
                        alone.insert(source, stand);
                    }
                }
                self.read_apart(lane, alone).await?;
                self.assign_ready().await?;
            }
            Report::CatchUp(stands) => self.read_apart(lane, stands).await?,
            Report::Stands(stands) => self.on_stands(lane, stands),
            Report::Released(_) => {
                for releasing in &mut self.releasing {
                    releasing.waiting.remove(&lane);
                }
                self.release(Instant::now())?;
            }
            Report::Rewind(partitions) => {
                // What is being given back is not taken up again.
                let kept = partitions.into_iter().filter(|source| !self.is_releasing(source));
                let asked =
                    kept.filter_map(|source| Some((source.clone(), self.group.standing(&source)?))).collect();
                self.ask_again(lane, asked).await?;
            }
            Report::Progress(durable) => self.on_progress(lane, durable),
            Report::Stopped(stop) => self.on_stopped(lane, &stop).await?,
            Report::Drained => {
                self.drained.insert(lane);
                if self.leaving.remove(&lane) {
                    self.board.end_lane(&self.lanes[lane.0].board);
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), EngineError> {
        // One at a time: librdkafka starts no new partition while commits are under way.
        if self.committing > 0 { Ok(()) } else { self.commit_now() }
    }

    fn commit_now(&mut self) -> Result<(), EngineError> {
        let (commits, errors) = self.group.due();
        for (source, error) in errors {
            self.say(Some(&source), &format!("offsets are not committed: {error}"));
        }
        if !commits.is_empty() {
            self.committing += 1;
            failpoint::hit("engine.commit.sending");
            self.source.send(Command::Commit(commits))?;
            failpoint::hit("engine.commit.sent");
        }
        Ok(())
    }

    fn on_committed(&mut self, result: Result<(), String>) {
        self.committing = self.committing.saturating_sub(1);
        let told = failpoint::check("engine.commit.answered").map_err(|error| error.to_string());
        let result = result.and(told);
        if result.is_ok() && self.committing == 0 {
            self.group.arrived();
        }
        self.board.engine(self.place, |told| match &result {
            Ok(()) => (told.commits, told.last_commit) = (told.commits + 1, Some(Timestamp::now())),
            Err(_) => told.commits_failed += 1,
        });
        match result {
            Ok(()) => self.commit_has_arrived(),
            Err(error) => {
                self.group.retry();
                self.commit_has_failed(error);
            }
        }
    }

    fn on_progress(&mut self, lane: LaneId, durable: BTreeMap<TopicPartition, Durable>) {
        for (source, durable) in durable {
            let end = self.until.as_ref().and_then(|until| until.get(&source));
            if end.is_some_and(|end| durable.settled >= *end) {
                self.done.insert((lane, source.clone()));
            }
            self.group.progress(lane, &source, &durable);
        }
    }

    fn is_done(&self, source: &TopicPartition) -> bool {
        let mut lanes = self.live_lanes_of(&source.topic).into_iter();
        lanes.all(|lane| self.done.contains(&(lane, source.clone())))
    }

    /// A bounded run is over when every partition is durable up to its end in every lane that lives.
    fn is_over(&self) -> bool {
        self.until.as_ref().is_some_and(|until| until.keys().all(|source| self.is_done(source)))
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
