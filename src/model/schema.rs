//! What a registry says of a schema.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::SchemaId;

/// A schema that another one references.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// As the other one calls it: a type's name in Avro, a file's in Protobuf.
    pub name: String,
    pub text: String,
}

/// A schema as a version of a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaVersion {
    pub subject: String,
    pub id: SchemaId,
    /// `None` where the registry has not said it, as with an answer kept on disk.
    pub number: Option<u32>,
}

/// As messages put it behind the word "schema".
impl fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, id, number } = self;
        match number {
            Some(number) => write!(f, "id {id} (version {number} of subject `{subject}`)"),
            None => write!(f, "id {id} (of subject `{subject}`)"),
        }
    }
}
