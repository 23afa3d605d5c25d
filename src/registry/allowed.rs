//! `allow_ids: subject`: the records of a route name schemas of its own subjects only.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use crate::config::plan::SchemaFormat;
use crate::model::{SchemaId, SchemaKey};

use super::{Newest, RegisteredSchema, Registry, RegistryError};

/// Subjects that a message names; a schema may have thousands.
const SUBJECTS_SHOWN: usize = 3;

/// A registry that gives a route only schemas of subjects that are allowed.
pub struct Allowed {
    registry: Arc<dyn Registry>,
    is_allowed: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl Allowed {
    pub fn new(
        registry: Arc<dyn Registry>,
        is_allowed: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { registry, is_allowed: Box::new(is_allowed) }
    }

    /// A schema that is there: the question is only whose it is.
    async fn checked(&self, schema: RegisteredSchema) -> Result<RegisteredSchema, RegistryError> {
        let subjects = self.registry.subjects_of(schema.id).await.map_err(|error| match error {
            // It has just given us the schema. Taken for a schema that is not there, good records would be bad.
            RegistryError::Unknown { what } => RegistryError::Unavailable {
                what,
                problem: "it does not say which subjects have it, which `allow_ids: subject` needs"
                    .to_owned(),
                retry_after: None,
            },
            other => other,
        })?;
        if subjects.iter().any(|subject| (self.is_allowed)(subject)) {
            return Ok(schema);
        }
        Err(RegistryError::Foreign { schema: schema.id, subjects: shown(&subjects) })
    }
}

fn shown(subjects: &[String]) -> String {
    let some: Vec<String> =
        subjects.iter().take(SUBJECTS_SHOWN).map(|subject| format!("`{subject}`")).collect();
    match subjects.len().saturating_sub(SUBJECTS_SHOWN) {
        0 if some.is_empty() => "none".to_owned(),
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

#[async_trait]
impl Registry for Allowed {
    async fn by_id(&self, id: SchemaId) -> Result<RegisteredSchema, RegistryError> {
        self.checked(self.registry.by_id(id).await?).await
    }

    async fn by_guid(&self, guid: Uuid) -> Result<RegisteredSchema, RegistryError> {
        self.checked(self.registry.by_guid(guid).await?).await
    }

    async fn by_subject(
        &self,
        subject: &str,
        version: Option<u32>,
    ) -> Result<RegisteredSchema, RegistryError> {
        self.registry.by_subject(subject, version).await
    }

    async fn newest(&self, subject: &str) -> Result<Newest, RegistryError> {
        self.registry.newest(subject).await
    }

    async fn register(
        &self,
        subject: &str,
        format: SchemaFormat,
        text: &str,
    ) -> Result<SchemaId, RegistryError> {
        self.registry.register(subject, format, text).await
    }

    async fn find(&self, subject: &str, format: SchemaFormat, text: &str) -> Result<SchemaId, RegistryError> {
        self.registry.find(subject, format, text).await
    }

    async fn is_compatible(
        &self,
        subject: &str,
        format: SchemaFormat,
        text: &str,
    ) -> Result<bool, RegistryError> {
        self.registry.is_compatible(subject, format, text).await
    }

    async fn subjects_of(&self, key: SchemaKey) -> Result<Vec<String>, RegistryError> {
        self.registry.subjects_of(key).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::plan;
    use crate::registry::RegistryClient;
    use crate::registry::embedded::EmbeddedRegistry;

    #[tokio::test]
    async fn schemas_of_other_subjects_are_refused_by_name() {
        let registry = EmbeddedRegistry::start().await.unwrap();
        let plan = plan::Registry::at(registry.url(), Duration::from_secs(5));
        let client: Arc<dyn Registry> = Arc::new(RegistryClient::new(&plan).unwrap());
        let own = client.register("t-value", SchemaFormat::Avro, "\"int\"").await.unwrap();
        let other = client.register("other-value", SchemaFormat::Avro, "\"long\"").await.unwrap();
        // One schema may be of several subjects.
        let both = client.register("other-value", SchemaFormat::Avro, "\"string\"").await.unwrap();
        client.register("t-value", SchemaFormat::Avro, "\"string\"").await.unwrap();
        let guid = guid(&registry.url(), "other-value/versions/1").await;
        let own_guid = self::guid(&registry.url(), "t-value/versions/1").await;
        let route = Allowed::new(client.clone(), |subject| subject == "t-value");
        for id in [own, both] {
            assert_eq!(route.by_id(id).await, client.by_id(id).await);
        }
        assert_eq!(route.by_guid(own_guid).await.unwrap().text, "\"int\"");
        let foreign = |schema| RegistryError::Foreign { schema, subjects: "`other-value`".to_owned() };
        assert_eq!(route.by_id(other).await, Err(foreign(SchemaKey::Id(other))));
        assert_eq!(route.by_guid(guid).await, Err(foreign(SchemaKey::Guid(guid))));
        // What is not there at all is told as ever, and reader schemas are the file's own choice.
        let error = route.by_id(SchemaId(99)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unknown { .. }), "{error}");
        assert_eq!(route.by_subject("other-value", Some(1)).await.unwrap().text, "\"long\"");
    }

    async fn guid(url: &str, version: &str) -> Uuid {
        #[derive(serde::Deserialize)]
        struct Answer {
            guid: Uuid,
        }
        let answer = reqwest::Client::new().get(format!("{url}/subjects/{version}")).send().await.unwrap();
        serde_json::from_slice::<Answer>(&answer.bytes().await.unwrap()).unwrap().guid
    }

    /// Only says whose schemas are, or that it does not.
    struct Mute;

    #[async_trait]
    impl Registry for Mute {
        async fn by_id(&self, id: SchemaId) -> Result<RegisteredSchema, RegistryError> {
            let text = "\"int\"".to_owned();
            Ok(RegisteredSchema { id: id.into(), kind: "AVRO".to_owned(), text, references: Vec::new() })
        }

        async fn by_guid(&self, _: Uuid) -> Result<RegisteredSchema, RegistryError> {
            Err(RegistryError::Unknown { what: "it".to_owned() })
        }

        async fn by_subject(&self, _: &str, _: Option<u32>) -> Result<RegisteredSchema, RegistryError> {
            Err(RegistryError::Unknown { what: "it".to_owned() })
        }

        async fn newest(&self, _: &str) -> Result<Newest, RegistryError> {
            Err(RegistryError::Unknown { what: "it".to_owned() })
        }

        async fn register(&self, _: &str, _: SchemaFormat, _: &str) -> Result<SchemaId, RegistryError> {
            Err(RegistryError::Unknown { what: "it".to_owned() })
        }

        async fn find(&self, _: &str, _: SchemaFormat, _: &str) -> Result<SchemaId, RegistryError> {
            Err(RegistryError::Unknown { what: "it".to_owned() })
        }

        async fn is_compatible(&self, _: &str, _: SchemaFormat, _: &str) -> Result<bool, RegistryError> {
            Err(RegistryError::Unknown { what: "it".to_owned() })
        }

        async fn subjects_of(&self, _: SchemaKey) -> Result<Vec<String>, RegistryError> {
            Err(RegistryError::Unknown { what: "it".to_owned() })
        }
    }

    #[tokio::test]
    async fn a_registry_that_does_not_say_whose_a_schema_is_makes_no_record_bad() {
        let route = Allowed::new(Arc::new(Mute), |_| true);
        let error = route.by_id(SchemaId(1)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("allow_ids"), "{error}");
    }

    #[test]
    fn of_many_subjects_a_few_are_named() {
        let subjects = |count: usize| (0..count).map(|n| format!("s{n}")).collect::<Vec<_>>();
        assert_eq!(shown(&subjects(0)), "none");
        assert_eq!(shown(&subjects(3)), "`s0`, `s1`, `s2`");
        assert_eq!(shown(&subjects(5)), "`s0`, `s1`, `s2` and 2 more");
    }
}
