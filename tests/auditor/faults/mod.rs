//! Faults against the real program, one scenario for each row of the matrix: a workload flows, the fault comes and goes,
//! everything is read to its end, and the auditor compares.
//!
//! A scenario prints what it is about and how it ended; a table of all of them comes last. The seed that is printed makes
//! the same moments again, as far as the machine lets it.

mod brokers;
mod data;
mod failpoints;
mod isolation;
mod kills;
mod lab;
mod machine;
mod members;
mod operators;
mod registry;
mod soak;
mod tables;
mod tools;
mod transactions;

use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::invariants::Report;
use crate::manifest::Manifest;
use crate::services;
use crate::stand::{self, Stand};

/// What a scenario is told.
pub struct Context {
    pub seed: u64,
    /// Else the scenario's own number: small in CI.
    pub rounds: Option<u32>,
    pub is_ci: bool,
}

impl Context {
    /// How often the fault comes.
    pub fn rounds_of(&self, ci: u32, nightly: u32) -> u32 {
        self.rounds.unwrap_or(if self.is_ci { ci } else { nightly }).max(1)
    }

    /// How long a fault lasts.
    pub fn lasting(&self, ci: Duration, nightly: Duration) -> Duration {
        if self.is_ci { ci } else { nightly }
    }

    /// For the moments of faults: the same ones with the same seed.
    pub fn random(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }
}

/// One row of the table.
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// Of the fault matrix: its number, and its name there.
    pub row: &'static str,
    /// Part of what every change runs; the others are for the night.
    pub in_ci: bool,
    pub run: fn(&Context) -> Result<Outcome, String>,
}

/// What came of a scenario that reached its audit.
pub struct Outcome {
    pub rounds: u32,
    pub lost: usize,
    pub doubled: usize,
    /// The longest: fault gone until rows flow again.
    pub recovery: Option<Duration>,
    /// Begins with [`NOT_POSSIBLE`] where nothing was done.
    pub note: String,
}

/// Begins the note, or the error, of a scenario that this machine cannot do.
pub const NOT_POSSIBLE: &str = "not possible here";

/// The result of a scenario that this machine cannot do.
pub fn not_possible(why: &str) -> Outcome {
    Outcome { rounds: 0, lost: 0, doubled: 0, recovery: None, note: format!("{NOT_POSSIBLE}: {why}") }
}

/// How many scenarios ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    /// Not possible here, or without services.
    pub ignored: usize,
}

/// All scenarios, in the order of the table.
fn all() -> Vec<&'static Scenario> {
    let parts: [&'static [Scenario]; 12] = [
        kills::ALL,
        failpoints::ALL,
        tables::ALL,
        transactions::ALL,
        members::ALL,
        operators::ALL,
        brokers::ALL,
        registry::ALL,
        data::ALL,
        machine::ALL,
        isolation::ALL,
        soak::ALL,
    ];
    parts.into_iter().flatten().collect()
}

/// What the arguments ask for.
struct Wanted {
    scenarios: Vec<&'static Scenario>,
    context: Context,
    is_list: bool,
}

/// `faults [NAME…] [--all|--ci] [--rounds N] [--seed N] [--list]`, what comes after `faults`. Without names those that
/// are in CI, and as short as there; with names or `--all` as at night, unless it says `--ci`.
///
/// # Errors
/// What is wrong with the arguments, or that services are missing that are required.
pub fn run(arguments: &[String]) -> Result<Tally, String> {
    let wanted = read(arguments)?;
    if wanted.is_list {
        list(&wanted.scenarios);
        return Ok(Tally::default());
    }
    if let Err(why) = services::are_there() {
        return without_services(wanted.scenarios.len(), &why);
    }
    say(&format!("seed {}", wanted.context.seed));
    let mut lines = Vec::new();
    let mut tally = Tally::default();
    for scenario in &wanted.scenarios {
        say(&format!("\nfault {}: {} ({})", scenario.name, scenario.about, scenario.row));
        let since = Instant::now();
        let result = carry_out(scenario, &wanted.context);
        let took = since.elapsed().as_secs_f64();
        let verdict = Verdict::of(&result);
        match verdict {
            Verdict::Passed => tally.passed += 1,
            Verdict::Failed => tally.failed += 1,
            Verdict::Ignored => tally.ignored += 1,
        }
        let line = Line::new(scenario, result, verdict);
        say(&format!("fault {}: {} ({took:.0} s): {}", scenario.name, verdict.text(), line.details));
        lines.push(line);
    }
    stand::close();
    print_table(&lines, wanted.context.seed);
    Ok(tally)
}

fn read(arguments: &[String]) -> Result<Wanted, String> {
    let all = all();
    let names: BTreeSet<&str> = all.iter().map(|scenario| scenario.name).collect();
    if names.len() < all.len() {
        return Err("two scenarios have the same name".to_owned());
    }
    let mut named = BTreeSet::new();
    let (mut is_all, mut is_ci, mut is_list) = (false, false, false);
    let mut context = Context { seed: fastrand::u64(1..1_000_000), rounds: None, is_ci: true };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().map(String::as_str).unwrap_or_default();
            text.parse::<u64>().map_err(|_| format!("`{word}` needs a number, not `{text}`"))
        };
        match word.as_str() {
            "--all" => is_all = true,
            "--ci" => is_ci = true,
            "--list" => is_list = true,
            "--seed" => context.seed = number()?,
            "--rounds" => context.rounds = u32::try_from(number()?).ok(),
            name if names.contains(name) => {
                named.insert(name);
            }
            other => return Err(format!("there is no scenario `{other}`; see `faults --list`")),
        }
    }
    context.is_ci = is_ci || (named.is_empty() && !is_all);
    let is_wanted = |scenario: &&Scenario| match named.is_empty() {
        true => is_all || is_list || scenario.in_ci,
        false => named.contains(scenario.name),
    };
    let scenarios = all.into_iter().filter(|scenario| is_wanted(scenario)).collect();
    Ok(Wanted { scenarios, context, is_list })
}

