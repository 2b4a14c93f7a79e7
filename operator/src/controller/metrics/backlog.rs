//! What is still to be reconciled: how much, and for how long the oldest has waited.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Connectors with a change that no reconciliation has dealt with; bounded by the Connectors that there are.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Mutex<BTreeMap<String, Waiting>>>);

#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: Instant,
    last: Instant,
}

/// A Connector, as the backlog names it.
pub fn key(namespace: Option<&str>, name: &str) -> String {
    format!("{}/{name}", namespace.unwrap_or_default())
}

impl Backlog {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed.
    pub fn changed(&self, connector: String, now: Instant) {
        self.waiting().entry(connector).or_insert(Waiting { first: now, last: now }).last = now;
    }

    /// A reconciliation that began at `started` succeeded: what changed later still waits.
    pub fn reconciled(&self, connector: &str, started: Instant) {
        let mut waiting = self.waiting();
        match waiting.get_mut(connector) {
            Some(waiting) if waiting.last > started => waiting.first = waiting.last,
            Some(_) => drop(waiting.remove(connector)),
            None => {}
        }
    }

    /// The Connector is gone.
    pub fn forget(&self, connector: &str) {
        self.waiting().remove(connector);
    }

    /// How many wait, and for how many seconds the oldest has.
    pub fn depth(&self, now: Instant) -> (usize, f64) {
        let waiting = self.waiting();
        let oldest = waiting.values().map(|waiting| waiting.first).min();
        (waiting.len(), oldest.map_or(0.0, |first| now.duration_since(first).as_secs_f64()))
    }
}

impl Collector for Backlog {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (depth, oldest) = self.depth(Instant::now());
        let help = "Connectors with a change that is not reconciled yet, those that fail included";
        let depth = i64::try_from(depth).unwrap_or(i64::MAX);
        ConstGauge::new(depth).encode(encoder.encode_descriptor(
            "reconcile_queue_depth",
            help,
            None,
            MetricType::Gauge,
        )?)?;
        let help = "For how long the oldest change has not been reconciled; 0 for none";
        ConstGauge::new(oldest).encode(encoder.encode_descriptor(
            "oldest_unreconciled",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_change_waits_until_a_reconciliation_that_saw_it_succeeds() {
        let (backlog, start) = (Backlog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        backlog.changed("shop/a".into(), at(0));
        backlog.changed("shop/b".into(), at(5));
        assert_eq!(backlog.depth(at(10)), (2, 10.0));
        // The second change came while the first was dealt with.
        backlog.changed("shop/a".into(), at(7));
        backlog.reconciled("shop/a", at(6));
        assert_eq!(backlog.depth(at(10)), (2, 5.0));
        backlog.reconciled("shop/a", at(8));
        backlog.forget("shop/b");
        assert_eq!(backlog.depth(at(10)), (0, 0.0));
    }
}
