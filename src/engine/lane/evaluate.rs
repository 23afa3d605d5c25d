//! Views over a batch, and the records that they fail on.
//!
//! A view fails as a whole. Which records it fails on is found by halving: parts of the batch are tried until each that
//! fails is one record. Then the view is computed over the others. Where no record fails alone (a sum that overflows),
//! or too many do, nobody is to blame and the route stops, naming the ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::codec::{Rejected, TypeRows, letters};
use crate::config::plan::BadRecords;
use crate::engine::batching::Taken;
use crate::engine::chain;
use crate::handler::{Handler, Input, Traced, ViewError};
use crate::model::{RecordRef, code, ranges};
use crate::status::Stage;

use super::ready::{Bad, Ready, place_of};
use super::{Feed, Lane, LaneSink, changes};

/// Parts of one batch that views are tried on. Each costs up to a millisecond, most of it for a plan of its own. One
/// record among 50,000 takes 32 of them, so some dozens of bad ones are found. More than that is no bad record but a
/// view that does not suit its topic.
const TRIES_PER_BATCH_MAX: u32 = 2000;

/// The same for a minute, of all batches: a third of a core at most goes into looking for bad records.
const TRIES_PER_MINUTE_MAX: u32 = 20_000;

const MINUTE: Duration = Duration::from_secs(60);

/// How many parts of batches views were tried on. The time is a parameter.
#[derive(Debug, Default)]
pub struct Searches {
    since: Option<Instant>,
    spent: u32,
}

impl Searches {
    /// How many may be tried for a batch now.
    fn allowed(&mut self, now: Instant) -> u32 {
        if self.since.is_none_or(|since| now.duration_since(since) >= MINUTE) {
            *self = Self { since: Some(now), spent: 0 };
        }
        TRIES_PER_MINUTE_MAX.saturating_sub(self.spent).min(TRIES_PER_BATCH_MAX)
    }

    fn spend(&mut self, count: u32) {
        self.spent = self.spent.saturating_add(count);
    }
}

/// A batch as sinks are given it, by record type.
#[derive(Debug)]
pub struct Evaluated {
    pub inputs: Vec<Input>,
    /// Of each type, by view; `None` for one that nobody wants, or that has no rows.
    pub views: Vec<Vec<Option<Traced>>>,
}

impl Lane {
    /// Computes the views that are read, by record type and view. A record that one of them fails on is bad. It comes into
    /// no sink that reads this view; the others have it. `None`: no record can be named, and the route has stopped; or
    /// dead letters could not be written, and the batch comes again.
    pub(super) async fn evaluate(&mut self, taken: &Taken, ready: &mut Ready) -> Option<Evaluated> {
        let inputs = match self.inputs(taken, ready) {
            Ok(inputs) => inputs,
            Err(error) => {
                self.misfit(&error).await;
                return None;
            }
        };
        let wanted: Vec<BTreeSet<usize>> =
            ready.types.iter().enumerate().map(|(of, own)| self.wanted_views(taken, of, own)).collect();
        if wanted.iter().all(BTreeSet::is_empty) {
            return Some(Evaluated { views: vec![Vec::new(); inputs.len()], inputs });
        }
        let begun = Instant::now();
        let allowed = self.searches.allowed(begun);
        let mut left = allowed;
        let computed = self.views(&ready.types, &inputs, &wanted, &mut left).await;
        self.searches.spend(allowed - left);
        self.account.took(Stage::Views, begun.elapsed());
        let Computed { views, failed } = match computed {
            Ok(computed) => computed,
            Err(error) => {
                self.stop_at_view(taken, &error, left == 0).await;
                return None;
            }
        };
        let evaluated = Evaluated { inputs, views };
        if failed.is_empty() {
            return Some(evaluated);
        }
        let extra = match self.set_aside(taken, ready, failed) {
            Ok(extra) => extra,
            Err(error) => {
                self.misfit(&error).await;
                return None;
            }
        };
        let key = ready.bad.first().and_then(|bad| taken.parts.get(bad.part)).map(|part| part.key);
        match key {
            Some(key) if !extra.is_empty() => self.add_letters(key, extra).await.then_some(evaluated),
            _ => Some(evaluated),
        }
    }

    /// What views are computed over, by record type.
    ///
    /// # Errors
    /// If there is not one origin for each row.
    fn inputs(&self, taken: &Taken, ready: &Ready) -> Result<Vec<Input>, ArrowError> {
        let input = |(record_type, own): (usize, &TypeRows)| {
            changes::input(&own.rows, &own.origins, &own.gone, self.is_traced(taken, record_type))
        };
        ready.types.iter().enumerate().map(input).collect()
    }

