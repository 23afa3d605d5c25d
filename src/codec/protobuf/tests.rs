//! What Protobuf's own library writes, read into columns and compared with what it was told to write.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt32Type,
    UInt64Type,
};
use protox::prost_reflect::prost::Message as _;
use protox::prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use serde_json::{Map, json};

use super::*;
use crate::codec::columns::Column;
use crate::config::plan::Recursion;
use crate::model::Reference;

const ALL: &str = r#"
    syntax = "proto3";
    package shop;
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/wrappers.proto";
    import "acme/common.proto";
    enum State { UNKNOWN = 0; PAID = 1; SENT = 7; }
    message Before { string never = 1; }
    message Order {
        message Line { string sku = 1; sint32 count = 2; optional double price = 3; repeated Line2 more = 4; }
        message Line2 { bool is_gift = 1; }
        int64 id = 1;
        sint64 s64 = 2; uint64 u64 = 3; fixed64 f64 = 4; sfixed64 sf64 = 5;
        int32 i32 = 6; sint32 s32 = 7; uint32 u32 = 8; fixed32 f32 = 9; sfixed32 sf32 = 10;
        float real = 11; double wide = 12; bool is_paid = 13; string note = 14; bytes raw = 15;
        State state = 16;
        optional int32 maybe = 17;
        oneof pay { string card = 18; int64 cash = 19; Line2 voucher = 20; }
        repeated int32 numbers = 21; repeated string words = 22 ; repeated Line lines = 23;
        map<string, int64> counts = 24; map<int32, Line> by_number = 25;
        Line main = 26;
        google.protobuf.Timestamp at = 27;
        google.protobuf.StringValue title = 28;
        google.protobuf.Int64Value points = 29;
        acme.Money total = 30;
        repeated State states = 31;
        int32 far = 20000;
    }
"#;

const COMMON: &str =
    "syntax = \"proto3\"; package acme; message Money { string currency = 1; int64 cents = 2; }";

fn file(text: &str) -> File {
    let common = Reference { name: "acme/common.proto".to_owned(), text: COMMON.to_owned() };
    parse(text, &[common]).unwrap()
}

/// The columns of a few records, or what is wrong with the first bad one.
fn decode(reader: &Reader, writer: &File, payloads: &[Vec<u8>]) -> Result<Vec<serde_json::Value>, Bad> {
    let mut columns: Vec<Column> =
        reader.schema().fields().iter().map(|field| Column::new(field).unwrap()).collect();
    let (writer, mut scratch) = (reader.writer(writer), Scratch::default());
    for (row, payload) in payloads.iter().enumerate() {
        if let Err(bad) = writer.decode(payload, &mut columns, &mut scratch) {
            // What is left of it goes away whole.
            columns.iter_mut().for_each(|column| column.truncate(row));
            assert!(columns.iter().all(|column| column.len() == row));
            return Err(bad);
        }
    }
    let arrays: Vec<_> = columns.into_iter().map(|column| column.finish().unwrap()).collect();
    let names = reader.schema().fields().iter().map(|field| field.name().clone());
    let names: Vec<String> = names.collect();
    Ok((0..payloads.len())
        .map(|row| {
            let cells =
                names.iter().zip(&arrays).map(|(name, array)| (name.clone(), cell(array.as_ref(), row)));
            serde_json::Value::Object(cells.collect::<Map<_, _>>())
        })
        .collect())
}

fn cell(array: &dyn Array, row: usize) -> serde_json::Value {
    if array.is_null(row) {
        return json!(null);
    }
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int32 => json!(array.as_primitive::<Int32Type>().value(row)),
        DataType::UInt32 => json!(array.as_primitive::<UInt32Type>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt64 => json!(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Timestamp(_, _) => json!(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        // Bits, as NaN is no JSON.
        DataType::Float32 => json!(array.as_primitive::<Float32Type>().value(row).to_bits()),
        DataType::Float64 => json!(array.as_primitive::<Float64Type>().value(row).to_bits()),
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Binary => json!(array.as_binary::<i32>().value(row)),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|item| cell(items.as_ref(), item)).collect()
        }
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let pair = |at| {
                let key = cell(keys.as_ref(), at);
                (key.as_str().map_or_else(|| key.to_string(), str::to_owned), cell(values.as_ref(), at))
            };
            serde_json::Value::Object(
                (0..entries.len())
                    .map(pair)
                    .collect::<std::collections::BTreeMap<_, _>>()
                    .into_iter()
                    .collect(),
            )
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let cells = fields
                .iter()
                .zip(columns)
                .map(|(field, column)| (field.name().clone(), cell(column.as_ref(), row)));
            serde_json::Value::Object(cells.collect())
        }
        other => panic!("{other}"),
    }
}

