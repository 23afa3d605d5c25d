//! Files in a directory, exactly once: data and positions become one entry of the directory's commit log.
//!
//! Rows go to a staged file that no reader's glob matches. A flush makes it durable, appends the entry
//! that names it together with the moves it holds, and links it into sight. What happens when the process
//! dies in between is told step by step in PROTOCOL §5 and tested in `log`.

mod entry;
mod log;
mod parquet;
mod text;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use tokio::task::block_in_place;

use crate::config::plan::Roll;
use crate::model::{Batch, Move, Position, PositionKey, Positions, Reason, TopicName};

pub use entry::Owner;
pub use parquet::ParquetFormat;
pub use text::{CsvFormat, JsonLinesFormat};

use super::{Settled, Sink, SinkError, Store};
use entry::DataFile;
use log::{Log, LogError};

/// A file format: how rows become bytes of a file.
pub trait Format: Send + std::fmt::Debug {
    /// File name extension, without the dot.
    fn extension(&self) -> &'static str;
    /// # Errors
    /// If the schema has a type the format cannot hold, or the file cannot be written.
    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>>;
}

/// An open file of some format.
pub trait RowWriter: Send {
    fn write(&mut self, rows: &RecordBatch) -> io::Result<()>;
    /// Bytes written and buffered: an estimate of the file's size if it were finished now.
    fn size(&self) -> u64;
    /// Writes what is left and gives the file back, not synced.
    fn finish(self: Box<Self>) -> io::Result<File>;
}

/// What a file sink is made of.
#[derive(Debug)]
pub struct FileSinkOptions {
    pub root: PathBuf,
    pub owner: Owner,
    pub schema: SchemaRef,
    pub roll: Roll,
}

/// A sink that writes files of one format below one directory.
pub struct FileSink {
    options: FileSinkOptions,
    format: Box<dyn Format>,
    log: Option<Log>,
    open: Option<OpenFile>,
    pending: Vec<Move>,
    /// When the first of `pending` was accepted.
    since: Option<Instant>,
    settled: Settled,
    /// Staged files of a commit whose outcome is unknown.
    unsettled: Vec<String>,
}

struct OpenFile {
    name: String,
    staged: String,
    rows: u64,
    writer: Box<dyn RowWriter>,
}

impl FileSink {
    pub fn new(options: FileSinkOptions, format: Box<dyn Format>) -> Self {
        Self {
            options,
            format,
            log: None,
            open: None,
            pending: Vec::new(),
            since: None,
            settled: Settled::default(),
            unsettled: Vec::new(),
        }
    }

    fn read_positions(&mut self) -> Result<Positions, SinkError> {
        let opened = match self.log.take() {
            Some(log) => Ok(log),
            None => Log::open(&self.options.root, &self.options.owner),
        };
        let ready = opened.and_then(|mut log| {
            log.refresh()?;
            log.recover()?;
            Ok(log)
        });
        let log = ready.map_err(|error| self.explain(error))?;
        for staged in std::mem::take(&mut self.unsettled) {
            if !log.lists(&staged) {
                self.remove_staged(&staged);
            }
        }
        Ok(self.log.insert(log).positions().clone())
    }

    fn accept(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if batch.rows.num_rows() > 0 {
            let written = self.write_rows(batch);
            if let Err(source) = written {
                return Err(self.explain(LogError::Io {
                    action: "write to",
                    path: self.options.root.clone(),
                    source,
                }));
            }
        }
        self.since.get_or_insert_with(Instant::now);
        for step in &batch.moves {
            merge(&mut self.pending, step);
        }
        Ok(())
    }

