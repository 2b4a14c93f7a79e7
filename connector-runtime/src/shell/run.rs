//! `run`: the pump on one thread, everything around it on another.

use std::path::Path;
use std::thread;

use anyhow::Context as _;
use connector_crds::{LiveConfig, Protocol, RuntimeConfig};
use connector_env::TokioEnv;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::admin::{self, Admin};
use super::args::RunArgs;
use super::config::{self, System};
use super::{live, metrics, telemetry};
use crate::board::{Board, Counters, Stalled};
use crate::connectors::{self, Context};
use crate::pump::Shutdown;
use crate::pump::dead_letter::{DeadLetter, FileDeadLetter};
use crate::pump::sink::{self, SinkOutcome, SinkPumpConfig};
use crate::pump::source::{self, Outcome, SourcePumpConfig};
use crate::secret::{Secrets, watch_files};
use crate::state_volume::{self, Claim, Identity, StateVolumeError};

/// Bytes of a MESSAGE frame beside key and payload (protocol §2.3): what the frame limit leaves for them.
const MESSAGE_OVERHEAD: i32 = 27;

/// Runs a connector until it is told to stop. A finite source that is complete stays, so that its status can be read.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let log_level = telemetry::start(args.log_format);
    let (config, system) = config::read(&args.config)?;
    let board = Board::new();
    let (secrets, secret_changes) = Secrets::new(&config.paths.secrets);
    let (live_sender, live) = watch::channel(LiveConfig::default());
    let (shutdown_sender, shutdown) = watch::channel(Shutdown::Run);

    let pump = Pump {
        instance: args.instance.unwrap_or_else(|| format!("{}-0", config.identity.name)),
        context: context(&config, secrets.clone(), board.clone()),
        config: config.clone(),
        system: system.clone(),
        board: board.clone(),
        live: live.clone(),
        shutdown,
    };
    let (ended_sender, ended) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("pump".into())
        .spawn(move || {
            let result = current_thread().and_then(|runtime| runtime.block_on(pump.run()));
            // Nobody listens any more only when the other thread failed, which ends the process anyway.
            let _ = ended_sender.send(result);
        })
        .context("starting the pump's thread")?;

    let around = async {
        let listener = admin::bind(&config.admin, args.admin_address_file.as_deref())
            .await
            .with_context(|| format!("binding the admin server to {}", config.admin))?;
        let registry = metrics::registry(board.clone(), &config, system.type_name());
        let direction = system.direction();
        let admin = Admin { board: board.clone(), direction, live, registry };
        let counted = count_secret_changes(secrets.clone(), board.clone());
        tokio::select! {
            biased;
            outcome = ended => outcome.context("the pump's thread panicked")?,
            never = signals(shutdown_sender) => never.map(|never| match never {}),
            served = admin::serve(listener, admin) => {
                served.context("serving the admin port")?;
                anyhow::bail!("the admin server ended")
            }
            () = live::watch(config.paths.live.clone().into(), live_sender, log_level, board.clone()) => {
                anyhow::bail!("watching the live file ended")
            }
            () = watch_files(secrets, secret_changes) => anyhow::bail!("watching Secrets ended"),
            () = counted => anyhow::bail!("counting changes of Secrets ended"),
        }
    };
    let outcome = current_thread()?.block_on(around)?;
    if thread.join().is_err() {
        anyhow::bail!("the pump's thread panicked");
    }
    match outcome {
        Left::Clean => Ok(()),
        Left::Early { records } => anyhow::bail!("left with {records} records on their way"),
    }
}

/// How the pump left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// With nothing on its way.
    Clean,
    /// Told to, with records on their way. What keeps records (a replayable system, a transaction log) gives them again.
    Early {
        /// How many.
        records: u64,
    },
}

fn current_thread() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("starting an event loop")
}

/// What a connector gets beside its own configuration.
pub(super) fn context(config: &RuntimeConfig, secrets: Secrets, board: Board) -> Context {
    let limit = match config.wallaroo.protocol {
        Protocol::Connector => config.wallaroo.max_frame_bytes - MESSAGE_OVERHEAD,
        Protocol::FramedTCP | Protocol::Stream05 | Protocol::Stream06 => config.wallaroo.max_frame_bytes,
    };
    Context {
        identity: config.identity.clone(),
        base: Path::new(&config.paths.base).to_owned(),
        state: Path::new(&config.paths.state).to_owned(),
        socket: Path::new(&config.paths.socket).to_owned(),
        secrets,
        board,
        max_payload_bytes: usize::try_from(limit).unwrap_or(0),
        in_flight: config.delivery.in_flight,
        stable_positions: config.wallaroo.protocol == Protocol::Connector,
    }
}

