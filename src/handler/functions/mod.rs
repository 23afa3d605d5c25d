//! SQL functions for JSON that Spark's users expect and DataFusion does not have (`docs/types.md`).

mod ddl;
mod from_json;
mod get_json_object;
mod to_json;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ReturnFieldArgs, ScalarUDF};

/// All of them, for a session.
pub fn all() -> [Arc<ScalarUDF>; 3] {
    [
        Arc::new(ScalarUDF::from(to_json::ToJson::default())),
        Arc::new(ScalarUDF::from(from_json::FromJson::default())),
        Arc::new(ScalarUDF::from(get_json_object::GetJsonObject::default())),
    ]
}

/// Applies `each` to a column, or to a single value as a column of one row.
fn over(value: ColumnarValue, each: impl FnOnce(&ArrayRef) -> Result<ArrayRef>) -> Result<ColumnarValue> {
    match value {
        ColumnarValue::Array(column) => Ok(ColumnarValue::Array(each(&column)?)),
        ColumnarValue::Scalar(value) => {
            let column = each(&value.to_array()?)?;
            Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&column, 0)?))
        }
    }
}

/// The second argument, when it is planned: a text literal, because the type or the path is read once.
///
/// # Errors
/// If the first argument is not text, or the second no literal; `example` shows one.
fn literal<'a>(function: &str, args: &ReturnFieldArgs<'a>, example: &str) -> Result<&'a str> {
    if let Some(field) = args.arg_fields.first()
        && !is_text(field.data_type())
    {
        let found = field.data_type();
        return Err(DataFusionError::Plan(format!("{function} reads text or bytes, not {found}")));
    }
    let literal = args.scalar_arguments.get(1).copied().flatten();
    let text = literal.and_then(|value| value.try_as_str().flatten());
    text.ok_or_else(|| {
        let message = format!("{function} needs a text literal as its second argument, such as {example}");
        DataFusionError::Plan(message)
    })
}

/// The second argument, when it is used.
///
/// # Errors
/// If it is no literal: what [`literal`] has already refused.
fn constant<'a>(function: &str, value: &'a ColumnarValue) -> Result<&'a str> {
    let text = match value {
        ColumnarValue::Scalar(value) => value.try_as_str().flatten(),
        ColumnarValue::Array(_) => None,
    };
    text.ok_or_else(|| DataFusionError::Internal(format!("{function} was called without its literal")))
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_text(value),
        DataType::Null => true,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            true
        }
        _ => false,
    }
}

/// Text or bytes of any form as bytes. JSON in bytes that are not UTF-8 is malformed like any other.
fn to_bytes(column: &ArrayRef) -> Result<BinaryArray> {
    Ok(match column.data_type() {
        DataType::Dictionary(_, value) => to_bytes(&cast(column, value)?)?,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            cast(column, &DataType::Binary)?.as_binary::<i32>().clone()
        }
        _ => BinaryArray::from(cast(column, &DataType::Utf8)?.as_string::<i32>().clone()),
    })
}

#[cfg(test)]
mod tests;
