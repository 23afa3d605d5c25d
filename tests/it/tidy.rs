//! The rules of the house that a reader can check by looking: layers, sizes, module docs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sidestream::model::code::TABLE;

use crate::support::program::files;

/// What a module may use of the others. A new edge is a reviewed change of this table.
const LAYERS: [(&str, &[&str]); 18] = [
    ("cores", &[]),
    ("failpoint", &[]),
    ("repeat", &[]),
    ("model", &[]),
    ("status", &["model"]),
    ("metrics", &["status"]),
    ("render", &[]),
    ("config", &["model"]),
    ("kafka", &["repeat", "model", "config", "status"]),
    ("registry", &["model", "config", "status"]),
    ("codec", &["model", "config", "render"]),
    ("handler", &["model", "config", "codec", "render"]),
    ("encode", &["model", "config", "codec", "render"]),
    ("sink", &["cores", "failpoint", "repeat", "model", "config", "render", "encode", "registry"]),
    (
        "engine",
        &[
            "cores",
            "failpoint",
            "repeat",
            "model",
            "config",
            "status",
            "kafka",
            "registry",
            "codec",
            "handler",
            "sink",
        ],
    ),
    ("admin", &["model", "status", "metrics", "kafka"]),
    (
        "cli",
        &[
            "failpoint",
            "model",
            "render",
            "config",
            "status",
            "metrics",
            "kafka",
            "registry",
            "codec",
            "handler",
            "encode",
            "sink",
            "engine",
            "admin",
        ],
    ),
    ("fuzz", &["model", "config", "codec", "sink"]),
];

/// Lines of a source file before its tests. More than this is two nouns in one file.
const LINES_MAX: usize = 600;

fn sources() -> BTreeMap<String, String> {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
    files(&root, ".rs").iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// The part of a file before its tests.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]").next().unwrap()
}

#[test]
fn modules_look_one_way() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let module = name.split(['/', '.']).next().unwrap();
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == module) else {
            continue;
        };
        for line in without_tests(&text).lines() {
            let Some(used) = line.trim().strip_prefix("use crate::") else {
                continue;
            };
            let used = used.split([':', ';', '{']).next().unwrap();
            if used != module && !allowed.contains(&used) {
                wrong.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "edges that are not in the table: {wrong:#?}");
}

#[test]
fn files_are_about_one_noun() {
    for (name, text) in sources() {
        let lines = without_tests(&text).lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines before its tests");
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    let is_tests = |name: &str| name.ends_with("tests.rs");
    for (name, text) in sources().into_iter().filter(|(name, _)| !is_tests(name)) {
        assert!(text.starts_with("//! "), "{name} begins without a `//!` comment");
    }
}

/// Words that are also something else in other modules.
#[test]
fn codes_of_bad_records_are_named_in_one_place() {
    let tests = ["tests.rs", "hostile.rs"];
    let is_test = |name: &str| {
        tests.iter().any(|file| name.ends_with(file))
            || name.contains("/tests/")
            || name.contains("differential/")
    };
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let module = name.split(['/', '.']).next().unwrap();
        if is_test(&name) || !["codec", "engine", "handler", "sink", "status"].contains(&module) {
            continue;
        }
        for (code, _) in TABLE {
            if without_tests(&text).contains(&format!("\"{code}\"")) {
                wrong.push(format!("{name}: \"{code}\""));
            }
        }
    }
    assert!(wrong.is_empty(), "codes belong into src/model/code.rs: {wrong:#?}");
}

#[test]
fn nothing_is_ignored_and_nothing_waits_blindly() {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let ignored = ["#[", "ignore"].concat();
    for path in files(&root, ".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&ignored), "{}: a test is ignored", path.display());
        let sleeps = text.matches("thread::sleep").count();
        let may_sleep = path.ends_with("support/program.rs") || path.ends_with("support/services.rs");
        assert!(sleeps == 0 || may_sleep || path.ends_with("tidy.rs"), "{}: sleeps", path.display());
    }
}
