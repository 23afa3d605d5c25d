//! Sinks side by side, and those that their route goes on without.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Barrier;

use super::*;
use crate::sink::Background;

/// A sink that is away while it is told to be, and meets others when it is written to.
struct Outer {
    inner: Scripted,
    is_away: Arc<AtomicBool>,
    /// Each batch with rows is written when another sink writes too.
    meets: Option<Arc<Barrier>>,
    /// Writes of batches with rows: begun, and ended.
    writes: Arc<[AtomicUsize; 2]>,
}

impl Outer {
    fn new(target: &Arc<Mutex<Target>>) -> Self {
        let inner = Scripted {
            target: target.clone(),
            before: None,
            column: "value",
            moves: Vec::new(),
            rows: Vec::new(),
            since: None,
        };
        Self { inner, is_away: Arc::default(), meets: None, writes: Arc::default() }
    }

    fn check(&self) -> Result<(), SinkError> {
        if self.is_away.load(Ordering::Relaxed) { Err(away()) } else { Ok(()) }
    }
}

#[async_trait]
impl Sink for Outer {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        self.check()?;
        self.inner.positions().await
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let has_rows = batch.rows.num_rows() > 0;
        if has_rows {
            self.writes[0].fetch_add(1, Ordering::Relaxed);
            if let Some(meets) = &self.meets {
                meets.wait().await;
            }
        }
        self.check()?;
        let written = self.inner.write(batch).await;
        // Whoever has failed by now must not end this.
        tokio::task::yield_now().await;
        if has_rows {
            self.writes[1].fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    fn flush_due(&self) -> Option<Instant> {
        self.inner.flush_due()
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        self.check()?;
        self.inner.flush().await
    }

    async fn abandon(&mut self) {
        self.inner.abandon().await;
    }

    fn settled(&self) -> Settled {
        self.inner.settled()
    }

    fn store(&self) -> Store {
        Store::Own
    }

    fn restore(&mut self, _: PositionKey, _: &TopicName, _: Position) {}
}

fn lane_sink(name: &str, is_required: bool, sink: Box<dyn Sink>) -> LaneSink {
    LaneSink {
        name: name.to_owned(),
        identity: format!("r/{name}"),
        feed: Feed::Fields,
        record_type: 0,
        start: None,
        rows: Arc::new(arrow::datatypes::Schema::empty()),
        sink,
        is_required,
        former: Settled::default(),
    }
}

fn stands(target: &Arc<Mutex<Target>>) -> usize {
    let next = target.lock().unwrap().positions.get(&key()).map_or(0, |position| position.next.get());
    usize::try_from(next).unwrap()
}

/// Two sinks, each of which writes a batch only when the other one does too: one after the other they would never end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_of_a_batch_write_at_the_same_time() {
    let world = World::new(&["0", "1", "2", "3", "4", "5", "6"]);
    let barrier = Arc::new(Barrier::new(2));
    let mut parts = world.parts();
    let targets = [&world.main, &world.letters];
    parts.sinks = targets
        .iter()
        .map(|target| {
            let sink = Outer { meets: Some(barrier.clone()), ..Outer::new(target) };
            lane_sink("s", true, Box::new(sink))
        })
        .collect();
    assert_eq!(world.run_parts(parts, || (SinkSet::EMPTY, false)).await, None);
    for target in targets {
        assert_eq!(target.lock().unwrap().rows, world.values);
    }
}

/// A sink whose writes lock what another one writes to, until it is flushed: as transactions on one table do.
struct Locking {
    inner: Scripted,
    lock: Arc<tokio::sync::Mutex<()>>,
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
}

#[async_trait]
impl Sink for Locking {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        self.inner.positions().await
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if self.held.is_none() {
            self.held = Some(self.lock.clone().lock_owned().await);
        }
        self.inner.write(batch).await
    }

    fn flush_due(&self) -> Option<Instant> {
        self.inner.flush_due()
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        let flushed = self.inner.flush().await;
        self.held = None;
        flushed
    }

    async fn abandon(&mut self) {
        self.held = None;
        self.inner.abandon().await;
    }

    fn settled(&self) -> Settled {
        self.inner.settled()
    }

    fn store(&self) -> Store {
        Store::Own
    }

    fn restore(&mut self, _: PositionKey, _: &TopicName, _: Position) {}

    fn holds_locks(&self) -> bool {
        true
    }
}

