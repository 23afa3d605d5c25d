//! A prefix of an object store as a place of files (PROTOCOL §5, `docs/decisions/0021`).
//!
//! There is no rename. A finished file is uploaded in parts, and nobody sees an upload before it is completed: that is what a
//! link is in a directory. The entry of the log names the upload and its parts, so whoever reads the log can complete it.
//! Beside it `_sidestream/staged/` holds a small object for each upload that is not completed: it says where an orphan is,
//! and that a file of the log is still to be brought into sight.
//!
//! A request whose reply was lost may still be carried out, much later. Entries are created only if absent, so a late one
//! either counts or changes nothing; and no upload that an entry may name is aborted before its witness has been passed.

mod client;
mod told;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{
    Error, GetOptions, MultipartId, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{block_in_place, spawn_blocking};
use tracing::{debug, warn};

use super::durable::{LogError, point, shown};
use super::entry::{DataFile, Upload};
use super::names::{log_dir, probe_path, staged_dir, staged_path};
use super::storage::{Storage, Written};

pub use client::home;

/// A part: S3 takes no smaller ones than 5 MiB but for the last, some stores want all of one size.
const PART_BYTES: u64 = 8 << 20;

/// S3 takes 10,000; parts of larger files are larger.
const PARTS_MAX: u64 = 9000;

/// Parts of one sink under way at a time: so many are in memory.
const PARTS_AT_ONCE: usize = 4;

/// Files of one sink that are uploaded or completed at a time: with many directories most of them are small, and each
/// takes some round trips.
const FILES_AT_ONCE: usize = 8;

/// Bytes of open files on the local disk before a commit is due; one file may be larger if `roll` says so.
const SPOOL_BYTES: u64 = 1 << 30;

/// Orphans are removed at the next recovery anyway.
const DISCARD_MAX: Duration = Duration::from_secs(10);

/// An upload that another one is just completing is gone, perhaps a moment before the object is there.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(2)];

/// The object by which is told whether objects are created only if absent.
const PROBE: &str = "sidestream looks here whether objects are created only if absent.\n";

/// What it holds where they are not, followed by the reason.
const PROBE_FAILED: &str = "objects are not created only if absent: ";

/// What is needed of a client.
pub trait Client: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Client for T {}

/// Does a store create an object only if it is absent, when asked to?
#[derive(Debug, Clone, PartialEq, Eq)]
enum Conditional {
    Yes,
    No(String),
}

/// What a staged object says: where an upload is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Staged {
    version: u32,
    /// Below the root.
    path: String,
    upload: String,
}

const STAGED_VERSION: u32 = 1;

pub struct Objects {
    /// As the file names it.
    root: PathBuf,
    /// Of all keys, without slashes around it; empty if there is none.
    prefix: String,
    client: Arc<dyn Client>,
    runtime: Handle,
    /// Where open files are.
    spool: PathBuf,
    conditional: OnceLock<Conditional>,
    parts: Semaphore,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A client may show how it logs in.
        f.debug_struct("Objects").field("root", &self.root).finish_non_exhaustive()
    }
}

type StoreResult<T> = Result<T, Error>;

impl Objects {
    pub fn new(
        root: PathBuf,
        prefix: String,
        client: Arc<dyn Client>,
        runtime: Handle,
        spool: PathBuf,
    ) -> Self {
        let parts = Semaphore::new(PARTS_AT_ONCE);
        Self { root, prefix, client, runtime, spool, conditional: OnceLock::new(), parts }
    }

    /// Sinks wait for their steps, as they do for a disk.
    fn wait<F: Future>(&self, future: F) -> F::Output {
        block_in_place(|| self.runtime.block_on(future))
    }

    /// Waits for requests that are about `path`.
    fn ask<T>(
        &self,
        action: &'static str,
        path: &Path,
        requests: impl Future<Output = StoreResult<T>>,
    ) -> Result<T, LogError> {
        self.wait(requests).map_err(|error| failed(action, path, &error))
    }

