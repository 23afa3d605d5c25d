//! One route's task: chunks in, durable rows out.
//!
//! ```text
//! chunks → buffer → (schemas) → decode → views → sinks → positions → engine
//! ```
//!
//! A lane is running, recovering (something outside failed; it retries by itself and takes no chunks
//! meanwhile, which pauses its partitions), or stopped (needs a person). What it does never holds up
//! another lane.

mod account;
pub mod begin;
mod behind;
mod changes;
mod evaluate;
mod evolve;
mod faults;
mod inbox;
mod lookup;
mod lost;
mod newest;
mod optional;
mod prepare;
mod process;
mod ready;
mod refusals;
mod resume;
mod side_by_side;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use tracing::{info, warn};

use crate::codec::{Decoders, letters};
use crate::config::plan::{BadRecords, BatchLimits, OnDataLoss};
use crate::failpoint;
use crate::handler::Handler;
use crate::kafka::{Cluster, Gauge};
use crate::model::{
    Chunk, Offset, PositionKey, Positions, SinkSet, Start, StartHash, TopicName, TopicPartition,
};
use crate::registry::Registry;
use crate::repeat::Repeats;
use crate::sink::{Settled, Sink, Store};

use super::batching::{Buffer, Pushed, Taken};
use super::catching::Reader;
use super::ledger::Ledger;
use super::message::{Committed, Control, Durable, Place, Report, Stop};
use super::retry::Failures;
use account::Account;
use behind::Recovery;
use evaluate::Searches;
use evolve::Evolving;
use faults::Failed;
use lookup::Lookup;
use optional::Optional;
use prepare::Ends;
use refusals::Excused;
use side_by_side::Flushed;

pub use evolve::{Evolution, Followed, Remade, RemadeSink, Remake, RemakeError};
pub use inbox::LaneHandle;
pub use prepare::{LaneFactory, Life, lane};
pub use resume::MOVED_HINT;

/// Chunks that wait in a lane's inbox. Their bytes are bounded by the gauge; this bounds their number.
const CHUNKS_MAX: usize = 256;

/// Control messages that wait; the engine sends a few per rebalance.
const CONTROLS_MAX: usize = 1024;

/// How often a lane with records looks whether it holds too much.
const FULL_INTERVAL: Duration = Duration::from_millis(100);

/// Another writer may win a position once (a rebalance, a zombie); twice in a row means that another
/// deployment writes to the same target.
const CONFLICTS_MAX: u32 = 2;

/// What a lane is made of.
pub struct LaneParts {
    pub route: String,
    /// Completes batches by the `_` columns that the handlers ask for.
    pub decoders: Decoders,
    /// One for each decoder.
    pub handlers: Vec<Box<dyn Handler>>,
    pub sinks: Vec<LaneSink>,
    /// None if no value and no key of the route names a schema.
    pub registry: Option<Arc<dyn Registry>>,
    pub cluster: Arc<dyn Cluster>,
    pub limits: BatchLimits,
    pub start: Start,
    pub start_hash: StartHash,
    pub on_data_loss: OnDataLoss,
    pub bad_records: BadRecords,
    /// What follows when a sink refuses what became of a record.
    pub refused_rows: BadRecords,
    /// Of records whose type the route does not name, if that is not the same.
    pub other_types: Option<BadRecords>,
    /// It reads the dead letters of its route, as what they were.
    pub is_replay: bool,
    /// None if the reader schemas are not the newest of their subjects.
    pub evolution: Option<Evolution>,
    /// It has an end, and does not wait for ever for what does not come.
    pub is_bounded: bool,
}

/// One sink of a lane.
pub struct LaneSink {
    pub name: String,
    pub identity: String,
    pub feed: Feed,
    /// The records it is fed from, by their decoder; of no use for dead letters.
    pub record_type: usize,
    /// Where it begins, if that is not where its route does, with the digest that tells an edit.
    pub start: Option<(Start, StartHash)>,
    /// The schema of the rows it is given.
    pub rows: SchemaRef,
    pub sink: Box<dyn Sink>,
    /// The route waits for it; without the others it goes on.
    pub is_required: bool,
    /// What those before it have settled, whose rows had another schema.
    pub former: Settled,
}

