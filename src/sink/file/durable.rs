//! Steps on disk that a crash leaves done or not done: what was reported is durable, what is in sight is whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing::warn;
use uuid::Uuid;

use crate::failpoint;
use crate::model::Conflict;
use crate::sink::owner::Refusal;

use super::entry::DataFile;
use super::log::COMMIT_TRIES_MAX;
use super::names::{staged_path, tmp_dir};

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
}

/// A path as it may be told: `partition_by` puts values of records into the names of directories.
fn shown(path: &Path) -> String {
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
pub fn create<T: serde::Serialize>(root: &Path, path: &Path, content: &T) -> Result<(), LogError> {
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

pub fn write_durably<T: serde::Serialize>(path: &Path, content: &T) -> io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    file.write_all(&serde_json::to_vec(content)?)?;
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
