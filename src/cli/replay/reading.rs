//! Dead letters of files as records: chunks of the one partition that they are.

use std::io;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use tracing::warn;

use crate::codec::letters::{AvroLetters, STORED, StoredError, StoredLetters, from_json};
use crate::model::{Chunk, ChunkBuilder, Offset, Partition, TopicName, TopicPartition};
use crate::sink::file::{AvroBlocks, Contents, Lines, NumberError, Numbered, NumberedFile};

/// A chunk is handed on at this size: what a consumer's chunks have.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// A chunk is handed on with this many records.
const CHUNK_RECORDS_MAX: usize = 10_000;

/// Lines that are taken apart at a time. Each may be as large as a record.
const LINES_MAX: usize = 64;

/// The letters of one route in one directory, as a topic with one partition: the number of a row is its offset.
#[derive(Debug)]
pub struct Letters {
    pub source: TopicPartition,
    rows: Numbered,
}

/// Why letters cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("`{file}` cannot be read")]
    File { file: String, source: io::Error },
    #[error("`{file}` holds no dead letters")]
    Letters { file: String, source: StoredError },
}

impl Letters {
    /// Of the sink with this identity. The name of the topic is one that no topic has; another directory in the place of
    /// this one is another topic.
    pub fn new(identity: &str, rows: Numbered) -> Self {
        let id = rows.id().simple().to_string();
        let topic = TopicName::new(&format!("{identity}/{}", id.get(..8).unwrap_or(&id)));
        Self { source: TopicPartition::new(&topic, Partition(0)), rows }
    }

    pub fn id(&self) -> uuid::Uuid {
        self.rows.id()
    }

    pub fn end(&self) -> Offset {
        self.rows.end()
    }

    pub fn committed(&self) -> Option<(Offset, String)> {
        self.rows.committed()
    }

    /// # Errors
    /// [`NumberError`]
    pub fn commit(&self, next: Offset, metadata: &str) -> Result<(), NumberError> {
        self.rows.commit(next, metadata)
    }
}

/// Reads letters from some number on.
pub struct Reading {
    letters: Arc<Letters>,
    /// Of the assignment that asked for them.
    number: u64,
    next: Offset,
    open: Option<Open>,
}

impl Reading {
    pub fn new(letters: Arc<Letters>, number: u64, from: Offset) -> Self {
        Self { letters, number, next: from, open: None }
    }

    /// The next chunk; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`], once everything before it was handed on.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, ReadError> {
        let end = self.letters.end();
        if self.next >= end {
            return Ok(None);
        }
        let mut builder = ChunkBuilder::new(self.letters.source.clone(), self.number, self.next);
        while builder.size() < CHUNK_BYTES_MAX && builder.record_count() < CHUNK_RECORDS_MAX {
            match self.push_row(&mut builder) {
                Ok(true) => {}
                Ok(false) => {
                    self.next = end;
                    break;
                }
                Err(error) => {
                    // Those before it are good. It is met again.
                    self.open = None;
                    if builder.record_count() == 0 {
                        return Err(error);
                    }
                    break;
                }
            }
        }
        Ok(Some(builder.finish(self.next)))
    }

    /// Appends the next row; `false` if there is none.
    fn push_row(&mut self, builder: &mut ChunkBuilder) -> Result<bool, ReadError> {
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => match self.open_next()? {
                    Some(open) => open,
                    None => return Ok(false),
                },
            };
            if open.push_row(builder)? {
                self.next = open.next;
                self.open = Some(open);
                return Ok(true);
            }
            // Whatever it had fewer than were counted.
            self.next = open.end;
        }
    }

    /// The next file that is there, at the row that is next.
    fn open_next(&mut self) -> Result<Option<Open>, ReadError> {
        while let Some(file) = self.letters.rows.file_at(self.next) {
            let path = self.letters.rows.path_of(file);
            let name = path.display().to_string();
            match Contents::open(&path, &STORED) {
                Ok(contents) => {
                    self.next = self.next.max(number(file.start));
                    return Open::new(name, contents, file, self.next).map(Some);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    warn!(
                        file = name,
                        rows = file.rows,
                        "a file of dead letters is gone; its rows are passed over"
                    );
                    self.next = number(file.end());
                }
                Err(source) => return Err(ReadError::File { file: name, source }),
            }
        }
        Ok(None)
    }
}

fn number(raw: u64) -> Offset {
    i64::try_from(raw).ok().and_then(Offset::new).unwrap_or(Offset::MAX)
}

