//! How a run is set up, and what goes wrong in it when: drawn from the seed before the run begins.

use std::collections::BTreeSet;
use std::time::Duration;

use connector_crds::{OnError, OnInDoubt};

use super::faults::{Fault, Host};
use super::log::{Oversize, name};
use super::random::Random;

/// Partitions of the log.
pub const PARTITIONS: u32 = 3;

/// Records of a partition of the log.
pub const RECORDS: u64 = 250;

/// Span of simulated time in which faults happen.
pub const FAULT_SPAN: Duration = Duration::from_secs(12);

/// Longest partition of the network; shorter than the timeouts that would make it a lost host.
const LONGEST_PARTITION_MS: u64 = 3_000;

/// Longest time for which a disk has no room.
const LONGEST_FULL_MS: u64 = 2_000;

/// Credits that a session starts with, and at which they are refilled: also so few that they are always used up.
const CREDITS: [(u32, u32); 4] = [(4, 1), (10, 8), (50, 25), (500, 50)];

/// Changes of the sink's disk up to which it goes down: some checkpoints.
const LATEST_CRASH_AT_WRITE: u64 = 60;

/// What is spoken on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The `Connector` protocol on both sides.
    Connector,
    /// `FramedTCP` on both sides: best effort.
    Plain,
}

/// How a run is set up.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What is spoken.
    pub way: Way,
    /// The target keeps our positions, so that every record must be there exactly once.
    pub exactly_once: bool,
    /// Credits of a session, and where they are refilled.
    pub credits: (u32, u32),
    /// Workers of the cluster.
    pub workers: u32,
    /// The workers answer like ones that do not lead the registry.
    pub non_leader: bool,
    /// The sink's policy.
    pub on_in_doubt: OnInDoubt,
    /// Records that Wallaroo never takes.
    pub oversize: Oversize,
    /// Names of records that the target refuses.
    pub refused: BTreeSet<String>,
    /// What the sink does with them.
    pub on_refused: OnError,
}

/// A run's setting, and its faults with their times in order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How it is set up.
    pub setting: Setting,
    /// When and what.
    pub faults: Vec<(Duration, Fault)>,
}

impl Plan {
    /// The plan of a seed: at least three crashes, one partition, one rollback, one rebalance, and more.
    pub fn new(random: &Random) -> Plan {
        let way = if random.chance(15) { Way::Plain } else { Way::Connector };
        // A fresh cluster repeats what its predecessor had not checkpointed: such runs are at least once.
        let graceful = way == Way::Connector && random.chance(25);
        let setting = Setting {
            way,
            exactly_once: way == Way::Connector && random.chance(70) && !graceful,
            credits: CREDITS[random.below(CREDITS.len() as u64) as usize],
            workers: if random.chance(25) { 2 } else { 1 },
            non_leader: random.chance(20),
            on_in_doubt: match random.below(4) {
                0 => OnInDoubt::Hold,
                1 => OnInDoubt::Discard,
                _ => OnInDoubt::Deliver,
            },
            oversize: oversize(random),
            refused: refused(random),
            on_refused: if random.chance(50) { OnError::Drop } else { OnError::DeadLetter },
        };
        let mut faults = vec![
            crash(random),
            crash(random),
            crash(random),
            partition(random),
            Fault::Rollback,
            rebalance(random),
        ];
        for _ in 0..random.below(7) {
            faults.push(match random.below(12) {
                0 => crash(random),
                1 => partition(random),
                2 => Fault::SyncFails(Host::Sink),
                3 => Fault::TargetCrash,
                4 => Fault::VoteLost,
                5 => Fault::DecisionLost,
                6 => Fault::Abort,
                7 => Fault::RefuseNotify,
                8 => Fault::SplitWrites(1 + random.below(40) as usize),
                9 => Fault::CrashAtWrite {
                    changes: 1 + random.below(LATEST_CRASH_AT_WRITE) as u32,
                    power: random.chance(70),
                    stops: random.chance(50),
                },
                10 => {
                    let span = Duration::from_millis(100 + random.below(LONGEST_FULL_MS));
                    Fault::DiskFull(random.below(2_000), span)
                }
                _ => rebalance(random),
            });
        }
        let mut faults: Vec<_> = faults.into_iter().map(|fault| (at(random), fault)).collect();
        if graceful {
            let stop = at(random);
            faults.push((stop, Fault::GracefulStop));
            // A decision that got lost a little before leaves a transaction in doubt.
            if random.chance(60) {
                let before = Duration::from_millis(400 + random.below(600));
                faults.push((stop.saturating_sub(before), Fault::DecisionLost));
            }
        }
        faults.sort_by_key(|(at, _)| *at);
        Plan { setting, faults }
    }
}

fn at(random: &Random) -> Duration {
    Duration::from_millis(random.below(FAULT_SPAN.as_millis() as u64))
}

fn crash(random: &Random) -> Fault {
    let host = Host::ALL[random.below(Host::ALL.len() as u64) as usize];
    if random.chance(50) { Fault::Kill(host) } else { Fault::PowerLoss(host) }
}

fn partition(random: &Random) -> Fault {
    let host = if random.chance(50) { Host::Source } else { Host::Sink };
    Fault::Partition(host, Duration::from_millis(100 + random.below(LONGEST_PARTITION_MS)))
}

fn rebalance(random: &Random) -> Fault {
    Fault::Rebalance(random.below(u64::from(PARTITIONS)) as u32)
}

fn record(random: &Random) -> (u32, u64) {
    (random.below(u64::from(PARTITIONS)) as u32, 1 + random.below(RECORDS))
}

/// In some runs a few records that are too large.
fn oversize(random: &Random) -> Oversize {
    let count = if random.chance(25) { 1 + random.below(4) } else { 0 };
    let on_error = match random.below(3) {
        0 => OnError::Stop,
        1 => OnError::Drop,
        _ => OnError::DeadLetter,
    };
    Oversize { records: (0..count).map(|_| record(random)).collect(), on_error }
}

/// In some runs a few records that the target refuses.
fn refused(random: &Random) -> BTreeSet<String> {
    let count = if random.chance(25) { 1 + random.below(4) } else { 0 };
    (0..count).map(|_| record(random)).map(|(partition, number)| name(partition, number)).collect()
}
