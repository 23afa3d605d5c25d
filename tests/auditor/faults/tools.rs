//! What the scenarios about data, machine and isolation need beside the stand: topics of plain text, and a comparison
//! of what is in a sink with what the broker holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication, TopicResult};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext, Message, Offset, TopicPartitionList};
use serde_json::Value;

use super::Outcome;
use crate::stand::{Instance, eventually, pause, tail};

/// Longer than anything takes on a busy machine: what hangs, fails.
pub const LIMIT: Duration = Duration::from_secs(120);

/// For one call to the broker.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A scenario that held: nothing lost, nothing doubled.
pub fn held_for(rounds: u32, recovery: Option<Duration>, note: impl Into<String>) -> Outcome {
    Outcome { rounds, lost: 0, doubled: 0, recovery, note: note.into() }
}

/// `what` went wrong, for `map_err`.
pub fn failed<E: Display>(what: &str) -> impl Fn(E) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// An error that says `what`, unless `is_so`.
pub fn ensure(is_so: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(what()) }
}

/// Waits for something that may itself fail to be looked at, and says what the last look said.
pub fn until_ok(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<(), String>,
) -> Result<(), String> {
    let mut last = String::new();
    let found = eventually(what, limit, || match look() {
        Ok(()) => true,
        Err(why) => {
            last = why;
            // A look may read many files or ask the broker.
            pause(Duration::from_millis(100));
            false
        }
    });
    found.map_err(|error| format!("{error}: {last}"))
}

/// Values longer than this are compared by length and hash: many megabytes of them would have to be held.
const SHOWN_MAX: usize = 1000;

fn shown(value: &str) -> String {
    if value.len() <= SHOWN_MAX {
        return value.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(value.as_bytes());
    format!("{} bytes of hash {:x}", value.len(), hasher.finish())
}

/// A record of plain text, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub partition: i32,
    pub offset: i64,
    pub value: String,
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// What is done to topics.
pub struct Topics {
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

impl Topics {
    pub fn of(bootstrap: &str) -> Result<Self, String> {
        let admin = client(bootstrap).create().map_err(failed("no admin client"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { admin, runtime: runtime.map_err(failed("no runtime"))? })
    }

    pub fn create(
        &self,
        topic: &str,
        replication: TopicReplication<'_>,
        settings: &[(&str, &str)],
    ) -> Result<(), String> {
        let mut new = NewTopic::new(topic, 1, replication);
        for (name, value) in settings {
            new = new.set(name, value);
        }
        each(self.runtime.block_on(self.admin.create_topics([&new], &options())))
    }

    pub fn delete(&self, topic: &str) -> Result<(), String> {
        each(self.runtime.block_on(self.admin.delete_topics(&[topic], &options())))
    }

    /// Gives a topic `count` partitions in all.
    pub fn widen(&self, topic: &str, count: usize) -> Result<(), String> {
        let wider = NewPartitions::new(topic, count);
        each(self.runtime.block_on(self.admin.create_partitions([&wider], &options())))
    }

    /// Deletes what is before `offset`, as retention would.
    pub fn delete_records(&self, topic: &str, partition: i32, offset: i64) -> Result<(), String> {
        let what = "records cannot be deleted";
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(failed(what))?;
        let deleted = self.runtime.block_on(self.admin.delete_records(&before, &options()));
        for element in deleted.map_err(failed(what))?.elements() {
            element.error().map_err(failed(what))?;
        }
        Ok(())
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(CALL_LIMIT)).request_timeout(Some(CALL_LIMIT))
}

fn each(results: KafkaResult<Vec<TopicResult>>) -> Result<(), String> {
    for result in results.map_err(failed("the brokers do not answer"))? {
        result.map_err(|(topic, code)| format!("topic {topic}: {code}"))?;
    }
    Ok(())
}

/// Counts what the brokers have taken.
#[derive(Default)]
struct Receipts {
    taken: AtomicUsize,
}

impl ClientContext for Receipts {}

impl ProducerContext for Receipts {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.taken.fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
    }
}

/// Writes plain text.
pub struct Writer {
    producer: BaseProducer<Receipts>,
    sent: usize,
}

impl Writer {
    pub fn new(bootstrap: &str) -> Result<Self, String> {
        Self::with(bootstrap, &[])
    }

    /// One that writes in transactions. `id` names it; a later one of the same name ends what this one left open.
    pub fn transactional(bootstrap: &str, id: &str) -> Result<Self, String> {
        let settings = [("transactional.id", id), ("transaction.timeout.ms", "600000")];
        let writer = Self::with(bootstrap, &settings)?;
        writer.producer.init_transactions(CALL_LIMIT).map_err(failed("no transactions"))?;
        Ok(writer)
    }

    fn with(bootstrap: &str, settings: &[(&str, &str)]) -> Result<Self, String> {
        let mut config = client(bootstrap);
        config.set("enable.idempotence", "true").set("linger.ms", "5");
        config.set("topic.metadata.refresh.interval.ms", "200").set("message.max.bytes", "6000000");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        let producer = config.create_with_context(Receipts::default()).map_err(failed("no producer"))?;
        Ok(Self { producer, sent: 0 })
    }

    pub fn send(
        &mut self,
        topic: &str,
        partition: i32,
        key: Option<&str>,
        value: &str,
    ) -> Result<(), String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut record: BaseRecord<'_, str, str> =
                BaseRecord::to(topic).partition(partition).payload(value);
            record.key = key;
            match self.producer.send(record) {
                Ok(()) => break,
                // The queue is full, or the partition was added a moment ago.
                Err((
                    KafkaError::MessageProduction(
                        RDKafkaErrorCode::QueueFull | RDKafkaErrorCode::UnknownPartition,
                    ),
                    _,
                )) if Instant::now() < deadline => {
                    self.producer.poll(Duration::from_millis(50));
                }
                Err((error, _)) => return Err(format!("cannot write to {topic}: {error}")),
            }
        }
        self.sent += 1;
        Ok(())
    }

    /// Waits until the brokers have everything; how many records that are by now.
    pub fn flush(&self) -> Result<usize, String> {
        self.producer.flush(LIMIT).map_err(failed("cannot write"))?;
        let taken = self.producer.context().taken.load(Ordering::Relaxed);
        ensure(taken == self.sent, || format!("the brokers have taken {taken} of {} records", self.sent))?;
        Ok(taken)
    }

    pub fn begin(&self) -> Result<(), String> {
        self.producer.begin_transaction().map_err(failed("no transaction"))
    }

    pub fn commit(&self) -> Result<(), String> {
        self.producer.commit_transaction(CALL_LIMIT).map_err(failed("no commit"))
    }

    pub fn abort(&self) -> Result<(), String> {
        self.flush()?;
        self.producer.abort_transaction(CALL_LIMIT).map_err(failed("no abort"))
    }
}

