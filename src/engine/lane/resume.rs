//! Where a lane's sinks go on in partitions it is given (PROTOCOL §2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use tracing::{debug, info, warn};

use crate::config::plan::OnDataLoss;
use crate::engine::message::{Committed, Place, Report};
use crate::engine::{chain, retry};
use crate::failpoint;
use crate::kafka::{ClusterError, TopicInfo};
use crate::model::metadata::IdentityHash;
use crate::model::{
    Batch, Classify, Move, Offset, Partition, Position, PositionKey, Reason, SinkSet, Start, StartHash,
    TopicName, TopicPartition,
};

use crate::sink::Store;

use super::begin::{Begin, Unseen};
use super::{Lane, Seen, State};

/// Partitions that were asked for, with what the group has for them.
pub(super) type Asked<'a> = BTreeMap<&'a TopicPartition, &'a Committed>;

/// What the brokers say of topics.
pub(super) type Infos = BTreeMap<TopicName, TopicInfo>;

/// Where the slowest sink stood in each partition before a first sight.
type Living = BTreeMap<PositionKey, Offset>;

/// Positions of a first sight that are shown; a pattern may match thousands of topics.
const SHOWN_MAX: usize = 8;

/// How offsets are moved for sinks that have positions of their own.
pub const MOVED_HINT: &str = "to move those, end all instances and run `sidestream offsets reset`";

/// Why resuming did not go through.
pub(super) enum Setback {
    /// Ask again later.
    Brokers(ClusterError),
    /// A sink failed; it was dealt with.
    Sink,
    /// Dead letters are not durable yet, and what the other sinks have taken must not become so before them.
    Letters,
    Stop {
        message: String,
        hint: &'static str,
        /// Where, if it is one place.
        place: Option<Place>,
    },
}

impl From<ClusterError> for Setback {
    fn from(error: ClusterError) -> Self {
        Self::Brokers(error)
    }
}

impl Lane {
    /// Tells the engine where the partitions in `to_resume` go on. If something outside is away they
    /// stay there, held back, and it is tried again: unreadable is never "none".
    pub(super) async fn resume(&mut self) {
        if !matches!(self.state, State::Running) || self.to_resume.is_empty() {
            return;
        }
        let asked = std::mem::take(&mut self.to_resume);
        let (known, unknown): (BTreeMap<_, _>, BTreeMap<_, _>) =
            asked.into_iter().partition(|(source, _)| self.keys.contains_key(source));
        if !known.is_empty() {
            // They wait for nothing, and what is read again of them may be what the others wait for.
            let ready = self.stands(known.keys());
            self.report(Report::Ready(ready)).await;
        }
        if unknown.is_empty() {
            self.resume_retry = None;
            return;
        }
        self.to_resume.clone_from(&unknown);
        match self.take_up(&unknown.iter().collect()).await {
            Ok(()) => {
                self.resume_retry = None;
                self.to_resume.clear();
                // The engine commits where sinks without a store begin before anything is fetched.
                self.report_progress().await;
                let ready = self.stands(unknown.keys());
                self.report(Report::Ready(ready)).await;
                failpoint::hit("lane.ready.reported");
            }
            Err(Setback::Letters) => {
                self.resume_retry = Some((Instant::now() + retry::pause(1), 1));
            }
            // Unless it goes on beside it, the lane comes back here when the sink does.
            Err(Setback::Sink) => {
                let next = (Instant::now() + retry::pause(1), 1);
                self.resume_retry = matches!(self.state, State::Running).then_some(next);
            }
            Err(Setback::Stop { message, hint, place }) => {
                self.stop(message, Some(hint.to_owned()), place).await;
            }
            Err(Setback::Brokers(error)) => {
                let attempt = self.resume_retry.map_or(1, |(_, attempt)| attempt + 1);
                if attempt == 1
                    && let Some(times) = self.repeats.say("brokers", 1, Instant::now())
                {
                    warn!(
                        route = self.parts.route,
                        error = chain(&error),
                        hint = error.hint().as_deref(),
                        times,
                        "partitions wait for the brokers"
                    );
                }
                self.resume_retry = Some((Instant::now() + retry::pause(attempt), attempt));
                self.account.trouble(&chain(&error), error.hint().as_deref());
            }
        }
    }