    fn write_rows(&mut self, batch: &Batch) -> io::Result<()> {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let witness = batch
                    .moves
                    .first()
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "rows without a move"))?;
                let start = witness.start.unwrap_or_default();
                let extension = self.format.extension();
                let name = log::data_file_name(&witness.key, start, extension);
                let staged = log::staged_name(&name);
                let file = File::create_new(log::staged_path(&self.options.root, &staged))?;
                self.open.insert(OpenFile {
                    name,
                    staged,
                    rows: 0,
                    writer: self.format.begin(file, &self.options.schema)?,
                })
            }
        };
        open.writer.write(&batch.rows)?;
        open.rows += batch.rows.num_rows() as u64;
        Ok(())
    }

    fn commit(&mut self) -> Result<Positions, SinkError> {
        let files = match self.open.take() {
            Some(open) => vec![self.close(open).map_err(|error| self.explain(error))?],
            None => Vec::new(),
        };
        let moves = std::mem::take(&mut self.pending);
        self.since = None;
        // Until the log is known to hold the entry, it is read anew: the outcome of an error is unknown.
        let Some(mut log) = self.log.take() else {
            return self.read_positions();
        };
        let (rows, bytes) =
            files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.bytes));
        let count = files.len() as u64;
        if !moves.is_empty() {
            self.unsettled = files.iter().map(|file| file.staged.clone()).collect();
            log.commit(moves, files).map_err(|error| self.explain(error))?;
            self.unsettled.clear();
        }
        self.settled.rows += rows;
        self.settled.bytes += bytes;
        self.settled.files += count;
        Ok(self.log.insert(log).positions().clone())
    }

    /// Finishes and syncs a staged file. One that cannot be finished is removed: it holds space that
    /// may be just what is missing.
    fn close(&self, open: OpenFile) -> Result<DataFile, LogError> {
        let OpenFile { name, staged, rows, writer } = open;
        let path = log::staged_path(&self.options.root, &staged);
        let finished = writer.finish().and_then(|file| {
            // After a failed fsync the pages may be gone and the next fsync may lie: the file is
            // abandoned, never synced again.
            file.sync_all()?;
            file.metadata()
        });
        match finished {
            Ok(metadata) => {
                log::sync_dir(path.parent().unwrap_or(&path))?;
                Ok(DataFile { path: name, staged, rows, bytes: metadata.len() })
            }
            Err(source) => {
                self.remove_staged(&staged);
                Err(LogError::Io { action: "finish", path, source })
            }
        }
    }

    /// Removes a file that no entry names. Left behind, it is an orphan that recovery removes.
    fn remove_staged(&self, staged: &str) {
        let path = log::staged_path(&self.options.root, staged);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(path = %path.display(), %error, "an abandoned file stays for recovery");
        }
    }

    fn drop_pending(&mut self) {
        self.pending.clear();
        self.since = None;
        if let Some(OpenFile { staged, writer, .. }) = self.open.take() {
            drop(writer);
            // It was never offered to the log, so nobody can list it.
            self.remove_staged(&staged);
        }
        // What the log holds is read anew before the next use.
        self.log = None;
    }

    fn explain(&self, error: LogError) -> SinkError {
        let identity = &self.options.owner.identity;
        let action = format!("write sink `{identity}` below `{}`", self.options.root.display());
        match error {
            LogError::Conflict(conflict) => SinkError::Conflict(conflict),
            LogError::Foreign { .. } => SinkError::stop(
                action,
                "give each sink its own `path`; a directory belongs to the sink that wrote to it first",
                error,
            ),
            LogError::Damaged { .. } => SinkError::stop(
                action,
                "restore the directory as a whole, `_sidestream` included, or start a new `path`",
                error,
            ),
            LogError::Io { ref source, .. } => {
                let hint = match source.kind() {
                    io::ErrorKind::StorageFull => Some("free space on that disk"),
                    io::ErrorKind::PermissionDenied => Some("let this user write there"),
                    io::ErrorKind::ReadOnlyFilesystem => Some("mount it writable, or change `path`"),
                    _ => None,
                };
                SinkError::Transient { action, hint: hint.map(Into::into), source: error.into() }
            }
            LogError::NoLinks { .. } => {
                SinkError::stop(action, "choose a `path` on a local file system: commits need `link`", error)
            }
            LogError::Crowded { .. } => SinkError::Transient { action, hint: None, source: error.into() },
        }
    }
}

/// Adds `step` to moves that will be committed together: a range that goes on where the last one of its
/// partition ended becomes part of it.
fn merge(moves: &mut Vec<Move>, step: &Move) {
    let joins = |last: &Move| {
        let plain = |reason: &Reason| matches!(reason, Reason::Data | Reason::Idle);
        plain(&last.reason) && plain(&step.reason) && Some(last.end.next) == step.start
    };
    match moves.iter_mut().rev().find(|last| last.key == step.key) {
        Some(last) if joins(last) => {
            last.end.next = step.end.next;
            last.end.epoch = step.end.epoch.or(last.end.epoch);
            last.records += step.records;
            if step.reason == Reason::Data {
                last.reason = Reason::Data;
            }
        }
        _ => moves.push(step.clone()),
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        block_in_place(|| self.read_positions())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        block_in_place(|| self.accept(batch))
    }

    fn flush_due(&self) -> Option<Instant> {
        let since = self.since?;
        let roll = &self.options.roll;
        let is_full = self.open.as_ref().is_some_and(|open| {
            open.writer.size() >= roll.bytes_max
                || roll.rows_max.is_some_and(|rows_max| open.rows >= rows_max)
        });
        Some(if is_full { since } else { since + roll.age_max })
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        block_in_place(|| self.commit())
    }

    async fn abandon(&mut self) {
        block_in_place(|| self.drop_pending());
    }

    fn settled(&self) -> Settled {
        self.settled
    }

    fn store(&self) -> Store {
        Store::Own
    }

    fn restore(&mut self, _: PositionKey, _: &TopicName, _: Position) {
        // The commit log is the only truth about this sink's positions.
    }

    fn log(&self) -> Option<(String, u64)> {
        let log = self.log.as_ref()?;
        Some((log.id().simple().to_string(), log.last()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Offset, Partition, TopicId};

    #[test]
    fn moves_of_one_partition_join_into_one() {
        let step = |start, end, reason| Move {
            key: PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(5)), partition: Partition(0) },
            topic: TopicName::new("t"),
            start: Offset::new(start),
            end: Position { next: Offset::new(end).unwrap(), epoch: None },
            reason,
            records: 2,
        };
        let mut moves = Vec::new();
        merge(&mut moves, &step(0, 4, Reason::Idle));
        merge(&mut moves, &step(4, 9, Reason::Data));
        merge(&mut moves, &step(9, 12, Reason::Idle));
        assert_eq!(moves.len(), 1);
        assert_eq!((moves[0].end.next.get(), moves[0].records), (12, 6));
        assert_eq!(moves[0].reason, Reason::Data);
        merge(&mut moves, &step(12, 20, Reason::Skipped));
        assert_eq!(moves.len(), 2);
    }
}
