//! What an instance reads beside the front, as in `engine::run::catching`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sidestream::engine::catching::{self, Stand};
use sidestream::engine::message::{Assigned, Committed, Control, LaneId, Reading};
use sidestream::model::{PositionKey, SinkSet, TopicPartition};
use sidestream::sink::Store;

use super::super::Scope;
use super::super::lane::HELD_MAX;
use super::super::world::Outside;
use super::{Fetch, Gone, Held, Instance, LANES, Pending, STORES};

/// A lane that has not said by then where it stands is not waited for. Shorter than in the engine, as all times here.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// A lane that held others up reads by itself so long at least.
const HELD_MIN: Duration = Duration::from_secs(1);

/// Sinks of a lane that catch up in a partition.
#[derive(Clone, Copy)]
pub struct Apart {
    sinks: SinkSet,
    /// When the lane had held up others.
    held: Option<Instant>,
}

impl Instance {
    /// The sinks of a lane that catch up in a partition.
    pub(super) fn apart_of(&self, lane: usize, source: &TopicPartition) -> SinkSet {
        self.apart.get(&(lane, source.clone())).map_or(SinkSet::EMPTY, |apart| apart.sinks)
    }

    /// The lanes that read a partition at the front.
    pub(super) fn front_lanes_of(&self, source: &TopicPartition) -> BTreeSet<usize> {
        let mut lanes = self.live_lanes();
        lanes.retain(|lane| self.apart_of(*lane, source) != SinkSet::ALL);
        lanes
    }

    /// Which sinks of these lanes catch up from now on.
    pub(super) fn split(
        &mut self,
        stands: &BTreeMap<usize, Stand>,
        outside: &mut Outside,
    ) -> BTreeMap<usize, SinkSet> {
        if outside.scope == Scope::Front {
            return stands.keys().map(|lane| (*lane, SinkSet::EMPTY)).collect();
        }
        let mut sets = catching::split(stands);
        for (lane, apart) in &mut sets {
            if !apart.is_empty() && !self.has_reader(*lane, outside) {
                *apart = SinkSet::EMPTY;
            }
        }
        sets
    }

    /// Has the lane a consumer of its own, or can it get one?
    fn has_reader(&mut self, lane: usize, outside: &mut Outside) -> bool {
        if !self.readers.contains(&lane) && !outside.fails(6) {
            self.readers.insert(lane);
        }
        self.readers.contains(&lane)
    }

    /// Takes in who catches up in a partition.
    pub(super) fn set_apart(&mut self, lane: usize, source: &TopicPartition, sinks: SinkSet) {
        let place = (lane, source.clone());
        if sinks.is_empty() {
            self.apart.remove(&place);
            self.behind.remove(&place);
            return;
        }
        if sinks == SinkSet::ALL {
            self.group.catches_up(LaneId(lane), source, STORES[lane]);
            self.told.insert(place.clone(), SinkSet::ALL);
        }
        self.apart.insert(place, Apart { sinks, held: None });
    }

    /// Reads partitions for the sinks of a lane that catch up, from where they stand.
    pub(super) fn read_apart(
        &mut self,
        lane: usize,
        stands: BTreeMap<TopicPartition, Stand>,
        releasing: &[TopicPartition],
        outside: &mut Outside,
    ) {
        let (mut assigned, mut wanted) = (Vec::new(), Vec::new());
        for (source, stand) in stands {
            let apart = self.apart_of(lane, &source);
            // It has joined the others meanwhile, or is given up.
            let Some(from) = stand.lowest(apart) else {
                continue;
            };
            if !self.group.owns(&source) || releasing.contains(&source) {
                continue;
            }
            // As at the front: the group knows first where a sink without a store begins.
            if !self.has_reader(lane, outside) || self.awaits_first_commit(&source) {
                self.unstored.insert((lane, source), stand);
                continue;
            }
            let reading = self.reading(from);
            wanted.push((source.clone(), reading));
            assigned.push(Assigned { source, apart, front: None, catch_up: Some(reading) });
        }
        if !self.unstored.is_empty() {
            self.send_commit();
        }
        if assigned.is_empty() {
            return;
        }
        self.lanes[lane].tell(Control::Assigned(assigned), outside);
        for (source, reading) in wanted {
            if let Some(key) = self.key(&source, [lane].into_iter()) {
                self.promise(&source, key, [lane].into_iter(), outside);
                self.fetch_apart(lane, &source, key, reading);
            }
        }
    }

    /// A commit has arrived: what waited for the group to know where it begins is read.
    pub(super) fn read_waiting(&mut self, outside: &mut Outside) {
        for ((lane, source), stand) in std::mem::take(&mut self.unstored) {
            self.read_apart(lane, BTreeMap::from([(source, stand)]), &[], outside);
        }
    }

    pub(super) fn fetch_apart(
        &mut self,
        lane: usize,
        source: &TopicPartition,
        key: PositionKey,
        reading: Reading,
    ) {
        let outlets = BTreeSet::from([lane]);
        let fetch = Fetch { number: reading.number, key, next: reading.from.get(), outlets };
        self.behind.insert((lane, source.clone()), fetch);
    }

