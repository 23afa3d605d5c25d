//! A place where the program runs under faults: real services, a directory, a routes file, instances.
//!
//! Stands that leave the broker alone share one; the registry is shared by all, as faults of it are the proxy's.
//! Whatever a stand starts ends with it, by its own process ids, or with this process.

mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::faults::Context;
use crate::invariants::{Report, Targets, audit};
use crate::manifest::Manifest;
use crate::probe::Stoppable;
use crate::services::{Kafka, Registry, mortal, signal, spawn, wait_until};
use crate::workload::{Features, Workload, WorkloadOptions, routes_yaml, topics};

pub use proxy::{Mode, Proxy, RETRY_AFTER};

/// Rows flow again within this time after a fault is gone, on a machine that also does other things. Sessions of members
/// that died end in it, and so does the longest pause between two attempts.
pub const FLOW_LIMIT: Duration = Duration::from_secs(90);

/// A bounded run reads what is left, after a session of members that died.
const FINISH_LIMIT: Duration = Duration::from_secs(300);

/// For an end in good order: draining has 20 s, the last commit and leaving the group 4 s, and so has a lane's end.
const TERMINATE_LIMIT: Duration = Duration::from_secs(45);

/// How long the brokers may take to answer a question.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// How often a condition is looked at: looking may mean walking through directories.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Lines of a log that are shown with an error.
const SHOWN_LINES: usize = 25;

/// What a data file's name ends in.
const DATA: [&str; 3] = ["parquet", "jsonl", "csv"];

/// Holds the commit log and what is staged: nothing for readers.
const HOUSEKEEPING: &str = "_sidestream";

/// Every broker takes values as large as the largest of the workload, and a little more.
const BROKER_SETTINGS: [(&str, &str); 2] =
    [("message.max.bytes", "6291456"), ("replica.fetch.max.bytes", "6291456")];

/// What a stand is made of.
#[derive(Clone)]
pub struct StandOptions {
    /// Nodes of an own Kafka, 1 or 3; with 0 it shares one that nobody touches.
    pub brokers: usize,
    /// Further settings of own brokers.
    pub broker_settings: Vec<(&'static str, &'static str)>,
    /// librdkafka properties in the routes file.
    pub kafka: Vec<(&'static str, &'static str)>,
    /// The routes file names a [`Proxy`] instead of the registry.
    pub has_proxy: bool,
    /// Of the workload, as the four below: records per second over all topics.
    pub rate: u32,
    pub partitions: i32,
    /// Bytes of the largest value.
    pub largest: usize,
    pub features: Features,
}

impl Default for StandOptions {
    fn default() -> Self {
        let features = Features { transactions: true, compacted: true, bad: true, schema_changes: true };
        Self {
            brokers: 0,
            broker_settings: Vec::new(),
            // Members that died are missed after 3 s; half of that would be missed on a busy machine by itself.
            kafka: vec![("session.timeout.ms", "3000"), ("heartbeat.interval.ms", "500")],
            has_proxy: false,
            rate: 500,
            partitions: 4,
            largest: 200_000,
            features,
        }
    }
}

/// Brokers and registry with a place. Dropping it ends what it has started, but for instances.
pub struct Stand {
    /// The nodes of its own Kafka; none if it shares one.
    pub nodes: Vec<Kafka>,
    /// Stands between the program and the registry.
    pub proxy: Option<Proxy>,
    /// Of the workload: where it writes.
    pub options: WorkloadOptions,
    /// Of the program.
    pub group: String,
    place: TempDir,
    /// Processes that were started here.
    starts: usize,
    /// Held, so that they live as long.
    _shared: Option<Arc<Kafka>>,
    _registry: Arc<Registry>,
}

