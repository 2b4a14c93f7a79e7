//! Who is asked and when, against sockets; and what Events say.

use std::net::SocketAddr;

use connector_crds::ConnectorStatus;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::build::tests::{connector, kafka_source, redis_sink};
use crate::runtime_status::SideStatus;
use crate::status::{Progress, Workload};

/// Time that the tests call now.
fn now() -> Timestamp {
    Timestamp::from_second(1_790_000_000).unwrap()
}

fn condition(type_: ConditionType, status: ConditionStatus, seconds_ago: i64) -> Condition {
    serde_json::from_value(json!({
        "type": type_.as_str(), "status": status, "reason": "Any", "message": "",
        "lastTransitionTime": (now() - SignedDuration::from_secs(seconds_ago)).to_string(),
    }))
    .unwrap()
}

/// Everything is as it should be.
fn calm() -> Vec<Condition> {
    [ConditionType::Ready, ConditionType::WallarooConnected, ConditionType::ExternalConnected]
        .map(|type_| condition(type_, ConditionStatus::True, 60))
        .to_vec()
}

fn pod(admin: Option<SocketAddr>) -> PodFacts {
    PodFacts {
        name: "orders-0".into(),
        uid: "uid-of-pod".into(),
        admin,
        ready: true,
        running: true,
        ..PodFacts::default()
    }
}

/// Asks about one pod of a Connector.
async fn ask(
    spec: Value,
    before: &[Condition],
    pods: &[PodFacts],
) -> BTreeMap<String, Option<RuntimeStatus>> {
    let connector = connector(spec);
    let (runtimes, previous) = (BTreeMap::new(), ConnectorStatus::default());
    ask_runtimes(&Outside::real(), before, &facts(&connector, pods, &runtimes, &previous)).await
}

fn facts<'a>(
    connector: &'a crate::validate::ValidatedConnector,
    pods: &'a [PodFacts],
    runtimes: &'a BTreeMap<String, Option<RuntimeStatus>>,
    previous: &'a ConnectorStatus,
) -> Facts<'a> {
    Facts {
        generation: 1,
        connector: Some(connector),
        progress: Progress::Applied,
        workload: Some(Workload { current: true, replicas: 1, ready: 1, updated: 1, rolled_out: true }),
        pods,
        events: None,
        runtimes,
        pending_change: None,
        previous,
        now: now(),
    }
}

/// A runtime's admin port that gives this answer to one request; `None`: it takes the request and stays silent.
async fn admin_port(answer: Option<Value>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1_024];
        let _ = stream.read(&mut request).await.unwrap();
        match answer {
            Some(body) => {
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
            None => std::future::pending().await,
        }
    });
    address
}

#[tokio::test]
async fn a_calm_source_is_not_asked_and_a_sink_always_is() {
    // Nobody listens there: asking would give an entry.
    let pods = [pod(None)];
    assert!(ask(kafka_source(), &calm(), &pods).await.is_empty());
    assert_eq!(ask(redis_sink(), &calm(), &pods).await["orders-0"], None);
    let away = condition(ConditionType::ExternalConnected, ConditionStatus::False, 1);
    let before: Vec<_> = calm().into_iter().take(2).chain([away]).collect();
    assert_eq!(ask(kafka_source(), &before, &pods).await["orders-0"], None);
    let unready = [PodFacts { ready: false, ..pod(None) }];
    assert_eq!(ask(kafka_source(), &calm(), &unready).await["orders-0"], None);
}

#[tokio::test]
async fn the_reason_of_a_runtime_arrives() {
    for reason in ["AuthFailed", "Rejected", "SecretMissing", "Refused"] {
        let trouble = json!({"state": "Failed", "reason": reason, "message": "why"});
        let address = admin_port(Some(json!({"wallaroo": {"state": "Waiting"}, "external": trouble}))).await;
        let answers = ask(redis_sink(), &calm(), &[pod(Some(address))]).await;
        let status = answers["orders-0"].as_ref().unwrap();
        assert!(matches!(&status.external, SideStatus::Failed(trouble) if trouble.reason == reason));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wedged_runtime_is_no_answer() {
    let address = admin_port(None).await;
    assert_eq!(ask(redis_sink(), &calm(), &[pod(Some(address))]).await["orders-0"], None);
}

#[tokio::test]
async fn a_pod_that_does_not_run_is_not_waited_for() {
    let address = admin_port(Some(json!({}))).await;
    let dead = PodFacts { running: false, ..pod(Some(address)) };
    assert_eq!(ask(redis_sink(), &calm(), &[dead]).await["orders-0"], None);
}

#[test]
fn events_are_read_of_what_is_missing_and_only_after_a_while() {
    let set: StatefulSet = serde_json::from_value(json!({
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-of-set"},
        "spec": {"replicas": 1, "selector": {}, "serviceName": "", "template": {}},
    }))
    .unwrap();
    let connector = connector(kafka_source());
    let (runtimes, previous) = (BTreeMap::new(), ConnectorStatus::default());
    let unavailable = |ago| [condition(ConditionType::WorkloadAvailable, ConditionStatus::False, ago)];
    let stuck = [PodFacts { running: false, ready: false, ..pod(None) }];
    let mut facts = facts(&connector, &stuck, &runtimes, &previous);
    assert_eq!(subject(&set, &unavailable(9), &facts), None);
    assert_eq!(subject(&set, &unavailable(10), &facts), Some("uid-of-pod"));
    assert_eq!(subject(&set, &[], &facts), None);
    let available = [condition(ConditionType::WorkloadAvailable, ConditionStatus::True, 60)];
    assert_eq!(subject(&set, &available, &facts), None);
    let known = [PodFacts {
        trouble: Some(PodTrouble { reason: Reason::ImagePullFailed, message: String::new() }),
        ..stuck[0].clone()
    }];
    facts.pods = &known;
    assert_eq!(subject(&set, &unavailable(60), &facts), None, "the pod says why");
    facts.workload.as_mut().unwrap().replicas = 0;
    facts.pods = &[];
    assert_eq!(subject(&set, &unavailable(60), &facts), Some("uid-of-set"));
}

fn event(reason: &str, message: &str, at: &str) -> Event {
    serde_json::from_value(json!({
        "metadata": {"name": "e"}, "involvedObject": {}, "reason": reason, "message": message, "lastTimestamp": at,
    }))
    .unwrap()
}

#[test]
fn the_newest_failure_counts() {
    let quota = event(
        "FailedCreate",
        "pods \"orders-0\" is forbidden: exceeded quota: small",
        "2026-11-25T00:00:02Z",
    );
    let older = event("FailedCreate", "a webhook does not answer", "2026-11-25T00:00:01Z");
    let newer = event("SuccessfulCreate", "made", "2026-11-25T00:00:03Z");
    let reason = |events: &[Event]| newest_failure(events).map(|trouble| trouble.reason);
    assert_eq!(reason(&[older.clone(), quota, newer]), Some(Reason::QuotaExceeded));
    assert_eq!(reason(&[older]), Some(Reason::PodRefused));
    assert_eq!(reason(&[]), None);
    for (word, expected) in [
        ("FailedMount", Some(Reason::MountFailed)),
        ("FailedAttachVolume", Some(Reason::MountFailed)),
        ("FailedCreatePodSandBox", Some(Reason::ContainerNotStarted)),
        ("NodeNotReady", Some(Reason::NodeLost)),
        ("Pulling", None),
    ] {
        assert_eq!(reason(&[event(word, "", "2026-11-25T00:00:00Z")]), expected, "{word}");
    }
}
