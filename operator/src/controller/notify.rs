//! Writes Events (`events.k8s.io/v1`) about a Connector; one that cannot be written stops nothing.

use connector_crds::ConnectorStatus;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};

use super::metrics::Metrics;
use crate::status::notices::notices;

/// Writes what happened between two statuses.
pub async fn notify(
    recorder: &Recorder,
    metrics: &Metrics,
    about: &ObjectReference,
    before: &ConnectorStatus,
    after: &ConnectorStatus,
) {
    for notice in notices(before, after) {
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.into(),
            note: Some(notice.note),
            action: "Reconcile".into(),
            secondary: None,
        };
        metrics.wrote("Event", "event");
        if let Err(error) = recorder.publish(&event, about).await {
            tracing::debug!(connector = about.name, reason = event.reason, %error, "An Event could not be written.");
        }
    }
}
