//! Batches from librdkafka: partitions forwarded into one queue that is drained without waiting, topic ids, and
//! credentials that change while a client runs.
//!
//! Why not the safe crate alone: it hands over one message a call, which halves the throughput, and
//! `rd_kafka_consume_batch_queue` on the consumer's own queue would answer a rebalance with "assign nothing".

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as rd;

/// What librdkafka writes into the socket when the empty queue gets something.
const WAKE: &[u8; 1] = &[1];

/// A queue that partitions are forwarded into. It keeps its consumer alive.
pub struct BatchQueue<C: ConsumerContext + 'static> {
    queue: NonNull<rd::rd_kafka_queue_t>,
    messages: Vec<*mut rd::rd_kafka_message_t>,
    consumer: Arc<BaseConsumer<C>>,
    /// librdkafka writes to this descriptor for as long as the queue exists.
    _wake: UnixStream,
}

// SAFETY: the queue is reference-counted and locked by librdkafka, which allows its use from any thread; `messages` holds
// pointers only inside of `drain`.
unsafe impl<C: ConsumerContext + 'static> Send for BatchQueue<C> where Arc<BaseConsumer<C>>: Send {}

impl<C: ConsumerContext + 'static> BatchQueue<C> {
    /// A queue that hands over at most `capacity` messages a call, and a non-blocking socket that becomes readable when
    /// an empty queue gets something: drain the socket, then the queue until it is empty.
    pub fn new(consumer: Arc<BaseConsumer<C>>, capacity: usize) -> io::Result<(BatchQueue<C>, UnixStream)> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        // SAFETY: the client is alive, for `consumer` holds it.
        let queue = unsafe { rd::rd_kafka_queue_new(consumer.client().native_ptr()) };
        let queue = NonNull::new(queue).ok_or_else(|| io::Error::other("librdkafka gave no queue"))?;
        // SAFETY: the queue is alive; the payload is copied by the call; the descriptor outlives the queue, because
        // `drop` destroys the queue before the fields go.
        unsafe {
            rd::rd_kafka_queue_io_event_enable(
                queue.as_ptr(),
                wake.as_raw_fd(),
                WAKE.as_ptr().cast(),
                WAKE.len(),
            );
        }
        Ok((BatchQueue { queue, messages: vec![ptr::null_mut(); capacity], consumer, _wake: wake }, woken))
    }

    /// Messages of this partition come through this queue from now on. Call it when the partition is assigned, before it
    /// is fetched. False when librdkafka does not know the partition.
    pub fn forward(&self, topic: &str, partition: i32) -> bool {
        self.route(topic, partition, self.queue.as_ptr())
    }

    /// Messages of this partition come no longer through this queue; call it when the partition is revoked.
    pub fn unforward(&self, topic: &str, partition: i32) -> bool {
        self.route(topic, partition, ptr::null_mut())
    }

    fn route(&self, topic: &str, partition: i32, to: *mut rd::rd_kafka_queue_t) -> bool {
        let Ok(topic) = CString::new(topic) else { return false };
        let client = self.consumer.client().native_ptr();
        // SAFETY: the client is alive and `topic` is a C string for the time of the call.
        let from = unsafe { rd::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition) };
        let Some(from) = NonNull::new(from) else { return false };
        // SAFETY: both queues are alive, or `to` is null, which ends forwarding.
        unsafe { rd::rd_kafka_queue_forward(from.as_ptr(), to) };
        // SAFETY: `rd_kafka_queue_get_partition` gave a reference of its own, which nobody else gives back.
        unsafe { rd::rd_kafka_queue_destroy(from.as_ptr()) };
        true
    }

    /// Hands over what is there, in order within a partition, without waiting. Returns how many messages were visited;
    /// less than the capacity means that the queue was empty. Messages of revoked, paused or sought partitions that were
    /// fetched before are dropped by librdkafka.
    pub fn drain(&mut self, mut visit: impl FnMut(Message<'_>)) -> usize {
        // SAFETY: the queue is alive, and the array has room for as many pointers as it says.
        let count = unsafe {
            rd::rd_kafka_consume_batch_queue(
                self.queue.as_ptr(),
                0,
                self.messages.as_mut_ptr(),
                self.messages.len(),
            )
        };
        // A negative count is an error of the call itself, which leaves the array untouched.
        let count = usize::try_from(count).unwrap_or(0);
        for slot in &mut self.messages[..count] {
            let owned = Owned(std::mem::replace(slot, ptr::null_mut()));
            // SAFETY: librdkafka filled the first `count` entries with messages that are ours until destroyed, which
            // `owned` does only after the visit.
            if let Some(message) = unsafe { owned.0.as_ref() } {
                visit(Message(message));
            }
        }
        count
    }
}

