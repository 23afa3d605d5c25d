//! Real services for the tests: a Kafka broker and an Apicurio schema registry, each a Java process of its own on free
//! ports of 127.0.0.1 with its data in a temporary folder.
//!
//! `scripts/fetch-test-services` downloads them once; [`are_there`] says whether that is still to be done.
//! Dropping a service kills it and removes its folder. If the test process dies first, the kernel kills the service
//! (where there is `setpriv`), and the next start of any service removes the folder.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::probe::{Stoppable, kafka_is_ready, registry_is_ready};

/// What fetches them.
pub const SCRIPT: &str = "scripts/fetch-test-services";
const KAFKA: &str = "kafka-4.3.1";
const REGISTRY: &str = "apicurio-2.6.13.Final";
const REGISTRY_JAR: &str = "apicurio-registry-app-2.6.13.Final-runner.jar";
/// The part of it that speaks like Confluent's.
const REGISTRY_API: &str = "/apis/ccompat/v7";
const PYTHON_CLIENT: &str = "python-client-2.16.0";

/// A machine that also compiles is slow: ready takes one or two seconds on an idle one.
pub const START_LIMIT: Duration = Duration::from_secs(120);
/// How long a service may take to end by itself before it is killed.
pub const STOP_LIMIT: Duration = Duration::from_secs(20);
/// A free port may be taken by someone else before the service gets to it.
const START_ATTEMPTS: u32 = 3;

pub const PORT_TAKEN: &str = "found its port taken";
/// How Kafka and the registry put it.
const PORT_TAKEN_LOGS: [&str; 2] = ["Address already in use", "seems to be in use by another process"];

