//! What transactions have to know of a group's member: which partitions are its own, and what the brokers hold commits
//! of the group's offsets against.
//!
//! A partition is counted as held from the event that gives it until just before the group is answered that it is given
//! up. The member's generation, read while a partition is held, is therefore one in which the partition is this member's;
//! the brokers refuse a commit of an older one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata, DefaultConsumerContext};

use crate::model::TopicPartition;

use super::ffi;

/// What brokers hold a commit of a group's offsets against: the member, and the generation.
pub type Fence = ConsumerGroupMetadata;

/// Shared by the consumer's thread and those that write in transactions.
#[derive(Clone, Default)]
pub struct Membership(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    /// The thread's, which closes it.
    consumer: Weak<BaseConsumer<DefaultConsumerContext>>,
    /// By the how manieth gift.
    partitions: HashMap<TopicPartition, u64>,
    gifts: u64,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Membership")
    }
}

impl Membership {
    /// By the how manieth gift a partition is held; another number than before means that it was away.
    pub fn held(&self, source: &TopicPartition) -> Option<u64> {
        self.lock().partitions.get(source).copied()
    }

    /// What a commit is held against while all of these are held by the same gifts. `None` if one is not, or if the client
    /// is no member at the moment. Blocks for as long as librdkafka's main thread takes to answer.
    pub fn fence(&self, held: &[(TopicPartition, u64)]) -> Option<Fence> {
        // Nothing is given up meanwhile: the thread waits with its answer.
        let known = self.lock();
        if !known.has(held) {
            return None;
        }
        let consumer = known.consumer.upgrade()?;
        // Without a generation brokers would take the commit from anybody. Read before and after, as it may be lost in
        // between; a generation does not come back.
        let before = ffi::generation(&consumer)?;
        let metadata = consumer.group_metadata()?;
        (ffi::generation(&consumer)? == before).then_some(metadata)
    }

    pub(super) fn join(&self, consumer: &Arc<BaseConsumer<DefaultConsumerContext>>) {
        self.lock().consumer = Arc::downgrade(consumer);
    }

    pub(super) fn give(&self, partitions: &[TopicPartition]) {
        self.lock().give(partitions);
    }

    pub(super) fn take(&self, partitions: &[TopicPartition]) {
        self.lock().take(partitions);
    }

    /// It is no member any more.
    pub(super) fn end(&self) {
        *self.lock() = Held::default();
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn give(&mut self, partitions: &[TopicPartition]) {
        self.gifts += 1;
        self.partitions.extend(partitions.iter().map(|source| (source.clone(), self.gifts)));
    }

    fn take(&mut self, partitions: &[TopicPartition]) {
        for source in partitions {
            self.partitions.remove(source);
        }
    }

    fn has(&self, held: &[(TopicPartition, u64)]) -> bool {
        held.iter().all(|(source, number)| self.partitions.get(source) == Some(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Partition, TopicName};

    fn source(partition: i32) -> TopicPartition {
        TopicPartition::new(&TopicName::new("t"), Partition(partition))
    }

    #[test]
    fn what_was_away_is_not_what_it_was() {
        let membership = Membership::default();
        membership.give(&[source(0), source(1)]);
        let first = [(source(0), membership.held(&source(0)).unwrap())];
        assert!(membership.lock().has(&first));
        membership.give(&[source(2)]);
        assert!(membership.lock().has(&first));
        membership.take(&[source(0)]);
        assert_eq!(membership.held(&source(0)), None);
        assert!(!membership.lock().has(&first));
        membership.give(&[source(0)]);
        assert!(!membership.lock().has(&first));
        assert!(membership.held(&source(0)) > membership.held(&source(1)));
    }

    #[test]
    fn without_a_member_nothing_is_committed() {
        let membership = Membership::default();
        membership.give(&[source(0)]);
        let held = [(source(0), membership.held(&source(0)).unwrap())];
        assert!(membership.lock().has(&held));
        assert!(membership.fence(&held).is_none());
        membership.end();
        assert_eq!(membership.held(&source(0)), None);
    }
}
