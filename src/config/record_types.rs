//! `record_types:` of a route: records of several types in one topic, each with a schema, views and sinks of its own.

use std::collections::BTreeSet;

use super::mapping::{Context, Mapping, text};
use super::plan::{
    BadRecords, Framing, ReaderSchema, RecordType, Recursion, RegistryForm, Route, Sink, ValueForm,
};
use super::sink::DeadLetter;
use super::subject::{self, RECORD, check_placeholders, is_plain};
use super::tree::{Key, Node, Span};
use super::{Problem, keys, route, sink};

/// Stands for all types that are not named.
const OTHERS: &str = "*";

/// Full names and titles are as long as their authors like; this one is part of identities and subjects.
const NAME_BYTES_MAX: usize = 200;

/// What the types of a route share.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// What identities of sinks begin with.
    pub owner: &'a str,
    /// What is filled in in subjects, the type apart.
    pub placeholders: &'a [String],
    /// Of the topics.
    pub digest: &'a [String; 2],
    pub letters: &'a [DeadLetter],
}

#[derive(Default)]
pub struct ReadTypes {
    pub types: Vec<RecordType>,
    /// Of all types, with their places in the file.
    pub sinks: Vec<(Sink, Span)>,
    pub others: Option<BadRecords>,
    /// Of records of other types.
    dead_letters: Vec<Sink>,
    others_span: Span,
}

pub fn read(
    mapping: &Mapping<'_>,
    value: Option<&ValueForm>,
    place: Place<'_>,
    context: &mut Context<'_>,
) -> ReadTypes {
    check_beside(mapping, context);
    let shared = shared_form(mapping, value, context);
    let mut read = ReadTypes::default();
    for (key, node) in mapping.named("record_types", context) {
        if key.name == OTHERS {
            read.others_span = key.span;
            if let Some(own) = Mapping::open(node, &keys::OTHER_TYPES, context) {
                let given = own.get("bad_records");
                let given = given.map(|node| route::settling(place.owner, node, place.letters, context));
                let (policy, dead_letters) = given.unwrap_or((BadRecords::Stop, Vec::new()));
                (read.others, read.dead_letters) = (Some(policy), dead_letters);
            }
        } else {
            read_type(key, node, &shared, place, &mut read, context);
        }
    }
    if read.types.is_empty() {
        let problem = Problem::new(mapping.place("record_types"), "no record type is named");
        context.problems.push(problem.hint("for example `shop.OrderPaid: {sinks: {…}}`"));
    }
    read
}

fn read_type(
    key: &Key,
    node: &Node,
    shared: &RegistryForm,
    place: Place<'_>,
    read: &mut ReadTypes,
    context: &mut Context<'_>,
) {
    check_name(key, context);
    let Some(own) = Mapping::open(node, &keys::RECORD_TYPE, context) else {
        return;
    };
    let form = form(&key.name, &own, shared, place, context);
    let views = route::views(&own, context);
    own.require("sinks", context);
    let owner = format!("{}/{}", place.owner, key.name);
    let record_type = read.types.len();
    for (sink, span) in sink::read_all(&owner, &own, &views, place.digest, context) {
        let name = format!("{}/{}", key.name, sink.name);
        read.sinks.push((Sink { name, record_type, ..sink }, span));
    }
    read.types.push(RecordType { name: key.name.clone(), form, views });
}

/// What a type is read as: as the route says, but for what it says itself.
fn form(
    name: &str,
    own: &Mapping<'_>,
    shared: &RegistryForm,
    place: Place<'_>,
    context: &mut Context<'_>,
) -> RegistryForm {
    let mut form = RegistryForm { record_type: Some(name.to_owned()), ..shared.clone() };
    if own.get("reader_schema").is_some()
        && let Some(schema) = route::reader_schema(own, context)
    {
        form.schema = schema;
    }
    let mut subject = form.subject.take();
    if let Some(node) = own.get("subject")
        && let Some(given) = subject::name(node, context)
    {
        let known: Vec<String> = place.placeholders.iter().cloned().chain([RECORD.to_owned()]).collect();
        check_placeholders(&given, node.span, &known, context);
        if matches!(form.schema, ReaderSchema::Id(_) | ReaderSchema::File(_)) {
            context.problem(node.span, "this subject would never be asked for");
        }
        subject = Some(given);
    }
    let placeholder = format!("{{{RECORD}}}");
    let subject = subject.unwrap_or_else(|| placeholder.clone());
    form.subject = Some(subject.replace(&placeholder, name));
    form
}

