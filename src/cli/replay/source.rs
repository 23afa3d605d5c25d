//! Dead letters of files in the place of brokers: a group of one member, whose offsets are kept beside the files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc as async_mpsc;

use crate::engine::chain;
use crate::kafka::{
    Charge, Cluster, ClusterError, Command, Event, Outlet, Source, SourceError, Sources, TopicInfo, Verdict,
};
use crate::model::{Chunk, ClusterId, Offset, Start, TopicId, TopicName, TopicPartition};

use super::reading::{Letters, Reading};

/// Commands and events that wait. Both are few: the engine takes events at once.
const WAITING_MAX: usize = 1024;

/// How often it is looked whether a lane that was full has room.
const TURN: Duration = Duration::from_millis(20);

/// What is asked of the brokers, answered for the letters of one route.
pub struct LettersCluster {
    pub letters: Arc<Letters>,
    /// The one that the route reads.
    pub id: ClusterId,
}

#[async_trait]
impl Cluster for LettersCluster {
    async fn id(&self) -> Result<ClusterId, ClusterError> {
        Ok(self.id.clone())
    }

    async fn member_count(&self) -> Result<usize, ClusterError> {
        // Others were kept out when the files were opened.
        Ok(0)
    }

    async fn names(&self) -> Result<BTreeSet<TopicName>, ClusterError> {
        Ok(BTreeSet::from([self.letters.source.topic.clone()]))
    }

