//! The Redis hash sink against a real server: TLS, a user of few rights, and a server that is killed.
//!
//! `tests/services/run` starts the server and runs these; some kill it, so one at a time.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use connector_crds::SinkSpec;
use connector_crds::systems::redis::{FieldSplit, RedisAuth, RedisHash, RedisSink};
use connector_crds::systems::tls::TlsSpec;
use connector_runtime::connectors;
use connector_runtime::source::{ErrorClass, SystemError};
use connector_tests::conformance::sink::{self, Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::{Ability, CANARY, Carries, PATIENCE, World};
use connector_tests::services::{control, environment};
use redis::AsyncCommands;
use tokio::time::{Duration, Instant, sleep};

/// The sink's configuration: over TLS, as the user that may only use keys that begin with `test:`.
fn spec(world: &World, key: &str) -> RedisSink {
    let ca = std::fs::read_to_string(environment("SERVICES_CA")).unwrap();
    RedisSink {
        address: environment("REDIS_TLS_ADDRESS"),
        database: 0,
        hash: RedisHash { key: key.into(), field: FieldSplit::LengthPrefix {}, ttl_seconds: Some(600) },
        tls: Some(TlsSpec { ca: Some(world.secret("ca", &ca)), ..TlsSpec::default() }),
        auth: Some(RedisAuth {
            username: Some(environment("REDIS_USER")),
            password: world.secret("password", &environment("REDIS_PASSWORD")),
        }),
    }
}

/// A connection of the test itself: plain, with all rights.
async fn connection() -> redis::aio::MultiplexedConnection {
    let url = format!("redis://:{}@{}", environment("REDIS_PASSWORD"), environment("REDIS_ADDRESS"));
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

struct Real {
    spec: RedisSink,
}

impl Real {
    fn new(world: &World) -> Real {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let key = format!("test:{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Real { spec: spec(world, &key) }
    }
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
        [&20_u32.to_be_bytes()[..], format!("{number:020}").as_bytes(), payload].concat()
    }

    async fn delivered(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut connection = connection().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all: std::collections::BTreeMap<Vec<u8>, Vec<u8>> =
                connection.hgetall(&self.spec.hash.key).await.unwrap();
            if all.len() >= count || Instant::now() > deadline {
                return all.into_values().collect();
            }
            sleep(Duration::from_millis(10)).await;
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

/// The contract of all sinks, as in `conformance.rs`.
macro_rules! conformance {
    ($($check:ident)*) => {
        $(
            #[tokio::test]
            #[ignore = "needs Redis: tests/services/run"]
            async fn $check() {
                let world = World::new();
                sink::$check(&mut Real::new(&world), &world).await;
            }
        )*
    };
}

conformance! {
    every_record_arrives_unchanged_in_order
    a_replay_does_what_is_promised
    a_rejected_record_is_named_and_the_others_arrive
    streams_are_apart_and_an_archived_one_is_forgotten
    a_lost_system_is_transient_and_takes_the_batch_later
    wrong_credentials_are_said
    no_secret_is_shown
}

/// The error of `check`, or of the first write.
async fn refused(spec: RedisSink, world: &World) -> SystemError {
    use connector_runtime::record::{BatchBuilder, NO_TIME, Record};
    let mut sink = connectors::sink(&SinkSpec::Redis(spec), world.context()).unwrap();
    let mut builder = BatchBuilder::default();
    builder.push(Record { position: 1, time: NO_TIME, key: &[], payload: b"\0\0\0\x01fv" });
    let stream = connector_runtime::sink::SinkStream { worker: "w".into(), incarnation: 1 };
    sink.write(&stream, &builder.finish()).await.expect_err("the server refuses")
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_key_that_the_user_may_not_write_is_an_error_of_credentials() {
    let world = World::new();
    let error = refused(spec(&world, "other:key"), &world).await;
    assert!(matches!(error, SystemError::Transient { class: ErrorClass::Auth, .. }), "{error:?}");
    assert!(error.to_string().contains("NOPERM") || error.to_string().contains("permission"), "{error}");
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_server_whose_certificate_another_authority_signed_is_not_trusted() {
    let world = World::new();
    let mut spec = spec(&world, "test:tls");
    let other = std::fs::read_to_string(environment("SERVICES_OTHER_CA")).unwrap();
    spec.tls.as_mut().unwrap().ca = Some(world.secret("other", &other));
    let error = refused(spec, &world).await;
    assert!(matches!(error, SystemError::Transient { .. }), "{error:?}");
    assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_key_of_another_type_is_permanent_and_named() {
    let world = World::new();
    let _: () = connection().await.set("test:string", "text").await.unwrap();
    let error = refused(spec(&world, "test:string"), &world).await;
    assert!(matches!(error, SystemError::Permanent { reason: "WrongType", .. }), "{error:?}");
    assert!(error.to_string().contains("test:string"), "{error}");
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn the_hash_expires_as_configured() {
    let world = World::new();
    let mut real = Real::new(&world);
    sink::every_record_arrives_unchanged_in_order(&mut real, &world).await;
    let left: i64 = connection().await.ttl(&real.spec.hash.key).await.unwrap();
    assert!((1..=600).contains(&left), "{left} s");
}
