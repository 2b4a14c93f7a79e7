//! The cluster's decisions without I/O: checkpoints, rollback, membership. Sources and sinks are in the submodules.
//!
//! Drivers call in with what happened on their connection and fetch commands for it; [`Cluster::take_woken`] tells whose
//! commands to look at. Everything is one state, so a barrier is one instant: what was processed before it belongs to
//! the checkpoint, what comes later does not.

mod checkpoints;
mod link;
mod queue;
mod records;
mod registry;
mod sinks;
mod snapshot;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use self::link::{Link, LinkId};
pub(crate) use self::records::Batch;
pub(crate) use self::registry::NotifyAnswer;
use self::registry::{Stream, StreamStats};
pub(crate) use self::sinks::{Intro, SinkCommand};
pub use self::snapshot::{FILE_NAME, StateError};
pub(crate) use self::snapshot::{Snapshot, delete, load, save};
pub(crate) use self::sources::{Connection, ConnectionId, SourceCommand};
use crate::application::{BadRecord, Totals};
use crate::config::EndpointConfig;
use crate::faults::FaultPlan;
use crate::status::{BadInput, MAX_LISTED_STREAMS, MAX_VIOLATIONS, Phase, Status, StreamStatus, Violation};

/// Name of the first worker, as a real cluster has it.
const FIRST_WORKER: &str = "initializer";

/// Longest detail of a violation in bytes.
const MAX_DETAIL: usize = 500;

/// Whose commands have to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wake {
    /// The task that starts and completes checkpoints.
    Coordinator,
    /// A source connection.
    Source(ConnectionId),
    /// A sink link.
    Link(LinkId),
}

/// A worker of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Worker {
    /// Addresses that its sources listen on, in the order of the configuration.
    pub(crate) addresses: Vec<String>,
    /// It leaves at the next checkpoint; its sources are not read any more.
    leaving: bool,
}

/// A worker that cannot leave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShrinkError {
    /// No such worker, or it is leaving already.
    #[error("{0} is no worker of this cluster")]
    Unknown(String),
    /// The last one stays.
    #[error("{0} is the last worker and cannot leave")]
    Last(String),
}

#[derive(Debug, Default)]
struct Counters {
    records: u64,
    bytes: u64,
    repeats: u64,
    results: u64,
    completed: u64,
    aborted: u64,
    rollbacks: u64,
    violations: u64,
}

/// A whole stand-in cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    config: EndpointConfig,
    phase: Phase,
    stalled: bool,
    workers: BTreeMap<String, Worker>,
    registry: BTreeMap<u64, Stream>,
    stats: BTreeMap<u64, StreamStats>,
    connections: BTreeMap<ConnectionId, Connection>,
    links: BTreeMap<LinkId, Link>,
    totals: Totals,
    scratch: Vec<u8>,
    committed: Snapshot,
    pending: Option<Snapshot>,
    last_started: u64,
    checkpoint_now: bool,
    interval_passed: bool,
    faults: FaultPlan,
    faults_since: u64,
    counters: Counters,
    bad: BTreeMap<BadRecord, BadInput>,
    violations: Vec<Violation>,
    next_id: u64,
    woken: BTreeSet<Wake>,
}

/// Name of worker number `index`.
pub(crate) fn worker_name(index: u32) -> String {
    if index == 0 { FIRST_WORKER.to_owned() } else { format!("worker{index}") }
}

/// Number of the worker `name`; the inverse of [`worker_name`].
pub(crate) fn worker_index(name: &str) -> u32 {
    name.strip_prefix("worker").and_then(|index| index.parse().ok()).unwrap_or(0)
}

