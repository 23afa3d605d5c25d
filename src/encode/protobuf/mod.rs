//! Columns as Protobuf: bound to a message, and written row by row. What a field that is null becomes is what a reader
//! makes null of again; lists and maps are the exception, which Protobuf cannot tell from empty ones.

mod op;
pub mod schema;

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::DataType;
use protox::prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::{Misfit, Unfit, is_null, plain, span};
use op::Op;

pub const NO_MESSAGE: &str = "is no struct, and all that Protobuf writes is a message: make one with `named_struct` in \
                              a view";

/// The kinds of a tag.
const VARINT: u32 = 0;
const BITS64: u32 = 1;
const BYTES: u32 = 2;
const BITS32: u32 = 5;

/// A struct and the message it is written as.
pub struct Message {
    fields: Vec<Field>,
    /// How many choices (`oneof`) it has.
    oneof_count: usize,
}

struct Field {
    name: String,
    tag: Vec<u8>,
    nulls: Option<NullBuffer>,
    put: Put,
    absent: Absent,
    /// The choice it belongs to.
    oneof: Option<usize>,
}

/// What it means that a field is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absent {
    Null,
    /// Zero, or empty: null has no form.
    Zero,
    /// Proto2's `required`.
    Never,
}

enum Put {
    One(Op),
    List {
        offsets: OffsetBuffer<i32>,
        nulls: Option<NullBuffer>,
        items: Op,
        is_packed: bool,
    },
    Map {
        offsets: OffsetBuffer<i32>,
        nulls: Option<NullBuffer>,
        keys: Box<Op>,
        values: Box<Op>,
        tags: [Vec<u8>; 2],
    },
}

impl Message {
    /// Binds columns to the fields of their names.
    ///
    /// # Errors
    /// [`Unfit`], naming the column.
    pub fn bind(message: &MessageDescriptor, array: &StructArray) -> Result<Self, Unfit> {
        let oneofs: Vec<String> = message
            .oneofs()
            .filter(|oneof| !oneof.is_synthetic())
            .map(|oneof| oneof.name().to_owned())
            .collect();
        let names = array.fields().iter().map(|field| field.name().as_str());
        let mut columns: HashMap<&str, &ArrayRef> = names.zip(array.columns()).collect();
        let mut fields = Vec::with_capacity(columns.len());
        for descriptor in message.fields() {
            let Some(column) = columns.remove(descriptor.name()) else {
                if descriptor.is_required() {
                    let problem = "is not there, and the message requires it";
                    return Err(Unfit::new(problem).inside(descriptor.name()));
                }
                continue;
            };
            let oneof = descriptor.containing_oneof();
            let oneof = oneof.and_then(|own| oneofs.iter().position(|name| name == own.name()));
            let bound = Field::bind(&descriptor, column, oneof);
            fields.push(bound.map_err(|unfit| unfit.inside(descriptor.name()))?);
        }
        // The first of them in the order of the columns.
        let extra = array.fields().iter().find(|field| columns.contains_key(field.name().as_str()));
        match extra {
            Some(extra) => {
                let problem = format!("is no field of `{}`: leave it out in a view", message.full_name());
                Err(Unfit::new(problem).inside(extra.name()))
            }
            None => Ok(Self { fields, oneof_count: oneofs.len() }),
        }
    }

    pub fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Misfit> {
        if self.oneof_count > 0 {
            self.check_choices(row)?;
        }
        for field in &self.fields {
            field.write(row, out).map_err(|misfit| misfit.inside(&field.name))?;
        }
        Ok(())
    }

    /// Of each choice one column at most has a value: readers keep only the last.
    fn check_choices(&self, row: usize) -> Result<(), Misfit> {
        let mut is_taken = vec![false; self.oneof_count];
        for field in &self.fields {
            let Some(oneof) = field.oneof.filter(|_| !is_null(field.nulls.as_ref(), row)) else {
                continue;
            };
            if std::mem::replace(&mut is_taken[oneof], true) {
                let problem = "is the second one with a value of a `oneof`";
                return Err(Misfit::new(problem).inside(&field.name));
            }
        }
        Ok(())
    }
}

