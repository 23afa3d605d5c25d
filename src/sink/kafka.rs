//! Rows as records of a Kafka topic: idempotent, at least once.
//!
//! Columns named `key`, `value`, `topic`, `headers`, `partition` are used as Spark's Kafka sink does, where the
//! sink does not say otherwise; without a `value` the value is the JSON of all columns. The broker has
//! every record before a position moves; positions are kept beside the group's offsets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, Int32Array};
use arrow::datatypes::{DataType, Int32Type};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::task::block_in_place;

use crate::model::{Batch, Move, Position, PositionKey, Positions, TopicName, ranges};
use crate::render::{JsonRows, Values};

use super::pending::GroupPositions;
use super::{Settled, Sink, SinkError, Store};

/// For records that are sent to reach the broker. Beyond it they are sent again: the broker drops copies
/// within one producer's life.
const DELIVERY_MAX: Duration = Duration::from_secs(60);

/// How long a send waits for room in the producer's queue before it looks again.
const ROOM_WAIT: Duration = Duration::from_millis(50);

/// What a Kafka sink is made of.
#[derive(Debug, Clone)]
pub struct KafkaSinkOptions {
    /// For messages.
    pub identity: String,
    /// Wins over a `topic` column.
    pub topic: Option<String>,
    /// The column of the key, if not `key`.
    pub key: Option<String>,
    /// The column of the value, if not `value` or the JSON of all.
    pub value: Option<String>,
}

/// A sink that writes to Kafka topics.
pub struct KafkaSink {
    options: KafkaSinkOptions,
    producer: ThreadedProducer<Deliveries>,
    positions: GroupPositions,
    sent: Settled,
    settled: Settled,
}

/// What the broker said of records; shared with the producer's thread.
#[derive(Clone, Default)]
struct Deliveries(Arc<Counts>);

#[derive(Default)]
struct Counts {
    failed: AtomicU64,
    first: Mutex<Option<KafkaError>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.failed.fetch_add(1, Ordering::SeqCst);
            let mut first = self.0.first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
    }
}

impl Deliveries {
    /// The first failure since the last call.
    fn take_failure(&self) -> Option<KafkaError> {
        self.0.failed.swap(0, Ordering::SeqCst);
        self.0.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl KafkaSink {
    /// # Errors
    /// If the configuration is refused; brokers that are away are no error.
    pub fn new(config: &ClientConfig, options: KafkaSinkOptions) -> Result<Self, KafkaError> {
        Ok(Self {
            options,
            producer: config.create_with_context(Deliveries::default())?,
            positions: GroupPositions::default(),
            sent: Settled::default(),
            settled: Settled::default(),
        })
    }

    fn send_all(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if batch.rows.num_rows() > 0 {
            let rows = Rows::new(&batch.rows, &self.options).map_err(|problem| {
                let action = format!("write {} with sink `{}`", ranges(&batch.moves), self.options.identity);
                SinkError::stop(action, "change the view that this sink reads", problem)
            })?;
            for row in 0..batch.rows.num_rows() {
                self.send(&rows, row, &batch.moves)?;
            }
        }
        self.positions.accept(&batch.moves);
        Ok(())
    }

    fn send(&mut self, rows: &Rows, row: usize, moves: &[Move]) -> Result<(), SinkError> {
        let topic = match (&self.options.topic, rows.topic(row)) {
            (Some(topic), _) => topic.clone(),
            (None, Some(topic)) => topic,
            (None, None) => return Err(self.refused("its `topic` column is null", moves)),
        };
        let (key, value) = (rows.key(row), rows.value(row));
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic);
        record.key = key.as_deref();
        record.payload = value.as_deref();
        record.partition = rows.partition(row);
        record.headers = rows.headers(row);
        let bytes = key.as_ref().map_or(0, Vec::len) + value.as_ref().map_or(0, Vec::len);
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(Code::QueueFull), again)) => {
                    record = again;
                    // A timeout only means that there is no room yet.
                    self.producer.flush(ROOM_WAIT).ok();
                }
                Err((error, _)) => return Err(self.explain(error, moves)),
            }
        }
        self.sent.rows += 1;
        self.sent.bytes += bytes as u64;
        Ok(())
    }

    fn deliver(&mut self) -> Result<Positions, SinkError> {
        let flushed = self.producer.flush(DELIVERY_MAX);
        let failure = self.producer.context().take_failure().or_else(|| flushed.err());
        if let Some(error) = failure {
            return Err(self.explain(error, self.positions.accepted()));
        }
        let positions = self.positions.settle()?;
        self.settled = self.sent;
        Ok(positions)
    }

    fn refused(&self, problem: &str, moves: &[Move]) -> SinkError {
        let action = format!("write a row of {} with sink `{}`", ranges(moves), self.options.identity);
        SinkError::refused(action, "change the view that this sink reads", problem.to_owned())
    }

    fn explain(&self, error: KafkaError, moves: &[Move]) -> SinkError {
        let action = format!("write {} with sink `{}`", ranges(moves), self.options.identity);
        match error.rdkafka_error_code() {
            Some(Code::MessageSizeTooLarge) => SinkError::refused(
                action,
                "raise `message.max.bytes` of the topic and under `kafka:`, or make the rows smaller",
                error,
            ),
            Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
                SinkError::stop(action, "give this user the right to write the topic", error)
            }
            code => {
                let is_unknown = matches!(code, Some(Code::UnknownTopicOrPartition | Code::UnknownTopic));
                SinkError::Transient {
                    action,
                    hint: is_unknown.then(|| "create the topic".into()),
                    source: error.into(),
                }
            }
        }
    }
}

