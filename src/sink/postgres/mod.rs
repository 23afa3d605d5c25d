//! Rows in a table of PostgreSQL, exactly once: rows and positions are one transaction.
//!
//! A batch is copied into a table of the session, which nobody else waits for, and merged from there into the target:
//! appended, or the last row or delete of each key. What the table refuses is told here, by `write`. `flush` compares and
//! sets the positions, and commits. Both follow one another at once, so a transaction holds one batch. A commit whose answer
//! is lost is resolved by reading the positions (`docs/decisions/0018-postgres.md`).

mod connect;
mod copy;
mod error;
mod partial;
mod positions;
mod sql;
mod survey;
mod table;
mod types;

use std::io::Cursor;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use async_trait::async_trait;
use futures::SinkExt;
use tokio::task::block_in_place;
use tokio_postgres::Statement;

use crate::config::plan;
use crate::model::{Batch, Fault, Move, Position, PositionKey, Positions, TopicName, ranges};

pub use survey::{reset, survey};
pub use types::declared;

use super::owner::Claim;
use super::{Settled, Sink, SinkError, Store};
use connect::{Login, Session};
use copy::{Column, Encoded, Unfit};
use error::PostgresError;
use partial::{Missing, UNAVAILABLE};
use positions::StoreError;
use table::{Place, Target, TargetColumn};

/// What a PostgreSQL sink is made of.
pub struct PostgresSinkOptions {
    pub target: plan::Postgres,
    /// Who writes there.
    pub claim: Claim,
    /// Of the rows it is given.
    pub schema: SchemaRef,
    /// The columns rows are known by; empty: they are appended.
    pub keys: Vec<String>,
}

impl PostgresSinkOptions {
    /// Do rows say which of their values were not sent?
    fn is_partial(&self) -> bool {
        !self.keys.is_empty() && self.schema.field_with_name(UNAVAILABLE).is_ok()
    }

    /// The columns that are written.
    fn written(&self) -> SchemaRef {
        if self.is_partial() { partial::written(&self.schema) } else { SchemaRef::clone(&self.schema) }
    }
}

/// A sink that writes to a table.
pub struct PostgresSink {
    options: PostgresSinkOptions,
    login: Login,
    open: Option<Open>,
    stored: Positions,
    accepted: Accepted,
    settled: Settled,
}

/// A session, and the table as it found it.
struct Open {
    session: Session,
    target: Target,
    copy: Statement,
    /// A transaction has begun.
    is_in_transaction: bool,
}

/// What was accepted and is not committed.
#[derive(Debug, Default)]
struct Accepted {
    moves: Vec<Move>,
    since: Option<Instant>,
    rows: u64,
    bytes: u64,
}

/// Is the URL one that can be used?
///
/// # Errors
/// What is wrong with it, without any of it.
pub fn check_url(target: &plan::Postgres) -> Result<(), &'static str> {
    Login::new(target.url.secret(), target.ca_file.as_deref()).map(|_| ())
}

/// Undoing takes the server no time; a lane that is told to let go does not wait for one that is away.
const ROLLBACK_MAX: Duration = Duration::from_secs(5);

/// Can rows of this schema be written to a table, with these keys? What the table itself has is looked at when it is opened.
///
/// # Errors
/// What is wrong with it.
pub fn check_schema(schema: &SchemaRef, keys: &[String]) -> Result<(), String> {
    for field in schema.fields() {
        let name = field.name();
        if name == UNAVAILABLE && !keys.is_empty() {
            if partial::names_columns(field.data_type()) {
                continue;
            }
            return Err(format!(
                "column `{name}` is {}: to rows that are kept by key it says what was not sent of a change, as a list of \
                 names",
                field.data_type()
            ));
        }
        if name.is_empty() || name.len() > sql::NAME_BYTES_MAX || name.contains('\0') {
            return Err(format!(
                "`{name}` is no name of a column: it has 1 to {} bytes",
                sql::NAME_BYTES_MAX
            ));
        }
        declared(field.data_type())
            .map_err(|data_type| format!("column `{name}` is {data_type}, for which there is no type"))?;
    }
    match keys.iter().find(|key| schema.field_with_name(key).is_err()) {
        Some(key) => Err(format!("its rows have no column `{key}`, which is part of the key")),
        None => Ok(()),
    }
}

