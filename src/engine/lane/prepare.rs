//! A lane before it can work: its schema is fetched, its views are bound. Meanwhile it answers the engine, so
//! that nobody waits for it; and if what it needs is of no use it stops like any other.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tracing::debug;

use crate::config::plan::Route;
use crate::engine::message::{Control, LaneId, Report, Stop};
use crate::kafka::Gauge;
use crate::model::Chunk;
use crate::status::LaneBoard;

use super::{CHUNKS_MAX, CONTROLS_MAX, Lane, LaneHandle, LaneParts, Summary};

/// Makes what lanes are made of.
#[async_trait]
pub trait LaneFactory: Send + Sync {
    /// What a route needs. Waits for what is away; an error needs a person.
    async fn parts(&self, route: &Route) -> Result<LaneParts, Stop>;
}

/// The lane's ends of the channels to the engine and from the source.
pub struct Ends {
    pub id: LaneId,
    pub control: mpsc::Receiver<Control>,
    pub chunks: mpsc::Receiver<Chunk>,
    /// What is read for sinks that catch up.
    pub behind: mpsc::Receiver<Chunk>,
    pub reports: mpsc::Sender<(LaneId, Report)>,
    /// Offsets that all sinks have taken.
    pub passed: Arc<AtomicU64>,
    pub board: Arc<LaneBoard>,
}

impl Ends {
    pub async fn report(&self, report: Report) {
        // The engine is gone only when the process ends.
        if self.reports.send((self.id, report)).await.is_err() {
            debug!(lane = self.id.0, "nobody listens to this lane any more");
        }
    }
}

/// A lane's whole life.
pub type Life = Pin<Box<dyn Future<Output = Summary> + Send>>;

/// A lane that works as soon as its `parts` are there.
pub fn lane(
    id: LaneId,
    route: &str,
    gauge: Arc<Gauge>,
    reports: mpsc::Sender<(LaneId, Report)>,
    parts: impl Future<Output = Result<LaneParts, Stop>> + Send + 'static,
) -> (Life, LaneHandle) {
    let (control_tx, control) = mpsc::channel(CONTROLS_MAX);
    let (chunk_tx, chunks) = mpsc::channel(CHUNKS_MAX);
    let (behind_tx, behind) = mpsc::channel(CHUNKS_MAX);
    let behind_gauge = gauge.beside();
    let passed = Arc::new(AtomicU64::new(0));
    let board = LaneBoard::new(route);
    let handle = LaneHandle {
        route: route.to_owned(),
        control: control_tx,
        chunks: chunk_tx,
        gauge: gauge.clone(),
        behind: behind_tx,
        behind_gauge: behind_gauge.clone(),
        passed: passed.clone(),
        board: board.clone(),
    };
    let ends = Ends { id, control, chunks, behind, reports, passed, board };
    (Box::pin(live(ends, route.to_owned(), [gauge, behind_gauge], parts)), handle)
}

/// What is made of the parts; nothing ever, once there is nothing to wait for. Cancel-safe.
async fn made<F: Future<Output = Result<LaneParts, Stop>> + Unpin>(
    parts: &mut Option<F>,
) -> Result<LaneParts, Stop> {
    match parts {
        Some(parts) => parts.await,
        None => std::future::pending().await,
    }
}

async fn live(
    mut ends: Ends,
    route: String,
    gauges: [Arc<Gauge>; 2],
    parts: impl Future<Output = Result<LaneParts, Stop>> + Send,
) -> Summary {
    let mut parts = Some(Box::pin(parts));
    let mut summary = Summary { route, ..Summary::default() };
    let (mut topics, mut to_resume) = (BTreeMap::new(), BTreeMap::new());
    loop {
        let stop = tokio::select! {
            biased;
            control = ends.control.recv() => match control {
                Some(Control::Topics(more)) => {
                    topics.extend(more);
                    None
                }
                Some(Control::Resume(partitions)) => {
                    for (source, committed) in partitions {
                        to_resume.entry(source).or_insert(committed);
                    }
                    None
                }
                Some(Control::Revoke { partitions, .. }) => {
                    to_resume.retain(|source, _| !partitions.contains(source));
                    ends.report(Report::Released(partitions)).await;
                    None
                }
                // Nothing is fetched before the lane has said where it stands.
                Some(Control::Assigned(_)) => None,
                Some(Control::Look(_)) => {
                    ends.report(Report::Stands(BTreeMap::new())).await;
                    None
                }
                // Another lane's reading; what is lost for this one is seen when it says where it stands.
                Some(Control::Lost { .. }) => None,
                Some(Control::Fail(stop)) => Some(stop),
                Some(Control::Drain) => {
                    ends.report(Report::Drained).await;
                    return summary;
                }
                None => return summary,
            },
            made = made(&mut parts) => match made {
                Ok(parts) => {
                    let lane = Lane::new(parts, gauges, ends, topics, to_resume);
                    return Box::pin(lane.run()).await;
                }
                Err(stop) => Some(stop),
            },
            // Taken and dropped: another lane of the topic may be fed.
            _ = ends.chunks.recv() => None,
            _ = ends.behind.recv() => None,
        };
        if let Some(stop) = stop.filter(|_| summary.stop.is_none()) {
            // With all it holds: others may wait for the same schema.
            parts = None;
            summary.stop = Some(stop.clone());
            ends.report(Report::Stopped(stop)).await;
        }
    }
}
