//! Partitions come and go: what the group gives and takes, and where fetching starts.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::{info, warn};

use super::catching::OUTLET;
use super::{Answer, Engine, EngineError, Pending, RELEASE_MAX, Releasing};
use crate::engine::catching::{Reader, Stand};
use crate::engine::group::reached;
use crate::engine::message::{Assigned, Committed, Control, LaneId, Reading};
use crate::engine::{chain, retry};
use crate::failpoint;
use crate::kafka::{Assignment, Command};
use crate::model::{Classify, Offset, SinkSet, TopicPartition};
use crate::sink::Store;

impl Engine {
    pub(super) async fn on_assigned(&mut self, partitions: Vec<TopicPartition>) -> Result<(), EngineError> {
        self.has_joined = true;
        self.board.engine(self.place, |told| (told.has_joined, told.assigned) = (true, told.assigned + 1));
        if partitions.is_empty() {
            return Ok(());
        }
        info!(partitions = ?partitions.iter().map(ToString::to_string).collect::<Vec<_>>(), "assigned");
        failpoint::hit("engine.assigned");
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
    pub(super) fn ask_committed(&mut self, partitions: Vec<TopicPartition>, attempt: u32) {
        let cluster = self.cluster.clone();
        self.questions.spawn(async move {
            if attempt > 0 {
                tokio::time::sleep(retry::pause(attempt)).await;
            }
            let committed = cluster.committed(&partitions).await;
            Answer::Given { partitions, attempt, committed }
        });
    }

    pub(super) async fn on_answer(&mut self, answer: Answer) -> Result<(), EngineError> {
        match answer {
            Answer::Given { partitions, committed: Ok(committed), .. } => {
                self.unread = None;
                self.take_up(partitions, &committed).await
            }
            Answer::Given { partitions, attempt, committed: Err(error) } => {
                let message = format!("committed offsets could not be read: {}", chain(&error));
                self.say(None, &message);
                self.unread = Some((message, error.hint().map(|hint| hint.into_owned())));
                let left: Vec<TopicPartition> =
                    partitions.into_iter().filter(|source| self.asking.contains(source)).collect();
                if !left.is_empty() {
                    self.ask_committed(left, attempt + 1);
                }
                Ok(())
            }
            Answer::Names(Ok(names)) => {
                self.is_asking_names = false;
                self.follow(&names, true).await
            }
            Answer::Names(Err(error)) => {
                self.is_asking_names = false;
                self.say(None, &format!("topics could not be listed: {}", chain(&error)));
                Ok(())
            }
            Answer::Others(committed) => {
                for (source, (offset, metadata)) in committed {
                    let end = self.until.as_ref().and_then(|until| until.get(&source));
                    if end.is_some_and(|end| reached(offset, &metadata) >= *end) {
                        for lane in self.lanes_of(&source.topic) {
                            self.done.insert((lane, source.clone()));
                        }
                    }
                }
                Ok(())
            }
        }
    }

    pub(super) async fn take_up(
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
            let (committed, error) = Committed::read(committed.get(&source));
            if let Some(error) = error {
                let (topic, partition) = (source.topic.as_str(), source.partition.0);
                warn!(topic, partition, %error, "what was committed by others is overwritten");
            }
            let lanes = self.lanes_of(&source.topic);
            self.group.own(source.clone(), &lanes, committed.clone());
            if lanes.iter().any(|lane| self.stores[lane.0] == Store::Transaction) {
                self.group.leave_to_sinks(&source);
            }
            for lane in lanes.iter().filter(|lane| self.stopped.contains(lane)) {
                self.group.stopped(*lane, self.stores[lane.0]);
            }
            for (index, route) in self.routes.iter().enumerate() {
                if self.followed.contains(&(index, source.topic.clone())) {
                    self.group.started(&source, &route.name, &route.start_hash);
                }
            }
            asked.insert(source, committed);
        }
        self.ask(asked).await
    }

