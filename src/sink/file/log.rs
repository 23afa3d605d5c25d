//! The commit log of a directory (PROTOCOL §5): the only truth about which files count and how far
//! the sink has read.
//!
//! Entry `n` is created only if absent, by `link`, and names its predecessor by hash. Whoever creates
//! entry `n` has moved the positions from where entry `n−1` left them; whoever loses re-reads. There
//! are no leases and no clocks: a writer that slept for an hour loses in the same way.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use tracing::info;
use uuid::Uuid;

use crate::model::{Move, Positions};
use crate::sink::owner::{Admission, Claim, Refusal};

use super::accounts::{Accounts, Objection};
use super::durable::{LogError, point};
use super::entry::{self, Checkpoint, Created, DataFile, Entry, Owner, VERSION, VERSION_OWNERS};
use super::names::{Witness, checkpoint_path, entry_path, witness};
use super::storage::Home;

/// Entries between two checkpoints: a start reads at most this many small files.
const CHECKPOINT_EVERY: u64 = 1000;

/// A checkpoint also comes once this many data files were committed since the last one: their names are
/// held in memory, and recovery looks at each of them.
const CHECKPOINT_FILES: usize = 10_000;

/// When a checkpoint is due; tests make many.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    pub entries: u64,
    pub files: usize,
}

pub const INTERVALS: Intervals = Intervals { entries: CHECKPOINT_EVERY, files: CHECKPOINT_FILES };

/// How often a commit tries the next free number. Other writers of the directory move other
/// partitions: losing this many times in a row means they commit faster than we can read.
pub const COMMIT_TRIES_MAX: u32 = 100;

/// An open commit log, folded up to the last entry that was read.
#[derive(Debug)]
pub struct Log {
    home: Home,
    intervals: Intervals,
    created: Created,
    /// Who opened it.
    owner: Owner,
    last: u64,
    last_hash: String,
    checkpoint: Option<u64>,
    accounts: Accounts,
    /// Files since the last checkpoint.
    files: Vec<DataFile>,
}

impl Log {
    /// Opens the log of a place, creating it (and the place) if there is none.
    ///
    /// # Errors
    /// [`LogError::Refused`] if somebody else writes there and `claim` does not say what to make of that.
    pub fn open(home: impl Into<Home>, claim: &Claim, intervals: Intervals) -> Result<Self, LogError> {
        let home = home.into();
        home.prepare()?;
        if !is_there(&home)? {
            let created = Created { log: Uuid::new_v4(), owner: claim.owner.clone() };
            let entry = Entry { created: Some(created), ..entry_of(VERSION) };
            // Losing this race is fine: what counts is what is there afterwards.
            create_entry(&home, 0, &entry)?;
        }
        let mut log = Self::read(&home, intervals)?;
        log.owner = claim.owner.clone();
        log.enter(claim)?;
        Ok(log)
    }

