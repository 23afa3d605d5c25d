//! Real services in containers, for machines with a Docker engine and without Java: Confluent's broker and registry, as
//! in `compose.yaml`, on free ports of 127.0.0.1.
//!
//! A guard removes exactly what was made, by id, when nothing of it is held any more or when the test process is gone,
//! however it went. What a killed guard leaves has the label `sidestream-it`.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::Services;
use super::probe::Stoppable;
use super::probe::{kafka_is_ready, registry_is_ready};
use super::services::{
    BROKER_SETTINGS, PORT_TAKEN, START_LIMIT, STOP_LIMIT, await_free, cluster_id, free_ports,
    retry_if_port_taken, wait_until,
};

const KAFKA_IMAGE: &str = "confluentinc/cp-kafka:8.2.0";
const REGISTRY_IMAGE: &str = "confluentinc/cp-schema-registry:8.2.0";

const LABEL: &str = "sidestream-it";

/// An engine that is there answers at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// For what an engine does by itself, on a machine that also compiles.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// For making a container, which fetches an image that is not there yet: about 1 GB.
const PULL_LIMIT: Duration = Duration::from_secs(15 * 60);
/// How often a container that starts is asked whether it still runs.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How engines say that a port is not free.
const PORT_TAKEN_ERRORS: [&str; 2] = ["port is already allocated", "address already in use"];

/// Whether there is an engine that can start these services; if not, why.
pub fn answers() -> Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    let ask = || Engine::docker().run(ANSWER_LIMIT, &["info", "--format", "{{.ServerVersion}}"]).map(drop);
    ANSWER.get_or_init(ask).clone()
}

/// A broker and a registry, ready.
pub fn start() -> Result<(Container, Container, Services), String> {
    let engine = Engine::docker();
    retry_if_port_taken(|| {
        let [port, registry_port] = free_ports()?;
        let cluster = cluster_id();
        let guard = Arc::new(Guard::new(&engine)?);
        // A network of their own: there containers find each other by name, at ports that are not published.
        let network =
            engine.run(COMMAND_LIMIT, &["network", "create", "--label", LABEL, &super::unique(LABEL)])?;
        guard.watch("network", &network)?;
        let arguments = kafka_arguments(&network, &cluster, port);
        let mut kafka = Container::new(&engine, &guard, &arguments, Probe::Kafka { port, cluster })?;
        kafka.start()?;
        let arguments = registry_arguments(&network, registry_port);
        let mut registry =
            Container::new(&engine, &guard, &arguments, Probe::Registry { port: registry_port })?;
        registry.start()?;
        let services = Services {
            bootstrap: format!("127.0.0.1:{port}"),
            registry: format!("http://127.0.0.1:{registry_port}"),
        };
        Ok((kafka, registry, services))
    })
}

/// Inside the network the broker is `broker:29092`, from here it is the published port. A client is sent on to the
/// address its listener advertises, so each has a listener of its own.
fn kafka_arguments(network: &str, cluster: &str, port: u16) -> Vec<String> {
    let addresses = [
        ("controller.quorum.voters", "1@broker:29093".to_owned()),
        ("inter.broker.listener.name", "INTERNAL".to_owned()),
        ("listeners", "INTERNAL://0.0.0.0:29092,CONTROLLER://0.0.0.0:29093,HOST://0.0.0.0:9092".to_owned()),
        ("advertised.listeners", format!("INTERNAL://broker:29092,HOST://127.0.0.1:{port}")),
        (
            "listener.security.protocol.map",
            "INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,HOST:PLAINTEXT".to_owned(),
        ),
    ];
    let settings = BROKER_SETTINGS.map(|(name, value)| (name, value.to_owned()));
    let mut variables = vec![
        ("CLUSTER_ID".to_owned(), cluster.to_owned()),
        ("KAFKA_HEAP_OPTS".to_owned(), "-Xmx512m".to_owned()),
    ];
    // The image makes `a.b=c` of `KAFKA_A_B=c`.
    let named = settings.into_iter().chain(addresses);
    variables.extend(
        named.map(|(name, value)| (format!("KAFKA_{}", name.replace('.', "_").to_uppercase()), value)),
    );
    create_arguments(network, "broker", &format!("127.0.0.1:{port}:9092"), &variables, KAFKA_IMAGE)
}

