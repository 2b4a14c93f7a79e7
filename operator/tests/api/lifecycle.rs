//! What becomes of a Connector from its creation on: objects, states, scale, switches.

use connector_crds::Connector;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::cluster::{Cluster, condition, from, sink, source, until};
use crate::kubelet;
use crate::operator::{IMAGE, Operator};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn a_connector_becomes_its_objects_and_runs() {
    let cluster = Cluster::new("objects").await;
    let _kubelet = kubelet::start(&cluster).await;
    cluster.create("orders", &source()).await;
    // No operator has seen it: tools that wait do not take it for done.
    assert_eq!(cluster.status("orders").await.observed_generation, Some(-1));
    let operator = Operator::start(&cluster);
    cluster.create("totals", &sink()).await;
    let status = cluster.wait("orders", "Ready", "True", "Running").await;
    assert_eq!(status.type_.as_deref(), Some("KafkaSource"));
    let status = cluster.wait("totals", "Ready", "True", "Running").await;
    assert_eq!(status.listen_address.as_deref(), Some("totals.objects:7200"));
    assert_eq!((status.replicas, status.ready_replicas), (Some(1), Some(1)));
    let names = |maps: Vec<ConfigMap>| maps.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>();
    let maps = names(cluster.list::<ConfigMap>().await);
    assert!(maps.contains(&"orders-live".to_owned()) && maps.len() == 5, "{maps:?}");
    assert!(cluster.find::<ServiceAccount>("totals").await.is_some());
    assert!(cluster.find::<Service>("totals").await.is_some());
    assert!(cluster.find::<Service>("orders").await.is_none());
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn stopped_means_no_pod_ever_and_running_brings_it() {
    let cluster = Cluster::new("stopped").await;
    let _kubelet = kubelet::start(&cluster).await;
    let _operator = Operator::start(&cluster);
    let mut spec = source();
    spec["state"] = "Stopped".into();
    cluster.create("orders", &spec).await;
    cluster.wait("orders", "Ready", "True", "Stopped").await;
    assert_eq!(cluster.set("orders").await.metadata.generation, Some(1), "it was never scaled up");
    assert!(cluster.pods().await.is_empty());
    cluster.edit("orders", &json!({"state": "Running"})).await;
    cluster.wait("orders", "Ready", "True", "Running").await;
    cluster.edit("orders", &json!({"state": "Stopped"})).await;
    cluster.wait("orders", "Ready", "True", "Stopped").await;
    assert!(cluster.pods().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn the_scale_subresource_adds_and_removes_pods_and_touches_no_other() {
    let cluster = Cluster::new("scale-subresource").await;
    let _kubelet = kubelet::start(&cluster).await;
    let _operator = Operator::start(&cluster);
    cluster.create("orders", &source()).await;
    cluster.wait("orders", "Ready", "True", "Running").await;
    let before = cluster.pods().await;
    let connectors = cluster.api::<Connector>();
    for replicas in [3, 1] {
        let patch = json!({"spec": {"replicas": replicas}});
        connectors.patch_scale("orders", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        until("as many pods", || async {
            let status = connectors.get_scale("orders").await.unwrap().status?;
            (status.replicas == replicas).then_some(())
        })
        .await;
        cluster.wait("orders", "Ready", "True", "Running").await;
        let scale = connectors.get_scale("orders").await.unwrap().status.unwrap();
        let pods = cluster.api::<Pod>();
        let selected = kube::api::ListParams::default().labels(scale.selector.as_deref().unwrap());
        assert_eq!(pods.list(&selected).await.unwrap().items.len(), usize::try_from(replicas).unwrap());
        assert_eq!(cluster.pods().await[0], before[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn what_the_operator_does_not_allow_is_refused_until_it_does() {
    let cluster = Cluster::new("allow").await;
    let _kubelet = kubelet::start(&cluster).await;
    let operator = Operator::start(&cluster);
    cluster.create("orders", &source()).await;
    cluster.wait("orders", "Ready", "True", "Running").await;
    let (pods, set) = (cluster.pods().await, cluster.set("orders").await);
    for (field, name, change) in [
        ("spec.runtime.image", "runtime", json!({"image": "mine:1"})),
        ("spec.pod.serviceAccountName", "pod", json!({"serviceAccountName": "mine"})),
    ] {
        cluster.edit("orders", &json!({name: change})).await;
        let status = cluster.wait("orders", "Stalled", "True", "NotAllowed").await;
        assert!(condition(&status, "Stalled").unwrap().message.starts_with(field), "{status:?}");
        assert_eq!(cluster.pods().await, pods);
        assert_eq!(cluster.set("orders").await.resource_version(), set.resource_version());
        cluster.edit("orders", &json!({name: null})).await;
        cluster.wait("orders", "Ready", "True", "Running").await;
    }
    operator.stop().await;
    let allowed = ["--no-leader-election", "--allow-runtime-image", "--allow-service-account-name"];
    let _operator = Operator::with(&cluster, "allow-2", IMAGE, &allowed);
    let account: ServiceAccount = from(json!({"metadata": {"name": "mine"}}));
    cluster.api().create(&PostParams::default(), &account).await.unwrap();
    let change = json!({"runtime": {"image": "mine:1"}, "pod": {"serviceAccountName": "mine"}});
    cluster.edit("orders", &change).await;
    cluster.wait("orders", "Ready", "True", "Running").await;
    let template = cluster.set("orders").await.spec.unwrap().template.spec.unwrap();
    assert_eq!(template.containers[0].image.as_deref(), Some("mine:1"));
    assert_eq!(template.service_account_name.as_deref(), Some("mine"));
    assert!(cluster.find::<ServiceAccount>("orders").await.is_none());
}
