//! Reconciliations against an API server in memory: exact requests, and where they lead.

mod election;
mod fake_api;
mod simulation;
mod steady;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use connector_crds::{ConditionStatus, ConnectorStatus};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::context::{Context, ReconcileError};
use super::metrics::Metrics;
use super::notify::Notifier;
use super::outside::Outside;
use super::reconcile::reconcile;
use super::stores::{Watched, Writers};
use crate::build::tests::{kafka_source, redis_sink, settings};
use crate::names::RENDERING_ANNOTATION;
use crate::settings::OperatorSettings;
use crate::status::ConditionType;
use crate::status::conditions::find;
use fake_api::{Call, FakeApi};

/// A cluster with one Connector, `shop/orders`.
struct Cluster {
    api: FakeApi,
    settings: OperatorSettings,
}

impl Cluster {
    fn with(spec: Value) -> Cluster {
        let cluster = Cluster { api: FakeApi::default(), settings: settings() };
        cluster.connector("uid-1", spec);
        cluster
    }

    /// Creates the Connector, or one of its name after it.
    #[expect(clippy::needless_pass_by_value, reason = "each test makes its own")]
    fn connector(&self, uid: &str, spec: Value) {
        let connector = json!({
            "apiVersion": "connectors.wallaroolabs.com/v1alpha1",
            "kind": "Connector",
            "metadata": {"name": "orders", "namespace": "shop", "uid": uid, "generation": 1, "resourceVersion": "1"},
            "spec": spec,
        });
        self.api.0.lock().unwrap().all.insert("connectors/orders".into(), connector);
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        self.api.edit("connectors/orders", |connector| {
            edit(&mut connector["spec"]);
            connector["metadata"]["generation"] =
                (connector["metadata"]["generation"].as_i64().unwrap() + 1).into();
        });
    }

    /// One reconciliation by an operator that has just listed everything, and what it asked of the API server.
    async fn reconcile(&self) -> Result<Vec<Call>, ReconcileError> {
        self.reconcile_as(self.api.get("connectors/orders").unwrap()).await
    }

    /// The same, by an operator that sees this Connector.
    async fn reconcile_as(&self, connector: Value) -> Result<Vec<Call>, ReconcileError> {
        let mut writers = Writers::default();
        fill(&mut writers.connectors, &self.api.list("connectors"));
        fill(&mut writers.stateful_sets, &self.api.list("statefulsets"));
        fill(&mut writers.config_maps, &self.api.list("configmaps"));
        fill(&mut writers.services, &labelled(self.api.list("services")));
        fill(&mut writers.service_accounts, &self.api.list("serviceaccounts"));
        fill(&mut writers.disruption_budgets, &self.api.list("poddisruptionbudgets"));
        fill(&mut writers.network_policies, &self.api.list("networkpolicies"));
        fill(&mut writers.pods, &self.api.list("pods"));
        fill(&mut writers.claims, &self.api.list("persistentvolumeclaims"));
        let client = self.api.client();
        let reporter = Reporter { controller: "test".into(), instance: Some("test".into()) };
        let context = Arc::new(Context {
            notifier: Notifier::new(Recorder::new(client.clone(), reporter)),
            client,
            settings: self.settings.clone(),
            stores: writers.stores(),
            outside: Outside::real(),
            metrics: Arc::new(Metrics::default()),
            failures: Mutex::new(HashMap::new()),
        });
        let watched: Watched = serde_json::from_value(connector).unwrap();
        self.api.calls();
        reconcile(Arc::new(watched), context).await?;
        Ok(self.api.calls())
    }

