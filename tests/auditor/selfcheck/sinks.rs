//! A sink's directory as the program would leave it, written by hand: files and commit log.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryBuilder, Float64Array, Int32Array, Int64Array, ListBuilder,
    StringArray, StringBuilder, StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields as ArrowFields};
use arrow::record_batch::RecordBatch;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use uuid::Uuid;

use super::create;
use crate::manifest::{Kind, Written};
use crate::model::{Draft, Fields, Form, sha};
use crate::routes::{Feed, SinkPlace};
use crate::topics::{SEQ, UUID};

/// The entry at which a pruned log begins: that of the first commit with a file.
const CHECKPOINT: u64 = 2;

/// A record, and the row that it becomes.
#[derive(Debug, Clone)]
pub struct Item {
    pub draft: Draft,
    pub offset: i64,
    /// Of typed topics.
    pub fields: Option<Fields>,
}

impl Item {
    /// Gives the row another value. `None`: it has none.
    pub fn change(&mut self) -> Option<()> {
        if let Some(fields) = &mut self.fields {
            fields.sha = Some(sha(b"another"));
        }
        self.draft.value.as_mut()?.push(b'!');
        Some(())
    }

    fn text(&self) -> Option<String> {
        self.draft.value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn headers(&self) -> [(&'static str, String); 2] {
        [(SEQ, self.draft.seq.to_string()), (UUID, self.draft.uuid.clone())]
    }

    fn json_headers(&self) -> Value {
        let headers = self.headers().map(|(key, value)| json!({"key": key, "value": STANDARD.encode(value)}));
        Value::from(headers.to_vec())
    }
}

/// One entry of the log, with at most one file.
#[derive(Debug, Clone, Default)]
pub struct MadeCommit {
    /// Partition, start, end, and how many records were there.
    pub moves: Vec<(i32, Option<i64>, i64, u64)>,
    pub items: Vec<Item>,
    /// The entry does not name its file.
    pub is_unlisted: bool,
    /// The entry names another predecessor.
    pub is_forged: bool,
    /// The entry says that there are so many more.
    pub rows_more: usize,
}

impl MadeCommit {
    /// Two rows of one partition.
    pub fn pair(&self) -> Option<(usize, usize)> {
        let find = |first: usize| {
            let partition = self.items[first].draft.partition;
            let second = self.items[first + 1..].iter().position(|item| item.draft.partition == partition);
            second.map(|after| (first, first + 1 + after))
        };
        (0..self.items.len()).find_map(find)
    }
}

#[derive(Debug, Clone)]
pub struct MadeSink {
    pub place: SinkPlace,
    /// From entry 1 on.
    pub commits: Vec<MadeCommit>,
    /// The log begins at a checkpoint.
    pub is_pruned: bool,
}

impl MadeSink {
    /// First sight, and two commits with half of the records each.
    pub fn new(place: SinkPlace, records: &[Written], items: &[Item], ends: [i64; 2]) -> MadeSink {
        let mut positions = [0, 0];
        let first_sight = (0..).zip(positions).map(|(partition, next)| (partition, None, next, 0)).collect();
        let mut commits = vec![MadeCommit { moves: first_sight, ..MadeCommit::default() }];
        let half = records.len() / 2;
        for (from, to) in [(0, half), (half, records.len())] {
            let mut commit = MadeCommit::default();
            for (partition, position) in (0..).zip(&mut positions) {
                let here = records[from..to].iter().filter(|record| record.partition == partition);
                let count = here.clone().filter(|record| !record.is_aborted).count() as u64;
                let last = here.map(|record| record.offset + 1).max().unwrap_or(*position);
                let end = if to == records.len() { ends[partition as usize] } else { last };
                commit.moves.push((partition, Some(*position), end, count));
                *position = end;
            }
            for (record, item) in records.iter().zip(items).take(to).skip(from) {
                let is_bad = record.kind == Kind::Bad;
                if !record.is_aborted && is_bad == (place.feed == Feed::Letters) {
                    commit.items.push(item.clone());
                }
            }
            commits.push(commit);
        }
        MadeSink { place, commits, is_pruned: false }
    }

    pub fn has_pair(&self) -> bool {
        self.commits.iter().any(|commit| commit.pair().is_some())
    }

    pub fn last_entry(&self) -> u64 {
        self.commits.len() as u64
    }

    fn log_id(&self) -> Uuid {
        Uuid::from_u128(0x1000 + self.place.feed as u128)
    }

    fn topic_id(&self) -> Uuid {
        Uuid::from_u128(1 + self.place.form as u128)
    }

    /// The word beside a committed offset that tells of this sink.
    pub fn log_word(&self, entry: u64) -> String {
        let identity = &sha(self.place.identity.as_bytes())[..16];
        format!("l{identity}={}.{entry}", self.log_id().simple())
    }

    /// Writes files and log below `place`.
    pub fn write(&self, place: &Path) -> Result<(), String> {
        let root = place.join(&self.place.dir);
        let house = root.join("_sidestream");
        for dir in ["log", "staged", "tmp"] {
            let dir = house.join(dir);
            fs::create_dir_all(&dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
        }
        let created =
            json!({"log": self.log_id(), "cluster": "c", "group": "g", "identity": self.place.identity});
        let mut entry = json!({"version": 1, "commit": Uuid::new_v4(), "previous": "", "created": created});
        let mut previous = put(&house, 0, "entry", &entry)?;
        for (number, commit) in (1..).zip(&self.commits) {
            let files = self.write_file(&root, commit)?;
            let moves: Vec<Value> = commit.moves.iter().map(|step| self.step(step)).collect();
            entry = json!({"version": 1, "commit": Uuid::new_v4(), "previous": previous, "moves": moves});
            if commit.is_forged {
                entry["previous"] = json!(sha(b"another"));
            }
            if !files.is_empty() && !commit.is_unlisted {
                entry["files"] = Value::from(files);
            }
            previous = put(&house, number, "entry", &entry)?;
            if self.is_pruned && number == CHECKPOINT {
                self.checkpoint(&house, &created, commit, &previous)?;
            }
        }
        Ok(())
    }

    fn step(&self, step: &(i32, Option<i64>, i64, u64)) -> Value {
        let (partition, start, end, count) = step;
        let reason =
            if start.is_some() { json!("data") } else { json!({"start": {"hash": "3b196fd4907bedf5"}}) };
        json!({
            "topic_id": self.topic_id(), "partition": partition, "topic": self.place.topic, "start": start,
            "end": {"next": end}, "reason": reason, "records": count,
        })
    }

    /// As if the file of its entry had been named by an older one that is gone.
    fn checkpoint(
        &self,
        house: &Path,
        created: &Value,
        commit: &MadeCommit,
        hash: &str,
    ) -> Result<(), String> {
        let position = |step: &(i32, Option<i64>, i64, u64)| {
            let (partition, _, next, _) = step;
            let topic = &self.place.topic;
            json!({"topic_id": self.topic_id(), "partition": partition, "topic": topic, "next": next})
        };
        let positions: Vec<Value> = commit.moves.iter().map(position).collect();
        let checkpoint = json!({
            "version": 1, "entry": CHECKPOINT, "hash": hash, "created": created, "positions": positions,
            "files": [],
        });
        put(house, CHECKPOINT, "checkpoint", &checkpoint)?;
        for number in 0..CHECKPOINT {
            let path = house.join("log").join(format!("{number:020}.entry"));
            fs::remove_file(&path).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
        }
        Ok(())
    }

    /// The commit's file, as its entry names it. None if it has no rows.
    fn write_file(&self, root: &Path, commit: &MadeCommit) -> Result<Vec<Value>, String> {
        let (Some((partition, start, _, _)), false) = (commit.moves.first(), commit.items.is_empty()) else {
            return Ok(Vec::new());
        };
        let (topic, attempt) = (self.topic_id().simple(), Uuid::new_v4().simple());
        let start = start.unwrap_or_default();
        let name = format!("{topic}.{partition}@{start}-{attempt}.{}", self.place.feed.extension());
        let path = root.join(&name);
        if self.place.feed == Feed::Archive {
            write_parquet(&path, self.place.form, &commit.items)?;
        } else {
            self.write_lines(&path, &commit.items)?;
        }
        let rows = commit.items.len() + commit.rows_more;
        Ok(vec![json!({"path": name, "staged": format!("{name}.staged"), "rows": rows, "bytes": 1})])
    }

    fn write_lines(&self, path: &Path, items: &[Item]) -> Result<(), String> {
        let mut file = BufWriter::new(create(path)?);
        let cannot = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
        for item in items {
            writeln!(file, "{}", self.line(item)).map_err(cannot)?;
        }
        file.flush().map_err(cannot)
    }

    fn line(&self, item: &Item) -> Value {
        let bytes = item.draft.value.as_ref().map(|value| STANDARD.encode(value));
        let (partition, offset) = (item.draft.partition, item.offset);
        if self.place.feed == Feed::Letters {
            return json!({
                "key": null, "value": bytes, "headers": item.json_headers(), "route": self.place.form.name(),
                "source_topic": self.place.topic, "source_partition": partition, "source_offset": offset,
            });
        }
        let mut line = match (&item.fields, self.place.form) {
            (Some(fields), _) => json!({"seq": fields.seq, "uuid": fields.uuid, "sha": fields.sha}),
            (None, Form::Raw) => json!({"value": bytes, "_headers": item.json_headers()}),
            (None, Form::Compact) => json!({"_key": item.draft.key, "value": item.text()}),
            (None, _) => json!({"value": item.text()}),
        };
        line["_partition"] = json!(partition);
        line["_offset"] = json!(offset);
        line
    }
}

/// Writes an entry or a checkpoint, and returns the hash of its bytes.
fn put(house: &Path, number: u64, kind: &str, content: &Value) -> Result<String, String> {
    let path = house.join("log").join(format!("{number:020}.{kind}"));
    let bytes = content.to_string().into_bytes();
    fs::write(&path, &bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(sha(&bytes))
}

fn write_parquet(path: &Path, form: Form, items: &[Item]) -> Result<(), String> {
    let columns = if form.is_typed() { typed_columns(items) } else { whole_columns(form, items) };
    let cannot = |e: String| format!("cannot write {}: {e}", path.display());
    let batch = RecordBatch::try_from_iter(columns).map_err(|e| cannot(e.to_string()))?;
    let file = create(path)?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).map_err(|e| cannot(e.to_string()))?;
    writer.write(&batch).map_err(|e| cannot(e.to_string()))?;
    writer.close().map(drop).map_err(|e| cannot(e.to_string()))
}

type Columns = Vec<(&'static str, ArrayRef)>;

fn column(name: &'static str, array: impl Array + 'static) -> (&'static str, ArrayRef) {
    (name, Arc::new(array))
}

fn typed_columns(items: &[Item]) -> Columns {
    let fields = || items.iter().filter_map(|item| item.fields.as_ref());
    let seqs = fields().map(|fields| fields.seq.and_then(|seq| i64::try_from(seq).ok()));
    let notes = fields().map(|fields| fields.note.as_ref()?.as_deref());
    let mut tags = ListBuilder::new(StringBuilder::new());
    for fields in fields() {
        for tag in fields.tags.iter().flatten() {
            tags.values().append_value(tag);
        }
        tags.append(true);
    }
    vec![
        column("seq", seqs.collect::<Int64Array>()),
        column("uuid", fields().map(|fields| fields.uuid.as_deref()).collect::<StringArray>()),
        column("sha", fields().map(|fields| fields.sha.as_deref()).collect::<StringArray>()),
        column("payload", fields().map(|fields| fields.payload.as_deref()).collect::<BinaryArray>()),
        column("ratio", fields().map(|fields| fields.ratio).collect::<Float64Array>()),
        column("tags", tags.finish()),
        column("note", notes.collect::<StringArray>()),
    ]
}

fn whole_columns(form: Form, items: &[Item]) -> Columns {
    let keys = items.iter().map(|item| item.draft.key.as_deref());
    let value: ArrayRef = if form == Form::Raw {
        Arc::new(items.iter().map(|item| item.draft.value.as_deref()).collect::<BinaryArray>())
    } else {
        Arc::new(items.iter().map(Item::text).collect::<StringArray>())
    };
    let fields = ArrowFields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Binary, true),
    ]);
    let mut headers = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for item in items {
        for (key, value) in item.headers() {
            let header = headers.values();
            if let Some(keys) = header.field_builder::<StringBuilder>(0) {
                keys.append_value(key);
            }
            if let Some(values) = header.field_builder::<BinaryBuilder>(1) {
                values.append_value(value.as_bytes());
            }
            header.append(true);
        }
        headers.append(true);
    }
    let partitions = Int32Array::from_iter_values(items.iter().map(|item| item.draft.partition));
    let offsets = Int64Array::from_iter_values(items.iter().map(|item| item.offset));
    vec![
        column("_key", keys.collect::<StringArray>()),
        ("value", value),
        column("_partition", partitions),
        column("_offset", offsets),
        column("_headers", headers.finish()),
    ]
}
