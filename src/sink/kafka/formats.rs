//! Keys and values in the formats of the schema registry: which subject a schema is of, where it comes from, and rows
//! written with it.
//!
//! A schema is fetched or registered once, when rows need it first; an outage of the registry is one of the sink. A topic
//! that rows name may have a subject of its own.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, StructArray, new_empty_array};
use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;

use crate::config::plan::{SchemaSource, Subject, WriterSchema, Written, WrittenForm};
use crate::encode::{Bound, Misfit, Unfit, Writer, schema_text};
use crate::model::{Classify, Fault, Hint, Reference, SchemaId};
use crate::registry::{Registry, RegistryError};
use crate::render::Values;
use crate::sink::SinkError;

use super::KafkaSinkOptions;

/// Schemas kept: each topic that rows name may have one. All are asked for again when there are more.
const SCHEMAS_MAX: usize = 1000;

/// What of a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Key,
    Value,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "key",
            Self::Value => "value",
        })
    }
}

/// Why a schema cannot be written with.
#[derive(Debug, thiserror::Error)]
pub enum SchemaProblem {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("`schema_registry` is missing")]
    NoRegistry,
    #[error("subject `{subject}` has no schema")]
    Empty { subject: String },
    #[error("subject `{subject}` does not have the schema of these columns, which is {text}")]
    Unknown { subject: String, text: String },
    #[error("the newest schema of subject `{subject}` is {kind}, and the sink writes {wanted}")]
    Format { subject: String, kind: String, wanted: &'static str },
    #[error("the registry finds the schema of these columns incompatible with subject `{subject}`")]
    Incompatible { subject: String },
    #[error("the columns do not fit")]
    Unfit(#[from] Unfit),
}

impl Classify for SchemaProblem {
    fn fault(&self) -> Fault {
        match self {
            Self::Registry(error) => error.fault(),
            _ => Fault::Stop,
        }
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Registry(error) => return error.hint(),
            Self::NoRegistry => "schema_registry: {url: \"http://localhost:8081\"}".into(),
            Self::Empty { .. } => "register a schema there, or leave `use_latest` out".into(),
            Self::Unknown { .. } => "register it, or leave `auto_register: false` out".into(),
            Self::Format { .. } => "write that format, or choose another subject".into(),
            Self::Incompatible { .. } => {
                "make the columns compatible with the versions of the subject, or choose another subject"
                    .into()
            }
            Self::Unfit(_) => "change the view that this sink reads".into(),
        })
    }
}

/// A schema, and what stands before each record that is written with it.
struct Framed {
    prefix: Vec<u8>,
    writer: Writer,
}

/// The schemas that a sink writes with.
#[derive(Default)]
pub struct Schemas {
    registry: Option<Arc<dyn Registry>>,
    /// By subject.
    known: HashMap<(Part, String), Arc<Framed>>,
}

/// The keys or values that have a schema.
fn registered(options: &KafkaSinkOptions) -> impl Iterator<Item = (Part, &Written, &WriterSchema)> {
    let parts = [(Part::Key, &options.key), (Part::Value, &options.value)];
    parts.into_iter().filter_map(|(part, written)| match written {
        Some(written) => match &written.form {
            WrittenForm::Registered(schema) => Some((part, written, schema)),
            WrittenForm::Text | WrittenForm::Json => None,
        },
        None => None,
    })
}

/// The name of the record, which is a part of its schema: never that of something people rename.
fn record_name(part: Part, schema: &WriterSchema) -> &str {
    match (&schema.record_name, part) {
        (Some(name), _) => name.as_str(),
        (None, Part::Key) => "Key",
        (None, Part::Value) => "Value",
    }
}

/// Where the schema of a topic's records is.
fn subject(part: Part, schema: &WriterSchema, topic: &str) -> String {
    match &schema.subject {
        Subject::Topic => format!("{topic}-{part}"),
        Subject::Record => record_name(part, schema).to_owned(),
        Subject::TopicRecord => format!("{topic}-{}", record_name(part, schema)),
        Subject::Literal(name) => name.clone(),
    }
}

