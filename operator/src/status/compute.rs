//! The status of one Connector, from everything that is known of it. Pure.

use std::collections::BTreeMap;

use connector_crds::{Condition, ConditionStatus, ConnectorStatus, State};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::conditions::{Said, assemble, find, steady};
use super::ends::{away_too_long, last_error, side_of, sides};
use super::pods::{PodFacts, PodTrouble};
use super::reason::{ConditionType, Reason};
use crate::names;
use crate::runtime_status::{RuntimeStatus, SideStatus, Trouble};
use crate::validate::{System, ValidatedConnector};

/// A rollout that is not done after this long will not be without a change by someone: three times the time a slow
/// image, a volume and a drain take together.
pub const PROGRESS_DEADLINE: SignedDuration = SignedDuration::from_mins(10);

/// How far the operator got with this generation.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// The spec cannot be carried out; nothing was changed.
    Invalid {
        /// `ConfigInvalid`, `NotAllowed` or `UnsupportedSystem`.
        reason: Reason,
        /// Which field, and why.
        message: String,
    },
    /// The API server refuses an object.
    Refused(String),
    /// An object of somebody else has a name that is needed.
    Conflict(String),
    /// Something that an earlier Connector left is still being deleted.
    Waiting(String),
    /// The old pods end before new ones start.
    Recreating,
    /// Every object is as desired.
    Applied,
}

/// What is known of the StatefulSet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Whether its status speaks of what was applied last.
    pub current: bool,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that were made from the newest template.
    pub updated: i32,
    /// Whether every pod was ready with the newest template once.
    pub rolled_out: bool,
}

/// Everything that is known of one Connector.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Generation of the spec.
    pub generation: i64,
    /// The Connector; absent when the spec is not valid.
    pub connector: Option<&'a ValidatedConnector>,
    /// How far the operator got.
    pub progress: Progress,
    /// The StatefulSet; absent: there is none.
    pub workload: Option<Workload>,
    /// The pods.
    pub pods: &'a [PodFacts],
    /// Trouble that only Events tell, e.g. a quota.
    pub events: Option<PodTrouble>,
    /// What the runtimes said, by pod; absent pod: not asked; `None`: no answer.
    pub runtimes: &'a BTreeMap<String, Option<RuntimeStatus>>,
    /// What an upgrade would change.
    pub pending_change: Option<String>,
    /// The status as it is.
    pub previous: &'a ConnectorStatus,
    /// Now.
    pub now: Timestamp,
}

/// The status that is written before pods of a new generation change: it must not speak of the old ones.
pub fn announce(facts: &Facts<'_>) -> ConnectorStatus {
    let message = "The change is being taken up";
    let mut said = sides(facts);
    said.push(config_valid(facts));
    said.push(Said::new(ConditionType::Ready, ConditionStatus::False, Reason::NewGeneration, message));
    said.push(Said::new(ConditionType::Reconciling, ConditionStatus::True, Reason::NewGeneration, message));
    status(facts, said)
}

/// The status that tells what is.
pub fn compute(facts: &Facts<'_>) -> ConnectorStatus {
    let mut said = verdict(facts);
    said.push(config_valid(facts));
    said.extend(available(facts));
    said.extend(sides(facts));
    status(facts, said)
}

fn status(facts: &Facts<'_>, said: Vec<Said>) -> ConnectorStatus {
    let previous = facts.previous;
    let connector = facts.connector;
    let known =
        |new: Option<String>, old: &Option<String>| if connector.is_some() { new } else { old.clone() };
    let name = connector.map(|connector| connector.identity.name.as_str());
    ConnectorStatus {
        observed_generation: Some(facts.generation),
        conditions: assemble(said, &previous.conditions, facts.generation, facts.now),
        type_: known(connector.map(|c| c.system.type_name().to_owned()), &previous.type_),
        replicas: Some(facts.workload.map_or(0, |workload| workload.replicas)),
        ready_replicas: Some(facts.workload.map_or(0, |workload| workload.ready)),
        selector: known(name.map(names::selector_text), &previous.selector),
        delivery: connector.map_or(previous.delivery, |connector| Some(connector.promise())),
        listen_address: known(connector.and_then(listen_address), &previous.listen_address),
        last_error: last_error(facts),
        pending_change: facts.pending_change.clone(),
    }
}

/// The `host:port` to give to Wallaroo.
fn listen_address(connector: &ValidatedConnector) -> Option<String> {
    let identity = &connector.identity;
    match &connector.system {
        System::Sink(_) => {
            connector.wallaroo.listen.map(|port| format!("{}.{}:{port}", identity.name, identity.namespace))
        }
        System::Source(_) => None,
    }
}

/// Pods that are asked for; a spec that is not valid asks for those that are there.
pub(super) fn wanted(facts: &Facts<'_>) -> i32 {
    facts
        .connector
        .map_or_else(|| facts.workload.map_or(0, |workload| workload.replicas), crate::build::wanted_replicas)
}

