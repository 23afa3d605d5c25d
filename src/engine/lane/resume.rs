//! Where a lane's sinks go on in partitions it is given (PROTOCOL §2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use tracing::{info, warn};

use crate::engine::message::{Committed, Report};
use crate::engine::{chain, retry};
use crate::kafka::{ClusterError, TopicInfo};
use crate::model::metadata::IdentityHash;
use crate::model::{
    Batch, Classify, Move, Offset, Partition, Position, PositionKey, Reason, Start, TopicName, TopicPartition,
};

use crate::sink::Store;

use super::{Lane, State};

/// Why resuming did not go through.
enum Setback {
    /// Ask again later.
    Brokers(ClusterError),
    /// A sink failed; it was dealt with.
    Sink,
    Stop {
        message: String,
        hint: &'static str,
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
        let asked = self.to_resume.clone();
        let unknown: BTreeMap<&TopicPartition, &Committed> =
            asked.iter().filter(|(source, _)| !self.keys.contains_key(source)).collect();
        let result = if unknown.is_empty() { Ok(()) } else { self.take_up(&unknown).await };
        match result {
            Ok(()) => {
                self.resume_retry = None;
                self.to_resume.clear();
                // The engine commits where sinks without a store begin before anything is fetched.
                self.report_progress().await;
                let ready = self.resume_offsets(asked.keys());
                self.report(Report::Ready(ready)).await;
            }
            Err(Setback::Sink) => {}
            Err(Setback::Stop { message, hint }) => self.stop(message, Some(hint.to_owned())).await,
            Err(Setback::Brokers(error)) => {
                let attempt = self.resume_retry.map_or(1, |(_, attempt)| attempt + 1);
                if attempt == 1 {
                    warn!(
                        route = self.parts.route,
                        error = chain(&error),
                        hint = error.hint().as_deref(),
                        "partitions wait for the brokers"
                    );
                }
                self.resume_retry = Some((Instant::now() + retry::pause(attempt), attempt));
            }
        }
    }

    async fn take_up(&mut self, asked: &BTreeMap<&TopicPartition, &Committed>) -> Result<(), Setback> {
        for index in 0..self.parts.sinks.len() {
            self.read_positions(index).await?;
        }
        self.check_logs(asked)?;
        let topics: BTreeSet<&TopicName> = asked.keys().map(|source| &source.topic).collect();
        for topic in topics {
            let info = self.parts.cluster.topic(topic).await?;
            self.restore(asked, topic, &info);
            let given: BTreeSet<Partition> =
                asked.keys().filter(|source| source.topic == *topic).map(|source| source.partition).collect();
            self.first_sight(topic, &info, &given).await?;
            for source in asked.keys().filter(|source| source.topic == *topic) {
                self.take_up_one(source, &info).await?;
            }
        }
        Ok(())
    }

