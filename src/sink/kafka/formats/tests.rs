use std::time::Duration;

use arrow::array::{Int64Array, StringArray};
use async_trait::async_trait;
use uuid::Uuid;

use super::*;
use crate::config::plan::{self, SchemaFormat};
use crate::model::SchemaKey;
use crate::registry::embedded::EmbeddedRegistry;
use crate::registry::{Newest, RegisteredSchema, RegistryClient};

/// Longer than any answer takes.
const TIMEOUT: Duration = Duration::from_secs(5);

async fn registry() -> (EmbeddedRegistry, Arc<dyn Registry>) {
    let server = EmbeddedRegistry::start().await.unwrap();
    let client = RegistryClient::new(&plan::Registry::at(server.url(), TIMEOUT)).unwrap();
    (server, Arc::new(client))
}

fn schema(format: SchemaFormat) -> WriterSchema {
    WriterSchema { format, subject: Subject::Topic, source: SchemaSource::Registered, record_name: None }
}

fn options(topic: Option<&str>, column: Option<&str>, schema: WriterSchema) -> KafkaSinkOptions {
    let column = column.map(str::to_owned);
    KafkaSinkOptions {
        identity: "r/s".to_owned(),
        topic: topic.map(str::to_owned),
        key: None,
        value: Some(Written { column, form: WrittenForm::Registered(schema) }),
        deletes: None,
    }
}

fn ids(name: &str, ids: &[i64]) -> (String, ArrayRef) {
    (name.to_owned(), Arc::new(Int64Array::from(ids.to_vec())))
}

fn rows(columns: Vec<(String, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

/// The values of all rows.
async fn write(
    registry: &Arc<dyn Registry>,
    options: &KafkaSinkOptions,
    rows: &RecordBatch,
) -> Result<Vec<Option<Vec<u8>>>, SinkError> {
    let mut schemas = Schemas::new(Some(registry.clone()));
    schemas.prepare(options, rows).await?;
    let (_, written, wanted) = registered(options).next().unwrap();
    let encoded = schemas.bind(Part::Value, written, wanted, options, rows).unwrap();
    let topics = rows.column_by_name("topic").map(|topics| Values::new(topics).unwrap());
    let value = |row| {
        let topic = topics.as_ref().and_then(|topics| topics.to_bytes(row));
        let topic = topic.map(|topic| String::from_utf8(topic).unwrap());
        encoded.to_bytes(row, topic.as_deref()).unwrap()
    };
    Ok((0..rows.num_rows()).map(value).collect())
}

fn framed(id: u8, payload: &[u8]) -> Option<Vec<u8>> {
    Some([&[0, 0, 0, 0, id][..], payload].concat())
}

/// An error with its causes and its hint.
fn said(error: &SinkError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    format!("{text} hint: {}", error.hint().unwrap_or_default())
}

#[tokio::test]
async fn each_strategy_has_its_subject() {
    let (_server, registry) = registry().await;
    let rows = rows(vec![ids("id", &[1, 2])]);
    for (number, (subject, name, expected)) in [
        (Subject::Topic, None, "t-value"),
        (Subject::Record, Some("shop.Order"), "shop.Order"),
        (Subject::TopicRecord, Some("shop.Sale"), "t-shop.Sale"),
        (Subject::Literal("orders".to_owned()), None, "orders"),
    ]
    .into_iter()
    .enumerate()
    {
        let record_name = name.map(str::to_owned);
        let options =
            options(Some("t"), None, WriterSchema { subject, record_name, ..schema(SchemaFormat::Avro) });
        let written = write(&registry, &options, &rows).await.unwrap();
        let known = registry.by_subject(expected, None).await.unwrap();
        let id = u8::try_from(known.id.id().unwrap().0).unwrap();
        // The last one is the schema of the first.
        assert_eq!(usize::from(id), if number == 3 { 1 } else { number + 1 });
        assert_eq!(written, [framed(id, &[2]), framed(id, &[4])]);
        assert!(known.text.contains(name.map_or("Value", |name| &name[5..])), "{}", known.text);
    }
}

#[tokio::test]
async fn topics_that_rows_name_have_schemas_of_their_own() {
    let (_server, registry) = registry().await;
    let topics: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("b"), Some("a")]));
    let rows = rows(vec![("topic".to_owned(), topics), ids("id", &[1, 2, 3, 4])]);
    let options = options(None, Some("id"), schema(SchemaFormat::JsonSchema));
    let written = write(&registry, &options, &rows).await.unwrap();
    // Equal schemas have one id, whatever their subject.
    assert_eq!(written, [framed(1, b"1"), None, framed(1, b"3"), framed(1, b"4")]);
    for subject in ["a-value", "b-value"] {
        assert_eq!(registry.by_subject(subject, None).await.unwrap().kind, "JSON");
    }
    let examined = examine(registry.as_ref(), &options, &rows.schema()).await;
    assert!(examined.len() == 1 && examined[0].subject.is_none(), "{examined:?}");
}

