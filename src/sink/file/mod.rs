//! Files in a directory, or below a prefix of an object store, exactly once: data and positions become one entry of the
//! place's commit log.
//!
//! Rows go to staged files that no reader's glob matches, one for each directory of `partition_by`. A flush
//! makes them durable, appends the entry that names all of them together with the moves they hold, and brings
//! them into sight: by a link, or in an object store by completing an upload. What happens when the process dies
//! in between is told step by step in PROTOCOL §5 and tested in `log` and `objects`.

mod accounts;
mod avro;
pub(super) mod durable;
mod entry;
mod log;
mod names;
mod numbered;
mod objects;
mod open;
mod parquet;
mod partition;
mod read;
mod storage;
mod survey;
mod text;

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use tokio::task::block_in_place;

use crate::config::plan::Roll;
use crate::encode::Misfit;
use crate::model::{Batch, Move, Position, PositionKey, Positions, Reason, TopicName, ranges};

pub use avro::{AvroBlocks, AvroFormat};
#[doc(hidden)]
pub use log::fold;
pub use numbered::{NumberError, Numbered, NumberedFile};
pub use objects::home;
pub use parquet::{ParquetFormat, check_columns, parquet_type};
pub use partition::Partitioning;
pub use read::{Contents, Lines};
pub use storage::Home;
pub use survey::{reset, survey};
pub use text::{CsvFormat, JsonLinesFormat};

use super::owner::Claim;
use super::{Settled, Sink, SinkError, Store};
use durable::LogError;
use entry::DataFile;
use log::{INTERVALS, Intervals, Log};
use open::OpenFiles;
use partition::PartitionError;

/// A file format: how rows become bytes of a file.
pub trait Format: Send + std::fmt::Debug {
    /// File name extension, without the dot.
    fn extension(&self) -> &'static str;
    /// Bytes that an open file holds in memory and that nothing [relieves](RowWriter::relieve), roughly.
    fn open_bytes(&self) -> usize;
    /// # Errors
    /// If the schema has a type the format cannot hold, or the file cannot be written.
    fn begin(&self, file: File, schema: &SchemaRef) -> io::Result<Box<dyn RowWriter>>;
}

/// An open file of some format.
pub trait RowWriter: Send {
    /// # Errors
    /// An error that is a [`Misfit`] is about a row; the file is then abandoned, and the row refused.
    fn write(&mut self, rows: &RecordBatch) -> io::Result<()>;
    /// Bytes written and buffered: an estimate of the file's size if it were finished now.
    fn size(&self) -> u64;
    /// Bytes held in memory that [`relieve`](RowWriter::relieve) would write.
    fn held(&self) -> usize {
        0
    }
    /// Writes what is held.
    fn relieve(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Writes what is left and gives the file back, not synced.
    fn finish(self: Box<Self>) -> io::Result<File>;
}

/// What a file sink is made of.
#[derive(Debug)]
pub struct FileSinkOptions {
    /// Where files and log are.
    pub home: Home,
    /// Who writes there.
    pub claim: Claim,
    /// Of the rows it is given.
    pub schema: SchemaRef,
    pub roll: Roll,
    /// `None`: all rows go to the root.
    pub partitioning: Option<Partitioning>,
}

/// A sink that writes files of one format below one directory, or one prefix of an object store.
pub struct FileSink {
    home: Home,
    claim: Claim,
    age_max: Duration,
    partitioning: Option<Partitioning>,
    files: OpenFiles,
    log: Option<Log>,
    intervals: Intervals,
    pending: Vec<Move>,
    /// When the first of `pending` was accepted.
    since: Option<Instant>,
    /// The last entry of the log then.
    base: Option<u64>,
    settled: Settled,
    /// Staged files of a commit whose outcome is unknown.
    unsettled: Vec<DataFile>,
}

impl FileSink {
    pub fn new(options: FileSinkOptions, format: Box<dyn Format>) -> Self {
        let FileSinkOptions { home, claim, schema, roll, partitioning } = options;
        let schema = match &partitioning {
            Some(partitioning) => partitioning.schema().clone(),
            None => schema,
        };
        Self {
            files: OpenFiles::new(&home, format, schema, roll),
            home,
            claim,
            age_max: roll.age_max,
            partitioning,
            log: None,
            intervals: INTERVALS,
            pending: Vec::new(),
            since: None,
            base: None,
            settled: Settled::default(),
            unsettled: Vec::new(),
        }
    }

    fn read_positions(&mut self) -> Result<Positions, SinkError> {
        let opened = match self.log.take() {
            Some(log) => Ok(log),
            None => Log::open(&self.home, &self.claim, self.intervals),
        };
        let ready = opened.and_then(|mut log| {
            log.refresh()?;
            log.recover()?;
            Ok(log)
        });
        let log = ready.map_err(|error| self.explain(error))?;
        let mut unsettled = std::mem::take(&mut self.unsettled);
        unsettled.retain(|file| !log.lists(&file.staged));
        self.home.discard_offered(&unsettled);
        self.files.mark(log.mark());
        Ok(self.log.insert(log).positions())
    }

