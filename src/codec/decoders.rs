//! The decoders of a route: one, or one for each of its record types.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::model::{Deletes, RecordRef, SchemaKey, SchemaVersion};

use super::sorter::{Sorted, Sorter};
use super::{DecodedBatch, Decoder, Learnt, Rejected, Side};

/// What reads the records of a route.
pub struct Decoders {
    each: Vec<Decoder>,
    /// `None` if all records are of one type.
    sorter: Option<Sorter>,
}

/// A decoded batch of all types. Every record is a row of one of them, rejected once, dropped, or a delete; a delete may
/// be a row besides.
#[derive(Debug)]
pub struct DecodedTypes {
    /// By decoder.
    pub types: Vec<TypeRows>,
    /// In the order of the records.
    pub rejected: Vec<Rejected>,
    /// Indexes of records dropped by an explicit rule (`tombstones: skip`; deletes that nobody wants), ascending.
    pub dropped: Vec<usize>,
}

/// What records of one type became. Indexes are those of the batch of all types.
#[derive(Debug)]
pub struct TypeRows {
    /// Always of the decoder's [`Decoder::batch_schema`].
    pub rows: RecordBatch,
    /// For each row, the index of its record, ascending.
    pub origins: Arc<[u32]>,
    pub deletes: Deletes,
    /// Indexes of records whose row tells of a change that leaves none, ascending.
    pub gone: Vec<u32>,
}

impl DecodedTypes {
    /// Adds what a decoder made of `count` records, which are at these `places` of the batch, ascending; of the whole
    /// batch if there are none.
    fn add(&mut self, decoded: DecodedBatch, count: usize, places: Option<&[usize]>) {
        let place = |index: usize| places.map_or(index, |places| places[index]);
        if decoded.dropped > 0 {
            self.dropped.extend(left_out(count, &decoded).into_iter().map(place));
        }
        let DecodedBatch { rows, origins, deletes, gone, rejected, dropped: _ } = decoded;
        self.rejected.extend(rejected.into_iter().map(|bad| Rejected { index: place(bad.index), ..bad }));
        let placed = |own: Vec<u32>| match places {
            Some(places) => own.into_iter().map(|index| places[index as usize] as u32).collect(),
            None => own,
        };
        let deletes = Deletes {
            origins: placed(deletes.origins),
            keys: deletes.keys,
            truncations: placed(deletes.truncations),
        };
        let origins = placed(origins).into();
        self.types.push(TypeRows { rows, origins, deletes, gone: placed(gone) });
    }
}

/// The records of a batch of `count` that became nothing: no row, no delete, no bad record.
fn left_out(count: usize, decoded: &DecodedBatch) -> Vec<usize> {
    let mut is_there = vec![false; count];
    let numbers = decoded.origins.iter().chain(&decoded.deletes.origins).map(|number| *number as usize);
    for number in numbers.chain(decoded.rejected.iter().map(|bad| bad.index)) {
        is_there[number] = true;
    }
    (0..count).filter(|number| !is_there[*number]).collect()
}

/// All records are of one type.
impl From<Decoder> for Decoders {
    fn from(decoder: Decoder) -> Self {
        Self { each: vec![decoder], sorter: None }
    }
}

impl Decoders {
    /// One decoder for each type that `sorter` tells apart; without one the decoder of all records.
    pub fn new(each: Vec<Decoder>, sorter: Option<Sorter>) -> Self {
        Self { each, sorter }
    }

    /// In the order of the route's record types.
    pub fn each(&self) -> &[Decoder] {
        &self.each
    }

    /// The versions of subjects that values and keys are read as, each once.
    pub fn versions(&self) -> Vec<&SchemaVersion> {
        let mut versions = Vec::new();
        for decoder in &self.each {
            for version in Side::BOTH.into_iter().filter_map(|side| decoder.version(side)) {
                if !versions.contains(&version) {
                    versions.push(version);
                }
            }
        }
        versions
    }

    /// Why records cannot be read whose value or key was written with a schema, which was learnt.
    pub fn refusals(&self, key: SchemaKey) -> impl Iterator<Item = &str> {
        let of_types = self.each.iter().flat_map(move |decoder| {
            Side::BOTH.into_iter().filter_map(move |side| decoder.refusal(side, key))
        });
        of_types.chain(self.sorter.as_ref().and_then(|sorter| sorter.refusal(key)))
    }

    /// The schemas that a record names: of its value, and of its key if that is read.
    pub fn named(&self, record: &RecordRef<'_>) -> impl Iterator<Item = SchemaKey> {
        self.each.iter().flat_map(move |decoder| decoder.named(record))
    }

