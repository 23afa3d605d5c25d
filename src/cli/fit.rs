//! Do the rows of a route fit its sinks, as far as that shows without what is there?

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, IntervalUnit, Schema, SchemaRef};

use crate::codec::debezium::{UNAVAILABLE, may_be_unavailable};
use crate::codec::letters;
use crate::codec::meta::KEY;
use crate::config::plan::{
    FileFormat, PartitionBy, Postgres, PrimaryKey, Route, Sink, TableRows, Target, Truncate,
};
use crate::config::{Problem, Span};
use crate::handler::Made;
use crate::sink::file::{self, AvroFormat};
use crate::sink::kafka::check_columns;
use crate::sink::{delta, http, postgres};

use super::build::{self, BoundType};
use super::changes;

/// What is wrong with the rows of a route's sinks.
pub fn problems(route: &Route, bound: BoundType<'_>) -> Vec<Problem> {
    let whole = Span { line: 1, column: 1 };
    let problem = |message: String| vec![Problem::new(whole, format!("route `{}`: {message}", route.name))];
    let mut problems = Vec::new();
    let outputs = route.sinks.iter().map(|sink| (sink, bound.schema(sink)));
    let letters = route.dead_letters.iter().map(|sink| (sink, letters::schema()));
    for (sink, rows) in outputs.chain(letters) {
        if sink.target.is_upsert() && !bound.is_of_records(sink) {
            let what = "its view does not make each row of one record, and rows would replace what was counted before";
            let all = problem(format!("sink `{}`: {what}", sink.name)).into_iter();
            problems.extend(all.map(|it| it.hint("aggregate where the rows are read, or append them")));
        }
        if route.truncate == Truncate::Delete && changes::taking(bound, sink).key().is_some() {
            let what =
                "with `truncate: delete` its topic would have to be emptied, which cannot be done by key";
            let all = problem(format!("sink `{}`: {what}", sink.name)).into_iter();
            problems.extend(all.map(|it| it.hint("`truncate: ignore`, or a route of its own")));
        }
        if let Err(wrong) = check_named(&sink.target, &rows) {
            problems.extend(problem(format!("sink `{}`: {wrong}", sink.name)));
        }
        if let Some(options) = build::kafka_options(sink)
            && let Err(wrong) = check_columns(&rows, &options)
        {
            problems.extend(problem(format!("sink `{}`: {wrong}", sink.name)));
        }
        if let Target::Postgres(table) = &sink.target
            && let Err(wrong) = check_table(table, &rows, &bound.key_type(), route.has_deletes())
        {
            problems.extend(problem(format!("sink `{}`: {wrong}", sink.name)));
        }
        if let Target::Postgres(table) = &sink.target
            && table.rows != TableRows::Append
            && let Err(wrong) = check_unsent(bound, sink)
        {
            let hint = "or leave `_unavailable` out, and set REPLICA IDENTITY FULL for the source's table";
            let all = problem(format!("sink `{}`: {wrong}", sink.name)).into_iter();
            problems.extend(all.map(|it| it.hint(hint)));
        }
        if let Target::Delta(_) = &sink.target
            && let Ok(partitions) = build::partition_fields(sink, &rows)
            && let Err(wrong) = delta::check_schema(&rows, &partitions)
        {
            let all = problem(format!("sink `{}`: {wrong}", sink.name)).into_iter();
            problems.extend(
                all.map(|it| it.hint("let the sink read a view that casts, renames or leaves it out")),
            );
        }
        if matches!(&sink.target, Target::Files { format: FileFormat::Parquet(_), .. })
            && let Some((path, what)) = unfit_for_parquet(rows.fields())
        {
            let message = format!("sink `{}`: column `{path}` is {what}", sink.name);
            let all = problem(message).into_iter();
            problems.extend(
                all.map(|it| it.hint("Parquet has no such type: let the sink read a view without it")),
            );
        }
        if let Target::Files { format: FileFormat::Avro { record_name, .. }, partition_by, .. } = &sink.target
            && let Err(unfit) = AvroFormat::writer(&in_files(&rows, partition_by), record_name)
        {
            problems.extend(problem(format!("sink `{}`: {unfit}", sink.name)));
        }
    }
    problems
}

