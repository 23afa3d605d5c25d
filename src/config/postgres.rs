//! `postgres:` of a sink.

use super::keys;
use super::mapping::{Context, Mapping, text};
use super::plan::{Postgres, PrimaryKey, SecretUrl, TableRows};
use super::read::input_file;
use super::tree::{Node, Value};
use super::{Problem, template};

/// Bytes of a name in PostgreSQL.
pub const TABLE_NAME_BYTES_MAX: usize = 63;

/// Reads `postgres:`.
pub fn read(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Postgres> {
    let postgres = mapping.nested("postgres", &keys::POSTGRES, context)?;
    let appended = appended(&postgres, context);
    let rows = rows(&postgres, context);
    let creates = postgres.choice("create", context) == "true";
    Some(Postgres { rows: rows?, creates, ..appended? })
}

/// Reads `postgres:` of dead letters.
pub fn read_letters(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Postgres> {
    let postgres = mapping.nested("postgres", &keys::DEAD_LETTER_TABLE, context)?;
    appended(&postgres, context)
}

/// A table that rows are appended to, and that is created if it is not there.
fn appended(postgres: &Mapping<'_>, context: &mut Context<'_>) -> Option<Postgres> {
    postgres.require("url", context);
    postgres.require("table", context);
    let url = postgres.secret("url", context);
    if let Some(url) = &url
        && !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme))
    {
        let problem = Problem::new(postgres.place("url"), "the URL does not begin with `postgresql://`");
        context.problems.push(problem);
    }
    let ca_file =
        if postgres.get("ca_file").is_some() { input_file("ca_file", postgres, context) } else { None };
    let (schema, table) = table(postgres, context)?;
    let (url, rows) = (SecretUrl::new(url?), TableRows::Append);
    Some(Postgres { url, ca_file, schema, table, rows, creates: true, is_truncated: false })
}

/// The schema, if there is one, and the table. They are taken apart before placeholders are filled in: a point in the name
/// of a topic is a part of the name.
fn table(postgres: &Mapping<'_>, context: &mut Context<'_>) -> Option<(Option<String>, String)> {
    let name = postgres.text("table", context)?;
    let parts: Vec<&str> = name.split('.').collect();
    // What is filled in is looked at when it is.
    let is_name = |part: &&str| {
        let is_short = part.len() <= TABLE_NAME_BYTES_MAX || !template::placeholders(part).is_empty();
        !part.is_empty() && is_short && !part.contains('\0')
    };
    match parts.as_slice() {
        [table] if is_name(table) => Some((None, (*table).to_owned())),
        [schema, table] if is_name(schema) && is_name(table) => {
            Some((Some((*schema).to_owned()), (*table).to_owned()))
        }
        _ => {
            let message = "a table is `table` or `schema.table`, with names of 1 to 63 bytes";
            context.problem(postgres.place("table"), message);
            None
        }
    }
}

fn rows(postgres: &Mapping<'_>, context: &mut Context<'_>) -> Option<TableRows> {
    let is_upsert = postgres.choice("mode", context) == "upsert";
    match (is_upsert, postgres.get("primary_key")) {
        (false, None) => Some(TableRows::Append),
        (false, Some(_)) => {
            let message = "`primary_key` is of no use with `mode: append`";
            let problem = Problem::new(postgres.place("primary_key"), message);
            context.problems.push(problem.hint("did you mean `mode: upsert`?"));
            None
        }
        (true, None) => {
            let problem = Problem::new(postgres.place("mode"), "`mode: upsert` needs a `primary_key`");
            context.problems.push(problem.hint("name its columns, `[id]`, or say `record_key`"));
            None
        }
        (true, Some(node)) => primary_key(node, context).map(TableRows::Upsert),
    }
}