impl Cluster {
    /// A fresh cluster, or one that goes on from a completed checkpoint.
    pub(crate) fn new(config: EndpointConfig, recovered: Option<Snapshot>) -> Cluster {
        let recovering = recovered.is_some();
        let mut committed = recovered.unwrap_or_default();
        let leaving = std::mem::take(&mut committed.leaving);
        committed.workers.retain(|name| !leaving.contains(name));
        let names = if committed.workers.is_empty() {
            (0..config.workers).map(worker_name).collect()
        } else {
            committed.workers.clone()
        };
        let mut cluster = Cluster {
            phase: Phase::Starting,
            stalled: false,
            workers: BTreeMap::new(),
            registry: BTreeMap::new(),
            stats: BTreeMap::new(),
            connections: BTreeMap::new(),
            links: BTreeMap::new(),
            totals: Totals::new(),
            scratch: Vec::new(),
            // A checkpoint that was under way when the process died used the next number.
            last_started: committed.checkpoint + u64::from(recovering),
            committed,
            pending: None,
            checkpoint_now: false,
            interval_passed: false,
            faults: config.faults.clone(),
            faults_since: 0,
            counters: Counters::default(),
            bad: BTreeMap::new(),
            violations: Vec::new(),
            next_id: 0,
            woken: BTreeSet::new(),
            config,
        };
        for name in names {
            cluster.add_worker(name);
        }
        if recovering {
            cluster.enter_rollback();
        }
        cluster
    }

    pub(crate) fn config(&self) -> &EndpointConfig {
        &self.config
    }

    pub(crate) fn faults(&self) -> &FaultPlan {
        &self.faults
    }

    /// Replaces the fault plan; its thresholds count from here.
    pub(crate) fn set_faults(&mut self, faults: FaultPlan) {
        self.faults = faults;
        self.faults_since = self.counters.records;
        self.wake_all();
    }

    /// Stops or resumes reading of sources.
    pub(crate) fn set_stalled(&mut self, stalled: bool) {
        self.stalled = stalled;
        self.wake_all();
    }

    /// Whose commands have to be looked at since the last call.
    pub(crate) fn take_woken(&mut self) -> BTreeSet<Wake> {
        std::mem::take(&mut self.woken)
    }

    fn wake_all(&mut self) {
        self.woken.insert(Wake::Coordinator);
        self.woken.extend(self.connections.keys().map(|id| Wake::Source(*id)));
        self.woken.extend(self.links.keys().map(|id| Wake::Link(*id)));
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Names of the workers; the first one leads the registry.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &str> {
        self.workers.keys().map(String::as_str)
    }

    /// Links of one worker.
    pub(crate) fn links_of<'a>(&'a self, worker: &'a str) -> impl Iterator<Item = &'a Link> + 'a {
        self.links.values().filter(move |link| link.worker() == worker)
    }

    /// True while `worker` is a member.
    pub(crate) fn has_worker(&self, worker: &str) -> bool {
        self.workers.contains_key(worker)
    }

