//! The one table of keys of `routes.yaml`.
//!
//! A key that is not here does not exist: the reader refuses it, the JSON Schema does not offer it, and
//! `docs/routes.md` does not list it. What does not work yet is therefore not here.

mod registry;
mod targets;

pub use registry::{BASIC_AUTH, FRAMED, JSON_SCHEMA, PROTOBUF, SCHEMA_REGISTRY};
pub use targets::{
    AVRO_FILES, DEAD_LETTER_AVRO, DEAD_LETTER_FILES, DEAD_LETTER_PARQUET, DEAD_LETTER_TABLE, DELTA, FILES,
    HTTP, PARQUET, PARQUET_COLUMN, POSTGRES, ROLL, ROW_GROUP, STORAGE,
};

/// A mapping with fixed keys.
#[derive(Debug)]
pub struct Scope {
    /// As in `docs/routes.md`.
    pub name: &'static str,
    pub about: &'static str,
    pub keys: &'static [Key],
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// As written in YAML; empty if the key is required or has no default.
    pub default: &'static str,
    pub is_required: bool,
    pub about: &'static str,
    pub since: &'static str,
}

/// What may be written as a key's value.
#[derive(Debug)]
pub enum Kind {
    Text,
    Integer,
    /// `32MiB`, `64KB`, `1GiB`, or a number of bytes.
    Bytes,
    /// `500ms`, `5s`, `10m`, `2h`, `1d`.
    Duration,
    /// One of these words.
    Choice(&'static [&'static str]),
    TextList,
    /// One URL, several in one text with commas between, or a list.
    Urls,
    /// Names to texts.
    TextMap,
    /// Names to mappings.
    Named(&'static Scope),
    /// `stop`, `skip`, or `{dead_letter: name}` (or a list of names).
    BadRecords,
    Scope(&'static Scope),
    /// A list of names, or a pattern.
    Topics,
    /// The form of values or keys: a word, `{avro: {framing: header}}`, or `{json: {schema: {file: path}}}`.
    Value,
    Start,
    ReaderSchema,
    /// A subject, or `{value: …, key: …}`.
    Subject,
    /// Types to [`RECORD_TYPE`], `*` to [`OTHER_TYPES`].
    RecordTypes,
    /// Names to SQL.
    Sql,
    /// `topic`, `record`, `topic_record`, or `{literal: name}`.
    WriterSubject,
    /// A list of columns, or `record_key`.
    PrimaryKey,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, is_required: false, about, since: "0.1.0" }
}

const fn required(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, default: "", is_required: true, about, since: "0.1.0" }
}

pub static ROOT: Scope = Scope {
    name: "routes.yaml",
    about: "The whole file.",
    keys: &[
        required("version", Kind::Integer, "The version of this format: 1."),
        required(
            "kafka",
            Kind::TextMap,
            "librdkafka properties, word for word. `bootstrap.servers` and `group.id` are required; those the engine owns are refused with the reason.",
        ),
        key(
            "schema_registry",
            Kind::Scope(&SCHEMA_REGISTRY),
            "",
            "The Confluent-compatible schema registry. Required if a route reads `value: registry` or `key: registry`.",
        ),
        key(
            "memory",
            Kind::Bytes,
            "256MiB",
            "For everything held between the broker and the sinks; routes share it. Half of it is for records as they came.",
        ),
        key(
            "topic_refresh",
            Kind::Duration,
            "30s",
            "How often the cluster's topics are matched against the patterns of routes, and looked at for new partitions.",
        ),
        key(
            "admin",
            Kind::Scope(&ADMIN),
            "",
            "Where `/metrics`, `/health`, `/ready` and `/status` are answered.",
        ),
        key(
            "clusters",
            Kind::Named(&CLUSTER),
            "",
            "Other clusters that sinks write to, by name: `kafka: {cluster: name, …}` of a sink.",
        ),
        key(
            "dead_letters",
            Kind::Named(&DEAD_LETTER),
            "",
            "Where bad records go, by name; routes choose with `bad_records: {dead_letter: name}`.",
        ),
        key(
            "defaults",
            Kind::Scope(&DEFAULTS),
            "",
            "Keys that every route takes unless it says otherwise. Mappings merge by key.",
        ),
        required("routes", Kind::Named(&ROUTE), "The routes, by name."),
    ],
};

/// Off the ports of Kafka, of the registry and of what is usually started beside them.
pub const ADMIN_LISTEN: &str = "127.0.0.1:7979";

