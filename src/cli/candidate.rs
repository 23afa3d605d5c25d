//! `sidestream check --candidate`: would a schema that is not registered yet break a route?

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::anyhow;

use crate::codec::Side;
use crate::config::plan::{OnNewSchema, ReaderSchema, Route};
use crate::config::topics::matched;
use crate::engine::lane::Followed;
use crate::model::{Classify, Fault, SchemaId, SchemaKey, SchemaVersion, TopicName};
use crate::registry::{Newest, RegisteredSchema, Registry, RegistryError};

use super::check::{instances, print_line};
use super::follow::{self, Misfit};
use super::load::{self, Loaded};
use super::{Failure, build};

/// It has no id yet; those of a registry begin at 1.
const ID: SchemaId = SchemaId(0);

/// A schema in a file, and the subject it is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    subject: String,
    file: PathBuf,
}

/// Reads `SUBJECT=FILE`.
///
/// # Errors
/// What is expected instead.
pub fn parse(text: &str) -> Result<Candidate, String> {
    match text.split_once('=') {
        Some((subject, file)) if !subject.is_empty() && !file.is_empty() => {
            Ok(Candidate { subject: subject.to_owned(), file: PathBuf::from(file) })
        }
        _ => Err("write SUBJECT=FILE, for example orders-value=avro/order.avsc".to_owned()),
    }
}

/// What a route says to a candidate.
struct Finding {
    message: String,
    hint: Option<&'static str>,
}

/// Tells of each route that reads one of the subjects.
///
/// # Errors
/// [`Failure::Usage`] if a candidate cannot be looked at, [`Failure::Failed`] if one would break a route, or the registry
/// could not be asked.
pub async fn check(
    loaded: &Loaded,
    registry: Option<&dyn Registry>,
    candidates: &[Candidate],
) -> Result<(), Failure> {
    let Some(registry) = registry else {
        return Err(load::usage("`--candidate` needs a `schema_registry` in the file"));
    };
    let mut broken = 0;
    for candidate in candidates {
        let text = match std::fs::read_to_string(&candidate.file) {
            Ok(text) => text,
            Err(error) => {
                return Err(load::usage(&format!("cannot read `{}`: {error}", candidate.file.display())));
            }
        };
        let current = match registry.newest(&candidate.subject).await {
            Ok(current) => Some(current),
            Err(RegistryError::Unknown { .. }) => None,
            Err(error) => return Err(Failure::Failed(error.into())),
        };
        let newest = newest(candidate, text, current.as_ref());
        let mut is_read = false;
        for route in &loaded.plan.routes {
            for (instance, side) in readers(route, &candidate.subject)? {
                is_read = true;
                let finding = examine(&instance, side, &newest, current.as_ref(), registry, loaded).await?;
                broken += usize::from(finding.is_some());
                tell(&instance, candidate, &newest, finding);
            }
        }
        if !is_read {
            return Err(load::usage(&format!("no route reads subject `{}`", candidate.subject)));
        }
    }
    match broken {
        0 => Ok(()),
        count => Err(Failure::Failed(anyhow!("routes that a candidate would break: {count}"))),
    }
}

/// The candidate as the newest version. It references what the newest version does now.
fn newest(candidate: &Candidate, text: String, current: Option<&Newest>) -> Newest {
    let kind = match (current, candidate.file.extension().and_then(|extension| extension.to_str())) {
        (Some(current), _) => current.schema.kind.clone(),
        (None, Some("proto")) => "PROTOBUF".to_owned(),
        (None, Some("json")) => "JSON".to_owned(),
        (None, _) => "AVRO".to_owned(),
    };
    let references = current.map(|current| current.schema.references.clone()).unwrap_or_default();
    let number = current.map_or(Some(1), |current| Some(current.version.number? + 1));
    Newest {
        version: SchemaVersion { subject: candidate.subject.clone(), id: ID, number },
        schema: RegisteredSchema { id: SchemaKey::Id(ID), kind, text, references },
    }
}

/// The routes, or instances and record types of a route, whose values or keys are of a subject.
fn readers(route: &Route, subject: &str) -> Result<Vec<(Route, Side)>, Failure> {
    let all = match instances(route)? {
        Some(instances) => instances,
        // Topics that a pattern matches are named by the subject, as serialisers name it.
        None => {
            let topics = ["-value", "-key"].iter().filter_map(|suffix| subject.strip_suffix(suffix));
            let topics: BTreeSet<TopicName> = topics.map(TopicName::new).collect();
            let matched = matched(std::slice::from_ref(route), &[], &topics).into_iter().flatten();
            let each = matched.map(|topic| route.instance(&topic));
            each.collect::<Result<_, _>>().map_err(anyhow::Error::from)?
        }
    };
    let mut readers = Vec::new();
    for of_type in all.iter().flat_map(Route::by_type) {
        for side in Side::BOTH {
            let form = build::registry_form(&of_type, side);
            if form.is_some_and(|form| build::subject(&of_type, side, form) == subject) {
                readers.push((of_type.clone(), side));
            }
        }
    }
    Ok(readers)
}

