//! What the watches saw, reduced to what is looked at, and which Connector each change concerns.

use std::sync::Arc;

use connector_crds::Connector;
use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store, store::Writer};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};

use super::claims::is_of;
use super::plan::Observed;
use crate::apply::io::Kind;
use crate::names::{CONNECTOR_LABEL, FIELD_MANAGER};

/// The resource as it is watched: one that cannot be read stops none of the others.
pub type Watched = DeserializeGuard<Connector>;

/// Changes that call for a reconciliation.
pub type Triggers = SelectAll<BoxStream<'static, Result<ObjectRef<Watched>, watcher::Error>>>;

/// What the watches saw.
#[derive(Clone)]
pub struct Stores {
    /// Connectors.
    pub connectors: Store<Watched>,
    /// `StatefulSet`s.
    pub stateful_sets: Store<StatefulSet>,
    /// `ConfigMap`s.
    pub config_maps: Store<ConfigMap>,
    /// Services.
    pub services: Store<Service>,
    /// `ServiceAccount`s.
    pub service_accounts: Store<ServiceAccount>,
    /// `PodDisruptionBudget`s.
    pub disruption_budgets: Store<PodDisruptionBudget>,
    /// `NetworkPolicy`s.
    pub network_policies: Store<NetworkPolicy>,
    /// Pods.
    pub pods: Store<Pod>,
    /// Claims of their volumes.
    pub claims: Store<PersistentVolumeClaim>,
}

/// The writing ends of the stores.
#[derive(Default)]
pub struct Writers {
    /// Connectors.
    pub connectors: Writer<Watched>,
    /// `StatefulSet`s.
    pub stateful_sets: Writer<StatefulSet>,
    /// `ConfigMap`s.
    pub config_maps: Writer<ConfigMap>,
    /// Services.
    pub services: Writer<Service>,
    /// `ServiceAccount`s.
    pub service_accounts: Writer<ServiceAccount>,
    /// `PodDisruptionBudget`s.
    pub disruption_budgets: Writer<PodDisruptionBudget>,
    /// `NetworkPolicy`s.
    pub network_policies: Writer<NetworkPolicy>,
    /// Pods.
    pub pods: Writer<Pod>,
    /// Claims of their volumes.
    pub claims: Writer<PersistentVolumeClaim>,
}

impl Writers {
    /// The reading ends.
    pub fn stores(&self) -> Stores {
        Stores {
            connectors: self.connectors.as_reader(),
            stateful_sets: self.stateful_sets.as_reader(),
            config_maps: self.config_maps.as_reader(),
            services: self.services.as_reader(),
            service_accounts: self.service_accounts.as_reader(),
            disruption_budgets: self.disruption_budgets.as_reader(),
            network_policies: self.network_policies.as_reader(),
            pods: self.pods.as_reader(),
            claims: self.claims.as_reader(),
        }
    }
}

impl Stores {
    /// Waits until every watch has listed once; before that, an absent object says nothing.
    pub async fn ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.connectors.wait_until_ready().await?;
        self.stateful_sets.wait_until_ready().await?;
        self.config_maps.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.service_accounts.wait_until_ready().await?;
        self.disruption_budgets.wait_until_ready().await?;
        self.network_policies.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.claims.wait_until_ready().await
    }

    /// What there is of one Connector.
    pub fn observe(&self, namespace: &str, name: &str) -> Observed {
        let mine = |metadata: &ObjectMeta| {
            metadata.namespace.as_deref() == Some(namespace) && connector_of(metadata) == Some(name)
        };
        let mut config_maps = self.config_maps.state_filter(|map| mine(&map.metadata));
        config_maps.sort_by_key(|map| map.metadata.name.clone());
        let mut pods = self.pods.state_filter(|pod| mine(&pod.metadata));
        pods.sort_by_key(|pod| pod.metadata.name.clone());
        let mut claims = self.claims.state_filter(|claim| mine(&claim.metadata) && is_of(claim, name));
        claims.sort_by_key(|claim| claim.metadata.name.clone());
        Observed {
            stateful_set: get(&self.stateful_sets, namespace, name),
            config_maps,
            service: get(&self.services, namespace, name),
            service_account: get(&self.service_accounts, namespace, name),
            disruption_budget: get(&self.disruption_budgets, namespace, name),
            network_policy: get(&self.network_policies, namespace, name),
            pods,
            claims,
        }
    }
}

