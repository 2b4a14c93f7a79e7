//! A pump on a disk and a target that outlive it.

use std::path::PathBuf;

use connector_crds::{ConnectorIdentity, LiveConfig, OnError, OnInDoubt, Protocol, SinkFraming, State};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Duration, sleep, timeout};

use super::super::{SinkOutcome, SinkPumpConfig, SinkPumpError, run};
use super::target::Target;
use super::worker::DEADLINE;
use crate::board::{AckMode, Board, Snapshot};
use crate::fake_disk::{Crash, FakeDisk};
use crate::pump::Shutdown;
use crate::pump::dead_letter::{DeadLetter, FileDeadLetter};
use crate::pump::source::CookieFrom;
use crate::state_volume::Identity;
use crate::txn_log::Retain;

pub(super) const LETTERS: &str = "/letters.jsonl";

pub(super) fn config() -> SinkPumpConfig {
    let connector =
        ConnectorIdentity { namespace: "default".into(), name: "out".into(), epoch: String::new() };
    SinkPumpConfig {
        identity: Identity::new(&connector, "memory", Protocol::Connector),
        state: PathBuf::from("/state"),
        protocol: Protocol::Connector,
        framing: SinkFraming::Lines {},
        cookie: CookieFrom::Default,
        listen: "127.0.0.1:0".into(),
        on_error: OnError::Stop,
        on_in_doubt: OnInDoubt::Deliver,
        ack_mode: AckMode::Checkpoint,
        backlog_bytes: 1_000_000,
        retain: Retain { time: Duration::from_secs(30), bytes: 1_000_000 },
        queue_bytes: 1_000_000,
        no_checkpoints_after: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(10),
    }
}

pub(super) struct Bench {
    pub(super) disk: FakeDisk,
    pub(super) target: Target,
    pub(super) config: SinkPumpConfig,
    pub(super) board: Board,
    pub(super) address: String,
    live: watch::Sender<LiveConfig>,
    shutdown: watch::Sender<Shutdown>,
    task: JoinHandle<Result<SinkOutcome, SinkPumpError>>,
}

impl Bench {
    /// A pump on a new disk, listening.
    pub(super) async fn start(target: Target) -> Bench {
        Bench::start_with(FakeDisk::default(), target, config()).await
    }

    pub(super) async fn start_with(disk: FakeDisk, target: Target, config: SinkPumpConfig) -> Bench {
        let mut bench = Bench::spawn(disk, target, config);
        let board = bench.board.clone();
        eventually("it listens", || board.snapshot().listen.is_some()).await;
        bench.address = bench.board.snapshot().listen.unwrap();
        bench
    }

    /// A pump that need not get as far as listening.
    pub(super) fn spawn(disk: FakeDisk, target: Target, config: SinkPumpConfig) -> Bench {
        let board = Board::new();
        let (live, live_receiver) = watch::channel(LiveConfig::default());
        let (shutdown, shutdown_receiver) = watch::channel(Shutdown::Run);
        let letters: Option<Box<dyn DeadLetter>> = match config.on_error {
            OnError::DeadLetter => Some(Box::new(FileDeadLetter::new(disk.clone(), LETTERS.into()))),
            OnError::Stop | OnError::Drop => None,
        };
        let pump = run(
            disk.clone(),
            config.clone(),
            target.sink(),
            letters,
            board.clone(),
            live_receiver,
            shutdown_receiver,
        );
        let task = tokio::spawn(pump);
        Bench { disk, target, config, board, address: String::new(), live, shutdown, task }
    }

    /// Kills the pump and starts the next one on what the crash left.
    pub(super) async fn restart(self, crash: Crash) -> Bench {
        let config = self.config.clone();
        self.restart_with(crash, config).await
    }

    pub(super) async fn restart_with(self, crash: Crash, config: SinkPumpConfig) -> Bench {
        let (disk, target) = self.kill().await;
        disk.crash(crash);
        Bench::start_with(disk, target, config).await
    }

    pub(super) async fn kill(self) -> (FakeDisk, Target) {
        self.task.abort();
        let _ = self.task.await;
        (self.disk, self.target)
    }

    /// Waits for the pump's own end.
    pub(super) async fn ended(self) -> (FakeDisk, Target, Result<SinkOutcome, SinkPumpError>) {
        let outcome = timeout(DEADLINE, self.task).await.expect("the pump ends in time").expect("no panic");
        (self.disk, self.target, outcome)
    }

    pub(super) async fn shut_down(self, how: Shutdown) -> (FakeDisk, Target, SinkOutcome) {
        self.shutdown.send(how).unwrap();
        let (disk, target, outcome) = self.ended().await;
        (disk, target, outcome.unwrap())
    }

    pub(super) fn tell(&self, how: Shutdown) {
        self.shutdown.send(how).unwrap();
    }

    pub(super) fn set_state(&self, state: State) {
        self.live.send(LiveConfig { state, ..LiveConfig::default() }).unwrap();
    }

    pub(super) async fn delivered(&self, payloads: &[&str]) {
        let target = self.target.clone();
        let what = format!("the target has {payloads:?}");
        timeout(DEADLINE, async {
            while !target.is(payloads) {
                sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{what}, not {:?}; {:?}", target.payloads(), self.snapshot()));
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.board.snapshot()
    }

    pub(super) async fn stalled(&self, reason: &str) -> String {
        let board = self.board.clone();
        eventually(reason, || board.snapshot().stalled.is_some_and(|s| s.reason == reason)).await;
        self.snapshot().stalled.unwrap().message
    }
}

/// Waits for a condition.
pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    timeout(DEADLINE, async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("not in time: {what}"));
}
