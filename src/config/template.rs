//! `{topic}` and the pattern's groups, filled in for each topic of a `per_topic` route.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::plan::{
    Delta, KeyForm, ReaderSchema, RegistryForm, Route, Sink, Subject, Target, ValueForm, WrittenForm,
};
use super::postgres::TABLE_NAME_BYTES_MAX;
use super::topics::Topics;
use crate::model::TopicName;

/// The placeholder every `per_topic` route has.
const TOPIC: &str = "topic";

/// What a topic's name makes of a template is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{template}` becomes `{filled}` for topic `{topic}`: {problem}")]
pub struct TemplateError {
    template: String,
    filled: String,
    topic: TopicName,
    problem: &'static str,
}

/// The names between braces in a template.
pub fn placeholders(template: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = template;
    while let Some((_, after)) = rest.split_once('{') {
        if let Some((name, _)) = after.split_once('}')
            && is_name(name)
        {
            names.push(name);
        }
        rest = after;
    }
    names
}

fn is_name(text: &str) -> bool {
    let is_letter = |char: char| char.is_ascii_alphanumeric() || char == '_';
    !text.is_empty() && text.chars().all(is_letter)
}

/// The placeholders that templates of a route with these topics may use.
pub fn known(topics: &Topics) -> Vec<String> {
    let mut known = topics.groups();
    known.push(TOPIC.to_owned());
    known
}

impl Route {
    /// The route of one topic of a `per_topic` route.
    ///
    /// # Errors
    /// If a path would leave its place, or a topic's name would be none.
    pub fn instance(&self, topic: &TopicName) -> Result<Route, TemplateError> {
        let mut values = self.topics.captured(topic);
        values.insert(TOPIC.to_owned(), topic.as_str().to_owned());
        let filler = Filler { topic, values };
        let mut route = self.clone();
        route.name = format!("{}/{topic}", self.name);
        route.topics = Topics::Named(vec![topic.clone()]);
        route.is_per_topic = false;
        match &mut route.value {
            ValueForm::Json(path) => *path = filler.path(path)?,
            ValueForm::Registry(form) => filler.form(form)?,
            ValueForm::Raw(_) => {}
        }
        for record_type in &mut route.record_types {
            filler.form(&mut record_type.form)?;
        }
        match &mut route.key {
            KeyForm::Json(path) => *path = filler.path(path)?,
            KeyForm::Registry(form) => form.subject = filler.subject(form)?,
            KeyForm::Raw(_) => {}
        }
        for sink in route.sinks.iter_mut().chain(&mut route.dead_letters) {
            filler.sink(sink)?;
        }
        Ok(route)
    }

    /// Does each topic have a schema of its own?
    pub fn is_schema_of_topic(&self) -> bool {
        let is_template = |path: &Path| !placeholders(&path.to_string_lossy()).is_empty();
        let is_own = |form: &RegistryForm| {
            form.subject.as_deref().is_none_or(|subject| !placeholders(subject).is_empty())
        };
        let of_key = match &self.key {
            KeyForm::Registry(form) => is_own(form),
            KeyForm::Json(path) => is_template(path),
            KeyForm::Raw(_) => false,
        };
        let of_value = self.value_forms().into_iter().any(|form| match &form.schema {
            ReaderSchema::Latest | ReaderSchema::Version(_) => is_own(form),
            ReaderSchema::Id(_) => false,
            ReaderSchema::File(path) => is_template(path),
        });
        let of_json = matches!(&self.value, ValueForm::Json(path) if is_template(path));
        of_key || of_value || of_json
    }

    /// The subject of the reader schema of its values, or of its keys: where serialisers put it (TopicNameStrategy),
    /// unless the file says another one. Of several topics the first one counts.
    pub fn subject(&self, form: &RegistryForm, suffix: &str) -> String {
        let topic = self.replays.as_ref().or_else(|| self.topics.named().first());
        let topic = topic.map_or("", TopicName::as_str);
        match &form.subject {
            Some(subject) => subject.replace(&format!("{{{TOPIC}}}"), topic),
            None => format!("{topic}-{suffix}"),
        }
    }

    /// The topics this route writes to, as far as the file names them.
    pub fn outputs(&self) -> Vec<TopicName> {
        let sinks = self.sinks.iter().chain(&self.dead_letters);
        sinks
            .filter_map(|sink| match &sink.target {
                Target::Kafka { topic, cluster: None, .. } => topic.clone(),
                Target::Kafka { cluster: Some(_), .. }
                | Target::Files { .. }
                | Target::Console { .. }
                | Target::Http(_)
                | Target::Postgres(_)
                | Target::Delta(_) => None,
            })
            .collect()
    }
}