/// What a message means, by the table of types.
fn meaning(message: &DynamicMessage) -> serde_json::Value {
    let mut fields: Vec<FieldDescriptor> = message.descriptor().fields().collect();
    fields.sort_by_key(|field| field.path().last().copied());
    let cells = fields.iter().map(|field| {
        let value = message.get_field(field);
        let is_null = field.supports_presence() && !message.has_field(field);
        (field.name().to_owned(), if is_null { json!(null) } else { of_value(&value, &field.kind()) })
    });
    serde_json::Value::Object(cells.collect())
}

fn of_value(value: &Value, kind: &Kind) -> serde_json::Value {
    match value {
        Value::Bool(value) => json!(value),
        Value::I32(value) => json!(value),
        Value::I64(value) => json!(value),
        Value::U32(value) => json!(value),
        Value::U64(value) => json!(value),
        Value::F32(value) => json!(value.to_bits()),
        Value::F64(value) => json!(value.to_bits()),
        Value::String(value) => json!(value),
        Value::Bytes(value) => json!(value.to_vec()),
        Value::EnumNumber(number) => {
            let symbol = kind.as_enum().unwrap().get_value(*number);
            json!(symbol.map_or_else(|| number.to_string(), |symbol| symbol.name().to_owned()))
        }
        Value::List(values) => values.iter().map(|value| of_value(value, kind)).collect(),
        Value::Map(entries) => {
            let kind = kind.as_message().unwrap().map_entry_value_field().kind();
            let pairs = entries.iter().map(|(key, value)| {
                let key = match key {
                    MapKey::String(key) => key.clone(),
                    MapKey::I32(key) => key.to_string(),
                    other => panic!("{other:?}"),
                };
                (key, of_value(value, &kind))
            });
            serde_json::Value::Object(
                pairs.collect::<std::collections::BTreeMap<_, _>>().into_iter().collect(),
            )
        }
        Value::Message(message) => match message.descriptor().full_name() {
            "google.protobuf.Timestamp" => {
                let number = |name| match message.get_field_by_name(name).unwrap().as_ref() {
                    Value::I64(seconds) => *seconds,
                    Value::I32(nanos) => i64::from(*nanos),
                    other => panic!("{other:?}"),
                };
                json!(number("seconds") * 1_000_000 + number("nanos") / 1000)
            }
            "google.protobuf.StringValue" | "google.protobuf.Int64Value" => {
                of_value(&message.get_field_by_name("value").unwrap(), kind)
            }
            _ => meaning(message),
        },
    }
}

fn random_value(kind: &Kind, random: &mut fastrand::Rng, depth: usize) -> Value {
    let edge = random.u8(..4);
    match kind {
        Kind::Double => Value::F64(random.f64() * 1e9),
        Kind::Float => Value::F32(random.f32() * 1e9),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            Value::I32(if edge == 0 { i32::MIN } else { random.i32(..) >> random.u8(..31) })
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            Value::I64(if edge == 0 { i64::MIN } else { random.i64(..) >> random.u8(..63) })
        }
        Kind::Uint32 | Kind::Fixed32 => Value::U32(random.u32(..) >> random.u8(..31)),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(random.u64(..) >> random.u8(..63)),
        Kind::Bool => Value::Bool(random.bool()),
        Kind::String => Value::String((0..random.usize(..9)).map(|_| random.char('a'..'鼠')).collect()),
        Kind::Bytes => {
            Value::Bytes((0..random.usize(..300)).map(|_| random.u8(..)).collect::<Vec<u8>>().into())
        }
        Kind::Enum(_) => Value::EnumNumber([0, 1, 7, 9, -1][random.usize(..5)]),
        Kind::Message(descriptor) if descriptor.full_name() == "google.protobuf.Timestamp" => {
            let mut message = DynamicMessage::new(descriptor.clone());
            message.set_field_by_name("seconds", Value::I64(random.i64(-62_135_596_800..253_402_300_800)));
            message.set_field_by_name("nanos", Value::I32(random.i32(0..1_000_000_000)));
            Value::Message(message)
        }
        Kind::Message(descriptor) => Value::Message(random_message(descriptor, random, depth + 1)),
    }
}

