//! Which columns of `batch` the columns of a view are made of.
//!
//! A value that was not sent of a change is null in `batch`, and told only by the name of its column. A view may pass it on
//! under this name. What is computed of it, or chosen by it, would be made of a null that is none.

use std::collections::BTreeSet;

use arrow::datatypes::Schema;
use datafusion::common::DFSchema;
use datafusion::logical_expr::{Expr, LogicalPlan};

/// What rows are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// In the order of the columns.
    pub columns: Vec<Made>,
    /// Columns of `batch` that decide which rows there are.
    pub chosen_by: BTreeSet<String>,
}

/// What a column is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It is a column of `batch` as it is.
    Is(String),
    /// It is computed of these columns of `batch`.
    Of(BTreeSet<String>),
}

impl Made {
    /// The columns of `batch` that it is made of.
    pub fn columns(&self) -> Vec<&str> {
        match self {
            Self::Is(name) => vec![name],
            Self::Of(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

impl Lineage {
    /// Of `batch` itself.
    pub fn of_batch(schema: &Schema) -> Self {
        let columns = schema.fields().iter().map(|field| Made::Is(field.name().clone()));
        Self { columns: columns.collect(), chosen_by: BTreeSet::new() }
    }
}

/// Of the rows of a plan that is not optimised; `table` says it of the tables that it reads. `None` if it does more than
/// choose and compute.
pub fn of(plan: &LogicalPlan, table: &dyn Fn(&str) -> Option<Lineage>) -> Option<Lineage> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let is_whole = scan.projection.is_none() && scan.filters.is_empty();
            table(scan.table_name.table()).filter(|_| is_whole)
        }
        LogicalPlan::SubqueryAlias(alias) => of(&alias.input, table),
        LogicalPlan::Filter(filter) => {
            let mut input = of(&filter.input, table)?;
            let chosen_by = named(&filter.predicate, filter.input.schema(), &input)?;
            input.chosen_by.extend(chosen_by);
            Some(input)
        }
        LogicalPlan::Projection(projection) => {
            let input = of(&projection.input, table)?;
            let schema = projection.input.schema();
            let columns = projection.expr.iter().map(|expr| made(expr, schema, &input));
            Some(Lineage { columns: columns.collect::<Option<_>>()?, chosen_by: input.chosen_by })
        }
        _ => None,
    }
}

fn made(expr: &Expr, schema: &DFSchema, input: &Lineage) -> Option<Made> {
    match expr {
        Expr::Alias(alias) => made(&alias.expr, schema, input),
        Expr::Column(column) => input.columns.get(schema.maybe_index_of_column(column)?).cloned(),
        computed => named(computed, schema, input).map(Made::Of),
    }
}

/// The columns of `batch` that the columns in an expression are made of.
fn named(expr: &Expr, schema: &DFSchema, input: &Lineage) -> Option<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for column in expr.column_refs() {
        let made = input.columns.get(schema.maybe_index_of_column(column)?)?;
        names.extend(made.columns().into_iter().map(str::to_owned));
    }
    Some(names)
}
