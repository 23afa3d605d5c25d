//! One process of the group: the commits are the code under test, what joins them is as in `engine::run`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sidestream::engine::group::Group;
use sidestream::engine::message::{Committed, LaneId, Report};
use sidestream::kafka::Commit;
use sidestream::model::metadata::GroupMetadata;
use sidestream::model::{Offset, PositionKey, SinkSet, TopicPartition};

use super::Flaw;
use super::lane::{HELD_MAX, Lane};
use super::world::Outside;

pub const LANES: usize = 2;

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
    from: Option<Offset>,
}

struct Fetch {
    number: u64,
    key: PositionKey,
    next: i64,
}

pub struct Instance {
    member: usize,
    group: Group,
    pub lanes: Vec<Lane>,
    reports: VecDeque<(usize, Report)>,
    /// Given to us, and not known what the group has for them.
    asking: BTreeSet<TopicPartition>,
    pending: BTreeMap<TopicPartition, Pending>,
    fetching: BTreeMap<TopicPartition, Fetch>,
    assignment: u64,
    commit_under_way: Option<Vec<Commit>>,
    pub is_asleep: bool,
}

impl Instance {
    pub fn new(member: usize, flaw: Option<Flaw>) -> Self {
        Self {
            member,
            group: Group::default(),
            lanes: (0..LANES).map(|place| Lane::new(place, flaw)).collect(),
            reports: VecDeque::new(),
            asking: BTreeSet::new(),
            pending: BTreeMap::new(),
            fetching: BTreeMap::new(),
            assignment: 0,
            commit_under_way: None,
            is_asleep: false,
        }
    }

    /// What a lane has said since is on its way to the engine.
    pub fn collect(&mut self) {
        for (place, lane) in self.lanes.iter_mut().enumerate() {
            self.reports.extend(lane.reports.drain(..).map(|report| (place, report)));
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
            asked.insert(source, committed);
        }
        self.ask(asked);
    }

    fn ask(&mut self, asked: BTreeMap<TopicPartition, Committed>) {
        for (source, committed) in asked {
            for lane in &mut self.lanes {
                lane.to_resume.entry(source.clone()).or_insert_with(|| committed.clone());
            }
            self.pending.insert(source, Pending { waiting: (0..LANES).collect(), from: None });
        }
    }

    /// Takes one report of a lane.
    pub fn hear(&mut self, outside: &mut Outside) {
        if let Some((lane, report)) = self.reports.pop_front() {
            self.obey(lane, report, &[], outside);
        }
    }

    pub fn hear_all(&mut self, outside: &mut Outside) {
        self.collect();
        while let Some((lane, report)) = self.reports.pop_front() {
            self.obey(lane, report, &[], outside);
        }
    }

    fn obey(&mut self, lane: usize, report: Report, releasing: &[TopicPartition], outside: &mut Outside) {
        match report {
            Report::Ready(stands) => {
                for (source, stand) in stands {
                    if let Some(pending) = self.pending.get_mut(&source) {
                        pending.waiting.remove(&lane);
                        let from = stand.lowest(SinkSet::ALL);
                        pending.from = [pending.from, from].into_iter().flatten().min();
                    }
                }
                self.assign_ready(outside);
            }
            Report::Rewind(partitions) => {
                let kept = partitions.into_iter().filter(|source| !releasing.contains(source));
                let asked =
                    kept.filter_map(|source| Some((source.clone(), self.group.standing(&source)?))).collect();
                self.ask(asked);
            }
            Report::Progress(durable) => {
                for (source, durable) in durable {
                    self.group.progress(LaneId(lane), &source, &durable);
                }
            }
            // Nothing catches up here: every sink reads with the front.
            Report::CatchUp(_) | Report::Stands(_) => {}
            Report::Released(_) | Report::Stopped(_) | Report::Drained => {}
        }
    }

    /// Fetches partitions whose lanes have answered, once the group knows where sinks without a store begin.
    fn assign_ready(&mut self, outside: &mut Outside) {
        let is_ready = |pending: &Pending| pending.waiting.is_empty();
        let ready: Vec<TopicPartition> = self
            .pending
            .iter()
            .filter(|(_, pending)| is_ready(pending))
            .map(|(source, _)| source.clone())
            .collect();
        for source in ready {
            let may_wait = outside.flaw != Some(Flaw::FirstCommitIsNotAwaited);
            if may_wait && self.group.awaits_first(&source) {
                self.send_commit();
                continue;
            }
            let from = self.pending.remove(&source).and_then(|pending| pending.from);
            if let Some(from) = from.filter(|_| self.group.owns(&source)) {
                self.assign(source, from, outside);
            }
        }
        self.send_commit();
        self.collect();
    }

