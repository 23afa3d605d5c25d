use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sidestream::codec::avro::node::Node;
use sidestream::codec::{Codec, Learnt, Registered, json_schema, protobuf};
use sidestream::config::plan::{self, Tombstones};
use sidestream::model::{
    Chunk, ChunkBuilder, Incoming, Offset, Partition, RecordRef, SchemaKey, TimestampType, TopicName,
    TopicPartition,
};
use sidestream::registry::{RegisteredSchema, Registry, RegistryClient, RegistryError};
use sidestream::render::JsonRows;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What the program has of Confluent's serialisers in Python, with the registry's answers: `serialisers.py make`.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Records of all formats, with schemas named by prefixes and by headers, decoded and compared value by value.
#[test]
fn records_of_real_serialisers_are_read_value_by_value() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for format in ["avro", "protobuf", "json"] {
        for framing in ["prefix", "header"] {
            let name = format!("{format}-{framing}");
            let text = std::fs::read_to_string(folder().join(format!("serialisers/{name}.json"))).unwrap();
            let fixture: Value = serde_json::from_str(&text).unwrap();
            runtime.block_on(compare(&name, &fixture));
        }
    }
}

async fn compare(name: &str, fixture: &Value) {
    let (url, _server) = serve(fixture["answers"].clone()).await;
    let client = RegistryClient::new(&plan::Registry::at(url, Duration::from_secs(5))).unwrap();
    let subject = fixture["subject"].as_str().unwrap();
    let mut codec = codec(&client.by_subject(subject, None).await.unwrap());
    let records = fixture["records"].as_array().unwrap();
    let chunk = chunk(records);
    let given: Vec<RecordRef<'_>> = chunk.records().collect();
    for key in codec.missing(&given) {
        let learnt = look_up(&client, key).await;
        codec.learn(key, learnt);
    }
    let decoded = codec.decode(&given).unwrap();
    let batch = RecordBatch::try_new(codec.schema().clone(), decoded.columns).unwrap();
    let rows = JsonRows::new(&batch).unwrap();
    for (row, index) in decoded.rows.iter().enumerate() {
        let mut text = Vec::new();
        rows.write(row, &mut text);
        let row: Value = serde_json::from_slice(&text).unwrap();
        let expected = &records[usize::try_from(*index).unwrap()]["row"];
        assert_eq!(row, *expected, "{name}, record {index}");
    }
    for bad in &decoded.rejected {
        let codes = &records[bad.index]["bad"];
        let is_expected = codes.as_array().is_some_and(|codes| codes.iter().any(|code| code == bad.code));
        assert!(is_expected, "{name}, record {}: {} ({}), not {codes}", bad.index, bad.code, bad.message);
    }
    let count = |kind: &str| records.iter().filter(|record| record.get(kind).is_some()).count();
    let found = (decoded.rows.len(), decoded.rejected.len(), decoded.dropped);
    assert_eq!(found, (count("row"), count("bad"), count("tombstone")), "{name}");
    assert!(found.0 >= 12 && found.1 >= 2 && found.2 >= 2, "{name}");
}

async fn look_up(client: &RegistryClient, key: SchemaKey) -> Learnt {
    let found = match key {
        SchemaKey::Id(id) => client.by_id(id).await,
        SchemaKey::Guid(guid) => client.by_guid(guid).await,
    };
    match found {
        Ok(schema) => Learnt::Schema { kind: schema.kind, text: schema.text, references: schema.references },
        Err(RegistryError::Unknown { .. }) => Learnt::Unknown,
        Err(error) => panic!("{error}"),
    }
}

fn codec(schema: &RegisteredSchema) -> Registered {
    let (text, references) = (&schema.text, &schema.references);
    match schema.kind.as_str() {
        "AVRO" => Registered::avro(Node::parse(text, references).unwrap(), Tombstones::Skip).unwrap(),
        "JSON" => Registered::json(json_schema::parse(text, references).unwrap(), Tombstones::Skip).unwrap(),
        "PROTOBUF" => {
            let file = protobuf::parse(text, references).unwrap();
            Registered::protobuf(&file, Some("shop.Envelope.Order"), Tombstones::Skip).unwrap()
        }
        other => panic!("{other}"),
    }
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_str().map(|text| STANDARD.decode(text).unwrap())
}

fn chunk(records: &[Value]) -> Chunk {
    let source = TopicPartition::new(&TopicName::new("orders"), Partition(0));
    let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
    for (offset, record) in (0..).zip(records) {
        let value = bytes(&record["value"]);
        let headers: Vec<(String, Vec<u8>)> = record["headers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|header| (header[0].as_str().unwrap().to_owned(), bytes(&header[1]).unwrap()))
            .collect();
        let incoming = Incoming {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: None,
            value: value.as_deref(),
        };
        builder.push(incoming, headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_slice()))));
    }
    builder.finish(Offset::ZERO)
}

/// A registry that gives these answers, by path.
async fn serve(answers: Value) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().fallback(answer).with_state(answers);
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, server)
}

async fn answer(State(answers): State<Value>, uri: Uri) -> Response {
    match answers.get(uri.path()) {
        Some(answer) => Json(answer).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
