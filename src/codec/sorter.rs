//! Which of its route's record types a record has: by the schema that it names, whatever that cannot say by itself by its
//! first bytes. Nothing is decoded for it.
//!
//! A type is called as serialisers call it: an Avro record and a Protobuf message by the full name, a JSON Schema by its
//! title. A schema may have several: an Avro union at the top has the number of a branch before each value, and a
//! Protobuf file a path to each of its messages.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use crate::config::plan::Framing;
use crate::model::{RecordRef, Reference, SchemaKey, code};

use super::avro::decode::{BadValue, Problem, long};
use super::fill::Rejection;
use super::frame::{Frame, FrameError};
use super::known::Known;
use super::limits::{BRANCHES_MAX, cut};
use super::registered::REFUSED_MAX;
use super::{Learnt, Rejected, Side, frame, json_schema, protobuf};

/// A schema may call its types what it likes; of each record's a message may be kept.
const NAME_SHOWN_MAX: usize = 200;

/// Tells the record types of a route apart.
#[derive(Debug)]
pub struct Sorter {
    /// As the route names them.
    names: Vec<String>,
    framing: Framing,
    schemas: Known<Types>,
}

/// The types that records of one schema have.
#[derive(Debug)]
enum Types {
    One(Kind),
    /// Of an Avro union, by branch.
    Branches(Vec<Kind>),
    /// Of a Protobuf file, by the paths of messages.
    Messages(HashMap<Vec<u64>, Kind>),
    Refused {
        code: &'static str,
        message: String,
        at: Instant,
    },
}

#[derive(Debug, Clone)]
enum Kind {
    /// By its place among the route's.
    Named(usize),
    /// Why it is none of them.
    Other(Arc<str>),
}

/// Records by their types.
#[derive(Debug)]
pub struct Sorted {
    /// Of each of the route's types, the indexes of its records.
    pub types: Vec<Vec<usize>>,
    pub rejected: Vec<Rejected>,
    /// Indexes of records that name no schema, as they have no value.
    pub tombstones: Vec<usize>,
}

impl Sorter {
    /// For these types, of records that name their schemas in this way.
    pub fn new(names: Vec<String>, framing: Framing) -> Self {
        Self { names, framing, schemas: Known::new() }
    }