    async fn take_up(&mut self, asked: &Asked<'_>) -> Result<(), Setback> {
        if self.has_letters {
            self.flush_all().await;
            if self.has_letters {
                return Err(Setback::Letters);
            }
        }
        self.leave_waiting().await;
        for index in self.present().iter() {
            let read = self.read_positions(index).await;
            self.forgive(index, read)?;
        }
        self.check_logs(asked)?;
        let infos = self.describe(asked).await?;
        let moved = self.moved_by_others(asked, &infos);
        let recreated = self.recreated(&infos, self.present())?;
        self.restore(asked, &infos, &recreated);
        self.first_sight(asked, &infos, &recreated, self.present()).await?;
        self.restate_start(asked, &infos, self.present()).await?;
        self.enter(asked, &infos).await?;
        if !moved.is_empty() {
            warn!(
                route = self.parts.route,
                moved = shown(&moved),
                hint = MOVED_HINT,
                "something else has moved the group's offsets, and sinks with positions of their own stay where they are"
            );
        }
        Ok(())
    }

    /// The sinks that can be asked where they stand, and told where to.
    fn present(&self) -> SinkSet {
        (0..self.parts.sinks.len()).collect::<SinkSet>().minus(self.ledger.away())
    }

    /// A sink that is not required, and that the route goes on without now, is no setback.
    pub(super) fn forgive(&self, index: usize, told: Result<(), Setback>) -> Result<(), Setback> {
        match told {
            Err(Setback::Sink) if self.optional.has_failed(index) => Ok(()),
            told => told,
        }
    }

    /// Partitions whose offset in the group was put elsewhere by a tool than where a sink with a store of its own stands.
    fn moved_by_others(&self, asked: &Asked<'_>, infos: &Infos) -> Vec<String> {
        let own = || {
            let sinks = self.parts.sinks.iter().zip(&self.stored);
            sinks.filter(|(sink, _)| sink.sink.store() == Store::Own).map(|(_, stored)| stored)
        };
        let told = asked.iter().filter_map(|(source, committed)| {
            let key = key(infos.get(&source.topic)?, source.partition);
            let next = own().filter_map(|stored| Some(stored.get(&key)?.next)).min()?;
            let offset = committed.offset.filter(|_| committed.is_moved_from(next))?;
            Some(format!("{source} from {next} to {offset}"))
        });
        told.collect()
    }

    async fn read_positions(&mut self, index: usize) -> Result<(), Setback> {
        match self.parts.sinks[index].sink.positions().await {
            Ok(positions) => {
                self.stored[index] = positions;
                Ok(())
            }
            Err(error) => {
                self.sink_failed(index, error).await;
                Err(Setback::Sink)
            }
        }
    }

    /// A partition that comes from another instance with another commit log was written somewhere else.
    fn check_logs(&self, asked: &Asked<'_>) -> Result<(), Setback> {
        for (source, committed) in asked {
            for sink in &self.parts.sinks {
                let theirs = committed.metadata.log(&IdentityHash::of(&sink.identity));
                let (Some((theirs, _)), Some((ours, _))) = (theirs, sink.sink.log()) else {
                    continue;
                };
                if theirs != ours {
                    return Err(Setback::Stop {
                        message: format!(
                            "sink `{}`: the group says that {source} was written under commit log {theirs}, and this directory has {ours}",
                            sink.name
                        ),
                        hint: "instances of one group share the sink's `path`; if the directory was deleted to \
                               start again, use another `group.id`",
                        place: Some(Place::new(source, None)),
                    });
                }
            }
        }
        Ok(())
    }

