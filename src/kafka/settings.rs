//! librdkafka's settings, with the reason for every one that is not its default.

use std::time::Duration;

use rdkafka::ClientConfig;

use crate::config::plan::Kafka;

/// What we set unless the user did.
const PREFERRED: [(&str, &str); 3] = [
    ("client.id", "sidestream"),
    // Shared by all partitions, and held beside `memory:`. The default of 64 MiB is more than a lane holds.
    ("queued.max.messages.kbytes", "16384"),
    // After the queue above ran full, fetching waits this long: 1 s by default, which shows as stalls.
    ("fetch.queue.backoff.ms", "20"),
];

/// What the engine owns; `check` refuses them in the file.
const OWNED: [(&str, &str); 7] = [
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // "largest" by default: an expired position would silently jump over everything.
    ("auto.offset.reset", "error"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("enable.partition.eof", "true"),
    ("isolation.level", "read_committed"),
    // Without it damaged batches pass as data.
    ("check.crcs", "true"),
];

/// How often librdkafka looks for new partitions; 5 minutes by default.
const REFRESH: &str = "topic.metadata.refresh.interval.ms";

/// For the consumer that is a member of the group; it finds new partitions within `topic_refresh`.
pub fn consumer_config(kafka: &Kafka, topic_refresh: Duration) -> ClientConfig {
    let mut config = client_config(kafka);
    if !kafka.properties.contains_key(REFRESH) {
        // What librdkafka takes: from 10 ms to an hour.
        config.set(REFRESH, topic_refresh.as_millis().clamp(10, 3_600_000).to_string());
    }
    for (name, value) in OWNED {
        config.set(name, value);
    }
    config
}

/// For clients that only ask.
pub fn client_config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (name, value) in PREFERRED {
        config.set(name, value);
    }
    for (name, value) in &kafka.properties {
        config.set(name, value);
    }
    config.set("isolation.level", "read_committed");
    config
}

/// Settings that only consumers have; a producer would complain about them.
const CONSUMER_ONLY: [&str; 8] =
    ["group.", "session.", "heartbeat.", "max.poll.", "fetch.", "queued.", "isolation.", "coordinator."];

/// For producers: idempotent, and sure of every record before it counts.
pub fn producer_config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "sidestream");
    for (name, value) in &kafka.properties {
        if !CONSUMER_ONLY.iter().any(|prefix| name.starts_with(prefix)) {
            config.set(name, value);
        }
    }
    config.set("enable.idempotence", "true").set("acks", "all");
    config
}
