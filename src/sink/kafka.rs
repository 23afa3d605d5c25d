//! Rows as records of a Kafka topic: idempotent, at least once; or in transactions (`transaction.rs`), exactly once for
//! readers of what is committed.
//!
//! Columns named `key`, `value`, `topic`, `headers`, `partition` are used as Spark's Kafka sink does, where the
//! sink does not say otherwise; without a `value` the value is the JSON of all columns. The broker has
//! every record before a position moves; positions are kept beside the group's offsets. A delete is a null value under
//! its key, where the key of the rows is the one of the records.

mod deliveries;
mod formats;
mod sending;
mod transaction;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, Int32Array};
use arrow::datatypes::{DataType, Int32Type};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::Producer as _;
use tokio::task::block_in_place;

use crate::config::plan::{Written, WrittenForm};
use crate::encode::{Misfit, Unfit};
use crate::model::{Batch, Classify, Fault, Position, PositionKey, Positions, TopicName};
use crate::registry::Registry;
use crate::render::{JsonRows, Values};

use super::pending::GroupPositions;
use super::{Settled, Sink, SinkError, Store};

use deliveries::{Deliveries, Producer};
use formats::{Encoded, Schemas};
pub use formats::{Examined, Part, SchemaProblem, examine};
use sending::{Sending, deliver, unwritten};
use transaction::Seat;
pub use transaction::{GroupMember, Transaction, TransactionOptions};

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
    /// What the key is made of, if not of the column `key`.
    pub key: Option<Written>,
    /// What the value is made of, if not of the column `value` or as the JSON of all.
    pub value: Option<Written>,
    /// How the keys of deletes are made, if rows have such keys. Only with a `topic`.
    pub deletes: Option<DeleteKey>,
}

/// What of a record's decoded key is the key column of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteKey {
    Whole,
    /// The only field of a struct.
    Field,
}

/// A sink that writes to Kafka topics.
pub struct KafkaSink {
    options: KafkaSinkOptions,
    schemas: Schemas,
    way: Way,
    sent: Settled,
    settled: Settled,
}

/// How records get into sight.
enum Way {
    /// One by one.
    Plain(Producer, GroupPositions),
    /// With the records of the lane's other sinks, and with the group's offsets.
    Transaction(Seat),
}

impl KafkaSink {
    /// A sink that asks `registry` for the schemas that it writes with, if there are any.
    ///
    /// # Errors
    /// If the configuration is refused; brokers that are away are no error.
    pub fn new(
        config: &ClientConfig,
        options: KafkaSinkOptions,
        registry: Option<Arc<dyn Registry>>,
    ) -> Result<Self, KafkaError> {
        let producer = config.create_with_context(Deliveries::default())?;
        Ok(Self::with(options, registry, Way::Plain(producer, GroupPositions::default())))
    }

    /// One that writes in the transactions of its lane; `None` if it is none of their sinks.
    pub fn in_transaction(
        transaction: &Transaction,
        options: KafkaSinkOptions,
        registry: Option<Arc<dyn Registry>>,
    ) -> Option<Self> {
        let seat = transaction.seat(&options.identity)?;
        Some(Self::with(options, registry, Way::Transaction(seat)))
    }

    fn with(options: KafkaSinkOptions, registry: Option<Arc<dyn Registry>>, way: Way) -> Self {
        let (sent, settled) = (Settled::default(), Settled::default());
        Self { options, schemas: Schemas::new(registry), way, sent, settled }
    }
}

/// What is wrong with the columns a sink would get, if anything.
///
/// # Errors
/// The problem, for the reader of the file.
pub fn check_columns(schema: &arrow::datatypes::SchemaRef, options: &KafkaSinkOptions) -> Result<(), String> {
    let none = RecordBatch::new_empty(schema.clone());
    match Rows::new(&none, options, &Schemas::default()) {
        Ok(_) => formats::check(options, schema).map_err(|unfit| unfit.to_string()),
        Err(Wrong::Columns(problem)) => Err(problem),
        Err(Wrong::Row(misfit)) => Err(misfit.to_string()),
    }
}

