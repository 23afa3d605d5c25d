use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};

use super::*;
use crate::model::{Classify, ClusterId, Fault, Offset, Partition, TopicId};
use crate::sink::owner::Owner;

fn step(start: Option<i64>, end: i64, reason: Reason) -> Move {
    Move {
        key: PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(5)), partition: Partition(0) },
        topic: TopicName::new("t"),
        start: start.and_then(Offset::new),
        end: Position { next: Offset::new(end).unwrap(), epoch: None },
        reason,
        records: 2,
    }
}

#[test]
fn moves_of_one_partition_join_into_one() {
    let mut moves = Vec::new();
    merge(&mut moves, &step(Some(0), 4, Reason::Idle));
    merge(&mut moves, &step(Some(4), 9, Reason::Data));
    merge(&mut moves, &step(Some(9), 12, Reason::Idle));
    assert_eq!(moves.len(), 1);
    assert_eq!((moves[0].end.next.get(), moves[0].records), (12, 6));
    assert_eq!(moves[0].reason, Reason::Data);
    merge(&mut moves, &step(Some(12), 20, Reason::Skipped));
    assert_eq!(moves.len(), 2);
}

/// Rows `ids`, each with the partition value that `part` gives it.
fn batch(ids: Range<i64>, part: impl Fn(i64) -> String) -> Batch {
    let start = (ids.start > 0).then_some(ids.start);
    let moves = vec![step(start, ids.end, Reason::Data)];
    let parts: StringArray = ids.clone().map(|id| Some(part(id))).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(parts), Arc::new(Int64Array::from_iter_values(ids))];
    Batch::of_rows(moves, RecordBatch::try_new(schema(), columns).unwrap())
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("part", DataType::Utf8, true),
        Field::new("id", DataType::Int64, false),
    ]))
}

type Values = Result<Vec<ArrayRef>, Box<dyn Error + Send + Sync>>;

/// A sink below `root`, partitioned by what `values` makes of the rows.
fn sink_by(root: &Path, format: Box<dyn Format>, values: fn(&RecordBatch) -> Values) -> FileSink {
    let partitioning = Partitioning::new(vec!["part".to_owned()], &schema(), Box::new(values));
    let options = FileSinkOptions {
        home: root.into(),
        claim: Owner { cluster: ClusterId("c".into()), group: "g".into(), identity: "r/s".into() }.into(),
        schema: schema(),
        roll: Roll { bytes_max: u64::MAX, rows_max: None, age_max: Duration::from_secs(3600) },
        partitioning: Some(partitioning),
    };
    FileSink::new(options, format)
}

fn sink(root: &Path, format: Box<dyn Format>) -> FileSink {
    let mut sink = sink_by(root, format, |rows| Ok(vec![rows.column(0).clone()]));
    sink.read_positions().unwrap();
    sink
}

/// What a reader that globs sees: the texts of the files of each directory below the root.
fn texts(root: &Path) -> BTreeMap<String, Vec<String>> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for directory in fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        if name == names::HOUSEKEEPING {
            continue;
        }
        for file in fs::read_dir(&directory).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            texts.entry(name.clone()).or_default().push(text);
        }
    }
    texts
}

/// The ids in sight, by directory.
fn ids(root: &Path) -> BTreeMap<String, Vec<i64>> {
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_i64().unwrap();
    let by_directory = texts(root).into_iter().map(|(directory, texts)| {
        let mut ids: Vec<i64> = texts.iter().flat_map(|text| text.lines().map(id)).collect();
        ids.sort_unstable();
        (directory, ids)
    });
    by_directory.collect()
}

fn staged_count(root: &Path) -> usize {
    fs::read_dir(names::staged_dir(root)).unwrap().count()
}

/// JSON Lines, counting open files.
#[derive(Debug, Clone, Default)]
struct Counting {
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Counted {
    inner: Box<dyn RowWriter>,
    _one: One,
}

struct One(Arc<AtomicUsize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Format for Counting {
    fn extension(&self) -> &'static str {
        JsonLinesFormat::default().extension()
    }

    fn open_bytes(&self) -> usize {
        JsonLinesFormat::default().open_bytes()
    }

    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(open, Ordering::SeqCst);
        let inner = JsonLinesFormat::default().begin(file, schema)?;
        Ok(Box::new(Counted { inner, _one: One(self.open.clone()) }))
    }
}

impl RowWriter for Counted {
    fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
        self.inner.write(rows)
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn finish(self: Box<Self>) -> io::Result<File> {
        self.inner.finish()
    }
}

