//! A sink at work: its target, a topic with numbers as text, and a route that reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::targets::{Ground, Row, Target};
use super::{BODY_MAX, Line, Promise};
use crate::support::data::{self, Record};
use crate::support::program::{Finished, Workplace};
use crate::support::{self, Services};

const PARTITIONS: i32 = 3;

/// A bounded run.
pub const BOUNDED: [&str; 3] = ["run", "--until", "latest"];

/// Of a record whose row, which is twice as long, every target refuses: too large for a topic as the routes file has it, and
/// so for everybody.
const REFUSED_BYTES: usize = 100 * BODY_MAX;

/// What a topic takes: such a record, as its dead letter has it, but not its row.
pub const LONGEST: usize = REFUSED_BYTES / 2 * 3;

/// One line in one case.
pub struct Stage<'a> {
    pub ground: &'a Ground,
    pub line: &'a Line,
    pub target: Box<dyn Target + 'a>,
    pub topic: String,
    group: String,
}

/// Writes records with these numbers, dealt out to the partitions.
pub fn produce(services: &Services, topic: &str, seqs: Range<i64>) {
    data::produce(services, topic, seqs.map(|seq| record(seq, String::new())));
}

/// A number, and more.
fn record(seq: i64, rest: String) -> Record {
    let partition = i32::try_from(seq % i64::from(PARTITIONS)).unwrap();
    let value = if rest.is_empty() { seq.to_string() } else { format!("{seq} {rest}") };
    Record::new(partition, value.into_bytes())
}

impl<'a> Stage<'a> {
    /// `None` where the line's component is not installed.
    pub fn new(ground: &'a Ground, line: &'a Line) -> Option<Self> {
        let target = (line.open)(ground)?;
        let (topic, group) = (support::unique("conformance"), support::unique("group"));
        data::create_topic(&ground.services, &topic, PARTITIONS);
        Some(Self { ground, line, target, topic, group })
    }

    pub fn produce(&self, seqs: Range<i64>) {
        produce(&self.ground.services, &self.topic, seqs);
    }

    /// A record that the target refuses.
    pub fn produce_refused(&self, seq: i64) {
        let refused = record(seq, "x".repeat(REFUSED_BYTES));
        data::produce(&self.ground.services, &self.topic, [refused]);
    }

    /// Small batches: each step of a sink comes several times among a few thousand rows.
    fn routes(&self) -> String {
        let (bootstrap, group, topic) = (&self.ground.services.bootstrap, &self.group, &self.topic);
        // Where letters are in a topic it is that of the rows which refuses.
        let longest = if self.target.letters().is_some() { 2 * LONGEST } else { LONGEST };
        let sink = self.target.sink();
        format!(
            "version: 1
kafka:
  bootstrap.servers: \"{bootstrap}\"
  group.id: {group}
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
  message.max.bytes: {longest}
routes:
  r:
    topics: [{topic}]
    start: earliest
    value: string
    batch: {{max_rows: 200, max_age: 50ms}}
    views:
      rows: |-
        SELECT CAST(split_part(value, ' ', 1) AS BIGINT) AS seq,
          CASE WHEN length(value) > {BODY_MAX} THEN value || value ELSE value END AS body
        FROM batch
    sinks:
      s: {{from: rows, {sink}}}
"
        )
    }

    pub fn place(&self) -> Workplace {
        Workplace::new(&self.routes())
    }

    /// As another group.
    pub fn place_of_another_group(&self) -> Workplace {
        let (own, other) = (&self.group, support::unique("other"));
        Workplace::new(&self.routes().replace(own, &other))
    }

    /// As another identity of the same group.
    pub fn place_of_another_sink(&self) -> Workplace {
        Workplace::new(&self.routes().replace("{from: rows,", "{id: another, from: rows,"))
    }

    /// Refused rows become dead letters, which are below `out/bad`, or in the target's topic of them.
    pub fn place_with_letters(&self) -> Workplace {
        let kind = match self.target.letters() {
            None => "jsonl: {path: out/bad}".to_owned(),
            Some(topic) => format!("kafka: {{topic: {topic}}}"),
        };
        let letters = format!("dead_letters: {{bad: {{{kind}}}}}\nroutes:\n");
        let refused = "    value: string\n    refused_rows: {dead_letter: bad}\n";
        Workplace::new(&self.routes().replace("routes:\n", &letters).replace("    value: string\n", refused))
    }

    /// Reads what is there to its end.
    pub fn run(&self) -> Finished {
        self.place().run(&BOUNDED).expect_code(0)
    }

    /// How many different rows the target has.
    pub fn seen(&self) -> i64 {
        let seqs: BTreeSet<i64> = self.target.rows().iter().map(|row| row.seq).collect();
        i64::try_from(seqs.len()).unwrap()
    }

    /// All numbers below `end` are there as the line promises; how many of them more than once.
    #[track_caller]
    pub fn expect_all(&self, end: i64) -> usize {
        self.expect(&(0..end).collect())
    }

    /// As [`Stage::expect_all`], where two groups have written: what is promised is promised for each.
    #[track_caller]
    pub fn expect_of_two_groups(&self, end: i64) -> usize {
        let promise = match self.line.promise {
            Promise::ExactlyOnce => Promise::AtLeastOnce,
            other => other,
        };
        let found = judge(promise, &(0..end).collect(), &self.target.rows());
        found.unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// As [`Stage::expect_all`], of exactly these numbers.
    #[track_caller]
    pub fn expect(&self, seqs: &BTreeSet<i64>) -> usize {
        judge(self.line.promise, seqs, &self.target.rows()).unwrap_or_else(|problem| panic!("{problem}"))
    }
}

/// Compares what is there with what has to be: how many rows are there more than once.
pub fn judge(promise: Promise, expected: &BTreeSet<i64>, rows: &[Row]) -> Result<usize, String> {
    let mut found: BTreeMap<i64, Vec<Option<&str>>> = BTreeMap::new();
    for row in rows {
        found.entry(row.seq).or_default().push(row.key.as_deref());
    }
    let is_one_key = |keys: &Vec<Option<&str>>| keys[0].is_some() && keys.iter().all(|key| *key == keys[0]);
    let again: Vec<i64> = found.iter().filter(|(_, keys)| keys.len() > 1).map(|(seq, _)| *seq).collect();
    let (doubled, rekeyed) = match promise {
        Promise::ExactlyOnce => (again.clone(), Vec::new()),
        Promise::AtLeastOnce => (Vec::new(), Vec::new()),
        Promise::Idempotent => {
            (Vec::new(), found.iter().filter(|(_, keys)| !is_one_key(keys)).map(|(seq, _)| *seq).collect())
        }
    };
    let lost: Vec<i64> = expected.iter().filter(|&seq| !found.contains_key(seq)).copied().collect();
    let strange: Vec<i64> = found.keys().filter(|&seq| !expected.contains(seq)).copied().collect();
    let mut problems = Vec::new();
    for (what, seqs) in
        [("lost", lost), ("doubled", doubled), ("under several keys", rekeyed), ("never written", strange)]
    {
        if let Some(first) = seqs.first() {
            problems.push(format!("{} {what}, the first {first}", seqs.len()));
        }
    }
    if promise == Promise::Idempotent {
        let keys: BTreeSet<&str> = found.values().filter_map(|keys| keys[0]).collect();
        if keys.len() < found.len() {
            problems.push(format!("{} rows have {} keys", found.len(), keys.len()));
        }
    }
    if problems.is_empty() { Ok(again.len()) } else { Err(problems.join("; ")) }
}
