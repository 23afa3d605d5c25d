//! A partition that is fetched: records are put into chunks, and chunks into the outlets of all who read it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::model::{Chunk, ChunkBuilder, Offset, TopicPartition};

use super::Outlet;
use super::event::{Assignment, Event};
use super::gauge::{Charge, Gauge};
use super::hold::Hold;

/// Outlets by number.
pub type Outlets = HashMap<usize, Box<dyn Outlet>>;

/// One partition that is fetched.
pub struct Slot {
    pub number: u64,
    pub builder: ChunkBuilder,
    pub since: Option<Instant>,
    /// A chunk that an outlet had no room for, and which outlets have it already.
    pub waiting: Option<(Chunk, Vec<bool>)>,
    /// An end that was reached while a chunk waited.
    end: Option<Offset>,
    pub is_paused: bool,
    /// Who gets the chunks.
    pub outlets: Vec<usize>,
    pub hold: Hold,
}

impl Slot {
    pub fn new(assignment: &Assignment, now: Instant) -> Self {
        let Assignment { source, from, number, outlets } = assignment;
        Self {
            number: *number,
            builder: ChunkBuilder::new(source.clone(), *number, *from),
            since: None,
            waiting: None,
            end: None,
            is_paused: false,
            outlets: outlets.clone(),
            hold: Hold::new(now),
        }
    }

    /// Nothing more goes to this outlet.
    pub fn detach(&mut self, outlet: usize) {
        let Some(place) = self.outlets.iter().position(|number| *number == outlet) else {
            return;
        };
        self.outlets.remove(place);
        if let Some((_, taken)) = &mut self.waiting {
            taken.remove(place);
        }
    }
}

/// A partition that failed and is not fetched any more. It is told once everything that came before is handed on: those
/// records are good, and whoever stops for it has them first.
pub struct Failed {
    pub source: TopicPartition,
    pub slot: Slot,
    pub event: Event,
}

impl Failed {
    /// Offers what is left. `true` once all of it is taken.
    pub fn hand_on(&mut self, outlets: &Outlets) -> bool {
        let slot = &mut self.slot;
        if let Some(waiting) = slot.waiting.take() {
            slot.waiting = offer(waiting, &slot.outlets, outlets);
        }
        if slot.waiting.is_none() && (slot.builder.record_count() > 0 || slot.end.is_some()) {
            let end = slot.builder.next();
            hand_on(&self.source, slot, end, outlets);
        }
        slot.waiting.is_none()
    }
}

/// What those hold that a partition's chunks go to.
pub fn gauges<'a>(slot: &'a Slot, outlets: &'a Outlets) -> impl Iterator<Item = &'a Arc<Gauge>> {
    slot.outlets.iter().filter_map(move |number| Some(outlets.get(number)?.gauge()))
}

/// The outlets that a partition waits for: while it is paused, those that have not come down again.
pub fn holders(slot: &Slot, outlets: &Outlets) -> Vec<usize> {
    if !slot.is_paused {
        return Vec::new();
    }
    let lacks = |place: usize| slot.waiting.as_ref().is_some_and(|(_, taken)| !taken[place]);
    let each = slot.outlets.iter().enumerate();
    each.filter(|(place, number)| {
        let is_full = outlets.get(*number).is_some_and(|outlet| !outlet.gauge().has_room_again());
        is_full || lacks(*place)
    })
    .map(|(_, number)| *number)
    .collect()
}

/// Finishes the slot's chunk at `end` and offers it.
pub fn hand_on(source: &TopicPartition, slot: &mut Slot, end: Offset, outlets: &Outlets) {
    // While a chunk waits the next one grows: the partition is paused by the next sweep.
    if slot.waiting.is_some() {
        slot.end = slot.end.max(Some(end));
        slot.since.get_or_insert_with(Instant::now);
        return;
    }
    let end = slot.end.take().map_or(end, |seen| seen.max(end)).max(slot.builder.next());
    let fresh = ChunkBuilder::new(source.clone(), slot.number, end);
    let builder = std::mem::replace(&mut slot.builder, fresh);
    slot.since = None;
    let taken = vec![false; slot.outlets.len()];
    slot.waiting = offer((builder.finish(end), taken), &slot.outlets, outlets);
}

