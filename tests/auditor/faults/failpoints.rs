//! A fail point is a place between two steps (`src/failpoint.rs`, `docs/decisions/0007-fail-points.md`). The program is
//! killed there, or frozen while another one goes on, or told that the step before failed although it was done. Each time
//! on a stand of its own, while the workload flows; then everything is read to its end and compared.
//!
//! File sinks have to hold every record once, and so has the topic that is written in transactions. Another Kafka sink may
//! hold some twice, and its topic is read back for that it lacks none.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;

use super::{Context, Outcome, Scenario, conclude, not_possible, say, tables};
use crate::manifest::{Kind, Manifest};
use crate::stand::{FLOW_LIMIT, Instance, Stand, StandOptions, eventually, tail};
use crate::topics::{self, Isolation};
use crate::workload::{Workload, WorkloadOptions};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "failpoints",
        about: "killed at every step of every sink, of lanes and of the engine",
        row: "2 kill at each fail point",
        in_ci: true,
        run: killed,
    },
    Scenario {
        name: "failpoints-zombie",
        about: "frozen at a step of a file sink or a transaction while a successor works, then it goes on",
        row: "2 zombie at each fail point",
        in_ci: true,
        run: frozen,
    },
    Scenario {
        name: "failpoints-lost-reply",
        about: "told that a step failed although it was done",
        row: "2 lost reply at each fail point",
        in_ci: true,
        run: deceived,
    },
];

pub const VARIABLE: &str = "SIDESTREAM_FAILPOINT";

/// Where the table of points is. Nothing of the program is linked here.
const SOURCE: &str = include_str!("../../../src/failpoint.rs");

/// In CI, where every point but a few is left to the night.
const KILLS_CI: u32 = 6;
const OTHERS_CI: u32 = 2;

/// The later time that a point is come to is between the second and this one: all of them come in the first seconds.
const NTH_MAX: u64 = 6;

/// Thousands of entries, each of them with some fsyncs.
const ENTRIES_LIMIT: Duration = Duration::from_secs(900);

/// For one answer of the brokers.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// A topic is read back in this time.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// One line of the program's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub name: &'static str,
    /// The step before it can be told as failed.
    pub can_fail: bool,
}

/// Only a stand with a database comes to it: `tables.rs`.
fn is_of_table(point: &Point) -> bool {
    point.name.starts_with(tables::POINTS)
}

/// Reads the table: each point is a line that calls `step` or `reply` with its name first. Those of Delta tables are left
/// out: no stand has one, and `tests/it/delta.rs` passes them.
fn points() -> Vec<Point> {
    let point = |line: &'static str| {
        let (rest, can_fail) = match line.strip_prefix("step(\"") {
            Some(rest) => (rest, false),
            None => (line.strip_prefix("reply(\"")?, true),
        };
        Some(Point { name: rest.split('"').next()?, can_fail })
    };
    let points = SOURCE.lines().map(str::trim).filter_map(point);
    points.filter(|point| !point.name.starts_with("delta.")).collect()
}

/// What has to be done for a point to be come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// A first start with records to read.
    Start,
    /// It ends in good order.
    Drain,
    /// Another member comes.
    Rebalance,
    /// An earlier process was killed at this point, and the log has gone past what it left.
    Leftover(&'static str),
    /// Some thousand entries.
    Entries,
    /// What a person does beside a run: not here, but in `operators.rs`.
    Operator,
}

fn setup(name: &str) -> Setup {
    match name {
        "lane.drained" | "engine.drained" | "engine.leaving" => Setup::Drain,
        "engine.revoked" | "lane.revoke.flushed" | "engine.release.sending" | "engine.release.sent" => {
            Setup::Rebalance
        }
        "file.orphan.removed" => Setup::Leftover("file.data.synced"),
        "file.temporary.removed" => Setup::Leftover("file.entry.synced"),
        "file.checkpoint.created" | "file.entry.removed" => Setup::Entries,
        "file.entry.adopted" => Setup::Operator,
        name if name.starts_with("reset.") => Setup::Operator,
        _ => Setup::Start,
    }
}

