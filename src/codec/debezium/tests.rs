use arrow::array::Array;
use arrow::datatypes::TimeUnit;
use arrow::util::pretty::pretty_format_columns;
use serde_json::json;

use super::*;
use crate::codec::avro::encode;
use crate::codec::{Decoder, JsonKeys, Learnt, Raw, Registered, frame};
use crate::config::plan::{RawForm, Recursion};
use crate::model::{
    Chunk, ChunkBuilder, Incoming, Offset, Partition, SchemaId, TimestampType, TopicName, TopicPartition,
};

/// Key and value.
type Given = (Option<Vec<u8>>, Option<Vec<u8>>);

fn chunk(records: &[Given]) -> Chunk {
    let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
    let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
    for (offset, (key, value)) in (0..).zip(records) {
        let incoming = Incoming {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: key.as_deref(),
            value: value.as_deref(),
        };
        builder.push(incoming, std::iter::empty());
    }
    builder.finish(Offset::ZERO)
}

fn decode(codec: &dyn Codec, values: &[Option<Vec<u8>>]) -> Decoded {
    let records: Vec<Given> = values.iter().map(|value| (None, value.clone())).collect();
    let chunk = chunk(&records);
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    let decoded = codec.decode(&records).unwrap();
    assert_eq!(decoded.columns.len(), codec.schema().fields().len());
    assert!(decoded.columns.iter().all(|column| column.len() == decoded.rows.len()));
    decoded
}

fn column(codec: &dyn Codec, decoded: &Decoded, name: &str) -> Vec<String> {
    let place = codec.schema().index_of(name).unwrap();
    let text = pretty_format_columns(name, &[decoded.columns[place].clone()]).unwrap().to_string();
    let lines = text.lines().filter(|line| line.starts_with('|')).skip(1);
    lines.map(|line| line.trim_matches(['|', ' ']).to_owned()).collect()
}

fn bad(decoded: &Decoded) -> Vec<(usize, &str)> {
    decoded.rejected.iter().map(|bad| (bad.index, bad.code)).collect()
}

/// Gives a codec these `_` columns.
fn give(codec: &mut dyn Codec, names: &[&str]) {
    let wanted = codec.offered().into_iter().filter(|field| names.contains(&field.name().as_str()));
    let wanted: Vec<Field> = wanted.collect();
    assert_eq!(wanted.len(), names.len());
    codec.give(&wanted);
}

/// As Kafka Connect's Avro converter writes what PostgreSQL's connector says of a table.
fn envelope() -> Value {
    let optional = |name: &str, inner: Value| json!({"name": name, "default": null, "type": ["null", inner]});
    let connect =
        |inner: &str, name: &str| json!({"type": inner, "connect.version": 1, "connect.name": name});
    let value = json!({"type": "record", "name": "Value", "connect.name": "db.public.customers.Value", "fields": [
        {"name": "id", "type": "int"},
        optional("name", json!("string")),
        optional("born", connect("int", "io.debezium.time.Date")),
        optional("seen", connect("long", "io.debezium.time.MicroTimestamp")),
        optional("at", connect("string", "io.debezium.time.ZonedTimestamp")),
        optional("price", json!({"type": "bytes", "scale": 2, "precision": 10, "logicalType": "decimal",
            "connect.name": "org.apache.kafka.connect.data.Decimal"})),
        optional("days", json!({"type": "array", "items": ["null", connect("int", "io.debezium.time.Date")]})),
    ]});
    let source = json!({"type": "record", "name": "Source", "namespace": "io.debezium.connector.postgresql", "fields": [
        {"name": "version", "type": "string"},
        {"name": "connector", "type": "string"},
        {"name": "ts_ms", "type": "long"},
        {"name": "snapshot", "type": [{"type": "string", "connect.name": "io.debezium.data.Enum"}, "null"], "default": "false"},
        {"name": "table", "type": "string"},
        {"name": "txId", "type": ["null", "long"], "default": null},
        // A type that the column does not have.
        {"name": "lsn", "type": ["null", {"type": "array", "items": "long"}], "default": null},
    ]});
    json!({"type": "record", "name": "Envelope", "namespace": "db.public.customers", "fields": [
        optional("before", value),
        {"name": "after", "default": null, "type": ["null", "Value"]},
        {"name": "source", "type": source},
        {"name": "op", "type": "string"},
        optional("ts_ms", json!("long")),
    ]})
}

