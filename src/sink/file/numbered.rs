//! Rows of a directory's committed files, numbered once and for all, and how far somebody has read them.
//!
//! It lies beside the commit log, which forgets the names of files. Files that have come into sight since are put behind
//! those that are known; a number never means another row. One process at a time reads a directory so.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;
use uuid::Uuid;

use crate::model::Offset;

use super::durable::{LogError, create_dir_durably, list, parent, sync_dir};
use super::log::Log;
use super::names::{numbered_dir, witness};
use super::read;

/// The version of both files.
const VERSION: u32 = 1;

/// Why rows cannot be numbered.
#[derive(Debug, thiserror::Error)]
pub enum NumberError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("`{}` is being read by another process", .root.display())]
    Busy { root: PathBuf },
    #[error("`{}` {problem}", .path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("failed to count the rows of `{}`", .path.display())]
    Count { path: PathBuf, source: io::Error },
}

/// `files`: in the order of the numbers of their rows.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    /// Random: numbers of another index mean other rows.
    id: Uuid,
    /// The number of the next row.
    end: u64,
    files: Vec<NumberedFile>,
}

/// A file, and the number of its first row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedFile {
    /// Below the directory.
    pub name: String,
    pub start: u64,
    pub rows: u64,
}

impl NumberedFile {
    /// The number behind its last row.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.rows)
    }
}

/// `committed`: how far it was read, and what the reader keeps beside.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Committed {
    version: u32,
    /// Of the index whose numbers it means.
    id: Uuid,
    next: Offset,
    metadata: String,
}

/// The numbered rows of one directory.
#[derive(Debug)]
pub struct Numbered {
    root: PathBuf,
    index: Index,
    committed: Mutex<Option<Committed>>,
    /// Held as long as this lives.
    _lock: File,
}

impl Numbered {
    /// Numbers what has come into sight since the last time. What a crash has left of committed files comes into sight
    /// first. `None`: nothing was ever written there.
    ///
    /// # Errors
    /// [`NumberError`]
    pub fn open(root: &Path) -> Result<Option<Self>, NumberError> {
        let Some(mut log) = Log::look(root)? else {
            return Ok(None);
        };
        log.recover()?;
        let dir = numbered_dir(root);
        create_dir_durably(&dir)?;
        let lock = lock(root, &dir)?;
        let known: Option<Index> = load(&index_path(&dir), |index: &Index| index.version)?;
        let committed: Option<Committed> =
            load(&committed_path(&dir), |committed: &Committed| committed.version)?;
        let is_new = known.is_none();
        let fresh = || Index { version: VERSION, id: Uuid::new_v4(), end: 0, files: Vec::new() };
        let mut index = known.unwrap_or_else(fresh);
        let committed = committed.filter(|committed| committed.id == index.id);
        let passed = committed.as_ref().map_or(0, |committed| committed.next.get().unsigned_abs());
        if index.update(root, passed)? || is_new {
            replace(&index_path(&dir), &index)?;
        }
        Ok(Some(Self { root: root.to_owned(), index, committed: Mutex::new(committed), _lock: lock }))
    }

    /// What tells these numbers from those of another directory.
    pub fn id(&self) -> Uuid {
        self.index.id
    }

    /// The number behind the last row.
    pub fn end(&self) -> Offset {
        offset(self.index.end)
    }

    /// The file that has row `number`, or else the first one behind it.
    pub fn file_at(&self, number: Offset) -> Option<&NumberedFile> {
        let number = number.get().unsigned_abs();
        let place = self.index.files.partition_point(|file| file.end() <= number);
        self.index.files.get(place)
    }

    pub fn path_of(&self, file: &NumberedFile) -> PathBuf {
        self.root.join(&file.name)
    }

    /// How far it was read, and what was kept beside.
    pub fn committed(&self) -> Option<(Offset, String)> {
        let committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        committed.as_ref().map(|committed| (committed.next, committed.metadata.clone()))
    }

