//! Whose objects are whose: a name that is used again, a name that somebody else has, one that is still being deleted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connector_crds::Connector;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt as _;
use kube::api::PostParams;
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use tokio::time::Instant;

use crate::cluster::{Cluster, condition, from, sink, source};
use crate::kubelet;
use crate::operator::Operator;

/// The pods that are there, by name, with the uid of their owner, and every moment in which two owners had some.
#[derive(Default)]
struct Seen {
    now: BTreeMap<String, String>,
    mixed: Vec<BTreeMap<String, String>>,
}

fn observe(cluster: &Cluster) -> (Arc<Mutex<Seen>>, tokio::task::JoinHandle<()>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (sink, pods) = (Arc::clone(&seen), cluster.api::<Pod>());
    let task = tokio::spawn(async move {
        let mut events = watcher::watcher(pods, watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            let mut seen = sink.lock().unwrap();
            match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    seen.now.insert(pod.name_any(), pod.owner_references()[0].uid.clone());
                }
                Ok(Event::Delete(pod)) => drop(seen.now.remove(&pod.name_any())),
                Ok(Event::Init | Event::InitDone) | Err(_) => {}
            }
            let mut owners: Vec<&String> = seen.now.values().collect();
            owners.dedup();
            if owners.len() > 1 {
                let mixed = seen.now.clone();
                seen.mixed.push(mixed);
            }
        }
    });
    (seen, task)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn delete_and_apply_of_one_name_converge_and_pods_of_both_never_meet() {
    let cluster = Cluster::new("reborn").await;
    let _kubelet = kubelet::start(&cluster).await;
    let _operator = Operator::start(&cluster);
    let mut spec = sink();
    spec["replicas"] = 1.into();
    cluster.create("totals", &spec).await;
    cluster.wait("totals", "Ready", "True", "Running").await;
    let (seen, watching) = observe(&cluster);
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let started = Instant::now();
        cluster.delete::<Connector>("totals").await;
        let second = cluster.create("totals", &spec).await;
        cluster.wait("totals", "Ready", "True", "Running").await;
        let owner = |set: &StatefulSet| set.owner_references()[0].uid.clone();
        assert_eq!(owner(&cluster.set("totals").await), second.uid().unwrap());
        slowest = slowest.max(started.elapsed());
    }
    println!("delete and apply of one name: ready again after {slowest:?} at most");
    // The garbage collector alone took up to 30 s after the definition was new.
    assert!(slowest < Duration::from_secs(15), "{slowest:?}");
    watching.abort();
    assert!(seen.lock().unwrap().mixed.is_empty(), "{:?}", seen.lock().unwrap().mixed);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn an_object_of_somebody_else_is_never_touched() {
    let cluster = Cluster::new("foreign").await;
    let _kubelet = kubelet::start(&cluster).await;
    let foreign: Service = from(json!({"metadata": {"name": "totals"}, "spec": {"ports": [{"port": 1}]}}));
    let foreign = cluster.api().create(&PostParams::default(), &foreign).await.unwrap();
    let operator = Operator::start(&cluster);
    cluster.create("totals", &sink()).await;
    let status = cluster.wait("totals", "Stalled", "True", "NameConflict").await;
    assert!(condition(&status, "Stalled").unwrap().message.contains("Service foreign/totals"), "{status:?}");
    assert!(cluster.find::<StatefulSet>("totals").await.is_none());
    let now = cluster.find::<Service>("totals").await.unwrap();
    assert_eq!(now.resource_version(), foreign.resource_version());
    // Its owner takes it away: the operator looks again by itself.
    cluster.delete::<Service>("totals").await;
    cluster.wait("totals", "Ready", "True", "Running").await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn what_is_still_being_deleted_is_waited_for() {
    let cluster = Cluster::new("waiting").await;
    let _kubelet = kubelet::start(&cluster).await;
    let _operator = Operator::start(&cluster);
    cluster.create("orders", &source()).await;
    cluster.wait("orders", "Ready", "True", "Running").await;
    let hold = |finalizers: &[&str]| json!({"metadata": {"finalizers": finalizers}});
    cluster.merge::<StatefulSet>("orders", &hold(&["tests.example/hold"])).await;
    let first = cluster.set("orders").await.uid();
    cluster.delete::<Connector>("orders").await;
    cluster.create("orders", &source()).await;
    cluster.wait("orders", "Reconciling", "True", "WaitingForDeletion").await;
    assert_eq!(cluster.set("orders").await.uid(), first);
    cluster.merge::<StatefulSet>("orders", &hold(&[])).await;
    cluster.wait("orders", "Ready", "True", "Running").await;
    assert_ne!(cluster.set("orders").await.uid(), first);
}
