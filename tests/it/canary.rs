use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::support::program::{Finished, Workplace, eventually};
use crate::support::{self, Services, data};

/// In every key, value and header, and every password: nothing else in these tests is called so.
const CANARY: &str = "canary7f3e91";

/// As it is in numbers.
const NUMBER: &str = "918273645546372819";

/// Neither as it is nor as logins are sent.
#[track_caller]
fn assert_silent(what: &str, text: &str) {
    let login = STANDARD.encode(format!("someone:{CANARY}"));
    for secret in [CANARY, NUMBER, &login] {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{what}: {}", line.unwrap_or_default());
    }
}

/// Writes records that have the canary everywhere.
fn produce(services: &Services, topic: &str, values: &[Vec<u8>]) {
    let mut config = ClientConfig::new();
    let producer: BaseProducer = config.set("bootstrap.servers", &services.bootstrap).create().unwrap();
    for value in values {
        let headers = OwnedHeaders::new().insert(Header { key: CANARY, value: Some(CANARY) });
        let record =
            BaseRecord::to(topic).partition(0).key(CANARY).payload(value.as_slice()).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// Of the records that are Avro, and of those that are JSON.
fn schema() -> Value {
    json!({"type": "record", "name": "Order", "fields": [
        {"name": "id", "type": "long"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A"]}},
        {"name": "note", "type": ["null", "string"]}
    ]})
}

/// Topics whose records fail in every way that we know of.
struct Topics {
    avro: String,
    json: String,
    text: String,
    numbers: String,
}

impl Topics {
    fn fill(services: &Services) -> Self {
        let topics =
            ["avro", "json", "text", "numbers"].map(|name| support::unique(&format!("canary-{name}")));
        data::create_topics(services, &topics);
        let [avro, json, text, numbers] = topics;
        let id = data::register(services, &format!("{avro}-value"), &schema());
        let framed = |payload: &[u8]| [&[0_u8][..], &id.to_be_bytes(), payload].concat();
        produce(
            services,
            &avro,
            &[
                // No frame, too short for one, and bytes that are no such record.
                CANARY.into(),
                vec![0, b'c'],
                framed(CANARY.as_bytes()),
                framed(&[2, 0]),
                framed(&[2, 0, 0, b'c', b'a']),
                // A text that is not UTF-8.
                framed(&[&[2_u8, 0, 2, 26][..], CANARY.as_bytes(), &[0xff]].concat()),
            ],
        );
        let bad: [String; 6] = [
            CANARY.to_owned(),
            format!("{{\"id\": {CANARY}}}"),
            format!("{{\"id\": \"{CANARY}\", \"kind\": \"A\", \"note\": null}}"),
            format!("{{\"id\": 1, \"kind\": \"{CANARY}\", \"note\": null}}"),
            format!("{{\"id\": {NUMBER}{NUMBER}, \"kind\": \"A\", \"note\": null}}"),
            format!("{{\"id\": 1, \"kind\": \"A\", \"note\": {{\"{CANARY}\": 1}}}}"),
        ];
        let good = json!({"id": 1, "kind": "A", "note": CANARY}).to_string();
        let values: Vec<Vec<u8>> = bad.into_iter().chain([good]).map(String::into_bytes).collect();
        produce(services, &json, &values);
        // Quotes and a parenthesis, for texts that put it between quotes, and for regular expressions.
        produce(services, &text, &[format!("('{CANARY} it's {CANARY}").into_bytes()]);
        produce(services, &numbers, &[NUMBER.into()]);
        Self { avro, json, text, numbers }
    }

    fn routes(&self, services: &Services) -> Workplace {
        let Self { avro, json, text, numbers } = self;
        let group = support::unique("group");
        let mut routes = format!(
            "version: 1
kafka: {{bootstrap.servers: \"{}\", group.id: {group}}}
schema_registry: {{url: \"{}\"}}
defaults: {{start: earliest}}
routes:
  skipped: {{topics: [{avro}], bad_records: skip, sinks: {{all: {{jsonl: {{path: out/skipped}}}}}}}}
  stopped: {{topics: [{avro}], bad_records: stop, sinks: {{all: {{jsonl: {{path: out/stopped}}}}}}}}
  documents:
    topics: [{json}]
    value: {{json: {{schema: {{file: order.avsc}}}}}}
    bad_records: skip
    sinks: {{all: {{jsonl: {{path: out/documents}}}}}}
  keys:
    topics: [{json}]
    value: bytes
    key: {{json: {{schema: {{file: key.avsc}}}}}}
    bad_records: stop
    sinks: {{all: {{jsonl: {{path: out/keys}}}}}}
",
            services.bootstrap, services.registry
        );
        for (name, topic, sql) in [
            ("cast", text, "CAST(value AS INT)"),
            ("time", text, "to_timestamp(value)"),
            ("decimal", text, "CAST(value AS DECIMAL(10, 2))"),
            ("regex", text, "regexp_like('a', value)"),
            ("narrow", numbers, "CAST(CAST(value AS BIGINT) AS INT)"),
        ] {
            routes.push_str(&format!(
                "  {name}:
    topics: [{topic}]
    value: string
    views: {{one: \"SELECT {sql} AS one FROM batch\"}}
    sinks: {{all: {{from: one, jsonl: {{path: out/{name}}}}}}}
"
            ));
        }
        for (name, sql) in [("parts", "CAST(value AS INT)"), ("long", "repeat(value, 100)")] {
            routes.push_str(&format!(
                "  {name}:
    topics: [{text}]
    value: string
    views: {{one: SELECT value FROM batch}}
    sinks: {{all: {{from: one, csv: {{path: out/{name}, partition_by: {{part: \"{sql}\"}}}}}}}}
"
            ));
        }
        let place = Workplace::new(&routes);
        std::fs::write(place.path("order.avsc"), schema().to_string()).unwrap();
        std::fs::write(place.path("key.avsc"), "\"long\"").unwrap();
        place
    }
}

/// Those whose first record cannot be got past.
const STOPPED: [&str; 9] = ["stopped", "keys", "cast", "time", "decimal", "regex", "narrow", "parts", "long"];

/// The lines of a JSON log that say `message`.
fn said(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

fn routes_of(lines: &[Value]) -> BTreeSet<&str> {
    lines.iter().filter_map(|line| line["route"].as_str()).collect()
}

#[test]
fn what_is_wrong_with_records_is_told_without_what_is_in_them() {
    let Some(services) = support::services("what_is_wrong_with_records_is_told_without_what_is_in_them")
    else {
        return;
    };
    let _turn = support::turn();
    let topics = Topics::fill(&services);

    let finished = topics.routes(&services).run(&["run", "--until", "latest"]).expect_code(1);
    let Finished { stdout, stderr, .. } = &finished;
    assert_silent("what is printed", stdout);
    assert_silent("the log as JSON", stderr);
    // It happened, and the log says where.
    let stopped = said(stderr, "route stopped");
    assert_eq!(routes_of(&stopped), BTreeSet::from(STOPPED), "{stderr}");
    for line in &stopped {
        let topic = line["topic"].as_str().unwrap_or_else(|| panic!("{line}"));
        assert!(topic.starts_with("canary-"), "{line}");
        assert_eq!((&line["partition"], &line["offset"]), (&json!(0), &json!(0)), "{line}");
    }
    let cast = stopped.iter().find(|line| line["route"] == "cast").unwrap();
    let error = cast["error"].as_str().unwrap();
    assert!(error.contains("Cannot cast string … to value of Int32 type"), "{error}");
    let skipped = said(stderr, "bad records skipped");
    assert_eq!(routes_of(&skipped), BTreeSet::from(["skipped", "documents"]), "{stderr}");
    let count = |route: &str| {
        let of_route = skipped.iter().filter(|line| line["route"] == route);
        of_route.map(|line| line["count"].as_u64().unwrap()).sum::<u64>()
    };
    // Each kind at least once; what comes in another batch is counted when a minute is over.
    assert!((5..=6).contains(&count("skipped")) && (1..=6).contains(&count("documents")), "{stderr}");

    let finished = topics.routes(&services).run_on_terminal(&["run", "--until", "latest"]).expect_code(1);
    let Finished { stdout, stderr, .. } = &finished;
    assert_silent("the log as text", stdout);
    assert_silent("what `script` says", stderr);
    // The table, which comes after the log, has a route of the name `stopped`.
    let logged = stdout.lines().filter(|line| line.contains("route stopped") && !line.starts_with("route "));
    assert_eq!(logged.count(), STOPPED.len(), "{stdout}");
    assert!(stdout.contains("bad records skipped"), "{stdout}");
}

/// Answers every request with 401 and a text that has the canary; what it was asked is kept.
fn refusing_registry() -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(String::new()));
    let kept = asked.clone();
    // As long as the test process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or_default();
            kept.lock().unwrap().push_str(&String::from_utf8_lossy(&request[..length]));
            let body = format!("{{\"error_code\": 401, \"message\": \"not {CANARY}\"}}");
            let head = "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\nconnection: close";
            let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            // Whoever asked may be gone.
            stream.write_all(answer.as_bytes()).ok();
        }
    });
    (url, asked)
}

/// A service with these settings, until it says `expected`.
fn log_of(routes: &str, expected: &str) -> String {
    let place = Workplace::new(routes);
    let mut service = place.start(&["run"]);
    eventually(expected, || service.log().contains(expected));
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    service.log()
}

#[test]
fn a_registry_that_refuses_us_does_not_bring_the_login_into_the_log() {
    let name = "a_registry_that_refuses_us_does_not_bring_the_login_into_the_log";
    let Some(services) = support::services(name) else {
        return;
    };
    let _turn = support::turn();
    let topic = support::unique("canary-refused");
    data::create_topic(&services, &topic, 1);
    for (login, sent) in [
        (
            format!("basic_auth: {{username: someone, password: {CANARY}}}"),
            STANDARD.encode(format!("someone:{CANARY}")),
        ),
        (format!("bearer_token: {CANARY}"), CANARY.to_owned()),
    ] {
        let (url, asked) = refusing_registry();
        let group = support::unique("group");
        let routes = format!(
            "version: 1
kafka: {{bootstrap.servers: \"{}\", group.id: {group}}}
schema_registry: {{url: \"{url}\", {login}}}
routes:
  orders: {{topics: [{topic}], sinks: {{all: {{jsonl: {{path: out/orders}}}}}}}}
",
            services.bootstrap
        );
        let log = log_of(&routes, "refuses us");
        assert_silent("the log", &log);
        assert!(asked.lock().unwrap().contains(&sent), "the login was never sent");
    }
}

#[test]
fn brokers_that_cannot_be_reached_do_not_bring_passwords_into_the_log() {
    let Some(services) =
        support::services("brokers_that_cannot_be_reached_do_not_bring_passwords_into_the_log")
    else {
        return;
    };
    // Nobody listens, and somebody who knows of no login.
    for (bootstrap, mechanism) in [("127.0.0.1:1", "PLAIN"), (services.bootstrap.as_str(), "SCRAM-SHA-256")] {
        let routes = format!(
            "version: 1
kafka:
  bootstrap.servers: \"{bootstrap}\"
  group.id: canary
  security.protocol: SASL_PLAINTEXT
  sasl.mechanism: {mechanism}
  sasl.username: someone
  sasl.password: {CANARY}
  ssl.key.password: {CANARY}
routes:
  orders: {{topics: [orders], value: string, sinks: {{all: {{jsonl: {{path: out/orders}}}}}}}}
"
        );
        assert_silent("the log", &log_of(&routes, "waiting for the brokers"));
    }
}

/// Of a file that is wrong everywhere secrets can be.
#[test]
fn what_is_wrong_with_the_file_is_told_without_its_secrets() {
    let routes = format!(
        "version: 1
kafka:
  bootstrap.servers: localhost:1
  group.id: g
  sasl.password: [{CANARY}]
  sasl.pasword: {CANARY}
schema_registry:
  url: http://someone:{CANARY}@localhost:1
  basic_auth: {{username: someone, pasword: {CANARY}}}
  bearer_token: {CANARY} {CANARY}
routes:
  orders: {{topics: [orders], value: string, sinks: {{all: {{jsonl: {{path: out/orders}}}}}}}}
"
    );
    let place = Workplace::new(&routes);
    for finished in [place.run(&["check", "--offline"]), place.run_on_terminal(&["check", "--offline"])] {
        let finished = finished.expect_code(2);
        assert_silent("problems", &finished.stderr);
        assert_silent("problems", &finished.stdout);
        let shown = format!("{}{}", finished.stdout, finished.stderr);
        assert!(shown.contains("holds a user or a password") && shown.contains("the token is"), "{shown}");
    }
}
