//! The engine's loop: what the source and the lanes report, and what follows.
//!
//! All decisions about partitions are made here, one at a time; lanes and the source only carry them out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::kafka::{Assignment, Cluster, Command, Event, Source, SourceError, Verdict};
use crate::model::metadata::GroupMetadata;
use crate::model::{Offset, TopicName, TopicPartition};

use super::group::Group;
use super::lane::{Lane, LaneHandle, Summary};
use super::message::{Committed, Control, LaneId, Report, Stop};

/// How often offsets are committed while there is progress.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);

/// A lane that has not released revoked partitions by then is not waited for: its late writes lose
/// their compare-and-set. Well below `max.poll.interval.ms`.
const RELEASE_MAX: Duration = Duration::from_secs(30);

/// For lanes to become durable at shutdown; below the 30 s that container runtimes give.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// For the last commit, and for leaving the group.
const CLOSE_MAX: Duration = Duration::from_secs(4);

/// An error that passes is said again after this time.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// What the engine runs on.
pub struct EngineParts {
    pub source: Box<dyn Source>,
    pub cluster: Arc<dyn Cluster>,
    /// Lanes in the order of their ids, with the topics they read.
    pub lanes: Vec<(Vec<TopicName>, Lane, LaneHandle)>,
    pub reports: mpsc::Receiver<(LaneId, Report)>,
    /// Of a bounded run: where each partition ends.
    pub until: Option<BTreeMap<TopicPartition, Offset>>,
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
    let mut by_topic: BTreeMap<TopicName, Vec<LaneId>> = BTreeMap::new();
    let mut lanes = Vec::new();
    let mut tasks = JoinSet::new();
    for (index, (topics, lane, handle)) in parts.lanes.into_iter().enumerate() {
        for topic in topics {
            by_topic.entry(topic).or_default().push(LaneId(index));
        }
        lanes.push(handle);
        tasks.spawn(async move { (index, lane.run().await) });
    }
    let mut engine = Engine {
        source: parts.source,
        cluster: parts.cluster,
        lanes,
        by_topic,
        reports: parts.reports,
        until: parts.until,
        group: Group::default(),
        pending: BTreeMap::new(),
        releasing: Vec::new(),
        stopped: BTreeSet::new(),
        drained: BTreeSet::new(),
        assignment: 0,
        is_committing: false,
        commit_failed: false,
        said: BTreeMap::new(),
    };
    let result = engine.work(&shutdown).await;
    engine.close().await;
    drop(engine);
    (summaries(tasks).await, result)
}

async fn summaries(mut tasks: JoinSet<(usize, Summary)>) -> Vec<Summary> {
    let mut all = Vec::new();
    let collect = async {
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(ended) => all.push(ended),
                Err(failure) => error!(%failure, "a lane ended in a defect"),
            }
        }
    };
    if tokio::time::timeout(CLOSE_MAX, collect).await.is_err() {
        warn!("a lane did not end in time");
    }
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, summary)| summary).collect()
}

struct Engine {
    source: Box<dyn Source>,
    cluster: Arc<dyn Cluster>,
    lanes: Vec<LaneHandle>,
    by_topic: BTreeMap<TopicName, Vec<LaneId>>,
    reports: mpsc::Receiver<(LaneId, Report)>,
    until: Option<BTreeMap<TopicPartition, Offset>>,
    group: Group,
    /// Partitions whose lanes are asked where they go on.
    pending: BTreeMap<TopicPartition, Pending>,
    releasing: Vec<Releasing>,
    stopped: BTreeSet<LaneId>,
    drained: BTreeSet<LaneId>,
    assignment: u64,
    is_committing: bool,
    commit_failed: bool,
    /// When an error that passes was last said.
    said: BTreeMap<String, Instant>,
}

struct Pending {
    waiting: BTreeSet<LaneId>,
    from: Option<Offset>,
}

struct Releasing {
    partitions: Vec<TopicPartition>,
    waiting: BTreeSet<LaneId>,
    deadline: Instant,
    is_lost: bool,
}