/// The key columns of `primary_key: record_key`: the fields of the record's key, or its one column.
pub fn record_key(key: &DataType, column: &str) -> Vec<String> {
    match key {
        DataType::Struct(fields) => fields.iter().map(|field| field.name().clone()).collect(),
        _ => vec![column.to_owned()],
    }
}

/// A key that is one value, for rows that are known by several.
const ONE_VALUE: &str = "the record's key is one value, and rows are known by several";

fn no_field(column: &str) -> String {
    format!("the record's key has no field `{column}`")
}

/// Can decoded record keys of this type say which of such rows are gone? What the columns of the table take is looked at
/// when a delete comes.
///
/// # Errors
/// Why not.
pub fn check_deletes(key: &DataType, rows: &SchemaRef, keys: &[String]) -> Result<(), String> {
    for column in keys {
        let part = match key {
            DataType::Struct(fields) => {
                let found = fields.find(column).map(|(_, field)| field.data_type());
                found.ok_or_else(|| no_field(column))?
            }
            _ if keys.len() == 1 => key,
            _ => return Err(ONE_VALUE.to_owned()),
        };
        if let Ok(field) = rows.field_with_name(column)
            && !types::share_a_column(part, field.data_type())
        {
            let own = field.data_type();
            return Err(format!("the record's key has {part} for column `{column}`, which is {own}"));
        }
    }
    Ok(())
}

/// The parts of decoded record keys that stand in these key columns.
///
/// # Errors
/// Why a delete cannot be told from them.
fn key_parts(keys: &ArrayRef, columns: &[&TargetColumn]) -> Result<Vec<ArrayRef>, String> {
    let parts: Vec<ArrayRef> = match (keys.as_struct_opt(), columns) {
        (Some(record), _) => {
            let part = |column: &&TargetColumn| {
                let part = record.column_by_name(&column.name).cloned();
                part.ok_or_else(|| no_field(&column.name))
            };
            columns.iter().map(part).collect::<Result<_, String>>()?
        }
        (None, [_]) => vec![keys.clone()],
        (None, _) => return Err(ONE_VALUE.to_owned()),
    };
    let unfit = parts.iter().zip(columns).find(|(part, column)| !types::fits(part.data_type(), column.form));
    match unfit {
        Some((part, column)) => Err(format!(
            "the record's key is {}, which is no value of column `{}` ({})",
            part.data_type(),
            column.name,
            column.declared
        )),
        None => Ok(parts),
    }
}

/// Why a batch could not be encoded.
#[derive(Debug, thiserror::Error)]
enum EncodeError {
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    #[error("{0}")]
    Shape(String),
}

/// The batch as a binary copy. Its rows have the columns of `target`, in their order.
fn encode(target: &Target, batch: &Batch) -> Result<Encoded, EncodeError> {
    let rows = batch.rows.num_rows();
    let mut columns = Vec::new();
    if rows > 0 {
        for column in &target.columns {
            let values = batch.rows.column_by_name(&column.name);
            let values = values.ok_or_else(|| EncodeError::Shape(format!("no column `{}`", column.name)))?;
            columns.push(Column::new(&column.name, values, column.form, column.is_key)?);
        }
    }
    if !target.is_upsert() {
        return Ok(copy::append(&columns, rows)?);
    }
    let mut keys: Vec<Option<Column>> = Vec::new();
    if let Some(given) = &batch.deletes.keys {
        if batch.origins.is_none() && rows > 0 {
            let problem = "rows that are not made of one record each have no order with deletes";
            return Err(EncodeError::Shape(problem.to_owned()));
        }
        let key_columns: Vec<&TargetColumn> = target.columns.iter().filter(|column| column.is_key).collect();
        let parts = key_parts(given, &key_columns).map_err(EncodeError::Shape)?;
        let mut parts = parts.iter();
        for column in &target.columns {
            let part = if column.is_key { parts.next() } else { None };
            let key = part.map(|part| Column::new(&column.name, part, column.form, true)).transpose()?;
            keys.push(key);
        }
    }
    let deletes: &[u32] = if keys.is_empty() { &[] } else { &batch.deletes.origins };
    let origins = batch.origins.as_deref();
    let mut steps = copy::order(rows, origins, deletes);
    let truncation = batch.deletes.truncations.last().filter(|_| target.is_truncated);
    if let Some(number) = truncation {
        if origins.is_none() && rows > 0 {
            let problem = "rows that are not made of one record each have no order with truncations";
            return Err(EncodeError::Shape(problem.to_owned()));
        }
        // What comes before it is deleted with all the rest.
        steps = copy::behind(*number, &steps, origins.unwrap_or_default(), deletes);
    }
    let missing = if target.is_partial {
        let missing = Missing::of(target, &batch.rows);
        Some(missing.ok_or_else(|| EncodeError::Shape(format!("no column `{UNAVAILABLE}`")))?)
    } else {
        None
    };
    let encoded = copy::upsert(&columns, &keys, &steps, missing)?;
    Ok(Encoded { is_truncated: truncation.is_some(), ..encoded })
}

