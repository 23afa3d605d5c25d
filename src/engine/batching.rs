//! When and how buffered chunks become a micro-batch. Pure: the time is a parameter.
//!
//! A batch is one contiguous range per partition, and the set of sinks that want all of it. Ranges that
//! different sets of sinks want never share a batch, so a sink that was thrown back reads its rows
//! again without its siblings seeing them twice.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::config::plan::BatchLimits;
use crate::model::{LeaderEpoch, Offset, PositionKey, RecordRef, SharedChunk, SinkSet};

use super::catching::Reader;
use super::ledger::Ledger;

/// Chunks of one lane that are not in a batch yet.
#[derive(Debug)]
pub struct Buffer {
    /// Who reads what is put in here: its batches are for the sinks that this one serves.
    reader: Reader,
    limits: BatchLimits,
    /// Below the limit while a row that a sink refuses is looked for.
    rows_max: usize,
    partitions: BTreeMap<PositionKey, Queue>,
    records: usize,
    bytes: usize,
    oldest: Option<Instant>,
}

#[derive(Debug)]
struct Queue {
    assignment: u64,
    /// Where the next batch begins.
    taken: Offset,
    /// Where the next chunk has to begin.
    received: Offset,
    /// Of a bounded run: nothing at or after it is read.
    end: Option<Offset>,
    chunks: VecDeque<SharedChunk>,
}

impl Queue {
    /// Records that are in no batch yet, and may come into one.
    fn left(&self) -> usize {
        let limit = self.end.unwrap_or(Offset::MAX);
        self.chunks.iter().map(|chunk| chunk.records_between(self.taken, limit).len()).sum()
    }
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    Kept,
    /// It belongs to a partition or assignment that is gone.
    Stale,
}

/// A chunk that does not begin where the one before ended: records were lost on the way.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("records between offsets {expected} and {got} of a partition never arrived")]
pub struct Gap {
    pub expected: Offset,
    pub got: Offset,
}

/// The range of one partition in a batch.
#[derive(Debug)]
pub struct Part {
    pub key: PositionKey,
    pub start: Offset,
    pub end: Offset,
    pub epoch: Option<LeaderEpoch>,
    chunks: Vec<SharedChunk>,
}

impl Part {
    pub fn records(&self) -> impl Iterator<Item = RecordRef<'_>> + Clone {
        self.chunks.iter().flat_map(|chunk| chunk.records_between(self.start, self.end))
    }
}

/// A micro-batch before decoding.
#[derive(Debug)]
pub struct Taken {
    pub reader: Reader,
    pub sinks: SinkSet,
    pub parts: Vec<Part>,
}

impl Taken {
    /// What comes before the given offsets, each of a part by its place; parts that are not named are
    /// whole. `None` if nothing is left.
    pub fn before(&self, cuts: impl Iterator<Item = (usize, Offset)>) -> Option<Taken> {
        let mut ends: Vec<Offset> = self.parts.iter().map(|part| part.end).collect();
        for (part, offset) in cuts {
            ends[part] = ends[part].min(offset);
        }
        let parts: Vec<Part> = self
            .parts
            .iter()
            .zip(ends)
            .filter(|(part, end)| part.start < *end)
            .map(|(part, end)| Part {
                key: part.key,
                start: part.start,
                end,
                epoch: part.epoch,
                chunks: part.chunks.clone(),
            })
            .collect();
        (!parts.is_empty()).then_some(Taken { reader: self.reader, sinks: self.sinks, parts })
    }

    pub fn records(&self) -> impl Iterator<Item = RecordRef<'_>> + Clone {
        self.parts.iter().flat_map(Part::records)
    }

    /// Of each part, the number of records in it and in those before. Counting takes a look at every record.
    pub fn part_ends(&self) -> Vec<usize> {
        let mut end = 0;
        let ends = self.parts.iter().map(|part| {
            end += part.records().count();
            end
        });
        ends.collect()
    }
}

impl Buffer {
    /// For what is read at the front of partitions.
    pub fn new(limits: BatchLimits) -> Self {
        Self::of(Reader::Front, limits)
    }

