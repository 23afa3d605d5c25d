//! Steps on disk that a crash leaves done or not done: what was reported is durable, what is in sight is whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing::{debug, warn};
use uuid::Uuid;

use crate::failpoint;
use crate::model::Conflict;
use crate::sink::owner::Refusal;

use super::entry::DataFile;
use super::log::COMMIT_TRIES_MAX;
use super::names::{log_dir, staged_dir, staged_path, tmp_dir};
use super::storage::{Storage, Written};

/// Why the log could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("failed to {action} `{}`", shown(path))]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the commit log was moved on by another writer")]
    Conflict(#[from] Conflict),
    #[error("`{}` {refusal}", path.display())]
    Refused { path: PathBuf, refusal: Box<Refusal> },
    #[error("the commit log entry `{}` {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("the file system of `{}` has no hard links", path.display())]
    NoLinks { path: PathBuf },
    #[error("lost the race for a log entry {COMMIT_TRIES_MAX} times in a row in `{}`", path.display())]
    Crowded { path: PathBuf },
    #[error("the upload of `{}` is gone, and was committed before it was completed", shown(path))]
    Expired { path: PathBuf, staged: PathBuf },
}

/// A directory of a local file system, as a place of files.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn drop_staged<'a>(&self, names: impl IntoIterator<Item = &'a String>) {
        for name in names {
            let path = staged_path(&self.root, name);
            if let Err(error) = fs::remove_file(&path) {
                debug!(path = %path.display(), %error, "an abandoned file stays for recovery");
            }
        }
    }
}

impl Storage for Directory {
    fn root(&self) -> &Path {
        &self.root
    }

    fn prepare(&self) -> Result<(), LogError> {
        let dirs = [log_dir(&self.root), staged_dir(&self.root), tmp_dir(&self.root)];
        dirs.iter().try_for_each(|dir| create_dir_durably(dir))
    }

    fn has_log(&self) -> Result<bool, LogError> {
        let dir = log_dir(&self.root);
        let found = dir.try_exists();
        found.map_err(|source| LogError::Io { action: "read", path: dir, source })
    }

    fn log_names(&self) -> Result<Vec<String>, LogError> {
        list(&log_dir(&self.root))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, LogError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LogError::Io { action: "read", path: path.to_owned(), source }),
        }
    }

    fn create(&self, path: &Path, content: &[u8]) -> Result<(), LogError> {
        create(&self.root, path, content)
    }

    /// An entry whose writer died before its sync is perhaps not durable yet.
    fn settle_log(&self) -> Result<(), LogError> {
        sync_dir(&log_dir(&self.root))
    }

    fn remove_from_log(&self, names: &[String]) -> Result<(), LogError> {
        for name in names {
            remove_if_there(&log_dir(&self.root).join(name))?;
            point("file.entry.removed", &self.root)?;
        }
        Ok(())
    }

    /// Of entries that were never linked, or were linked and not removed in `tmp/`.
    fn sweep(&self, below: u64) -> Result<(), LogError> {
        for name in list(&tmp_dir(&self.root))? {
            let number = name.split_once('.').and_then(|(number, _)| number.parse::<u64>().ok());
            if number.is_some_and(|number| number < below) {
                remove_if_there(&tmp_dir(&self.root).join(&name))?;
                point("file.temporary.removed", &self.root)?;
            }
        }
        Ok(())
    }

    fn begin(&self, staged: &str) -> io::Result<fs::File> {
        fs::File::create_new(staged_path(&self.root, staged))
    }

    fn keep(&self, written: Vec<Written>) -> Result<Vec<DataFile>, LogError> {
        let kept = written.into_iter().map(|Written { path, staged, rows, file }| {
            // After a failed fsync the pages may be gone and the next fsync may lie: the file is
            // abandoned, never synced again.
            let synced = file.sync_all().and_then(|()| {
                failpoint::check("file.data.synced")?;
                file.metadata()
            });
            match synced {
                Ok(metadata) => Ok(DataFile { path, staged, rows, bytes: metadata.len(), upload: None }),
                Err(source) => {
                    let path = staged_path(&self.root, &staged);
                    Err(LogError::Io { action: "finish", path, source })
                }
            }
        });
        kept.collect()
    }

    fn sync_staged(&self) -> Result<(), LogError> {
        sync_dir(&staged_dir(&self.root))
    }

    fn make_room(&self, files: &[DataFile]) -> Result<(), LogError> {
        files.iter().try_for_each(|file| create_dir_durably(&parent(&self.root.join(&file.path))))
    }

    fn show(&self, files: &[DataFile]) -> Result<(), LogError> {
        show(&self.root, files)
    }

    fn staged(&self) -> Result<Vec<String>, LogError> {
        list(&staged_dir(&self.root))
    }

    fn remove_staged(&self, name: &str) -> Result<(), LogError> {
        remove_if_there(&staged_path(&self.root, name))
    }

    fn discard_open(&self, staged: &[String]) {
        self.drop_staged(staged);
    }

    fn discard(&self, files: &[DataFile]) {
        self.drop_staged(files.iter().map(|file| &file.staged));
    }

    /// What was not linked when its reply was lost never is.
    fn discard_offered(&self, files: &[DataFile]) {
        self.discard(files);
    }

    fn remedy(&self, kind: io::ErrorKind) -> Option<&'static str> {
        match kind {
            io::ErrorKind::StorageFull => Some("free space on that disk"),
            io::ErrorKind::PermissionDenied => Some("let this user write there"),
            io::ErrorKind::ReadOnlyFilesystem => Some("mount it writable, or change `path`"),
            _ => None,
        }
    }
}

