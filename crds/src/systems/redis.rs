//! Redis.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::split::KeySplit;
use super::tls::TlsSpec;
use crate::SecretKeyRef;
use crate::rules::{self, Rules};

/// Writes each record as one field of a hash.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RedisSink {
    /// Server, `host:port`.
    #[schemars(length(min = 1, max = 260), transform = Rules(&[&rules::HOST_PORT]))]
    pub address: String,
    /// Database number.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65_535))]
    pub database: i32,
    /// The hash that records are written to.
    pub hash: RedisHash,
    /// TLS to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Authentication at the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RedisAuth>,
}

/// A Redis hash as target: `HSET key field value`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RedisHash {
    /// Key of the hash.
    #[schemars(length(min = 1, max = 1024))]
    pub key: String,
    /// How a record splits into field and value.
    #[serde(default)]
    pub field: KeySplit,
    /// Seconds after the last write until the hash expires; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315_360_000))]
    pub ttl_seconds: Option<i32>,
}

/// Redis authentication.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RedisAuth {
    /// ACL user; absent: the default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub username: Option<String>,
    /// Password.
    pub password: SecretKeyRef,
}
