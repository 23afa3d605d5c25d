//! Expressions over one row: DataFusion SQL without a query around it.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::config::Dialect;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::sql::sqlparser::ast::{self, Visit, Visitor};

use crate::config::plan::PartitionBy;

use super::masked::masked;
use super::sql::{Misread, is_time, message, place, session};

/// An expression that cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadExpression {
    /// Its place among the others.
    pub index: usize,
    pub message: String,
    /// Line and column in its SQL, from 1.
    pub place: Option<(usize, usize)>,
}

/// An expression failed on a batch.
#[derive(Debug, thiserror::Error)]
#[error("failed to evaluate partition `{name}`: {problem}")]
pub struct ExpressionError {
    pub name: String,
    /// Without the values it happened on.
    pub problem: String,
}

/// What a sink is partitioned by, bound to the schema of the rows it reads.
pub struct Expressions {
    state: SessionState,
    schema: DFSchemaRef,
    bound: Vec<Bound>,
}

struct Bound {
    name: String,
    data_type: DataType,
    expr: Expr,
    /// `None` if it asks for the time: then it is planned anew for each batch.
    plan: Option<Arc<dyn PhysicalExpr>>,
}

impl Expressions {
    /// Plans the expressions of `partition_by` over rows of `schema`.
    ///
    /// # Errors
    /// Every expression that cannot be planned, or needs more than one row.
    pub fn bind(schema: &SchemaRef, partition_by: &[PartitionBy]) -> Result<Self, Vec<BadExpression>> {
        let schema = DFSchema::try_from(schema.clone());
        let schema = schema.map_err(|error| {
            vec![BadExpression { index: 0, message: message(&error), place: place(&error) }]
        })?;
        let mut expressions = Self { state: session(), schema: Arc::new(schema), bound: Vec::new() };
        let mut errors = Vec::new();
        for (index, source) in partition_by.iter().enumerate() {
            match expressions.bind_one(source) {
                Ok(bound) => expressions.bound.push(bound),
                Err((message, place)) => errors.push(BadExpression { index, message, place }),
            }
        }
        if errors.is_empty() { Ok(expressions) } else { Err(errors) }
    }

    fn bind_one(&self, source: &PartitionBy) -> Result<Bound, Misread> {
        let explain = |error: DataFusionError| (message(&error), place(&error));
        let refuse = |message: &str| Err((message.to_owned(), Some((1, 1))));
        let sql = self.state.sql_to_expr_with_alias(&source.sql, &Dialect::Generic).map_err(explain)?;
        if sql.alias.is_some() {
            return refuse("a partition has its name already: leave out the one behind the expression");
        }
        if has_query(&sql.expr) {
            return refuse("a subquery does not fit here: a partition is computed from one row");
        }
        let expr = self.state.create_logical_expr_from_sql_expr(sql, &self.schema).map_err(explain)?;
        if let Some(kind) = beyond_one_row(&expr).map_err(explain)? {
            return refuse(&format!("{kind} does not fit here: a partition is computed from one row"));
        }
        let expr = self.simplifier().coerce(expr, &self.schema).map_err(explain)?;
        let plan = self.plan(&expr).map_err(explain)?;
        let data_type = plan.data_type(self.schema.inner()).map_err(explain)?;
        if data_type.is_nested() {
            return refuse(&format!(
                "{data_type} cannot name a directory: take text, a number or a date of it"
            ));
        }
        let has_time = expr.exists(|expr| Ok(is_time(expr))).map_err(explain)?;
        Ok(Bound { name: source.name.clone(), data_type, expr, plan: (!has_time).then_some(plan) })
    }

    /// The columns of its values. Any of them may be null.
    pub fn fields(&self) -> Vec<Field> {
        let field = |bound: &Bound| Field::new(bound.name.clone(), bound.data_type.clone(), true);
        self.bound.iter().map(field).collect()
    }

    /// The values of each expression for `rows`, which are of the schema they were bound to.
    ///
    /// # Errors
    /// The expression that failed, and on what.
    pub fn evaluate(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>, ExpressionError> {
        let columns = self.bound.iter().map(|bound| {
            let plan = match &bound.plan {
                Some(plan) => Ok(plan.clone()),
                None => self.plan(&bound.expr),
            };
            let column = plan.and_then(|plan| plan.evaluate(rows)?.into_array_of_size(rows.num_rows()));
            column.map_err(|error| ExpressionError { name: bound.name.clone(), problem: masked(&error) })
        });
        columns.collect()
    }

    /// As of now. Some functions exist only until they are simplified.
    fn plan(&self, expr: &Expr) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
        let expr = self.simplifier().simplify(expr.clone())?;
        self.state.create_physical_expr(expr, &self.schema)
    }

