//! `value: {json: {schema: …}}`: plain JSON read into the columns of an Avro schema. Records of a JSON Schema are read by
//! the same code, with types of that schema.
//!
//! Avro is our language for types. Times are RFC 3339 text or numbers in the type's unit, bytes and fixed are
//! base64, decimals are numbers or text. A field that is missing takes its default, else null; fields that the
//! schema does not have are ignored.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::kernels::cast_utils::parse_decimal;
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, Field, SchemaRef};
use arrow::error::ArrowError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::config::plan::Tombstones;
use crate::model::{RecordRef, code};

use super::avro::node::{Arm, Enum, Kind, Logical, Node, Record, SchemaError, When};
use super::avro::{arrow_type, big_decimal};
use super::columns::{Column, Data, push_offset};
use super::fill::{Rejection, fill};
use super::limits::{CELL_BYTES, LOOKS_PER_CELL, Spare, Spent};
use super::{Codec, Decoded};

/// The code of what does not fit, whole numbers beyond their type apart.
const MISMATCH: &str = code::TYPE_MISMATCH;

/// Decodes JSON into the columns of a schema.
#[derive(Debug)]
pub struct TypedJson {
    record: Record,
    schema: SchemaRef,
    tombstones: Tombstones,
}

impl TypedJson {
    /// # Errors
    /// [`SchemaError`] if the schema has no Arrow form, or a type that JSON has no form for.
    pub fn new(node: Node, tombstones: Tombstones) -> Result<Self, SchemaError> {
        let schema = arrow_type::schema(&node, tombstones == Tombstones::Keep)?;
        match node.kind {
            Kind::Record(record) => Ok(Self { record, schema, tombstones }),
            _ => Err(SchemaError::NotARecord("a single value")),
        }
    }
}

impl Codec for TypedJson {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        fill(&self.schema, self.tombstones, records, |_, value, columns| {
            put_row(&self.record, value, columns).map_err(|unfit| Rejection {
                code: unfit.code,
                message: unfit.message,
                schema_id: None,
            })
        })
    }
}

/// JSON texts read by one type into one column: what SQL's `from_json` does.
#[derive(Debug)]
pub struct JsonColumn {
    node: Node,
    column: Column,
}

impl JsonColumn {
    /// `data_type` is the Arrow type of `node`; for an `int` it may also be one of 8 or 16 bits.
    ///
    /// # Errors
    /// If no codec makes this type.
    pub fn new(node: Node, data_type: DataType) -> Result<Self, ArrowError> {
        let column = Column::new(&Arc::new(Field::new("value", data_type, true)))?;
        Ok(Self { node, column })
    }

    /// Appends what `text` says; null if there is none, or if it is not JSON of this type.
    pub fn push(&mut self, text: Option<&[u8]>) {
        let row_count = self.column.len();
        let mut spare = Spare::of(text.map_or(0, <[u8]>::len));
        let json = text.and_then(|text| serde_json::from_slice::<Value>(text).ok());
        let is_read = json.is_some_and(|json| put(&self.node, &json, &mut self.column, &mut spare).is_ok());
        if !is_read {
            self.column.truncate(row_count);
            self.column.push_null();
        }
    }

    /// # Errors
    /// If the columns below do not fit together: a bug of ours, caught here.
    pub fn finish(self) -> Result<ArrayRef, ArrowError> {
        self.column.finish()
    }
}

/// Why a JSON text is no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    pub code: &'static str,
    pub message: String,
}

impl From<Misfit> for Unfit {
    fn from(misfit: Misfit) -> Self {
        let place = match misfit.path.as_slice() {
            [] => String::new(),
            path => format!("field `{}`: ", path.join(".")),
        };
        Self { code: misfit.code, message: format!("{place}{}", misfit.message) }
    }
}

/// The value of a text.
///
/// # Errors
/// If it is not JSON, or nests deeper than 127 levels.
pub fn parse(text: &[u8]) -> Result<Value, Unfit> {
    serde_json::from_slice(text).map_err(|error| {
        let message = format!("not JSON: {error}");
        // It has no other sign for it.
        let is_deep = message.contains("recursion limit exceeded");
        Unfit { code: if is_deep { code::DEPTH } else { MISMATCH }, message }
    })
}