    /// Reads the log of a place, if there is one, and changes nothing. It belongs to who has created it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn look(home: impl Into<Home>) -> Result<Option<Self>, LogError> {
        let home = home.into();
        if home.has_log()? && is_there(&home)? { Self::read(&home, INTERVALS).map(Some) } else { Ok(None) }
    }

    /// Takes over the positions of another owner, if that is how `claim` gets in.
    fn enter(&mut self, claim: &Claim) -> Result<(), LogError> {
        for _ in 0..COMMIT_TRIES_MAX {
            self.meet()?;
            let former = match self.accounts.admit(claim) {
                Ok(Admission::Known | Admission::Joins) => return Ok(()),
                Ok(Admission::Adopts(former)) => former,
                Err(refusal) => return Err(self.refused(refusal)),
            };
            let moves = self.accounts.adoption(&former);
            let root = self.home.root().display();
            info!(%root, from = %former, to = %self.owner, "taking positions over");
            let mut entry = Entry { moves, adopts: Some(former), ..self.entry() };
            let number = self.place(&mut entry);
            create_entry(&self.home, number, &entry)?;
            if self.has_won(number, &entry)? {
                return point("file.entry.adopted", self.home.root());
            }
        }
        Err(LogError::Crowded { path: self.home.root().to_owned() })
    }

    fn refused(&self, refusal: Refusal) -> LogError {
        LogError::Refused { path: self.home.root().to_owned(), refusal: Box::new(refusal) }
    }

    /// Folds the whole log from its last checkpoint.
    fn read(home: &Home, intervals: Intervals) -> Result<Self, LogError> {
        let mut log = match latest_checkpoint(home)? {
            Some(number) => Self::from_checkpoint(home, number, intervals)?,
            None => Self::from_first_entry(home, intervals)?,
        };
        log.refresh()?;
        Ok(log)
    }

    fn from_checkpoint(home: &Home, number: u64, intervals: Intervals) -> Result<Self, LogError> {
        let path = checkpoint_path(home.root(), number);
        let bytes = home.read(&path)?.ok_or_else(|| {
            let source = io::ErrorKind::NotFound.into();
            LogError::Io { action: "read", path: path.clone(), source }
        })?;
        let checkpoint: Checkpoint = parse(&path, &bytes)?;
        check_version(&path, checkpoint.version)?;
        Ok(Self {
            home: home.clone(),
            intervals,
            accounts: Accounts::restore(&checkpoint),
            owner: checkpoint.created.owner.clone(),
            created: checkpoint.created,
            last: checkpoint.entry,
            last_hash: checkpoint.hash,
            checkpoint: Some(number),
            // They were all brought into sight before the checkpoint was made.
            files: Vec::new(),
        })
    }

    fn from_first_entry(home: &Home, intervals: Intervals) -> Result<Self, LogError> {
        let path = entry_path(home.root(), 0);
        let damaged = |problem: &str| LogError::Damaged { path: path.clone(), problem: problem.to_owned() };
        let (entry, hash) = read_entry(home, 0)?.ok_or_else(|| damaged("is missing"))?;
        let created = entry.created.ok_or_else(|| damaged("names no owner"))?;
        Ok(Self {
            home: home.clone(),
            intervals,
            accounts: Accounts::new(created.owner.clone()),
            owner: created.owner.clone(),
            created,
            last: 0,
            last_hash: hash,
            checkpoint: None,
            files: Vec::new(),
        })
    }

    pub fn id(&self) -> Uuid {
        self.created.log
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    /// Where its owner stands.
    pub fn positions(&self) -> Positions {
        let account = self.accounts.get(&self.owner);
        account.map(|account| account.positions.clone()).unwrap_or_default()
    }

    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// What tells the files of this owner from those of others; those of the owner in entry 0 need nothing.
    pub fn mark(&self) -> Option<String> {
        (!self.accounts.is_creator(&self.owner)).then(|| self.owner.mark())
    }

    /// Reads the entries that others (or an attempt of ours with a lost reply) have added, and brings
    /// their files into sight.
    ///
    /// # Errors
    /// [`LogError::Damaged`] if an entry does not follow from the one before it, or the last one read is gone.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        loop {
            // Entries above the last one read may be pruned, or void, once a checkpoint has passed it. One below lists
            // files that the next checkpoint must not list again.
            let newest = latest_checkpoint(&self.home)?;
            match newest {
                Some(number) if newest > self.checkpoint => {
                    let owner = self.owner.clone();
                    *self = Self { owner, ..Self::from_checkpoint(&self.home, number, self.intervals)? };
                }
                _ if self.is_last_there()? => {}
                _ if latest_checkpoint(&self.home)? != newest => continue,
                _ => {
                    let path = entry_path(self.home.root(), self.last);
                    let problem =
                        "is gone or another one: a backup was restored over a living log".to_owned();
                    return Err(LogError::Damaged { path, problem });
                }
            }
            self.read_entries()?;
            // A checkpoint that appeared meanwhile may have passed what was just read.
            if latest_checkpoint(&self.home)? == newest {
                return Ok(());
            }
        }
    }

    /// Is the last entry that was read still there, as it was?
    fn is_last_there(&self) -> Result<bool, LogError> {
        let found = self.home.read(&entry_path(self.home.root(), self.last))?;
        Ok(found.is_some_and(|bytes| entry::hash(&bytes) == self.last_hash))
    }

    fn read_entries(&mut self) -> Result<(), LogError> {
        while let Some((entry, hash)) = read_entry(&self.home, self.last + 1)? {
            let path = entry_path(self.home.root(), self.last + 1);
            if entry.previous != self.last_hash {
                return Err(LogError::Damaged {
                    path,
                    problem: "does not follow from the entry before it: a backup was restored over \
                              a living log, or files were copied between directories"
                        .to_owned(),
                });
            }
            let applied = self.accounts.apply(self.last + 1, &entry);
            applied.map_err(|problem| LogError::Damaged { path, problem })?;
            self.files.extend(entry.files);
            self.last += 1;
            self.last_hash = hash;
        }
        Ok(())
    }

    /// Is a staged file named by an entry since the last checkpoint?
    pub fn lists(&self, staged: &str) -> bool {
        self.files.iter().any(|file| file.staged == staged)
    }

    /// Appends one entry: `moves` from where the positions stand, and the staged `files` they filled,
    /// which must be durable already. On return the files are in sight.
    ///
    /// # Errors
    /// [`LogError::Conflict`] if a position has moved: nothing was committed. After any other error the
    /// outcome is unknown until the log was read again.
    pub fn commit(&mut self, moves: Vec<Move>, files: Vec<DataFile>) -> Result<(), LogError> {
        self.commit_since(self.last, moves, files)
    }

    /// As [`Log::commit`], for moves and files that were begun when the log ended with entry `base`.
    ///
    /// # Errors
    /// As [`Log::commit`].
    pub fn commit_since(
        &mut self,
        base: u64,
        moves: Vec<Move>,
        files: Vec<DataFile>,
    ) -> Result<(), LogError> {
        self.home.make_room(&files)?;
        point("file.targets.made", self.home.root())?;
        let mut entry = Entry { moves, files, ..self.entry() };
        for _ in 0..COMMIT_TRIES_MAX {
            let number = self.propose(&mut entry, base)?;
            create_entry(&self.home, number, &entry)?;
            if self.has_won(number, &entry)? {
                point("file.entry.owned", self.home.root())?;
                self.home.show(&entry.files)?;
                return self.maybe_checkpoint();
            }
        }
        Err(LogError::Crowded { path: self.home.root().to_owned() })
    }

    /// An entry of this owner, to be filled.
    fn entry(&self) -> Entry {
        let is_creator = self.accounts.is_creator(&self.owner);
        let version = if is_creator { VERSION } else { VERSION_OWNERS };
        Entry { owner: (!is_creator).then(|| self.owner.clone()), ..entry_of(version) }
    }

    /// The number at which `entry`, begun when the log ended with entry `base`, may be created: its moves fit what was
    /// read.
    fn propose(&mut self, entry: &mut Entry, base: u64) -> Result<u64, LogError> {
        self.meet()?;
        self.accounts.check(&self.owner, &entry.moves, base).map_err(|objection| match objection {
            Objection::Conflict(conflict) => LogError::Conflict(conflict),
            Objection::Taken(by) => self.refused(Refusal::Taken { by }),
        })?;
        Ok(self.place(entry))
    }

    /// Reads on if the last entry that was read is not there: a checkpoint has passed it; or the directory was put back
    /// from a copy, and an entry behind a hole would be acknowledged and never read.
    fn meet(&mut self) -> Result<(), LogError> {
        if self.is_last_there()? { Ok(()) } else { self.refresh() }
    }

    /// Gives `entry` the place behind the last one.
    fn place(&self, entry: &mut Entry) -> u64 {
        // The owner of entry 0 that takes its positions back: programs of before would take that for a first sight.
        if entry.adopts.is_some() {
            entry.version = VERSION_OWNERS;
        }
        entry.previous.clone_from(&self.last_hash);
        self.last + 1
    }

    /// Whose entry is it, after ours was offered? One created below an existing checkpoint is void: we slept while
    /// others went on and cleaned up, and its number was free only because the entry is gone.
    fn has_won(&mut self, number: u64, entry: &Entry) -> Result<bool, LogError> {
        self.refresh()?;
        if self.last < number || self.checkpoint.is_some_and(|newest| newest >= number) {
            return Ok(false);
        }
        let found = read_entry(&self.home, number)?;
        Ok(found.is_some_and(|(found, _)| found.commit == entry.commit))
    }

    /// Repeats what a crash may have left undone: files of committed entries come into sight, staged
    /// files that no entry can ever list are deleted.
    pub fn recover(&mut self) -> Result<(), LogError> {
        // What is found counts from here on.
        self.home.settle_log()?;
        point("file.recovery.synced", self.home.root())?;
        self.home.show(&self.files)?;
        point("file.recovery.shown", self.home.root())?;
        let listed: BTreeSet<&str> = self.files.iter().map(|file| file.staged.as_str()).collect();
        for name in self.home.staged()? {
            let Some(Witness { key, start, mark }) = witness(&name) else {
                continue;
            };
            // Whose it is decides. Nobody commits for an owner whose positions were taken over.
            let passed = self.accounts.marked(mark.as_deref()).is_some_and(|account| {
                account.taken_by.is_some()
                    || account.positions.get(&key).is_some_and(|position| position.next > start)
            });
            if passed && !listed.contains(name.as_str()) {
                self.home.remove_staged(&name)?;
                point("file.orphan.removed", self.home.root())?;
            }
        }
        self.home.sweep(self.last)
    }

    fn maybe_checkpoint(&mut self) -> Result<(), LogError> {
        let is_due = self.last >= self.checkpoint.unwrap_or(0) + self.intervals.entries
            || self.files.len() >= self.intervals.files;
        if !is_due {
            return Ok(());
        }
        if latest_checkpoint(&self.home)? > self.checkpoint {
            // Another writer has made one since; the next look at the log finds it.
            return Ok(());
        }
        // All files below a checkpoint are in sight: recovery never looks below it again.
        self.home.show(&self.files)?;
        let (own, others) = self.accounts.store();
        let checkpoint = Checkpoint {
            version: if others.is_empty() { VERSION } else { VERSION_OWNERS },
            entry: self.last,
            hash: self.last_hash.clone(),
            created: self.created.clone(),
            positions: own.positions,
            start_hash: own.start_hash,
            taken_by: own.taken_by,
            others,
            files: std::mem::take(&mut self.files).into_iter().map(DataFile::completed).collect(),
        };
        let path = checkpoint_path(self.home.root(), self.last);
        self.home.create(&path, &bytes(&path, &checkpoint)?)?;
        point("file.checkpoint.created", self.home.root())?;
        let before = self.checkpoint.replace(self.last);
        // Entries below the checkpoint before this one go; those since stay for people who look.
        self.prune(before.unwrap_or(0))
    }

    fn prune(&self, below: u64) -> Result<(), LogError> {
        let number = |name: &String| name.split('.').next().and_then(|digits| digits.parse::<u64>().ok());
        let mut names = self.home.log_names()?;
        names.retain(|name| number(name).is_some_and(|number| number < below));
        self.home.remove_from_log(&names)
    }
}