fn is_of_topic(schema: &WriterSchema) -> bool {
    matches!(schema.subject, Subject::Topic | Subject::TopicRecord)
}

/// What is written: a column, or all of them as one record.
fn written_type(written: &Written, schema: &Schema) -> Result<DataType, Unfit> {
    match &written.column {
        None => Ok(DataType::Struct(schema.fields().clone())),
        Some(name) => match schema.field_with_name(name) {
            Ok(field) => Ok(field.data_type().clone()),
            Err(_) => Err(Unfit::missing(name)),
        },
    }
}

fn written_values(written: &Written, batch: &RecordBatch) -> Option<ArrayRef> {
    match &written.column {
        None => Some(Arc::new(StructArray::from(batch.clone()))),
        Some(name) => batch.column_by_name(name).cloned(),
    }
}

/// An error is of the column that is written alone, if it is one.
fn of_column<T>(written: &Written, result: Result<T, Unfit>) -> Result<T, Unfit> {
    result.map_err(|unfit| match &written.column {
        Some(name) => unfit.inside(name),
        None => unfit,
    })
}

/// The schema of columns as text, and what writes with it.
fn derived(
    part: Part,
    written: &Written,
    schema: &WriterSchema,
    data_type: &DataType,
    before: Option<(&str, &[Reference])>,
) -> Result<(String, Writer), Unfit> {
    let name = record_name(part, schema);
    let made = || -> Result<(String, Writer), Unfit> {
        let text = schema_text(schema.format, data_type, name, before)?;
        let writer = Writer::derived(schema.format, &text, name)?;
        writer.bind(&new_empty_array(data_type))?;
        Ok((text, writer))
    };
    of_column(written, made())
}

/// Have the columns of a sink a form in its formats?
///
/// # Errors
/// [`Unfit`], naming the column.
pub fn check(options: &KafkaSinkOptions, schema: &Schema) -> Result<(), Unfit> {
    for (part, written, wanted) in registered(options) {
        let data_type = written_type(written, schema)?;
        // Which form it has there, the newest schema says.
        if wanted.source != SchemaSource::Latest {
            derived(part, written, wanted, &data_type, None)?;
        }
    }
    Ok(())
}

/// What the registry says of a schema, for `check`: nothing is registered.
#[derive(Debug)]
pub struct Examined {
    pub part: Part,
    /// `None`: each topic that rows name has one.
    pub subject: Option<String>,
    pub problem: Option<SchemaProblem>,
}

/// Asks the registry for what a sink will need of it.
pub async fn examine(registry: &dyn Registry, options: &KafkaSinkOptions, schema: &Schema) -> Vec<Examined> {
    let mut all = Vec::new();
    for (part, written, wanted) in registered(options) {
        let topic = match (&options.topic, is_of_topic(wanted)) {
            (None, true) => {
                all.push(Examined { part, subject: None, problem: None });
                continue;
            }
            (topic, _) => topic.as_deref().unwrap_or_default(),
        };
        let subject = subject(part, wanted, topic);
        let problem = examine_one(registry, part, written, wanted, &subject, schema).await.err();
        all.push(Examined { part, subject: Some(subject), problem });
    }
    all
}

async fn examine_one(
    registry: &dyn Registry,
    part: Part,
    written: &Written,
    wanted: &WriterSchema,
    subject: &str,
    schema: &Schema,
) -> Result<(), SchemaProblem> {
    let data_type = written_type(written, schema)?;
    if wanted.source != SchemaSource::Registered {
        return fetch(registry, part, written, wanted, subject, &data_type).await.map(|_| ());
    }
    let (text, _) = derive(registry, part, written, wanted, subject, &data_type).await?;
    match registry.is_compatible(subject, wanted.format, &text).await {
        // Some registries say so of a subject that is not there yet.
        Ok(true) | Err(RegistryError::Unknown { .. }) => Ok(()),
        Ok(false) => Err(SchemaProblem::Incompatible { subject: subject.to_owned() }),
        Err(error) => Err(error.into()),
    }
}

