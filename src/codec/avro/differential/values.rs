//! Random values for a schema: as apache-avro has them, and in JSON.

use apache_avro::types::Value as Datum;
use apache_avro::{Days, Decimal, Duration, Millis, Months};
use arrow::datatypes::i256;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::generate::Generator;
use crate::codec::avro::node::{Kind, Logical, Node};

/// Digits that a two's complement number of 1, 2, … bytes holds, from the specification's formula.
const DIGITS: [u8; 32] = [
    2, 4, 6, 9, 11, 14, 16, 18, 21, 23, 26, 28, 31, 33, 35, 38, 40, 43, 45, 47, 50, 52, 55, 57, 59, 62, 64,
    67, 69, 71, 74, 76,
];

impl Generator {
    /// A value, as apache-avro has it.
    pub fn datum(&mut self, node: &Node) -> Datum {
        use Logical as L;
        match (&node.kind, node.logical) {
            (Kind::Null, _) => Datum::Null,
            (Kind::Boolean, _) => Datum::Boolean(self.random.bool()),
            (Kind::Int, Some(L::Date)) => Datum::Date(self.int()),
            (Kind::Int, Some(L::TimeMillis)) => Datum::TimeMillis(self.int()),
            (Kind::Int, _) => Datum::Int(self.int()),
            (Kind::Long, Some(L::TimeMicros)) => Datum::TimeMicros(self.long()),
            (Kind::Long, Some(L::TimestampMillis)) => Datum::TimestampMillis(self.long()),
            (Kind::Long, Some(L::TimestampMicros)) => Datum::TimestampMicros(self.long()),
            (Kind::Long, Some(L::TimestampNanos)) => Datum::TimestampNanos(self.long()),
            (Kind::Long, Some(L::LocalTimestampMillis)) => Datum::LocalTimestampMillis(self.long()),
            (Kind::Long, Some(L::LocalTimestampMicros)) => Datum::LocalTimestampMicros(self.long()),
            (Kind::Long, Some(L::LocalTimestampNanos)) => Datum::LocalTimestampNanos(self.long()),
            (Kind::Long, _) => Datum::Long(self.long()),
            // All bit patterns: infinities, NaN, -0.0.
            (Kind::Float, _) => Datum::Float(f32::from_bits(self.random.u32(..))),
            (Kind::Double, _) => Datum::Double(f64::from_bits(self.random.u64(..))),
            (_, Some(L::Uuid)) => Datum::Uuid(Uuid::from_u128(self.random.u128(..))),
            (_, Some(L::Duration)) => Datum::Duration(Duration::new(
                Months::new(self.random.u32(..)),
                Days::new(self.random.u32(..)),
                Millis::new(self.random.u32(..)),
            )),
            (Kind::Fixed { size, .. }, Some(L::Decimal { precision, .. })) => {
                Datum::Decimal(Decimal::from(self.decimal(precision, Some(*size))))
            }
            (_, Some(L::Decimal { precision, .. })) => {
                Datum::Decimal(Decimal::from(self.decimal(precision, None)))
            }
            (Kind::Bytes, _) => {
                let len = self.random.usize(..20);
                Datum::Bytes(self.bytes(len))
            }
            (Kind::Fixed { size, .. }, _) => Datum::Fixed(*size, self.bytes(*size)),
            (Kind::String, _) => Datum::String(self.text()),
            (Kind::Enum(symbols), _) => {
                let index = self.random.usize(..symbols.symbols.len());
                Datum::Enum(index as u32, symbols.symbols[index].to_string())
            }
            (Kind::Array(item), _) => {
                let count = self.count();
                Datum::Array((0..count).map(|_| self.datum(item)).collect())
            }
            (Kind::Map(value), _) => {
                let count = self.count();
                Datum::Map((0..count).map(|key| (format!("k{key}é"), self.datum(value))).collect())
            }
            (Kind::Record(record), _) => {
                let fields = record.fields.iter();
                Datum::Record(fields.map(|field| (field.name.clone(), self.datum(&field.node))).collect())
            }
            (Kind::Union(arms), _) => {
                let is_wanted = |arm: &Node| !self.profile.reaching || arm.kind != Kind::Null;
                let wanted: Vec<usize> = (0..arms.len()).filter(|index| is_wanted(&arms[*index])).collect();
                let index = self.random.choice(wanted).unwrap_or(0);
                Datum::Union(index as u32, Box::new(self.datum(&arms[index])))
            }
            (Kind::Choice(_), _) => panic!("no type of Avro"),
        }
    }

