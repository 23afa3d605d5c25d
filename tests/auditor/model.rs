//! What a record of the workload holds, and what a row of it has to look like. No I/O.
//!
//! A record's uuid is made of its seq, of the version of the schema it was written with and of the digest of its
//! payload, and all other fields follow from these. So a row can be judged by itself, and one uuid in the manifest
//! stands for the content of a whole row.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fastrand::Rng;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::manifest::Kind;
use crate::workload::{Features, WorkloadOptions};

/// Keys of the compacted topic: so few that most records are overwritten sooner or later.
const COMPACT_KEYS: u64 = 50;

/// Of the registered schema, those that are there from the beginning.
pub const FIRST_VERSIONS: u8 = 2;
/// The one that comes in the middle.
pub const LAST_VERSION: u8 = 3;

/// The `level` of records whose version has none: the default in the schema.
const LEVEL_DEFAULT: i32 = 7;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256, in hex.
pub fn sha(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Stands for the whole content of a record.
pub fn uuid_of(seq: u64, version: u8, payload_sha: &str) -> String {
    let digest = Sha256::digest(format!("{seq} {version} {payload_sha}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(bytes).to_string()
}

/// What the values of a topic are. Topic and route are named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Avro of the registry, writer versions interleaved.
    Avro,
    /// Plain JSON, read as the schema in `json.avsc`.
    Json,
    /// Bytes, up to the largest.
    Raw,
    /// Text, in transactions.
    Text,
    /// JSON text in a compacted topic, with keys and tombstones.
    Compact,
}

impl Form {
    pub const ALL: [Form; 5] = [Form::Avro, Form::Json, Form::Raw, Form::Text, Form::Compact];

    pub fn name(self) -> &'static str {
        match self {
            Form::Avro => "avro",
            Form::Json => "json",
            Form::Raw => "raw",
            Form::Text => "txn",
            Form::Compact => "compact",
        }
    }

    pub fn is_there(self, features: Features) -> bool {
        match self {
            Form::Avro | Form::Json | Form::Raw => true,
            Form::Text => features.transactions,
            Form::Compact => features.compacted,
        }
    }

    /// Rows have fields of their own, not the value as a whole.
    pub fn is_typed(self) -> bool {
        matches!(self, Form::Avro | Form::Json)
    }
}

pub fn topic(options: &WorkloadOptions, form: Form) -> String {
    format!("{}.{}", options.prefix, form.name())
}

/// Which topic a record goes to follows from its number.
pub fn form_of(seq: u64, features: Features) -> Form {
    let form = match seq % 10 {
        0 | 4 | 8 => Form::Avro,
        1 | 5 => Form::Json,
        2 | 9 => Form::Raw,
        6 => Form::Compact,
        _ => Form::Text,
    };
    if form.is_there(features) { form } else { Form::Avro }
}

/// The key of a record of the compacted topic.
pub fn compact_key(seq: u64) -> String {
    format!("k{}", compact_key_number(seq))
}

fn compact_key_number(seq: u64) -> u64 {
    seq / 10 % COMPACT_KEYS
}

/// A record to be written.
#[derive(Debug, Clone)]
pub struct Draft {
    pub form: Form,
    pub seq: u64,
    pub uuid: String,
    pub partition: i32,
    pub key: Option<String>,
    pub value: Option<Vec<u8>>,
    pub kind: Kind,
}

impl Draft {
    /// Record `seq`: the same for the same options and schema ids. `schema_ids` are those of the versions that are
    /// registered by now, the first one first.
    pub fn new(options: &WorkloadOptions, seq: u64, schema_ids: &[u32]) -> Draft {
        let Drawn { mut rng, form, is_bad, is_tombstone, index, content } =
            Drawn::new(options, seq, schema_ids.len());
        let mut value = match form {
            Form::Avro => content.avro(schema_ids.get(index).copied().unwrap_or_default()),
            Form::Json => content.json().to_string().into_bytes(),
            Form::Raw => content.payload.clone(),
            Form::Text => {
                format!("{seq} {} {}", content.uuid, STANDARD.encode(&content.payload)).into_bytes()
            }
            Form::Compact => content.compact().to_string().into_bytes(),
        };
        if is_bad {
            spoil(&mut rng, form, &mut value);
        }
        let kind = match (is_bad, is_tombstone) {
            (true, _) => Kind::Bad,
            (false, true) => Kind::Tombstone,
            (false, false) => Kind::Row,
        };
        let (key, partition) = if form == Form::Compact {
            // All records of a key are in one partition.
            let partition = compact_key_number(seq) % u64::from(options.partitions.max(1).unsigned_abs());
            (Some(compact_key(seq)), partition as i32)
        } else {
            (seq.is_multiple_of(3).then(|| format!("s{seq}")), rng.i32(0..options.partitions.max(1)))
        };
        let value = (!is_tombstone).then_some(value);
        Draft { form, seq, uuid: content.uuid, partition, key, value, kind }
    }
}

/// What chance and number decide of a record.
struct Drawn {
    rng: Rng,
    form: Form,
    is_bad: bool,
    is_tombstone: bool,
    /// Of the schema's version.
    index: usize,
    content: Content,
}

impl Drawn {
    fn new(options: &WorkloadOptions, seq: u64, versions: usize) -> Drawn {
        let mut rng = Rng::with_seed(options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seq);
        let form = form_of(seq, options.features);
        let is_bad = options.features.bad && form != Form::Raw && rng.u32(0..100) < 5;
        let is_tombstone = form == Form::Compact && !is_bad && rng.u32(0..100) < 20;
        let payload = if is_tombstone { Vec::new() } else { payload(&mut rng, form, options.largest) };
        // Not by the last digit of seq: that one chooses the topic.
        let index = usize::try_from(seq / 10).unwrap_or_default() % versions.max(1);
        let version = if form.is_typed() { 1 + index as u8 } else { 0 };
        Drawn { rng, form, is_bad, is_tombstone, index, content: Content::new(seq, version, payload) }
    }
}

/// Most are small, some are empty, very few are as large as they may be.
fn payload(rng: &mut Rng, form: Form, largest: usize) -> Vec<u8> {
    let most = match (form, rng.u32(0..1000)) {
        (Form::Raw, 0..50) => 0,
        (Form::Raw, 998..) => largest,
        (Form::Raw, 990..) => 64 << 10,
        (Form::Avro | Form::Json, 995..) => 20_000,
        _ => 300,
    };
    let mut bytes = vec![0; rng.usize(0..=most.min(largest))];
    rng.fill(&mut bytes);
    bytes
}

/// Makes a value that nobody can decode, whatever was in it.
fn spoil(rng: &mut Rng, form: Form, value: &mut Vec<u8>) {
    match (form, rng.u32(0..6)) {
        (Form::Text, _) => value.extend([0xff, 0xfe]),
        (_, 0) => value.clear(),
        // A strict prefix of an Avro datum, or of a JSON object, is never one itself.
        (_, 1) => value.truncate(value.len() - 1),
        (Form::Avro, 2) => value[0] = 1,
        (Form::Avro, 3) => value.truncate(3),
        (Form::Avro, 4) => value.push(0),
        (Form::Avro, _) => *value = b"{\"seq\": 1}".to_vec(),
        (Form::Json, 2) => *value = b"{\"seq\": \"one\"}".to_vec(),
        (_, 3) => *value = b"{\"seq\": \"\xff\"}".to_vec(),
        _ => *value = b"no JSON".to_vec(),
    }
}

/// The fields of a record, of which the value is made.
struct Content {
    seq: u64,
    version: u8,
    payload: Vec<u8>,
    sha: String,
    uuid: String,
}

impl Content {
    fn new(seq: u64, version: u8, payload: Vec<u8>) -> Content {
        let sha = sha(&payload);
        let uuid = uuid_of(seq, version, &sha);
        Content { seq, version, payload, sha, uuid }
    }

    /// In Confluent's frame; encoded here, so that no library shares a mistake with the program.
    fn avro(&self, schema_id: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(schema_id.to_be_bytes());
        // The second version has its fields in another order.
        if self.version > 1 {
            bytes.extend(ratio(self.seq).to_le_bytes());
        }
        put_long(&mut bytes, self.seq as i64);
        put_bytes(&mut bytes, self.uuid.as_bytes());
        put_bytes(&mut bytes, self.sha.as_bytes());
        put_bytes(&mut bytes, &self.payload);
        if self.version == 1 {
            bytes.extend(ratio(self.seq).to_le_bytes());
        }
        put_texts(&mut bytes, &tags(self.seq));
        if self.version > 1 {
            match note(self.seq, self.version) {
                None => put_long(&mut bytes, 0),
                Some(note) => {
                    put_long(&mut bytes, 1);
                    put_bytes(&mut bytes, note.as_bytes());
                }
            }
        }
        if self.version > 2 {
            put_long(&mut bytes, i64::from(level(self.seq, self.version)));
        }
        bytes
    }

    fn json(&self) -> Value {
        let mut value = json!({
            "seq": self.seq,
            "uuid": self.uuid,
            "sha": self.sha,
            "payload": STANDARD.encode(&self.payload),
            "ratio": ratio(self.seq),
            "tags": tags(self.seq),
        });
        if self.version > 1 {
            value["note"] = json!(note(self.seq, self.version));
        }
        if self.version > 2 {
            // The reader's schema does not have it.
            value["level"] = json!(level(self.seq, self.version));
        }
        value
    }

    fn compact(&self) -> Value {
        json!({"seq": self.seq, "uuid": self.uuid, "payload": STANDARD.encode(&self.payload)})
    }
}

fn put_long(bytes: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    while left >= 0x80 {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
}

fn put_bytes(bytes: &mut Vec<u8>, content: &[u8]) {
    put_long(bytes, content.len() as i64);
    bytes.extend(content);
}

fn put_texts(bytes: &mut Vec<u8>, texts: &[String]) {
    if !texts.is_empty() {
        put_long(bytes, texts.len() as i64);
        texts.iter().for_each(|text| put_bytes(bytes, text.as_bytes()));
    }
    put_long(bytes, 0);
}

fn ratio(seq: u64) -> f64 {
    seq as f64 / 4.0
}

fn tags(seq: u64) -> Vec<String> {
    (0..seq % 4).map(|number| format!("t{number}")).collect()
}

fn note(seq: u64, version: u8) -> Option<String> {
    (version > 1 && !seq.is_multiple_of(3)).then(|| format!("note {seq}"))
}

fn level(seq: u64, version: u8) -> i32 {
    if version > 2 { (seq % 100) as i32 } else { LEVEL_DEFAULT }
}

/// The schema of a version, as it is registered.
pub fn schema(version: u8) -> Value {
    let field = |name: &str, kind: &str| json!({"name": name, "type": kind});
    let mut fields = vec![
        field("seq", "long"),
        field("uuid", "string"),
        field("sha", "string"),
        field("payload", "bytes"),
    ];
    // In front of the others from the second version on.
    fields.insert(if version > 1 { 0 } else { fields.len() }, field("ratio", "double"));
    fields.push(json!({"name": "tags", "type": {"type": "array", "items": "string"}}));
    if version > 1 {
        fields.push(json!({"name": "note", "type": ["null", "string"], "default": null}));
    }
    if version > 2 {
        fields.push(json!({"name": "level", "type": "int", "default": LEVEL_DEFAULT}));
    }
    json!({"type": "record", "name": "Item", "namespace": "auditor", "fields": fields})
}

/// What a row of a typed topic holds. `None`: the row has no such column, or null in it.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    pub seq: Option<u64>,
    pub uuid: Option<String>,
    pub sha: Option<String>,
    pub payload: Option<Vec<u8>>,
    pub ratio: Option<f64>,
    pub tags: Option<Vec<String>>,
    /// The inner `None` is null.
    pub note: Option<Option<String>>,
    pub level: Option<i32>,
    /// The row is one of a file: all columns but `note` and `level` have to be there.
    pub is_whole: bool,
}

impl Fields {
    /// What a row of record `seq` holds, for files that are made to be audited.
    pub fn of(options: &WorkloadOptions, seq: u64, versions: usize) -> Fields {
        let Content { version, payload, sha, uuid, .. } = Drawn::new(options, seq, versions).content;
        Fields {
            seq: Some(seq),
            uuid: Some(uuid),
            sha: Some(sha),
            payload: Some(payload),
            ratio: Some(ratio(seq)),
            tags: Some(tags(seq)),
            note: Some(note(seq, version)),
            level: None,
            is_whole: true,
        }
    }

    /// What in the row does not belong together.
    pub fn fault(&self) -> Option<String> {
        let (Some(seq), Some(uuid), Some(found)) = (self.seq, &self.uuid, &self.sha) else {
            return Some("seq, uuid or sha is missing".to_owned());
        };
        let mut versions = 1..=LAST_VERSION;
        let Some(version) = versions.find(|version| uuid_of(seq, *version, found) == *uuid) else {
            return Some("uuid does not belong to seq and sha".to_owned());
        };
        if self.is_whole && (self.payload.is_none() || self.ratio.is_none() || self.tags.is_none()) {
            return Some("a field is missing".to_owned());
        }
        let is_other = |is_other: bool, field: &str| is_other.then(|| format!("`{field}` has another value"));
        let payload = self.payload.as_ref().map(|payload| sha(payload));
        is_other(payload.is_some_and(|payload| payload != *found), "payload")
            .or_else(|| is_other(self.ratio.is_some_and(|found| found != ratio(seq)), "ratio"))
            .or_else(|| is_other(self.tags.as_ref().is_some_and(|found| *found != tags(seq)), "tags"))
            .or_else(|| {
                is_other(self.note.as_ref().is_some_and(|found| *found != note(seq, version)), "note")
            })
            .or_else(|| is_other(self.level.is_some_and(|found| found != level(seq, version)), "level"))
    }
}
