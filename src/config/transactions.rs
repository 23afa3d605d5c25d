//! Sinks with `transactional: true`, and what may be beside them: the group's offsets move only in the one transaction
//! of a lane, so that everything that depends on them has to be in it (PROTOCOL §6). `cluster:` of kafka sinks.

use std::collections::BTreeMap;

use super::mapping::{Context, Mapping, unknown};
use super::plan::{Kafka, Route, Sink, Target};
use super::route::{ReadRoute, check_name};
use super::{Problem, kafka, keys};

/// Reads `clusters:`.
pub fn clusters(root: &Mapping<'_>, context: &mut Context<'_>) -> BTreeMap<String, Kafka> {
    let mut clusters = BTreeMap::new();
    for (key, node) in root.named("clusters", context) {
        check_name("cluster", key, context);
        let Some(mapping) = Mapping::open(node, &keys::CLUSTER, context) else {
            continue;
        };
        if let Some(kafka) = kafka::read_cluster(&mapping, context) {
            clusters.insert(key.name.clone(), kafka);
        }
    }
    clusters
}

/// Dead letters of a route with transactions are in them, where they can be.
pub fn join_letters(sinks: &[Sink], mut letters: Vec<Sink>) -> Vec<Sink> {
    if sinks.iter().any(|sink| sink.target.is_transactional()) {
        for letter in &mut letters {
            if let Target::Kafka { is_transactional, .. } = &mut letter.target {
                *is_transactional = true;
            }
        }
    }
    letters
}

/// What sinks say of clusters and transactions, and what is beside those.
pub fn check(routes: &[ReadRoute], clusters: &BTreeMap<String, Kafka>, context: &mut Context<'_>) {
    for route in routes {
        check_clusters(route, clusters, context);
        let plan = &route.plan;
        let Some(first) = plan.sinks.iter().find(|sink| sink.target.is_transactional()) else {
            continue;
        };
        check_siblings(route, first, context);
        check_letters(route, first, context);
        let others = routes.iter().map(|other| &other.plan).filter(|other| other.name != plan.name);
        let others = others.filter(|other| !plan.is_isolated && !other.is_isolated);
        for other in others.filter(|other| may_share(plan, other)) {
            let message = format!(
                "route `{}`: sink `{}` moves the group's offsets in its transactions, and route `{}` of the same group may \
                 read the same topics",
                plan.name, first.name, other.name
            );
            let hint = "`isolated: true` gives one of the two routes a group of its own";
            context.problems.push(Problem::new(route.span, message).hint(hint));
        }
    }
}

fn check_clusters(route: &ReadRoute, clusters: &BTreeMap<String, Kafka>, context: &mut Context<'_>) {
    for (sink, span) in route.plan.sinks.iter().zip(&route.sink_spans) {
        let Target::Kafka { cluster: Some(cluster), is_transactional, .. } = &sink.target else {
            continue;
        };
        if !clusters.contains_key(cluster) {
            let known: Vec<&str> = clusters.keys().map(String::as_str).collect();
            let problem = unknown("cluster", *span, cluster, &known);
            let none = "name it under `clusters:`, with its `bootstrap.servers`";
            context.problems.push(if known.is_empty() { problem.hint(none) } else { problem });
        }
        if *is_transactional {
            let message = format!(
                "route `{}`: sink `{}` is `transactional`, and no transaction holds records of cluster `{cluster}` and the \
                 group's offsets, which the cluster that is read has",
                route.plan.name, sink.name
            );
            let hint = "leave `transactional` out: rows are written at least once; or write to the cluster that is read";
            context.problems.push(Problem::new(*span, message).hint(hint));
        }
    }
}

/// Its siblings read the same batches, and their positions are kept with the offsets, or compared with them.
fn check_siblings(route: &ReadRoute, first: &Sink, context: &mut Context<'_>) {
    for (sink, span) in route.plan.sinks.iter().zip(&route.sink_spans) {
        if sink.target.is_transactional() {
            continue;
        }
        let message = format!(
            "route `{}`: sink `{}` is not in the transactions of sink `{}`, in which alone the group's offsets move",
            route.plan.name, sink.name, first.name
        );
        let hint = match &sink.target {
            Target::Kafka { cluster: None, .. } => "say `transactional: true` there, too",
            _ => "give it a route of its own on these topics, with `isolated: true`",
        };
        context.problems.push(Problem::new(*span, message).hint(hint));
    }
}

fn check_letters(route: &ReadRoute, first: &Sink, context: &mut Context<'_>) {
    for letter in &route.plan.dead_letters {
        if letter.target.is_transactional() {
            continue;
        }
        let message = format!(
            "route `{}`: sink `{}` cannot be in the transactions of sink `{}`, in which alone the group's offsets move",
            route.plan.name, letter.name, first.name
        );
        let hint = "let the dead letters of this route go to a topic: `kafka: {topic: …}`";
        context.problems.push(Problem::new(route.span, message).hint(hint));
    }
}

