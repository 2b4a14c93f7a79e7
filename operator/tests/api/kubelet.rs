//! Plays the kubelet: pods of a namespace run and are ready, and one server of this process answers for all their runtimes.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;

/// How often pods are looked at.
const PERIOD: Duration = Duration::from_millis(100);

/// Ports at which a runtime serves its status.
const ADMIN_PORTS: [u16; 2] = [9_180, 9_181];

/// Ends when it is dropped.
pub(crate) struct Kubelet(JoinHandle<()>);

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts it over a cluster's namespace.
pub(crate) async fn start(cluster: &Cluster) -> Kubelet {
    let address = runtimes().await;
    let pods: Api<Pod> = cluster.api();
    Kubelet(tokio::spawn(async move {
        loop {
            let found = pods.list(&kube::api::ListParams::default()).await;
            for pod in found.into_iter().flat_map(|list| list.items) {
                let condition = |type_: &str, value: &str| {
                    let all = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
                    all.into_iter().any(|c| c.type_ == type_ && c.status == value)
                };
                let runs = condition("Ready", "True") && condition("PodScheduled", "True");
                if runs || pod.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let conditions: Vec<_> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
                    .iter()
                    .map(|type_| json!({"type": type_, "status": "True"}))
                    .collect();
                let status = json!({"status": {
                    "phase": "Running", "conditions": conditions,
                    "podIP": address, "podIPs": [{"ip": address}],
                    "containerStatuses": [{
                        "name": "connector", "image": "i:1", "imageID": "", "ready": true, "restartCount": 0,
                        "state": {"running": {}},
                    }],
                }});
                // Gone by now, or seen again in a moment.
                let _ = pods
                    .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&status))
                    .await;
            }
            tokio::time::sleep(PERIOD).await;
        }
    }))
}

/// The address of all runtimes: one of the loopback network that only this process uses.
async fn runtimes() -> IpAddr {
    static ADDRESS: OnceCell<IpAddr> = OnceCell::const_new();
    *ADDRESS
        .get_or_init(|| async {
            let [_, _, high, low] = std::process::id().to_be_bytes();
            let address = IpAddr::from(Ipv4Addr::new(127, 77, high, low.max(2)));
            // The thread outlives the runtimes of single tests.
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let serving = ADMIN_PORTS.map(|port| async move {
                        let listener = TcpListener::bind((address, port)).await.unwrap();
                        axum::serve(listener, router()).await
                    });
                    futures::future::join_all(serving).await;
                });
            });
            address
        })
        .await
}

fn router() -> Router {
    let status = json!({
        "wallaroo": {"state": "Connected"}, "external": {"state": "Connected"},
        "records": {"read": 1, "written": 1, "deadLetters": 0, "dropped": {}},
    });
    Router::new().route("/status", get(async move || status.to_string()))
}
