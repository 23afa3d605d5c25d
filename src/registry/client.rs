//! schema_registry_converter's calls under our own cache: bounded, and one call per schema however many lanes
//! ask; below it, files for the next start. Its own caches keep failures for ever, which would turn an outage
//! into bad records.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::StatusCode;
use schema_registry_converter::async_impl::schema_registry::{
    SrSettings, get_referenced_schema, get_schema_by_guid, get_schema_by_id,
    get_schema_by_subject_and_version, is_compatible_schema, perform_sr_call, post_schema,
};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{
    RegisteredReference, RegisteredSchema as Answer, SchemaType, SrCall, SuppliedSchema,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tracing::warn;
use uuid::Uuid;

use crate::config::plan::{self, SchemaFormat};
use crate::model::{Reference, SchemaId, SchemaKey, SchemaVersion};
use crate::status::{self, RegistryCounts};

use super::bucket::Bucket;
use super::connect::{Connection, SettingsError, connect};
use super::disk::{Disk, asked};
use super::http::{Refusal, root_cause};
use super::{Newest, RegisteredSchema, Registry, RegistryError};

/// Schemas kept. Lanes keep what they compiled; this only saves calls, so it is simply emptied when full.
const SCHEMAS_MAX: usize = 2000;

/// Bytes of their texts. Most schemas have a few thousand: this is for those of a generator.
const SCHEMAS_BYTES_MAX: usize = 32 << 20;

/// A schema with all it references. One is asked for at a time by each of 16 look-ups of a lane, so this also bounds
/// what they hold.
const SCHEMA_BYTES_MAX: usize = 4 << 20;

/// Schemas that one schema references, directly or not.
const REFERENCES_MAX: usize = 256;

/// References of references.
const REFERENCE_DEPTH_MAX: usize = 16;

/// A subject is asked for again after this before its last answer stands in: what is over in a moment must not
/// decide how a whole run reads its records.
const SECOND_ASK_AFTER: Duration = Duration::from_millis(500);

/// A client of one registry. Cheap to clone.
#[derive(Clone)]
pub struct RegistryClient {
    connection: Arc<Connection>,
    known: Arc<Mutex<Known>>,
    bucket: Arc<Bucket>,
    disk: Option<Arc<Disk>>,
    counts: Arc<RegistryCounts>,
}

/// Empty until the schema has come.
type Cell = Arc<OnceCell<RegisteredSchema>>;

/// Schemas in memory, and those that are being asked for.
#[derive(Default)]
struct Known {
    cells: HashMap<SchemaKey, Cell>,
    bytes: usize,
}

impl RegistryClient {
    /// A client that keeps nothing for the next start.
    ///
    /// # Errors
    /// [`SettingsError`] if no client can be made of the settings.
    pub fn new(registry: &plan::Registry) -> Result<Self, SettingsError> {
        Ok(Self {
            connection: Arc::new(connect(registry)?),
            known: Arc::default(),
            bucket: Arc::new(Bucket::new()),
            disk: None,
            counts: Arc::default(),
        })
    }

    /// As [`Self::new`], with the files of `cache_dir`, if the settings name one.
    ///
    /// # Errors
    /// [`SettingsError`] if no client can be made of the settings.
    pub fn with_cache(registry: &plan::Registry) -> Result<Self, SettingsError> {
        let mut client = Self::new(registry)?;
        client.disk =
            registry.cache_dir.as_ref().map(|dir| Arc::new(Disk::open(dir, &registry.urls.join(","))));
        Ok(client)
    }

    /// Counts its calls there.
    #[must_use]
    pub fn counting(mut self, counts: Arc<RegistryCounts>) -> Self {
        self.counts = counts;
        self
    }

    /// Counts what a call has come to.
    fn count<T>(&self, answer: Result<T, RegistryError>) -> Result<T, RegistryError> {
        self.counts.answered(match &answer {
            Ok(_) => status::Answer::Found,
            Err(RegistryError::Unknown { .. }) => status::Answer::Unknown,
            Err(RegistryError::Unauthorised { .. }) => status::Answer::Unauthorised,
            Err(RegistryError::Unavailable { .. }) => status::Answer::Unavailable,
            Err(
                RegistryError::Unusable { .. }
                | RegistryError::Foreign { .. }
                | RegistryError::Refused { .. },
            ) => status::Answer::Unusable,
        });
        answer
    }

    /// Reads or writes files, away from the threads that carry lanes. `None` without a cache on disk.
    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&Disk) -> T + Send + 'static) -> Option<T> {
        let disk = self.disk.clone()?;
        tokio::task::spawn_blocking(move || work(disk.as_ref())).await.ok()
    }

    /// From memory, from disk or from the registry.
    async fn by_key(&self, key: SchemaKey) -> Result<RegisteredSchema, RegistryError> {
        // A failed call leaves the cell empty: the next one asks again.
        let cell = self.cell(key);
        if cell.initialized() {
            self.counts.found_in_memory();
        }
        let answer = cell.get_or_try_init(|| self.fetch(key)).await.cloned();
        if answer.is_err() {
            self.forget(key, &cell);
        }
        answer
    }

    /// From disk or from the registry: an id, or a GUID, never changes its schema.
    async fn fetch(&self, key: SchemaKey) -> Result<RegisteredSchema, RegistryError> {
        if let Some(schema) = self.on_disk(move |disk| disk.schema(key)).await.flatten() {
            self.counts.found_on_disk();
            self.weigh(key, &schema);
            return Ok(schema);
        }
        let what = format!("schema {key}");
        self.bucket.take().await;
        let answer = match key {
            SchemaKey::Id(id) => get_schema_by_id(id.0, self.settings()).await,
            SchemaKey::Guid(guid) => get_schema_by_guid(&guid.to_string(), self.settings()).await,
        };
        let answer = self.count(answer.map_err(|error| explain(&what, &error)));
        if !matches!(answer, Err(RegistryError::Unknown { .. })) {
            self.bucket.give_back();
        }
        let schema = self.complete(&what, key, answer?).await?;
        self.weigh(key, &schema);
        let kept = schema.clone();
        self.on_disk(move |disk| disk.keep_schema(&kept)).await;
        Ok(schema)
    }

    /// Asks the registry, and keeps what it answers for the next start. With the number of the version.
    async fn ask_numbered(
        &self,
        subject: &str,
        version: Option<u32>,
    ) -> Result<(RegisteredSchema, Option<u32>), RegistryError> {
        let what = match version {
            Some(version) => format!("version {version} of subject `{subject}`"),
            None => format!("subject `{subject}`"),
        };
        let answer = get_schema_by_subject_and_version(self.settings(), subject, version).await;
        let answer = self.count(answer.map_err(|error| explain(&what, &error)))?;
        let number = answer.version;
        let schema = self.complete(&what, SchemaId(answer.id).into(), answer).await?;
        let (subject, kept) = (subject.to_owned(), schema.clone());
        self.on_disk(move |disk| disk.keep_answer(&subject, version, &kept)).await;
        Ok((schema, number))
    }

    async fn ask(&self, subject: &str, version: Option<u32>) -> Result<RegisteredSchema, RegistryError> {
        self.ask_numbered(subject, version).await.map(|(schema, _)| schema)
    }

    fn settings(&self) -> &SrSettings {
        &self.connection.settings
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, key: SchemaKey) -> Cell {
        let mut known = self.known();
        if known.cells.len() >= SCHEMAS_MAX && !known.cells.contains_key(&key) {
            *known = Known::default();
        }
        known.cells.entry(key).or_default().clone()
    }

    /// Makes room for what has come.
    fn weigh(&self, key: SchemaKey, schema: &RegisteredSchema) {
        let size = size(schema);
        let mut known = self.known();
        if known.bytes + size > SCHEMAS_BYTES_MAX {
            known.cells.retain(|other, _| *other == key);
            known.bytes = 0;
        }
        known.bytes += size;
    }

    /// Keeps no place for what could not be had: garbage names any number of schemas.
    fn forget(&self, key: SchemaKey, cell: &Cell) {
        let mut known = self.known();
        let is_same = known.cells.get(&key).is_some_and(|known| Arc::ptr_eq(known, cell));
        if is_same && !cell.initialized() {
            known.cells.remove(&key);
        }
    }

    /// A list, which schema_registry_converter has no call for.
    async fn list<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, RegistryError> {
        let answer = self.connection.calls.get(path).await;
        self.count(answer.map_err(|error| explain(what, &error)))
    }

    async fn complete(
        &self,
        what: &str,
        key: SchemaKey,
        answer: Answer,
    ) -> Result<RegisteredSchema, RegistryError> {
        let mut texts = Vec::new();
        let mut seen = BTreeMap::new();
        let mut room = SCHEMA_BYTES_MAX.saturating_sub(answer.schema.len());
        self.collect(what, &answer.references, 1, &mut seen, &mut room, &mut texts).await?;
        Ok(RegisteredSchema {
            id: key,
            kind: match answer.schema_type {
                SchemaType::Avro => "AVRO".to_owned(),
                SchemaType::Protobuf => "PROTOBUF".to_owned(),
                SchemaType::Json => "JSON".to_owned(),
                SchemaType::Other(other) => other,
                other => format!("{other:?}"),
            },
            text: answer.schema,
            references: texts,
        })
    }

    /// Fetches references depth first, each once; a cycle is a schema that is open twice.
    async fn collect(
        &self,
        what: &str,
        references: &[RegisteredReference],
        depth: usize,
        seen: &mut BTreeMap<(String, u32), bool>,
        room: &mut usize,
        texts: &mut Vec<Reference>,
    ) -> Result<(), RegistryError> {
        let unusable = |problem: String| RegistryError::Unusable { what: what.to_owned(), problem };
        for reference in references {
            let key = (reference.subject.clone(), reference.version);
            match seen.get(&key) {
                Some(true) => continue,
                Some(false) => {
                    return Err(unusable(format!("its references go in a circle at `{}`", key.0)));
                }
                None => {}
            }
            if depth > REFERENCE_DEPTH_MAX || seen.len() >= REFERENCES_MAX {
                return Err(unusable(format!(
                    "it references more than {REFERENCES_MAX} schemas, or deeper than {REFERENCE_DEPTH_MAX}"
                )));
            }
            seen.insert(key.clone(), false);
            let what_referenced = format!("version {} of subject `{}`", key.1, key.0);
            let answer = get_referenced_schema(self.settings(), reference).await;
            let answer = self.count(answer.map_err(|error| explain(&what_referenced, &error)))?;
            *room = room.checked_sub(answer.schema.len()).ok_or_else(|| {
                unusable(format!("with what it references it is larger than {SCHEMA_BYTES_MAX} bytes"))
            })?;
            Box::pin(self.collect(what, &answer.references, depth + 1, seen, room, texts)).await?;
            texts.push(Reference { name: reference.name.clone(), text: answer.schema });
            seen.insert(key, true);
        }
        Ok(())
    }
}