async fn count_secret_changes(secrets: Secrets, board: Board) {
    let mut changes = secrets.changes();
    while changes.changed().await.is_ok() {
        Counters::add(&board.counters().secret_reloads, 1);
    }
}

/// SIGTERM and SIGINT: the first drains, the second ends at once.
async fn signals(shutdown: watch::Sender<Shutdown>) -> anyhow::Result<std::convert::Infallible> {
    let mut terminate = signal(SignalKind::terminate()).context("watching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching SIGINT")?;
    for level in [Shutdown::Drain, Shutdown::Now] {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(?level, "Told to stop.");
        shutdown.send_replace(level);
    }
    std::future::pending().await
}

/// Everything that moves to the pump's thread.
struct Pump {
    instance: String,
    context: Context,
    config: RuntimeConfig,
    system: System,
    board: Board,
    live: watch::Receiver<LiveConfig>,
    shutdown: watch::Receiver<Shutdown>,
}

impl Pump {
    async fn run(self) -> anyhow::Result<Left> {
        let Pump { instance, context, config, system, board, live, mut shutdown } = self;
        let secrets = context.secrets.clone();
        let letters: Option<Box<dyn DeadLetter>> = match &config.delivery.dead_letter {
            Some(connector_crds::DeadLetter::File { path }) => {
                Some(Box::new(FileDeadLetter::new(TokioEnv, context.base.join(path))))
            }
            None => None,
        };
        match &system {
            System::Source(spec) => {
                if let Err(error) = claim_volume(&config, system.name()) {
                    return stay_down(&board, &mut shutdown, "StateVolumeInUse", &error.to_string()).await;
                }
                let client = match connectors::source(spec, context) {
                    Ok(client) => client,
                    Err(error) => {
                        return stay_down(&board, &mut shutdown, "ConfigInvalid", &error.to_string()).await;
                    }
                };
                let settings = SourcePumpConfig::new(&config, instance, &secrets);
                let told = shutdown.clone();
                match source::run(TokioEnv, settings, client, board.clone(), live, told, letters).await? {
                    Outcome::Completed => {
                        // The work is done, but an exit would read as a failure to a supervisor: stay until told.
                        idle(&board, &mut shutdown).await;
                        Ok(Left::Clean)
                    }
                    Outcome::Drained => Ok(Left::Clean),
                    Outcome::GivenUp { records } => Ok(Left::Early { records }),
                }
            }
            System::Sink(spec) => {
                let client = match connectors::sink(spec, context) {
                    Ok(client) => client,
                    Err(error) => {
                        return stay_down(&board, &mut shutdown, "ConfigInvalid", &error.to_string()).await;
                    }
                };
                let settings =
                    SinkPumpConfig::new(&config, &secrets).context("the configuration has no sink")?;
                match sink::run(TokioEnv, settings, client, letters, board, live, shutdown).await? {
                    SinkOutcome::Drained => Ok(Left::Clean),
                    SinkOutcome::GivenUp { records } => Ok(Left::Early { records }),
                }
            }
        }
    }
}

/// Makes sure that a source never continues in another Connector's or system's state; a sink's pump does so itself.
fn claim_volume(config: &RuntimeConfig, system: &str) -> Result<(), StateVolumeError> {
    let identity = Identity::new(&config.identity, system, config.wallaroo.protocol);
    match state_volume::claim(&TokioEnv, Path::new(&config.paths.state), &identity)? {
        Claim::New | Claim::Same => {}
        Claim::Archived { before, to } => {
            tracing::info!(%before, to = %to.display(), "State of another identity is archived.");
        }
    }
    Ok(())
}

/// Reports what needs a change by someone, and waits to be told to stop: a restart would change nothing.
async fn stay_down(
    board: &Board,
    shutdown: &mut watch::Receiver<Shutdown>,
    reason: &str,
    message: &str,
) -> anyhow::Result<Left> {
    tracing::error!(reason, message, "This connector stays down.");
    board.set_stalled(Some(Stalled { reason: reason.to_owned(), message: message.to_owned() }));
    idle(board, shutdown).await;
    Ok(Left::Clean)
}

/// Keeps the heart beating until told to stop.
async fn idle(board: &Board, shutdown: &mut watch::Receiver<Shutdown>) {
    /// Well below the limit of liveness.
    const BEAT: std::time::Duration = std::time::Duration::from_secs(1);
    loop {
        board.heartbeat();
        tokio::select! {
            biased;
            told = shutdown.wait_for(|level| *level != Shutdown::Run) => {
                let _ = told;
                return;
            }
            () = tokio::time::sleep(BEAT) => {}
        }
    }
}