    /// Keeps how far it was read: durable when this returns.
    ///
    /// # Errors
    /// [`NumberError::Log`]
    pub fn commit(&self, next: Offset, metadata: &str) -> Result<(), NumberError> {
        let (id, metadata) = (self.index.id, metadata.to_owned());
        let committed = Committed { version: VERSION, id, next, metadata };
        let mut known = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        replace(&committed_path(&numbered_dir(&self.root)), &committed)?;
        *known = Some(committed);
        Ok(())
    }
}

impl Index {
    /// Takes in files that are new, and lets go of those that are gone and were read: up to number `passed`. `true` if
    /// anything has changed.
    fn update(&mut self, root: &Path, passed: u64) -> Result<bool, NumberError> {
        let in_sight = list(root)?.into_iter().filter(|name| read::is_readable(name));
        let mut found: Vec<_> = in_sight.filter_map(|name| Some((witness(&name)?, name))).collect();
        // About in the order in which they were written: of each partition for certain.
        found.sort_by(|(one, a), (other, b)| (one.key, one.start, a).cmp(&(other.key, other.start, b)));
        let names: BTreeSet<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
        let before = self.files.len();
        self.files.retain(|file| file.end() > passed || names.contains(file.name.as_str()));
        let mut is_changed = self.files.len() != before;
        let gone = self.files.iter().filter(|file| !names.contains(file.name.as_str())).count();
        if gone > 0 {
            warn!(root = %root.display(), files = gone, "files that were not read are gone; their rows are passed over");
        }
        let known: BTreeSet<String> = self.files.iter().map(|file| file.name.clone()).collect();
        for (_, name) in found.into_iter().filter(|(_, name)| !known.contains(name)) {
            let path = root.join(&name);
            let rows = read::count(&path).map_err(|source| NumberError::Count { path, source })?;
            let file = NumberedFile { name, start: self.end, rows };
            self.end = file.end();
            self.files.push(file);
            is_changed = true;
        }
        Ok(is_changed)
    }
}

fn offset(number: u64) -> Offset {
    i64::try_from(number).ok().and_then(Offset::new).unwrap_or(Offset::MAX)
}

fn index_path(dir: &Path) -> PathBuf {
    dir.join("files")
}

fn committed_path(dir: &Path) -> PathBuf {
    dir.join("committed")
}

/// Ends with the process, however that ends.
fn lock(root: &Path, dir: &Path) -> Result<File, NumberError> {
    let path = dir.join("lock");
    let locked = File::create(&path).map_err(TryLockError::Error).and_then(|file| {
        file.try_lock()?;
        Ok(file)
    });
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => NumberError::Busy { root: root.to_owned() },
        TryLockError::Error(source) => LogError::Io { action: "lock", path, source }.into(),
    })
}

/// What a file holds, if it is there.
fn load<T: DeserializeOwned>(path: &Path, version: fn(&T) -> u32) -> Result<Option<T>, NumberError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LogError::Io { action: "read", path: path.to_owned(), source }.into()),
    };
    let damaged = |problem| NumberError::Damaged { path: path.to_owned(), problem };
    let content: T =
        serde_json::from_slice(&bytes).map_err(|error| damaged(format!("cannot be read: {error}")))?;
    match version(&content) {
        VERSION => Ok(Some(content)),
        other => Err(damaged(format!("was written by another version (format {other}, this is {VERSION})"))),
    }
}

