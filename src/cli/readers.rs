//! Reader schemas: from the registry or files to the codecs of a route.

use std::path::Path;

use crate::codec::avro::node::{Node, SchemaError};
use crate::codec::{Codec, Decoder, JsonKeys, Raw, Registered, Side, TypedJson, json_schema, protobuf};
use crate::config::plan::{
    Envelope, Framing, KeyForm, ReaderSchema, Recursion, RegistryForm, Route, SchemaFormat, ValueForm,
};
use crate::model::{Reference, SchemaId, SchemaVersion};
use crate::registry::{RegisteredSchema, Registry, RegistryError};

use super::changes;

/// A reader schema that could not be had or used.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    #[error("route `{route}`: failed to get its reader schema")]
    Registry { route: String, source: RegistryError },
    #[error("route `{route}`: {what} cannot be its reader schema: {problem}")]
    Unusable { route: String, what: String, problem: String },
}

/// The form of a route's values or keys, if their records name schemas.
pub fn registry_form(route: &Route, side: Side) -> Option<&RegistryForm> {
    match (side, &route.value, &route.key) {
        (Side::Value, ValueForm::Registry(form), _) | (Side::Key, _, KeyForm::Registry(form)) => Some(form),
        _ => None,
    }
}

/// The subject of the reader schema of a route's values or keys.
pub fn subject(route: &Route, side: Side, form: &RegistryForm) -> String {
    match side {
        Side::Value => route.subject(form, "value"),
        Side::Key => route.subject(form, "key"),
    }
}

/// A reader schema, parsed, and what it is called.
pub struct ReadAs {
    pub schema: Parsed,
    pub name: String,
    /// As which it was asked for, if it was.
    pub version: Option<SchemaVersion>,
}

pub enum Parsed {
    Avro(Node),
    Protobuf(protobuf::File),
    Json(Node),
}

impl Parsed {
    /// A schema of a format, as the registry calls it; with a record type only that.
    fn read(
        route: &Route,
        form: &RegistryForm,
        kind: &str,
        text: &str,
        references: &[Reference],
    ) -> Result<Self, String> {
        match (kind, form.record_type.as_deref()) {
            ("AVRO", None) => {
                let node = changes::avro_node(route, text, references, form.recursion);
                node.map(Self::Avro).map_err(|error| error.to_string())
            }
            ("AVRO", Some(name)) => {
                let parsed = Node::parse_record(text, references, form.recursion, name);
                parsed.map(|(record, _)| Self::Avro(record)).map_err(|error| error.to_string())
            }
            ("PROTOBUF", record_type) => {
                let file = protobuf::parse(text, references).map_err(|error| error.to_string())?;
                match record_type.filter(|name| file.names().iter().all(|(_, own)| own != name)) {
                    Some(name) => Err(protobuf::SchemaError::NoMessage(name.to_owned()).to_string()),
                    None => Ok(Self::Protobuf(file.recursive(form.recursion))),
                }
            }
            ("JSON", Some(name)) if json_schema::title(text).as_deref() != Some(name) => {
                Err(format!("its title is not `{name}`"))
            }
            ("JSON", _) => {
                let node = json_schema::parse_with(text, references, form.recursion);
                node.map(Self::Json).map_err(|error| error.to_string())
            }
            (other, _) => Err(format!("it is {other}; Avro, Protobuf and JSON Schemas can be read")),
        }
    }
}

/// A schema of the registry, and as which version of a subject it was asked for.
async fn fetch(
    route: &Route,
    side: Side,
    form: &RegistryForm,
    registry: &dyn Registry,
) -> Result<(RegisteredSchema, Option<SchemaVersion>), RegistryError> {
    let subject = subject(route, side, form);
    let version_of = |schema: &RegisteredSchema, number| {
        let id = schema.id.id()?;
        Some(SchemaVersion { subject: subject.clone(), id, number })
    };
    match &form.schema {
        ReaderSchema::Id(id) => Ok((registry.by_id(SchemaId(*id)).await?, None)),
        ReaderSchema::Version(number) => {
            let schema = registry.by_subject(&subject, Some(*number)).await?;
            let version = version_of(&schema, Some(*number));
            Ok((schema, version))
        }
        ReaderSchema::Latest | ReaderSchema::File(_) => match registry.newest(&subject).await {
            Ok(newest) => Ok((newest.schema, Some(newest.version))),
            // What the registry said last may be kept on disk.
            Err(RegistryError::Unavailable { .. }) => {
                let schema = registry.by_subject(&subject, None).await?;
                let version = version_of(&schema, None);
                Ok((schema, version))
            }
            Err(error) => Err(error),
        },
    }
}

