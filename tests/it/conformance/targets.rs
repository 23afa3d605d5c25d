//! What sinks write to: real components, read back without any code of the program.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use apache_avro::types::Value as Datum;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use rdkafka::Message;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::proxy::Proxy;
use crate::support::objects::{ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY};
use crate::support::program::files;
use crate::support::{self, Objects, Owned, Postgres, Services, Stoppable, data};

/// A row as the target has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub seq: i64,
    /// By which the target knows a row that comes again.
    pub key: Option<String>,
}

impl From<i64> for Row {
    fn from(seq: i64) -> Self {
        Self { seq, key: None }
    }
}

/// What a line of the table writes to: new and empty for each case. It refuses rows whose `body` is far longer than
/// [`super::BODY_MAX`] bytes.
pub trait Target {
    /// The sink's form with its keys: one line of YAML, without the braces around it. Rows have the columns `seq` (BIGINT) and
    /// `body` (text).
    fn sink(&self) -> String;
    /// Every row that is there, as often as it is.
    fn rows(&self) -> Vec<Row>;
    /// The sink cannot write from now on.
    fn stop(&self);
    /// It can again. Safe to call when it can.
    fn start(&self) -> Result<(), String>;
    /// Without it the topic is away too.
    fn is_broker(&self) -> bool {
        false
    }
    /// Removes what the sink knows its progress by, as its owner might.
    fn forget(&self) -> Forgotten;
    /// Lets a reply get lost, from now on.
    fn lose_reply(&self) -> Loss<'_>;
    /// The topic of dead letters, where they cannot go to files beside this sink.
    fn letters(&self) -> Option<&str> {
        None
    }
}

/// What follows when a sink's state is gone.
pub enum Forgotten {
    /// The sink starts anew, and the target is empty.
    Anew,
    /// The route stops, and these words are in what it says. Another group starts anew.
    Told(&'static str),
    /// There is nothing but the group's offsets. Another group writes everything again, beside what is there.
    Group,
}

/// How a reply gets lost.
pub enum Loss<'a> {
    /// This step, which was done, is told as failed: a fail point with its number.
    Told(&'static str),
    /// The connection ends before the reply.
    Cut(&'a Proxy),
}

pub type Opened<'a> = Option<Box<dyn Target + 'a>>;

/// What all lines share.
pub struct Ground {
    pub services: Services,
    broker: RefCell<Owned>,
    /// Held, so that it lives as long.
    _registry: Owned,
    /// Not where it is not installed.
    postgres: Option<RefCell<Postgres>>,
    /// The same.
    objects: Option<Objects>,
    runtime: Runtime,
}

impl Ground {
    pub fn new(test: &str) -> Option<Self> {
        let (broker, registry, services) = support::own_services(test)?;
        let (postgres, objects) = (support::own_postgres(test), support::own_objects(test));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Some(Self {
            services,
            broker: RefCell::new(broker),
            _registry: registry,
            postgres: postgres.map(RefCell::new),
            objects,
            runtime: runtime.unwrap(),
        })
    }

    /// Is every component of the table there?
    pub fn is_whole(&self) -> bool {
        self.postgres.is_some() && self.objects.is_some()
    }
}

/// Of a row as JSON.
fn seq(row: &Value) -> i64 {
    row["seq"].as_i64().unwrap_or_else(|| panic!("a row without `seq`: {row}"))
}

/// A directory, which is a link to `real`. To take it away the link is replaced in one step: at no moment is there nothing,
/// where the program would make a new directory. A mode without rights would not keep root out.
struct Files {
    format: &'static str,
    dir: TempDir,
}

pub fn parquet(_: &Ground) -> Opened<'_> {
    Some(Box::new(Files::new("parquet")))
}

pub fn jsonl(_: &Ground) -> Opened<'_> {
    Some(Box::new(Files::new("jsonl")))
}

pub fn csv(_: &Ground) -> Opened<'_> {
    Some(Box::new(Files::new("csv")))
}

pub fn avro(_: &Ground) -> Opened<'_> {
    Some(Box::new(Files::new("avro")))
}