impl<C: ConsumerContext + 'static> Drop for BatchQueue<C> {
    fn drop(&mut self) {
        // SAFETY: the descriptor -1 ends wake-ups, so that none is written after the socket is closed; the queue is alive.
        unsafe { rd::rd_kafka_queue_io_event_enable(self.queue.as_ptr(), -1, ptr::null(), 0) };
        // SAFETY: this reference was made by `rd_kafka_queue_new` and is given back once; partitions that are still
        // forwarded hold references of their own.
        unsafe { rd::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// A message to be destroyed.
struct Owned(*mut rd::rd_kafka_message_t);

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the message is ours and destroyed once.
            unsafe { rd::rd_kafka_message_destroy(self.0) };
        }
    }
}

/// A message, lent for one visit.
#[derive(Clone, Copy)]
pub struct Message<'a>(&'a rd::rd_kafka_message_t);

impl<'a> Message<'a> {
    /// An error of the partition in place of a record.
    pub fn error(&self) -> Option<RDKafkaErrorCode> {
        match self.0.err {
            rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => None,
            error => Some(error.into()),
        }
    }

    /// Name of the topic; empty for an error that concerns none.
    pub fn topic(&self) -> &'a str {
        if self.0.rkt.is_null() {
            return "";
        }
        // SAFETY: the message holds its topic alive.
        let name = unsafe { rd::rd_kafka_topic_name(self.0.rkt) };
        // SAFETY: the name is a C string that lives as long as the topic.
        unsafe { text(name) }
    }

    /// Equal for messages of the same partition within one call of `drain`; cheaper than comparing names.
    pub fn mark(&self) -> PartitionMark {
        PartitionMark(self.0.rkt as usize, self.0.partition)
    }

    /// Number of the partition.
    pub fn partition(&self) -> i32 {
        self.0.partition
    }

    /// Offset of the record.
    pub fn offset(&self) -> i64 {
        self.0.offset
    }

    /// Milliseconds since the Unix epoch; `None` where the record has no time.
    pub fn timestamp(&self) -> Option<i64> {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive, and `kind` is valid for writing.
        let time = unsafe { rd::rd_kafka_message_timestamp(self.0, &raw mut kind) };
        (kind != rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && time >= 0).then_some(time)
    }

    /// Key; `None` without one.
    pub fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka keeps `key_len` bytes there for as long as the message lives.
        unsafe { bytes(self.0.key.cast(), self.0.key_len) }
    }

    /// Payload; `None` for a tombstone.
    pub fn payload(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka keeps `len` bytes there for as long as the message lives.
        unsafe { bytes(self.0.payload.cast(), self.0.len) }
    }
}

/// Which partition a message is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionMark(usize, i32);

/// # Safety
/// `start` is null, or valid for `length` bytes during `'a`.
unsafe fn bytes<'a>(start: *const u8, length: usize) -> Option<&'a [u8]> {
    // SAFETY: promised by the caller.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start, length) })
}

/// # Safety
/// `start` is null, or a C string that lives during `'a`.
unsafe fn text<'a>(start: *const std::ffi::c_char) -> &'a str {
    if start.is_null() {
        return "";
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(start) }.to_str().unwrap_or("")
}

/// Gives a running client new SASL credentials for its next connections (`rd_kafka_sasl_set_credentials`).
pub fn set_sasl_credentials<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    user: &str,
    password: &str,
) -> Result<(), String> {
    let (user, password) = (CString::new(user), CString::new(password));
    let (Ok(user), Ok(password)) = (user, password) else {
        return Err("user name and password must not hold a zero byte".into());
    };
    let client = consumer.client().native_ptr();
    // SAFETY: the client is alive; both strings are copied by the call.
    let error = unsafe { rd::rd_kafka_sasl_set_credentials(client, user.as_ptr(), password.as_ptr()) };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the error is ours.
    let message = unsafe { rd::rd_kafka_error_string(error) };
    // SAFETY: the text lives as long as the error.
    let message = unsafe { text(message) }.to_owned();
    // SAFETY: ours, destroyed once, not used after.
    unsafe { rd::rd_kafka_error_destroy(error) };
    Err(message)
}

/// Ids of topics (KIP-516), which a topic of the same name made anew does not share. Blocks up to `timeout`. Topics that
/// do not exist, and all topics of a broker without ids, are absent.
pub fn topic_ids<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topics: &[String],
    timeout: Duration,
) -> Result<BTreeMap<String, String>, String> {
    topic_ids::describe(consumer.client().native_ptr(), topics, timeout)
}

mod topic_ids;
