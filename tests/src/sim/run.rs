//! One run: hosts, faults by the plan, and the account of every record at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use turmoil::Sim;
use wallaroo_endpoint::Control;
use wallaroo_endpoint::faults::FaultPlan;

use super::account::{Account, Verdict};
use super::disk::Disk;
use super::env::{Network, SimEnv};
use super::faults::{Fault, Host};
use super::hosts::{COMMIT_DELAY, Process, Strings, blame, sink_host, source_host, wallaroo};
use super::letters::ModelLetters;
use super::log::{Judges, ModelLog};
use super::observer::Observer;
use super::plan::{FAULT_SPAN, PARTITIONS, Plan, RECORDS, Setting, Way};
use super::random::Random;
use super::receipts::Receipts;
use super::target::ModelTarget;
use super::trace::Trace;
use super::unsettled::Unsettled;

/// Simulated time that a run may take: every fault, and then the longest back-off several times over.
const LIMIT: Duration = Duration::from_mins(3);

/// How long a crashed host stays down, at most.
const LONGEST_DOWN_MS: u64 = 1_500;

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hash over everything that happened.
    pub hash: u64,
    /// The last lines of what happened.
    pub tail: Vec<String>,
    /// Named events and how often they happened.
    pub coverage: BTreeMap<&'static str, u64>,
    /// Crashes of any kind.
    pub crashes: u64,
    /// Records that arrived more than once.
    pub repeated: u64,
    /// Simulated time until every record had arrived.
    pub took: Duration,
}

/// A run that broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that shows it again.
    pub seed: u64,
    /// What was broken.
    pub promises: Vec<String>,
    /// What happened before.
    pub tail: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.tail {
            writeln!(f, "  {line}")?;
        }
        for promise in &self.promises {
            writeln!(f, "broken: {promise}")?;
        }
        write!(f, "seed {} (again with SIM_SEED={})", self.seed, self.seed)
    }
}

/// What the fault plan acts on.
struct World {
    trace: Trace,
    random: Random,
    setting: Rc<Setting>,
    log: ModelLog,
    target: ModelTarget,
    source_letters: ModelLetters,
    sink_letters: ModelLetters,
    disks: BTreeMap<Host, Disk>,
    strings: Strings,
    exited: BTreeMap<Host, Arc<AtomicBool>>,
    /// Hosts that are down, and when they come back.
    down: BTreeMap<Host, Duration>,
    /// Connections that are cut, and when they are mended.
    cut: BTreeMap<Host, Duration>,
    /// The power goes when the sink's disk trips.
    trip_power: bool,
    /// When the sink's disk has room again.
    full_until: Option<Duration>,
}

/// Task numbers of tokio begin at a multiple of this in every run.
const TASK_NUMBERS: u64 = 64;

/// A crashed runtime drops its tasks in an order that depends on their numbers, which tokio counts over the whole
/// process: takes numbers until every run begins alike.
fn align_task_numbers() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return };
    let number = || runtime.spawn(async {}).id().to_string().parse::<u64>().unwrap_or(0);
    while number() % TASK_NUMBERS != TASK_NUMBERS - 1 {}
}

/// Where the logs of the code under test go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logs {
    /// Into the trace and the coverage.
    Observed,
    /// To the subscriber that is there; the coverage knows only what was asked for.
    Printed,
}

