use std::time::Duration;

use serde_json::Value;

use crate::support::data::{self, Record};
use crate::support::objects::{ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY};
use crate::support::program::{Workplace, eventually, files, pause};
use crate::support::{self, Objects, Services, Stoppable};

/// A broker, an object store, a topic with numbers as text, and the routes that read it.
struct Stage {
    services: Services,
    objects: Objects,
    topic: String,
    group: String,
    partitions: i32,
}

impl Stage {
    fn new(test: &str, partitions: i32) -> Option<Self> {
        let services = support::services(test)?;
        let objects = support::own_objects(test)?;
        let (topic, group) = (support::unique("objects"), support::unique("group"));
        data::create_topic(&services, &topic, partitions);
        Some(Self { services, objects, topic, group, partitions })
    }

    /// Records with these numbers, dealt out to the partitions.
    fn produce(&self, numbers: std::ops::Range<i64>) {
        let records = numbers.map(|number| {
            let partition = i32::try_from(number).unwrap_or(0).rem_euclid(self.partitions);
            Record::new(partition, number.to_string().into_bytes())
        });
        data::produce(&self.services, &self.topic, records);
    }

    /// A working directory whose route has these sinks; the login is in the environment.
    fn place(&self, sinks: &str) -> Workplace {
        let (topic, group, bootstrap) = (&self.topic, &self.group, &self.services.bootstrap);
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
      rows: SELECT cast(value AS BIGINT) AS id, cast(value AS BIGINT) % 3 AS part FROM batch
    sinks:
{sinks}
"
        );
        Workplace::new(&routes)
            .with("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .with("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
            .with("AWS_ENDPOINT", &self.objects.endpoint())
            .with("AWS_ALLOW_HTTP", "true")
            .with("AWS_REGION", "us-east-1")
    }

    /// With one sink of text, whose files are small.
    fn plain(&self) -> Workplace {
        self.place(&format!(
            "      text: {{from: rows, jsonl: {{path: \"s3://{BUCKET}/out\", roll: {{max_rows: 500, max_age: 100ms}}}}}}"
        ))
    }

    /// The numbers that a reader finds that globs `<prefix>/**/*.jsonl`.
    fn ids(&self, prefix: &str) -> Vec<i64> {
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_i64().unwrap();
        let found = files(&self.objects.bucket().join(prefix), ".jsonl");
        let texts = found.iter().map(|path| std::fs::read_to_string(path).unwrap());
        let mut ids: Vec<i64> = texts.flat_map(|text| text.lines().map(id).collect::<Vec<_>>()).collect();
        ids.sort_unstable();
        ids
    }

    #[track_caller]
    fn assert_once(&self, end: i64) {
        assert!(self.ids("out") == (0..end).collect::<Vec<_>>(), "{} of {end} rows", self.ids("out").len());
    }
}

#[test]
fn files_of_every_format_are_objects_and_can_be_moved() {
    let Some(stage) = Stage::new("files_of_every_format_are_objects_and_can_be_moved", 2) else {
        return;
    };
    let _turn = support::turn();
    let storage = format!(
        "{{endpoint: \"{}\", allow_http: true, access_key_id: {ACCESS_KEY_ID}, secret_access_key: \"${{KEY}}\"}}",
        stage.objects.endpoint()
    );
    let sink = |name: &str, kind: &str, keys: &str| {
        format!(
            "      {name}: {{from: rows, {kind}: {{path: \"s3://{BUCKET}/{name}/\", storage: {storage}{keys}}}}}"
        )
    };
    let sinks = [
        sink("out", "jsonl", ", partition_by: {part: part}"),
        sink("columns", "parquet", ""),
        sink("packed", "csv", ", compression: gzip"),
        sink("blocks", "avro", ""),
    ];
    let place = stage.place(&sinks.join("\n")).with("KEY", SECRET_ACCESS_KEY);
    stage.produce(0..1000);
    let checked = place.run(&["check"]).expect_code(0);
    assert!(checked.stdout.contains("one entry of the prefix's commit log"), "{}", checked.stdout);
    let planned = place.run(&["plan"]).expect_code(0);
    assert!(planned.stdout.contains("is new"), "{}", planned.stdout);
    let nothing = files(&stage.objects.bucket(), "");
    assert!(nothing.is_empty(), "{nothing:?}");
    let first = place.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(1000);
    assert!(!files(&stage.objects.bucket().join("out/part=1"), ".jsonl").is_empty());
    let (columns, _) = data::parquet_rows(&stage.objects.bucket().join("columns"));
    let mut ids = data::numbers(&columns, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..1000).collect::<Vec<_>>());
    for (name, suffix) in [("packed", ".csv.gz"), ("blocks", ".avro")] {
        assert!(!files(&stage.objects.bucket().join(name), suffix).is_empty(), "{name}");
    }
    assert!(files(&stage.objects.bucket(), ".staged").is_empty());

    stage.produce(1000..1500);
    let second = place.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(1500);
    let listed = place.run(&["offsets", "list", "--format", "json"]).expect_code(0);
    let rows: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(rows.len(), 8, "{rows:#?}");
    assert!(rows.iter().all(|row| row["next"] == 750 && row["log"].is_string()), "{rows:#?}");
    let reset = ["offsets", "reset", "--route", "r", "--sink", "out", "--to", "-10"];
    place.run(&reset).expect_code(0);
    let moved = place.run(&[&reset[..], &["--execute"][..]].concat()).expect_code(0);
    assert!(moved.stdout.contains("sink out: moved in `s3://lake/out/`"), "{}", moved.stdout);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(stage.ids("out").len(), 1520);
    for told in [&checked, &planned, &first, &second, &listed, &moved] {
        let shown = told.stderr.contains(SECRET_ACCESS_KEY) || told.stdout.contains(SECRET_ACCESS_KEY);
        assert!(!shown, "{}\n{}", told.stdout, told.stderr);
    }
}

