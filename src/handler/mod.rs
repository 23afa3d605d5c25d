//! Batch to batches: the views of a route, and the expressions that its files are partitioned by.
//!
//! A handler knows schemas, not topics, sinks or offsets. `check` calls [`Views::bind`] and
//! [`Expressions::bind`] without any data.

mod expression;
mod functions;
mod lineage;
mod masked;
mod origins;
mod rewrite;
mod sql;

use std::collections::BTreeSet;

use arrow::datatypes::Field;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

pub use expression::{BadExpression, ExpressionError, Expressions};
pub use lineage::{Lineage, Made};
pub use origins::Traced;
pub use sql::{BindError, ViewError, Views};

/// Computes the views of a route over one batch.
#[async_trait]
pub trait Handler: Send + Sync {
    /// The `_` columns that batches must have, after the value's fields.
    fn meta(&self) -> &[Field];

    /// Computes the views in `wanted`, and those they read, over `batch`. Answers by view; where the batch has origins,
    /// so have the rows of views that are made of one record each.
    ///
    /// # Errors
    /// The view that failed, and on what.
    async fn run(&self, batch: Input, wanted: &BTreeSet<usize>) -> Result<Vec<Option<Traced>>, ViewError>;
}

/// What views are computed over: a decoded batch.
#[derive(Debug, Clone)]
pub struct Input {
    /// For views that name `_op`: also rows of changes that leave no row.
    pub all: Traced,
    /// For the others, if these are not all.
    pub live: Option<Traced>,
}

impl Input {
    /// Rows that are there for every view, whose origins nobody asks for.
    pub fn of(rows: RecordBatch) -> Self {
        Self { all: Traced::of(rows), live: None }
    }
}

/// The name of the decoded records in SQL.
pub const BATCH: &str = "batch";
