//! Which Events a change of status is worth. Pure: transitions only, so an idle Connector makes none.

use connector_crds::{ConditionStatus, ConnectorStatus};

use super::conditions::find;
use super::reason::{ConditionType, Reason};

/// Longest note of an Event, in bytes (Kubernetes API, `events.k8s.io/v1`).
const MAX_NOTE: usize = 1_024;

/// One Event to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether somebody should look.
    pub warning: bool,
    /// What happened, as one word.
    pub reason: &'static str,
    /// What happened, as a sentence.
    pub note: String,
}

/// What happened between two statuses of one Connector.
pub fn notices(before: &ConnectorStatus, after: &ConnectorStatus) -> Vec<Notice> {
    let mut found = Vec::new();
    let mut notice = |warning, reason, note: &str| {
        let mut end = note.len().min(MAX_NOTE);
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        found.push(Notice { warning, reason, note: note[..end].to_owned() });
    };
    if before.observed_generation.is_none_or(|generation| generation < 0) {
        notice(false, "Created", "The Connector is being taken up");
    }
    let is = |status: &ConnectorStatus, type_, wanted| {
        find(&status.conditions, type_).is_some_and(|condition| condition.status == wanted)
    };
    let became = |type_, wanted| !is(before, type_, wanted) && is(after, type_, wanted);
    let said = |type_| find(&after.conditions, type_).map_or("", |condition| condition.message.as_str());
    if became(ConditionType::Reconciling, ConditionStatus::True) {
        notice(false, "RolloutStarted", said(ConditionType::Reconciling));
    }
    if is(before, ConditionType::Reconciling, ConditionStatus::True)
        && became(ConditionType::Ready, ConditionStatus::True)
    {
        notice(false, "RolloutFinished", "Every wanted pod is ready");
    }
    let reason_of = |status: &ConnectorStatus| {
        find(&status.conditions, ConditionType::Ready)
            .filter(|ready| ready.status == ConditionStatus::True)
            .map(|ready| ready.reason.clone())
    };
    let (old, new) = (reason_of(before), reason_of(after));
    let at_rest = [Reason::Paused.as_str(), Reason::Stopped.as_str()];
    if old != new {
        match new.as_deref() {
            Some("Paused") => notice(false, "Paused", "Sessions stay, nothing is read or delivered"),
            Some("Stopped") => notice(false, "Stopped", "Drained, no pod is left"),
            Some(_) if old.as_deref().is_some_and(|old| at_rest.contains(&old)) => {
                notice(false, "Resumed", "Records move again");
            }
            Some(_) | None => {}
        }
    }
    for (type_, lost, found_again) in [
        (ConditionType::ExternalConnected, "ExternalUnreachable", "ExternalRecovered"),
        (ConditionType::WallarooConnected, "WallarooUnreachable", "WallarooRecovered"),
    ] {
        let waits = find(&after.conditions, type_).is_some_and(|c| c.reason == Reason::Waiting.as_str());
        if became(type_, ConditionStatus::False) && !waits {
            notice(true, lost, said(type_));
        }
        if is(before, type_, ConditionStatus::False) && is(after, type_, ConditionStatus::True) {
            notice(false, found_again, "Connected");
        }
    }
    if let Some(stalled) = find(&after.conditions, ConditionType::Stalled) {
        let same = find(&before.conditions, ConditionType::Stalled)
            .is_some_and(|before| before.reason == stalled.reason);
        if !same {
            let reason = match stalled.reason.as_str() {
                "NameConflict" => "NameConflict",
                "ConfigInvalid" => "ConfigInvalid",
                _ => "Stalled",
            };
            notice(true, reason, &format!("{}: {}", stalled.reason, stalled.message));
        }
    }
    if before.pending_change.is_none()
        && let Some(change) = &after.pending_change
    {
        notice(false, "UpgradePending", change);
    }
    found
}
