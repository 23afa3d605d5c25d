//! One process of the group: the commits are the code under test, what joins them is as in `engine::run`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use sidestream::engine::catching::Stand;
use sidestream::engine::group::Group;
use sidestream::engine::message::{Assigned, Committed, Control, LaneId, Reading, Report, Stop};
use sidestream::kafka::Commit;
use sidestream::model::metadata::GroupMetadata;
use sidestream::model::{Chunk, Offset, PositionKey, SinkSet, TopicPartition};
use sidestream::sink::Store;

use super::lane::{HELD_MAX, Lane, Said};
use super::world::{LETTERS, Outside};
use super::{Flaw, Scope};
use catching::Apart;

mod catching;

pub const LANES: usize = 2;

/// Where the sinks of each lane keep their positions.
const STORES: [Store; LANES] = [Store::Own, Store::Group];

/// The targets of each lane's sinks that have positions of their own.
pub const SEATS: [&[Option<usize>]; LANES] = [&[Some(0), Some(1), Some(LETTERS)], &[None, Some(3)]];

/// Offsets that one fetch brings at most.
const FETCH_MAX: i64 = 15;

/// More than one chunk has.
const CHUNK_BYTES_MAX: usize = 2048;

/// Gives back what a chunk takes when it is dropped.
struct Held {
    bytes: usize,
    sum: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Pending {
    waiting: BTreeSet<usize>,
    stands: BTreeMap<usize, Stand>,
    since: Instant,
    /// What caught up joins the front; until then all goes on as it does.
    is_join: bool,
}

/// What one reader fetches of a partition.
struct Fetch {
    number: u64,
    key: PositionKey,
    next: i64,
    /// The lanes that get it.
    outlets: BTreeSet<usize>,
}

impl Fetch {
    /// The next chunk, if there is one, or that the brokers no longer have what comes next.
    fn chunk(&mut self, source: &TopicPartition, outside: &mut Outside) -> Option<Result<Chunk, Gone>> {
        // What the brokers have under that name now is another topic.
        if outside.cluster.key(source) != Some(self.key) {
            return None;
        }
        let log = outside.cluster.log(&self.key);
        if self.next < log.first {
            return Some(Err(Gone));
        }
        let end = log.end();
        let count = if outside.is_calm { FETCH_MAX } else { outside.dice.roll(FETCH_MAX as u64) as i64 };
        let to = (self.next + count).min(end);
        if to <= self.next {
            return None;
        }
        let chunk = outside.cluster.fetch(source, &self.key, self.number, (self.next, to));
        self.next = to;
        Some(Ok(chunk))
    }
}

/// Retention has passed what was to be fetched.
struct Gone;

impl Gone {
    fn told(source: &TopicPartition) -> Control {
        let stop = Stop { message: "out of range".to_owned(), hint: None, place: None };
        Control::Lost { source: source.clone(), stop }
    }
}

/// A commit on its way, and the targets that need not be so far: their sinks catch up.
struct Sent {
    commit: Commit,
    apart: BTreeSet<usize>,
}

pub struct Instance {
    member: usize,
    scope: Scope,
    group: Group,
    pub lanes: Vec<Lane>,
    reports: VecDeque<(usize, Said)>,
    /// Given to us, and not known what the group has for them.
    asking: BTreeSet<TopicPartition>,
    pending: BTreeMap<TopicPartition, Pending>,
    fetching: BTreeMap<TopicPartition, Fetch>,
    /// What catches up, and what is read for it.
    apart: BTreeMap<(usize, TopicPartition), Apart>,
    behind: BTreeMap<(usize, TopicPartition), Fetch>,
    /// Lanes that have a consumer of their own.
    readers: BTreeSet<usize>,
    /// Where lanes last said they stand, in partitions where something catches up.
    stands: BTreeMap<(usize, TopicPartition), Stand>,
    /// Lanes that were asked where they stand, and have not said.
    looking: BTreeSet<usize>,
    /// What catches up and waits for the group to know where it begins.
    unstored: BTreeMap<(usize, TopicPartition), Stand>,
    stopped: BTreeSet<usize>,
    /// What caught up when a lane last told what is durable; no entry for one that has not told.
    told: BTreeMap<(usize, TopicPartition), SinkSet>,
    /// The furthest offsets that were read from or sent to the group.
    sent: BTreeMap<TopicPartition, Offset>,
    assignment: u64,
    commit_under_way: Option<Vec<Sent>>,
    owner: u64,
    pub is_asleep: bool,
}

impl Instance {
    /// `owner`: the name under which its first lane writes.
    pub fn new(member: usize, scope: Scope, flaw: Option<Flaw>, owner: u64) -> Self {
        let owners = [owner, 0];
        Self {
            member,
            scope,
            group: Group::default(),
            lanes: (0..LANES).map(|place| Lane::new(place, scope, flaw, owners[place])).collect(),
            reports: VecDeque::new(),
            asking: BTreeSet::new(),
            pending: BTreeMap::new(),
            fetching: BTreeMap::new(),
            apart: BTreeMap::new(),
            behind: BTreeMap::new(),
            readers: BTreeSet::new(),
            stands: BTreeMap::new(),
            looking: BTreeSet::new(),
            unstored: BTreeMap::new(),
            stopped: BTreeSet::new(),
            told: BTreeMap::new(),
            sent: BTreeMap::new(),
            assignment: 0,
            commit_under_way: None,
            owner,
            is_asleep: false,
        }
    }