/// What the tests need of a broker, wherever it runs.
pub const BROKER_SETTINGS: [(&str, &str); 17] = [
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("controller.listener.names", "CONTROLLER"),
    // After a crash the controller takes the broker back only when its old session is over.
    ("broker.session.timeout.ms", "3000"),
    ("broker.heartbeat.interval.ms", "500"),
    ("auto.create.topics.enable", "false"),
    ("default.replication.factor", "1"),
    ("min.insync.replicas", "1"),
    ("offsets.topic.replication.factor", "1"),
    ("offsets.topic.num.partitions", "1"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.num.partitions", "1"),
    // Members of a group need not wait for others.
    ("group.initial.rebalance.delay.ms", "0"),
    ("group.min.session.timeout.ms", "1000"),
    // Tests write records with old timestamps.
    ("log.retention.ms", "-1"),
    ("log.cleaner.dedupe.buffer.size", "2097152"),
];

const FOLDER_PREFIX: &str = "sidestream-it-";

/// Whether these services can be started here; if not, why, with what to do about it.
pub fn are_there() -> Result<(), String> {
    Installation::find().map(drop)
}

/// Python with Confluent's client and its serialisers; if it is not there, what to do about it.
pub fn python() -> Result<PathBuf, String> {
    let root = services_folder()?;
    let python = root.join(PYTHON_CLIENT).join("bin/python");
    // The file beside it is written when all is there.
    if python.is_file() && root.join(format!("{PYTHON_CLIENT}.made")).is_file() {
        return Ok(python);
    }
    Err(format!("no {}: install Python 3.10 or later with its `venv`, then run {SCRIPT}", python.display()))
}

/// Nodes of one cluster, at most: three survive the loss of one, and more would only be slower.
pub const NODES_MAX: usize = 3;

/// What several nodes need besides: one of three may die, and nothing that was acknowledged is lost with it.
const CLUSTER_SETTINGS: [(&str, &str); 5] = [
    ("default.replication.factor", "3"),
    ("min.insync.replicas", "2"),
    ("offsets.topic.replication.factor", "3"),
    ("transaction.state.log.replication.factor", "3"),
    ("transaction.state.log.min.isr", "2"),
];

/// A Kafka broker in KRaft mode, without authentication: alone, or a node of a cluster.
///
/// Topics are not created by themselves, nothing is deleted for its age, consumer groups start without the usual delay,
/// and sessions may be as short as one second.
pub struct Kafka {
    service: Service,
    installation: Installation,
    bootstrap: String,
    cluster: String,
    ports: [u16; 2],
    /// `node.id`, from 1.
    id: usize,
    /// Where the controllers of all nodes are.
    voters: String,
}

impl Kafka {
    /// Starts a broker with no topics and waits until it takes requests.
    pub fn start() -> Result<Kafka, String> {
        let mut nodes = Kafka::start_nodes(1, &[])?;
        nodes.pop().ok_or_else(|| "no broker was started".to_owned())
    }

    /// Starts a cluster of one or three nodes, each of them broker and controller, with no topics, and waits until all
    /// take requests. `settings` of the brokers win over [`BROKER_SETTINGS`].
    pub fn start_nodes(count: usize, settings: &[(&str, &str)]) -> Result<Vec<Kafka>, String> {
        let installation = Installation::find()?;
        retry_if_port_taken(|| {
            let [a, b, c, d, e, f] = free_ports()?;
            let pairs: [[u16; 2]; NODES_MAX] = [[a, b], [c, d], [e, f]];
            let numbered = || (1..=count).zip(pairs);
            let voters: Vec<String> =
                numbered().map(|(id, [_, controller])| format!("{id}@127.0.0.1:{controller}")).collect();
            let cluster = cluster_id();
            let mut nodes = Vec::new();
            for (id, ports) in numbered() {
                let node = Kafka {
                    service: Service::new("kafka")?,
                    installation: installation.clone(),
                    bootstrap: format!("127.0.0.1:{}", ports[0]),
                    cluster: cluster.clone(),
                    ports,
                    id,
                    voters: voters.join(","),
                };
                let shared: &[(&str, &str)] = if count > 1 { &CLUSTER_SETTINGS } else { &[] };
                node.format(&[shared, settings].concat())?;
                nodes.push(node);
            }
            Kafka::run_all(&mut nodes)?;
            Ok(nodes)
        })
    }

    /// Starts all nodes of a cluster again, having stopped those that still ran: the first one alone would wait for a
    /// majority.
    pub fn restart_all(nodes: &mut [Kafka]) -> Result<(), String> {
        retry_if_port_taken(|| {
            for node in nodes.iter_mut() {
                node.stop();
            }
            for node in nodes.iter() {
                await_free(&node.ports);
            }
            Kafka::run_all(nodes)
        })
    }

    /// The value for `bootstrap.servers`; that of a cluster is all of them, separated by commas.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The folder of its log segments: `<topic>-<partition>/<offset>.log` and more.
    pub fn data(&self) -> PathBuf {
        self.service.folder.path.join("data")
    }

    /// Stops its process in the middle of whatever it does (SIGSTOP): its connections stay open, nothing answers.
    pub fn freeze(&self) -> bool {
        self.service.child.as_ref().is_some_and(|child| signal(child.id(), "STOP"))
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) -> bool {
        self.service.child.as_ref().is_some_and(|child| signal(child.id(), "CONT"))
    }

    fn properties(&self) -> PathBuf {
        self.service.folder.path.join("server.properties")
    }

    fn format(&self, settings: &[(&str, &str)]) -> Result<(), String> {
        let [port, controller] = self.ports;
        let (data, voters, id) = (self.data(), &self.voters, self.id);
        let data = data.display();
        let mut properties = format!(
            "controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
"
        );
        for (name, value) in BROKER_SETTINGS {
            properties.push_str(&format!("{name}={value}\n"));
        }
        // Of settings that are there twice, the last one counts.
        properties.push_str(&format!("node.id={id}\n"));
        for (name, value) in settings {
            properties.push_str(&format!("{name}={value}\n"));
        }
        fs::write(self.properties(), properties)
            .map_err(|e| format!("cannot write {}: {e}", self.properties().display()))?;
        let output = self
            .java()
            .args(["kafka.tools.StorageTool", "format", "--cluster-id"])
            .arg(&self.cluster)
            .arg("--config")
            .arg(self.properties())
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("cannot run java: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "Kafka cannot format its storage ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))
    }

    fn java(&self) -> Command {
        let mut java = java(&self.installation.root.join(KAFKA).join("kafka.jsa"));
        java.arg("-Xmx256m")
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .arg("-cp")
            .arg(&self.installation.kafka_classpath);
        java
    }

    fn run(&mut self) -> Result<(), String> {
        Kafka::run_all(std::slice::from_mut(self))
    }

    /// Starts all, then waits for all.
    fn run_all(nodes: &mut [Kafka]) -> Result<(), String> {
        for node in nodes.iter_mut() {
            let mut java = node.java();
            java.arg("kafka.Kafka").arg(node.properties());
            node.service.launch(java)?;
        }
        for node in nodes {
            let (port, cluster) = (node.ports[0], node.cluster.as_str());
            node.service.await_ready(|_| kafka_is_ready(port, cluster).unwrap_or(false))?;
        }
        Ok(())
    }
}