pub static ADMIN: Scope = Scope {
    name: "admin",
    about: "One port for those who watch. It has no login and changes nothing.",
    keys: &[key(
        "listen",
        Kind::Text,
        ADMIN_LISTEN,
        "A host and a port, or `off`. `0.0.0.0:7979` is all addresses of the machine: in a container. Where the file says nothing, or only an empty text, a service listens on the default if the port is free; a bounded run and the demo listen only where the file says so.",
    )],
};

macro_rules! shared_route_keys {
    ($($own:expr),* $(,)?) => {
        &[
            $($own,)*
            key("key", Kind::Value, "bytes", "The form of record keys, in column `_key`. `bytes`, `string`, `json` (validated text): as they are. `registry`: Avro, Protobuf or JSON of the schema registry, read as the newest schema of subject `<topic>-key`; `avro`, `protobuf`, `json_schema` pin it, with options as for values. `{json: {schema: {file: avro/key.avsc}}}`: plain JSON read as an Avro schema. Keys are looked at only if something reads `_key`."),
            key("value", Kind::Value, "registry", "The form of record values. `registry`: Avro, Protobuf or JSON of the schema registry, whichever the reader schema is; `avro`, `protobuf`, `json_schema` pin it. With options: `{avro: {framing: header}}`, `{protobuf: {message: shop.Order}}`. `bytes`, `string`, `json` (validated text): as they are, in the columns `_key, value, _topic, _partition, _offset, _timestamp, _timestamp_type, _headers`. `{json: {schema: {file: avro/nest.avsc}}}`: plain JSON read as an Avro schema."),
            key("reader_schema", Kind::ReaderSchema, "latest", "The schema all writer versions are read as: `latest`, `{version: 3}`, `{id: 17}` or `{file: avro/order.avsc}` (`.proto`: Protobuf; with `value: json_schema` a JSON Schema)."),
            key("allow_ids", Kind::Choice(&["any", "subject"]), "any", "Which schemas records may name: any of the registry, or only those registered under the subjects of the route's topics (`<topic>-value`, `<topic>-key`); a record that names another is bad (`foreign_id`). Costs one more call for each new schema."),
            key("subject", Kind::Subject, "", "The subject of the reader schema, instead of `<topic>-value`: a text, or `{value: …, key: …}` for that of keys too (`<topic>-key`). `{topic}`, and with `per_topic: true` the pattern's named groups, are filled in."),
            key("on_new_schema", Kind::Choice(&["widen", "pin", "stop"]), "widen", "With `reader_schema: latest`, what follows while it runs when the subject gets a newer version. `widen`: records are read as the newer one from the next batch on, views are bound to it, and sinks whose rows change begin new files; if views, or readers of what is written, would break, the route stops before the first record of it. `pin`: it is told, and the schema of the start stays. `stop`: the route stops before the first record of it."),
            key("start", Kind::Start, "latest", "Where to start a topic that was not seen before: `earliest`, `latest`, a time (`2026-11-01T00:00:00Z`), a time ago (`-2h`), records before the end of each partition (`-100`), or offsets `{topic: {partition: offset}}`. Afterwards the stored positions decide."),
            key("tombstones", Kind::Choice(&["keep", "skip", "delete"]), "keep", "What a record without a value becomes: a row of nulls with its key; nothing (counted); or a delete of its key, for sinks that update by key, and nothing (counted) where there is none. `check` says which sinks do what."),
            key("envelope", Kind::Choice(&["none", "debezium"]), "none", "What is around the rows. `debezium`: change events of database tables become rows of the tables' columns, and deletes for sinks that update by key; views can name `_op`, `_source`, `_unavailable`. With `value: registry`, `avro`, `json_schema`, or `{json: {schema: {file: …}}}`, whose file may also be a schema of Kafka Connect or a whole record."),
            key("truncate", Kind::Choice(&["refuse", "ignore", "delete"]), "refuse", "With `envelope: debezium`, what follows when a table was truncated, for sinks that keep rows by key: the record is bad (`truncate`), rows stay, or all rows of the sink's table are deleted (PostgreSQL only; for topics with one partition). Views that name `_op` see the record with `ignore` and `delete`; sinks that append have nothing to do with it."),
            key("batch", Kind::Scope(&BATCH), "", "When buffered records become a micro-batch: whichever limit is reached first."),
            key("on_data_loss", Kind::Choice(&["stop", "continue"]), "stop", "What follows when the brokers no longer have records that a sink has not read (retention, truncation, a topic created again): the route stops and names the range, or it goes on with what is there; the range is logged and stored as lost, and a topic created again is read from its beginning."),
            key("bad_records", Kind::BadRecords, "stop", "What a record becomes that cannot be decoded: the route stops before it, it is skipped (counted, logged), or it goes to dead letters: `{dead_letter: name}`, or a list of names. So does one that a view fails on, but for sinks that do not read this view."),
            key("refused_rows", Kind::BadRecords, "", "What follows when a sink will never take what became of a record (too large for its topic, no name for a directory): the route stops before the record, the sink goes on without it (counted, logged), or its dead letter is written first: `{dead_letter: name}`, the same names as those of `bad_records` where both have some. As `bad_records` if it is not said."),
        ]
    };
}

