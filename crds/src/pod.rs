//! The pods: resources, scheduling, labels, account. A selection; everything else is the operator's.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{self, Rules};
use crate::scheduling::{Affinity, Spread};

/// How the pods are made and where they run.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// CPU and memory; what is absent gets a value from the operator.
    pub resources: Resources,
    /// Labels of the pods beside the operator's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = bounded_map)]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods beside the operator's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = bounded_map)]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = bounded_map)]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// Which nodes and neighbours the pods want.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How evenly the pods are spread over places.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub topology_spread_constraints: Vec<Spread>,
    /// Name of a `PriorityClass`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Names of Secrets with credentials of image registries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub image_pull_secrets: Vec<String>,
    /// Name of an existing ServiceAccount to run as; absent: one of the Connector's own, without rights.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// The Connector's own ServiceAccount.
    pub service_account: ServiceAccountSpec,
}

/// The Connector's own ServiceAccount.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAccountSpec {
    /// Annotations of the ServiceAccount, e.g. those of a cloud's workload identity.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = bounded_map, extend("x-effect" = "nothing"))]
    pub annotations: BTreeMap<String, String>,
}

/// CPU and memory of a pod.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What a pod is sure to get.
    pub requests: Amounts,
    /// What a pod gets at most.
    pub limits: Amounts,
}

/// An amount of CPU and of memory.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Amounts {
    /// CPU, e.g. `500m` or `2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), transform = Rules(&[&rules::AMOUNT]))]
    pub cpu: Option<String>,
    /// Memory, e.g. `256Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), transform = Rules(&[&rules::AMOUNT]))]
    pub memory: Option<String>,
}

/// A taint that the pods tolerate, with the meaning of Kubernetes.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    /// Key of the taint; absent with `operator: Exists`: every taint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
    /// How key and value are compared.
    pub operator: TolerationOperator,
    /// Value of the taint; with `operator: Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect of the taint; absent: every effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// Seconds that a pod stays on a node with a `NoExecute` taint; absent: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub toleration_seconds: Option<i64>,
}

/// How a toleration is compared with a taint.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum TolerationOperator {
    /// Key and value are equal.
    #[default]
    Equal,
    /// The key is there.
    Exists,
}

impl TolerationOperator {
    /// The word of Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            TolerationOperator::Equal => "Equal",
            TolerationOperator::Exists => "Exists",
        }
    }
}

/// What a taint does to pods.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum TaintEffect {
    /// No new pods.
    NoSchedule,
    /// No new pods while there is another node.
    PreferNoSchedule,
    /// No pods.
    NoExecute,
}

impl TaintEffect {
    /// The word of Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            TaintEffect::NoSchedule => "NoSchedule",
            TaintEffect::PreferNoSchedule => "PreferNoSchedule",
            TaintEffect::NoExecute => "NoExecute",
        }
    }
}

/// Entries of a map at most: more than any pod has use for.
const MAX_ENTRIES: u64 = 32;

/// Longest value in a map, in characters; an annotation may hold a whole ARN.
const MAX_VALUE: u64 = 1_024;

/// Bounds a map of texts.
pub(crate) fn bounded_map(schema: &mut schemars::Schema) {
    schema.insert("maxProperties".into(), MAX_ENTRIES.into());
    if let Some(values) = schema.get_mut("additionalProperties").and_then(serde_json::Value::as_object_mut) {
        values.insert("maxLength".into(), MAX_VALUE.into());
    }
}
