//! A small registry in memory with the Confluent API: for the demo and for tests. It checks no
//! compatibility and forgets everything when it ends. It can ask for a login.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use uuid::Uuid;

/// A running registry; it ends when this is dropped.
pub struct EmbeddedRegistry {
    address: SocketAddr,
    _server: JoinSet<()>,
}

#[derive(Clone, Default)]
struct Store(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    /// By id − 1.
    schemas: Vec<Registered>,
    /// Ids by subject, in the order of versions.
    subjects: BTreeMap<String, Vec<usize>>,
}

/// A schema as it was registered. Equal ones share an id.
#[derive(Clone, PartialEq, Deserialize, Serialize)]
struct Registered {
    schema: String,
    #[serde(rename = "schemaType", default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    references: Vec<Value>,
}

impl Registered {
    /// From the body of a request: its content type is not application/json, so it is read by hand.
    fn parse(body: &str) -> Result<Self, serde_json::Error> {
        let mut schema: Self = serde_json::from_str(body)?;
        // As Confluent has it: a schema without a type is Avro.
        schema.kind = schema.kind.filter(|kind| kind != "AVRO");
        Ok(schema)
    }

    /// Confluent Platform 8 gives every schema a GUID; ours is derived from the schema.
    fn guid(&self) -> Uuid {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(json!(self).to_string().as_bytes());
        Uuid::from_slice(&digest[..16]).unwrap_or_default()
    }
}

impl EmbeddedRegistry {
    /// Starts on a free port of the loopback interface.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start() -> std::io::Result<Self> {
        Self::serve(None).await
    }

    /// As [`Self::start`]; whoever does not send exactly this `Authorization` header is refused.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start_with_login(authorization: &str) -> std::io::Result<Self> {
        Self::serve(Some(Arc::from(authorization))).await
    }

    async fn serve(authorization: Option<Arc<str>>) -> std::io::Result<Self> {
        let mut app: Router = Router::new()
            .route("/subjects", get(subjects))
            .route("/subjects/{subject}", post(look_up))
            .route("/subjects/{subject}/versions", post(register).get(versions))
            .route("/compatibility/subjects/{subject}/versions", post(is_compatible))
            .route("/subjects/{subject}/versions/{version}", get(by_version))
            .route("/schemas/ids/{id}", get(by_id))
            .route("/schemas/ids/{id}/versions", get(versions_of_id))
            .route("/schemas/ids/{id}/subjects", get(subjects_of_id))
            .route("/schemas/guids/{guid}", get(by_guid))
            .route("/schemas/guids/{guid}/ids", get(ids_of_guid))
            .with_state(Store::default());
        if let Some(authorization) = authorization {
            app = app.layer(middleware::from_fn_with_state(authorization, admit));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut server = JoinSet::new();
        server.spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the embedded registry ended");
            }
        });
        Ok(Self { address, _server: server })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Content {
    /// The answer for a version of a subject.
    fn version(&self, subject: &str, number: usize, index: usize) -> Response {
        let schema = &self.schemas[index];
        let mut answer = json!(schema);
        answer["subject"] = json!(subject);
        answer["version"] = json!(number);
        answer["id"] = json!(index + 1);
        answer["guid"] = json!(schema.guid());
        Json(answer).into_response()
    }

    /// Subjects and versions that have an id.
    fn having(&self, id: usize) -> Vec<(&str, usize)> {
        let all = self.subjects.iter();
        let having = all.filter_map(|(subject, versions)| {
            let place = versions.iter().position(|index| index + 1 == id)?;
            Some((subject.as_str(), place + 1))
        });
        having.collect()
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn admit(State(authorization): State<Arc<str>>, request: Request, next: Next) -> Response {
    let given = request.headers().get("authorization");
    if given.is_some_and(|given| given.as_bytes() == authorization.as_bytes()) {
        return next.run(request).await;
    }
    let answer = json!({"error_code": 40101, "message": "Unauthorized"});
    (StatusCode::UNAUTHORIZED, Json(answer)).into_response()
}

fn not_found(code: u32, message: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({"error_code": code, "message": message}))).into_response()
}

fn unprocessable(error: &serde_json::Error) -> Response {
    let answer = json!({"error_code": 42201, "message": error.to_string()});
    (StatusCode::UNPROCESSABLE_ENTITY, Json(answer)).into_response()
}