fn registry_arguments(network: &str, port: u16) -> Vec<String> {
    let variables = [
        ("SCHEMA_REGISTRY_HOST_NAME", "schema-registry"),
        ("SCHEMA_REGISTRY_LISTENERS", "http://0.0.0.0:8081"),
        ("SCHEMA_REGISTRY_KAFKASTORE_BOOTSTRAP_SERVERS", "broker:29092"),
        // As the other registry of the tests: what may follow on what is not our business.
        ("SCHEMA_REGISTRY_SCHEMA_COMPATIBILITY_LEVEL", "none"),
        ("SCHEMA_REGISTRY_HEAP_OPTS", "-Xmx384m"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    create_arguments(
        network,
        "schema-registry",
        &format!("127.0.0.1:{port}:8081"),
        &variables,
        REGISTRY_IMAGE,
    )
}

/// `create`, not `run`: the guard has to know the id before anything runs. Without `--rm`, for a container that is
/// stopped in the middle of a test is started again with its data.
fn create_arguments(
    network: &str,
    host: &str,
    publish: &str,
    variables: &[(String, String)],
    image: &str,
) -> Vec<String> {
    let mut arguments = vec!["create".to_owned(), "--label".to_owned(), LABEL.to_owned()];
    let options =
        [("--network", network), ("--network-alias", host), ("--hostname", host), ("--publish", publish)];
    arguments.extend(options.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]));
    let variables = variables.iter().map(|(name, value)| format!("{name}={value}"));
    arguments.extend(variables.flat_map(|variable| ["--env".to_owned(), variable]));
    arguments.push(image.to_owned());
    arguments
}

/// A container with a service in it.
pub struct Container {
    engine: Engine,
    /// Removes broker, registry and network when the last of them is dropped.
    _guard: Arc<Guard>,
    id: String,
    probe: Probe,
}

/// How it is asked whether it takes requests.
enum Probe {
    Kafka { port: u16, cluster: String },
    Registry { port: u16 },
}

impl Probe {
    fn port(&self) -> u16 {
        match self {
            Self::Kafka { port, .. } | Self::Registry { port } => *port,
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::Kafka { port, cluster } => kafka_is_ready(*port, cluster).unwrap_or(false),
            Self::Registry { port } => registry_is_ready(*port, "").unwrap_or(false),
        }
    }
}

impl Container {
    fn new(
        engine: &Engine,
        guard: &Arc<Guard>,
        arguments: &[String],
        probe: Probe,
    ) -> Result<Container, String> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let id = engine.run(PULL_LIMIT, &arguments)?;
        guard.watch("container", &id)?;
        Ok(Container { engine: engine.clone(), _guard: guard.clone(), id, probe })
    }

    /// Starts it and waits until it takes requests.
    fn start(&mut self) -> Result<(), String> {
        self.engine.run(COMMAND_LIMIT, &["start", &self.id]).map_err(|error| {
            let is_taken = PORT_TAKEN_ERRORS.iter().any(|text| error.contains(text));
            if is_taken { format!("{PORT_TAKEN}: {error}") } else { error }
        })?;
        let mut looked = Instant::now();
        let mut has_ended = false;
        let mut is_ready = false;
        wait_until(Instant::now() + START_LIMIT, || {
            if looked.elapsed() >= LOOK_INTERVAL {
                has_ended = self.has_ended();
                looked = Instant::now();
            }
            is_ready = !has_ended && self.probe.is_ready();
            is_ready || has_ended
        });
        if is_ready {
            return Ok(());
        }
        let what = if has_ended { "ended while starting" } else { "was not ready in time" };
        let log = self.engine.run(COMMAND_LIMIT, &["logs", "--tail", "40", &self.id]);
        let log = log.unwrap_or_else(|error| error);
        Err(format!("container {} {what}; the end of its log:\n{log}", self.id))
    }

    /// An engine that does not say is asked again.
    fn has_ended(&self) -> bool {
        let arguments = ["container", "inspect", "--format", "{{.State.Running}}", &self.id];
        self.engine.run(COMMAND_LIMIT, &arguments).is_ok_and(|running| running == "false")
    }
}

