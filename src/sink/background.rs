//! A sink that works in a task of its own, so that nobody waits for it (`required: false`).
//!
//! What it is given waits in a short queue; an order to flush waits behind the batches that came before it. Errors are
//! told when the sink is flushed next, which it asks for at once then. Whoever asks waits for an answer a moment only;
//! one that comes later is there when it is asked again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::model::{Batch, Position, PositionKey, Positions, TopicName};

use super::{Settled, Sink, SinkError, Store};

/// Batches that wait while one is at work. What they hold is in no budget, so that there is just enough for the sink to
/// go on without a pause.
const BATCHES_MAX: usize = 1;

/// How long an answer is waited for. A sink that works answers in less; for one that hangs this is what it costs others,
/// once for each question.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// When to look again at a sink that is at work.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A sink, reached through its desk.
pub struct Background {
    desk: Arc<Desk>,
    task: AbortOnDropHandle<()>,
    store: Store,
    takes_deletes: bool,
    takes_places: bool,
}

/// Where orders and answers lie.
#[derive(Default)]
struct Desk {
    papers: Mutex<Papers>,
    ordered: Notify,
    answered: Notify,
}

/// What is written to the sink, in this order.
enum Job {
    Write(Batch),
    Flush,
}

#[derive(Default)]
struct Papers {
    /// Counts what was abandoned: an answer from before is of no use.
    round: u64,
    /// The sink has to let go of what it holds before anything else.
    is_abandoned: bool,
    restores: Vec<(PositionKey, TopicName, Position)>,
    /// Its positions were asked for, and the answer is not taken yet.
    is_asked: bool,
    /// That question has not reached the sink.
    is_question_new: bool,
    jobs: VecDeque<Job>,
    /// The sink is at work.
    is_working: bool,
    /// A flush was ordered, and its answer is not taken yet.
    is_flushing: bool,
    positions: Option<Result<Positions, SinkError>>,
    flushed: Option<Result<Positions, SinkError>>,
    /// A write has failed.
    failed: Option<SinkError>,
    /// As it last said: its stored positions, when it has to be flushed, what it has settled, its log.
    stored: Positions,
    due: Option<Instant>,
    settled: Settled,
    log: Option<(String, u64)>,
    /// When the last answer came.
    answered_at: Option<Instant>,
}

/// What the sink does next.
enum Order {
    Abandon,
    Restore(Vec<(PositionKey, TopicName, Position)>),
    Positions,
    Job(Job),
}

enum Answer {
    Done,
    Positions(Result<Positions, SinkError>),
    Written(Result<(), SinkError>),
    Flushed(Result<Positions, SinkError>),
}

impl Papers {
    fn next(&mut self) -> Option<Order> {
        let order = if std::mem::take(&mut self.is_abandoned) {
            Order::Abandon
        } else if !self.restores.is_empty() {
            Order::Restore(std::mem::take(&mut self.restores))
        } else if std::mem::take(&mut self.is_question_new) {
            Order::Positions
        } else {
            Order::Job(self.jobs.pop_front()?)
        };
        self.is_working = true;
        Some(order)
    }

    fn take_in(&mut self, answer: Answer) {
        self.answered_at = Some(Instant::now());
        match answer {
            Answer::Done | Answer::Written(Ok(())) => {}
            Answer::Positions(answer) => {
                if let Ok(positions) = &answer {
                    self.stored.clone_from(positions);
                }
                self.positions = Some(answer);
            }
            Answer::Written(Err(error)) => {
                self.jobs.clear();
                self.is_flushing = false;
                self.failed = Some(error);
            }
            Answer::Flushed(answer) => {
                match &answer {
                    Ok(positions) => self.stored.clone_from(positions),
                    // What it held is gone.
                    Err(_) => self.jobs.clear(),
                }
                self.flushed = Some(answer);
            }
        }
    }

    /// What was ordered and is not done, nor told yet.
    fn is_busy(&self) -> bool {
        self.is_working
            || self.is_abandoned
            || !self.restores.is_empty()
            || self.is_question_new
            || !self.jobs.is_empty()
            || self.failed.is_some()
            || self.flushed.is_some()
    }

    fn is_full(&self) -> bool {
        self.jobs.iter().filter(|job| matches!(job, Job::Write(_))).count() >= BATCHES_MAX
    }

    fn take_positions(&mut self) -> Option<Result<Positions, SinkError>> {
        let answer = self.positions.take()?;
        self.is_asked = false;
        Some(answer)
    }

