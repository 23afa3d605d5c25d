use std::path::Path;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::record_batch::RecordBatch;
use rdkafka::Message;
use serde_json::{Value, json};

use crate::pipeline::routes;
use crate::support::data::{self, Record};
use crate::support::program::{Service, Workplace, eventually, pause};
use crate::support::{self, Services};

/// A writer's schema, registered.
struct Version {
    id: u32,
    schema: apache_avro::Schema,
}

impl Version {
    fn register(services: &Services, subject: &str, fields: Value) -> Self {
        let schema = json!({"type": "record", "name": "Order", "namespace": "shop", "fields": fields});
        let id = data::register(services, subject, &schema);
        Self { id, schema: apache_avro::Schema::parse(&schema).unwrap() }
    }

    /// Records of two partitions by turns.
    fn record(&self, id: i64, value: &Value) -> Record {
        Record::new(i32::try_from(id % 2).unwrap(), data::framed(self.id, &self.schema, value))
    }
}

fn first(services: &Services, subject: &str) -> Version {
    let fields = json!([{"name": "id", "type": "long"}, {"name": "amount", "type": "double"}]);
    Version::register(services, subject, fields)
}

/// One field less, and two that the first version does not have.
fn second(services: &Services, subject: &str) -> Version {
    let fields = json!([
        {"name": "note", "type": ["null", "string"], "default": null},
        {"name": "id", "type": "long"},
        {"name": "channel", "type": "string", "default": "web"}
    ]);
    Version::register(services, subject, fields)
}

fn old(version: &Version, id: i64) -> Record {
    version.record(id, &json!({"id": id, "amount": 0.5}))
}

fn new(version: &Version, id: i64) -> Record {
    version.record(id, &json!({"id": id, "note": format!("n{id}"), "channel": "app"}))
}

fn ids(dir: &Path) -> Vec<i64> {
    let mut ids = data::numbers(&data::parquet_rows(dir).0, "id");
    ids.sort_unstable();
    ids
}

/// How often the service has said this.
fn said(service: &Service, message: &str) -> usize {
    service.log().lines().filter(|line| line.contains(message)).count()
}

fn text<'a>(batch: &'a RecordBatch, column: &str, row: usize) -> Option<&'a str> {
    let texts = batch.column_by_name(column).unwrap().as_string::<i32>();
    texts.is_valid(row).then(|| texts.value(row))
}

