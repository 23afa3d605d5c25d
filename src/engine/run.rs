//! The engine's loop: what the source and the lanes report, and what follows.
//!
//! All decisions about partitions are made here, one at a time; lanes and the source only carry them out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::kafka::{Assignment, Cluster, ClusterError, Command, Event, Source, SourceError, Verdict};
use crate::model::metadata::GroupMetadata;
use crate::model::{Offset, TopicName, TopicPartition};

use super::group::Group;
use super::lane::{Lane, LaneHandle, Summary};
use super::message::{Committed, Control, Durable, LaneId, Report, Stop};
use super::retry;

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
    let mut by_task = HashMap::new();
    for (index, (topics, lane, handle)) in parts.lanes.into_iter().enumerate() {
        for topic in topics {
            by_topic.entry(topic).or_default().push(LaneId(index));
        }
        lanes.push(handle);
        let task = tasks.spawn(async move { (LaneId(index), lane.run().await) });
        by_task.insert(task.id(), LaneId(index));
    }
    let mut engine = Engine {
        source: parts.source,
        cluster: parts.cluster,
        names: lanes.iter().map(|lane| lane.route.clone()).collect(),
        lanes,
        tasks,
        by_task,
        summaries: BTreeMap::new(),
        by_topic,
        reports: parts.reports,
        until: parts.until,
        done: BTreeSet::new(),
        group: Group::default(),
        asking: BTreeSet::new(),
        questions: JoinSet::new(),
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
}