    /// Asks the lanes of these partitions where they go on.
    pub(super) async fn ask(
        &mut self,
        partitions: BTreeMap<TopicPartition, Committed>,
    ) -> Result<(), EngineError> {
        let mut by_lane: BTreeMap<LaneId, BTreeMap<TopicPartition, Committed>> = BTreeMap::new();
        for (source, committed) in partitions {
            // What catches up by itself goes on.
            let waiting = self.front_lanes_of(&source);
            for lane in &waiting {
                by_lane.entry(*lane).or_default().insert(source.clone(), committed.clone());
            }
            if !waiting.is_empty() {
                let pending =
                    Pending { waiting, stands: BTreeMap::new(), since: Instant::now(), is_join: false };
                self.pending.insert(source, pending);
            }
        }
        for (lane, partitions) in by_lane {
            self.tell(lane, Control::Resume(partitions)).await;
        }
        Ok(())
    }

    /// A lane has said where it stands, or never will. `false` if nothing waits for that.
    pub(super) fn answered(&mut self, lane: LaneId, source: &TopicPartition, stand: Option<&Stand>) -> bool {
        let Some(pending) = self.pending.get_mut(source) else {
            return false;
        };
        let is_awaited = pending.waiting.remove(&lane);
        if is_awaited && let Some(stand) = stand {
            pending.stands.insert(lane, stand.clone());
        }
        is_awaited
    }

