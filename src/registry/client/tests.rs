use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::json;

use super::*;

/// A registry whose schema id decides how it answers.
async fn start(calls: Arc<AtomicUsize>) -> String {
    let by_id = move |Path(id): Path<u32>, headers: HeaderMap| {
        let calls = calls.clone();
        async move {
            calls.fetch_add(1, Ordering::SeqCst);
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
    let by_subject = |Path((subject, version)): Path<(String, String)>| async move {
        let references = match subject.as_str() {
            "circle" => json!([{"name": "a.C", "subject": "circle", "version": 1}]),
            _ => json!([]),
        };
        axum::Json(json!({"schema": format!("{subject}-{version}"), "id": 9, "references": references}))
    };
    let app = Router::new()
        .route("/schemas/ids/{id}", get(by_id))
        .route("/subjects/{subject}/versions/{version}", get(by_subject));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "serves as long as the test")]
    tokio::task::spawn(async move { axum::serve(listener, app).await });
    url
}

async fn client() -> (RegistryClient, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let plan =
        plan::Registry { url: start(calls.clone()).await, basic_auth: None, timeout: Duration::from_secs(5) };
    (RegistryClient::new(&plan).unwrap(), calls)
}

#[tokio::test]
async fn four_errors_are_told_apart() {
    let (client, _) = client().await;
    let error = async |id| client.by_id(SchemaId(id)).await.unwrap_err();
    assert!(matches!(error(404).await, RegistryError::Unknown { .. }));
    assert!(matches!(error(6).await, RegistryError::Unauthorised { status: 401, .. }));
    for id in [500, 502, 503, 504, 408, 200, 302] {
        let error = error(id).await;
        assert!(matches!(error, RegistryError::Unavailable { .. }), "{id}: {error}");
    }
    let RegistryError::Unavailable { retry_after, .. } = error(429).await else { panic!() };
    assert_eq!(retry_after, Some(Duration::from_secs(7)));
    for id in [3, 4, 422] {
        let error = error(id).await;
        assert!(matches!(error, RegistryError::Unusable { .. }), "{id}: {error}");
    }
}

#[tokio::test]
async fn one_call_serves_many_and_failures_are_not_kept() {
    let (client, calls) = client().await;
    let asked = futures::future::join_all((0..20).map(|_| client.by_id(SchemaId(1)))).await;
    assert!(asked.iter().all(Result::is_ok));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    for _ in 0..2 {
        client.by_id(SchemaId(500)).await.unwrap_err();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn references_types_and_subjects() {
    let (client, _) = client().await;
    assert_eq!(client.by_id(SchemaId(2)).await.unwrap().references, ["b-3"]);
    assert_eq!(client.by_id(SchemaId(5)).await.unwrap().kind, "PROTOBUF");
    assert_eq!(client.by_subject("s-value", None).await.unwrap().text, "s-value-latest");
    assert_eq!(client.by_subject("s-value", Some(4)).await.unwrap().text, "s-value-4");
}

#[tokio::test]
async fn a_registry_that_is_away_is_unavailable_and_names_no_password() {
    let plan = plan::Registry {
        url: "http://127.0.0.1:1".to_owned(),
        basic_auth: Some(plan::BasicAuth { username: "user".to_owned(), password: "hunter2".to_owned() }),
        timeout: Duration::from_secs(5),
    };
    let client = RegistryClient::new(&plan).unwrap();
    let error = client.by_id(SchemaId(1)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    assert!(!format!("{error} {error:?} {plan:?}").contains("hunter2"));
}