/// Why rows do not become records.
#[derive(Debug)]
enum Wrong {
    /// All of them.
    Columns(String),
    /// One of them.
    Row(Misfit),
}

impl From<String> for Wrong {
    fn from(problem: String) -> Self {
        Self::Columns(problem)
    }
}

impl From<Unfit> for Wrong {
    fn from(unfit: Unfit) -> Self {
        Self::Columns(unfit.to_string())
    }
}

impl From<Misfit> for Wrong {
    fn from(misfit: Misfit) -> Self {
        Self::Row(misfit)
    }
}

/// Takes up to `count` rows off the front of `rest`; none when there are none.
fn cut_front(rest: &mut RecordBatch, count: usize) -> Option<RecordBatch> {
    let count = count.min(rest.num_rows());
    let front = rest.slice(0, count);
    *rest = rest.slice(count, rest.num_rows() - count);
    (count > 0).then_some(front)
}

/// The keys that are gone, as the column that rows have their keys in.
fn deleted(options: &KafkaSinkOptions, batch: &Batch) -> Result<Option<RecordBatch>, String> {
    let (Some(part), Some(keys)) = (options.deletes, &batch.deletes.keys) else {
        return Ok(None);
    };
    if batch.origins.is_none() {
        return Err("rows that are not made of one record each have no order with deletes".to_owned());
    }
    let column = match (part, keys.as_struct_opt()) {
        (DeleteKey::Whole, _) => Some(keys),
        (DeleteKey::Field, parts) => parts.and_then(|parts| parts.columns().first()),
    };
    let column = column.ok_or_else(|| "a key has no field".to_owned())?;
    let name = options.key.as_ref().and_then(|written| written.column.as_deref()).unwrap_or("key");
    let keys = RecordBatch::try_from_iter([(name, column.clone())]);
    keys.map(Some).map_err(|error| error.to_string())
}

/// Null values under these keys.
fn render_deletes(
    keys: &RecordBatch,
    options: &KafkaSinkOptions,
    schemas: &Schemas,
) -> Result<Vec<Rendered>, Wrong> {
    let source = Source::new(Part::Key, keys, options, schemas)?;
    let render = |row| -> Result<Rendered, Wrong> {
        let key = source.to_bytes(row, None)?;
        Ok(Rendered { topic: None, key, value: None, partition: None, headers: None })
    };
    (0..keys.num_rows()).map(render).collect()
}

/// A row as the record it becomes.
struct Rendered {
    /// Of the row's `topic` column.
    topic: Option<String>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    partition: Option<i32>,
    headers: Option<OwnedHeaders>,
}

/// What keys or values are made of.
enum Source {
    /// There are none.
    None,
    /// A column: bytes and text as they are, everything else as text.
    Column(Values),
    /// A column as JSON.
    Json(Values),
    /// All columns as JSON.
    Row(JsonRows),
    Encoded(Encoded),
}

impl Source {
    fn new(
        part: Part,
        batch: &RecordBatch,
        options: &KafkaSinkOptions,
        schemas: &Schemas,
    ) -> Result<Self, Wrong> {
        let values = |name: &str| match batch.column_by_name(name) {
            Some(column) => Values::new(column).map(Some).map_err(|error| error.to_string()),
            None => Ok(None),
        };
        let named = |name: &str| values(name)?.ok_or_else(|| format!("there is no column `{name}`"));
        let all = || JsonRows::new(batch).map(Self::Row).map_err(|error| error.to_string());
        let written = match part {
            Part::Key => &options.key,
            Part::Value => &options.value,
        };
        let Some(written) = written else {
            return Ok(match part {
                Part::Key => values("key")?.map_or(Self::None, Self::Column),
                Part::Value => match values("value")? {
                    Some(values) => Self::Column(values),
                    None => all()?,
                },
            });
        };
        Ok(match (&written.form, &written.column) {
            (WrittenForm::Registered(wanted), _) => {
                Self::Encoded(schemas.bind(part, written, wanted, options, batch)?)
            }
            (WrittenForm::Json, Some(name)) => Self::Json(named(name)?),
            (WrittenForm::Text, Some(name)) => Self::Column(named(name)?),
            (WrittenForm::Json | WrittenForm::Text, None) => all()?,
        })
    }

