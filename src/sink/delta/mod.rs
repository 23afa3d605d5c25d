//! Rows in a Delta table, exactly once: data files and positions are one entry of the table's log.
//!
//! Rows go to data files that no entry names, one for each partition. A flush makes them durable and creates the next entry
//! of the log: `add` actions for the files, `txn` actions for the positions, and `metaData` where the table gets columns.
//! An entry is created only if its number is free. If another writer has it, what is new in the log is read, the positions
//! are compared again, and the next number is tried: nothing is committed that was not compared with all before it
//! (`docs/decisions/0022-delta.md`).

mod error;
mod files;
mod log;
mod positions;
mod stats;
mod survey;
mod table;
mod types;

use std::path::Path;
use std::time::Instant;

use arrow::datatypes::{DataType, Field, SchemaRef};
use async_trait::async_trait;
use delta_kernel::schema::StructType;
use serde_json::json;
use tokio::task::block_in_place;
use tracing::{info, warn};

use crate::config::plan;
use crate::model::{Batch, Move, Position, PositionKey, Positions, TopicName, ranges};

pub use survey::{reset, survey};

use super::file::{self, Partitioning};
use super::owner::{Admission, Claim};
use super::{Settled, Sink, SinkError, Store};
use error::{TableError, explain};
use files::{DataFile, DataFiles, PartitionValues};
use log::Created;
use positions::Writers;
use table::{Shape, Table, commit_info};

/// What a Delta sink is made of.
pub struct DeltaSinkOptions {
    pub target: plan::Delta,
    /// Who writes there.
    pub claim: Claim,
    /// Of the rows it is given.
    pub schema: SchemaRef,
    /// What `partition_by` says, and the columns that are made of it; none if it is not partitioned.
    pub partitioning: Option<(Partitioning, Vec<Field>)>,
}

/// A sink that writes to a Delta table.
pub struct DeltaSink {
    target: plan::Delta,
    claim: Claim,
    /// The columns of the rows, as a table has them.
    columns: StructType,
    partitioning: Option<Partitioning>,
    files: DataFiles,
    open: Option<Open>,
    pending: Vec<Move>,
    /// When the first of `pending` was accepted.
    since: Option<Instant>,
    settled: Settled,
}

/// A table as it was found, moved on by what is in its log since.
struct Open {
    table: Table,
    writers: Writers,
    shape: Shape,
}

/// Entries that other writers may get before us in a row: each is one more commit of theirs in the milliseconds that ours
/// takes.
const COMMIT_TRIES_MAX: usize = 100;

/// Can such rows be written to a table, partitioned by these columns? What the table itself has is looked at when it is
/// opened.
///
/// # Errors
/// What is wrong with them.
pub fn check_schema(rows: &SchemaRef, partitions: &[Field]) -> Result<(), String> {
    types::columns(rows, partitions).map(|_| ())
}

/// The type of the column that takes such values: for the table of types.
///
/// # Errors
/// What the Arrow type is, if there is none for it.
pub fn declared(data_type: &DataType) -> Result<String, String> {
    types::column_type(data_type).map(|data_type| data_type.to_string())
}

impl DeltaSink {
    /// # Errors
    /// What is wrong with the columns.
    pub fn new(options: DeltaSinkOptions) -> Result<Self, String> {
        let DeltaSinkOptions { target, claim, schema, partitioning } = options;
        let (partitioning, partitions) = partitioning.unzip();
        let columns = types::columns(&schema, &partitions.unwrap_or_default())?;
        Ok(Self {
            files: DataFiles::new(target.path.clone(), target.roll),
            target,
            claim,
            columns,
            partitioning,
            open: None,
            pending: Vec::new(),
            since: None,
            settled: Settled::default(),
        })
    }

    fn partition_names(&self) -> &[String] {
        match &self.partitioning {
            Some(partitioning) => partitioning.names(),
            None => &[],
        }
    }

