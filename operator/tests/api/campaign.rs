//! The campaign: each field of the resource changed to another legal value and back, at a real API server.
//!
//! Oracles: the objects that a change reaches equal those of a Connector created with that spec, the way back reaches what was, and
//! pods restart exactly when the field reference says so. `CAMPAIGN_FIELDS` takes a sample by `CAMPAIGN_SEED`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use connector_crds::Effect;
use connector_operator::names::{APPLIED_ANNOTATION, RENDERING_ANNOTATION, live, selector_text};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::{Cluster, from};
use crate::fields::{Change, changes};
use crate::kubelet;
use crate::operator::{IMAGE, Operator};

/// Fields that are tried at the same time: two cores are busy with about as many.
const CONCURRENCY: usize = 8;

/// How long a generation may take to be ready: many times what it takes.
const DEADLINE: Duration = Duration::from_mins(1);

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Why a spec was not reached.
enum Stuck {
    /// Kubernetes takes no such object: the value is not legal, and the status says so.
    Refused,
    /// It should have been.
    Late(String),
}

/// What is there of one Connector.
#[derive(Clone, Debug, PartialEq)]
struct Reached {
    /// Every object, without what only the server sets.
    objects: BTreeMap<String, Value>,
    /// Uid of the `StatefulSet`.
    set: String,
    /// Uids of the pods, by name.
    pods: BTreeMap<String, String>,
    live: Value,
}

struct Field<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Field<'_> {
    fn connectors(&self) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<connector_crds::Connector>(&());
        Api::namespaced_with(self.cluster.client.clone(), &self.cluster.namespace, &resource)
    }

    /// Accounts and priorities that a spec names.
    async fn surroundings(&self, spec: &Value) {
        if let Some(name) = spec.pointer("/pod/serviceAccountName") {
            let account: ServiceAccount = from(json!({"metadata": {"name": name}}));
            let _ = self.cluster.api().create(&PostParams::default(), &account).await;
        }
        if let Some(name) = spec.pointer("/pod/priorityClassName") {
            let class: PriorityClass = from(json!({"metadata": {"name": name}, "value": 1}));
            let classes: Api<PriorityClass> = Api::all(self.cluster.client.clone());
            let _ = classes.create(&PostParams::default(), &class).await;
        }
    }

    async fn create(&self, spec: &Value) -> Result<Reached, Stuck> {
        self.surroundings(spec).await;
        let object: DynamicObject = from(json!({
            "apiVersion": "connectors.wallaroolabs.com/v1alpha1", "kind": "Connector",
            "metadata": {"name": self.name}, "spec": spec,
        }));
        let made = self.connectors().create(&PostParams::default(), &object).await;
        let made = made.unwrap_or_else(|error| panic!("{}: {error}: {spec}", self.name));
        self.reached(made.metadata.generation).await
    }

    async fn replace(&self, spec: &Value) -> Result<Reached, Stuck> {
        self.surroundings(spec).await;
        let patch = json!([{"op": "replace", "path": "/spec", "value": spec}]);
        let patch: Patch<()> = Patch::Json(serde_json::from_value(patch).unwrap());
        let made = self.connectors().patch(&self.name, &PatchParams::default(), &patch).await;
        let made = made.unwrap_or_else(|error| panic!("{}: {error}: {spec}", self.name));
        self.reached(made.metadata.generation).await
    }

    async fn delete(&self) {
        self.cluster.delete::<connector_crds::Connector>(&self.name).await;
    }

    /// Waits until this generation is ready, then looks.
    async fn reached(&self, generation: Option<i64>) -> Result<Reached, Stuck> {
        let end = Instant::now() + DEADLINE;
        loop {
            let status = self.connectors().get(&self.name).await.unwrap().data["status"].take();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
            if status["observedGeneration"].as_i64() == generation
                && ready.is_some_and(|ready| {
                    ready["observedGeneration"].as_i64() == generation && ready["status"] == "True"
                })
            {
                return Ok(self.look().await);
            }
            if ready.is_some_and(|ready| ready["reason"] == "ApplyRefused") {
                return Err(Stuck::Refused);
            }
            if Instant::now() > end {
                let what = format!("generation {generation:?} is not ready after {DEADLINE:?}: {ready:?}");
                return Err(Stuck::Late(what));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> Reached {
        let (cluster, name) = (self.cluster, &self.name);
        let mut objects = BTreeMap::new();
        let mut add = |kind: &str, object: Option<Value>| {
            if let Some(object) = object {
                objects.insert(kind.to_owned(), bare(object));
            }
        };
        let set = cluster.set(name).await;
        let rendering =
            set.spec.as_ref().unwrap().template.metadata.as_ref().unwrap().annotations.as_ref().unwrap()
                [RENDERING_ANNOTATION]
                .clone();
        let uid = set.uid().unwrap();
        add("StatefulSet", Some(value(&set)));
        add("ConfigMap rendering", cluster.find::<ConfigMap>(&rendering).await.map(|it| value(&it)));
        let live = cluster.find::<ConfigMap>(&live(name)).await.map(|it| value(&it));
        add("ConfigMap live", live.clone());
        let account = cluster.find::<ServiceAccount>(name).await;
        add("ServiceAccount", account.map(|it| value(&it)));
        add("Service", cluster.find::<Service>(name).await.map(|it| value(&it)));
        let budget = cluster.find::<PodDisruptionBudget>(name).await;
        add("PodDisruptionBudget", budget.map(|it| value(&it)));
        add("NetworkPolicy", cluster.find::<NetworkPolicy>(name).await.map(|it| value(&it)));
        let pods =
            cluster.api::<Pod>().list(&ListParams::default().labels(&selector_text(name))).await.unwrap();
        let pods = pods.items.iter().map(|pod| (pod.name_any(), pod.uid().unwrap())).collect();
        Reached { objects, set: uid, pods, live: live.unwrap_or_default()["data"].take() }
    }
}

fn value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}

/// An object without what the server sets, and without the uid of its owner.
fn bare(mut object: Value) -> Value {
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    for name in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
        metadata.remove(name);
    }
    for owner in metadata["ownerReferences"].as_array_mut().unwrap() {
        owner["uid"] = Value::Null;
    }
    // A hash over the uid of the owner too.
    metadata["annotations"].as_object_mut().unwrap().remove(APPLIED_ANNOTATION);
    for name in ["clusterIP", "clusterIPs"] {
        if object["spec"][name].is_null() {
            continue;
        }
        object["spec"][name] = Value::Null;
    }
    object
}

