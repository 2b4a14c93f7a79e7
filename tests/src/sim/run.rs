//! One run: hosts, faults by the plan, and the account of every record at the end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use connector_crds::{ConnectorIdentity, LiveConfig, OnError, OnInDoubt, Protocol, SinkFraming};
use connector_env::Env as _;
use connector_runtime::board::{AckMode, Board};
use connector_runtime::pump::{Shutdown, sink, source};
use connector_runtime::state_volume::Identity;
use connector_runtime::txn_log::Retain;
use tokio::sync::{Notify, watch};
use turmoil::Sim;
use wallaroo_endpoint::config::{
    Encoder, EndpointConfig, ReleasePosition, SinkConfig, SinkProtocol, SourceConfig, SourceProtocol,
};
use wallaroo_endpoint::faults::FaultPlan;
use wallaroo_endpoint::{Control, Endpoint};

use super::disk::Disk;
use super::env::{Network, SimEnv};
use super::external::{ModelLog, ModelTarget};
use super::faults::{FAULT_SPAN, Fault, Host, PARTITIONS, Plan};
use super::random::Random;
use super::trace::Trace;

/// Records of a partition of the log.
const RECORDS: u64 = 250;

/// Simulated time that a run may take: every fault, and then the longest back-off several times over.
const LIMIT: Duration = Duration::from_mins(3);

/// How long a crashed host stays down, at most.
const LONGEST_DOWN_MS: u64 = 1_500;

/// Where each host keeps its state.
const STATE: &str = "/state";

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
    log: ModelLog,
    target: ModelTarget,
    disks: BTreeMap<Host, Disk>,
    control: Rc<RefCell<Option<Control>>>,
    faults: Rc<RefCell<FaultPlan>>,
    stop: Rc<Notify>,
    exited: BTreeMap<Host, Arc<AtomicBool>>,
    /// What the cluster hands back when a source's session ends.
    release: ReleasePosition,
    /// Hosts that are down, and when they come back.
    down: BTreeMap<Host, Duration>,
    /// Connections that are cut, and when they are mended.
    cut: BTreeMap<Host, Duration>,
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

/// Runs one seed. One run at a time in a process: two would take each other's task numbers.
pub fn run(seed: u64) -> Result<Outcome, Box<Failure>> {
    align_task_numbers();
    let random = Random::new(seed);
    let plan = Plan::new(&random);
    let trace = Trace::default();
    let mut sim = turmoil::Builder::new()
        .rng_seed(random.next())
        .tick_duration(Duration::from_millis(1))
        .simulation_duration(LIMIT * 2)
        .min_message_latency(Duration::from_millis(0))
        .max_message_latency(Duration::from_millis(5))
        .tcp_capacity(4_096)
        .build();
    let network = Network::default();
    let mut world = World {
        log: ModelLog::new(PARTITIONS, RECORDS, FAULT_SPAN, trace.clone()),
        target: ModelTarget::new(plan.exactly_once, random.fork(), trace.clone()),
        disks: Host::ALL.into_iter().map(|host| (host, Disk::new(random.fork()))).collect(),
        control: Rc::default(),
        faults: Rc::default(),
        stop: Rc::default(),
        exited: Host::ALL.into_iter().map(|host| (host, Arc::default())).collect(),
        down: BTreeMap::new(),
        cut: BTreeMap::new(),
        random: random.fork(),
        // A real worker processes again what came after its last checkpoint when a source reconnects (protocol page
        // 7.4): with it no sink can be exact, so the exact runs take the worker that its comments describe.
        release: if plan.exactly_once { ReleasePosition::LastSeen } else { ReleasePosition::LastAcked },
        trace: trace.clone(),
    };
    for host in Host::ALL {
        let env = SimEnv::new(network.clone(), world.disks[&host].clone(), random.fork());
        world.start(&mut sim, host, env);
    }
    let expected = world.log.all();
    let mut faults = plan.faults.iter().peekable();
    let fail =
        |world: &World, promises: Vec<String>| Box::new(Failure { seed, promises, tail: world.trace.tail() });
    loop {
        let now = sim.elapsed();
        while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= now) {
            world.apply(&mut sim, *fault, now);
        }
        world.mend(&mut sim, now);
        if let Err(error) = sim.step() {
            return Err(fail(&world, vec![format!("a host failed: {error}")]));
        }
        let broken = trace.broken_promises();
        if !broken.is_empty() {
            return Err(fail(&world, broken));
        }
        let over = faults.peek().is_none() && world.down.is_empty() && world.cut.is_empty();
        if over && world.target.distinct() >= expected.len() {
            break;
        }
        if now > LIMIT {
            let records = world.target.records();
            let lost: Vec<_> = expected.iter().filter(|record| !records.contains_key(*record)).collect();
            let first: Vec<_> = lost.iter().take(5).collect();
            return Err(fail(&world, vec![format!("{} records lost, first {first:?}", lost.len())]));
        }
    }
    let took = sim.elapsed();
    let records = world.target.records();
    let repeated: Vec<_> = records.iter().filter(|(_, n)| **n > 1).collect();
    if plan.exactly_once && !repeated.is_empty() {
        return Err(fail(
            &world,
            vec![format!("{} records repeated, first {:?}", repeated.len(), repeated[0])],
        ));
    }
    if let Some(foreign) = records.keys().find(|record| !expected.contains(*record)) {
        return Err(fail(&world, vec![format!("a record that nobody wrote: {foreign:?}")]));
    }
    for _ in 0..world.disks.values().map(Disk::torn_writes).sum() {
        trace.named("torn write");
    }
    let coverage = trace.coverage();
    let crashes = coverage
        .iter()
        .filter(|(name, _)| name.starts_with("kill") || name.starts_with("power loss"))
        .map(|(_, n)| n)
        .sum();
    Ok(Outcome {
        hash: trace.hash(),
        tail: trace.tail(),
        coverage,
        crashes,
        repeated: repeated.len() as u64,
        took,
    })
}

