//! Where the rows of a route come to rest.
//!
//! A sink keeps its own progress with its data (PROTOCOL §5): positions move in the same atomic step
//! that makes rows durable, and only from where they stand. The engine never writes progress for a sink.

mod background;
pub mod console;
pub mod delta;
mod error;
pub mod file;
pub mod http;
pub mod kafka;
pub mod owner;
mod pending;
pub mod postgres;
pub mod survey;

use std::time::Instant;

use async_trait::async_trait;

use crate::model::{Batch, Position, PositionKey, Positions, TopicName};

pub use background::Background;
pub use error::SinkError;

/// A place where the rows of one view come to rest.
///
/// Called by one task at a time, side by side with other sinks, and never cut off in the middle of a call, so that no call
/// has to be safe for that: [`positions`](Sink::positions) first, then any number of
/// [`write`](Sink::write), and [`flush`](Sink::flush) when the sink says it is due. After any error the
/// engine calls [`abandon`](Sink::abandon), reads the positions again and sends the rows after them again.
#[async_trait]
pub trait Sink: Send {
    /// The stored positions, read from where the data is. Finishes what a commit whose outcome was
    /// unknown left undone. Unreadable is an error, never "none".
    async fn positions(&mut self) -> Result<Positions, SinkError>;

    /// Accepts `batch`; its rows and moves may stay in memory until the next flush.
    ///
    /// # Errors
    /// [`SinkError::fault`](crate::model::Classify::fault) decides what follows.
    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError>;

    /// When [`flush`](Sink::flush) has to be called; `None` while nothing is accepted that is not durable.
    fn flush_due(&self) -> Option<Instant>;

    /// Makes all accepted rows durable and moves the positions with them, by compare-and-set.
    /// Returns the stored positions.
    ///
    /// # Errors
    /// After an error the outcome is unknown until [`positions`](Sink::positions) was read again.
    async fn flush(&mut self) -> Result<Positions, SinkError>;

    /// Drops everything accepted that is not durable.
    async fn abandon(&mut self);

    /// What this sink made durable since it was opened.
    fn settled(&self) -> Settled;

    /// Where its positions are kept.
    fn store(&self) -> Store;

    /// Takes a position that the group keeps for a sink that has no store of its own; it replaces what was known.
    fn restore(&mut self, key: PositionKey, topic: &TopicName, position: Position);

    /// Does it take the keys that are gone? Then batches have them, and the origins of their rows.
    fn takes_deletes(&self) -> bool {
        false
    }

    /// Does it tell rows apart by the places of their records? Then batches have the origins of rows and the offsets of
    /// records. It does not take deletes.
    fn takes_places(&self) -> bool {
        false
    }

    /// May what it has accepted hold up others, of its siblings too, until it is flushed? Then it is flushed at once behind
    /// its write, unless dead letters come first. What it refuses it refuses by `write`.
    fn holds_locks(&self) -> bool {
        false
    }

    /// Is it still at work on what it was given, or has it something to tell by [`flush`](Sink::flush)? Only of one that
    /// works in the background.
    fn is_busy(&self) -> bool {
        false
    }

    /// Has it as much to do as it may have? Only of one that works in the background.
    fn is_full(&self) -> bool {
        false
    }

    /// The commit log this sink writes to and its last entry, if it keeps one.
    fn log(&self) -> Option<(String, u64)> {
        None
    }
}

/// Where a sink's positions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// With its data.
    Own,
    /// Beside the group's committed offsets (PROTOCOL §3): rows may come twice after a crash.
    Group,
    /// There too, but moved by the sink itself, in the transaction that has its rows (PROTOCOL §6).
    Transaction,
}

/// Counts for the table at exit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    pub rows: u64,
    pub bytes: u64,
    pub files: u64,
}
