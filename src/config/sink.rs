//! The sinks of a route. A new kind of sink is a scope in `keys`, a variant of `plan::Target`, and an arm here.

use std::path::PathBuf;

use super::keys;
use super::mapping::{Context, Mapping, unknown, written};
use super::plan::{AvroCodec, FileFormat, ObjectStorage, PartitionBy, Roll, Sink, Target, View};
use super::route::{check_name, start};
use super::{Problem, delta, file_format, http, kafka_sink, postgres, storage};
use crate::model::{StartHash, TopicName};

use super::tree::{Key, Node, Span, Value};

/// Levels of `partition_by`. Each may be a name of 255 bytes: eight of them fill half of the 4096 bytes that
/// a path may have, and leave the rest for what is above and below them.
const PARTITIONS_MAX: usize = 8;

/// Reads all sinks, each with its place.
pub fn read_all(
    route: &str,
    mapping: &Mapping<'_>,
    views: &[View],
    topics: &[String; 2],
    context: &mut Context<'_>,
) -> Vec<(Sink, Span)> {
    let sinks = mapping.named("sinks", context);
    if sinks.is_empty()
        && let Some(node) = mapping.get("sinks")
    {
        context.problem(node.span, "a route has at least one sink");
    }
    sinks
        .into_iter()
        .filter_map(|(key, node)| Some((read(route, key, node, views, topics, context)?, key.span)))
        .collect()
}

/// At least one sink is waited for: it says how far the route is.
pub fn check_required(sinks: &[(Sink, Span)], context: &mut Context<'_>) {
    if let Some((_, span)) = sinks.first()
        && sinks.iter().all(|(sink, _)| !sink.is_required)
    {
        let problem = Problem::new(*span, "no sink of this route is required");
        let hint =
            "leave `required: false` out of one of them: how far that one is tells how far the route is";
        context.problems.push(problem.hint(hint));
    }
}

fn read(
    route: &str,
    key: &Key,
    node: &Node,
    views: &[View],
    [topics, exclude]: &[String; 2],
    context: &mut Context<'_>,
) -> Option<Sink> {
    check_name("sink", key, context);
    let mapping = Mapping::open(node, &keys::SINK, context)?;
    let from = from(&mapping, views, context);
    let identity = mapping.text("id", context);
    let adopt = mapping.text("adopt", context);
    let is_shared = mapping.choice("shared", context) == "true";
    let is_required = mapping.choice("required", context) == "true";
    let start = start(&mapping, context);
    let view = from.flatten().map_or("batch", |view| views[view].name.as_str());
    let target = target(key, view, &mapping, context);
    if let Some(target) = &target {
        check_owner_keys(key, &mapping, target, context);
    }
    Some(Sink {
        name: key.name.clone(),
        identity: identity.unwrap_or_else(|| format!("{route}/{}", key.name)),
        record_type: 0,
        // One that leads nowhere was reported; the rest of the sink is checked all the same.
        from: from.flatten(),
        start: start.map(|start| {
            let hash = StartHash::of(&[topics, exclude, &format!("{start:?}")]);
            (start, hash)
        }),
        target: target?,
        adopt,
        is_shared,
        is_required,
    })
}

/// Only a target that keeps positions has an owner.
fn check_owner_keys(key: &Key, mapping: &Mapping<'_>, target: &Target, context: &mut Context<'_>) {
    if target.has_own_store() {
        return;
    }
    let name = &key.name;
    for (given, hint) in [
        ("adopt", "its positions are kept with the group: set `id:` to the former identity, `route/sink`"),
        ("shared", "leave it out: routes may share the target as it is"),
    ] {
        if mapping.own(given).is_some() {
            let message = format!("`{given}` is of no use for sink `{name}`: nobody owns its target");
            context.problems.push(Problem::new(mapping.place(given), message).hint(hint));
        }
    }
}

/// A named target for bad records.
pub struct DeadLetter {
    pub name: String,
    target: Target,
}

impl DeadLetter {
    /// The sink of one route's dead letters. A topic and a table are shared by routes, a directory is not.
    pub fn sink(&self, route: &str) -> Sink {
        let target = match &self.target {
            Target::Files { format, path, storage, partition_by, roll } => Target::Files {
                format: format.clone(),
                path: path.join(route),
                storage: storage.clone(),
                partition_by: partition_by.clone(),
                roll: *roll,
            },
            other => other.clone(),
        };
        let name = format!("dead_letter/{}", self.name);
        let identity = format!("{route}/{name}");
        let is_shared = matches!(target, Target::Postgres(_));
        Sink {
            identity,
            name,
            record_type: 0,
            from: None,
            start: None,
            target,
            adopt: None,
            is_shared,
            is_required: true,
        }
    }
}

