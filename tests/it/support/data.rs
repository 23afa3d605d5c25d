//! Topics, schemas and records for tests, and what is read back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::{Array, Int64Array, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedMessage;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::Services;

const TIMEOUT: Duration = Duration::from_secs(30);

fn client(services: &Services) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &services.bootstrap);
    config
}

pub fn create_topic(services: &Services, topic: &str, partitions: i32) {
    create_topic_with(services, topic, partitions, &[]);
}

/// A topic with settings of its own.
pub fn create_topic_with(services: &Services, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = client(services).create().unwrap();
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (name, value) in settings {
        new = new.set(name, value);
    }
    let created = admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(TIMEOUT)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for result in runtime.block_on(created).unwrap() {
        result.unwrap();
    }
}

/// Topics of one partition.
pub fn create_topics(services: &Services, topics: &[String]) {
    let admin: AdminClient<DefaultClientContext> = client(services).create().unwrap();
    let new: Vec<NewTopic<'_>> =
        topics.iter().map(|topic| NewTopic::new(topic, 1, TopicReplication::Fixed(1))).collect();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for result in runtime.block_on(admin.create_topics(&new, &options)).unwrap() {
        result.unwrap();
    }
}

/// Gives a topic `count` partitions in all.
pub fn add_partitions(services: &Services, topic: &str, count: usize) {
    let admin: AdminClient<DefaultClientContext> = client(services).create().unwrap();
    let wider = NewPartitions::new(topic, count);
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for result in runtime.block_on(admin.create_partitions(&[wider], &options)).unwrap() {
        result.unwrap();
    }
}

/// Deletes what is before `offset`, as retention would.
pub fn delete_records(services: &Services, topic: &str, partition: i32, offset: i64) {
    let admin: AdminClient<DefaultClientContext> = client(services).create().unwrap();
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deleted = runtime.block_on(admin.delete_records(&before, &options)).unwrap();
    for element in deleted.elements() {
        element.error().unwrap();
    }
}

/// Says what the registry asks of new versions of a subject: `BACKWARD`, …
pub fn set_compatibility(services: &Services, subject: &str, level: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let answer = reqwest::Client::new()
            .put(format!("{}/config/{subject}", services.registry))
            .header("content-type", "application/vnd.schemaregistry.v1+json")
            .body(json!({"compatibility": level}).to_string())
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    });
}

pub fn delete_topic(services: &Services, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = client(services).create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for deleted in runtime.block_on(admin.delete_topics(&[topic], &options)).unwrap() {
        deleted.unwrap();
    }
}

/// Registers an Avro schema and returns its id.
pub fn register(services: &Services, subject: &str, schema: &Value) -> u32 {
    register_body(services, subject, &json!({"schema": schema.to_string()}))
}

/// Registers a schema of any type, as the API takes it, and returns its id.
pub fn register_body(services: &Services, subject: &str, body: &Value) -> u32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let body = body.to_string();
        let answer = reqwest::Client::new()
            .post(format!("{}/subjects/{subject}/versions", services.registry))
            .header("content-type", "application/vnd.schemaregistry.v1+json")
            .body(body)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"));
        u32::try_from(answer["id"].as_u64().unwrap_or_else(|| panic!("{answer}"))).unwrap()
    })
}

/// A record's value in Confluent's frame, written by apache-avro.
pub fn framed(id: u32, schema: &apache_avro::Schema, value: &Value) -> Vec<u8> {
    let value = apache_avro::types::Value::try_from(value.clone()).unwrap().resolve(schema).unwrap();
    let writer = apache_avro::writer::datum::GenericDatumWriter::builder(schema).build().unwrap();
    let mut bytes = vec![0];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend(writer.write_value_to_vec(value).unwrap());
    bytes
}

/// One record to be written.
pub struct Record {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub timestamp: Option<i64>,
}

impl Record {
    pub fn new(partition: i32, value: Vec<u8>) -> Self {
        Self { partition, key: None, value: Some(value), timestamp: None }
    }
}

/// Writes all records and waits until the broker has them.
pub fn produce(services: &Services, topic: &str, records: impl IntoIterator<Item = Record>) {
    produce_all(services, records.into_iter().map(|record| (topic, record)));
}

/// Records of several topics.
pub fn produce_all<'a>(services: &Services, records: impl IntoIterator<Item = (&'a str, Record)>) {
    let producer: ThreadedProducer<_> = client(services)
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("linger.ms", "5")
        .create()
        .unwrap();
    for (topic, record) in records {
        loop {
            let mut message: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(record.partition);
            message.key = record.key.as_deref();
            message.payload = record.value.as_deref();
            message.timestamp = record.timestamp;
            match producer.send(message) {
                Ok(()) => break,
                // The queue is full: wait until some are delivered.
                Err(_) => producer.flush(Duration::from_millis(100)).unwrap_or_default(),
            }
        }
    }
    producer.flush(TIMEOUT).unwrap();
}

