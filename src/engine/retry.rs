//! How long to wait before trying again. Pure.

use std::time::Duration;

/// In unit tests sinks fail again and again, and all that has to be shown is that nothing is lost by that.
const FIRST: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 100 });

/// Long enough not to hurt what is down, short enough to be back soon after it is.
const LAST: Duration = Duration::from_secs(10);

/// The pause after `attempt` failures in a row (from 1): doubled each time, up to a limit.
pub fn pause(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(LAST)
}

/// Failures of each sink of a lane since it last made something durable. That it can be asked for its positions says
/// nothing: a directory is read while its disk is full.
#[derive(Debug)]
pub struct Failures {
    counts: Vec<u32>,
}

impl Failures {
    pub fn new(sink_count: usize) -> Self {
        Self { counts: vec![0; sink_count] }
    }

    /// A sink has failed once more. Returns how often before, since it last made something durable.
    pub fn failed(&mut self, sink: usize) -> u32 {
        let before = self.counts[sink];
        self.counts[sink] = before.saturating_add(1);
        before
    }

    /// A sink has made something durable.
    pub fn settled(&mut self, sink: usize) {
        self.counts[sink] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        assert_eq!(pause(1), FIRST);
        assert_eq!(pause(3), FIRST * 4);
        assert_eq!(pause(30), LAST);
        assert_eq!(pause(u32::MAX), LAST);
    }

    #[test]
    fn pauses_grow_until_something_is_durable() {
        let mut failures = Failures::new(2);
        let counts: Vec<u32> = (0..4).map(|_| failures.failed(0)).collect();
        assert_eq!(counts, [0, 1, 2, 3]);
        // Another sink has nothing to do with it.
        failures.settled(1);
        assert_eq!((failures.failed(0), failures.failed(1)), (4, 0));
        failures.settled(0);
        assert_eq!((failures.failed(0), failures.failed(1)), (0, 1));
    }
}
