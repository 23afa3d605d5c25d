use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rdkafka::Message as _;
use serde_json::{Value, json};

use crate::support::program::{Workplace, eventually};
use crate::support::{self, Converter, Postgres, Services, data};

/// Before the connector starts.
const SETUP: &str = "
create table customers (id int primary key, name text, notes text, price numeric(10,2), born date, seen timestamp,
    at timestamptz, doc jsonb, uid uuid, tags text[]);
alter table customers alter column notes set storage external;
create table log (at timestamptz, what text);
alter table log replica identity full;
create table items (id int primary key, what text);
insert into customers values (1, 'ada', null, 12.50, '1970-01-11', '2026-11-01 01:02:03.5', '2026-11-01 02:00:00+01',
    '{\"a\": 1}', 'c0ffee00-0000-4000-8000-000000000001', '{x,y}');
insert into customers (id, name) values (2, 'bob');
";

/// While it runs. The notes of 3 are too large to be sent again when they do not change; 1 becomes 11.
const CHANGES: &str = "
insert into customers (id, name, notes) values (3, 'cy', repeat('x', 20000));
update customers set name = 'cyd' where id = 3;
update customers set name = 'adele' where id = 1;
delete from customers where id = 2;
update customers set id = 11 where id = 1;
insert into log values (now(), 'one');
delete from log;
insert into items values (1, 'gone');
truncate items;
alter table customers add column extra int;
insert into customers (id, name, extra) values (4, 'dee', 40);
insert into items values (9, 'the end');
insert into log values (now(), 'the end');
insert into customers (id, name) values (99, 'the end');
";

/// What the connector says happened to the customers: a key that changes is a deletion and a creation.
const OPS: [&str; 10] = ["r", "r", "c", "u", "u", "d", "d", "c", "c", "c"];

/// Waits until a topic has at least `count` records, and one with this text.
fn wait_for(services: &Services, topic: &str, count: usize, text: &str) {
    eventually(&format!("{topic} has {count} records and {text:?}"), || {
        let messages = data::consume(services, topic);
        let has = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        messages.len() >= count && messages.iter().any(|message| message.payload().is_some_and(has))
    });
}

/// Changes of a database as they come, all of them in topics.
fn carry(services: &Services, postgres: &Postgres, converter: Converter, prefix: &str, test: &str) -> bool {
    postgres.sql(SETUP);
    let Some(_connect) = support::own_connect(test, services, postgres, converter, prefix) else {
        return false;
    };
    let topic = |table: &str| format!("{prefix}.public.{table}");
    wait_for(services, &topic("customers"), 2, "bob");
    postgres.sql(CHANGES);
    for table in ["items", "log", "customers"] {
        wait_for(services, &topic(table), 1, "the end");
    }
    // Its last record may be one of an end, but it has begun.
    eventually("borders of transactions are told", || {
        !data::consume(services, &format!("{prefix}.transaction")).is_empty()
    });
    true
}

fn file(services: &Services, group: &str, routes: &str) -> String {
    let (bootstrap, registry) = (&services.bootstrap, &services.registry);
    format!(
        "version: 1\nkafka: {{bootstrap.servers: \"{bootstrap}\", group.id: {group}}}\n\
         schema_registry: {{url: \"{registry}\"}}\n\
         dead_letters:\n  bad: {{jsonl: {{path: out/bad}}}}\n\
         defaults: {{start: earliest, envelope: debezium, bad_records: {{dead_letter: bad}}}}\n\
         routes:\n{routes}"
    )
}

/// The newest value of each key; what was deleted is not there.
fn newest(services: &Services, topic: &str) -> BTreeMap<Vec<u8>, Value> {
    let mut rows = BTreeMap::new();
    for message in data::consume(services, topic) {
        let key = message.key().unwrap().to_vec();
        match message.payload() {
            Some(value) => rows.insert(key, serde_json::from_slice(value).unwrap()),
            None => rows.remove(&key),
        };
    }
    rows
}

/// `id|name` of all rows, as `psql` prints them.
fn names<'a>(rows: impl Iterator<Item = &'a Value>) -> BTreeSet<String> {
    rows.map(|row| format!("{}|{}", row["id"], row["name"].as_str().unwrap())).collect()
}

fn column(rows: &[Value], name: &str) -> Vec<Value> {
    rows.iter().map(|row| row[name].clone()).collect()
}

fn codes(dir: &Path) -> Vec<String> {
    let letters = data::json_rows(dir);
    let mut codes: Vec<String> = letters.iter().map(|row| row["code"].as_str().unwrap().to_owned()).collect();
    codes.sort();
    codes
}

