//! The loop and its lanes among fakes: a consumer that gives and takes partitions, brokers that do not always answer,
//! sinks that fail before or after the deed. Engines are dropped in the middle of whatever they do, or drained; the last
//! one reads to the end, and every record has to be there.
//!
//! A seed decides what goes wrong; the moments are those of the machine. (tokio's own stopped clock is behind its feature
//! `test-util`: with it tests and `cargo run` would not share their dependencies' build any more.) What has to come out
//! the same for a seed is in `tests/it/simulation`, with the pure core alone.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::AsArray;
use arrow::datatypes::{Field, Int32Type, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

use super::*;
use crate::codec::{Decoder, Raw};
use crate::config::plan::{BadRecords, BatchLimits, OnDataLoss, RawForm, Tombstones};
use crate::config::{Environment, read};
use crate::engine::lane::{Feed, LaneParts, LaneSink};
use crate::handler::{Handler, Input, Traced, ViewError};
use crate::kafka::TopicInfo;
use crate::model::{
    Batch, ClusterId, Move, Partition, Position, PositionKey, Positions, Start, StartHash, TopicId,
};
use crate::sink::{Settled, Sink, SinkError};
use consumer::{Fake, Readers};

mod consumer;

const SEEDS: u64 = 24;

/// Engines of a seed that are ended before one reads to the end.
const LIVES: usize = 3;

const PARTITIONS: i32 = 2;

/// Of each partition: some windows of batches.
const RECORDS: i64 = 80;

/// So long a lane may go on at most whose engine was dropped: until it waits for something.
const AFTERLIFE: Duration = Duration::from_millis(50);

/// Longer than anything takes here, pauses between attempts included.
const DEADLINE: Duration = Duration::from_secs(60);

fn sources() -> Vec<TopicPartition> {
    let topic = TopicName::new("t");
    (0..PARTITIONS).map(|partition| TopicPartition::new(&topic, Partition(partition))).collect()
}

fn key(partition: Partition) -> PositionKey {
    PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(1)), partition }
}

fn at(raw: i64) -> Offset {
    Offset::new(raw).unwrap()
}

fn is_bad(offset: i64) -> bool {
    offset % 7 == 3
}

/// A record, as rows of it say.
fn id(partition: i32, offset: i64) -> i64 {
    i64::from(partition) * 1000 + offset
}

fn ids(partition: i32, is_wanted: impl Fn(i64) -> bool) -> Vec<i64> {
    (0..RECORDS).filter(|offset| is_wanted(*offset)).map(|offset| id(partition, offset)).collect()
}

fn ids_of(rows: &RecordBatch) -> Vec<i64> {
    let Some(offsets) = rows.column_by_name("source_offset") else {
        let values = rows.column_by_name("value").map(|values| values.as_string::<i32>());
        return values.into_iter().flatten().flatten().map(|text| text.parse().unwrap()).collect();
    };
    let partitions = rows.column_by_name("source_partition").unwrap().as_primitive::<Int32Type>();
    let offsets = offsets.as_primitive::<Int64Type>().values();
    partitions.values().iter().zip(offsets).map(|(partition, offset)| id(*partition, *offset)).collect()
}

/// What is durable somewhere.
#[derive(Debug, Default)]
struct Target {
    positions: Positions,
    /// In the order in which they came, of each partition.
    rows: BTreeMap<i64, Vec<i64>>,
}

/// The places of targets: those of the first route, then those of the second.
const MAIN: usize = 0;
const LETTERS: usize = 1;
const OWN: usize = 2;
/// Its positions are kept with the group.
const GROUP: usize = 3;

