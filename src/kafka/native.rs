//! Calls of librdkafka for which rdkafka has no safe form: topic ids, leader epochs, the start of a log, and a new password.
#![expect(
    unsafe_code,
    reason = "rdkafka has no safe call for `rd_kafka_DescribeTopics`, leader epochs and `rd_kafka_sasl_set_credentials`"
)]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new, rd_kafka_AdminOptions_set_broker,
    rd_kafka_AdminOptions_set_request_timeout, rd_kafka_DescribeTopics, rd_kafka_DescribeTopics_result_topics,
    rd_kafka_TopicCollection_destroy, rd_kafka_TopicCollection_of_topic_names, rd_kafka_TopicDescription_error,
    rd_kafka_TopicDescription_name, rd_kafka_TopicDescription_partitions, rd_kafka_TopicDescription_t,
    rd_kafka_TopicDescription_topic_id, rd_kafka_Uuid_base64str, rd_kafka_Uuid_least_significant_bits,
    rd_kafka_Uuid_most_significant_bits, rd_kafka_admin_op_t, rd_kafka_error_code, rd_kafka_error_destroy,
    rd_kafka_error_string, rd_kafka_event_DescribeTopics_result, rd_kafka_event_destroy, rd_kafka_event_error,
    rd_kafka_event_t, rd_kafka_get_watermark_offsets, rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll,
    rd_kafka_sasl_set_credentials, rd_kafka_topic_partition_get_leader_epoch,
    rd_kafka_topic_partition_set_leader_epoch,
};
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::MetadataBroker;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};
use secrecy::ExposeSecret as _;

use super::client::Credentials;

/// The description of a topic that a broker returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    pub name: String,
    /// The topic's id, which changes if the topic is deleted and made again. `None` from brokers before Kafka 2.8, which have
    /// no ids.
    pub id: Option<String>,
    /// The number of partitions, or the broker's reason for not reporting it.
    pub partitions: Result<usize, RDKafkaErrorCode>,
}

/// Asks a broker that is up to describe these topics. Creates none of them.
///
/// librdkafka would ask the controller. This function does not, because the mock cluster names none, and the broker that leads
/// the others may be busy.
pub(super) fn describe_topics<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topics: &[String],
    timeout: Duration,
) -> Result<Vec<Topic>, RDKafkaErrorCode> {
    let metadata = consumer.fetch_metadata(topics.first().map(String::as_str), timeout);
    let metadata = metadata.map_err(|error| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))?;
    let known = Some(metadata.orig_broker_id()).filter(|broker| *broker >= 0);
    let first = metadata.brokers().first().map(MetadataBroker::id);
    let broker = known.or(first).ok_or(RDKafkaErrorCode::AllBrokersDown)?;
    let names: Vec<CString> = topics.iter().filter_map(|topic| CString::new(topic.as_str()).ok()).collect();
    let mut names: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let client = consumer.client().native_ptr();
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client lives as long as the consumer that is borrowed here, and the names live until the end of this
    // function. This function destroys each object that it makes exactly once. It destroys the event after it has read what
    // points into the event. librdkafka copies names and options.
    unsafe {
        let queue = rd_kafka_queue_new(client);
        let collection = rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let options = rd_kafka_AdminOptions_new(client, rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        // librdkafka refuses timeouts beyond an hour and then uses its own.
        rd_kafka_AdminOptions_set_request_timeout(options, millis, ptr::null_mut(), 0);
        rd_kafka_AdminOptions_set_broker(options, broker, ptr::null_mut(), 0);
        rd_kafka_DescribeTopics(client, collection, options, queue);
        rd_kafka_AdminOptions_destroy(options);
        rd_kafka_TopicCollection_destroy(collection);
        // Waits a little longer than the request may take, so that the request's own answer comes first.
        let event = rd_kafka_queue_poll(queue, millis.saturating_add(500));
        let described = match event.is_null() {
            true => Err(RDKafkaErrorCode::OperationTimedOut),
            false => described(event),
        };
        rd_kafka_event_destroy(event);
        rd_kafka_queue_destroy(queue);
        described
    }
}

