//! Against arrow-avro 59, which makes Arrow columns as well: the same values from the same bytes.
//!
//! Only well-formed records, with one writer's schema at a time: `docs/decisions/0001-avro-codec.md` says
//! what its decoder does with others. Compared are values, not Arrow types: [`normal`] is the table of
//! what differs. Zones (theirs `+00:00`, ours `UTC`) and the metadata of their fields are not values.

use ::arrow::array::{Array, AsArray, StructArray};
use ::arrow::datatypes::{DataType, Int32Type, IntervalMonthDayNanoType};
use ::arrow::record_batch::RecordBatch;
use apache_avro::Schema;
use apache_avro::writer::datum::GenericDatumWriter;
use arrow_avro::reader::ReaderBuilder;
use arrow_avro::schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, SchemaStore};
use uuid::Uuid;

use super::cell::{Cell, of_array};
use super::generate::{Extra, Generator, Profile};
use super::{decode, depth, for_each_seed, parsed_text};
use crate::codec::avro::arrow_type;
use crate::codec::avro::node::{Kind, Logical, Node};

const SEEDS: u64 = 200;
const ROWS: usize = 6;

/// The registry's id of the writer's schema.
const ID: u32 = 7;

/// What is left out because they do not read it, or not as we do:
///
/// - `oddities`: a field of type null breaks the struct around it, a record without fields has no length,
///   a record of no bytes is not seen; a union of one branch becomes an Arrow union; the default of a
///   record has to have all fields.
/// - A default of null as the second branch (<https://github.com/apache/arrow-rs/issues/9304>): generated
///   defaults are always of the first.
const SAME: Profile = Profile { oddities: false, ..Profile::PLAIN };

/// And with a reader's schema of its own:
///
/// - `repeats`: a type's second mention may find the writer's version of it.
/// - `unwraps`: in a union that is read as one of its branches, changes inside the branch are forgotten
///   (a relative of <https://github.com/apache/arrow-rs/issues/9336>).
/// - `extra`: a branch besides null and the wanted one is a boolean, read as nothing else. Others would
///   meet our additions by chance, such as an enum as text.
const EVOLVED: Profile = Profile { extra: Extra::Boolean, repeats: false, unwraps: false, ..SAME };

fn theirs(writer: &str, reader: Option<&str>, rows: &[&[u8]]) -> Result<RecordBatch, String> {
    let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
    let schema = AvroSchema::new(writer.to_owned());
    store.set(Fingerprint::Id(ID), schema).map_err(|error| error.to_string())?;
    let mut builder = ReaderBuilder::new().with_writer_schema_store(store).with_batch_size(rows.len());
    if let Some(reader) = reader {
        builder = builder.with_reader_schema(AvroSchema::new(reader.to_owned()));
    }
    let mut decoder = builder.build_decoder().map_err(|error| error.to_string())?;
    for row in rows {
        let mut framed = vec![0];
        framed.extend(ID.to_be_bytes());
        framed.extend_from_slice(row);
        let consumed = decoder.decode(&framed).map_err(|error| error.to_string())?;
        if consumed != framed.len() {
            return Err(format!("{consumed} of {} bytes were read", framed.len()));
        }
    }
    let batch = decoder.flush().map_err(|error| error.to_string())?;
    batch.ok_or_else(|| "no batch".to_owned())
}

