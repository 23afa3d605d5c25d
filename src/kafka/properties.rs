//! librdkafka's word on the properties of the file, before a client is made of them.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use crate::config::plan::Kafka;

/// Properties that librdkafka does not take, with what is wrong. Values are never shown: they may be passwords.
pub fn refused_properties(kafka: &Kafka) -> Vec<(String, &'static str)> {
    let refused = kafka.properties.iter().filter_map(|(name, value)| {
        match ClientConfig::new().set(name, value).create_native_config() {
            Ok(_) => None,
            Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
                Some((name.clone(), "librdkafka has no such property"))
            }
            Err(_) => Some((name.clone(), "librdkafka does not take its value")),
        }
    });
    refused.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_librdkafka_does_not_take_is_told_without_its_value() {
        let properties = [
            ("bootstrap.servers", "localhost:9092"),
            ("sasl.pasword", "hunter2"),
            ("session.timeout.ms", "hunter2"),
            ("compression.type", "zstd"),
        ];
        let properties: BTreeMap<String, String> =
            properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let refused = refused_properties(&Kafka { properties, group: String::new() });
        let expected = [
            ("sasl.pasword".to_owned(), "librdkafka has no such property"),
            ("session.timeout.ms".to_owned(), "librdkafka does not take its value"),
        ];
        assert_eq!(refused, expected);
    }
}