/// Appends one JSON object as a row.
///
/// # Errors
/// What does not fit; then the columns may hold parts of it and have to be truncated.
pub fn put_row(record: &Record, text: &[u8], columns: &mut [Column]) -> Result<(), Unfit> {
    put_object(record, &parse(text)?, columns)
}

/// As [`put_row`], with a value that is parsed.
///
/// # Errors
/// Likewise.
pub fn put_object(record: &Record, json: &Value, columns: &mut [Column]) -> Result<(), Unfit> {
    put_fields(record, json, columns, &mut Spare::of(size(json))).map_err(Unfit::from)
}

/// Appends one JSON value of any type to a column.
///
/// # Errors
/// What does not fit; then the column may hold parts of it and has to be truncated.
pub fn put_any(node: &Node, json: &Value, column: &mut Column) -> Result<(), Unfit> {
    put(node, json, column, &mut Spare::of(size(json))).map_err(Unfit::from)
}

/// About the bytes of its text.
fn size(json: &Value) -> usize {
    match json {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => 2 + text.len(),
        Value::Array(values) => values.iter().map(|value| 1 + size(value)).sum::<usize>() + 2,
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| 4 + key.len() + size(value)).sum::<usize>() + 2
        }
    }
}

/// A value that does not fit its type. Values are not shown: they are the user's data.
#[derive(Debug)]
struct Misfit {
    code: &'static str,
    path: Vec<String>,
    message: String,
}

impl From<Spent> for Misfit {
    fn from(_: Spent) -> Self {
        let message = "it fills more columns, or asks for more defaults, than a record of its size may";
        Self { code: code::SIZE, path: Vec::new(), message: message.to_owned() }
    }
}

fn misfit(node: &Node, json: &Value) -> Misfit {
    let code = if is_too_long(node, json) { code::OVERFLOW } else { MISMATCH };
    Misfit { code, path: Vec::new(), message: format!("{} is not {}", found(json), node.describe()) }
}

fn found(json: &Value) -> &'static str {
    match json {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "this number",
        Value::String(_) => "this text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A whole number beyond its type. Those beyond 64 bits come as a double, which has no fraction then.
fn is_too_long(node: &Node, json: &Value) -> bool {
    let is_integer = matches!(node.kind, Kind::Int | Kind::Long) && node.logical.is_none();
    let is_whole = |number: &serde_json::Number| {
        number.is_i64()
            || number.is_u64()
            || number.as_f64().is_some_and(|value| value.abs() >= 9_223_372_036_854_775_808.0)
    };
    is_integer && json.as_number().is_some_and(is_whole)
}

fn put_fields(
    record: &Record,
    json: &Value,
    columns: &mut [Column],
    spare: &mut Spare,
) -> Result<(), Misfit> {
    let Value::Object(fields) = json else {
        let message = format!("{} is not record `{}`", found(json), record.name);
        return Err(Misfit { code: MISMATCH, path: Vec::new(), message });
    };
    for (field, column) in record.fields.iter().zip(columns) {
        let done = match fields.get(&field.name) {
            Some(value) => put(&field.node, value, column, spare),
            None => put_missing(&field.node, field.default.as_ref(), column, spare),
        };
        done.map_err(|mut misfit| {
            misfit.path.insert(0, field.name.clone());
            misfit
        })?;
    }
    Ok(())
}

/// What is not written has no bytes, and may be large.
fn put_missing(
    node: &Node,
    default: Option<&Value>,
    column: &mut Column,
    spare: &mut Spare,
) -> Result<(), Misfit> {
    let value = default.unwrap_or(&Value::Null);
    spare.take(cells(value))?;
    put(node, value, column, spare)
}

/// Columns that a default fills at least, and its text.
fn cells(json: &Value) -> usize {
    1 + match json {
        Value::String(text) => text.len() / CELL_BYTES,
        Value::Array(values) => values.iter().map(cells).sum(),
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| key.len() / CELL_BYTES + cells(value)).sum()
        }
        _ => 0,
    }
}

