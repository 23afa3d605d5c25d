//! `sidestream config-schema`.

use clap::Args;

use crate::config::schema;
use crate::metrics;

use super::{Failure, types};

#[derive(Debug, Args)]
pub struct Options {
    /// Print the table of keys as Markdown instead: docs/routes.md.
    #[arg(long)]
    markdown: bool,
    /// Print the table of metrics as Markdown instead: docs/metrics.md.
    #[arg(long, conflicts_with = "markdown")]
    metrics: bool,
    /// Print the table of types as Markdown instead: a part of docs/types.md.
    #[arg(long, conflicts_with_all = ["markdown", "metrics"])]
    types: bool,
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
pub fn print(options: &Options) -> Result<(), Failure> {
    if options.markdown {
        print!("{}", schema::markdown());
    } else if options.metrics {
        print!("{}", metrics::markdown());
    } else if options.types {
        print!("{}", types::markdown()?);
    } else {
        println!("{:#}", schema::json_schema());
    }
    Ok(())
}