    fn to_bytes(&self, row: usize, topic: Option<&str>) -> Result<Option<Vec<u8>>, Misfit> {
        let mut json = Vec::new();
        match self {
            Self::None => return Ok(None),
            Self::Column(values) => return Ok(values.to_bytes(row)),
            Self::Encoded(encoded) => return encoded.to_bytes(row, topic),
            Self::Json(values) if values.is_null(row) => return Ok(None),
            Self::Json(values) => values.write(row, &mut json),
            Self::Row(rows) => rows.write(row, &mut json),
        }
        Ok(Some(json))
    }
}

/// The columns of a batch by their meaning.
struct Rows {
    count: usize,
    topic: Option<Values>,
    key: Source,
    value: Source,
    partition: Option<Int32Array>,
    headers: Option<ArrayRef>,
}

impl Rows {
    fn new(batch: &RecordBatch, options: &KafkaSinkOptions, schemas: &Schemas) -> Result<Self, Wrong> {
        let column = |name: &str| batch.column_by_name(name);
        let values = |name: &str| match column(name) {
            Some(column) => Values::new(column).map(Some).map_err(|error| error.to_string()),
            None => Ok(None),
        };
        let key = Source::new(Part::Key, batch, options, schemas)?;
        let value = Source::new(Part::Value, batch, options, schemas)?;
        let topic = if options.topic.is_some() { None } else { values("topic")? };
        if options.topic.is_none() && topic.is_none() {
            return Err("neither the sink nor a column says the topic".to_owned().into());
        }
        let partition = column("partition")
            .filter(|column| *column.data_type() == DataType::Int32)
            .map(|column| column.as_primitive::<Int32Type>().clone());
        let headers = column("headers").filter(|column| is_headers(column.data_type())).cloned();
        Ok(Self { count: batch.num_rows(), topic, key, value, partition, headers })
    }

    fn render(&self) -> Result<Vec<Rendered>, Misfit> {
        let render = |row| -> Result<Rendered, Misfit> {
            let topic = self.topic(row);
            Ok(Rendered {
                key: self.key.to_bytes(row, topic.as_deref())?,
                value: self.value.to_bytes(row, topic.as_deref())?,
                topic,
                partition: self.partition(row),
                headers: self.headers(row),
            })
        };
        (0..self.count).map(render).collect()
    }

    fn topic(&self, row: usize) -> Option<String> {
        let topic = self.topic.as_ref()?;
        let mut text = Vec::new();
        topic.write_plain(row, &mut text);
        (!topic.is_null(row)).then(|| String::from_utf8_lossy(&text).into_owned())
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
        match &mut self.way {
            Way::Plain(_, positions) => Ok(positions.settled().clone()),
            Way::Transaction(seat) => seat.positions().await,
        }
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let Self { options, schemas, way, sent, .. } = self;
        schemas.prepare(options, &batch.rows).await?;
        let deleted = deleted(options, batch)
            .map_err(|problem| unwritten(&options.identity, Wrong::Columns(problem), &batch.moves))?;
        if let Some(keys) = &deleted {
            // They have no values, whose schema would be another one without the columns of rows.
            let options = KafkaSinkOptions { value: None, ..options.clone() };
            schemas.prepare(&options, keys).await?;
        }
        let (options, schemas) = (&*options, &*schemas);
        let send = |producer: &Producer, place| {
            let moves = &batch.moves;
            let mut sending = Sending { options, schemas, producer, place, moves, sent: Settled::default() };
            let told = block_in_place(|| sending.all(batch, deleted.as_ref()));
            (told, sending.sent)
        };
        match way {
            Way::Plain(producer, positions) => {
                let (told, new) = send(producer, 0);
                sent.rows += new.rows;
                sent.bytes += new.bytes;
                told?;
                positions.accept(&batch.moves);
            }
            Way::Transaction(seat) => {
                let has_records = batch.rows.num_rows() > 0 || deleted.is_some();
                let turn = seat.begin(&batch.moves, has_records).await?;
                if let Some(producer) = turn.producer() {
                    let (told, new) = send(producer, turn.place());
                    sent.rows += new.rows;
                    sent.bytes += new.bytes;
                    if let Err(error) = told {
                        // What refuses a record of ours may have refused the transaction.
                        if new.rows > 0 || error.fault() != Fault::Refused {
                            turn.spoil();
                        }
                        return Err(error);
                    }
                }
                turn.accept(&batch.moves);
            }
        }
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        // Rows are wanted at once; a flush only waits for what is under way.
        match &self.way {
            Way::Plain(_, positions) => positions.since(),
            Way::Transaction(seat) => seat.since(),
        }
    }

