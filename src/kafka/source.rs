//! The consumer's thread: polls, copies records into chunks, carries out commands. It decides nothing
//! but when to pause: a partition whose lane holds too much is paused before the next poll.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::mpsc as async_mpsc;
use tracing::{debug, info, warn};

use crate::model::{Offset, Partition, TopicName, TopicPartition};
use crate::repeat::{self, Repeats};
use crate::status::SourceCounts;

use super::event::{Assignment, Command, Commit, Event};
use super::ffi::{self, ConsumerError, Polled, Poller};
use super::membership::Membership;
use super::slot::{Failed, Outlets, Slot, gauges, hand_on, holders, offer};
use super::{Source, triage};

/// A chunk is handed on at this size. Bigger ones make lanes wait, smaller ones cost more than they carry.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// A chunk is handed on with this many records.
const CHUNK_RECORDS_MAX: usize = 10_000;

/// A chunk that is not full is handed on after this time.
const CHUNK_AGE_MAX: Duration = Duration::from_millis(20);

/// How long one poll waits. Commands wait as long at most.
const POLL_MAX: Duration = Duration::from_millis(20);

/// Events that wait for the engine. It takes them at once; more means that it is stuck, and repeated
/// errors are dropped rather than collected.
const EVENTS_MAX: usize = 1024;

/// Commands that wait for the thread; senders wait beyond that.
const COMMANDS_MAX: usize = 1024;

/// The consumer could not be made or asked to do something.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("failed to create the Kafka consumer")]
    Create(#[source] KafkaError),
    #[error("the Kafka consumer has no queue: `group.id` is missing")]
    NoGroup,
    #[error("failed to start the consumer's thread")]
    Thread(#[source] std::io::Error),
    #[error("the consumer's thread has ended")]
    Ended,
}

type MemberConsumer = BaseConsumer<DefaultConsumerContext>;

/// The handle of the consumer's thread.
pub struct KafkaSource {
    commands: mpsc::SyncSender<Command>,
    events: async_mpsc::Receiver<Event>,
    counts: Arc<SourceCounts>,
}

impl KafkaSource {
    /// What its thread counts.
    pub fn counts(&self) -> &Arc<SourceCounts> {
        &self.counts
    }

    /// Starts the thread, which keeps `membership` as it is with the group.
    ///
    /// # Errors
    /// [`SourceError`] if the configuration is refused; brokers that are away are no error.
    pub fn start(config: &ClientConfig, membership: Membership) -> Result<Self, SourceError> {
        let consumer: Arc<MemberConsumer> = Arc::new(config.create().map_err(SourceError::Create)?);
        let poller = Poller::new(consumer.clone()).ok_or(SourceError::NoGroup)?;
        let (command_tx, command_rx) = mpsc::sync_channel(COMMANDS_MAX);
        let (event_tx, event_rx) = async_mpsc::channel(EVENTS_MAX);
        let counts = Arc::<SourceCounts>::default();
        membership.join(&consumer);
        let worker = Worker {
            counts: counts.clone(),
            poller,
            consumer,
            outlets: HashMap::new(),
            slots: HashMap::new(),
            failed: Vec::new(),
            by_handle: HashMap::new(),
            events: EventQueue { sender: event_tx, backlog: VecDeque::new() },
            awaits_answer: None,
            membership,
            repeats: Repeats::default(),
        };
        thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || worker.run(&command_rx))
            .map_err(SourceError::Thread)?;
        Ok(Self { commands: command_tx, events: event_rx, counts })
    }
}

#[async_trait]
impl Source for KafkaSource {
    async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    fn send(&self, command: Command) -> Result<(), SourceError> {
        self.commands.send(command).map_err(|_| SourceError::Ended)
    }
}

struct EventQueue {
    sender: async_mpsc::Sender<Event>,
    backlog: VecDeque<Event>,
}

impl EventQueue {
    fn push(&mut self, event: Event) {
        let is_error = matches!(event, Event::Failed { .. } | Event::Held(_));
        if is_error && self.backlog.len() >= EVENTS_MAX {
            return;
        }
        self.backlog.push_back(event);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(event) = self.backlog.pop_front() {
            if let Err(async_mpsc::error::TrySendError::Full(event)) = self.sender.try_send(event) {
                self.backlog.push_front(event);
                return;
            }
        }
    }
}

/// Which rebalance event the group waits to be answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Assign,
    Unassign,
}

