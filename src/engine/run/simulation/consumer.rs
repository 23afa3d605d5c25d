//! A consumer without brokers: it brings chunks little by little, gives and takes partitions, and answers commits.

use super::*;
use crate::kafka::{Commit, Outlet, Verdict};
use crate::model::{Chunk, ChunkBuilder, Incoming, TimestampType};

/// Between two turns of a consumer.
const PACE: Duration = Duration::from_millis(2);

/// A partition that is fetched.
struct Slot {
    number: u64,
    next: i64,
    outlets: Vec<usize>,
    /// What an outlet had no room for.
    waiting: Vec<(usize, Chunk)>,
}

#[derive(Default)]
struct Consumer {
    is_member: bool,
    outlets: BTreeMap<usize, Box<dyn Outlet>>,
    slots: BTreeMap<TopicPartition, Slot>,
    owned: BTreeSet<TopicPartition>,
    /// The group waits until these are given up.
    is_awaited: bool,
    /// What the group gives it next.
    to_give: Vec<TopicPartition>,
    is_closed: bool,
}

impl Consumer {
    /// Fetches a little; what happens to a member of the group meanwhile.
    fn turn(&mut self, world: &World) -> Option<Event> {
        for (source, slot) in &mut self.slots {
            for (number, chunk) in std::mem::take(&mut slot.waiting) {
                if let Some(Err(chunk)) = self.outlets.get(&number).map(|outlet| outlet.offer(chunk)) {
                    slot.waiting.push((number, chunk));
                }
            }
            if slot.waiting.is_empty() && slot.next < RECORDS && world.roll(3) > 0 {
                let to = (slot.next + 1 + world.roll(7) as i64).min(RECORDS);
                let chunk = chunk(source, slot.number, slot.next, to);
                slot.next = to;
                slot.waiting.extend(slot.outlets.iter().map(|number| (*number, chunk.share(None))));
            }
        }
        if !self.is_member || self.is_awaited {
            return None;
        }
        if !self.to_give.is_empty() {
            let given = std::mem::take(&mut self.to_give);
            self.owned.extend(given.iter().cloned());
            return Some(Event::Assigned(given));
        }
        if world.fails(150) {
            return self.revoke(world);
        }
        if world.fails(100) {
            return self.hold(world);
        }
        world.fails(200).then(|| Event::Failed {
            source: None,
            offset: None,
            message: "a broker is away".to_owned(),
            verdict: Verdict::Passing,
        })
    }

    fn any_owned(&self, world: &World) -> Option<TopicPartition> {
        let place = world.roll(self.owned.len().max(1) as u64);
        self.owned.iter().nth(usize::try_from(place).unwrap()).cloned()
    }

    /// The group takes a partition away, and gives it back once it is given up.
    fn revoke(&mut self, world: &World) -> Option<Event> {
        let source = self.any_owned(world)?;
        let is_lost = world.roll(4) == 0;
        if is_lost {
            self.owned.remove(&source);
        }
        self.is_awaited = true;
        Some(Event::Revoked { partitions: vec![source], is_lost })
    }

    /// A lane has held a partition up.
    fn hold(&self, world: &World) -> Option<Event> {
        let source = self.any_owned(world)?;
        let lane = usize::try_from(world.roll(2)).unwrap();
        Some(Event::Held(vec![(source, vec![lane])]))
    }

    fn commit(&self, world: &World, commits: Vec<Commit>) -> Result<(), String> {
        if world.fails(8) {
            return Err("it never arrives".to_owned());
        }
        let mut result = Ok(());
        let mut committed = world.committed.lock().unwrap();
        for Commit { source, next, metadata, .. } in commits {
            if !self.owned.contains(&source) {
                result = Err("a partition of somebody else's".to_owned());
                continue;
            }
            let before = committed.insert(source.clone(), (next, metadata));
            let is_back = before.is_some_and(|(before, _)| before > next);
            world.expect(!is_back, || format!("the commit of {source} went back to {next}"));
        }
        drop(committed);
        if world.fails(8) { Err("the reply is lost".to_owned()) } else { result }
    }

    fn obey(&mut self, world: &World, command: Command) -> Option<Event> {
        match command {
            Command::Connect(outlets) => self.outlets.extend(outlets),
            Command::Subscribe(_) => self.to_give = sources(),
            Command::Assign(assignments) => {
                for assignment in assignments {
                    let slot = Slot {
                        number: assignment.number,
                        next: assignment.from.get(),
                        outlets: assignment.outlets,
                        waiting: Vec::new(),
                    };
                    self.slots.insert(assignment.source, slot);
                }
            }
            Command::Unassign(partitions) => partitions.iter().for_each(|source| {
                self.slots.remove(source);
            }),
            Command::Detach { source, outlet } => {
                if let Some(slot) = self.slots.get_mut(&source) {
                    slot.outlets.retain(|number| *number != outlet);
                    slot.waiting.retain(|(number, _)| *number != outlet);
                }
            }
            Command::Release(partitions) => {
                for source in &partitions {
                    self.slots.remove(source);
                    self.owned.remove(source);
                }
                self.is_awaited = false;
                self.to_give.extend(partitions);
            }
            Command::Commit(commits) => return Some(Event::Committed(self.commit(world, commits))),
            Command::Close => {
                self.is_closed = true;
                return Some(Event::Closed);
            }
        }
        None
    }
}

fn chunk(source: &TopicPartition, number: u64, from: i64, to: i64) -> Chunk {
    let mut builder = ChunkBuilder::new(source.clone(), number, at(from));
    for offset in from..to {
        let value = if is_bad(offset) { "x{".to_owned() } else { id(source.partition.0, offset).to_string() };
        let incoming = Incoming {
            offset: at(offset),
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: None,
            value: Some(value.as_bytes()),
        };
        builder.push(incoming, std::iter::empty());
    }
    builder.finish(at(to))
}

/// A consumer with its thread.
pub struct Fake {
    world: Arc<World>,
    consumer: Arc<Mutex<Consumer>>,
    event_tx: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// Ends with it.
    _turns: JoinSet<()>,
}

impl Fake {
    pub fn start(world: &Arc<World>, is_member: bool) -> Self {
        let consumer = Arc::new(Mutex::new(Consumer { is_member, ..Consumer::default() }));
        let (event_tx, events) = mpsc::channel(1024);
        let mut turns = JoinSet::new();
        turns.spawn(turn(world.clone(), consumer.clone(), event_tx.clone()));
        Self { world: world.clone(), consumer, event_tx, events, _turns: turns }
    }
}

async fn turn(world: Arc<World>, consumer: Arc<Mutex<Consumer>>, events: mpsc::Sender<Event>) {
    loop {
        tokio::time::sleep(PACE).await;
        let event = {
            let mut consumer = consumer.lock().unwrap();
            if consumer.is_closed {
                return;
            }
            consumer.turn(&world)
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return;
        }
    }
}

#[async_trait]
impl Source for Fake {
    async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    fn send(&self, command: Command) -> Result<(), SourceError> {
        let event = self.consumer.lock().unwrap().obey(&self.world, command);
        match event {
            Some(event) => self.event_tx.try_send(event).map_err(|_| SourceError::Ended),
            None => Ok(()),
        }
    }
}

/// Consumers for what is behind.
pub struct Readers(pub Arc<World>);

impl Sources for Readers {
    fn start(&self) -> Result<Box<dyn Source>, SourceError> {
        if self.0.fails(5) {
            return Err(SourceError::Ended);
        }
        Ok(Box::new(Fake::start(&self.0, false)))
    }
}
