//! Where chunks come into a lane.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::kafka::{Gauge, Outlet};
use crate::model::Chunk;

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
