//! The streams of a Kafka source, seen from the pump, against the broker inside of librdkafka. What that one does not know is in
//! `kafka_service.rs`: also rebalances, for its groups need minutes for one and refuse commits meanwhile.

#![allow(clippy::unwrap_used)]

use connector_crds::SourceSpec;
use connector_crds::systems::kafka::{KafkaSource, StartAt, StartPosition};
use connector_runtime::connectors::Context;
use connector_runtime::source::{BadRecord, ErrorClass, ResumeFrom, SystemError};
use connector_tests::conformance::World;
use connector_tests::fake_kafka::FakeKafka;
use connector_tests::source_driver::Driver;
use tokio::time::{Duration, Instant};

const TOPIC: &str = "numbers";

fn driver(spec: &KafkaSource, context: Context) -> Driver {
    Driver::new(&SourceSpec::Kafka(spec.clone()), context)
}

/// Writes numbers to partition number mod `partitions`.
fn numbers(broker: &FakeKafka, topic: &str, numbers: std::ops::Range<i32>, partitions: i32) {
    let texts: Vec<(i32, String)> = numbers.map(|n| (n % partitions, format!("{n:07}"))).collect();
    broker.produce(topic, texts.iter().map(|(partition, text)| (*partition, Some(text.as_bytes()))));
}

fn expected(numbers: std::ops::Range<i32>) -> Vec<String> {
    numbers.map(|n| format!("{n:07}")).collect()
}

#[tokio::test]
async fn records_that_wallaroo_cannot_carry_are_named_and_passed() {
    let (broker, mut context) = (FakeKafka::start(TOPIC, 1), World::new().context());
    context.max_payload_bytes = 10;
    let records = [Some(&b"first"[..]), None, Some(b""), Some(b"longer than ten"), Some(b"last")];
    broker.produce(TOPIC, records.map(|payload| (0, payload)));
    let mut driver = driver(&broker.spec(TOPIC), context);
    driver.until("the last", |driver| driver.payloads() == ["first", "last"]).await;
    assert_eq!(driver.records[1].1, 5, "position is offset + 1");
    let [(2, BadRecord::Malformed(tombstone)), (3, BadRecord::Empty), (4, too_large)] = &driver.bad[..]
    else {
        panic!("{:?}", driver.bad)
    };
    assert!(tombstone.contains("tombstone"), "{tombstone}");
    assert_eq!(*too_large, BadRecord::TooLarge { bytes: 15, limit: 10 });
    driver.close().await;
}

#[tokio::test]
async fn a_position_beyond_the_end_stalls_until_the_topic_has_caught_up() {
    let (broker, world) = (FakeKafka::start(TOPIC, 1), World::new());
    numbers(&broker, TOPIC, 0..10, 1);
    let mut driver = driver(&broker.spec(TOPIC), world.context());
    driver.from = ResumeFrom::After(11);
    driver.until("the stall", |driver| !driver.stuck.is_empty()).await;
    let (_, reason, context) = &driver.stuck[0];
    assert_eq!(*reason, "PositionOutOfRange");
    assert!(context.contains("holds offsets 0 to 10"), "{context}");
    // The topic catches up: what had to be waited for is there.
    numbers(&broker, TOPIC, 10..12, 1);
    driver.until("record 11", |driver| driver.total == 1).await;
    assert_eq!(driver.payloads(), expected(11..12));
    driver.close().await;
}

#[tokio::test]
async fn a_stream_that_is_out_of_range_holds_no_other_back() {
    let (broker, world) = (FakeKafka::start(TOPIC, 2), World::new());
    numbers(&broker, TOPIC, 0..10, 2);
    let mut driver = driver(&broker.spec(TOPIC), world.context());
    driver.until("both streams", |driver| driver.open() == 2).await;
    // The second one is sent beyond its end, as by a topic that was made shorter.
    let second = *driver.streams.iter().find(|(_, stream)| stream.name.ends_with("/1")).unwrap().0;
    driver.source.resume(second, ResumeFrom::After(100)).await.unwrap();
    driver.until("the stall", |driver| driver.stuck.len() == 1).await;
    assert!(driver.stuck[0].0.ends_with("/1"), "{:?}", driver.stuck);
    numbers(&broker, TOPIC, 10..1_000, 2);
    let began = Instant::now();
    driver
        .until("the first goes on", |driver| {
            driver.streams.values().any(|stream| stream.name.ends_with("/0") && stream.last == 500)
        })
        .await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(driver.errors.is_empty(), "{:?}", driver.errors);
    driver.close().await;
}

