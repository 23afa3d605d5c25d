//! Records that a sink refuses, or that a view fails on: they are let go by the rule of the file, and nothing else is.

use super::*;
use crate::model::code;

/// One view of all rows, which fails on this value.
pub struct Picky(pub Option<&'static str>);

#[async_trait]
impl Handler for Picky {
    fn meta(&self) -> &[Field] {
        &[]
    }

    async fn run(&self, batch: Input, _: &BTreeSet<usize>) -> Result<Vec<Option<Traced>>, ViewError> {
        let rows = batch.live.unwrap_or(batch.all);
        let values = rows.rows.column_by_name("value").unwrap().as_string::<i32>();
        if values.iter().any(|value| value.is_some() && value == self.0) {
            return Err(ViewError { view: "v".to_owned(), problem: "no".to_owned() });
        }
        Ok(vec![Some(rows)])
    }
}

impl Target {
    pub(super) fn check(&self, rows: &[String], is_flush: bool) -> Result<(), SinkError> {
        let is_refused =
            self.is_late == is_flush && rows.iter().any(|row| self.refused.as_ref() == Some(row));
        if is_refused { Err(SinkError::refused("write a row", "change it", "no")) } else { Ok(()) }
    }
}

impl World {
    /// What the main sink has if it goes without this value.
    fn good_without(&self, value: &str) -> Vec<&'static str> {
        self.good().into_iter().filter(|good| *good != value).collect()
    }

    /// Dead letters by offset, in order. Those of bad JSON are there once; the others at least once.
    #[track_caller]
    fn assert_letters(&self, others: &[usize], seed: u64) {
        let mut letters: Vec<usize> =
            self.letters.lock().unwrap().rows.iter().map(|row| row.parse().unwrap()).collect();
        letters.sort_unstable();
        let bad: Vec<usize> = letters.iter().copied().filter(|offset| !others.contains(offset)).collect();
        assert_eq!(bad, self.bad(), "seed {seed}: {letters:?}");
        assert!(others.iter().all(|offset| letters.contains(offset)), "seed {seed}: {letters:?}");
    }

    #[track_caller]
    fn assert_counts(&self, code: &'static str, seed: u64) {
        let counts = self.counts.lock().unwrap().clone();
        let bad = BTreeMap::from([(code::TYPE_MISMATCH, self.bad().len() as u64), (code, 1)]);
        assert_eq!(counts.bad, bad, "seed {seed}");
        assert_eq!((counts.settled, counts.dropped), (self.good().len() as u64 - 1, 0), "seed {seed}");
    }
}

