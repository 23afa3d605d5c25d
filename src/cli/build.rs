//! From a plan to concrete things.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::admin::ListenError;
use crate::codec::meta::MetaColumn;
use crate::codec::{Decoder, Decoders, Side, Sorter};
use crate::config::plan::{
    AllowIds, Delta, FileFormat, Kafka, KeyForm, ObjectStorage, PartitionBy, Plan, RegistryForm, Route, Sink,
    Target, ValueForm,
};
use crate::config::{Problem, Span};
use crate::handler::{Expressions, Handler, Views};
use crate::kafka::{self, ClusterError};
use crate::model::{Classify, ClusterId, Hint, TopicName};
use crate::registry::{Allowed, Registry, RegistryClient, RegistryError};
use crate::sink::console::Console;
use crate::sink::delta::{DeltaSink, DeltaSinkOptions};
use crate::sink::file::{
    self, AvroFormat, CsvFormat, FileSink, FileSinkOptions, Format, Home, JsonLinesFormat, ParquetFormat,
    Partitioning,
};
use crate::sink::http::HttpSink;
use crate::sink::kafka::{DeleteKey, KafkaSink, KafkaSinkOptions, Transaction};
use crate::sink::owner::{Claim, Owner};
use crate::sink::postgres::{PostgresSink, PostgresSinkOptions};
use crate::sink::{self, SinkError};
use crate::status::Board;

pub use super::readers::{
    Parsed, ReadAs, ReaderError, decoders, needs_registry, reader, registry_form, schema_file, subject,
};
use super::{changes, fit};

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

/// A route's decoders and views, bound to one another.
pub struct Bound {
    pub decoders: Decoders,
    /// By decoder.
    pub views: Vec<Views>,
}

/// The decoder and the views of one record type.
#[derive(Clone, Copy)]
pub struct BoundType<'a> {
    pub decoder: &'a Decoder,
    pub views: &'a Views,
}

impl Bound {
    /// What makes the rows of a sink.
    pub fn of(&self, sink: &Sink) -> BoundType<'_> {
        BoundType { decoder: &self.decoders.each()[sink.record_type], views: &self.views[sink.record_type] }
    }

    /// The schema of the rows a sink gets.
    pub fn schema(&self, sink: &Sink) -> SchemaRef {
        self.of(sink).schema(sink)
    }
}

impl BoundType<'_> {
    /// The schema of the rows that a sink of the type gets.
    pub fn schema(&self, sink: &Sink) -> SchemaRef {
        match sink.from {
            Some(view) => self.views.schema(view).clone(),
            None => self.decoder.schema().clone(),
        }
    }

    /// Is each row that a sink of the type gets made of one record?
    pub fn is_of_records(&self, sink: &Sink) -> bool {
        sink.from.is_none_or(|view| self.views.is_of_records(view))
    }

    /// The type of the decoded record keys.
    pub fn key_type(&self) -> DataType {
        self.decoder.key_type()
    }
}

/// What lanes call views.
pub fn handlers(views: Vec<Views>) -> Vec<Box<dyn Handler>> {
    views.into_iter().map(|views| Box::new(views) as Box<dyn Handler>).collect()
}