fn random_message(
    descriptor: &MessageDescriptor,
    random: &mut fastrand::Rng,
    depth: usize,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if random.u8(..3) == 0 {
            continue;
        }
        let count = random.usize(..if depth > 2 { 2 } else { 4 });
        let kind = field.kind();
        let value = if field.is_map() {
            let entry = kind.as_message().unwrap();
            let (key, value) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
            let pairs = (0..count).map(|_| {
                let key = match random_value(&key, random, depth) {
                    Value::String(key) => MapKey::String(key),
                    Value::I32(key) => MapKey::I32(key),
                    other => panic!("{other:?}"),
                };
                (key, random_value(&value, random, depth))
            });
            Value::Map(pairs.collect())
        } else if field.is_list() {
            Value::List((0..count).map(|_| random_value(&kind, random, depth)).collect())
        } else {
            random_value(&kind, random, depth)
        };
        message.set_field(&field, value);
    }
    message
}

/// `PROTOBUF_SEEDS` makes more of them.
#[test]
fn what_the_library_writes_is_read() {
    let seeds = std::env::var("PROTOBUF_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let file = file(ALL);
    let reader = Reader::new(&file, Some("Order"), true).unwrap();
    let descriptor = file.message(Some("shop.Order")).unwrap();
    for seed in 0..seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut messages, mut payloads) = (Vec::new(), Vec::new());
        for part_count in [1, 1, 2, 3] {
            // A message may come in parts: they count as if it came at once.
            let mut message = DynamicMessage::new(descriptor.clone());
            let mut payload = vec![2, 2];
            for _ in 0..part_count {
                let part = random_message(&descriptor, &mut random, 0).encode_to_vec();
                message.merge(part.as_slice()).unwrap();
                payload.extend(part);
            }
            messages.push(message);
            payloads.push(payload);
        }
        let rows = decode(&reader, &file, &payloads).unwrap_or_else(|bad| panic!("seed {seed}: {bad:?}"));
        for (row, message) in rows.iter().zip(&messages) {
            assert_eq!(*row, meaning(message), "seed {seed}");
        }
        // Cut off anywhere, or with a byte changed: an error or a row, and never a panic.
        let whole = &payloads[0];
        let mut cut = whole[..random.usize(..=whole.len())].to_vec();
        decode(&reader, &file, &[whole.clone(), cut.clone()]).ok();
        if !cut.is_empty() {
            let place = random.usize(..cut.len());
            cut[place] = random.u8(..);
            decode(&reader, &file, &[whole.clone(), cut]).ok();
        }
    }
}

fn simple(fields: &str) -> File {
    file(&format!(
        "syntax = \"proto3\"; message M {{ message In {{ int32 a = 1; repeated int32 b = 2; }} {fields} }}"
    ))
}

fn one(file: &File, bytes: &[u8]) -> Result<serde_json::Value, Bad> {
    let reader = Reader::new(file, None, false).unwrap();
    decode(&reader, file, &[[&[0], bytes].concat()]).map(|mut rows| rows.remove(0))
}

#[test]
fn what_comes_last_counts_and_parts_of_a_message_are_one() {
    let file = simple(
        "int32 n = 1; In in = 2; oneof x { int32 p = 3; In q = 4; } map<int32, int32> m = 5; repeated int32 r = 6;",
    );
    let none = json!(null);
    assert_eq!(one(&file, &[]).unwrap(), json!({"n": 0, "in": none, "p": none, "q": none, "m": {}, "r": []}));
    // n twice; In in two parts; p then q then q; a key twice; packed and not.
    let bytes = [
        vec![8, 1, 8, 2],
        vec![18, 2, 8, 5, 18, 2, 16, 6, 18, 2, 16, 7],
        vec![24, 9, 34, 2, 8, 1, 34, 2, 16, 3],
        vec![42, 4, 8, 1, 16, 1, 42, 2, 16, 4, 42, 4, 8, 1, 16, 2],
        vec![48, 1, 50, 2, 2, 3, 48, 4],
        // A field of another version, and a group of one.
        vec![0xa2, 6, 1, 0, 0xab, 6, 8, 1, 0xac, 6],
    ];
    assert_eq!(
        one(&file, &bytes.concat()).unwrap(),
        json!({"n": 2, "in": {"a": 5, "b": [6, 7]}, "p": none, "q": {"a": 1, "b": [3]},
            "m": {"0": 4, "1": 2}, "r": [1, 2, 3, 4]})
    );
}

