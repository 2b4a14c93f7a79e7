//! Batches from librdkafka: partitions forwarded into one queue that is drained without waiting; topic ids; credentials
//! that change while a client runs. The safe crate hands over one message a call, which halves the throughput, and
//! `rd_kafka_consume_batch_queue` on the consumer's own queue would answer a rebalance with "assign nothing".

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;
use std::{io, slice};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as rd;

/// A native object that is ours: given back once, when this goes.
struct Owned<T>(NonNull<T>, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    /// # Safety
    /// `object` is null, or a reference that nobody else gives back and that `destroy` gives back.
    unsafe fn new(object: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> io::Result<Owned<T>> {
        NonNull::new(object)
            .map(|object| Owned(object, destroy))
            .ok_or_else(|| io::Error::other("librdkafka gave nothing"))
    }

    fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: promised where it was made; this is the only place that gives it back.
        unsafe { (self.1)(self.0.as_ptr()) };
    }
}

/// A queue that partitions are forwarded into. It keeps its consumer alive.
pub struct BatchQueue<C: ConsumerContext + 'static> {
    // Fields go in this order: the queue before the socket that it writes to, and before its client.
    queue: Owned<rd::rd_kafka_queue_t>,
    messages: Vec<*mut rd::rd_kafka_message_t>,
    _wake: UnixStream,
    consumer: Arc<BaseConsumer<C>>,
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
        // SAFETY: `rd_kafka_queue_new` gave us this reference, and `rd_kafka_queue_destroy` gives it back.
        let queue = unsafe { Owned::new(queue, rd::rd_kafka_queue_destroy) }?;
        let (fd, byte) = (wake.as_raw_fd(), [1_u8]);
        // SAFETY: the queue is alive; the payload is copied by the call; `drop` ends wake-ups before the socket closes.
        unsafe { rd::rd_kafka_queue_io_event_enable(queue.get(), fd, byte.as_ptr().cast(), 1) };
        Ok((BatchQueue { queue, messages: vec![ptr::null_mut(); capacity], _wake: wake, consumer }, woken))
    }

    /// From now on messages of this partition come through this queue (`here`: call it when the partition is assigned, before
    /// it is fetched) or no longer (call it before the partition is given back). False when librdkafka does not know it.
    pub fn forward(&self, topic: &str, partition: i32, here: bool) -> bool {
        let to = if here { self.queue.get() } else { ptr::null_mut() };
        let Ok(topic) = CString::new(topic) else { return false };
        let client = self.consumer.client().native_ptr();
        // SAFETY: the client is alive and `topic` is a C string for the time of the call.
        let from = unsafe { rd::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition) };
        // SAFETY: `rd_kafka_queue_get_partition` gave us this reference, and `rd_kafka_queue_destroy` gives it back.
        let Ok(from) = (unsafe { Owned::new(from, rd::rd_kafka_queue_destroy) }) else { return false };
        // SAFETY: both queues are alive, or `to` is null, which ends forwarding.
        unsafe { rd::rd_kafka_queue_forward(from.get(), to) };
        true
    }

    /// Hands over what is there, `most` messages at most, in order within a partition, without waiting. Returns how many
    /// were visited; less than asked for (and than the capacity) means that the queue was empty. What was fetched of a
    /// partition before it was revoked, paused or sought is dropped by librdkafka.
    pub fn drain(&mut self, most: usize, mut visit: impl FnMut(Message<'_>)) -> usize {
        let (room, array) = (most.min(self.messages.len()), self.messages.as_mut_ptr());
        // SAFETY: the queue is alive, and the array has room for as many pointers as the call is told.
        let count = unsafe { rd::rd_kafka_consume_batch_queue(self.queue.get(), 0, array, room) };
        // A negative count is an error of the call itself, which leaves the array untouched.
        let count = usize::try_from(count).unwrap_or(0);
        for slot in &mut self.messages[..count] {
            let message = std::mem::replace(slot, ptr::null_mut());
            // SAFETY: librdkafka filled the first `count` entries with messages that are ours until destroyed.
            let Ok(message) = (unsafe { Owned::new(message, rd::rd_kafka_message_destroy) }) else {
                continue;
            };
            // SAFETY: the message is alive until the end of this turn, longer than the visit.
            visit(Message(unsafe { message.0.as_ref() }));
        }
        count
    }
}

impl<C: ConsumerContext + 'static> Drop for BatchQueue<C> {
    fn drop(&mut self) {
        // SAFETY: the queue is alive; the descriptor -1 ends wake-ups, so that none is written once the socket is closed.
        // Partitions that are still forwarded keep the queue, silent, until they go.
        unsafe { rd::rd_kafka_queue_io_event_enable(self.queue.get(), -1, ptr::null(), 0) };
    }
}

/// A message, lent for one visit.
#[derive(Clone, Copy)]
pub struct Message<'a>(&'a rd::rd_kafka_message_t);