/// Puts a whole file in the place of the one before.
fn replace<T: Serialize>(path: &Path, content: &T) -> Result<(), LogError> {
    let whole = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&whole)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.sync_all()?;
        fs::rename(&whole, path)
    };
    write().map_err(|source| LogError::Io { action: "write", path: path.to_owned(), source })?;
    sync_dir(&parent(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterId, Partition, PositionKey, TopicId};
    use crate::sink::file::log::INTERVALS;
    use crate::sink::file::names::{data_file_name, log_dir};
    use crate::sink::owner::{Claim, Owner};

    struct Place {
        root: tempfile::TempDir,
        key: PositionKey,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let owner = Owner {
                cluster: ClusterId("c".to_owned()),
                group: "g".to_owned(),
                identity: "r/dead_letter/q".to_owned(),
            };
            Log::open(root.path(), &Claim { owner, adopt: None, is_shared: false }, INTERVALS).unwrap();
            let key = PositionKey { topic_id: TopicId(Uuid::from_u128(5)), partition: Partition(0) };
            Self { root, key }
        }

        /// A file of so many lines in sight.
        fn put(&self, start: i64, lines: usize) -> String {
            let name = data_file_name(&self.key, Offset::new(start).unwrap(), None, "jsonl");
            fs::write(self.root.path().join(&name), "{}\n".repeat(lines)).unwrap();
            name
        }

        fn open(&self) -> Numbered {
            Numbered::open(self.root.path()).unwrap().unwrap()
        }
    }

    fn at(numbered: &Numbered, number: i64) -> Option<(String, u64)> {
        let file = numbered.file_at(Offset::new(number).unwrap())?;
        Some((file.name.clone(), file.start))
    }

    #[test]
    fn rows_keep_their_numbers_and_new_files_come_behind() {
        let place = Place::new();
        fs::write(place.root.path().join("notes.jsonl"), "not ours\n").unwrap();
        let (late, early) = (place.put(100, 2), place.put(9, 3));
        let first = place.open();
        let id = first.id();
        assert_eq!(first.end().get(), 5);
        assert_eq!(at(&first, 0), Some((early.clone(), 0)));
        assert_eq!(at(&first, 2), Some((early.clone(), 0)));
        assert_eq!(at(&first, 3), Some((late.clone(), 3)));
        assert_eq!(at(&first, 5), None);
        assert_eq!(first.committed(), None);
        first.commit(Offset::new(4).unwrap(), "ss1").unwrap();
        drop(first);
        let between = place.put(50, 1);
        let second = place.open();
        assert_eq!((second.id(), second.end().get()), (id, 6));
        assert_eq!(at(&second, 5), Some((between, 5)));
        assert_eq!(second.committed(), Some((Offset::new(4).unwrap(), "ss1".to_owned())));
        drop(second);
        // Other numbers, of which nothing was read.
        fs::remove_file(index_path(&numbered_dir(place.root.path()))).unwrap();
        let third = place.open();
        assert_eq!((third.id() == id, third.end().get(), third.committed()), (false, 6, None));
    }

    #[test]
    fn what_is_gone_is_passed_over_and_forgotten_once_it_was_read() {
        let place = Place::new();
        let (one, two, three) = (place.put(1, 2), place.put(2, 2), place.put(3, 2));
        let first = place.open();
        first.commit(Offset::new(3).unwrap(), "").unwrap();
        drop(first);
        for name in [&one, &two] {
            fs::remove_file(place.root.path().join(name)).unwrap();
        }
        let second = place.open();
        // The second was not read to its end.
        assert_eq!(at(&second, 0), Some((two, 2)));
        assert_eq!(at(&second, 4), Some((three, 4)));
        assert_eq!(second.end().get(), 6);
    }

    #[test]
    fn one_process_reads_and_a_directory_without_a_log_has_nothing() {
        let place = Place::new();
        let first = place.open();
        let busy = Numbered::open(place.root.path()).unwrap_err();
        assert!(matches!(busy, NumberError::Busy { .. }), "{busy}");
        drop(first);
        place.open();
        let nothing = tempfile::tempdir().unwrap();
        assert!(Numbered::open(nothing.path()).unwrap().is_none());
        assert!(!log_dir(nothing.path()).try_exists().unwrap());
        fs::write(index_path(&numbered_dir(place.root.path())), "{\"version\": 2}").unwrap();
        let damaged = Numbered::open(place.root.path()).unwrap_err().to_string();
        assert!(damaged.contains("cannot be read"), "{damaged}");
    }
}
