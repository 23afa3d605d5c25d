//! Who writes to a directory, and how far each of them is: the fold of its log's entries. Pure.
//!
//! Nearly every directory has one owner, that of entry 0. Others come by `shared: true`, or by `adopt`: then the positions of
//! one owner become those of another, in one entry.

use std::collections::BTreeMap;

use crate::model::{Conflict, Move, Position, PositionKey, Positions, Reason, TopicName};
use crate::sink::owner::{Admission, Claim, Owner, Refusal, admit};

use super::entry::{Checkpoint, Entry, StoredAccount, StoredPosition};

/// Why moves do not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    Conflict(Conflict),
    /// Their owner's positions belong to this one now.
    Taken(Owner),
}

/// What one owner has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pub positions: Positions,
    /// The entry that moved each position last; where that was before the last checkpoint, the checkpoint.
    pub since: BTreeMap<PositionKey, u64>,
    /// The last entry that led a position back, or gave it to this owner. Where a position was before, files may have
    /// been deleted as orphans, so what was begun there earlier is not committed.
    turned: BTreeMap<PositionKey, u64>,
    /// Who has taken the positions over.
    pub taken_by: Option<Owner>,
}

/// All owners of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts {
    /// The owner in entry 0.
    creator: Owner,
    all: BTreeMap<Owner, Account>,
}

impl Account {
    fn note(&mut self, number: u64, moves: &[Move]) {
        for step in moves {
            self.since.insert(step.key, number);
            if step.reason == Reason::Adopt || Some(step.end.next) < step.start {
                self.turned.insert(step.key, number);
            }
        }
    }

    fn stored(&self) -> Vec<StoredPosition> {
        let each = self.positions.iter().map(|(key, topic, position)| StoredPosition {
            key: *key,
            topic: topic.clone(),
            position: *position,
            turned: self.turned.get(key).copied(),
        });
        each.collect()
    }

    fn restore(account: &StoredAccount, number: u64) -> Self {
        let mut restored = Self { taken_by: account.taken_by.clone(), ..Self::default() };
        for stored in &account.positions {
            restored.positions.restore(stored.key, stored.topic.clone(), stored.position);
            restored.since.insert(stored.key, number);
            if let Some(turned) = stored.turned {
                restored.turned.insert(stored.key, turned);
            }
        }
        restored.positions.restore_start_hash(account.start_hash.clone());
        restored
    }
}

impl Accounts {
    /// Of a log with nothing but entry 0.
    pub fn new(creator: Owner) -> Self {
        let all = BTreeMap::from([(creator.clone(), Account::default())]);
        Self { creator, all }
    }

    pub fn restore(checkpoint: &Checkpoint) -> Self {
        let creator = checkpoint.created.owner.clone();
        let first = StoredAccount {
            owner: creator.clone(),
            positions: checkpoint.positions.clone(),
            start_hash: checkpoint.start_hash.clone(),
            taken_by: checkpoint.taken_by.clone(),
        };
        let each = std::iter::once(&first).chain(&checkpoint.others);
        let all = each.map(|stored| (stored.owner.clone(), Account::restore(stored, checkpoint.entry)));
        Self { creator, all: all.collect() }
    }

    /// As checkpoints hold them: that of the owner in entry 0, and all others.
    pub fn store(&self) -> (StoredAccount, Vec<StoredAccount>) {
        let stored = |(owner, account): (&Owner, &Account)| StoredAccount {
            owner: owner.clone(),
            positions: account.stored(),
            start_hash: account.positions.start_hash().cloned(),
            taken_by: account.taken_by.clone(),
        };
        let none = Account::default();
        let first = stored((&self.creator, self.get(&self.creator).unwrap_or(&none)));
        let others = self.all.iter().filter(|(owner, _)| **owner != self.creator).map(stored);
        (first, others.collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Owner, &Account)> {
        self.all.iter()
    }

    pub fn get(&self, owner: &Owner) -> Option<&Account> {
        self.all.get(owner)
    }

    pub fn is_creator(&self, owner: &Owner) -> bool {
        *owner == self.creator
    }

    /// Who is meant by the mark in a file's name; without one it is the owner in entry 0.
    pub fn marked(&self, mark: Option<&str>) -> Option<&Account> {
        match mark {
            None => self.get(&self.creator),
            Some(mark) => self.iter().find(|(owner, _)| owner.mark() == mark).map(|(_, account)| account),
        }
    }

    /// May it write, and how?
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, claim: &Claim) -> Result<Admission, Refusal> {
        // Who has created it comes first.
        let (first, others): (Vec<_>, Vec<_>) = self.iter().partition(|(owner, _)| self.is_creator(owner));
        let all = first.into_iter().chain(others);
        let writers: Vec<_> = all.map(|(owner, account)| (owner, account.taken_by.as_ref())).collect();
        admit(claim, &writers)
    }

    /// The moves that carry over what `former` has.
    pub fn adoption(&self, former: &Owner) -> Vec<Move> {
        let positions = self.get(former).map(|account| account.positions.iter());
        let step = |(key, topic, position): (&PositionKey, &TopicName, &Position)| Move {
            key: *key,
            topic: topic.clone(),
            start: None,
            end: *position,
            reason: Reason::Adopt,
            records: 0,
        };
        positions.into_iter().flatten().map(step).collect()
    }

    /// May `owner` commit these moves, which it began when the log ended with entry `base`?
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, owner: &Owner, moves: &[Move], base: u64) -> Result<(), Objection> {
        let Some(account) = self.get(owner) else {
            return Positions::default().check(moves).map_err(Objection::Conflict);
        };
        if let Some(by) = &account.taken_by {
            return Err(Objection::Taken(by.clone()));
        }
        account.positions.check(moves).map_err(Objection::Conflict)?;
        let is_late = |step: &&Move| account.turned.get(&step.key).is_some_and(|turned| *turned > base);
        match moves.iter().find(is_late) {
            None => Ok(()),
            Some(step) => Err(Objection::Conflict(Conflict {
                key: step.key,
                topic: step.topic.clone(),
                stored: account.positions.get(&step.key).map(|position| position.next),
                start: step.start,
            })),
        }
    }

    /// Folds entry `number`.
    ///
    /// # Errors
    /// What is wrong with it; no position was changed then.
    pub fn apply(&mut self, number: u64, entry: &Entry) -> Result<(), String> {
        let owner = entry.owner.clone().unwrap_or_else(|| self.creator.clone());
        let misfit = |conflict: Conflict| format!("holds a move that does not fit: {conflict}");
        if let Some(former) = &entry.adopts {
            if self.get(&owner).is_some_and(|account| account.taken_by.is_none()) {
                return Err(format!("takes positions over for {owner}, which has its own"));
            }
            let Some(given) = self.all.get_mut(former).filter(|account| account.taken_by.is_none()) else {
                return Err(format!("takes over positions of {former}, which has none"));
            };
            let mut taken = Account::default();
            taken.positions.apply(&entry.moves).map_err(misfit)?;
            taken.positions.restore_start_hash(given.positions.start_hash().cloned());
            taken.note(number, &entry.moves);
            *given = Account { taken_by: Some(owner.clone()), ..Account::default() };
            self.all.insert(owner, taken);
            return Ok(());
        }
        let account = self.all.entry(owner).or_default();
        if let Some(by) = &account.taken_by {
            return Err(format!("moves positions that were taken over by {by}"));
        }
        account.positions.apply(&entry.moves).map_err(misfit)?;
        account.note(number, &entry.moves);
        Ok(())
    }
}
