//! The operator's metrics, by the names of the documentation; labels come from closed lists.

mod backlog;
mod managed;
mod requests;

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

pub use backlog::{Backlog, key};
pub use managed::Managed;
pub use requests::CountRequests;

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
    /// `apply`, `delete`, `annotate`, `release`, `grow`, `status` or `event`.
    pub op: &'static str,
}

/// A request to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Asked {
    /// As RBAC calls it, `watch` included.
    pub verb: &'static str,
    /// Resource, with a subresource behind a slash.
    pub resource: String,
    /// Status of the answer, or `none` when there was none.
    pub code: String,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<Asked, Counter>,
    watch_restarts: Counter,
    backlog: Backlog,
    managed: Managed,
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
        let requests = Family::<Asked, Counter>::default();
        let help = "Requests to the API server; but for watches and leases flat while nothing changes";
        registry.register("api_requests", help, requests.clone());
        let watch_restarts = Counter::default();
        registry.register(
            "watch_restarts",
            "Watches that were interrupted and begun again",
            watch_restarts.clone(),
        );
        let (backlog, managed) = (Backlog::default(), Managed::default());
        registry.register_collector(Box::new(backlog.clone()));
        registry.register_collector(Box::new(managed.clone()));
        Metrics { requests, watch_restarts, backlog, managed, reconciles, seconds, writes, leader, registry }
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

    /// Counts a request to the API server; no code: no answer.
    pub fn requested(&self, verb: &'static str, resource: String, code: Option<u16>) {
        let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
        self.requests.get_or_create(&Asked { verb, resource, code }).inc();
    }

    /// Counts a watch that was interrupted.
    pub fn watch_restarted(&self) {
        self.watch_restarts.inc();
    }

    /// What is still to be reconciled.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// The Connectors that are counted at each scrape.
    pub fn managed(&self) -> &Managed {
        &self.managed
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

#[cfg(test)]
mod tests;