fn put(node: &Node, json: &Value, column: &mut Column, spare: &mut Spare) -> Result<(), Misfit> {
    let Some((node, is_nullable)) = arrow_type::nullable(node) else {
        return Err(misfit(node, json));
    };
    if json.is_null() {
        return if is_nullable {
            // Its four letters may stand for thousands of columns.
            spare.take(column.width().saturating_sub(1))?;
            column.push_null();
            Ok(())
        } else {
            Err(misfit(node, json))
        };
    }
    match &node.kind {
        Kind::Union(arms) => return put_branch(node, arms, json, column, spare),
        Kind::Choice(arms) => return put_choice(node, arms, json, column, spare),
        _ => {}
    }
    put_value(node, json, &mut column.data, spare).ok_or_else(|| misfit(node, json))??;
    column.mark_valid();
    Ok(())
}

/// A value of an Avro union of several types: as Avro's own JSON has it, `{"long": 5}`, or else the first branch that
/// takes it as it is.
fn put_branch(
    node: &Node,
    arms: &[Node],
    json: &Value,
    column: &mut Column,
    spare: &mut Spare,
) -> Result<(), Misfit> {
    let named = |is_it: fn(&Node, &str) -> bool, name: &str| {
        arrow_type::members(arms).enumerate().find(|(_, arm)| is_it(arm, name))
    };
    let mut why = None;
    if let Value::Object(entries) = json
        && entries.len() == 1
        && let Some((name, inner)) = entries.iter().next()
        && let Some((index, arm)) = named(|arm, name| arm.branch_name() == name, name)
            .or_else(|| named(|arm, name| arm.branch_short_name() == name, name))
    {
        match put_member(index, arm, inner, column, spare) {
            Ok(()) => return Ok(()),
            Err(misfit) => why = Some(misfit),
        }
    }
    let is_put = arrow_type::members(arms)
        .enumerate()
        .any(|(index, arm)| put_member(index, arm, json, column, spare).is_ok());
    if is_put {
        return Ok(());
    }
    // If there is nothing left, that is what is wrong.
    spare.take(0)?;
    Err(why.unwrap_or_else(|| misfit(node, json)))
}

/// The first arm that a value fits, as JSON Schema has it.
fn put_choice(
    node: &Node,
    arms: &[Arm],
    json: &Value,
    column: &mut Column,
    spare: &mut Spare,
) -> Result<(), Misfit> {
    let mut misfits = Vec::new();
    for (index, arm) in arms.iter().enumerate() {
        spare.take(1 + looks(&arm.when, json) / LOOKS_PER_CELL)?;
        if !is_of(&arm.when, json) {
            continue;
        }
        match put_member(index, &arm.node, json, column, spare) {
            Ok(()) => return Ok(()),
            Err(misfit) => misfits.push(misfit),
        }
    }
    spare.take(0)?;
    // Where a value is almost of one arm, it says more to name what is wrong there.
    misfits.retain(|misfit| !misfit.path.is_empty());
    match misfits.pop() {
        Some(misfit) if misfits.is_empty() => Err(misfit),
        _ => Err(misfit(node, json)),
    }
}

/// Names and values that [`is_of`] compares at most.
fn looks(when: &When, json: &Value) -> usize {
    let Value::Object(fields) = json else {
        return 0;
    };
    let values = when.values.iter().map(|(_, values)| values.len()).sum::<usize>();
    let only = when.only.as_ref().map_or(0, |names| names.len() * names.len().min(fields.len()));
    when.required.len() + values + only
}

fn is_of(when: &When, json: &Value) -> bool {
    let Value::Object(fields) = json else {
        return true;
    };
    when.required.iter().all(|name| fields.contains_key(name))
        && when
            .values
            .iter()
            .all(|(name, values)| fields.get(name).is_none_or(|value| values.contains(value)))
        && when.only.as_ref().is_none_or(|names| fields.keys().all(|name| names.contains(name)))
}

