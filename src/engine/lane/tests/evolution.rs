//! A lane whose subject gets newer versions while it runs: each record names its schema by its first digit, and each row
//! tells the version that it was read as.

use arrow::array::StringArray;
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use uuid::Uuid;

use super::*;
use crate::codec::{Codec, Decoded, Learnt, Side};
use crate::config::plan::{OnNewSchema, SchemaFormat};
use crate::model::{RecordRef, SchemaId, SchemaKey, SchemaVersion};
use crate::registry::{Newest, RegisteredSchema, RegistryError};

/// Records of three versions. A version is there before the first record of it.
const EVOLVING: [&str; 9] = ["10", "11", "20", "12", "21", "30", "13", "31", "22"];

fn version(id: u32) -> SchemaVersion {
    SchemaVersion { subject: "s".to_owned(), id: SchemaId(id), number: Some(id) }
}

fn schema(id: SchemaId) -> RegisteredSchema {
    let (kind, text) = ("AVRO".to_owned(), id.to_string());
    RegisteredSchema { id: id.into(), kind, text, references: Vec::new() }
}

/// A subject that has every version that was asked for by its id.
struct Subject {
    newest: Mutex<u32>,
    /// So many answers to come are no answers.
    is_away: Mutex<u32>,
}

impl Subject {
    fn new(is_away: u32) -> Self {
        Self { newest: Mutex::new(1), is_away: Mutex::new(is_away) }
    }
}

#[async_trait]
impl Registry for Subject {
    async fn by_id(&self, id: SchemaId) -> Result<RegisteredSchema, RegistryError> {
        let mut newest = self.newest.lock().unwrap();
        *newest = id.0.max(*newest);
        Ok(schema(id))
    }

    async fn by_guid(&self, _: Uuid) -> Result<RegisteredSchema, RegistryError> {
        Err(RegistryError::Unknown { what: "a GUID".to_owned() })
    }

    async fn by_subject(&self, _: &str, _: Option<u32>) -> Result<RegisteredSchema, RegistryError> {
        Err(RegistryError::Unknown { what: "a subject".to_owned() })
    }

    async fn newest(&self, _: &str) -> Result<Newest, RegistryError> {
        let mut is_away = self.is_away.lock().unwrap();
        if *is_away > 0 {
            *is_away -= 1;
            let (what, problem) = ("it".to_owned(), "away".to_owned());
            return Err(RegistryError::Unavailable { what, problem, retry_after: None });
        }
        let id = *self.newest.lock().unwrap();
        Ok(Newest { version: version(id), schema: schema(SchemaId(id)) })
    }

    async fn register(&self, _: &str, _: SchemaFormat, _: &str) -> Result<SchemaId, RegistryError> {
        Err(RegistryError::Unknown { what: "a subject".to_owned() })
    }

    async fn find(&self, _: &str, _: SchemaFormat, _: &str) -> Result<SchemaId, RegistryError> {
        Err(RegistryError::Unknown { what: "a subject".to_owned() })
    }

    async fn is_compatible(&self, _: &str, _: SchemaFormat, _: &str) -> Result<bool, RegistryError> {
        Err(RegistryError::Unknown { what: "a subject".to_owned() })
    }

    async fn subjects_of(&self, _: SchemaKey) -> Result<Vec<String>, RegistryError> {
        Err(RegistryError::Unknown { what: "a schema".to_owned() })
    }
}

/// Reads everything as one version.
struct Digits {
    version: SchemaVersion,
    schema: SchemaRef,
    learnt: BTreeSet<SchemaKey>,
}

impl Digits {
    fn decoder(version: SchemaVersion) -> Decoder {
        let fields = vec![
            Field::new("value", DataType::Utf8, false),
            Field::new(version.id.to_string(), DataType::Utf8, true),
        ];
        let digits = Self { version, schema: Arc::new(Schema::new(fields)), learnt: BTreeSet::new() };
        Decoder::typed(Box::new(digits), Box::new(Raw::for_keys(RawForm::Bytes)))
    }
}

