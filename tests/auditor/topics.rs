//! The auditor's own clients of the brokers: makes topics, and reads them back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::manifest::Kind;
use crate::model::{self, Form};
use crate::services::wait_until;
use crate::workload::WorkloadOptions;

/// Of every record, so that a topic tells by itself what was written into it.
pub const SEQ: &str = "auditor.seq";
pub const UUID: &str = "auditor.uuid";
pub const KIND: &str = "auditor.kind";

/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Brokers that were killed a moment ago need about this long for new leaders, and the machine has few cores.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one poll waits.
const POLL_MAX: Duration = Duration::from_millis(200);

/// A partition of a topic.
pub type Place = (String, i32);

/// Which records a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    Committed,
    Uncommitted,
}

pub fn consumer(bootstrap: &str, group: &str, isolation: Isolation) -> Result<BaseConsumer, String> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        // Where retention has passed the place that is asked for.
        .set("auto.offset.reset", "earliest")
        // Held in memory at a time.
        .set("queued.max.messages.kbytes", "32768")
        .set(
            "isolation.level",
            match isolation {
                Isolation::Committed => "read_committed",
                Isolation::Uncommitted => "read_uncommitted",
            },
        );
    config.create().map_err(|e| format!("cannot make a consumer: {e}"))
}

/// Asks until there is an answer.
pub fn patiently<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let mut last = String::new();
    let mut answer = None;
    wait_until(Instant::now() + PATIENCE, || match ask() {
        Ok(found) => {
            answer = Some(found);
            true
        }
        Err(error) => {
            last = error;
            false
        }
    });
    answer.ok_or_else(|| format!("{what}: not within {} s: {last}", PATIENCE.as_secs()))
}

/// Creates the topics of the workload that are not there yet, and waits until all partitions have a leader.
pub fn create(options: &WorkloadOptions) -> Result<(), String> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &options.bootstrap);
    let admin: AdminClient<DefaultClientContext> =
        config.create().map_err(|e| format!("cannot make an admin client: {e}"))?;
    let names: Vec<(Form, String)> = Form::ALL
        .into_iter()
        .filter(|form| form.is_there(options.features))
        .map(|form| (form, model::topic(options, form)))
        .collect();
    // Frame, headers and a batch's own bytes come on top of the largest value.
    let largest = (options.largest + (1 << 20)).to_string();
    let in_sync = (options.replication - 1).max(1).to_string();
    let new: Vec<NewTopic<'_>> = names
        .iter()
        .map(|(form, name)| {
            let replication = TopicReplication::Fixed(options.replication);
            let topic = NewTopic::new(name, options.partitions, replication)
                .set("max.message.bytes", &largest)
                .set("min.insync.replicas", &in_sync);
            if *form != Form::Compact {
                return topic;
            }
            // Compacted while the workload runs: only closed segments are.
            let topic = topic.set("cleanup.policy", "compact").set("segment.ms", "1000");
            topic.set("min.cleanable.dirty.ratio", "0.01")
        })
        .collect();
    let wishes = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot make a runtime: {e}"))?;
    let created = runtime.block_on(admin.create_topics(&new, &wishes));
    for result in created.map_err(|e| format!("cannot create topics: {e}"))? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(format!("cannot create topic {topic}: {code}")),
        }
    }
    let topics: Vec<String> = names.into_iter().map(|(_, name)| name).collect();
    let expected = topics.len() * usize::try_from(options.partitions).unwrap_or_default();
    let asking = consumer(&options.bootstrap, "auditor", Isolation::Uncommitted)?;
    patiently("the topics have leaders", || {
        let found = partitions(&asking, &topics)?;
        if found.len() < expected { Err(format!("{} of {expected}", found.len())) } else { Ok(()) }
    })
}

