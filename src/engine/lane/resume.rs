//! Where a lane's sinks go on in partitions it is given (PROTOCOL §2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use tracing::{info, warn};

use crate::engine::message::Report;
use crate::engine::{chain, retry};
use crate::kafka::{ClusterError, TopicInfo};
use crate::model::metadata::{GroupMetadata, IdentityHash};
use crate::model::{
    Batch, Classify, Move, Offset, Partition, Position, PositionKey, Reason, Start, TopicName, TopicPartition,
};

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
        let unknown: BTreeMap<&TopicPartition, &String> = asked
            .iter()
            .filter(|(source, _)| !self.keys.contains_key(source))
            .collect();
        let result = if unknown.is_empty() {
            Ok(())
        } else {
            self.take_up(&unknown).await
        };
        match result {
            Ok(()) => {
                self.resume_retry = None;
                self.to_resume.clear();
                let ready = self.resume_offsets(asked.keys());
                self.report(Report::Ready(ready)).await;
                self.report_progress().await;
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

    async fn take_up(&mut self, asked: &BTreeMap<&TopicPartition, &String>) -> Result<(), Setback> {
        for index in 0..self.parts.sinks.len() {
            self.read_positions(index).await?;
        }
        self.check_logs(asked)?;
        let topics: BTreeSet<&TopicName> = asked.keys().map(|source| &source.topic).collect();
        for topic in topics {
            let info = self.parts.cluster.topic(topic).await?;
            self.first_sight(topic, &info).await?;
            for source in asked.keys().filter(|source| source.topic == *topic) {
                self.take_up_one(source, &info).await?;
            }
        }
        Ok(())
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
    fn check_logs(&self, asked: &BTreeMap<&TopicPartition, &String>) -> Result<(), Setback> {
        for (source, text) in asked {
            // What somebody else wrote beside the offset says nothing about our logs.
            let metadata = GroupMetadata::parse(text).unwrap_or_default();
            for sink in &self.parts.sinks {
                let theirs = metadata.log(&IdentityHash::of(&sink.identity));
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
                               start again, give the sink another `id:`",
                    });
                }
            }
        }
        Ok(())
    }

    /// Gives every sink that has not seen the topic a position in all of its partitions, before any data.
    async fn first_sight(&mut self, topic: &TopicName, info: &TopicInfo) -> Result<(), Setback> {
        let partitions: Vec<Partition> = (0..i32::try_from(info.partition_count).unwrap_or(i32::MAX))
            .map(Partition)
            .collect();
        for index in 0..self.parts.sinks.len() {
            if let Some(former) = self.stored[index].former_id(topic, info.id) {
                return Err(Setback::Stop {
                    message: format!(
                        "topic `{topic}` was deleted and created again: sink `{}` has positions of {former}, the brokers have {}",
                        self.parts.sinks[index].name, info.id
                    ),
                    hint: "its offsets mean other records now; read it into a sink with another `id:` and path",
                });
            }
            let missing: Vec<Partition> = partitions
                .iter()
                .copied()
                .filter(|partition| self.stored[index].get(&key(info, *partition)).is_none())
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
        let start = if is_known {
            &Start::Earliest
        } else {
            &self.parts.start
        };
        let resolved = self
            .parts
            .cluster
            .resolve(topic, info.partition_count, start)
            .await?;
        let starts = missing.iter().filter_map(|partition| {
            // A sink added to a living route begins where its siblings stand.
            let siblings = self
                .stored
                .iter()
                .filter_map(|stored| stored.get(&key(info, *partition)))
                .map(|position| position.next)
                .min();
            let offset = siblings
                .filter(|_| !is_known)
                .or_else(|| resolved.get(partition).copied())?;
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
                end: Position {
                    next: *offset,
                    epoch: None,
                },
                reason: Reason::Start {
                    hash: self.parts.start_hash.clone(),
                },
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
        let batch = Batch {
            moves,
            rows: RecordBatch::new_empty(Arc::new(Schema::empty())),
        };
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
                    hint: "give the topic a longer retention; to go on without them, read the topic into a sink with another `id:` and path",
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
    PositionKey {
        topic_id: info.id,
        partition,
    }
}
