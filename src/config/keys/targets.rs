//! Keys of targets that files and requests go to: part of the one table.

use super::{BASIC_AUTH, Key, Kind, Scope, key, required};

pub static HTTP: Scope = Scope {
    name: "http",
    about: "Rows as JSON in requests to a server, at least once. Answers of 2xx settle them; 408, 425, 429, 5xx and no answer are tried again. `docs/sinks/http.md` has the forms and the keys of rows.",
    keys: &[
        required("url", Kind::Text, "Where to: `https://…`, without a user. Never shown whole."),
        key("method", Kind::Choice(&["POST", "PUT", "PATCH"]), "POST", "The method."),
        key(
            "format",
            Kind::Choice(&["ndjson", "array", "row"]),
            "ndjson",
            "The body: an object per line, an array of objects, or one object per request.",
        ),
        key(
            "headers",
            Kind::TextMap,
            "",
            "Headers of every request. Values are never shown; take secrets from `${VAR}` or `${file:path}`.",
        ),
        key("basic_auth", Kind::Scope(&BASIC_AUTH), "", "User name and password."),
        key("bearer_token", Kind::Text, "", "A token instead of `basic_auth`. Never shown."),
        key("ca_file", Kind::Text, "", "As `schema_registry.ca_file`."),
        key("client_cert_file", Kind::Text, "", "As `schema_registry.client_cert_file`."),
        key("client_key_file", Kind::Text, "", "As `schema_registry.client_key_file`."),
        key("timeout", Kind::Duration, "30s", "For one request, connecting included."),
        key("max_rows", Kind::Integer, "100", "Rows of a request; more than 100 need `key_field`."),
        key("max_bytes", Kind::Bytes, "1MiB", "Bytes of a body; a row that is larger goes alone."),
        key(
            "concurrency",
            Kind::Integer,
            "1",
            "Requests under way at the same time, up to 64. With more than one, rows do not arrive in order.",
        ),
        key(
            "key_field",
            Kind::Text,
            "",
            "A field put into every object, with the key of its row; then `Idempotency-Keys` is not sent.",
        ),
    ],
};

macro_rules! file_keys {
    ($($own:expr),* $(,)?) => {
        &[
            required("path", Kind::Text, "The directory, relative to the working directory; or a prefix of an object store: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`."),
            key("storage", Kind::Scope(&STORAGE), "", "How to reach the object store that `path` names."),
            $($own,)*
            key("roll", Kind::Scope(&ROLL), "", "When open files are closed and committed: whichever limit is reached first."),
        ]
    };
}

const PARTITION_BY: Key = key(
    "partition_by",
    Kind::Sql,
    "",
    "Directories by value below `path`, as Hive names them: `{day: \"to_date(created_at)\", country: country}` gives `day=2026-11-01/country=CH/`. One to eight names, outermost first, each with an SQL expression over a row. A column with the name of a partition is left out of the files: readers take it from the directory.",
);

const TEXT_COMPRESSION: Key = key(
    "compression",
    Kind::Choice(&["none", "gzip", "zstd"]),
    "none",
    "How files are compressed. It is in their names: `.gz`, `.zst`.",
);

const TEXT_LEVEL: Key = key(
    "compression_level",
    Kind::Integer,
    "",
    "From 1 (fast) to 9 (small). `gzip` takes 6 unless told, `zstd` 3.",
);

const PARQUET_COMPRESSION: Key = key(
    "compression",
    Kind::Choice(&["snappy", "zstd", "lz4", "gzip", "none"]),
    "snappy",
    "How pages are compressed; `lz4` is what the format calls LZ4_RAW.",
);

const PARQUET_LEVEL: Key = key(
    "compression_level",
    Kind::Integer,
    "",
    "Of `gzip` from 1 to 9 (6 unless told), of `zstd` from 1 to 22 (3). The others have none.",
);

const AVRO_CODEC: Key = key(
    "codec",
    Kind::Choice(&["none", "deflate", "snappy", "zstd"]),
    "snappy",
    "How blocks are compressed.",
);

pub static FILES: Scope = Scope {
    name: "jsonl, csv",
    about: "Files of text in a directory. Readers glob `path/**/*.jsonl` (`.csv`; compressed `.jsonl.gz`, `.jsonl.zst`); `_sidestream/` holds the commit log.",
    keys: file_keys!(PARTITION_BY, TEXT_COMPRESSION, TEXT_LEVEL,),
};

