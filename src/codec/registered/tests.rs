use arrow::array::Array;
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::codec::{Decoder, Raw, json_schema};
use crate::config::plan::RawForm;
use crate::model::{
    Chunk, ChunkBuilder, Incoming, Offset, Partition, SchemaId, TimestampType, TopicName, TopicPartition,
};

/// A value, and the headers `__value_schema_id` it has.
type Given = (Vec<u8>, Vec<Vec<u8>>);

fn chunk(values: &[Given]) -> Chunk {
    let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
    let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
    for (offset, (value, headers)) in (0..).zip(values) {
        let incoming = Incoming {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: Some(value),
            value: Some(value),
        };
        let name = frame::VALUE_ID_HEADER.as_bytes();
        builder.push(incoming, headers.iter().map(|header| (name, Some(header.as_slice()))));
    }
    builder.finish(Offset::ZERO)
}

fn id(number: u32) -> SchemaKey {
    SchemaId(number).into()
}

/// What `codec` makes of values: the rows as Arrow shows them; index, code and message of the others.
fn decode(codec: &Registered, values: &[Given]) -> (String, Vec<(usize, &'static str, String)>) {
    let chunk = chunk(values);
    let decoded = codec.decode(&chunk.records().collect::<Vec<_>>()).unwrap();
    let batch = RecordBatch::try_new(Arc::clone(codec.schema()), decoded.columns).unwrap();
    let rejected = decoded.rejected.into_iter().map(|bad| (bad.index, bad.code, bad.message));
    (pretty_format_batches(&[batch]).unwrap().to_string(), rejected.collect())
}

fn framed(number: u32, payload: &[u8]) -> Given {
    let mut bytes = Vec::new();
    frame::write_prefix(SchemaId(number), &mut bytes);
    bytes.extend_from_slice(payload);
    (bytes, Vec::new())
}

fn learnt(kind: &str, text: &Value) -> Learnt {
    Learnt::Schema { kind: kind.to_owned(), text: text.to_string(), references: Vec::new() }
}

fn orders() -> Value {
    json!({"type": "object", "required": ["id"], "properties": {
        "id": {"type": "integer"},
        "at": {"oneOf": [{"type": "null"}, {"type": "string", "format": "date-time"}]},
        "day": {"type": "string", "format": "date"},
        "key": {"type": "string", "format": "uuid"},
        "total": {"type": "number"},
        "small": {"type": "integer", "connect.type": "int32"},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "any": {},
        "shop": {"type": "string", "default": "main"}}})
}

fn reader() -> Registered {
    let node = json_schema::parse(&orders().to_string(), &[]).unwrap();
    let mut codec = Registered::json(node, Tombstones::Skip).unwrap();
    codec.learn(
        id(1),
        learnt("JSON", &json!({"properties": {"id": {"$ref": "http://example.com/nobody-reads-this"}}})),
    );
    codec
}

#[test]
fn json_of_any_version_is_read_by_names() {
    let full = r#"{"unknown": [1], "id": 9007199254740993, "at": "2026-01-02T03:04:05.678901Z", "day": "1970-01-03",
        "key": "C0FFEE00-0000-4000-8000-000000000001", "total": 3, "small": -5, "counts": {"a": 9007199254740995},
        "any": {"b": [9007199254740993, null]}, "shop": "x"}"#;
    let short = r#"{"id": -9223372036854775808, "any": "text", "shop": null}"#;
    let (rows, rejected) = decode(
        &reader(),
        &[framed(1, full.as_bytes()), framed(1, short.as_bytes()), framed(1, b"{\"id\": 1}")],
    );
    assert!(rejected.is_empty(), "{rejected:?}");
    let lines: Vec<Vec<&str>> = rows
        .lines()
        .map(|line| line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(
        lines[3],
        [
            "9007199254740993",
            "2026-01-02T03:04:05.678901Z",
            "1970-01-03",
            "c0ffee00-0000-4000-8000-000000000001",
            "3.0",
            "-5",
            "{a: 9007199254740995}",
            r#"{"b":[9007199254740993,null]}"#,
            "x"
        ]
    );
    assert_eq!(lines[4], ["-9223372036854775808", "\"text\""]);
    assert_eq!(lines[5], ["1", "main"]);
}

#[test]
fn json_that_does_not_fit_is_bad_alone() {
    let good = || framed(1, br#"{"id": 7}"#);
    let bad = [
        (r#"{"id": 9223372036854775808}"#, "overflow", "field `id`: this number is not long"),
        (r#"{"id": 1e30}"#, "overflow", "field `id`: this number is not long"),
        (r#"{"id": 1, "small": 2147483648}"#, "overflow", "field `small`: this number is not int"),
        (r#"{"id": 1.5}"#, "type_mismatch", "field `id`: this number is not long"),
        (r#"{"id": "1"}"#, "type_mismatch", "field `id`: this text is not long"),
        ("{}", "type_mismatch", "field `id`: null is not long"),
        (r#"{"id": 1, "at": 5}"#, "type_mismatch", "field `at`: this number is not string (TimestampMicros)"),
        (r#"{"id": 1, "at": "2026-01-02T03:04:05"}"#, "type_mismatch", "field `at`: this text is not string"),
        (r#"{"id": 1, "day": "tomorrow"}"#, "type_mismatch", "field `day`"),
        (r#"{"id": 1, "key": "x"}"#, "type_mismatch", "field `key`"),
        (r#"{"id": 1, "counts": {"a": "b"}}"#, "type_mismatch", "field `counts`"),
        ("[1]", "type_mismatch", "an array is not record"),
        ("null", "type_mismatch", "null is not record"),
        ("{\"id\": 1", "type_mismatch", "not JSON"),
        ("", "type_mismatch", "not JSON"),
        ("{\"id\": 1} x", "type_mismatch", "not JSON"),
    ];
    let mut values = vec![good()];
    for (text, _, _) in bad {
        values.push(framed(1, text.as_bytes()));
        values.push(good());
    }
    let deep = format!("{{\"id\": 1, \"any\": {}", "[".repeat(100_000));
    values.push(framed(1, deep.as_bytes()));
    let (rows, rejected) = decode(&reader(), &values);
    assert_eq!(rows.matches("| 7 ").count(), bad.len() + 1, "{rows}");
    assert_eq!(rejected.len(), bad.len() + 1);
    for ((text, code, message), (_, own, said)) in bad.iter().zip(&rejected) {
        assert!(code == own && said.starts_with(message), "{text}: {own}: {said}");
    }
    assert_eq!(rejected[bad.len()].1, "depth");
}

#[test]
fn schemas_of_other_formats_make_their_records_bad() {
    let mut codec = reader();
    codec.learn(id(2), learnt("AVRO", &json!("long")));
    codec.learn(id(3), Learnt::Unknown);
    let (_, rejected) = decode(&codec, &[framed(2, b"{}"), framed(3, b"{}"), framed(4, b"{}")]);
    let said = |code, message: &str| (code, message.to_owned());
    let rejected: Vec<_> = rejected.into_iter().map(|(_, code, message)| (code, message)).collect();
    assert_eq!(
        rejected,
        [
            said("schema_type", "schema id 2 is AVRO, and this route reads JSON"),
            said("unknown_id", "the registry has no schema id 3"),
            said("unknown_id", "schema id 4 was never looked up"),
        ]
    );
}

/// Whatever the bytes are: a message of Protobuf could be made of most.
#[test]
fn avro_is_no_protobuf_and_schemas_of_others_are_not_taken() {
    let file = protobuf::parse("syntax = \"proto3\"; message A { int32 n = 1; }", &[]).unwrap();
    let mut codec = Registered::protobuf(&file, None, Tombstones::Skip).unwrap();
    codec.learn(id(2), learnt("AVRO", &json!("long")));
    codec.learn(id(3), Learnt::Foreign("schema id 3 is of `other-value`".to_owned()));
    let (_, rejected) = decode(&codec, &[framed(2, &[0, 8, 5]), framed(3, &[0, 8, 5])]);
    let said = |index, code, message: &str| (index, code, message.to_owned());
    assert_eq!(
        rejected,
        [
            said(0, "schema_type", "schema id 2 is AVRO, and this route reads PROTOBUF"),
            said(1, "foreign_id", "schema id 3 is of `other-value`"),
        ]
    );
    // Both are asked about again after a while, and not at once.
    let values = [framed(2, &[]), framed(3, &[]), framed(4, &[])];
    let chunk = chunk(&values);
    assert_eq!(codec.missing(&chunk.records().collect::<Vec<_>>()), [id(4)]);
}

#[test]
fn schemas_are_named_by_headers_where_the_route_says_so() {
    let guid = Uuid::from_u128(0xabc);
    let header = [&[1][..], guid.as_bytes()].concat();
    let (named, text) = (SchemaKey::Guid(guid), br#"{"id": 5}"#.to_vec());
    let values = [
        (text.clone(), vec![header.clone()]),
        (framed(1, &text).0, Vec::new()),
        (text.clone(), vec![header.clone(), header.clone()]),
        (text.clone(), vec![header.clone(), vec![0, 0, 0, 0, 1]]),
        (text.clone(), vec![[&header[..], &[0]].concat()]),
        (text.clone(), vec![vec![0, 0, 0, 0, 1]]),
        (text.clone(), Vec::new()),
    ];
    let of = |framing: Framing| {
        let mut codec = reader().framed(framing);
        let chunk = chunk(&values);
        let missing = codec.missing(&chunk.records().collect::<Vec<_>>());
        codec.learn(named, learnt("JSON", &json!({})));
        let (rows, rejected) = decode(&codec, &values);
        let bad: Vec<usize> = rejected.iter().map(|(index, _, _)| *index).collect();
        assert!(rejected.iter().all(|(_, code, _)| *code == "framing"), "{rejected:?}");
        (missing, bad, rows.matches("| 5 ").count())
    };
    assert_eq!(of(Framing::Confluent), (vec![named], vec![3, 4, 6], 4));
    assert_eq!(of(Framing::Header), (vec![named], vec![1, 3, 4, 6], 3));
    assert_eq!(of(Framing::Prefix), (vec![], vec![0, 2, 3, 4, 5, 6], 1));
    assert_eq!(of(Framing::Apicurio), (vec![], vec![0, 1, 2, 3, 4, 5, 6], 0));
    let mut wide = vec![0; 9];
    wide[8] = 1;
    let (rows, rejected) =
        decode(&reader().framed(Framing::Apicurio), &[([wide, text].concat(), Vec::new())]);
    assert!(rows.contains("| 5 ") && rejected.is_empty(), "{rejected:?}");
}

#[test]
fn the_column_of_ids_follows_the_framing() {
    let guid = [&[1][..], Uuid::from_u128(1).as_bytes()].concat();
    let text = br#"{"id": 5}"#.to_vec();
    let values = [(text.clone(), vec![vec![0, 0, 0, 0, 1]]), (text.clone(), vec![guid]), framed(1, &text)];
    let mut codec = reader();
    codec.learn(SchemaKey::Guid(Uuid::from_u128(1)), learnt("JSON", &json!({})));
    let decoder = Decoder::typed(Box::new(codec), Box::new(Raw::for_keys(RawForm::Bytes)));
    let ids: Vec<Field> =
        decoder.offered().into_iter().filter(|field| field.name() == "_schema_id").collect();
    let decoder = decoder.with_meta(&ids);
    let chunk = chunk(&values);
    let decoded = decoder.decode(&chunk.records().collect::<Vec<_>>()).unwrap();
    let column = decoded.rows.column_by_name("_schema_id").unwrap();
    let shown = pretty_format_batches(std::slice::from_ref(&decoded.rows)).unwrap().to_string();
    assert_eq!((column.len(), column.null_count(), column.is_null(1)), (3, 1, true), "{shown}");
}

#[test]
fn protobuf_has_its_indexes_in_the_header_too() {
    let text = "syntax = \"proto3\"; message A { int32 n = 1; } message B { int32 n = 1; }";
    let file = protobuf::parse(text, &[]).unwrap();
    let mut codec = Registered::protobuf(&file, Some("B"), Tombstones::Skip).unwrap();
    let guid = Uuid::from_u128(7);
    let schema =
        Learnt::Schema { kind: "PROTOBUF".to_owned(), text: text.to_owned(), references: Vec::new() };
    codec.learn(SchemaKey::Guid(guid), schema);
    let value = |indexes: &[u8]| (vec![8, 5], vec![[&[1][..], guid.as_bytes(), indexes].concat()]);
    let (rows, rejected) =
        decode(&codec, &[value(&[2, 2]), value(&[0]), value(&[]), value(&[2, 2, 0]), value(&[2, 8])]);
    assert!(rows.contains("| 5 |"), "{rows}");
    let codes: Vec<_> = rejected.iter().map(|(index, code, _)| (*index, *code)).collect();
    assert_eq!(codes, [(1, "schema_type"), (2, "framing"), (3, "framing"), (4, "framing")]);
}

#[test]
fn keys_of_a_json_schema_are_of_any_type() {
    for (schema, text, expected) in [
        (json!({"type": "string"}), r#""k""#, "k"),
        (json!({"type": "integer"}), "-3", "-3"),
        (json!({"type": "object", "properties": {"a": {"type": "integer"}}}), r#"{"a": 1}"#, "{a: 1}"),
    ] {
        let node = json_schema::parse(&schema.to_string(), &[]).unwrap();
        let mut codec = Registered::json_keys(node).unwrap();
        codec.learn(id(1), learnt("JSON", &schema));
        let (rows, rejected) = decode(&codec, &[framed(1, text.as_bytes()), framed(1, b"true")]);
        assert!(rows.contains(&format!("| {expected} ")), "{rows}");
        assert_eq!(rejected.len(), 1, "{rejected:?}");
        assert_eq!(rejected[0].1, "type_mismatch");
    }
}

#[test]
fn a_choice_is_the_first_arm_that_a_record_fits() {
    let schema = json!({"properties": {"by": {"oneOf": [
        {"title": "Card", "type": "object", "required": ["number"], "additionalProperties": false,
            "properties": {"kind": {"const": "card"}, "number": {"type": "string"}}},
        {"title": "Cash", "type": "object", "properties": {"kind": {"const": "cash"}, "cents": {"type": "integer"}}},
        {"title": "Other", "type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "deep": {"type": "array",
            "items": {"type": "integer"}}}},
        {"type": ["string", "integer"]},
        {"type": "null"}]}}});
    let node = json_schema::parse(&schema.to_string(), &[]).unwrap();
    let mut codec = Registered::json(node, Tombstones::Skip).unwrap();
    codec.learn(id(1), learnt("JSON", &schema));
    let values = [
        json!({"kind": "card", "number": "1"}),
        json!({"kind": "cash", "cents": 5}),
        // Not closed, and no other kind.
        json!({"number": "1", "more": true}),
        json!({"kind": "b", "deep": [1, 2]}),
        json!("text"),
        json!(7),
        json!(null),
    ];
    let records: Vec<Given> =
        values.iter().map(|by| framed(1, json!({"by": by}).to_string().as_bytes())).collect();
    let given = chunk(&records);
    let decoded = codec.decode(&given.records().collect::<Vec<_>>()).unwrap();
    assert_eq!(decoded.rejected, []);
    let batch = RecordBatch::try_new(Arc::clone(codec.schema()), decoded.columns).unwrap();
    let rows = crate::render::JsonRows::new(&batch).unwrap();
    let member = |row: usize| {
        let mut line = Vec::new();
        rows.write(row, &mut line);
        let line: Value = serde_json::from_slice(&line).unwrap();
        let members = line["by"].as_object().into_iter().flatten();
        members
            .filter(|(_, value)| !value.is_null())
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
            .join("+")
    };
    let found: Vec<String> = (0..values.len()).map(member).collect();
    assert_eq!(found, ["Card", "Cash", "Cash", "Other", "string", "integer", ""]);
    // What fits none is bad, and leaves nothing behind; where it is almost one, it is said what is wrong with that.
    let bad = [json!({"kind": "b", "deep": [1, "x"]}), json!(1.5), json!({"kind": "none"})];
    let records: Vec<Given> = [&values[0], &bad[0], &bad[1], &bad[2], &values[1]]
        .map(|by| framed(1, json!({"by": by}).to_string().as_bytes()))
        .into();
    let (rows, rejected) = decode(&codec, &records);
    let good = [&values[0], &values[1]].map(|by| framed(1, json!({"by": by}).to_string().as_bytes()));
    assert_eq!(rows, decode(&codec, &good).0);
    let messages: Vec<&str> = rejected.iter().map(|(_, _, message)| message.as_str()).collect();
    assert_eq!(messages[0], "field `by.deep`: this text is not long");
    assert!(messages[1].starts_with("field `by`: this number is not one of record `Card`"), "{messages:?}");
    assert!(messages[2].starts_with("field `by`: an object is not one of"), "{messages:?}");
}

#[test]
fn a_record_is_validated_by_the_schema_that_it_names() {
    let schema = |maximum: i64| json!({"properties": {"id": {"type": "integer", "maximum": maximum}}});
    let node = json_schema::parse(&schema(0).to_string(), &[]).unwrap();
    let mut codec = Registered::json(node, Tombstones::Skip).unwrap().validated(true);
    codec.learn(id(1), learnt("JSON", &schema(5)));
    codec.learn(id(2), learnt("JSON", &schema(50)));
    codec.learn(id(3), learnt("JSON", &json!({"properties": {"id": {"$ref": "http://example.com/x"}}})));
    let record = |number: u32, text: &str| framed(number, text.as_bytes());
    let records = [
        record(1, r#"{"id": 5}"#),
        record(1, r#"{"id": 6}"#),
        record(2, r#"{"id": 6}"#),
        record(2, r#"{"id": "x"}"#),
        record(3, r#"{"id": 1}"#),
    ];
    let (rows, rejected) = decode(&codec, &records);
    assert!(rows.contains("| 5 ") && rows.contains("| 6 "), "{rows}");
    let codes: Vec<(usize, &str)> = rejected.iter().map(|(index, code, _)| (*index, *code)).collect();
    assert_eq!(codes, [(1, "invalid"), (3, "invalid"), (4, "refused_schema")]);
    assert_eq!(rejected[0].2, "field `id`: it does not keep to `maximum` of its schema");
    // Without the option nobody looks.
    let (_, rejected) = decode(&reader(), &[record(1, r#"{"id": 9000}"#)]);
    assert_eq!(rejected, []);
}

#[test]
fn writers_that_contain_themselves_are_read_if_the_route_says_so() {
    let tree = |name: &str| {
        json!({"type": "record", "name": "T", "fields": [
        {"name": "n", "type": "int"}, {"name": name, "type": ["null", "T"]}]})
    };
    let reader = Node::parse_with(&tree("next").to_string(), &[], Recursion::Json).unwrap();
    let codec = Registered::avro(reader, Tombstones::Skip).unwrap();
    // n, then one below it.
    let records = [framed(1, &[2, 2, 4, 0]), framed(2, &[2, 2, 4, 0])];
    let mut codec = codec.recursive(Recursion::Json);
    codec.learn(id(1), learnt("AVRO", &tree("next")));
    codec.learn(id(2), learnt("AVRO", &tree("other")));
    let (rows, rejected) = decode(&codec, &records);
    assert!(rows.contains(r#"{"n":2,"next":null}"#), "{rows}");
    // The reader's `next` has no default, and this writer has none.
    assert_eq!((rejected.len(), rejected[0].1), (1, "refused_schema"));
}

/// A refusal names both schemas and the field, and is known before any record is decoded.
#[test]
fn what_cannot_be_read_names_writer_and_reader() {
    let record =
        |kind: &str| json!({"type": "record", "name": "R", "fields": [{"name": "id", "type": kind}]});
    let node = Node::parse(&record("long").to_string(), &[]).unwrap();
    let version = SchemaVersion { subject: "s".to_owned(), id: SchemaId(7), number: Some(2) };
    let mut codec =
        Registered::avro(node, Tombstones::Skip).unwrap().read_as(version.to_string(), Some(version.clone()));
    assert_eq!(codec.version(), Some(&version));
    for (number, kind) in [(8, "string"), (9, "int")] {
        codec.learn(id(number), learnt("AVRO", &record(kind)));
    }
    let refusal = codec.refusal(id(8)).unwrap_or_default();
    let reader =
        "schema id 8 cannot be read as the route's reader schema, id 7 (version 2 of subject `s`): `id`: ";
    assert!(refusal.starts_with(reader), "{refusal}");
    assert_eq!((codec.refusal(id(9)), codec.refusal(id(10))), (None, None));
    let chunk = chunk(&[framed(8, &[2]), (vec![1, 2], Vec::new())]);
    let named: Vec<_> = chunk.records().map(|record| codec.named(&record)).collect();
    assert_eq!(named, [Some(id(8)), None]);
}

/// A batch comes next whose records name these.
fn need(codec: &mut Registered, keys: &[SchemaKey]) {
    codec.need(&Arc::new(keys.iter().copied().collect()));
}

#[test]
fn schemas_of_former_batches_are_forgotten_and_asked_for_again() {
    let fields = json!([{"name": "id", "type": "long"}]);
    let schema = |doc: &str| json!({"type": "record", "name": "R", "doc": doc, "fields": fields});
    let node = Node::parse(&schema("").to_string(), &[]).unwrap();
    let mut codec = Registered::avro(node, Tombstones::Skip).unwrap();
    let large = learnt("AVRO", &schema(&"x".repeat(1 << 20)));
    for number in 0..200 {
        need(&mut codec, &[id(number)]);
        codec.learn(id(number), large.clone());
    }
    let (rows, bad) = decode(&codec, &[framed(199, &[14])]);
    assert!(bad.is_empty() && rows.contains("| 7 "), "{rows} {bad:?}");
    let chunk = chunk(&[framed(0, &[14]), framed(199, &[14])]);
    assert_eq!(codec.missing(&chunk.records().collect::<Vec<_>>()), [id(0)]);
}

#[test]
fn a_batch_of_garbage_costs_no_more_than_in_proportion_to_its_size() {
    let values: Vec<Given> = (10..200_010).map(|number| framed(number, &[])).collect();
    let chunk = chunk(&values);
    let records: Vec<_> = chunk.records().collect();
    let mut codec = reader();
    let begun = Instant::now();
    let missing = codec.missing(&records);
    assert_eq!(missing.len(), records.len());
    need(&mut codec, &missing);
    for key in missing {
        codec.learn(key, Learnt::Unknown);
    }
    // Or they would be asked for again and again.
    assert!(codec.missing(&records).is_empty());
    // A second or two, and minutes if each were compared with all the others.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
