//! `to_json(value)`: any value as JSON text, in the forms that sinks write.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::DataType;
use datafusion::common::utils::take_function_args;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use crate::codec::columns::push_offset;
use crate::render::Values;

use super::over;

#[derive(Debug, PartialEq, Eq, Hash)]
pub struct ToJson {
    signature: Signature,
}

impl Default for ToJson {
    fn default() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ToJson {
    fn name(&self) -> &str {
        "to_json"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = take_function_args(self.name(), args.args)?;
        over(value, to_json)
    }
}

/// Null stays null; within a value it is JSON's.
fn to_json(column: &ArrayRef) -> Result<ArrayRef> {
    let values = Values::new(column)?;
    let mut bytes = Vec::new();
    let mut offsets = Vec::with_capacity(column.len() + 1);
    offsets.push(0);
    let mut valid = Vec::with_capacity(column.len());
    for row in 0..column.len() {
        let is_null = values.is_null(row);
        if !is_null {
            values.write(row, &mut bytes);
        }
        valid.push(!is_null);
        push_offset(&mut offsets, bytes.len()).map_err(|_| {
            let message = "to_json: the JSON of one batch is more than 2 GiB; set a smaller `batch:`";
            DataFusionError::Execution(message.to_owned())
        })?;
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    Ok(Arc::new(StringArray::try_new(offsets, Buffer::from_vec(bytes), nulls)?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Float64Array, ListArray, NullArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn texts(column: &ArrayRef) -> Vec<Option<String>> {
        let texts = to_json(column).unwrap();
        texts.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
    }

    #[test]
    fn slices_are_taken_as_they_are() {
        let lists = [Some(vec![Some(1)]), None, Some(vec![Some(2), None]), Some(vec![Some(3)])];
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
        assert_eq!(texts(&lists.slice(1, 2)), [None, Some("[2,null]".to_owned())]);
        assert!(texts(&lists.slice(4, 0)).is_empty());
    }

    #[test]
    fn null_is_null_and_what_json_lacks_is_its_null() {
        let nulls: ArrayRef = Arc::new(NullArray::new(2));
        assert_eq!(texts(&nulls), [None, None]);
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![Some(f64::NAN), None]));
        assert_eq!(texts(&floats), [Some("null".to_owned()), None]);
    }
}