/// The offset of a value.
fn offset_of(value: &str) -> usize {
    VALUES.iter().position(|other| *other == value).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_record_is_let_go_and_its_letter_comes_first() {
    for is_late in [false, true] {
        for refused in ["0", "3", "11"] {
            for rule in [BadRecords::Skip, BadRecords::DeadLetter] {
                let offset = offset_of(refused);
                let letters = if rule == BadRecords::DeadLetter { vec![offset] } else { Vec::new() };
                let world = World { refused_rows: rule, set_aside: letters.clone(), ..World::new(&VALUES) };
                {
                    let mut main = world.main.lock().unwrap();
                    main.refused = Some(refused.to_owned());
                    main.is_late = is_late;
                }
                assert_eq!(world.run().await, None, "{refused} {rule:?} {is_late}");
                assert_eq!(world.main.lock().unwrap().rows, world.good_without(refused));
                world.assert_letters(&letters, 0);
                let letter_count = world.letters.lock().unwrap().rows.len();
                assert_eq!(letter_count, world.bad().len() + letters.len());
                world.assert_counts(code::SINK_REFUSAL, 0);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_refused_late_stops_the_lane_by_default() {
    let world = World::new(&VALUES);
    {
        let mut main = world.main.lock().unwrap();
        main.refused = Some("5".to_owned());
        main.is_late = true;
    }
    let stop = world.run().await.expect("it stops");
    assert_eq!(stop.place.and_then(|place| place.offset), Some(at(offset_of("5"))), "{}", stop.message);
    assert_eq!(world.main.lock().unwrap().rows, ["0", "1", "3", "4"]);
}

/// However sinks and dead letters fail meanwhile: no sink is ever past a refused record whose letter is nowhere
/// (asserted in the sink).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_records_are_let_go_once_while_everything_fails() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..40 {
        runs.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let refused = if seed % 2 == 0 { "4" } else { "9" };
            let letters = vec![offset_of(refused)];
            let refused_rows = BadRecords::DeadLetter;
            let world = World { refused_rows, set_aside: letters.clone(), ..World::failing(&mut random, 5) };
            {
                let mut main = world.main.lock().unwrap();
                main.refused = Some(refused.to_owned());
                main.is_late = seed % 3 == 0;
            }
            assert_eq!(world.run().await, None, "seed {seed}");
            assert_eq!(world.main.lock().unwrap().rows, world.good_without(refused), "seed {seed}");
            world.assert_letters(&letters, seed);
            // It is a good record if another sink than the one that refuses it is the last to have it.
            let counts = world.counts.lock().unwrap().clone();
            let let_go = counts.bad.get(code::SINK_REFUSAL).copied().unwrap_or_default();
            let expected = (world.good().len() as u64 - let_go, world.bad().len() as u64 + let_go);
            assert_eq!((counts.settled, counts.bad_total()), expected, "seed {seed}");
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_a_view_fails_on_is_a_bad_record() {
    for rule in [BadRecords::Skip, BadRecords::DeadLetter] {
        let letters = if rule == BadRecords::DeadLetter { vec![offset_of("4")] } else { Vec::new() };
        let values = if rule == BadRecords::DeadLetter { &VALUES[..] } else { &["0", "1", "4", "5"] };
        let world =
            World { bad_records: rule, poison: Some("4"), set_aside: letters.clone(), ..World::new(values) };
        assert_eq!(world.run().await, None, "{rule:?}");
        assert_eq!(world.main.lock().unwrap().rows, world.good_without("4"));
        world.assert_letters(&letters, 0);
        assert_eq!(world.letters.lock().unwrap().rows.len(), world.bad().len() + letters.len());
        let counts = world.counts.lock().unwrap().clone();
        assert_eq!(counts.bad.get(code::SQL_EVALUATION), Some(&1), "{counts:?}");
        assert_eq!(counts.settled, world.good().len() as u64 - 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_a_view_fails_on_stops_the_lane_after_what_comes_before() {
    let world = World {
        bad_records: BadRecords::Stop,
        poison: Some("4"),
        ..World::new(&["0", "1", "2", "3", "4", "5"])
    };
    let stop = world.run().await.expect("it stops");
    assert!(stop.message.contains("offset 4: failed to evaluate view `v`: no"), "{}", stop.message);
    assert!(stop.message.contains(code::SQL_EVALUATION), "{}", stop.message);
    assert!(stop.hint.is_some_and(|hint| hint.contains("try_cast")));
    assert_eq!(world.main.lock().unwrap().rows, ["0", "1", "2", "3"]);
}

/// Sinks that leave the front and come back while everything fails: each record that the view fails on has a letter
/// before the sink is past it (asserted in the sink), whoever reads it and for whom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_views_come_first_wherever_sinks_read() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..60 {
        runs.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let letters = vec![offset_of("4")];
            let poison = Some("4");
            let world = World { poison, set_aside: letters.clone(), ..World::failing(&mut random, 4) };
            let apart = [SinkSet::EMPTY, SinkSet::EMPTY.with(0), SinkSet::ALL];
            let mut turns = 0;
            let stop = world
                .run_with(|| {
                    turns += 1;
                    (apart[random.usize(..3)], turns < 20 && random.u8(..3) == 0)
                })
                .await;
            assert_eq!(stop, None, "seed {seed}");
            assert_eq!(world.main.lock().unwrap().rows, world.good_without("4"), "seed {seed}");
            world.assert_letters(&letters, seed);
            let counts = world.counts.lock().unwrap().clone();
            assert_eq!(counts.done(), VALUES.len() as u64, "seed {seed}: {counts:?}");
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}
