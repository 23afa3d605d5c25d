//! The loop that every typed codec shares: a record becomes a row as a whole, or no row at all.

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use crate::config::plan::Tombstones;
use crate::model::{RecordRef, SchemaKey};

use super::columns::Column;
use super::limits::cut;
use super::{Decoded, Rejected, Side};

/// Why a record is no row.
pub struct Rejection {
    pub code: &'static str,
    pub message: String,
    pub schema_id: Option<SchemaKey>,
}

/// Appends the value of every record with `append`; what it left of a bad one is cut off again.
///
/// # Errors
/// Only for defects of ours: columns that do not fit together.
pub fn fill(
    schema: &SchemaRef,
    tombstones: Tombstones,
    records: &[RecordRef<'_>],
    append: impl FnMut(&RecordRef<'_>, &[u8], &mut [Column]) -> Result<(), Rejection>,
) -> Result<Decoded, ArrowError> {
    fill_side(Side::Value, schema, tombstones, records, append)
}

/// As [`fill`], with values or keys.
///
/// # Errors
/// Likewise.
pub fn fill_side(
    side: Side,
    schema: &SchemaRef,
    tombstones: Tombstones,
    records: &[RecordRef<'_>],
    mut append: impl FnMut(&RecordRef<'_>, &[u8], &mut [Column]) -> Result<(), Rejection>,
) -> Result<Decoded, ArrowError> {
    let mut columns = schema.fields().iter().map(Column::new).collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::with_capacity(records.len());
    let (mut deletes, mut rejected) = (Vec::new(), Vec::new());
    let mut dropped = 0;
    for (index, record) in records.iter().enumerate() {
        let Some(bytes) = side.bytes(record) else {
            match tombstones {
                Tombstones::Skip => dropped += 1,
                Tombstones::Delete => deletes.push(index as u32),
                Tombstones::Keep => {
                    columns.iter_mut().for_each(Column::push_null);
                    rows.push(index as u32);
                }
            }
            continue;
        };
        match append(record, bytes, &mut columns) {
            Ok(()) => rows.push(index as u32),
            Err(Rejection { code, message, schema_id }) => {
                columns.iter_mut().for_each(|column| column.truncate(rows.len()));
                rejected.push(Rejected { index, code, message: cut(message), schema_id });
            }
        }
    }
    let columns = columns.into_iter().map(Column::finish);
    let columns = columns.collect::<Result<Vec<ArrayRef>, _>>()?;
    Ok(Decoded { columns, rows, deletes, gone: Vec::new(), rejected, dropped })
}
