//! Files that are being written, one for each directory, and those that wait for their commit.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use crate::config::plan::Roll;
use crate::failpoint;
use crate::model::Move;

use super::durable::{self, LogError};
use super::entry::DataFile;
use super::storage::{Home, Written};
use super::{Format, RowWriter, names};

/// What is held at a time.
const LIMITS: Limits = Limits {
    // Each is a file handle, of which a process often has 1024, and buffers: 256 KiB for text.
    open: 64,
    // One file that is compressed well takes 18 MiB, and there should be some.
    open_bytes: 64 << 20,
    // A commit links and syncs each of them, and all are one entry of the log.
    finished: 1000,
    // One row group of a single Parquet file: readers fetch it as a whole.
    held_bytes: 32 << 20,
};

#[derive(Debug)]
struct Limits {
    /// Open files. One that was not written to for the longest time makes room for another.
    open: usize,
    /// Bytes that open files take by being open: fewer of them where each takes much, but always one.
    open_bytes: usize,
    /// Finished files: a commit is due from here on. The batch that gets there is written as a whole.
    finished: usize,
    /// Bytes that formats hold back, of all open files together.
    held_bytes: usize,
}

/// The uncommitted files of a sink.
pub struct OpenFiles {
    home: Home,
    format: Box<dyn Format>,
    schema: SchemaRef,
    roll: Roll,
    limits: Limits,
    /// Of the owner, in the names of files.
    mark: Option<String>,
    /// By directory below the root; that of the root itself is empty.
    open: BTreeMap<String, OpenFile>,
    finished: Vec<DataFile>,
    /// A file has reached a limit of `roll`.
    has_full: bool,
    writes: u64,
}

struct OpenFile {
    path: String,
    staged: String,
    rows: u64,
    /// Which of all writes was the last one into this file.
    last_write: u64,
    writer: Box<dyn RowWriter>,
}

impl OpenFiles {
    /// Files of `format` with rows of `schema`.
    pub fn new(home: impl Into<Home>, format: Box<dyn Format>, schema: SchemaRef, roll: Roll) -> Self {
        let open = (LIMITS.open_bytes / format.open_bytes().max(1)).clamp(1, LIMITS.open);
        Self {
            home: home.into(),
            format,
            schema,
            roll,
            limits: Limits { open, ..LIMITS },
            mark: None,
            open: BTreeMap::new(),
            finished: Vec::new(),
            has_full: false,
            writes: 0,
        }
    }

    /// Names files from now on as those of this owner.
    pub fn mark(&mut self, mark: Option<String>) {
        self.mark = mark;
    }

    /// Has `directory` an open file?
    pub fn is_open(&self, directory: &str) -> bool {
        self.open.contains_key(directory)
    }

    /// Appends rows to the open file of `directory`, or to a new one that `witness` vouches for.
    ///
    /// # Errors
    /// If a file cannot be written; all of them are to be discarded then.
    pub fn write(&mut self, directory: &str, rows: &RecordBatch, witness: &Move) -> Result<(), LogError> {
        if !self.is_open(directory) && self.open.len() >= self.limits.open {
            self.close_longest_idle()?;
        }
        let written = self.append(directory, rows, witness).and_then(|()| self.relieve());
        let root = self.home.root();
        written.map_err(|source| LogError::Io { action: "write to", path: root.to_owned(), source })
    }

    fn append(&mut self, directory: &str, rows: &RecordBatch, witness: &Move) -> io::Result<()> {
        let file = match self.open.entry(directory.to_owned()) {
            Entry::Occupied(file) => file.into_mut(),
            Entry::Vacant(place) => {
                let start = witness.start.unwrap_or_default();
                let name =
                    names::data_file_name(&witness.key, start, self.mark.as_deref(), self.format.extension());
                let staged = names::staged_name(&name);
                let file = self.home.begin(&staged)?;
                failpoint::check("file.staged.created")?;
                let writer = self.format.begin(file, &self.schema)?;
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                place.insert(OpenFile { path, staged, rows: 0, last_write: 0, writer })
            }
        };
        file.writer.write(rows)?;
        failpoint::check("file.rows.written")?;
        file.rows += rows.num_rows() as u64;
        self.writes += 1;
        file.last_write = self.writes;
        self.has_full |= file.writer.size() >= self.roll.bytes_max
            || self.roll.rows_max.is_some_and(|rows_max| file.rows >= rows_max);
        // A single file may be as large as it was told to become.
        let bytes_max = self.home.open_bytes_max().max(self.roll.bytes_max);
        self.has_full |= self.open.values().map(|file| file.writer.size()).sum::<u64>() >= bytes_max;
        Ok(())
    }

