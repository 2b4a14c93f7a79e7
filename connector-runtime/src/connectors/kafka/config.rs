//! What librdkafka is told: the only place that knows the names of its settings.

use connector_crds::systems::kafka::{
    Compression, KafkaSasl, KafkaSink, KafkaSource as Spec, Partitioner, SaslMechanism,
};
use connector_crds::systems::tls::TlsSpec;
use connector_crds::{ConnectorIdentity, SecretKeyRef};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::connectors::Context;
use crate::secret::Secrets;
use crate::source::{ErrorClass, SystemError};

/// Time without heartbeat after which the group gives the partitions to others. A pod that is replaced within it gets
/// the same partitions back without a rebalance (static membership).
const SESSION_TIMEOUT_MS: &str = "45000";

/// Longest time without a poll. The pump polls ten times a second, also while it is held back.
const MAX_POLL_INTERVAL_MS: &str = "300000";

/// How soon a new topic and a new partition are seen: named topics cost a broker one small request.
const METADATA_INTERVAL_MS: u32 = 5_000;

/// The same for a pattern, which asks for every topic of the cluster.
const PATTERN_METADATA_INTERVAL_MS: u32 = 30_000;

/// Longest pause between two attempts to connect.
const RECONNECT_MAX_MS: &str = "2000";

/// Bounds on what librdkafka fetches ahead, in KiB; in between it is the in-flight bound. Less than one fetch of a
/// partition (1 MiB) makes it fetch single records, and more than this only costs memory: it is
/// what the fastest flow moves in a twentieth of a second.
const PREFETCH_KIB: std::ops::RangeInclusive<i64> = 1_024..=16_384;

/// Records that librdkafka fetches ahead: each costs a few hundred bytes beside its own.
const PREFETCH_RECORDS: i32 = 50_000;

/// How long a producer waits for more records before it sends, in milliseconds: as long as it takes to hand over a batch.
const LINGER_MS: &str = "1";

/// Longest time until a record is known to be written or not, in milliseconds: as long as an outage stays unnoticed.
const MESSAGE_TIMEOUT_MS: &str = "5000";

/// After this time without an end the broker gives a transaction up. Longer than everything that a transaction waits for together.
const TRANSACTION_TIMEOUT_MS: &str = "60000";

/// Records that wait in a producer, in KiB: two batches of the pump.
const QUEUE_KIB: &str = "4096";

/// How a certificate begins in PEM.
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Longest name of a static member that brokers take.
const MAX_INSTANCE_BYTES: usize = 249;

/// The group that the source reads in.
pub(super) fn group(spec: &Spec, identity: &ConnectorIdentity) -> String {
    spec.group.clone().unwrap_or_else(|| format!("{}.{}", identity.namespace, identity.name))
}

/// The topics to subscribe to: names, or one regular expression as librdkafka wants it.
pub(super) fn subscription(spec: &Spec) -> Vec<String> {
    match &spec.topic_pattern {
        Some(pattern) if pattern.starts_with('^') => vec![pattern.clone()],
        Some(pattern) => vec![format!("^{pattern}")],
        None => spec.topics.clone(),
    }
}

/// How often topics are looked at, in milliseconds.
pub(super) fn metadata_interval_ms(spec: &Spec) -> u32 {
    if spec.topic_pattern.is_some() { PATTERN_METADATA_INTERVAL_MS } else { METADATA_INTERVAL_MS }
}

/// Name of the static member: the same after a restart, another one for each pod, and for each subscription. (A broker
/// gives a static member that comes back what it had, whatever it subscribes to by now: under one name a Connector would go
/// on in the topics that its manifest no longer names. So an edit of the topics waits for the end of the earlier member's
/// session.)
fn instance(spec: &Spec, identity: &ConnectorIdentity, host: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let digest = Sha256::digest(subscription(spec).join("\n"));
    let name = format!("{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3]);
    let name = format!("{name}.{}.{}.{host}", identity.namespace, identity.name);
    name.chars().map(legal).take(MAX_INSTANCE_BYTES).collect()
}

/// What the Secrets held when they were read, for telling what changed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// Of certificates and key.
    pub(super) tls: [u8; 32],
    /// Of the password.
    pub(super) password: [u8; 32],
}

/// Settings and credentials of a client.
pub(super) struct Settings {
    pub(super) config: ClientConfig,
    pub(super) password: Option<SecretString>,
    pub(super) fingerprint: Fingerprint,
}

