use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutResult,
};
use tokio::runtime::Runtime;

use super::*;
use crate::config::plan::Roll;
use crate::model::{
    Batch, Classify, ClusterId, Fault as Severity, Move, Offset, Partition, Position, PositionKey, Positions,
    Reason, TopicId, TopicName,
};
use crate::sink::SinkError;
use crate::sink::file::log::{INTERVALS, Intervals, Log};
use crate::sink::file::names::HOUSEKEEPING;
use crate::sink::file::storage::Home;
use crate::sink::file::{FileSink, FileSinkOptions, JsonLinesFormat};
use crate::sink::owner::{Claim, Owner};

mod commits;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
});

const PREFIX: &str = "out/orders";

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// 503: nothing is done.
    Busy,
    /// It is done, and told as failed.
    Lost,
    /// It is told as failed, and done when the test says so.
    Late,
}

/// A kind of request about names with this in them, and what becomes of the next ones.
struct Rule {
    request: &'static str,
    part: &'static str,
    fault: Fault,
    left: usize,
}

#[derive(Default)]
struct Faults {
    rules: Vec<Rule>,
    /// Of requests by chance, one in so many.
    dice: Option<(fastrand::Rng, usize)>,
    late: Vec<(Key, PutPayload, PutOptions)>,
    /// It does not know conditions.
    is_careless: bool,
    /// Uploads that are neither completed nor aborted.
    uploads: BTreeMap<MultipartId, BTreeMap<usize, PutPayload>>,
}

/// A store in memory whose requests go wrong.
struct Faulty {
    inner: InMemory,
    faults: Mutex<Faults>,
}

fn busy() -> Error {
    Error::Generic { store: "faulty", source: "Server returned non-2xx status code: 503 Slow Down: ".into() }
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self { inner: InMemory::new(), faults: Mutex::default() })
    }

    fn fail(&self, request: &'static str, part: &'static str, fault: Fault, left: usize) {
        self.faults.lock().unwrap().rules.push(Rule { request, part, fault, left });
    }

    fn heal(&self) {
        let mut faults = self.faults.lock().unwrap();
        faults.rules.clear();
        faults.dice = None;
    }

    /// What becomes of this request.
    fn meet(&self, request: &'static str, key: &Key) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let is_meant =
            |rule: &&mut Rule| rule.request == request && rule.left > 0 && key.as_ref().contains(rule.part);
        if let Some(rule) = faults.rules.iter_mut().find(is_meant) {
            rule.left -= 1;
            return Some(rule.fault);
        }
        let (dice, one_in) = faults.dice.as_mut()?;
        let fault = match dice.usize(..*one_in) {
            0 => dice.choice([Fault::Busy, Fault::Lost, Fault::Late])?,
            _ => return None,
        };
        // Nobody would know of an upload whose id was lost; and what is aborted is not seen by anybody.
        match (request, fault) {
            ("abort", _) => None,
            ("begin", _) => Some(Fault::Busy),
            _ => Some(fault),
        }
    }

    /// Does what was told as failed.
    fn deliver(&self) {
        let late = std::mem::take(&mut self.faults.lock().unwrap().late);
        for (key, payload, options) in late {
            // Most have been overtaken.
            drop(RUNTIME.block_on(self.inner.put_opts(&key, payload, options)));
        }
    }

    async fn pass<T>(
        &self,
        request: &'static str,
        key: &Key,
        done: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        match self.meet(request, key) {
            None => done.await,
            Some(Fault::Lost) => {
                done.await?;
                Err(busy())
            }
            Some(Fault::Busy | Fault::Late) => Err(busy()),
        }
    }

    fn texts(&self) -> BTreeMap<String, String> {
        let read = async {
            let listed: Vec<ObjectMeta> = self.inner.list(None).try_collect().await?;
            let mut texts = BTreeMap::new();
            for object in listed {
                let bytes =
                    self.inner.get_opts(&object.location, GetOptions::default()).await?.bytes().await?;
                texts.insert(object.location.to_string(), String::from_utf8_lossy(&bytes).into_owned());
            }
            Ok::<_, Error>(texts)
        };
        RUNTIME.block_on(read).unwrap()
    }

    /// What a reader that globs sees.
    fn visible(&self) -> BTreeMap<String, String> {
        self.texts().into_iter().filter(|(name, _)| !name.contains(HOUSEKEEPING)).collect()
    }

    fn ids(&self) -> Vec<i64> {
        let id =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_i64().unwrap();
        let texts = self.visible();
        let mut ids: Vec<i64> = texts.values().flat_map(|text| text.lines().map(id)).collect();
        ids.sort_unstable();
        ids
    }

    fn staged_count(&self) -> usize {
        self.texts().keys().filter(|name| name.contains("/staged/")).count()
    }

    fn open_count(&self) -> usize {
        self.faults.lock().unwrap().uploads.len()
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Key,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        let is_careless = self.faults.lock().unwrap().is_careless;
        let mode = if is_careless { PutMode::Overwrite } else { options.mode.clone() };
        let options = PutOptions { mode, ..options };
        match self.meet("put", location) {
            None => self.inner.put_opts(location, payload, options).await,
            Some(Fault::Busy) => Err(busy()),
            Some(Fault::Lost) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(busy())
            }
            Some(Fault::Late) => {
                self.faults.lock().unwrap().late.push((location.clone(), payload, options));
                Err(busy())
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Key,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> StoreResult<GetResult> {
        self.pass("get", location, self.inner.get_opts(location, options)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Key>>,
    ) -> BoxStream<'static, StoreResult<Key>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let whole = Key::default();
        match self.meet("list", prefix.unwrap_or(&whole)) {
            None => self.inner.list(prefix),
            Some(_) => stream::iter([Err(busy())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// That of the store in memory wants its parts in order.
#[async_trait]
impl MultipartStore for Faulty {
    async fn create_multipart(&self, path: &Key) -> StoreResult<MultipartId> {
        let done = async {
            let id = uuid::Uuid::new_v4().to_string();
            self.faults.lock().unwrap().uploads.insert(id.clone(), BTreeMap::new());
            Ok(id)
        };
        self.pass("begin", path, done).await
    }

    async fn put_part(
        &self,
        path: &Key,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> StoreResult<PartId> {
        let done = async {
            let mut faults = self.faults.lock().unwrap();
            let parts = faults.uploads.get_mut(id).ok_or_else(gone)?;
            parts.insert(part_idx, data);
            Ok::<_, Error>(PartId { content_id: part_idx.to_string() })
        };
        self.pass("part", path, done).await
    }

    async fn complete_multipart(
        &self,
        path: &Key,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> StoreResult<PutResult> {
        let done = async {
            let found = self.faults.lock().unwrap().uploads.remove(id);
            let found = found.ok_or_else(gone)?;
            let named: Vec<String> = parts.into_iter().map(|part| part.content_id).collect();
            assert_eq!(named, found.keys().map(usize::to_string).collect::<Vec<_>>());
            let payload: PutPayload = found.into_values().flatten().collect();
            self.inner.put_opts(path, payload, PutOptions::default()).await
        };
        self.pass("complete", path, done).await
    }

    async fn abort_multipart(&self, path: &Key, id: &MultipartId) -> StoreResult<()> {
        let done = async {
            let found = self.faults.lock().unwrap().uploads.remove(id);
            found.map(drop).ok_or_else(gone)
        };
        self.pass("abort", path, done).await
    }
}

/// As real stores put it: 404.
fn gone() -> Error {
    Error::NotFound { path: String::new(), source: "NoSuchUpload".into() }
}
