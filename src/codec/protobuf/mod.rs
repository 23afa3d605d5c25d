//! Protobuf as the registry has it: texts or descriptors in, columns out.
//!
//! Wire format: <https://protobuf.dev/programming-guides/encoding/>. Framing: the schema id is followed by the path of the message within
//! its file, as Confluent's `MessageIndexes` writes it. `docs/types.md` has the table of types for users.

mod decode;
mod file;
mod json;
mod shape;
mod tree;
mod wire;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::model::code;

pub use decode::{Bad, Scratch};
pub use file::{File, SchemaError, parse};

use shape::Shape;
use wire::Wire;

/// Deeper paths are refused: messages nest 32 levels at most in a file that compiles.
const INDEXES_MAX: u64 = 64;

/// A reader message: the columns it becomes, and how.
#[derive(Debug, Clone)]
pub struct Reader {
    name: String,
    shape: Arc<Shape>,
    schema: SchemaRef,
}

impl Reader {
    /// The message `name` of a file, or its first one. With `nullable`, every top-level column is nullable: rows of
    /// nulls stand for tombstones.
    ///
    /// # Errors
    /// [`SchemaError`], naming the field that has no Arrow form.
    pub fn new(file: &File, name: Option<&str>, nullable: bool) -> Result<Self, SchemaError> {
        let descriptor = file.message(name)?;
        let (shape, schema) = shape::compile(&descriptor, nullable, file.recursion())?;
        Ok(Self { name: descriptor.full_name().to_owned(), shape: Arc::new(shape), schema })
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What reads records written with this file.
    pub fn writer(&self, file: &File) -> Writer {
        let names = file.names();
        let own = names.iter().filter(|(_, name)| *name == self.name);
        let prefixes = own.flat_map(|(path, _)| prefixes(path)).collect();
        Writer { reader: self.clone(), names, prefixes }
    }
}

/// Reads what was written with one schema id.
///
/// Fields are known by their numbers, so the reader's message reads what any version wrote; the writer's file only
/// says which message a record is.
#[derive(Debug)]
pub struct Writer {
    reader: Reader,
    /// Full names of the file's messages, by their paths.
    names: Vec<(Vec<u64>, String)>,
    /// How serialisers write the path of the reader's message.
    prefixes: Vec<Vec<u8>>,
}

impl Writer {
    /// Appends one record, whose message indexes and message are `payload`.
    ///
    /// # Errors
    /// What is wrong with the bytes; then the columns hold parts of the record and have to be truncated.
    pub fn decode(
        &self,
        payload: &[u8],
        columns: &mut [crate::codec::columns::Column],
        scratch: &mut Scratch,
    ) -> Result<(), Bad> {
        if let Some(prefix) = self.prefixes.iter().find(|prefix| payload.starts_with(prefix)) {
            return decode::record(&self.reader.shape, payload, prefix.len(), columns, scratch);
        }
        let mut wire = Wire::new(payload, 0, payload.len());
        self.check_path(&indexes(&mut wire)?)?;
        decode::record(&self.reader.shape, payload, wire.at(), columns, scratch)
    }

    /// As [`Writer::decode`], with the message indexes of a header beside the message.
    ///
    /// # Errors
    /// Likewise.
    pub fn decode_beside(
        &self,
        beside: &[u8],
        payload: &[u8],
        columns: &mut [crate::codec::columns::Column],
        scratch: &mut Scratch,
    ) -> Result<(), Bad> {
        if !self.prefixes.iter().any(|prefix| prefix.as_slice() == beside) {
            let mut wire = Wire::new(beside, 0, beside.len());
            self.check_path(&indexes(&mut wire)?)?;
            if !wire.is_at_end() {
                return Err(Bad::new(
                    code::FRAMING,
                    "its header has bytes behind the message indexes".to_owned(),
                ));
            }
        }
        decode::record(&self.reader.shape, payload, 0, columns, scratch)
    }

    /// Whether the message at a path of the writer's file is the reader's.
    fn check_path(&self, path: &[u64]) -> Result<(), Bad> {
        match self.names.iter().find(|(own, _)| own == path) {
            Some((_, name)) if *name == self.reader.name => Ok(()),
            Some((_, name)) => Err(Bad::new(
                code::SCHEMA_TYPE,
                format!("it is a `{name}`, and the route reads `{}`", self.reader.name),
            )),
            None => Err(Bad::new(
                code::FRAMING,
                format!("its schema has no message at the {} indexes that it names", path.len()),
            )),
        }
    }
}

/// The ways to write a path in the fewest bytes: the first message has a short form.
fn prefixes(path: &[u64]) -> Vec<Vec<u8>> {
    let mut long = Vec::new();
    for number in [path.len() as u64].iter().chain(path) {
        wire::write_varint(number << 1, &mut long);
    }
    if path == [0] { vec![vec![0], long] } else { vec![long] }
}

/// Which message of its file a record says it is, by its path there: in a header `beside` it, or at its start.
///
/// # Errors
/// If that is no path.
pub fn path(beside: Option<&[u8]>, payload: &[u8]) -> Result<Vec<u64>, Bad> {
    let bytes = beside.unwrap_or(payload);
    indexes(&mut Wire::new(bytes, 0, bytes.len()))
}

/// The path of a message in its file: a count and that many numbers, zigzag; a single 0 is the first message.
fn indexes(wire: &mut Wire<'_>) -> Result<Vec<u64>, Bad> {
    let wrong = || Bad::new(code::FRAMING, "its message indexes are no path".to_owned());
    let mut index = || {
        let number = wire.varint().map_err(|_| wrong())?;
        u64::try_from(wire::zigzag(number)).map_err(|_| wrong())
    };
    let count = index()?;
    if count > INDEXES_MAX {
        return Err(wrong());
    }
    let path = (0..count).map(|_| index()).collect::<Result<Vec<_>, _>>()?;
    Ok(if path.is_empty() { vec![0] } else { path })
}

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;
