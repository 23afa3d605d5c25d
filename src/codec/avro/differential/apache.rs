//! Against apache-avro 0.22: the same values from the same bytes, and the same refusals.

use std::fmt;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Datum;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Decimal, Schema};
use serde_json::{Value, json};

use super::cell::{Cell, of_datum};
use super::generate::{Extra, Generator, Profile, RENAMED_FIELD, plain};
use super::rules::{self, Known, Side, is_excused, known};
use super::values::has_json;
use super::{decode, depth, for_each_seed, parsed_text};
use crate::codec::avro::encode;
use crate::codec::avro::node::{Field, Kind, Logical, Node, Record};

/// A few seconds in all, in a build for tests.
const SEEDS: u64 = 300;

/// Records for each pair of schemas.
const ROWS: usize = 6;

pub fn write(schema: &Schema, datum: &Datum) -> Vec<u8> {
    let writer = GenericDatumWriter::builder(schema).build().unwrap();
    let mut bytes = Vec::new();
    writer.write_value_ref(&mut bytes, datum).unwrap();
    bytes
}

pub fn read(writer: &Schema, reader: Option<&Schema>, bytes: &[u8]) -> Result<Cell, String> {
    let datum_reader = GenericDatumReader::builder(writer).maybe_reader_schema(reader).build().unwrap();
    let mut rest = bytes;
    let datum = datum_reader.read_value(&mut rest).map_err(|error| error.to_string())?;
    assert!(rest.is_empty(), "{} bytes are left over", rest.len());
    Ok(of_datum(&datum))
}

/// A writer's and a reader's schema, for both.
struct Pair {
    writer: Node,
    reader: Node,
    their_writer: Schema,
    their_reader: Schema,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\nwriter: {}\nreader: {}", parsed_text(&self.writer), parsed_text(&self.reader))
    }
}

/// How often they agreed, and how often a known difference kept them apart.
#[derive(Debug, Default)]
struct Tally {
    values: usize,
    refusals: usize,
    excused: usize,
}

impl Tally {
    /// A test that compares nothing any more has to be noticed.
    fn check(&self) {
        let total = self.values + self.refusals + self.excused;
        if total >= 500 {
            assert!(self.values > total / 8 && self.refusals > 0 && self.excused < total / 8, "{self:?}");
        }
    }
}

impl Pair {
    fn new(writer: Node, reader: Node) -> Self {
        let their_writer = Schema::parse_str(&parsed_text(&writer)).unwrap();
        // They know no aliases of fields (see `what_they_get_wrong_they_still_get_wrong`), so they are
        // given the reader's schema with the writer's names.
        let text = parsed_text(&reader).replace(&format!("{RENAMED_FIELD}\""), "\"");
        let their_reader = Schema::parse_str(&text).unwrap();
        Self { writer, reader, their_writer, their_reader }
    }

    fn rows(&self, generator: &mut Generator) -> Vec<Vec<u8>> {
        (0..ROWS).map(|_| write(&self.their_writer, &generator.datum(&self.writer))).collect()
    }

    fn compare(&self, rows: &[Vec<u8>], tally: &mut Tally) {
        let ours = decode(&self.writer, &self.reader, rows).unwrap_or_else(|error| panic!("{error}{self}"));
        for (row, ours) in rows.iter().zip(ours) {
            match (ours, read(&self.their_writer, Some(&self.their_reader), row)) {
                (Ok(ours), Ok(theirs)) => {
                    assert_eq!(ours, theirs, "{row:?}{self}");
                    tally.values += 1;
                }
                (Err(_), Err(_)) => tally.refusals += 1,
                (Ok(ours), Err(error)) => {
                    let is_known = is_excused(&self.writer, &self.reader, Side::Ours);
                    assert!(is_known, "we read {ours:?}, they say: {error}{self}");
                    tally.excused += 1;
                }
                (Err(bad), Ok(theirs)) => {
                    let is_known = is_excused(&self.writer, &self.reader, Side::Theirs);
                    assert!(is_known, "they read {theirs:?}, we say: {bad:?}{self}");
                    tally.excused += 1;
                }
            }
        }
    }

