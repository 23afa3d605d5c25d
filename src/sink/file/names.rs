//! Names below a sink's directory. Those of data files say by which position a file that no entry lists is proved an
//! orphan.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::model::{Offset, Partition, PositionKey, TopicId};

/// Everything of ours lies below this name, and readers that glob for data never match it.
pub const HOUSEKEEPING: &str = "_sidestream";

/// A name for a data file: random, never reused, with the position that proves it an orphan, and the mark of its owner
/// if that is not the one of entry 0.
pub fn data_file_name(key: &PositionKey, start: Offset, mark: Option<&str>, extension: &str) -> String {
    let attempt = Uuid::new_v4().simple();
    let mark = mark.map(|mark| format!(".{mark}")).unwrap_or_default();
    format!("{}.{}@{start}{mark}-{attempt}.{extension}", key.topic_id, key.partition)
}

/// The staged name of a data file: it must not match a reader's glob for the extension.
pub fn staged_name(name: &str) -> String {
    format!("{name}.staged")
}

/// What the name of a data file says.
#[derive(Debug, PartialEq, Eq)]
pub struct Witness {
    pub key: PositionKey,
    pub start: Offset,
    pub mark: Option<String>,
}

/// The witness in a name made by [`data_file_name`].
pub fn witness(name: &str) -> Option<Witness> {
    let (key, rest) = name.split_once('@')?;
    let (topic_id, partition) = key.split_once('.')?;
    let (start, _) = rest.split_once('-')?;
    let (start, mark) = match start.split_once('.') {
        Some((start, mark)) => (start, Some(mark.to_owned())),
        None => (start, None),
    };
    let key = PositionKey {
        topic_id: TopicId(Uuid::try_parse(topic_id).ok()?),
        partition: Partition(partition.parse().ok()?),
    };
    Some(Witness { key, start: Offset::new(start.parse().ok()?)?, mark })
}

pub fn staged_path(root: &Path, staged: &str) -> PathBuf {
    staged_dir(root).join(staged)
}

pub fn log_dir(root: &Path) -> PathBuf {
    root.join(HOUSEKEEPING).join("log")
}

pub fn staged_dir(root: &Path) -> PathBuf {
    root.join(HOUSEKEEPING).join("staged")
}

pub fn tmp_dir(root: &Path) -> PathBuf {
    root.join(HOUSEKEEPING).join("tmp")
}

/// Where it is kept who has read the directory's rows, and how far.
pub fn numbered_dir(root: &Path) -> PathBuf {
    root.join(HOUSEKEEPING).join("numbered")
}

/// In an object store: tells whether objects are created only if absent.
pub fn probe_path(root: &Path) -> PathBuf {
    root.join(HOUSEKEEPING).join("probe")
}

pub fn entry_path(root: &Path, number: u64) -> PathBuf {
    log_dir(root).join(format!("{number:020}.entry"))
}

pub fn checkpoint_path(root: &Path, number: u64) -> PathBuf {
    log_dir(root).join(format!("{number:020}.checkpoint"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_is_read_back_from_a_name() {
        let key = PositionKey { topic_id: TopicId(Uuid::from_u128(5)), partition: Partition(12) };
        let start = Offset::new(77).unwrap();
        for mark in [None, Some("00112233445566ff")] {
            let name = staged_name(&data_file_name(&key, start, mark, "parquet"));
            assert_eq!(witness(&name), Some(Witness { key, start, mark: mark.map(str::to_owned) }));
        }
        assert_eq!(witness("part-0001.parquet"), None);
    }
}
