//! Following the newest version of a subject: when the registry is asked, and what follows from its answer.
//!
//! It is asked once in a while, and at once when a record names a schema that may be newer than what the route reads as:
//! then the batch waits. A newer version is taken between two batches: what was written is flushed by the sinks whose rows
//! change, and decoder, views and those sinks are others from then on. A version that is not to be taken, or cannot be,
//! stops the route before the first record that may be of it; until then nothing changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use tokio::task::block_in_place;
use tracing::{info, warn};

use crate::codec::{Decoders, Rejected, Side};
use crate::config::plan::{BadRecords, OnNewSchema};
use crate::engine::batching::Taken;
use crate::engine::chain;
use crate::engine::message::{Place, Stop};
use crate::handler::Handler;
use crate::model::{Offset, RecordRef, SchemaId, SchemaKey, SchemaVersion, SinkSet, code};
use crate::registry::{Newest, RegistryError};
use crate::sink::{Settled, Sink, Store};

use super::newest::{Answer, Asking, Question, first_due, may_be_newer};
use super::{Lane, LaneSink, State};

/// Schemas whose refusal was told. Garbage may name any number of them: beyond it they are told anew.
const REFUSALS_MAX: usize = 1000;

/// How a route follows the subjects of its reader schemas.
pub struct Evolution {
    pub policy: OnNewSchema,
    /// How often the subjects are asked for.
    pub interval: Duration,
    /// What the route reads as. A subject is there once, however many record types are of it.
    pub read_as: Vec<Followed>,
    pub remake: Arc<dyn Remake>,
}

/// A reader schema that is the newest version of its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    pub side: Side,
    pub version: SchemaVersion,
}

/// Makes parts of a lane for other reader schemas.
#[async_trait]
pub trait Remake: Send + Sync {
    /// What reads as `newest`, in the order of `former`, which is read as now. `rows` are the schemas of what each sink of
    /// the lane is given now.
    async fn remake(
        &self,
        newest: &[Newest],
        former: &[Followed],
        rows: &[SchemaRef],
    ) -> Result<Remade, RemakeError>;
}

/// Parts of a lane for other reader schemas.
pub struct Remade {
    pub decoders: Decoders,
    pub handlers: Vec<Box<dyn Handler>>,
    /// In place of the sinks whose rows have another schema now.
    pub sinks: Vec<RemadeSink>,
}

/// A sink for the same target and identity, with rows of another schema.
pub struct RemadeSink {
    /// Its place in the lane.
    pub index: usize,
    pub rows: SchemaRef,
    pub sink: Box<dyn Sink>,
}

/// Why parts could not be made.
pub enum RemakeError {
    /// The registry has to be asked again.
    Registry(RegistryError),
    /// It cannot be read, bound or written.
    Unfit(Stop),
}

/// What a lane knows of newer versions.
#[derive(Default)]
pub struct Evolving {
    /// The newest versions that were told of, if the route does not read as them.
    seen: Vec<SchemaVersion>,
    /// When the subjects are asked for next.
    due: Option<Instant>,
    asking: Option<Asking>,
    /// A batch waits for the answer.
    is_awaited: bool,
    /// Schemas that were learnt and may be newer than those read as. No more than one batch names: either the answer
    /// clears them, or the route stops before them.
    suspects: BTreeSet<SchemaKey>,
    /// Why the route stops before a record that names one of them.
    barrier: Option<Stop>,
    made: Option<(Vec<SchemaVersion>, Box<Remade>)>,
    /// Writer schemas that cannot be read, and of which that was told.
    refused: BTreeSet<SchemaKey>,
}

impl Evolving {
    /// When the registry is asked next, if it is not being asked now.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.asking.is_none())
    }

    /// Does the next batch wait for what follows from an answer?
    pub fn is_awaited(&self) -> bool {
        self.is_awaited || self.made.is_some()
    }

    /// The answer to the question under way; waits for ever if there is none. Cancel-safe.
    pub async fn answer(&mut self) -> Answer {
        match &mut self.asking {
            Some(asking) => {
                let answer = asking.await;
                self.asking = None;
                answer
            }
            None => std::future::pending().await,
        }
    }
}