#[test]
fn bad_bytes_are_told_apart() {
    let file = simple("int32 n = 1; string t = 2; In in = 3; repeated In many = 4;");
    let code = |bytes: &[u8]| one(&file, bytes).unwrap_err().code;
    assert_eq!(code(&[8]), "truncated");
    assert_eq!(code(&[18, 5, b'a']), "truncated");
    assert_eq!(code(&[18, 2, 0xff, 0xfe]), "invalid_utf8");
    assert_eq!(code(&[8, 0xff, 0xff, 0xff, 0xff, 0x7f]), "overflow");
    assert_eq!(code(&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), "overflow");
    assert_eq!(code(&[10, 1, 1]), "type_mismatch");
    assert_eq!(code(&[0, 1]), "type_mismatch");
    assert_eq!(code(&[11, 8, 1]), "truncated");
    let bad = one(&file, &[34, 2, 18, 0, 34, 3, 8, 1, 16]).unwrap_err();
    assert_eq!((bad.code, bad.path.join(".")), ("truncated", "many.b".to_owned()));
    // Negative numbers have ten bytes.
    let minus = [8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert_eq!(one(&file, &minus).unwrap()["n"], json!(-1));
}

#[test]
fn the_indexes_say_which_message_it_is() {
    let file = file(
        "syntax = \"proto3\"; package p; message A { map<string, string> m = 1; message B { int32 x = 1; } int32 y = 2; } message C { int32 z = 1; }",
    );
    let reader = |name| Reader::new(&file, name, false).unwrap();
    let read = |name, bytes: &[u8]| decode(&reader(name), &file, &[bytes.to_vec()]);
    assert_eq!(read(None, &[0, 16, 5]).unwrap()[0]["y"], json!(5));
    assert_eq!(read(None, &[2, 0, 16, 5]).unwrap()[0]["y"], json!(5));
    assert_eq!(read(Some("C"), &[2, 2, 8, 5]).unwrap()[0]["z"], json!(5));
    // Entries of maps are not counted.
    assert_eq!(read(Some("p.A.B"), &[4, 0, 0, 8, 5]).unwrap()[0]["x"], json!(5));
    assert_eq!(read(None, &[2, 2, 8, 5]).unwrap_err().code, "schema_type");
    assert_eq!(read(None, &[2, 18, 8, 5]).unwrap_err().code, "framing");
    assert_eq!(read(None, &[0xff, 0xff]).unwrap_err().code, "framing");
    assert_eq!(Reader::new(&file, Some("D"), false).unwrap_err(), SchemaError::NoMessage("D".to_owned()));
}

#[test]
fn versions_are_read_by_their_numbers() {
    let old = file("syntax = \"proto3\"; package p; message M { int32 a = 1; string gone = 2; }");
    let new =
        file("syntax = \"proto3\"; package p; message M { int32 renamed = 1; optional int64 added = 3; }");
    let reader = Reader::new(&new, None, true).unwrap();
    let row = decode(&reader, &old, &[vec![0, 8, 7, 18, 1, b'x']]).unwrap().remove(0);
    assert_eq!(row, json!({"renamed": 7, "added": null}));
}

#[test]
fn proto2_has_required_fields_groups_and_presence() {
    let file = file(
        "syntax = \"proto2\"; message M { required int32 a = 1; optional int32 b = 2 [default = 5]; repeated group G = 3 { optional int32 x = 1; } }",
    );
    let row = one(&file, &[8, 1, 0x1b, 8, 4, 0x1c, 0x1b, 0x1c]).unwrap();
    assert_eq!(row, json!({"a": 1, "b": null, "g": [{"x": 4}, {"x": null}]}));
    assert_eq!(one(&file, &[16, 1]).unwrap_err().path, ["a"]);
}

#[test]
fn of_two_symbols_with_one_number_the_first_of_the_file_counts() {
    let file = simple(
        "enum E { option allow_alias = true; A = 0; B = 0; C = -1; D = -1; F = -1; } E e = 1; repeated E es = 2;",
    );
    let minus: Vec<u8> = [&[16][..], &[0xff; 9], &[1]].concat();
    let row = one(&file, &[vec![16, 0], minus].concat()).unwrap();
    assert_eq!(row["e"], json!("A"));
    assert_eq!(row["es"], json!(["A", "C"]));
}

#[test]
fn json_values_become_text() {
    let file = file(
        "syntax = \"proto3\"; import \"google/protobuf/struct.proto\"; message M { google.protobuf.Struct s = 1; google.protobuf.Value v = 2; }",
    );
    let descriptor = file.message(None).unwrap();
    let mut message = DynamicMessage::new(descriptor);
    let value = |message: &DynamicMessage, name: &str, value: Value| {
        let kind = message.descriptor().get_field_by_name("v").unwrap().kind();
        let mut inner = DynamicMessage::new(kind.as_message().unwrap().clone());
        inner.set_field_by_name(name, value);
        Value::Message(inner)
    };
    let number = value(&message, "number_value", Value::F64(1.5));
    let kind = message.descriptor().get_field_by_name("s").unwrap().kind();
    let mut object = DynamicMessage::new(kind.as_message().unwrap().clone());
    object.set_field_by_name("fields", Value::Map([(MapKey::String("a".to_owned()), number)].into()));
    message.set_field_by_name("s", Value::Message(object.clone()));
    let nested = value(&message, "struct_value", Value::Message(object));
    message.set_field_by_name("v", nested);
    let row = one(&file, &message.encode_to_vec()).unwrap();
    assert_eq!(row, json!({"s": "{\"a\":1.5}", "v": "{\"a\":1.5}"}));
    // Bombs: values in values, without an end.
    let mut bomb = vec![];
    for _ in 0..5000 {
        let mut outer = vec![50];
        let inner = [&[10][..], &length(bomb.len()), &bomb].concat();
        outer.extend(length(inner.len()));
        outer.extend(inner);
        bomb = outer;
        if bomb.len() > 20_000 {
            break;
        }
    }
    let record = [&[18][..], &length(bomb.len()), &bomb].concat();
    assert_eq!(one(&file, &record).unwrap_err().code, "depth");
}

fn length(len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::write_varint(len as u64, &mut bytes);
    bytes
}

/// Two bytes that stand for thousands of columns must not become gigabytes.
#[test]
fn a_small_record_stays_small() {
    let fields: String = (1..2000).map(|number| format!("int64 f{number} = {number}; ")).collect();
    let file =
        file(&format!("syntax = \"proto3\"; message M {{ message W {{ {fields} }} repeated W w = 1; }}"));
    let bomb: Vec<u8> = [10, 0].repeat(100_000);
    assert_eq!(one(&file, &bomb).unwrap_err().code, "size");
    let fields: String = (1..2000).map(|number| format!("repeated int64 f{number} = {number}; ")).collect();
    let lists = format!("syntax = \"proto3\"; message M {{ message W {{ {fields} }} repeated W w = 1; }}");
    assert_eq!(one(&self::file(&lists), &bomb).unwrap_err().code, "size");
    assert!(one(&file, &[10, 2, 8, 1].repeat(3)).is_err() || one(&file, &[10, 0]).is_ok());
}

#[test]
fn schemas_come_as_text_or_descriptors_and_bad_ones_are_told() {
    let compiled = protox::Compiler::with_file_resolver(protox::file::GoogleFileResolver::new());
    drop(compiled);
    let text = "syntax = \"proto3\"; package p; message M { int32 a = 1; }";
    let mut descriptor =
        protox::file::File::from_source("default", text).unwrap().file_descriptor_proto().clone();
    descriptor.source_code_info = None;
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(descriptor.encode_to_vec());
    assert_eq!(parse(&encoded, &[]).unwrap().names(), parse(text, &[]).unwrap().names());
    let error = |text: &str| parse(text, &[]).unwrap_err().to_string();
    assert!(error("syntax = \"proto3\"; import \"no.proto\"; message M {}").contains("no.proto"));
    assert!(error("message {").contains("not a valid Protobuf schema"));
    let tree = file("syntax = \"proto3\"; message T { int32 n = 1; repeated T children = 2; }");
    let refused = Reader::new(&tree, None, false).unwrap_err().to_string();
    assert!(refused.contains("`children`: the message `T` contains itself"), "{refused}");
    let meta = "syntax = \"proto3\"; import \"confluent/meta.proto\"; message M { int32 a = 1 [(confluent.field_meta).doc = \"x\"]; }";
    assert!(parse(meta, &[]).is_ok(), "{}", error(meta));
}

const TREE: &str = "syntax = \"proto3\"; import \"google/protobuf/timestamp.proto\"; import \"google/protobuf/wrappers.proto\"; \
    message T { enum E { A = 0; B = 7; } int32 n = 1; repeated T children = 2; T next = 3; map<string, T> by = 4; Leaf leaf = 5; \
    oneof o { string s = 6; T t = 7; } google.protobuf.Timestamp at = 8; google.protobuf.Int64Value w = 9; bytes b = 10; \
    float f = 11; E e = 12; repeated sint32 xs = 13; } message Leaf { uint64 u = 1; }";

/// A message, whose parts are fields, each a number with its bytes.
fn nested(number: u8, inner: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &length(inner.len()), inner].concat()
}

