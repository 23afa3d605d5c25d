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
    /// At the route's `start:`.
    AtStart,
}

/// What decides it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unseen {
    /// The partition appeared after the sink had positions in its topic: it was empty then.
    pub is_added: bool,
    /// The topic appeared while topics and start of the route were the same, or was created again.
    pub is_new: bool,
    /// Where the slowest of the route's other sinks stands.
    pub siblings: Option<Offset>,
}

impl Unseen {
    pub fn begin(self) -> Begin {
        match self {
            Self { is_added: true, .. } => Begin::Whole,
            Self { siblings: Some(next), .. } => Begin::WithSiblings(next),
            Self { is_new: true, .. } => Begin::Whole,
            Self { .. } => Begin::AtStart,
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
            Unseen { is_added, is_new, siblings: siblings.map(at) }.begin()
        };
        assert_eq!(unseen(false, false, None), Begin::AtStart);
        assert_eq!(unseen(false, true, None), Begin::Whole);
        assert_eq!(unseen(false, false, Some(7)), Begin::WithSiblings(at(7)));
        assert_eq!(unseen(false, true, Some(7)), Begin::WithSiblings(at(7)));
        assert_eq!(unseen(true, false, Some(7)), Begin::Whole);
    }

    #[test]
    fn a_gap_is_before_the_first_record_or_behind_the_end() {
        let kept = (at(5), at(9));
        assert_eq!(Gap::of(at(4), kept).map(Gap::to), Some(at(5)));
        assert_eq!(Gap::of(at(10), kept).map(Gap::to), Some(at(9)));
        assert_eq!([5, 7, 9].map(|next| Gap::of(at(next), kept)), [None; 3]);
    }
}
