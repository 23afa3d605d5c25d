//! What the engine runs: validated, complete, without options where a default exists.

mod form;
mod storage;
mod target;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::{Start, StartHash, TopicName};

use super::topics::Topics;
use super::tree::Content;

pub use form::{
    AllowIds, Framing, KeyForm, OnNewSchema, RawForm, ReaderSchema, Recursion, RegistryForm, SchemaFormat,
    ValueForm,
};
pub use storage::{ObjectLogin, ObjectStorage, Scheme};
pub use target::{
    Delta, Http, HttpForm, HttpMethod, ParquetColumn, ParquetCompression, ParquetOptions, Postgres,
    PrimaryKey, SecretUrl, Statistics, TableRows, TextCompression,
};

/// The whole file.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub kafka: Kafka,
    /// Others that sinks write to, by name.
    pub clusters: BTreeMap<String, Kafka>,
    pub registry: Option<Registry>,
    /// Bytes, for everything held between the broker and the sinks.
    pub memory: u64,
    /// How often topics are matched against patterns.
    pub topic_refresh: Duration,
    pub admin: Admin,
    pub routes: Vec<Route>,
    /// Routes of the file that are not run.
    pub others: Vec<Route>,
}

impl Plan {
    /// Puts everything that is written to disk below `root`.
    pub fn write_below(&mut self, root: &Path) {
        if let Some(dir) = self.registry.as_mut().and_then(|registry| registry.cache_dir.as_mut()) {
            *dir = root.join(dir.as_path());
        }
        let routes = self.routes.iter_mut();
        for sink in routes.flat_map(|route| route.sinks.iter_mut().chain(&mut route.dead_letters)) {
            match &mut sink.target {
                Target::Files { path, storage: None, .. } | Target::Delta(Delta { path, .. }) => {
                    *path = root.join(path.as_path());
                }
                Target::Files { storage: Some(_), .. }
                | Target::Kafka { .. }
                | Target::Console { .. }
                | Target::Http(_)
                | Target::Postgres(_) => {}
            }
        }
    }
}

/// `admin:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// A host and a port; `None`: nowhere.
    pub listen: Option<String>,
    /// The file says so; otherwise it is the default.
    pub is_given: bool,
}

/// librdkafka properties; never shown, they hold passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Kafka {
    pub properties: BTreeMap<String, String>,
    pub group: String,
}

impl Kafka {
    /// For a route with `isolated: true`: the same, in a group of the route's own.
    #[must_use]
    pub fn of_isolated(&self, route: &str) -> Self {
        let group = format!("{}.{route}", self.group);
        let mut properties = self.properties.clone();
        properties.insert("group.id".to_owned(), group.clone());
        Self { properties, group }
    }
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.properties.keys().collect();
        f.debug_struct("Kafka").field("group", &self.group).field("properties", &names).finish()
    }
}

/// `schema_registry:`.
#[derive(Debug, Clone, PartialEq)]
pub struct Registry {
    /// In the order they are tried; at least one. A context is in them.
    pub urls: Vec<String>,
    pub login: Option<Login>,
    /// Certificates of authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    pub client_certificate: Option<ClientCertificate>,
    /// For one call to one URL.
    pub timeout: Duration,
    /// How often subjects are asked for their newest version.
    pub refresh: Duration,
    /// Where schemas are kept for the next start.
    pub cache_dir: Option<PathBuf>,
}

impl Registry {
    /// As often as Confluent's clients ask for a newest version.
    const REFRESH: Duration = Duration::from_secs(60);

    /// A registry that needs no login and no certificates, without a cache on disk.
    pub fn at(url: String, timeout: Duration) -> Self {
        let refresh = Self::REFRESH;
        Self {
            urls: vec![url],
            login: None,
            ca_file: None,
            client_certificate: None,
            timeout,
            refresh,
            cache_dir: None,
        }
    }
}

/// Who we are to the registry; never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    Basic { username: String, password: String },
    Bearer { token: String },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Bearer { .. } => "Bearer(…)",
        })
    }
}

