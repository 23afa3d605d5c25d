//! Asking the registry for the newest versions of a route's subjects, and what its answer is to the route.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use tracing::{debug, warn};

use crate::config::plan::OnNewSchema;
use crate::engine::message::Stop;
use crate::engine::{chain, retry};
use crate::model::{Classify, Fault, SchemaKey, SchemaVersion};
use crate::registry::{Registry, RegistryError};
use crate::repeat::Repeats;

use super::evolve::{Followed, Remade, Remake, RemakeError};

/// The question that is under way.
pub type Asking = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What the registry, and what would become of the route, say to a question.
pub enum Answer {
    /// The route reads as the newest versions, which are these.
    Level(Vec<SchemaVersion>),
    /// Nothing that was not there before.
    Known,
    /// There are newer versions; with what was made for them, if they are to be taken.
    Newer { newest: Vec<SchemaVersion>, made: Option<Result<Box<Remade>, Stop>> },
    /// The newest version is of no use.
    Unusable(Stop),
    /// A subject is gone.
    Gone(RegistryError),
}

/// What the newest versions of subjects are to a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Level,
    Known,
    Newer,
}

/// `seen` was dealt with already; nothing, if that was what is read as. A registry of several nodes may answer with what
/// was newest a moment ago, so that a lower number is never newer.
pub fn judge(read_as: &[Followed], seen: &[SchemaVersion], newest: &[SchemaVersion]) -> Verdict {
    let is_read = |(followed, newest): (&Followed, &SchemaVersion)| followed.version.id == newest.id;
    if read_as.iter().zip(newest).all(is_read) {
        return Verdict::Level;
    }
    let versions: Vec<&SchemaVersion> = match seen {
        [] => read_as.iter().map(|followed| &followed.version).collect(),
        seen => seen.iter().collect(),
    };
    let is_newer = |(known, newest): (&SchemaVersion, &SchemaVersion)| {
        let is_lower = known.number.zip(newest.number).is_some_and(|(known, newest)| newest <= known);
        known.id != newest.id && !is_lower
    };
    if versions.into_iter().zip(newest).any(is_newer) { Verdict::Newer } else { Verdict::Known }
}

/// May a schema that a record names be newer than what is read as? Ids are given in their order, GUIDs tell nothing.
pub fn may_be_newer(named: SchemaKey, read_as: &[Followed]) -> bool {
    match named {
        SchemaKey::Id(id) => {
            let is_read = read_as.iter().any(|followed| followed.version.id == id);
            !is_read && read_as.iter().any(|followed| id > followed.version.id)
        }
        SchemaKey::Guid(_) => true,
    }
}

/// The first time the subjects are asked for: routes that start together do not ask together.
pub fn first_due(route: &str, interval: Duration, now: Instant) -> Instant {
    let digest = route.bytes().fold(0_u32, |digest, byte| digest.wrapping_mul(31).wrapping_add(byte.into()));
    now + interval / 2 + interval * (digest % 500) / 1000
}

/// All that is needed to find out.
pub struct Question {
    pub route: String,
    pub policy: OnNewSchema,
    pub read_as: Vec<Followed>,
    pub seen: Vec<SchemaVersion>,
    pub rows: Vec<SchemaRef>,
    pub registry: Arc<dyn Registry>,
    pub remake: Arc<dyn Remake>,
    pub repeats: Arc<Repeats>,
    pub is_awaited: bool,
}

impl Question {
    /// Asks until somebody answers: who does not answer says nothing of versions.
    pub async fn answer(self) -> Answer {
        let mut attempt = 0;
        loop {
            let error = match self.ask().await {
                Ok(answer) => return answer,
                Err(error @ RegistryError::Unknown { .. }) => return Answer::Gone(error),
                Err(error) if error.fault() != Fault::Transient => {
                    let hint = error.hint().map(|hint| hint.into_owned());
                    return Answer::Unusable(Stop { message: chain(&error), hint, place: None });
                }
                Err(error) => error,
            };
            attempt += 1;
            let (route, hint) = (self.route.as_str(), error.hint());
            let error_text = chain(&error);
            if !self.is_awaited {
                debug!(route, error = error_text, "the newest schema is not known");
            } else if attempt == 1
                && let Some(times) = self.repeats.say("newest schema", 1, Instant::now())
            {
                let hint = hint.as_deref();
                warn!(route, error = error_text, hint, times, "waiting for the newest schema of a subject");
            }
            tokio::time::sleep(error.retry_after().max(retry::pause(attempt))).await;
        }
    }

