//! Batch to batches: the views of a route, and the expressions that its files are partitioned by.
//!
//! A handler knows schemas, not topics, sinks or offsets. `check` calls [`Views::bind`] and
//! [`Expressions::bind`] without any data.

mod expression;
mod functions;
mod masked;
mod rewrite;
mod sql;

use std::collections::BTreeSet;

use arrow::datatypes::Field;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

pub use expression::{BadExpression, ExpressionError, Expressions};
pub use sql::{BindError, ViewError, Views};

/// Computes the views of a route over one batch.
#[async_trait]
pub trait Handler: Send + Sync {
    /// The `_` columns that batches must have, after the value's fields.
    fn meta(&self) -> &[Field];

    /// Computes the views in `wanted`, and those they read, over `batch`. Answers by view.
    ///
    /// # Errors
    /// The view that failed, and on what.
    async fn run(
        &self,
        batch: RecordBatch,
        wanted: &BTreeSet<usize>,
    ) -> Result<Vec<Option<RecordBatch>>, ViewError>;
}

/// The name of the decoded records in SQL.
pub const BATCH: &str = "batch";
