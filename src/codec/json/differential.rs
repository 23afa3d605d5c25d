//! Differential test: typed JSON against serde_json, on random schemas and values.
//!
//! Each value is made together with the cell that it has to become, by the table of `docs/types.md`. serde_json writes the
//! text, so all that it may write is read back; one value in forty is of a wrong type, and its record has to be bad.
//! Seeds as in [`crate::codec::avro::differential`].

use std::collections::{BTreeMap, HashMap};

use arrow::datatypes::i256;
use arrow::record_batch::RecordBatch;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::put_row;
use crate::codec::avro::arrow_type;
use crate::codec::avro::differential::cell::{Cell, of_rows};
use crate::codec::avro::differential::generate::{Generator, Profile};
use crate::codec::avro::differential::{depth, for_each_seed};
use crate::codec::avro::node::{Kind, Logical, Node, Record};
use crate::codec::columns::Column;

/// A few seconds in all, in a build for tests.
const SEEDS: u64 = 300;

/// Records for each schema.
const ROWS: usize = 8;

/// One type of each name, so that fields have names of their own.
const PROFILE: Profile = Profile { oddities: false, repeats: false, ..Profile::PLAIN };

/// Nanoseconds in the units of times.
const MILLIS: i64 = 1_000_000;
const MICROS: i64 = 1_000;

struct Writer {
    generator: Generator,
    /// What the defaults of fields become, by record and field.
    defaults: HashMap<(String, String), Cell>,
    /// Values of wrong types are among the others.
    has_misfits: bool,
}

/// A value, and what it becomes; `None`: its record is bad.
type Pair = (Value, Option<Cell>);

fn fits(value: Value, cell: Cell) -> Pair {
    (value, Some(cell))
}

impl Writer {
    fn new(seed: u64) -> Self {
        Self { generator: Generator::new(seed, PROFILE), defaults: HashMap::new(), has_misfits: false }
    }

    /// A schema whose defaults are JSON as it is in records: Avro writes bytes in another way.
    fn schema(&mut self, depth: usize) -> Node {
        let mut node = self.generator.top(depth);
        self.give_defaults(&mut node);
        node
    }

    fn give_defaults(&mut self, node: &mut Node) {
        match &mut node.kind {
            Kind::Array(inner) | Kind::Map(inner) => self.give_defaults(inner),
            Kind::Union(arms) => arms.iter_mut().for_each(|arm| self.give_defaults(arm)),
            Kind::Record(record) => {
                for field in &mut record.fields {
                    field.default = None;
                    self.give_defaults(&mut field.node);
                    if self.generator.one_in(3)
                        && let (default, Some(cell)) = self.value(&field.node)
                    {
                        field.default = Some(default);
                        self.defaults.insert((record.name.clone(), field.name.clone()), cell);
                    }
                }
            }
            _ => {}
        }
    }

    fn value(&mut self, node: &Node) -> Pair {
        // What is no value of a union's branch may be one of the other.
        let is_branch = matches!(node.kind, Kind::Union(_) | Kind::Null);
        if self.has_misfits && !is_branch && self.generator.one_in(40) {
            return (wrong(node), None);
        }
        if let Some(logical) = node.logical {
            return self.logical(node, logical);
        }
        match &node.kind {
            Kind::Null => fits(Value::Null, Cell::Null),
            Kind::Boolean => {
                let value = self.generator.random.bool();
                fits(json!(value), Cell::Boolean(value))
            }
            Kind::Int => {
                let value = self.generator.random.i32(..);
                fits(json!(value), Cell::Int(value.into()))
            }
            Kind::Long => {
                let value = self.generator.random.i64(..);
                fits(json!(value), Cell::Int(value))
            }
            // Exact in 32 bits, and in any parser.
            Kind::Float => {
                let value = self.quarters();
                fits(json!(value), Cell::float(value as f32))
            }
            Kind::Double => {
                let value = self.quarters();
                fits(json!(value), Cell::double(value))
            }
            Kind::String => {
                let text = self.text();
                fits(json!(text), Cell::Text(text))
            }
            Kind::Bytes => {
                let len = self.generator.random.usize(..20);
                self.bytes(len)
            }
            Kind::Fixed { size, .. } => self.bytes(*size),
            Kind::Enum(symbols) => {
                if let Some(default) = &symbols.default
                    && self.generator.one_in(4)
                {
                    return fits(json!("a symbol that nobody knows"), Cell::text(default));
                }
                let index = self.generator.random.usize(..symbols.symbols.len());
                let symbol = &symbols.symbols[index];
                fits(json!(&**symbol), Cell::text(symbol))
            }
            Kind::Array(item) => {
                let items: Vec<Pair> =
                    (0..self.generator.random.usize(..4)).map(|_| self.value(item)).collect();
                let (values, cells): (Vec<Value>, Vec<Option<Cell>>) = items.into_iter().unzip();
                (Value::Array(values), cells.into_iter().collect::<Option<Vec<Cell>>>().map(Cell::List))
            }
            Kind::Map(inner) => {
                let (mut values, mut cells) = (Map::new(), Some(BTreeMap::new()));
                for number in 0..self.generator.random.usize(..4) {
                    let key = format!("{number} {}", self.text());
                    let (value, cell) = self.value(inner);
                    values.insert(key.clone(), value);
                    cells = cells.zip(cell).map(|(mut cells, cell)| {
                        cells.insert(key, cell);
                        cells
                    });
                }
                (Value::Object(values), cells.map(Cell::Map))
            }
            Kind::Record(record) => self.record(record),
            Kind::Choice(_) => panic!("no Avro schema has a {}", node.describe()),
            Kind::Union(arms) => {
                let index = self.generator.random.usize(..arms.len());
                self.value(&arms[index])
            }
        }
    }

