//! One route.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::form::{self, Registered};
use super::keys;
use super::mapping::{Context, Mapping, text, unknown, written};
use super::plan::{
    AllowIds, BadRecords, BatchLimits, Delta, KeyForm, OnDataLoss, OnNewSchema, RawForm, ReaderSchema,
    RegistryForm, Route, Sink, Target, Tombstones, ValueForm, View,
};
use super::record_types::{Place, ReadTypes};
use super::sink::DeadLetter;
use super::tree::{Key, Node, Span, Value};
use super::{Problem, envelope, record_types, sink, subject, template, topics, transactions, values};
use crate::model::{Offset, Partition, SinkSet, Start, StartHash, TopicName};

/// A route and the places that checks of several routes speak of.
pub struct ReadRoute {
    pub plan: Route,
    pub span: Span,
    pub sink_spans: Vec<Span>,
}

pub fn read(
    name: &Key,
    node: &Node,
    defaults: Option<Mapping<'_>>,
    letters: &[DeadLetter],
    context: &mut Context<'_>,
) -> Option<ReadRoute> {
    check_name("route", name, context);
    let mapping = Mapping::open(node, &keys::ROUTE, context)?.with_defaults(defaults);
    let topics = topics::read(&mapping, context);
    let is_per_topic = mapping.choice("per_topic", context) == "true";
    let is_isolated = mapping.choice("isolated", context) == "true";
    // Sinks of a topic's instance are told apart by the topic.
    let owner = if is_per_topic { format!("{}/{{topic}}", name.name) } else { name.name.clone() };
    let start = start(&mapping, context);
    let allow_ids = match mapping.choice("allow_ids", context).as_str() {
        "subject" => AllowIds::Subject,
        _ => AllowIds::Any,
    };
    let subjects = subject::read(&mapping, context);
    let key = key(&mapping, subjects.key, context);
    let has_types = mapping.names("record_types");
    let tombstones = match mapping.choice("tombstones", context).as_str() {
        // They have no type.
        _ if has_types => Tombstones::Skip,
        "skip" => Tombstones::Skip,
        "delete" => Tombstones::Delete,
        _ => Tombstones::Keep,
    };
    let on_data_loss = match mapping.choice("on_data_loss", context).as_str() {
        "continue" => OnDataLoss::Continue,
        _ => OnDataLoss::Stop,
    };
    let on_new_schema = match mapping.choice("on_new_schema", context).as_str() {
        "pin" => OnNewSchema::Pin,
        "stop" => OnNewSchema::Stop,
        _ => OnNewSchema::Widen,
    };
    let (bad_records, refused_rows, mut dead_letters) = bad_and_refused(&owner, &mapping, letters, context);
    let value = value(&mapping, subjects.value, context);
    let envelope = envelope::read(&mapping, value.as_ref(), context);
    let batch = batch(&mapping, context);
    let mut views = views(&mapping, context);
    let digest = topics.as_ref().map(|topics| topics.digest()).unwrap_or_default();
    let mut types = ReadTypes::default();
    let read_sinks = if has_types {
        let known = subject::placeholders(topics.as_ref(), is_per_topic);
        let place = Place { owner: &owner, placeholders: &known, digest: &digest, letters };
        types = record_types::read(&mapping, value.as_ref(), place, context);
        record_types::add_letters(&mut dead_letters, &mut types, context);
        std::mem::take(&mut types.sinks)
    } else {
        mapping.require("sinks", context);
        sink::read_all(&owner, &mapping, &views, &digest, context)
    };
    sink::check_required(&read_sinks, context);
    let (mut sinks, sink_spans): (Vec<_>, Vec<_>) = read_sinks.into_iter().unzip();
    let truncate = envelope::tell_tables(&mapping, envelope, &mut views, &mut sinks, context);
    let dead_letters = transactions::join_letters(&sinks, dead_letters);
    let sink_count = sinks.len() + dead_letters.len();
    if sink_count > SinkSet::SINKS_MAX {
        let message =
            format!("a route has at most {} sinks, this one has {}", SinkSet::SINKS_MAX, sink_count);
        context.problem(name.span, message);
    }
    let (topics, start) = (topics?, start?);
    let [topic_digest, exclude_digest] = digest;
    let read = ReadRoute {
        plan: Route {
            replays: None,
            start_hash: StartHash::of(&[&topic_digest, &exclude_digest, &format!("{start:?}")]),
            name: name.name.clone(),
            topics,
            is_per_topic,
            is_isolated,
            on_data_loss,
            key,
            value: value?,
            allow_ids,
            record_types: types.types,
            other_types: types.others,
            on_new_schema,
            start,
            tombstones,
            envelope,
            truncate,
            batch: batch?,
            bad_records,
            refused_rows,
            dead_letters,
            views,
            sinks,
        },
        span: name.span,
        sink_spans,
    };
    check_schema(&read, context);
    subject::check(&read.plan, &mapping, context);
    check_templates(&read, context);
    Some(read)
}