impl Stand {
    /// Starts what is missing, makes topics and schemas, and writes the routes file.
    pub fn new(context: &Context, options: StandOptions) -> Result<Stand, String> {
        let (nodes, shared, bootstrap) = brokers(&options)?;
        let registry = shared_registry()?;
        let proxy = if options.has_proxy { Some(Proxy::start(registry.url())?) } else { None };
        let id = uuid::Uuid::new_v4().simple().to_string();
        let prefix = format!("faults-{}", &id[..8]);
        let workload = WorkloadOptions {
            bootstrap,
            registry: registry.url().to_owned(),
            seed: context.seed,
            prefix: prefix.clone(),
            rate: options.rate,
            partitions: options.partitions,
            replication: i32::try_from(nodes.len().max(1)).unwrap_or(1),
            largest: options.largest,
            features: options.features,
        };
        Workload::prepare(&workload)?;
        let place = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
        let stand = Stand {
            nodes,
            proxy,
            options: workload,
            group: format!("{prefix}-group"),
            place,
            starts: 0,
            _shared: shared,
            _registry: registry,
        };
        let url = match &stand.proxy {
            Some(proxy) => proxy.url(),
            None => stand.options.registry.clone(),
        };
        let bootstrap = stand.options.bootstrap.as_str();
        let text = routes_yaml(&stand.options, bootstrap, &url, &stand.group, &options.kafka);
        stand.write_routes(&text)?;
        Ok(stand)
    }

    /// The working directory of the instances.
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// The text of the routes file, as it is now.
    pub fn routes(&self) -> String {
        fs::read_to_string(self.place().join(ROUTES)).unwrap_or_default()
    }

    pub fn write_routes(&self, text: &str) -> Result<(), String> {
        self.write_file(ROUTES, text)
    }

    /// Writes another file into the place.
    pub fn write_file(&self, name: &str, text: &str) -> Result<(), String> {
        fs::write(self.place().join(name), text).map_err(|e| format!("cannot write {name}: {e}"))
    }

    /// `sidestream run`, with further variables.
    pub fn start(&mut self, env: &[(&str, &str)]) -> Result<Instance, String> {
        self.launch(&["run", ROUTES], env)
    }

    /// `sidestream run` with another routes file.
    pub fn start_file(&mut self, file: &str) -> Result<Instance, String> {
        self.launch(&["run", file], &[])
    }

    /// The program, with these arguments.
    pub fn launch(&mut self, arguments: &[&str], env: &[(&str, &str)]) -> Result<Instance, String> {
        self.starts += 1;
        let log = self.place().join(format!("instance-{}.log", self.starts));
        let output = self.place().join(format!("instance-{}.out", self.starts));
        let cannot = |e: std::io::Error| format!("cannot start the program: {e}");
        // Another build of it can be audited too, such as the one of a release.
        let program = std::env::var("SIDESTREAM_PROGRAM");
        let mut command = mortal(program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_sidestream")));
        command.args(arguments).current_dir(self.place()).env("RUST_LOG", "info");
        command.envs(env.iter().copied()).stdin(Stdio::null());
        command.stdout(File::create(&output).map_err(cannot)?);
        command.stderr(File::create(&log).map_err(cannot)?);
        let child = spawn(command).map_err(cannot)?;
        Ok(Instance { child, status: None, log, output })
    }

    /// `run --until latest` to its end, which has to be a good one; how long it took. No member may be left.
    pub fn finish(&mut self) -> Result<Duration, String> {
        let since = Instant::now();
        let ended = self.bounded(ROUTES)?;
        if ended.code == Some(0) {
            return Ok(since.elapsed());
        }
        Err(format!("the bounded run ended with {:?}:\n{}\n{}", ended.code, ended.output, tail(&ended.log)))
    }

    /// `run --until latest` with this routes file, to whatever end.
    pub fn bounded(&mut self, file: &str) -> Result<Ended, String> {
        let mut instance = self.launch(&["run", file, "--until", "latest"], &[])?;
        let code = instance.wait("the bounded run ends", FINISH_LIMIT)?;
        Ok(Ended { code, output: instance.output(), log: instance.log() })
    }

    /// Everything written against everything that came out.
    pub fn audit(&self, manifest: &Manifest) -> Result<Report, String> {
        let targets = Targets {
            place: self.place().to_owned(),
            bootstrap: self.options.bootstrap.clone(),
            group: self.group.clone(),
        };
        audit(manifest, &self.options, &targets)
    }

    /// From now on the place stays where it is, also after this process.
    pub fn keep(&mut self) -> &Path {
        self.place.disable_cleanup(true);
        self.place.path()
    }

    /// No instance may have panicked, whatever was done to it.
    pub fn expect_no_panic(&self) -> Result<(), String> {
        for entry in fs::read_dir(self.place()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = read(&path);
                let bad = log.lines().find(|line| PANICS.iter().any(|text| line.contains(text)));
                if let Some(line) = bad {
                    return Err(format!("{}: {line}", path.display()));
                }
            }
        }
        Ok(())
    }

