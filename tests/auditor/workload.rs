//! Writes the workload, and finds out what became of it.
//!
//! One thread writes plain records, one writes transactions. Every record has a number (seq), from which its topic and
//! content follow, and carries it in a header. When writing is over the topics are read back: they alone say what
//! became of records whose outcome a client never learned. What the brokers acknowledged has to be among it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use serde_json::{Value, json};

use crate::manifest::{Manifest, Written};
use crate::model::{self, Draft, FIRST_VERSIONS, Form, LAST_VERSION};
use crate::services::wait_until;
use crate::topics::{self, Isolation, Place};

pub use crate::routes::routes_yaml;

/// For one step of a transaction.
const TIMEOUT: Duration = Duration::from_secs(10);
/// For one answer of the registry. Short: all plain records wait meanwhile.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than any outage of a scenario: what takes longer is a defect of the scenario.
const OUTAGE_MAX: Duration = Duration::from_secs(300);
/// New producers in place of failed ones, in one run.
const PRODUCERS_MAX: usize = 50;
/// Records between two attempts to register the schema that comes in the middle.
const SCHEMA_EVERY: u64 = 500;
/// After this many records the schema changes, if the run is not shorter.
const SCHEMA_AFTER: u64 = 1000;
/// Of a hundred transactions.
const ABORTED: u32 = 30;
const TRANSACTION_RECORDS_MAX: usize = 20;

#[derive(Debug, Clone)]
pub struct WorkloadOptions {
    pub bootstrap: String,
    /// Base URL of the registry, for registering.
    pub registry: String,
    pub seed: u64,
    /// Of the names of topics.
    pub prefix: String,
    /// Records per second over all topics; 0: as fast as it can.
    pub rate: u32,
    pub partitions: i32,
    pub replication: i32,
    /// Bytes of the largest value. Sizes are from 0 to this; most are small.
    pub largest: usize,
    pub features: Features,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// 30 % of them aborted.
    pub transactions: bool,
    pub compacted: bool,
    /// 5 % of the records, where the format can be bad.
    pub bad: bool,
    /// The Avro schema gets a field with a default in the middle.
    pub schema_changes: bool,
}

/// The topics of the workload: `<prefix>.avro`, `.json`, `.raw`, `.txn` and `.compact`, the last two if they are wanted.
pub fn topics(options: &WorkloadOptions) -> Vec<String> {
    let forms = Form::ALL.into_iter().filter(|form| form.is_there(options.features));
    forms.map(|form| model::topic(options, form)).collect()
}

/// Threads that write.
pub struct Workload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<(), String>>>,
    /// Where the topics ended before.
    from: BTreeMap<Place, i64>,
}

impl Workload {
    /// Makes topics and registers schemas; what is there already stays.
    pub fn prepare(options: &WorkloadOptions) -> Result<(), String> {
        topics::create(options)?;
        // Another registry may have had this address before.
        known().retain(|(registry, subject, _), _| {
            *registry != options.registry || *subject != subject_of(options)
        });
        Schemas::new(options).map(drop)
    }

    /// Writes `count` records and says where they are.
    pub fn write(options: &WorkloadOptions, count: u64, first_seq: u64) -> Result<Manifest, String> {
        Workload::begin(options, first_seq, Some(count)).finish()
    }

    /// Writes in the background, also over outages of the brokers, until [`Workload::stop`].
    pub fn start(options: &WorkloadOptions, first_seq: u64) -> Workload {
        Workload::begin(options, first_seq, None)
    }

    /// Ends writing and says what is in the topics.
    pub fn stop(self) -> Result<Manifest, String> {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        self.finish()
    }

    fn begin(options: &WorkloadOptions, first_seq: u64, count: Option<u64>) -> Workload {
        // Only a shortcut: without it the topics are read from their beginning.
        let ends = topics::bounds(&options.bootstrap, &topics(options), Isolation::Uncommitted);
        let from = ends.unwrap_or_default().into_iter().map(|(place, (_, end))| (place, end)).collect();
        let shared = Arc::new(Shared {
            options: options.clone(),
            first_seq,
            end_seq: count.map_or(u64::MAX, |count| first_seq + count),
            begun: Instant::now(),
            is_stopped: AtomicBool::new(false),
            reached: [AtomicU64::new(first_seq), AtomicU64::new(first_seq)],
            acknowledged: Mutex::new(Vec::new()),
        });
        let plain = shared.clone();
        let mut threads = vec![std::thread::spawn(move || write_plain(&plain))];
        if options.features.transactions {
            let transactions = shared.clone();
            threads.push(std::thread::spawn(move || write_transactions(&transactions)));
        }
        Workload { shared, threads, from }
    }

