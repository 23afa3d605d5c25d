//! What targets say of columns by name, against the columns they get.

use arrow::datatypes::SchemaRef;

use crate::config::plan::{FileFormat, Target};
use crate::sink::{file, http};

/// What is wrong with the columns that a target would get, if anything.
///
/// # Errors
/// The problem, for the reader of the file.
pub fn check_columns(target: &Target, rows: &SchemaRef) -> Result<(), String> {
    match target {
        Target::Files { format: FileFormat::Parquet(options), partition_by, .. } => {
            let partitions: Vec<&str> = partition_by.iter().map(|level| level.name.as_str()).collect();
            file::check_columns(rows, &partitions, options)
        }
        Target::Http(options) => http::check_columns(rows, options),
        Target::Files { .. } | Target::Console { .. } | Target::Kafka { .. } => Ok(()),
    }
}