    /// The wanted views of each record type, and the records that one of them fails on. `left` is what may be tried.
    ///
    /// # Errors
    /// A view that fails on no row alone, or on more than are looked for.
    async fn views(
        &mut self,
        types: &[TypeRows],
        inputs: &[Input],
        wanted: &[BTreeSet<usize>],
        left: &mut u32,
    ) -> Result<Computed, ViewError> {
        let mut computed = Computed::default();
        for (record_type, own) in types.iter().enumerate() {
            let (input, wanted) = (&inputs[record_type], &wanted[record_type]);
            if wanted.is_empty() {
                computed.views.push(Vec::new());
                continue;
            }
            let handler = self.parts.handlers[record_type].as_ref();
            let found = match handler.run(input.clone(), wanted).await {
                Ok(views) => Found { views, failed: BTreeMap::new() },
                Err(_) => {
                    let is_traced = input.all.origins.is_some();
                    let rows = Rows { rows: &own.rows, origins: &own.origins, gone: &own.gone, is_traced };
                    apart(handler, &rows, wanted, left).await?
                }
            };
            computed.views.push(found.views);
            // A record is of one type.
            computed.failed.extend(found.failed);
        }
        Ok(computed)
    }

    /// Does a sink of the batch ask which records its rows of a type are made of?
    fn is_traced(&self, taken: &Taken, record_type: usize) -> bool {
        let sinks = taken.sinks.iter().map(|index| &self.parts.sinks[index]);
        let mut own = sinks.filter(|sink| is_of(sink, record_type)).map(|sink| &sink.sink);
        own.any(|sink| sink.takes_deletes() || sink.takes_places())
    }

    /// The views of a record type that the sinks of a batch read. Sinks of dead letters are given the records that any view
    /// of the route fails on, also where they read by themselves.
    fn wanted_views(&self, taken: &Taken, record_type: usize, own: &TypeRows) -> BTreeSet<usize> {
        if own.rows.num_rows() == 0 {
            return BTreeSet::new();
        }
        let has_letters = self.parts.bad_records == BadRecords::DeadLetter
            && self.letter_sinks().any(|letter| taken.sinks.contains(letter));
        let sinks = self.parts.sinks.iter().enumerate();
        let wanting = sinks.filter(|(index, _)| has_letters || taken.sinks.contains(*index));
        let views =
            wanting.filter(|(_, sink)| is_of(sink, record_type)).filter_map(|(_, sink)| match sink.feed {
                Feed::View(view) => Some(view),
                Feed::Fields | Feed::DeadLetters => None,
            });
        views.collect()
    }

    async fn stop_at_view(&mut self, taken: &Taken, error: &ViewError, is_over: bool) {
        let ranges = ranges(&self.moves(taken));
        let why = if is_over { ", and on more records than are looked for one by one" } else { "" };
        let message = format!("{} on {ranges}{why}", chain(error));
        let hint = "guard the expression in the view, for example with `try_cast` or `nullif`";
        self.flush_all().await;
        let place = self.alone.clone();
        self.stop(message, Some(hint.to_owned()), place).await;
    }

    /// Makes the records with these numbers bad ones. Answers with their dead letters for sinks of those that do not come to
    /// them: they have passed them, and saw another view or another time then.
    fn set_aside(
        &self,
        taken: &Taken,
        ready: &mut Ready,
        failed: BTreeMap<usize, String>,
    ) -> Result<Vec<(usize, RecordBatch)>, ArrowError> {
        let records: Vec<RecordRef<'_>> = taken.records().collect();
        let ends = taken.part_ends();
        for (index, message) in failed {
            let Some(record) = records.get(index) else {
                return Err(ArrowError::ComputeError("a row is of no record".to_owned()));
            };
            let rejected = Rejected { index, code: code::SQL_EVALUATION, message, schema_id: None };
            let part = ends.partition_point(|end| *end <= index);
            let policy = self.parts.bad_records;
            ready.bad.push(Bad { rejected, policy, part, place: place_of(record) });
        }
        ready.bad.sort_by_key(|bad| bad.rejected.index);
        if self.parts.bad_records != BadRecords::DeadLetter {
            return Ok(Vec::new());
        }
        let all = ready.bad.iter().filter(|bad| bad.policy == BadRecords::DeadLetter);
        let all: Vec<_> = all.map(|bad| (records[bad.rejected.index], &bad.rejected)).collect();
        let all = letters::build(&self.parts.route, &all)?;
        let mut extra = Vec::new();
        for letter in self.letter_sinks().filter(|letter| !taken.sinks.contains(*letter)) {
            let is_passed = |bad: &&Bad| {
                let standing = self.ledger.accepted(&taken.parts[bad.part].key);
                let accepted = standing.and_then(|standing| standing.get(letter).copied());
                accepted.is_some_and(|accepted| accepted > bad.offset())
            };
            let of_view = ready.bad.iter().filter(|bad| bad.rejected.code == code::SQL_EVALUATION);
            let passed: Vec<_> =
                of_view.filter(is_passed).map(|bad| (records[bad.rejected.index], &bad.rejected)).collect();
            if !passed.is_empty() {
                extra.push((letter, letters::build(&self.parts.route, &passed)?));
            }
        }
        ready.letters = Some(all);
        Ok(extra)
    }
}

