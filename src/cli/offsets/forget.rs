//! `sidestream offsets forget`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::anyhow;
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
    // What cannot be named looks like a stranger, and would begin anew.
    if let Some((route, name, problem)) = ground.unfit.first() {
        return Err(anyhow!("route `{route}` has no place for `{name}`: {problem}; mend that first").into());
    }
    let (commits, lines) = forgotten(&ground).await?;
    if commits.is_empty() {
        print_text("the group keeps nothing of sinks or routes that are not in the file\n");
        return Ok(());
    }
    print_text(&table::columns(&lines, &[2]));
    if !options.execute {
        print_text("\nnothing was changed; with --execute these words are dropped, and the offsets stay\n");
        return Ok(());
    }
    let count: usize = commits.values().map(Vec::len).sum();
    for place in commits.keys() {
        ensure_alone(&ground.groups[*place]).await?;
    }
    // A member may have committed and left since the first look.
    let again = Ground::look(&loaded.plan).await.map_err(anyhow::Error::from)?;
    let (commits_now, lines_now) = forgotten(&again).await?;
    if commits_now != commits || lines_now != lines {
        return Err(anyhow!("the group has moved on meanwhile; nothing was changed, run it again").into());
    }
    for (place, commits) in commits {
        ground.groups[place].cluster.commit(commits).await.map_err(anyhow::Error::from)?;
    }
    print_text(&format!("\ndropped in {count} partitions\n"));
    Ok(())
}

/// The commits without the words of strangers, by the place of their group, and these words. All topics of the cluster
/// are looked at: a topic may have left the file together with its sinks.
async fn forgotten(ground: &Ground) -> anyhow::Result<(BTreeMap<usize, Vec<Commit>>, Vec<[String; 5]>)> {
    let mut names = ground.cluster().names().await?;
    // Names like `__consumer_offsets` belong to the brokers.
    names.retain(|name| !name.as_str().starts_with("__"));
    let described = ground.cluster().describe(&names).await?;
    let infos = described.into_iter().filter_map(|(topic, info)| Some((topic, info.ok()?))).collect();
    let sources = standing::sources(&infos);
    let mut commits: BTreeMap<usize, Vec<Commit>> = BTreeMap::new();
    let mut lines = vec![["group", "topic", "partition", "word", ""].map(str::to_owned)];
    for (place, group) in ground.groups.iter().enumerate() {
        let (sinks, starts) = ground.known(place);
        for (source, committed) in standing::committed(&group.cluster, &sources).await? {
            let strangers = committed.metadata.strangers(&sinks, &starts);
            let Some(next) = committed.offset.filter(|_| !strangers.is_empty()) else {
                continue;
            };
            let mut metadata = committed.metadata;
            for stranger in strangers {
                let said = match &stranger.says {
                    Saying::Position(next) => format!("a sink stood at {next}"),
                    Saying::Log { id, entry } => format!("a sink wrote entry {entry} of log {id}"),
                    Saying::Start(hash) => format!("a route or a sink was started with {}", hash.0),
                };
                metadata.forget(&stranger.key);
                let (topic, partition) = (source.topic.to_string(), source.partition.to_string());
                lines.push([group.name.clone(), topic, partition, stranger.key, said]);
            }
            let metadata = metadata.render()?;
            commits.entry(place).or_default().push(Commit { source, next, epoch: None, metadata });
        }
    }
    Ok((commits, lines))
}