struct Engine {
    source: Box<dyn Source>,
    cluster: Arc<dyn Cluster>,
    lanes: Vec<LaneHandle>,
    /// The lanes' routes, in their order.
    names: Vec<String>,
    tasks: JoinSet<(LaneId, Summary)>,
    by_task: HashMap<task::Id, LaneId>,
    summaries: BTreeMap<LaneId, Summary>,
    by_topic: BTreeMap<TopicName, Vec<LaneId>>,
    reports: mpsc::Receiver<(LaneId, Report)>,
    until: Option<BTreeMap<TopicPartition, Offset>>,
    /// Partitions of a bounded run that a lane has finished, whoever owns them now.
    done: BTreeSet<(LaneId, TopicPartition)>,
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
                Some(answer) = self.questions.join_next(), if !self.questions.is_empty() => {
                    if let Ok(answer) = answer {
                        self.on_answer(answer).await?;
                    }
                }
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    self.on_ended(ended).await?;
                }
                _ = tick.tick() => {
                    self.commit()?;
                    self.release(Instant::now())?;
                    self.ask_others();
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
        for releasing in &mut self.releasing {
            // What comes back while it is being released is not given up any more.
            releasing.partitions.retain(|source| !partitions.contains(source));
        }
        self.asking.extend(partitions.iter().cloned());
        self.ask_committed(partitions, 0);
        Ok(())
    }

    /// Asks what the group has for partitions; the loop goes on meanwhile. Unreadable is not "none": it is
    /// asked again, and the partitions stay held back.
    fn ask_committed(&mut self, partitions: Vec<TopicPartition>, attempt: u32) {
        let cluster = self.cluster.clone();
        self.questions.spawn(async move {
            if attempt > 0 {
                tokio::time::sleep(retry::pause(attempt)).await;
            }
            let committed = cluster.committed(&partitions).await;
            Answer::Given { partitions, attempt, committed }
        });
    }

    async fn on_answer(&mut self, answer: Answer) -> Result<(), EngineError> {
        match answer {
            Answer::Given { partitions, committed: Ok(committed), .. } => {
                self.take_up(partitions, &committed).await
            }
            Answer::Given { partitions, attempt, committed: Err(error) } => {
                self.say(format!("committed offsets could not be read: {}", super::chain(&error)));
                let left: Vec<TopicPartition> =
                    partitions.into_iter().filter(|source| self.asking.contains(source)).collect();
                if !left.is_empty() {
                    self.ask_committed(left, attempt + 1);
                }
                Ok(())
            }
            Answer::Others(committed) => {
                for (source, (offset, _)) in committed {
                    let end = self.until.as_ref().and_then(|until| until.get(&source));
                    if end.is_some_and(|end| offset >= *end) {
                        for lane in self.lanes_of(&source.topic) {
                            self.done.insert((lane, source.clone()));
                        }
                    }
                }
                Ok(())
            }
        }
    }

    async fn take_up(
        &mut self,
        partitions: Vec<TopicPartition>,
        committed: &BTreeMap<TopicPartition, (Offset, String)>,
    ) -> Result<(), EngineError> {
        let mut asked = BTreeMap::new();
        for source in partitions {
            // It may have been revoked since.
            if !self.asking.remove(&source) {
                continue;
            }
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

    /// In a bounded run, looks how far other members are with what they own: once a second or so, as long
    /// as something is left.
    fn ask_others(&mut self) {
        let Some(until) = &self.until else {
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

    /// A lane that ends by itself has a defect; its route is stopped like any other.
    async fn on_ended(
        &mut self,
        ended: Result<(task::Id, (LaneId, Summary)), task::JoinError>,
    ) -> Result<(), EngineError> {
        match ended {
            Ok((_, (lane, summary))) => {
                self.summaries.insert(lane, summary);
            }
            Err(failure) => {
                let Some(lane) = self.by_task.get(&failure.id()).copied() else {
                    return Ok(());
                };
                let stop = Stop {
                    message: format!("a defect of sidestream: {failure}"),
                    hint: Some("please report it; what is durable is safe".to_owned()),
                };
                let route = self.names[lane.0].clone();
                let summary = Summary { route, stop: Some(stop.clone()), ..Summary::default() };
                self.summaries.insert(lane, summary);
                self.drained.insert(lane);
                self.on_stopped(lane, &stop).await?;
            }
        }
        Ok(())
    }

    /// What the lanes did, after they were drained.
    async fn summaries(mut self) -> Vec<Summary> {
        let mut tasks = std::mem::take(&mut self.tasks);
        let collect = async {
            while let Some(ended) = tasks.join_next_with_id().await {
                // A lane that fails this late has nothing that is not durable or read again.
                if self.on_ended(ended).await.is_err() {
                    break;
                }
            }
        };
        if tokio::time::timeout(CLOSE_MAX, collect).await.is_err() {
            warn!("a lane did not end in time");
        }
        self.summaries.into_values().collect()
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
            Report::Progress(durable) => self.on_progress(lane, durable),
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
            // A partition that appeared after the start of a bounded run is not part of it.
            let end = self.until.as_ref().map(|until| until.get(&source).copied().unwrap_or(from));
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
            self.asking.remove(source);
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
            self.source.send(Command::Release(releasing.partitions))?;
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
            return self.on_failed_somewhere(&message, verdict, hint).await;
        };
        let at = offset.map(|offset| format!(" offset {offset}")).unwrap_or_default();
        let stop = Stop { message: format!("{source}{at}: {message}"), hint: Some(hint.to_owned()) };
        for lane in self.live_lanes_of(&source.topic) {
            self.tell(lane, Control::Fail(stop.clone())).await;
        }
        Ok(())
    }

    /// An error without a partition. A refused topic is named in librdkafka's text only
    /// ("Subscribed topic not available: <topic>: <error>"); whatever else is not about records passes.
    async fn on_failed_somewhere(
        &mut self,
        message: &str,
        verdict: Verdict,
        hint: &str,
    ) -> Result<(), EngineError> {
        let named = |topic: &&TopicName| message.contains(&format!(": {topic}: "));
        let topic = self.by_topic.keys().find(named).cloned();
        let Some(topic) = topic.filter(|_| verdict == Verdict::Refused) else {
            self.say(message.to_owned());
            return Ok(());
        };
        let stop = Stop { message: message.to_owned(), hint: Some(hint.to_owned()) };
        for lane in self.live_lanes_of(&topic) {
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
        error!(route = self.names[lane.0], error = stop.message, hint = stop.hint, "route stopped");
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

    fn on_progress(&mut self, lane: LaneId, durable: BTreeMap<TopicPartition, Durable>) {
        for (source, durable) in durable {
            let end = self.until.as_ref().and_then(|until| until.get(&source));
            if end.is_some_and(|end| durable.next >= *end) {
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
                Some((lane, Report::Progress(durable))) => self.on_progress(lane, durable),
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
