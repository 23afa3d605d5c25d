//! What is written is what is read: by our own codecs, and by the libraries of the formats.

mod given;

use std::sync::Arc;

use arrow::array::{
    BinaryArray, BooleanArray, FixedSizeBinaryArray, Int32Array, ListArray, MapArray, NullArray,
    PrimitiveArray, StringArray, StructArray,
};
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Decimal256Type, Field, FieldRef, Float32Type,
    Float64Type, Int32Type, Schema, SchemaRef, Time32MillisecondType, Time64MicrosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, UInt32Type, UInt64Type,
    i256,
};
use arrow::record_batch::RecordBatch;
use fastrand::Rng;
use protox::prost_reflect::DynamicMessage;
use serde_json::{Value, json};

use super::*;
use crate::codec::JsonColumn;
use crate::codec::avro::{arrow_type, program};
use crate::codec::columns::Column;
use crate::codec::protobuf as protobuf_codec;

/// A second at most, in a build for tests.
const SEEDS: u64 = 40;

const ROWS: usize = 25;

fn field(name: &str, data_type: DataType, nullable: bool) -> FieldRef {
    Arc::new(Field::new(name, data_type, nullable))
}

fn list(item: DataType, nullable: bool) -> DataType {
    DataType::List(field("item", item, nullable))
}

fn map(key: DataType, value: DataType, nullable: bool) -> DataType {
    let entries = Fields::from(vec![field("key", key, false), field("value", value, nullable)]);
    DataType::Map(field("entries", DataType::Struct(entries), false), false)
}

fn structure(fields: Vec<FieldRef>) -> DataType {
    DataType::Struct(fields.into())
}

fn utc(unit: TimeUnit) -> DataType {
    DataType::Timestamp(unit, Some(Arc::from("UTC")))
}

fn duration() -> DataType {
    let part = |name: &str| field(name, DataType::UInt32, false);
    structure(vec![part("months"), part("days"), part("millis")])
}

fn primitive<T: ArrowPrimitiveType>(
    data_type: &DataType,
    valid: &[bool],
    mut put: impl FnMut() -> T::Native,
) -> ArrayRef {
    let values = valid.iter().map(|valid| valid.then(&mut put));
    Arc::new(values.collect::<PrimitiveArray<T>>().with_data_type(data_type.clone()))
}

fn text(random: &mut Rng) -> String {
    (0..random.usize(..9)).map(|_| random.char('a'..='ü')).collect()
}

