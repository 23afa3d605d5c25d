//! The loop among scripts: brokers that answer as a test wants, a source that says what it is told to, and lanes whose
//! schema never comes.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::*;
use crate::config::{Environment, read};
use crate::engine::lane::LaneParts;
use crate::kafka::TopicInfo;
use crate::model::{ClusterId, Partition, Start};

/// Longer than anything takes here.
const DEADLINE: Duration = Duration::from_secs(30);

/// How often the board is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Brokers {
    names: Mutex<BTreeSet<TopicName>>,
    has_offsets: AtomicBool,
}

impl Brokers {
    fn set_names(&self, names: &[&str]) {
        *self.names.lock().unwrap() = names.iter().map(|name| TopicName::new(name)).collect();
    }
}

#[async_trait]
impl Cluster for Brokers {
    async fn id(&self) -> Result<ClusterId, ClusterError> {
        Ok(ClusterId("c".to_owned()))
    }

    async fn member_count(&self) -> Result<usize, ClusterError> {
        Ok(1)
    }

    async fn names(&self) -> Result<BTreeSet<TopicName>, ClusterError> {
        Ok(self.names.lock().unwrap().clone())
    }

    async fn describe(
        &self,
        _: &BTreeSet<TopicName>,
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, ClusterError>>, ClusterError> {
        Ok(BTreeMap::new())
    }

    async fn resolve(
        &self,
        _: &[(TopicPartition, &Start)],
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClusterError> {
        Ok(BTreeMap::new())
    }

    async fn bounds(
        &self,
        _: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, Offset)>, ClusterError> {
        Ok(BTreeMap::new())
    }

    async fn committed(
        &self,
        _: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, ClusterError> {
        if self.has_offsets.load(Ordering::SeqCst) {
            return Ok(BTreeMap::new());
        }
        Err(ClusterError::Answer { what: "committed offsets", problem: "not now".to_owned() })
    }
}

/// A source that takes every command, and is closed when it is told to.
struct Scripted {
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
}

#[async_trait]
impl Source for Scripted {
    async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    fn send(&self, command: Command) -> Result<(), SourceError> {
        if matches!(command, Command::Close) {
            self.sender.try_send(Event::Closed).map_err(|_| SourceError::Ended)?;
        }
        Ok(())
    }
}

struct NoSources;

impl Sources for NoSources {
    fn start(&self) -> Result<Box<dyn Source>, SourceError> {
        Err(SourceError::Ended)
    }
}

struct NothingReady;

#[async_trait]
impl LaneFactory for NothingReady {
    async fn parts(&self, _: &Route) -> Result<LaneParts, Stop> {
        std::future::pending().await
    }
}

/// An engine of these routes, whose group gives it these partitions.
fn parts(
    routes: &str,
    brokers: &Arc<Brokers>,
    board: &Arc<Board>,
    given: Vec<TopicPartition>,
) -> EngineParts {
    let text = format!("version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nroutes:\n{routes}");
    let plan = read(&text, &Environment::new([], Path::new("."))).unwrap();
    let (sender, events) = mpsc::channel(16);
    sender.try_send(Event::Assigned(given)).unwrap();
    EngineParts {
        source: Box::new(Scripted { events, sender }),
        catch_up: Box::new(NoSources),
        cluster: brokers.clone(),
        routes: plan.routes,
        others: Vec::new(),
        factory: Arc::new(NothingReady),
        budget: Budget::new(1 << 20),
        names: brokers.names.lock().unwrap().clone(),
        ran_before: BTreeSet::new(),
        topic_refresh: REFRESH_MIN,
        until: None,
        watcher: None,
        board: board.clone(),
    }
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        while !is_so() {
            tick.tick().await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "it never happens: {what}");
}

/// Runs an engine while `watch` looks at it.
async fn run_while(parts: EngineParts, watch: impl Future<Output = ()>) {
    let shutdown = CancellationToken::new();
    let work = Box::pin(run(parts, shutdown.clone()));
    let watched = async {
        watch.await;
        shutdown.cancel();
    };
    let ((_, result), ()) = tokio::join!(work, watched);
    result.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_back_is_on_the_board_with_its_cause() {
    let (brokers, board) = (Arc::<Brokers>::default(), Board::new("g"));
    let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
    let routes = "  r: {topics: [t], value: string, sinks: {f: {jsonl: {path: out}}}}\n";
    let parts = parts(routes, &brokers, &board, vec![source.clone()]);
    let waits_for = |reason: &str, counts: [usize; 3]| {
        let view = board.view();
        let mut held = view.lanes.iter().flat_map(|lane| &lane.held_back);
        view.engine.held_back == counts
            && held.any(|held| held.source == source && held.reason.contains(reason))
    };
    let watch = async {
        eventually("its offsets cannot be read", || waits_for("could not be read: ", [1, 0, 0])).await;
        assert!(board.view().lanes[0].held_back[0].hint.is_some());
        brokers.has_offsets.store(true, Ordering::SeqCst);
        eventually("its route does not answer", || waits_for("the route has not said", [0, 1, 0])).await;
    };
    run_while(parts, watch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lane_of_a_topic_that_is_gone_ends_and_another_one_begins_when_it_is_back() {
    let (brokers, board) = (Arc::<Brokers>::default(), Board::new("g"));
    brokers.set_names(&["a.x", "a.y"]);
    let routes = "  each: {topics: {pattern: 'a\\..*'}, per_topic: true, value: bytes, \
                  sinks: {f: {csv: {path: 'o/{topic}'}}}}\n";
    let parts = parts(routes, &brokers, &board, Vec::new());
    let lanes = || {
        let lanes = board.view().lanes.into_iter().map(|lane| lane.route);
        lanes.collect::<BTreeSet<String>>()
    };
    let both = BTreeSet::from(["each/a.x".to_owned(), "each/a.y".to_owned()]);
    let watch = async {
        eventually("each topic has a lane", || lanes() == both).await;
        brokers.set_names(&["a.y"]);
        eventually("one lane is left", || lanes() == BTreeSet::from(["each/a.y".to_owned()])).await;
        brokers.set_names(&["a.x", "a.y"]);
        eventually("the topic has a lane again", || lanes() == both).await;
    };
    run_while(parts, watch).await;
}