    /// Reconciles until nothing is asked any more.
    async fn settle(&self) {
        for _ in 0..5 {
            self.kubelet();
            if self.reconcile().await.unwrap().is_empty() {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.reconcile().await.unwrap());
    }

    /// What controllers and kubelet would do: ready pods, as many as the StatefulSet wants.
    fn kubelet(&self) {
        let Some(set) = self.api.get("statefulsets/orders") else { return };
        let replicas = set["spec"]["replicas"].as_i64().unwrap();
        self.api.edit("statefulsets/orders", |set| {
            set["status"] = json!({
                "observedGeneration": set["metadata"]["generation"], "replicas": replicas,
                "readyReplicas": replicas, "updatedReplicas": replicas,
                "currentRevision": "r", "updateRevision": "r",
            });
        });
        let mut objects = self.api.0.lock().unwrap();
        let template = &set["spec"]["template"]["metadata"];
        let made_from = |pod: &Value| pod["metadata"]["annotations"][RENDERING_ANNOTATION].clone();
        let wanted = template["annotations"][RENDERING_ANNOTATION].clone();
        let names: Vec<String> = (0..replicas).map(|ordinal| format!("orders-{ordinal}")).collect();
        objects.all.retain(|key, pod| match key.strip_prefix("pods/") {
            Some(name) => names.iter().any(|wanted| wanted == name) && made_from(pod) == wanted,
            None => true,
        });
        for name in names {
            if objects.all.contains_key(&format!("pods/{name}")) {
                continue;
            }
            let mut pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": template,
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            });
            pod["metadata"]["name"] = name.clone().into();
            pod["metadata"]["namespace"] = "shop".into();
            pod["metadata"]["uid"] = format!("uid-of-{name}").into();
            objects.all.insert(format!("pods/{name}"), pod);
        }
    }

    fn status(&self) -> ConnectorStatus {
        let connector = self.api.get("connectors/orders").unwrap();
        serde_json::from_value(connector["status"].clone()).unwrap()
    }

    fn reason(&self, type_: ConditionType) -> Option<String> {
        find(&self.status().conditions, type_).map(|condition| condition.reason.clone())
    }
}

/// Only what carries our label is watched.
fn labelled(objects: Vec<Value>) -> Vec<Value> {
    objects.into_iter().filter(|object| object["metadata"]["labels"].is_object()).collect()
}

fn fill<K>(writer: &mut kube::runtime::reflector::store::Writer<K>, objects: &[Value])
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
{
    writer.apply_watcher_event(&Event::Init);
    for object in objects {
        writer.apply_watcher_event(&Event::InitApply(serde_json::from_value(object.clone()).unwrap()));
    }
    writer.apply_watcher_event(&Event::InitDone);
}

fn without_reads(calls: Vec<Call>) -> Vec<Call> {
    calls.into_iter().filter(|call| !call.starts_with("GET")).collect()
}

/// Name of the rendering that pods are made from.
fn rendering(cluster: &Cluster) -> String {
    let set = cluster.api.get("statefulsets/orders").unwrap();
    set["spec"]["template"]["metadata"]["annotations"][RENDERING_ANNOTATION].as_str().unwrap().into()
}

#[tokio::test]
async fn a_new_connector_is_announced_and_made_in_order() {
    let cluster = Cluster::with(redis_sink());
    let calls = cluster.reconcile().await.unwrap();
    let rendering = rendering(&cluster);
    assert_eq!(
        calls,
        [
            "PATCH connectors/orders/status".to_owned(),
            "POST serviceaccounts/orders".into(),
            format!("POST configmaps/{rendering}"),
            "POST configmaps/orders-live".into(),
            "POST services/orders".into(),
            "POST statefulsets/orders".into(),
            "PATCH connectors/orders/status".into(),
        ]
    );
    assert_eq!(cluster.reason(ConditionType::Reconciling).unwrap(), "RollingOut");
}

#[tokio::test]
async fn at_rest_nothing_is_asked_also_by_an_operator_that_has_just_started() {
    let cluster = Cluster::with(redis_sink());
    cluster.settle().await;
    assert_eq!(cluster.reason(ConditionType::Ready).unwrap(), "Listening");
    assert!(cluster.reconcile().await.unwrap().is_empty());
}

