//! What is committed to the group in a transaction: offsets, and beside them where sinks stand that differ. Decisions only.

use std::collections::BTreeMap;
use std::error::Error;

use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use crate::model::metadata::{GroupMetadata, IdentityHash};
use crate::model::{Conflict, Offset, Position, PositionKey, StartHash, TopicPartition};
use crate::sink::pending::GroupPositions;

use super::Trouble;

/// A sink in the transactions of its lane.
pub(super) struct Seated {
    hash: IdentityHash,
    /// What it was started with, if it says so itself.
    start: Option<StartHash>,
    pub(super) positions: GroupPositions,
    /// Why what it had taken is not in sight; until it begins anew.
    pub(super) trouble: Option<Trouble>,
}

/// What the group has for a partition, read while nobody else could move it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) source: TopicPartition,
    /// By the how manieth gift the partition is held.
    pub(super) number: u64,
    committed: Option<Offset>,
    metadata: GroupMetadata,
}

impl Seated {
    pub(super) fn new(identity: &str, start: Option<StartHash>) -> Self {
        let hash = IdentityHash::of(identity);
        Self { hash, start, positions: GroupPositions::default(), trouble: None }
    }

    /// Where it stands once what it has taken is committed.
    fn next(&self, key: &PositionKey) -> Option<Offset> {
        let taken = self.positions.accepted().iter().rev().find(|step| step.key == *key);
        let settled = || self.positions.settled().get(key).map(|position| position.next);
        taken.map(|step| step.end.next).or_else(settled)
    }

    /// Takes what the group has for what is so; the difference, if there is one.
    pub(super) fn correct(&mut self, key: PositionKey, known: &Place) -> Option<Conflict> {
        let settled = self.positions.settled();
        let stands = settled.get(&key).map(|position| position.next);
        let stored = known.next_of(self);
        let topic = &known.source.topic;
        // The group speaks of a topic that was deleted, and another one begins under its name.
        let is_of_former = stands.is_none() && settled.former_id(topic, key.topic_id).is_some();
        if stands == stored || is_of_former {
            return None;
        }
        if let Some(next) = stored {
            self.positions.restore(key, topic, Position { next, epoch: None });
        }
        Some(Conflict { key, topic: topic.clone(), stored, start: stands })
    }
}

impl Place {
    pub(super) fn read(source: &TopicPartition, number: u64, found: Option<&(Offset, String)>) -> Self {
        // Words of others are overwritten; the engine has said so.
        let metadata = found.and_then(|(_, text)| GroupMetadata::parse(text).ok()).unwrap_or_default();
        Self { source: source.clone(), number, committed: found.map(|(offset, _)| *offset), metadata }
    }

    /// Where a sink stands: where the group does, unless there is a word of its own. One that says where it begins, and was
    /// never started, stands nowhere.
    fn next_of(&self, sink: &Seated) -> Option<Offset> {
        if sink.start.is_some() && self.metadata.start(&sink.hash).is_none() {
            return None;
        }
        self.metadata.position(&sink.hash).or(self.committed)
    }

    /// Moves on to where the sinks stand with what they have taken.
    pub(super) fn advance(
        &mut self,
        key: &PositionKey,
        sinks: &[Seated],
        route: Option<&(String, StartHash)>,
    ) {
        let each = sinks.iter().filter_map(|sink| Some((sink.hash.clone(), sink.next(key)?)));
        let positions: BTreeMap<IdentityHash, Offset> = each.collect();
        let own = sinks.iter().filter(|sink| positions.contains_key(&sink.hash));
        let own = own.filter_map(|sink| Some((sink.hash.clone(), sink.start.clone()?)));
        let of_route = route.map(|(name, hash)| (IdentityHash::of(name), hash.clone()));
        for (who, hash) in own.chain(of_route) {
            self.metadata.set_start(&who, &hash);
        }
        self.stand(&positions);
    }

    /// The offset is the one of the slowest sink, and never goes back; words tell what differs from it.
    fn stand(&mut self, positions: &BTreeMap<IdentityHash, Offset>) {
        let Some(lowest) = positions.values().min().copied() else {
            return;
        };
        let next = self.committed.map_or(lowest, |committed| committed.max(lowest));
        self.metadata.keep_positions(positions, next);
        self.metadata.set_behind(Some(lowest).filter(|lowest| *lowest < next));
        self.committed = Some(next);
    }
}

