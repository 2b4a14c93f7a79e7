//! Asks why: the runtimes about their ends, the API server about pods that could not be made.

use std::collections::BTreeMap;

use connector_crds::{Condition, ConditionStatus};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::SignedDuration;
use kube::api::ListParams;
use kube::{Api, Client};

use super::outside::Outside;
use crate::runtime_status::RuntimeStatus;
use crate::status::conditions::find;
use crate::status::{ConditionType, Facts, PodFacts, PodTrouble, Reason};
use crate::validate::System;

/// Runtimes that are asked in one reconciliation at most; a reason needs one answer.
const MAX_ASKED: usize = 8;

/// Events that are read at most: the newest trouble is among the first page.
const MAX_EVENTS: u32 = 50;

/// Events are read once pods have been missing for this long: what is made or mounted at once needs no reason.
const UNAVAILABLE: SignedDuration = SignedDuration::from_secs(10);

/// Asks the runtimes: on a transition, while something is not as it should be, and always those of a sink, whose readiness
/// says nothing of Wallaroo. Empty: nobody was asked. `None` for a pod: no answer.
pub async fn ask_runtimes(
    outside: &Outside,
    before: &[Condition],
    facts: &Facts<'_>,
) -> BTreeMap<String, Option<RuntimeStatus>> {
    if is_calm(before, facts) {
        return BTreeMap::new();
    }
    // A pod that does not run has no answer either: what its runtime said before holds no longer.
    let answers = facts.pods.iter().take(MAX_ASKED).map(|pod| async {
        let address = pod.admin.filter(|_| pod.running && !pod.ending);
        (pod.name.clone(), outside.ask(address).await)
    });
    join_all(answers).await.into_iter().collect()
}

/// Whether the pods' readiness tells everything: a source that is connected at both ends.
fn is_calm(before: &[Condition], facts: &Facts<'_>) -> bool {
    let source = facts.connector.is_some_and(|connector| matches!(connector.system, System::Source(_)));
    let holds = |type_| find(before, type_).is_some_and(|c| c.status == ConditionStatus::True);
    source
        && facts.workload.is_some_and(|workload| workload.current && workload.ready >= workload.replicas)
        && facts.pods.iter().all(|pod| pod.ready)
        && [ConditionType::Ready, ConditionType::WallarooConnected, ConditionType::ExternalConnected]
            .into_iter()
            .all(holds)
}

/// Reads Events while pods have been missing for a while: those of the `StatefulSet` when one cannot be made (a used-up quota
/// shows only there), those of the pod when one neither runs nor says why (a mount). No answer is no trouble: the pods are
/// missing all the same.
pub async fn ask_events(
    client: &Client,
    set: Option<&StatefulSet>,
    before: &[Condition],
    facts: &Facts<'_>,
) -> Option<PodTrouble> {
    let set = set?;
    let uid = subject(set, before, facts)?;
    let events: Api<Event> = Api::namespaced(client.clone(), set.metadata.namespace.as_deref()?);
    let params = ListParams::default().fields(&format!("involvedObject.uid={uid}")).limit(MAX_EVENTS);
    match events.list(&params).await {
        Ok(found) => newest_failure(&found.items),
        Err(error) => {
            tracing::debug!(%error, "Events cannot be listed.");
            None
        }
    }
}

/// Uid of the object whose Events say why pods are missing; absent: nothing is missing, or not for long.
fn subject<'a>(set: &'a StatefulSet, before: &[Condition], facts: &'a Facts<'_>) -> Option<&'a str> {
    let wanted = set.spec.as_ref()?.replicas?;
    find(before, ConditionType::WorkloadAvailable).filter(|condition| {
        condition.status == ConditionStatus::False
            && facts.now.duration_since(condition.last_transition_time.0) >= UNAVAILABLE
    })?;
    if facts.workload?.replicas < wanted {
        return set.metadata.uid.as_deref();
    }
    let mute = |pod: &&PodFacts| !pod.running && !pod.ending && pod.trouble.is_none();
    facts.pods.iter().find(mute).map(|pod| pod.uid.as_str())
}

/// What the newest failure says. The list of words is closed: other Events are no trouble.
fn newest_failure(events: &[Event]) -> Option<PodTrouble> {
    let time = |event: &Event| {
        event
            .last_timestamp
            .as_ref()
            .map(|time| time.0)
            .max(event.series.as_ref().and_then(|series| Some(series.last_observed_time.as_ref()?.0)))
            .max(event.event_time.as_ref().map(|time| time.0))
            .max(event.metadata.creation_timestamp.as_ref().map(|time| time.0))
    };
    let failures = events.iter().filter_map(|event| {
        let message = event.message.clone().unwrap_or_default();
        let reason = match event.reason.as_deref()? {
            "FailedCreate" if message.contains("exceeded quota") => Reason::QuotaExceeded,
            "FailedCreate" => Reason::PodRefused,
            "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => Reason::MountFailed,
            "FailedCreatePodSandBox" => Reason::ContainerNotStarted,
            "NodeNotReady" => Reason::NodeLost,
            _ => return None,
        };
        Some((time(event), PodTrouble { reason, message }))
    });
    failures.max_by_key(|(time, _)| *time).map(|(_, trouble)| trouble)
}

#[cfg(test)]
mod tests;
