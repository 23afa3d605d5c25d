use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use rdkafka::Message as _;

use crate::support::program::{Workplace, eventually, pause};
use crate::support::{self, Converter, Postgres, Services, data};

/// Before the connector starts. Texts and bytes of the accounts are too large to be logged again when they do not change.
const SETUP: &str = "
create table accounts (id int primary key, name text not null, balance numeric(12,2), big text, raw bytea, doc jsonb,
    seen timestamptz);
alter table accounts alter column big set storage external, alter column raw set storage external;
create table lines (account int, line int, what text, primary key (account, line));
insert into accounts select g, 'snapshot', g / 3.0, repeat(md5(g::text), 100), decode(repeat(md5(g::text), 160), 'hex'),
    jsonb_build_object('n', g), now() from generate_series(1, 200) g;
insert into lines select g / 3, g % 3, 'snapshot' from generate_series(0, 200) g;
";

const END: &str = "
insert into accounts (id, name, big) values (2000000000, 'the end', repeat('x', 4000));
insert into lines values (2000000000, 0, 'the end');
";

const ACCOUNTS: &str =
    "select id, name, balance, md5(big), md5(raw), doc::jsonb, seen, extra from accounts order by id;";
const LINES: &str = "select account, line, what from lines order by account, line;";

/// What Debezium puts in the place of a value that was not sent.
const UNSENT: &[u8] = b"__debezium_unavailable_value";

const ROUNDS: u64 = 8;
const CHANGES_PER_ROUND: usize = 500;

/// Changes as they come to applications' minds, made of a seed.
struct History {
    rng: Rng,
    /// Keys of the accounts.
    live: Vec<i32>,
    /// Keys that were deleted, and may come again.
    gone: Vec<i32>,
    next: i32,
    lines: BTreeSet<(i32, i32)>,
    has_extra: bool,
}

