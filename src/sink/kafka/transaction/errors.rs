//! What follows when a call of a transaction has failed. Decisions only.

use rdkafka::error::KafkaError;

/// What follows when a call of a transaction has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The same call again: it goes on where it was.
    Again,
    /// Nothing of it may stay.
    Abort,
    /// The producer is of no use, and nobody knows what the coordinator did.
    Renew,
}

pub(super) fn next(error: &KafkaError, is_late: bool) -> Next {
    match error {
        KafkaError::Transaction(error) => {
            decide(error.is_fatal(), error.txn_requires_abort(), error.is_retriable() && !is_late)
        }
        // Records are still under way; the coordinator was not asked yet.
        KafkaError::Flush(_) if !is_late => Next::Again,
        _ => Next::Renew,
    }
}

/// By what librdkafka says of an error.
pub(super) fn decide(is_fatal: bool, requires_abort: bool, may_retry: bool) -> Next {
    match (is_fatal, requires_abort, may_retry) {
        (true, ..) => Next::Renew,
        (false, true, _) => Next::Abort,
        (false, false, true) => Next::Again,
        (false, false, false) => Next::Renew,
    }
}
