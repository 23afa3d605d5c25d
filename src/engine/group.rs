//! What is committed to the group: a display for lag tools (PROTOCOL §3). Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::kafka::Commit;
use crate::model::metadata::{GroupMetadata, IdentityHash, MetadataError};
use crate::model::{LeaderEpoch, Offset, StartHash, TopicPartition};
use crate::sink::Store;

use super::message::{Committed, Durable, LaneId};

/// The commits of the partitions this instance owns.
#[derive(Debug, Default)]
pub struct Group {
    partitions: BTreeMap<TopicPartition, Standing>,
}

#[derive(Debug)]
struct Standing {
    /// Lanes that read the topic; all of them have to say where they are before anything is committed.
    durable: BTreeMap<LaneId, Option<Told>>,
    epoch: Option<LeaderEpoch>,
    metadata: GroupMetadata,
    /// Next offsets of sinks without a store of their own, by identity.
    positions: BTreeMap<IdentityHash, Offset>,
    committed: Option<Offset>,
    /// The metadata that was committed last.
    said: String,
    is_changed: bool,
    /// A commit was sent, and none has failed since.
    is_sent: bool,
    /// The group has an offset: it was read there, or a commit has arrived.
    is_stored: bool,
    /// Sinks with a `start:` of their own whose word has not arrived: without it they would begin anew.
    unstored: BTreeSet<IdentityHash>,
    /// Why nothing is committed.
    unfit: Option<MetadataError>,
    /// Lanes that catch up and have not said from where; nobody waits for them.
    unheard: BTreeSet<LaneId>,
    /// Sinks move the offset, in their transactions: here it is only known.
    is_moved_by_sinks: bool,
}

/// What a lane last said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    next: Offset,
    /// In all its sinks, also in those that catch up.
    settled: Offset,
    /// It catches up, and does not count while another one is at the front.
    is_apart: bool,
}

impl Group {
    /// Takes up a partition with what the group has for it.
    pub fn own(&mut self, source: TopicPartition, lanes: &[LaneId], committed: Committed) {
        let standing = Standing {
            durable: lanes.iter().map(|lane| (*lane, None)).collect(),
            epoch: None,
            said: committed.metadata.render().unwrap_or_default(),
            metadata: committed.metadata,
            positions: BTreeMap::new(),
            committed: committed.offset,
            is_changed: false,
            is_sent: false,
            is_stored: committed.offset.is_some(),
            unstored: BTreeSet::new(),
            unfit: None,
            unheard: BTreeSet::new(),
            is_moved_by_sinks: false,
        };
        self.partitions.insert(source, standing);
    }

    /// Nothing is committed for a partition from here: sinks do it in their transactions, and an offset of ours that came
    /// later would lead theirs back.
    pub fn leave_to_sinks(&mut self, source: &TopicPartition) {
        if let Some(standing) = self.partitions.get_mut(source) {
            standing.is_moved_by_sinks = true;
        }
    }

    /// A lane has stopped, and will not say where it stands in partitions where it has not yet. If its sinks keep their
    /// own positions, the others need not wait for it; if the group is their store, they stay where the group is.
    pub fn stopped(&mut self, lane: LaneId, store: Store) {
        for standing in self.partitions.values_mut() {
            standing.is_changed |= standing.unheard.remove(&lane);
            standing.leave_out(lane, store);
        }
    }

    /// A lane catches up in a partition. If it has not said where it stands there, the others need not wait for it,
    /// as far as they need not for one that has stopped.
    pub fn catches_up(&mut self, lane: LaneId, source: &TopicPartition, store: Store) {
        let Some(standing) = self.partitions.get_mut(source) else {
            return;
        };
        if let Some(Some(told)) = standing.durable.get_mut(&lane) {
            told.is_apart = true;
            standing.is_changed = true;
        } else {
            standing.unheard.insert(lane);
            standing.leave_out(lane, store);
        }
    }

    /// What was last read from or sent to the group for a partition, with the positions that lanes have told since.
    pub fn standing(&self, source: &TopicPartition) -> Option<Committed> {
        let standing = self.partitions.get(source)?;
        let mut metadata = standing.metadata.clone();
        for (identity, next) in &standing.positions {
            metadata.set_position(identity, *next);
        }
        // Whoever wrote it was told when the partition came.
        Some(Committed { offset: standing.committed, metadata, is_foreign: false })
    }