impl Stoppable for Container {
    fn stop(&mut self) {
        let limit = STOP_LIMIT.as_secs().to_string();
        self.engine.run(COMMAND_LIMIT, &["stop", "-t", &limit, &self.id]).unwrap();
    }

    fn kill(&mut self) {
        self.engine.run(COMMAND_LIMIT, &["kill", &self.id]).unwrap();
    }

    fn restart(&mut self) -> Result<(), String> {
        self.stop();
        retry_if_port_taken(|| {
            await_free(&[self.probe.port()]);
            self.start()
        })
    }
}

/// Removes what it was told of when its input ends, which it does with the test process too. No signal of a terminal
/// reaches it before that.
const GUARD: &str = r#"trap '' HUP INT TERM
containers= networks=
while read -r kind id; do
    case $kind in
    container) containers="$containers $id" ;;
    network) networks="$networks $id" ;;
    esac
done
[ -z "$containers" ] || "$0" rm --force --volumes $containers
[ -z "$networks" ] || "$0" network rm $networks
"#;

struct Guard {
    child: Child,
    input: Mutex<Option<ChildStdin>>,
}

impl Guard {
    fn new(engine: &Engine) -> Result<Guard, String> {
        let mut command = guard_command(&engine.program);
        let child = command.stdout(Stdio::null()).spawn();
        let mut child = child.map_err(|error| format!("cannot run sh: {error}"))?;
        let input = Mutex::new(child.stdin.take());
        Ok(Guard { child, input })
    }

    fn watch(&self, kind: &str, id: &str) -> Result<(), String> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(input) = input.as_mut() else {
            return Err("the guard has no input".to_owned());
        };
        input.write_all(format!("{kind} {id}\n").as_bytes()).map_err(|error| format!("the guard: {error}"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.input.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        // One that takes longer goes on by itself.
        wait_until(Instant::now() + STOP_LIMIT, || !matches!(self.child.try_wait(), Ok(None)));
    }
}

fn guard_command(engine: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", GUARD]).arg(engine).stdin(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    command
}

/// A Docker engine, through its command line.
#[derive(Clone)]
struct Engine {
    program: PathBuf,
}

impl Engine {
    fn docker() -> Engine {
        Engine { program: "docker".into() }
    }

    /// Runs a command to its end and returns what it printed. Files take its output: a pipe that nobody reads would
    /// hold it up.
    fn run(&self, limit: Duration, arguments: &[&str]) -> Result<String, String> {
        let line = format!("`{} {}`", self.program.display(), arguments.join(" "));
        let cannot = |error: io::Error| format!("cannot run {line}: {error}");
        let mut output = tempfile::tempfile().map_err(cannot)?;
        let mut errors = tempfile::tempfile().map_err(cannot)?;
        let mut child = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(cannot)?)
            .stderr(errors.try_clone().map_err(cannot)?)
            .spawn()
            .map_err(cannot)?;
        let mut exit = None;
        wait_until(Instant::now() + limit, || {
            exit = child.try_wait().unwrap_or(None);
            exit.is_some()
        });
        match exit {
            Some(status) if status.success() => read(&mut output).map_err(cannot),
            Some(status) => Err(format!("{line} failed ({status}): {}", read(&mut errors).map_err(cannot)?)),
            None => {
                // Both fail only if it has ended just now.
                child.kill().ok();
                child.wait().ok();
                Err(format!("{line} took more than {limit:?}"))
            }
        }
    }
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(arguments: &[String], name: &str) -> String {
        let value = arguments.iter().find_map(|argument| argument.strip_prefix(&format!("{name}=")));
        value.unwrap_or_else(|| panic!("no {name} in {arguments:?}")).to_owned()
    }