#[async_trait]
impl Registry for RegistryClient {
    async fn by_id(&self, id: SchemaId) -> Result<RegisteredSchema, RegistryError> {
        self.by_key(id.into()).await
    }

    async fn by_guid(&self, guid: Uuid) -> Result<RegisteredSchema, RegistryError> {
        self.by_key(SchemaKey::Guid(guid)).await
    }

    async fn by_subject(
        &self,
        subject: &str,
        version: Option<u32>,
    ) -> Result<RegisteredSchema, RegistryError> {
        // Only an outage: who is refused, or asks for what is not there, has to know.
        let first = self.ask(subject, version).await;
        let Err(RegistryError::Unavailable { .. }) = first else {
            return first;
        };
        let name = subject.to_owned();
        let Some(last) = self.on_disk(move |disk| disk.answer(&name, version)).await.flatten() else {
            return first;
        };
        tokio::time::sleep(SECOND_ASK_AFTER).await;
        match self.ask(subject, version).await {
            Err(error @ RegistryError::Unavailable { .. }) => {
                warn!(
                    subject, version = asked(version), schema = %last.schema.id, age = format!("{:#}", last.age()),
                    %error, "the schema registry is away: its last answer is used, from the schema cache"
                );
                Ok(last.schema)
            }
            other => other,
        }
    }