/// What would be wrong.
async fn examine(
    route: &Route,
    side: Side,
    newest: &Newest,
    current: Option<&Newest>,
    registry: &dyn Registry,
    loaded: &Loaded,
) -> Result<Option<Finding>, Failure> {
    let follows = build::registry_form(route, side).is_some_and(|form| form.schema == ReaderSchema::Latest);
    if follows && current.is_some() && route.on_new_schema == OnNewSchema::Stop {
        let message = "it stops before the first record of it (`on_new_schema: stop`)".to_owned();
        let hint = "a restart reads as the new schema; `on_new_schema: widen` takes it without one";
        return Ok(Some(Finding { message, hint: Some(hint) }));
    }
    let is_read = !follows || route.on_new_schema == OnNewSchema::Pin;
    let fitted = async {
        if is_read && (current.is_some() || !follows) {
            written(route, side, newest, registry).await?;
        }
        if follows {
            taken(route, side, newest, current, registry).await?;
        }
        Ok::<(), Misfit>(())
    };
    match fitted.await {
        Ok(()) => Ok(None),
        Err(Misfit::Reader(error)) if is_transient(&error) => Err(Failure::Failed(error.into())),
        Err(misfit) => {
            let (message, hint) = misfit.shown(loaded);
            Ok(Some(Finding { message, hint }))
        }
    }
}

fn is_transient(error: &build::ReaderError) -> bool {
    matches!(error, build::ReaderError::Registry { source, .. } if source.fault() == Fault::Transient)
}

/// Can records that are written with the candidate be read as the reader schema that stays?
async fn written(route: &Route, side: Side, newest: &Newest, registry: &dyn Registry) -> Result<(), Misfit> {
    let decoders = build::decoders(route, Some(registry)).await.map_err(Misfit::Reader)?;
    let mut bound = build::bind(route, decoders).await.map_err(Misfit::Problems)?;
    bound.decoders.learn(newest.schema.id, follow::learnt(newest.schema.clone()));
    let mut readers = bound.decoders.each().iter();
    match readers.find_map(|decoder| decoder.refusal(side, newest.schema.id)) {
        None => Ok(()),
        Some(refusal) => Err(Misfit::Broken {
            message: format!("its records would be bad records: {refusal}"),
            hint: "make it a schema that the reader schema can read (compatibility FORWARD), or change the route's \
                   `reader_schema`",
        }),
    }
}

/// Can the route read as the candidate, what is written so far too, and may sinks go on where they are?
async fn taken(
    route: &Route,
    side: Side,
    newest: &Newest,
    current: Option<&Newest>,
    registry: &dyn Registry,
) -> Result<(), Misfit> {
    let former: Vec<Followed> =
        current.map(|current| Followed { side, version: current.version.clone() }).into_iter().collect();
    let bound = follow::bind(route, std::slice::from_ref(newest), &former, registry).await?;
    if current.is_none() {
        return Ok(());
    }
    let decoders = build::decoders(route, Some(registry)).await.map_err(Misfit::Reader)?;
    let now = build::bind(route, decoders).await.map_err(Misfit::Problems)?;
    for sink in &route.sinks {
        follow::check_rows(&sink.name, &now.schema(sink), &bound.schema(sink))?;
    }
    Ok(())
}

fn tell(route: &Route, candidate: &Candidate, newest: &Newest, finding: Option<Finding>) {
    let Some(Finding { message, hint }) = finding else {
        let Candidate { subject, file } = candidate;
        return print_line(&format!(
            "route {}: `{}` fits as the next version of `{subject}`",
            route.name,
            file.display()
        ));
    };
    print_line(&format!("route {}: {}", route.name, named(&message, newest).trim_end()));
    if let Some(hint) = hint {
        print_line(&format!("  hint: {hint}"));
    }
}

