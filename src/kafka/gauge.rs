//! How much a lane holds, and when fetching for it pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes held for one lane between the broker and its sinks.
///
/// Fetching pauses above the limit and resumes below half of it: pausing drops what librdkafka has
/// prefetched, so flapping would fetch everything twice.
#[derive(Debug)]
pub struct Gauge {
    used: AtomicUsize,
    limit: usize,
}

impl Gauge {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    pub fn is_full(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.limit
    }

    /// Low enough to go on after it was full.
    pub fn has_room_again(&self) -> bool {
        self.used.load(Ordering::Relaxed) <= self.limit / 2
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Bytes charged to a gauge until it is dropped.
#[derive(Debug)]
pub struct Charge {
    gauge: Arc<Gauge>,
    bytes: usize,
}

impl Charge {
    pub fn new(gauge: Arc<Gauge>, bytes: usize) -> Self {
        gauge.used.fetch_add(bytes, Ordering::Relaxed);
        Self { gauge, bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.gauge.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_at_the_limit_room_again_at_half() {
        let gauge = Gauge::new(100);
        let first = Charge::new(gauge.clone(), 60);
        let second = Charge::new(gauge.clone(), 40);
        assert!(gauge.is_full());
        drop(second);
        assert!(!gauge.is_full() && !gauge.has_room_again());
        drop(first);
        assert!(gauge.has_room_again());
        assert_eq!(gauge.used(), 0);
    }
}