/// Writes the numbers of `range` as text into one partition, in one go.
pub fn write_numbers(bootstrap: &str, topic: &str, partition: i32, range: Range<i64>) -> Result<(), String> {
    let mut writer = Writer::new(bootstrap)?;
    for number in range {
        writer.send(topic, partition, None, &number.to_string())?;
    }
    writer.flush().map(drop)
}

/// Records whose value is the number of their offset, as [`write_numbers`] leaves them in a new topic.
pub fn numbered(ranges: &[Range<i64>]) -> BTreeSet<Row> {
    let offsets = ranges.iter().cloned().flatten();
    offsets.map(|offset| Row { partition: 0, offset, value: offset.to_string() }).collect()
}

fn reader(bootstrap: &str, group: &str) -> Result<BaseConsumer, String> {
    let mut config = client(bootstrap);
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true");
    config.create().map_err(failed("no reader"))
}

fn partitions(reader: &BaseConsumer, topic: &str) -> Result<BTreeSet<i32>, String> {
    let metadata = reader.fetch_metadata(Some(topic), CALL_LIMIT).map_err(failed(topic))?;
    let found: BTreeSet<i32> =
        metadata.topics().iter().flat_map(|found| found.partitions().iter().map(|one| one.id())).collect();
    ensure(!found.is_empty(), || format!("topic {topic} has no partitions"))?;
    Ok(found)
}

/// Everything a read_committed reader sees of a topic, up to its end as it is now.
pub fn held(bootstrap: &str, topic: &str) -> Result<BTreeSet<Row>, String> {
    let reader = reader(bootstrap, "auditor-reader")?;
    let mut open = partitions(&reader, topic)?;
    let mut list = TopicPartitionList::new();
    for partition in &open {
        list.add_partition_offset(topic, *partition, Offset::Beginning).map_err(failed(topic))?;
    }
    reader.assign(&list).map_err(failed(topic))?;
    let mut rows = BTreeSet::new();
    let mut trouble = String::new();
    let deadline = Instant::now() + LIMIT;
    while !open.is_empty() {
        ensure(Instant::now() < deadline, || format!("{topic} cannot be read to its end: {trouble}"))?;
        match reader.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => {
                let value = shown(&String::from_utf8_lossy(message.payload().unwrap_or_default()));
                rows.insert(Row { partition: message.partition(), offset: message.offset(), value });
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => trouble = error.to_string(),
        }
    }
    Ok(rows)
}

/// What the group has committed of each partition, and where that ends.
pub fn committed_and_ends(
    bootstrap: &str,
    group: &str,
    topic: &str,
) -> Result<BTreeMap<i32, (Option<i64>, i64)>, String> {
    let reader = reader(bootstrap, group)?;
    let all = partitions(&reader, topic)?;
    let mut list = TopicPartitionList::new();
    for partition in &all {
        list.add_partition(topic, *partition);
    }
    let committed = reader.committed_offsets(list, CALL_LIMIT).map_err(failed("no committed offsets"))?;
    let mut found = BTreeMap::new();
    for partition in all {
        let (_, end) = reader.fetch_watermarks(topic, partition, CALL_LIMIT).map_err(failed(topic))?;
        let offset = match committed.find_partition(topic, partition).map(|element| element.offset()) {
            Some(Offset::Offset(offset)) => Some(offset),
            _ => None,
        };
        found.insert(partition, (offset, end));
    }
    Ok(found)
}

