//! What goes wrong in a run, and when: drawn from the seed before the run begins.

use std::time::Duration;

use super::random::Random;

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
            Fault::Rollback => "rollback",
            Fault::GracefulStop => "graceful stop of wallaroo",
            Fault::Rebalance(_) => "rebalance asked",
            Fault::SyncFails(_) => "sync fails",
            Fault::TargetCrash => "target crash",
            Fault::VoteLost => "vote lost",
            Fault::DecisionLost => "decision lost",
            Fault::Abort => "vote overruled",
            Fault::RefuseNotify => "notify refused",
            Fault::SplitWrites(_) => "split writes",
        }
    }
}

/// Faults with their times, in order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// When and what.
    pub faults: Vec<(Duration, Fault)>,
    /// The target keeps our positions, so that every record must be there exactly once.
    pub exactly_once: bool,
}

/// Partitions of the log.
pub const PARTITIONS: u32 = 3;

/// Span of simulated time in which faults happen.
pub const FAULT_SPAN: Duration = Duration::from_secs(12);

/// Longest partition of the network; shorter than the timeouts that would make it a lost host.
const LONGEST_PARTITION_MS: u64 = 3_000;

impl Plan {
    /// The plan of a seed: at least three crashes, one partition, one rollback, one rebalance, and more.
    pub fn new(random: &Random) -> Plan {
        // A fresh cluster repeats what its predecessor had not checkpointed: such runs are at least once.
        let graceful = random.chance(20);
        let exactly_once = random.chance(70) && !graceful;
        let mut faults = vec![
            crash(random),
            crash(random),
            crash(random),
            partition(random),
            Fault::Rollback,
            Fault::Rebalance(random.below(u64::from(PARTITIONS)) as u32),
        ];
        if graceful {
            faults.push(Fault::GracefulStop);
        }
        for _ in 0..random.below(6) {
            faults.push(match random.below(10) {
                0 => crash(random),
                1 => partition(random),
                2 => Fault::SyncFails(Host::Sink),
                3 => Fault::TargetCrash,
                4 => Fault::VoteLost,
                5 => Fault::DecisionLost,
                6 => Fault::Abort,
                7 => Fault::RefuseNotify,
                8 => Fault::SplitWrites(1 + random.below(40) as usize),
                _ => Fault::Rebalance(random.below(u64::from(PARTITIONS)) as u32),
            });
        }
        let span = FAULT_SPAN.as_millis() as u64;
        let mut faults: Vec<_> =
            faults.into_iter().map(|fault| (Duration::from_millis(random.below(span)), fault)).collect();
        faults.sort_by_key(|(at, _)| *at);
        Plan { faults, exactly_once }
    }
}

fn crash(random: &Random) -> Fault {
    let host = Host::ALL[random.below(Host::ALL.len() as u64) as usize];
    if random.chance(50) { Fault::Kill(host) } else { Fault::PowerLoss(host) }
}

fn partition(random: &Random) -> Fault {
    let host = if random.chance(50) { Host::Source } else { Host::Sink };
    Fault::Partition(host, Duration::from_millis(100 + random.below(LONGEST_PARTITION_MS)))
}
