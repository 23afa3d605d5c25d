//! Several file sinks of one directory under seeds: rows accepted, flushed, abandoned; instances killed with open files,
//! or between their entry and the links; checkpoints every few entries. `log/simulation.rs` takes a commit apart.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field, Schema};

use super::*;
use crate::model::{ClusterId, Offset, Partition, TopicId};
use crate::sink::owner::Owner;

const INSTANCES: usize = 3;
const STEPS: usize = 120;
const SEEDS: u64 = 60;

/// Seeds above those, that once failed: each with a comment why.
const REGRESSIONS: &[u64] = &[];

fn key() -> PositionKey {
    PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(5)), partition: Partition(0) }
}

fn batch(start: Option<i64>, end: i64) -> Batch {
    let step = Move {
        key: key(),
        topic: TopicName::new("t"),
        start: start.and_then(Offset::new),
        end: Position { next: Offset::new(end).unwrap(), epoch: None },
        reason: Reason::Data,
        records: 0,
    };
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(start.unwrap_or(end)..end));
    Batch::of_rows(vec![step], RecordBatch::try_new(schema(), vec![ids]).unwrap())
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]))
}

/// In memory where there is such a place: every commit syncs.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).unwrap()
}

/// An instance's sink, and where its lane believes that it stands.
struct Instance {
    sink: FileSink,
    accepted: Option<i64>,
    is_open: bool,
}

impl Instance {
    fn new(root: &Path) -> Self {
        let options = FileSinkOptions {
            home: root.into(),
            claim: Owner { cluster: ClusterId("c".into()), group: "g".into(), identity: "r/s".into() }.into(),
            schema: schema(),
            roll: Roll { bytes_max: u64::MAX, rows_max: None, age_max: Duration::from_secs(1) },
            partitioning: None,
        };
        let mut sink = FileSink::new(options, Box::new(JsonLinesFormat::default()));
        sink.intervals = Intervals { entries: 3, files: 5 };
        Self { sink, accepted: None, is_open: false }
    }

    fn read_positions(&mut self) {
        let positions = self.sink.read_positions().unwrap();
        self.accepted = next(&positions);
        self.is_open = true;
    }

    /// As at an assignment of other partitions: what was accepted stays.
    fn read_again(&mut self) {
        self.sink.read_positions().unwrap();
    }

    fn abandon(&mut self) {
        self.sink.drop_pending();
        self.is_open = false;
    }

    /// Accepts up to `count` rows; at first sight none.
    fn accept(&mut self, count: i64) {
        let end = self.accepted.map_or(0, |accepted| accepted + count);
        self.sink.accept(&batch(self.accepted, end)).unwrap();
        self.accepted = Some(end);
    }
}

fn next(positions: &Positions) -> Option<i64> {
    positions.get(&key()).map(|position| position.next.get())
}

/// Names of what a reader's glob finds.
fn visible(root: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".jsonl")).collect()
}

fn ids(root: &Path) -> Vec<i64> {
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_i64().unwrap();
    let texts = visible(root).into_iter().map(|name| fs::read_to_string(root.join(name)).unwrap());
    let mut ids: Vec<i64> = texts.flat_map(|text| text.lines().map(id).collect::<Vec<_>>()).collect();
    ids.sort_unstable();
    ids
}

/// As a crash between the entry and the links leaves it, if no checkpoint has passed the entry.
fn unlink(root: &Path, files: &BTreeSet<String>, entry: u64) {
    let checkpoint = root.join(names::HOUSEKEEPING).join("log").join(format!("{entry:020}.checkpoint"));
    if checkpoint.try_exists().unwrap() {
        return;
    }
    for name in files {
        fs::rename(root.join(name), names::staged_path(root, &names::staged_name(name))).unwrap();
    }
}

fn run(seed: u64) {
    let dir = scratch();
    let root = dir.path();
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut instances: Vec<Instance> = (0..INSTANCES).map(|_| Instance::new(root)).collect();
    // What was acknowledged.
    let mut durable = 0;
    for number in 0..STEPS {
        let index = dice.usize(..INSTANCES);
        let instance = &mut instances[index];
        if !instance.is_open {
            instance.read_positions();
        }
        match dice.usize(..12) {
            0 => instances[index] = Instance::new(root),
            1 => instance.abandon(),
            2 => instance.read_again(),
            3..=8 => instance.accept(dice.i64(1..6)),
            _ => {
                let before = visible(root);
                match instance.sink.commit() {
                    Ok(positions) => {
                        durable = durable.max(next(&positions).unwrap_or_default());
                        let entry = instance.sink.log().unwrap().1;
                        let files: BTreeSet<String> = visible(root).difference(&before).cloned().collect();
                        if dice.usize(..4) == 0 {
                            unlink(root, &files, entry);
                            instances[index] = Instance::new(root);
                        }
                    }
                    Err(SinkError::Conflict(_)) => instance.abandon(),
                    Err(error) => panic!("seed {seed}, step {number}: {error:?}"),
                }
            }
        }
        let ids = ids(root);
        assert!(
            ids.is_sorted_by(|one, two| one < two),
            "seed {seed}, step {number}: doubled rows in {ids:?}"
        );
        assert!(ids.last().is_none_or(|last| *last < durable), "seed {seed}, step {number}: not committed");
    }
    instances.clear();
    let mut last = Instance::new(root);
    last.read_positions();
    assert_eq!(last.accepted.unwrap_or_default(), durable, "seed {seed}");
    assert_eq!(ids(root), (0..durable).collect::<Vec<_>>(), "seed {seed}");
    // Past all witnesses, nothing that is not listed is kept.
    for _ in 0..2 {
        last.accept(1);
        last.sink.commit().unwrap();
    }
    last.read_positions();
    assert_eq!(fs::read_dir(names::staged_dir(root)).unwrap().count(), 0, "seed {seed}: orphans");
}

#[test]
fn sinks_that_die_and_race_lose_and_double_nothing() {
    (0..SEEDS).chain(REGRESSIONS.iter().copied()).for_each(run);
}
