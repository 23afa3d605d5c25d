//! A route for another reader schema: for one that follows its subject while it runs, and for a candidate.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use uuid::Uuid;

use crate::codec::{Decoder, Decoders, Learnt, Side, letters, widen};
use crate::config::plan::{Postgres, PrimaryKey, ReaderSchema, Route, SchemaFormat, Sink, TableRows, Target};
use crate::engine::chain;
use crate::engine::lane::{Evolution, Followed, Remade, RemadeSink, Remake, RemakeError};
use crate::engine::message::Stop;
use crate::model::{Classify, ClusterId, Fault, SchemaId, SchemaKey};
use crate::registry::{Newest, RegisteredSchema, Registry, RegistryError};
use crate::sink::kafka::Transaction;

use super::build::{self, Bound, ReaderError};
use super::changes;
use super::load::Loaded;

/// Asking for subjects more often would cost the registry more than it tells.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The newest versions of subjects that a route was bound to.
pub fn followed(route: &Route, decoders: &Decoders) -> Vec<Followed> {
    let mut all: Vec<Followed> = Vec::new();
    for (of_type, decoder) in route.by_type().iter().zip(decoders.each()) {
        for side in Side::BOTH {
            let form = build::registry_form(of_type, side);
            let Some(version) =
                form.filter(|form| form.schema == ReaderSchema::Latest).and_then(|_| decoder.version(side))
            else {
                continue;
            };
            let is_it = |known: &Followed| known.side == side && known.version.subject == version.subject;
            // Record types may share a subject.
            if !all.iter().any(is_it) {
                all.push(Followed { side, version: version.clone() });
            }
        }
    }
    all
}

/// How a route evolves, if it follows a subject.
pub fn evolution(
    route: &Route,
    decoders: &Decoders,
    loaded: &Arc<Loaded>,
    registry: Option<&Arc<dyn Registry>>,
    cluster: &ClusterId,
    transaction: Option<Transaction>,
) -> Option<Evolution> {
    let read_as = followed(route, decoders);
    if read_as.is_empty() {
        return None;
    }
    let (registry, settings) = (registry?.clone(), loaded.plan.registry.as_ref()?);
    let follower = Follower {
        route: route.clone(),
        loaded: loaded.clone(),
        registry,
        cluster: cluster.clone(),
        transaction,
    };
    Some(Evolution {
        policy: route.on_new_schema,
        interval: settings.refresh.max(INTERVAL_MIN),
        read_as,
        remake: Arc::new(follower),
    })
}

/// Makes a route's parts anew.
struct Follower {
    route: Route,
    loaded: Arc<Loaded>,
    registry: Arc<dyn Registry>,
    cluster: ClusterId,
    /// What its sinks write in goes on.
    transaction: Option<Transaction>,
}

#[async_trait]
impl Remake for Follower {
    async fn remake(
        &self,
        newest: &[Newest],
        former: &[Followed],
        rows: &[SchemaRef],
    ) -> Result<Remade, RemakeError> {
        let bound = bind(&self.route, newest, former, self.registry.as_ref()).await;
        let bound = bound.map_err(|misfit| misfit.told(&self.loaded))?;
        let around = build::Surroundings {
            kafka: &self.loaded.plan.kafka,
            cluster: &self.cluster,
            registry: Some(&self.registry),
            clusters: &self.loaded.plan.clusters,
            transaction: self.transaction.as_ref(),
        };
        let mut sinks = Vec::new();
        let outputs = self.route.sinks.iter();
        let outputs =
            outputs.map(|sink| (sink, bound.schema(sink), changes::delete_key(&self.route, &bound, sink)));
        let letters = self.route.dead_letters.iter().map(|sink| (sink, letters::schema(), None));
        for (index, ((sink, schema, deletes), former)) in outputs.chain(letters).zip(rows).enumerate() {
            if schema == *former && !is_by_record_key(sink) {
                // It goes on, with the files it has open.
                continue;
            }
            check_rows(&sink.name, former, &schema).map_err(|misfit| misfit.told(&self.loaded))?;
            let key = bound.of(sink).key_type();
            let built = build::lane_sink(sink, schema.clone(), &key, deletes, around);
            let built = built.map_err(|error| RemakeError::Unfit(stop(format!("{error:#}"), None)))?;
            sinks.push(RemadeSink { index, rows: schema, sink: built });
        }
        Ok(Remade { decoders: bound.decoders, handlers: build::handlers(bound.views), sinks })
    }
}

/// Does a sink know its rows by the fields of the record's key? They may be others although its rows are the same.
fn is_by_record_key(sink: &Sink) -> bool {
    let by_record_key = TableRows::Upsert(PrimaryKey::RecordKey);
    matches!(&sink.target, Target::Postgres(Postgres { rows, .. }) if *rows == by_record_key)
}

fn stop(message: String, hint: Option<&str>) -> Stop {
    Stop { message, hint: hint.map(str::to_owned), place: None }
}