/// A file that is read.
struct Open {
    name: String,
    contents: Stored,
    /// Rows that were taken off it, and how many of them were used.
    rows: Option<StoredLetters>,
    used: usize,
    /// The number of the next row, and the one behind the last.
    next: Offset,
    end: Offset,
}

enum Stored {
    Rows(Box<dyn Iterator<Item = io::Result<RecordBatch>>>),
    Blocks(AvroBlocks, Box<AvroLetters>),
    /// With the number of the next line.
    Lines(Lines, usize),
}

impl Open {
    /// At row `from`.
    fn new(name: String, contents: Contents, file: &NumberedFile, from: Offset) -> Result<Self, ReadError> {
        let contents = match contents {
            Contents::Rows(rows) => Stored::Rows(rows),
            Contents::Blocks(blocks) => match AvroLetters::new(blocks.schema()) {
                Ok(letters) => Stored::Blocks(blocks, Box::new(letters)),
                Err(source) => return Err(ReadError::Letters { file: name, source }),
            },
            Contents::Lines(lines) => Stored::Lines(lines, 1),
        };
        let (next, end) = (number(file.start), number(file.end()));
        let mut open = Self { name, contents, rows: None, used: 0, next, end };
        while open.next < from && open.has_row()? {
            open.pass();
        }
        Ok(open)
    }

    /// Appends its next row; `false` if it has none.
    fn push_row(&mut self, builder: &mut ChunkBuilder) -> Result<bool, ReadError> {
        if !self.has_row()? {
            return Ok(false);
        }
        if let Some(rows) = &self.rows {
            rows.push(self.used, self.next, builder);
        }
        self.pass();
        Ok(true)
    }

    fn pass(&mut self) {
        self.used += 1;
        self.next = self.next.next();
    }

    /// Is there a row at `used`? Takes more off the file where there is none. What it has more than was counted is not
    /// numbered.
    fn has_row(&mut self) -> Result<bool, ReadError> {
        if self.next >= self.end {
            return Ok(false);
        }
        while self.rows.as_ref().is_none_or(|rows| self.used >= rows.count()) {
            let Some(rows) = self.take()? else {
                return Ok(false);
            };
            (self.rows, self.used) = (Some(rows), 0);
        }
        Ok(true)
    }

