//! The Redis hash sink against a real server: TLS, users of few rights, and a server that is killed, hung or full.
//!
//! `tests/services/run` starts the server and runs these; some kill it, so one at a time.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use connector_crds::systems::redis::{RedisAuth, RedisHash, RedisSink};
use connector_crds::systems::split::KeySplit;
use connector_crds::systems::tls::TlsSpec;
use connector_crds::{SecretKeyRef, SinkSpec};
use connector_runtime::connectors::{self, Context};
use connector_runtime::record::{Batch, BatchBuilder, NO_TIME, Record};
use connector_runtime::secret::{Secrets, watch_files};
use connector_runtime::sink::{Sink, SinkStream};
use connector_runtime::source::{ErrorClass, SystemError};
use connector_tests::conformance::{PATIENCE, World};
use connector_tests::services::{control, environment};
use redis::AsyncCommands;
use tokio::time::{Duration, Instant, sleep, timeout};

#[path = "redis_service/contract.rs"]
mod contract;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// Text of the file that a variable of the services names.
fn file(variable: &str) -> String {
    std::fs::read_to_string(environment(variable)).unwrap()
}

/// A key that no other test uses, and that the user of few rights may use.
fn key() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test:{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The sink's configuration: over TLS, as the user that may only use keys that begin with `test:`.
fn over_tls(world: &World) -> RedisSink {
    RedisSink {
        address: environment("REDIS_TLS_ADDRESS"),
        database: 0,
        hash: RedisHash { key: key(), field: KeySplit::LengthPrefix {}, ttl_seconds: Some(600) },
        tls: Some(TlsSpec { ca: Some(world.secret("ca", &file("SERVICES_CA"))), ..TlsSpec::default() }),
        auth: Some(RedisAuth {
            username: Some(environment("REDIS_USER")),
            password: world.secret("password", &environment("REDIS_PASSWORD")),
        }),
    }
}

/// Another: plain, as the default user, in another database, without expiry.
fn plain(world: &World) -> RedisSink {
    RedisSink {
        address: environment("REDIS_ADDRESS"),
        database: 3,
        hash: RedisHash { key: key(), field: KeySplit::Delimiter("=>".into()), ttl_seconds: None },
        tls: None,
        auth: Some(RedisAuth {
            username: None,
            password: world.secret("password", &environment("REDIS_PASSWORD")),
        }),
    }
}

fn sink_of(spec: &RedisSink, context: Context) -> Box<dyn Sink> {
    connectors::sink(&SinkSpec::Redis(spec.clone()), context).unwrap()
}

fn stream() -> SinkStream {
    SinkStream { worker: "w".into(), incarnation: 1 }
}

/// Records with these numbers as field, value and position, split by length.
fn batch(numbers: Range<u64>) -> Batch {
    let mut builder = BatchBuilder::default();
    for number in numbers {
        let payload = [&8_u32.to_be_bytes()[..], &number.to_be_bytes(), &number.to_be_bytes()].concat();
        builder.push(Record { position: number + 1, time: NO_TIME, key: &[], payload: &payload });
    }
    builder.finish()
}

/// The error of the first write.
async fn refused(spec: &RedisSink, world: &World) -> SystemError {
    let mut sink = sink_of(spec, world.context());
    let error = timeout(PATIENCE, sink.deliver(&stream(), &batch(0..1))).await.expect("an answer");
    assert_eq!(sink.durable(), []);
    error.expect_err("the server refuses")
}

/// A connection of the test itself: plain, with all rights.
async fn connection(database: i32) -> redis::aio::MultiplexedConnection {
    let (password, address) = (environment("REDIS_PASSWORD"), environment("REDIS_ADDRESS"));
    let url = format!("redis://:{password}@{address}/{database}");
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Runs a command of which only the success matters.
async fn command(line: &str) {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command.query_async::<redis::Value>(&mut connection(0).await).await.unwrap();
}

async fn hash(spec: &RedisSink) -> BTreeMap<Vec<u8>, Vec<u8>> {
    connection(spec.database).await.hgetall(&spec.hash.key).await.unwrap()
}

/// Has the server up again when a test ends, also when it fails.
struct Repaired;

impl Drop for Repaired {
    fn drop(&mut self) {
        let repaired = std::panic::catch_unwind(|| {
            control("redis", &["resume"]);
            control("redis", &["up"]);
        });
        // A second panic would end all tests.
        assert!(repaired.is_ok() || std::thread::panicking(), "the server is not up again");
    }
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_key_that_the_user_may_not_write_and_no_password_are_errors_of_credentials() {
    let world = World::new();
    let mut spec = over_tls(&world);
    spec.hash.key = "other:key".into();
    let error = refused(&spec, &world).await;
    assert!(matches!(error, SystemError::Transient { class: ErrorClass::Auth, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with(&format!(r#"writing to hash "other:key" at {}: "#, spec.address)), "{text}");
    assert!(text.contains("permission"), "{text}");
    spec.auth = None;
    let error = refused(&spec, &world).await;
    assert!(matches!(error, SystemError::Transient { class: ErrorClass::Auth, .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_server_is_trusted_only_by_its_authority_and_its_name() {
    let world = World::new();
    let mut of_another = over_tls(&world);
    of_another.tls.as_mut().unwrap().ca = Some(world.secret("other", &file("SERVICES_OTHER_CA")));
    // The server listens there too, but its certificate does not say so.
    let mut named_otherwise = over_tls(&world);
    named_otherwise.address = named_otherwise.address.replace("localhost", "127.0.0.2");
    assert_ne!(named_otherwise.address, environment("REDIS_TLS_ADDRESS"));
    for spec in [of_another, named_otherwise] {
        let error = refused(&spec, &world).await;
        assert!(matches!(error, SystemError::Transient { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("connecting to {}: ", spec.address)), "{text}");
        assert!(text.contains("certificate"), "{text}");
    }
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_client_certificate_is_shown_to_the_server() {
    let world = World::new();
    let mut spec = over_tls(&world);
    let tls = spec.tls.as_mut().unwrap();
    tls.certificate = Some(world.secret("certificate", &file("SERVICES_CLIENT_CERTIFICATE")));
    tls.key = Some(world.secret("key", &file("SERVICES_CLIENT_KEY")));
    sink_of(&spec, world.context()).deliver(&stream(), &batch(0..1)).await.unwrap();
    assert_eq!(hash(&spec).await.len(), 1);
    // The server would take none at all; that it refuses this one shows that it got it.
    world.secret("certificate", &file("SERVICES_OTHER_CLIENT_CERTIFICATE"));
    world.secret("key", &file("SERVICES_OTHER_CLIENT_KEY"));
    let error = refused(&spec, &world).await;
    assert!(matches!(error, SystemError::Transient { .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_key_of_another_type_is_permanent_and_named_until_it_is_deleted() {
    let world = World::new();
    let spec = over_tls(&world);
    let key = &spec.hash.key;
    command(&format!("SET {key} text")).await;
    let error = refused(&spec, &world).await;
    assert!(matches!(error, SystemError::Permanent { reason: "WrongType", .. }), "{error:?}");
    assert!(error.to_string().contains(key), "{error}");
    command(&format!("DEL {key}")).await;
    sink_of(&spec, world.context()).deliver(&stream(), &batch(0..1)).await.unwrap();
    assert_eq!(hash(&spec).await.len(), 1);
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_full_server_is_throttling_and_takes_the_batch_when_it_has_room() {
    let world = World::new();
    let spec = over_tls(&world);
    let mut sink = sink_of(&spec, world.context());
    command("CONFIG SET maxmemory 1").await;
    let error = sink.deliver(&stream(), &batch(0..10)).await;
    command("CONFIG SET maxmemory 0").await;
    let error = error.expect_err("no room");
    assert!(matches!(error, SystemError::Transient { class: ErrorClass::Throttled, .. }), "{error:?}");
    sink.deliver(&stream(), &batch(0..10)).await.unwrap();
    assert_eq!(hash(&spec).await.len(), 10);
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn each_batch_renews_the_expiry_and_the_hash_is_gone_after_it() {
    let world = World::new();
    let mut spec = over_tls(&world);
    let key = spec.hash.key.clone();
    sink_of(&spec, world.context()).deliver(&stream(), &batch(0..1_000)).await.unwrap();
    let mut connection = connection(0).await;
    let left: i64 = connection.ttl(&key).await.unwrap();
    assert!((500..=600).contains(&left), "{left} s");
    let () = connection.persist(&key).await.unwrap();
    spec.hash.ttl_seconds = Some(1);
    sink_of(&spec, world.context()).deliver(&stream(), &batch(1_000..1_001)).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while connection.exists(&key).await.unwrap() {
        assert!(Instant::now() < deadline, "the hash does not expire");
        sleep(PAUSE).await;
    }
}

/// Numbers of the connections that a user has at the server.
async fn connections_of(user: &str) -> Vec<String> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection(0).await).await.unwrap();
    let own = list.lines().filter(|line| line.contains(&format!("user={user} ")));
    own.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_password_is_rotated_by_a_change_of_the_mounted_file_alone() {
    let world = World::new();
    let (secrets, changes) = Secrets::new(world.path().join("mounted"));
    let password = SecretKeyRef { name: "redis".into(), key: "password".into() };
    let mount = |text: &str| {
        let path = secrets.path(&password);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    mount("first\n");
    command("ACL SETUSER rotating reset on >first ~test:* +@all").await;
    let auth = RedisAuth { username: Some("rotating".into()), password: password.clone() };
    let spec =
        RedisSink { address: environment("REDIS_ADDRESS"), tls: None, auth: Some(auth), ..over_tls(&world) };
    tokio::spawn(watch_files(secrets.clone(), changes));
    let mut sink = sink_of(&spec, Context { secrets: secrets.clone(), ..world.context() });
    sink.deliver(&stream(), &batch(0..1)).await.unwrap();
    let before = connections_of("rotating").await;
    assert_eq!(before.len(), 1);

    // With care: both are valid while the file changes, and no batch fails.
    command("ACL SETUSER rotating >second").await;
    mount("second\n");
    let deadline = Instant::now() + PATIENCE;
    let mut next = 1;
    while connections_of("rotating").await.iter().all(|connection| before.contains(connection)) {
        assert!(Instant::now() < deadline, "the changed file is not used");
        sink.deliver(&stream(), &batch(next..next + 1)).await.unwrap();
        next += 1;
        sleep(PAUSE).await;
    }
    command("ACL SETUSER rotating <first").await;
    sink.deliver(&stream(), &batch(next..next + 1)).await.unwrap();

    // Without: the server changes first and hangs up. The same batch passes when the file has followed.
    command("ACL SETUSER rotating resetpass >third").await;
    command("CLIENT KILL USER rotating").await;
    let deadline = Instant::now() + PATIENCE;
    let waiting = batch(next + 1..next + 2);
    loop {
        match sink.deliver(&stream(), &waiting).await {
            Err(SystemError::Transient { class: ErrorClass::Auth, .. }) => break,
            Err(SystemError::Transient { class: ErrorClass::Connect, .. }) if Instant::now() < deadline => {}
            other => panic!("{other:?}"),
        }
    }
    mount("third\n");
    while let Err(error) = sink.deliver(&stream(), &waiting).await {
        assert!(Instant::now() < deadline, "{error}");
        sleep(PAUSE).await;
    }
    assert_eq!(hash(&spec).await.len() as u64, next + 2);
    command("ACL DELUSER rotating").await;
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn nothing_is_missing_when_the_server_is_killed_in_the_midst_of_twenty_thousand_records() {
    const RECORDS: u64 = 20_000;
    const BATCH: u64 = 100;
    const KILLS: u64 = 3;
    let _repaired = Repaired;
    let world = World::new();
    let spec = over_tls(&world);
    let mut sink = sink_of(&spec, world.context());
    let (mut next, mut kills, mut failures) = (0, 0, 0);
    let mut killing = None;
    let deadline = Instant::now() + 3 * PATIENCE;
    // Goes on beyond the number where the kills take longer than the records.
    while next < RECORDS || kills < KILLS {
        assert!(Instant::now() < deadline, "{next} records, {kills} kills, {failures} failures");
        if killing.is_none() && kills < KILLS && next >= (kills + 1) * RECORDS / (KILLS + 1) {
            killing = Some(tokio::task::spawn_blocking(|| {
                control("redis", &["kill"]);
                control("redis", &["up"]);
            }));
        }
        match sink.deliver(&stream(), &batch(next..next + BATCH)).await {
            Ok(written) => {
                assert_eq!(written, []);
                next += BATCH;
                assert_eq!(sink.durable(), [(stream(), next)]);
            }
            Err(SystemError::Transient { .. }) => {
                failures += 1;
                sleep(PAUSE).await;
            }
            Err(error @ SystemError::Permanent { .. }) => panic!("{error}"),
        }
        if let Some(done) = killing.take_if(|killing| killing.is_finished()) {
            done.await.unwrap();
            kills += 1;
        }
    }
    assert!(failures >= KILLS, "{failures} failures: the server was not killed in the midst");
    let expected: BTreeMap<Vec<u8>, Vec<u8>> =
        (0..next).map(|number| (number.to_be_bytes().to_vec(), number.to_be_bytes().to_vec())).collect();
    let found = hash(&spec).await;
    assert!(found == expected, "{} of {next} records", found.len());
}

#[tokio::test]
#[ignore = "needs Redis: tests/services/run"]
async fn a_server_that_hangs_is_a_timeout_and_takes_the_batch_when_it_goes_on() {
    let _repaired = Repaired;
    let world = World::new();
    let spec = over_tls(&world);
    let (mut writing, mut checked) = (sink_of(&spec, world.context()), sink_of(&spec, world.context()));
    writing.deliver(&stream(), &batch(0..1)).await.unwrap();
    control("redis", &["pause"]);
    let (stream, batch) = (stream(), batch(1..2));
    let begin = Instant::now();
    let (written, asked) =
        tokio::join!(writing.deliver(&stream, &batch), async { (checked.check().await, begin.elapsed()) });
    // The sink waits 10 s for an answer to a batch, and 5 s for a check, which dials here.
    for (result, took, limit) in [(written.map(drop), begin.elapsed(), 10), (asked.0, asked.1, 5)] {
        let error = result.expect_err("the server hangs");
        assert!(matches!(error, SystemError::Transient { class: ErrorClass::Timeout, .. }), "{error:?}");
        assert!(took < Duration::from_secs(limit + 3), "{took:?}: {error}");
    }
    assert_eq!(writing.durable(), [(stream.clone(), 1)]);
    control("redis", &["resume"]);
    writing.deliver(&stream, &batch).await.unwrap();
    assert_eq!(hash(&spec).await.len(), 2);
}
