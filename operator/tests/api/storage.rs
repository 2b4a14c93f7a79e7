//! The state volume: a swap keeps its claims whatever becomes of them with the Connector, and claims grow.

use connector_crds::Connector;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::cluster::{Cluster, condition, from, sink, until};
use crate::kubelet;
use crate::operator::Operator;

async fn claim(cluster: &Cluster, name: &str) -> PersistentVolumeClaim {
    cluster.find(name).await.unwrap_or_else(|| panic!("claim {name} is gone"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn a_swap_keeps_claims_that_go_with_the_connector_and_a_deletion_takes_them() {
    let cluster = Cluster::new("swap").await;
    let _kubelet = kubelet::start(&cluster).await;
    let _operator = Operator::start(&cluster);
    let mut spec = sink();
    spec["storage"] = json!({"whenDeleted": "Delete"});
    for name in ["running", "stopped"] {
        cluster.create(name, &spec).await;
        cluster.wait(name, "Ready", "True", "Running").await;
        let set = cluster.set(name).await.uid().unwrap();
        let claim_name = format!("state-{name}-0");
        until("the claim is to go with the StatefulSet", || async {
            let claim = cluster.find::<PersistentVolumeClaim>(&claim_name).await?;
            claim.owner_references().iter().any(|owner| owner.uid == set).then_some(())
        })
        .await;
    }
    // A claim without its pod: the controller of StatefulSets does not look after it any more.
    cluster.edit("stopped", &json!({"state": "Stopped"})).await;
    cluster.wait("stopped", "Ready", "True", "Stopped").await;
    for (name, reason) in [("running", "Running"), ("stopped", "Stopped")] {
        let before = claim(&cluster, &format!("state-{name}-0")).await;
        let set = cluster.set(name).await.uid();
        cluster.edit(name, &json!({"sink": {"redis": null, "file": {"path": "out"}}})).await;
        let status = cluster.wait(name, "Ready", "True", reason).await;
        assert_eq!(status.type_.as_deref(), Some("FileSink"));
        let made = cluster.set(name).await;
        assert_ne!(made.uid(), set);
        let policy = made.spec.unwrap().persistent_volume_claim_retention_policy.unwrap();
        assert_eq!(policy.when_deleted.as_deref(), Some("Delete"), "the spec holds again");
        let after = claim(&cluster, &format!("state-{name}-0")).await;
        assert_eq!(after.uid(), before.uid());
        assert!(after.metadata.deletion_timestamp.is_none());
    }
    // The garbage collector has had its chance: it has taken another StatefulSet's dependents since.
    cluster.delete::<Connector>("running").await;
    until("the claim goes with the Connector", || async {
        let gone = cluster.find::<PersistentVolumeClaim>("state-running-0").await;
        gone.is_none_or(|claim| claim.metadata.deletion_timestamp.is_some()).then_some(())
    })
    .await;
    assert!(claim(&cluster, "state-stopped-0").await.metadata.deletion_timestamp.is_none());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn bound_claims_grow_and_what_cannot_is_said() {
    let cluster = Cluster::new("grow").await;
    let _kubelet = kubelet::start(&cluster).await;
    let classes: Api<StorageClass> = Api::all(cluster.client.clone());
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    for (class, grows) in [("grows", true), ("fixed", false)] {
        let object: StorageClass = from(json!({
            "metadata": {"name": class}, "provisioner": "kubernetes.io/no-provisioner", "allowVolumeExpansion": grows,
        }));
        classes.create(&PostParams::default(), &object).await.unwrap();
        let volume: PersistentVolume = from(json!({
            "metadata": {"name": class},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "storageClassName": class,
                "hostPath": {"path": "/nowhere"}, "persistentVolumeReclaimPolicy": "Retain"},
        }));
        volumes.create(&PostParams::default(), &volume).await.unwrap();
    }
    let _operator = Operator::start(&cluster);
    for class in ["grows", "fixed"] {
        let mut spec = sink();
        spec["storage"] = json!({"class": class, "size": "2Gi"});
        cluster.create(class, &spec).await;
        cluster.wait(class, "Ready", "True", "Running").await;
        until("the claim is bound", || async {
            let claim = claim(&cluster, &format!("state-{class}-0")).await;
            (claim.status?.phase.as_deref() == Some("Bound")).then_some(())
        })
        .await;
        cluster.edit(class, &json!({"storage": {"size": "5Gi"}})).await;
    }
    let asked =
        |claim: PersistentVolumeClaim| claim.spec?.resources?.requests?.get("storage").map(|it| it.0.clone());
    cluster.wait("grows", "Ready", "True", "Running").await;
    until("the claim has grown", || async {
        (asked(claim(&cluster, "state-grows-0").await).as_deref() == Some("5Gi")).then_some(())
    })
    .await;
    let status = cluster.wait("fixed", "Stalled", "True", "ApplyRefused").await;
    let message = &condition(&status, "Stalled").unwrap().message;
    assert!(message.contains("state-fixed-0"), "{message}");
    assert_eq!(asked(claim(&cluster, "state-fixed-0").await).as_deref(), Some("2Gi"));
    // What the cluster's owner allows later is taken up by itself.
    let class: StorageClass = classes.get("fixed").await.unwrap();
    let mut class = class;
    class.allow_volume_expansion = Some(true);
    classes.replace("fixed", &PostParams::default(), &class).await.unwrap();
    cluster.wait("fixed", "Ready", "True", "Running").await;
    assert_eq!(asked(claim(&cluster, "state-fixed-0").await).as_deref(), Some("5Gi"));
    assert!(cluster.find::<StatefulSet>("fixed").await.is_some());
}
