//! `sidestream replay`: dead letters as records of their route, once more.
//!
//! A bounded run of the route over its dead-letter topic, or over files in the place of a topic, with positions of its
//! own there: what was replayed is not replayed again. Sinks keep them under the same identity, so files are written
//! once; it may run beside the service.

mod reading;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;

use crate::config::plan::{Plan, Route, Sink, Target};
use crate::config::topics::Topics;
use crate::model::{Start, TopicName};
use crate::sink::file::Numbered;

use super::{Failure, load, run};

pub use reading::Letters;
pub use source::{LettersCluster, LettersSource, LettersSources};

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = super::DEFAULT_FILE)]
    file: PathBuf,
    /// The route whose dead letters are replayed; `route/topic` for one with `per_topic`.
    #[arg(long)]
    route: String,
    /// The target under `dead_letters:` to read, if the route has several: a topic or files. Always the same one: each
    /// has letters of its own that were replayed.
    #[arg(long)]
    from: Option<String>,
}

/// # Errors
/// [`Failure`]
pub fn replay(options: &Options) -> Result<(), Failure> {
    let mut loaded = load::load(&options.file)?;
    let chosen = choose(&loaded.plan, &options.route, options.from.as_deref());
    let (route, target) = chosen.map_err(|problem| load::usage(&problem))?;
    let (route, letters) = match target {
        Readable::Topic(topic) => (replayed(route, topic, true), None),
        Readable::Files { identity, path } => {
            let letters = Arc::new(open(&identity, &path)?);
            // The group of its own is in the directory.
            (replayed(route, letters.source.topic.clone(), false), Some(letters))
        }
    };
    let plan = &mut loaded.plan;
    plan.others =
        std::mem::take(&mut plan.routes).into_iter().chain(std::mem::take(&mut plan.others)).collect();
    plan.routes = vec![route];
    // The service has it.
    plan.admin.listen = None;
    run::run_alone(loaded, letters)
}

fn open(identity: &str, path: &Path) -> Result<Letters, Failure> {
    let rows = Numbered::open(path).map_err(anyhow::Error::from)?;
    let nothing = || anyhow!("there are no dead letters: nothing was ever written to `{}`", path.display());
    Ok(Letters::new(identity, rows.ok_or_else(nothing)?))
}

/// Where letters are that can be read.
#[derive(Debug, PartialEq, Eq)]
enum Readable {
    Topic(TopicName),
    Files { identity: String, path: PathBuf },
}

/// # Errors
/// Why letters of this sink cannot be read.
fn readable(sink: &Sink) -> Result<Readable, &'static str> {
    match &sink.target {
        Target::Kafka { topic: Some(topic), value: None, .. } => Ok(Readable::Topic(topic.clone())),
        Target::Kafka { .. } => Err("its `format` is not `original`, in which a record is as it was"),
        Target::Files { storage: Some(_), .. } => {
            Err("it is in an object store: only letters in a topic and in local files can be replayed")
        }
        Target::Files { path, .. } => {
            Ok(Readable::Files { identity: sink.identity.clone(), path: path.clone() })
        }
        Target::Postgres(_) | Target::Delta(_) => {
            Err("it is a table: only letters in a topic and in files can be replayed")
        }
        Target::Console { .. } | Target::Http(_) => Err("it keeps no letters"),
    }
}

/// The route and its letters, or what is wrong with the command line.
fn choose(plan: &Plan, name: &str, from: Option<&str>) -> Result<(Route, Readable), String> {
    let route = find(plan, name)?;
    let short = |sink: &Sink| sink.name.strip_prefix("dead_letter/").unwrap_or(&sink.name).to_owned();
    let targets: Vec<(String, Result<Readable, &str>)> =
        route.dead_letters.iter().map(|sink| (short(sink), readable(sink))).collect();
    let names = targets.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if targets.is_empty() {
        return Err(format!(
            "route `{name}` has no dead letters: it does not say `bad_records: {{dead_letter: …}}`"
        ));
    }
    if let Some(from) = from {
        let found = targets.into_iter().find(|(name, _)| name == from);
        let (_, target) = found
            .ok_or_else(|| format!("route `{name}` has no dead letter target `{from}`; it has {names}"))?;
        return match target {
            Ok(target) => Ok((route, target)),
            Err(why) => Err(format!("the dead letters in `{from}` cannot be replayed: {why}")),
        };
    }
    let (topics, others): (Vec<_>, Vec<_>) =
        targets.into_iter().partition(|(_, target)| matches!(target, Ok(Readable::Topic(_))));
    // A topic comes first: letters in several targets are the same ones.
    let mut first: Vec<Readable> = topics.into_iter().filter_map(|(_, target)| target.ok()).collect();
    let mut why = None;
    if first.is_empty() {
        for (name, target) in others {
            match target {
                Ok(target) => first.push(target),
                Err(reason) => {
                    why = Some(format!("the dead letters in `{name}` cannot be replayed: {reason}"))
                }
            }
        }
    }
    match (first.pop(), first.is_empty(), why) {
        (Some(one), true, _) => Ok((route, one)),
        (Some(_), false, _) => Err(format!("say with `--from` which of {names} is read")),
        (None, _, why) => Err(why.unwrap_or_default()),
    }
}