impl<'a> Message<'a> {
    /// An error of the partition in place of a record.
    pub fn error(&self) -> Option<RDKafkaErrorCode> {
        let none = self.0.err == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        (!none).then(|| self.0.err.into())
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

    /// Number of the partition, and offset of the record in it.
    pub fn place(&self) -> (i32, i64) {
        (self.0.partition, self.0.offset)
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
        (!self.0.key.is_null()).then(|| unsafe { slice::from_raw_parts(self.0.key.cast(), self.0.key_len) })
    }

    /// Payload; `None` for a tombstone.
    pub fn payload(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka keeps `len` bytes there for as long as the message lives.
        (!self.0.payload.is_null())
            .then(|| unsafe { slice::from_raw_parts(self.0.payload.cast(), self.0.len) })
    }
}

/// Which partition a message is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionMark(usize, i32);

/// # Safety
/// `start` is null, or a C string that lives during `'a`.
unsafe fn text<'a>(start: *const c_char) -> &'a str {
    // SAFETY: promised by the caller.
    if start.is_null() { "" } else { unsafe { CStr::from_ptr(start) }.to_str().unwrap_or("") }
}

/// Gives a running client new SASL credentials for its next connections (`rd_kafka_sasl_set_credentials`).
/// Fails for a zero byte in either, and for a client without SASL.
pub fn set_sasl_credentials<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    user: &str,
    password: &str,
) -> io::Result<()> {
    let (user, password) = (CString::new(user)?, CString::new(password)?);
    let client = consumer.client().native_ptr();
    // SAFETY: the client is alive; both strings are copied by the call.
    let error = unsafe { rd::rd_kafka_sasl_set_credentials(client, user.as_ptr(), password.as_ptr()) };
    // SAFETY: the error, if there is one, is ours, and `rd_kafka_error_destroy` gives it back.
    let Ok(error) = (unsafe { Owned::new(error, rd::rd_kafka_error_destroy) }) else { return Ok(()) };
    // SAFETY: the error is alive.
    let message = unsafe { rd::rd_kafka_error_string(error.get()) };
    // SAFETY: the text lives as long as the error.
    Err(io::Error::other(unsafe { text(message) }))
}

/// Ids of topics (KIP-516), which a topic of the same name made anew does not share, asked of one `broker`. Blocks up to
/// `timeout`. Topics that do not exist, and all topics of a broker without ids, are absent.
pub fn topic_ids<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    broker: i32,
    topics: &[String],
    timeout: Duration,
) -> io::Result<BTreeMap<String, String>> {
    let client = consumer.client().native_ptr();
    let names = topics.iter().map(|topic| CString::new(topic.as_str())).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let (list, count) = (pointers.as_mut_ptr(), pointers.len());
    // SAFETY: the list holds `count` C strings, alive for the time of the call, which copies them.
    let collection = unsafe { rd::rd_kafka_TopicCollection_of_topic_names(list, count) };
    // SAFETY: the collection is ours, and this function gives it back.
    let collection = unsafe { Owned::new(collection, rd::rd_kafka_TopicCollection_destroy) }?;
    // SAFETY: the client is alive.
    let queue = unsafe { rd::rd_kafka_queue_new(client) };
    // SAFETY: the queue is ours, and this function gives it back.
    let queue = unsafe { Owned::new(queue, rd::rd_kafka_queue_destroy) }?;
    // SAFETY: the client is alive.
    let options = unsafe {
        rd::rd_kafka_AdminOptions_new(client, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS)
    };
    // SAFETY: the options are ours, and this function gives them back.
    let options = unsafe { Owned::new(options, rd::rd_kafka_AdminOptions_destroy) }?;
    // SAFETY: the options are alive; no text is asked for. It fails for no number of a broker; then any is asked.
    unsafe { rd::rd_kafka_AdminOptions_set_broker(options.get(), broker, ptr::null_mut(), 0) };
    // SAFETY: all are alive; the call copies what it needs.
    unsafe { rd::rd_kafka_DescribeTopics(client, collection.get(), options.get(), queue.get()) };
    // SAFETY: the queue is alive.
    let event =
        unsafe { rd::rd_kafka_queue_poll(queue.get(), timeout.as_millis().try_into().unwrap_or(i32::MAX)) };
    // SAFETY: the event, if one came in time, is ours, and this function gives it back.
    let event =
        unsafe { Owned::new(event, rd::rd_kafka_event_destroy) }.map_err(|_| io::ErrorKind::TimedOut)?;
    // SAFETY: the event is alive.
    if unsafe { rd::rd_kafka_event_error(event.get()) } != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
    {
        // SAFETY: the event is alive.
        let message = unsafe { rd::rd_kafka_event_error_string(event.get()) };
        // SAFETY: the text lives as long as the event.
        return Err(io::Error::other(unsafe { text(message) }));
    }
    let mut count = 0;
    // SAFETY: the event is alive; null is returned for one of another kind.
    let result = unsafe { rd::rd_kafka_event_DescribeTopics_result(event.get()) };
    if result.is_null() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the result lives as long as the event, and `count` is valid for writing.
    let topics = unsafe { rd::rd_kafka_DescribeTopics_result_topics(result, &raw mut count) };
    // SAFETY: librdkafka returned `count` pointers there (not null when there is one), which live as long as the event.
    let topics = if count == 0 { &[] } else { unsafe { slice::from_raw_parts(topics, count) } };
    // SAFETY: each topic lives as long as the event, longer than this call.
    Ok(topics.iter().filter_map(|topic| unsafe { name_and_id(*topic) }).collect())
}

/// Name and id of one topic; `None` for one that does not exist or has no id.
///
/// # Safety
/// `topic` is alive during the call.
unsafe fn name_and_id(topic: *const rd::rd_kafka_TopicDescription_t) -> Option<(String, String)> {
    // SAFETY: the topic is alive.
    let uuid = unsafe { rd::rd_kafka_TopicDescription_topic_id(topic) };
    if uuid.is_null() {
        return None;
    }
    // SAFETY: the id is a part of the topic.
    let encoded = unsafe { rd::rd_kafka_Uuid_base64str(uuid) };
    // SAFETY: the text lives as long as the id.
    let id = unsafe { text(encoded) };
    // SAFETY: the topic is alive.
    let name = unsafe { rd::rd_kafka_TopicDescription_name(topic) };
    // SAFETY: the name lives as long as the topic.
    let name = unsafe { text(name) };
    // Brokers without topic ids report zeros.
    (id.bytes().any(|byte| byte != b'A')).then(|| (name.to_owned(), id.to_owned()))
}