    async fn flush(&mut self) -> Result<Positions, SinkError> {
        let identity = &self.options.identity;
        let positions = match &mut self.way {
            Way::Plain(producer, positions) => block_in_place(|| deliver(identity, producer, positions)),
            Way::Transaction(seat) => seat.flush().await,
        }?;
        self.settled = self.sent;
        Ok(positions)
    }

    async fn abandon(&mut self) {
        match &mut self.way {
            Way::Plain(producer, positions) => {
                positions.abandon();
                // What is under way may arrive or not: it is sent again.
                producer.purge(rdkafka::producer::PurgeConfig::default().queue());
                block_in_place(|| producer.flush(ROOM_WAIT)).ok();
                producer.context().take_failure();
            }
            Way::Transaction(seat) => {
                if seat.abandon().await {
                    self.settled = self.sent;
                }
            }
        }
        self.sent = self.settled;
    }

    fn settled(&self) -> Settled {
        self.settled
    }

    fn store(&self) -> Store {
        match &self.way {
            Way::Plain(..) => Store::Group,
            Way::Transaction(_) => Store::Transaction,
        }
    }

    fn restore(&mut self, key: PositionKey, topic: &TopicName, position: Position) {
        match &mut self.way {
            Way::Plain(_, positions) => positions.restore(key, topic, position),
            Way::Transaction(seat) => seat.restore(key, topic, position),
        }
    }

    fn takes_deletes(&self) -> bool {
        self.options.deletes.is_some()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryBuilder, Int64Array, ListBuilder, StringArray, StringBuilder, StructArray, StructBuilder,
    };
    use arrow::datatypes::Fields;
    use rdkafka::message::Headers;

    use super::*;

    fn batch(row_count: usize) -> RecordBatch {
        let text = |put: fn(usize) -> Option<String>| -> ArrayRef {
            Arc::new((0..row_count).map(put).collect::<StringArray>())
        };
        let partitions: Int32Array =
            (0..7).cycle().take(row_count).map(|number| (number > 1).then_some(number)).collect();
        let header = Fields::from_iter(
            [("key", DataType::Utf8), ("value", DataType::Binary)]
                .map(|(name, data_type)| arrow::datatypes::Field::new(name, data_type, true)),
        );
        let mut headers = ListBuilder::new(StructBuilder::from_fields(header, 0));
        for row in 0..row_count {
            let entry = headers.values();
            entry.field_builder::<StringBuilder>(0).unwrap().append_value("row");
            entry.field_builder::<BinaryBuilder>(1).unwrap().append_value(row.to_string());
            entry.append(true);
            headers.append(row % 13 > 0);
        }
        RecordBatch::try_from_iter([
            ("topic", text(|row| (row % 11 > 0).then(|| format!("t{}", row % 3)))),
            ("key", text(|row| (row % 2 > 0).then(|| format!("k{row}")))),
            ("value", text(|row| (row % 3 > 0).then(|| format!("v{row}")))),
            ("partition", Arc::new(partitions)),
            ("headers", Arc::new(headers.finish())),
        ])
        .unwrap()
    }