/// What is said of all types at once; the default where it is wrong, so that the types are looked at.
fn shared_form(mapping: &Mapping<'_>, value: Option<&ValueForm>, context: &mut Context<'_>) -> RegistryForm {
    let default = RegistryForm {
        schema: ReaderSchema::Latest,
        subject: None,
        format: None,
        message: None,
        record_type: None,
        framing: Framing::Confluent,
        recursion: Recursion::Refuse,
        is_validated: false,
    };
    match value {
        Some(ValueForm::Registry(form)) => {
            if form.message.is_some() {
                let message = "`message` is of no use beside `record_types`, where each message is a type";
                let problem = Problem::new(mapping.place("value"), message);
                context.problems.push(problem.hint("leave it out"));
            }
            RegistryForm { message: None, ..form.clone() }
        }
        Some(ValueForm::Raw(_) | ValueForm::Json(_)) => {
            let message =
                "`record_types` is of use only with `value: registry`, `avro`, `protobuf` or `json_schema`";
            let problem = Problem::new(mapping.place("value"), message);
            context.problems.push(problem.hint("other values do not say of what type they are"));
            default
        }
        None => default,
    }
}

/// Keys of a route that its types have instead.
fn check_beside(mapping: &Mapping<'_>, context: &mut Context<'_>) {
    for name in ["views", "sinks"] {
        if mapping.names(name) {
            let message = format!("`{name}` of the route is of no use beside `record_types`");
            let problem = Problem::new(mapping.place(name), message);
            context.problems.push(problem.hint("put it below the type whose records it is for"));
        }
    }
    let tombstones = word("tombstones", mapping, context);
    let refused = match tombstones.as_deref() {
        // It is the default, too: where nobody asks for it, nobody is told.
        Some("keep") if mapping.own("tombstones").is_some() => Some("there is no row that would keep them"),
        Some("delete") => Some("no sink is told which key they delete"),
        _ => None,
    };
    if let Some(why) = refused {
        let message = format!("records without a value have no type, so that {why}");
        let problem = Problem::new(mapping.place("tombstones"), message);
        context.problems.push(problem.hint("with `record_types` they are dropped: write `tombstones: skip`"));
    }
    if word("envelope", mapping, context).is_some_and(|word| word == "debezium") {
        let message = "`envelope: debezium` does not go with `record_types`";
        let problem = Problem::new(mapping.place("envelope"), message);
        context.problems.push(problem.hint(
            "change events of several tables are several topics: a route for each, or `per_topic: true`; here \
             `envelope: none`",
        ));
    }
}

/// What a key of few words says, here or in the defaults. What is wrong with it is told where it is read.
fn word(name: &str, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<String> {
    let told = context.problems.len();
    let word = text(mapping.get(name)?, context);
    context.problems.truncate(told);
    word
}

fn check_name(key: &Key, context: &mut Context<'_>) {
    let is_plain = |char: char| is_plain(char) && !"{}".contains(char);
    if key.name.is_empty() || key.name.len() > NAME_BYTES_MAX || !key.name.chars().all(is_plain) {
        let problem = Problem::new(key.span, format!("`{}` is no name for a record type", key.name));
        context.problems.push(problem.hint(
            "the full name of an Avro record or a Protobuf message, or the title of a JSON Schema: at most 200 bytes, \
             without `/`, `?`, `#`, `%` and braces",
        ));
    }
}

/// Adds the sinks of dead letters of other types to those of the route.
pub fn add_letters(letters: &mut Vec<Sink>, types: &mut ReadTypes, context: &mut Context<'_>) {
    let names = |sinks: &[Sink]| sinks.iter().map(|sink| sink.name.clone()).collect::<BTreeSet<String>>();
    let others = std::mem::take(&mut types.dead_letters);
    if letters.is_empty() {
        *letters = others;
    } else if !others.is_empty() && names(letters) != names(&others) {
        let message = "`\"*\"` and the route itself name different dead letter targets";
        let problem = Problem::new(types.others_span, message);
        context.problems.push(problem.hint("name the same ones: the code of a dead letter says what it is"));
    }
}

impl Route {
    /// What values are read as that name schemas: one form, or one for each record type.
    pub fn value_forms(&self) -> Vec<&RegistryForm> {
        match &self.value {
            _ if !self.record_types.is_empty() => {
                self.record_types.iter().map(|record_type| &record_type.form).collect()
            }
            ValueForm::Registry(form) => vec![form],
            ValueForm::Raw(_) | ValueForm::Json(_) => Vec::new(),
        }
    }

    /// The route of each record type: with its form, views and sinks, called after it. If all records are of one type,
    /// that is the route itself.
    pub fn by_type(&self) -> Vec<Route> {
        if self.record_types.is_empty() {
            return vec![self.clone()];
        }
        let of_type = |(place, record_type): (usize, &RecordType)| {
            let own = self.sinks.iter().filter(|sink| sink.record_type == place);
            Route {
                name: format!("{}/{}", self.name, record_type.name),
                value: ValueForm::Registry(record_type.form.clone()),
                record_types: Vec::new(),
                other_types: None,
                views: record_type.views.clone(),
                sinks: own.map(|sink| Sink { record_type: 0, ..sink.clone() }).collect(),
                ..self.clone()
            }
        };
        self.record_types.iter().enumerate().map(of_type).collect()
    }
}

#[cfg(test)]
mod tests;
