//! Questions that rust-rdkafka cannot ask: topic ids, and the offsets of many partitions at once.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka_sys as sys;

use super::{Code, NativeEvent, error_code, event_error_code, source, text};
use crate::model::{TopicId, TopicName, TopicPartition};

/// What DescribeTopics says of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Described {
    Topic {
        id: TopicId,
        partition_count: usize,
    },
    Missing,
    /// What the broker said instead.
    Failed(String),
}

/// Asks a question of librdkafka's admin API, and waits for the answer.
///
/// # Errors
/// What the client or the broker said.
fn ask<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    operation: sys::rd_kafka_admin_op_t,
    timeout: Duration,
    send: impl FnOnce(*mut sys::rd_kafka_t, *mut sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
) -> Result<NativeEvent, String> {
    let client = consumer.client().native_ptr();
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut complaint = [0 as c_char; 256];
    // SAFETY: options and queue are created here, used while they live, and destroyed once below; the
    // client copies options and what `send` gives before the call in `send` returns.
    let event = unsafe {
        let options = sys::rd_kafka_AdminOptions_new(client, operation);
        sys::rd_kafka_AdminOptions_set_request_timeout(
            options,
            millis,
            complaint.as_mut_ptr(),
            complaint.len(),
        );
        let queue = sys::rd_kafka_queue_new(client);
        send(client, options, queue);
        // The operation itself ends within the timeout; this waits a little longer for its result.
        let event = sys::rd_kafka_queue_poll(queue, millis.saturating_add(1000));
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        event
    };
    if event.is_null() {
        return Err("timed out".to_owned());
    }
    let event = NativeEvent(event);
    // SAFETY: the event lives.
    unsafe {
        if event_error_code(event.0) != Code::NO_ERROR.0 {
            return Err(text(sys::rd_kafka_event_error_string(event.0)));
        }
    }
    Ok(event)
}

/// Asks `broker` for topic ids and partition counts. Any broker can answer; librdkafka's default, the
/// controller, does not exist on its mock cluster.
///
/// # Errors
/// What the client or the broker said.
pub fn describe_topics<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    broker: i32,
    topics: &[TopicName],
    timeout: Duration,
) -> Result<BTreeMap<TopicName, Described>, String> {
    let names: Vec<CString> = topics
        .iter()
        .map(|topic| CString::new(topic.as_str()).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    let event = ask(consumer, operation, timeout, |client, options, queue| {
        let mut complaint = [0 as c_char; 256];
        // SAFETY: the names outlive the calls; the collection is copied and destroyed once.
        unsafe {
            sys::rd_kafka_AdminOptions_set_broker(options, broker, complaint.as_mut_ptr(), complaint.len());
            let collection =
                sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            sys::rd_kafka_DescribeTopics(client, collection, options, queue);
            sys::rd_kafka_TopicCollection_destroy(collection);
        }
    })?;
    read_descriptions(&event)
}

fn read_descriptions(event: &NativeEvent) -> Result<BTreeMap<TopicName, Described>, String> {
    let unknown = [
        Code(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART as i32),
        Code(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC as i32),
    ];
    let mut described = BTreeMap::new();
    // SAFETY: the result and everything in it belong to the event, which lives through this function.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err("an answer of another kind".to_owned());
        }
        let mut count = 0;
        let list = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        for index in 0..count {
            let topic = *list.add(index);
            let code = Code(error_code(sys::rd_kafka_TopicDescription_error(topic)));
            let id = sys::rd_kafka_TopicDescription_topic_id(topic);
            let found = if unknown.contains(&code) {
                Described::Missing
            } else if code != Code::NO_ERROR || id.is_null() {
                Described::Failed(code.to_string())
            } else {
                let high = sys::rd_kafka_Uuid_most_significant_bits(id) as u64;
                let low = sys::rd_kafka_Uuid_least_significant_bits(id) as u64;
                let mut partition_count = 0;
                sys::rd_kafka_TopicDescription_partitions(topic, &mut partition_count);
                Described::Topic { id: TopicId(uuid::Uuid::from_u64_pair(high, low)), partition_count }
            };
            described.insert(TopicName::new(&text(sys::rd_kafka_TopicDescription_name(topic))), found);
        }
    }
    Ok(described)
}

/// Asks for offsets as readers of committed transactions see them. The offsets in `wanted` say which:
/// `Offset::Beginning`, `Offset::End`, or milliseconds of a time as `Offset::Offset`. A time that is later than
/// every record has no answer.
///
/// # Errors
/// What the client or a broker said, also of one partition.
pub fn list_offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    wanted: &TopicPartitionList,
    timeout: Duration,
) -> Result<BTreeMap<TopicPartition, i64>, String> {
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
    let event = ask(consumer, operation, timeout, |client, options, queue| {
        // SAFETY: the list outlives the call, which copies it; an error object is destroyed once, null is allowed.
        unsafe {
            let refused = sys::rd_kafka_AdminOptions_set_isolation_level(
                options,
                sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
            );
            sys::rd_kafka_error_destroy(refused);
            sys::rd_kafka_ListOffsets(client, wanted.ptr(), options, queue);
        }
    })?;
    let mut offsets = BTreeMap::new();
    // SAFETY: the result and everything in it belong to the event, which lives through this function.
    unsafe {
        let result = sys::rd_kafka_event_ListOffsets_result(event.0);
        if result.is_null() {
            return Err("an answer of another kind".to_owned());
        }
        let mut count = 0;
        let list = sys::rd_kafka_ListOffsets_result_infos(result, &mut count);
        for index in 0..count {
            let element = sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*list.add(index));
            let Some(element) = element.as_ref() else {
                continue;
            };
            let code = Code::of(element);
            if code != Code::NO_ERROR {
                return Err(format!("{}: {code}", source(element)));
            }
            offsets.insert(source(element), element.offset);
        }
    }
    Ok(offsets)
}

/// The bootstrap address of the mock cluster that a client with `test.mock.num.brokers` runs, with the
/// wait before a group's first rebalance taken away (3 s by default). `None` if it runs none.
pub fn mock_bootstrap(client: *mut sys::rd_kafka_t) -> Option<String> {
    // SAFETY: the client is alive, and so is its mock cluster; the address is copied.
    unsafe {
        let cluster = sys::rd_kafka_handle_mock_cluster(client);
        if cluster.is_null() {
            return None;
        }
        sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
        Some(text(sys::rd_kafka_mock_cluster_bootstraps(cluster)))
    }
}
