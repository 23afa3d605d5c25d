use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use uuid::Uuid;

use super::*;
use crate::config::plan::{self, ClientCertificate};

/// Longer than any answer takes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How a node answers, and what it was asked.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    /// Statuses of the next answers; those after them are good.
    statuses: Vec<u16>,
    /// What all answers but good ones say beside.
    retry_after: Option<u64>,
    /// Paths and queries.
    asked: Vec<String>,
}

impl Script {
    fn next(&self, statuses: impl IntoIterator<Item = u16>) {
        self.0.lock().unwrap().statuses = statuses.into_iter().collect();
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

async fn answer(State(script): State<Script>, uri: Uri) -> Response {
    let mut told = script.0.lock().unwrap();
    told.asked.push(uri.to_string());
    if !told.statuses.is_empty() {
        let status = StatusCode::from_u16(told.statuses.remove(0)).unwrap();
        let headers = told.retry_after.map(|seconds| [("retry-after", seconds.to_string())]);
        return (status, headers, "oops").into_response();
    }
    let path = uri.path();
    let answer = if path.ends_with("/ids") {
        json!([{"context": ".other", "id": 9}, {"context": ".staging", "id": 4}, {"context": ".", "id": 5}])
    } else if path.contains("/ids/") && path.ends_with("/versions") {
        json!([{"subject": ":.staging:b", "version": 1}, {"subject": "a", "version": 1},
               {"subject": ":.staging:b", "version": 2}])
    } else {
        json!({"schema": "\"int\"", "id": 7})
    };
    Json(answer).into_response()
}

/// A node that ends when it is dropped.
struct Node {
    url: String,
    script: Script,
    _server: JoinSet<()>,
}

impl Node {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self::serve(url, listener)
    }

    /// With TLS, at 127.0.0.1; `wants` says whether callers need a certificate.
    async fn start_with_tls(wants: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        Self::serve(url, Tls { listener, acceptor: TlsAcceptor::from(Arc::new(tls(wants))) })
    }

    fn serve(url: String, listener: impl Listener<Addr = SocketAddr>) -> Self {
        let script = Script::default();
        let app = Router::new().fallback(answer).with_state(script.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, script, _server: server }
    }
}

fn of(urls: &[&str]) -> plan::Registry {
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    plan::Registry { urls, ..plan::Registry::at(String::new(), TIMEOUT) }
}

async fn ask(client: &RegistryClient, id: u32) -> Result<String, RegistryError> {
    client.by_id(SchemaId(id)).await.map(|schema| schema.text)
}

fn is_away<T>(answer: &Result<T, RegistryError>) -> bool {
    matches!(answer, Err(RegistryError::Unavailable { .. }))
}

#[tokio::test]
async fn the_node_that_answers_is_asked_until_it_does_not() {
    let (first, second) = (Node::start().await, Node::start().await);
    let client = RegistryClient::new(&of(&["http://127.0.0.1:1", &first.url, &second.url])).unwrap();
    let counts = || (first.script.asked().len(), second.script.asked().len());
    assert_eq!((ask(&client, 1).await.is_ok(), counts()), (true, (1, 0)));
    for status in [500, 502, 503, 504, 408, 302] {
        first.script.next([status]);
        let id = u32::from(status);
        assert_eq!((ask(&client, id).await.is_ok(), counts()), (true, (1, 1)), "{status}");
        // It stays with the second, until that one is away too.
        assert_eq!((ask(&client, id + 1000).await.is_ok(), counts()), (true, (0, 1)), "{status}");
        second.script.next([503]);
        assert_eq!((ask(&client, id + 2000).await.is_ok(), counts()), (true, (1, 1)), "{status}");
    }
    // Those are answers.
    for status in [401, 403, 404, 422, 429] {
        first.script.next([status]);
        assert!(ask(&client, 1000 + u32::from(status)).await.is_err());
        assert_eq!(counts(), (1, 0), "{status}");
    }
}

#[tokio::test]
async fn when_no_node_answers_each_is_named_with_what_is_wrong() {
    let (first, second) = (Node::start().await, Node::start().await);
    let client = RegistryClient::new(&of(&[&first.url, &second.url, "http://127.0.0.1:1"])).unwrap();
    for (node, seconds) in [(&first, 9), (&second, 7)] {
        node.script.next([503]);
        node.script.0.lock().unwrap().retry_after = Some(seconds);
    }
    let error = ask(&client, 1).await.unwrap_err();
    let RegistryError::Unavailable { retry_after, problem, .. } = &error else { panic!("{error}") };
    assert_eq!(*retry_after, Some(Duration::from_secs(7)));
    for part in [&first.url["http://".len()..], &second.url["http://".len()..], "127.0.0.1:1: ", "503"] {
        assert!(problem.contains(part), "no {part} in {problem}");
    }
    // Nothing of it is kept.
    assert_eq!(ask(&client, 1).await.unwrap(), "\"int\"");
}

#[tokio::test]
async fn bodies_go_to_every_node_that_is_tried() {
    let (first, second) = (Node::start().await, Node::start().await);
    first.script.next([503]);
    let client = RegistryClient::new(&of(&[&first.url, &second.url])).unwrap();
    assert_eq!(client.register("a/b", SchemaFormat::Avro, "\"int\"").await.unwrap(), SchemaId(7));
    for node in [first, second] {
        assert_eq!(node.script.asked(), ["/subjects/a%2Fb/versions"]);
    }
}

#[tokio::test]
async fn ids_and_subjects_are_those_of_the_context() {
    let node = Node::start().await;
    let url = format!("{}/api/contexts/:.staging:", node.url);
    let client = RegistryClient::new(&of(&["http://127.0.0.1:1/x/contexts/:.staging:", &url])).unwrap();
    client.by_id(SchemaId(3)).await.unwrap();
    client.by_subject("t-value", Some(2)).await.unwrap();
    let asked = ["/schemas/ids/3?deleted=true", "/subjects/t-value/versions/2"];
    assert_eq!(node.script.asked(), asked.map(|path| format!("/api/contexts/:.staging:{path}")));
    assert_eq!(client.subjects_of(SchemaId(3).into()).await.unwrap(), ["a", "b"]);
    let asked = "/api/contexts/:.staging:/schemas/ids/3/versions?deleted=true";
    assert_eq!(node.script.asked(), [asked]);
    // A GUID is that of one schema in all contexts; ids are not.
    let guid = SchemaKey::Guid(Uuid::from_u128(1));
    client.subjects_of(guid).await.unwrap();
    assert_eq!(node.script.asked()[1], asked.replace("/3/", "/4/"));
    RegistryClient::new(&of(&[&node.url])).unwrap().subjects_of(guid).await.unwrap();
    assert_eq!(node.script.asked()[1], "/schemas/ids/5/versions?deleted=true");
}

#[tokio::test]
async fn a_login_that_works_again_is_enough() {
    let node = Node::start().await;
    let client = RegistryClient::new(&of(&[&node.url])).unwrap();
    node.script.next([401, 403]);
    for status in [401, 403] {
        let error = ask(&client, 1).await.unwrap_err();
        assert_eq!(error, RegistryError::Unauthorised { what: "schema id 1".to_owned(), status });
        assert_eq!(error.fault(), Fault::Transient);
    }
    assert_eq!(ask(&client, 1).await.unwrap(), "\"int\"");
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_said_to_be_one() {
    let node = Node::start().await;
    let client = RegistryClient::new(&of(&[&node.url])).unwrap();
    node.script.next([301]);
    let error = ask(&client, 1).await.unwrap_err();
    assert!(error.to_string().contains("redirects are not followed"), "{error}");
    assert_eq!(node.script.asked().len(), 1);
}

/// A node that takes a call, answers with `start`, and then waits.
fn stuck(start: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut call = [0; 4096];
        assert!(stream.read(&mut call).unwrap() > 0);
        stream.write_all(start.as_bytes()).unwrap();
        // Until the caller has given up.
        std::io::copy(&mut stream, &mut std::io::sink()).ok();
    });
    url
}

