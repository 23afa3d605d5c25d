//! Views: DataFusion SQL over one batch at a time.
//!
//! Each view is parsed and optimised once, when the schema is known. A batch is put into a slot that
//! the plans read, and only the physical plan is made anew: it holds state and must not be shared.
//! A view that several others or several sinks read is computed once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatchOptions};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::config::Dialect;
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, TableSource, Volatility};
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerContext};
use datafusion::physical_plan::collect;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use crate::codec::meta::OP;
use crate::config::plan::View;

use super::masked::masked;
use super::{BATCH, Handler, Input, Lineage, Traced, functions, lineage, origins, rewrite};

/// Rows of DataFusion's pieces; ours come as one batch and need not be cut.
const PIECE_ROWS: usize = 1 << 16;

/// A view that cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindError {
    /// Its place in the route.
    pub view: usize,
    pub message: String,
    /// Line and column in the view's SQL, from 1.
    pub place: Option<(usize, usize)>,
}

/// A view failed on a batch.
#[derive(Debug, thiserror::Error)]
#[error("failed to evaluate view `{view}`: {problem}")]
pub struct ViewError {
    pub view: String,
    /// Without the values it happened on.
    pub problem: String,
}

/// The views of one route, bound to the schema of its batches.
pub struct Views {
    state: SessionState,
    task: Arc<TaskContext>,
    /// `batch` of the views that name `_op`.
    all: Table,
    /// `batch` of the others.
    live: Table,
    views: Vec<Bound>,
    /// `_` columns some view names, in the order of `meta` at [`Views::bind`].
    meta: Vec<Field>,
}

struct Bound {
    name: String,
    plan: LogicalPlan,
    /// The same with the origins of its rows, if they are made of one record each.
    carried: Option<LogicalPlan>,
    /// What its columns are made of, where that can be told.
    lineage: Option<Lineage>,
    /// `now()` and its like are constants of a batch, not of the plan.
    has_time: bool,
    schema: SchemaRef,
    table: Table,
    /// Views it reads, itself not included.
    reads: Vec<usize>,
}

/// Rows that plans read: as they are, and with their origins.
struct Table {
    plain: Slot,
    carried: Slot,
}

impl Table {
    fn new(schema: SchemaRef) -> Self {
        Self { carried: Slot::new(origins::schema(&schema)), plain: Slot::new(schema) }
    }

    fn put(&self, traced: &Traced) -> Result<(), DataFusionError> {
        self.carried.put(origins::join(traced, &self.carried.schema)?);
        self.plain.put(Some(traced.rows.clone()));
        Ok(())
    }

    fn clear(&self) {
        self.plain.put(None);
        self.carried.put(None);
    }

    /// What a plan that carries origins reads.
    fn source(&self) -> Option<Arc<dyn TableSource>> {
        Some(provider_as_source(self.carried.provider().ok()?))
    }
}

/// Holds the rows that a table of the session consists of.
#[derive(Debug, Clone)]
struct Slot {
    schema: SchemaRef,
    rows: Arc<Mutex<Option<RecordBatch>>>,
}

impl Slot {
    fn new(schema: SchemaRef) -> Self {
        Self { schema, rows: Arc::default() }
    }

    fn put(&self, rows: Option<RecordBatch>) {
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = rows;
    }

    fn get(&self) -> Option<RecordBatch> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn provider(&self) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let stream: Arc<dyn PartitionStream> = Arc::new(self.clone());
        Ok(Arc::new(StreamingTable::try_new(self.schema.clone(), vec![stream])?))
    }
}

impl PartitionStream for Slot {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.get().map(Ok::<_, DataFusionError>);
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(rows)))
    }
}

