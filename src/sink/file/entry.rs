//! The commit log's entries and checkpoints, as they are on disk. Versions 1 and 2; see `docs/formats.md`.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::model::metadata::hex;
use crate::model::{Move, Position, PositionKey, StartHash, TopicName};

pub use crate::sink::owner::Owner;

/// The version of what only the owner of entry 0 has written to.
pub const VERSION: u32 = 1;

/// The version of what names another owner. A program that knows only version 1 would take the moves for those of the
/// owner of entry 0, so it has to refuse.
pub const VERSION_OWNERS: u32 = 2;

impl Owner {
    /// 16 hex digits that tell this owner from others, for names of files.
    pub fn mark(&self) -> String {
        let mut hasher = Sha256::new();
        for part in [&self.cluster.0, &self.group, &self.identity] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hex(&hasher.finalize()[..8])
    }
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
    /// In an object store, what completes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,
}

/// A multipart upload: its parts are in the store, and nobody sees them before it is completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub id: String,
    /// As the store calls them, in their order.
    pub parts: Vec<String>,
}

impl DataFile {
    /// As a checkpoint lists it: it is in sight.
    #[must_use]
    pub fn completed(self) -> Self {
        Self { upload: None, ..self }
    }

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
    /// Whose moves these are, if they are not those of the owner in entry 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Whose positions the moves take over; that one writes no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopts: Option<Owner>,
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
    /// Of the owner in `created`, as are the two that follow.
    pub positions: Vec<StoredPosition>,
    /// Of the last `start` move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_hash: Option<StartHash>,
    /// Who has taken its positions over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<Owner>,
    /// All other owners.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<StoredAccount>,
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
    /// The last entry that led it back, or gave it to this owner: files from before may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turned: Option<u64>,
}

/// An owner that is not the one of entry 0, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAccount {
    pub owner: Owner,
    pub positions: Vec<StoredPosition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_hash: Option<StartHash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<Owner>,
}

/// The hash by which an entry names its predecessor.
pub fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClusterId;

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
        let path = "a/b.parquet".to_owned();
        let file = DataFile { path, staged: "b".into(), rows: 2, bytes: 3, upload: None };
        let entry = Entry {
            version: VERSION,
            commit: Uuid::from_u128(1),
            previous: String::new(),
            created: Some(created),
            owner: None,
            adopts: None,
            moves: Vec::new(),
            files: vec![file.clone()],
        };
        let text = concat!(
            r#"{"version":1,"commit":"00000000-0000-0000-0000-000000000001","previous":"","#,
            r#""created":{"log":"00000000-0000-0000-0000-000000000009","cluster":"c","group":"g","#,
            r#""identity":"orders/archive"},"#,
            r#""files":[{"path":"a/b.parquet","staged":"b","rows":2,"bytes":3}]}"#
        );
        assert_eq!(serde_json::to_string(&entry).unwrap(), text);
        assert_eq!(serde_json::from_str::<Entry>(text).unwrap(), entry);
        let upload = Upload { id: "u".into(), parts: vec!["p".into(), "q".into()] };
        let object = DataFile { upload: Some(upload), ..file.clone() };
        let text =
            r#"{"path":"a/b.parquet","staged":"b","rows":2,"bytes":3,"upload":{"id":"u","parts":["p","q"]}}"#;
        assert_eq!(serde_json::to_string(&object).unwrap(), text);
        assert_eq!(serde_json::from_str::<DataFile>(text).unwrap(), object);
        assert_eq!(object.completed(), file);
    }

    #[test]
    fn the_form_of_an_entry_with_an_owner_is_fixed() {
        let owner = |identity: &str| Owner {
            cluster: ClusterId("c".into()),
            group: "g".into(),
            identity: identity.into(),
        };
        let entry = Entry {
            version: VERSION_OWNERS,
            commit: Uuid::from_u128(1),
            previous: "00".into(),
            created: None,
            owner: Some(owner("new/s")),
            adopts: Some(owner("old/s")),
            moves: Vec::new(),
            files: Vec::new(),
        };
        let text = concat!(
            r#"{"version":2,"commit":"00000000-0000-0000-0000-000000000001","previous":"00","#,
            r#""owner":{"cluster":"c","group":"g","identity":"new/s"},"#,
            r#""adopts":{"cluster":"c","group":"g","identity":"old/s"}}"#
        );
        assert_eq!(serde_json::to_string(&entry).unwrap(), text);
        assert_eq!(serde_json::from_str::<Entry>(text).unwrap(), entry);
        assert_eq!(owner("new/s").mark().len(), 16);
        assert_ne!(owner("new/s").mark(), owner("old/s").mark());
    }

    #[test]
    fn a_file_stays_below_the_root() {
        let is_below = |path: &str, staged: &str| {
            DataFile { path: path.into(), staged: staged.into(), rows: 1, bytes: 1, upload: None }
                .is_below_root()
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
