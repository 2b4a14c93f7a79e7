//! Each rule of the status contract, through the real validation.

mod kstatus;
mod walk;

use std::collections::BTreeMap;

use connector_crds::{ConditionStatus, ConnectorStatus, Guarantee};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::compute::{Facts, PROGRESS_DEADLINE, Progress, Workload, announce, compute};
use super::conditions::find;
use super::notices::notices;
use super::pods::{PodFacts, PodTrouble};
use super::reason::{ConditionType, Reason};
use crate::build::tests::{connector, kafka_source, redis_sink};
use crate::runtime_status::{RuntimeError, RuntimeStatus, SideStatus, Trouble};
use crate::validate::ValidatedConnector;

/// A Connector's life: each step looks at the status of the step before.
struct World {
    connector: ValidatedConnector,
    generation: i64,
    progress: Progress,
    workload: Option<Workload>,
    pods: Vec<PodFacts>,
    events: Option<PodTrouble>,
    runtimes: BTreeMap<String, Option<RuntimeStatus>>,
    status: ConnectorStatus,
    now: Timestamp,
}

impl World {
    fn of(connector: ValidatedConnector) -> World {
        World {
            connector,
            generation: 1,
            progress: Progress::Applied,
            workload: None,
            pods: Vec::new(),
            events: None,
            runtimes: BTreeMap::new(),
            status: ConnectorStatus::default(),
            now: Timestamp::from_second(1_790_000_000).unwrap(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        let invalid = matches!(self.progress, Progress::Invalid { .. });
        Facts {
            generation: self.generation,
            connector: (!invalid).then_some(&self.connector),
            progress: self.progress.clone(),
            workload: self.workload,
            pods: &self.pods,
            events: self.events.clone(),
            runtimes: &self.runtimes,
            pending_change: None,
            previous: &self.status,
            now: self.now,
        }
    }

    fn announce(&mut self) -> &mut World {
        self.status = announce(&self.facts());
        self.check();
        self
    }

    fn step(&mut self) -> &mut World {
        self.status = compute(&self.facts());
        self.check();
        self
    }

    /// What holds of every status there can be.
    fn check(&self) {
        let is = |type_, status| find(&self.status.conditions, type_).is_some_and(|c| c.status == status);
        let there = |type_| find(&self.status.conditions, type_).is_some();
        assert!(!(there(ConditionType::Reconciling) && there(ConditionType::Stalled)), "{:?}", self.status);
        if is(ConditionType::Ready, ConditionStatus::True) {
            assert!(
                !there(ConditionType::Reconciling) && !there(ConditionType::Stalled),
                "{:?}",
                self.status
            );
        }
        assert_eq!(self.status.observed_generation, Some(self.generation));
        assert!(self.status.conditions.iter().all(|c| c.observed_generation == Some(self.generation)));
        assert_eq!(self.status.conditions[0].type_, "Ready");
    }

    fn pod(&mut self, ready: bool) -> &mut World {
        self.pods = vec![PodFacts { name: "orders-0".into(), ready, running: true, ..PodFacts::default() }];
        let n = i32::from(ready);
        self.workload = Some(Workload { current: true, replicas: 1, ready: n, updated: 1, rolled_out: true });
        self
    }

    fn says(&mut self, wallaroo: SideStatus, external: SideStatus) -> &mut World {
        let status = RuntimeStatus { wallaroo, external, ..RuntimeStatus::default() };
        self.runtimes = BTreeMap::from([("orders-0".to_owned(), Some(status))]);
        self
    }

    /// Created and running.
    fn running(spec: serde_json::Value) -> World {
        let mut world = World::of(connector(spec));
        world.announce();
        world.pod(true).says(SideStatus::Connected, SideStatus::Connected).step();
        assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
        world.later(30);
        world
    }

    fn later(&mut self, seconds: i64) -> &mut World {
        self.now += SignedDuration::from_secs(seconds);
        self
    }

    fn ready(&self) -> (ConditionStatus, &str) {
        let ready = find(&self.status.conditions, ConditionType::Ready).unwrap();
        (ready.status, ready.reason.as_str())
    }

    fn reason(&self, type_: ConditionType) -> Option<&str> {
        find(&self.status.conditions, type_).map(|condition| condition.reason.as_str())
    }
}

fn failed(reason: &str) -> SideStatus {
    SideStatus::Failed(Trouble { reason: reason.into(), message: "it does not work".into() })
}

#[test]
fn a_new_generation_is_announced_before_anything_changes() {
    let mut world = World::running(kafka_source());
    world.generation = 2;
    world.announce();
    assert_eq!(world.ready(), (ConditionStatus::False, "NewGeneration"));
    assert_eq!(world.reason(ConditionType::Reconciling), Some("NewGeneration"));
}

#[test]
fn ready_needs_the_workload_to_speak_of_this_generation() {
    let mut world = World::running(kafka_source());
    world.generation = 2;
    world.announce();
    world.workload.as_mut().unwrap().current = false;
    world.step();
    assert_eq!(world.ready().0, ConditionStatus::False);
    assert_eq!(world.reason(ConditionType::Reconciling), Some("RollingOut"));
    world.workload.as_mut().unwrap().current = true;
    world.step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
}

#[test]
fn an_edit_that_restarts_nothing_leaves_ready_as_it_is() {
    let mut world = World::running(kafka_source());
    let before = world.status.conditions[0].clone();
    world.generation = 2;
    world.step();
    assert_eq!(world.status.conditions[0].last_transition_time, before.last_transition_time);
    assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
}

#[test]
fn the_same_facts_give_the_same_status_later() {
    let mut world = World::running(kafka_source());
    let before = world.status.clone();
    world.later(3_600).step();
    assert_eq!(world.status, before);
    world.runtimes.clear();
    world.step();
    assert_eq!(world.status, before, "a runtime that was not asked changes nothing");
}

#[test]
fn an_invalid_generation_stalls_and_leaves_the_workload_alone() {
    let mut world = World::running(kafka_source());
    world.generation = 2;
    let message = "spec.pod: no".to_owned();
    world.progress = Progress::Invalid { reason: Reason::ConfigInvalid, message };
    world.step();
    assert_eq!(world.ready(), (ConditionStatus::False, "ConfigInvalid"));
    assert_eq!(world.reason(ConditionType::Stalled), Some("ConfigInvalid"));
    assert_eq!(world.reason(ConditionType::WorkloadAvailable), Some("Available"));
    assert_eq!(world.status.type_.as_deref(), Some("KafkaSource"));
    world.progress = Progress::Applied;
    world.generation = 3;
    world.step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
}

#[test]
fn trouble_after_a_good_rollout_is_not_reconciling_and_passes_by_itself() {
    let mut world = World::running(kafka_source());
    world.pod(false).says(SideStatus::Connected, failed("AuthFailed")).step();
    assert_eq!(world.ready(), (ConditionStatus::False, "ExternalUnreachable"));
    assert_eq!(world.reason(ConditionType::Reconciling), None);
    assert_eq!(world.reason(ConditionType::Stalled), None);
    assert_eq!(world.reason(ConditionType::ExternalConnected), Some("AuthFailed"));
    world.later(20 * 60).step();
    assert_eq!(world.reason(ConditionType::Stalled), None, "a rollout that was good has no deadline");
    world.pod(true).says(SideStatus::Connected, SideStatus::Connected).step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
}

#[test]
fn a_short_trouble_moves_only_the_condition_of_its_end() {
    let mut world = World::running(kafka_source());
    world.says(failed("SessionLost"), SideStatus::Connected).step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
    assert_eq!(world.reason(ConditionType::WallarooConnected), Some("SessionLost"));
}

#[test]
fn an_end_that_stays_away_is_not_ready_whatever_the_pods_say() {
    let mut world = World::running(kafka_source());
    world.says(failed("SessionLost"), SideStatus::Connected).step();
    world.later(60).step();
    assert_eq!(world.ready().0, ConditionStatus::True);
    world.later(1).step();
    assert_eq!(world.ready(), (ConditionStatus::False, "WallarooUnreachable"));
    assert_eq!(world.reason(ConditionType::Reconciling), None);
    world.says(SideStatus::Connected, SideStatus::Connected).step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
}

#[test]
fn wallaroo_never_makes_a_sink_unready_and_its_system_does() {
    let mut world = World::of(connector(redis_sink()));
    world.announce().pod(true).says(failed("SessionLost"), SideStatus::Connected).step();
    world.later(3_600).step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Listening"));
    world.says(SideStatus::Waiting, failed("Refused")).step();
    world.later(61).step();
    assert_eq!(world.ready(), (ConditionStatus::False, "ExternalUnreachable"));
}

#[test]
fn a_time_moves_only_with_its_status() {
    let mut world = World::running(kafka_source());
    let time = |world: &World, type_| find(&world.status.conditions, type_).unwrap().last_transition_time.0;
    let start = time(&world, ConditionType::ExternalConnected);
    world.pod(false).says(SideStatus::Connected, failed("Refused")).step();
    let lost = time(&world, ConditionType::ExternalConnected);
    assert_eq!(lost, world.now);
    assert_eq!(time(&world, ConditionType::WallarooConnected), start);
    world.later(30).says(SideStatus::Connected, failed("AuthFailed")).step();
    assert_eq!(world.reason(ConditionType::ExternalConnected), Some("AuthFailed"));
    assert_eq!(time(&world, ConditionType::ExternalConnected), lost, "another reason, the same status");
}

#[test]
fn a_message_that_only_counts_on_is_not_written_again() {
    let mut world = World::running(kafka_source());
    let says =
        |message: &str| SideStatus::Failed(Trouble { reason: "Refused".into(), message: message.into() });
    world
        .pod(false)
        .says(SideStatus::Connected, says("kafka:9092: refused (after 3ms in state CONNECT)"))
        .step();
    let first = world.status.clone();
    world
        .later(15)
        .says(SideStatus::Connected, says("kafka:9092: refused (after 21ms in state CONNECT)"))
        .step();
    assert_eq!(world.status, first);
    world.says(SideStatus::Connected, says("kafka:9092: no route")).step();
    assert_ne!(world.status, first);
    // Another spec may name another port: its message counts.
    world.generation = 2;
    world.says(SideStatus::Connected, says("kafka:9093: no route")).step();
    let said = find(&world.status.conditions, ConditionType::ExternalConnected).unwrap();
    assert_eq!(said.message, "kafka:9093: no route");
}

#[test]
fn the_ends_are_unknown_once_the_pod_has_vanished() {
    let mut world = World::running(kafka_source());
    world.pods.clear();
    world.runtimes.clear();
    let gone = Workload { current: true, rolled_out: true, ..Workload::default() };
    world.workload = Some(gone);
    world.step();
    for type_ in [ConditionType::WallarooConnected, ConditionType::ExternalConnected] {
        let said = find(&world.status.conditions, type_).unwrap();
        assert_eq!((said.status, said.reason.as_str()), (ConditionStatus::Unknown, "PodsNotReady"));
    }
    assert_eq!(world.ready().0, ConditionStatus::False);
    assert_eq!(world.status.ready_replicas, Some(0));
}

#[test]
fn a_pod_that_does_not_run_is_told_from_one_that_does_not_answer() {
    let mut world = World::running(kafka_source());
    world.pod(false);
    world.pods[0].running = false;
    world.runtimes = BTreeMap::from([("orders-0".to_owned(), None)]);
    world.step();
    assert_eq!(world.reason(ConditionType::ExternalConnected), Some("PodsNotReady"));
}

#[test]
fn a_pod_that_should_be_gone_means_that_its_node_is() {
    let mut world = World::running(kafka_source());
    world.pod(false);
    world.pods[0].ending = true;
    world.pods[0].gone_by = Some(world.now);
    world.later(30).step();
    assert_ne!(world.ready().1, "NodeLost");
    world.later(1).step();
    assert_eq!(world.ready(), (ConditionStatus::False, "NodeLost"));
    world.connector.state = connector_crds::State::Stopped;
    world.generation = 2;
    world.step();
    assert_eq!(world.ready(), (ConditionStatus::False, "NodeLost"));
}

#[test]
fn what_a_runtime_waits_for_counts_before_its_pod_is_unready() {
    let mut world = World::running(kafka_source());
    let stalled = Trouble { reason: "RecordRejected".into(), message: "stream orders/0 at 7".into() };
    let status = RuntimeStatus {
        wallaroo: SideStatus::Connected,
        external: SideStatus::Connected,
        stalled: Some(stalled),
        ..RuntimeStatus::default()
    };
    world.runtimes = BTreeMap::from([("orders-0".to_owned(), Some(status))]);
    world.step();
    assert_eq!(world.ready(), (ConditionStatus::False, "RecordRejected"));
}

#[test]
fn the_promise_is_that_of_protocol_and_system() {
    let promise = |spec| {
        let delivery = World::running(spec).status.delivery.unwrap();
        serde_json::to_value(delivery).unwrap()
    };
    let mut plain = kafka_source();
    plain["wallaroo"]["protocol"] = "FramedTCP".into();
    assert_eq!(promise(kafka_source()), json!({"guarantee": "AtLeastOnce", "scope": "WallarooCheckpoint"}));
    assert_eq!(promise(plain)["scope"], "WallarooSocket");
}

#[test]
fn a_sink_is_ready_while_nobody_has_dialled() {
    let mut world = World::of(connector(redis_sink()));
    world.announce().pod(true).says(SideStatus::Waiting, SideStatus::Connected).step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Listening"));
    assert_eq!(world.reason(ConditionType::WallarooConnected), Some("Waiting"));
    assert_eq!(world.status.listen_address.as_deref(), Some("orders.shop:7200"));
    assert_eq!(world.status.delivery.unwrap().guarantee, Guarantee::AtLeastOnce);
    world.says(SideStatus::Connected, SideStatus::Connected).step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
}

#[test]
fn paused_and_stopped_are_ready_because_they_were_asked_for() {
    let mut world = World::running(kafka_source());
    world.connector.state = connector_crds::State::Paused;
    world.generation = 2;
    world.step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Paused"));
    world.connector.state = connector_crds::State::Stopped;
    world.generation = 3;
    world.announce().step();
    assert_eq!(world.ready(), (ConditionStatus::False, "Stopping"));
    world.pods.clear();
    world.runtimes.clear();
    world.workload = Some(Workload { current: true, rolled_out: true, ..Workload::default() });
    world.step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Stopped"));
    assert_eq!(world.reason(ConditionType::ExternalConnected), None);
}

#[test]
fn a_first_rollout_that_gets_nowhere_stalls_after_the_deadline_and_recovers() {
    let mut world = World::of(connector(kafka_source()));
    world.announce().pod(false).says(failed("Refused"), SideStatus::Connected).step();
    assert_eq!(world.ready(), (ConditionStatus::False, "WallarooUnreachable"));
    assert_eq!(world.reason(ConditionType::Reconciling), Some("RollingOut"));
    world.later(PROGRESS_DEADLINE.as_secs() + 1).step();
    assert_eq!(world.reason(ConditionType::Stalled), Some("ProgressDeadlineExceeded"));
    world.later(60).step();
    assert_eq!(world.reason(ConditionType::Stalled), Some("ProgressDeadlineExceeded"));
    world.pod(true).says(SideStatus::Connected, SideStatus::Connected).step();
    assert_eq!(world.ready(), (ConditionStatus::True, "Running"));
}

#[test]
fn what_somebody_has_to_change_stalls_and_is_named() {
    let mut world = World::running(kafka_source());
    world.pod(false);
    let stalled = Trouble { reason: "RecordRejected".into(), message: "stream orders/0 at 7".into() };
    let status = RuntimeStatus { stalled: Some(stalled), ..RuntimeStatus::default() };
    world.runtimes = BTreeMap::from([("orders-0".to_owned(), Some(status))]);
    world.step();
    assert_eq!(world.reason(ConditionType::Stalled), Some("RecordRejected"));
    assert_eq!(world.ready(), (ConditionStatus::False, "RecordRejected"));

    let mut world = World::running(kafka_source());
    world.pod(false);
    world.events =
        Some(PodTrouble { reason: Reason::QuotaExceeded, message: "exceeded quota: small".into() });
    world.step();
    assert_eq!(world.reason(ConditionType::Stalled), Some("QuotaExceeded"));
}

#[test]
fn a_missing_secret_is_named() {
    let mut world = World::running(kafka_source());
    world.pod(false).says(SideStatus::Connected, failed("SecretMissing")).step();
    assert_eq!(world.ready(), (ConditionStatus::False, "SecretMissing"));
}

#[test]
fn a_runtime_that_does_not_answer_makes_its_ends_unknown() {
    let mut world = World::running(kafka_source());
    world.pod(false);
    world.runtimes = BTreeMap::from([("orders-0".to_owned(), None)]);
    world.step();
    assert_eq!(world.reason(ConditionType::ExternalConnected), Some("StatusUnreachable"));
    assert_eq!(world.ready(), (ConditionStatus::False, "StatusUnreachable"));
}

#[test]
fn a_reason_that_no_condition_can_hold_is_replaced() {
    let mut world = World::running(kafka_source());
    world.says(SideStatus::Connected, failed("not a word")).step();
    assert_eq!(world.reason(ConditionType::ExternalConnected), Some("Connecting"));
}

#[test]
fn objects_of_others_and_of_the_past_are_reported() {
    let mut world = World::of(connector(kafka_source()));
    world.progress = Progress::Conflict("Service shop/orders is not of this Connector".into());
    world.step();
    assert_eq!(world.reason(ConditionType::Stalled), Some("NameConflict"));
    world.progress = Progress::Waiting("StatefulSet shop/orders is being deleted".into());
    world.step();
    assert_eq!(world.reason(ConditionType::Reconciling), Some("WaitingForDeletion"));
    world.progress = Progress::Recreating;
    world.step();
    assert_eq!(world.reason(ConditionType::Reconciling), Some("Recreating"));
    world.progress = Progress::Refused("StatefulSet orders: no".into());
    world.step();
    assert_eq!(world.reason(ConditionType::Stalled), Some("ApplyRefused"));
}

#[test]
fn the_last_error_moves_at_most_once_a_minute() {
    let mut world = World::running(kafka_source());
    let error = |seconds: i64| RuntimeError {
        side: "external".into(),
        message: format!("at {seconds}"),
        unix_millis: (1_790_000_000 + seconds) * 1_000,
    };
    let mut seen = |seconds| {
        let status = RuntimeStatus { last_error: Some(error(seconds)), ..RuntimeStatus::default() };
        world.runtimes = BTreeMap::from([("orders-0".to_owned(), Some(status))]);
        world.step();
        world.status.last_error.clone().unwrap().message
    };
    assert_eq!(seen(0), "at 0");
    assert_eq!(seen(59), "at 0");
    assert_eq!(seen(61), "at 61");
}

#[test]
fn what_the_kubelet_and_the_scheduler_see_is_read_from_the_pod() {
    let trouble = |status: serde_json::Value| {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "orders-0"}, "status": status})).unwrap();
        PodFacts::of(&pod).trouble.map(|trouble| trouble.reason)
    };
    let waiting = |word: &str| {
        json!({"containerStatuses": [{"name": "connector", "image": "i:1", "imageID": "", "ready": false,
            "restartCount": 3, "state": {"waiting": {"reason": word}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]})
    };
    assert_eq!(trouble(waiting("ImagePullBackOff")), Some(Reason::ImagePullFailed));
    assert_eq!(trouble(waiting("CrashLoopBackOff")), Some(Reason::CrashLooping));
    assert_eq!(trouble(waiting("ContainerCreating")), None);
    let ended = |code: i64| {
        json!({"containerStatuses": [{"name": "connector", "image": "i:1", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code, "message": "a\nno room"}}}]})
    };
    assert_eq!(trouble(ended(1)), Some(Reason::CrashLooping));
    assert_eq!(trouble(ended(0)), None);
    assert_eq!(trouble(waiting("CreateContainerConfigError")), Some(Reason::ContainerNotStarted));
    assert_eq!(trouble(json!({"reason": "NodeLost"})), Some(Reason::NodeLost));
    let condition =
        |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason});
    let by_node_controller = [condition("Ready", "False", ""), condition("ContainersReady", "True", "")];
    assert_eq!(trouble(json!({"conditions": by_node_controller})), Some(Reason::NodeLost));
    let by_kubelet = [
        condition("Ready", "False", "ContainersNotReady"),
        condition("ContainersReady", "False", "ContainersNotReady"),
    ];
    assert_eq!(trouble(json!({"conditions": by_kubelet})), None);
    let evicted = condition("DisruptionTarget", "True", "DeletionByTaintManager");
    assert_eq!(trouble(json!({"conditions": [evicted]})), Some(Reason::NodeLost));
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable"});
    assert_eq!(trouble(json!({"conditions": [condition]})), Some(Reason::Unschedulable));
    assert_eq!(trouble(json!({})), None);
}

#[test]
fn transitions_make_events_and_rest_makes_none() {
    let mut world = World::running(kafka_source());
    let first = world.status.clone();
    let reasons = |before: &ConnectorStatus, after: &ConnectorStatus| {
        notices(before, after).into_iter().map(|notice| notice.reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons(&ConnectorStatus::default(), &first), ["Created"]);
    assert!(reasons(&first, &first).is_empty());
    world.pod(false).says(SideStatus::Connected, failed("Refused")).step();
    let second = world.status.clone();
    assert_eq!(reasons(&first, &second), ["ExternalUnreachable"]);
    assert_eq!(reasons(&second, &first), ["ExternalRecovered"]);
    world.generation = 2;
    world.announce();
    assert_eq!(reasons(&first, &world.status), ["RolloutStarted", "ExternalUnreachable"]);
}

#[test]
fn every_reason_has_a_place_in_the_troubleshooting_page() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md")).unwrap();
    let missing: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .filter(|reason| !page.contains(&format!("\n### {reason}\n")))
        .collect();
    assert!(missing.is_empty(), "no section in docs/troubleshooting.md for {missing:?}");
}