/// # Safety
/// `event` is a live event.
unsafe fn described(event: *mut rd_kafka_event_t) -> Result<Vec<Topic>, RDKafkaErrorCode> {
    // SAFETY: the caller promises a live event. The parts of a result live as long as its event.
    unsafe {
        let error = rd_kafka_event_error(event);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(error.into());
        }
        let result = rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(RDKafkaErrorCode::Fail);
        }
        let mut count = 0;
        let topics = rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok((0..count).map(|index| topic(*topics.add(index))).collect())
    }
}

/// # Safety
/// `described` points to the description of a topic in a live event.
unsafe fn topic(described: *const rd_kafka_TopicDescription_t) -> Topic {
    // SAFETY: the caller promises a live description. Its strings end with a zero byte and live as long as it does.
    unsafe {
        let name = CStr::from_ptr(rd_kafka_TopicDescription_name(described)).to_string_lossy().into_owned();
        let error = rd_kafka_error_code(rd_kafka_TopicDescription_error(described));
        let mut count = 0;
        rd_kafka_TopicDescription_partitions(described, &raw mut count);
        let id = rd_kafka_TopicDescription_topic_id(described);
        let is_zero = rd_kafka_Uuid_most_significant_bits(id) == 0 && rd_kafka_Uuid_least_significant_bits(id) == 0;
        let id = (!is_zero).then(|| CStr::from_ptr(rd_kafka_Uuid_base64str(id)).to_string_lossy().into_owned());
        let is_good = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        Topic { name, id, partitions: if is_good { Ok(count) } else { Err(error.into()) } }
    }
}

/// Returns the start of the log that the last fetch reported, or `None` before the first fetch.
pub(super) fn log_start<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, partition: i32) -> Option<i64> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client lives as long as the consumer that is borrowed here. librdkafka writes only the two numbers.
    let error = unsafe {
        let client = consumer.client().native_ptr();
        rd_kafka_get_watermark_offsets(client, topic.as_ptr(), partition, &raw mut low, &raw mut high)
    };
    (error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && low >= 0).then_some(low)
}

/// Sets the leader epoch of this element, which is that of the record before the element's position.
///
/// # Panics
/// Panics if the list has no such element.
pub(super) fn set_leader_epoch(list: &mut TopicPartitionList, index: usize, epoch: i32) {
    assert!(index < list.count(), "an element of the list");
    // SAFETY: the list is alive and has this element.
    unsafe { rd_kafka_topic_partition_set_leader_epoch((*list.ptr()).elems.add(index), epoch) }
}

/// Returns the leader epoch of this element's position, or -1 if it has none.
///
/// # Panics
/// Panics if the list has no such element.
pub(super) fn leader_epoch(list: &TopicPartitionList, index: usize) -> i32 {
    assert!(index < list.count(), "an element of the list");
    // SAFETY: the list is alive and has this element.
    unsafe { rd_kafka_topic_partition_get_leader_epoch((*list.ptr()).elems.add(index)) }
}

/// Sets the user name and password that the client uses for PLAIN and SCRAM. Open connections stay as they are.
///
/// # Errors
/// Returns the reason if one of them holds a zero byte or librdkafka refuses them. The reason contains neither of them.
pub(super) fn log_in_with<C: ClientContext>(client: &Client<C>, credentials: &Credentials) -> Result<(), String> {
    let no_zeros = |_| "it holds a zero byte".to_owned();
    let username = CString::new(credentials.username.as_str()).map_err(no_zeros)?;
    let password = CString::new(credentials.password.expose_secret()).map_err(no_zeros)?;
    // SAFETY: the client is alive and copies both strings. This function owns the error and destroys it after it has read the
    // text.
    unsafe {
        let error = rd_kafka_sasl_set_credentials(client.native_ptr(), username.as_ptr(), password.as_ptr());
        if error.is_null() {
            return Ok(());
        }
        let text = CStr::from_ptr(rd_kafka_error_string(error)).to_string_lossy().into_owned();
        rd_kafka_error_destroy(error);
        Err(text)
    }
}
