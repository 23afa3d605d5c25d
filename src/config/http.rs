//! `http:` of a sink.

use std::collections::BTreeMap;

use super::Problem;
use super::keys;
use super::mapping::{Context, Mapping, text};
use super::plan::{Http, HttpForm, HttpMethod};
use super::read::{client_certificate, input_file, login};

/// So many keys of 22 bytes, with a comma each, are a header that servers take: many refuse more than 8 KiB of them.
const KEYS_MAX: u64 = 100;

/// Requests under way hold their bodies, and servers have a bound for those of one client.
const CONCURRENCY_MAX: u64 = 64;

/// What each request says by itself.
const OWNED: [&str; 6] =
    ["content-length", "host", "connection", "transfer-encoding", "idempotency-key", "idempotency-keys"];

/// Reads `http:`; `view` is the name of what the sink reads.
pub fn read(mapping: &Mapping<'_>, view: &str, context: &mut Context<'_>) -> Option<Http> {
    let http = mapping.nested("http", &keys::HTTP, context)?;
    let url = url(&http, context);
    let method = match http.choice("method", context).as_str() {
        "PUT" => HttpMethod::Put,
        "PATCH" => HttpMethod::Patch,
        _ => HttpMethod::Post,
    };
    let form = match http.choice("format", context).as_str() {
        "array" => HttpForm::Array,
        "row" => HttpForm::Row,
        _ => HttpForm::Lines,
    };
    let login = login(&http, context);
    let headers = headers(&http, login.is_some(), context);
    let ca_file = input_file("ca_file", &http, context);
    let client_certificate = client_certificate(&http, context);
    let timeout = http.duration("timeout", context);
    let key_field = http.text("key_field", context);
    let rows_max = rows_max(&http, form, key_field.is_some(), context);
    let bytes_max = http.bytes("max_bytes", context);
    let concurrency = http.integer("concurrency", context);
    if concurrency.is_some_and(|count| count > CONCURRENCY_MAX) {
        let message = format!("`concurrency` is at most {CONCURRENCY_MAX}");
        context.problem(http.place("concurrency"), message);
    }
    Some(Http {
        url: url?,
        method,
        form,
        headers,
        login,
        ca_file,
        client_certificate,
        timeout: timeout?,
        rows_max: usize::try_from(rows_max?).ok()?,
        bytes_max: usize::try_from(bytes_max?).ok()?,
        concurrency: usize::try_from(concurrency?).ok()?,
        key_field,
        view: view.to_owned(),
    })
}

fn url(http: &Mapping<'_>, context: &mut Context<'_>) -> Option<String> {
    http.require("url", context);
    // A query may hold a token.
    let url = http.secret("url", context)?;
    let place = http.place("url");
    if !url.starts_with("http://") && !url.starts_with("https://") {
        context.problem(place, "the URL begins with `http://` or `https://`");
    }
    if url.split('/').nth(2).unwrap_or_default().contains('@') {
        let problem = Problem::new(place, "the URL holds a user or a password");
        context.problems.push(problem.hint("put them under `basic_auth: {username: …, password: …}`"));
    }
    if url.contains(['{', '}', '#']) || url.contains(char::is_whitespace) {
        let problem = Problem::new(place, "the URL holds a brace, a `#` or a blank");
        context.problems.push(problem.hint("nothing is filled in here; write other characters as `%7B`"));
    }
    Some(url)
}

fn headers(http: &Mapping<'_>, has_login: bool, context: &mut Context<'_>) -> BTreeMap<String, String> {
    // The key's line tells that it holds secrets, a line further down would not.
    let place = http.place("headers");
    let known = context.problems.len();
    let mut headers = BTreeMap::new();
    for (key, node) in http.named("headers", context) {
        let name = key.name.to_ascii_lowercase();
        if OWNED.contains(&name.as_str()) || (has_login && name == "authorization") {
            context.problem(place, format!("header `{}` is set by sidestream", key.name));
        } else if ::http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            context.problem(place, format!("`{}` is no name of a header", key.name));
        }
        let Some(value) = text(node, context) else {
            continue;
        };
        if ::http::HeaderValue::from_str(&value).is_err() {
            context
                .problem(place, format!("the value of header `{}` holds a line break or the like", key.name));
        }
        headers.insert(name, value);
    }
    for problem in &mut context.problems[known..] {
        problem.span = place;
    }
    headers
}

