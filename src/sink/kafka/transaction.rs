//! Transactions: the records of all sinks of a lane, and the group's offsets of what they are made of, come into sight
//! together or not at all (PROTOCOL §6, `docs/decisions/0023-kafka-transactions.md`).
//!
//! Three things keep others out. The id of the producer is made of group, route and the lowest partition that is held, so
//! that whoever takes that partition ends what its former owner has left open. Before the first move of a partition its
//! offset is read again, when no open transaction can move it any more. And the brokers take offsets only from a member
//! of the group as it was when the partitions were looked at: a zombie's commit is refused, and with it its records.

mod errors;
mod offsets;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::block_in_place;
use tracing::{debug, info};

use crate::model::{
    Move, Offset, Position, PositionKey, Positions, StartHash, TopicName, TopicPartition, ranges,
};
use crate::sink::SinkError;

use super::DELIVERY_MAX;
use super::deliveries::{Deliveries, Producer};
use super::sending::explain;
use errors::{Next, next};
use offsets::{Place, Seated};

/// For the coordinator to end what a former producer of the same id has left open. Asked again later, as the lane also
/// has to answer the engine, which waits 30 s for it.
const INIT_MAX: Duration = Duration::from_secs(10);

/// For one call about offsets or the end of a transaction. It is made again until the time below is over.
const CALL_MAX: Duration = Duration::from_secs(5);

/// For all calls that end one. Then it is not known how it ended, and its successor finds out.
const END_MAX: Duration = Duration::from_secs(15);

/// What a transaction has to know of the group, whose member this instance is.
#[async_trait]
pub trait GroupMember: Send + Sync {
    /// The name of the group.
    fn group(&self) -> &str;

    /// By the how manieth gift this instance has a partition. `None`: it does not have it.
    fn held(&self, source: &TopicPartition) -> Option<u64>;

    /// What the brokers hold a commit against, while all of these are held by the same gifts. `None` if one is not. Blocks
    /// for a moment.
    fn fence(&self, held: &[(TopicPartition, u64)]) -> Option<ConsumerGroupMetadata>;

    /// The group's offsets, when no open transaction can move them any more.
    async fn committed(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, Box<dyn Error + Send + Sync>>;
}

/// What the transactions of a lane are made of.
pub struct TransactionOptions {
    /// Of producers.
    pub config: ClientConfig,
    /// The lane's.
    pub route: String,
    /// What its route was started with, by name, for routes with a pattern.
    pub start: Option<(String, StartHash)>,
    /// The identities of all its sinks, and what those were started with that say so themselves.
    pub sinks: Vec<(String, Option<StartHash>)>,
}

/// The transactions of a lane, one after another, shared by its sinks.
#[derive(Clone)]
pub struct Transaction(Arc<Shared>);

struct Shared {
    config: ClientConfig,
    route: String,
    start: Option<(String, StartHash)>,
    identities: Vec<String>,
    member: Arc<dyn GroupMember>,
    /// Positions that the lane was told, until they are taken in: place of the sink, and position.
    restored: SyncMutex<Vec<(usize, PositionKey, TopicName, Position)>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    producer: Option<Named>,
    /// It has begun, and was neither committed nor aborted.
    is_open: bool,
    /// It holds records of a batch that its sink has not taken, or takes no more of them.
    is_spoiled: bool,
    /// Something has failed: where the group stands has to be read again.
    is_unsure: bool,
    /// All partitions the lane was given.
    known: BTreeSet<TopicPartition>,
    /// Partitions whose offset was read since they were given.
    places: BTreeMap<PositionKey, Place>,
    sinks: Vec<Seated>,
}

struct Named {
    id: String,
    producer: Producer,
    /// Its former namesake is fenced, and what that has left open has ended.
    is_ready: bool,
}

/// Why a sink's rows are not in sight, although it had taken them.
#[derive(Debug)]
enum Trouble {
    /// The transaction was aborted for a sibling.
    Aborted,
    /// The brokers refuse a record of its own.
    Failed(KafkaError),
}

/// The id of a lane's producer while this is the lowest partition it holds. Partitions are one member's at a time, so two
/// that live do not share an id; and whoever gets the partition next ends what was left open under it.
fn transactional_id(group: &str, route: &str, lowest: &TopicPartition) -> String {
    format!("{group}.{route}.{}.{}", lowest.topic, lowest.partition)
}

impl Transaction {
    pub fn new(options: TransactionOptions, member: Arc<dyn GroupMember>) -> Self {
        let TransactionOptions { config, route, start, sinks } = options;
        let identities = sinks.iter().map(|(identity, _)| identity.clone()).collect();
        let sinks = sinks.into_iter().map(|(identity, start)| Seated::new(&identity, start)).collect();
        let state = Mutex::new(State { sinks, ..State::default() });
        let restored = SyncMutex::default();
        Self(Arc::new(Shared { config, route, start, identities, member, restored, state }))
    }

