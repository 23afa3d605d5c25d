//! One lane among scripted sinks: the test stands for engine, brokers and source.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::{Field, Int64Type};
use async_trait::async_trait;
use tokio::sync::mpsc;

mod evolution;
mod failures;
mod optional;
mod record_types;

use super::*;
use crate::codec::{Decoder, Raw};
use crate::config::plan::{RawForm, Tombstones};
use crate::engine::message::{Assigned, LaneId, Reading};
use crate::handler::{Input, Traced, ViewError};
use crate::kafka::{Budget, ClusterError, TopicInfo};
use crate::model::{
    Batch, ChunkBuilder, ClusterId, Incoming, Move, Partition, Position, TimestampType, TopicId,
};
use crate::sink::SinkError;
use crate::status::{Counts, LaneBoard};

/// Longer than anything takes here, pauses between attempts included.
const DEADLINE: Duration = Duration::from_secs(20);

/// How often the lane's board is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

fn source() -> TopicPartition {
    TopicPartition::new(&TopicName::new("t"), Partition(0))
}

fn key() -> PositionKey {
    PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(1)), partition: Partition(0) }
}

fn at(raw: usize) -> Offset {
    Offset::new(i64::try_from(raw).unwrap()).unwrap()
}

/// A cluster with one topic of one partition, which keeps these offsets, from the first up to the end.
struct OneTopic {
    bounds: Arc<Mutex<(Offset, Offset)>>,
}

#[async_trait]
impl Cluster for OneTopic {
    async fn id(&self) -> Result<ClusterId, ClusterError> {
        Ok(ClusterId("c".to_owned()))
    }

    async fn member_count(&self) -> Result<usize, ClusterError> {
        Ok(0)
    }

    async fn names(&self) -> Result<BTreeSet<TopicName>, ClusterError> {
        Ok(BTreeSet::from([source().topic]))
    }

