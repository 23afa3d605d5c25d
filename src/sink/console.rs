//! Rows on the screen, as a table: a convenience for looking at a route. Rows may come again after a restart.

use std::io::Write;
use std::time::Instant;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

use crate::failpoint;
use crate::model::{Batch, Position, PositionKey, Positions, TopicName};
use crate::render::Values;

use super::pending::GroupPositions;
use super::{Settled, Sink, SinkError, Store};

/// A cell is cut at this width, as Spark does.
const CELL_WIDTH_MAX: usize = 40;

/// Prints the first rows of every batch.
pub struct Console {
    /// For the line above each table.
    identity: String,
    rows_max: usize,
    positions: GroupPositions,
    settled: Settled,
    out: Box<dyn Write + Send>,
}

impl Console {
    pub fn new(identity: String, rows_max: usize, out: Box<dyn Write + Send>) -> Self {
        Self { identity, rows_max, positions: GroupPositions::default(), settled: Settled::default(), out }
    }

    fn print(&mut self, rows: &RecordBatch) -> Result<(), SinkError> {
        let text = table(rows, self.rows_max)
            .map_err(|error| SinkError::stop("print rows", "change the view that this sink reads", error))?;
        let left = rows.num_rows().saturating_sub(self.rows_max);
        let more = if left > 0 { format!("(and {left} more rows)\n") } else { String::new() };
        let block = format!("-- {}: {} rows\n{text}{more}", self.identity, rows.num_rows());
        let printed = self.out.write_all(block.as_bytes()).and_then(|()| self.out.flush());
        printed.map_err(|error| SinkError::stop("print rows", "is somebody reading stdout?", error))
    }
}

/// The first rows as aligned columns.
fn table(rows: &RecordBatch, rows_max: usize) -> Result<String, arrow::error::ArrowError> {
    let schema = rows.schema();
    let columns = rows.columns().iter().map(Values::new).collect::<Result<Vec<_>, _>>()?;
    let mut lines: Vec<Vec<String>> =
        vec![schema.fields().iter().map(|field| field.name().clone()).collect()];
    for row in 0..rows.num_rows().min(rows_max) {
        lines.push(columns.iter().map(|values| cell(values, row)).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join(" | ").trim_end());
        text.push('\n');
    }
    Ok(text)
}

fn cell(values: &Values, row: usize) -> String {
    let mut bytes = Vec::new();
    values.write_plain(row, &mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    // What a terminal would obey is shown, not sent.
    let shown: String = text
        .chars()
        .flat_map(
            |char| {
                if char.is_control() { char.escape_default().collect::<Vec<_>>() } else { vec![char] }
            },
        )
        .collect();
    if values.is_null(row) {
        return "null".to_owned();
    }
    if shown.chars().count() <= CELL_WIDTH_MAX {
        return shown;
    }
    let cut: String = shown.chars().take(CELL_WIDTH_MAX - 1).collect();
    format!("{cut}…")
}

#[async_trait]
impl Sink for Console {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        Ok(self.positions.settled().clone())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if batch.rows.num_rows() > 0 {
            self.print(&batch.rows)?;
            failpoint::hit("console.printed");
            self.settled.rows += batch.rows.num_rows() as u64;
        }
        self.positions.accept(&batch.moves);
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        self.positions.since()
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        self.positions.settle()
    }

    async fn abandon(&mut self) {
        self.positions.abandon();
    }

    fn settled(&self) -> Settled {
        self.settled
    }

    fn store(&self) -> Store {
        Store::Group
    }

    fn restore(&mut self, key: PositionKey, topic: &TopicName, position: Position) {
        self.positions.restore(key, topic, position);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn tables_are_cut_and_control_characters_shown() {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("text", DataType::Utf8, true),
        ]);
        let long = "x".repeat(50);
        let texts = StringArray::from(vec![Some("a\u{1b}[31m"), None, Some(&long), Some("never")]);
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2, 30, 4])), Arc::new(texts)];
        let rows = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
        let expected =
            format!("id | text\n1  | a\\u{{1b}}[31m\n2  | null\n30 | {}…\n", "x".repeat(CELL_WIDTH_MAX - 1));
        assert_eq!(table(&rows, 3).unwrap(), expected);
    }
}
