//! `envelope:` of a route, and what does not go with it.

use super::Problem;
use super::mapping::{Context, Mapping};
use super::plan::{Envelope, SchemaFormat, ValueForm};

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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::Tombstones;
    use crate::config::{Environment, read, render};

    fn text(keys: &str) -> String {
        format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{url: \"http://r\"}}\nroutes:\n  \
             r: {{topics: [t], {keys}, sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
        )
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
            ("envelope: maxwell", "`maxwell` is not a known value here"),
        ] {
            let shown = render("routes.yaml", &text(keys), &route(keys).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
            assert_eq!(shown.matches("routes.yaml:").count(), 1, "{shown}");
        }
    }
}