pub static PARQUET: Scope = Scope {
    name: "parquet",
    about: "Parquet files in a directory. Readers glob `path/**/*.parquet`; `_sidestream/` holds the commit log.",
    keys: file_keys!(
        PARTITION_BY,
        PARQUET_COMPRESSION,
        PARQUET_LEVEL,
        key("row_group", Kind::Scope(&ROW_GROUP), "", "When a row group ends."),
        key(
            "dictionary",
            Kind::Choice(&["true", "false"]),
            "true",
            "Write each value once per row group, until there are too many different ones.",
        ),
        key(
            "statistics",
            Kind::Choice(STATISTICS),
            "page",
            "Lowest and highest value and nulls, by which readers skip: of each row group (`group`), of each page too (`page`), or `none`.",
        ),
        key(
            "columns",
            Kind::Named(&PARQUET_COLUMN),
            "",
            "What is different for some columns, by name: `{id: {bloom_filter: true}, body: {statistics: none}}`. A name stands for everything nested in its column.",
        ),
    ),
};

const STATISTICS: &[&str] = &["none", "group", "page"];

pub static ROW_GROUP: Scope = Scope {
    name: "parquet.row_group",
    about: "A row group also ends with its file, and when the open files of a sink hold 32 MiB.",
    keys: &[key("max_rows", Kind::Integer, "1048576", "Rows of a row group.")],
};

pub static PARQUET_COLUMN: Scope = Scope {
    name: "parquet.columns.<column>",
    about: "What is different for one column; what is missing is as in the others.",
    keys: &[
        key("dictionary", Kind::Choice(&["true", "false"]), "", "As `parquet.dictionary`."),
        key("statistics", Kind::Choice(STATISTICS), "", "As `parquet.statistics`."),
        key(
            "bloom_filter",
            Kind::Choice(&["true", "false"]),
            "false",
            "A filter per row group, by which readers that look for one value skip. Not for booleans.",
        ),
    ],
};

pub static AVRO_FILES: Scope = Scope {
    name: "avro",
    about: "Avro object container files in a directory, with a schema that is made of the columns. Readers glob `path/**/*.avro`; `_sidestream/` holds the commit log.",
    keys: file_keys!(
        AVRO_CODEC,
        key("record_name", Kind::Text, "Value", "The name of the record, with its namespace: `shop.Order`."),
        PARTITION_BY,
    ),
};

pub static DEAD_LETTER_FILES: Scope = Scope {
    name: "dead_letters.<name>.jsonl",
    about: "JSON Lines files for dead letters.",
    keys: file_keys!(TEXT_COMPRESSION, TEXT_LEVEL),
};

pub static DEAD_LETTER_PARQUET: Scope = Scope {
    name: "dead_letters.<name>.parquet",
    about: "Parquet files for dead letters.",
    keys: file_keys!(PARQUET_COMPRESSION, PARQUET_LEVEL),
};

pub static DEAD_LETTER_AVRO: Scope = Scope {
    name: "dead_letters.<name>.avro",
    about: "Avro object container files for dead letters.",
    keys: file_keys!(AVRO_CODEC),
};

pub static DEAD_LETTER_TABLE: Scope = Scope {
    name: "dead_letters.<name>.postgres",
    about: "A table for dead letters. It is created if it is not there.",
    keys: &[POSTGRES_URL, POSTGRES_CA_FILE, POSTGRES_TABLE],
};

