//! From a plan to concrete things.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use arrow::datatypes::{DataType, Field, Fields, IntervalUnit, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::admin::ListenError;
use crate::codec::avro::node::{Node, SchemaError};
use crate::codec::meta::MetaColumn;
use crate::codec::{Codec, Decoder, JsonKeys, Raw, Registered, Side, TypedJson, json_schema, protobuf};
use crate::config::plan::{
    AllowIds, Envelope, FileFormat, Framing, Kafka, KeyForm, PartitionBy, Plan, ReaderSchema, Recursion,
    RegistryForm, Route, SchemaFormat, Sink, Target, ValueForm,
};
use crate::config::{Problem, Span};
use crate::handler::{Expressions, Handler, Views};
use crate::kafka::{self, ClusterError};
use crate::model::{Classify, ClusterId, Hint, SchemaId, SchemaVersion, TopicName};
use crate::registry::{Allowed, RegisteredSchema, Registry, RegistryClient, RegistryError};
use crate::sink::console::Console;
use crate::sink::file::{
    AvroFormat, Claim, CsvFormat, FileSink, FileSinkOptions, Format, JsonLinesFormat, Owner, ParquetFormat,
    Partitioning,
};
use crate::sink::http::HttpSink;
use crate::sink::kafka::{DeleteKey, KafkaSink, KafkaSinkOptions, check_columns};
use crate::sink::{self, SinkError};
use crate::status::Board;

use super::{changes, targets};

/// A reader schema that could not be had or used.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    #[error("route `{route}`: failed to get its reader schema")]
    Registry { route: String, source: RegistryError },
    #[error("route `{route}`: {what} cannot be its reader schema: {problem}")]
    Unusable { route: String, what: String, problem: String },
}