/// Said loudly, and a failure where services are required.
fn without_services(count: usize, why: &str) -> Result<Tally, String> {
    if std::env::var_os("SIDESTREAM_REQUIRE_SERVICES").is_some() {
        return Err(format!("the faults need real services: {why}"));
    }
    say(&format!("SKIPPED ({count} scenarios): {why}"));
    Ok(Tally { ignored: count, ..Tally::default() })
}

/// A scenario that panics has failed, and the next one has its turn.
fn carry_out(scenario: &Scenario, context: &Context) -> Result<Outcome, String> {
    panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(context))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("it panicked: {}", text.unwrap_or("without words")))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Ignored,
}

impl Verdict {
    fn of(result: &Result<Outcome, String>) -> Self {
        let (note, is_bad) = match result {
            Ok(outcome) => (&outcome.note, outcome.lost + outcome.doubled > 0),
            Err(error) => (error, true),
        };
        if note.starts_with(NOT_POSSIBLE) {
            Self::Ignored
        } else if is_bad {
            Self::Failed
        } else {
            Self::Passed
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Ignored => "not done",
        }
    }
}

/// A line of the table.
struct Line {
    cells: [String; COLUMNS],
    /// All that is to be said, of which the table has the first line.
    details: String,
}

const COLUMNS: usize = 6;
const HEADS: [&str; COLUMNS] = ["fault", "rounds", "lost", "doubled", "seconds to recover", "result"];

impl Line {
    fn new(scenario: &Scenario, result: Result<Outcome, String>, verdict: Verdict) -> Self {
        let nothing = || "-".to_owned();
        let (numbers, details) = match result {
            Ok(outcome) if verdict != Verdict::Ignored => {
                let recovery = outcome.recovery.map(|time| format!("{:.1}", time.as_secs_f64()));
                let numbers = [
                    outcome.rounds.to_string(),
                    outcome.lost.to_string(),
                    outcome.doubled.to_string(),
                    recovery.unwrap_or_else(nothing),
                ];
                (numbers, outcome.note)
            }
            Ok(Outcome { note: text, .. }) | Err(text) => {
                ([nothing(), nothing(), nothing(), nothing()], text)
            }
        };
        let first = details.lines().next().unwrap_or_default();
        let result = match verdict {
            Verdict::Ignored => first.to_owned(),
            _ if first.is_empty() => verdict.text().to_owned(),
            _ => format!("{}: {first}", verdict.text()),
        };
        let [rounds, lost, doubled, recovery] = numbers;
        let name = format!("{} ({})", scenario.name, scenario.row);
        Self { cells: [name, rounds, lost, doubled, recovery, result], details }
    }
}

/// As Markdown, to be put into a report as it is.
#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn print_table(lines: &[Line], seed: u64) {
    println!("\nFaults, seed {seed}:\n");
    println!("| {} |", HEADS.join(" | "));
    println!("|---|---:|---:|---:|---:|---|");
    for line in lines {
        println!("| {} |", line.cells.each_ref().map(|cell| cell.replace('|', "/")).join(" | "));
    }
    println!();
}

#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
fn list(scenarios: &[&Scenario]) {
    for Scenario { name, about, row, in_ci, .. } in scenarios {
        let when = if *in_ci { "ci" } else { "nightly" };
        println!("{name:<24} {when:<8} {row}: {about}");
    }
}

/// What is going on.
#[expect(clippy::print_stderr, reason = "runs take long; stdout has the result")]
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// The end of a scenario, once nothing runs any more: a bounded run reads what is left, and the audit compares
/// everything. If they differ the place is kept for a look.
pub fn conclude(
    stand: &mut Stand,
    manifest: &Manifest,
    rounds: u32,
    recovery: Option<Duration>,
) -> Result<Outcome, String> {
    let took = stand.finish()?;
    stand.expect_no_panic()?;
    let report = stand.audit(manifest)?;
    let count = manifest.records.len();
    if report.is_clean() {
        let note = format!("{count} records; the bounded run took {:.1} s", took.as_secs_f64());
        return Ok(Outcome { rounds, lost: 0, doubled: 0, recovery, note });
    }
    let place = stand.keep().display().to_string();
    differing(&report, rounds, recovery, &format!("of {count} records; the place is kept: {place}"))
}

/// With numbers for the table, where there are some.
fn differing(
    report: &Report,
    rounds: u32,
    recovery: Option<Duration>,
    note: &str,
) -> Result<Outcome, String> {
    let (lost, doubled) = (report.lost.len(), report.doubled.len());
    let note = format!("{note}\n{report}");
    if lost + doubled == 0 {
        return Err(note);
    }
    Ok(Outcome { rounds, lost, doubled, recovery, note })
}

/// Whether a tool of the system does this without complaint; else what it says.
pub fn tool_can(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("`{program}` cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(format!("`{program} {}`: {said}", arguments.join(" ")))
}