fn heartbeat() -> Value {
    json!({"type": "record", "name": "Heartbeat", "namespace": "io.debezium.connector.common",
        "fields": [{"name": "ts_ms", "type": "long"}]})
}

fn framed(id: u32, schema: &Value, value: &Value) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    frame::write_prefix(SchemaId(id), &mut bytes);
    bytes.extend(encode::value(&Node::parse(&schema.to_string(), &[]).unwrap(), value).unwrap());
    Some(bytes)
}

fn event(op: &str, before: Value, after: Value) -> Option<Vec<u8>> {
    let source = json!({"version": "3.6", "connector": "postgresql", "ts_ms": 1_000, "table": "customers", "txId": 7, "lsn": [5]});
    let json = json!({"before": before, "after": after, "source": source, "op": op, "ts_ms": 5});
    framed(1, &envelope(), &json)
}

fn avro() -> Registered {
    let node = parse(&envelope().to_string(), &[], Recursion::Refuse).unwrap();
    let mut codec = Registered::changes(Changes::new(&node, SchemaFormat::Avro, false).unwrap());
    codec.learn(SchemaId(9).into(), Learnt::Unknown);
    codec
}

/// After `give`, which decides what is compiled.
fn learn(codec: &mut dyn Codec) {
    for (id, schema) in [(1, envelope()), (2, heartbeat())] {
        let schema =
            Learnt::Schema { kind: "AVRO".to_owned(), text: schema.to_string(), references: Vec::new() };
        codec.learn(SchemaId(id).into(), schema);
    }
}

fn history() -> Vec<Option<Vec<u8>>> {
    let (a, b) = (json!({"id": 1, "name": "a"}), json!({"id": 1, "name": "b"}));
    vec![
        event("c", Value::Null, a.clone()),
        framed(2, &heartbeat(), &json!({"ts_ms": 1})),
        event("u", a, b.clone()),
        event("d", b, Value::Null),
        None,
        event("r", Value::Null, json!({"id": 2})),
        event("t", Value::Null, Value::Null),
    ]
}

#[test]
fn changes_are_rows_and_deletes() {
    let mut codec = avro();
    learn(&mut codec);
    let decoded = decode(&codec, &history());
    assert_eq!((&decoded.rows[..], &decoded.deletes[..]), (&[0, 2, 5][..], &[3][..]));
    assert_eq!((decoded.gone.len(), decoded.dropped, bad(&decoded)), (0, 3, vec![]));
    assert_eq!(column(&codec, &decoded, "id"), ["1", "1", "2"]);
    assert_eq!(column(&codec, &decoded, "name"), ["a", "b", ""]);
    assert!(codec.schema().fields().iter().all(|field| field.is_nullable()));
}

#[test]
fn who_names_what_happened_sees_all_of_it() {
    let mut codec = avro();
    give(&mut codec, &[OP, SOURCE]);
    learn(&mut codec);
    let decoded = decode(&codec, &history());
    assert_eq!(decoded.rows, [0, 2, 3, 5, 6]);
    assert_eq!((&decoded.deletes[..], &decoded.gone[..], decoded.dropped), (&[3][..], &[3, 6][..], 2));
    assert_eq!(column(&codec, &decoded, OP), ["c", "u", "d", "r", "t"]);
    assert_eq!(column(&codec, &decoded, "name"), ["a", "b", "b", "", ""]);
    let sources = column(&codec, &decoded, SOURCE);
    for told in
        ["connector: postgresql", "1970-01-01T00:00:01Z", "table: customers", "snapshot: false", "tx_id: 7"]
    {
        assert!(sources.iter().all(|source| source.contains(told)), "no {told:?} in {sources:?}");
    }
    assert!(sources[0].contains("lsn: ,"), "{sources:?}");
}

