//! Where pods may run beside each other: affinity and spreading, with the names of Kubernetes so that examples can be pasted.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pod::bounded_map;
use crate::rules::{self, Rules};

/// Which nodes and neighbours the pods want; a part of Kubernetes' own block.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// Which nodes the pods want.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<NodeAffinity>,
    /// Which pods they want to be near to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_affinity: Option<PodAffinity>,
    /// Which pods they want to be far from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_anti_affinity: Option<PodAffinity>,
}

/// Which nodes the pods want.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAffinity {
    /// What a node must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_during_scheduling_ignored_during_execution: Option<NodeSelector>,
    /// What a node had better have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub preferred_during_scheduling_ignored_during_execution: Vec<PreferredNode>,
}

/// Terms of which a node must fulfil at least one.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelector {
    /// The terms.
    #[schemars(length(min = 1, max = 8))]
    pub node_selector_terms: Vec<NodeTerm>,
}

/// A term: everything in it must hold.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeTerm {
    /// What must hold of the node's labels.
    #[schemars(length(min = 1, max = 8))]
    pub match_expressions: Vec<NodeExpression>,
}

/// What must hold of one label of a node.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = Rules(&[&rules::VALUES_WITH_OPERATOR]))]
pub struct NodeExpression {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How its value is compared.
    pub operator: NodeOperator,
    /// Values that it is compared with; with `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a label of a node is compared.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum NodeOperator {
    /// It is one of the values.
    In,
    /// It is none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// A wish for nodes, and what it weighs.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PreferredNode {
    /// What it weighs beside other wishes.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
    /// What the node had better have.
    pub preference: NodeTerm,
}

/// Which pods are meant, and how near.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAffinity {
    /// What must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub required_during_scheduling_ignored_during_execution: Vec<PodTerm>,
    /// What had better hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub preferred_during_scheduling_ignored_during_execution: Vec<PreferredPod>,
}

/// Pods of the same namespace, and what counts as one place.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodTerm {
    /// Label of nodes; those with the same value are one place, e.g. `kubernetes.io/hostname`.
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// Which pods; absent: those of this Connector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<PodLabels>,
}

/// Labels that pods must have.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodLabels {
    /// The labels with their values.
    #[schemars(transform = bounded_map)]
    pub match_labels: BTreeMap<String, String>,
}

/// A wish for neighbours, and what it weighs.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PreferredPod {
    /// What it weighs beside other wishes.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
    /// Which pods, and what counts as one place.
    pub pod_affinity_term: PodTerm,
}

/// How evenly the Connector's pods are spread over places.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    /// Pods that one place may have more than another.
    #[schemars(range(min = 1, max = 1_000))]
    pub max_skew: i32,
    /// Label of nodes; those with the same value are one place, e.g. `topology.kubernetes.io/zone`.
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// What happens to a pod that cannot be placed so.
    #[serde(default)]
    pub when_unsatisfiable: Unsatisfiable,
}

/// What happens to a pod that cannot be placed evenly.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Unsatisfiable {
    /// It waits.
    #[default]
    DoNotSchedule,
    /// It runs all the same.
    ScheduleAnyway,
}