fn get<K: Kind>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>> {
    store.get(&ObjectRef::new(name).within(namespace))
}

/// Name of the Connector that an object says it belongs to.
pub fn connector_of(metadata: &ObjectMeta) -> Option<&str> {
    metadata.labels.as_ref()?.get(CONNECTOR_LABEL).map(String::as_str)
}

/// Starts every watch in one namespace (absent: in all), feeding the stores.
pub fn watch(client: &Client, namespace: Option<&str>, writers: Writers) -> Triggers {
    let ours = watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={FIELD_MANAGER}"));
    let mut triggers = Triggers::new();
    let connectors = watcher(api::<Watched>(client, namespace), watcher::Config::default())
        .default_backoff()
        .modify(|connector| connector.meta_mut().managed_fields = None)
        .reflect(writers.connectors)
        .touched_objects()
        .map(|seen| seen.map(|connector| ObjectRef::from_obj(&connector)));
    triggers.push(connectors.boxed());
    triggers.push(children(api::<StatefulSet>(client, namespace), &ours, writers.stateful_sets, |_| ()));
    triggers.push(children(api::<ConfigMap>(client, namespace), &ours, writers.config_maps, |_| ()));
    triggers.push(children(api::<Service>(client, namespace), &ours, writers.services, |_| ()));
    triggers.push(children(
        api::<ServiceAccount>(client, namespace),
        &ours,
        writers.service_accounts,
        |_| (),
    ));
    triggers.push(children(
        api::<PodDisruptionBudget>(client, namespace),
        &ours,
        writers.disruption_budgets,
        |_| (),
    ));
    triggers.push(children(api::<NetworkPolicy>(client, namespace), &ours, writers.network_policies, |_| ()));
    triggers.push(children(api::<Pod>(client, namespace), &ours, writers.pods, reduce_pod));
    triggers.push(children(
        api::<PersistentVolumeClaim>(client, namespace),
        &ours,
        writers.claims,
        |claim| claim.metadata.managed_fields = None,
    ));
    triggers
}

fn api<K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>>(
    client: &Client,
    namespace: Option<&str>,
) -> Api<K> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn children<K: Kind>(
    api: Api<K>,
    ours: &watcher::Config,
    writer: Writer<K>,
    reduce: fn(&mut K),
) -> BoxStream<'static, Result<ObjectRef<Watched>, watcher::Error>> {
    watcher(api, ours.clone())
        .default_backoff()
        .modify(move |object| {
            // Who else writes to it does not matter.
            if let Some(entries) = &mut object.meta_mut().managed_fields {
                for entry in entries.iter_mut().filter(|e| e.manager.as_deref() != Some(FIELD_MANAGER)) {
                    entry.fields_v1 = None;
                }
            }
            reduce(object);
        })
        .reflect(writer)
        .touched_objects()
        .filter_map(|seen| async move {
            match seen {
                Ok(object) => {
                    let name = connector_of(object.meta())?;
                    let namespace = object.meta().namespace.as_deref()?;
                    Some(Ok(ObjectRef::new(name).within(namespace)))
                }
                Err(error) => Some(Err(error)),
            }
        })
        .boxed()
}

/// Keeps what [`crate::status::PodFacts`] reads: the ports, the node, the status.
fn reduce_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        spec.tolerations = None;
        for container in &mut spec.containers {
            container.volume_mounts = None;
            container.env = None;
            container.args = None;
        }
    }
}
