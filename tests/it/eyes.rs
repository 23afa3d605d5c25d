use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually};
use crate::support::{self, Services};

/// What must not be on any page: a password of the file, and what is in records.
const PASSWORD: &str = "canary-password";
const PAYLOAD: &str = "canary-payload";

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn routes(bootstrap: &str, group: &str, port: u16, text: &str) -> String {
    format!(
        "version: 1\nkafka:\n  bootstrap.servers: \"{bootstrap}\"\n  group.id: {group}\n  session.timeout.ms: 2000\n  \
         heartbeat.interval.ms: 300\n  sasl.password: {PASSWORD}\n  topic.metadata.propagation.max.ms: 500\n\
         schema_registry: {{url: \"http://127.0.0.1:1\", basic_auth: {{username: me, password: {PASSWORD}}}}}\n\
         admin: {{listen: \"127.0.0.1:{port}\"}}\nroutes:\n{text}"
    )
}

/// Status and body of a page; `None` as long as nobody answers.
fn get(port: u16, path: &str, accept: &str) -> Option<(u16, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let url = format!("http://127.0.0.1:{port}{path}");
        let answer = client.get(url).header("accept", accept).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.text().await.ok()?))
    })
}

/// The samples of the page of metrics, by name with labels.
fn samples(port: u16) -> BTreeMap<String, f64> {
    let Some((200, page)) = get(port, "/metrics", "*/*") else {
        return BTreeMap::new();
    };
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Looks once: every record that was read is somewhere. The sample of a name, or 0.
fn look(port: u16, route: &str, name: &str) -> f64 {
    let samples = samples(port);
    let of = |name: &str| samples.get(&format!("{name}{{route=\"{route}\"}}")).copied().unwrap_or_default();
    let prefix = format!("sidestream_records_bad_total{{route=\"{route}\",");
    let bad: f64 = samples.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, bad)| bad).sum();
    let known = of("sidestream_records_settled_total")
        + bad
        + of("sidestream_records_dropped_total")
        + of("sidestream_records_abandoned_total")
        + of("sidestream_records_in_flight");
    assert_eq!(of("sidestream_records_read_total"), known, "{samples:?}");
    of(name)
}

fn produce(services: &Services, topic: &str, values: impl Iterator<Item = String>) {
    data::produce(services, topic, values.map(|value| Record::new(0, value.into_bytes())));
}

/// `promtool check metrics`, where there is one.
fn check_with_promtool(port: u16) {
    let (_, page) = get(port, "/metrics", "*/*").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), page).unwrap();
    let input = std::fs::File::open(file.path()).unwrap();
    let command =
        Command::new("promtool").args(["check", "metrics"]).stdin(input).stderr(Stdio::piped()).output();
    match command {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => support::without("promtool (Debian: apt install prometheus)", &error.to_string()),
    }
}

#[test]
fn a_service_tells_how_it_is_and_a_stopped_route_is_not_ready() {
    let Some(services) = support::services("a_service_tells_how_it_is_and_a_stopped_route_is_not_ready")
    else {
        return;
    };
    let _turn = support::turn();
    let (good, picky, group) = (support::unique("good"), support::unique("picky"), support::unique("group"));
    data::create_topic(&services, &good, 1);
    data::create_topic(&services, &picky, 1);
    let port = free_port();
    let text = format!(
        "  good:\n    topics: [{good}]\n    value: string\n    start: earliest\n    batch: {{max_age: 50ms}}\n    \
         sinks: {{all: {{jsonl: {{path: out/good, roll: {{max_age: 50ms}}}}}}}}\n  \
         picky:\n    topics: [{picky}]\n    value: json\n    start: earliest\n    batch: {{max_age: 50ms}}\n    \
         sinks: {{all: {{jsonl: {{path: out/picky, roll: {{max_age: 50ms}}}}}}}}\n"
    );
    let place = Workplace::new(&routes(&services.bootstrap, &group, port, &text));
    let mut service = place.start(&["run"]);
    eventually("it is ready", || get(port, "/ready", "*/*").is_some_and(|(status, _)| status == 200));
    produce(&services, &good, (0..100).map(|number| format!("{PAYLOAD} {number}")));
    produce(&services, &picky, (0..50).map(|number| format!("{{\"{PAYLOAD}\": {number}}}")));
    eventually("all is settled", || {
        look(port, "good", "sidestream_records_settled_total") == 100.0
            && look(port, "picky", "sidestream_records_settled_total") == 50.0
    });
    eventually("lag is known, and 0", || {
        samples(port).get("sidestream_lag_records{route=\"good\"}") == Some(&0.0)
    });
    assert_eq!(look(port, "good", "sidestream_records_in_flight"), 0.0);
    let found = samples(port);
    assert_eq!(found["sidestream_sink_rows_total{route=\"good\",sink=\"all\"}"], 100.0);
    assert_eq!(found["sidestream_partitions_owned"], 2.0);
    assert_eq!(found["sidestream_route_state{route=\"good\",state=\"running\"}"], 1.0);
    assert!(found["process_open_fds"] > 0.0 && found["process_resident_memory_bytes"] > 1e6, "{found:?}");
    check_with_promtool(port);

    // A record that is no JSON stops its route; the other one goes on, and the process is well.
    produce(&services, &picky, std::iter::once(format!("{PAYLOAD} is no JSON")));
    eventually("it is not ready", || get(port, "/ready", "*/*").is_some_and(|(status, _)| status == 503));
    let (_, reasons) = get(port, "/ready", "*/*").unwrap();
    assert!(reasons.contains("route `picky` has stopped: bad record at"), "{reasons}");
    assert_eq!(get(port, "/health", "*/*").unwrap().0, 200);
    produce(&services, &good, (100..150).map(|number| format!("{PAYLOAD} {number}")));
    eventually("the other route goes on", || look(port, "good", "sidestream_records_settled_total") == 150.0);
    assert_eq!(look(port, "picky", "sidestream_records_in_flight"), 0.0);
    assert_eq!(samples(port)["sidestream_route_state{route=\"picky\",state=\"stopped\"}"], 1.0);

    let (_, status) = get(port, "/status?route=good", "application/json").unwrap();
    let report: Value = serde_json::from_str(&status).unwrap();
    let route = &report["routes"]["good"];
    let partition = &route["partitions"][format!("{good}/0")];
    assert_eq!((&partition["next"]["all"], &partition["durable"]), (&Value::from(150), &Value::from(150)));
    assert_eq!(route["records"]["settled"], 150);
    assert!(route["progress"]["numInputRows"].as_u64().is_some_and(|rows| rows > 0), "{route}");
    let (_, whole) = get(port, "/status", "application/json").unwrap();
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["routes"]["picky"]["state"], "stopped");
    assert!(whole["routes"]["picky"]["lastError"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()));

    let (_, page) = get(port, "/", "text/html").unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<td class=\"stopped\">stopped"), "{page}");
    for path in ["/", "/status", "/status?route=good", "/metrics", "/ready", "/health"] {
        for accept in ["text/html", "*/*"] {
            let (_, page) = get(port, path, accept).unwrap();
            for secret in [PASSWORD, PAYLOAD] {
                assert!(!page.contains(secret), "{secret} on {path}: {page}");
            }
        }
    }
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
}