/// What a target says of columns by name, against the columns that it would get.
fn check_named(target: &Target, rows: &SchemaRef) -> Result<(), String> {
    match target {
        Target::Files { format: FileFormat::Parquet(options), partition_by, .. } => {
            let partitions: Vec<&str> = partition_by.iter().map(|level| level.name.as_str()).collect();
            file::check_columns(rows, &partitions, options)
        }
        Target::Http(options) => http::check_columns(rows, options),
        Target::Files { .. }
        | Target::Console { .. }
        | Target::Kafka { .. }
        | Target::Postgres(_)
        | Target::Delta(_) => Ok(()),
    }
}

/// The columns that are left for files: those that partitions are named after are in the names of directories.
fn in_files(rows: &SchemaRef, partition_by: &[PartitionBy]) -> SchemaRef {
    let is_partition = |field: &Arc<Field>| partition_by.iter().any(|level| level.name == *field.name());
    let fields: Fields = rows.fields().iter().filter(|field| !is_partition(field)).cloned().collect();
    Arc::new(Schema::new(fields))
}

/// The columns that rows of a table are known by; none where they are appended. `key` is the type of record keys.
pub fn table_keys(table: &Postgres, key: &DataType) -> Vec<String> {
    match &table.rows {
        TableRows::Append => Vec::new(),
        TableRows::Upsert(PrimaryKey::Columns(columns)) => columns.clone(),
        TableRows::Upsert(PrimaryKey::RecordKey) => postgres::record_key(key, KEY),
    }
}

/// Can such rows be written to a table, and deletes with record keys of the type `key`? The table itself is looked at when
/// it is opened.
fn check_table(table: &Postgres, rows: &SchemaRef, key: &DataType, has_deletes: bool) -> Result<(), String> {
    postgres::check_url(table).map_err(|wrong| format!("`url`: {wrong}"))?;
    let keys = table_keys(table, key);
    postgres::check_schema(rows, &keys)?;
    if !has_deletes {
        return Ok(());
    }
    postgres::check_deletes(key, rows, &keys).map_err(|wrong| format!("deletes: {wrong}"))
}

/// A table keeps the values that were not sent of a change if its rows have their columns as they are. What a view makes of
/// them would be made of nulls that are none.
fn check_unsent(bound: BoundType<'_>, sink: &Sink) -> Result<(), String> {
    let rows = bound.schema(sink);
    let Some(view) = sink.from.filter(|_| rows.field_with_name(UNAVAILABLE).is_ok()) else {
        return Ok(());
    };
    let Some(lineage) = bound.views.lineage(view) else {
        return Err("its view does more than choose rows and compute columns of them, and what was not sent of a change \
                    cannot be told from null there"
            .to_owned());
    };
    let batch = bound.decoder.schema();
    let is_unsure =
        |name: &str| batch.field_with_name(name).is_ok_and(|field| may_be_unavailable(field.data_type()));
    if let Some(name) = lineage.chosen_by.iter().find(|name| is_unsure(name)) {
        return Err(format!("its view chooses rows by `{name}`, which a change may leave out"));
    }
    for (field, made) in rows.fields().iter().zip(&lineage.columns) {
        if matches!(made, Made::Is(name) if name == field.name()) {
            continue;
        }
        if let Some(name) = made.columns().into_iter().find(|name| is_unsure(name)) {
            let column = field.name();
            return Err(format!(
                "its column `{column}` is made of `{name}`, which a change may leave out: select `{name}` as it is, under its \
                 name"
            ));
        }
    }
    Ok(())
}

/// The path of a column, at any depth, that the Parquet writer cannot write, and what it is.
fn unfit_for_parquet(fields: &Fields) -> Option<(String, &'static str)> {
    fields.iter().find_map(|field| {
        let unfit = |what| Some((field.name().clone(), what));
        let inner = match field.data_type() {
            DataType::Struct(inner) if inner.is_empty() => return unfit("a record without fields"),
            DataType::Interval(IntervalUnit::MonthDayNano) => return unfit("an interval"),
            DataType::Struct(inner) => unfit_for_parquet(inner),
            DataType::List(inner) | DataType::LargeList(inner) | DataType::Map(inner, _) => {
                unfit_for_parquet(&Fields::from(vec![inner.clone()]))
            }
            _ => None,
        };
        inner.map(|(path, what)| (format!("{}.{path}", field.name()), what))
    })
}
