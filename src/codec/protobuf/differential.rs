//! Differential test: Protobuf against prost-reflect, on random schemas and messages.
//!
//! Schemas are texts. prost-reflect writes the messages, and reads the same bytes as the reader's message; what it says
//! of each field has to be in the columns, by the rules of `docs/types.md`. A record is bad where a `required` field is
//! missing or a time has no number of microseconds, and nowhere else. Left out: messages that contain themselves,
//! `Struct` and its like, extensions, bytes that no library writes. Seeds as in [`crate::codec::avro::differential`].

mod generate;

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::datatypes::{
    DataType, FieldRef, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt32Type,
    UInt64Type,
};
use arrow::record_batch::RecordBatch;
use protox::prost_reflect::prost::Message as _;
use protox::prost_reflect::{
    DynamicMessage, EnumValueDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage,
    Value,
};

use super::{Bad, File, Reader, Scratch, parse, prefixes};
use crate::codec::avro::differential::{depth, for_each_seed};
use crate::codec::columns::Column;
use generate::{Generator, TOP};

/// A few seconds in all, in a build for tests.
const SEEDS: u64 = 200;

/// Records for each schema.
const ROWS: usize = 6;

/// A value, as both sides are brought into it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Null,
    Boolean(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    /// Bits, so that -0.0 is not 0.0, and each NaN is itself.
    F32(u32),
    F64(u64),
    Text(String),
    Bytes(Vec<u8>),
    Micros(i64),
    List(Vec<Cell>),
    /// Writers may have any order.
    Map(BTreeMap<Cell, Cell>),
    Struct(Vec<(String, Cell)>),
}

/// Prints the schemas if what is done with them panics.
struct PrintSchemas<'a> {
    writer: &'a str,
    reader: &'a str,
}

impl Drop for PrintSchemas<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("writer:\n{}\nreader:\n{}", self.writer, self.reader);
        }
    }
}

/// What the codec makes of the records, one by one.
fn decode(reader: &Reader, writer: &File, payloads: &[Vec<u8>]) -> Vec<Result<Cell, Bad>> {
    let mut columns: Vec<Column> =
        reader.schema().fields().iter().map(|field| Column::new(field).unwrap()).collect();
    let (writer, mut scratch) = (reader.writer(writer), Scratch::default());
    let (mut results, mut count) = (Vec::new(), 0);
    for payload in payloads {
        let result = writer.decode(payload, &mut columns, &mut scratch);
        match &result {
            Ok(()) => count += 1,
            Err(_) => columns.iter_mut().for_each(|column| column.truncate(count)),
        }
        results.push(result);
    }
    let arrays: Vec<ArrayRef> = columns.into_iter().map(|column| column.finish().unwrap()).collect();
    // It refuses columns of other types and lengths, and nulls where there may be none.
    let rows = StructArray::from(RecordBatch::try_new(reader.schema().clone(), arrays).unwrap());
    assert_eq!(rows.len(), count);
    let mut good = 0..count;
    results.into_iter().map(|result| result.map(|()| of_array(&rows, good.next().unwrap()))).collect()
}

