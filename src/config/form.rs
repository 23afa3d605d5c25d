//! Forms whose records name schemas of the registry: a word, or a word with options.

use super::keys;
use super::mapping::{Context, Mapping};
use super::plan::{Framing, Recursion, SchemaFormat};
use super::tree::{Key, Node, Span, Value};
use super::{Problem, keys::Scope};

/// What `value:` or `key:` says of such a form, its reader schema apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    pub format: Option<SchemaFormat>,
    pub message: Option<String>,
    pub framing: Framing,
    pub recursion: Recursion,
    pub is_validated: bool,
}

impl Registered {
    /// The form of a word without options; `None` if it is another form.
    pub fn of(word: &str) -> Option<Self> {
        let format = match word {
            "registry" => None,
            "avro" => Some(SchemaFormat::Avro),
            "protobuf" => Some(SchemaFormat::Protobuf),
            "json_schema" => Some(SchemaFormat::JsonSchema),
            _ => return None,
        };
        Some(Self {
            format,
            message: None,
            framing: Framing::Confluent,
            recursion: Recursion::Refuse,
            is_validated: false,
        })
    }
}

/// The form in `{avro: {framing: header}}`; `None` if the mapping is of another form, and `Some(None)` if there is
/// something wrong in it.
pub fn with_options(entries: &[(Key, Node)], context: &mut Context<'_>) -> Option<Option<Registered>> {
    let (key, node, form) =
        entries.iter().find_map(|(key, node)| Some((key, node, Registered::of(&key.name)?)))?;
    if entries.len() > 1 {
        context.problem(key.span, "a form is one word with its options");
        return Some(None);
    }
    Some(options(key, node, form, context))
}

fn options(key: &Key, node: &Node, form: Registered, context: &mut Context<'_>) -> Option<Registered> {
    let is_protobuf = form.format == Some(SchemaFormat::Protobuf);
    let is_json = form.format == Some(SchemaFormat::JsonSchema);
    let scope: &'static Scope = match form.format {
        Some(SchemaFormat::Protobuf) => &keys::PROTOBUF,
        Some(SchemaFormat::JsonSchema) => &keys::JSON_SCHEMA,
        Some(SchemaFormat::Avro) | None => &keys::FRAMED,
    };
    if matches!(&node.value, Value::Null) || matches!(&node.value, Value::Map(entries) if entries.is_empty())
    {
        let message = format!("`{}` has no options here", key.name);
        let hint =
            format!("write `{}` alone, or for example `{{{}: {{framing: header}}}}`", key.name, key.name);
        context.problems.push(Problem::new(key.span, message).hint(hint));
        return None;
    }
    let mapping = Mapping::open(node, scope, context)?;
    let framing = match mapping.choice("framing", context).as_str() {
        "header" => Framing::Header,
        "prefix" => Framing::Prefix,
        "apicurio" => Framing::Apicurio,
        _ => Framing::Confluent,
    };
    if is_protobuf && framing == Framing::Apicurio {
        refuse_apicurio(mapping.place("framing"), context);
    }
    let message = if is_protobuf { mapping.text("message", context) } else { None };
    let recursion = match mapping.choice("recursive", context).as_str() {
        "json" => Recursion::Json,
        _ => Recursion::Refuse,
    };
    let is_validated = is_json && mapping.choice("validate", context) == "true";
    Some(Registered { message, framing, recursion, is_validated, ..form })
}

/// Apicurio's serialiser puts a message with a name before the message, which is neither documented nor Confluent's.
fn refuse_apicurio(span: Span, context: &mut Context<'_>) {
    let problem = Problem::new(span, "Protobuf in Apicurio's own framing cannot be read");
    context.problems.push(problem.hint("let the producers write Confluent's framing"));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{KeyForm, ValueForm};
    use crate::config::{Environment, read, render};

    fn text(key: &str, value: &str) -> String {
        format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{url: \"http://r\"}}\nroutes:\n  \
             r: {{topics: [t], key: {key}, value: {value}, sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
        )
    }

    fn form(text: &str) -> Registered {
        let route = read(text, &Environment::new([], Path::new("."))).unwrap().routes.remove(0);
        let (ValueForm::Registry(form), KeyForm::Registry(key)) = (route.value, route.key) else { panic!() };
        assert_eq!((form.format, &form.message, form.framing), (key.format, &key.message, key.framing));
        assert_eq!((form.recursion, form.is_validated), (key.recursion, key.is_validated));
        Registered {
            format: form.format,
            message: form.message,
            framing: form.framing,
            recursion: form.recursion,
            is_validated: form.is_validated,
        }
    }

    #[test]
    fn a_form_is_a_word_or_a_word_with_options() {
        use SchemaFormat::{Avro, JsonSchema, Protobuf};
        for (written, format, message, framing) in [
            ("registry", None, None, Framing::Confluent),
            ("json_schema", Some(JsonSchema), None, Framing::Confluent),
            ("{registry: {framing: header}}", None, None, Framing::Header),
            ("{avro: {framing: apicurio}}", Some(Avro), None, Framing::Apicurio),
            ("{json_schema: {framing: prefix}}", Some(JsonSchema), None, Framing::Prefix),
            ("{protobuf: {message: a.B}}", Some(Protobuf), Some("a.B"), Framing::Confluent),
            ("{protobuf: {framing: header, message: a.B}}", Some(Protobuf), Some("a.B"), Framing::Header),
        ] {
            let (recursion, is_validated) = (Recursion::Refuse, false);
            let message = message.map(str::to_owned);
            let expected = Registered { format, message, framing, recursion, is_validated };
            assert_eq!(form(&text(written, written)), expected, "{written}");
        }
    }

    #[test]
    fn what_has_no_type_and_what_is_checked_is_said_by_the_form() {
        for (written, recursion, is_validated) in [
            ("{registry: {recursive: json}}", Recursion::Json, false),
            ("{avro: {recursive: refuse}}", Recursion::Refuse, false),
            ("{protobuf: {recursive: json}}", Recursion::Json, false),
            ("{json_schema: {validate: true}}", Recursion::Refuse, true),
            ("{json_schema: {validate: true, recursive: json, framing: header}}", Recursion::Json, true),
        ] {
            let form = form(&text(written, written));
            assert_eq!((form.recursion, form.is_validated), (recursion, is_validated), "{written}");
        }
    }

    #[test]
    fn what_is_wrong_with_options_is_said() {
        for (written, expected) in [
            ("{avro: {framing: hedaer}}", "did you mean `header`?"),
            ("{avro: {frame: header}}", "`frame` is not a known key here"),
            ("{avro: {message: a.B}}", "`message` is not a known key here"),
            ("{registry: {validate: true}}", "`validate` is not a known key here"),
            ("{avro: {recursive: text}}", "`text`"),
            ("{avro: x}", "expected a mapping"),
            ("{avro: {}}", "write `avro` alone"),
            ("{protobuf: }", "write `protobuf` alone"),
            ("{avro: {framing: header}, json: {}}", "a form is one word with its options"),
            ("{protobuf: {framing: apicurio}}", "Protobuf in Apicurio's own framing cannot be read"),
            ("jsonschema", "did you mean `json_schema`?"),
            ("{avrro: {framing: header}}", "did you mean `avro`?"),
        ] {
            for text in [text(written, "bytes"), text("bytes", written)] {
                let problems = read(&text, &Environment::new([], Path::new("."))).unwrap_err();
                let shown = render("r", &text, &problems);
                assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
            }
        }
    }
}
