use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::array::{Array, StringArray};
use rdkafka::Message;
use serde_json::{Value, json};

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually, files};
use crate::support::{self, Services};

fn routes(services: &Services, group: &str, text: &str) -> String {
    format!(
        "version: 1\nkafka:\n  bootstrap.servers: \"{}\"\n  group.id: {group}\n  session.timeout.ms: 2000\n  \
         heartbeat.interval.ms: 300\nschema_registry: {{url: \"{}\"}}\ntopic_refresh: 200ms\nroutes:\n{text}",
        services.bootstrap, services.registry
    )
}

fn produce(services: &Services, topic: &str, partition: i32, values: &[&str]) {
    data::produce(
        services,
        topic,
        values.iter().map(|value| Record::new(partition, value.as_bytes().to_vec())),
    );
}

/// The column `value` of all JSON lines in sight, sorted.
fn values(dir: &Path) -> Vec<String> {
    let mut values: Vec<String> = files(dir, ".jsonl")
        .iter()
        .flat_map(|file| {
            std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .map(|line| serde_json::from_str::<Value>(&line).unwrap()["value"].as_str().unwrap().to_owned())
        .collect();
    values.sort();
    values
}

#[test]
fn a_thousand_topics_are_landed_raw_by_one_route() {
    let Some(services) = support::services("a_thousand_topics_are_landed_raw_by_one_route") else {
        return;
    };
    let _turn = support::turn();
    let (prefix, group) = (support::unique("many"), support::unique("group"));
    let topics: Vec<String> = (0..1000).map(|number| format!("{prefix}.{number}")).collect();
    data::create_topics(&services, &topics);
    data::create_topic(&services, &format!("{prefix}.left-out"), 1);
    let records = topics.iter().flat_map(|topic| {
        ["one", "two", "three"].map(|value| (topic.as_str(), Record::new(0, value.as_bytes().to_vec())))
    });
    data::produce_all(&services, records);
    produce(&services, &format!("{prefix}.left-out"), 0, &["never"]);
    let text = format!(
        "  raw:\n    topics: {{pattern: '{prefix}\\..*', exclude: ['.*\\.left-out']}}\n    value: bytes\n    \
         start: earliest\n    sinks: {{all: {{parquet: {{path: out/all}}}}}}\n"
    );
    let place = Workplace::new(&routes(&services, &group, &text));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (batches, file_count) = data::parquet_rows(&place.path("out/all"));
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for batch in &batches {
        let names = batch.column_by_name("_topic").unwrap();
        let names = names.as_any().downcast_ref::<StringArray>().unwrap();
        for row in 0..names.len() {
            *rows.entry(names.value(row).to_owned()).or_default() += 1;
        }
    }
    assert_eq!(rows, topics.into_iter().map(|topic| (topic, 3)).collect());
    assert_eq!(file_count, 1);
    // The first sight of all topics is one entry of the log, beside the one that begins it and the rows'.
    let entries = files(&place.path("out/all/_sidestream/log"), ".entry");
    assert!((3..=4).contains(&entries.len()), "{entries:?}");
}

/// What matters of topics that come and go, for a sink with a store of its own and for one without.
fn topics_that_appear_are_read_whole(
    services: &Services,
    sink: &str,
    read: impl Fn(&Workplace, &str) -> Vec<String>,
) {
    let (prefix, group) = (support::unique("grow"), support::unique("group"));
    let copy = support::unique("copy");
    data::create_topic(services, &copy, 1);
    let name = |topic: &str| format!("{prefix}.{topic}");
    let text = |pattern: &str| {
        let sink = sink.replace("COPY", &copy);
        let text = format!(
            "  raw:\n    topics: {{pattern: '{prefix}\\.{pattern}'}}\n    value: string\n    start: latest\n    \
             batch: {{max_age: 50ms}}\n    sinks: {{all: {sink}}}\n"
        );
        routes(services, &group, &text)
    };
    data::create_topic(services, &name("a"), 1);
    data::create_topic(services, &name("other"), 1);
    produce(services, &name("a"), 0, &["a old"]);
    produce(services, &name("other"), 0, &["other old"]);
    let place = Workplace::new(&text("[a-c]"));
    let mut service = place.start(&["run"]);
    let wait = |expected: &[&str]| {
        eventually("the rows are there", || read(&place, &copy) == expected);
    };
    eventually("the first topic is taken up", || {
        let standing = data::committed_and_ends(services, &group, &name("a"));
        standing.values().all(|(committed, end)| *committed == Some(*end))
    });
    produce(services, &name("a"), 0, &["a new"]);
    wait(&["a new"]);
    // It has records before anybody here has heard of it.
    data::create_topic(services, &name("b"), 1);
    produce(services, &name("b"), 0, &["b first"]);
    wait(&["a new", "b first"]);
    assert_eq!(service.terminate(), Some(0));
    // So does one that appears while nothing runs.
    data::create_topic(services, &name("c"), 1);
    produce(services, &name("c"), 0, &["c first"]);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    wait(&["a new", "b first", "c first"]);
    // A topic that matches because of an edit starts where the file says, here at its end.
    std::fs::write(place.path("routes.yaml"), text("(other|[a-c])")).unwrap();
    place.run(&["run", "--until", "latest"]).expect_code(0);
    produce(services, &name("other"), 0, &["other new"]);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    wait(&["a new", "b first", "c first", "other new"]);
}

#[test]
fn topics_that_appear_are_read_whole_into_files() {
    let Some(services) = support::services("topics_that_appear_are_read_whole_into_files") else {
        return;
    };
    let sink = "{jsonl: {path: out/all, roll: {max_age: 50ms}}}";
    topics_that_appear_are_read_whole(&services, sink, |place, _| values(&place.path("out/all")));
}

#[test]
fn topics_that_appear_are_read_whole_into_a_topic() {
    let Some(services) = support::services("topics_that_appear_are_read_whole_into_a_topic") else {
        return;
    };
    topics_that_appear_are_read_whole(&services, "{kafka: {topic: COPY}}", |_, copy| {
        let copied: BTreeSet<String> = data::consume(&services, copy)
            .iter()
            .map(|message| String::from_utf8(message.payload().unwrap().to_vec()).unwrap())
            .collect();
        copied.into_iter().collect()
    });
}

#[test]
fn each_topic_has_its_own_schema_and_sinks() {
    let Some(services) = support::services("each_topic_has_its_own_schema_and_sinks") else {
        return;
    };
    let (prefix, group) = (support::unique("each"), support::unique("group"));
    let add = |table: &str, field: &str| {
        let topic = format!("{prefix}.{table}");
        data::create_topic(&services, &topic, 1);
        let schema = json!({"type": "record", "name": "Row", "fields": [{"name": field, "type": "long"}]});
        let id = data::register(&services, &format!("{topic}-value"), &schema);
        let schema = apache_avro::Schema::parse(&schema).unwrap();
        let rows = (0..50).map(|row| Record::new(0, data::framed(id, &schema, &json!({field: row}))));
        data::produce(&services, &topic, rows);
    };
    add("users", "user");
    add("orders", "order");
    let text = format!(
        "  each:\n    topics: {{pattern: '{prefix}\\.(?<table>\\w+)'}}\n    per_topic: true\n    start: earliest\n    \
         batch: {{max_age: 50ms}}\n    sinks: {{files: {{parquet: {{path: 'out/{{table}}', roll: {{max_age: 50ms}}}}}}}}\n"
    );
    let place = Workplace::new(&routes(&services, &group, &text));
    let finished = place.run(&["run", "--until", "latest"]).expect_code(0);
    assert!(finished.stdout.contains(&format!("each/{prefix}.users")), "{}", finished.stdout);
    let numbers = |table: &str, field: &str| {
        let (batches, _) = data::parquet_rows(&place.path(&format!("out/{table}")));
        data::numbers(&batches, field)
    };
    assert_eq!(numbers("users", "user"), (0..50).collect::<Vec<_>>());
    assert_eq!(numbers("orders", "order"), (0..50).collect::<Vec<_>>());
    // One more while it runs; and one that has no schema stops alone.
    let mut service = place.start(&["run"]);
    data::create_topic(&services, &format!("{prefix}.empty"), 1);
    add("clicks", "click");
    eventually("the new topic is in its own files", || {
        place.path("out/clicks").is_dir() && numbers("clicks", "click").len() == 50
    });
    eventually("the topic without a schema has stopped", || service.log().contains("route stopped"));
    assert_eq!(service.terminate(), Some(0));
    let finished = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(finished.stdout.contains(&format!("route each/{prefix}.empty stopped")), "{}", finished.stdout);
    assert_eq!(numbers("users", "user").len() + numbers("clicks", "click").len(), 100);
}

/// The lane of a topic that is gone ends, and nothing else notices. If it comes back as another topic, its new lane finds that
/// in the log of its sink.
#[test]
fn a_topic_that_is_deleted_takes_its_lane_with_it() {
    let Some(services) = support::services("a_topic_that_is_deleted_takes_its_lane_with_it") else {
        return;
    };
    let (prefix, group) = (support::unique("gone"), support::unique("group"));
    let [short, lasting] = ["short", "lasting"].map(|name| format!("{prefix}.{name}"));
    for topic in [&short, &lasting] {
        data::create_topic(&services, topic, 1);
        produce(&services, topic, 0, &["first"]);
    }
    let text = format!(
        "  each:\n    topics: {{pattern: '{prefix}\\..*'}}\n    per_topic: true\n    value: string\n    start: earliest\n    \
         batch: {{max_age: 50ms}}\n    sinks: {{all: {{jsonl: {{path: 'out/{{topic}}', roll: {{max_age: 50ms}}}}}}}}\n"
    );
    let place = Workplace::new(&routes(&services, &group, &text));
    let rows = |topic: &str| values(&place.path(&format!("out/{topic}")));
    let mut service = place.start(&["run"]);
    eventually("both have their rows", || rows(&short) == ["first"] && rows(&lasting) == ["first"]);
    data::delete_topic(&services, &short);
    eventually("its lane ends", || service.log().contains("the topic is gone, and its lane ends"));
    produce(&services, &lasting, 0, &["second"]);
    eventually("the other one goes on", || rows(&lasting) == ["first", "second"]);
    assert!(!service.log().contains("route stopped"), "{}", service.log());
    data::create_topic(&services, &short, 1);
    produce(&services, &short, 0, &["of another topic"]);
    eventually("it is known to be another one", || service.log().contains("was deleted and created again"));
    produce(&services, &lasting, 0, &["third"]);
    eventually("the other one still goes on", || rows(&lasting) == ["first", "second", "third"]);
    assert_eq!(rows(&short), ["first"]);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
}

#[test]
fn partitions_that_are_added_are_read_whole() {
    let Some(services) = support::services("partitions_that_are_added_are_read_whole") else {
        return;
    };
    let (topic, group) = (support::unique("wider"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    produce(&services, &topic, 0, &["old"]);
    let text = format!(
        "  raw:\n    topics: [{topic}]\n    value: string\n    start: latest\n    batch: {{max_age: 50ms}}\n    \
         sinks: {{all: {{jsonl: {{path: out/all, roll: {{max_age: 50ms}}}}}}}}\n"
    );
    let text = routes(&services, &group, &text);
    let place = Workplace::new(&text);
    let mut service = place.start(&["run"]);
    eventually("the topic is taken up", || {
        let standing = data::committed_and_ends(&services, &group, &topic);
        standing.values().all(|(committed, end)| *committed == Some(*end))
    });
    data::add_partitions(&services, &topic, 3);
    produce(&services, &topic, 2, &["first of a new partition"]);
    produce(&services, &topic, 0, &["new"]);
    eventually("both rows are there", || {
        values(&place.path("out/all")) == ["first of a new partition", "new"]
    });
    assert_eq!(service.terminate(), Some(0));
}

#[test]
fn lost_records_stop_a_route_or_are_passed_over_as_it_says() {
    let Some(services) = support::services("lost_records_stop_a_route_or_are_passed_over_as_it_says") else {
        return;
    };
    let (topic, group) = (support::unique("lost"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    produce(&services, &topic, 0, &["1", "2"]);
    let text = |policy: &str| {
        let text = format!(
            "  raw:\n    topics: [{topic}]\n    value: string\n    start: earliest\n    on_data_loss: {policy}\n    \
             sinks: {{all: {{jsonl: {{path: out/all}}}}}}\n"
        );
        routes(&services, &group, &text)
    };
    let place = Workplace::new(&text("stop"));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    produce(&services, &topic, 0, &["3", "4", "5"]);
    data::delete_records(&services, &topic, 0, 4);
    let finished = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(finished.stdout.contains("offsets 2 to 4 are lost"), "{}", finished.stdout);
    assert!(finished.stdout.contains("on_data_loss: continue"), "{}", finished.stdout);
    std::fs::write(place.path("routes.yaml"), text("continue")).unwrap();
    let finished = place.run(&["run", "--until", "latest"]).expect_code(0);
    assert!(finished.stderr.contains("offsets 2 to 4 are lost"), "{}", finished.stderr);
    assert_eq!(values(&place.path("out/all")), ["1", "2", "5"]);
    // The loss is in the log, and lag is 0.
    let entries = files(&place.path("out/all/_sidestream/log"), ".entry");
    let has_loss =
        |file: &std::path::PathBuf| std::fs::read_to_string(file).unwrap().contains("\"reason\":\"lost\"");
    assert_eq!(entries.iter().filter(|file| has_loss(file)).count(), 1);
    let standing = data::committed_and_ends(&services, &group, &topic);
    assert_eq!(standing[&0], (Some(5), 5));
}

#[test]
fn a_missing_topic_stops_its_route_alone() {
    let Some(services) = support::services("a_missing_topic_stops_its_route_alone") else {
        return;
    };
    let (topic, group) = (support::unique("there"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    produce(&services, &topic, 0, &["1"]);
    let text = format!(
        "  here:\n    topics: [{topic}]\n    value: string\n    start: earliest\n    \
         sinks: {{all: {{jsonl: {{path: out/here}}}}}}\n  gone:\n    topics: [no.such-{topic}]\n    value: string\n    \
         sinks: {{all: {{jsonl: {{path: out/gone}}}}}}\n"
    );
    let place = Workplace::new(&routes(&services, &group, &text));
    let finished = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert_eq!(values(&place.path("out/here")), ["1"]);
    assert!(finished.stdout.contains("does not exist"), "{}", finished.stdout);
}
