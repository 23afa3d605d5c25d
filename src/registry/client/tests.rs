use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::json;

use crate::model::{Classify, Fault};
use crate::registry::embedded::EmbeddedRegistry;

use super::*;

/// Longer than any answer takes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a schema that is large, but still is one.
const BIG: usize = 900_000;

/// How a scripted registry answers, and what it was asked.
#[derive(Default)]
struct Script {
    /// Calls, for ids and for subjects.
    calls: AtomicUsize,
    /// The status of answers for subjects, unless 0.
    subject_status: AtomicU16,
}

impl Script {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn referenced() -> Reference {
    Reference { name: "a.B".to_owned(), text: "b-3".to_owned() }
}

fn reference(subject: &str) -> serde_json::Value {
    json!({"name": subject, "subject": subject, "version": 1})
}

fn many(count: usize) -> Vec<serde_json::Value> {
    (0..count).map(|number| reference(&format!("one-{number}"))).collect()
}

/// What `chain-n` references: the next one, up to one more than references may be deep.
fn next_of_chain(subject: &str) -> Option<serde_json::Value> {
    let number: usize = subject.strip_prefix("chain-")?.parse().ok()?;
    (number <= REFERENCE_DEPTH_MAX).then(|| reference(&format!("chain-{}", number + 1)))
}

/// A registry whose schema id decides how it answers.
async fn start(script: Arc<Script>) -> String {
    let ids = script.clone();
    let by_id = move |Path(id): Path<u32>, headers: HeaderMap| {
        let script = ids.clone();
        async move {
            script.calls.fetch_add(1, Ordering::SeqCst);
            let json = |value: serde_json::Value| axum::Json(value).into_response();
            let status =
                |code: u16, body: String| (StatusCode::from_u16(code).unwrap(), body).into_response();
            match id {
                1 => json(json!({"schema": "\"int\""})),
                2 => json(json!({"schema": "{}", "references":
                    [{"name": "a.B", "subject": "b", "version": 3}]})),
                3 => json(json!({"schema": "{}", "references":
                    [{"name": "a.C", "subject": "circle", "version": 1}]})),
                4 => json(json!({"schema": "x".repeat(2 << 20)})),
                5 => json(json!({"schema": "m", "schemaType": "PROTOBUF"})),
                7 => json(json!({"schema": "{}", "references": (0..5).map(|n| json!(
                    {"name": format!("n{n}"), "subject": format!("big-{n}"), "version": 1})).collect::<Vec<_>>()})),
                // As deep as references may be, and deeper; as many as there may be, and more.
                8 => json(json!({"schema": "{}", "references": [reference("chain-2")]})),
                9 => json(json!({"schema": "{}", "references": [reference("chain-1")]})),
                10 => json(json!({"schema": "{}", "references": many(REFERENCES_MAX)})),
                11 => json(json!({"schema": "{}", "references": many(REFERENCES_MAX + 1)})),
                10_000.. => json(json!({"schema": "x".repeat(BIG)})),
                6 if headers.contains_key("authorization") => json(json!({"schema": "ok"})),
                429 => ([("retry-after", "7")], status(429, String::new())).into_response(),
                200 => status(200, "<html>starting</html>".to_owned()),
                302 => ([("location", "/schemas/ids/1")], status(302, String::new())).into_response(),
                6 => status(401, String::new()),
                404 => status(404, json!({"error_code": 40403, "message": "no"}).to_string()),
                other => status(u16::try_from(other).unwrap(), "oops".to_owned()),
            }
        }
    };
    let guids = script.clone();
    let by_guid = move |Path(guid): Path<Uuid>| {
        let script = guids.clone();
        async move {
            script.calls.fetch_add(1, Ordering::SeqCst);
            match guid.as_u128() {
                1 => axum::Json(json!({"schema": "{}", "schemaType": "JSON", "guid": guid, "references":
                    [{"name": "a.B", "subject": "b", "version": 3}]}))
                .into_response(),
                2 => StatusCode::NOT_FOUND.into_response(),
                _ => StatusCode::BAD_GATEWAY.into_response(),
            }
        }
    };
    let by_subject = move |Path((subject, version)): Path<(String, String)>| {
        let script = script.clone();
        async move {
            script.calls.fetch_add(1, Ordering::SeqCst);
            let status = script.subject_status.load(Ordering::SeqCst);
            if status > 0 {
                return StatusCode::from_u16(status).unwrap().into_response();
            }
            let references = match subject.as_str() {
                "circle" => json!([{"name": "a.C", "subject": "circle", "version": 1}]),
                "s-value" => json!([{"name": "a.B", "subject": "b", "version": 3}]),
                other => json!(Vec::from_iter(next_of_chain(other))),
            };
            let schema = match subject.strip_prefix("big") {
                Some(_) => "x".repeat(BIG),
                None => format!("{subject}-{version}"),
            };
            axum::Json(json!({"schema": schema, "id": 9, "references": references})).into_response()
        }
    };
    // What the registry says of a schema that breaks those who read.
    let refuse = |Path(subject): Path<String>| async move {
        let status = StatusCode::from_u16(subject.parse().unwrap()).unwrap();
        let message =
            "Schema being registered is incompatible".repeat(if status.is_success() { 1 } else { 100 });
        let answer = json!({"error_code": 409, "message": message, "is_compatible": false});
        (status, axum::Json(answer)).into_response()
    };
    let app = Router::new()
        .route("/subjects/{subject}/versions", post(refuse))
        .route("/subjects/{subject}", post(refuse))
        .route("/compatibility/subjects/{subject}/versions", post(refuse))
        .route("/schemas/ids/{id}", get(by_id))
        .route("/schemas/guids/{guid}", get(by_guid))
        .route("/subjects/{subject}/versions/{version}", get(by_subject));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "serves as long as the test")]
    tokio::task::spawn(async move { axum::serve(listener, app).await });
    url
}

