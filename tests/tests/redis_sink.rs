//! What the Redis hash sink does beyond the contract of all sinks, against the server double.

#![allow(clippy::unwrap_used)]

use connector_crds::SinkSpec;
use connector_crds::systems::redis::{RedisAuth, RedisHash, RedisSink};
use connector_crds::systems::split::KeySplit;
use connector_crds::systems::tls::TlsSpec;
use connector_runtime::connectors;
use connector_runtime::record::{Batch, BatchBuilder, NO_TIME, Record};
use connector_runtime::sink::{Sink, SinkStream};
use connector_runtime::source::{ErrorClass, SystemError};
use connector_tests::conformance::World;
use connector_tests::fake_redis::FakeRedis;

fn spec(server: &FakeRedis) -> RedisSink {
    let hash = RedisHash { key: "h".into(), field: KeySplit::default(), ttl_seconds: None };
    RedisSink { address: server.address(), database: 0, hash, tls: None, auth: None }
}

fn sink(spec: &RedisSink, world: &World) -> Box<dyn Sink> {
    connectors::sink(&SinkSpec::Redis(spec.clone()), world.context()).unwrap()
}

fn stream() -> SinkStream {
    SinkStream { worker: "w".into(), incarnation: 1 }
}

fn batch<'a>(payloads: impl IntoIterator<Item = &'a str>) -> Batch {
    let mut builder = BatchBuilder::default();
    for (position, payload) in (1..).zip(payloads) {
        builder.push(Record { position, time: NO_TIME, key: &[], payload: payload.as_bytes() });
    }
    builder.finish()
}

fn value(server: &FakeRedis, field: &str) -> String {
    let state = server.state();
    String::from_utf8(state.hashes[&(0, b"h".to_vec())][field.as_bytes()].clone()).unwrap()
}

#[tokio::test]
async fn the_last_value_of_a_field_wins_within_and_across_batches() {
    let (server, world) = (FakeRedis::start().await, World::new());
    let mut sink = sink(&spec(&server), &world);
    sink.deliver(&stream(), &batch(["a:1", "b:1", "a:2"])).await.unwrap();
    assert_eq!((value(&server, "a"), value(&server, "b")), ("2".into(), "1".into()));
    sink.deliver(&stream(), &batch(["a:3:4"])).await.unwrap();
    assert_eq!(value(&server, "a"), "3:4");
}

#[tokio::test]
async fn a_large_batch_is_few_commands_on_one_connection_and_renews_the_expiry_once() {
    let (server, world) = (FakeRedis::start().await, World::new());
    let mut spec = spec(&server);
    spec.hash.ttl_seconds = Some(77);
    let mut sink = sink(&spec, &world);
    let payloads: Vec<String> = (0..10_000).map(|n| format!("field{n}:{n}")).collect();
    for _ in 0..3 {
        sink.deliver(&stream(), &batch(payloads.iter().map(String::as_str))).await.unwrap();
    }
    let state = server.state();
    assert_eq!(state.hashes[&(0, b"h".to_vec())].len(), 10_000);
    assert_eq!(state.connections, 1);
    assert_eq!(state.commands["EXPIRE"], 3);
    assert!(state.commands["HSET"] <= 3 * 20, "{} commands", state.commands["HSET"]);
    assert_eq!(state.expiries[&b"h".to_vec()], 77);
}

#[tokio::test]
async fn a_batch_of_rejected_records_alone_sends_nothing_and_is_passed() {
    let (server, world) = (FakeRedis::start().await, World::new());
    let mut spec = spec(&server);
    spec.hash.ttl_seconds = Some(77);
    let mut sink = sink(&spec, &world);
    let written = sink.deliver(&stream(), &batch(["no", "none"])).await.unwrap();
    assert_eq!(written.len(), 2);
    assert_eq!(sink.durable(), [(stream(), 2)]);
    assert!(!server.state().commands.contains_key("HSET"));
}

