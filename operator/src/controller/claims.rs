//! The claims of a Connector's pods: which go with a `StatefulSet`, and which are smaller than asked. Pure.
//!
//! Kubernetes makes a `StatefulSet` the owner of its claims where they are to go with it (`whenDeleted: Delete`), and the
//! controller takes that back only from claims whose pods exist (pkg/controller/statefulset of Kubernetes 1.36). A swap deletes
//! the `StatefulSet` and not the Connector, so the claims are released first.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Value, json};

use crate::build::quantity::exceeds;
use crate::names;

/// Word of Kubernetes for claims that outlive what made them.
pub const RETAIN: &str = "Retain";

/// Whether a `StatefulSet` makes claims.
pub fn makes_claims(set: &StatefulSet) -> bool {
    set.spec
        .as_ref()
        .and_then(|spec| spec.volume_claim_templates.as_ref())
        .is_some_and(|templates| !templates.is_empty())
}

/// Whether the controller has acted on a `StatefulSet` whose claims are to outlive it.
pub fn retains(set: &StatefulSet) -> bool {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let seen = set.status.as_ref().and_then(|status| status.observed_generation);
    policy.and_then(|policy| policy.when_deleted.as_deref()) == Some(RETAIN)
        && seen == set.metadata.generation
}

/// Whether a claim is one of a Connector's pods, by the name that a `StatefulSet` gives it.
pub fn is_of(claim: &PersistentVolumeClaim, connector: &str) -> bool {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let ordinal = name.rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse().ok());
    ordinal.is_some_and(|ordinal| name == names::claim(connector, ordinal))
}

/// The patch that takes the object of this uid out of a claim's owners; absent: it is none of them.
pub fn release(claim: &PersistentVolumeClaim, owner: &str) -> Option<Value> {
    let owners = claim.metadata.owner_references.as_ref()?;
    let index = owners.iter().position(|reference| reference.uid == owner)?;
    let path = format!("/metadata/ownerReferences/{index}");
    // The tests guard against another claim of this name, and against owners that have moved.
    Some(json!([
        {"op": "test", "path": "/metadata/uid", "value": claim.metadata.uid},
        {"op": "test", "path": format!("{path}/uid"), "value": owner},
        {"op": "remove", "path": path},
    ]))
}

/// Bound claims that ask for less than `size`: others cannot be resized yet (Kubernetes API, `PersistentVolumeClaim`).
pub fn too_small<'a>(claims: &'a [Arc<PersistentVolumeClaim>], size: &str) -> Vec<&'a PersistentVolumeClaim> {
    let bound = |claim: &PersistentVolumeClaim| {
        claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
            && claim.metadata.deletion_timestamp.is_none()
    };
    let asked = |claim: &PersistentVolumeClaim| {
        claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage").map(|size| size.0.clone())
    };
    claims
        .iter()
        .map(Arc::as_ref)
        .filter(|claim| bound(claim) && asked(claim).is_some_and(|asked| exceeds(size, &asked)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(value: Value) -> Arc<PersistentVolumeClaim> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn only_bound_claims_that_are_smaller_grow() {
        let sized = |size: &str, phase: &str| {
            claim(json!({"metadata": {"name": "state-a-0"}, "status": {"phase": phase},
                "spec": {"resources": {"requests": {"storage": size}}}}))
        };
        let claims =
            [sized("2Gi", "Bound"), sized("2Gi", "Pending"), sized("4Gi", "Bound"), sized("4096Mi", "Bound")];
        assert_eq!(too_small(&claims, "4Gi").len(), 1);
        assert!(too_small(&claims, "1Gi").is_empty());
    }

    #[test]
    fn a_claim_is_released_from_one_owner_only() {
        let owned = claim(json!({"metadata": {"name": "state-a-0", "uid": "c", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "a-0", "uid": "p"},
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "a", "uid": "s"},
        ]}}));
        let patch = release(&owned, "s").unwrap();
        assert_eq!(patch[2], json!({"op": "remove", "path": "/metadata/ownerReferences/1"}));
        assert!(release(&owned, "other").is_none());
    }

    #[test]
    fn a_claim_belongs_by_its_whole_name() {
        let named = |name: &str| claim(json!({"metadata": {"name": name}}));
        assert!(is_of(&named("state-a-0"), "a"));
        assert!(is_of(&named("state-a-b-12"), "a-b"));
        for other in ["state-a-b-0", "state-a", "state-a-x", "data-a-0"] {
            assert!(!is_of(&named(other), "a"), "{other}");
        }
    }
}
