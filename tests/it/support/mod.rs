//! Starts what tests need and speaks to it with clients that share no code with the program.

mod connect;
pub mod data;
mod docker;
pub mod objects;
mod postgres;
mod probe;
pub mod program;
#[expect(dead_code, reason = "tests/auditor also starts clusters, and freezes brokers")]
mod services;

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

pub use connect::{Connect, Converter};
pub use objects::Objects;
pub use postgres::{Postgres, Session};
pub use probe::Stoppable;

/// Where the real services are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    pub bootstrap: String,
    pub registry: String,
}

/// What gives the tests their services.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// They are there already, and are not ours to stop.
    Given(Services),
    /// What `scripts/fetch-test-services` has fetched.
    Files,
    Docker,
    Nowhere(String),
}

/// The best source there is: those named by variables, then the files, then a Docker engine. Each of these is asked only
/// if it is needed, and says why it is not there.
fn source(
    variable: impl Fn(&str) -> Option<String>,
    files: impl FnOnce() -> Result<(), String>,
    docker: impl FnOnce() -> Result<(), String>,
) -> Source {
    let given = |name| variable(name).filter(|value| !value.is_empty());
    if let (Some(bootstrap), Some(registry)) =
        (given("KAFKA_BOOTSTRAP_SERVERS"), given("SCHEMA_REGISTRY_URL"))
    {
        return Source::Given(Services { bootstrap, registry });
    }
    let Err(no_files) = files() else {
        return Source::Files;
    };
    let Err(no_docker) = docker() else {
        return Source::Docker;
    };
    Source::Nowhere(format!("{no_files}; and no Docker: {no_docker}"))
}

/// The shared broker and registry; started once, stopped with the process. `None` (said loudly) if they
/// are not there; with `SIDESTREAM_REQUIRE_SERVICES` set, as in CI, that is a failure.
pub fn services(test: &str) -> Option<Services> {
    static SHARED: OnceLock<Result<Shared, String>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let started = start(source(|name| std::env::var(name).ok(), services::are_there, docker::answers))?;
        Ok(Shared { services: started.services, _own: Mutex::new(started.own) })
    });
    match shared {
        Ok(shared) => Some(shared.services.clone()),
        Err(why) => skip(test, why),
    }
}

fn skip<T>(test: &str, why: &str) -> Option<T> {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    if std::env::var_os("SIDESTREAM_REQUIRE_SERVICES").is_some() {
        panic!("`{test}` needs real services: {why}");
    }
    let count = SKIPPED.fetch_add(1, Ordering::SeqCst) + 1;
    // Not captured by the test runner: a skipped test must be seen.
    let line = format!("SKIPPED ({count} so far): {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

/// Says loudly that a part of a test is left out for want of a tool; where services are required, so is the tool.
pub fn without(tool: &str, why: &str) {
    skip::<()>(tool, why);
}

/// Python with Confluent's client. `None` (said loudly) if it is not there; where services are required, so is it.
pub fn python(test: &str) -> Option<PathBuf> {
    match services::python() {
        Ok(python) => Some(python),
        Err(why) => skip(test, &why),
    }
}

/// A service that ends when it is dropped.
pub type Owned = Box<dyn Stoppable>;

/// A broker and a registry of a test's own. Those given by name must not be stopped.
pub fn own_services(test: &str) -> Option<(Owned, Owned, Services)> {
    match source(|_| None, services::are_there, docker::answers) {
        Source::Nowhere(why) => skip(test, &why),
        source => {
            let started = start(source).unwrap();
            let Own { kafka, registry } = started.own?;
            Some((kafka, registry, started.services))
        }
    }
}

/// A PostgreSQL of a test's own.
pub fn own_postgres(test: &str) -> Option<Postgres> {
    match postgres::are_there() {
        Ok(()) => Some(Postgres::start().unwrap()),
        Err(why) => skip(test, &why),
    }
}

/// An S3-compatible server of a test's own.
pub fn own_objects(test: &str) -> Option<Objects> {
    match objects::are_there() {
        Ok(()) => Some(Objects::start().unwrap()),
        Err(why) => skip(test, &why),
    }
}

/// Kafka Connect that carries the changes of a PostgreSQL into topics `<prefix>.<schema>.<table>`.
pub fn own_connect(
    test: &str,
    services: &Services,
    postgres: &Postgres,
    converter: Converter,
    prefix: &str,
) -> Option<Connect> {
    match connect::are_there(services) {
        Ok(()) => Some(Connect::start(services, postgres, converter, prefix).unwrap()),
        Err(why) => skip(test, &why),
    }
}

/// Services, and what holds them if they are ours.
struct Started {
    services: Services,
    own: Option<Own>,
}

struct Own {
    kafka: Box<dyn Stoppable>,
    registry: Box<dyn Stoppable>,
}

/// What tests share.
struct Shared {
    services: Services,
    _own: Mutex<Option<Own>>,
}

fn start(source: Source) -> Result<Started, String> {
    match source {
        Source::Given(services) => Ok(Started { services, own: None }),
        Source::Files => {
            let (kafka, registry) = (services::Kafka::start()?, services::Registry::start()?);
            let services =
                Services { bootstrap: kafka.bootstrap().to_owned(), registry: registry.url().to_owned() };
            Ok(Started { services, own: Some(Own { kafka: Box::new(kafka), registry: Box::new(registry) }) })
        }
        Source::Docker => {
            let (kafka, registry, services) = docker::start()?;
            Ok(Started { services, own: Some(Own { kafka: Box::new(kafka), registry: Box::new(registry) }) })
        }
        Source::Nowhere(why) => Err(why),
    }
}

/// Names that no other test uses: tests share one broker.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

/// Tests that load the machine take turns: two cores.
pub fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there() -> Result<(), String> {
        Ok(())
    }

    fn not_there() -> Result<(), String> {
        Err("no".to_owned())
    }

    fn not_asked() -> Result<(), String> {
        panic!("asked in vain")
    }

    #[test]
    fn services_that_are_named_come_before_files_and_files_before_docker() {
        let none = |_: &str| None;
        let both = |name: &str| Some(format!("the value of {name}"));
        let given = Services {
            bootstrap: "the value of KAFKA_BOOTSTRAP_SERVERS".to_owned(),
            registry: "the value of SCHEMA_REGISTRY_URL".to_owned(),
        };
        assert_eq!(source(both, not_asked, not_asked), Source::Given(given));
        assert_eq!(source(none, there, not_asked), Source::Files);
        assert_eq!(source(none, not_there, there), Source::Docker);
        assert_eq!(source(none, not_there, not_there), Source::Nowhere("no; and no Docker: no".to_owned()));
    }

    #[test]
    fn one_name_alone_or_an_empty_one_gives_nothing() {
        let one = |name: &str| (name == "SCHEMA_REGISTRY_URL").then(|| "http://localhost:8081".to_owned());
        assert_eq!(source(one, there, not_asked), Source::Files);
        assert_eq!(source(|_: &str| Some(String::new()), not_there, there), Source::Docker);
    }
}