/// What is committed for these partitions.
///
/// # Errors
/// If the words beside an offset do not fit.
pub(super) fn list<'a>(
    places: impl Iterator<Item = &'a Place>,
) -> Result<TopicPartitionList, Box<dyn Error + Send + Sync>> {
    let mut list = TopicPartitionList::new();
    for Place { source, committed, metadata, .. } in places {
        let Some(next) = committed else {
            continue;
        };
        let metadata = metadata.render()?;
        let mut element = list.add_partition(source.topic.as_str(), source.partition.0);
        element.set_metadata(&metadata);
        element.set_offset(KafkaOffset::Offset(next.get()))?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::{Move, Partition, Reason, TopicId, TopicName};

    fn at(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    fn key() -> PositionKey {
        PositionKey { topic_id: TopicId(Uuid::from_u128(1)), partition: Partition(3) }
    }

    fn source() -> TopicPartition {
        TopicPartition::new(&TopicName::new("t"), Partition(3))
    }

    fn step(start: Option<i64>, end: i64) -> Move {
        Move {
            key: key(),
            topic: TopicName::new("t"),
            start: start.map(at),
            end: Position { next: at(end), epoch: None },
            reason: Reason::Data,
            records: 1,
        }
    }

    fn place(found: Option<(i64, &str)>) -> Place {
        Place::read(&source(), 1, found.map(|(offset, text)| (at(offset), text.to_owned())).as_ref())
    }

    fn seated(identity: &str, next: Option<i64>) -> Seated {
        let mut sink = Seated::new(identity, None);
        if let Some(next) = next {
            sink.positions.restore(key(), &TopicName::new("t"), Position { next: at(next), epoch: None });
        }
        sink
    }

    #[test]
    fn the_offset_is_that_of_the_slowest_sink_and_words_tell_the_rest() {
        let (fast, slow) = (IdentityHash::of("r/fast"), IdentityHash::of("r/slow"));
        let mut sinks = [seated("r/fast", Some(5)), seated("r/slow", Some(5))];
        let mut place = place(Some((5, "ss1 z1=later")));
        sinks[0].positions.accept(&[step(Some(5), 8), step(Some(8), 9)]);
        place.advance(&key(), &sinks, None);
        assert_eq!((place.committed, place.metadata.position(&fast)), (Some(at(5)), Some(at(9))));
        assert_eq!(place.metadata.position(&slow), None);
        sinks[1].positions.accept(&[step(Some(5), 9)]);
        place.advance(&key(), &sinks, None);
        assert_eq!(
            (place.committed, place.metadata.render().unwrap()),
            (Some(at(9)), "ss1 z1=later".to_owned())
        );
    }

    #[test]
    fn the_offset_does_not_go_back_for_a_sink_that_was_added() {
        let added = IdentityHash::of("r/added");
        let mut sinks = [seated("r/s", Some(50)), seated("r/added", None)];
        sinks[1].start = Some(StartHash("0a".to_owned()));
        let mut place = place(Some((50, "ss1")));
        assert_eq!((place.next_of(&sinks[0]), place.next_of(&sinks[1])), (Some(at(50)), None));
        sinks[1].positions.accept(&[step(None, 10)]);
        place.advance(&key(), &sinks, Some(&("r".to_owned(), StartHash("0b".to_owned()))));
        assert_eq!((place.committed, place.metadata.behind()), (Some(at(50)), Some(at(10))));
        assert_eq!((place.next_of(&sinks[0]), place.next_of(&sinks[1])), (Some(at(50)), Some(at(10))));
        assert_eq!(place.metadata.start(&added), Some(StartHash("0a".to_owned())));
        assert_eq!(place.metadata.start(&IdentityHash::of("r")), Some(StartHash("0b".to_owned())));
    }

    #[test]
    fn what_a_former_owner_has_moved_is_found_and_taken() {
        for (stands, found, expected) in [
            (None, None, None),
            (Some(5), Some((5, "ss1")), None),
            // Its commit came through after ours was read.
            (Some(5), Some((9, "ss1")), Some((Some(9), Some(5)))),
            (None, Some((9, "")), Some((Some(9), None))),
            (Some(5), None, Some((None, Some(5)))),
        ] {
            let mut sink = seated("r/s", stands);
            let conflict = sink.correct(key(), &place(found));
            let shown = conflict.map(|found| (found.stored.map(Offset::get), found.start.map(Offset::get)));
            assert_eq!(shown, expected, "{stands:?} {found:?}");
            let after = sink.positions.settled().get(&key()).map(|position| position.next.get());
            assert_eq!(after, found.map(|(offset, _)| offset).or(stands));
        }
    }

    #[test]
    fn a_topic_that_was_created_again_begins_anew() {
        let mut sink = seated("r/s", Some(5));
        let other = PositionKey { topic_id: TopicId(Uuid::from_u128(2)), ..key() };
        assert_eq!(sink.correct(other, &place(Some((5, "ss1")))), None);
        assert_eq!(sink.positions.settled().get(&other), None);
    }

    #[test]
    fn offsets_go_out_with_their_words() {
        let mut place = place(None);
        let mut sinks = [seated("r/s", None)];
        assert_eq!(list([&place].into_iter()).unwrap().count(), 0);
        sinks[0].positions.accept(&[step(None, 7)]);
        place.advance(&key(), &sinks, None);
        let list = list([&place].into_iter()).unwrap();
        let element = list.find_partition("t", 3).unwrap();
        assert_eq!((element.offset(), element.metadata()), (KafkaOffset::Offset(7), "ss1"));
        let many: BTreeMap<IdentityHash, Offset> =
            (0..300).map(|number| (IdentityHash::of(&number.to_string()), at(100 + number))).collect();
        place.stand(&many);
        assert!(super::list([&place].into_iter()).is_err());
    }
}