    /// Whatever damaged records give: no panic, and columns of the same length.
    fn damage(&self, rows: &[Vec<u8>], random: &mut fastrand::Rng) {
        let mut damaged = rows.to_vec();
        for row in damaged.iter_mut().filter(|row| !row.is_empty()) {
            let at = random.usize(..row.len());
            if random.bool() {
                row[at] ^= random.u8(1..);
            } else {
                row.truncate(at);
            }
        }
        let results = decode(&self.writer, &self.reader, &damaged).unwrap();
        assert_eq!(results.len(), rows.len());
    }
}

#[test]
fn what_they_write_is_read_as_written() {
    for_each_seed(SEEDS, |seed| {
        let mut generator = Generator::new(seed, Profile::PLAIN);
        let node = generator.top(depth(seed));
        let schema = Schema::parse_str(&parsed_text(&node)).unwrap();
        let data: Vec<Datum> = (0..ROWS).map(|_| generator.datum(&node)).collect();
        let rows: Vec<Vec<u8>> = data.iter().map(|datum| write(&schema, datum)).collect();
        let ours = decode(&node, &node, &rows).unwrap();
        for ((datum, row), ours) in data.iter().zip(&rows).zip(ours) {
            assert_eq!(ours.as_ref(), Ok(&of_datum(datum)), "{}", parsed_text(&node));
            assert_eq!(read(&schema, None, row).as_ref(), Ok(&of_datum(datum)));
        }
    });
}

#[test]
fn what_we_write_is_read_as_written() {
    let profile = Profile { any_branch: true, ..Profile::PLAIN };
    for_each_seed(SEEDS, |seed| {
        let mut generator = Generator::new(seed, profile);
        let node = generator.top(depth(seed));
        if !has_json(&node) {
            return;
        }
        let schema = Schema::parse_str(&parsed_text(&node)).unwrap();
        for _ in 0..ROWS {
            let json = generator.json(&node);
            let bytes = encode::value(&node, &json).unwrap();
            let theirs = Datum::try_from(json.clone()).unwrap().resolve(&schema).unwrap();
            let expected = Ok(of_datum(&theirs));
            assert_eq!(read(&schema, None, &bytes), expected, "{json} as {}", parsed_text(&node));
            let ours = decode(&node, &node, &[bytes]).unwrap().remove(0);
            assert_eq!(ours.map_err(|bad| format!("{bad:?}")), expected, "{json} as {}", parsed_text(&node));
        }
    });
}

#[test]
fn evolved_schemas_are_read_alike() {
    let profile = Profile { extra: Extra::Anything, odd_decimals: false, ..Profile::PLAIN };
    let mut tally = Tally::default();
    for_each_seed(2 * SEEDS, |seed| {
        let mut generator = Generator::new(seed, profile);
        let writer = generator.top(depth(seed));
        let reader = generator.reader_of(&writer);
        let pair = Pair::new(writer, reader);
        let rows = pair.rows(&mut generator);
        pair.compare(&rows, &mut tally);
        pair.damage(&rows, &mut generator.random);
    });
    tally.check();
}

#[test]
fn what_cannot_be_read_is_refused_by_both() {
    let profile =
        Profile { oddities: false, repeats: false, reaching: true, odd_decimals: false, ..Profile::PLAIN };
    for_each_seed(SEEDS, |seed| {
        let mut generator = Generator::new(seed, profile);
        let (writer, reader, why) = generator.unreadable();
        let pair = Pair::new(writer, reader);
        let rows = pair.rows(&mut generator);
        if let Ok(ours) = decode(&pair.writer, &pair.reader, &rows) {
            assert!(ours.iter().all(Result::is_err), "{why}: we read {ours:?}{pair}");
        }
        for row in &rows {
            let theirs = read(&pair.their_writer, Some(&pair.their_reader), row);
            assert!(theirs.is_err(), "{why}: they read {theirs:?}{pair}");
        }
    });
}