#[tokio::test]
async fn the_newest_schema_is_taken_as_it_is() {
    let (_server, registry) = registry().await;
    let text = r#"{"type": "record", "name": "R", "fields": [
        {"name": "note", "type": "string", "default": "-"}, {"name": "id", "type": ["null", "long"]}]}"#;
    let latest = |format| WriterSchema { source: SchemaSource::Latest, ..schema(format) };
    let avro = options(Some("t"), None, latest(SchemaFormat::Avro));
    let one = rows(vec![ids("id", &[1])]);
    let error = write(&registry, &avro, &one).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Stop);
    assert!(
        said(&error).contains("subject `t-value` has no schema hint: register a schema there"),
        "{error:?}"
    );
    registry.register("t-value", SchemaFormat::Avro, "\"int\"").await.unwrap();
    registry.register("t-value", SchemaFormat::Avro, text).await.unwrap();
    assert_eq!(write(&registry, &avro, &one).await.unwrap(), [framed(2, &[2, b'-', 2, 2])]);
    assert!(examine(registry.as_ref(), &avro, &one.schema()).await[0].problem.is_none());
    let other = options(Some("t"), None, latest(SchemaFormat::Protobuf));
    let error = said(&write(&registry, &other, &one).await.unwrap_err());
    assert!(error.contains("is AVRO, and the sink writes PROTOBUF"), "{error}");
    let unfit = rows(vec![ids("id", &[1]), ids("extra", &[1])]);
    let error = said(&write(&registry, &avro, &unfit).await.unwrap_err());
    assert!(error.contains("the columns do not fit: column `extra` is no field of `R`"), "{error}");
}