impl History {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            live: (1..=200).collect(),
            gone: Vec::new(),
            next: 1000,
            lines: (0..=200).map(|number| (number / 3, number % 3)).collect(),
            has_extra: false,
        }
    }

    fn statements(&mut self, count: usize) -> String {
        (0..count).map(|_| self.change() + "\n").collect()
    }

    fn change(&mut self) -> String {
        if self.live.len() < 20 {
            return self.insert();
        }
        match self.rng.u8(..100) {
            0..20 => self.insert(),
            20..45 => self.update(),
            45..52 => {
                let (id, large) = (self.some(), self.large());
                format!("update accounts set {large} where id = {id};")
            }
            52..62 => self.move_key(),
            62..72 => self.delete(),
            72..84 => self.transaction(),
            _ => self.change_line(),
        }
    }

    /// An account that is there.
    fn some(&mut self) -> i32 {
        self.live[self.rng.usize(..self.live.len())]
    }

    /// A key that is free.
    fn free(&mut self) -> i32 {
        if !self.gone.is_empty() && self.rng.bool() {
            return self.gone.swap_remove(self.rng.usize(..self.gone.len()));
        }
        self.next += 1;
        self.next
    }

    /// New large values, or none.
    fn large(&mut self) -> String {
        let number = self.rng.u32(..);
        match self.rng.u8(..3) {
            0 => "big = null, raw = null".to_owned(),
            _ => format!(
                "big = repeat(md5('{number}'), 100), raw = decode(repeat(md5('r{number}'), 160), 'hex')"
            ),
        }
    }

    fn insert(&mut self) -> String {
        let (id, number) = (self.free(), self.rng.u32(..));
        self.live.push(id);
        let big = if self.rng.bool() { format!("repeat(md5('{number}'), 100)") } else { "null".to_owned() };
        format!(
            "insert into accounts (id, name, balance, big, doc, seen) \
             values ({id}, 'n{number}', {}, {big}, '{{\"n\": [{number}, null]}}', clock_timestamp());",
            self.rng.i32(-9999..9999)
        )
    }

    /// Leaves the large values alone.
    fn update(&mut self) -> String {
        let (id, number) = (self.some(), self.rng.u32(..));
        let extra = if self.has_extra { format!(", extra = 'e{number}'") } else { String::new() };
        format!("update accounts set name = 'u{number}', seen = clock_timestamp(){extra} where id = {id};")
    }

    /// Values that a change of a key does not send are nowhere to be had: it comes with new ones.
    fn move_key(&mut self) -> String {
        let (from, large) = (self.delete_from_model(), self.large());
        let into = self.free();
        self.live.push(into);
        format!("update accounts set id = {into}, {large} where id = {from};")
    }

    fn delete(&mut self) -> String {
        let id = self.delete_from_model();
        self.gone.push(id);
        format!("delete from accounts where id = {id};")
    }

    fn delete_from_model(&mut self) -> i32 {
        self.live.swap_remove(self.rng.usize(..self.live.len()))
    }

    /// Several changes of one account at once, among them the end of it and a new beginning.
    fn transaction(&mut self) -> String {
        let (id, large, number) = (self.some(), self.large(), self.rng.u32(..));
        let (first, last) = (format!("name = 'a{number}'"), format!("name = 'z{number}'"));
        let again = format!(
            "delete from accounts where id = {id}; \
             insert into accounts (id, name, big) values ({id}, 'b{number}', repeat(md5('{number}'), 100));"
        );
        let middle =
            if self.rng.bool() { again } else { format!("update accounts set {large} where id = {id};") };
        format!(
            "begin; update accounts set {first} where id = {id}; {middle} \
             update accounts set {last} where id = {id}; commit;"
        )
    }

    /// Rows that are known by two columns.
    fn change_line(&mut self) -> String {
        let key @ (account, line) = (self.rng.i32(0..200), self.rng.i32(0..4));
        let number = self.rng.u32(..);
        if self.lines.insert(key) {
            return format!("insert into lines values ({account}, {line}, 'n{number}');");
        }
        let that = format!("where account = {account} and line = {line}");
        let other = (self.rng.i32(0..200), line);
        match self.rng.u8(..3) {
            0 => {
                self.lines.remove(&key);
                format!("delete from lines {that};")
            }
            1 if !self.lines.contains(&other) => {
                self.lines.remove(&key);
                self.lines.insert(other);
                format!("update lines set account = {} {that};", other.0)
            }
            _ => format!("update lines set what = 'u{number}' {that};"),
        }
    }
}