/// All that outlives an engine.
struct World {
    dice: Mutex<fastrand::Rng>,
    targets: [Mutex<Target>; 4],
    committed: Mutex<BTreeMap<TopicPartition, (Offset, String)>>,
    /// Nothing fails any more.
    is_calm: AtomicBool,
    /// What went wrong: a panic in a lane is an answer like others.
    problems: Mutex<Vec<String>>,
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            dice: Mutex::new(fastrand::Rng::with_seed(seed)),
            targets: Default::default(),
            committed: Mutex::default(),
            is_calm: AtomicBool::new(false),
            problems: Mutex::default(),
        })
    }

    fn roll(&self, sides: u64) -> u64 {
        self.dice.lock().unwrap().u64(..sides)
    }

    fn fails(&self, sides: u64) -> bool {
        !self.is_calm.load(Ordering::Relaxed) && self.roll(sides) == 0
    }

    fn expect(&self, is_so: bool, problem: impl FnOnce() -> String) {
        if !is_so {
            self.problems.lock().unwrap().push(problem());
        }
    }

    fn parts(self: &Arc<Self>, until: Option<Until>) -> EngineParts {
        let text = "
version: 1
kafka: {bootstrap.servers: b, group.id: g}
dead_letters: {q: {jsonl: {path: out/bad}}}
routes:
  first:
    topics: [t]
    value: json
    start: earliest
    bad_records: {dead_letter: q}
    sinks: {main: {jsonl: {path: out/first}}}
  second:
    topics: [t]
    value: json
    start: earliest
    bad_records: skip
    sinks: {own: {jsonl: {path: out/second}}, group: {console: {max_rows: 1}}}
";
        EngineParts {
            source: Box::new(Fake::start(self, true)),
            catch_up: Box::new(Readers(self.clone())),
            cluster: Arc::new(Brokers(self.clone())),
            routes: read(text, &Environment::new([], Path::new("."))).unwrap().routes,
            others: Vec::new(),
            factory: Arc::new(Workshop(self.clone())),
            budget: Budget::new(1 << 20),
            names: BTreeSet::new(),
            ran_before: BTreeSet::new(),
            topic_refresh: Duration::from_secs(60),
            until,
            watcher: None,
            board: Board::new("g"),
        }
    }

    /// One engine, which ends at some moment: drained, or dropped with all its lanes.
    async fn live(self: &Arc<Self>) {
        let shutdown = CancellationToken::new();
        let mut engine = Box::pin(run(self.parts(None), shutdown.clone()));
        let life = Duration::from_millis(20 + self.roll(1500));
        if let Ok((_, result)) = tokio::time::timeout(life, &mut engine).await {
            panic!("it ended by itself: {result:?}");
        }
        if self.roll(3) == 0 {
            shutdown.cancel();
            let (_, result) = tokio::time::timeout(DEADLINE, engine).await.expect("it drains");
            result.unwrap();
        }
    }

    /// The last engine: it reads to the end.
    async fn finish(self: &Arc<Self>) {
        self.is_calm.store(true, Ordering::Relaxed);
        // Lanes of the one before may be in the middle of something.
        tokio::time::sleep(AFTERLIFE).await;
        let ends = sources().into_iter().map(|source| (source, at(RECORDS))).collect();
        let until = Until { ends, missing: BTreeMap::new() };
        let engine = Box::pin(run(self.parts(Some(until)), CancellationToken::new()));
        let ended = tokio::time::timeout(DEADLINE, engine).await;
        let Ok((summaries, result)) = ended else {
            panic!("it does not come to an end: {:?}, {:?}", self.targets, self.committed);
        };
        result.unwrap();
        let stops: Vec<_> = summaries.iter().filter_map(|summary| summary.stop.as_ref()).collect();
        assert!(stops.is_empty(), "{stops:?}");
    }

    fn audit(&self, seed: u64) {
        assert_eq!(*self.problems.lock().unwrap(), Vec::<String>::new(), "seed {seed}");
        for partition in 0..PARTITIONS {
            let rows = |place: usize| {
                let target = self.targets[place].lock().unwrap();
                target.rows.get(&i64::from(partition)).cloned().unwrap_or_default()
            };
            let good = ids(partition, |offset| !is_bad(offset));
            assert_eq!(rows(MAIN), good, "seed {seed}");
            assert_eq!(rows(LETTERS), ids(partition, is_bad), "seed {seed}");
            assert_eq!(rows(OWN), good, "seed {seed}");
            let delivered: BTreeSet<i64> = rows(GROUP).into_iter().collect();
            assert_eq!(delivered.into_iter().collect::<Vec<_>>(), good, "seed {seed}");
        }
        let committed = self.committed.lock().unwrap();
        let ends: Vec<Option<Offset>> =
            sources().iter().map(|source| committed.get(source).map(|(next, _)| *next)).collect();
        assert_eq!(ends, vec![Some(at(RECORDS)); ends.len()], "seed {seed}");
    }
}

