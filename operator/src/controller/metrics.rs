//! The operator's metrics, by the names of the documentation; labels come from closed lists.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// What became of a reconciliation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `ok` or `error`.
    pub result: &'static str,
}

/// A write to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Write {
    /// Kind of the object.
    pub kind: &'static str,
    /// `apply`, `delete`, `annotate`, `status` or `event`.
    pub op: &'static str,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    reconciles: Family<Outcome, Counter>,
    seconds: Histogram,
    writes: Family<Write, Counter>,
    leader: Gauge<u64, AtomicU64>,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("wallaroo_operator");
        let reconciles = Family::<Outcome, Counter>::default();
        registry.register("reconcile", "Reconciliations by result", reconciles.clone());
        // 1 ms to 16 s: from a look at the stores to an API server under load.
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        registry.register_with_unit("reconcile", "Time of a reconciliation", Unit::Seconds, seconds.clone());
        let writes = Family::<Write, Counter>::default();
        registry.register("writes", "Writes to the API server; flat while nothing changes", writes.clone());
        let leader = Gauge::<u64, AtomicU64>::default();
        registry.register("leader", "1 while this process is the one that works", leader.clone());
        Metrics { reconciles, seconds, writes, leader, registry }
    }
}

impl Metrics {
    /// Counts a reconciliation.
    pub fn reconciled(&self, ok: bool, seconds: f64) {
        self.reconciles.get_or_create(&Outcome { result: if ok { "ok" } else { "error" } }).inc();
        self.seconds.observe(seconds);
    }

    /// Counts a write.
    pub fn wrote(&self, kind: &'static str, op: &'static str) {
        self.writes.get_or_create(&Write { kind, op }).inc();
    }

    /// Says whether this process works.
    pub fn leads(&self, leads: bool) {
        self.leader.set(u64::from(leads));
    }

    /// The text of OpenMetrics.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