    /// Was an offset read from or sent to the group?
    pub fn has_offset(&self, source: &TopicPartition) -> bool {
        self.partitions.get(source).is_some_and(|standing| standing.committed.is_some())
    }

    /// Another lane reads the topic from now on.
    pub fn add_lane(&mut self, source: &TopicPartition, lane: LaneId) {
        if let Some(standing) = self.partitions.get_mut(source) {
            standing.durable.entry(lane).or_insert(None);
        }
    }

    /// Keeps what a route was started with beside the partition's offset.
    pub fn started(&mut self, source: &TopicPartition, route: &str, hash: &StartHash) {
        if let Some(standing) = self.partitions.get_mut(source) {
            standing.metadata.set_start(&IdentityHash::of(route), hash);
        }
    }

    /// Nothing is committed for a partition that is not owned.
    pub fn disown(&mut self, source: &TopicPartition) {
        self.partitions.remove(source);
    }

    pub fn owns(&self, source: &TopicPartition) -> bool {
        self.partitions.contains_key(source)
    }

    pub fn owned(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.keys()
    }

    /// What `lane` has durable now.
    pub fn progress(&mut self, lane: LaneId, source: &TopicPartition, durable: &Durable) {
        let Some(standing) = self.partitions.get_mut(source) else {
            return;
        };
        let Durable { next, settled, is_apart, .. } = *durable;
        standing.durable.insert(lane, Some(Told { next, settled, is_apart }));
        standing.unheard.remove(&lane);
        standing.epoch = durable.epoch.or(standing.epoch);
        for (identity, log, entry) in &durable.logs {
            standing.metadata.set_log(&IdentityHash::of(identity), log, *entry);
        }
        for (identity, hash) in &durable.starts {
            let identity = IdentityHash::of(identity);
            if standing.metadata.start(&identity).is_none() {
                standing.unstored.insert(identity.clone());
            }
            standing.metadata.set_start(&identity, hash);
        }
        for (identity, next) in &durable.positions {
            standing.positions.insert(IdentityHash::of(identity), *next);
        }
        standing.is_changed = true;
    }

    /// The durable offset of the slowest lane that does not catch up, if all have one.
    pub fn durable(&self, source: &TopicPartition) -> Option<Offset> {
        let standing = self.partitions.get(source)?;
        let told: Option<Vec<Told>> = standing.durable.values().copied().collect();
        let told = told?;
        let front = told.iter().filter(|told| !told.is_apart).map(|told| told.next).min();
        front.or_else(|| told.iter().map(|told| told.next).min())
    }

    /// Commits that are due: offsets that moved forward since the last one. Never backwards: the group
    /// may be ahead of a sink that was added later.
    ///
    /// # Errors
    /// The partition whose metadata does not fit; nothing is committed for it.
    pub fn due(&mut self) -> (Vec<Commit>, Vec<(TopicPartition, MetadataError)>) {
        let (mut commits, mut errors) = (Vec::new(), Vec::new());
        let sources: Vec<TopicPartition> = self.partitions.keys().cloned().collect();
        for source in sources {
            let durable = self.durable(&source);
            let Some(standing) = self.partitions.get_mut(&source) else {
                continue;
            };
            let Some(next) = durable.filter(|_| standing.is_changed) else {
                continue;
            };
            standing.is_changed = false;
            // The group may be ahead of a sink that was added later; then its metadata holds the difference.
            let next = standing.committed.map_or(next, |committed| committed.max(next));
            if standing.is_moved_by_sinks {
                standing.committed = Some(next);
                continue;
            }
            standing.metadata.keep_positions(&standing.positions, next);
            let behind = standing.behind().filter(|behind| *behind < next);
            standing.metadata.set_behind(behind);
            standing.unfit = None;
            let metadata = match standing.metadata.render() {
                Ok(metadata) => metadata,
                Err(error) => {
                    standing.unfit = Some(error.clone());
                    errors.push((source, error));
                    continue;
                }
            };
            if standing.committed == Some(next) && standing.said == metadata {
                continue;
            }
            standing.committed = Some(next);
            standing.said.clone_from(&metadata);
            standing.is_sent = true;
            commits.push(Commit { source, next, epoch: standing.epoch, metadata });
        }
        (commits, errors)
    }

