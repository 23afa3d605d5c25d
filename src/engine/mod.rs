//! The control plane: what is read, batched, written, committed, and when.
//!
//! It names no concrete source, codec, handler or sink, only their traits. Decisions are pure
//! ([`batching`], [`ledger`], [`retry`]); the loops carry them out.

pub mod batching;
pub mod ledger;
