//! What is read beside the front: which lanes have a consumer of their own, since when, and when they join the others
//! again. The decisions are in [`crate::engine::catching`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::future::select_all;
use tracing::{debug, info};

use super::assignment::assignment;
use super::{Engine, EngineError, Pending};
use crate::engine::catching::{self, Stand};
use crate::engine::chain;
use crate::engine::message::{Assigned, Committed, Control, LaneId, Place, Stop};
use crate::kafka::{Assignment, Command, Event, Source, Verdict};
use crate::model::{SinkSet, TopicPartition};
use crate::sink::Store;

/// The one outlet of a lane's own consumer.
pub const OUTLET: usize = 0;

/// Lanes that have a consumer of their own at the same time: each has threads and prefetches a few MiB. Further ones
/// read with the front, whatever its pace, until one is free.
const READERS_MAX: usize = 8;

/// A consumer without work ends after this time; the next need starts another.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// A lane that has not said by then where it stands is not waited for: it reads by itself when it can.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A lane that held others up reads by itself so long at least: it may stand near them, and stand still.
const HELD_MIN: Duration = Duration::from_secs(10);

/// Sinks of a lane that catch up in a partition.
#[derive(Debug, Clone, Copy)]
pub struct Apart {
    pub sinks: SinkSet,
    /// When the lane had held up others.
    pub held: Option<Instant>,
}

/// A lane's own consumer.
pub struct CatchUp {
    source: Box<dyn Source>,
    /// Since when nothing of the lane catches up.
    idle: Option<Instant>,
}

/// The next event of any of the consumers; nothing ever, if there is none. Cancel-safe.
pub async fn next(readers: &mut BTreeMap<LaneId, CatchUp>) -> (LaneId, Option<Event>) {
    if readers.is_empty() {
        return std::future::pending().await;
    }
    let each = readers.iter_mut().map(|(lane, reader)| {
        let lane = *lane;
        Box::pin(async move { (lane, reader.source.next().await) })
    });
    select_all(each).await.0
}

impl Engine {
    /// The sinks of a lane that catch up in a partition.
    pub(super) fn apart_of(&self, lane: LaneId, source: &TopicPartition) -> SinkSet {
        self.apart.get(&(lane, source.clone())).map_or(SinkSet::EMPTY, |apart| apart.sinks)
    }

    /// The lanes that read a partition at the front.
    pub(super) fn front_lanes_of(&self, source: &TopicPartition) -> BTreeSet<LaneId> {
        let mut lanes = self.live_lanes_of(&source.topic);
        lanes.retain(|lane| self.apart_of(*lane, source) != SinkSet::ALL);
        lanes
    }

    /// Which sinks of these lanes catch up from now on. One that has no consumer, as there are too many, reads with
    /// the front.
    pub(super) fn split(
        &mut self,
        source: &TopicPartition,
        stands: &BTreeMap<LaneId, Stand>,
    ) -> BTreeMap<LaneId, SinkSet> {
        let mut sets = catching::split(stands);
        for (lane, apart) in &mut sets {
            if !apart.is_empty() && !self.has_reader(*lane) {
                let (topic, partition) = (source.topic.as_str(), source.partition.0);
                debug!(route = self.names[lane.0], topic, partition, "nothing is free to catch up with");
                *apart = SinkSet::EMPTY;
            }
        }
        sets
    }

    /// Has the lane a consumer of its own, or can it get one?
    fn has_reader(&mut self, lane: LaneId) -> bool {
        if let Some(reader) = self.readers.get_mut(&lane) {
            reader.idle = None;
            return true;
        }
        if self.readers.len() >= READERS_MAX {
            return false;
        }
        let started = self.catch_up.start().and_then(|source| {
            source.send(Command::Connect(vec![(OUTLET, self.lanes[lane.0].catch_up_outlet())]))?;
            Ok(source)
        });
        match started {
            Ok(source) => {
                self.readers.insert(lane, CatchUp { source, idle: None });
                true
            }
            Err(error) => {
                self.say(None, &format!("nothing can catch up: {}", chain(&error)));
                false
            }
        }
    }