    /// Fetches the partitions whose lanes have all answered: at the front from where the slowest of those stands that
    /// are near it, and beside it for each lane that is behind.
    pub(super) async fn assign_ready(&mut self) -> Result<(), EngineError> {
        let ready: Vec<TopicPartition> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.waiting.is_empty())
            .map(|(source, _)| source.clone())
            .collect();
        // What a sink without a store begins with has arrived in the group before the first record of it is fetched:
        // `latest` on an idle partition must mean the same after a crash, and what its siblings have by then is not
        // where it stands. One that fails is sent again at the next tick; the reply of one that arrives leads back here.
        let (waiting, ready): (Vec<_>, Vec<_>) =
            ready.into_iter().partition(|source| self.awaits_first_commit(source));
        if !waiting.is_empty() {
            self.commit()?;
        }
        let mut assignments = Vec::new();
        let mut behind: BTreeMap<LaneId, Vec<Assignment>> = BTreeMap::new();
        let mut again: BTreeMap<LaneId, BTreeMap<TopicPartition, Stand>> = BTreeMap::new();
        let mut by_lane: BTreeMap<LaneId, Vec<Assigned>> = BTreeMap::new();
        for source in ready {
            let Some(pending) = self.pending.remove(&source) else {
                continue;
            };
            if !self.group.owns(&source) {
                continue;
            }
            let sets = self.split(&source, &pending.stands);
            let is_same = |(lane, apart): (&LaneId, &SinkSet)| self.apart_of(*lane, &source) == *apart;
            if pending.is_join && sets.iter().all(is_same) {
                // The front has gone on too far meanwhile; it is tried again.
                for (lane, stand) in pending.stands {
                    again.entry(lane).or_default().insert(source.clone(), stand);
                }
                continue;
            }
            let begins = pending.stands.iter().filter_map(|(lane, stand)| {
                stand.lowest(SinkSet::ALL.minus(sets.get(lane).copied().unwrap_or_default()))
            });
            let Some(from) = begins.min() else {
                continue;
            };
            let front = self.reading(&source, from);
            let is_front = |apart: &SinkSet| *apart != SinkSet::ALL;
            let outlets = sets.iter().filter(|&(_, apart)| is_front(apart)).map(|(lane, _)| lane.0).collect();
            for (lane, apart) in sets {
                self.set_apart(lane, &source, apart);
                let begin = pending.stands.get(&lane).and_then(|stand| stand.lowest(apart));
                let catch_up = begin.map(|begin| self.reading(&source, begin));
                let front = is_front(&apart).then_some(front);
                for (reader, reading) in [(Reader::Front, front), (Reader::CatchUp, catch_up)] {
                    if let Some(reading) = reading {
                        self.expect(lane, &source, reader, reading);
                    }
                }
                if let Some(reading) = catch_up {
                    behind.entry(lane).or_default().push(assignment(&source, reading, vec![OUTLET]));
                }
                let assigned = Assigned { source: source.clone(), apart, front, catch_up };
                by_lane.entry(lane).or_default().push(assigned);
            }
            if is_wanted(front) {
                assignments.push(assignment(&source, front, outlets));
            }
        }
        // Lanes know of an assignment before its first chunk can come.
        for (lane, assigned) in by_lane {
            self.tell(lane, Control::Assigned(assigned)).await;
        }
        if !assignments.is_empty() || !behind.is_empty() {
            self.commit_now()?;
        }
        if !assignments.is_empty() {
            self.source.send(Command::Assign(assignments))?;
            failpoint::hit("engine.assign.sent");
        }
        for (lane, assignments) in behind {
            self.fetch_apart(lane, assignments);
        }
        for (lane, stands) in again {
            self.read_apart(lane, stands).await?;
        }
        Ok(())
    }

    /// Is it on its way to the group where a sink without a store begins? Of all lanes of the partition, also those that
    /// catch up.
    pub(super) fn awaits_first_commit(&self, source: &TopicPartition) -> bool {
        let mut lanes = self.live_lanes_of(&source.topic).into_iter();
        lanes.any(|lane| self.stores[lane.0] == Store::Group) && self.group.awaits_first(source)
    }

    /// A new assignment's part that lanes know.
    pub(super) fn reading(&mut self, source: &TopicPartition, from: Offset) -> Reading {
        self.assignment += 1;
        // A partition that appeared after the start of a bounded run is not part of it.
        let end = self.until.as_ref().map(|until| until.get(source).copied().unwrap_or(from));
        Reading { from, number: self.assignment, end }
    }

    /// Takes in what a lane will go through, the first time it is known.
    fn expect(&mut self, lane: LaneId, source: &TopicPartition, reader: Reader, reading: Reading) {
        let left =
            reading.end.map_or(0, |end| u64::try_from(end.get() - reading.from.get()).unwrap_or_default());
        self.expected.entry((lane, source.clone(), reader)).or_insert(left);
    }

    pub(super) async fn on_revoked(
        &mut self,
        partitions: Vec<TopicPartition>,
        is_lost: bool,
    ) -> Result<(), EngineError> {
        info!(partitions = ?partitions.iter().map(ToString::to_string).collect::<Vec<_>>(), is_lost, "revoked");
        self.board.engine(self.place, |told| {
            told.revoked += 1;
            told.lost += u64::from(is_lost);
            // Thrown out; it joins again.
            told.has_joined &= !is_lost;
        });
        let mut by_lane: BTreeMap<LaneId, Vec<TopicPartition>> = BTreeMap::new();
        for source in &partitions {
            for lane in self.lanes_of(&source.topic) {
                self.lanes[lane.0].board.forget(source);
            }
            self.pending.remove(source);
            self.asking.remove(source);
            self.end_apart(source);
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
        failpoint::hit("engine.revoked");
        self.release(Instant::now())
    }

    /// Answers the group for revoked partitions that all lanes have released, or that took too long.
    pub(super) fn release(&mut self, now: Instant) -> Result<(), EngineError> {
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
            failpoint::hit("engine.release.sending");
            self.source.send(Command::Release(releasing.partitions))?;
            failpoint::hit("engine.release.sent");
        }
        Ok(())
    }
}

/// Nothing is wanted of a partition that begins at or behind its end.
fn is_wanted(reading: Reading) -> bool {
    reading.end.is_none_or(|end| reading.from < end)
}

pub(super) fn assignment(source: &TopicPartition, reading: Reading, outlets: Vec<usize>) -> Assignment {
    Assignment { source: source.clone(), from: reading.from, number: reading.number, outlets }
}