impl PostgresSink {
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(options: PostgresSinkOptions) -> Result<Self, &'static str> {
        let login = Login::new(options.target.url.secret(), options.target.ca_file.as_deref())?;
        Ok(Self {
            options,
            login,
            open: None,
            stored: Positions::default(),
            accepted: Accepted::default(),
            settled: Settled::default(),
        })
    }

    async fn read_positions(&mut self) -> Result<Positions, StoreError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let opened = open(&self.login, &self.options).await?;
                SinkError::point("postgres.opened").map_err(lost_reply)?;
                // What an earlier session had accepted is gone with it.
                self.accepted = Accepted::default();
                opened
            }
        };
        let (session, place, claim) = (&open.session, &open.target.place, &self.options.claim);
        let positions = if open.is_in_transaction {
            // Its rows are accepted, and no commit but theirs may take them along.
            positions::standing(session, place, &claim.owner).await?
        } else {
            positions::enter(session, place, claim).await?
        };
        // After an error the session is dropped: nobody knows what it is in the middle of.
        self.open = Some(open);
        self.stored = positions.clone();
        Ok(positions)
    }

    /// Copies and merges the rows of a batch.
    async fn merge(&mut self, batch: &Batch, encoded: Encoded) -> Result<(), StoreError> {
        let has_deletes = !batch.deletes.origins.is_empty();
        let is_first = self.accepted.moves.is_empty();
        let Some(mut open) = self.open.take() else {
            return Err(PostgresError::transient("the session is gone").into());
        };
        open.begin().await?;
        if !is_first {
            // What is accepted stays, whatever becomes of this batch.
            open.session.run(&format!("SAVEPOINT batch; TRUNCATE {}", sql::ROWS)).await?;
        }
        let bytes = encoded.bytes;
        match open.copy_and_merge(encoded, has_deletes).await {
            Ok(()) => {}
            Err(error) if error.fault == Fault::Refused => {
                let back = if is_first { "ROLLBACK" } else { "ROLLBACK TO SAVEPOINT batch" };
                open.session.run(back).await?;
                open.is_in_transaction = !is_first;
                self.open = Some(open);
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
        SinkError::point("postgres.merged").map_err(lost_reply)?;
        self.open = Some(open);
        self.accepted.rows += batch.rows.num_rows() as u64;
        self.accepted.bytes += bytes;
        Ok(())
    }

    /// Moves the positions and commits.
    async fn commit(&mut self) -> Result<(), StoreError> {
        let accepted = std::mem::take(&mut self.accepted);
        let Some(mut open) = self.open.take() else {
            return Err(PostgresError::transient("the session is gone").into());
        };
        open.begin().await?;
        let owner = &self.options.claim.owner;
        positions::advance(&open.session, &open.target.place, owner, &accepted.moves).await?;
        SinkError::point("postgres.moved").map_err(lost_reply)?;
        open.session.run("COMMIT").await?;
        open.is_in_transaction = false;
        SinkError::point("postgres.committed").map_err(lost_reply)?;
        self.open = Some(open);
        self.settled.rows += accepted.rows;
        self.settled.bytes += accepted.bytes;
        if self.stored.apply(&accepted.moves).is_err() {
            // Partitions were away meanwhile, and others moved them.
            self.read_positions().await?;
        }
        Ok(())
    }

    /// What follows from an error while doing `what`.
    fn explain(&self, what: &str, error: StoreError) -> SinkError {
        explain(&self.options.claim, &self.options.target, what, error)
    }
}

/// A step that a fail point tells as failed: as if the connection had gone.
fn lost_reply(error: SinkError) -> PostgresError {
    PostgresError::transient(error.to_string())
}

fn explain(claim: &Claim, target: &plan::Postgres, what: &str, error: StoreError) -> SinkError {
    let action = format!("{what} sink `{}` in table `{}`", claim.owner.identity, target.shown());
    match error {
        StoreError::Conflict(conflict) => SinkError::Conflict(conflict),
        StoreError::Refused(refusal) => {
            let remedy = refusal.remedy(claim, "table");
            SinkError::stop(action, remedy, StoreError::Refused(refusal))
        }
        StoreError::Postgres(error) => {
            let (hint, source) = (error.hint.clone(), error.clone().into());
            match error.fault {
                Fault::Refused => SinkError::Refused { action, hint, source },
                Fault::Stop => SinkError::Stop { action, hint, source },
                Fault::Transient | Fault::Conflict => SinkError::Transient { action, hint, source },
            }
        }
    }
}

impl Open {
    async fn begin(&mut self) -> Result<(), PostgresError> {
        if !self.is_in_transaction {
            self.session.begin().await?;
            self.is_in_transaction = true;
        }
        Ok(())
    }

    async fn copy_and_merge(&self, encoded: Encoded, has_deletes: bool) -> Result<(), PostgresError> {
        let Encoded { pieces, missing, is_truncated, .. } = encoded;
        self.session
            .answer(async {
                let sink = self.session.client().copy_in::<_, Cursor<Vec<u8>>>(&self.copy).await?;
                let mut sink = std::pin::pin!(sink);
                for piece in pieces {
                    sink.feed(Cursor::new(piece)).await?;
                }
                sink.as_mut().finish().await
            })
            .await?;
        SinkError::point("postgres.copied").map_err(lost_reply)?;
        if is_truncated {
            self.session.run(&sql::clear(&self.target)).await?;
        }
        if missing.is_empty() {
            return self.session.run(&sql::merge(&self.target, has_deletes)).await;
        }
        self.merge_partial(&missing, has_deletes).await
    }

    /// Merges copied rows of which some leave values of the columns at `missing` out.
    async fn merge_partial(&self, missing: &[usize], has_deletes: bool) -> Result<(), PostgresError> {
        if has_deletes {
            self.session.run(&sql::remove(&self.target)).await?;
        }
        let merge = partial::merge(&self.target, missing);
        let row = self.session.answer(self.session.client().query_one(merge.as_str(), &[])).await?;
        let unknown: i64 = row.try_get(0)?;
        if unknown > 0 {
            return Err(PostgresError::refused(
                "a change without all its values, of a row that is not there to keep them",
                "it changes a key, or the row from before it was never read (`start: earliest` reads it); with REPLICA \
                 IDENTITY FULL for the source's table all values are sent from then on",
            ));
        }
        self.session.run(sql::CHECKED).await
    }
}

/// Connects, and looks at the table; creates what is missing of it.
async fn open(login: &Login, options: &PostgresSinkOptions) -> Result<Open, StoreError> {
    let session = login.connect().await?;
    let target = prepare(&session, options).await?;
    session.run(&sql::create_rows(&target)).await?;
    let copy = session.answer(session.client().prepare(&sql::copy_rows())).await?;
    Ok(Open { session, target, copy, is_in_transaction: false })
}

/// Finds the table with its columns, or creates what is missing, and the tables of positions.
async fn prepare(session: &Session, options: &PostgresSinkOptions) -> Result<Target, PostgresError> {
    let plan::Postgres { schema, table, creates, .. } = &options.target;
    let rows = options.written();
    let mut found = table::find(session, schema.as_deref(), table).await?;
    if found.is_none() {
        if !creates {
            return Err(PostgresError::stop(
                "there is no such table",
                "create it, or say `create: true`; without a schema before its name it is looked for where the user's \
                 search path leads",
            ));
        }
        let schema = match schema {
            Some(schema) => schema.clone(),
            None => table::current_schema(session).await?,
        };
        let place = Place { schema, table: table.clone() };
        let create = sql::create_table(&place, &rows, &options.keys).map_err(unfit)?;
        alone(session, &create).await?;
        found = table::find(session, Some(&place.schema), table).await?;
    }
    let Some((place, oid)) = found else {
        return Err(PostgresError::transient("the table was created and is gone again"));
    };
    let mut described = table::describe(session, place.clone(), oid).await?;
    let missing = described.missing(&rows);
    if *creates && !missing.is_empty() {
        let add = sql::add_columns(&place, &rows, &missing).map_err(unfit)?;
        alone(session, &add).await?;
        described = table::describe(session, place.clone(), oid).await?;
    }
    let target = described.target(&rows, &options.keys).map_err(unfit)?;
    let (is_partial, is_truncated) = (options.is_partial(), options.target.is_truncated);
    let target = Target { is_partial, is_truncated, ..target };
    if !positions::are_there(session, &place).await? {
        alone(session, &positions::create(&place)).await?;
    }
    Ok(target)
}

fn unfit(problem: String) -> PostgresError {
    PostgresError::stop(
        format!("its rows do not fit: {problem}"),
        "alter the table, or let the sink read a view that casts and names its columns as the table does",
    )
}

/// Changes tables while nobody else of us does.
async fn alone(session: &Session, statements: &str) -> Result<(), PostgresError> {
    session.begin().await?;
    session.run(positions::ALONE).await?;
    session.run(statements).await?;
    session.run("COMMIT").await
}

#[async_trait]
impl Sink for PostgresSink {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        self.read_positions().await.map_err(|error| self.explain("open", error))
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let what = || format!("write {} with", ranges(&batch.moves));
        let is_truncated = self.options.target.is_truncated && !batch.deletes.truncations.is_empty();
        let has_deletes = self.takes_deletes() && !batch.deletes.origins.is_empty();
        if batch.rows.num_rows() > 0 || has_deletes || is_truncated {
            let Some(open) = &self.open else {
                let error = PostgresError::transient("the session is gone");
                return Err(self.explain(&what(), error.into()));
            };
            let encoded = block_in_place(|| encode(&open.target, batch)).map_err(|error| {
                let action = format!(
                    "{} sink `{}` in table `{}`",
                    what(),
                    self.options.claim.owner.identity,
                    self.options.target.shown()
                );
                match error {
                    EncodeError::Unfit(unfit) => {
                        SinkError::refused(action, "mend the row or its view, or widen the column", unfit)
                    }
                    other => SinkError::stop(action, "change the view that this sink reads", other),
                }
            })?;
            self.merge(batch, encoded).await.map_err(|error| self.explain(&what(), error))?;
        }
        self.accepted.since.get_or_insert_with(Instant::now);
        self.accepted.moves.extend(batch.moves.iter().cloned());
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        // At once: a transaction that waits holds locks.
        self.accepted.since
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        if !self.accepted.moves.is_empty() {
            self.commit().await.map_err(|error| self.explain("commit", error))?;
        }
        self.accepted.since = None;
        Ok(self.stored.clone())
    }

    async fn abandon(&mut self) {
        self.accepted = Accepted::default();
        let Some(mut open) = self.open.take() else {
            return;
        };
        if open.is_in_transaction {
            let told = tokio::time::timeout(ROLLBACK_MAX, open.session.run("ROLLBACK")).await;
            if !matches!(told, Ok(Ok(()))) {
                // The session is dropped, and the server does it.
                return;
            }
            open.is_in_transaction = false;
        }
        self.open = Some(open);
    }

    fn settled(&self) -> Settled {
        self.settled
    }

    fn store(&self) -> Store {
        Store::Own
    }

    fn restore(&mut self, _: PositionKey, _: &TopicName, _: Position) {
        // The table of positions is the only truth about this sink's.
    }

    fn takes_deletes(&self) -> bool {
        !self.options.keys.is_empty()
    }

    fn holds_locks(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
