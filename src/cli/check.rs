//! `sidestream check`: every problem at once.

use std::path::PathBuf;

use clap::Args;

use crate::config::plan::{ReaderSchema, Route, ValueForm};

use super::{Failure, build, load};

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = super::DEFAULT_FILE)]
    file: PathBuf,
    /// Do not ask the registry: bind only routes with a `reader_schema: {file: …}`.
    #[arg(long)]
    offline: bool,
}

/// # Errors
/// [`Failure::Usage`] if the file has problems, [`Failure::Failed`] if the registry could not be asked.
pub fn check(options: &Options) -> Result<(), Failure> {
    let loaded = load::load(&options.file)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let registry = build::registry(&loaded.plan)?;
    let mut problems = Vec::new();
    let mut unasked = Vec::new();
    for route in &loaded.plan.routes {
        if options.offline && needs_registry(route) {
            print_line(&format!(
                "route {}: not bound, its schema is in the registry (--offline)",
                route.name
            ));
            continue;
        }
        let bound = runtime.block_on(async {
            let codec = build::codec(route, registry.as_deref()).await?;
            Ok::<_, build::ReaderError>(build::bind(route, codec).await)
        });
        match bound {
            Ok(Ok(_)) => print_route(route),
            Ok(Err(found)) => problems.extend(found),
            Err(error) => unasked.push(error),
        }
    }
    if !problems.is_empty() {
        loaded.print(&problems);
        return Err(Failure::Usage);
    }
    match unasked.into_iter().next() {
        Some(error) => Err(Failure::Failed(error.into())),
        None => Ok(()),
    }
}

fn needs_registry(route: &Route) -> bool {
    match &route.value {
        ValueForm::Registry(schema) => !matches!(schema, ReaderSchema::File(_)),
        ValueForm::Raw(_) | ValueForm::Json(_) => false,
    }
}

fn print_route(route: &Route) {
    let topics: Vec<&str> = route.topics.iter().map(|topic| topic.as_str()).collect();
    print_line(&format!("route {}: {}", route.name, topics.join(", ")));
    for sink in route.sinks.iter().chain(&route.dead_letters) {
        print_line(&format!("  sink {}: {}", sink.name, sink.target.guarantee()));
    }
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn print_line(line: &str) {
    println!("{line}");
}
