//! The ends by which a lane is reached: where chunks come into it, and what steers it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::engine::message::Control;
use crate::kafka::{Gauge, Outlet};
use crate::model::Chunk;
use crate::status::{Held, LaneBoard, Reading as Measure};

/// The two ends by which a lane is reached.
pub struct LaneHandle {
    pub route: String,
    pub control: mpsc::Sender<Control>,
    pub(super) chunks: mpsc::Sender<Chunk>,
    pub(super) gauge: Arc<Gauge>,
    /// For what catches up: it must not hold up the front, nor the other way round.
    pub(super) behind: mpsc::Sender<Chunk>,
    pub(super) behind_gauge: Arc<Gauge>,
    pub(super) passed: Arc<AtomicU64>,
    /// What the lane tells of itself.
    pub board: Arc<LaneBoard>,
}

impl LaneHandle {
    /// Offsets that all sinks have taken, durable or not, counted again when they are read again.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// An inbox for chunks of the front.
    pub fn outlet(&self) -> Box<dyn Outlet> {
        Box::new(Inbox { chunks: self.chunks.clone(), gauge: self.gauge.clone() })
    }

    /// A look at what the lane holds, for the front and for what catches up. Full is what nothing is fetched for at the
    /// front.
    pub fn held(&self) -> Measure {
        let (front, behind) = (self.gauge.clone(), self.behind_gauge.clone());
        Box::new(move || Held { bytes: (front.used() + behind.used()) as u64, is_full: front.is_full() })
    }

    /// An inbox for chunks of what catches up.
    pub fn catch_up_outlet(&self) -> Box<dyn Outlet> {
        Box::new(Inbox { chunks: self.behind.clone(), gauge: self.behind_gauge.clone() })
    }
}

/// Takes what is fetched for a lane.
#[derive(Debug)]
pub struct Inbox {
    pub chunks: mpsc::Sender<Chunk>,
    pub gauge: Arc<Gauge>,
}

impl Outlet for Inbox {
    fn offer(&self, chunk: Chunk) -> Result<(), Chunk> {
        match self.chunks.try_send(chunk) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(chunk)) => Err(chunk),
            // The lane has ended: what it would get is fetched again by the next one.
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    fn gauge(&self) -> &Arc<Gauge> {
        &self.gauge
    }
}
