//! Records from a generator through a stand-in cluster into a file, exactly once, whatever happens on the way.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::Path;

use connector_crds::systems::file::FileSink as FileSpec;
use connector_crds::systems::generator::GeneratorSource;
use connector_crds::{
    ConnectorIdentity, FramingSpec, InFlight, LiveConfig, OnError, OnInDoubt, Protocol, SinkFraming,
    SinkSpec, SourceSpec,
};
use connector_env::TokioEnv;
use connector_runtime::board::{AckMode, Board};
use connector_runtime::connectors::{self, Context};
use connector_runtime::pump::Shutdown;
use connector_runtime::pump::sink::{self, SinkOutcome, SinkPumpConfig, SinkPumpError};
use connector_runtime::pump::source::{self, CookieFrom, Outcome, SourcePumpConfig, Timings};
use connector_runtime::secret::Secrets;
use connector_runtime::state_volume::Identity;
use connector_runtime::txn_log::Retain;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep, timeout};
use wallaroo_endpoint::config::{
    Application, Encoder, SinkConfig, SinkProtocol, SourceConfig, SourceProtocol,
};
use wallaroo_endpoint::{Endpoint, EndpointConfig, FaultPlan};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_mins(1);

/// Records of the run: some seconds of them, so that every fault meets traffic.
const RECORDS: usize = 12_000;

fn context(directory: &Path, name: &str, board: &Board) -> Context {
    Context {
        identity: ConnectorIdentity { namespace: "ns".into(), name: name.into(), epoch: String::new() },
        base: directory.to_owned(),
        state: directory.join(name),
        socket: directory.join("socket"),
        secrets: Secrets::new(directory.join("secrets")).0,
        board: board.clone(),
        max_payload_bytes: 16_357,
        in_flight: InFlight::default(),
        stable_positions: true,
    }
}

fn source(directory: &Path, address: String) -> JoinHandle<Outcome> {
    let board = Board::new();
    let context = context(directory, "in", &board);
    let config = SourcePumpConfig {
        identity: context.identity.clone(),
        instance: "in-0".into(),
        protocol: Protocol::Connector,
        framing: FramingSpec::default(),
        cookie: CookieFrom::Default,
        targets: vec![address],
        max_frame_bytes: 16_384,
        in_flight_records: 1_000_000,
        in_flight_bytes: 16_777_216,
        on_error: OnError::Stop,
        ack_mode: AckMode::Checkpoint,
        commit_delay: Duration::ZERO,
        drain_timeout: Duration::from_secs(5),
        timings: Timings::default(),
    };
    let spec = GeneratorSource { rate: Some(4_000), size: 20, count: Some(i64::try_from(RECORDS).unwrap()) };
    let client = connectors::source(&SourceSpec::Generator(spec), context).unwrap();
    tokio::spawn(async move {
        let (_live, live) = watch::channel(LiveConfig::default());
        let (_shutdown, shutdown) = watch::channel(Shutdown::Run);
        source::run(TokioEnv, config, client, board, live, shutdown, None).await.unwrap()
    })
}

struct Sink {
    task: JoinHandle<Result<SinkOutcome, SinkPumpError>>,
    shutdown: watch::Sender<Shutdown>,
}

fn sink(directory: &Path, listen: &str) -> Sink {
    let board = Board::new();
    let context = context(directory, "out", &board);
    let config = SinkPumpConfig {
        identity: Identity::new(&context.identity, "file", Protocol::Connector),
        state: context.state.clone(),
        protocol: Protocol::Connector,
        framing: SinkFraming::Lines {},
        cookie: CookieFrom::Default,
        listen: listen.to_owned(),
        on_error: OnError::Stop,
        on_in_doubt: OnInDoubt::Deliver,
        ack_mode: AckMode::Checkpoint,
        backlog_bytes: 1 << 30,
        retain: Retain::default(),
        queue_bytes: 1 << 20,
        no_checkpoints_after: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(10),
    };
    let spec = FileSpec { path: "out.txt".into(), format: connector_crds::systems::file::FileFormat::Lines };
    let client = connectors::sink(&SinkSpec::File(spec), context).unwrap();
    let (shutdown, told) = watch::channel(Shutdown::Run);
    let task = tokio::spawn(async move {
        let (_live, live) = watch::channel(LiveConfig::default());
        sink::run(TokioEnv, config, client, None, board, live, told).await
    });
    Sink { task, shutdown }
}

impl Sink {
    /// As by `kill -9`, but for the page cache.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn lines(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join("out.txt")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn every_record_is_in_the_file_exactly_once_though_the_sink_is_killed_and_decisions_are_lost() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = EndpointConfig {
        application: Application::Identity,
        workers: 2,
        sources: vec![SourceConfig {
            name: "in".into(),
            listen: "127.0.0.1:0".into(),
            protocol: SourceProtocol::connector(),
            parallelism: 10,
        }],
        sinks: vec![SinkConfig {
            name: "out".into(),
            connect: listen.clone(),
            protocol: SinkProtocol::Connector { cookie: wallaroo_endpoint::config::CookieText::default() },
            encoder: Encoder::Lines,
            retry_ms: Some(20),
        }],
        checkpoint_interval_ms: 20,
        ..EndpointConfig::default()
    };
    let mut running = sink(directory, &listen);
    let endpoint = Endpoint::start(TokioEnv, config).await.unwrap();
    let control = endpoint.control();
    let source = source(directory, endpoint.address("in").unwrap());
    let plans = [
        FaultPlan { lose_decision: 1, ..FaultPlan::default() },
        FaultPlan { abort_after_vote: 1, ..FaultPlan::default() },
        FaultPlan { drop_before_vote: 1, ..FaultPlan::default() },
        FaultPlan { close_after_intro: 2, ..FaultPlan::default() },
        FaultPlan { split_writes: Some(7), ..FaultPlan::default() },
    ];
    for (round, plan) in plans.into_iter().enumerate() {
        let reached = (round + 1) * RECORDS / 8;
        until("records arrive", || lines(directory).len() >= reached).await;
        control.set_faults(plan).unwrap();
        let before = lines(directory).len();
        until("and go on arriving", || lines(directory).len() > before).await;
        // Between the vote and the decision, or anywhere else: as it comes.
        running.kill().await;
        running = sink(directory, &listen);
    }
    control.rollback();
    assert_eq!(timeout(DEADLINE, source).await.unwrap().unwrap(), Outcome::Completed);
    until("all of them are there", || lines(directory).len() >= RECORDS).await;
    running.shutdown.send(Shutdown::Drain).unwrap();
    assert_eq!(timeout(DEADLINE, running.task).await.unwrap().unwrap().unwrap(), SinkOutcome::Drained);
    let status = endpoint.stop().await.unwrap();
    assert!(status.rollbacks >= 5, "{status:?}");
    assert_eq!(status.violations, []);
    let numbers: Vec<usize> =
        lines(directory).iter().map(|line| line.trim_matches('.').parse().unwrap()).collect();
    assert_eq!(numbers, (1..=RECORDS).collect::<Vec<_>>());
}
