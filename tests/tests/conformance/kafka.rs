//! Kafka: against the broker inside of librdkafka. The same checks run against a real one in `kafka_service.rs`.

use async_trait::async_trait;
use connector_crds::systems::kafka::KafkaSink;
use connector_crds::systems::split::KeySplit;
use connector_crds::{SinkSpec, SourceSpec};
use connector_tests::conformance::sink::{Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::source::{SourceFixture, SourceTraits};
use connector_tests::conformance::{Ability, Carries, PATIENCE, World};
use connector_tests::fake_kafka::{FakeKafka, consume};
use rdkafka::ClientConfig;

const TOPIC: &str = "conformance";

const PARTITIONS: i32 = 2;

pub(crate) struct Source {
    broker: FakeKafka,
    next: i32,
}

impl Source {
    pub(crate) async fn new(_world: &World) -> Source {
        Source { broker: FakeKafka::start(TOPIC, PARTITIONS), next: 0 }
    }
}

#[async_trait]
impl SourceFixture for Source {
    fn spec(&self) -> SourceSpec {
        SourceSpec::Kafka(self.broker.spec(TOPIC))
    }

    fn traits(&self) -> SourceTraits {
        // The double keeps the offsets, but knows no static members: a new process would have to wait until the earlier
        // one's session ends. The real broker is asked for it.
        SourceTraits { carries: Carries::Anything, replayable: true, keeps_commits: false, streams: 2 }
    }

    async fn produce(&mut self, payloads: &[Vec<u8>]) {
        let first = self.next;
        self.next += i32::try_from(payloads.len()).unwrap();
        let records = (first..).zip(payloads);
        let records = records.map(|(number, payload)| (number % PARTITIONS, Some(payload.as_slice())));
        self.broker.produce(TOPIC, records);
    }

    async fn break_down(&mut self) -> Ability {
        self.broker.down();
        Ability::Done
    }

    async fn repair(&mut self) {
        self.broker.up();
    }

    fn loss_is_noticed(&self) -> bool {
        true
    }

    fn wrong_credentials(&self, _world: &World) -> Result<SourceSpec, &'static str> {
        Err("the double takes everybody; the real broker is asked in the services test")
    }

    fn finite(&self) -> Result<SourceSpec, &'static str> {
        Err("a topic has no end")
    }
}

/// Without transactions: the double keeps what an aborted one wrote.
pub(crate) struct Sink {
    broker: FakeKafka,
    spec: KafkaSink,
}

impl Sink {
    pub(crate) async fn new(_world: &World) -> Sink {
        let broker = FakeKafka::start(TOPIC, 1);
        let key = Some(KeySplit::Delimiter("=>".into()));
        let spec = KafkaSink { key, ..broker.sink_spec(TOPIC) };
        Sink { broker, spec }
    }
}

#[async_trait]
impl SinkFixture for Sink {
    fn spec(&self) -> SinkSpec {
        SinkSpec::Kafka(self.spec.clone())
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits { carries: Carries::Anything, replay: Replay::Repeats }
    }

    fn record(&self, number: u64, payload: &[u8]) -> Vec<u8> {
        [number.to_string().as_bytes(), b"=>", payload].concat()
    }

    async fn delivered(&mut self, count: usize) -> Vec<Vec<u8>> {
        let config = ClientConfig::new().set("bootstrap.servers", self.broker.servers()).clone();
        let read = tokio::task::spawn_blocking(move || consume(&config, TOPIC, count, PATIENCE));
        read.await.unwrap().into_iter().map(|(_, _, value)| value).collect()
    }

    fn bad_record(&self) -> Result<Vec<u8>, &'static str> {
        Ok(b"=no key".to_vec())
    }

    async fn break_down(&mut self) -> Ability {
        self.broker.down();
        Ability::Done
    }

    async fn repair(&mut self) {
        self.broker.up();
    }

    fn wrong_credentials(&self, _world: &World) -> Result<SinkSpec, &'static str> {
        Err("the double takes everybody; the real broker is asked in the services test")
    }
}