impl World {
    fn start(&self, sim: &mut Sim<'_>, host: Host, env: SimEnv) {
        let exited = Arc::clone(&self.exited[&host]);
        let trace = self.trace.clone();
        match host {
            Host::Wallaroo => {
                let cluster = ClusterHost {
                    env,
                    release: self.release,
                    control: self.control.clone(),
                    faults: self.faults.clone(),
                    stop: self.stop.clone(),
                };
                sim.host(host.name(), move || wallaroo(cluster.clone(), exited.clone(), trace.clone()));
            }
            Host::Source => {
                let log = self.log.clone();
                sim.host(host.name(), move || {
                    source_host(env.clone(), log.clone(), exited.clone(), trace.clone())
                });
            }
            Host::Sink => {
                let target = self.target.clone();
                sim.host(host.name(), move || {
                    sink_host(env.clone(), target.clone(), exited.clone(), trace.clone())
                });
            }
        }
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
            Fault::Partition(host, span) => {
                // Held, not dropped: the simulated TCP does not retransmit, a real one does.
                sim.hold(host.name(), Host::Wallaroo.name());
                let until = self.cut.entry(host).or_default();
                *until = (now + span).max(*until);
            }
            Fault::Rollback => self.on_cluster(Control::rollback),
            Fault::GracefulStop => {
                self.log.wallaroo_forgets();
                self.stop.notify_one();
            }
            Fault::Rebalance(partition) => self.log.rebalance(partition),
            Fault::SyncFails(host) => self.disks[&host].fail_syncs(1),
            Fault::TargetCrash => self.target.crash(),
            Fault::VoteLost => self.on_plan(|plan| plan.drop_before_vote += 1),
            Fault::DecisionLost => self.on_plan(|plan| plan.lose_decision += 1),
            Fault::Abort => self.on_plan(|plan| plan.abort_after_vote += 1),
            Fault::RefuseNotify => self.on_plan(|plan| plan.refuse_notify += 3),
            Fault::SplitWrites(bytes) => {
                self.faults.borrow_mut().split_writes = Some(bytes);
                self.on_plan(|_| {});
            }
        }
    }

    /// Once-only faults for the running cluster; what lasts is kept for its next start too.
    fn on_plan(&self, change: impl FnOnce(&mut FaultPlan)) {
        let mut plan = self.faults.borrow().clone();
        change(&mut plan);
        self.on_cluster(|control| {
            if let Err(error) = control.set_faults(plan) {
                self.trace.broken(format!("the fault plan is not valid: {error}"));
            }
        });
    }

    fn on_cluster(&self, order: impl FnOnce(&Control)) {
        if let Some(control) = &*self.control.borrow()
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
}

