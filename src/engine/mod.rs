//! The control plane: what is read, batched, written, committed, and when.
//!
//! It names no concrete source, codec, handler or sink, only their traits. Decisions are pure
//! ([`batching`], [`ledger`], [`catching`], [`group`], [`held_back`], [`tally`], [`retry`]); the loops of [`lane`] and [`run`] carry
//! them out.

pub mod batching;
pub mod catching;
pub mod group;
pub mod held_back;
pub mod lane;
pub mod ledger;
pub mod message;
pub mod retry;
pub mod run;
pub mod tally;

use std::error::Error;

/// Told by the engine of a bounded run; shown by the command line.
pub trait Watcher: Send {
    /// How much there is in all. Again when more of it is known: partitions come one after another.
    fn expect(&mut self, total: u64);
    /// How much of it is done. Often, and also when nothing has moved: the time has.
    fn reached(&mut self, done: u64);
}

/// An error and what caused it, on one line: `a: b: c`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}
