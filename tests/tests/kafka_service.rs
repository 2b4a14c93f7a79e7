//! The Kafka source against a real broker: everything that the double of `cargo test` does not know.
//!
//! `tests/services/run` starts the broker and runs these; some kill it, so one at a time.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use connector_crds::SourceSpec;
use connector_crds::systems::kafka::{KafkaSasl, KafkaSource, SaslMechanism, StartAt, StartPosition};
use connector_crds::systems::tls::TlsSpec;
use connector_native::kafka::BatchQueue;
use connector_runtime::connectors::{Context, kafka};
use connector_runtime::source::{BadRecord, ErrorClass, ResumeFrom, SystemError};
use connector_tests::conformance::source::{self, SourceFixture, SourceTraits};
use connector_tests::conformance::{Ability, Carries, World};
use connector_tests::fake_kafka::produce;
use connector_tests::services::{control, environment};
use connector_tests::source_driver::Driver;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::{Instant, timeout};

/// Longest wait for the broker's answer to a request of the test itself.
const PATIENCE: Duration = Duration::from_secs(30);

fn config() -> ClientConfig {
    ClientConfig::new().set("bootstrap.servers", environment("KAFKA_BROKERS")).clone()
}

fn admin() -> AdminClient<DefaultClientContext> {
    config().create().unwrap()
}

/// A name that no other test uses.
fn name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn create(topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        new = new.set(key, value);
    }
    let made = admin().create_topics(&[new], &AdminOptions::new()).await.unwrap();
    for result in made {
        result.unwrap();
    }
}

/// A topic with so many partitions.
async fn topic(partitions: i32) -> String {
    let topic = name("topic");
    create(&topic, partitions, &[]).await;
    topic
}

fn spec(topic: &str) -> KafkaSource {
    KafkaSource {
        bootstrap_servers: vec![environment("KAFKA_BROKERS")],
        topics: vec![topic.to_owned()],
        topic_pattern: None,
        group: None,
        start_position: StartPosition::default(),
        tls: None,
        sasl: None,
    }
}

/// A context of a Connector of its own, so of a group of its own.
fn context(world: &World) -> Context {
    let mut context = world.context();
    context.identity.name = name("connector");
    context
}

fn driver(spec: &KafkaSource, context: &Context) -> Driver {
    Driver::new(&SourceSpec::Kafka(spec.clone()), context.clone())
}

/// Writes numbers to partition number mod `partitions`.
fn numbers(topic: &str, numbers: std::ops::Range<i32>, partitions: i32) {
    let texts: Vec<(i32, String)> = numbers.map(|n| (n % partitions, format!("{n:07}"))).collect();
    produce(&config(), topic, texts.iter().map(|(partition, text)| (*partition, Some(text.as_bytes()))));
}

fn expected(numbers: std::ops::Range<i32>) -> Vec<String> {
    numbers.map(|n| format!("{n:07}")).collect()
}

/// The source's secured configuration.
fn secured(topic: &str, world: &World, mechanism: SaslMechanism, password: &str, ca: &str) -> KafkaSource {
    let ca = std::fs::read_to_string(environment(ca)).unwrap();
    KafkaSource {
        bootstrap_servers: vec![environment("KAFKA_SASL_BROKERS")],
        tls: Some(TlsSpec { ca: Some(world.secret("ca", &ca)), ..TlsSpec::default() }),
        sasl: Some(KafkaSasl {
            mechanism,
            username: environment("KAFKA_USER"),
            password: world.secret("password", password),
        }),
        ..spec(topic)
    }
}

struct Real {
    topic: String,
    next: i32,
}

#[async_trait]
impl SourceFixture for Real {
    fn spec(&self) -> SourceSpec {
        SourceSpec::Kafka(KafkaSource { group: Some(self.topic.clone()), ..spec(&self.topic) })
    }

    fn traits(&self) -> SourceTraits {
        SourceTraits { carries: Carries::Anything, replayable: true, keeps_commits: true, streams: 2 }
    }

