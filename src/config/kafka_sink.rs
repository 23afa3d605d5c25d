//! What a kafka sink makes of keys and values: a column or all of them, in which format, and with which schema.

use super::mapping::{self, Context, Mapping, unknown, written};
use super::plan::{SchemaFormat, SchemaSource, Subject, WriterSchema, Written, WrittenForm};
use super::tree::{Key, Node, Value};
use super::{Problem, keys};

/// Keys that are about a schema.
const OF_SCHEMAS: [&str; 4] = ["subject", "record_name", "auto_register", "use_latest"];

/// The name of a dead letter's record, where one is made of its columns.
pub const LETTER: &str = "DeadLetter";

/// Reads `key:` or `value:` of a kafka sink; `None` if it is not given, or there is something wrong in it.
pub fn read(side: &'static str, kafka: &Mapping<'_>, context: &mut Context<'_>) -> Option<Written> {
    kafka.get(side)?;
    let mapping = kafka.nested(side, &keys::WRITTEN, context)?;
    let column = mapping.text("column", context);
    let format = mapping.choice("format", context);
    let is_column_given = mapping.get("column").is_some();
    if !is_column_given && (side == "key" || matches!(format.as_str(), "" | "text")) {
        let problem = Problem::new(mapping.span, "`column` is missing");
        context.problems.push(problem.hint(match side {
            "key" => "a key is one column: `{column: id}`",
            _ => "all columns need a format that has names: `{format: json}`, `{format: avro}`",
        }));
        return None;
    }
    let form = form(&format, &mapping, context)?;
    Some(Written { column, form })
}

/// What the values of dead letters in a topic are; `Some(None)`: those of the records.
pub fn of_letters(kafka: &Mapping<'_>, context: &mut Context<'_>) -> Option<Option<Written>> {
    let format = kafka.choice("format", context);
    let mut form = form(&format, kafka, context)?;
    if let WrittenForm::Registered(schema) = &mut form
        && schema.source != SchemaSource::Latest
    {
        schema.record_name.get_or_insert_with(|| LETTER.to_owned());
    }
    Some((form != WrittenForm::Text).then_some(Written { column: None, form }))
}

