//! From a plan to concrete things.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use arrow::datatypes::{DataType, Field, Fields, IntervalUnit, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::admin::ListenError;
use crate::codec::avro::node::{Node, SchemaError};
use crate::codec::meta::MetaColumn;
use crate::codec::{Codec, Decoder, JsonKeys, Raw, Registered, Side, TypedJson, json_schema, protobuf};
use crate::config::plan::{
    FileFormat, Framing, Kafka, KeyForm, Plan, ReaderSchema, RegistryForm, Route, SchemaFormat, Sink, Target,
    ValueForm,
};
use crate::config::{Problem, Span};
use crate::handler::{Expressions, Handler, Views};
use crate::kafka::{self, ClusterError};
use crate::model::{Classify, ClusterId, Hint};
use crate::registry::{Registry, RegistryClient, RegistryError};
use crate::sink::console::Console;
use crate::sink::file::{
    Claim, CsvFormat, FileSink, FileSinkOptions, Format, JsonLinesFormat, Owner, ParquetFormat, Partitioning,
};
use crate::sink::kafka::{KafkaSink, KafkaSinkOptions, check_columns};
use crate::sink::{self, SinkError};
use crate::status::Board;

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

/// The subject of a topic's values or keys (TopicNameStrategy).
fn subject(route: &Route, side: Side) -> String {
    let topic =
        route.replays.as_ref().or_else(|| route.topics.named().first()).map_or("", |topic| topic.as_str());
    match side {
        Side::Value => format!("{topic}-value"),
        Side::Key => format!("{topic}-key"),
    }
}

/// A reader schema, parsed.
enum ReadAs {
    Avro(Node),
    Protobuf(protobuf::File),
    Json(Node),
}

/// Fetches a route's reader schema of values or keys.
///
/// # Errors
/// [`ReaderError`]
async fn reader(
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
            return schema_file(route, path).map(ReadAs::Avro);
        }
        let text = file_text(route, path)?;
        let read = if is_json {
            json_schema::parse(&text, &[]).map(ReadAs::Json).map_err(|error| error.to_string())
        } else {
            protobuf::parse(&text, &[]).map(ReadAs::Protobuf).map_err(|error| error.to_string())
        };
        return read.map_err(|problem| unusable(format!("`{}`", path.display()), problem));
    }
    let Some(registry) = registry else {
        return Err(unusable("nothing".to_owned(), "`schema_registry` is missing".to_owned()));
    };
    let fetched = match &form.schema {
        ReaderSchema::Version(version) => registry.by_subject(&subject(route, side), Some(*version)).await,
        ReaderSchema::Id(id) => registry.by_id(crate::model::SchemaId(*id)).await,
        ReaderSchema::Latest | ReaderSchema::File(_) => {
            registry.by_subject(&subject(route, side), None).await
        }
    };
    let schema = fetched.map_err(|source| ReaderError::Registry { route: route.name.clone(), source })?;
    let what = format!("schema {}", schema.id);
    if let Some(format) = form.format
        && format.name() != schema.kind
    {
        return Err(unusable(what, format!("it is {}, and the route says {}", schema.kind, format.name())));
    }
    match schema.kind.as_str() {
        "AVRO" => Node::parse(&schema.text, &schema.references)
            .map(ReadAs::Avro)
            .map_err(|error| unusable(what, error.to_string())),
        "PROTOBUF" => protobuf::parse(&schema.text, &schema.references)
            .map(ReadAs::Protobuf)
            .map_err(|error| unusable(what, error.to_string())),
        "JSON" => json_schema::parse(&schema.text, &schema.references)
            .map(ReadAs::Json)
            .map_err(|error| unusable(what, error.to_string())),
        other => Err(unusable(what, format!("it is {other}; Avro, Protobuf and JSON Schemas can be read"))),
    }
}

