//! `envelope:` of a route, and what does not go with it.

use super::Problem;
use super::mapping::{Context, Mapping};
use super::plan::{Envelope, SchemaFormat, Sink, TableRows, Target, Truncate, ValueForm, View};
use super::tree::Content;

/// Reads `envelope:`; `value` is the form of the route's values, if that is a good one.
pub fn read(mapping: &Mapping<'_>, value: Option<&ValueForm>, context: &mut Context<'_>) -> Envelope {
    if mapping.choice("envelope", context) != "debezium" {
        return Envelope::None;
    }
    let refused = match value {
        Some(ValueForm::Raw(_)) => Some("records as they are have no columns"),
        Some(ValueForm::Registry(form)) if form.format == Some(SchemaFormat::Protobuf) => {
            Some("change events in Protobuf cannot be read")
        }
        _ => None,
    };
    if let Some(why) = refused {
        let problem = Problem::new(mapping.place("envelope"), format!("`envelope: debezium`: {why}"));
        context.problems.push(problem.hint(
            "`value: registry`, `avro` or `json_schema`, or `{json: {schema: {file: customers.json}}}`",
        ));
    }
    if let Some(node) = mapping.own("tombstones") {
        let message =
            "`tombstones` is of no use with `envelope: debezium`: the event before a tombstone has said it";
        context.problem(node.span, message);
    }
    Envelope::Debezium
}

/// Reads `truncate:`, and tells tables that are kept by key what they need to follow changes: of truncations, and what was
/// not sent.
pub fn tell_tables(
    mapping: &Mapping<'_>,
    envelope: Envelope,
    views: &mut Vec<View>,
    sinks: &mut [Sink],
    context: &mut Context<'_>,
) -> Truncate {
    let truncate = match mapping.choice("truncate", context).as_str() {
        "ignore" => Truncate::Ignore,
        "delete" => Truncate::Delete,
        _ => Truncate::Refuse,
    };
    if envelope == Envelope::None {
        if let Some(node) = mapping.own("truncate") {
            context.problem(node.span, "`truncate` is of use only with `envelope: debezium`");
        }
        return Truncate::Refuse;
    }
    give_unavailable(views, sinks);
    if truncate == Truncate::Delete {
        truncate_tables(mapping, sinks, context);
    }
    truncate
}

fn truncate_tables(mapping: &Mapping<'_>, sinks: &mut [Sink], context: &mut Context<'_>) {
    for sink in sinks {
        let Target::Postgres(table) = &mut sink.target else {
            continue;
        };
        table.is_truncated = table.rows != TableRows::Append;
        if table.is_truncated && sink.is_shared {
            let name = &sink.name;
            let message = format!(
                "`truncate: delete` would delete the rows of others: sink `{name}` says `shared: true`"
            );
            context.problem(mapping.place("truncate"), message);
        }
    }
}

/// No view of a file has this name.
const WHOLE: &str = "batch with `_unavailable`";

/// Gives tables what was not sent of a change where they read `batch`: they keep it.
fn give_unavailable(views: &mut Vec<View>, sinks: &mut [Sink]) {
    let place = views.len();
    let is_kept = |sink: &&mut Sink| match &sink.target {
        Target::Postgres(table) => table.rows != TableRows::Append && sink.from.is_none(),
        _ => false,
    };
    let mut is_read = false;
    for sink in sinks.iter_mut().filter(is_kept) {
        sink.from = Some(place);
        is_read = true;
    }
    if is_read {
        let sql = "SELECT *, _unavailable FROM batch".to_owned();
        views.push(View { name: WHOLE.to_owned(), sql, content: Content::default() });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{Route, Tombstones};
    use crate::config::{Environment, read, render};

    fn text(keys: &str) -> String {
        format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{url: \"http://r\"}}\nroutes:\n  \
             r: {{topics: [t], {keys}, sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
        )
    }

    /// Where it reads `batch`, and rows have keys.
    #[test]
    fn tables_are_told_what_was_not_sent() {
        let text = "
version: 1
kafka: {bootstrap.servers: b, group.id: g}
schema_registry: {url: \"http://r\"}
routes:
  r:
    topics: [t]
    envelope: debezium
    views: {rows: SELECT id FROM batch}
    sinks:
      table: {postgres: {url: \"postgresql://h/d\", table: t, mode: upsert, primary_key: [id]}}
      rows: {from: rows, postgres: {url: \"postgresql://h/d\", table: u, mode: upsert, primary_key: [id]}}
      log: {postgres: {url: \"postgresql://h/d\", table: log}}
      files: {csv: {path: out/s}}
";
        let route = |text: &str| {
            let plan = read(text, &Environment::new([], Path::new("."))).unwrap();
            plan.routes[0].clone()
        };
        let told = route(text);
        let from: Vec<Option<usize>> = told.sinks.iter().map(|sink| sink.from).collect();
        assert_eq!((from, told.views.len()), (vec![Some(1), Some(0), None, None], 2));
        assert_eq!(told.views[1].sql, "SELECT *, _unavailable FROM batch");
        let emptied = |route: &Route| -> Vec<bool> {
            let tables = route.sinks.iter().filter_map(|sink| match &sink.target {
                Target::Postgres(table) => Some(table.is_truncated),
                _ => None,
            });
            tables.collect()
        };
        assert_eq!((told.truncate, emptied(&told)), (Truncate::Refuse, vec![false; 3]));
        let emptying = text.replace("envelope: debezium\n", "envelope: debezium\n    truncate: delete\n");
        let told = route(&emptying);
        assert_eq!((told.truncate, emptied(&told)), (Truncate::Delete, vec![true, true, false]));
        let shared = emptying.replace("table: {postgres", "table: {shared: true, postgres");
        let problems = read(&shared, &Environment::new([], Path::new("."))).unwrap_err();
        assert!(problems[0].message.contains("would delete the rows of others"), "{problems:?}");
        let plain = route(&text.replace("    envelope: debezium\n", ""));
        assert_eq!((plain.sinks[0].from, plain.views.len()), (None, 1));
    }

    #[test]
    fn changes_have_columns_and_say_by_themselves_what_is_gone() {
        let environment = Environment::new([], Path::new("."));
        let route = |keys: &str| read(&text(keys), &environment).map(|plan| plan.routes[0].clone());
        let debezium = route("envelope: debezium").unwrap();
        assert_eq!((debezium.envelope, debezium.has_deletes()), (Envelope::Debezium, true));
        let deleting = route("tombstones: delete").unwrap();
        assert_eq!((deleting.tombstones, deleting.has_deletes()), (Tombstones::Delete, true));
        assert!(!route("value: string").unwrap().has_deletes());
        for (keys, expected) in [
            ("envelope: debezium, value: string", "records as they are have no columns"),
            ("envelope: debezium, value: protobuf", "change events in Protobuf cannot be read"),
            ("envelope: debezium, tombstones: skip", "`tombstones` is of no use with `envelope: debezium`"),
            ("truncate: ignore", "`truncate` is of use only with `envelope: debezium`"),
            ("envelope: maxwell", "`maxwell` is not a known value here"),
        ] {
            let shown = render("routes.yaml", &text(keys), &route(keys).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
            assert_eq!(shown.matches("routes.yaml:").count(), 1, "{shown}");
        }
    }
}
