//! Data files that are being written, one for each partition, and those that wait for their entry. They have their names
//! from the start: what no entry of the log names is seen by no reader, and VACUUM removes it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::config::plan::{ParquetCompression, ParquetOptions, Roll, Statistics};
use crate::failpoint;
use crate::sink::file::{Format, ParquetFormat, RowWriter, durable};

use super::error::TableError;
use super::stats::Stats;
use super::table::now;

/// As for files of their own: file handles, of which a process often has 1024, and what a row group holds in memory, of all
/// open files together.
const OPEN_MAX: usize = 64;
const HELD_BYTES_MAX: usize = 32 << 20;

/// A commit names each of them; the batch that gets there is written as a whole.
const FINISHED_MAX: usize = 1000;

/// Values of partitions as text, by name; `None` is null.
pub type PartitionValues = Vec<(String, Option<String>)>;

/// A file that is durable, and not in the log.
#[derive(Debug, Clone)]
pub struct DataFile {
    /// Below the table's directory, with `/`.
    path: String,
    partition: PartitionValues,
    stats: String,
    pub rows: u64,
    pub bytes: u64,
}

impl DataFile {
    /// As a line of the log.
    pub fn line(&self) -> Value {
        let partition: Map<String, Value> =
            self.partition.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        json!({"add": Add {
            path: escaped(&self.path),
            partition_values: partition,
            size: self.bytes,
            modification_time: now(),
            data_change: true,
            stats: &self.stats,
        }})
    }
}

/// The protocol's action of this name.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Add<'a> {
    path: String,
    partition_values: Map<String, Value>,
    size: u64,
    modification_time: i64,
    data_change: bool,
    stats: &'a str,
}