/// A value for one member of a struct, and null for the others. If it does not fit, the struct is as it was.
fn put_member(
    index: usize,
    node: &Node,
    json: &Value,
    column: &mut Column,
    spare: &mut Spare,
) -> Result<(), Misfit> {
    // Trying is work, and so is to say why it was in vain: unions within unions would try without an end.
    spare.take(1)?;
    let column_width = column.width();
    let Data::Struct { len, fields } = &mut column.data else {
        return Err(misfit(node, json));
    };
    let Some(member) = fields.get_mut(index) else {
        return Err(misfit(node, json));
    };
    let width = member.width();
    if let Err(misfit) = put(node, json, member, spare) {
        member.truncate(*len);
        let said = misfit.path.iter().map(String::len).sum::<usize>() + misfit.message.len();
        spare.take(said / CELL_BYTES)?;
        return Err(misfit);
    }
    if let Err(spent) = spare.take(column_width.saturating_sub(width)) {
        member.truncate(*len);
        return Err(spent.into());
    }
    let others = fields.iter_mut().enumerate().filter(|(at, _)| *at != index);
    others.for_each(|(_, other)| other.push_null());
    *len += 1;
    column.mark_valid();
    Ok(())
}

/// `None` if the value does not fit; an inner error names the field within it that does not.
fn put_value(node: &Node, json: &Value, data: &mut Data, spare: &mut Spare) -> Option<Result<(), Misfit>> {
    if let Some(logical) = node.logical {
        return put_logical(node, logical, json, data).map(Ok);
    }
    match (&node.kind, json, data) {
        (Kind::Boolean, Value::Bool(value), Data::Boolean(values)) => values.append(*value),
        // The narrow ones are of `from_json`: Avro has no such types.
        (Kind::Int, Value::Number(number), Data::I8(values)) => {
            values.push(i8::try_from(number.as_i64()?).ok()?);
        }
        (Kind::Int, Value::Number(number), Data::I16(values)) => {
            values.push(i16::try_from(number.as_i64()?).ok()?);
        }
        (Kind::Int, Value::Number(number), Data::I32(values)) => {
            values.push(i32::try_from(number.as_i64()?).ok()?);
        }
        (Kind::Long, Value::Number(number), Data::I64(values)) => values.push(number.as_i64()?),
        (Kind::Float, Value::Number(number), Data::F32(values)) => values.push(number.as_f64()? as f32),
        (Kind::Double, Value::Number(number), Data::F64(values)) => values.push(number.as_f64()?),
        (Kind::String, Value::String(text), data) => put_text(text, data)?,
        (Kind::Enum(symbols), Value::String(text), data) => put_text(symbol(symbols, text)?, data)?,
        (Kind::Bytes, Value::String(text), Data::Bytes { offsets, bytes }) => {
            bytes.extend(STANDARD.decode(text).ok()?);
            push_offset(offsets, bytes.len()).ok()?;
        }
        (Kind::Fixed { size, .. }, Value::String(text), Data::Fixed { bytes, .. }) => {
            let raw = STANDARD.decode(text).ok().filter(|raw| raw.len() == *size)?;
            bytes.extend(raw);
        }
        (Kind::Array(item), Value::Array(values), Data::List { offsets, item: column }) => {
            for value in values {
                if let Err(misfit) = put(item, value, column, spare) {
                    return Some(Err(misfit));
                }
            }
            push_offset(offsets, column.len()).ok()?;
        }
        (Kind::Map(value), Value::Object(entries), Data::List { offsets, item }) => {
            for (key, json) in entries {
                if let Err(misfit) = put_entry(value, key, json, item, spare) {
                    return Some(Err(misfit));
                }
            }
            push_offset(offsets, item.len()).ok()?;
        }
        (Kind::Record(record), Value::Object(_), Data::Struct { len, fields }) => {
            if let Err(misfit) = put_fields(record, json, fields, spare) {
                return Some(Err(misfit));
            }
            *len += 1;
        }
        _ => return None,
    }
    Some(Ok(()))
}

fn put_entry(
    value: &Node,
    key: &str,
    json: &Value,
    entries: &mut Column,
    spare: &mut Spare,
) -> Result<(), Misfit> {
    if let Data::Struct { len, fields } = &mut entries.data
        && let [keys, values] = fields.as_mut_slice()
    {
        put_text(key, &mut keys.data).ok_or_else(|| misfit(value, json))?;
        put(value, json, values, spare)?;
        *len += 1;
        entries.mark_valid();
    }
    Ok(())
}