struct Worker {
    poller: Poller<DefaultConsumerContext>,
    consumer: Arc<MemberConsumer>,
    outlets: Outlets,
    slots: HashMap<TopicPartition, Slot>,
    /// At most one for each partition.
    failed: Vec<Failed>,
    /// Saves looking at a topic's name for every record.
    by_handle: HashMap<(usize, Partition), TopicPartition>,
    events: EventQueue,
    counts: Arc<SourceCounts>,
    awaits_answer: Option<Awaited>,
    /// For those that write in transactions.
    membership: Membership,
    /// librdkafka's lines, as they were said.
    repeats: Repeats,
}

impl Worker {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        let mut swept = Instant::now();
        loop {
            self.events.drain();
            loop {
                match commands.try_recv() {
                    Ok(Command::Close) | Err(mpsc::TryRecvError::Disconnected) => return self.close(),
                    Ok(command) => self.apply(command),
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            let is_idle = self.poll();
            if is_idle || swept.elapsed() >= CHUNK_AGE_MAX {
                swept = Instant::now();
                self.sweep(swept);
            }
        }
    }

    /// Polls once; `true` if nothing came.
    fn poll(&mut self) -> bool {
        let Self { poller, slots, by_handle, outlets, .. } = self;
        let other = poller.poll(POLL_MAX, |polled| {
            let Polled::Message(message) = polled else {
                return Some(owned(polled));
            };
            let handle = (message.topic_handle(), message.partition());
            let source = by_handle
                .entry(handle)
                .or_insert_with(|| TopicPartition::new(&message.topic(), message.partition()));
            let slot = slots.get_mut(source)?;
            let (incoming, headers) = message.incoming();
            // librdkafka may give a record twice around a pause.
            if incoming.offset < slot.builder.next() {
                return None;
            }
            slot.builder.push(incoming, headers);
            slot.since.get_or_insert_with(Instant::now);
            if slot.builder.size() >= CHUNK_BYTES_MAX || slot.builder.record_count() >= CHUNK_RECORDS_MAX {
                let end = slot.builder.next();
                hand_on(source, slot, end, outlets);
            }
            None
        });
        match other {
            Some(Other::Nothing) => return true,
            Some(other) => self.handle(other),
            None => {}
        }
        false
    }

    fn handle(&mut self, other: Other) {
        match other {
            Other::Nothing => {}
            Other::End { source, next } => {
                if let Some(slot) = self.slots.get_mut(&source) {
                    hand_on(&source, slot, next, &self.outlets);
                }
            }
            Other::Error(error) => self.report(error),
            Other::Assign(partitions) => self.assigned(partitions),
            Other::Revoke { partitions, is_lost } => {
                self.awaits_answer = Some(Awaited::Unassign);
                if is_lost {
                    // They may belong to somebody else already.
                    self.membership.take(&partitions);
                }
                self.events.push(Event::Revoked { partitions, is_lost });
            }
            Other::Committed(result) => self.events.push(Event::Committed(result)),
            Other::Log { level, facility, message } => log(&self.repeats, level, &facility, &message),
        }
    }

    /// Answers at once, with nothing: the group goes on, and partitions are fetched when the engine
    /// knows from where. Until then nobody else can have them.
    fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        self.awaits_answer = Some(Awaited::Assign);
        self.membership.give(&partitions);
        self.answer();
        self.events.push(Event::Assigned(partitions));
    }

    fn answer(&mut self) {
        let nothing = TopicPartitionList::new();
        let result = match self.awaits_answer.take() {
            Some(Awaited::Assign) => self.consumer.incremental_assign(&nothing),
            Some(Awaited::Unassign) => self.consumer.incremental_unassign(&nothing),
            None => return,
        };
        if let Err(error) = result {
            warn!(%error, "a rebalance could not be answered");
        }
    }

    fn report(&mut self, error: ConsumerError) {
        self.counts.failed(&error.code.to_string());
        let verdict = triage::verdict(error.code, error.is_fatal);
        let broken = error.source.clone().filter(|_| verdict != triage::Verdict::Passing);
        let event = Event::Failed {
            source: error.source,
            offset: error.offset,
            message: format!("{} ({})", error.message, error.code),
            verdict,
        };
        let Some(source) = broken else {
            return self.events.push(event);
        };
        // What is wrong behind the first place is nobody's yet.
        if self.failed.iter().any(|failed| failed.source == source) {
            return;
        }
        // librdkafka may go on behind what it could not read, and a gap in offsets is legal: nothing more
        // may come of this partition.
        match self.drop_slots(std::slice::from_ref(&source)).pop() {
            Some(slot) => {
                self.failed.push(Failed { source, slot, event });
                self.tell_failed();
            }
            None => self.events.push(event),
        }
    }

