//! A Kafka double: the broker inside of librdkafka, in a thread of its own, and what tests do to it.
//!
//! It knows groups, offsets with notes and topic ids; it knows no static members, no authentication, no transactions, no
//! timestamps to look for: those are tested at the real server.

use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use connector_crds::systems::kafka::{Compression, KafkaSink, KafkaSource, Partitioner, StartPosition};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::{ClientConfig, message::ToBytes};
use rdkafka::{Offset, TopicPartitionList};

/// The double.
pub type Broker = MockCluster<'static, DefaultProducerContext>;

type Call = Box<dyn FnOnce(&Broker) + Send>;

/// Longest wait for the double.
const PATIENCE: Duration = Duration::from_secs(20);

/// One broker, as long as it lives.
#[derive(Debug)]
pub struct FakeKafka {
    calls: Sender<Call>,
    servers: String,
}

impl FakeKafka {
    /// A broker with one topic of so many partitions.
    pub fn start(topic: &str, partitions: i32) -> FakeKafka {
        let (calls, inbox) = channel::<Call>();
        let (tell, told) = channel();
        thread::spawn(move || {
            // The handle must stay in the thread that made it.
            let broker = MockCluster::new(1).expect("a broker");
            tell.send(broker.bootstrap_servers()).expect("somebody waits");
            for call in inbox {
                call(&broker);
            }
        });
        let servers = told.recv().expect("the address");
        let kafka = FakeKafka { calls, servers };
        kafka.create_topic(topic, partitions);
        kafka
    }

    /// Does something at the broker.
    pub fn at<R: Send + 'static>(&self, act: impl FnOnce(&Broker) -> R + Send + 'static) -> R {
        let (tell, told) = channel();
        let call = move |broker: &Broker| {
            let _ = tell.send(act(broker));
        };
        self.calls.send(Box::new(call)).expect("the broker lives");
        told.recv().expect("an answer")
    }

    /// Makes a topic.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        let topic = topic.to_owned();
        self.at(move |broker| broker.create_topic(&topic, partitions, 1)).expect("a topic");
    }

    /// Stops answering; connections are closed, data stay.
    pub fn down(&self) {
        self.at(|broker| broker.broker_down(1)).expect("down");
    }

    /// Answers again.
    pub fn up(&self) {
        self.at(|broker| broker.broker_up(1)).expect("up");
    }

    /// Address for clients.
    pub fn servers(&self) -> &str {
        &self.servers
    }

    /// A source of one topic from its beginning.
    pub fn spec(&self, topic: &str) -> KafkaSource {
        KafkaSource {
            bootstrap_servers: vec![self.servers.clone()],
            topics: vec![topic.to_owned()],
            topic_pattern: None,
            group: None,
            start_position: StartPosition::default(),
            tls: None,
            sasl: None,
        }
    }

    /// A sink to a topic, without transactions.
    pub fn sink_spec(&self, topic: &str) -> KafkaSink {
        KafkaSink {
            bootstrap_servers: vec![self.servers.clone()],
            topic: topic.to_owned(),
            key: None,
            partitioner: Partitioner::default(),
            compression: Compression::default(),
            exactly_once: false,
            tls: None,
            sasl: None,
        }
    }

    /// Writes records, each to the partition that it names, and returns when the broker has them.
    pub fn produce<'a>(&self, topic: &str, records: impl IntoIterator<Item = (i32, Option<&'a [u8]>)>) {
        produce(&ClientConfig::new().set("bootstrap.servers", &self.servers).clone(), topic, records);
    }
}

/// Writes records (partition and payload, `None` for a tombstone) and returns when the broker has them.
pub fn produce<'a>(
    config: &ClientConfig,
    topic: &str,
    records: impl IntoIterator<Item = (i32, Option<&'a [u8]>)>,
) {
    let producer: BaseProducer = config.create().expect("a producer");
    for (partition, payload) in records {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition);
        if let Some(payload) = payload {
            record = record.payload(payload.to_bytes());
        }
        while let Err((error, again)) = producer.send(record) {
            let full = error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull);
            assert!(full, "{error}");
            producer.poll(Duration::from_millis(10));
            record = again;
        }
    }
    producer.flush(PATIENCE).expect("the broker takes the records");
}

/// One record as a reader finds it: partition, key, value.
pub type Read = (i32, Option<Vec<u8>>, Vec<u8>);

/// Reads a topic from its beginning, committed records alone, until `count` are there or nothing came for `patience`; of each
/// partition in order.
pub fn consume(config: &ClientConfig, topic: &str, count: usize, patience: Duration) -> Vec<Read> {
    let consumer: BaseConsumer = config
        .clone()
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("the topic");
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("an assignment");
    let mut found = Vec::new();
    let mut quiet_since = std::time::Instant::now();
    while found.len() < count && quiet_since.elapsed() < patience {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
            quiet_since = std::time::Instant::now();
            let (key, value) = (message.key().map(<[u8]>::to_vec), message.payload().unwrap_or_default());
            found.push((message.partition(), key, value.to_vec()));
        }
    }
    found
}
