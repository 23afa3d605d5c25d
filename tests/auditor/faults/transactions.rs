//! Transactions that end in their middle, again and again: killed at a step or at any moment, or aborted as a step was
//! told as failed. Whoever reads only what is committed sees each record once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::failpoints::VARIABLE;
use super::lab::{Lab, Route};
use super::tools::{ensure, write_numbers};
use super::{Context, Outcome, Scenario, not_possible};
use crate::stand::{FLOW_LIMIT, eventually, pause, tail};

pub const ALL: &[Scenario] = &[Scenario {
    name: "transactions",
    about: "killed and aborted within Kafka transactions; read_committed readers see each record once",
    row: "2 kill and abort within a transaction",
    in_ci: true,
    run: transactions,
}];

const STEPS: [&str; 5] = [
    "kafka.transaction.ready",
    "kafka.transaction.begun",
    "kafka.transaction.delivered",
    "kafka.transaction.offsets",
    "kafka.transaction.committed",
];

const PARTITIONS: i32 = 3;

/// For each partition and round: with batches of 100 there are at least six transactions.
const ROWS: i64 = 200;

/// The later times that a step is come to.
const NTH_MAX: u64 = 4;

fn transactions(context: &Context) -> Result<Outcome, String> {
    if !cfg!(debug_assertions) {
        return Ok(not_possible("releases have no fail points"));
    }
    let rounds = context.rounds_of(4, 1000);
    let mut random = context.random();
    let mut lab = Lab::new(context, 0)?;
    for topic in ["in", "out"] {
        lab.create(topic, &[])?;
    }
    lab.widen("in", usize::try_from(PARTITIONS).unwrap_or_default())?;
    let sinks = format!("{{out: {{kafka: {{topic: \"{}\", transactional: true}}}}}}", lab.topic("out"));
    let route = Route::new("exact").of_topic("in").writing(&sinks);
    lab.write_routes("", &[route.batching("{max_rows: 100, max_age: 50ms}")])?;
    let mut total = 0;
    let mut recovery = Duration::ZERO;
    for round in 1..=rounds {
        for partition in 0..PARTITIONS {
            write_numbers(lab.bootstrap(), &lab.topic("in"), partition, total..total + ROWS)?;
            total += ROWS;
        }
        let step = STEPS[random.usize(..STEPS.len())];
        let action = if random.bool() { "kill" } else { "error" };
        let armed = format!("{step}:{}={action}", random.u64(1..=NTH_MAX));
        let since = Instant::now();
        let mut instance = lab.stand.start(&[(VARIABLE, armed.as_str())])?;
        if action == "kill" {
            instance.wait(&format!("it comes to `{armed}`"), FLOW_LIMIT)?;
        } else {
            eventually(&format!("it comes to `{armed}`"), FLOW_LIMIT, || {
                !instance.is_running() || instance.said(&["fail point", step]) > 0
            })?;
        }
        recovery = recovery.max(since.elapsed());
        ensure(instance.said(&["fail point", step]) > 0, || {
            format!("it did not come to `{armed}`:\n{}", tail(&instance.log()))
        })?;
        if action == "error" {
            // While it aborts, or in one of the next transactions.
            pause(Duration::from_millis(random.u64(0..600)));
            instance.kill();
        }
        // A round leaves more than it reads, and a bounded run has a time limit.
        if round % 100 == 0 {
            lab.run_to_the_end(0)?;
        }
    }
    lab.run_to_the_end(0)?;
    lab.stand.expect_no_panic()?;
    lab.expect_no_lag("in")?;
    compare(&lab, total, rounds, recovery)
}

/// What a reader of what is committed sees, against what was written.
fn compare(lab: &Lab, total: i64, rounds: u32, recovery: Duration) -> Result<Outcome, String> {
    let mut found: BTreeMap<i64, usize> = BTreeMap::new();
    for row in lab.held("out")? {
        let number = row.value.parse::<i64>().map_err(|_| format!("`{}` was never written", row.value))?;
        *found.entry(number).or_default() += 1;
    }
    let strange = found.keys().find(|number| !(0..total).contains(*number));
    ensure(strange.is_none(), || format!("{strange:?} was never written"))?;
    let lost = (0..total).filter(|number| !found.contains_key(number)).count();
    let doubled = found.values().filter(|count| **count > 1).count();
    let note = format!("{total} records");
    Ok(Outcome { rounds, lost, doubled, recovery: Some(recovery), note })
}
