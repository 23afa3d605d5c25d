use super::*;
use crate::support::Session;

/// The other session, as the server lists it; the program is listed under its own name.
const OTHER: &str = "other";
const OURS: &str = "sidestream";

impl Stage {
    /// Lets the other session do something, and waits until it has.
    #[track_caller]
    fn does(&self, other: &mut Session, statement: &str) {
        other.send(statement);
        let done = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{OTHER}' AND state LIKE 'idle%' \
             AND starts_with(query, $text${statement}$text$);"
        );
        eventually(statement, || self.one(&done) == "1");
    }

    /// Until a session of this name waits for a lock.
    #[track_caller]
    fn await_waiting(&self, name: &str) {
        let waiting = format!(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE application_name = '{name}' AND wait_event_type = 'Lock';"
        );
        eventually("somebody waits for a lock", || self.one(&waiting) != "0");
    }

    /// As [`Stage::place`], with dead letters of refused rows below `out/bad`, and these lines for its route.
    fn place_with_letters(&self, keys: &str, rows: &str, lines: &str) -> Workplace {
        let place = self.place(keys, rows, "");
        let letters = "dead_letters: {bad: {jsonl: {path: out/bad}}}\nroutes:\n";
        let refused = format!("    value: string\n    refused_rows: {{dead_letter: bad}}\n{lines}");
        let routes = std::fs::read_to_string(place.path("routes.yaml")).unwrap();
        let routes = routes.replace("routes:\n", letters).replace("    value: string\n", &refused);
        std::fs::write(place.path("routes.yaml"), routes).unwrap();
        place
    }
}

/// What passes by itself is no fault of a row: none is looked for.
#[track_caller]
fn assert_no_row_is_blamed(log: &str) {
    for word in ["looking for the row", "sink_refusal", "refuses what became"] {
        assert!(!log.contains(word), "{word:?} in {log}");
    }
}

