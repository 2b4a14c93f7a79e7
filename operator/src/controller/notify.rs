//! Writes Events (`events.k8s.io/v1`) about a Connector; one that cannot be written stops nothing.
//!
//! Repeats become one series, and none is written more often than once in five minutes for one reason of one Connector:
//! an end that comes and goes costs two requests, not two a blip.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use connector_crds::ConnectorStatus;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};
use tokio::time::{Duration, Instant};

use super::metrics::Metrics;
use crate::status::notices::notices;

/// Shortest time between two Events of one reason about one Connector.
const INTERVAL: Duration = Duration::from_mins(5);

/// Writes Events at a bounded rate.
pub struct Notifier {
    recorder: Recorder,
    rate: Rate,
}

impl Notifier {
    /// Writes through `recorder`, which joins repeats to a series.
    pub fn new(recorder: Recorder) -> Notifier {
        Notifier { recorder, rate: Rate::default() }
    }

    /// Writes what happened between two statuses.
    pub async fn notify(
        &self,
        metrics: &Metrics,
        about: &ObjectReference,
        before: &ConnectorStatus,
        after: &ConnectorStatus,
    ) {
        let uid = about.uid.as_deref().unwrap_or_default();
        for notice in notices(before, after) {
            if !self.rate.allows(uid, notice.reason, Instant::now()) {
                continue;
            }
            let event = Event {
                type_: if notice.warning { EventType::Warning } else { EventType::Normal },
                reason: notice.reason.into(),
                note: Some(notice.note),
                action: "Reconcile".into(),
                secondary: None,
            };
            metrics.wrote("Event", "event");
            if let Err(error) = self.recorder.publish(&event, about).await {
                tracing::debug!(connector = about.name, reason = event.reason, %error, "An Event could not be written.");
            }
        }
    }
}

/// When an Event was last written, by uid and reason. Two halves, of which the older is dropped once in an interval: the size
/// is bounded by the Connectors that changed within two of them, and no look costs more than two searches.
#[derive(Default)]
struct Rate(Mutex<Written>);

#[derive(Default)]
struct Written {
    since: Option<Instant>,
    newer: BTreeMap<(String, &'static str), Instant>,
    older: BTreeMap<(String, &'static str), Instant>,
}

impl Rate {
    fn allows(&self, uid: &str, reason: &'static str, now: Instant) -> bool {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Written { since, newer, older } = &mut *written;
        if now.duration_since(*since.get_or_insert(now)) >= INTERVAL {
            *since = Some(now);
            *older = std::mem::take(newer);
        }
        let key = (uid.to_owned(), reason);
        let last = newer.get(&key).or_else(|| older.get(&key));
        let allowed = last.is_none_or(|at| now.duration_since(*at) >= INTERVAL);
        if allowed {
            newer.insert(key, now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_of_one_connector_is_written_once_in_five_minutes_and_then_forgotten() {
        let (rate, start) = (Rate::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(rate.allows("a", "ExternalUnreachable", at(0)));
        assert!(rate.allows("a", "ExternalRecovered", at(1)));
        assert!(rate.allows("b", "ExternalUnreachable", at(2)));
        assert!(!rate.allows("a", "ExternalUnreachable", at(299)));
        assert!(rate.allows("a", "ExternalUnreachable", at(300)));
        assert!(!rate.allows("a", "ExternalUnreachable", at(599)));
        assert!(rate.allows("c", "Created", at(1_000)));
        assert!(rate.allows("c", "Stopped", at(2_000)));
        let written = rate.0.lock().unwrap();
        assert_eq!((written.newer.len(), written.older.len()), (1, 1));
    }
}
