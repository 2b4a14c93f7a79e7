//! What one object needs: nothing, a write, patience, or a person. Pure.

use connector_crds::GROUP;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::{Value, json};

use super::difference::{holds, owns};
use crate::build::Owner;
use crate::build::rendering::hash;
use crate::names::{APPLIED_ANNOTATION, FIELD_MANAGER};

/// What one object needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It holds what is desired.
    Nothing,
    /// Our watch does not hold it.
    Create,
    /// A field of ours differs.
    Apply {
        /// The uid that was seen: a write to another object of this name is refused.
        uid: String,
        /// Index of the record that a creation left in `managedFields` as an update: it becomes an apply first, or
        /// what we cease to set would stay.
        creation: Option<Creation>,
    },
    /// It is being deleted, or belongs to an earlier Connector of this name.
    Wait,
    /// It is somebody else's and is not touched.
    Foreign,
}

/// Where the record of a creation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Creation {
    /// Index in `managedFields`.
    pub index: usize,
    /// Version of the object in which it stands there.
    pub resource_version: String,
}

/// Adds the hash of everything that is set, so that a field that is not set any more is a difference too.
pub fn marked(mut desired: Value) -> Value {
    let text = hash(&[("object".to_owned(), desired.to_string())].into());
    if !desired["metadata"]["annotations"].is_object() {
        desired["metadata"]["annotations"] = json!({});
    }
    desired["metadata"]["annotations"][APPLIED_ANNOTATION] = text[..16].into();
    desired
}

/// Decides about one object. `desired` is [`marked`].
pub fn step(owner: &Owner, desired: &Value, live: Option<&Value>) -> Step {
    let Some(live) = live else { return Step::Create };
    let metadata: ObjectMeta = serde_json::from_value(live["metadata"].clone()).unwrap_or_default();
    match whose(owner, &metadata) {
        Whose::Ours => {}
        Whose::Gone => return Step::Wait,
        Whose::Foreign => return Step::Foreign,
    }
    let managed_fields = metadata.managed_fields.unwrap_or_default();
    if holds(desired, live) && owns(desired, &managed_fields) {
        return Step::Nothing;
    }
    let creation = creation(&managed_fields)
        .zip(metadata.resource_version)
        .map(|(index, resource_version)| Creation { index, resource_version });
    Step::Apply { uid: metadata.uid.unwrap_or_default(), creation }
}

/// Whether an object is of an earlier Connector of this name, and nobody has begun to delete it.
pub fn is_left_over(owner: &Owner, metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_none() && matches!(whose(owner, metadata), Whose::Gone)
}

enum Whose {
    Ours,
    Gone,
    Foreign,
}

fn whose(owner: &Owner, metadata: &ObjectMeta) -> Whose {
    let controller =
        metadata.owner_references.iter().flatten().find(|reference| reference.controller == Some(true));
    let of_group = |api_version: &str| api_version.split('/').next() == Some(GROUP);
    match controller {
        Some(reference) if reference.uid == owner.uid => {
            if metadata.deletion_timestamp.is_some() {
                Whose::Gone
            } else {
                Whose::Ours
            }
        }
        // Its Connector is gone: the garbage collector removes it.
        Some(reference)
            if reference.kind == "Connector"
                && of_group(&reference.api_version)
                && reference.name == owner.name =>
        {
            Whose::Gone
        }
        Some(_) | None => Whose::Foreign,
    }
}

fn creation(managed_fields: &[ManagedFieldsEntry]) -> Option<usize> {
    managed_fields.iter().position(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Update")
            && entry.subresource.is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{desired, owner, redis_sink};

    /// The object as the API server would hold it after our creation.
    fn stored(desired: &Value) -> Value {
        let mut live = desired.clone();
        live["metadata"]["uid"] = "uid-of-it".into();
        live["metadata"]["resourceVersion"] = "7".into();
        live["metadata"]["managedFields"] = json!([
            {"manager": FIELD_MANAGER, "operation": "Update", "fieldsV1": {"f:metadata": {}, "f:spec": {}, "f:data": {}}},
        ]);
        live
    }

    fn service() -> Value {
        marked(serde_json::to_value(desired(redis_sink()).service.unwrap()).unwrap())
    }

    #[test]
    fn an_object_that_holds_what_is_desired_is_left_alone() {
        let service = service();
        assert_eq!(step(&owner(), &service, Some(&stored(&service))), Step::Nothing);
        assert_eq!(step(&owner(), &service, None), Step::Create);
    }

    #[test]
    fn a_change_is_applied_to_the_object_that_was_seen() {
        let service = service();
        let mut live = stored(&service);
        live["spec"]["publishNotReadyAddresses"] = false.into();
        let Step::Apply { uid, creation } = step(&owner(), &service, Some(&live)) else { panic!() };
        assert_eq!((uid.as_str(), creation.unwrap().index), ("uid-of-it", 0));
    }

    #[test]
    fn a_field_that_is_not_set_any_more_is_a_difference() {
        let with = |annotations: Value| {
            marked(json!({"metadata": {"name": "a", "annotations": annotations,
                "ownerReferences": serde_json::to_value(desired(redis_sink()).live.metadata.owner_references).unwrap()}}))
        };
        let live = stored(&with(json!({"role": "x"})));
        assert!(matches!(step(&owner(), &with(json!({})), Some(&live)), Step::Apply { .. }));
    }

    #[test]
    fn what_is_not_ours_is_never_touched() {
        let service = service();
        let mut foreign = stored(&service);
        foreign["metadata"]["ownerReferences"] = json!([]);
        assert_eq!(step(&owner(), &service, Some(&foreign)), Step::Foreign);
        let mut neighbour = stored(&service);
        neighbour["metadata"]["ownerReferences"][0]["uid"] = "x".into();
        neighbour["metadata"]["ownerReferences"][0]["kind"] = "Deployment".into();
        assert_eq!(step(&owner(), &service, Some(&neighbour)), Step::Foreign);
    }

    #[test]
    fn what_an_earlier_connector_of_this_name_left_is_waited_for() {
        let service = service();
        let mut earlier = stored(&service);
        earlier["metadata"]["ownerReferences"][0]["uid"] = "uid-0".into();
        assert_eq!(step(&owner(), &service, Some(&earlier)), Step::Wait);
        let mut ending = stored(&service);
        ending["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z".into();
        assert_eq!(step(&owner(), &service, Some(&ending)), Step::Wait);
    }
}