/// Reads the Secrets and makes the settings. `host` is the name of this host, `member` that of the static member's.
///
/// # Errors
/// Transient, class `Auth`, for a Secret that is missing or holds no certificate.
pub(super) fn settings(spec: &Spec, context: &Context, host: &str) -> Result<Settings, SystemError> {
    let mut config = ClientConfig::new();
    let identity = &context.identity;
    let in_flight = context.in_flight;
    let kib = (in_flight.bytes / 1_024).clamp(*PREFETCH_KIB.start(), *PREFETCH_KIB.end());
    config
        .set("group.id", group(spec, identity))
        .set("group.instance.id", instance(spec, identity, host))
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", SESSION_TIMEOUT_MS)
        .set("max.poll.interval.ms", MAX_POLL_INTERVAL_MS)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("queued.max.messages.kbytes", kib.to_string())
        .set("queued.min.messages", in_flight.records.clamp(1, PREFETCH_RECORDS).to_string())
        // When the queue was full, how soon it is looked at again; the default of 1 s is a pause in the flow.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.max.bytes", (kib * 1_024).to_string())
        .set("topic.metadata.refresh.interval.ms", metadata_interval_ms(spec).to_string());
    access(config, context, &spec.bootstrap_servers, spec.tls.as_ref(), spec.sasl.as_ref())
}

/// Settings of a producer; with `transactional` under the Connector's transactional id.
///
/// # Errors
/// As [`settings`].
pub(super) fn producer(
    spec: &KafkaSink,
    context: &Context,
    transactional: bool,
) -> Result<Settings, SystemError> {
    let mut config = ClientConfig::new();
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        // A batch is waited for as a whole: there is nothing to wait for beyond it.
        .set("linger.ms", LINGER_MS)
        .set("message.timeout.ms", MESSAGE_TIMEOUT_MS)
        .set("queue.buffering.max.kbytes", QUEUE_KIB)
        .set(
            "partitioner",
            match spec.partitioner {
                Partitioner::Murmur2 => "murmur2_random",
                Partitioner::Crc32 => "consistent_random",
                Partitioner::Fnv1a => "fnv1a_random",
            },
        )
        .set(
            "compression.type",
            match spec.compression {
                Compression::None => "none",
                Compression::Gzip => "gzip",
                Compression::Snappy => "snappy",
                Compression::Lz4 => "lz4",
            },
        );
    if transactional {
        let identity = &context.identity;
        config
            .set("transactional.id", format!("wallaroo-{}.{}", identity.namespace, identity.name))
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS);
    }
    access(config, context, &spec.bootstrap_servers, spec.tls.as_ref(), spec.sasl.as_ref())
}

/// Settings of a client that asks for the offset of a group and never joins it.
///
/// # Errors
/// As [`settings`].
pub(super) fn group_reader(
    spec: &KafkaSink,
    context: &Context,
    group: &str,
) -> Result<Settings, SystemError> {
    let mut config = ClientConfig::new();
    // With `read_committed` the answer waits for the end of transactions that may change it.
    config.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    access(config, context, &spec.bootstrap_servers, spec.tls.as_ref(), spec.sasl.as_ref())
}

