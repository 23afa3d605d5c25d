//! The fail points of a PostgreSQL sink, on a real PostgreSQL: the program is killed there, or told that the step before
//! failed although it was done, or frozen with what it has locked while another one goes on. The table has to hold the place
//! of every record once.

use std::env;
use std::time::Duration;

use super::failpoints::{Action, Copies, Point, Round, compare, disturb, rounds, source_topic, state};
use super::{Context, Outcome, Scenario, conclude, not_possible, say};
use crate::manifest::Manifest;
use crate::postgres::{self, Postgres};
use crate::stand::{Stand, StandOptions};
use crate::workload::Workload;

pub const ALL: &[Scenario] = &[Scenario {
    name: "failpoints-postgres",
    about: "killed, frozen and deceived at every step of a PostgreSQL sink",
    row: "2 kill, zombie and lost reply at each fail point of a table",
    in_ci: true,
    run: all,
}];

/// What their names begin with.
pub const POINTS: &str = "postgres.";

/// One round in CI: `tests/it/postgres.rs` passes each point once, without the workload.
const ROUNDS_CI: u32 = 1;

/// A frozen client holds its locks so long, and others wait so long for one: shorter than a scenario waits for rows.
const LIMITS: &str = "-c%20idle_in_transaction_session_timeout%3D5s%20-c%20lock_timeout%3D1s";

/// The table of a round, which has a database of its own.
const TABLE: &str = "places";

fn all(context: &Context) -> Result<Outcome, String> {
    if !cfg!(debug_assertions) {
        return Ok(not_possible("releases have no fail points"));
    }
    if let Err(why) = postgres::are_there() {
        let is_required = env::var_os("SIDESTREAM_REQUIRE_SERVICES").is_some();
        return if is_required { Err(why) } else { Ok(not_possible(&why)) };
    }
    let mut outcome = Outcome { rounds: 0, lost: 0, doubled: 0, recovery: None, note: String::new() };
    let mut failures = Vec::new();
    say("| fail point | files: lost | doubled | table: lost | doubled | seconds to recover |");
    say("|---|---:|---:|---:|---:|---:|");
    for round in chosen(context) {
        let name = round.variable();
        outcome.rounds += 1;
        match one(context, &round) {
            Ok((files, table)) => {
                let recovery = files.recovery.unwrap_or(Duration::ZERO);
                let seconds = recovery.as_secs_f64();
                let Copies { lost, doubled } = table;
                say(&format!(
                    "| {name} | {} | {} | {lost} | {doubled} | {seconds:.1} |",
                    files.lost, files.doubled
                ));
                if files.lost + files.doubled + lost + doubled > 0 {
                    failures.push(format!("{name}: {}", files.note));
                }
                outcome.lost += files.lost + lost;
                outcome.doubled += files.doubled + doubled;
                outcome.recovery = outcome.recovery.max(Some(recovery));
            }
            Err(error) => {
                say(&format!("| {name} | FAILED: {} |", error.lines().next().unwrap_or_default()));
                failures.push(format!("{name}: {error}"));
            }
        }
    }
    if outcome.rounds == 0 {
        return Err(format!("no fail point `{POINTS}…` was found in the sources"));
    }
    if failures.is_empty() {
        outcome.note = "the table has every record once".to_owned();
        return Ok(outcome);
    }
    let text = format!("{} of {} rounds\n{}", failures.len(), outcome.rounds, failures.join("\n"));
    if outcome.lost + outcome.doubled == 0 {
        return Err(text);
    }
    outcome.note = text;
    Ok(outcome)
}

/// All rounds at night, one of them in CI.
fn chosen(context: &Context) -> Vec<Round> {
    let mut random = context.random();
    let is_of_table = |point: &Point| point.name.starts_with(POINTS);
    let mut chosen = Vec::new();
    for action in [Action::Kill, Action::Error, Action::Stop] {
        // Without /proc nobody can tell that a process is frozen.
        if action != Action::Stop || state(std::process::id()).is_some() {
            chosen.extend(rounds(context, action, u32::MAX, &mut random, is_of_table));
        }
    }
    if context.is_ci {
        random.shuffle(&mut chosen);
    }
    let count = context.rounds_of(ROUNDS_CI, u32::MAX);
    chosen.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    chosen
}

/// What came of the files of the workload, and of the table.
fn one(context: &Context, round: &Round) -> Result<(Outcome, Copies), String> {
    let options = StandOptions { partitions: 2, largest: 20_000, ..StandOptions::default() };
    let mut stand = Stand::new(context, options)?;
    let postgres = Postgres::start()?;
    add_route(&stand, &postgres)?;
    let workload = Workload::start(&stand.options, 0);
    let recovered = disturb(&mut stand, round);
    let manifest = workload.stop()?;
    let files = conclude(&mut stand, &manifest, 1, Some(recovered?))?;
    let table = table(&stand, &manifest, &postgres)?;
    if table.lost + table.doubled > 0 {
        stand.keep();
    }
    Ok((files, table))
}

/// Adds a route with a table to those of the workload.
fn add_route(stand: &Stand, postgres: &Postgres) -> Result<(), String> {
    let (source, url) = (source_topic(&stand.options), postgres.url());
    let text = format!(
        "{}  tables:
    topics: [\"{source}\"]
    value: bytes
    views:
      places: SELECT _partition AS part, _offset AS place FROM batch
    sinks:
      table: {{from: places, postgres: {{url: \"{url}?options={LIMITS}\", table: {TABLE}, create: true}}}}
",
        stand.routes()
    );
    stand.write_routes(&text)
}

fn table(stand: &Stand, manifest: &Manifest, postgres: &Postgres) -> Result<Copies, String> {
    let rows = postgres.sql(&format!("SELECT part, place FROM {TABLE};"));
    let places: Option<Vec<(i64, i64)>> = rows
        .iter()
        .map(|row| {
            let (partition, offset) = row.split_once('|')?;
            Some((partition.parse().ok()?, offset.parse().ok()?))
        })
        .collect();
    let places = places.ok_or_else(|| format!("table {TABLE} has rows that are no places"))?;
    compare(&stand.options, manifest, &format!("table {TABLE}"), places)
}