    /// Takes in who catches up in a partition, and says so.
    pub(super) fn set_apart(&mut self, lane: LaneId, source: &TopicPartition, sinks: SinkSet) {
        let (route, topic, partition) = (&self.names[lane.0], source.topic.as_str(), source.partition.0);
        let key = (lane, source.clone());
        if sinks.is_empty() {
            if self.apart.remove(&key).is_some() {
                info!(route, topic, partition, "caught up");
                self.command(lane, Command::Unassign(vec![source.clone()]));
            }
            return;
        }
        let known = self.apart.insert(key, Apart { sinks, held: None });
        if known.is_none_or(|known| known.sinks != sinks) {
            let all = sinks == SinkSet::ALL;
            info!(route, topic, partition, whole_route = all, "catching up beside what is near the end");
        }
        if sinks == SinkSet::ALL {
            self.group.catches_up(lane, source, self.stores[lane.0]);
        }
    }

    /// Tells a lane's own consumer something. One that has ended is noticed by its events, and replaced.
    fn command(&self, lane: LaneId, command: Command) {
        if let Some(reader) = self.readers.get(&lane)
            && reader.source.send(command).is_err()
        {
            debug!(route = self.names[lane.0], "a consumer that catches up has ended by itself");
        }
    }

    /// Reads partitions for the sinks of a lane that catch up, from where they stand. All in one message: there may be
    /// thousands.
    pub(super) async fn read_apart(
        &mut self,
        lane: LaneId,
        stands: BTreeMap<TopicPartition, Stand>,
    ) -> Result<(), EngineError> {
        let (mut assigned, mut assignments) = (Vec::new(), Vec::new());
        for (source, stand) in stands {
            if !self.set_beside(lane, &source, &stand) {
                // As below: it is tried again at the next look.
                self.unstored.insert((lane, source), stand);
                continue;
            }
            let apart = self.apart_of(lane, &source);
            // It has joined the others meanwhile, or is given up.
            let Some(from) = stand.lowest(apart) else {
                continue;
            };
            if !self.group.owns(&source) || self.is_releasing(&source) {
                continue;
            }
            if !self.has_reader(lane) {
                // Others use all that there may be, or it could not be started: it is tried again at the next look.
                self.unstored.insert((lane, source), stand);
                continue;
            }
            // As at the front: the group knows first where a sink without a store begins.
            if self.awaits_first_commit(&source) {
                self.unstored.insert((lane, source), stand);
                continue;
            }
            let reading = self.reading(&source, from);
            assignments.push(assignment(&source, reading, vec![OUTLET]));
            assigned.push(Assigned { source, apart, front: None, catch_up: Some(reading) });
        }
        if !self.unstored.is_empty() {
            // One that fails is sent again at the next tick; the reply of one that arrives leads to `read_waiting`.
            self.commit()?;
        }
        if !assigned.is_empty() {
            self.tell(lane, Control::Assigned(assigned)).await;
            self.fetch_apart(lane, assignments);
        }
        Ok(())
    }

    /// Takes in which sinks of a lane came back, and read by themselves, and which have left: nothing is read for them.
    /// `false` if there is no consumer for the former.
    fn set_beside(&mut self, lane: LaneId, source: &TopicPartition, stand: &Stand) -> bool {
        let known = self.apart_of(lane, source);
        let wanted = stand.apart(known);
        // A lane that catches up as a whole has one reader for all of its sinks.
        if known == SinkSet::ALL || wanted == known || !self.group.owns(source) || self.is_releasing(source) {
            return true;
        }
        if wanted.is_empty() {
            self.apart.remove(&(lane, source.clone()));
            self.command(lane, Command::Unassign(vec![source.clone()]));
        } else if self.has_reader(lane) {
            self.set_apart(lane, source, wanted);
        } else {
            return false;
        }
        true
    }

