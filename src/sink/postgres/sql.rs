//! The SQL of the sink, as text. Names are quoted, values are parameters or come by `COPY`. Pure.

use arrow::datatypes::Schema;

use super::table::{Place, Target};
use super::types;

/// What a batch is copied into: a table of the session, whose columns are `c0`, `c1`, … as it shares no name with anybody.
pub const ROWS: &str = "pg_temp.sidestream_rows";

/// Bytes of a name; longer ones would be cut, and two become one.
pub const NAME_BYTES_MAX: usize = 63;

/// A name, whatever is in it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub fn listed(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// # Errors
/// What is wrong with a column: it has no type.
pub fn create_table(place: &Place, schema: &Schema, keys: &[String]) -> Result<String, String> {
    let mut parts = columns(schema)?.into_iter().map(|(_, column)| column).collect::<Vec<_>>();
    if !keys.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", listed(keys.iter().map(|key| quoted(key)))));
    }
    Ok(format!("CREATE TABLE IF NOT EXISTS {} ({})", place.shown(), parts.join(", ")))
}

/// Adds the columns that are in `missing`.
///
/// # Errors
/// As [`create_table`].
pub fn add_columns(place: &Place, schema: &Schema, missing: &[String]) -> Result<String, String> {
    let added = columns(schema)?.into_iter().filter(|(name, _)| missing.contains(name));
    let added = added.map(|(_, column)| format!("ADD COLUMN IF NOT EXISTS {column}"));
    Ok(format!("ALTER TABLE {} {}", place.shown(), listed(added)))
}

/// Each column's name, and its name with its type. None says `NOT NULL`, so that a schema may widen.
fn columns(schema: &Schema) -> Result<Vec<(String, String)>, String> {
    let each = schema.fields().iter().map(|field| {
        let name = field.name().clone();
        let declared = types::declared(field.data_type())
            .map_err(|data_type| format!("column `{name}` is {data_type}, for which there is no type"))?;
        let column = format!("{} {declared}", quoted(&name));
        Ok((name, column))
    });
    each.collect()
}

/// The table a batch is copied into. Emptied by each end of a transaction.
pub fn create_rows(target: &Target) -> String {
    let columns =
        target.columns.iter().enumerate().map(|(index, column)| format!("c{index} {}", column.declared));
    let mut columns: Vec<String> = columns.collect();
    if target.is_upsert() {
        columns.push("number bigint NOT NULL".to_owned());
        columns.push("is_delete boolean NOT NULL".to_owned());
    }
    if target.is_partial {
        columns.push("missing bytea".to_owned());
    }
    // One of an earlier lane of this session is not there: each sink has a session of its own.
    format!("CREATE TEMPORARY TABLE sidestream_rows ({}) ON COMMIT DELETE ROWS", columns.join(", "))
}

pub fn copy_rows() -> String {
    format!("COPY {ROWS} FROM STDIN (FORMAT binary)")
}

/// Constraints that wait for the end of a transaction are looked at after a merge, where a row can still be refused.
pub const CHECKED: &str = "SET CONSTRAINTS ALL IMMEDIATE";

/// From the copied rows into the target.
pub fn merge(target: &Target, has_deletes: bool) -> String {
    let merge = if target.is_upsert() { upsert(target, has_deletes) } else { append(target) };
    format!("{merge}; {CHECKED}")
}

fn append(target: &Target) -> String {
    let (names, own) = both(target, |_| true);
    format!("INSERT INTO {} ({names}) SELECT {own} FROM {ROWS}", target.place.shown())
}

/// The names in the target and those of the copied rows, of the columns that `is_meant`.
pub fn both(target: &Target, is_meant: impl Fn(usize) -> bool) -> (String, String) {
    let meant = || target.columns.iter().enumerate().filter(|(index, _)| is_meant(*index));
    let names = listed(meant().map(|(_, column)| quoted(&column.name)));
    (names, listed(meant().map(|(index, _)| format!("c{index}"))))
}

/// The last row or delete of each key is what counts.
fn upsert(target: &Target, has_deletes: bool) -> String {
    let removed = if has_deletes { format!("{}; ", remove(target)) } else { String::new() };
    removed + &insert(target, &newest(target), "NOT is_delete")
}

/// The last of the copied rows of each key.
fn newest(target: &Target) -> String {
    let (_, keys) = both(target, |index| target.columns[index].is_key);
    format!("(SELECT DISTINCT ON ({keys}) * FROM {ROWS} ORDER BY {keys}, number DESC) AS newest")
}

/// Deletes all rows. Not `TRUNCATE`: others may read the table, and the right to delete is enough.
pub fn clear(target: &Target) -> String {
    format!("DELETE FROM {}", target.place.shown())
}

/// Removes the rows of keys that are gone.
pub fn remove(target: &Target) -> String {
    let (table, newest) = (target.place.shown(), newest(target));
    let keys = target.columns.iter().enumerate().filter(|(_, column)| column.is_key);
    let same = keys.map(|(index, column)| format!("held.{} = newest.c{index}", quoted(&column.name)));
    let same = same.collect::<Vec<_>>().join(" AND ");
    format!("DELETE FROM {table} AS held USING {newest} WHERE newest.is_delete AND {same}")
}

/// Inserts the rows of `source` that are `wanted`, or updates those that have their keys. Written in the order of keys, so
/// that two writers do not wait for each other.
pub fn insert(target: &Target, source: &str, wanted: &str) -> String {
    let table = target.place.shown();
    let (keys, own_keys) = both(target, |index| target.columns[index].is_key);
    let (names, own) = both(target, |_| true);
    let rest = target.columns.iter().filter(|column| !column.is_key);
    let updates = listed(rest.map(|column| {
        let name = quoted(&column.name);
        format!("{name} = excluded.{name}")
    }));
    let action = match updates.as_str() {
        "" => "NOTHING".to_owned(),
        updates => format!("UPDATE SET {updates}"),
    };
    format!(
        "INSERT INTO {table} ({names}) SELECT {own} FROM {source} WHERE {wanted} ORDER BY {own_keys} \
         ON CONFLICT ({keys}) DO {action}"
    )
}