    async fn newest(&self, subject: &str) -> Result<Newest, RegistryError> {
        let (schema, number) = self.ask_numbered(subject, None).await?;
        // It was asked for by its subject, so it came with an id.
        let id = schema.id.id().ok_or_else(|| RegistryError::Unusable {
            what: format!("subject `{subject}`"),
            problem: "its newest version has no id".to_owned(),
        })?;
        Ok(Newest { version: SchemaVersion { subject: subject.to_owned(), id, number }, schema })
    }

    async fn register(
        &self,
        subject: &str,
        format: SchemaFormat,
        text: &str,
    ) -> Result<SchemaId, RegistryError> {
        let answer = post_schema(self.settings(), subject.to_owned(), supplied(format, text)).await;
        let what = format!("the schema for subject `{subject}`");
        let answer = self.count(answer.map_err(|error| explain_ours(what, &error)))?;
        Ok(SchemaId(answer.id))
    }

    async fn find(&self, subject: &str, format: SchemaFormat, text: &str) -> Result<SchemaId, RegistryError> {
        let body = serde_json::json!({"schema": text, "schemaType": format.name()}).to_string();
        let answer = perform_sr_call(self.settings(), SrCall::PostForVersion(subject, &body)).await;
        let what = format!("such schema in subject `{subject}`");
        let answer = self.count(answer.map_err(|error| explain_ours(what.clone(), &error)))?;
        answer.id.map(SchemaId).ok_or_else(|| RegistryError::Unavailable {
            what,
            problem: "its answer has no id".to_owned(),
            retry_after: None,
        })
    }

