//! Real processes of the product under a program's control: started from a configuration, measured, killed, started again.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use connector_crds::{
    ConnectorIdentity, DeliverySpec, Paths, Protocol, RuntimeConfig, SinkSpec, SourceSpec, StorageSpec,
    WallarooSpec,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use wallaroo_endpoint::EndpointConfig;

use crate::http;

/// Longest wait for a process to be there, and to be gone; a busy machine needs several times the usual 20 ms.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(5);

/// Clock ticks a second in `/proc/PID/stat`: fixed in Linux' interface to programs, whatever the kernel counts with.
const TICKS_PER_SECOND: f64 = 100.0;

/// Waits until a condition holds, and says what was waited for when it does not in time.
///
/// # Errors
/// After `limit`, or when the condition cannot be looked at.
pub fn wait_for(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !holds().with_context(|| what.to_owned())? {
        ensure!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A port of the loopback interface that nobody has now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A child process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a command; its standard error is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Process> {
        let log = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Process { child, name: name.to_owned() })
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails when the process is over.
    ///
    /// # Errors
    /// With its exit status.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}", self.name),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Processor time that all threads used so far, in seconds (`/proc/PID/stat`, to 10 ms).
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // Behind the name in parentheses: state is field 3, utime 14, stime 15.
        let (_, tail) = stat.rsplit_once(')').context("no name in stat")?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let ticks = |field: usize| {
            fields.get(field - 3).context("stat is short").and_then(|text| Ok(text.parse::<f64>()?))
        };
        Ok((ticks(14)? + ticks(15)?) / TICKS_PER_SECOND)
    }

    /// Resident memory at its peak, in bytes (`VmHWM`).
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak_rss(&self) -> anyhow::Result<u64> {
        self.status_bytes("VmHWM:")
    }

    /// Resident memory now, in bytes (`VmRSS`).
    ///
    /// # Errors
    /// When the process is gone.
    pub fn rss(&self) -> anyhow::Result<u64> {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, field: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no memory in status")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Over already: nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One end of a connector at Wallaroo's side.
#[derive(Clone, Debug)]
pub enum Wallaroo {
    /// A source dials this address.
    Connect(String),
    /// A sink listens on this port.
    Listen(u16),
}

/// What a connector moves from or to.
#[derive(Clone, Debug)]
pub enum System {
    /// Records come from here.
    Source(SourceSpec),
    /// Records go there.
    Sink(SinkSpec),
}

/// A `connector-runtime run` that may be killed and started again on the same state.
#[derive(Debug)]
pub struct Runtime {
    binary: PathBuf,
    directory: PathBuf,
    name: String,
    process: Process,
    /// Where its admin server listens.
    pub admin: String,
}

/// The whole configuration of a runtime whose files lie below `directory`; what nothing is said about has its default.
///
/// # Errors
/// When a field does not fit.
pub fn runtime_config(
    name: &str,
    directory: &Path,
    system: System,
    protocol: Protocol,
    wallaroo: &Wallaroo,
) -> anyhow::Result<RuntimeConfig> {
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let mut end = json!({"protocol": protocol});
    let plain_sink = matches!((&system, protocol), (System::Sink(_), Protocol::FramedTCP));
    match wallaroo {
        Wallaroo::Connect(address) => end["connect"] = json!([address]),
        Wallaroo::Listen(port) => end["listen"] = json!(port),
    }
    if plain_sink {
        end["sinkFraming"] = json!({"lengthPrefixed": {}});
    }
    let wallaroo: WallarooSpec = serde_json::from_value(end)?;
    let (source, sink) = match system {
        System::Source(source) => (Some(source), None),
        System::Sink(sink) => (None, Some(sink)),
    };
    Ok(RuntimeConfig {
        identity: ConnectorIdentity { namespace: "tests".into(), name: name.into(), epoch: String::new() },
        source,
        sink,
        wallaroo,
        delivery: DeliverySpec::default(),
        storage: StorageSpec::default(),
        paths: Paths {
            secrets: path("secrets"),
            state: path("state"),
            live: path("live.json"),
            base: path(""),
            socket: String::new(),
        },
        admin: "127.0.0.1:0".into(),
        drain_timeout_seconds: 10,
    })
}

impl Runtime {
    /// Writes the configuration below `directory` and starts; returns when the admin server answers.
    ///
    /// # Errors
    /// When it does not within [`PATIENCE`].
    pub fn start(binary: &Path, directory: &Path, config: &RuntimeConfig) -> anyhow::Result<Runtime> {
        for name in ["secrets", "state"] {
            fs::create_dir_all(directory.join(name))?;
        }
        fs::write(directory.join("config.json"), serde_json::to_vec_pretty(config)?)?;
        let name = config.identity.name.clone();
        let process = spawn_runtime(binary, directory, &name)?;
        let mut runtime = Runtime {
            binary: binary.to_owned(),
            directory: directory.to_owned(),
            name,
            process,
            admin: String::new(),
        };
        runtime.find()?;
        Ok(runtime)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log so far, over all starts.
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// SIGKILL and a new start on what the killed one left.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = spawn_runtime(&self.binary, &self.directory, &self.name)?;
        self.find()
    }

    /// `GET /status`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> anyhow::Result<Value> {
        http::get_json(&self.admin, "/status")
    }

    /// Waits for `/readyz`.
    ///
    /// # Errors
    /// When it is not ready within [`PATIENCE`], with its last reason.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let what = format!("{} is ready", self.name);
        let (admin, log) = (self.admin.clone(), self.log());
        wait_for(&what, PATIENCE, || {
            self.process.alive()?;
            Ok(http::get(&admin, "/readyz").is_ok())
        })
        .with_context(|| format!("see {}", log.display()))
    }

    fn find(&mut self) -> anyhow::Result<()> {
        let file = self.directory.join("admin");
        let log = self.log();
        let what = format!("{} starts", self.name);
        wait_for(&what, PATIENCE, || {
            self.process.alive()?;
            Ok(file.exists())
        })
        .with_context(|| fs::read_to_string(log).unwrap_or_default())?;
        self.admin = fs::read_to_string(file)?;
        Ok(())
    }
}

