use std::path::Path;

use super::*;
use crate::config::{Environment, read as read_file, render};
use crate::model::TopicName;

const TEXT: &str = "\
version: 1
kafka: {bootstrap.servers: b, group.id: g}
schema_registry: {url: \"http://r\"}
dead_letters: {q: {jsonl: {path: out/bad}}, p: {jsonl: {path: out/worse}}}
routes:
  r:
    topics: [t]
    record_types:
      shop.Created: {sinks: {lake: {csv: {path: out/created}}}}
      shop.Paid:
        reader_schema: {version: 3}
        subject: '{topic}-{record}'
        views: {large: SELECT 1 AS one}
        sinks: {lake: {csv: {path: out/paid}}, large: {from: large, csv: {path: out/large}}}
      \"*\": {bad_records: {dead_letter: q}}
";

fn environment() -> Environment {
    Environment::new([], Path::new("."))
}

fn route(text: &str) -> Route {
    let plan = read_file(text, &environment());
    plan.unwrap_or_else(|problems| panic!("{}", render("r", text, &problems))).routes.remove(0)
}

/// The subjects of the types' reader schemas.
fn subjects(route: &Route) -> Vec<String> {
    route.value_forms().into_iter().map(|form| route.subject(form, "value")).collect()
}

#[test]
fn each_type_has_a_schema_views_and_sinks() {
    let route = route(TEXT);
    let names: Vec<&str> = route.record_types.iter().map(|record_type| record_type.name.as_str()).collect();
    assert_eq!(names, ["shop.Created", "shop.Paid"]);
    assert_eq!(subjects(&route), ["shop.Created", "t-shop.Paid"]);
    let schemas: Vec<&ReaderSchema> = route.value_forms().into_iter().map(|form| &form.schema).collect();
    assert_eq!(schemas, [&ReaderSchema::Latest, &ReaderSchema::Version(3)]);
    let sinks: Vec<(&str, &str, usize, Option<usize>)> = route
        .sinks
        .iter()
        .map(|sink| (sink.name.as_str(), sink.identity.as_str(), sink.record_type, sink.from))
        .collect();
    let expected = [
        ("shop.Created/lake", "r/shop.Created/lake", 0, None),
        ("shop.Paid/lake", "r/shop.Paid/lake", 1, None),
        ("shop.Paid/large", "r/shop.Paid/large", 1, Some(0)),
    ];
    assert_eq!(sinks, expected);
    // What is of no type is dropped; what is of another one goes where the route's own bad records do not.
    assert_eq!(route.tombstones, crate::config::plan::Tombstones::Skip);
    assert_eq!((route.bad_records, route.other_types), (BadRecords::Stop, Some(BadRecords::DeadLetter)));
    assert_eq!(route.dead_letters[0].identity, "r/dead_letter/q");

    let types = route.by_type();
    assert_eq!(types[1].name, "r/shop.Paid");
    assert_eq!((types[0].views.len(), types[1].views.len()), (0, 1));
    assert_eq!(types[1].sinks.len(), 2);
    assert!(types[1].sinks.iter().all(|sink| sink.record_type == 0));
    assert_eq!(types[1].value_forms()[0].record_type.as_deref(), Some("shop.Paid"));
    // A route of one type is its own.
    assert_eq!(types[1].by_type(), [types[1].clone()]);
}

#[test]
fn schemas_and_subjects_of_the_route_are_for_all_its_types() {
    let with = |keys: &str| TEXT.replace("    topics: [t]\n", &format!("    topics: [t]\n    {keys}\n"));
    let first = |keys: &str| subjects(&route(&with(keys)))[0].clone();
    assert_eq!(first("subject: '{topic}-value'"), "t-value");
    assert_eq!(first("subject: '{topic}-{record}'"), "t-shop.Created");
    assert_eq!(first("value: {avro: {framing: header}}"), "shop.Created");
    let route = route(&with("reader_schema: {id: 7}"));
    let schemas: Vec<&ReaderSchema> = route.value_forms().into_iter().map(|form| &form.schema).collect();
    assert_eq!(schemas, [&ReaderSchema::Id(7), &ReaderSchema::Version(3)]);
}

#[test]
fn topics_of_a_pattern_may_share_types_or_have_their_own() {
    let text = TEXT.replace("topics: [t]", "topics: {pattern: 't\\.(?<shop>\\w+)'}");
    // The subject of one type is of a topic.
    let shown = render("r", &text, &read_file(&text, &environment()).unwrap_err());
    assert!(shown.contains("the topics of a pattern have no schema in common"), "{shown}");
    assert!(!route(&text.replace("'{topic}-{record}'", "'{record}'")).is_schema_of_topic());

    let text = text.replace("    record_types", "    per_topic: true\n    record_types");
    let mut text = text.replace("'{topic}-{record}'", "'{shop}-{record}'");
    for name in ["created", "paid", "large"] {
        text = text.replace(&format!("path: out/{name}"), &format!("path: 'out/{{topic}}/{name}'"));
    }
    let instance = route(&text).instance(&TopicName::new("t.eu")).unwrap();
    assert_eq!(subjects(&instance), ["shop.Created", "eu-shop.Paid"]);
    assert_eq!(instance.sinks[1].identity, "r/t.eu/shop.Paid/lake");
    assert_eq!(instance.by_type()[1].name, "r/t.eu/shop.Paid");
}

#[test]
fn what_is_wrong_with_types_is_told() {
    for (from, to, expected) in [
        (
            "    record_types:",
            "    sinks: {s: {csv: {path: o}}}\n    record_types:",
            "r:8:5: `sinks` of the route is of no use",
        ),
        (
            "    record_types:",
            "    views: {v: SELECT 1}\n    record_types:",
            "`views` of the route is of no use",
        ),
        (
            "    record_types:",
            "    tombstones: keep\n    record_types:",
            "so that there is no row that would keep them",
        ),
        (
            "    record_types:",
            "    tombstones: delete\n    record_types:",
            "r:8:5: records without a value have no type, so that no sink is told which key they delete",
        ),
        (
            "    record_types:",
            "    envelope: debezium\n    record_types:",
            "r:8:5: `envelope: debezium` does not go with `record_types`",
        ),
        ("routes:", "defaults: {tombstones: delete}\nroutes:", "no sink is told which key they delete"),
        ("routes:", "defaults: {envelope: debezium}\nroutes:", "does not go with `record_types`"),
        ("    record_types:", "    value: bytes\n    record_types:", "`record_types` is of use only with"),
        (
            "    record_types:",
            "    value: {protobuf: {message: shop.Paid}}\n    record_types:",
            "`message` is of no use beside `record_types`",
        ),
        (
            "    record_types:",
            "    bad_records: {dead_letter: p}\n    record_types:",
            "name different dead letter targets",
        ),
        ("    record_types:", "    subject: '{recrod}'\n    record_types:", "did you mean `record`?"),
        ("'{topic}-{record}'", "'{table}-{record}'", "`table` is not a known placeholder"),
        ("'{topic}-{record}'", "a/b", "a subject is a text without"),
        ("reader_schema: {version: 3}", "reader_schema: {id: 3}", "this subject would never be asked for"),
        ("shop.Created:", "'shop/Created':", "`shop/Created` is no name for a record type"),
        ("shop.Created:", "'{record}':", "`{record}` is no name for a record type"),
        ("{lake: {csv: {path: out/created}}}", "{}", "a route has at least one sink"),
        ("{sinks: {lake: {csv: {path: out/created}}}}", "{}", "`sinks` is missing"),
        ("{sinks: {lake: {csv: {path: out/created}}}}", "{value: avro}", "`value` is not a known key here"),
        ("from: large", "from: lrage", "did you mean `large`?"),
        ("out/created", "out/paid", "`out/paid` is already used by sink `r/shop.Created/lake`"),
        ("{bad_records: {dead_letter: q}}", "{sinks: {}}", "`sinks` is not a known key here"),
        ("dead_letter: q", "dead_letter: quarantine", "is not a known dead letter target"),
    ] {
        let text = TEXT.replace(from, to);
        assert_ne!(text, TEXT, "{from}");
        let shown = render("r", &text, &read_file(&text, &environment()).unwrap_err());
        assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
    }
    let text = TEXT.lines().take(7).collect::<Vec<_>>().join("\n");
    for (types, expected) in [
        ("{}", "no record type is named"),
        ("{\"*\": {}}", "no record type is named"),
        ("[a]", "expected names and values"),
        ("", "no record type is named"),
    ] {
        let text = format!("{text}\n    record_types: {types}\n");
        let shown = render("r", &text, &read_file(&text, &environment()).unwrap_err());
        assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
    }
}

#[test]
fn other_types_are_what_is_said_of_them() {
    let with = |others: &str| route(&TEXT.replace("{bad_records: {dead_letter: q}}", others));
    assert_eq!(with("{}").other_types, Some(BadRecords::Stop));
    assert_eq!(with("{bad_records: skip}").other_types, Some(BadRecords::Skip));
    let text: Vec<&str> = TEXT.lines().filter(|line| !line.contains("\"*\"")).collect();
    let route = route(&text.join("\n"));
    assert_eq!(route.other_types, None);
    assert!(route.dead_letters.is_empty());
}