/// What is wrong with the columns a sink would get, if anything.
///
/// # Errors
/// The problem, for the reader of the file.
pub fn check_columns(schema: &arrow::datatypes::SchemaRef, options: &KafkaSinkOptions) -> Result<(), String> {
    Rows::new(&RecordBatch::new_empty(schema.clone()), options).map(|_| ())
}

/// The columns of a batch by their meaning.
struct Rows {
    topic: Option<Values>,
    key: Option<Values>,
    value: Result<Values, JsonRows>,
    partition: Option<Int32Array>,
    headers: Option<arrow::array::ArrayRef>,
}

impl Rows {
    fn new(batch: &RecordBatch, options: &KafkaSinkOptions) -> Result<Self, String> {
        let column = |name: &str| batch.column_by_name(name);
        let values = |name: &str| match column(name) {
            Some(column) => Values::new(column).map(Some).map_err(|error| error.to_string()),
            None => Ok(None),
        };
        let named = |given: &Option<String>, default: &str| match given {
            Some(name) => match values(name)? {
                Some(values) => Ok(Some(values)),
                None => Err(format!("there is no column `{name}`")),
            },
            None => values(default),
        };
        let value = match named(&options.value, "value")? {
            Some(values) => Ok(values),
            None => Err(JsonRows::new(batch).map_err(|error| error.to_string())?),
        };
        let topic = if options.topic.is_some() { None } else { values("topic")? };
        if options.topic.is_none() && topic.is_none() {
            return Err("neither the sink nor a column says the topic".to_owned());
        }
        let partition = column("partition")
            .filter(|column| *column.data_type() == DataType::Int32)
            .map(|column| column.as_primitive::<Int32Type>().clone());
        let headers = column("headers").filter(|column| is_headers(column.data_type())).cloned();
        Ok(Self { topic, key: named(&options.key, "key")?, value, partition, headers })
    }

    fn topic(&self, row: usize) -> Option<String> {
        let topic = self.topic.as_ref()?;
        let mut text = Vec::new();
        topic.write_plain(row, &mut text);
        (!topic.is_null(row)).then(|| String::from_utf8_lossy(&text).into_owned())
    }

    fn key(&self, row: usize) -> Option<Vec<u8>> {
        self.key.as_ref().and_then(|key| key.to_bytes(row))
    }

    fn value(&self, row: usize) -> Option<Vec<u8>> {
        match &self.value {
            Ok(values) => values.to_bytes(row),
            Err(rows) => {
                let mut json = Vec::new();
                rows.write(row, &mut json);
                Some(json)
            }
        }
    }

    fn partition(&self, row: usize) -> Option<i32> {
        let partitions = self.partition.as_ref()?;
        (!partitions.is_null(row)).then(|| partitions.value(row))
    }

    /// Spark's form: a list of (key text, value bytes).
    fn headers(&self, row: usize) -> Option<OwnedHeaders> {
        let lists = self.headers.as_ref()?.as_list::<i32>();
        if lists.is_null(row) {
            return None;
        }
        let entries = lists.value(row);
        let entries = entries.as_struct();
        let (names, values) = (entries.column(0).as_string::<i32>(), entries.column(1).as_binary::<i32>());
        let mut headers = OwnedHeaders::new_with_capacity(entries.len());
        for entry in 0..entries.len() {
            let value = (!values.is_null(entry)).then(|| values.value(entry));
            headers = headers.insert(Header { key: names.value(entry), value });
        }
        Some(headers)
    }
}

fn is_headers(data_type: &DataType) -> bool {
    let DataType::List(item) = data_type else {
        return false;
    };
    let DataType::Struct(fields) = item.data_type() else {
        return false;
    };
    let types: Vec<&DataType> = fields.iter().map(|field| field.data_type()).collect();
    types == [&DataType::Utf8, &DataType::Binary]
}

#[async_trait]
impl Sink for KafkaSink {
    async fn positions(&mut self) -> Result<Positions, SinkError> {
        Ok(self.positions.settled().clone())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        block_in_place(|| self.send_all(batch))
    }

    fn flush_due(&self) -> Option<Instant> {
        // Rows are wanted at once; a flush only waits for what is under way.
        self.positions.since()
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        block_in_place(|| self.deliver())
    }

    async fn abandon(&mut self) {
        self.positions.abandon();
        self.sent = self.settled;
        // What is under way may arrive or not: it is sent again.
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue());
        block_in_place(|| self.producer.flush(ROOM_WAIT)).ok();
        self.producer.context().take_failure();
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
}