    /// A lane has stopped, whether it was heard or not, or its positions belong to a later deployment.
    pub fn needs_a_person(&self, owner: u64) -> bool {
        self.lanes.iter().any(Lane::is_stopped) || self.owner < owner
    }

    /// What a lane has said since is on its way to the engine.
    pub fn collect(&mut self) {
        for (place, lane) in self.lanes.iter_mut().enumerate() {
            self.reports.extend(lane.reports.drain(..).map(|said| (place, said)));
        }
    }

    // Partitions come.

    pub fn give(&mut self, source: TopicPartition) {
        self.asking.insert(source);
    }

    /// Asks what the group has. Unreadable is not "none": the partitions stay held back.
    pub fn ask_committed(&mut self, outside: &mut Outside) {
        if self.asking.is_empty() {
            return;
        }
        let is_unreadable = outside.fails(3);
        if is_unreadable && outside.flaw != Some(Flaw::UnreadableIsNone) {
            return;
        }
        let mut asked = BTreeMap::new();
        for source in std::mem::take(&mut self.asking) {
            let known = outside.cluster.committed.get(&source).filter(|_| !is_unreadable);
            let committed = match known {
                Some((offset, text)) => Committed {
                    offset: Some(*offset),
                    metadata: GroupMetadata::parse(text).unwrap(),
                    is_foreign: false,
                },
                None => Committed::default(),
            };
            let lanes: Vec<LaneId> = (0..LANES).map(LaneId).collect();
            self.group.own(source.clone(), &lanes, committed.clone());
            self.told.retain(|(_, known), _| *known != source);
            self.sent.remove(&source);
            self.sent.extend(committed.offset.map(|offset| (source.clone(), offset)));
            for lane in &self.stopped {
                self.group.stopped(LaneId(*lane), STORES[*lane]);
            }
            asked.insert(source, committed);
        }
        self.ask(asked, outside);
    }

    fn ask(&mut self, asked: BTreeMap<TopicPartition, Committed>, outside: &mut Outside) {
        let mut by_lane: BTreeMap<usize, BTreeMap<TopicPartition, Committed>> = BTreeMap::new();
        for (source, committed) in asked {
            // What catches up by itself goes on.
            let waiting = self.front_lanes_of(&source);
            for lane in &waiting {
                by_lane.entry(*lane).or_default().insert(source.clone(), committed.clone());
            }
            if !waiting.is_empty() {
                let pending =
                    Pending { waiting, stands: BTreeMap::new(), since: outside.now, is_join: false };
                self.pending.insert(source, pending);
            }
        }
        for (lane, partitions) in by_lane {
            self.lanes[lane].tell(Control::Resume(partitions), outside);
        }
    }

    /// Takes one report of a lane.
    pub fn hear(&mut self, outside: &mut Outside) {
        if let Some((lane, said)) = self.reports.pop_front() {
            self.obey(lane, said, &[], outside);
        }
    }