    fn read_positions(&mut self) -> Result<Positions, TableError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.look()?,
        };
        catch_up(&mut open.table, &mut open.writers)?;
        let shape = open.table.shape(&self.columns, self.partition_names(), self.target.creates)?;
        if shape.files != open.shape.files && !self.pending.is_empty() {
            return Err(changed());
        }
        open.shape = shape;
        enter(&mut open.table, &mut open.writers, &self.claim)?;
        let positions = open.writers.positions(&self.claim.owner);
        self.open = Some(open);
        Ok(positions)
    }

    /// Opens the table; creates it if it is not there and may be.
    fn look(&self) -> Result<Open, TableError> {
        let root = &self.target.path;
        let mut found = Table::open(root)?;
        if found.is_none() {
            if !self.target.creates {
                return Err(TableError::stop(
                    "there is no Delta table",
                    "create it, or say `create: true`; `path` is relative to the working directory",
                ));
            }
            Table::create(root, &self.columns, self.partition_names())?;
            info!(table = %root.display(), "a Delta table was created");
            found = Table::open(root)?;
        }
        let Some((table, writers)) = found else {
            return Err(TableError::Again("the table was created and is gone again".to_owned()));
        };
        point("delta.table.opened", root)?;
        let shape = table.shape(&self.columns, self.partition_names(), self.target.creates)?;
        Ok(Open { table, writers, shape })
    }

    fn accept(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if batch.rows.num_rows() > 0 {
            self.write_rows(batch)?;
        }
        self.since.get_or_insert_with(Instant::now);
        for step in &batch.moves {
            file::merge(&mut self.pending, step);
        }
        Ok(())
    }

    fn write_rows(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let what = format!("write {} with", ranges(&batch.moves));
        let (claim, target) = (&self.claim, &self.target);
        let failed = |error: TableError| explain(claim, target, &what, error);
        let Some(open) = &self.open else {
            return Err(failed(TableError::Again("the table is not open".to_owned())));
        };
        let schema = &open.shape.files;
        let Some(partitioning) = &self.partitioning else {
            let rows = types::cast(&batch.rows, schema).map_err(|unfit| failed(unfit.into()))?;
            return self.files.write("", PartitionValues::new(), &rows, schema).map_err(failed);
        };
        let refuse = |error| file::refused(error, &batch.moves, &claim.owner.identity);
        let (rows, mut pieces) = partitioning.split(&batch.rows).map_err(refuse)?;
        // What no column can take is told before any of it is in a file.
        let rows = types::cast(&rows, schema).map_err(|unfit| failed(unfit.into()))?;
        // Open files come first, before one of them has to make room for another.
        pieces.sort_by_key(|piece| !self.files.is_open(&piece.directory));
        for piece in pieces {
            let taken = piece.take(&rows).map_err(|error| refuse(error.into()))?;
            // Delta knows no empty text as the value of a partition.
            let value = |value: &String| (!value.is_empty()).then(|| value.clone());
            let names = partitioning.names().iter().cloned();
            let partition = names.zip(piece.values.iter().map(value)).collect();
            self.files.write(&piece.directory, partition, &taken, schema).map_err(failed)?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<Positions, TableError> {
        let files = self.files.finish()?;
        let moves = std::mem::take(&mut self.pending);
        self.since = None;
        // Until the entry is known to be there, the log is read anew: the outcome of an error is unknown.
        let Some(mut open) = self.open.take() else {
            return self.read_positions();
        };
        if !moves.is_empty() {
            let committed = append(&mut open, &self.claim, &files, &moves, |table| {
                table.shape(&self.columns, self.partition_names(), self.target.creates)
            });
            if let Err(error) = committed {
                if is_withdrawn(&error) {
                    self.files.withdraw(&files);
                }
                return Err(error);
            }
            point("delta.committed", &self.target.path)?;
            for file in &files {
                self.settled.rows += file.rows;
                self.settled.bytes += file.bytes;
            }
            self.settled.files += files.len() as u64;
            checkpoint(&open.table);
        }
        let positions = open.writers.positions(&self.claim.owner);
        self.open = Some(open);
        Ok(positions)
    }

    fn drop_pending(&mut self) {
        self.pending.clear();
        self.since = None;
        self.files.discard();
        // What the log holds is read anew before the next use.
        self.open = None;
    }

    fn explain(&self, what: &str, error: TableError) -> SinkError {
        explain(&self.claim, &self.target, what, error)
    }
}

/// Passes a fail point behind a step in the table below `root`.
fn point(name: &'static str, root: &Path) -> Result<(), TableError> {
    let told = crate::failpoint::check(name);
    told.map_err(|source| TableError::io("finish a step in", root, source))
}

/// Is it certain that no entry has named the files of this attempt?
fn is_withdrawn(error: &TableError) -> bool {
    matches!(error, TableError::Conflict(_) | TableError::Refused(_) | TableError::Stop { .. })
}

/// Reads what is new in the log.
fn catch_up(table: &mut Table, writers: &mut Writers) -> Result<(), TableError> {
    while let Some(lines) = log::read(&table.root, table.version + 1)? {
        writers.note_entry(&lines);
        table.advance(&lines);
    }
    // Entries are deleted once a checkpoint holds them and they are old: who has slept so long would take the number of one
    // that is gone for a free one.
    match log::last_checkpoint(&table.root) {
        Some(version) if version > table.version => {
            Err(TableError::Again("the table's log went on and its entries are gone".to_owned()))
        }
        _ => Ok(()),
    }
}

/// The number that a version has in a `txn` action.
fn number(version: u64) -> Result<i64, TableError> {
    i64::try_from(version).map_err(|error| TableError::Again(error.to_string()))
}

/// Lets `claim` in, or not.
fn enter(table: &mut Table, writers: &mut Writers, claim: &Claim) -> Result<(), TableError> {
    for _ in 0..COMMIT_TRIES_MAX {
        let admission = writers.admission(claim).map_err(TableError::Refused)?;
        let txns = writers.entering(claim, &admission, number(table.version + 1)?);
        if txns.is_empty() {
            return Ok(());
        }
        if let Admission::Adopts(former) = &admission {
            info!(table = %table.root.display(), %former, "its positions are taken over");
        }
        let mut lines = vec![commit_info("STREAMING UPDATE", &[], false)];
        lines.extend(txns.iter().map(positions::Txn::line));
        if log::create(&table.root, table.version + 1, &lines)? == Created::Ours {
            writers.note_entry(&lines);
            table.advance(&lines);
        } else {
            catch_up(table, writers)?;
        }
    }
    Err(crowded())
}

/// Open files have the columns as they were.
fn changed() -> TableError {
    TableError::Again("another writer has changed columns of the table".to_owned())
}

fn crowded() -> TableError {
    TableError::Again(format!("lost the race for an entry of the log {COMMIT_TRIES_MAX} times in a row"))
}

/// Makes files and moves one entry of the log. `shape` says how rows are written after what others have done meanwhile.
fn append(
    open: &mut Open,
    claim: &Claim,
    files: &[DataFile],
    moves: &[Move],
    shape: impl Fn(&Table) -> Result<Shape, TableError>,
) -> Result<(), TableError> {
    let Open { table, writers, shape: written } = open;
    catch_up(table, writers)?;
    for _ in 0..COMMIT_TRIES_MAX {
        let version = table.version + 1;
        let txns = writers.advancing(&claim.owner, moves, number(version)?)?;
        let now = shape(&*table)?;
        if now.files != written.files {
            return Err(changed());
        }
        if txns.is_empty() && files.is_empty() {
            return Ok(());
        }
        let partitions = json!(table.partitions());
        let parameters = [("mode", json!("Append")), ("partitionBy", partitions)];
        // The table gets columns only together with rows that have them.
        let widening = if files.is_empty() { &[][..] } else { now.widening.as_slice() };
        let mut lines = vec![commit_info("WRITE", &parameters, widening.is_empty())];
        lines.extend_from_slice(widening);
        lines.extend(files.iter().map(DataFile::line));
        lines.extend(txns.iter().map(positions::Txn::line));
        if log::create(&table.root, version, &lines)? == Created::Ours {
            writers.note_entry(&lines);
            table.advance(&lines);
            return Ok(());
        }
        catch_up(table, writers)?;
    }
    Err(crowded())
}

/// Writes a checkpoint if one is due. The log is as good without, so an error is only told.
fn checkpoint(table: &Table) {
    if !table.is_checkpoint_due() {
        return;
    }
    if let Err(error) = table.checkpoint() {
        warn!(table = %table.root.display(), version = table.version, %error, "no checkpoint was written");
    }
}

#[async_trait]
impl Sink for DeltaSink {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        block_in_place(|| self.read_positions().map_err(|error| self.explain("open", error)))
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        block_in_place(|| self.accept(batch))
    }

    fn flush_due(&self) -> Option<Instant> {
        let since = self.since?;
        Some(if self.files.is_due() { since } else { since + self.target.roll.age_max })
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        block_in_place(|| self.commit().map_err(|error| self.explain("commit", error)))
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
        // The table's log is the only truth about this sink's positions.
    }
}

#[cfg(test)]
mod tests;