/// Writes records in one transaction, which is committed or aborted.
pub fn produce_transaction(
    services: &Services,
    topic: &str,
    records: impl IntoIterator<Item = Record>,
    is_committed: bool,
) {
    let producer: BaseProducer =
        client(services).set("transactional.id", super::unique("transaction")).create().unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    producer.begin_transaction().unwrap();
    for record in records {
        let mut message: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(record.partition);
        message.key = record.key.as_deref();
        message.payload = record.value.as_deref();
        producer.send(message).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(TIMEOUT).unwrap();
    if is_committed {
        producer.commit_transaction(TIMEOUT).unwrap();
    } else {
        producer.abort_transaction(TIMEOUT).unwrap();
    }
}

/// The group's committed offset and the end of every partition: equal when lag is 0.
pub fn committed_and_ends(
    services: &Services,
    group: &str,
    topic: &str,
) -> BTreeMap<i32, (Option<i64>, i64)> {
    let consumer: BaseConsumer = client(services).set("group.id", group).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
    let partitions: Vec<i32> =
        metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    let mut list = TopicPartitionList::new();
    for partition in &partitions {
        list.add_partition(topic, *partition);
    }
    let committed = consumer.committed_offsets(list, TIMEOUT).unwrap();
    partitions
        .into_iter()
        .map(|partition| {
            let (_, end) = consumer.fetch_watermarks(topic, partition, TIMEOUT).unwrap();
            let offset = committed.find_partition(topic, partition).map(|element| element.offset());
            let offset = match offset {
                Some(Offset::Offset(offset)) => Some(offset),
                _ => None,
            };
            (partition, (offset, end))
        })
        .collect()
}

/// What the group has committed: offset and string of each partition that has an offset.
pub fn committed(services: &Services, group: &str, topic: &str) -> BTreeMap<i32, (i64, String)> {
    let consumer: BaseConsumer = client(services).set("group.id", group).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition(topic, partition.id());
    }
    let committed = consumer.committed_offsets(list, TIMEOUT).unwrap();
    let each = committed.elements().into_iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition(), (offset, element.metadata().to_owned()))),
        _ => None,
    });
    each.collect()
}

/// Moves a group that has no members, as tools do: without a string.
pub fn reset_group(services: &Services, group: &str, topic: &str, offsets: &[(i32, i64)]) {
    let consumer: BaseConsumer = client(services).set("group.id", group).create().unwrap();
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).unwrap();
    }
    consumer.commit(&list, CommitMode::Sync).unwrap();
}

/// All rows of the JSON Lines files below `dir`.
pub fn json_rows(dir: &Path) -> Vec<Value> {
    let files = super::program::files(dir, ".jsonl");
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let rows = texts.flat_map(|text| {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    });
    rows.collect()
}

/// All rows of the Parquet files below `dir` that a globbing reader sees.
pub fn parquet_rows(dir: &Path) -> (Vec<RecordBatch>, usize) {
    let mut batches = Vec::new();
    let mut files = 0;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                files += 1;
                let file = std::fs::File::open(&path).unwrap();
                let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
                batches.extend(reader.map(Result::unwrap));
            }
        }
    }
    (batches, files)
}

/// A column of whole numbers over all batches.
pub fn numbers(batches: &[RecordBatch], column: &str) -> Vec<i64> {
    let mut all = Vec::new();
    for batch in batches {
        let array = batch.column_by_name(column).unwrap_or_else(|| panic!("{}", batch.schema()));
        let array = array.as_any().downcast_ref::<Int64Array>().unwrap();
        all.extend((0..array.len()).map(|row| array.value(row)));
    }
    all
}

/// As [`consume`], but for what is not committed, or was aborted.
pub fn consume_committed(services: &Services, topic: &str) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = client(services)
        .set("group.id", super::unique("reader"))
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
    let mut list = TopicPartitionList::new();
    let partitions = metadata.topics()[0].partitions();
    for partition in partitions {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut messages, mut ended) = (Vec::new(), BTreeSet::new());
    let deadline = Instant::now() + TIMEOUT;
    while ended.len() < partitions.len() {
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(message)) => messages.push(message.detach()),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            // A broker that has just come back.
            other => assert!(Instant::now() < deadline, "{topic}: {other:?}"),
        }
    }
    messages
}

/// Where a partition begins and ends. A broker that has just come back says for a moment that it is not its leader.
fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match consumer.fetch_watermarks(topic, partition, TIMEOUT) {
            Ok(bounds) => return bounds,
            Err(error) => assert!(Instant::now() < deadline, "{topic}/{partition}: {error}"),
        }
    }
}

/// Everything in a topic: key, value and headers, in the order of each partition.
pub fn consume(services: &Services, topic: &str) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = client(services).set("group.id", super::unique("reader")).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
    let mut list = TopicPartitionList::new();
    let mut left = 0;
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = watermarks(&consumer, topic, partition.id());
        left += high - low;
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut messages = Vec::new();
    while (messages.len() as i64) < left {
        let message = consumer.poll(TIMEOUT).expect("a record in time").unwrap();
        messages.push(message.detach());
    }
    messages
}
