//! Keys of any type as the one column `_key`.

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use crate::config::plan::Tombstones;
use crate::model::RecordRef;

use super::avro::arrow_type;
use super::avro::node::{Field, Kind, Node, Record, SchemaError};
use super::columns::Column;
use super::debezium::unwrapped;
use super::fill::{Rejection, fill_side};
use super::json::{Unfit, parse, put_any};
use super::meta::KEY;
use super::{Codec, Decoded, Side};

/// A record with `node` as its only field: columns are fields of a record, and the Avro bytes of such a
/// record are those of its field.
pub fn as_field(node: Node) -> Node {
    let field = Field { name: KEY.to_owned(), aliases: Vec::new(), default: None, node };
    Node { kind: Kind::Record(Record { name: KEY.to_owned(), fields: vec![field] }), logical: None }
}

/// `key: {json: {schema: …}}`: JSON keys of whatever type an Avro schema says.
#[derive(Debug)]
pub struct JsonKeys {
    node: Node,
    schema: SchemaRef,
    /// They may have their schemas with them: `{"schema": …, "payload": …}`.
    is_wrapped: bool,
}

impl JsonKeys {
    /// # Errors
    /// [`SchemaError`] if the schema has no Arrow form.
    pub fn new(node: Node) -> Result<Self, SchemaError> {
        Ok(Self { schema: arrow_type::schema(&as_field(node.clone()), true)?, node, is_wrapped: false })
    }

    /// Of change events.
    #[must_use]
    pub fn wrapped(mut self) -> Self {
        self.is_wrapped = true;
        self
    }

    fn put(&self, key: &[u8], column: &mut Column) -> Result<(), Unfit> {
        let mut json = parse(key)?;
        if self.is_wrapped {
            json = unwrapped(json).1;
        }
        put_any(&self.node, &json, column)
    }
}

impl Codec for JsonKeys {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        fill_side(Side::Key, &self.schema, Tombstones::Keep, records, |_, key, columns| {
            columns.iter_mut().try_for_each(|column| self.put(key, column)).map_err(|unfit| Rejection {
                code: unfit.code,
                message: unfit.message,
                schema_id: None,
            })
        })
    }
}