// Sinks.

struct Scripted {
    world: Arc<World>,
    place: usize,
    moves: Vec<Move>,
    rows: Vec<i64>,
    since: Option<Instant>,
    /// Of the one whose positions the group keeps.
    settled: Positions,
}

impl Scripted {
    fn new(world: &Arc<World>, place: usize) -> Self {
        let world = world.clone();
        Self { world, place, moves: Vec::new(), rows: Vec::new(), since: None, settled: Positions::default() }
    }

    /// Takes rows and moves, all or nothing.
    fn commit(&self, moves: &[Move], rows: &[i64]) -> Result<Positions, SinkError> {
        let mut target = self.world.targets[self.place].lock().unwrap();
        target.positions.apply(moves).map_err(SinkError::Conflict)?;
        for row in rows {
            let known = target.rows.entry(row / 1000).or_default();
            let is_new = known.last().is_none_or(|last| last < row);
            self.world.expect(is_new, || format!("row {row} is doubled or out of order"));
            known.push(*row);
        }
        Ok(target.positions.clone())
    }

    /// No bad record that is nowhere lies behind this sink.
    fn check_letters(&self, positions: &Positions) {
        let letters = self.world.targets[LETTERS].lock().unwrap();
        for (key, _, position) in positions.iter() {
            let partition = key.partition.0;
            let rows = letters.rows.get(&i64::from(partition)).map_or(&[][..], Vec::as_slice);
            let mut passed = (0..position.next.get()).filter(|offset| is_bad(*offset));
            let nowhere = passed.find(|offset| !rows.contains(&id(partition, *offset)));
            self.world.expect(nowhere.is_none(), || {
                format!("moved past a bad record that is nowhere: {nowhere:?} of partition {partition}")
            });
        }
    }
}

fn away() -> SinkError {
    SinkError::Transient { action: "reach the target".to_owned(), hint: None, source: "away".into() }
}

#[async_trait]
impl Sink for Scripted {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        if self.place == GROUP {
            return Ok(self.settled.clone());
        }
        if self.world.fails(20) {
            return Err(away());
        }
        Ok(self.world.targets[self.place].lock().unwrap().positions.clone())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if self.world.fails(40) {
            return Err(away());
        }
        self.rows.extend(ids_of(&batch.rows));
        self.moves.extend(batch.moves.iter().cloned());
        self.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        self.since
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        let (moves, rows) = (std::mem::take(&mut self.moves), std::mem::take(&mut self.rows));
        self.since = None;
        let is_failing = self.world.fails(20);
        if self.place == GROUP {
            // Some of it may arrive whatever the answer is.
            let count = if is_failing { rows.len() / 2 } else { rows.len() };
            let mut target = self.world.targets[GROUP].lock().unwrap();
            for row in &rows[..count] {
                target.rows.entry(row / 1000).or_default().push(*row);
            }
            drop(target);
            if is_failing {
                return Err(away());
            }
            self.settled.apply(&moves).map_err(SinkError::Conflict)?;
            return Ok(self.settled.clone());
        }
        if is_failing {
            return Err(away());
        }
        let positions = self.commit(&moves, &rows)?;
        if self.place == MAIN {
            self.check_letters(&positions);
        }
        // Done, and the reply is lost.
        if self.world.fails(20) { Err(away()) } else { Ok(positions) }
    }

    async fn abandon(&mut self) {
        self.moves.clear();
        self.rows.clear();
        self.since = None;
    }

    fn settled(&self) -> Settled {
        Settled::default()
    }

    fn store(&self) -> Store {
        if self.place == GROUP { Store::Group } else { Store::Own }
    }

    fn restore(&mut self, key: PositionKey, topic: &TopicName, position: Position) {
        self.settled.restore(key, topic.clone(), position);
    }
}

// What lanes are made of.

struct NoViews;

#[async_trait]
impl Handler for NoViews {
    fn meta(&self) -> &[Field] {
        &[]
    }