#[tokio::test]
async fn a_call_has_a_time_limit_body_included_and_the_next_node_is_tried() {
    for start in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"schema\":"] {
        let limit = Duration::from_millis(300);
        let alone = plan::Registry { timeout: limit, ..of(&[&stuck(start)]) };
        let before = Instant::now();
        assert!(is_away(&ask(&RegistryClient::new(&alone).unwrap(), 1).await), "{start:?}");
        assert!(before.elapsed() >= limit);
        let node = Node::start().await;
        let both = plan::Registry { timeout: limit, ..of(&[&stuck(start), &node.url]) };
        assert_eq!(ask(&RegistryClient::new(&both).unwrap(), 1).await.unwrap(), "\"int\"");
    }
}

#[tokio::test]
async fn only_schemas_that_are_not_there_are_asked_for_slowly() {
    let node = Node::start().await;
    let client = RegistryClient::new(&of(&[&node.url])).unwrap();
    // More than the bucket holds; each found gives its token back.
    let found = futures::future::join_all((1..400).map(|id| ask(&client, id))).await;
    assert!(found.iter().all(Result::is_ok));
    node.script.next(std::iter::repeat_n(404, 110));
    let before = Instant::now();
    let unknown = futures::future::join_all((1000..1110).map(|id| ask(&client, id))).await;
    assert!(unknown.iter().all(|answer| matches!(answer, Err(RegistryError::Unknown { .. }))));
    assert!(before.elapsed() >= Duration::from_millis(200));
    // A good one waits for its turn, and is not refused.
    assert_eq!(ask(&client, 2000).await.unwrap(), "\"int\"");
}

fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "tls", name].iter().collect()
}

fn tls(wants: bool) -> ServerConfig {
    let certificate = |name| CertificateDer::from_pem_file(file(name)).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = if wants {
        let mut roots = RootCertStore::empty();
        roots.add(certificate("ca.pem")).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::from_pem_file(file("server-key.pem")).unwrap();
    builder.with_single_cert(vec![certificate("server.pem")], key).unwrap()
}

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // Callers that do not trust us go away here.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[tokio::test]
async fn https_needs_an_authority_we_trust_and_the_right_name() {
    let node = Node::start_with_tls(false).await;
    let trusting = |ca: &str, url: &str| plan::Registry { ca_file: Some(file(ca)), ..of(&[url]) };
    let client = RegistryClient::new(&trusting("ca.pem", &node.url)).unwrap();
    assert_eq!(ask(&client, 1).await.unwrap(), "\"int\"");
    assert_eq!(client.register("t", SchemaFormat::Avro, "\"int\"").await.unwrap(), SchemaId(7));
    assert_eq!(client.subjects_of(SchemaId(1).into()).await.unwrap(), ["a", "b"]);
    // The certificate is for the address.
    let by_name = node.url.replace("127.0.0.1", "localhost");
    for plan in [trusting("other-ca.pem", &node.url), of(&[&node.url]), trusting("ca.pem", &by_name)] {
        let client = RegistryClient::new(&plan).unwrap();
        let error = ask(&client, 1).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Transient);
        let (said, hint) = (error.to_string(), error.hint().unwrap());
        assert!(said.contains("certificate") && hint.contains("ca_file"), "{said}\nhint: {hint}");
    }
    // Spoken to without TLS it does not answer; that is no matter of certificates.
    let plain = RegistryClient::new(&of(&[&node.url.replace("https", "http")])).unwrap();
    assert!(is_away(&ask(&plain, 1).await));
}

#[tokio::test]
async fn a_registry_that_wants_our_certificate_gets_it() {
    let node = Node::start_with_tls(true).await;
    let without = plan::Registry { ca_file: Some(file("ca.pem")), ..of(&[&node.url]) };
    // What exactly is wrong is told after the handshake, and sometimes not at all.
    let error = ask(&RegistryClient::new(&without).unwrap(), 1).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    let files = ClientCertificate { certificate: file("client.pem"), key: file("client-key.pem") };
    let with = plan::Registry { client_certificate: Some(files), ..without };
    let client = RegistryClient::new(&with).unwrap();
    assert_eq!(ask(&client, 1).await.unwrap(), "\"int\"");
    assert_eq!(client.subjects_of(SchemaId(1).into()).await.unwrap(), ["a", "b"]);
}

#[test]
fn hints_say_who_must_act() {
    let away = |problem: &str| RegistryError::Unavailable {
        what: "it".to_owned(),
        problem: problem.to_owned(),
        retry_after: None,
    };
    for (error, expected) in [
        (away("invalid peer certificate: UnknownIssuer"), "ca_file"),
        (away("received fatal alert: CertificateRequired"), "client_cert_file"),
        (away("HTTP 503"), "that the registry is up"),
        (RegistryError::Unauthorised { what: "it".to_owned(), status: 401 }, "basic_auth"),
        (RegistryError::Unknown { what: "it".to_owned() }, "the registry the producers use"),
        (RegistryError::Foreign { schema: SchemaId(1).into(), subjects: "`s`".to_owned() }, "allow_ids: any"),
    ] {
        let hint = error.hint().unwrap();
        assert!(hint.contains(expected), "{error}: {hint}");
    }
}

#[test]
fn a_run_that_has_an_end_waits_for_a_refusal_a_minute_and_for_an_outage_ten() {
    let what = || "schema id 7".to_owned();
    let refused = RegistryError::Unauthorised { what: what(), status: 403 };
    let away = RegistryError::Unavailable { what: what(), problem: "no".to_owned(), retry_after: None };
    let unknown = RegistryError::Unknown { what: what() };
    for (seconds, is_refused, is_away) in
        [(0, false, false), (59, false, false), (60, true, false), (599, true, false), (600, true, true)]
    {
        let waited = Duration::from_secs(seconds);
        assert_eq!(refused.is_given_up(waited), is_refused, "{seconds} s");
        assert_eq!(away.is_given_up(waited), is_away, "{seconds} s");
        assert!(!unknown.is_given_up(waited));
    }
}
