//! Questions about the cluster, through a client that is no member of the group.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset as KafkaOffset, TopicPartitionList};
use sha2::{Digest, Sha256};

use crate::model::{
    Classify, ClusterId, Fault, Hint, Offset, Partition, Start, TimePoint, TopicId, TopicName, TopicPartition,
};

use super::event::Commit;
use super::ffi::{self, Described};

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
    #[error("the group has {count} live members, which would share the partitions of this run")]
    Members { count: usize },
}

impl Classify for ClusterError {
    fn fault(&self) -> Fault {
        // Brokers come back, topics get created: the caller asks again.
        Fault::Transient
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::Members { .. } => {
                Some("end them; or read together with them: `--join`; or use another `group.id`".into())
            }
            Self::NoTopic { .. } => Some("create the topic, or correct its name under `topics:`".into()),
            _ => Some("check `bootstrap.servers` and that the brokers' advertised listeners can be reached from here".into()),
        }
    }
}

/// What the engine asks of the cluster. Questions about many topics are one question: a pattern may match thousands.
#[async_trait]
pub trait Cluster: Send + Sync {
    async fn id(&self) -> Result<ClusterId, ClusterError>;
    /// How many members the group has, those included that died and whose session lasts.
    async fn member_count(&self) -> Result<usize, ClusterError>;
    /// The names of all topics.
    async fn names(&self) -> Result<BTreeSet<TopicName>, ClusterError>;
    /// What each of `topics` is, or why that is not known.
    async fn describe(
        &self,
        topics: &BTreeSet<TopicName>,
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, ClusterError>>, ClusterError>;
    /// Where each start is in its partition, now.
    async fn resolve(
        &self,
        wanted: &[(TopicPartition, &Start)],
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClusterError>;
    /// The first offset kept and the next one written (the last stable one) of each partition.
    async fn bounds(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, Offset)>, ClusterError>;
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
    /// One that answers with the group's offsets as they are, whatever an open transaction may still make of them: who
    /// could end it has to be able to begin.
    pub fn new(mut config: ClientConfig) -> Self {
        config.set("isolation.level", "read_uncommitted");
        Self { config, client: Arc::default() }
    }

    /// One that answers with the group's offsets only when no open transaction can move them any more.
    pub fn settled(mut config: ClientConfig) -> Self {
        config.set("isolation.level", "read_committed");
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
            Err(error) => Err(ClusterError::Answer { what, problem: error.to_string() }),
        }
    }
}

impl KafkaCluster {
    /// Offsets of many partitions; those that have none are left out.
    async fn offsets(
        &self,
        what: &'static str,
        wanted: Vec<(TopicPartition, KafkaOffset)>,
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClusterError> {
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.ask(what, move |client| {
            let mut list = TopicPartitionList::with_capacity(wanted.len());
            for (source, offset) in &wanted {
                list.add_partition_offset(source.topic.as_str(), source.partition.0, *offset)?;
            }
            let found = ffi::list_offsets(client, &list, TIMEOUT).map_err(Failure::Answer)?;
            // -1: every record is older than the time that was asked for.
            Ok(found.into_iter().filter_map(|(source, at)| Some((source, Offset::new(at)?))).collect())
        })
        .await
    }
}

impl KafkaCluster {
    /// Commits offsets for the group from outside. The brokers take that only while it has no members.
    ///
    /// # Errors
    /// If a partition was not committed; others may have been.
    pub async fn commit(&self, commits: Vec<Commit>) -> Result<(), ClusterError> {
        if commits.is_empty() {
            return Ok(());
        }
        self.ask("a commit of the group's offsets", move |client| {
            let mut list = TopicPartitionList::with_capacity(commits.len());
            for Commit { source, next, epoch, metadata } in &commits {
                let mut element = list.add_partition(source.topic.as_str(), source.partition.0);
                element.set_metadata(metadata);
                element.set_offset(KafkaOffset::Offset(next.get()))?;
                if let Some(epoch) = epoch {
                    ffi::set_epoch(&mut list, source, *epoch);
                }
            }
            client.commit(&list, CommitMode::Sync).map_err(Failure::Client)
        })
        .await
    }
}

enum Failure {
    Client(KafkaError),
    Answer(String),
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

