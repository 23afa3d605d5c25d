//! A stand whose routes are of plain text, from topics of their own into JSON Lines, and what is expected of it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::admin::TopicReplication;

use super::Context;
use super::tools::{
    LIMIT, Row, Topics, committed_and_ends, ensure, expect_rows, held, until_ok, write_numbers,
};
use crate::stand::{Ended, Instance, Stand, StandOptions, tail};
use crate::workload::Features;

/// How often the program looks for topics and partitions that are new.
pub const REFRESH: Duration = Duration::from_millis(300);

/// A route of plain text from one topic into JSON Lines below `out/<name>`.
pub struct Route {
    name: String,
    topic: String,
    start: String,
    batch: String,
    more: String,
    value: String,
    sinks: String,
}

impl Route {
    /// From the topic of the same name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            topic: name.to_owned(),
            start: "earliest".to_owned(),
            batch: "{max_rows: 200, max_age: 50ms}".to_owned(),
            more: String::new(),
            value: "string".to_owned(),
            // Small files that come soon: a fault meets every step.
            sinks: format!(
                "{{all: {{jsonl: {{path: out/{name}, roll: {{max_rows: 500, max_age: 100ms}}}}}}}}"
            ),
        }
    }

    /// From another topic than the one of its name.
    pub fn of_topic(self, topic: &str) -> Self {
        Self { topic: topic.to_owned(), ..self }
    }

    pub fn starting(self, start: &str) -> Self {
        Self { start: start.to_owned(), ..self }
    }

    pub fn batching(self, batch: &str) -> Self {
        Self { batch: batch.to_owned(), ..self }
    }

    /// In this form; what is written is text.
    pub fn reading(self, value: &str) -> Self {
        Self { value: value.to_owned(), ..self }
    }

    /// One more key of the route.
    pub fn with(self, line: &str) -> Self {
        Self { more: format!("{}    {line}\n", self.more), ..self }
    }

    /// Other sinks, as a YAML mapping on one line.
    pub fn writing(self, sinks: &str) -> Self {
        Self { sinks: sinks.to_owned(), ..self }
    }

    fn text(&self, lab: &Lab) -> String {
        let Self { name, topic, start, batch, more, value, sinks } = self;
        let topic = lab.topic(topic);
        format!(
            "  {name}:\n    topics: [{topic}]\n    value: {value}\n    start: {start}\n    batch: {batch}\n{more}    \
             sinks: {sinks}\n"
        )
    }
}

/// A stand with topics of its own, beside those of the workload.
pub struct Lab {
    pub stand: Stand,
    topics: Topics,
}

impl Lab {
    /// With so many brokers of its own, or with 0 at one that is shared and must not be touched.
    pub fn new(context: &Context, brokers: usize) -> Result<Self, String> {
        let features = Features { transactions: false, compacted: false, bad: false, schema_changes: false };
        let stand = Stand::new(
            context,
            StandOptions { brokers, partitions: 1, features, ..StandOptions::default() },
        )?;
        let topics = Topics::of(&stand.options.bootstrap)?;
        Ok(Self { stand, topics })
    }

    pub fn bootstrap(&self) -> &str {
        &self.stand.options.bootstrap
    }

    /// Its name on the broker, which others use too.
    pub fn topic(&self, name: &str) -> String {
        format!("{}.lab.{name}", self.stand.options.prefix)
    }

    pub fn create(&self, name: &str, settings: &[(&str, &str)]) -> Result<(), String> {
        self.topics.create(&self.topic(name), TopicReplication::Fixed(1), settings)
    }

    /// One partition on the nodes with these ids; the first leads.
    pub fn create_on(&self, name: &str, nodes: &[i32], settings: &[(&str, &str)]) -> Result<(), String> {
        self.topics.create(&self.topic(name), TopicReplication::Variable(&[nodes]), settings)
    }

    pub fn delete(&self, name: &str) -> Result<(), String> {
        self.topics.delete(&self.topic(name))
    }