#[test]
fn what_connect_says_of_a_type_is_its_type() {
    let mut codec = avro();
    learn(&mut codec);
    let types: Vec<DataType> =
        codec.schema().fields().iter().map(|field| field.data_type().clone()).collect();
    let micros = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
    assert_eq!(
        types[2..6],
        [DataType::Date32, micros(None), micros(Some("UTC")), DataType::Decimal128(10, 2)]
    );
    let row = json!({"id": 1, "born": 10, "seen": 1_500_000, "at": "2026-11-01T02:00:00.5+01:00", "price": 1250,
        "days": [1, null]});
    let decoded = decode(
        &codec,
        &[event("c", Value::Null, row), event("c", Value::Null, json!({"id": 1, "at": "soon"}))],
    );
    let of = |name: &str| column(&codec, &decoded, name).remove(0);
    assert_eq!([of("born"), of("seen")], ["1970-01-11", "1970-01-01T00:00:01.500"]);
    assert_eq!([of("at"), of("price")], ["2026-11-01T01:00:00.500Z", "12.50"]);
    assert_eq!(of("days"), "[1970-01-02, ]");
    assert_eq!(bad(&decoded), [(1, "type_mismatch")]);
    assert!(decoded.rejected[0].message.contains("field `at`"), "{decoded:?}");
}

#[test]
fn other_schemas_are_told_apart() {
    let flat = json!({"type": "record", "name": "Customer", "fields": [{"name": "id", "type": "int"}]});
    let error =
        Changes::new(&parse(&flat.to_string(), &[], Recursion::Refuse).unwrap(), SchemaFormat::Avro, false)
            .unwrap_err();
    assert!(error.to_string().contains("no envelope of change events"), "{error}");
    let mut codec = avro();
    let text = flat.to_string();
    codec.learn(SchemaId(3).into(), Learnt::Schema { kind: "AVRO".to_owned(), text, references: Vec::new() });
    let decoded = decode(
        &codec,
        &[framed(3, &flat, &json!({"id": 1})), framed(9, &flat, &json!({"id": 1})), Some(vec![1])],
    );
    assert_eq!(bad(&decoded), [(0, "refused_schema"), (1, "unknown_id"), (2, "framing")]);
    // A topic of heartbeats that a pattern matches: nothing of it is bad.
    let node = parse(&heartbeat().to_string(), &[], Recursion::Refuse).unwrap();
    let mut codec = Registered::changes(Changes::new(&node, SchemaFormat::Avro, false).unwrap());
    learn(&mut codec);
    let decoded = decode(&codec, &[framed(2, &heartbeat(), &json!({"ts_ms": 1}))]);
    assert_eq!((decoded.rows.len(), decoded.dropped, decoded.rejected.len()), (0, 1, 0));
}

#[test]
fn cut_events_are_bad_and_leave_nothing() {
    let mut codec = avro();
    give(&mut codec, &[OP, SOURCE, UNAVAILABLE]);
    learn(&mut codec);
    let whole = event("c", Value::Null, json!({"id": 1, "name": "a"}));
    let cut = |len: usize| whole.as_ref().map(|bytes| bytes[..len].to_vec());
    let len = whole.as_ref().unwrap().len();
    let mut values: Vec<Option<Vec<u8>>> = (5..len).map(cut).collect();
    values.push(whole.as_ref().map(|bytes| [&bytes[..], &[0]].concat()));
    values.push(event("x", Value::Null, json!({"id": 1})));
    values.push(event("u", Value::Null, Value::Null));
    values.push(whole.clone());
    let decoded = decode(&codec, &values);
    assert_eq!(decoded.rows, [values.len() as u32 - 1]);
    assert_eq!(decoded.rejected.len(), values.len() - 1);
    assert_eq!(column(&codec, &decoded, "name"), ["a"]);
}

const PLACEHOLDER: &str = "__debezium_unavailable_value";

#[test]
fn what_was_not_sent_is_null_and_named() {
    let mut codec = avro();
    give(&mut codec, &[UNAVAILABLE]);
    learn(&mut codec);
    let sent = json!({"id": 1, "name": "a"});
    let kept = json!({"id": 1, "name": PLACEHOLDER, "price": 100});
    // A row whose key changes is a deletion and a creation.
    let values = [
        event("u", sent.clone(), sent),
        event("u", Value::Null, kept.clone()),
        event("c", Value::Null, kept),
    ];
    let decoded = decode(&codec, &values);
    assert_eq!(column(&codec, &decoded, "name"), ["a", "", ""]);
    assert_eq!(column(&codec, &decoded, "price"), ["", "1.00", "1.00"]);
    assert_eq!(column(&codec, &decoded, UNAVAILABLE), ["", "[name]", "[name]"]);
    let names = &decoded.columns[codec.schema().index_of(UNAVAILABLE).unwrap()];
    assert_eq!([0, 1, 2].map(|row| names.is_null(row)), [true, false, false]);
}