    pub fn fetch_behind_any(&mut self, outside: &mut Outside) {
        let places: Vec<(usize, TopicPartition)> = self.behind.keys().cloned().collect();
        if !places.is_empty() {
            let place = &places[outside.dice.pick(places.len())];
            self.fetch_behind(place, outside);
        }
    }

    pub(super) fn fetch_behind(&mut self, place: &(usize, TopicPartition), outside: &mut Outside) {
        let (lane, source) = (place.0, &place.1);
        let is_full = self.lanes[lane].behind_held() >= HELD_MAX;
        let Some(fetch) = self.behind.get_mut(place).filter(|_| !is_full) else {
            return;
        };
        match fetch.chunk(source, outside) {
            None => {}
            Some(Ok(chunk)) => {
                let lane = &mut self.lanes[lane];
                let held = Held { bytes: chunk.size(), sum: lane.behind_held.clone() };
                held.sum.fetch_add(held.bytes, Ordering::Relaxed);
                lane.behind_inbox.push_back(chunk.share(Some(Box::new(held))));
            }
            Some(Err(Gone)) => {
                self.behind.remove(place);
                self.lanes[lane].tell(Gone::told(source), outside);
                self.collect();
            }
        }
    }

    /// Asks for partitions again that a lane has to read again: all lanes of them, but a lane that catches up concerns
    /// nobody else.
    pub(super) fn ask_again(
        &mut self,
        lane: usize,
        asked: BTreeMap<TopicPartition, Committed>,
        outside: &mut Outside,
    ) {
        let (alone, shared): (BTreeMap<_, _>, BTreeMap<_, _>) =
            asked.into_iter().partition(|(source, _)| self.apart_of(lane, source) == SinkSet::ALL);
        if !alone.is_empty() {
            self.lanes[lane].tell(Control::Resume(alone), outside);
        }
        self.ask(shared, outside);
    }

    /// A lane has held up a partition that another one waits for: from now on it reads it by itself.
    pub fn on_held(&mut self, lane: usize, outside: &mut Outside) {
        let is_held = |source: &&TopicPartition| {
            let front = self.front_lanes_of(source);
            // Somebody has to be at the front.
            !self.pending.contains_key(*source) && front.contains(&lane) && front.len() > 1
        };
        let sources: Vec<TopicPartition> = self.fetching.keys().filter(is_held).cloned().collect();
        if !sources.is_empty() {
            let source = sources[outside.dice.pick(sources.len())].clone();
            self.leave_front(lane, source, outside);
        }
    }

    /// A whole lane leaves the front of a partition, without waiting for it. `true` if it did.
    fn leave_front(&mut self, lane: usize, source: TopicPartition, outside: &mut Outside) -> bool {
        let Some(standing) = self.group.standing(&source) else {
            return false;
        };
        if !self.has_reader(lane, outside) {
            return false;
        }
        self.set_apart(lane, &source, SinkSet::ALL);
        if let Some(apart) = self.apart.get_mut(&(lane, source.clone())) {
            apart.held = Some(outside.now);
        }
        if let Some(fetch) = self.fetching.get_mut(&source) {
            fetch.outlets.remove(&lane);
        }
        // Nothing is read for it until it can say where it stands.
        let apart = SinkSet::ALL;
        let assigned = Assigned { source: source.clone(), apart, front: None, catch_up: None };
        self.lanes[lane].tell(Control::Assigned(vec![assigned]), outside);
        self.lanes[lane].tell(Control::Resume(BTreeMap::from([(source, standing)])), outside);
        true
    }

    /// Looks at what catches up: who joins, and who is not waited for any more.
    pub fn look(&mut self, outside: &mut Outside) {
        self.stop_waiting(outside);
        self.read_waiting(outside);
        self.join_near(outside);
        self.ask_stands(outside);
        self.collect();
    }

