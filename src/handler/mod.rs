//! Batch to batches: the views of a route.
//!
//! A handler knows schemas, not topics, sinks or offsets. `check` calls [`Views::bind`] without any data.

mod rewrite;
mod sql;


pub use sql::{BindError, ViewError, Views};

/// The name of the decoded records in SQL.
pub const BATCH: &str = "batch";

