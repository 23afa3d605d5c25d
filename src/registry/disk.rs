//! Answers of the registry on disk, so that a restart works while it is away. A convenience: what is not
//! there, is damaged or is somebody else's is asked for again, and what cannot be written is only missing.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::model::metadata::hex;
use crate::model::{Reference, SchemaId, SchemaKey};

use super::RegisteredSchema;
use super::http::BODY_BYTES_MAX;

/// The form of the files (`docs/formats.md`). Others are left alone.
const VERSION: u32 = 2;

/// A file has little more in it than the answer it came from. What is larger is neither written nor read.
const FILE_BYTES_MAX: usize = BODY_BYTES_MAX;

/// Begins the names of files being written.
const TEMPORARY: &str = "tmp-";

/// Writing a file takes milliseconds: one that is still temporary after this was left by a crash.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// The files of one registry. Processes may share them: a file is replaced in one step, never changed.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    /// The registry's URL as it goes into hashes, and nowhere else.
    registry: String,
    /// Something of an earlier registry could not be removed.
    is_stale: AtomicBool,
    has_warned_of_files: AtomicBool,
    has_warned_of_writes: AtomicBool,
}

/// What the registry last said of a subject.
#[derive(Debug, Clone, PartialEq)]
pub struct LastAnswer {
    pub schema: RegisteredSchema,
    pub at: Timestamp,
}

impl LastAnswer {
    /// How old it is, in whole seconds.
    pub fn age(&self) -> SignedDuration {
        let seconds = Timestamp::now().duration_since(self.at).as_secs();
        // The clock may have been set back.
        SignedDuration::from_secs(seconds.max(0))
    }
}

/// `id-<id>.json` or `guid-<GUID>.json`.
#[derive(Serialize, Deserialize)]
struct SchemaFile {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guid: Option<Uuid>,
    kind: String,
    text: String,
    references: Vec<Reference>,
    sha256: String,
}

/// `subject-<hash>.json`: which schema was the answer. The schema has its own file.
#[derive(Serialize, Deserialize)]
struct SubjectFile {
    version: u32,
    subject: String,
    /// [`asked`]
    asked: String,
    id: u32,
    answered: String,
    sha256: String,
}

impl Disk {
    /// The files of the registry at `url`. Says at once if none can be written.
    pub fn open(cache_dir: &Path, url: &str) -> Self {
        let registry = without_user(url);
        let dir = cache_dir.join(format!("v{VERSION}")).join(hex(&Sha256::digest(registry.as_bytes())));
        let disk = Self {
            dir,
            registry,
            is_stale: AtomicBool::new(false),
            has_warned_of_files: AtomicBool::new(false),
            has_warned_of_writes: AtomicBool::new(false),
        };
        disk.remove_abandoned();
        disk.note(disk.write_temporary(b"").and_then(fs::remove_file));
        disk
    }

    pub fn schema(&self, key: SchemaKey) -> Option<RegisteredSchema> {
        let name = schema_name(key);
        let file: SchemaFile = self.read(&name)?;
        let schema =
            RegisteredSchema { id: key, kind: file.kind, text: file.text, references: file.references };
        let is_asked = (file.id, file.guid) == (id(key), guid(key));
        if file.version != VERSION || !is_asked || file.sha256 != self.schema_hash(&schema) {
            self.ignore(&name, "its version, id, GUID or checksum is not right");
            return None;
        }
        Some(schema)
    }

    pub fn keep_schema(&self, schema: &RegisteredSchema) {
        let file = SchemaFile {
            version: VERSION,
            id: id(schema.id),
            guid: guid(schema.id),
            kind: schema.kind.clone(),
            text: schema.text.clone(),
            references: schema.references.clone(),
            sha256: self.schema_hash(schema),
        };
        self.write(&schema_name(schema.id), &file);
    }

    /// What the registry last answered for a version of a subject, or for the newest one.
    pub fn answer(&self, subject: &str, version: Option<u32>) -> Option<LastAnswer> {
        let name = subject_name(subject, version);
        let file: SubjectFile = self.read(&name)?;
        let is_asked = file.subject == subject && file.asked == asked(version);
        let is_whole = file.version == VERSION && file.sha256 == self.subject_hash(&file);
        match file.answered.parse::<Timestamp>() {
            Ok(at) if is_asked && is_whole => {
                Some(LastAnswer { schema: self.schema(SchemaId(file.id).into())?, at })
            }
            _ => {
                self.ignore(&name, "its version, subject or checksum is not right");
                None
            }
        }
    }

