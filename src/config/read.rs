//! The file as a whole.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::model::{Offset, Partition, Start, TopicName};

use super::expand::Environment;
use super::keys;
use super::mapping::{Context, Mapping, text, written};
use super::plan::{Admin, ClientCertificate, Login, Plan, Registry};
use super::tree::Span;
use super::{Problem, kafka, route, sink, together, transactions, tree, values};

/// The only version of the format.
const VERSION: &str = "1";

/// Nodes of one registry. Each that does not answer costs a call its whole time limit.
const REGISTRY_URLS_MAX: usize = 8;

/// Reads `routes.yaml`.
///
/// # Errors
/// Every problem of the file; a syntax error comes alone.
pub fn read(text: &str, environment: &Environment) -> Result<Plan, Vec<Problem>> {
    let mut problems = Vec::new();
    let tree = tree::parse(text, &mut problems).map_err(|problem| vec![problem])?;
    let mut context = Context { environment, problems };
    let plan = root(&tree, &mut context);
    match plan {
        Some(plan) if context.problems.is_empty() => Ok(plan),
        _ => {
            // What is wrong in `defaults` is met by every route.
            let mut problems: Vec<Problem> = Vec::new();
            for problem in context.problems {
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
            Err(problems)
        }
    }
}

/// Offsets on a command line, as in `start:`.
///
/// # Errors
/// What is wrong with them.
pub fn parse_offsets(text: &str) -> Result<BTreeMap<TopicName, BTreeMap<Partition, Offset>>, Vec<Problem>> {
    let mut problems = Vec::new();
    let tree = tree::parse(text, &mut problems).map_err(|problem| vec![problem])?;
    let mut context = Context { environment: &Environment::default(), problems };
    let offsets = route::offsets(&tree, &mut context);
    if context.problems.is_empty() { Ok(offsets) } else { Err(context.problems) }
}

/// A start on a command line, as in `start:`.
///
/// # Errors
/// What may be written instead.
pub fn parse_start(text: &str) -> Result<Start, String> {
    if !text.trim_start().starts_with('{') {
        return values::start(text);
    }
    let offsets = parse_offsets(text).map_err(|problems| {
        let messages: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
        messages.join("; ")
    });
    offsets.map(Start::Offsets)
}

fn root(tree: &tree::Node, context: &mut Context<'_>) -> Option<Plan> {
    let root = Mapping::open(tree, &keys::ROOT, context)?;
    check_version(&root, context);
    let kafka = kafka::read(&root, context);
    let registry = registry(&root, context);
    let memory = root.bytes("memory", context);
    let topic_refresh = root.duration("topic_refresh", context);
    let admin = admin(&root, context);
    let defaults = root.get("defaults").and_then(|node| Mapping::open(node, &keys::DEFAULTS, context));
    root.require("routes", context);
    if let Some(defaults) = &defaults {
        // Its mappings are looked at even if every route has its own.
        defaults.nested("batch", &keys::BATCH, context);
    }
    let letters = sink::dead_letters(&root, context);
    let route_count = root.named("routes", context).len();
    if let Some(node) = root.get("routes").filter(|_| route_count == 0) {
        context.problem(node.span, "there are no routes");
    }
    let routes: Vec<_> = root
        .named("routes", context)
        .into_iter()
        .filter_map(|(name, node)| route::read(name, node, defaults, &letters, context))
        .collect();
    together::check(&routes, context);
    let clusters = transactions::clusters(&root, context);
    transactions::check(&routes, &clusters, context);
    if root.get("schema_registry").is_none() {
        together::check_registry(&routes, root.span, context);
    }
    Some(Plan {
        kafka: kafka?,
        clusters,
        registry,
        memory: memory?,
        topic_refresh: topic_refresh?,
        admin: admin?,
        routes: routes.into_iter().map(|read| read.plan).collect(),
        others: Vec::new(),
    })
}

fn check_version(root: &Mapping<'_>, context: &mut Context<'_>) {
    if let Some(node) = root.require("version", context)
        && let Some(version) = text(node, context)
        && version != VERSION
    {
        let version = written(node);
        let message = format!("version {version} is not known; this sidestream reads version {VERSION}");
        context.problem(node.span, message);
    }
}

fn admin(root: &Mapping<'_>, context: &mut Context<'_>) -> Option<Admin> {
    let mapping = root.nested("admin", &keys::ADMIN, context)?;
    // A variable that is not set says nothing: one file then serves in containers and outside.
    let is_given = mapping.get("listen").is_some() && !mapping.text("listen", context)?.is_empty();
    let listen = if is_given {
        mapping.parsed("listen", values::listen, context)?
    } else {
        Some(keys::ADMIN_LISTEN.to_owned())
    };
    Some(Admin { listen, is_given })
}

fn registry(root: &Mapping<'_>, context: &mut Context<'_>) -> Option<Registry> {
    root.get("schema_registry")?;
    let mapping = root.nested("schema_registry", &keys::SCHEMA_REGISTRY, context)?;
    let urls = urls(&mapping, context);
    let login = login(&mapping, context);
    let ca_file = input_file("ca_file", &mapping, context);
    let client_certificate = client_certificate(&mapping, context);
    let timeout = mapping.duration("timeout", context);
    let refresh = mapping.duration("refresh", context);
    let cache_dir = mapping.text("cache_dir", context).map(PathBuf::from);
    if cache_dir.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
        context.problem(mapping.place("cache_dir"), "`cache_dir` is empty");
    }
    if urls.is_empty() {
        return None;
    }
    Some(Registry {
        urls,
        login,
        ca_file,
        client_certificate,
        timeout: timeout?,
        refresh: refresh?,
        cache_dir,
    })
}