/// Killed at every step, and told at every step that it has failed although it was done.
#[test]
fn each_step_in_a_store_may_be_the_last_or_its_reply_be_lost() {
    let Some(stage) = Stage::new("each_step_in_a_store_may_be_the_last_or_its_reply_be_lost", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.produce(0..100);
    stage.plain().run(&["run", "--until", "latest"]).expect_code(0);
    let mut total = 100;
    for point in [
        "file.data.synced",
        "file.targets.made",
        "file.entry.linked",
        "file.entry.owned",
        "file.data.linked",
        "file.staged.removed",
        "file.targets.synced",
    ] {
        for action in ["kill", "error"] {
            stage.produce(total..total + 300);
            total += 300;
            let armed = stage.plain().with("SIDESTREAM_FAILPOINT", &format!("{point}={action}"));
            let ended = armed.run(&["run", "--until", "latest"]);
            assert_eq!(ended.code == Some(0), action == "error", "{point}: {}", ended.stderr);
            assert!(ended.stderr.contains("fail point"), "{point} was not come to: {}", ended.stderr);
            stage.plain().run(&["run", "--until", "latest"]).expect_code(0);
            stage.assert_once(total);
        }
    }
    // All were passed by rows that came later.
    let staged = files(&stage.objects.bucket(), ".staged");
    assert!(staged.len() <= 1, "{staged:?}");
}

/// Two instances of a group write below one prefix at the same time: they try for the same numbers of the log.
#[test]
fn racing_instances_that_are_killed_lose_and_double_nothing() {
    let Some(stage) = Stage::new("racing_instances_that_are_killed_lose_and_double_nothing", 4) else {
        return;
    };
    let _turn = support::turn();
    let places = [stage.plain(), stage.plain()];
    let mut total = 0;
    for round in 0..4_u64 {
        let mut services = places.each_ref().map(|place| place.start(&["run"]));
        let seen = files(&stage.objects.bucket(), ".jsonl").len();
        stage.produce(total..total + 4000);
        total += 4000;
        eventually("the instances write", || files(&stage.objects.bucket(), ".jsonl").len() > seen + 2);
        pause(Duration::from_millis(30 * round));
        for service in &mut services {
            service.kill();
        }
    }
    let mut services = places.each_ref().map(|place| place.start(&["run"]));
    eventually("all rows are there", || i64::try_from(stage.ids("out").len()).unwrap() >= total);
    for service in &mut services {
        assert_eq!(service.terminate(), Some(0), "{}", service.log());
        assert!(!service.log().contains(SECRET_ACCESS_KEY));
    }
    stage.assert_once(total);
}

#[test]
fn a_store_that_is_away_is_waited_for_and_a_wrong_login_is_told() {
    let Some(mut stage) = Stage::new("a_store_that_is_away_is_waited_for_and_a_wrong_login_is_told", 2)
    else {
        return;
    };
    let _turn = support::turn();
    let place = stage.plain();
    let mut service = place.start(&["run"]);
    stage.produce(0..1000);
    eventually("rows are there", || stage.ids("out").len() == 1000);
    stage.objects.kill();
    stage.produce(1000..3000);
    eventually("the outage is told", || service.log().contains("failed to write sink `r/text`"));
    stage.objects.restart().unwrap();
    eventually("all rows are there", || stage.ids("out").len() == 3000);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    stage.assert_once(3000);

    let wrong = stage.plain().with("AWS_SECRET_ACCESS_KEY", "another-canary");
    let mut service = wrong.start(&["run"]);
    eventually("it is told", || service.log().contains("SignatureDoesNotMatch"));
    assert!(service.log().contains("look at the login"), "{}", service.log());
    assert!(!service.log().contains("another-canary"), "{}", service.log());
    service.kill();
}
