//! `registry`: Avro, Protobuf or JSON whose records name their schemas, all writer versions read as one reader schema. For
//! values and for keys.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::config::plan::{Framing, Recursion, SchemaFormat, Tombstones};
use crate::model::{RecordRef, Reference, SchemaKey, SchemaVersion, code};

use super::avro::arrow_type;
use super::avro::decode::{BadValue, long};
use super::avro::node::{Kind, Node, SchemaError};
use super::avro::program::{Program, compile};
use super::columns::{Column, Data};
use super::debezium::{self, Changes, Event};
use super::fill::{Rejection, fill_side};
use super::frame::{Frame, FrameError};
use super::json::{self, Unfit, put_any, put_object};
use super::json_schema::Validation;
use super::known::Known;
use super::limits::cut;
use super::meta::KEY;
use super::protobuf::{self, Scratch};
use super::{Codec, Decoded, Learnt, Side, frame, key};

/// How long a schema counts as refused before the registry is asked again.
pub(super) const REFUSED_MAX: Duration = Duration::from_secs(60);

/// What would be a defect of ours.
const MISMATCH: &str = "the route's columns are not those of its schema";

/// Decodes records that name their schema into the columns of the reader schema.
#[derive(Debug)]
pub struct Registered {
    side: Side,
    reader: Reader,
    schema: SchemaRef,
    tombstones: Tombstones,
    framing: Framing,
    recursion: Recursion,
    is_validated: bool,
    /// What messages call the reader schema, if they are to name it.
    reader_name: Option<String>,
    version: Option<SchemaVersion>,
    /// The one type of those that a writer's schema may have of which all records are; see [`Registered::of_type`].
    record_type: Option<String>,
    writers: Known<Writer>,
}

/// What all records are read as.
#[derive(Debug)]
enum Reader {
    /// Of keys: as the one field of a record.
    Avro(Node),
    Protobuf(protobuf::Reader),
    /// Of keys: of any type.
    Json(Node),
    /// Change events, in Avro or JSON.
    Changes(Changes),
}

impl Reader {
    /// As the registry calls the format.
    fn kind(&self) -> &'static str {
        match self {
            Self::Avro(_) => "AVRO",
            Self::Protobuf(_) => "PROTOBUF",
            Self::Json(_) => "JSON",
            Self::Changes(changes) => changes.format().name(),
        }
    }
}

#[derive(Debug)]
enum Writer {
    Avro(Program),
    /// The number of a branch first: the schema is a union of record types.
    AvroBranch(Program),
    Protobuf(protobuf::Writer),
    Changes(debezium::Writer),
    /// Fields of JSON have their names with them: the writer's schema is looked at only to validate.
    Json(Option<Box<Validation>>),
    Refused {
        code: &'static str,
        message: String,
        at: Instant,
    },
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

    /// JSON in the types of a JSON Schema.
    ///
    /// # Errors
    /// [`SchemaError`] if the reader schema has no Arrow form.
    pub fn json(reader: Node, tombstones: Tombstones) -> Result<Self, SchemaError> {
        // A value that is the text `null` has no fields, whatever the schema says of it.
        let reader = arrow_type::nullable(&reader).map_or(&reader, |(inner, _)| inner).clone();
        let schema = arrow_type::schema(&reader, tombstones == Tombstones::Keep)?;
        Ok(Self::of(Side::Value, Reader::Json(reader), schema, tombstones))
    }

    /// For keys of any type: one column, null where there is no key.
    ///
    /// # Errors
    /// [`SchemaError`] if the reader schema has no Arrow form.
    pub fn json_keys(reader: Node) -> Result<Self, SchemaError> {
        let schema = arrow_type::schema(&key::as_field(reader.clone()), true)?;
        Ok(Self::of(Side::Key, Reader::Json(reader), schema, Tombstones::Keep))
    }

    /// Change events of database tables.
    pub fn changes(changes: Changes) -> Self {
        let schema = changes.schema().clone();
        Self::of(Side::Value, Reader::Changes(changes), schema, Tombstones::Skip)
    }

