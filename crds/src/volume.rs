//! The state volume as Kubernetes sees it, beside what the runtime keeps in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::StorageSpec;
use crate::rules::{self, Rules};

/// The state volume: its claim, and what the runtime keeps in it.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = Rules(&[&rules::VOLUME_GROWS]))]
pub struct VolumeSpec {
    /// What the runtime keeps.
    #[serde(flatten)]
    pub log: StorageSpec,
    /// Size of the volume, e.g. `2Gi`; may grow and never shrink.
    #[schemars(length(min = 3, max = 9), transform = Rules(&[&rules::VOLUME_SIZE]), extend("x-effect" = "recreates"))]
    pub size: String,
    /// Name of a `StorageClass`, for claims that are made from now on; absent: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-effect" = "recreates"))]
    pub class: Option<String>,
    /// No claim: the state is lost with the pod, which weakens what `status.delivery` states.
    #[schemars(extend("x-effect" = "recreates"))]
    pub ephemeral: bool,
    /// What becomes of the claims when the Connector is deleted.
    #[schemars(extend("x-effect" = "nothing"))]
    pub when_deleted: ClaimPolicy,
    /// What becomes of the claims of pods that fewer replicas leave over.
    #[schemars(extend("x-effect" = "nothing"))]
    pub when_scaled: ClaimPolicy,
}

/// Holds the default backlog of 1 GiB twice: a log is rewritten before the old one is removed.
const SIZE: &str = "2Gi";

impl Default for VolumeSpec {
    fn default() -> Self {
        VolumeSpec {
            log: StorageSpec::default(),
            size: SIZE.into(),
            class: None,
            ephemeral: false,
            when_deleted: ClaimPolicy::default(),
            when_scaled: ClaimPolicy::default(),
        }
    }
}

/// What becomes of a claim whose pod is gone for good.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ClaimPolicy {
    /// It stays, with what is in it.
    #[default]
    Retain,
    /// It is deleted, with what is in it.
    Delete,
}

impl ClaimPolicy {
    /// The word of Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            ClaimPolicy::Retain => "Retain",
            ClaimPolicy::Delete => "Delete",
        }
    }
}
