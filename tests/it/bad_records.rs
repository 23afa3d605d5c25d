//! Records that a view fails on, and records that a sink refuses: each among thousands, each with its dead letter.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::Message;
use serde_json::Value;

use crate::support::data::{self, Record};
use crate::support::program::Workplace;
use crate::support::{self, Services};

const COUNT: i64 = 4000;

/// A division by zero, no number, and more than may be sent, which is no number either.
const ZERO: i64 = 100;
const WORD: i64 = 1001;
const LARGE: i64 = 2501;

fn value(number: i64) -> String {
    match number {
        ZERO => "0".to_owned(),
        WORD => "word".to_owned(),
        LARGE => "x".repeat(200_000),
        number => (number + 1).to_string(),
    }
}

fn routes(services: &Services, group: &str, topic: &str, copy: &str) -> String {
    format!(
        "version: 1
kafka:
  bootstrap.servers: \"{}\"
  group.id: {group}
  message.max.bytes: 100000
dead_letters: {{bad: {{jsonl: {{path: out/bad}}}}}}
routes:
  r:
    topics: [{topic}]
    start: earliest
    value: string
    batch: {{max_rows: 3000, max_age: 200ms}}
    bad_records: {{dead_letter: bad}}
    views:
      rows: SELECT value FROM batch
      shares: SELECT CAST(value AS BIGINT) AS n, 1000000 / CAST(value AS BIGINT) AS share FROM batch
    sinks:
      copy: {{from: rows, kafka: {{topic: {copy}}}}}
      shares: {{from: shares, jsonl: {{path: out/shares}}}}
      all: {{from: rows, jsonl: {{path: out/all}}}}
",
        services.bootstrap
    )
}

/// Number of the record, and code, of each dead letter.
fn letters(place: &Workplace) -> Vec<(i64, String)> {
    let rows = data::json_rows(&place.path("out/bad/r"));
    let mut letters: Vec<(i64, String)> = rows
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            let number =
                row["source_offset"].as_i64().unwrap() * 2 + row["source_partition"].as_i64().unwrap();
            // Byte for byte.
            assert_eq!(STANDARD.decode(text("value")).unwrap(), value(number).into_bytes());
            assert!(!text("message").contains("word") && !text("message").contains("xx"), "{row}");
            (number, text("code"))
        })
        .collect();
    letters.sort();
    letters
}

#[test]
fn what_a_view_fails_on_and_what_a_sink_refuses_becomes_dead_letters() {
    let Some(services) =
        support::services("what_a_view_fails_on_and_what_a_sink_refuses_becomes_dead_letters")
    else {
        return;
    };
    let _turn = support::turn();
    let (topic, group, copy) =
        (support::unique("bad-records"), support::unique("group"), support::unique("copy"));
    data::create_topic(&services, &topic, 2);
    data::create_topic(&services, &copy, 1);
    let records = (0..COUNT).map(|number| Record::new((number % 2) as i32, value(number).into_bytes()));
    data::produce(&services, &topic, records);
    let place = Workplace::new(&routes(&services, &group, &topic, &copy));
    place.run(&["run", "--until", "latest"]).expect_code(0);

    let sql = |number| (number, "sql_evaluation".to_owned());
    let refused = (LARGE, "sink_refusal".to_owned());
    assert_eq!(letters(&place), [sql(ZERO), sql(WORD), refused, sql(LARGE)]);
    let all: BTreeSet<String> = (0..COUNT).map(value).collect();
    let without = |numbers: &[i64]| {
        let bad: BTreeSet<String> = numbers.iter().map(|number| value(*number)).collect();
        all.difference(&bad).cloned().collect::<BTreeSet<String>>()
    };
    let rows = |dir: &str, column: &str| -> Vec<String> {
        let text = |row: &Value| row[column].as_str().map_or_else(|| row[column].to_string(), str::to_owned);
        data::json_rows(&place.path(dir)).iter().map(text).collect()
    };
    // Exactly once, but for what is bad in this sink; and the others have even that.
    let shares = rows("out/shares", "n");
    assert_eq!(shares.len(), COUNT as usize - 3);
    assert!(shares.into_iter().collect::<BTreeSet<String>>() == without(&[ZERO, WORD, LARGE]));
    let kept = rows("out/all", "value");
    assert_eq!(kept.len(), COUNT as usize);
    assert!(kept.into_iter().collect::<BTreeSet<String>>() == all);
    let copied: BTreeSet<String> = data::consume(&services, &copy)
        .iter()
        .map(|message| String::from_utf8(message.payload().unwrap().to_vec()).unwrap())
        .collect();
    assert!(copied == without(&[LARGE]), "{} rows", copied.len());
    // Nothing comes again.
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(letters(&place).len(), 4);
}
