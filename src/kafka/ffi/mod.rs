//! What rust-rdkafka does not give: the only unsafe code of the project.
//!
//! Why it is needed (rust-rdkafka 0.39, librdkafka 2.12.1):
//! - its poll drops the topic of an end-of-partition event and of every error;
//! - reading a header whose name is not UTF-8 panics;
//! - a rebalance has to be answered inside a callback; here it is an event like any other;
//! - asynchronous commits never tell their result; `rd_kafka_commit_queue` does;
//! - topic ids (KIP-516), leader epochs, the bulk look-up of offsets and a member's generation are not exposed.
//!
//! Rules kept here: an event is destroyed exactly once, by [`NativeEvent`]'s drop; nothing borrowed from an
//! event outlives it; pointers from librdkafka are checked for null before use; the queue is released
//! before the consumer is dropped, because [`Poller`] borrows the consumer's lifetime through `Arc`.

mod admin;

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::ptr;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;

use crate::model::{Incoming, LeaderEpoch, Offset, Partition, TimestampType, TopicName, TopicPartition};

pub use admin::{Described, describe_topics, list_offsets, mock_bootstrap};

unsafe extern "C" {
    /// The binding returns an enum, and brokers may send codes that this version of it does not have.
    #[link_name = "rd_kafka_event_error"]
    fn event_error_code(event: *mut sys::rd_kafka_event_t) -> i32;
    /// As above, of an error object; 0 if there is none.
    #[link_name = "rd_kafka_error_code"]
    fn error_code(error: *const sys::rd_kafka_error_t) -> i32;
    /// As above, for the name of a code.
    #[link_name = "rd_kafka_err2name"]
    fn code_name(code: i32) -> *const c_char;
}

/// An error code of librdkafka or of a broker, perhaps one that nobody here knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    const NO_ERROR: Code = Code(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR as i32);

    /// What librdkafka says went wrong with an element of a list.
    fn of(element: &sys::rd_kafka_topic_partition_t) -> Self {
        // SAFETY: the field is there and aligned; it is read as the number that C wrote.
        Self(unsafe { ptr::addr_of!(element.err).cast::<i32>().read() })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: takes any number and answers with a static or per-thread text, copied at once.
        f.write_str(&text(unsafe { code_name(self.0) }))
    }
}

/// librdkafka's version, for logs and bug reports.
pub fn version() -> String {
    rdkafka::util::get_rdkafka_version().1
}

/// What one poll brought.
pub enum Polled<'a> {
    Nothing,
    Message(Message<'a>),
    /// The end of a partition was reached: `next` is where the next record will be, past control records.
    End {
        source: TopicPartition,
        next: Offset,
    },
    Error(ConsumerError),
    Assign(Vec<TopicPartition>),
    Revoke {
        partitions: Vec<TopicPartition>,
        is_lost: bool,
    },
    Committed(Result<(), String>),
    Log {
        level: i32,
        facility: String,
        message: String,
    },
}

/// An error with the place it concerns, as far as librdkafka tells.
#[derive(Debug)]
pub struct ConsumerError {
    pub source: Option<TopicPartition>,
    pub offset: Option<Offset>,
    pub code: Code,
    pub is_fatal: bool,
    pub message: String,
}

struct NativeEvent(*mut sys::rd_kafka_event_t);

impl Drop for NativeEvent {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `rd_kafka_queue_poll`, was not null, and is destroyed only here.
        unsafe { sys::rd_kafka_event_destroy(self.0) }
    }
}

/// A message in librdkafka's memory.
pub struct Message<'a> {
    native: &'a sys::rd_kafka_message_t,
    _event: &'a NativeEvent,
}

impl Message<'_> {
    /// Identifies the topic while the client lives; cheaper to compare than its name.
    pub fn topic_handle(&self) -> usize {
        self.native.rkt as usize
    }

    pub fn topic(&self) -> TopicName {
        // SAFETY: a fetched message has a topic handle, whose name lives as long as the handle.
        let name = unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(self.native.rkt)) };
        TopicName::new(&name.to_string_lossy())
    }

    pub fn partition(&self) -> Partition {
        Partition(self.native.partition)
    }

    /// The record and its headers, borrowed.
    pub fn incoming(&self) -> (Incoming<'_>, Headers<'_>) {
        let message: *const sys::rd_kafka_message_t = self.native;
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid while the event lives; both calls only read it.
        let (timestamp_ms, epoch) = unsafe {
            (sys::rd_kafka_message_timestamp(message, &mut kind), sys::rd_kafka_message_leader_epoch(message))
        };
        let timestamp_type = match kind {
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME => TimestampType::Create,
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => TimestampType::LogAppend,
            _ => TimestampType::None,
        };
        let incoming = Incoming {
            offset: Offset::new(self.native.offset).unwrap_or_default(),
            timestamp_ms,
            timestamp_type,
            epoch: (epoch >= 0).then_some(LeaderEpoch(epoch)),
            key: bytes(self.native.key.cast(), self.native.key_len),
            value: bytes(self.native.payload.cast(), self.native.len),
        };
        (incoming, self.headers())
    }

    fn headers(&self) -> Headers<'_> {
        let mut headers = ptr::null_mut();
        // SAFETY: parses the headers lazily into memory that the message owns.
        let code = unsafe { sys::rd_kafka_message_headers(self.native, &mut headers) };
        let is_there = code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        Headers { native: is_there.then_some(headers), index: 0, _message: self }
    }
}