/// An entry without content.
fn entry_of(version: u32) -> Entry {
    Entry {
        version,
        commit: Uuid::new_v4(),
        previous: String::new(),
        created: None,
        owner: None,
        adopts: None,
        moves: Vec::new(),
        files: Vec::new(),
    }
}

/// Is there a log? A directory must exist.
fn is_there(home: &Home) -> Result<bool, LogError> {
    Ok(read_entry(home, 0)?.is_some() || latest_checkpoint(home)?.is_some())
}

fn read_entry(home: impl Into<Home>, number: u64) -> Result<Option<(Entry, String)>, LogError> {
    let home = home.into();
    let path = entry_path(home.root(), number);
    let Some(bytes) = home.read(&path)? else {
        return Ok(None);
    };
    let entry: Entry = parse(&path, &bytes)?;
    check_version(&path, entry.version)?;
    if entry.files.iter().any(|file| !file.is_below_root()) {
        let problem = "names a file that is not below the sink's directory".to_owned();
        return Err(LogError::Damaged { path, problem });
    }
    Ok(Some((entry, entry::hash(&bytes))))
}

fn bytes<T: serde::Serialize>(path: &Path, content: &T) -> Result<Vec<u8>, LogError> {
    serde_json::to_vec(content).map_err(|error| LogError::Io {
        action: "create",
        path: path.to_owned(),
        source: error.into(),
    })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, LogError> {
    serde_json::from_slice(bytes).map_err(|error| LogError::Damaged {
        path: path.to_owned(),
        problem: format!("cannot be read: {error}"),
    })
}

/// Folds an entry or a checkpoint of these bytes, whoever has written them. For fuzzers.
pub fn fold(bytes: &[u8]) {
    if let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(bytes) {
        let (first, others) = Accounts::restore(&checkpoint).store();
        assert!(first.owner == checkpoint.created.owner && others.len() <= checkpoint.others.len());
    }
    let Ok(entry) = serde_json::from_slice::<Entry>(bytes) else {
        return;
    };
    let creator = entry.created.as_ref().map(|created| created.owner.clone());
    if let Some(owner) = creator.or_else(|| entry.owner.clone()) {
        let mut accounts = Accounts::new(owner.clone());
        // Moves that do not fit are told, and change nothing.
        let is_applied = accounts.apply(1, &entry).is_ok();
        assert!(is_applied || accounts == Accounts::new(owner) || entry.owner.is_some());
    }
}

fn check_version(path: &Path, version: u32) -> Result<(), LogError> {
    if version > VERSION_OWNERS {
        return Err(LogError::Damaged {
            path: path.to_owned(),
            problem: format!("was written by a later version (format {version}, this is {VERSION_OWNERS})"),
        });
    }
    Ok(())
}

fn latest_checkpoint(home: impl Into<Home>) -> Result<Option<u64>, LogError> {
    let names = home.into().log_names()?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(".checkpoint")?.parse().ok()).max())
}

/// Creates entry `number` unless it exists; which of the two happened is read afterwards.
fn create_entry(home: impl Into<Home>, number: u64, entry: &Entry) -> Result<(), LogError> {
    let home = home.into();
    let path = entry_path(home.root(), number);
    home.create(&path, &bytes(&path, entry)?)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