#[test]
fn placeholders_of_other_types_are_known() {
    let schema = json!({"type": "struct", "fields": [
        {"field": "bytes", "type": "bytes", "optional": true},
        {"field": "texts", "type": "array", "items": {"type": "string"}, "optional": true},
        {"field": "numbers", "type": "array", "items": {"type": "int32"}, "optional": true},
        {"field": "longs", "type": "array", "items": {"type": "int64"}, "optional": true},
        {"field": "map", "type": "map", "keys": {"type": "string"}, "values": {"type": "string"}, "optional": true},
    ]});
    let node = parse(&schema.to_string(), &[], Recursion::Refuse).unwrap();
    let mut codec = JsonChanges::new(Changes::new(&node, SchemaFormat::JsonSchema, true).unwrap());
    give(&mut codec, &[UNAVAILABLE]);
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(PLACEHOLDER);
    let update = |after: Value| Some(json!({"op": "u", "after": after}).to_string().into_bytes());
    let numbers: Vec<u8> = PLACEHOLDER.bytes().collect();
    let decoded = decode(
        &codec,
        &[
            update(json!({"bytes": encoded, "texts": [PLACEHOLDER], "numbers": numbers, "longs": numbers,
                "map": {PLACEHOLDER: PLACEHOLDER}})),
            update(
                json!({"bytes": "", "texts": [PLACEHOLDER, "x"], "numbers": [95], "longs": [], "map": {}}),
            ),
        ],
    );
    let all = "[bytes, texts, numbers, longs, map]";
    assert_eq!(column(&codec, &decoded, UNAVAILABLE), [all, ""]);
}

/// A sink that keeps rows by key is never told less than what happened.
#[test]
fn what_a_sink_cannot_follow_is_bad() {
    let mut codec = avro();
    codec.keep_newest(false);
    learn(&mut codec);
    let values = [
        event("u", Value::Null, json!({"id": 1, "name": PLACEHOLDER})),
        event("t", Value::Null, Value::Null),
        event("c", Value::Null, json!({"id": 1})),
    ];
    let decoded = decode(&codec, &values);
    assert_eq!(bad(&decoded), [(0, "unavailable_value"), (1, "truncate")]);
    assert!(decoded.rejected[0].message.contains("column `name` was not sent"), "{decoded:?}");
    assert_eq!(decoded.rows, [2]);
    codec.keep_newest(true);
    assert_eq!(bad(&decode(&codec, &values)), [(1, "truncate")]);
}

/// Ignored: dropped and counted. To be followed: a row of nulls that is gone.
#[test]
fn a_truncation_can_be_ignored_or_followed() {
    for (truncate, rows, gone, dropped) in
        [(Truncate::Ignore, &[0][..], &[][..], 1), (Truncate::Delete, &[0, 1][..], &[1][..], 0)]
    {
        let node = parse(&envelope().to_string(), &[], Recursion::Refuse).unwrap();
        let changes = Changes::new(&node, SchemaFormat::Avro, false).unwrap().truncating(truncate);
        let mut codec = Registered::changes(changes);
        codec.keep_newest(true);
        learn(&mut codec);
        let values = [event("c", Value::Null, json!({"id": 1})), event("t", Value::Null, Value::Null)];
        let decoded = decode(&codec, &values);
        assert_eq!((decoded.rows.as_slice(), decoded.gone.as_slice()), (rows, gone), "{truncate:?}");
        assert_eq!((decoded.dropped, decoded.deletes.len(), decoded.rejected.len()), (dropped, 0, 0));
    }
}

