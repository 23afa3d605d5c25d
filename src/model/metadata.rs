//! The string beside a committed offset: per-sink facts the group keeps for us (PROTOCOL §3, §5).
//!
//! `ss1` and then entries separated by one space:
//!
//! | entry | meaning |
//! |---|---|
//! | `b=<offset>` | where what is furthest behind in this partition stands, if that is below the committed offset: it catches up. 0 if that is not known yet |
//! | `p<identity>=<offset>` | next offset of a sink that has no store of its own, where it differs from the committed offset |
//! | `l<identity>=<log>.<n>` | commit log id and the last entry this partition's owner saw of a file sink |
//! | `s<route>=<start hash>` | what a route was last started with: what appears while topics and start are the same is read from its beginning |
//! | `s<identity>=<start hash>` | the same of a sink without a store that has a `start:` of its own: without the word it was never started |
//!
//! `<identity>` and `<route>` are the hex of the first 8 bytes of SHA-256 of the sink's identity, of the route's name. Entries of sinks this
//! instance does not know, and kinds it does not know, are copied unchanged: during a rolling deploy
//! they belong to the other version.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest, Sha256};

use super::{Offset, StartHash};

const PREFIX: &str = "ss1";

/// The key of the one word that is about the partition as a whole.
const BEHIND: &str = "b";

/// Kafka's `offset.metadata.max.bytes` default: brokers refuse longer strings.
pub const BYTES_MAX: usize = 4096;

/// Hex digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The short form of a sink identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityHash(String);

impl IdentityHash {
    pub fn of(identity: &str) -> Self {
        Self(hex(&Sha256::digest(identity.as_bytes())[..8]))
    }
}

impl fmt::Display for IdentityHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A word about a sink or a route that is not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Kind and hash, as written: [`GroupMetadata::forget`] takes it.
    pub key: String,
    pub hash: IdentityHash,
    pub says: Saying,
}

/// What a word says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saying {
    Position(Offset),
    Log { id: String, entry: u64 },
    Start(StartHash),
}

/// The parsed string of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupMetadata {
    /// Key (kind and identity) to value, as written.
    entries: BTreeMap<String, String>,
}

/// Why a metadata string is not ours or does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("the group's commit metadata was not written by sidestream: `{start}`")]
    Foreign { start: String },
    #[error("the group's commit metadata needs {bytes} bytes of at most {BYTES_MAX}")]
    TooLong { bytes: usize },
}

