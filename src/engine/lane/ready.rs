//! A taken batch, decoded: rows by record type, and what was set aside.

use std::collections::BTreeSet;

use arrow::array::Array;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::codec::{DecodedBatch, DecodedTypes, Decoder, Rejected, TypeRows, letters};
use crate::config::plan::BadRecords;
use crate::cores;
use crate::engine::batching::Taken;
use crate::engine::message::Place;
use crate::engine::tally::Outcome;
use crate::model::{Deletes, Offset, RecordRef, code};

use super::Lane;

/// A decoded batch: all columns of `batch` in SQL, and what was set aside.
pub struct Ready {
    /// By record type.
    pub types: Vec<TypeRows>,
    pub records: u64,
    /// Records that are left out by a rule: of which part of the batch, and where in it.
    pub dropped: Vec<(usize, Offset)>,
    /// In the order of the records, each of which is there once.
    pub bad: Vec<Bad>,
    /// The rows of those that become dead letters.
    pub letters: Option<RecordBatch>,
}

impl Ready {
    /// Rows of all types.
    pub fn row_count(&self) -> usize {
        self.types.iter().map(|own| own.rows.num_rows()).sum()
    }

    /// The place in `bad` of the first record that the route stops at.
    pub fn stops_at(&self) -> Option<usize> {
        self.bad.iter().position(|bad| bad.policy == BadRecords::Stop)
    }

    /// What became of the records `[start, end)` of a part of the batch.
    pub fn outcome(&self, taken: &Taken, part: usize, start: Offset, end: Offset) -> Outcome {
        let is_within = move |offset: i64| (start.get()..end.get()).contains(&offset);
        let mut outcome = Outcome::default();
        let mut set_aside = BTreeSet::new();
        let first = self.bad.partition_point(|bad| bad.part < part);
        let of_part = self.bad[first..].iter().take_while(|bad| bad.part == part);
        for bad in of_part.filter(|bad| is_within(bad.offset().get())) {
            *outcome.bad.entry(bad.rejected.code).or_default() += 1;
            set_aside.insert(bad.offset().get());
        }
        let records = taken.parts[part].records().filter(|record| is_within(record.offset()));
        let good = (records.count() as u64).saturating_sub(set_aside.len() as u64);
        let is_dropped = |(of, offset): &&(usize, Offset)| *of == part && is_within(offset.get());
        outcome.dropped = self.dropped.iter().filter(is_dropped).count() as u64;
        outcome.rows = good.saturating_sub(outcome.dropped);
        outcome
    }
}

/// A record that was set aside, where it is, and what follows.
pub struct Bad {
    pub rejected: Rejected,
    pub policy: BadRecords,
    pub part: usize,
    pub place: Place,
}

impl Bad {
    pub fn offset(&self) -> Offset {
        self.place.offset.unwrap_or_default()
    }

    /// What is to be done if the route stops at it.
    pub fn remedy(&self) -> String {
        let mend = match self.rejected.code {
            code::RECORD_TYPE => {
                return "name its type under `record_types`, or say there what becomes of all others, for example \
                        `\"*\": {bad_records: skip}`"
                    .to_owned();
            }
            code::SQL_EVALUATION => {
                "guard the expression in the view, for example with `try_cast` or `nullif`"
            }
            _ => "mend the producer",
        };
        format!("{mend}, or set `bad_records: {{dead_letter: …}}` or `skip` for this route")
    }
}

pub fn place_of(record: &RecordRef<'_>) -> Place {
    Place::new(record.source(), Offset::new(record.offset()))
}

/// What Arrow's offsets reach.
const COLUMN_BYTES_MAX: usize = i32::MAX as usize;