/// Points that a process comes to once or twice, or as often as there are leftovers.
fn is_rare(name: &str) -> bool {
    let once = ["engine.assigned", "engine.assign.sent", "file.checkpoint.created", "postgres.opened"];
    let is_once = once.contains(&name);
    let setup = setup(name);
    is_once || matches!(setup, Setup::Drain | Setup::Rebalance | Setup::Leftover(_))
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Kill,
    Stop,
    Error,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Error => "error",
        }
    }
}

/// One round: a point, and which time it is come to.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    point: Point,
    nth: u64,
    action: Action,
}

impl Round {
    pub fn variable(&self) -> String {
        format!("{}:{}={}", self.point.name, self.nth, self.action.name())
    }
}

/// What came of a round that reached its audit.
struct Came {
    /// Of file sinks, and of the topic that is written in transactions.
    lost: usize,
    doubled: usize,
    copies: Copies,
    recovery: Duration,
    note: String,
}

fn killed(context: &Context) -> Result<Outcome, String> {
    let mut random = context.random();
    let rounds = rounds(context, Action::Kill, KILLS_CI, &mut random, |point| !is_of_table(point));
    carry_out(context, &rounds)
}

fn frozen(context: &Context) -> Result<Outcome, String> {
    if state(std::process::id()).is_none() {
        return Ok(not_possible("without /proc nobody can tell that a process is frozen"));
    }
    let mut random = context.random();
    let is_exact = |name: &str| name.starts_with("file.") || name.starts_with("kafka.transaction.");
    let is_wanted = |point: &Point| is_exact(point.name) && setup(point.name) == Setup::Start;
    let rounds = rounds(context, Action::Stop, OTHERS_CI, &mut random, is_wanted);
    carry_out(context, &rounds)
}

fn deceived(context: &Context) -> Result<Outcome, String> {
    let mut random = context.random();
    let is_wanted = |point: &Point| point.can_fail && !is_of_table(point);
    let rounds = rounds(context, Action::Error, OTHERS_CI, &mut random, is_wanted);
    carry_out(context, &rounds)
}

/// Only points whose names begin so.
const CHOICE: &str = "FAIL_POINTS";

/// At night each point the first time and a later one, in CI a few of them.
pub fn rounds(
    context: &Context,
    action: Action,
    ci: u32,
    random: &mut Rng,
    is_wanted: impl Fn(&Point) -> bool,
) -> Vec<Round> {
    let mut rounds = Vec::new();
    let chosen = std::env::var(CHOICE).unwrap_or_default();
    let is_here = |point: &Point| setup(point.name) != Setup::Operator && point.name.starts_with(&chosen);
    for point in points().into_iter().filter(is_here).filter(is_wanted) {
        rounds.push(Round { point, nth: 1, action });
        if !is_rare(point.name) {
            rounds.push(Round { point, nth: random.u64(2..=NTH_MAX), action });
        }
    }
    if context.is_ci {
        rounds.retain(|round| setup(round.point.name) != Setup::Entries);
        random.shuffle(&mut rounds);
    }
    let count = context.rounds_of(ci, u32::MAX);
    rounds.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    rounds
}

