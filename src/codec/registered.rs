//! `registry`: Confluent-framed Avro or Protobuf, all writer versions read as one reader schema. For values and for
//! keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::config::plan::Tombstones;
use crate::model::{RecordRef, Reference, SchemaId};

use super::avro::arrow_type;
use super::avro::node::{Node, SchemaError};
use super::avro::program::{Program, compile};
use super::columns::{Column, Data};
use super::fill::{Rejection, fill_side};
use super::meta::KEY;
use super::protobuf::{self, Scratch};
use super::{Codec, Decoded, Learnt, Side, frame, key};

/// How long an id counts as refused before the registry is asked again.
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// Ids remembered; refused ones are forgotten beyond it.
const WRITERS_MAX: usize = 10_000;

/// Decodes records that name their schema into the columns of the reader schema.
#[derive(Debug)]
pub struct Registered {
    side: Side,
    reader: Reader,
    schema: SchemaRef,
    tombstones: Tombstones,
    writers: HashMap<SchemaId, Writer>,
}

/// What all records are read as.
#[derive(Debug)]
enum Reader {
    /// Of keys: as the one field of a record.
    Avro(Node),
    Protobuf(protobuf::Reader),
}

#[derive(Debug)]
enum Writer {
    Avro(Program),
    Protobuf(protobuf::Writer),
    Refused { code: &'static str, message: String, at: Instant },
}

impl Registered {
    /// # Errors
    /// [`SchemaError`] if the reader schema has no Arrow form.
    pub fn avro(reader: Node, tombstones: Tombstones) -> Result<Self, SchemaError> {
        let schema = arrow_type::schema(&reader, tombstones == Tombstones::Keep)?;
        Ok(Self::of(Side::Value, Reader::Avro(reader), schema, tombstones))
    }

    /// For keys of any type: one column, null where there is no key.
    ///
    /// # Errors
    /// [`SchemaError`] if the reader schema has no Arrow form.
    pub fn avro_keys(reader: Node) -> Result<Self, SchemaError> {
        let reader = key::as_field(reader);
        let schema = arrow_type::schema(&reader, true)?;
        Ok(Self::of(Side::Key, Reader::Avro(reader), schema, Tombstones::Keep))
    }

    /// The message `name` of a file, or its first one.
    ///
    /// # Errors
    /// [`protobuf::SchemaError`] if it has no Arrow form.
    pub fn protobuf(
        file: &protobuf::File,
        name: Option<&str>,
        tombstones: Tombstones,
    ) -> Result<Self, protobuf::SchemaError> {
        let reader = protobuf::Reader::new(file, name, tombstones == Tombstones::Keep)?;
        let schema = reader.schema().clone();
        Ok(Self::of(Side::Value, Reader::Protobuf(reader), schema, tombstones))
    }

    /// For keys: one column of the message, null where there is no key.
    ///
    /// # Errors
    /// [`protobuf::SchemaError`] if the message has no Arrow form.
    pub fn protobuf_keys(file: &protobuf::File, name: Option<&str>) -> Result<Self, protobuf::SchemaError> {
        let reader = protobuf::Reader::new(file, name, false)?;
        let message = DataType::Struct(reader.schema().fields().clone());
        let schema = Arc::new(Schema::new(vec![Field::new(KEY, message, true)]));
        Ok(Self::of(Side::Key, Reader::Protobuf(reader), schema, Tombstones::Keep))
    }

    fn of(side: Side, reader: Reader, schema: SchemaRef, tombstones: Tombstones) -> Self {
        Self { side, reader, schema, tombstones, writers: HashMap::new() }
    }