    async fn ask(&self) -> Result<Answer, RegistryError> {
        let mut newest = Vec::with_capacity(self.read_as.len());
        for followed in &self.read_as {
            newest.push(self.registry.newest(&followed.version.subject).await?);
        }
        let versions: Vec<SchemaVersion> = newest.iter().map(|newest| newest.version.clone()).collect();
        let made = match judge(&self.read_as, &self.seen, &versions) {
            Verdict::Level => return Ok(Answer::Level(versions)),
            Verdict::Known => return Ok(Answer::Known),
            Verdict::Newer if self.policy != OnNewSchema::Widen => None,
            Verdict::Newer => match self.remake.remake(&newest, &self.read_as, &self.rows).await {
                Ok(remade) => Some(Ok(Box::new(remade))),
                Err(RemakeError::Unfit(stop)) => Some(Err(stop)),
                Err(RemakeError::Registry(error)) => return Err(error),
            },
        };
        Ok(Answer::Newer { newest: versions, made })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Side;
    use crate::model::SchemaId;

    fn version(id: u32, number: Option<u32>) -> SchemaVersion {
        SchemaVersion { subject: "s".to_owned(), id: SchemaId(id), number }
    }

    fn followed(versions: &[SchemaVersion]) -> Vec<Followed> {
        let each = Side::BOTH.into_iter().zip(versions);
        each.map(|(side, version)| Followed { side, version: version.clone() }).collect()
    }

    #[test]
    fn a_version_is_newer_than_what_was_dealt_with_never_by_a_lower_number() {
        let two = version(20, Some(2));
        let read_as = followed(std::slice::from_ref(&two));
        for (seen, newest, verdict) in [
            (None, two.clone(), Verdict::Level),
            // The number may not have been known at the start.
            (None, version(20, None), Verdict::Level),
            (None, version(30, Some(3)), Verdict::Newer),
            (None, version(30, None), Verdict::Newer),
            // Registered elsewhere before, so that its id is a lower one.
            (None, version(10, Some(3)), Verdict::Newer),
            // A node of the registry that lags behind, or a version that was deleted.
            (None, version(10, Some(1)), Verdict::Known),
            (Some(version(30, Some(3))), version(30, Some(3)), Verdict::Known),
            (Some(version(30, Some(3))), version(40, Some(4)), Verdict::Newer),
            // The one that did not fit was deleted.
            (Some(version(30, Some(3))), two.clone(), Verdict::Level),
        ] {
            let seen: Vec<SchemaVersion> = seen.into_iter().collect();
            assert_eq!(judge(&read_as, &seen, std::slice::from_ref(&newest)), verdict, "{seen:?} {newest:?}");
        }
    }

    #[test]
    fn keys_and_values_are_followed_together() {
        let versions = [version(1, Some(1)), version(7, Some(1))];
        let read_as = followed(&versions);
        assert_eq!(judge(&read_as, &[], &versions), Verdict::Level);
        let newer = [version(1, Some(1)), version(8, Some(2))];
        assert_eq!(judge(&read_as, &[], &newer), Verdict::Newer);
        assert_eq!(judge(&read_as, &newer, &newer), Verdict::Known);
    }

    #[test]
    fn only_what_may_be_newer_is_a_reason_to_ask() {
        let read_as = followed(&[version(5, Some(2)), version(9, Some(1))]);
        let ids = [4, 5, 6, 9, 10].map(|id| may_be_newer(SchemaId(id).into(), &read_as));
        assert_eq!(ids, [false, false, true, false, true]);
        assert!(may_be_newer(SchemaKey::Guid(uuid::Uuid::nil()), &read_as));
    }

    #[test]
    fn routes_that_start_together_ask_apart() {
        let (now, interval) = (Instant::now(), Duration::from_secs(60));
        let dues = ["orders/a", "orders/b", "orders/c"].map(|route| first_due(route, interval, now) - now);
        assert!(dues[0] != dues[1] && dues[1] != dues[2], "{dues:?}");
        assert!(dues.iter().all(|due| (interval / 2..interval).contains(due)), "{dues:?}");
    }
}
