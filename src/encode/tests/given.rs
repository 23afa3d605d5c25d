//! Rows written with schemas that somebody else has made: columns are matched by name, and what does not fit is said.

use arrow::array::{Float64Array, TimestampMicrosecondArray, UInt64Array};
use protox::prost_reflect::Value as Dynamic;

use super::*;

/// One column as `n`, each of its values or what is wrong with it.
fn shown(format: SchemaFormat, text: &str, column: ArrayRef) -> Vec<Result<Vec<u8>, String>> {
    let rows = RecordBatch::try_from_iter([("n", column)]).unwrap();
    let bound = Writer::registered(format, text, &[], None).unwrap().bind(&whole_rows(&rows)).unwrap();
    let row = |row| {
        let mut bytes = Vec::new();
        bound.write(row, &mut bytes).map(|()| bytes).map_err(|misfit| misfit.to_string())
    };
    (0..rows.num_rows()).map(row).collect()
}

fn unfit(format: SchemaFormat, text: &str, columns: Vec<(&str, ArrayRef)>) -> String {
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let bound = Writer::registered(format, text, &[], None).unwrap().bind(&whole_rows(&rows));
    bound.err().unwrap().to_string()
}

fn record(fields: &Value) -> String {
    json!({"type": "record", "name": "R", "fields": fields}).to_string()
}

fn texts(texts: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

#[test]
fn columns_are_matched_by_name_with_an_avro_schema_that_is_there() {
    let schema = record(&json!([
        {"name": "state", "type": {"type": "enum", "name": "S", "symbols": ["NEW", "PAID"]}},
        {"name": "added", "type": "string", "default": "-"},
        {"name": "id", "type": ["string", "null", "long"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "amount", "type": {"type": "fixed", "name": "F", "size": 3,
            "logicalType": "decimal", "precision": 5, "scale": 2}},
        {"name": "key", "type": {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}},
    ]));
    let amounts = arrow::array::Decimal128Array::from(vec![-1]).with_precision_and_scale(9, 2).unwrap();
    let times = arrow::array::TimestampMillisecondArray::from(vec![3]).with_timezone("UTC");
    let rows = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from(vec![7])) as ArrayRef),
        ("key", texts(&["00000000-0000-0000-0000-0000000000ff"])),
        ("amount", Arc::new(amounts)),
        ("at", Arc::new(times)),
        ("state", texts(&["PAID"])),
    ])
    .unwrap();
    let writer = Writer::registered(SchemaFormat::Avro, &schema, &[], None).unwrap();
    let payloads = write(&writer, &whole_rows(&rows)).unwrap();
    let mut expected = vec![2, 2, b'-', 4, 14];
    // 3,000 microseconds.
    expected.extend([0xf0, 0x2e]);
    expected.extend([0xff, 0xff, 0xff]);
    expected.extend([0; 15]);
    expected.push(0xff);
    assert_eq!(payloads, [expected]);
}

#[test]
fn what_does_not_fit_an_avro_schema_is_said() {
    use SchemaFormat::Avro;
    let number: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let of = |data_type: Value| record(&json!([{"name": "n", "type": data_type}]));
    let cases = [
        (of(json!("string")), "column `n` is Int32, which cannot be written as string"),
        (of(json!(["null", "string"])), "column `n` is Int32, which cannot be written as string"),
        (record(&json!([])), "column `n` is no field of `R`: leave it out in a view"),
        (
            record(&json!([{"name": "n", "type": "int"}, {"name": "m", "type": ["null", "int"]}])),
            "column `m` is not there, and the schema has no default for it",
        ),
    ];
    for (schema, expected) in cases {
        assert_eq!(unfit(Avro, &schema, vec![("n", number.clone())]), expected);
    }
    let micros: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC"));
    let millis = of(json!({"type": "long", "logicalType": "timestamp-millis"}));
    assert!(unfit(Avro, &millis, vec![("n", micros)]).contains("cannot be written as long"));
    // One row does not fit, its neighbours do.
    let maybe: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None, Some(3)]));
    let null = "column `n` is null, and its schema has no null".to_owned();
    assert_eq!(shown(Avro, &of(json!("int")), maybe), [Ok(vec![2]), Err(null), Ok(vec![6])]);
    let symbols = of(json!({"type": "enum", "name": "E", "symbols": ["A"]}));
    let unknown = Err("column `n` is no symbol of its enum".to_owned());
    assert_eq!(shown(Avro, &symbols, texts(&["A", "B"])), [Ok(vec![0]), unknown]);
    let large: ArrayRef = Arc::new(UInt64Array::from(vec![1, u64::MAX]));
    let beyond = Err("column `n` is a number beyond `long`".to_owned());
    assert_eq!(shown(Avro, &of(json!("long")), large), [Ok(vec![2]), beyond]);
}

