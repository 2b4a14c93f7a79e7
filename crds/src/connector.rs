//! The resource itself.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{self, Rules};
use crate::status::ConnectorStatus;
use crate::{DeliverySpec, PodSpec, RuntimeSpec, SinkSpec, SourceSpec, VolumeSpec, WallarooSpec};

/// One system, one Wallaroo end, and how records go from one to the other.
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
    derive = "PartialEq",
    doc = "A bridge between an external system and Wallaroo.",
    validation = rules::NAME_LENGTH.rule(),
    validation = rules::NAME_LABEL.rule(),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    selectable = ".status.type",
    selectable = ".spec.state",
    printcolumn(name = "Type", type_ = "string", json_path = ".status.type"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Up", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Want", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Guarantee", type_ = "string", json_path = ".status.delivery.guarantee", priority = 1),
    printcolumn(name = "Listen", type_ = "string", json_path = ".status.listenAddress", priority = 1),
    printcolumn(name = "Last-Error", type_ = "string", json_path = ".status.lastError.reason", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = Rules(&[
    &rules::ONE_DIRECTION,
    &rules::SAME_DIRECTION,
    &rules::SOURCE_CONNECTS,
    &rules::SOURCE_NO_LISTEN,
    &rules::SINK_LISTENS,
    &rules::SINK_NO_CONNECT,
    &rules::FRAMING_OF_FRAMED_SOURCE,
    &rules::FRAMED_SINK_NEEDS_FRAMING,
    &rules::SINK_FRAMING_OF_FRAMED_SINK,
    &rules::FIXED_FRAME_BYTES,
    &rules::ACK_ON_RECEIPT_OF_CONNECTOR,
    &rules::ONE_TRANSACTIONAL_SINK,
]))]
pub struct ConnectorSpec {
    /// The system that records come from; exclusive with `sink`, and fixed with the Connector's creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-effect" = "recreates"))]
    pub source: Option<SourceSpec>,
    /// The system that records go to; exclusive with `source`, and fixed with the Connector's creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-effect" = "recreates"))]
    pub sink: Option<SinkSpec>,
    /// The Wallaroo end.
    pub wallaroo: WallarooSpec,
    /// How records are handed over.
    #[serde(default)]
    pub delivery: DeliverySpec,
    /// The state volume: transaction log and identity.
    #[serde(default)]
    pub storage: VolumeSpec,
    /// Pods that share the work; a sink over `Connector` has at most one.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1_000), extend("x-effect" = "scales", "x-unit" = "pods"))]
    pub replicas: i32,
    /// Whether the Connector runs.
    #[serde(default)]
    #[schemars(extend("x-effect" = "live"))]
    pub state: State,
    /// A new value restarts the pods, and takes up what an upgrade of the operator left pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub restart_nonce: Option<String>,
    /// The process in the pods.
    #[serde(default)]
    pub runtime: RuntimeSpec,
    /// The pods.
    #[serde(default)]
    pub pod: PodSpec,
    /// A new value opens a new epoch: every stream starts over under a new identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub position_reset: Option<String>,
}

fn default_replicas() -> i32 {
    1
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
