//! `sidestream datagen`: records for the schemas of a directory, into topics named after its files.
//!
//! `shop.orders.v1.avsc` and `shop.orders.v2.avsc` are two writer versions of topic `shop.orders`; their
//! records are interleaved. Records of `shop.users.json.avsc` are plain JSON. A seed makes the same records again.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use serde_json::{Map, Value, json};

use crate::codec::avro::encode;
use crate::codec::avro::node::{Kind, Logical, Node};
use crate::codec::frame;
use crate::config::plan::SchemaFormat;
use crate::engine::Watcher;
use crate::kafka;
use crate::model::{Hint, SchemaId};
use crate::registry::Registry;

use super::progress::Progress;
use super::{Failure, build, load};

/// Records that the brokers have not answered for: three full requests (`batch.num.messages`) keep them
/// busy, and more would only take memory.
const IN_FLIGHT_MAX: usize = 30_000;

/// A record that has not arrived by then has failed. As in a Kafka sink; by default it would be 5 minutes.
const DELIVERY_MAX: Duration = Duration::from_secs(60);

/// Every record is answered for within [`DELIVERY_MAX`], and a second or two until librdkafka looks at its clock.
const ANSWERS_MAX: Duration = Duration::from_secs(70);

/// How long to wait for answers before looking again: whether there is room, and how far things are.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Of `datagen`, and of `demo`, which brings a broker and a registry of its own.
#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = super::DEFAULT_FILE)]
    pub file: PathBuf,
    /// The directory of the schemas.
    #[arg(long, default_value = "avro")]
    pub schemas: PathBuf,
    #[command(flatten)]
    pub amount: Amount,
}

/// What is generated.
#[derive(Debug, Clone, Args)]
pub struct Amount {
    /// Records per topic.
    #[arg(long, default_value_t = 10_000)]
    pub records: u64,
    /// The same seed makes the same records.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One record in this many is bad (0: none).
    #[arg(long, default_value_t = 1000)]
    pub bad_every: u64,
    /// One record in this many is a tombstone (0: none).
    #[arg(long, default_value_t = 500)]
    pub tombstone_every: u64,
}

/// # Errors
/// [`Failure`]
pub fn datagen(options: &Options) -> Result<(), Failure> {
    let loaded = load::load(&options.file)?;
    let registry = build::registry(&loaded.plan)?.context("`schema_registry` is missing")?;
    let config = kafka::producer_config(&loaded.plan.kafka);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let written = runtime.block_on(fill(&config, registry.as_ref(), &options.schemas, &options.amount))?;
    for (topic, count) in written {
        print_line(&format!("{topic}: {count} records"));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn print_line(line: &str) {
    println!("{line}");
}

/// A writer version of a topic.
struct Version {
    /// In the registry; plain JSON has none.
    id: Option<SchemaId>,
    node: Node,
}

/// Registers the schemas of `dir` and fills their topics. Answers what the brokers have taken.
///
/// # Errors
/// Whatever file, registry or broker refuse; one record that does not arrive is enough.
pub async fn fill(
    config: &ClientConfig,
    registry: &dyn Registry,
    dir: &Path,
    amount: &Amount,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let topics = topics(registry, dir).await?;
    let mut config = config.clone();
    config.set("compression.type", "lz4").set("linger.ms", "20");
    config.set("queue.buffering.max.messages", IN_FLIGHT_MAX.to_string());
    config.set("message.timeout.ms", DELIVERY_MAX.as_millis().to_string());
    let mut progress = Progress::new("generating");
    write(&config, &topics, amount, &mut progress)
}

async fn topics(registry: &dyn Registry, dir: &Path) -> anyhow::Result<BTreeMap<String, Vec<Version>>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("failed to read `{}`", dir.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "avsc"));
    paths.sort();
    let mut topics: BTreeMap<String, Vec<Version>> = BTreeMap::new();
    for path in paths {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        let node = Node::parse(&text, &[]).with_context(|| format!("failed to use `{}`", path.display()))?;
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let stem = stem.ok_or_else(|| anyhow!("`{}` is no topic name", path.display()))?;
        let (topic, is_json) = topic_of(stem);
        let id = if is_json {
            None
        } else {
            let registered = registry.register(&format!("{topic}-value"), SchemaFormat::Avro, &text).await;
            Some(registered.with_context(|| format!("failed to register `{}`", path.display()))?)
        };
        topics.entry(topic.to_owned()).or_default().push(Version { id, node });
    }
    if topics.is_empty() {
        bail!("there are no `.avsc` files in `{}`", dir.display());
    }
    Ok(topics)
}

