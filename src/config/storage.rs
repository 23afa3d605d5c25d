//! `storage:` of a file sink, and paths that are in an object store.

use std::path::PathBuf;

use super::keys;
use super::mapping::{Context, Mapping};
use super::plan::{ObjectLogin, ObjectStorage, Scheme};
use super::read::input_file;
use super::{Problem, template};

/// Keys that mean something to one service only.
const OWN: [(&str, Scheme); 9] = [
    ("region", Scheme::S3),
    ("virtual_hosted", Scheme::S3),
    ("access_key_id", Scheme::S3),
    ("secret_access_key", Scheme::S3),
    ("session_token", Scheme::S3),
    ("service_account_file", Scheme::Google),
    ("account", Scheme::Azure),
    ("account_key", Scheme::Azure),
    ("sas_token", Scheme::Azure),
];

/// Keys that log in. With one of them nothing of a login is taken from elsewhere.
const LOGINS: [&str; 6] = [
    "access_key_id",
    "secret_access_key",
    "session_token",
    "service_account_file",
    "account_key",
    "sas_token",
];

/// Reads what `path` and `storage:` say; `Some(None)` is a directory.
pub fn read(
    path: &str,
    files: &Mapping<'_>,
    context: &mut Context<'_>,
) -> Option<Option<Box<ObjectStorage>>> {
    let Some((scheme, bucket, prefix)) = Scheme::split(path) else {
        if path.contains("://") {
            let problem = Problem::new(files.place("path"), "`path` begins with a scheme that is not known");
            context.problems.push(problem.hint("a directory, or `s3://…`, `gs://…`, `az://…`"));
            return None;
        }
        if files.get("storage").is_some() {
            context.problem(files.place("storage"), "`storage` is of no use: `path` is a directory");
        }
        return Some(None);
    };
    let is_bucket = !bucket.is_empty() && template::placeholders(bucket).is_empty();
    let is_part = |part: &str| !["", ".", "..", "_sidestream"].contains(&part);
    if !is_bucket || !(prefix.is_empty() || prefix.split('/').all(is_part)) {
        let message = "`path` names a bucket and a prefix, without empty parts, `.`, `..` or `_sidestream`";
        context.problem(files.place("path"), message);
        return None;
    }
    let storage = files.nested("storage", &keys::STORAGE, context)?;
    for (key, of) in OWN {
        if of != scheme && storage.get(key).is_some() {
            let (start, _) = Scheme::ALL[scheme as usize];
            context.problem(storage.place(key), format!("`{key}` is of no use with `{start}`"));
        }
    }
    let allows_http = storage.choice("allow_http", context) == "true";
    let endpoint = endpoint(allows_http, &storage, context);
    let spool_dir = storage.text("spool_dir", context).map(PathBuf::from);
    if spool_dir.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
        context.problem(storage.place("spool_dir"), "`spool_dir` is empty");
    }
    Some(Some(Box::new(ObjectStorage {
        login: login(scheme, &storage, context)?,
        endpoint,
        region: storage.text("region", context),
        account: storage.text("account", context),
        allows_http,
        is_virtual_hosted: storage.choice("virtual_hosted", context) == "true",
        spool_dir,
    })))
}

fn endpoint(allows_http: bool, storage: &Mapping<'_>, context: &mut Context<'_>) -> Option<String> {
    let endpoint = storage.text("endpoint", context)?;
    let place = storage.place("endpoint");
    if endpoint.starts_with("http://") && !allows_http {
        let problem = Problem::new(place, "the endpoint is not encrypted");
        context.problems.push(problem.hint("say `allow_http: true` if that is meant"));
    } else if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        context.problem(place, "the endpoint begins with `https://`, or `http://` with `allow_http: true`");
    }
    if endpoint.split('/').nth(2).unwrap_or_default().contains('@') {
        context.problem(place, "the endpoint holds a user or a password");
    }
    Some(endpoint.trim_end_matches('/').to_owned())
}

