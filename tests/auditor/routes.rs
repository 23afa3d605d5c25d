//! The routes file of the workload, and where its sinks are.

use std::path::PathBuf;

use crate::model::{Form, topic};
use crate::workload::WorkloadOptions;

/// What a sink gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// Every row, straight from the batch, into Parquet.
    Archive,
    /// Every row, through a view that keeps its coordinates, into JSON Lines.
    Lines,
    /// Bad records, into JSON Lines.
    Letters,
}

impl Feed {
    pub const ALL: [Feed; 3] = [Feed::Archive, Feed::Lines, Feed::Letters];

    pub fn extension(self) -> &'static str {
        match self {
            Feed::Archive => "parquet",
            Feed::Lines | Feed::Letters => "jsonl",
        }
    }
}

/// A sink of the workload's routes.
#[derive(Debug, Clone)]
pub struct SinkPlace {
    pub form: Form,
    pub topic: String,
    pub feed: Feed,
    /// Its progress is kept under this.
    pub identity: String,
    /// Below the working directory of the program.
    pub dir: PathBuf,
}

/// All sinks of the workload, three for each topic.
pub fn sinks(options: &WorkloadOptions) -> Vec<SinkPlace> {
    let forms = Form::ALL.into_iter().filter(|form| form.is_there(options.features));
    forms.flat_map(|form| Feed::ALL.map(|feed| place(options, form, feed))).collect()
}

fn place(options: &WorkloadOptions, form: Form, feed: Feed) -> SinkPlace {
    let name = form.name();
    let (identity, dir) = match feed {
        Feed::Archive => (format!("{name}/archive"), format!("out/{name}/archive")),
        Feed::Lines => (format!("{name}/lines"), format!("out/{name}/lines")),
        Feed::Letters => (format!("{name}/dead_letter/letters"), format!("out/letters/{name}")),
    };
    SinkPlace { form, topic: topic(options, form), feed, identity, dir: PathBuf::from(dir) }
}

/// The file: one route for each topic, with small batches and files, so that a fault meets every step often. The limits
/// differ, so that the sinks of a route are rarely at the same place.
pub fn routes_yaml(
    options: &WorkloadOptions,
    bootstrap: &str,
    registry: &str,
    group: &str,
    kafka: &[(&str, &str)],
) -> String {
    let mut text =
        format!("version: 1\nkafka:\n  bootstrap.servers: \"{bootstrap}\"\n  group.id: \"{group}\"\n");
    for (name, value) in kafka {
        text.push_str(&format!("  {name}: \"{value}\"\n"));
    }
    text.push_str(&format!(
        "schema_registry: {{url: \"{registry}\"}}
dead_letters:
  letters: {{jsonl: {{path: out/letters, roll: {{max_rows: 20, max_age: 120ms}}}}}}
defaults:
  start: earliest
  batch: {{max_rows: 200, max_age: 50ms}}
  bad_records: {{dead_letter: letters}}
routes:
"
    ));
    for form in Form::ALL.into_iter().filter(|form| form.is_there(options.features)) {
        text.push_str(&route(options, form));
    }
    text
}

fn route(options: &WorkloadOptions, form: Form) -> String {
    let (name, topic) = (form.name(), topic(options, form));
    format!(
        "  {name}:
    topics: [\"{topic}\"]
    value: {value}
    key: {key}
    views:
      coordinates: SELECT {columns}, _partition, _offset FROM batch
    sinks:
      archive: {{parquet: {{path: out/{name}/archive, roll: {{max_rows: 500, max_age: 100ms}}}}}}
      lines: {{from: coordinates, jsonl: {{path: out/{name}/lines, roll: {{max_rows: 300, max_age: 150ms}}}}}}
",
        value = value(form),
        key = if form == Form::Compact { "string" } else { "bytes" },
        columns = match form {
            Form::Avro | Form::Json => "seq, uuid, sha",
            Form::Raw => "value, _headers",
            Form::Text => "value",
            Form::Compact => "_key, value",
        },
    )
}

fn value(form: Form) -> String {
    match form {
        Form::Avro => "registry".to_owned(),
        // Paths are relative to the routes file, which is somewhere else.
        Form::Json => {
            let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/auditor/json.avsc");
            format!("{{json: {{schema: {{file: \"{schema}\"}}}}}}")
        }
        Form::Raw => "bytes".to_owned(),
        Form::Text => "string".to_owned(),
        Form::Compact => "json".to_owned(),
    }
}
