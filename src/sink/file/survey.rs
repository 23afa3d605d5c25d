//! A commit log as operators see it: looked at without changing anything, or moved.

use std::path::Path;

use crate::model::Move;
use crate::sink::owner::Claim;
use crate::sink::survey::{Account, Survey};

use super::log::{INTERVALS, Log};
use super::{SinkError, explain};

/// What the log below `root` says, if there is one; for who would open it with `claim`.
///
/// # Errors
/// If it cannot be read.
pub fn survey(root: &Path, claim: &Claim) -> Result<Option<Survey>, SinkError> {
    let log = Log::look(root).map_err(|error| explain(root, claim, error))?;
    Ok(log.map(|log| {
        let accounts = log.accounts().iter().map(|(owner, account)| {
            let seen = Account {
                positions: account.positions.clone(),
                since: account.since.clone(),
                taken_by: account.taken_by.clone(),
            };
            (owner.clone(), seen)
        });
        Survey {
            log: Some(log.id().simple().to_string()),
            accounts: accounts.collect(),
            admission: log.accounts().admit(claim),
        }
    }))
}

/// Commits `moves` of an operator, as one entry.
///
/// # Errors
/// [`SinkError::Conflict`] if a position has moved since it was looked at: nothing was committed.
pub fn reset(root: &Path, claim: &Claim, moves: Vec<Move>) -> Result<(), SinkError> {
    let moved = Log::open(root, claim, INTERVALS).and_then(|mut log| {
        log.recover()?;
        log.commit(moves, Vec::new())
    });
    moved.map_err(|error| explain(root, claim, error))
}
