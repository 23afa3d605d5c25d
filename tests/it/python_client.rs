use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use sidestream::registry::embedded::EmbeddedRegistry;

use crate::pipeline::routes;
use crate::support::program::{Workplace, finished};
use crate::support::{self, Services, data};

/// What the serialisers have written, by offset: rows, codes, tombstones.
type Written = BTreeMap<u64, Value>;

/// Lets Confluent's client produce, and returns what it says of it.
fn produce(python: &Path, services: &Services, topic: &str, format: &str, framing: &str) -> Written {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/serialisers.py");
    let mut command = std::process::Command::new(python);
    // Without files of compiled Python beside the sources.
    command.arg("-B").arg(script).args(["produce", format, "--framing", framing, "--topic", topic]);
    command.args(["--bootstrap", &services.bootstrap, "--registry", &services.registry]);
    let done = finished(command, &["serialisers.py", "produce", format, framing]).expect_code(0);
    let lines = done.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let written: Written = lines.map(|line| (line["offset"].as_u64().unwrap(), line)).collect();
    assert!(written.len() > 12, "{}", done.stderr);
    written
}

/// Runs a route over the topic and compares each record with what was said of it.
fn compare(services: &Services, topic: &str, format: &str, written: &Written) {
    let form = match format {
        "avro" => "avro",
        "protobuf" => "{protobuf: {message: shop.Envelope.Order}}",
        _ => "json_schema",
    };
    let extra = format!(
        "
    value: {form}
    tombstones: skip
    bad_records: {{dead_letter: bad}}
    views:
      placed: SELECT _offset, * FROM batch
    sinks:
      rows: {{from: placed, jsonl: {{path: out/rows}}}}
"
    );
    let text = routes(services, &support::unique("group"), topic, &extra);
    let text = text.replace("routes:\n", "dead_letters:\n  bad: {jsonl: {path: out/bad}}\nroutes:\n");
    let place = Workplace::new(&text);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let mut found: BTreeMap<u64, Value> = BTreeMap::new();
    for mut row in data::json_rows(&place.path("out/rows")) {
        let offset = row.as_object_mut().unwrap().remove("_offset").unwrap();
        assert!(found.insert(offset.as_u64().unwrap(), row).is_none(), "twice: {offset}");
    }
    let mut letters: BTreeMap<u64, String> = BTreeMap::new();
    for letter in data::json_rows(&place.path("out/bad")) {
        let code = letter["code"].as_str().unwrap().to_owned();
        letters.insert(letter["source_offset"].as_u64().unwrap(), code);
    }
    for (offset, expected) in written {
        let place = format!("{format}, offset {offset}");
        if let Some(row) = expected.get("row") {
            let letter = letters.get(offset);
            assert_eq!(found.remove(offset).as_ref(), Some(row), "{place}, {letter:?}");
        } else if let Some(codes) = expected.get("bad") {
            let code = letters.remove(offset).unwrap_or_else(|| panic!("{place}: not bad"));
            let is_expected = codes.as_array().unwrap().iter().any(|known| *known == *code);
            assert!(is_expected, "{place}: {code}, not {codes}");
        }
    }
    assert!(found.is_empty() && letters.is_empty(), "{format}: {found:?} {letters:?}");
}

/// Confluent's client in Python writes to the real broker, with the registry that the other tests use.
#[test]
fn what_confluents_client_writes_is_read_value_by_value() {
    let test = "what_confluents_client_writes_is_read_value_by_value";
    let (Some(services), Some(python)) = (support::services(test), support::python(test)) else {
        return;
    };
    let _turn = support::turn();
    for format in ["avro", "protobuf", "json"] {
        let topic = support::unique(format);
        data::create_topic(&services, &topic, 1);
        let written = produce(&python, &services, &topic, format, "prefix");
        compare(&services, &topic, format, &written);
    }
}

/// The same with GUIDs in headers, for which the registry has to know GUIDs: the embedded one does.
#[test]
fn what_confluents_client_names_by_guids_is_read_value_by_value() {
    let test = "what_confluents_client_names_by_guids_is_read_value_by_value";
    let (Some(mut services), Some(python)) = (support::services(test), support::python(test)) else {
        return;
    };
    let _turn = support::turn();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let registry = runtime.block_on(EmbeddedRegistry::start()).unwrap();
    services.registry = registry.url();
    for format in ["avro", "protobuf", "json"] {
        let topic = support::unique(format);
        data::create_topic(&services, &topic, 1);
        let written = produce(&python, &services, &topic, format, "header");
        compare(&services, &topic, format, &written);
    }
}
