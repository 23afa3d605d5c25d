//! `kafka:`, and the properties the engine owns.

use super::mapping::{Context, Mapping, text};
use super::plan::Kafka;

/// Properties that decide about loss and doubling: they are set by us, and setting them is refused.
pub const OWNED: [(&str, &str); 10] = [
    ("enable.auto.commit", "offsets are committed when sinks say that rows are durable"),
    ("enable.auto.offset.store", "offsets are committed when sinks say that rows are durable"),
    ("auto.offset.reset", "`on_data_loss` says what a lost range means, `start:` where a new topic begins"),
    ("auto.commit.interval.ms", "offsets are committed when sinks say that rows are durable"),
    ("partition.assignment.strategy", "it is cooperative-sticky"),
    ("group.protocol", "it is classic"),
    ("enable.partition.eof", "the end of a partition brings lag to 0"),
    ("isolation.level", "it is read_committed: aborted transactions are nobody's rows"),
    ("check.crcs", "it is on: without it damaged records pass as data"),
    ("statistics.interval.ms", "statistics are not used yet; reading them costs time"),
];

pub fn read(root: &Mapping<'_>, context: &mut Context<'_>) -> Option<Kafka> {
    let node = root.require("kafka", context)?;
    let entries = root.named("kafka", context);
    let mut properties = std::collections::BTreeMap::new();
    for (key, value) in entries {
        let value = text(value, context).unwrap_or_default();
        if let Some((_, reason)) = OWNED.iter().find(|(name, _)| *name == key.name) {
            context.problem(key.span, format!("`{}` is set by sidestream: {reason}", key.name));
        }
        properties.insert(key.name.clone(), value);
    }
    // A missing key is reported where `kafka:` stands.
    let span = super::Span { line: node.span.line.saturating_sub(1), column: 1 };
    for name in ["bootstrap.servers", "group.id"] {
        if !properties.contains_key(name) {
            context.problem(span, format!("`{name}` is missing"));
        }
    }
    Some(Kafka { group: properties.get("group.id").cloned().unwrap_or_default(), properties })
}