/// What a sink is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// The decoded fields.
    Fields,
    /// A view, by its place among those of its record type.
    View(usize),
    /// Records that could not be decoded.
    DeadLetters,
}

/// What a lane did, for the table at exit.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub route: String,
    pub records: u64,
    pub bad: u64,
    pub dropped: u64,
    pub sinks: Vec<(String, Settled)>,
    pub stop: Option<Stop>,
}

/// What a lane knows of a topic it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// It appeared after the route had started: all of it is wanted.
    pub is_new: bool,
    /// When this process first looked; partitions above are new.
    pub partition_count: Option<usize>,
}

/// A route at work.
pub struct Lane {
    parts: LaneParts,
    gauge: Arc<Gauge>,
    behind_gauge: Arc<Gauge>,
    /// All topics of the route, whoever owns their partitions.
    topics: BTreeMap<TopicName, Seen>,
    ledger: Ledger,
    /// What the front's reader brings.
    buffer: Buffer,
    /// What is read for sinks that catch up.
    behind: Buffer,
    /// The last batch was for sinks that catch up: the front is next.
    was_behind: bool,
    keys: BTreeMap<TopicPartition, PositionKey>,
    /// What each sink last said it has stored.
    stored: Vec<Positions>,
    state: State,
    /// What the source cannot go on with; dealt with once what came before is in the sinks.
    failed: Vec<Failed>,
    /// Sinks that failed while they catch up everywhere: nobody else waits for them.
    apart: Option<Recovery>,
    optional: Optional,
    /// A batch that waits for schemas.
    staged: Option<Taken>,
    lookup: Option<Lookup>,
    evolving: Evolving,
    /// When ids stayed unknown until their grace was over.
    expired: Vec<Instant>,
    /// Partitions to be resumed once it is possible again.
    to_resume: BTreeMap<TopicPartition, Committed>,
    /// When they are tried again, and how often they were.
    resume_retry: Option<(Instant, u32)>,
    /// Lost compare-and-sets in a row, by sink.
    conflicts: Vec<u32>,
    failures: Failures,
    /// What was said of this route.
    repeats: Arc<Repeats>,
    /// It was said that the route is paused.
    is_pause_said: bool,
    /// Records of the last batch.
    taken_last: usize,
    /// Where the record of the last batch is, if it was the only one.
    alone: Option<Place>,
    /// That batch, if all its sinks have taken it, until they have been flushed.
    kept: Option<Taken>,
    /// A sink has gone on without the record of the batch at work.
    has_let_go: bool,
    excused: Option<Excused>,
    /// Parts of batches that views were tried on.
    searches: Searches,
    /// Sinks that refuse a row: it is looked for, in small batches.
    searching: SinkSet,
    /// Sinks that refused it only when they were flushed: until it is found they are flushed after each batch.
    late: SinkSet,
    /// Dead letters were written and are not durable yet.
    has_letters: bool,
    /// Flushes that came at once behind their writes, and are not taken in yet.
    flushed: Vec<Flushed>,
    summary: Summary,
    account: Account,
    ends: Ends,
}

/// Which sinks the group and the others wait for.
fn required(sinks: &[LaneSink]) -> SinkSet {
    let all = sinks.iter().enumerate().filter(|(_, sink)| sink.is_required);
    all.map(|(index, _)| index).collect()
}

enum State {
    Running,
    /// These sinks have to tell their positions again before anything goes on.
    Recovering {
        sinks: SinkSet,
        attempt: u32,
        at: Instant,
    },
    Stopped,
}

