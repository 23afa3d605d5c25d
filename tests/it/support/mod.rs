//! Starts what tests need and speaks to it with clients that share no code with the program.

pub mod data;
pub mod program;
mod services;

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Where the real services are.
#[derive(Debug, Clone)]
pub struct Services {
    pub bootstrap: String,
    pub registry: String,
}

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// The shared broker and registry; started once, stopped with the process. `None` (said loudly) if they
/// are not there; with `SIDESTREAM_REQUIRE_SERVICES` set, as in CI, that is a failure.
pub fn services(test: &str) -> Option<Services> {
    static STARTED: OnceLock<Result<Started, String>> = OnceLock::new();
    let started = STARTED.get_or_init(start);
    match started {
        Ok(started) => Some(started.services.clone()),
        Err(why) if std::env::var_os("SIDESTREAM_REQUIRE_SERVICES").is_some() => {
            panic!("`{test}` needs real services: {why}")
        }
        Err(why) => {
            let count = SKIPPED.fetch_add(1, Ordering::SeqCst) + 1;
            // Not captured by the test runner: a skipped test must be seen.
            let line = format!("SKIPPED ({count} so far): {test}: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

/// Services of a test's own, to be stopped in the middle.
pub use services::{Kafka, Registry};

/// A broker and a registry of a test's own.
pub fn own_services(test: &str) -> Option<(Kafka, Registry, Services)> {
    // Says why if they cannot be had; those given by name must not be stopped.
    services(test)?;
    if services::missing().is_some() {
        return None;
    }
    let (kafka, registry) = (Kafka::start().unwrap(), Registry::start().unwrap());
    let services = Services { bootstrap: kafka.bootstrap().to_owned(), registry: registry.url().to_owned() };
    Some((kafka, registry, services))
}

/// What tests share, and what holds it.
struct Started {
    services: Services,
    _owned: Mutex<Option<Owned>>,
}

struct Owned {
    _kafka: Kafka,
    _registry: Registry,
}

fn start() -> Result<Started, String> {
    let given = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    if let (Some(bootstrap), Some(registry)) =
        (given("KAFKA_BOOTSTRAP_SERVERS"), given("SCHEMA_REGISTRY_URL"))
    {
        let services = Services { bootstrap, registry };
        return Ok(Started { services, _owned: Mutex::new(None) });
    }
    if let Some(why) = services::missing() {
        return Err(why);
    }
    let kafka = Kafka::start()?;
    let registry = Registry::start()?;
    let services = Services { bootstrap: kafka.bootstrap().to_owned(), registry: registry.url().to_owned() };
    let owned = Owned { _kafka: kafka, _registry: registry };
    Ok(Started { services, _owned: Mutex::new(Some(owned)) })
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