pub static DEFAULTS: Scope = Scope {
    name: "defaults",
    about: "What every route takes unless it says otherwise.",
    keys: shared_route_keys!(),
};

pub static ROUTE: Scope = Scope {
    name: "routes.<route>",
    about: "One route: topics of one schema, shaped by views, written to sinks.",
    keys: shared_route_keys!(
        required(
            "topics",
            Kind::Topics,
            "The topics to read: a list of names, or `{pattern: 'shop\\..*', exclude: […]}`."
        ),
        key(
            "per_topic",
            Kind::Choice(&["true", "false"]),
            "false",
            "One route for each topic, with its own schema, views, sinks and progress. `{topic}` and the pattern's named groups are filled in where sinks and schema files are named: `path: out/{topic}`."
        ),
        key(
            "isolated",
            Kind::Choice(&["true", "false"]),
            "false",
            "A consumer of the route's own, in group `<group.id>.<route>`: another route of the same topics, and rebalances of the others, do not concern it. Sinks that keep their progress with their data (files) go on where they stand when this is changed; the others start at `start:` in the other group."
        ),
        key(
            "record_types",
            Kind::RecordTypes,
            "",
            "Records of several types in one topic: each type with a schema, views and sinks of its own, instead of those of the route. A type is called as serialisers call it: an Avro record and a Protobuf message by the full name, a JSON Schema by its title. A union at the top of an Avro schema, or several messages in a Protobuf file, are several types. `reader_schema` of the route is for those that do not say their own; `subject` likewise, with `{record}` for the type: `'{record}'` if nothing is said (RecordNameStrategy), `'{topic}-{record}'` (TopicRecordNameStrategy), `'{topic}-value'` (the type is looked for in the union, or the file, that the topic's subject has). Records without a value have no type: they are dropped."
        ),
        key("views", Kind::Sql, "", VIEWS_ABOUT),
        key("sinks", Kind::Named(&SINK), "", "Where rows go, by name. Required, but with `record_types`."),
    ),
};

const VIEWS_ABOUT: &str = "Side outputs by name: SQL (DataFusion's) over `batch`, or over a view above.";

pub static RECORD_TYPE: Scope = Scope {
    name: "routes.<route>.record_types.<type>",
    about: "Records of one type. Its sinks are called `<type>/<sink>` where the program names them, and have the identity `<route>/<type>/<sink>` unless they say `id:`.",
    keys: &[
        key(
            "reader_schema",
            Kind::ReaderSchema,
            "",
            "What records of the type are read as, if not as the route's `reader_schema`.",
        ),
        key("subject", Kind::Text, "", "The subject of its reader schema, if not by the route's `subject`."),
        key("views", Kind::Sql, "", VIEWS_ABOUT),
        required("sinks", Kind::Named(&SINK), "Where rows of the type go, by name."),
    ],
};

pub static OTHER_TYPES: Scope = Scope {
    name: "routes.<route>.record_types.*",
    about: "Records of a type that the route does not name. Without it they are bad records (`record_type`).",
    keys: &[key(
        "bad_records",
        Kind::BadRecords,
        "stop",
        "What becomes of them: the route stops before them, they are dropped (counted), or they go to dead letters: `{dead_letter: name}`, the same names as those of the route's `bad_records` where both have some.",
    )],
};

pub static TOPIC_PATTERN: Scope = Scope {
    name: "routes.<route>.topics",
    about: "Topics by pattern. Names that begin with `__`, and topics that the file's sinks and dead letters write to, never match.",
    keys: &[
        required(
            "pattern",
            Kind::Text,
            "A regular expression (Rust's `regex`) for whole names. Named groups, `(?<country>\\w+)`, can be used in templates.",
        ),
        key("exclude", Kind::TextList, "", "Patterns of names that are left out."),
    ],
};

pub static BATCH: Scope = Scope {
    name: "routes.<route>.batch",
    about: "Limits of a micro-batch.",
    keys: &[
        key("max_rows", Kind::Integer, "50000", "Records in a batch."),
        key("max_bytes", Kind::Bytes, "32MiB", "Bytes of keys, values and headers in a batch."),
        key("max_age", Kind::Duration, "5s", "How long the first record waits."),
    ],
};

