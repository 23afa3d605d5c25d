//! `value: registry`: Confluent-framed Avro, all writer versions read as one reader schema.

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
use super::fill::{Rejection, fill};
use super::{Codec, Decoded, Learnt, frame};

/// How long an id counts as refused before the registry is asked again.
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// Ids remembered; refused ones are forgotten beyond it.
const WRITERS_MAX: usize = 10_000;

/// Decodes framed Avro into the columns of the reader schema.
#[derive(Debug)]
pub struct RegisteredAvro {
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
        Ok(Self {
            schema: arrow_type::schema(&reader, tombstones == Tombstones::Keep)?,
            reader,
            tombstones,
            writers: HashMap::new(),
        })
    }

    /// A refusal is asked about again after a while: the registry may have learnt the id.
    fn is_known(&self, id: SchemaId) -> bool {
        match self.writers.get(&id) {
            Some(Writer::Usable(_)) => true,
            Some(Writer::Refused { at, .. }) => at.elapsed() < REFUSED_MAX,
            None => false,
        }
    }

    fn decode_value(
        &self,
        record: &RecordRef<'_>,
        value: &[u8],
        columns: &mut [Column],
    ) -> Result<(), Rejection> {
        let (id, payload) = frame::parse(record, value).map_err(|error| Rejection {
            code: error.code(),
            message: error.to_string(),
            schema_id: None,
        })?;
        let reject = |code, message| Rejection { code, message, schema_id: Some(id) };
        match self.writers.get(&id) {
            Some(Writer::Usable(program)) => program.decode(payload, columns).map_err(|bad| {
                let path = bad.path.join(".");
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
            let Some(Ok((id, _))) = record.value().map(|value| frame::parse(record, value)) else {
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
            Learnt::Avro { text, references } => {
                let program =
                    Node::parse(&text, &references).and_then(|writer| compile(&writer, &self.reader));
                match program {
                    Ok(program) => Writer::Usable(Arc::new(program)),
                    Err(error) => refused(
                        "refused_schema",
                        format!("schema id {id} cannot be read as the route's reader schema: {error}"),
                    ),
                }
            }
            Learnt::Unknown => refused("unknown_id", format!("the registry has no schema id {id}")),
            Learnt::Unusable(why) => {
                refused("refused_schema", format!("schema id {id} cannot be used: {why}"))
            }
        };
        // Garbage may name any number of ids.
        if self.writers.len() >= WRITERS_MAX {
            self.writers.retain(|_, writer| matches!(writer, Writer::Usable(_)));
        }
        self.writers.insert(id, writer);
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        fill(&self.schema, self.tombstones, records, |record, value, columns| {
            self.decode_value(record, value, columns)
        })
    }
}