#[test]
fn messages_that_contain_themselves_are_json_text_on_request() {
    let tree = file(TREE).recursive(Recursion::Json);
    let reader = Reader::new(&tree, None, false).unwrap();
    let types: Vec<String> =
        reader.schema().fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!((types[0].as_str(), types[2].as_str(), types[6].as_str()), ("Int32", "Utf8", "Utf8"));
    assert!(
        types[1].starts_with("List") && types[3].starts_with("Map") && types[4].starts_with("Struct"),
        "{types:?}"
    );
    let leaf = nested(5, &[8, 9]);
    let inner = [
        vec![8, 2],
        nested(2, &[8, 3]),
        leaf,
        nested(6, b"gone"),
        nested(7, &[8, 4]),
        nested(8, &[8, 1]),
        nested(9, &[8, 5]),
        nested(10, &[0, 0xff]),
        vec![11 << 3 | 5, 0xcd, 0xcc, 0xcc, 0x3d],
        vec![12 << 3, 7],
        nested(13, &[1, 2]),
    ];
    // In two parts: together they are the message.
    let record = [
        vec![8, 1],
        nested(2, &inner.concat()),
        nested(3, &[8, 5]),
        nested(3, &nested(2, &[8, 6])),
        nested(4, &[nested(1, b"k"), nested(2, &[8, 7])].concat()),
    ];
    let row = one(&tree, &record.concat()).unwrap();
    let text = |value: &serde_json::Value| {
        serde_json::from_str::<serde_json::Value>(value.as_str().unwrap()).unwrap()
    };
    let empty = |n: i32| {
        json!({"n": n, "children": [], "next": null, "by": {}, "leaf": null, "s": null, "t": null,
        "at": null, "w": null, "b": "", "f": 0.0, "e": "A", "xs": []})
    };
    let child = json!({"n": 2, "children": [empty(3)], "next": null, "by": {}, "leaf": {"u": 9}, "s": null, "t": empty(4),
        "at": "1970-01-01T00:00:01.000000Z", "w": 5, "b": "AP8=", "f": 0.1, "e": "B", "xs": [-1, 1]});
    assert_eq!(text(&row["children"][0]), child);
    let mut next = empty(5);
    next["children"] = json!([empty(6)]);
    assert_eq!(text(&row["next"]), next);
    assert_eq!(text(&row["by"]["k"]), empty(7));
    assert_eq!(row["t"], json!(null));
    // Refused without the request, with the path.
    let refused = Reader::new(&file(TREE), None, false).unwrap_err().to_string();
    assert!(refused.starts_with("`children`: the message `T` contains itself"), "{refused}");
}