/// Reads `dead_letters:`.
pub fn dead_letters(root: &Mapping<'_>, context: &mut Context<'_>) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    for (key, node) in root.named("dead_letters", context) {
        check_name("dead letter target", key, context);
        let Some(mapping) = Mapping::open(node, &keys::DEAD_LETTER, context) else {
            continue;
        };
        let kinds = keys::DEAD_LETTER.keys.iter().map(|kind| kind.name);
        let given: Vec<&'static str> = kinds.filter(|kind| mapping.names(kind)).collect();
        let target = match given.as_slice() {
            ["kafka"] => dead_letter_topic(&mapping, context),
            ["postgres"] => postgres::read_letters(&mapping, context).map(Target::Postgres),
            [format] => dead_letter_files(format, &mapping, context),
            _ => {
                let kinds = "`kafka`, `jsonl`, `parquet`, `avro` or `postgres`";
                context.problem(key.span, format!("`{}` says one target: {kinds}", key.name));
                None
            }
        };
        if let Some(target) = target {
            letters.push(DeadLetter { name: key.name.clone(), target });
        }
    }
    letters
}

fn dead_letter_topic(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    let kafka = mapping.nested("kafka", &keys::DEAD_LETTER_TOPIC, context)?;
    kafka.require("topic", context);
    let value = kafka_sink::of_letters(&kafka, context);
    let topic = kafka.text("topic", context)?;
    let topic = Some(TopicName::new(&topic));
    Some(Target::Kafka { topic, key: None, value: value?, is_transactional: false, cluster: None })
}

fn dead_letter_files(name: &str, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    let scope = match name {
        "parquet" => &keys::DEAD_LETTER_PARQUET,
        "avro" => &keys::DEAD_LETTER_AVRO,
        _ => &keys::DEAD_LETTER_FILES,
    };
    let files = mapping.nested(name, scope, context)?;
    let format = match name {
        "parquet" => file_format::parquet_of_letters(&files, context).map(FileFormat::Parquet),
        "avro" => {
            let record_name = kafka_sink::LETTER.to_owned();
            Some(FileFormat::Avro { codec: avro_codec(&files, context), record_name })
        }
        _ => file_format::text(&files, context).map(FileFormat::JsonLines),
    };
    let (path, storage, roll) = directory(&files, context)?;
    Some(Target::Files { format: format?, path, storage, partition_by: Vec::new(), roll })
}

/// The one kind of target that is given.
fn target(key: &Key, view: &str, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    const KINDS: [&str; 9] =
        ["console", "jsonl", "csv", "avro", "parquet", "kafka", "http", "postgres", "delta"];
    let given: Vec<&'static str> = KINDS.into_iter().filter(|name| mapping.names(name)).collect();
    let name = match given.as_slice() {
        [one] => *one,
        [] => {
            let names = KINDS.map(|name| format!("`{name}`")).join(", ");
            context.problem(key.span, format!("sink `{}` says no target: one of {names}", key.name));
            return None;
        }
        [first, .., last] => {
            let message = format!("sink `{}` says two targets: `{first}` and `{last}`", key.name);
            context.problems.push(Problem::new(key.span, message).hint("make two sinks of it"));
            return None;
        }
    };
    match name {
        "parquet" | "jsonl" | "csv" => files(name, mapping, context),
        "avro" => avro_files(mapping, context),
        "console" => {
            let console = mapping.nested(name, &keys::CONSOLE, context)?;
            let rows_max = usize::try_from(console.integer("max_rows", context)?).ok()?;
            Some(Target::Console { rows_max })
        }
        "http" => http::read(mapping, view, context).map(Target::Http),
        "postgres" => postgres::read(mapping, context).map(Target::Postgres),
        "delta" => delta::read(mapping, context).map(Target::Delta),
        _ => kafka(mapping, context),
    }
}

fn files(name: &'static str, mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    let scope = if name == "parquet" { &keys::PARQUET } else { &keys::FILES };
    let files = mapping.nested(name, scope, context)?;
    let partition_by = partition_by(&files, context);
    let format = match name {
        "parquet" => file_format::parquet(&files, context).map(FileFormat::Parquet),
        "jsonl" => file_format::text(&files, context).map(FileFormat::JsonLines),
        _ => file_format::text(&files, context).map(FileFormat::Csv),
    };
    let (path, storage, roll) = directory(&files, context)?;
    Some(Target::Files { format: format?, path, storage, partition_by, roll })
}