fn put_text(text: &str, data: &mut Data) -> Option<()> {
    let Data::Bytes { offsets, bytes } = data else {
        return None;
    };
    bytes.extend_from_slice(text.as_bytes());
    push_offset(offsets, bytes.len()).ok()
}

fn symbol<'s>(symbols: &'s Enum, text: &str) -> Option<&'s str> {
    let known = symbols.symbols.iter().find(|symbol| ***symbol == *text);
    known.or(symbols.default.as_ref()).map(AsRef::as_ref)
}

fn put_logical(node: &Node, logical: Logical, json: &Value, data: &mut Data) -> Option<()> {
    match (logical, data) {
        (Logical::Uuid, data) => {
            let uuid = uuid::Uuid::try_parse(json.as_str()?).ok()?;
            put_text(&uuid.hyphenated().to_string(), data)
        }
        (Logical::Json, data) => put_text(&json.to_string(), data),
        (Logical::BigDecimal, data) => {
            let text = match json {
                Value::Number(number) => number.to_string(),
                Value::String(text) => text.clone(),
                _ => return None,
            };
            big_decimal::is_text(&text).then(|| put_text(&text, data))?
        }
        (Logical::Decimal { precision, scale }, data) => {
            let text = match json {
                Value::Number(number) => number.to_string(),
                Value::String(text) if can_be_decimal(text) => text.clone(),
                _ => return None,
            };
            match data {
                Data::I128(values) => {
                    values.push(parse_decimal::<Decimal128Type>(&text, precision, scale).ok()?);
                }
                Data::I256(values) => {
                    values.push(parse_decimal::<Decimal256Type>(&text, precision, scale).ok()?);
                }
                _ => return None,
            }
            Some(())
        }
        // A text with a format is no number, whatever its column is.
        _ if node.kind == Kind::String && !json.is_string() => None,
        (Logical::Date | Logical::TimeMillis, Data::I32(values)) => {
            values.push(i32::try_from(time(logical, json)?).ok()?);
            Some(())
        }
        (_, Data::I64(values)) if matches!(node.kind, Kind::Long | Kind::String) => {
            values.push(time(logical, json)?);
            Some(())
        }
        _ => None,
    }
}

/// Whether arrow may parse `text`. It counts digits in 8 bits and exponents in 16 and does not see them overflow,
/// so that `1e65536` would be 1. No decimal of 76 digits needs more; with an exponent, 18 digits can be shifted by
/// all their places within 128 bits.
fn can_be_decimal(text: &str) -> bool {
    match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => digits.len() <= 18 && exponent.len() <= 4,
        None => text.len() <= 128,
    }
}