    async fn describe(
        &self,
        topics: &BTreeSet<TopicName>,
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, ClusterError>>, ClusterError> {
        let info = TopicInfo { id: key().topic_id, partition_count: 1 };
        Ok(topics.iter().map(|topic| (topic.clone(), Ok(info.clone()))).collect())
    }

    async fn resolve(
        &self,
        wanted: &[(TopicPartition, &Start)],
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClusterError> {
        let bounds = *self.bounds.lock().unwrap();
        let each = wanted.iter().map(|(source, start)| (source.clone(), start.resolve(source, bounds, None)));
        Ok(each.collect())
    }

    async fn bounds(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, Offset)>, ClusterError> {
        let bounds = *self.bounds.lock().unwrap();
        Ok(sources.iter().map(|source| (source.clone(), bounds)).collect())
    }

    async fn committed(
        &self,
        _: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, ClusterError> {
        Ok(BTreeMap::new())
    }
}

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

/// What is durable, and what goes wrong next.
#[derive(Debug, Default)]
struct Target {
    positions: Positions,
    rows: Vec<String>,
    writes: VecDeque<bool>,
    flushes: VecDeque<Outcome>,
    /// A row that is never taken.
    refused: Option<String>,
    /// It is refused only when it is to become durable.
    is_late: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
    /// Done, and nobody is told.
    Lost,
}

/// A sink with a store of its own, as scripted.
struct Scripted {
    target: Arc<Mutex<Target>>,
    /// What has to be durable elsewhere before this sink moves past an offset.
    before: Option<(Arc<Mutex<Target>>, Vec<usize>)>,
    column: &'static str,
    moves: Vec<Move>,
    rows: Vec<String>,
    since: Option<Instant>,
}

fn away() -> SinkError {
    SinkError::Transient { action: "reach the target".to_owned(), hint: None, source: "away".into() }
}

/// What a column of a batch says.
fn texts(batch: &Batch, column: &str) -> Vec<String> {
    let Some(column) = batch.rows.column_by_name(column) else {
        return Vec::new();
    };
    match column.as_string_opt::<i32>() {
        Some(texts) => texts.iter().flatten().map(str::to_owned).collect(),
        None => column.as_primitive::<Int64Type>().iter().flatten().map(|at| at.to_string()).collect(),
    }
}

#[async_trait]
impl Sink for Scripted {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        Ok(self.target.lock().unwrap().positions.clone())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let mut target = self.target.lock().unwrap();
        if target.writes.pop_front().unwrap_or_default() {
            return Err(away());
        }
        let rows = texts(batch, self.column);
        target.check(&rows, false)?;
        self.rows.extend(rows);
        self.moves.extend(batch.moves.iter().cloned());
        self.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        self.since
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        let mut target = self.target.lock().unwrap();
        let outcome = target.flushes.pop_front().unwrap_or(Outcome::Done);
        if outcome == Outcome::Failed {
            return Err(away());
        }
        target.check(&self.rows, true)?;
        let moves = std::mem::take(&mut self.moves);
        self.since = None;
        target.positions.apply(&moves).map_err(SinkError::Conflict)?;
        target.rows.append(&mut self.rows);
        if let (Some((other, offsets)), Some(position)) = (&self.before, target.positions.get(&key())) {
            let other = other.lock().unwrap();
            let passed = offsets.iter().filter(|offset| at(**offset) < position.next);
            for offset in passed {
                assert!(other.rows.contains(&offset.to_string()), "moved past {offset}, which is nowhere");
            }
        }
        if outcome == Outcome::Lost { Err(away()) } else { Ok(target.positions.clone()) }
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
        Store::Own
    }

    fn restore(&mut self, _: PositionKey, _: &TopicName, _: Position) {}
}

/// Targets of a lane: its sink, and its dead letters.
struct World {
    values: Vec<&'static str>,
    main: Arc<Mutex<Target>>,
    letters: Arc<Mutex<Target>>,
    bounds: Arc<Mutex<(Offset, Offset)>>,
    /// The offsets that are left when the brokers delete records under the lane.
    left: Option<(Offset, Offset)>,
    /// What the lane's board said last.
    counts: Mutex<Counts>,
    bad_records: BadRecords,
    refused_rows: BadRecords,
    /// The main sink reads a view, which fails on this value.
    poison: Option<&'static str>,
    /// Offsets of good JSON that has to be among the dead letters as well.
    set_aside: Vec<usize>,
}

impl World {
    fn new(values: &[&'static str]) -> Self {
        let bounds = Arc::new(Mutex::new((Offset::ZERO, at(values.len()))));
        Self {
            values: values.to_vec(),
            main: Arc::default(),
            letters: Arc::default(),
            bounds,
            left: None,
            counts: Mutex::default(),
            bad_records: BadRecords::DeadLetter,
            refused_rows: BadRecords::Stop,
            poison: None,
            set_aside: Vec::new(),
        }
    }

    /// Looks at the board: every record that was read is in one place, and only what is in flight ever becomes less.
    fn look(&self, board: &LaneBoard) -> Counts {
        let counts = board.view(Instant::now()).status.counts;
        let mut last = self.counts.lock().unwrap();
        assert_eq!(counts.read, counts.done() + counts.abandoned + counts.in_flight, "{counts:?}");
        let has_grown = counts.read >= last.read
            && counts.settled >= last.settled
            && counts.bad_total() >= last.bad_total()
            && counts.abandoned >= last.abandoned;
        assert!(has_grown, "{last:?} became {counts:?}");
        assert!(counts.done() <= self.values.len() as u64, "{counts:?}");
        last.clone_from(&counts);
        counts
    }

    fn is_settled(&self, board: &LaneBoard) -> bool {
        let counts = self.look(board);
        counts.in_flight == 0 && counts.done() == self.values.len() as u64
    }

    /// Sinks of which the first `count` calls may fail, before or after the deed.
    fn failing(random: &mut fastrand::Rng, count: usize) -> Self {
        let world = Self::new(&VALUES);
        for target in [&world.main, &world.letters] {
            let mut target = target.lock().unwrap();
            target.writes = (0..count).map(|_| random.u8(..4) == 0).collect();
            let outcomes = [Outcome::Done, Outcome::Done, Outcome::Failed, Outcome::Lost];
            target.flushes = (0..count).map(|_| outcomes[random.usize(..4)]).collect();
        }
        world
    }

    /// Both sinks have what is theirs, and every record was counted once, whoever read it and however often.
    #[track_caller]
    fn assert_settled_once(&self, seed: u64) {
        assert_eq!(self.main.lock().unwrap().rows, self.good(), "seed {seed}");
        let bad: Vec<String> = self.bad().iter().map(ToString::to_string).collect();
        assert_eq!(self.letters.lock().unwrap().rows, bad, "seed {seed}");
        let counts = self.counts.lock().unwrap().clone();
        let expected = (self.good().len() as u64, bad.len() as u64, 0);
        assert_eq!((counts.settled, counts.bad_total(), counts.dropped), expected, "seed {seed}");
    }

    fn is_bad(value: &str) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(value).is_err()
    }

    fn bad(&self) -> Vec<usize> {
        (0..self.values.len()).filter(|offset| Self::is_bad(self.values[*offset])).collect()
    }

    fn good(&self) -> Vec<&'static str> {
        self.values.iter().copied().filter(|value| !Self::is_bad(value)).collect()
    }

    fn parts(&self) -> LaneParts {
        let sink = |name: &str, feed, target: &Arc<Mutex<Target>>, before, column| LaneSink {
            name: name.to_owned(),
            identity: format!("r/{name}"),
            feed,
            record_type: 0,
            start: None,
            rows: Arc::new(arrow::datatypes::Schema::empty()),
            is_required: true,
            former: Settled::default(),
            sink: Box::new(Scripted {
                target: target.clone(),
                before,
                column,
                moves: Vec::new(),
                rows: Vec::new(),
                since: None,
            }),
        };
        let before = Some((self.letters.clone(), [self.bad(), self.set_aside.clone()].concat()));
        let feed = if self.poison.is_some() { Feed::View(0) } else { Feed::Fields };
        let value = Raw::new(RawForm::Json, Tombstones::Keep);
        let cluster = OneTopic { bounds: self.bounds.clone() };
        LaneParts {
            route: "r".to_owned(),
            sinks: vec![
                sink("main", feed, &self.main, before, "value"),
                sink("letters", Feed::DeadLetters, &self.letters, None, "source_offset"),
            ],
            decoders: Decoder::raw(Box::new(value), Box::new(Raw::for_keys(RawForm::Bytes))).into(),
            handlers: vec![Box::new(refusals::Picky(self.poison))],
            registry: None,
            cluster: Arc::new(cluster),
            limits: BatchLimits { rows_max: 3, bytes_max: 1 << 20, age_max: Duration::from_millis(5) },
            start: Start::Earliest,
            start_hash: StartHash("h".to_owned()),
            on_data_loss: OnDataLoss::Stop,
            is_replay: false,
            bad_records: self.bad_records,
            refused_rows: self.refused_rows,
            other_types: None,
            evolution: None,
            is_bounded: false,
        }
    }

    fn chunk(&self, number: u64, from: Offset) -> Chunk {
        let mut builder = ChunkBuilder::new(source(), number, from);
        let first = usize::try_from(from.get()).unwrap();
        for (offset, value) in self.values.iter().enumerate().skip(first) {
            let incoming = Incoming {
                offset: at(offset),
                timestamp_ms: 0,
                timestamp_type: TimestampType::Create,
                epoch: None,
                key: None,
                value: Some(value.as_bytes()),
            };
            builder.push(incoming, std::iter::empty());
        }
        builder.finish(at(self.values.len()))
    }

    fn is_done(&self) -> bool {
        let end = at(self.values.len());
        let stands = |target: &Arc<Mutex<Target>>| {
            target.lock().unwrap().positions.get(&key()).is_some_and(|position| position.next == end)
        };
        stands(&self.main) && stands(&self.letters)
    }

    /// Orders what the engine would, and sends what the sources would.
    async fn assign(
        &self,
        handle: &LaneHandle,
        apart: SinkSet,
        front: Option<Reading>,
        catch_up: Option<Reading>,
    ) {
        let assigned = Assigned { source: source(), apart, front, catch_up };
        handle.control.send(Control::Assigned(vec![assigned])).await.unwrap();
        for (reading, outlet) in [(front, handle.outlet()), (catch_up, handle.catch_up_outlet())] {
            if let Some(reading) = reading {
                outlet.offer(self.chunk(reading.number, reading.from)).unwrap();
            }
        }
    }

    /// Runs the lane until everything is durable and counted, or it stops.
    async fn run(&self) -> Option<Stop> {
        let stop = self.run_with(|| (SinkSet::EMPTY, false)).await;
        let counts = self.counts.lock().unwrap().clone();
        assert_eq!(counts.in_flight, 0, "{counts:?}");
        stop
    }

    /// The same, while `chance` says at every turn which sinks catch up, and whether that is decided anew.
    async fn run_with(&self, chance: impl FnMut() -> (SinkSet, bool)) -> Option<Stop> {
        self.run_parts(self.parts(), chance).await
    }

    /// The same, of a lane that is made of these.
    async fn run_parts(&self, parts: LaneParts, mut chance: impl FnMut() -> (SinkSet, bool)) -> Option<Stop> {
        let (report_tx, mut reports) = mpsc::channel(64);
        let gauge = Gauge::new("r", &Budget::new(1 << 20));
        let (life, handle) = lane(LaneId(0), "r", gauge, report_tx, std::future::ready(Ok(parts)));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(life);
        let resume = || Control::Resume(BTreeMap::from([(source(), Committed::default())]));
        let seen = Seen { is_new: false, partition_count: None };
        handle.control.send(Control::Topics(BTreeMap::from([(source().topic, seen)]))).await.unwrap();
        handle.control.send(resume()).await.unwrap();
        let (mut number, mut apart) = (0, SinkSet::EMPTY);
        let board = handle.board.clone();
        let work = async {
            while !self.is_settled(&board) || !self.is_done() {
                // The board is written after the report of what it shows.
                let Ok(report) = tokio::time::timeout(LOOK_INTERVAL, reports.recv()).await else {
                    continue;
                };
                let (_, report) = report.expect("the lane lives");
                match report {
                    Report::Ready(stands) => {
                        if let Some(left) = self.left {
                            *self.bounds.lock().unwrap() = left;
                            let message = "t [0] offset 0: out of range".to_owned();
                            let stop = Stop { message, hint: None, place: None };
                            handle.control.send(Control::Lost { source: source(), stop }).await.unwrap();
                            continue;
                        }
                        let stand = &stands[&source()];
                        apart = chance().0;
                        let mut next = |sinks| {
                            number += 1;
                            Some(Reading { from: stand.lowest(sinks)?, number, end: None })
                        };
                        let (front, catch_up) = (next(SinkSet::ALL.minus(apart)), next(apart));
                        self.assign(&handle, apart, front, catch_up).await;
                    }
                    Report::CatchUp(stands) => {
                        number += 1;
                        if let Some(from) = stands[&source()].lowest(apart) {
                            let catch_up = Some(Reading { from, number, end: None });
                            self.assign(&handle, apart, None, catch_up).await;
                        }
                    }
                    Report::Progress(_) if chance().1 => handle.control.send(resume()).await.unwrap(),
                    Report::Rewind(_) => handle.control.send(resume()).await.unwrap(),
                    Report::Stopped(stop) => return Some(stop),
                    Report::Progress(_) | Report::Released(_) | Report::Drained | Report::Stands(_) => {}
                }
            }
            None
        };
        let Ok(stop) = tokio::time::timeout(DEADLINE, work).await else {
            panic!(
                "the lane does not get there: {:?} {:?} {:?}",
                self.main.lock().unwrap(),
                self.letters.lock().unwrap(),
                self.counts.lock().unwrap()
            );
        };
        drop(handle);
        reports.close();
        while let Some(ended) = tasks.join_next().await {
            ended.expect("the lane has not failed");
        }
        self.look(&board);
        stop
    }
}

const VALUES: [&str; 12] = ["0", "1", "x{", "3", "4", "5", "6", "y{", "z{", "9", "10", "11"];

/// Sinks that fail at random, before or after the deed, lose and double nothing; and none of them ever stands past a
/// bad record whose dead letter is nowhere (asserted in the sink).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_sinks_lose_and_double_nothing_and_letters_come_first() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..60 {
        runs.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let world = World::failing(&mut random, 6);
            let stop = world.run().await;
            assert_eq!(stop, None, "seed {seed}");
            world.assert_settled_once(seed);
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

/// Without failures nothing is read twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_well_is_read_once() {
    let world = World::new(&VALUES);
    assert_eq!(world.run().await, None);
    let counts = world.counts.lock().unwrap().clone();
    assert_eq!((counts.read, counts.abandoned), (VALUES.len() as u64, 0));
    assert_eq!(counts.bad, BTreeMap::from([("type_mismatch", 3)]));
    assert_eq!((counts.decoded, counts.bytes), (9, VALUES.concat().len() as u64));
}

