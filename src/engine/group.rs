//! What is committed to the group: a display for lag tools (PROTOCOL §3). Pure.

use std::collections::BTreeMap;

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
    durable: BTreeMap<LaneId, Option<Offset>>,
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
        };
        self.partitions.insert(source, standing);
    }

    /// A lane has stopped, and will not say where it stands in partitions where it has not yet. If its sinks keep their
    /// own positions, the others need not wait for it; if the group is their store, they stay where the group is.
    pub fn stopped(&mut self, lane: LaneId, store: Store) {
        for standing in self.partitions.values_mut() {
            if standing.durable.get(&lane) != Some(&None) {
                continue;
            }
            match (store, standing.committed) {
                (Store::Own, _) => {
                    standing.durable.remove(&lane);
                }
                (Store::Group, Some(committed)) => {
                    standing.durable.insert(lane, Some(committed));
                }
                // Nobody knows where its sinks begin.
                (Store::Group, None) => {}
            }
            standing.is_changed = true;
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
        standing.durable.insert(lane, Some(durable.next));
        standing.epoch = durable.epoch.or(standing.epoch);
        for (identity, log, entry) in &durable.logs {
            standing.metadata.set_log(&IdentityHash::of(identity), log, *entry);
        }
        for (identity, next) in &durable.positions {
            standing.positions.insert(IdentityHash::of(identity), *next);
        }
        standing.is_changed = true;
    }

    /// The slowest lane's durable offset, if all have one.
    pub fn durable(&self, source: &TopicPartition) -> Option<Offset> {
        let standing = self.partitions.get(source)?;
        let offsets: Option<Vec<Offset>> = standing.durable.values().copied().collect();
        offsets?.into_iter().min()
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
            standing.metadata.keep_positions(&standing.positions, next);
            let metadata = match standing.metadata.render() {
                Ok(metadata) => metadata,
                Err(error) => {
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
        }
    }

    /// Does the group have no offset of this partition yet, although one can be committed? A sink without a store of
    /// its own would not be found again where it began.
    pub fn awaits_first(&self, source: &TopicPartition) -> bool {
        self.partitions.get(source).is_some_and(|standing| !standing.is_stored)
            && self.durable(source).is_some()
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
            epoch: None,
            logs: vec![("r/s".to_owned(), "ab".to_owned(), 3)],
            positions: vec![("r/k".to_owned(), Offset::new(next).unwrap())],
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
    fn what_is_not_owned_is_not_committed() {
        let mut group = Group::default();
        group.own(source(), &[LaneId(0)], Committed::default());
        group.disown(&source());
        group.progress(LaneId(0), &source(), &durable(9));
        assert_eq!(due(&mut group), NONE);
    }
}