/// Two sinks of a batch that lock the same rows: each is flushed at once, or the second would wait for ever. What they
/// fail with then is told when the batch is counted, and nothing is lost, doubled, or counted twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_that_lock_one_another_out_are_flushed_at_once() {
    for outcome in [Outcome::Done, Outcome::Failed, Outcome::Lost] {
        let world = World::new(&["0", "1", "2", "3", "4", "5", "6"]);
        // The first one is that of the start.
        world.main.lock().unwrap().flushes = VecDeque::from([Outcome::Done, outcome]);
        let lock: Arc<tokio::sync::Mutex<()>> = Arc::default();
        let mut parts = world.parts();
        let targets = [&world.main, &world.letters];
        parts.sinks = targets
            .iter()
            .map(|target| {
                let Outer { inner, .. } = Outer::new(target);
                lane_sink("s", true, Box::new(Locking { inner, lock: lock.clone(), held: None }))
            })
            .collect();
        assert_eq!(world.run_parts(parts, || (SinkSet::EMPTY, false)).await, None);
        for target in targets {
            assert_eq!(target.lock().unwrap().rows, world.values, "{outcome:?}");
        }
        let counts = world.counts.lock().unwrap().clone();
        assert_eq!((counts.settled, counts.in_flight), (7, 0), "{outcome:?}");
    }
}

/// A sink that locks is not flushed before the dead letters of its batch (asserted in the sink).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_locks_waits_for_dead_letters() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..20 {
        runs.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let world = World::failing(&mut random, 4);
            let mut parts = world.parts();
            let before = Some((world.letters.clone(), world.bad()));
            let inner = Scripted { before, ..Outer::new(&world.main).inner };
            parts.sinks[0].sink = Box::new(Locking { inner, lock: Arc::default(), held: None });
            let stop = world.run_parts(parts, || (SinkSet::EMPTY, false)).await;
            assert_eq!(stop, None, "seed {seed}");
            world.assert_settled_once(seed);
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

/// A write that fails lets those of the other sinks end; what they have is not written to them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_cuts_no_other_off() {
    let world = World::new(&["0", "1", "2", "3", "4", "5", "6"]);
    let mut parts = world.parts();
    // The first one is that of the start.
    world.main.lock().unwrap().writes = VecDeque::from([false, true, false, true]);
    let other = Outer::new(&world.letters);
    let writes = other.writes.clone();
    parts.sinks = vec![
        lane_sink("fails", true, Box::new(Outer::new(&world.main))),
        lane_sink("works", true, Box::new(other)),
    ];
    assert_eq!(world.run_parts(parts, || (SinkSet::EMPTY, false)).await, None);
    for target in [&world.main, &world.letters] {
        assert_eq!(target.lock().unwrap().rows, world.values);
    }
    let [begun, ended] = [0, 1].map(|at| writes[at].load(Ordering::Relaxed));
    assert_eq!(begun, ended);
}

/// A lane whose third sink is not required, and an engine that reads for it what it asks for.
struct Service {
    world: World,
    extra: Arc<Mutex<Target>>,
    is_away: Arc<AtomicBool>,
    is_background: bool,
}

impl Service {
    fn new(is_background: bool) -> Self {
        let world = World::new(&VALUES);
        Self { world, extra: Arc::default(), is_away: Arc::default(), is_background }
    }

    fn parts(&self) -> LaneParts {
        let mut parts = self.world.parts();
        let sink = Outer { is_away: self.is_away.clone(), ..Outer::new(&self.extra) };
        let mut sink: Box<dyn Sink> = Box::new(sink);
        if self.is_background {
            sink = Box::new(Background::new(sink));
        }
        parts.sinks.push(lane_sink("extra", false, sink));
        parts
    }

    /// Runs a lane until `is_over`, which is told at every turn what may be committed; everything is drained then.
    async fn run(&self, mut is_over: impl FnMut(Offset) -> bool) {
        let (report_tx, mut reports) = mpsc::channel(64);
        let gauge = Gauge::new("r", &Budget::new(1 << 20));
        let parts = std::future::ready(Ok(self.parts()));
        let (life, handle) = lane(LaneId(0), "r", gauge, report_tx, parts);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(life);
        let resume = || Control::Resume(BTreeMap::from([(source(), Committed::default())]));
        let seen = Seen { is_new: false, partition_count: None };
        handle.control.send(Control::Topics(BTreeMap::from([(source().topic, seen)]))).await.unwrap();
        handle.control.send(resume()).await.unwrap();
        let (mut number, mut apart, mut committed) = (0, SinkSet::EMPTY, Offset::ZERO);
        let board = handle.board.clone();
        let work = async {
            while !is_over(committed) {
                self.world.look(&board);
                let Ok(report) = tokio::time::timeout(LOOK_INTERVAL, reports.recv()).await else {
                    continue;
                };
                let (stands, is_front) = match report.expect("the lane lives").1 {
                    Report::Ready(stands) => (stands, true),
                    Report::CatchUp(stands) => (stands, false),
                    Report::Rewind(_) => {
                        handle.control.send(resume()).await.unwrap();
                        continue;
                    }
                    Report::Progress(durable) => {
                        committed = durable.get(&source()).map_or(committed, |durable| durable.next);
                        continue;
                    }
                    Report::Stopped(stop) => panic!("it stopped: {stop:?}"),
                    _ => continue,
                };
                let stand = &stands[&source()];
                apart = stand.apart(if is_front { SinkSet::EMPTY } else { apart });
                let mut next = |sinks| {
                    number += 1;
                    Some(Reading { from: stand.lowest(sinks)?, number, end: None })
                };
                let front = if is_front { next(SinkSet::ALL.minus(apart)) } else { None };
                let catch_up = next(apart);
                if front.is_some() || catch_up.is_some() {
                    self.world.assign(&handle, apart, front, catch_up).await;
                }
            }
        };
        if tokio::time::timeout(DEADLINE, work).await.is_err() {
            panic!("the lane does not get there: {:?} {:?}", self.extra, self.world.counts);
        }
        handle.control.send(Control::Drain).await.unwrap();
        let wait = async { while reports.recv().await.is_some() {} };
        let ended = async { tasks.join_next().await };
        let (_, ended) = tokio::time::timeout(DEADLINE, async { tokio::join!(wait, ended) }).await.unwrap();
        ended.unwrap().expect("the lane has not failed");
    }

