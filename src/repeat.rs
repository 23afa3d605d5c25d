//! What is said again and again: at once the first time, then once in a while, with how often it happened meanwhile.
//! The time is a parameter.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A cause is said at most once in this time: often enough to be found where something goes wrong now, rarely enough
/// for a log that is kept.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// Causes that are remembered. They name brokers, partitions and kinds of errors, of which there are not many; more
/// is garbage, and then the ones that were said longest ago are forgotten.
const CAUSES_MAX: usize = 1000;

/// What was said, by cause.
#[derive(Debug, Default)]
pub struct Repeats {
    causes: Mutex<BTreeMap<String, Said>>,
}

#[derive(Debug, Clone, Copy)]
struct Said {
    at: Instant,
    /// Since then.
    left_out: u64,
}

impl Repeats {
    /// Takes `count` more of `cause`. If it is to be said now: how many there were since it was last said, with these.
    pub fn say(&self, cause: &str, count: u64, now: Instant) -> Option<u64> {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = causes.get_mut(cause) {
            said.left_out += count;
            if now.duration_since(said.at) < INTERVAL {
                return None;
            }
            let count = said.left_out;
            *said = Said { at: now, left_out: 0 };
            return Some(count);
        }
        if causes.len() >= CAUSES_MAX {
            let oldest = causes.iter().min_by_key(|(_, said)| said.at).map(|(cause, _)| cause.clone());
            if let Some(oldest) = oldest {
                causes.remove(&oldest);
            }
        }
        causes.insert(cause.to_owned(), Said { at: now, left_out: 0 });
        Some(count)
    }
}

/// The part of librdkafka's text that is the same each time: counts and times are in parentheses.
pub fn cause(text: &str) -> String {
    let mut depth = 0_usize;
    let kept = text.chars().filter(|char| {
        match char {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_at_once_and_then_once_in_a_while_with_its_count() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(repeats.say("a", 3, start), Some(3));
        assert_eq!(repeats.say("a", 2, after(1)), None);
        assert_eq!(repeats.say("b", 1, after(1)), Some(1));
        assert_eq!(repeats.say("a", 1, after(59)), None);
        assert_eq!(repeats.say("a", 1, after(60)), Some(4));
        assert_eq!(repeats.say("a", 1, after(61)), None);
        assert_eq!(repeats.say("a", 1, after(500)), Some(2));
    }

    #[test]
    fn garbage_does_not_grow_it() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        for number in 0..3 * CAUSES_MAX {
            let now = start + Duration::from_millis(number as u64);
            assert_eq!(repeats.say(&format!("cause {number}"), 1, now), Some(1));
        }
        assert_eq!(repeats.causes.lock().unwrap().len(), CAUSES_MAX);
        // The newest are known still.
        assert_eq!(repeats.say(&format!("cause {}", 3 * CAUSES_MAX - 1), 1, start), None);
    }

    #[test]
    fn counts_and_times_make_no_other_cause() {
        let text =
            |millis| format!("b:9092/1: Connect failed (after {millis}ms (in state CONNECT), 3 suppressed)");
        assert_eq!(cause(&text(1)), "b:9092/1: Connect failed ");
        assert_eq!(cause(&text(1)), cause(&text(20)));
        assert_ne!(cause("b:9092"), cause("b:9093"));
        assert_eq!(cause("a) b"), "a b");
    }
}