#[test]
fn columns_are_matched_by_name_with_a_message_that_is_there() {
    let schema = "syntax = \"proto3\"; package shop; import \"google/protobuf/wrappers.proto\";
        enum State { NEW = 0; PAID = 7; }
        message Before { message Row {
            sint64 id = 3; fixed64 big = 20; State state = 1; google.protobuf.StringValue note = 4;
            oneof pay { string card = 5; int64 cash = 6; } repeated sint32 numbers = 7 [packed = false];
        } }";
    let numbers = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(-1), Some(2)]), None]);
    let rows = RecordBatch::try_from_iter([
        ("big", Arc::new(UInt64Array::from(vec![u64::MAX, 0])) as ArrayRef),
        ("id", Arc::new(Int64Array::from(vec![-5, 0]))),
        ("state", texts(&["PAID", "3"])),
        ("note", Arc::new(StringArray::from(vec![Some(""), None]))),
        ("card", Arc::new(StringArray::from(vec![None, Some("c")]))),
        ("cash", Arc::new(Int64Array::from(vec![Some(0), None]))),
        ("numbers", Arc::new(numbers)),
    ])
    .unwrap();
    let writer = Writer::registered(SchemaFormat::Protobuf, schema, &[], Some("Before.Row")).unwrap();
    // Five bytes of the id, then two indexes: 0 and 0.
    assert_eq!(writer.prefix(SchemaId(258)), [0, 0, 0, 1, 2, 4, 0, 0]);
    let payloads = write(&writer, &whole_rows(&rows)).unwrap();
    let file = protobuf_codec::parse(schema, &[]).unwrap();
    let message = file.message(Some("Before.Row")).unwrap();
    let read = |row: usize| DynamicMessage::decode(message.clone(), payloads[row].as_slice()).unwrap();
    let value = |row: usize, name: &str| read(row).get_field_by_name(name).unwrap().into_owned();
    assert_eq!(value(0, "id"), Dynamic::I64(-5));
    assert_eq!(value(0, "big"), Dynamic::U64(u64::MAX));
    assert_eq!(value(0, "state"), Dynamic::EnumNumber(7));
    assert_eq!(value(1, "state"), Dynamic::EnumNumber(3));
    assert_eq!(value(0, "numbers"), Dynamic::List(vec![Dynamic::I32(-1), Dynamic::I32(2)]));
    assert!(read(0).has_field_by_name("note") && !read(1).has_field_by_name("note"));
    assert!(read(0).has_field_by_name("cash") && !read(0).has_field_by_name("card"));
    assert_eq!(value(1, "card"), Dynamic::String("c".to_owned()));
    assert_eq!(read(1).fields().count(), 2, "zeros are not written");
}