impl Engine {
    async fn work(&mut self, shutdown: &CancellationToken) -> Result<(), EngineError> {
        let topics = self.by_topic.keys().cloned().collect();
        self.source.send(Command::Subscribe(topics))?;
        let mut tick = tokio::time::interval(COMMIT_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.source.next() => match event {
                    Some(event) => self.on_event(event).await?,
                    None => return Err(SourceError::Ended.into()),
                },
                report = self.reports.recv() => {
                    if let Some((lane, report)) = report {
                        self.on_report(lane, report).await?;
                    }
                }
                _ = tick.tick() => {
                    self.commit()?;
                    self.release(Instant::now())?;
                }
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
            Event::Committed(result) => self.on_committed(result),
            Event::Failed { source, offset, message, verdict } => {
                self.on_failed(source, offset, message, verdict).await?;
            }
            Event::Closed => return Err(SourceError::Ended.into()),
        }
        Ok(())
    }

    async fn on_assigned(&mut self, partitions: Vec<TopicPartition>) -> Result<(), EngineError> {
        if partitions.is_empty() {
            return Ok(());
        }
        info!(partitions = ?partitions.iter().map(ToString::to_string).collect::<Vec<_>>(), "assigned");
        let committed = match self.cluster.committed(&partitions).await {
            Ok(committed) => committed,
            Err(error) => {
                // The group's offsets are a display: what is missing is only noticed less.
                warn!(error = super::chain(&error), "committed offsets could not be read");
                BTreeMap::new()
            }
        };
        let mut asked = BTreeMap::new();
        for source in partitions {
            let known = committed.get(&source);
            let text = known.map_or("", |(_, text)| text.as_str());
            let metadata = GroupMetadata::parse(text).unwrap_or_else(|error| {
                warn!(%source, %error, "what was committed by others is overwritten");
                GroupMetadata::default()
            });
            let committed = Committed { offset: known.map(|(offset, _)| *offset), metadata };
            let lanes = self.lanes_of(&source.topic);
            self.group.own(source.clone(), &lanes, committed.clone());
            asked.insert(source, committed);
        }
        self.ask(asked).await
    }

    fn lanes_of(&self, topic: &TopicName) -> Vec<LaneId> {
        self.by_topic.get(topic).cloned().unwrap_or_default()
    }

    fn live_lanes_of(&self, topic: &TopicName) -> BTreeSet<LaneId> {
        self.lanes_of(topic).into_iter().filter(|lane| !self.stopped.contains(lane)).collect()
    }

    /// Asks the lanes of these partitions where they go on.
    async fn ask(&mut self, partitions: BTreeMap<TopicPartition, Committed>) -> Result<(), EngineError> {
        let mut by_lane: BTreeMap<LaneId, BTreeMap<TopicPartition, Committed>> = BTreeMap::new();
        for (source, committed) in partitions {
            let waiting = self.live_lanes_of(&source.topic);
            for lane in &waiting {
                by_lane.entry(*lane).or_default().insert(source.clone(), committed.clone());
            }
            if !waiting.is_empty() {
                self.pending.insert(source, Pending { waiting, from: None });
            }
        }
        for (lane, partitions) in by_lane {
            self.tell(lane, Control::Resume(partitions)).await;
        }
        Ok(())
    }

    async fn tell(&self, lane: LaneId, control: Control) {
        if self.lanes[lane.0].control.send(control).await.is_err() {
            debug!(lane = lane.0, "a lane that has ended was told something");
        }
    }

    async fn on_report(&mut self, lane: LaneId, report: Report) -> Result<(), EngineError> {
        match report {
            Report::Ready(offsets) => {
                for (source, from) in offsets {
                    self.answered(lane, &source, Some(from));
                }
                self.assign_ready().await?;
            }
            Report::Released(_) => {
                for releasing in &mut self.releasing {
                    releasing.waiting.remove(&lane);
                }
                self.release(Instant::now())?;
            }
            Report::Rewind(partitions) => {
                let owned = partitions.into_iter().filter(|source| self.group.owns(source));
                let asked = owned.map(|source| (source, Committed::default())).collect();
                self.ask(asked).await?;
            }
            Report::Progress(durable) => {
                for (source, durable) in durable {
                    self.group.progress(lane, &source, &durable);
                }
            }
            Report::Stopped(stop) => self.on_stopped(lane, &stop).await?,
            Report::Drained => {
                self.drained.insert(lane);
            }
        }
        Ok(())
    }

    fn answered(&mut self, lane: LaneId, source: &TopicPartition, from: Option<Offset>) {
        if let Some(pending) = self.pending.get_mut(source) {
            pending.waiting.remove(&lane);
            pending.from = [pending.from, from].into_iter().flatten().min();
        }
    }