/// A pattern is known before its topics are: all of them are read as one schema, or each as its own.
fn check_schema(route: &ReadRoute, context: &mut Context<'_>) {
    let plan = &route.plan;
    if plan.topics.is_pattern() && !plan.is_per_topic && plan.is_schema_of_topic() {
        let message = format!("route `{}`: the topics of a pattern have no schema in common", plan.name);
        let problem = Problem::new(route.span, message);
        context.problems.push(problem.hint(
            "`per_topic: true` gives each topic its own; or name one: `reader_schema: {id: 17}` or `{file: …}`; \
             or land records as they are: `value: bytes`",
        ));
    }
}

/// Placeholders lead somewhere, and keep the topics of a `per_topic` route apart.
fn check_templates(route: &ReadRoute, context: &mut Context<'_>) {
    let plan = &route.plan;
    let known = template::known(&plan.topics);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let sinks = plan.sinks.iter().zip(route.sink_spans.iter().copied());
    for (sink, span) in sinks.chain(plan.dead_letters.iter().map(|letter| (letter, route.span))) {
        let (what, place) = match &sink.target {
            Target::Files { path, .. } | Target::Delta(Delta { path, .. }) => {
                ("path", path.display().to_string())
            }
            Target::Kafka { topic: Some(topic), .. } => ("topic", topic.to_string()),
            Target::Kafka { topic: None, .. } | Target::Console { .. } | Target::Http(_) => {
                ("topic", String::new())
            }
            Target::Postgres(postgres) => ("table", postgres.shown()),
        };
        let adopt = sink.adopt.as_deref().map(template::placeholders).unwrap_or_default();
        let used = template::placeholders(&place).into_iter().chain(template::placeholders(&sink.identity));
        let subjects = sink.target.subjects().into_iter().flat_map(template::placeholders);
        let used = used.chain(adopt).chain(subjects);
        if !plan.is_per_topic {
            if let Some(name) = used.into_iter().next() {
                let message =
                    format!("`{{{name}}}` of sink `{}` is filled in only with `per_topic: true`", sink.name);
                context.problem(span, message);
            }
            continue;
        }
        let is_elsewhere = matches!(sink.target, Target::Kafka { cluster: Some(_), .. });
        if what != "table" && place == "{topic}" && !is_elsewhere {
            let message =
                format!("sink `{}` writes into the topic that is read: it would come back", sink.name);
            context.problems.push(Problem::new(span, message).hint("for example `topic: '{topic}.copy'`"));
        }
        for name in used {
            if !known.contains(&name) {
                context.problems.push(unknown("placeholder", span, name, &known));
            }
        }
        let is_apart = !template::placeholders(&place).is_empty() || what == "topic" || sink.is_shared;
        if !is_apart || template::placeholders(&sink.identity).is_empty() {
            let what = if is_apart { "id" } else { what };
            let message =
                format!("sink `{}`: its `{what}` is the same for all topics of the route", sink.name);
            context.problems.push(Problem::new(span, message).hint("put `{topic}` into it"));
        }
    }
}

