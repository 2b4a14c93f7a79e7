//! The loop of a run: starts processes, asks them how they are, shows it, and ends them in order.

mod fleet;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use wallaroo_endpoint::config::{Application, ConfigError, EndpointConfig};

use super::directory::{Directory, DirectoryError};
use super::ending::{self, Stage, Step};
use super::plan::{Embedded, PlanError, Settings, plan};
use super::ports::{self, PortError};
use super::process::LogLine;
use super::screen::Screen;
use super::summary;
use crate::manifests::{self, ManifestError};
use fleet::Fleet;

/// How often the processes are asked, and the table is drawn.
const TICK: Duration = Duration::from_millis(250);

/// Lines of processes that wait to be shown; beyond that the processes wait.
const LOG_LINES: usize = 1_024;

/// What to run, from the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files and directories of manifests.
    pub files: Vec<PathBuf>,
    /// Which Wallaroo.
    pub wallaroo: Wallaroo,
    /// Directory of state and run files.
    pub state: PathBuf,
    /// Forget the state of earlier runs.
    pub fresh: bool,
    /// Log level of the runtimes.
    pub log_level: String,
}

/// Which Wallaroo the Connectors meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wallaroo {
    /// The one that the manifests name.
    External,
    /// One that is started here.
    Embedded {
        /// What it does with records, where the manifests decide the rest.
        application: Application,
        /// Its configuration; absent: from the manifests.
        file: Option<PathBuf>,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything finite is through, or somebody asked for the end and it went in order.
    Done,
    /// Something failed, with a sentence each.
    Failed(Vec<String>),
}

/// Why a run did not begin; several sentences where several things are wrong.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The manifests.
    #[error("{}", joined(.0))]
    Manifests(Vec<ManifestError>),
    /// What they ask for together.
    #[error("{}", joined(.0))]
    Plan(Vec<PlanError>),
    /// Ports.
    #[error("{}", joined(.0))]
    Ports(Vec<PortError>),
    /// The configuration of the embedded Wallaroo.
    #[error("{path}: {cause}", path = path.display())]
    WallarooFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: ConfigError,
    },
    /// Files.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Files or signals.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// What came back.
        #[source]
        cause: io::Error,
    },
}

fn joined<E: std::fmt::Display>(errors: &[E]) -> String {
    errors.iter().map(E::to_string).collect::<Vec<_>>().join("\n")
}

/// Runs manifests until everything finite is through, or until SIGINT or SIGTERM; a second one ends at once.
///
/// # Errors
///
/// What keeps the run from beginning; nothing was started then.
pub async fn run(options: &Options) -> Result<Outcome, RunError> {
    let manifests = manifests::read(&options.files).map_err(RunError::Manifests)?;
    let missing = manifests::missing_secrets(&manifests);
    if !missing.is_empty() {
        return Err(RunError::Manifests(missing));
    }
    let working_directory = std::env::current_dir()
        .map_err(|cause| RunError::Io { what: "the working directory".into(), cause })?;
    let settings = Settings {
        state_directory: working_directory.join(&options.state),
        working_directory,
        log_level: options.log_level.clone(),
        embedded: embedded(&options.wallaroo)?,
    };
    let plan = plan(&manifests, &settings, ports::free_port).map_err(RunError::Plan)?;
    let directory = Directory::take(&settings.state_directory, options.fresh)?;
    let taken = ports::check(&plan);
    if !taken.is_empty() {
        return Err(RunError::Ports(taken));
    }
    directory.write(&plan)?;
    let beside = fleet::Binaries::beside_this_one()
        .map_err(|cause| RunError::Io { what: "finding the own binary".into(), cause })?;
    let mut signals = Signals::new().map_err(|cause| RunError::Io { what: "signals".into(), cause })?;
    let (log, lines) = mpsc::channel(LOG_LINES);
    let shared_terminal = plan.runtimes.iter().any(|runtime| runtime.type_name == "StdoutSink");
    let mut screen = Screen::new(shared_terminal);
    for runtime in &plan.runtimes {
        screen.line(&format!("{} ({}): {}", runtime.label, runtime.type_name, runtime.promise));
    }
    let fleet = Fleet::new(&plan, &directory, beside, log);
    let (fleet, mut outcome, screen) = watch(fleet, screen, lines, &mut signals).await;
    finish(&fleet, &mut outcome, screen);
    Ok(if outcome.is_empty() { Outcome::Done } else { Outcome::Failed(outcome) })
}