impl Lane {
    fn new(
        parts: LaneParts,
        [gauge, behind_gauge]: [Arc<Gauge>; 2],
        ends: Ends,
        topics: BTreeMap<TopicName, Seen>,
        to_resume: BTreeMap<TopicPartition, Committed>,
    ) -> Self {
        Self {
            ledger: Ledger::of(parts.sinks.len(), required(&parts.sinks)),
            buffer: Buffer::new(parts.limits),
            behind: Buffer::of(Reader::CatchUp, parts.limits),
            was_behind: false,
            keys: BTreeMap::new(),
            stored: vec![Positions::default(); parts.sinks.len()],
            state: State::Running,
            failed: Vec::new(),
            apart: None,
            optional: Optional::default(),
            staged: None,
            lookup: None,
            evolving: Evolving::default(),
            expired: Vec::new(),
            to_resume,
            resume_retry: None,
            conflicts: vec![0; parts.sinks.len()],
            failures: Failures::new(parts.sinks.len()),
            repeats: Arc::default(),
            is_pause_said: false,
            taken_last: 0,
            alone: None,
            kept: None,
            has_let_go: false,
            excused: None,
            searches: Searches::default(),
            searching: SinkSet::EMPTY,
            late: SinkSet::EMPTY,
            has_letters: false,
            flushed: Vec::new(),
            summary: Summary { route: parts.route.clone(), ..Summary::default() },
            account: Account::new(ends.board.clone(), &parts.sinks),
            parts,
            gauge,
            behind_gauge,
            topics,
            ends,
        }
    }

    /// Works until it is drained or the engine is gone.
    async fn run(mut self) -> Summary {
        self.show_schemas();
        self.advance().await;
        self.show();
        loop {
            let due = self.next_due();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let is_taking = matches!(self.state, State::Running) && self.failed.is_empty();
            let takes_chunks = is_taking || self.is_stopped();
            let takes_behind = takes_chunks && self.apart.is_none();
            let is_drained = tokio::select! {
                biased;
                control = self.ends.control.recv() => match control {
                    Some(control) => self.obey(control).await,
                    None => true,
                },
                learnt = lookup::learnt(&mut self.lookup) => {
                    self.learn(learnt).await;
                    false
                }
                answer = self.evolving.answer() => {
                    self.answered(answer);
                    false
                }
                chunk = self.ends.chunks.recv(), if takes_chunks => {
                    if let Some(chunk) = chunk {
                        self.take(chunk).await;
                    }
                    // A full front does not keep what is behind from catching up.
                    if takes_behind && let Ok(chunk) = self.ends.behind.try_recv() {
                        self.take(chunk).await;
                    }
                    false
                }
                chunk = self.ends.behind.recv(), if takes_behind => {
                    if let Some(chunk) = chunk {
                        self.take(chunk).await;
                    }
                    false
                }
                () = timer => false,
            };
            if is_drained {
                break;
            }
            self.advance().await;
            self.show();
        }
        self.show();
        for sink in &self.parts.sinks {
            self.summary.sinks.push((sink.name.clone(), sink.settled()));
        }
        self.summary
    }

    fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// When something has to be done even if nothing comes.
    fn next_due(&self) -> Option<Instant> {
        match &self.state {
            State::Stopped => None,
            State::Recovering { at, .. } => self.flushes_due().chain([*at]).min(),
            State::Running => {
                let flushes = self.flushes_due();
                // Others may take what was free: then this lane is full without anything having come.
                let look = Instant::now() + FULL_INTERVAL;
                let batches = [self.buffer.due(), self.behind.due()].into_iter().flatten().min();
                let batch = batches.filter(|_| self.staged.is_none()).map(|due| due.min(look));
                let resume = self.resume_retry.map(|(at, _)| at);
                let apart = self.apart.as_ref().map(|recovery| recovery.at);
                let beside = apart.into_iter().chain(self.optional_due());
                flushes.chain(batch).chain(resume).chain(beside).chain(self.evolving.due()).min()
            }
        }
    }

    /// When sinks that work have to be flushed: a sibling's outage does not keep their rows from sight.
    fn flushes_due(&self) -> impl Iterator<Item = Instant> {
        let sinks = self.parts.sinks.iter().enumerate();
        let may_flush = |(index, _): &(usize, &LaneSink)| self.is_working(*index) && !self.is_held(*index);
        sinks.filter(may_flush).filter_map(|(_, sink)| sink.sink.flush_due())
    }

