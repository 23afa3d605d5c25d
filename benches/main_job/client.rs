//! What the benchmark itself does with broker and registry: registers a schema, fills a topic, drains topics.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, anyhow};
use fastrand::Rng;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::plan::Kafka;
use crate::settings;
use crate::shapes::Shape;

/// Of each topic. More than one, so that batches are made of several partitions, as they are in life; and few, as
/// the machine has few cores and all of them are fetched from one broker anyway.
pub const PARTITIONS: i32 = 2;

/// For one answer of broker or registry.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long one poll waits; the parent ends a drain that does not end.
const POLL_MAX: Duration = Duration::from_millis(100);

fn kafka(bootstrap: &str, group: &str) -> Kafka {
    let properties = [("bootstrap.servers", bootstrap), ("group.id", group)];
    let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Kafka { properties: BTreeMap::from(properties) }
}

/// Registers a schema and returns its id. Plain HTTP: a client for more would have to be linked.
pub fn register(registry: &str, subject: &str, schema: &str) -> anyhow::Result<u32> {
    let plain = registry.trim_end_matches('/').strip_prefix("http://");
    let plain = plain.context("the benchmark speaks plain http:// to a registry, nothing else")?;
    let (host, base) = plain.split_at(plain.find('/').unwrap_or(plain.len()));
    let body = serde_json::json!({"schema": schema}).to_string();
    let request = format!(
        "POST {base}/subjects/{subject}/versions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Content-Type: application/vnd.schemaregistry.v1+json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream =
        TcpStream::connect(host).context("failed to reach the registry; its URL needs a port")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let id = answer.split_once("\"id\":").map(|(_, rest)| rest.trim_start());
    let digits: String = id.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("the registry gave no id: {answer}"))
}

/// A topic without records.
pub fn create(bootstrap: &str, topic: &str) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        settings::producer_config(&kafka(bootstrap, "")).create()?;
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for created in runtime.block_on(admin.create_topics([&new], &options))? {
        created.map_err(|(topic, code)| anyhow!("failed to create `{topic}`: {code}"))?;
    }
    Ok(())
}

/// Writes the records of these numbers, `bad` of a hundred bad ones. Returns the bytes of their values.
pub fn fill(
    bootstrap: &str,
    topic: &str,
    shape: &Shape,
    schema_id: u32,
    numbers: Range<i64>,
    bad: i64,
) -> anyhow::Result<usize> {
    let mut config = settings::producer_config(&kafka(bootstrap, ""));
    // Not compressed: what a codec takes would be in both sides of the ratio and make it look better.
    config.set("compression.type", "none").set("linger.ms", "20");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create()?;
    let mut random = Rng::with_seed(numbers.start as u64);
    let (mut value, mut bytes) = (Vec::new(), 0);
    for number in numbers {
        shape.write_some_bad(&mut value, schema_id, number, &mut random, bad);
        bytes += value.len();
        let key = (number % 1000).to_string();
        // Pairs: a view keeps odd numbers, which must not be one partition's.
        let partition = (number / 2 % i64::from(PARTITIONS)) as i32;
        let mut record = BaseRecord::to(topic).partition(partition).key(&key).payload(&value);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    // A timeout only means to try again.
                    producer.flush(Duration::from_millis(50)).ok();
                }
                Err((error, _)) => return Err(error).context("failed to write a record"),
            }
        }
    }
    producer.flush(TIMEOUT).context("failed to write all records")?;
    Ok(bytes)
}

/// Reads the topics from their beginning to their end, as fast as librdkafka hands out records. How many there were,
/// and the bytes of their keys and values.
pub fn drain(bootstrap: &str, topics: &[&str]) -> anyhow::Result<(usize, usize)> {
    let config = settings::consumer_config(&kafka(bootstrap, "bench-drain"), Duration::from_secs(30));
    let consumer: BaseConsumer = config.create()?;
    let mut list = TopicPartitionList::new();
    for topic in topics {
        for partition in 0..PARTITIONS {
            list.add_partition_offset(topic, partition, Offset::Offset(0))?;
        }
    }
    consumer.assign(&list)?;
    let (mut open, mut records, mut bytes) = (list.count(), 0, 0);
    while open > 0 {
        match consumer.poll(POLL_MAX) {
            Some(Ok(message)) => {
                records += 1;
                bytes += message.key_len() + message.payload_len();
            }
            // Once a partition: nobody writes meanwhile.
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => return Err(error).context("failed to read"),
            None => {}
        }
    }
    Ok((records, bytes))
}