/// `shop.orders` of `shop.orders.v2`, and `shop.users`, plain JSON, of `shop.users.json`.
fn topic_of(stem: &str) -> (&str, bool) {
    if let Some(topic) = stem.strip_suffix(".json") {
        return (topic, true);
    }
    match stem.rsplit_once(".v") {
        Some((topic, version)) if version.parse::<u32>().is_ok() => (topic, false),
        _ => (stem, false),
    }
}

/// Writes the records of all topics, up to the first that does not arrive, and waits for all answers.
fn write(
    config: &ClientConfig,
    topics: &BTreeMap<String, Vec<Version>>,
    amount: &Amount,
    watcher: &mut dyn Watcher,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let producer: ThreadedProducer<Answers> = config
        .create_with_context(Answers::new(topics.len()))
        .context("failed to create the Kafka producer")?;
    watcher.expect(amount.records.saturating_mul(topics.len() as u64));
    let mut sender = Sender { producer, watcher };
    'topics: for (index, (topic, versions)) in topics.iter().enumerate() {
        let mut random = fastrand::Rng::with_seed(amount.seed);
        for number in 0..amount.records {
            let version = &versions[usize::try_from(number).unwrap_or_default() % versions.len()];
            let value = value(number, version, amount, &mut random)?;
            sender.send(index, topic, &(number % 1000).to_string(), value.as_deref());
            if sender.producer.context().has_failed() {
                break 'topics;
            }
        }
    }
    sender.wait()?;
    Ok(sender.producer.context().outcome(topics, amount.records)?)
}

/// The value of a record; `None`: a tombstone.
fn value(
    number: u64,
    version: &Version,
    amount: &Amount,
    random: &mut fastrand::Rng,
) -> anyhow::Result<Option<Vec<u8>>> {
    let is_every = |every: u64| every > 0 && number % every == every - 1;
    // A bad record wins over a tombstone: multiples meet.
    if is_every(amount.bad_every) {
        return Ok(Some(b"{\"not\": \"framed\"}".to_vec()));
    }
    if is_every(amount.tombstone_every) {
        return Ok(None);
    }
    let json = generate(&version.node, "", number, random);
    let Some(id) = version.id else {
        return Ok(Some(json.to_string().into_bytes()));
    };
    let mut bytes = Vec::new();
    frame::write_prefix(id, &mut bytes);
    bytes.extend(encode::value(&version.node, &json)?);
    Ok(Some(bytes))
}

/// Sends records and says how many were answered for.
struct Sender<'a> {
    producer: ThreadedProducer<Answers>,
    watcher: &'a mut dyn Watcher,
}

impl Sender<'_> {
    /// Hands a record over, waiting for room. What fails at once is an answer too.
    fn send(&mut self, index: usize, topic: &str, key: &str, value: Option<&[u8]>) {
        let mut record: BaseRecord<'_, str, [u8], usize> = BaseRecord::with_opaque_to(topic, index).key(key);
        record.payload = value;
        loop {
            self.look();
            match self.producer.send(record) {
                Ok(()) => return,
                // There is room after DELIVERY_MAX at the latest, when records are given up.
                Err((KafkaError::MessageProduction(Code::QueueFull), again)) => {
                    record = again;
                    // A timeout only means to look again.
                    self.producer.flush(LOOK_INTERVAL).ok();
                }
                Err((error, _)) => return self.producer.context().refuse(index, &error),
            }
        }
    }

    /// Waits for all answers.
    fn wait(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + ANSWERS_MAX;
        while self.producer.flush(LOOK_INTERVAL).is_err() {
            self.look();
            if Instant::now() >= deadline {
                let missing = self.producer.in_flight_count();
                bail!("the brokers have not answered for {missing} records within {ANSWERS_MAX:?}");
            }
        }
        self.look();
        Ok(())
    }

    fn look(&mut self) {
        self.watcher.reached(self.producer.context().taken());
    }
}

/// What the brokers said of the records; told by the producer's thread, which knows topics by their place.
struct Answers {
    taken: Vec<AtomicU64>,
    first: Mutex<Option<(usize, KafkaError)>>,
}