    /// Everything of a record, in order.
    fn shown(batch: &RecordBatch) -> Vec<String> {
        let options = options(None, None);
        let rows = Rows::new(batch, &options, &Schemas::default()).unwrap();
        let records = rows.render().unwrap();
        let show = |record: &Rendered| {
            let headers = record.headers.as_ref().map(|headers| {
                headers
                    .iter()
                    .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                    .collect::<Vec<_>>()
            });
            format!(
                "{:?} {:?} {:?} {:?} {headers:?}",
                record.topic, record.key, record.value, record.partition
            )
        };
        records.iter().map(show).collect()
    }

    #[test]
    fn slices_of_a_batch_render_as_the_whole() {
        let whole = batch(1000);
        for size in [1, 7, 512, 1000, 4096] {
            let mut rest = whole.clone();
            let slices: Vec<RecordBatch> = std::iter::from_fn(|| cut_front(&mut rest, size)).collect();
            assert!(slices.iter().all(|slice| slice.num_rows() <= size));
            assert_eq!(slices.iter().flat_map(shown).collect::<Vec<_>>(), shown(&whole), "{size}");
        }
    }

    fn options(key: Option<Written>, deletes: Option<DeleteKey>) -> KafkaSinkOptions {
        KafkaSinkOptions { identity: String::new(), topic: None, key, value: None, deletes }
    }

    #[test]
    fn a_delete_has_the_key_of_its_row_and_no_value() {
        let field = Arc::new(arrow::datatypes::Field::new("id", DataType::Int64, false));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
        let keys: ArrayRef = Arc::new(StructArray::from(vec![(field, numbers.clone())]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        let written = |form| Some(Written { column: Some("k".to_owned()), form });
        let batch = |keys: &ArrayRef| Batch {
            moves: Vec::new(),
            rows: RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())),
            origins: Some(Arc::default()),
            offsets: None,
            deletes: crate::model::Deletes {
                origins: vec![0, 1],
                keys: Some(keys.clone()),
                truncations: Vec::new(),
            },
        };
        for (part, of, key, expected) in [
            (DeleteKey::Whole, &numbers, None, ["7", "8"]),
            (DeleteKey::Whole, &keys, written(WrittenForm::Text), ["{\"id\":7}", "{\"id\":8}"]),
            (DeleteKey::Field, &keys, written(WrittenForm::Json), ["7", "8"]),
            (DeleteKey::Whole, &texts, written(WrittenForm::Text), ["a", "b"]),
            (DeleteKey::Whole, &texts, written(WrittenForm::Json), ["\"a\"", "\"b\""]),
        ] {
            let options = KafkaSinkOptions { topic: Some("t".to_owned()), ..options(key, Some(part)) };
            let keys = deleted(&options, &batch(of)).unwrap().unwrap();
            let deletes = render_deletes(&keys, &options, &Schemas::default()).unwrap();
            let shown: Vec<_> = deletes
                .iter()
                .map(|delete| (String::from_utf8(delete.key.clone().unwrap()).unwrap(), delete.value.clone()))
                .collect();
            assert_eq!(shown, expected.map(|key| (key.to_owned(), None)));
            // As a row's.
            let rows = Rows::new(&keys, &options, &Schemas::default()).unwrap();
            let rendered: Vec<_> = rows.render().unwrap().into_iter().map(|row| row.key).collect();
            assert_eq!(rendered, deletes.into_iter().map(|delete| delete.key).collect::<Vec<_>>());
        }
        assert!(deleted(&options(None, Some(DeleteKey::Field)), &batch(&numbers)).is_err());
        assert!(deleted(&options(None, None), &batch(&numbers)).unwrap().is_none());
        let lost = Batch { origins: None, ..batch(&numbers) };
        assert!(deleted(&options(None, Some(DeleteKey::Whole)), &lost).is_err());
    }
}