    fn assign(&mut self, source: TopicPartition, from: Offset, outside: &mut Outside) {
        self.assignment += 1;
        for lane in &mut self.lanes {
            lane.assigned(&source, self.assignment, from);
        }
        let keys: BTreeSet<PositionKey> =
            self.lanes.iter().filter_map(|lane| lane.keys.get(&source).copied()).collect();
        let (Some(key), 1) = (keys.first().copied(), keys.len()) else {
            // Lanes give it up just now, or one of them knows a topic of that name that is gone.
            self.fetching.remove(&source);
            return;
        };
        if outside.cluster.owner.get(&source) == Some(&self.member)
            && let Some(next) = self.lanes.iter().find_map(|lane| lane.group_next(&key))
        {
            outside.delivered.promise(key, next);
        }
        self.fetching.insert(source, Fetch { number: self.assignment, key, next: from.get() });
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
    }

    fn fetch(&mut self, source: &TopicPartition, outside: &mut Outside) {
        let is_full = self.lanes.iter().any(|lane| lane.held() >= HELD_MAX);
        let Some(fetch) = self.fetching.get_mut(source).filter(|_| !is_full) else {
            return;
        };
        // What the brokers have under that name now is another topic.
        if outside.cluster.key(source) != Some(fetch.key) {
            return;
        }
        let log = outside.cluster.log(&fetch.key);
        if fetch.next < log.first {
            self.fetching.remove(source);
            self.lanes.iter_mut().for_each(|lane| lane.lost(source, outside));
            return self.collect();
        }
        let end = log.end();
        let count = if outside.is_calm { FETCH_MAX } else { outside.dice.roll(FETCH_MAX as u64) as i64 };
        let to = (fetch.next + count).min(end);
        if to == fetch.next {
            return;
        }
        let chunk = outside.cluster.fetch(source, &fetch.key, fetch.number, (fetch.next, to));
        fetch.next = to;
        for lane in &mut self.lanes {
            let held = Held { bytes: chunk.size(), sum: lane.held.clone() };
            held.sum.fetch_add(held.bytes, Ordering::Relaxed);
            lane.inbox.push_back(chunk.share(Some(Box::new(held))));
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
            self.commit_under_way = Some(commits);
        }
    }

    /// The commit under way arrives or not, and its reply too.
    pub fn finish_commit(&mut self, outside: &mut Outside) {
        let Some(commits) = self.commit_under_way.take() else {
            return;
        };
        let never_arrives = outside.fails(10);
        let is_reply_lost = outside.fails(10);
        let mut is_taken = !never_arrives;
        for commit in commits.iter().filter(|_| !never_arrives) {
            is_taken &= outside.commit(self.member, commit);
        }
        if is_taken && !is_reply_lost {
            self.group.arrived();
            self.assign_ready(outside);
        } else {
            self.group.retry();
        }
    }

    // Partitions go.

    pub fn revoke(&mut self, partitions: &[TopicPartition], is_lost: bool, outside: &mut Outside) {
        for source in partitions {
            self.pending.remove(source);
            self.asking.remove(source);
            if is_lost {
                self.group.disown(source);
            }
        }
        self.lanes.iter_mut().for_each(|lane| lane.give_up(partitions, is_lost, outside));
        self.collect();
        while let Some((lane, report)) = self.reports.pop_front() {
            self.obey(lane, report, partitions, outside);
        }
        if !is_lost {
            self.finish_commit(outside);
            self.send_commit();
            self.finish_commit(outside);
        }
        for source in partitions {
            self.pending.remove(source);
            self.group.disown(source);
            self.fetching.remove(source);
        }
        // Brokers refuse what was sent before a rebalance.
        if let Some(commits) = &mut self.commit_under_way {
            commits.retain(|commit| !partitions.contains(&commit.source));
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
            assert!(lane.held() <= HELD_MAX + CHUNK_BYTES_MAX, "a lane holds {} bytes", lane.held());
        }
        let unowned = self.fetching.keys().find(|source| !self.group.owns(source));
        assert_eq!(unowned, None, "fetched without being owned");
    }
}