/// May two routes read one topic? Of two patterns nobody knows.
fn may_share(one: &Route, other: &Route) -> bool {
    (one.topics.is_pattern() && other.topics.is_pattern())
        || one.topics.named().iter().any(|topic| other.topics.matches(topic))
        || other.topics.named().iter().any(|topic| one.topics.matches(topic))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::plan::{Plan, Target};
    use crate::config::{Environment, read, render};

    const HEAD: &str = "\
version: 1
kafka: {bootstrap.servers: b, group.id: g}
clusters: {far: {kafka: {bootstrap.servers: far, sasl.password: \"${S}\"}}}
dead_letters: {topic: {kafka: {topic: bad}}, files: {jsonl: {path: out/bad}}}
defaults: {value: string}
routes:
";

    fn plan(routes: &str) -> Result<Plan, String> {
        let text = format!("{HEAD}{routes}");
        let environment = Environment::new([("S".to_owned(), "hunter2".to_owned())], Path::new("."));
        read(&text, &environment).map_err(|problems| render("routes.yaml", &text, &problems))
    }

    const EXACT: &str = "kafka: {topic: x, transactional: true}";

    #[test]
    fn all_sinks_of_a_route_and_its_letters_are_in_its_transactions() {
        let routes = format!(
            "  r: {{topics: [t], bad_records: {{dead_letter: topic}}, sinks: {{a: {{{EXACT}}}, b: {{{EXACT}}}}}}}\n"
        );
        let plan = plan(&routes).unwrap();
        let route = &plan.routes[0];
        assert!(route.has_transactions());
        assert!(route.sinks.iter().chain(&route.dead_letters).all(|sink| sink.target.is_transactional()));
        let guarantee = route.sinks[0].target.guarantee();
        assert!(
            guarantee.starts_with("exactly once into topic x for read_committed consumers: "),
            "{guarantee}"
        );
    }

    #[test]
    fn letters_of_others_are_as_they_were() {
        let routes =
            "  r: {topics: [t], bad_records: {dead_letter: topic}, sinks: {a: {kafka: {topic: x}}}}\n";
        let plan = plan(routes).unwrap();
        let route = &plan.routes[0];
        assert!(!route.has_transactions() && !route.dead_letters[0].target.is_transactional());
        assert!(route.sinks[0].target.guarantee().starts_with("at least once"));
    }

    #[test]
    fn what_cannot_be_beside_a_transaction_is_told_with_a_remedy() {
        let with = |more: &str| format!("  r: {{topics: [t], sinks: {{a: {{{EXACT}}}, b: {{{more}}}}}}}\n");
        let letters = |name: &str| {
            format!("  r: {{topics: [t], bad_records: {{dead_letter: {name}}}, sinks: {{a: {{{EXACT}}}}}}}\n")
        };
        for (routes, message, hint) in [
            (
                with("kafka: {topic: y}"),
                "route `r`: sink `b` is not in the transactions",
                "say `transactional: true`",
            ),
            (with("csv: {path: out}"), "sink `b` is not in the transactions of sink `a`", "`isolated: true`"),
            (with("console: {}"), "sink `b` is not in the transactions", "a route of its own"),
            (letters("files"), "sink `dead_letter/files` cannot be in the transactions", "go to a topic"),
            (
                with("kafka: {topic: y, transactional: true, cluster: far}"),
                "no transaction holds records of cluster `far`",
                "at least once",
            ),
            (with("kafka: {topic: y, cluster: fra}"), "`fra` is not a known cluster", "did you mean `far`?"),
        ] {
            let shown = plan(&routes).unwrap_err();
            assert!(shown.contains(message) && shown.contains(hint), "no {message:?}, {hint:?} in\n{shown}");
        }
    }

    #[test]
    fn routes_that_may_read_the_same_topics_need_groups_of_their_own() {
        let exact = |topics: &str, more: &str| {
            format!("  r: {{topics: {topics}, {more} sinks: {{a: {{{EXACT}}}}}}}\n")
        };
        let other = |topics: &str, more: &str| {
            format!("  o: {{topics: {topics}, {more} sinks: {{a: {{console: {{}}}}}}}}\n")
        };
        let named = |more: &str, other_more: &str| plan(&(exact("[t]", more) + &other("[t, u]", other_more)));
        let shown = named("", "").unwrap_err();
        assert!(
            shown.contains("route `o` of the same group may") && shown.contains("`isolated: true`"),
            "{shown}"
        );
        named("isolated: true,", "").unwrap();
        named("", "isolated: true,").unwrap();
        plan(&(exact("[t]", "") + &other("[u]", ""))).unwrap();
        plan(&(exact("[t]", "") + &other("{pattern: 't.*'}", ""))).unwrap_err();
        plan(&(exact("[t]", "") + &other("{pattern: 'u.*'}", ""))).unwrap();
        plan(&(exact("{pattern: 't.*'}", "") + &other("{pattern: 'u.*'}", ""))).unwrap_err();
    }

    #[test]
    fn a_sink_may_write_to_another_cluster_also_into_a_topic_of_the_same_name() {
        let sink =
            |cluster: &str| format!("  r: {{topics: [t], sinks: {{a: {{kafka: {{topic: t{cluster}}}}}}}}}\n");
        let plan_of = plan(&sink(", cluster: far")).unwrap();
        let far = &plan_of.clusters["far"];
        assert_eq!(far.properties["sasl.password"], "hunter2");
        assert!(!format!("{plan_of:?}").contains("hunter2"));
        let Target::Kafka { cluster, .. } = &plan_of.routes[0].sinks[0].target else { panic!() };
        assert_eq!(cluster.as_deref(), Some("far"));
        assert!(plan_of.routes[0].outputs().is_empty());
        assert!(plan(&sink("")).unwrap_err().contains("is read by a route"));
    }

    #[test]
    fn a_cluster_says_its_brokers_and_nothing_of_a_group() {
        for (properties, expected) in [
            ("{}", "`bootstrap.servers` is missing"),
            ("{bootstrap.servers: b, group.id: g}", "`group.id` is of no use"),
            ("{bootstrap.servers: b, transactional.id: t}", "`transactional.id` is set by sidestream"),
        ] {
            let head = HEAD.replace("{bootstrap.servers: far, sasl.password: \"${S}\"}", properties);
            let text = format!("{head}  r: {{topics: [t], sinks: {{a: {{console: {{}}}}}}}}\n");
            let problems = read(&text, &Environment::new([], Path::new("."))).unwrap_err();
            let shown = render("routes.yaml", &text, &problems);
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }
}