#[tokio::test]
async fn a_stream_that_is_paused_for_long_stays_in_the_group_and_goes_on() {
    let (broker, world) = (FakeKafka::start(TOPIC, 2), World::new());
    numbers(&broker, TOPIC, 0..100, 2);
    let mut driver = driver(&broker.spec(TOPIC), world.context());
    driver.until("all", |driver| driver.total == 100).await;
    let keys: Vec<_> = driver.streams.keys().copied().collect();
    driver.source.pause(keys[0]);
    numbers(&broker, TOPIC, 100..200, 2);
    driver.until("the other one's", |driver| driver.total == 150).await;
    driver.during(Duration::from_millis(300)).await;
    assert_eq!((driver.total, driver.streams[&keys[0]].records), (150, 50));
    driver.source.unpause(keys[0]);
    driver.until("the rest", |driver| driver.total == 200).await;
    assert_eq!((driver.payloads(), driver.lost, driver.revoked), (expected(0..200), 0, 0));
    driver.close().await;
}

#[tokio::test]
async fn several_topics_or_a_pattern_of_them_are_read() {
    let (broker, world) = (FakeKafka::start("orders.new", 1), World::new());
    broker.create_topic("orders.old", 1);
    broker.create_topic("other", 1);
    for (topic, first) in [("orders.new", 0), ("orders.old", 10), ("other", 20)] {
        numbers(&broker, topic, first..first + 10, 1);
    }
    let mut listed = broker.spec("orders.new");
    listed.topics.push("orders.old".into());
    let mut pattern = broker.spec("");
    (pattern.topics, pattern.topic_pattern) = (Vec::new(), Some("orders\\..*".into()));
    pattern.group = Some("another".into());
    for spec in [listed, pattern] {
        let mut driver = driver(&spec, world.context());
        driver.until("both", |driver| driver.total >= 20).await;
        assert_eq!((driver.payloads(), driver.open()), (expected(0..20), 2));
        driver.close().await;
    }
}

#[tokio::test]
async fn latest_is_where_the_first_start_found_the_end() {
    let (broker, world) = (FakeKafka::start(TOPIC, 1), World::new());
    numbers(&broker, TOPIC, 0..10, 1);
    let mut spec = broker.spec(TOPIC);
    spec.start_position = StartPosition { at: StartAt::Latest, timestamp: None, offset: None };
    let mut driver = driver(&spec, world.context());
    driver.until("the stream", |driver| driver.open() == 1).await;
    // The answer is committed, so that a restart before the first acknowledgement does not find another end.
    driver.during(Duration::from_millis(500)).await;
    numbers(&broker, TOPIC, 10..15, 1);
    driver.until("the new ones", |driver| driver.total == 5).await;
    assert_eq!(driver.payloads(), expected(10..15));
    driver.close().await;
}

#[tokio::test]
async fn a_broker_that_nobody_hears_of_is_told_with_its_address() {
    let world = World::new();
    let mut spec = FakeKafka::start(TOPIC, 1).spec(TOPIC);
    spec.bootstrap_servers = vec!["127.0.0.1:1".into()];
    let mut driver = driver(&spec, world.context());
    let checked = driver.source.check().await.unwrap_err();
    driver.until("an error", |driver| !driver.errors.is_empty()).await;
    for error in [&checked, &driver.errors[0]] {
        assert!(matches!(error, SystemError::Transient { class: ErrorClass::Connect, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("connecting to 127.0.0.1:1: ") && text.contains("refused"), "{text}");
    }
    driver.close().await;
}