    fn end(&self) -> usize {
        self.world.values.len()
    }

    /// All of them have everything, once.
    fn assert_whole(&self) {
        assert_eq!(self.extra.lock().unwrap().rows, self.world.good());
        assert_eq!(self.world.main.lock().unwrap().rows, self.world.good());
        let bad: Vec<String> = self.world.bad().iter().map(ToString::to_string).collect();
        assert_eq!(self.world.letters.lock().unwrap().rows, bad);
    }
}

/// The others and the group go on; when the sink is back it has what it missed, and nothing twice. It may be away from
/// the beginning, when nobody knows whether it was ever here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_goes_on_without_a_sink_that_catches_up_later() {
    for (is_background, after) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let service = Service::new(is_background);
        service.is_away.store(after == 0, Ordering::Relaxed);
        let mut was_away = false;
        service
            .run(|committed| {
                if !was_away && stands(&service.world.main) >= after {
                    service.is_away.store(true, Ordering::Relaxed);
                }
                if committed == at(service.end()) {
                    was_away = true;
                    service.is_away.store(false, Ordering::Relaxed);
                }
                was_away && stands(&service.extra) == service.end()
            })
            .await;
        service.assert_whole();
    }
}

/// What it missed when the program ended it has after the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_is_behind_at_the_start_catches_up() {
    for is_background in [false, true] {
        let service = Service::new(is_background);
        // It takes its start, and nothing else.
        service.extra.lock().unwrap().writes = VecDeque::from([false, true]);
        service
            .run(|committed| {
                let has_begun = service.extra.lock().unwrap().positions.get(&key()).is_some();
                if has_begun && service.extra.lock().unwrap().writes.is_empty() {
                    service.is_away.store(true, Ordering::Relaxed);
                }
                committed == at(service.end())
            })
            .await;
        assert_eq!(service.world.main.lock().unwrap().rows, service.world.good());
        service.is_away.store(false, Ordering::Relaxed);
        let service = Service { world: World { counts: Mutex::default(), ..service.world }, ..service };
        service.run(|_| stands(&service.extra) == service.end()).await;
        service.assert_whole();
    }
}

/// Calls that fail at random, before or after the deed: nothing is lost, nothing is doubled, and the route never stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_fails_at_random_loses_and_doubles_nothing() {
    for seed in 0..30 {
        let service = Service {
            world: World::failing(&mut fastrand::Rng::with_seed(seed), 3),
            ..Service::new(seed % 2 == 0)
        };
        let mut random = fastrand::Rng::with_seed(seed);
        {
            let mut extra = service.extra.lock().unwrap();
            extra.writes = (0..6).map(|_| random.u8(..3) == 0).collect();
            let outcomes = [Outcome::Done, Outcome::Failed, Outcome::Lost];
            extra.flushes = (0..6).map(|_| outcomes[random.usize(..3)]).collect();
        }
        let is_over = |committed| committed == at(service.end()) && stands(&service.extra) == service.end();
        service.run(is_over).await;
        service.assert_whole();
    }
}

/// The record that it refuses is found in what is read for it alone, and the others have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_it_refuses_is_let_go_by_it_alone() {
    for (is_late, is_background) in [(false, false), (true, false), (true, true)] {
        let service = Service::new(is_background);
        let service = Service { world: World { refused_rows: BadRecords::Skip, ..service.world }, ..service };
        {
            let mut extra = service.extra.lock().unwrap();
            (extra.refused, extra.is_late) = (Some("4".to_owned()), is_late);
        }
        service.run(|_| service.world.is_done() && stands(&service.extra) == service.end()).await;
        assert_eq!(service.world.main.lock().unwrap().rows, service.world.good());
        let taken: Vec<&str> = service.world.good().into_iter().filter(|value| *value != "4").collect();
        assert_eq!(service.extra.lock().unwrap().rows, taken);
    }
}
