//! The file as a whole.

use std::collections::BTreeMap;

use crate::model::{Offset, Partition, TopicName};

use super::expand::Environment;
use super::keys;
use super::mapping::{Context, Mapping, text, written};
use super::plan::{BasicAuth, Plan, Registry};
use super::{Problem, kafka, route, sink, tree};

/// The only version of the format.
const VERSION: &str = "1";

/// Reads `routes.yaml`.
///
/// # Errors
/// Every problem of the file; a syntax error comes alone.
pub fn read(text: &str, environment: &Environment) -> Result<Plan, Vec<Problem>> {
    let mut problems = Vec::new();
    let tree = tree::parse(text, &mut problems).map_err(|problem| vec![problem])?;
    let mut context = Context { environment, problems };
    let plan = root(&tree, &mut context);
    match plan {
        Some(plan) if context.problems.is_empty() => Ok(plan),
        _ => {
            // What is wrong in `defaults` is met by every route.
            let mut problems: Vec<Problem> = Vec::new();
            for problem in context.problems {
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
            Err(problems)
        }
    }
}

/// Offsets on a command line, as in `start:`.
///
/// # Errors
/// What is wrong with them.
pub fn parse_offsets(text: &str) -> Result<BTreeMap<TopicName, BTreeMap<Partition, Offset>>, Vec<Problem>> {
    let mut problems = Vec::new();
    let tree = tree::parse(text, &mut problems).map_err(|problem| vec![problem])?;
    let mut context = Context { environment: &Environment::default(), problems };
    let offsets = route::offsets(&tree, &mut context);
    if context.problems.is_empty() { Ok(offsets) } else { Err(context.problems) }
}

fn root(tree: &tree::Node, context: &mut Context<'_>) -> Option<Plan> {
    let root = Mapping::open(tree, &keys::ROOT, context)?;
    check_version(&root, context);
    let kafka = kafka::read(&root, context);
    let registry = registry(&root, context);
    let memory = root.bytes("memory", context);
    let topic_refresh = root.duration("topic_refresh", context);
    let defaults = root.get("defaults").and_then(|node| Mapping::open(node, &keys::DEFAULTS, context));
    root.require("routes", context);
    if let Some(defaults) = &defaults {
        // Its mappings are looked at even if every route has its own.
        defaults.nested("batch", &keys::BATCH, context);
    }
    let letters = sink::dead_letters(&root, context);
    let route_count = root.named("routes", context).len();
    if let Some(node) = root.get("routes").filter(|_| route_count == 0) {
        context.problem(node.span, "there are no routes");
    }
    let routes: Vec<_> = root
        .named("routes", context)
        .into_iter()
        .filter_map(|(name, node)| route::read(name, node, defaults, &letters, context))
        .collect();
    route::check_together(&routes, context);
    if root.get("schema_registry").is_none() {
        route::check_without_registry(&routes, root.span, context);
    }
    Some(Plan {
        kafka: kafka?,
        registry,
        memory: memory?,
        topic_refresh: topic_refresh?,
        routes: routes.into_iter().map(|read| read.plan).collect(),
    })
}

fn check_version(root: &Mapping<'_>, context: &mut Context<'_>) {
    if let Some(node) = root.require("version", context)
        && let Some(version) = text(node, context)
        && version != VERSION
    {
        let version = written(node);
        let message = format!("version {version} is not known; this sidestream reads version {VERSION}");
        context.problem(node.span, message);
    }
}

fn registry(root: &Mapping<'_>, context: &mut Context<'_>) -> Option<Registry> {
    root.get("schema_registry")?;
    let mapping = root.nested("schema_registry", &keys::SCHEMA_REGISTRY, context)?;
    mapping.require("url", context);
    let url = mapping.text("url", context)?;
    let url = url.trim_end_matches('/').to_owned();
    if !url.starts_with("http://") && !url.starts_with("https://") {
        let span = mapping.get("url").map_or(mapping.span, |node| node.span);
        context.problem(span, "the registry's URL begins with `http://` or `https://`");
    }
    let authority = url.split('/').nth(2).unwrap_or_default();
    if authority.contains('@') {
        let span = mapping.get("url").map_or(mapping.span, |node| node.span);
        let problem = Problem::new(span, "the registry's URL holds a user or a password");
        context.problems.push(problem.hint("put them under `basic_auth: {username: …, password: …}`"));
    }
    let basic_auth = mapping.get("basic_auth").is_some().then(|| {
        let auth = mapping.nested("basic_auth", &keys::BASIC_AUTH, context)?;
        auth.require("username", context);
        auth.require("password", context);
        Some(BasicAuth {
            username: auth.text("username", context)?,
            password: auth.text("password", context)?,
        })
    });
    Some(Registry { url, basic_auth: basic_auth.flatten(), timeout: mapping.duration("timeout", context)? })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::render;

    const GOOD: &str = include_str!("../../routes.yaml");

    fn environment() -> Environment {
        Environment::new([], Path::new("."))
    }

    #[test]
    fn the_repository_s_file_is_good() {
        let plan = read(GOOD, &environment()).unwrap();
        assert_eq!(plan.kafka.group, "shop-router");
        assert!(!plan.routes.is_empty());
    }

    #[test]
    fn what_a_variable_holds_is_never_shown() {
        let text = "version: 1\nkafka: {bootstrap.servers: b, group.id: g}\nmemory: \"${S}\"\n\
                    defaults: {batch: {max_rowz: 1}, key: \"${S}\"}\nroutes: {r: {topics: [\"${S} x\"]}}\n";
        let environment = Environment::new([("S".to_owned(), "hunter2".to_owned())], Path::new("."));
        let shown = render("routes.yaml", text, &read(text, &environment).unwrap_err());
        assert!(!shown.contains("hunter2"), "{shown}");
        for expected in
            ["`${S}` is not a size", "`max_rowz` is not a known key", "`${S}` is not a known value"]
        {
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn dead_letters_are_named_once_and_never_read() {
        let text = "version: 1\nkafka: {bootstrap.servers: b, group.id: g}\nschema_registry: {url: \"http://r\"}\n\
                    dead_letters:\n  quarantine: {kafka: {topic: bad}}\n  files: {jsonl: {path: out/bad}}\n\
                    defaults: {bad_records: {dead_letter: [quarantine, files]}}\nroutes:\n  \
                    r: {topics: [t], sinks: {s: {csv: {path: out/s}}}}\n";
        let plan = read(text, &environment()).unwrap();
        let letters = &plan.routes[0].dead_letters;
        let identities: Vec<&str> = letters.iter().map(|sink| sink.identity.as_str()).collect();
        assert_eq!(identities, ["r/dead_letter/quarantine", "r/dead_letter/files"]);
        for (from, to, expected) in [
            ("topics: [t]", "topics: [bad]", "dead letters go to topic `bad`, which a route reads"),
            ("[quarantine, files]", "quarantene", "`quarantene` is not a known dead letter target here"),
            ("{kafka: {topic: bad}}", "{}", "`quarantine` says one target"),
        ] {
            let text = text.replace(from, to);
            let shown = render("r", &text, &read(&text, &environment()).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    /// One file with many mistakes: all are reported, each in its place.
    #[test]
    fn every_problem_is_reported_at_once() {
        let text = "\
version: 2
kafka:
  bootstrap.servers: localhost:9092
  enable.auto.commit: true
schema_registry: {url: localhost:8081, tiemout: 5s}
memory: lots
defaults:
  key: utf16
routes:
  orders:
    topics: [shop.orders, shop.orders]
    start: newest
    tombstones: delete
    reader_schema: {version: 0}
    views:
      batch: SELECT 1
      paid: SELECT * FROM batch
    sinks:
      a: {from: payd, parquet: {path: out/a}}
      b: {parquet: {path: out/a, rool: 1}}
      c: {kafka: {topic: x, kye: {column: id}}}
  empty: {}
  good:
    topics: [t]
    sinks:
      x: {parquet: {path: out/x}}
      y: {parquet: {path: ./out/x}}
      z: {id: good/x, parquet: {path: out/z}}
";
        let problems = read(text, &environment()).unwrap_err();
        let shown = render("routes.yaml", text, &problems);
        for expected in [
            "routes.yaml:1:10: version 2 is not known",
            "routes.yaml:2:1: `group.id` is missing",
            "routes.yaml:4:3: `enable.auto.commit` is set by sidestream",
            "routes.yaml:5:24: the registry's URL begins with",
            "`tiemout` is not a known key here",
            "did you mean `timeout`?",
            "routes.yaml:6:9: `lots` is not a size",
            "routes.yaml:8:8: `utf16` is not a known value here",
            "routes.yaml:11:27: topic `shop.orders` is named twice",
            "routes.yaml:12:12: `newest` is not a start",
            "routes.yaml:13:17: `delete` is not a known value here",
            "routes.yaml:14:30: `0` is not a whole number from 1",
            "routes.yaml:16:7: `batch` is the name of the decoded records",
            "routes.yaml:19:17: `payd` is not a known view here",
            "did you mean `paid`?",
            "did you mean `roll`?",
            "routes.yaml:22:10: `topics` is missing",
            "routes.yaml:22:10: `sinks` is missing",
            "routes.yaml:27:7: `out/x` is already used by sink `good/x`",
            "routes.yaml:28:7: `good/x` is already the identity of sink `good/x`",
        ] {
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }
}
