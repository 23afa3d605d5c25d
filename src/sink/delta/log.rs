//! The log of a Delta table on disk: entry n is created only if it is absent, and is durable when that is told.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tracing::warn;
use uuid::Uuid;

use crate::failpoint;
use crate::sink::file::durable;

use super::error::TableError;

/// The directory of the log, below that of the table.
const DIRECTORY: &str = "_delta_log";

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    Ours,
    /// Another writer has that number.
    Exists,
}

pub fn directory(root: &Path) -> PathBuf {
    root.join(DIRECTORY)
}

fn entry_path(root: &Path, version: u64) -> PathBuf {
    directory(root).join(format!("{version:020}.json"))
}

/// Is there a table?
///
/// # Errors
/// [`TableError`]
pub fn is_table(root: &Path) -> Result<bool, TableError> {
    let directory = directory(root);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(|source| TableError::io("list", &directory, source))?,
    };
    for entry in entries {
        let entry = entry.map_err(|source| TableError::io("list", &directory, source))?;
        if is_of_log(&entry.file_name().to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `00000000000000000007.json`, or a checkpoint of that number.
fn is_of_log(name: &str) -> bool {
    let Some((number, rest)) = name.split_at_checked(20) else {
        return false;
    };
    number.bytes().all(|byte| byte.is_ascii_digit())
        && (rest == ".json" || (rest.starts_with(".checkpoint") && rest.ends_with(".parquet")))
}

/// Creates entry `version` of these lines unless it exists. On a file system without hard links that is an error: exclusive
/// creation would show an entry before it is whole.
///
/// # Errors
/// After an error nobody knows whether the entry counts.
pub fn create(root: &Path, version: u64, lines: &[Value]) -> Result<Created, TableError> {
    let directory = directory(root);
    durable::create_dir_durably(&directory)?;
    // Readers and clean-ups know this name from other writers: it is not part of the log.
    let temporary = directory.join(format!("_commit_{}.json.tmp", Uuid::new_v4()));
    let path = entry_path(root, version);
    let bytes = bytes(lines)?;
    let linked = write_durably(&temporary, &bytes).and_then(|()| fs::hard_link(&temporary, &path));
    let created = match linked {
        Ok(()) => failpoint::check("delta.entry.linked").map(|()| Created::Ours),
        // A file system in the network may have done it, and lost the reply.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::read(&path).map(|there| if there == bytes { Created::Ours } else { Created::Exists })
        }
        Err(error) => Err(error),
    };
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %temporary.display(), %error, "a temporary file could not be removed");
    }
    let created = created.map_err(|source| match source.kind() {
        io::ErrorKind::Unsupported => TableError::stop(
            format!("the file system of `{}` has no hard links", directory.display()),
            "choose a `path` on a local file system: commits need `link`",
        ),
        _ => TableError::io("create", &path, source),
    })?;
    if created == Created::Ours {
        durable::sync_dir(&directory)?;
        let told = failpoint::check("delta.entry.durable");
        told.map_err(|source| TableError::io("finish a step in", &directory, source))?;
    }
    Ok(created)
}

fn bytes(lines: &[Value]) -> Result<Vec<u8>, TableError> {
    let mut bytes = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut bytes, line).map_err(|error| TableError::Again(error.to_string()))?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    failpoint::check("delta.entry.written")
}

/// The lines of entry `version`, if it is there.
///
/// # Errors
/// [`TableError::Stop`] if it is no entry.
pub fn read(root: &Path, version: u64) -> Result<Option<Vec<Value>>, TableError> {
    let path = entry_path(root, version);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| TableError::io("read", &path, source))?,
    };
    let lines = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
    let lines: Result<Vec<Value>, serde_json::Error> = lines.collect();
    // The message would quote the line.
    lines.map(Some).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        TableError::stop(
            format!("`{}` is no entry of a log: {place}", path.display()),
            "restore the table as a whole, or give the sink another `path`",
        )
    })
}

/// The version of the newest checkpoint, as far as the log says.
pub fn last_checkpoint(root: &Path) -> Option<u64> {
    #[derive(Deserialize)]
    struct Hint {
        version: u64,
    }
    let bytes = fs::read(directory(root).join("_last_checkpoint")).ok()?;
    serde_json::from_slice::<Hint>(&bytes).ok().map(|hint| hint.version)
}

/// Makes the files of a checkpoint durable that was written.
///
/// # Errors
/// If one of them cannot be synced.
pub fn sync_checkpoint(root: &Path, version: u64) -> io::Result<()> {
    let directory = directory(root);
    let prefix = format!("{version:020}.checkpoint");
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) || name == "_last_checkpoint" {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    fs::File::open(&directory)?.sync_all()
}