    /// Gives sinks without a store of their own the positions that the group has for them.
    fn restore(
        &mut self,
        asked: &BTreeMap<&TopicPartition, &Committed>,
        topic: &TopicName,
        info: &TopicInfo,
    ) {
        for (sink, stored) in self.parts.sinks.iter_mut().zip(&mut self.stored) {
            if sink.sink.store() == Store::Own {
                continue;
            }
            let identity = IdentityHash::of(&sink.identity);
            for (source, committed) in asked.iter().filter(|(source, _)| source.topic == *topic) {
                // Without an entry of its own it stands where the group does.
                if let Some(next) = committed.metadata.position(&identity).or(committed.offset) {
                    let position = Position { next, epoch: None };
                    let key = key(info, source.partition);
                    sink.sink.restore(key, topic, position);
                    stored.restore(key, topic.clone(), position);
                }
            }
        }
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
    fn check_logs(&self, asked: &BTreeMap<&TopicPartition, &Committed>) -> Result<(), Setback> {
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
                    });
                }
            }
        }
        Ok(())
    }

    /// Gives every sink that has not seen the topic a position in all of its partitions, before any data.
    ///
    /// A sink without a store of its own gets positions only in the `given` partitions: the others belong
    /// to members whose commits we do not see.
    async fn first_sight(
        &mut self,
        topic: &TopicName,
        info: &TopicInfo,
        given: &BTreeSet<Partition>,
    ) -> Result<(), Setback> {
        let partitions: Vec<Partition> =
            (0..i32::try_from(info.partition_count).unwrap_or(i32::MAX)).map(Partition).collect();
        for index in 0..self.parts.sinks.len() {
            if let Some(former) = self.stored[index].former_id(topic, info.id) {
                return Err(Setback::Stop {
                    message: format!(
                        "topic `{topic}` was deleted and created again: sink `{}` has positions of {former}, the brokers have {}",
                        self.parts.sinks[index].name, info.id
                    ),
                    hint: "its offsets mean other records now; read it with another `group.id` and other paths",
                });
            }
            let missing: Vec<Partition> = partitions
                .iter()
                .copied()
                .filter(|partition| self.stored[index].get(&key(info, *partition)).is_none())
                .filter(|partition| {
                    self.parts.sinks[index].sink.store() == Store::Own || given.contains(partition)
                })
                .collect();
            if !missing.is_empty() {
                let starts = self.starts(index, topic, info, &missing).await?;
                self.store_starts(index, topic, info, &starts).await?;
            }
        }
        Ok(())
    }

    /// Where a sink begins in partitions it has no position for.
    async fn starts(
        &mut self,
        index: usize,
        topic: &TopicName,
        info: &TopicInfo,
        missing: &[Partition],
    ) -> Result<BTreeMap<Partition, Offset>, Setback> {
        let is_known = self.stored[index].knows(info.id);
        // A partition that appeared later was empty when it did: all of it is wanted.
        let start = if is_known { &Start::Earliest } else { &self.parts.start };
        let resolved = self.parts.cluster.resolve(topic, info.partition_count, start).await?;
        let starts = missing.iter().filter_map(|partition| {
            // A sink added to a living route begins where its siblings stand.
            let siblings = self
                .stored
                .iter()
                .filter_map(|stored| stored.get(&key(info, *partition)))
                .map(|position| position.next)
                .min();
            let offset = siblings.filter(|_| !is_known).or_else(|| resolved.get(partition).copied())?;
            Some((*partition, offset))
        });
        Ok(starts.collect())
    }

    async fn store_starts(
        &mut self,
        index: usize,
        topic: &TopicName,
        info: &TopicInfo,
        starts: &BTreeMap<Partition, Offset>,
    ) -> Result<(), Setback> {
        let moves: Vec<Move> = starts
            .iter()
            .map(|(partition, offset)| Move {
                key: key(info, *partition),
                topic: topic.clone(),
                start: None,
                end: Position { next: *offset, epoch: None },
                reason: Reason::Start { hash: self.parts.start_hash.clone() },
                records: 0,
            })
            .collect();
        info!(
            route = self.parts.route,
            sink = self.parts.sinks[index].name,
            %topic,
            starts = ?starts.iter().map(|(partition, offset)| (partition.0, offset.get())).collect::<Vec<_>>(),
            "first sight of a topic"
        );
        let batch = Batch { moves, rows: RecordBatch::new_empty(Arc::new(Schema::empty())) };
        let sink = &mut self.parts.sinks[index].sink;
        let written = match sink.write(&batch).await {
            Ok(()) => sink.flush().await,
            Err(error) => Err(error),
        };
        match written {
            Ok(positions) => {
                self.conflicts[index] = 0;
                self.ledger.settle(index, &positions);
                self.stored[index] = positions;
                Ok(())
            }
            Err(error) => {
                // Losing the race for first positions says nothing about another deployment.
                self.conflicts[index] = 0;
                self.sink_failed(index, error).await;
                Err(Setback::Sink)
            }
        }
    }

    /// Checks a partition's positions against what the brokers have, and enters it in the ledger.
    async fn take_up_one(&mut self, source: &TopicPartition, info: &TopicInfo) -> Result<(), Setback> {
        let key = key(info, source.partition);
        let (first, end) = self.parts.cluster.bounds(source).await?;
        let mut durable = Vec::with_capacity(self.stored.len());
        for (sink, stored) in self.parts.sinks.iter().zip(&self.stored) {
            let Some(position) = stored.get(&key) else {
                return Err(Setback::Stop {
                    message: format!("sink `{}` has no position for {source}", sink.name),
                    hint: "this is a defect of sidestream; please report it",
                });
            };
            if position.next < first {
                return Err(Setback::Stop {
                    message: format!(
                        "{source}: offsets {} to {first} are lost: sink `{}` has not read them, and the brokers have deleted them (retention)",
                        position.next, sink.name
                    ),
                    hint: "give the topic a longer retention; to go on without them, use another `group.id` and other paths",
                });
            }
            if position.next > end {
                return Err(Setback::Stop {
                    message: format!(
                        "{source}: sink `{}` stands at offset {}, and the brokers have only {end}: the partition was truncated (unclean leader election)",
                        sink.name, position.next
                    ),
                    hint: "records were replaced; find out what was lost before reading on",
                });
            }
            durable.push(position.next);
        }
        self.ledger.assign(key, &durable);
        self.keys.insert(source.clone(), key);
        Ok(())
    }
}

fn key(info: &TopicInfo, partition: Partition) -> PositionKey {
    PositionKey { topic_id: info.id, partition }
}