    /// Why nothing can be committed for a partition, if that is so.
    pub fn unfit(&self, source: &TopicPartition) -> Option<&MetadataError> {
        self.partitions.get(source)?.unfit.as_ref()
    }

    /// A commit failed: what it held is due again.
    pub fn retry(&mut self) {
        for standing in self.partitions.values_mut() {
            standing.said = String::new();
            standing.is_changed = true;
            standing.is_sent = false;
        }
    }

    /// All commits that were sent have arrived.
    pub fn arrived(&mut self) {
        for standing in self.partitions.values_mut() {
            standing.is_stored |= standing.is_sent;
            if standing.is_sent && !standing.unstored.is_empty() {
                let said = GroupMetadata::parse(&standing.said).unwrap_or_default();
                standing.unstored.retain(|identity| said.start(identity).is_none());
            }
        }
    }

    /// Does the group not know of this partition yet where a sink began, although it can be committed? A sink without a
    /// store of its own would not be found again there.
    pub fn awaits_first(&self, source: &TopicPartition) -> bool {
        let is_known = |standing: &Standing| {
            standing.is_moved_by_sinks || (standing.is_stored && standing.unstored.is_empty())
        };
        self.partitions.get(source).is_some_and(|standing| !is_known(standing))
            && self.durable(source).is_some()
    }
}

/// How far the owner of a partition has come in all its sinks, by what it has committed: what catches up holds no offset
/// back, and is told beside it.
pub fn reached(offset: Offset, metadata: &str) -> Offset {
    let behind = GroupMetadata::parse(metadata).ok().and_then(|metadata| metadata.behind());
    behind.map_or(offset, |behind| behind.min(offset))
}

impl Standing {
    /// Where what is furthest behind stands; at 0 if that is not known.
    fn behind(&self) -> Option<Offset> {
        if !self.unheard.is_empty() {
            return Some(Offset::ZERO);
        }
        self.durable.values().flatten().map(|told| told.settled).min()
    }

    /// Does not wait for a lane that has not said where it stands.
    fn leave_out(&mut self, lane: LaneId, store: Store) {
        if self.durable.get(&lane) != Some(&None) {
            return;
        }
        match (store, self.committed) {
            (Store::Own | Store::Transaction, _) => {
                self.durable.remove(&lane);
            }
            (Store::Group, Some(committed)) => {
                let told = Told { next: committed, settled: committed, is_apart: false };
                self.durable.insert(lane, Some(told));
            }
            // Nobody knows where its sinks begin.
            (Store::Group, None) => {}
        }
        self.is_changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Partition, TopicName};

    const NONE: [i64; 0] = [];

    fn source() -> TopicPartition {
        TopicPartition::new(&TopicName::new("t"), Partition(0))
    }

    fn durable(next: i64) -> Durable {
        Durable {
            next: Offset::new(next).unwrap(),
            settled: Offset::new(next).unwrap(),
            is_apart: false,
            epoch: None,
            logs: vec![("r/s".to_owned(), "ab".to_owned(), 3)],
            positions: vec![("r/k".to_owned(), Offset::new(next).unwrap())],
            starts: Vec::new(),
        }
    }

    fn due(group: &mut Group) -> Vec<i64> {
        let (commits, errors) = group.due();
        assert!(errors.is_empty());
        commits.iter().map(|commit| commit.next.get()).collect()
    }

    #[test]
    fn the_slowest_lane_decides_and_offsets_never_go_back() {
        let mut group = Group::default();
        let lanes = [LaneId(0), LaneId(1)];
        group.own(source(), &lanes, Committed { offset: Offset::new(3), ..Committed::default() });
        group.progress(LaneId(0), &source(), &durable(9));
        assert_eq!(due(&mut group), NONE);
        // Behind what is committed: the offset stays, the metadata tells where the sink is.
        group.progress(LaneId(1), &source(), &durable(2));
        assert_eq!(due(&mut group), [3]);
        group.progress(LaneId(1), &source(), &durable(7));
        assert_eq!(due(&mut group), [7]);
        assert_eq!(due(&mut group), NONE);
        group.retry();
        assert_eq!(due(&mut group), [7]);
    }