    /// For what one reader brings.
    pub fn of(reader: Reader, limits: BatchLimits) -> Self {
        Self {
            reader,
            limits,
            rows_max: limits.rows_max,
            partitions: BTreeMap::new(),
            records: 0,
            bytes: 0,
            oldest: None,
        }
    }

    /// Expects chunks of `assignment` from `from` on; whatever was buffered of the partition is dropped.
    pub fn restart(&mut self, key: PositionKey, assignment: u64, from: Offset, end: Option<Offset>) {
        self.remove(&key);
        let queue = Queue { assignment, taken: from, received: from, end, chunks: VecDeque::new() };
        self.partitions.insert(key, queue);
    }

    pub fn remove(&mut self, key: &PositionKey) {
        if let Some(queue) = self.partitions.remove(key) {
            for chunk in queue.chunks {
                self.records -= chunk.record_count();
                self.bytes -= chunk.size();
            }
        }
        if self.partitions.values().all(|queue| queue.chunks.is_empty()) {
            self.oldest = None;
        }
    }

    /// # Errors
    /// [`Gap`]: going on would skip records in silence.
    pub fn push(&mut self, key: &PositionKey, chunk: SharedChunk, now: Instant) -> Result<Pushed, Gap> {
        let Some(queue) = self.partitions.get_mut(key) else {
            return Ok(Pushed::Stale);
        };
        if queue.assignment != chunk.assignment {
            return Ok(Pushed::Stale);
        }
        if chunk.start != queue.received {
            return Err(Gap { expected: queue.received, got: chunk.start });
        }
        if chunk.end == queue.received {
            return Ok(Pushed::Kept);
        }
        queue.received = chunk.end;
        self.records += chunk.record_count();
        self.bytes += chunk.size();
        self.oldest.get_or_insert(now);
        queue.chunks.push_back(chunk);
        Ok(Pushed::Kept)
    }

    /// Records that are in no batch yet.
    pub fn left(&self) -> usize {
        self.partitions.values().map(Queue::left).sum()
    }

    /// Makes batches of at most so many records.
    pub fn narrow(&mut self, rows_max: usize) {
        self.rows_max = rows_max.clamp(1, self.limits.rows_max);
    }

    pub fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// Makes batches twice as large again, up to the limit. `true` when it is reached.
    pub fn widen(&mut self) -> bool {
        self.rows_max = self.rows_max.saturating_mul(2).min(self.limits.rows_max);
        self.rows_max == self.limits.rows_max
    }

    /// When the buffered chunks have to become a batch whatever their number; `None` if there are none.
    pub fn due(&self) -> Option<Instant> {
        self.oldest.map(|oldest| oldest + self.limits.age_max)
    }

    pub fn is_ready(&self, now: Instant) -> bool {
        self.records >= self.rows_max
            || self.bytes >= self.limits.bytes_max
            || self.due().is_some_and(|due| due <= now)
            || (self.oldest.is_some() && self.is_complete())
    }

    /// Every partition of a bounded run was received up to its end.
    pub fn is_complete(&self) -> bool {
        self.partitions.values().all(|queue| queue.end.is_some_and(|end| queue.received >= end))
    }

    /// Every partition of a bounded run was received up to its end and taken.
    pub fn is_drained(&self) -> bool {
        self.is_complete() && self.partitions.values().all(|queue| queue.chunks.is_empty())
    }

    /// The assignment that is expected for `key`.
    pub fn assignment_of(&self, key: &PositionKey) -> Option<u64> {
        self.partitions.get(key).map(|queue| queue.assignment)
    }

    /// Takes the next batch, within the limits; `None` if nothing is buffered that a sink wants.
    pub fn take(&mut self, ledger: &Ledger) -> Option<Taken> {
        let mut taken = Taken { reader: self.reader, sinks: SinkSet::EMPTY, parts: Vec::new() };
        let (mut rows, mut bytes) = (0, 0);
        let keys: Vec<PositionKey> = self.partitions.keys().copied().collect();
        for key in keys {
            while rows < self.rows_max && bytes < self.limits.bytes_max {
                let room = self.rows_max - rows;
                match self.take_slice(key, ledger, taken.sinks, room) {
                    Step::Nothing => break,
                    Step::Skipped => {}
                    Step::Slice(sinks, slice) => {
                        taken.sinks = sinks;
                        rows += slice.records().count();
                        bytes += slice.records().map(|record| record.size()).sum::<usize>();
                        append(&mut taken.parts, slice);
                    }
                }
            }
        }
        if self.partitions.values().all(|queue| queue.chunks.is_empty()) {
            self.oldest = None;
        }
        (!taken.parts.is_empty()).then_some(taken)
    }