impl Stoppable for Kafka {
    fn stop(&mut self) {
        self.service.stop();
    }

    fn kill(&mut self) {
        self.service.kill();
    }

    /// Ready again is when every partition has a leader.
    fn restart(&mut self) -> Result<(), String> {
        self.stop();
        retry_if_port_taken(|| {
            await_free(&self.ports);
            self.run()
        })
    }
}

/// An Apicurio schema registry, of which the tests use the part that speaks like Confluent's.
///
/// Its data are in an H2 database on disk, so a restart keeps the schemas with their ids.
pub struct Registry {
    service: Service,
    installation: Installation,
    url: String,
    port: u16,
}

impl Registry {
    /// Starts an empty registry and waits until it takes requests.
    pub fn start() -> Result<Registry, String> {
        let installation = Installation::find()?;
        retry_if_port_taken(|| {
            let [port] = free_ports()?;
            let mut registry = Registry {
                service: Service::new("registry")?,
                installation: installation.clone(),
                url: format!("http://127.0.0.1:{port}{REGISTRY_API}"),
                port,
            };
            registry.run()?;
            Ok(registry)
        })
    }

    /// The base URL for a Confluent client: `{url}/subjects` lists the subjects.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn run(&mut self) -> Result<(), String> {
        let folder = self.installation.root.join(REGISTRY);
        let data = self.service.folder.path.join("data");
        let port = self.port;
        let mut java = java(&folder.join("apicurio.jsa"));
        java.arg("-Xmx384m")
            .arg("-Dquarkus.http.host=127.0.0.1")
            .arg(format!("-Dquarkus.http.port={port}"))
            .arg(format!("-Dquarkus.datasource.jdbc.url=jdbc:h2:file:{}", data.display()))
            // Or LOG_LEVEL in the environment decides, and the line looked for below may not come.
            .arg("-Dquarkus.log.level=INFO")
            .arg("-jar")
            .arg(folder.join(REGISTRY_JAR));
        // The answer alone could be that of another registry which got the port first.
        self.service.run(java, |log| {
            log.contains("Listening on: http") && registry_is_ready(port, REGISTRY_API).unwrap_or(false)
        })
    }
}

impl Stoppable for Registry {
    fn stop(&mut self) {
        self.service.stop();
    }

    fn kill(&mut self) {
        self.service.kill();
    }

    fn restart(&mut self) -> Result<(), String> {
        self.stop();
        retry_if_port_taken(|| {
            await_free(&[self.port]);
            self.run()
        })
    }
}

/// Where the services are.
#[derive(Clone)]
struct Installation {
    root: PathBuf,
    kafka_classpath: String,
}

impl Installation {
    fn find() -> Result<Installation, String> {
        check_java()?;
        let root = services_folder()?;
        let incomplete = |path: &Path| format!("no {}: run {SCRIPT} (once)", path.display());
        // Java takes its class archive only if the paths are those that the script used.
        let root = root.canonicalize().map_err(|_| incomplete(&root))?;

        let classpath = root.join(KAFKA).join("classpath");
        let kafka_classpath = fs::read_to_string(&classpath).map_err(|_| incomplete(&classpath))?;
        let kafka_classpath = kafka_classpath.trim_end().to_string();
        let absent = kafka_classpath.split(':').map(Path::new).find(|jar| !jar.is_file());
        if let Some(jar) = absent {
            return Err(incomplete(jar));
        }
        let jar = root.join(REGISTRY).join(REGISTRY_JAR);
        if !jar.is_file() {
            return Err(incomplete(&jar));
        }
        Ok(Installation { root, kafka_classpath })
    }
}