    async fn member_count(&self) -> Result<usize, ClusterError> {
        let group = self.config.get("group.id").unwrap_or_default().to_owned();
        self.ask("the group's members", move |client| {
            let groups = client.client().fetch_group_list(Some(&group), TIMEOUT)?;
            Ok(groups
                .groups()
                .iter()
                .filter(|found| found.name() == group)
                .map(|found| found.members().len())
                .sum())
        })
        .await
    }

    async fn names(&self) -> Result<BTreeSet<TopicName>, ClusterError> {
        self.ask("the names of topics", |client| {
            let metadata = client.fetch_metadata(None, TIMEOUT)?;
            Ok(metadata.topics().iter().map(|topic| TopicName::new(topic.name())).collect())
        })
        .await
    }

    async fn describe(
        &self,
        topics: &BTreeSet<TopicName>,
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, ClusterError>>, ClusterError> {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let asked: Vec<TopicName> = topics.iter().cloned().collect();
        let what = "topic ids";
        let mut described = self
            .ask(what, move |client| {
                let metadata = client.fetch_metadata(Some(asked[0].as_str()), TIMEOUT)?;
                let broker = metadata.brokers().first();
                let broker = broker.ok_or_else(|| Failure::Answer("no broker answered".to_owned()))?.id();
                ffi::describe_topics(client, broker, &asked, TIMEOUT).map_err(Failure::Answer)
            })
            .await?;
        let found = topics.iter().map(|topic| {
            let info = match described.remove(topic) {
                Some(Described::Topic { id, partition_count }) => {
                    Ok(TopicInfo { id: known_id(id, topic), partition_count })
                }
                Some(Described::Missing) => Err(ClusterError::NoTopic { topic: topic.clone() }),
                Some(Described::Failed(problem)) => {
                    Err(ClusterError::Answer { what, problem: format!("topic `{topic}`: {problem}") })
                }
                None => {
                    let problem = format!("nothing was said of topic `{topic}`");
                    Err(ClusterError::Answer { what, problem })
                }
            };
            (topic.clone(), info)
        });
        Ok(found.collect())
    }

    async fn resolve(
        &self,
        wanted: &[(TopicPartition, &Start)],
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClusterError> {
        let all: Vec<TopicPartition> = wanted.iter().map(|(source, _)| source.clone()).collect();
        let bounds = self.bounds(&all).await?;
        let timed = wanted.iter().filter_map(|(source, start)| match start {
            Start::Time(time) => Some((source.clone(), KafkaOffset::Offset(millis(*time)))),
            _ => None,
        });
        let by_time = self.offsets("offsets of a time", timed.collect()).await?;
        let resolved = wanted.iter().filter_map(|(source, start)| {
            let at = start.resolve(source, *bounds.get(source)?, by_time.get(source).copied());
            Some((source.clone(), at))
        });
        Ok(resolved.collect())
    }

    async fn bounds(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, Offset)>, ClusterError> {
        let what = "the bounds of partitions";
        let at = |offset| sources.iter().map(|source| (source.clone(), offset)).collect();
        let ends = self.offsets(what, at(KafkaOffset::End)).await?;
        let mut firsts = self.offsets(what, at(KafkaOffset::Beginning)).await?;
        let mut bounds = BTreeMap::new();
        for source in sources {
            let (Some(first), Some(end)) = (firsts.remove(source), ends.get(source)) else {
                return Err(ClusterError::Answer { what, problem: format!("nothing was said of {source}") });
            };
            bounds.insert(source.clone(), (first, *end));
        }
        Ok(bounds)
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

/// Brokers without topic ids answer zeros for all topics. Then the name has to do, and a topic that is
/// deleted and created again cannot be told from before.
fn known_id(id: TopicId, topic: &TopicName) -> TopicId {
    if !id.0.is_nil() {
        return id;
    }
    let digest = Sha256::digest(topic.as_str().as_bytes());
    TopicId(uuid::Uuid::from_slice(&digest[..16]).unwrap_or_default())
}

fn millis(time: TimePoint) -> i64 {
    match time {
        // Kafka knows no time before 1970.
        TimePoint::At(millis) => millis.max(0),
        TimePoint::Ago(millis) => jiff::Timestamp::now().as_millisecond().saturating_sub(millis).max(0),
    }
}