/// Random values of a field, a quarter of them null if it may be.
fn values(field: &Field, count: usize, random: &mut Rng) -> ArrayRef {
    let valid: Vec<bool> = (0..count).map(|_| !field.is_nullable() || random.u8(..4) > 0).collect();
    let nulls = || Some(NullBuffer::from(valid.clone()));
    let lengths: Vec<usize> = valid.iter().map(|valid| if *valid { random.usize(..4) } else { 0 }).collect();
    let item_count: usize = lengths.iter().sum();
    let offsets = || OffsetBuffer::from_lengths(lengths.iter().copied());
    let own = field.data_type();
    match own {
        DataType::Null => Arc::new(NullArray::new(count)),
        DataType::Boolean => {
            Arc::new(valid.iter().map(|valid| valid.then(|| random.bool())).collect::<BooleanArray>())
        }
        DataType::Int32 => primitive::<Int32Type>(own, &valid, || random.i32(..)),
        DataType::UInt32 => primitive::<UInt32Type>(own, &valid, || random.u32(..)),
        DataType::Int64 => primitive::<Int64Type>(own, &valid, || random.i64(..) >> random.u32(..64)),
        DataType::UInt64 => primitive::<UInt64Type>(own, &valid, || random.u64(..)),
        DataType::Float32 => primitive::<Float32Type>(own, &valid, || random.i16(..).into()),
        DataType::Float64 => primitive::<Float64Type>(own, &valid, || f64::from(random.i32(..)) / 4.0),
        DataType::Date32 => primitive::<Date32Type>(own, &valid, || random.i32(-100_000..100_000)),
        DataType::Time32(_) => primitive::<Time32MillisecondType>(own, &valid, || random.i32(..86_400_000)),
        DataType::Time64(_) => {
            primitive::<Time64MicrosecondType>(own, &valid, || random.i64(..86_400_000_000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            primitive::<TimestampMillisecondType>(own, &valid, || random.i64(-1_000..1 << 42))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            primitive::<TimestampMicrosecondType>(own, &valid, || random.i64(-1_000..1 << 52))
        }
        DataType::Timestamp(_, _) => {
            primitive::<TimestampNanosecondType>(own, &valid, || random.i64(-1_000..1 << 62))
        }
        DataType::Decimal128(_, _) => {
            let number = || (i128::from(random.i64(..)) * i128::from(random.i16(..))) >> random.u32(..80);
            primitive::<Decimal128Type>(own, &valid, number)
        }
        DataType::Decimal256(_, _) => {
            primitive::<Decimal256Type>(own, &valid, || i256::from_i128(random.i128(..)))
        }
        DataType::Utf8 => {
            Arc::new(valid.iter().map(|valid| valid.then(|| text(random))).collect::<StringArray>())
        }
        DataType::Binary => {
            let bytes = valid.iter().map(|valid| valid.then(|| text(random).into_bytes()));
            Arc::new(bytes.collect::<BinaryArray>())
        }
        DataType::FixedSizeBinary(size) => {
            let width = *size as usize;
            let bytes = valid.iter().map(|valid| valid.then(|| vec![random.u8(..); width]));
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, *size).unwrap())
        }
        DataType::List(item) => {
            let items = values(item, item_count, random);
            Arc::new(ListArray::new(item.clone(), offsets(), items, nulls()))
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else { panic!() };
            let numbers = || 0..i32::try_from(item_count).unwrap();
            let keys: ArrayRef = match fields[0].data_type() {
                DataType::Int32 => Arc::new(Int32Array::from_iter_values(numbers())),
                _ => Arc::new(StringArray::from_iter_values(numbers().map(|number| format!("k{number}")))),
            };
            let columns = vec![keys, values(&fields[1], item_count, random)];
            let content = StructArray::new(fields.clone(), columns, None);
            Arc::new(MapArray::new(entries.clone(), offsets(), content, nulls(), false))
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().map(|field| values(field, count, random)).collect();
            Arc::new(StructArray::new(fields.clone(), columns, nulls()))
        }
        other => panic!("no values of {other}"),
    }
}

