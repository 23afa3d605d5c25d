//! A Delta table as its log has it: what it is read with, what it demands of who writes to it, and its columns.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use delta_kernel::Snapshot;
use delta_kernel::actions::LOG_TXN_SCHEMA;
use delta_kernel::engine::arrow_data::EngineDataArrowExt;
use delta_kernel::object_store::local::LocalFileSystem;
use delta_kernel::schema::StructType;
use delta_kernel_engine::executor::tokio::TokioMultiThreadExecutor;
use delta_kernel_engine::{DefaultEngine, DefaultEngineBuilder};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::error::TableError;
use super::positions::{Txn, Writers};
use super::{log, types};

/// What a writer has to do about these is nothing, or is asked for by properties that [`demands`] looks at.
const FEATURES: [&str; 13] = [
    "appendOnly",
    "changeDataFeed",
    "checkConstraints",
    "columnMapping",
    "deletionVectors",
    "domainMetadata",
    "generatedColumns",
    "identityColumns",
    "invariants",
    "timestampNtz",
    "typeWidening",
    "v2Checkpoint",
    "vacuumProtocolCheck",
];

/// What columns have that are not plain, by the name of the property in their metadata.
const NOT_PLAIN: [(&str, &str); 3] = [
    ("\"delta.invariants\"", "a column with an invariant"),
    ("\"delta.generationExpression\"", "a generated column"),
    ("\"delta.identity.start\"", "an identity column"),
];

/// Commits from one checkpoint to the next, unless the table says: as many as delta-rs makes. Reading a log is reading what
/// came after its last checkpoint.
const CHECKPOINT_INTERVAL: u64 = 100;

/// A table at a version.
#[derive(Debug, Clone)]
pub struct Table {
    pub root: PathBuf,
    pub version: u64,
    /// Its newest `metaData` and `protocol` actions.
    metadata: Value,
    protocol: Value,
}

/// How rows are written to a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// The columns of data files.
    pub files: SchemaRef,
    /// Lines of the log that give the table the columns that it lacks.
    pub widening: Vec<Value>,
}

/// What the library reads with.
pub type Engine = DefaultEngine<TokioMultiThreadExecutor>;

/// Its reads run on the runtime we are in; a checkpoint needs one of several threads.
pub fn engine() -> Engine {
    let executor = Arc::new(TokioMultiThreadExecutor::new(Handle::current()));
    DefaultEngineBuilder::new(Arc::new(LocalFileSystem::new())).with_task_executor(executor).build()
}

/// A version of the table below `root`; `None`: the newest one.
///
/// # Errors
/// [`TableError`]
pub fn snapshot(root: &Path, version: Option<u64>, engine: &Engine) -> Result<Arc<Snapshot>, TableError> {
    let root = fs::canonicalize(root).map_err(|source| TableError::io("find", root, source))?;
    let Some(root) = root.to_str() else {
        return Err(TableError::stop("its `path` is not UTF-8", "give the sink another `path`"));
    };
    let builder = Snapshot::builder_for(root);
    let builder = match version {
        Some(version) => builder.at_version(version),
        None => builder,
    };
    builder.build(engine).map_err(TableError::kernel("read the table's log"))
}

/// A part of a snapshot as the log has it.
fn action<T: serde::Serialize>(part: &T) -> Result<Value, TableError> {
    serde_json::to_value(part).map_err(|error| TableError::Again(error.to_string()))
}

