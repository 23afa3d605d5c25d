//! Messages that contain themselves as JSON text, in the forms that all text has (`render`). What a field is, is decided
//! as for columns: the last value counts, and what is not written is null or its type's default.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use super::decode::{Result, default, expect, int32, misfit, mismatch, pair, timestamp, wrapped};
use super::shape::{Absent, Field, Message, Op, Read};
use super::wire::{Kind, Raw, Wire, zigzag};
use super::{Bad, json};
use crate::codec::limits::{CELL_BYTES, LOOKS_PER_CELL, Spare, VALUE_DEPTH_MAX};
use crate::model::code;
use crate::render;

/// What a value costs of the cells that a record may fill: it is some hundred bytes until it is text.
const CELLS_PER_VALUE: usize = 16;

/// The JSON text of a message. `spare` is what the record may still fill.
///
/// # Errors
/// What is wrong with its bytes.
pub fn text(
    trees: &[Message],
    index: usize,
    bytes: &[u8],
    range: Range<usize>,
    spare: &mut Spare,
) -> Result<String> {
    let mut reader = Reader { trees, bytes, spare };
    Ok(reader.message(index, &[range], 0)?.to_string())
}

struct Reader<'a, 'c> {
    trees: &'a [Message],
    bytes: &'a [u8],
    spare: &'c mut Spare,
}

impl Reader<'_, '_> {
    /// A message, which may have come in several parts. `depth` values are around it.
    fn message(&mut self, index: usize, parts: &[Range<usize>], depth: usize) -> Result<Value> {
        if depth >= VALUE_DEPTH_MAX {
            return Err(Bad::depth());
        }
        let trees = self.trees;
        let message = trees.get(index).ok_or_else(misfit)?;
        let mut found: Vec<Vec<(Kind, Raw)>> = vec![Vec::new(); message.fields.len()];
        for part in parts {
            let mut wire = Wire::new(self.bytes, part.start, part.end);
            while !wire.is_at_end() {
                let (number, kind) = wire.tag()?;
                let raw = wire.value(number, kind)?;
                let Some(place) = message.find(number) else {
                    continue;
                };
                if let Some(oneof) = message.fields[place].oneof {
                    self.spare.take(message.fields.len() / LOOKS_PER_CELL)?;
                    let others = message.fields.iter().zip(&mut found).enumerate();
                    others
                        .filter(|(other, (field, _))| *other != place && field.oneof == Some(oneof))
                        .for_each(|(_, (_, values))| values.clear());
                }
                found[place].push((kind, raw));
            }
        }
        let mut object = Map::new();
        for (field, values) in message.fields.iter().zip(found) {
            let value = self.field(field, &values, depth + 1).map_err(|bad| bad.at(field))?;
            object.insert(field.name.clone(), value);
        }
        Ok(Value::Object(object))
    }

    fn pay(&mut self) -> Result<()> {
        self.spare.take(CELLS_PER_VALUE)?;
        Ok(())
    }

    fn field(&mut self, field: &Field, values: &[(Kind, Raw)], depth: usize) -> Result<Value> {
        self.pay()?;
        self.spare.take(field.name.len() / CELL_BYTES)?;
        match &field.read {
            Read::One(op) => {
                values.iter().try_for_each(|(kind, _)| expect(op, *kind))?;
                match (values, field.absent) {
                    ([], Absent::Null) => Ok(Value::Null),
                    ([], Absent::Default) => self.value(op, default(op), depth),
                    ([], Absent::Bad) => {
                        Err(Bad::new(code::TYPE_MISMATCH, "a required field is missing".to_owned()))
                    }
                    ([.., (_, last)], _) => self.one(op, values, *last, depth),
                }
            }
            Read::List(op) => self.list(op, values, depth),
            Read::Map { key, value } => self.map(key, value, values, depth),
        }
    }

    /// A value that is not repeated: parts of a message are one.
    fn one(&mut self, op: &Op, values: &[(Kind, Raw)], last: Raw, depth: usize) -> Result<Value> {
        let is_message = matches!(op, Op::Tree(_) | Op::Timestamp | Op::Wrapper(_) | Op::Json(_));
        if !is_message || values.len() == 1 {
            return self.value(op, last, depth);
        }
        let ranges = values.iter().filter_map(|(_, raw)| match raw {
            Raw::Bytes { start, end } => Some(*start..*end),
            _ => None,
        });
        if let Op::Tree(index) = op {
            return self.message(*index, &ranges.collect::<Vec<_>>(), depth);
        }
        let joined: Vec<u8> = ranges.flat_map(|range| self.bytes[range].iter().copied()).collect();
        plain(op, Raw::Bytes { start: 0, end: joined.len() }, &joined, depth)
    }