/// `None` for a null pointer: a null key or a tombstone.
fn bytes<'a>(start: *const u8, len: usize) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: librdkafka gives a pointer and the length of what it points to; the callers tie the
    // lifetime to the event that owns the memory.
    Some(unsafe { slice::from_raw_parts(start, len) })
}

/// Iterates over a message's headers; names are whatever bytes the producer wrote.
pub struct Headers<'a> {
    native: Option<*mut sys::rd_kafka_headers_t>,
    index: usize,
    _message: &'a Message<'a>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the headers belong to the message, which outlives this iterator.
        let code = unsafe {
            sys::rd_kafka_header_get_all(self.native?, self.index, &mut name, &mut value, &mut len)
        };
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
            return None;
        }
        self.index += 1;
        // SAFETY: header names are null-terminated by librdkafka.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes();
        Some((name, bytes(value.cast(), len)))
    }
}

/// Polls the consumer's queue. Holds the consumer, so that the queue never outlives it.
pub struct Poller<C: ConsumerContext> {
    queue: *mut sys::rd_kafka_queue_t,
    consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues may be used from any thread; this one is used from one at a time.
unsafe impl<C: ConsumerContext> Send for Poller<C> {}

impl<C: ConsumerContext> Drop for Poller<C> {
    fn drop(&mut self) {
        // SAFETY: our own reference to the queue, released once, before the consumer's.
        unsafe { sys::rd_kafka_queue_destroy(self.queue) }
    }
}

impl<C: ConsumerContext> Poller<C> {
    /// `None` if the consumer has no group.
    pub fn new(consumer: Arc<BaseConsumer<C>>) -> Option<Self> {
        // SAFETY: the client is alive; a null answer is handled.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        (!queue.is_null()).then_some(Self { queue, consumer })
    }

    /// Polls once and hands what came to `take`, which must not keep it.
    pub fn poll<R>(&self, timeout: Duration, take: impl FnOnce(Polled<'_>) -> R) -> R {
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is alive; a null answer means that nothing came.
        let raw = unsafe { sys::rd_kafka_queue_poll(self.queue, millis) };
        if raw.is_null() {
            return take(Polled::Nothing);
        }
        let event = NativeEvent(raw);
        // SAFETY: the event is alive until the end of this function.
        let kind = unsafe { sys::rd_kafka_event_type(event.0) };
        match kind {
            sys::RD_KAFKA_EVENT_FETCH => {
                // SAFETY: a fetch event owns its message; there is exactly one.
                let message = unsafe { sys::rd_kafka_event_message_next(event.0).as_ref() };
                take(
                    message.map_or(Polled::Nothing, |native| {
                        Polled::Message(Message { native, _event: &event })
                    }),
                )
            }
            sys::RD_KAFKA_EVENT_ERROR => take(error(&event)),
            sys::RD_KAFKA_EVENT_REBALANCE => take(self.rebalance(&event)),
            sys::RD_KAFKA_EVENT_OFFSET_COMMIT => take(Polled::Committed(committed(&event))),
            sys::RD_KAFKA_EVENT_LOG => take(log(&event)),
            _ => take(Polled::Nothing),
        }
    }

    fn rebalance(&self, event: &NativeEvent) -> Polled<'static> {
        // SAFETY: a rebalance event has a code and a list, which the event owns.
        let (code, list) = unsafe {
            (event_error_code(event.0), sys::rd_kafka_event_topic_partition_list(event.0).as_ref())
        };
        let partitions = list.map(|list| elements(list).map(source).collect()).unwrap_or_default();
        if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS as i32 {
            return Polled::Assign(partitions);
        }
        // SAFETY: reads a flag of the living client. It has to be read before the rebalance is answered.
        let lost = unsafe { sys::rd_kafka_assignment_lost(self.consumer.client().native_ptr()) };
        Polled::Revoke { partitions, is_lost: lost != 0 }
    }

