//! How long to wait before trying again. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);

/// Long enough not to hurt what is down, short enough to be back soon after it is.
const LAST: Duration = Duration::from_secs(10);

/// The pause after `attempt` failures in a row (from 1): doubled each time, up to a limit.
pub fn pause(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(LAST)
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
}
