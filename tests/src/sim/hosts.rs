//! The processes of a run: the cluster, the source connector, the sink connector.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use connector_crds::{ConnectorIdentity, FramingSpec, LiveConfig, OnError, Protocol, SinkFraming};
use connector_env::Env as _;
use connector_runtime::board::{AckMode, Board};
use connector_runtime::pump::{Shutdown, sink, source};
use connector_runtime::state_volume::Identity;
use connector_runtime::txn_log::Retain;
use tokio::sync::{Notify, watch};
use wallaroo_endpoint::config::{
    Encoder, EndpointConfig, ReleasePosition, SinkConfig, SinkProtocol, SourceConfig, SourceProtocol,
};
use wallaroo_endpoint::faults::FaultPlan;
use wallaroo_endpoint::{Control, Endpoint};

use super::env::SimEnv;
use super::letters::ModelLetters;
use super::log::ModelLog;
use super::plan::{Setting, Way};
use super::random::Random;
use super::target::ModelTarget;
use super::trace::Trace;

/// Where each host keeps its state.
pub const STATE: &str = "/state";

/// Longest frame that the source sends: small, so that few bytes make a record too large.
const MAX_FRAME: u32 = 512;

/// Time that a receipt over the plain framings has to age before it is committed.
pub const COMMIT_DELAY: Duration = Duration::from_millis(300);

impl Setting {
    fn protocol(&self) -> Protocol {
        match self.way {
            Way::Connector => Protocol::Connector,
            Way::Plain => Protocol::FramedTCP,
        }
    }
}

/// What every process is told.
#[derive(Clone)]
pub struct Process {
    /// Its host.
    pub env: SimEnv,
    /// How the run is set up.
    pub setting: Rc<Setting>,
    /// Set when it ends by itself.
    pub exited: Arc<AtomicBool>,
    /// The run's trace.
    pub trace: Trace,
}

/// What the cluster shares with the fault plan.
#[derive(Clone, Default)]
pub struct Strings {
    /// The running cluster, or the last one.
    pub control: Rc<RefCell<Option<Control>>>,
    /// What lasts over its starts.
    pub faults: Rc<RefCell<FaultPlan>>,
    /// It is to stop gracefully.
    pub stop: Rc<Notify>,
}

/// Why a cluster's peers are to blame, if they are.
pub fn blame(control: &Control, trace: &Trace) {
    let status = control.status();
    for violation in &status.violations {
        trace.broken(format!("protocol, {}: {} ({})", violation.place, violation.detail, violation.rule));
    }
}

/// The stand-in cluster.
pub async fn wallaroo(process: Process, strings: Strings) -> turmoil::Result {
    let Process { env, setting, exited, trace } = process;
    let Strings { control, faults, stop } = strings;
    // A real worker processes again what came after its last checkpoint when a source reconnects (protocol page 7.4): with it no
    // sink can be exact, so the exact runs take the worker that its comments describe.
    let release = if setting.exactly_once { ReleasePosition::LastSeen } else { ReleasePosition::LastAcked };
    let (input, output) = match setting.way {
        Way::Connector => {
            let (max_credits, refill_credits) = setting.credits;
            let cookie = wallaroo_endpoint::config::CookieText::default();
            (SourceProtocol::Connector { cookie, max_credits, refill_credits }, SinkProtocol::connector())
        }
        Way::Plain => (SourceProtocol::framed(), SinkProtocol::FramedTcp),
    };
    loop {
        env.create_dir_all(Path::new(STATE))?;
        let mut sink = SinkConfig::new("out", "sink:7200", output.clone());
        sink.encoder = match setting.way {
            Way::Connector => Encoder::Raw,
            Way::Plain => Encoder::Lines,
        };
        let config = EndpointConfig {
            sources: vec![SourceConfig::new("in", "0.0.0.0:7100", input.clone())],
            sinks: vec![sink],
            workers: setting.workers,
            non_leader: setting.non_leader,
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
        if let Some(before) = control.replace(Some(endpoint.control())) {
            blame(&before, &trace);
        }
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

/// The source connector.
pub async fn source_host(
    process: Process,
    log: ModelLog,
    letters: ModelLetters,
    random: Random,
) -> turmoil::Result {
    let Process { env, setting, exited, trace } = process;
    let config = source::SourcePumpConfig {
        identity: ConnectorIdentity { namespace: "sim".into(), name: "in".into(), epoch: String::new() },
        instance: "in-0".into(),
        protocol: setting.protocol(),
        framing: FramingSpec::default(),
        cookie: source::CookieFrom::Default,
        targets: (0..setting.workers).map(|worker| format!("wallaroo:{}", 7_100 + worker)).collect(),
        max_frame_bytes: MAX_FRAME,
        in_flight_records: 500,
        in_flight_bytes: 65_536,
        on_error: setting.oversize.on_error,
        ack_mode: AckMode::Checkpoint,
        commit_delay: COMMIT_DELAY,
        drain_timeout: Duration::from_secs(10),
        timings: source::Timings::default(),
    };
    let (_live, live) = watch::channel(LiveConfig::default());
    let (_shutdown, shutdown) = watch::channel(Shutdown::Run);
    let consumer = Box::new(log.consumer());
    let letters = (setting.oversize.on_error == OnError::DeadLetter).then(|| letters.writer(random.fork()));
    let ended = source::run(env, config, consumer, Board::new(), live, shutdown, letters).await;
    trace.note(&format!("source ended: {ended:?}"));
    exited.store(true, Relaxed);
    std::future::pending().await
}

/// The sink connector.
pub async fn sink_host(
    process: Process,
    target: ModelTarget,
    letters: ModelLetters,
    random: Random,
) -> turmoil::Result {
    let Process { env, setting, exited, trace } = process;
    env.create_dir_all(Path::new(STATE))?;
    let identity = ConnectorIdentity { namespace: "sim".into(), name: "out".into(), epoch: String::new() };
    let config = sink::SinkPumpConfig {
        identity: Identity::new(&identity, "model", setting.protocol()),
        state: STATE.into(),
        protocol: setting.protocol(),
        framing: SinkFraming::Lines {},
        cookie: source::CookieFrom::Default,
        listen: "0.0.0.0:7200".into(),
        on_error: setting.on_refused,
        on_in_doubt: setting.on_in_doubt,
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
    let letters = (setting.on_refused == OnError::DeadLetter).then(|| letters.writer(random.fork()));
    let ended = sink::run(env, config, client, letters, board, live, shutdown).await;
    if ended.is_err() {
        trace.named("sink process ended by its disk");
    }
    trace.note(&format!("sink ended: {ended:?}"));
    exited.store(true, Relaxed);
    std::future::pending().await
}
