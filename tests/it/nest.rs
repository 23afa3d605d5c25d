use serde_json::{Value, json};

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, files};
use crate::support::{self};

/// The example the project came from: cameras in a JSON map, taken apart, filtered, archived. See
/// `docs/examples/nest.md`.
#[test]
fn nest_cameras_are_taken_apart_and_archived() {
    let Some(services) = support::services("nest_cameras_are_taken_apart_and_archived") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("nest-logs"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let camera = |id: &str, person: bool| {
        json!({"device_id": id, "last_event": {
            "has_sound": true, "has_motion": true, "has_person": person,
            "start_time": "2016-12-29T00:00:00.000Z", "end_time": "2016-12-29T18:42:00.000Z"}})
    };
    let house = |number: i64| {
        json!({
            "metadata": {"access_token": "c.FmDPkzyz", "client_version": 1},
            "devices": {"cameras": {
                "one": camera(&format!("a{number}"), number % 2 == 0),
                "two": camera(&format!("b{number}"), false),
            }},
            "structures": {}
        })
    };
    let records =
        (0..100).map(|number| Record::new((number % 2) as i32, house(number).to_string().into_bytes()));
    data::produce(&services, &topic, records);
    let example = include_str!("../../docs/examples/nest.md");
    let block = |language: &str| {
        let (_, after) = example.split_once(&format!("```{language}\n")).unwrap();
        after.split_once("```").unwrap().0
    };
    let routes = block("yaml")
        .replace("nest-cameras", &group)
        .replace("[nest-logs]", &format!("[{topic}]"))
        .replace("localhost:9092", &services.bootstrap);
    let place = Workplace::new(&routes);
    std::fs::write(place.path("nest.avsc"), block("json")).unwrap();
    place.run(&["check"]).expect_code(0);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let rows = |dir: &str| -> usize {
        data::parquet_rows(&place.path(dir)).0.iter().map(|batch| batch.num_rows()).sum()
    };
    assert_eq!(rows("out/cameras"), 200);
    let mut sightings: Vec<Value> = Vec::new();
    for file in files(&place.path("out/sightings"), ".jsonl") {
        let text = std::fs::read_to_string(file).unwrap();
        sightings.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    assert_eq!(sightings.len(), 50);
    for sighting in &sightings {
        assert_eq!(sighting["has_person"], true);
        assert_eq!(sighting["start_time"], "2016-12-29T00:00:00.000Z");
        assert!(sighting["device_id"].as_str().unwrap().starts_with('a'));
    }
}

/// Raw landing: every record as Spark's Kafka source gives it, with nothing decoded and no registry.
#[test]
fn records_are_landed_raw_with_their_coordinates() {
    let Some(services) = support::services("records_are_landed_raw_with_their_coordinates") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("raw"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let bytes = |number: i64| vec![0, 255, u8::try_from(number).unwrap()];
    let records = (0..100).map(|number| Record {
        key: (number % 2 == 0).then(|| b"k".to_vec()),
        timestamp: Some(1_700_000_000_000 + number),
        ..Record::new((number % 2) as i32, bytes(number))
    });
    data::produce(&services, &topic, records);
    let routes = format!(
        "version: 1\nkafka: {{bootstrap.servers: \"{}\", group.id: {group}}}\nroutes:\n  land:\n    \
         topics: [{topic}]\n    start: earliest\n    value: bytes\n    views:\n      some: |\n        \
         SELECT *, length(encode(value, 'hex')) AS digits FROM batch WHERE _partition = 1\n    sinks:\n      \
         all: {{parquet: {{path: out/all}}}}\n      some: {{from: some, jsonl: {{path: out/some}}}}\n",
        services.bootstrap
    );
    let place = Workplace::new(&routes);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (all, _) = data::parquet_rows(&place.path("out/all"));
    let names: Vec<String> = all[0].schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(
        names,
        ["_key", "value", "_topic", "_partition", "_offset", "_timestamp", "_timestamp_type", "_headers"]
    );
    let mut offsets = data::numbers(&all, "_offset");
    offsets.sort_unstable();
    assert_eq!(offsets, (0..50).flat_map(|offset| [offset, offset]).collect::<Vec<_>>());
    let some = files(&place.path("out/some"), ".jsonl");
    let text = std::fs::read_to_string(&some[0]).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        first,
        json!({"_key": null, "value": "AP8B", "_topic": topic, "_partition": 1, "_offset": 0,
            "_timestamp": "2023-11-14T22:13:20.001Z", "_timestamp_type": 0, "_headers": [], "digits": 6})
    );
}
