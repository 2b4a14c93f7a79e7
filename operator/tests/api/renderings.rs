//! Nothing restarts that did not have to: an operator, a definition and defaults that changed leave pods as they are.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::cluster::{Cluster, sink, source, until};
use crate::kubelet;
use crate::operator::Operator;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn an_upgrade_of_operator_and_definition_is_pending_until_it_is_asked_for() {
    let cluster = Cluster::new("upgrade").await;
    let _kubelet = kubelet::start(&cluster).await;
    let operator = Operator::start(&cluster);
    for (name, spec) in [("orders", source()), ("totals", sink())] {
        cluster.create(name, &spec).await;
        cluster.wait(name, "Ready", "True", "Running").await;
    }
    let revisions = async || {
        let mut found = Vec::new();
        for name in ["orders", "totals"] {
            let set = cluster.set(name).await;
            found.push((set.metadata.generation, set.status.unwrap().update_revision));
        }
        found
    };
    let (pods, before) = (cluster.pods().await, revisions().await);
    operator.stop().await;
    // The definition of a newer release: a field with a default, which stored objects show at once.
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let place = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/delivery/properties/newInThisRelease";
    let addition = json!([{"op": "add", "path": place, "value": {"type": "integer", "default": 7}}]);
    let addition: Patch<()> = Patch::Json(serde_json::from_value(addition).unwrap());
    let name = connector_crds::crd().name_any();
    definitions.patch(&name, &PatchParams::default(), &addition).await.unwrap();
    let resource = kube::discovery::ApiResource::erase::<connector_crds::Connector>(&());
    let untyped: Api<kube::core::DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
    until("stored objects show the default", || async {
        let object = untyped.get("orders").await.unwrap();
        (object.data["spec"]["delivery"]["newInThisRelease"] == 7).then_some(())
    })
    .await;
    // An operator that renders the same spec otherwise.
    let image = "registry.example/connector-runtime:2";
    let _operator = Operator::with(&cluster, "upgrade-2", image, &["--no-leader-election"]);
    for name in ["orders", "totals"] {
        let pending =
            until("what an upgrade would change", || async { cluster.status(name).await.pending_change })
                .await;
        assert!(pending.contains("connector-runtime:1 → registry.example/connector-runtime:2"), "{pending}");
    }
    assert_eq!(revisions().await, before);
    assert_eq!(cluster.pods().await, pods);
    // What restarts nothing takes up nothing.
    cluster.edit("orders", &json!({"runtime": {"logLevel": "debug"}})).await;
    cluster.wait("orders", "Ready", "True", "Running").await;
    assert_eq!(revisions().await, before);
    cluster.edit("orders", &json!({"restartNonce": "again"})).await;
    let status = cluster.wait("orders", "Ready", "True", "Running").await;
    assert_eq!(status.pending_change, None);
    let template = cluster.set("orders").await.spec.unwrap().template.spec.unwrap();
    assert_eq!(template.containers[0].image.as_deref(), Some(image));
    let now = cluster.pods().await;
    assert_ne!(now[0], pods[0], "a new nonce restarts");
    assert_eq!(now[1], pods[1], "and only the Connector that has it");
}
