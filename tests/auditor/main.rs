//! The auditor: writes records of which it knows everything, lets the real program run under faults, and then compares
//! what was written with what is there. `docs/reliability.md` says what it checks and how to run it.
//!
//! It links nothing of the program: its clients, its readers of files and of the commit log, and its Avro are its own.

mod commits;
mod faults;
mod invariants;
mod manifest;
mod model;
mod readers;
mod routes;
mod selfcheck;
mod stand;
mod topics;
mod workload;

/// Brokers, registry and database of the tests; these use the standard library only.
#[path = "../it/support/postgres.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "other tests ask for more, and a scenario may panic")]
mod postgres;
#[path = "../it/support/probe.rs"]
mod probe;
#[path = "../it/support/services.rs"]
#[expect(dead_code, reason = "other tests start a single broker with nothing to set")]
mod services;

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use faults::Tally;
use invariants::Targets;
use manifest::Manifest;
use workload::{Features, Workload, WorkloadOptions};

const USAGE: &str = "\
auditor                     self-check, then the faults that every change has to pass (as `cargo test` does)
auditor self-check [NAME…]  the auditor shown to find every fault; needs no services
auditor faults [NAME…] [--all | --ci] [--rounds N] [--seed N] [--list]
auditor --list              the faults there are
auditor produce --bootstrap B --registry URL --prefix P --count N --manifest FILE
                [--seed N] [--rate N] [--largest BYTES] [--partitions N] [--replication N]
auditor routes  --bootstrap B --registry URL --prefix P --group G
auditor audit   --bootstrap B --prefix P --group G --manifest FILE --place DIR";

/// Options of libtest that have a value in the next word.
const VALUED: [&str; 6] = ["--test-threads", "--skip", "--format", "--color", "--logfile", "-Z"];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((word, rest)) => match word.as_str() {
            "produce" => produce(rest),
            "routes" => routes(rest),
            "audit" => audit(rest),
            "self-check" => self_check(rest).map(conclude),
            "faults" => faults::run(rest).map(conclude),
            "--list" => faults::run(&arguments).map(conclude),
            "help" | "--help" | "-h" => {
                print(USAGE);
                Ok(true)
            }
            _ => tests(&arguments).map(conclude),
        },
        None => tests(&arguments).map(conclude),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What `cargo test` runs. Words that are no options choose by name, as they do in libtest; one that names nothing here
/// means tests elsewhere.
fn tests(arguments: &[String]) -> Result<Tally, String> {
    let mut filters = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if VALUED.contains(&word.as_str()) {
            words.next();
        } else if !word.starts_with('-') {
            filters.push(word.clone());
        }
    }
    let mut tally = self_check(&filters)?;
    let in_ci = "--ci".to_owned();
    if filters.is_empty() {
        add(&mut tally, faults::run(&[in_ci])?);
        return Ok(tally);
    }
    for filter in filters {
        match faults::run(&[in_ci.clone(), filter]) {
            Ok(more) => add(&mut tally, more),
            Err(error) if error.starts_with("there is no scenario") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tally)
}

fn add(tally: &mut Tally, more: Tally) {
    tally.passed += more.passed;
    tally.failed += more.failed;
    tally.ignored += more.ignored;
}

fn self_check(filters: &[String]) -> Result<Tally, String> {
    let since = Instant::now();
    let selfcheck::Outcome { passed, failures } = selfcheck::run(filters)?;
    for failure in &failures {
        say(&format!("FAILED {failure}"));
    }
    let seconds = since.elapsed().as_secs_f64();
    say(&format!("self-check: {passed} cases as expected, {} not, in {seconds:.1} s", failures.len()));
    Ok(Tally { passed, failed: failures.len(), ..Tally::default() })
}

/// Prints a line like libtest's, which CI counts; whether all went well.
fn conclude(tally: Tally) -> bool {
    let Tally { passed, failed, ignored } = tally;
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    print(&format!("test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored;"));
    failed == 0
}