#[test]
fn trees_without_measure_are_bad() {
    let tree = file(TREE).recursive(Recursion::Json);
    let chain = |levels: usize| (0..levels).fold(vec![8, 1], |inner, _| nested(3, &inner));
    assert!(one(&tree, &chain(60)).is_ok());
    for levels in [150, 5_000] {
        assert_eq!(one(&tree, &chain(levels)).unwrap_err().code, "depth");
    }
    // Two bytes are an object of thirteen fields.
    let children = nested(2, &[18, 0].repeat(500_000));
    assert_eq!(one(&tree, &children).unwrap_err().code, "size");
    let bad = one(&tree, &nested(3, &nested(2, &[8]))).unwrap_err();
    assert_eq!((bad.code, bad.path.join(".")), ("truncated", "next.children".to_owned()));
}

/// Many entries go another way than few.
#[test]
fn of_two_entries_with_one_key_the_later_counts_in_large_maps_too() {
    let file = simple("map<int32, int32> m = 1;");
    for count in [2_u8, 10, 16, 17, 80] {
        let keys = (0..count).chain(0..count / 2);
        let bytes: Vec<u8> =
            keys.zip(0..).flat_map(|(key, at): (u8, u8)| nested(1, &[8, key, 16, at])).collect();
        let expected: std::collections::BTreeMap<String, i32> = (0..count)
            .map(|key| (key.to_string(), i32::from(if key < count / 2 { count + key } else { key })))
            .collect();
        assert_eq!(one(&file, &bytes).unwrap()["m"], json!(expected), "{count}");
    }
}