fn rows_max(
    http: &Mapping<'_>,
    form: HttpForm,
    has_key_field: bool,
    context: &mut Context<'_>,
) -> Option<u64> {
    if form == HttpForm::Row {
        if http.get("max_rows").is_some() {
            context.problem(http.place("max_rows"), "`max_rows` is of no use with `format: row`");
        }
        return Some(1);
    }
    let rows_max = http.integer("max_rows", context)?;
    if rows_max > KEYS_MAX && !has_key_field {
        let message = format!("the keys of more than {KEYS_MAX} rows do not fit into a header");
        let problem = Problem::new(http.place("max_rows"), message);
        context.problems.push(problem.hint("put the key into each object: `key_field: _idempotency_key`"));
    }
    Some(rows_max)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{Login, Target};
    use crate::config::{Environment, read as read_file, render};

    fn file(options: &str) -> String {
        format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nroutes:\n  r:\n    topics: [t]\n    \
             value: string\n    views: {{big: SELECT value FROM batch}}\n    sinks:\n      \
             s: {{from: big, http: {{{options}}}}}\n"
        )
    }

    fn environment() -> Environment {
        Environment::new([("S".to_owned(), "hunter2".to_owned())], Path::new("."))
    }

    #[test]
    fn what_is_not_said_has_a_default_and_secrets_are_not_shown() {
        let of = |options: &str| {
            let plan = read_file(&file(options), &environment()).unwrap();
            match plan.routes[0].sinks[0].target.clone() {
                Target::Http(http) => http,
                other => panic!("{other:?}"),
            }
        };
        let default = of("url: https://h/x");
        assert_eq!((default.method, default.form), (HttpMethod::Post, HttpForm::Lines));
        assert_eq!((default.rows_max, default.bytes_max, default.concurrency), (100, 1 << 20, 1));
        assert_eq!(default.view, "big");
        let given = of("url: \"https://h/x?k=${S}\", method: PUT, format: row, headers: {X-Api: \"${S}\"}, \
                        basic_auth: {username: u, password: \"${S}\"}, key_field: id");
        assert_eq!((given.rows_max, given.headers["x-api"].as_str()), (1, "hunter2"));
        assert!(matches!(&given.login, Some(Login::Basic { password, .. }) if password == "hunter2"));
        let shown = format!("{given:?}");
        assert!(shown.contains("https://h\"") && !shown.contains("hunter2"), "{shown}");
        assert_eq!(of("url: http://h, max_rows: 5000, key_field: k").rows_max, 5000);
    }

    #[test]
    fn what_does_not_go_together_is_said_without_values() {
        for (options, expected) in [
            ("method: PUT", "`url` is missing"),
            ("url: h/x", "the URL begins with `http://`"),
            ("url: \"http://me:hunter2@h/\"", "the URL holds a user or a password"),
            ("url: \"http://h/{topic}\"", "nothing is filled in here"),
            ("url: http://h, method: GET", "`GET` is not a known value here"),
            ("url: http://h, max_rows: 101", "do not fit into a header"),
            ("url: http://h, format: row, max_rows: 2", "is of no use with `format: row`"),
            ("url: http://h, concurrency: 65", "`concurrency` is at most 64"),
            ("url: http://h, headers: {Idempotency-Key: hunter2}", "is set by sidestream"),
            ("url: http://h, headers: {\"a b\": hunter2}", "`a b` is no name of a header"),
            ("url: http://h, headers: {a: \"hunter2\\nb\"}", "the value of header `a` holds a line break"),
            ("url: http://h, headers: {authorization: hunter2}, bearer_token: x", "is set by sidestream"),
        ] {
            let text = file(options);
            let shown = render("r", &text, &read_file(&text, &environment()).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert_eq!(shown.matches("r:9:").count(), 1, "{shown}");
        }
    }
}