async fn subjects(State(store): State<Store>) -> Json<Vec<String>> {
    Json(store.lock().subjects.keys().cloned().collect())
}

async fn register(State(store): State<Store>, Path(subject): Path<String>, body: String) -> Response {
    let schema = match Registered::parse(&body) {
        Ok(schema) => schema,
        Err(error) => return unprocessable(&error),
    };
    let guid = schema.guid();
    let mut content = store.lock();
    let known = content.schemas.iter().position(|known| *known == schema);
    let index = known.unwrap_or_else(|| {
        content.schemas.push(schema);
        content.schemas.len() - 1
    });
    let versions = content.subjects.entry(subject).or_default();
    if !versions.contains(&index) {
        versions.push(index);
    }
    Json(json!({"id": index + 1, "guid": guid})).into_response()
}

async fn versions(State(store): State<Store>, Path(subject): Path<String>) -> Response {
    match store.lock().subjects.get(&subject) {
        Some(versions) => Json((1..=versions.len()).collect::<Vec<_>>()).into_response(),
        None => not_found(40401, "Subject not found."),
    }
}

async fn by_version(
    State(store): State<Store>,
    Path((subject, version)): Path<(String, String)>,
) -> Response {
    let content = store.lock();
    let Some(versions) = content.subjects.get(&subject) else {
        return not_found(40401, "Subject not found.");
    };
    let number = match version.as_str() {
        "latest" => Some(versions.len()),
        text => text.parse().ok(),
    };
    let found = number.and_then(|number: usize| Some((number, *versions.get(number.checked_sub(1)?)?)));
    let Some((number, index)) = found else {
        return not_found(40402, "Version not found.");
    };
    content.version(&subject, number, index)
}

/// Everything is: there are no rules here.
async fn is_compatible() -> Json<Value> {
    Json(json!({"is_compatible": true}))
}

/// Is this schema registered under the subject?
async fn look_up(State(store): State<Store>, Path(subject): Path<String>, body: String) -> Response {
    let schema = match Registered::parse(&body) {
        Ok(schema) => schema,
        Err(error) => return unprocessable(&error),
    };
    let content = store.lock();
    let Some(versions) = content.subjects.get(&subject) else {
        return not_found(40401, "Subject not found.");
    };
    match versions.iter().position(|index| content.schemas[*index] == schema) {
        Some(place) => content.version(&subject, place + 1, versions[place]),
        None => not_found(40403, "Schema not found"),
    }
}

async fn versions_of_id(State(store): State<Store>, Path(id): Path<usize>) -> Response {
    let content = store.lock();
    match content.having(id) {
        versions if versions.is_empty() => not_found(40403, "Schema not found"),
        versions => {
            let each = |(subject, version): (&str, usize)| json!({"subject": subject, "version": version});
            Json(versions.into_iter().map(each).collect::<Vec<_>>()).into_response()
        }
    }
}

async fn subjects_of_id(State(store): State<Store>, Path(id): Path<usize>) -> Response {
    let content = store.lock();
    match content.having(id) {
        versions if versions.is_empty() => not_found(40403, "Schema not found"),
        versions => {
            Json(versions.into_iter().map(|(subject, _)| subject).collect::<Vec<_>>()).into_response()
        }
    }
}

async fn ids_of_guid(State(store): State<Store>, Path(guid): Path<Uuid>) -> Response {
    let content = store.lock();
    match content.schemas.iter().position(|schema| schema.guid() == guid) {
        // There is one context only.
        Some(index) => Json(json!([{"context": ".", "id": index + 1}])).into_response(),
        None => not_found(40403, "Schema not found"),
    }
}

async fn by_id(State(store): State<Store>, Path(id): Path<usize>) -> Response {
    let content = store.lock();
    match id.checked_sub(1).and_then(|index| content.schemas.get(index)) {
        Some(schema) => Json(schema).into_response(),
        None => not_found(40403, "Schema not found"),
    }
}

async fn by_guid(State(store): State<Store>, Path(guid): Path<Uuid>) -> Response {
    let content = store.lock();
    match content.schemas.iter().find(|schema| schema.guid() == guid) {
        Some(schema) => Json(schema).into_response(),
        None => not_found(40403, "Schema not found"),
    }
}