#[tokio::test]
async fn drift_is_repaired_with_the_uid_that_was_seen() {
    let cluster = Cluster::with(redis_sink());
    cluster.settle().await;
    cluster.api.edit("services/orders", |service| service["spec"]["publishNotReadyAddresses"] = false.into());
    let calls = cluster.reconcile().await.unwrap();
    // The record of the creation becomes an apply, then the whole intent is applied.
    assert_eq!(calls, ["PATCH services/orders", "PATCH services/orders"]);
    assert_eq!(cluster.api.get("services/orders").unwrap()["spec"]["publishNotReadyAddresses"], true);
    assert!(cluster.reconcile().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_restarts_nothing_touches_no_pod_template_and_writes_status_once() {
    let cluster = Cluster::with(redis_sink());
    cluster.settle().await;
    let before = rendering(&cluster);
    cluster.edit(|spec| spec["runtime"] = json!({"logLevel": "debug"}));
    let calls = without_reads(cluster.reconcile().await.unwrap());
    assert_eq!(
        calls,
        [
            "PATCH configmaps/orders-live",
            "PATCH configmaps/orders-live",
            "PATCH pods/orders-0",
            "PATCH connectors/orders/status"
        ]
    );
    assert_eq!(rendering(&cluster), before);
    let ready = cluster.status().conditions[0].clone();
    assert_eq!((ready.status, ready.observed_generation), (ConditionStatus::True, Some(2)));
}

#[tokio::test]
async fn an_upgrade_of_the_operator_is_pending_until_the_nonce_changes() {
    let mut cluster = Cluster::with(kafka_source());
    cluster.settle().await;
    let before = rendering(&cluster);
    cluster.settings.runtime_image = "registry.example/connector-runtime:2".into();
    assert_eq!(cluster.reconcile().await.unwrap(), ["PATCH connectors/orders/status"]);
    assert!(cluster.status().pending_change.unwrap().contains("connector-runtime:2"));
    cluster.edit(|spec| spec["restartNonce"] = "again".into());
    cluster.settle().await;
    assert_ne!(rendering(&cluster), before);
    assert_eq!(cluster.status().pending_change, None);
    assert_eq!(cluster.reason(ConditionType::Ready).unwrap(), "Running");
}

#[tokio::test]
async fn unused_renderings_are_removed_but_for_the_newest_three() {
    let cluster = Cluster::with(kafka_source());
    for nonce in ["a", "b", "c", "d", "e"] {
        cluster.edit(|spec| spec["restartNonce"] = nonce.into());
        cluster.settle().await;
    }
    let renderings = cluster.api.list("configmaps").len() - 1;
    assert_eq!(renderings, 3);
    assert!(cluster.api.get(&format!("configmaps/{}", rendering(&cluster))).is_some());
}

#[tokio::test]
async fn a_swap_of_the_system_ends_the_old_pods_first() {
    let cluster = Cluster::with(redis_sink());
    cluster.settle().await;
    cluster.edit(|spec| spec["sink"] = json!({"redis": null, "file": {"path": "out"}}));
    cluster.api.edit("connectors/orders", |c| {
        c["spec"]["sink"].as_object_mut().unwrap().remove("redis");
    });
    let calls = cluster.reconcile().await.unwrap();
    assert_eq!(
        calls,
        [
            "PATCH connectors/orders/status",
            // A last look at the claims, which are to outlive it.
            "GET persistentvolumeclaims/",
            "DELETE statefulsets/orders",
            "PATCH connectors/orders/status"
        ]
    );
    assert_eq!(cluster.reason(ConditionType::Reconciling).unwrap(), "Recreating");
    // While it ends, nothing is asked.
    assert!(cluster.reconcile().await.unwrap().is_empty());
    cluster.api.0.lock().unwrap().all.remove("statefulsets/orders");
    cluster.settle().await;
    assert_eq!(cluster.status().type_.unwrap(), "FileSink");
    assert_eq!(cluster.reason(ConditionType::Ready).unwrap(), "Listening");
}

#[tokio::test]
async fn an_object_of_somebody_else_is_never_touched() {
    let cluster = Cluster::with(redis_sink());
    let foreign = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders", "namespace": "shop", "uid": "x"}});
    cluster.api.0.lock().unwrap().all.insert("services/orders".into(), foreign.clone());
    cluster.reconcile().await.unwrap();
    assert_eq!(cluster.api.get("services/orders").unwrap(), foreign);
    assert_eq!(cluster.reason(ConditionType::Stalled).unwrap(), "NameConflict");
    assert!(cluster.api.get("statefulsets/orders").is_none());
    // It is looked at again, and nothing is said twice.
    assert_eq!(without_reads(cluster.reconcile().await.unwrap()), ["POST services/orders"]);
    cluster.api.0.lock().unwrap().all.remove("services/orders");
    cluster.settle().await;
    assert_eq!(cluster.reason(ConditionType::Ready).unwrap(), "Listening");
}

#[tokio::test]
async fn delete_and_apply_of_the_same_name_converges() {
    let cluster = Cluster::with(redis_sink());
    cluster.settle().await;
    cluster.connector("uid-2", redis_sink());
    // The garbage collector does not know our kind yet: what the first one left is deleted, its pods end before its name is free.
    let calls = cluster.reconcile().await.unwrap();
    let deleted: Vec<&Call> = calls.iter().filter(|call| call.starts_with("DELETE")).collect();
    assert_eq!(deleted[0], "DELETE statefulsets/orders");
    assert_eq!(deleted.len(), 5, "{calls:?}");
    let owner = |key: &str| cluster.api.get(key).unwrap()["metadata"]["ownerReferences"][0]["uid"].clone();
    assert_eq!(owner("statefulsets/orders"), "uid-1");
    assert!(without_reads(cluster.reconcile().await.unwrap()).iter().all(|call| !call.starts_with("DELETE")));
    assert_eq!(cluster.reason(ConditionType::Reconciling).unwrap(), "WaitingForDeletion");
    assert_eq!(owner("serviceaccounts/orders"), "uid-2");
    cluster.api.0.lock().unwrap().all.remove("statefulsets/orders");
    cluster.settle().await;
    assert_eq!(owner("statefulsets/orders"), "uid-2");
}

#[tokio::test]
async fn an_operator_that_is_behind_deletes_nothing_of_the_connector_that_lives() {
    let cluster = Cluster::with(redis_sink());
    cluster.settle().await;
    let made = cluster.api.list("statefulsets");
    // Its watch still holds an earlier Connector of this name.
    let behind = json!({"metadata": {"name": "orders", "namespace": "shop", "uid": "uid-0"}});
    let alive = cluster.api.get("connectors/orders").unwrap();
    let mut seen = alive.clone();
    seen["metadata"]["uid"] = behind["metadata"]["uid"].clone();
    let calls = cluster.reconcile_as(seen).await.unwrap();
    assert!(calls.iter().all(|call| !call.starts_with("DELETE")), "{calls:?}");
    assert_eq!(cluster.api.list("statefulsets"), made);
}

#[tokio::test]
async fn a_swap_keeps_claims_that_were_to_go_with_the_connector() {
    let with = |sink: Value| {
        let mut spec = redis_sink();
        spec["sink"] = sink;
        spec["storage"] = json!({"whenDeleted": "Delete", "size": "2Gi"});
        spec
    };
    let cluster = Cluster::with(with(json!({"redis": {"address": "redis:6379", "hash": {"key": "totals"}}})));
    cluster.settle().await;
    let set = cluster.api.get("statefulsets/orders").unwrap();
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "state-orders-0", "namespace": "shop", "uid": "uid-of-claim",
            "labels": set["spec"]["selector"]["matchLabels"],
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "orders", "uid": set["metadata"]["uid"]}]},
        "spec": {"resources": {"requests": {"storage": "2Gi"}}},
        "status": {"phase": "Bound"},
    });
    cluster.api.0.lock().unwrap().all.insert("persistentvolumeclaims/state-orders-0".into(), claim);
    let policy = || {
        let set = cluster.api.get("statefulsets/orders").unwrap();
        set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"].as_str().unwrap().to_owned()
    };
    assert_eq!(policy(), "Delete");
    cluster.api.edit("connectors/orders", |connector| {
        connector["spec"] = with(json!({"file": {"path": "out"}}));
        connector["spec"]["storage"]["size"] = "4Gi".into();
        connector["metadata"]["generation"] = 2.into();
    });
    let template = set["spec"]["template"].clone();
    let calls = cluster.reconcile().await.unwrap();
    assert!(calls.iter().all(|call| !call.starts_with("DELETE")), "{calls:?}");
    assert_eq!(policy(), "Retain");
    assert_eq!(cluster.api.get("statefulsets/orders").unwrap()["spec"]["template"], template);
    // Nothing goes before the controller has seen it, and before no claim belongs to the StatefulSet.
    assert!(without_reads(cluster.reconcile().await.unwrap()).is_empty());
    cluster.kubelet();
    assert_eq!(
        cluster.reconcile().await.unwrap(),
        [
            "GET persistentvolumeclaims/",
            "PATCH persistentvolumeclaims/state-orders-0",
            "DELETE statefulsets/orders"
        ]
    );
    let claim = || cluster.api.get("persistentvolumeclaims/state-orders-0").unwrap();
    assert_eq!(claim()["metadata"]["ownerReferences"], json!([]));
    cluster.api.0.lock().unwrap().all.remove("statefulsets/orders");
    cluster.settle().await;
    assert_eq!(policy(), "Delete");
    // The claim got the room that was asked for.
    assert_eq!(claim()["spec"]["resources"]["requests"]["storage"], "4Gi");
}

