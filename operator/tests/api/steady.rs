//! Idle means silent, by the API server's own audit log: `IDLE_CONNECTORS` Connectors for `IDLE_SECONDS`.

use std::time::Duration;

use crate::cluster::{Cluster, sink, source, until};
use crate::kubelet;
use crate::operator::{IMAGE, Operator};

fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn at_rest_nothing_is_asked_and_a_restart_writes_nothing() {
    let (connectors, seconds) = (setting("IDLE_CONNECTORS", 6), setting("IDLE_SECONDS", 8));
    let cluster = Cluster::new("idle").await;
    let _kubelet = kubelet::start(&cluster).await;
    let operator = Operator::start(&cluster);
    let name = |n: usize| format!("connector-{n}");
    for n in 0..connectors {
        cluster.create(&name(n), &if n % 2 == 0 { source() } else { sink() }).await;
    }
    for n in 0..connectors {
        cluster.wait(&name(n), "Ready", "True", "Running").await;
    }
    // What the last status writes woke is reconciled too.
    let quiet = async |operator: &Operator| {
        let mut last = operator.requests().len();
        until("the operator comes to rest", || {
            let now = operator.requests().len();
            let same = now == last;
            last = now;
            async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                same.then_some(())
            }
        })
        .await;
    };
    quiet(&operator).await;
    // A watch that is begun anew lists first.
    let asked = || -> Vec<String> {
        operator.requests().into_iter().filter(|request| !request.starts_with("list ")).collect()
    };
    let before = asked().len();
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    let after = asked();
    assert_eq!(after.len(), before, "{:?}", &after[before..]);
    operator.stop().await;
    let second = Operator::with(&cluster, "idle-2", IMAGE, &["--no-leader-election"]);
    until("every Connector is reconciled", || async {
        let reconciled = second.metric("wallaroo_operator_reconcile_total{result=\"ok\"}").await;
        (reconciled >= connectors as f64).then_some(())
    })
    .await;
    quiet(&second).await;
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    assert_eq!(second.writes(), Vec::<String>::new());
    println!(
        "{connectors} Connectors: 0 requests in {seconds} s, and 0 writes in {seconds} s after a restart"
    );
}
