//! A commit log as operators see it: looked at without changing anything, or moved.

use std::path::Path;

use crate::model::{Move, Positions};

use super::accounts::{Account, Admission, Claim, Refusal};
use super::entry::Owner;
use super::log::{INTERVALS, Log};
use super::{SinkError, explain};

/// What a directory's commit log says.
#[derive(Debug)]
pub struct Survey {
    log: Log,
}

impl Survey {
    /// Reads the log below `root`, if there is one, for who would open it with `claim`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(root: &Path, claim: &Claim) -> Result<Option<Self>, SinkError> {
        let log = Log::look(root).map_err(|error| explain(root, claim, error))?;
        Ok(log.map(|log| Self { log }))
    }

    /// The log's id, as it is kept beside the group's offsets.
    pub fn id(&self) -> String {
        self.log.id().simple().to_string()
    }

    /// All who write there, or did.
    pub fn owners(&self) -> impl Iterator<Item = (&Owner, &Account)> {
        self.log.accounts().iter()
    }

    pub fn account(&self, owner: &Owner) -> Option<&Account> {
        self.log.accounts().get(owner)
    }

    /// How it would be opened.
    ///
    /// # Errors
    /// Why it would not.
    pub fn admit(&self, claim: &Claim) -> Result<Admission, Refusal> {
        self.log.accounts().admit(claim)
    }

    /// Where a sink stands that is admitted so.
    pub fn positions(&self, claim: &Claim, admission: &Admission) -> Positions {
        let owner = match admission {
            Admission::Known | Admission::Joins => &claim.owner,
            Admission::Adopts(former) => former,
        };
        self.account(owner).map(|account| account.positions.clone()).unwrap_or_default()
    }
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
