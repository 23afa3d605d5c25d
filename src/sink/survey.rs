//! A sink's own store of positions, looked at from outside without changing anything: for `offsets` and `plan`.

use std::collections::BTreeMap;

use crate::model::{PositionKey, Positions};

use super::owner::{Admission, Claim, Owner, Refusal};

/// What the store of a target says: the commit log of a directory, or the tables beside a table.
#[derive(Debug)]
pub struct Survey {
    /// The commit log's id, as it is kept beside the group's offsets; `None` where there is no log.
    pub log: Option<String>,
    /// All who write there, or did.
    pub accounts: BTreeMap<Owner, Account>,
    /// How the one who looks would be let in, or why not.
    pub admission: Result<Admission, Refusal>,
    /// Why less is promised there than its kind of target promises, if that is so.
    pub weakness: Option<String>,
}

/// What one owner has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pub positions: Positions,
    /// The entry of the log that moved each position last.
    pub since: BTreeMap<PositionKey, u64>,
    /// Who has taken the positions over.
    pub taken_by: Option<Owner>,
}

impl Survey {
    /// The owner under whose name the one who looks stands there now.
    pub fn standing<'a>(&'a self, claim: &'a Claim) -> Option<(&'a Owner, &'a Account)> {
        let owner = match &self.admission {
            Ok(Admission::Known | Admission::Joins) => &claim.owner,
            Ok(Admission::Adopts(former)) => former,
            Err(_) => return None,
        };
        Some((owner, self.accounts.get(owner)?))
    }

    /// Who is taken over at the next start.
    pub fn adopted(&self) -> Option<&Owner> {
        match &self.admission {
            Ok(Admission::Adopts(former)) => Some(former),
            Ok(Admission::Known | Admission::Joins) | Err(_) => None,
        }
    }
}
