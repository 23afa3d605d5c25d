//! From a plan to concrete things.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{Field, SchemaRef};

use crate::codec::avro::node::{Node, SchemaError};
use crate::codec::meta::MetaColumn;
use crate::codec::{Codec, Raw, RegisteredAvro, TypedJson};
use crate::config::plan::{FileFormat, Kafka, Plan, ReaderSchema, Route, Sink, Target, ValueForm};
use crate::config::{Problem, Span};
use crate::handler::{Handler, Views};
use crate::kafka::{self, ClusterError};
use crate::model::{Classify, ClusterId, Hint};
use crate::registry::{Registry, RegistryError};
use crate::sink::console::Console;
use crate::sink::file::{
    CsvFormat, FileSink, FileSinkOptions, Format, JsonLinesFormat, Owner, ParquetFormat,
};
use crate::sink::kafka::{KafkaSink, KafkaSinkOptions};
use crate::sink::{self, SinkError};

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
    let classified: [Option<&dyn Classify>; 3] = [
        error.downcast_ref::<RegistryError>().map(|error| error as &dyn Classify),
        error.downcast_ref::<ClusterError>().map(|error| error as &dyn Classify),
        error.downcast_ref::<SinkError>().map(|error| error as &dyn Classify),
    ];
    classified.into_iter().flatten().find_map(|error| error.hint())
}

/// The subject of a topic's values (TopicNameStrategy).
pub fn subject(route: &Route) -> String {
    let topic = route.topics.named().first().map_or("", |topic| topic.as_str());
    format!("{topic}-value")
}

/// Fetches a route's reader schema.
///
/// # Errors
/// [`ReaderError`]
async fn reader(
    route: &Route,
    schema: &ReaderSchema,
    registry: Option<&dyn Registry>,
) -> Result<Node, ReaderError> {
    let unusable =
        |what: String, problem: String| ReaderError::Unusable { route: route.name.clone(), what, problem };
    if let ReaderSchema::File(path) = schema {
        return schema_file(route, path);
    }
    let Some(registry) = registry else {
        return Err(unusable("nothing".to_owned(), "`schema_registry` is missing".to_owned()));
    };
    let fetched = match schema {
        ReaderSchema::File(path) => return schema_file(route, path),
        ReaderSchema::Latest => registry.by_subject(&subject(route), None).await,
        ReaderSchema::Version(version) => registry.by_subject(&subject(route), Some(*version)).await,
        ReaderSchema::Id(id) => registry.by_id(crate::model::SchemaId(*id)).await,
    };
    let schema = fetched.map_err(|source| ReaderError::Registry { route: route.name.clone(), source })?;
    let what = format!("schema id {}", schema.id);
    if schema.kind != "AVRO" {
        return Err(unusable(what, format!("it is {}, and this route reads Avro", schema.kind)));
    }
    Node::parse(&schema.text, &schema.references).map_err(|error| unusable(what, error.to_string()))
}

fn schema_file(route: &Route, path: &Path) -> Result<Node, ReaderError> {
    let unusable = |problem: String| ReaderError::Unusable {
        route: route.name.clone(),
        what: format!("`{}`", path.display()),
        problem,
    };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    Node::parse(&text, &[]).map_err(|error| unusable(error.to_string()))
}

/// The codec of a route's values.
///
/// # Errors
/// [`ReaderError`]
pub async fn codec(route: &Route, registry: Option<&dyn Registry>) -> Result<Box<dyn Codec>, ReaderError> {
    let unusable = |error: SchemaError| ReaderError::Unusable {
        route: route.name.clone(),
        what: "its schema".to_owned(),
        problem: error.to_string(),
    };
    Ok(match &route.value {
        ValueForm::Raw(form) => Box::new(Raw::new(*form, route.key, route.tombstones)),
        ValueForm::Json(path) => {
            let node = schema_file(route, path)?;
            Box::new(TypedJson::new(node, route.tombstones).map_err(unusable)?)
        }
        ValueForm::Registry(schema) => {
            let node = reader(route, schema, registry).await?;
            Box::new(RegisteredAvro::new(node, route.tombstones).map_err(unusable)?)
        }
    })
}