    fn finish(mut self) -> Result<Manifest, String> {
        for thread in std::mem::take(&mut self.threads) {
            thread.join().map_err(|_| "a thread of the workload panicked".to_owned())??;
        }
        let acknowledged = std::mem::take(&mut *self.shared.lock());
        let seqs = self.shared.first_seq..self.shared.reached();
        read_back(&self.shared.options, &self.from, &seqs, acknowledged)
    }
}

impl Drop for Workload {
    /// Also where a scenario fails in the middle.
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
    }
}

/// What the threads share.
struct Shared {
    options: WorkloadOptions,
    first_seq: u64,
    end_seq: u64,
    begun: Instant,
    is_stopped: AtomicBool,
    /// The next number of each thread.
    reached: [AtomicU64; 2],
    /// Records of which a broker said that it has them; of transactions, whatever became of these.
    acknowledged: Mutex<Vec<Written>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Written>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }

    fn reached(&self) -> u64 {
        self.reached.iter().map(|next| next.load(Ordering::SeqCst)).fold(self.first_seq, u64::max)
    }

    /// The next number from `*seq` on that `is_mine`, once it is due. `None`: it is over.
    fn next(&self, thread: usize, seq: &mut u64, is_mine: fn(Form) -> bool) -> Option<u64> {
        while *seq < self.end_seq && !self.is_stopped() {
            let found = *seq;
            *seq += 1;
            self.reached[thread].store(*seq, Ordering::SeqCst);
            if is_mine(model::form_of(found, self.options.features)) {
                self.await_turn(found);
                return (!self.is_stopped()).then_some(found);
            }
        }
        None
    }

    /// Threads keep the pace by number, so that one that was held up catches up.
    fn await_turn(&self, seq: u64) {
        if self.options.rate > 0 {
            let seconds = (seq - self.first_seq) as f64 / f64::from(self.options.rate);
            wait_until(self.begun + Duration::from_secs_f64(seconds), || self.is_stopped());
        }
    }
}

/// Takes down what the brokers acknowledge.
struct Receipts(Arc<Shared>);

impl ClientContext for Receipts {}

impl ProducerContext for Receipts {
    /// The record, without its offset.
    type DeliveryOpaque = Box<Written>;

    fn delivery(&self, result: &DeliveryResult<'_>, record: Box<Written>) {
        // The outcome of all others is found in the topic. So is the place of a batch that was sent again because its
        // acknowledgement was lost: the brokers acknowledge the copy without offsets.
        if let Ok(message) = result
            && message.offset() >= 0
        {
            let mut record = *record;
            record.offset = message.offset();
            self.0.lock().push(record);
        }
    }
}

type OwnProducer = ThreadedProducer<Receipts>;

fn producer(shared: &Arc<Shared>, transactional_id: Option<&str>) -> Result<OwnProducer, String> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &shared.options.bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("compression.type", "lz4")
        // Longer than an outage; never resent by us, as a number is written once at most.
        .set("message.timeout.ms", (OUTAGE_MAX * 2).as_millis().to_string())
        .set("message.max.bytes", (shared.options.largest + (1 << 20)).to_string())
        // Bounds what is held while the brokers are away.
        .set("queue.buffering.max.messages", "20000")
        .set("queue.buffering.max.kbytes", "65536");
    if let Some(id) = transactional_id {
        // A message may not outlive its transaction.
        config.set("transactional.id", id).set("transaction.timeout.ms", "60000");
        config.set("message.timeout.ms", "60000");
    }
    let made = config.create_with_context(Receipts(shared.clone()));
    made.map_err(|e| format!("cannot make a producer: {e}"))
}

