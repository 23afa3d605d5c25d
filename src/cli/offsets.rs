//! `sidestream offsets`: where every sink stands, and moving it.

mod forget;
mod list;
mod reset;

use clap::{Args, Subcommand};

use crate::kafka::Cluster;

use super::Failure;
use super::standing::Group;

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Where every sink stands, partition by partition. Reads only.
    List(list::Options),
    /// Move sinks to other offsets, while no instance runs. Only says what it would do, without `--execute`.
    Reset(reset::Options),
    /// Drop what the group keeps for sinks and routes that are no longer in the file. Only says what it would do,
    /// without `--execute`.
    Forget(forget::Options),
}

/// # Errors
/// [`Failure`]
pub fn offsets(options: &Options) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let result = runtime.block_on(async {
        match &options.command {
            Command::List(options) => list::list(options).await,
            Command::Reset(options) => reset::reset(options).await,
            Command::Forget(options) => forget::forget(options).await,
        }
    });
    // librdkafka's threads may still wait for brokers.
    runtime.shutdown_background();
    result
}

/// Nothing is moved under the feet of a living instance.
///
/// # Errors
/// If the group has members, or the brokers do not answer.
async fn ensure_alone(group: &Group) -> anyhow::Result<()> {
    let count = group.cluster.member_count().await?;
    let name = &group.name;
    anyhow::ensure!(
        count == 0,
        "group `{name}` has live members ({count}): end them first; one that was killed counts until its session ends \
         (`session.timeout.ms`)"
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn print_text(text: &str) {
    print!("{text}");
}