/// Offers a chunk to the outlets that do not have it; what is left if one has no room. Each lane is
/// charged for itself: one that is slow must not fill the measure of another.
pub fn offer(
    (chunk, mut taken): (Chunk, Vec<bool>),
    numbers: &[usize],
    outlets: &Outlets,
) -> Option<(Chunk, Vec<bool>)> {
    for (number, taken) in numbers.iter().zip(&mut taken) {
        // One that is not connected has no lane: nobody waits for the chunk.
        let Some(outlet) = outlets.get(number).filter(|_| !*taken) else {
            *taken = true;
            continue;
        };
        let charge = Charge::new(outlet.gauge().clone(), chunk.size());
        *taken = outlet.offer(chunk.share(Some(Box::new(charge)))).is_ok();
    }
    taken.contains(&false).then_some((chunk, taken))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::kafka::{Budget, Verdict};
    use crate::model::{Incoming, Partition, TimestampType, TopicName};

    /// Has room for so many chunks.
    #[derive(Debug)]
    struct Narrow {
        room: Arc<Mutex<usize>>,
        taken: Arc<Mutex<Vec<(i64, i64)>>>,
        gauge: Arc<Gauge>,
    }

    impl Outlet for Narrow {
        fn offer(&self, chunk: Chunk) -> Result<(), Chunk> {
            let mut room = self.room.lock().unwrap();
            if *room == 0 {
                return Err(chunk);
            }
            *room -= 1;
            self.taken.lock().unwrap().push((chunk.start.get(), chunk.end.get()));
            Ok(())
        }

        fn gauge(&self) -> &Arc<Gauge> {
            &self.gauge
        }
    }

    fn push(slot: &mut Slot, offset: i64) {
        let incoming = Incoming {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: None,
            value: Some(b"v"),
        };
        slot.builder.push(incoming, std::iter::empty());
    }

    /// A chunk waits for room, the next one has begun, and then the partition fails.
    #[test]
    fn what_came_before_a_failure_is_handed_on_before_it_is_told() {
        let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
        let (room, taken) = (Arc::new(Mutex::new(0)), Arc::<Mutex<Vec<_>>>::default());
        let gauge = Gauge::new("r", &Budget::new(1 << 20));
        let outlet = Narrow { room: room.clone(), taken: taken.clone(), gauge };
        let outlets: Outlets = HashMap::from([(7, Box::new(outlet) as Box<dyn Outlet>)]);
        let assignment =
            Assignment { source: source.clone(), from: Offset::ZERO, number: 1, outlets: vec![7] };
        let mut slot = Slot::new(&assignment, Instant::now());
        for (offset, is_end) in [(0, false), (1, true), (3, true), (4, false)] {
            push(&mut slot, offset);
            if is_end {
                let end = slot.builder.next();
                hand_on(&source, &mut slot, end, &outlets);
            }
        }
        let event = Event::Failed {
            source: Some(source.clone()),
            offset: Offset::new(5),
            message: "no".to_owned(),
            verdict: Verdict::Unreadable,
        };
        let mut failed = Failed { source, slot, event };
        assert!(!failed.hand_on(&outlets));
        *room.lock().unwrap() = 1;
        assert!(!failed.hand_on(&outlets));
        assert_eq!(*taken.lock().unwrap(), [(0, 2)]);
        *room.lock().unwrap() = 1;
        assert!(failed.hand_on(&outlets));
        assert_eq!(*taken.lock().unwrap(), [(0, 2), (2, 5)]);
        // Nothing is left.
        assert!(failed.hand_on(&outlets));
        assert_eq!(taken.lock().unwrap().len(), 2);
    }
}