/// Binds a route to its reader schemas.
///
/// # Errors
/// Problems with their places in the file.
pub async fn bind(route: &Route, decoders: Vec<Decoder>) -> Result<Bound, Vec<Problem>> {
    let (mut each, mut views, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for (of_type, decoder) in route.by_type().iter().zip(decoders) {
        match bind_type(of_type, decoder).await {
            Ok((decoder, own)) => {
                each.push(decoder);
                views.push(own);
            }
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let sorter = match &route.value {
        ValueForm::Registry(form) if !route.record_types.is_empty() => {
            let names = route.record_types.iter().map(|record_type| record_type.name.clone());
            Some(Sorter::new(names.collect(), form.framing))
        }
        _ => None,
    };
    Ok(Bound { decoders: Decoders::new(each, sorter), views })
}

async fn bind_type(route: &Route, decoder: Decoder) -> Result<(Decoder, Views), Vec<Problem>> {
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
    let keeping = changes::keeping(route, BoundType { decoder: &decoder, views: &views });
    let decoder = match keeping {
        Some(tells_unavailable) => decoder.with_deletes(tells_unavailable),
        None => decoder,
    };
    let bound = BoundType { decoder: &decoder, views: &views };
    let partitions = route.sinks.iter().map(|sink| expressions(sink, &bound.schema(sink)));
    let mut problems: Vec<Problem> = partitions.filter_map(Result::err).flatten().collect();
    problems.extend(fit::problems(route, bound));
    if problems.is_empty() { Ok((decoder, views)) } else { Err(problems) }
}

pub fn kafka_options(plan: &Sink) -> Option<KafkaSinkOptions> {
    let Target::Kafka { topic, key, value, .. } = &plan.target else {
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

/// What the files of a sink are partitioned by, bound to the schema of its rows.
///
/// # Errors
/// Problems with their places in the file.
fn expressions(sink: &Sink, rows: &SchemaRef) -> Result<Option<Expressions>, Vec<Problem>> {
    let (Target::Files { partition_by, .. } | Target::Delta(Delta { partition_by, .. })) = &sink.target
    else {
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

/// The columns that a sink is partitioned by; none if it is not.
///
/// # Errors
/// Problems with their places in the file.
pub fn partition_fields(sink: &Sink, rows: &SchemaRef) -> Result<Vec<Field>, Vec<Problem>> {
    Ok(expressions(sink, rows)?.map(|bound| bound.fields()).unwrap_or_default())
}

fn partitioning(expressions: Expressions, levels: &[PartitionBy], rows: &SchemaRef) -> Partitioning {
    let names = levels.iter().map(|level| level.name.clone()).collect();
    let values = move |rows: &RecordBatch| {
        let values = expressions.evaluate(rows);
        values.map_err(|error| Box::new(error) as Box<dyn Error + Send + Sync>)
    };
    Partitioning::new(names, rows, Box::new(values))
}

/// What is wrong with expressions. It was reported when the route was bound.
fn joined(problems: Vec<Problem>) -> anyhow::Error {
    let messages: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
    anyhow!(messages.join("; "))
}

/// What sinks need besides their plan.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    pub kafka: &'a Kafka,
    pub cluster: &'a ClusterId,
    /// For sinks that write with its schemas.
    pub registry: Option<&'a Arc<dyn Registry>>,
    /// For sinks that write to others, by name.
    pub clusters: &'a BTreeMap<String, Kafka>,
    /// For sinks that write in the lane's.
    pub transaction: Option<&'a Transaction>,
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

/// Builds a sink as a lane has it: one that is not required works in the background.
///
/// # Errors
/// If a client cannot be made.
pub fn lane_sink(
    plan: &Sink,
    schema: SchemaRef,
    key: &DataType,
    deletes: Option<DeleteKey>,
    around: Surroundings<'_>,
) -> anyhow::Result<Box<dyn sink::Sink>> {
    let built = sink(plan, schema, key, deletes, around)?;
    Ok(if plan.is_required { built } else { Box::new(sink::Background::new(built)) })
}

/// Where a file sink writes.
///
/// # Errors
/// If a client of its object store cannot be made.
pub fn home(plan: &Sink, path: &Path, storage: Option<&ObjectStorage>) -> anyhow::Result<Home> {
    file::home(path, storage).with_context(|| format!("sink `{}`: `{}`", plan.name, path.display()))
}

/// Builds a sink for rows of `schema`, of records whose keys have the type `key`. A topic gets keys that are gone as
/// `deletes` says. The one place that names the kinds.
///
/// # Errors
/// If a client cannot be made.
pub fn sink(
    plan: &Sink,
    schema: SchemaRef,
    key: &DataType,
    deletes: Option<DeleteKey>,
    around: Surroundings<'_>,
) -> anyhow::Result<Box<dyn sink::Sink>> {
    Ok(match &plan.target {
        Target::Files { format, path, storage, partition_by, roll } => {
            let claim = claim(plan, around);
            let expressions = expressions(plan, &schema).map_err(joined)?;
            let partitioning = expressions.map(|bound| partitioning(bound, partition_by, &schema));
            let home = home(plan, path, storage.as_deref())?;
            let options = FileSinkOptions { home, claim, schema, roll: *roll, partitioning };
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
        Target::Kafka { cluster, is_transactional, .. } => {
            let options = kafka_options(plan).ok_or_else(|| anyhow!("sink `{}` has no topic", plan.name))?;
            let options = KafkaSinkOptions { deletes, ..options };
            let registry = around.registry.cloned();
            if *is_transactional {
                let built = around
                    .transaction
                    .and_then(|transaction| KafkaSink::in_transaction(transaction, options, registry));
                let built =
                    built.ok_or_else(|| anyhow!("sink `{}` has no group to write offsets of", plan.name))?;
                return Ok(Box::new(built));
            }
            let kafka = match cluster {
                Some(name) => around.clusters.get(name),
                None => Some(around.kafka),
            };
            let kafka = kafka.ok_or_else(|| anyhow!("sink `{}` names no known cluster", plan.name))?;
            Box::new(KafkaSink::new(&kafka::producer_config(kafka), options, registry)?)
        }
        Target::Http(options) => Box::new(HttpSink::new(plan.identity.clone(), options)?),
        Target::Delta(table) => {
            let partitions = partition_fields(plan, &schema).map_err(joined)?;
            let expressions = expressions(plan, &schema).map_err(joined)?;
            let partitioning =
                expressions.map(|bound| (partitioning(bound, &table.partition_by, &schema), partitions));
            let options =
                DeltaSinkOptions { target: table.clone(), claim: claim(plan, around), schema, partitioning };
            let built = DeltaSink::new(options);
            Box::new(built.map_err(|wrong| anyhow!("sink `{}`: {wrong}", plan.name))?)
        }
        Target::Postgres(table) => {
            let keys = fit::table_keys(table, key);
            let options =
                PostgresSinkOptions { target: table.clone(), claim: claim(plan, around), schema, keys };
            let built = PostgresSink::new(options);
            Box::new(built.map_err(|wrong| anyhow!("sink `{}`: `url`: {wrong}", plan.name))?)
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

/// The registry as the records of a route may use it.
pub fn registry_of(route: &Route, registry: Arc<dyn Registry>) -> Arc<dyn Registry> {
    if route.allow_ids == AllowIds::Any {
        return registry;
    }
    let mut forms: Vec<(Side, &RegistryForm)> =
        route.value_forms().into_iter().map(|form| (Side::Value, form)).collect();
    if let KeyForm::Registry(form) = &route.key {
        forms.push((Side::Key, form));
    }
    // Subjects that the file names, or of the topic whose dead letters are replayed, are not called after topics here.
    let named: Vec<String> = forms.iter().map(|(side, form)| subject(route, *side, form)).collect();
    // What is before and behind the topic's name.
    let mut around: Vec<(String, String)> = Vec::new();
    for (side, form) in forms {
        let suffix = if side == Side::Value { "-value" } else { "-key" };
        let of_form = form.subject.as_deref().and_then(|subject| subject.split_once("{topic}"));
        for (before, behind) in of_form.into_iter().chain([("", suffix)]) {
            around.push((before.to_owned(), behind.to_owned()));
        }
    }
    let topics = route.topics.clone();
    let is_allowed = move |subject: &str| {
        named.iter().any(|name| name == subject)
            || around.iter().any(|(before, behind)| {
                let topic = subject.strip_prefix(before.as_str());
                let topic = topic.and_then(|rest| rest.strip_suffix(behind.as_str()));
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
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::plan::SchemaFormat;
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
        let decoders = decoders(&plan.routes[0], None).await.unwrap();
        match bind(&plan.routes[0], decoders).await {
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
        let cases: [(&str, &[&str]); 5] = [
            ("topics: [t]", &subjects),
            ("topics: [t], allow_ids: subject", &["t-value"]),
            ("topics: [u, t], key: registry, allow_ids: subject", &["t-value", "t-key", "u-value"]),
            (
                "topics: {pattern: '.*'}, reader_schema: {id: 1}, allow_ids: subject",
                &["t-value", "u-value", "shop.a-value"],
            ),
            (
                "topics: [t, a], subject: 'shop.{topic}-value', allow_ids: subject",
                &["t-value", "shop.a-value"],
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