fn of_array(array: &dyn Array, row: usize) -> Cell {
    if array.is_null(row) {
        return Cell::Null;
    }
    match array.data_type() {
        DataType::Boolean => Cell::Boolean(array.as_boolean().value(row)),
        DataType::Int32 => Cell::I32(array.as_primitive::<Int32Type>().value(row)),
        DataType::UInt32 => Cell::U32(array.as_primitive::<UInt32Type>().value(row)),
        DataType::Int64 => Cell::I64(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt64 => Cell::U64(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => Cell::F32(array.as_primitive::<Float32Type>().value(row).to_bits()),
        DataType::Float64 => Cell::F64(array.as_primitive::<Float64Type>().value(row).to_bits()),
        DataType::Timestamp(_, _) => {
            Cell::Micros(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Utf8 => Cell::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::Binary => Cell::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            Cell::List((0..items.len()).map(|item| of_array(items.as_ref(), item)).collect())
        }
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let entry = |at| (of_array(keys.as_ref(), at), of_array(values.as_ref(), at));
            let map: BTreeMap<Cell, Cell> = (0..entries.len()).map(entry).collect();
            assert_eq!(map.len(), entries.len(), "a key is in a map twice");
            Cell::Map(map)
        }
        DataType::Struct(fields) => {
            let cell = |(field, column): (&FieldRef, &ArrayRef)| {
                (field.name().clone(), of_array(column.as_ref(), row))
            };
            Cell::Struct(fields.iter().zip(array.as_struct().columns()).map(cell).collect())
        }
        other => panic!("this codec makes no columns of type {other}"),
    }
}

/// What prost-reflect says of a message, by the table of types; `None`: the record is bad.
fn of_message(message: &DynamicMessage) -> Option<Cell> {
    let descriptor = message.descriptor();
    let mut fields: Vec<FieldDescriptor> = descriptor.fields().collect();
    fields.sort_by_key(|field| field.path().last().copied());
    let cells = fields.iter().map(|field| {
        let cell = match field.supports_presence() && !message.has_field(field) {
            true if field.is_required() => None,
            true => Some(Cell::Null),
            false => of_value(&message.get_field(field), &field.kind()),
        };
        cell.map(|cell| (field.name().to_owned(), cell))
    });
    cells.collect::<Option<Vec<_>>>().map(Cell::Struct)
}

fn of_value(value: &Value, kind: &Kind) -> Option<Cell> {
    Some(match value {
        Value::Bool(value) => Cell::Boolean(*value),
        Value::I32(value) => Cell::I32(*value),
        Value::U32(value) => Cell::U32(*value),
        Value::I64(value) => Cell::I64(*value),
        Value::U64(value) => Cell::U64(*value),
        Value::F32(value) => Cell::F32(value.to_bits()),
        Value::F64(value) => Cell::F64(value.to_bits()),
        Value::String(text) => Cell::Text(text.clone()),
        Value::Bytes(bytes) => Cell::Bytes(bytes.to_vec()),
        Value::EnumNumber(number) => Cell::Text(symbol(kind, *number)),
        Value::List(items) => {
            Cell::List(items.iter().map(|item| of_value(item, kind)).collect::<Option<Vec<_>>>()?)
        }
        Value::Map(entries) => {
            let entry = kind.as_message().unwrap();
            let (key_kind, value_kind) =
                (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
            let pair = |(key, value): (&MapKey, &Value)| {
                Some((of_value(&Value::from(key.clone()), &key_kind)?, of_value(value, &value_kind)?))
            };
            Cell::Map(entries.iter().map(pair).collect::<Option<BTreeMap<_, _>>>()?)
        }
        Value::Message(message) => {
            let descriptor = message.descriptor();
            match descriptor.full_name().strip_prefix("google.protobuf.") {
                Some("Timestamp") => Cell::Micros(micros(message)?),
                Some(name) if name.ends_with("Value") => {
                    let inner = descriptor.get_field(1).unwrap();
                    of_value(&message.get_field(&inner), &inner.kind())?
                }
                _ => of_message(message)?,
            }
        }
    })
}

/// The name of a number, which is the first one of the file; else its digits.
fn symbol(kind: &Kind, number: i32) -> String {
    let own = kind.as_enum().unwrap().values().filter(|value| value.number() == number);
    let first = own.min_by_key(|value: &EnumValueDescriptor| value.path().last().copied());
    first.map_or_else(|| number.to_string(), |value| value.name().to_owned())
}

fn micros(time: &DynamicMessage) -> Option<i64> {
    let seconds = time.get_field_by_name("seconds").unwrap().as_i64().unwrap();
    let nanos = time.get_field_by_name("nanos").unwrap().as_i32().unwrap();
    let nanos = (0..1_000_000_000).contains(&nanos).then_some(i64::from(nanos))?;
    seconds.checked_mul(1_000_000)?.checked_add(nanos / 1000)
}

/// Names the field in which two values differ.
fn assert_same(path: &str, ours: &Cell, theirs: &Cell) {
    match (ours, theirs) {
        (Cell::Struct(ours), Cell::Struct(theirs))
            if ours.iter().map(|(name, _)| name).eq(theirs.iter().map(|(name, _)| name)) =>
        {
            for ((name, ours), (_, theirs)) in ours.iter().zip(theirs) {
                assert_same(&format!("{path}.{name}"), ours, theirs);
            }
        }
        (Cell::List(ours), Cell::List(theirs)) if ours.len() == theirs.len() => {
            for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                assert_same(&format!("{path}[{index}]"), ours, theirs);
            }
        }
        (Cell::Map(ours), Cell::Map(theirs)) if ours.keys().eq(theirs.keys()) => {
            for ((key, ours), theirs) in ours.iter().zip(theirs.values()) {
                assert_same(&format!("{path}[{key:?}]"), ours, theirs);
            }
        }
        _ => assert_eq!(ours, theirs, "ours and theirs differ at `{path}`"),
    }
}

fn random_message(
    descriptor: &MessageDescriptor,
    random: &mut fastrand::Rng,
    level: usize,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let is_time = descriptor.full_name() == "google.protobuf.Timestamp" && random.u8(..30) != 0;
    for field in descriptor.fields() {
        let is_left_out = random.u32(..if field.is_required() { 60 } else { 3 }) == 0;
        if is_left_out {
            continue;
        }
        let count = random.usize(..if level > 1 { 3 } else { 4 });
        let kind = field.kind();
        let value = if field.is_map() {
            let entry = kind.as_message().unwrap();
            let (key, value) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
            let pairs = (0..count).map(|_| {
                let key = random_value(&key, random, level).into_map_key().unwrap();
                (key, random_value(&value, random, level))
            });
            Value::Map(pairs.collect())
        } else if field.is_list() {
            Value::List((0..count).map(|_| random_value(&kind, random, level)).collect())
        } else {
            match field.name() {
                "seconds" if is_time => Value::I64(random.i64(-62_135_596_800..253_402_300_800)),
                "nanos" if is_time => Value::I32(random.i32(0..1_000_000_000)),
                _ => random_value(&kind, random, level),
            }
        };
        message.set_field(&field, value);
    }
    message
}

/// One in three is an extreme, or what a field that is not written has.
fn random_value(kind: &Kind, random: &mut fastrand::Rng, level: usize) -> Value {
    let edge = if random.u8(..3) == 0 { random.usize(..8) } else { 8 };
    match kind {
        Kind::Double => {
            let edges = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE];
            Value::F64(edges.get(edge).copied().unwrap_or_else(|| f64::from_bits(random.u64(..))))
        }
        Kind::Float => {
            let edges = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE];
            Value::F32(edges.get(edge).copied().unwrap_or_else(|| f32::from_bits(random.u32(..))))
        }
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            let edges = [0, 1, -1, i32::MIN, i32::MAX];
            Value::I32(edges.get(edge).copied().unwrap_or_else(|| random.i32(..) >> random.u8(..32)))
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            let edges = [0, 1, -1, i64::MIN, i64::MAX];
            Value::I64(edges.get(edge).copied().unwrap_or_else(|| random.i64(..) >> random.u8(..64)))
        }
        Kind::Uint32 | Kind::Fixed32 => {
            let edges = [0, 1, u32::MAX];
            Value::U32(edges.get(edge).copied().unwrap_or_else(|| random.u32(..) >> random.u8(..32)))
        }
        Kind::Uint64 | Kind::Fixed64 => {
            let edges = [0, 1, u64::MAX];
            Value::U64(edges.get(edge).copied().unwrap_or_else(|| random.u64(..) >> random.u8(..64)))
        }
        Kind::Bool => Value::Bool(random.bool()),
        Kind::String => {
            let len = if edge < 4 { 0 } else { random.usize(..8) };
            Value::String((0..len).map(|_| random.char(..)).collect())
        }
        Kind::Bytes => {
            let mut bytes = vec![0_u8; if edge < 4 { 0 } else { random.usize(..200) }];
            random.fill(&mut bytes);
            Value::Bytes(bytes.into())
        }
        Kind::Enum(symbols) => {
            let known = symbols.values().nth(random.usize(..symbols.values().len()));
            let unknown = [2, 99, -7, 1000, i32::MIN, i32::MAX].get(edge).copied();
            Value::EnumNumber(unknown.unwrap_or_else(|| known.unwrap().number()))
        }
        Kind::Message(descriptor) => Value::Message(random_message(descriptor, random, level + 1)),
    }
}