    fn take_flushed(&mut self) -> Option<Result<Positions, SinkError>> {
        let answer = match self.failed.take() {
            Some(error) => Err(error),
            None => self.flushed.take()?,
        };
        self.is_flushing = false;
        Some(answer)
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Papers> {
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, if it comes soon.
    async fn answer(
        &self,
        take: fn(&mut Papers) -> Option<Result<Positions, SinkError>>,
    ) -> Option<Result<Positions, SinkError>> {
        let wait = async {
            loop {
                let answer = take(&mut self.lock());
                if let Some(answer) = answer {
                    return answer;
                }
                self.answered.notified().await;
            }
        };
        tokio::time::timeout(ANSWER_MAX, wait).await.ok()
    }
}

/// The sink's own task: one order after the other.
async fn work(mut sink: Box<dyn Sink>, desk: Arc<Desk>) {
    loop {
        let next = {
            let mut papers = desk.lock();
            papers.next().map(|order| (papers.round, order))
        };
        let Some((round, order)) = next else {
            desk.ordered.notified().await;
            continue;
        };
        let answer = match order {
            Order::Abandon => {
                sink.abandon().await;
                Answer::Done
            }
            Order::Restore(restores) => {
                for (key, topic, position) in restores {
                    sink.restore(key, &topic, position);
                }
                Answer::Done
            }
            Order::Positions => Answer::Positions(sink.positions().await),
            Order::Job(Job::Write(batch)) => Answer::Written(sink.write(&batch).await),
            Order::Job(Job::Flush) => Answer::Flushed(sink.flush().await),
        };
        {
            let mut papers = desk.lock();
            papers.is_working = false;
            (papers.due, papers.settled, papers.log) = (sink.flush_due(), sink.settled(), sink.log());
            if papers.round == round {
                papers.take_in(answer);
            } else {
                // It is abandoned next.
                papers.due = None;
            }
        }
        desk.answered.notify_one();
    }
}

/// It does not answer.
#[derive(Debug, thiserror::Error)]
#[error("it is still at work on what it was given before")]
struct Busy;

/// Its task is gone.
#[derive(Debug, thiserror::Error)]
#[error("its task panicked")]
struct Ended;

impl Background {
    /// Starts the task. Called within a runtime.
    pub fn new(sink: Box<dyn Sink>) -> Self {
        let (store, takes_deletes, takes_places) = (sink.store(), sink.takes_deletes(), sink.takes_places());
        let desk: Arc<Desk> = Arc::default();
        {
            let mut papers = desk.lock();
            (papers.settled, papers.log) = (sink.settled(), sink.log());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "who drops the handle ends it, and its end is asked for"
        )]
        let task = AbortOnDropHandle::new(tokio::spawn(work(sink, desk.clone())));
        Self { desk, task, store, takes_deletes, takes_places }
    }

    fn check(&self) -> Result<(), SinkError> {
        if self.task.is_finished() {
            let hint = "a defect of sidestream: please report it; a restart goes on where it stands";
            return Err(SinkError::stop("work in the background", hint, Ended));
        }
        Ok(())
    }

    fn busy(action: &str) -> SinkError {
        SinkError::Transient { action: action.to_owned(), hint: None, source: Busy.into() }
    }
}

#[async_trait]
impl Sink for Background {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        self.check()?;
        let is_new = {
            let mut papers = self.desk.lock();
            let is_new = !std::mem::replace(&mut papers.is_asked, true);
            papers.is_question_new |= is_new;
            is_new
        };
        let answer = if is_new {
            self.desk.ordered.notify_one();
            self.desk.answer(Papers::take_positions).await
        } else {
            // It was waited for when it was asked.
            self.desk.lock().take_positions()
        };
        answer.unwrap_or_else(|| Err(Self::busy("say where it stands")))
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        self.check()?;
        {
            let mut papers = self.desk.lock();
            if papers.failed.is_some() || papers.flushed.as_ref().is_some_and(Result::is_err) {
                // It would be given to a sink that has failed: what it was is told by `flush`, to whom it belongs.
                return Ok(());
            }
            if papers.jobs.len() > 2 * BATCHES_MAX {
                return Err(Self::busy("take another batch"));
            }
            papers.jobs.push_back(Job::Write(batch.clone()));
        }
        self.desk.ordered.notify_one();
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        let papers = self.desk.lock();
        if papers.failed.is_some() || papers.flushed.is_some() {
            return papers.answered_at.or_else(|| Some(Instant::now()));
        }
        let is_at_work = papers.is_working || !papers.jobs.is_empty();
        let later = || Instant::now() + LOOK_INTERVAL;
        match papers.due {
            // What is due now was ordered.
            Some(_) if papers.is_flushing => Some(later()),
            Some(due) => Some(due),
            None => (is_at_work || papers.is_flushing).then(later),
        }
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        self.check()?;
        let is_new = {
            let mut papers = self.desk.lock();
            let answer = papers.take_flushed();
            if let Some(answer) = answer {
                return answer;
            }
            let is_new = !std::mem::replace(&mut papers.is_flushing, true);
            if is_new {
                papers.jobs.push_back(Job::Flush);
            }
            is_new
        };
        if is_new {
            self.desk.ordered.notify_one();
        }
        let answer = self.desk.answer(Papers::take_flushed).await;
        // One that comes later is told later; until then it stands where it did.
        answer.unwrap_or_else(|| Ok(self.desk.lock().stored.clone()))
    }

    async fn abandon(&mut self) {
        {
            let mut papers = self.desk.lock();
            papers.round += 1;
            papers.is_abandoned = true;
            papers.jobs.clear();
            (papers.is_asked, papers.is_question_new, papers.is_flushing) = (false, false, false);
            (papers.positions, papers.flushed, papers.failed, papers.due) = (None, None, None, None);
        }
        self.desk.ordered.notify_one();
    }

    fn settled(&self) -> Settled {
        self.desk.lock().settled
    }

    fn store(&self) -> Store {
        self.store
    }

    fn restore(&mut self, key: PositionKey, topic: &TopicName, position: Position) {
        {
            let mut papers = self.desk.lock();
            papers.restores.push((key, topic.clone(), position));
            papers.stored.restore(key, topic.clone(), position);
        }
        self.desk.ordered.notify_one();
    }

    fn takes_deletes(&self) -> bool {
        self.takes_deletes
    }

    fn takes_places(&self) -> bool {
        self.takes_places
    }

    fn log(&self) -> Option<(String, u64)> {
        self.desk.lock().log.clone()
    }

    fn is_busy(&self) -> bool {
        // One that is gone is waited for no more: the next call tells so.
        !self.task.is_finished() && self.desk.lock().is_busy()
    }

    fn is_full(&self) -> bool {
        !self.task.is_finished() && self.desk.lock().is_full()
    }
}

#[cfg(test)]
mod tests;
