//! Kafka: against the broker inside of librdkafka. The same checks run against a real one in `kafka_service.rs`.

use async_trait::async_trait;
use connector_crds::SourceSpec;
use connector_tests::conformance::source::{SourceFixture, SourceTraits};
use connector_tests::conformance::{Ability, Carries, World};
use connector_tests::fake_kafka::FakeKafka;

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