/// Decodes slices of the records side by side, as many as cores are free.
fn decode_on_free_cores(decoder: &Decoder, records: &[RecordRef<'_>]) -> Result<DecodedBatch, ArrowError> {
    let cores = cores::lend(records.len() / cores::ROWS_MIN);
    if cores.count() == 1 {
        return decoder.decode(records);
    }
    let size = records.len().div_ceil(cores.count());
    let parts = cores.map(records.chunks(size).collect(), |slice| decoder.decode(slice));
    let memory = |part: &Result<DecodedBatch, ArrowError>| {
        part.as_ref().map_or(0, |part| part.rows.get_array_memory_size())
    };
    if parts.iter().map(memory).sum::<usize>() >= COLUMN_BYTES_MAX {
        // A column would not fit; decoded as one, the record that is too much is a bad record.
        return decoder.decode(records);
    }
    let mut batches = Vec::with_capacity(parts.len());
    let (mut rejected, mut dropped) = (Vec::new(), 0);
    let (mut origins, mut gone, mut deletes, mut keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut truncations = Vec::new();
    for (number, part) in parts.into_iter().enumerate() {
        let part = part?;
        let before = number * size;
        let moved = part.rejected.into_iter().map(|bad| Rejected { index: before + bad.index, ..bad });
        rejected.extend(moved);
        let shift = |number: u32| before as u32 + number;
        origins.extend(part.origins.into_iter().map(shift));
        gone.extend(part.gone.into_iter().map(shift));
        deletes.extend(part.deletes.origins.into_iter().map(shift));
        truncations.extend(part.deletes.truncations.into_iter().map(shift));
        keys.extend(part.deletes.keys);
        dropped += part.dropped;
        batches.push(part.rows);
    }
    let rows = arrow::compute::concat_batches(decoder.batch_schema(), &batches)?;
    let keys: Vec<&dyn Array> = keys.iter().map(AsRef::as_ref).collect();
    let keys = if keys.is_empty() { None } else { Some(arrow::compute::concat(&keys)?) };
    let deletes = Deletes { origins: deletes, keys, truncations };
    Ok(DecodedBatch { rows, origins, deletes, gone, rejected, dropped })
}

impl Lane {
    pub(super) fn decode(&self, taken: &Taken) -> Result<Ready, ArrowError> {
        let records: Vec<RecordRef<'_>> = taken.records().collect();
        let DecodedTypes { types, mut rejected, mut dropped } =
            self.parts.decoders.decode(&records, decode_on_free_cores)?;
        // Of types that the route has no use for, which is no fault of theirs.
        let is_dropped = |bad: &Rejected| {
            bad.code == code::RECORD_TYPE && self.parts.other_types == Some(BadRecords::Skip)
        };
        dropped.extend(rejected.iter().filter(|bad| is_dropped(bad)).map(|bad| bad.index));
        rejected.retain(|bad| !is_dropped(bad));
        let letters = rejected.iter().filter(|bad| self.policy(bad) == BadRecords::DeadLetter);
        let letters: Vec<_> = letters.map(|bad| (records[bad.index], bad)).collect();
        let letters = match letters.as_slice() {
            [] => None,
            letters => Some(letters::build(&self.parts.route, letters)?),
        };
        // Counted once: a batch may have thousands of them.
        let ends = taken.part_ends();
        let part_of = |index: usize| ends.partition_point(|end| *end <= index);
        let dropped = dropped.into_iter().filter_map(|index| {
            let offset = Offset::new(records[index].offset())?;
            Some((part_of(index), offset))
        });
        let dropped = dropped.collect();
        let bad = rejected.into_iter().map(|rejected| {
            let (part, place) = (part_of(rejected.index), place_of(&records[rejected.index]));
            Bad { policy: self.policy(&rejected), rejected, part, place }
        });
        let bad = bad.collect();
        Ok(Ready { types, records: records.len() as u64, dropped, bad, letters })
    }

    /// What follows for a record that is set aside.
    fn policy(&self, bad: &Rejected) -> BadRecords {
        match self.parts.other_types {
            Some(policy) if bad.code == code::RECORD_TYPE => policy,
            _ => self.parts.bad_records,
        }
    }
}