    /// `schema` has an id: it was not asked for by a GUID.
    pub fn keep_answer(&self, subject: &str, version: Option<u32>, schema: &RegisteredSchema) {
        let Some(number) = id(schema.id) else {
            return;
        };
        let known = self.schema(schema.id);
        if known.as_ref().is_some_and(|known| !is_same(known, schema)) {
            // An id never changes its schema: this is another registry, as after `docker compose down -v`.
            warn!(
                directory = %self.dir.display(), schema = %schema.id,
                "the registry has another schema of this id than the schema cache, which is emptied: \
                 was the registry created anew?"
            );
            self.empty();
        }
        if known.as_ref() != Some(schema) {
            self.keep_schema(schema);
        }
        let mut file = SubjectFile {
            version: VERSION,
            subject: subject.to_owned(),
            asked: asked(version),
            id: number,
            answered: Timestamp::now().to_string(),
            sha256: String::new(),
        };
        file.sha256 = self.subject_hash(&file);
        self.write(&subject_name(subject, version), &file);
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        if self.is_stale.load(Ordering::Relaxed) {
            return None;
        }
        match read_bounded(&self.dir.join(name)) {
            Ok(None) => None,
            Ok(Some(bytes)) => {
                let content = serde_json::from_slice(&bytes).ok();
                if content.is_none() {
                    self.ignore(name, "it is cut off, or somebody else's");
                }
                content
            }
            Err(error) => {
                self.ignore(name, &error.to_string());
                None
            }
        }
    }

    /// Says that a file counts as missing. The first of a run is said aloud: waiting for the registry, it may be
    /// read again and again.
    fn ignore(&self, name: &str, problem: &str) {
        let file = self.dir.join(name);
        if self.has_warned_of_files.swap(true, Ordering::Relaxed) {
            debug!(file = %file.display(), problem, "a file of the schema cache is not used");
        } else {
            warn!(file = %file.display(), problem, "a file of the schema cache is not used");
        }
    }

    fn write<T: Serialize>(&self, name: &str, content: &T) {
        let written = serde_json::to_vec(content).map_err(io::Error::from).and_then(|bytes| {
            if bytes.len() > FILE_BYTES_MAX {
                debug!(file = name, bytes = bytes.len(), "too large for the schema cache");
                return Ok(());
            }
            let temporary = self.write_temporary(&bytes)?;
            // Its name need not survive a power loss: then it is asked for again.
            fs::rename(&temporary, self.dir.join(name)).inspect_err(|_| discard(&temporary))
        });
        self.note(written);
    }

    /// Says that nothing can be kept, once.
    fn note(&self, written: io::Result<()>) {
        if let Err(error) = written
            && !self.has_warned_of_writes.swap(true, Ordering::Relaxed)
        {
            warn!(
                directory = %self.dir.display(), %error,
                "the schema cache cannot be written: the next start may need the registry"
            );
        }
    }

    fn write_temporary(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        // Each time: it may be removed while we run.
        fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(format!("{TEMPORARY}{}", Uuid::new_v4().simple()));
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        match written {
            Ok(()) => Ok(path),
            Err(error) => {
                discard(&path);
                Err(error)
            }
        }
    }