/// What every client needs to reach the brokers; reads the Secrets.
fn access(
    mut config: ClientConfig,
    context: &Context,
    servers: &[String],
    tls_spec: Option<&TlsSpec>,
    sasl: Option<&KafkaSasl>,
) -> Result<Settings, SystemError> {
    let identity = &context.identity;
    config
        .set_log_level(RDKafkaLogLevel::Warning)
        .set("bootstrap.servers", servers.join(","))
        .set("client.id", format!("wallaroo-{}.{}", identity.namespace, identity.name))
        .set("reconnect.backoff.max.ms", RECONNECT_MAX_MS)
        .set("socket.keepalive.enable", "true");
    let secrets = &context.secrets;
    let mut tls = Sha256::new();
    if let Some(spec) = tls_spec {
        // librdkafka reads the files itself; they are read here so that a missing one is named.
        let files = [
            ("tls.ca", "ssl.ca.location", &spec.ca),
            ("tls.certificate", "ssl.certificate.location", &spec.certificate),
            ("tls.key", "ssl.key.location", &spec.key),
        ];
        for (field, setting, reference) in files {
            let Some(reference) = reference else { continue };
            let text = secrets.read(reference)?;
            let text = text.expose_secret().as_bytes();
            if field != "tls.key" && memchr::memmem::find(text, PEM_CERTIFICATE).is_none() {
                return Err(no_certificate(field, reference));
            }
            tls.update(Sha256::digest(text));
            config.set(setting, path(secrets, reference));
        }
    }
    let mut password = None;
    if let Some(sasl) = sasl {
        let secret = secrets.read(&sasl.password)?;
        let mechanism = match sasl.mechanism {
            SaslMechanism::Plain => "PLAIN",
            SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        config
            .set("sasl.mechanism", mechanism)
            .set("sasl.username", &sasl.username)
            .set("sasl.password", secret.expose_secret());
        password = Some(secret);
    }
    let protocol = match (tls_spec, sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    let secret = password.as_ref().map(|secret| secret.expose_secret().as_bytes()).unwrap_or_default();
    let fingerprint = Fingerprint { tls: tls.finalize().into(), password: Sha256::digest(secret).into() };
    Ok(Settings { config, password, fingerprint })
}

fn path(secrets: &Secrets, reference: &SecretKeyRef) -> String {
    secrets.path(reference).to_string_lossy().into_owned()
}

fn no_certificate(field: &str, reference: &SecretKeyRef) -> SystemError {
    SystemError::Transient {
        context: format!(
            "{field}: key {:?} of Secret {:?} holds no PEM certificate",
            reference.key, reference.name
        ),
        class: ErrorClass::Auth,
        cause: None,
    }
}

#[cfg(test)]
mod tests {
    use connector_crds::InFlight;
    use connector_crds::systems::kafka::{KafkaSasl, StartPosition};
    use connector_crds::systems::tls::TlsSpec;

    use super::*;
    use crate::connectors::testing::context;

    fn spec() -> Spec {
        Spec {
            bootstrap_servers: vec!["a:1".into(), "b:2".into()],
            topics: vec!["orders".into()],
            topic_pattern: None,
            group: None,
            start_position: StartPosition::default(),
            tls: None,
            sasl: None,
        }
    }

    fn reference(name: &str) -> SecretKeyRef {
        SecretKeyRef { name: name.into(), key: "value".into() }
    }

    #[test]
    fn librdkafka_takes_every_setting_and_never_moves_an_offset_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&spec(), &context(directory.path()), "host_1").unwrap();
        settings.config.create_native_config().unwrap();
        for (name, value) in [
            ("bootstrap.servers", "a:1,b:2"),
            ("group.id", "default.test"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
            ("security.protocol", "plaintext"),
        ] {
            assert_eq!(settings.config.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn what_is_fetched_ahead_follows_the_bound_in_flight() {
        let directory = tempfile::tempdir().unwrap();
        let mut context = context(directory.path());
        for (bytes, records, kib, messages) in [
            (1_024, 1, "1024", "1"),
            (16_777_216, 1_000_000, "16384", "50000"),
            (4_294_967_296, 100_000_000, "16384", "50000"),
        ] {
            context.in_flight = InFlight { records, bytes };
            let config = settings(&spec(), &context, "h").unwrap().config;
            assert_eq!(config.get("queued.max.messages.kbytes"), Some(kib));
            assert_eq!(config.get("queued.min.messages"), Some(messages));
            config.create_native_config().unwrap();
        }
    }

    #[test]
    fn secrets_are_read_named_when_missing_and_shown_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let context = context(directory.path());
        let mut spec = spec();
        spec.tls = Some(TlsSpec { ca: Some(reference("ca")), ..TlsSpec::default() });
        let mechanism = SaslMechanism::ScramSha512;
        spec.sasl = Some(KafkaSasl { mechanism, username: "me".into(), password: reference("pw") });
        let fails = || settings(&spec, &context, "h").err().unwrap().to_string();
        let write = |name: &str, text: &str| {
            let path = context.secrets.path(&reference(name));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(fails(), r#"key "value" of Secret "ca" does not exist"#);
        write("ca", "something");
        assert_eq!(fails(), r#"tls.ca: key "value" of Secret "ca" holds no PEM certificate"#);
        write("ca", "-----BEGIN CERTIFICATE-----\n");
        assert_eq!(fails(), r#"key "value" of Secret "pw" does not exist"#);
        write("pw", "canary-1\n");
        let first = settings(&spec, &context, "h").unwrap();
        assert_eq!(first.config.get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(first.config.get("sasl.password"), Some("canary-1"));
        assert!(!format!("{:?}", first.config).contains("canary"));
        write("pw", "canary-2");
        let second = settings(&spec, &context, "h").unwrap();
        assert!(first.fingerprint.tls == second.fingerprint.tls);
        assert!(first.fingerprint.password != second.fingerprint.password);
    }

    #[test]
    fn a_pattern_is_anchored_where_librdkafka_takes_it_for_one() {
        let mut spec = spec();
        assert_eq!(subscription(&spec), ["orders"]);
        spec.topics.clear();
        for (pattern, subscribed) in [("^a.*", "^a.*"), ("a.*", "^a.*")] {
            spec.topic_pattern = Some(pattern.into());
            assert_eq!(subscription(&spec), [subscribed]);
        }
    }

    #[test]
    fn a_member_has_a_name_that_brokers_take() {
        let identity = ConnectorIdentity { namespace: "ns".into(), name: "c".into(), epoch: String::new() };
        let first = instance(&spec(), &identity, "c-0");
        assert_eq!(first[8..], *".ns.c.c-0");
        assert_eq!(instance(&spec(), &identity, "hôst/1")[8..], *".ns.c.h-st-1");
        assert_eq!(instance(&spec(), &identity, &"x".repeat(400)).len(), MAX_INSTANCE_BYTES);
        let other = Spec { topics: vec!["orders".into(), "more".into()], ..spec() };
        assert_ne!(instance(&other, &identity, "c-0"), first, "another subscription is another member");
    }
}