    /// Data files in sight.
    pub fn file_count(&self) -> usize {
        self.counts().values().sum()
    }

    /// Data files in sight, by directory.
    pub fn counts(&self) -> BTreeMap<PathBuf, usize> {
        let mut counts = BTreeMap::new();
        for path in files(&self.place().join(OUT)) {
            let is_data =
                path.extension().is_some_and(|extension| DATA.iter().any(|data| extension == *data));
            if let Some(dir) = path.parent().filter(|_| is_data) {
                *counts.entry(dir.to_owned()).or_default() += 1;
            }
        }
        counts
    }

    /// Every file that readers could see, and every entry of the commit logs.
    pub fn everything(&self) -> BTreeSet<PathBuf> {
        let mut all: BTreeSet<PathBuf> = files(&self.place().join(OUT)).into_iter().collect();
        for dir in self.counts().into_keys() {
            all.extend(files_of(&dir.join(HOUSEKEEPING).join("log")));
        }
        all
    }

    /// Waits until there are more data files than `seen`, while every instance lives.
    pub fn await_growth(&self, seen: usize, instances: &mut [Instance]) -> Result<(), String> {
        all_alive("files appear", FLOW_LIMIT, instances, || self.file_count() > seen)
    }

    /// Waits until every directory of Parquet files that `before` names has more of them, while every instance lives:
    /// then all routes flow.
    pub fn await_growth_everywhere(
        &self,
        before: &BTreeMap<PathBuf, usize>,
        instances: &mut [Instance],
    ) -> Result<(), String> {
        let is_archive = |dir: &Path| {
            files_of(dir).iter().any(|path| path.extension().is_some_and(|extension| extension == DATA[0]))
        };
        let archives = |counts: &BTreeMap<PathBuf, usize>| -> BTreeMap<PathBuf, usize> {
            let archives = counts.iter().filter(|(dir, _)| is_archive(dir.as_path()));
            archives.map(|(dir, count)| (dir.clone(), *count)).collect()
        };
        let mut dirs = archives(before);
        if dirs.is_empty() {
            // At the very start: what comes after the first ones shows that all of them flow.
            let routes = topics(&self.options).len();
            all_alive("every route has files", FLOW_LIMIT, instances, || {
                archives(&self.counts()).len() >= routes
            })?;
            dirs = archives(&self.counts());
        }
        all_alive("files appear in every directory", FLOW_LIMIT, instances, || {
            let now = self.counts();
            dirs.iter().all(|(dir, count)| now.get(dir).is_some_and(|now| now > count))
        })
    }

    /// The node that leads a partition, by its place in [`Stand::nodes`].
    pub fn leader(&self, topic: &str, partition: i32) -> Result<usize, String> {
        let consumer = self.asking("faults-asking")?;
        let metadata = consumer.fetch_metadata(Some(topic), ASK_LIMIT);
        let metadata = metadata.map_err(|e| format!("cannot ask for the leader of {topic}: {e}"))?;
        let topics = metadata.topics().iter().filter(|found| found.name() == topic);
        let mut partitions = topics.flat_map(|found| found.partitions());
        let leader = partitions.find(|found| found.id() == partition).map(|found| found.leader());
        // Node ids count from 1; -1 is none.
        let index = leader.and_then(|id| usize::try_from(id - 1).ok());
        index
            .filter(|index| *index < self.nodes.len())
            .ok_or_else(|| format!("nobody leads {topic}/{partition}: {leader:?}"))
    }

