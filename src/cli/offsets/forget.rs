//! `sidestream offsets forget`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::standing::{self, Ground};
use crate::cli::{DEFAULT_FILE, Failure, load, table};
use crate::kafka::{Cluster, Commit};
use crate::model::metadata::Saying;

use super::{ensure_alone, print_text};

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Do it.
    #[arg(long)]
    execute: bool,
}

/// # Errors
/// [`Failure`]
pub async fn forget(options: &Options) -> Result<(), Failure> {
    let loaded = load::load(&options.file)?;
    let ground = Ground::look(&loaded.plan).await.map_err(anyhow::Error::from)?;
    let (commits, lines) = forgotten(&ground).await?;
    if commits.is_empty() {
        print_text("the group keeps nothing of sinks or routes that are not in the file\n");
        return Ok(());
    }
    print_text(&table::columns(&lines, &[1]));
    if !options.execute {
        print_text("\nnothing was changed; with --execute these words are dropped, and the offsets stay\n");
        return Ok(());
    }
    ensure_alone(&ground, &loaded.plan.kafka.group).await?;
    let count = commits.len();
    ground.cluster.commit(commits).await.map_err(anyhow::Error::from)?;
    print_text(&format!("\ndropped in {count} partitions\n"));
    Ok(())
}

/// The commits without the words of strangers, and these words. All topics of the cluster are looked at: a topic may have
/// left the file together with its sinks.
async fn forgotten(ground: &Ground) -> anyhow::Result<(Vec<Commit>, Vec<[String; 4]>)> {
    let mut names = ground.cluster.names().await?;
    // Names like `__consumer_offsets` belong to the brokers.
    names.retain(|name| !name.as_str().starts_with("__"));
    let described = ground.cluster.describe(&names).await?;
    let infos = described.into_iter().filter_map(|(topic, info)| Some((topic, info.ok()?))).collect();
    let committed = standing::committed(&ground.cluster, &standing::sources(&infos)).await?;
    let (sinks, routes) = ground.known();
    let mut commits = Vec::new();
    let mut lines = vec![["topic", "partition", "word", ""].map(str::to_owned)];
    for (source, committed) in committed {
        let strangers = committed.metadata.strangers(&sinks, &routes);
        let Some(next) = committed.offset.filter(|_| !strangers.is_empty()) else {
            continue;
        };
        let mut metadata = committed.metadata;
        for stranger in strangers {
            let said = match &stranger.says {
                Saying::Position(next) => format!("a sink stood at {next}"),
                Saying::Log { id, entry } => format!("a sink wrote entry {entry} of log {id}"),
                Saying::Start(hash) => format!("a route was started with {}", hash.0),
            };
            metadata.forget(&stranger.key);
            lines.push([source.topic.to_string(), source.partition.to_string(), stranger.key, said]);
        }
        let metadata = metadata.render()?;
        commits.push(Commit { source, next, epoch: None, metadata });
    }
    Ok((commits, lines))
}
