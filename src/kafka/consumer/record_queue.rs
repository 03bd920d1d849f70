//! Takes records out of librdkafka many at a time, for which rdkafka has no safe call.
//!
//! Taken one by one, records cost three times as much, a tenth of all that a worker spends on an event (`benches/intake.rs`).
//!
//! Apart from `native`, this is the only module with unsafe code. It knows nothing of the thread that uses it.
#![expect(unsafe_code, reason = "rdkafka has no safe call for `rd_kafka_consume_callback_queue`")]

use std::ffi::{CStr, CString, c_void};
use std::ops::ControlFlow;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_consume_callback_queue, rd_kafka_message_errstr, rd_kafka_message_leader_epoch, rd_kafka_message_t,
    rd_kafka_message_timestamp, rd_kafka_queue_destroy, rd_kafka_queue_forward, rd_kafka_queue_get_partition,
    rd_kafka_queue_new, rd_kafka_queue_t, rd_kafka_timestamp_type_t, rd_kafka_topic_name, rd_kafka_yield,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::{RDKafka, RDKafkaRespErr};

/// A librdkafka queue for the records of all partitions, their ends, and their errors. All else stays in the queue that
/// `BaseConsumer::poll` reads, because a call of this kind would refuse a rebalance there.
pub(super) struct RecordQueue<C: ConsumerContext + 'static> {
    queue: NonNull<rd_kafka_queue_t>,
    /// The client of the queue. librdkafka demands that it outlives the queue.
    consumer: Arc<BaseConsumer<C>>,
    destination: Arc<Destination>,
}

// SAFETY: librdkafka's queues accept calls from any thread.
unsafe impl<C: ConsumerContext + 'static> Send for RecordQueue<C> {}

/// The slot in which the context, which librdkafka calls back, finds the queue while there is one.
#[derive(Default)]
pub(super) struct Destination(Mutex<Option<Queue>>);

struct Queue {
    queue: NonNull<rd_kafka_queue_t>,
    client: *mut RDKafka,
}

// SAFETY: as for `RecordQueue`.
unsafe impl Send for Queue {}

impl Destination {
    fn set(&self, queue: Option<Queue>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = queue;
    }

    /// Leads the records of a partition to the queue, including those that wait in the partition's own queue. The thread calls
    /// this before each assignment of the partition. librdkafka forgets it if the partition is given up
    /// (`rd_kafka_toppar_fetch_stop`).
    pub fn lead(&self, topic: &str, partition: i32) {
        let destination = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(Queue { queue, client }), Ok(topic)) = (&*destination, CString::new(topic)) else { return };
        // SAFETY: queue and client are alive, because they are taken out of here before they are destroyed, and the lock delays
        // that. This function owns the handle that `get_partition` returns. To destroy the handle ends the handle only.
        unsafe {
            let partition = rd_kafka_queue_get_partition(*client, topic.as_ptr(), partition);
            if !partition.is_null() {
                rd_kafka_queue_forward(partition, queue.as_ptr());
                rd_kafka_queue_destroy(partition);
            }
        }
    }
}

