//! Waiting for schemas: a registry outage pauses the lane, an unknown id has its grace, and both wait
//! beside everything else the lane does.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use tracing::{info, warn};

use crate::codec::Learnt;
use crate::engine::message::Stop;
use crate::engine::{chain, retry};
use crate::model::{Classify, SchemaKey};
use crate::registry::{Registry, RegistryError};
use crate::repeat::Repeats;

use super::Lane;

/// How long an id may be unknown: a follower of the registry lags behind, a producer is quick.
const GRACE: Duration = Duration::from_secs(30);

/// After this many ids stayed unknown within [`EXPIRED_WINDOW`], further ones get no grace: somebody writes
/// garbage, and every new id would hold the route up again.
const EXPIRED_MAX: usize = 3;
const EXPIRED_WINDOW: Duration = Duration::from_secs(600);

/// Calls to the registry at the same time: a batch of garbage may name thousands of ids.
const LOOKUPS_MAX: usize = 16;

/// What came of a look-up, or the error at which a run that has an end gives up.
pub type Answer = (SchemaKey, Result<Learnt, RegistryError>);

/// Look-ups under way, all of one batch.
pub type Lookup = Pin<Box<dyn Future<Output = Vec<Answer>> + Send>>;

/// The result of the look-ups under way; waits for ever if there are none. Cancel-safe.
pub async fn learnt(lookup: &mut Option<Lookup>) -> Vec<Answer> {
    match lookup {
        Some(under_way) => {
            let learnt = under_way.await;
            *lookup = None;
            learnt
        }
        None => std::future::pending().await,
    }
}

impl Lane {
    /// Does the next batch wait for the registry?
    pub(super) fn waits_for_schemas(&self) -> bool {
        self.lookup.is_some() || self.evolving.is_awaited()
    }

    pub(super) fn look_up(&mut self, keys: Vec<SchemaKey>) {
        let now = Instant::now();
        self.account.waits_for_schemas(keys.len());
        self.expired.retain(|at| now.duration_since(*at) < EXPIRED_WINDOW);
        let grace = if self.expired.len() < EXPIRED_MAX { GRACE } else { Duration::ZERO };
        let route: Arc<str> = Arc::from(self.parts.route.as_str());
        let Some(registry) = self.parts.registry.clone() else {
            // A reader schema from a file, and no registry to ask: such records are bad.
            return keys.into_iter().for_each(|key| self.take_in(key, Learnt::Unknown));
        };
        // One grace for all of them: they wait side by side, also those that are asked for later.
        let (repeats, is_bounded) = (self.repeats.clone(), self.parts.is_bounded);
        let each = keys.into_iter().map(move |key| (key, route.clone(), registry.clone(), repeats.clone()));
        let all = stream::iter(each.collect::<Vec<_>>())
            .map(move |(key, route, registry, repeats)| async move {
                let wait = Wait { since: now, until: now + grace, is_bounded };
                (key, look_up(&route, registry.as_ref(), key, wait, &repeats).await)
            })
            .buffer_unordered(LOOKUPS_MAX)
            .collect();
        self.lookup = Some(Box::pin(all));
    }

    pub(super) async fn learn(&mut self, answers: Vec<Answer>) {
        let (mut given_up, mut may_be_newer) = (None, false);
        for (key, answer) in answers {
            match answer {
                Ok(learnt) => {
                    // Garbage names schemas that are not there, and they are no reason to ask for others.
                    if matches!(learnt, Learnt::Schema { .. }) {
                        may_be_newer |= self.suspect(key);
                    }
                    self.take_in(key, learnt);
                }
                Err(error) => given_up = Some(error),
            }
        }
        if let Some(error) = given_up {
            let hint = error.hint().map(|hint| hint.into_owned());
            let message = format!("gave up waiting for a schema: {}", chain(&error));
            self.fail(Stop { message, hint, place: None }).await;
        }
        if may_be_newer {
            self.ask_at_once();
        }
    }

    fn take_in(&mut self, key: SchemaKey, learnt: Learnt) {
        if matches!(learnt, Learnt::Unknown) && self.expired.len() < EXPIRED_MAX {
            self.expired.push(Instant::now());
        }
        self.parts.decoders.learn(key, learnt);
    }
}

/// How long a look-up waits.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// Of all look-ups of a batch, also of those that are made later.
    since: Instant,
    /// For an id that is unknown.
    until: Instant,
    /// The run has an end.
    is_bounded: bool,
}

async fn look_up(
    route: &str,
    registry: &dyn Registry,
    key: SchemaKey,
    wait: Wait,
    repeats: &Repeats,
) -> Result<Learnt, RegistryError> {
    let mut attempt = 0;
    let mut is_said = false;
    loop {
        let answer = match key {
            SchemaKey::Id(id) => registry.by_id(id).await,
            SchemaKey::Guid(guid) => registry.by_guid(guid).await,
        };
        let error = match answer {
            Ok(schema) => {
                if is_said {
                    info!(route, schema = %key, "the schema registry answers again");
                }
                return Ok(Learnt::Schema {
                    kind: schema.kind,
                    text: schema.text,
                    references: schema.references,
                });
            }
            Err(RegistryError::Unusable { problem, .. }) => return Ok(Learnt::Unusable(problem)),
            Err(error @ RegistryError::Foreign { .. }) => return Ok(Learnt::Foreign(error.to_string())),
            Err(RegistryError::Unknown { .. }) if Instant::now() >= wait.until => return Ok(Learnt::Unknown),
            Err(error) if wait.is_bounded && error.is_given_up(wait.since.elapsed()) => {
                return Err(error);
            }
            Err(error) => error,
        };
        attempt += 1;
        // Garbage names thousands of ids, which is one cause.
        if attempt == 1
            && let Some(times) = repeats.say("schema", 1, Instant::now())
        {
            is_said = true;
            let hint = error.hint();
            let error = chain(&error);
            warn!(route, schema = %key, error, hint = hint.as_deref(), times, "waiting for a schema");
        }
        tokio::time::sleep(error.retry_after().max(retry::pause(attempt))).await;
    }
}