impl GroupMetadata {
    /// Did sidestream write this string? Tools that move a group's offsets leave an empty one.
    pub fn is_ours(text: &str) -> bool {
        text == PREFIX || text.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(' '))
    }

    /// Reads the string committed with an offset. An empty one is an empty map: a commit by a tool.
    ///
    /// # Errors
    /// [`MetadataError::Foreign`] if somebody else wrote it.
    pub fn parse(text: &str) -> Result<Self, MetadataError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let foreign = || MetadataError::Foreign { start: text.chars().take(40).collect() };
        let mut words = text.split(' ');
        if words.next() != Some(PREFIX) {
            return Err(foreign());
        }
        let entries = words
            .map(|word| {
                let (key, value) = word.split_once('=').ok_or_else(foreign)?;
                Ok((key.to_owned(), value.to_owned()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    /// # Errors
    /// [`MetadataError::TooLong`]: the commit stops rather than forgetting an entry.
    pub fn render(&self) -> Result<String, MetadataError> {
        let mut text = PREFIX.to_owned();
        for (key, value) in &self.entries {
            text.push(' ');
            text.push_str(key);
            text.push('=');
            text.push_str(value);
        }
        if text.len() > BYTES_MAX {
            return Err(MetadataError::TooLong { bytes: text.len() });
        }
        Ok(text)
    }

    /// Where what is furthest behind stands, if that is below the committed offset.
    pub fn behind(&self) -> Option<Offset> {
        Offset::new(self.entries.get(BEHIND)?.parse().ok()?)
    }

    pub fn set_behind(&mut self, behind: Option<Offset>) {
        match behind {
            Some(behind) => self.entries.insert(BEHIND.to_owned(), behind.to_string()),
            None => self.entries.remove(BEHIND),
        };
    }

    /// The next offset of a store-less sink.
    pub fn position(&self, identity: &IdentityHash) -> Option<Offset> {
        let value = self.entries.get(&format!("p{}", identity.0))?;
        Offset::new(value.parse().ok()?)
    }

    pub fn set_position(&mut self, identity: &IdentityHash, next: Offset) {
        self.entries.insert(format!("p{}", identity.0), next.to_string());
    }

    /// Sets the positions of these sinks where they differ from the committed offset; one that does not
    /// needs no entry.
    pub fn keep_positions(&mut self, positions: &BTreeMap<IdentityHash, Offset>, committed: Offset) {
        for (identity, next) in positions {
            if *next == committed {
                self.entries.remove(&format!("p{}", identity.0));
            } else {
                self.set_position(identity, *next);
            }
        }
    }

    /// The commit log a file sink of this identity wrote to, and its last entry known.
    pub fn log(&self, identity: &IdentityHash) -> Option<(String, u64)> {
        let (id, number) = self.entries.get(&format!("l{}", identity.0))?.split_once('.')?;
        Some((id.to_owned(), number.parse().ok()?))
    }

    /// What the route of this name, or a sink that says where it begins, was last started with.
    pub fn start(&self, route: &IdentityHash) -> Option<StartHash> {
        self.entries.get(&format!("s{}", route.0)).cloned().map(StartHash)
    }

    pub fn set_start(&mut self, route: &IdentityHash, hash: &StartHash) {
        self.entries.insert(format!("s{}", route.0), hash.0.clone());
    }

    /// Words about sinks, and about routes and sinks that are started (`starts`), that are not among these. Kinds of words that are not known belong to another
    /// version, and are nobody's here.
    pub fn strangers(
        &self,
        sinks: &BTreeSet<IdentityHash>,
        starts: &BTreeSet<IdentityHash>,
    ) -> Vec<Stranger> {
        let read = |(key, value): (&String, &String)| {
            let hash = key
                .get(1..)
                .filter(|hash| hash.len() == 16 && hash.chars().all(|char| char.is_ascii_hexdigit()));
            let hash = IdentityHash(hash?.to_owned());
            let (known, says) = match key.get(..1)? {
                "p" => (sinks, Saying::Position(self.position(&hash)?)),
                "l" => {
                    let (id, entry) = self.log(&hash)?;
                    (sinks, Saying::Log { id, entry })
                }
                "s" => (starts, Saying::Start(StartHash(value.clone()))),
                _ => return None,
            };
            (!known.contains(&hash)).then(|| Stranger { key: key.clone(), hash, says })
        };
        self.entries.iter().filter_map(read).collect()
    }

    /// Drops a word.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }

    pub fn set_log(&mut self, identity: &IdentityHash, log_id: &str, number: u64) {
        self.entries.insert(format!("l{}", identity.0), format!("{log_id}.{number}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_fixed_and_unknown_entries_survive() {
        let text = "ss1 l0011223344556677=abcd.17 p8899aabbccddeeff=120 z1=of-a-later-version";
        let mut metadata = GroupMetadata::parse(text).unwrap();
        assert_eq!(metadata.render().unwrap(), text);
        let own = IdentityHash::of("orders/archive");
        metadata.set_position(&own, Offset::new(5).unwrap());
        metadata.set_log(&own, "ff00", 3);
        metadata.set_start(&own, &StartHash("0a1b".to_owned()));
        let back = GroupMetadata::parse(&metadata.render().unwrap()).unwrap();
        assert_eq!(back.position(&own), Offset::new(5));
        assert_eq!(back.log(&own), Some(("ff00".to_owned(), 3)));
        assert_eq!(back.start(&own), Some(StartHash("0a1b".to_owned())));
        assert_eq!(back.start(&IdentityHash::of("other")), None);
        assert_eq!(back.behind(), None);
        metadata.set_behind(Offset::new(7));
        assert!(metadata.render().unwrap().starts_with("ss1 b=7 l"));
        assert_eq!(metadata.behind(), Offset::new(7));
        metadata.set_behind(None);
        assert_eq!(metadata, back);
        assert!(back.render().unwrap().contains("z1=of-a-later-version"));
    }

    #[test]
    fn words_of_what_is_not_known_are_found_and_forgotten() {
        let (here, gone) = (IdentityHash::of("orders/archive"), IdentityHash::of("orders/gone"));
        let mut metadata = GroupMetadata::parse("ss1 z1=later p1=7").unwrap();
        metadata.set_position(&here, Offset::ZERO);
        metadata.set_position(&gone, Offset::ZERO);
        metadata.set_log(&gone, "ff00", 3);
        metadata.set_start(&here, &StartHash("0a".to_owned()));
        let (sinks, routes) = (BTreeSet::from([here.clone()]), BTreeSet::new());
        let strangers = metadata.strangers(&sinks, &routes);
        let keys: Vec<&str> = strangers.iter().map(|stranger| stranger.key.as_str()).collect();
        assert_eq!(keys, [format!("l{gone}"), format!("p{gone}"), format!("s{here}")]);
        assert_eq!(strangers[0].says, Saying::Log { id: "ff00".to_owned(), entry: 3 });
        for stranger in &strangers {
            metadata.forget(&stranger.key);
        }
        assert_eq!(metadata.render().unwrap(), format!("ss1 p1=7 p{here}=0 z1=later"));
        assert!(metadata.strangers(&sinks, &routes).is_empty());
    }

    #[test]
    fn a_string_says_who_wrote_it() {
        for (text, is_ours) in
            [("ss1", true), ("ss1 p00=1", true), ("", false), ("ss12", false), ("{}", false)]
        {
            assert_eq!(GroupMetadata::is_ours(text), is_ours, "{text}");
        }
    }

    #[test]
    fn foreign_and_oversized_strings_are_told_apart() {
        assert!(GroupMetadata::parse("").unwrap().entries.is_empty());
        GroupMetadata::parse("{\"json\":1}").unwrap_err();
        GroupMetadata::parse("ss1 no-value").unwrap_err();
        let mut metadata = GroupMetadata::default();
        for sink in 0..300 {
            metadata.set_position(&IdentityHash::of(&format!("s{sink}")), Offset::ZERO);
        }
        assert!(matches!(metadata.render(), Err(MetadataError::TooLong { .. })));
    }
}
