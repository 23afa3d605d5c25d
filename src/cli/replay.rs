//! `sidestream replay`: dead letters as records of their route, once more.
//!
//! A bounded run of the route over its dead-letter topic, with positions of its own there: what was replayed is not
//! replayed again. Sinks keep them under the same identity, so files are written once; it may run beside the service.

use std::path::PathBuf;

use clap::Args;

use crate::config::plan::{Plan, Route, Target};
use crate::config::topics::Topics;
use crate::model::{Start, TopicName};

use super::{Failure, load, run};

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = super::DEFAULT_FILE)]
    file: PathBuf,
    /// The route whose dead letters are replayed; `route/topic` for one with `per_topic`.
    #[arg(long)]
    route: String,
    /// The target under `dead_letters:` to read, if the route has several. It has to be a topic.
    #[arg(long)]
    from: Option<String>,
}

/// # Errors
/// [`Failure`]
pub fn replay(options: &Options) -> Result<(), Failure> {
    let mut loaded = load::load(&options.file)?;
    let chosen = choose(&loaded.plan, &options.route, options.from.as_deref());
    let route = chosen.map_err(|problem| load::usage(&problem))?;
    let plan = &mut loaded.plan;
    plan.others =
        std::mem::take(&mut plan.routes).into_iter().chain(std::mem::take(&mut plan.others)).collect();
    plan.routes = vec![route];
    // The service has it.
    plan.admin.listen = None;
    run::run_alone(loaded)
}

/// The route that reads the letters, or what is wrong with the command line.
fn choose(plan: &Plan, name: &str, from: Option<&str>) -> Result<Route, String> {
    let route = find(plan, name)?;
    let topics: Vec<(&str, Option<&TopicName>)> = route
        .dead_letters
        .iter()
        .map(|sink| {
            let topic = match &sink.target {
                Target::Kafka { topic, .. } => topic.as_ref(),
                _ => None,
            };
            (sink.name.strip_prefix("dead_letter/").unwrap_or(&sink.name), topic)
        })
        .collect();
    let names = || topics.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let (target, topic) = match from {
        Some(from) => *topics.iter().find(|(name, _)| *name == from).ok_or_else(|| {
            format!("route `{name}` has no dead letter target `{from}`; it has {}", names())
        })?,
        None => {
            let mut readable = topics.iter().filter(|(_, topic)| topic.is_some());
            match (readable.next(), readable.next()) {
                (Some(one), None) => *one,
                (Some(_), Some(_)) => return Err(format!("say with `--from` which of {} is read", names())),
                (None, _) if topics.is_empty() => {
                    return Err(format!(
                        "route `{name}` has no dead letters: it does not say `bad_records: {{dead_letter: …}}`"
                    ));
                }
                (None, _) => {
                    return Err(format!(
                        "the dead letters of route `{name}` are in {}: only those of a topic can be replayed",
                        names()
                    ));
                }
            }
        }
    };
    let topic = topic
        .ok_or_else(|| format!("`{target}` is no topic: only dead letters of a topic can be replayed"))?;
    let mut replayed = route.clone();
    replayed.replays = Some(route.topics.named().first().cloned().unwrap_or_else(|| topic.clone()));
    replayed.topics = Topics::Named(vec![topic.clone()]);
    // Positions of the topic tell what was replayed. The digest stays that of the route: nothing was edited.
    replayed.start = Start::Earliest;
    replayed.is_isolated = true;
    for sink in &mut replayed.sinks {
        sink.start = None;
    }
    Ok(replayed)
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
dead_letters: {bad: {kafka: {topic: shop.bad}}, worse: {kafka: {topic: shop.worse}}, files: {jsonl: {path: out/bad}}}
defaults: {bad_records: {dead_letter: [bad, files]}}
routes:
  orders: {topics: [shop.orders], start: latest, sinks: {s: {start: latest, jsonl: {path: out/s}}}}
  each: {topics: {pattern: 'shop\.e.*'}, per_topic: true, sinks: {s: {jsonl: {path: 'out/{topic}'}}}}
  both: {topics: [c], bad_records: {dead_letter: [bad, worse]}, sinks: {s: {jsonl: {path: out/c}}}}
  files: {topics: [d], bad_records: {dead_letter: files}, sinks: {s: {jsonl: {path: out/d}}}}
  none: {topics: [e], bad_records: skip, sinks: {s: {jsonl: {path: out/e}}}}
";

    fn plan() -> Plan {
        read(TEXT, &Environment::of_process(std::path::Path::new(""))).unwrap()
    }

    #[test]
    fn a_route_reads_its_letters_from_the_beginning() {
        let plan = plan();
        let route = choose(&plan, "orders", None).unwrap();
        assert_eq!(route.topics.named(), [TopicName::new("shop.bad")]);
        assert_eq!(route.replays, Some(TopicName::new("shop.orders")));
        assert_eq!((route.start.clone(), route.sinks[0].start.clone()), (Start::Earliest, None));
        assert_eq!(route.start_hash, plan.routes[0].start_hash);
        let instance = choose(&plan, "each/shop.eu", None).unwrap();
        assert_eq!(
            (instance.name.as_str(), instance.replays),
            ("each/shop.eu", Some(TopicName::new("shop.eu")))
        );
        let second = choose(&plan, "both", Some("worse")).unwrap();
        assert_eq!(second.topics.named(), [TopicName::new("shop.worse")]);
    }

    #[test]
    fn what_cannot_be_replayed_is_told() {
        let plan = plan();
        for (name, from, expected) in [
            ("orders", Some("files"), "`files` is no topic"),
            ("orders", Some("more"), "has no dead letter target `more`; it has `bad`, `files`"),
            ("other", None, "there is no route `other`"),
            ("each", None, "say `each/<topic>`"),
            ("orders/x", None, "not `per_topic`"),
            ("both", None, "say with `--from` which of `bad`, `worse`"),
            ("files", None, "are in `files`: only those of a topic"),
            ("none", None, "has no dead letters"),
        ] {
            let problem = choose(&plan, name, from).unwrap_err();
            assert!(problem.contains(expected), "{name}: {problem}");
        }
    }
}