/// A path as the log has it: URI escapes for everything but what is plain anywhere.
fn escaped(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-/=".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// The uncommitted files of a sink.
pub struct DataFiles {
    root: PathBuf,
    format: ParquetFormat,
    roll: Roll,
    /// By directory below the root; that of the root itself is empty.
    open: BTreeMap<String, OpenFile>,
    finished: Vec<DataFile>,
    /// A file has reached a limit of `roll`.
    has_full: bool,
    writes: u64,
}

struct OpenFile {
    path: String,
    partition: PartitionValues,
    stats: Stats,
    rows: u64,
    /// Which of all writes was the last one into this file.
    last_write: u64,
    writer: Box<dyn RowWriter>,
}

impl DataFiles {
    pub fn new(root: PathBuf, roll: Roll) -> Self {
        let options = ParquetOptions {
            compression: ParquetCompression::Snappy,
            group_rows_max: 1 << 20,
            has_dictionary: true,
            statistics: Statistics::Page,
            columns: BTreeMap::new(),
        };
        Self {
            root,
            format: ParquetFormat { options },
            roll,
            open: BTreeMap::new(),
            finished: Vec::new(),
            has_full: false,
            writes: 0,
        }
    }

    /// Has `directory` an open file?
    pub fn is_open(&self, directory: &str) -> bool {
        self.open.contains_key(directory)
    }

    /// Is a commit due by size or number?
    pub fn is_due(&self) -> bool {
        self.has_full || self.finished.len() >= FINISHED_MAX
    }

    /// Appends rows, which are of the schema `files`, to the open file of a partition, or to a new one.
    ///
    /// # Errors
    /// If a file cannot be written; all of them are to be discarded then.
    pub fn write(
        &mut self,
        directory: &str,
        partition: PartitionValues,
        rows: &RecordBatch,
        files: &SchemaRef,
    ) -> Result<(), TableError> {
        if !self.is_open(directory) {
            if self.open.len() >= OPEN_MAX {
                self.close_longest_idle()?;
            }
            let file = self.begin(directory, partition, files)?;
            self.open.insert(directory.to_owned(), file);
        }
        self.writes += 1;
        let written = |source| TableError::io("write to", &self.root, source);
        if let Some(file) = self.open.get_mut(directory) {
            file.writer.write(rows).map_err(written)?;
            file.stats.add(rows);
            file.rows += rows.num_rows() as u64;
            file.last_write = self.writes;
            self.has_full |= file.writer.size() >= self.roll.bytes_max
                || self.roll.rows_max.is_some_and(|rows_max| file.rows >= rows_max);
        }
        self.relieve()
    }

    fn begin(
        &self,
        directory: &str,
        partition: PartitionValues,
        files: &SchemaRef,
    ) -> Result<OpenFile, TableError> {
        let name = format!("part-{}.snappy.parquet", Uuid::new_v4());
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        durable::create_dir_durably(&self.root.join(directory))?;
        let begun = File::create_new(self.root.join(&path)).and_then(|file| self.format.begin(file, files));
        let writer = begun.map_err(|source| TableError::io("begin a file in", &self.root, source))?;
        Ok(OpenFile { path, partition, stats: Stats::new(files), rows: 0, last_write: 0, writer })
    }

    /// Lets the files that hold back most write it, until all together hold little enough.
    fn relieve(&mut self) -> Result<(), TableError> {
        for _ in 0..self.open.len() {
            let held: usize = self.open.values().map(|file| file.writer.held()).sum();
            if held < HELD_BYTES_MAX {
                break;
            }
            if let Some(fullest) = self.open.values_mut().max_by_key(|file| file.writer.held()) {
                let relieved = fullest.writer.relieve();
                relieved.map_err(|source| TableError::io("write to", &self.root, source))?;
            }
        }
        Ok(())
    }

    fn close_longest_idle(&mut self) -> Result<(), TableError> {
        let idle = self.open.iter().min_by_key(|(_, file)| file.last_write);
        let directory = idle.map(|(directory, _)| directory.clone());
        match directory.and_then(|directory| self.open.remove(&directory).map(|file| (directory, file))) {
            Some((directory, file)) => self.close(&directory, file),
            None => Ok(()),
        }
    }

    /// Finishes a file and makes it durable, with its name.
    fn close(&mut self, directory: &str, file: OpenFile) -> Result<(), TableError> {
        let OpenFile { path, partition, stats, rows, writer, .. } = file;
        let finished = writer.finish().and_then(|file| {
            // After a failed fsync the pages may be gone and the next fsync may lie: the file is abandoned.
            file.sync_all()?;
            failpoint::check("delta.file.synced")?;
            file.metadata()
        });
        match finished {
            Ok(metadata) => {
                let bytes = metadata.len();
                self.finished.push(DataFile { path, partition, stats: stats.text(), rows, bytes });
                durable::sync_dir(&self.root.join(directory))?;
                Ok(())
            }
            Err(source) => {
                remove(&self.root, &path);
                Err(TableError::io("finish a file in", &self.root, source))
            }
        }
    }

    /// Finishes all files. What is returned is durable, and known to nobody.
    ///
    /// # Errors
    /// If a file cannot be finished; all of them are to be discarded then.
    pub fn finish(&mut self) -> Result<Vec<DataFile>, TableError> {
        while let Some((directory, file)) = self.open.pop_first() {
            self.close(&directory, file)?;
        }
        self.has_full = false;
        Ok(std::mem::take(&mut self.finished))
    }

    /// Drops all files that were not [finished](Self::finish): no entry can name one.
    pub fn discard(&mut self) {
        while let Some((_, OpenFile { path, writer, .. })) = self.open.pop_first() {
            drop(writer);
            remove(&self.root, &path);
        }
        for file in std::mem::take(&mut self.finished) {
            remove(&self.root, &file.path);
        }
        self.has_full = false;
    }

    /// Removes files whose entry was certainly not made.
    pub fn withdraw(&self, files: &[DataFile]) {
        for file in files {
            remove(&self.root, &file.path);
        }
    }
}

/// Removes a file that no entry names. Left behind, it is an orphan that VACUUM removes.
fn remove(root: &Path, path: &str) {
    if let Err(error) = std::fs::remove_file(root.join(path)) {
        tracing::debug!(root = %root.display(), %error, "an abandoned data file stays for VACUUM");
    }
}