fn avro_files(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    let files = mapping.nested("avro", &keys::AVRO_FILES, context)?;
    let codec = avro_codec(&files, context);
    let record_name = files.parsed("record_name", kafka_sink::parse_record_name, context);
    let partition_by = partition_by(&files, context);
    let (path, storage, roll) = directory(&files, context)?;
    let format = FileFormat::Avro { codec, record_name: record_name? };
    Some(Target::Files { format, path, storage, partition_by, roll })
}

fn avro_codec(files: &Mapping<'_>, context: &mut Context<'_>) -> AvroCodec {
    match files.choice("codec", context).as_str() {
        "none" => AvroCodec::None,
        "deflate" => AvroCodec::Deflate,
        "zstd" => AvroCodec::Zstd,
        _ => AvroCodec::Snappy,
    }
}

/// What all sinks that write files say: where, and when files are closed.
fn directory(
    files: &Mapping<'_>,
    context: &mut Context<'_>,
) -> Option<(PathBuf, Option<Box<ObjectStorage>>, Roll)> {
    let (path, roll) = path_and_roll(files, context)?;
    let storage = storage::read(&path, files, context)?;
    Some((PathBuf::from(path), storage, roll))
}

pub fn path_and_roll(files: &Mapping<'_>, context: &mut Context<'_>) -> Option<(String, Roll)> {
    files.require("path", context);
    let path = files.text("path", context);
    let roll = roll(files, context);
    Some((path?, roll?))
}

pub fn partition_by(files: &Mapping<'_>, context: &mut Context<'_>) -> Vec<PartitionBy> {
    let mut levels = Vec::new();
    for (key, node) in files.named("partition_by", context) {
        check_name("partition", key, context);
        if key.name.starts_with('_') {
            let message = format!("a partition is not named `{}`", key.name);
            let problem = Problem::new(key.span, message);
            context.problems.push(problem.hint("readers pass over directories that begin with `_`"));
        }
        // SQL is not expanded: a dollar sign in it is SQL's.
        match &node.value {
            Value::Scalar(scalar) => levels.push(PartitionBy {
                name: key.name.clone(),
                sql: scalar.text.clone(),
                content: scalar.content,
            }),
            _ => context.problem(node.span, format!("expected SQL, found {}", node.kind())),
        }
    }
    if let Some(Node { span, value: Value::Map(entries) }) = files.get("partition_by")
        && !(1..=PARTITIONS_MAX).contains(&entries.len())
    {
        let message =
            format!("`partition_by` has 1 to {PARTITIONS_MAX} names, this one has {}", entries.len());
        context.problem(*span, message);
    }
    levels
}

