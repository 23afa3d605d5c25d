//! Where partitions end, asked of the brokers only while somebody looks.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tracing::debug;

use crate::kafka::{Cluster, ClusterError};
use crate::metrics::Lag;
use crate::model::{Offset, TopicPartition};
use crate::status::{LaneView, View};

/// Whoever looks more often gets the same answer: a question is two requests to each broker, for all partitions.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// A page waits so long for an answer, and then shows what was known: well below the 10 s that Prometheus gives a scrape.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The ends of partitions, as last heard.
pub type Known = BTreeMap<TopicPartition, Offset>;

type Bounds = BTreeMap<TopicPartition, (Offset, Offset)>;

/// Asks a client of its own, so that nobody who looks holds up a question of the engine.
pub struct Ends {
    cluster: Arc<dyn Cluster>,
    asked: Mutex<Asked>,
    known: std::sync::Mutex<Arc<Known>>,
}

#[derive(Default)]
struct Asked {
    at: Option<Instant>,
    /// At most one question.
    under_way: JoinSet<Result<Bounds, ClusterError>>,
}

impl Ends {
    pub fn new(cluster: Arc<dyn Cluster>) -> Self {
        Self { cluster, asked: Mutex::default(), known: std::sync::Mutex::default() }
    }

    /// The ends of what the lanes have taken up, as far as they are known.
    pub async fn of(&self, view: &View) -> Arc<Known> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Only who asks waits: the others are told what is known.
        let Ok(mut asked) = self.asked.try_lock() else {
            return known().clone();
        };
        let mut sources: Vec<TopicPartition> =
            view.lanes.iter().flat_map(|lane| lane.status.partitions.keys().cloned()).collect();
        let is_old = asked.at.is_none_or(|at| at.elapsed() >= ASK_INTERVAL);
        let is_due = is_old && asked.under_way.is_empty() && !sources.is_empty();
        if is_due {
            asked.at = Some(Instant::now());
            sources.sort();
            sources.dedup();
            let cluster = self.cluster.clone();
            asked.under_way.spawn(async move { cluster.bounds(&sources).await });
        }
        let answer = if is_due {
            tokio::time::timeout(ANSWER_MAX, asked.under_way.join_next()).await.ok().flatten()
        } else {
            asked.under_way.try_join_next()
        };
        match answer {
            Some(Ok(Ok(bounds))) => {
                let ends = bounds.into_iter().map(|(source, (_, end))| (source, end));
                *known() = Arc::new(ends.collect());
            }
            Some(Ok(Err(error))) => debug!(%error, "the ends of partitions are not known now"),
            Some(Err(error)) => debug!(%error, "the question for the ends of partitions failed"),
            None => {}
        }
        known().clone()
    }
}

/// How far the slowest sink is behind the end of a partition.
pub fn lag(next: &[Offset], end: Offset) -> u64 {
    let slowest = next.iter().min().copied().unwrap_or(end);
    u64::try_from(end.get() - slowest.get()).unwrap_or_default()
}

/// The offsets of the sinks that are waited for.
pub fn required(lane: &LaneView, next: &[Offset]) -> Vec<Offset> {
    let sinks = &lane.status.sinks;
    let is_required = |index: usize| sinks.get(index).is_none_or(|sink| sink.is_required);
    next.iter().enumerate().filter(|(index, _)| is_required(*index)).map(|(_, next)| *next).collect()
}

/// The lag of a lane; `None` as long as an end is not known.
pub fn lag_of(lane: &LaneView, ends: &Known) -> Option<Lag> {
    let mut all = Lag::default();
    for (source, next) in lane.status.partitions.iter() {
        let lag = lag(&required(lane, next), *ends.get(source)?);
        all.sum += lag;
        all.max = all.max.max(lag);
    }
    Some(all)
}
