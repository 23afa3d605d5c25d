//! Rows that leave values out: a change event does not send a large value that did not change.
//!
//! The column `_unavailable` of a row names them. Such a row keeps what its table has there: it updates the row that is
//! there, and is refused if none is. Within a batch, the last value that was sent for a key since it was last deleted is
//! what counts, column by column.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use super::sql::{self, ROWS, both, listed, quoted};
use super::table::Target;

/// The column that names what was not sent of a row. It is not written.
pub const UNAVAILABLE: &str = "_unavailable";

/// Do values of this type name columns?
pub fn names_columns(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(item) if *item.data_type() == DataType::Utf8)
}

/// The columns of rows that the table gets.
pub fn written(schema: &Schema) -> SchemaRef {
    let fields: Fields =
        schema.fields().iter().filter(|field| field.name() != UNAVAILABLE).cloned().collect();
    Arc::new(Schema::new(fields))
}

/// Which columns of the rows of a batch were not sent.
#[derive(Debug, Default)]
pub struct Missing {
    /// For each row with such columns, a byte for each column of the target: 1 if it was not sent.
    masks: Vec<Option<Vec<u8>>>,
    /// Places of the columns that some row leaves out, ascending. A key is none of them.
    pub columns: Vec<usize>,
}

impl Missing {
    /// `None` if the rows do not say it.
    pub fn of(target: &Target, rows: &RecordBatch) -> Option<Self> {
        if rows.num_rows() == 0 {
            return Some(Self::default());
        }
        let names = rows.column_by_name(UNAVAILABLE)?.as_list_opt::<i32>()?;
        let mut masks = Vec::with_capacity(names.len());
        let mut is_missing = vec![false; target.columns.len()];
        for row in 0..names.len() {
            if names.is_null(row) {
                masks.push(None);
                continue;
            }
            let of_row = names.value(row);
            let mut mask = None;
            // Columns that a view leaves out are not in the target.
            for name in of_row.as_string_opt::<i32>()?.iter().flatten() {
                let found = target.columns.iter().position(|column| column.name == name && !column.is_key);
                if let Some(place) = found {
                    is_missing[place] = true;
                    mask.get_or_insert_with(|| vec![0_u8; target.columns.len()])[place] = 1;
                }
            }
            masks.push(mask);
        }
        let columns = (0..is_missing.len()).filter(|place| is_missing[*place]).collect();
        Some(Self { masks, columns })
    }

    /// The bytes for a row; `None` if it is whole.
    pub fn mask(&self, row: usize) -> Option<&[u8]> {
        self.masks.get(row)?.as_deref()
    }
}

/// Merges copied rows of which some leave values of the columns at `missing` out. One statement; its one value is the number
/// of keys whose values nobody knows, as there is no row to keep them of. With such a key nothing may be committed. Deletes
/// have been carried out before.
pub fn merge(target: &Target, missing: &[usize]) -> String {
    let table = target.place.shown();
    let is_key = |place: usize| target.columns[place].is_key;
    let is_missing = |place: usize| missing.contains(&place);
    let (_, keys) = both(target, is_key);
    let places = || 0..target.columns.len();
    // A row is told from those before a delete of its key by how many of these there were.
    let steps = format!(
        "SELECT *, count(*) FILTER (WHERE is_delete) OVER (PARTITION BY {keys} ORDER BY number) AS life FROM {ROWS}"
    );
    let newest = format!("SELECT DISTINCT ON ({keys}) * FROM steps ORDER BY {keys}, number DESC");
    let values = missing.iter().map(|place| {
        let is_sent = format!("missing IS NULL OR get_byte(missing, {place}) = 0");
        format!(
            "(array_agg(c{place} ORDER BY number DESC) FILTER (WHERE {is_sent}))[1] AS v{place}, \
             bool_or({is_sent}) AS is_sent{place}"
        )
    });
    let sent = format!(
        "SELECT {keys}, life, {} FROM steps WHERE NOT is_delete GROUP BY {keys}, life",
        listed(values)
    );
    let columns = places().map(|place| {
        if is_missing(place) {
            format!("sent.v{place} AS c{place}, sent.is_sent{place}")
        } else {
            format!("newest.c{place}")
        }
    });
    let all_sent: Vec<String> = missing.iter().map(|place| format!("sent.is_sent{place}")).collect();
    let all_sent = all_sent.join(" AND ");
    let same_keys = places().filter(|place| is_key(*place));
    let same_keys: Vec<String> =
        same_keys.map(|place| format!("sent.c{place} = newest.c{place} AND ")).collect();
    let folded = format!(
        "SELECT {}, newest.life, NOT ({all_sent}) AS is_partial FROM newest JOIN sent \
         ON {}sent.life = newest.life WHERE NOT newest.is_delete",
        listed(columns),
        same_keys.concat()
    );
    let updates = places().filter(|place| !is_key(*place)).map(|place| {
        let name = quoted(&target.columns[place].name);
        if is_missing(place) {
            format!("{name} = CASE WHEN folded.is_sent{place} THEN folded.c{place} ELSE held.{name} END")
        } else {
            format!("{name} = folded.c{place}")
        }
    });
    let held = places().filter(|place| is_key(*place));
    let held: Vec<String> = held
        .map(|place| format!(" AND held.{} = folded.c{place}", quoted(&target.columns[place].name)))
        .collect();
    let updated = format!(
        "UPDATE {table} AS held SET {} FROM folded WHERE folded.is_partial AND folded.life = 0{} RETURNING 1",
        listed(updates),
        held.concat()
    );
    let inserted = sql::insert(target, "folded", "NOT is_partial");
    format!(
        "WITH steps AS ({steps}), newest AS ({newest}), sent AS ({sent}), folded AS MATERIALIZED ({folded}), \
         updated AS ({updated}), inserted AS ({inserted}) \
         SELECT (SELECT count(*) FROM folded WHERE is_partial) - (SELECT count(*) FROM updated)"
    )
}
