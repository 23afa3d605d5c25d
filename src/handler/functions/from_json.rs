//! `from_json(text, schema)`: JSON text as a typed value, read as `value: {json: …}` reads records.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::utils::take_function_args;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use crate::codec::JsonColumn;

use super::ddl::{self, Typed};
use super::{constant, literal, over, to_bytes};

#[derive(Debug, PartialEq, Eq, Hash)]
pub struct FromJson {
    signature: Signature,
}

impl Default for FromJson {
    fn default() -> Self {
        Self { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for FromJson {
    fn name(&self) -> &str {
        "from_json"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Err(DataFusionError::Internal("the type of from_json is that of its literal".to_owned()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let typed = typed(literal(self.name(), &args, "'id BIGINT, tags ARRAY<STRING>'")?)?;
        Ok(Arc::new(Field::new(self.name(), typed.data_type, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [texts, schema] = take_function_args(self.name(), args.args)?;
        let Typed { node, data_type } = typed(constant(self.name(), &schema)?)?;
        over(texts, |texts| {
            let mut column = JsonColumn::new(node, data_type)?;
            for text in &to_bytes(texts)? {
                column.push(text);
            }
            Ok(column.finish()?)
        })
    }
}

fn typed(schema: &str) -> Result<Typed> {
    ddl::parse(schema).map_err(|error| DataFusionError::Plan(format!("from_json: the schema at {error}")))
}