/// All partitions of the topics; a topic that does not exist has none. An error while one of them has no leader: what is
/// in it cannot be read.
pub fn partitions(consumer: &BaseConsumer, topics: &[String]) -> Result<Vec<Place>, String> {
    let mut found = Vec::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT);
        let metadata = metadata.map_err(|e| format!("cannot ask for topic {topic}: {e}"))?;
        for topic in metadata.topics() {
            for partition in topic.partitions() {
                if partition.leader() < 0 {
                    return Err(format!("{}/{} has no leader", topic.name(), partition.id()));
                }
                found.push((topic.name().to_owned(), partition.id()));
            }
        }
    }
    Ok(found)
}

/// The first offset that is kept and the end of each partition. Under [`Isolation::Committed`] the end is the first
/// offset of a transaction that is still open.
pub fn bounds(
    bootstrap: &str,
    topics: &[String],
    isolation: Isolation,
) -> Result<BTreeMap<Place, (i64, i64)>, String> {
    let consumer = consumer(bootstrap, "auditor", isolation)?;
    patiently("bounds of the topics", || {
        let mut bounds = BTreeMap::new();
        for (topic, partition) in partitions(&consumer, topics)? {
            let found = consumer.fetch_watermarks(&topic, partition, TIMEOUT);
            let found =
                found.map_err(|e| format!("cannot ask for the bounds of {topic}/{partition}: {e}"))?;
            bounds.insert((topic, partition), found);
        }
        Ok(bounds)
    })
}

/// A record of the workload, as it is in a topic.
pub struct Found {
    pub partition: i32,
    pub offset: i64,
    pub seq: u64,
    pub uuid: String,
    pub kind: Kind,
    pub sha: String,
}

/// Reads a topic from the given offsets (else from the beginning) to its end, and gives what carries the workload's
/// headers. Nobody may write to it meanwhile.
pub fn read(
    bootstrap: &str,
    topic: &str,
    from: &BTreeMap<Place, i64>,
    isolation: Isolation,
) -> Result<Vec<Found>, String> {
    let consumer = consumer(bootstrap, "auditor", isolation)?;
    let topics = [topic.to_owned()];
    let places = patiently("the topic's partitions", || partitions(&consumer, &topics))?;
    let mut list = TopicPartitionList::new();
    let mut open = BTreeSet::new();
    for place in &places {
        let start = from.get(place).map_or(Offset::Beginning, |offset| Offset::Offset(*offset));
        let added = list.add_partition_offset(topic, place.1, start);
        added.map_err(|e| format!("cannot read {topic}/{}: {e}", place.1))?;
        open.insert(place.1);
    }
    consumer.assign(&list).map_err(|e| format!("cannot read {topic}: {e}"))?;
    let mut found = Vec::new();
    let (mut last, mut problem) = (Instant::now(), String::new());
    while !open.is_empty() {
        match consumer.poll(POLL_MAX) {
            Some(Ok(message)) => {
                last = Instant::now();
                found.extend(recognise(&message));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => problem = error.to_string(),
            None => {}
        }
        if last.elapsed() > PATIENCE {
            let seconds = PATIENCE.as_secs();
            return Err(format!("{topic}: nothing more came in {seconds} s, partitions {open:?}: {problem}"));
        }
    }
    Ok(found)
}

fn recognise(message: &BorrowedMessage<'_>) -> Option<Found> {
    let headers = message.headers()?;
    let text = |name: &str| {
        let header = headers.iter().find(|header| header.key == name)?;
        String::from_utf8(header.value?.to_vec()).ok()
    };
    let kind = match text(KIND)?.as_str() {
        "row" => Kind::Row,
        "tombstone" => Kind::Tombstone,
        "bad" => Kind::Bad,
        _ => return None,
    };
    Some(Found {
        partition: message.partition(),
        offset: message.offset(),
        seq: text(SEQ)?.parse().ok()?,
        uuid: text(UUID)?,
        kind,
        sha: model::sha(message.payload().unwrap_or_default()),
    })
}

/// As it is in the header.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Row => "row",
        Kind::Tombstone => "tombstone",
        Kind::Bad => "bad",
    }
}
