use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use delta_kernel::committer::FileSystemCommitter;
use delta_kernel::engine::arrow_data::EngineDataArrowExt;
use delta_kernel::object_store::local::LocalFileSystem;
use delta_kernel::{Engine, Snapshot};
use delta_kernel_engine::DefaultEngineBuilder;
use serde_json::{Value, json};

use crate::support::data::{self, Record};
use crate::support::program::{Finished, Workplace, eventually, finished, pause};
use crate::support::{self, Services};

/// A broker, a topic with numbers as text, and the routes that read it into a table.
struct Stage {
    services: Services,
    topic: String,
    group: String,
    /// The table; the places come and go.
    lake: tempfile::TempDir,
}

const ROWS: &str = "SELECT cast(value AS BIGINT) AS id, 'n' || value AS name FROM batch";

impl Stage {
    fn new(test: &str, partitions: i32) -> Option<Self> {
        let services = support::services(test)?;
        let (topic, group) = (support::unique("rows"), support::unique("group"));
        data::create_topic(&services, &topic, partitions);
        Some(Self { services, topic, group, lake: tempfile::tempdir().unwrap() })
    }

    fn table(&self) -> std::path::PathBuf {
        self.lake.path().join("numbers")
    }

    /// Records with these numbers, dealt out to the partitions.
    fn produce(&self, numbers: impl IntoIterator<Item = i64>, partitions: i32) {
        let records = numbers.into_iter().map(|number| {
            let partition = i32::try_from(number).unwrap_or(0).rem_euclid(partitions);
            Record::new(partition, number.to_string().into_bytes())
        });
        data::produce(&self.services, &self.topic, records);
    }