/// Is a route's reader schema in the registry?
pub fn needs_registry(route: &Route) -> bool {
    match &route.value {
        ValueForm::Registry(schema) => !matches!(schema, ReaderSchema::File(_)),
        ValueForm::Raw(_) | ValueForm::Json(_) => false,
    }
}

/// A route's codec and views, bound to one another.
pub struct Bound {
    pub codec: Box<dyn Codec>,
    pub views: Views,
    pub meta: Vec<MetaColumn>,
}

impl Bound {
    /// The schema of the rows a sink gets.
    pub fn schema(&self, sink: &Sink) -> SchemaRef {
        match sink.from {
            Some(view) => self.views.schema(view).clone(),
            None => self.codec.schema().clone(),
        }
    }
}

/// Binds a route to its reader schema.
///
/// # Errors
/// Problems with their places in the file.
pub async fn bind(route: &Route, codec: Box<dyn Codec>) -> Result<Bound, Vec<Problem>> {
    let whole = Span { line: 1, column: 1 };
    let problem = |message: String| vec![Problem::new(whole, format!("route `{}`: {message}", route.name))];
    let fields = codec.schema().fields();
    let is_taken = |column: &MetaColumn| fields.iter().any(|field| field.name() == column.name());
    let mut all = MetaColumn::all(route.key).to_vec();
    if matches!(route.value, ValueForm::Raw(_)) {
        // They are columns of the value here.
        all.retain(|column| !is_taken(column));
    } else if let Some(column) = all.iter().find(|column| is_taken(column)) {
        return Err(problem(format!(
            "the schema's field `{}` has the name of a column of ours",
            column.name()
        )));
    }
    let fields: Vec<Field> = all.iter().map(|column| column.field()).collect();
    let bound = Views::bind(codec.schema(), &fields, &route.views).await;
    let views = bound.map_err(|errors| {
        let problems = errors.into_iter().map(|error| {
            let view = &route.views[error.view];
            let (line, column) = error.place.unwrap_or((1, 1));
            let place = view.content.place(line, column);
            Problem::new(place, format!("view `{}`: {}", view.name, error.message))
        });
        problems.collect::<Vec<_>>()
    })?;
    let named: BTreeMap<&str, MetaColumn> = all.iter().map(|column| (column.name(), *column)).collect();
    let meta = views.meta().iter().filter_map(|field| named.get(field.name().as_str()).copied()).collect();
    Ok(Bound { codec, views, meta })
}

/// What sinks need besides their plan.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    pub kafka: &'a Kafka,
    pub cluster: &'a ClusterId,
}

/// Builds a sink for rows of `schema`. The one place that names the kinds.
///
/// # Errors
/// If a client cannot be made.
pub fn sink(plan: &Sink, schema: SchemaRef, around: Surroundings<'_>) -> anyhow::Result<Box<dyn sink::Sink>> {
    Ok(match &plan.target {
        Target::Files { format, path, roll } => {
            let owner = Owner {
                cluster: around.cluster.clone(),
                group: around.kafka.group.clone(),
                identity: plan.identity.clone(),
            };
            let options = FileSinkOptions { root: path.clone(), owner, schema, roll: *roll };
            let format: Box<dyn Format> = match format {
                FileFormat::Parquet => Box::new(ParquetFormat),
                FileFormat::JsonLines => Box::new(JsonLinesFormat),
                FileFormat::Csv => Box::new(CsvFormat),
            };
            Box::new(FileSink::new(options, format))
        }
        Target::Console { rows_max } => {
            Box::new(Console::new(plan.identity.clone(), *rows_max, Box::new(std::io::stdout())))
        }
        Target::Kafka { topic, key, value } => {
            let options = KafkaSinkOptions {
                identity: plan.identity.clone(),
                topic: topic.as_ref().map(ToString::to_string),
                key: key.clone(),
                value: value.clone(),
            };
            Box::new(KafkaSink::new(&kafka::producer_config(around.kafka), options)?)
        }
    })
}

/// The registry of a plan, if it has one; `check` has seen to it that routes which need one have one.
///
/// # Errors
/// If its settings are of no use.
pub fn registry(plan: &Plan) -> anyhow::Result<Option<Arc<dyn Registry>>> {
    Ok(match &plan.registry {
        Some(settings) => Some(Arc::new(crate::registry::RegistryClient::new(settings)?)),
        None => None,
    })
}