#[test]
fn two_hundred_partitions_come_once_with_few_files_open() {
    let root = tempfile::tempdir().unwrap();
    let format = Counting::default();
    let most = format.most.clone();
    let mut sink = sink(root.path(), Box::new(format));
    let part = |id: i64| format!("p{:03}", id % 200);
    sink.accept(&batch(0..1000, part)).unwrap();
    sink.accept(&batch(1000..2000, part)).unwrap();
    assert!(texts(root.path()).is_empty());
    let positions = sink.commit().unwrap();
    assert_eq!(positions.get(&step(None, 0, Reason::Idle).key).unwrap().next.get(), 2000);
    let expected = (0..200).map(|part| (format!("part=p{part:03}"), (part..2000).step_by(200).collect()));
    assert_eq!(ids(root.path()), expected.collect::<BTreeMap<String, Vec<i64>>>());
    assert_eq!(most.load(Ordering::SeqCst), 64);
    assert_eq!((staged_count(root.path()), sink.settled.rows), (0, 2000));
    // All of it is one entry, after the one that names the owner.
    assert_eq!(sink.log().unwrap().1, 1);
}

#[test]
fn rows_of_a_partition_keep_their_order_and_leave_its_column_out() {
    let root = tempfile::tempdir().unwrap();
    let mut sink = sink(root.path(), Box::new(JsonLinesFormat::default()));
    for ids in [0..3, 3..5] {
        sink.accept(&batch(ids, |id| if id % 2 == 0 { "even".to_owned() } else { String::new() })).unwrap();
    }
    sink.commit().unwrap();
    let expected = [
        ("part=__HIVE_DEFAULT_PARTITION__", "{\"id\":1}\n{\"id\":3}\n"),
        ("part=even", "{\"id\":0}\n{\"id\":2}\n{\"id\":4}\n"),
    ];
    let expected = expected.map(|(directory, text)| (directory.to_owned(), vec![text.to_owned()]));
    assert_eq!(texts(root.path()), BTreeMap::from(expected));
}

#[test]
fn a_restart_brings_files_into_sight_in_their_directories() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let part = |id: i64| if id % 2 == 0 { "CH".to_owned() } else { "a/b".to_owned() };
    let mut first = sink(root, Box::new(JsonLinesFormat::default()));
    first.accept(&batch(0..10, part)).unwrap();
    first.commit().unwrap();
    drop(first);
    let before = ids(root);
    assert_eq!(before.keys().collect::<Vec<_>>(), ["part=CH", "part=a%2Fb"]);
    // As a crash between the entry and the links leaves it; somebody removed an empty directory meanwhile.
    for directory in before.keys() {
        for file in fs::read_dir(root.join(directory)).unwrap() {
            let file = file.unwrap();
            let staged = names::staged_name(file.file_name().to_str().unwrap());
            fs::rename(file.path(), names::staged_path(root, &staged)).unwrap();
        }
    }
    fs::remove_dir(root.join("part=CH")).unwrap();
    assert!(ids(root).is_empty());
    let mut again = sink(root, Box::new(JsonLinesFormat::default()));
    assert_eq!((ids(root), staged_count(root)), (before, 0));
    again.accept(&batch(10..12, part)).unwrap();
    again.commit().unwrap();
    assert_eq!(ids(root)["part=CH"], [0, 2, 4, 6, 8, 10]);
}

#[test]
fn what_is_abandoned_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut sink = sink(root.path(), Box::new(JsonLinesFormat::default()));
    sink.accept(&batch(0..100, |id| id.to_string())).unwrap();
    assert_eq!(staged_count(root.path()), 100);
    sink.drop_pending();
    assert_eq!(staged_count(root.path()), 0);
    assert!(texts(root.path()).is_empty() && sink.flush_due().is_none());
}

#[test]
fn values_that_are_no_directory_stop_the_route() {
    let root = tempfile::tempdir().unwrap();
    let mut long = sink(root.path(), Box::new(JsonLinesFormat::default()));
    let error = long.accept(&batch(0..2, |_| "x".repeat(300))).unwrap_err();
    assert_eq!(error.fault(), Fault::Refused);
    assert_eq!(error.to_string(), "failed to partition the rows of t/0 [0, 2) in sink `r/s`");
    let source = error.source().unwrap().to_string();
    assert!(source.contains("partition `part` makes a directory name of 305 bytes"), "{source}");
    let mut failing =
        sink_by(root.path(), Box::new(JsonLinesFormat::default()), |_| Err("no such day".into()));
    let error = failing.accept(&batch(0..2, |_| String::new())).unwrap_err();
    assert_eq!(
        (error.fault(), error.source().unwrap().to_string()),
        (Fault::Refused, "no such day".to_owned())
    );
    assert_eq!(staged_count(root.path()), 0);
}
