//! A commit log as operators see it: looked at without changing anything, or moved.

use crate::model::Move;
use crate::sink::owner::Claim;
use crate::sink::survey::{Account, Survey};

use super::log::{INTERVALS, Log};
use super::storage::Home;
use super::{SinkError, explain};

/// What the log of a place says, if there is one; for who would open it with `claim`.
///
/// # Errors
/// If it cannot be read.
pub fn survey(home: &Home, claim: &Claim) -> Result<Option<Survey>, SinkError> {
    let looked = Log::look(home).and_then(|log| Ok((log, home.weakness()?)));
    let (log, weakness) = looked.map_err(|error| explain(home, claim, error))?;
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
            weakness,
        }
    }))
}

/// Commits `moves` of an operator, as one entry.
///
/// # Errors
/// [`SinkError::Conflict`] if a position has moved since it was looked at: nothing was committed.
pub fn reset(home: &Home, claim: &Claim, moves: Vec<Move>) -> Result<(), SinkError> {
    let moved = Log::open(home, claim, INTERVALS).and_then(|mut log| {
        log.recover()?;
        log.commit(moves, Vec::new())
    });
    moved.map_err(|error| explain(home, claim, error))
}
