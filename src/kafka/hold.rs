//! Which outlets hold a partition up that others wait for. Pure: the time is a parameter.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// So long it is looked at who holds a partition up. Being full for moments is how a busy lane works.
const HOLD_WINDOW: Duration = Duration::from_secs(5);

/// One partition's account.
#[derive(Debug)]
pub struct Hold {
    since: Instant,
    seen: Instant,
    held: Duration,
    by: BTreeSet<usize>,
}

impl Hold {
    pub fn new(now: Instant) -> Self {
        Self { since: now, seen: now, held: Duration::ZERO, by: BTreeSet::new() }
    }

    /// Takes in who has no room at this moment, and whether somebody else has. Returns who held the partition up
    /// for more than half of the time, once per window.
    pub fn look(&mut self, full: &[usize], is_other_free: bool, now: Instant) -> Vec<usize> {
        if !full.is_empty() && is_other_free {
            self.held += now.duration_since(self.seen);
            self.by.extend(full);
        }
        self.seen = now;
        let elapsed = now.duration_since(self.since);
        if elapsed < HOLD_WINDOW {
            return Vec::new();
        }
        let is_held = self.held * 2 > elapsed;
        let by = std::mem::take(&mut self.by);
        *self = Self::new(now);
        // Whoever has room by now was full for a moment only.
        if is_held { by.into_iter().filter(|outlet| full.contains(outlet)).collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every tenth of a second; `full` says who has no room in each.
    fn told(tenths: u64, full: impl Fn(u64) -> Vec<usize>) -> Vec<Vec<usize>> {
        let start = Instant::now();
        let mut hold = Hold::new(start);
        let looks = (1..=tenths).map(|tenth| {
            let now = start + Duration::from_millis(100 * tenth);
            let full = full(tenth);
            hold.look(&full, full.len() < 2, now)
        });
        looks.filter(|by| !by.is_empty()).collect()
    }

    #[test]
    fn whoever_holds_the_others_up_is_told_once_per_window() {
        assert_eq!(told(49, |_| vec![1]), Vec::<Vec<usize>>::new());
        assert_eq!(told(100, |_| vec![1]), [vec![1], vec![1]]);
        // It pauses and goes on, and is full most of the time.
        assert_eq!(told(50, |tenth| if tenth % 5 == 1 { vec![] } else { vec![0] }), [vec![0]]);
    }

    #[test]
    fn moments_and_what_all_share_do_not_count() {
        assert!(told(200, |tenth| if tenth % 3 == 0 { vec![1] } else { vec![] }).is_empty());
        assert!(told(200, |_| vec![0, 1]).is_empty());
    }
}