impl Target {
    /// The subjects that a kafka sink names.
    pub fn subjects(&self) -> Vec<&str> {
        let Self::Kafka { key, value, .. } = self else {
            return Vec::new();
        };
        let named = key.iter().chain(value).filter_map(|written| match &written.form {
            WrittenForm::Registered(schema) => match &schema.subject {
                Subject::Literal(name) => Some(name.as_str()),
                Subject::Topic | Subject::Record | Subject::TopicRecord => None,
            },
            WrittenForm::Text | WrittenForm::Json => None,
        });
        named.collect()
    }

    fn subjects_mut(&mut self) -> Vec<&mut String> {
        let Self::Kafka { key, value, .. } = self else {
            return Vec::new();
        };
        let named = key.iter_mut().chain(value).filter_map(|written| match &mut written.form {
            WrittenForm::Registered(schema) => match &mut schema.subject {
                Subject::Literal(name) => Some(name),
                Subject::Topic | Subject::Record | Subject::TopicRecord => None,
            },
            WrittenForm::Text | WrittenForm::Json => None,
        });
        named.collect()
    }
}

struct Filler<'a> {
    topic: &'a TopicName,
    values: BTreeMap<String, String>,
}

impl Filler<'_> {
    fn sink(&self, sink: &mut Sink) -> Result<(), TemplateError> {
        sink.identity = self.text(&sink.identity);
        sink.adopt = sink.adopt.as_deref().map(|former| self.text(former));
        for subject in sink.target.subjects_mut() {
            *subject = self.text(subject);
        }
        match &mut sink.target {
            Target::Files { path, .. } | Target::Delta(Delta { path, .. }) => *path = self.path(path)?,
            Target::Kafka { topic: Some(topic), .. } => {
                let filled = self.text(topic.as_str());
                if filled.is_empty() || filled.len() > 249 {
                    return Err(self.error(topic.as_str(), filled, "that is no topic name"));
                }
                *topic = TopicName::new(&filled);
            }
            Target::Postgres(postgres) => {
                if let Some(schema) = &mut postgres.schema {
                    *schema = self.table_name(schema)?;
                }
                postgres.table = self.table_name(&postgres.table)?;
            }
            Target::Kafka { topic: None, .. } | Target::Console { .. } | Target::Http(_) => {}
        }
        Ok(())
    }

    fn form(&self, form: &mut RegistryForm) -> Result<(), TemplateError> {
        match &mut form.schema {
            ReaderSchema::File(path) => *path = self.path(path)?,
            ReaderSchema::Latest | ReaderSchema::Version(_) | ReaderSchema::Id(_) => {
                form.subject = self.subject(form)?
            }
        }
        Ok(())
    }

    fn subject(&self, form: &RegistryForm) -> Result<Option<String>, TemplateError> {
        let Some(template) = &form.subject else {
            return Ok(None);
        };
        let filled = self.text(template);
        if filled.is_empty() {
            return Err(self.error(template, filled, "that is no subject"));
        }
        Ok(Some(filled))
    }

    /// PostgreSQL cuts longer names, and two tables would become one.
    fn table_name(&self, template: &str) -> Result<String, TemplateError> {
        let filled = self.text(template);
        if filled.is_empty() || filled.len() > TABLE_NAME_BYTES_MAX {
            return Err(self.error(template, filled, "that is no name of a table: it has 1 to 63 bytes"));
        }
        Ok(filled)
    }

    fn text(&self, template: &str) -> String {
        let mut filled = template.to_owned();
        for (name, value) in &self.values {
            filled = filled.replace(&format!("{{{name}}}"), value);
        }
        filled
    }

    /// A group may be empty, `.` or `..`: the path must stay as deep as its template, and below it.
    fn path(&self, template: &Path) -> Result<PathBuf, TemplateError> {
        let shown = template.display().to_string();
        let filled = self.text(&shown);
        let path = PathBuf::from(&filled);
        let depth =
            |path: &Path| path.components().filter(|part| matches!(part, Component::Normal(_))).count();
        if depth(&path) != depth(template) || path.components().count() != template.components().count() {
            return Err(self.error(&shown, filled, "that is another directory than was meant"));
        }
        Ok(path)
    }

    fn error(&self, template: &str, filled: String, problem: &'static str) -> TemplateError {
        TemplateError { template: template.to_owned(), filled, topic: self.topic.clone(), problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, read};

    fn route(text: &str) -> Route {
        let text = format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{url: \"http://r\"}}\n\
             dead_letters: {{q: {{jsonl: {{path: out/bad}}}}}}\nroutes:\n  r: {text}\n"
        );
        read(&text, &Environment::new([], Path::new("."))).unwrap().routes.remove(0)
    }

    #[test]
    fn each_topic_has_its_own_sinks() {
        let route = route(
            "{topics: {pattern: 'shop\\.(?<table>\\w+)'}, per_topic: true, value: bytes, \
             bad_records: {dead_letter: q}, sinks: {\
             files: {parquet: {path: 'out/{table}/x'}}, copy: {kafka: {topic: '{topic}.copy', \
             value: {format: avro, subject: {literal: '{table}-rows'}}}}}}",
        );
        let instance = route.instance(&TopicName::new("shop.users")).unwrap();
        assert_eq!(instance.name, "r/shop.users");
        assert_eq!(instance.topics.named(), [TopicName::new("shop.users")]);
        let identities: Vec<&str> =
            instance.sinks.iter().chain(&instance.dead_letters).map(|sink| sink.identity.as_str()).collect();
        assert_eq!(identities, ["r/shop.users/files", "r/shop.users/copy", "r/shop.users/dead_letter/q"]);
        assert!(format!("{:?}", instance.sinks[0].target).contains("\"out/users/x\""));
        assert!(format!("{:?}", instance.dead_letters[0].target).contains("\"out/bad/r/shop.users\""));
        assert_eq!(instance.outputs(), [TopicName::new("shop.users.copy")]);
        assert_eq!(instance.sinks[1].target.subjects(), ["users-rows"]);
        assert_eq!(instance.start_hash, route.start_hash);
    }

    #[test]
    fn a_subject_is_filled_in_or_shared_by_all_topics() {
        let registry = "schema_registry: {url: \"http://r\"}\nroutes:\n  r: ";
        let read_route = |route: &str| {
            let text =
                format!("version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\n{registry}{route}\n");
            read(&text, &Environment::new([], Path::new("."))).map(|mut plan| plan.routes.remove(0))
        };
        let subjects = |route: &Route| {
            let (ValueForm::Registry(value), KeyForm::Registry(key)) = (&route.value, &route.key) else {
                panic!()
            };
            [route.subject(value, "value"), route.subject(key, "key")]
        };
        let pattern = "topics: {pattern: 'shop\\.(?<table>\\w+)'}, key: registry, \
                       sinks: {s: {csv: {path: 'out/{topic}'}}}";
        let each = |subject: &str| {
            let route = read_route(&format!("{{{pattern}, per_topic: true, subject: {subject}}}")).unwrap();
            subjects(&route.instance(&TopicName::new("shop.users")).unwrap())
        };
        assert_eq!(each("~"), ["shop.users-value", "shop.users-key"]);
        assert_eq!(each("'acme.{table}'"), ["acme.users", "shop.users-key"]);
        assert_eq!(each("{key: '{topic}.{table}.id'}"), ["shop.users-value", "shop.users.users.id"]);
        let named = "topics: [a, b], key: avro, sinks: {s: {csv: {path: out/s}}}";
        let route = read_route(&format!("{{{named}, subject: {{value: 'x-{{topic}}', key: all}}}}")).unwrap();
        assert_eq!(subjects(&route), ["x-a", "all"]);
        // One subject is the schema in common that the topics of a pattern need.
        let plain = pattern.replace("out/{topic}", "out/s");
        let route = read_route(&format!("{{{plain}, subject: {{value: v, key: k}}}}")).unwrap();
        assert_eq!(subjects(&route), ["v", "k"]);
        assert!(read_route(&format!("{{{plain}, subject: v}}")).is_err());
    }

    #[test]
    fn a_group_never_leads_elsewhere() {
        let route = route(
            "{topics: {pattern: 'shop(?<rest>.*)'}, per_topic: true, value: bytes, \
             sinks: {files: {csv: {path: 'out/{rest}'}}}}",
        );
        for bad in ["shop", "shop.", "shop.."] {
            let error = route.instance(&TopicName::new(bad)).unwrap_err();
            assert!(error.to_string().contains("another directory"), "{error}");
        }
        route.instance(&TopicName::new("shop...")).unwrap();
    }

    #[test]
    fn placeholders_are_names_between_braces() {
        assert_eq!(placeholders("a/{topic}-{x_1}/{}/{not one}"), ["topic", "x_1"]);
        assert_eq!(placeholders("{{topic}}"), ["topic"]);
        assert!(placeholders("}{").is_empty());
    }
}