/// Each type as a column that may be null and as one that may not.
fn both(types: Vec<DataType>) -> SchemaRef {
    let fields = types.into_iter().enumerate().flat_map(|(index, data_type)| {
        [
            Field::new(format!("c{index}"), data_type.clone(), false),
            Field::new(format!("maybe{index}"), data_type, true),
        ]
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn random_rows(schema: &SchemaRef, seed: u64) -> RecordBatch {
    let mut random = Rng::with_seed(seed);
    let columns = schema.fields().iter().map(|field| values(field, ROWS, &mut random)).collect();
    RecordBatch::try_new(schema.clone(), columns).unwrap()
}

fn whole_rows(rows: &RecordBatch) -> ArrayRef {
    Arc::new(StructArray::from(rows.clone()))
}

fn text_of(format: SchemaFormat, rows: &RecordBatch) -> String {
    schema_text(format, whole_rows(rows).data_type(), "shop.Row", None).unwrap()
}

/// All rows as bytes, without their prefix.
fn write(writer: &Writer, values: &ArrayRef) -> Result<Vec<Vec<u8>>, Misfit> {
    let bound = writer.bind(values).unwrap();
    let row = |row| {
        let mut bytes = Vec::new();
        bound.write(row, &mut bytes).map(|()| bytes)
    };
    (0..values.len()).map(row).collect()
}

fn columns_of(schema: &SchemaRef) -> Vec<Column> {
    schema.fields().iter().map(|field| Column::new(field).unwrap()).collect()
}

fn batch(schema: SchemaRef, columns: Vec<Column>) -> RecordBatch {
    let arrays = columns.into_iter().map(|column| column.finish().unwrap()).collect();
    RecordBatch::try_new(schema, arrays).unwrap()
}

/// Slices begin within buffers: what is written is that of the slice.
fn slices(rows: &RecordBatch) -> [RecordBatch; 3] {
    [rows.clone(), rows.slice(7, 11), rows.slice(ROWS - 1, 1)]
}

#[test]
fn rows_come_back_from_avro() {
    let inner = structure(vec![
        field("day", DataType::Date32, true),
        field("deep", list(structure(vec![field("n", DataType::Int64, true)]), true), false),
        field("fixed", DataType::FixedSizeBinary(3), true),
    ]);
    let schema = both(vec![
        DataType::Boolean,
        DataType::Int32,
        DataType::Int64,
        DataType::Float32,
        DataType::Float64,
        DataType::Utf8,
        DataType::Binary,
        DataType::FixedSizeBinary(16),
        DataType::Date32,
        DataType::Time32(TimeUnit::Millisecond),
        DataType::Time64(TimeUnit::Microsecond),
        utc(TimeUnit::Millisecond),
        utc(TimeUnit::Microsecond),
        utc(TimeUnit::Nanosecond),
        DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(TimeUnit::Nanosecond, None),
        DataType::Decimal128(38, 9),
        DataType::Decimal256(50, 2),
        duration(),
        list(DataType::Int64, false),
        list(DataType::Utf8, true),
        list(list(DataType::Float64, true), false),
        map(DataType::Utf8, DataType::Decimal128(38, 0), true),
        map(DataType::Utf8, inner.clone(), false),
        inner,
    ]);
    for seed in 0..SEEDS {
        for rows in slices(&random_rows(&schema, seed)) {
            let text = text_of(SchemaFormat::Avro, &rows);
            let writer = Writer::derived(SchemaFormat::Avro, &text, "shop.Row").unwrap();
            let payloads = write(&writer, &whole_rows(&rows)).unwrap();
            let node = Node::parse(&text, &[]).unwrap();
            let read = arrow_type::schema(&node, false).unwrap();
            assert_eq!(read.fields(), schema.fields(), "{text}");
            let program = program::compile(&node, &node).unwrap();
            let mut columns = columns_of(&read);
            for payload in &payloads {
                program.decode(payload, &mut columns).unwrap();
            }
            assert_eq!(batch(read, columns), rows, "seed {seed}");
            // Avro's own library reads each to its end.
            let theirs = apache_avro::Schema::parse_str(&text).unwrap();
            let reader = apache_avro::reader::datum::GenericDatumReader::builder(&theirs).build().unwrap();
            for payload in &payloads {
                let mut rest = payload.as_slice();
                reader.read_value(&mut rest).unwrap();
                assert!(rest.is_empty(), "seed {seed}");
            }
        }
    }
}

#[test]
fn rows_come_back_from_protobuf() {
    let inner = |depth| {
        let mut fields = vec![
            field("id", DataType::Int64, true),
            field("tags", list(DataType::Utf8, false), false),
            field("at", utc(TimeUnit::Microsecond), true),
        ];
        if depth > 0 {
            let line = structure(vec![field("sku", DataType::Utf8, false)]);
            fields.push(field("line_items", list(line.clone(), false), false));
            fields.push(field("by_number", map(DataType::Int32, line, false), false));
        }
        structure(fields)
    };
    let scalars = vec![
        DataType::Boolean,
        DataType::Int32,
        DataType::UInt32,
        DataType::Int64,
        DataType::UInt64,
        DataType::Float32,
        DataType::Float64,
        DataType::Utf8,
        DataType::Binary,
    ];
    let lists = scalars.iter().map(|scalar| list(scalar.clone(), false));
    let more = [map(DataType::Utf8, DataType::Int64, false), map(DataType::Int32, inner(0), false)];
    let mut fields: Vec<FieldRef> = both(scalars.clone()).fields().iter().cloned().collect();
    for (index, data_type) in lists.chain(more).enumerate() {
        fields.push(field(&format!("many{index}"), data_type, false));
    }
    fields.push(field("order", inner(1), true));
    fields.push(field("at", utc(TimeUnit::Microsecond), true));
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    for seed in 0..SEEDS {
        for rows in slices(&random_rows(&schema, seed)) {
            let text = text_of(SchemaFormat::Protobuf, &rows);
            let writer = Writer::derived(SchemaFormat::Protobuf, &text, "shop.Row").unwrap();
            let payloads = write(&writer, &whole_rows(&rows)).unwrap();
            let file = protobuf_codec::parse(&text, &[]).unwrap();
            let reader = protobuf_codec::Reader::new(&file, Some("shop.Row"), false).unwrap();
            assert_eq!(reader.schema().fields(), schema.fields(), "{text}");
            let (decoder, mut scratch) = (reader.writer(&file), protobuf_codec::Scratch::default());
            let mut columns = columns_of(reader.schema());
            for payload in &payloads {
                decoder.decode(&[&[0][..], payload].concat(), &mut columns, &mut scratch).unwrap();
            }
            assert_eq!(batch(reader.schema().clone(), columns), rows, "seed {seed}");
            // Protobuf's own library finds what it knows, and nothing else.
            for payload in &payloads {
                let message = file.message(None).unwrap();
                let read = DynamicMessage::decode(message, payload.as_slice()).unwrap();
                assert_eq!(read.unknown_fields().count(), 0, "seed {seed}");
            }
        }
    }
}

#[test]
fn rows_come_back_from_json() {
    let inner = structure(vec![
        field("id", DataType::Int64, false),
        field("tags", list(DataType::Utf8, true), true),
        field("a \"name\"", DataType::Float32, true),
    ]);
    let schema = both(vec![
        DataType::Boolean,
        DataType::Int32,
        DataType::Int64,
        DataType::Float32,
        DataType::Float64,
        DataType::Utf8,
        DataType::Binary,
        DataType::Date32,
        utc(TimeUnit::Microsecond),
        list(DataType::Int64, true),
        map(DataType::Utf8, DataType::Date32, true),
        inner,
    ]);
    for seed in 0..SEEDS {
        for rows in slices(&random_rows(&schema, seed)) {
            let text = text_of(SchemaFormat::JsonSchema, &rows);
            let writer = Writer::derived(SchemaFormat::JsonSchema, &text, "shop.Row").unwrap();
            let payloads = write(&writer, &whole_rows(&rows)).unwrap();
            let node = json_schema::parse(&text, &[]).unwrap();
            let read = arrow_type::schema(&node, false).unwrap();
            assert_eq!(read.fields(), schema.fields(), "{text}");
            // The same schema, had somebody registered it, takes them too.
            let registered = Writer::registered(SchemaFormat::JsonSchema, &text, &[], None).unwrap();
            assert_eq!(write(&registered, &whole_rows(&rows)).unwrap(), payloads);
            let mut column = JsonColumn::new(node, DataType::Struct(read.fields().clone())).unwrap();
            payloads.iter().for_each(|payload| column.push(Some(payload)));
            let back = column.finish().unwrap();
            assert_eq!(back.as_struct().columns(), rows.columns(), "seed {seed}");
        }
    }
}

#[test]
fn schemas_are_made_of_columns() {
    let schema = Schema::new(vec![
        Field::new("id", DataType::UInt64, false),
        Field::new("total", structure(vec![field("total", DataType::FixedSizeBinary(2), true)]), true),
    ]);
    let data_type = DataType::Struct(schema.fields().clone());
    let text = |format| schema_text(format, &data_type, "shop.Order", None).unwrap();
    let avro = json!({"type": "record", "name": "Order", "namespace": "shop", "fields": [
        {"name": "id", "type": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 0}},
        {"name": "total", "default": null, "type": ["null", {
            "type": "record", "name": "total", "namespace": "shop.Order", "fields": [
                {"name": "total", "default": null, "type": ["null",
                    {"type": "fixed", "name": "total", "namespace": "shop.Order.total", "size": 2}]}]}]}]});
    assert_eq!(serde_json::from_str::<Value>(&text(SchemaFormat::Avro)).unwrap(), avro);
    let json = json!({"$schema": "http://json-schema.org/draft-07/schema#", "title": "shop.Order",
        "type": "object", "additionalProperties": false, "required": ["id"], "properties": {
            "id": {"type": "integer"},
            "total": {"oneOf": [{"type": "null"}, {"type": "object", "additionalProperties": false,
                "properties": {"total": {"oneOf": [{"type": "null"},
                    {"type": "string", "contentEncoding": "base64", "connect.type": "bytes"}]}}}]}}});
    assert_eq!(serde_json::from_str::<Value>(&text(SchemaFormat::JsonSchema)).unwrap(), json);
    let protobuf = "syntax = \"proto3\";\npackage shop;\nmessage Order {\n  message Total {\n    \
                    optional bytes total = 1;\n  }\n  uint64 id = 1;\n  Total total = 2;\n}\n";
    assert_eq!(text(SchemaFormat::Protobuf), protobuf);
    // A column alone.
    let text = |format| schema_text(format, &DataType::Int64, "Key", None);
    assert_eq!(text(SchemaFormat::Avro).unwrap(), "\"long\"");
    assert!(text(SchemaFormat::JsonSchema).unwrap().contains("\"type\":\"integer\""));
    assert!(text(SchemaFormat::Protobuf).unwrap_err().to_string().contains("Protobuf writes is a message"));
}

#[test]
fn columns_without_a_form_are_named_with_their_path() {
    let message = |format, data_type: DataType| {
        let inner = structure(vec![field("b", data_type, true)]);
        let whole = structure(vec![field("a", inner, true)]);
        schema_text(format, &whole, "R", None).unwrap_err().to_string()
    };
    for format in [SchemaFormat::Avro, SchemaFormat::Protobuf, SchemaFormat::JsonSchema] {
        let shown = message(format, DataType::Duration(TimeUnit::Second));
        assert!(shown.starts_with("column `a.b` is Duration"), "{shown}");
        assert!(shown.contains("cast it in a view"), "{shown}");
    }
    let nested = message(SchemaFormat::Protobuf, list(list(DataType::Int64, false), false));
    assert!(nested.starts_with("column `a.b` is List"), "{nested}");
    let named = structure(vec![field("a", structure(vec![field("9", DataType::Int64, true)]), true)]);
    for format in [SchemaFormat::Avro, SchemaFormat::Protobuf] {
        let shown = schema_text(format, &named, "R", None).unwrap_err().to_string();
        assert!(shown.starts_with("column `a.9` has a name that this format does not take"), "{shown}");
    }
    schema_text(SchemaFormat::JsonSchema, &named, "R", None).unwrap();
}

#[test]
fn protobuf_numbers_stay_and_are_never_given_again() {
    let text = |names: &[&str], before: Option<&str>| {
        let fields = names.iter().map(|name| field(name, DataType::Int64, true)).collect();
        let before = before.map(|text| (text, &[][..]));
        schema_text(SchemaFormat::Protobuf, &structure(fields), "shop.Row", before).unwrap()
    };
    let numbers = |text: &str| -> Vec<String> {
        let lines =
            text.lines().map(str::trim).filter(|line| line.contains(" = ") && !line.contains("syntax"));
        lines.map(|line| line.replace("optional int64 ", "")).collect()
    };
    let first = text(&["a", "b", "c"], None);
    assert_eq!(numbers(&first), ["a = 1;", "b = 2;", "c = 3;"]);
    // Nothing new: the same text, whatever the order of the columns.
    assert_eq!(text(&["a", "b", "c"], Some(&first)), first);
    assert_eq!(text(&["c", "a", "b"], Some(&first)), first);
    let second = text(&["d", "a", "c"], Some(&first));
    assert_eq!(numbers(&second), ["a = 1;", "c = 3;", "d = 4;"]);
    assert!(second.contains("reserved 2;"), "{second}");
    assert_eq!(text(&["a", "c", "d"], Some(&second)), second);
    let third = text(&["e", "a"], Some(&second));
    assert_eq!(numbers(&third), ["a = 1;", "e = 5;"]);
    assert!(third.contains("reserved 2, 3, 4;"), "{third}");
    // Another message, or none: from the beginning.
    assert_eq!(text(&["a", "b", "c"], Some("syntax = \"proto3\"; message Other { int32 z = 9; }")), first);
    assert_eq!(text(&["a", "b", "c"], Some("no schema")), first);
}

#[test]
fn types_that_only_views_make_have_a_form() {
    let dictionary: arrow::array::DictionaryArray<Int32Type> = vec![Some("a"), None].into_iter().collect();
    let large = arrow::array::LargeStringArray::from(vec![Some("a"), None]);
    let seconds = arrow::array::TimestampSecondArray::from(vec![1, 2]);
    let rows = RecordBatch::try_from_iter([
        ("d", Arc::new(dictionary) as ArrayRef),
        ("l", Arc::new(large)),
        ("s", Arc::new(seconds)),
        ("z", Arc::new(NullArray::new(2))),
    ])
    .unwrap();
    for format in [SchemaFormat::Avro, SchemaFormat::JsonSchema] {
        let writer = Writer::derived(format, &text_of(format, &rows), "shop.Row").unwrap();
        let payloads = write(&writer, &whole_rows(&rows)).unwrap();
        let expected = match format {
            // 1 and 2 seconds in milliseconds.
            SchemaFormat::Avro => [vec![2, 2, b'a', 2, 2, b'a', 0xd0, 0x0f], vec![0, 0, 0xa0, 0x1f]],
            _ => [
                br#"{"d":"a","l":"a","s":"1970-01-01T00:00:01","z":null}"#.to_vec(),
                br#"{"d":null,"l":null,"s":"1970-01-01T00:00:02","z":null}"#.to_vec(),
            ],
        };
        assert_eq!(payloads, expected);
    }
}