    /// The addresses that a worker's sources are bound to.
    pub(crate) fn set_addresses(&mut self, worker: &str, addresses: Vec<String>) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.addresses = addresses;
        }
    }

    /// Adds the next worker and gives its name.
    pub(crate) fn grow(&mut self) -> String {
        let index = self.workers.keys().map(|name| worker_index(name)).max().map_or(0, |last| last + 1);
        let name = worker_name(index);
        self.add_worker(name.clone());
        self.wake_all();
        name
    }

    fn add_worker(&mut self, name: String) {
        for (index, sink) in self.config.sinks.iter().enumerate() {
            self.next_id += 1;
            let link =
                Link::new(LinkId(self.next_id), &self.config.name, &name, index, sink, &self.committed);
            self.links.insert(link.id(), link);
        }
        self.workers.insert(name, Worker::default());
    }

    /// Lets a worker leave: its sources are not read any more, and it goes when the next checkpoint completes; without
    /// resilience at once.
    pub(crate) fn shrink(&mut self, name: &str) -> Result<(), ShrinkError> {
        let staying = self.workers.values().filter(|worker| !worker.leaving).count();
        match self.workers.get_mut(name) {
            None => return Err(ShrinkError::Unknown(name.to_owned())),
            Some(worker) if worker.leaving => return Err(ShrinkError::Unknown(name.to_owned())),
            Some(_) if staying == 1 => return Err(ShrinkError::Last(name.to_owned())),
            Some(worker) => worker.leaving = true,
        }
        if self.config.resilience {
            self.checkpoint_now = true;
        } else {
            self.acknowledge_seen(name);
            self.leave(name);
        }
        self.wake_all();
        Ok(())
    }

    /// Takes back [`Cluster::grow`]: the worker's sockets could not be bound.
    pub(crate) fn forget_worker(&mut self, name: &str) {
        self.workers.remove(name);
        self.links.retain(|_, link| link.worker() != name);
        self.wake_all();
    }

    fn leave(&mut self, name: &str) {
        self.workers.remove(name);
        let addresses: Vec<String> = self
            .workers
            .values()
            .find(|worker| !worker.leaving)
            .map(|worker| worker.addresses.clone())
            .unwrap_or_default();
        self.release_worker(name, &addresses);
        self.close_links(name);
        tracing::info!(worker = name, "a worker left the cluster");
    }

    /// Notes something that a peer must not do. `detail` names the section as `§n`.
    pub(crate) fn violation(&mut self, place: &str, detail: &str, kills_worker: bool) {
        self.counters.violations += 1;
        let mut end = detail.len().min(MAX_DETAIL);
        while !detail.is_char_boundary(end) {
            end -= 1;
        }
        let detail = &detail[..end];
        let rule = detail.find('§').map_or("", |start| {
            let rest = &detail[start..];
            let end = rest.find(|letter: char| !(letter == '§' || letter == '.' || letter.is_ascii_digit()));
            &rest[..end.unwrap_or(rest.len())]
        });
        if self.counters.violations <= MAX_VIOLATIONS as u64 {
            tracing::error!(place, rule, kills_worker, "protocol violation: {detail}");
            self.violations.push(Violation {
                rule: rule.trim_end_matches('.').to_owned(),
                detail: detail.to_owned(),
                place: place.to_owned(),
                kills_worker,
            });
        }
    }

    /// What has been seen so far.
    pub(crate) fn status(&self) -> Status {
        let counters = &self.counters;
        Status {
            phase: match self.phase {
                Phase::Running if self.stalled => Phase::Stalled,
                phase => phase,
            },
            workers: self.workers.keys().cloned().collect(),
            sources: self.source_status(),
            streams: self.stream_status(),
            sinks: self.links.values().map(|link| link.status(&self.config.sinks, &self.committed)).collect(),
            records_in: counters.records,
            bytes_in: counters.bytes,
            repeats_dropped: counters.repeats,
            results: counters.results,
            bad_input: self.bad.iter().map(|(reason, bad)| (reason.to_string(), bad.clone())).collect(),
            checkpoint: self.committed.checkpoint,
            checkpoints_completed: counters.completed,
            checkpoints_aborted: counters.aborted,
            rollbacks: counters.rollbacks,
            violations: self.violations.clone(),
            violation_count: counters.violations,
        }
    }

    fn stream_status(&self) -> BTreeMap<String, StreamStatus> {
        let status = |(id, stats): (&u64, &StreamStats)| {
            let stream = self.registry.get(id);
            let owner = stream.and_then(|stream| stream.owner).and_then(|id| self.connections.get(&id));
            let status = StreamStatus {
                name: String::from_utf8_lossy(&stats.name).into_owned(),
                worker: owner.map(|connection| connection.worker.clone()),
                last_seen: stream.and_then(|stream| stream.seen),
                last_acked: stream.and_then(|stream| stream.acked),
                records: stats.records,
            };
            (id.to_string(), status)
        };
        self.stats.iter().take(MAX_LISTED_STREAMS).map(status).collect()
    }
}
