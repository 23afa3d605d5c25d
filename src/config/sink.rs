//! The sinks of a route. A new kind of sink is a scope in `keys`, a variant of `plan::Target`, and an arm here.

use std::path::PathBuf;

use super::Problem;
use super::keys;
use super::mapping::{Context, Mapping, unknown, written};
use super::plan::{FileFormat, Roll, Sink, Target, View};
use super::route::check_name;
use crate::model::TopicName;

use super::tree::{Key, Node, Span};

/// Reads all sinks, each with its place.
pub fn read_all(
    route: &str,
    mapping: &Mapping<'_>,
    views: &[View],
    context: &mut Context<'_>,
) -> Vec<(Sink, Span)> {
    let sinks = mapping.named("sinks", context);
    if sinks.is_empty()
        && let Some(node) = mapping.get("sinks")
    {
        context.problem(node.span, "a route has at least one sink");
    }
    sinks
        .into_iter()
        .filter_map(|(key, node)| Some((read(route, key, node, views, context)?, key.span)))
        .collect()
}

fn read(route: &str, key: &Key, node: &Node, views: &[View], context: &mut Context<'_>) -> Option<Sink> {
    check_name("sink", key, context);
    let mapping = Mapping::open(node, &keys::SINK, context)?;
    let from = from(&mapping, views, context);
    let identity = mapping.text("id", context);
    let target = target(key, &mapping, context);
    Some(Sink {
        name: key.name.clone(),
        identity: identity.unwrap_or_else(|| format!("{route}/{}", key.name)),
        // One that leads nowhere was reported; the rest of the sink is checked all the same.
        from: from.flatten(),
        target: target?,
    })
}

/// A named target for bad records.
pub struct DeadLetter {
    pub name: String,
    target: Target,
}

impl DeadLetter {
    /// The sink of one route's dead letters. A topic is shared by routes, a directory is not.
    pub fn sink(&self, route: &str) -> Sink {
        let target = match &self.target {
            Target::Files { format, path, roll } => {
                Target::Files { format: *format, path: path.join(route), roll: *roll }
            }
            other => other.clone(),
        };
        let name = format!("dead_letter/{}", self.name);
        Sink { identity: format!("{route}/{name}"), name, from: None, target }
    }
}

/// Reads `dead_letters:`.
pub fn dead_letters(root: &Mapping<'_>, context: &mut Context<'_>) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    for (key, node) in root.named("dead_letters", context) {
        check_name("dead letter target", key, context);
        let Some(mapping) = Mapping::open(node, &keys::DEAD_LETTER, context) else {
            continue;
        };
        let target = match (mapping.get("kafka").is_some(), mapping.get("jsonl").is_some()) {
            (true, false) => dead_letter_topic(&mapping, context),
            (false, true) => files("jsonl", FileFormat::JsonLines, &mapping, context),
            _ => {
                context.problem(key.span, format!("`{}` says one target: `kafka` or `jsonl`", key.name));
                None
            }
        };
        if let Some(target) = target {
            letters.push(DeadLetter { name: key.name.clone(), target });
        }
    }
    letters
}

fn dead_letter_topic(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    let kafka = mapping.nested("kafka", &keys::DEAD_LETTER_TOPIC, context)?;
    kafka.require("topic", context);
    let topic = kafka.text("topic", context)?;
    Some(Target::Kafka { topic: Some(TopicName::new(&topic)), key: None, value: None })
}

/// The one kind of target that is given.
fn target(key: &Key, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    const KINDS: [&str; 5] = ["console", "jsonl", "csv", "parquet", "kafka"];
    let given: Vec<&'static str> = KINDS.into_iter().filter(|name| mapping.names(name)).collect();
    let name = match given.as_slice() {
        [one] => *one,
        [] => {
            let names = KINDS.map(|name| format!("`{name}`")).join(", ");
            context.problem(key.span, format!("sink `{}` says no target: one of {names}", key.name));
            return None;
        }
        [first, .., last] => {
            let message = format!("sink `{}` says two targets: `{first}` and `{last}`", key.name);
            context.problems.push(Problem::new(key.span, message).hint("make two sinks of it"));
            return None;
        }
    };
    match name {
        "parquet" => files(name, FileFormat::Parquet, mapping, context),
        "jsonl" => files(name, FileFormat::JsonLines, mapping, context),
        "csv" => files(name, FileFormat::Csv, mapping, context),
        "console" => {
            let console = mapping.nested(name, &keys::CONSOLE, context)?;
            let rows_max = usize::try_from(console.integer("max_rows", context)?).ok()?;
            Some(Target::Console { rows_max })
        }
        _ => kafka(mapping, context),
    }
}

fn files(name: &str, format: FileFormat, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    let files = mapping.nested(name, &keys::FILES, context)?;
    files.require("path", context);
    let path = files.text("path", context);
    let roll = roll(&files, context);
    Some(Target::Files { format, path: PathBuf::from(path?), roll: roll? })
}

fn kafka(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    let kafka = mapping.nested("kafka", &keys::KAFKA_SINK, context)?;
    let mut column = |name| {
        kafka.get(name)?;
        let column = kafka.nested(name, &keys::COLUMN, context)?;
        column.require("column", context);
        column.text("column", context)
    };
    let (key, value) = (column("key"), column("value"));
    let topic = kafka.text("topic", context).map(|name| TopicName::new(&name));
    Some(Target::Kafka { topic, key, value })
}

/// `Some(None)` is `batch`.
fn from(mapping: &Mapping<'_>, views: &[View], context: &mut Context<'_>) -> Option<Option<usize>> {
    let Some(name) = mapping.text("from", context) else {
        return Some(None);
    };
    if name == "batch" {
        return Some(None);
    }
    let found = views.iter().position(|view| view.name == name);
    if found.is_none() {
        let mut names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
        names.push("batch");
        if let Some(node) = mapping.get("from") {
            context.problems.push(unknown("view", node.span, written(node), &names));
        }
        return None;
    }
    Some(found)
}

fn roll(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Roll> {
    let roll = mapping.nested("roll", &keys::ROLL, context)?;
    Some(Roll {
        bytes_max: roll.bytes("max_bytes", context)?,
        rows_max: roll.integer("max_rows", context),
        age_max: roll.duration("max_age", context)?,
    })
}
