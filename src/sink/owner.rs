//! Who writes to a target that keeps positions, and who gets in. Pure.
//!
//! Nearly every target has one owner. Others come by `shared: true`, each with positions of its own, or by `adopt`: then the
//! positions of one owner become those of another, and the former one can commit no more.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ClusterId;

/// Who writes to a target: one sink of one group of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    pub cluster: ClusterId,
    pub group: String,
    /// `route/sink`, or the sink's `id:`.
    pub identity: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sink `{}` of group `{}` on cluster `{}`", self.identity, self.group, self.cluster)
    }
}

/// Who opens a target, and what it may do where somebody else writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub owner: Owner,
    /// The identity whose positions it takes over if it has none of its own.
    pub adopt: Option<String>,
    /// It may write beside others.
    pub is_shared: bool,
}

impl From<Owner> for Claim {
    fn from(owner: Owner) -> Self {
        Self { owner, adopt: None, is_shared: false }
    }
}

/// How somebody gets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It writes there already.
    Known,
    /// It is new: the first one, or beside others.
    Joins,
    /// It takes over the positions of this one.
    Adopts(Owner),
}

/// Why somebody does not get in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("belongs to {owner}")]
    Foreign { owner: Owner },
    #[error("belongs to {owner}, and `{wanted}`, which is to be adopted, does not write there")]
    NoneToAdopt { wanted: String, owner: Owner },
    #[error("has `{wanted}`, which is to be adopted, in more than one group: {}", groups.join(", "))]
    Ambiguous { wanted: String, groups: Vec<String> },
    #[error("was taken over by {by}")]
    Taken { by: Owner },
}

impl Refusal {
    /// What helps `claim`. `key` is what names the target: `path` or `table`.
    pub fn remedy(&self, claim: &Claim, key: &str) -> String {
        match self {
            Self::Foreign { owner } | Self::NoneToAdopt { owner, .. }
                if owner.cluster == claim.owner.cluster =>
            {
                let former = &owner.identity;
                format!(
                    "give each sink its own `{key}`; if the sink, its route or the group was renamed, say \
                     `adopt: {former}` to go on where that one stands; if both write there, say `shared: true`"
                )
            }
            Self::Foreign { .. } | Self::NoneToAdopt { .. } => format!(
                "give each sink its own `{key}`, or say `shared: true`: positions of another cluster mean nothing here"
            ),
            Self::Ambiguous { .. } => format!("give this sink a new `{key}`, or say `shared: true`"),
            Self::Taken { by } => format!(
                "end this deployment, or let its sink be that one: `id: {}`; to take the positions back, say `adopt: {}`",
                by.identity, by.identity
            ),
        }
    }
}

/// May it write among `writers`, and how? They are all who have ever written there, each with who has taken its positions
/// over; the first one comes first.
///
/// # Errors
/// Why not.
pub fn admit(claim: &Claim, writers: &[(&Owner, Option<&Owner>)]) -> Result<Admission, Refusal> {
    let own = writers.iter().find(|(owner, _)| **owner == claim.owner);
    if own.is_some_and(|(_, taken_by)| taken_by.is_none()) {
        return Ok(Admission::Known);
    }
    if let Some(wanted) = &claim.adopt
        && let Some(former) = adoptable(claim, wanted, writers)?
    {
        return Ok(Admission::Adopts(former));
    }
    if let Some((_, Some(by))) = own {
        return Err(Refusal::Taken { by: (*by).clone() });
    }
    let active = writers.iter().find(|(_, taken_by)| taken_by.is_none());
    let Some((owner, _)) = active.or_else(|| writers.first()).filter(|_| !claim.is_shared) else {
        return Ok(Admission::Joins);
    };
    let owner = (*owner).clone();
    Err(match &claim.adopt {
        Some(wanted) => Refusal::NoneToAdopt { wanted: wanted.clone(), owner },
        None => Refusal::Foreign { owner },
    })
}

/// Of the same group, or of the only other one: a group may be renamed too, a cluster may not.
fn adoptable(
    claim: &Claim,
    wanted: &str,
    writers: &[(&Owner, Option<&Owner>)],
) -> Result<Option<Owner>, Refusal> {
    let active = writers.iter().filter(|(_, taken_by)| taken_by.is_none()).map(|(owner, _)| *owner);
    let is_meant = |owner: &&Owner| owner.identity == wanted && owner.cluster == claim.owner.cluster;
    let found: Vec<&Owner> = active.filter(is_meant).collect();
    let same = found.iter().find(|owner| owner.group == claim.owner.group);
    match (same, found.as_slice()) {
        (Some(former), _) | (None, [former]) => Ok(Some((*former).clone())),
        (None, []) => Ok(None),
        (None, several) => {
            let mut groups: Vec<String> = several.iter().map(|owner| owner.group.clone()).collect();
            groups.sort_unstable();
            Err(Refusal::Ambiguous { wanted: wanted.to_owned(), groups })
        }
    }
}