/// `Ready`, and `Reconciling` or `Stalled` where one of them is true.
fn verdict(facts: &Facts<'_>) -> Vec<Said> {
    let reconciling = |reason: Reason, message: &str| {
        vec![
            Said::new(ConditionType::Ready, ConditionStatus::False, reason, message),
            Said::new(ConditionType::Reconciling, ConditionStatus::True, reason, message),
        ]
    };
    match &facts.progress {
        Progress::Invalid { reason, message } => stalled(reason.as_str(), message),
        Progress::Refused(message) => stalled(Reason::ApplyRefused.as_str(), message),
        Progress::Conflict(message) => stalled(Reason::NameConflict.as_str(), message),
        Progress::Waiting(message) => reconciling(Reason::WaitingForDeletion, message),
        Progress::Recreating => {
            reconciling(Reason::Recreating, "The pods of the system before end, then new ones start")
        }
        Progress::Applied => match facts.connector {
            Some(connector) => applied(facts, connector),
            None => stalled(Reason::ConfigInvalid.as_str(), "The spec is not valid"),
        },
    }
}

fn stalled(reason: &str, message: &str) -> Vec<Said> {
    [(ConditionType::Ready, ConditionStatus::False), (ConditionType::Stalled, ConditionStatus::True)]
        .map(|(type_, status)| Said::by_runtime(type_, status, reason, Reason::PodsNotReady, message))
        .to_vec()
}

fn applied(facts: &Facts<'_>, connector: &ValidatedConnector) -> Vec<Said> {
    let ready = |reason: Reason, message: &str| {
        vec![Said::new(ConditionType::Ready, ConditionStatus::True, reason, message)]
    };
    let workload = facts.workload.unwrap_or_default();
    let wanted = wanted(facts);
    if wanted == 0 {
        let left = workload.replicas > 0 || !facts.pods.is_empty();
        return match (left || !workload.current, connector.state) {
            (true, _) => {
                let stuck = pod_trouble(facts).filter(|trouble| trouble.reason == Reason::NodeLost);
                let (reason, message) = match &stuck {
                    Some(lost) => (lost.reason, lost.message.as_str()),
                    None => (Reason::Stopping, "Pods drain and end"),
                };
                unready(facts, reason.as_str(), message, Reason::Stopping)
            }
            (false, State::Stopped) => ready(Reason::Stopped, "Stopped, as asked"),
            (false, State::Running | State::Paused) => ready(Reason::ScaledToZero, "No replica is asked for"),
        };
    }
    let complete = workload.current
        && workload.updated == wanted
        && workload.ready == wanted
        && workload.replicas == wanted;
    if complete && let Some(stop) = runtime_stalled(facts) {
        return stalled(&stop.reason, &stop.message);
    }
    let sink = matches!(connector.system, System::Sink(_));
    if complete
        && !finished(facts)
        && let Some((reason, message)) = away_too_long(facts, sink)
    {
        return unready(facts, reason.as_str(), &message, Reason::RollingOut);
    }
    if complete {
        return match (connector.state, &connector.system) {
            (State::Paused, _) => ready(Reason::Paused, "Paused, as asked"),
            (State::Running | State::Stopped, _) if finished(facts) => {
                ready(Reason::Complete, "Everything is delivered")
            }
            (State::Running | State::Stopped, System::Source(_)) => ready(Reason::Running, "Data can move"),
            (State::Running | State::Stopped, System::Sink(_)) => {
                if side_of(facts, ConditionType::WallarooConnected).status == ConditionStatus::True {
                    ready(Reason::Running, "Data can move")
                } else {
                    ready(Reason::Listening, "The sink listens; no worker of Wallaroo has dialled yet")
                }
            }
        };
    }
    let why = why(facts);
    if why.stalls {
        return stalled(&why.reason, &why.message);
    }
    unready(facts, &why.reason, &why.message, Reason::RollingOut)
}

/// Not ready, and still at it unless this generation was rolled out before or takes too long.
fn unready(facts: &Facts<'_>, reason: &str, message: &str, step: Reason) -> Vec<Said> {
    let previous = &facts.previous.conditions;
    let workload = facts.workload.unwrap_or_default();
    let reconciling_before = find(previous, ConditionType::Reconciling);
    let stalled_before = find(previous, ConditionType::Stalled);
    let same_generation = facts.previous.observed_generation == Some(facts.generation);
    let not_ready =
        Said::by_runtime(ConditionType::Ready, ConditionStatus::False, reason, Reason::PodsNotReady, message);
    let settled = find(previous, ConditionType::Ready).is_some()
        && reconciling_before.is_none()
        && stalled_before.is_none()
        && workload.current
        && workload.rolled_out
        && workload.replicas == wanted(facts);
    if settled {
        // Trouble after a good rollout: the operator has nothing left to do.
        return vec![not_ready];
    }
    let overdue =
        |since: &Condition| facts.now.duration_since(since.last_transition_time.0) > PROGRESS_DEADLINE;
    let gave_up = stalled_before.is_some_and(|c| c.reason == Reason::ProgressDeadlineExceeded.as_str());
    if same_generation && (gave_up || reconciling_before.is_some_and(overdue)) {
        let message = format!("No progress for {} minutes: {message}", PROGRESS_DEADLINE.as_mins());
        return stalled(Reason::ProgressDeadlineExceeded.as_str(), &message);
    }
    let reconciling = Said::new(ConditionType::Reconciling, ConditionStatus::True, step, message);
    vec![not_ready, reconciling]
}

