//! Unions of several types besides null, in writers' and in readers' schemas, against apache-avro 0.22. Not against
//! arrow-avro: it makes dense unions of them, and what their branches become is compared without them already.

use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::types::Value as Datum;

use super::apache::{read, write};
use super::cell::of_datum;
use super::generate::{Extra, Generator, Profile, plain};
use super::rules::known;
use super::{decode, depth, for_each_seed, parsed_text};
use crate::codec::avro::node::{Enum, Field, Kind, Node, Record};

const SEEDS: u64 = 300;
const ROWS: usize = 6;

/// Anywhere in a schema, and of any types.
#[test]
fn what_they_write_is_read_as_written() {
    let profile = Profile { extra: Extra::Anything, ..Profile::PLAIN };
    for_each_seed(SEEDS, |seed| {
        let mut generator = Generator::new(seed, profile);
        let node = generator.top(depth(seed));
        let schema = Schema::parse_str(&parsed_text(&node)).unwrap();
        let data: Vec<Datum> = (0..ROWS).map(|_| generator.datum(&node)).collect();
        let rows: Vec<Vec<u8>> = data.iter().map(|datum| write(&schema, datum)).collect();
        let ours = decode(&node, &node, &rows).unwrap();
        for (datum, ours) in data.iter().zip(ours) {
            assert_eq!(ours.as_ref(), Ok(&of_datum(datum)), "{}", parsed_text(&node));
        }
    });
}

fn record(name: &str, field: &str, node: Node) -> Node {
    let field = Field { name: field.to_owned(), aliases: Vec::new(), default: None, node };
    plain(Kind::Record(Record { name: name.to_owned(), fields: vec![field] }))
}

fn branches() -> Vec<Node> {
    let symbols = vec![Arc::from("A"), Arc::from("B")];
    vec![
        plain(Kind::Boolean),
        plain(Kind::Int),
        plain(Kind::Long),
        plain(Kind::Float),
        plain(Kind::Double),
        plain(Kind::Bytes),
        plain(Kind::String),
        plain(Kind::Array(Box::new(plain(Kind::Int)))),
        plain(Kind::Map(Box::new(plain(Kind::String)))),
        plain(Kind::Enum(Enum { name: "t.E".to_owned(), symbols, default: None })),
        plain(Kind::Fixed { name: "t.F".to_owned(), size: 4 }),
        record("t.R", "a", plain(Kind::Int)),
        record("t.S", "b", plain(Kind::String)),
    ]
}

/// Two to four branches, and sometimes null.
fn union(generator: &mut Generator) -> Vec<Node> {
    let mut arms = branches();
    generator.random.shuffle(&mut arms);
    arms.truncate(generator.random.usize(2..=4));
    if generator.one_in(3) {
        arms.insert(generator.random.usize(..=arms.len()), plain(Kind::Null));
    }
    arms
}

/// Which branch of the reader's a writer's branch is read as, or that there is none. Left out are pairs that
/// apache-avro takes for one another by their values (`rules`).
#[test]
fn the_same_branch_is_chosen() {
    let profile =
        Profile { oddities: false, repeats: false, reaching: true, odd_decimals: false, ..Profile::PLAIN };
    let (mut values, mut refusals) = (0, 0);
    for_each_seed(8 * SEEDS, |seed| {
        let mut generator = Generator::new(seed, profile);
        let (mut from, into) = (union(&mut generator), union(&mut generator));
        if generator.one_in(3) {
            from.retain(|arm| arm.kind != Kind::Null);
            from.truncate(1);
        }
        let is_left_out = from.iter().any(|from| into.iter().any(|into| known(from, into).is_some()));
        if is_left_out {
            return;
        }
        let from = if from.len() == 1 { from.remove(0) } else { plain(Kind::Union(from)) };
        let writer = record("t.Top", "f", from);
        let reader = record("t.Top", "f", plain(Kind::Union(into)));
        let (writer_text, reader_text) = (parsed_text(&writer), parsed_text(&reader));
        let their_writer = Schema::parse_str(&writer_text).unwrap();
        let their_reader = Schema::parse_str(&reader_text).unwrap();
        let rows: Vec<Vec<u8>> = (0..ROWS).map(|_| write(&their_writer, &generator.datum(&writer))).collect();
        let ours = decode(&writer, &reader, &rows).ok();
        for (index, row) in rows.iter().enumerate() {
            let ours = ours.as_ref().and_then(|rows| rows[index].clone().ok());
            let theirs = read(&their_writer, Some(&their_reader), row).ok();
            assert_eq!(ours, theirs, "writer: {writer_text}\nreader: {reader_text}");
            if ours.is_some() { values += 1 } else { refusals += 1 }
        }
    });
    // One seed alone says nothing of that.
    assert!(values + refusals < 500 || (values > 100 && refusals > 100), "{values} {refusals}");
}