/// Fetches a route's reader schema of values or keys.
///
/// # Errors
/// [`ReaderError`]
pub async fn reader(
    route: &Route,
    side: Side,
    form: &RegistryForm,
    registry: Option<&dyn Registry>,
) -> Result<ReadAs, ReaderError> {
    let unusable =
        |what: String, problem: String| ReaderError::Unusable { route: route.name.clone(), what, problem };
    if let ReaderSchema::File(path) = &form.schema {
        let is_protobuf = form.format == Some(SchemaFormat::Protobuf)
            || (form.format.is_none() && path.extension().is_some_and(|extension| extension == "proto"));
        let format = match form.format {
            Some(SchemaFormat::JsonSchema) => SchemaFormat::JsonSchema,
            _ if is_protobuf => SchemaFormat::Protobuf,
            _ => SchemaFormat::Avro,
        };
        let (text, name) = (file_text(route, path)?, format!("`{}`", path.display()));
        let schema = Parsed::read(route, form, format.name(), &text, &[]);
        let schema = schema.map_err(|problem| unusable(name.clone(), problem))?;
        return Ok(ReadAs { schema, name, version: None });
    }
    let Some(registry) = registry else {
        return Err(unusable("nothing".to_owned(), "`schema_registry` is missing".to_owned()));
    };
    let fetched = fetch(route, side, form, registry).await;
    let (schema, version) =
        fetched.map_err(|source| ReaderError::Registry { route: route.name.clone(), source })?;
    let name = version.as_ref().map_or_else(|| schema.id.to_string(), ToString::to_string);
    let what = format!("schema {name}");
    if let Some(format) = form.format
        && format.name() != schema.kind
    {
        return Err(unusable(what, format!("it is {}, and the route says {}", schema.kind, format.name())));
    }
    let parsed = Parsed::read(route, form, &schema.kind, &schema.text, &schema.references);
    Ok(ReadAs { schema: parsed.map_err(|problem| unusable(what, problem))?, name, version })
}

fn file_text(route: &Route, path: &Path) -> Result<String, ReaderError> {
    std::fs::read_to_string(path).map_err(|error| ReaderError::Unusable {
        route: route.name.clone(),
        what: format!("`{}`", path.display()),
        problem: error.to_string(),
    })
}

/// # Errors
/// [`ReaderError`]
pub fn schema_file(route: &Route, path: &Path, recursion: Recursion) -> Result<Node, ReaderError> {
    let text = file_text(route, path)?;
    changes::avro_node(route, &text, &[], recursion).map_err(|error| ReaderError::Unusable {
        route: route.name.clone(),
        what: format!("`{}`", path.display()),
        problem: error.to_string(),
    })
}

/// The decoders of a route's values and keys, one for each record type.
///
/// # Errors
/// [`ReaderError`]
pub async fn decoders(route: &Route, registry: Option<&dyn Registry>) -> Result<Vec<Decoder>, ReaderError> {
    let mut decoders = Vec::new();
    for of_type in route.by_type() {
        decoders.push(decoder(&of_type, registry).await?);
    }
    Ok(decoders)
}

async fn decoder(route: &Route, registry: Option<&dyn Registry>) -> Result<Decoder, ReaderError> {
    let value = value_codec(route, registry).await?;
    let key = key_codec(route, registry).await?;
    Ok(match route.value {
        ValueForm::Raw(_) => Decoder::raw(value, key),
        ValueForm::Json(_) | ValueForm::Registry(_) => Decoder::typed(value, key),
    })
}