    /// All topics of the route that exist, and those that were asked for.
    pub(super) async fn describe(&mut self, asked: &Asked<'_>) -> Result<Infos, Setback> {
        let mut names: BTreeSet<TopicName> = self.topics.keys().cloned().collect();
        names.extend(asked.keys().map(|source| source.topic.clone()));
        let mut infos = Infos::new();
        for (topic, described) in self.parts.cluster.describe(&names).await? {
            match described {
                Ok(info) => {
                    let fresh = Seen { is_new: false, partition_count: None };
                    let seen = self.topics.entry(topic.clone()).or_insert(fresh);
                    seen.partition_count.get_or_insert(info.partition_count);
                    infos.insert(topic, info);
                }
                Err(error) if asked.keys().any(|source| source.topic == topic) => return Err(error.into()),
                // It is seen when it is there.
                Err(error) => {
                    let (route, topic) = (self.parts.route.as_str(), topic.as_str());
                    debug!(route, topic, error = chain(&error), "a topic is not there");
                }
            }
        }
        // A broker that lags behind may not know a partition yet that was given to us.
        for source in asked.keys() {
            let number = usize::try_from(source.partition.0).unwrap_or_default();
            if infos.get(&source.topic).is_none_or(|info| number >= info.partition_count) {
                let problem = format!("{source} is not known yet");
                return Err(ClusterError::Answer { what: "a topic's partitions", problem }.into());
            }
        }
        Ok(infos)
    }

    /// Gives sinks without a store of their own the positions that the group has for them. What was asked before a topic
    /// was created again means other records: a sibling must not begin there either.
    fn restore(&mut self, asked: &Asked<'_>, infos: &Infos, recreated: &BTreeSet<TopicName>) {
        for (sink, stored) in self.parts.sinks.iter_mut().zip(&mut self.stored) {
            if sink.sink.store() == Store::Own {
                continue;
            }
            let identity = IdentityHash::of(&sink.identity);
            for (source, committed) in asked.iter().filter(|(source, _)| !recreated.contains(&source.topic)) {
                // One that says where it begins, and was never started, stands nowhere.
                if sink.start.is_some() && committed.metadata.start(&identity).is_none() {
                    continue;
                }
                // Without an entry of its own it stands where the group does.
                let next = committed.metadata.position(&identity).or(committed.offset);
                if let (Some(next), Some(info)) = (next, infos.get(&source.topic)) {
                    let position = Position { next, epoch: None };
                    let key = key(info, source.partition);
                    sink.sink.restore(key, &source.topic, position);
                    stored.restore(key, source.topic.clone(), position);
                }
            }
        }
    }

    /// Topics that were deleted and created again: their offsets mean other records now.
    pub(super) fn recreated(&self, infos: &Infos, sinks: SinkSet) -> Result<BTreeSet<TopicName>, Setback> {
        let mut recreated = BTreeSet::new();
        // One that is not required stops nobody: it begins in the new topic as one that was never there.
        let is_told =
            |index: &usize| self.parts.on_data_loss == OnDataLoss::Continue || !self.is_optional(*index);
        for (topic, info) in infos {
            for index in sinks.iter().filter(is_told) {
                let (sink, stored) = (&self.parts.sinks[index], &self.stored[index]);
                let Some(former) = stored.former_id(topic, info.id) else {
                    continue;
                };
                let message = format!(
                    "topic `{topic}` was deleted and created again: sink `{}` has positions of {former}, the brokers have {}",
                    sink.name, info.id
                );
                match self.parts.on_data_loss {
                    OnDataLoss::Continue => {
                        let route = self.parts.route.as_str();
                        warn!(route, topic = topic.as_str(), "{message}; it is read from its beginning");
                        recreated.insert(topic.clone());
                    }
                    OnDataLoss::Stop => {
                        return Err(Setback::Stop {
                            message,
                            hint: "its offsets mean other records now; read it with another `group.id` and other \
                                   paths, or set `on_data_loss: continue` to read what is there",
                            place: None,
                        });
                    }
                }
            }
        }
        Ok(recreated)
    }