#[tokio::test]
async fn without_registering_the_schema_has_to_be_there() {
    let (_server, registry) = registry().await;
    for (format, payload) in [
        (SchemaFormat::Avro, &[14][..]),
        // The first message of its file, field 1.
        (SchemaFormat::Protobuf, &[0, 8, 7][..]),
        (SchemaFormat::JsonSchema, &br#"{"id":7}"#[..]),
    ] {
        let subject = Subject::Literal(format.name().to_owned());
        let known = WriterSchema { subject, source: SchemaSource::Known, ..schema(format) };
        let (options, rows) = (options(Some("t"), None, known), rows(vec![ids("id", &[7])]));
        let error = write(&registry, &options, &rows).await.unwrap_err();
        let SinkError::Stop { source, .. } = &error else { panic!("{error:?}") };
        let problem = source.downcast_ref::<SchemaProblem>().unwrap();
        let SchemaProblem::Unknown { text, subject } = problem else { panic!("{problem:?}") };
        assert!(said(&error).contains("hint: register it, or leave `auto_register: false` out"), "{error:?}");
        // The text that it says is what has to be registered.
        let id = registry.register(subject, format, text).await.unwrap();
        let id = u8::try_from(id.0).unwrap();
        assert_eq!(write(&registry, &options, &rows).await.unwrap(), [framed(id, payload)]);
    }
}

#[tokio::test]
async fn fields_of_protobuf_keep_their_numbers_over_restarts() {
    let (_server, registry) = registry().await;
    let options = options(Some("t"), None, schema(SchemaFormat::Protobuf));
    write(&registry, &options, &rows(vec![ids("a", &[1]), ids("b", &[1])])).await.unwrap();
    let changed = rows(vec![ids("new", &[1]), ids("b", &[2])]);
    // The first message, field 2 and field 3.
    let expected = |id| framed(id, &[0, 16, 2, 24, 1]);
    assert_eq!(write(&registry, &options, &changed).await.unwrap(), [expected(2)]);
    let newest = registry.by_subject("t-value", None).await.unwrap();
    assert!(newest.text.contains("reserved 1;"), "{}", newest.text);
    // Once more: nothing new.
    assert_eq!(write(&registry, &options, &changed).await.unwrap(), [expected(2)]);
}

/// A registry that answers one error.
struct Failing(RegistryError);

#[async_trait]
impl Registry for Failing {
    async fn by_id(&self, _: SchemaId) -> Result<RegisteredSchema, RegistryError> {
        Err(self.0.clone())
    }

    async fn by_guid(&self, _: Uuid) -> Result<RegisteredSchema, RegistryError> {
        Err(self.0.clone())
    }

    async fn by_subject(&self, _: &str, _: Option<u32>) -> Result<RegisteredSchema, RegistryError> {
        Err(self.0.clone())
    }

    async fn newest(&self, _: &str) -> Result<Newest, RegistryError> {
        Err(self.0.clone())
    }

    async fn subjects_of(&self, _: SchemaKey) -> Result<Vec<String>, RegistryError> {
        Err(self.0.clone())
    }

    async fn register(&self, _: &str, _: SchemaFormat, _: &str) -> Result<SchemaId, RegistryError> {
        Err(self.0.clone())
    }

    async fn find(&self, _: &str, _: SchemaFormat, _: &str) -> Result<SchemaId, RegistryError> {
        Err(self.0.clone())
    }

    async fn is_compatible(&self, _: &str, _: SchemaFormat, _: &str) -> Result<bool, RegistryError> {
        Err(self.0.clone())
    }
}

#[tokio::test]
async fn an_outage_passes_and_a_refusal_is_told() {
    let rows = rows(vec![ids("id", &[1])]);
    let refused = RegistryError::Refused {
        what: "the schema for subject `t-value`".to_owned(),
        problem: "READER_FIELD_MISSING_DEFAULT_VALUE at /fields/1".to_owned(),
    };
    let away = RegistryError::Unavailable {
        what: "the schema for subject `t-value`".to_owned(),
        problem: "HTTP 503".to_owned(),
        retry_after: None,
    };
    let failing = |error: RegistryError| -> Arc<dyn Registry> { Arc::new(Failing(error)) };
    for format in [SchemaFormat::Avro, SchemaFormat::Protobuf, SchemaFormat::JsonSchema] {
        let options = options(Some("t"), None, schema(format));
        let error = write(&failing(away.clone()), &options, &rows).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Transient, "{error:?}");
        let error = write(&failing(refused.clone()), &options, &rows).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Stop);
        let said = said(&error);
        assert!(said.starts_with("failed to get the schema of values from subject `t-value`"), "{said}");
        assert!(
            said.contains("READER_FIELD_MISSING_DEFAULT_VALUE at /fields/1 hint: make the columns"),
            "{said}"
        );
    }
    let none = Schemas::new(None).prepare(&options(Some("t"), None, schema(SchemaFormat::Avro)), &rows).await;
    assert!(said(&none.unwrap_err()).contains("`schema_registry` is missing"));
}

#[test]
fn a_key_alone_has_no_record() {
    let rows = rows(vec![ids("id", &[1])]);
    let with = |format| {
        let of_value = options(Some("t"), Some("id"), schema(format));
        KafkaSinkOptions { key: of_value.value, value: None, ..of_value }
    };
    check(&with(SchemaFormat::Avro), &rows.schema()).unwrap();
    check(&with(SchemaFormat::JsonSchema), &rows.schema()).unwrap();
    let unfit = check(&with(SchemaFormat::Protobuf), &rows.schema()).unwrap_err().to_string();
    assert!(unfit.starts_with("column `id` is no struct"), "{unfit}");
}