/// Sinks that leave the front and come back, at any moment, while they fail: nothing is lost, nothing is doubled, and
/// none moves past a bad record that is nowhere (asserted in the sink).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_that_catch_up_and_join_lose_and_double_nothing() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..60 {
        runs.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let world = World::failing(&mut random, 4);
            let apart = [SinkSet::EMPTY, SinkSet::EMPTY.with(0), SinkSet::ALL];
            // In the end it is left alone.
            let mut turns = 0;
            let stop = world
                .run_with(|| {
                    turns += 1;
                    (apart[random.usize(..3)], turns < 20 && random.u8(..3) == 0)
                })
                .await;
            assert_eq!(stop, None, "seed {seed}");
            world.assert_settled_once(seed);
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

/// A row that is refused stops the lane with everything before it durable, whatever came with it in its batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_row_stops_the_lane_after_everything_before_it() {
    for (refused, place) in [("0", 0), ("3", 3), ("11", 11)] {
        let world = World::new(&VALUES);
        world.main.lock().unwrap().refused = Some(refused.to_owned());
        let stop = world.run().await.expect("it stops");
        assert!(stop.message.contains("sink `main` refuses"), "{}", stop.message);
        let before: Vec<&str> =
            VALUES[..place].iter().copied().filter(|value| !World::is_bad(value)).collect();
        assert_eq!(world.main.lock().unwrap().rows, before);
        let letters = world.letters.lock().unwrap().rows.clone();
        let bad: Vec<String> =
            world.bad().iter().filter(|at| **at < place).map(ToString::to_string).collect();
        assert!(letters.starts_with(&bad), "{letters:?}");
        assert_eq!(world.counts.lock().unwrap().settled, before.len() as u64);
    }
}

/// The search for a refused row passes no bad record whose dead letter is nowhere (asserted in the sink), however the
/// dead letters fail meanwhile, and ends in the same place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_for_a_refused_row_waits_for_failing_letters() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..40 {
        runs.spawn(async move {
            let world = World::new(&VALUES);
            let mut random = fastrand::Rng::with_seed(seed);
            world.main.lock().unwrap().refused = Some("9".to_owned());
            {
                let mut letters = world.letters.lock().unwrap();
                letters.writes = (0..6).map(|_| random.u8(..3) == 0).collect();
                let outcomes = [Outcome::Done, Outcome::Failed, Outcome::Lost];
                letters.flushes = (0..6).map(|_| outcomes[random.usize(..3)]).collect();
            }
            let stop = world.run().await.expect("it stops");
            assert!(stop.message.contains("sink `main` refuses"), "seed {seed}: {}", stop.message);
            assert_eq!(world.main.lock().unwrap().rows, ["0", "1", "3", "4", "5", "6"], "seed {seed}");
            assert_eq!(world.letters.lock().unwrap().rows, ["2", "7", "8"], "seed {seed}");
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

/// Records that sinks and views fail on.
mod refusals;
mod transactions;
