//! Carries out steps: create, apply, delete, and what the API server may answer.

use std::fmt::Debug;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::step::{Creation, Step, marked, step};
use crate::build::Owner;
use crate::names::FIELD_MANAGER;

/// A kind whose objects live in namespaces.
pub trait Kind:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It holds what is desired.
    Done {
        /// Whether that took a write.
        written: bool,
    },
    /// It is there when something else is gone.
    Waiting,
    /// Somebody else has an object of this name.
    Conflict,
}

/// Why an object could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server judged the object and refused it: the same object is refused again.
    #[error("{kind} {name}: the API server refuses it: {message}")]
    Refused {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// What the API server says.
        message: String,
    },
    /// Its Connector is gone by now: whatever is made would be an orphan.
    #[error("its Connector is gone")]
    Gone,
    /// Anything else; tried again.
    #[error("{kind} {name}: {cause}")]
    Api {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// What came back.
        #[source]
        cause: Box<kube::Error>,
    },
}

/// Answer of a server that judged an object (422 of a wrong one, 403 of one that a policy or quota forbids).
const JUDGED: [u16; 2] = [422, 403];

fn failed<K: Kind>(name: &str, cause: kube::Error) -> ApplyError {
    let kind = K::kind(&()).into_owned();
    let name = name.to_owned();
    match cause {
        kube::Error::Api(status) if JUDGED.contains(&status.code) => {
            ApplyError::Refused { kind, name, message: status.message.clone() }
        }
        cause => ApplyError::Api { kind, name, cause: Box::new(cause) },
    }
}

/// HTTP status of an API server's answer; 0 for trouble before one.
pub fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// Makes one object as desired. `live` is what the watch holds.
pub async fn apply<K: Kind>(
    client: &Client,
    owner: &Owner,
    desired: &K,
    live: Option<&K>,
) -> Result<Applied, ApplyError> {
    let name = desired.meta().name.clone().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &owner.namespace);
    let value = marked(json(desired));
    match step(owner, &value, live.map(json).as_ref()) {
        Step::Nothing => Ok(Applied::Done { written: false }),
        Step::Wait => Ok(Applied::Waiting),
        Step::Foreign => Ok(Applied::Conflict),
        Step::Apply { uid, creation } => write::<K>(&api, &name, value, &uid, creation).await,
        Step::Create => create::<K>(&api, owner, &name, value).await,
    }
}

async fn create<K: Kind>(
    api: &Api<K>,
    owner: &Owner,
    name: &str,
    value: Value,
) -> Result<Applied, ApplyError> {
    let object: K = serde_json::from_value(value.clone())
        .map_err(|cause| failed::<K>(name, kube::Error::SerdeError(cause)))?;
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match api.create(&params, &object).await {
        Ok(_) => return Ok(Applied::Done { written: true }),
        Err(error) if code(&error) == 409 => {}
        Err(error) => return Err(failed::<K>(name, error)),
    }
    // Our watch is behind, or the name is taken: the object itself says which.
    let Some(live) = api.get_opt(name).await.map_err(|error| failed::<K>(name, error))? else {
        return Ok(Applied::Waiting);
    };
    match step(owner, &value, Some(&json(&live))) {
        Step::Nothing => Ok(Applied::Done { written: false }),
        Step::Foreign => Ok(Applied::Conflict),
        Step::Wait | Step::Create => Ok(Applied::Waiting),
        Step::Apply { uid, creation } => write::<K>(api, name, value, &uid, creation).await,
    }
}

async fn write<K: Kind>(
    api: &Api<K>,
    name: &str,
    mut value: Value,
    uid: &str,
    creation: Option<Creation>,
) -> Result<Applied, ApplyError> {
    let gone = |error: kube::Error| match code(&error) {
        // Another object of this name by now, or a newer version of it: the watch will say.
        404 | 409 => Ok(Applied::Waiting),
        _ => Err(failed::<K>(name, error)),
    };
    if let Some(Creation { index, resource_version }) = creation {
        // The version guards against a record that has moved.
        let patch = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "replace", "path": format!("/metadata/managedFields/{index}/operation"), "value": "Apply"},
        ]);
        let patch: Patch<()> = Patch::Json(
            serde_json::from_value(patch).map_err(|e| failed::<K>(name, kube::Error::SerdeError(e)))?,
        );
        match api.patch(name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            // The test did not hold.
            Err(error) if code(&error) == 422 => return Ok(Applied::Waiting),
            Err(error) => return gone(error),
        }
    }
    value["metadata"]["uid"] = uid.into();
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(name, &params, &Patch::Apply(&value)).await {
        Ok(_) => Ok(Applied::Done { written: true }),
        Err(error) => gone(error),
    }
}

/// How an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// At once; what is below it follows.
    Background,
    /// When everything below it is gone; until then its name is taken.
    Foreground,
    /// The same, and only in the very version that was seen.
    ForegroundAsSeen,
}

/// Deletes an object that was seen under this uid.
pub async fn delete<K: Kind>(
    client: &Client,
    namespace: &str,
    live: &K,
    deletion: Deletion,
) -> Result<(), ApplyError> {
    let name = live.meta().name.clone().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let (params, resource_version) = match deletion {
        Deletion::Background => (DeleteParams::background(), None),
        Deletion::Foreground => (DeleteParams::foreground(), None),
        Deletion::ForegroundAsSeen => (DeleteParams::foreground(), live.meta().resource_version.clone()),
    };
    let params = params.preconditions(Preconditions { uid: live.meta().uid.clone(), resource_version });
    match api.delete(&name, &params).await {
        Ok(_) => Ok(()),
        Err(error) if [404, 409].contains(&code(&error)) => Ok(()),
        Err(error) => Err(failed::<K>(&name, error)),
    }
}

/// Carries out a JSON patch whose tests name what was seen; false: they did not hold, or the object is gone.
pub async fn patch_as_seen<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    patch: Value,
) -> Result<bool, ApplyError> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let patch: Patch<()> = Patch::Json(
        serde_json::from_value(patch).map_err(|e| failed::<K>(name, kube::Error::SerdeError(e)))?,
    );
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    match api.patch(name, &params, &patch).await {
        Ok(_) => Ok(true),
        Err(error) if [404, 409, 422].contains(&code(&error)) => Ok(false),
        Err(error) => Err(failed::<K>(name, error)),
    }
}

/// Changes fields of an object of this uid that others own too; nothing when it is gone.
pub async fn merge<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    patch: &Value,
) -> Result<(), ApplyError> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    match api.patch(name, &params, &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        // Another object of this name by now.
        Err(error) if [404, 409].contains(&code(&error)) => Ok(()),
        Err(error) => Err(failed::<K>(name, error)),
    }
}

/// The objects of a kind that carry these labels, as the API server holds them now.
pub async fn list<K: Kind>(client: &Client, namespace: &str, labels: &str) -> Result<Vec<K>, ApplyError> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default().labels(labels)).await;
    Ok(found.map_err(|error| failed::<K>("", error))?.items)
}

fn json<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("an object of the API has text keys only")
}