/// The hint of an error of ours, wherever it is in a chain.
pub fn hint(error: &(dyn Error + 'static)) -> Option<Hint> {
    let classified: [Option<&dyn Classify>; 4] = [
        error.downcast_ref::<ListenError>().map(|error| error as &dyn Classify),
        error.downcast_ref::<RegistryError>().map(|error| error as &dyn Classify),
        error.downcast_ref::<ClusterError>().map(|error| error as &dyn Classify),
        error.downcast_ref::<SinkError>().map(|error| error as &dyn Classify),
    ];
    classified.into_iter().flatten().find_map(|error| error.hint())
}

/// The form of a route's values or keys, if their records name schemas.
pub fn registry_form(route: &Route, side: Side) -> Option<&RegistryForm> {
    match (side, &route.value, &route.key) {
        (Side::Value, ValueForm::Registry(form), _) | (Side::Key, _, KeyForm::Registry(form)) => Some(form),
        _ => None,
    }
}

/// The subject of the reader schema of a route's values or keys.
pub fn subject(route: &Route, side: Side, form: &RegistryForm) -> String {
    match side {
        Side::Value => route.subject(form, "value"),
        Side::Key => route.subject(form, "key"),
    }
}

/// A reader schema, parsed, and what it is called.
pub struct ReadAs {
    pub schema: Parsed,
    pub name: String,
    /// As which it was asked for, if it was.
    pub version: Option<SchemaVersion>,
}

pub enum Parsed {
    Avro(Node),
    Protobuf(protobuf::File),
    Json(Node),
}

impl ReadAs {
    fn file(path: &Path, schema: Parsed) -> Self {
        Self { schema, name: format!("`{}`", path.display()), version: None }
    }
}

/// A schema of the registry, and as which version of a subject it was asked for.
async fn fetch(
    route: &Route,
    side: Side,
    form: &RegistryForm,
    registry: &dyn Registry,
) -> Result<(RegisteredSchema, Option<SchemaVersion>), RegistryError> {
    let subject = subject(route, side, form);
    let version_of = |schema: &RegisteredSchema, number| {
        let id = schema.id.id()?;
        Some(SchemaVersion { subject: subject.clone(), id, number })
    };
    match &form.schema {
        ReaderSchema::Id(id) => Ok((registry.by_id(SchemaId(*id)).await?, None)),
        ReaderSchema::Version(number) => {
            let schema = registry.by_subject(&subject, Some(*number)).await?;
            let version = version_of(&schema, Some(*number));
            Ok((schema, version))
        }
        ReaderSchema::Latest | ReaderSchema::File(_) => match registry.newest(&subject).await {
            Ok(newest) => Ok((newest.schema, Some(newest.version))),
            // What the registry said last may be kept on disk.
            Err(RegistryError::Unavailable { .. }) => {
                let schema = registry.by_subject(&subject, None).await?;
                let version = version_of(&schema, None);
                Ok((schema, version))
            }
            Err(error) => Err(error),
        },
    }
}

/// Fetches a route's reader schema of values or keys.
///
/// # Errors
/// [`ReaderError`]
pub async fn reader(
    route: &Route,
    side: Side,
    form: &RegistryForm,
    registry: Option<&dyn Registry>,
) -> Result<ReadAs, ReaderError> {
    let unusable =
        |what: String, problem: String| ReaderError::Unusable { route: route.name.clone(), what, problem };
    if let ReaderSchema::File(path) = &form.schema {
        let is_protobuf = form.format == Some(SchemaFormat::Protobuf)
            || (form.format.is_none() && path.extension().is_some_and(|extension| extension == "proto"));
        let is_json = form.format == Some(SchemaFormat::JsonSchema);
        if !is_protobuf && !is_json {
            let node = schema_file(route, path, form.recursion)?;
            return Ok(ReadAs::file(path, Parsed::Avro(node)));
        }
        let text = file_text(route, path)?;
        let read = if is_json {
            let node = json_schema::parse_with(&text, &[], form.recursion);
            node.map(Parsed::Json).map_err(|error| error.to_string())
        } else {
            let file = protobuf::parse(&text, &[]).map(|file| file.recursive(form.recursion));
            file.map(Parsed::Protobuf).map_err(|error| error.to_string())
        };
        let read = read.map_err(|problem| unusable(format!("`{}`", path.display()), problem))?;
        return Ok(ReadAs::file(path, read));
    }
    let Some(registry) = registry else {
        return Err(unusable("nothing".to_owned(), "`schema_registry` is missing".to_owned()));
    };
    let fetched = fetch(route, side, form, registry).await;
    let (schema, version) =
        fetched.map_err(|source| ReaderError::Registry { route: route.name.clone(), source })?;
    let name = version.as_ref().map_or_else(|| schema.id.to_string(), ToString::to_string);
    let what = format!("schema {name}");
    if let Some(format) = form.format
        && format.name() != schema.kind
    {
        return Err(unusable(what, format!("it is {}, and the route says {}", schema.kind, format.name())));
    }
    let parsed = match schema.kind.as_str() {
        "AVRO" => changes::avro_node(route, &schema.text, &schema.references, form.recursion)
            .map(Parsed::Avro)
            .map_err(|error| unusable(what, error.to_string())),
        "PROTOBUF" => protobuf::parse(&schema.text, &schema.references)
            .map(|file| Parsed::Protobuf(file.recursive(form.recursion)))
            .map_err(|error| unusable(what, error.to_string())),
        "JSON" => json_schema::parse_with(&schema.text, &schema.references, form.recursion)
            .map(Parsed::Json)
            .map_err(|error| unusable(what, error.to_string())),
        other => Err(unusable(what, format!("it is {other}; Avro, Protobuf and JSON Schemas can be read"))),
    };
    Ok(ReadAs { schema: parsed?, name, version })
}

fn file_text(route: &Route, path: &Path) -> Result<String, ReaderError> {
    std::fs::read_to_string(path).map_err(|error| ReaderError::Unusable {
        route: route.name.clone(),
        what: format!("`{}`", path.display()),
        problem: error.to_string(),
    })
}

/// # Errors
/// [`ReaderError`]
pub fn schema_file(route: &Route, path: &Path, recursion: Recursion) -> Result<Node, ReaderError> {
    let text = file_text(route, path)?;
    changes::avro_node(route, &text, &[], recursion).map_err(|error| ReaderError::Unusable {
        route: route.name.clone(),
        what: format!("`{}`", path.display()),
        problem: error.to_string(),
    })
}

/// The decoder of a route's values and keys.
///
/// # Errors
/// [`ReaderError`]
pub async fn decoder(route: &Route, registry: Option<&dyn Registry>) -> Result<Decoder, ReaderError> {
    let value = value_codec(route, registry).await?;
    let key = key_codec(route, registry).await?;
    Ok(match route.value {
        ValueForm::Raw(_) => Decoder::raw(value, key),
        ValueForm::Json(_) | ValueForm::Registry(_) => Decoder::typed(value, key),
    })
}

async fn key_codec(route: &Route, registry: Option<&dyn Registry>) -> Result<Box<dyn Codec>, ReaderError> {
    let unusable = |error: SchemaError| ReaderError::Unusable {
        route: route.name.clone(),
        what: "the schema of its keys".to_owned(),
        problem: error.to_string(),
    };
    Ok(match &route.key {
        KeyForm::Raw(form) => Box::new(Raw::for_keys(*form)),
        KeyForm::Json(path) => {
            let node = schema_file(route, path, Recursion::Refuse)?;
            let keys = JsonKeys::new(node).map_err(unusable)?;
            Box::new(if route.envelope == Envelope::None { keys } else { keys.wrapped() })
        }
        KeyForm::Registry(form) => {
            let ReadAs { schema, name, version } = reader(route, Side::Key, form, registry).await?;
            let codec = match schema {
                Parsed::Avro(node) => Registered::avro_keys(node).map_err(unusable)?,
                Parsed::Json(node) => Registered::json_keys(node).map_err(unusable)?,
                Parsed::Protobuf(file) => {
                    check_framing(route, form)?;
                    Registered::protobuf_keys(&file, form.message.as_deref()).map_err(|error| {
                        ReaderError::Unusable {
                            route: route.name.clone(),
                            what: "the schema of its keys".to_owned(),
                            problem: error.to_string(),
                        }
                    })?
                }
            };
            Box::new(as_formed(codec, form).read_as(name, version))
        }
    })
}

async fn value_codec(route: &Route, registry: Option<&dyn Registry>) -> Result<Box<dyn Codec>, ReaderError> {
    if route.envelope == Envelope::Debezium {
        return changes::codec(route, registry).await;
    }
    let unusable = |error: SchemaError| ReaderError::Unusable {
        route: route.name.clone(),
        what: "its schema".to_owned(),
        problem: error.to_string(),
    };
    Ok(match &route.value {
        ValueForm::Raw(form) => Box::new(Raw::new(*form, route.tombstones)),
        ValueForm::Json(path) => {
            let node = schema_file(route, path, Recursion::Refuse)?;
            Box::new(TypedJson::new(node, route.tombstones).map_err(unusable)?)
        }
        ValueForm::Registry(form) => {
            let ReadAs { schema, name, version } = reader(route, Side::Value, form, registry).await?;
            let codec = match schema {
                Parsed::Avro(node) => Registered::avro(node, route.tombstones).map_err(unusable)?,
                Parsed::Json(node) => Registered::json(node, route.tombstones).map_err(unusable)?,
                Parsed::Protobuf(file) => {
                    check_framing(route, form)?;
                    let message = form.message.as_deref();
                    Registered::protobuf(&file, message, route.tombstones).map_err(|error| {
                        ReaderError::Unusable {
                            route: route.name.clone(),
                            what: "its schema".to_owned(),
                            problem: error.to_string(),
                        }
                    })?
                }
            };
            Box::new(as_formed(codec, form).read_as(name, version))
        }
    })
}

/// What a form says besides the reader schema.
fn as_formed(codec: Registered, form: &RegistryForm) -> Registered {
    codec.framed(form.framing).recursive(form.recursion).validated(form.is_validated)
}

/// With `registry: {framing: apicurio}` the format shows only here.
fn check_framing(route: &Route, form: &RegistryForm) -> Result<(), ReaderError> {
    if form.framing != Framing::Apicurio {
        return Ok(());
    }
    Err(ReaderError::Unusable {
        route: route.name.clone(),
        what: "a Protobuf schema".to_owned(),
        problem: "Protobuf in Apicurio's own framing cannot be read".to_owned(),
    })
}

/// Is a reader schema of a route in the registry?
pub fn needs_registry(route: &Route) -> bool {
    let of_values = match &route.value {
        ValueForm::Registry(form) => !matches!(form.schema, ReaderSchema::File(_)),
        ValueForm::Raw(_) | ValueForm::Json(_) => false,
    };
    of_values || matches!(route.key, KeyForm::Registry(_))
}

/// A route's decoder and views, bound to one another.
pub struct Bound {
    pub decoder: Decoder,
    pub views: Views,
}

impl Bound {
    /// The schema of the rows a sink gets.
    pub fn schema(&self, sink: &Sink) -> SchemaRef {
        match sink.from {
            Some(view) => self.views.schema(view).clone(),
            None => self.decoder.schema().clone(),
        }
    }

    /// Is each row that a sink gets made of one record?
    pub fn is_of_records(&self, sink: &Sink) -> bool {
        sink.from.is_none_or(|view| self.views.is_of_records(view))
    }
}

/// Binds a route to its reader schema.
///
/// # Errors
/// Problems with their places in the file.
pub async fn bind(route: &Route, decoder: Decoder) -> Result<Bound, Vec<Problem>> {
    let whole = Span { line: 1, column: 1 };
    let problem = |message: String| vec![Problem::new(whole, format!("route `{}`: {message}", route.name))];
    let offered = decoder.offered();
    let fields = decoder.schema().fields();
    let clash = offered.iter().find(|column| fields.iter().any(|field| field.name() == column.name()));
    if let Some(column) = clash {
        let name = column.name();
        return Err(problem(format!("the schema's field `{name}` has the name of a column of ours")));
    }
    let bound = Views::bind(decoder.schema(), &offered, &route.views).await;
    let views = bound.map_err(|errors| {
        let problems = errors.into_iter().map(|error| {
            let view = &route.views[error.view];
            let (line, column) = error.place.unwrap_or((1, 1));
            let place = view.content.place(line, column);
            Problem::new(place, format!("view `{}`: {}", view.name, error.message))
        });
        problems.collect::<Vec<_>>()
    })?;
    let decoder = decoder.with_meta(views.meta());
    let bound = Bound { decoder, views };
    let bound = match changes::keeping(route, &bound) {
        Some(tells_unavailable) => Bound { decoder: bound.decoder.with_deletes(tells_unavailable), ..bound },
        None => bound,
    };
    let partitions = route.sinks.iter().map(|sink| expressions(sink, &bound.schema(sink)));
    let mut problems: Vec<Problem> = partitions.filter_map(Result::err).flatten().collect();
    for sink in &route.sinks {
        if sink.target.is_upsert() && !bound.is_of_records(sink) {
            let what = "its view does not make each row of one record, and rows would replace what was counted before";
            let all = problem(format!("sink `{}`: {what}", sink.name)).into_iter();
            problems.extend(all.map(|it| it.hint("aggregate where the rows are read, or append them")));
        }
        if let Err(wrong) = targets::check_columns(&sink.target, &bound.schema(sink)) {
            problems.extend(problem(format!("sink `{}`: {wrong}", sink.name)));
        }
        if let Some(options) = kafka_options(sink)
            && let Err(wrong) = check_columns(&bound.schema(sink), &options)
        {
            problems.extend(problem(format!("sink `{}`: {wrong}", sink.name)));
        }
        if matches!(&sink.target, Target::Files { format: FileFormat::Parquet(_), .. })
            && let Some((path, what)) = unfit_for_parquet(bound.schema(sink).fields())
        {
            let message = format!("sink `{}`: column `{path}` is {what}", sink.name);
            let all = problem(message).into_iter();
            problems.extend(
                all.map(|it| it.hint("Parquet has no such type: let the sink read a view without it")),
            );
        }
        if let Target::Files { format: FileFormat::Avro { record_name, .. }, partition_by, .. } = &sink.target
            && let Err(unfit) = AvroFormat::writer(&in_files(&bound.schema(sink), partition_by), record_name)
        {
            problems.extend(problem(format!("sink `{}`: {unfit}", sink.name)));
        }
    }
    if problems.is_empty() { Ok(bound) } else { Err(problems) }
}

/// The columns that are left for files: those that partitions are named after are in the names of directories.
fn in_files(rows: &SchemaRef, partition_by: &[PartitionBy]) -> SchemaRef {
    let is_partition = |field: &Arc<Field>| partition_by.iter().any(|level| level.name == *field.name());
    let fields: Fields = rows.fields().iter().filter(|field| !is_partition(field)).cloned().collect();
    Arc::new(Schema::new(fields))
}

pub fn kafka_options(plan: &Sink) -> Option<KafkaSinkOptions> {
    let Target::Kafka { topic, key, value } = &plan.target else {
        return None;
    };
    Some(KafkaSinkOptions {
        identity: plan.identity.clone(),
        topic: topic.as_ref().map(ToString::to_string),
        key: key.clone(),
        value: value.clone(),
        deletes: None,
    })
}

/// The path of a column, at any depth, that the Parquet writer cannot write, and what it is.
fn unfit_for_parquet(fields: &Fields) -> Option<(String, &'static str)> {
    fields.iter().find_map(|field| {
        let unfit = |what| Some((field.name().clone(), what));
        let inner = match field.data_type() {
            DataType::Struct(inner) if inner.is_empty() => return unfit("a record without fields"),
            DataType::Interval(IntervalUnit::MonthDayNano) => return unfit("an interval"),
            DataType::Struct(inner) => unfit_for_parquet(inner),
            DataType::List(inner) | DataType::LargeList(inner) | DataType::Map(inner, _) => {
                unfit_for_parquet(&Fields::from(vec![inner.clone()]))
            }
            _ => None,
        };
        inner.map(|(path, what)| (format!("{}.{path}", field.name()), what))
    })
}

/// What the files of a sink are partitioned by, bound to the schema of its rows.
///
/// # Errors
/// Problems with their places in the file.
fn expressions(sink: &Sink, rows: &SchemaRef) -> Result<Option<Expressions>, Vec<Problem>> {
    let Target::Files { partition_by, .. } = &sink.target else {
        return Ok(None);
    };
    let Some(first) = partition_by.first() else {
        return Ok(None);
    };
    let is_partition = |field: &Arc<Field>| partition_by.iter().any(|level| level.name == *field.name());
    if rows.fields().iter().all(is_partition) {
        let message =
            format!("sink `{}`: every column is a partition, nothing is left for its files", sink.name);
        let problem = Problem::new(first.content.place(1, 1), message);
        return Err(vec![problem.hint("give a partition another name than that of its column")]);
    }
    let bound = Expressions::bind(rows, partition_by).map_err(|errors| {
        let problems = errors.into_iter().map(|error| {
            let level = &partition_by[error.index];
            let (line, column) = error.place.unwrap_or((1, 1));
            let message = format!("sink `{}`: partition `{}`: {}", sink.name, level.name, error.message);
            let problem = Problem::new(level.content.place(line, column), message);
            // Views can name these columns; a sink has only what it reads.
            let is_missing =
                |column: &str| level.sql.contains(column) && rows.field_with_name(column).is_err();
            if is_missing("_key") || MetaColumn::ALL.iter().any(|column| is_missing(column.name())) {
                problem.hint("let the sink read a view that selects the `_` column")
            } else {
                problem
            }
        });
        problems.collect::<Vec<_>>()
    })?;
    Ok(Some(bound))
}

/// What sinks need besides their plan.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    pub kafka: &'a Kafka,
    pub cluster: &'a ClusterId,
    /// For sinks that write with its schemas.
    pub registry: Option<&'a Arc<dyn Registry>>,
}