/// As Kafka Connect's JSON converter writes it.
fn connect() -> Value {
    let row = |field: &str| {
        json!({"type": "struct", "optional": true, "name": "db.public.t.Value", "field": field, "fields": [
            {"type": "int32", "optional": false, "field": "id"},
            {"type": "bytes", "optional": true, "name": "org.apache.kafka.connect.data.Decimal", "version": 1,
                "parameters": {"scale": "2", "connect.decimal.precision": "10"}, "field": "price"},
            {"type": "int32", "optional": true, "name": "io.debezium.time.Date", "version": 1, "field": "born"},
            {"type": "string", "optional": true, "name": "io.debezium.time.ZonedTimestamp", "version": 1, "field": "at"},
        ]})
    };
    json!({"type": "struct", "optional": false, "name": "db.public.t.Envelope", "fields": [
        row("before"),
        row("after"),
        {"type": "string", "optional": false, "field": "op"},
    ]})
}

fn json_codec() -> JsonChanges {
    // A record as it was copied from the topic.
    let file = json!({"schema": connect(), "payload": {"op": "r"}}).to_string();
    JsonChanges::new(
        Changes::new(&parse(&file, &[], Recursion::Refuse).unwrap(), SchemaFormat::JsonSchema, true).unwrap(),
    )
}

#[test]
fn json_has_its_schema_with_it_or_not() {
    let mut codec = json_codec();
    give(&mut codec, &[OP, SOURCE]);
    let bare = json!({"op": "c", "before": null, "source": {"snapshot": true, "lsn": "1/2", "pos": 3},
        "after": {"id": 1, "price": "BOI=", "born": 10, "at": "2026-11-01T01:00:00Z"}});
    let wrapped = json!({"schema": connect(), "payload": {"op": "d", "before": {"id": 1}, "after": null}});
    let text = |json: Value| Some(json.to_string().into_bytes());
    let decoded = decode(&codec, &[text(bare), text(wrapped)]);
    assert_eq!((&decoded.rows[..], &decoded.deletes[..], bad(&decoded)), (&[0, 1][..], &[1][..], vec![]));
    assert_eq!(column(&codec, &decoded, "price"), ["12.50", ""]);
    assert_eq!(column(&codec, &decoded, "born"), ["1970-01-11", ""]);
    assert_eq!(column(&codec, &decoded, "at"), ["2026-11-01T01:00:00Z", ""]);
    let source = &column(&codec, &decoded, SOURCE)[0];
    assert!(
        source.contains("snapshot: true") && source.contains("lsn: ,") && source.contains("pos: 3"),
        "{source}"
    );
}

#[test]
fn json_that_is_no_change_is_left_out_or_bad() {
    let codec = json_codec();
    let named = |name: &str| json!({"schema": {"type": "struct", "name": name}, "payload": {"anything": 1}});
    let values = [
        json!({"ts_ms": 1}),
        json!({"status": "BEGIN", "id": "1", "event_count": null, "data_collections": null, "ts_ms": 1}),
        json!({"source": {}, "databaseName": "d", "schemaName": null, "ddl": "x", "tableChanges": []}),
        named("io.debezium.connector.postgresql.SchemaChangeValue"),
        json!({"op": "m", "message": {}}),
        named("shop.Heartbeat"),
        json!({"id": 1}),
        json!([1]),
        json!({"op": "c", "after": {"id": 1, "new": 2}}),
        json!({"op": "c", "after": {"id": "x"}}),
        json!({"op": "c", "after": 1}),
        json!({"op": "c"}),
        json!({"op": "z", "after": {"id": 1}}),
    ];
    let values: Vec<Option<Vec<u8>>> =
        values.iter().map(|json| Some(json.to_string().into_bytes())).collect();
    let decoded = decode(&codec, &values);
    assert_eq!((decoded.dropped, decoded.rows.len()), (5, 0));
    let mismatch = "type_mismatch";
    let codes = [(8, "unknown_column"), (9, mismatch), (10, mismatch), (11, mismatch), (12, mismatch)];
    assert_eq!(bad(&decoded), [&[(5, mismatch), (6, mismatch), (7, mismatch)][..], &codes].concat());
    assert!(decoded.rejected[3].message.contains("no column `new`"), "{decoded:?}");
}

