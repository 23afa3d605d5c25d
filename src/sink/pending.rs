//! Positions of a sink that has no place of its own for them: kept here while it runs, beside the group's
//! offsets otherwise (PROTOCOL §3).

use std::time::Instant;

use crate::model::{Move, Position, PositionKey, Positions, TopicName};

use super::SinkError;

/// What was accepted and what is settled.
#[derive(Debug, Default)]
pub struct GroupPositions {
    settled: Positions,
    accepted: Vec<Move>,
    since: Option<Instant>,
}

impl GroupPositions {
    pub fn settled(&self) -> &Positions {
        &self.settled
    }

    pub fn accept(&mut self, moves: &[Move]) {
        self.since.get_or_insert_with(Instant::now);
        self.accepted.extend(moves.iter().cloned());
    }

    pub fn accepted(&self) -> &[Move] {
        &self.accepted
    }

    /// Since when something is accepted that is not settled.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// What was accepted is where it should be.
    ///
    /// # Errors
    /// [`SinkError::Conflict`] if a move does not start where its partition stands.
    pub fn settle(&mut self) -> Result<Positions, SinkError> {
        let moves = std::mem::take(&mut self.accepted);
        self.since = None;
        self.settled.apply(&moves).map_err(SinkError::Conflict)?;
        Ok(self.settled.clone())
    }

    pub fn abandon(&mut self) {
        self.accepted.clear();
        self.since = None;
    }

    pub fn restore(&mut self, key: PositionKey, topic: &TopicName, position: Position) {
        self.settled.restore(key, topic.clone(), position);
    }
}