/// All rounds, also after one that failed, and a table of them.
fn carry_out(context: &Context, rounds: &[Round]) -> Result<Outcome, String> {
    if !cfg!(debug_assertions) {
        return Ok(not_possible("releases have no fail points"));
    }
    if rounds.is_empty() {
        return Err("no fail point was found in the sources".to_owned());
    }
    let mut outcome = Outcome { rounds: 0, lost: 0, doubled: 0, recovery: None, note: String::new() };
    let (mut failures, mut again) = (Vec::new(), 0);
    say("| fail point | files, transactions: lost | doubled | Kafka: lost | doubled | seconds to recover |");
    say("|---|---:|---:|---:|---:|---:|");
    for round in rounds {
        let name = round.variable();
        outcome.rounds += 1;
        match one(context, round) {
            Ok(came) => {
                let seconds = came.recovery.as_secs_f64();
                let Copies { lost, doubled } = came.copies;
                say(&format!(
                    "| {name} | {} | {} | {lost} | {doubled} | {seconds:.1} |",
                    came.lost, came.doubled
                ));
                if came.lost + came.doubled + lost > 0 {
                    failures.push(format!("{name}: {}", came.note));
                }
                outcome.lost += came.lost + lost;
                outcome.doubled += came.doubled;
                again += doubled;
                outcome.recovery = outcome.recovery.max(Some(came.recovery));
            }
            Err(error) => {
                say(&format!("| {name} | FAILED: {} |", error.lines().next().unwrap_or_default()));
                failures.push(format!("{name}: {error}"));
            }
        }
    }
    if failures.is_empty() {
        outcome.note = format!("Kafka has {again} records twice, which it may");
        return Ok(outcome);
    }
    let text = format!("{} of {} rounds\n{}", failures.len(), rounds.len(), failures.join("\n"));
    if outcome.lost + outcome.doubled > 0 {
        outcome.note = text;
        return Ok(outcome);
    }
    Err(text)
}

fn one(context: &Context, round: &Round) -> Result<Came, String> {
    let is_long = setup(round.point.name) == Setup::Entries;
    let options = StandOptions {
        partitions: 2,
        largest: 20_000,
        rate: if is_long { 3000 } else { StandOptions::default().rate },
        ..StandOptions::default()
    };
    let mut stand = Stand::new(context, options)?;
    let usual = stand.routes();
    create_topic(&stand.options, &copies_topic(&stand.options))?;
    create_topic(&stand.options, &exact_topic(&stand.options))?;
    add_routes(&stand, is_long)?;
    let workload = Workload::start(&stand.options, 0);
    let recovered = disturb(&mut stand, round);
    let manifest = workload.stop()?;
    let recovery = recovered?;
    if is_long {
        // What is left is read in batches of the usual size: one by one it would take minutes.
        stand.write_routes(&usual)?;
        add_routes(&stand, false)?;
    }
    let Outcome { lost, doubled, note, .. } = conclude(&mut stand, &manifest, 1, Some(recovery))?;
    let exact = copies(&stand.options, &manifest, &exact_topic(&stand.options))?;
    let copies = copies(&stand.options, &manifest, &copies_topic(&stand.options))?;
    if copies.lost + exact.lost + exact.doubled > 0 {
        stand.keep();
    }
    let note = format!("{note}; in transactions {} lost, {} doubled", exact.lost, exact.doubled);
    let (lost, doubled) = (lost + exact.lost, doubled + exact.doubled);
    Ok(Came { lost, doubled, copies, recovery, note })
}

