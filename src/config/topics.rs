//! `topics:` of a route: names, or a pattern that is matched against the names the cluster has.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::mapping::{Context, Mapping, text, written};
use super::plan::Route;
use super::tree::{Node, Value};
use super::{Problem, keys};
use crate::model::TopicName;

/// What a route reads.
#[derive(Debug, Clone)]
pub enum Topics {
    Named(Vec<TopicName>),
    Pattern(TopicPattern),
}

/// Matches whole names.
#[derive(Debug, Clone)]
pub struct TopicPattern {
    regex: Regex,
    exclude: Vec<Regex>,
}

impl PartialEq for Topics {
    fn eq(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

impl Topics {
    /// The topics that are named; none for a pattern.
    pub fn named(&self) -> &[TopicName] {
        match self {
            Self::Named(names) => names,
            Self::Pattern(_) => &[],
        }
    }

    pub fn is_pattern(&self) -> bool {
        matches!(self, Self::Pattern(_))
    }

    /// Two texts that are the same only for the same topics and excludes.
    pub fn digest(&self) -> [String; 2] {
        match self {
            Self::Named(names) => {
                let names: Vec<&str> = names.iter().map(TopicName::as_str).collect();
                [names.join(","), String::new()]
            }
            Self::Pattern(TopicPattern { regex, exclude }) => {
                let exclude: Vec<&str> = exclude.iter().map(Regex::as_str).collect();
                [format!("pattern {}", regex.as_str()), exclude.join("\n")]
            }
        }
    }

    /// As in the file, for people.
    pub fn shown(&self) -> String {
        match self {
            Self::Named(names) => names.iter().map(TopicName::as_str).collect::<Vec<_>>().join(", "),
            Self::Pattern(pattern) => {
                let whole = pattern.regex.as_str();
                let given = whole.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$"));
                format!("pattern {}", given.unwrap_or(whole))
            }
        }
    }

    /// The names of the pattern's groups.
    pub fn groups(&self) -> Vec<String> {
        match self {
            Self::Named(_) => Vec::new(),
            Self::Pattern(pattern) => pattern.regex.capture_names().flatten().map(str::to_owned).collect(),
        }
    }

    /// What the pattern's groups are in a topic's name; a group that took no part is empty.
    pub fn captured(&self, topic: &TopicName) -> BTreeMap<String, String> {
        let Self::Pattern(pattern) = self else {
            return BTreeMap::new();
        };
        let captures = pattern.regex.captures(topic.as_str());
        let text = |group: &str| {
            let found = captures.as_ref().and_then(|captures| captures.name(group));
            found.map_or_else(String::new, |found| found.as_str().to_owned())
        };
        self.groups().into_iter().map(|group| (group.clone(), text(&group))).collect()
    }

    /// Is it one of these? What routes write to is not looked at here; see [`matched`].
    pub fn matches(&self, name: &TopicName) -> bool {
        match self {
            Self::Named(names) => names.contains(name),
            // Names like `__consumer_offsets` belong to the brokers.
            Self::Pattern(pattern) => {
                !name.as_str().starts_with("__")
                    && pattern.regex.is_match(name.as_str())
                    && !pattern.exclude.iter().any(|exclude| exclude.is_match(name.as_str()))
            }
        }
    }
}

/// The topics of every route, by its place: all that are named, and of the names the cluster has those that a
/// pattern matches. What any route writes to is never matched, nor what those of the file write that are not run
/// now: it would come back.
pub fn matched(routes: &[Route], others: &[Route], names: &BTreeSet<TopicName>) -> Vec<BTreeSet<TopicName>> {
    let candidates: Vec<BTreeSet<TopicName>> = routes
        .iter()
        .map(|route| names.iter().filter(|name| route.topics.matches(name)).cloned().collect())
        .collect();
    let mut written: BTreeSet<TopicName> = BTreeSet::new();
    let of_other = |route: &Route| names.iter().filter(|name| route.topics.matches(name)).cloned().collect();
    let of_others: Vec<BTreeSet<TopicName>> = others.iter().map(of_other).collect();
    let all = routes.iter().zip(&candidates).chain(others.iter().zip(&of_others));
    for (route, topics) in all {
        if route.is_per_topic {
            written.extend(
                topics.iter().filter_map(|topic| route.instance(topic).ok()).flat_map(|it| it.outputs()),
            );
        } else {
            written.extend(route.outputs());
        }
    }
    let pairs = routes.iter().zip(candidates);
    pairs
        .map(|(route, candidates)| match &route.topics {
            Topics::Named(names) => names.iter().cloned().collect(),
            Topics::Pattern(_) => candidates.into_iter().filter(|topic| !written.contains(topic)).collect(),
        })
        .collect()
}

/// Reads `topics:`.
pub fn read(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Topics> {
    let node = mapping.require("topics", context)?;
    match &node.value {
        Value::List(items) => named(node, items, context).map(Topics::Named),
        Value::Map(_) => pattern(node, context).map(Topics::Pattern),
        _ => {
            let message =
                format!("expected a list of topic names or `{{pattern: …}}`, found {}", node.kind());
            context.problem(node.span, message);
            None
        }
    }
}

fn named(node: &Node, items: &[Node], context: &mut Context<'_>) -> Option<Vec<TopicName>> {
    let mut topics: Vec<TopicName> = Vec::new();
    for item in items {
        let Some(name) = text(item, context) else {
            continue;
        };
        let is_legal = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
        if name.is_empty() || name.len() > 249 || !name.chars().all(is_legal) {
            let problem = Problem::new(item.span, format!("`{}` is no topic name", written(item)));
            context.problems.push(problem.hint("for several topics: `topics: {pattern: 'shop\\..*'}`"));
        } else if topics.iter().any(|topic| topic.as_str() == name) {
            context.problem(item.span, format!("topic `{}` is named twice", written(item)));
        } else {
            topics.push(TopicName::new(&name));
        }
    }
    if items.is_empty() {
        context.problem(node.span, "a route reads at least one topic");
    }
    Some(topics)
}

fn pattern(node: &Node, context: &mut Context<'_>) -> Option<TopicPattern> {
    let mapping = Mapping::open(node, &keys::TOPIC_PATTERN, context)?;
    let regex = mapping.require("pattern", context).and_then(|node| whole(node, context));
    let mut exclude = Vec::new();
    if let Some(node) = mapping.get("exclude") {
        match &node.value {
            Value::List(items) => exclude.extend(items.iter().filter_map(|item| whole(item, context))),
            _ => context.problem(node.span, format!("expected a list of patterns, found {}", node.kind())),
        }
    }
    Some(TopicPattern { regex: regex?, exclude })
}

/// A pattern for whole names.
fn whole(node: &Node, context: &mut Context<'_>) -> Option<Regex> {
    let given = text(node, context)?;
    // By itself first: `a)(b` must not become one by what is put around it.
    match Regex::new(&given).and_then(|_| Regex::new(&format!("^(?:{given})$"))) {
        Ok(regex) => Some(regex),
        Err(error) => {
            // The last line says what is wrong; those above draw the pattern, which a variable may hold.
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            let problem = Problem::new(node.span, format!("`{}` is no pattern: {reason}", written(node)));
            context
                .problems
                .push(problem.hint("a regular expression for whole names, for example `shop\\..*`"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Environment, read, render};

    const HEAD: &str = "version: 1\nkafka: {bootstrap.servers: b, group.id: g}\n\
                        dead_letters: {q: {kafka: {topic: shop.bad}}}\nroutes:\n";

    fn routes(text: &str) -> Vec<Route> {
        read(&format!("{HEAD}{text}"), &Environment::new([], Path::new("."))).unwrap().routes
    }

    fn problems(text: &str) -> String {
        let text = format!("{HEAD}{text}");
        render("r", &text, &read(&text, &Environment::new([], Path::new("."))).unwrap_err())
    }

    fn names(names: &[&str]) -> BTreeSet<TopicName> {
        names.iter().map(|name| TopicName::new(name)).collect()
    }

    #[test]
    fn patterns_match_whole_names_and_never_what_we_write() {
        let routes = routes(
            "  all: {topics: {pattern: 'shop\\..*', exclude: ['.*\\.old']}, value: bytes, \
             sinks: {copy: {kafka: {topic: shop.copy}}}}\n  \
             each: {topics: {pattern: 'shop\\.o.*'}, per_topic: true, value: bytes, \
             bad_records: {dead_letter: q}, sinks: {copy: {kafka: {topic: '{topic}.each'}}}}\n  \
             one: {topics: [shop.one, none], value: bytes, sinks: {f: {csv: {path: out/one}}}}\n",
        );
        let there = [
            "shop.orders",
            "shop.orders.each",
            "shop.x.old",
            "shop.copy",
            "shop.bad",
            "my-shop.x",
            "shop.x",
            "__shop.x",
            "shop.ok",
        ];
        let matched = matched(&routes, &[], &names(&there));
        assert_eq!(matched[0], names(&["shop.orders", "shop.x", "shop.ok"]));
        assert_eq!(matched[1], names(&["shop.orders", "shop.ok"]));
        // What is named is read, there or not.
        assert_eq!(matched[2], names(&["shop.one", "none"]));
        // A route that is not run now still writes when it is.
        let alone =
            super::matched(&routes[1..2], &routes[..1], &names(&["shop.ok", "shop.oopy", "shop.copy"]));
        assert_eq!(alone[0], names(&["shop.ok", "shop.oopy"]));
        let everything =
            self::routes("  r: {topics: {pattern: '.*'}, value: bytes, sinks: {f: {csv: {path: o}}}}\n");
        assert_eq!(super::matched(&everything, &[], &names(&["__consumer_offsets", "a"]))[0], names(&["a"]));
    }

    #[test]
    fn what_is_wrong_with_topics_is_told() {
        for (text, expected) in [
            (
                "{topics: {pattern: 'a('}, value: bytes, sinks: {s: {csv: {path: o}}}}",
                "`a(` is no pattern: unclosed group",
            ),
            (
                "{topics: {pattern: 'a)(b'}, value: bytes, sinks: {s: {csv: {path: o}}}}",
                "`a)(b` is no pattern",
            ),
            ("{topics: {exclude: [a]}, value: bytes, sinks: {s: {csv: {path: o}}}}", "`pattern` is missing"),
            ("{topics: {patern: a}, value: bytes, sinks: {s: {csv: {path: o}}}}", "did you mean `pattern`?"),
            (
                "{topics: a, value: bytes, sinks: {s: {csv: {path: o}}}}",
                "expected a list of topic names or `{pattern: …}`",
            ),
            ("{topics: ['a.*'], value: bytes, sinks: {s: {csv: {path: o}}}}", "`a.*` is no topic name"),
            (
                "{topics: {pattern: a}, per_topic: true, value: bytes, sinks: {s: {csv: {path: o}}}}",
                "sink `s`: its `path` is the same for all topics",
            ),
            (
                "{topics: {pattern: a}, per_topic: true, value: bytes, sinks: {s: {id: x, csv: {path: 'o/{topic}'}}}}",
                "sink `s`: its `id` is the same for all topics",
            ),
            (
                "{topics: {pattern: '(?<table>a)'}, per_topic: true, value: bytes, sinks: {s: {csv: {path: 'o/{tabel}'}}}}",
                "did you mean `table`?",
            ),
            (
                "{topics: {pattern: a}, value: bytes, sinks: {s: {csv: {path: 'o/{topic}'}}}}",
                "`{topic}` of sink `s` is filled in only with `per_topic: true`",
            ),
            (
                "{topics: {pattern: a}, per_topic: true, value: bytes, sinks: {s: {kafka: {topic: '{topic}'}}}}",
                "sink `s` writes into the topic that is read",
            ),
            (
                "{topics: [a, a.b], per_topic: true, value: bytes, sinks: {s: {kafka: {topic: '{topic}.b'}}}}",
                "topic `a.b` is written by this route and read by one",
            ),
        ] {
            let shown = problems(&format!("  r: {text}\n"));
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
        let text = format!(
            "schema_registry: {{url: \"http://r\"}}\n{HEAD}  r: {{topics: {{pattern: a}}, sinks: {{s: {{csv: {{path: o}}}}}}}}\n"
        );
        let shown = render("r", &text, &read(&text, &Environment::new([], Path::new("."))).unwrap_err());
        assert!(shown.contains("the topics of a pattern have no schema in common"), "{shown}");
    }
}
