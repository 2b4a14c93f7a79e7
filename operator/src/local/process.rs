//! One supervised process: started, restarted with back-off, drained, and in the end killed.

mod lines;
mod restart;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

pub use lines::LogLine;
use restart::{Next, Restarts};

/// How long a process may take beyond its own drain timeout before it is killed.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// Name for people.
    pub name: String,
    /// The binary.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// File in which the process says where it listens: written by itself, or its standard output. Made anew with each
    /// start, so that nothing stale is read.
    pub address_file: PathBuf,
    /// Whether the standard output goes to `address_file`; otherwise it is ours.
    pub address_on_stdout: bool,
    /// How long the process takes at most to end after SIGTERM.
    pub drain_timeout: Duration,
}

/// What is asked of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// That it runs.
    Run,
    /// That it ends by itself.
    Drain,
    /// That it is gone.
    Kill,
}

/// How a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs.
    Running,
    /// It ended, and will be started again.
    Restarting {
        /// How it ended.
        ended: String,
    },
    /// It ended and stays so; `None` when it ended as it should.
    Over {
        /// Why that is a failure.
        failure: Option<String>,
    },
}

/// A process and the task that keeps it.
#[derive(Debug)]
pub struct Process {
    wish: watch::Sender<Wish>,
    state: watch::Receiver<ProcessState>,
    restarts: watch::Receiver<u64>,
    _task: tokio::task::JoinHandle<()>,
}

impl Process {
    /// Starts a process. Its standard error goes to `log`, line by line; its standard output where the
    /// specification says.
    ///
    /// Dropping the returned value kills the process.
    pub fn start(spec: ProcessSpec, log: mpsc::Sender<LogLine>) -> Process {
        let (wish, wishes) = watch::channel(Wish::Run);
        let (states, state) = watch::channel(ProcessState::Running);
        let (counts, restarts) = watch::channel(0);
        let task = tokio::spawn(keep(spec, wishes, states, counts, log));
        Process { wish, state, restarts, _task: task }
    }

    /// Asks for something else; a stronger wish stays.
    pub fn wish(&self, wish: Wish) {
        self.wish.send_if_modified(|current| {
            let stronger = wish > *current;
            *current = wish.max(*current);
            stronger
        });
    }

    /// How it is.
    pub fn state(&self) -> ProcessState {
        self.state.borrow().clone()
    }

    /// Whether it ended for good.
    pub fn is_over(&self) -> bool {
        matches!(*self.state.borrow(), ProcessState::Over { .. })
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u64 {
        *self.restarts.borrow()
    }
}

async fn keep(
    spec: ProcessSpec,
    mut wishes: watch::Receiver<Wish>,
    states: watch::Sender<ProcessState>,
    counts: watch::Sender<u64>,
    log: mpsc::Sender<LogLine>,
) {
    let mut restarts = Restarts::default();
    loop {
        let started = Instant::now();
        let (ended, last_line) = match start(&spec) {
            Ok(mut child) => {
                states.send_replace(ProcessState::Running);
                let stderr = child.stderr.take();
                let (ended, last_line) = tokio::join!(
                    attend(&mut child, &mut wishes, spec.drain_timeout),
                    lines::forward(stderr, &spec.name, &log)
                );
                (ended, last_line)
            }
            Err(cause) => (Ended::NotStarted(spec.program.clone(), cause), String::new()),
        };
        let wanted = *wishes.borrow() == Wish::Run;
        match restarts.after(&ended, wanted, started.elapsed()) {
            Next::Over => {
                states.send_replace(ProcessState::Over { failure: None });
                return;
            }
            Next::Failed => {
                let failure = if last_line.is_empty() {
                    format!("{}: {ended}", spec.name)
                } else {
                    format!("{}: {ended}: {last_line}", spec.name)
                };
                states.send_replace(ProcessState::Over { failure: Some(failure) });
                return;
            }
            Next::Restart(pause) => {
                states.send_replace(ProcessState::Restarting { ended: ended.to_string() });
                tracing::warn!(process = %spec.name, %ended, ?pause, "Process ended, starting it again.");
                let until = Instant::now() + pause;
                tokio::select! {
                    biased;
                    () = wished(&mut wishes, Wish::Drain) => {
                        states.send_replace(ProcessState::Over { failure: None });
                        return;
                    }
                    () = sleep_until(until) => counts.send_modify(|count| *count += 1),
                }
            }
        }
    }
}

fn start(spec: &ProcessSpec) -> io::Result<Child> {
    match std::fs::remove_file(&spec.address_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let stdout = if spec.address_on_stdout {
        Stdio::from(std::fs::File::create(&spec.address_file)?)
    } else {
        Stdio::inherit()
    };
    Command::new(&spec.program)
        .args(&spec.arguments)
        // Its lines are shown among others, without colours of their own.
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        // Ctrl-C goes to the whole foreground group; the order of ending is decided here.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// How a process ended.
#[derive(Debug)]
enum Ended {
    /// It could not be started.
    NotStarted(PathBuf, io::Error),
    /// The system does not say how it is.
    Lost(io::Error),
    /// It ended by itself, or after being asked.
    Exited(ExitStatus),
    /// It was asked to end and did not in time.
    KilledAfter(Duration),
    /// Killed because that was asked for.
    Killed,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::NotStarted(program, cause) => {
                write!(f, "{} could not be started: {cause}", program.display())
            }
            Ended::Lost(cause) => write!(f, "cannot be waited for: {cause}"),
            Ended::Exited(status) => write!(f, "ended with {status}"),
            Ended::KilledAfter(limit) => {
                write!(f, "did not end within {} s of SIGTERM and was killed", limit.as_secs())
            }
            Ended::Killed => f.write_str("was killed"),
        }
    }
}

/// Waits for the end of a process and passes on what is asked of it.
async fn attend(child: &mut Child, wishes: &mut watch::Receiver<Wish>, drain_timeout: Duration) -> Ended {
    tokio::select! {
        biased;
        status = child.wait() => return ended(status),
        () = wished(wishes, Wish::Drain) => {}
    }
    let limit = drain_timeout + KILL_GRACE;
    if wishes.has_changed().is_ok() && *wishes.borrow() == Wish::Drain {
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It fails only for a process that is gone, which `wait` tells too.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let deadline = Instant::now() + limit;
        tokio::select! {
            biased;
            status = timeout_at(deadline, child.wait()) => {
                if let Ok(status) = status {
                    return ended(status);
                }
                let _ = child.kill().await;
                return Ended::KilledAfter(limit);
            }
            () = wished(wishes, Wish::Kill) => {}
        }
    }
    let _ = child.kill().await;
    Ended::Killed
}

/// Waits until at least `least` is asked for, or nobody can ask any more, which means that the process is to be gone.
async fn wished(wishes: &mut watch::Receiver<Wish>, least: Wish) {
    let _ = wishes.wait_for(|wish| *wish >= least).await;
}

fn ended(status: io::Result<ExitStatus>) -> Ended {
    status.map_or_else(Ended::Lost, Ended::Exited)
}

#[cfg(test)]
mod tests;