    fn of(side: Side, reader: Reader, schema: SchemaRef, tombstones: Tombstones) -> Self {
        Self {
            side,
            reader,
            schema,
            tombstones,
            framing: Framing::Confluent,
            recursion: Recursion::Refuse,
            is_validated: false,
            reader_name: None,
            version: None,
            record_type: None,
            writers: Known::new(),
        }
    }

    /// What becomes of writers' types that contain themselves; of the reader's it is decided.
    #[must_use]
    pub fn recursive(mut self, recursion: Recursion) -> Self {
        self.recursion = recursion;
        self
    }

    /// Whether JSON is held against all that the schema says which it names.
    #[must_use]
    pub fn validated(mut self, is_validated: bool) -> Self {
        self.is_validated = is_validated;
        self
    }

    /// Calls the reader schema this in messages, and says which version of a subject it is.
    #[must_use]
    pub fn read_as(mut self, name: String, version: Option<SchemaVersion>) -> Self {
        self.reader_name = Some(name);
        self.version = version;
        self
    }

    /// Reads records that name their schemas in this way. Protobuf of Apicurio is framed in another way still, which is
    /// refused before it comes here.
    #[must_use]
    pub fn framed(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Reads records of one type only, which somebody has told from the others. Of Avro: the branch of a writer's union
    /// that has this full name.
    #[must_use]
    pub fn of_type(mut self, record_type: Option<String>) -> Self {
        self.record_type = record_type;
        self
    }

    /// What reads what was written with this schema.
    fn compile(&self, name: SchemaKey, kind: &str, text: &str, references: &[Reference]) -> Writer {
        let done = match (&self.reader, kind) {
            (Reader::Avro(reader), "AVRO") => {
                let record = self.record_type.as_deref().filter(|_| self.side == Side::Value);
                let writer = match record {
                    Some(record) => Node::parse_record(text, references, self.recursion, record),
                    None => {
                        let writer = Node::parse_with(text, references, self.recursion);
                        writer.map(|writer| (writer, false))
                    }
                };
                let compiled = writer.and_then(|(writer, is_branch)| {
                    let writer = if self.side == Side::Key { key::as_field(writer) } else { writer };
                    let program = compile(&writer, reader)?;
                    Ok(if is_branch { Writer::AvroBranch(program) } else { Writer::Avro(program) })
                });
                compiled.map_err(|error| error.to_string())
            }
            (Reader::Protobuf(reader), "PROTOBUF") => {
                let file = protobuf::parse(text, references);
                file.map(|file| Writer::Protobuf(reader.writer(&file))).map_err(|error| error.to_string())
            }
            (Reader::Changes(changes), "AVRO") if changes.format() == SchemaFormat::Avro => {
                let writer = Node::parse_with(text, references, self.recursion);
                let writer = writer.and_then(|writer| changes.writer(&writer));
                writer.map(Writer::Changes).map_err(|error| error.to_string())
            }
            (reader, "JSON") if reader.kind() == "JSON" && self.is_validated => {
                let validation = Validation::new(text, references);
                validation
                    .map(|validation| Writer::Json(Some(Box::new(validation))))
                    .map_err(|error| error.to_string())
            }
            (reader, "JSON") if reader.kind() == "JSON" => Ok(Writer::Json(None)),
            (reader, other) => {
                let own = reader.kind();
                let reader = self.reader_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
                let message = format!("schema {name} is {other}, and this route reads {own}{reader}");
                return refused(code::SCHEMA_TYPE, message);
            }
        };
        done.unwrap_or_else(|problem| {
            let reader = self.reader_name.as_ref().map(|name| format!(", {name}")).unwrap_or_default();
            let message =
                format!("schema {name} cannot be read as the route's reader schema{reader}: {problem}");
            refused(code::REFUSED_SCHEMA, message)
        })
    }

    /// A refusal is asked about again after a while: the registry may have learnt the schema.
    fn is_known(&self, name: SchemaKey) -> bool {
        match self.writers.get(name) {
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
        let unframed = |message| Rejection { code: FrameError::CODE, message, schema_id: None };
        let frame = frame::parse(self.framing, self.side, record, bytes)
            .map_err(|error| unframed(error.to_string()))?;
        let reject = |code, message| Rejection { code, message, schema_id: Some(frame.schema) };
        let misread = |bad: BadValue| {
            // The first step of a key's path is the column that it was put into.
            let skipped = usize::from(self.side == Side::Key).min(bad.path.len());
            let path = bad.path[skipped..].join(".");
            reject(bad.problem.code(), format!("{}{}", field(&path), bad.problem))
        };
        match self.writers.get(frame.schema) {
            Some(Writer::Protobuf(writer)) => self
                .read_message(writer, &frame, columns, scratch)
                .map_err(|bad| reject(bad.code, format!("{}{}", field(&bad.path.join(".")), bad.message))),
            Some(Writer::Refused { code, message, .. }) => Err(reject(code, message.clone())),
            None => Err(reject(code::UNKNOWN_ID, format!("schema {} was never looked up", frame.schema))),
            Some(Writer::Changes(_)) => Err(reject(code::TYPE_MISMATCH, MISMATCH.to_owned())),
            // Only Protobuf has something to say there.
            Some(_) if frame.beside.is_some_and(|beside| !beside.is_empty()) => {
                Err(reject(FrameError::CODE, "its header has bytes behind the schema's name".to_owned()))
            }
            Some(Writer::Avro(program)) => program.decode(frame.payload, columns).map_err(misread),
            Some(Writer::AvroBranch(program)) => {
                long(frame.payload).and_then(|(_, payload)| program.decode(payload, columns)).map_err(misread)
            }
            Some(Writer::Json(validation)) => self
                .read_json(validation.as_deref(), frame.payload, columns)
                .map_err(|unfit| reject(unfit.code, unfit.message)),
        }
    }

    /// Takes a change event apart; what happened goes into `head`.
    fn read_change<'w, 'b>(
        &'w self,
        record: &RecordRef<'b>,
        bytes: &'b [u8],
        head: &mut [Column],
    ) -> Result<(Event<'w, 'b>, Option<SchemaKey>), Rejection> {
        let frame = frame::parse(self.framing, self.side, record, bytes).map_err(|error| Rejection {
            code: FrameError::CODE,
            message: error.to_string(),
            schema_id: None,
        })?;
        let id = Some(frame.schema);
        let reject = |code, message| Rejection { code, message, schema_id: id };
        let event = match self.writers.get(frame.schema) {
            Some(Writer::Changes(writer)) => writer.read(frame.payload, head),
            Some(Writer::Refused { code, message, .. }) => return Err(reject(*code, message.clone())),
            Some(Writer::Json(validation)) => json_change(validation.as_deref(), frame.payload, head),
            Some(Writer::Avro(_) | Writer::AvroBranch(_) | Writer::Protobuf(_)) => {
                return Err(reject(code::TYPE_MISMATCH, MISMATCH.to_owned()));
            }
            None => {
                return Err(reject(code::UNKNOWN_ID, format!("schema {} was never looked up", frame.schema)));
            }
        };
        Ok((event.map_err(|bad| bad.rejection(id))?, id))
    }

    fn read_json(
        &self,
        validation: Option<&Validation>,
        payload: &[u8],
        columns: &mut [Column],
    ) -> Result<(), Unfit> {
        let json = json::parse(payload)?;
        if let Some(validation) = validation {
            validation.check(&json)?;
        }
        match (&self.reader, columns) {
            (Reader::Json(node), [column]) if self.side == Side::Key => put_any(node, &json, column),
            (Reader::Json(Node { kind: Kind::Record(record), .. }), columns) => {
                put_object(record, &json, columns)
            }
            _ => Err(Unfit { code: code::TYPE_MISMATCH, message: MISMATCH.to_owned() }),
        }
    }

    fn read_message(
        &self,
        writer: &protobuf::Writer,
        frame: &Frame<'_>,
        columns: &mut [Column],
        scratch: &mut Scratch,
    ) -> Result<(), protobuf::Bad> {
        let mut decode = |columns: &mut [Column]| match frame.beside {
            Some(indexes) => writer.decode_beside(indexes, frame.payload, columns, scratch),
            None => writer.decode(frame.payload, columns, scratch),
        };
        if self.side == Side::Value {
            return decode(columns);
        }
        let misfit = || protobuf::Bad::new(code::TYPE_MISMATCH, "the column of keys is no struct".to_owned());
        let [column] = columns else { return Err(misfit()) };
        let Data::Struct { len, fields } = &mut column.data else { return Err(misfit()) };
        decode(fields)?;
        *len += 1;
        column.mark_valid();
        Ok(())
    }
}

/// Takes a change event in JSON apart, if it keeps to its schema.
fn json_change<'w, 'b>(
    validation: Option<&Validation>,
    payload: &[u8],
    head: &mut [Column],
) -> Result<Event<'w, 'b>, debezium::Bad> {
    let json = json::parse(payload)?;
    if let Some(validation) = validation {
        validation.check(&json)?;
    }
    debezium::read_json(json, head)
}

fn refused(code: &'static str, message: String) -> Writer {
    // Each of its records repeats it.
    Writer::Refused { code, message: cut(message), at: Instant::now() }
}

/// Before what is wrong: where.
fn field(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("field `{path}`: ") }
}

impl Codec for Registered {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn offered(&self) -> Vec<Field> {
        match &self.reader {
            Reader::Changes(changes) => changes.offered(),
            _ => Vec::new(),
        }
    }

