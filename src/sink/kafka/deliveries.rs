//! Producers, and what the brokers say of their records.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::error::KafkaError;
use rdkafka::producer::{DeliveryResult, ProducerContext, ThreadedProducer};
use tracing::{debug, info, warn};

use crate::repeat::{self, Repeats};

/// A producer whose records carry the place of their sink among those that share it.
pub type Producer = ThreadedProducer<Deliveries>;

/// What the broker said of records; shared with the producer's thread.
#[derive(Clone, Default)]
pub struct Deliveries(Arc<Counts>);

#[derive(Default)]
struct Counts {
    /// The first failure, and whose record it was.
    first: Mutex<Option<(usize, KafkaError)>>,
    /// librdkafka's lines, as they were said.
    repeats: Repeats,
}

impl ClientContext for Deliveries {
    fn log(&self, level: Level, facility: &str, message: &str) {
        if matches!(level, Level::Debug) {
            // Asked for with the property `debug`: all of it.
            debug!(facility, "librdkafka: {message}");
            return;
        }
        let cause = repeat::cause(&format!("{facility} {message}"));
        if let Some(times) = self.0.repeats.say(&cause, 1, Instant::now()) {
            match level {
                Level::Info | Level::Notice => info!(facility, times, "librdkafka: {message}"),
                _ => warn!(facility, times, "librdkafka: {message}"),
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let cause = repeat::cause(&format!("{error} {reason}"));
        if let Some(times) = self.0.repeats.say(&cause, 1, Instant::now()) {
            warn!(%error, times, "librdkafka: {reason}");
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        if let Err((error, _)) = result {
            let mut first = self.0.first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| (place, error.clone()));
        }
    }
}

impl Deliveries {
    /// The first failure since the last call, and the place of the sink whose record it was.
    pub fn take_failure(&self) -> Option<(usize, KafkaError)> {
        self.0.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
