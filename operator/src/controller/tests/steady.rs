//! A Connector that runs as asked costs the API server nothing, Events included.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use super::*;
use crate::names::ADMIN_PORT;

/// The admin port of a runtime whose ends are connected.
async fn runtime() -> SocketAddr {
    let status = json!({
        "wallaroo": {"state": "Connected"}, "external": {"state": "Connected"},
        "records": {"read": 1, "written": 1, "deadLetters": 0, "dropped": {}},
    });
    let router = Router::new().route("/status", get(async move || status.to_string()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await });
    address
}

#[tokio::test]
async fn a_connector_in_steady_state_costs_no_request() {
    for spec in [kafka_source(), redis_sink()] {
        let cluster = Cluster::with(spec);
        cluster.settle().await;
        let runtime = runtime().await;
        cluster.api.edit("pods/orders-0", |pod| {
            pod["spec"] = json!({"containers": [{
                "name": "connector",
                "ports": [{"name": ADMIN_PORT, "containerPort": runtime.port()}],
            }]});
            pod["status"]["podIP"] = runtime.ip().to_string().into();
            pod["status"]["containerStatuses"] = json!([{
                "name": "connector", "image": "i:1", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {}},
            }]);
        });
        cluster.settle().await;
        let before = cluster.status();
        for end in [ConditionType::WallarooConnected, ConditionType::ExternalConnected] {
            assert_eq!(find(&before.conditions, end).unwrap().status, ConditionStatus::True);
        }
        assert_eq!(cluster.reason(ConditionType::Ready).unwrap(), "Running");
        cluster.api.0.lock().unwrap().events = 0;
        for _ in 0..3 {
            let calls = cluster.reconcile().await.unwrap();
            assert!(calls.is_empty(), "{calls:?}");
        }
        assert_eq!(cluster.api.0.lock().unwrap().events, 0);
        assert_eq!(cluster.status(), before);
    }
}
