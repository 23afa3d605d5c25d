//! `registry`: Confluent-framed Avro, all writer versions read as one reader schema. For values and for keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use crate::config::plan::Tombstones;
use crate::model::{RecordRef, SchemaId};

use super::avro::arrow_type;
use super::avro::node::{Node, SchemaError};
use super::avro::program::{Program, compile};
use super::columns::Column;
use super::fill::{Rejection, fill_side};
use super::{Codec, Decoded, Learnt, Side, frame, key};

/// How long an id counts as refused before the registry is asked again.
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// Ids remembered; refused ones are forgotten beyond it.
const WRITERS_MAX: usize = 10_000;

/// Decodes framed Avro into the columns of the reader schema.
#[derive(Debug)]
pub struct RegisteredAvro {
    side: Side,
    /// Of keys: as the one field of a record.
    reader: Node,
    schema: SchemaRef,
    tombstones: Tombstones,
    writers: HashMap<SchemaId, Writer>,
}

#[derive(Debug)]
enum Writer {
    Usable(Arc<Program>),
    Refused { code: &'static str, message: String, at: Instant },
}

impl RegisteredAvro {
    /// # Errors
    /// [`SchemaError`] if the reader schema has no Arrow form.
    pub fn new(reader: Node, tombstones: Tombstones) -> Result<Self, SchemaError> {
        Self::of(Side::Value, reader, tombstones)
    }

    /// For keys of any type: one column, null where there is no key.
    ///
    /// # Errors
    /// [`SchemaError`] if the reader schema has no Arrow form.
    pub fn for_keys(reader: Node) -> Result<Self, SchemaError> {
        Self::of(Side::Key, key::as_field(reader), Tombstones::Keep)
    }

    fn of(side: Side, reader: Node, tombstones: Tombstones) -> Result<Self, SchemaError> {
        Ok(Self {
            side,
            schema: arrow_type::schema(&reader, tombstones == Tombstones::Keep)?,
            reader,
            tombstones,
            writers: HashMap::new(),
        })
    }

    /// The program that reads what was written with this schema.
    fn compile(&self, text: &str, references: &[String]) -> Result<Program, SchemaError> {
        let writer = Node::parse(text, references)?;
        let writer = match self.side {
            Side::Value => writer,
            Side::Key => key::as_field(writer),
        };
        compile(&writer, &self.reader)
    }

    /// A refusal is asked about again after a while: the registry may have learnt the id.
    fn is_known(&self, id: SchemaId) -> bool {
        match self.writers.get(&id) {
            Some(Writer::Usable(_)) => true,
            Some(Writer::Refused { at, .. }) => at.elapsed() < REFUSED_MAX,
            None => false,
        }
    }

    fn decode_one(
        &self,
        record: &RecordRef<'_>,
        bytes: &[u8],
        columns: &mut [Column],
    ) -> Result<(), Rejection> {
        let (id, payload) = frame::parse(self.side, record, bytes).map_err(|error| Rejection {
            code: error.code(),
            message: error.to_string(),
            schema_id: None,
        })?;
        let reject = |code, message| Rejection { code, message, schema_id: Some(id) };
        match self.writers.get(&id) {
            Some(Writer::Usable(program)) => program.decode(payload, columns).map_err(|bad| {
                // The first step of a key's path is the column that it was put into.
                let skipped = usize::from(self.side == Side::Key).min(bad.path.len());
                let path = bad.path[skipped..].join(".");
                let at = if path.is_empty() { String::new() } else { format!("field `{path}`: ") };
                reject(bad.problem.code(), format!("{at}{}", bad.problem))
            }),
            Some(Writer::Refused { code, message, .. }) => Err(reject(code, message.clone())),
            None => Err(reject("unknown_id", format!("schema id {id} was never looked up"))),
        }
    }
}

impl Codec for RegisteredAvro {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn missing(&self, records: &[RecordRef<'_>]) -> Vec<SchemaId> {
        let mut missing = Vec::new();
        // Ids come in runs: comparing with the last one saves most look-ups.
        let mut last = None;
        for record in records {
            let framed = self.side.bytes(record).map(|bytes| frame::parse(self.side, record, bytes));
            let Some(Ok((id, _))) = framed else {
                continue;
            };
            if last != Some(id) && !self.is_known(id) && !missing.contains(&id) {
                missing.push(id);
            }
            last = Some(id);
        }
        missing
    }

    fn learn(&mut self, id: SchemaId, schema: Learnt) {
        let refused = |code, message| Writer::Refused { code, message, at: Instant::now() };
        let writer = match schema {
            Learnt::Avro { text, references } => match self.compile(&text, &references) {
                Ok(program) => Writer::Usable(Arc::new(program)),
                Err(error) => refused(
                    "refused_schema",
                    format!("schema id {id} cannot be read as the route's reader schema: {error}"),
                ),
            },
            Learnt::Unknown => refused("unknown_id", format!("the registry has no schema id {id}")),
            Learnt::Unusable(why) => {
                refused("refused_schema", format!("schema id {id} cannot be used: {why}"))
            }
        };
        // Garbage may name any number of ids.
        if self.writers.len() >= WRITERS_MAX {
            // Not those just learnt, or a batch of garbage would be asked for again and again.
            self.writers.retain(|_, writer| match writer {
                Writer::Usable(_) => true,
                Writer::Refused { at, .. } => at.elapsed() < REFUSED_MAX,
            });
        }
        self.writers.insert(id, writer);
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        fill_side(self.side, &self.schema, self.tombstones, records, |record, bytes, columns| {
            self.decode_one(record, bytes, columns)
        })
    }
}