pub static STORAGE: Scope = Scope {
    name: "storage",
    about: "How to reach an object store. Without a login here that of the environment counts (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT`, …; `GOOGLE_…`; `AZURE_…`), or what a machine of the service knows by itself; with one, nothing is read from the environment. `docs/sinks/objects.md` says what readers do.",
    keys: &[
        key(
            "endpoint",
            Kind::Text,
            "",
            "The URL of the service, instead of the provider's own: `https://minio.example.com:9000`.",
        ),
        key(
            "allow_http",
            Kind::Choice(&["true", "false"]),
            "false",
            "Let `endpoint` be `http://`: nothing is encrypted.",
        ),
        key("region", Kind::Text, "", "Of S3: `us-east-1` unless this or the environment says otherwise."),
        key(
            "virtual_hosted",
            Kind::Choice(&["true", "false"]),
            "false",
            "Of S3: `endpoint` names the bucket in its host; else the bucket is the first part of the path.",
        ),
        key("access_key_id", Kind::Text, "", "Of S3. Needs `secret_access_key`."),
        key(
            "secret_access_key",
            Kind::Text,
            "",
            "Of S3. Take it from `${VAR}` or `${file:path}`. Never shown.",
        ),
        key("session_token", Kind::Text, "", "Of S3, with a temporary key. Never shown."),
        key(
            "service_account_file",
            Kind::Text,
            "",
            "Of Google Cloud Storage: a service account's key (JSON). A path relative to the file.",
        ),
        key("account", Kind::Text, "", "Of Azure: the storage account."),
        key("account_key", Kind::Text, "", "Of Azure: its key. Never shown."),
        key("sas_token", Kind::Text, "", "Of Azure: a shared access signature instead. Never shown."),
        key("anonymous", Kind::Choice(&["true", "false"]), "false", "Do not log in."),
        key(
            "spool_dir",
            Kind::Text,
            "",
            "Where files grow before they are uploaded: a local directory, relative to the working directory, with room for them. The system's directory for temporary files unless given.",
        ),
    ],
};

pub static ROLL: Scope = Scope {
    name: "roll",
    about: "Limits of a file. Reaching one closes and commits all open files of the sink.",
    keys: &[
        key("max_bytes", Kind::Bytes, "128MiB", "Size of a file, roughly: a batch is never cut."),
        key("max_rows", Kind::Integer, "", "Rows of a file; no limit unless given."),
        key(
            "max_age",
            Kind::Duration,
            "5m",
            "How long rows stay out of sight, and lag stays above 0, at most.",
        ),
    ],
};

const POSTGRES_URL: Key = required(
    "url",
    Kind::Text,
    "`postgresql://user:password@host:5432/database?sslmode=require`. Take it, or the password in it, from `${VAR}` or `${file:path}`. Never shown. `sslmode` is `disable`, `prefer` (the default: TLS if the server has it) or `require`; with TLS, certificate and host are always checked.",
);

const POSTGRES_CA_FILE: Key = key(
    "ca_file",
    Kind::Text,
    "",
    "Certificates (PEM) of authorities that are trusted beside the system's. A path relative to the file.",
);

const POSTGRES_TABLE: Key = required(
    "table",
    Kind::Text,
    "The table, `orders` or `shop.orders`. Without a schema, where the user's search path leads. It is written as it stands here, capital letters included.",
);

pub static DELTA: Scope = Scope {
    name: "delta",
    about: "A Delta table in a directory. Columns are matched by name; see `docs/sinks/delta.md` for types and limits.",
    keys: &[
        required("path", Kind::Text, "The directory of the table, relative to the working directory."),
        key(
            "partition_by",
            Kind::Sql,
            "",
            "The columns that the table is partitioned by, each with an SQL expression over a row: `{day: \"to_date(created_at)\", country: country}`. One to eight names. They are columns of the table, whether the rows have them or not: text, whole numbers, booleans and dates.",
        ),
        key(
            "create",
            Kind::Choice(&["true", "false"]),
            "false",
            "Create the table if it is not there, and add columns that it lacks.",
        ),
        key(
            "roll",
            Kind::Scope(&ROLL),
            "",
            "When open files are closed and committed: whichever limit is reached first.",
        ),
    ],
};

pub static POSTGRES: Scope = Scope {
    name: "postgres",
    about: "A table of PostgreSQL. Columns are matched by name; see `docs/sinks/postgres.md` for types, rights and limits.",
    keys: &[
        POSTGRES_URL,
        POSTGRES_CA_FILE,
        POSTGRES_TABLE,
        key(
            "mode",
            Kind::Choice(&["append", "upsert"]),
            "append",
            "`append`: each row is inserted. `upsert`: a row replaces the one that has its key, and deletes remove it.",
        ),
        key(
            "primary_key",
            Kind::PrimaryKey,
            "",
            "For `mode: upsert`: the columns that rows are known by, `[id]`. Or `record_key`: the fields of the decoded record key, which are columns of the row by the same names; of a key that is one value, the column `_key`. The table has a primary key or a unique index over exactly these.",
        ),
        key(
            "create",
            Kind::Choice(&["true", "false"]),
            "false",
            "Create the table if it is not there, and add columns that it lacks.",
        ),
    ],
};
