//! Which record each row of a view is made of.
//!
//! The numbers of records go through a view's plan as one more column, which its SQL cannot name. That can be done where
//! every row is made of one record and rows stay in the order of their records: projections, filters and `unnest`, over
//! `batch` or over such a view. Rows of an aggregate, a join or a limit say something of a batch, not of a record.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatchOptions, UInt32Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use datafusion::common::Column;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableSource};

/// No schema has a field of this name.
const ORIGIN: &str = "__sidestream_origin";

/// Rows, and for each of them the number of its record among those of the batch.
#[derive(Debug, Clone)]
pub struct Traced {
    pub rows: RecordBatch,
    /// Ascending. `None` where rows are not made of one record each, or nobody asked.
    pub origins: Option<Arc<[u32]>>,
}

impl Traced {
    /// Rows nobody asks the origins of.
    pub fn of(rows: RecordBatch) -> Self {
        Self { rows, origins: None }
    }

    /// Only the rows of records that are wanted; all of them if nothing says which record they are of.
    ///
    /// # Errors
    /// If there is not one origin for each row: a bug of ours, caught here.
    pub fn only(&self, is_wanted: impl Fn(u32) -> bool) -> Result<Self, ArrowError> {
        let Some(origins) = &self.origins else {
            return Ok(self.clone());
        };
        let mask = origins.iter().map(|origin| Some(is_wanted(*origin))).collect();
        let rows = filter_record_batch(&self.rows, &mask)?;
        let origins = origins.iter().copied().filter(|origin| is_wanted(*origin)).collect();
        Ok(Self { rows, origins: Some(origins) })
    }
}

/// `schema` with the column of origins behind its own.
pub fn schema(schema: &SchemaRef) -> SchemaRef {
    let origin = Arc::new(Field::new(ORIGIN, DataType::UInt32, false));
    let fields = schema.fields().iter().cloned().chain([origin]);
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The rows with their origins as a column; `schema` is that of both.
///
/// # Errors
/// If there is not one origin for each row.
pub fn join(traced: &Traced, schema: &SchemaRef) -> Result<Option<RecordBatch>, ArrowError> {
    let Some(origins) = &traced.origins else {
        return Ok(None);
    };
    let origins: ArrayRef = Arc::new(UInt32Array::from(origins.to_vec()));
    let columns = traced.rows.columns().iter().cloned().chain([origins]).collect();
    RecordBatch::try_new(schema.clone(), columns).map(Some)
}

/// Takes apart what [`join`] has put together; `schema` is that of the rows.
///
/// # Errors
/// If the last column is none of origins.
pub fn split(rows: &RecordBatch, schema: &SchemaRef) -> Result<Traced, ArrowError> {
    let origins = rows.columns().last().and_then(|column| column.as_primitive_opt::<UInt32Type>());
    let Some(origins) = origins else {
        return Err(ArrowError::SchemaError("rows without their origins".to_owned()));
    };
    let columns = rows.columns()[..rows.num_columns() - 1].to_vec();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let rows = RecordBatch::try_new_with_options(schema.clone(), columns, &options)?;
    Ok(Traced { rows, origins: Some(origins.values().iter().copied().collect()) })
}

/// `plan` with one more column, the last one: the number of the record that each row is made of. `table` gives the tables
/// that have such a column. `None` if rows are not made of one record each.
pub fn carried(
    plan: &LogicalPlan,
    table: &dyn Fn(&str) -> Option<Arc<dyn TableSource>>,
) -> Option<LogicalPlan> {
    let carried = carry(plan, table)?;
    is_last(&carried).then_some(carried)
}

fn carry(plan: &LogicalPlan, table: &dyn Fn(&str) -> Option<Arc<dyn TableSource>>) -> Option<LogicalPlan> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let is_whole = scan.projection.is_none() && scan.filters.is_empty() && scan.fetch.is_none();
            let source = table(scan.table_name.table()).filter(|_| is_whole)?;
            LogicalPlanBuilder::scan(scan.table_name.clone(), source, None).ok()?.build().ok()
        }
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Unnest(_) => {
            let inputs = plan.inputs();
            let [input] = inputs.as_slice() else {
                return None;
            };
            let input = carry(input, table).filter(is_last)?;
            if looks_elsewhere(plan) {
                return None;
            }
            let mut expressions = plan.expressions();
            if matches!(plan, LogicalPlan::Projection(_)) {
                let place = input.schema().fields().len() - 1;
                expressions.push(Expr::Column(Column::from(input.schema().qualified_field(place))));
            }
            plan.with_new_exprs(expressions, vec![input]).ok()
        }
        _ => None,
    }
}

fn is_last(plan: &LogicalPlan) -> bool {
    plan.schema().fields().last().is_some_and(|field| field.name() == ORIGIN)
}

/// Does what a row becomes depend on other rows, by a query within an expression?
fn looks_elsewhere(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let looked = plan.apply_subqueries(|_| {
        found = true;
        Ok(TreeNodeRecursion::Stop)
    });
    found || looked.is_err()
}