    /// Names of files in the directory; none if it cannot be read.
    fn names(&self) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    }

    fn empty(&self) {
        let is_ours = |name: &String| ["id-", "guid-", "subject-"].iter().any(|kind| name.starts_with(kind));
        for name in self.names().filter(is_ours) {
            match fs::remove_file(self.dir.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!(directory = %self.dir.display(), file = name, %error, "the schema cache is not read any more");
                    self.is_stale.store(true, Ordering::Relaxed);
                    return;
                }
                _ => {}
            }
        }
    }

    fn remove_abandoned(&self) {
        let now = SystemTime::now();
        for name in self.names().filter(|name| name.starts_with(TEMPORARY)) {
            let path = self.dir.join(name);
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > ABANDONED_AFTER) {
                discard(&path);
            }
        }
    }

    fn schema_hash(&self, schema: &RegisteredSchema) -> String {
        let id = written(schema.id);
        let own = ["schema", id.as_str(), schema.kind.as_str(), schema.text.as_str()];
        let references = schema.references.iter();
        let references = references.flat_map(|reference| [reference.name.as_str(), reference.text.as_str()]);
        self.hash(own.into_iter().chain(references))
    }

    fn subject_hash(&self, file: &SubjectFile) -> String {
        let id = file.id.to_string();
        let answered = file.answered.as_str();
        self.hash(["subject", file.subject.as_str(), file.asked.as_str(), id.as_str(), answered].into_iter())
    }

    /// A checksum of what a file says and of whose answer it is: one copied from another registry is not right.
    fn hash<'a>(&'a self, parts: impl Iterator<Item = &'a str>) -> String {
        let mut hasher = Sha256::new();
        for part in std::iter::once(self.registry.as_str()).chain(parts) {
            // The length keeps parts from running into each other.
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hex(&hasher.finalize())
    }
}

/// The version of a subject, as it was asked for: `latest` or its number.
pub fn asked(version: Option<u32>) -> String {
    version.map_or_else(|| "latest".to_owned(), |version| version.to_string())
}

fn id(key: SchemaKey) -> Option<u32> {
    key.id().map(|id| id.0)
}

fn guid(key: SchemaKey) -> Option<Uuid> {
    match key {
        SchemaKey::Guid(guid) => Some(guid),
        SchemaKey::Id(_) => None,
    }
}

/// As it goes into hashes: a number, or a GUID with hyphens.
fn written(key: SchemaKey) -> String {
    match key {
        SchemaKey::Id(id) => id.to_string(),
        SchemaKey::Guid(guid) => guid.to_string(),
    }
}

fn schema_name(key: SchemaKey) -> String {
    let kind = if key.id().is_some() { "id" } else { "guid" };
    format!("{kind}-{}.json", written(key))
}

/// Subjects may hold any character, and be longer than a file's name.
fn subject_name(subject: &str, version: Option<u32>) -> String {
    let question = format!("{subject}\n{}", asked(version));
    format!("subject-{}.json", hex(&Sha256::digest(question.as_bytes())))
}

/// The URL without user and password, and without slashes at its end.
fn without_user(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// Registries differ in how they format one and the same schema.
fn is_same(known: &RegisteredSchema, schema: &RegisteredSchema) -> bool {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    known.text == schema.text || json(&known.text).is_some_and(|known| Some(known) == json(&schema.text))
}

/// `None` if there is no such file.
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(bytes))
}

