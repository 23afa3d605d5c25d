//! Questions about the cluster, through a client that is no member of the group.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset as KafkaOffset, TopicPartitionList};
use sha2::{Digest, Sha256};

use crate::model::{
    Classify, ClusterId, Fault, Hint, Offset, Partition, Start, TimePoint, TopicId, TopicName, TopicPartition,
};

use super::ffi;

/// How long one question may take. Callers ask again.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    pub id: TopicId,
    pub partition_count: usize,
}

/// A question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("failed to ask the brokers for {what}")]
    Client { what: &'static str, source: KafkaError },
    #[error("failed to ask the brokers for {what}: {problem}")]
    Answer { what: &'static str, problem: String },
    #[error("topic `{topic}` does not exist")]
    NoTopic { topic: TopicName },
}

impl Classify for ClusterError {
    fn fault(&self) -> Fault {
        // Brokers come back, topics get created: the caller asks again.
        Fault::Transient
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::NoTopic { .. } => Some("create the topic, or correct its name under `topics:`".into()),
            _ => Some("check `bootstrap.servers` and that the brokers' advertised listeners can be reached from here".into()),
        }
    }
}

/// What the engine asks of the cluster.
#[async_trait]
pub trait Cluster: Send + Sync {
    async fn id(&self) -> Result<ClusterId, ClusterError>;
    async fn topic(&self, topic: &TopicName) -> Result<TopicInfo, ClusterError>;
    /// Where `start` is in every partition of `topic`, now.
    async fn resolve(
        &self,
        topic: &TopicName,
        partition_count: usize,
        start: &Start,
    ) -> Result<BTreeMap<Partition, Offset>, ClusterError>;
    /// The first offset kept and the next one written (the last stable one) of a partition.
    async fn bounds(&self, source: &TopicPartition) -> Result<(Offset, Offset), ClusterError>;
    /// The group's committed offset and its metadata, where there is one.
    async fn committed(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, ClusterError>;
}

/// A [`Cluster`] that asks real brokers.
#[derive(Clone)]
pub struct KafkaCluster {
    config: ClientConfig,
    client: Arc<Mutex<Option<BaseConsumer>>>,
}

impl fmt::Debug for KafkaCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration holds passwords.
        f.write_str("KafkaCluster")
    }
}

impl KafkaCluster {
    pub fn new(config: ClientConfig) -> Self {
        Self { config, client: Arc::default() }
    }

    /// Asks on a thread that may block. One question at a time: they are rare.
    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        question: impl FnOnce(&BaseConsumer) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, ClusterError> {
        let this = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let mut client = this.client.lock().unwrap_or_else(PoisonError::into_inner);
            let consumer = match client.as_ref() {
                Some(consumer) => consumer,
                None => client.insert(this.config.create().map_err(Failure::Client)?),
            };
            let answer = question(consumer);
            // Logs and errors of this client are queued until somebody polls; nobody else does.
            while consumer.poll(Duration::ZERO).is_some() {}
            answer
        });
        match asked.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failure::Client(source))) => Err(ClusterError::Client { what, source }),
            Ok(Err(Failure::Answer(problem))) => Err(ClusterError::Answer { what, problem }),
            Ok(Err(Failure::NoTopic(topic))) => Err(ClusterError::NoTopic { topic }),
            Err(error) => Err(ClusterError::Answer { what, problem: error.to_string() }),
        }
    }
}

enum Failure {
    Client(KafkaError),
    Answer(String),
    NoTopic(TopicName),
}

impl From<KafkaError> for Failure {
    fn from(error: KafkaError) -> Self {
        Self::Client(error)
    }
}

#[async_trait]
impl Cluster for KafkaCluster {
    async fn id(&self) -> Result<ClusterId, ClusterError> {
        self.ask("the cluster id", |client| {
            let id = client.client().fetch_cluster_id(TIMEOUT);
            id.map(ClusterId).ok_or_else(|| Failure::Answer("no answer in time".to_owned()))
        })
        .await
    }

    async fn topic(&self, topic: &TopicName) -> Result<TopicInfo, ClusterError> {
        let topic = topic.clone();
        self.ask("a topic's id", move |client| describe(client, &topic)).await
    }

    async fn resolve(
        &self,
        topic: &TopicName,
        partition_count: usize,
        start: &Start,
    ) -> Result<BTreeMap<Partition, Offset>, ClusterError> {
        let (topic, start) = (topic.clone(), start.clone());
        self.ask("start offsets", move |client| resolve(client, &topic, partition_count, &start)).await
    }

