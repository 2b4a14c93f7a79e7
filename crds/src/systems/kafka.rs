//! Apache Kafka.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::split::KeySplit;
use super::tls::TlsSpec;
use crate::SecretKeyRef;
use crate::rules::{self, ItemRules, Rules};

/// Reads topics through a consumer group.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = Rules(&[&rules::TOPICS_OR_PATTERN, &rules::PLAIN_NEEDS_TLS]))]
pub struct KafkaSource {
    /// Brokers to start from, `host:port` each.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 260)), transform = ItemRules(&[&rules::HOST_PORT]))]
    pub bootstrap_servers: Vec<String>,
    /// Topics to read; exclusive with `topicPattern`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 249)))]
    pub topics: Vec<String>,
    /// Regular expression of topics to read; exclusive with `topics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    pub topic_pattern: Option<String>,
    /// Consumer group; absent: `<namespace>.<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    pub group: Option<String>,
    /// Where a partition starts that neither Wallaroo nor the group knows.
    #[serde(default)]
    pub start_position: StartPosition,
    /// TLS to the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Authentication at the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
}

/// Writes each record to a topic, with `acks=all` and an idempotent producer.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = Rules(&[&rules::PLAIN_NEEDS_TLS]))]
pub struct KafkaSink {
    /// Brokers to start from, `host:port` each.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 260)), transform = ItemRules(&[&rules::HOST_PORT]))]
    pub bootstrap_servers: Vec<String>,
    /// Topic to write to; it must exist.
    #[schemars(length(min = 1, max = 249))]
    pub topic: String,
    /// How a record splits into key and value; absent: no key, the record is the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySplit>,
    /// Which partition a key goes to.
    #[serde(default)]
    pub partitioner: Partitioner,
    /// Compression of what is sent.
    #[serde(default)]
    pub compression: Compression,
    /// Over `Connector`, write in transactions that carry Wallaroo's position too: exactly once, for readers with `read_committed`.
    #[serde(default = "default_exactly_once")]
    pub exactly_once: bool,
    /// TLS to the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// SASL authentication at the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
}

fn default_exactly_once() -> bool {
    true
}

/// Which partition a record with a key goes to; one without goes to any.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Partitioner {
    /// By the Murmur2 hash of the key, as Kafka's Java clients do.
    #[default]
    Murmur2,
    /// By the CRC32 of the key, as librdkafka does unless told otherwise.
    Crc32,
    /// By the FNV-1a hash of the key, as Sarama does.
    Fnv1a,
}

/// Compression.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Compression {
    /// None.
    #[default]
    None,
    /// Gzip: small and slow.
    Gzip,
    /// Snappy: fast.
    Snappy,
    /// LZ4: fast.
    Lz4,
}

/// Where a partition starts that neither Wallaroo nor the group knows.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = Rules(&[&rules::TIMESTAMP_WITH_AT, &rules::OFFSET_WITH_AT]))]
pub struct StartPosition {
    /// Which record is the first.
    #[serde(default)]
    pub at: StartAt,
    /// Milliseconds since the Unix epoch; with `at: Timestamp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64), extend("x-unit" = "ms"))]
    pub timestamp: Option<i64>,
    /// Offset in every partition; with `at: Offset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub offset: Option<i64>,
}

/// Which record of a partition is the first.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest record that the broker holds.
    #[default]
    Earliest,
    /// The next record to be written.
    Latest,
    /// The first record of `timestamp` or later.
    Timestamp,
    /// The record at `offset`.
    Offset,
}

/// SASL authentication.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSasl {
    /// Mechanism.
    pub mechanism: SaslMechanism,
    /// User name.
    #[schemars(length(min = 1, max = 256))]
    pub username: String,
    /// Password.
    pub password: SecretKeyRef,
}

/// SASL mechanism.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum SaslMechanism {
    /// PLAIN; needs TLS.
    #[serde(rename = "PLAIN")]
    Plain,
    /// SCRAM with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// SCRAM with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}