    async fn produce(&mut self, payloads: &[Vec<u8>]) {
        let first = self.next;
        self.next += i32::try_from(payloads.len()).unwrap();
        let records = (first..).zip(payloads).map(|(n, payload)| (n % 2, Some(payload.as_slice())));
        produce(&config(), &self.topic, records);
    }

    async fn break_down(&mut self) -> Ability {
        control("kafka", &["kill"]);
        Ability::Done
    }

    async fn repair(&mut self) {
        control("kafka", &["up"]);
    }

    fn loss_is_noticed(&self) -> bool {
        true
    }

    fn wrong_credentials(&self, world: &World) -> Result<SourceSpec, &'static str> {
        let canary = connector_tests::conformance::CANARY;
        Ok(SourceSpec::Kafka(secured(&self.topic, world, SaslMechanism::Plain, canary, "SERVICES_CA")))
    }

    fn finite(&self) -> Result<SourceSpec, &'static str> {
        Err("a topic has no end")
    }
}

/// The contract of all sources, as in `conformance.rs`.
macro_rules! conformance {
    ($($check:ident)*) => {
        $(
            #[tokio::test]
            #[ignore = "needs Kafka: tests/services/run"]
            async fn $check() {
                let (world, topic) = (World::new(), topic(2).await);
                source::$check(&mut Real { topic, next: 0 }, &world).await;
            }
        )*
    };
}

