//! Keys of any type as the one column `_key`.

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use crate::config::plan::Tombstones;
use crate::model::RecordRef;

use super::avro::arrow_type;
use super::avro::node::{Field, Kind, Node, Record, SchemaError};
use super::fill::{Rejection, fill_side};
use super::json::put_whole;
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
}

impl JsonKeys {
    /// # Errors
    /// [`SchemaError`] if the schema has no Arrow form.
    pub fn new(node: Node) -> Result<Self, SchemaError> {
        Ok(Self { schema: arrow_type::schema(&as_field(node.clone()), true)?, node })
    }
}

impl Codec for JsonKeys {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn decode(&self, records: &[RecordRef<'_>]) -> Result<Decoded, ArrowError> {
        fill_side(Side::Key, &self.schema, Tombstones::Keep, records, |_, key, columns| {
            columns
                .iter_mut()
                .try_for_each(|column| put_whole(&self.node, key, column))
                .map_err(|unfit| Rejection { code: unfit.code, message: unfit.message, schema_id: None })
        })
    }
}
