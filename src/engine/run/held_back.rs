//! What is held back is told: on the boards, and when the group does not take a first commit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tracing::{info, warn};

use super::Engine;
use crate::engine::held_back::{Cause, Waiting};
use crate::engine::message::LaneId;
use crate::model::TopicPartition;
use crate::status::HeldBack;

/// Causes that are shown of one lane, those that have lasted longest: it may wait for as many others as read its topics.
const SHOWN_MAX: usize = 5;

const ANSWER_HINT: &str = "the last error of that route says why; without one it waits for its schema, or for a sink that does not answer";

const FIRST_COMMIT_HINT: &str = "nothing is fetched there before the group knows where sinks without a store of their \
    own begin: give this user the right to commit (READ on the group and on the topic), and see that the group's \
    coordinator can be reached";

const TOO_LONG_HINT: &str = "drop what sinks that are gone have left there: `sidestream offsets forget`";

/// Why commits do not arrive.
pub struct Uncommitted {
    pub error: String,
    /// It was said that partitions wait for it.
    is_first: bool,
}

impl Engine {
    /// Writes on the boards which partitions are held back.
    pub(super) fn tell_held_back(&mut self, now: Instant) {
        self.held_back.update(self.causes(), now);
        let waiting = self.held_back.by_lane();
        let shown: BTreeSet<LaneId> = waiting.keys().copied().collect();
        for lane in self.shown_held_back.union(&shown) {
            let of_lane = waiting.get(lane).map_or(&[][..], Vec::as_slice);
            let told = of_lane.iter().take(SHOWN_MAX).map(|waiting| self.told(*lane, waiting));
            self.lanes[lane.0].board.hold_back(told.collect());
        }
        let counts = self.held_back.counts();
        self.board.engine(self.place, |told| told.held_back = counts);
        self.shown_held_back = shown;
    }

    /// What each partition waits for that is ours and whose fetching has not begun, or begins anew.
    fn causes(&self) -> BTreeMap<(LaneId, TopicPartition), Cause> {
        let mut causes = BTreeMap::new();
        for source in &self.asking {
            for lane in self.live_lanes_of(&source.topic) {
                causes.insert((lane, source.clone()), Cause::Offsets);
            }
        }
        // What joins goes on meanwhile.
        for (source, pending) in self.pending.iter().filter(|(_, pending)| !pending.is_join) {
            let awaited = pending.waiting.first().map(|lane| Cause::Answer(*lane));
            let first = || self.awaits_first_commit(source).then_some(Cause::FirstCommit);
            let Some(cause) = awaited.or_else(first) else {
                continue;
            };
            for lane in pending.waiting.iter().chain(pending.stands.keys()) {
                let own = if pending.waiting.contains(lane) { Cause::Answer(*lane) } else { cause };
                causes.insert((*lane, source.clone()), own);
            }
        }
        for (lane, source) in self.unstored.keys() {
            if self.awaits_first_commit(source) {
                causes.insert((*lane, source.clone()), Cause::FirstCommit);
            }
        }
        causes
    }

    /// What a lane waits for, in words.
    fn told(&self, lane: LaneId, waiting: &Waiting) -> HeldBack {
        let (reason, hint) = match waiting.cause {
            Cause::Offsets => match &self.unread {
                Some((error, hint)) => (error.clone(), hint.clone()),
                None => ("the group's offsets are being read".to_owned(), None),
            },
            Cause::Answer(awaited) if awaited == lane => {
                ("the route has not said yet where its sinks stand".to_owned(), Some(ANSWER_HINT.to_owned()))
            }
            Cause::Answer(awaited) => {
                let reason =
                    format!("route `{}` has not said yet where its sinks stand", self.names[awaited.0]);
                (reason, Some(ANSWER_HINT.to_owned()))
            }
            Cause::FirstCommit => {
                let (error, hint) = match (self.group.unfit(&waiting.source), &self.uncommitted) {
                    (Some(error), _) => (format!(": {error}"), TOO_LONG_HINT),
                    (None, Some(uncommitted)) => (format!(": {}", uncommitted.error), FIRST_COMMIT_HINT),
                    (None, None) => (String::new(), FIRST_COMMIT_HINT),
                };
                let reason = "the group has not taken where a sink without a store of its own begins";
                (format!("{reason}{error}"), Some(hint.to_owned()))
            }
        };
        let Waiting { source, since, others, .. } = waiting.clone();
        HeldBack { source, others, reason, hint, since }
    }

    /// Partitions whose fetching waits for a commit.
    fn awaiting_first(&self) -> BTreeSet<TopicPartition> {
        let is_first = |cause: &Cause| *cause == Cause::FirstCommit;
        let first = self.causes().into_iter().filter(|(_, cause)| is_first(cause));
        first.map(|((_, source), _)| source).collect()
    }

    /// A commit has failed: said once, and once more when partitions begin to wait for it.
    pub(super) fn commit_has_failed(&mut self, error: String) {
        let known = self.uncommitted.take().map(|known| known.is_first);
        let waiting = self.awaiting_first();
        let is_first = known == Some(true) || !waiting.is_empty();
        match waiting.first() {
            Some(source) if known != Some(true) => warn!(
                topic = source.topic.as_str(),
                partition = source.partition.0,
                partitions = waiting.len(),
                error,
                hint = FIRST_COMMIT_HINT,
                "partitions are held back: the group does not take where their sinks begin"
            ),
            _ if known.is_none() => {
                warn!(error, "offsets could not be committed; lag is shown too high until they can");
            }
            _ => {}
        }
        self.uncommitted = Some(Uncommitted { error, is_first });
    }

    pub(super) fn commit_has_arrived(&mut self) {
        if self.uncommitted.take().is_some() {
            info!("offsets are committed again");
        }
    }
}