/// Of a schema file, of Kafka Connect or of Avro, also the row alone.
#[test]
fn a_row_may_be_what_the_file_describes() {
    let row = json!({"type": "record", "name": "T", "fields": [{"name": "id", "type": "long"}]});
    let changes = Changes::new(
        &parse(&row.to_string(), &[], Recursion::Refuse).unwrap(),
        SchemaFormat::JsonSchema,
        true,
    )
    .unwrap();
    let codec = JsonChanges::new(changes);
    let decoded = decode(&codec, &[Some(json!({"op": "r", "after": {"id": 7}}).to_string().into_bytes())]);
    assert_eq!(column(&codec, &decoded, "id"), ["7"]);
    for (schema, expected) in [
        (json!({"type": "struct", "fields": [{"type": "int32"}]}), "a field without a name"),
        (json!({"type": "struct", "fields": [{"field": "x", "type": "number"}]}), "`x`: its `type` is none"),
        (json!({"type": "struct"}), "a struct without `fields`"),
    ] {
        let error = parse(&schema.to_string(), &[], Recursion::Refuse).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn deletes_are_of_keys_that_are_there() {
    let codec = json_codec();
    let node = parse(
        &json!({"type": "struct", "fields": [{"field": "id", "type": "int32"}]}).to_string(),
        &[],
        Recursion::Refuse,
    );
    let keys = JsonKeys::new(node.unwrap()).unwrap().wrapped();
    let text = |json: Value| Some(json.to_string().into_bytes());
    let key = |id: i32| text(json!({"schema": {"type": "struct"}, "payload": {"id": id}}));
    let (create, delete) =
        (text(json!({"op": "c", "after": {"id": 1}})), text(json!({"op": "d", "before": {"id": 1}})));
    let records = [
        (key(1), create.clone()),
        (key(1), delete.clone()),
        (None, delete.clone()),
        (text(json!(5)), delete),
        (None, None),
        (None, create),
    ];
    let chunk = chunk(&records);
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    let decoder = Decoder::typed(Box::new(codec), Box::new(keys)).with_deletes(false);
    let decoded = decoder.decode(&records).unwrap();
    assert_eq!(
        (&decoded.origins[..], &decoded.deletes.origins[..], decoded.dropped),
        (&[0, 5][..], &[1][..], 1)
    );
    let rejected: Vec<(usize, &str)> = decoded.rejected.iter().map(|bad| (bad.index, bad.code)).collect();
    assert_eq!(rejected, [(2, "no_key"), (3, "type_mismatch")]);
    let keys = pretty_format_columns("key", &[decoded.deletes.keys.unwrap()]).unwrap().to_string();
    assert!(keys.contains("{id: 1}"), "{keys}");
    // Where nobody wants them, keys are not looked at.
    let decoder = Decoder::typed(Box::new(json_codec()), Box::new(Raw::for_keys(RawForm::Json)));
    let decoded = decoder.decode(&records).unwrap();
    assert_eq!((decoded.origins.len(), decoded.dropped, decoded.rejected.len()), (2, 4, 0));
    assert!(decoded.deletes.keys.is_none());
}

/// A deletion that views see is a row with its key, and a delete.
#[test]
fn a_deletion_that_is_seen_is_deleted_too() {
    let text = |json: Value| Some(json.to_string().into_bytes());
    let event = |op: &str| text(json!({"op": op, "before": {"id": 1}, "after": {"id": 1}}));
    let records = [(Some(b"a".to_vec()), event("c")), (Some(b"b".to_vec()), event("d")), (None, event("d"))];
    let chunk = chunk(&records);
    let records: Vec<RecordRef<'_>> = chunk.records().collect();
    let decoder = Decoder::typed(Box::new(json_codec()), Box::new(Raw::for_keys(RawForm::String)));
    let offered = decoder.offered();
    let named = |name: &str| offered.iter().find(|field| field.name() == name).unwrap().clone();
    let decoder = decoder.with_meta(&[named("_key"), named(OP)]).with_deletes(false);
    let names: Vec<&str> =
        decoder.batch_schema().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["id", "price", "born", "at", "_key", OP]);
    let decoded = decoder.decode(&records).unwrap();
    assert_eq!((&decoded.origins[..], &decoded.deletes.origins[..]), (&[0, 1][..], &[1][..]));
    let shown = |name: &str| {
        let column = decoded.rows.column_by_name(name).unwrap();
        (0..column.len())
            .map(|row| arrow::util::display::array_value_to_string(column, row).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!([shown("_key"), shown(OP)], [["a", "b"], ["c", "d"]]);
    assert_eq!(decoded.rejected[0].code, "no_key");
}
