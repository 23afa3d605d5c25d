//! What the source could not read, and what is tried again.

use super::*;

/// The consumer says only where it failed; the route says what is gone, unless nothing is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_deleted_under_a_running_lane_are_named() {
    for (first, said) in [(4, "offsets 0 to 4 are lost"), (0, "offset 0: out of range")] {
        let world = World { left: Some((at(first), at(VALUES.len()))), ..World::new(&VALUES) };
        let stop = world.run().await.expect("it stops");
        assert!(stop.message.contains(said), "{}", stop.message);
        assert!(world.main.lock().unwrap().rows.is_empty());
    }
}

/// What the source could read before it failed is durable before the lane stops, although no batch was due; also if a
/// sink fails then, and all of it has to be read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_an_unreadable_batch_is_durable_before_the_lane_stops() {
    for outcome in [Outcome::Done, Outcome::Failed] {
        let world = World::new(&VALUES);
        // The first one is that of the start.
        world.main.lock().unwrap().flushes = VecDeque::from([Outcome::Done, outcome]);
        let mut parts = world.parts();
        parts.limits = BatchLimits { rows_max: 1000, bytes_max: 1 << 20, age_max: Duration::from_secs(3600) };
        let (report_tx, mut reports) = mpsc::channel(64);
        let gauge = Gauge::new("r", &Budget::new(1 << 20));
        let (life, handle) = lane(LaneId(0), "r", gauge, report_tx, std::future::ready(Ok(parts)));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(life);
        let resume = || Control::Resume(BTreeMap::from([(source(), Committed::default())]));
        let seen = Seen { is_new: false, partition_count: None };
        handle.control.send(Control::Topics(BTreeMap::from([(source().topic, seen)]))).await.unwrap();
        handle.control.send(resume()).await.unwrap();
        let mut number = 0;
        let work = async {
            loop {
                let (_, report) = reports.recv().await.expect("the lane lives");
                match report {
                    Report::Ready(stands) => {
                        number += 1;
                        let from = stands[&source()].lowest(SinkSet::ALL).unwrap();
                        let front = Some(Reading { from, number, end: None });
                        world.assign(&handle, SinkSet::EMPTY, front, None).await;
                        let place = Some(Place::new(&source(), Some(at(VALUES.len()))));
                        let stop = Stop { message: "no".to_owned(), hint: None, place };
                        handle.control.send(Control::Fail(stop)).await.unwrap();
                    }
                    Report::Rewind(_) => handle.control.send(resume()).await.unwrap(),
                    Report::Stopped(stop) => return stop,
                    _ => {}
                }
            }
        };
        let stop = tokio::time::timeout(DEADLINE, work).await.expect("it stops");
        assert_eq!(stop.message, "no");
        assert_eq!(number, if outcome == Outcome::Done { 1 } else { 2 });
        assert_eq!(world.main.lock().unwrap().rows, world.good());
        let bad: Vec<String> = world.bad().iter().map(ToString::to_string).collect();
        assert_eq!(world.letters.lock().unwrap().rows, bad);
    }
}

/// A sink that fails whenever it is written to is tried less and less often, although it says each time where it stands:
/// so does one whose disk is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_grow_while_nothing_becomes_durable() {
    let world = World::new(&VALUES);
    world.main.lock().unwrap().writes = VecDeque::from([true; 6]);
    let begun = Instant::now();
    assert_eq!(world.run().await, None);
    let pauses: Duration = (1..=6).map(crate::engine::retry::pause).sum();
    assert!(begun.elapsed() >= pauses, "{:?}", begun.elapsed());
}
