//! What the topics hold: three kinds of records in Confluent's frame, the same at each run.

use fastrand::Rng;

/// A kind of record, and the topic and route of that name.
pub struct Shape {
    pub name: &'static str,
    pub schema: &'static str,
    /// SQL that keeps the records with odd numbers.
    pub view: &'static str,
    write: fn(&mut Vec<u8>, i64, &mut Rng),
}

impl Shape {
    /// Replaces `value` by that of record `number`.
    pub fn write(&self, value: &mut Vec<u8>, schema_id: u32, number: i64, random: &mut Rng) {
        value.clear();
        value.push(0);
        value.extend_from_slice(&schema_id.to_be_bytes());
        (self.write)(value, number, random);
    }

    /// The same, made bad in one of four ways if it is among the first `bad` of a hundred.
    pub fn write_some_bad(
        &self,
        value: &mut Vec<u8>,
        schema_id: u32,
        number: i64,
        random: &mut Rng,
        bad: i64,
    ) {
        self.write(value, schema_id, number, random);
        if number % 100 >= bad {
            return;
        }
        match number / 100 % 4 {
            0 => value[0] = 1,
            1 => value.truncate(value.len() / 2),
            2 => value.extend_from_slice(b"more"),
            // The first byte of the record begins a number, or a length, without an end.
            _ => {
                value.truncate(5);
                value.extend_from_slice(&[0xff; 16]);
            }
        }
    }

    pub fn named(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name == name)
    }
}

/// How many of the first `records` are bad.
pub fn bad_count(records: i64, bad: i64) -> i64 {
    records / 100 * bad + (records % 100).min(bad)
}

/// Values of about 94, 70 and 50 bytes, the frame included.
pub static SHAPES: [Shape; 3] = [
    Shape {
        name: "orders",
        schema: r#"{"type": "record", "name": "Order", "fields": [
            {"name": "id", "type": "long"},
            {"name": "customer", "type": "string"},
            {"name": "amount", "type": "double"},
            {"name": "item", "type": {"type": "record", "name": "Item", "fields": [
                {"name": "sku", "type": "string"},
                {"name": "quantity", "type": "int"}
            ]}},
            {"name": "created_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "note", "type": "string"}
        ]}"#,
        view: "SELECT id, customer, amount FROM batch WHERE item['quantity'] > 1",
        write: order,
    },
    Shape {
        name: "clicks",
        schema: r#"{"type": "record", "name": "Click", "fields": [
            {"name": "visitor", "type": "string"},
            {"name": "url", "type": "string"},
            {"name": "referrer", "type": ["null", "string"], "default": null},
            {"name": "clicked_at", "type": "long"}
        ]}"#,
        view: "SELECT visitor, url, referrer FROM batch WHERE referrer IS NOT NULL",
        write: click,
    },
    Shape {
        name: "users",
        schema: r#"{"type": "record", "name": "User", "fields": [
            {"name": "id", "type": "long"},
            {"name": "logins", "type": "int"},
            {"name": "is_active", "type": "boolean"},
            {"name": "email", "type": "string"}
        ]}"#,
        view: "SELECT id, email FROM batch WHERE is_active",
        write: user,
    },
];

/// Of the first record; milliseconds.
const FIRST_TIME: i64 = 1_790_000_000_000;

const WORDS: [&str; 16] = [
    "before", "branch", "circle", "door", "evening", "gift", "harbour", "letter", "morning", "north",
    "paper", "ring", "signal", "street", "urgent", "window",
];

fn order(value: &mut Vec<u8>, number: i64, random: &mut Rng) {
    long(value, number);
    text(value, &format!("customer-{:07}", random.u32(0..200_000)));
    value.extend_from_slice(&(f64::from(random.u32(100..100_000)) / 100.0).to_le_bytes());
    text(value, &format!("SKU-{:09}", random.u32(0..5_000)));
    long(value, if is_odd(number) { random.i64(2..10) } else { 1 });
    long(value, FIRST_TIME + number * 37);
    let words: Vec<&str> = (0..6).map(|_| word(random)).collect();
    text(value, &words.join(" "));
}

fn click(value: &mut Vec<u8>, number: i64, random: &mut Rng) {
    text(value, &format!("{:016x}", random.u64(0..50_000).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    text(value, &format!("/products/{:05}/page/{}", random.u32(0..20_000), random.u32(1..10)));
    long(value, i64::from(is_odd(number)));
    if is_odd(number) {
        text(value, &format!("https://example.org/search?q={}", word(random)));
    }
    long(value, FIRST_TIME + number * 11);
}

fn user(value: &mut Vec<u8>, number: i64, random: &mut Rng) {
    long(value, number);
    long(value, random.i64(0..500));
    value.push(u8::from(is_odd(number)));
    text(value, &format!("{}.{}.{number:08}@mail.example.org", word(random), word(random)));
}

fn is_odd(number: i64) -> bool {
    number % 2 == 1
}

fn word(random: &mut Rng) -> &'static str {
    WORDS[random.usize(0..WORDS.len())]
}

/// Avro's `int`, `long` and the index of a union: zigzag, seven bits a byte.
fn long(value: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        value.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    value.push(rest as u8);
}

fn text(value: &mut Vec<u8>, text: &str) {
    long(value, text.len() as i64);
    value.extend_from_slice(text.as_bytes());
}
