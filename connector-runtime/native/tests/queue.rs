//! The queue against a broker inside of librdkafka. Runs under valgrind too: `./tasks valgrind`.

#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connector_native::kafka::{BatchQueue, set_sasl_credentials, topic_ids};
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// Long enough for valgrind on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

const TOPIC: &str = "numbers";

fn broker(partitions: i32) -> MockCluster<'static, DefaultProducerContext> {
    let broker = MockCluster::new(1).unwrap();
    broker.create_topic(TOPIC, partitions, 1).unwrap();
    broker
}

fn consumer(broker: &MockCluster<'static, DefaultProducerContext>) -> Arc<BaseConsumer> {
    let config = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap_servers())
        .set("group.id", "test")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    Arc::new(config)
}

/// Writes records number `from..to`, with a key and a time, a tombstone for each tenth, to partition n mod `partitions`.
fn produce(
    broker: &MockCluster<'static, DefaultProducerContext>,
    numbers: std::ops::Range<i64>,
    partitions: i32,
) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", broker.bootstrap_servers()).create().unwrap();
    for number in numbers {
        let (key, payload) = (format!("key {number}"), format!("payload {number}"));
        let partition = i32::try_from(number).unwrap() % partitions;
        let record = BaseRecord::to(TOPIC).key(&key).partition(partition).timestamp(1_000 + number);
        let record = if number % 10 == 9 { record } else { record.payload(&payload) };
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

fn partitions(count: i32, offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition_offset(TOPIC, partition, offset).unwrap();
    }
    list
}

/// Partition, offset, time, key, payload.
type Copied = (i32, i64, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>);

/// Drains until `count` messages are there; waits only for the socket.
fn read(
    queue: &mut BatchQueue<DefaultConsumerContext>,
    woken: &mut std::os::unix::net::UnixStream,
    count: usize,
) -> Vec<Copied> {
    let mut all = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    woken.set_nonblocking(false).unwrap();
    woken.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    while all.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} came", all.len());
        let drained = queue.drain(7, |message| {
            assert_eq!((message.error(), message.topic()), (None, TOPIC));
            let (partition, offset) = message.place();
            all.push((
                partition,
                offset,
                message.timestamp(),
                message.key().map(<[u8]>::to_vec),
                message.payload().map(<[u8]>::to_vec),
            ));
        });
        assert!(drained <= 7);
        if drained < 7 && all.len() < count {
            // A wake-up may be one that this drain has answered already: then it times out, and the queue is looked at.
            let _ = woken.read(&mut [0; 64]);
        }
    }
    all
}

#[test]
fn records_of_all_partitions_come_through_one_queue_in_order_and_wake_the_socket() {
    let broker = broker(2);
    let consumer = consumer(&broker);
    let (mut queue, mut woken) = BatchQueue::new(consumer.clone(), 64).unwrap();
    consumer.assign(&partitions(2, Offset::Beginning)).unwrap();
    assert!(queue.forward(TOPIC, 0, true) && queue.forward(TOPIC, 1, true));
    produce(&broker, 0..40, 2);
    let all = read(&mut queue, &mut woken, 40);
    for partition in 0..2 {
        let of_one: Vec<_> = all.iter().filter(|record| record.0 == partition).collect();
        assert_eq!(of_one.len(), 20);
        for (record, offset) in of_one.iter().zip(0..) {
            let number = 2 * offset + i64::from(partition);
            assert_eq!((record.1, record.2), (offset, Some(1_000 + number)));
            assert_eq!(record.3, Some(format!("key {number}").into_bytes()));
            let payload = (number % 10 != 9).then(|| format!("payload {number}").into_bytes());
            assert_eq!(record.4, payload);
        }
    }
    assert!(consumer.poll(Duration::ZERO).is_none(), "a record came through the consumer's own queue");
}

#[test]
fn what_was_fetched_before_a_seek_or_a_pause_does_not_come_after_it() {
    let broker = broker(1);
    produce(&broker, 0..100, 1);
    let consumer = consumer(&broker);
    let (mut queue, mut woken) = BatchQueue::new(consumer.clone(), 64).unwrap();
    consumer.assign(&partitions(1, Offset::Beginning)).unwrap();
    queue.forward(TOPIC, 0, true);
    assert!(read(&mut queue, &mut woken, 30).last().unwrap().1 < 90);
    consumer.seek(TOPIC, 0, Offset::Offset(90), PATIENCE).unwrap();
    assert_eq!(read(&mut queue, &mut woken, 1)[0].1, 90);
    consumer.pause(&partitions(1, Offset::Invalid)).unwrap();
    assert_eq!(queue.drain(64, |message| panic!("{:?}", message.place())), 0);
    consumer.resume(&partitions(1, Offset::Invalid)).unwrap();
    let rest = read(&mut queue, &mut woken, 3);
    assert!(rest[0].1 >= 91 && rest[0].1 <= 97, "went on at {}", rest[0].1);
}

#[test]
fn the_queue_may_go_first_with_partitions_forwarded_and_messages_in_it() {
    let broker = broker(1);
    produce(&broker, 0..100, 1);
    let consumer = consumer(&broker);
    let (mut queue, mut woken) = BatchQueue::new(consumer.clone(), 64).unwrap();
    consumer.assign(&partitions(1, Offset::Beginning)).unwrap();
    queue.forward(TOPIC, 0, true);
    read(&mut queue, &mut woken, 1);
    drop((queue, woken));
    produce(&broker, 100..110, 1);
    let (mut second, mut woken) = BatchQueue::new(consumer.clone(), 64).unwrap();
    second.forward(TOPIC, 0, true);
    consumer.seek(TOPIC, 0, Offset::Offset(105), PATIENCE).unwrap();
    assert_eq!(read(&mut second, &mut woken, 5)[0].1, 105);
    assert!(second.forward(TOPIC, 0, false));
    // The queue holds the client: it may be the last to go.
    drop(consumer);
    drop(second);
}

#[test]
fn a_topic_has_an_id_and_a_missing_one_has_none() {
    let broker = broker(1);
    broker.create_topic("other", 1, 1).unwrap();
    let consumer = consumer(&broker);
    let names = [TOPIC.to_owned(), "other".to_owned(), "missing".to_owned()];
    let ids = topic_ids(&consumer, 1, &names, PATIENCE).unwrap();
    assert_eq!(ids.keys().collect::<Vec<_>>(), ["numbers", "other"]);
    assert_eq!(ids[TOPIC].len(), 22);
    assert_ne!(ids[TOPIC], ids["other"]);
    assert!(topic_ids(&consumer, 1, &["zero\0byte".to_owned()], PATIENCE).is_err());
    broker.broker_down(1).unwrap();
    assert!(topic_ids(&consumer, 1, &names, Duration::from_millis(50)).is_err());
}

#[test]
fn credentials_need_a_client_that_uses_them() {
    let broker = broker(1);
    let plain = consumer(&broker);
    assert!(set_sasl_credentials(&plain, "zero\0byte", "secret").is_err());
    let sasl: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap_servers())
        .set("group.id", "test")
        .set("security.protocol", "sasl_plaintext")
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", "user")
        .set("sasl.password", "old")
        .create()
        .unwrap();
    set_sasl_credentials(&sasl, "user", "new").unwrap();
}