    /// Tells of partitions that failed, once what came before is handed on.
    fn tell_failed(&mut self) {
        for mut failed in std::mem::take(&mut self.failed) {
            if failed.hand_on(&self.outlets) {
                self.events.push(failed.event);
            } else {
                self.failed.push(failed);
            }
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Connect(outlets) => {
                self.outlets.extend(outlets);
            }
            Command::Subscribe(topics) => {
                let names: Vec<&str> = topics.iter().map(TopicName::as_str).collect();
                // No topic is left that a pattern matches; librdkafka refuses an empty list.
                if names.is_empty() {
                    return self.consumer.unsubscribe();
                }
                if let Err(error) = self.consumer.subscribe(&names) {
                    self.fatal(format!("failed to subscribe: {error}"));
                }
            }
            Command::Assign(assignments) => self.assign(&assignments),
            Command::Unassign(partitions) => {
                self.drop_slots(&partitions);
            }
            Command::Detach { source, outlet } => {
                let failed = self.failed.iter_mut().filter(|failed| failed.source == source);
                let slots =
                    self.slots.get_mut(&source).into_iter().chain(failed.map(|failed| &mut failed.slot));
                slots.for_each(|slot| slot.detach(outlet));
            }
            Command::Release(partitions) => self.release(&partitions),
            Command::Commit(commits) => self.commit(&commits),
            Command::Close => {}
        }
    }

    fn assign(&mut self, assignments: &[Assignment]) {
        let known: Vec<TopicPartition> = assignments
            .iter()
            .filter(|assignment| self.slots.contains_key(&assignment.source))
            .map(|assignment| assignment.source.clone())
            .collect();
        self.drop_slots(&known);
        // It is met again when it is read again.
        self.failed.retain(|failed| !assignments.iter().any(|assignment| assignment.source == failed.source));
        let mut list = TopicPartitionList::new();
        let now = Instant::now();
        for assignment in assignments {
            let Assignment { source, from, .. } = assignment;
            let offset = KafkaOffset::Offset(from.get());
            if let Err(error) = list.add_partition_offset(source.topic.as_str(), source.partition.0, offset) {
                self.fatal(format!("failed to assign {source} at {from}: {error}"));
                continue;
            }
            self.slots.insert(source.clone(), Slot::new(assignment, now));
        }
        // A pause outlives unassign and assign in librdkafka.
        let result = self.consumer.incremental_assign(&list).and_then(|()| self.consumer.resume(&list));
        if let Err(error) = result {
            self.fatal(format!("failed to assign {assignments:?}: {error}"));
        }
    }

    /// Stops fetching those of `partitions` that are fetched, and answers the group also if none is.
    fn release(&mut self, partitions: &[TopicPartition]) {
        // Before the group is answered: no transaction of ours takes them along any more.
        self.membership.take(partitions);
        self.drop_slots(partitions);
        self.answer();
    }