async fn scripted() -> (plan::Registry, Arc<Script>) {
    let script = Arc::new(Script::default());
    (plan::Registry::at(start(script.clone()).await, TIMEOUT), script)
}

async fn client() -> (RegistryClient, Arc<Script>) {
    let (plan, script) = scripted().await;
    (RegistryClient::new(&plan).unwrap(), script)
}

/// What a start with this cache makes of the settings.
fn cached(plan: &plan::Registry, dir: &tempfile::TempDir) -> RegistryClient {
    let plan = plan::Registry { cache_dir: Some(dir.path().to_owned()), ..plan.clone() };
    RegistryClient::with_cache(&plan).unwrap()
}

#[tokio::test]
async fn four_errors_are_told_apart() {
    let (client, _) = client().await;
    let error = async |id| client.by_id(SchemaId(id)).await.unwrap_err();
    assert!(matches!(error(404).await, RegistryError::Unknown { .. }));
    assert!(matches!(error(6).await, RegistryError::Unauthorised { status: 401, .. }));
    // Also a page that is no JSON, a redirection, and an answer larger than any schema.
    for id in [500, 502, 503, 504, 408, 200, 302, 4] {
        let error = error(id).await;
        assert!(matches!(error, RegistryError::Unavailable { .. }), "{id}: {error}");
    }
    let RegistryError::Unavailable { retry_after, .. } = error(429).await else { panic!() };
    assert_eq!(retry_after, Some(Duration::from_secs(7)));
    for id in [3, 422] {
        let error = error(id).await;
        assert!(matches!(error, RegistryError::Unusable { .. }), "{id}: {error}");
    }
}

#[tokio::test]
async fn one_call_serves_many_and_failures_are_not_kept() {
    let (client, script) = client().await;
    let asked = futures::future::join_all((0..20).map(|_| client.by_id(SchemaId(1)))).await;
    assert!(asked.iter().all(Result::is_ok));
    assert_eq!(script.calls(), 1);
    for _ in 0..2 {
        client.by_id(SchemaId(500)).await.unwrap_err();
    }
    assert_eq!(script.calls(), 3);
}

#[tokio::test]
async fn memory_is_bounded_in_bytes_and_holds_no_place_for_failures() {
    let (client, script) = client().await;
    let most = u32::try_from(SCHEMAS_BYTES_MAX / BIG).unwrap();
    for id in 0..most {
        client.by_id(SchemaId(10_000 + id)).await.unwrap();
    }
    assert_eq!(client.known().cells.len(), SCHEMAS_BYTES_MAX / BIG);
    let calls = script.calls();
    client.by_id(SchemaId(10_000)).await.unwrap();
    assert_eq!(script.calls(), calls);
    // One more than there is room for.
    client.by_id(SchemaId(10_000 + most)).await.unwrap();
    let held = |known: MutexGuard<'_, Known>| (known.cells.len(), known.bytes);
    assert_eq!(held(client.known()), (1, BIG));
    client.by_id(SchemaId(10_000)).await.unwrap();
    assert_eq!(script.calls(), calls + 2);
    for id in [404, 500, 6, 3] {
        client.by_id(SchemaId(id)).await.unwrap_err();
    }
    assert_eq!(client.known().cells.len(), 2);
}

