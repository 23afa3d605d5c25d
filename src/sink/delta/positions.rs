//! Where sinks stand, as `txn` actions of a table's log (`docs/formats.md`): who writes to it, and the next offset of each
//! partition. An action has a name and a number, and the newest of a name counts; so each fact is a name of its own. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::model::{
    ClusterId, Conflict, LeaderEpoch, Move, Offset, Partition, Position, PositionKey, Positions, StartHash,
    TopicId, TopicName,
};
use crate::sink::owner::{Admission, Claim, Owner, Refusal, admit};
use crate::sink::survey::Account;

/// What names of ours begin with.
const PREFIX: &str = "sidestream";

/// No epoch is known any more.
const NO_EPOCH: i64 = -1;

/// What a `txn` action of ours says of an owner. Its number is in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    /// It was let in. (The version of the table.)
    Joined,
    /// Its positions were taken over by another owner of its cluster. (The version of the table.)
    Taken { group: String, identity: String },
    /// What it was last started with: of several the highest counts. (The version of the table.)
    Started(String),
    /// Where it stands in a partition. (The next offset.)
    Next(TopicName, PositionKey),
    /// The leader epoch of the last record before that. (The epoch, or [`NO_EPOCH`].)
    Epoch(TopicName, PositionKey),
}

/// A `txn` action of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Txn {
    owner: Owner,
    fact: Fact,
    number: i64,
}

impl Txn {
    fn new(owner: &Owner, fact: Fact, number: i64) -> Self {
        Self { owner: owner.clone(), fact, number }
    }

    /// `None`: it is of somebody else.
    pub fn parse(app_id: &str, number: i64) -> Option<Self> {
        let parts: Vec<String> = app_id.split('/').map(unescape).collect::<Option<_>>()?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let [PREFIX, cluster, group, identity, rest @ ..] = parts.as_slice() else {
            return None;
        };
        let fact = match rest {
            ["joined"] => Fact::Joined,
            ["taken", group, identity] => {
                Fact::Taken { group: (*group).to_owned(), identity: (*identity).to_owned() }
            }
            ["started", hash] => Fact::Started((*hash).to_owned()),
            [what @ ("next" | "epoch"), topic, id, partition] => {
                let topic_id = TopicId(Uuid::parse_str(id).ok()?);
                let key = PositionKey { topic_id, partition: Partition(partition.parse().ok()?) };
                match *what {
                    "next" => Fact::Next(TopicName::new(topic), key),
                    _ => Fact::Epoch(TopicName::new(topic), key),
                }
            }
            _ => return None,
        };
        let cluster = ClusterId((*cluster).to_owned());
        let owner = Owner { cluster, group: (*group).to_owned(), identity: (*identity).to_owned() };
        Some(Self { owner, fact, number })
    }

    pub fn app_id(&self) -> String {
        let Owner { cluster, group, identity } = &self.owner;
        let mut parts = vec![PREFIX.to_owned(), cluster.0.clone(), group.clone(), identity.clone()];
        match &self.fact {
            Fact::Joined => parts.push("joined".to_owned()),
            Fact::Taken { group, identity } => {
                parts.extend(["taken".to_owned(), group.clone(), identity.clone()]);
            }
            Fact::Started(hash) => parts.extend(["started".to_owned(), hash.clone()]),
            Fact::Next(topic, key) | Fact::Epoch(topic, key) => {
                let what = if matches!(self.fact, Fact::Next(..)) { "next" } else { "epoch" };
                let (id, partition) = (key.topic_id.to_string(), key.partition.to_string());
                parts.extend([what.to_owned(), topic.as_str().to_owned(), id, partition]);
            }
        }
        parts.iter().map(|part| escape(part)).collect::<Vec<_>>().join("/")
    }

    /// As a line of the log. Without `lastUpdated` no retention of the table ends it.
    pub fn line(&self) -> Value {
        json!({"txn": {"appId": self.app_id(), "version": self.number}})
    }
}

/// A part of a name: nothing in it leads out of the part.
fn escape(part: &str) -> String {
    let mut escaped = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

fn unescape(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                after
            }
            (b'%', _) => return None,
            _ => {
                bytes.push(*first);
                after
            }
        };
    }
    String::from_utf8(bytes).ok()
}

/// What the log says of one owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Writer {
    /// Versions of the table.
    joined: Option<i64>,
    taken: Option<(i64, Owner)>,
    started: Option<(i64, StartHash)>,
    next: BTreeMap<PositionKey, (TopicName, Offset)>,
    epochs: BTreeMap<PositionKey, LeaderEpoch>,
}

impl Writer {
    /// Who has the positions now. One that was let in again has them back.
    fn taken_by(&self) -> Option<&Owner> {
        let (since, by) = self.taken.as_ref()?;
        (self.joined < Some(*since)).then_some(by)
    }

    fn positions(&self) -> Positions {
        let mut positions = Positions::default();
        for (key, (topic, next)) in &self.next {
            let position = Position { next: *next, epoch: self.epochs.get(key).copied() };
            positions.restore(*key, topic.clone(), position);
        }
        positions.restore_start_hash(self.started.as_ref().map(|(_, hash)| hash.clone()));
        positions
    }
}

