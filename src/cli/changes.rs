//! Routes whose records say that keys are gone: the codec of change events, which sinks take deletes, and which key those
//! have there.

use arrow::datatypes::{DataType, SchemaRef};

use crate::codec::avro::node::{Node, SchemaError};
use crate::codec::debezium::{self, Changes, JsonChanges, UNAVAILABLE};
use crate::codec::meta::KEY;
use crate::codec::{Codec, Registered, Side};
use crate::config::plan::{
    Envelope, ReaderSchema, Recursion, Route, SchemaFormat, Sink, TableRows, Target, Truncate, ValueForm,
    Written,
};
use crate::model::Reference;
use crate::registry::Registry;
use crate::sink::kafka::DeleteKey;

use super::build::{self, Bound, BoundType, Parsed, ReadAs, ReaderError};

/// An Avro schema of a route; of change events also what Kafka Connect has instead.
///
/// # Errors
/// [`SchemaError`]
pub fn avro_node(
    route: &Route,
    text: &str,
    references: &[Reference],
    recursion: Recursion,
) -> Result<Node, SchemaError> {
    match route.envelope {
        Envelope::None => Node::parse_with(text, references, recursion),
        Envelope::Debezium => debezium::parse(text, references, recursion),
    }
}

/// The codec of change events.
///
/// # Errors
/// [`ReaderError`]
pub async fn codec(route: &Route, registry: Option<&dyn Registry>) -> Result<Box<dyn Codec>, ReaderError> {
    let unusable = |problem: String| ReaderError::Unusable {
        route: route.name.clone(),
        what: "its schema".to_owned(),
        problem,
    };
    let changes = |node: &Node, format, is_of_file| {
        let changes = Changes::new(node, format, is_of_file).map_err(|error| unusable(error.to_string()));
        changes.map(|changes| changes.truncating(route.truncate))
    };
    let form = match &route.value {
        ValueForm::Registry(form) => form,
        ValueForm::Json(path) => {
            let node = build::schema_file(route, path, Recursion::Refuse)?;
            return Ok(Box::new(JsonChanges::new(changes(&node, SchemaFormat::JsonSchema, true)?)));
        }
        ValueForm::Raw(_) => return Err(unusable("records as they are have no columns".to_owned())),
    };
    let is_of_file = matches!(form.schema, ReaderSchema::File(_));
    let ReadAs { schema, name, version } = build::reader(route, Side::Value, form, registry).await?;
    let changes = match schema {
        Parsed::Avro(node) => changes(&node, SchemaFormat::Avro, is_of_file)?,
        Parsed::Json(node) => changes(&node, SchemaFormat::JsonSchema, is_of_file)?,
        Parsed::Protobuf(_) => return Err(unusable("change events in Protobuf cannot be read".to_owned())),
    };
    let codec = Registered::changes(changes).recursive(form.recursion).validated(form.is_validated);
    Ok(Box::new(codec.framed(form.framing).read_as(name, version)))
}

/// What a sink does with keys that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// It writes null under them.
    Null(DeleteKey),
    /// It removes the rows that have them.
    Removed,
    /// It leaves them out, for this reason.
    LeftOut(&'static str),
}

impl Taking {
    pub fn key(self) -> Option<DeleteKey> {
        match self {
            Self::Null(key) => Some(key),
            Self::Removed | Self::LeftOut(_) => None,
        }
    }

    fn is_left_out(self) -> bool {
        matches!(self, Self::LeftOut(_))
    }
}

/// What a sink does with deletes if there are any.
pub fn taking(bound: BoundType<'_>, sink: &Sink) -> Taking {
    match &sink.target {
        Target::Files { .. } | Target::Console { .. } | Target::Http(_) | Target::Delta(_) => {
            Taking::LeftOut("it only appends")
        }
        Target::Postgres(table) if table.rows == TableRows::Append => Taking::LeftOut("it only appends"),
        // A key that does not say which rows are meant is a mistake in the file: see `fit`.
        Target::Postgres(_) => Taking::Removed,
        Target::Kafka { topic: None, .. } => Taking::LeftOut("its rows name their topics"),
        Target::Kafka { .. } if !bound.is_of_records(sink) => {
            Taking::LeftOut("its view does not make each row of one record")
        }
        Target::Kafka { key: Some(Written { column: None, .. }), .. } => {
            Taking::LeftOut("its key is made of all columns")
        }
        Target::Kafka { key, .. } => {
            let name = key.as_ref().and_then(|written| written.column.as_deref()).unwrap_or("key");
            topic_key(name, &bound.schema(sink), &bound.decoder.key_type())
        }
    }
}

