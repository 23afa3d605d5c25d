//! `envelope: debezium`: change events of database tables as rows of the tables' columns.
//!
//! An event holds a row `before` and `after` a change, what happened (`op`), and where it comes from (`source`). The row
//! after the change is put straight into the columns; a deletion is the delete of its key. Which part of an event is the
//! row is found once for a schema; a record costs what a plain one of the same row costs, and the way past the rest.

mod avro;
mod json;
mod schema;
mod unavailable;

use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use serde_json::Value;

use crate::config::plan::{SchemaFormat, Truncate};
use crate::model::{RecordRef, SchemaKey, code};

use super::avro::arrow_type;
use super::avro::decode::BadValue;
use super::avro::node::{Node, Record, SchemaError};
use super::avro::program::Program;
use super::columns::Column;
use super::fill::Rejection;
use super::json::{Unfit, parse as parse_json};
use super::limits::cut;
use super::meta::OP;
use super::{Codec, Decoded, Rejected};

pub use avro::Writer;
pub use json::{read as read_json, unwrapped};
pub use schema::parse;
pub use unavailable::is_possible as may_be_unavailable;

/// Where a change comes from: database, table, position.
pub const SOURCE: &str = "_source";

/// Columns whose values were not sent, as they did not change.
pub const UNAVAILABLE: &str = "_unavailable";

/// Why an event is no row and no delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    pub code: &'static str,
    pub message: String,
}

impl Bad {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn rejection(self, schema_id: Option<SchemaKey>) -> Rejection {
        Rejection { code: self.code, message: self.message, schema_id }
    }
}

impl From<Unfit> for Bad {
    fn from(unfit: Unfit) -> Self {
        Self { code: unfit.code, message: unfit.message }
    }
}

impl From<BadValue> for Bad {
    fn from(bad: BadValue) -> Self {
        let place = match bad.path.as_slice() {
            [] => String::new(),
            path => format!("field `{}`: ", path.join(".")),
        };
        Self { code: bad.problem.code(), message: format!("{place}{}", bad.problem) }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Create,
    /// Found by a snapshot.
    Read,
    Update,
    Delete,
    Truncate,
    /// Of PostgreSQL's `pg_logical_emit_message`: no row of any table.
    Message,
}

impl Op {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "c" => Self::Create,
            "r" => Self::Read,
            "u" => Self::Update,
            "d" => Self::Delete,
            "t" => Self::Truncate,
            "m" => Self::Message,
            _ => return None,
        })
    }
}

/// What a record is.
pub enum Event<'w, 'b> {
    /// Of a topic beside those of tables: a heartbeat, a border of a transaction, a change of a table's schema.
    Control,
    Change {
        op: Op,
        before: Option<Image<'w, 'b>>,
        after: Option<Image<'w, 'b>>,
    },
}

/// A row in an event.
pub enum Image<'w, 'b> {
    Avro { program: &'w Program, bytes: &'b [u8] },
    Json(Value),
}

/// What becomes of an event.
enum Outcome {
    /// A row, and the places of columns whose values were not sent.
    Row(Vec<usize>),
    /// A row that tells of a change that leaves none.
    Gone {
        is_delete: bool,
    },
    Delete,
    Dropped,
}

/// How change events are read: the columns of their table, and what is wanted besides.
#[derive(Debug)]
pub struct Changes {
    format: SchemaFormat,
    /// Every field may be null: rows of deletions may lack values, and a value may not have been sent.
    row: Record,
    /// The columns of the table.
    fields: SchemaRef,
    /// With the `_` columns that are wanted.
    schema: SchemaRef,
    keeps_newest: bool,
    tells_unavailable: bool,
    /// What becomes of a truncation where a sink keeps rows by key.
    truncate: Truncate,
}

impl Changes {
    /// For events of this schema; of a file it may also be the schema of a table's rows.
    ///
    /// # Errors
    /// [`SchemaError`] if the schema is not one of events, or its rows have no Arrow form.
    pub fn new(node: &Node, format: SchemaFormat, is_of_file: bool) -> Result<Self, SchemaError> {
        let row = schema::table(node, is_of_file)?;
        let fields = arrow_type::schema(&schema::node_of(row.clone()), true)?;
        Ok(Self {
            format,
            row,
            schema: Arc::clone(&fields),
            fields,
            keeps_newest: false,
            tells_unavailable: false,
            truncate: Truncate::Refuse,
        })
    }

    #[must_use]
    pub fn truncating(mut self, truncate: Truncate) -> Self {
        self.truncate = truncate;
        self
    }