pub static SINK: Scope = Scope {
    name: "routes.<route>.sinks.<sink>",
    about: "One sink: what it reads, and one kind of target.",
    keys: &[
        key("from", Kind::Text, "batch", "The view it reads."),
        key(
            "id",
            Kind::Text,
            "<route>/<sink>",
            "The identity its progress is kept under. Set it to rename a route or a sink without starting again.",
        ),
        key(
            "adopt",
            Kind::Text,
            "",
            "After a rename (of route, sink, `id` or group): the former identity, `route/sink`, whose positions in the directory or table this sink takes over, once. It may stay in the file. Sinks of files, of PostgreSQL and of Delta tables only.",
        ),
        key(
            "shared",
            Kind::Choice(&["true", "false"]),
            "false",
            "It may write to a directory or a table that another sink (of another route, group or cluster) writes to; each has its own positions there. Sinks of files, of PostgreSQL and of Delta tables only.",
        ),
        key(
            "required",
            Kind::Choice(&["true", "false"]),
            "true",
            "Whether the route waits for this sink. Without it (`false`) a sink that fails or is slow holds up neither the other sinks nor the group: the route goes on, and it catches up when it is back. What the brokers have deleted by then it never sees. At least one sink of a route is required.",
        ),
        key(
            "start",
            Kind::Start,
            "",
            "Where this sink begins, as a route's `start:`. For a sink that is added to a route: without it, it begins where the others stand; with it, it catches up beside them. Afterwards its stored position decides.",
        ),
        key("parquet", Kind::Scope(&PARQUET), "", "Parquet files in a directory, exactly once."),
        key("console", Kind::Scope(&CONSOLE), "", "The first rows of every batch on the screen."),
        key(
            "kafka",
            Kind::Scope(&KAFKA_SINK),
            "",
            "Records of a Kafka topic, at least once, or exactly once with `transactional: true`.",
        ),
        key(
            "http",
            Kind::Scope(&HTTP),
            "",
            "Requests to a server, at least once, each row with a key that stays the same.",
        ),
        key("jsonl", Kind::Scope(&FILES), "", "JSON Lines files in a directory, exactly once."),
        key(
            "csv",
            Kind::Scope(&FILES),
            "",
            "CSV files with a header line in a directory, exactly once. Nested values are JSON text.",
        ),
        key(
            "avro",
            Kind::Scope(&AVRO_FILES),
            "",
            "Avro object container files in a directory, exactly once.",
        ),
        key("postgres", Kind::Scope(&POSTGRES), "", "Rows of a table of PostgreSQL, exactly once."),
        key("delta", Kind::Scope(&DELTA), "", "Rows of a Delta table, exactly once."),
    ],
};

pub static DEAD_LETTER: Scope = Scope {
    name: "dead_letters.<name>",
    about: "One target for bad records: key, value and headers byte for byte, with headers `__connect.errors.*` that say where they were and what was wrong.",
    keys: &[
        key(
            "kafka",
            Kind::Scope(&DEAD_LETTER_TOPIC),
            "",
            "A topic of the same cluster, at least once. Routes may share it.",
        ),
        key(
            "jsonl",
            Kind::Scope(&DEAD_LETTER_FILES),
            "",
            "JSON Lines files, exactly once, below `path/<route>`; key, value and header values are base64.",
        ),
        key(
            "parquet",
            Kind::Scope(&DEAD_LETTER_PARQUET),
            "",
            "Parquet files, exactly once, below `path/<route>`.",
        ),
        key("avro", Kind::Scope(&DEAD_LETTER_AVRO), "", "Avro files, exactly once, below `path/<route>`."),
        key(
            "postgres",
            Kind::Scope(&DEAD_LETTER_TABLE),
            "",
            "Rows of a table of PostgreSQL, exactly once. Routes may share it.",
        ),
    ],
};

pub static DEAD_LETTER_TOPIC: Scope = Scope {
    name: "dead_letters.<name>.kafka",
    about: "A topic for dead letters.",
    keys: &[
        required("topic", Kind::Text, "The topic. It must exist, and no route may read it."),
        key(
            "format",
            Kind::Choice(&["original", "json", "avro", "protobuf", "json_schema"]),
            "original",
            "What a letter's value is. `original`: the record's, byte for byte. The others: all columns of the letter in this format, the record's value among them; `sidestream replay` does not read them. The key and the headers are those of `original` all the same.",
        ),
        WRITER_SUBJECT,
        key("record_name", Kind::Text, "", "As `kafka.value.record_name`; without it `DeadLetter`."),
        AUTO_REGISTER,
        USE_LATEST,
    ],
};

