//! Where a sink begins in a partition it has no position for, and whether it can go on where it stands (PROTOCOL §2).
//! Pure: `plan` explains by this what a start would do.

use crate::model::{Offset, TopicPartition};

/// Where a sink begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Where the route's other sinks stand.
    WithSiblings(Offset),
    /// At the first record: all of what is new is wanted.
    Whole,
    /// At its own `start:`, or else the route's.
    AtStart,
}

/// What decides it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unseen {
    /// The partition appeared after the sink had positions in its topic: it was empty then.
    pub is_added: bool,
    /// The topic appeared while topics and start of the route were the same.
    pub is_new: bool,
    /// The topic was deleted and created again.
    pub is_recreated: bool,
    /// The sink says itself where it begins.
    pub has_start: bool,
    /// Where the slowest of the route's sinks stands that begin where the route does. Those that say where they begin may
    /// be anywhere.
    pub siblings: Option<Offset>,
    /// Where the slowest of all sinks stood before any of them was given a position here: the partition is known, and it
    /// is this sink that is new.
    pub living: Option<Offset>,
}

impl Unseen {
    pub fn begin(self) -> Begin {
        let beside = self.siblings.or(self.living).filter(|_| !self.has_start);
        let is_late = self.has_start && self.living.is_some();
        match beside {
            _ if self.is_added => Begin::Whole,
            Some(next) => Begin::WithSiblings(next),
            None if self.is_recreated || (self.is_new && !is_late) => Begin::Whole,
            None => Begin::AtStart,
        }
    }
}

/// Records that a sink wants next and the brokers do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Retention has passed them.
    Deleted { next: Offset, first: Offset },
    /// The partition became shorter.
    Truncated { next: Offset, end: Offset },
}

impl Gap {
    /// What lies between `next` and a partition that keeps `[first, end)`.
    pub fn of(next: Offset, (first, end): (Offset, Offset)) -> Option<Self> {
        if next < first {
            Some(Self::Deleted { next, first })
        } else if next > end {
            Some(Self::Truncated { next, end })
        } else {
            None
        }
    }

    /// Where a sink goes on without them.
    pub fn to(self) -> Offset {
        match self {
            Self::Deleted { first, .. } => first,
            Self::Truncated { end, .. } => end,
        }
    }

    pub fn hint(self) -> &'static str {
        match self {
            Self::Deleted { .. } => {
                "give the topic a longer retention; to go on without them, set `on_data_loss: continue`"
            }
            Self::Truncated { .. } => {
                "records were replaced; find out what was lost before reading on with `on_data_loss: continue`"
            }
        }
    }

    /// For people.
    pub fn told(self, source: &TopicPartition, sink: &str) -> String {
        match self {
            Self::Deleted { next, first } => format!(
                "{source}: offsets {next} to {first} are lost: sink `{sink}` has not read them, and the brokers have deleted them (retention)"
            ),
            Self::Truncated { next, end } => format!(
                "{source}: sink `{sink}` stands at offset {next}, and the brokers have only {end}: the partition was truncated (unclean leader election)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    #[test]
    fn what_is_new_is_read_whole_and_what_is_added_stands_with_its_siblings() {
        let unseen = |is_added, is_new, siblings: Option<i64>| {
            Unseen { is_added, is_new, siblings: siblings.map(at), ..Unseen::default() }.begin()
        };
        assert_eq!(unseen(false, false, None), Begin::AtStart);
        assert_eq!(unseen(false, true, None), Begin::Whole);
        assert_eq!(unseen(false, false, Some(7)), Begin::WithSiblings(at(7)));
        assert_eq!(unseen(false, true, Some(7)), Begin::WithSiblings(at(7)));
        assert_eq!(unseen(true, false, Some(7)), Begin::Whole);
        let recreated = Unseen { is_recreated: true, ..Unseen::default() };
        assert_eq!(recreated.begin(), Begin::Whole);
        // All others say where they begin: they are siblings all the same.
        let others = Unseen { living: Some(at(3)), ..Unseen::default() };
        assert_eq!(others.begin(), Begin::WithSiblings(at(3)));
    }

    #[test]
    fn a_sink_with_a_start_begins_there_unless_the_topic_is_new() {
        let own = Unseen { has_start: true, siblings: Some(at(7)), ..Unseen::default() };
        assert_eq!(own.begin(), Begin::AtStart);
        // The topic is as new as the sink, whichever of its siblings was asked first.
        assert_eq!(Unseen { is_new: true, ..own }.begin(), Begin::Whole);
        // The route has read it before: only the sink is new.
        let late = Unseen { is_new: true, living: Some(at(7)), ..own };
        assert_eq!(late.begin(), Begin::AtStart);
        assert_eq!(Unseen { is_recreated: true, ..late }.begin(), Begin::Whole);
        assert_eq!(Unseen { is_added: true, ..late }.begin(), Begin::Whole);
    }

    #[test]
    fn a_gap_is_before_the_first_record_or_behind_the_end() {
        let kept = (at(5), at(9));
        assert_eq!(Gap::of(at(4), kept).map(Gap::to), Some(at(5)));
        assert_eq!(Gap::of(at(10), kept).map(Gap::to), Some(at(9)));
        assert_eq!([5, 7, 9].map(|next| Gap::of(at(next), kept)), [None; 3]);
    }
}