    /// Takes at most `room` records from the first chunk of a partition, if `wanted` sinks want them
    /// (any set, if that is empty).
    fn take_slice(&mut self, key: PositionKey, ledger: &Ledger, wanted: SinkSet, room: usize) -> Step {
        let Some(queue) = self.partitions.get_mut(&key) else {
            return Step::Nothing;
        };
        let limit = queue.end.unwrap_or(Offset::MAX);
        if queue.taken >= limit {
            // Past the end of a bounded run: read, but nobody's.
            queue.taken = queue.received;
        }
        while let Some(chunk) = queue.chunks.pop_front_if(|chunk| chunk.end <= queue.taken) {
            self.records -= chunk.record_count();
            self.bytes -= chunk.size();
        }
        let Some(chunk) = queue.chunks.front() else {
            return Step::Nothing;
        };
        let (sinks, until) = ledger.interest(&key, self.reader, queue.taken);
        if !wanted.is_empty() && sinks != wanted && !sinks.is_empty() {
            return Step::Nothing;
        }
        let mut end = chunk.end.min(limit).min(until.unwrap_or(chunk.end));
        let mut records = chunk.records_between(queue.taken, end);
        // The first record that no longer fits begins the next batch.
        if !sinks.is_empty()
            && let Some(first_left) = records.nth(room)
        {
            end = Offset::new(first_left.offset()).unwrap_or(end);
        }
        let start = std::mem::replace(&mut queue.taken, end);
        if sinks.is_empty() {
            return Step::Skipped;
        }
        let slice = Part { key, start, end, epoch: chunk.epoch, chunks: vec![chunk.clone()] };
        Step::Slice(sinks, slice)
    }
}

enum Step {
    Nothing,
    /// A range that every sink has: nobody's.
    Skipped,
    Slice(SinkSet, Part),
}

