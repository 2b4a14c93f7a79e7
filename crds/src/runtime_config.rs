//! What the operator renders and the runtime reads: one immutable file, and a small live one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DeliverySpec, SinkSpec, SourceSpec, State, StorageSpec, WallarooSpec};

/// The immutable rendering of a Connector: `config.json`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Who the Connector is.
    pub identity: ConnectorIdentity,
    /// The system that records come from; exactly one of `source` and `sink` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceSpec>,
    /// The system that records go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink: Option<SinkSpec>,
    /// The Wallaroo end.
    pub wallaroo: WallarooSpec,
    /// How records are handed over.
    #[serde(default)]
    pub delivery: DeliverySpec,
    /// The state volume.
    #[serde(default)]
    pub storage: StorageSpec,
    /// Where the runtime finds and keeps files.
    pub paths: Paths,
    /// Address of the admin server, `host:port`; port 0 for any.
    #[schemars(length(min = 1, max = 260))]
    pub admin: String,
    /// Seconds that a drain may take after SIGTERM.
    #[serde(default = "default_drain_timeout_seconds")]
    #[schemars(range(min = 0, max = 86_400))]
    pub drain_timeout_seconds: u32,
}

fn default_drain_timeout_seconds() -> u32 {
    30
}

/// Who a Connector is; the names of its streams derive from it.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorIdentity {
    /// Namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// `spec.positionReset`: another value is another epoch.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub epoch: String,
}

/// Where the runtime finds and keeps files.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Paths {
    /// Directory of mounted Secrets: `<secrets>/<name>/<key>`.
    #[schemars(length(min = 1, max = 4096))]
    pub secrets: String,
    /// Directory of the state volume; exists.
    #[schemars(length(min = 1, max = 4096))]
    pub state: String,
    /// The live file; absent file: defaults.
    #[schemars(length(min = 1, max = 4096))]
    pub live: String,
    /// Directory that relative paths of `file` systems are resolved against.
    #[schemars(length(min = 1, max = 4096))]
    pub base: String,
    /// Socket of a custom connector; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub socket: String,
}

/// What takes effect without a restart: `live.json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct LiveConfig {
    /// Log level: error, warn, info, debug or trace; empty: info.
    pub log_level: String,
    /// Whether records move.
    pub state: State,
}