    /// Fields in any order, some of them left out, and some that nobody knows.
    fn record(&mut self, record: &Record) -> Pair {
        let (mut values, mut cells) = (Vec::new(), Some(Vec::new()));
        for field in &record.fields {
            let default = self.defaults.get(&(record.name.clone(), field.name.clone())).cloned();
            let missing = default.or_else(|| takes_null(&field.node).then_some(Cell::Null));
            let is_left_out = match missing {
                Some(_) => self.generator.one_in(3),
                None => self.has_misfits && self.generator.one_in(40),
            };
            let cell = if is_left_out {
                missing
            } else {
                let (value, cell) = self.value(&field.node);
                values.push((field.name.clone(), value));
                cell
            };
            cells = cells.zip(cell).map(|(mut cells, cell)| {
                cells.push((field.name.clone(), cell));
                cells
            });
        }
        if self.generator.one_in(4) {
            values.push(("nobody knows this".to_owned(), json!({"a": [1, {}]})));
        }
        self.generator.random.shuffle(&mut values);
        (Value::Object(values.into_iter().collect()), cells.map(Cell::Record))
    }

    fn logical(&mut self, node: &Node, logical: Logical) -> Pair {
        use Logical as L;
        let is_text = self.generator.random.bool();
        let random = &mut self.generator.random;
        match logical {
            L::Date => {
                let days = random.i64(-100_000..100_000);
                let text =
                    || instant(days * 86_400 * 1_000 * MILLIS).to_zoned(TimeZone::UTC).date().to_string();
                fits(if is_text { json!(text()) } else { json!(days) }, Cell::Int(days))
            }
            L::TimeMillis => of_day(random.i64(0..86_400_000), 1_000, 3, is_text),
            L::TimeMicros => of_day(random.i64(0..86_400_000_000), 1_000_000, 6, is_text),
            L::TimestampMillis => self.time(MILLIS, is_text, true),
            L::TimestampMicros => self.time(MICROS, is_text, true),
            L::TimestampNanos => self.time(1, is_text, true),
            L::LocalTimestampMillis => self.time(MILLIS, is_text, false),
            L::LocalTimestampMicros => self.time(MICROS, is_text, false),
            L::LocalTimestampNanos => self.time(1, is_text, false),
            L::Decimal { precision, scale } => self.decimal(precision, scale, is_text),
            L::Uuid => {
                let text = Uuid::from_u128(random.u128(..)).hyphenated().to_string();
                fits(if is_text { json!(text.to_uppercase()) } else { json!(text) }, Cell::Text(text))
            }
            // It has no JSON.
            L::Duration => (json!({"months": 1, "days": 2, "millis": 3}), None),
            L::BigDecimal | L::Json => panic!("no schema here has a {}", node.describe()),
        }
    }

    fn time(&mut self, unit: i64, is_text: bool, has_zone: bool) -> Pair {
        if !is_text {
            let value = self.generator.random.i64(..);
            return fits(json!(value), Cell::Int(value));
        }
        // Whole units, in the years that nanoseconds of 64 bits reach.
        let value = self.generator.random.i64(-4_000_000_000..4_000_000_000) * (1_000_000_000 / unit)
            + self.generator.random.i64(0..1_000_000_000 / unit);
        let instant = instant(value * unit);
        let text = match has_zone {
            true => instant.to_string(),
            false => instant.to_zoned(TimeZone::UTC).datetime().to_string(),
        };
        fits(json!(text), Cell::Int(value))
    }

