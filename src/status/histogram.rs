//! How long things took, in fixed buckets.

use std::time::Duration;

/// Upper bounds of the buckets, in seconds: from a batch of a few rows to a flush that waits for its broker. One set for
/// all histograms, so that they can be compared; each bucket is a series of its own, so there are few.
pub const BOUNDS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

/// Counts of durations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Histogram {
    /// By bucket; what is longer than the last bound is in `count` alone.
    buckets: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

impl Histogram {
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.seconds += seconds;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Of all that was observed.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Each bound with the count of what took no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        BOUNDS.into_iter().zip(self.buckets).scan(0, |below, (bound, count)| {
            *below += count;
            Some((bound, *below))
        })
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += count;
        }
        self.count += other.count;
        self.seconds += other.seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_took_no_longer() {
        let mut histogram = Histogram::default();
        for millis in [1, 2, 100, 90_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let counts: Vec<u64> = histogram.cumulative().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 2, 2, 3, 3, 3, 3, 3, 3]);
        let mut twice = histogram;
        twice.add(&histogram);
        assert_eq!((twice.count(), twice.cumulative().last()), (8, Some((60.0, 6))));
        assert!((twice.seconds() - 180.206).abs() < 1e-9, "{}", twice.seconds());
    }
}