/// Runs one seed. One run at a time in a process: two would take each other's task numbers.
pub fn run(seed: u64, logs: Logs) -> Result<Outcome, Box<Failure>> {
    align_task_numbers();
    let trace = Trace::default();
    let _observed = match logs {
        Logs::Observed => Some(tracing::subscriber::set_default(Observer::new(trace.clone()))),
        Logs::Printed => None,
    };
    let random = Random::new(seed);
    let plan = Plan::new(&random);
    let mut sim = turmoil::Builder::new()
        .rng_seed(random.next())
        .tick_duration(Duration::from_millis(1))
        .simulation_duration(LIMIT * 2)
        .min_message_latency(Duration::from_millis(0))
        .max_message_latency(Duration::from_millis(5))
        .tcp_capacity(4_096)
        .build();
    trace.note_at(Duration::ZERO, &format!("{:?}", plan.setting));
    let (mut world, account) = World::new(plan.setting, &random, &trace);
    let network = Network::default();
    for host in Host::ALL {
        let receipts = account.receipts.clone().filter(|_| host == Host::Wallaroo);
        let env = SimEnv::new(network.clone(), world.disks[&host].clone(), random.fork());
        world.start(&mut sim, host, env.with_receipts(receipts));
    }
    let mut faults = plan.faults.iter().peekable();
    let fail = |promises| Box::new(Failure { seed, promises, tail: trace.tail() });
    loop {
        let now = sim.elapsed();
        while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= now) {
            world.apply(&mut sim, *fault, now);
        }
        world.mend(&mut sim, now);
        if let Err(error) = sim.step() {
            return Err(fail(vec![format!("a host failed: {error}")]));
        }
        world.trip(&mut sim);
        let broken = trace.broken_promises();
        if !broken.is_empty() {
            return Err(fail(broken));
        }
        let undisturbed = faults.peek().is_none() && world.is_whole();
        match account.judge(&world.log, &world.target, now, undisturbed) {
            Verdict::Wait if now <= LIMIT => {
                if undisturbed && !world.log.is_done() && account.is_stuck_without_decision(now) {
                    world.restart_cluster(now);
                }
            }
            Verdict::Wait => return Err(fail(account.lost(&world.log, &world.target))),
            Verdict::Done => break,
        }
    }
    let took = sim.elapsed();
    world.note_disks();
    if let Some(control) = &*world.strings.control.borrow() {
        blame(control, &trace);
    }
    let repeated = account.close(&world.target);
    let broken = trace.broken_promises();
    if !broken.is_empty() {
        return Err(fail(broken));
    }
    let coverage = trace.coverage();
    let crashes = coverage
        .iter()
        .filter(|(name, _)| name.starts_with("kill") || name.starts_with("power loss"))
        .map(|(_, n)| n)
        .sum();
    Ok(Outcome { hash: trace.hash(), tail: trace.tail(), coverage, crashes, repeated, took })
}

impl World {
    fn new(setting: Setting, random: &Random, trace: &Trace) -> (World, Account) {
        let receipts = (setting.way == Way::Plain).then(Receipts::default);
        let (source_letters, sink_letters) = (ModelLetters::default(), ModelLetters::default());
        let judges = Judges {
            oversize: setting.oversize.clone(),
            letters: source_letters.clone(),
            receipts: receipts.clone().map(|receipts| (receipts, COMMIT_DELAY)),
        };
        let log = ModelLog::new(PARTITIONS, RECORDS, FAULT_SPAN, judges, trace.clone());
        let target =
            ModelTarget::new(setting.exactly_once, setting.refused.clone(), random.fork(), trace.clone());
        let handed: BTreeSet<String> = log.deliverable();
        let disks: BTreeMap<Host, Disk> =
            Host::ALL.into_iter().map(|host| (host, Disk::new(random.fork()))).collect();
        let unsettled = Unsettled::on(disks[&Host::Sink].clone());
        let account =
            Account::new(&setting, handed, receipts, sink_letters.clone(), unsettled, trace.clone());
        let world = World {
            log,
            target,
            source_letters,
            sink_letters,
            disks,
            strings: Strings::default(),
            exited: Host::ALL.into_iter().map(|host| (host, Arc::default())).collect(),
            down: BTreeMap::new(),
            cut: BTreeMap::new(),
            trip_power: false,
            full_until: None,
            random: random.fork(),
            setting: Rc::new(setting),
            trace: trace.clone(),
        };
        (world, account)
    }

    fn start(&self, sim: &mut Sim<'_>, host: Host, env: SimEnv) {
        let process = Process {
            env,
            setting: self.setting.clone(),
            exited: Arc::clone(&self.exited[&host]),
            trace: self.trace.clone(),
        };
        let random = self.random.fork();
        match host {
            Host::Wallaroo => {
                let strings = self.strings.clone();
                sim.host(host.name(), move || wallaroo(process.clone(), strings.clone()));
            }
            Host::Source => {
                let (log, letters) = (self.log.clone(), self.source_letters.clone());
                sim.host(host.name(), move || {
                    source_host(process.clone(), log.clone(), letters.clone(), random.clone())
                });
            }
            Host::Sink => {
                let (target, letters) = (self.target.clone(), self.sink_letters.clone());
                sim.host(host.name(), move || {
                    sink_host(process.clone(), target.clone(), letters.clone(), random.clone())
                });
            }
        }
    }

    /// True when nothing is down, cut or full.
    fn is_whole(&self) -> bool {
        self.down.is_empty() && self.cut.is_empty() && self.full_until.is_none()
    }