    #[test]
    fn images_are_those_of_compose_yaml() {
        let path = format!("{}/compose.yaml", env!("CARGO_MANIFEST_DIR"));
        let compose = std::fs::read_to_string(path).unwrap();
        for image in [KAFKA_IMAGE, REGISTRY_IMAGE] {
            assert!(compose.contains(&format!("image: {image}\n")), "{image}");
        }
    }

    #[test]
    fn the_broker_is_reached_from_here_and_from_the_registry() {
        let arguments = kafka_arguments("network-1", "cluster-1", 4711);
        let line = arguments.join(" ");
        let start = "create --label sidestream-it --network network-1 --network-alias broker \
                     --hostname broker --publish 127.0.0.1:4711:9092 --env CLUSTER_ID=cluster-1 ";
        assert!(line.starts_with(start), "{line}");
        assert!(line.ends_with(KAFKA_IMAGE), "{line}");
        let advertised = variable(&arguments, "KAFKA_ADVERTISED_LISTENERS");
        assert_eq!(advertised, "INTERNAL://broker:29092,HOST://127.0.0.1:4711");
        // Every listener has a protocol.
        let protocols = variable(&arguments, "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP");
        for listener in variable(&arguments, "KAFKA_LISTENERS").split(',') {
            let name = listener.split("://").next().unwrap();
            assert!(protocols.contains(&format!("{name}:PLAINTEXT")), "{name} in {protocols}");
        }
        // What the tests need is said in the image's way.
        assert_eq!(variable(&arguments, "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS"), "1000");
        assert_eq!(variable(&arguments, "KAFKA_PROCESS_ROLES"), "broker,controller");

        let arguments = registry_arguments("network-1", 4712);
        let line = arguments.join(" ");
        assert!(line.contains(" --network network-1 "), "{line}");
        assert!(line.contains(" --publish 127.0.0.1:4712:8081 "), "{line}");
        let store = variable(&arguments, "SCHEMA_REGISTRY_KAFKASTORE_BOOTSTRAP_SERVERS");
        assert!(advertised.contains(&format!("INTERNAL://{store},")), "{store} in {advertised}");
    }

    /// What a guard that is told `lines` has the engine do.
    fn guarded(lines: &str) -> String {
        let mut guard = guard_command(Path::new("echo")).stdout(Stdio::piped()).spawn().unwrap();
        guard.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        String::from_utf8(guard.wait_with_output().unwrap().stdout).unwrap()
    }

    #[test]
    fn the_guard_removes_what_it_was_told_of_and_nothing_else() {
        let done = guarded("network n\ncontainer a\ncontainer b\n");
        assert_eq!(done, "rm --force --volumes a b\nnetwork rm n\n");
        assert_eq!(guarded("network n\n"), "network rm n\n");
        assert_eq!(guarded(""), "");
    }

    #[test]
    fn a_command_has_an_end_and_says_why_it_failed() {
        let sh = Engine { program: "sh".into() };
        assert_eq!(sh.run(COMMAND_LIMIT, &["-c", "echo a; echo b >&2"]).unwrap(), "a");
        let error = sh.run(COMMAND_LIMIT, &["-c", "echo a; echo b >&2; exit 3"]).unwrap_err();
        assert!(error.ends_with("failed (exit status: 3): b"), "{error}");
        let error = sh.run(Duration::from_millis(100), &["-c", "exec sleep 600"]).unwrap_err();
        assert!(error.ends_with("took more than 100ms"), "{error}");
        let nobody = Engine { program: "no-such-program".into() };
        assert!(
            nobody
                .run(COMMAND_LIMIT, &["info"])
                .unwrap_err()
                .starts_with("cannot run `no-such-program info`")
        );
    }
}