/// What the host "wallaroo" shares with the fault plan.
#[derive(Clone)]
struct ClusterHost {
    env: SimEnv,
    release: ReleasePosition,
    control: Rc<RefCell<Option<Control>>>,
    faults: Rc<RefCell<FaultPlan>>,
    stop: Rc<Notify>,
}

async fn wallaroo(host: ClusterHost, exited: Arc<AtomicBool>, trace: Trace) -> turmoil::Result {
    let ClusterHost { env, release, control, faults, stop } = host;
    loop {
        env.create_dir_all(Path::new(STATE))?;
        let mut sink = SinkConfig::new("out", "sink:7200", SinkProtocol::connector());
        sink.encoder = Encoder::Raw;
        let config = EndpointConfig {
            sources: vec![SourceConfig::new("in", "0.0.0.0:7100", SourceProtocol::connector())],
            sinks: vec![sink],
            checkpoint_interval_ms: 300,
            state_directory: Some(STATE.into()),
            release_position: release,
            faults: faults.borrow().clone(),
            ..EndpointConfig::default()
        };
        let mut endpoint = match Endpoint::start(env.clone(), config).await {
            Ok(endpoint) => endpoint,
            Err(error) => {
                trace.note(&format!("wallaroo does not start: {error}"));
                exited.store(true, Relaxed);
                return std::future::pending().await;
            }
        };
        control.replace(Some(endpoint.control()));
        trace.note("wallaroo runs");
        tokio::select! {
            biased;
            () = stop.notified() => {
                let status = endpoint.stop().await?;
                trace.note(&format!("wallaroo stopped at checkpoint {}", status.checkpoint));
            }
            ended = endpoint.ended() => {
                trace.note(&format!("wallaroo ended: {ended:?}"));
                exited.store(true, Relaxed);
                return std::future::pending().await;
            }
        }
    }
}

async fn source_host(env: SimEnv, log: ModelLog, exited: Arc<AtomicBool>, trace: Trace) -> turmoil::Result {
    let config = source::SourcePumpConfig {
        identity: ConnectorIdentity { namespace: "sim".into(), name: "in".into(), epoch: String::new() },
        instance: "in-0".into(),
        protocol: Protocol::Connector,
        framing: connector_crds::FramingSpec::default(),
        cookie: source::CookieFrom::Default,
        targets: vec!["wallaroo:7100".into()],
        max_frame_bytes: 16_384,
        in_flight_records: 500,
        in_flight_bytes: 65_536,
        on_error: OnError::Stop,
        ack_mode: AckMode::Checkpoint,
        commit_delay: Duration::from_secs(1),
        drain_timeout: Duration::from_secs(10),
        timings: source::Timings::default(),
    };
    let (_live, live) = watch::channel(LiveConfig::default());
    let (_shutdown, shutdown) = watch::channel(Shutdown::Run);
    let consumer = Box::new(log.consumer());
    let ended = source::run(env, config, consumer, Board::new(), live, shutdown, None).await;
    trace.note(&format!("source ended: {ended:?}"));
    exited.store(true, Relaxed);
    std::future::pending().await
}

async fn sink_host(
    env: SimEnv,
    target: ModelTarget,
    exited: Arc<AtomicBool>,
    trace: Trace,
) -> turmoil::Result {
    env.create_dir_all(Path::new(STATE))?;
    let identity = ConnectorIdentity { namespace: "sim".into(), name: "out".into(), epoch: String::new() };
    let config = sink::SinkPumpConfig {
        identity: Identity::new(&identity, "model", Protocol::Connector),
        state: STATE.into(),
        protocol: Protocol::Connector,
        framing: SinkFraming::Lines {},
        cookie: source::CookieFrom::Default,
        listen: "0.0.0.0:7200".into(),
        on_error: OnError::Stop,
        on_in_doubt: OnInDoubt::Deliver,
        ack_mode: AckMode::Checkpoint,
        backlog_bytes: 1 << 20,
        retain: Retain::default(),
        queue_bytes: 65_536,
        no_checkpoints_after: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(10),
    };
    let (_live, live) = watch::channel(LiveConfig::default());
    let (_shutdown, shutdown) = watch::channel(Shutdown::Run);
    let client = Box::new(target.client());
    let board = Board::new();
    let ended = sink::run(env, config, client, None, board, live, shutdown).await;
    trace.note(&format!("sink ended: {ended:?}"));
    exited.store(true, Relaxed);
    std::future::pending().await
}