/// The form that `format` names, with what is said of its schema.
fn form(format: &str, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<WrittenForm> {
    let format = match format {
        "avro" => SchemaFormat::Avro,
        "protobuf" => SchemaFormat::Protobuf,
        "json_schema" => SchemaFormat::JsonSchema,
        other => {
            for key in OF_SCHEMAS.into_iter().filter(|key| mapping.names(key)) {
                let message = format!("`{key}` is of no use without a format that has a schema");
                let problem = Problem::new(mapping.place(key), message);
                context.problems.push(problem.hint("`format: avro`, `protobuf` or `json_schema`"));
            }
            return Some(if other == "json" { WrittenForm::Json } else { WrittenForm::Text });
        }
    };
    schema(format, mapping, context).map(WrittenForm::Registered)
}

fn schema(format: SchemaFormat, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<WriterSchema> {
    let record_name = mapping.parsed("record_name", parse_record_name, context);
    let subject = subject(mapping, context)?;
    let source = source(mapping, context);
    if matches!(subject, Subject::Record | Subject::TopicRecord) && mapping.get("record_name").is_none() {
        let problem = Problem::new(mapping.place("subject"), "this subject needs a `record_name`");
        context.problems.push(problem.hint("for example `record_name: shop.Order`"));
        return None;
    }
    Some(WriterSchema { format, subject, source, record_name })
}

fn source(mapping: &Mapping<'_>, context: &mut Context<'_>) -> SchemaSource {
    let registers = mapping.choice("auto_register", context) == "true";
    if mapping.choice("use_latest", context) != "true" {
        return if registers { SchemaSource::Registered } else { SchemaSource::Known };
    }
    if registers && mapping.names("auto_register") {
        let message = "with `use_latest` nothing is registered";
        let problem = Problem::new(mapping.place("auto_register"), message);
        context.problems.push(problem.hint("leave one of them out"));
    }
    SchemaSource::Latest
}

fn subject(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Subject> {
    const WORDS: [&str; 3] = ["topic", "record", "topic_record"];
    let Some(node) = mapping.get("subject") else {
        return Some(Subject::Topic);
    };
    if let Value::Map(entries) = &node.value {
        return literal(node, entries, context);
    }
    match mapping::text(node, context)?.as_str() {
        "topic" => Some(Subject::Topic),
        "record" => Some(Subject::Record),
        "topic_record" => Some(Subject::TopicRecord),
        _ => {
            let problem = unknown("value", node.span, written(node), &WORDS);
            context.problems.push(problem);
            None
        }
    }
}

fn literal(node: &Node, entries: &[(Key, Node)], context: &mut Context<'_>) -> Option<Subject> {
    match entries {
        [(key, name)] if key.name == "literal" => {
            let name = mapping::text(name, context)?;
            if name.is_empty() {
                context.problem(node.span, "a subject has a name");
                return None;
            }
            Some(Subject::Literal(name))
        }
        _ => {
            let problem = Problem::new(node.span, "this is no subject");
            context.problems.push(problem.hint("`topic`, `record`, `topic_record`, or `{literal: name}`"));
            None
        }
    }
}

/// Names between dots, as Avro and Protobuf have them.
pub fn parse_record_name(text: &str) -> Result<String, String> {
    let is_name = |part: &str| {
        let is_letter = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let begins = part.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_');
        begins && part.chars().all(is_letter)
    };
    if text.split('.').all(is_name) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is no name of a record: letters, digits and `_` between dots, for example `shop.Order`"
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{Plan, Target};
    use crate::config::{Environment, read as read_file, render};

    fn text(kafka: &str) -> String {
        format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{url: \"http://r\"}}\nroutes:\n  \
             r: {{topics: [t], value: string, sinks: {{s: {{kafka: {{topic: x, {kafka}}}}}}}}}\n"
        )
    }

    fn plan(text: &str) -> Result<Plan, String> {
        read_file(text, &Environment::new([], Path::new(".")))
            .map_err(|problems| render("routes.yaml", text, &problems))
    }

    fn value(kafka: &str) -> Written {
        let mut plan = plan(&text(kafka)).unwrap();
        let Target::Kafka { value, .. } = plan.routes.remove(0).sinks.remove(0).target else { panic!() };
        value.unwrap()
    }

    #[test]
    fn a_column_or_all_of_them_in_a_format() {
        let column = Some("c".to_owned());
        let expected = Written { column: column.clone(), form: WrittenForm::Text };
        assert_eq!(value("value: {column: c}"), expected);
        assert_eq!(value("value: {column: c, format: text}"), expected);
        assert_eq!(value("value: {format: json}"), Written { column: None, form: WrittenForm::Json });
        let registered = WriterSchema {
            format: SchemaFormat::Avro,
            subject: Subject::Topic,
            source: SchemaSource::Registered,
            record_name: None,
        };
        let written = |schema: WriterSchema| Written { column: None, form: WrittenForm::Registered(schema) };
        assert_eq!(value("value: {format: avro}"), written(registered.clone()));
        let named = WriterSchema {
            format: SchemaFormat::Protobuf,
            subject: Subject::TopicRecord,
            source: SchemaSource::Known,
            record_name: Some("shop.Order".to_owned()),
        };
        assert_eq!(
            value(
                "value: {format: protobuf, subject: topic_record, record_name: shop.Order, auto_register: false}"
            ),
            written(named)
        );
        let latest = WriterSchema {
            format: SchemaFormat::JsonSchema,
            subject: Subject::Literal("orders".to_owned()),
            source: SchemaSource::Latest,
            record_name: None,
        };
        assert_eq!(
            value("value: {format: json_schema, subject: {literal: orders}, use_latest: true}"),
            written(latest)
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (kafka, expected) in [
            ("key: {format: avro}", "a key is one column"),
            ("value: {}", "all columns need a format"),
            ("value: {format: text}", "all columns need a format"),
            ("value: {format: avor}", "did you mean `avro`?"),
            ("value: {format: json, subject: topic}", "`subject` is of no use without a format"),
            ("value: {column: c, use_latest: true}", "`use_latest` is of no use without a format"),
            ("value: {format: avro, subject: record}", "this subject needs a `record_name`"),
            ("value: {format: avro, subject: recrod}", "did you mean `record`?"),
            ("value: {format: avro, subject: {name: x}}", "this is no subject"),
            ("value: {format: avro, record_name: a-b}", "`a-b` is no name of a record"),
            ("value: {format: avro, record_name: a..b}", "`a..b` is no name of a record"),
            ("value: {format: avro, use_latest: true, auto_register: true}", "nothing is registered"),
        ] {
            let shown = plan(&text(kafka)).unwrap_err();
            assert!(
                shown.contains(expected) && shown.contains("routes.yaml:5:"),
                "no {expected:?} in\n{shown}"
            );
        }
    }

    #[test]
    fn a_sink_with_a_schema_needs_a_registry() {
        let with = text("value: {format: avro}");
        plan(&with).unwrap();
        let without = with.replace("schema_registry: {url: \"http://r\"}\n", "");
        let shown = plan(&without).unwrap_err();
        assert!(shown.contains("`schema_registry` is missing, and sink `s` of route `r`"), "{shown}");
    }
}