    async fn is_compatible(
        &self,
        subject: &str,
        format: SchemaFormat,
        text: &str,
    ) -> Result<bool, RegistryError> {
        let answer = is_compatible_schema(self.settings(), subject.to_owned(), supplied(format, text)).await;
        let what = format!("the schema for subject `{subject}`");
        self.count(answer.map_err(|error| explain_ours(what, &error)))
    }

    async fn subjects_of(&self, key: SchemaKey) -> Result<Vec<String>, RegistryError> {
        let what = format!("the subjects of schema {key}");
        let ids = match key {
            SchemaKey::Id(id) => vec![id.0],
            SchemaKey::Guid(guid) => {
                let path = format!("/schemas/guids/{guid}/ids");
                let ids: Vec<IdInContext> = self.list(&what, &path).await?;
                let own = self.connection.calls.context();
                let is_ours = |id: &IdInContext| id.context.trim_start_matches('.') == own;
                ids.into_iter().filter(is_ours).map(|id| id.id).collect()
            }
        };
        let mut subjects = Vec::new();
        for id in ids {
            // Records outlive the versions they were written with.
            let versions: Vec<SubjectVersion> =
                self.list(&what, &format!("/schemas/ids/{id}/versions?deleted=true")).await?;
            subjects.extend(versions.into_iter().map(|version| unqualified(&version.subject).to_owned()));
        }
        subjects.sort();
        subjects.dedup();
        Ok(subjects)
    }
}

/// Where a GUID is found: an id, in a context.
#[derive(Deserialize)]
struct IdInContext {
    /// `.` is the default one.
    #[serde(default)]
    context: String,
    id: u32,
}

#[derive(Deserialize)]
struct SubjectVersion {
    subject: String,
}

/// `:.staging:orders-value` without its context: what is asked for is in ours.
fn unqualified(subject: &str) -> &str {
    let rest = subject.strip_prefix(":.").and_then(|rest| rest.split_once(':'));
    rest.map_or(subject, |(_, subject)| subject)
}

/// Bytes of the texts.
fn size(schema: &RegisteredSchema) -> usize {
    let of_references = schema.references.iter().map(|reference| reference.name.len() + reference.text.len());
    schema.text.len() + of_references.sum::<usize>()
}

fn supplied(format: SchemaFormat, text: &str) -> SuppliedSchema {
    let schema_type = match format {
        SchemaFormat::Avro => SchemaType::Avro,
        SchemaFormat::Protobuf => SchemaType::Protobuf,
        SchemaFormat::JsonSchema => SchemaType::Json,
    };
    SuppliedSchema::new(None, schema_type, text.to_owned())
}

/// What an error means that came of a schema of ours.
fn explain_ours(what: String, error: &SRCError) -> RegistryError {
    match refusal(error) {
        // Incompatible; or no schema by the registry's rules.
        Some(Refusal::Status { status, message, .. })
            if [StatusCode::CONFLICT, StatusCode::UNPROCESSABLE_ENTITY, StatusCode::BAD_REQUEST]
                .contains(&status) =>
        {
            let problem = message.unwrap_or_else(|| format!("HTTP {status}"));
            RegistryError::Refused { what, problem }
        }
        _ => explain(&what, error),
    }
}

/// What an error of the client means to us.
fn explain(what: &str, error: &SRCError) -> RegistryError {
    let what = what.to_owned();
    let unavailable = |problem: String, retry_after: Option<Duration>| RegistryError::Unavailable {
        what: what.clone(),
        problem,
        retry_after,
    };
    let Some(refusal) = refusal(error) else {
        // An answer that is no JSON comes from something in between, or from a registry that is starting.
        return unavailable(error.source().map_or_else(|| error.error.clone(), root_cause), None);
    };
    let problem = refusal.to_string();
    match refusal {
        Refusal::Status { status, .. } if status == StatusCode::NOT_FOUND => RegistryError::Unknown { what },
        Refusal::Status { status, .. }
            if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) =>
        {
            RegistryError::Unauthorised { what, status: status.as_u16() }
        }
        Refusal::Status { status, retry_after, .. }
            if status.is_server_error()
                || status.is_redirection()
                || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status) =>
        {
            unavailable(problem, retry_after)
        }
        Refusal::NoneAnswers { retry_after, .. } => unavailable(problem, retry_after),
        // Whoever sends that much, it is not the schema: a record must not be taken for a bad one.
        Refusal::TooLarge => unavailable(problem, None),
        Refusal::Status { .. } => RegistryError::Unusable { what, problem },
    }
}

fn refusal(error: &SRCError) -> Option<Refusal> {
    let mut source: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = source {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return Some(refusal.clone());
        }
        if let Some(reqwest_middleware::Error::Middleware(inner)) = error.downcast_ref() {
            return inner.downcast_ref::<Refusal>().cloned();
        }
        source = error.source();
    }
    None
}

#[cfg(test)]
mod tests;