#[tokio::test]
async fn a_schema_is_bounded_with_all_it_references() {
    let (client, _) = client().await;
    let error = client.by_id(SchemaId(7)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("4194304 bytes"), "{error}");
}

#[tokio::test]
async fn references_are_bounded_in_depth_and_number() {
    let (client, _) = client().await;
    for (id, count) in [(8, REFERENCE_DEPTH_MAX), (10, REFERENCES_MAX)] {
        assert_eq!(client.by_id(SchemaId(id)).await.unwrap().references.len(), count);
    }
    for id in [9, 11] {
        let error = client.by_id(SchemaId(id)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unusable { .. }), "{id}: {error}");
        assert!(error.to_string().contains("more than 256 schemas, or deeper than 16"), "{error}");
    }
}

#[tokio::test]
async fn references_types_and_subjects() {
    let (client, _) = client().await;
    assert_eq!(client.by_id(SchemaId(2)).await.unwrap().references, [referenced()]);
    assert_eq!(client.by_id(SchemaId(5)).await.unwrap().kind, "PROTOBUF");
    // Registries leave the type out where it is the first one they knew.
    assert_eq!(client.by_id(SchemaId(1)).await.unwrap().kind, "AVRO");
    assert_eq!(client.by_subject("s-value", None).await.unwrap().text, "s-value-latest");
    assert_eq!(client.by_subject("s-value", Some(4)).await.unwrap().text, "s-value-4");
}

/// Who follows a subject must know when nobody can say what is newest.
#[tokio::test]
async fn the_newest_version_has_its_number_and_no_earlier_answer_stands_in() {
    let registry = EmbeddedRegistry::start().await.unwrap();
    let client = RegistryClient::new(&plan::Registry::at(registry.url(), TIMEOUT)).unwrap();
    for number in 1..=2 {
        let id = client
            .register(
                "t-value",
                SchemaFormat::Avro,
                &format!("{{\"type\": \"fixed\", \"name\": \"F\", \"size\": {number}}}"),
            )
            .await
            .unwrap();
        let newest = client.newest("t-value").await.unwrap();
        let expected = SchemaVersion { subject: "t-value".to_owned(), id, number: Some(number) };
        assert_eq!((newest.version, newest.schema.id), (expected, SchemaKey::Id(id)));
    }
    let (plan, script) = scripted().await;
    let dir = tempfile::tempdir().unwrap();
    let client = cached(&plan, &dir);
    // This one says no number, as registries did long ago.
    assert_eq!(client.newest("s-value").await.unwrap().version.number, None);
    script.subject_status.store(503, Ordering::SeqCst);
    assert!(matches!(client.newest("s-value").await, Err(RegistryError::Unavailable { .. })));
    client.by_subject("s-value", None).await.unwrap();
    script.subject_status.store(404, Ordering::SeqCst);
    assert!(matches!(client.newest("s-value").await, Err(RegistryError::Unknown { .. })));
}

