//! The Kafka sink against a real broker: transactions, credentials, and a broker that is killed.
//!
//! `tests/services/run` starts the broker and runs these; some kill it, so one at a time.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use connector_crds::SinkSpec;
use connector_crds::systems::kafka::{Compression, KafkaSasl, KafkaSink, Partitioner, SaslMechanism};
use connector_crds::systems::split::KeySplit;
use connector_crds::systems::tls::TlsSpec;
use connector_runtime::connectors::{self, Context};
use connector_runtime::record::{Batch, BatchBuilder, NO_TIME, Position, Record};
use connector_runtime::sink::{Sink, SinkStream};
use connector_runtime::source::{ErrorClass, SystemError};
use connector_tests::conformance::sink::{self, Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::{Ability, CANARY, Carries, World};
use connector_tests::fake_kafka::{Read, consume};
use connector_tests::services::{control, environment};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for the broker's answer to a request of the test itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

fn config() -> ClientConfig {
    ClientConfig::new().set("bootstrap.servers", environment("KAFKA_BROKERS")).clone()
}

/// A name that no other test uses.
fn name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn topic(partitions: i32) -> String {
    let topic = name("sink-topic");
    let admin: AdminClient<DefaultClientContext> = config().create().unwrap();
    let new =
        NewTopic::new(&topic, partitions, TopicReplication::Fixed(1)).set("max.message.bytes", "100000");
    for made in admin.create_topics(&[new], &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
    topic
}

fn spec(topic: &str) -> KafkaSink {
    KafkaSink {
        bootstrap_servers: vec![environment("KAFKA_BROKERS")],
        topic: topic.to_owned(),
        key: None,
        partitioner: Partitioner::default(),
        compression: Compression::default(),
        exactly_once: true,
        tls: None,
        sasl: None,
    }
}

/// Over TLS, with a password.
fn secured(topic: &str, world: &World, password: &str, ca: &str) -> KafkaSink {
    let ca = std::fs::read_to_string(environment(ca)).unwrap();
    KafkaSink {
        bootstrap_servers: vec![environment("KAFKA_SASL_BROKERS")],
        tls: Some(TlsSpec { ca: Some(world.secret("ca", &ca)), ..TlsSpec::default() }),
        sasl: Some(KafkaSasl {
            mechanism: SaslMechanism::ScramSha512,
            username: environment("KAFKA_USER"),
            password: world.secret("password", password),
        }),
        ..spec(topic)
    }
}

/// A context of a Connector of its own, so of a transactional id of its own.
fn context(world: &World) -> Context {
    let mut context = world.context();
    context.identity.name = name("connector");
    context
}

fn sink_of(spec: &KafkaSink, context: &Context) -> Box<dyn Sink> {
    connectors::sink(&SinkSpec::Kafka(spec.clone()), context.clone()).unwrap()
}

fn stream() -> SinkStream {
    SinkStream { worker: "w".into(), incarnation: 1 }
}

/// Records whose text is their position.
fn batch(positions: Range<Position>) -> Batch {
    let mut builder = BatchBuilder::default();
    for position in positions {
        let payload = position.to_string();
        builder.push(Record { position, time: NO_TIME, key: &[], payload: payload.as_bytes() });
    }
    builder.finish()
}

async fn read(topic: &str, count: usize, patience: Duration) -> Vec<Read> {
    let topic = topic.to_owned();
    spawn_blocking(move || consume(&config(), &topic, count, patience)).await.unwrap()
}

/// Has the broker up again when a test ends, also when it fails.
struct Repaired;

impl Drop for Repaired {
    fn drop(&mut self) {
        let repaired = std::panic::catch_unwind(|| control("kafka", &["up"]));
        // A second panic would end all tests.
        assert!(repaired.is_ok() || std::thread::panicking(), "the broker is not up again");
    }
}

struct Real {
    topic: String,
    connector: String,
    exactly_once: bool,
    secured: bool,
    world: World,
    _repaired: Repaired,
}

impl Real {
    async fn new(exactly_once: bool, secured: bool) -> Real {
        let (topic, connector) = (topic(1).await, name("connector"));
        Real { topic, connector, exactly_once, secured, world: World::new(), _repaired: Repaired }
    }
}

#[async_trait]
impl SinkFixture for Real {
    fn spec(&self) -> SinkSpec {
        let spec = if self.secured {
            secured(&self.topic, &self.world, &environment("KAFKA_PASSWORD"), "SERVICES_CA")
        } else {
            spec(&self.topic)
        };
        SinkSpec::Kafka(KafkaSink {
            key: Some(KeySplit::LengthPrefix {}),
            compression: Compression::Lz4,
            exactly_once: self.exactly_once,
            ..spec
        })
    }

    fn traits(&self) -> SinkTraits {
        let replay = if self.exactly_once { Replay::ExactlyOnce } else { Replay::Repeats };
        SinkTraits { carries: Carries::Anything, replay }
    }

    fn sink(&mut self, mut context: Context) -> Box<dyn Sink> {
        context.identity.name.clone_from(&self.connector);
        if self.secured {
            context.secrets = self.world.context().secrets;
        }
        connectors::sink(&self.spec(), context).unwrap()
    }

    fn record(&self, number: u64, payload: &[u8]) -> Vec<u8> {
        [&8_u32.to_be_bytes()[..], &number.to_be_bytes(), payload].concat()
    }

    async fn delivered(&mut self, count: usize) -> Vec<Vec<u8>> {
        read(&self.topic, count, PATIENCE).await.into_iter().map(|(_, _, value)| value).collect()
    }

    fn bad_record(&self) -> Result<Vec<u8>, &'static str> {
        Ok(b"\xff\xff\xff\xffno".to_vec())
    }

    async fn break_down(&mut self) -> Ability {
        control("kafka", &["kill"]);
        Ability::Done
    }

    async fn repair(&mut self) {
        control("kafka", &["up"]);
    }

    fn wrong_credentials(&self, world: &World) -> Result<SinkSpec, &'static str> {
        Ok(SinkSpec::Kafka(secured(&self.topic, world, &format!("not-{CANARY}"), "SERVICES_CA")))
    }
}