/// Versions, for people.
fn shown<'a>(versions: impl Iterator<Item = &'a SchemaVersion>) -> String {
    versions.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl LaneSink {
    /// What it made durable since the lane began, whatever its rows were.
    pub fn settled(&self) -> Settled {
        let settled = self.sink.settled();
        Settled {
            rows: self.former.rows + settled.rows,
            bytes: self.former.bytes + settled.bytes,
            files: self.former.files + settled.files,
        }
    }
}

impl Lane {
    /// Shows what is read as.
    pub(super) fn show_schemas(&mut self) {
        let shown = self.parts.decoders.versions().into_iter().map(ToString::to_string).collect();
        let followed = self.parts.evolution.iter().flat_map(|evolution| &evolution.read_as);
        let is_newer = |(followed, seen): &(&Followed, &SchemaVersion)| followed.version.id != seen.id;
        let newer_count = followed.zip(&self.evolving.seen).filter(is_newer).count();
        self.account.reads_as(shown, newer_count);
    }

    /// A schema that a record names was learnt: has the registry to be asked for newer versions before it is read?
    pub(super) fn suspect(&mut self, named: SchemaKey) -> bool {
        let Some(evolution) = &self.parts.evolution else {
            return false;
        };
        if !may_be_newer(named, &evolution.read_as) {
            return false;
        }
        if evolution.policy == OnNewSchema::Pin {
            // Nothing waits for what is only told.
            self.evolving.due = Some(Instant::now());
            return false;
        }
        self.evolving.suspects.insert(named)
    }

    /// Asks for the newest versions, and lets the next batch wait for the answer. A question that is under way may have
    /// been asked too early.
    pub(super) fn ask_at_once(&mut self) {
        self.evolving.is_awaited = true;
        self.ask();
    }

    fn ask(&mut self) {
        let (Some(evolution), Some(registry)) = (&self.parts.evolution, &self.parts.registry) else {
            (self.evolving.is_awaited, self.evolving.due) = (false, None);
            return;
        };
        let question = Question {
            route: self.parts.route.clone(),
            policy: evolution.policy,
            read_as: evolution.read_as.clone(),
            seen: self.evolving.seen.clone(),
            rows: self.parts.sinks.iter().map(|sink| sink.rows.clone()).collect(),
            registry: registry.clone(),
            remake: evolution.remake.clone(),
            repeats: self.repeats.clone(),
            is_awaited: self.evolving.is_awaited,
        };
        self.evolving.asking = Some(Box::pin(question.answer()));
    }

    /// Takes in what an answer means. A newer version is taken by [`Lane::evolve`].
    pub(super) fn answered(&mut self, answer: Answer) {
        if self.is_stopped() {
            return;
        }
        let Some(evolution) = &mut self.parts.evolution else {
            return;
        };
        let evolving = &mut self.evolving;
        evolving.is_awaited = false;
        evolving.due = Some(Instant::now() + evolution.interval);
        match answer {
            Answer::Level(versions) => {
                for (followed, version) in evolution.read_as.iter_mut().zip(versions) {
                    followed.version = version;
                }
                // What was registered is gone again, or never was newer.
                (evolving.seen, evolving.barrier) = (Vec::new(), None);
                evolving.suspects.clear();
            }
            Answer::Known if evolving.barrier.is_some() => {}
            Answer::Known => evolving.suspects.clear(),
            Answer::Gone(error) => {
                if evolving.barrier.is_none() {
                    evolving.suspects.clear();
                }
                if let Some(times) = self.repeats.say("subject", 1, Instant::now()) {
                    let (route, error) = (self.parts.route.as_str(), chain(&error));
                    warn!(route, error, times, "the route goes on with the schema that it has");
                }
            }
            Answer::Unusable(stop) => self.put_barrier(stop),
            Answer::Newer { newest, made: Some(Ok(made)) } => evolving.made = Some((newest, made)),
            Answer::Newer { newest, made } => self.refuse(newest, made.and_then(Result::err)),
        }
        self.show_schemas();
    }

    /// A newer version is not taken: it is told, once, and where records of it must not be read they are waited for.
    fn refuse(&mut self, newest: Vec<SchemaVersion>, unfit: Option<Stop>) {
        let Some(evolution) = &self.parts.evolution else {
            return;
        };
        let reads = shown(evolution.read_as.iter().map(|followed| &followed.version));
        let news = shown(newest.iter());
        let is_read = |id: &SchemaId| evolution.read_as.iter().any(|followed| followed.version.id == *id);
        let ids = newest.iter().map(|version| version.id).filter(|id| !is_read(id));
        let ids: Vec<SchemaKey> = ids.map(SchemaKey::Id).collect();
        let policy = evolution.policy;
        self.evolving.seen = newest;
        let stop = match unfit {
            Some(Stop { message, hint, .. }) => {
                let message =
                    format!("schema {news} cannot be the reader schema in place of {reads}: {message}");
                Stop { message, hint, place: None }
            }
            None if policy == OnNewSchema::Pin => {
                let route = self.parts.route.as_str();
                info!(
                    route,
                    reads,
                    newest = news,
                    "there is a newer schema; the route keeps its own (`on_new_schema: pin`)"
                );
                return;
            }
            None => Stop {
                message: format!(
                    "schema {news} is newer than {reads}, which the route reads as (`on_new_schema: stop`)"
                ),
                hint: Some(
                    "a restart reads everything as the newest schema; `on_new_schema: widen` takes it \
                            without one"
                        .to_owned(),
                ),
                place: None,
            },
        };
        self.evolving.suspects.extend(ids);
        self.put_barrier(stop);
    }

    fn put_barrier(&mut self, stop: Stop) {
        if self.evolving.barrier.as_ref() == Some(&stop) {
            return;
        }
        let (route, reason, hint) = (self.parts.route.as_str(), stop.message.as_str(), stop.hint.as_deref());
        warn!(route, reason, hint, "the route will stop before the first record of a newer schema");
        self.account.trouble(reason, hint);
        self.evolving.barrier = Some(stop);
    }

    /// Does what is due: takes a newer version, or asks whether there is one.
    pub(super) async fn evolve(&mut self) {
        if let Some((newest, made)) = self.evolving.made.take() {
            if self.is_ready_to_replace(made.sinks.iter().map(|remade| remade.index).collect()).await {
                self.adopt(newest, *made).await;
            } else {
                self.evolving.made = Some((newest, made));
            }
        }
        let Some(evolution) = &self.parts.evolution else {
            return;
        };
        let now = Instant::now();
        let first = || first_due(&self.parts.route, evolution.interval, now);
        let due = *self.evolving.due.get_or_insert_with(first);
        if due <= now && self.evolving.asking.is_none() && self.evolving.made.is_none() {
            self.ask();
        }
    }

    /// Makes durable what the sinks hold that are to be replaced. If that cannot be, now, everything that is not durable
    /// is let go: it is read again, as the newer version, from where the sinks stand then.
    async fn is_ready_to_replace(&mut self, sinks: SinkSet) -> bool {
        if self.flush(sinks).await {
            self.report_progress().await;
        }
        self.leave_pending(sinks).await;
        if !matches!(self.state, State::Running) {
            return false;
        }
        if sinks.iter().any(|index| self.is_working(index) && self.ledger.is_pending(index)) {
            // Dead letters have to come first, and their sink is behind.
            self.abandon_all().await;
            return false;
        }
        true
    }

    /// Reads as `newest` from here on. No sink that is replaced holds anything that is not durable.
    async fn adopt(&mut self, newest: Vec<SchemaVersion>, made: Remade) {
        let Remade { decoders, handlers, sinks } = made;
        let stood = self.standing();
        let mut replaced = SinkSet::EMPTY;
        let mut names = Vec::new();
        for RemadeSink { index, rows, mut sink } in sinks {
            if sink.store() != Store::Own {
                for (key, topic, position) in self.stored[index].iter() {
                    sink.restore(*key, topic, *position);
                }
            }
            let place = &mut self.parts.sinks[index];
            place.former = place.settled();
            place.rows = rows;
            let former = std::mem::replace(&mut place.sink, sink);
            names.push(place.name.clone());
            // The end of a producer may take a moment.
            block_in_place(|| drop(former));
            if self.is_working(index) {
                replaced = replaced.with(index);
            }
        }
        (self.parts.decoders, self.parts.handlers) = (decoders, handlers);
        if let Some(evolution) = &mut self.parts.evolution {
            let from = shown(evolution.read_as.iter().map(|followed| &followed.version));
            let to = shown(newest.iter());
            let route = self.parts.route.as_str();
            info!(route, from, to, sinks = names.join(", "), "the route reads as a newer schema");
            for (followed, version) in evolution.read_as.iter_mut().zip(newest) {
                followed.version = version;
            }
            let due = Some(Instant::now() + evolution.interval);
            self.evolving = Evolving { due, ..Evolving::default() };
        }
        self.account.schema_changed();
        self.show_schemas();
        // A sink says where it stands before it is written to.
        if self.reset_positions(replaced, 0).await && self.standing() != stood {
            self.recover_at(replaced, 0, Instant::now());
        }
    }

    /// What each sink has accepted in each partition.
    fn standing(&self) -> Vec<Option<Vec<Offset>>> {
        self.keys.values().map(|key| self.ledger.accepted(key)).collect()
    }

    /// Where records of newer schemas begin in a batch, in each of its parts, if the route has to stop before them.
    pub(super) fn newer_in(&self, taken: &Taken) -> Vec<(usize, Place, SchemaKey)> {
        let suspects = &self.evolving.suspects;
        if self.evolving.barrier.is_none() || suspects.is_empty() {
            return Vec::new();
        }
        let newer =
            |record: &RecordRef<'_>| self.parts.decoders.named(record).find(|named| suspects.contains(named));
        let firsts = taken.parts.iter().enumerate().filter_map(|(number, part)| {
            part.records().find_map(|record| {
                let named = newer(&record)?;
                Some((number, Place::new(record.source(), Offset::new(record.offset())), named))
            })
        });
        firsts.collect()
    }

    /// Writes what comes before records of newer schemas, makes it durable, and stops.
    pub(super) async fn stop_before(&mut self, taken: Taken, newer: Vec<(usize, Place, SchemaKey)>) {
        let cuts = newer.iter().filter_map(|(part, place, _)| Some((*part, place.offset?)));
        if let Some(before) = taken.before(cuts) {
            self.process(before).await;
        }
        self.flush_all().await;
        let (Some((_, place, named)), Some(barrier)) = (newer.into_iter().next(), &self.evolving.barrier)
        else {
            return;
        };
        // If a sink failed meanwhile, the record comes again after it has recovered.
        if matches!(self.state, State::Running) {
            let offset = place.offset.unwrap_or_default();
            let message =
                format!("{} offset {offset} names schema {named}: {}", place.source, barrier.message);
            let hint = barrier.hint.clone();
            self.stop(message, hint, Some(place)).await;
        }
    }

    /// Tells of each writer schema that cannot be read as the reader schema: once, not for each of its records, which are
    /// counted and go where the route says.
    pub(super) fn tell_refused<'a>(&mut self, bad: impl Iterator<Item = (&'a Rejected, &'a Place)>) {
        let bad_records = match self.parts.bad_records {
            // The route stops, and says so.
            BadRecords::Stop => return,
            BadRecords::Skip => "skip",
            BadRecords::DeadLetter => "dead_letter",
        };
        for (Rejected { code, message, schema_id, .. }, place) in bad {
            // Of garbage each record may name another schema, which is not there.
            let Some(named) = schema_id.filter(|_| *code != code::UNKNOWN_ID) else {
                continue;
            };
            let decoders = &self.parts.decoders;
            let is_refused = || decoders.refusals(named).any(|why| message.ends_with(why));
            let refused = &mut self.evolving.refused;
            if refused.contains(&named) || !is_refused() {
                continue;
            }
            if refused.len() >= REFUSALS_MAX {
                refused.clear();
            }
            refused.insert(named);
            let (topic, partition) = (place.source.topic.as_str(), place.source.partition.0);
            warn!(
                route = self.parts.route,
                topic,
                partition,
                offset = place.offset.unwrap_or_default().get(),
                schema = %named,
                code,
                reason = message,
                bad_records,
                hint = "let the producer write a schema that the reader schema can read, or change `reader_schema`",
                "all records of a schema are bad records"
            );
        }
    }
}