impl Views {
    /// Plans `views` over batches of `value` fields and the `meta` fields they name.
    ///
    /// # Errors
    /// Every view that cannot be planned; those that read one of them are not reported again.
    pub async fn bind(value: &SchemaRef, meta: &[Field], views: &[View]) -> Result<Self, Vec<BindError>> {
        let mut state = session();
        let mut errors = Vec::new();
        let mut queries = Vec::new();
        let meta_names: Vec<&str> = meta.iter().map(|field| field.name().as_str()).collect();
        let mut named = BTreeSet::new();
        for (view, source) in views.iter().enumerate() {
            match parse(&state, &source.sql) {
                Ok(query) => {
                    let own = rewrite::named_meta(&query, &meta_names);
                    let is_of_changes = own.contains(OP);
                    named.extend(own);
                    queries.push(Some((query, is_of_changes)));
                }
                Err((message, place)) => {
                    errors.push(BindError { view, message, place });
                    queries.push(None);
                }
            }
        }
        let meta: Vec<Field> = meta.iter().filter(|field| named.contains(field.name())).cloned().collect();
        let fields = value.fields().iter().map(|field| field.as_ref().clone());
        let batch = Arc::new(Schema::new(fields.chain(meta.iter().cloned()).collect::<Vec<_>>()));
        let (all, live) = (Table::new(batch.clone()), Table::new(batch));
        let hidden: Vec<String> = meta.iter().map(|field| field.name().clone()).collect();
        let context = SessionContext::new_with_state(state.clone());
        let mut bound: Vec<Bound> = Vec::new();
        for (view, (source, query)) in views.iter().zip(queries).enumerate() {
            let Some((query, is_of_changes)) = query else {
                break;
            };
            let batch = if is_of_changes { &all } else { &live };
            let failed = |error: DataFusionError| vec![bind_error(view, &error)];
            register(&context, BATCH, &batch.plain).map_err(failed)?;
            match bind_one(&mut state, source, query, &hidden, batch, &bound).await {
                Ok(one) => {
                    register(&context, &source.name, &one.table.plain).map_err(failed)?;
                    bound.push(one);
                }
                Err(error) => {
                    errors.push(BindError { view, ..error });
                    break;
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self { task: state.task_ctx(), state, all, live, views: bound, meta })
    }

    /// The schema of a view's rows.
    pub fn schema(&self, view: usize) -> &SchemaRef {
        &self.views[view].schema
    }

    /// Is every row of this view made of one record, in the order of the records?
    pub fn is_of_records(&self, view: usize) -> bool {
        self.views[view].carried.is_some()
    }

    /// What the columns of a view are made of, where that can be told.
    pub fn lineage(&self, view: usize) -> Option<&Lineage> {
        self.views[view].lineage.as_ref()
    }

    fn needed(&self, wanted: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut open: Vec<usize> = wanted.iter().copied().collect();
        while let Some(view) = open.pop() {
            if needed.insert(view) {
                open.extend(&self.views[view].reads);
            }
        }
        needed
    }

    async fn compute(&self, bound: &Bound, is_traced: bool) -> Result<Traced, DataFusionError> {
        let carried = bound.carried.as_ref().filter(|_| is_traced);
        let (plan, schema) = match carried {
            Some(plan) => (plan, &bound.table.carried.schema),
            None => (&bound.plan, &bound.schema),
        };
        let timed;
        let plan = if bound.has_time {
            let now = OptimizerContext::new_with_config_options(self.state.config_options().clone());
            let rules = Optimizer::with_rules(vec![Arc::new(SimplifyExpressions::new())]);
            timed = rules.optimize(plan.clone(), &now, |_, _| {})?;
            &timed
        } else {
            plan
        };
        let physical = self.state.query_planner().create_physical_plan(plan, &self.state).await?;
        let pieces = collect(physical, self.task.clone()).await?;
        let pieces: Vec<RecordBatch> =
            pieces.iter().map(|piece| conform(piece, schema)).collect::<Result<_, _>>()?;
        let rows = match pieces.as_slice() {
            [one] => one.clone(),
            many => concat_batches(schema, many)?,
        };
        Ok(if carried.is_some() { origins::split(&rows, &bound.schema)? } else { Traced::of(rows) })
    }
}

#[async_trait]
impl Handler for Views {
    fn meta(&self) -> &[Field] {
        &self.meta
    }

    async fn run(&self, batch: Input, wanted: &BTreeSet<usize>) -> Result<Vec<Option<Traced>>, ViewError> {
        let needed = self.needed(wanted);
        let failed = |name: &str, error| ViewError { view: name.to_owned(), problem: masked(&error) };
        let is_traced = batch.all.origins.is_some();
        self.all.put(&batch.all).map_err(|error| failed(BATCH, error))?;
        self.live.put(batch.live.as_ref().unwrap_or(&batch.all)).map_err(|error| failed(BATCH, error))?;
        let mut rows = vec![None; self.views.len()];
        for view in needed {
            let bound = &self.views[view];
            let computed = self.compute(bound, is_traced).await;
            let computed = computed.map_err(|error| failed(&bound.name, error))?;
            bound.table.put(&computed).map_err(|error| failed(&bound.name, error))?;
            rows[view] = Some(computed);
        }
        // The slots hold memory that the lane no longer counts.
        self.all.clear();
        self.live.clear();
        for bound in &self.views {
            bound.table.clear();
        }
        Ok(rows)
    }
}

pub(super) fn session() -> SessionState {
    let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(PIECE_ROWS);
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.planning_concurrency = 1;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    // It is for files; here it would parse `from_json(…)` once for each field that is named (datafusion#23655).
    options.optimizer.enable_leaf_expression_pushdown = false;
    let mut builder = SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .with_table_functions(Default::default())
        .with_file_formats(Vec::new())
        .with_table_factories(Default::default());
    builder.scalar_functions().get_or_insert_default().extend(functions::all());
    let mut state = builder.build();
    // Without this, functions run with default options.
    let options = state.config_options().clone();
    state.execution_props_mut().config_options = Some(options);
    state
}

/// Makes `slot` the table of this name, whatever was before.
fn register(context: &SessionContext, name: &str, slot: &Slot) -> Result<(), DataFusionError> {
    // Quoted: view names keep their case.
    let name = datafusion::common::TableReference::bare(name.to_owned());
    context.deregister_table(name.clone())?;
    context.register_table(name, slot.provider()?)?;
    Ok(())
}

/// What is wrong with a piece of SQL, and where.
pub(super) type Misread = (String, Option<(usize, usize)>);

fn parse(state: &SessionState, sql: &str) -> Result<Box<ast::Query>, Misread> {
    let statement =
        state.sql_to_statement(sql, &Dialect::Generic).map_err(|error| (message(&error), place(&error)))?;
    match statement {
        Statement::Statement(statement) => match *statement {
            ast::Statement::Query(query) => Ok(query),
            other => {
                let word = other.to_string();
                let word = word.split(' ').next().unwrap_or_default();
                Err((format!("a view is a query, not {word}"), Some((1, 1))))
            }
        },
        _ => Err(("a view is a query".to_owned(), Some((1, 1)))),
    }
}

async fn bind_one(
    state: &mut SessionState,
    source: &View,
    mut query: Box<ast::Query>,
    hidden: &[String],
    batch: &Table,
    before: &[Bound],
) -> Result<Bound, BindError> {
    rewrite::hide(&mut query, hidden).map_err(|message| BindError { view: 0, message, place: None })?;
    let explain = |error: DataFusionError| bind_error(0, &error);
    let statement = Statement::Statement(Box::new(ast::Statement::Query(query)));
    let references = state.resolve_table_references(&statement).map_err(explain)?;
    let reads = before
        .iter()
        .enumerate()
        .filter(|(_, view)| references.iter().any(|reference| reference.table() == view.name))
        .map(|(index, _)| index)
        .collect();
    let plan = state.statement_to_plan(statement).await.map_err(explain)?;
    let allowed = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    allowed.verify_plan(&plan).map_err(explain)?;
    let carried = origins::carried(&plan, &|name| {
        let is_of_records = |view: &&Bound| view.name == name && view.carried.is_some();
        let table = if name == BATCH {
            Some(batch)
        } else {
            before.iter().find(is_of_records).map(|view| &view.table)
        };
        table?.source()
    });
    let lineage = lineage::of(&plan, &|name| match name {
        BATCH => Some(Lineage::of_batch(&batch.plain.schema)),
        name => before.iter().find(|view| view.name == name)?.lineage.clone(),
    });
    // What could be planned without it can be planned with it.
    let carried = carried.and_then(|plan| state.optimize(&plan).ok());
    let plan = state.optimize(&plan).map_err(explain)?;
    let has_time = has_time(&plan).map_err(explain)?;
    // The physical schema is the exact one; with time functions it is not known before they are replaced.
    let schema = if has_time {
        plan.schema().inner().clone()
    } else {
        let physical = state.query_planner().create_physical_plan(&plan, state).await;
        physical.map_err(explain)?.schema()
    };
    let schema = without_views(&schema);
    let table = Table::new(schema.clone());
    Ok(Bound { name: source.name.clone(), plan, carried, lineage, has_time, schema, table, reads })
}

fn has_time(plan: &LogicalPlan) -> Result<bool, DataFusionError> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                found |= is_time(expr);
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// Is this `now()` or its like: a constant of a batch, not of the plan?
pub(super) fn is_time(expr: &Expr) -> bool {
    let Expr::ScalarFunction(function) = expr else {
        return false;
    };
    function.func.signature().volatility == Volatility::Stable
}

/// Text and bytes as sinks know them: DataFusion's functions may give string views.
fn without_views(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let data_type = match field.data_type() {
            DataType::Utf8View => DataType::Utf8,
            DataType::BinaryView => DataType::Binary,
            other => other.clone(),
        };
        Field::new(field.name(), data_type, field.is_nullable())
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// `rows` with exactly `schema`: what was planned and what was computed may differ in nullability.
fn conform(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DataFusionError> {
    let columns = rows.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            Ok(column.clone())
        } else {
            cast(column, field.data_type())
        }
    });
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

fn bind_error(view: usize, error: &DataFusionError) -> BindError {
    BindError { view, message: message(error), place: place(error) }
}

/// The message without DataFusion's prefixes, and without the place, which is told apart.
pub(super) fn message(error: &DataFusionError) -> String {
    let text = match error.find_root() {
        DataFusionError::SQL(parser, _) => parser.to_string(),
        root => root.message().into_owned(),
    };
    let text = text.split("\n\nbacktrace:").next().unwrap_or_default();
    let text = text.split(" at Line: ").next().unwrap_or(text);
    text.trim_start_matches("sql parser error: ").to_owned()
}

pub(super) fn place(error: &DataFusionError) -> Option<(usize, usize)> {
    for error in error.iter() {
        if let Some(span) = error.diagnostic().and_then(|diagnostic| diagnostic.span) {
            let start = span.start;
            return Some((usize::try_from(start.line).ok()?, usize::try_from(start.column).ok()?));
        }
        if let DataFusionError::SQL(parser, _) = error.find_root() {
            let text = parser.to_string();
            let (_, tail) = text.rsplit_once(" at Line: ")?;
            let (line, column) = tail.split_once(", Column: ")?;
            return Some((line.trim().parse().ok()?, column.trim().parse().ok()?));
        }
    }
    None
}

#[cfg(test)]
mod tests;
