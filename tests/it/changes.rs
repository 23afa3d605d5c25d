use std::collections::BTreeMap;

use rdkafka::Message as _;

use crate::support::data::Record;
use crate::support::program::Workplace;
use crate::support::{self, data};

/// Records enough for several threads to share a batch.
const RECORDS: usize = 12_000;

/// Keys that come again and again, every third time to be deleted.
fn record(number: usize) -> Record {
    let value = (number % 3 != 2).then(|| format!("v{number}").into_bytes());
    let key = format!("k{}", number % 500).into_bytes();
    Record { key: Some(key), value, ..Record::new(0, Vec::new()) }
}

/// A topic by key is copied with its deletes where they were; a file has the rows, and a view what is left of them.
#[test]
fn tombstones_are_deletes_in_order_with_rows() {
    let Some(services) = support::services("tombstones_are_deletes_in_order_with_rows") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("keyed"), support::unique("group"));
    let (copy, odd) = (format!("{topic}.copy"), format!("{topic}.odd"));
    data::create_topics(&services, &[topic.clone(), copy.clone(), odd.clone()]);
    data::produce(&services, &topic, (0..RECORDS).map(record));
    // Nobody knows what this one deletes.
    data::produce(&services, &topic, [Record { value: None, ..Record::new(0, Vec::new()) }]);
    let text = format!(
        "version: 1
kafka: {{bootstrap.servers: \"{}\", group.id: {group}}}
dead_letters: {{bad: {{jsonl: {{path: out/bad}}}}}}
routes:
  keyed:
    topics: [{topic}]
    start: earliest
    key: string
    value: string
    tombstones: delete
    bad_records: {{dead_letter: bad}}
    batch: {{max_rows: 10000}}
    views:
      odd: SELECT _key, value FROM batch WHERE _offset % 2 = 1
      counts: SELECT _key, count(*) AS n FROM batch GROUP BY _key
    sinks:
      copy: {{kafka: {{topic: {copy}, key: {{column: _key}}}}}}
      odd: {{from: odd, kafka: {{topic: {odd}, key: {{column: _key}}}}}}
      rows: {{jsonl: {{path: out/rows}}}}
      counts: {{from: counts, jsonl: {{path: out/counts}}}}
",
        services.bootstrap
    );
    let place = Workplace::new(&text);
    let check = place.run(&["check"]).expect_code(0);
    for line in ["deletes in odd: null under their key", "deletes in counts: left out, it only appends"] {
        assert!(check.stdout.contains(line), "{}", check.stdout);
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let read = |topic: &str| {
        let messages = data::consume(&services, topic);
        let pair = |message: &rdkafka::message::OwnedMessage| {
            (message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec))
        };
        messages.iter().map(pair).collect::<Vec<_>>()
    };
    let given: Vec<_> = (0..RECORDS).map(record).map(|record| (record.key, record.value)).collect();
    assert!(read(&copy) == given, "the copy differs");
    // Deletes pass by what a view leaves out.
    let is_odd = |(place, (_, value)): &(usize, &(_, Option<Vec<u8>>))| place % 2 == 1 || value.is_none();
    let odd_ones: Vec<_> = given.iter().enumerate().filter(is_odd).map(|(_, pair)| pair.clone()).collect();
    assert!(read(&odd) == odd_ones, "the copy of odd ones differs");
    let rows = data::json_rows(&place.path("out/rows"));
    assert_eq!(rows.len(), given.iter().filter(|(_, value)| value.is_some()).count());
    let mut counted: BTreeMap<String, i64> = BTreeMap::new();
    for row in data::json_rows(&place.path("out/counts")) {
        *counted.entry(row["_key"].as_str().unwrap().to_owned()).or_default() += row["n"].as_i64().unwrap();
    }
    assert_eq!((counted.len(), counted.values().sum::<i64>()), (500, 8000));
    let letters = data::json_rows(&place.path("out/bad"));
    assert_eq!(letters.iter().map(|row| row["code"].clone()).collect::<Vec<_>>(), ["no_key"]);
}
