//! What the codec does not support, as a reader's schema, is refused with an error, wherever it is.

use super::for_each_seed;
use crate::codec::avro::arrow_type;
use crate::codec::avro::node::{Node, SchemaError};
use crate::codec::avro::program::compile;

/// A type, and what is said of it.
const UNSUPPORTED: [(&str, &str); 6] = [
    (r#"{"type": "array", "items": "null"}"#, "items without bytes"),
    (r#"{"type": "array", "items": {"type": "record", "name": "E", "fields": []}}"#, "items without bytes"),
    (r#"{"type": "fixed", "name": "F", "size": 0}"#, "a fixed of 0 bytes"),
    (r#"{"type": "fixed", "name": "F", "size": 4294967296}"#, "a fixed of 4294967296 bytes"),
    (r#"{"type": "bytes", "logicalType": "decimal", "precision": 77}"#, "76 digits"),
    (
        r#"{"type": "record", "name": "T", "fields": [{"name": "next", "type": ["null", "T"]}]}"#,
        "contains itself",
    ),
];

fn record(name: &str, ty: &str) -> String {
    format!(r#"{{"type": "record", "name": "{name}", "fields": [{{"name": "f", "type": {ty}}}]}}"#)
}

/// Why a reader's schema is refused, before any record is seen.
fn refusal(text: &str) -> SchemaError {
    Node::parse(text, &[]).and_then(|node| arrow_type::schema(&node, false)).unwrap_err()
}

#[test]
fn types_without_a_column_are_named() {
    for (ty, expected) in UNSUPPORTED {
        let error = refusal(&record("Top", ty)).to_string();
        assert!(error.contains(expected) && error.contains("`f"), "{error}");
    }
    for ty in [r#""int""#, r#"["null", "int"]"#, r#"{"type": "record", "name": "Top", "fields": []}"#] {
        let error = refusal(ty).to_string();
        assert!(error.contains("the top level of a value has to be a record"), "{error}");
    }
}

#[test]
fn types_without_a_column_are_refused_at_any_depth() {
    for_each_seed(200, |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let (ty, _) = UNSUPPORTED[random.usize(..UNSUPPORTED.len())];
        let mut text = ty.to_owned();
        for level in 0..random.usize(..5) {
            text = match random.u32(..4) {
                0 => format!(r#"{{"type": "array", "items": {text}}}"#),
                1 => format!(r#"{{"type": "map", "values": {text}}}"#),
                2 if !text.starts_with('[') => format!(r#"["null", {text}]"#),
                _ => record(&format!("L{level}"), &text),
            };
        }
        let text = record("Top", &text);
        refusal(&text);
        skipped(&text);
    });
}

/// A writer may have such a type if the reader does not want it; else it is refused as well.
fn skipped(writer: &str) {
    let reader = r#"{"type": "record", "name": "Top", "fields": [
        {"name": "other", "type": "int", "default": 1}]}"#;
    let reader = Node::parse(reader, &[]).unwrap();
    if let Ok(writer) = Node::parse(writer, &[]) {
        compile(&writer, &reader).unwrap();
    }
}

#[test]
fn schemas_without_measure_are_refused() {
    let mut deep = r#""int""#.to_owned();
    for _ in 0..80 {
        deep = format!(r#"{{"type": "array", "items": {deep}}}"#);
    }
    assert_eq!(refusal(&record("Top", &deep)), SchemaError::TooDeep);
    let fields: Vec<String> =
        (0..10_001).map(|index| format!(r#"{{"name": "f{index}", "type": "int"}}"#)).collect();
    let wide = format!(r#"{{"type": "record", "name": "Top", "fields": [{}]}}"#, fields.join(","));
    assert_eq!(refusal(&wide), SchemaError::TooWide);
    // More bytes than there are addresses: sums must not overflow.
    let huge = |name: &str| format!(r#"{{"type": "fixed", "name": "{name}", "size": {}}}"#, u64::MAX);
    let two = format!(
        r#"{{"type": "record", "name": "Two", "fields": [
            {{"name": "a", "type": {}}}, {{"name": "b", "type": {}}}]}}"#,
        huge("A"),
        huge("B")
    );
    let array = record("Top", &format!(r#"{{"type": "array", "items": {two}}}"#));
    refusal(&array);
    skipped(&array);
    skipped(&record("Top", &format!(r#"{{"type": "map", "values": {}}}"#, huge("A"))));
}
