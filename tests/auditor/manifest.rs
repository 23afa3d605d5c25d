//! What was written: every record of the workload that a topic holds, as it was read back from there.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What has to become of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Row,
    /// A row whose value is null.
    Tombstone,
    /// Must be in the dead letters byte for byte, and only there.
    Bad,
}

/// One record of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Of the whole workload: no two records have the same.
    pub seq: u64,
    /// Made of seq and content, see `model::uuid_of`: a row with this one has this content.
    pub uuid: String,
    /// SHA-256 of the bytes of the value, in hex; of no bytes for a tombstone.
    pub sha: String,
    pub kind: Kind,
    /// Of a transaction that was aborted: nobody may see it.
    pub is_aborted: bool,
}

/// The records of one or more runs of the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    pub records: Vec<Written>,
}

impl Manifest {
    pub fn merge(&mut self, other: Manifest) {
        self.records.extend(other.records);
    }

    /// One record a line, as JSON.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        let write = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(path)?);
            for record in &self.records {
                serde_json::to_writer(&mut file, record)?;
                file.write_all(b"\n")?;
            }
            file.flush()
        };
        write().map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    pub fn load(path: &Path) -> Result<Manifest, String> {
        let cannot = |what: String| format!("cannot read {}: {what}", path.display());
        let file = File::open(path).map_err(|e| cannot(e.to_string()))?;
        let mut records = Vec::new();
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|e| cannot(e.to_string()))?;
            let record = serde_json::from_str(&line);
            records.push(record.map_err(|e| cannot(format!("line {}: {e}", index + 1)))?);
        }
        Ok(Manifest { records })
    }
}