    pub fn hear_all(&mut self, outside: &mut Outside) {
        self.collect();
        while let Some((lane, said)) = self.reports.pop_front() {
            self.obey(lane, said, &[], outside);
        }
    }

    fn obey(&mut self, lane: usize, said: Said, releasing: &[TopicPartition], outside: &mut Outside) {
        match said.report {
            Report::Ready(stands) => {
                let mut alone = BTreeMap::new();
                for (source, stand) in stands {
                    if !self.answered(lane, &source, Some(&stand)) {
                        alone.insert(source, stand);
                    }
                }
                self.read_apart(lane, alone, releasing, outside);
                self.assign_ready(outside);
            }
            Report::Rewind(partitions) => {
                let kept = partitions.into_iter().filter(|source| !releasing.contains(source));
                let asked =
                    kept.filter_map(|source| Some((source.clone(), self.group.standing(&source)?))).collect();
                self.ask_again(lane, asked, outside);
            }
            Report::Progress(durable) => {
                for (source, durable) in durable {
                    let apart = said.apart.get(&source).copied().unwrap_or_default();
                    let apart = if durable.is_apart { SinkSet::ALL } else { apart };
                    self.told.insert((lane, source.clone()), apart);
                    self.group.progress(LaneId(lane), &source, &durable);
                }
            }
            Report::CatchUp(stands) => self.read_apart(lane, stands, releasing, outside),
            Report::Stands(stands) => self.on_stands(lane, stands),
            Report::Stopped(_) => self.on_stopped(lane, outside),
            Report::Released(_) | Report::Drained => {}
        }
    }

    /// A lane has said where it stands, or never will. `false` if nothing waits for that.
    fn answered(&mut self, lane: usize, source: &TopicPartition, stand: Option<&Stand>) -> bool {
        let Some(pending) = self.pending.get_mut(source) else {
            return false;
        };
        let is_awaited = pending.waiting.remove(&lane);
        if is_awaited && let Some(stand) = stand {
            pending.stands.insert(lane, stand.clone());
        }
        is_awaited
    }

    fn on_stopped(&mut self, lane: usize, outside: &mut Outside) {
        self.stopped.insert(lane);
        self.end_catch_up(lane);
        self.group.stopped(LaneId(lane), STORES[lane]);
        let pending: Vec<TopicPartition> = self.pending.keys().cloned().collect();
        for source in pending {
            self.answered(lane, &source, None);
        }
        if self.live_lanes().is_empty() {
            self.fetching.clear();
        }
        self.assign_ready(outside);
    }

    fn live_lanes(&self) -> BTreeSet<usize> {
        (0..LANES).filter(|lane| !self.stopped.contains(lane)).collect()
    }

    /// Is it on its way to the group where a sink without a store begins?
    fn awaits_first_commit(&self, source: &TopicPartition) -> bool {
        self.live_lanes().iter().any(|lane| STORES[*lane] == Store::Group) && self.group.awaits_first(source)
    }

    fn reading(&mut self, from: Offset) -> Reading {
        self.assignment += 1;
        Reading { from, number: self.assignment, end: None }
    }

    /// Fetches the partitions whose lanes have all answered, once the group knows where sinks without a store begin: at
    /// the front from where the slowest of those stands that are near it, and beside it for each lane that is behind.
    fn assign_ready(&mut self, outside: &mut Outside) {
        let ready: Vec<TopicPartition> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.waiting.is_empty())
            .map(|(source, _)| source.clone())
            .collect();
        for source in ready {
            let may_wait = outside.flaw != Some(Flaw::FirstCommitIsNotAwaited);
            if may_wait && self.awaits_first_commit(&source) {
                self.send_commit();
                continue;
            }
            if let Some(pending) = self.pending.remove(&source).filter(|_| self.group.owns(&source)) {
                self.assign(source, pending, outside);
            }
        }
        self.send_commit();
        self.collect();
    }