fn spawn_runtime(binary: &Path, directory: &Path, name: &str) -> anyhow::Result<Process> {
    let admin = directory.join("admin");
    if admin.exists() {
        fs::remove_file(&admin)?;
    }
    let mut command = Command::new(binary);
    command
        .arg("run")
        .arg("--config")
        .arg(directory.join("config.json"))
        .arg("--admin-address-file")
        .arg(admin)
        .args(["--instance", &format!("{name}-0")])
        .stdout(Stdio::null());
    Process::start(name, &mut command, &directory.join("log"))
}

/// A `wallaroo-endpoint` that may be killed and started again on the same state.
#[derive(Debug)]
pub struct Endpoint {
    binary: PathBuf,
    directory: PathBuf,
    process: Process,
    /// Addresses of its sources, in the order of the configuration.
    pub sources: Vec<String>,
    /// Where its status server listens.
    pub admin: String,
}

impl Endpoint {
    /// Writes the configuration below `directory` and starts; returns when it listens. A source that is to be found again
    /// after a kill needs a port in the configuration.
    ///
    /// # Errors
    /// When it does not listen within [`PATIENCE`].
    pub fn start(binary: &Path, directory: &Path, config: &EndpointConfig) -> anyhow::Result<Endpoint> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("endpoint.json"), serde_json::to_vec_pretty(config)?)?;
        let (process, sources, admin) = spawn_endpoint(binary, directory)?;
        Ok(Endpoint { binary: binary.to_owned(), directory: directory.to_owned(), process, sources, admin })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGKILL and a new start on what the killed one left.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        (self.process, self.sources, self.admin) = spawn_endpoint(&self.binary, &self.directory)?;
        Ok(())
    }

    /// `GET /status`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> anyhow::Result<wallaroo_endpoint::Status> {
        Ok(serde_json::from_str(&http::get(&self.admin, "/status")?)?)
    }

    /// `POST path`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn post(&self, path: &str) -> anyhow::Result<()> {
        http::post(&self.admin, path).map(drop)
    }
}

fn spawn_endpoint(binary: &Path, directory: &Path) -> anyhow::Result<(Process, Vec<String>, String)> {
    let log = directory.join("endpoint.log");
    let mut command = Command::new(binary);
    command
        .arg("--config")
        .arg(directory.join("endpoint.json"))
        .args(["--admin", "127.0.0.1:0"])
        .stdout(Stdio::piped());
    let mut process = Process::start("wallaroo-endpoint", &mut command, &log)?;
    let stdout = process.child.stdout.take().context("no standard output")?;
    let mut first = String::new();
    // The second and last line comes at a graceful end, which nobody waits for.
    BufReader::new(stdout).read_line(&mut first)?;
    let said: Value = serde_json::from_str(&first).with_context(|| {
        format!("wallaroo-endpoint does not listen: {}", fs::read_to_string(&log).unwrap_or_default())
    })?;
    let sources = said["sources"].as_array().context("no sources")?;
    let sources =
        sources.iter().map(|source| source["address"].as_str().unwrap_or_default().to_owned()).collect();
    Ok((process, sources, format!("127.0.0.1:{}", said["admin_port"])))
}