fn kafka(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Target> {
    let kafka = mapping.nested("kafka", &keys::KAFKA_SINK, context)?;
    let key = kafka_sink::read("key", &kafka, context);
    let value = kafka_sink::read("value", &kafka, context);
    let topic = kafka.text("topic", context).map(|name| TopicName::new(&name));
    let is_transactional = kafka.choice("transactional", context) == "true";
    let cluster = kafka.text("cluster", context);
    Some(Target::Kafka { topic, key, value, is_transactional, cluster })
}

/// `Some(None)` is `batch`.
fn from(mapping: &Mapping<'_>, views: &[View], context: &mut Context<'_>) -> Option<Option<usize>> {
    let Some(name) = mapping.text("from", context) else {
        return Some(None);
    };
    if name == "batch" {
        return Some(None);
    }
    let found = views.iter().position(|view| view.name == name);
    if found.is_none() {
        let mut names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
        names.push("batch");
        if let Some(node) = mapping.get("from") {
            context.problems.push(unknown("view", node.span, written(node), &names));
        }
        return None;
    }
    Some(found)
}

fn roll(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Option<Roll> {
    let roll = mapping.nested("roll", &keys::ROLL, context)?;
    Some(Roll {
        bytes_max: roll.bytes("max_bytes", context)?,
        rows_max: roll.integer("max_rows", context),
        age_max: roll.duration("max_age", context)?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{TableRows, TextCompression, WrittenForm};
    use crate::config::{Environment, read, render};

    const TEXT: &str = "\
version: 1
kafka: {bootstrap.servers: b, group.id: g}
dead_letters: {bad: {jsonl: {path: out/bad}}}
routes:
  r:
    topics: [t]
    value: string
    sinks:
      s: {csv: {path: out/s, partition_by: {day: \"to_date(at)\", country: country}}}
";

    fn environment() -> Environment {
        Environment::new([], Path::new("."))
    }

    #[test]
    fn partitions_keep_their_order_and_know_their_place() {
        let plan = read(TEXT, &environment()).unwrap();
        let Target::Files { partition_by, .. } = &plan.routes[0].sinks[0].target else { panic!() };
        let levels: Vec<(&str, &str)> =
            partition_by.iter().map(|level| (level.name.as_str(), level.sql.as_str())).collect();
        assert_eq!(levels, [("day", "to_date(at)"), ("country", "country")]);
        assert_eq!(partition_by[0].content.place(1, 9), Span { line: 9, column: 59 });
    }

    /// The sink of dead letters of a route, for such a target.
    fn letters(target: &str, registry: &str) -> Result<Sink, String> {
        let text = TEXT
            .replace("{bad: {jsonl: {path: out/bad}}}", &format!("{{bad: {{{target}}}}}\n{registry}"))
            .replace("value: string\n", "value: string\n    bad_records: {dead_letter: bad}\n");
        let plan = read(&text, &environment());
        let plan = plan.map_err(|problems| render("routes.yaml", &text, &problems));
        plan.map(|mut plan| plan.routes.remove(0).dead_letters.remove(0))
    }

    #[test]
    fn dead_letters_go_to_a_topic_to_files_or_to_a_table() {
        let files = |target: &str| match letters(target, "").unwrap().target {
            Target::Files { format, path, .. } => (format, path.display().to_string()),
            other => panic!("{other:?}"),
        };
        let (format, path) = files("jsonl: {path: out/bad, compression: gzip}");
        assert_eq!(path, "out/bad/r");
        assert_eq!(format, FileFormat::JsonLines(TextCompression::Gzip(6)));
        let (format, _) = files("parquet: {path: out/bad, compression: zstd}");
        assert!(matches!(format, FileFormat::Parquet(options) if options.columns.is_empty()));
        let (format, _) = files("avro: {path: out/bad, codec: zstd}");
        let expected = FileFormat::Avro { codec: AvroCodec::Zstd, record_name: "DeadLetter".to_owned() };
        assert_eq!(format, expected);

        let table = letters("postgres: {url: postgresql://h/d, table: ops.bad}", "").unwrap();
        assert!(table.is_shared);
        let Target::Postgres(postgres) = table.target else { panic!() };
        assert_eq!((postgres.shown().as_str(), postgres.creates), ("ops.bad", true));
        assert_eq!(postgres.rows, TableRows::Append);

        let value = |target: &str, registry: &str| match letters(target, registry).unwrap().target {
            Target::Kafka { key: None, value, .. } => value,
            other => panic!("{other:?}"),
        };
        assert_eq!(value("kafka: {topic: bad}", ""), None);
        assert_eq!(value("kafka: {topic: bad, format: original}", ""), None);
        let json = value("kafka: {topic: bad, format: json}", "").unwrap();
        assert_eq!((json.column, json.form), (None, WrittenForm::Json));
        let registry = "schema_registry: {url: http://r}";
        let avro = value("kafka: {topic: bad, format: avro, record_name: ops.Letter}", registry).unwrap();
        let WrittenForm::Registered(avro) = avro.form else { panic!() };
        assert_eq!(avro.record_name.as_deref(), Some("ops.Letter"));
        for (keys, expected) in [("", Some("DeadLetter")), (", use_latest: true", None)] {
            let named = value(&format!("kafka: {{topic: bad, format: protobuf{keys}}}"), registry).unwrap();
            let WrittenForm::Registered(named) = named.form else { panic!() };
            assert_eq!(named.record_name.as_deref(), expected);
        }
    }

    #[test]
    fn what_is_wrong_with_targets_of_dead_letters_is_told() {
        for (target, expected) in [
            ("kafka: {topic: b}, jsonl: {path: o}", "`kafka`, `jsonl`, `parquet`, `avro` or `postgres`"),
            ("csv: {path: o}", "`csv` is not a known key here"),
            ("parquet: {path: o, columns: {}}", "`columns` is not a known key here"),
            ("jsonl: {path: o, partition_by: {day: x}}", "`partition_by` is not a known key here"),
            ("postgres: {url: postgresql://h/d}", "`table` is missing"),
            ("postgres: {url: postgresql://h/d, table: b, mode: upsert}", "`mode` is not a known key here"),
            ("kafka: {topic: b, format: avor}", "did you mean `avro`?"),
            ("kafka: {topic: b, subject: topic}", "`subject` is of no use without a format"),
            ("kafka: {topic: b, format: avro}", "sink `dead_letter/bad` of route `r` writes with a schema"),
        ] {
            let shown = letters(target, "").unwrap_err();
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn owners_are_of_use_only_where_positions_are_kept() {
        let with = |keys: &str| TEXT.replace("s: {csv", &format!("s: {{{keys}, csv"));
        let plan = read(&with("adopt: old/s, shared: true"), &environment()).unwrap();
        let sink = &plan.routes[0].sinks[0];
        assert_eq!((sink.adopt.as_deref(), sink.is_shared), (Some("old/s"), true));
        let text = TEXT.replace(
            "s: {csv: {path: out/s, partition_by: {day: \"to_date(at)\", country: country}}}",
            "s: {adopt: a/b, shared: true, kafka: {topic: x}}",
        );
        let shown = render("routes.yaml", &text, &read(&text, &environment()).unwrap_err());
        for expected in
            ["routes.yaml:9:11: `adopt` is of no use for sink `s`", "routes.yaml:9:23: `shared` is of no use"]
        {
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
        let wrong = with("shared: yes");
        let shown = render("routes.yaml", &wrong, &read(&wrong, &environment()).unwrap_err());
        assert!(shown.contains("`yes` is not a known value here"), "{shown}");
    }

    #[test]
    fn a_directory_is_shared_by_those_who_say_so_and_nobody_adopts_the_living() {
        let shown = |first: &str, second: &str| {
            let route = |name: &str, keys: &str| {
                format!(
                    "  {name}: {{topics: [{name}], value: string, sinks: {{s: {{{keys}, csv: {{path: out}}}}}}}}\n"
                )
            };
            let head = "version: 1\nkafka: {bootstrap.servers: b, group.id: g}\nroutes:\n";
            let text = format!("{head}{}{}", route("a", first), route("b", second));
            let problems = read(&text, &environment()).err().unwrap_or_default();
            render("routes.yaml", &text, &problems)
        };
        let shared = "shared: true";
        assert_eq!(shown(shared, shared), "");
        for (first, second) in [(shared, "shared: false"), ("from: batch", shared)] {
            let shown = shown(first, second);
            assert!(shown.contains("`out` is already used by sink `a/s`"), "{shown}");
        }
        let adopting = |former: &str| format!("shared: true, adopt: {former}");
        assert_eq!(shown(shared, &adopting("gone/s")), "");
        // After a change of the group.
        assert_eq!(shown(shared, &adopting("b/s")), "");
        let living = shown(shared, &adopting("a/s"));
        assert!(living.contains("a sink of this file still writes as `a/s`"), "{living}");
        let twice = shown(&adopting("gone/s"), &adopting("gone/s"));
        assert!(twice.contains("`gone/s` is adopted by sink `s` already"), "{twice}");
    }

    #[test]
    fn a_sink_may_say_where_it_begins() {
        let plan = read(TEXT, &environment()).unwrap();
        assert_eq!(plan.routes[0].sinks[0].start, None);
        let text = TEXT.replace("s: {csv", "s: {start: earliest, csv");
        let plan = read(&text, &environment()).unwrap();
        let route = &plan.routes[0];
        let (start, hash) = route.sinks[0].start.clone().unwrap();
        assert_eq!(start, crate::model::Start::Earliest);
        // The same topics and another start: another digest.
        assert_ne!(hash, route.start_hash);
        let text = TEXT.replace("s: {csv", "s: {start: soon, csv");
        let shown = render("routes.yaml", &text, &read(&text, &environment()).unwrap_err());
        assert!(shown.contains("routes.yaml:9:18"), "{shown}");
    }

    #[test]
    fn names_and_numbers_of_partitions_are_checked() {
        let many: Vec<String> = (0..9).map(|level| format!("p{level}: id")).collect();
        let many = format!("country: country, {}", many.join(", "));
        for (from, to, expected) in [
            (
                "country: country",
                "_country: country",
                "routes.yaml:9:65: a partition is not named `_country`",
            ),
            ("country: country", "\"a/b\": country", "`a/b` is no name for a partition"),
            ("country: country", "country: [country]", "expected SQL, found a list"),
            ("country: country", "country: ~", "expected SQL, found nothing"),
            ("country: country", many.as_str(), "`partition_by` has 1 to 8 names, this one has 11"),
            (
                "{day: \"to_date(at)\", country: country}",
                "{}",
                "`partition_by` has 1 to 8 names, this one has 0",
            ),
            (
                "path: out/bad",
                "path: out/bad, partition_by: {a: b}",
                "`partition_by` is not a known key here",
            ),
        ] {
            let text = TEXT.replace(from, to);
            let shown = render("routes.yaml", &text, &read(&text, &environment()).unwrap_err());
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
        }
    }
}