/// Why a route does not fit a schema.
pub enum Misfit {
    Reader(ReaderError),
    /// With their places in the file.
    Problems(Vec<crate::config::Problem>),
    /// What is written now could not be read, or not beside what was written.
    Broken {
        message: String,
        hint: &'static str,
    },
}

impl Misfit {
    /// For the lane.
    fn told(self, loaded: &Loaded) -> RemakeError {
        match self {
            Self::Reader(ReaderError::Registry { source, .. }) if source.fault() == Fault::Transient => {
                RemakeError::Registry(source)
            }
            other => {
                let (message, hint) = other.shown(loaded);
                RemakeError::Unfit(stop(message, hint))
            }
        }
    }

    /// What is wrong, and what helps.
    pub fn shown(&self, loaded: &Loaded) -> (String, Option<&'static str>) {
        match self {
            Self::Reader(error) => (chain(error), None),
            Self::Problems(problems) => (loaded.render(problems), Some("see `sidestream check`")),
            Self::Broken { message, hint } => (message.clone(), Some(*hint)),
        }
    }
}

/// Binds a route to these versions instead of `former`, whose records are still written.
///
/// # Errors
/// [`Misfit`]
pub async fn bind(
    route: &Route,
    newest: &[Newest],
    former: &[Followed],
    registry: &dyn Registry,
) -> Result<Bound, Misfit> {
    let given = Given { newest, registry };
    let decoders = build::decoders(route, Some(&given)).await.map_err(Misfit::Reader)?;
    let mut bound = build::bind(route, decoders).await.map_err(Misfit::Problems)?;
    for Followed { side, version } in former {
        let key = SchemaKey::Id(version.id);
        let schema = match registry.by_id(version.id).await {
            Ok(schema) => schema,
            Err(source) if source.fault() == Fault::Transient => {
                return Err(Misfit::Reader(ReaderError::Registry { route: route.name.clone(), source }));
            }
            // It is gone, and with it who would write it.
            Err(_) => continue,
        };
        bound.decoders.learn(key, learnt(schema));
        // What has another subject never reads what is written under this one.
        let is_of = |decoder: &&Decoder| {
            decoder.version(*side).is_none_or(|newest| newest.subject == version.subject)
        };
        let mut readers = bound.decoders.each().iter().filter(is_of);
        if let Some(refusal) = readers.find_map(|decoder| decoder.refusal(*side, key)) {
            return Err(Misfit::Broken {
                message: format!("what was written so far could not be read: {refusal}"),
                hint: "register a version that reads the former one (compatibility BACKWARD); a restart takes this \
                       one as it is, and then the former records are bad records",
            });
        }
    }
    Ok(bound)
}

/// May a sink be given rows of `into` after rows of `from`?
///
/// # Errors
/// [`Misfit::Broken`], naming the column.
pub fn check_rows(sink: &str, from: &SchemaRef, into: &SchemaRef) -> Result<(), Misfit> {
    widen::check(from.fields(), into.fields()).map_err(|changed| Misfit::Broken {
        message: format!("sink `{sink}`: column {changed}, which readers of both could not take"),
        hint: "let the sink read a view that casts the column to its former type; a restart takes the new type as \
               it is",
    })
}

pub fn learnt(schema: RegisteredSchema) -> Learnt {
    let RegisteredSchema { kind, text, references, .. } = schema;
    Learnt::Schema { kind, text, references }
}

/// A registry whose subjects have these newest versions.
pub struct Given<'a> {
    pub newest: &'a [Newest],
    pub registry: &'a dyn Registry,
}

#[async_trait]
impl Registry for Given<'_> {
    async fn by_id(&self, id: SchemaId) -> Result<RegisteredSchema, RegistryError> {
        self.registry.by_id(id).await
    }

    async fn by_guid(&self, guid: Uuid) -> Result<RegisteredSchema, RegistryError> {
        self.registry.by_guid(guid).await
    }

    async fn by_subject(
        &self,
        subject: &str,
        version: Option<u32>,
    ) -> Result<RegisteredSchema, RegistryError> {
        match version {
            None => self.newest(subject).await.map(|newest| newest.schema),
            Some(_) => self.registry.by_subject(subject, version).await,
        }
    }

    async fn newest(&self, subject: &str) -> Result<Newest, RegistryError> {
        match self.newest.iter().find(|newest| newest.version.subject == subject) {
            Some(newest) => Ok(newest.clone()),
            None => self.registry.newest(subject).await,
        }
    }

    async fn register(
        &self,
        subject: &str,
        format: SchemaFormat,
        text: &str,
    ) -> Result<SchemaId, RegistryError> {
        self.registry.register(subject, format, text).await
    }

    async fn find(&self, subject: &str, format: SchemaFormat, text: &str) -> Result<SchemaId, RegistryError> {
        self.registry.find(subject, format, text).await
    }

    async fn is_compatible(
        &self,
        subject: &str,
        format: SchemaFormat,
        text: &str,
    ) -> Result<bool, RegistryError> {
        self.registry.is_compatible(subject, format, text).await
    }

    async fn subjects_of(&self, key: SchemaKey) -> Result<Vec<String>, RegistryError> {
        self.registry.subjects_of(key).await
    }
}