fn produce(words: &[String]) -> Result<bool, String> {
    let flags = Flags::read(words)?;
    let options = flags.options()?;
    let path = PathBuf::from(flags.get("manifest")?);
    let mut manifest = if path.is_file() { Manifest::load(&path)? } else { Manifest::default() };
    let first = manifest.records.iter().map(|record| record.seq + 1).max().unwrap_or_default();
    Workload::prepare(&options)?;
    manifest.merge(Workload::write(&options, flags.number("count")?, first)?);
    manifest.save(&path)?;
    say(&format!("{} records are in {}", manifest.records.len(), path.display()));
    flags.finish()
}

fn routes(words: &[String]) -> Result<bool, String> {
    let flags = Flags::read(words)?;
    let options = flags.options()?;
    let group = flags.get("group")?;
    let text = workload::routes_yaml(&options, &options.bootstrap, &options.registry, &group, &[]);
    print(text.trim_end());
    flags.finish()
}

fn audit(words: &[String]) -> Result<bool, String> {
    let mut flags = Flags::read(words)?;
    // Nothing is registered.
    flags.given.entry("registry".to_owned()).or_default();
    let options = flags.options()?;
    let manifest = Manifest::load(Path::new(&flags.get("manifest")?))?;
    let targets = Targets {
        place: PathBuf::from(flags.get("place")?),
        bootstrap: options.bootstrap.clone(),
        group: flags.get("group")?,
    };
    flags.finish()?;
    let report = invariants::audit(&manifest, &options, &targets)?;
    print(&format!("{} records: {report}", manifest.records.len()));
    Ok(report.is_clean())
}

/// `--name value`, each at most once.
struct Flags {
    given: BTreeMap<String, String>,
    used: std::cell::RefCell<Vec<String>>,
}

impl Flags {
    fn read(words: &[String]) -> Result<Flags, String> {
        let mut given = BTreeMap::new();
        for pair in words.chunks(2) {
            let (Some(name), Some(value)) = (pair[0].strip_prefix("--"), pair.get(1)) else {
                return Err(format!("expected `--name value` instead of `{}`\n\n{USAGE}", pair[0]));
            };
            if given.insert(name.to_owned(), value.clone()).is_some() {
                return Err(format!("`--{name}` is there twice"));
            }
        }
        Ok(Flags { given, used: std::cell::RefCell::default() })
    }

    fn find(&self, name: &str) -> Option<&String> {
        self.used.borrow_mut().push(name.to_owned());
        self.given.get(name)
    }

    fn get(&self, name: &str) -> Result<String, String> {
        self.find(name).cloned().ok_or_else(|| format!("`--{name}` is missing\n\n{USAGE}"))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T, String> {
        let text = self.get(name)?;
        text.parse().map_err(|_| format!("`--{name} {text}` is no number"))
    }

    fn number_or<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        if self.find(name).is_some() { self.number(name) } else { Ok(default) }
    }

    fn options(&self) -> Result<WorkloadOptions, String> {
        Ok(WorkloadOptions {
            bootstrap: self.get("bootstrap")?,
            registry: self.get("registry")?,
            seed: self.number_or("seed", 1)?,
            prefix: self.get("prefix")?,
            rate: self.number_or("rate", 0)?,
            partitions: self.number_or("partitions", 4)?,
            replication: self.number_or("replication", 1)?,
            largest: self.number_or("largest", 200_000)?,
            features: Features { transactions: true, compacted: true, bad: true, schema_changes: true },
        })
    }

    /// What nobody asked for is a mistake.
    fn finish(&self) -> Result<bool, String> {
        let used = self.used.borrow();
        match self.given.keys().find(|name| !used.contains(name)) {
            Some(name) => Err(format!("`--{name}` means nothing here\n\n{USAGE}")),
            None => Ok(true),
        }
    }
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn print(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "what is going on goes to stderr")]
fn say(text: &str) {
    eprintln!("{text}");
}