    fn key(&self, path: &Path) -> Result<Key, LogError> {
        let below = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
        let key = below.map(|below| match self.prefix.as_str() {
            "" => below.to_owned(),
            prefix => format!("{prefix}/{below}"),
        });
        key.and_then(|key| Key::parse(key).ok()).ok_or_else(|| LogError::Io {
            action: "name the object",
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "it has an empty part, a dot, or the like"),
        })
    }

    async fn get(&self, key: &Key) -> StoreResult<Option<Vec<u8>>> {
        match self.client.get_opts(key, GetOptions::default()).await {
            Ok(found) => Ok(Some(found.bytes().await?.to_vec())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn is_there(&self, key: &Key) -> StoreResult<bool> {
        match self.client.head(key).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn put(&self, key: &Key, content: &[u8], mode: PutMode) -> StoreResult<()> {
        let payload = PutPayload::from(content.to_vec());
        self.client.put_opts(key, payload, PutOptions::from(mode)).await.map(drop)
    }

    async fn delete(&self, key: &Key) -> StoreResult<()> {
        match self.client.delete(key).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, LogError> {
        let key = self.key(dir)?;
        let listed = self.client.list(Some(&key)).map_ok(|object| {
            let name = object.location.filename();
            name.unwrap_or_default().to_owned()
        });
        self.ask("list", dir, listed.try_collect::<Vec<String>>())
    }

    /// Creates one object again and again: from the second time on that must not work.
    async fn probe(&self, key: &Key) -> StoreResult<Conditional> {
        let mut why = "it replaces an object that is to be created only if absent".to_owned();
        for _ in 0..2 {
            match self.put(key, PROBE.as_bytes(), PutMode::Create).await {
                Ok(()) => {}
                Err(Error::AlreadyExists { .. }) => {
                    // A former start may have found otherwise.
                    if self.get(key).await?.is_some_and(|found| found != PROBE.as_bytes()) {
                        self.put(key, PROBE.as_bytes(), PutMode::Overwrite).await?;
                    }
                    return Ok(Conditional::Yes);
                }
                Err(error) if told::is_unsupported(&error) => {
                    why = told::text(&error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.put(key, format!("{PROBE_FAILED}{why}").as_bytes(), PutMode::Overwrite).await?;
        Ok(Conditional::No(why))
    }

    async fn create_once(&self, key: &Key, content: &[u8]) -> StoreResult<()> {
        if let Some(Conditional::No(_)) = self.conditional.get() {
            // The best that is left: another one may do the same between these two.
            return match self.get(key).await? {
                Some(_) => Ok(()),
                None => self.put(key, content, PutMode::Overwrite).await,
            };
        }
        match self.put(key, content, PutMode::Create).await {
            Ok(()) | Err(Error::AlreadyExists { .. }) => Ok(()),
            // Was it only the reply that was lost?
            Err(error) => match self.get(key).await {
                Ok(Some(found)) if found == content => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Uploads a finished file, and leaves the upload open.
    async fn upload(&self, written: Written) -> Result<DataFile, LogError> {
        let Written { path, staged, rows, file } = written;
        let target = self.root.join(&path);
        let spooled = |source| LogError::Io { action: "finish", path: target.clone(), source };
        let bytes = file.metadata().map_err(spooled)?.len();
        let key = self.key(&target)?;
        let failed = |error: Error| failed("upload", &target, &error);
        let id = self.client.create_multipart(&key).await.map_err(failed)?;
        let note = Staged { version: STAGED_VERSION, path: path.clone(), upload: id.clone() };
        let note = serde_json::to_vec(&note).map_err(|error| spooled(error.into()))?;
        let place = self.key(&staged_path(&self.root, &staged))?;
        if let Err(error) = self.put(&place, &note, PutMode::Overwrite).await {
            // Nobody would find it. If this fails too, it is one upload without parts.
            drop(self.client.abort_multipart(&key, &id).await);
            return Err(failed(error));
        }
        let file = Arc::new(file);
        let size = PART_BYTES.max(bytes.div_ceil(PARTS_MAX));
        let parts: Vec<_> = (0..bytes.div_ceil(size).max(1))
            .map(|number| {
                let range = number * size..bytes.min((number + 1) * size);
                self.upload_part(&key, &id, number, file.clone(), range)
            })
            .collect();
        // More than there are permits would only wait for them.
        let parts = stream::iter(parts).buffered(PARTS_AT_ONCE).try_collect::<Vec<String>>().await;
        let parts = parts.map_err(|failure| match failure {
            PartFailure::Disk(source) => spooled(source),
            PartFailure::Store(error) => failed(error),
        })?;
        point("file.data.synced", &self.root)?;
        Ok(DataFile { path, staged, rows, bytes, upload: Some(Upload { id, parts }) })
    }

    async fn upload_part(
        &self,
        key: &Key,
        id: &MultipartId,
        number: u64,
        file: Arc<File>,
        range: Range<u64>,
    ) -> Result<String, PartFailure> {
        // Closed only when this is dropped.
        let _permit = self.parts.acquire().await.ok();
        let read = spawn_blocking(move || {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
            file.read_exact_at(&mut bytes, range.start).map(|()| bytes)
        });
        let bytes = read.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        let payload = PutPayload::from(bytes.map_err(PartFailure::Disk)?);
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let part = self.client.put_part(key, id, number, payload).await;
        part.map(|part| part.content_id).map_err(PartFailure::Store)
    }

    /// Brings a file into sight that an entry lists.
    async fn complete(&self, file: &DataFile) -> Result<(), LogError> {
        // Those before a checkpoint are in sight.
        let Some(upload) = &file.upload else {
            return Ok(());
        };
        let path = self.root.join(&file.path);
        let (key, place) = (self.key(&path)?, self.key(&staged_path(&self.root, &file.staged))?);
        let failed = |error: Error| failed("bring into sight", &path, &error);
        let parts = upload.parts.iter().map(|id| PartId { content_id: id.clone() }).collect();
        let completed = self.client.complete_multipart(&key, &upload.id, parts).await;
        match completed {
            Ok(_) => {}
            // The upload is gone.
            Err(Error::NotFound { .. }) => {
                if !self.is_completed(&key, &place).await.map_err(failed)? {
                    let staged = staged_path(&self.root, &file.staged);
                    return Err(LogError::Expired { path, staged });
                }
            }
            // Was it only the reply that was lost?
            Err(error) => {
                if !self.is_there(&key).await.map_err(failed)? {
                    return Err(failed(error));
                }
            }
        }
        point("file.data.linked", &self.root)?;
        self.delete(&place).await.map_err(failed)?;
        point("file.staged.removed", &self.root)
    }

    /// Has somebody else completed an upload that is gone, or we, with a reply that was lost? What is not staged any more
    /// was completed.
    async fn is_completed(&self, key: &Key, place: &Key) -> StoreResult<bool> {
        for pause in LOOKS {
            tokio::time::sleep(pause).await;
            if self.is_there(key).await? || !self.is_there(place).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Aborts an upload that no entry can list, and what says that it is there.
    async fn abort(&self, staged: &str) -> Result<(), LogError> {
        let path = staged_path(&self.root, staged);
        let place = self.key(&path)?;
        let failed = |error: Error| failed("remove", &path, &error);
        let Some(note) = self.get(&place).await.map_err(failed)? else {
            return Ok(());
        };
        // One that cannot be read leads nowhere.
        if let Some(Staged { path, upload, .. }) = read_note(&note) {
            match self.client.abort_multipart(&self.key(&self.root.join(path))?, &upload).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        self.delete(&place).await.map_err(failed)
    }
}

/// Why a part is not in the store.
enum PartFailure {
    Disk(io::Error),
    Store(Error),
}

/// What a staged object says, if it is one of ours and names a place below the root.
fn read_note(bytes: &[u8]) -> Option<Staged> {
    let note: Staged = serde_json::from_slice(bytes).ok()?;
    let is_plain = |part: &str| !["", ".", ".."].contains(&part);
    (note.version == STAGED_VERSION && note.path.split('/').all(is_plain)).then_some(note)
}

fn failed(action: &'static str, path: &Path, error: &Error) -> LogError {
    LogError::Io { action, path: path.to_owned(), source: told::as_io(error) }
}

impl Storage for Objects {
    fn root(&self) -> &Path {
        &self.root
    }

    fn prepare(&self) -> Result<(), LogError> {
        if self.conditional.get().is_some() {
            return Ok(());
        }
        let path = probe_path(&self.root);
        let key = self.key(&path)?;
        let found = self.ask("create", &path, self.probe(&key))?;
        if let Conditional::No(why) = &found {
            warn!(
                root = %self.root.display(),
                why,
                "this store does not keep two writers apart: rows are written at least once while more than one \
                 process writes there, exactly once only while one does"
            );
        }
        // Another one that was as fast has found the same.
        drop(self.conditional.set(found));
        Ok(())
    }

    fn has_log(&self) -> Result<bool, LogError> {
        Ok(true)
    }

    fn log_names(&self) -> Result<Vec<String>, LogError> {
        self.list(&log_dir(&self.root))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, LogError> {
        let key = self.key(path)?;
        self.ask("read", path, self.get(&key))
    }

    fn create(&self, path: &Path, content: &[u8]) -> Result<(), LogError> {
        let key = self.key(path)?;
        self.ask("create", path, self.create_once(&key, content))?;
        point("file.entry.linked", &self.root)
    }

    fn settle_log(&self) -> Result<(), LogError> {
        Ok(())
    }

    fn remove_from_log(&self, names: &[String]) -> Result<(), LogError> {
        let dir = log_dir(&self.root);
        let keys = names.iter().map(|name| self.key(&dir.join(name))).collect::<Result<Vec<Key>, _>>()?;
        let removed = self.client.delete_stream(stream::iter(keys.into_iter().map(Ok)).boxed());
        let gone = removed.map(|removed| match removed {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        });
        self.ask("remove from", &dir, gone.try_collect::<Vec<()>>())?;
        point("file.entry.removed", &self.root)
    }

    fn sweep(&self, _: u64) -> Result<(), LogError> {
        Ok(())
    }

    /// It has no name once it is open: after a crash nothing of it is left.
    fn begin(&self, staged: &str) -> io::Result<File> {
        let path = self.spool.join(format!("sidestream-{staged}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }

    fn open_bytes_max(&self) -> u64 {
        SPOOL_BYTES
    }

    fn keep(&self, written: Vec<Written>) -> Result<Vec<DataFile>, LogError> {
        let uploads: Vec<_> = written.into_iter().map(|file| self.upload(file)).collect();
        self.wait(stream::iter(uploads).buffered(FILES_AT_ONCE).try_collect())
    }

    fn sync_staged(&self) -> Result<(), LogError> {
        Ok(())
    }

    fn make_room(&self, _: &[DataFile]) -> Result<(), LogError> {
        Ok(())
    }

    fn show(&self, files: &[DataFile]) -> Result<(), LogError> {
        if files.is_empty() {
            return Ok(());
        }
        let staged: BTreeSet<String> = self.staged()?.into_iter().collect();
        let hidden = files.iter().filter(|file| staged.contains(&file.staged));
        let completed: Vec<_> = hidden.map(|file| self.complete(file)).collect();
        let all = stream::iter(completed).buffer_unordered(FILES_AT_ONCE).try_collect::<Vec<()>>();
        self.wait(all)?;
        point("file.targets.synced", &self.root)
    }

    fn staged(&self) -> Result<Vec<String>, LogError> {
        self.list(&staged_dir(&self.root))
    }

    fn remove_staged(&self, name: &str) -> Result<(), LogError> {
        self.wait(self.abort(name))
    }

    fn discard_open(&self, _: &[String]) {
        // Open files have no name, and of uploads that failed nobody knows how far they are.
    }

    fn discard(&self, files: &[DataFile]) {
        if files.is_empty() {
            return;
        }
        let aborted: Vec<_> = files.iter().map(|file| self.abort(&file.staged)).collect();
        let all = stream::iter(aborted).buffer_unordered(FILES_AT_ONCE).try_collect::<Vec<()>>();
        let done = self.wait(async { tokio::time::timeout(DISCARD_MAX, all).await });
        if !matches!(done, Ok(Ok(_))) {
            debug!(root = %shown(&self.root), "abandoned uploads stay for recovery");
        }
    }

    fn discard_offered(&self, _: &[DataFile]) {
        // The entry may still come. Once the witness is passed, it cannot.
    }

    fn weakness(&self) -> Result<Option<String>, LogError> {
        let found = self.read(&probe_path(&self.root))?.unwrap_or_default();
        let told = String::from_utf8_lossy(&found);
        Ok(told.starts_with(PROBE_FAILED).then(|| {
            format!("at least once while more than one process writes there, as the store said at the last start: {told}")
        }))
    }

    fn remedy(&self, kind: io::ErrorKind) -> Option<&'static str> {
        match kind {
            io::ErrorKind::StorageFull => Some("free space where `spool_dir` is"),
            io::ErrorKind::PermissionDenied => {
                Some("look at the login; it needs to read, list, write and delete below that prefix")
            }
            io::ErrorKind::NotFound => Some("is there such a bucket, at this endpoint and in this region?"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
