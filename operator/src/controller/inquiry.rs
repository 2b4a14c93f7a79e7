//! Asks why: the runtimes about their ends, the API server about pods that could not be made.

use std::collections::BTreeMap;

use connector_crds::{Condition, ConditionStatus};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::runtime_status::{RuntimeStatus, fetch};
use crate::status::conditions::find;
use crate::status::{ConditionType, Facts, PodTrouble, Reason};

/// Runtimes that are asked in one reconciliation at most; a reason needs one answer.
const MAX_ASKED: usize = 8;

/// Events that are read at most: the newest trouble is among the first page.
const MAX_EVENTS: u32 = 50;

/// Asks the runtimes: on a transition, and while something is not as it should be. Empty: nobody was asked. `None` for a
/// pod: no answer.
pub async fn ask_runtimes(
    before: &[Condition],
    facts: &Facts<'_>,
) -> BTreeMap<String, Option<RuntimeStatus>> {
    let holds = |type_| find(before, type_).is_some_and(|c| c.status == ConditionStatus::True);
    let calm = facts.workload.is_some_and(|workload| workload.current && workload.ready >= workload.replicas)
        && [ConditionType::Ready, ConditionType::WallarooConnected, ConditionType::ExternalConnected]
            .into_iter()
            .all(holds);
    if calm {
        return BTreeMap::new();
    }
    // A pod that does not run has no answer either: what its runtime said before holds no longer.
    let answers = facts.pods.iter().take(MAX_ASKED).map(|pod| async {
        let address = pod.admin.filter(|_| pod.running && !pod.ending);
        (pod.name.clone(), fetch(address).await)
    });
    join_all(answers).await.into_iter().collect()
}

/// Reads the Events of the `StatefulSet` while pods are missing and were missing at the last look: a used-up quota shows only
/// there. No answer is no trouble: the pods are missing all the same.
pub async fn ask_events(
    client: &Client,
    set: Option<&StatefulSet>,
    before: &[Condition],
    facts: &Facts<'_>,
) -> Option<PodTrouble> {
    let set = set?;
    let missing = facts.workload?.replicas < set.spec.as_ref()?.replicas?;
    let unavailable = find(before, ConditionType::WorkloadAvailable)
        .is_some_and(|condition| condition.status == ConditionStatus::False);
    if !missing || !unavailable {
        return None;
    }
    let events: Api<Event> = Api::namespaced(client.clone(), set.metadata.namespace.as_deref()?);
    let uid = set.metadata.uid.as_deref()?;
    let params = ListParams::default().fields(&format!("involvedObject.uid={uid}")).limit(MAX_EVENTS);
    match events.list(&params).await {
        Ok(found) => newest_failure(&found.items),
        Err(error) => {
            tracing::debug!(%error, "Events cannot be listed.");
            None
        }
    }
}

/// What the newest failure to make a pod says.
fn newest_failure(events: &[Event]) -> Option<PodTrouble> {
    let time = |event: &&Event| {
        event
            .last_timestamp
            .as_ref()
            .map(|time| time.0)
            .max(event.event_time.as_ref().map(|time| time.0))
            .max(event.metadata.creation_timestamp.as_ref().map(|time| time.0))
    };
    let failures = events.iter().filter(|event| event.reason.as_deref() == Some("FailedCreate"));
    let message = failures.max_by_key(time)?.message.clone().unwrap_or_default();
    let reason =
        if message.contains("exceeded quota") { Reason::QuotaExceeded } else { Reason::PodsNotReady };
    Some(PodTrouble { reason, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        let found = newest_failure(&[older.clone(), quota, newer]).unwrap();
        assert_eq!(found.reason, Reason::QuotaExceeded);
        assert_eq!(newest_failure(&[older]).unwrap().reason, Reason::PodsNotReady);
        assert_eq!(newest_failure(&[]), None);
    }
}