    /// A working directory whose route writes `rows` with these keys of `delta:`.
    fn place(&self, keys: &str, rows: &str) -> Workplace {
        let (topic, group, bootstrap) = (&self.topic, &self.group, &self.services.bootstrap);
        let table = self.table();
        let routes = format!(
            "
version: 1
kafka:
  bootstrap.servers: \"{bootstrap}\"
  group.id: {group}
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
routes:
  r:
    topics: [{topic}]
    value: string
    start: earliest
    batch: {{max_rows: 200, max_age: 50ms}}
    views:
      rows: {rows}
    sinks:
      table: {{from: rows, delta: {{path: \"{}\", {keys}, roll: {{max_rows: 400, max_age: 100ms}}}}}}
",
            table.display()
        );
        Workplace::new(&routes)
    }

    fn plain(&self) -> Workplace {
        self.place("create: true", ROWS)
    }

    fn count(&self) -> usize {
        read(&self.table()).iter().map(RecordBatch::num_rows).sum()
    }

    /// Every number below `end` is there once.
    #[track_caller]
    fn assert_once(&self, end: i64) {
        let mut ids = data::numbers(&read(&self.table()), "id");
        ids.sort_unstable();
        assert_eq!(ids, (0..end).collect::<Vec<_>>());
    }
}

fn engine() -> impl Engine {
    DefaultEngineBuilder::new(Arc::new(LocalFileSystem::new())).build()
}

/// What the library reads of a table; nothing where there is none yet.
pub fn read(table: &Path) -> Vec<RecordBatch> {
    if !table.join("_delta_log/00000000000000000000.json").is_file() {
        return Vec::new();
    }
    let engine: Arc<dyn Engine> = Arc::new(engine());
    let snapshot = Snapshot::builder_for(table.to_str().unwrap()).build(engine.as_ref()).unwrap();
    let scan = snapshot.scan_builder().build().unwrap();
    scan.execute(engine).unwrap().map(|data| data.try_into_record_batch().unwrap()).collect()
}

/// A commit of another writer, made by the library. Does it win its number?
fn foreign_commit(table: &Path, number: i64) -> bool {
    let engine = engine();
    let snapshot = Snapshot::builder_for(table.to_str().unwrap()).build(&engine).unwrap();
    let transaction = snapshot.transaction(Box::new(FileSystemCommitter::new()), &engine).unwrap();
    transaction.with_transaction_id("foreign".to_owned(), number).commit(&engine).unwrap().is_committed()
}

/// All lines of the table's log.
fn lines(table: &Path) -> Vec<Value> {
    let mut lines = Vec::new();
    for version in 0_u64.. {
        let path = table.join(format!("_delta_log/{version:020}.json"));
        let Ok(text) = std::fs::read_to_string(path) else {
            break;
        };
        lines.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    lines
}

#[test]
fn rows_are_appended_once_and_can_be_moved() {
    let Some(stage) = Stage::new("delta::rows_are_appended_once_and_can_be_moved", 2) else {
        return;
    };
    let _turn = support::turn();
    let place = stage.plain();
    stage.produce(0..1000, 2);
    let missing = stage.place("create: false", ROWS).run(&["run", "--until", "latest"]).expect_code(1);
    assert!(missing.stderr.contains("there is no Delta table"), "{}", missing.stderr);
    let checked = place.run(&["check"]).expect_code(0).stdout;
    assert!(checked.contains("exactly once: data files and positions are one entry"), "{checked}");
    let planned = place.run(&["plan"]).expect_code(0).stdout;
    assert!(planned.contains("is new"), "{planned}");
    assert!(!stage.table().join("_delta_log").is_dir());
    place.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(1000);
    stage.produce(1000..1500, 2);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(1500);

    let listed = place.run(&["offsets", "list", "--format", "json"]).expect_code(0);
    let rows: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row["next"] == 750 && row["lag"] == 0), "{rows:#?}");
    let reset = ["offsets", "reset", "--route", "r", "--to", "-10"];
    let said = place.run(&reset).expect_code(0).stdout;
    assert!(said.contains("20 offsets are read again; rows that are there stay"), "{said}");
    eventually("the group has no members", || {
        place.run(&[&reset[..], &["--execute"]].concat()).code == Some(0)
    });
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(stage.count(), 1520);
}

#[test]
fn kills_lose_and_double_no_row() {
    let Some(stage) = Stage::new("delta::kills_lose_and_double_no_row", 4) else {
        return;
    };
    let _turn = support::turn();
    let place = stage.plain();
    let mut total = 0;
    for round in 0..8 {
        let mut service = place.start(&["run"]);
        let seen = stage.count();
        stage.produce(total..total + 4000, 4);
        total += 4000;
        eventually("the service writes", || stage.count() > seen);
        pause(Duration::from_millis(11 * round % 70));
        service.kill();
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(total);
}

/// Killed at every step, and told at every step that it has failed although it was done.
#[test]
fn each_step_may_be_the_last_or_its_reply_be_lost() {
    let Some(stage) = Stage::new("delta::each_step_may_be_the_last_or_its_reply_be_lost", 1) else {
        return;
    };
    let _turn = support::turn();
    let mut total = 0;
    // The second entry of a run has rows: the first may be the creation, or stores where the sink starts.
    let points = [
        "table.opened",
        "file.synced",
        "entry.written",
        "entry.written:2",
        "entry.linked",
        "entry.linked:2",
        "entry.durable",
        "committed",
    ];
    for point in points {
        for action in ["kill", "error"] {
            stage.produce(total..total + 1000, 1);
            total += 1000;
            let armed = stage.plain().with("SIDESTREAM_FAILPOINT", &format!("delta.{point}={action}"));
            let ended = armed.run(&["run", "--until", "latest"]);
            assert_eq!(ended.code == Some(0), action == "error", "{point}: {}", ended.stderr);
            assert!(ended.stderr.contains("fail point"), "{point} was not come to: {}", ended.stderr);
            stage.plain().run(&["run", "--until", "latest"]).expect_code(0);
            stage.assert_once(total);
        }
    }
}

/// Another program writes to the table all the time; both go on, and nothing of either is lost.
#[test]
fn other_writers_are_in_nobodys_way() {
    let Some(stage) = Stage::new("delta::other_writers_are_in_nobodys_way", 2) else {
        return;
    };
    let _turn = support::turn();
    let place = stage.plain();
    stage.produce(0..100, 2);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let mut service = place.start(&["run"]);
    let (mut total, mut won) = (100, 0);
    eventually("both have written often", || {
        if total < 20_000 {
            stage.produce(total..total + 500, 2);
            total += 500;
        }
        won += i64::from(foreign_commit(&stage.table(), won + 1));
        total >= 20_000 && won > 30 && stage.count() == usize::try_from(total).unwrap()
    });
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    stage.assert_once(total);
    let foreign = lines(&stage.table()).iter().filter(|line| line["txn"]["appId"] == "foreign").count();
    assert_eq!(i64::try_from(foreign).unwrap(), won);
}

/// Frozen before its entry has a number; another one goes on, and it wakes up as nobody.
#[test]
fn a_zombie_commits_nothing() {
    let Some(stage) = Stage::new("delta::a_zombie_commits_nothing", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.produce(0..200, 1);
    stage.plain().run(&["run", "--until", "latest"]).expect_code(0);
    stage.produce(200..1000, 1);
    let frozen = stage.plain().with("SIDESTREAM_FAILPOINT", "delta.entry.written=stop");
    let mut zombie = frozen.start(&["run"]);
    eventually("it is frozen", || zombie.log().contains("delta.entry.written"));
    stage.plain().run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(1000);
    zombie.send("CONT");
    stage.produce(1000..1200, 1);
    eventually("it goes on where the other one stands", || stage.count() == 1200);
    assert_eq!(zombie.terminate(), Some(0), "{}", zombie.log());
    stage.assert_once(1200);
}

#[test]
fn a_newer_version_adds_its_column_while_the_route_runs() {
    let Some(stage) = Stage::new("delta::a_newer_version_adds_its_column_while_the_route_runs", 1) else {
        return;
    };
    let _turn = support::turn();
    let subject = format!("{}-value", stage.topic);
    let version = |fields: Value| {
        let schema = json!({"type": "record", "name": "Order", "fields": fields});
        let id = data::register(&stage.services, &subject, &schema);
        (id, apache_avro::Schema::parse(&schema).unwrap())
    };
    let produce = |(id, schema): &(u32, apache_avro::Schema), values: Vec<Value>| {
        let records = values.iter().map(|value| Record::new(0, data::framed(*id, schema, value)));
        data::produce(&stage.services, &stage.topic, records.collect::<Vec<_>>());
    };
    let one = version(json!([{"name": "id", "type": "long"}]));
    let place = stage.place("create: true", "SELECT * FROM batch");
    let routes = std::fs::read_to_string(place.path("routes.yaml")).unwrap();
    let registry = format!("schema_registry: {{url: \"{}\"}}\nroutes:\n", stage.services.registry);
    let routes = routes.replace("routes:\n", &registry).replace("value: string", "value: registry");
    std::fs::write(place.path("routes.yaml"), routes).unwrap();
    produce(&one, (0..100).map(|id| json!({"id": id})).collect());
    let mut service = place.start(&["run"]);
    eventually("the first version is written", || stage.count() == 100);
    let two = version(json!([
        {"name": "id", "type": "long"},
        {"name": "note", "type": ["null", "string"], "default": null}
    ]));
    produce(&two, (100..150).map(|id| json!({"id": id, "note": "new"})).collect());
    eventually("the second version is written", || stage.count() == 150);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    stage.assert_once(150);
    let notes = read(&stage.table());
    let nulls: usize = notes.iter().map(|rows| rows.column_by_name("note").unwrap().null_count()).sum();
    assert_eq!(nulls, 100);
    // The columns are changed once, by the entry that has the first rows with the new one.
    let changes = lines(&stage.table()).iter().filter(|line| line.get("metaData").is_some()).count();
    assert_eq!(changes, 2);
}

#[test]
fn a_table_has_one_owner_unless_it_is_adopted() {
    let Some(mut stage) = Stage::new("delta::a_table_has_one_owner_unless_it_is_adopted", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.produce(0..100, 1);
    stage.plain().run(&["run", "--until", "latest"]).expect_code(0);
    let former = std::mem::replace(&mut stage.group, support::unique("other"));
    let foreign = stage.plain();
    let planned = foreign.run(&["plan"]).expect_code(1).stdout;
    let refused = foreign.run(&["run", "--until", "latest"]).expect_code(1).stderr;
    for told in [planned, refused] {
        let owner = format!("belongs to sink `r/table` of group `{former}`");
        assert!(told.contains(&owner) && told.contains("give each sink its own `path`"), "{told}");
    }
    let routes = std::fs::read_to_string(foreign.path("routes.yaml")).unwrap();
    let adopting = routes.replace("from: rows,", "from: rows, adopt: r/table,");
    std::fs::write(foreign.path("routes.yaml"), adopting).unwrap();
    let planned = foreign.run(&["plan"]).expect_code(0).stdout;
    assert!(planned.contains("takes the positions of sink `r/table`"), "{planned}");
    stage.produce(100..150, 1);
    foreign.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(150);
    stage.group = former;
    let refused = stage.plain().run(&["run", "--until", "latest"]).expect_code(1).stderr;
    assert!(refused.contains("was taken over by sink `r/table`"), "{refused}");
}

/// Reads a table with delta-rs and DataFusion in Python: rows, different ids, lowest and highest, those that end in 7, and
/// where the sink stands.
const PYTHON: &str = "
import json, sys
from deltalake import DeltaTable, QueryBuilder
table = DeltaTable(sys.argv[1])
sql = '''select count(*) as rows, count(distinct id) as ids, min(id) as low, max(id) as high,
sum(case when last = '7' then 1 else 0 end) as sevens, count(distinct last) as lasts from t'''
row = QueryBuilder().register('t', table).execute(sql).read_all().to_struct_array().to_pylist()[0]
row['next'] = table.transaction_version(sys.argv[2])
row['partitions'] = table.metadata().partition_columns
print(json.dumps(row))
";

#[test]
fn delta_rs_in_python_reads_every_row_once() {
    let test = "delta::delta_rs_in_python_reads_every_row_once";
    let (Some(stage), Some(python)) = (Stage::new(test, 1), support::python(test)) else {
        return;
    };
    let has_deltalake = Command::new(&python).args(["-c", "import deltalake"]).output().unwrap();
    if !has_deltalake.status.success() {
        support::without(test, "no `deltalake` for Python: run scripts/fetch-test-services");
        return;
    }
    let _turn = support::turn();
    stage.produce(0..3000, 1);
    let keys = "create: true, partition_by: {last: \"right(name, 1)\"}";
    stage.place(keys, ROWS).run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(3000);
    let all = lines(&stage.table());
    let mut names = all.iter().rev().filter_map(|line| line["txn"]["appId"].as_str());
    let next = names.find(|name| name.contains("/next/")).unwrap().to_owned();
    let mut command = Command::new(&python);
    command.args(["-B", "-c", PYTHON]).arg(stage.table()).arg(&next);
    let done: Finished = finished(command, &["deltalake"]).expect_code(0);
    let told: Value = serde_json::from_str(done.stdout.trim()).unwrap();
    let expected = json!({
        "rows": 3000, "ids": 3000, "low": 0, "high": 2999, "sevens": 300, "lasts": 10, "next": 3000,
        "partitions": ["last"],
    });
    assert_eq!(told, expected);
}