/// Who a sink is to its target.
pub fn claim(plan: &Sink, around: Surroundings<'_>) -> Claim {
    let owner = Owner {
        cluster: around.cluster.clone(),
        group: around.kafka.group.clone(),
        identity: plan.identity.clone(),
    };
    Claim { owner, adopt: plan.adopt.clone(), is_shared: plan.is_shared }
}

/// Builds a sink for rows of `schema`, which writes keys that are gone as `deletes` says. The one place that names the
/// kinds.
///
/// # Errors
/// If a client cannot be made.
pub fn sink(
    plan: &Sink,
    schema: SchemaRef,
    deletes: Option<DeleteKey>,
    around: Surroundings<'_>,
) -> anyhow::Result<Box<dyn sink::Sink>> {
    Ok(match &plan.target {
        Target::Files { format, path, partition_by, roll } => {
            let claim = claim(plan, around);
            // What is wrong with them was reported when the route was bound.
            let expressions = expressions(plan, &schema).map_err(|problems| {
                let messages: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
                anyhow!(messages.join("; "))
            })?;
            let partitioning = expressions.map(|expressions| {
                let names = partition_by.iter().map(|level| level.name.clone()).collect();
                let values = move |rows: &RecordBatch| {
                    let values = expressions.evaluate(rows);
                    values.map_err(|error| Box::new(error) as Box<dyn Error + Send + Sync>)
                };
                Partitioning::new(names, &schema, Box::new(values))
            });
            let options = FileSinkOptions { root: path.clone(), claim, schema, roll: *roll, partitioning };
            let format: Box<dyn Format> = match format {
                FileFormat::Parquet(options) => Box::new(ParquetFormat { options: options.clone() }),
                FileFormat::JsonLines(compression) => Box::new(JsonLinesFormat { compression: *compression }),
                FileFormat::Csv(compression) => Box::new(CsvFormat { compression: *compression }),
                FileFormat::Avro { codec, record_name } => {
                    Box::new(AvroFormat { codec: *codec, record_name: record_name.clone() })
                }
            };
            Box::new(FileSink::new(options, format))
        }
        Target::Console { rows_max } => Box::new(Console::new(
            plan.identity.clone(),
            *rows_max,
            Box::new(super::progress::Above(std::io::stdout())),
        )),
        Target::Kafka { .. } => {
            let options = kafka_options(plan).ok_or_else(|| anyhow!("sink `{}` has no topic", plan.name))?;
            let options = KafkaSinkOptions { deletes, ..options };
            let registry = around.registry.cloned();
            Box::new(KafkaSink::new(&kafka::producer_config(around.kafka), options, registry)?)
        }
        Target::Http(options) => Box::new(HttpSink::new(plan.identity.clone(), options)?),
    })
}

