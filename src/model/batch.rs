//! What sinks are given.

use std::fmt;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;

use super::Move;

/// Rows of one view for one sink, and the moves they stand for.
///
/// The moves are contiguous ranges, one per partition, each wholly new to the sink: sinks never
/// compare rows. A batch without rows still moves positions.
#[derive(Debug, Clone)]
pub struct Batch {
    pub moves: Vec<Move>,
    pub rows: RecordBatch,
    /// For each row, the number of its record among those of the batch, ascending. `None` where rows are not
    /// made of one record each (an aggregate), or nobody asked.
    pub origins: Option<Arc<[u32]>>,
    /// The offset of each record of the batch, in the order of the moves, of which each has its number of them. `None`
    /// if nobody asked.
    pub offsets: Option<Arc<[i64]>>,
    /// Keys that are gone, for sinks that update by key; the others have nothing to do with them.
    pub deletes: Deletes,
}

impl Batch {
    /// Rows that nobody has to take apart.
    pub fn of_rows(moves: Vec<Move>, rows: RecordBatch) -> Self {
        Self { moves, rows, origins: None, offsets: None, deletes: Deletes::default() }
    }
}

/// Keys whose rows are to go, in order with the rows: a delete comes after the rows of lower numbers, and before those
/// of higher ones.
#[derive(Debug, Clone, Default)]
pub struct Deletes {
    /// For each, the number of its record among those of the batch, ascending.
    pub origins: Vec<u32>,
    /// The decoded record keys, one for each; of the type of column `_key`. `None` if there are none.
    pub keys: Option<ArrayRef>,
    /// Numbers of records that say that all keys are gone, ascending: of a table that was truncated.
    pub truncations: Vec<u32>,
}

/// A set of a route's sinks, by their place in the route (at most 64, see `config`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SinkSet(u64);

impl SinkSet {
    /// More sinks than this on one route are refused by `check`.
    pub const SINKS_MAX: usize = 64;
    pub const EMPTY: SinkSet = SinkSet(0);
    /// All sinks, however many there are.
    pub const ALL: SinkSet = SinkSet(u64::MAX);

    #[must_use]
    pub fn with(self, sink: usize) -> Self {
        debug_assert!(sink < Self::SINKS_MAX);
        Self(self.0 | 1 << sink)
    }

    pub fn contains(self, sink: usize) -> bool {
        self.0 >> sink & 1 == 1
    }

    /// Those that are not in `others`.
    #[must_use]
    pub fn minus(self, others: SinkSet) -> Self {
        Self(self.0 & !others.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..Self::SINKS_MAX).filter(move |sink| self.contains(*sink))
    }
}

impl FromIterator<usize> for SinkSet {
    fn from_iter<I: IntoIterator<Item = usize>>(sinks: I) -> Self {
        sinks.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for SinkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