/// Names are part of identities, paths, metrics and SQL.
pub fn check_name(what: &str, key: &Key, context: &mut Context<'_>) {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == '-';
    if key.name.is_empty() || key.name.len() > 100 || !key.name.chars().all(is_plain) {
        let message = format!("`{}` is no name for a {what}", key.name);
        let problem = Problem::new(key.span, message);
        context.problems.push(problem.hint("letters, digits, `_` and `-`, at most 100"));
    }
}

/// `start:` of a route or a sink.
pub fn start(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Start> {
    match mapping.get("start") {
        Some(node) if matches!(node.value, Value::Map(_)) => Some(Start::Offsets(offsets(node, context))),
        _ => mapping.parsed("start", values::start, context),
    }
}

/// `{topic: {partition: offset}}`.
pub fn offsets(node: &Node, context: &mut Context<'_>) -> BTreeMap<TopicName, BTreeMap<Partition, Offset>> {
    let Value::Map(topics) = &node.value else {
        context.problem(node.span, "expected `{topic: {partition: offset}}`");
        return BTreeMap::new();
    };
    let mut offsets = BTreeMap::new();
    for (topic, node) in topics {
        let Value::Map(partitions) = &node.value else {
            context.problem(node.span, "expected `{partition: offset}`");
            continue;
        };
        let mut of_topic = BTreeMap::new();
        for (partition, node) in partitions {
            let offset = text(node, context).and_then(|text| Offset::new(text.parse().ok()?));
            match (partition.name.parse(), offset) {
                (Ok(number @ 0..), Some(offset)) => {
                    of_topic.insert(Partition(number), offset);
                }
                (Ok(0..), None) => context.problem(node.span, "an offset is a number from 0"),
                _ => context.problem(partition.span, "a partition is a number from 0"),
            }
        }
        offsets.insert(TopicName::new(&topic.name), of_topic);
    }
    offsets
}

/// The form of keys; the default where it is wrong, so that the rest of the route is looked at.
fn key(mapping: &Mapping<'_>, subject: Option<String>, context: &mut Context<'_>) -> KeyForm {
    let form = mapping.get("key").and_then(|node| key_form(node, subject, context));
    form.unwrap_or(KeyForm::Raw(RawForm::Bytes))
}

fn key_form(node: &Node, subject: Option<String>, context: &mut Context<'_>) -> Option<KeyForm> {
    let registered = |form| KeyForm::Registry(registry_form(form, ReaderSchema::Latest, subject.clone()));
    if let Value::Map(entries) = &node.value {
        return match form::with_options(entries, context) {
            Some(form) => form.map(registered),
            None => typed_json_file(node, context).map(KeyForm::Json),
        };
    }
    let word = text(node, context)?;
    let raw = || raw_form(&word).map(KeyForm::Raw);
    let form = Registered::of(&word).map(registered).or_else(raw);
    if form.is_none() {
        context.problems.push(unknown("value", node.span, written(node), &FORMS));
    }
    form
}

/// What may stand behind `key:` and `value:`.
const FORMS: [&str; 8] =
    ["registry", "avro", "protobuf", "json_schema", "bytes", "string", "json", "{json: {schema: {file: …}}}"];

const FORMS_WITH_OPTIONS: &[&str] = &["registry", "avro", "protobuf", "json_schema", "json"];

fn raw_form(word: &str) -> Option<RawForm> {
    match word {
        "bytes" => Some(RawForm::Bytes),
        "string" => Some(RawForm::String),
        "json" => Some(RawForm::Json),
        _ => None,
    }
}

fn registry_form(form: Registered, schema: ReaderSchema, subject: Option<String>) -> RegistryForm {
    RegistryForm {
        schema,
        subject,
        format: form.format,
        message: form.message,
        record_type: None,
        framing: form.framing,
        recursion: form.recursion,
        is_validated: form.is_validated,
    }
}

/// The form of values; with it goes the schema they are read as.
fn value(mapping: &Mapping<'_>, subject: Option<String>, context: &mut Context<'_>) -> Option<ValueForm> {
    let schema = reader_schema(mapping, context);
    let registered = |form| schema.map(|schema| ValueForm::Registry(registry_form(form, schema, subject)));
    let Some(node) = mapping.get("value") else {
        return Registered::of("registry").and_then(registered);
    };
    let form = if let Value::Map(entries) = &node.value {
        match form::with_options(entries, context) {
            Some(form) => return form.and_then(registered),
            None => typed_json_file(node, context).map(ValueForm::Json),
        }
    } else {
        let word = text(node, context)?;
        if let Some(form) = Registered::of(&word) {
            return registered(form);
        }
        if raw_form(&word).is_none() {
            context.problems.push(unknown("value", node.span, written(node), &FORMS));
        }
        raw_form(&word).map(ValueForm::Raw)
    };
    if let Some(given) = mapping.own("reader_schema") {
        context.problem(
            given.span,
            "`reader_schema` is of use only with `value: registry`, `avro`, `protobuf` or `json_schema`",
        );
    }
    form
}

/// The path in `{json: {schema: {file: path}}}`.
fn typed_json_file(node: &Node, context: &mut Context<'_>) -> Option<PathBuf> {
    let mut inner = node;
    for step in ["json", "schema", "file"] {
        let Value::Map(entries) = &inner.value else {
            context.problem(inner.span, "expected `{json: {schema: {file: path}}}`");
            return None;
        };
        let [(key, value)] = entries.as_slice() else {
            context.problem(inner.span, "expected `{json: {schema: {file: path}}}`");
            return None;
        };
        if key.name != step {
            let known = if step == "json" { FORMS_WITH_OPTIONS } else { &[step] };
            context.problems.push(unknown("key", key.span, &key.name, known));
            return None;
        }
        inner = value;
    }
    let given = text(inner, context)?;
    let path = context.environment.root().join(&given);
    if template::placeholders(&given).is_empty() && !path.is_file() {
        context.problem(inner.span, format!("there is no file `{}`", written(inner)));
    }
    Some(path)
}

pub fn reader_schema(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<ReaderSchema> {
    let Some(node) = mapping.get("reader_schema") else {
        return Some(ReaderSchema::Latest);
    };
    let expected = "expected `latest`, `{version: 3}`, `{id: 17}` or `{file: avro/order.avsc}`";
    let Value::Map(entries) = &node.value else {
        if text(node, context)? == "latest" {
            return Some(ReaderSchema::Latest);
        }
        context.problem(node.span, expected);
        return None;
    };
    let [(key, value)] = entries.as_slice() else {
        context.problem(node.span, expected);
        return None;
    };
    let given = text(value, context)?;
    let number = |context: &mut Context<'_>| match values::positive(&given) {
        Ok(number) => u32::try_from(number).ok(),
        Err(message) => {
            context.problem(value.span, message);
            None
        }
    };
    match key.name.as_str() {
        "version" => number(context).map(ReaderSchema::Version),
        "id" => number(context).map(ReaderSchema::Id),
        "file" => {
            let path = context.environment.root().join(&given);
            if template::placeholders(&given).is_empty() && !path.is_file() {
                let message = format!("there is no file `{}`", path.display());
                context.problem(value.span, message);
            }
            Some(ReaderSchema::File(path))
        }
        _ => {
            let known = ["version", "id", "file"];
            let problem = unknown("key", key.span, &key.name, &known);
            context.problems.push(problem);
            None
        }
    }
}

/// What bad records become, and those that a sink refuses; the sinks of their dead letters.
fn bad_and_refused(
    route: &str,
    mapping: &Mapping<'_>,
    letters: &[DeadLetter],
    context: &mut Context<'_>,
) -> (BadRecords, BadRecords, Vec<Sink>) {
    let bad = mapping.get("bad_records").map(|node| settling(route, node, letters, context));
    let (bad, own) = bad.unwrap_or((BadRecords::Stop, Vec::new()));
    let Some(node) = mapping.get("refused_rows") else {
        return (bad, bad, own);
    };
    let (refused, others) = settling(route, node, letters, context);
    let names = |sinks: &[Sink]| sinks.iter().map(|sink| sink.name.clone()).collect::<BTreeSet<String>>();
    if !own.is_empty() && !others.is_empty() && names(&own) != names(&others) {
        let message = "`refused_rows` and `bad_records` name different dead letter targets";
        let problem = Problem::new(node.span, message.to_owned());
        context.problems.push(problem.hint("name the same ones: the code of a dead letter says what it is"));
    }
    (bad, refused, if own.is_empty() { others } else { own })
}

/// What is said of bad records, and the sinks of their dead letters.
pub fn settling(
    route: &str,
    node: &Node,
    letters: &[DeadLetter],
    context: &mut Context<'_>,
) -> (BadRecords, Vec<Sink>) {
    let names: Vec<&Node> = match &node.value {
        Value::Map(entries) => match entries.as_slice() {
            [(key, value)] if key.name == "dead_letter" => match &value.value {
                Value::List(names) => names.iter().collect(),
                _ => vec![value],
            },
            _ => {
                context.problem(node.span, "expected `stop`, `skip` or `{dead_letter: name}`");
                return (BadRecords::Stop, Vec::new());
            }
        },
        _ => {
            return match text(node, context).as_deref() {
                Some("skip") => (BadRecords::Skip, Vec::new()),
                Some("stop") | None => (BadRecords::Stop, Vec::new()),
                Some(_) => {
                    let known = ["stop", "skip", "{dead_letter: name}"];
                    context.problems.push(unknown("value", node.span, written(node), &known));
                    (BadRecords::Stop, Vec::new())
                }
            };
        }
    };
    if names.is_empty() {
        context.problem(node.span, "no dead letter target is named");
    }
    let mut sinks: Vec<Sink> = Vec::new();
    for node in names {
        let Some(name) = text(node, context) else {
            continue;
        };
        if sinks.iter().any(|sink| sink.name == format!("dead_letter/{name}")) {
            context.problem(node.span, format!("`{}` is named twice", written(node)));
            continue;
        }
        match letters.iter().find(|letter| letter.name == name) {
            Some(letter) => sinks.push(letter.sink(route)),
            None => {
                let known: Vec<&str> = letters.iter().map(|letter| letter.name.as_str()).collect();
                context.problems.push(unknown("dead letter target", node.span, written(node), &known));
            }
        }
    }
    (BadRecords::DeadLetter, sinks)
}

fn batch(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<BatchLimits> {
    let batch = mapping.nested("batch", &keys::BATCH, context)?;
    Some(BatchLimits {
        rows_max: usize::try_from(batch.integer("max_rows", context)?).ok()?,
        bytes_max: usize::try_from(batch.bytes("max_bytes", context)?).ok()?,
        age_max: batch.duration("max_age", context)?,
    })
}

pub fn views(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Vec<View> {
    let mut views = Vec::new();
    for (key, node) in mapping.named("views", context) {
        check_name("view", key, context);
        if key.name == "batch" {
            context.problem(key.span, "`batch` is the name of the decoded records, not of a view");
        }
        // SQL is not expanded: a dollar sign in it is SQL's.
        match &node.value {
            Value::Scalar(scalar) => {
                views.push(View { name: key.name.clone(), sql: scalar.text.clone(), content: scalar.content })
            }
            _ => context.problem(node.span, format!("expected SQL, found {}", node.kind())),
        }
    }
    views
}
