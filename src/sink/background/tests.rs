//! A sink whose calls wait for the test.

use std::sync::atomic::{AtomicBool, Ordering};

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use tokio::sync::Semaphore;

use super::*;
use crate::model::{Classify, Fault, Move, Offset, Partition, Reason, TopicId};

/// Longer than anything takes here.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the test sees of the sink, and lets it do.
#[derive(Debug)]
struct Gate {
    /// One for each write that may go through.
    writes: Semaphore,
    fails: AtomicBool,
    panics: AtomicBool,
}

#[derive(Debug)]
struct Gated {
    gate: Arc<Gate>,
    stored: Positions,
    moves: Vec<Move>,
}

#[async_trait]
impl Sink for Gated {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        Ok(self.stored.clone())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        self.gate.writes.acquire().await.unwrap().forget();
        assert!(!self.gate.panics.load(Ordering::Relaxed), "as the test wants");
        if self.gate.fails.load(Ordering::Relaxed) {
            return Err(SinkError::refused("write", "change the row", "no"));
        }
        self.moves.extend(batch.moves.iter().cloned());
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        // It is never due by itself.
        (!self.moves.is_empty()).then(|| Instant::now() + DEADLINE)
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        let moves = std::mem::take(&mut self.moves);
        self.stored.apply(&moves).map_err(SinkError::Conflict)?;
        Ok(self.stored.clone())
    }

    async fn abandon(&mut self) {
        self.moves.clear();
    }

    fn settled(&self) -> Settled {
        Settled::default()
    }

    fn store(&self) -> Store {
        Store::Own
    }

    fn restore(&mut self, _: PositionKey, _: &TopicName, _: Position) {}
}

fn key() -> PositionKey {
    PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(1)), partition: Partition(0) }
}

fn batch(start: Option<i64>, end: i64) -> Batch {
    let step = Move {
        key: key(),
        topic: TopicName::new("t"),
        start: start.and_then(Offset::new),
        end: Position { next: Offset::new(end).unwrap(), epoch: None },
        reason: Reason::Data,
        records: 0,
    };
    Batch::of_rows(vec![step], RecordBatch::new_empty(Arc::new(Schema::empty())))
}

fn next(positions: &Positions) -> Option<i64> {
    Some(positions.get(&key())?.next.get())
}

fn gated() -> (Background, Arc<Gate>) {
    let gate = Arc::new(Gate {
        writes: Semaphore::new(0),
        fails: AtomicBool::new(false),
        panics: AtomicBool::new(false),
    });
    let inner = Gated { gate: gate.clone(), stored: Positions::default(), moves: Vec::new() };
    (Background::new(Box::new(inner)), gate)
}

async fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "not in time: {what}");
}

#[tokio::test]
async fn nobody_waits_for_a_sink_at_work() {
    let (mut sink, gate) = gated();
    assert_eq!(next(&sink.positions().await.unwrap()), None);
    sink.write(&batch(None, 3)).await.unwrap();
    wait("it works on the first", || !sink.is_full()).await;
    sink.write(&batch(Some(3), 5)).await.unwrap();
    assert!(sink.is_full() && sink.is_busy());
    // It stands where it did, and is looked at again later.
    assert_eq!(next(&sink.flush().await.unwrap()), None);
    assert!(sink.flush_due().unwrap() > Instant::now());
    gate.writes.add_permits(1);
    wait("the second is at work", || !sink.is_full()).await;
    // Behind the order to flush: it is not in what becomes durable by that.
    sink.write(&batch(Some(5), 9)).await.unwrap();
    gate.writes.add_permits(1);
    wait("it has flushed", || sink.flush_due().is_some_and(|due| due <= Instant::now())).await;
    assert_eq!(next(&sink.flush().await.unwrap()), Some(5));
    gate.writes.add_permits(1);
    assert_eq!(next(&sink.flush().await.unwrap()), Some(9));
    wait("it has nothing to do", || !sink.is_busy()).await;
    assert_eq!(sink.flush_due(), None);
}

#[tokio::test]
async fn a_failed_write_is_told_by_the_next_flush() {
    let (mut sink, gate) = gated();
    gate.fails.store(true, Ordering::Relaxed);
    gate.writes.add_permits(1);
    sink.write(&batch(None, 3)).await.unwrap();
    wait("it has failed", || sink.flush_due().is_some_and(|due| due <= Instant::now())).await;
    // What comes now is nobody's: the error is not of it.
    sink.write(&batch(Some(3), 5)).await.unwrap();
    assert_eq!(sink.flush().await.unwrap_err().fault(), Fault::Refused);
    sink.abandon().await;
    gate.fails.store(false, Ordering::Relaxed);
    gate.writes.add_permits(1);
    assert_eq!(next(&sink.positions().await.unwrap()), None);
    sink.write(&batch(None, 3)).await.unwrap();
    assert_eq!(next(&sink.flush().await.unwrap()), Some(3));
}

#[tokio::test]
async fn what_was_abandoned_becomes_durable_never() {
    let (mut sink, gate) = gated();
    sink.write(&batch(None, 3)).await.unwrap();
    wait("it works on it", || !sink.is_full()).await;
    sink.write(&batch(Some(3), 5)).await.unwrap();
    assert_eq!(next(&sink.flush().await.unwrap()), None);
    sink.abandon().await;
    assert!(sink.is_busy() && !sink.is_full());
    // It is still in the middle of the first.
    assert_eq!(sink.positions().await.unwrap_err().fault(), Fault::Transient);
    gate.writes.add_permits(1);
    wait("it has answered", || !sink.is_busy()).await;
    assert_eq!(next(&sink.positions().await.unwrap()), None);
    sink.write(&batch(None, 4)).await.unwrap();
    gate.writes.add_permits(1);
    assert_eq!(next(&sink.flush().await.unwrap()), Some(4));
}

/// Whoever waits until it has nothing to do would wait for ever, and never hear why.
#[tokio::test]
async fn a_sink_that_panics_is_told_of_and_not_waited_for() {
    let (mut sink, gate) = gated();
    gate.panics.store(true, Ordering::Relaxed);
    sink.write(&batch(None, 3)).await.unwrap();
    wait("it is at work", || !sink.is_full()).await;
    sink.write(&batch(Some(3), 5)).await.unwrap();
    assert!(sink.is_full() && sink.is_busy());
    gate.writes.add_permits(1);
    wait("its task is gone", || sink.task.is_finished()).await;
    assert!(!sink.is_full() && !sink.is_busy());
    let told = [sink.flush().await, sink.positions().await];
    for error in told.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.fault(), Fault::Stop);
    }
}