fn login(scheme: Scheme, storage: &Mapping<'_>, context: &mut Context<'_>) -> Option<ObjectLogin> {
    let given: Vec<&str> = LOGINS.into_iter().filter(|key| storage.get(key).is_some()).collect();
    if storage.choice("anonymous", context) == "true" {
        if let Some(key) = given.first() {
            let message = format!("`{key}` is of no use with `anonymous: true`");
            context.problem(storage.place(key), message);
        }
        return Some(ObjectLogin::Anonymous);
    }
    if given.is_empty() {
        return Some(ObjectLogin::Environment);
    }
    match scheme {
        Scheme::S3 => {
            let id = storage.secret("access_key_id", context);
            let secret = storage.secret("secret_access_key", context);
            let session_token = storage.secret("session_token", context);
            let (Some(id), Some(secret)) = (id, secret) else {
                let message = "`access_key_id` and `secret_access_key` are said together, or not at all";
                context.problem(storage.place(given[0]), message);
                return None;
            };
            Some(ObjectLogin::AccessKey { id, secret, session_token })
        }
        Scheme::Google => {
            let file = input_file("service_account_file", storage, context)?;
            Some(ObjectLogin::ServiceAccount { file })
        }
        Scheme::Azure => {
            let key = storage.secret("account_key", context);
            let sas_token = storage.secret("sas_token", context);
            if key.is_some() == sas_token.is_some() {
                context.problem(storage.place(given[0]), "say one login: `account_key` or `sas_token`");
            }
            if storage.get("account").is_none() {
                context.problem(storage.place(given[0]), "say the `account` that this is for");
            }
            Some(ObjectLogin::Account { key, sas_token })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{Plan, Target};
    use crate::config::{Environment, read as read_file, render};
    use crate::model::TopicName;

    const SECRET: &str = "hunter2";

    fn plan(files: &str) -> Result<Plan, String> {
        let text = format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\n\
             dead_letters: {{q: {{jsonl: {{path: \"s3://b/bad\"}}}}}}\nroutes:\n  \
             r: {{topics: [t], value: bytes, per_topic: true, bad_records: {{dead_letter: q}},\n    \
             sinks: {{s: {{parquet: {{{files}}}}}}}}}\n"
        );
        let environment = Environment::new([("S".to_owned(), SECRET.to_owned())], Path::new("."));
        read_file(&text, &environment).map_err(|problems| render("r", &text, &problems))
    }

    fn storage(plan: &Plan) -> (&Path, Option<&ObjectStorage>) {
        let Target::Files { path, storage, .. } = &plan.routes[0].sinks[0].target else { panic!() };
        (path, storage.as_deref())
    }

    #[test]
    fn a_path_is_a_directory_or_a_prefix() {
        let dir = plan("path: \"out/{topic}\"").unwrap();
        assert_eq!(storage(&dir), (Path::new("out/{topic}"), None));
        let bucket = plan("path: \"s3://shop/{topic}/\"").unwrap();
        let (path, given) = storage(&bucket);
        assert_eq!(Scheme::split(path.to_str().unwrap()), Some((Scheme::S3, "shop", "{topic}")));
        assert_eq!(given, Some(&ObjectStorage::default()));
        let instance = bucket.routes[0].instance(&TopicName::new("t")).unwrap();
        let Target::Files { path, .. } = &instance.sinks[0].target else { panic!() };
        assert_eq!(Scheme::split(path.to_str().unwrap()), Some((Scheme::S3, "shop", "t")));
        let Target::Files { path, storage, .. } = &instance.dead_letters[0].target else { panic!() };
        assert_eq!((path.as_path(), storage.is_some()), (Path::new("s3://b/bad/r/t"), true));
        assert!(instance.sinks[0].target.guarantee().contains("only if it is absent"));
    }

    #[test]
    fn logins_are_of_their_service_and_never_shown() {
        let s3 = "path: \"s3://b/{topic}\", storage: {endpoint: \"http://h:9/\", allow_http: true, \
                  region: eu-central-1, access_key_id: me, secret_access_key: \"${S}\"}";
        let s3 = plan(s3).unwrap();
        let (_, given) = storage(&s3);
        let given = given.unwrap();
        assert_eq!((given.endpoint.as_deref(), given.allows_http), (Some("http://h:9"), true));
        assert!(matches!(&given.login, ObjectLogin::AccessKey { secret, .. } if secret == SECRET));
        assert!(!format!("{s3:?}").contains(SECRET));
        let azure = "path: \"az://c/{topic}\", storage: {account: a, account_key: \"${S}\"}";
        let azure = plan(azure).unwrap();
        assert!(matches!(&storage(&azure).1.unwrap().login, ObjectLogin::Account { key: Some(_), .. }));
        let open = plan("path: \"gs://b/{topic}\", storage: {anonymous: true}").unwrap();
        assert!(storage(&open).1.unwrap().login == ObjectLogin::Anonymous);
    }

    #[test]
    fn mistakes_are_told() {
        for (files, expected) in [
            ("path: \"s3a://b/{topic}\"", "`path` begins with a scheme that is not known"),
            ("path: \"s3:///{topic}\"", "`path` names a bucket and a prefix"),
            ("path: \"s3://{topic}\"", "`path` names a bucket and a prefix"),
            ("path: \"s3://b/../{topic}\"", "`path` names a bucket and a prefix"),
            ("path: \"out/{topic}\", storage: {region: x}", "`storage` is of no use"),
            ("path: \"gs://b/{topic}\", storage: {region: x}", "`region` is of no use with `gs://`"),
            ("path: \"s3://b/{topic}\", storage: {access_key_id: hunter2}", "are said together"),
            ("path: \"s3://b/{topic}\", storage: {endpoint: \"http://h\"}", "the endpoint is not encrypted"),
            ("path: \"s3://b/{topic}\", storage: {endpoint: h}", "the endpoint begins with `https://`"),
            ("path: \"az://b/{topic}\", storage: {account_key: hunter2}", "say the `account`"),
            ("path: \"az://b/{topic}\", storage: {sas_token: hunter2, anonymous: true}", "with `anonymous"),
            ("path: \"gs://b/{topic}\", storage: {service_account_file: none.json}", "there is no file"),
            ("path: \"s3://b/{topic}\", storage: {regoin: x}", "`regoin` is not a known key"),
        ] {
            let shown = plan(files).unwrap_err();
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }
}