pub static CLUSTER: Scope = Scope {
    name: "clusters.<name>",
    about: "A cluster that sinks write to. Nothing is read from it.",
    keys: &[required(
        "kafka",
        Kind::TextMap,
        "librdkafka properties of its producers, word for word, with `bootstrap.servers`. Nothing is taken from the file's `kafka:`.",
    )],
};

pub static CONSOLE: Scope = Scope {
    name: "console",
    about: "Rows on the screen, as a table: for looking at a route.",
    keys: &[key("max_rows", Kind::Integer, "20", "Rows of a batch that are shown.")],
};

pub static KAFKA_SINK: Scope = Scope {
    name: "kafka (sink)",
    about: "Records of a topic, at least once, or exactly once for read_committed consumers. Columns named `key`, `value`, `topic`, `headers`, `partition` are used where the sink does not say otherwise (Spark's sink columns).",
    keys: &[
        key(
            "topic",
            Kind::Text,
            "",
            "The topic; without it every row names its own in a column `topic`. It must exist.",
        ),
        key(
            "transactional",
            Kind::Choice(&["true", "false"]),
            "false",
            "Write rows and the group's offsets in one transaction: exactly once for consumers with `isolation.level=read_committed`. All sinks of the route have to say so, its dead letters go to topics and are a part of it, and no other route of its group reads its topics. `docs/sinks/kafka.md` has the limits.",
        ),
        key(
            "cluster",
            Kind::Text,
            "",
            "Another cluster, by its name under `clusters`. Without it, the cluster that is read.",
        ),
        key(
            "key",
            Kind::Scope(&WRITTEN),
            "",
            "The record's key: `{column: name}`, in a `format:` if one is given. Without it the column `key`, or no key.",
        ),
        key(
            "value",
            Kind::Scope(&WRITTEN),
            "",
            "The record's value: `{column: name}`, `{format: avro}` of all columns, or both. Without it the column `value`, or the JSON of all columns.",
        ),
    ],
};

const WRITER_SUBJECT: Key = key(
    "subject",
    Kind::WriterSubject,
    "topic",
    "Where the schema is registered: `topic` (`<topic>-value`, of keys `<topic>-key`), `record` (the record's name), `topic_record` (`<topic>-<record's name>`), or `{literal: name}`.",
);

const AUTO_REGISTER: Key = key(
    "auto_register",
    Kind::Choice(&["true", "false"]),
    "true",
    "Register the schema. With `false` the subject has to have it.",
);

const USE_LATEST: Key = key(
    "use_latest",
    Kind::Choice(&["true", "false"]),
    "false",
    "Write with the newest schema of the subject, as it is at the start; columns are matched by name. Nothing is registered.",
);

pub static WRITTEN: Scope = Scope {
    name: "kafka.key, kafka.value",
    about: "A column, or all of them, and the format. The keys below `format` are for those of the schema registry.",
    keys: &[
        key("column", Kind::Text, "", "Its name. A key has to have one; a value without it is all columns."),
        key(
            "format",
            Kind::Choice(&["text", "json", "avro", "protobuf", "json_schema"]),
            "",
            "`text` (what a column alone means): bytes and text as they are, everything else as text. `json`. `avro`, `protobuf`, `json_schema`: in Confluent's frame, with a schema of the registry that is made of the columns.",
        ),
        WRITER_SUBJECT,
        key(
            "record_name",
            Kind::Text,
            "",
            "The name of the record or message, with its namespace or package: `shop.Order`; the title of a JSON Schema. Without it `Value`, of keys `Key`; with `use_latest` it chooses the message.",
        ),
        AUTO_REGISTER,
        USE_LATEST,
    ],
};

/// All scopes, as they are met from the top of the file.
pub fn scopes() -> Vec<&'static Scope> {
    let mut found: Vec<&'static Scope> = vec![&ROOT];
    let mut next = 0;
    while let Some(scope) = found.get(next).copied() {
        next += 1;
        for key in scope.keys {
            let inner: Vec<&'static Scope> = match &key.kind {
                Kind::Scope(inner) | Kind::Named(inner) => vec![*inner],
                Kind::Topics => vec![&TOPIC_PATTERN],
                Kind::Value => vec![&FRAMED, &PROTOBUF, &JSON_SCHEMA],
                Kind::RecordTypes => vec![&RECORD_TYPE, &OTHER_TYPES],
                _ => Vec::new(),
            };
            for inner in inner {
                if !found.iter().any(|known| known.name == inner.name) {
                    found.push(inner);
                }
            }
        }
    }
    found
}
