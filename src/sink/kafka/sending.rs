//! Sends the rows of a batch as records, and says what follows when that fails.

use arrow::record_batch::RecordBatch;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer as _};

use crate::cores;
use crate::failpoint;
use crate::model::{Batch, Move, Positions, ranges};
use crate::sink::pending::GroupPositions;
use crate::sink::{Settled, SinkError};

use super::deliveries::Producer;
use super::formats::Schemas;
use super::{DELIVERY_MAX, KafkaSinkOptions, ROOM_WAIT, Rendered, Rows, Wrong, cut_front, render_deletes};

/// A batch on its way to a producer.
pub(super) struct Sending<'a> {
    pub(super) options: &'a KafkaSinkOptions,
    pub(super) schemas: &'a Schemas,
    pub(super) producer: &'a Producer,
    /// What is put on the records.
    pub(super) place: usize,
    pub(super) moves: &'a [Move],
    pub(super) sent: Settled,
}

impl Sending<'_> {
    pub(super) fn all(&mut self, batch: &Batch, deleted: Option<&RecordBatch>) -> Result<(), SinkError> {
        let mut rest = batch.rows.clone();
        if rest.num_rows() > 0 {
            failpoint::hit("kafka.send.begun");
        }
        let half = rest.num_rows().div_ceil(2);
        let (options, schemas) = (self.options, self.schemas);
        let unwritten = |wrong| unwritten(&options.identity, wrong, &batch.moves);
        let deletes = deleted.map_or(Ok(Vec::new()), |keys| render_deletes(keys, options, schemas));
        let deletes = deletes.map_err(unwritten)?;
        let mut deletes = batch.deletes.origins.iter().copied().zip(deletes).peekable();
        let mut sent = 0;
        while rest.num_rows() > 0 {
            // Rendered side by side where cores are free, sent in order. What is rendered ahead stays small.
            let cores = cores::lend(rest.num_rows() / cores::ROWS_MIN);
            let slices = (0..cores.count()).map_while(|_| cut_front(&mut rest, cores::ROWS_MIN)).collect();
            let slices = cores.map(slices, |slice| -> Result<Vec<Rendered>, Wrong> {
                Ok(Rows::new(&slice, options, schemas)?.render()?)
            });
            drop(cores);
            for slice in slices {
                let records = slice.map_err(unwritten)?;
                for record in records {
                    // What is deleted before the row is written.
                    if let Some(origin) = batch.origins.as_ref().and_then(|origins| origins.get(sent)) {
                        while let Some((_, delete)) = deletes.next_if(|(number, _)| number < origin) {
                            self.send(delete)?;
                        }
                    }
                    self.send(record)?;
                    sent += 1;
                    if sent == half {
                        failpoint::hit("kafka.send.half");
                    }
                }
            }
        }
        for (_, delete) in deletes {
            self.send(delete)?;
            sent += 1;
        }
        if sent > 0 {
            SinkError::point("kafka.send.done")?;
        }
        Ok(())
    }

    fn send(&mut self, rendered: Rendered) -> Result<(), SinkError> {
        let identity = &self.options.identity;
        let Some(topic) = self.options.topic.as_ref().or(rendered.topic.as_ref()) else {
            return Err(refused(identity, "its `topic` column is null", self.moves));
        };
        let mut record: BaseRecord<'_, [u8], [u8], usize> = BaseRecord::with_opaque_to(topic, self.place);
        record.key = rendered.key.as_deref();
        record.payload = rendered.value.as_deref();
        record.partition = rendered.partition;
        record.headers = rendered.headers;
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(Code::QueueFull), again)) => {
                    record = again;
                    // A timeout only means that there is no room yet.
                    self.producer.flush(ROOM_WAIT).ok();
                }
                Err((error, _)) => {
                    return Err(explain(identity, &format!("write {} with", ranges(self.moves)), error));
                }
            }
        }
        let bytes = rendered.key.as_ref().map_or(0, Vec::len) + rendered.value.as_ref().map_or(0, Vec::len);
        self.sent.rows += 1;
        self.sent.bytes += bytes as u64;
        Ok(())
    }
}

fn refused(identity: &str, problem: &str, moves: &[Move]) -> SinkError {
    let action = format!("write a row of {} with sink `{identity}`", ranges(moves));
    SinkError::refused(action, "change the view that this sink reads", problem.to_owned())
}

/// Rows that do not become records.
pub(super) fn unwritten(identity: &str, wrong: Wrong, moves: &[Move]) -> SinkError {
    match wrong {
        Wrong::Row(misfit) => refused(identity, &misfit.to_string(), moves),
        Wrong::Columns(problem) => {
            let action = format!("write {} with sink `{identity}`", ranges(moves));
            SinkError::stop(action, "change the view that this sink reads", problem)
        }
    }
}

/// What follows from an error of a producer of a sink, while it does `what`.
pub(super) fn explain(identity: &str, what: &str, error: KafkaError) -> SinkError {
    let action = format!("{what} sink `{identity}`");
    match error.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge) => SinkError::refused(
            action,
            "raise `message.max.bytes` of the topic and under `kafka:`, or make the rows smaller",
            error,
        ),
        Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
            SinkError::stop(action, "give this user the right to write the topic", error)
        }
        Some(Code::TransactionalIdAuthorizationFailed | Code::GroupAuthorizationFailed) => SinkError::stop(
            action,
            "give this user the rights to write and describe transactional ids that begin with `<group.id>.`, and to read \
             the group",
            error,
        ),
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

/// Waits until the brokers have what was sent.
pub(super) fn deliver(
    identity: &str,
    producer: &Producer,
    positions: &mut GroupPositions,
) -> Result<Positions, SinkError> {
    failpoint::hit("kafka.flush.begun");
    let flushed = producer.flush(DELIVERY_MAX);
    let failure = producer.context().take_failure().map(|(_, error)| error).or_else(|| flushed.err());
    if let Some(error) = failure {
        return Err(explain(identity, &format!("write {} with", ranges(positions.accepted())), error));
    }
    SinkError::point("kafka.flush.done")?;
    positions.settle()
}
