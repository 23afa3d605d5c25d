//! How fast a registry is asked for schemas that it does not have. Garbage that looks like records of a registry names
//! ids at random, each of them new, and must not take the registry away from everybody else.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Such look-ups at once: a few mistakes, and what is registered a moment later, are not slowed down.
const BURST: u32 = 100;

/// One such look-up in this time when they go on, 50 in a second: registries answer thousands.
const INTERVAL: Duration = Duration::from_millis(20);

/// A token bucket that only look-ups of unknown schemas empty: every other one gives its token back, so a registry that
/// knows its schemas is asked as fast as it answers.
///
/// Waiting is in turn. A lane asks for at most 16 schemas at once, so behind n lanes that read garbage a look-up waits
/// for n · 16 tokens at most, which is a third of a second for each. It waits, and is never refused: the schema may be
/// that of a good record.
#[derive(Debug)]
pub struct Bucket {
    tokens: Mutex<Tokens>,
    /// Tokens are handed out first come, first served.
    turn: tokio::sync::Mutex<()>,
}

impl Bucket {
    pub fn new() -> Self {
        Self { tokens: Mutex::new(Tokens { full_at: Instant::now() }), turn: tokio::sync::Mutex::new(()) }
    }

    /// Takes a token, or waits for one.
    pub async fn take(&self) {
        let _turn = self.turn.lock().await;
        loop {
            let taken = self.with(|tokens| tokens.take(Instant::now()));
            match taken {
                Ok(()) => return,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// Gives one back: the schema was there, or nobody could say.
    pub fn give_back(&self) {
        self.with(Tokens::give_back);
    }

    fn with<T>(&self, work: impl FnOnce(&mut Tokens) -> T) -> T {
        work(&mut self.tokens.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How many there are, as the time when there will be all of them. The time is a parameter.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    full_at: Instant,
}

impl Tokens {
    /// # Errors
    /// How long to wait if there is none.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.max(now) + INTERVAL;
        match full_at.duration_since(now).checked_sub(INTERVAL * BURST) {
            None | Some(Duration::ZERO) => {
                self.full_at = full_at;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }

    fn give_back(&mut self) {
        self.full_at = self.full_at.checked_sub(INTERVAL).unwrap_or(self.full_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_at_a_time_and_never_more_than_a_burst_is_saved() {
        let start = Instant::now();
        let mut tokens = Tokens { full_at: start };
        for _ in 0..BURST {
            assert_eq!(tokens.take(start), Ok(()));
        }
        assert_eq!(tokens.take(start), Err(INTERVAL));
        // Waiting and failing takes nothing.
        assert_eq!(tokens.take(start + INTERVAL / 4), Err(INTERVAL * 3 / 4));
        assert_eq!(tokens.take(start + INTERVAL), Ok(()));
        assert_eq!(tokens.take(start + INTERVAL), Err(INTERVAL));
        let later = start + Duration::from_secs(3600);
        let taken = (0..2 * BURST).filter(|_| tokens.take(later).is_ok()).count();
        assert_eq!(taken, usize::try_from(BURST).unwrap());
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let start = Instant::now();
        let mut tokens = Tokens { full_at: start };
        for _ in 0..10 * BURST {
            assert_eq!(tokens.take(start), Ok(()));
            tokens.give_back();
        }
        for _ in 0..BURST {
            assert_eq!(tokens.take(start), Ok(()));
        }
        assert!(tokens.take(start).is_err());
        tokens.give_back();
        assert_eq!(tokens.take(start), Ok(()));
    }

    #[tokio::test]
    async fn whoever_finds_it_empty_waits_for_the_next() {
        let before = Instant::now();
        let bucket = Bucket::new();
        futures::future::join_all((0..BURST + 5).map(|_| bucket.take())).await;
        assert!(before.elapsed() >= INTERVAL * 5);
    }
}
