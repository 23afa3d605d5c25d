//! `google.protobuf.Struct` and its parts as JSON text: they are recursive, so Arrow has no type for them.

use serde_json::{Map, Number, Value};

use crate::codec::limits::VALUE_DEPTH_MAX;
use crate::model::code;

use super::Bad;
use super::shape::Json;
use super::wire::{Kind, Raw, Wire};

/// The JSON text of a message.
///
/// # Errors
/// What is wrong with its bytes.
pub fn text(kind: Json, bytes: &[u8], start: usize, end: usize) -> Result<String, Bad> {
    Ok(message(kind, bytes, start, end, 0)?.to_string())
}

/// The JSON of a message that has `depth` values around it.
///
/// # Errors
/// What is wrong with its bytes.
pub fn message(kind: Json, bytes: &[u8], start: usize, end: usize, depth: usize) -> Result<Value, Bad> {
    match kind {
        Json::Struct => object(bytes, start, end, depth),
        Json::Value => value(bytes, start, end, depth),
        Json::List => list(bytes, start, end, depth),
    }
}

fn object(bytes: &[u8], start: usize, end: usize, depth: usize) -> Result<Value, Bad> {
    let mut object = Map::new();
    for (_, start, end) in fields(bytes, start, end, |number| number == 1)? {
        let (mut key, mut inner) = (String::new(), Value::Null);
        for (number, start, end) in fields(bytes, start, end, |number| number <= 2)? {
            if number == 1 {
                key = utf8(bytes, start, end)?;
            } else {
                inner = value(bytes, start, end, depth + 1)?;
            }
        }
        object.insert(key, inner);
    }
    Ok(Value::Object(object))
}

fn list(bytes: &[u8], start: usize, end: usize, depth: usize) -> Result<Value, Bad> {
    let items = fields(bytes, start, end, |number| number == 1)?;
    let items = items.into_iter().map(|(_, start, end)| value(bytes, start, end, depth + 1));
    items.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// `Value`: of its fields the last one counts; without one it is null.
fn value(bytes: &[u8], start: usize, end: usize, depth: usize) -> Result<Value, Bad> {
    if depth > VALUE_DEPTH_MAX {
        return Err(Bad::depth());
    }
    let mut last = None;
    let mut wire = Wire::new(bytes, start, end);
    while !wire.is_at_end() {
        let (number, kind) = wire.tag()?;
        let raw = wire.value(number, kind)?;
        if (1..=6).contains(&number) {
            last = Some((number, raw));
        }
    }
    Ok(match last {
        None | Some((1, Raw::Varint(_))) => Value::Null,
        // NaN and infinities have no JSON.
        Some((2, Raw::Bits64(bits))) => {
            Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number)
        }
        Some((3, Raw::Bytes { start, end })) => Value::String(utf8(bytes, start, end)?),
        Some((4, Raw::Varint(number))) => Value::Bool(number != 0),
        Some((5, Raw::Bytes { start, end })) => object(bytes, start, end, depth + 1)?,
        Some((6, Raw::Bytes { start, end })) => list(bytes, start, end, depth + 1)?,
        Some(_) => return Err(wrong()),
    })
}

/// Ranges of the fields with these numbers, which have to be bytes.
fn fields(
    bytes: &[u8],
    start: usize,
    end: usize,
    is_wanted: impl Fn(u32) -> bool,
) -> Result<Vec<(u32, usize, usize)>, Bad> {
    let mut found = Vec::new();
    let mut wire = Wire::new(bytes, start, end);
    while !wire.is_at_end() {
        let (number, kind) = wire.tag()?;
        match (wire.value(number, kind)?, kind) {
            (Raw::Bytes { start, end }, Kind::Bytes) if is_wanted(number) => found.push((number, start, end)),
            _ if is_wanted(number) => return Err(wrong()),
            _ => {}
        }
    }
    Ok(found)
}

fn utf8(bytes: &[u8], start: usize, end: usize) -> Result<String, Bad> {
    let text = std::str::from_utf8(&bytes[start..end]);
    text.map(str::to_owned).map_err(|_| Bad::new(code::INVALID_UTF8, "a text is not UTF-8".to_owned()))
}

fn wrong() -> Bad {
    Bad::new(code::TYPE_MISMATCH, "a part of a JSON value is written in another way than its type".to_owned())
}