    /// A commit has arrived: what waited for the group to know where it begins is read.
    pub(super) async fn read_waiting(&mut self) -> Result<(), EngineError> {
        let mut by_lane: BTreeMap<LaneId, BTreeMap<TopicPartition, Stand>> = BTreeMap::new();
        for ((lane, source), stand) in std::mem::take(&mut self.unstored) {
            by_lane.entry(lane).or_default().insert(source, stand);
        }
        for (lane, stands) in by_lane {
            self.read_apart(lane, stands).await?;
        }
        Ok(())
    }

    /// Tells a lane's consumer what to fetch, once the lane knows.
    pub(super) fn fetch_apart(&self, lane: LaneId, assignments: Vec<Assignment>) {
        let is_over = |assignment: &Assignment| {
            let end = self.until.as_ref().map(|until| until.get(&assignment.source));
            end.is_some_and(|end| end.is_none_or(|end| assignment.from >= *end))
        };
        let (over, wanted): (Vec<_>, Vec<_>) = assignments.into_iter().partition(is_over);
        if !over.is_empty() {
            let sources = over.into_iter().map(|assignment| assignment.source).collect();
            self.command(lane, Command::Unassign(sources));
        }
        if !wanted.is_empty() {
            self.command(lane, Command::Assign(wanted));
        }
    }

    /// Asks for partitions again that a lane has to read again: all lanes of them, but a lane that catches up
    /// concerns nobody else.
    pub(super) async fn ask_again(
        &mut self,
        lane: LaneId,
        asked: BTreeMap<TopicPartition, Committed>,
    ) -> Result<(), EngineError> {
        let (alone, shared): (BTreeMap<_, _>, BTreeMap<_, _>) =
            asked.into_iter().partition(|(source, _)| self.apart_of(lane, source) == SinkSet::ALL);
        if !alone.is_empty() {
            self.tell(lane, Control::Resume(alone)).await;
        }
        self.ask(shared).await
    }

    /// Lanes have held up partitions that others wait for: from now on they read them by themselves.
    pub(super) async fn on_held(
        &mut self,
        held: Vec<(TopicPartition, Vec<usize>)>,
    ) -> Result<(), EngineError> {
        let mut by_lane: BTreeMap<LaneId, Vec<TopicPartition>> = BTreeMap::new();
        for (source, outlets) in held {
            if self.is_releasing(&source) || self.pending.contains_key(&source) {
                continue;
            }
            let front = self.front_lanes_of(&source);
            let by: Vec<LaneId> = front.iter().copied().filter(|lane| outlets.contains(&lane.0)).collect();
            // Somebody has to be at the front.
            if by.len() < front.len() {
                by.into_iter().for_each(|lane| by_lane.entry(lane).or_default().push(source.clone()));
            }
        }
        for (lane, sources) in by_lane {
            self.leave_front(lane, sources).await?;
        }
        Ok(())
    }

    /// A whole lane leaves the front of partitions, without waiting for it. Returns those where it did.
    async fn leave_front(
        &mut self,
        lane: LaneId,
        sources: Vec<TopicPartition>,
    ) -> Result<Vec<TopicPartition>, EngineError> {
        let mut left = Vec::new();
        let (mut assigned, mut asked) = (Vec::new(), BTreeMap::new());
        for source in sources {
            let Some(standing) = self.group.standing(&source) else {
                continue;
            };
            if !self.has_reader(lane) {
                break;
            }
            let (topic, partition) = (source.topic.as_str(), source.partition.0);
            info!(route = self.names[lane.0], topic, partition, "the route holds up others of the topic");
            self.set_apart(lane, &source, SinkSet::ALL);
            if let Some(apart) = self.apart.get_mut(&(lane, source.clone())) {
                apart.held = Some(Instant::now());
            }
            self.source.send(Command::Detach { source: source.clone(), outlet: lane.0 })?;
            // Nothing is read for it until it can say where it stands.
            let apart = SinkSet::ALL;
            assigned.push(Assigned { source: source.clone(), apart, front: None, catch_up: None });
            asked.insert(source.clone(), standing);
            left.push(source);
        }
        if !left.is_empty() {
            self.tell(lane, Control::Assigned(assigned)).await;
            self.tell(lane, Control::Resume(asked)).await;
        }
        Ok(left)
    }