impl Files {
    fn new(format: &'static str) -> Self {
        let files = Self { format, dir: tempfile::tempdir().unwrap() };
        fs::create_dir(files.real()).unwrap();
        fs::write(files.dir.path().join("obstacle"), "").unwrap();
        files.point_to("real");
        files
    }

    fn real(&self) -> PathBuf {
        self.dir.path().join("real")
    }

    fn link(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn point_to(&self, name: &str) {
        let new = self.dir.path().join("new");
        symlink(self.dir.path().join(name), &new).unwrap();
        fs::rename(new, self.link()).unwrap();
    }

    fn seqs(&self) -> Vec<i64> {
        let real = self.real();
        match self.format {
            "parquet" => data::numbers(&data::parquet_rows(&real).0, "seq"),
            "jsonl" => data::json_rows(&real).iter().map(seq).collect(),
            "csv" => files(&real, ".csv").iter().flat_map(|path| csv_seqs(path)).collect(),
            _ => files(&real, ".avro").iter().flat_map(|path| avro_seqs(path)).collect(),
        }
    }
}

/// No value has a comma, a quote or a line break.
fn csv_seqs(path: &Path) -> Vec<i64> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("seq,body"));
    lines.map(|line| line.split(',').next().unwrap().parse().unwrap()).collect()
}

fn avro_seqs(path: &Path) -> Vec<i64> {
    let seq = |record: Datum| {
        let Datum::Record(fields) = record else { panic!("no record") };
        let (_, seq) = fields.into_iter().find(|(name, _)| name == "seq").unwrap();
        let seq = if let Datum::Union(_, value) = seq { *value } else { seq };
        let Datum::Long(seq) = seq else { panic!("`seq` is {seq:?}") };
        seq
    };
    let reader = apache_avro::Reader::new(fs::File::open(path).unwrap()).unwrap();
    reader.map(|record| seq(record.unwrap())).collect()
}

impl Target for Files {
    fn sink(&self) -> String {
        let (format, path, longest) = (self.format, self.link(), super::BODY_MAX);
        // A long row gives a directory without a possible name.
        format!(
            "{format}: {{path: \"{}\", roll: {{max_rows: 500, max_age: 200ms}}, \
             partition_by: {{part: \"CASE WHEN length(body) > {longest} THEN body ELSE 'all' END\"}}}}",
            path.display()
        )
    }

    fn rows(&self) -> Vec<Row> {
        self.seqs().into_iter().map(Row::from).collect()
    }

    fn stop(&self) {
        self.point_to("obstacle");
    }

    fn start(&self) -> Result<(), String> {
        self.point_to("real");
        Ok(())
    }

    fn forget(&self) -> Forgotten {
        fs::remove_dir_all(self.real()).unwrap();
        fs::create_dir(self.real()).unwrap();
        Forgotten::Told("was written under commit log")
    }

    fn lose_reply(&self) -> Loss<'_> {
        Loss::Told("file.entry.linked:3")
    }
}

/// A Delta table, whose directory is a link as that of [`Files`].
struct Delta(Files);

pub fn delta(_: &Ground) -> Opened<'_> {
    Some(Box::new(Delta(Files::new("delta"))))
}

impl Target for Delta {
    fn sink(&self) -> String {
        let path = self.0.link();
        let (path, longest) = (path.display(), super::BODY_MAX);
        format!(
            "delta: {{path: \"{path}\", create: true, roll: {{max_rows: 500, max_age: 200ms}}, \
             partition_by: {{part: \"CASE WHEN length(body) > {longest} THEN body ELSE 'all' END\"}}}}"
        )
    }

    fn rows(&self) -> Vec<Row> {
        data::numbers(&crate::delta::read(&self.0.real()), "seq").into_iter().map(Row::from).collect()
    }

    fn stop(&self) {
        self.0.stop();
    }

    fn start(&self) -> Result<(), String> {
        self.0.start()
    }

    /// Positions are in the table, so that a table that is gone is a new one.
    fn forget(&self) -> Forgotten {
        self.0.forget();
        Forgotten::Anew
    }

