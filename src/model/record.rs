//! Records as they came from the broker: bytes and coordinates, undecoded.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::{LeaderEpoch, Offset, TopicPartition};

/// The id of a schema in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchemaId(pub u32);

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a record names its schema by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchemaKey {
    Id(SchemaId),
    /// The same in every registry that has the schema.
    Guid(Uuid),
}

impl SchemaKey {
    /// `None` for a GUID.
    pub fn id(self) -> Option<SchemaId> {
        match self {
            Self::Id(id) => Some(id),
            Self::Guid(_) => None,
        }
    }
}

impl From<SchemaId> for SchemaKey {
    fn from(id: SchemaId) -> Self {
        Self::Id(id)
    }
}

/// As messages put it behind the word "schema".
impl fmt::Display for SchemaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "id {id}"),
            Self::Guid(guid) => write!(f, "GUID {guid}"),
        }
    }
}

/// What a record's timestamp means (Spark's `timestampType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// Very old message formats carry none.
    None,
    Create,
    LogAppend,
}

/// A contiguous range of one partition, with the records that are in it.
///
/// `start` is where the chunk before ended, not the first record: offsets that hold no record
/// (compaction, control records) belong to the range all the same. All bytes of a chunk lie in one
/// buffer, so that a chunk costs two allocations however many records it holds.
pub struct Chunk {
    pub source: TopicPartition,
    /// Of the assignment that fetched it; chunks of an older one are dropped.
    pub assignment: u64,
    pub start: Offset,
    pub end: Offset,
    /// Of the last record.
    pub epoch: Option<LeaderEpoch>,
    /// Shared by the lanes that read the topic.
    bytes: Arc<Vec<u8>>,
    records: Arc<Vec<Entry>>,
    /// One for each record, if they are dead letters that are read as what they were.
    originals: Option<Arc<Vec<Original>>>,
    /// Given back when the chunk is dropped.
    _charge: Option<Charge>,
}

/// Where a record was before it became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    pub source: TopicPartition,
    pub offset: i64,
}

/// Whatever gives memory back to a budget when it is dropped.
pub type Charge = Box<dyn std::any::Any + Send + Sync>;

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the payload: it is the user's data.
        write!(
            f,
            "Chunk({} [{}, {}), {} records, {} bytes)",
            self.source,
            self.start,
            self.end,
            self.records.len(),
            self.bytes.len()
        )
    }
}

/// Lengths of -1 mean null.
#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    timestamp_ms: i64,
    timestamp_type: TimestampType,
    at: u32,
    key_len: i32,
    value_len: i32,
    headers: u32,
}

/// One record of a [`Chunk`].
#[derive(Clone, Copy)]
pub struct RecordRef<'a> {
    chunk: &'a Chunk,
    entry: Entry,
    original: Option<&'a Original>,
}

impl<'a> RecordRef<'a> {
    pub fn source(&self) -> &'a TopicPartition {
        &self.chunk.source
    }

    pub fn offset(&self) -> i64 {
        self.entry.offset
    }

    /// Where it was written as what it is: [`source`](RecordRef::source), unless it is a dead letter that is replayed.
    pub fn first_source(&self) -> &'a TopicPartition {
        self.original.map_or(&self.chunk.source, |original| &original.source)
    }

    /// Its offset there.
    pub fn first_offset(&self) -> i64 {
        self.original.map_or(self.entry.offset, |original| original.offset)
    }

    pub fn timestamp_ms(&self) -> i64 {
        self.entry.timestamp_ms
    }

    pub fn timestamp_type(&self) -> TimestampType {
        self.entry.timestamp_type
    }

    pub fn key(&self) -> Option<&'a [u8]> {
        let at = self.entry.at as usize;
        let len = usize::try_from(self.entry.key_len).ok()?;
        Some(&self.chunk.bytes[at..at + len])
    }

    /// `None` is a tombstone.
    pub fn value(&self) -> Option<&'a [u8]> {
        let at = self.entry.at as usize + self.entry.key_len.max(0) as usize;
        let len = usize::try_from(self.entry.value_len).ok()?;
        Some(&self.chunk.bytes[at..at + len])
    }

    /// Names and values in the order they were written. Names are bytes: Kafka does not check them.
    pub fn headers(&self) -> Headers<'a> {
        let at = self.entry.at as usize
            + self.entry.key_len.max(0) as usize
            + self.entry.value_len.max(0) as usize;
        Headers { bytes: &self.chunk.bytes[at..], left: self.entry.headers }
    }

    /// Key, value and headers in bytes.
    pub fn size(&self) -> usize {
        let headers: usize =
            self.headers().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum();
        self.key().map_or(0, <[u8]>::len) + self.value().map_or(0, <[u8]>::len) + headers
    }
}