/// As in the script.
pub fn services_folder() -> Result<PathBuf, String> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("SIDESTREAM_SERVICES") {
        return Ok(folder);
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    match cache {
        Some(cache) => Ok(cache.join("sidestream/services")),
        None => Err(format!(
            "neither HOME nor SIDESTREAM_SERVICES is set: set SIDESTREAM_SERVICES to a folder and run {SCRIPT}"
        )),
    }
}

/// Whether there is a Java that runs them.
pub fn check_java() -> Result<(), String> {
    let remedy = format!("install a JDK of version 17 or later, then run {SCRIPT}");
    let output = Command::new("java")
        .arg("-version")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot run java ({e}): {remedy}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let version = text.split_once("version \"").map_or("", |(_, rest)| rest);
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    match digits.and_then(|digits| digits.parse::<u32>().ok()) {
        Some(17..) => Ok(()),
        Some(old) => Err(format!("java is version {old}: {remedy}")),
        None => Err(format!("cannot tell the version of java ({}): {remedy}", text.trim())),
    }
}

/// A `java` that starts fast, and dies with this process where that is possible.
pub fn java(archive: &Path) -> Command {
    let mut command = mortal("java");
    command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    if archive.is_file() {
        let mut option = OsStr::new("-XX:SharedArchiveFile=").to_os_string();
        option.push(archive);
        command.arg(option);
    }
    command
}

/// A command whose process the kernel kills when this process ends, where there is `setpriv`. To be started by
/// [`spawn`].
pub fn mortal(program: &str) -> Command {
    static HAS_SETPRIV: OnceLock<bool> = OnceLock::new();
    let has_setpriv = *HAS_SETPRIV.get_or_init(|| {
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    });
    if !has_setpriv {
        return Command::new(program);
    }
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--pdeathsig", "KILL", program]);
    setpriv
}

/// Starts a process from a thread that lives as long as this process.
///
/// `setpriv --pdeathsig` has the kernel kill the child when the *thread* that started it ends, and a test's thread ends
/// with the test while a service may be shared with the next one.
pub fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                answer.send(command.spawn()).ok();
            }
        });
        jobs
    });
    let gone = |_| io::Error::other("the thread that starts services has ended");
    let (answer, result) = mpsc::channel();
    spawner.send((command, answer)).map_err(|e| gone(e.to_string()))?;
    result.recv().map_err(|e| gone(e.to_string()))?
}

/// Sends a process of ours a signal by its name, such as `TERM`; whether it was still there.
pub fn signal(process: u32, name: &str) -> bool {
    let script = format!("kill -{name} \"$0\"");
    let sent = Command::new("sh").args(["-c", script.as_str(), process.to_string().as_str()]).status();
    sent.is_ok_and(|status| status.success())
}

/// A process with its folder.
pub struct Service {
    name: &'static str,
    child: Option<Child>,
    runs: u32,
    folder: Folder,
}

impl Service {
    pub fn new(name: &'static str) -> Result<Service, String> {
        let folder = Folder::new(name)?;
        Ok(Service { name, child: None, runs: 0, folder })
    }

    /// Of its own, removed with it.
    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// The id of its process, if it was started.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until its process has ended by itself, at most so long.
    pub fn await_end(&mut self, deadline: Instant) {
        if let Some(child) = &mut self.child {
            wait_until(deadline, || !matches!(child.try_wait(), Ok(None)));
        }
    }

    /// Starts the process and waits until it is ready, of which `ready` judges by the log so far and by asking.
    pub fn run(&mut self, command: Command, ready: impl Fn(&str) -> bool) -> Result<(), String> {
        self.launch(command)?;
        self.await_ready(ready)
    }

    /// Of the run now.
    fn log(&self) -> PathBuf {
        self.folder.path.join(format!("log-{}", self.runs))
    }

    fn launch(&mut self, mut command: Command) -> Result<(), String> {
        self.runs += 1;
        let name = self.name;
        let cannot = |e: io::Error| format!("cannot start {name}: {e}");
        let output = File::create(self.log()).map_err(cannot)?;
        let errors = output.try_clone().map_err(cannot)?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        self.child = Some(spawn(command).map_err(cannot)?);
        Ok(())
    }