impl Answers {
    fn new(topic_count: usize) -> Self {
        Self { taken: (0..topic_count).map(|_| AtomicU64::new(0)).collect(), first: Mutex::new(None) }
    }

    fn refuse(&self, index: usize, error: &KafkaError) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| (index, error.clone()));
    }

    fn has_failed(&self) -> bool {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn taken(&self) -> u64 {
        self.taken.iter().map(|taken| taken.load(Ordering::SeqCst)).sum()
    }

    /// What each topic got, or why the first record that did not arrive did not.
    fn outcome<T>(
        &self,
        topics: &BTreeMap<String, T>,
        wanted: u64,
    ) -> Result<BTreeMap<String, u64>, DeliveryError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((index, error)) = first.as_ref()
            && let Some(topic) = topics.keys().nth(*index)
        {
            return Err(DeliveryError::new(topic, self.taken[*index].load(Ordering::SeqCst), wanted, error));
        }
        let taken = self.taken.iter().map(|taken| taken.load(Ordering::SeqCst));
        Ok(topics.keys().cloned().zip(taken).collect())
    }
}

impl ClientContext for Answers {}

impl ProducerContext for Answers {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        match result {
            Ok(_) => {
                self.taken[index].fetch_add(1, Ordering::SeqCst);
            }
            Err((error, _)) => self.refuse(index, error),
        }
    }
}

/// A record that did not arrive.
#[derive(Debug, thiserror::Error)]
#[error("failed to write to `{topic}`, which has {taken} of {wanted} records: {reason}")]
struct DeliveryError {
    topic: String,
    taken: u64,
    wanted: u64,
    code: Option<Code>,
    reason: String,
}

impl DeliveryError {
    fn new(topic: &str, taken: u64, wanted: u64, error: &KafkaError) -> Self {
        let code = error.rdkafka_error_code();
        let reason = code.map_or_else(|| error.to_string(), |code| code.to_string());
        Self { topic: topic.to_owned(), taken, wanted, code, reason }
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self.code? {
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
                "create the topic, or let the brokers do it (`auto.create.topics.enable`)".into()
            }
            Code::InvalidTopic => "topics are named after the schemas' files: rename the file".into(),
            Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
                "give this user the right to write the topic".into()
            }
            Code::MessageSizeTooLarge => {
                "raise `message.max.bytes` of the topic and under `kafka:`, or make the schema smaller".into()
            }
            Code::MessageTimedOut => {
                "check `bootstrap.servers`, and that the brokers can be reached at the names they give out"
                    .into()
            }
            _ => return None,
        })
    }
}