    fn accept(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if batch.rows.num_rows() > 0 {
            self.write_rows(batch)?;
        }
        self.since.get_or_insert_with(Instant::now);
        self.base.get_or_insert_with(|| self.log.as_ref().map_or(0, Log::last));
        for step in &batch.moves {
            merge(&mut self.pending, step);
        }
        Ok(())
    }

    fn write_rows(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let Some(witness) = batch.moves.first() else {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "rows without a move");
            let error = LogError::Io { action: "write to", path: self.home.root().to_owned(), source };
            return Err(self.explain(error));
        };
        let Some(partitioning) = &self.partitioning else {
            let written = self.files.write("", &batch.rows, witness);
            return written.map_err(|error| self.explain(error));
        };
        let refuse = |error| refused(error, &batch.moves, &self.claim.owner.identity);
        let (rows, mut pieces) = partitioning.split(&batch.rows).map_err(refuse)?;
        // Open files come first, before one of them has to make room for another.
        pieces.sort_by_key(|piece| !self.files.is_open(&piece.directory));
        for piece in pieces {
            let rows = piece.take(&rows).map_err(|error| refuse(error.into()))?;
            let written = self.files.write(&piece.directory, &rows, witness);
            written.map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<Positions, SinkError> {
        let files = self.files.finish().map_err(|error| self.explain(error))?;
        let moves = std::mem::take(&mut self.pending);
        self.since = None;
        let base = self.base.take();
        // Until the log is known to hold the entry, it is read anew: the outcome of an error is unknown.
        let Some(mut log) = self.log.take() else {
            return self.read_positions();
        };
        let (rows, bytes) =
            files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.bytes));
        let count = files.len() as u64;
        if !moves.is_empty() {
            self.unsettled.clone_from(&files);
            let base = base.unwrap_or_else(|| log.last());
            log.commit_since(base, moves, files).map_err(|error| self.explain(error))?;
            self.unsettled.clear();
        }
        self.settled.rows += rows;
        self.settled.bytes += bytes;
        self.settled.files += count;
        Ok(self.log.insert(log).positions())
    }

    fn drop_pending(&mut self) {
        self.pending.clear();
        self.since = None;
        self.base = None;
        self.files.discard();
        // What the log holds is read anew before the next use.
        self.log = None;
    }

    fn explain(&self, error: LogError) -> SinkError {
        explain(&self.home, &self.claim, error)
    }
}

/// What follows from an error of the log of a place, and what helps.
fn explain(home: &Home, claim: &Claim, error: LogError) -> SinkError {
    let identity = &claim.owner.identity;
    let action = format!("write sink `{identity}` below `{}`", home.root().display());
    match error {
        LogError::Conflict(conflict) => SinkError::Conflict(conflict),
        LogError::Refused { ref refusal, .. } => {
            SinkError::stop(action, refusal.remedy(claim, "path"), error)
        }
        LogError::Damaged { .. } => SinkError::stop(
            action,
            "restore the directory as a whole, `_sidestream` included, or start a new `path`",
            error,
        ),
        LogError::Io { ref source, .. } if is_misfit(source) => {
            SinkError::refused(action, "change the view that this sink reads", error)
        }
        LogError::Io { ref source, .. } => {
            let hint = home.remedy(source.kind());
            SinkError::Transient { action, hint: hint.map(Into::into), source: error.into() }
        }
        LogError::NoLinks { .. } => {
            SinkError::stop(action, "choose a `path` on a local file system: commits need `link`", error)
        }
        LogError::Expired { ref staged, .. } => {
            let hint = format!(
                "its rows are gone from the store: delete `{}` to go on without them, then move the sink back with \
                 `sidestream offsets reset` to read them again; and let the bucket keep incomplete uploads for longer \
                 than the program may be down",
                staged.display()
            );
            SinkError::stop(action, hint, error)
        }
        LogError::Crowded { .. } => SinkError::Transient { action, hint: None, source: error.into() },
    }
}

/// Is it a row that the format cannot hold?
fn is_misfit(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Misfit>())
}

/// Rows that cannot be spread over directories need another expression.
pub(super) fn refused(error: PartitionError, moves: &[Move], identity: &str) -> SinkError {
    let action = format!("partition the rows of {} in sink `{identity}`", ranges(moves));
    let remedy = error.remedy();
    match error {
        PartitionError::Expression { source } => SinkError::refused(action, remedy, source),
        PartitionError::TooLong { .. } => SinkError::refused(action, remedy, error),
        PartitionError::Split(_) => SinkError::stop(action, remedy, error),
    }
}

/// Adds `step` to moves that will be committed together: a range that goes on where the last one of its
/// partition ended becomes part of it.
pub(super) fn merge(moves: &mut Vec<Move>, step: &Move) {
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
        Some(if self.files.is_due() { since } else { since + self.age_max })
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
mod simulation;
#[cfg(test)]
mod tests;