    fn simplifier(&self) -> ExprSimplifier {
        let context = SimplifyContext::builder()
            .with_schema(self.schema.clone())
            .with_config_options(self.state.config_options().clone())
            .with_current_time()
            .build();
        ExprSimplifier::new(context)
    }
}

fn has_query(expr: &ast::Expr) -> bool {
    struct Queries;
    impl Visitor for Queries {
        type Break = ();

        fn pre_visit_query(&mut self, _: &ast::Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    expr.visit(&mut Queries).is_break()
}

/// What in `expr` needs more than the row it is computed for, or makes more of it.
fn beyond_one_row(expr: &Expr) -> Result<Option<&'static str>, DataFusionError> {
    let mut found = None;
    expr.apply(|expr| {
        let kind = match expr {
            Expr::AggregateFunction(_) | Expr::GroupingSet(_) => Some("an aggregate"),
            Expr::WindowFunction(_) => Some("a window function"),
            Expr::Unnest(_) => Some("`unnest`"),
            _ => None,
        };
        found = found.or(kind);
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, ListArray, StringArray, TimestampMillisecondArray};
    use arrow::datatypes::{DataType, Date32Type, Field, Int64Type, Schema, TimeUnit};
    use arrow::util::display::array_value_to_string;

    use super::*;

    fn partition(name: &str, sql: &str) -> PartitionBy {
        PartitionBy { name: name.to_owned(), sql: sql.to_owned(), content: Default::default() }
    }

    fn rows() -> RecordBatch {
        let items = Field::new("item", DataType::Int64, true);
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
            Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
            Field::new("xs", DataType::List(Arc::new(items)), true),
        ]);
        let xs = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1)]), None]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![1, 2])),
            Arc::new(StringArray::from(vec![Some("x7"), None])),
            Arc::new(TimestampMillisecondArray::from(vec![0, 86_400_000]).with_timezone("UTC")),
            Arc::new(xs),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn bind(sql: &str) -> Result<Expressions, Vec<BadExpression>> {
        Expressions::bind(&rows().schema(), &[partition("good", "id"), partition("p", sql)])
    }

    #[test]
    fn each_row_has_a_value_for_each_expression() {
        let day = bind("to_date(at)").unwrap().evaluate(&rows()).unwrap();
        assert_eq!(day[0].as_primitive::<Int64Type>().values().to_vec(), [1, 2]);
        assert_eq!(day[1].as_primitive::<Date32Type>().values().to_vec(), [0, 1]);
        // Functions that are only there until they are simplified, and a constant.
        let name = bind("coalesce(name, 'none')").unwrap().evaluate(&rows()).unwrap();
        assert_eq!([0, 1].map(|row| array_value_to_string(&name[1], row).unwrap()), ["x7", "none"]);
        assert_eq!(bind("'all'").unwrap().evaluate(&rows()).unwrap()[1].len(), 2);
    }

    #[test]
    fn the_time_is_that_of_each_batch() {
        let expressions = bind("now()").unwrap();
        assert!(expressions.bound[0].plan.is_some() && expressions.bound[1].plan.is_none());
        assert_eq!(expressions.evaluate(&rows()).unwrap()[1].len(), 2);
    }

    #[test]
    fn a_failure_names_the_partition_and_not_the_value() {
        let error = bind("cast(name AS bigint)").unwrap().evaluate(&rows()).unwrap_err();
        let shown = error.to_string();
        assert!(shown.starts_with("failed to evaluate partition `p`: "), "{shown}");
        assert!(shown.contains("Cannot cast string … to value of Int64 type"), "{shown}");
    }

    #[test]
    fn what_is_not_of_one_row_is_refused_with_its_place() {
        for (sql, place, expected) in [
            ("upper(nam)", Some((1, 7)), "nam"),
            ("id, name", Some((1, 3)), "Expected"),
            ("id AS day", Some((1, 1)), "leave out"),
            ("sum(id)", Some((1, 1)), "an aggregate does not fit"),
            ("1 + count(*)", Some((1, 1)), "an aggregate does not fit"),
            ("row_number() OVER (ORDER BY id)", Some((1, 1)), "a window function does not fit"),
            ("(SELECT max(id) FROM batch)", Some((1, 1)), "a subquery does not fit"),
            ("id IN (SELECT 1)", Some((1, 1)), "a subquery does not fit"),
            ("unnest(xs)", Some((1, 1)), "`unnest` does not fit"),
            ("xs", Some((1, 1)), "cannot name a directory"),
        ] {
            let errors = bind(sql).err().unwrap();
            assert_eq!(errors.len(), 1, "{sql}: {errors:?}");
            assert_eq!((errors[0].index, errors[0].place), (1, place), "{sql}: {errors:?}");
            assert!(errors[0].message.contains(expected), "{sql}: {errors:?}");
        }
    }
}
