//! Waiting for schemas: a registry outage pauses the lane, an unknown id has its grace, and both wait
//! beside everything else the lane does.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use tracing::{info, warn};

use crate::codec::Learnt;
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

/// Look-ups under way, all of one batch.
pub type Lookup = Pin<Box<dyn Future<Output = Vec<(SchemaKey, Learnt)>> + Send>>;

/// The result of the look-ups under way; waits for ever if there are none. Cancel-safe.
pub async fn learnt(lookup: &mut Option<Lookup>) -> Vec<(SchemaKey, Learnt)> {
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
            let unknown = keys.into_iter().map(|key| (key, Learnt::Unknown)).collect();
            return self.learn(unknown);
        };
        // One grace for all of them: they wait side by side, also those that are asked for later.
        let repeats = self.repeats.clone();
        let each = keys.into_iter().map(move |key| (key, route.clone(), registry.clone(), repeats.clone()));
        let all = stream::iter(each.collect::<Vec<_>>())
            .map(move |(key, route, registry, repeats)| async move {
                (key, look_up(&route, registry.as_ref(), key, now + grace, &repeats).await)
            })
            .buffer_unordered(LOOKUPS_MAX)
            .collect();
        self.lookup = Some(Box::pin(all));
    }

    pub(super) fn learn(&mut self, learnt: Vec<(SchemaKey, Learnt)>) {
        let mut may_be_newer = false;
        for (key, schema) in learnt {
            if matches!(schema, Learnt::Unknown) && self.expired.len() < EXPIRED_MAX {
                self.expired.push(Instant::now());
            }
            // Garbage names schemas that are not there, and they are no reason to ask for others.
            if matches!(schema, Learnt::Schema { .. }) {
                may_be_newer |= self.suspect(key);
            }
            self.parts.decoder.learn(key, schema);
        }
        if may_be_newer {
            self.ask_at_once();
        }
    }
}

async fn look_up(
    route: &str,
    registry: &dyn Registry,
    key: SchemaKey,
    until: Instant,
    repeats: &Repeats,
) -> Learnt {
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
                return Learnt::Schema {
                    kind: schema.kind,
                    text: schema.text,
                    references: schema.references,
                };
            }
            Err(RegistryError::Unusable { problem, .. }) => return Learnt::Unusable(problem),
            Err(error @ RegistryError::Foreign { .. }) => return Learnt::Foreign(error.to_string()),
            Err(RegistryError::Unknown { .. }) if Instant::now() >= until => return Learnt::Unknown,
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
