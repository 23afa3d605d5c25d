//! `kafka:`, and the properties the engine owns.

use std::collections::BTreeMap;

use super::Span;
use super::mapping::{Context, Mapping, text};
use super::plan::Kafka;

/// Properties that decide about loss and doubling: they are set by us, and setting them is refused.
pub const OWNED: [(&str, &str); 11] = [
    ("enable.auto.commit", "offsets are committed when sinks say that rows are durable"),
    ("enable.auto.offset.store", "offsets are committed when sinks say that rows are durable"),
    ("auto.offset.reset", "`on_data_loss` says what a lost range means, `start:` where a new topic begins"),
    ("auto.commit.interval.ms", "offsets are committed when sinks say that rows are durable"),
    ("partition.assignment.strategy", "it is cooperative-sticky"),
    ("group.protocol", "it is classic"),
    ("enable.partition.eof", "the end of a partition brings lag to 0"),
    ("isolation.level", "it is read_committed: aborted transactions are nobody's rows"),
    ("check.crcs", "it is on: without it damaged records pass as data"),
    ("transactional.id", "it is made of group, route and partition for sinks with `transactional: true`"),
    ("statistics.interval.ms", "statistics are not used yet; reading them costs time"),
];

pub fn read(root: &Mapping<'_>, context: &mut Context<'_>) -> Option<Kafka> {
    let node = root.require("kafka", context)?;
    let properties = properties(root, context);
    // A missing key is reported where `kafka:` stands.
    let span = Span { line: node.span.line.saturating_sub(1), column: 1 };
    for name in ["bootstrap.servers", "group.id"] {
        if !properties.contains_key(name) {
            context.problem(span, format!("`{name}` is missing"));
        }
    }
    Some(Kafka { group: properties.get("group.id").cloned().unwrap_or_default(), properties })
}

/// A cluster that is only written to.
pub fn read_cluster(cluster: &Mapping<'_>, context: &mut Context<'_>) -> Option<Kafka> {
    cluster.require("kafka", context)?;
    let properties = properties(cluster, context);
    let span = cluster.place("kafka");
    if !properties.contains_key("bootstrap.servers") {
        context.problem(span, "`bootstrap.servers` is missing");
    }
    if properties.contains_key("group.id") {
        context.problem(span, "`group.id` is of no use: nothing is read from this cluster");
    }
    Some(Kafka { group: String::new(), properties })
}

fn properties(mapping: &Mapping<'_>, context: &mut Context<'_>) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::new();
    for (key, value) in mapping.named("kafka", context) {
        let value = text(value, context).unwrap_or_default();
        if let Some((_, reason)) = OWNED.iter().find(|(name, _)| *name == key.name) {
            context.problem(key.span, format!("`{}` is set by sidestream: {reason}", key.name));
        }
        properties.insert(key.name.clone(), value);
    }
    properties
}