#[tokio::test]
async fn a_registry_that_is_away_is_unavailable_and_names_no_password() {
    let logins = [
        plan::Login::Basic { username: "user".to_owned(), password: "hunter2".to_owned() },
        plan::Login::Bearer { token: "hunter2".to_owned() },
    ];
    for login in logins {
        let plan = plan::Registry {
            login: Some(login),
            ..plan::Registry::at("http://127.0.0.1:1".to_owned(), TIMEOUT)
        };
        let client = RegistryClient::new(&plan).unwrap();
        let error = client.by_id(SchemaId(1)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
        assert!(!format!("{error} {error:?} {plan:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_guid_is_a_name_like_an_id_with_references_and_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, script) = scripted().await;
    let first = cached(&plan, &dir);
    let asked = futures::future::join_all((0..20).map(|_| first.by_guid(Uuid::from_u128(1)))).await;
    let known = asked[0].clone().unwrap();
    assert!(asked.iter().all(|answer| answer.as_ref() == Ok(&known)));
    assert_eq!((known.id, known.kind.as_str()), (SchemaKey::Guid(Uuid::from_u128(1)), "JSON"));
    assert_eq!(known.references, [referenced()]);
    let calls = script.calls();
    assert_eq!(calls, 2);
    assert_eq!(cached(&plan, &dir).by_guid(Uuid::from_u128(1)).await.unwrap(), known);
    assert_eq!(script.calls(), calls);
    // As from a registry that is too old for them.
    let error = first.by_guid(Uuid::from_u128(2)).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Unknown { .. }), "{error}");
    assert!(error.to_string().contains("GUID 00000000-0000-0000-0000-000000000002"), "{error}");
    let error = first.by_guid(Uuid::from_u128(3)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
}

/// An error as a log or a panic could show it, with all its causes.
fn shown(error: &RegistryError) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn logins_are_sent_and_wrong_ones_are_told_apart_without_showing_them() {
    let basic =
        |password: &str| plan::Login::Basic { username: "user".to_owned(), password: password.to_owned() };
    let bearer = |token: &str| plan::Login::Bearer { token: token.to_owned() };
    // `user:hunter2` in base64.
    for (header, right, wrong) in [
        ("Basic dXNlcjpodW50ZXIy", basic("hunter2"), [basic("hunter3"), bearer("hunter2")]),
        ("Bearer hunter2", bearer("hunter2"), [bearer("hunter3"), basic("hunter2")]),
    ] {
        let registry = EmbeddedRegistry::start_with_login(header).await.unwrap();
        let open = plan::Registry::at(registry.url(), TIMEOUT);
        let with = |login: plan::Login| plan::Registry { login: Some(login), ..open.clone() };
        let client = RegistryClient::new(&with(right)).unwrap();
        let id = client.register("s-value", SchemaFormat::Avro, "\"int\"").await.unwrap();
        assert_eq!(client.by_id(id).await.unwrap().text, "\"int\"");
        assert_eq!(client.by_subject("s-value", None).await.unwrap().id, SchemaKey::Id(id));
        let [first, second] = wrong.map(with);
        for plan in [first, second, open.clone()] {
            let client = RegistryClient::new(&plan).unwrap();
            let errors = [
                client.by_id(id).await.unwrap_err(),
                client.by_subject("s-value", None).await.unwrap_err(),
                client.register("s-value", SchemaFormat::Avro, "\"int\"").await.unwrap_err(),
            ];
            for error in errors {
                assert!(matches!(error, RegistryError::Unauthorised { status: 401, .. }), "{error}");
                let shown = format!("{} {plan:?}", shown(&error));
                assert!(!shown.contains("hunter") && !shown.contains("dXNlcjpodW50ZXI"), "{shown}");
            }
        }
    }
}

#[tokio::test]
async fn a_schema_that_is_refused_is_told_in_the_registrys_words() {
    let (client, _) = client().await;
    for subject in ["409", "422"] {
        let refused = [
            client.register(subject, SchemaFormat::Avro, "{}").await.unwrap_err(),
            client.find(subject, SchemaFormat::Protobuf, "{}").await.unwrap_err(),
            client.is_compatible(subject, SchemaFormat::JsonSchema, "{}").await.unwrap_err(),
        ];
        for error in refused {
            let RegistryError::Refused { problem, .. } = &error else { panic!("{error}") };
            assert!(problem.starts_with("Schema being registered is incompatible"), "{error}");
            assert_eq!(problem.len(), 2000);
            assert_eq!(error.fault(), Fault::Stop);
        }
    }
    let error = client.register("503", SchemaFormat::Avro, "{}").await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    let error = client.find("404", SchemaFormat::Avro, "{}").await.unwrap_err();
    assert_eq!(error.to_string(), "the schema registry has no such schema in subject `404`");
    assert!(!client.is_compatible("200", SchemaFormat::Avro, "{}").await.unwrap());
}

#[tokio::test]
async fn a_schema_that_a_subject_has_is_found() {
    let registry = EmbeddedRegistry::start().await.unwrap();
    let client = RegistryClient::new(&plan::Registry::at(registry.url(), TIMEOUT)).unwrap();
    let (avro, json) = (SchemaFormat::Avro, SchemaFormat::JsonSchema);
    assert!(matches!(client.find("s", avro, "\"int\"").await, Err(RegistryError::Unknown { .. })));
    let id = client.register("s", avro, "\"int\"").await.unwrap();
    assert_eq!(client.find("s", avro, "\"int\"").await, Ok(id));
    assert!(matches!(client.find("s", json, "\"int\"").await, Err(RegistryError::Unknown { .. })));
    assert!(client.is_compatible("s", avro, "\"long\"").await.unwrap());
}

#[tokio::test]
async fn a_cache_on_disk_saves_calls_and_brings_references() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, script) = scripted().await;
    let first = cached(&plan, &dir);
    let known = [first.by_id(SchemaId(2)).await.unwrap(), first.by_id(SchemaId(5)).await.unwrap()];
    assert_eq!(known[0].references, [referenced()]);
    let calls = script.calls();
    assert_eq!(calls, 3);
    let second = cached(&plan, &dir);
    assert_eq!(second.by_id(SchemaId(2)).await.unwrap(), known[0]);
    assert_eq!(second.by_id(SchemaId(5)).await.unwrap(), known[1]);
    assert_eq!(script.calls(), calls);
    // Subjects are asked for each time, and failures are not kept.
    for count in 1..3 {
        second.by_subject("t-value", None).await.unwrap();
        assert_eq!(script.calls(), calls + count);
    }
    second.by_id(SchemaId(404)).await.unwrap_err();
    cached(&plan, &dir).by_id(SchemaId(404)).await.unwrap_err();
    assert_eq!(script.calls(), calls + 4);
    // What is damaged is asked for again.
    let files = std::fs::read_dir(dir.path().join("v2")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(files.join("id-2.json"), "{\"version\":2").unwrap();
    assert_eq!(cached(&plan, &dir).by_id(SchemaId(2)).await.unwrap(), known[0]);
    assert_eq!(script.calls(), calls + 6);
}

#[tokio::test]
async fn only_an_outage_is_answered_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, script) = scripted().await;
    let known = cached(&plan, &dir).by_subject("s-value", None).await.unwrap();
    assert_eq!(known.references, [referenced()]);
    for (status, is_outage) in
        [(503, true), (408, true), (401, false), (403, false), (404, false), (422, false)]
    {
        script.subject_status.store(status, Ordering::SeqCst);
        let client = cached(&plan, &dir);
        match client.by_subject("s-value", None).await {
            Ok(answer) => assert!(is_outage && answer == known, "{status}"),
            Err(error) => assert!(!is_outage, "{status}: {error}"),
        }
        // Never asked for before, or nothing to remember it.
        client.by_subject("s-value", Some(4)).await.unwrap_err();
        RegistryClient::new(&plan).unwrap().by_subject("s-value", None).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_registry_that_is_gone_is_not_needed_again() {
    let dir = tempfile::tempdir().unwrap();
    let registry = EmbeddedRegistry::start_with_login("Bearer hunter2").await.unwrap();
    let login = Some(plan::Login::Bearer { token: "hunter2".to_owned() });
    let plan = plan::Registry { login, ..plan::Registry::at(registry.url(), TIMEOUT) };
    let client = cached(&plan, &dir);
    let id = client.register("s-value", SchemaFormat::Avro, "\"int\"").await.unwrap();
    let known = client.by_subject("s-value", None).await.unwrap();
    drop(registry);
    let client = cached(&plan, &dir);
    assert_eq!(client.by_subject("s-value", None).await.unwrap(), known);
    // Never asked for as an id, but known from the subject.
    assert_eq!(client.by_id(id).await.unwrap(), known);
    let without = RegistryClient::new(&plan).unwrap();
    assert!(matches!(without.by_id(id).await, Err(RegistryError::Unavailable { .. })));
    let files = std::fs::read_dir(dir.path().join("v2")).unwrap().next().unwrap().unwrap().path();
    for file in std::fs::read_dir(files).unwrap() {
        assert!(!std::fs::read_to_string(file.unwrap().path()).unwrap().contains("hunter2"));
    }
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (open, _) = scripted().await;
    let plan = plan::Registry { cache_dir: Some(file.join("cache")), ..open };
    let client = RegistryClient::with_cache(&plan).unwrap();
    assert_eq!(client.by_id(SchemaId(1)).await.unwrap().text, "\"int\"");
    assert_eq!(client.by_subject("t-value", None).await.unwrap().text, "t-value-latest");
}