/// The base URLs, with the context, if one is named.
fn urls(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Vec<String> {
    let Some(node) = mapping.require("url", context) else {
        return Vec::new();
    };
    let nodes: Vec<&tree::Node> = match &node.value {
        tree::Value::List(items) => items.iter().collect(),
        _ => vec![node],
    };
    let mut urls: Vec<String> = Vec::new();
    for node in &nodes {
        let Some(given) = text(node, context) else {
            continue;
        };
        for url in given.split(',') {
            let url = url.trim().trim_end_matches('/');
            check_url(url, node.span, context);
            if urls.iter().any(|known| known == url) {
                context.problem(node.span, "one URL is named twice");
            }
            urls.push(url.to_owned());
        }
    }
    if nodes.is_empty() || urls.len() > REGISTRY_URLS_MAX {
        context.problem(node.span, format!("a registry has from 1 to {REGISTRY_URLS_MAX} URLs"));
    }
    let Some(path) = context_path(mapping, context) else {
        return urls;
    };
    if urls.iter().any(|url| url.contains("/contexts/")) {
        context.problem(mapping.place("context"), "`context` is in the registry's URL already");
    }
    urls.iter().map(|url| format!("{url}{path}")).collect()
}

fn check_url(url: &str, span: Span, context: &mut Context<'_>) {
    if !url.starts_with("http://") && !url.starts_with("https://") {
        context.problem(span, "the registry's URL begins with `http://` or `https://`");
    }
    let authority = url.split('/').nth(2).unwrap_or_default();
    if authority.contains('@') {
        let problem = Problem::new(span, "the registry's URL holds a user or a password");
        context.problems.push(problem.hint("put them under `basic_auth: {username: …, password: …}`"));
    }
}

/// What stands for a context in URLs of Confluent's API. Subjects and ids below it are those of the context.
fn context_path(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<String> {
    let given = mapping.text("context", context)?;
    // As a name, `.name`, or `:.name:`, as subjects have it.
    let name = given.trim_matches(':').trim_start_matches('.');
    let is_plain = |char: char| char.is_ascii_alphanumeric() || ['_', '-', '.'].contains(&char);
    if name.is_empty() || !name.chars().all(is_plain) {
        let span = mapping.get("context").map_or(mapping.span, |node| node.span);
        let problem = Problem::new(span, "this is no name of a context");
        context.problems.push(problem.hint("letters, digits, `_`, `-` and `.`, for example `staging`"));
        return None;
    }
    Some(format!("/contexts/:.{name}:"))
}

pub fn login(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Login> {
    let basic = basic_auth(mapping, context);
    let token = mapping.secret("bearer_token", context);
    let place = mapping.place("bearer_token");
    let is_token = |token: &String| !token.is_empty() && token.chars().all(|char| char.is_ascii_graphic());
    if token.as_ref().is_some_and(|token| !is_token(token)) {
        // It could not be sent: every call would fail as if the registry were away.
        context.problem(place, "the token is empty, or holds a blank, a line break or the like");
    }
    if mapping.get("basic_auth").is_some() && mapping.get("bearer_token").is_some() {
        context.problem(place, "`basic_auth` and `bearer_token` are two logins: keep one");
    }
    basic.or_else(|| token.map(|token| Login::Bearer { token }))
}

fn basic_auth(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Login> {
    mapping.get("basic_auth")?;
    let auth = mapping.nested("basic_auth", &keys::BASIC_AUTH, context)?;
    auth.require("username", context);
    auth.require("password", context);
    let (username, password) = (auth.text("username", context), auth.secret("password", context));
    Some(Login::Basic { username: username?, password: password? })
}

pub fn client_certificate(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<ClientCertificate> {
    let names = ["client_cert_file", "client_key_file"];
    let [certificate, key] = names.map(|name| input_file(name, mapping, context));
    for (name, other) in [(names[0], names[1]), (names[1], names[0])] {
        if mapping.get(name).is_some() && mapping.get(other).is_none() {
            context.problem(mapping.place(name), format!("`{name}` is of no use without `{other}`"));
        }
    }
    Some(ClientCertificate { certificate: certificate?, key: key? })
}

/// A file that is read, relative to `routes.yaml`. What is in it is looked at by who needs it.
pub fn input_file(name: &str, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<PathBuf> {
    let given = mapping.text(name, context)?;
    let path = context.environment.root().join(given);
    if !path.is_file() {
        let span = mapping.get(name).map_or(mapping.span, |node| node.span);
        context.problem(span, format!("there is no file `{}`", path.display()));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{AllowIds, KeyForm, RawForm};
    use crate::config::render;

    const GOOD: &str = include_str!("../../routes.yaml");

    fn environment() -> Environment {
        Environment::new([], Path::new("."))
    }

    #[test]
    fn the_repository_s_file_is_good() {
        let plan = read(GOOD, &environment()).unwrap();
        assert_eq!(plan.kafka.group, "shop-router");
        assert!(!plan.routes.is_empty());
    }

    #[test]
    fn what_a_variable_holds_is_never_shown() {
        let text = "version: 1\nkafka: {bootstrap.servers: b, group.id: g}\nmemory: \"${S}\"\n\
                    defaults: {batch: {max_rowz: 1}, key: \"${S}\"}\nroutes: {r: {topics: [\"${S} x\"]}}\n";
        let environment = Environment::new([("S".to_owned(), "hunter2".to_owned())], Path::new("."));
        let shown = render("routes.yaml", text, &read(text, &environment).unwrap_err());
        assert!(!shown.contains("hunter2"), "{shown}");
        for expected in
            ["`${S}` is not a size", "`max_rowz` is not a known key", "`${S}` is not a known value"]
        {
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn dead_letters_are_named_once_and_never_read() {
        let text = "version: 1\nkafka: {bootstrap.servers: b, group.id: g}\nschema_registry: {url: \"http://r\"}\n\
                    dead_letters:\n  quarantine: {kafka: {topic: bad}}\n  files: {jsonl: {path: out/bad}}\n\
                    defaults: {bad_records: {dead_letter: [quarantine, files]}}\nroutes:\n  \
                    r: {topics: [t], sinks: {s: {csv: {path: out/s}}}}\n";
        let plan = read(text, &environment()).unwrap();
        let letters = &plan.routes[0].dead_letters;
        let identities: Vec<&str> = letters.iter().map(|sink| sink.identity.as_str()).collect();
        assert_eq!(identities, ["r/dead_letter/quarantine", "r/dead_letter/files"]);
        for (from, to, expected) in [
            ("topics: [t]", "topics: [bad]", "dead letters go to topic `bad`, which a route reads"),
            ("[quarantine, files]", "quarantene", "`quarantene` is not a known dead letter target here"),
            ("{kafka: {topic: bad}}", "{}", "`quarantine` says one target"),
        ] {
            let text = text.replace(from, to);
            let shown = render("r", &text, &read(&text, &environment()).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn refused_rows_are_as_bad_records_unless_they_are_said() {
        let read_with = |keys: &str| {
            let text = format!(
                "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\n\
                 dead_letters: {{q: {{kafka: {{topic: bad}}}}, f: {{jsonl: {{path: out/bad}}}}}}\nroutes:\n  \
                 r: {{topics: [t], value: bytes, {keys} sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
            );
            let read = read(&text, &environment());
            read.map_err(|problems| render("r", &text, &problems)).map(|plan| {
                let route = &plan.routes[0];
                (route.bad_records, route.refused_rows, route.dead_letters.len())
            })
        };
        use crate::config::plan::BadRecords::{DeadLetter, Skip, Stop};
        for (keys, expected) in [
            ("", (Stop, Stop, 0)),
            ("bad_records: skip,", (Skip, Skip, 0)),
            ("bad_records: {dead_letter: [q, f]},", (DeadLetter, DeadLetter, 2)),
            ("bad_records: {dead_letter: q}, refused_rows: stop,", (DeadLetter, Stop, 1)),
            ("refused_rows: {dead_letter: f},", (Stop, DeadLetter, 1)),
            (
                "bad_records: {dead_letter: [q, f]}, refused_rows: {dead_letter: [f, q]},",
                (DeadLetter, DeadLetter, 2),
            ),
        ] {
            assert_eq!(read_with(keys), Ok(expected), "{keys}");
        }
        let two = read_with("bad_records: {dead_letter: q}, refused_rows: {dead_letter: f},").unwrap_err();
        assert!(two.contains("name different dead letter targets"), "{two}");
        let unknown = read_with("refused_rows: {dead_letter: z},").unwrap_err();
        assert!(unknown.contains("`z` is not a known dead letter target here"), "{unknown}");
    }

    #[test]
    fn a_registry_takes_one_login_and_whole_certificates() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let text = "version: 1\nkafka: {bootstrap.servers: b, group.id: g}\nschema_registry:\n  url: https://r/\n  \
                    bearer_token: \"${T}\"\n  ca_file: ca.pem\n  client_cert_file: cert.pem\n  \
                    client_key_file: key.pem\n  cache_dir: out/cache\nroutes:\n  \
                    r: {topics: [t], sinks: {s: {csv: {path: out/s}}}}\n";
        let environment = Environment::new([("T".to_owned(), "s3cr3t".to_owned())], dir.path());
        let registry = read(text, &environment).unwrap().registry.unwrap();
        assert_eq!(registry.urls, ["https://r"]);
        assert_eq!(registry.login, Some(Login::Bearer { token: "s3cr3t".to_owned() }));
        assert_eq!(registry.ca_file, Some(dir.path().join("ca.pem")));
        let certificate = registry.client_certificate.clone().unwrap();
        assert_eq!(certificate.certificate, dir.path().join("cert.pem"));
        assert_eq!(certificate.key, dir.path().join("key.pem"));
        // It is written, so it does not move with the file.
        assert_eq!(registry.cache_dir, Some(PathBuf::from("out/cache")));
        assert!(!format!("{registry:?}").contains("s3cr3t"));
        for (from, to, expected) in [
            (
                "  ca_file",
                "  basic_auth: {username: u, password: p}\n  ca_file",
                "r:5:3: `basic_auth` and `bearer_token`",
            ),
            (
                "  bearer_token: \"${T}\"",
                "  bearer_token:\n    two s3cr3t words",
                "r:5:3: the token is empty, or",
            ),
            ("\"${T}\"", "|\n    s3cr3t${T", "r:5:3: `${` without its `}`"),
            ("ca.pem", "none.pem", "r:6:12: there is no file"),
            (
                "  client_key_file: key.pem\n",
                "",
                "r:7:3: `client_cert_file` is of no use without `client_key_file`",
            ),
            (
                "  client_cert_file: cert.pem\n",
                "",
                "r:7:3: `client_key_file` is of no use without `client_cert_file`",
            ),
            ("out/cache", "\"${NONE:-}\"", "r:9:3: `cache_dir` is empty"),
            ("https://r/", "https://me:s3cr3t@r/", "r:4:8: the registry's URL holds a user or a password"),
        ] {
            let text = text.replacen(from, to, 1);
            let shown = render("r", &text, &read(&text, &environment).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
            assert!(!shown.contains("s3cr3t"), "{shown}");
        }
    }

    #[test]
    fn a_registry_has_several_urls_and_one_context() {
        let text = |registry: &str| {
            format!(
                "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nschema_registry: {{{registry}}}\nroutes:\n  \
                 r: {{topics: [t], allow_ids: subject, sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
            )
        };
        let environment =
            Environment::new([("U".to_owned(), "http://a:1, http://b:2/".to_owned())], Path::new("."));
        let plan = |registry: &str| read(&text(registry), &environment).unwrap();
        assert_eq!(plan("url: http://a").routes[0].allow_ids, AllowIds::Subject);
        let urls = |registry: &str| plan(registry).registry.unwrap().urls;
        assert_eq!(urls("url: \"${U}\""), ["http://a:1", "http://b:2"]);
        assert_eq!(urls("url: [\"${U}\", https://c/api/]"), ["http://a:1", "http://b:2", "https://c/api"]);
        for name in ["staging", ".staging", "':.staging:'"] {
            let with = urls(&format!("url: [http://a/, http://b/v7], context: {name}"));
            assert_eq!(with, ["http://a/contexts/:.staging:", "http://b/v7/contexts/:.staging:"]);
        }
        for (registry, expected) in [
            ("url: []", "a registry has from 1 to 8 URLs"),
            ("url: 'http://a,http://b,http://a/'", "one URL is named twice"),
            ("url: [http://a, b]", "r:3:35: the registry's URL begins with"),
            ("url: [http://a, http://u@b]", "r:3:35: the registry's URL holds a user"),
            ("url: http://a, context: a/b", "r:3:43: this is no name of a context"),
            ("url: http://a, context: '::'", "this is no name of a context"),
            ("url: http://a/contexts/.x, context: x", "`context` is in the registry's URL already"),
        ] {
            let text = text(registry);
            let shown = render("r", &text, &read(&text, &environment).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn keys_have_the_forms_of_values() {
        let text = |key: &str| {
            format!(
                "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nroutes:\n  \
                 r: {{topics: [t], value: bytes, key: {key}, sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
            )
        };
        let form = |key: &str| read(&text(key), &environment()).unwrap().routes[0].key.clone();
        assert_eq!(form("~"), KeyForm::Raw(RawForm::Bytes));
        assert_eq!(form("json"), KeyForm::Raw(RawForm::Json));
        let file = "avro/shop.users.json.avsc";
        let typed = form(&format!("{{json: {{schema: {{file: {file}}}}}}}"));
        assert!(matches!(&typed, KeyForm::Json(path) if path.ends_with(file)), "{typed:?}");
        for (key, expected) in [
            ("registry", "`schema_registry` is missing, and route `r` reads `key: registry`"),
            ("strinq", "did you mean `string`?"),
            ("{json: {schema: {file: no.avsc}}}", "there is no file `no.avsc`"),
            ("{avor: x}", "`avor` is not a known key here"),
        ] {
            let text = text(key);
            let shown = render("r", &text, &read(&text, &environment()).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn the_admin_port_is_a_default_unless_the_file_says_where() {
        let text = |admin: &str| {
            format!(
                "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\n{admin}\nroutes:\n  \
                 r: {{topics: [t], value: bytes, sinks: {{s: {{csv: {{path: out/s}}}}}}}}\n"
            )
        };
        let admin = |line: &str| read(&text(line), &environment()).unwrap().admin;
        let default = Admin { listen: Some("127.0.0.1:7979".to_owned()), is_given: false };
        for line in ["", "admin:", "admin: {}", "admin: {listen: \"${NONE:-}\"}"] {
            assert_eq!(admin(line), default, "{line}");
        }
        let all = Admin { listen: Some("0.0.0.0:80".to_owned()), is_given: true };
        assert_eq!(admin("admin: {listen: \"${NONE:-0.0.0.0:80}\"}"), all);
        assert_eq!(admin("admin: {listen: off}"), Admin { listen: None, is_given: true });
        for (line, expected) in [
            ("admin: {listen: 7979}", "r:3:17: `7979` is not an address: write `host:port`"),
            ("admin: {listem: off}", "did you mean `listen`?"),
            ("admin: off", "r:3:8: expected a mapping"),
        ] {
            let text = text(line);
            let shown = render("r", &text, &read(&text, &environment()).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    /// One file with many mistakes: all are reported, each in its place.
    #[test]
    fn every_problem_is_reported_at_once() {
        let text = "\
version: 2
kafka:
  bootstrap.servers: localhost:9092
  enable.auto.commit: true
schema_registry: {url: localhost:8081, tiemout: 5s}
memory: lots
defaults:
  key: utf16
routes:
  orders:
    topics: [shop.orders, shop.orders]
    start: newest
    tombstones: erase
    reader_schema: {version: 0}
    views:
      batch: SELECT 1
      paid: SELECT * FROM batch
    sinks:
      a: {from: payd, parquet: {path: out/a}}
      b: {parquet: {path: out/a, rool: 1}}
      c: {kafka: {topic: x, kye: {column: id}}}
  empty: {}
  good:
    topics: [t]
    sinks:
      x: {parquet: {path: out/x}}
      y: {parquet: {path: ./out/x}}
      z: {id: good/x, parquet: {path: out/z}}
";
        let problems = read(text, &environment()).unwrap_err();
        let shown = render("routes.yaml", text, &problems);
        for expected in [
            "routes.yaml:1:10: version 2 is not known",
            "routes.yaml:2:1: `group.id` is missing",
            "routes.yaml:4:3: `enable.auto.commit` is set by sidestream",
            "routes.yaml:5:24: the registry's URL begins with",
            "`tiemout` is not a known key here",
            "did you mean `timeout`?",
            "routes.yaml:6:9: `lots` is not a size",
            "routes.yaml:8:8: `utf16` is not a known value here",
            "routes.yaml:11:27: topic `shop.orders` is named twice",
            "routes.yaml:12:12: `newest` is not a start",
            "routes.yaml:13:17: `erase` is not a known value here",
            "routes.yaml:14:30: `0` is not a whole number from 1",
            "routes.yaml:16:7: `batch` is the name of the decoded records",
            "routes.yaml:19:17: `payd` is not a known view here",
            "did you mean `paid`?",
            "did you mean `roll`?",
            "routes.yaml:22:10: `topics` is missing",
            "routes.yaml:22:10: `sinks` is missing",
            "routes.yaml:27:7: `out/x` is already used by sink `good/x`",
            "routes.yaml:28:7: `good/x` is already the identity of sink `good/x`",
        ] {
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }
}
