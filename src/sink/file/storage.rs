//! What the commit log and the sink need of the place where files are: a directory, or a prefix of an object store.
//!
//! Everything else, from entries and checkpoints to owners and names, is the same in both. Paths are those below the place's
//! root, as `names` makes them.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::durable::{Directory, LogError};
use super::entry::DataFile;

/// A finished file whose bytes are not durable yet.
#[derive(Debug)]
pub struct Written {
    /// Below the root, with `/`.
    pub path: String,
    pub staged: String,
    pub rows: u64,
    pub file: File,
}

/// Where files are. Steps that a crash leaves done or not done: what was reported is durable, what is in sight is whole.
pub trait Storage: fmt::Debug + Send + Sync {
    /// As the file names it.
    fn root(&self) -> &Path;

    /// Makes what a log needs be there.
    fn prepare(&self) -> Result<(), LogError>;

    /// May there be a log?
    fn has_log(&self) -> Result<bool, LogError>;

    /// The names of entries and checkpoints.
    fn log_names(&self) -> Result<Vec<String>, LogError>;

    /// An entry or a checkpoint, if it is there.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, LogError>;

    /// Creates an entry or a checkpoint unless it is there; which of the two happened is read afterwards.
    fn create(&self, path: &Path, content: &[u8]) -> Result<(), LogError>;

    /// Makes the log durable as it is found.
    fn settle_log(&self) -> Result<(), LogError>;

    /// Removes entries and checkpoints by their names.
    fn remove_from_log(&self, names: &[String]) -> Result<(), LogError>;

    /// Removes what a crash has left of entries and checkpoints below `number`.
    fn sweep(&self, number: u64) -> Result<(), LogError>;

    /// A file to write and to read, which no reader finds.
    fn begin(&self, staged: &str) -> io::Result<File>;

    /// Bytes that open files may have together before a commit is due.
    fn open_bytes_max(&self) -> u64 {
        u64::MAX
    }

    /// Makes finished files durable, out of sight. After an error none of them counts.
    fn keep(&self, written: Vec<Written>) -> Result<Vec<DataFile>, LogError>;

    /// Makes the names of what was kept durable.
    fn sync_staged(&self) -> Result<(), LogError>;

    /// Makes the directories that files will be seen in.
    fn make_room(&self, files: &[DataFile]) -> Result<(), LogError>;

    /// Brings committed files into sight. Idempotent; several writers may do it at once.
    fn show(&self, files: &[DataFile]) -> Result<(), LogError>;

    /// The names of all that is staged.
    fn staged(&self) -> Result<Vec<String>, LogError>;

    /// Removes what no entry can ever list.
    fn remove_staged(&self, name: &str) -> Result<(), LogError>;

    /// Drops files that were begun and not kept. What stays behind is an orphan that recovery removes.
    fn discard_open(&self, staged: &[String]);

    /// Drops files that were kept and never offered to the log. As above.
    fn discard(&self, files: &[DataFile]);

    /// Drops files that were offered to the log, which does not list them now. As above.
    fn discard_offered(&self, files: &[DataFile]);

    /// Why this place does not keep all that a commit log asks for, as the last start has found it.
    fn weakness(&self) -> Result<Option<String>, LogError> {
        Ok(None)
    }

    /// What helps against an error of this kind.
    fn remedy(&self, kind: io::ErrorKind) -> Option<&'static str>;
}

/// A place of files, shared by a sink and its log.
#[derive(Debug, Clone)]
pub struct Home(Arc<dyn Storage>);

impl Home {
    pub fn new(storage: impl Storage + 'static) -> Self {
        Self(Arc::new(storage))
    }
}

impl Deref for Home {
    type Target = dyn Storage;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl From<PathBuf> for Home {
    fn from(root: PathBuf) -> Self {
        Self::new(Directory::new(root))
    }
}

impl From<&Path> for Home {
    fn from(root: &Path) -> Self {
        root.to_owned().into()
    }
}

impl From<&PathBuf> for Home {
    fn from(root: &PathBuf) -> Self {
        root.clone().into()
    }
}

impl From<&Home> for Home {
    fn from(home: &Home) -> Self {
        home.clone()
    }
}
