//! Writes Avro bytes from JSON: defaults of reader schemas, and generated records.

use serde_json::Value;

use super::node::{Kind, Logical, Node};

/// Why a JSON value does not fit an Avro type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: {value} is not {expected}")]
pub struct EncodeError {
    pub path: String,
    pub value: String,
    pub expected: String,
}

/// Avro bytes of `json`, as in Avro's rules for defaults: bytes and fixed are strings of code points
/// 0–255. A union takes the first branch that fits. A field that is missing takes its default.
///
/// # Errors
/// [`EncodeError`] with the path of the value that does not fit.
pub fn value(node: &Node, json: &Value) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    put(node, json, &mut bytes, &mut Vec::new())?;
    Ok(bytes)
}

fn put(node: &Node, json: &Value, bytes: &mut Vec<u8>, path: &mut Vec<String>) -> Result<(), EncodeError> {
    let refused = |path: &[String]| EncodeError {
        path: path.join("."),
        value: json.to_string(),
        expected: node.describe(),
    };
    match (&node.kind, json) {
        (Kind::Null, Value::Null) => {}
        (Kind::Boolean, Value::Bool(value)) => bytes.push(u8::from(*value)),
        (Kind::Int, Value::Number(number)) => {
            let value = number.as_i64().and_then(|value| i32::try_from(value).ok());
            zigzag(i64::from(value.ok_or_else(|| refused(path))?), bytes);
        }
        (Kind::Long, Value::Number(number)) => {
            zigzag(number.as_i64().ok_or_else(|| refused(path))?, bytes);
        }
        (Kind::Float, Value::Number(number)) => {
            let value = number.as_f64().ok_or_else(|| refused(path))?;
            bytes.extend_from_slice(&(value as f32).to_le_bytes());
        }
        (Kind::Double, Value::Number(number)) => {
            let value = number.as_f64().ok_or_else(|| refused(path))?;
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        (Kind::String, Value::String(text)) => {
            zigzag(text.len() as i64, bytes);
            bytes.extend_from_slice(text.as_bytes());
        }
        (Kind::Bytes, Value::Number(number)) if is_decimal(node) => {
            let unscaled = number.as_i64().ok_or_else(|| refused(path))?.to_be_bytes();
            zigzag(unscaled.len() as i64, bytes);
            bytes.extend_from_slice(&unscaled);
        }
        (Kind::Bytes, Value::String(text)) => {
            let raw = code_points(text).ok_or_else(|| refused(path))?;
            zigzag(raw.len() as i64, bytes);
            bytes.extend(raw);
        }
        (Kind::Fixed { size, .. }, Value::String(text)) => {
            let raw = code_points(text).filter(|raw| raw.len() == *size);
            bytes.extend(raw.ok_or_else(|| refused(path))?);
        }
        (Kind::Enum(symbols), Value::String(text)) => {
            let index = symbols.symbols.iter().position(|symbol| **symbol == **text);
            zigzag(index.ok_or_else(|| refused(path))? as i64, bytes);
        }
        (Kind::Array(item), Value::Array(values)) => {
            block(values.len(), bytes);
            for value in values {
                put(item, value, bytes, path)?;
            }
            end(bytes);
        }
        (Kind::Map(item), Value::Object(values)) => {
            block(values.len(), bytes);
            for (key, value) in values {
                zigzag(key.len() as i64, bytes);
                bytes.extend_from_slice(key.as_bytes());
                put(item, value, bytes, path)?;
            }
            end(bytes);
        }
        // Nothing that is written here goes on below the point where a schema begins again.
        (Kind::Record(record), Value::Object(values)) if !node.is_again() => {
            for field in &record.fields {
                path.push(field.name.clone());
                let value = values.get(&field.name).or(field.default.as_ref());
                put(&field.node, value.unwrap_or(&Value::Null), bytes, path)?;
                path.pop();
            }
        }
        (Kind::Union(arms), _) => {
            let fit = arms.iter().enumerate().find_map(|(index, arm)| {
                let bytes = value(arm, json).ok()?;
                Some((index, bytes))
            });
            let (index, raw) = fit.ok_or_else(|| refused(path))?;
            zigzag(index as i64, bytes);
            bytes.extend(raw);
        }
        _ => return Err(refused(path)),
    }
    Ok(())
}

fn is_decimal(node: &Node) -> bool {
    matches!(node.logical, Some(Logical::Decimal { .. }))
}

fn code_points(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|char| u8::try_from(u32::from(char)).ok()).collect()
}

fn block(count: usize, bytes: &mut Vec<u8>) {
    if count > 0 {
        zigzag(count as i64, bytes);
    }
}

fn end(bytes: &mut Vec<u8>) {
    bytes.push(0);
}

/// Avro's variable-length number.
pub fn zigzag(value: i64, bytes: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        bytes.push((rest as u8) | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}