conformance! {
    nothing_comes_before_resume
    every_record_arrives_unchanged_once
    resume_repeats_exactly_what_is_beyond_the_position
    commits_are_idempotent_and_outlive_the_process
    next_is_cancel_safe
    a_paused_stream_waits
    an_absent_system_is_transient
    a_lost_system_is_transient_and_nothing_is_missing
    wrong_credentials_are_said
    no_secret_is_shown
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_hundred_thousand_records_of_four_partitions_arrive_once_each_in_order() {
    let (world, topic) = (World::new(), topic(4).await);
    numbers(&topic, 0..100_000, 4);
    let mut driver = driver(&spec(&topic), &context(&world));
    driver.until("all records", |driver| driver.total >= 100_000).await;
    assert_eq!(driver.payloads(), expected(0..100_000));
    for stream in driver.streams.values() {
        assert_eq!((stream.records, stream.last), (25_000, 25_000), "position is offset + 1");
    }
    assert!(driver.errors.is_empty(), "{:?}", driver.errors);
    driver.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn every_mechanism_works_over_tls() {
    let (world, topic) = (World::new(), topic(1).await);
    numbers(&topic, 0..10, 1);
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256, SaslMechanism::ScramSha512] {
        let spec = secured(&topic, &world, mechanism, &environment("KAFKA_PASSWORD"), "SERVICES_CA");
        let mut driver = driver(&spec, &context(&world));
        driver.source.check().await.unwrap();
        driver.until("ten records", |driver| driver.total == 10).await;
        assert!(driver.errors.is_empty(), "{:?}", driver.errors);
        driver.close().await;
    }
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_wrong_password_and_a_wrong_ca_are_said_within_a_second() {
    let (world, topic) = (World::new(), topic(1).await);
    let right = environment("KAFKA_PASSWORD");
    for (password, ca, text) in [
        ("canary-wrong", "SERVICES_CA", "authenticating at Kafka: "),
        (right.as_str(), "SERVICES_OTHER_CA", "TLS with Kafka: "),
    ] {
        for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha512] {
            let spec = secured(&topic, &world, mechanism, password, ca);
            let mut driver = driver(&spec, &context(&world));
            let began = Instant::now();
            let checked = driver.source.check().await.unwrap_err();
            let next = timeout(PATIENCE, driver.source.next()).await.unwrap().unwrap_err();
            assert!(began.elapsed() < Duration::from_secs(2), "both took {:?}", began.elapsed());
            for error in [checked, next] {
                let SystemError::Transient { class: ErrorClass::Auth, context, .. } = &error else {
                    panic!("{error:?}")
                };
                assert!(context.starts_with(text) && !context.contains("canary"), "{context}");
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_topic_that_appears_later_and_a_partition_that_is_added_are_taken_up() {
    let (world, topic) = (World::new(), name("later"));
    let mut driver = driver(&spec(&topic), &context(&world));
    let checked = driver.source.check().await.unwrap_err();
    assert!(checked.to_string().contains("does not exist"), "{checked}");
    driver.until("the topic is missed", |driver| !driver.errors.is_empty()).await;
    assert!(driver.errors[0].to_string().contains(&topic), "{}", driver.errors[0]);
    create(&topic, 1, &[]).await;
    numbers(&topic, 0..10, 1);
    driver.until("the topic", |driver| driver.total == 10).await;
    let more = NewPartitions::new(&topic, 2);
    admin().create_partitions(&[more], &AdminOptions::new()).await.unwrap()[0].clone().unwrap();
    numbers(&topic, 10..20, 2);
    driver.until("the partition", |driver| driver.total == 20).await;
    assert_eq!((driver.payloads(), driver.open()), (expected(0..20), 2));
    driver.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn tombstones_and_empty_records_are_bad_and_compaction_leaves_gaps() {
    let (world, topic) = (World::new(), name("compacted"));
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "200"),
    ];
    create(&topic, 1, &settings).await;
    let write = |key: &str, payload: Option<&str>| {
        let producer: BaseProducer = config().create().unwrap();
        let record = BaseRecord::to(&topic).key(key).partition(0);
        let record = if let Some(payload) = payload { record.payload(payload) } else { record };
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
    };
    for n in 0..20 {
        write("same", Some(&format!("old {n}")));
    }
    write("gone", None);
    write("empty", Some(""));
    // A segment is compacted once another one is active: write until the old ones are gone.
    let low = Instant::now() + PATIENCE;
    let offsets = loop {
        write("same", Some("new"));
        let mut driver = driver(&spec(&topic), &context(&world));
        driver.until("the newest", |d| d.records.last().is_some_and(|(_, _, last)| last == b"new")).await;
        driver.during(Duration::from_millis(300)).await;
        if driver.total < 20 {
            let reasons: Vec<_> = driver.bad.iter().map(|(_, reason)| reason.clone()).collect();
            assert!(
                matches!(&reasons[..], [BadRecord::Malformed(text), BadRecord::Empty] if text.contains("tombstone"))
            );
            break driver.records.iter().map(|(_, position, _)| *position).collect::<Vec<_>>();
        }
        driver.close().await;
        assert!(Instant::now() < low, "the broker does not compact");
    };
    assert!(offsets.last().unwrap() > &20, "{offsets:?}");
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn what_a_transaction_aborted_never_comes() {
    let (world, topic) = (World::new(), topic(1).await);
    let producer: BaseProducer = config().set("transactional.id", name("transaction")).create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    for (payload, commit) in [("one", true), ("aborted", false), ("two", true)] {
        producer.begin_transaction().unwrap();
        producer
            .send(BaseRecord::<(), str>::to(&topic).payload(payload).partition(0))
            .map_err(|(e, _)| e)
            .unwrap();
        producer.flush(PATIENCE).unwrap();
        if commit { producer.commit_transaction(PATIENCE) } else { producer.abort_transaction(PATIENCE) }
            .unwrap();
    }
    let context = context(&world);
    let mut first = driver(&spec(&topic), &context);
    first.until("both", |driver| driver.total == 2).await;
    first.during(Duration::from_millis(300)).await;
    assert_eq!(first.payloads(), ["one", "two"]);
    // The offsets of markers belong to no record: a committed position before one is in range.
    first.commit().await;
    first.close().await;
    let mut second = driver(&spec(&topic), &context);
    second.until("the stream", |driver| driver.open() == 1).await;
    second.during(Duration::from_millis(300)).await;
    assert_eq!((second.total, second.errors.len()), (0, 0), "{:?}", second.errors);
    second.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_start_position_counts_for_what_nobody_knows() {
    let (world, topic) = (World::new(), topic(1).await);
    let producer: BaseProducer = config().create().unwrap();
    for n in 0..10 {
        let text = format!("{n:07}");
        let record = BaseRecord::<(), str>::to(&topic).payload(&text).partition(0).timestamp(1_000_000 + n);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    for (at, timestamp, offset, first) in [
        (StartAt::Earliest, None, None, 0),
        (StartAt::Timestamp, Some(1_000_004), None, 4),
        (StartAt::Offset, None, Some(7), 7),
    ] {
        let mut spec = spec(&topic);
        spec.start_position = StartPosition { at, timestamp, offset };
        let mut driver = driver(&spec, &context(&world));
        let count = usize::try_from(10 - first).unwrap();
        driver.until("the rest", |driver| driver.total >= count).await;
        assert_eq!(driver.payloads(), expected(first..10), "{at:?}");
        driver.close().await;
    }
    // `Latest` is where the first start found the end, also for a process that comes after records that were lost.
    let (mut spec, context) = (spec(&topic), context(&world));
    spec.start_position = StartPosition { at: StartAt::Latest, timestamp: None, offset: None };
    let mut first = driver(&spec, &context);
    first.until("the stream", |driver| driver.open() == 1).await;
    first.during(Duration::from_millis(500)).await;
    assert_eq!(first.total, 0);
    drop(first);
    numbers(&topic, 10..15, 1);
    let mut second = driver(&spec, &context);
    second.until("what came meanwhile", |driver| driver.total >= 5).await;
    assert_eq!(second.payloads(), expected(10..15));
    second.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_foreign_offset_is_a_place_to_start_and_an_own_one_is_what_was_acknowledged() {
    let (world, topic) = (World::new(), topic(1).await);
    numbers(&topic, 0..10, 1);
    let (mut spec, context) = (spec(&topic), context(&world));
    spec.group = Some(name("group"));
    let other: BaseConsumer = config().set("group.id", spec.group.as_ref().unwrap()).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(3)).unwrap();
    other.commit(&list, CommitMode::Sync).unwrap();
    let mut first = driver(&spec, &context);
    first.until("the rest", |driver| driver.total == 7).await;
    let stream = first.streams.values().next().unwrap();
    assert_eq!((stream.committed, first.records[0].1), (None, 4));
    first.commit().await;
    first.close().await;
    // Another epoch (`positionReset`) starts over, whatever this Connector committed before.
    for (epoch, committed, count) in [("", Some(10), 0), ("again", None, 10)] {
        let mut context = context.clone();
        context.identity.epoch = epoch.into();
        let mut driver = driver(&spec, &context);
        driver.until("the stream", |driver| driver.open() == 1 && driver.total >= count).await;
        assert_eq!(driver.streams.values().next().unwrap().committed, committed);
        driver.close().await;
    }
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_process_that_was_killed_gets_its_partitions_back_at_once_and_goes_on_at_its_commit() {
    let (world, topic, dead) = (World::new(), topic(4).await, World::new());
    numbers(&topic, 0..400, 4);
    let context = context(&dead);
    let mut first = driver(&spec(&topic), &context);
    first.until("all", |driver| driver.total == 400).await;
    first.commit().await;
    first.during(Duration::from_millis(300)).await;
    // No farewell: as after SIGKILL, the group still counts on it.
    std::mem::forget(first);
    let began = Instant::now();
    let mut again = world.context();
    again.identity = context.identity;
    let mut second = driver(&spec(&topic), &again);
    second.until("the streams", |driver| driver.open() == 4).await;
    assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
    assert!(second.streams.values().all(|stream| stream.committed == Some(100)));
    numbers(&topic, 400..404, 4);
    second.until("the new ones", |driver| driver.total == 4).await;
    second.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn two_members_share_partitions_and_hand_them_over_drained_and_committed() {
    let (world, topic) = (World::new(), topic(4).await);
    numbers(&topic, 0..1_000, 4);
    let (spec, context) = (spec(&topic), context(&world));
    let member = |host| Driver::of(Box::new(kafka::KafkaSource::on_host(&spec, &context, host)));
    let mut first = member("pod-0");
    first.until("all", |driver| driver.total == 1_000).await;
    let mut second = member("pod-1");
    let deadline = Instant::now() + PATIENCE;
    while second.open() < 2 || first.open() > 2 {
        assert!(Instant::now() < deadline, "first {}, second {}", first.open(), second.open());
        tokio::select! {
            () = first.step() => {}
            () = second.step() => {}
        }
    }
    assert_eq!((first.open(), second.open(), first.revoked, first.lost), (2, 2, 2, 0));
    assert!(second.streams.values().all(|stream| stream.committed == Some(250)), "{:?}", second.streams);
    numbers(&topic, 1_000..2_000, 4);
    while first.total + second.total < 2_000 {
        assert!(Instant::now() < deadline + PATIENCE, "first {}, second {}", first.total, second.total);
        tokio::select! {
            () = first.step() => {}
            () = second.step() => {}
        }
    }
    let mut all = first.payloads();
    all.extend(second.payloads());
    all.sort();
    assert_eq!(all, expected(0..2_000), "nothing is missing and nothing came twice");
    first.close().await;
    second.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_connector_whose_topics_were_edited_reads_the_new_ones_and_not_the_old_ones() {
    let (world, old, new) = (World::new(), topic(1).await, topic(1).await);
    numbers(&old, 0..10, 1);
    let context = context(&world);
    let mut first = driver(&spec(&old), &context);
    first.until("the old topic", |driver| driver.total == 10).await;
    first.close().await;
    numbers(&old, 10..20, 1);
    numbers(&new, 20..30, 1);
    let mut second = driver(&spec(&new), &context);
    second.until("the new topic", |driver| driver.total >= 10).await;
    assert_eq!((second.payloads(), second.open()), (expected(20..30), 1));
    second.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_changed_password_and_changed_certificates_are_taken_up_without_losing_a_stream() {
    let (world, topic) = (World::new(), topic(2).await);
    let old = environment("KAFKA_PASSWORD");
    let spec = secured(&topic, &world, SaslMechanism::ScramSha512, &old, "SERVICES_CA");
    let mut driver = driver(&spec, &context(&world));
    numbers(&topic, 0..10, 2);
    driver.until("the first", |driver| driver.total == 10).await;

    control("kafka", &["password", "another-secret"]);
    world.secret("password", "another-secret");
    driver.during(Duration::from_millis(500)).await;
    // Connections that stand stay; new ones need the new password.
    control("kafka", &["kill"]);
    control("kafka", &["up"]);
    numbers(&topic, 10..20, 2);
    driver.until("after the password", |driver| driver.total == 20).await;

    let ca = std::fs::read_to_string(environment("SERVICES_CA")).unwrap();
    world.secret("ca", &format!("{ca}{ca}"));
    driver.during(Duration::from_secs(2)).await;
    numbers(&topic, 20..30, 2);
    driver.until("after the certificates", |driver| driver.total == 30).await;
    assert_eq!(driver.payloads(), expected(0..30));
    assert_eq!((driver.lost, driver.revoked, driver.streams.len()), (0, 0, 2), "{:?}", driver.errors);
    driver.close().await;
    control("kafka", &["password", &old]);
}

/// Connections stand, and nobody answers: nothing but a question that gets no answer shows it.
#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_broker_that_hangs_is_said_and_its_streams_go_on_when_it_answers_again() {
    let (world, topic) = (World::new(), topic(2).await);
    numbers(&topic, 0..10, 2);
    let mut driver = driver(&spec(&topic), &context(&world));
    driver.until("the first", |driver| driver.total == 10).await;
    driver.commit().await;
    control("kafka", &["pause"]);
    let began = Instant::now();
    driver.until("the outage is said", |driver| !driver.errors.is_empty()).await;
    let (said, after) = (driver.errors[0].to_string(), began.elapsed());
    control("kafka", &["resume"]);
    assert!(after < Duration::from_secs(30), "said after {after:?}");
    assert!(said.contains(&environment("KAFKA_BROKERS")), "{said}");
    numbers(&topic, 10..20, 2);
    driver.until("the rest", |driver| driver.total == 20).await;
    assert_eq!((driver.payloads(), driver.streams.len(), driver.lost), (expected(0..20), 2, 0));
    driver.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_topic_made_anew_is_another_stream() {
    let (world, topic) = (World::new(), topic(1).await);
    numbers(&topic, 0..10, 1);
    let mut driver = driver(&spec(&topic), &context(&world));
    driver.until("the first", |driver| driver.total == 10).await;
    driver.commit().await;
    driver.during(Duration::from_millis(300)).await;
    admin().delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
    create(&topic, 1, &[]).await;
    numbers(&topic, 10..30, 1);
    // Within the seconds until it shows, the old stream may go on in the new topic; the new stream has all of it.
    driver
        .until("the second", |driver| {
            driver.streams.len() == 2 && driver.streams.values().any(|s| !s.gone && s.last == 20)
        })
        .await;
    assert_eq!((driver.streams.len(), driver.open(), driver.lost), (2, 1, 1));
    let second = driver.streams.values().find(|stream| !stream.gone).unwrap();
    assert_eq!((second.committed, second.records), (None, 20), "what was committed was the other topic's");
    let of_second = driver.records.iter().filter(|(name, ..)| *name == second.name);
    let payloads: Vec<_> =
        of_second.map(|(.., payload)| String::from_utf8(payload.clone()).unwrap()).collect();
    assert_eq!(payloads, expected(10..30));
    driver.close().await;
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_position_that_the_topic_no_longer_holds_stalls_and_never_jumps() {
    let (world, topic) = (World::new(), topic(1).await);
    numbers(&topic, 0..100, 1);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(50)).unwrap();
    admin().delete_records(&list, &AdminOptions::new()).await.unwrap();
    for (position, fine) in [(49, false), (50, true), (100, true), (101, false)] {
        let mut driver = driver(&spec(&topic), &context(&world));
        driver.from = ResumeFrom::After(position);
        if fine {
            let rest = usize::try_from(100 - position).unwrap();
            driver.until("the rest", |driver| driver.open() == 1 && driver.total == rest).await;
            driver.during(Duration::from_millis(200)).await;
            assert!(driver.errors.is_empty(), "{:?}", driver.errors);
        } else {
            driver.until("the stall", |driver| !driver.stuck.is_empty()).await;
            let (_, "PositionOutOfRange", context) = &driver.stuck[0] else { panic!("{:?}", driver.stuck) };
            assert!(context.contains(&topic) && context.contains("50 to 100"), "{context}");
            assert_eq!(driver.total, 0);
        }
        driver.close().await;
    }
}

/// Not a goal but a figure: batches through the source beside batches of librdkafka that are only counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka: tests/services/run"]
async fn throughput_of_the_batch_path() {
    const RECORDS: i32 = 1_000_000;
    let (world, topic) = (World::new(), topic(4).await);
    let payload = [b'x'; 100];
    produce(&config(), &topic, (0..RECORDS).map(|n| (n % 4, Some(payload.as_slice()))));
    let total = usize::try_from(RECORDS).unwrap();
    let rate = |began: Instant| f64::from(RECORDS) / began.elapsed().as_secs_f64() / 1e6;
    for _ in 0..2 {
        let consumer: BaseConsumer = config()
            .set("group.id", name("raw"))
            .set("queued.min.messages", "50000")
            .set("queued.max.messages.kbytes", "16384")
            .create()
            .unwrap();
        let consumer = std::sync::Arc::new(consumer);
        let (mut queue, _woken) = BatchQueue::new(consumer.clone(), 8_192).unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..4 {
            list.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        for partition in 0..4 {
            queue.forward(&topic, partition, true);
        }
        let (mut count, mut began) = (0, None);
        while count < total {
            let before = count;
            queue.drain(8_192, |message| count += usize::from(message.payload().is_some()));
            if count > 0 {
                began.get_or_insert(Instant::now());
            }
            if count == before {
                consumer.poll(Duration::ZERO);
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        let raw = rate(began.unwrap());
        let mut driver = driver(&spec(&topic), &context(&world));
        driver.keep = false;
        driver.until("the first", |driver| driver.total > 0).await;
        let began = Instant::now();
        driver.until("all", |driver| driver.total >= total).await;
        println!(
            "librdkafka batches counted: {raw:.2} M records/s; through the source: {:.2} M records/s",
            rate(began)
        );
        assert_eq!(driver.total, total);
        driver.close().await;
    }
}
