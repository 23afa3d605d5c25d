//! `subject:` of a route: where in the registry its reader schemas are.

use super::mapping::{Context, Mapping, text, unknown};
use super::plan::{KeyForm, OnNewSchema, ReaderSchema, RegistryForm, Route, ValueForm};
use super::topics::Topics;
use super::tree::{Node, Span, Value};
use super::{Problem, template};

/// The placeholder of subjects of record types.
pub const RECORD: &str = "record";

/// What the file says; of what it does not say, serialisers' names count.
#[derive(Debug, Default)]
pub struct Subjects {
    pub value: Option<String>,
    pub key: Option<String>,
}

pub fn read(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Subjects {
    let mut subjects = Subjects::default();
    let Some(node) = mapping.get("subject") else {
        return subjects;
    };
    let Value::Map(entries) = &node.value else {
        subjects.value = name(node, context);
        return subjects;
    };
    if entries.is_empty() {
        context.problem(node.span, "expected a subject, or `{value: …, key: …}`");
    }
    for (key, node) in entries {
        match key.name.as_str() {
            "value" => subjects.value = name(node, context),
            "key" => subjects.key = name(node, context),
            other => context.problems.push(unknown("key", key.span, other, &["value", "key"])),
        }
    }
    subjects
}

pub fn name(node: &Node, context: &mut Context<'_>) -> Option<String> {
    let name = text(node, context)?;
    if name.is_empty() || !name.chars().all(is_plain) {
        context.problem(node.span, "a subject is a text without `/`, `?`, `#` and `%`");
        return None;
    }
    Some(name)
}

/// A slash would be another path of the registry's.
pub fn is_plain(char: char) -> bool {
    !char.is_control() && !"/?#%".contains(char)
}

/// What is given here is of use, and its placeholders lead somewhere.
pub fn check(route: &Route, mapping: &Mapping<'_>, context: &mut Context<'_>) {
    let follows = route.value_forms().iter().any(|form| form.schema == ReaderSchema::Latest)
        || matches!(route.key, KeyForm::Registry(_));
    if let Some(node) = mapping.own("on_new_schema")
        && !follows
        && route.on_new_schema != OnNewSchema::Widen
    {
        context.problem(node.span, "`on_new_schema` is of use only with `reader_schema: latest`");
    }
    check_use(route, mapping, context);
    let known = placeholders(Some(&route.topics), route.is_per_topic);
    let place = mapping.get("subject").map_or(mapping.span, |node| node.span);
    if let ValueForm::Registry(RegistryForm { subject: Some(subject), .. }) = &route.value {
        let of_types = (!route.record_types.is_empty()).then(|| RECORD.to_owned());
        let known: Vec<String> = known.iter().cloned().chain(of_types).collect();
        check_placeholders(subject, place, &known, context);
    }
    if let KeyForm::Registry(RegistryForm { subject: Some(subject), .. }) = &route.key {
        check_placeholders(subject, place, &known, context);
    }
}

/// What is filled in in subjects of such a route.
pub fn placeholders(topics: Option<&Topics>, is_per_topic: bool) -> Vec<String> {
    match topics {
        Some(topics) if is_per_topic => template::known(topics),
        _ => vec!["topic".to_owned()],
    }
}

pub fn check_placeholders(subject: &str, place: Span, known: &[String], context: &mut Context<'_>) {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    for name in template::placeholders(subject).into_iter().filter(|name| !known.contains(name)) {
        context.problems.push(unknown("placeholder", place, name, &known));
    }
}

/// A subject in `defaults` is for the routes that have one; a route's own has to be asked for.
fn check_use(route: &Route, mapping: &Mapping<'_>, context: &mut Context<'_>) {
    let Some(node) = mapping.own("subject") else {
        return;
    };
    let (of_value, of_key) = match &node.value {
        Value::Map(entries) => {
            let place =
                |side: &str| entries.iter().find(|(key, _)| key.name == side).map(|(key, _)| key.span);
            (place("value"), place("key"))
        }
        _ => (Some(node.span), None),
    };
    let of_subject =
        |form: &&RegistryForm| matches!(form.schema, ReaderSchema::Latest | ReaderSchema::Version(_));
    let is_asked = route.value_forms().iter().any(of_subject);
    if let Some(span) = of_value.filter(|_| !is_asked) {
        let problem = Problem::new(span, "this subject would never be asked for");
        context.problems.push(problem.hint(
            "it is of use with `value: registry` (or a format of it) and `reader_schema: latest` or `{version: …}`",
        ));
    }
    if let Some(span) = of_key.filter(|_| !matches!(route.key, KeyForm::Registry(_))) {
        let problem = Problem::new(span, "this subject of keys would never be asked for");
        context.problems.push(problem.hint("it is of use with `key: registry`, or a format of it"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::plan::OnNewSchema;
    use crate::config::{Environment, read, render};

    fn text(route: &str) -> String {
        format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{url: \"http://r\"}}\nroutes:\n  \
             r: {{topics: [t], {route}, sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
        )
    }

    #[test]
    fn what_is_wrong_with_a_subject_is_said() {
        for (route, expected) in [
            ("subject: ''", "a subject is a text without"),
            ("subject: a/b", "a subject is a text without"),
            ("subject: {}", "expected a subject, or"),
            ("subject: {values: x}", "did you mean `value`?"),
            ("subject: '{tpoic}'", "did you mean `topic`?"),
            ("subject: '{table}'", "`table` is not a known placeholder"),
            ("subject: x, value: bytes", "this subject would never be asked for"),
            ("subject: x, reader_schema: {id: 7}", "this subject would never be asked for"),
            ("subject: {key: x}", "this subject of keys would never be asked for"),
            ("on_new_schema: wide", "did you mean `widen`?"),
            ("on_new_schema: stop, reader_schema: {version: 3}", "`on_new_schema` is of use only with"),
        ] {
            let text = text(route);
            let shown = render("r", &text, &read(&text, &Environment::new([], Path::new("."))).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn a_route_says_what_follows_from_a_newer_schema() {
        for (route, expected) in [
            ("key: bytes", OnNewSchema::Widen),
            ("on_new_schema: pin", OnNewSchema::Pin),
            ("on_new_schema: stop, subject: 'x-{topic}'", OnNewSchema::Stop),
            ("on_new_schema: stop, value: bytes, key: registry", OnNewSchema::Stop),
        ] {
            let plan = read(&text(route), &Environment::new([], Path::new("."))).unwrap();
            assert_eq!(plan.routes[0].on_new_schema, expected, "{route}");
        }
    }
}
