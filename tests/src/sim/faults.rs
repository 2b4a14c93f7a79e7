//! What can go wrong in a run.

use std::time::Duration;

/// A host of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The source connector.
    Source,
    /// The Wallaroo cluster.
    Wallaroo,
    /// The sink connector.
    Sink,
}

impl Host {
    /// Every host.
    pub const ALL: [Host; 3] = [Host::Source, Host::Wallaroo, Host::Sink];

    /// Name on the network.
    pub fn name(self) -> &'static str {
        match self {
            Host::Source => "source",
            Host::Wallaroo => "wallaroo",
            Host::Sink => "sink",
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed; what it wrote stays.
    Kill(Host),
    /// The host loses its power; what was not synced may be lost or torn.
    PowerLoss(Host),
    /// A connector (never Wallaroo) cannot reach Wallaroo for a while, and the other way round.
    Partition(Host, Duration),
    /// The cluster rolls back to its last checkpoint.
    Rollback,
    /// Wallaroo is stopped gracefully and forgets everything; a fresh cluster starts.
    GracefulStop,
    /// The group takes a partition of the log back.
    Rebalance(u32),
    /// The sink's host goes down with its `changes`-th change of the disk from now on: the process or the `power`. With `stops`
    /// nothing changes any more before it is down.
    CrashAtWrite {
        /// Number of the change.
        changes: u32,
        /// The power goes.
        power: bool,
        /// Later changes fail.
        stops: bool,
    },
    /// The sink's disk has so many bytes left for a while.
    DiskFull(u64, Duration),
    /// The next sync on this host fails.
    SyncFails(Host),
    /// The target crashes and loses what was not durable.
    TargetCrash,
    /// The next PHASE1's connection closes before the vote is read.
    VoteLost,
    /// The next decision never arrives on its connection.
    DecisionLost,
    /// The next vote is overruled: the checkpoint is aborted.
    Abort,
    /// The next NOTIFYs are refused.
    RefuseNotify,
    /// Frames arrive in pieces of this many bytes from now on.
    SplitWrites(usize),
}

impl Fault {
    /// Name in the coverage table.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill(Host::Source) => "kill source",
            Fault::Kill(Host::Wallaroo) => "kill wallaroo",
            Fault::Kill(Host::Sink) => "kill sink",
            Fault::PowerLoss(Host::Source) => "power loss source",
            Fault::PowerLoss(Host::Wallaroo) => "power loss wallaroo",
            Fault::PowerLoss(Host::Sink) => "power loss sink",
            Fault::Partition(..) => "partition",
            Fault::Rollback => "asked: rollback",
            Fault::GracefulStop => "graceful stop of wallaroo",
            Fault::CrashAtWrite { .. } => "asked: crash at a write",
            Fault::DiskFull(..) => "asked: disk full",
            Fault::Rebalance(_) => "asked: rebalance",
            Fault::SyncFails(_) => "asked: sync fails",
            Fault::TargetCrash => "target crash",
            Fault::VoteLost => "asked: vote lost",
            Fault::DecisionLost => "asked: decision lost",
            Fault::Abort => "asked: vote overruled",
            Fault::RefuseNotify => "asked: notify refused",
            Fault::SplitWrites(_) => "split writes",
        }
    }
}