    /// The part of a sink in it; `None` if it has none.
    pub fn seat(&self, identity: &str) -> Option<Seat> {
        let place = self.0.identities.iter().position(|known| known == identity)?;
        Some(Seat { shared: self.0.clone(), place, since: None })
    }
}

/// One sink's part in the transactions of its lane.
pub struct Seat {
    shared: Arc<Shared>,
    place: usize,
    since: Option<Instant>,
}

/// A transaction that takes records of one sink.
pub struct Turn<'a> {
    state: MutexGuard<'a, State>,
    place: usize,
    since: &'a mut Option<Instant>,
    producer: Option<Producer>,
}

impl Turn<'_> {
    /// Nothing if there are no records to send.
    pub fn producer(&self) -> Option<&Producer> {
        self.producer.as_ref()
    }

    /// What is put on the sink's records.
    pub fn place(&self) -> usize {
        self.place
    }

    /// All of the batch is sent.
    pub fn accept(mut self, moves: &[Move]) {
        self.since.get_or_insert_with(Instant::now);
        let place = self.place;
        self.state.sinks[place].positions.accept(moves);
    }

    /// A part of it is sent, and no more, or the producer has failed: the transaction must not be committed.
    pub fn spoil(mut self) {
        self.state.is_spoiled = true;
    }
}

impl Seat {
    /// Since when something is accepted that its lane does not know to be committed.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes a position that the group keeps; it counts from the next call on.
    pub fn restore(&mut self, key: PositionKey, topic: &TopicName, position: Position) {
        let mut restored = self.shared.restored.lock().unwrap_or_else(PoisonError::into_inner);
        restored.push((self.place, key, topic.clone(), position));
    }

    /// Where the sink stands; read again if something has failed since.
    pub async fn positions(&mut self) -> Result<Positions, SinkError> {
        let mut state = self.shared.enter().await;
        if state.is_unsure {
            self.shared.resolve(&mut state, self.place).await?;
        }
        Ok(state.sinks[self.place].positions.settled().clone())
    }

    /// Begins to take a batch with these moves, after it is sure that they follow what the group has.
    pub async fn begin(&mut self, moves: &[Move], has_records: bool) -> Result<Turn<'_>, SinkError> {
        let Self { shared, place, since } = self;
        let (place, shared): (usize, &Shared) = (*place, &**shared);
        let mut state = shared.enter().await;
        if state.sinks[place].trouble.is_some() {
            return Err(shared.aborted(place));
        }
        let sources = moves.iter().map(|step| TopicPartition::new(&step.topic, step.key.partition));
        state.known.extend(sources);
        if state.is_unsure {
            shared.resolve(&mut state, place).await?;
        }
        block_in_place(|| shared.ready(&mut state, place))?;
        shared.verify(&mut state, place, moves).await?;
        let producer = if has_records {
            block_in_place(|| shared.open(&mut state, place))?;
            state.producer.as_ref().map(|named| named.producer.clone())
        } else {
            None
        };
        Ok(Turn { state, place, since, producer })
    }

    /// Commits what all sinks of the lane have taken, and the offsets with it.
    pub async fn flush(&mut self) -> Result<Positions, SinkError> {
        let mut state = self.shared.enter().await;
        match &state.sinks[self.place].trouble {
            Some(Trouble::Aborted) => return Err(self.shared.aborted(self.place)),
            Some(Trouble::Failed(error)) => {
                return Err(self.shared.failed(&state, self.place, error.clone()));
            }
            None => {}
        }
        // Else it was committed with what a sibling had taken.
        if !state.sinks[self.place].positions.accepted().is_empty() {
            block_in_place(|| self.shared.commit(&mut state, self.place))?;
        }
        self.since = None;
        Ok(state.sinks[self.place].positions.settled().clone())
    }

    /// Drops what the sink has taken, and with it what its siblings have. `true` if nothing was left to be dropped, as a
    /// sibling has committed it.
    pub async fn abandon(&mut self) -> bool {
        let mut state = self.shared.enter().await;
        let sink = &state.sinks[self.place];
        let has_rows = !sink.positions.accepted().is_empty();
        let is_committed = self.since.take().is_some() && !has_rows && sink.trouble.is_none();
        if has_rows || state.is_spoiled {
            block_in_place(|| self.shared.let_go(&mut state, self.place));
        }
        let sink = &mut state.sinks[self.place];
        sink.positions.abandon();
        sink.trouble = None;
        is_committed
    }
}