impl Codec for Digits {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn missing(&self, records: &[RecordRef<'_>]) -> Vec<SchemaKey> {
        let named: BTreeSet<SchemaKey> = records.iter().filter_map(|record| self.named(record)).collect();
        named.difference(&self.learnt).copied().collect()
    }

    fn learn(&mut self, key: SchemaKey, _: Learnt) {
        self.learnt.insert(key);
    }

    fn named(&self, record: &RecordRef<'_>) -> Option<SchemaKey> {
        let digit = record.value()?.first()? - b'0';
        Some(SchemaId(digit.into()).into())
    }

    fn version(&self) -> Option<&SchemaVersion> {
        Some(&self.version)
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        let rows: Vec<String> = records
            .iter()
            .filter_map(|record| {
                Some(format!("{}@{}", String::from_utf8_lossy(record.value()?), self.version.id))
            })
            .collect();
        let nulls: StringArray = rows.iter().map(|_| None::<&str>).collect();
        Ok(Decoded {
            rows: (0..u32::try_from(rows.len()).unwrap()).collect(),
            columns: vec![Arc::new(StringArray::from(rows)), Arc::new(nulls)],
            deletes: Vec::new(),
            gone: Vec::new(),
            rejected: Vec::new(),
            dropped: 0,
        })
    }
}

/// Gives the lane another sink for the same target.
struct Again {
    target: Arc<Mutex<Target>>,
    is_unfit: bool,
}

fn scripted(target: &Arc<Mutex<Target>>) -> Box<dyn Sink> {
    Box::new(Scripted {
        target: target.clone(),
        before: None,
        column: "value",
        moves: Vec::new(),
        rows: Vec::new(),
        since: None,
    })
}

#[async_trait]
impl Remake for Again {
    async fn remake(
        &self,
        newest: &[Newest],
        _: &[Followed],
        rows: &[SchemaRef],
    ) -> Result<Remade, RemakeError> {
        if self.is_unfit {
            let (message, hint) = ("no field named x".to_owned(), Some("mend it".to_owned()));
            return Err(RemakeError::Unfit(Stop { message, hint, place: None }));
        }
        assert_eq!(rows.len(), 2);
        let decoder = Digits::decoder(newest[0].version.clone());
        let sink = RemadeSink { index: 0, rows: decoder.schema().clone(), sink: scripted(&self.target) };
        Ok(Remade { decoders: decoder.into(), handlers: vec![Box::new(NoViews)], sinks: vec![sink] })
    }
}

fn parts(world: &World, policy: OnNewSchema, is_unfit: bool, is_away: u32) -> LaneParts {
    let mut parts = world.parts();
    let decoder = Digits::decoder(version(1));
    parts.sinks[0].rows = decoder.schema().clone();
    parts.decoders = decoder.into();
    parts.sinks[0].sink = scripted(&world.main);
    parts.registry = Some(Arc::new(Subject::new(is_away)));
    parts.evolution = Some(Evolution {
        policy,
        // It is the records that make it ask.
        interval: Duration::from_secs(3600),
        read_as: vec![Followed { side: Side::Value, version: version(1) }],
        remake: Arc::new(Again { target: world.main.clone(), is_unfit }),
    });
    parts
}

async fn run(world: &World, parts: LaneParts) -> Option<Stop> {
    world.run_parts(parts, || (SinkSet::EMPTY, false)).await
}

fn rows(world: &World) -> Vec<String> {
    world.main.lock().unwrap().rows.clone()
}

/// Batches are of three records: the first one that names a newer schema is read as that, with all of its batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_version_is_taken_between_two_batches() {
    for is_away in [0, 2] {
        let world = World::new(&EVOLVING);
        assert_eq!(run(&world, parts(&world, OnNewSchema::Widen, false, is_away)).await, None);
        let expected =
            ["10@2", "11@2", "20@2", "12@3", "21@3", "30@3", "13@3", "31@3", "22@3"].map(str::to_owned);
        assert_eq!(rows(&world), expected);
        let counts = world.counts.lock().unwrap().clone();
        // Nothing had to be read again for it.
        assert_eq!((counts.read, counts.settled, counts.abandoned), (9, 9, 0));
    }
}

/// Whatever fails while versions change: every record is there once, in its order, read as its own version or a newer one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_sinks_lose_and_double_nothing_while_versions_change() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..60 {
        runs.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let world = World::new(&EVOLVING);
            for target in [&world.main, &world.letters] {
                let mut target = target.lock().unwrap();
                target.writes = (0..5).map(|_| random.u8(..4) == 0).collect();
                let outcomes = [Outcome::Done, Outcome::Done, Outcome::Failed, Outcome::Lost];
                target.flushes = (0..5).map(|_| outcomes[random.usize(..4)]).collect();
            }
            let parts = parts(&world, OnNewSchema::Widen, false, 1);
            let apart = [SinkSet::EMPTY, SinkSet::EMPTY.with(0), SinkSet::ALL];
            let mut turns = 0;
            let chance = || {
                turns += 1;
                (apart[random.usize(..3)], turns < 10 && random.u8(..3) == 0)
            };
            assert_eq!(world.run_parts(parts, chance).await, None, "seed {seed}");
            let rows = rows(&world);
            let split: Vec<(&str, &str)> = rows.iter().map(|row| row.split_once('@').unwrap()).collect();
            assert_eq!(split.iter().map(|(value, _)| *value).collect::<Vec<_>>(), EVOLVING, "seed {seed}");
            assert!(split.iter().all(|(value, read_as)| value[..1] <= **read_as), "seed {seed}: {rows:?}");
            assert!(split.is_sorted_by_key(|(_, read_as)| *read_as), "seed {seed}: {rows:?}");
            assert_eq!(world.counts.lock().unwrap().settled, 9, "seed {seed}");
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_route_reads_newer_records_as_its_own_schema() {
    let world = World::new(&EVOLVING);
    assert_eq!(run(&world, parts(&world, OnNewSchema::Pin, false, 0)).await, None);
    assert_eq!(rows(&world), EVOLVING.map(|value| format!("{value}@1")));
}

/// Everything before the first record of it is durable; then the route stops, and names both versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_stops_before_the_first_record_of_a_version_that_it_must_not_or_cannot_take() {
    for (policy, is_unfit, said) in [
        (OnNewSchema::Stop, false, "(`on_new_schema: stop`)"),
        (OnNewSchema::Widen, true, "no field named x"),
    ] {
        let world = World::new(&EVOLVING);
        let stop = run(&world, parts(&world, policy, is_unfit, 0)).await.expect("it stops");
        assert!(stop.message.starts_with("t/0 offset 2 names schema id 2: "), "{}", stop.message);
        for part in [said, "id 2 (version 2 of subject `s`)", "id 1 (version 1 of subject `s`)"] {
            assert!(stop.message.contains(part), "no {part:?} in {}", stop.message);
        }
        assert!(stop.hint.is_some());
        assert_eq!(rows(&world), ["10@1", "11@1"]);
        assert_eq!(world.counts.lock().unwrap().settled, 2);
    }
}