impl fmt::Debug for RecordRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} offset {}", self.chunk.source, self.entry.offset)
    }
}

/// Iterates over a record's headers.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    left: u32,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let name_len = take_len(&mut self.bytes);
        let value_len = take_len(&mut self.bytes);
        let (name, rest) = self.bytes.split_at(name_len.max(0) as usize);
        let (value, rest) = rest.split_at(value_len.max(0) as usize);
        self.bytes = rest;
        Some((name, (value_len >= 0).then_some(value)))
    }
}

/// Lengths were written by [`ChunkBuilder::push`], so the bytes are there.
fn take_len(bytes: &mut &[u8]) -> i32 {
    let (len, rest) = bytes.split_at(4);
    *bytes = rest;
    i32::from_le_bytes([len[0], len[1], len[2], len[3]])
}

impl Chunk {
    /// The same chunk for one lane, with what that lane is charged for it.
    #[must_use]
    pub fn share(&self, charge: Option<Charge>) -> Self {
        Self {
            source: self.source.clone(),
            assignment: self.assignment,
            start: self.start,
            end: self.end,
            epoch: self.epoch,
            bytes: self.bytes.clone(),
            records: self.records.clone(),
            originals: self.originals.clone(),
            _charge: charge,
        }
    }

    /// This chunk in place of another one, which it was made of: what that one is charged is kept.
    #[must_use]
    pub fn in_place_of(self, other: Self) -> Self {
        Self { epoch: other.epoch, _charge: other._charge, ..self }
    }

    pub fn record_count(&self) -> usize {
        self.records.len()
    }

    /// Bytes of keys, values and headers.
    pub fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes held in memory, bookkeeping included.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<Entry>()
    }

    pub fn records(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> + Clone {
        self.at(0, self.records.len())
    }

    fn at(&self, from: usize, to: usize) -> impl ExactSizeIterator<Item = RecordRef<'_>> + Clone {
        let originals = self.originals.as_ref();
        (from..to).map(move |number| RecordRef {
            chunk: self,
            entry: self.records[number],
            original: originals.and_then(|all| all.get(number)),
        })
    }

    /// The records with `from <= offset < to`.
    pub fn records_between(
        &self,
        from: Offset,
        to: Offset,
    ) -> impl ExactSizeIterator<Item = RecordRef<'_>> + Clone {
        let lower = self.records.partition_point(|entry| entry.offset < from.get());
        let upper = self.records.partition_point(|entry| entry.offset < to.get()).max(lower);
        self.at(lower, upper)
    }
}

/// Collects records of one partition into a [`Chunk`].
#[derive(Debug)]
pub struct ChunkBuilder {
    source: TopicPartition,
    assignment: u64,
    start: Offset,
    next: Offset,
    epoch: Option<LeaderEpoch>,
    bytes: Vec<u8>,
    records: Vec<Entry>,
    originals: Vec<Original>,
}

/// One record, borrowed from the client's memory, on its way into a [`ChunkBuilder`].
#[derive(Clone, Copy)]
pub struct Incoming<'a> {
    pub offset: Offset,
    pub timestamp_ms: i64,
    pub timestamp_type: TimestampType,
    pub epoch: Option<LeaderEpoch>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