/// Is a sink given rows of this type?
fn is_of(sink: &LaneSink, record_type: usize) -> bool {
    sink.record_type == record_type && sink.feed != Feed::DeadLetters
}

/// What views have made of a batch.
#[derive(Debug, Default)]
struct Computed {
    /// By record type.
    views: Vec<Vec<Option<Traced>>>,
    failed: BTreeMap<usize, String>,
}

/// What views have made of the rows of one type.
#[derive(Debug, Default)]
struct Found {
    views: Vec<Option<Traced>>,
    /// Numbers of records that a view fails on, and what was said of each.
    failed: BTreeMap<usize, String>,
}

/// Decoded rows, which views may be computed over in parts.
struct Rows<'r> {
    rows: &'r RecordBatch,
    /// For each row, the number of its record.
    origins: &'r Arc<[u32]>,
    gone: &'r [u32],
    is_traced: bool,
}

impl Rows<'_> {
    fn count(&self) -> usize {
        self.rows.num_rows()
    }

    /// So many of them. Nobody asks for their origins.
    fn part(&self, start: usize, count: usize) -> Result<Input, ViewError> {
        let origins: Arc<[u32]> = self.origins.get(start..start + count).map(Arc::from).unwrap_or_default();
        changes::input(&self.rows.slice(start, count), &origins, self.gone, false).map_err(defect)
    }

    /// All but these.
    fn without(&self, failed: &BTreeMap<usize, String>) -> Result<Input, ViewError> {
        let is_kept = |row: &usize| !failed.contains_key(row);
        let mask: BooleanArray = (0..self.count()).map(|row| Some(is_kept(&row))).collect();
        let rows = filter_record_batch(self.rows, &mask).map_err(defect)?;
        let origins = (0..self.count()).filter(is_kept).filter_map(|row| self.origins.get(row).copied());
        let origins: Arc<[u32]> = origins.collect();
        changes::input(&rows, &origins, self.gone, self.is_traced).map_err(defect)
    }
}

/// Rows and origins that do not fit together: a bug of ours, caught here.
fn defect(error: ArrowError) -> ViewError {
    ViewError { view: "batch".to_owned(), problem: error.to_string() }
}

/// Computes each of the views by itself, without the rows that it fails on.
///
/// # Errors
/// One that fails on no row alone, or on more than are looked for.
async fn apart(
    handler: &dyn Handler,
    rows: &Rows<'_>,
    wanted: &BTreeSet<usize>,
    left: &mut u32,
) -> Result<Found, ViewError> {
    let mut all = Found::default();
    for view in wanted {
        let only = BTreeSet::from([*view]);
        let mut views = match handler.run(rows.without(&BTreeMap::new())?, &only).await {
            Ok(views) => views,
            Err(error) => {
                let failed = failing(handler, rows, &only, error, left).await?;
                let views = match failed.len() == rows.count() {
                    true => Vec::new(),
                    false => handler.run(rows.without(&failed)?, &only).await?,
                };
                for (row, message) in failed {
                    let record = rows.origins.get(row).map_or(row, |record| *record as usize);
                    all.failed.entry(record).or_insert(message);
                }
                views
            }
        };
        if all.views.len() <= *view {
            all.views.resize(*view + 1, None);
        }
        all.views[*view] = views.get_mut(*view).and_then(Option::take);
    }
    Ok(all)
}

