//! Which rows of a decoded batch are for whom. Pure.

use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::handler::{Input, Traced};
use crate::model::{Batch, Deletes, Move};

/// The rows of a decoded batch. With `is_traced` somebody asks which records they are made of.
///
/// # Errors
/// If there is not one origin for each row: a bug of ours, caught here.
pub fn input(
    rows: &RecordBatch,
    origins: &Arc<[u32]>,
    gone: &[u32],
    is_traced: bool,
) -> Result<Input, ArrowError> {
    let all = Traced { rows: rows.clone(), origins: Some(origins.clone()) };
    let live =
        if gone.is_empty() { None } else { Some(all.only(|origin| gone.binary_search(&origin).is_err())?) };
    let asked = |traced: Traced| if is_traced { traced } else { Traced::of(traced.rows) };
    Ok(Input { all: asked(all), live: live.map(asked) })
}

/// The first `count` columns of rows that are there for everybody: what a sink of `batch` is given.
///
/// # Errors
/// If there are fewer columns.
pub fn fields(input: &Input, count: usize) -> Result<Traced, ArrowError> {
    let Traced { rows, origins } = input.live.as_ref().unwrap_or(&input.all);
    let rows = rows.project(&(0..count).collect::<Vec<_>>())?;
    Ok(Traced { rows, origins: origins.clone() })
}

/// What a sink is given. One that takes deletes gets them, and no row of a record that is one: a view may show it, but
/// what is gone must not be put back.
///
/// # Errors
/// If there is not one origin for each row.
pub fn batch(
    moves: Vec<Move>,
    rows: Option<Traced>,
    deletes: &Deletes,
    takes_deletes: bool,
) -> Result<Batch, ArrowError> {
    let rows = rows.unwrap_or_else(|| Traced {
        rows: RecordBatch::new_empty(Arc::new(Schema::empty())),
        origins: Some(Arc::default()),
    });
    if !takes_deletes {
        return Ok(Batch::of_rows(moves, rows.rows));
    }
    let is_in = |numbers: &[u32], origin: u32| numbers.binary_search(&origin).is_ok();
    let rows =
        rows.only(|origin| !is_in(&deletes.origins, origin) && !is_in(&deletes.truncations, origin))?;
    Ok(Batch { moves, rows: rows.rows, origins: rows.origins, offsets: None, deletes: deletes.clone() })
}

/// What a sink is given that tells rows apart by their records; `offsets` are those of all records of the batch.
pub fn placed(moves: Vec<Move>, rows: Option<Traced>, offsets: &Arc<[i64]>) -> Batch {
    match rows {
        Some(Traced { rows, origins }) => {
            Batch { moves, rows, origins, offsets: Some(offsets.clone()), deletes: Deletes::default() }
        }
        None => Batch::of_rows(moves, RecordBatch::new_empty(Arc::new(Schema::empty()))),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    /// Rows 0, 1, … with a column of theirs and one beside.
    fn rows(count: i64) -> RecordBatch {
        let numbers: ArrayRef = Arc::new((0..count).collect::<Int64Array>());
        let names: ArrayRef = Arc::new((0..count).map(|at| Some(format!("n{at}"))).collect::<StringArray>());
        RecordBatch::try_from_iter([("n", numbers), ("_op", names)]).unwrap()
    }

    fn numbers(rows: &RecordBatch) -> Vec<i64> {
        rows.column(0).as_primitive::<Int64Type>().values().to_vec()
    }

    #[test]
    fn rows_of_what_is_gone_are_for_those_who_ask() {
        let origins: Arc<[u32]> = [2, 4, 6].into();
        let input = input(&rows(3), &origins, &[4, 5], true).unwrap();
        assert_eq!(numbers(&input.all.rows), [0, 1, 2]);
        let live = fields(&input, 1).unwrap();
        assert_eq!((numbers(&live.rows), live.rows.num_columns()), (vec![0, 2], 1));
        assert_eq!(live.origins.as_deref(), Some(&[2, 6][..]));
    }

    #[test]
    fn nobody_asks_and_nothing_is_gone() {
        let input = input(&rows(2), &[0, 1].into(), &[], false).unwrap();
        assert!(input.live.is_none() && input.all.origins.is_none());
        assert_eq!(numbers(&fields(&input, 2).unwrap().rows), [0, 1]);
    }

    #[test]
    fn a_deleted_row_is_not_put_back() {
        let keys: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let deletes = Deletes { origins: vec![4], keys: Some(keys), truncations: Vec::new() };
        let traced = || Some(Traced { rows: rows(3), origins: Some([2, 4, 6].into()) });
        let keeps = batch(Vec::new(), traced(), &deletes, true).unwrap();
        assert_eq!((numbers(&keeps.rows), keeps.origins.as_deref()), (vec![0, 2], Some(&[2, 6][..])));
        assert_eq!(keeps.deletes.origins, [4]);
        let appends = batch(Vec::new(), traced(), &deletes, false).unwrap();
        assert_eq!((numbers(&appends.rows), appends.origins), (vec![0, 1, 2], None));
        assert!(appends.deletes.keys.is_none());
        let truncated = Deletes { truncations: vec![6], ..deletes.clone() };
        let truncated = batch(Vec::new(), traced(), &truncated, true).unwrap();
        assert_eq!((numbers(&truncated.rows), truncated.deletes.truncations), (vec![0], vec![6]));
        let empty = batch(Vec::new(), None, &deletes, true).unwrap();
        assert_eq!((empty.rows.num_rows(), empty.deletes.origins.len()), (0, 1));
    }

    #[test]
    fn rows_are_told_apart_by_their_records() {
        let offsets: Arc<[i64]> = [10, 12, 13].into();
        let traced = Traced { rows: rows(2), origins: Some([0, 2].into()) };
        let batch = placed(Vec::new(), Some(traced), &offsets);
        assert_eq!((batch.origins.as_deref(), batch.offsets), (Some(&[0, 2][..]), Some(offsets.clone())));
        assert_eq!(placed(Vec::new(), None, &offsets).rows.num_rows(), 0);
    }
}