    pub fn widen(&self, name: &str, count: usize) -> Result<(), String> {
        self.topics.widen(&self.topic(name), count)
    }

    pub fn delete_records(&self, name: &str, offset: i64) -> Result<(), String> {
        self.topics.delete_records(&self.topic(name), 0, offset)
    }

    /// Writes numbers as text into partition 0.
    pub fn write(&self, name: &str, numbers: Range<i64>) -> Result<(), String> {
        write_numbers(self.bootstrap(), &self.topic(name), 0, numbers)
    }

    /// What a read_committed reader sees of the topic.
    pub fn held(&self, name: &str) -> Result<BTreeSet<Row>, String> {
        held(self.bootstrap(), &self.topic(name))
    }

    /// The directory of a route's sink.
    pub fn out(&self, route: &str) -> PathBuf {
        self.stand.place().join("out").join(route)
    }

    /// `head` is further keys of the file, each with its line break.
    pub fn write_routes(&self, head: &str, routes: &[Route]) -> Result<(), String> {
        let routes: String = routes.iter().map(|route| route.text(self)).collect();
        self.stand.write_routes(&format!(
            "version: 1\nkafka:\n  bootstrap.servers: \"{}\"\n  group.id: {}\n  session.timeout.ms: 3000\n  \
             heartbeat.interval.ms: 500\n{head}topic_refresh: {}ms\nroutes:\n{routes}",
            self.bootstrap(),
            self.stand.group,
            REFRESH.as_millis()
        ))
    }

    pub fn run(&mut self) -> Result<Instance, String> {
        self.stand.start(&[])
    }

    /// A bounded run, which has to end with `code`.
    pub fn run_to_the_end(&mut self, code: i32) -> Result<Ended, String> {
        let ended = self.stand.bounded("routes.yaml")?;
        ensure(ended.code == Some(code), || {
            format!(
                "the bounded run ended with {:?}, not {code}:\n{}\n{}",
                ended.code,
                ended.output,
                tail(&ended.log)
            )
        })?;
        Ok(ended)
    }

    pub fn expect_rows(&self, route: &str, expected: &BTreeSet<Row>) -> Result<(), String> {
        expect_rows(&self.out(route), expected)
    }

    /// Waits until exactly these rows are in sight; how long that took is for the caller to say.
    pub fn await_rows(&self, route: &str, expected: &BTreeSet<Row>) -> Result<(), String> {
        until_ok(&format!("route {route} has its rows"), LIMIT, || self.expect_rows(route, expected))
    }

    /// Offset and end are the same in all partitions: lag is 0.
    pub fn expect_no_lag(&self, name: &str) -> Result<(), String> {
        let topic = self.topic(name);
        for (partition, (committed, end)) in committed_and_ends(self.bootstrap(), &self.stand.group, &topic)?
        {
            ensure(committed == Some(end), || {
                format!("{topic} [{partition}]: {committed:?} is committed, and {end} is the end")
            })?;
        }
        Ok(())
    }

    /// The group says no more than the sinks have.
    pub fn expect_committed_up_to(&self, name: &str, limit: i64) -> Result<(), String> {
        let topic = self.topic(name);
        for (partition, (committed, _)) in committed_and_ends(self.bootstrap(), &self.stand.group, &topic)? {
            ensure(committed.is_none_or(|offset| offset <= limit), || {
                format!("{topic} [{partition}]: {committed:?} is committed, beyond {limit}")
            })?;
        }
        Ok(())
    }
}

/// The table of a bounded run says that a route stopped, and why.
pub fn expect_stopped(ended: &Ended, route: &str, why: &str) -> Result<(), String> {
    let start = format!("route {route} stopped: ");
    let line = ended.output.lines().find(|line| line.starts_with(&start));
    ensure(line.is_some_and(|line| line.contains(why)), || {
        format!("route {route} has not stopped for `{why}`:\n{}", ended.output)
    })
}
