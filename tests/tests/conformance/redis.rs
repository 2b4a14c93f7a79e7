//! Redis: the server double of this crate.

use async_trait::async_trait;
use connector_crds::SinkSpec;
use connector_crds::systems::redis::{RedisAuth, RedisHash, RedisSink};
use connector_crds::systems::split::KeySplit;
use connector_tests::conformance::sink::{Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::{Ability, CANARY, Carries, PATIENCE, World};
use connector_tests::fake_redis::FakeRedis;
use tokio::time::{Duration, Instant, sleep};

pub(crate) struct Sink {
    server: FakeRedis,
    spec: RedisSink,
}

impl Sink {
    /// A server without authentication; field and value by length.
    pub(crate) async fn with_length_prefix(_world: &World) -> Sink {
        let server = FakeRedis::start().await;
        let hash = RedisHash { key: "totals".into(), field: KeySplit::LengthPrefix {}, ttl_seconds: None };
        let spec = RedisSink { address: server.address(), database: 0, hash, tls: None, auth: None };
        Sink { server, spec }
    }

    /// A server with an ACL user; field and value by a delimiter, another database, an expiry.
    pub(crate) async fn with_delimiter(world: &World) -> Sink {
        let server = FakeRedis::start().await;
        server.state().users.insert("writer".into(), CANARY.into());
        let auth = RedisAuth { username: Some("writer".into()), password: world.secret("redis", CANARY) };
        let hash = RedisHash {
            key: "totals".into(),
            field: KeySplit::Delimiter("=>".into()),
            ttl_seconds: Some(60),
        };
        let spec = RedisSink { address: server.address(), database: 3, hash, tls: None, auth: Some(auth) };
        Sink { server, spec }
    }
}

#[async_trait]
impl SinkFixture for Sink {
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
        let key = (i64::from(self.spec.database), self.spec.hash.key.clone().into_bytes());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let values: Vec<Vec<u8>> = self
                .server
                .state()
                .hashes
                .get(&key)
                .map(|hash| hash.values().cloned().collect())
                .unwrap_or_default();
            if values.len() >= count || Instant::now() > deadline {
                return values;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn bad_record(&self) -> Result<Vec<u8>, &'static str> {
        Ok(b"=no".to_vec())
    }

    async fn break_down(&mut self) -> Ability {
        self.server.stop().await;
        Ability::Done
    }

    async fn repair(&mut self) {
        self.server.restart().await;
    }

    fn wrong_credentials(&self, world: &World) -> Result<SinkSpec, &'static str> {
        let Some(auth) = &self.spec.auth else { return Err("this server asks for none") };
        let password = world.secret("wrong", &format!("not-{CANARY}"));
        Ok(SinkSpec::Redis(RedisSink {
            auth: Some(RedisAuth { password, ..auth.clone() }),
            ..self.spec.clone()
        }))
    }
}