/// The route as it reads its letters, which are in `topic`.
fn replayed(route: Route, topic: TopicName, is_isolated: bool) -> Route {
    let mut replayed = route;
    replayed.replays = Some(replayed.topics.named().first().cloned().unwrap_or_else(|| topic.clone()));
    replayed.topics = Topics::Named(vec![topic]);
    // Positions of the topic tell what was replayed. The digest stays that of the route: nothing was edited.
    replayed.start = Start::Earliest;
    replayed.is_isolated = is_isolated;
    for sink in &mut replayed.sinks {
        sink.start = None;
    }
    replayed
}

fn find(plan: &Plan, name: &str) -> Result<Route, String> {
    let (of, topic) = name.split_once('/').map_or((name, None), |(of, topic)| (of, Some(topic)));
    let route = plan.routes.iter().find(|route| route.name == of);
    let route = route.ok_or_else(|| format!("there is no route `{of}` in the file"))?;
    match (route.is_per_topic, topic) {
        (false, None) => Ok(route.clone()),
        (true, Some(topic)) => route.instance(&TopicName::new(topic)).map_err(|error| error.to_string()),
        (true, None) => Err(format!("route `{of}` has one instance for each topic: say `{of}/<topic>`")),
        (false, Some(_)) => Err(format!("route `{of}` is not `per_topic`: say `{of}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, read};

    const TEXT: &str = r"
version: 1
kafka: {bootstrap.servers: b, group.id: g}
schema_registry: {url: http://r}
dead_letters:
  bad: {kafka: {topic: shop.bad}}
  worse: {kafka: {topic: shop.worse}}
  files: {parquet: {path: out/bad}}
  table: {postgres: {url: postgresql://h/d, table: bad}}
  json: {kafka: {topic: shop.json, format: json}}
  store: {parquet: {path: 's3://bucket/bad'}}
defaults: {bad_records: {dead_letter: [bad, files]}}
routes:
  orders: {topics: [shop.orders], start: latest, sinks: {s: {start: latest, jsonl: {path: out/s}}}}
  each: {topics: {pattern: 'shop\.e.*'}, per_topic: true, sinks: {s: {jsonl: {path: 'out/{topic}'}}}}
  both: {topics: [c], bad_records: {dead_letter: [bad, worse]}, sinks: {s: {jsonl: {path: out/c}}}}
  files: {topics: [d], bad_records: {dead_letter: files}, sinks: {s: {jsonl: {path: out/d}}}}
  table: {topics: [f], bad_records: {dead_letter: [table, files]}, sinks: {s: {jsonl: {path: out/f}}}}
  json: {topics: [g], bad_records: {dead_letter: json}, sinks: {s: {jsonl: {path: out/g}}}}
  store: {topics: [i], bad_records: {dead_letter: store}, sinks: {s: {jsonl: {path: out/i}}}}
  none: {topics: [e], bad_records: skip, sinks: {s: {jsonl: {path: out/e}}}}
";

    fn plan() -> Plan {
        read(TEXT, &Environment::of_process(Path::new(""))).unwrap()
    }

    /// The route as it reads a topic of letters.
    fn chosen(plan: &Plan, name: &str, from: Option<&str>) -> Route {
        match choose(plan, name, from).unwrap() {
            (route, Readable::Topic(topic)) => replayed(route, topic, true),
            (_, other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_route_reads_its_letters_from_the_beginning() {
        let plan = plan();
        let route = chosen(&plan, "orders", None);
        assert_eq!(route.topics.named(), [TopicName::new("shop.bad")]);
        assert_eq!(route.replays, Some(TopicName::new("shop.orders")));
        assert_eq!((route.start.clone(), route.sinks[0].start.clone()), (Start::Earliest, None));
        assert_eq!(route.start_hash, plan.routes[0].start_hash);
        let instance = chosen(&plan, "each/shop.eu", None);
        assert_eq!(
            (instance.name.as_str(), instance.replays),
            ("each/shop.eu", Some(TopicName::new("shop.eu")))
        );
        let second = chosen(&plan, "both", Some("worse"));
        assert_eq!(second.topics.named(), [TopicName::new("shop.worse")]);
    }

    #[test]
    fn files_are_read_where_there_is_no_topic_or_they_are_named() {
        let plan = plan();
        for (name, from, path, identity) in [
            ("orders", Some("files"), "out/bad/orders", "orders/dead_letter/files"),
            ("files", None, "out/bad/files", "files/dead_letter/files"),
            ("table", None, "out/bad/table", "table/dead_letter/files"),
            ("each/shop.eu", Some("files"), "out/bad/each/shop.eu", "each/shop.eu/dead_letter/files"),
        ] {
            let expected = Readable::Files { identity: identity.to_owned(), path: PathBuf::from(path) };
            assert_eq!(choose(&plan, name, from).unwrap().1, expected);
        }
    }

    #[test]
    fn what_cannot_be_replayed_is_told() {
        let plan = plan();
        for (name, from, expected) in [
            ("orders", Some("more"), "has no dead letter target `more`; it has `bad`, `files`"),
            ("other", None, "there is no route `other`"),
            ("each", None, "say `each/<topic>`"),
            ("orders/x", None, "not `per_topic`"),
            ("both", None, "say with `--from` which of `bad`, `worse`"),
            ("table", Some("table"), "the dead letters in `table` cannot be replayed: it is a table"),
            ("json", None, "the dead letters in `json` cannot be replayed: its `format` is not `original`"),
            ("store", None, "the dead letters in `store` cannot be replayed: it is in an object store"),
            ("none", None, "has no dead letters"),
        ] {
            let problem = choose(&plan, name, from).unwrap_err();
            assert!(problem.contains(expected), "{name}: {problem}");
        }
    }
}