fn embedded(wallaroo: &Wallaroo) -> Result<Option<Embedded>, RunError> {
    Ok(match wallaroo {
        Wallaroo::External => None,
        Wallaroo::Embedded { application, file: None } => {
            Some(Embedded::Derived { application: *application })
        }
        Wallaroo::Embedded { application: _, file: Some(path) } => {
            let text = std::fs::read_to_string(path)
                .map_err(|cause| RunError::Io { what: path.display().to_string(), cause })?;
            let config = EndpointConfig::from_json(&text)
                .map_err(|cause| RunError::WallarooFile { path: path.clone(), cause })?;
            Some(Embedded::Given(Box::new(config)))
        }
    })
}

/// Takes a run through its stages. Returns what failed.
async fn watch<'a>(
    mut fleet: Fleet<'a>,
    mut screen: Screen,
    mut lines: mpsc::Receiver<LogLine>,
    signals: &mut Signals,
) -> (Fleet<'a>, Vec<String>, Screen) {
    let begin = Instant::now();
    let mut since = begin;
    let mut stage = Stage::StartingSinks;
    let mut failures = Vec::new();
    let mut interrupts = 0;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    fleet.enter(stage);
    loop {
        tokio::select! {
            biased;
            () = signals.next() => {
                interrupts += 1;
                if interrupts == 1 {
                    screen.line("Draining; a second signal ends at once.");
                } else {
                    screen.line("Ending at once.");
                    failures.push("ended at once, without draining".to_owned());
                    fleet.kill();
                    return (fleet, failures, screen);
                }
            }
            _ = ticks.tick() => {
                fleet.look(begin.elapsed()).await;
                failures = fleet.failures(stage);
                let seen = ending::Observation {
                    in_stage: since.elapsed(),
                    interrupted: interrupts > 0,
                    failed: !failures.is_empty(),
                    ..fleet.observation()
                };
                let (to, gave_up) = match ending::next(stage, &seen) {
                    Step::Stay => (stage, false),
                    Step::Go(to) => (to, false),
                    Step::GiveUp(to) => (to, true),
                };
                if gave_up {
                    fleet.fail(format!("gave up waiting for results to reach the sinks ({stage:?})"));
                }
                screen.table_at(begin.elapsed(), fleet.table(), to == Stage::Over);
                if to != stage {
                    tracing::debug!(?stage, ?to, "Next stage.");
                    (stage, since) = (to, Instant::now());
                    fleet.enter(stage);
                }
                if stage == Stage::Over {
                    while let Ok(line) = lines.try_recv() {
                        screen.line(&format!("[{}] {}", line.process, line.text));
                    }
                    let failures = fleet.failures(stage);
                    return (fleet, failures, screen);
                }
            }
            Some(line) = lines.recv() => screen.line(&format!("[{}] {}", line.process, line.text)),
        }
    }
}

fn finish(fleet: &Fleet<'_>, outcome: &mut Vec<String>, mut screen: Screen) {
    let connectors = fleet.connectors();
    let last = summary::Last { connectors: &connectors, wallaroo: fleet.wallaroo() };
    if let Some(status) = last.wallaroo
        && status.violation_count > 0
    {
        outcome.push(format!("{} violations of the protocol", status.violation_count));
    }
    for line in summary::lines(last) {
        screen.line(&line);
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one; cancel-safe.
    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
