//! What a reconciliation will do, decided from the Connector and what the watches hold. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::claims::RETAIN;
use crate::build::objects::live_hash;
use crate::build::rendering::Rendering;
use crate::build::upgrade::{choose, superfluous};
use crate::build::{Desired, Owner, build, wanted_replicas};
use crate::names::{LIVE_ANNOTATION, PART_LABEL, PART_RENDERING, RENDERING_ANNOTATION};
use crate::settings::OperatorSettings;
use crate::status::{PodFacts, Workload};
use crate::validate::ValidatedConnector;

/// What the watches hold of one Connector, by name: also what is not ours.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The `StatefulSet` of its name.
    pub stateful_set: Option<Arc<StatefulSet>>,
    /// Its `ConfigMap`s.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// The Service of its name.
    pub service: Option<Arc<Service>>,
    /// The `ServiceAccount` of its name.
    pub service_account: Option<Arc<ServiceAccount>>,
    /// The `PodDisruptionBudget` of its name.
    pub disruption_budget: Option<Arc<PodDisruptionBudget>>,
    /// The `NetworkPolicy` of its name.
    pub network_policy: Option<Arc<NetworkPolicy>>,
    /// Its pods, by name.
    pub pods: Vec<Arc<Pod>>,
    /// The claims of its pods, by name; also of pods that are not there.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
}

impl Observed {
    /// The `ConfigMap` of a name.
    pub fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.iter().map(Arc::as_ref).find(|map| map.metadata.name.as_deref() == Some(name))
    }

    /// What the pods tell by themselves.
    pub fn pod_facts(&self) -> Vec<PodFacts> {
        self.pods.iter().map(|pod| PodFacts::of(pod)).collect()
    }
}

/// What a reconciliation will do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is to exist.
    pub desired: Desired,
    /// Name of the rendering in force.
    pub rendering: String,
    /// What an upgrade would change.
    pub pending_change: Option<String>,
    /// Whether pods will be made, replaced or ended.
    pub changes_pods: bool,
    /// The `StatefulSet` as it has to be before it may be deleted, so that its claims outlive it: the old pods have to be gone
    /// before new ones start. Absent: nothing has to go.
    pub ends_first: Option<StatefulSet>,
    /// Names of renderings that nobody needs any more.
    pub superfluous: Vec<String>,
    /// Value of [`LIVE_ANNOTATION`] on pods that know the live file.
    pub live: String,
}

/// Decides.
pub fn plan(
    connector: &ValidatedConnector,
    owner: &Owner,
    observed: &Observed,
    settings: &OperatorSettings,
) -> Plan {
    let known = renderings(owner, observed);
    let in_force = observed.stateful_set.as_deref().filter(|set| is_owned(owner, &set.metadata));
    let in_force = in_force.and_then(template_rendering);
    let named = |name: &str| known.iter().find(|rendering| rendering.name == name);
    let running = match &in_force {
        Some(name) => named(name),
        None => known.last(),
    };
    let fresh = Rendering::of(connector, settings);
    let chosen = choose(running, fresh, connector.runtime.upgrade_policy);
    let desired = build(connector, owner, &chosen.rendering, settings);
    let live = observed.stateful_set.as_deref().and_then(|set| set.spec.as_ref());
    let replicas = live.and_then(|spec| spec.replicas);
    let replaced = in_force.as_deref().and_then(named).filter(|old| chosen.rendering.replaces(old));
    let ends_first = replaced.zip(live).map(|(old, live)| {
        let mut set = build(connector, owner, old, settings).stateful_set;
        let spec = set.spec.get_or_insert_default();
        // Everything else stays as it runs.
        spec.replicas = live.replicas;
        let mut policy = live.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
        policy.when_deleted = Some(RETAIN.into());
        spec.persistent_volume_claim_retention_policy = Some(policy);
        set
    });
    let mut needed: BTreeSet<String> = in_force.iter().cloned().collect();
    needed.insert(chosen.rendering.name.clone());
    needed.extend(observed.pods.iter().filter_map(|pod| annotation(&pod.metadata, RENDERING_ANNOTATION)));
    let oldest_first: Vec<String> = known.iter().map(|rendering| rendering.name.clone()).collect();
    Plan {
        changes_pods: in_force.as_deref() != Some(&chosen.rendering.name)
            || replicas != Some(wanted_replicas(connector)),
        ends_first,
        superfluous: superfluous(&oldest_first, &needed),
        rendering: chosen.rendering.name,
        pending_change: chosen.pending_change,
        live: live_hash(connector),
        desired,
    }
}

/// What the StatefulSet says, as far as it speaks of this plan.
pub fn workload(observed: &Observed, owner: &Owner, plan: Option<&Plan>) -> Option<Workload> {
    let set = observed.stateful_set.as_deref().filter(|set| is_owned(owner, &set.metadata))?;
    let status = set.status.clone().unwrap_or_default();
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
    let applied = plan.is_none_or(|plan| {
        template_rendering(set).as_ref() == Some(&plan.rendering)
            && replicas == plan.desired.stateful_set.spec.as_ref().and_then(|spec| spec.replicas)
    });
    Some(Workload {
        current: applied && status.observed_generation == set.metadata.generation,
        replicas: status.replicas,
        ready: status.ready_replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        rolled_out: status.current_revision == status.update_revision,
    })
}

/// Pods that have not been told of the live file: the kubelet looks at once when an annotation changes.
pub fn untold_pods<'a>(observed: &'a Observed, live: &str) -> Vec<&'a Pod> {
    observed
        .pods
        .iter()
        .map(Arc::as_ref)
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| annotation(&pod.metadata, LIVE_ANNOTATION).as_deref() != Some(live))
        .collect()
}

/// Whether an object's controller is this very Connector.
pub fn is_owned(owner: &Owner, metadata: &ObjectMeta) -> bool {
    metadata
        .owner_references
        .iter()
        .flatten()
        .any(|reference| reference.controller == Some(true) && reference.uid == owner.uid)
}

/// Stored renderings of this Connector, oldest first; a damaged one counts as absent.
fn renderings(owner: &Owner, observed: &Observed) -> Vec<Rendering> {
    let mut found: Vec<(_, Rendering)> = observed
        .config_maps
        .iter()
        .filter(|map| is_owned(owner, &map.metadata) && map.metadata.deletion_timestamp.is_none())
        .filter(|map| {
            map.metadata.labels.as_ref().and_then(|labels| labels.get(PART_LABEL)).map(String::as_str)
                == Some(PART_RENDERING)
        })
        .filter_map(|map| {
            let created = map.metadata.creation_timestamp.as_ref().map(|time| time.0);
            Some((created, Rendering::read(map).ok()?))
        })
        .collect();
    found.sort_by(|(a, one), (b, other)| (a, &one.name).cmp(&(b, &other.name)));
    found.into_iter().map(|(_, rendering)| rendering).collect()
}

fn template_rendering(set: &StatefulSet) -> Option<String> {
    annotation(set.spec.as_ref()?.template.metadata.as_ref()?, RENDERING_ANNOTATION)
}

fn annotation(metadata: &ObjectMeta, name: &str) -> Option<String> {
    metadata.annotations.as_ref()?.get(name).cloned()
}