fn file_text(route: &Route, path: &Path) -> Result<String, ReaderError> {
    std::fs::read_to_string(path).map_err(|error| ReaderError::Unusable {
        route: route.name.clone(),
        what: format!("`{}`", path.display()),
        problem: error.to_string(),
    })
}

fn schema_file(route: &Route, path: &Path) -> Result<Node, ReaderError> {
    let text = file_text(route, path)?;
    Node::parse(&text, &[]).map_err(|error| ReaderError::Unusable {
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
        KeyForm::Json(path) => Box::new(JsonKeys::new(schema_file(route, path)?).map_err(unusable)?),
        KeyForm::Registry(form) => {
            let codec = match reader(route, Side::Key, form, registry).await? {
                ReadAs::Avro(node) => Registered::avro_keys(node).map_err(unusable)?,
                ReadAs::Json(node) => Registered::json_keys(node).map_err(unusable)?,
                ReadAs::Protobuf(file) => {
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
            Box::new(codec.framed(form.framing))
        }
    })
}

async fn value_codec(route: &Route, registry: Option<&dyn Registry>) -> Result<Box<dyn Codec>, ReaderError> {
    let unusable = |error: SchemaError| ReaderError::Unusable {
        route: route.name.clone(),
        what: "its schema".to_owned(),
        problem: error.to_string(),
    };
    Ok(match &route.value {
        ValueForm::Raw(form) => Box::new(Raw::new(*form, route.tombstones)),
        ValueForm::Json(path) => {
            let node = schema_file(route, path)?;
            Box::new(TypedJson::new(node, route.tombstones).map_err(unusable)?)
        }
        ValueForm::Registry(form) => {
            let codec = match reader(route, Side::Value, form, registry).await? {
                ReadAs::Avro(node) => Registered::avro(node, route.tombstones).map_err(unusable)?,
                ReadAs::Json(node) => Registered::json(node, route.tombstones).map_err(unusable)?,
                ReadAs::Protobuf(file) => {
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
            Box::new(codec.framed(form.framing))
        }
    })
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
    let partitions = route.sinks.iter().map(|sink| expressions(sink, &bound.schema(sink)));
    let mut problems: Vec<Problem> = partitions.filter_map(Result::err).flatten().collect();
    for sink in &route.sinks {
        if let Some(options) = kafka_options(sink)
            && let Err(wrong) = check_columns(&bound.schema(sink), &options)
        {
            problems.extend(problem(format!("sink `{}`: {wrong}", sink.name)));
        }
        if matches!(&sink.target, Target::Files { format: FileFormat::Parquet, .. })
            && let Some((path, what)) = unfit_for_parquet(bound.schema(sink).fields())
        {
            let message = format!("sink `{}`: column `{path}` is {what}", sink.name);
            let all = problem(message).into_iter();
            problems.extend(
                all.map(|it| it.hint("Parquet has no such type: let the sink read a view without it")),
            );
        }
    }
    if problems.is_empty() { Ok(bound) } else { Err(problems) }
}

fn kafka_options(plan: &Sink) -> Option<KafkaSinkOptions> {
    let Target::Kafka { topic, key, value } = &plan.target else {
        return None;
    };
    Some(KafkaSinkOptions {
        identity: plan.identity.clone(),
        topic: topic.as_ref().map(ToString::to_string),
        key: key.clone(),
        value: value.clone(),
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

/// Builds a sink for rows of `schema`. The one place that names the kinds.
///
/// # Errors
/// If a client cannot be made.
pub fn sink(plan: &Sink, schema: SchemaRef, around: Surroundings<'_>) -> anyhow::Result<Box<dyn sink::Sink>> {
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
                FileFormat::Parquet => Box::new(ParquetFormat),
                FileFormat::JsonLines => Box::new(JsonLinesFormat),
                FileFormat::Csv => Box::new(CsvFormat),
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
            Box::new(KafkaSink::new(&kafka::producer_config(around.kafka), options)?)
        }
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
    use super::*;
    use crate::config::{Environment, read, render};

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
