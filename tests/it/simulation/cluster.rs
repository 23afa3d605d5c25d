//! Topics as the brokers have them: records, gaps, leader epochs, retention, new partitions, topics created again.

use std::collections::{BTreeMap, BTreeSet};

use sidestream::kafka::Commit;
use sidestream::model::{
    Chunk, ChunkBuilder, Incoming, LeaderEpoch, Offset, Partition, PositionKey, TimestampType, TopicId,
    TopicName, TopicPartition,
};

/// SplitMix64: small, seeded, the same everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.roll(count as u64)).unwrap()
    }

    pub fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

pub fn at(raw: i64) -> Offset {
    Offset::new(raw).unwrap()
}

/// One partition of one topic id.
#[derive(Default)]
pub struct Log {
    /// The first offset kept.
    pub first: i64,
    /// For every offset the leader epoch of its record; none where compaction or a control record left a gap.
    slots: Vec<Option<i32>>,
    pub epoch: i32,
    /// The end it had before it was cut off, if that was later.
    pub former_end: i64,
}

impl Log {
    pub fn end(&self) -> i64 {
        self.slots.len() as i64
    }

    /// Offset and epoch of the records of a range, also of those that retention has deleted.
    pub fn records(&self, from: i64, to: i64) -> impl Iterator<Item = (i64, i32)> {
        (from.max(0)..to.min(self.end()))
            .filter_map(move |offset| Some((offset, self.slots[offset as usize]?)))
    }
}

pub struct Topic {
    pub id: TopicId,
    pub partition_count: i32,
}

/// Brokers, and what the group has stored there.
pub struct Cluster {
    pub topics: BTreeMap<TopicName, Topic>,
    /// Those of topics that are gone too.
    logs: BTreeMap<PositionKey, Log>,
    pub committed: BTreeMap<TopicPartition, (Offset, String)>,
    /// The member that each partition is given to.
    pub owner: BTreeMap<TopicPartition, usize>,
    /// Partitions that came later: all of them is wanted.
    pub whole: BTreeSet<PositionKey>,
    ids: u128,
}

/// Partitions of a topic at most.
const PARTITIONS_MAX: i32 = 3;

impl Cluster {
    pub fn new(dice: &mut Dice) -> Self {
        let mut cluster = Self {
            topics: BTreeMap::new(),
            logs: BTreeMap::new(),
            committed: BTreeMap::new(),
            owner: BTreeMap::new(),
            whole: BTreeSet::new(),
            ids: 0,
        };
        for name in ["a", "b"] {
            let partition_count = 1 + dice.pick(2) as i32;
            cluster.create(&TopicName::new(name), partition_count);
        }
        for source in cluster.sources() {
            cluster.append(&source, dice);
        }
        cluster
    }

    fn create(&mut self, name: &TopicName, partition_count: i32) {
        self.ids += 1;
        let id = TopicId(uuid::Uuid::from_u128(self.ids));
        for partition in (0..partition_count).map(Partition) {
            self.logs.insert(PositionKey { topic_id: id, partition }, Log::default());
        }
        self.topics.insert(name.clone(), Topic { id, partition_count });
    }

    pub fn sources(&self) -> Vec<TopicPartition> {
        let each = self.topics.iter().flat_map(|(name, topic)| {
            (0..topic.partition_count).map(move |partition| TopicPartition::new(name, Partition(partition)))
        });
        each.collect()
    }

    /// None if the topic has no such partition now.
    pub fn key(&self, source: &TopicPartition) -> Option<PositionKey> {
        let topic = self.topics.get(&source.topic)?;
        let key = PositionKey { topic_id: topic.id, partition: source.partition };
        (source.partition.0 < topic.partition_count).then_some(key)
    }

    pub fn log(&self, key: &PositionKey) -> &Log {
        &self.logs[key]
    }

    fn log_mut(&mut self, source: &TopicPartition) -> &mut Log {
        let key = self.key(source).unwrap();
        self.logs.get_mut(&key).unwrap()
    }

    pub fn append(&mut self, source: &TopicPartition, dice: &mut Dice) {
        let log = self.log_mut(source);
        for _ in 0..dice.roll(12) {
            let is_record = !dice.one_in(5);
            log.slots.push(is_record.then_some(log.epoch));
        }
    }

    /// Another leader.
    pub fn elect(&mut self, source: &TopicPartition) {
        self.log_mut(source).epoch += 1;
    }

    /// A replica that lags becomes leader: the last records are gone. Returns where the partition ends now.
    pub fn truncate(&mut self, source: &TopicPartition, dice: &mut Dice) -> i64 {
        let log = self.log_mut(source);
        log.former_end = log.end().max(log.former_end);
        let end = (log.end() - dice.roll(12) as i64).max(log.first);
        log.slots.truncate(end as usize);
        log.epoch += 1;
        end
    }

    /// Retention deletes from the front.
    pub fn expire(&mut self, source: &TopicPartition, dice: &mut Dice) {
        let log = self.log_mut(source);
        let count = dice.roll(10) as i64;
        log.first = (log.first + count).min(log.end());
    }

    pub fn grow(&mut self, name: &TopicName) {
        let topic = self.topics.get_mut(name).unwrap();
        if topic.partition_count >= PARTITIONS_MAX {
            return;
        }
        let key = PositionKey { topic_id: topic.id, partition: Partition(topic.partition_count) };
        topic.partition_count += 1;
        self.logs.insert(key, Log::default());
        self.whole.insert(key);
    }

    /// Deletes a topic and creates it again. Brokers forget the offsets of groups with a topic.
    pub fn recreate(&mut self, name: &TopicName) {
        let partition_count = self.topics[name].partition_count;
        self.committed.retain(|source, _| source.topic != *name);
        self.owner.retain(|source, _| source.topic != *name);
        self.create(name, partition_count);
        let id = self.topics[name].id;
        for partition in (0..partition_count).map(Partition) {
            self.whole.insert(PositionKey { topic_id: id, partition });
        }
    }

    /// What a fetch of `[from, to)` brings.
    pub fn fetch(
        &self,
        source: &TopicPartition,
        key: &PositionKey,
        number: u64,
        (from, to): (i64, i64),
    ) -> Chunk {
        let mut builder = ChunkBuilder::new(source.clone(), number, at(from));
        for (offset, epoch) in self.log(key).records(from, to) {
            let incoming = Incoming {
                offset: at(offset),
                timestamp_ms: 0,
                timestamp_type: TimestampType::Create,
                epoch: Some(LeaderEpoch(epoch)),
                key: None,
                value: Some(b"x"),
            };
            builder.push(incoming, std::iter::empty());
        }
        builder.finish(at(to))
    }

    /// Takes a commit of a member, if the partition is its own.
    pub fn commit(&mut self, member: usize, commit: &Commit) -> bool {
        if self.owner.get(&commit.source) != Some(&member) {
            return false;
        }
        let stored = (commit.next, commit.metadata.clone());
        let before = self.committed.insert(commit.source.clone(), stored);
        assert!(
            before.is_none_or(|(before, _)| before <= commit.next),
            "the commit of {} went back",
            commit.source
        );
        true
    }
}