impl fmt::Debug for Incoming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {}", self.offset)
    }
}

impl ChunkBuilder {
    pub fn new(source: TopicPartition, assignment: u64, start: Offset) -> Self {
        let (bytes, records, originals) = (Vec::new(), Vec::new(), Vec::new());
        Self { source, assignment, start, next: start, epoch: None, bytes, records, originals }
    }

    pub fn record_count(&self) -> usize {
        self.records.len()
    }

    /// Where the range ends if it is finished now.
    pub fn next(&self) -> Offset {
        self.next
    }

    pub fn size(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<Entry>()
    }

    /// Appends a record. Lengths fit: librdkafka's messages are at most 1 GB (`i32`), and the
    /// caller closes a chunk long before 4 GiB (`u32`).
    pub fn push<'a>(
        &mut self,
        record: Incoming<'a>,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) {
        let len = |bytes: Option<&[u8]>| bytes.map_or(-1, |bytes| bytes.len() as i32);
        let mut entry = Entry {
            offset: record.offset.get(),
            timestamp_ms: record.timestamp_ms,
            timestamp_type: record.timestamp_type,
            at: self.bytes.len() as u32,
            key_len: len(record.key),
            value_len: len(record.value),
            headers: 0,
        };
        self.bytes.extend_from_slice(record.key.unwrap_or_default());
        self.bytes.extend_from_slice(record.value.unwrap_or_default());
        for (name, value) in headers {
            self.bytes.extend_from_slice(&(name.len() as i32).to_le_bytes());
            self.bytes.extend_from_slice(&len(value).to_le_bytes());
            self.bytes.extend_from_slice(name);
            self.bytes.extend_from_slice(value.unwrap_or_default());
            entry.headers += 1;
        }
        self.next = record.offset.next();
        self.epoch = record.epoch.or(self.epoch);
        self.records.push(entry);
    }

    /// Appends a dead letter as what it was. All records of the chunk have to be such.
    pub fn push_original<'a>(
        &mut self,
        record: Incoming<'a>,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
        original: Original,
    ) {
        self.push(record, headers);
        self.originals.push(original);
    }

    /// The chunk `[start, end)`.
    pub fn finish(self, end: Offset) -> Chunk {
        Chunk {
            source: self.source,
            assignment: self.assignment,
            start: self.start,
            end: end.max(self.next),
            epoch: self.epoch,
            bytes: Arc::new(self.bytes),
            records: Arc::new(self.records),
            originals: (!self.originals.is_empty()).then(|| Arc::new(self.originals)),
            _charge: None,
        }
    }
}

/// A chunk as batches hold it.
pub type SharedChunk = Arc<Chunk>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Partition, TopicName};

    #[test]
    fn what_goes_in_comes_out() {
        let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
        let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
        let headers: [(&[u8], Option<&[u8]>); 2] = [(b"h\xff", Some(b"x")), (b"", None)];
        let incoming = |offset, key, value| Incoming {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 5,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key,
            value,
        };
        builder.push(incoming(2, Some(b"k"), None), headers.into_iter());
        builder.push(incoming(5, None, Some(b"")), std::iter::empty());
        let chunk = builder.finish(Offset::new(9).unwrap());
        let records: Vec<_> = chunk.records().collect();
        assert_eq!((chunk.start.get(), chunk.end.get()), (0, 9));
        assert_eq!((records[0].key(), records[0].value()), (Some(&b"k"[..]), None));
        assert_eq!((records[1].key(), records[1].value()), (None, Some(&b""[..])));
        assert_eq!(records[0].headers().collect::<Vec<_>>(), headers);
        assert_eq!(records[0].size(), 4);
        let between =
            |from, to| chunk.records_between(Offset::new(from).unwrap(), Offset::new(to).unwrap()).len();
        assert_eq!([between(0, 9), between(3, 9), between(2, 5), between(6, 2)], [2, 1, 1, 0]);
    }
}
