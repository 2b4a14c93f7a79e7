//! A Kafka source whose brokers refuse, are silent, far away or faster than Wallaroo, against the broker inside of librdkafka.
//! What goes well is in `kafka_streams.rs`.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use connector_crds::{InFlight, SourceSpec};
use connector_runtime::connectors::{Context, kafka::KafkaSource};
use connector_runtime::source::{BadRecord, ResumeFrom, Source, SourceEvent};
use connector_tests::conformance::World;
use connector_tests::fake_kafka::{FakeKafka, produce};
use connector_tests::source_driver::Driver;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::{Instant, sleep, timeout};

const TOPIC: &str = "t";

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn member(broker: &FakeKafka, context: &Context, host: &str) -> Driver {
    Driver::of(Box::new(KafkaSource::on_host(&broker.spec(TOPIC), context, host)))
}

fn driver(broker: &FakeKafka, world: &World) -> Driver {
    Driver::new(&SourceSpec::Kafka(broker.spec(TOPIC)), world.context())
}

fn config(broker: &FakeKafka) -> ClientConfig {
    ClientConfig::new().set("bootstrap.servers", broker.servers()).clone()
}

/// Writes numbers to partition number mod `partitions`.
fn numbers(broker: &FakeKafka, numbers: std::ops::Range<i32>, partitions: i32) {
    let texts: Vec<(i32, String)> = numbers.map(|n| (n % partitions, format!("{n:07}"))).collect();
    let records = texts.iter().map(|(partition, text)| (*partition, Some(text.as_bytes())));
    produce(&config(broker), TOPIC, records);
}

fn expected(numbers: std::ops::Range<i32>) -> Vec<String> {
    numbers.map(|n| format!("{n:07}")).collect()
}

/// What the group of [`World::context`] has committed of a partition.
fn committed(broker: &FakeKafka, partition: i32) -> Option<i64> {
    let mut config = config(broker);
    let consumer: BaseConsumer = config.set("group.id", "tests.conformance").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition(TOPIC, partition);
    let committed = consumer.committed_offsets(list, PATIENCE).unwrap();
    match committed.elements()[0].offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_acknowledged_position_is_the_offset_that_the_group_commits_also_when_it_refuses_at_first() {
    let (broker, world) = (FakeKafka::start(TOPIC, 1), World::new());
    numbers(&broker, 0..10, 1);
    let mut driver = driver(&broker, &world);
    driver.until("all", |driver| driver.total == 10).await;
    let (key, stream) = driver.streams.iter().next().unwrap();
    assert_eq!((stream.last, driver.records[0].1), (10, 1), "position is offset + 1");
    broker.at(|broker| {
        let no = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 2];
        broker.request_errors(RDKafkaApiKey::OffsetCommit, &no);
    });
    driver.source.commit(&[(*key, 7)]).await.unwrap();
    driver.close().await;
    assert_eq!(committed(&broker, 0), Some(7));
}

/// Wallaroo is slower than the broker: there is always a next batch.
#[tokio::test(flavor = "multi_thread")]
async fn commits_go_through_while_records_never_cease() {
    const ALL: usize = 60_000;
    let (broker, world) = (FakeKafka::start(TOPIC, 1), World::new());
    numbers(&broker, 0..60_000, 1);
    let mut context = world.context();
    context.in_flight = InFlight { records: 500, bytes: 1_048_576 };
    let mut driver = member(&broker, &context, "pod-0");
    driver.keep = false;
    while driver.total < ALL / 2 {
        timeout(PATIENCE, driver.step()).await.unwrap();
        driver.commit().await;
        sleep(Duration::from_millis(2)).await;
    }
    let committed = committed(&broker, 0).unwrap_or(0);
    assert!(committed > 15_000, "{} records came, {committed} are committed", driver.total);
    driver.close().await;
}