/// The registry of a plan as it is now, if it has one; `check` has seen to it that routes which need one have
/// one.
///
/// # Errors
/// If its settings are of no use.
pub fn registry(plan: &Plan) -> anyhow::Result<Option<Arc<dyn Registry>>> {
    Ok(match &plan.registry {
        Some(settings) => Some(Arc::new(RegistryClient::new(settings)?)),
        None => None,
    })
}

/// The registry as the records of a route may use it.
pub fn registry_of(route: &Route, registry: Arc<dyn Registry>) -> Arc<dyn Registry> {
    if route.allow_ids == AllowIds::Any {
        return registry;
    }
    let of_values = match &route.value {
        ValueForm::Registry(form) => Some((Side::Value, subject(route, Side::Value, form))),
        ValueForm::Raw(_) | ValueForm::Json(_) => None,
    };
    let of_keys = match &route.key {
        KeyForm::Registry(form) => Some((Side::Key, subject(route, Side::Key, form))),
        KeyForm::Raw(_) | KeyForm::Json(_) => None,
    };
    // Subjects that the file names, or of the topic whose dead letters are replayed, are not called after topics here.
    let (sides, named): (Vec<Side>, Vec<String>) = of_values.into_iter().chain(of_keys).unzip();
    let topics = route.topics.clone();
    let is_allowed = move |subject: &str| {
        named.iter().any(|name| name == subject)
            || sides.iter().any(|side| {
                let topic = match side {
                    Side::Value => subject.strip_suffix("-value"),
                    Side::Key => subject.strip_suffix("-key"),
                };
                topic.is_some_and(|topic| topics.matches(&TopicName::new(topic)))
            })
    };
    Arc::new(Allowed::new(registry, is_allowed))
}

