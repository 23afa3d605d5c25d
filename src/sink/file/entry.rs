//! The commit log's entries and checkpoints, as they are on disk. Version 1; see `docs/formats.md`.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::model::metadata::hex;
use crate::model::{ClusterId, Move, Position, PositionKey, Positions, StartHash, TopicName};

/// The version written. A reader refuses a higher one: it would misread the progress.
pub const VERSION: u32 = 1;

/// Who writes to a directory: one sink of one group of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub cluster: ClusterId,
    pub group: String,
    /// `route/sink`, or the sink's `id:`.
    pub identity: String,
}

/// One committed data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Below the sink's directory, with `/`.
    pub path: String,
    /// Its name among the staged files.
    pub staged: String,
    pub rows: u64,
    pub bytes: u64,
}

impl DataFile {
    /// Does it stay where the sink's files are? What an entry names is linked and removed, so one that
    /// names a place outside is not obeyed.
    pub fn is_below_root(&self) -> bool {
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let is_file = !self.path.is_empty() && Path::new(&self.path).components().all(is_plain);
        let mut staged = Path::new(&self.staged).components();
        is_file && staged.next().is_some_and(is_plain) && staged.next().is_none()
    }
}

/// Entry `n` of a log. Entry 0 holds the owner and no moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub version: u32,
    /// Random: tells our own entry from another writer's after a lost reply.
    pub commit: Uuid,
    /// SHA-256 of the bytes of entry n−1; empty in entry 0.
    pub previous: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Created>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Move>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<DataFile>,
}

/// What entry 0 says of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    pub log: Uuid,
    #[serde(flatten)]
    pub owner: Owner,
}

/// All positions after entry `entry`, so that entries below may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub version: u32,
    pub entry: u64,
    /// SHA-256 of the bytes of entry `entry`.
    pub hash: String,
    pub created: Created,
    pub positions: Vec<StoredPosition>,
    /// Of the last `start` move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_hash: Option<StartHash>,
    /// Files committed since the checkpoint before.
    pub files: Vec<DataFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPosition {
    #[serde(flatten)]
    pub key: PositionKey,
    pub topic: TopicName,
    #[serde(flatten)]
    pub position: Position,
}

impl Checkpoint {
    pub fn fold(&self) -> Positions {
        let mut positions = Positions::default();
        for stored in &self.positions {
            positions.restore(stored.key, stored.topic.clone(), stored.position);
        }
        positions.restore_start_hash(self.start_hash.clone());
        positions
    }
}

/// The hash by which an entry names its predecessor.
pub fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_on_disk_is_fixed() {
        let created = Created {
            log: Uuid::from_u128(9),
            owner: Owner {
                cluster: ClusterId("c".into()),
                group: "g".into(),
                identity: "orders/archive".into(),
            },
        };
        let entry = Entry {
            version: VERSION,
            commit: Uuid::from_u128(1),
            previous: String::new(),
            created: Some(created),
            moves: Vec::new(),
            files: vec![DataFile { path: "a/b.parquet".into(), staged: "b".into(), rows: 2, bytes: 3 }],
        };
        let text = concat!(
            r#"{"version":1,"commit":"00000000-0000-0000-0000-000000000001","previous":"","#,
            r#""created":{"log":"00000000-0000-0000-0000-000000000009","cluster":"c","group":"g","#,
            r#""identity":"orders/archive"},"#,
            r#""files":[{"path":"a/b.parquet","staged":"b","rows":2,"bytes":3}]}"#
        );
        assert_eq!(serde_json::to_string(&entry).unwrap(), text);
        assert_eq!(serde_json::from_str::<Entry>(text).unwrap(), entry);
    }

    #[test]
    fn a_file_stays_below_the_root() {
        let is_below = |path: &str, staged: &str| {
            DataFile { path: path.into(), staged: staged.into(), rows: 1, bytes: 1 }.is_below_root()
        };
        assert!(is_below("a.parquet", "s"));
        assert!(is_below("day=1/country=..%2F/a.parquet", "s"));
        for path in ["", "/a", "..", "../a", "day=1/../../a", "./a"] {
            assert!(!is_below(path, "s"), "{path}");
        }
        for staged in ["", "..", "/s", "a/s", "../s"] {
            assert!(!is_below("a", staged), "{staged}");
        }
    }
}