/// Why pods are not ready.
struct Why {
    reason: String,
    message: String,
    /// Whether somebody has to change something.
    stalls: bool,
}

fn why(facts: &Facts<'_>) -> Why {
    let by_operator = |reason: Reason, message: &str| Why {
        reason: reason.as_str().into(),
        message: message.into(),
        stalls: matches!(reason, Reason::ImagePullFailed | Reason::QuotaExceeded),
    };
    let before = find(&facts.previous.conditions, ConditionType::Ready);
    let steady = |reason: Reason, message: &str| steady(before, facts.generation, reason.as_str(), message);
    if let Some(PodTrouble { reason, message }) = pod_trouble(facts) {
        return by_operator(reason, &steady(reason, &message));
    }
    let answers = facts.runtimes.values().flatten();
    if let Some(stalled) = runtime_stalled(facts) {
        return Why { reason: stalled.reason.clone(), message: stalled.message.clone(), stalls: true };
    }
    let failed = |side: fn(&RuntimeStatus) -> &SideStatus| {
        answers.clone().find_map(move |status| match side(status) {
            SideStatus::Failed(trouble) => Some(trouble),
            SideStatus::Waiting | SideStatus::Connected => None,
        })
    };
    let away = |reason: Reason, trouble: &Trouble| {
        by_operator(reason, &steady(reason, &format!("{}: {}", trouble.reason, trouble.message)))
    };
    if let Some(trouble) = failed(|status| &status.external) {
        if trouble.reason == Reason::SecretMissing.as_str() {
            return by_operator(Reason::SecretMissing, &trouble.message);
        }
        return away(Reason::ExternalUnreachable, trouble);
    }
    if let Some(trouble) = failed(|status| &status.wallaroo) {
        return away(Reason::WallarooUnreachable, trouble);
    }
    let current = facts.workload.is_some_and(|workload| workload.current && workload.rolled_out);
    let silent =
        |pod: &PodFacts| matches!(facts.runtimes.get(&pod.name), Some(None)) && pod.running && !pod.ending;
    if facts.pods.iter().any(silent) && current {
        return by_operator(Reason::StatusUnreachable, "A runtime does not answer at its admin port");
    }
    if current {
        by_operator(Reason::PodsNotReady, "Pods are not ready")
    } else {
        by_operator(Reason::RollingOut, "Pods are being made or replaced")
    }
}

/// What keeps a pod from running or ending, or from being made.
fn pod_trouble(facts: &Facts<'_>) -> Option<PodTrouble> {
    facts.pods.iter().find_map(|pod| pod.trouble_at(facts.now)).or_else(|| facts.events.clone())
}

/// What a runtime waits for that somebody has to change.
fn runtime_stalled<'a>(facts: &Facts<'a>) -> Option<&'a Trouble> {
    facts.runtimes.values().flatten().find_map(|status| status.stalled.as_ref())
}

/// Whether every runtime says that its source is at its end.
fn finished(facts: &Facts<'_>) -> bool {
    let asked = !facts.runtimes.is_empty();
    if asked {
        return facts.runtimes.values().all(|status| status.as_ref().is_some_and(|status| status.complete));
    }
    // Nobody was asked this time: what was said stays.
    find(&facts.previous.conditions, ConditionType::Ready)
        .is_some_and(|before| before.reason == Reason::Complete.as_str())
        && facts.previous.observed_generation == Some(facts.generation)
}

fn config_valid(facts: &Facts<'_>) -> Said {
    let type_ = ConditionType::ConfigValid;
    match &facts.progress {
        Progress::Invalid { reason, message } => {
            Said::new(type_, ConditionStatus::False, *reason, message.clone())
        }
        Progress::Refused(message) => {
            Said::new(type_, ConditionStatus::False, Reason::ApplyRefused, message.clone())
        }
        Progress::Conflict(_) | Progress::Waiting(_) | Progress::Recreating | Progress::Applied => {
            Said::new(type_, ConditionStatus::True, Reason::Valid, "The configuration can be carried out")
        }
    }
}

fn available(facts: &Facts<'_>) -> Option<Said> {
    let workload = facts.workload?;
    let type_ = ConditionType::WorkloadAvailable;
    let wanted = wanted(facts);
    Some(if workload.ready >= wanted && workload.current {
        Said::new(type_, ConditionStatus::True, Reason::Available, "Every wanted pod is ready")
    } else {
        match pod_trouble(facts) {
            Some(PodTrouble { reason, message }) => {
                let before = find(&facts.previous.conditions, type_);
                let message = steady(before, facts.generation, reason.as_str(), &message);
                Said::new(type_, ConditionStatus::False, reason, message)
            }
            None => Said::new(type_, ConditionStatus::False, Reason::PodsNotReady, "Pods are not ready"),
        }
    })
}