/// Gives a record to the client, and waits while its queue is full. An error: the client is of no use any more.
fn send(shared: &Shared, producer: &OwnProducer, draft: &Draft) -> Result<(), String> {
    let topic = model::topic(&shared.options, draft.form);
    let headers = OwnedHeaders::new()
        .insert(Header { key: topics::SEQ, value: Some(&draft.seq.to_string()) })
        .insert(Header { key: topics::UUID, value: Some(&draft.uuid) })
        .insert(Header { key: topics::KIND, value: Some(topics::kind_name(draft.kind)) });
    let mut record: BaseRecord<'_, str, [u8], Box<Written>> =
        BaseRecord::with_opaque_to(&topic, Box::new(written(&topic, draft)));
    record.partition = Some(draft.partition);
    record.headers = Some(headers);
    record.key = draft.key.as_deref();
    record.payload = draft.value.as_deref();
    let deadline = Instant::now() + OUTAGE_MAX;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                if shared.is_stopped() {
                    // It was never written.
                    return Ok(());
                }
                if Instant::now() > deadline {
                    return Err(format!("no room for a record in {} s", OUTAGE_MAX.as_secs()));
                }
                record = again;
                wait_until(Instant::now() + Duration::from_millis(50), || shared.is_stopped());
            }
            Err((error, _)) => return Err(format!("cannot write record {} to {topic}: {error}", draft.seq)),
        }
    }
}

/// The record as it will be in the topic, at an offset that is not known yet.
fn written(topic: &str, draft: &Draft) -> Written {
    Written {
        topic: topic.to_owned(),
        partition: draft.partition,
        offset: -1,
        seq: draft.seq,
        uuid: draft.uuid.clone(),
        sha: model::sha(draft.value.as_deref().unwrap_or_default()),
        kind: draft.kind,
        is_aborted: false,
    }
}

fn write_plain(shared: &Arc<Shared>) -> Result<(), String> {
    let mut schemas = Schemas::for_run(shared)?;
    let mut client = producer(shared, None)?;
    let (mut seq, mut failures) = (shared.first_seq, 0);
    while let Some(number) = shared.next(0, &mut seq, |form| form != Form::Text) {
        schemas.change(&shared.options, number);
        let draft = Draft::new(&shared.options, number, &schemas.ids);
        if let Err(error) = send(shared, &client, &draft) {
            failures += 1;
            if failures > PRODUCERS_MAX {
                return Err(error);
            }
            client = producer(shared, None)?;
        }
    }
    // If it is in vain, dropping the client ends it, and the topics tell what came there.
    client.flush(OUTAGE_MAX).ok();
    Ok(())
}

fn write_transactions(shared: &Arc<Shared>) -> Result<(), String> {
    let id = format!("{}-{}-{}", shared.options.prefix, shared.options.seed, shared.first_seq);
    let mut rng = Rng::with_seed(shared.options.seed ^ shared.first_seq);
    let mut seq = shared.first_seq;
    for _ in 0..PRODUCERS_MAX {
        // Also ends what a client before it has left open.
        let client = topics::patiently("the transactions are ready", || {
            let client = producer(shared, Some(&id))?;
            client.init_transactions(TIMEOUT).map_err(|e| e.to_string())?;
            Ok(client)
        });
        let Ok(client) = client else {
            // The brokers are still away.
            continue;
        };
        let is_over = loop {
            match transaction(shared, &client, &mut rng, &mut seq) {
                Ok(true) => {}
                Ok(false) => break true,
                // Its outcome is unknown: the next client makes an end of it.
                Err(_) => break false,
            }
        };
        if is_over {
            return Ok(());
        }
    }
    Err(format!("{PRODUCERS_MAX} transactional producers failed"))
}

/// Writes one transaction; `false` if there was no record for it.
fn transaction(shared: &Shared, client: &OwnProducer, rng: &mut Rng, seq: &mut u64) -> Result<bool, String> {
    let is_mine: fn(Form) -> bool = |form| form == Form::Text;
    let Some(first) = shared.next(1, seq, is_mine) else {
        return Ok(false);
    };
    client.begin_transaction().map_err(|e| e.to_string())?;
    let mut number = Some(first);
    for _ in 0..rng.usize(1..=TRANSACTION_RECORDS_MAX) {
        let Some(found) = number else {
            break;
        };
        send(shared, client, &Draft::new(&shared.options, found, &[]))?;
        number = shared.next(1, seq, is_mine);
    }
    if let Some(last) = number {
        // It was taken from the numbers already.
        send(shared, client, &Draft::new(&shared.options, last, &[]))?;
    }
    let is_committed = rng.u32(0..100) >= ABORTED;
    if !is_committed {
        // Or they would never leave the client; if it fails, so be it.
        client.flush(TIMEOUT).ok();
    }
    end(client, is_committed)?;
    Ok(true)
}