/// As [`registry`], with what its cache on disk knows, and its calls counted: for `run`, which also starts while the
/// registry is away.
///
/// # Errors
/// If its settings are of no use.
pub fn cached_registry(plan: &Plan, board: &Board) -> anyhow::Result<Option<Arc<dyn Registry>>> {
    Ok(match &plan.registry {
        Some(settings) => {
            let client = RegistryClient::with_cache(settings)?;
            Some(Arc::new(client.counting(board.registry().clone())))
        }
        None => None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Environment, plan, read, render};
    use crate::registry::embedded::EmbeddedRegistry;

    const TEXT: &str = "\
version: 1
kafka: {bootstrap.servers: b, group.id: g}
routes:
  r:
    topics: [t]
    value: string
    views:
      days: SELECT to_date(_timestamp) AS day FROM batch
    sinks:
      good: {csv: {path: out/good, partition_by: {day: to_date(_timestamp), topic: _topic}}}
      bad:
        csv:
          path: out/bad
          partition_by:
            day: upper(valu)
            id: _schema_id
            total: |
              1 +
                sum(_offset)
      none: {from: days, csv: {path: out/none, partition_by: {day: day}}}
";

    async fn problems(text: &str) -> String {
        let plan = read(text, &Environment::new([], Path::new("."))).unwrap();
        let decoder = decoder(&plan.routes[0], None).await.unwrap();
        match bind(&plan.routes[0], decoder).await {
            Ok(_) => String::new(),
            Err(problems) => render("routes.yaml", text, &problems),
        }
    }

    /// Whose schemas the records of a route may name.
    #[tokio::test]
    async fn allowed_are_the_subjects_of_the_topics_that_are_read() {
        let embedded = EmbeddedRegistry::start().await.unwrap();
        let settings = plan::Registry::at(embedded.url(), Duration::from_secs(5));
        let client: Arc<dyn Registry> = Arc::new(RegistryClient::new(&settings).unwrap());
        let subjects = ["t-value", "t-key", "u-value", "shop.a-value", "__x-value", "t"];
        let mut ids = Vec::new();
        for (number, subject) in subjects.iter().enumerate() {
            let text = format!("{{\"type\": \"fixed\", \"name\": \"f\", \"size\": {}}}", number + 1);
            ids.push((subject, client.register(subject, SchemaFormat::Avro, &text).await.unwrap()));
        }
        let cases: [(&str, &[&str]); 4] = [
            ("topics: [t]", &subjects),
            ("topics: [t], allow_ids: subject", &["t-value"]),
            ("topics: [u, t], key: registry, allow_ids: subject", &["t-value", "t-key", "u-value"]),
            (
                "topics: {pattern: '.*'}, reader_schema: {id: 1}, allow_ids: subject",
                &["t-value", "u-value", "shop.a-value"],
            ),
        ];
        for (route, expected) in cases {
            let text = format!(
                "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{url: \"http://r\"}}\nroutes:\n  \
                 r: {{{route}, sinks: {{s: {{csv: {{path: o}}}}}}}}\n"
            );
            let plan = read(&text, &Environment::new([], Path::new("."))).unwrap();
            let registry = registry_of(&plan.routes[0], client.clone());
            let mut allowed = Vec::new();
            for (subject, id) in &ids {
                match registry.by_id(*id).await {
                    Ok(_) => allowed.push(**subject),
                    Err(RegistryError::Foreign { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(allowed, expected, "{route}");
        }
    }

    #[tokio::test]
    async fn expressions_of_partitions_are_checked_with_their_places() {
        let shown = problems(TEXT).await;
        for expected in [
            "routes.yaml:15:24: sink `bad`: partition `day`: No field named",
            "routes.yaml:16:17: sink `bad`: partition `id`: No field named",
            "hint: let the sink read a view that selects the `_` column",
            "routes.yaml:18:15: sink `bad`: partition `total`: an aggregate does not fit here",
            "routes.yaml:20:68: sink `none`: every column is a partition",
        ] {
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
        assert_eq!(shown.matches("routes.yaml:").count(), 4, "{shown}");
        assert_eq!(shown.matches("hint: ").count(), 2, "{shown}");
        let good: Vec<&str> = TEXT.lines().take(10).collect();
        assert_eq!(problems(&good.join("\n")).await, "");
    }
}
