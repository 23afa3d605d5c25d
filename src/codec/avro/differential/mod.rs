//! Differential tests: the codec against apache-avro and against arrow-avro, on random schemas and records.
//!
//! What is compared, and what is left out and why: `docs/decisions/0001-avro-codec.md`. A failure prints
//! its seed. `DIFFERENTIAL_SEEDS=10000` tries more of them, `DIFFERENTIAL_SEED=42` only that one.

mod apache;
mod arrow;
pub mod cell;
mod evolve;
pub mod generate;
mod refused;
mod rules;
mod text;
mod unions;
mod values;

use ::arrow::record_batch::RecordBatch;

use super::decode::BadValue;
use super::node::{Node, SchemaError};
use super::{arrow_type, program};
use crate::codec::columns::Column;
use cell::{Cell, of_rows};

/// Runs `check` for `count` seeds, or as the environment says.
pub fn for_each_seed(count: u64, mut check: impl FnMut(u64)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("DIFFERENTIAL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DIFFERENTIAL_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        let _guard = PrintSeed(seed);
        check(seed);
    }
}

/// Prints the seed if its check panics, wherever it does.
struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was seed {0}: DIFFERENTIAL_SEED={0} runs it alone", self.0);
        }
    }
}

/// Levels below the fields of a schema.
pub fn depth(seed: u64) -> usize {
    1 + (seed % 3) as usize
}

/// The schema as text, of which the codec has to make the same schema again.
fn parsed_text(node: &Node) -> String {
    let text = text::schema_text(node);
    assert_eq!(Node::parse(&text, &[]), Ok(node.clone()), "{text}");
    text
}

/// What the codec makes of `rows`, one by one. Columns of different lengths are an error of the batch.
fn decode(
    writer: &Node,
    reader: &Node,
    rows: &[Vec<u8>],
) -> Result<Vec<Result<Cell, BadValue>>, SchemaError> {
    let schema = arrow_type::schema(reader, false)?;
    let program = program::compile(writer, reader)?;
    let mut columns: Vec<Column> = schema.fields().iter().map(|field| Column::new(field).unwrap()).collect();
    let mut results = Vec::new();
    let mut count = 0;
    for row in rows {
        let result = program.decode(row, &mut columns);
        match &result {
            Ok(()) => count += 1,
            Err(_) => columns.iter_mut().for_each(|column| column.truncate(count)),
        }
        results.push(result);
    }
    let arrays = columns.into_iter().map(|column| column.finish().unwrap()).collect();
    let batch = RecordBatch::try_new(schema, arrays).unwrap();
    let mut cells = of_rows(reader, &batch).into_iter();
    Ok(results.into_iter().map(|result| result.map(|()| cells.next().unwrap())).collect())
}