/// The schema of columns. That of Protobuf goes on from what the subject has.
async fn derive(
    registry: &dyn Registry,
    part: Part,
    written: &Written,
    wanted: &WriterSchema,
    subject: &str,
    data_type: &DataType,
) -> Result<(String, Writer), SchemaProblem> {
    use crate::config::plan::SchemaFormat::Protobuf;
    let before = match wanted.format {
        Protobuf => match registry.newest(subject).await {
            Ok(before) => Some(before.schema).filter(|before| before.kind == Protobuf.name()),
            Err(RegistryError::Unknown { .. }) => None,
            Err(error) => return Err(error.into()),
        },
        _ => None,
    };
    let before = before.as_ref().map(|before| (before.text.as_str(), before.references.as_slice()));
    Ok(derived(part, written, wanted, data_type, before)?)
}

/// Fetches the schema of a subject, or registers it.
async fn fetch(
    registry: &dyn Registry,
    part: Part,
    written: &Written,
    wanted: &WriterSchema,
    subject: &str,
    data_type: &DataType,
) -> Result<Framed, SchemaProblem> {
    if wanted.source == SchemaSource::Latest {
        return latest(registry, written, wanted, subject, data_type).await;
    }
    let (text, writer) = derive(registry, part, written, wanted, subject, data_type).await?;
    let id = match wanted.source {
        SchemaSource::Known => match registry.find(subject, wanted.format, &text).await {
            Err(RegistryError::Unknown { .. }) => {
                return Err(SchemaProblem::Unknown { subject: subject.to_owned(), text });
            }
            found => found?,
        },
        _ => registry.register(subject, wanted.format, &text).await?,
    };
    Ok(Framed { prefix: writer.prefix(id), writer })
}

async fn latest(
    registry: &dyn Registry,
    written: &Written,
    wanted: &WriterSchema,
    subject: &str,
    data_type: &DataType,
) -> Result<Framed, SchemaProblem> {
    let found = match registry.by_subject(subject, None).await {
        Err(RegistryError::Unknown { .. }) => {
            return Err(SchemaProblem::Empty { subject: subject.to_owned() });
        }
        found => found?,
    };
    if found.kind != wanted.format.name() {
        return Err(SchemaProblem::Format {
            subject: subject.to_owned(),
            kind: found.kind,
            wanted: wanted.format.name(),
        });
    }
    let name = wanted.record_name.as_deref();
    let writer = Writer::registered(wanted.format, &found.text, &found.references, name)
        .and_then(|writer| writer.bind(&new_empty_array(data_type)).map(|_| writer));
    let writer = of_column(written, writer)?;
    // Versions of a subject have ids, not GUIDs.
    let id = found.id.id().unwrap_or(SchemaId(0));
    Ok(Framed { prefix: writer.prefix(id), writer })
}

impl Schemas {
    pub fn new(registry: Option<Arc<dyn Registry>>) -> Self {
        Self { registry, known: HashMap::new() }
    }