macro_rules! conformance {
    ($name:ident $make:expr, $($check:ident)*) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test]
                #[ignore = "needs Kafka: tests/services/run"]
                async fn $check() {
                    let mut real = $make.await;
                    sink::$check(&mut real, &World::new()).await;
                }
            )*
        }
    };
}

conformance! { exactly_once Real::new(true, false),
    every_record_arrives_unchanged_in_order
    a_replay_does_what_is_promised
    a_rejected_record_is_named_and_the_others_arrive
    streams_are_apart_and_an_archived_one_is_forgotten
    a_lost_system_is_transient_and_takes_the_batch_later
    wrong_credentials_are_said
    no_secret_is_shown
}

conformance! { secured_at_least_once Real::new(false, true),
    every_record_arrives_unchanged_in_order
    a_replay_does_what_is_promised
    a_rejected_record_is_named_and_the_others_arrive
    wrong_credentials_are_said
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn readers_of_committed_records_see_nothing_before_its_transaction_ends() {
    let world = World::new();
    let topic = topic(1).await;
    let mut sink = sink_of(&spec(&topic), &context(&world));
    reopened(&mut *sink, 0).await;
    sink.write(&stream(), &batch(1..11)).await.unwrap();
    assert_eq!(sink.durable(), []);
    assert_eq!(read(&topic, 1, Duration::from_secs(1)).await, []);
    sink.flush(Instant::now() + PATIENCE).await.unwrap();
    assert_eq!(sink.durable(), [(stream(), 10)]);
    assert_eq!(read(&topic, 10, PATIENCE).await.len(), 10);
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_second_process_takes_over_and_the_first_one_writes_nothing_more() {
    let world = World::new();
    let (topic, context) = (topic(1).await, context(&world));
    let mut first = sink_of(&spec(&topic), &context);
    reopened(&mut *first, 0).await;
    first.write(&stream(), &batch(1..11)).await.unwrap();
    first.flush(Instant::now() + PATIENCE).await.unwrap();
    first.write(&stream(), &batch(11..21)).await.unwrap();
    let mut second = sink_of(&spec(&topic), &context);
    assert_eq!(reopened(&mut *second, 10).await, 10);
    let error = first.flush(Instant::now() + PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("another producer took over"), "{error}");
    assert_eq!(first.durable(), [(stream(), 10)]);
    second.write(&stream(), &batch(11..16)).await.unwrap();
    second.flush(Instant::now() + PATIENCE).await.unwrap();
    let values: Vec<_> = read(&topic, 16, Duration::from_secs(2)).await.into_iter().map(|r| r.2).collect();
    let expected: Vec<_> = (1..16).map(|n: i32| n.to_string().into_bytes()).collect();
    assert_eq!(values, expected);
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_record_that_the_broker_refuses_is_named_and_the_others_of_its_transaction_arrive_once() {
    let world = World::new();
    for exactly_once in [true, false] {
        let topic = topic(1).await;
        let mut sink = sink_of(&KafkaSink { exactly_once, ..spec(&topic) }, &context(&world));
        reopened(&mut *sink, 0).await;
        sink.write(&stream(), &batch(1..11)).await.unwrap();
        let mut builder = BatchBuilder::default();
        for position in 11..14 {
            let payload =
                if position == 12 { vec![b'x'; 200_000] } else { position.to_string().into_bytes() };
            builder.push(Record { position, time: NO_TIME, key: &[], payload: &payload });
        }
        let bad = builder.finish();
        // As the pump does: after each failure from the position that the target holds.
        let mut attempts = 0;
        let written = loop {
            attempts += 1;
            match sink.write(&stream(), &bad).await {
                Ok(written) => break written,
                Err(error) => assert!(attempts < 3 && error.to_string().contains("refuse"), "{error}"),
            }
            assert_eq!(reopened(&mut *sink, 0).await, 0);
            if exactly_once {
                sink.write(&stream(), &batch(1..11)).await.unwrap();
            }
        };
        assert_eq!(attempts, 3, "refused with others, refused alone, left out");
        assert_eq!(written.rejected.iter().map(|refused| refused.index).collect::<Vec<_>>(), [1]);
        sink.flush(Instant::now() + PATIENCE).await.unwrap();
        assert_eq!(sink.durable(), [(stream(), 13)]);
        let mut values: Vec<String> = read(&topic, 25, Duration::from_secs(2))
            .await
            .into_iter()
            .map(|(_, _, value)| String::from_utf8(value).unwrap())
            .collect();
        if !exactly_once {
            // The attempts in between may have written the last ones already.
            values.sort_by_key(|value| value.parse::<u64>().unwrap());
            values.dedup();
        }
        let once: Vec<_> = (1..14).filter(|n| *n != 12).map(|n: i32| n.to_string()).collect();
        assert_eq!(values, once);
    }
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_key_goes_where_java_clients_put_it() {
    let world = World::new();
    let topic = topic(4).await;
    let spec = KafkaSink { key: Some(KeySplit::Delimiter(":".into())), ..spec(&topic) };
    let mut sink = sink_of(&spec, &context(&world));
    reopened(&mut *sink, 0).await;
    let mut builder = BatchBuilder::default();
    for (position, payload) in (1..).zip(["21:a", "foobar:b", "abc:c", "21:d"]) {
        builder.push(Record { position, time: NO_TIME, key: &[], payload: payload.as_bytes() });
    }
    sink.write(&stream(), &builder.finish()).await.unwrap();
    sink.flush(Instant::now() + PATIENCE).await.unwrap();
    let found: BTreeMap<Vec<u8>, (i32, Option<Vec<u8>>)> =
        read(&topic, 4, PATIENCE).await.into_iter().map(|(p, key, value)| (value, (p, key))).collect();
    // Murmur2 of Kafka's own UtilsTest: "21" -973932308, "foobar" -790332482, "abc" 479470107; without the sign bit, mod 4.
    for (value, key, hash) in
        [("a", "21", -973_932_308_i32), ("b", "foobar", -790_332_482), ("c", "abc", 479_470_107)]
    {
        let partition = (hash & i32::MAX) % 4;
        assert_eq!(found[value.as_bytes()], (partition, Some(key.as_bytes().to_vec())), "{key}");
    }
    assert_eq!(found[&b"d"[..]].0, found[&b"a"[..]].0);
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn a_topic_that_does_not_exist_and_a_wrong_authority_are_said() {
    let world = World::new();
    let missing = spec(&name("missing"));
    let error = sink_of(&missing, &context(&world)).check().await.unwrap_err();
    assert!(matches!(error, SystemError::Transient { class: ErrorClass::Rejected, .. }), "{error:?}");
    assert!(error.to_string().contains("does not exist"), "{error}");
    let topic = topic(1).await;
    let spec = secured(&topic, &world, &environment("KAFKA_PASSWORD"), "SERVICES_OTHER_CA");
    let error = timeout(PATIENCE, sink_of(&spec, &context(&world)).check()).await.unwrap().unwrap_err();
    assert!(matches!(error, SystemError::Transient { class: ErrorClass::Auth, .. }), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
#[ignore = "needs Kafka: tests/services/run"]
async fn nothing_is_lost_or_written_twice_when_broker_and_process_are_killed_in_the_midst_of_twenty_thousand()
{
    const RECORDS: Position = 20_000;
    const BATCH: Position = 100;
    const KILLS: Position = 4;
    let _repaired = Repaired;
    let world = World::new();
    let (topic, context) = (topic(1).await, context(&world));
    let mut sink = sink_of(&spec(&topic), &context);
    let mut next = reopened(&mut *sink, 0).await;
    let (mut kills, mut failures) = (0, 0);
    let mut killing = None;
    let deadline = Instant::now() + Duration::from_mins(3);
    while next < RECORDS || killing.is_some() {
        assert!(Instant::now() < deadline, "{next} records, {kills} kills, {failures} failures");
        if killing.is_none() && kills < KILLS && next >= (kills + 1) * RECORDS / (KILLS + 1) {
            kills += 1;
            if kills % 2 == 0 {
                // The process: what it had accepted and not committed is gone.
                drop(sink);
                sink = sink_of(&spec(&topic), &context);
                next = reopened(&mut *sink, next).await;
                continue;
            }
            killing = Some(spawn_blocking(|| {
                control("kafka", &["kill"]);
                control("kafka", &["up"]);
            }));
        }
        if next < RECORDS {
            match sink.write(&stream(), &batch(next + 1..next + BATCH + 1)).await {
                Ok(written) => {
                    assert_eq!(written.rejected, []);
                    next += BATCH;
                }
                Err(SystemError::Transient { .. }) => {
                    failures += 1;
                    next = reopened(&mut *sink, next).await;
                }
                Err(error @ SystemError::Permanent { .. }) => panic!("{error}"),
            }
        } else {
            sleep(PAUSE).await;
        }
        if let Some(done) = killing.take_if(|killing| killing.is_finished()) {
            done.await.unwrap();
        }
    }
    while sink.flush(Instant::now() + PATIENCE).await.is_err() {
        next = reopened(&mut *sink, next).await;
        assert!(Instant::now() < deadline);
        if next < RECORDS {
            sink.write(&stream(), &batch(next + 1..RECORDS + 1)).await.ok();
        }
    }
    assert_eq!(sink.durable(), [(stream(), RECORDS)]);
    assert_eq!(kills, KILLS);
    let found = read(&topic, usize::try_from(RECORDS).unwrap() + 1, Duration::from_secs(3)).await;
    let numbers: Vec<Position> =
        found.iter().map(|(_, _, value)| std::str::from_utf8(value).unwrap().parse().unwrap()).collect();
    assert!(numbers == (1..=RECORDS).collect::<Vec<_>>(), "{} records, {failures} failures", numbers.len());
}

/// Asks for the position until there is an answer, as the pump does after every failure. It is never beyond what was written.
async fn reopened(sink: &mut dyn Sink, written: Position) -> Position {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        match sink.open(&stream()).await {
            Ok(held) => {
                let held = held.unwrap_or(0);
                assert!(held <= written, "{held} beyond {written}");
                return held;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(PAUSE).await;
    }
}