#[test]
fn a_newer_version_widens_a_route_while_it_runs() {
    let Some(services) = support::services("a_newer_version_widens_a_route_while_it_runs") else {
        return;
    };
    let _turn = support::turn();
    let (topic, copy, group) = (support::unique("widens"), support::unique("copy"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    data::create_topic(&services, &copy, 1);
    let subject = format!("{topic}-value");
    let one = first(&services, &subject);
    data::produce(&services, &topic, (0..500).map(|id| old(&one, id)));
    let extra = format!(
        "
    batch: {{max_rows: 100, max_age: 50ms}}
    views:
      plain: SELECT id FROM batch
    sinks:
      all: {{parquet: {{path: out/all, roll: {{max_age: 200ms}}}}}}
      plain: {{from: plain, parquet: {{path: out/plain, roll: {{max_age: 10m}}}}}}
      copy: {{kafka: {{topic: {copy}}}}}
"
    );
    let place = Workplace::new(&routes(&services, &group, &topic, &extra));
    let all = place.path("out/all");
    let mut service = place.start(&["run"]);
    eventually("the first version is written", || ids(&all).len() == 500);
    let two = second(&services, &subject);
    let mixed = |id: i64| if id % 3 == 0 { old(&one, id) } else { new(&two, id) };
    data::produce(&services, &topic, (500..1500).map(mixed));
    eventually("both versions are written", || ids(&all).len() == 1500);
    eventually("the copy is there", || data::consume(&services, &copy).len() == 1500);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    assert_eq!(said(&service, "the route reads as a newer schema"), 1, "{}", service.log());

    assert_eq!(ids(&all), (0..1500).collect::<Vec<_>>());
    let (batches, _) = data::parquet_rows(&all);
    for batch in &batches {
        let is_wide = batch.column_by_name("channel").is_some();
        assert_eq!(batch.column_by_name("amount").is_none(), is_wide, "{}", batch.schema());
        let numbers = data::numbers(std::slice::from_ref(batch), "id");
        for (row, id) in numbers.into_iter().enumerate() {
            let is_new = id >= 500 && id % 3 > 0;
            if is_wide {
                let expected = is_new.then(|| format!("n{id}"));
                assert_eq!(text(batch, "note", row), expected.as_deref(), "{id}");
                assert_eq!(text(batch, "channel", row), Some(if is_new { "app" } else { "web" }), "{id}");
            } else {
                assert!(!is_new, "{id} was read as the first version");
            }
        }
    }
    // Its rows are the same as ever: no file had to end.
    assert_eq!(ids(&place.path("out/plain")), (0..1500).collect::<Vec<_>>());
    assert_eq!(data::parquet_rows(&place.path("out/plain")).1, 1);
    for message in data::consume(&services, &copy) {
        let row: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        let id = row["id"].as_i64().unwrap();
        if id >= 500 && id % 3 > 0 {
            assert_eq!((&row["note"], &row["channel"]), (&json!(format!("n{id}")), &json!("app")), "{row}");
        }
    }
}

/// Every round has a version of its own, which comes while rows flow, and ends by kill -9 somewhere near the change.
#[test]
fn kills_around_new_versions_lose_and_double_nothing() {
    let Some(services) = support::services("kills_around_new_versions_lose_and_double_nothing") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("evolves"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let subject = format!("{topic}-value");
    let version = |number: usize| {
        let mut fields = vec![json!({"name": "id", "type": "long"})];
        let added =
            (1..number).map(|field| json!({"name": format!("f{field}"), "type": "int", "default": 0}));
        fields.extend(added);
        Version::register(&services, &subject, Value::Array(fields))
    };
    let mut known = version(1);
    let extra = "
    batch: {max_rows: 100, max_age: 50ms}
    sinks:
      all: {parquet: {path: out/all, roll: {max_rows: 200, max_age: 100ms}}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, extra));
    let all = place.path("out/all");
    let mut total = 0;
    for round in 0..6 {
        let mut service = place.start(&["run"]);
        data::produce(&services, &topic, (total..total + 200).map(|id| known.record(id, &json!({"id": id}))));
        total += 200;
        let expected = usize::try_from(total).unwrap();
        eventually("the known version is written", || ids(&all).len() == expected);
        let newer = version(2 + usize::try_from(round).unwrap());
        let added = format!("f{}", round + 1);
        let mixed = |id: i64| match id % 2 {
            0 => known.record(id / 2, &json!({"id": id})),
            _ => {
                let mut value = json!({"id": id});
                for field in 1..=round + 1 {
                    value[format!("f{field}")] = json!(1);
                }
                newer.record(id / 2, &value)
            }
        };
        data::produce(&services, &topic, (total..total + 1000).map(mixed));
        total += 1000;
        eventually("the newer version is written", || {
            let (batches, _) = data::parquet_rows(&all);
            batches.iter().any(|batch| batch.column_by_name(&added).is_some())
                || said(&service, "the route reads as a newer schema") > 0
        });
        pause(Duration::from_millis(u64::try_from(11 * round).unwrap()));
        service.kill();
        known = newer;
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(ids(&all), (0..total).collect::<Vec<_>>());
}

/// One route keeps the schema of its start, and tells that there is a newer one; the other stops before it.
#[test]
fn a_route_may_keep_its_schema_or_stop_before_a_newer_one() {
    let Some(services) = support::services("a_route_may_keep_its_schema_or_stop_before_a_newer_one") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("keeps"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let subject = format!("acme.{topic}");
    let one = first(&services, &subject);
    data::produce(&services, &topic, (0..100).map(|id| old(&one, id)));
    let extra = format!(
        "    subject: 'acme.{{topic}}'
    on_new_schema: pin
    batch: {{max_age: 50ms}}
    sinks:
      all: {{parquet: {{path: out/pin, roll: {{max_age: 100ms}}}}}}
  careful:
    topics: [{topic}]
    start: earliest
    subject: {subject}
    on_new_schema: stop
    batch: {{max_age: 50ms}}
    sinks:
      all: {{parquet: {{path: out/stop, roll: {{max_age: 100ms}}}}}}
"
    );
    let text = routes(&services, &group, &topic, &extra);
    let place = Workplace::new(&text.replace("schema_registry: {", "schema_registry: {refresh: 1s, "));
    let (pinned, stopped) = (place.path("out/pin"), place.path("out/stop"));
    let mut service = place.start(&["run"]);
    eventually("both have read", || ids(&pinned).len() == 100 && ids(&stopped).len() == 100);
    let fields = json!([{"name": "id", "type": "long"}, {"name": "amount", "type": "double"},
        {"name": "more", "type": "int", "default": 1}]);
    let two = Version::register(&services, &subject, fields);
    // It is told before any record of it is there, and nobody stops for that.
    eventually("it is told", || {
        said(&service, "there is a newer schema; the route keeps its own") == 1
            && said(&service, "the route will stop before the first record of a newer schema") == 1
    });
    data::produce(&services, &topic, (100..150).map(|id| old(&one, id)));
    eventually("both go on", || ids(&pinned).len() == 150 && ids(&stopped).len() == 150);
    let mixed = |id: i64| match id % 2 {
        0 => old(&one, id),
        _ => two.record(id, &json!({"id": id, "amount": 0.5, "more": 2})),
    };
    data::produce(&services, &topic, (150..200).map(mixed));
    eventually("one goes on", || ids(&pinned).len() == 200);
    eventually("one has stopped", || said(&service, "names schema id ") > 0);
    let (batches, _) = data::parquet_rows(&pinned);
    assert!(batches.iter().all(|batch| batch.column_by_name("more").is_none()));
    // Everything before the first record of the newer version is there, and nothing of it.
    let kept = ids(&stopped);
    let is_old = |id: &i64| *id < 150 || id % 2 == 0;
    assert!((0..150).all(|id| kept.contains(&id)) && kept.iter().all(is_old), "{kept:?}");
    let log = service.log();
    for number in [1, 2] {
        let version = format!("(version {number} of subject `{subject}`)");
        let told = log.lines().any(|line| line.contains("names schema id ") && line.contains(&version));
        assert!(told, "no {version:?} in\n{log}");
    }
    service.terminate();
}

/// One event names both versions and the field; every record of it is a dead letter with its code.
#[test]
fn a_writer_schema_that_cannot_be_read_is_told_once() {
    let Some(services) = support::services("a_writer_schema_that_cannot_be_read_is_told_once") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("refused"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let subject = format!("{topic}-value");
    let one = first(&services, &subject);
    let fields = json!([{"name": "id", "type": "string"}, {"name": "amount", "type": "double"}]);
    let two = Version::register(&services, &subject, fields);
    let mixed = |id: i64| match id % 4 {
        0 => two.record(id, &json!({"id": id.to_string(), "amount": 0.5})),
        _ => old(&one, id),
    };
    data::produce(&services, &topic, (0..400).map(mixed));
    let extra = "
    reader_schema: {version: 1}
    batch: {max_rows: 50}
    bad_records: {dead_letter: bad}
    sinks:
      all: {parquet: {path: out/all}}
";
    let text = routes(&services, &group, &topic, extra);
    let text = text.replace("routes:\n", "dead_letters:\n  bad: {jsonl: {path: out/bad}}\nroutes:\n");
    let place = Workplace::new(&text);
    let finished = place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(ids(&place.path("out/all")), (0..400).filter(|id| id % 4 > 0).collect::<Vec<_>>());
    let letters = data::json_rows(&place.path("out/bad"));
    assert_eq!(letters.len(), 100);
    assert!(letters.iter().all(|letter| letter["code"] == "refused_schema"));
    let events: Vec<&str> = finished
        .stderr
        .lines()
        .filter(|line| line.contains("all records of a schema are bad records"))
        .collect();
    assert_eq!(events.len(), 1, "{}", finished.stderr);
    let reader = format!("id {} (version 1 of subject `{subject}`)", one.id);
    for part in [format!("schema id {} cannot be read", two.id), reader, "`id`: the writer's".to_owned()] {
        assert!(events[0].contains(&part), "no {part:?} in {}", events[0]);
    }
}

/// What a schema would do to the routes is known before it is registered.
#[test]
fn a_candidate_is_checked_against_the_routes() {
    let Some(services) = support::services("a_candidate_is_checked_against_the_routes") else {
        return;
    };
    let (topic, group) = (support::unique("candidate"), support::unique("group"));
    let subject = format!("{topic}-value");
    first(&services, &subject);
    let extra = "
    views:
      sums: SELECT amount * 2 AS twice FROM batch
    sinks:
      all: {from: sums, parquet: {path: out/all}}
";
    let place = Workplace::new(&routes(&services, &group, &topic, extra));
    let checked = |fields: Value| {
        let schema = json!({"type": "record", "name": "Order", "namespace": "shop", "fields": fields});
        std::fs::write(place.path("next.avsc"), schema.to_string()).unwrap();
        place.run(&["check", "--candidate", &format!("{subject}=next.avsc")])
    };
    let fits =
        checked(json!([{"name": "amount", "type": "double"}, {"name": "n", "type": "int", "default": 0}]));
    assert!(fits.expect_code(0).stdout.contains("fits as the next version"));
    let broken = checked(json!([{"name": "id", "type": "long"}])).expect_code(1);
    assert!(broken.stdout.contains("view `sums`: No field named"), "{}", broken.stdout);
    let broken = checked(json!([{"name": "amount", "type": "string"}])).expect_code(1);
    assert!(broken.stdout.contains("route orders: "), "{}", broken.stdout);
    let unread = place.run(&["check", "--candidate", "nobody-value=next.avsc"]).expect_code(2);
    assert!(unread.stderr.contains("no route reads subject `nobody-value`"), "{}", unread.stderr);
    let checked = place.run(&["check"]).expect_code(0).stdout;
    let line = format!("reads values as the newest version of subject `{subject}`; on a newer one: widen");
    assert!(checked.contains(&line), "{checked}");
}