impl<C: ConsumerContext + 'static> RecordQueue<C> {
    /// Makes a queue of this consumer. The consumer's context leads gained partitions to it through `destination`.
    ///
    /// # Panics
    /// Panics if there is no memory left.
    pub fn new(consumer: Arc<BaseConsumer<C>>, destination: Arc<Destination>) -> RecordQueue<C> {
        let client = consumer.client().native_ptr();
        // SAFETY: the client is alive, and lives as long as the queue.
        let queue = unsafe { rd_kafka_queue_new(client) };
        let queue = NonNull::new(queue).expect("librdkafka aborts where there is no memory");
        destination.set(Some(Queue { queue, client }));
        RecordQueue { queue, consumer, destination }
    }

    /// Waits up to `timeout` for a message. Passes the messages that are there to `visit`, in order, until `visit` breaks.
    ///
    /// Does not use `rd_kafka_consume_batch_queue`, which counts the end of a partition as a record. A partition that is paused
    /// there and resumed later would go on one record too far (librdkafka 2.12, `rd_kafka_q_serve_rkmessages`).
    pub fn take(&mut self, timeout: Duration, mut visit: impl FnMut(Fetched<'_>) -> ControlFlow<()>) {
        let client = self.consumer.client().native_ptr();
        let mut visit = |message: &rd_kafka_message_t| {
            if visit(Fetched(message)).is_break() {
                // SAFETY: the client is alive, and this code runs in one of its callbacks.
                unsafe { rd_kafka_yield(client) };
            }
        };
        let mut visit: &mut dyn FnMut(&rd_kafka_message_t) = &mut visit;
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue lives as long as `self`. librdkafka calls `on_message` only within this call, on this thread, and
        // with the visitor that `on_message` expects.
        unsafe {
            rd_kafka_consume_callback_queue(
                self.queue.as_ptr(),
                timeout,
                Some(on_message),
                (&raw mut visit).cast::<c_void>(),
            );
        }
    }
}

/// # Safety
/// `message` is valid. `visit` points to a `&mut dyn FnMut(&rd_kafka_message_t)` that no other code uses during the call.
unsafe extern "C" fn on_message(message: *mut rd_kafka_message_t, visit: *mut c_void) {
    // SAFETY: the caller promises both. librdkafka destroys the message after this call, and the visitor cannot keep it longer.
    unsafe { (*visit.cast::<&mut dyn FnMut(&rd_kafka_message_t)>())(&*message) }
}

impl<C: ConsumerContext + 'static> Drop for RecordQueue<C> {
    fn drop(&mut self) {
        self.destination.set(None);
        // SAFETY: no other code has the pointer now.
        unsafe { rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// A record, or the end or an error of a partition.
pub(super) struct Fetched<'a>(&'a rd_kafka_message_t);

impl<'a> Fetched<'a> {
    /// Returns the error code and librdkafka's text, or `None` for a record.
    pub fn error(&self) -> Option<(RDKafkaErrorCode, String)> {
        if self.0.err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        // SAFETY: a message with an error has a text, which ends with a zero byte and lives as long as the message.
        let text = unsafe { CStr::from_ptr(rd_kafka_message_errstr(self.0)) };
        Some((self.0.err.into(), text.to_string_lossy().into_owned()))
    }

    /// Returns the name of the topic, or an empty string if the message has no topic.
    pub fn topic(&self) -> &'a str {
        if self.0.rkt.is_null() {
            return "";
        }
        // SAFETY: the name of a topic ends with a zero byte and lives as long as the topic. The message holds a reference to
        // the topic.
        unsafe { CStr::from_ptr(rd_kafka_topic_name(self.0.rkt)) }.to_str().unwrap_or_default()
    }

    pub fn partition(&self) -> i32 {
        self.0.partition
    }

    /// Returns the offset of a record, or the position of an end.
    pub fn offset(&self) -> i64 {
        self.0.offset
    }

    /// Returns the leader epoch, which counts the partition's leaders up to the one that took the record. -1 if the broker does
    /// not report it.
    pub fn leader_epoch(&self) -> i32 {
        // SAFETY: the message is alive.
        unsafe { rd_kafka_message_leader_epoch(self.0) }
    }

    /// Returns the timestamp in milliseconds since 1970, or `None` for message formats before Kafka 0.10.
    pub fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive.
        let timestamp = unsafe { rd_kafka_message_timestamp(self.0, &raw mut kind) };
        (kind != rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && timestamp >= 0).then_some(timestamp)
    }

    pub fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka gives null or a pointer to `key_len` bytes, which live as long as the message.
        unsafe { bytes(self.0.key.cast(), self.0.key_len) }
    }

    pub fn payload(&self) -> Option<&'a [u8]> {
        // SAFETY: as for the key.
        unsafe { bytes(self.0.payload.cast(), self.0.len) }
    }
}

/// # Safety
/// `start` is null, or points to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(start: *const u8, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller promises that.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start, len) })
}