#[tokio::test]
async fn the_servers_word_decides_what_an_error_is() {
    let (server, world) = (FakeRedis::start().await, World::new());
    let mut sink = sink(&spec(&server), &world);
    for (answer, class) in [
        ("NOPERM this user has no permissions to run the 'hset' command", ErrorClass::Auth),
        ("NOAUTH Authentication required.", ErrorClass::Auth),
        ("OOM command not allowed when used memory > 'maxmemory'.", ErrorClass::Throttled),
        ("LOADING Redis is loading the dataset in memory", ErrorClass::Throttled),
        ("READONLY You can't write against a read only replica.", ErrorClass::Rejected),
        ("MISCONF Redis is configured to save RDB snapshots", ErrorClass::Rejected),
        ("ERR unknown", ErrorClass::Rejected),
    ] {
        server.state().refusals.push_back(answer.into());
        let error = sink.deliver(&stream(), &batch(["a:1"])).await.unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, SystemError::Transient { class: c, .. } if c == class),
            "{answer}: {error:?}"
        );
        assert!(text.starts_with(&format!("writing to hash \"h\" at {}: ", server.address())), "{text}");
        assert_eq!(sink.durable(), []);
    }
    for (answer, expected) in [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "WrongType"),
        ("MOVED 3999 127.0.0.1:6381", "RedisCluster"),
    ] {
        server.state().refusals.push_back(answer.into());
        let error = sink.deliver(&stream(), &batch(["a:1"])).await.unwrap_err();
        assert!(
            matches!(error, SystemError::Permanent { reason, .. } if reason == expected),
            "{answer}: {error:?}"
        );
    }
    sink.deliver(&stream(), &batch(["a:1"])).await.unwrap();
    assert_eq!(value(&server, "a"), "1");
}

#[tokio::test]
async fn an_error_of_one_command_among_many_fails_the_batch() {
    let (server, world) = (FakeRedis::start().await, World::new());
    let mut sink = sink(&spec(&server), &world);
    let payloads: Vec<String> = (0..2_000).map(|n| format!("{n}:{n}")).collect();
    // One of four commands runs out of memory.
    sink.deliver(&stream(), &batch(["first:1"])).await.unwrap();
    server.state().refusals.extend(["OOM command not allowed".to_owned()]);
    let all = batch(payloads.iter().map(String::as_str));
    let error = sink.deliver(&stream(), &all).await.unwrap_err();
    assert!(matches!(error, SystemError::Transient { class: ErrorClass::Throttled, .. }), "{error:?}");
    sink.deliver(&stream(), &all).await.unwrap();
    assert_eq!(server.state().hashes[&(0, b"h".to_vec())].len(), 2_001);
}

#[tokio::test]
async fn a_changed_password_is_used_by_the_next_batch_without_a_restart() {
    let (server, world) = (FakeRedis::start().await, World::new());
    server.state().users.insert("default".into(), "old".into());
    let password = world.secret("redis", "old\n");
    let spec = RedisSink { auth: Some(RedisAuth { username: None, password }), ..spec(&server) };
    let mut sink = sink(&spec, &world);
    sink.deliver(&stream(), &batch(["a:1"])).await.unwrap();
    server.state().users.insert("default".into(), "new".into());
    world.secret("redis", "new");
    sink.deliver(&stream(), &batch(["a:2"])).await.unwrap();
    assert_eq!(server.state().connections, 2);
    assert_eq!(value(&server, "a"), "2");
}

#[tokio::test]
async fn a_missing_secret_is_named_until_it_appears() {
    let (server, world) = (FakeRedis::start().await, World::new());
    server.state().users.insert("default".into(), "pw".into());
    let password = connector_crds::SecretKeyRef { name: "redis".into(), key: "value".into() };
    let spec = RedisSink { auth: Some(RedisAuth { username: None, password }), ..spec(&server) };
    let mut sink = sink(&spec, &world);
    let error = sink.check().await.unwrap_err();
    assert_eq!(error.to_string(), r#"key "value" of Secret "redis" does not exist"#);
    world.secret("redis", "pw");
    sink.check().await.unwrap();
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_said() {
    let (server, world) = (FakeRedis::start().await, World::new());
    let spec = RedisSink { database: 99, ..spec(&server) };
    let error = sink(&spec, &world).check().await.unwrap_err();
    assert!(error.to_string().contains(&server.address()), "{error}");
}

#[tokio::test]
async fn certificates_that_are_none_are_said_before_anything_is_sent() {
    let (server, world) = (FakeRedis::start().await, World::new());
    let reference = world.secret("ca", "not a certificate");
    for (tls, text) in [
        (
            TlsSpec { ca: Some(reference.clone()), ..TlsSpec::default() },
            "tls.ca: key \"value\" of Secret \"ca\" holds",
        ),
        (
            TlsSpec { certificate: Some(reference.clone()), ..TlsSpec::default() },
            "tls.certificate and tls.key need each",
        ),
    ] {
        let spec = RedisSink { tls: Some(tls), ..spec(&server) };
        let error = sink(&spec, &world).check().await.unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
        assert_eq!(server.state().connections, 0);
    }
}
