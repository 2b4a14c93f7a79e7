//! `rd_kafka_DescribeTopics`, as far as ids are concerned.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::ptr::NonNull;
use std::slice;
use std::time::Duration;

use rdkafka_sys as rd;

use super::text;

/// The id that brokers without ids report.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// Gives a native object back when it goes.
struct Guard<T>(NonNull<T>, unsafe extern "C" fn(*mut T));

impl<T> Guard<T> {
    fn new(object: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Guard<T>, String> {
        NonNull::new(object)
            .map(|object| Guard(object, destroy))
            .ok_or_else(|| "librdkafka gave nothing".into())
    }

    fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        // SAFETY: the object was made for this guard, which gives it back once, with the function that belongs to it.
        unsafe { (self.1)(self.0.as_ptr()) };
    }
}

pub(super) fn describe(
    client: *mut rd::rd_kafka_t,
    topics: &[String],
    timeout: Duration,
) -> Result<BTreeMap<String, String>, String> {
    let names: Vec<CString> = topics.iter().filter_map(|topic| CString::new(topic.as_str()).ok()).collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: the array holds as many C strings as it says, alive for the time of the call, which copies them.
    let collection =
        unsafe { rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
    let collection = Guard::new(collection, rd::rd_kafka_TopicCollection_destroy)?;
    let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: the caller's client is alive.
    let options = unsafe { rd::rd_kafka_AdminOptions_new(client, operation) };
    let options = Guard::new(options, rd::rd_kafka_AdminOptions_destroy)?;
    // SAFETY: the caller's client is alive.
    let queue = unsafe { rd::rd_kafka_queue_new(client) };
    let queue = Guard::new(queue, rd::rd_kafka_queue_destroy)?;
    // SAFETY: all four are alive; the call copies what it needs.
    unsafe { rd::rd_kafka_DescribeTopics(client, collection.get(), options.get(), queue.get()) };
    let millis = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the queue is alive.
    let event = unsafe { rd::rd_kafka_queue_poll(queue.get(), millis) };
    let event = Guard::new(event, rd::rd_kafka_event_destroy).map_err(|_| "no answer in time".to_owned())?;
    // SAFETY: the event is alive.
    let error = unsafe { rd::rd_kafka_event_error(event.get()) };
    if error != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        // SAFETY: the event is alive.
        let message = unsafe { rd::rd_kafka_event_error_string(event.get()) };
        // SAFETY: the text lives as long as the event.
        return Err(unsafe { text(message) }.to_owned());
    }
    // SAFETY: the event is alive; null is returned for an event of another kind.
    let result = unsafe { rd::rd_kafka_event_DescribeTopics_result(event.get()) };
    let result = NonNull::new(result.cast_mut()).ok_or("an answer of another kind")?;
    let mut count = 0;
    // SAFETY: the result lives as long as the event, and `count` is valid for writing.
    let described = unsafe { rd::rd_kafka_DescribeTopics_result_topics(result.as_ptr(), &raw mut count) };
    if described.is_null() || count == 0 {
        return Ok(BTreeMap::new());
    }
    // SAFETY: librdkafka returned `count` pointers there, which live as long as the event.
    let described = unsafe { slice::from_raw_parts(described, count) };
    Ok(described.iter().filter_map(|topic| id(*topic)).collect())
}

/// Name and id of one topic; `None` for one that does not exist or has no id. The topic is alive.
fn id(topic: *const rd::rd_kafka_TopicDescription_t) -> Option<(String, String)> {
    // SAFETY: the caller's topic is alive, and its parts as long as it.
    let error = unsafe { rd::rd_kafka_TopicDescription_error(topic) };
    // SAFETY: null or alive; the code of null is "no error".
    if unsafe { rd::rd_kafka_error_code(error) } != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return None;
    }
    // SAFETY: as above.
    let name = unsafe { rd::rd_kafka_TopicDescription_name(topic) };
    // SAFETY: as above.
    let uuid = unsafe { rd::rd_kafka_TopicDescription_topic_id(topic) };
    if uuid.is_null() {
        return None;
    }
    // SAFETY: as above.
    let encoded = unsafe { rd::rd_kafka_Uuid_base64str(uuid) };
    // SAFETY: a C string that lives as long as the topic.
    let name = unsafe { text(name) };
    // SAFETY: as above.
    let id = unsafe { text(encoded) };
    (!id.is_empty() && id != NO_ID).then(|| (name.to_owned(), id.to_owned()))
}