/// A value of their columns as ours would have it. `node` is the type in the reader's schema.
fn normal(node: &Node, array: &dyn Array, row: usize) -> Cell {
    let (node, _) = arrow_type::nullable(node).unwrap();
    if array.is_null(row) {
        return Cell::Null;
    }
    match (&node.kind, node.logical, array.data_type()) {
        // Where the writer's union has more branches, the reader's `[null, T]` is a dense union. Ours is a
        // nullable T: the reader's schema alone gives the type of a column.
        (_, _, DataType::Union(_, _)) => {
            let value = array.as_union().value(row);
            match value.data_type() {
                DataType::Null => Cell::Null,
                _ => normal(node, value.as_ref(), 0),
            }
        }
        // A dictionary of the reader's symbols. Ours is text, which all sinks write.
        (Kind::Enum(_), _, DataType::Dictionary(_, _)) => {
            let symbols = array.as_dictionary::<Int32Type>();
            let symbol = symbols.key(row).unwrap();
            Cell::text(symbols.values().as_string::<i32>().value(symbol))
        }
        // 16 bytes, of a fixed size unless they are `bytes` in Avro. Ours is text, as most readers want it.
        (_, Some(Logical::Uuid), DataType::FixedSizeBinary(_)) => {
            uuid(array.as_fixed_size_binary().value(row))
        }
        (_, Some(Logical::Uuid), DataType::Binary) => uuid(array.as_binary::<i32>().value(row)),
        // An interval, in which what is above 2^31 is negative. Parquet has none: ours is a struct.
        (_, Some(Logical::Duration), DataType::Interval(_)) => {
            let parts = array.as_primitive::<IntervalMonthDayNanoType>().value(row);
            let millis = u32::try_from(parts.nanoseconds / 1_000_000).unwrap();
            Cell::duration(parts.months as u32, parts.days as u32, millis)
        }
        // The same, with such values inside.
        (Kind::Array(item), _, DataType::List(_)) => {
            let items = array.as_list::<i32>().value(row);
            Cell::List((0..items.len()).map(|index| normal(item, items.as_ref(), index)).collect())
        }
        (Kind::Map(value), _, DataType::Map(_, _)) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1));
            let entry = |entry| (keys.value(entry).to_owned(), normal(value, values.as_ref(), entry));
            Cell::Map((0..entries.len()).map(entry).collect())
        }
        (Kind::Record(record), _, DataType::Struct(_)) => {
            let rows = array.as_struct();
            let names: Vec<&str> = record.fields.iter().map(|field| field.name.as_str()).collect();
            assert_eq!(rows.column_names(), names);
            let fields = record.fields.iter().zip(rows.columns());
            Cell::Record(
                fields
                    .map(|(field, column)| {
                        Cell::field(&field.name, normal(&field.node, column.as_ref(), row))
                    })
                    .collect(),
            )
        }
        _ => of_array(array, row),
    }
}

fn uuid(bytes: &[u8]) -> Cell {
    Cell::Text(Uuid::from_slice(bytes).unwrap().hyphenated().to_string())
}

/// Both read what the writer wrote; what we refuse they refuse.
fn compare(generator: &mut Generator, writer: &Node, reader: &Node, is_resolved: bool) {
    let (from, into) = (parsed_text(writer), parsed_text(reader));
    let schema = Schema::parse_str(&from).unwrap();
    let encoder = GenericDatumWriter::builder(&schema).build().unwrap();
    let rows: Vec<Vec<u8>> =
        (0..ROWS).map(|_| encoder.write_value_to_vec(generator.datum(writer)).unwrap()).collect();
    let ours = decode(writer, reader, &rows).unwrap();
    let reader_text = is_resolved.then_some(into.as_str());
    let mut good = Vec::new();
    let mut cells = Vec::new();
    for (row, ours) in rows.iter().zip(ours) {
        match ours {
            Ok(cell) => {
                good.push(row.as_slice());
                cells.push(cell);
            }
            Err(bad) => {
                // One decoder for each: it takes nothing back after an error.
                let theirs = theirs(&from, reader_text, &[row.as_slice()]);
                assert!(theirs.is_err(), "{bad:?}, they read {theirs:?}\nwriter: {from}\nreader: {into}");
            }
        }
    }
    if good.is_empty() {
        return;
    }
    let batch = theirs(&from, reader_text, &good)
        .unwrap_or_else(|error| panic!("they say: {error}\nwriter: {from}\nreader: {into}"));
    let columns = StructArray::from(batch);
    let theirs: Vec<Cell> = (0..columns.len()).map(|row| normal(reader, &columns, row)).collect();
    assert_eq!(cells, theirs, "\nwriter: {from}\nreader: {into}");
}

#[test]
fn the_same_schema_gives_the_same_values() {
    for_each_seed(SEEDS, |seed| {
        let mut generator = Generator::new(seed, SAME);
        let node = generator.top(depth(seed));
        compare(&mut generator, &node, &node, false);
    });
}

#[test]
fn an_evolved_schema_gives_the_same_values() {
    for_each_seed(SEEDS, |seed| {
        let mut generator = Generator::new(seed, EVOLVED);
        let writer = generator.top(depth(seed));
        let reader = generator.reader_of(&writer);
        compare(&mut generator, &writer, &reader, true);
    });
}