    fn assign(&mut self, source: TopicPartition, pending: Pending, outside: &mut Outside) {
        let Pending { stands, is_join, .. } = pending;
        let sets = self.split(&stands, outside);
        if is_join && sets.iter().all(|(lane, apart)| self.apart_of(*lane, &source) == *apart) {
            // The front has gone on too far meanwhile; it is tried again.
            for (lane, stand) in stands {
                self.read_apart(lane, BTreeMap::from([(source.clone(), stand)]), &[], outside);
            }
            return;
        }
        let begins = sets.iter().filter_map(|(lane, apart)| stands[lane].lowest(SinkSet::ALL.minus(*apart)));
        let Some(from) = begins.min() else {
            return;
        };
        if is_join && outside.flaw == Some(Flaw::JoinsAreNotRewound) {
            return self.join_as_it_is(&source, sets, outside);
        }
        let front = self.reading(from);
        let outlets: BTreeSet<usize> =
            sets.iter().filter(|(_, apart)| **apart != SinkSet::ALL).map(|(lane, _)| *lane).collect();
        let mut behind = Vec::new();
        for (lane, apart) in sets {
            self.set_apart(lane, &source, apart);
            let catch_up = stands[&lane].lowest(apart).map(|begin| self.reading(begin));
            behind.extend(catch_up.map(|reading| (lane, reading)));
            let front = outlets.contains(&lane).then_some(front);
            let assigned = Assigned { source: source.clone(), apart, front, catch_up };
            self.lanes[lane].tell(Control::Assigned(vec![assigned]), outside);
        }
        let Some(key) = self.key(&source, stands.keys().copied()) else {
            // Lanes give it up just now, or one of them knows a topic of that name that is gone.
            self.fetching.remove(&source);
            return;
        };
        self.promise(&source, key, stands.keys().copied(), outside);
        for (lane, reading) in behind {
            self.fetch_apart(lane, &source, key, reading);
        }
        let fetch = Fetch { number: front.number, key, next: from.get(), outlets };
        self.fetching.insert(source, fetch);
    }

    /// Which topic these lanes take a partition for, if it is one.
    fn key(&self, source: &TopicPartition, lanes: impl Iterator<Item = usize>) -> Option<PositionKey> {
        let keys: BTreeSet<PositionKey> =
            lanes.filter_map(|lane| self.lanes[lane].keys.get(source).copied()).collect();
        keys.first().copied().filter(|_| keys.len() == 1)
    }

    /// Reading begins: where the sink without a store stands now, everything has to come.
    fn promise(
        &self,
        source: &TopicPartition,
        key: PositionKey,
        mut lanes: impl Iterator<Item = usize>,
        outside: &mut Outside,
    ) {
        if outside.cluster.owner.get(source) == Some(&self.member)
            && let Some(next) = lanes.find_map(|lane| self.lanes[lane].group_next(&key))
        {
            outside.delivered.promise(key, next);
        }
    }

    // Records.

    pub fn fetch_any(&mut self, outside: &mut Outside) {
        let sources: Vec<TopicPartition> = self.fetching.keys().cloned().collect();
        if !sources.is_empty() {
            let source = &sources[outside.dice.pick(sources.len())];
            self.fetch(source, outside);
        }
    }

    pub fn fetch_all(&mut self, outside: &mut Outside) {
        let sources: Vec<TopicPartition> = self.fetching.keys().cloned().collect();
        sources.iter().for_each(|source| self.fetch(source, outside));
        let behind: Vec<(usize, TopicPartition)> = self.behind.keys().cloned().collect();
        behind.iter().for_each(|place| self.fetch_behind(place, outside));
    }

    fn fetch(&mut self, source: &TopicPartition, outside: &mut Outside) {
        let Some(fetch) = self.fetching.get_mut(source) else {
            return;
        };
        let is_full = fetch.outlets.iter().any(|lane| self.lanes[*lane].held() >= HELD_MAX);
        if is_full || fetch.outlets.is_empty() {
            return;
        }
        match fetch.chunk(source, outside) {
            None => {}
            Some(Ok(chunk)) => {
                for lane in &fetch.outlets {
                    let lane = &mut self.lanes[*lane];
                    let held = Held { bytes: chunk.size(), sum: lane.held.clone() };
                    held.sum.fetch_add(held.bytes, Ordering::Relaxed);
                    lane.inbox.push_back(chunk.share(Some(Box::new(held))));
                }
            }
            Some(Err(Gone)) => {
                self.fetching.remove(source);
                for lane in self.front_lanes_of(source) {
                    self.lanes[lane].tell(Gone::told(source), outside);
                }
                self.collect();
            }
        }
    }

    // Commits.

