//! What is committed to the group: a display for lag tools (PROTOCOL §3). Pure.

use std::collections::BTreeMap;

use crate::kafka::Commit;
use crate::model::metadata::{GroupMetadata, IdentityHash, MetadataError};
use crate::model::{LeaderEpoch, Offset, TopicPartition};

use super::message::{Durable, LaneId};

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
    committed: Option<Offset>,
    is_changed: bool,
}

impl Group {
    /// Takes up a partition with what the group has for it.
    pub fn own(
        &mut self,
        source: TopicPartition,
        lanes: &[LaneId],
        committed: Option<Offset>,
        metadata: GroupMetadata,
    ) {
        let standing = Standing {
            durable: lanes.iter().map(|lane| (*lane, None)).collect(),
            epoch: None,
            metadata,
            committed,
            is_changed: false,
        };
        self.partitions.insert(source, standing);
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
            standing
                .metadata
                .set_log(&IdentityHash::of(identity), log, *entry);
        }
        standing.is_changed = true;
    }

    /// What `lane` has durable of a partition.
    pub fn durable_of(&self, lane: LaneId, source: &TopicPartition) -> Option<Offset> {
        self.partitions.get(source)?.durable.get(&lane).copied().flatten()
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
            if standing.committed.is_some_and(|committed| committed >= next) {
                continue;
            }
            match standing.metadata.render() {
                Ok(metadata) => {
                    standing.committed = Some(next);
                    commits.push(Commit {
                        source,
                        next,
                        epoch: standing.epoch,
                        metadata,
                    });
                }
                Err(error) => errors.push((source, error)),
            }
        }
        (commits, errors)
    }

    /// A commit failed: what it held is due again.
    pub fn retry(&mut self) {
        for standing in self.partitions.values_mut() {
            standing.committed = None;
            standing.is_changed = true;
        }
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
        group.own(source(), &lanes, Offset::new(3), GroupMetadata::default());
        group.progress(LaneId(0), &source(), &durable(9));
        assert_eq!(due(&mut group), NONE);
        group.progress(LaneId(1), &source(), &durable(2));
        assert_eq!(due(&mut group), NONE);
        group.progress(LaneId(1), &source(), &durable(7));
        assert_eq!(due(&mut group), [7]);
        assert_eq!(due(&mut group), NONE);
        group.retry();
        assert_eq!(due(&mut group), [7]);
    }

    #[test]
    fn what_is_not_owned_is_not_committed() {
        let mut group = Group::default();
        group.own(source(), &[LaneId(0)], None, GroupMetadata::default());
        group.disown(&source());
        group.progress(LaneId(0), &source(), &durable(9));
        assert_eq!(due(&mut group), NONE);
    }
}
