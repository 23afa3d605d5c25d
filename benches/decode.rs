//! Decoding alone: the same records as Avro, Protobuf and JSON, from bytes to Arrow columns, on one core and in memory.
//!
//! `cargo bench --bench decode`, with `-- --records 10000 --rounds 5` for a small one. Rounds of the formats alternate, so
//! that what else the machine does concerns all of them; the figure is the median of a format's rounds. Protobuf may take
//! one and a half times what Avro takes: `-- --check` ends with an error if it takes more.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures go to stdout, what is wrong to stderr"
)]

use std::env;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use protox::prost_reflect::prost::Message as _;
use protox::prost_reflect::{DynamicMessage, MapKey, MessageDescriptor, Value as Field};
use serde_json::{Map, Value, json};
use sidestream::codec::avro::encode;
use sidestream::codec::avro::node::Node;
use sidestream::codec::{Codec, Learnt, Registered, json_schema, protobuf};
use sidestream::config::plan::Tombstones;
use sidestream::model::{
    Chunk, ChunkBuilder, Incoming, Offset, Partition, RecordRef, SchemaId, TimestampType, TopicName,
    TopicPartition,
};

/// What Protobuf may cost of what Avro costs.
const RATIO_MAX: f64 = 1.5;

const AVRO: &str = r#"{"type": "record", "name": "Order", "fields": [
    {"name": "id", "type": "long"},
    {"name": "customer", "type": "string"},
    {"name": "note", "type": ["null", "string"]},
    {"name": "created_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    {"name": "item", "type": {"type": "record", "name": "Item", "fields": [
        {"name": "sku", "type": "string"}, {"name": "quantity", "type": "int"}]}},
    {"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
        {"name": "sku", "type": "string"}, {"name": "quantity", "type": "int"}, {"name": "price", "type": "double"}]}}},
    {"name": "counts", "type": {"type": "map", "values": "long"}},
    {"name": "tags", "type": {"type": "array", "items": "string"}}]}"#;

const PROTOBUF: &str = r#"syntax = "proto3";
    import "google/protobuf/timestamp.proto";
    message Order {
        message Item { string sku = 1; int32 quantity = 2; }
        message Line { string sku = 1; int32 quantity = 2; double price = 3; }
        int64 id = 1;
        string customer = 2;
        optional string note = 3;
        google.protobuf.Timestamp created_at = 4;
        Item item = 5;
        repeated Line lines = 6;
        map<string, int64> counts = 7;
        repeated string tags = 8;
    }"#;

const JSON: &str = r#"{"type": "object", "required": ["id", "customer", "created_at", "item", "lines", "counts", "tags"],
    "properties": {
        "id": {"type": "integer"},
        "customer": {"type": "string"},
        "note": {"type": ["string", "null"]},
        "created_at": {"type": "string", "format": "date-time"},
        "item": {"type": "object", "required": ["sku", "quantity"], "properties": {
            "sku": {"type": "string"}, "quantity": {"type": "integer"}}},
        "lines": {"type": "array", "items": {"type": "object", "required": ["sku", "quantity", "price"], "properties": {
            "sku": {"type": "string"}, "quantity": {"type": "integer"}, "price": {"type": "number"}}}},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "tags": {"type": "array", "items": {"type": "string"}}}}"#;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // `cargo test --benches` starts it without.
    if !arguments.iter().any(|argument| argument == "--bench") {
        eprintln!("not run; measure with: cargo bench --bench decode");
        return Ok(());
    }
    let (mut records, mut rounds, mut is_checked) = (50_000, 15, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut number = || -> anyhow::Result<usize> {
            let text = rest.next().with_context(|| format!("{argument} takes a number"))?;
            let number = text.parse::<usize>().ok().filter(|number| *number > 0);
            number.with_context(|| format!("{argument} takes a number"))
        };
        match argument.as_str() {
            "--bench" => {}
            "--records" => records = number()?,
            "--rounds" => rounds = number()?,
            "--check" => is_checked = true,
            other => bail!("`{other}` is none of --records, --rounds, --check"),
        }
    }
    let formats = [avro(records)?, protobuf(records)?, json(records)?];
    let mut times: [Vec<Duration>; 3] = Default::default();
    for round in 0..=rounds {
        for (format, times) in formats.iter().zip(&mut times) {
            let time = format.decode()?;
            // The first round warms up.
            if round > 0 {
                times.push(time);
            }
        }
    }
    let nanos = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e9 / records as f64
    });
    println!("{records} records, {rounds} rounds; ns a record, and of Avro's");
    for (format, nanos_each) in formats.iter().zip(nanos) {
        let bytes = format.chunk.byte_count() / records;
        println!(
            "{:<10}{nanos_each:>10.0}{:>8.2}   ({bytes} bytes each)",
            format.name,
            nanos_each / nanos[0]
        );
    }
    let ratio = nanos[1] / nanos[0];
    ensure!(
        !is_checked || ratio <= RATIO_MAX,
        "Protobuf takes {ratio:.2} of what Avro takes, not {RATIO_MAX}"
    );
    Ok(())
}

/// All records in one format, and what reads them.
struct Format {
    name: &'static str,
    codec: Registered,
    chunk: Chunk,
}

impl Format {
    fn new(
        name: &'static str,
        kind: &str,
        text: &str,
        mut codec: Registered,
        payloads: impl Iterator<Item = anyhow::Result<Vec<u8>>>,
    ) -> anyhow::Result<Self> {
        let id = SchemaId(7);
        let learnt = Learnt::Schema { kind: kind.to_owned(), text: text.to_owned(), references: Vec::new() };
        codec.learn(id.into(), learnt);
        let source = TopicPartition::new(&TopicName::new("bench"), Partition(0));
        let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
        for payload in payloads {
            let value = [&[0][..], &id.0.to_be_bytes(), &payload?].concat();
            let incoming = Incoming {
                offset: builder.next(),
                timestamp_ms: 0,
                timestamp_type: TimestampType::Create,
                epoch: None,
                key: None,
                value: Some(&value),
            };
            builder.push(incoming, std::iter::empty());
        }
        let end = builder.next();
        Ok(Self { name, codec, chunk: builder.finish(end) })
    }

