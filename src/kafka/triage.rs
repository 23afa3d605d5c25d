//! Errors of the consumer, by code: which pass, which lose data if we go on (research of librdkafka 2.12).

use rdkafka::types::RDKafkaErrorCode as Code;

/// What an error at the consumer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// librdkafka retries by itself. Said once per change.
    Passing,
    /// Going on would skip records of this partition.
    DataLost,
    /// The bytes at this offset cannot be read: librdkafka would move past them.
    Unreadable,
    /// Somebody has to give a right or mend a setting; other topics are not concerned.
    Refused,
    /// The client is of no use any more.
    Fatal,
}

pub fn verdict(code: Code, is_fatal: bool) -> Verdict {
    if is_fatal {
        return Verdict::Fatal;
    }
    match code {
        Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => Verdict::DataLost,
        Code::BadMessage
        | Code::BadCompression
        | Code::NotImplemented
        | Code::InvalidMessage
        | Code::InvalidMessageSize
        | Code::MessageSizeTooLarge => Verdict::Unreadable,
        Code::TopicAuthorizationFailed => Verdict::Refused,
        Code::GroupAuthorizationFailed | Code::FencedInstanceId | Code::Fatal => Verdict::Fatal,
        _ => Verdict::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_skip_records_never_passes() {
        for code in [Code::AutoOffsetReset, Code::LogTruncation] {
            assert_eq!(verdict(code, false), Verdict::DataLost);
        }
        // With CRC checks on, a damaged batch is skipped by the client after this error.
        assert_eq!(verdict(Code::BadMessage, false), Verdict::Unreadable);
        for code in [Code::BrokerTransportFailure, Code::AllBrokersDown, Code::UnknownTopicOrPartition] {
            assert_eq!(verdict(code, false), Verdict::Passing);
        }
        assert_eq!(verdict(Code::BrokerTransportFailure, true), Verdict::Fatal);
    }
}
