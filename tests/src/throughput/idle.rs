//! What the runtime costs when nothing moves: memory, time from start to ready, size on disk.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use connector_crds::{Protocol, SourceSpec};
use wallaroo_endpoint::EndpointConfig;
use wallaroo_endpoint::config::{SourceConfig, SourceProtocol};

use crate::processes::{Endpoint, Runtime, System, Wallaroo, runtime_config};

/// How long an idle runtime is watched; what it does once after its start is over by then.
const WATCHED: Duration = Duration::from_secs(5);

/// Resident memory and processor time of an idle runtime, and how long it took to be ready.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Bytes.
    pub rss: u64,
    /// From the start of the process to the first 200 of `/readyz`, connected at both ends.
    pub start_to_ready: Duration,
    /// Share of one processor in use while idle.
    pub cpu: f64,
}

/// Starts a runtime on `source`, which has nothing to give, over `Connector`.
///
/// # Errors
/// When it does not get ready.
pub fn measure(
    binaries: (&Path, &Path),
    directory: &Path,
    name: &str,
    source: SourceSpec,
) -> anyhow::Result<Idle> {
    let (runtime, endpoint) = binaries;
    let sources = vec![SourceConfig::new("in", "127.0.0.1:0", SourceProtocol::connector())];
    let endpoint = Endpoint::start(
        endpoint,
        &directory.join("endpoint"),
        &EndpointConfig { sources, ..EndpointConfig::default() },
    )?;
    let directory = directory.join(name);
    let wallaroo = Wallaroo::Connect(endpoint.sources[0].clone());
    let config = runtime_config(name, &directory, System::Source(source), Protocol::Connector, &wallaroo)?;
    let begun = Instant::now();
    let mut runtime = Runtime::start(runtime, &directory, &config)?;
    runtime.wait_ready()?;
    let start_to_ready = begun.elapsed();
    let before = runtime.process().cpu_seconds()?;
    std::thread::sleep(WATCHED);
    let cpu = (runtime.process().cpu_seconds()? - before) / WATCHED.as_secs_f64();
    Ok(Idle { rss: runtime.process().rss()?, start_to_ready, cpu })
}

/// Bytes of a binary without symbols.
///
/// # Errors
/// When `strip` is missing.
pub fn stripped_size(binary: &Path, directory: &Path) -> anyhow::Result<u64> {
    let copy = directory.join("stripped");
    let status = Command::new("strip")
        .arg("-o")
        .arg(&copy)
        .arg(binary)
        .status()
        .context("strip (of binutils) is missing")?;
    ensure!(status.success(), "strip: {status}");
    let size = fs::metadata(&copy)?.len();
    fs::remove_file(copy)?;
    Ok(size)
}
