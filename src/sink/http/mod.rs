//! Rows as requests to a server: at least once, each row with a key that stays the same.
//!
//! A batch is taken when the server has answered 2xx to all its requests; then its moves are accepted, and positions are
//! kept beside the group's offsets. What was sent before a failure is sent again under the same keys, by which a server
//! can tell (`docs/sinks/http.md`).

mod endpoint;
mod keys;

use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::config::plan::{Http, HttpForm};
use crate::model::{Batch, Fault, Position, PositionKey, Positions, TopicName, ranges};
use crate::render::JsonRows;

use super::pending::GroupPositions;
use super::{Settled, Sink, SinkError, Store};
use endpoint::{Endpoint, Failure, Rows};

pub use endpoint::HttpOptionsError;

/// Pauses after failures in a row: doubled each time, up to the last, and never shorter than the server asks.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(30);

/// A sink that sends rows to a server.
pub struct HttpSink {
    identity: String,
    endpoint: Endpoint,
    form: HttpForm,
    rows_max: usize,
    bytes_max: usize,
    concurrency: usize,
    key_field: Option<String>,
    view: String,
    positions: GroupPositions,
    sent: Settled,
    settled: Settled,
    /// Requests in a row without success that may have one later.
    failures: u32,
    /// The server is not asked before.
    wait_until: Option<Instant>,
}

/// The server is given time.
#[derive(Debug, thiserror::Error)]
#[error("it is asked again in {} ms", .0.as_millis())]
struct Pausing(Duration);

/// Origins that lead nowhere.
#[derive(Debug, thiserror::Error)]
#[error("rows do not say which records they are of")]
struct Misplaced;

impl HttpSink {
    /// # Errors
    /// If the options are of no use; a server that is away is no error.
    pub fn new(identity: String, options: &Http) -> Result<Self, HttpOptionsError> {
        Ok(Self {
            endpoint: Endpoint::new(&identity, options)?,
            identity,
            form: options.form,
            rows_max: options.rows_max.max(1),
            bytes_max: options.bytes_max,
            concurrency: options.concurrency.max(1),
            key_field: options.key_field.clone(),
            view: options.view.clone(),
            positions: GroupPositions::default(),
            sent: Settled::default(),
            settled: Settled::default(),
            failures: 0,
            wait_until: None,
        })
    }

    /// Sends all rows of a batch; returns when each is settled, or with the first failure.
    async fn send_all(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let stop = |problem: Box<dyn std::error::Error + Send + Sync>| {
            let action = format!("write {} with sink `{}`", ranges(&batch.moves), self.identity);
            SinkError::stop(action, "change the view that this sink reads", problem)
        };
        let json = JsonRows::new(&batch.rows).map_err(|error| stop(error.into()))?;
        let keys = keys::of_rows(batch, &self.identity, &self.view).ok_or_else(|| stop(Misplaced.into()))?;
        let mut row = 0;
        let mut under_way = FuturesUnordered::new();
        let mut sent = self.sent;
        loop {
            while under_way.len() < self.concurrency && row < keys.len() {
                under_way.push(self.endpoint.send(self.next_rows(&json, &keys, &mut row)));
            }
            match under_way.next().await {
                Some(Ok((rows, bytes))) => {
                    sent.rows += rows as u64;
                    sent.bytes += bytes as u64;
                }
                // What else is under way is cut off; it is sent again.
                Some(Err(failure)) => {
                    drop(under_way);
                    return Err(self.explain(failure, batch));
                }
                None => break,
            }
        }
        drop(under_way);
        self.sent = sent;
        self.failures = 0;
        self.wait_until = None;
        Ok(())
    }

    /// The rows from `row` on that are one request.
    fn next_rows(&self, json: &JsonRows, keys: &[String], row: &mut usize) -> Rows {
        let mut rows = Rows::default();
        let mut object = Vec::new();
        while let Some(key) = keys.get(*row).filter(|_| rows.count < self.rows_max) {
            object.clear();
            self.put_object(json, *row, key, &mut object);
            if rows.count > 0 && rows.body.len() + object.len() + 2 > self.bytes_max {
                break;
            }
            if self.form == HttpForm::Array {
                rows.body.push(if rows.count == 0 { b'[' } else { b',' });
            }
            rows.body.extend_from_slice(&object);
            if self.form == HttpForm::Lines {
                rows.body.push(b'\n');
            }
            if rows.count > 0 {
                rows.keys.push(',');
            }
            rows.keys.push_str(key);
            rows.count += 1;
            *row += 1;
        }
        if self.form == HttpForm::Array {
            rows.body.push(b']');
        }
        rows
    }

    fn put_object(&self, json: &JsonRows, row: usize, key: &str, out: &mut Vec<u8>) {
        json.write(row, out);
        let Some(field) = &self.key_field else {
            return;
        };
        // Letters of a key need no escapes; those of a name may.
        let name = serde_json::Value::from(field.as_str());
        let comma = if out.len() > 2 { "," } else { "" };
        let rest = out.split_off(1);
        out.extend_from_slice(format!("{name}:\"{key}\"{comma}").as_bytes());
        out.extend_from_slice(&rest);
    }

    fn explain(&mut self, failure: Failure, batch: &Batch) -> SinkError {
        let action = format!("write {} with sink `{}`", ranges(&batch.moves), self.identity);
        let hint = failure.hint().map(Into::into);
        match failure.fault() {
            Fault::Transient | Fault::Conflict => {
                self.failures = self.failures.saturating_add(1);
                let pause = pause(self.failures, failure.retry_after());
                self.wait_until = Some(Instant::now() + pause);
                SinkError::Transient { action, hint, source: failure.into() }
            }
            Fault::Refused => SinkError::Refused { action, hint, source: failure.into() },
            Fault::Stop => SinkError::Stop { action, hint, source: failure.into() },
        }
    }
}

/// How long to leave a server alone after `failures` in a row, from 1.
fn pause(failures: u32, retry_after: Option<Duration>) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let own = PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_LAST);
    retry_after.unwrap_or_default().max(own)
}

/// What is wrong with the columns a sink would get, if anything.
///
/// # Errors
/// The problem, for the reader of the file.
pub fn check_columns(schema: &SchemaRef, options: &Http) -> Result<(), String> {
    JsonRows::new(&RecordBatch::new_empty(schema.clone())).map_err(|error| error.to_string())?;
    match &options.key_field {
        Some(field) if schema.field_with_name(field).is_ok() => {
            Err(format!("`key_field` is `{field}`, and there is a column of that name"))
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl Sink for HttpSink {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        let left = self.wait_until.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            let action = format!("go on with sink `{}`", self.identity);
            return Err(SinkError::Transient { action, hint: None, source: Pausing(left).into() });
        }
        Ok(self.positions.settled().clone())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if batch.rows.num_rows() > 0 {
            self.send_all(batch).await?;
        }
        self.positions.accept(&batch.moves);
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        self.positions.since()
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        let positions = self.positions.settle()?;
        self.settled = self.sent;
        Ok(positions)
    }

    async fn abandon(&mut self) {
        self.positions.abandon();
        self.sent = self.settled;
    }

    fn settled(&self) -> Settled {
        self.settled
    }

    fn store(&self) -> Store {
        Store::Group
    }

    fn restore(&mut self, key: PositionKey, topic: &TopicName, position: Position) {
        self.positions.restore(key, topic, position);
    }

    fn takes_places(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
