//! What a registry says of a schema.

use serde::{Deserialize, Serialize};

/// A schema that another one references.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// As the other one calls it: a type's name in Avro, a file's in Protobuf.
    pub name: String,
    pub text: String,
}