    /// Gives every sink a position in all partitions of all topics it has not seen, before any data: one move
    /// for each, all in one commit.
    ///
    /// A sink without a store of its own gets positions only in the partitions that were asked for: the others
    /// belong to members whose commits we do not see.
    pub(super) async fn first_sight(
        &mut self,
        asked: &Asked<'_>,
        infos: &Infos,
        recreated: &BTreeSet<TopicName>,
        sinks: SinkSet,
    ) -> Result<(), Setback> {
        // Before any of them is changed here.
        let is_unchanged = (0..self.parts.sinks.len()).any(|index| {
            let is_own = self.parts.sinks[index].sink.store() == Store::Own;
            is_own && self.stored[index].start_hash() == Some(self.start_hash(index))
        });
        let all: Vec<(TopicPartition, PositionKey)> = infos
            .iter()
            .flat_map(|(topic, info)| {
                let count = i32::try_from(info.partition_count).unwrap_or(i32::MAX);
                let each = (0..count).map(Partition);
                each.map(move |partition| (TopicPartition::new(topic, partition), key(info, partition)))
            })
            .collect();
        let living = all.iter().filter_map(|(_, key)| {
            let stands = self.stored.iter().filter_map(|stored| stored.get(key));
            Some((*key, stands.map(|position| position.next).min()?))
        });
        let living: Living = living.collect();
        for index in sinks.iter() {
            let is_own = self.parts.sinks[index].sink.store() == Store::Own;
            let missing: Vec<&(TopicPartition, PositionKey)> = all
                .iter()
                .filter(|(source, key)| {
                    self.stored[index].get(key).is_none() && (is_own || asked.contains_key(source))
                })
                .collect();
            if missing.is_empty() {
                continue;
            }
            let moves = self.starts(index, &missing, &living, is_unchanged, recreated).await?;
            info!(
                route = self.parts.route,
                sink = self.parts.sinks[index].name,
                partitions = moves.len(),
                starts = starts_shown(&moves),
                "first sight"
            );
            failpoint::hit("lane.start.storing");
            let stored = self.store_moves(index, moves).await;
            self.forgive(index, stored)?;
            failpoint::hit("lane.start.stored");
        }
        Ok(())
    }

    /// Where a sink begins in partitions it has no position for.
    async fn starts(
        &mut self,
        index: usize,
        missing: &[&(TopicPartition, PositionKey)],
        living: &Living,
        is_unchanged: bool,
        recreated: &BTreeSet<TopicName>,
    ) -> Result<Vec<Move>, Setback> {
        let mut wanted: Vec<(TopicPartition, &Start)> = Vec::new();
        let mut starts: BTreeMap<&TopicPartition, Offset> = BTreeMap::new();
        for (source, key) in missing {
            let seen = self.topics.get(&source.topic);
            // A partition that appeared later was empty when it did: all of it is wanted.
            let is_added = match self.parts.sinks[index].sink.store() {
                Store::Own => self.stored[index].knows(key.topic_id),
                Store::Group | Store::Transaction => {
                    let count = seen.and_then(|seen| seen.partition_count);
                    let number = usize::try_from(source.partition.0).unwrap_or_default();
                    count.is_some_and(|count| number >= count)
                }
            };
            let own = self.parts.sinks[index].start.as_ref();
            let noted = self.optional.begin(key).filter(|_| self.is_optional(index));
            let unseen = Unseen {
                is_added,
                is_new: is_unchanged || seen.is_some_and(|seen| seen.is_new),
                is_recreated: recreated.contains(&source.topic),
                has_start: own.is_some(),
                siblings: noted.or_else(|| self.sibling(key)),
                living: living.get(key).copied(),
            };
            match unseen.begin() {
                Begin::WithSiblings(next) => {
                    starts.insert(source, next);
                }
                Begin::Whole => wanted.push((source.clone(), &Start::Earliest)),
                Begin::AtStart => {
                    wanted.push((source.clone(), own.map_or(&self.parts.start, |(start, _)| start)));
                }
            }
        }
        let resolved = self.parts.cluster.resolve(&wanted).await?;
        let moves = missing.iter().filter_map(|(source, key)| {
            let next = *starts.get(source).or_else(|| resolved.get(source))?;
            Some(Move {
                key: *key,
                topic: source.topic.clone(),
                start: None,
                end: Position { next, epoch: None },
                reason: Reason::Start { hash: self.start_hash(index).clone() },
                records: 0,
            })
        });
        Ok(moves.collect())
    }