async fn key_codec(route: &Route, registry: Option<&dyn Registry>) -> Result<Box<dyn Codec>, ReaderError> {
    let unusable = |error: SchemaError| ReaderError::Unusable {
        route: route.name.clone(),
        what: "the schema of its keys".to_owned(),
        problem: error.to_string(),
    };
    Ok(match &route.key {
        KeyForm::Raw(form) => Box::new(Raw::for_keys(*form)),
        KeyForm::Json(path) => {
            let node = schema_file(route, path, Recursion::Refuse)?;
            let keys = JsonKeys::new(node).map_err(unusable)?;
            Box::new(if route.envelope == Envelope::None { keys } else { keys.wrapped() })
        }
        KeyForm::Registry(form) => {
            let ReadAs { schema, name, version } = reader(route, Side::Key, form, registry).await?;
            let codec = match schema {
                Parsed::Avro(node) => Registered::avro_keys(node).map_err(unusable)?,
                Parsed::Json(node) => Registered::json_keys(node).map_err(unusable)?,
                Parsed::Protobuf(file) => {
                    check_framing(route, form)?;
                    Registered::protobuf_keys(&file, form.message.as_deref()).map_err(|error| {
                        ReaderError::Unusable {
                            route: route.name.clone(),
                            what: "the schema of its keys".to_owned(),
                            problem: error.to_string(),
                        }
                    })?
                }
            };
            Box::new(as_formed(codec, form).read_as(name, version))
        }
    })
}

async fn value_codec(route: &Route, registry: Option<&dyn Registry>) -> Result<Box<dyn Codec>, ReaderError> {
    if route.envelope == Envelope::Debezium {
        return changes::codec(route, registry).await;
    }
    let unusable = |error: SchemaError| ReaderError::Unusable {
        route: route.name.clone(),
        what: "its schema".to_owned(),
        problem: error.to_string(),
    };
    Ok(match &route.value {
        ValueForm::Raw(form) => Box::new(Raw::new(*form, route.tombstones)),
        ValueForm::Json(path) => {
            let node = schema_file(route, path, Recursion::Refuse)?;
            Box::new(TypedJson::new(node, route.tombstones).map_err(unusable)?)
        }
        ValueForm::Registry(form) => {
            let ReadAs { schema, name, version } = reader(route, Side::Value, form, registry).await?;
            let codec = match schema {
                Parsed::Avro(node) => Registered::avro(node, route.tombstones).map_err(unusable)?,
                Parsed::Json(node) => Registered::json(node, route.tombstones).map_err(unusable)?,
                Parsed::Protobuf(file) => {
                    check_framing(route, form)?;
                    let message = form.record_type.as_deref().or(form.message.as_deref());
                    Registered::protobuf(&file, message, route.tombstones).map_err(|error| {
                        ReaderError::Unusable {
                            route: route.name.clone(),
                            what: "its schema".to_owned(),
                            problem: error.to_string(),
                        }
                    })?
                }
            };
            let codec = as_formed(codec, form).read_as(name, version);
            Box::new(codec.of_type(form.record_type.clone()))
        }
    })
}

/// What a form says besides the reader schema.
fn as_formed(codec: Registered, form: &RegistryForm) -> Registered {
    codec.framed(form.framing).recursive(form.recursion).validated(form.is_validated)
}

/// With `registry: {framing: apicurio}` the format shows only here.
fn check_framing(route: &Route, form: &RegistryForm) -> Result<(), ReaderError> {
    if form.framing != Framing::Apicurio {
        return Ok(());
    }
    Err(ReaderError::Unusable {
        route: route.name.clone(),
        what: "a Protobuf schema".to_owned(),
        problem: "Protobuf in Apicurio's own framing cannot be read".to_owned(),
    })
}

/// Is a reader schema of a route in the registry?
pub fn needs_registry(route: &Route) -> bool {
    let of_values = route.value_forms().iter().any(|form| !matches!(form.schema, ReaderSchema::File(_)));
    of_values || matches!(route.key, KeyForm::Registry(_))
}
