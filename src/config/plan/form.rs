//! How records are read: forms of keys and values, and what they are read as.

use std::path::PathBuf;

/// `key:` of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyForm {
    /// With the id of a schema that the registry has, read as the newest schema of the subject of keys.
    Registry(RegistryForm),
    /// As it is.
    Raw(RawForm),
    /// Plain JSON, read as the Avro schema of this file.
    Json(PathBuf),
}

/// `value:` of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueForm {
    /// With the id of a schema that the registry has.
    Registry(RegistryForm),
    /// As it is.
    Raw(RawForm),
    /// Plain JSON, read as the Avro schema of this file.
    Json(PathBuf),
}

/// `registry`, or one of the formats that it has, and what the records are read as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryForm {
    pub schema: ReaderSchema,
    /// Where the reader schema is, if not where serialisers put it; see [`Route::subject`](super::Route::subject).
    pub subject: Option<String>,
    /// None: whichever the reader schema is.
    pub format: Option<SchemaFormat>,
    /// Of Protobuf: the message, if not the first one of its file.
    pub message: Option<String>,
    /// The one type to read, of those that schemas may have: see [`RecordType::name`](super::RecordType::name).
    pub record_type: Option<String>,
    pub framing: Framing,
    pub recursion: Recursion,
    /// Of JSON Schema: records are held against all of their schema, not only its types.
    pub is_validated: bool,
}

/// `recursive:` of a form: what becomes of a type that contains itself, which Arrow does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recursion {
    #[default]
    Refuse,
    /// JSON text, from where the type begins again.
    Json,
}

/// How a record names its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By a header if there is one, else by a prefix.
    Confluent,
    Header,
    /// Four bytes of an id behind a zero byte.
    Prefix,
    /// Eight bytes of an id behind a zero byte.
    Apicurio,
}

/// Formats of schemas in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaFormat {
    Avro,
    Protobuf,
    JsonSchema,
}

impl SchemaFormat {
    /// As the registry calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avro => "AVRO",
            Self::Protobuf => "PROTOBUF",
            Self::JsonSchema => "JSON",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawForm {
    Bytes,
    String,
    /// Validated JSON text.
    Json,
}

/// `reader_schema:` of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReaderSchema {
    Latest,
    Version(u32),
    Id(u32),
    File(PathBuf),
}

/// `allow_ids:` of a route: which schemas of the registry its records may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowIds {
    Any,
    /// Those that are registered under the subjects of its topics.
    Subject,
}

/// `on_new_schema:` of a route: what follows from a newer version of the subject it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnNewSchema {
    /// Records are read as the newer one.
    Widen,
    /// It is told, and nothing changes before the next start.
    Pin,
    /// The route stops before the first record of it.
    Stop,
}

impl OnNewSchema {
    /// As in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Widen => "widen",
            Self::Pin => "pin",
            Self::Stop => "stop",
        }
    }
}
