//! `sidestream demo`: the main job with nothing installed. A broker and a registry in this process, generated
//! records, the repository's own routes file, files on disk, and the table of what went where.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::config::plan::Registry;
use crate::kafka::{self, MockBroker};
use crate::registry::embedded::EmbeddedRegistry;

use super::datagen::{self, Options};
use super::{Failure, build, load, run};

/// # Errors
/// [`Failure`]
pub fn demo(options: &Options) -> Result<(), Failure> {
    let broker = MockBroker::start().context("failed to start the embedded broker")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let registry =
        runtime.block_on(EmbeddedRegistry::start()).context("failed to start the embedded registry")?;
    let embedded = [
        ("KAFKA_BOOTSTRAP_SERVERS".to_owned(), broker.bootstrap().to_owned()),
        ("SCHEMA_REGISTRY_URL".to_owned(), registry.url()),
    ];
    let mut loaded = load::load_with(&options.file, &embedded)?;
    // Whatever the file names: the demo writes to nobody else's cluster.
    loaded.plan.kafka.properties = BTreeMap::from([
        ("bootstrap.servers".to_owned(), broker.bootstrap().to_owned()),
        ("group.id".to_owned(), loaded.plan.kafka.group.clone()),
    ]);
    loaded.plan.registry = Some(Registry::at(registry.url(), Duration::from_secs(10)));
    // Every demo is a new cluster, whose positions mean nothing in the files of the one before.
    let out = PathBuf::from("demo-out").join(&uuid::Uuid::new_v4().simple().to_string()[..8]);
    loaded.plan.write_below(&out);
    let client = build::registry(&loaded.plan)?.context("`schema_registry` is missing")?;
    let config = kafka::producer_config(&loaded.plan.kafka);
    let written =
        runtime.block_on(datagen::fill(&config, client.as_ref(), &options.schemas, &options.amount))?;
    for (topic, count) in written {
        print_line(&format!("generated {count} records in {topic}"));
    }
    run::run_until_latest(&runtime, &Arc::new(loaded))?;
    print_line(&format!(
        "\nThe files are below {}; what wrote them is {}.",
        out.display(),
        options.file.display()
    ));
    drop(registry);
    runtime.shutdown_background();
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn print_line(line: &str) {
    println!("{line}");
}
