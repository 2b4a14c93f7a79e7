//! How many Connectors there are, by what their status says; counted from the watch at each scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use connector_crds::{ConditionStatus, State};
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::controller::stores::Watched;
use crate::status::ConditionType;
use crate::status::conditions::find;

/// The watches' stores: one for each namespace that is watched.
#[derive(Clone, Default)]
pub struct Managed(Arc<Mutex<Vec<Store<Watched>>>>);

impl fmt::Debug for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Managed")
    }
}

/// Labels of one count: type, asked state, whether ready.
type Group = (String, &'static str, &'static str);

impl Managed {
    /// Counts this store too.
    pub fn add(&self, store: Store<Watched>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(store);
    }

    /// Connectors by group, and how many wait for an upgrade.
    fn count(&self) -> (BTreeMap<Group, i64>, i64) {
        let (mut groups, mut pending) = (BTreeMap::new(), 0);
        let stores = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for watched in stores.iter().flat_map(Store::state) {
            let group = match &watched.0 {
                Ok(connector) => {
                    let status = connector.status.as_ref();
                    let ready = status.and_then(|status| find(&status.conditions, ConditionType::Ready));
                    pending += i64::from(status.is_some_and(|status| status.pending_change.is_some()));
                    let state = match connector.spec.state {
                        State::Running => "Running",
                        State::Paused => "Paused",
                        State::Stopped => "Stopped",
                    };
                    let ready = match ready.map(|ready| ready.status) {
                        Some(ConditionStatus::True) => "True",
                        Some(ConditionStatus::False) => "False",
                        Some(ConditionStatus::Unknown) | None => "Unknown",
                    };
                    let type_ = status.and_then(|status| status.type_.clone());
                    (type_.unwrap_or_else(|| "Unknown".into()), state, ready)
                }
                // It cannot be read, so it is not carried out.
                Err(_) => ("Unknown".into(), "Unknown", "False"),
            };
            *groups.entry(group).or_default() += 1;
        }
        (groups, pending)
    }
}

impl Collector for Managed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (groups, pending) = self.count();
        let help = "Connectors by type, asked state and the Ready condition";
        let mut family = encoder.encode_descriptor("managed_connectors", help, None, MetricType::Gauge)?;
        for ((type_, state, ready), count) in groups {
            let labels = [("type", type_.as_str()), ("state", state), ("ready", ready)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Connectors whose pods an upgrade of the operator would change, and has not yet";
        let family = encoder.encode_descriptor("pending_changes", help, None, MetricType::Gauge)?;
        ConstGauge::new(pending).encode(family)
    }
}
