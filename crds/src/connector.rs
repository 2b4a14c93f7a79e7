//! The resource itself.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DeliverySpec, SinkSpec, SourceSpec, StorageSpec, WallarooSpec};

/// A bridge between an external system and Wallaroo.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[kube(
    group = "connectors.wallaroolabs.com",
    version = "v1alpha1",
    kind = "Connector",
    plural = "connectors",
    shortname = "wcn",
    category = "wallaroo",
    namespaced,
    status = "ConnectorStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorSpec {
    /// The system that records come from; exclusive with `sink`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceSpec>,
    /// The system that records go to; exclusive with `source`.
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
    /// Whether the Connector runs.
    #[serde(default)]
    pub state: State,
    /// A new value opens a new epoch: every stream starts over under a new identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub position_reset: Option<String>,
}

/// Whether a Connector runs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum State {
    /// Records move.
    #[default]
    Running,
    /// Sessions stay, nothing is read or delivered.
    Paused,
    /// Drained, then no pod.
    Stopped,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