    /// Schemas that `records` name and that have to be learnt first.
    pub fn missing(&self, records: &[RecordRef<'_>]) -> Vec<SchemaKey> {
        let Some(sorter) = &self.sorter else {
            return self.each.iter().flat_map(|decoder| decoder.missing(records)).collect();
        };
        let mut missing = sorter.missing(records);
        let mut seen: HashSet<SchemaKey> = missing.iter().copied().collect();
        for (decoder, indexes) in self.each.iter().zip(sorter.sort(records).types) {
            let of_type = decoder.missing(&chosen(records, &indexes));
            missing.extend(of_type.into_iter().filter(|key| seen.insert(*key)));
        }
        missing
    }

    /// `records` come next, and some of their schemas are missing: those that they do not name may be forgotten when these
    /// are learnt. Without it everything is kept.
    pub fn need(&mut self, records: &[RecordRef<'_>]) {
        let mut keys: HashSet<SchemaKey> = records.iter().flat_map(|record| self.named(record)).collect();
        if let Some(sorter) = &self.sorter {
            keys.extend(records.iter().filter_map(|record| sorter.named(record)));
        }
        let keys = Arc::new(keys);
        if let Some(sorter) = &mut self.sorter {
            sorter.need(&keys);
        }
        self.each.iter_mut().for_each(|decoder| decoder.need(&keys));
    }

    /// Takes what the registry has under `key`. A decoder is told of the values that may come to it.
    pub fn learn(&mut self, key: SchemaKey, schema: Learnt) {
        let types = self.sorter.as_mut().map(|sorter| sorter.learn(key, &schema));
        for (place, decoder) in self.each.iter_mut().enumerate() {
            if types.as_ref().is_none_or(|types| types.contains(&place)) {
                decoder.learn(key, schema.clone());
            } else {
                decoder.learn_of_keys(key, schema.clone());
            }
        }
    }

    /// Decodes all of `records`, those of each type with its decoder.
    ///
    /// # Errors
    /// Only for defects of ours: columns that do not fit together.
    pub fn decode<'a>(
        &self,
        records: &[RecordRef<'a>],
        decode: impl Fn(&Decoder, &[RecordRef<'a>]) -> Result<DecodedBatch, ArrowError>,
    ) -> Result<DecodedTypes, ArrowError> {
        let types = Vec::with_capacity(self.each.len());
        let Some(sorter) = &self.sorter else {
            let mut all = DecodedTypes { types, rejected: Vec::new(), dropped: Vec::new() };
            for decoder in &self.each {
                all.add(decode(decoder, records)?, records.len(), None);
            }
            return Ok(all);
        };
        let Sorted { types: places, rejected, tombstones } = sorter.sort(records);
        let mut all = DecodedTypes { types, rejected, dropped: tombstones };
        for (decoder, places) in self.each.iter().zip(places) {
            let own = chosen(records, &places);
            all.add(decode(decoder, &own)?, own.len(), Some(&places));
        }
        all.rejected.sort_by_key(|bad| bad.index);
        all.dropped.sort_unstable();
        Ok(all)
    }
}

/// The records with these indexes.
fn chosen<'a>(records: &[RecordRef<'a>], indexes: &[usize]) -> Vec<RecordRef<'a>> {
    indexes.iter().map(|index| records[*index]).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    /// Of six records: two rows, one of which tells of a delete besides, a delete, a bad one, and two that are dropped.
    fn decoded() -> DecodedBatch {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![10, 11]));
        let keys: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        DecodedBatch {
            rows: RecordBatch::try_from_iter([("n", column)]).unwrap(),
            origins: vec![0, 3],
            deletes: Deletes { origins: vec![1, 3], keys: Some(keys), truncations: vec![3] },
            gone: vec![3],
            rejected: vec![Rejected { index: 5, code: "framing", message: String::new(), schema_id: None }],
            dropped: 2,
        }
    }

    #[test]
    fn what_became_nothing_is_known() {
        assert_eq!(left_out(6, &decoded()), [2, 4]);
    }

    #[test]
    fn all_that_tells_of_records_is_in_the_places_of_the_batch() {
        let mut all = DecodedTypes { types: Vec::new(), rejected: Vec::new(), dropped: Vec::new() };
        all.add(decoded(), 6, Some(&[1, 3, 4, 8, 9, 20]));
        all.add(decoded(), 6, None);
        let [placed, whole] = all.types.as_slice() else { panic!("{all:?}") };
        assert_eq!((placed.origins.to_vec(), placed.gone.clone()), (vec![1, 8], vec![8]));
        assert_eq!(
            (placed.deletes.origins.as_slice(), placed.deletes.truncations.as_slice()),
            (&[3, 8][..], &[8][..])
        );
        assert_eq!(placed.deletes.keys.as_ref().map(|keys| keys.len()), Some(2));
        assert_eq!(placed.rows.column(0).as_primitive::<Int64Type>().values().to_vec(), [10, 11]);
        assert_eq!((whole.origins.to_vec(), whole.gone.clone()), (vec![0, 3], vec![3]));
        assert_eq!(all.rejected.iter().map(|bad| bad.index).collect::<Vec<_>>(), [20, 5]);
        assert_eq!(all.dropped, [4, 9, 2, 4]);
    }
}