/// A sink whose topic does not exist fails and fails; the other one has every row long before. Whenever one looks, every
/// record that was read is somewhere, and in the end each is settled once.
#[test]
fn records_add_up_while_a_sink_fails() {
    let Some(services) = support::services("records_add_up_while_a_sink_fails") else {
        return;
    };
    let _turn = support::turn();
    let (topic, copy, group) =
        (support::unique("adds-up"), support::unique("copy"), support::unique("group"));
    data::create_topic(&services, &topic, 3);
    let port = free_port();
    let text = format!(
        "  both:\n    topics: [{topic}]\n    value: string\n    start: earliest\n    tombstones: skip\n    \
         batch: {{max_age: 50ms, max_rows: 40}}\n    sinks:\n      \
         files: {{jsonl: {{path: out/files, roll: {{max_age: 50ms}}}}}}\n      copy: {{kafka: {{topic: {copy}}}}}\n"
    );
    let place = Workplace::new(&routes(&services.bootstrap, &group, port, &text));
    let record = |number: i32| {
        let value = (number % 10 != 0).then(|| number.to_string().into_bytes());
        Record { partition: number % 3, key: None, value, timestamp: None }
    };
    data::produce(&services, &topic, (0..300).map(record));
    let mut service = place.start(&["run"]);
    let failures = "sidestream_sink_failures_total{route=\"both\",sink=\"copy\",fault=\"transient\"}";
    eventually("the sink has failed, and records are read again", || {
        look(port, "both", "sidestream_records_abandoned_total") > 0.0
            && samples(port).get(failures).is_some_and(|count| *count >= 2.0)
    });
    assert_eq!(look(port, "both", "sidestream_records_settled_total"), 0.0);
    let (_, status) = get(port, "/status", "*/*").unwrap();
    let report: Value = serde_json::from_str(&status).unwrap();
    let message = report["routes"]["both"]["lastError"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("sink `copy`"), "{message}");
    data::create_topic(&services, &copy, 1);
    eventually("all is settled", || look(port, "both", "sidestream_records_settled_total") == 270.0);
    assert_eq!(look(port, "both", "sidestream_records_dropped_total"), 30.0);
    assert_eq!(look(port, "both", "sidestream_records_in_flight"), 0.0);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
}

/// Needs no services: there is no broker.
#[test]
fn who_waits_for_brokers_is_healthy_and_not_ready() {
    let port = free_port();
    let text = "  r:\n    topics: [t]\n    value: string\n    sinks: {all: {jsonl: {path: out/all}}}\n";
    let place = Workplace::new(&routes("127.0.0.1:1", "g", port, text));
    let mut service = place.start(&["run"]);
    eventually("it answers", || get(port, "/health", "*/*").is_some());
    assert_eq!(get(port, "/health", "*/*").unwrap().0, 200);
    let (status, reasons) = get(port, "/ready", "*/*").unwrap();
    assert!(status == 503 && reasons.contains("it is starting"), "{reasons}");
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
}

#[test]
fn a_port_that_the_file_names_must_be_had() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = "  r:\n    topics: [t]\n    value: string\n    sinks: {all: {jsonl: {path: out/all}}}\n";
    let place = Workplace::new(&routes("127.0.0.1:1", "g", port, text));
    let finished = place.run(&["run"]).expect_code(1);
    assert!(
        finished.stderr.contains(&format!("failed to listen on `127.0.0.1:{port}`")),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("hint: end what listens there"), "{}", finished.stderr);
}
