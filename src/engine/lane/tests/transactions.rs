//! Sinks of one transaction: rows and dead letters are in sight together or not at all, also of records that a sink
//! refuses.

use super::*;
use crate::model::code;

/// Why a sink's rows went although it had taken them.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Aborted,
    Refused,
}

/// What is staged by each sink, and what each was not told yet.
#[derive(Default)]
struct Open {
    staged: [(Vec<Move>, Vec<String>); 2],
    trouble: [Option<Trouble>; 2],
    /// Transactions that were committed.
    count: usize,
}

impl Open {
    /// Drops what is staged; others than `place` are told.
    fn abort(&mut self, place: usize) {
        for (other, (moves, rows)) in self.staged.iter_mut().enumerate() {
            if !moves.is_empty() && other != place {
                self.trouble[other].get_or_insert(Trouble::Aborted);
            }
            moves.clear();
            rows.clear();
        }
    }
}

/// A sink's part in it. Positions and failures are those of its target.
struct Seat {
    place: usize,
    open: Arc<Mutex<Open>>,
    targets: [Arc<Mutex<Target>>; 2],
    /// Offsets that are among the dead letters whenever the rows are past them.
    before: Vec<usize>,
    since: Option<Instant>,
}

impl Seat {
    fn target(&self) -> MutexGuard<'_, Target> {
        self.targets[self.place].lock().unwrap()
    }

    fn commit(&self, open: &mut Open) -> Result<(), SinkError> {
        for place in [0, 1] {
            let refused = self.targets[place].lock().unwrap().check(&open.staged[place].1, true);
            if let Err(refused) = refused {
                open.abort(self.place);
                open.trouble[place] = Some(Trouble::Refused).filter(|_| place != self.place);
                return Err(if place == self.place { refused } else { away() });
            }
        }
        for (target, (moves, rows)) in self.targets.iter().zip(&mut open.staged) {
            let mut target = target.lock().unwrap();
            target.positions.apply(moves).map_err(SinkError::Conflict)?;
            target.rows.append(rows);
            moves.clear();
        }
        open.count += 1;
        let [main, letters] = self.targets.each_ref().map(|target| target.lock().unwrap());
        let next = main.positions.get(&key()).map_or(Offset::ZERO, |position| position.next);
        for passed in self.before.iter().filter(|offset| at(**offset) < next) {
            let count = letters.rows.iter().filter(|row| **row == passed.to_string()).count();
            assert_eq!(count, 1, "letters of {passed} where the rows are past it");
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for Seat {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        Ok(self.target().positions.clone())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let mut open = self.open.lock().unwrap();
        if open.trouble[self.place].is_some() || self.target().writes.pop_front().unwrap_or_default() {
            return Err(away());
        }
        let rows = texts(batch, ["value", "source_offset"][self.place]);
        self.target().check(&rows, false)?;
        let (moves, staged) = &mut open.staged[self.place];
        moves.extend(batch.moves.iter().cloned());
        staged.extend(rows);
        drop(open);
        self.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        self.since
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        let mut open = self.open.lock().unwrap();
        match open.trouble[self.place] {
            None => {}
            Some(Trouble::Aborted) => return Err(away()),
            Some(Trouble::Refused) => return Err(SinkError::refused("write a row", "change it", "no")),
        }
        let outcome = self.target().flushes.pop_front().unwrap_or(Outcome::Done);
        if outcome == Outcome::Failed {
            open.abort(self.place);
            return Err(away());
        }
        if !open.staged[self.place].0.is_empty() {
            self.commit(&mut open)?;
        }
        drop(open);
        self.since = None;
        if outcome == Outcome::Lost { Err(away()) } else { Ok(self.target().positions.clone()) }
    }

    async fn abandon(&mut self) {
        let mut open = self.open.lock().unwrap();
        if !open.staged[self.place].0.is_empty() {
            open.abort(self.place);
        }
        open.trouble[self.place] = None;
        drop(open);
        self.since = None;
    }

    fn settled(&self) -> Settled {
        Settled::default()
    }

    fn store(&self) -> Store {
        Store::Transaction
    }

    fn restore(&mut self, _: PositionKey, _: &TopicName, _: Position) {}
}

impl World {
    /// The same sinks, in transactions.
    async fn run_in_transactions(&self) -> (Option<Stop>, usize) {
        let mut parts = self.parts();
        let open: Arc<Mutex<Open>> = Arc::default();
        let before = [self.bad(), self.set_aside.clone()].concat();
        for (place, sink) in parts.sinks.iter_mut().enumerate() {
            let targets = [self.main.clone(), self.letters.clone()];
            let seat = Seat { place, open: open.clone(), targets, before: before.clone(), since: None };
            sink.sink = Box::new(seat);
        }
        let stop = self.run_parts(parts, || (SinkSet::EMPTY, false)).await;
        let count = open.lock().unwrap().count;
        (stop, count)
    }
}

/// The rows without what is refused, and each dead letter once (asserted at each commit), whether the row is refused when
/// it is written or when it is committed, and by whom that is learnt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_record_comes_with_its_letter_in_one_transaction() {
    for is_late in [false, true] {
        for refused in ["0", "3", "11"] {
            for rule in [BadRecords::Skip, BadRecords::DeadLetter] {
                let offset = VALUES.iter().position(|value| *value == refused).unwrap();
                let letters = if rule == BadRecords::DeadLetter { vec![offset] } else { Vec::new() };
                let world = World { refused_rows: rule, set_aside: letters, ..World::new(&VALUES) };
                {
                    let mut main = world.main.lock().unwrap();
                    main.refused = Some(refused.to_owned());
                    main.is_late = is_late;
                }
                let case = format!("{refused} {rule:?} {is_late}");
                let (stop, count) = world.run_in_transactions().await;
                assert_eq!(stop, None, "{case}");
                assert!(count > 1, "{case}");
                world.assert_refused_once(refused, rule, &case);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_with_a_refused_record_are_exact_while_everything_fails() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..60 {
        runs.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let refused = VALUES[random.usize(..VALUES.len())];
            if World::is_bad(refused) {
                return;
            }
            let refused_rows = BadRecords::DeadLetter;
            let set_aside = vec![VALUES.iter().position(|value| *value == refused).unwrap()];
            let world = World { refused_rows, set_aside, ..World::failing(&mut random, 6) };
            {
                let mut main = world.main.lock().unwrap();
                main.refused = Some(refused.to_owned());
                main.is_late = random.bool();
            }
            let (stop, _) = world.run_in_transactions().await;
            assert_eq!(stop, None, "seed {seed}");
            world.assert_refused_once(refused, refused_rows, &format!("seed {seed}"));
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

impl World {
    #[track_caller]
    fn assert_refused_once(&self, refused: &str, rule: BadRecords, case: &str) {
        let rows: Vec<&str> = self.good().into_iter().filter(|good| *good != refused).collect();
        assert_eq!(self.main.lock().unwrap().rows, rows, "{case}");
        let mut letters = self.bad();
        if rule == BadRecords::DeadLetter {
            letters.extend(VALUES.iter().position(|value| *value == refused));
        }
        letters.sort_unstable();
        // Where a sink has failed, its dead letters may have gone ahead.
        let mut found: Vec<usize> =
            self.letters.lock().unwrap().rows.iter().map(|row| row.parse().unwrap()).collect();
        found.sort_unstable();
        assert_eq!(found, letters, "{case}");
        let counts = self.counts.lock().unwrap().clone();
        let bad = BTreeMap::from([(code::TYPE_MISMATCH, self.bad().len() as u64), (code::SINK_REFUSAL, 1)]);
        assert_eq!((counts.bad, counts.settled, counts.dropped), (bad, rows.len() as u64, 0), "{case}");
    }
}