impl Table {
    /// Reads the newest version, with all that its `txn` actions say of sinks. `None`: there is no table.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn open(root: &Path) -> Result<Option<(Self, Writers)>, TableError> {
        if !log::is_table(root)? {
            return Ok(None);
        }
        let engine = engine();
        let snapshot = snapshot(root, None, &engine)?;
        let configuration = snapshot.table_configuration();
        let metadata = action(configuration.metadata())?;
        let protocol = action(configuration.protocol())?;
        let table = Self { root: root.to_owned(), version: snapshot.version(), metadata, protocol };
        Ok(Some((table, writers(&snapshot, &engine)?)))
    }

    /// Creates a table of these columns, unless somebody else does so at the same time.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn create(root: &Path, columns: &StructType, partitions: &[String]) -> Result<(), TableError> {
        let protocol = if types::has_local_times(columns) {
            let features = json!(["timestampNtz"]);
            json!({"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features})
        } else {
            json!({"minReaderVersion": 1, "minWriterVersion": 2})
        };
        let metadata = json!({
            "id": Uuid::new_v4().to_string(),
            "format": {"provider": "parquet", "options": {}},
            "schemaString": schema_string(columns)?,
            "partitionColumns": partitions,
            "createdTime": now(),
            "configuration": {},
        });
        let info = commit_info("CREATE TABLE", &[("partitionBy", json!(partitions))], false);
        let lines = [info, json!({"protocol": protocol}), json!({"metaData": metadata})];
        log::create(root, 0, &lines).map(|_| ())
    }

    /// Goes on to the next version, which these lines have made.
    pub fn advance(&mut self, lines: &[Value]) {
        self.version += 1;
        for line in lines {
            if let Some(metadata) = line.get("metaData") {
                self.metadata = metadata.clone();
            }
            if let Some(protocol) = line.get("protocol") {
                self.protocol = protocol.clone();
            }
        }
    }

    pub fn partitions(&self) -> Vec<String> {
        let columns = self.metadata.get("partitionColumns").and_then(Value::as_array);
        let names = columns.into_iter().flatten().filter_map(Value::as_str);
        names.map(str::to_owned).collect()
    }

    fn columns(&self) -> Result<StructType, TableError> {
        let text = self.metadata.get("schemaString").and_then(Value::as_str).unwrap_or_default();
        serde_json::from_str(text).map_err(|error| {
            let hint = "give the sink another `path`";
            TableError::stop(format!("the table's columns cannot be read: {error}"), hint)
        })
    }

    /// How rows with these columns are written here; with `creates` the table gets those that it lacks.
    ///
    /// # Errors
    /// [`TableError::Stop`] if they do not fit, or the table demands what we do not do.
    pub fn shape(&self, own: &StructType, partitions: &[String], creates: bool) -> Result<Shape, TableError> {
        if let Some(demand) = demands(&self.protocol, &self.metadata) {
            return Err(TableError::stop(
                format!("the table has {demand}, which this sink does not write for"),
                "give the sink a table of its own, and let another engine copy from it",
            ));
        }
        if self.partitions() != partitions {
            return Err(TableError::stop(
                format!(
                    "the table is partitioned by {:?}, and the sink by {partitions:?}",
                    self.partitions()
                ),
                "let `partition_by` name the columns that the table is partitioned by, in their order",
            ));
        }
        let known = self.columns()?;
        let unfit = |problem: String| {
            TableError::stop(
                format!("its rows do not fit: {problem}"),
                "alter the table, or let the sink read a view that casts and names its columns as the table does",
            )
        };
        let merged = types::merged(&known, own).map_err(unfit)?;
        let files = types::in_files(&merged, own, partitions).map_err(unfit)?;
        let mut widening = Vec::new();
        if merged != known {
            if !creates {
                let hint = "add them, or say `create: true`";
                let problem = format!("the table lacks columns of the rows: {}", missing(&known, own));
                return Err(TableError::stop(problem, hint));
            }
            if types::has_local_times(&merged) && !self.has_feature("timestampNtz") {
                return Err(TableError::stop(
                    "a column of local times is to be added, and the table lacks the feature `timestampNtz`",
                    "enable it in the table, or cast the column to an instant in a view",
                ));
            }
            let mut metadata = self.metadata.as_object().cloned().unwrap_or_default();
            metadata.insert("schemaString".to_owned(), json!(schema_string(&merged)?));
            widening.push(json!({"metaData": metadata}));
        }
        Ok(Shape { files, widening })
    }

    fn has_feature(&self, name: &str) -> bool {
        features(&self.protocol).any(|feature| feature == name)
    }

    /// Is it time for a checkpoint?
    pub fn is_checkpoint_due(&self) -> bool {
        let interval = self.metadata.pointer("/configuration/delta.checkpointInterval");
        let interval = interval.and_then(Value::as_str).and_then(|text| text.parse().ok());
        let interval: u64 = interval.filter(|interval| *interval > 0).unwrap_or(CHECKPOINT_INTERVAL);
        self.version > 0 && self.version.is_multiple_of(interval)
    }

    /// Writes a checkpoint of this version.
    ///
    /// # Errors
    /// [`TableError`]; the table is as good without.
    pub fn checkpoint(&self) -> Result<(), TableError> {
        let engine = engine();
        let snapshot = snapshot(&self.root, Some(self.version), &engine)?;
        snapshot.checkpoint(&engine, None).map_err(TableError::kernel("write a checkpoint"))?;
        let synced = log::sync_checkpoint(&self.root, self.version);
        synced.map_err(|source| TableError::io("sync a checkpoint of", &self.root, source))
    }
}

