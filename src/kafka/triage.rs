//! Errors of the consumer, by code: which pass, which lose data if we go on (research of librdkafka 2.12).

use rdkafka_sys::rd_kafka_resp_err_t as Known;

use super::ffi;

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

pub fn verdict(code: ffi::Code, is_fatal: bool) -> Verdict {
    let is_one_of = |codes: &[Known]| codes.iter().any(|known| *known as i32 == code.0);
    if is_fatal || is_one_of(&FATAL) {
        Verdict::Fatal
    } else if is_one_of(&DATA_LOST) {
        Verdict::DataLost
    } else if is_one_of(&UNREADABLE) {
        Verdict::Unreadable
    } else if is_one_of(&[Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]) {
        Verdict::Refused
    } else {
        Verdict::Passing
    }
}

const FATAL: [Known; 3] = [
    Known::RD_KAFKA_RESP_ERR__FATAL,
    Known::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
    Known::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
];

const DATA_LOST: [Known; 3] = [
    Known::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET,
    Known::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
    Known::RD_KAFKA_RESP_ERR__LOG_TRUNCATION,
];

const UNREADABLE: [Known; 6] = [
    Known::RD_KAFKA_RESP_ERR__BAD_MSG,
    Known::RD_KAFKA_RESP_ERR__BAD_COMPRESSION,
    Known::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED,
    Known::RD_KAFKA_RESP_ERR_INVALID_MSG,
    Known::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE,
    Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_skip_records_never_passes() {
        let verdict = |code: Known| verdict(ffi::Code(code as i32), false);
        for code in DATA_LOST {
            assert_eq!(verdict(code), Verdict::DataLost);
        }
        // With CRC checks on, a damaged batch is skipped by the client after this error.
        assert_eq!(verdict(Known::RD_KAFKA_RESP_ERR__BAD_MSG), Verdict::Unreadable);
        for code in [Known::RD_KAFKA_RESP_ERR__TRANSPORT, Known::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN] {
            assert_eq!(verdict(code), Verdict::Passing);
        }
    }

    #[test]
    fn a_code_that_nobody_knows_passes_unless_the_client_is_done() {
        assert_eq!(verdict(ffi::Code(31_999), false), Verdict::Passing);
        assert_eq!(verdict(ffi::Code(31_999), true), Verdict::Fatal);
    }
}
