//! Consumers for what is behind: assigned, never subscribed, and members of no group.

use std::time::Duration;

use rdkafka::ClientConfig;

use crate::config::plan::Kafka;

use super::membership::Membership;
use super::settings::consumer_config;
use super::source::{KafkaSource, SourceError};
use super::{Source, Sources};

/// What one prefetches. There may be several, and what they hold is beside `memory:`.
const PREFETCH: (&str, &str) = ("queued.max.messages.kbytes", "4096");

/// Starts them, one after another as they are needed.
pub struct KafkaSources {
    config: ClientConfig,
}

impl KafkaSources {
    /// They name the group, as librdkafka wants, and neither join it nor commit.
    pub fn new(kafka: &Kafka, topic_refresh: Duration) -> Self {
        let mut config = consumer_config(kafka, topic_refresh);
        let (name, value) = PREFETCH;
        if !kafka.properties.contains_key(name) {
            config.set(name, value);
        }
        // A name that is a member's alone is not taken from it.
        config.remove("group.instance.id");
        Self { config }
    }
}

impl Sources for KafkaSources {
    fn start(&self) -> Result<Box<dyn Source>, SourceError> {
        // What they read is held by the member of the group.
        Ok(Box::new(KafkaSource::start(&self.config, Membership::default())?))
    }
}