    fn give(&mut self, columns: &[Field]) {
        if let Reader::Changes(changes) = &mut self.reader {
            changes.give(columns);
            self.schema = changes.schema().clone();
        }
    }

    fn keep_newest(&mut self, tells_unavailable: bool) {
        if let Reader::Changes(changes) = &mut self.reader {
            changes.keep_newest(tells_unavailable);
        }
    }

    fn framing(&self) -> Framing {
        self.framing
    }

    fn named(&self, record: &RecordRef<'_>) -> Option<SchemaKey> {
        let bytes = self.side.bytes(record)?;
        frame::parse(self.framing, self.side, record, bytes).ok().map(|frame| frame.schema)
    }

    fn refusal(&self, key: SchemaKey) -> Option<&str> {
        match self.writers.get(key) {
            Some(Writer::Refused { message, .. }) => Some(message),
            _ => None,
        }
    }

    fn version(&self) -> Option<&SchemaVersion> {
        self.version.as_ref()
    }

    fn missing(&self, records: &[RecordRef<'_>]) -> Vec<SchemaKey> {
        let (mut missing, mut seen) = (Vec::new(), HashSet::new());
        // Schemas come in runs: comparing with the last one saves most look-ups.
        let mut last = None;
        for record in records {
            let framed =
                self.side.bytes(record).map(|bytes| frame::parse(self.framing, self.side, record, bytes));
            let Some(Ok(Frame { schema, .. })) = framed else {
                continue;
            };
            if last != Some(schema) && !self.is_known(schema) && seen.insert(schema) {
                missing.push(schema);
            }
            last = Some(schema);
        }
        missing
    }

    fn need(&mut self, keys: &Arc<HashSet<SchemaKey>>) {
        self.writers.need(keys);
    }

    fn learn(&mut self, name: SchemaKey, schema: Learnt) {
        let size = schema.size();
        let writer = match schema {
            Learnt::Schema { kind, text, references } => self.compile(name, &kind, &text, &references),
            Learnt::Unknown => refused(code::UNKNOWN_ID, format!("the registry has no schema {name}")),
            Learnt::Unusable(why) => {
                refused(code::REFUSED_SCHEMA, format!("schema {name} cannot be used: {why}"))
            }
            Learnt::Foreign(why) => refused(code::FOREIGN_ID, why),
        };
        let size = match &writer {
            Writer::Avro(_) | Writer::AvroBranch(_) | Writer::Protobuf(_) | Writer::Changes(_) => size,
            Writer::Json(validation) => validation.as_ref().map_or(0, |validation| size + validation.size()),
            Writer::Refused { message, .. } => message.len(),
        };
        self.writers.insert(name, writer, size);
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        if let Reader::Changes(changes) = &self.reader {
            return changes.fill(records, |record, bytes, head| self.read_change(record, bytes, head));
        }
        let mut scratch = Scratch::default();
        fill_side(self.side, &self.schema, self.tombstones, records, |record, bytes, columns| {
            self.decode_one(record, bytes, columns, &mut scratch)
        })
    }
}

#[cfg(test)]
mod tests;
