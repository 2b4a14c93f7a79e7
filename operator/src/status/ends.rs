//! Both ends and the last error, as the runtimes tell. Pure.

use connector_crds::{ConditionStatus, LastError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::compute::Facts;
use super::conditions::{Said, find, steady, to_seconds};
use super::reason::{ConditionType, Reason};
use crate::runtime_status::{RuntimeStatus, SideStatus};

/// `status.lastError` moves at most this often.
const LAST_ERROR_INTERVAL: SignedDuration = SignedDuration::from_secs(60);

/// Longest message of `status.lastError`, in characters: the bound of the schema.
const MAX_ERROR: usize = 1_024;

/// Both ends, and why `Ready` is false while one is away.
const ENDS: [(ConditionType, Reason); 2] = [
    (ConditionType::WallarooConnected, Reason::WallarooUnreachable),
    (ConditionType::ExternalConnected, Reason::ExternalUnreachable),
];

/// An end that is away for longer than this makes the Connector not ready, also when the pods say otherwise. Their readiness
/// has the same rule with a shorter time, so this one counts only where it fails.
pub(super) const AWAY_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// Both ends, as the runtimes tell. Absent while no pod is asked for and none is left; unknown while none is there.
pub(super) fn sides(facts: &Facts<'_>) -> Vec<Said> {
    if facts.pods.is_empty() && super::compute::wanted(facts) == 0 {
        return Vec::new();
    }
    ENDS.map(|(type_, _)| side_of(facts, type_)).to_vec()
}

/// The end that has been away for too long, of those that data needs: when Wallaroo dials a sink is not the sink's to mend.
pub(super) fn away_too_long(facts: &Facts<'_>, sink: bool) -> Option<(Reason, String)> {
    let before = |type_| find(&facts.previous.conditions, type_);
    ENDS.into_iter().filter(|(type_, _)| !(sink && *type_ == ConditionType::WallarooConnected)).find_map(
        |(type_, reason)| {
            let said = side_of(facts, type_);
            let since = before(type_).filter(|before| before.status == said.status)?.last_transition_time.0;
            (said.status == ConditionStatus::False && facts.now.duration_since(since) > AWAY_LIMIT)
                .then(|| (reason, format!("{}: {}", said.reason, said.message)))
        },
    )
}

pub(super) fn side_of(facts: &Facts<'_>, type_: ConditionType) -> Said {
    let side = |status: &'_ RuntimeStatus| match type_ {
        ConditionType::WallarooConnected => status.wallaroo.clone(),
        ConditionType::ExternalConnected
        | ConditionType::Ready
        | ConditionType::Reconciling
        | ConditionType::Stalled
        | ConditionType::ConfigValid
        | ConditionType::WorkloadAvailable => status.external.clone(),
    };
    let unknown = |reason, message: &str| Said::new(type_, ConditionStatus::Unknown, reason, message);
    let previous = find(&facts.previous.conditions, type_);
    if facts.pods.is_empty() {
        return unknown(Reason::PodsNotReady, "No pod is there");
    }
    if facts.runtimes.is_empty() {
        // Not asked this time: what was said stays.
        return match previous {
            Some(before) => Said {
                type_,
                status: before.status,
                reason: before.reason.clone(),
                message: before.message.clone(),
            },
            None => unknown(Reason::Connecting, "The runtime has not been asked yet"),
        };
    }
    let mut waiting = false;
    for status in facts.runtimes.values().flatten() {
        match side(status) {
            SideStatus::Failed(trouble) => {
                let (status, reason) = (ConditionStatus::False, &trouble.reason);
                let message = steady(previous, facts.generation, reason, &trouble.message);
                return Said::by_runtime(type_, status, reason, Reason::Connecting, &message);
            }
            SideStatus::Waiting => waiting = true,
            SideStatus::Connected => {}
        }
    }
    let silent = |name: &String| matches!(facts.runtimes.get(name), Some(None));
    if facts.pods.iter().any(|pod| silent(&pod.name) && !pod.running) {
        return unknown(Reason::PodsNotReady, "A pod does not run");
    }
    if facts.runtimes.values().any(Option::is_none) {
        return unknown(Reason::StatusUnreachable, "A runtime does not answer at its admin port");
    }
    if waiting {
        Said::new(type_, ConditionStatus::False, Reason::Waiting, "No connection has been made yet")
    } else {
        Said::new(type_, ConditionStatus::True, Reason::Connected, "Connected")
    }
}

pub(super) fn last_error(facts: &Facts<'_>) -> Option<LastError> {
    let previous = facts.previous.last_error.clone();
    let newest = facts
        .runtimes
        .iter()
        .filter_map(|(pod, status)| Some((pod, status.as_ref()?.last_error.as_ref()?)))
        .max_by_key(|(_, error)| error.unix_millis);
    let Some((pod, error)) = newest else { return previous };
    let Ok(time) = Timestamp::from_millisecond(error.unix_millis) else { return previous };
    let time = to_seconds(time);
    if previous.as_ref().is_some_and(|before| time.duration_since(before.time.0) < LAST_ERROR_INTERVAL) {
        return previous;
    }
    let reason =
        if error.side == "wallaroo" { Reason::WallarooUnreachable } else { Reason::ExternalUnreachable };
    Some(LastError {
        time: Time(time),
        reason: reason.as_str().into(),
        message: error.message.chars().take(MAX_ERROR).collect(),
        pod: Some(pod.clone()),
    })
}
