//! Topics of a real broker full of numbered records, for the programs that measure and kill.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

/// Longest wait for the broker; it may just have been killed and started again.
const PATIENCE: Duration = Duration::from_mins(2);

/// Pause while the producer's queue is full.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// The payload of record `number`: its number, padded with dots to `size` bytes; the same as the generator's.
pub fn payload(number: u64, size: usize) -> String {
    format!("{number:.<size$}")
}

/// The number in a payload; `None` for anything else.
pub fn number(payload: &[u8]) -> Option<u64> {
    let end = payload.iter().position(|byte| *byte == b'.').unwrap_or(payload.len());
    std::str::from_utf8(&payload[..end]).ok()?.parse().ok()
}

/// Makes a topic and waits until the broker serves it.
///
/// # Errors
/// When the broker does not make it.
pub fn create(brokers: &str, topic: &str, partitions: i32) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let results = runtime.block_on(admin.create_topics([&new], &options))?;
    for result in results {
        result.map_err(|(name, code)| anyhow!("topic {name}: {code}"))?;
    }
    Ok(())
}

/// Writes numbered records, record n to partition n mod `partitions`.
pub struct Writer {
    producer: BaseProducer,
    topic: String,
    partitions: u64,
    size: usize,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Writer {
    /// A writer of records of `size` bytes. It outlives kills of the broker: nothing is lost and nothing written twice.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn new(brokers: &str, topic: &str, partitions: i32, size: usize) -> anyhow::Result<Writer> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", PATIENCE.as_millis().to_string())
            .set("linger.ms", "5")
            .set("batch.size", "1000000")
            .set("reconnect.backoff.max.ms", "1000")
            .create()?;
        Ok(Writer { producer, topic: topic.to_owned(), partitions: u64::try_from(partitions)?, size })
    }

    /// Hands records `numbers` to the client; waits only while its queue is full.
    ///
    /// # Errors
    /// When the client gives up.
    pub fn write(&self, numbers: std::ops::RangeInclusive<u64>) -> anyhow::Result<()> {
        for number in numbers {
            let text = payload(number, self.size);
            let mut record = BaseRecord::<(), str>::to(&self.topic)
                .partition(i32::try_from(number % self.partitions)?)
                .payload(&text);
            loop {
                match self.producer.send(record) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        record = back;
                        self.producer.poll(QUEUE_FULL);
                    }
                    Err((error, _)) => return Err(error).context("writing to Kafka"),
                }
            }
        }
        self.producer.poll(Duration::ZERO);
        Ok(())
    }

    /// Waits until the broker has everything.
    ///
    /// # Errors
    /// When it does not take it in time.
    pub fn finish(&self) -> anyhow::Result<()> {
        self.producer.flush(PATIENCE).context("the broker does not take what was written")
    }
}

/// Members of a consumer group, as the broker names them, and the state of the group. A rebalance that moves anything
/// shows in them.
///
/// # Errors
/// When the broker does not answer, or knows no such group.
pub fn members(brokers: &str, group: &str) -> anyhow::Result<(String, Vec<String>)> {
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let list = client.fetch_group_list(Some(group), Duration::from_secs(10))?;
    let found =
        list.groups().iter().find(|found| found.name() == group).context("the broker knows no such group")?;
    let mut members: Vec<String> = found.members().iter().map(|member| member.id().to_owned()).collect();
    members.sort();
    Ok((found.state().to_owned(), members))
}
