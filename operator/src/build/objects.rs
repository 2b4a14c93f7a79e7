//! Every object of a Connector, from its chosen rendering.

use std::collections::BTreeMap;

use connector_crds::{ClaimPolicy, GROUP, State, VERSION};
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, Service, ServiceAccount, ServicePort,
    ServiceSpec, VolumeResourceRequirements,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::quantity::canonical;
use super::rendering::{Rendering, hash};
use super::{live_config, needs_claim, network_policy, pod_template};
use crate::names;
use crate::settings::OperatorSettings;
use crate::validate::ValidatedConnector;

/// The Connector as the owner of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid: another Connector of the same name has another one.
    pub uid: String,
}

/// What is to exist. One field a kind, in the order in which they are applied: what pods need comes before the pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The account of the pods, without rights; absent where the spec names another.
    pub service_account: Option<ServiceAccount>,
    /// The rendering in force; immutable.
    pub rendering: ConfigMap,
    /// What takes effect without a restart.
    pub live: ConfigMap,
    /// How the pods are reached; absent where nobody dials them.
    pub service: Option<Service>,
    /// Keeps a drain of nodes from ending all pods at once.
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// Who may reach the pods; absent where the operator is not told to restrict it.
    pub network_policy: Option<NetworkPolicy>,
    /// The pods.
    pub stateful_set: StatefulSet,
}

/// Pods that are wanted: none while stopped.
pub fn wanted_replicas(connector: &ValidatedConnector) -> i32 {
    match connector.state {
        State::Running | State::Paused => connector.replicas,
        State::Stopped => 0,
    }
}

/// Makes every object of a Connector. Pure: the same input gives the same objects.
pub fn build(
    connector: &ValidatedConnector,
    owner: &Owner,
    rendering: &Rendering,
    settings: &OperatorSettings,
) -> Desired {
    let name = &connector.identity.name;
    let replicas = wanted_replicas(connector);
    Desired {
        service_account: connector.pod.service_account_name.is_none().then(|| ServiceAccount {
            metadata: ObjectMeta {
                annotations: Some(connector.pod.service_account.annotations.clone()),
                ..metadata(owner, name.clone(), &[])
            },
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        }),
        rendering: ConfigMap {
            metadata: metadata(owner, rendering.name.clone(), &[(names::PART_LABEL, names::PART_RENDERING)]),
            data: Some(rendering.data().clone()),
            immutable: Some(true),
            ..ConfigMap::default()
        },
        live: ConfigMap {
            metadata: metadata(owner, names::live(name), &[(names::PART_LABEL, names::PART_LIVE)]),
            data: Some(live_data(connector)),
            ..ConfigMap::default()
        },
        service: service(connector, owner),
        disruption_budget: (replicas >= 2).then(|| PodDisruptionBudget {
            metadata: metadata(owner, name.clone(), &[]),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(label_selector(name)),
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
                ..PodDisruptionBudgetSpec::default()
            }),
            ..PodDisruptionBudget::default()
        }),
        network_policy: settings.network_policies.then(|| network_policy::network_policy(connector, owner)),
        stateful_set: StatefulSet {
            metadata: metadata(owner, name.clone(), &[]),
            spec: Some(StatefulSetSpec {
                persistent_volume_claim_retention_policy: Some(
                    StatefulSetPersistentVolumeClaimRetentionPolicy {
                        when_deleted: Some(connector.volume.when_deleted.as_str().into()),
                        when_scaled: Some(when_scaled(connector).as_str().into()),
                    },
                ),
                pod_management_policy: Some("Parallel".into()),
                replicas: Some(replicas),
                selector: label_selector(name),
                service_name: Some(name.clone()),
                template: rendering.pod_template(),
                volume_claim_templates: (!rendering.claims.is_empty()).then(|| rendering.claims.clone()),
                ..StatefulSetSpec::default()
            }),
            ..StatefulSet::default()
        },
    }
}

/// What becomes of claims whose pods are not wanted: stopping a Connector is no scaling, its claims stay.
fn when_scaled(connector: &ValidatedConnector) -> ClaimPolicy {
    match connector.state {
        State::Running | State::Paused => connector.volume.when_scaled,
        State::Stopped => ClaimPolicy::Retain,
    }
}

/// The live file, as its `ConfigMap` holds it.
pub fn live_data(connector: &ValidatedConnector) -> BTreeMap<String, String> {
    let live = live_config(connector, connector.runtime.log_level.as_str());
    let text = serde_json::to_string(&live).expect("the live file has text keys only");
    BTreeMap::from([("live.json".to_owned(), text)])
}

/// Value of [`names::LIVE_ANNOTATION`] on pods that were told of this live file.
pub fn live_hash(connector: &ValidatedConnector) -> String {
    hash(&live_data(connector))[..16].to_owned()
}

/// Templates of claims: one where something has to outlive a pod.
pub fn claim_templates(connector: &ValidatedConnector) -> Vec<PersistentVolumeClaim> {
    if !needs_claim(connector) {
        return Vec::new();
    }
    let size = Quantity(canonical(&connector.volume.size));
    vec![PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::STATE_VOLUME.into()),
            labels: Some(names::selector(&connector.identity.name)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".into(), size)])),
                ..VolumeResourceRequirements::default()
            }),
            storage_class_name: connector.volume.class.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }]
}

fn service(connector: &ValidatedConnector, owner: &Owner) -> Option<Service> {
    let (port, protocol) = pod_template::served_port(connector)?;
    let name = &connector.identity.name;
    Some(Service {
        metadata: metadata(owner, name.clone(), &[]),
        spec: Some(ServiceSpec {
            ports: Some(vec![ServicePort {
                name: Some(names::RECORDS_PORT.into()),
                port,
                protocol: Some(protocol.into()),
                target_port: Some(IntOrString::String(names::RECORDS_PORT.into())),
                ..ServicePort::default()
            }]),
            // Readiness tells people the truth; it must not cut Wallaroo off.
            publish_not_ready_addresses: Some(true),
            selector: Some(names::selector(name)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })
}

pub(super) fn label_selector(connector: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(names::selector(connector)), ..LabelSelector::default() }
}

pub(super) fn metadata(owner: &Owner, name: String, labels: &[(&str, &str)]) -> ObjectMeta {
    let mut all = names::selector(&owner.name);
    all.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    ObjectMeta {
        name: Some(name),
        namespace: Some(owner.namespace.clone()),
        labels: Some(all),
        owner_references: Some(vec![OwnerReference {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "Connector".into(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}
