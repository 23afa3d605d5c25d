//! `sidestream check`: every problem at once.

use std::path::PathBuf;

use clap::Args;

use crate::config::plan::Route;
use crate::engine::chain;

use super::{Failure, build, load};

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = super::DEFAULT_FILE)]
    file: PathBuf,
    /// Do not ask the registry: bind only routes with no schema in it.
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
        if options.offline && build::needs_registry(route) {
            print_line(&format!(
                "route {}: not bound, its schema is in the registry (--offline)",
                route.name
            ));
            continue;
        }
        let Some(instances) = instances(route)? else {
            let what = "not bound, its topics and their schemas are found when it runs";
            print_line(&format!("route {}: {what}", route.name));
            print_sinks(route);
            continue;
        };
        let mut is_bound = true;
        for instance in &instances {
            let bound = runtime.block_on(async {
                let decoder = build::decoder(instance, registry.as_deref()).await?;
                Ok::<_, build::ReaderError>(build::bind(instance, decoder).await)
            });
            match bound {
                Ok(Ok(_)) => continue,
                Ok(Err(found)) => problems.extend(found),
                Err(error) => unasked.push(error),
            }
            is_bound = false;
        }
        if is_bound {
            print_route(route);
        }
    }
    // All of them are told; the last one as what the command failed with, if nothing is wrong in the file.
    let last = if problems.is_empty() { unasked.pop() } else { None };
    for error in unasked {
        print_error(&error);
    }
    if !problems.is_empty() {
        loaded.print(&problems);
        return Err(Failure::Usage);
    }
    match last {
        Some(error) => Err(Failure::Failed(error.into())),
        None => Ok(()),
    }
}

/// The routes that can be bound before anything runs; `None` if they depend on topics nobody has named.
fn instances(route: &Route) -> Result<Option<Vec<Route>>, Failure> {
    if !route.is_per_topic {
        return Ok(Some(vec![route.clone()]));
    }
    if route.topics.is_pattern() {
        return Ok((!route.is_schema_of_topic()).then(|| vec![route.clone()]));
    }
    let each = route.topics.named().iter().map(|topic| route.instance(topic));
    Ok(Some(each.collect::<Result<_, _>>().map_err(anyhow::Error::from)?))
}

#[expect(clippy::print_stderr, reason = "errors go to stderr")]
fn print_error(error: &build::ReaderError) {
    eprintln!("error: {}", chain(error));
}

fn print_route(route: &Route) {
    let each = if route.is_per_topic { ", one route each" } else { "" };
    print_line(&format!("route {}: {}{each}", route.name, route.topics.shown()));
    print_sinks(route);
}

fn print_sinks(route: &Route) {
    for sink in route.sinks.iter().chain(&route.dead_letters) {
        print_line(&format!("  sink {}: {}", sink.name, sink.target.guarantee()));
    }
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn print_line(line: &str) {
    println!("{line}");
}