impl Shared {
    /// The state, with what was told since.
    async fn enter(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().await;
        let told = std::mem::take(&mut *self.restored.lock().unwrap_or_else(PoisonError::into_inner));
        for (place, key, topic, position) in told {
            let source = TopicPartition::new(&topic, key.partition);
            let held = self.member.held(&source);
            state.known.insert(source);
            // What was read since it was given is newer than what was told.
            if state.places.get(&key).is_some_and(|place| Some(place.number) == held) {
                continue;
            }
            state.places.remove(&key);
            state.sinks[place].positions.restore(key, &topic, position);
        }
        state
    }

    /// Sees to a producer of the right id, which has ended what its namesakes left open.
    fn ready(&self, state: &mut State, place: usize) -> Result<(), SinkError> {
        if state.is_open {
            return Ok(());
        }
        let Some(lowest) = state.known.iter().find(|source| self.member.held(source).is_some()) else {
            return Err(self.transient(place, "the group has given its partitions to other members"));
        };
        let id = transactional_id(self.member.group(), &self.route, lowest);
        let named = match state.producer.take().filter(|named| named.id == id) {
            Some(named) => named,
            None => Named { producer: self.create(&id, place)?, id, is_ready: false },
        };
        if !named.is_ready
            && let Err(error) = named.producer.init_transactions(INIT_MAX)
        {
            if next(&error, false) == Next::Again {
                state.producer = Some(named);
            }
            return Err(explain(&self.identities[place], "begin a transaction of", error));
        }
        if !named.is_ready {
            debug!(route = self.route, id = named.id, "a producer of transactions is ready");
        }
        state.producer = Some(Named { is_ready: true, ..named });
        SinkError::point("kafka.transaction.ready")
    }

    fn create(&self, id: &str, place: usize) -> Result<Producer, SinkError> {
        let mut config = self.config.clone();
        config.set("transactional.id", id);
        config.create_with_context(Deliveries::default()).map_err(|error| {
            let action = format!("make the producer of sink `{}`", self.identities[place]);
            let hint = "look at the properties under `kafka:`; `message.timeout.ms` is at most `transaction.timeout.ms`";
            SinkError::stop(action, hint, error)
        })
    }

    /// Begins a transaction, if none has begun.
    fn open(&self, state: &mut State, place: usize) -> Result<(), SinkError> {
        if state.is_open {
            return Ok(());
        }
        self.ready(state, place)?;
        let Some(named) = state.producer.take() else {
            return Err(self.transient(place, "the producer is gone"));
        };
        // What is told of the transaction before is over.
        named.producer.context().take_failure();
        // Without its producer, if it cannot.
        let begun = named.producer.begin_transaction();
        begun.map_err(|error| explain(&self.identities[place], "begin a transaction of", error))?;
        state.producer = Some(named);
        state.is_open = true;
        SinkError::point("kafka.transaction.begun").inspect_err(|_| self.fail(state, place))
    }