    /// Learns the schemas that the rows of a batch are written with.
    ///
    /// # Errors
    /// [`SinkError::Transient`] while the registry does not answer; [`SinkError::Stop`] if there is no such schema,
    /// or the registry does not take it.
    pub async fn prepare(&mut self, options: &KafkaSinkOptions, rows: &RecordBatch) -> Result<(), SinkError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        if self.known.len() > SCHEMAS_MAX {
            self.known.clear();
        }
        for (part, written, wanted) in registered(options) {
            for topic in topics(options, wanted, rows) {
                let key = (part, subject(part, wanted, &topic));
                if self.known.contains_key(&key) {
                    continue;
                }
                let framed = self.fetch(part, written, wanted, &key.1, rows).await;
                let framed = framed.map_err(|problem| explain(problem, part, &key.1, &options.identity))?;
                self.known.insert(key, Arc::new(framed));
            }
        }
        Ok(())
    }

    async fn fetch(
        &self,
        part: Part,
        written: &Written,
        wanted: &WriterSchema,
        subject: &str,
        rows: &RecordBatch,
    ) -> Result<Framed, SchemaProblem> {
        let registry = self.registry.as_deref().ok_or(SchemaProblem::NoRegistry)?;
        let data_type = written_type(written, &rows.schema())?;
        fetch(registry, part, written, wanted, subject, &data_type).await
    }

    /// Binds the rows of a batch to the schemas that were learnt for them.
    ///
    /// # Errors
    /// [`Unfit`], naming the column.
    pub fn bind(
        &self,
        part: Part,
        written: &Written,
        wanted: &WriterSchema,
        options: &KafkaSinkOptions,
        rows: &RecordBatch,
    ) -> Result<Encoded, Unfit> {
        let mut encoded = Encoded {
            column: written.column.clone(),
            is_of_topic: options.topic.is_none() && is_of_topic(wanted),
            by_topic: HashMap::new(),
        };
        let Some(values) = written_values(written, rows) else {
            return Err(Unfit::missing(written.column.as_deref().unwrap_or_default()));
        };
        for topic in topics(options, wanted, rows) {
            let framed = match self.known.get(&(part, subject(part, wanted, &topic))) {
                Some(framed) => framed,
                None if rows.num_rows() == 0 => continue,
                None => return Err(Unfit::new("has no schema yet")),
            };
            let bound = of_column(written, framed.writer.bind(&values))?;
            let topic = if encoded.is_of_topic { topic } else { String::new() };
            encoded.by_topic.insert(topic, (framed.clone(), bound));
        }
        Ok(encoded)
    }
}

/// The topics that schemas are looked for: those that rows name, if that matters, else the sink's.
fn topics(options: &KafkaSinkOptions, wanted: &WriterSchema, rows: &RecordBatch) -> BTreeSet<String> {
    let column = match &options.topic {
        None if is_of_topic(wanted) => rows.column_by_name("topic"),
        _ => return BTreeSet::from([options.topic.clone().unwrap_or_default()]),
    };
    // What is wrong with the column is said where records are made.
    let Some(names) = column.and_then(|column| Values::new(column).ok()) else {
        return BTreeSet::new();
    };
    let named = (0..rows.num_rows()).filter(|row| !names.is_null(*row));
    let mut topics = BTreeSet::new();
    let mut text = Vec::new();
    for row in named {
        text.clear();
        names.write_plain(row, &mut text);
        let name = String::from_utf8_lossy(&text);
        if !topics.contains(name.as_ref()) {
            topics.insert(name.into_owned());
        }
    }
    topics
}

fn explain(problem: SchemaProblem, part: Part, subject: &str, identity: &str) -> SinkError {
    let action = format!("get the schema of {part}s from subject `{subject}` for sink `{identity}`");
    let hint = problem.hint();
    match problem.fault() {
        Fault::Transient => SinkError::Transient { action, hint, source: problem.into() },
        _ => SinkError::Stop { action, hint, source: problem.into() },
    }
}

/// Keys or values of some rows, bound to their schemas.
pub struct Encoded {
    column: Option<String>,
    is_of_topic: bool,
    /// By the topic that the row names; by the empty name, if that does not matter.
    by_topic: HashMap<String, (Arc<Framed>, Bound)>,
}

impl Encoded {
    /// The bytes of a row; `None` if its column is null, or it names no topic and will be refused.
    ///
    /// # Errors
    /// [`Misfit`], naming the column.
    pub fn to_bytes(&self, row: usize, topic: Option<&str>) -> Result<Option<Vec<u8>>, Misfit> {
        let topic = if self.is_of_topic { topic.unwrap_or_default() } else { "" };
        let Some((framed, bound)) = self.by_topic.get(topic) else {
            return Ok(None);
        };
        if bound.is_null(row) {
            return Ok(None);
        }
        let mut bytes = framed.prefix.clone();
        bound.write(row, &mut bytes).map_err(|misfit| match &self.column {
            Some(name) => misfit.inside(name),
            None => misfit,
        })?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests;