    fn decimal(&mut self, precision: u8, scale: i8, is_text: bool) -> Pair {
        let random = &mut self.generator.random;
        // As many as a number in JSON keeps, or all.
        let count = if is_text { random.u8(1..=precision) } else { random.u8(1..=precision.min(15)) };
        let digits: String = (0..count).map(|_| random.digit(10)).collect();
        let sign = if random.bool() { "-" } else { "" };
        let cell = Cell::Decimal(i256::from_string(&format!("{sign}{digits}")).unwrap());
        let scale = usize::try_from(scale).unwrap();
        let padded = format!("{digits:0>width$}", width = scale + 1);
        let (whole, fraction) = padded.split_at(padded.len() - scale);
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        let text = match fraction {
            "" => format!("{sign}{whole}"),
            fraction => format!("{sign}{whole}.{fraction}"),
        };
        let number = serde_json::from_str::<Value>(&text).ok();
        match number.filter(|number| !is_text && !number.to_string().contains('e')) {
            Some(number) => fits(number, cell),
            None => fits(json!(text), cell),
        }
    }

    fn quarters(&mut self) -> f64 {
        f64::from(self.generator.random.i32(-1_000_000..1_000_000)) / 4.0
    }

    fn text(&mut self) -> String {
        let len = self.generator.random.usize(..8);
        (0..len).map(|_| self.generator.random.char(..)).collect()
    }

    fn bytes(&mut self, len: usize) -> Pair {
        let mut bytes = vec![0; len];
        self.generator.random.fill(&mut bytes);
        fits(json!(STANDARD.encode(&bytes)), Cell::Bytes(bytes))
    }
}

fn instant(nanos: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap()
}

/// A time of day of so many units a second, with as many digits.
fn of_day(value: i64, second: i64, digits: usize, is_text: bool) -> Pair {
    let seconds = value / second;
    let text = format!(
        "{:02}:{:02}:{:02}.{:0digits$}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        value % second
    );
    fits(if is_text { json!(text) } else { json!(value) }, Cell::Int(value))
}

fn takes_null(node: &Node) -> bool {
    match &node.kind {
        Kind::Null => true,
        Kind::Union(arms) => arms.iter().any(|arm| arm.kind == Kind::Null),
        _ => false,
    }
}

/// JSON that is no value of a type, nor null.
fn wrong(node: &Node) -> Value {
    match (&node.kind, node.logical) {
        (Kind::Boolean, _) => json!(0),
        (Kind::Int, None) => json!(2_147_483_648_i64),
        (Kind::Long, None) => json!(1.5),
        (Kind::String, None) => json!(5),
        (Kind::Enum(symbols), _) if symbols.default.is_none() => json!("a symbol that nobody knows"),
        (Kind::Bytes | Kind::Fixed { .. }, None) => json!("no base64!"),
        (Kind::Array(_), _) => json!({"a": 1}),
        (Kind::Map(_) | Kind::Record(_), _) => json!([]),
        _ => json!([true]),
    }
}

#[test]
fn what_serde_json_writes_is_read_by_its_types() {
    let (mut good, mut bad) = (0_u64, 0_u64);
    for_each_seed(SEEDS, |seed| {
        let mut writer = Writer::new(seed);
        let node = writer.schema(depth(seed));
        writer.has_misfits = true;
        let schema = arrow_type::schema(&node, false).unwrap();
        let mut columns: Vec<Column> =
            schema.fields().iter().map(|field| Column::new(field).unwrap()).collect();
        let Kind::Record(record) = &node.kind else { panic!("no record") };
        let mut expected = Vec::new();
        for row in 0..ROWS {
            let (value, cell) = writer.value(&node);
            let text = match row % 2 {
                0 => value.to_string(),
                _ => serde_json::to_string_pretty(&value).unwrap(),
            };
            let read = put_row(record, text.as_bytes(), &mut columns);
            match cell {
                Some(cell) => {
                    assert_eq!(read, Ok(()), "{text}\n{node:?}");
                    expected.push(cell);
                    good += 1;
                }
                None => {
                    assert!(read.is_err(), "{text}\n{node:?}");
                    columns.iter_mut().for_each(|column| column.truncate(expected.len()));
                    bad += 1;
                }
            }
        }
        let arrays = columns.into_iter().map(|column| column.finish().unwrap()).collect();
        let batch = RecordBatch::try_new(schema, arrays).unwrap();
        assert_eq!(of_rows(&node, &batch), expected, "{node:?}");
    });
    // A test that compares nothing any more has to be noticed.
    assert!(good + bad < 100 || (good > bad / 4 && bad > 0), "{good} {bad}");
}