fn primary_key(node: &Node, context: &mut Context<'_>) -> Option<PrimaryKey> {
    let Value::List(items) = &node.value else {
        if text(node, context)? == "record_key" {
            return Some(PrimaryKey::RecordKey);
        }
        context.problem(node.span, "a primary key is a list of columns, `[id]`, or `record_key`");
        return None;
    };
    let columns: Vec<String> = items.iter().map(|item| text(item, context)).collect::<Option<_>>()?;
    let is_twice = |column: &String| columns.iter().filter(|other| *other == column).count() > 1;
    if columns.is_empty() || columns.iter().any(is_twice) {
        context.problem(node.span, "a primary key has at least one column, and each once");
        return None;
    }
    Some(PrimaryKey::Columns(columns))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{Plan, Target};
    use crate::config::{Environment, read, render};
    use crate::model::TopicName;

    const SECRET: &str = "s3cr3t";

    fn file(keys: &str, sink: &str) -> String {
        format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nroutes:\n  \
             r: {{{keys}, value: string, sinks: {{s: {{postgres: {{url: \"${{URL}}\", {sink}}}}}}}}}\n"
        )
    }

    fn plan(keys: &str, sink: &str) -> Result<Plan, String> {
        let url = format!("postgresql://u:{SECRET}@h/d");
        let environment = Environment::new([("URL".to_owned(), url)], Path::new("."));
        let text = file(keys, sink);
        read(&text, &environment).map_err(|problems| render("routes.yaml", &text, &problems))
    }

    fn target(plan: &Plan) -> &Postgres {
        let Target::Postgres(postgres) = &plan.routes[0].sinks[0].target else { panic!() };
        postgres
    }

    #[test]
    fn a_table_has_a_schema_or_none_and_a_mode() {
        let plain = plan("topics: [t]", "table: orders").unwrap();
        let postgres = target(&plain);
        assert_eq!((postgres.schema.as_deref(), postgres.table.as_str()), (None, "orders"));
        assert_eq!((&postgres.rows, postgres.creates), (&TableRows::Append, false));
        let upsert = "table: shop.Orders, mode: upsert, primary_key: [id, at], create: true";
        let upsert = plan("topics: [t]", upsert).unwrap();
        let postgres = target(&upsert);
        assert_eq!((postgres.schema.as_deref(), postgres.shown().as_str()), (Some("shop"), "shop.Orders"));
        let columns = PrimaryKey::Columns(vec!["id".to_owned(), "at".to_owned()]);
        assert_eq!((&postgres.rows, postgres.creates), (&TableRows::Upsert(columns), true));
    }

    #[test]
    fn the_url_is_never_shown() {
        let good = plan("topics: [t]", "table: orders").unwrap();
        assert!(target(&good).url.secret().contains(SECRET));
        assert!(!format!("{good:?}").contains(SECRET));
        for sink in ["table: a.b.c", "table: x, mode: upsert", "tabel: x"] {
            let shown = plan("topics: [t]", sink).unwrap_err();
            assert!(!shown.contains(SECRET), "{shown}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        let long = format!("table: {}", "x".repeat(64));
        for (sink, expected) in [
            ("mode: append", "`table` is missing"),
            ("table: a.b.c", "a table is `table` or `schema.table`"),
            ("table: .b", "a table is `table` or `schema.table`"),
            (long.as_str(), "a table is `table` or `schema.table`"),
            ("table: x, mode: upsert", "`mode: upsert` needs a `primary_key`"),
            ("table: x, primary_key: [id]", "`primary_key` is of no use with `mode: append`"),
            ("table: x, mode: upsert, primary_key: id", "or `record_key`"),
            ("table: x, mode: upsert, primary_key: [a, a]", "each once"),
            ("table: x, mode: replace", "`replace` is not a known value here"),
            ("table: 'x_{topic}'", "filled in only with `per_topic: true`"),
        ] {
            let shown = plan("topics: [t]", sink).unwrap_err();
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn each_topic_has_its_own_table_and_points_stay_in_its_name() {
        let keys = "topics: {pattern: 'db\\.(?<table>.+)'}, per_topic: true";
        let plan = plan(keys, "table: 'raw.{table}'").unwrap();
        let instance = |topic: &str| plan.routes[0].instance(&TopicName::new(topic));
        let route = instance("db.inventory.customers").unwrap();
        let Target::Postgres(postgres) = &route.sinks[0].target else { panic!() };
        let place = (postgres.schema.as_deref(), postgres.table.as_str());
        assert_eq!(place, (Some("raw"), "inventory.customers"));
        let error = instance(&format!("db.{}", "x".repeat(64))).unwrap_err();
        assert!(error.to_string().contains("1 to 63 bytes"), "{error}");
    }

    #[test]
    fn two_sinks_share_a_table_only_if_both_say_so() {
        let text = |shared: &str| {
            let sink = format!("{{{shared} postgres: {{url: \"postgresql://h/d\", table: t}}}}");
            format!(
                "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nroutes:\n  \
                 r: {{topics: [t], value: string, sinks: {{a: {sink}, b: {sink}}}}}\n"
            )
        };
        let environment = Environment::new([], Path::new("."));
        assert!(read(&text("shared: true,"), &environment).is_ok());
        let wrong = text("");
        let shown = render("routes.yaml", &wrong, &read(&wrong, &environment).unwrap_err());
        assert!(shown.contains("table `t` is already used by sink `r/a`"), "{shown}");
    }
}
