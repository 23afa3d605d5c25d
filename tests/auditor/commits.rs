//! Reads a directory's commit log and the group's offsets, from what `docs/formats.md` says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::Value;

use crate::model::sha;
use crate::topics::{self, Isolation, Place};

/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The form this reads.
const VERSION: u64 = 1;

#[derive(Debug, Clone, Deserialize)]
pub struct Created {
    pub log: String,
    pub identity: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct End {
    pub next: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Move {
    pub topic_id: String,
    pub partition: i32,
    pub topic: String,
    pub start: Option<i64>,
    pub end: End,
    /// A word, or an object with one key.
    pub reason: Value,
    pub records: u64,
}

impl Move {
    pub fn is_lost(&self) -> bool {
        self.reason == "lost"
    }

    /// The brokers have lost a part, or an operator wants it once more.
    fn may_lead_back(&self) -> bool {
        self.is_lost() || self.reason == "reset"
    }

    /// Over what was read.
    pub fn is_read(&self) -> bool {
        self.reason == "data" || self.reason == "idle"
    }

    /// The range, as people read it.
    pub fn range(&self) -> String {
        let start = self.start.map_or_else(|| "none".to_owned(), |start| start.to_string());
        format!("{}/{} [{start}, {})", self.topic, self.partition, self.end.next)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Listed {
    pub path: String,
    pub staged: String,
    pub rows: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    pub version: u64,
    pub commit: String,
    pub previous: String,
    pub created: Option<Created>,
    #[serde(default)]
    pub moves: Vec<Move>,
    #[serde(default)]
    pub files: Vec<Listed>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Stored {
    pub topic_id: String,
    pub partition: i32,
    pub topic: String,
    pub next: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Checkpoint {
    pub version: u64,
    pub entry: u64,
    pub hash: String,
    pub created: Created,
    pub positions: Vec<Stored>,
    pub files: Vec<Listed>,
}

/// What lies below `_sidestream/` of one directory.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// With the hash of their bytes.
    pub entries: BTreeMap<u64, (Entry, String)>,
    pub checkpoints: BTreeMap<u64, Checkpoint>,
    pub staged: BTreeSet<String>,
    /// Entries and checkpoints that were being written.
    pub unfinished: usize,
}

/// Reads a log. `None`: there is none.
pub fn read_log(root: &Path) -> Result<Option<Log>, String> {
    let house = root.join("_sidestream");
    if !house.is_dir() {
        return Ok(None);
    }
    let mut log = Log::default();
    for name in names(&house.join("log"))? {
        let path = house.join("log").join(&name);
        let bytes = fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let strange = |what: &str| format!("{}: {what}", path.display());
        let (number, kind) = name.split_once('.').ok_or_else(|| strange("no name of a log"))?;
        if number.len() != 20 {
            return Err(strange("the number has not 20 digits"));
        }
        let number: u64 = number.parse().map_err(|_| strange("no number"))?;
        match kind {
            "entry" => {
                let entry: Entry = serde_json::from_slice(&bytes).map_err(|e| strange(&e.to_string()))?;
                if entry.version != VERSION {
                    return Err(strange("another version"));
                }
                log.entries.insert(number, (entry, sha(&bytes)));
            }
            "checkpoint" => {
                let read: Checkpoint = serde_json::from_slice(&bytes).map_err(|e| strange(&e.to_string()))?;
                if read.version != VERSION || read.entry != number {
                    return Err(strange("another version, or another number inside"));
                }
                log.checkpoints.insert(number, read);
            }
            _ => return Err(strange("neither an entry nor a checkpoint")),
        }
    }
    log.staged = names(&house.join("staged"))?.into_iter().collect();
    log.unfinished = names(&house.join("tmp"))?.len();
    Ok(Some(log))
}

fn names(dir: &Path) -> Result<Vec<String>, String> {
    let cannot = |e: std::io::Error| format!("cannot list {}: {e}", dir.display());
    let entries = fs::read_dir(dir).map_err(cannot)?;
    entries.map(|entry| Ok(entry.map_err(cannot)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Topic id and partition.
pub type Key = (String, i32);

/// A log, followed from its first entry or, if that or one behind it is gone as it may, from a checkpoint.
#[derive(Debug, Default)]
pub struct Followed {
    pub id: String,
    pub identity: String,
    /// Are all entries there? If not, those before `base` are gone, and what they list is not known.
    pub is_whole: bool,
    /// Positions at the checkpoint it begins with.
    pub base: BTreeMap<Key, i64>,
    /// Positions at the end.
    pub positions: BTreeMap<Key, i64>,
    /// The same by topic and partition: of the id that moved last.
    pub places: BTreeMap<Place, i64>,
    /// Files in the order of commits, each with its entry; `None`: of a checkpoint, the entry is not known.
    pub listed: Vec<(Option<u64>, Listed)>,
    /// Moves of each entry.
    pub moves: BTreeMap<u64, Vec<Move>>,
    pub last: u64,
    /// What is wrong with the chain.
    pub problems: Vec<String>,
}

impl Log {
    pub fn follow(&self) -> Followed {
        let mut followed = Followed::default();
        // What is below the last checkpoint but one may go; a removal that was interrupted leaves some of it.
        let kept = self.checkpoints.keys().rev().nth(1).copied().unwrap_or(0);
        let is_there =
            |mut numbers: RangeInclusive<u64>| numbers.all(|number| self.entries.contains_key(&number));
        let (mut number, mut previous) = match self.entries.get(&0).filter(|_| is_there(0..=kept)) {
            Some((first, _)) => {
                followed.is_whole = true;
                followed.own(first.created.as_ref());
                (0, String::new())
            }
            None => match self.checkpoints.iter().find(|(at, _)| is_there(**at + 1..=kept)) {
                Some((number, checkpoint)) => {
                    followed.begin_at(checkpoint);
                    (number + 1, checkpoint.hash.clone())
                }
                None => {
                    followed.problems.push("there is neither entry 0 nor a checkpoint".to_owned());
                    return followed;
                }
            },
        };
        let mut commits = BTreeSet::new();
        while let Some((entry, hash)) = self.entries.get(&number) {
            followed.take(number, entry, &previous);
            if !commits.insert(entry.commit.as_str()) {
                followed.problems.push(format!("entry {number} has the commit id of another entry"));
            }
            if let Some(checkpoint) = self.checkpoints.get(&number) {
                followed.compare(checkpoint, hash);
            }
            previous = hash.clone();
            followed.last = number;
            number += 1;
        }
        // Below the oldest checkpoint an entry is void; above the last one it is behind a hole.
        for beyond in self.entries.keys().chain(self.checkpoints.keys()).filter(|beyond| **beyond > number) {
            followed.problems.push(format!("{beyond} is behind a hole: entry {number} is missing"));
        }
        followed
    }
}

impl Followed {
    fn own(&mut self, created: Option<&Created>) {
        match created {
            Some(created) => {
                self.id = created.log.replace('-', "");
                self.identity.clone_from(&created.identity);
            }
            None => self.problems.push("entry 0 names no owner".to_owned()),
        }
    }

    fn begin_at(&mut self, checkpoint: &Checkpoint) {
        self.own(Some(&checkpoint.created));
        self.last = checkpoint.entry;
        for stored in &checkpoint.positions {
            self.stand(&stored.topic_id, &stored.topic, stored.partition, stored.next);
        }
        self.base.clone_from(&self.positions);
        self.listed.extend(checkpoint.files.iter().map(|file| (None, file.clone())));
    }

    fn stand(&mut self, topic_id: &str, topic: &str, partition: i32, next: i64) {
        self.positions.insert((topic_id.to_owned(), partition), next);
        self.places.insert((topic.to_owned(), partition), next);
    }

    fn take(&mut self, number: u64, entry: &Entry, previous: &str) {
        if entry.previous != previous {
            self.problems.push(format!("entry {number} does not name the one before it by its hash"));
        }
        if number > 0 && entry.created.is_some() {
            self.problems.push(format!("entry {number} names an owner"));
        }
        for step in &entry.moves {
            let key = (step.topic_id.clone(), step.partition);
            let stored = self.positions.get(&key).copied();
            if step.start != stored {
                let stored = stored.map_or_else(|| "none".to_owned(), |stored| stored.to_string());
                let range = step.range();
                self.problems.push(format!("entry {number}: {range} does not begin at {stored}"));
            }
            if step.start.is_some_and(|start| step.end.next < start) && !step.may_lead_back() {
                self.problems.push(format!("entry {number}: {} leads back", step.range()));
            }
            self.stand(&step.topic_id, &step.topic, step.partition, step.end.next);
        }
        self.listed.extend(entry.files.iter().map(|file| (Some(number), file.clone())));
        self.moves.insert(number, entry.moves.clone());
    }

    /// A checkpoint says again what the entries said.
    fn compare(&mut self, checkpoint: &Checkpoint, hash: &str) {
        let number = checkpoint.entry;
        if checkpoint.hash != hash {
            self.problems.push(format!("checkpoint {number} has another hash than its entry"));
        }
        let stored = checkpoint.positions.iter();
        let stored = stored.map(|stored| ((stored.topic_id.clone(), stored.partition), stored.next));
        if stored.collect::<BTreeMap<_, _>>() != self.positions {
            self.problems.push(format!("checkpoint {number} has other positions than the entries up to it"));
        }
        if checkpoint.created.log.replace('-', "") != self.id {
            self.problems.push(format!("checkpoint {number} is of another log"));
        }
    }
}

/// Topic id, partition and start in the name of a data file.
pub fn witness(path: &str) -> Option<(Key, i64)> {
    let name = path.rsplit('/').next()?;
    let (key, rest) = name.split_once('@')?;
    let (topic_id, partition) = key.split_once('.')?;
    let (start, _) = rest.split_once('-')?;
    Some(((topic_id.to_owned(), partition.parse().ok()?), start.parse().ok()?))
}

/// A key as it is in the names of files: the topic id without hyphens.
pub fn plain(key: &Key) -> Key {
    (key.0.replace('-', ""), key.1)
}

/// What the group has for a partition.
#[derive(Debug, Clone)]
pub struct Committed {
    pub offset: i64,
    /// The string beside it.
    pub metadata: String,
}

impl Committed {
    /// The log id and the last entry that were seen of a file sink with this identity.
    pub fn log_of(&self, identity: &str) -> Option<(String, u64)> {
        let mut words = self.metadata.split(' ');
        if words.next() != Some("ss1") {
            return None;
        }
        let name = format!("l{}", &sha(identity.as_bytes())[..16]);
        let word = words.find_map(|word| word.strip_prefix(name.as_str())?.strip_prefix('='))?;
        let (id, number) = word.split_once('.')?;
        Some((id.to_owned(), number.parse().ok()?))
    }
}

/// What the group has committed, for all partitions of these topics.
pub fn committed(
    bootstrap: &str,
    group: &str,
    topics: &[String],
) -> Result<BTreeMap<Place, Committed>, String> {
    let consumer = topics::consumer(bootstrap, group, Isolation::Committed)?;
    topics::patiently("the group's offsets", || {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in topics::partitions(&consumer, topics)? {
            list.add_partition(&topic, partition);
        }
        let found = consumer.committed_offsets(list, TIMEOUT);
        let found = found.map_err(|e| format!("cannot read the offsets of group {group}: {e}"))?;
        let mut committed = BTreeMap::new();
        for element in found.elements() {
            element.error().map_err(|e| format!("cannot read an offset of group {group}: {e}"))?;
            // Anything else: there is none.
            if let Offset::Offset(offset) = element.offset() {
                let metadata = element.metadata().to_owned();
                committed.insert(
                    (element.topic().to_owned(), element.partition()),
                    Committed { offset, metadata },
                );
            }
        }
        Ok(committed)
    })
}