/// Writes records with one version and reads them with another, or the same; how many were good and bad.
fn compare(seed: u64, evolves: bool) -> (u64, u64) {
    let mut generator = Generator::new(seed, depth(seed));
    let text = generator.schema.text();
    if evolves {
        generator.evolve();
    }
    let reader_text = generator.schema.text();
    let _guard = PrintSchemas { writer: &text, reader: &reader_text };
    let (written, read) = (parse(&text, &[]).unwrap(), parse(&reader_text, &[]).unwrap());
    let reader = Reader::new(&read, Some(TOP), false).unwrap();
    let columns: Vec<&str> = reader.schema().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(columns, generator.schema.columns(), "the order of the file");

    let (descriptor, reader_descriptor) =
        (written.message(Some(TOP)).unwrap(), read.message(Some(TOP)).unwrap());
    let names = written.names();
    let (path, _) = names.iter().find(|(_, name)| name == descriptor.full_name()).unwrap();
    let prefix = prefixes(path).remove(0);
    let random = &mut generator.random;
    let (mut payloads, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..ROWS {
        // A message may come in parts: they count as if it came at once.
        let parts = [1, 1, 2, 3][random.usize(..4)];
        let bytes: Vec<u8> =
            (0..parts).flat_map(|_| random_message(&descriptor, random, 0).encode_to_vec()).collect();
        let message = DynamicMessage::decode(reader_descriptor.clone(), bytes.as_slice()).unwrap();
        expected.push(of_message(&message));
        payloads.push([prefix.as_slice(), bytes.as_slice()].concat());
    }

    let rows = decode(&reader, &written, &payloads);
    for (row, (ours, theirs)) in rows.iter().zip(&expected).enumerate() {
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) => assert_same(&format!("row {row}"), ours, theirs),
            (Err(_), None) => {}
            (Err(bad), Some(_)) => panic!("row {row} is good, and was refused: {bad:?}"),
            (Ok(_), None) => panic!("row {row} is bad, and was taken"),
        }
    }
    let good = expected.iter().flatten().count() as u64;
    (good, ROWS as u64 - good)
}

fn compare_all(evolves: bool) {
    let (mut good, mut bad) = (0_u64, 0_u64);
    for_each_seed(SEEDS, |seed| {
        let counts = compare(seed, evolves);
        good += counts.0;
        bad += counts.1;
    });
    // A test that compares nothing any more has to be noticed.
    assert!(good + bad < 100 || (good > bad / 2 && bad > 0), "{good} {bad}");
}

#[test]
fn what_prost_reflect_writes_is_read_as_it_reads_it() {
    compare_all(false);
}

#[test]
fn what_another_version_wrote_is_read_as_prost_reflect_reads_it() {
    compare_all(true);
}