/// All that the newest `txn` actions say of sinks.
fn writers(snapshot: &Snapshot, engine: &Engine) -> Result<Writers, TableError> {
    let failed = TableError::kernel("read where sinks stand");
    let mut found: HashMap<String, i64> = HashMap::new();
    // From the newest entry back: the first of a name is the newest.
    let batches = snapshot.log_segment().read_actions(engine, LOG_TXN_SCHEMA.clone()).map_err(&failed)?;
    for batch in batches {
        let actions = batch.map_err(&failed)?.actions.try_into_record_batch().map_err(&failed)?;
        let odd = || TableError::Again("a `txn` action has another form than the protocol says".to_owned());
        let txns = actions.column_by_name("txn").and_then(|column| column.as_struct_opt()).ok_or_else(odd)?;
        let app_ids = txns.column_by_name("appId").and_then(|column| cast(column, &DataType::Utf8).ok());
        let app_ids = app_ids.ok_or_else(odd)?;
        let app_ids = app_ids.as_string_opt::<i32>().ok_or_else(odd)?;
        let numbers =
            txns.column_by_name("version").and_then(|column| column.as_primitive_opt::<Int64Type>());
        let numbers = numbers.ok_or_else(odd)?;
        for row in 0..txns.len() {
            if txns.is_valid(row) && app_ids.is_valid(row) && numbers.is_valid(row) {
                found.entry(app_ids.value(row).to_owned()).or_insert_with(|| numbers.value(row));
            }
        }
    }
    let mut writers = Writers::default();
    for (app_id, number) in found {
        if let Some(txn) = Txn::parse(&app_id, number) {
            writers.note(txn);
        }
    }
    Ok(writers)
}

fn schema_string(columns: &StructType) -> Result<String, TableError> {
    serde_json::to_string(columns).map_err(|error| TableError::Again(error.to_string()))
}

fn missing(known: &StructType, own: &StructType) -> String {
    let missing = own.fields().filter(|column| known.field(&column.name).is_none());
    let names: Vec<String> = missing.map(|column| format!("`{}`", column.name)).collect();
    if names.is_empty() { "some that are nested in others".to_owned() } else { names.join(", ") }
}

fn features(protocol: &Value) -> impl Iterator<Item = &str> {
    let listed = protocol.get("writerFeatures").and_then(Value::as_array);
    listed.into_iter().flatten().filter_map(Value::as_str)
}

/// What a table demands of who writes to it that we do not do, if anything.
pub fn demands(protocol: &Value, metadata: &Value) -> Option<String> {
    let version = protocol.get("minWriterVersion").and_then(Value::as_i64).unwrap_or_default();
    if !(1..=7).contains(&version) {
        return Some(format!("writer version {version}"));
    }
    if let Some(feature) = features(protocol).find(|feature| !FEATURES.contains(feature)) {
        return Some(format!("the feature `{feature}`"));
    }
    let nothing = Map::new();
    let configuration = metadata.get("configuration").and_then(Value::as_object).unwrap_or(&nothing);
    if configuration.keys().any(|key| key.starts_with("delta.constraints.")) {
        return Some("a check constraint".to_owned());
    }
    let mapping = configuration.get("delta.columnMapping.mode").and_then(Value::as_str);
    if mapping.is_some_and(|mode| mode != "none") {
        return Some("a mapping of columns".to_owned());
    }
    let columns = metadata.get("schemaString").and_then(Value::as_str).unwrap_or_default();
    let found = NOT_PLAIN.iter().find(|(property, _)| columns.contains(property));
    found.map(|(_, what)| (*what).to_owned())
}

/// The line of the log that tells people what was done.
pub fn commit_info(operation: &str, parameters: &[(&str, Value)], is_append: bool) -> Value {
    let parameters: Map<String, Value> = parameters
        .iter()
        .map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            ((*name).to_owned(), json!(text))
        })
        .collect();
    json!({"commitInfo": {
        "timestamp": now(),
        "operation": operation,
        "operationParameters": parameters,
        "isBlindAppend": is_append,
        // No two entries are alike.
        "txnId": Uuid::new_v4().to_string(),
        "engineInfo": concat!("sidestream ", env!("CARGO_PKG_VERSION")),
    }})
}

/// Milliseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
