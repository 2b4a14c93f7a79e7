//! A namespace of the API server that $KUBECONFIG names, and what tests do in it.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use connector_crds::{Condition, Connector, ConnectorStatus, crd};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// How long a condition may take: many times what it takes on a machine with nothing else to do.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A namespace of its own.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl Cluster {
    /// Installs the definition where it is not, and makes the namespace.
    pub(crate) async fn new(namespace: &str) -> Cluster {
        assert!(std::env::var_os("KUBECONFIG").is_some(), "run this by tests/cluster/api or ./tasks api");
        // Another test may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::try_default().await.unwrap();
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        let definition = crd();
        let name = definition.name_any();
        if let Err(error) = definitions.create(&PostParams::default(), &definition).await {
            assert!(matches!(&error, kube::Error::Api(status) if status.code == 409), "{error}");
        }
        let cluster = Cluster { client, namespace: namespace.into() };
        until("the definition is established", || async {
            let found = definitions.get(&name).await.unwrap();
            let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(())
        })
        .await;
        let object: Namespace = from(json!({"metadata": {"name": namespace}}));
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        cluster
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a Connector.
    pub(crate) async fn create(&self, name: &str, spec: &Value) -> Connector {
        let object: Connector = from(json!({"metadata": {"name": name}, "spec": spec}));
        self.api().create(&PostParams::default(), &object).await.unwrap()
    }

    /// Changes the spec of a Connector by a JSON merge patch.
    pub(crate) async fn edit(&self, name: &str, spec: &Value) -> Connector {
        let patch = json!({"spec": spec});
        self.api().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap()
    }

    /// Changes any object by a JSON merge patch.
    pub(crate) async fn merge<K>(&self, name: &str, patch: &Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    pub(crate) async fn delete<K>(&self, name: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api::<K>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub(crate) async fn find<K>(&self, name: &str) -> Option<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api().get_opt(name).await.unwrap()
    }

    pub(crate) async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api().list(&ListParams::default()).await.unwrap().items
    }

    pub(crate) async fn status(&self, name: &str) -> ConnectorStatus {
        self.find::<Connector>(name).await.unwrap().status.unwrap_or_default()
    }

    pub(crate) async fn set(&self, name: &str) -> StatefulSet {
        self.find(name).await.unwrap()
    }

    /// Names and uids of the pods, by name.
    pub(crate) async fn pods(&self) -> Vec<(String, String)> {
        let pods = self.list::<Pod>().await;
        let mut pods: Vec<_> = pods.iter().map(|pod| (pod.name_any(), pod.uid().unwrap())).collect();
        pods.sort();
        pods
    }

    /// Waits until a Connector's newest generation has a condition with this status and reason.
    pub(crate) async fn wait(&self, name: &str, type_: &str, status: &str, reason: &str) -> ConnectorStatus {
        let what = format!("{}/{name}: {type_}={status}/{reason}", self.namespace);
        let end = Instant::now() + DEADLINE;
        loop {
            let connector: Connector = self.find(name).await.unwrap();
            let now = connector.status.clone().unwrap_or_default();
            let held = condition(&now, type_).is_some_and(|c| {
                serde_json::to_value(c.status).unwrap() == status
                    && c.reason == reason
                    && c.observed_generation == connector.metadata.generation
            });
            if held {
                return now;
            }
            assert!(Instant::now() < end, "{what} is not there after {DEADLINE:?}: {now:#?}");
            sleep(LOOK).await;
        }
    }
}

/// A condition of a status.
pub(crate) fn condition<'a>(status: &'a ConnectorStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

/// Looks until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not after {DEADLINE:?}: {what}");
        sleep(LOOK).await;
    }
}

/// An object from JSON.
pub(crate) fn from<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A source that keeps nothing.
pub(crate) fn source() -> Value {
    json!({
        "source": {"kafka": {"bootstrapServers": ["kafka:9092"], "topics": ["orders"]}},
        "wallaroo": {"protocol": "Connector", "connect": ["count-0.count:7100"]},
    })
}

/// A sink with a claim.
pub(crate) fn sink() -> Value {
    json!({
        "sink": {"redis": {"address": "redis:6379", "hash": {"key": "totals"}}},
        "wallaroo": {"protocol": "Connector", "listen": 7200},
    })
}