/// The hint of an error of this module.
pub fn hint(error: &(dyn Error + 'static)) -> Option<Hint> {
    error.downcast_ref::<DeliveryError>()?.hint()
}

/// A value for `node` that looks like what its field is called.
fn generate(node: &Node, name: &str, number: u64, random: &mut fastrand::Rng) -> Value {
    if let Some(logical) = node.logical {
        return generate_logical(node, logical, random);
    }
    match &node.kind {
        Kind::Null => Value::Null,
        Kind::Boolean => json!(random.bool()),
        Kind::Int => json!(random.i32(1..10)),
        Kind::Long if name == "id" => json!(number),
        Kind::Long => json!(random.i64(1..1000)),
        Kind::Float | Kind::Double => json!(f64::from(random.i32(0..10_000)) / 4.0),
        Kind::Bytes => json!("bytes"),
        Kind::String => json!(format!("{name}-{}", random.u32(0..500))),
        Kind::Fixed { size, .. } => json!("x".repeat(*size)),
        Kind::Enum(symbols) => json!(symbols.symbols[random.usize(0..symbols.symbols.len())].as_ref()),
        Kind::Array(item) => {
            let count = random.usize(0..4);
            (0..count).map(|_| generate(item, name, number, random)).collect()
        }
        Kind::Map(item) => {
            let keys = ["source", "device"].into_iter().take(random.usize(0..3));
            keys.map(|key| (key.to_owned(), generate(item, key, number, random))).collect()
        }
        Kind::Record(record) => {
            let fields = record.fields.iter();
            let values =
                fields.map(|field| (field.name.clone(), generate(&field.node, &field.name, number, random)));
            Value::Object(values.collect::<Map<_, _>>())
        }
        Kind::Union(arms) => generate(&arms[random.usize(0..arms.len())], name, number, random),
        // No Avro schema has it.
        Kind::Choice(_) => Value::Null,
    }
}

fn generate_logical(node: &Node, logical: Logical, random: &mut fastrand::Rng) -> Value {
    // Times spread over one day that began at this second: the same seed, the same records.
    const DAY_START: i64 = 1_790_000_000;
    let second = DAY_START + random.i64(0..86_400);
    match (logical, &node.kind) {
        (Logical::Date, _) => json!(DAY_START / 86_400),
        (Logical::TimeMillis, _) => json!(random.i32(0..86_400_000)),
        (Logical::TimeMicros, _) => json!(random.i64(0..86_400_000_000)),
        (Logical::TimestampMillis | Logical::LocalTimestampMillis, _) => json!(second * 1_000),
        (Logical::TimestampMicros | Logical::LocalTimestampMicros, _) => json!(second * 1_000_000),
        (Logical::TimestampNanos | Logical::LocalTimestampNanos, _) => json!(second * 1_000_000_000),
        (Logical::Decimal { .. }, Kind::Bytes) => json!(random.i64(-500..100_000)),
        // Five hundredths.
        (Logical::BigDecimal, _) => json!("\u{2}\u{5}\u{4}"),
        (Logical::Uuid, Kind::String) => json!(uuid::Uuid::from_u128(random.u128(..)).to_string()),
        (_, Kind::Fixed { size, .. }) => json!("\u{1}".repeat(*size)),
        _ => json!("\u{1}"),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    const AMOUNT: Amount = Amount { records: 300, seed: 1, bad_every: 7, tombstone_every: 5 };

    #[derive(Default)]
    struct Seen {
        total: u64,
        done: u64,
    }

    impl Watcher for Seen {
        fn expect(&mut self, total: u64) {
            self.total = total;
        }

        fn reached(&mut self, done: u64) {
            assert!(self.done <= done, "fewer than before");
            self.done = done;
        }
    }

    /// Topics of plain JSON.
    fn topics(names: &[&str]) -> BTreeMap<String, Vec<Version>> {
        let schema = r#"{"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}]}"#;
        let version = || Version { id: None, node: Node::parse(schema, &[]).unwrap() };
        names.iter().map(|name| ((*name).to_owned(), vec![version(), version()])).collect()
    }

    fn config(bootstrap: String) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("log_level", "0");
        config
    }

    #[test]
    fn what_is_counted_is_what_the_broker_took() {
        let broker = MockCluster::new(1).unwrap();
        let mut seen = Seen::default();
        // Less room than records: it has to be waited for.
        let mut config = config(broker.bootstrap_servers());
        config.set("queue.buffering.max.messages", "50");
        let taken = write(&config, &topics(&["a", "b"]), &AMOUNT, &mut seen).unwrap();
        assert_eq!(taken, BTreeMap::from([("a".to_owned(), 300), ("b".to_owned(), 300)]));
        assert_eq!((seen.done, seen.total), (600, 600));
    }

    #[test]
    fn a_record_that_is_refused_is_an_error_with_its_topic_and_a_remedy() {
        let broker = MockCluster::new(1).unwrap();
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        // More than there can be requests: none gets through.
        broker.request_errors(RDKafkaApiKey::Produce, &[refusal; 1000]);
        let mut seen = Seen::default();
        let config = config(broker.bootstrap_servers());
        let error = write(&config, &topics(&["a"]), &AMOUNT, &mut seen).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("failed to write to `a`, which has 0 of 300 records: "), "{text}");
        assert_eq!(error.chain().find_map(hint).unwrap(), "give this user the right to write the topic");
        assert_eq!(seen.done, 0);
    }

    #[test]
    fn brokers_that_are_away_are_an_error_in_time() {
        // Nobody listens on port 1.
        let mut config = config("127.0.0.1:1".to_owned());
        config.set("message.timeout.ms", "200").set("linger.ms", "0");
        let error = write(&config, &topics(&["a"]), &AMOUNT, &mut Seen::default()).unwrap_err();
        assert!(error.chain().find_map(hint).unwrap().starts_with("check `bootstrap.servers`"), "{error:#}");
    }
}