    /// What the program's group has committed of a partition.
    pub fn committed(&self, topic: &str, partition: i32) -> Result<i64, String> {
        let consumer = self.asking(&self.group)?;
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        let committed = consumer.committed_offsets(list, ASK_LIMIT);
        let committed = committed.map_err(|e| format!("cannot ask for offsets of the group: {e}"))?;
        match committed.find_partition(topic, partition).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => Ok(offset),
            other => Err(format!("nothing is committed of {topic}/{partition}: {other:?}")),
        }
    }

    /// A client that only asks: it is no member of the group it names.
    fn asking(&self, group: &str) -> Result<BaseConsumer, String> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.options.bootstrap).set("group.id", group);
        config.create().map_err(|e| format!("cannot make a client: {e}"))
    }

    /// The proxy in front of the registry.
    pub fn proxy(&mut self) -> Result<&mut Proxy, String> {
        self.proxy.as_mut().ok_or_else(|| "this stand has no proxy".to_owned())
    }

    /// Kills all nodes of its own Kafka.
    pub fn kill_brokers(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
    }

    /// Starts them again, and waits until they take requests.
    pub fn restart_brokers(&mut self) -> Result<(), String> {
        Kafka::restart_all(&mut self.nodes)
    }
}

/// The routes file that instances read.
const ROUTES: &str = "routes.yaml";

/// Below the place: where the workload's sinks are.
const OUT: &str = "out";

/// How a panic, or a lane that ended by itself, shows in a log.
const PANICS: [&str; 2] = ["panicked at", "a defect of sidestream"];

/// Own nodes, or the shared broker, and how to reach them.
type Brokers = (Vec<Kafka>, Option<Arc<Kafka>>, String);

fn brokers(options: &StandOptions) -> Result<Brokers, String> {
    if options.brokers == 0 {
        let kafka = shared_kafka()?;
        let bootstrap = kafka.bootstrap().to_owned();
        return Ok((Vec::new(), Some(kafka), bootstrap));
    }
    let settings = [&BROKER_SETTINGS[..], options.broker_settings.as_slice()].concat();
    let nodes = Kafka::start_nodes(options.brokers, &settings)?;
    let bootstrap: Vec<&str> = nodes.iter().map(Kafka::bootstrap).collect();
    let bootstrap = bootstrap.join(",");
    Ok((nodes, None, bootstrap))
}

static SHARED_KAFKA: Mutex<Option<Arc<Kafka>>> = Mutex::new(None);
static SHARED_REGISTRY: Mutex<Option<Arc<Registry>>> = Mutex::new(None);

/// What is in `place`, or what `start` puts there.
fn shared<T>(
    place: &Mutex<Option<Arc<T>>>,
    start: impl FnOnce() -> Result<T, String>,
) -> Result<Arc<T>, String> {
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = place.as_ref() {
        return Ok(there.clone());
    }
    let started = Arc::new(start()?);
    *place = Some(started.clone());
    Ok(started)
}

fn shared_kafka() -> Result<Arc<Kafka>, String> {
    shared(&SHARED_KAFKA, || {
        let mut nodes = Kafka::start_nodes(1, &BROKER_SETTINGS)?;
        nodes.pop().ok_or_else(|| "no broker was started".to_owned())
    })
}

fn shared_registry() -> Result<Arc<Registry>, String> {
    shared(&SHARED_REGISTRY, Registry::start)
}