    /// Reads where the group stands in partitions that were not looked at since they were given. What a sink thinks
    /// otherwise was moved by a former owner.
    async fn verify(&self, state: &mut State, place: usize, moves: &[Move]) -> Result<(), SinkError> {
        let mut asked: BTreeMap<TopicPartition, (PositionKey, u64)> = BTreeMap::new();
        for step in moves {
            let source = TopicPartition::new(&step.topic, step.key.partition);
            let Some(number) = self.member.held(&source) else {
                return Err(self.transient(place, format!("the group has given {source} to another member")));
            };
            if state.places.get(&step.key).is_none_or(|known| known.number != number) {
                asked.insert(source, (step.key, number));
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let sources: Vec<TopicPartition> = asked.keys().cloned().collect();
        let found = self.member.committed(&sources).await.map_err(|error| self.unread(place, error))?;
        let mut conflict = None;
        for (source, (key, number)) in asked {
            let known = Place::read(&source, number, found.get(&source));
            for sink in &mut state.sinks {
                let told = sink.correct(key, &known);
                conflict = conflict.or(told);
            }
            state.places.insert(key, known);
        }
        match conflict {
            None => Ok(()),
            Some(conflict) => {
                block_in_place(|| self.let_go(state, place));
                Err(SinkError::Conflict(conflict))
            }
        }
    }

    /// Reads where the group stands after something has failed, when it is over.
    async fn resolve(&self, state: &mut State, place: usize) -> Result<(), SinkError> {
        block_in_place(|| self.abort(state));
        let held: BTreeMap<TopicPartition, u64> = state
            .known
            .iter()
            .filter_map(|source| Some((source.clone(), self.member.held(source)?)))
            .collect();
        // What others have now is theirs to end, and to read.
        if !held.is_empty() {
            block_in_place(|| self.ready(state, place))?;
            let sources: Vec<TopicPartition> = held.keys().cloned().collect();
            let found = self.member.committed(&sources).await.map_err(|error| self.unread(place, error))?;
            let mut keys: BTreeMap<PositionKey, TopicPartition> = BTreeMap::new();
            for sink in &state.sinks {
                let known = sink.positions.settled().iter();
                keys.extend(known.map(|(key, topic, _)| (*key, TopicPartition::new(topic, key.partition))));
            }
            state.places.clear();
            for (key, source) in keys {
                let Some(number) = held.get(&source) else {
                    continue;
                };
                let known = Place::read(&source, *number, found.get(&source));
                for sink in &mut state.sinks {
                    sink.correct(key, &known);
                }
                state.places.insert(key, known);
            }
        }
        state.is_unsure = false;
        info!(route = self.route, "the group's offsets were read again after a transaction that failed");
        Ok(())
    }

    /// Commits. After an error nothing of it is in sight, or it is not known: the offsets tell when they are read again.
    fn commit(&self, state: &mut State, place: usize) -> Result<(), SinkError> {
        let done = self.carry_out(state, place);
        if done.is_err() {
            self.fail(state, place);
        }
        done
    }

    fn carry_out(&self, state: &mut State, place: usize) -> Result<(), SinkError> {
        if state.is_spoiled {
            return Err(self.aborted(place));
        }
        for sink in &state.sinks {
            sink.positions.settled().check(sink.positions.accepted()).map_err(SinkError::Conflict)?;
        }
        self.open(state, place)?;
        self.deliver(state, place)?;
        SinkError::point("kafka.transaction.delivered")?;
        self.send_offsets(state, place)?;
        SinkError::point("kafka.transaction.offsets")?;
        self.end(state, place)?;
        SinkError::point("kafka.transaction.committed")?;
        for sink in &mut state.sinks {
            sink.positions.settle()?;
        }
        Ok(())
    }

    /// Waits until the brokers have all records.
    fn deliver(&self, state: &mut State, place: usize) -> Result<(), SinkError> {
        let producer = self.producer(state, place)?;
        let flushed = producer.flush(DELIVERY_MAX);
        match (producer.context().take_failure(), flushed) {
            (None, Ok(())) => Ok(()),
            (Some((of, error)), _) if of != place && of < state.sinks.len() => {
                state.sinks[of].trouble = Some(Trouble::Failed(error));
                Err(self.aborted(place))
            }
            (Some((_, error)), _) | (None, Err(error)) => Err(self.failed(state, place, error)),
        }
    }

    /// Puts the offsets of all partitions that were moved into the transaction.
    fn send_offsets(&self, state: &mut State, place: usize) -> Result<(), SinkError> {
        let moved: BTreeSet<PositionKey> = state
            .sinks
            .iter()
            .flat_map(|sink| sink.positions.accepted().iter().map(|step| step.key))
            .collect();
        let State { places, sinks, .. } = &mut *state;
        let mut held = Vec::new();
        for key in &moved {
            let Some(known) = places.get_mut(key) else {
                return Err(self.transient(place, "a partition was not looked at since it was given"));
            };
            known.advance(key, sinks, self.start.as_ref());
            held.push((known.source.clone(), known.number));
        }
        let told = moved.iter().filter_map(|key| places.get(key));
        let list = offsets::list(told).map_err(|error| self.unstorable(place, error))?;
        let Some(fence) = self.member.fence(&held) else {
            return Err(self.transient(place, "the group has given partitions to other members meanwhile"));
        };
        let producer = self.producer(state, place)?;
        let deadline = Instant::now() + END_MAX;
        loop {
            match producer.send_offsets_to_transaction(&list, &fence, CALL_MAX) {
                Ok(()) => return Ok(()),
                Err(error) if next(&error, Instant::now() >= deadline) == Next::Again => {}
                Err(error) => return Err(self.failed(state, place, error)),
            }
        }
    }

    /// Ends it. When that cannot be said to have failed, its producer is gone afterwards.
    fn end(&self, state: &mut State, place: usize) -> Result<(), SinkError> {
        let producer = self.producer(state, place)?;
        let deadline = Instant::now() + END_MAX;
        loop {
            let Err(error) = producer.commit_transaction(CALL_MAX) else {
                state.is_open = false;
                return Ok(());
            };
            match next(&error, Instant::now() >= deadline) {
                Next::Again => {}
                Next::Abort => return Err(self.failed(state, place, error)),
                Next::Renew => {
                    state.producer = None;
                    state.is_open = false;
                    return Err(self.failed(state, place, error));
                }
            }
        }
    }

    /// After a failure: all of it is let go, and the offsets have to be read.
    fn fail(&self, state: &mut State, place: usize) {
        self.let_go(state, place);
        state.is_unsure = true;
    }

    /// Aborts what is open. Siblings that had rows in it learn of it when they are called next.
    fn let_go(&self, state: &mut State, place: usize) {
        self.abort(state);
        state.is_spoiled = false;
        for (other, sink) in state.sinks.iter_mut().enumerate() {
            if sink.positions.accepted().is_empty() {
                continue;
            }
            sink.positions.abandon();
            if other != place {
                sink.trouble.get_or_insert(Trouble::Aborted);
            }
        }
        // What they say may be ahead of what is committed.
        state.places.clear();
    }

    /// Aborts what is open. If that cannot be done the producer goes: who has its id next does it.
    fn abort(&self, state: &mut State) {
        if !std::mem::take(&mut state.is_open) {
            return;
        }
        let Some(named) = state.producer.take() else {
            return;
        };
        let deadline = Instant::now() + END_MAX;
        loop {
            let Err(error) = named.producer.abort_transaction(CALL_MAX) else {
                named.producer.context().take_failure();
                state.producer = Some(named);
                return;
            };
            if next(&error, Instant::now() >= deadline) != Next::Again {
                info!(route = self.route, %error, "a transaction is left to the next producer of its id");
                return;
            }
        }
    }

    /// A handle to the producer, beside the state.
    fn producer(&self, state: &State, place: usize) -> Result<Producer, SinkError> {
        let named = state.producer.as_ref();
        named.map(|named| named.producer.clone()).ok_or_else(|| self.transient(place, "the producer is gone"))
    }

    fn failed(&self, state: &State, place: usize, error: KafkaError) -> SinkError {
        let what = format!("write {} with", ranges(state.sinks[place].positions.accepted()));
        explain(&self.identities[place], &what, error)
    }

    fn aborted(&self, place: usize) -> SinkError {
        self.transient(place, "the transaction was aborted for another sink of the route")
    }

    fn unread(&self, place: usize, source: Box<dyn Error + Send + Sync>) -> SinkError {
        let action = format!("read the group's offsets for sink `{}`", self.identities[place]);
        SinkError::Transient { action, hint: None, source }
    }

    fn transient(&self, place: usize, problem: impl Into<String>) -> SinkError {
        let action = format!("write with sink `{}`", self.identities[place]);
        let problem: String = problem.into();
        SinkError::Transient { action, hint: None, source: problem.into() }
    }

    fn unstorable(&self, place: usize, error: Box<dyn Error + Send + Sync>) -> SinkError {
        let identity = &self.identities[place];
        let action = format!("store the positions of sink `{identity}` beside the group's offsets");
        SinkError::stop(action, "drop what sinks that are gone have left: `sidestream offsets forget`", error)
    }
}

#[cfg(test)]
mod tests;