/// Another transaction holds our positions and wants the table, of which ours holds rows. The other one never looks for
/// deadlocks, so that it is ours which the server ends.
#[test]
fn a_deadlock_loses_and_doubles_nothing() {
    let Some(stage) = Stage::new("a_deadlock_loses_and_doubles_nothing", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.produce(0..1000, 1);
    let place = stage.plain().with("SIDESTREAM_FAILPOINT", "postgres.merged=stop");
    let mut service = place.start(&["run"]);
    let idle = format!(
        "SELECT count(*) FROM pg_stat_activity \
         WHERE application_name = '{OURS}' AND state = 'idle in transaction';"
    );
    eventually("it is frozen, with rows in the table", || {
        service.log().contains("postgres.merged") && stage.one(&idle) == "1"
    });
    let mut other = stage.postgres.session(OTHER);
    stage.does(&mut other, "SET deadlock_timeout = '1h'");
    stage.does(&mut other, "BEGIN");
    stage.does(&mut other, "UPDATE sidestream_positions SET updated_at = updated_at");
    other.send("LOCK TABLE numbers IN ACCESS EXCLUSIVE MODE");
    stage.await_waiting(OTHER);
    service.send("CONT");
    eventually("the server ends ours", || service.log().contains("SQLSTATE 40P01"));
    other.send("COMMIT");
    eventually("the rows come again", || stage.one("SELECT count(*) FROM numbers;") == "1000");
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    stage.assert_once(1000);
    assert_no_row_is_blamed(&service.log());
}

/// Our transactions say their level themselves: what somebody else changes meanwhile is waited for, and is no error.
#[test]
fn a_stricter_level_of_the_role_is_not_that_of_our_transactions() {
    let Some(stage) = Stage::new("a_stricter_level_of_the_role_is_not_that_of_our_transactions", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.postgres.sql(
        "CREATE TABLE numbers (id bigint PRIMARY KEY, name text, \
         level text DEFAULT current_setting('transaction_isolation')); \
         INSERT INTO numbers SELECT id, 'old' FROM generate_series(0, 9) AS id; \
         ALTER ROLE postgres SET default_transaction_isolation = 'serializable';",
    );
    assert_eq!(stage.one("SHOW transaction_isolation;"), "serializable");
    let mut other = stage.postgres.session(OTHER);
    stage.does(&mut other, "BEGIN");
    stage.does(&mut other, "UPDATE numbers SET name = 'other'");
    stage.produce(0..400, 1);
    let rows = "SELECT cast(value AS BIGINT) % 20 AS id, value AS name FROM batch";
    let place = stage.place("mode: upsert, primary_key: [id]", rows, "");
    let mut service = place.start(&["run"]);
    stage.await_waiting(OURS);
    other.send("COMMIT");
    let newest = "SELECT count(*) FROM numbers WHERE name = (380 + id)::text;";
    eventually("the newest are there", || stage.one(newest) == "20");
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    assert_eq!(stage.postgres.sql("SELECT DISTINCT level FROM numbers WHERE id > 9;"), ["read committed"]);
    assert!(!service.log().contains("route paused"), "{}", service.log());
}

/// A row that goes to another partition while we wait to delete it: the one error of this kind that the server has for
/// transactions of our level. The batch comes again, and nothing becomes a dead letter.
#[test]
fn a_serialisation_failure_is_no_fault_of_a_row() {
    let Some(stage) = Stage::new("a_serialisation_failure_is_no_fault_of_a_row", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.postgres.sql(
        "CREATE TABLE numbers (id text PRIMARY KEY, newest text) PARTITION BY RANGE (id); \
         CREATE TABLE numbers_k PARTITION OF numbers FOR VALUES FROM ('k') TO ('l'); \
         CREATE TABLE numbers_z PARTITION OF numbers FOR VALUES FROM ('z') TO ('zz');",
    );
    let record = |key: &str, value: Option<&str>| {
        let (key, value) = (key.as_bytes().to_vec(), value.map(|value| value.as_bytes().to_vec()));
        Record { key: Some(key), value, ..Record::new(0, Vec::new()) }
    };
    let first = (0..100).map(|number| record(&format!("k{number}"), Some("old")));
    data::produce(&stage.services, &stage.topic, first);
    let rows = "SELECT _key AS id, value AS newest FROM batch";
    let deletes = "    key: string\n    tombstones: delete\n";
    let place = stage.place_with_letters("mode: upsert, primary_key: [id]", rows, deletes);
    let mut service = place.start(&["run"]);
    eventually("the first rows are there", || stage.one("SELECT count(*) FROM numbers;") == "100");
    let mut other = stage.postgres.session(OTHER);
    stage.does(&mut other, "BEGIN");
    stage.does(&mut other, "UPDATE numbers SET id = 'z7' WHERE id = 'k7'");
    data::produce(&stage.services, &stage.topic, [record("k7", None), record("k8", Some("new"))]);
    stage.await_waiting(OURS);
    other.send("COMMIT");
    eventually("the server ends ours", || service.log().contains("SQLSTATE 40001"));
    let newest = "SELECT newest FROM numbers WHERE id = 'k8';";
    eventually("the batch comes again", || stage.one(newest) == "new");
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    // The one that has moved is not what the delete was of.
    let moved =
        "SELECT count(*), count(*) FILTER (WHERE id = 'z7'), count(*) FILTER (WHERE id = 'k7') FROM numbers;";
    assert_eq!(stage.one(moved), "100|1|0");
    assert_eq!(data::json_rows(&place.path("out/bad")), Vec::<Value>::new());
    assert_no_row_is_blamed(&service.log());
}

/// Rows are known by one index and refused by another: the one row is found, and all its neighbours are there.
#[test]
fn a_row_that_another_unique_index_refuses_becomes_a_dead_letter() {
    let Some(stage) = Stage::new("a_row_that_another_unique_index_refuses_becomes_a_dead_letter", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.postgres.sql(
        "CREATE TABLE numbers (id bigint PRIMARY KEY, name text CONSTRAINT names_are_different UNIQUE);",
    );
    stage.produce(0..1500, 1);
    let rows = "SELECT cast(value AS BIGINT) AS id, \
                CASE WHEN value = '700' THEN 'n7' ELSE 'n' || value END AS name FROM batch";
    let place = stage.place_with_letters("mode: upsert, primary_key: [id]", rows, "");
    for _ in 0..2 {
        place.run(&["run", "--until", "latest"]).expect_code(0);
        let told = stage.one("SELECT count(*), count(*) FILTER (WHERE id = 700) FROM numbers;");
        assert_eq!(told, "1499|0");
        let letters = data::json_rows(&place.path("out/bad"));
        assert_eq!(letters.len(), 1, "{letters:#?}");
        assert_eq!(
            (letters[0]["code"].as_str(), &letters[0]["source_offset"]),
            (Some("sink_refusal"), &json!(700))
        );
        let message = letters[0]["message"].as_str().unwrap();
        for expected in ["`names_are_different`", "SQLSTATE 23505"] {
            assert!(message.contains(expected), "no {expected:?} in {message}");
        }
        assert!(!message.contains("n7"), "{message}");
    }
}

/// Somebody has locked the table and stopped: the route says so and tries again, until the other one is gone.
#[test]
fn a_table_that_somebody_has_locked_is_waited_for() {
    let Some(stage) = Stage::new("a_table_that_somebody_has_locked_is_waited_for", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.produce(0..100, 1);
    let place = stage.place("create: true", ROWS, "-c%20lock_timeout%3D300ms");
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let mut other = stage.postgres.session(OTHER);
    stage.does(&mut other, "BEGIN");
    stage.does(&mut other, "LOCK TABLE numbers IN ACCESS EXCLUSIVE MODE");
    stage.produce(100..300, 1);
    let mut service = place.start(&["run"]);
    eventually("it says what it waits for", || service.log().contains("SQLSTATE 55P03"));
    eventually("it has said who is to be looked for", || {
        let log = service.log();
        log.contains("route paused") && log.contains("pg_locks")
    });
    drop(other);
    eventually("all rows are there", || stage.one("SELECT count(*) FROM numbers;") == "300");
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    assert!(service.log().contains("route resumed"), "{}", service.log());
    stage.assert_once(300);
    assert_no_row_is_blamed(&service.log());
}

/// Each batch has rows of the same keys for both: the transaction of one is over before the other one's limit.
#[test]
fn two_sinks_of_a_route_write_to_the_same_rows() {
    let Some(stage) = Stage::new("two_sinks_of_a_route_write_to_the_same_rows", 1) else {
        return;
    };
    let _turn = support::turn();
    stage.postgres.sql("CREATE TABLE numbers (id bigint PRIMARY KEY, name text, number bigint);");
    stage.produce(0..2000, 1);
    let names = "SELECT cast(value AS BIGINT) % 50 AS id, value AS name FROM batch";
    let numbers = "SELECT cast(value AS BIGINT) % 50 AS id, cast(value AS BIGINT) AS number FROM batch";
    let place = stage.place("mode: upsert, primary_key: [id]", names, "");
    let routes = std::fs::read_to_string(place.path("routes.yaml")).unwrap();
    let first = routes.lines().find(|line| line.contains("table: {from: rows,")).unwrap();
    let shared = first.replace("from: rows,", "from: rows, shared: true,");
    let second = first.replace("table: {from: rows,", "second: {from: numbers, shared: true,");
    let both = routes
        .replace(first, &format!("{shared}\n{second}"))
        .replace("    sinks:\n", &format!("      numbers: {numbers}\n    sinks:\n"));
    std::fs::write(place.path("routes.yaml"), both).unwrap();
    let ended = place.run(&["run", "--until", "latest"]).expect_code(0);
    let newest = "SELECT count(*), count(*) FILTER (WHERE name = (1950 + id)::text AND number = 1950 + id) FROM numbers;";
    assert_eq!(stage.one(newest), "50|50");
    assert!(!ended.stderr.contains("route paused"), "{}", ended.stderr);
}