    /// One partition that is not assigned makes incremental_unassign fail as a whole, so only those go
    /// in that are. Returns what was fetched of them.
    fn drop_slots(&mut self, partitions: &[TopicPartition]) -> Vec<Slot> {
        self.failed.retain(|failed| !partitions.contains(&failed.source));
        let mut list = TopicPartitionList::new();
        let mut dropped = Vec::new();
        for source in partitions {
            if let Some(slot) = self.slots.remove(source) {
                list.add_partition(source.topic.as_str(), source.partition.0);
                dropped.push(slot);
            }
        }
        if dropped.is_empty() {
            return dropped;
        }
        self.awaits_answer = None;
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            self.fatal(format!("failed to unassign {partitions:?}: {error}"));
        }
        dropped
    }

    fn commit(&mut self, commits: &[Commit]) {
        let mut list = TopicPartitionList::new();
        for commit in commits {
            let Commit { source, next, epoch, metadata } = commit;
            let mut element = list.add_partition(source.topic.as_str(), source.partition.0);
            element.set_metadata(metadata);
            if let Err(error) = element.set_offset(KafkaOffset::Offset(next.get())) {
                let (topic, partition) = (source.topic.as_str(), source.partition.0);
                warn!(topic, partition, offset = next.get(), %error, "an offset could not be committed");
            }
            if let Some(epoch) = epoch {
                ffi::set_epoch(&mut list, source, *epoch);
            }
        }
        if let Err(error) = self.poller.commit(&list) {
            self.events.push(Event::Committed(Err(error)));
        }
    }

    fn fatal(&mut self, message: String) {
        self.events.push(Event::Failed {
            source: None,
            offset: None,
            message,
            verdict: triage::Verdict::Fatal,
        });
    }

    /// Hands on chunks that are old enough, offers waiting ones again, pauses and resumes.
    fn sweep(&mut self, now: Instant) {
        self.tell_failed();
        let mut pause = TopicPartitionList::new();
        let mut resume = TopicPartitionList::new();
        let (mut full, mut waiting_count, mut held) = (0, 0, Vec::new());
        for (source, slot) in &mut self.slots {
            if let Some(waiting) = slot.waiting.take() {
                slot.waiting = offer(waiting, &slot.outlets, &self.outlets);
            }
            if slot.since.is_some_and(|since| now.duration_since(since) >= CHUNK_AGE_MAX) {
                let end = slot.builder.next();
                hand_on(source, slot, end, &self.outlets);
            }
            let by = holders(slot, &self.outlets);
            let is_other_free = by.len() < slot.outlets.len();
            let by = slot.hold.look(&by, is_other_free, now);
            if !by.is_empty() {
                held.push((source.clone(), by));
            }
            gauges(slot, &self.outlets).for_each(|gauge| gauge.tell_pace(now));
            let is_full = slot.waiting.is_some() || gauges(slot, &self.outlets).any(|gauge| gauge.is_full());
            let has_room =
                slot.waiting.is_none() && gauges(slot, &self.outlets).all(|gauge| gauge.has_room_again());
            if is_full && !slot.is_paused {
                slot.is_paused = true;
                pause.add_partition(source.topic.as_str(), source.partition.0);
            } else if has_room && slot.is_paused {
                slot.is_paused = false;
                resume.add_partition(source.topic.as_str(), source.partition.0);
            }
            if slot.is_paused {
                let count = if slot.waiting.is_some() { &mut waiting_count } else { &mut full };
                *count += 1;
            }
        }
        self.counts.paused(full, waiting_count);
        let paused = self.consumer.pause(&pause).and_then(|()| self.consumer.resume(&resume));
        if let Err(error) = paused {
            warn!(%error, "fetching could not be paused or resumed");
        }
        if !held.is_empty() {
            self.events.push(Event::Held(held));
        }
    }

    /// Leaves the group. A rebalance event without an answer would hang the client for ever.
    fn close(mut self) {
        self.membership.end();
        let all: Vec<TopicPartition> = self.slots.keys().cloned().collect();
        self.drop_slots(&all);
        self.answer();
        let Self { poller, consumer, mut events, .. } = self;
        drop(poller);
        drop(consumer);
        events.push(Event::Closed);
        debug!("the consumer is closed");
    }
}

/// What a poll brought besides records, without borrows.
enum Other {
    Nothing,
    End { source: TopicPartition, next: Offset },
    Error(ConsumerError),
    Assign(Vec<TopicPartition>),
    Revoke { partitions: Vec<TopicPartition>, is_lost: bool },
    Committed(Result<(), String>),
    Log { level: i32, facility: String, message: String },
}

fn owned(polled: Polled<'_>) -> Other {
    match polled {
        Polled::Nothing | Polled::Message(_) => Other::Nothing,
        Polled::End { source, next } => Other::End { source, next },
        Polled::Error(error) => Other::Error(error),
        Polled::Assign(partitions) => Other::Assign(partitions),
        Polled::Revoke { partitions, is_lost } => Other::Revoke { partitions, is_lost },
        Polled::Committed(result) => Other::Committed(result),
        Polled::Log { level, facility, message } => Other::Log { level, facility, message },
    }
}

/// librdkafka's log lines, by syslog level.
fn log(repeats: &Repeats, level: i32, facility: &str, message: &str) {
    if level > 6 {
        // Asked for with the property `debug`: all of it.
        debug!(facility, "librdkafka: {message}");
        return;
    }
    let cause = repeat::cause(&format!("{facility} {message}"));
    let Some(times) = repeats.say(&cause, 1, Instant::now()) else {
        return;
    };
    match level {
        ..=4 => warn!(facility, times, "librdkafka: {message}"),
        _ => info!(facility, times, "librdkafka: {message}"),
    }
}