/// The rows that a view fails on, which has failed with `error` on all of them, each with what is wrong.
///
/// # Errors
/// `error`, if it fails on none alone, or nothing is `left` of what may be tried.
async fn failing(
    handler: &dyn Handler,
    rows: &Rows<'_>,
    only: &BTreeSet<usize>,
    error: ViewError,
    left: &mut u32,
) -> Result<BTreeMap<usize, String>, ViewError> {
    let mut failed = BTreeMap::new();
    // Parts that it fails on: where they begin, and how long they are.
    let mut open = vec![(0, rows.count(), error.to_string())];
    while let Some((start, count, message)) = open.pop() {
        if count <= 1 {
            failed.insert(start, message);
            continue;
        }
        let half = count / 2;
        for (start, count) in [(start, half), (start + half, count - half)] {
            let Some(fewer) = left.checked_sub(1) else {
                return Err(error);
            };
            *left = fewer;
            if let Err(error) = handler.run(rows.part(start, count)?, only).await {
                open.push((start, count, error.to_string()));
            }
        }
    }
    if failed.is_empty() { Err(error) } else { Ok(failed) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::{Field, Int64Type};
    use async_trait::async_trait;

    use super::*;

    /// A view of all rows that fails on some numbers, or on sums beyond a limit.
    struct Picky {
        poison: Vec<i64>,
        sum_max: i64,
        runs: AtomicUsize,
    }

    #[async_trait]
    impl Handler for Picky {
        fn meta(&self) -> &[Field] {
            &[]
        }

        async fn run(&self, batch: Input, _: &BTreeSet<usize>) -> Result<Vec<Option<Traced>>, ViewError> {
            self.runs.fetch_add(1, Ordering::Relaxed);
            let batch = batch.live.unwrap_or(batch.all);
            let numbers = batch.rows.column(0).as_primitive::<Int64Type>().values().to_vec();
            let is_bad = numbers.iter().any(|number| self.poison.contains(number));
            if is_bad || numbers.iter().sum::<i64>() > self.sum_max {
                return Err(ViewError { view: "v".to_owned(), problem: "no".to_owned() });
            }
            Ok(vec![Some(batch)])
        }
    }

    fn picky(poison: &[i64], sum_max: i64) -> Picky {
        Picky { poison: poison.to_vec(), sum_max, runs: AtomicUsize::new(0) }
    }

    fn numbers(count: i64) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..count));
        RecordBatch::try_from_iter([("n", column)]).unwrap()
    }

    /// The rows that are left, and the records that failed, which are every second one.
    async fn evaluated(picky: &Picky, count: i64, mut left: u32) -> Result<(Vec<i64>, Vec<usize>), String> {
        let only = BTreeSet::from([0]);
        let origins: Arc<[u32]> = (0..).step_by(2).take(usize::try_from(count).unwrap()).collect();
        let rows = Rows { rows: &numbers(count), origins: &origins, gone: &[], is_traced: true };
        let done = apart(picky, &rows, &only, &mut left).await.map_err(|error| error.to_string())?;
        let Some(Traced { rows, origins }) = &done.views[0] else {
            return Ok((Vec::new(), done.failed.into_keys().collect()));
        };
        let rows = rows.column(0).as_primitive::<Int64Type>().values().to_vec();
        let doubled: Vec<u32> = rows.iter().map(|number| 2 * u32::try_from(*number).unwrap()).collect();
        assert_eq!(origins.as_deref(), Some(doubled.as_slice()));
        Ok((rows, done.failed.into_keys().collect()))
    }

    #[tokio::test]
    async fn records_that_a_view_fails_on_are_found_and_the_others_are_computed() {
        for poison in [&[][..], &[0], &[99], &[3, 4, 50, 98], &[7, 7]] {
            let (rows, failed) = evaluated(&picky(poison, i64::MAX), 100, 1000).await.unwrap();
            let expected: BTreeSet<usize> = poison.iter().map(|number| 2 * *number as usize).collect();
            assert_eq!(failed, expected.into_iter().collect::<Vec<_>>());
            assert_eq!(rows.len() + failed.len(), 100);
            assert!(rows.iter().all(|number| !poison.contains(number)));
        }
        // All of them: nothing is left to be computed.
        assert_eq!(evaluated(&picky(&[0, 1, 2], i64::MAX), 3, 1000).await, Ok((vec![], vec![0, 2, 4])));
    }

    #[tokio::test]
    async fn one_record_among_many_takes_two_tries_for_each_halving() {
        let picky = picky(&[31_000], i64::MAX);
        let (_, failed) = evaluated(&picky, 50_000, TRIES_PER_BATCH_MAX).await.unwrap();
        assert_eq!(failed, [62_000]);
        let runs = picky.runs.load(Ordering::Relaxed);
        assert!(runs <= 2 * 16 + 2, "{runs}");
    }

    #[tokio::test]
    async fn where_no_record_fails_alone_or_too_many_do_the_view_has_failed() {
        let error = "failed to evaluate view `v`: no".to_owned();
        // 0 + … + 99; each half has less, and each number.
        assert_eq!(evaluated(&picky(&[], 4000), 100, 1000).await, Err(error.clone()));
        let all: Vec<i64> = (0..1000).collect();
        let all = picky(&all, i64::MAX);
        assert_eq!(evaluated(&all, 1000, 50).await, Err(error));
        assert!(all.runs.load(Ordering::Relaxed) <= 51);
    }

    #[test]
    fn tries_are_counted_by_the_minute() {
        let (mut searches, start) = (Searches::default(), Instant::now());
        for batch in 0..20 {
            let now = start + Duration::from_secs(batch);
            let allowed = searches.allowed(now);
            assert_eq!(allowed, if batch < 10 { TRIES_PER_BATCH_MAX } else { 0 });
            searches.spend(allowed);
        }
        assert_eq!(searches.allowed(start + MINUTE), TRIES_PER_BATCH_MAX);
    }
}