/// Every type, and some that are only near each other in the details.
fn every_type(generator: &mut Generator) -> Vec<Node> {
    let mut types = generator.leaves();
    for (size, precision) in [(16, 38), (12, 28)] {
        let kind = Kind::Fixed { name: format!("t.Decimal{size}"), size };
        types.push(Node { kind, logical: Some(Logical::Decimal { precision, scale: 0 }) });
    }
    for kind in [Kind::Int, Kind::String] {
        types.push(plain(Kind::Array(Box::new(plain(kind.clone())))));
        types.push(plain(Kind::Map(Box::new(plain(kind)))));
    }
    types.push(top(plain(Kind::Int), "t.Inner"));
    types
}

fn top(node: Node, name: &str) -> Node {
    let field = Field { name: "f".to_owned(), aliases: Vec::new(), default: None, node };
    plain(Kind::Record(Record { name: name.to_owned(), fields: vec![field] }))
}

fn nullable(node: &Node) -> Node {
    match node.kind {
        Kind::Null => node.clone(),
        _ => plain(Kind::Union(vec![plain(Kind::Null), node.clone()])),
    }
}

/// Each type as each: whatever `compile` accepts can be run, and they agree but for what is known.
#[test]
fn every_pair_of_types_is_read_alike() {
    let profile = Profile { odd_decimals: false, reaching: true, ..Profile::PLAIN };
    let mut met: Vec<&Known> = Vec::new();
    for_each_seed(4, |seed| {
        let mut generator = Generator::new(seed, profile);
        let types = every_type(&mut generator);
        let parsed = |node: Node| {
            let schema = Schema::parse_str(&parsed_text(&node)).unwrap();
            (node, schema)
        };
        let writers: Vec<_> = types.iter().map(|node| parsed(top(node.clone(), "t.Top"))).collect();
        let readers: Vec<_> = types.iter().map(|node| parsed(top(nullable(node), "t.Top"))).collect();
        for (from, (writer, their_writer)) in types.iter().zip(&writers) {
            let rows: Vec<Vec<u8>> =
                (0..ROWS).map(|_| write(their_writer, &generator.datum(writer))).collect();
            // As the type, and as null or the type.
            for shapes in [&writers, &readers] {
                for (into, (reader, their_reader)) in types.iter().zip(shapes) {
                    let ours = decode(writer, reader, &rows).ok();
                    for (index, row) in rows.iter().enumerate() {
                        let theirs = read(their_writer, Some(their_reader), row).ok();
                        let ours = ours.as_ref().and_then(|rows| rows[index].clone().ok());
                        let side = match (&ours, &theirs) {
                            (Some(_), None) => Side::Ours,
                            (None, Some(_)) => Side::Theirs,
                            // Sixteen bytes of any text are to them the bytes of a uuid.
                            (Some(_), Some(_))
                                if from.kind == Kind::String
                                    && into.kind != Kind::String
                                    && into.logical == Some(Logical::Uuid) =>
                            {
                                continue;
                            }
                            _ => {
                                assert_eq!(ours, theirs, "{} as {}", from.describe(), into.describe());
                                continue;
                            }
                        };
                        let difference = known(from, into)
                            .filter(|known| known.reads == side || known.reads == Side::Either);
                        let Some(difference) = difference else {
                            panic!("{} as {}: {ours:?}, {theirs:?}", from.describe(), into.describe());
                        };
                        met.push(difference);
                    }
                }
            }
        }
    });
    for difference in rules::ALL {
        assert!(met.contains(&difference), "no longer so, or no longer tested: {}", difference.why);
    }
}