    fn letter_sinks(&self) -> impl Iterator<Item = usize> + '_ {
        let sinks = self.parts.sinks.iter().enumerate();
        sinks.filter(|(_, sink)| sink.feed == Feed::DeadLetters).map(|(index, _)| index)
    }

    /// Does a sink wait for dead letters that a failing sink has not taken again yet? None moves past a bad record
    /// that is nowhere.
    fn is_held(&self, sink: usize) -> bool {
        self.has_letters
            && self.parts.sinks[sink].feed != Feed::DeadLetters
            && self
                .letter_sinks()
                .any(|letter| !self.is_working(letter) || self.ledger.is_behind(letter, sink))
    }

    /// Are all dead letters durable that any sink has gone past?
    fn are_letters_settled(&self) -> bool {
        let mut all = self.letter_sinks();
        all.all(|letter| {
            self.is_working(letter)
                && self.parts.sinks[letter].sink.flush_due().is_none()
                && (0..self.parts.sinks.len()).all(|other| !self.ledger.is_behind(letter, other))
        })
    }

    fn is_working(&self, sink: usize) -> bool {
        if self.optional.has_failed(sink) {
            return false;
        }
        match &self.state {
            State::Running => self.apart.as_ref().is_none_or(|recovery| !recovery.sinks.contains(sink)),
            State::Recovering { sinks, .. } => !sinks.contains(sink),
            State::Stopped => false,
        }
    }

    /// Carries out a control message; `true` once it is drained.
    async fn obey(&mut self, control: Control) -> bool {
        match control {
            Control::Resume(partitions) => {
                // What is due is done by `advance`.
                for (source, committed) in partitions {
                    // What was asked first came from the group itself.
                    self.to_resume.entry(source).or_insert(committed);
                }
            }
            Control::Topics(topics) => self.topics.extend(topics),
            Control::Assigned(assigned) => self.assigned(assigned).await,
            Control::Look(partitions) => {
                // While something is held up, nothing joins.
                let is_working = matches!(self.state, State::Running) && self.apart.is_none();
                let asked = partitions.iter().filter(|_| is_working);
                self.report(Report::Stands(self.stands(asked))).await;
            }
            Control::Lost { source, stop } => self.set_failed(Failed::Lost(source, stop)).await,
            Control::Revoke { partitions, is_lost } => {
                self.give_up(&partitions, is_lost).await;
                self.report(Report::Released(partitions)).await;
            }
            Control::Fail(stop) => self.source_failed(stop).await,
            Control::Drain => {
                self.flush_all().await;
                self.finish_optional().await;
                failpoint::hit("lane.drained");
                self.report(Report::Drained).await;
                return true;
            }
        }
        false
    }

    async fn take(&mut self, chunk: Chunk) {
        let Some(key) = self.keys.get(&chunk.source).copied() else {
            return;
        };
        if self.is_stopped() {
            return;
        }
        let chunk = if self.parts.is_replay { self.originals(chunk) } else { chunk };
        let source = chunk.source.clone();
        let is_behind = self.behind.assignment_of(&key) == Some(chunk.assignment);
        let buffer = if is_behind { &mut self.behind } else { &mut self.buffer };
        let chunk = Arc::new(chunk);
        match buffer.push(&key, chunk.clone(), Instant::now()) {
            Ok(Pushed::Kept) => self.account.read(&chunk),
            Ok(Pushed::Stale) => {}
            Err(gap) => {
                buffer.remove(&key);
                // A defect of ours; reading again mends it.
                if let Some(times) = self.repeats.say("gap", 1, Instant::now()) {
                    let (topic, partition) = (source.topic.as_str(), source.partition.0);
                    warn!(route = self.parts.route, topic, partition, %gap, times, "reading a partition again");
                }
                self.read_again(&[source]).await;
            }
        }
    }

    /// The records that these dead letters were.
    fn originals(&self, letters: Chunk) -> Chunk {
        let (topic, partition) = (letters.source.topic.clone(), letters.source.partition.0);
        let (records, others) = letters::originals(letters, &self.parts.route);
        if others > 0
            && let Some(count) = self.repeats.say("letters of others", others as u64, Instant::now())
        {
            let topic = topic.as_str();
            info!(
                route = self.parts.route,
                topic, partition, count, "records that are not its letters are left"
            );
        }
        records
    }

    /// Flushes what it can before partitions go. What could not be flushed is nobody's until it is
    /// read again, by us or by the next owner.
    async fn give_up(&mut self, partitions: &[TopicPartition], is_lost: bool) {
        let had_staged = self.staged.take().is_some();
        self.lookup = None;
        self.failed.retain(|failed| !partitions.contains(failed.source()));
        if !is_lost {
            self.flush_all().await;
        }
        // What a sink could not make durable, as dead letters have to come first, must not come later: the partition is
        // not ours then. Recovery reads all others again.
        self.leave_pending(SinkSet::ALL).await;
        let is_left = (0..self.parts.sinks.len()).any(|sink| self.ledger.is_pending(sink));
        if is_lost || (is_left && !self.is_stopped()) {
            self.abandon_all().await;
        }
        failpoint::hit("lane.revoke.flushed");
        // A position that was lost to another member says nothing about the ones that are left.
        self.conflicts.fill(0);
        for source in partitions {
            self.to_resume.remove(source);
            if let Some(key) = self.keys.remove(source) {
                self.ledger.revoke(&key);
                self.optional.forget(&key);
                self.forget_excused(&key);
                self.buffer.remove(&key);
                self.behind.remove(&key);
                self.account.forget(Some(&key));
            }
        }
        self.settle_account();
        // A batch that was staged held ranges of other partitions too.
        if had_staged && matches!(self.state, State::Running) {
            self.drop_buffered();
            let others: Vec<TopicPartition> = self.keys.keys().cloned().collect();
            self.read_again(&others).await;
        }
    }

    /// Tells the engine what all required sinks have durable.
    async fn report_progress(&mut self) {
        self.settle_account();
        let required = self.ledger.required();
        let logs: Vec<(String, String, u64)> = self
            .parts
            .sinks
            .iter()
            .filter_map(|sink| {
                let (id, entry) = sink.sink.log()?;
                Some((sink.identity.clone(), id, entry))
            })
            .collect();
        let durable = self.keys.iter().filter_map(|(source, key)| {
            let settled = self.ledger.committable(key, required)?;
            // A display of how far the front is: sinks that catch up know by themselves where they stand.
            let front = self.ledger.served(key, Reader::Front).minus(self.ledger.optional());
            let next = self.ledger.committable(key, front).unwrap_or(settled);
            // The epoch belongs to exactly this position.
            let epoch = self
                .stored
                .iter()
                .filter_map(|positions| positions.get(key))
                .find(|position| position.next == next)
                .and_then(|position| position.epoch);
            let durable = Durable {
                next,
                settled,
                is_apart: front.is_empty(),
                epoch,
                logs: logs.clone(),
                positions: self.group_positions(key),
                starts: self.group_starts(),
            };
            Some((source.clone(), durable))
        });
        let durable: BTreeMap<TopicPartition, Durable> = durable.collect();
        self.report(Report::Progress(durable)).await;
        failpoint::hit("lane.progress.reported");
    }

    /// Positions of the sinks that have no store of their own.
    fn group_positions(&self, key: &PositionKey) -> Vec<(String, Offset)> {
        let sinks = self.parts.sinks.iter().zip(&self.stored);
        sinks
            .filter(|(sink, _)| sink.sink.store() != Store::Own)
            .filter_map(|(sink, stored)| Some((sink.identity.clone(), stored.get(key)?.next)))
            .collect()
    }

    /// What sinks without a store of their own were started with, if they say so themselves.
    fn group_starts(&self) -> Vec<(String, StartHash)> {
        let sinks = self.parts.sinks.iter().filter(|sink| sink.sink.store() != Store::Own);
        sinks.filter_map(|sink| Some((sink.identity.clone(), sink.start.as_ref()?.1.clone()))).collect()
    }

    async fn report(&mut self, report: Report) {
        self.ends.report(report).await;
    }
}

#[cfg(test)]
mod tests;