    /// Looks at what catches up: who joins, who is not waited for any more, which consumers have no work.
    pub(super) async fn look(&mut self, now: Instant) -> Result<(), EngineError> {
        self.stop_waiting(now).await?;
        self.read_waiting().await?;
        self.join_near(now).await;
        self.ask_stands().await;
        let working: BTreeSet<LaneId> = self.apart.keys().map(|(lane, _)| *lane).collect();
        self.readers.retain(|lane, reader| {
            if working.contains(lane) {
                return true;
            }
            let since = *reader.idle.get_or_insert(now);
            let is_kept = now.duration_since(since) < IDLE_MAX;
            if !is_kept {
                close(reader);
            }
            is_kept
        });
        Ok(())
    }

    /// Lanes that do not say where they stand do not hold up those that do.
    async fn stop_waiting(&mut self, now: Instant) -> Result<(), EngineError> {
        let is_late = |pending: &Pending| {
            !pending.waiting.is_empty() && now.duration_since(pending.since) >= ANSWER_MAX
        };
        let late: Vec<TopicPartition> = self
            .pending
            .iter()
            .filter(|&(_, pending)| is_late(pending))
            .map(|(source, _)| source.clone())
            .collect();
        let mut by_lane: BTreeMap<LaneId, Vec<TopicPartition>> = BTreeMap::new();
        for source in late {
            let Some(pending) = self.pending.get(&source) else {
                continue;
            };
            if pending.is_join {
                self.pending.remove(&source);
                continue;
            }
            // Somebody has to be at the front.
            if pending.stands.is_empty() {
                continue;
            }
            // Before the group has an offset, none can be committed without a sink whose only place that is; so others of
            // the kind, whose beginning would have to arrive first, wait for it.
            let is_kept = |lane: &LaneId| self.stores[lane.0] == Store::Group;
            let is_first = !self.group.has_offset(&source) && pending.stands.keys().any(is_kept);
            for lane in pending.waiting.iter().filter(|lane| !(is_first && is_kept(lane))) {
                by_lane.entry(*lane).or_default().push(source.clone());
            }
        }
        for (lane, sources) in by_lane {
            for source in self.leave_front(lane, sources).await? {
                self.answered(lane, &source, None);
            }
        }
        self.assign_ready().await
    }

    /// Begins to join those that have caught up with the front.
    async fn join_near(&mut self, now: Instant) {
        let sources: BTreeSet<TopicPartition> = self.apart.keys().map(|(_, source)| source.clone()).collect();
        let mut by_lane: BTreeMap<LaneId, BTreeMap<TopicPartition, Committed>> = BTreeMap::new();
        for source in sources {
            let mut waiting = self.joining(&source, now);
            if waiting.is_empty() || self.pending.contains_key(&source) || self.is_releasing(&source) {
                continue;
            }
            let Some(standing) = self.group.standing(&source) else {
                continue;
            };
            waiting.extend(self.front_lanes_of(&source));
            for lane in &waiting {
                self.stands.remove(&(*lane, source.clone()));
                by_lane.entry(*lane).or_default().insert(source.clone(), standing.clone());
            }
            let pending = Pending { waiting, stands: BTreeMap::new(), since: now, is_join: true };
            self.pending.insert(source, pending);
        }
        for (lane, asked) in by_lane {
            self.tell(lane, Control::Resume(asked)).await;
        }
    }

    /// The lanes of a partition that are near its front, if all that have to be heard have said where they stand.
    fn joining(&self, source: &TopicPartition, now: Instant) -> BTreeSet<LaneId> {
        let mut lanes: BTreeMap<LaneId, (Stand, SinkSet)> = BTreeMap::new();
        for lane in self.live_lanes_of(&source.topic) {
            let apart = self.apart_of(lane, source);
            match self.stands.get(&(lane, source.clone())) {
                Some(stand) => {
                    lanes.insert(lane, (stand.clone(), apart));
                }
                None if apart == SinkSet::ALL => {}
                None => return BTreeSet::new(),
            }
        }
        let may_join = |lane: &LaneId| {
            let held = self.apart.get(&(*lane, source.clone())).and_then(|apart| apart.held);
            held.is_none_or(|held| now.duration_since(held) >= HELD_MIN)
        };
        catching::near(&lanes).into_iter().filter(may_join).collect()
    }

