//! Work of one batch on cores that nobody else is using.
//!
//! A lane that is alone may use all cores; when every lane is busy each keeps to its own. What is lent is only
//! counted, threads are the operating system's: they start for a batch of tens of thousands of rows and end with it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

/// Threads at work on batches, in the whole process.
static BUSY: AtomicUsize = AtomicUsize::new(0);

fn all() -> usize {
    static ALL: OnceLock<usize> = OnceLock::new();
    *ALL.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Rows for each core: fewer are done in less time than it takes to start a thread and put the parts together.
pub const ROWS_MIN: usize = 4096;

/// The calling thread's own core, and some that were free; given back when this is dropped.
#[derive(Debug)]
pub struct Lent {
    count: usize,
}

/// Lends up to `wanted` cores, and at least the one that the caller runs on.
pub fn lend(wanted: usize) -> Lent {
    let take = |busy: usize| all().saturating_sub(busy).clamp(1, wanted.max(1));
    let busy = BUSY.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| Some(busy + take(busy)));
    // The update never refuses.
    Lent { count: take(busy.unwrap_or_default()) }
}

impl Drop for Lent {
    fn drop(&mut self) {
        BUSY.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl Lent {
    pub fn count(&self) -> usize {
        self.count
    }

    /// Does `work` on each item; results come in the order of the items. A panic in one of them is the caller's.
    pub fn map<T: Send, R: Send>(&self, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        let thread_count = self.count.min(items.len());
        if thread_count <= 1 {
            return items.into_iter().map(work).collect();
        }
        let item_count = items.len();
        let queue = Mutex::new(items.into_iter().enumerate());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let drain = || {
            let mut done = Vec::new();
            while let Some((index, item)) = next() {
                done.push((index, work(item)));
            }
            done
        };
        let mut done = Vec::with_capacity(item_count);
        thread::scope(|scope| {
            // A thread that cannot start is one fewer: the caller does the work itself.
            let start = |_| thread::Builder::new().spawn_scoped(scope, drain).ok();
            let others: Vec<_> = (1..thread_count).filter_map(start).collect();
            done.extend(drain());
            for other in others {
                match other.join() {
                    Ok(part) => done.extend(part),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        done.sort_unstable_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        for count in 1..5 {
            let lent = Lent { count };
            // Not lent by `lend`: nothing is given back.
            BUSY.fetch_add(count, Ordering::Relaxed);
            let squares = lent.map((0..100_u64).collect(), |number| number * number);
            assert_eq!(squares, (0..100).map(|number| number * number).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn everybody_has_a_core_and_nobody_more_than_there_are() {
        let lent: Vec<Lent> = (0..4).map(|_| lend(1000)).collect();
        assert!(lent.iter().all(|lent| (1..=all()).contains(&lent.count())));
        assert_eq!(lend(0).count(), 1);
    }

    #[test]
    fn a_panic_of_one_is_told() {
        let lent = Lent { count: 2 };
        BUSY.fetch_add(2, Ordering::Relaxed);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lent.map(vec![1, 2, 3], |number| assert!(number != 2, "two"))
        }));
        assert!(caught.is_err());
    }
}
