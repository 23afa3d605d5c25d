//! Schemas that were learnt, and how much of them is kept: others decide how many there are, and how large.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::model::SchemaKey;

/// Schemas remembered, those that are refused too: garbage may name any number of them.
const SCHEMAS_MAX: usize = 10_000;

/// Bytes of all of them, by the schemas' texts. Routes have some dozens of some kilobytes; the registry's client keeps
/// half of it for the whole process, and what is forgotten here is mostly still there.
const BYTES_MAX: usize = 64 << 20;

/// What each takes besides its text.
const ENTRY_BYTES: usize = 256;

/// What was made of schemas, by what records name them by.
#[derive(Debug)]
pub struct Known<T> {
    /// And its bytes.
    each: HashMap<SchemaKey, (T, usize)>,
    /// The sum.
    bytes: usize,
    /// What the batch names that is waited for. `None`: nobody said, or the others were forgotten for it already.
    needed: Option<Arc<HashSet<SchemaKey>>>,
}

impl<T> Known<T> {
    pub fn new() -> Self {
        Self { each: HashMap::new(), bytes: 0, needed: None }
    }

    pub fn get(&self, key: SchemaKey) -> Option<&T> {
        self.each.get(&key).map(|(schema, _)| schema)
    }

    /// The batch that comes next names these: others may be forgotten, and these are not. What one batch needs may be
    /// more than the bound, or it would be looked up for ever.
    pub fn need(&mut self, keys: &Arc<HashSet<SchemaKey>>) {
        self.needed = Some(Arc::clone(keys));
    }

    /// Keeps `schema`, whose text, or whatever is kept of it, has so many bytes.
    pub fn insert(&mut self, key: SchemaKey, schema: T, bytes: usize) {
        let bytes = bytes.saturating_add(ENTRY_BYTES);
        if let Some((_, former)) = self.each.remove(&key) {
            self.bytes = self.bytes.saturating_sub(former);
        }
        if self.each.len() >= SCHEMAS_MAX || self.bytes.saturating_add(bytes) > BYTES_MAX {
            self.forget();
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.each.insert(key, (schema, bytes));
    }

    /// Once for each batch: whatever is learnt after it is needed too, and looking through all of them takes its time.
    fn forget(&mut self) {
        let Some(needed) = self.needed.take() else {
            return;
        };
        self.each.retain(|key, _| needed.contains(key));
        self.bytes = self.each.values().map(|(_, bytes)| *bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SchemaId;

    const MIB: usize = 1 << 20;

    fn keys(numbers: std::ops::Range<u32>) -> Arc<HashSet<SchemaKey>> {
        Arc::new(numbers.map(|number| SchemaId(number).into()).collect())
    }

    fn learn(known: &mut Known<()>, numbers: std::ops::Range<u32>, bytes: usize) {
        for number in numbers {
            known.insert(SchemaId(number).into(), (), bytes);
        }
    }

    fn knows(known: &Known<()>, number: u32) -> bool {
        known.get(SchemaId(number).into()).is_some()
    }

    #[test]
    fn schemas_of_former_batches_are_forgotten_beyond_a_number_of_bytes() {
        let mut known = Known::new();
        for number in 0..200 {
            known.need(&keys(number..number + 1));
            learn(&mut known, number..number + 1, MIB);
            assert!(known.bytes <= BYTES_MAX && knows(&known, number), "{number}: {}", known.bytes);
        }
        assert!(!knows(&known, 0) && known.each.len() > 1, "{}", known.each.len());
    }

    #[test]
    fn what_one_batch_needs_is_kept_however_much_it_is() {
        let mut known = Known::new();
        known.need(&keys(0..50));
        learn(&mut known, 0..50, MIB);
        // Half of it is known; it is asked twice, as for schemas that only others of it lead to.
        for part in [50..100, 100..150] {
            known.need(&keys(25..150));
            learn(&mut known, part, MIB);
        }
        assert!((25..150).all(|number| knows(&known, number)) && !knows(&known, 24));
        known.need(&keys(149..151));
        learn(&mut known, 150..151, MIB);
        assert_eq!(known.each.len(), 2);
        assert_eq!(known.bytes, 2 * (MIB + ENTRY_BYTES));
    }

    #[test]
    fn there_is_a_bound_for_small_ones_too_and_what_comes_again_counts_once() {
        let mut known = Known::new();
        let count = SCHEMAS_MAX as u32;
        known.need(&keys(0..count));
        learn(&mut known, 0..count, 0);
        learn(&mut known, 0..count, 0);
        assert_eq!((known.each.len(), known.bytes), (SCHEMAS_MAX, SCHEMAS_MAX * ENTRY_BYTES));
        known.need(&keys(count..count + 1));
        learn(&mut known, count..count + 1, 0);
        assert_eq!((known.each.len(), known.bytes), (1, ENTRY_BYTES));
    }
}