    /// How long it takes to decode all of them.
    fn decode(&self) -> anyhow::Result<Duration> {
        let records: Vec<RecordRef<'_>> = self.chunk.records().collect();
        let start = Instant::now();
        let decoded = black_box(self.codec.decode(black_box(&records))?);
        let time = start.elapsed();
        if let Some(bad) = decoded.rejected.first() {
            bail!("{}: record {} is bad: {}", self.name, bad.index, bad.message);
        }
        Ok(time)
    }
}

/// Record `number`; its time is in microseconds.
fn order(number: usize) -> Value {
    let line = |at: usize| {
        let price = (number % 97) as f64 / 4.0;
        json!({"sku": format!("sku-{}", (number + at) % 500), "quantity": at + 1, "price": price})
    };
    let lines: Vec<Value> = (0..number % 4).map(line).collect();
    let keys = ["source", "device", "region"].into_iter().take(number % 4);
    let counts: Map<String, Value> = keys.map(|key| (key.to_owned(), json!(number % 1000))).collect();
    let tags: Vec<&str> = ["new", "gift"].into_iter().take(number % 3).collect();
    let note = number.is_multiple_of(3).then_some("leave it at the door");
    json!({
        "id": number,
        "customer": format!("customer-{}", number % 10_000),
        "note": note,
        "created_at": 1_790_000_000_000_000_i64 + number as i64 * 1_001,
        "item": {"sku": format!("sku-{}", number % 500), "quantity": number % 9 + 1},
        "lines": lines,
        "counts": counts,
        "tags": tags
    })
}

fn avro(records: usize) -> anyhow::Result<Format> {
    let node = Node::parse(AVRO, &[])?;
    let codec = Registered::avro(node.clone(), Tombstones::Keep)?;
    let payloads =
        (0..records).map(|number| -> anyhow::Result<Vec<u8>> { Ok(encode::value(&node, &order(number))?) });
    Format::new("Avro", "AVRO", AVRO, codec, payloads)
}

fn json(records: usize) -> anyhow::Result<Format> {
    let codec = Registered::json(json_schema::parse(JSON, &[])?, Tombstones::Keep)?;
    let payloads = (0..records).map(|number| -> anyhow::Result<Vec<u8>> {
        let mut order = order(number);
        let micros = order["created_at"].as_i64().context("no time")?;
        order["created_at"] = json!(jiff::Timestamp::from_microsecond(micros)?.to_string());
        Ok(order.to_string().into_bytes())
    });
    Format::new("JSON", "JSON", JSON, codec, payloads)
}

fn protobuf(records: usize) -> anyhow::Result<Format> {
    let file = protobuf::parse(PROTOBUF, &[])?;
    let descriptor = file.message(None)?;
    let codec = Registered::protobuf(&file, None, Tombstones::Keep)?;
    let payloads = (0..records).map(|number| -> anyhow::Result<Vec<u8>> {
        // The first message of its file.
        let mut payload = vec![0];
        payload.extend(message(&descriptor, &order(number))?.encode_to_vec());
        Ok(payload)
    });
    Format::new("Protobuf", "PROTOBUF", PROTOBUF, codec, payloads)
}

/// The same record as a message. What is null is not written.
fn message(descriptor: &MessageDescriptor, order: &Value) -> anyhow::Result<DynamicMessage> {
    let mut message = DynamicMessage::new(descriptor.clone());
    let fields = order.as_object().context("a message is an object")?;
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let field = descriptor.get_field_by_name(name).with_context(|| format!("no field `{name}`"))?;
        let kind = field.kind();
        let inner = |value: &Value| -> anyhow::Result<Field> {
            Ok(match value {
                Value::String(text) => Field::String(text.clone()),
                Value::Object(_) => {
                    let descriptor = kind.as_message().context("an object is a message")?;
                    Field::Message(self::message(descriptor, value)?)
                }
                Value::Number(number) if name == "price" => Field::F64(number.as_f64().context("no number")?),
                Value::Number(number) if name == "quantity" => {
                    Field::I32(i32::try_from(number.as_i64().context("no number")?)?)
                }
                Value::Number(number) => Field::I64(number.as_i64().context("no number")?),
                other => return Err(anyhow!("{other} has no place in a message")),
            })
        };
        let value = match value {
            Value::Array(items) => Field::List(items.iter().map(inner).collect::<anyhow::Result<_>>()?),
            Value::Object(entries) if field.is_map() => {
                let entries = entries.iter().map(|(key, value)| -> anyhow::Result<(MapKey, Field)> {
                    let number = value.as_i64().context("no number")?;
                    Ok((MapKey::String(key.clone()), Field::I64(number)))
                });
                Field::Map(entries.collect::<anyhow::Result<_>>()?)
            }
            Value::Number(number) if name == "created_at" => {
                let micros = number.as_i64().context("no time")?;
                let descriptor = kind.as_message().context("a time is a message")?;
                let mut time = DynamicMessage::new(descriptor.clone());
                time.set_field_by_name("seconds", Field::I64(micros.div_euclid(1_000_000)));
                let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1000)?;
                time.set_field_by_name("nanos", Field::I32(nanos));
                Field::Message(time)
            }
            value => inner(value)?,
        };
        message.set_field(&field, value);
    }
    Ok(message)
}