/// Two PEM files: the certificate with what leads to its authority, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub name: String,
    pub topics: Topics,
    /// A template of one route for each topic; see [`Route::instance`].
    pub is_per_topic: bool,
    /// It has a consumer of its own; see [`Kafka::of_isolated`].
    pub is_isolated: bool,
    /// Its topic holds dead letters of this route, which are read as what they were. Schemas are those of the topic
    /// named here.
    pub replays: Option<TopicName>,
    pub key: KeyForm,
    pub value: ValueForm,
    pub allow_ids: AllowIds,
    /// What records of each type become; then each has its own `value` and `views`. Empty if all are of one type.
    pub record_types: Vec<RecordType>,
    /// What follows from records of a type that is not among them; if nothing is said, what does from bad records.
    pub other_types: Option<BadRecords>,
    pub on_new_schema: OnNewSchema,
    pub start: Start,
    pub start_hash: StartHash,
    pub tombstones: Tombstones,
    pub envelope: Envelope,
    pub truncate: Truncate,
    pub batch: BatchLimits,
    pub on_data_loss: OnDataLoss,
    pub bad_records: BadRecords,
    /// What follows when a sink refuses what became of a record.
    pub refused_rows: BadRecords,
    /// Where bad and refused records go, and those of other types, with [`BadRecords::DeadLetter`].
    pub dead_letters: Vec<Sink>,
    pub views: Vec<View>,
    pub sinks: Vec<Sink>,
}

impl Route {
    /// Are its records written in transactions? Then those of all its sinks are.
    pub fn has_transactions(&self) -> bool {
        self.sinks.iter().any(|sink| sink.target.is_transactional())
    }

    /// May its records say that a key is gone?
    pub fn has_deletes(&self) -> bool {
        self.tombstones == Tombstones::Delete || self.envelope == Envelope::Debezium
    }
}

/// One of `record_types:` of a route. Its sinks are those of the route that say so.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordType {
    /// As serialisers call it: the full name of an Avro record or a Protobuf message, the title of a JSON Schema.
    pub name: String,
    pub form: RegistryForm,
    pub views: Vec<View>,
}

/// `tombstones:` of a route: what a record without a value becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tombstones {
    /// A row of nulls with its key.
    Keep,
    /// Nothing; counted.
    Skip,
    /// Its key is gone: for sinks that update by key. Nothing for the others.
    Delete,
}

/// `envelope:` of a route: what is around the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    None,
    /// Change events of database tables: before, after, what happened.
    Debezium,
}

/// `truncate:` of a route: what follows, for sinks that keep rows by key, when the table of change events was truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncate {
    /// The record is bad.
    Refuse,
    /// Rows stay.
    Ignore,
    /// All rows are deleted.
    Delete,
}

/// `bad_records:` and `refused_rows:` of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRecords {
    Stop,
    Skip,
    DeadLetter,
}

/// `on_data_loss:` of a route: what follows when the brokers no longer have what a sink has not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDataLoss {
    Stop,
    /// Goes on with what is there; the range is logged and stored as lost.
    Continue,
}

/// `batch:` of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    pub rows_max: usize,
    pub bytes_max: usize,
    pub age_max: Duration,
}

/// One side output.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub name: String,
    pub sql: String,
    /// Where the SQL stands in the file.
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Sink {
    pub name: String,
    /// What its progress is kept under.
    pub identity: String,
    /// Whose rows it is given: of which of the route's record types, by its place.
    pub record_type: usize,
    /// The view it reads, by its place among those of its record type; `None` is `batch`.
    pub from: Option<usize>,
    /// Where it begins, if it says so itself, and the digest that tells an edit.
    pub start: Option<(Start, StartHash)>,
    pub target: Target,
    /// The identity whose positions in the target are taken over, if it is not known there by its own.
    pub adopt: Option<String>,
    /// It may write where others write.
    pub is_shared: bool,
    /// The route waits for it; without the others it goes on.
    pub is_required: bool,
}

impl Sink {
    /// What `check` prints of it.
    pub fn guarantee(&self) -> String {
        let kept = self.target.guarantee();
        match self.is_required {
            true => kept.into_owned(),
            false => format!(
                "{kept}; not required: the route goes on without it while it fails, and it catches up later, but for what the brokers have deleted by then"
            ),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Files {
        format: FileFormat,
        /// A directory, or where `storage` says so, a prefix of an object store with its scheme.
        path: PathBuf,
        storage: Option<Box<ObjectStorage>>,
        /// From the outermost directory inwards; empty if there are none.
        partition_by: Vec<PartitionBy>,
        roll: Roll,
    },
    /// A table on the screen.
    Console { rows_max: usize },
    /// Records of a topic; a `topic` column says which where this does not.
    Kafka {
        topic: Option<TopicName>,
        key: Option<Written>,
        value: Option<Written>,
        /// In one transaction with the group's offsets.
        is_transactional: bool,
        /// Another one than the one that is read, by its name.
        cluster: Option<String>,
    },
    /// Requests to a server.
    Http(Http),
    /// Rows of a table.
    Postgres(Postgres),
    /// Rows of a Delta table.
    Delta(Delta),
}

/// What a record's key or value is made of, where a kafka sink says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// `None`: all columns.
    pub column: Option<String>,
    pub form: WrittenForm,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WrittenForm {
    /// Bytes and text as they are, everything else as text.
    Text,
    Json,
    /// With the id of a schema that the registry has.
    Registered(WriterSchema),
}

/// The schema that keys or values are written with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterSchema {
    pub format: SchemaFormat,
    pub subject: Subject,
    pub source: SchemaSource,
    /// Of the record or message, with its namespace or package.
    pub record_name: Option<String>,
}

/// `subject:` of a written schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// `<topic>-value` or `<topic>-key`.
    Topic,
    /// The record's name.
    Record,
    /// `<topic>-<record's name>`
    TopicRecord,
    Literal(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaSource {
    /// Made of the columns, and registered.
    Registered,
    /// Made of the columns; the subject has it already.
    Known,
    /// The newest of the subject.
    Latest,
}

/// How rows become bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileFormat {
    Parquet(ParquetOptions),
    JsonLines(TextCompression),
    Csv(TextCompression),
    Avro { codec: AvroCodec, record_name: String },
}

/// `codec:` of Avro files: how their blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AvroCodec {
    None,
    Deflate,
    Snappy,
    Zstd,
}