    /// Lets the files that hold back most write it, until all together hold little enough.
    fn relieve(&mut self) -> io::Result<()> {
        for _ in 0..self.open.len() {
            let held: usize = self.open.values().map(|file| file.writer.held()).sum();
            if held < self.limits.held_bytes {
                break;
            }
            if let Some(fullest) = self.open.values_mut().max_by_key(|file| file.writer.held()) {
                fullest.writer.relieve()?;
            }
        }
        Ok(())
    }

    /// Is a commit due by size or number?
    pub fn is_due(&self) -> bool {
        self.has_full || self.finished.len() >= self.limits.finished
    }

    /// Finishes all files. What is returned is durable, and not in sight.
    ///
    /// # Errors
    /// If a file cannot be finished; all of them are to be discarded then.
    pub fn finish(&mut self) -> Result<Vec<DataFile>, LogError> {
        let mut written = Vec::new();
        while let Some((_, file)) = self.open.pop_first() {
            match self.end(file) {
                Ok(file) => written.push(file),
                Err(error) => {
                    self.home.discard_open(&staged(&written));
                    return Err(error);
                }
            }
        }
        self.keep(written)?;
        if !self.finished.is_empty() {
            self.home.sync_staged()?;
            durable::point("file.staged.synced", self.home.root())?;
        }
        self.has_full = false;
        Ok(std::mem::take(&mut self.finished))
    }

    fn close_longest_idle(&mut self) -> Result<(), LogError> {
        let idle = self.open.iter().min_by_key(|(_, file)| file.last_write);
        let directory = idle.map(|(directory, _)| directory.clone());
        match directory.and_then(|directory| self.open.remove(&directory)) {
            Some(file) => {
                let written = self.end(file)?;
                self.keep(vec![written])
            }
            None => Ok(()),
        }
    }

    /// Writes the end of a file. One that cannot be finished is removed: it holds space that may be just what is missing.
    fn end(&self, file: OpenFile) -> Result<Written, LogError> {
        let OpenFile { path, staged, rows, writer, .. } = file;
        let finished = writer.finish().and_then(|file| {
            failpoint::check("file.data.written")?;
            Ok(file)
        });
        match finished {
            Ok(file) => Ok(Written { path, staged, rows, file }),
            Err(source) => {
                let path = names::staged_path(self.home.root(), &staged);
                self.home.discard_open(&[staged]);
                Err(LogError::Io { action: "finish", path, source })
            }
        }
    }

    fn keep(&mut self, written: Vec<Written>) -> Result<(), LogError> {
        if written.is_empty() {
            return Ok(());
        }
        let staged = staged(&written);
        match self.home.keep(written) {
            Ok(kept) => {
                self.finished.extend(kept);
                Ok(())
            }
            Err(error) => {
                self.home.discard_open(&staged);
                Err(error)
            }
        }
    }

    /// Drops all files. None of them was offered to the log, so nobody can list one.
    pub fn discard(&mut self) {
        let open = std::mem::take(&mut self.open).into_values();
        let staged: Vec<String> = open.map(|OpenFile { staged, .. }| staged).collect();
        self.home.discard_open(&staged);
        self.home.discard(&std::mem::take(&mut self.finished));
        self.has_full = false;
    }
}