#[test]
fn what_does_not_fit_a_message_is_said() {
    use SchemaFormat::Protobuf;
    let of = |field: &str| format!("syntax = \"proto3\"; enum E {{ A = 0; }} message R {{ {field} }}");
    let number: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
    let said = |schema: &str, column: &ArrayRef| unfit(Protobuf, schema, vec![("n", column.clone())]);
    assert_eq!(
        said(&of("string n = 1;"), &number),
        "column `n` is Int32, which cannot be written as `string`"
    );
    assert_eq!(
        said(&of("repeated int32 n = 1;"), &number),
        "column `n` is Int32, and its field is a repeated field"
    );
    assert_eq!(said(&of("int32 m = 1;"), &number), "column `n` is no field of `R`: leave it out in a view");
    let required = "syntax = \"proto2\"; message R { optional int32 n = 1; required int32 m = 2; }";
    assert_eq!(said(required, &number), "column `m` is not there, and the message requires it");
    let null = Err("column `n` is null, and its field is not `optional`".to_owned());
    assert_eq!(shown(Protobuf, &of("int32 n = 1;"), number.clone()), [Ok(vec![8, 1]), null]);
    assert_eq!(shown(Protobuf, &of("optional int32 n = 1;"), number), [Ok(vec![8, 1]), Ok(vec![])]);
    let unknown = Err("column `n` is no value of its enum".to_owned());
    assert_eq!(shown(Protobuf, &of("E n = 1;"), texts(&["A", "B"])), [Ok(vec![]), unknown]);
    let items = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), Some(vec![])]);
    let hole = Err("column `n` holds a null, and Protobuf's lists and maps cannot".to_owned());
    assert_eq!(shown(Protobuf, &of("repeated int32 n = 1;"), Arc::new(items)), [hole, Ok(vec![])]);
    let choice = of("oneof c { int32 n = 1; int32 m = 2; }");
    let rows: [(&str, ArrayRef); 2] =
        [("n", Arc::new(Int32Array::from(vec![1]))), ("m", Arc::new(Int32Array::from(vec![2])))];
    let rows = RecordBatch::try_from_iter(rows).unwrap();
    let writer = Writer::registered(Protobuf, &choice, &[], None).unwrap();
    let misfit = write(&writer, &whole_rows(&rows)).unwrap_err();
    assert_eq!(misfit.to_string(), "column `m` is the second one with a value of a `oneof`");
}

#[test]
fn what_json_cannot_say_is_refused() {
    use SchemaFormat::JsonSchema;
    let of = |property: Value| {
        json!({"type": "object", "properties": {"n": property}, "required": ["n"]}).to_string()
    };
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.5, f64::NAN, f64::INFINITY]));
    let nan = || Err("column `n` is NaN or infinite, and JSON has neither".to_owned());
    let number = of(json!({"type": "number"}));
    assert_eq!(shown(JsonSchema, &number, floats), [Ok(b"{\"n\":0.5}".to_vec()), nan(), nan()]);
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, i64::MAX]).with_timezone("UTC"));
    let beyond = "column `n` is a time beyond those that have a text (years 1 to 9999, hours 0 to 23)";
    assert_eq!(
        shown(JsonSchema, &of(json!({"type": "string", "format": "date-time"})), times),
        [Ok(b"{\"n\":\"1970-01-01T00:00:00.000000Z\"}".to_vec()), Err(beyond.to_owned())]
    );
    let maybe: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
    let null = Err("column `n` is null, and its schema has no null".to_owned());
    let integer = of(json!({"type": "integer"}));
    assert_eq!(shown(JsonSchema, &integer, maybe.clone()), [Ok(b"{\"n\":1}".to_vec()), null]);
    let said = |schema: &str| unfit(JsonSchema, schema, vec![("n", maybe.clone())]);
    assert!(
        said(&of(json!({"type": "string"}))).starts_with("column `n` is Int32, which cannot be written as")
    );
    let more = json!({"type": "object", "properties": {"n": {"type": "integer"}, "m": {"type": "integer"}}, "required": ["m"]});
    assert_eq!(said(&more.to_string()), "column `m` is not there, and the schema requires it");
    let other = json!({"type": "object", "properties": {"m": {"type": "integer"}}});
    assert_eq!(said(&other.to_string()), "column `n` is no property of the schema: leave it out in a view");
}