    /// Lanes that do not say where they stand do not hold up those that do.
    fn stop_waiting(&mut self, outside: &mut Outside) {
        let is_late = |pending: &Pending| {
            !pending.waiting.is_empty() && outside.now.duration_since(pending.since) >= ANSWER_MAX
        };
        let late: Vec<TopicPartition> = self
            .pending
            .iter()
            .filter(|&(_, pending)| is_late(pending))
            .map(|(source, _)| source.clone())
            .collect();
        let mut leaving: Vec<(usize, TopicPartition)> = Vec::new();
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
            // Before the group has an offset, none can be committed without a sink whose only place that is.
            let is_kept = |lane: &usize| STORES[*lane] == Store::Group;
            let is_first = !self.group.has_offset(&source) && pending.stands.keys().any(is_kept);
            let waiting = pending.waiting.iter().filter(|lane| !(is_first && is_kept(lane)));
            leaving.extend(waiting.map(|lane| (*lane, source.clone())));
        }
        for (lane, source) in leaving {
            if self.leave_front(lane, source.clone(), outside) {
                self.answered(lane, &source, None);
            }
        }
        self.assign_ready(outside);
    }

    /// Begins to join those that have caught up with the front.
    fn join_near(&mut self, outside: &mut Outside) {
        let sources: BTreeSet<TopicPartition> = self.apart.keys().map(|(_, source)| source.clone()).collect();
        for source in sources {
            let mut waiting = self.joining(&source, outside.now);
            if waiting.is_empty() || self.pending.contains_key(&source) {
                continue;
            }
            let Some(standing) = self.group.standing(&source) else {
                continue;
            };
            waiting.extend(self.front_lanes_of(&source));
            for lane in &waiting {
                self.stands.remove(&(*lane, source.clone()));
                let asked = BTreeMap::from([(source.clone(), standing.clone())]);
                self.lanes[*lane].tell(Control::Resume(asked), outside);
            }
            let pending = Pending { waiting, stands: BTreeMap::new(), since: outside.now, is_join: true };
            self.pending.insert(source, pending);
        }
    }

    /// The lanes of a partition that are near its front, if all that have to be heard have said where they stand.
    fn joining(&self, source: &TopicPartition, now: Instant) -> BTreeSet<usize> {
        let mut lanes: BTreeMap<usize, (Stand, SinkSet)> = BTreeMap::new();
        for lane in self.live_lanes() {
            let apart = self.apart_of(lane, source);
            match self.stands.get(&(lane, source.clone())) {
                Some(stand) => {
                    lanes.insert(lane, (stand.clone(), apart));
                }
                None if apart == SinkSet::ALL => {}
                None => return BTreeSet::new(),
            }
        }
        let may_join = |lane: &usize| {
            let held = self.apart.get(&(*lane, source.clone())).and_then(|apart| apart.held);
            held.is_none_or(|held| now.duration_since(held) >= HELD_MIN)
        };
        catching::near(&lanes).into_iter().filter(may_join).collect()
    }

    /// Asks all lanes where they stand in partitions where something catches up, one question at a time.
    fn ask_stands(&mut self, outside: &mut Outside) {
        let sources: BTreeSet<TopicPartition> = self.apart.keys().map(|(_, source)| source.clone()).collect();
        if sources.is_empty() {
            return;
        }
        for lane in self.live_lanes() {
            if self.looking.insert(lane) {
                let asked = sources.iter().cloned().collect();
                self.lanes[lane].tell(Control::Look(asked), outside);
            }
        }
    }

    pub(super) fn on_stands(&mut self, lane: usize, stands: BTreeMap<TopicPartition, Stand>) {
        self.looking.remove(&lane);
        self.stands.retain(|(known, _), _| *known != lane);
        self.stands.extend(stands.into_iter().map(|(source, stand)| ((lane, source), stand)));
    }

    /// A lane's own consumer has ended: what it read is asked for again.
    pub fn lose_reader(&mut self, lane: usize, outside: &mut Outside) {
        if !self.readers.remove(&lane) {
            return;
        }
        self.behind.retain(|(known, _), _| *known != lane);
        let sources = self.apart.keys().filter(|(known, _)| *known == lane).map(|(_, source)| source);
        let asked: BTreeMap<TopicPartition, Committed> =
            sources.filter_map(|source| Some((source.clone(), self.group.standing(source)?))).collect();
        if !asked.is_empty() {
            self.lanes[lane].tell(Control::Resume(asked), outside);
        }
    }

    /// A partition goes: so does what is read of it for lanes that catch up.
    pub(super) fn end_apart(&mut self, source: &TopicPartition) {
        for place in (0..LANES).map(|lane| (lane, source.clone())) {
            self.stands.remove(&place);
            self.unstored.remove(&place);
            self.apart.remove(&place);
            self.behind.remove(&place);
        }
    }

    /// A lane has stopped: nothing is read for it.
    pub(super) fn end_catch_up(&mut self, lane: usize) {
        self.apart.retain(|(known, _), _| *known != lane);
        self.behind.retain(|(known, _), _| *known != lane);
        self.stands.retain(|(known, _), _| *known != lane);
        self.unstored.retain(|(known, _), _| *known != lane);
        self.readers.remove(&lane);
    }

    /// A join as nobody would do it: who has caught up is fed with what the front reads next.
    pub(super) fn join_as_it_is(
        &mut self,
        source: &TopicPartition,
        sets: BTreeMap<usize, SinkSet>,
        outside: &mut Outside,
    ) {
        for (lane, apart) in sets {
            self.set_apart(lane, source, apart);
            if let Some(fetch) = self.fetching.get_mut(source).filter(|_| apart != SinkSet::ALL) {
                fetch.outlets.insert(lane);
            }
            let assigned = Assigned { source: source.clone(), apart, front: None, catch_up: None };
            self.lanes[lane].tell(Control::Assigned(vec![assigned]), outside);
        }
    }

    /// What holds after every step: nothing is read for what does not catch up, or is not ours.
    pub(super) fn check_apart(&self) {
        let is_right = |place: &&(usize, TopicPartition)| {
            self.apart.contains_key(*place) && self.group.owns(&place.1) && self.readers.contains(&place.0)
        };
        let wrong = self.behind.keys().find(|place| !is_right(place));
        assert_eq!(wrong, None, "read beside the front without a reason");
    }
}