/// Joins `slice` to the last part if it goes on there.
fn append(parts: &mut Vec<Part>, slice: Part) {
    match parts.last_mut() {
        Some(part) if part.key == slice.key && part.end == slice.start => {
            part.end = slice.end;
            part.epoch = slice.epoch.or(part.epoch);
            let same = part
                .chunks
                .last()
                .is_some_and(|last| slice.chunks.iter().all(|chunk| std::sync::Arc::ptr_eq(last, chunk)));
            if !same {
                part.chunks.extend(slice.chunks);
            }
        }
        _ => parts.push(slice),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::model::{
        ChunkBuilder, Incoming, Partition, TimestampType, TopicId, TopicName, TopicPartition,
    };

    fn key(partition: i32) -> PositionKey {
        PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(1)), partition: Partition(partition) }
    }

    fn at(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    /// A chunk `[start, end)` with a record at each of `offsets`.
    fn chunk(partition: i32, start: i64, end: i64, offsets: &[i64]) -> SharedChunk {
        let source = TopicPartition::new(&TopicName::new("t"), Partition(partition));
        let mut builder = ChunkBuilder::new(source, 1, at(start));
        for offset in offsets {
            let incoming = Incoming {
                offset: at(*offset),
                timestamp_ms: 0,
                timestamp_type: TimestampType::Create,
                epoch: None,
                key: None,
                value: Some(b"v"),
            };
            builder.push(incoming, std::iter::empty());
        }
        Arc::new(builder.finish(at(end)))
    }

    fn limits(rows_max: usize) -> BatchLimits {
        BatchLimits { rows_max, bytes_max: 1 << 20, age_max: Duration::from_secs(5) }
    }

    fn shape(taken: &Taken) -> Vec<(i32, i64, i64, usize)> {
        taken
            .parts
            .iter()
            .map(|part| (part.key.partition.0, part.start.get(), part.end.get(), part.records().count()))
            .collect()
    }

    #[test]
    fn a_batch_is_cut_at_the_row_limit_and_goes_on_there() {
        let mut ledger = Ledger::new(1);
        let mut buffer = Buffer::new(limits(3));
        for partition in 0..2 {
            ledger.assign(key(partition), &[at(0)]);
            buffer.restart(key(partition), 1, at(0), None);
        }
        let now = Instant::now();
        buffer.push(&key(0), chunk(0, 0, 9, &[1, 4, 5, 8]), now).unwrap();
        buffer.push(&key(1), chunk(1, 0, 2, &[0, 1]), now).unwrap();
        assert!(buffer.is_ready(now));
        assert_eq!(buffer.left(), 6);
        let first = buffer.take(&ledger).unwrap();
        assert_eq!(shape(&first), [(0, 0, 8, 3)]);
        assert_eq!(buffer.left(), 3);
        let second = buffer.take(&ledger).unwrap();
        assert_eq!(shape(&second), [(0, 8, 9, 1), (1, 0, 2, 2)]);
        assert!(buffer.take(&ledger).is_none());
        assert_eq!((buffer.records, buffer.bytes, buffer.due()), (0, 0, None));
    }

    #[test]
    fn ranges_wanted_by_different_sinks_never_share_a_batch() {
        let mut ledger = Ledger::new(2);
        ledger.assign(key(0), &[at(0), at(4)]);
        ledger.assign(key(1), &[at(0), at(0)]);
        let mut buffer = Buffer::new(limits(100));
        buffer.restart(key(0), 1, at(0), None);
        buffer.restart(key(1), 1, at(0), None);
        let now = Instant::now();
        buffer.push(&key(0), chunk(0, 0, 6, &[0, 1, 2, 3, 4, 5]), now).unwrap();
        buffer.push(&key(1), chunk(1, 0, 2, &[0, 1]), now).unwrap();
        let first = buffer.take(&ledger).unwrap();
        assert_eq!(first.sinks, SinkSet::EMPTY.with(0));
        assert_eq!(shape(&first), [(0, 0, 4, 4)]);
        let second = buffer.take(&ledger).unwrap();
        assert_eq!(second.sinks, SinkSet::EMPTY.with(0).with(1));
        assert_eq!(shape(&second), [(0, 4, 6, 2), (1, 0, 2, 2)]);
    }

    #[test]
    fn what_all_sinks_have_is_skipped_and_a_bounded_run_stops_at_its_end() {
        let mut ledger = Ledger::new(1);
        ledger.assign(key(0), &[at(3)]);
        let mut buffer = Buffer::new(limits(100));
        buffer.restart(key(0), 1, at(0), Some(at(5)));
        let now = Instant::now();
        buffer.push(&key(0), chunk(0, 0, 4, &[0, 1, 2, 3]), now).unwrap();
        assert!(!buffer.is_complete());
        buffer.push(&key(0), chunk(0, 4, 9, &[4, 5, 6]), now).unwrap();
        assert!(buffer.is_complete() && buffer.is_ready(now));
        assert_eq!(shape(&buffer.take(&ledger).unwrap()), [(0, 3, 5, 2)]);
        assert!(buffer.take(&ledger).is_none());
        assert_eq!((buffer.records, buffer.due()), (0, None));
    }

    #[test]
    fn gaps_and_stale_chunks_are_told_apart() {
        let mut buffer = Buffer::new(limits(100));
        buffer.restart(key(0), 1, at(5), None);
        let now = Instant::now();
        assert_eq!(buffer.push(&key(0), chunk(0, 7, 8, &[7]), now), Err(Gap { expected: at(5), got: at(7) }));
        assert_eq!(buffer.push(&key(1), chunk(1, 0, 1, &[0]), now), Ok(Pushed::Stale));
        buffer.restart(key(0), 2, at(5), None);
        assert_eq!(buffer.push(&key(0), chunk(0, 5, 6, &[5]), now), Ok(Pushed::Stale));
    }

    #[test]
    fn age_makes_a_batch_ready() {
        let mut buffer = Buffer::new(limits(100));
        buffer.restart(key(0), 1, at(0), None);
        let now = Instant::now();
        buffer.push(&key(0), chunk(0, 0, 1, &[0]), now).unwrap();
        assert!(!buffer.is_ready(now));
        assert!(buffer.is_ready(now + Duration::from_secs(5)));
    }
}
