//! Schema ids to schemas.
//!
//! An outage is not bad data: an id the registry does not have, a refused login, a registry that does not
//! answer and a schema that cannot be used are four errors with four consequences.

mod allowed;
mod bucket;
mod client;
mod connect;
mod disk;
pub mod embedded;
mod http;

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::config::plan::SchemaFormat;
use crate::model::{Classify, Fault, Hint, Reference, SchemaId, SchemaKey, SchemaVersion};

pub use allowed::Allowed;
pub use client::RegistryClient;
pub use connect::SettingsError;

/// A schema as the registry has it, with the schemas it references, referenced ones first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredSchema {
    /// What it is known by: an id, unless it was asked for by a GUID.
    pub id: SchemaKey,
    /// `AVRO`, `PROTOBUF`, `JSON`.
    pub kind: String,
    pub text: String,
    pub references: Vec<Reference>,
}

/// The newest version of a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    pub version: SchemaVersion,
    pub schema: RegisteredSchema,
}

/// What the engine asks of a registry.
#[async_trait]
pub trait Registry: Send + Sync {
    async fn by_id(&self, id: SchemaId) -> Result<RegisteredSchema, RegistryError>;
    /// Registries before Confluent Platform 8 know no GUIDs: none of them is there.
    async fn by_guid(&self, guid: Uuid) -> Result<RegisteredSchema, RegistryError>;
    /// The newest version of a subject, or a given one.
    async fn by_subject(
        &self,
        subject: &str,
        version: Option<u32>,
    ) -> Result<RegisteredSchema, RegistryError>;
    /// The newest version of a subject as the registry has it now: an outage is an error, no earlier answer stands in.
    async fn newest(&self, subject: &str) -> Result<Newest, RegistryError>;
    /// Registers a schema under a subject, if it is not there yet; its id.
    async fn register(
        &self,
        subject: &str,
        format: SchemaFormat,
        text: &str,
    ) -> Result<SchemaId, RegistryError>;
    /// The id of a schema that a subject has; [`RegistryError::Unknown`] if it has not.
    async fn find(&self, subject: &str, format: SchemaFormat, text: &str) -> Result<SchemaId, RegistryError>;
    /// Would it be registered? By the rules of the subject, which may not be there yet.
    async fn is_compatible(
        &self,
        subject: &str,
        format: SchemaFormat,
        text: &str,
    ) -> Result<bool, RegistryError>;
    /// The subjects that have a schema, also in versions that are deleted, without their context.
    async fn subjects_of(&self, key: SchemaKey) -> Result<Vec<String>, RegistryError>;
}

/// Why a schema could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The registry is there and does not have it.
    #[error("the schema registry has no {what}")]
    Unknown { what: String },
    #[error("the schema registry refuses us {what} (HTTP {status})")]
    Unauthorised { what: String, status: u16 },
    #[error("the schema registry does not answer for {what}: {problem}")]
    Unavailable {
        what: String,
        problem: String,
        /// What the registry asked us to wait.
        retry_after: Option<Duration>,
    },
    #[error("{what} cannot be used: {problem}")]
    Unusable { what: String, problem: String },
    /// With `allow_ids: subject`.
    #[error("schema {schema} is not of the route's subjects, but of {subjects}")]
    Foreign { schema: SchemaKey, subjects: String },
    /// The registry does not take a schema of ours.
    #[error("the schema registry refuses {what}: {problem}")]
    Refused { what: String, problem: String },
}

/// rustls has no common word for what is wrong between two parties but this one: `UnknownIssuer`,
/// `CertificateRequired` and the like follow it or hold it.
fn is_about_certificates(problem: &str) -> bool {
    problem.to_ascii_lowercase().contains("certificate")
}

/// A bounded run that the registry refuses gives up after this time: rights do not come back by themselves, but a proxy
/// that is just starting may refuse for moments.
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// The same while it does not answer: a restart, or a failover, takes less.
const AWAY_MAX: Duration = Duration::from_secs(600);

impl RegistryError {
    /// Does a run that has an end give up, after it has waited for so long? A service waits for ever.
    pub fn is_given_up(&self, waited: Duration) -> bool {
        match self {
            Self::Unauthorised { .. } => waited >= REFUSED_MAX,
            Self::Unavailable { .. } => waited >= AWAY_MAX,
            // What is not there has its own grace; what is of no use is not waited for.
            Self::Unknown { .. } | Self::Unusable { .. } | Self::Foreign { .. } | Self::Refused { .. } => {
                false
            }
        }
    }

    /// What the registry asked us to wait, if it did.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Unavailable { retry_after: Some(asked), .. } => *asked,
            _ => Duration::ZERO,
        }
    }
}

impl Classify for RegistryError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } | Self::Unauthorised { .. } => Fault::Transient,
            Self::Unknown { .. } | Self::Unusable { .. } | Self::Foreign { .. } | Self::Refused { .. } => {
                Fault::Stop
            }
        }
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Unknown { .. } => {
                "is `schema_registry.url` the registry the producers use? subjects are named `<topic>-value`, \
                 or as `subject:` says"
                    .into()
            }
            Self::Unauthorised { .. } => {
                "check `basic_auth` or `bearer_token` of `schema_registry`, and their rights".into()
            }
            Self::Unavailable { problem, .. } if is_about_certificates(problem) => {
                "check `ca_file` of `schema_registry` (whom we trust), the name in the registry's certificate, and, \
                 if it wants one of ours, `client_cert_file` with `client_key_file`"
                    .into()
            }
            Self::Unavailable { .. } => {
                "check `schema_registry.url` (with https also `ca_file`), and that the registry is up".into()
            }
            Self::Unusable { .. } => "look at the schema in the registry".into(),
            Self::Refused { .. } => {
                "make the columns compatible with the versions of the subject, or choose another subject"
                    .into()
            }
            Self::Foreign { .. } => {
                "`allow_ids: any` takes schemas of all subjects; else look at who writes to the topic".into()
            }
        })
    }
}

#[cfg(test)]
mod tests;