    pub fn send_commit(&mut self) {
        if self.commit_under_way.is_some() {
            return;
        }
        let (commits, errors) = self.group.due();
        assert!(errors.is_empty(), "{errors:?}");
        if !commits.is_empty() {
            let sent = |commit: Commit| Sent { apart: self.targets_apart(&commit), commit };
            let sent: Vec<Sent> = commits.into_iter().map(sent).collect();
            for Sent { commit, .. } in &sent {
                let furthest = self.sent.entry(commit.source.clone()).or_insert(commit.next);
                *furthest = commit.next.max(*furthest);
            }
            self.commit_under_way = Some(sent);
        }
    }

    /// The targets of sinks that catch up, or whose lane has not said where it stands; all of them if so much was said
    /// before: what joins the others may be behind that, and commits do not go back.
    fn targets_apart(&self, commit: &Commit) -> BTreeSet<usize> {
        let mut targets = BTreeSet::new();
        if self.scope == Scope::Front {
            return targets;
        }
        let is_said = self.sent.get(&commit.source).is_some_and(|sent| commit.next <= *sent);
        for (lane, seats) in SEATS.iter().enumerate() {
            let told = self.told.get(&(lane, commit.source.clone())).filter(|_| !is_said);
            let apart = told.copied().unwrap_or(SinkSet::ALL);
            let seats = seats.iter().enumerate().filter(|(sink, _)| apart.contains(*sink));
            targets.extend(seats.filter_map(|(_, target)| *target));
        }
        targets
    }

    /// The commit under way arrives or not, and its reply too.
    pub fn finish_commit(&mut self, outside: &mut Outside) {
        let Some(commits) = self.commit_under_way.take() else {
            return;
        };
        let never_arrives = outside.fails(10);
        let is_reply_lost = outside.fails(10);
        let mut is_taken = !never_arrives;
        for Sent { commit, apart } in commits.iter().filter(|_| !never_arrives) {
            is_taken &= outside.commit(self.member, commit, apart);
        }
        if is_taken && !is_reply_lost {
            self.group.arrived();
            self.assign_ready(outside);
            self.read_waiting(outside);
        } else {
            self.group.retry();
        }
    }

    // Partitions go.

    pub fn revoke(&mut self, partitions: &[TopicPartition], is_lost: bool, outside: &mut Outside) {
        for source in partitions {
            self.pending.remove(source);
            self.asking.remove(source);
            self.end_apart(source);
            if is_lost {
                self.group.disown(source);
            }
        }
        for lane in &mut self.lanes {
            lane.obey_all(outside);
            lane.give_up(partitions, is_lost, outside);
        }
        self.collect();
        while let Some((lane, said)) = self.reports.pop_front() {
            self.obey(lane, said, partitions, outside);
        }
        if !is_lost {
            self.finish_commit(outside);
            self.send_commit();
            self.finish_commit(outside);
        }
        for source in partitions {
            self.pending.remove(source);
            self.end_apart(source);
            self.group.disown(source);
            self.fetching.remove(source);
        }
        // Brokers refuse what was sent before a rebalance.
        if let Some(commits) = &mut self.commit_under_way {
            commits.retain(|sent| !partitions.contains(&sent.commit.source));
        }
    }

    /// The group tells a member that was away what is no longer its own.
    pub fn learn(&mut self, outside: &mut Outside) {
        let mut believed: BTreeSet<TopicPartition> = self.group.owned().cloned().collect();
        believed.extend(self.asking.iter().chain(self.pending.keys()).cloned());
        let is_gone = |source: &TopicPartition| outside.cluster.owner.get(source) != Some(&self.member);
        let lost: Vec<TopicPartition> = believed.into_iter().filter(is_gone).collect();
        if !lost.is_empty() {
            self.revoke(&lost, true, outside);
        }
    }

    /// What holds after every step.
    pub fn check(&self) {
        for lane in &self.lanes {
            let most = lane.held().max(lane.behind_held());
            assert!(most <= HELD_MAX + CHUNK_BYTES_MAX, "a lane holds {most} bytes");
        }
        let unowned = self.fetching.keys().find(|source| !self.group.owns(source));
        assert_eq!(unowned, None, "fetched without being owned");
        self.check_apart();
    }
}
