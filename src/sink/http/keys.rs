//! Keys of rows: the same row has the same key whenever it is sent. Pure.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::model::{Batch, PositionKey};

/// Bytes of a hash that are a key: as many as make two rows with one key a thing that does not happen.
const KEY_BYTES: usize = 16;

/// The keys of the rows of a batch, 22 letters each.
///
/// A row that is made of one record is named by that: `hash(identity, view, topic id, partition, offset, row)`, where `row`
/// counts the rows of the record. The others are named by the ranges of their batch and their number in it, and so have the
/// same key only while batches are cut alike. `None` if origins lead nowhere: a bug of ours.
pub fn of_rows(batch: &Batch, identity: &str, view: &str) -> Option<Vec<String>> {
    let mut base = Sha256::new();
    for part in [identity, view] {
        base.update((part.len() as u64).to_be_bytes());
        base.update(part.as_bytes());
    }
    match (&batch.origins, &batch.offsets) {
        (Some(origins), Some(offsets)) if origins.len() == batch.rows.num_rows() => {
            of_records(&base, batch, origins, offsets)
        }
        (Some(_), _) => None,
        (None, _) => Some(of_ranges(base, batch)),
    }
}

fn of_records(base: &Sha256, batch: &Batch, origins: &[u32], offsets: &[i64]) -> Option<Vec<String>> {
    let mut moves = batch.moves.iter();
    let mut current = moves.next()?;
    // Records up to the end of the current move.
    let mut end = current.records;
    let mut last = None;
    let mut row: u64 = 0;
    let mut keys = Vec::with_capacity(origins.len());
    for origin in origins {
        while u64::from(*origin) >= end {
            current = moves.next()?;
            end += current.records;
        }
        row = if last == Some(origin) { row + 1 } else { 0 };
        last = Some(origin);
        let mut hasher = base.clone();
        hasher.update([b'o']);
        put_place(&current.key, &mut hasher);
        hasher.update(offsets.get(*origin as usize)?.to_be_bytes());
        hasher.update(row.to_be_bytes());
        keys.push(key(hasher));
    }
    Some(keys)
}

fn of_ranges(mut base: Sha256, batch: &Batch) -> Vec<String> {
    base.update([b'r']);
    for step in &batch.moves {
        put_place(&step.key, &mut base);
        base.update(step.start.unwrap_or_default().get().to_be_bytes());
        base.update(step.end.next.get().to_be_bytes());
    }
    let of_row = |row: u64| {
        let mut hasher = base.clone();
        hasher.update(row.to_be_bytes());
        key(hasher)
    };
    (0..batch.rows.num_rows() as u64).map(of_row).collect()
}

fn put_place(key: &PositionKey, hasher: &mut Sha256) {
    hasher.update(key.topic_id.0.as_bytes());
    hasher.update(key.partition.0.to_be_bytes());
}

fn key(hasher: Sha256) -> String {
    URL_SAFE_NO_PAD.encode(&hasher.finalize()[..KEY_BYTES])
}