/// A number in the type's unit, or its text.
fn time(logical: Logical, json: &Value) -> Option<i64> {
    let text = match json {
        Value::Number(number) => return number.as_i64(),
        Value::String(text) => text,
        _ => return None,
    };
    let instant = || text.parse::<jiff::Timestamp>().ok();
    let wall = || {
        Some(text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    let of_day = || {
        let time = text.parse::<jiff::civil::Time>().ok()?;
        let seconds =
            i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
        Some(seconds * 1_000_000_000 + i64::from(time.subsec_nanosecond()))
    };
    match logical {
        Logical::Date => {
            let date = text.parse::<jiff::civil::Date>().ok()?;
            let start = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
            Some(start.as_second().div_euclid(86_400))
        }
        Logical::TimeMillis => Some(of_day()? / 1_000_000),
        Logical::TimeMicros => Some(of_day()? / 1_000),
        Logical::TimestampMillis => Some(instant()?.as_millisecond()),
        Logical::TimestampMicros => Some(instant()?.as_microsecond()),
        Logical::TimestampNanos => i64::try_from(instant()?.as_nanosecond()).ok(),
        Logical::LocalTimestampMillis => Some(wall()?.as_millisecond()),
        Logical::LocalTimestampMicros => Some(wall()?.as_microsecond()),
        Logical::LocalTimestampNanos => i64::try_from(wall()?.as_nanosecond()).ok(),
        Logical::Decimal { .. } | Logical::BigDecimal | Logical::Uuid | Logical::Duration | Logical::Json => {
            None
        }
    }
}

#[cfg(test)]
mod differential;

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Int8Type;
    use arrow::record_batch::RecordBatch;
    use arrow::util::pretty::pretty_format_batches;
    use serde_json::json;

    use super::*;
    use crate::model::{ChunkBuilder, Incoming, Offset, Partition, TimestampType, TopicName, TopicPartition};

    /// Decodes JSON texts; the rows as Arrow shows them, and what was rejected.
    fn decode(schema: &Value, values: &[&str]) -> (String, Vec<String>) {
        let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
        let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
        for (offset, value) in (0..).zip(values) {
            let incoming = Incoming {
                offset: Offset::new(offset).unwrap(),
                timestamp_ms: 0,
                timestamp_type: TimestampType::Create,
                epoch: None,
                key: None,
                value: Some(value.as_bytes()),
            };
            builder.push(incoming, std::iter::empty());
        }
        let chunk = builder.finish(Offset::ZERO);
        let node = Node::parse(&schema.to_string(), &[]).unwrap();
        let codec = TypedJson::new(node, Tombstones::Skip).unwrap();
        let decoded = codec.decode(&chunk.records().collect::<Vec<_>>()).unwrap();
        let batch = RecordBatch::try_new(Arc::clone(codec.schema()), decoded.columns).unwrap();
        let rejected = decoded.rejected.into_iter().map(|rejected| rejected.message).collect();
        (pretty_format_batches(&[batch]).unwrap().to_string(), rejected)
    }

    #[test]
    fn values_are_read_by_their_types() {
        let schema = json!({"type": "record", "name": "R", "fields": [
            {"name": "id", "type": "long"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}], "default": null},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
            {"name": "raw", "type": ["null", "bytes"], "default": null},
            {"name": "tags", "type": {"type": "map", "values": {"type": "array", "items": "int"}}}
        ]});
        let good = r#"{"id": 1, "at": "2026-01-02T03:04:05.678Z", "day": "1970-01-03", "price": 1.5,
            "raw": "AP8=", "tags": {"a": [1, 2]}, "unknown": {}}"#;
        let short = r#"{"id": 2, "at": 7, "price": "-0.25", "tags": {}}"#;
        let (rows, rejected) = decode(&schema, &[good, short]);
        assert!(rejected.is_empty(), "{rejected:?}");
        assert!(
            rows.contains("| 1  | 2026-01-02T03:04:05.678Z | 1970-01-03 | 1.50  | 00ff | {a: [1, 2]} |"),
            "{rows}"
        );
        assert!(rows.contains("| 2  | 1970-01-01T00:00:00.007Z |            | -0.25 |      | {}          |"));
    }

    #[test]
    fn misfits_name_the_field_and_spoil_nobody() {
        let schema = json!({"type": "record", "name": "R", "fields": [
            {"name": "a", "type": {"type": "record", "name": "N", "fields": [{"name": "n", "type": "int"}]}},
            {"name": "xs", "type": {"type": "array", "items": "string"}}
        ]});
        let good = r#"{"a": {"n": 1}, "xs": ["x"]}"#;
        let bad = [
            r#"{"a": {"n": 3000000000}, "xs": []}"#,
            r#"{"a": {"n": 1}, "xs": ["y", 5]}"#,
            r#"{"a": {}, "xs": []}"#,
            r#"[]"#,
            r#"{"a": {"n": 1}, "xs": []} x"#,
        ];
        let (rows, rejected) = decode(&schema, &[good, bad[0], bad[1], bad[2], good, bad[3], bad[4]]);
        assert_eq!(rows, decode(&schema, &[good, good]).0);
        assert_eq!(rejected[0], "field `a.n`: this number is not int");
        assert_eq!(rejected[1], "field `xs`: this number is not string");
        assert_eq!(rejected[2], "field `a.n`: null is not int");
        assert!(rejected[4].contains("not JSON: trailing characters"), "{rejected:?}");
    }

    #[test]
    fn decimals_as_text_cannot_overflow_the_parser() {
        let schema = json!({"type": "record", "name": "R", "fields": [
            {"name": "n", "type": {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 2}}
        ]});
        let row = |text: &str| json!({"n": text}).to_string();
        let digits = "1".repeat(400);
        let bad = [row("1e65536"), row("1e99999e5"), row(&digits), row(&format!("0.{digits}e-400")), row("")];
        let good = [row("-1.5e3"), row("123456789012345678901234567890.12")];
        let values: Vec<&str> = bad.iter().chain(&good).map(String::as_str).collect();
        let (rows, rejected) = decode(&schema, &values);
        assert_eq!(rejected.len(), bad.len(), "{rows}");
        assert!(rows.contains("-1500.00"), "{rows}");
        assert!(rows.contains("123456789012345678901234567890.12"), "{rows}");
    }

    #[test]
    fn a_column_of_texts_has_null_for_what_does_not_fit() {
        let optional = |node| Node { kind: Kind::Union(vec![plain(Kind::Null), node]), logical: None };
        let node = optional(plain(Kind::Array(Box::new(optional(plain(Kind::Int))))));
        let item = Arc::new(Field::new("item", DataType::Int8, true));
        let mut column = JsonColumn::new(node, DataType::List(item)).unwrap();
        let deep = "[".repeat(100_000);
        let texts = ["[1, null]", "[2, 128]", "{", deep.as_str(), "null", "[-128]"];
        for text in texts {
            column.push(Some(text.as_bytes()));
        }
        column.push(None);
        let array = column.finish().unwrap();
        let nulls: Vec<bool> = (0..array.len()).map(|row| array.is_null(row)).collect();
        assert_eq!(nulls, [false, true, true, true, true, false, true]);
        let items = array.as_list::<i32>().values().as_primitive::<Int8Type>();
        assert_eq!(items.iter().collect::<Vec<_>>(), [Some(1), None, Some(-128)]);
    }

    fn plain(kind: Kind) -> Node {
        Node { kind, logical: None }
    }

    #[test]
    fn a_union_is_as_avros_json_has_it_or_the_first_branch_that_fits() {
        let schema = json!({"type": "record", "name": "R", "fields": [{"name": "u", "type": [
            "null", "long", "string",
            {"type": "record", "name": "a.P", "fields": [{"name": "x", "type": "int"}]},
            {"type": "map", "values": "int"}]}]});
        let good = [
            (r#"{"u": {"long": 5}}"#, "long", "5"),
            (r#"{"u": 6}"#, "long", "6"),
            (r#"{"u": {"string": "s"}}"#, "string", "s"),
            (r#"{"u": "t"}"#, "string", "t"),
            (r#"{"u": {"a.P": {"x": 1}}}"#, "P", "x: 1"),
            (r#"{"u": {"P": {"x": 2}}}"#, "P", "x: 2"),
            (r#"{"u": {"x": 3}}"#, "P", "x: 3"),
            (r#"{"u": {"y": 4}}"#, "map", "y: 4"),
            // A map with the key of a branch, whose value is none of that branch.
            (r#"{"u": {"string": 7}}"#, "map", "string: 7"),
        ];
        for (text, member, value) in good {
            let (rows, rejected) = decode(&schema, &[text]);
            assert!(rejected.is_empty(), "{text}: {rejected:?}");
            let is_there = rows.contains(&format!("{member}: {value}"))
                || rows.contains(&format!("{member}: {{{value}}}"));
            assert!(is_there, "{text}: {rows}");
        }
        let bad = [r#"{"u": true}"#, r#"{"u": {"long": "x"}}"#, r#"{"u": {"z": "x"}}"#];
        let (rows, rejected) = decode(&schema, &[r#"{"u": null}"#, bad[0], r#"{"u": 1}"#, bad[1], bad[2]]);
        assert_eq!(rows, decode(&schema, &[r#"{"u": null}"#, r#"{"u": 1}"#]).0);
        assert_eq!(rejected.len(), bad.len());
        assert!(rejected[0].starts_with("field `u`: a boolean is not union of null, long"), "{rejected:?}");
        assert_eq!(rejected[1], "field `u`: this text is not long");
    }
}