    fn list(&mut self, op: &Op, values: &[(Kind, Raw)], depth: usize) -> Result<Value> {
        let mut items = Vec::new();
        for (kind, raw) in values {
            match raw {
                Raw::Bytes { start, end } if op.is_packable() && *kind == Kind::Bytes => {
                    let mut packed = Wire::new(self.bytes, *start, *end);
                    while !packed.is_at_end() {
                        let raw = packed.value(0, op.kind())?;
                        self.pay()?;
                        items.push(self.value(op, raw, depth + 1)?);
                    }
                }
                raw => {
                    expect(op, *kind)?;
                    self.pay()?;
                    items.push(self.value(op, *raw, depth + 1)?);
                }
            }
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, key: &Op, value: &Op, values: &[(Kind, Raw)], depth: usize) -> Result<Value> {
        let mut entries = Map::new();
        for (kind, raw) in values {
            let (Raw::Bytes { start, end }, Kind::Bytes) = (raw, kind) else {
                return Err(mismatch(*kind));
            };
            let (raw_key, raw_value) = pair(self.bytes, key, value, *start, *end)?;
            self.pay()?;
            let name = match plain(key, raw_key, self.bytes, depth)? {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let value = self.value(value, raw_value, depth + 1)?;
            entries.insert(name, value);
        }
        Ok(Value::Object(entries))
    }

    fn value(&mut self, op: &Op, raw: Raw, depth: usize) -> Result<Value> {
        match (op, raw) {
            (Op::Enum(symbols), Raw::Varint(number)) => {
                self.spare.take_text(symbols.get(int32(number)?).unwrap_or_default())?;
                plain(op, raw, self.bytes, depth)
            }
            (Op::Tree(index), Raw::Bytes { start, end }) => {
                let part = start..end;
                self.message(*index, std::slice::from_ref(&part), depth)
            }
            (op, raw) => plain(op, raw, self.bytes, depth),
        }
    }
}

/// A value without fields that we know.
fn plain(op: &Op, raw: Raw, bytes: &[u8], depth: usize) -> Result<Value> {
    Ok(match (op, raw) {
        (Op::Wrapper(inner), raw) => plain(inner, wrapped(bytes, inner, raw)?, bytes, depth)?,
        (Op::Int32, Raw::Varint(number)) => int32(number)?.into(),
        (Op::Sint32, Raw::Varint(number)) => {
            i32::try_from(zigzag(number)).map_err(|_| Bad::overflow())?.into()
        }
        (Op::Uint32, Raw::Varint(number)) => u32::try_from(number).map_err(|_| Bad::overflow())?.into(),
        (Op::Int64, Raw::Varint(number)) => (number as i64).into(),
        (Op::Sint64, Raw::Varint(number)) => zigzag(number).into(),
        (Op::Uint64, Raw::Varint(number)) => number.into(),
        (Op::Bool, Raw::Varint(number)) => (number != 0).into(),
        (Op::Sfixed32, Raw::Bits32(bits)) => (bits as i32).into(),
        (Op::Fixed32, Raw::Bits32(bits)) => bits.into(),
        (Op::Float, Raw::Bits32(bits)) => float(f32::from_bits(bits).to_string().parse().ok()),
        (Op::Sfixed64, Raw::Bits64(bits)) => (bits as i64).into(),
        (Op::Fixed64, Raw::Bits64(bits)) => bits.into(),
        (Op::Double, Raw::Bits64(bits)) => float(Some(f64::from_bits(bits))),
        (Op::Enum(symbols), Raw::Varint(number)) => {
            let number = int32(number)?;
            symbols.get(number).map_or_else(|| number.to_string(), str::to_owned).into()
        }
        (Op::Text, Raw::Bytes { start, end }) => {
            let text = std::str::from_utf8(&bytes[start..end]);
            text.map_err(|_| Bad::new(code::INVALID_UTF8, "a text is not UTF-8".to_owned()))?.into()
        }
        (Op::Bytes, Raw::Bytes { start, end }) => STANDARD.encode(&bytes[start..end]).into(),
        (Op::Timestamp, Raw::Bytes { start, end }) => {
            let mut text = Vec::new();
            render::put_time(true, timestamp(bytes, start, end)?, 1_000, 6, &mut text);
            // What is printed as JSON is JSON.
            serde_json::from_slice(&text).unwrap_or_default()
        }
        (Op::Json(kind), Raw::Bytes { start, end }) => json::message(*kind, bytes, start, end, depth)?,
        _ => return Err(misfit()),
    })
}

/// NaN and infinities are no JSON.
fn float(value: Option<f64>) -> Value {
    value.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}