    #[test]
    fn what_sinks_move_in_their_transactions_is_not_committed_beside_them() {
        let mut group = Group::default();
        let committed = Committed { offset: Offset::new(3), ..Committed::default() };
        group.own(source(), &[LaneId(0)], committed);
        group.leave_to_sinks(&source());
        assert!(!group.awaits_first(&source()));
        group.progress(LaneId(0), &source(), &durable(7));
        assert_eq!(due(&mut group), NONE);
        group.retry();
        assert_eq!(due(&mut group), NONE);
        // It is known all the same, for lanes that have to begin anew.
        let standing = group.standing(&source()).unwrap();
        assert_eq!(standing.offset, Offset::new(7));
        assert_eq!(standing.metadata.position(&IdentityHash::of("r/k")), Offset::new(7));
        // It goes with the partition.
        group.disown(&source());
        group.own(source(), &[LaneId(0)], Committed::default());
        group.progress(LaneId(0), &source(), &durable(9));
        assert_eq!(due(&mut group), [9]);
    }

    #[test]
    fn a_sink_that_differs_from_the_commit_has_an_entry() {
        let mut group = Group::default();
        group.own(source(), &[LaneId(0)], Committed::default());
        let mut durable = durable(5);
        durable.positions.push(("r/other".to_owned(), Offset::new(8).unwrap()));
        group.progress(LaneId(0), &source(), &durable);
        let (commits, _) = group.due();
        let metadata = GroupMetadata::parse(&commits[0].metadata).unwrap();
        assert_eq!(metadata.position(&IdentityHash::of("r/k")), None);
        assert_eq!(metadata.position(&IdentityHash::of("r/other")), Offset::new(8));
    }

    #[test]
    fn a_stopped_lane_holds_nobody_up_but_keeps_its_place() {
        let lanes = [LaneId(0), LaneId(1)];
        let mut group = Group::default();
        group.own(source(), &lanes, Committed::default());
        group.progress(LaneId(0), &source(), &durable(7));
        assert_eq!(due(&mut group), NONE);
        group.stopped(LaneId(1), Store::Own);
        assert_eq!(due(&mut group), [7]);
        // Sinks whose store is the group must find it where they left it.
        let mut group = Group::default();
        group.own(source(), &lanes, Committed { offset: Offset::new(3), ..Committed::default() });
        group.stopped(LaneId(1), Store::Group);
        group.progress(LaneId(0), &source(), &durable(7));
        let (commits, _) = group.due();
        assert_eq!(commits[0].next, Offset::new(3).unwrap());
        let metadata = GroupMetadata::parse(&commits[0].metadata).unwrap();
        assert_eq!(metadata.position(&IdentityHash::of("r/k")), Offset::new(7));
        let standing = group.standing(&source()).unwrap();
        assert_eq!(
            (standing.offset, standing.metadata.position(&IdentityHash::of("r/k"))),
            (Offset::new(3), Offset::new(7))
        );
    }

    #[test]
    fn the_first_commit_counts_once_it_has_arrived() {
        let mut group = Group::default();
        group.own(source(), &[LaneId(0)], Committed::default());
        // Nothing can be committed: nobody waits for it.
        assert!(!group.awaits_first(&source()));
        group.progress(LaneId(0), &source(), &durable(4));
        assert!(group.awaits_first(&source()));
        assert_eq!(due(&mut group), [4]);
        group.retry();
        group.arrived();
        assert!(group.awaits_first(&source()));
        assert_eq!(due(&mut group), [4]);
        group.arrived();
        assert!(!group.awaits_first(&source()));
    }

    #[test]
    fn where_a_sink_with_a_start_began_counts_once_it_has_arrived() {
        let mut group = Group::default();
        group.own(source(), &[LaneId(0)], Committed { offset: Offset::new(3), ..Committed::default() });
        group.progress(LaneId(0), &source(), &durable(3));
        assert!(!group.awaits_first(&source()));
        group.progress(LaneId(0), &source(), &Durable { starts: started(), ..durable(3) });
        assert!(group.awaits_first(&source()));
        assert_eq!(due(&mut group), [3]);
        // Another one, while the commit is under way.
        let other = vec![("r/other".to_owned(), StartHash("h".to_owned()))];
        group.progress(LaneId(0), &source(), &Durable { starts: other, ..durable(3) });
        group.arrived();
        assert!(group.awaits_first(&source()));
        assert_eq!(due(&mut group), [3]);
        group.arrived();
        assert!(!group.awaits_first(&source()));
    }

