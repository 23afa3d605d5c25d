//! The end: lanes are drained, what is durable is committed, the group is left. Every step has a deadline.

use tracing::warn;

use super::{CLOSE_MAX, DRAIN_MAX, Engine, EngineError};
use crate::engine::lane::Summary;
use crate::engine::message::{Control, LaneId, Report};
use crate::failpoint;
use crate::kafka::{Command, Event, SourceError};

impl Engine {
    /// What the lanes did, after they were drained.
    pub(super) async fn summaries(mut self) -> Vec<Summary> {
        let mut tasks = std::mem::take(&mut self.tasks);
        let collect = async {
            while let Some(ended) = tasks.join_next_with_id().await {
                // A lane that fails this late has nothing that is not durable or read again.
                if self.on_ended(ended).await.is_err() {
                    break;
                }
            }
        };
        if tokio::time::timeout(CLOSE_MAX, collect).await.is_err() {
            warn!("a lane did not end in time");
        }
        self.summaries.into_values().collect()
    }

    /// Drains the lanes, commits what is durable, leaves the group. Every step has a deadline: what is not
    /// durable by then is read again by the next start.
    pub(super) async fn close(&mut self) {
        for lane in (0..self.lanes.len()).map(LaneId) {
            self.tell(lane, Control::Drain).await;
        }
        let drained = tokio::time::timeout(DRAIN_MAX, self.wait_drained()).await;
        if drained.is_err() {
            warn!("not everything could be made durable in time; it is read again by the next start");
        }
        failpoint::hit("engine.drained");
        let closed = tokio::time::timeout(CLOSE_MAX, self.leave()).await;
        if !matches!(closed, Ok(Ok(()))) {
            warn!(
                "the group could not be left in time; its other members take over after the session timeout"
            );
        }
    }

    pub(super) async fn wait_drained(&mut self) {
        while self.drained.len() < self.lanes.len() {
            match self.reports.recv().await {
                Some((lane, Report::Drained)) => {
                    self.drained.insert(lane);
                }
                Some((lane, Report::Progress(durable))) => self.on_progress(lane, durable),
                Some(_) => {}
                None => return,
            }
        }
    }

    pub(super) async fn leave(&mut self) -> Result<(), EngineError> {
        while self.committing > 0 {
            self.wait_committed().await?;
        }
        self.commit_now()?;
        while self.committing > 0 {
            self.wait_committed().await?;
        }
        failpoint::hit("engine.leaving");
        self.source.send(Command::Close)?;
        while let Some(event) = self.source.next().await {
            if matches!(event, Event::Closed) {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn wait_committed(&mut self) -> Result<(), EngineError> {
        match self.source.next().await {
            Some(Event::Committed(result)) => {
                self.on_committed(result);
                Ok(())
            }
            Some(Event::Closed) | None => Err(SourceError::Ended.into()),
            Some(_) => Ok(()),
        }
    }
}