/// The key that a sink of a route writes null under where one is gone, if it does.
pub fn delete_key(route: &Route, bound: &Bound, sink: &Sink) -> Option<DeleteKey> {
    taking(bound.of(sink), sink).key().filter(|_| route.has_deletes())
}

/// The record's key has to be the one that rows are written under.
fn topic_key(name: &str, rows: &SchemaRef, key: &DataType) -> Taking {
    let Ok(column) = rows.field_with_name(name) else {
        return Taking::LeftOut("its records have no key");
    };
    if rows.field_with_name("partition").is_ok_and(|field| *field.data_type() == DataType::Int32) {
        return Taking::LeftOut("its rows name their partitions");
    }
    let is_field = match key {
        DataType::Struct(fields) => match fields.iter().as_slice() {
            [only] => only.name() == name && only.data_type() == column.data_type(),
            _ => false,
        },
        _ => false,
    };
    match (name == KEY && column.data_type() == key, is_field) {
        (true, _) => Taking::Null(DeleteKey::Whole),
        (false, true) => Taking::Null(DeleteKey::Field),
        (false, false) => Taking::LeftOut(
            "its key is not the record's: let its view select `_key` and say `key: {column: _key}`",
        ),
    }
}

/// Does a sink keep the newest row of each key? And do all such sinks see which columns were not sent?
pub fn keeping(route: &Route, bound: BoundType<'_>) -> Option<bool> {
    let keepers = || route.sinks.iter().filter(|sink| !taking(bound, sink).is_left_out());
    let tells = |sink: &Sink| bound.schema(sink).field_with_name(UNAVAILABLE).is_ok();
    let is_any = route.has_deletes() && keepers().next().is_some();
    is_any.then(|| keepers().all(tells))
}

