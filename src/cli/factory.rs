//! What lanes are made of: a route's schema, its views bound to it, its sinks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::codec::{Decoder, letters};
use crate::config::Problem;
use crate::config::plan::{Route, Sink};
use crate::engine::lane::{Feed, LaneFactory, LaneParts, LaneSink};
use crate::engine::message::Stop;
use crate::engine::{chain, retry};
use crate::kafka::Cluster;
use crate::model::{Classify, ClusterId, Fault};
use crate::registry::{Registry, RegistryError};
use crate::sink::Settled;

use super::build::{self, ReaderError};
use super::load::Loaded;
use super::transactions::Groups;
use super::{changes, follow};

/// Routes that ask the registry at the same time: a pattern may match thousands of topics.
const ASKING_MAX: usize = 16;

/// So long a start waits for all schemas, to tell every mistake of the file at once and end. Routes whose schema
/// has not come by then go on waiting by themselves.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(5);

/// So long a service waits for a subject: topics are created before their first schema is registered.
const SUBJECT_GRACE: Duration = Duration::from_secs(30);

pub struct Factory {
    loaded: Arc<Loaded>,
    registry: Option<Arc<dyn Registry>>,
    cluster: Arc<dyn Cluster>,
    cluster_id: ClusterId,
    groups: Groups,
    asking: Semaphore,
    /// A bounded run does not wait for what is not there yet.
    is_bounded: bool,
    /// What the first look has made, by route.
    ready: Mutex<HashMap<String, LaneParts>>,
}

/// Why a lane cannot be made.
enum Failure {
    Reader(ReaderError),
    Problems(Vec<Problem>),
    Sink(anyhow::Error),
}

impl Factory {
    pub fn new(
        loaded: Arc<Loaded>,
        registry: Option<Arc<dyn Registry>>,
        cluster: Arc<dyn Cluster>,
        cluster_id: ClusterId,
        groups: Groups,
        is_bounded: bool,
    ) -> Self {
        let asking = Semaphore::new(ASKING_MAX);
        Self { loaded, registry, cluster, cluster_id, groups, asking, is_bounded, ready: Mutex::default() }
    }

    /// Makes what can be made at once, and returns what is wrong in the file.
    pub async fn first_look(&self, routes: &[Route]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let all = stream::iter(routes)
            .map(|route| async move { (route, self.attempt(route).await) })
            .buffer_unordered(ASKING_MAX);
        let collect = async {
            let mut all = std::pin::pin!(all);
            while let Some((route, made)) = all.next().await {
                match made {
                    Ok(parts) => {
                        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
                        ready.insert(route.name.clone(), parts);
                    }
                    Err(Failure::Problems(found)) => problems.extend(found),
                    // The route's lane meets it again, and tells.
                    Err(Failure::Reader(_) | Failure::Sink(_)) => {}
                }
            }
        };
        if tokio::time::timeout(FIRST_LOOK_MAX, collect).await.is_err() {
            warn!("not all schemas came in time; their routes go on waiting");
        }
        problems
    }

    async fn attempt(&self, route: &Route) -> Result<LaneParts, Failure> {
        let decoders = {
            let needed = build::needs_registry(route);
            // Closed only when this is dropped.
            let _permit = if needed { self.asking.acquire().await.ok() } else { None };
            build::decoders(route, self.registry.as_deref()).await.map_err(Failure::Reader)?
        };
        self.assemble(route, decoders).await
    }

