//! Both ends and the last error, as the runtimes tell. Pure.

use connector_crds::{ConditionStatus, LastError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::compute::Facts;
use super::conditions::{Said, find, to_seconds};
use super::reason::{ConditionType, Reason};
use crate::runtime_status::{RuntimeStatus, SideStatus};

/// `status.lastError` moves at most this often.
const LAST_ERROR_INTERVAL: SignedDuration = SignedDuration::from_secs(60);

/// Longest message of `status.lastError`, in characters: the bound of the schema.
const MAX_ERROR: usize = 1_024;

/// Both ends, as the runtimes tell; absent while there is no pod.
pub(super) fn sides(facts: &Facts<'_>) -> Vec<Said> {
    if facts.pods.is_empty() {
        return Vec::new();
    }
    [ConditionType::WallarooConnected, ConditionType::ExternalConnected]
        .map(|type_| side_of(facts, type_))
        .to_vec()
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
    if facts.runtimes.is_empty() {
        // Not asked this time: what was said stays.
        return match find(&facts.previous.conditions, type_) {
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
                let (reason, message) = (&trouble.reason, &trouble.message);
                return Said::by_runtime(type_, ConditionStatus::False, reason, Reason::Connecting, message);
            }
            SideStatus::Waiting => waiting = true,
            SideStatus::Connected => {}
        }
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