    /// Commits asynchronously; the answer comes as [`Polled::Committed`].
    ///
    /// # Errors
    /// If the commit could not even be queued.
    pub fn commit(&self, offsets: &TopicPartitionList) -> Result<(), String> {
        // SAFETY: the list is copied by librdkafka; no callback and no opaque are given.
        let code = unsafe {
            sys::rd_kafka_commit_queue(
                self.consumer.client().native_ptr(),
                offsets.ptr(),
                self.queue,
                None,
                ptr::null_mut(),
            )
        };
        match code {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(RDKafkaErrorCode::from(code).to_string()),
        }
    }
}

/// Sets the leader epoch of the element for `source`: rust-rdkafka has no setter.
pub fn set_epoch(list: &mut TopicPartitionList, source: &TopicPartition, epoch: LeaderEpoch) {
    let Ok(name) = CString::new(source.topic.as_str()) else {
        return;
    };
    // SAFETY: the list is ours and not shared; find gives null or an element of it.
    unsafe {
        let element = sys::rd_kafka_topic_partition_list_find(list.ptr(), name.as_ptr(), source.partition.0);
        if !element.is_null() {
            sys::rd_kafka_topic_partition_set_leader_epoch(element, epoch.0);
        }
    }
}

/// The generation of the group that a consumer is a member of; `None` while it is none.
pub fn generation<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<i32> {
    // SAFETY: the client is alive; what it answers is ours, may be null, and is destroyed below, after the number and the
    // length of the member's id, a null-terminated text of it, are read.
    unsafe {
        let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return None;
        }
        let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
        let member = text(sys::rd_kafka_consumer_group_metadata_member_id(metadata));
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        (generation >= 0 && !member.is_empty()).then_some(generation)
    }
}

fn elements(
    list: &sys::rd_kafka_topic_partition_list_t,
) -> impl Iterator<Item = &sys::rd_kafka_topic_partition_t> {
    let count = usize::try_from(list.cnt).unwrap_or_default();
    // SAFETY: `elems` points to `cnt` elements; an empty list may have a null pointer.
    let elements = match list.elems.is_null() {
        true => &[][..],
        false => unsafe { slice::from_raw_parts(list.elems, count) },
    };
    elements.iter()
}

fn source(element: &sys::rd_kafka_topic_partition_t) -> TopicPartition {
    // SAFETY: the topic of an element is a null-terminated string owned by the list.
    let topic = unsafe { CStr::from_ptr(element.topic) };
    TopicPartition::new(&TopicName::new(&topic.to_string_lossy()), Partition(element.partition))
}

fn error(event: &NativeEvent) -> Polled<'static> {
    // SAFETY: error events have a code and a text owned by the event; the place is a fresh copy, which
    // is destroyed here.
    let (code, text, is_fatal, place) = unsafe {
        (
            event_error_code(event.0),
            text(sys::rd_kafka_event_error_string(event.0)),
            sys::rd_kafka_event_error_is_fatal(event.0) != 0,
            sys::rd_kafka_event_topic_partition(event.0),
        )
    };
    // SAFETY: null or a valid element that is ours until it is destroyed below.
    let found = unsafe { place.as_ref() }.map(|element| (source(element), element.offset));
    if !place.is_null() {
        // SAFETY: ours, destroyed once; `found` holds copies.
        unsafe { sys::rd_kafka_topic_partition_destroy(place) };
    }
    let offset = found.as_ref().and_then(|(_, offset)| Offset::new(*offset));
    let source = found.map(|(source, _)| source);
    let code = Code(code);
    if code.0 == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF as i32 {
        return match (source, offset) {
            (Some(source), Some(next)) => Polled::End { source, next },
            _ => Polled::Nothing,
        };
    }
    Polled::Error(ConsumerError { source, offset, code, is_fatal, message: text })
}

fn committed(event: &NativeEvent) -> Result<(), String> {
    // SAFETY: the event owns its list.
    let (code, list) =
        unsafe { (event_error_code(event.0), sys::rd_kafka_event_topic_partition_list(event.0).as_ref()) };
    let code = Code(code);
    let no_offset = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__NO_OFFSET as i32;
    if code != Code::NO_ERROR && code.0 != no_offset {
        return Err(code.to_string());
    }
    // One partition may be refused while the request as a whole is not.
    let refused = list.and_then(|list| elements(list).find(|element| Code::of(element) != Code::NO_ERROR));
    match refused {
        Some(element) => Err(format!("{}: {}", source(element), Code::of(element))),
        None => Ok(()),
    }
}

fn log(event: &NativeEvent) -> Polled<'static> {
    let (mut facility, mut message, mut level) = (ptr::null(), ptr::null(), 0);
    // SAFETY: gives pointers into the event, copied before it is destroyed.
    let code = unsafe { sys::rd_kafka_event_log(event.0, &mut facility, &mut message, &mut level) };
    if code != 0 {
        return Polled::Nothing;
    }
    Polled::Log { level, facility: text(facility), message: text(message) }
}

/// A copy of a text of librdkafka's; empty for null.
fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's texts are null-terminated; the callers hold what owns them.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}