/// What a change did to the pods.
fn effect(before: &Reached, after: &Reached) -> Effect {
    if before.set != after.set {
        return Effect::Recreates;
    }
    let stayed = before.pods.iter().filter(|(name, uid)| after.pods.get(*name) == Some(*uid)).count();
    if before.pods.len() != after.pods.len() && stayed == before.pods.len().min(after.pods.len()) {
        return Effect::Scales;
    }
    if stayed != before.pods.len() {
        return Effect::Restarts;
    }
    if before.live == after.live { Effect::Nothing } else { Effect::Live }
}

/// What is wrong with one field; empty: nothing.
async fn judge(field: &Field<'_>, change: &Change) -> Result<Vec<String>, Stuck> {
    let mut wrong = Vec::new();
    let mut check = |what: &str, one: &Reached, other: &Reached| {
        for kind in
            one.objects.keys().chain(other.objects.keys().filter(|kind| !one.objects.contains_key(*kind)))
        {
            let (one, other) = (one.objects.get(kind), other.objects.get(kind));
            if one != other {
                wrong.push(format!("{what}: {kind}: {} is not {}", json!(one), json!(other)));
            }
        }
    };
    let first = field.create(&change.before).await?;
    let changed = field.replace(&change.after).await?;
    let mut seen = vec![("changed", effect(&first, &changed))];
    if change.returns {
        let back = field.replace(&change.before).await?;
        check("back again", &back, &first);
        seen.push(("back", effect(&changed, &back)));
    }
    field.delete().await;
    let fresh = field.create(&change.after).await?;
    check("against a fresh one", &changed, &fresh);
    field.delete().await;
    for (when, seen) in seen {
        if seen != change.effect {
            wrong.push(format!(
                "{when}: it {}, and the reference says {}",
                seen.as_str(),
                change.effect.as_str()
            ));
        }
    }
    Ok(wrong)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks campaign"]
async fn campaign_every_field_changed_and_back_reaches_what_a_fresh_connector_does() {
    let (mut changes, without) = changes();
    assert!(without.is_empty(), "fields without another legal value: {without:?}");
    let all = changes.len();
    let refused = AtomicUsize::new(0);
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("CAMPAIGN_SEED").unwrap_or(1);
    if let Some(wanted) = number("CAMPAIGN_FIELDS") {
        // Every field has a place by seed and name.
        let place = |changes: &Vec<Change>| {
            let bytes = changes[0].field.bytes().chain(seed.to_be_bytes());
            bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            })
        };
        changes.sort_by_key(place);
        changes.truncate(usize::try_from(wanted).unwrap());
    }
    let cluster = Cluster::new("campaign").await;
    let _kubelet = kubelet::start(&cluster).await;
    let switches = [
        "--no-leader-election",
        "--allow-custom",
        "--allow-runtime-image",
        "--allow-service-account-name",
        "--network-policies",
    ];
    let _operator = Operator::with(&cluster, "campaign", IMAGE, &switches);
    let judged = futures::stream::iter(changes.iter().enumerate().map(|(index, changes)| {
        let (cluster, refused) = (&cluster, &refused);
        async move {
            for (attempt, change) in changes.iter().enumerate() {
                let field = Field { cluster, name: format!("f{index}-{attempt}") };
                match judge(&field, change).await {
                    Ok(wrong) => return (change, wrong),
                    Err(Stuck::Late(what)) => return (change, vec![what]),
                    Err(Stuck::Refused) => {
                        refused.fetch_add(1, Relaxed);
                        field.delete().await;
                    }
                }
            }
            (&changes[0], vec!["Kubernetes takes none of the values".to_owned()])
        }
    }))
    .buffer_unordered(CONCURRENCY)
    .collect::<Vec<_>>()
    .await;
    let mut effects = BTreeMap::<&str, usize>::new();
    let mut wrong = Vec::new();
    for (change, found) in &judged {
        *effects.entry(change.effect.as_str()).or_default() += 1;
        for what in found {
            wrong.push(format!("{}: {what}", change.field));
        }
    }
    println!(
        "campaign: {} of {all} fields (seed {seed}), {effects:?}, {} differences",
        judged.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