    fn take(&mut self) -> Result<Option<StoredLetters>, ReadError> {
        let unread = |source| ReadError::File { file: self.name.clone(), source };
        let stored = match &mut self.contents {
            Stored::Rows(rows) => match rows.next().transpose().map_err(unread)? {
                Some(rows) => StoredLetters::new(&rows),
                None => return Ok(None),
            },
            Stored::Blocks(blocks, letters) => match blocks.next_block().map_err(unread)? {
                Some((count, block)) => letters.decode(count, &block),
                None => return Ok(None),
            },
            Stored::Lines(lines, line) => {
                let taken = lines.take(LINES_MAX).map_err(unread)?;
                if taken.is_empty() {
                    return Ok(None);
                }
                let first = *line;
                *line += taken.len();
                from_json(first, &taken)
            }
        };
        stored.map(Some).map_err(|source| ReadError::Letters { file: self.name.clone(), source })
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::codec::{Rejected, letters};
    use crate::config::plan::{AvroCodec, ParquetCompression, ParquetOptions, Statistics, TextCompression};
    use crate::model::{Batch, Incoming, Move, Position, PositionKey, Reason, TimestampType, TopicId};
    use crate::sink::Sink;
    use crate::sink::file::{AvroFormat, FileSink, FileSinkOptions, Format, JsonLinesFormat, ParquetFormat};
    use crate::sink::owner::{Claim, Owner};

    pub fn formats() -> Vec<Box<dyn Format>> {
        let options = ParquetOptions {
            compression: ParquetCompression::Snappy,
            group_rows_max: 1 << 20,
            has_dictionary: true,
            statistics: Statistics::Page,
            columns: BTreeMap::new(),
        };
        vec![
            Box::new(ParquetFormat { options }),
            Box::new(AvroFormat { codec: AvroCodec::Zstd, record_name: "DeadLetter".to_owned() }),
            Box::new(JsonLinesFormat { compression: TextCompression::Gzip(6) }),
        ]
    }

    fn key() -> PositionKey {
        PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(7)), partition: Partition(0) }
    }

    /// Letters of the records `[from, to)` of topic `orders`, as one file below `root`.
    pub async fn put(root: &Path, format: Box<dyn Format>, from: i64, to: i64) {
        let source = TopicPartition::new(&TopicName::new("orders"), Partition(0));
        let mut builder = ChunkBuilder::new(source.clone(), 1, Offset::ZERO);
        for offset in from..to {
            let text = offset.to_string();
            let incoming = Incoming {
                offset: Offset::new(offset).unwrap(),
                timestamp_ms: offset,
                timestamp_type: TimestampType::Create,
                epoch: None,
                key: None,
                value: Some(text.as_bytes()),
            };
            builder.push(incoming, std::iter::empty());
        }
        let chunk = builder.finish(Offset::new(to).unwrap());
        let rejected =
            Rejected { index: 0, code: "framing", message: "no magic".to_owned(), schema_id: None };
        let rows = {
            let each: Vec<_> = chunk.records().map(|record| (record, &rejected)).collect();
            letters::build("r", &each).unwrap()
        };
        let owner = Owner {
            cluster: crate::model::ClusterId("c".to_owned()),
            group: "g".to_owned(),
            identity: "r/dead_letter/q".to_owned(),
        };
        let options = FileSinkOptions {
            home: root.into(),
            claim: Claim { owner, adopt: None, is_shared: false },
            schema: letters::schema(),
            roll: crate::config::plan::Roll {
                bytes_max: 1 << 30,
                rows_max: None,
                age_max: std::time::Duration::from_secs(1),
            },
            partitioning: None,
        };
        let mut sink = FileSink::new(options, format);
        let stands = sink.positions().await.unwrap().get(&key()).map(|position| position.next);
        let step = Move {
            key: key(),
            topic: source.topic.clone(),
            start: stands,
            end: Position { next: Offset::new(to).unwrap(), epoch: None },
            reason: Reason::Data,
            records: (to - from).unsigned_abs(),
        };
        sink.write(&Batch::of_rows(vec![step], rows)).await.unwrap();
        sink.flush().await.unwrap();
    }

    fn open(root: &Path) -> Arc<Letters> {
        Arc::new(Letters::new("r/dead_letter/q", Numbered::open(root).unwrap().unwrap()))
    }

    /// The offsets of the records that letters were, by their numbers.
    fn read(letters: &Arc<Letters>, from: i64) -> Result<Vec<(i64, i64)>, String> {
        let mut reading = Reading::new(letters.clone(), 3, Offset::new(from).unwrap());
        let (mut all, mut next) = (Vec::new(), from);
        loop {
            let chunk = reading.next_chunk().map_err(|error| error.to_string())?;
            let Some(chunk) = chunk else {
                assert_eq!(next, letters.end().get());
                return Ok(all);
            };
            assert_eq!((chunk.start.get(), chunk.assignment), (next, 3));
            next = chunk.end.get();
            let (records, others) = letters::originals(chunk, "r");
            assert_eq!(others, 0);
            for record in records.records() {
                assert_eq!(record.value(), Some(record.first_offset().to_string().as_bytes()));
                all.push((record.offset(), record.first_offset()));
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn letters_of_all_formats_are_one_partition() {
        let root = tempfile::tempdir().unwrap();
        let mut from = 0;
        for (format, count) in formats().into_iter().zip([200, 3, 150]) {
            put(root.path(), format, from, from + count).await;
            from += count;
        }
        let letters = open(root.path());
        assert!(letters.source.topic.as_str().starts_with("r/dead_letter/q/"));
        let all: Vec<(i64, i64)> = (0..353).map(|number| (number, number)).collect();
        assert_eq!(letters.end().get(), 353);
        for begin in [0, 1, 64, 199, 200, 202, 203, 300, 352, 353] {
            let expected = &all[usize::try_from(begin).unwrap()..];
            assert_eq!(read(&letters, begin).unwrap(), expected, "from {begin}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_is_gone_is_a_gap_and_one_that_is_damaged_is_told_behind_what_is_good() {
        let root = tempfile::tempdir().unwrap();
        for from in [0, 10, 20] {
            let lines = JsonLinesFormat { compression: TextCompression::None };
            put(root.path(), Box::new(lines), from, from + 10).await;
        }
        let letters = open(root.path());
        let path = |number: i64| {
            let file = letters.rows.file_at(Offset::new(number).unwrap()).unwrap();
            letters.rows.path_of(file)
        };
        let text = fs::read_to_string(path(20)).unwrap();
        fs::write(path(20), text.replace("\"headers\"", "\"x\"")).unwrap();
        fs::remove_file(path(10)).unwrap();
        let mut reading = Reading::new(letters.clone(), 1, Offset::new(4).unwrap());
        let chunk = reading.next_chunk().unwrap().unwrap();
        assert_eq!((chunk.start.get(), chunk.record_count()), (4, 6));
        let error = reading.next_chunk().unwrap_err().to_string();
        assert!(error.contains("holds no dead letters"), "{error}");
    }
}