    /// Where the sinks stand that begin where their route does. One that says where it begins may be anywhere.
    fn sibling(&self, key: &PositionKey) -> Option<Offset> {
        let sinks = self.parts.sinks.iter().zip(&self.stored);
        let sinks = sinks.filter(|(sink, _)| sink.start.is_none() && sink.is_required);
        sinks.filter_map(|(_, stored)| Some(stored.get(key)?.next)).min()
    }

    /// The digest of what decides where a sink starts.
    fn start_hash(&self, index: usize) -> &StartHash {
        self.parts.sinks[index].start.as_ref().map_or(&self.parts.start_hash, |(_, hash)| hash)
    }

    /// Stores that `topics:` or `start:` were edited, so that topics which appear from now on are known to be
    /// new. Any position does for that, as it is.
    pub(super) async fn restate_start(
        &mut self,
        asked: &Asked<'_>,
        infos: &Infos,
        sinks: SinkSet,
    ) -> Result<(), Setback> {
        for index in sinks.iter() {
            let stored = &self.stored[index];
            if stored.start_hash().is_none_or(|hash| hash == self.start_hash(index)) {
                continue;
            }
            let standing = asked.keys().find_map(|source| {
                let key = key(infos.get(&source.topic)?, source.partition);
                Some((*source, key, stored.get(&key)?))
            });
            let Some((source, key, position)) = standing else {
                continue;
            };
            info!(
                route = self.parts.route,
                sink = self.parts.sinks[index].name,
                "`topics:` or `start:` was edited: topics that are stored go on where they stand"
            );
            let step = Move {
                key,
                topic: source.topic.clone(),
                start: Some(position.next),
                end: position,
                reason: Reason::Start { hash: self.start_hash(index).clone() },
                records: 0,
            };
            let stored = self.store_moves(index, vec![step]).await;
            self.forgive(index, stored)?;
        }
        Ok(())
    }

    pub(super) async fn store_moves(&mut self, index: usize, moves: Vec<Move>) -> Result<(), Setback> {
        let batch = Batch::of_rows(moves, RecordBatch::new_empty(Arc::new(Schema::empty())));
        let stored = match self.parts.sinks[index].sink.write(&batch).await {
            Ok(()) => self.settle_whole(index, &batch.moves).await,
            Err(error) => Err(error),
        };
        // Losing the race for these says nothing about another deployment.
        self.conflicts[index] = 0;
        if let Err(error) = stored {
            self.sink_failed(index, error).await;
            return Err(Setback::Sink);
        }
        Ok(())
    }

    /// Checks positions against what the brokers have, and enters them in the ledger.
    async fn enter(&mut self, asked: &Asked<'_>, infos: &Infos) -> Result<(), Setback> {
        let sources: Vec<TopicPartition> = asked.keys().map(|source| (*source).clone()).collect();
        self.pass_lost(&sources, infos, self.present()).await?;
        for source in &sources {
            let Some(info) = infos.get(&source.topic) else {
                continue;
            };
            let key = key(info, source.partition);
            self.note_begin(key, &source.topic);
            let away = self.ledger.away();
            let durable = self.stored.iter().enumerate().map(|(index, stored)| {
                let begin = self.optional.begin(&key).filter(|_| away.contains(index));
                stored.get(&key).map(|position| position.next).or(begin)
            });
            let durable: Option<Vec<Offset>> = durable.collect();
            if let Some(durable) = durable {
                self.ledger.assign(key, &durable);
                self.keys.insert(source.clone(), key);
            }
        }
        Ok(())
    }
}

/// Where partitions start, for people.
fn starts_shown(moves: &[Move]) -> String {
    let each = moves.iter().map(|step| format!("{}/{} at {}", step.topic, step.key.partition, step.end.next));
    shown(&each.collect::<Vec<_>>())
}

/// The first few of them.
fn shown(all: &[String]) -> String {
    let more = if all.len() > SHOWN_MAX { ", …" } else { "" };
    let first: Vec<&str> = all.iter().take(SHOWN_MAX).map(String::as_str).collect();
    format!("{}{more}", first.join(", "))
}

pub(super) fn key(info: &TopicInfo, partition: Partition) -> PositionKey {
    PositionKey { topic_id: info.id, partition }
}