    /// Schemas that values of `records` name and that have to be learnt first.
    pub fn missing(&self, records: &[RecordRef<'_>]) -> Vec<SchemaKey> {
        let (mut missing, mut seen) = (Vec::new(), HashSet::new());
        // Schemas come in runs: comparing with the last one saves most look-ups.
        let mut last = None;
        for record in records {
            let framed = record.value().map(|bytes| frame::parse(self.framing, Side::Value, record, bytes));
            let Some(Ok(Frame { schema, .. })) = framed else {
                continue;
            };
            if last != Some(schema) && !self.is_known(schema) && seen.insert(schema) {
                missing.push(schema);
            }
            last = Some(schema);
        }
        missing
    }

    /// The schema that the value of a record names.
    pub fn named(&self, record: &RecordRef<'_>) -> Option<SchemaKey> {
        let bytes = record.value()?;
        frame::parse(self.framing, Side::Value, record, bytes).ok().map(|frame| frame.schema)
    }

    /// The batch that comes next names these schemas: what was learnt of others may be forgotten.
    pub fn need(&mut self, keys: &Arc<HashSet<SchemaKey>>) {
        self.schemas.need(keys);
    }

    /// A refusal is asked about again after a while: the registry may have learnt the schema.
    fn is_known(&self, schema: SchemaKey) -> bool {
        match self.schemas.get(schema) {
            Some(Types::Refused { at, .. }) => at.elapsed() < REFUSED_MAX,
            Some(_) => true,
            None => false,
        }
    }

    /// Takes what the registry has under `key`: the route's types that records of it may have.
    pub fn learn(&mut self, key: SchemaKey, schema: &Learnt) -> Vec<usize> {
        let types = match schema {
            Learnt::Schema { kind, text, references } => self.types(key, kind, text, references),
            Learnt::Unknown => refused(code::UNKNOWN_ID, format!("the registry has no schema {key}")),
            Learnt::Unusable(why) => {
                refused(code::REFUSED_SCHEMA, format!("schema {key} cannot be used: {why}"))
            }
            Learnt::Foreign(why) => refused(code::FOREIGN_ID, why.clone()),
        };
        let named = types.named();
        let size = match &types {
            // Each of its names may be a message of its own.
            Types::Branches(kinds) => schema.size() + kinds.len() * NAME_SHOWN_MAX,
            Types::Messages(kinds) => schema.size() + kinds.len() * NAME_SHOWN_MAX,
            Types::One(_) => NAME_SHOWN_MAX,
            Types::Refused { message, .. } => message.len(),
        };
        self.schemas.insert(key, types, size);
        named
    }

    fn types(&self, key: SchemaKey, kind: &str, text: &str, references: &[Reference]) -> Types {
        let unusable = |problem: String| {
            refused(code::REFUSED_SCHEMA, format!("schema {key} cannot be used: {problem}"))
        };
        match kind {
            "AVRO" => match serde_json::from_str::<Value>(text) {
                Ok(Value::Array(branches)) if branches.len() > BRANCHES_MAX => {
                    unusable(format!("it is a union of more than {BRANCHES_MAX} types"))
                }
                Ok(Value::Array(branches)) => {
                    Types::Branches(branches.iter().map(|branch| self.kind(&avro_name(branch))).collect())
                }
                Ok(schema) => Types::One(self.kind(&avro_name(&schema))),
                Err(error) => unusable(error.to_string()),
            },
            "PROTOBUF" => match protobuf::parse(text, references) {
                Ok(file) => {
                    let messages = file.names().into_iter().map(|(path, name)| (path, self.kind(&name)));
                    Types::Messages(messages.collect())
                }
                Err(error) => unusable(error.to_string()),
            },
            "JSON" => Types::One(match json_schema::title(text) {
                Some(title) => self.kind(&title),
                None => Kind::Other("its schema has no title, which would say its type".into()),
            }),
            other => refused(
                code::SCHEMA_TYPE,
                format!("schema {key} is {other}; Avro, Protobuf and JSON Schemas can be read"),
            ),
        }
    }

    fn kind(&self, name: &str) -> Kind {
        match self.names.iter().position(|own| own == name) {
            Some(place) => Kind::Named(place),
            None => {
                let shown: String = name.chars().take(NAME_SHOWN_MAX).collect();
                Kind::Other(format!("its type `{shown}` is none of the route's `record_types`").into())
            }
        }
    }

    /// Why records of a schema, which was learnt, have no type.
    pub fn refusal(&self, key: SchemaKey) -> Option<&str> {
        match self.schemas.get(key) {
            Some(Types::Refused { message, .. }) => Some(message),
            _ => None,
        }
    }

    /// Puts the records of each type together. Every index is in exactly one list of the answer.
    pub fn sort(&self, records: &[RecordRef<'_>]) -> Sorted {
        let types = vec![Vec::new(); self.names.len()];
        let mut sorted = Sorted { types, rejected: Vec::new(), tombstones: Vec::new() };
        for (index, record) in records.iter().enumerate() {
            let Some(bytes) = record.value() else {
                sorted.tombstones.push(index);
                continue;
            };
            let Rejection { code, message, schema_id } = match self.kind_of(record, bytes) {
                Ok((_, Kind::Named(place))) => {
                    sorted.types[*place].push(index);
                    continue;
                }
                Ok((schema, Kind::Other(why))) => {
                    Rejection { code: code::RECORD_TYPE, message: why.to_string(), schema_id: Some(schema) }
                }
                Err(rejection) => rejection,
            };
            sorted.rejected.push(Rejected { index, code, message, schema_id });
        }
        sorted
    }

    /// The type of a record, and the schema that it names.
    fn kind_of(&self, record: &RecordRef<'_>, bytes: &[u8]) -> Result<(SchemaKey, &Kind), Rejection> {
        let frame = frame::parse(self.framing, Side::Value, record, bytes).map_err(|error| Rejection {
            code: FrameError::CODE,
            message: error.to_string(),
            schema_id: None,
        })?;
        let schema = frame.schema;
        let reject = |code, message| Rejection { code, message, schema_id: Some(schema) };
        let kind = match self.schemas.get(schema) {
            Some(Types::One(kind)) => kind,
            Some(Types::Branches(kinds)) => {
                let wrong = |problem: Problem| reject(problem.code(), problem.to_string());
                let (number, _) = long(frame.payload).map_err(|BadValue { problem, .. }| wrong(problem))?;
                let kind = usize::try_from(number).ok().and_then(|place| kinds.get(place));
                kind.ok_or_else(|| wrong(Problem::UnionBranch(number)))?
            }
            Some(Types::Messages(kinds)) => {
                let path = protobuf::path(frame.beside, frame.payload);
                let path = path.map_err(|bad| reject(bad.code, bad.message.clone()))?;
                kinds.get(&path).ok_or_else(|| {
                    let message =
                        format!("its schema has no message at the {} indexes that it names", path.len());
                    reject(FrameError::CODE, message)
                })?
            }
            Some(Types::Refused { code, message, .. }) => return Err(reject(*code, message.clone())),
            None => return Err(reject(code::UNKNOWN_ID, format!("schema {schema} was never looked up"))),
        };
        Ok((schema, kind))
    }
}

impl Types {
    /// Those that the route names.
    fn named(&self) -> Vec<usize> {
        let named = |kind: &Kind| match kind {
            Kind::Named(place) => Some(*place),
            Kind::Other(_) => None,
        };
        match self {
            Self::One(kind) => named(kind).into_iter().collect(),
            Self::Branches(kinds) => kinds.iter().filter_map(named).collect(),
            Self::Messages(kinds) => kinds.values().filter_map(named).collect(),
            Self::Refused { .. } => Vec::new(),
        }
    }
}

fn refused(code: &'static str, message: String) -> Types {
    // Each of its records repeats it.
    Types::Refused { code, message: cut(message), at: Instant::now() }
}

/// What Avro calls a type as a branch of a union: a named one by its full name.
fn avro_name(schema: &Value) -> String {
    match schema {
        Value::String(name) => name.clone(),
        Value::Object(attributes) => {
            let text = |name: &str| attributes.get(name).and_then(Value::as_str);
            match (text("name"), text("namespace")) {
                (Some(name), Some(namespace)) if !name.contains('.') && !namespace.is_empty() => {
                    format!("{namespace}.{name}")
                }
                (Some(name), _) => name.to_owned(),
                (None, _) => attributes.get("type").map_or_else(String::new, avro_name),
            }
        }
        _ => "union".to_owned(),
    }
}

#[cfg(test)]
mod tests;