    fn lose_reply(&self) -> Loss<'_> {
        Loss::Told("delta.entry.linked:3")
    }
}

/// Parquet files below a prefix of an object store, behind a proxy.
struct Prefix<'a> {
    objects: &'a Objects,
    name: String,
    proxy: Proxy,
}

pub fn objects(ground: &Ground) -> Opened<'_> {
    let objects = ground.objects.as_ref()?;
    let proxy = Proxy::start(objects.port());
    Some(Box::new(Prefix { objects, name: support::unique("conformance"), proxy }))
}

impl Prefix<'_> {
    /// Where the server keeps the objects.
    fn real(&self) -> PathBuf {
        self.objects.bucket().join(&self.name)
    }
}

impl Target for Prefix<'_> {
    fn sink(&self) -> String {
        let (port, name, longest) = (self.proxy.port(), &self.name, super::BODY_MAX);
        format!(
            "parquet: {{path: \"s3://{BUCKET}/{name}\", roll: {{max_rows: 500, max_age: 200ms}}, \
             storage: {{endpoint: \"http://127.0.0.1:{port}\", allow_http: true, access_key_id: {ACCESS_KEY_ID}, \
             secret_access_key: {SECRET_ACCESS_KEY}}}, \
             partition_by: {{part: \"CASE WHEN length(body) > {longest} THEN body ELSE 'all' END\"}}}}"
        )
    }

    fn rows(&self) -> Vec<Row> {
        let real = self.real();
        if !real.is_dir() {
            return Vec::new();
        }
        data::numbers(&data::parquet_rows(&real).0, "seq").into_iter().map(Row::from).collect()
    }

    fn stop(&self) {
        self.proxy.refuse();
    }

    fn start(&self) -> Result<(), String> {
        self.proxy.accept();
        Ok(())
    }

    fn forget(&self) -> Forgotten {
        fs::remove_dir_all(self.real()).unwrap();
        Forgotten::Told("was written under commit log")
    }

    fn lose_reply(&self) -> Loss<'_> {
        // The first ones say whether the store creates only what is absent.
        self.proxy.lose(6, b"PUT /", b"HTTP/1.1 ");
        Loss::Cut(&self.proxy)
    }
}

/// A topic of the cluster that rows come from.
struct Topic<'a> {
    ground: &'a Ground,
    name: String,
    /// The topic of dead letters: rows and letters are in transactions.
    letters: Option<String>,
}

pub fn kafka(ground: &Ground) -> Opened<'_> {
    let name = support::unique("conformance-out");
    data::create_topic(&ground.services, &name, 2);
    Some(Box::new(Topic { ground, name, letters: None }))
}

pub fn transactions(ground: &Ground) -> Opened<'_> {
    let (name, letters) = (support::unique("conformance-out"), support::unique("conformance-bad"));
    // What is too large is found by the brokers alone, when the rows of others are in its transaction.
    let longest = super::stage::LONGEST.to_string();
    data::create_topic_with(&ground.services, &name, 2, &[("max.message.bytes", &longest)]);
    data::create_topic(&ground.services, &letters, 1);
    Some(Box::new(Topic { ground, name, letters: Some(letters) }))
}

impl Target for Topic<'_> {
    fn sink(&self) -> String {
        format!("kafka: {{topic: {}, transactional: {}}}", self.name, self.letters.is_some())
    }

    fn rows(&self) -> Vec<Row> {
        let records = data::consume_committed(&self.ground.services, &self.name);
        let rows = records.iter().map(|record| {
            let row: Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
            Row::from(seq(&row))
        });
        rows.collect()
    }

    fn stop(&self) {
        self.ground.broker.borrow_mut().kill();
    }

    fn start(&self) -> Result<(), String> {
        self.ground.broker.borrow_mut().restart()
    }

    fn is_broker(&self) -> bool {
        true
    }

    fn forget(&self) -> Forgotten {
        Forgotten::Group
    }

    fn lose_reply(&self) -> Loss<'_> {
        Loss::Told(if self.letters.is_some() {
            "kafka.transaction.committed:2"
        } else {
            "kafka.flush.done:2"
        })
    }

    fn letters(&self) -> Option<&str> {
        self.letters.as_deref()
    }
}