    async fn bounds(&self, source: &TopicPartition) -> Result<(Offset, Offset), ClusterError> {
        let source = source.clone();
        self.ask("a partition's offsets", move |client| watermarks(client, &source)).await
    }

    async fn committed(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, ClusterError> {
        let sources = sources.to_vec();
        self.ask("committed offsets", move |client| {
            let mut list = TopicPartitionList::new();
            for source in &sources {
                list.add_partition(source.topic.as_str(), source.partition.0);
            }
            let committed = client.committed_offsets(list, TIMEOUT)?;
            let mut found = BTreeMap::new();
            for element in committed.elements() {
                element.error()?;
                let offset = element.offset().to_raw().and_then(Offset::new);
                if let Some(offset) = offset {
                    let topic = TopicName::new(element.topic());
                    let source = TopicPartition::new(&topic, Partition(element.partition()));
                    found.insert(source, (offset, element.metadata().to_owned()));
                }
            }
            Ok(found)
        })
        .await
    }
}

fn describe(client: &BaseConsumer, topic: &TopicName) -> Result<TopicInfo, Failure> {
    let metadata = client.fetch_metadata(Some(topic.as_str()), TIMEOUT)?;
    let broker =
        metadata.brokers().first().ok_or_else(|| Failure::Answer("no broker answered".to_owned()))?;
    let described = ffi::describe_topics(client, broker.id(), std::slice::from_ref(topic), TIMEOUT)
        .map_err(Failure::Answer)?;
    match described.into_iter().next().flatten() {
        Some(found) => {
            Ok(TopicInfo { id: known_id(found.id, topic), partition_count: found.partition_count })
        }
        None => Err(Failure::NoTopic(topic.clone())),
    }
}

/// Brokers without topic ids answer zeros for all topics. Then the name has to do, and a topic that is
/// deleted and created again cannot be told from before.
fn known_id(id: TopicId, topic: &TopicName) -> TopicId {
    if !id.0.is_nil() {
        return id;
    }
    let digest = Sha256::digest(topic.as_str().as_bytes());
    TopicId(uuid::Uuid::from_slice(&digest[..16]).unwrap_or_default())
}

fn watermarks(client: &BaseConsumer, source: &TopicPartition) -> Result<(Offset, Offset), Failure> {
    let (low, high) = client.fetch_watermarks(source.topic.as_str(), source.partition.0, TIMEOUT)?;
    match (Offset::new(low), Offset::new(high)) {
        (Some(low), Some(high)) => Ok((low, high)),
        _ => Err(Failure::Answer(format!("{source} has no offsets ({low}, {high})"))),
    }
}

fn resolve(
    client: &BaseConsumer,
    topic: &TopicName,
    partition_count: usize,
    start: &Start,
) -> Result<BTreeMap<Partition, Offset>, Failure> {
    let partitions = (0..i32::try_from(partition_count).unwrap_or(i32::MAX)).map(Partition);
    let by_time = match start {
        Start::Time(time) => offsets_at(client, topic, partitions.clone(), millis(*time))?,
        _ => BTreeMap::new(),
    };
    partitions
        .map(|partition| {
            let source = TopicPartition::new(topic, partition);
            let (low, high) = watermarks(client, &source)?;
            let offset = match start {
                Start::Earliest => low,
                Start::Latest => high,
                // No record that new: the end, so that nothing old is read.
                Start::Time(_) => by_time.get(&partition).copied().unwrap_or(high),
                Start::Last(count) => {
                    let back = i64::try_from(*count).unwrap_or(i64::MAX);
                    Offset::new(high.get() - back).unwrap_or_default().max(low)
                }
                Start::Offsets(topics) => {
                    topics.get(topic).and_then(|offsets| offsets.get(&partition)).copied().unwrap_or(low)
                }
            };
            Ok((partition, offset))
        })
        .collect()
}

fn millis(time: TimePoint) -> i64 {
    match time {
        TimePoint::At(millis) => millis,
        TimePoint::Ago(millis) => jiff::Timestamp::now().as_millisecond().saturating_sub(millis),
    }
}

fn offsets_at(
    client: &BaseConsumer,
    topic: &TopicName,
    partitions: impl Iterator<Item = Partition>,
    millis: i64,
) -> Result<BTreeMap<Partition, Offset>, Failure> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic.as_str(), partition.0, KafkaOffset::Offset(millis))?;
    }
    let found = client.offsets_for_times(list, TIMEOUT)?;
    let mut offsets = BTreeMap::new();
    for element in found.elements() {
        element.error()?;
        // -1: every record is older.
        if let Some(offset) = element.offset().to_raw().and_then(Offset::new) {
            offsets.insert(Partition(element.partition()), offset);
        }
    }
    Ok(offsets)
}
