//! librdkafka's mock cluster: a broker in this process, for the demo and for tests.
//!
//! It speaks the protocol but keeps everything in memory, knows no transactions' end marks, no compaction, and
//! no look-up of offsets by time.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};

use super::ffi;

/// A running mock cluster; it ends when this is dropped.
pub struct MockBroker {
    bootstrap: String,
    _client: BaseProducer,
}

impl MockBroker {
    /// # Errors
    /// If the client that runs it cannot be made.
    pub fn start() -> Result<Self, KafkaError> {
        let client: BaseProducer =
            ClientConfig::new().set("test.mock.num.brokers", "1").set("log_level", "3").create()?;
        let bootstrap = ffi::mock_bootstrap(client.client().native_ptr())
            .ok_or_else(|| KafkaError::ClientCreation("no mock cluster".to_owned()))?;
        Ok(Self { bootstrap, _client: client })
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }
}
