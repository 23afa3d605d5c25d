//! Change events in Avro: an envelope is a record like any other, whose fields `before` and `after` hold the row.
//!
//! What happened and the source are read by a program of their own, which passes over the rows and checks all bytes; then
//! the row that is wanted is read where it lies.

use crate::codec::avro::decode::{BadValue, long};
use crate::codec::avro::node::{Kind, Node, Record, SchemaError};
use crate::codec::avro::program::{Program, compile};
use crate::codec::columns::{Column, Data};
use crate::model::code;

use super::schema::{self, is_control};
use super::{Bad, Event, Image, Op};

/// Reads events of one writer's schema.
#[derive(Debug)]
pub enum Writer {
    /// Of a topic beside those of tables.
    Control,
    Envelope(Box<Envelope>),
}

#[derive(Debug)]
pub struct Envelope {
    /// What happened, and the source if it is wanted.
    head: Program,
    /// Reads nothing: it finds where fields begin and end.
    pass: Program,
    /// The rows among the fields, up to the last one.
    rows: Vec<Option<Row>>,
}

#[derive(Debug)]
struct Row {
    is_after: bool,
    /// For each branch of its union; `None` is null. One, if it is no union.
    branches: Vec<Option<Program>>,
    is_union: bool,
}

impl Writer {
    /// For rows that are read as `row`.
    ///
    /// # Errors
    /// [`SchemaError`] if it is no schema of events, or its rows cannot be read as these.
    pub fn compile(node: &Node, row: &Record, gives_source: bool) -> Result<Self, SchemaError> {
        let Kind::Record(envelope) = &node.kind else {
            return Err(SchemaError::NotARecord("the writer's type"));
        };
        if is_control(&envelope.name) {
            return Ok(Self::Control);
        }
        if envelope.fields.iter().all(|field| field.name != "op") {
            return Err(schema::no_envelope(envelope));
        }
        let source = envelope.fields.iter().find(|field| field.name == "source").map(|field| &field.node);
        let head = compile(node, &schema::head(gives_source.then_some(source)))?;
        let row = schema::node_of(row.clone());
        let mut rows = Vec::new();
        for field in &envelope.fields {
            rows.push(match field.name.as_str() {
                "before" => Some(Row::compile(&field.node, &row, false)?),
                "after" => Some(Row::compile(&field.node, &row, true)?),
                _ => None,
            });
        }
        while rows.last().is_some_and(Option::is_none) {
            rows.pop();
        }
        let nothing = schema::node_of(Record { name: envelope.name.clone(), fields: Vec::new() });
        let pass = compile(node, &nothing)?;
        Ok(Self::Envelope(Box::new(Envelope { head, pass, rows })))
    }

    /// Takes an event apart; what happened and the source go into `head`.
    ///
    /// # Errors
    /// What is wrong with its bytes.
    pub fn read<'w, 'b>(&'w self, payload: &'b [u8], head: &mut [Column]) -> Result<Event<'w, 'b>, Bad> {
        let Self::Envelope(envelope) = self else {
            return Ok(Event::Control);
        };
        envelope.head.decode(payload, head)?;
        let op = head.first().and_then(last_text).and_then(Op::of);
        let op =
            op.ok_or_else(|| Bad::new(code::TYPE_MISMATCH, "field `op`: it is no change that is known"))?;
        let (mut before, mut after) = (None, None);
        let rows = &envelope.rows;
        envelope.pass.pass_over(payload, rows.len(), |place, bytes| {
            match &rows[place] {
                Some(row) if row.is_after => after = row.image(bytes)?,
                Some(row) => before = row.image(bytes)?,
                None => {}
            }
            Ok(())
        })?;
        Ok(Event::Change { op, before, after })
    }
}

impl Row {
    fn compile(node: &Node, row: &Node, is_after: bool) -> Result<Self, SchemaError> {
        let of = |node: &Node| match &node.kind {
            Kind::Null => Ok(None),
            _ => compile(node, row).map(Some),
        };
        let (branches, is_union) = match &node.kind {
            Kind::Union(arms) => (arms.iter().map(of).collect::<Result<_, _>>()?, true),
            _ => (vec![of(node)?], false),
        };
        Ok(Self { is_after, branches, is_union })
    }

    fn image<'w, 'b>(&'w self, bytes: &'b [u8]) -> Result<Option<Image<'w, 'b>>, BadValue> {
        let (place, bytes) = if self.is_union { long(bytes)? } else { (0, bytes) };
        // Branches that do not exist were refused with the head.
        let program = usize::try_from(place).ok().and_then(|place| self.branches.get(place));
        Ok(program.and_then(Option::as_ref).map(|program| Image::Avro { program, bytes }))
    }
}

fn last_text(column: &Column) -> Option<&str> {
    let Data::Bytes { offsets, bytes } = &column.data else {
        return None;
    };
    let start = *offsets.get(offsets.len().checked_sub(2)?)?;
    std::str::from_utf8(bytes.get(start as usize..)?).ok()
}