/// Brings the program to the point, and away from it; how long it took until rows flowed again.
pub fn disturb(stand: &mut Stand, round: &Round) -> Result<Duration, String> {
    if let Setup::Leftover(name) = setup(round.point.name) {
        let mut first = stand.start(&[(VARIABLE, format!("{name}=kill").as_str())])?;
        await_action(&mut first, name, Action::Kill, FLOW_LIMIT)?;
        stand.finish()?;
    }
    let seen = stand.file_count();
    let mut armed = stand.start(&[(VARIABLE, round.variable().as_str())])?;
    let mut other = None;
    match setup(round.point.name) {
        Setup::Start | Setup::Leftover(_) | Setup::Entries | Setup::Operator => {}
        Setup::Drain => {
            stand.await_growth(seen, slice::from_mut(&mut armed))?;
            armed.signal("TERM");
        }
        Setup::Rebalance => {
            stand.await_growth(seen, slice::from_mut(&mut armed))?;
            other = Some(stand.start(&[])?);
        }
    }
    let limit = if setup(round.point.name) == Setup::Entries { ENTRIES_LIMIT } else { FLOW_LIMIT };
    await_action(&mut armed, round.point.name, round.action, limit)?;
    let since = Instant::now();
    let seen = stand.file_count();
    let mut instances: Vec<Instance> = other.into_iter().collect();
    match round.action {
        Action::Error => instances.push(armed),
        Action::Kill if instances.is_empty() => instances.push(stand.start(&[])?),
        Action::Kill => {}
        Action::Stop => {
            instances.push(stand.start(&[])?);
            stand.await_growth(seen, &mut instances)?;
            armed.thaw();
            instances.push(armed);
        }
    }
    let seen = if round.action == Action::Stop { stand.file_count() } else { seen };
    stand.await_growth(seen, &mut instances)?;
    let recovery = since.elapsed();
    for instance in &mut instances {
        instance.drain()?;
    }
    Ok(recovery)
}

/// Waits until the program has come to the point and done what it was told to.
fn await_action(instance: &mut Instance, name: &str, action: Action, limit: Duration) -> Result<(), String> {
    match action {
        Action::Kill => {
            instance.wait(&format!("it comes to `{name}`"), limit)?;
        }
        Action::Stop => {
            let id = instance.pid();
            eventually(&format!("it is frozen at `{name}`"), limit, || {
                !instance.is_running() || state(id) == Some('T')
            })?;
        }
        Action::Error => eventually(&format!("it comes to `{name}`"), limit, || {
            !instance.is_running() || instance.said(&["fail point", name]) > 0
        })?,
    }
    let is_as_told = instance.is_running() != (action == Action::Kill);
    if instance.said(&["fail point", name]) == 0 || !is_as_told {
        return Err(format!("it did not come to `{name}` as it was told:\n{}", tail(&instance.log())));
    }
    Ok(())
}

