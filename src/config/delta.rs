//! `delta:` of a sink.

use std::path::PathBuf;

use super::mapping::{Context, Mapping};
use super::plan::Delta;
use super::sink::{partition_by, path_and_roll};
use super::{Problem, keys};

/// Reads `delta:`.
pub fn read(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Delta> {
    let delta = mapping.nested("delta", &keys::DELTA, context)?;
    let partition_by = partition_by(&delta, context);
    let creates = delta.choice("create", context) == "true";
    let (path, roll) = path_and_roll(&delta, context)?;
    if path.contains("://") {
        let problem = Problem::new(delta.place("path"), "a Delta table is in a directory of a local disk");
        context
            .problems
            .push(problem.hint("files (`parquet: {path: \"s3://…\"}`) can be in an object store"));
        return None;
    }
    Some(Delta { path: PathBuf::from(path), partition_by, roll, creates })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::plan::{Plan, Target};
    use crate::config::{Environment, read, render};
    use crate::model::TopicName;

    fn plan(keys: &str, sink: &str) -> Result<Plan, String> {
        let text = format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nroutes:\n  \
             r: {{{keys}, value: string, sinks: {{s: {{delta: {{{sink}}}}}}}}}\n"
        );
        let environment = Environment::new([], Path::new("."));
        read(&text, &environment).map_err(|problems| render("routes.yaml", &text, &problems))
    }

    #[test]
    fn a_table_has_a_path_and_may_be_created_and_partitioned() {
        let plain = plan("topics: [t]", "path: lake/orders").unwrap();
        let target = &plain.routes[0].sinks[0].target;
        let Target::Delta(delta) = target else { panic!() };
        assert_eq!((delta.path.as_path(), delta.creates), (Path::new("lake/orders"), false));
        assert!(delta.partition_by.is_empty());
        assert_eq!(delta.roll.bytes_max, 128 << 20);
        assert!(target.has_own_store() && !target.is_upsert() && target.place_key() == "path");
        let all = plan(
            "topics: [t]",
            "path: o, create: true, partition_by: {day: \"to_date(at)\"}, roll: {max_age: 5s}",
        );
        let all = all.unwrap();
        let Target::Delta(delta) = &all.routes[0].sinks[0].target else { panic!() };
        assert!(delta.creates && delta.partition_by[0].name == "day");
        assert_eq!(delta.roll.age_max.as_secs(), 5);
    }

    #[test]
    fn mistakes_are_told() {
        for (sink, expected) in [
            ("create: true", "`path` is missing"),
            ("path: 's3://b/o'", "a Delta table is in a directory of a local disk"),
            ("path: o, mode: upsert", "`mode` is not a known key here"),
            ("path: o, create: maybe", "`maybe` is not a known value here"),
            ("path: 'o/{topic}'", "filled in only with `per_topic: true`"),
        ] {
            let shown = plan("topics: [t]", sink).unwrap_err();
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn each_topic_has_its_own_table() {
        let keys = "topics: {pattern: 'db\\.(?<table>.+)'}, per_topic: true";
        let plan = plan(keys, "path: 'lake/{table}'").unwrap();
        let route = plan.routes[0].instance(&TopicName::new("db.users")).unwrap();
        let Target::Delta(delta) = &route.sinks[0].target else { panic!() };
        assert_eq!(delta.path, Path::new("lake/users"));
        assert!(plan.routes[0].instance(&TopicName::new("db.a/../b")).is_err());
    }
}