/// The files below a directory whose names end in `suffix`, in the order of their names.
pub fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The rows of a sink of JSON Lines that are in sight. Within a file, those of a partition have to be in order.
pub fn rows(dir: &Path) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for file in files(dir, ".jsonl") {
        let text = fs::read_to_string(&file).map_err(failed("a file cannot be read"))?;
        let mut last: BTreeMap<i32, i64> = BTreeMap::new();
        for line in text.lines() {
            let row = row(line).ok_or_else(|| format!("{}: not a row: {line}", file.display()))?;
            let before = last.insert(row.partition, row.offset);
            ensure(before.is_none_or(|before| before < row.offset), || {
                format!("{}: out of order at {row:?}", file.display())
            })?;
            rows.push(row);
        }
    }
    Ok(rows)
}

fn row(line: &str) -> Option<Row> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some(Row {
        partition: line["_partition"].as_i64()?.try_into().ok()?,
        offset: line["_offset"].as_i64()?,
        value: shown(line["value"].as_str()?),
    })
}

/// How what is in a sink differs from what should be.
#[derive(Debug, Default)]
pub struct Difference {
    pub lost: Vec<Row>,
    pub doubled: Vec<Row>,
    pub phantom: Vec<Row>,
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, rows) in [("lost", &self.lost), ("doubled", &self.doubled), ("phantom", &self.phantom)] {
            let first = rows.first().map(|row| format!(", the first {row:?}")).unwrap_or_default();
            write!(f, "{} {what}{first}; ", rows.len())?;
        }
        Ok(())
    }
}

/// What is missing, there more than once, or there and should not be.
pub fn compare(expected: &BTreeSet<Row>, found: &[Row]) -> Difference {
    let mut difference = Difference::default();
    let mut seen = BTreeSet::new();
    for row in found {
        if !seen.insert(row) {
            difference.doubled.push(row.clone());
        } else if !expected.contains(row) {
            difference.phantom.push(row.clone());
        }
    }
    difference.lost = expected.iter().filter(|row| !seen.contains(row)).cloned().collect();
    difference
}

/// Exactly these rows, each once, are in sight below `dir`.
pub fn expect_rows(dir: &Path, expected: &BTreeSet<Row>) -> Result<(), String> {
    let difference = compare(expected, &rows(dir)?);
    let is_same =
        difference.lost.is_empty() && difference.doubled.is_empty() && difference.phantom.is_empty();
    ensure(is_same, || format!("{}: {difference}", dir.display()))
}

/// The `lost` moves of a sink's commit log: partition, start, end.
pub fn lost_moves(dir: &Path) -> Result<Vec<(i64, i64, i64)>, String> {
    let mut found = Vec::new();
    for file in files(&dir.join("_sidestream/log"), ".entry") {
        let text = fs::read_to_string(&file).map_err(failed("an entry cannot be read"))?;
        let entry: Value = serde_json::from_str(&text).map_err(failed("an entry"))?;
        for step in entry["moves"].as_array().into_iter().flatten() {
            if step["reason"] == "lost" {
                let number = |value: &Value| value.as_i64().ok_or_else(|| format!("not a move: {step}"));
                let (start, end) = (number(&step["start"])?, number(&step["end"]["next"])?);
                found.push((number(&step["partition"])?, start, end));
            }
        }
    }
    Ok(found)
}

/// Waits until a line of the log has all of these texts, while the program runs.
pub fn await_said(instance: &mut Instance, texts: &[&str]) -> Result<(), String> {
    let what = format!("the log says {texts:?}");
    let mut alive = Ok(());
    let said = eventually(&what, LIMIT, || {
        alive = instance.expect_running();
        alive.is_err() || instance.said(texts) > 0
    });
    alive?;
    said.map_err(|error| format!("{error}:\n{}", tail(&instance.log())))
}

/// The most memory that a process has held so far, in bytes.
pub fn peak_memory(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(failed(&path))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    number.map(|kibibytes| kibibytes << 10).ok_or_else(|| format!("{path} does not say"))
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> Result<usize, String> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).map_err(failed(&path))?.count())
}

/// Processor time that a process has used, all its threads, in ticks of the kernel: hundredths of a second.
pub fn ticks(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(failed(&path))?;
    // The name, in brackets, may hold spaces. `utime` and `stime` are the 12th and 13th word behind it.
    let behind = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let words = behind.split_whitespace().skip(11).take(2);
    let words: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    match words.as_slice() {
        [user, system] => Ok(user + system),
        _ => Err(format!("{path} cannot be read: {stat}")),
    }
}