/// Ends what stands have shared; nothing drops a static.
pub fn close() {
    drop(SHARED_KAFKA.lock().unwrap_or_else(PoisonError::into_inner).take());
    drop(SHARED_REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// A bounded run that is over.
pub struct Ended {
    pub code: Option<i32>,
    /// What it printed: the table, and which routes stopped.
    pub output: String,
    pub log: String,
}

/// The program at work. Killed when dropped.
pub struct Instance {
    child: Child,
    /// Known once it has ended: then its id may be somebody else's.
    status: Option<ExitStatus>,
    log: PathBuf,
    output: PathBuf,
}

impl Instance {
    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        if self.is_running() {
            // Both fail only if it has just ended by itself.
            self.child.kill().ok();
            self.status = self.child.wait().ok();
        }
    }

    /// Stops it wherever it is (SIGSTOP).
    pub fn freeze(&mut self) {
        self.signal("STOP");
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&mut self) {
        self.signal("CONT");
    }

    /// Sends a signal by its name, if it still runs.
    pub fn signal(&mut self, name: &str) -> bool {
        self.is_running() && signal(self.child.id(), name)
    }

    /// SIGTERM, and the exit code.
    pub fn terminate(&mut self) -> Result<i32, String> {
        self.signal("TERM");
        let code = self.wait("an instance ends after SIGTERM", TERMINATE_LIMIT)?;
        code.ok_or_else(|| format!("an instance was ended by a signal:\n{}", tail(&self.log())))
    }

    /// As [`Instance::terminate`], and the end has to be a good one.
    pub fn drain(&mut self) -> Result<(), String> {
        match self.terminate()? {
            0 => Ok(()),
            code => Err(format!("an instance ended with {code} after SIGTERM:\n{}", tail(&self.log()))),
        }
    }

    /// Waits for its end; the exit code, unless a signal ended it.
    pub fn wait(&mut self, what: &str, limit: Duration) -> Result<Option<i32>, String> {
        let is_over = wait_until(Instant::now() + limit, || !self.is_running());
        if !is_over {
            self.kill();
            return Err(format!("not in {} s: {what}:\n{}", limit.as_secs(), tail(&self.log())));
        }
        Ok(self.status.and_then(|status| status.code()))
    }

    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap_or(None);
        }
        self.status.is_none()
    }

    /// An error with the end of its log, if it has ended.
    pub fn expect_running(&mut self) -> Result<(), String> {
        if self.is_running() {
            return Ok(());
        }
        Err(format!("an instance ended by itself ({:?}):\n{}", self.status, tail(&self.log())))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its stderr so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// What it has printed: the table at its end.
    pub fn output(&self) -> String {
        read(&self.output)
    }

    /// Lines of its log so far that hold all of these texts.
    pub fn said(&self, texts: &[&str]) -> usize {
        self.log().lines().filter(|line| texts.iter().all(|text| line.contains(text))).count()
    }

    /// Bytes of memory that it holds now (the kernel's resident set). `None` where there is no `/proc`.
    pub fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `check` says yes.
pub fn eventually(what: &str, limit: Duration, mut check: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    while !check() {
        if Instant::now() >= deadline {
            return Err(format!("not in {} s: {what}", limit.as_secs()));
        }
        pause(LOOK_INTERVAL);
    }
    Ok(())
}

/// As [`eventually`], while every instance lives.
pub fn all_alive(
    what: &str,
    limit: Duration,
    instances: &mut [Instance],
    mut check: impl FnMut() -> bool,
) -> Result<(), String> {
    let mut end = Ok(());
    let waited = eventually(what, limit, || {
        end = instances.iter_mut().try_for_each(Instance::expect_running);
        end.is_err() || check()
    });
    end?;
    waited.map_err(|error| {
        let logs: Vec<String> = instances.iter().map(|instance| tail(&instance.log())).collect();
        format!("{error}:\n{}", logs.join("\n\n"))
    })
}

/// Lets a fault last, or rows flow, for a while: what happens then must hold at any moment.
pub fn pause(time: Duration) {
    wait_until(Instant::now() + time, || false);
}

/// The end of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

/// All files below a directory, but for housekeeping.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            // Costs no call of its own, unlike a look at the path: there may be tens of thousands.
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !is_dir {
                found.push(entry.path());
            } else if entry.file_name() != HOUSEKEEPING {
                open.push(entry.path());
            }
        }
    }
    found
}

/// The files of one directory.
fn files_of(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