    #[test]
    fn a_lane_that_catches_up_holds_no_offset_back_and_keeps_its_place() {
        let lanes = [LaneId(0), LaneId(1)];
        let mut group = Group::default();
        group.own(source(), &lanes, Committed::default());
        group.progress(LaneId(0), &source(), &Durable { positions: Vec::new(), ..durable(90) });
        let behind = Durable { is_apart: true, starts: started(), ..durable(5) };
        group.progress(LaneId(1), &source(), &behind);
        let (commits, _) = group.due();
        assert_eq!(commits[0].next, Offset::new(90).unwrap());
        let metadata = GroupMetadata::parse(&commits[0].metadata).unwrap();
        assert_eq!(metadata.position(&IdentityHash::of("r/k")), Offset::new(5));
        assert_eq!(metadata.start(&IdentityHash::of("r/k")), Some(StartHash("h".to_owned())));
        // It has joined the others: now it counts, and offsets do not go back for it.
        group.progress(LaneId(1), &source(), &durable(80));
        assert_eq!(due(&mut group), [90]);
        group.catches_up(LaneId(1), &source(), Store::Group);
        group.progress(LaneId(0), &source(), &Durable { positions: Vec::new(), ..durable(95) });
        assert_eq!(due(&mut group), [95]);
        // Alone it is the front.
        group.catches_up(LaneId(0), &source(), Store::Group);
        assert_eq!(group.durable(&source()), Offset::new(80));
    }

    /// A bounded run of another member counts on the commit: the one that catches up is not there yet.
    #[test]
    fn what_catches_up_is_told_beside_the_offset_that_it_does_not_hold_back() {
        let lanes = [LaneId(0), LaneId(1)];
        let mut group = Group::default();
        group.own(source(), &lanes, Committed::default());
        let told = |group: &mut Group| {
            let (commits, _) = group.due();
            commits.first().map(|commit| (commit.next.get(), reached(commit.next, &commit.metadata).get()))
        };
        group.progress(LaneId(0), &source(), &durable(90));
        // It may be anywhere.
        group.catches_up(LaneId(1), &source(), Store::Own);
        assert_eq!(told(&mut group), Some((90, 0)));
        group.progress(LaneId(1), &source(), &Durable { is_apart: true, ..durable(5) });
        assert_eq!(told(&mut group), Some((90, 5)));
        group.progress(LaneId(1), &source(), &Durable { is_apart: true, ..durable(60) });
        assert_eq!(told(&mut group), Some((90, 60)));
        // One sink of a lane.
        group.progress(LaneId(1), &source(), &durable(90));
        let settled = Offset::new(70).unwrap();
        group.progress(LaneId(0), &source(), &Durable { settled, ..durable(95) });
        assert_eq!(told(&mut group), Some((90, 70)));
        group.progress(LaneId(0), &source(), &durable(95));
        assert_eq!(told(&mut group), Some((90, 90)));
        // One that has stopped before it said where it stands is not waited for.
        let mut group = Group::default();
        group.own(source(), &lanes, Committed::default());
        group.progress(LaneId(0), &source(), &durable(90));
        group.catches_up(LaneId(1), &source(), Store::Own);
        group.stopped(LaneId(1), Store::Own);
        assert_eq!(told(&mut group), Some((90, 90)));
        assert_eq!(reached(Offset::ZERO, "of a tool"), Offset::ZERO);
    }

    #[test]
    fn one_that_catches_up_and_has_not_said_from_where_is_not_waited_for() {
        let lanes = [LaneId(0), LaneId(1)];
        let committed = Committed { offset: Offset::new(3), ..Committed::default() };
        for (store, expected) in [(Store::Own, 7), (Store::Group, 3)] {
            let mut group = Group::default();
            group.own(source(), &lanes, committed.clone());
            group.progress(LaneId(0), &source(), &durable(7));
            assert_eq!(due(&mut group), NONE);
            group.catches_up(LaneId(1), &source(), store);
            assert_eq!(due(&mut group), [expected], "{store:?}");
        }
    }

    fn started() -> Vec<(String, StartHash)> {
        vec![("r/k".to_owned(), StartHash("h".to_owned()))]
    }

    #[test]
    fn what_is_not_owned_is_not_committed() {
        let mut group = Group::default();
        group.own(source(), &[LaneId(0)], Committed::default());
        group.disown(&source());
        group.progress(LaneId(0), &source(), &durable(9));
        assert_eq!(due(&mut group), NONE);
    }
}
