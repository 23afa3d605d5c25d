//! The JSON Schema of `routes.yaml` and `docs/routes.md`, made from the table of keys.

use serde_json::{Map, Value, json};

use super::keys::{
    FRAMED, JSON_SCHEMA, Key, Kind, OTHER_TYPES, PROTOBUF, RECORD_TYPE, ROOT, Scope, TOPIC_PATTERN, scopes,
};

/// The JSON Schema, for editors.
pub fn json_schema() -> Value {
    let mut root = object(&ROOT);
    if let Some(map) = root.as_object_mut() {
        map.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        map.insert("title".into(), json!("sidestream routes.yaml"));
    }
    root
}

fn object(scope: &Scope) -> Value {
    let mut properties = Map::new();
    for key in scope.keys {
        let mut schema = value(&key.kind);
        if let Some(map) = schema.as_object_mut() {
            map.insert("description".into(), json!(key.about));
            if !key.default.is_empty() && !key.default.starts_with('<') {
                map.insert("default".into(), json!(key.default));
            }
        }
        properties.insert(key.name.into(), schema);
    }
    let required: Vec<&str> = scope.keys.iter().filter(|key| key.is_required).map(|key| key.name).collect();
    json!({
        "type": "object",
        "description": scope.about,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn value(kind: &Kind) -> Value {
    match kind {
        Kind::Text => json!({"type": ["string", "number", "boolean"]}),
        // `${VAR}` is text until it is expanded.
        Kind::Integer => json!({"type": ["integer", "string"]}),
        Kind::Bytes => json!({"type": ["integer", "string"], "examples": ["32MiB"]}),
        Kind::Duration => json!({"type": "string", "examples": ["5s"]}),
        Kind::Choice(["true", "false"]) => json!({"type": "boolean"}),
        Kind::Choice(words) => json!({"type": "string", "enum": words}),
        Kind::TextList => json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
        Kind::Urls => json!({"oneOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
        ]}),
        Kind::Topics => json!({"oneOf": [
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
            object(&TOPIC_PATTERN),
        ]}),
        Kind::TextMap => json!({
            "type": "object",
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        }),
        Kind::Named(scope) => json!({"type": "object", "additionalProperties": object(scope)}),
        Kind::Scope(scope) => object(scope),
        Kind::BadRecords => json!({"oneOf": [
            {"type": "string", "enum": ["stop", "skip"]},
            {"type": "object", "additionalProperties": false, "required": ["dead_letter"], "properties": {
                "dead_letter": {"oneOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1},
                ]},
            }},
        ]}),
        Kind::Value => json!({"oneOf": [
            {"type": "string",
             "enum": ["registry", "avro", "protobuf", "json_schema", "bytes", "string", "json"]},
            options("registry", &FRAMED),
            options("avro", &FRAMED),
            options("protobuf", &PROTOBUF),
            options("json_schema", &JSON_SCHEMA),
            {"type": "object", "additionalProperties": false, "required": ["json"], "properties": {
                "json": {"type": "object", "additionalProperties": false, "required": ["schema"], "properties": {
                    "schema": {"type": "object", "additionalProperties": false, "required": ["file"],
                        "properties": {"file": {"type": "string"}}},
                }},
            }},
        ]}),
        Kind::Start => json!({"oneOf": [
            {"type": ["string", "integer"], "examples": ["earliest", "latest", "-2h", "-100"]},
            {"type": "object", "additionalProperties": {
                "type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}},
        ]}),
        Kind::ReaderSchema => json!({"oneOf": [
            {"type": "string", "enum": ["latest"]},
            {"type": "object", "maxProperties": 1, "minProperties": 1, "additionalProperties": false,
             "properties": {
                "version": {"type": "integer", "minimum": 1},
                "id": {"type": "integer", "minimum": 1},
                "file": {"type": "string"},
            }},
        ]}),
        Kind::Subject => json!({"oneOf": [
            {"type": "string"},
            {"type": "object", "minProperties": 1, "additionalProperties": false,
             "properties": {"value": {"type": "string"}, "key": {"type": "string"}}},
        ]}),
        Kind::RecordTypes => json!({
            "type": "object",
            "minProperties": 1,
            "properties": {"*": object(&OTHER_TYPES)},
            "additionalProperties": object(&RECORD_TYPE),
        }),
        Kind::Sql => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Kind::WriterSubject => json!({"oneOf": [
            {"type": "string", "enum": ["topic", "record", "topic_record"]},
            {"type": "object", "additionalProperties": false, "required": ["literal"],
             "properties": {"literal": {"type": "string"}}},
        ]}),
        Kind::PrimaryKey => json!({"oneOf": [
            {"type": "string", "enum": ["record_key"]},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
        ]}),
    }
}

/// A form with options, of which at least one is given.
fn options(word: &str, scope: &Scope) -> Value {
    let mut options = object(scope);
    if let Some(map) = options.as_object_mut() {
        map.insert("minProperties".into(), json!(1));
    }
    json!({"type": "object", "additionalProperties": false, "required": [word], "properties": {word: options}})
}

/// `docs/routes.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Keys of routes.yaml\n\n\
         Made by `sidestream config-schema --markdown` from `src/config/keys.rs`; a test keeps it fresh.\n\n\
         `${VAR}`, `${VAR:-default}` and `${file:path}` are expanded in values (not in SQL); `$$` is a dollar sign.\n\
         Input paths are relative to the file, output paths to the working directory.\n",
    );
    for scope in scopes() {
        out.push_str(&format!(
            "\n## `{}`\n\n{}\n\n| key | type | default | since | |\n|---|---|---|---|---|\n",
            scope.name, scope.about
        ));
        for key in scope.keys {
            out.push_str(&format!("{}\n", row(key)));
        }
    }
    out
}

fn row(key: &Key) -> String {
    let default = match (key.is_required, key.default) {
        (true, _) => "required".to_owned(),
        (false, "") => String::new(),
        (false, default) => format!("`{default}`"),
    };
    let kind = match &key.kind {
        Kind::Text => "text".to_owned(),
        Kind::Integer => "whole number".to_owned(),
        Kind::Bytes => "size".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::Choice(words) => {
            let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            quoted.join(" \\| ")
        }
        Kind::TextList => "list of texts".to_owned(),
        Kind::Urls => "text, or list of texts".to_owned(),
        Kind::Topics => format!("list of texts, or `{}`", TOPIC_PATTERN.name),
        Kind::TextMap => "names to texts".to_owned(),
        Kind::Named(scope) => format!("names to `{}`", scope.name),
        Kind::Scope(scope) => format!("`{}`", scope.name),
        Kind::BadRecords => "bad records".to_owned(),
        Kind::Value => "form".to_owned(),
        Kind::Start => "start".to_owned(),
        Kind::ReaderSchema => "schema".to_owned(),
        Kind::Subject => "text, or `{value: …, key: …}`".to_owned(),
        Kind::RecordTypes => format!("types to `{}`, `\"*\"` to `{}`", RECORD_TYPE.name, OTHER_TYPES.name),
        Kind::Sql => "names to SQL".to_owned(),
        Kind::WriterSubject => "`topic` \\| `record` \\| `topic_record` \\| `{literal: name}`".to_owned(),
        Kind::PrimaryKey => "list of columns, or `record_key`".to_owned(),
    };
    let about = key.about.replace('|', "\\|");
    format!("| `{}` | {kind} | {default} | {} | {about} |", key.name, key.since)
}