/// A path as it may be told: `partition_by` puts values of records into the names of directories.
pub fn shown(path: &Path) -> String {
    let parts = path.iter().map(|part| {
        let part = part.to_string_lossy();
        match part.split_once('=') {
            Some((name, _)) => format!("{name}=…"),
            None => part.into_owned(),
        }
    });
    parts.collect::<PathBuf>().display().to_string()
}

/// Brings committed files into sight. Idempotent; several writers may do it at once.
pub fn show(root: &Path, files: &[DataFile]) -> Result<(), LogError> {
    let mut targets = BTreeSet::new();
    let mut done = Vec::new();
    let mut removed = 0;
    for file in files {
        let staged = staged_path(root, &file.staged);
        let path = root.join(&file.path);
        let is_missing = |linked: &io::Result<()>| {
            linked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let is_staged = || staged.try_exists().unwrap_or(true);
        let mut linked = link(&staged, &path);
        if is_missing(&linked) && is_staged() {
            // Somebody removed the directory while it was empty.
            create_dir_durably(&parent(&path))?;
            linked = link(&staged, &path);
        }
        if is_missing(&linked) && !is_staged() {
            removed += usize::from(!path.try_exists().unwrap_or(true));
            continue;
        }
        if let Err(source) = linked {
            return Err(LogError::Io { action: "bring into sight", path, source });
        }
        point("file.data.linked", root)?;
        // A directory on the way may be new too, made by another writer a moment ago.
        for dir in path.ancestors().skip(1) {
            if !targets.insert(dir.to_owned()) || dir == root {
                break;
            }
        }
        done.push(staged);
    }
    if removed > 0 {
        warn!(root = %root.display(), removed, "committed files were removed by others");
    }
    for target in targets {
        sync_dir(&target)?;
    }
    point("file.targets.synced", root)?;
    for staged in done {
        remove_if_there(&staged)?;
        point("file.staged.removed", root)?;
    }
    Ok(())
}

/// `link` never replaces, so a reader's file is never swapped under its feet.
pub fn link(staged: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(staged, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

pub fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or_else(|| Path::new(".")).to_owned()
}

pub fn list(dir: &Path) -> Result<Vec<String>, LogError> {
    let failed = |source| LogError::Io { action: "list", path: dir.to_owned(), source };
    fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Writes `content` to a temporary file and links it to `path`, unless that exists.
pub fn create(root: &Path, path: &Path, content: &[u8]) -> Result<(), LogError> {
    // It is named after what it will be: once the log has passed that, anybody may delete it.
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let tmp = tmp_dir(root).join(format!("{stem}.{}", Uuid::new_v4().simple()));
    let result = write_durably(&tmp, content).and_then(|()| match fs::hard_link(&tmp, path) {
        // Deleted by somebody who has seen the entry: it exists.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.try_exists()? => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => failpoint::check("file.entry.linked"),
    });
    // Writing worked and linking is not permitted: exclusive creation is no substitute (PROTOCOL §5).
    let has_no_links = result.as_ref().is_err_and(|error| {
        let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::Unsupported];
        kinds.contains(&error.kind()) && tmp.try_exists().unwrap_or_default()
    });
    // A temporary file left behind is garbage, not an error.
    let removed = fs::remove_file(&tmp);
    if has_no_links {
        return Err(LogError::NoLinks { path: path.to_owned() });
    }
    result.map_err(|source| LogError::Io { action: "create", path: path.to_owned(), source })?;
    if let Err(error) = removed.or_else(not_there) {
        warn!(path = %tmp.display(), %error, "a temporary file could not be removed");
    }
    point("file.entry.released", root)?;
    sync_dir(&parent(path))?;
    point("file.log.synced", root)
}

/// What is gone already needs no removing.
fn not_there(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    file.write_all(content)?;
    failpoint::check("file.entry.written")?;
    file.sync_all()?;
    failpoint::check("file.entry.synced")
}

pub fn remove_if_there(path: &Path) -> Result<(), LogError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LogError::Io { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Creates `dir` and its parents; every directory that got a new name in it is synced.
pub fn create_dir_durably(dir: &Path) -> Result<(), LogError> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = parent(dir);
    if !above.as_os_str().is_empty() {
        create_dir_durably(&above)?;
    }
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(LogError::Io { action: "create directory", path: dir.to_owned(), source });
        }
    }
    point("file.directory.created", dir)?;
    sync_dir(&above)
}

/// A fail point behind a step at `path`.
pub fn point(name: &'static str, path: &Path) -> Result<(), LogError> {
    let told = failpoint::check(name);
    told.map_err(|source| LogError::Io { action: "finish a step in", path: path.to_owned(), source })
}

pub fn sync_dir(dir: &Path) -> Result<(), LogError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    fs::File::open(dir).and_then(|file| file.sync_all()).map_err(|source| LogError::Io {
        action: "sync directory",
        path: dir.to_owned(),
        source,
    })
}