/// Commits or aborts, however long the brokers are away.
fn end(client: &OwnProducer, mut is_committed: bool) -> Result<(), String> {
    let deadline = Instant::now() + OUTAGE_MAX;
    loop {
        let ended =
            if is_committed { client.commit_transaction(TIMEOUT) } else { client.abort_transaction(TIMEOUT) };
        let error = match ended {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let may_again = match &error {
            KafkaError::Transaction(error) if error.txn_requires_abort() => {
                is_committed = false;
                true
            }
            KafkaError::Transaction(error) => error.is_retriable(),
            KafkaError::Flush(_) => true,
            _ => false,
        };
        if !may_again || Instant::now() > deadline {
            return Err(error.to_string());
        }
    }
}

/// The ids of the Avro schema's versions, the first one first.
struct Schemas {
    ids: Vec<u32>,
    /// From this number on the last version is asked for.
    change_at: u64,
}

/// Ids by registry, subject and version.
type Ids = BTreeMap<(String, String, u8), u32>;

/// What this process has registered: a workload may start while the registry is away.
fn known() -> MutexGuard<'static, Ids> {
    static IDS: Mutex<Ids> = Mutex::new(BTreeMap::new());
    IDS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn subject_of(options: &WorkloadOptions) -> String {
    format!("{}-value", model::topic(options, Form::Avro))
}

impl Schemas {
    fn new(options: &WorkloadOptions) -> Result<Schemas, String> {
        let mut ids = Vec::new();
        for version in 1..=FIRST_VERSIONS {
            ids.push(topics::patiently("the registry answers", || registered(options, version))?);
        }
        Ok(Schemas { ids, change_at: u64::MAX })
    }

    /// The last version comes in the middle of the run.
    fn for_run(shared: &Shared) -> Result<Schemas, String> {
        let half = (shared.end_seq - shared.first_seq) / 2;
        let mut schemas = Schemas::new(&shared.options)?;
        if shared.options.features.schema_changes {
            schemas.change_at = shared.first_seq + half.min(SCHEMA_AFTER);
        }
        Ok(schemas)
    }

    /// Brings in the last version when it is time. While the registry is away, that is put off.
    fn change(&mut self, options: &WorkloadOptions, seq: u64) {
        if self.ids.len() < usize::from(LAST_VERSION) && seq >= self.change_at {
            self.change_at = seq + SCHEMA_EVERY;
            self.ids.extend(registered(options, LAST_VERSION).ok());
        }
    }
}

fn registered(options: &WorkloadOptions, version: u8) -> Result<u32, String> {
    let subject = subject_of(options);
    let key = (options.registry.clone(), subject.clone(), version);
    let found = known().get(&key).copied();
    if let Some(id) = found {
        return Ok(id);
    }
    let id = register(&options.registry, &subject, &model::schema(version))?;
    known().insert(key, id);
    Ok(id)
}

/// Registers a schema and returns its id; the same again for one that is there. Plain HTTP is all that it needs.
fn register(registry: &str, subject: &str, schema: &Value) -> Result<u32, String> {
    let cannot = |e: std::io::Error| format!("cannot register a schema at {registry}: {e}");
    let plain = registry.trim_end_matches('/').strip_prefix("http://");
    let plain = plain.ok_or_else(|| format!("the auditor speaks plain http:// only, not {registry}"))?;
    let (host, base) = plain.split_at(plain.find('/').unwrap_or(plain.len()));
    let body = json!({"schema": schema.to_string()}).to_string();
    let request = format!(
        "POST {base}/subjects/{subject}/versions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Content-Type: application/vnd.schemaregistry.v1+json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let address = host.to_socket_addrs().map_err(cannot)?.next();
    let address = address.ok_or_else(|| format!("no address for {host}"))?;
    let mut stream = TcpStream::connect_timeout(&address, REGISTRY_TIMEOUT).map_err(cannot)?;
    stream.set_read_timeout(Some(REGISTRY_TIMEOUT)).map_err(cannot)?;
    stream.write_all(request.as_bytes()).map_err(cannot)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(cannot)?;
    let id = answer.split_once("\"id\":").map(|(_, rest)| rest.trim_start());
    let digits: String = id.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| format!("the registry gave no id: {answer}"))
}

/// What the topics have of the records `seqs`, and what they had and no longer have; each that was acknowledged has to be
/// there.
fn read_back(
    options: &WorkloadOptions,
    from: &BTreeMap<Place, i64>,
    seqs: &Range<u64>,
    acknowledged: Vec<Written>,
) -> Result<Manifest, String> {
    let mut records = Vec::new();
    let bootstrap = &options.bootstrap;
    for form in Form::ALL.into_iter().filter(|form| form.is_there(options.features)) {
        let topic = model::topic(options, form);
        let committed = if form == Form::Text { Some(committed(bootstrap, &topic, from)?) } else { None };
        for found in topics::read(bootstrap, &topic, from, Isolation::Uncommitted)? {
            if !seqs.contains(&found.seq) {
                continue;
            }
            let place = (found.partition, found.offset);
            let is_aborted = committed.as_ref().is_some_and(|committed| !committed.contains(&place));
            records.push(Written {
                topic: topic.clone(),
                partition: found.partition,
                offset: found.offset,
                seq: found.seq,
                uuid: found.uuid,
                sha: found.sha,
                kind: found.kind,
                is_aborted,
            });
        }
    }
    let gone = gone(options, &records, acknowledged)?;
    records.extend(gone);
    Ok(Manifest { records })
}

/// The places that a reader sees who takes committed records only, when no transaction is open any more.
fn committed(
    bootstrap: &str,
    topic: &str,
    from: &BTreeMap<Place, i64>,
) -> Result<BTreeSet<(i32, i64)>, String> {
    let topics = [topic.to_owned()];
    topics::patiently("all transactions have ended", || {
        let all = topics::bounds(bootstrap, &topics, Isolation::Uncommitted)?;
        let stable = topics::bounds(bootstrap, &topics, Isolation::Committed)?;
        if all == stable { Ok(()) } else { Err(format!("{topic} has an open transaction")) }
    })?;
    let found = topics::read(bootstrap, topic, from, Isolation::Committed)?;
    Ok(found.into_iter().map(|found| (found.partition, found.offset)).collect())
}

/// Acknowledged records that are no longer in their topic: overwritten ones of the compacted topic, and those that
/// retention has passed. The program may have read them before.
///
/// Any other that is not there is the brokers' loss, and a number that is there twice their double: nothing can be said
/// about the program then.
fn gone(
    options: &WorkloadOptions,
    records: &[Written],
    acknowledged: Vec<Written>,
) -> Result<Vec<Written>, String> {
    let mut found: BTreeMap<u64, &Written> = BTreeMap::new();
    for record in records {
        if let Some(other) = found.insert(record.seq, record) {
            return Err(format!("the brokers have a record twice: {record:?} and {other:?}"));
        }
    }
    let mut gone = acknowledged;
    gone.retain(|record| found.get(&record.seq).is_none_or(|there| !is_same(there, record)));
    if gone.is_empty() {
        return Ok(gone);
    }
    let compacted = model::topic(options, Form::Compact);
    let bounds = topics::bounds(&options.bootstrap, &topics(options), Isolation::Uncommitted)?;
    for record in &gone {
        let bounds = bounds.get(&(record.topic.clone(), record.partition));
        let is_passed = bounds.is_some_and(|(first, _)| record.offset < *first);
        if !is_passed && (record.topic != compacted || found.contains_key(&record.seq)) {
            return Err(format!("the brokers acknowledged a record and do not have it: {record:?}"));
        }
    }
    Ok(gone)
}

fn is_same(one: &Written, other: &Written) -> bool {
    let is_place = one.topic == other.topic && one.partition == other.partition && one.offset == other.offset;
    is_place && one.uuid == other.uuid && one.sha == other.sha && one.kind == other.kind
}