/// Why moves are not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    Conflict(Conflict),
    Refused(Refusal),
}

/// All who write to a table: the fold of the newest `txn` actions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writers(BTreeMap<Owner, Writer>);

impl Writers {
    /// Notes an action that is newer than all of its name before.
    pub fn note(&mut self, txn: Txn) {
        let Txn { owner, fact, number } = txn;
        let cluster = owner.cluster.clone();
        let writer = self.0.entry(owner).or_default();
        match fact {
            Fact::Joined => writer.joined = Some(number),
            Fact::Taken { group, identity } => {
                if writer.taken.as_ref().is_none_or(|(since, _)| *since <= number) {
                    writer.taken = Some((number, Owner { cluster, group, identity }));
                }
            }
            Fact::Started(hash) => {
                if writer.started.as_ref().is_none_or(|(since, _)| *since <= number) {
                    writer.started = Some((number, StartHash(hash)));
                }
            }
            Fact::Next(topic, key) => {
                // A negative one was not written by us.
                if let Some(next) = Offset::new(number) {
                    writer.next.insert(key, (topic, next));
                }
            }
            Fact::Epoch(_, key) => match i32::try_from(number) {
                Ok(epoch) if epoch >= 0 => {
                    writer.epochs.insert(key, LeaderEpoch(epoch));
                }
                _ => {
                    writer.epochs.remove(&key);
                }
            },
        }
    }

    /// Notes what is ours of the lines of an entry.
    pub fn note_entry(&mut self, lines: &[Value]) {
        for txn in lines.iter().filter_map(|line| line.get("txn")) {
            let app_id = txn.get("appId").and_then(Value::as_str);
            let number = txn.get("version").and_then(Value::as_i64);
            if let Some(txn) = app_id.zip(number).and_then(|(app_id, number)| Txn::parse(app_id, number)) {
                self.note(txn);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn accounts(&self) -> BTreeMap<Owner, Account> {
        let each = self.0.iter().map(|(owner, writer)| {
            let taken_by = writer.taken_by().cloned();
            (owner.clone(), Account { positions: writer.positions(), taken_by, ..Account::default() })
        });
        each.collect()
    }

    pub fn positions(&self, owner: &Owner) -> Positions {
        self.0.get(owner).map(Writer::positions).unwrap_or_default()
    }

    /// How `claim` gets in.
    ///
    /// # Errors
    /// Why it does not.
    pub fn admission(&self, claim: &Claim) -> Result<Admission, Refusal> {
        let mut all: Vec<(&Owner, &Writer)> = self.0.iter().collect();
        // The one who came first, first.
        all.sort_by_key(|(_, writer)| writer.joined);
        let all: Vec<_> = all.into_iter().map(|(owner, writer)| (owner, writer.taken_by())).collect();
        admit(claim, &all)
    }

    /// What lets `claim` in, in the entry that makes the table's version `version`.
    pub fn entering(&self, claim: &Claim, admission: &Admission, version: i64) -> Vec<Txn> {
        let owner = &claim.owner;
        let joined = Txn::new(owner, Fact::Joined, version);
        match admission {
            Admission::Known => Vec::new(),
            Admission::Joins => vec![joined],
            Admission::Adopts(former) => {
                let by = Fact::Taken { group: owner.group.clone(), identity: owner.identity.clone() };
                let mut txns = vec![joined, Txn::new(former, by, version)];
                let (own, theirs) = (self.positions(owner), self.positions(former));
                txns.extend(differences(owner, &own, &theirs, version));
                txns
            }
        }
    }

    /// What moves the positions of `owner` in the entry that makes the table's version `version`.
    ///
    /// # Errors
    /// [`Objection`] if a move does not start where its position stands, or the positions were taken over.
    pub fn advancing(&self, owner: &Owner, moves: &[Move], version: i64) -> Result<Vec<Txn>, Objection> {
        if let Some(by) = self.0.get(owner).and_then(Writer::taken_by) {
            return Err(Objection::Refused(Refusal::Taken { by: by.clone() }));
        }
        let before = self.positions(owner);
        let mut after = before.clone();
        after.apply(moves).map_err(Objection::Conflict)?;
        Ok(differences(owner, &before, &after, version))
    }
}

/// What makes of the positions `before` those `after`.
fn differences(owner: &Owner, before: &Positions, after: &Positions, version: i64) -> Vec<Txn> {
    let mut txns = Vec::new();
    for (key, topic, position) in after.iter() {
        let known = before.get(key);
        if known.map(|known| known.next) != Some(position.next) {
            txns.push(Txn::new(owner, Fact::Next(topic.clone(), *key), position.next.get()));
        }
        if known.and_then(|known| known.epoch) != position.epoch {
            let epoch = position.epoch.map_or(NO_EPOCH, |epoch| i64::from(epoch.0));
            txns.push(Txn::new(owner, Fact::Epoch(topic.clone(), *key), epoch));
        }
    }
    if let Some(hash) = after.start_hash().filter(|hash| before.start_hash() != Some(*hash)) {
        txns.push(Txn::new(owner, Fact::Started(hash.0.clone()), version));
    }
    txns
}
