//! Keys of the schema registry, and of forms whose schemas are there: part of the one table.

use super::{Key, Kind, Scope, key, required};

pub static SCHEMA_REGISTRY: Scope = Scope {
    name: "schema_registry",
    about: "How to reach the schema registry.",
    keys: &[
        required(
            "url",
            Kind::Urls,
            "Its base URL, for example `http://localhost:8081`. Several, as a list or with commas between, are nodes of one registry: where one does not answer, the next is asked.",
        ),
        key(
            "context",
            Kind::Text,
            "",
            "The context all subjects and ids are in, for example `staging`: for registries with contexts (Confluent's).",
        ),
        key("basic_auth", Kind::Scope(&BASIC_AUTH), "", "User name and password."),
        key(
            "bearer_token",
            Kind::Text,
            "",
            "A token instead of `basic_auth`. Take it from `${VAR}` or `${file:path}`. Never shown.",
        ),
        key(
            "ca_file",
            Kind::Text,
            "",
            "Certificates (PEM) of authorities that are trusted beside the system's. A path relative to the file.",
        ),
        key(
            "client_cert_file",
            Kind::Text,
            "",
            "Our certificate (PEM), followed by those that lead to its authority. Needs `client_key_file`.",
        ),
        key(
            "client_key_file",
            Kind::Text,
            "",
            "The key of `client_cert_file` (PEM: PKCS #8, PKCS #1 or SEC1), not encrypted.",
        ),
        key("timeout", Kind::Duration, "10s", "For one call to one URL, connecting included."),
        key(
            "refresh",
            Kind::Duration,
            "1m",
            "How often a route with `reader_schema: latest` asks for the newest version of its subject. It asks at once when a record names a schema that may be newer.",
        ),
        key(
            "cache_dir",
            Kind::Text,
            "",
            "A directory, relative to the working directory, where `run` keeps schemas: it then starts while the registry is away. Safe to delete.",
        ),
    ],
};

pub static BASIC_AUTH: Scope = Scope {
    name: "basic_auth",
    about: "HTTP basic authentication. Take the password from `${VAR}` or `${file:path}`.",
    keys: &[
        required("username", Kind::Text, "The user, or an API key."),
        required("password", Kind::Text, "The password, or an API secret. Never shown."),
    ],
};

const FRAMING_ABOUT: &str = "How a record names its schema. `confluent`: in the header `__value_schema_id` (of keys `__key_schema_id`) if there is one, else in a prefix. `header`, `prefix` (a zero byte and four bytes of an id): only there. `apicurio`: a prefix with an id of eight bytes.";
const FRAMINGS: &[&str] = &["confluent", "header", "prefix", "apicurio"];
const RECURSIVE_ABOUT: &str = "What becomes of a type that contains itself, which no column can hold: the schema is refused, with the path, or where the type begins again there is its JSON text (at most 100 levels of it).";
const RECURSIVE: Key = key("recursive", Kind::Choice(&["refuse", "json"]), "refuse", RECURSIVE_ABOUT);

pub static FRAMED: Scope = Scope {
    name: "value, key: {registry | avro: …}",
    about: "Options of a form; without any, the word alone is enough.",
    keys: &[key("framing", Kind::Choice(FRAMINGS), "confluent", FRAMING_ABOUT), RECURSIVE],
};

pub static JSON_SCHEMA: Scope = Scope {
    name: "value, key: {json_schema: …}",
    about: "Options of JSON Schema; without any, the word alone is enough.",
    keys: &[
        key("framing", Kind::Choice(FRAMINGS), "confluent", FRAMING_ABOUT),
        RECURSIVE,
        key(
            "validate",
            Kind::Choice(&["true", "false"]),
            "false",
            "Whether a record is held against all that the schema says which it names, not only against the types of its columns. One that does not keep to it is bad (`invalid`).",
        ),
    ],
};

pub static PROTOBUF: Scope = Scope {
    name: "value, key: {protobuf: …}",
    about: "Options of Protobuf; without any, the word alone is enough.",
    keys: &[
        key(
            "message",
            Kind::Text,
            "",
            "The message, by its full name or the one within its package. Without it the first one of the reader schema's file.",
        ),
        key("framing", Kind::Choice(FRAMINGS), "confluent", FRAMING_ABOUT),
        RECURSIVE,
    ],
};