/// One level of `partition_by:` of a file sink: a directory `name=value` for each value.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionBy {
    pub name: String,
    /// An expression over a row.
    pub sql: String,
    /// Where the SQL stands in the file.
    pub content: Content,
}

/// `roll:` of a file sink: when its open files are closed and committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roll {
    pub bytes_max: u64,
    pub rows_max: Option<u64>,
    pub age_max: Duration,
}

impl Target {
    /// Are a sink's positions kept with its data? Else they are kept beside the group's offsets.
    pub fn has_own_store(&self) -> bool {
        match self {
            Self::Files { .. } | Self::Postgres(_) | Self::Delta(_) => true,
            Self::Console { .. } | Self::Kafka { .. } | Self::Http(_) => false,
        }
    }

    /// Does a row replace the one that has its key? What is not one row for one record would replace too much.
    pub fn is_upsert(&self) -> bool {
        match self {
            Self::Postgres(table) => table.rows != TableRows::Append,
            Self::Files { .. }
            | Self::Console { .. }
            | Self::Kafka { .. }
            | Self::Http(_)
            | Self::Delta(_) => false,
        }
    }

    /// Are its records and the group's offsets in one transaction?
    pub fn is_transactional(&self) -> bool {
        matches!(self, Self::Kafka { is_transactional: true, .. })
    }

    /// Are records written with schemas of the registry?
    pub fn has_schemas(&self) -> bool {
        let is_registered = |written: &Written| matches!(written.form, WrittenForm::Registered(_));
        match self {
            Self::Kafka { key, value, .. } => key.iter().chain(value).any(is_registered),
            Self::Files { .. }
            | Self::Console { .. }
            | Self::Http(_)
            | Self::Postgres(_)
            | Self::Delta(_) => false,
        }
    }

    /// Do both write to one directory, or to one table?
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Files { path, .. }, Self::Files { path: other, .. }) => path == other,
            (Self::Delta(table), Self::Delta(other)) => table.path == other.path,
            (Self::Postgres(table), Self::Postgres(other)) => {
                (&table.url, table.shown()) == (&other.url, other.shown())
            }
            _ => false,
        }
    }

    /// The key that names the target, where it has an owner.
    pub fn place_key(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "table",
            Self::Files { .. }
            | Self::Console { .. }
            | Self::Kafka { .. }
            | Self::Http(_)
            | Self::Delta(_) => "path",
        }
    }

    /// What `check` prints of a sink.
    pub fn guarantee(&self) -> Cow<'static, str> {
        let said = match self {
            Self::Console { .. } => "a convenience: rows may be shown again",
            Self::Kafka { topic, is_transactional: true, .. } => {
                let topics = match topic {
                    Some(topic) => format!("topic {topic}"),
                    None => "the topics that rows name".to_owned(),
                };
                return Cow::Owned(format!(
                    "exactly once into {topics} for read_committed consumers: rows and the group's offsets are one \
                     transaction; other consumers see rows that were aborted, too"
                ));
            }
            Self::Kafka { .. } => {
                "at least once: every row is with the broker before the position moves; rows come again after a crash"
            }
            Self::Http(_) => {
                "at least once: every row is answered with 2xx before the position moves; rows come again under the same keys"
            }
            Self::Files { storage: None, .. } => {
                "exactly once: files and positions are one entry of the directory's commit log"
            }
            Self::Files { storage: Some(_), .. } => {
                "exactly once: files and positions are one entry of the prefix's commit log. That needs a store that \
                 creates an object only if it is absent: the start tries it, and says if it does not"
            }
            Self::Postgres(_) => "exactly once: rows and positions are one transaction",
            Self::Delta(_) => "exactly once: data files and positions are one entry of the table's log",
        };
        Cow::Borrowed(said)
    }
}