/// A message that speaks of the candidate by its name, not by an id that it does not have.
fn named(message: &str, newest: &Newest) -> String {
    let (version, id) = (newest.version.to_string(), newest.schema.id.to_string());
    let message = message.replace(&format!("schema {version}"), "the candidate");
    let message = message.replace(&version, "the candidate");
    message.replace(&format!("schema {id} "), "the candidate ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::{Environment, plan, read};
    use crate::registry::RegistryClient;
    use crate::registry::embedded::EmbeddedRegistry;

    const FIRST: &str = r#"{"type": "record", "name": "R", "fields": [
        {"name": "id", "type": "int"}, {"name": "note", "type": ["null", "string"], "default": null}]}"#;

    fn with(fields: &str) -> String {
        format!(r#"{{"type": "record", "name": "R", "fields": [{fields}]}}"#)
    }

    fn route(text: &str) -> Route {
        let text = format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{url: \"http://r\"}}\nroutes:\n  \
             r: {{topics: [t], {text}, sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
        );
        read(&text, &Environment::new([], Path::new("."))).unwrap().routes.remove(0)
    }

    /// What is wrong with a candidate for `t-value`, which has one version.
    async fn found(route: &Route, text: &str) -> Option<String> {
        let server = EmbeddedRegistry::start().await.unwrap();
        let registry =
            RegistryClient::new(&plan::Registry::at(server.url(), Duration::from_secs(5))).unwrap();
        registry.register("t-value", plan::SchemaFormat::Avro, FIRST).await.unwrap();
        let current = registry.newest("t-value").await.unwrap();
        let candidate = parse("t-value=x.avsc").unwrap();
        let newest = newest(&candidate, text.to_owned(), Some(&current));
        assert_eq!(newest.version.number, Some(2));
        let fitted = async {
            if route.on_new_schema == OnNewSchema::Widen {
                taken(route, Side::Value, &newest, Some(&current), &registry).await
            } else {
                written(route, Side::Value, &newest, &registry).await
            }
        };
        let message = match fitted.await {
            Ok(()) => return None,
            Err(Misfit::Broken { message, .. }) => message,
            Err(Misfit::Reader(error)) => error.to_string(),
            Err(Misfit::Problems(problems)) => problems[0].message.clone(),
        };
        Some(named(&message, &newest))
    }

    #[tokio::test]
    async fn a_candidate_that_widens_fits_and_one_that_breaks_is_told() {
        let id = r#"{"name": "id", "type": "int"}"#;
        let plain = route("key: bytes");
        let view = route("views: {v: SELECT note FROM batch}");
        let wider =
            with(r#"{"name": "id", "type": "long"}, {"name": "new", "type": "string", "default": ""}"#);
        assert_eq!(found(&plain, &wider).await, None);
        for (route, candidate, expected) in [
            (&plain, "{", "the candidate cannot be its reader schema"),
            (&view, with(id).as_str(), "view `v`: No field named"),
            (
                &plain,
                with(&format!(r#"{id}, {{"name": "new", "type": "string"}}"#)).as_str(),
                "`new`: the reader needs this field",
            ),
            (
                &plain,
                with(r#"{"name": "id", "type": "double"}"#).as_str(),
                "sink `s`: column `id` is Int32 and would become Float64",
            ),
        ] {
            let said = found(route, candidate).await.unwrap_or_default();
            assert!(said.contains(expected), "no {expected:?} in {said}");
            assert!(!said.contains("id 0"), "{said}");
        }
    }

    #[tokio::test]
    async fn what_is_written_with_it_has_to_be_readable_where_the_schema_stays() {
        let pinned = route("on_new_schema: pin");
        assert_eq!(found(&pinned, &with(r#"{"name": "id", "type": "int"}"#)).await, None);
        let said = found(&pinned, &with(r#"{"name": "id", "type": "string"}"#)).await.unwrap_or_default();
        assert!(said.contains("the candidate cannot be read as the route's reader schema, id 1 "), "{said}");
        assert!(said.contains("`id`: the writer's"), "{said}");
    }

    #[test]
    fn a_subject_finds_its_routes() {
        let named = route("key: registry, subject: {value: mine}");
        let sides = |subject: &str| -> Vec<Side> {
            let readers = readers(&named, subject).unwrap_or_default();
            readers.into_iter().map(|(_, side)| side).collect()
        };
        assert_eq!(sides("mine"), [Side::Value]);
        assert_eq!(sides("t-key"), [Side::Key]);
        assert!(sides("t-value").is_empty());
        let pattern = Route { is_per_topic: true, ..pattern() };
        let found = readers(&pattern, "shop.users-value").unwrap_or_default();
        assert_eq!(found[0].0.name, "r/shop.users");
        assert!(readers(&pattern, "other-value").unwrap_or_default().is_empty());
        assert!(parse("no-file").is_err() && parse("=x").is_err());
    }

    fn pattern() -> Route {
        let text = "version: 1\nkafka: {bootstrap.servers: b, group.id: g}\nschema_registry: {url: \"http://r\"}\n\
                    routes:\n  r: {topics: {pattern: 'shop\\..*'}, per_topic: true, \
                    sinks: {s: {csv: {path: 'out/{topic}'}}}}\n";
        read(text, &Environment::new([], Path::new("."))).unwrap().routes.remove(0)
    }
}
