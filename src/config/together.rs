//! What routes must not do to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, PathBuf};

use super::Problem;
use super::mapping::Context;
use super::plan::{Delta, KeyForm, Sink, Target, ValueForm};
use super::route::ReadRoute;
use super::tree::Span;
use crate::model::TopicName;

/// Two sinks must not write to one place, nor share an identity.
pub fn check(routes: &[ReadRoute], context: &mut Context<'_>) {
    check_adopted(routes, context);
    let mut paths: BTreeMap<PathBuf, (String, bool)> = BTreeMap::new();
    let mut tables: BTreeMap<(String, String), (String, bool)> = BTreeMap::new();
    let mut identities: BTreeMap<&str, String> = BTreeMap::new();
    let read: BTreeSet<&TopicName> = routes.iter().flat_map(|route| route.plan.topics.named()).collect();
    for route in routes.iter().filter(|route| route.plan.is_per_topic) {
        let instances = route.plan.topics.named().iter().filter_map(|topic| route.plan.instance(topic).ok());
        for topic in instances.flat_map(|instance| instance.outputs()).filter(|topic| read.contains(topic)) {
            let message =
                format!("topic `{topic}` is written by this route and read by one: it would come back");
            context.problem(route.span, message);
        }
    }
    for route in routes {
        let letters = route.plan.dead_letters.iter().map(|letter| (letter, route.span));
        for (letter, span) in letters.clone() {
            if let Target::Kafka { topic: Some(topic), .. } = &letter.target
                && read.contains(topic)
            {
                let message =
                    format!("dead letters go to topic `{topic}`, which a route reads: they would come back");
                context.problem(span, message);
            }
        }
        let sinks = route.plan.sinks.iter().zip(route.sink_spans.iter().copied());
        for (sink, span) in sinks.chain(letters) {
            let own = format!("{}/{}", route.plan.name, sink.name);
            match &sink.target {
                Target::Files { path, .. } | Target::Delta(Delta { path, .. }) => {
                    // `./out`, `out/` and `out` are one directory.
                    let place: PathBuf =
                        path.components().filter(|part| *part != Component::CurDir).collect();
                    let other = paths.insert(place.clone(), (own.clone(), sink.is_shared));
                    if let Some((other, is_shared)) = other
                        && !(is_shared && sink.is_shared)
                    {
                        let message = format!("`{}` is already used by sink `{other}`", place.display());
                        let problem = Problem::new(span, message);
                        context.problems.push(
                            problem.hint("give each sink its own `path`, or let both say `shared: true`"),
                        );
                    }
                }
                Target::Kafka { topic: Some(topic), cluster: None, .. } if read.contains(topic) => {
                    let message =
                        format!("topic `{topic}` is read by a route: what is written would come back");
                    context.problem(span, message);
                }
                Target::Postgres(postgres) => {
                    let place = (postgres.url.secret().to_owned(), postgres.shown());
                    let other = tables.insert(place, (own.clone(), sink.is_shared));
                    if let Some((other, is_shared)) = other
                        && !(is_shared && sink.is_shared)
                    {
                        let message =
                            format!("table `{}` is already used by sink `{other}`", postgres.shown());
                        let problem = Problem::new(span, message);
                        context.problems.push(
                            problem.hint("give each sink its own `table`, or let both say `shared: true`"),
                        );
                    }
                }
                Target::Kafka { .. } | Target::Console { .. } | Target::Http(_) => {}
            }
            if let Some(other) = identities.insert(&sink.identity, own) {
                let message = format!("`{}` is already the identity of sink `{other}`", sink.identity);
                context.problems.push(Problem::new(span, message).hint("give each sink its own `id`"));
            }
        }
    }
}

/// What still writes under its identity cannot be taken over.
fn check_adopted(routes: &[ReadRoute], context: &mut Context<'_>) {
    let sinks =
        || routes.iter().flat_map(|route| route.plan.sinks.iter().zip(route.sink_spans.iter().copied()));
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    for (sink, span) in sinks() {
        let Some(adopt) = sink.adopt.as_deref() else {
            continue;
        };
        let is_living =
            |(other, _): (&Sink, Span)| other.identity == adopt && other.identity != sink.identity;
        if sinks().any(is_living) {
            let message = format!("`adopt`: a sink of this file still writes as `{adopt}`");
            context
                .problems
                .push(Problem::new(span, message).hint("name the identity of a sink that is gone"));
        }
        if let Some(other) = taken.insert(adopt, &sink.name) {
            let message = format!("`{adopt}` is adopted by sink `{other}` already");
            context.problem(span, message);
        }
    }
}

/// Without a registry no route reads or writes with its schemas.
pub fn check_registry(routes: &[ReadRoute], span: Span, context: &mut Context<'_>) {
    let need = |route: &ReadRoute| {
        let name = &route.plan.name;
        match (&route.plan.value, &route.plan.key) {
            (ValueForm::Registry(_), _) => Some(format!("route `{name}` reads `value: registry`")),
            (_, KeyForm::Registry(_)) => Some(format!("route `{name}` reads `key: registry`")),
            _ => {
                let mut sinks = route.plan.sinks.iter().chain(&route.plan.dead_letters);
                let sink = sinks.find(|sink| sink.target.has_schemas())?;
                Some(format!("sink `{}` of route `{name}` writes with a schema", sink.name))
            }
        }
    };
    if let Some(need) = routes.iter().find_map(need) {
        let problem = Problem::new(span, format!("`schema_registry` is missing, and {need}"));
        context.problems.push(problem.hint("schema_registry: {url: \"http://localhost:8081\"}"));
    }
}