impl Field {
    fn bind(descriptor: &FieldDescriptor, array: &ArrayRef, oneof: Option<usize>) -> Result<Self, Unfit> {
        let values = plain(array)?;
        let kind = descriptor.kind();
        let number = descriptor.number();
        let (put, kind_of_tag) = match values.data_type() {
            DataType::List(_) if descriptor.is_list() => {
                let list = values.as_list::<i32>();
                let (offsets, nulls) = (list.offsets().clone(), list.values().logical_nulls());
                let items = Op::bind(&kind, list.values())?;
                let is_packed = descriptor.is_packed();
                let kind_of_tag = if is_packed { BYTES } else { items.kind_of_tag() };
                (Put::List { offsets, nulls, items, is_packed }, kind_of_tag)
            }
            DataType::Map(..) if descriptor.is_map() => {
                let map = values.as_map();
                let (offsets, nulls) = (map.offsets().clone(), map.values().logical_nulls());
                let Kind::Message(entry) = &kind else {
                    return Err(cannot(array, descriptor));
                };
                let keys = Box::new(Op::bind(&entry.map_entry_key_field().kind(), map.keys())?);
                let values = Box::new(Op::bind(&entry.map_entry_value_field().kind(), map.values())?);
                let tags = [tag(1, keys.kind_of_tag()), tag(2, values.kind_of_tag())];
                (Put::Map { offsets, nulls, keys, values, tags }, BYTES)
            }
            _ if descriptor.is_list() || descriptor.is_map() => return Err(cannot(array, descriptor)),
            _ => {
                let op = Op::bind(&kind, &values)?;
                let kind_of_tag = op.kind_of_tag();
                (Put::One(op), kind_of_tag)
            }
        };
        let absent = if descriptor.is_required() {
            Absent::Never
        } else if descriptor.supports_presence() {
            Absent::Null
        } else {
            Absent::Zero
        };
        Ok(Self {
            name: descriptor.name().to_owned(),
            tag: tag(number, kind_of_tag),
            nulls: array.logical_nulls(),
            put,
            absent,
            oneof,
        })
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Misfit> {
        let is_null = is_null(self.nulls.as_ref(), row);
        match &self.put {
            Put::One(_) if is_null => match self.absent {
                Absent::Null => Ok(()),
                Absent::Zero => Err(Misfit::new("is null, and its field is not `optional`")),
                Absent::Never => Err(Misfit::new("is null, and its field is `required`")),
            },
            Put::List { .. } | Put::Map { .. } if is_null => Ok(()),
            Put::One(op) if self.absent == Absent::Zero && op.is_zero(row) => Ok(()),
            Put::One(op) => {
                out.extend_from_slice(&self.tag);
                op.write(row, out)
            }
            Put::List { offsets, nulls, items, is_packed } => {
                let span = span(offsets, row);
                check_items(nulls.as_ref(), span.clone())?;
                if *is_packed && !span.is_empty() {
                    out.extend_from_slice(&self.tag);
                    return prefixed(out, |out| span.into_iter().try_for_each(|item| items.write(item, out)));
                }
                for item in span {
                    out.extend_from_slice(&self.tag);
                    items.write(item, out)?;
                }
                Ok(())
            }
            Put::Map { offsets, nulls, keys, values, tags } => {
                let span = span(offsets, row);
                check_items(nulls.as_ref(), span.clone())?;
                for entry in span {
                    out.extend_from_slice(&self.tag);
                    prefixed(out, |out| {
                        out.extend_from_slice(&tags[0]);
                        keys.write(entry, out)?;
                        out.extend_from_slice(&tags[1]);
                        values.write(entry, out)
                    })?;
                }
                Ok(())
            }
        }
    }
}

fn check_items(nulls: Option<&NullBuffer>, span: std::ops::Range<usize>) -> Result<(), Misfit> {
    match nulls {
        Some(nulls) if span.into_iter().any(|item| nulls.is_null(item)) => {
            Err(Misfit::new("holds a null, and Protobuf's lists and maps cannot"))
        }
        _ => Ok(()),
    }
}

fn cannot(array: &ArrayRef, descriptor: &FieldDescriptor) -> Unfit {
    let label = match (descriptor.is_list(), descriptor.is_map()) {
        (true, _) => "a repeated field",
        (_, true) => "a map",
        _ => "one value",
    };
    Unfit::new(format!("is {}, and its field is {label}", array.data_type()))
}

/// How a record says which message of its file it is: a count and that many numbers, zigzag; the first message has a
/// short form (Confluent's `MessageIndexes`).
pub fn indexes(path: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if path == [0] {
        return vec![0];
    }
    for number in [path.len() as u64].iter().chain(path) {
        varint(number << 1, &mut bytes);
    }
    bytes
}

fn tag(number: u32, kind: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint(u64::from(number << 3 | kind), &mut bytes);
    bytes
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes something with its length before it.
fn prefixed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), Misfit>) -> Result<(), Misfit> {
    let start = out.len();
    // Nearly always one byte is enough; else what was written moves.
    out.push(0);
    write(out)?;
    let length = out.len() - start - 1;
    if length < 0x80 {
        out[start] = length as u8;
        return Ok(());
    }
    let mut prefix = Vec::new();
    varint(length as u64, &mut prefix);
    drop(out.splice(start..=start, prefix));
    Ok(())
}
