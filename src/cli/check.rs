//! `sidestream check`: every problem at once.

use std::path::PathBuf;

use clap::Args;

use crate::codec::{Side, letters};
use crate::config::plan::{BadRecords, Plan, ReaderSchema, Route, Sink};
use crate::config::{Problem, Span};
use crate::engine::chain;
use crate::model::{Classify, Fault};
use crate::registry::Registry;
use crate::sink::kafka::examine;

use super::build::Bound;
use super::candidate::{self, Candidate};
use super::{Failure, build, changes, load};

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = super::DEFAULT_FILE)]
    file: PathBuf,
    /// Do not ask the registry: bind only routes with no schema in it.
    #[arg(long)]
    offline: bool,
    /// Would this schema, registered under the subject as its newest version, break a route? Registers nothing.
    #[arg(long, value_name = "SUBJECT=FILE", value_parser = candidate::parse, conflicts_with = "offline")]
    candidate: Vec<Candidate>,
}

/// # Errors
/// [`Failure::Usage`] if the file has problems, [`Failure::Failed`] if the registry could not be asked, or a candidate
/// would break a route.
pub fn check(options: &Options) -> Result<(), Failure> {
    let loaded = load::load(&options.file)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let registry = build::registry(&loaded.plan)?;
    if !options.candidate.is_empty() {
        return runtime.block_on(candidate::check(&loaded, registry.as_deref(), &options.candidate));
    }
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
            print_company(route, &loaded.plan);
            print_sinks(route);
            continue;
        };
        let mut is_bound = true;
        let (mut deletes, mut subjects) = (Vec::new(), Vec::new());
        for instance in &instances {
            let bound = runtime.block_on(async {
                let decoders = build::decoders(instance, registry.as_deref()).await?;
                Ok::<_, build::ReaderError>(build::bind(instance, decoders).await)
            });
            match bound {
                Ok(Ok(bound)) => {
                    // All instances have the same sinks.
                    deletes = changes::lines(instance, &bound);
                    if let Some(registry) = registry.as_deref().filter(|_| !options.offline) {
                        let (lines, found) = runtime.block_on(written_subjects(instance, &bound, registry));
                        subjects.extend(lines);
                        problems.extend(found);
                    }
                    continue;
                }
                Ok(Err(found)) => problems.extend(found),
                Err(error) => unasked.push(error),
            }
            is_bound = false;
        }
        if is_bound {
            print_route(route, &loaded.plan);
            deletes.iter().for_each(|line| print_line(&format!("  {line}")));
            subjects.iter().for_each(|line| print_line(line));
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

/// What the registry says of the schemas that the sinks of a route write with: lines to print, and problems.
async fn written_subjects(
    route: &Route,
    bound: &Bound,
    registry: &dyn Registry,
) -> (Vec<String>, Vec<Problem>) {
    let (mut lines, mut problems) = (Vec::new(), Vec::new());
    let outputs = route.sinks.iter().map(|sink| (sink, bound.schema(sink)));
    let letters = route.dead_letters.iter().map(|sink| (sink, letters::schema()));
    for (sink, rows) in outputs.chain(letters) {
        let Some(options) = build::kafka_options(sink) else {
            continue;
        };
        for examined in examine(registry, &options, &rows).await {
            let (name, part) = (&sink.name, examined.part);
            let Some(subject) = examined.subject else {
                lines.push(format!("  sink {name}: {part}s: a subject for each topic that rows name"));
                continue;
            };
            match examined.problem {
                None => lines.push(format!("  sink {name}: {part}s: subject {subject}, compatible")),
                // It passes: nothing is wrong in the file.
                Some(problem) if problem.fault() == Fault::Transient => {
                    lines.push(format!(
                        "  sink {name}: {part}s: subject {subject}, not asked: {}",
                        chain(&problem)
                    ));
                }
                Some(problem) => {
                    let message = format!("route `{}`: sink `{name}`: {}", route.name, chain(&problem));
                    let told = Problem::new(Span { line: 1, column: 1 }, message);
                    problems.push(match problem.hint() {
                        Some(hint) => told.hint(hint.into_owned()),
                        None => told,
                    });
                }
            }
        }
    }
    (lines, problems)
}

/// The routes that can be bound before anything runs; `None` if they depend on topics nobody has named.
pub fn instances(route: &Route) -> Result<Option<Vec<Route>>, Failure> {
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

fn print_route(route: &Route, plan: &Plan) {
    let each = if route.is_per_topic { ", one route each" } else { "" };
    print_line(&format!("route {}: {}{each}", route.name, route.topics.shown()));
    for line in reader_lines(route) {
        print_line(&format!("  {line}"));
    }
    print_company(route, plan);
    print_sinks(route);
}

/// Which subjects a route follows, and what follows from a newer version; of which types its records are.
pub fn reader_lines(route: &Route) -> Vec<String> {
    let mut lines = Vec::new();
    for (place, of_type) in route.by_type().iter().enumerate() {
        let values = match route.record_types.get(place) {
            Some(record_type) => format!("records of type {}", record_type.name),
            None => "values".to_owned(),
        };
        lines.extend(reader_line(of_type, Side::Value, &values));
        // Those of all types are of one subject.
        lines.extend(reader_line(of_type, Side::Key, "keys").filter(|_| place == 0));
    }
    if !route.record_types.is_empty() {
        lines.push(format!("records of other types: {}", others(route)));
        lines.push("records without a value have no type: they are dropped".to_owned());
    }
    lines
}

fn reader_line(route: &Route, side: Side, what: &str) -> Option<String> {
    let form = build::registry_form(route, side)?;
    if form.schema != ReaderSchema::Latest {
        return None;
    }
    let subject = match route.is_per_topic {
        true => "of each topic".to_owned(),
        false => format!("`{}`", build::subject(route, side, form)),
    };
    let policy = route.on_new_schema.name();
    Some(format!("reads {what} as the newest version of subject {subject}; on a newer one: {policy}"))
}

/// What becomes of records whose type the route does not name.
fn others(route: &Route) -> &'static str {
    match (route.other_types, route.bad_records) {
        (Some(BadRecords::Skip), _) => "dropped",
        (Some(BadRecords::DeadLetter), _) | (None, BadRecords::DeadLetter) => "dead letters",
        (None, BadRecords::Skip) => "skipped, as bad records",
        (Some(BadRecords::Stop), _) | (None, BadRecords::Stop) => "the route stops before them",
    }
}

/// Which consumer a route reads with, where that is not the only one there is.
fn print_company(route: &Route, plan: &Plan) {
    if let Some(line) = company(route, &plan.routes, &plan.kafka.group) {
        print_line(&format!("  {line}"));
    }
}

fn company(route: &Route, routes: &[Route], group: &str) -> Option<String> {
    if route.is_isolated {
        return Some(format!("isolated: a consumer of its own, in group `{group}.{}`", route.name));
    }
    let shares = |other: &&Route| {
        let named = other.topics.named();
        let is_same = route.topics.named().iter().any(|topic| named.contains(topic));
        other.name != route.name && !other.is_isolated && is_same
    };
    let others: Vec<&str> = routes.iter().filter(shares).map(|other| other.name.as_str()).collect();
    let others = others.join(", ");
    // What patterns match is known when they run.
    (!others.is_empty()).then(|| {
        format!("reads topics of {others} too: together while both keep up; whichever falls behind or holds the other up reads by itself")
    })
}

fn print_sinks(route: &Route) {
    for sink in &route.sinks {
        print_line(&format!("  sink {}: {}", sink.name, sink.guarantee()));
    }
    for sink in &route.dead_letters {
        print_line(&format!("  sink {}: {}", sink.name, letters_guarantee(sink)));
    }
}

/// What `check` prints of a sink of dead letters. Those that are not part of what it reads are rows of an empty move.
fn letters_guarantee(sink: &Sink) -> String {
    let guarantee = sink.guarantee();
    if !sink.target.has_own_store() {
        return guarantee;
    }
    format!(
        "{guarantee}; letters of records that a view fails on or a sink refuses may come again after a crash"
    )
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
pub fn print_line(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Environment, read};

    #[test]
    fn it_says_what_of_dead_letters_may_come_again() {
        let text = "\
version: 1
kafka: {bootstrap.servers: b, group.id: g}
dead_letters:
  topic: {kafka: {topic: bad}}
  files: {avro: {path: out/bad}}
  table: {postgres: {url: postgresql://h/d, table: bad}}
routes:
  r:
    topics: [t]
    value: string
    bad_records: {dead_letter: [topic, files, table]}
    sinks: {s: {console: {}}}
";
        let plan = read(text, &Environment::new([], Path::new("."))).unwrap();
        let lines: Vec<String> = plan.routes[0].dead_letters.iter().map(letters_guarantee).collect();
        for (line, expected) in lines.iter().zip(["at least once: ", "exactly once: ", "exactly once: "]) {
            assert!(line.starts_with(expected), "{line}");
            assert_eq!(
                line.contains("may come again after a crash"),
                expected.starts_with("exactly"),
                "{line}"
            );
        }
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn it_says_who_reads_together_and_who_alone() {
        let text = "\
version: 1
kafka: {bootstrap.servers: b, group.id: g}
defaults: {value: string}
routes:
  a: {topics: [t, u], sinks: {s: {console: {}}}}
  b: {topics: [t], sinks: {s: {console: {}}}}
  c: {topics: [t], isolated: true, sinks: {s: {console: {}}}}
  d: {topics: [v], sinks: {s: {console: {}}}}
";
        let plan = read(text, &Environment::new([], Path::new("."))).unwrap();
        let lines: Vec<Option<String>> =
            plan.routes.iter().map(|route| company(route, &plan.routes, &plan.kafka.group)).collect();
        assert!(lines[0].as_ref().unwrap().starts_with("reads topics of b too"), "{lines:?}");
        assert!(lines[1].as_ref().unwrap().starts_with("reads topics of a too"), "{lines:?}");
        assert!(lines[2].as_ref().unwrap().contains("in group `g.c`"), "{lines:?}");
        assert_eq!(lines[3], None);
    }
}