    async fn assemble(&self, route: &Route, decoders: Vec<Decoder>) -> Result<LaneParts, Failure> {
        let bound = build::bind(route, decoders).await.map_err(Failure::Problems)?;
        let transaction = self.groups.transaction(route, &self.loaded.plan);
        let around = build::Surroundings {
            kafka: &self.loaded.plan.kafka,
            cluster: &self.cluster_id,
            registry: self.registry.as_ref(),
            clusters: &self.loaded.plan.clusters,
            transaction: transaction.as_ref(),
        };
        let lane_sink = |sink: &Sink, feed, schema: SchemaRef, deletes| {
            let key = bound.of(sink).key_type();
            let built = build::lane_sink(sink, SchemaRef::clone(&schema), &key, deletes, around)?;
            Ok(LaneSink {
                name: sink.name.clone(),
                identity: sink.identity.clone(),
                feed,
                record_type: sink.record_type,
                start: sink.start.clone(),
                rows: schema,
                sink: built,
                is_required: sink.is_required,
                former: Settled::default(),
            })
        };
        let outputs = route.sinks.iter().map(|sink| {
            let feed = sink.from.map_or(Feed::Fields, Feed::View);
            lane_sink(sink, feed, bound.schema(sink), changes::delete_key(route, &bound, sink))
        });
        let letters =
            route.dead_letters.iter().map(|sink| lane_sink(sink, Feed::DeadLetters, letters::schema(), None));
        let sinks = outputs.chain(letters).collect::<anyhow::Result<Vec<_>>>().map_err(Failure::Sink)?;
        let (registry, cluster) = (self.registry.as_ref(), &self.cluster_id);
        let evolution =
            follow::evolution(route, &bound.decoders, &self.loaded, registry, cluster, transaction);
        Ok(LaneParts {
            route: route.name.clone(),
            sinks,
            decoders: bound.decoders,
            handlers: build::handlers(bound.views),
            registry: self.registry.clone().map(|registry| build::registry_of(route, registry)),
            cluster: self.cluster.clone(),
            limits: route.batch,
            start: route.start.clone(),
            start_hash: route.start_hash.clone(),
            on_data_loss: route.on_data_loss,
            bad_records: route.bad_records,
            refused_rows: route.refused_rows,
            other_types: route.other_types,
            is_replay: route.replays.is_some(),
            evolution,
            is_bounded: self.is_bounded,
        })
    }

    fn stop(&self, failure: &Failure) -> Stop {
        match failure {
            Failure::Reader(error) => {
                let hint = match error {
                    ReaderError::Registry { source, .. } => source.hint().map(|hint| hint.into_owned()),
                    ReaderError::Unusable { .. } => None,
                };
                Stop { message: chain(error), hint, place: None }
            }
            Failure::Problems(problems) => Stop {
                message: self.loaded.render(problems),
                hint: Some("see `sidestream check`".to_owned()),
                place: None,
            },
            Failure::Sink(error) => Stop { message: format!("{error:#}"), hint: None, place: None },
        }
    }
}

#[async_trait]
impl LaneFactory for Factory {
    async fn parts(&self, route: &Route) -> Result<LaneParts, Stop> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).remove(&route.name);
        if let Some(parts) = ready {
            return Ok(parts);
        }
        let mut attempt = 0;
        let since = Instant::now();
        let is_early = |error: &RegistryError| {
            let is_unknown = matches!(error, RegistryError::Unknown { .. });
            is_unknown && !self.is_bounded && since.elapsed() < SUBJECT_GRACE
        };
        let is_awaited = |error: &RegistryError| {
            error.fault() == Fault::Transient && !(self.is_bounded && error.is_given_up(since.elapsed()))
        };
        loop {
            match self.attempt(route).await {
                Ok(parts) => return Ok(parts),
                Err(Failure::Reader(ReaderError::Registry { source, .. }))
                    if is_awaited(&source) || is_early(&source) =>
                {
                    attempt += 1;
                    if attempt == 1 {
                        let hint = source.hint();
                        warn!(
                            route = route.name,
                            error = chain(&source),
                            hint = hint.as_deref(),
                            "waiting for the schema registry"
                        );
                    }
                    tokio::time::sleep(source.retry_after().max(retry::pause(attempt))).await;
                }
                Err(failure) => return Err(self.stop(&failure)),
            }
        }
    }
}