#[tokio::test]
async fn a_watch_that_is_behind_makes_nothing_twice() {
    let cluster = Cluster::with(redis_sink());
    cluster.reconcile().await.unwrap();
    let made = cluster.api.get("services/orders").unwrap();
    // Seen by nobody: without labels it is not in the watch.
    cluster.api.edit("services/orders", |service| {
        service["metadata"].as_object_mut().unwrap().remove("labels");
    });
    cluster.reconcile().await.unwrap();
    let now = cluster.api.get("services/orders").unwrap();
    assert_eq!(now["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(now["metadata"]["labels"], made["metadata"]["labels"]);
}

#[tokio::test]
async fn what_the_operator_does_not_allow_is_refused_and_the_pods_stay() {
    let cluster = Cluster::with(kafka_source());
    cluster.settle().await;
    let before = rendering(&cluster);
    cluster.edit(|spec| spec["runtime"] = json!({"image": "mine:1"}));
    assert_eq!(cluster.reconcile().await.unwrap(), ["PATCH connectors/orders/status"]);
    assert_eq!(cluster.reason(ConditionType::Stalled).unwrap(), "NotAllowed");
    assert_eq!(rendering(&cluster), before);
    cluster.edit(|spec| {
        spec["runtime"] = json!({});
        spec["source"] = json!({"custom": {"image": "mine:1", "positions": "None"}});
    });
    assert_eq!(cluster.reconcile().await.unwrap(), ["PATCH connectors/orders/status"]);
    assert_eq!(cluster.reason(ConditionType::Stalled).unwrap(), "NotAllowed");
    assert_eq!(rendering(&cluster), before);
}

#[tokio::test]
async fn a_system_of_a_newer_definition_stalls_only_that_connector() {
    let cluster = Cluster::with(kafka_source());
    cluster.edit(|spec| spec["source"] = json!({"carrierPigeon": {}}));
    assert_eq!(without_reads(cluster.reconcile().await.unwrap()), ["PATCH connectors/orders/status"]);
    assert_eq!(cluster.reason(ConditionType::Stalled).unwrap(), "UnsupportedSystem");
    assert!(without_reads(cluster.reconcile().await.unwrap()).is_empty());
}

#[tokio::test]
async fn what_the_api_server_refuses_is_said_and_what_fails_is_tried_again() {
    let cluster = Cluster::with(kafka_source());
    let fail = |code: u16| {
        cluster.api.0.lock().unwrap().failures =
            [("POST statefulsets/orders".to_owned(), (code, "no room".to_owned()))].into();
    };
    fail(422);
    cluster.reconcile().await.unwrap();
    assert_eq!(cluster.reason(ConditionType::Stalled).unwrap(), "ApplyRefused");
    assert_eq!(without_reads(cluster.reconcile().await.unwrap()), ["POST statefulsets/orders"]);
    fail(503);
    assert!(cluster.reconcile().await.is_err());
    cluster.api.0.lock().unwrap().failures.clear();
    cluster.settle().await;
    assert_eq!(cluster.reason(ConditionType::Ready).unwrap(), "Running");
}

#[tokio::test]
async fn a_network_policy_comes_and_goes_with_the_operators_switch_and_restarts_nothing() {
    let mut cluster = Cluster::with(redis_sink());
    cluster.settle().await;
    let before = rendering(&cluster);
    cluster.settings.network_policies = true;
    assert_eq!(without_reads(cluster.reconcile().await.unwrap()), ["POST networkpolicies/orders"]);
    assert!(cluster.reconcile().await.unwrap().is_empty());
    cluster.settings.network_policies = false;
    assert_eq!(cluster.reconcile().await.unwrap(), ["DELETE networkpolicies/orders"]);
    assert_eq!(rendering(&cluster), before);
}

#[tokio::test]
async fn stopped_means_no_pod_and_running_again_brings_it_back() {
    let cluster = Cluster::with(kafka_source());
    cluster.edit(|spec| spec["state"] = "Stopped".into());
    cluster.settle().await;
    assert_eq!(cluster.reason(ConditionType::Ready).unwrap(), "Stopped");
    cluster.edit(|spec| spec["state"] = "Running".into());
    cluster.settle().await;
    assert_eq!(cluster.reason(ConditionType::Ready).unwrap(), "Running");
}