    fn await_ready(&mut self, ready: impl Fn(&str) -> bool) -> Result<(), String> {
        let log = self.log();
        let Some(child) = &mut self.child else {
            return Err(format!("{} was not started", self.name));
        };
        let read_log = || String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        let mut exit: Option<ExitStatus> = None;
        let mut is_ready = false;
        wait_until(Instant::now() + START_LIMIT, || {
            exit = child.try_wait().unwrap_or(None);
            is_ready = exit.is_none() && ready(&read_log());
            is_ready || exit.is_some()
        });
        if is_ready {
            return Ok(());
        }
        self.kill();
        let log = read_log();
        let what = match exit {
            Some(_) if PORT_TAKEN_LOGS.iter().any(|text| log.contains(text)) => PORT_TAKEN.to_string(),
            Some(status) => format!("ended while starting ({status})"),
            None => format!("was not ready after {} s", START_LIMIT.as_secs()),
        };
        Err(format!("{} {what}; the end of its log:\n{}", self.name, tail(&log)))
    }

    pub fn stop(&mut self) {
        if let Some(process) = self.process()
            && signal(process, "TERM")
        {
            self.await_end(Instant::now() + STOP_LIMIT);
        }
        self.kill();
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it has ended already.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A temporary folder, removed when dropped.
///
/// A process that is killed, or that keeps its service in a `static`, drops nothing. So each folder holds a file that
/// is locked as long as its process lives, and making a folder removes those whose lock is free.
struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    fn new(name: &str) -> Result<Folder, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = env::temp_dir();
        remove_abandoned_folders(&parent);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{FOLDER_PREFIX}{name}-{}-{count}", process::id()));
        let make = || {
            fs::create_dir(&path)?;
            // It gets its name when it is locked, or another process may find it free.
            let new = path.join("lock.new");
            let lock = File::create(&new)?;
            lock.lock()?;
            fs::rename(new, path.join("lock"))?;
            Ok(lock)
        };
        match make() {
            Ok(lock) => Ok(Folder { path, _lock: lock }),
            Err::<_, io::Error>(e) => Err(format!("cannot make the folder {}: {e}", path.display())),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing to be done if it fails; the next process tries again.
        fs::remove_dir_all(&self.path).ok();
    }
}

fn remove_abandoned_folders(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX) {
            let path = entry.path();
            let abandoned = File::open(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
            if abandoned {
                fs::remove_dir_all(path).ok();
            }
        }
    }
}

fn tail(log: &str) -> &str {
    const LINES: usize = 40;
    let mut starts = log.trim_end().rmatch_indices('\n');
    starts.nth(LINES - 1).map_or(log, |(at, _)| &log[at + 1..])
}

/// Ports that were free a moment ago, all different.
pub fn free_ports<const N: usize>() -> Result<[u16; N], String> {
    let mut ports = [0; N];
    let mut held = Vec::new();
    for port in &mut ports {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| format!("no free port: {e}"))?;
        let address = listener.local_addr().map_err(|e| format!("no free port: {e}"))?;
        *port = address.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Another process' connection may have got one of the ports while the service was down.
pub fn await_free(ports: &[u16]) {
    wait_until(Instant::now() + STOP_LIMIT, || {
        ports.iter().all(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
    });
}

pub fn retry_if_port_taken<T>(mut start: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let mut attempt = 1;
    loop {
        match start() {
            Err(e) if attempt < START_ATTEMPTS && e.contains(PORT_TAKEN) => attempt += 1,
            result => return result,
        }
    }
}

/// Whether `done` came true before the deadline.
pub fn wait_until(deadline: Instant, mut done: impl FnMut() -> bool) -> bool {
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        #[expect(clippy::disallowed_methods, reason = "the one place where services are waited for")]
        thread::sleep(Duration::from_millis(20));
    }
}

/// 16 bytes in base64, of which hexadecimal digits are a part.
pub fn cluster_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.as_nanos()) & 0xf_ffff_ffff;
    let count = COUNT.fetch_add(1, Ordering::Relaxed) & 0xffff;
    format!("{:08x}{nanos:09x}{count:04x}A", process::id())
}
