//! How much lanes hold, and when fetching for one of them pauses.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

/// A lane may hold this many times what is free: one that is alone gets two thirds of the budget, two get two
/// fifths each. Some always stays free, so that a lane that wakes up finds room at once however slow the others
/// are, and nobody has to know how many lanes there are (the "dynamic threshold" of shared switch buffers).
const SHARE_OF_FREE: usize = 2;

/// A lane that is full for so long is slow. Being full for moments is how a busy one works.
const SLOW_AFTER: Duration = Duration::from_secs(10);

/// Bytes of records held between the broker and the sinks, by all lanes.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What one lane may hold now.
    fn share(&self) -> usize {
        self.limit.saturating_sub(self.used()).saturating_mul(SHARE_OF_FREE)
    }
}

/// A lane that was full goes on when it holds a fourth of its share: that is half of what it held, as its share grows
/// while it empties, and is twice as large by then.
const ROOM_AGAIN: usize = 4;

/// Bytes held for one lane, out of the budget of all.
///
/// Fetching pauses when a lane holds its share and resumes when half of that is gone: pausing drops what librdkafka has
/// prefetched (up to `queued.max.messages.kbytes`), which is fetched again each time.
#[derive(Debug)]
pub struct Gauge {
    route: String,
    used: AtomicUsize,
    budget: Arc<Budget>,
    pace: Mutex<Pace>,
}

/// Whether a lane keeps up with what is fetched for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Flowing,
    FullSince(Instant),
    /// It was said that the route is slow.
    Slow(Instant),
}

impl Gauge {
    pub fn new(route: &str, budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            route: route.to_owned(),
            used: AtomicUsize::new(0),
            budget: budget.clone(),
            pace: Mutex::new(Pace::Flowing),
        })
    }

    /// A second one of the same route: what is read for one purpose must not hold up the other.
    #[must_use]
    pub fn beside(&self) -> Arc<Self> {
        Self::new(&self.route, &self.budget)
    }

    /// Says once when the lane has been full for long, and once when it has room again.
    pub fn tell_pace(&self, now: Instant) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.next_pace(*pace, now);
        match (*pace, next) {
            (Pace::FullSince(_), Pace::Slow(_)) => warn!(
                route = self.route,
                bytes = self.used(),
                "route slow: it takes records more slowly than they come; fetching for it is paused meanwhile"
            ),
            (Pace::Slow(since), Pace::Flowing) => {
                let seconds = now.duration_since(since).as_secs();
                info!(route = self.route, seconds, "route keeps up again");
            }
            _ => {}
        }
        *pace = next;
    }

    fn next_pace(&self, pace: Pace, now: Instant) -> Pace {
        match pace {
            Pace::Flowing if self.is_full() => Pace::FullSince(now),
            _ if self.has_room_again() => Pace::Flowing,
            Pace::FullSince(since) if now.duration_since(since) >= SLOW_AFTER => Pace::Slow(since),
            other => other,
        }
    }

    /// A lane that holds nothing always gets one more chunk, or it could never go on.
    pub fn is_full(&self) -> bool {
        let used = self.used();
        used > 0 && used >= self.budget.share()
    }

    /// Low enough to go on after it was full.
    pub fn has_room_again(&self) -> bool {
        self.used() <= self.budget.share() / ROOM_AGAIN
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Bytes charged to a gauge until it is dropped.
pub struct Charge {
    gauge: Arc<Gauge>,
    bytes: usize,
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charge({})", self.bytes)
    }
}

impl Charge {
    pub fn new(gauge: Arc<Gauge>, bytes: usize) -> Self {
        gauge.used.fetch_add(bytes, Ordering::Relaxed);
        gauge.budget.used.fetch_add(bytes, Ordering::Relaxed);
        Self { gauge, bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.gauge.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.gauge.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lane_alone_gets_two_thirds() {
        let budget = Budget::new(300);
        let gauge = Gauge::new("r", &budget);
        let mut held = Vec::new();
        while !gauge.is_full() {
            held.push(Charge::new(gauge.clone(), 10));
        }
        assert_eq!(gauge.used(), 200);
        assert!(!gauge.has_room_again());
        held.truncate(11);
        assert!(!gauge.is_full() && !gauge.has_room_again());
        // Half of what it held when it was full.
        held.truncate(10);
        assert!(gauge.has_room_again());
        held.clear();
        assert!(gauge.has_room_again());
        assert_eq!((gauge.used(), budget.used()), (0, 0));
    }

    #[test]
    fn a_route_is_slow_when_it_stays_full() {
        let gauge = Gauge::new("r", &Budget::new(100));
        let now = Instant::now();
        let later = now + SLOW_AFTER;
        assert_eq!(gauge.next_pace(Pace::Flowing, now), Pace::Flowing);
        let held = Charge::new(gauge.clone(), 90);
        assert_eq!(gauge.next_pace(Pace::Flowing, now), Pace::FullSince(now));
        assert_eq!(gauge.next_pace(Pace::FullSince(now), now), Pace::FullSince(now));
        assert_eq!(gauge.next_pace(Pace::FullSince(now), later), Pace::Slow(now));
        assert_eq!(gauge.next_pace(Pace::Slow(now), later), Pace::Slow(now));
        drop(held);
        assert_eq!(gauge.next_pace(Pace::Slow(now), later), Pace::Flowing);
    }

    /// Also beside others that stay full.
    #[test]
    fn a_lane_goes_on_when_half_of_what_it_held_is_gone() {
        let budget = Budget::new(7000);
        let lanes: Vec<Arc<Gauge>> = (0..3).map(|_| Gauge::new("r", &budget)).collect();
        let mut held: Vec<Vec<Charge>> = lanes.iter().map(|_| Vec::new()).collect();
        while lanes.iter().any(|lane| !lane.is_full()) {
            for (lane, held) in lanes.iter().zip(&mut held).filter(|(lane, _)| !lane.is_full()) {
                held.push(Charge::new(lane.clone(), 10));
            }
        }
        let most = lanes[0].used();
        while !lanes[0].has_room_again() {
            held[0].pop();
        }
        assert!(lanes[0].used().abs_diff(most / 2) <= 10, "{} of {most}", lanes[0].used());
    }

    /// However many lanes are full and stay so, one more finds room, and the budget holds.
    #[test]
    fn slow_lanes_leave_room_for_others_and_the_budget_holds() {
        let budget = Budget::new(10_000);
        let lanes: Vec<Arc<Gauge>> = (0..50).map(|_| Gauge::new("r", &budget)).collect();
        let mut held = Vec::new();
        for lane in &lanes {
            assert!(!lane.is_full());
            while !lane.is_full() {
                held.push(Charge::new(lane.clone(), 10));
            }
        }
        // Each may hold one chunk whatever the others hold.
        assert!(budget.used() <= 10_000 + 50 * 10, "{}", budget.used());
        // Nothing is left: each may still hold one chunk, or a lane could starve.
        let late = Gauge::new("late", &budget);
        held.push(Charge::new(lanes[0].clone(), 10_000));
        assert!(!late.is_full());
        held.push(Charge::new(late.clone(), 10));
        assert!(late.is_full());
    }
}
