//! The command line: the only place that builds concrete things and hands them to the engine.

mod build;
mod candidate;
mod changes;
mod check;
mod config_schema;
mod datagen;
mod demo;
mod eyes;
mod factory;
mod fit;
mod follow;
mod load;
mod offsets;
mod plan;
mod progress;
mod readers;
mod replay;
mod run;
mod standing;
mod table;
mod transactions;
mod types;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::error;
use tracing_subscriber::EnvFilter;

/// One Kafka subscription, many topics: each decoded by its own schema, shaped by its own SQL, written to
/// its own sinks.
#[derive(Debug, Parser)]
#[command(name = "sidestream", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the routes, as a service or up to an end.
    Run(run::Options),
    /// Report every problem of a routes file, and the guarantee of each sink.
    Check(check::Options),
    /// Explain what a start would do: topics, where each sink begins or goes on, what would stop. Writes nothing.
    Plan(plan::Options),
    /// Where every sink stands, and moving it.
    Offsets(offsets::Options),
    /// Send the dead letters of a route through it again, after what was wrong is mended.
    Replay(replay::Options),
    /// Run the whole job on an embedded broker and registry, with generated records. Needs nothing else.
    Demo(datagen::Options),
    /// Fill topics with records generated from Avro schemas.
    Datagen(datagen::Options),
    /// Print the JSON Schema of routes.yaml, for editors.
    ConfigSchema(config_schema::Options),
}

/// How a command ends.
#[derive(Debug)]
enum Failure {
    /// The command line or the file is wrong; what was wrong is on stderr already.
    Usage,
    /// It failed while running.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Exit code 1: failed while running.
const FAILED: u8 = 1;
/// Exit code 2: the command line or the file is wrong.
const USAGE: u8 = 2;

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    let result = match cli.command {
        Command::Run(options) => run::run(&options),
        Command::Check(options) => check::check(&options),
        Command::Plan(options) => plan::plan(&options),
        Command::Offsets(options) => offsets::offsets(&options),
        Command::Replay(options) => replay::replay(&options),
        Command::Demo(options) => demo::demo(&options),
        Command::Datagen(options) => datagen::datagen(&options),
        Command::ConfigSchema(options) => config_schema::print(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage) => ExitCode::from(USAGE),
        Err(Failure::Failed(error)) => {
            print_error(&error);
            ExitCode::from(FAILED)
        }
    }
}

/// The file that is read if none is named.
const DEFAULT_FILE: &str = "routes.yaml";

#[expect(clippy::print_stderr, reason = "errors go to stderr, once, at the end")]
fn print_error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
    if let Some(hint) = error.chain().find_map(|error| build::hint(error).or_else(|| datagen::hint(error))) {
        eprintln!("\nhint: {hint}");
    }
}

/// What is logged unless `RUST_LOG` says. The library of Delta tables tells each look at a log.
const LOGGED: &str = "info,buoyant_kernel=warn,buoyant_kernel_engine=warn";

/// Logs go to stderr: text on a terminal, above the bar if there is one, JSON otherwise. `RUST_LOG` chooses.
fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let writer = || progress::Above(std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    if std::io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_target(false).init();
    }
    std::panic::set_hook(Box::new(tell_panic));
}

/// A panic is a defect of ours. Its text is told only if it is fixed: one that was put together may quote a record.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    let text = panic.payload().downcast_ref::<&str>().copied();
    let trace = Backtrace::capture();
    let trace = (trace.status() == BacktraceStatus::Captured).then(|| trace.to_string());
    error!(place, text, trace, "a defect of sidestream; please report it");
}
