//! The generator: a system without an outside.

use async_trait::async_trait;
use connector_crds::SourceSpec;
use connector_crds::systems::generator::GeneratorSource;
use connector_tests::conformance::source::{SourceFixture, SourceTraits};
use connector_tests::conformance::{Ability, Carries, World, payloads};

pub(crate) struct Source;

impl Source {
    pub(crate) async fn new(_world: &World) -> Source {
        Source
    }
}

#[async_trait]
impl SourceFixture for Source {
    fn spec(&self) -> SourceSpec {
        let count = i64::try_from(payloads(Carries::Anything).len()).unwrap();
        SourceSpec::Generator(GeneratorSource { rate: None, size: 30, count: Some(count) })
    }

    fn traits(&self) -> SourceTraits {
        SourceTraits { carries: Carries::Anything, replayable: true, keeps_commits: false, streams: 1 }
    }

    async fn produce(&mut self, _payloads: &[Vec<u8>]) {}

    fn expected(&self, produced: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        (1..=produced.len()).map(|number| format!("{number:.<30}").into_bytes()).collect()
    }

    async fn break_down(&mut self) -> Ability {
        Ability::NotApplicable("there is no outside")
    }

    async fn repair(&mut self) {}

    fn loss_is_noticed(&self) -> bool {
        false
    }

    fn wrong_credentials(&self, _world: &World) -> Result<SourceSpec, &'static str> {
        Err("there is no outside")
    }

    fn finite(&self) -> Result<SourceSpec, &'static str> {
        Ok(self.spec())
    }
}