/// The state of a process as the kernel has it; `T` is stopped. `None` where there is no `/proc`, or no process.
pub fn state(id: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name of the program, in parentheses, may hold anything.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The topic of the Kafka sink.
fn copies_topic(options: &WorkloadOptions) -> String {
    format!("{}.copies", options.prefix)
}

/// The topic that is written in transactions.
fn exact_topic(options: &WorkloadOptions) -> String {
    format!("{}.exact", options.prefix)
}

/// The workload's topic that the sinks get which it has none of.
pub fn source_topic(options: &WorkloadOptions) -> String {
    format!("{}.raw", options.prefix)
}

/// Adds a route with the sinks that the workload has none of; with `is_long` every record becomes an entry.
fn add_routes(stand: &Stand, is_long: bool) -> Result<(), String> {
    let (source, copies) = (source_topic(&stand.options), copies_topic(&stand.options));
    let exact = exact_topic(&stand.options);
    let mut text = stand.routes();
    if is_long {
        let small = text.replace("max_rows: 200", "max_rows: 1").replace("max_rows: 500", "max_rows: 1");
        if small == text {
            return Err("the routes file has other limits than this scenario thinks".to_owned());
        }
        text = small;
    }
    text.push_str(&format!(
        "  copies:
    topics: [\"{source}\"]
    value: bytes
    views:
      places: SELECT _topic, _partition, _offset FROM batch
    sinks:
      topic: {{from: places, kafka: {{topic: \"{copies}\"}}}}
      screen: {{from: places, console: {{max_rows: 1}}}}
  exact:
    topics: [\"{source}\"]
    isolated: true
    bad_records: stop
    value: bytes
    views:
      places: SELECT _topic, _partition, _offset FROM batch
    sinks:
      topic: {{from: places, kafka: {{topic: \"{exact}\", transactional: true}}}}
"
    ));
    stand.write_routes(&text)
}

fn create_topic(options: &WorkloadOptions, name: &str) -> Result<(), String> {
    let cannot = |error: &dyn std::fmt::Display| format!("cannot create topic {name}: {error}");
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &options.bootstrap);
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(|e| cannot(&e))?;
    let topic = NewTopic::new(name, options.partitions, TopicReplication::Fixed(options.replication));
    let wishes = AdminOptions::new().operation_timeout(Some(ASK_LIMIT)).request_timeout(Some(ASK_LIMIT));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| cannot(&e))?;
    let created = runtime.block_on(admin.create_topics([&topic], &wishes)).map_err(|e| cannot(&e))?;
    created.into_iter().try_for_each(|result| result.map(drop).map_err(|(_, code)| cannot(&code)))
}

/// What a sink lacks, and what it has more than once.
#[derive(Debug, Clone, Copy)]
pub struct Copies {
    pub lost: usize,
    pub doubled: usize,
}

fn copies(options: &WorkloadOptions, manifest: &Manifest, topic: &str) -> Result<Copies, String> {
    compare(options, manifest, topic, read_places(options, topic)?)
}

/// Compares the places that `name` has, as often as it has them, with what was written.
pub fn compare(
    options: &WorkloadOptions,
    manifest: &Manifest,
    name: &str,
    places: Vec<(i64, i64)>,
) -> Result<Copies, String> {
    let source = source_topic(options);
    let is_expected = |kind: Kind| kind != Kind::Bad;
    let written = manifest.records.iter().filter(|record| record.topic == source && !record.is_aborted);
    let expected: BTreeSet<(i64, i64)> = written
        .filter(|record| is_expected(record.kind))
        .map(|record| (i64::from(record.partition), record.offset))
        .collect();
    let mut found: BTreeMap<(i64, i64), usize> = BTreeMap::new();
    for place in places {
        *found.entry(place).or_default() += 1;
    }
    if let Some((partition, offset)) = found.keys().find(|place| !expected.contains(place)) {
        return Err(format!(
            "{name} has a copy of {source}/{partition} offset {offset}, which was never written"
        ));
    }
    let lost = expected.iter().filter(|place| !found.contains_key(place)).count();
    let doubled = found.values().filter(|count| **count > 1).count();
    Ok(Copies { lost, doubled })
}

/// The places that the copies name, as often as they do.
fn read_places(options: &WorkloadOptions, topic: &str) -> Result<Vec<(i64, i64)>, String> {
    let cannot = |error: KafkaError| format!("cannot read {topic}: {error}");
    let consumer: BaseConsumer = topics::consumer(&options.bootstrap, "auditor", Isolation::Committed)?;
    let names = [topic.to_owned()];
    let places = topics::patiently("the partitions of the copies", || topics::partitions(&consumer, &names))?;
    let mut list = TopicPartitionList::new();
    let mut open = BTreeSet::new();
    for (_, partition) in places {
        list.add_partition_offset(topic, partition, Offset::Beginning).map_err(cannot)?;
        open.insert(partition);
    }
    consumer.assign(&list).map_err(cannot)?;
    let deadline = Instant::now() + READ_LIMIT;
    let mut found = Vec::new();
    while !open.is_empty() {
        if Instant::now() >= deadline {
            return Err(format!("{topic}: not read in {} s, partitions {open:?}", READ_LIMIT.as_secs()));
        }
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => found.push(place(message.payload().unwrap_or_default())?),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            // It tries again by itself; the deadline ends that.
            Some(Err(_)) | None => {}
        }
    }
    Ok(found)
}

fn place(payload: &[u8]) -> Result<(i64, i64), String> {
    let row: Value = serde_json::from_slice(payload).map_err(|e| format!("a copy is not JSON: {e}"))?;
    let number = |name: &str| row[name].as_i64().ok_or_else(|| format!("a copy without `{name}`: {row}"));
    Ok((number("_partition")?, number("_offset")?))
}