    /// What reads what was written with this schema.
    fn compile(&self, id: SchemaId, kind: &str, text: &str, references: &[Reference]) -> Writer {
        let done = match (&self.reader, kind) {
            (Reader::Avro(reader), "AVRO") => {
                let writer = Node::parse(text, references).map(|writer| match self.side {
                    Side::Value => writer,
                    Side::Key => key::as_field(writer),
                });
                let program = writer.and_then(|writer| compile(&writer, reader));
                program.map(Writer::Avro).map_err(|error| error.to_string())
            }
            (Reader::Protobuf(reader), "PROTOBUF") => {
                let file = protobuf::parse(text, references);
                file.map(|file| Writer::Protobuf(reader.writer(&file))).map_err(|error| error.to_string())
            }
            (reader, other) => {
                let own = match reader {
                    Reader::Avro(_) => "AVRO",
                    Reader::Protobuf(_) => "PROTOBUF",
                };
                let message = format!("schema id {id} is {other}, and this route reads {own}");
                return refused("schema_type", message);
            }
        };
        done.unwrap_or_else(|problem| {
            let message = format!("schema id {id} cannot be read as the route's reader schema: {problem}");
            refused("refused_schema", message)
        })
    }

    /// A refusal is asked about again after a while: the registry may have learnt the id.
    fn is_known(&self, id: SchemaId) -> bool {
        match self.writers.get(&id) {
            Some(Writer::Refused { at, .. }) => at.elapsed() < REFUSED_MAX,
            Some(_) => true,
            None => false,
        }
    }

    fn decode_one(
        &self,
        record: &RecordRef<'_>,
        bytes: &[u8],
        columns: &mut [Column],
        scratch: &mut Scratch,
    ) -> Result<(), Rejection> {
        let (id, payload) = frame::parse(self.side, record, bytes).map_err(|error| Rejection {
            code: error.code(),
            message: error.to_string(),
            schema_id: None,
        })?;
        let reject = |code, message| Rejection { code, message, schema_id: Some(id) };
        match self.writers.get(&id) {
            Some(Writer::Avro(program)) => program.decode(payload, columns).map_err(|bad| {
                // The first step of a key's path is the column that it was put into.
                let skipped = usize::from(self.side == Side::Key).min(bad.path.len());
                let path = bad.path[skipped..].join(".");
                reject(bad.problem.code(), format!("{}{}", field(&path), bad.problem))
            }),
            Some(Writer::Protobuf(writer)) => self
                .read_message(writer, payload, columns, scratch)
                .map_err(|bad| reject(bad.code, format!("{}{}", field(&bad.path.join(".")), bad.message))),
            Some(Writer::Refused { code, message, .. }) => Err(reject(code, message.clone())),
            None => Err(reject("unknown_id", format!("schema id {id} was never looked up"))),
        }
    }

    fn read_message(
        &self,
        writer: &protobuf::Writer,
        payload: &[u8],
        columns: &mut [Column],
        scratch: &mut Scratch,
    ) -> Result<(), protobuf::Bad> {
        if self.side == Side::Value {
            return writer.decode(payload, columns, scratch);
        }
        let misfit = || protobuf::Bad::new("type_mismatch", "the column of keys is no struct".to_owned());
        let [column] = columns else { return Err(misfit()) };
        let Data::Struct { len, fields } = &mut column.data else { return Err(misfit()) };
        writer.decode(payload, fields, scratch)?;
        *len += 1;
        column.mark_valid();
        Ok(())
    }
}

fn refused(code: &'static str, message: String) -> Writer {
    Writer::Refused { code, message, at: Instant::now() }
}

/// Before what is wrong: where.
fn field(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("field `{path}`: ") }
}

impl Codec for Registered {
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
        let writer = match schema {
            Learnt::Schema { kind, text, references } => self.compile(id, &kind, &text, &references),
            Learnt::Unknown => refused("unknown_id", format!("the registry has no schema id {id}")),
            Learnt::Unusable(why) => {
                refused("refused_schema", format!("schema id {id} cannot be used: {why}"))
            }
        };
        // Garbage may name any number of ids.
        if self.writers.len() >= WRITERS_MAX {
            // Not those just learnt, or a batch of garbage would be asked for again and again.
            self.writers.retain(|_, writer| match writer {
                Writer::Refused { at, .. } => at.elapsed() < REFUSED_MAX,
                Writer::Avro(_) | Writer::Protobuf(_) => true,
            });
        }
        self.writers.insert(id, writer);
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        let mut scratch = Scratch::default();
        fill_side(self.side, &self.schema, self.tombstones, records, |record, bytes, columns| {
            self.decode_one(record, bytes, columns, &mut scratch)
        })
    }
}