fn seed() -> u64 {
    std::env::var("CDC_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_123)
}

/// Those of `docs/examples/cdc.md`, with small batches, and for an instance that is killed and comes back.
fn routes(services: &Services, prefix: &str, group: &str) -> String {
    let example = include_str!("../../docs/examples/cdc.md");
    let (_, routes) = example.split_once("```yaml\n").unwrap();
    let (routes, _) = routes.split_once("```").unwrap();
    let group = format!("{group}\n  session.timeout.ms: 2000\n  heartbeat.interval.ms: 300");
    routes
        .replace("inventory-copy", &group)
        .replace("localhost:9092", &services.bootstrap)
        .replace("http://localhost:8081", &services.registry)
        .replace("dbserver1", prefix)
        .replace("    start: earliest\n", "    start: earliest\n    batch: {max_rows: 100, max_age: 50ms}\n")
}

/// Values of the records of a topic.
fn values(services: &Services, topic: &str) -> Vec<Vec<u8>> {
    let messages = data::consume(services, topic);
    messages.iter().filter_map(|message| message.payload().map(<[u8]>::to_vec)).collect()
}

fn has(value: &[u8], text: &[u8]) -> bool {
    value.windows(text.len()).any(|window| window == text)
}

fn is_there(database: &Postgres, table: &str) -> bool {
    database.sql(&format!("select to_regclass('{table}') is not null;")) == ["t"]
}

/// How far all tables have come: a number that grows.
fn progress(database: &Postgres) -> i64 {
    if !is_there(database, "sidestream_positions") {
        return 0;
    }
    let sum = database.sql("select coalesce(sum(next_offset), 0) from sidestream_positions;");
    sum.concat().parse().unwrap()
}

/// Rows that only one of two tables has.
fn differing(source: &[String], target: &[String]) -> Vec<String> {
    let [source, target]: [BTreeSet<&String>; 2] = [source.iter().collect(), target.iter().collect()];
    source.symmetric_difference(&target).map(|row| (*row).clone()).collect()
}

/// A database with two tables, a random history of changes, and a program that is killed again and again. In the end the
/// tables are the same. Then a change that nobody could follow: a new key, and the row's large value is not sent with it.
#[test]
fn a_database_is_followed_into_another_one() {
    let test = "a_database_is_followed_into_another_one";
    let Some(services) = support::services(test) else {
        return;
    };
    let _turn = support::turn();
    let (Some(source), Some(target)) = (support::own_postgres(test), support::own_postgres(test)) else {
        return;
    };
    let (prefix, group, seed) = (support::unique("cdc"), support::unique("group"), seed());
    source.sql(SETUP);
    let Some(_connect) = support::own_connect(test, &services, &source, Converter::Avro, &prefix) else {
        return;
    };
    let topic = |table: &str| format!("{prefix}.public.{table}");
    for (table, count) in [("accounts", 200), ("lines", 201)] {
        eventually("the snapshot is in the topics", || {
            data::consume(&services, &topic(table)).len() >= count
        });
    }
    let place = Workplace::new(&routes(&services, &prefix, &group)).with("DATABASE_URL", target.url());
    let checked = place.run(&["check"]).expect_code(0).stdout;
    assert!(checked.contains("sink copy: exactly once"), "{checked}");

    let mut history = History::new(seed);
    let mut service = place.start(&["run"]);
    for round in 0..ROUNDS {
        if round == ROUNDS / 2 {
            source.sql("alter table accounts add column extra text;");
            history.has_extra = true;
        }
        if round == ROUNDS - 3 {
            source.sql("truncate lines;");
            history.lines.clear();
        }
        let before = progress(&target);
        source.sql(&history.statements(CHANGES_PER_ROUND));
        eventually("changes arrive", || progress(&target) > before);
        pause(Duration::from_millis(17 * round % 90));
        service.kill();
        service = place.start(&["run"]);
    }
    source.sql(END);
    eventually("the end has arrived", || {
        let log = service.log();
        assert!(!log.contains("route stopped"), "seed {seed}: {log}");
        let is_at_end = |(table, column): (&str, &str)| {
            let found = format!("select count(*) from {table} where {column} = 'the end';");
            is_there(&target, table) && target.sql(&found) == ["1"]
        };
        [("accounts", "name"), ("lines", "what")].into_iter().all(is_at_end)
    });
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    for query in [ACCOUNTS, LINES] {
        let (source, target) = (source.sql(query), target.sql(query));
        assert_eq!(source.len(), target.len(), "seed {seed}: {query}");
        assert!(source == target, "seed {seed}: {query} {:#?}", differing(&source, &target));
    }
    let unsent = values(&services, &topic("accounts")).iter().filter(|value| has(value, UNSENT)).count();
    assert!(unsent > 100, "only {unsent} events leave a value out");

    source.sql(
        "update accounts set id = 2000000001 where id = 2000000000;
         insert into accounts (id, name) values (2000000002, 'behind the end');",
    );
    eventually("the new key is in the topic", || {
        values(&services, &topic("accounts")).iter().any(|value| has(value, b"behind the end"))
    });
    let stopped = place.run(&["run", "--until", "latest"]).expect_code(1);
    for expected in ["a change without all its values", "REPLICA IDENTITY FULL"] {
        assert!(stopped.stderr.contains(expected), "no {expected:?} in {}", stopped.stderr);
    }
    // What comes before it is there, and nothing was made up.
    let ids = "select id from accounts where id >= 2000000000;";
    assert!(target.sql(ids).is_empty());
}
