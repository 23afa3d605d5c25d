//! What went wrong: which lanes stop, and what is only said.

use std::time::Instant;

use tokio::task;
use tracing::{error, warn};

use super::{Engine, EngineError};
use crate::engine::lane::Summary;
use crate::engine::message::{Control, LaneId, Place, Stop};
use crate::kafka::{Command, Verdict};
use crate::model::{Offset, TopicName, TopicPartition};
use crate::repeat;

impl Engine {
    pub(super) async fn on_failed(
        &mut self,
        source: Option<TopicPartition>,
        offset: Option<Offset>,
        message: String,
        verdict: Verdict,
    ) -> Result<(), EngineError> {
        let hint = match verdict {
            Verdict::Passing => {
                self.say(source.as_ref(), &message);
                return Ok(());
            }
            Verdict::Fatal => return Err(EngineError::Client(message)),
            other => hint(other).unwrap_or_default(),
        };
        let Some(source) = source else {
            return self.on_failed_somewhere(&message, verdict, hint).await;
        };
        let at = offset.map(|offset| format!(" offset {offset}")).unwrap_or_default();
        let place = Some(Place::new(&source, offset));
        let stop = Stop { message: format!("{source}{at}: {message}"), hint: Some(hint.to_owned()), place };
        // What catches up meets it by itself.
        for lane in self.front_lanes_of(&source) {
            let control = match verdict {
                Verdict::DataLost => Control::Lost { source: source.clone(), stop: stop.clone() },
                _ => Control::Fail(stop.clone()),
            };
            self.tell(lane, control).await;
        }
        Ok(())
    }

    /// An error without a partition. A refused topic is named in librdkafka's text only
    /// ("Subscribed topic not available: <topic>: <error>"); whatever else is not about records passes.
    pub(super) async fn on_failed_somewhere(
        &mut self,
        message: &str,
        verdict: Verdict,
        hint: &str,
    ) -> Result<(), EngineError> {
        let named = |topic: &&TopicName| message.contains(&format!(": {topic}: "));
        let topic = self.by_topic.keys().find(named).cloned();
        let Some(topic) = topic.filter(|_| verdict == Verdict::Refused) else {
            self.say(None, message);
            return Ok(());
        };
        let stop = Stop { message: message.to_owned(), hint: Some(hint.to_owned()), place: None };
        for lane in self.live_lanes_of(&topic) {
            self.tell(lane, Control::Fail(stop.clone())).await;
        }
        Ok(())
    }

    /// Says an error that passes, at once and then once in a while.
    pub(super) fn say(&self, source: Option<&TopicPartition>, message: &str) {
        let place = source.map(|source| format!("{source}: ")).unwrap_or_default();
        let cause = repeat::cause(&format!("{place}{message}"));
        if let Some(times) = self.repeats.say(&cause, 1, Instant::now()) {
            let topic = source.map(|source| source.topic.as_str());
            let partition = source.map(|source| source.partition.0);
            warn!(topic, partition, times, "{place}{message}");
        }
    }

    pub(super) async fn on_stopped(&mut self, lane: LaneId, stop: &Stop) -> Result<(), EngineError> {
        self.stopped.insert(lane);
        self.end_catch_up(lane);
        self.group.stopped(lane, self.stores[lane.0]);
        self.lanes[lane.0].board.stopped(&stop.message, stop.hint.as_deref());
        let source = stop.place.as_ref().map(|place| &place.source);
        error!(
            route = self.names[lane.0],
            topic = source.map(|source| source.topic.as_str()),
            partition = source.map(|source| source.partition.0),
            offset = stop.place.as_ref().and_then(|place| place.offset).map(Offset::get),
            error = stop.message,
            hint = stop.hint,
            "route stopped"
        );
        let pending: Vec<TopicPartition> = self.pending.keys().cloned().collect();
        for source in pending {
            self.answered(lane, &source, None);
        }
        for releasing in &mut self.releasing {
            releasing.waiting.remove(&lane);
        }
        // Topics that only stopped lanes read are not fetched; they stay ours in the group.
        let idle: Vec<TopicPartition> = self
            .group
            .owned()
            .filter(|source| self.live_lanes_of(&source.topic).is_empty())
            .cloned()
            .collect();
        if !idle.is_empty() {
            self.source.send(Command::Unassign(idle))?;
        }
        self.release(Instant::now())?;
        self.assign_ready().await
    }

    /// A lane that ends by itself has a defect; its route is stopped like any other.
    pub(super) async fn on_ended(
        &mut self,
        ended: Result<(task::Id, (LaneId, Summary)), task::JoinError>,
    ) -> Result<(), EngineError> {
        match ended {
            Ok((_, (lane, summary))) => {
                self.summaries.insert(lane, summary);
            }
            Err(failure) => {
                let Some(lane) = self.by_task.get(&failure.id()).copied() else {
                    return Ok(());
                };
                // The text of a panic may hold a piece of a record; where it was is in the log.
                let how = if failure.is_panic() { "its task panicked" } else { "its task was ended" };
                let stop = Stop {
                    message: format!("a defect of sidestream: {how}"),
                    hint: Some("please report it; what is durable is safe".to_owned()),
                    place: None,
                };
                let route = self.names[lane.0].clone();
                let summary = Summary { route, stop: Some(stop.clone()), ..Summary::default() };
                self.summaries.insert(lane, summary);
                self.drained.insert(lane);
                self.on_stopped(lane, &stop).await?;
            }
        }
        Ok(())
    }
}

/// What a person may do about what the source reports.
pub fn hint(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::DataLost => Some(
            "the brokers no longer have these records: retention passed them, or the partition was truncated",
        ),
        Verdict::Unreadable => Some(
            "there are bytes that cannot be read: look at the broker's log of the partition, or at the file that is named",
        ),
        Verdict::Refused => Some("give this user the right to read the topic"),
        Verdict::Passing | Verdict::Fatal => None,
    }
}