fn staged(written: &[Written]) -> Vec<String> {
    written.iter().map(|file| file.staged.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use arrow::array::{ArrayRef, Int64Array};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::model::{Offset, Partition, Position, PositionKey, Reason, TopicId, TopicName};

    /// Holds back a byte for each row, and tells when it has written what it held.
    #[derive(Debug, Clone, Default)]
    struct Holding {
        relieved: Arc<Mutex<Vec<usize>>>,
        open_bytes: usize,
    }

    const UNLIMITED: Limits =
        Limits { open: usize::MAX, open_bytes: usize::MAX, finished: usize::MAX, held_bytes: usize::MAX };

    struct HoldingWriter {
        file: File,
        held: usize,
        relieved: Arc<Mutex<Vec<usize>>>,
    }

    impl Format for Holding {
        fn extension(&self) -> &'static str {
            "txt"
        }

        fn open_bytes(&self) -> usize {
            self.open_bytes
        }

        fn begin(&self, file: File, _: &SchemaRef) -> io::Result<Box<dyn RowWriter>> {
            Ok(Box::new(HoldingWriter { file, held: 0, relieved: self.relieved.clone() }))
        }
    }

    impl RowWriter for HoldingWriter {
        fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
            self.held += rows.num_rows();
            Ok(())
        }

        fn size(&self) -> u64 {
            self.held as u64
        }

        fn held(&self) -> usize {
            self.held
        }

        fn relieve(&mut self) -> io::Result<()> {
            self.relieved.lock().unwrap().push(std::mem::take(&mut self.held));
            Ok(())
        }

        fn finish(self: Box<Self>) -> io::Result<File> {
            Ok(self.file)
        }
    }

    struct Bench {
        _root: tempfile::TempDir,
        files: OpenFiles,
        relieved: Arc<Mutex<Vec<usize>>>,
    }

    fn bench(limits: Limits, rows_max: Option<u64>) -> Bench {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(names::staged_dir(root.path())).unwrap();
        let format = Holding::default();
        let relieved = format.relieved.clone();
        let roll = Roll { bytes_max: u64::MAX, rows_max, age_max: Duration::from_secs(3600) };
        let schema = rows(0).schema();
        let files = OpenFiles::new(root.path().to_owned(), Box::new(format), schema, roll);
        Bench { _root: root, files: OpenFiles { limits, ..files }, relieved }
    }

    fn rows(count: i64) -> RecordBatch {
        let schema = Schema::new(vec![Field::new("id", DataType::Int64, false)]);
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..count));
        RecordBatch::try_new(Arc::new(schema), vec![ids]).unwrap()
    }

    fn witness() -> Move {
        Move {
            key: PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(5)), partition: Partition(0) },
            topic: TopicName::new("t"),
            start: Offset::new(0),
            end: Position { next: Offset::new(9).unwrap(), epoch: None },
            reason: Reason::Data,
            records: 9,
        }
    }

    fn write(files: &mut OpenFiles, directory: &str, count: i64) {
        files.write(directory, &rows(count), &witness()).unwrap();
    }

    fn directories(files: &[DataFile]) -> Vec<(&str, u64)> {
        files.iter().map(|file| (file.path.split('/').next().unwrap(), file.rows)).collect()
    }

    #[test]
    fn the_file_that_rested_longest_makes_room_and_many_finished_ones_are_due() {
        let mut bench = bench(Limits { open: 2, finished: 3, ..UNLIMITED }, None);
        let files = &mut bench.files;
        for directory in ["p=a", "p=b", "p=a", "p=c"] {
            write(files, directory, 1);
        }
        assert_eq!(["p=a", "p=b", "p=c"].map(|directory| files.is_open(directory)), [true, false, true]);
        assert_eq!(directories(&files.finished), [("p=b", 1)]);
        write(files, "p=b", 5);
        assert!(!files.is_due());
        write(files, "p=d", 1);
        assert!(files.is_due());
        let finished = files.finish().unwrap();
        let expected = [("p=b", 1), ("p=a", 2), ("p=c", 1), ("p=b", 5), ("p=d", 1)];
        assert_eq!(directories(&finished), expected);
        assert!(!files.is_due() && files.open.is_empty());
    }

    #[test]
    fn a_full_file_is_due_also_when_it_had_to_make_room() {
        let mut bench = bench(Limits { open: 1, finished: 9, ..UNLIMITED }, Some(4));
        let files = &mut bench.files;
        write(files, "p=a", 3);
        assert!(!files.is_due());
        write(files, "p=a", 1);
        write(files, "p=b", 1);
        assert!(files.is_due());
        let staged = names::staged_dir(files.home.root());
        assert_eq!(std::fs::read_dir(&staged).unwrap().count(), 2);
        files.discard();
        assert!(!files.is_due());
        assert_eq!(std::fs::read_dir(&staged).unwrap().count(), 0);
    }

    #[test]
    fn fewer_files_are_open_where_each_takes_much() {
        for (open_bytes, expected) in [(0, 64), (1 << 20, 64), (20 << 20, 3), (1 << 30, 1)] {
            let format = Holding { open_bytes, ..Holding::default() };
            let roll = Roll { bytes_max: 1, rows_max: None, age_max: Duration::from_secs(1) };
            let files = OpenFiles::new(PathBuf::new(), Box::new(format), rows(0).schema(), roll);
            assert_eq!(files.limits.open, expected, "{open_bytes}");
        }
    }

    #[test]
    fn what_all_files_hold_back_is_bounded_and_the_fullest_gives_way() {
        let mut bench = bench(Limits { open: 9, finished: 9, held_bytes: 10, ..UNLIMITED }, None);
        for (directory, count) in [("p=a", 4), ("p=b", 5), ("p=a", 1), ("p=c", 3), ("p=c", 2)] {
            write(&mut bench.files, directory, count);
        }
        // Twice two files held 5 each, and one of them gave way.
        assert_eq!(*bench.relieved.lock().unwrap(), [5, 5]);
    }
}
