//! Two operators and one Lease: one that is paused and wakes has lost, and writes nothing.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::cluster::{Cluster, source, until};
use crate::kubelet;
use crate::operator::{IMAGE, Operator, requests};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks api"]
async fn a_leader_that_is_paused_and_wakes_writes_nothing_and_ends() {
    let cluster = Cluster::new("election").await;
    let _kubelet = kubelet::start(&cluster).await;
    let start = |name: &str| {
        Operator::with(&cluster, name, IMAGE, &["--lease-namespace", "election", "--identity", name])
    };
    let mut first = start("first");
    until("the first leads", || async {
        (first.metric("wallaroo_operator_leader").await > 0.0).then_some(())
    })
    .await;
    let second = start("second");
    cluster.create("orders", &source()).await;
    cluster.wait("orders", "Ready", "True", "Running").await;
    let leases = |request: &String| request.contains(" leases/");
    assert!(requests("second").iter().all(|(_, request)| leases(request)), "only the leader works");
    first.signal(Signal::SIGSTOP);
    // The watches of the first hold this when it wakes.
    cluster.edit("orders", &json!({"replicas": 2})).await;
    until("the second leads", || async {
        (second.metric("wallaroo_operator_leader").await > 0.0).then_some(())
    })
    .await;
    let writes = |user: &str| -> Vec<(String, String)> {
        let read = |request: &str| ["get ", "list "].iter().any(|verb| request.starts_with(verb));
        requests(user).into_iter().filter(|(_, request)| !read(request) && !leases(request)).collect()
    };
    let before = writes("first").len();
    first.signal(Signal::SIGCONT);
    let status = first.ended().await;
    assert!(!status.success(), "a leader that lost says so");
    cluster.wait("orders", "Ready", "True", "Running").await;
    assert_eq!(cluster.pods().await.len(), 2);
    let (old, new) = (writes("first"), writes("second"));
    assert_eq!(old.len(), before, "written after it had lost: {:?}", &old[before..]);
    let (last, first_of_second) = (&old.last().unwrap().0, &new[0].0);
    assert!(last < first_of_second, "two wrote at the same time: {last} {first_of_second}");
}
