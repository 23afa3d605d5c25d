//! `sidestream datagen`: records for the schemas of a directory, into topics named after its files.
//!
//! `shop.orders.v1.avsc` and `shop.orders.v2.avsc` are two writer versions of topic `shop.orders`; their
//! records are interleaved. Records of `shop.users.json.avsc` are plain JSON. A seed makes the same records again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::{Map, Value, json};

use crate::codec::avro::encode;
use crate::codec::avro::node::{Kind, Logical, Node};
use crate::codec::frame;
use crate::kafka;
use crate::model::SchemaId;
use crate::registry::Registry;

use super::{Failure, build, load};

/// For the last records to reach the broker.
const FLUSH_MAX: Duration = Duration::from_secs(60);

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

/// Registers the schemas of `dir` and fills their topics. Answers what was written.
///
/// # Errors
/// Whatever file, registry or broker refuse.
pub async fn fill(
    config: &ClientConfig,
    registry: &dyn Registry,
    dir: &Path,
    amount: &Amount,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let topics = topics(registry, dir).await?;
    let mut config = config.clone();
    config.set("compression.type", "lz4").set("linger.ms", "20");
    let producer: ThreadedProducer<DefaultProducerContext> =
        config.create().context("failed to create the Kafka producer")?;
    let mut written = BTreeMap::new();
    for (topic, versions) in &topics {
        let mut random = fastrand::Rng::with_seed(amount.seed);
        for number in 0..amount.records {
            let version = &versions[usize::try_from(number).unwrap_or_default() % versions.len()];
            write(&producer, topic, number, version, amount, &mut random)?;
        }
        written.insert(topic.clone(), amount.records);
    }
    producer.flush(FLUSH_MAX).context("failed to write all records")?;
    Ok(written)
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
            let registered = registry.register(&format!("{topic}-value"), &text).await;
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

fn write(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    number: u64,
    version: &Version,
    amount: &Amount,
    random: &mut fastrand::Rng,
) -> anyhow::Result<()> {
    let is_every = |every: u64| every > 0 && number % every == every - 1;
    let key = format!("{}", number % 1000);
    // A bad record wins over a tombstone: multiples meet.
    let value = if is_every(amount.bad_every) {
        Some(b"{\"not\": \"framed\"}".to_vec())
    } else if is_every(amount.tombstone_every) {
        None
    } else {
        let json = generate(&version.node, "", number, random);
        let mut bytes = Vec::new();
        match version.id {
            Some(id) => {
                frame::write_prefix(id, &mut bytes);
                bytes.extend(encode::value(&version.node, &json)?);
            }
            None => bytes = json.to_string().into_bytes(),
        }
        Some(bytes)
    };
    let mut record: BaseRecord<'_, str, [u8]> = BaseRecord::to(topic).key(&key);
    record.payload = value.as_deref();
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                record = again;
                // Waits until some are delivered; a timeout here only means to look again.
                producer.flush(Duration::from_millis(50)).ok();
            }
            Err((error, _)) => return Err(error).context(format!("failed to write to `{topic}`")),
        }
    }
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
        (Logical::Uuid, Kind::String) => json!(uuid::Uuid::from_u128(random.u128(..)).to_string()),
        (_, Kind::Fixed { size, .. }) => json!("\u{1}".repeat(*size)),
        _ => json!("\u{1}"),
    }
}