    async fn run(&self, _: Input, _: &BTreeSet<usize>) -> Result<Vec<Option<Traced>>, ViewError> {
        Ok(Vec::new())
    }
}

struct Workshop(Arc<World>);

#[async_trait]
impl LaneFactory for Workshop {
    async fn parts(&self, route: &Route) -> Result<LaneParts, Stop> {
        let sink = |name: &str, feed, place| LaneSink {
            name: name.to_owned(),
            identity: format!("{}/{name}", route.name),
            feed,
            record_type: 0,
            start: None,
            rows: Arc::new(Schema::empty()),
            sink: Box::new(Scripted::new(&self.0, place)),
            is_required: true,
            former: Settled::default(),
        };
        let (sinks, bad_records) = if route.name == "first" {
            let sinks = vec![sink("main", Feed::Fields, MAIN), sink("letters", Feed::DeadLetters, LETTERS)];
            (sinks, BadRecords::DeadLetter)
        } else {
            (vec![sink("own", Feed::Fields, OWN), sink("group", Feed::Fields, GROUP)], BadRecords::Skip)
        };
        let value = Raw::new(RawForm::Json, Tombstones::Keep);
        Ok(LaneParts {
            route: route.name.clone(),
            sinks,
            decoders: Decoder::raw(Box::new(value), Box::new(Raw::for_keys(RawForm::Bytes))).into(),
            handlers: vec![Box::new(NoViews)],
            registry: None,
            cluster: Arc::new(Brokers(self.0.clone())),
            limits: BatchLimits { rows_max: 4, bytes_max: 1 << 20, age_max: Duration::from_millis(5) },
            start: Start::Earliest,
            start_hash: StartHash("h".to_owned()),
            on_data_loss: OnDataLoss::Stop,
            bad_records,
            refused_rows: BadRecords::Stop,
            other_types: None,
            is_replay: false,
            evolution: None,
            is_bounded: false,
        })
    }
}

// Brokers.

struct Brokers(Arc<World>);

impl Brokers {
    fn answer<T>(&self, answer: T) -> Result<T, ClusterError> {
        if self.0.fails(10) {
            return Err(ClusterError::Answer { what: "something", problem: "away".to_owned() });
        }
        Ok(answer)
    }
}

#[async_trait]
impl Cluster for Brokers {
    async fn id(&self) -> Result<ClusterId, ClusterError> {
        self.answer(ClusterId("c".to_owned()))
    }

    async fn member_count(&self) -> Result<usize, ClusterError> {
        self.answer(0)
    }

    async fn names(&self) -> Result<BTreeSet<TopicName>, ClusterError> {
        self.answer(BTreeSet::from([TopicName::new("t")]))
    }

    async fn describe(
        &self,
        topics: &BTreeSet<TopicName>,
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, ClusterError>>, ClusterError> {
        let partition_count = usize::try_from(PARTITIONS).unwrap();
        let info = TopicInfo { id: key(Partition(0)).topic_id, partition_count };
        self.answer(topics.iter().map(|topic| (topic.clone(), Ok(info.clone()))).collect())
    }

    async fn resolve(
        &self,
        wanted: &[(TopicPartition, &Start)],
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClusterError> {
        let bounds = (Offset::ZERO, at(RECORDS));
        let each = wanted.iter().map(|(source, start)| (source.clone(), start.resolve(source, bounds, None)));
        self.answer(each.collect())
    }

    async fn bounds(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, Offset)>, ClusterError> {
        let bounds = (Offset::ZERO, at(RECORDS));
        self.answer(sources.iter().map(|source| (source.clone(), bounds)).collect())
    }

    async fn committed(
        &self,
        _: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, ClusterError> {
        let committed = self.0.committed.lock().unwrap().clone();
        self.answer(committed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_that_are_dropped_and_drained_lose_and_double_nothing() {
    let lives = |seed| async move {
        let world = World::new(seed);
        for _ in 0..LIVES {
            world.live().await;
        }
        world.finish().await;
        world.audit(seed);
    };
    // Side by side: they wait more than they work.
    futures::future::join_all((0..SEEDS).map(lives)).await;
}