/// Removes a file that is of no use; if that fails, a later start does it.
fn discard(path: &Path) {
    fs::remove_file(path).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://localhost:8081";

    fn schema(id: u32, text: &str) -> RegisteredSchema {
        RegisteredSchema {
            id: SchemaId(id).into(),
            kind: "AVRO".to_owned(),
            text: text.to_owned(),
            references: vec![Reference { name: "shop.Id".to_owned(), text: "\"long\"".to_owned() }],
        }
    }

    fn names(disk: &Disk) -> Vec<String> {
        let mut names: Vec<String> = disk.names().collect();
        names.sort();
        names
    }

    #[test]
    fn the_form_on_disk_is_fixed() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), URL);
        disk.keep_schema(&schema(17, "\"int\""));
        let dir = root.path().join("v2/b213eceaa0ae58456e20c6d87bb2cfe9825302cb8d9b9db30e0f22be97eadcff");
        let file = fs::read_to_string(dir.join("id-17.json")).unwrap();
        assert_eq!(
            file,
            r#"{"version":2,"id":17,"kind":"AVRO","text":"\"int\"","references":[{"name":"shop.Id","text":"\"long\""}],"sha256":"87347fad6eec0b97c90f5e5e540ce3632ce79c46f31ed9a74ff54d9281d51582"}"#
        );
        let name = "subject-4d89ad39db68fa65f0c9d8a0f0a7cc4fd800345f23237ac33b4118d8bbe2dcac.json";
        let file = r#"{"version":2,"subject":"shop.orders-value","asked":"latest","id":17,"answered":"2026-01-02T10:00:00Z","sha256":"77f9bf3dc07af3111458a657dfd236ac55471e1ed9fbefc9d8da0f4b4497890b"}"#;
        fs::write(dir.join(name), file).unwrap();
        let at = "2026-01-02T10:00:00Z".parse::<Timestamp>().unwrap();
        let expected = LastAnswer { schema: schema(17, "\"int\""), at };
        assert_eq!(disk.answer("shop.orders-value", None), Some(expected));
        disk.keep_answer("shop.orders-value", None, &schema(17, "\"int\""));
        assert_eq!(names(&disk), ["id-17.json", name]);
        assert!(disk.answer("shop.orders-value", None).unwrap().at > at);
    }

    #[test]
    fn what_was_asked_for_by_a_guid_has_a_file_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), URL);
        let guid = Uuid::from_u128(0x11);
        let of = |id: SchemaKey| RegisteredSchema { id, ..schema(1, "\"int\"") };
        let known = of(SchemaKey::Guid(guid));
        disk.keep_schema(&known);
        let name = format!("guid-{guid}.json");
        assert_eq!(names(&disk), [name.as_str()]);
        let text = fs::read_to_string(disk.dir.join(&name)).unwrap();
        assert!(
            text.starts_with(&format!("{{\"version\":2,\"guid\":\"{guid}\",\"kind\":\"AVRO\"")),
            "{text}"
        );
        assert_eq!(disk.schema(SchemaKey::Guid(guid)), Some(known));
        assert_eq!(disk.schema(SchemaKey::Guid(Uuid::from_u128(0x12))), None);
        // A copy under another name, and one that says another thing.
        fs::copy(disk.dir.join(&name), disk.dir.join("id-1.json")).unwrap();
        assert_eq!(disk.schema(SchemaId(1).into()), None);
        fs::write(disk.dir.join(&name), text.replace("int", "long")).unwrap();
        assert_eq!(disk.schema(SchemaKey::Guid(guid)), None);
        // A registry that was created anew has no use for it.
        disk.keep_schema(&of(SchemaKey::Guid(guid)));
        disk.keep_answer("s", None, &schema(2, "\"int\""));
        disk.keep_answer("s", None, &schema(2, "\"long\""));
        assert_eq!(disk.schema(SchemaKey::Guid(guid)), None);
    }

    #[test]
    fn answers_are_found_by_who_asked_what() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), URL);
        let long = "long".repeat(200);
        let subjects = ["../../etc/passwd", "a/b\0\n\u{1f600}", long.as_str()];
        for (number, subject) in (1..).zip(subjects) {
            disk.keep_answer(subject, None, &schema(number, subject));
            disk.keep_answer(subject, Some(3), &schema(number + 10, subject));
        }
        // Another process.
        let disk = Disk::open(root.path(), URL);
        for (number, subject) in (1..).zip(subjects) {
            let last = disk.answer(subject, None).unwrap();
            assert_eq!(last.schema, schema(number, subject));
            assert!((0..600).contains(&last.age().as_secs()), "{}", last.age());
            assert_eq!(disk.answer(subject, Some(3)).unwrap().schema, schema(number + 10, subject));
            assert_eq!(disk.schema(SchemaId(number).into()), Some(schema(number, subject)));
            assert_eq!(disk.answer(subject, Some(4)), None);
        }
        assert_eq!(disk.schema(SchemaId(99).into()), None);
        assert!(names(&disk).iter().all(|name| !name.starts_with(TEMPORARY)));
    }

    #[test]
    fn registries_do_not_see_each_other_s_files_and_no_password_is_in_them() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), "http://me:hunter2@localhost:8081/");
        disk.keep_answer("s", None, &schema(1, "\"int\""));
        let same = Disk::open(root.path(), URL);
        assert!(same.answer("s", None).is_some());
        let other = Disk::open(root.path(), "http://localhost:8082");
        assert_eq!((other.schema(SchemaId(1).into()), other.answer("s", None)), (None, None));
        for name in names(&disk) {
            assert!(!fs::read_to_string(disk.dir.join(&name)).unwrap().contains("hunter2"));
            // Somebody copies files by hand.
            fs::copy(disk.dir.join(&name), other.dir.join(&name)).unwrap();
        }
        assert_eq!((other.schema(SchemaId(1).into()), other.answer("s", None)), (None, None));
        assert!(!format!("{disk:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_damaged_or_foreign_counts_as_missing_and_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), URL);
        let known = schema(1, "\"int\"");
        disk.keep_answer("s", None, &known);
        let answer = subject_name("s", None);
        for name in ["id-1.json", answer.as_str()] {
            let path = disk.dir.join(name);
            let whole = fs::read_to_string(&path).unwrap();
            let other_id = whole.replace("\"id\":1", "\"id\":2");
            let other_version = whole.replace("\"version\":2", "\"version\":3");
            let other_text = whole.replace("int", "long").replace("\"s\"", "\"t\"");
            let large = format!("{whole}{}", " ".repeat(FILE_BYTES_MAX));
            let cut = &whole[..whole.len() / 2];
            for damaged in ["", "null", cut, &other_id, &other_version, &other_text, &large] {
                assert_ne!(damaged, whole);
                fs::write(&path, damaged).unwrap();
                let start = &damaged[..damaged.len().min(200)];
                assert_eq!(disk.answer("s", None), None, "{start}");
                if name == "id-1.json" {
                    assert_eq!(disk.schema(SchemaId(1).into()), None, "{start}");
                }
                disk.keep_answer("s", None, &known);
                assert_eq!(disk.answer("s", None).unwrap().schema, known);
            }
        }
        // Bytes that are no text, and a file under the name of another id.
        fs::write(disk.dir.join("id-1.json"), [0xff, 0x00]).unwrap();
        assert_eq!(disk.schema(SchemaId(1).into()), None);
        disk.keep_schema(&known);
        fs::copy(disk.dir.join("id-1.json"), disk.dir.join("id-2.json")).unwrap();
        assert_eq!(disk.schema(SchemaId(2).into()), None);
        fs::create_dir(disk.dir.join("id-3.json")).unwrap();
        assert_eq!(disk.schema(SchemaId(3).into()), None);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), URL);
        disk.keep_answer("s", None, &schema(1, "\"int\""));
        disk.keep_answer("s", None, &schema(2, &"x".repeat(FILE_BYTES_MAX)));
        // Not the answer before it either: that is not the last one.
        assert_eq!(disk.answer("s", None), None);
        assert!(!names(&disk).contains(&schema_name(SchemaId(2).into())));
        assert!(!disk.has_warned_of_writes.load(Ordering::Relaxed));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_said_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        // Below a file there is no directory, whoever asks: tests may run as root.
        let disk = Disk::open(&file.join("cache"), URL);
        assert!(disk.has_warned_of_writes.load(Ordering::Relaxed));
        disk.keep_answer("s", None, &schema(1, "\"int\""));
        assert_eq!((disk.schema(SchemaId(1).into()), disk.answer("s", None)), (None, None));
    }

    #[test]
    fn a_directory_that_is_removed_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), URL);
        disk.keep_schema(&schema(1, "\"int\""));
        fs::remove_dir_all(root.path()).unwrap();
        assert_eq!(disk.schema(SchemaId(1).into()), None);
        disk.keep_schema(&schema(1, "\"int\""));
        assert_eq!(disk.schema(SchemaId(1).into()), Some(schema(1, "\"int\"")));
    }

    #[test]
    fn a_registry_created_anew_empties_the_cache() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), URL);
        disk.keep_answer("s", None, &schema(1, "{\"type\": \"int\"}"));
        disk.keep_schema(&schema(2, "\"string\""));
        // The same one, as another call formats it.
        disk.keep_answer("t", None, &schema(1, "{\"type\":\"int\"}"));
        assert!(disk.schema(SchemaId(2).into()).is_some());
        disk.keep_answer("t", None, &schema(1, "\"bytes\""));
        assert_eq!(disk.schema(SchemaId(1).into()), Some(schema(1, "\"bytes\"")));
        assert_eq!((disk.schema(SchemaId(2).into()), disk.answer("s", None)), (None, None));
    }

    #[test]
    fn only_old_temporary_files_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), URL);
        let files = [("tmp-old", 7200), ("tmp-new", 60), ("id-1.json", 7200)];
        for (name, age) in files {
            let file = File::create(disk.dir.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        let disk = Disk::open(root.path(), URL);
        assert_eq!(names(&disk), ["id-1.json", "tmp-new"]);
    }
}