/// Every table by itself, by one pattern that also meets the topic of transactions: files have the rows, a view has what
/// happened, and a topic by key ends up as the table is.
#[test]
fn changes_in_avro_follow_their_tables() {
    let test = "changes_in_avro_follow_their_tables";
    let Some(services) = support::services(test) else {
        return;
    };
    let _turn = support::turn();
    let Some(postgres) = support::own_postgres(test) else {
        return;
    };
    let (prefix, group) = (support::unique("dbz"), support::unique("group"));
    if !carry(&services, &postgres, Converter::Avro, &prefix, test) {
        return;
    }
    for topic in ["public.customers", "public.log", "public.items", "transaction"] {
        data::create_topic(&services, &format!("{prefix}.{topic}.copy"), 1);
    }
    let routes = "  tables:
    topics: {pattern: 'PREFIX\\.(public\\.)?(?<table>\\w+)'}
    per_topic: true
    views:
      log: SELECT *, _op, _source['table'] AS origin FROM batch
      keyed: SELECT *, _key, _unavailable FROM batch
    sinks:
      rows: {jsonl: {path: 'out/rows/{table}'}}
      log: {from: log, jsonl: {path: 'out/log/{table}'}}
      copy: {from: keyed, kafka: {topic: '{topic}.copy', key: {column: _key}}}
";
    let place = Workplace::new(&file(&services, &group, &routes.replace("PREFIX", &prefix)));
    place.run(&["run", "--until", "latest"]).expect_code(0);

    let lines = |dir: &str| data::json_rows(&place.path(dir));
    let log = lines("out/log/customers");
    assert_eq!(column(&log, "_op"), OPS);
    assert_eq!(column(&log, "id"), [1, 2, 3, 3, 1, 2, 1, 11, 4, 99]);
    assert!(log.iter().all(|row| row["origin"] == "customers"), "{log:?}");
    assert_eq!(log[8]["extra"], 40);

    let rows = lines("out/rows/customers");
    assert_eq!(column(&rows, "id"), [1, 2, 3, 3, 1, 11, 4, 99]);
    let expected = json!({"id": 1, "name": "ada", "notes": null, "price": 12.5, "born": "1970-01-11",
        "seen": "2026-11-01T01:02:03.500000", "at": "2026-11-01T01:00:00.000000Z", "doc": "{\"a\": 1}",
        "uid": "c0ffee00-0000-4000-8000-000000000001", "tags": ["x", "y"], "extra": null});
    assert_eq!(rows[0], expected);
    assert_eq!((rows[2]["notes"].as_str().map(str::len), &rows[3]["notes"]), (Some(20_000), &Value::Null));

    let copy = newest(&services, &format!("{prefix}.public.customers.copy"));
    let there: BTreeSet<String> = postgres.sql("select id, name from customers").into_iter().collect();
    assert_eq!(names(copy.values()), there);
    let not_sent = copy.values().find(|row| row["id"] == 3).unwrap();
    assert_eq!(not_sent["_unavailable"], json!(["notes"]));
    // A deletion in a table without a key, and a truncation, are nothing that a topic by key could follow.
    assert_eq!(codes(&place.path("out/bad")), ["no_key", "truncate"]);
    assert_eq!(column(&lines("out/rows/items"), "id"), [1, 9]);
    assert!(lines("out/rows/transaction").is_empty());
    let check = place.run(&["check"]).expect_code(0);
    assert!(check.stdout.contains("route tables:"), "{}", check.stdout);
}

/// Schemas come from a file, which is a record as it was copied from the topic. A file that is older than the table stops
/// the route at the first row with the new column.
#[test]
fn changes_in_json_follow_their_table() {
    let test = "changes_in_json_follow_their_table";
    let Some(services) = support::services(test) else {
        return;
    };
    let _turn = support::turn();
    let Some(postgres) = support::own_postgres(test) else {
        return;
    };
    let (prefix, group) = (support::unique("dbz"), support::unique("group"));
    if !carry(&services, &postgres, Converter::Json, &prefix, test) {
        return;
    }
    let topic = format!("{prefix}.public.customers");
    let copies = [format!("{topic}.copy"), format!("{topic}.old")];
    data::create_topics(&services, &copies);
    let routes = |copy: &str, schema: &str| {
        format!(
            "  customers:
    topics: [{topic}, {prefix}.transaction]
    key: {{json: {{schema: {{file: key.avsc}}}}}}
    value: {{json: {{schema: {{file: {schema}}}}}}}
    bad_records: stop
    views:
      keyed: SELECT *, _unavailable FROM batch
    sinks:
      rows: {{jsonl: {{path: out/rows}}}}
      copy: {{from: keyed, kafka: {{topic: {copy}, key: {{column: id}}}}}}
"
        )
    };
    let events: Vec<Vec<u8>> = data::consume(&services, &topic)
        .iter()
        .filter_map(|message| message.payload().map(<[u8]>::to_vec))
        .collect();
    let key = json!({"type": "record", "name": "Key", "fields": [{"name": "id", "type": "int"}]});
    let place_with = |copy: &str, event: &[u8]| {
        let place = Workplace::new("");
        std::fs::write(place.path("customers.json"), event).unwrap();
        std::fs::write(place.path("key.avsc"), key.to_string()).unwrap();
        let text = file(&services, &format!("{group}-{copy}"), &routes(copy, "customers.json"));
        std::fs::write(place.path("routes.yaml"), text).unwrap();
        place
    };

    let place = place_with(&copies[0], events.last().unwrap());
    let check = place.run(&["check"]).expect_code(0);
    assert!(check.stdout.contains("deletes in copy: null under their key"), "{}", check.stdout);
    assert!(check.stdout.contains("deletes in rows: left out"), "{}", check.stdout);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let rows = data::json_rows(&place.path("out/rows"));
    assert_eq!(column(&rows, "id"), [1, 2, 3, 3, 1, 11, 4, 99]);
    let first =
        json!([12.5, "1970-01-11", "2026-11-01T01:02:03.500000", "2026-11-01T01:00:00.000000Z", ["x", "y"]]);
    let told = ["price", "born", "seen", "at", "tags"].map(|name| rows[0][name].clone());
    assert_eq!(json!(told), first);
    let copy = newest(&services, &copies[0]);
    let there: BTreeSet<String> = postgres.sql("select id, name from customers").into_iter().collect();
    assert_eq!(names(copy.values()), there);
    assert!(copy.contains_key(&b"11"[..]), "{:?}", copy.keys());

    let place = place_with(&copies[1], &events[0]);
    let stopped = place.run(&["run", "--until", "latest"]).expect_code(1);
    let said = format!("{}{}", stopped.stdout, stopped.stderr);
    assert!(said.contains("the route's schema has no column `extra`"), "{said}");
    // What comes before it is there.
    assert_eq!(data::json_rows(&place.path("out/rows")).len(), 6);
}
