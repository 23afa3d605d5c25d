use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually, pause};
use crate::support::{self, Postgres, Services};

/// What the server does to transactions, and what others do to them.
mod server;

/// It must not be seen anywhere; the server lets everybody in.
const PASSWORD: &str = "s3cr3t-canary";

/// A broker, a database, a topic with numbers as text, and the routes that read it.
struct Stage {
    services: Services,
    postgres: Postgres,
    topic: String,
    group: String,
}

impl Stage {
    fn new(test: &str, partitions: i32) -> Option<Self> {
        let services = support::services(test)?;
        let postgres = support::own_postgres(test)?;
        let (topic, group) = (support::unique("rows"), support::unique("group"));
        data::create_topic(&services, &topic, partitions);
        Some(Self { services, postgres, topic, group })
    }

    /// Records with these numbers, dealt out to the partitions.
    fn produce(&self, numbers: impl IntoIterator<Item = i64>, partitions: i32) {
        let records = numbers.into_iter().map(|number| {
            let partition = i32::try_from(number).unwrap_or(0).rem_euclid(partitions);
            Record::new(partition, number.to_string().into_bytes())
        });
        data::produce(&self.services, &self.topic, records);
    }

    /// A working directory whose route writes `rows` with these keys of `postgres:`. `options` are for the session.
    fn place(&self, keys: &str, rows: &str, options: &str) -> Workplace {
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
      rows: {rows}
    sinks:
      table: {{from: rows, postgres: {{url: \"${{URL}}\", table: numbers, {keys}}}}}
"
        );
        let url = self.postgres.url().replace("postgres@", &format!("postgres:{PASSWORD}@"));
        let url = if options.is_empty() { url } else { format!("{url}?options={options}") };
        Workplace::new(&routes).with("URL", &url)
    }

    fn plain(&self) -> Workplace {
        self.place("create: true", ROWS, "")
    }

    fn one(&self, query: &str) -> String {
        self.postgres.sql(query).join("\n")
    }

    /// Every number below `end` is there once.
    #[track_caller]
    fn assert_once(&self, end: i64) {
        let told = self.one("SELECT count(*), count(DISTINCT id), min(id), max(id) FROM numbers;");
        assert_eq!(told, format!("{end}|{end}|0|{}", end - 1));
    }
}

const ROWS: &str = "SELECT cast(value AS BIGINT) AS id, 'n' || value AS name FROM batch";

#[test]
fn rows_are_appended_once_and_can_be_moved() {
    let Some(stage) = Stage::new("rows_are_appended_once_and_can_be_moved", 2) else {
        return;
    };
    let _turn = support::turn();
    let place = stage.plain();
    stage.produce(0..1000, 2);
    let checked = place.run(&["check"]).expect_code(0).stdout;
    assert!(checked.contains("exactly once: rows and positions are one transaction"), "{checked}");
    let planned = place.run(&["plan"]).expect_code(0).stdout;
    assert!(planned.contains("is new"), "{planned}");
    assert_eq!(stage.one("SELECT to_regclass('numbers') IS NULL;"), "t");
    let first = place.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(1000);
    assert_eq!(stage.one("SELECT name FROM numbers WHERE id = 7;"), "n7");
    stage.produce(1000..1500, 2);
    let second = place.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(1500);
    for told in [&first, &second] {
        assert!(!told.stderr.contains(PASSWORD) && !told.stdout.contains(PASSWORD), "{}", told.stderr);
    }
    let stored = "SELECT identity, partition, next_offset FROM sidestream_positions ORDER BY partition;";
    assert_eq!(stage.postgres.sql(stored), ["r/table|0|750", "r/table|1|750"]);

    let listed = place.run(&["offsets", "list", "--format", "json"]).expect_code(0);
    let rows: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(rows.len(), 2, "{rows:#?}");
    assert!(
        rows.iter().all(|row| row["next"] == 750 && row["lag"] == 0 && row["log"].is_null()),
        "{rows:#?}"
    );
    let reset = ["offsets", "reset", "--route", "r", "--to", "-10"];
    let said = place.run(&reset).expect_code(0).stdout;
    assert!(said.contains("20 offsets are read again; rows that are there stay"), "{said}");
    eventually("the group has no members", || {
        let moved = place.run(&[&reset[..], &["--execute"]].concat());
        moved.code == Some(0)
    });
    assert_eq!(stage.postgres.sql(stored), ["r/table|0|740", "r/table|1|740"]);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(stage.one("SELECT count(*), count(DISTINCT id) FROM numbers;"), "1520|1500");
}

#[test]
fn kills_lose_and_double_no_row() {
    let Some(stage) = Stage::new("kills_lose_and_double_no_row", 4) else {
        return;
    };
    let _turn = support::turn();
    let place = stage.plain();
    let mut total = 0;
    let count = || match stage.one("SELECT to_regclass('numbers') IS NULL;").as_str() {
        "t" => 0,
        _ => stage.one("SELECT count(*) FROM numbers;").parse::<i64>().unwrap(),
    };
    for round in 0..8 {
        let mut service = place.start(&["run"]);
        let seen = count();
        stage.produce(total..total + 4000, 4);
        total += 4000;
        eventually("the service writes", || count() > seen);
        pause(Duration::from_millis(11 * round % 70));
        service.kill();
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(total);
}

/// Killed at every step, and told at every step that it has failed although it was done.
#[test]
fn each_step_may_be_the_last_or_its_reply_be_lost() {
    let Some(stage) = Stage::new("each_step_may_be_the_last_or_its_reply_be_lost", 1) else {
        return;
    };
    let _turn = support::turn();
    let mut total = 0;
    for point in ["opened", "copied", "merged", "moved", "committed"] {
        for action in ["kill", "error"] {
            stage.produce(total..total + 300, 1);
            total += 300;
            let armed = stage.plain().with("SIDESTREAM_FAILPOINT", &format!("postgres.{point}={action}"));
            let ended = armed.run(&["run", "--until", "latest"]);
            assert_eq!(ended.code == Some(0), action == "error", "{point}: {}", ended.stderr);
            assert!(ended.stderr.contains("fail point"), "{point} was not come to: {}", ended.stderr);
            stage.plain().run(&["run", "--until", "latest"]).expect_code(0);
            stage.assert_once(total);
        }
    }
}

#[test]
fn backends_are_ended_and_rows_are_there_once() {
    let Some(stage) = Stage::new("backends_are_ended_and_rows_are_there_once", 2) else {
        return;
    };
    let _turn = support::turn();
    let place = stage.plain();
    let mut service = place.start(&["run"]);
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'sidestream';";
    for round in 0..10 {
        stage.produce(round * 1000..(round + 1) * 1000, 2);
        eventually("a backend is ended", || stage.one(end) != "0");
        pause(Duration::from_millis(40));
    }
    eventually("all rows are there", || {
        let is_there = stage.one("SELECT to_regclass('numbers') IS NOT NULL;") == "t";
        is_there && stage.one("SELECT count(*) FROM numbers;") == "10000"
    });
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    stage.assert_once(10_000);
}

/// Frozen with its positions locked; another one goes on after the server has ended it, and it wakes up as nobody.
#[test]
fn a_frozen_client_holds_up_nobody_for_long_and_is_fenced() {
    let Some(stage) = Stage::new("a_frozen_client_holds_up_nobody_for_long_and_is_fenced", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.produce(0..1000, 1);
    // Spaces and `=` of the options are escaped.
    let limits = "-c%20idle_in_transaction_session_timeout%3D3s%20-c%20lock_timeout%3D500ms";
    let frozen =
        stage.place("create: true", ROWS, limits).with("SIDESTREAM_FAILPOINT", "postgres.moved:2=stop");
    let mut zombie = frozen.start(&["run"]);
    let idle = "SELECT count(*) FROM pg_stat_activity \
                WHERE application_name = 'sidestream' AND state = 'idle in transaction';";
    eventually("it is frozen in a transaction", || {
        zombie.log().contains("postgres.moved") && stage.one(idle) == "1"
    });
    let successor = stage.place("create: true", ROWS, limits);
    successor.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(1000);
    zombie.send("CONT");
    stage.produce(1000..1200, 1);
    eventually("it goes on where the other one stands", || {
        stage.one("SELECT count(*) FROM numbers;") == "1200"
    });
    assert_eq!(zombie.terminate(), Some(0), "{}", zombie.log());
    stage.assert_once(1200);
}

#[test]
fn a_row_that_is_refused_is_found_and_all_before_it_is_there() {
    let Some(stage) = Stage::new("a_row_that_is_refused_is_found_and_all_before_it_is_there", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.postgres.sql("CREATE TABLE numbers (id int PRIMARY KEY, name varchar(5));");
    stage.produce((0..700).chain([77, 700, 701]), 1);
    let place = stage.place("mode: append", ROWS, "");
    let stopped = place.run(&["run", "--until", "latest"]).expect_code(1);
    for expected in ["a row whose key is there already", "`numbers_pkey`", "SQLSTATE 23505", "[700, 701)"] {
        assert!(stopped.stderr.contains(expected), "no {expected:?} in {}", stopped.stderr);
    }
    assert!(!stopped.stderr.contains("(77)"), "{}", stopped.stderr);
    stage.assert_once(700);
    // Let it pass, and the next one is too long for its column.
    stage.postgres.sql("DELETE FROM numbers WHERE id = 77;");
    stage.produce([12_345], 1);
    let stopped = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(stopped.stderr.contains("text that is too long for its column"), "{}", stopped.stderr);
    assert!(!stopped.stderr.contains("n12345"), "{}", stopped.stderr);
    stage.assert_once(702);
    // Beyond what a column of 32 bits holds: found before anything is sent.
    stage.postgres.sql("ALTER TABLE numbers ALTER name TYPE text;");
    stage.produce([5_000_000_000], 1);
    let stopped = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(
        stopped.stderr.contains("column `id` has a number that the column cannot hold"),
        "{}",
        stopped.stderr
    );
    assert_eq!(stage.one("SELECT count(*) FROM numbers;"), "703");
}

#[test]
fn the_last_row_of_a_key_stays() {
    let Some(stage) = Stage::new("the_last_row_of_a_key_stays", 1) else {
        return;
    };
    let _turn = support::turn();
    let rows = "SELECT cast(value AS BIGINT) % 50 AS id, cast(value AS BIGINT) AS newest FROM batch";
    let place = stage.place("mode: upsert, primary_key: [id], create: true", rows, "");
    stage.produce(0..1000, 1);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let wrong = "SELECT count(*), count(*) FILTER (WHERE newest <> 950 + id) FROM numbers;";
    assert_eq!(stage.one(wrong), "50|0");
    stage.produce([1007], 1);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(stage.one("SELECT newest FROM numbers WHERE id = 7;"), "1007");
    // A key that is not unique in the table would not be one.
    stage.postgres.sql("ALTER TABLE numbers DROP CONSTRAINT numbers_pkey;");
    let stopped = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(
        stopped.stderr.contains("no primary key or unique index over exactly `id`"),
        "{}",
        stopped.stderr
    );
}

/// Keys come again and again, every third time to be deleted: within a batch and in later ones.
#[test]
fn a_row_whose_key_is_deleted_is_removed() {
    let Some(stage) = Stage::new("a_row_whose_key_is_deleted_is_removed", 1) else {
        return;
    };
    let _turn = support::turn();
    let record = |number: usize| {
        let value = (number % 3 != 2).then(|| format!("v{number}").into_bytes());
        let key = format!("k{}", number % 50).into_bytes();
        Record { key: Some(key), value, ..Record::new(0, Vec::new()) }
    };
    let rows = "SELECT _key AS id, value AS newest FROM batch";
    let place = stage.place("mode: upsert, primary_key: [id], create: true", rows, "");
    let routes = std::fs::read_to_string(place.path("routes.yaml")).unwrap();
    let deletes = "    key: string\n    value: string\n    tombstones: delete\n";
    std::fs::write(place.path("routes.yaml"), routes.replace("    value: string\n", deletes)).unwrap();
    let checked = place.run(&["check"]).expect_code(0).stdout;
    assert!(checked.contains("deletes in table: the row of the key is removed"), "{checked}");
    let mut expected = BTreeMap::new();
    for numbers in [0..2000, 2000..2130] {
        data::produce(&stage.services, &stage.topic, numbers.clone().map(record));
        for number in numbers {
            let key = format!("k{}", number % 50);
            match number % 3 {
                2 => expected.remove(&key),
                _ => expected.insert(key, format!("v{number}")),
            };
        }
        place.run(&["run", "--until", "latest"]).expect_code(0);
        let shown: Vec<String> = expected.iter().map(|(key, newest)| format!("{key}|{newest}")).collect();
        let ordered = "SELECT id, newest FROM numbers ORDER BY id COLLATE \"C\";";
        assert_eq!(stage.postgres.sql(ordered), shown);
    }
    // A key that says nothing of its rows would leave what is gone.
    let text = std::fs::read_to_string(place.path("routes.yaml")).unwrap();
    let other = text.replace("_key AS id", "_offset AS id");
    std::fs::write(place.path("routes.yaml"), other).unwrap();
    let told = place.run(&["check"]);
    let said = format!("{}{}", told.stdout, told.stderr);
    assert!(said.contains("deletes: the record's key has Utf8 for column `id`, which is Int64"), "{said}");
}

#[test]
fn a_newer_version_adds_its_column_while_the_route_runs() {
    let Some(stage) = Stage::new("a_newer_version_adds_its_column_while_the_route_runs", 1) else {
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
    let place = stage.place("mode: upsert, primary_key: [id], create: true", "SELECT * FROM batch", "");
    let routes = std::fs::read_to_string(place.path("routes.yaml")).unwrap();
    let registry = format!("schema_registry: {{url: \"{}\"}}\nroutes:\n", stage.services.registry);
    let routes = routes.replace("routes:\n", &registry).replace("value: string", "value: registry");
    std::fs::write(place.path("routes.yaml"), routes).unwrap();
    produce(&one, (0..100).map(|id| json!({"id": id})).collect());
    let mut service = place.start(&["run"]);
    let count = |what: &str| match stage.one("SELECT to_regclass('numbers') IS NULL;").as_str() {
        "t" => String::new(),
        _ => stage.one(&format!("SELECT count({what}) FROM numbers;")),
    };
    eventually("the first version is written", || count("*") == "100");
    let two = version(json!([
        {"name": "id", "type": "long"},
        {"name": "note", "type": ["null", "string"], "default": null}
    ]));
    produce(&two, (50..150).map(|id| json!({"id": id, "note": "new"})).collect());
    eventually("the second version is written", || count("*") == "150");
    assert_eq!(count("note"), "100");
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    assert!(service.log().contains("the route reads as a newer schema"), "{}", service.log());
}

#[test]
fn a_table_that_does_not_fit_is_told_and_one_of_ours_is_widened() {
    let Some(stage) = Stage::new("a_table_that_does_not_fit_is_told_and_one_of_ours_is_widened", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.produce(0..10, 1);
    let missing = stage.place("create: false", ROWS, "").run(&["run", "--until", "latest"]).expect_code(1);
    assert!(missing.stderr.contains("there is no such table"), "{}", missing.stderr);
    stage.postgres.sql("CREATE TABLE numbers (id text, other int NOT NULL);");
    let unfit = stage.place("create: false", ROWS, "").run(&["run", "--until", "latest"]).expect_code(1);
    for expected in
        ["column `id` is text, and ours is Int64", "it has no column `name`", "column `other` takes no null"]
    {
        assert!(unfit.stderr.contains(expected), "no {expected:?} in {}", unfit.stderr);
    }
    stage.postgres.sql("DROP TABLE numbers;");
    stage.plain().run(&["run", "--until", "latest"]).expect_code(0);
    let wider = "SELECT cast(value AS BIGINT) AS id, value AS name, _offset AS \"At \"\"x\" FROM batch";
    stage.produce(10..20, 1);
    stage.place("create: true", wider, "").run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(20);
    assert_eq!(stage.one("SELECT count(\"At \"\"x\") FROM numbers;"), "10");
}

#[test]
fn a_table_has_one_owner_unless_it_is_shared_or_adopted() {
    let Some(mut stage) = Stage::new("a_table_has_one_owner_unless_it_is_shared_or_adopted", 1) else {
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
        assert!(told.contains(&owner) && told.contains("give each sink its own `table`"), "{told}");
    }
    let routes = std::fs::read_to_string(foreign.path("routes.yaml")).unwrap();
    let adopting = routes.replace("from: rows,", "from: rows, adopt: r/table,");
    std::fs::write(foreign.path("routes.yaml"), adopting).unwrap();
    let planned = foreign.run(&["plan"]).expect_code(0).stdout;
    assert!(planned.contains("takes the positions of sink `r/table`"), "{planned}");
    stage.produce(100..150, 1);
    foreign.run(&["run", "--until", "latest"]).expect_code(0);
    stage.assert_once(150);
    // Who was taken over comes back.
    stage.group = former;
    let refused = stage.plain().run(&["run", "--until", "latest"]).expect_code(1).stderr;
    assert!(refused.contains("was taken over by sink `r/table`"), "{refused}");
    let joining = stage.plain();
    let routes = std::fs::read_to_string(joining.path("routes.yaml")).unwrap();
    let shared = routes.replace("from: rows,", "id: beside, shared: true, from: rows,");
    std::fs::write(joining.path("routes.yaml"), shared).unwrap();
    joining.run(&["run", "--until", "latest"]).expect_code(0);
    let times = "SELECT min(n), max(n), count(*) FROM (SELECT count(*) AS n FROM numbers GROUP BY id) AS t;";
    assert_eq!(stage.one(times), "2|2|150");
}