/// The same for a partition that is asked for while another one is read without a pause.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_resumes_while_records_of_another_never_cease() {
    let (broker, world) = (FakeKafka::start(TOPIC, 2), World::new());
    produce(&config(&broker), TOPIC, (0..60_000).map(|_| (0, Some(&b"of the first"[..]))));
    produce(&config(&broker), TOPIC, [(1, Some(&b"of the second"[..]))]);
    let mut context = world.context();
    context.in_flight = InFlight { records: 500, bytes: 1_048_576 };
    let mut source = KafkaSource::on_host(&broker.spec(TOPIC), &context, "pod-0");
    let (mut second, mut records) = (None, 0);
    let mut resumed = false;
    loop {
        match timeout(PATIENCE, source.next()).await.unwrap().unwrap() {
            SourceEvent::Opened { stream, name, .. } if name.ends_with("/0") => {
                source.resume(stream, ResumeFrom::Committed).await.unwrap();
            }
            SourceEvent::Opened { stream, .. } => second = Some(stream),
            SourceEvent::Batch { stream, .. } if Some(stream) == second => break,
            SourceEvent::Batch { batch, .. } => {
                records += batch.len();
                sleep(Duration::from_millis(2)).await;
                if let Some(second) = second
                    && !resumed
                    && records > 2_000
                {
                    source.resume(second, ResumeFrom::Committed).await.unwrap();
                    resumed = true;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(records < 50_000, "only after {records} records of the first");
    source.close(Instant::now() + PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_fails_is_asked_again() {
    let (broker, world) = (FakeKafka::start(TOPIC, 2), World::new());
    numbers(&broker, 0..10, 2);
    broker.at(|broker| {
        let no = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED];
        broker.request_errors(RDKafkaApiKey::OffsetFetch, &no);
        let no = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED];
        broker.request_errors(RDKafkaApiKey::ListOffsets, &no);
    });
    let mut driver = driver(&broker, &world);
    driver.until("all", |driver| driver.total == 10).await;
    assert_eq!(driver.payloads(), expected(0..10));
    driver.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_leader_holds_back_no_other_and_comes_when_it_has_one() {
    let (broker, world) = (FakeKafka::start(TOPIC, 3), World::new());
    numbers(&broker, 0..9, 3);
    broker.at(|broker| broker.partition_leader(TOPIC, 1, None)).unwrap();
    let mut driver = driver(&broker, &world);
    driver.until("the others", |driver| driver.total == 6).await;
    broker.at(|broker| broker.partition_leader(TOPIC, 1, Some(1))).unwrap();
    driver.until("all", |driver| driver.total == 9).await;
    assert_eq!(driver.payloads(), expected(0..9));
    driver.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_and_time_are_carried_and_what_wallaroo_cannot_carry_is_bad_and_said_in_its_place() {
    let (broker, world) = (FakeKafka::start(TOPIC, 1), World::new());
    let producer: BaseProducer = config(&broker).create().unwrap();
    let record = BaseRecord::to(TOPIC).partition(0).key("the key").payload("a").timestamp(1_234);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
    let rest = [(0, None), (0, Some(&b""[..])), (0, Some(&[0; 100])), (0, Some(b"b"))];
    produce(&config(&broker), TOPIC, rest);
    let mut context = world.context();
    context.max_payload_bytes = 99;
    let mut source = KafkaSource::on_host(&broker.spec(TOPIC), &context, "pod-0");
    let mut seen = Vec::new();
    while seen.len() < 5 {
        match timeout(PATIENCE, source.next()).await.unwrap().unwrap() {
            SourceEvent::Opened { stream, .. } => {
                source.resume(stream, ResumeFrom::Committed).await.unwrap();
            }
            SourceEvent::Batch { batch, .. } => {
                for record in batch.iter() {
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    if record.position == 1 {
                        assert_eq!(record.time, 1_234);
                    }
                    seen.push((record.position, format!("{}={}", text(record.key), text(record.payload))));
                }
            }
            SourceEvent::BadRecord { position, reason, .. } => seen.push((position, reason.to_string())),
            other => panic!("{other:?}"),
        }
    }
    let expected = [
        (1, "the key=a".to_owned()),
        (2, "record is a tombstone (it has no value), which Wallaroo cannot carry".to_owned()),
        (3, BadRecord::Empty.to_string()),
        (4, BadRecord::TooLarge { bytes: 100, limit: 99 }.to_string()),
        (5, "=b".to_owned()),
    ];
    assert_eq!(seen, expected);
    source.close(Instant::now() + PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_far_away_fails_no_check() {
    let (broker, world) = (FakeKafka::start(TOPIC, 1), World::new());
    broker.at(|broker| broker.broker_round_trip_time(1, Duration::from_millis(250))).unwrap();
    driver(&broker, &world).source.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_before_a_broker_went_does_not_come_again_when_it_is_back() {
    let (broker, world) = (FakeKafka::start(TOPIC, 2), World::new());
    numbers(&broker, 0..100, 2);
    let mut driver = driver(&broker, &world);
    driver.until("all", |driver| driver.total == 100).await;
    broker.down();
    driver.until("the outage is said", |driver| !driver.errors.is_empty()).await;
    assert!(driver.errors[0].to_string().contains(broker.servers()), "{}", driver.errors[0]);
    broker.up();
    numbers(&broker, 100..200, 2);
    driver.until("the rest", |driver| driver.total == 200).await;
    assert_eq!(driver.payloads(), expected(0..200));
    driver.close().await;
}

/// librdkafka gives such a partition up: a new client reads on, which at the double, without static members, takes the time of
/// a session.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn a_partition_whose_position_was_refused_by_mistake_is_read_on() {
    let (broker, world) = (FakeKafka::start(TOPIC, 1), World::new());
    numbers(&broker, 0..10, 1);
    let mut driver = driver(&broker, &world);
    driver.until("all", |driver| driver.total == 10).await;
    broker.at(|broker| {
        let no = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE];
        broker.request_errors(RDKafkaApiKey::Fetch, &no);
    });
    driver.during(Duration::from_secs(1)).await;
    numbers(&broker, 10..20, 1);
    driver.until("the rest", |driver| driver.total == 20).await;
    assert_eq!(driver.payloads(), expected(0..20));
    driver.close().await;
}
