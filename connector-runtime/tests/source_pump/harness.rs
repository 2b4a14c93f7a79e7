//! Starts a pump and waits for conditions.

use connector_crds::{ConnectorIdentity, FramingSpec, LiveConfig, OnError, Protocol, State};
use connector_env::TokioEnv;
use connector_runtime::board::{AckMode, Board, Side, SideState};
use connector_runtime::pump::Shutdown;
use connector_runtime::pump::dead_letter::DeadLetter;
use connector_runtime::pump::source::{self, CookieFrom, Outcome, PumpError, SourcePumpConfig, Timings};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::scripted::Scripted;

/// Longest wait for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A pump in a task.
pub(crate) struct Running {
    pub(crate) board: Board,
    pub(crate) live: watch::Sender<LiveConfig>,
    pub(crate) shutdown: watch::Sender<Shutdown>,
    task: JoinHandle<Result<Outcome, PumpError>>,
}

pub(crate) fn config(target: &str) -> SourcePumpConfig {
    SourcePumpConfig {
        identity: ConnectorIdentity { namespace: "ns".into(), name: "c".into(), epoch: String::new() },
        instance: "c-0".into(),
        protocol: Protocol::Connector,
        framing: FramingSpec::default(),
        cookie: CookieFrom::Default,
        targets: vec![target.to_owned()],
        max_frame_bytes: 16_384,
        in_flight_records: 1_000_000,
        in_flight_bytes: 16_777_216,
        on_error: OnError::Stop,
        ack_mode: AckMode::Checkpoint,
        commit_delay: Duration::from_millis(100),
        drain_timeout: Duration::from_secs(5),
        timings: Timings { healthy: Duration::from_millis(100), ..Timings::default() },
    }
}

pub(crate) fn start(source: &Scripted, config: SourcePumpConfig) -> Running {
    start_with(source, config, None)
}

pub(crate) fn start_with(
    source: &Scripted,
    config: SourcePumpConfig,
    dead_letter: Option<Box<dyn DeadLetter>>,
) -> Running {
    let board = Board::new();
    let (live, live_receiver) = watch::channel(LiveConfig::default());
    let (shutdown, shutdown_receiver) = watch::channel(Shutdown::Run);
    let source = Box::new(source.clone());
    let run =
        source::run(TokioEnv, config, source, board.clone(), live_receiver, shutdown_receiver, dead_letter);
    Running { board, live, shutdown, task: tokio::spawn(run) }
}

impl Running {
    /// How the pump ended.
    pub(crate) async fn outcome(self) -> Outcome {
        timeout(DEADLINE, self.task).await.expect("the pump ends in time").unwrap().unwrap()
    }

    /// The mistake that the pump ended with.
    pub(crate) async fn error(self) -> PumpError {
        timeout(DEADLINE, self.task).await.expect("the pump ends in time").unwrap().unwrap_err()
    }

    /// Asks for the end at once.
    pub(crate) async fn stop(self) -> Outcome {
        self.shutdown.send_replace(Shutdown::Now);
        self.outcome().await
    }

    pub(crate) fn pause(&self, paused: bool) {
        let state = if paused { State::Paused } else { State::Running };
        self.live.send_replace(LiveConfig { state, ..LiveConfig::default() });
    }

    pub(crate) fn wallaroo(&self) -> SideState {
        self.board.side(Side::Wallaroo)
    }

    /// Reason of a failed Wallaroo end.
    pub(crate) fn wallaroo_reason(&self) -> Option<String> {
        match self.wallaroo() {
            SideState::Failed { reason, .. } => Some(reason),
            SideState::Waiting | SideState::Connected => None,
        }
    }

    pub(crate) fn stalled_reason(&self) -> Option<String> {
        self.board.snapshot().stalled.map(|stalled| stalled.reason)
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Checks that `condition` goes on holding for `time`: for what must not happen.
pub(crate) async fn stays(what: &str, time: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(condition(), "no longer true: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