/// What `check` prints of deletes, sink by sink.
pub fn lines(route: &Route, bound: &Bound) -> Vec<String> {
    if !route.has_deletes() {
        return Vec::new();
    }
    let line = |sink: &Sink| match taking(bound.of(sink), sink) {
        Taking::Null(_) => format!("deletes in {}: null under their key", sink.name),
        Taking::Removed => format!("deletes in {}: the row of the key is removed", sink.name),
        Taking::LeftOut(why) => format!("deletes in {}: left out, {why}", sink.name),
    };
    let truncated = match route.truncate {
        Truncate::Delete => Some("truncations: all rows of tables that are kept by key are deleted"),
        Truncate::Ignore => Some("truncations: rows stay"),
        Truncate::Refuse => None,
    };
    // Change events are of one record type.
    let events = route.sinks.first().filter(|_| route.envelope == Envelope::Debezium);
    let unavailable = events.and_then(|sink| keeping(route, bound.of(sink)));
    let unavailable = unavailable.map(|are_told| match are_told {
        true => "values that were not sent: a table keeps its own, the other sinks that keep rows by key get `_unavailable`",
        false => "values that were not sent: their records are bad (`unavailable_value`)",
    });
    route.sinks.iter().map(line).chain(unavailable.into_iter().chain(truncated).map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use arrow::datatypes::{Field, Schema};

    use super::*;
    use crate::config::{Environment, read};

    #[test]
    fn deletes_have_the_key_of_rows_or_none() {
        let rows = |names: &[(&str, DataType)]| {
            let fields = names.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
            Arc::new(Schema::new(fields.collect::<Vec<_>>()))
        };
        let record = |names: &[(&str, DataType)]| DataType::Struct(rows(names).fields().clone());
        let id = || ("id", DataType::Int64);
        let (whole, field) = (Taking::Null(DeleteKey::Whole), Taking::Null(DeleteKey::Field));
        assert_eq!(topic_key(KEY, &rows(&[(KEY, DataType::Binary)]), &DataType::Binary), whole);
        assert_eq!(topic_key("id", &rows(&[id()]), &record(&[id()])), field);
        for (name, rows, key) in [
            ("id", rows(&[id()]), DataType::Int64),
            ("id", rows(&[("id", DataType::Utf8)]), record(&[id()])),
            ("id", rows(&[id()]), record(&[id(), ("at", DataType::Int64)])),
            ("key", rows(&[id()]), record(&[id()])),
            (KEY, rows(&[(KEY, DataType::Utf8), ("partition", DataType::Int32)]), DataType::Utf8),
        ] {
            assert!(topic_key(name, &rows, &key).key().is_none(), "{name} {rows} {key}");
        }
    }

    const TEXT: &str = "
version: 1
kafka: {bootstrap.servers: b, group.id: g}
routes:
  r:
    topics: [t]
    value: string
    tombstones: delete
    views:
      rows: SELECT _key, value FROM batch
      counts: SELECT _key, count(*) AS n FROM batch GROUP BY _key
    sinks:
      copy: {kafka: {topic: copy, key: {column: _key}}}
      rows: {from: rows, kafka: {topic: rows, key: {column: _key}}}
      counts: {from: counts, kafka: {topic: counts, key: {column: _key}}}
      lake: {parquet: {path: out/lake}}
      log: {from: rows, postgres: {url: \"postgresql://h/d\", table: log}}
      table: {from: rows, postgres: {url: \"postgresql://h/d\", table: t, mode: upsert, primary_key: [_key]}}
";

    async fn bound(text: &str) -> (Route, Bound) {
        let route = read(text, &Environment::new([], Path::new("."))).unwrap().routes.remove(0);
        let decoders = build::decoders(&route, None).await.unwrap();
        let bound = build::bind(&route, decoders).await.unwrap_or_else(|problems| panic!("{problems:?}"));
        (route, bound)
    }

    #[tokio::test]
    async fn check_says_what_becomes_of_deletes() {
        let (route, bound) = bound(TEXT).await;
        assert_eq!(
            lines(&route, &bound),
            [
                "deletes in copy: null under their key",
                "deletes in rows: null under their key",
                "deletes in counts: left out, its view does not make each row of one record",
                "deletes in lake: left out, it only appends",
                "deletes in log: left out, it only appends",
                "deletes in table: the row of the key is removed",
            ]
        );
        // Nobody sees what was not sent.
        assert_eq!(keeping(&route, bound.of(&route.sinks[0])), Some(false));
        let (route, bound) = self::bound(&TEXT.replace("delete\n", "skip\n")).await;
        assert!(lines(&route, &bound).is_empty());
        assert!(keeping(&route, bound.of(&route.sinks[0])).is_none());
    }

    /// What `check` says of a table of change events that reads a view.
    async fn said(view: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let row = r#"{"type": "record", "name": "Row", "fields": [
            {"name": "id", "type": "int"}, {"name": "note", "type": ["null", "string"]}]}"#;
        std::fs::write(folder.path().join("row.avsc"), row).unwrap();
        let text = format!(
            "
version: 1
kafka: {{bootstrap.servers: b, group.id: g}}
routes:
  r:
    topics: [t]
    envelope: debezium
    key: {{json: {{schema: {{file: row.avsc}}}}}}
    value: {{json: {{schema: {{file: row.avsc}}}}}}
    views: {{rows: \"{view}\"}}
    sinks:
      table: {{from: rows, postgres: {{url: \"postgresql://h/d\", table: t, mode: upsert, primary_key: [id]}}}}
"
        );
        let route = read(&text, &Environment::new([], folder.path())).unwrap().routes.remove(0);
        let decoders = build::decoders(&route, None).await.unwrap();
        match build::bind(&route, decoders).await {
            Ok(bound) => lines(&route, &bound).join("; "),
            Err(problems) => problems.into_iter().map(|problem| problem.message).collect(),
        }
    }

    #[tokio::test]
    async fn a_table_keeps_what_was_not_sent_where_its_view_leaves_it_alone() {
        for (view, expected) in [
            ("SELECT *, _unavailable FROM batch", "not sent: a table keeps its own"),
            ("SELECT id * 2 AS id, _unavailable FROM batch WHERE id > 0", "not sent: a table keeps its own"),
            ("SELECT * FROM batch", "not sent: their records are bad"),
            (
                "SELECT id, upper(note) AS note, _unavailable FROM batch",
                "its column `note` is made of `note`",
            ),
            ("SELECT id, note AS text, _unavailable FROM batch", "its column `text` is made of `note`"),
            ("SELECT id, _unavailable FROM batch WHERE note <> 'x'", "its view chooses rows by `note`"),
        ] {
            let said = said(view).await;
            assert!(said.contains(expected), "{view}: {said}");
        }
    }

    /// A table would keep rows that are gone.
    #[tokio::test]
    async fn a_table_needs_the_key_that_its_rows_are_known_by() {
        let text = TEXT.replace("primary_key: [_key]", "primary_key: [value]");
        let route = |text: &str| read(text, &Environment::new([], Path::new("."))).unwrap().routes.remove(0);
        let deletes = route(&text);
        let decoders = build::decoders(&deletes, None).await.unwrap();
        let Err(problems) = build::bind(&deletes, decoders).await else { panic!() };
        let [only] = problems.as_slice() else { panic!("{problems:?}") };
        let expected = "sink `table`: deletes: the record's key has Binary for column `value`";
        assert!(only.message.contains(expected), "{}", only.message);
        // Nothing is gone: any column will do.
        bound(&text.replace("delete\n", "skip\n")).await;
    }
}