    async fn describe(
        &self,
        topics: &BTreeSet<TopicName>,
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, ClusterError>>, ClusterError> {
        let each = topics.iter().map(|topic| {
            let info = match *topic == self.letters.source.topic {
                true => Ok(TopicInfo { id: TopicId(self.letters.id()), partition_count: 1 }),
                false => Err(ClusterError::NoTopic { topic: topic.clone() }),
            };
            (topic.clone(), info)
        });
        Ok(each.collect())
    }

    async fn resolve(
        &self,
        wanted: &[(TopicPartition, &Start)],
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClusterError> {
        let bounds = (Offset::ZERO, self.letters.end());
        let each = wanted.iter().map(|(source, start)| (source.clone(), start.resolve(source, bounds, None)));
        Ok(each.collect())
    }

    async fn bounds(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, Offset)>, ClusterError> {
        // Rows of files that are gone are a gap, and no loss: whoever has removed them has decided so.
        let bounds = (Offset::ZERO, self.letters.end());
        Ok(sources.iter().map(|source| (source.clone(), bounds)).collect())
    }

    async fn committed(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, ClusterError> {
        let committed = self.letters.committed();
        let own = sources.iter().filter(|source| **source == self.letters.source);
        Ok(own.filter_map(|source| Some((source.clone(), committed.clone()?))).collect())
    }
}

/// Makes sources for what is behind.
pub struct LettersSources(pub Arc<Letters>);

impl Sources for LettersSources {
    fn start(&self) -> Result<Box<dyn Source>, SourceError> {
        Ok(Box::new(LettersSource::start(self.0.clone(), false)?))
    }
}

/// The handle of a thread that reads letters.
pub struct LettersSource {
    commands: mpsc::SyncSender<Command>,
    events: async_mpsc::Receiver<Event>,
}

impl LettersSource {
    /// A member is given the partition when it subscribes.
    ///
    /// # Errors
    /// [`SourceError::Thread`]
    pub fn start(letters: Arc<Letters>, is_member: bool) -> Result<Self, SourceError> {
        let (command_tx, command_rx) = mpsc::sync_channel(WAITING_MAX);
        let (event_tx, event_rx) = async_mpsc::channel(WAITING_MAX);
        thread::Builder::new()
            .name("dead-letters".to_owned())
            .spawn(move || {
                let outlets = HashMap::new();
                Worker { letters, slot: None, outlets, is_awaited: is_member, events: event_tx }
                    .run(&command_rx);
            })
            .map_err(SourceError::Thread)?;
        Ok(Self { commands: command_tx, events: event_rx })
    }
}

#[async_trait]
impl Source for LettersSource {
    async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    fn send(&self, command: Command) -> Result<(), SourceError> {
        self.commands.send(command).map_err(|_| SourceError::Ended)
    }
}

type Outlets = HashMap<usize, Box<dyn Outlet>>;

struct Worker {
    letters: Arc<Letters>,
    slot: Option<Slot>,
    outlets: Outlets,
    /// A member that has not been given the partition yet.
    is_awaited: bool,
    /// Goes last: who sees its end finds the files free.
    events: async_mpsc::Sender<Event>,
}

/// The partition while it is fetched.
struct Slot {
    reading: Reading,
    /// Who gets the chunks.
    outlets: Vec<usize>,
    /// A chunk, and the outlets that had no room for it.
    waiting: Option<(Chunk, Vec<usize>)>,
    is_over: bool,
}

impl Slot {
    /// Is there nothing to do before a command comes, or a lane has room?
    fn waits(&self, outlets: &Outlets) -> bool {
        let is_full = |number: &usize| outlets.get(number).is_some_and(|outlet| outlet.gauge().is_full());
        self.is_over || self.waiting.is_some() || self.outlets.iter().any(is_full)
    }
}

impl Worker {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        loop {
            let waits = self.slot.as_ref().is_none_or(|slot| slot.waits(&self.outlets));
            match commands.recv_timeout(if waits { TURN } else { Duration::ZERO }) {
                Ok(Command::Close) => return self.tell(Event::Closed),
                Ok(command) => self.apply(command),
                Err(RecvTimeoutError::Timeout) => self.turn(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// If nobody listens any more, the commands have ended, too.
    fn tell(&self, event: Event) {
        self.events.blocking_send(event).ok();
    }

    /// Hands a chunk on, if there is one and room for it.
    fn turn(&mut self) {
        let Some(slot) = &mut self.slot else {
            return;
        };
        if let Some(waiting) = slot.waiting.take() {
            slot.waiting = offer(waiting, &self.outlets);
        }
        if slot.waits(&self.outlets) {
            return;
        }
        match slot.reading.next_chunk() {
            Ok(Some(chunk)) => slot.waiting = offer((chunk, slot.outlets.clone()), &self.outlets),
            Ok(None) => slot.is_over = true,
            Err(error) => {
                self.slot = None;
                self.tell(Event::Failed {
                    source: Some(self.letters.source.clone()),
                    offset: None,
                    message: chain(&error),
                    verdict: Verdict::Unreadable,
                });
            }
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Connect(outlets) => self.outlets.extend(outlets),
            Command::Subscribe(topics) => {
                if topics.contains(&self.letters.source.topic) && std::mem::take(&mut self.is_awaited) {
                    self.tell(Event::Assigned(vec![self.letters.source.clone()]));
                }
            }
            Command::Assign(assignments) => {
                let own = assignments.into_iter().find(|assignment| assignment.source == self.letters.source);
                if let Some(assignment) = own {
                    let reading = Reading::new(self.letters.clone(), assignment.number, assignment.from);
                    let outlets = assignment.outlets;
                    self.slot = Some(Slot { reading, outlets, waiting: None, is_over: false });
                }
            }
            Command::Unassign(partitions) | Command::Release(partitions) => {
                if partitions.contains(&self.letters.source) {
                    self.slot = None;
                }
            }
            Command::Detach { outlet, .. } => {
                if let Some(slot) = &mut self.slot {
                    slot.outlets.retain(|number| *number != outlet);
                    let left = slot.waiting.take().map(|(chunk, mut numbers)| {
                        numbers.retain(|number| *number != outlet);
                        (chunk, numbers)
                    });
                    slot.waiting = left.filter(|(_, numbers)| !numbers.is_empty());
                }
            }
            Command::Commit(commits) => {
                let own = commits.iter().filter(|commit| commit.source == self.letters.source);
                let mut results = own.map(|commit| self.letters.commit(commit.next, &commit.metadata));
                let result = results.try_for_each(|result| result.map_err(|error| chain(&error)));
                self.tell(Event::Committed(result));
            }
            // It ends the loop.
            Command::Close => {}
        }
    }
}

/// Offers a chunk to the outlets with these numbers; what is left if one has no room. Each lane is charged for itself.
fn offer((chunk, numbers): (Chunk, Vec<usize>), outlets: &Outlets) -> Option<(Chunk, Vec<usize>)> {
    let is_left = |number: &usize| {
        // One that is not connected has no lane: nobody waits for the chunk.
        outlets.get(number).is_some_and(|outlet| {
            let charge = Charge::new(outlet.gauge().clone(), chunk.size());
            outlet.offer(chunk.share(Some(Box::new(charge)))).is_err()
        })
    };
    let left: Vec<usize> = numbers.into_iter().filter(is_left).collect();
    (!left.is_empty()).then_some((chunk, left))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::cli::replay::reading::tests::{formats, put};
    use crate::kafka::{Assignment, Budget, Commit, Gauge};
    use crate::sink::file::Numbered;

    /// Has room for so many chunks.
    #[derive(Debug)]
    struct Narrow {
        room: Arc<Mutex<usize>>,
        taken: Arc<Mutex<Vec<Chunk>>>,
        gauge: Arc<Gauge>,
    }

    impl Outlet for Narrow {
        fn offer(&self, chunk: Chunk) -> Result<(), Chunk> {
            let mut room = self.room.lock().unwrap();
            if *room == 0 {
                return Err(chunk);
            }
            *room -= 1;
            self.taken.lock().unwrap().push(chunk);
            Ok(())
        }

        fn gauge(&self) -> &Arc<Gauge> {
            &self.gauge
        }
    }

    fn open(root: &Path) -> Arc<Letters> {
        Arc::new(Letters::new("r/dead_letter/q", Numbered::open(root).unwrap().unwrap()))
    }

    fn at(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    /// Waits until `taken` has as many records as are expected.
    async fn wait(taken: &Mutex<Vec<Chunk>>, expected: usize) {
        let count = || taken.lock().unwrap().iter().map(Chunk::record_count).sum::<usize>();
        while count() < expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(count(), expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_gives_the_partition_once_reads_where_there_is_room_and_keeps_what_is_committed() {
        let root = tempfile::tempdir().unwrap();
        for (format, from) in formats().into_iter().zip([0, 10, 20]) {
            put(root.path(), format, from, from + 10).await;
        }
        let letters = open(root.path());
        let (partition, topic) = (letters.source.clone(), letters.source.topic.clone());
        let mut source = LettersSource::start(letters.clone(), true).unwrap();
        source.send(Command::Subscribe(vec![topic.clone()])).unwrap();
        source.send(Command::Subscribe(vec![topic])).unwrap();
        let Some(Event::Assigned(given)) = source.next().await else { panic!() };
        assert_eq!(given, std::slice::from_ref(&partition));

        let (room, taken) = (Arc::new(Mutex::new(0)), Arc::<Mutex<Vec<Chunk>>>::default());
        let gauge = Gauge::new("r", &Budget::new(1 << 20));
        let outlet = Narrow { room: room.clone(), taken: taken.clone(), gauge: gauge.clone() };
        source.send(Command::Connect(vec![(7, Box::new(outlet) as Box<dyn Outlet>)])).unwrap();
        let assign = |from, number| {
            let (source, outlets) = (partition.clone(), vec![7]);
            Command::Assign(vec![Assignment { source, from: at(from), number, outlets }])
        };
        source.send(assign(4, 1)).unwrap();
        *room.lock().unwrap() = 100;
        wait(&taken, 26).await;
        assert!(gauge.used() > 0);
        // Read again from elsewhere, under another number.
        taken.lock().unwrap().clear();
        assert_eq!(gauge.used(), 0);
        source.send(assign(25, 2)).unwrap();
        wait(&taken, 5).await;
        assert!(taken.lock().unwrap().iter().all(|chunk| chunk.assignment == 2));
        assert_eq!(taken.lock().unwrap().last().unwrap().end.get(), 30);

        let commit =
            Commit { source: partition.clone(), next: at(30), epoch: None, metadata: "ss1".to_owned() };
        source.send(Command::Commit(vec![commit])).unwrap();
        let Some(Event::Committed(Ok(()))) = source.next().await else { panic!() };
        source.send(Command::Close).unwrap();
        assert!(matches!(source.next().await, Some(Event::Closed)));
        assert!(source.next().await.is_none());
        drop((source, letters));
        let cluster = LettersCluster { letters: open(root.path()), id: ClusterId("c".to_owned()) };
        let committed = cluster.committed(std::slice::from_ref(&partition)).await.unwrap();
        assert_eq!(committed[&partition], (at(30), "ss1".to_owned()));
        let bounds = cluster.bounds(std::slice::from_ref(&partition)).await.unwrap();
        assert_eq!(bounds[&partition], (at(0), at(30)));
        let described = cluster.describe(&BTreeSet::from([TopicName::new("orders")])).await.unwrap();
        assert!(described.values().all(Result::is_err));
    }
}
