//! A table's positions as operators see them: looked at without changing anything, or moved.

use tokio::task::block_in_place;

use crate::config::plan;
use crate::model::Move;
use crate::sink::SinkError;
use crate::sink::owner::Claim;
use crate::sink::survey::Survey;

use super::error::{TableError, explain};
use super::log::{self, Created};
use super::positions::{Txn, Writers};
use super::table::{Table, commit_info};
use super::{COMMIT_TRIES_MAX, catch_up, crowded, enter, number};

/// What is said of a sink's table, if there is one that a sink has written to; for who would open it with `claim`. On a
/// runtime of several threads.
///
/// # Errors
/// If it cannot be read.
pub fn survey(target: &plan::Delta, claim: &Claim) -> Result<Option<Survey>, SinkError> {
    let found = block_in_place(|| Table::open(&target.path));
    let found = found.map_err(|error| explain(claim, target, "look at", error))?;
    Ok(found.filter(|(_, writers)| !writers.is_empty()).map(|(_, writers)| {
        let admission = writers.admission(claim);
        Survey { log: None, accounts: writers.accounts(), admission, weakness: None }
    }))
}

/// Commits `moves` of an operator, as one entry.
///
/// # Errors
/// [`SinkError::Conflict`] if a position has moved since it was looked at: nothing was committed.
pub fn reset(target: &plan::Delta, claim: &Claim, moves: &[Move]) -> Result<(), SinkError> {
    let moved = block_in_place(|| {
        let Some((mut table, mut writers)) = Table::open(&target.path)? else {
            return Err(TableError::stop("the table is gone", "run the command again"));
        };
        enter(&mut table, &mut writers, claim)?;
        advance(&mut table, &mut writers, claim, moves)
    });
    moved.map_err(|error| explain(claim, target, "move", error))
}

fn advance(
    table: &mut Table,
    writers: &mut Writers,
    claim: &Claim,
    moves: &[Move],
) -> Result<(), TableError> {
    for _ in 0..COMMIT_TRIES_MAX {
        catch_up(table, writers)?;
        let version = table.version + 1;
        let txns = writers.advancing(&claim.owner, moves, number(version)?)?;
        let mut lines = vec![commit_info("STREAMING UPDATE", &[], false)];
        lines.extend(txns.iter().map(Txn::line));
        if log::create(&table.root, version, &lines)? == Created::Ours {
            return Ok(());
        }
    }
    Err(crowded())
}