/// What a server took.
type Taken = Arc<Mutex<Vec<Row>>>;

/// A server that remembers every row with its key, behind a proxy.
struct Server {
    taken: Taken,
    proxy: Proxy,
}

async fn take(State(taken): State<Taken>, headers: HeaderMap, body: String) -> StatusCode {
    if body.lines().any(|line| line.len() > super::BODY_MAX) {
        return StatusCode::PAYLOAD_TOO_LARGE;
    }
    let keys = headers["idempotency-keys"].to_str().unwrap().split(',');
    let rows = body.lines().zip(keys).map(|(line, key)| {
        let row: Value = serde_json::from_str(line).unwrap();
        Row { seq: seq(&row), key: Some(key.to_owned()) }
    });
    taken.lock().unwrap().extend(rows);
    StatusCode::OK
}

pub fn http(ground: &Ground) -> Opened<'_> {
    let taken = Taken::default();
    let router = Router::new().fallback(take).with_state(taken.clone());
    let listener = ground.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().port());
    ground.runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
    Some(Box::new(Server { taken, proxy }))
}

impl Target for Server {
    fn sink(&self) -> String {
        format!("http: {{url: \"http://127.0.0.1:{}/rows\", max_rows: 50}}", self.proxy.port())
    }

    fn rows(&self) -> Vec<Row> {
        self.taken.lock().unwrap().clone()
    }

    fn stop(&self) {
        self.proxy.refuse();
    }

    fn start(&self) -> Result<(), String> {
        self.proxy.accept();
        Ok(())
    }

    fn forget(&self) -> Forgotten {
        Forgotten::Group
    }

    fn lose_reply(&self) -> Loss<'_> {
        self.proxy.lose(4, b"POST ", b"HTTP/1.1 ");
        Loss::Cut(&self.proxy)
    }
}

/// A table in a schema of its own, with the tables of positions beside it, behind a proxy.
struct Table<'a> {
    postgres: &'a RefCell<Postgres>,
    schema: String,
    proxy: Proxy,
}

pub fn postgres(ground: &Ground) -> Opened<'_> {
    let postgres = ground.postgres.as_ref()?;
    let proxy = Proxy::start(postgres.borrow().port());
    let table = Table { postgres, schema: support::unique("conformance").replace('-', "_"), proxy };
    table.make();
    Some(Box::new(table))
}

impl Table<'_> {
    fn sql(&self, statements: &str) -> Vec<String> {
        self.postgres.borrow().sql(statements)
    }

    fn make(&self) {
        let (schema, longest) = (&self.schema, super::BODY_MAX);
        self.sql(&format!(
            "CREATE SCHEMA {schema}; \
             CREATE TABLE {schema}.numbers (seq bigint, body text CHECK (length(body) <= {longest}));"
        ));
    }
}

impl Target for Table<'_> {
    fn sink(&self) -> String {
        let (port, schema) = (self.proxy.port(), &self.schema);
        format!(
            "postgres: {{url: \"postgresql://postgres@127.0.0.1:{port}/postgres\", table: {schema}.numbers}}"
        )
    }

    fn rows(&self) -> Vec<Row> {
        let seqs = self.sql(&format!("SELECT seq FROM {}.numbers;", self.schema));
        seqs.iter().map(|seq| Row::from(seq.parse::<i64>().unwrap())).collect()
    }

    fn stop(&self) {
        self.postgres.borrow_mut().stop();
    }

    fn start(&self) -> Result<(), String> {
        self.postgres.borrow_mut().restart()
    }

    fn forget(&self) -> Forgotten {
        self.sql(&format!("DROP SCHEMA {} CASCADE;", self.schema));
        self.make();
        Forgotten::Anew
    }

    fn lose_reply(&self) -> Loss<'_> {
        // Of the first commits one lets the sink in, one stores where it starts; then come batches.
        self.proxy.lose(5, b"COMMIT\0", b"COMMIT");
        Loss::Cut(&self.proxy)
    }
}
