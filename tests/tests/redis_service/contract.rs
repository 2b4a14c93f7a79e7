//! The contract of all sinks at the real server, as `conformance.rs` has it at the double.

use async_trait::async_trait;
use connector_crds::SinkSpec;
use connector_crds::systems::redis::RedisSink;
use connector_crds::systems::split::KeySplit;
use connector_tests::conformance::sink::{self, Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::{Ability, CANARY, Carries, PATIENCE, World};
use connector_tests::services::control;
use tokio::time::{Instant, sleep};

use super::{PAUSE, Repaired, hash};

struct Real {
    spec: RedisSink,
    _repaired: Repaired,
}

#[async_trait]
impl SinkFixture for Real {
    fn spec(&self) -> SinkSpec {
        SinkSpec::Redis(self.spec.clone())
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits { carries: Carries::Anything, replay: Replay::Idempotent }
    }

    fn record(&self, number: u64, payload: &[u8]) -> Vec<u8> {
        let field = format!("{number:020}").into_bytes();
        match &self.spec.hash.field {
            KeySplit::Delimiter(delimiter) => [&field, delimiter.as_bytes(), payload].concat(),
            KeySplit::LengthPrefix {} => [&20_u32.to_be_bytes()[..], &field, payload].concat(),
        }
    }

    async fn delivered(&mut self, count: usize) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = hash(&self.spec).await;
            if all.len() >= count || Instant::now() > deadline {
                return all.into_values().collect();
            }
            sleep(PAUSE).await;
        }
    }

    fn bad_record(&self) -> Result<Vec<u8>, &'static str> {
        Ok(b"\xff\xff\xff\xffno".to_vec())
    }

    async fn break_down(&mut self) -> Ability {
        control("redis", &["kill"]);
        Ability::Done
    }

    async fn repair(&mut self) {
        control("redis", &["up"]);
    }

    fn wrong_credentials(&self, world: &World) -> Result<SinkSpec, &'static str> {
        let mut spec = self.spec.clone();
        spec.auth.as_mut().unwrap().password = world.secret("wrong", CANARY);
        Ok(SinkSpec::Redis(spec))
    }
}

/// The contract of all sinks, as in `conformance.rs`, for a configuration.
macro_rules! conformance {
    ($spec:ident: $($check:ident)*) => {
        mod $spec {
            use super::*;
            $(
                #[tokio::test]
                #[ignore = "needs Redis: tests/services/run"]
                async fn $check() {
                    let world = World::new();
                    let mut real = Real { spec: super::super::$spec(&world), _repaired: Repaired };
                    sink::$check(&mut real, &world).await;
                }
            )*
        }
    };
    ($($spec:ident)*) => {
        $(conformance! { $spec:
            every_record_arrives_unchanged_in_order
            a_replay_does_what_is_promised
            a_rejected_record_is_named_and_the_others_arrive
            streams_are_apart_and_an_archived_one_is_forgotten
            a_lost_system_is_transient_and_takes_the_batch_later
            wrong_credentials_are_said
            no_secret_is_shown
        })*
    };
}

conformance! { over_tls plain }