    fn apply(&mut self, sim: &mut Sim<'_>, fault: Fault, now: Duration) {
        self.trace.note_at(now, &format!("fault: {fault:?}"));
        self.trace.named(fault.name());
        match fault {
            Fault::Kill(host) => self.crash(sim, host, now),
            Fault::PowerLoss(host) => {
                self.crash(sim, host, now);
                self.disks[&host].lose_power();
            }
            Fault::CrashAtWrite { changes, power, stops } => {
                self.trip_power = power;
                self.disks[&Host::Sink].trip_after(changes, stops);
            }
            Fault::DiskFull(room, span) => {
                let disk = &self.disks[&Host::Sink];
                disk.set_capacity(Some(disk.used() + room));
                self.full_until = Some(now + span);
            }
            Fault::Partition(host, span) => {
                // Held, not dropped: the simulated TCP does not retransmit, a real one does.
                sim.hold(host.name(), Host::Wallaroo.name());
                let until = self.cut.entry(host).or_default();
                *until = (now + span).max(*until);
            }
            Fault::Rollback => self.on_cluster(Control::rollback),
            Fault::GracefulStop => {
                self.log.wallaroo_forgets();
                self.strings.stop.notify_one();
            }
            Fault::Rebalance(partition) => self.log.rebalance(partition),
            Fault::SyncFails(host) => self.disks[&host].fail_syncs(1),
            Fault::TargetCrash => self.target.crash(),
            Fault::VoteLost => self.on_plan(|plan| plan.drop_before_vote += 1),
            Fault::DecisionLost => self.on_plan(|plan| plan.lose_decision += 1),
            Fault::Abort => self.on_plan(|plan| plan.abort_after_vote += 1),
            Fault::RefuseNotify => self.on_plan(|plan| plan.refuse_notify += 3),
            Fault::SplitWrites(bytes) => {
                self.strings.faults.borrow_mut().split_writes = Some(bytes);
                self.on_plan(|_| {});
            }
        }
    }

    /// A fresh cluster never decides what the sink lists, and without output before its second checkpoint the sink cannot tell
    /// that it is fresh (protocol page 4.8, last row): the operator restarts it, now that the source is there.
    fn restart_cluster(&self, now: Duration) {
        self.trace.note_at(now, "the operator restarts a cluster that is stuck");
        self.trace.named("stuck: a fresh cluster meets an undecided transaction");
        self.strings.stop.notify_one();
    }

    /// The sink's host goes down where its disk says so.
    fn trip(&mut self, sim: &mut Sim<'_>) {
        let disk = self.disks[&Host::Sink].clone();
        if !disk.has_tripped() {
            return;
        }
        let now = sim.elapsed();
        self.trace.note_at(now, "fault: the sink's host goes down at a change of its disk");
        self.crash(sim, Host::Sink, now);
        if self.trip_power {
            self.trace.named("power loss at a write");
            disk.lose_power();
        } else {
            self.trace.named("kill at a write");
        }
        disk.forget_trip();
    }

    /// Once-only faults for the running cluster; what lasts is kept for its next start too.
    fn on_plan(&self, change: impl FnOnce(&mut FaultPlan)) {
        let mut plan = self.strings.faults.borrow().clone();
        change(&mut plan);
        self.on_cluster(|control| {
            if let Err(error) = control.set_faults(plan) {
                self.trace.broken(format!("the fault plan is not valid: {error}"));
            }
        });
    }

    fn on_cluster(&self, order: impl FnOnce(&Control)) {
        if let Some(control) = &*self.strings.control.borrow()
            && !self.down.contains_key(&Host::Wallaroo)
        {
            order(control);
        }
    }

    fn crash(&mut self, sim: &mut Sim<'_>, host: Host, now: Duration) {
        if !self.down.contains_key(&host) {
            sim.crash(host.name());
            self.down.insert(host, now + Duration::from_millis(1 + self.random.below(LONGEST_DOWN_MS)));
        }
    }

    fn mend(&mut self, sim: &mut Sim<'_>, now: Duration) {
        if self.full_until.is_some_and(|until| until <= now) {
            self.full_until = None;
            self.disks[&Host::Sink].set_capacity(None);
        }
        for (host, exited) in &self.exited {
            // A process that ended by itself is started again, as a kubelet does.
            if exited.swap(false, Relaxed) && !self.down.contains_key(host) {
                sim.crash(host.name());
                self.down.insert(*host, now + Duration::from_millis(100));
            }
        }
        self.down.retain(|host, until| {
            if *until <= now {
                self.trace.note_at(now, &format!("{} starts again", host.name()));
                sim.bounce(host.name());
            }
            *until > now
        });
        self.cut.retain(|host, until| {
            if *until <= now {
                self.trace.note_at(now, &format!("{} is connected again", host.name()));
                sim.release(host.name(), Host::Wallaroo.name());
            }
            *until > now
        });
    }

    fn note_disks(&self) {
        let sum = |of: fn(&Disk) -> u64| self.disks.values().map(of).sum();
        self.trace.count("torn write", sum(Disk::torn_writes));
        self.trace.count("write without room", sum(Disk::refused_writes));
    }
}