/// What random schemas keep away from, because apache-avro 0.22 gets it wrong. What it gets right one day
/// fails here, and can be generated from then on.
#[test]
fn what_they_get_wrong_they_still_get_wrong() {
    let decimal = json!({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2});
    let number = Datum::Int(7);
    let short = Datum::Decimal(Decimal::from([1u8]));
    let small = Cell::decimal(&[1]);
    type Case = (&'static str, Value, Datum, Value, Cell, Option<Cell>);
    let cases: [Case; 6] = [
        (
            "aliases of fields are not looked at: https://github.com/flavray/avro-rs/pull/84",
            json!({"name": "old", "type": "int"}),
            number.clone(),
            json!({"name": "new", "type": "int", "aliases": ["old"], "default": 0}),
            Cell::Int(7),
            Some(Cell::Int(0)),
        ),
        (
            "a default is of the first branch that fits (Avro 1.12, https://issues.apache.org/jira/browse/AVRO-3649)",
            json!({"name": "old", "type": "int"}),
            number.clone(),
            json!({"name": "new", "type": ["null", "int"], "default": 5}),
            Cell::Int(5),
            Some(Cell::Null),
        ),
        (
            "likewise null, where it is the second branch",
            json!({"name": "old", "type": "int"}),
            number.clone(),
            json!({"name": "new", "type": ["int", "null"], "default": null}),
            Cell::Null,
            None,
        ),
        (
            "a default of bytes is code points, not UTF-8: https://github.com/flavray/avro-rs/issues/96",
            json!({"name": "old", "type": "int"}),
            number.clone(),
            json!({"name": "new", "type": "bytes", "default": "\u{ff}"}),
            Cell::Bytes(vec![0xff]),
            Some(Cell::Bytes(vec![0xc3, 0xbf])),
        ),
        (
            "likewise of fixed, whose size is not looked at: https://github.com/apache/avro-rs/pull/542",
            json!({"name": "old", "type": "int"}),
            number,
            json!({"name": "new", "type": {"type": "fixed", "name": "X", "size": 1}, "default": "\u{ff}"}),
            Cell::Bytes(vec![0xff]),
            Some(Cell::Bytes(vec![0xc3, 0xbf])),
        ),
        (
            "a decimal may take fewer bytes than its largest value (no issue found)",
            json!({"name": "v", "type": decimal}),
            short,
            json!({"name": "v", "type": decimal}),
            small,
            None,
        ),
    ];
    for (why, from, datum, into, ours, theirs) in cases {
        let record = |field: &Value| json!({"type": "record", "name": "R", "fields": [field]}).to_string();
        let name = |field: &Value| field["name"].as_str().unwrap().to_owned();
        let (writer, reader) = (record(&from), record(&into));
        let their_writer = Schema::parse_str(&writer).unwrap();
        let their_reader = Schema::parse_str(&reader).unwrap();
        let row = write(&their_writer, &Datum::Record(vec![(name(&from), datum)]));
        let expected = |cell| Cell::Record(vec![(name(&into), cell)]);
        assert_eq!(read(&their_writer, Some(&their_reader), &row).ok(), theirs.map(expected), "{why}");
        let node = |text: &str| Node::parse(text, &[]).unwrap();
        let decoded = decode(&node(&writer), &node(&reader), &[row]).unwrap();
        assert_eq!(decoded, [Ok(expected(ours))], "{why}");
    }
}

/// They refuse a whole schema for a default that they cannot read. Defaults are kept from them when we parse with them.
#[test]
fn a_default_that_only_we_read() {
    let duration = json!({"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"});
    let uuid = json!({"type": "bytes", "logicalType": "uuid"});
    for (schema, size) in [(duration, 12), (uuid, 16)] {
        let field = json!({"name": "v", "type": schema, "default": "a".repeat(size)});
        let text = json!({"type": "record", "name": "R", "fields": [field]}).to_string();
        assert!(Schema::parse_str(&text).is_err(), "{text}");
        let reader = Node::parse(&text, &[]).unwrap();
        let writer = Node::parse(r#"{"type": "record", "name": "R", "fields": []}"#, &[]).unwrap();
        let rows = decode(&writer, &reader, &[Vec::new()]).unwrap();
        assert!(matches!(rows.as_slice(), [Ok(Cell::Record(_))]), "{rows:?}");
    }
}