    /// A value in JSON, by the rules for defaults. Bytes are below 128: see [`super::apache`].
    pub fn json(&mut self, node: &Node) -> Value {
        match (&node.kind, node.logical) {
            (Kind::Null, _) => Value::Null,
            (Kind::Boolean, _) => json!(self.random.bool()),
            (Kind::Int, _) => json!(self.int()),
            (Kind::Long, _) => json!(self.long()),
            // Exact in 32 bits, and in any parser.
            (Kind::Float | Kind::Double, _) => json!(f64::from(self.random.i32(-1_000_000..1_000_000)) / 4.0),
            (Kind::Fixed { size, .. }, Some(Logical::Decimal { precision, .. })) => {
                code_points(&self.decimal(precision, Some(*size)))
            }
            (_, Some(Logical::Decimal { precision, .. })) => {
                code_points(&self.decimal(precision, Some(size_for(precision))))
            }
            (Kind::String, Some(Logical::Uuid)) => {
                json!(Uuid::from_u128(self.random.u128(..)).hyphenated().to_string())
            }
            (Kind::Bytes, _) => {
                let len = self.random.usize(..20);
                json!(self.ascii(len))
            }
            (Kind::Fixed { size, .. }, _) => json!(self.ascii(*size)),
            (Kind::String, _) => json!(self.text()),
            (Kind::Enum(symbols), _) => {
                let index = self.random.usize(..symbols.symbols.len());
                json!(&*symbols.symbols[index])
            }
            (Kind::Array(item), _) => {
                let count = self.count();
                Value::Array((0..count).map(|_| self.json(item)).collect())
            }
            (Kind::Map(value), _) => {
                let count = self.count();
                Value::Object((0..count).map(|key| (format!("k{key}"), self.json(value))).collect())
            }
            (Kind::Record(record), _) => {
                let mut values = Map::new();
                for field in &record.fields {
                    let is_left_out = self.profile.oddities && field.default.is_some() && self.one_in(2);
                    if !is_left_out {
                        values.insert(field.name.clone(), self.json(&field.node));
                    }
                }
                Value::Object(values)
            }
            (Kind::Union(arms), _) => {
                let count = if self.profile.any_branch { arms.len() } else { 1 };
                let index = self.random.usize(..count);
                self.json(&arms[index])
            }
            (Kind::Choice(_), _) => panic!("no type of Avro"),
        }
    }

    pub fn default_or_none(&mut self, node: &Node) -> Option<Value> {
        if has_json(node) && self.one_in(4) { Some(self.default(node)) } else { None }
    }

    /// A default: of a union's first branch, on which everybody agrees.
    pub fn default(&mut self, node: &Node) -> Value {
        let any_branch = std::mem::replace(&mut self.profile.any_branch, false);
        let value = self.json(node);
        self.profile.any_branch = any_branch;
        value
    }

    fn count(&mut self) -> usize {
        self.random.usize(usize::from(self.profile.reaching)..4)
    }

    fn int(&mut self) -> i32 {
        match self.random.u32(..6) {
            0 => i32::MIN,
            1 => i32::MAX,
            2 | 3 => self.random.i32(-100..100),
            _ => self.random.i32(..),
        }
    }

    fn long(&mut self) -> i64 {
        match self.random.u32(..6) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 | 3 => self.int().into(),
            _ => self.random.i64(..),
        }
    }

    fn text(&mut self) -> String {
        let len = self.random.usize(..8);
        if self.random.bool() {
            return self.ascii(len);
        }
        (0..len).map(|_| self.random.char(..)).collect()
    }

    fn ascii(&mut self, len: usize) -> String {
        (0..len).map(|_| self.random.char('\0'..'\u{80}')).collect()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        if self.random.bool() {
            return self.ascii(len).into_bytes();
        }
        let mut bytes = vec![0; len];
        self.random.fill(&mut bytes);
        bytes
    }

    /// A number of up to `precision` digits as two's complement of `size` bytes.
    fn decimal(&mut self, precision: u8, size: Option<usize>) -> Vec<u8> {
        let digits = if self.one_in(3) { precision } else { self.random.u8(1..=precision) };
        let is_largest = self.one_in(3);
        let mut text = if self.random.bool() { "-".to_owned() } else { String::new() };
        text.extend((0..digits).map(|_| if is_largest { '9' } else { self.random.digit(10) }));
        let wide = i256::from_string(&text).unwrap().to_be_bytes();
        if size.is_none() && self.profile.odd_decimals {
            let sign = if wide[0] & 0x80 == 0 { 0 } else { 0xff };
            // The sign bit has to stay.
            let fewest =
                wide.windows(2).take_while(|pair| pair[0] == sign && (pair[1] ^ sign) & 0x80 == 0).count();
            let mut bytes = vec![sign; if self.one_in(4) { self.random.usize(..12) } else { 0 }];
            bytes.extend_from_slice(&wide[fewest..]);
            return bytes;
        }
        wide[32 - size.unwrap_or_else(|| size_for(precision))..].to_vec()
    }
}

/// Whether both can read a default of the type. apache-avro knows none for a uuid on bytes and for a duration
/// (`a_default_that_only_we_read` in [`super::apache`]).
pub fn has_json(node: &Node) -> bool {
    match &node.kind {
        Kind::Bytes => node.logical != Some(Logical::Uuid),
        Kind::Fixed { .. } => node.logical != Some(Logical::Duration),
        Kind::Array(inner) | Kind::Map(inner) => has_json(inner),
        Kind::Record(record) => record.fields.iter().all(|field| has_json(&field.node)),
        // The text of a decimal may be taken for that of a uuid, which it is not.
        Kind::Union(arms) => {
            let has_uuid = arms.iter().any(|arm| arm.logical == Some(Logical::Uuid));
            let has_bytes = arms.iter().any(|arm| matches!(arm.kind, Kind::Bytes | Kind::Fixed { .. }));
            arms.iter().all(has_json) && !(has_uuid && has_bytes)
        }
        _ => true,
    }
}

/// The fewest bytes that hold every number of so many digits.
pub fn size_for(precision: u8) -> usize {
    DIGITS.iter().position(|digits| *digits >= precision).unwrap() + 1
}

fn code_points(bytes: &[u8]) -> Value {
    json!(bytes.iter().map(|byte| char::from(*byte)).collect::<String>())
}