    /// Fetches the partitions whose lanes have all answered, from where the slowest of them stands.
    async fn assign_ready(&mut self) -> Result<(), EngineError> {
        let ready: Vec<TopicPartition> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.waiting.is_empty())
            .map(|(source, _)| source.clone())
            .collect();
        let mut assignments = Vec::new();
        let mut by_lane: BTreeMap<LaneId, Vec<(Assignment, Option<Offset>)>> = BTreeMap::new();
        for source in ready {
            let from = self.pending.remove(&source).and_then(|pending| pending.from);
            let Some(from) = from.filter(|_| self.group.owns(&source)) else {
                continue;
            };
            self.assignment += 1;
            let assignment = Assignment { source: source.clone(), from, number: self.assignment };
            let end = self.until.as_ref().and_then(|until| until.get(&source)).copied();
            for lane in self.live_lanes_of(&source.topic) {
                by_lane.entry(lane).or_default().push((assignment.clone(), end));
            }
            // Nothing is wanted of a partition that begins at or behind its end.
            if end.is_none_or(|end| from < end) {
                assignments.push(assignment);
            }
        }
        // Lanes know of an assignment before its first chunk can come.
        for (lane, assigned) in by_lane {
            self.tell(lane, Control::Assigned(assigned)).await;
        }
        if !assignments.is_empty() {
            // What a sink without a store begins with is committed before the first record of it is fetched:
            // `latest` on an idle partition must mean the same after a crash.
            self.commit_now()?;
            self.source.send(Command::Assign(assignments))?;
        }
        Ok(())
    }

    async fn on_revoked(
        &mut self,
        partitions: Vec<TopicPartition>,
        is_lost: bool,
    ) -> Result<(), EngineError> {
        info!(partitions = ?partitions.iter().map(ToString::to_string).collect::<Vec<_>>(), is_lost, "revoked");
        let mut by_lane: BTreeMap<LaneId, Vec<TopicPartition>> = BTreeMap::new();
        for source in &partitions {
            self.pending.remove(source);
            if is_lost {
                self.group.disown(source);
            }
            for lane in self.live_lanes_of(&source.topic) {
                by_lane.entry(lane).or_default().push(source.clone());
            }
        }
        self.releasing.push(Releasing {
            waiting: by_lane.keys().copied().collect(),
            partitions,
            deadline: Instant::now() + RELEASE_MAX,
            is_lost,
        });
        for (lane, partitions) in by_lane {
            self.tell(lane, Control::Revoke { partitions, is_lost }).await;
        }
        self.release(Instant::now())
    }

    /// Answers the group for revoked partitions that all lanes have released, or that took too long.
    fn release(&mut self, now: Instant) -> Result<(), EngineError> {
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.releasing)
            .into_iter()
            .partition(|releasing| releasing.waiting.is_empty() || releasing.deadline <= now);
        self.releasing = waiting;
        for releasing in done {
            if !releasing.waiting.is_empty() {
                warn!("partitions are given up before a route could finish; what it had open is read again");
            }
            if !releasing.is_lost {
                self.commit_now()?;
            }
            for source in &releasing.partitions {
                self.group.disown(source);
            }
            self.source.send(Command::Unassign(releasing.partitions))?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), EngineError> {
        // One at a time: librdkafka starts no new partition while commits are under way.
        if self.is_committing { Ok(()) } else { self.commit_now() }
    }

    fn commit_now(&mut self) -> Result<(), EngineError> {
        let (commits, errors) = self.group.due();
        for (source, error) in errors {
            self.say(format!("offsets of {source} are not committed: {error}"));
        }
        if !commits.is_empty() {
            self.is_committing = true;
            self.source.send(Command::Commit(commits))?;
        }
        Ok(())
    }

    fn on_committed(&mut self, result: Result<(), String>) {
        self.is_committing = false;
        match result {
            Ok(()) if self.commit_failed => {
                self.commit_failed = false;
                info!("offsets are committed again");
            }
            Ok(()) => {}
            Err(error) => {
                if !self.commit_failed {
                    warn!(error, "offsets could not be committed; lag is shown too high until they can");
                }
                self.commit_failed = true;
                self.group.retry();
            }
        }
    }

    async fn on_failed(
        &mut self,
        source: Option<TopicPartition>,
        offset: Option<Offset>,
        message: String,
        verdict: Verdict,
    ) -> Result<(), EngineError> {
        let hint = match verdict {
            Verdict::Passing => {
                let place = source.map(|source| format!("{source}: ")).unwrap_or_default();
                self.say(format!("{place}{message}"));
                return Ok(());
            }
            Verdict::Fatal => return Err(EngineError::Client(message)),
            Verdict::DataLost => {
                "the brokers no longer have these records: retention passed them, or the partition was truncated"
            }
            Verdict::Unreadable => {
                "the broker holds bytes that cannot be read; look at the partition's log there"
            }
            Verdict::Refused => "give this user the right to read the topic",
        };
        let Some(source) = source else {
            return Err(EngineError::Client(message));
        };
        let at = offset.map(|offset| format!(" offset {offset}")).unwrap_or_default();
        let stop = Stop { message: format!("{source}{at}: {message}"), hint: Some(hint.to_owned()) };
        for lane in self.live_lanes_of(&source.topic) {
            self.tell(lane, Control::Fail(stop.clone())).await;
        }
        Ok(())
    }

    /// Says an error that passes, once per change and once in a while.
    fn say(&mut self, message: String) {
        let now = Instant::now();
        let is_news = |last: &Instant| now.duration_since(*last) >= REPEAT_INTERVAL;
        if self.said.get(&message).is_none_or(is_news) {
            // Texts differ by broker and topic; there are not many.
            if self.said.len() > 1000 {
                self.said.clear();
            }
            warn!("{message}");
            self.said.insert(message, now);
        }
    }

    async fn on_stopped(&mut self, lane: LaneId, stop: &Stop) -> Result<(), EngineError> {
        self.stopped.insert(lane);
        error!(lane = lane.0, error = stop.message, hint = stop.hint, "route stopped");
        let pending: Vec<TopicPartition> = self.pending.keys().cloned().collect();
        for source in pending {
            self.answered(lane, &source, None);
        }
        for releasing in &mut self.releasing {
            releasing.waiting.remove(&lane);
        }
        // Topics that only stopped lanes read are not fetched; they stay ours in the group.
        let idle: Vec<TopicPartition> = self
            .group
            .owned()
            .filter(|source| self.live_lanes_of(&source.topic).is_empty())
            .cloned()
            .collect();
        if !idle.is_empty() {
            self.source.send(Command::Unassign(idle))?;
        }
        self.release(Instant::now())?;
        self.assign_ready().await
    }

    /// A bounded run is over when every partition is durable up to its end in every lane that lives.
    fn is_over(&self) -> bool {
        let Some(until) = &self.until else {
            return false;
        };
        until.iter().all(|(source, end)| {
            self.live_lanes_of(&source.topic)
                .into_iter()
                .all(|lane| self.group.durable_of(lane, source).is_some_and(|durable| durable >= *end))
        })
    }

    /// Drains the lanes, commits what is durable, leaves the group. Every step has a deadline: what is not
    /// durable by then is read again by the next start.
    async fn close(&mut self) {
        for lane in (0..self.lanes.len()).map(LaneId) {
            self.tell(lane, Control::Drain).await;
        }
        let drained = tokio::time::timeout(DRAIN_MAX, self.wait_drained()).await;
        if drained.is_err() {
            warn!("not everything could be made durable in time; it is read again by the next start");
        }
        let closed = tokio::time::timeout(CLOSE_MAX, self.leave()).await;
        if !matches!(closed, Ok(Ok(()))) {
            warn!(
                "the group could not be left in time; its other members take over after the session timeout"
            );
        }
    }

    async fn wait_drained(&mut self) {
        while self.drained.len() < self.lanes.len() {
            match self.reports.recv().await {
                Some((lane, Report::Drained)) => {
                    self.drained.insert(lane);
                }
                Some((lane, Report::Progress(durable))) => {
                    for (source, durable) in durable {
                        self.group.progress(lane, &source, &durable);
                    }
                }
                Some(_) => {}
                None => return,
            }
        }
    }

    async fn leave(&mut self) -> Result<(), EngineError> {
        while self.is_committing {
            self.wait_committed().await?;
        }
        self.commit_now()?;
        while self.is_committing {
            self.wait_committed().await?;
        }
        self.source.send(Command::Close)?;
        while let Some(event) = self.source.next().await {
            if matches!(event, Event::Closed) {
                break;
            }
        }
        Ok(())
    }

    async fn wait_committed(&mut self) -> Result<(), EngineError> {
        match self.source.next().await {
            Some(Event::Committed(result)) => {
                self.on_committed(result);
                Ok(())
            }
            Some(Event::Closed) | None => Err(SourceError::Ended.into()),
            Some(_) => Ok(()),
        }
    }
}