    pub fn format(&self) -> SchemaFormat {
        self.format
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The `_` columns there can be.
    pub fn offered(&self) -> Vec<Field> {
        let name = Arc::new(Field::new("item", DataType::Utf8, false));
        let source = DataType::Struct(schema::source_fields());
        vec![
            Field::new(OP, DataType::Utf8, false),
            Field::new(SOURCE, source, true),
            Field::new(UNAVAILABLE, DataType::List(name), true),
        ]
    }

    pub fn give(&mut self, columns: &[Field]) {
        let given = columns.iter().cloned().map(Arc::new);
        let fields: Vec<FieldRef> = self.fields.fields().iter().cloned().chain(given).collect();
        self.schema = Arc::new(Schema::new(fields));
    }

    pub fn keep_newest(&mut self, tells_unavailable: bool) {
        self.keeps_newest = true;
        self.tells_unavailable = tells_unavailable;
    }

    fn gives(&self, name: &str) -> bool {
        self.schema.fields().iter().skip(self.fields.fields().len()).any(|field| field.name() == name)
    }

    /// Compiles a writer's schema.
    ///
    /// # Errors
    /// [`SchemaError`], naming the field that cannot be read.
    pub fn writer(&self, node: &Node) -> Result<Writer, SchemaError> {
        Writer::compile(node, &self.row, self.gives(SOURCE))
    }

    /// Decodes records whose values `read` takes apart; it puts what happened, and the source if it is wanted, into the
    /// columns it is given.
    ///
    /// # Errors
    /// Only for defects of ours: columns that do not fit together.
    pub fn fill<'w, 'b>(
        &self,
        records: &[RecordRef<'b>],
        mut read: impl FnMut(
            &RecordRef<'b>,
            &'b [u8],
            &mut [Column],
        ) -> Result<(Event<'w, 'b>, Option<SchemaKey>), Rejection>,
    ) -> Result<Decoded, ArrowError> {
        let mut columns = self.columns()?;
        let width = self.fields.fields().len();
        let mut decoded = Decoded {
            columns: Vec::new(),
            rows: Vec::with_capacity(records.len()),
            deletes: Vec::new(),
            gone: Vec::new(),
            rejected: Vec::new(),
            dropped: 0,
        };
        let item = Field::new("item", DataType::Utf8, false);
        let mut unavailable = ListBuilder::new(StringBuilder::new()).with_field(item);
        for (index, record) in records.iter().enumerate() {
            let number = index as u32;
            let Some(bytes) = record.value() else {
                // The event before it has said what there is to say.
                decoded.dropped += 1;
                continue;
            };
            let (values, head) = columns.split_at_mut(width);
            let outcome = read(record, bytes, head)
                .and_then(|(event, id)| self.put(event, values).map_err(|bad| bad.rejection(id)));
            let is_row = match outcome {
                Ok(Outcome::Row(missing)) => {
                    missing
                        .iter()
                        .for_each(|column| unavailable.values().append_value(&self.row.fields[*column].name));
                    unavailable.append(!missing.is_empty());
                    true
                }
                Ok(Outcome::Gone { is_delete }) => {
                    unavailable.append(false);
                    decoded.gone.push(number);
                    if is_delete {
                        decoded.deletes.push(number);
                    }
                    true
                }
                Ok(Outcome::Delete) => {
                    decoded.deletes.push(number);
                    false
                }
                Ok(Outcome::Dropped) => {
                    decoded.dropped += 1;
                    false
                }
                Err(Rejection { code, message, schema_id }) => {
                    decoded.rejected.push(Rejected { index, code, message: cut(message), schema_id });
                    false
                }
            };
            if is_row {
                decoded.rows.push(number);
            } else {
                let row_count = decoded.rows.len();
                columns.iter_mut().for_each(|column| column.truncate(row_count));
            }
        }
        decoded.columns = self.finish(columns, Arc::new(unavailable.finish()))?;
        Ok(decoded)
    }

    /// The table's columns, then what happened, then the source if it is wanted.
    fn columns(&self) -> Result<Vec<Column>, ArrowError> {
        let [op, source, _] = <[Field; 3]>::try_from(self.offered())
            .map_err(|_| ArrowError::SchemaError("columns of changes are three".to_owned()))?;
        let source = self.gives(SOURCE).then_some(source);
        let head = [op].into_iter().chain(source).map(Arc::new);
        let fields = self.fields.fields().iter().cloned().chain(head);
        fields.map(|field| Column::new(&field)).collect()
    }

    /// The arrays of the schema's columns.
    fn finish(&self, mut columns: Vec<Column>, unavailable: ArrayRef) -> Result<Vec<ArrayRef>, ArrowError> {
        let mut head = columns.split_off(self.fields.fields().len()).into_iter();
        let (op, source) = (head.next(), head.next());
        let mut arrays = columns.into_iter().map(Column::finish).collect::<Result<Vec<_>, _>>()?;
        if self.gives(OP)
            && let Some(op) = op
        {
            arrays.push(op.finish()?);
        }
        if let Some(source) = source {
            arrays.push(source.finish()?);
        }
        if self.gives(UNAVAILABLE) {
            arrays.push(unavailable);
        }
        Ok(arrays)
    }

    /// Puts the row that an event leaves, or tells of, into the table's columns.
    fn put(&self, event: Event<'_, '_>, values: &mut [Column]) -> Result<Outcome, Bad> {
        let Event::Change { op, before, after } = event else {
            return Ok(Outcome::Dropped);
        };
        match op {
            Op::Create | Op::Read | Op::Update => {
                let missing_row =
                    || Bad::new(code::TYPE_MISMATCH, "an event without the row after the change");
                self.put_image(after.ok_or_else(missing_row)?, values)?;
                // Also of a row that was created: a row whose key changes is a deletion and a creation.
                self.put_unavailable(values)
            }
            Op::Delete if self.gives(OP) => {
                match before {
                    Some(image) => self.put_image(image, values)?,
                    None => values.iter_mut().for_each(Column::push_null),
                }
                Ok(Outcome::Gone { is_delete: true })
            }
            Op::Delete => Ok(Outcome::Delete),
            Op::Truncate if self.keeps_newest && self.truncate == Truncate::Refuse => Err(Bad::new(
                code::TRUNCATE,
                "the table was truncated, and the rows of sinks that keep them by key would stay: say `truncate: delete` \
                 or `truncate: ignore`, or leave this record out",
            )),
            // A row of nulls that no sink that keeps rows by key is given, so that they are told of the truncation.
            Op::Truncate if self.gives(OP) || (self.keeps_newest && self.truncate == Truncate::Delete) => {
                values.iter_mut().for_each(Column::push_null);
                Ok(Outcome::Gone { is_delete: false })
            }
            Op::Truncate | Op::Message => Ok(Outcome::Dropped),
        }
    }

    fn put_image(&self, image: Image<'_, '_>, values: &mut [Column]) -> Result<(), Bad> {
        match image {
            Image::Avro { program, bytes } => program.decode(bytes, values).map_err(Bad::from),
            Image::Json(row) => json::put(&self.row, row, values),
        }
    }

    /// Makes null what was not sent; nobody may take the placeholder for a value, nor the null for one.
    fn put_unavailable(&self, values: &mut [Column]) -> Result<Outcome, Bad> {
        let mut missing = Vec::new();
        for (place, column) in values.iter_mut().enumerate() {
            if unavailable::is_last(&column.data) {
                column.truncate(column.len() - 1);
                column.push_null();
                missing.push(place);
            }
        }
        if let (Some(first), true, false) = (missing.first(), self.keeps_newest, self.tells_unavailable) {
            let name = &self.row.fields[*first].name;
            return Err(Bad::new(
                code::UNAVAILABLE_VALUE,
                format!(
                    "the value of column `{name}` was not sent, as it did not change, and a sink would take it for null: \
                     set REPLICA IDENTITY FULL for the table, or select `{UNAVAILABLE}` in the view that the sink reads"
                ),
            ));
        }
        Ok(Outcome::Row(missing))
    }
}

/// `value: {json: {schema: …}}` of change events, with or without a schema in each record.
#[derive(Debug)]
pub struct JsonChanges(Changes);

impl JsonChanges {
    pub fn new(changes: Changes) -> Self {
        Self(changes)
    }
}

impl Codec for JsonChanges {
    fn schema(&self) -> &SchemaRef {
        self.0.schema()
    }

    fn offered(&self) -> Vec<Field> {
        self.0.offered()
    }

    fn give(&mut self, columns: &[Field]) {
        self.0.give(columns);
    }

    fn keep_newest(&mut self, tells_unavailable: bool) {
        self.0.keep_newest(tells_unavailable);
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        self.0.fill(records, |_, bytes, head| {
            let event = parse_json(bytes).map_err(Bad::from).and_then(|json| json::read(json, head));
            event.map(|event| (event, None)).map_err(|bad| bad.rejection(None))
        })
    }
}

#[cfg(test)]
mod tests;