    /// Asks the lanes of partitions where something catches up where they stand, one question at a time.
    async fn ask_stands(&mut self) {
        let sources: BTreeSet<&TopicPartition> = self.apart.keys().map(|(_, source)| source).collect();
        let mut asked: BTreeMap<LaneId, Vec<TopicPartition>> = BTreeMap::new();
        for source in sources {
            for lane in self.live_lanes_of(&source.topic) {
                asked.entry(lane).or_default().push(source.clone());
            }
        }
        for (lane, sources) in asked {
            if self.looking.insert(lane) {
                self.tell(lane, Control::Look(sources)).await;
            }
        }
    }

    pub(super) fn on_stands(&mut self, lane: LaneId, stands: BTreeMap<TopicPartition, Stand>) {
        self.looking.remove(&lane);
        self.stands.retain(|(known, _), _| *known != lane);
        self.stands.extend(stands.into_iter().map(|(source, stand)| ((lane, source), stand)));
    }

    /// What a lane's own consumer reports concerns that lane alone.
    pub(super) async fn on_catch_up(
        &mut self,
        lane: LaneId,
        event: Option<Event>,
    ) -> Result<(), EngineError> {
        let (source, offset, message, verdict) = match event {
            Some(Event::Failed { source, offset, message, verdict }) => (source, offset, message, verdict),
            // It is a member of no group, and nobody shares what it reads.
            Some(Event::Assigned(_) | Event::Revoked { .. } | Event::Committed(_) | Event::Held(_)) => {
                return Ok(());
            }
            Some(Event::Closed) | None => {
                self.readers.remove(&lane);
                let mut asked = BTreeMap::new();
                for (_, source) in self.apart.keys().filter(|(apart, _)| *apart == lane) {
                    if let Some(standing) = self.group.standing(source) {
                        asked.insert(source.clone(), standing);
                    }
                }
                if !asked.is_empty() {
                    self.tell(lane, Control::Resume(asked)).await;
                }
                return Ok(());
            }
        };
        match (source, verdict) {
            (_, Verdict::Fatal) => Err(EngineError::Client(message)),
            (Some(source), verdict @ (Verdict::DataLost | Verdict::Unreadable | Verdict::Refused)) => {
                let at = offset.map(|offset| format!(" offset {offset}")).unwrap_or_default();
                let stop = Stop {
                    message: format!("{source}{at}: {message}"),
                    hint: super::failures::hint(verdict).map(str::to_owned),
                    place: Some(Place::new(&source, offset)),
                };
                let control = match verdict {
                    Verdict::DataLost => Control::Lost { source, stop },
                    _ => Control::Fail(stop),
                };
                self.tell(lane, control).await;
                Ok(())
            }
            (source, verdict) => self.on_failed(source, offset, message, verdict).await,
        }
    }

    /// A partition goes: so does what is read of it for lanes that catch up.
    pub(super) fn end_apart(&mut self, source: &TopicPartition) {
        for lane in self.lanes_of(&source.topic) {
            self.stands.remove(&(lane, source.clone()));
            self.unstored.remove(&(lane, source.clone()));
            if self.apart.remove(&(lane, source.clone())).is_some() {
                self.command(lane, Command::Unassign(vec![source.clone()]));
            }
        }
    }

    /// A lane has stopped: nothing is read for it.
    pub(super) fn end_catch_up(&mut self, lane: LaneId) {
        self.apart.retain(|(apart, _), _| *apart != lane);
        self.stands.retain(|(known, _), _| *known != lane);
        self.unstored.retain(|(known, _), _| *known != lane);
        if let Some(reader) = self.readers.remove(&lane) {
            close(&reader);
        }
    }
}

fn close(reader: &CatchUp) {
    if reader.source.send(Command::Close).is_err() {
        debug!("a consumer that catches up has ended by itself");
    }
}
