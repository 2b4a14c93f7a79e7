//! The chain of real processes: source runtime → endpoint with a state directory → file sink runtime, exactly once.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use connector_crds::{Protocol, SinkSpec};
use serde_json::json;
use wallaroo_endpoint::EndpointConfig;
use wallaroo_endpoint::config::{
    Encoder, ReleasePosition, SinkConfig, SinkProtocol, SourceConfig, SourceProtocol,
};

use super::account::{Account, Seen};
use super::feed::{Feed, Feeding};
use super::tap::Tap;
use crate::processes::{Endpoint, Runtime, System, Wallaroo, free_port, runtime_config};

/// Milliseconds between two checkpoints: several between two kills, and well below the commit delay of a plain source, so that
/// what a rollback takes back is sent again there too.
const CHECKPOINT_MS: u64 = 200;

/// What runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Binary of the runtime.
    pub runtime: PathBuf,
    /// Binary of the endpoint.
    pub endpoint: PathBuf,
    /// Directory for all files; empty.
    pub directory: PathBuf,
    /// Where records come from.
    pub feed: Feed,
    /// Protocol of the source runtime.
    pub protocol: Protocol,
    /// Where the endpoint gives a stream back whose session ended. A real worker does it at its last checkpoint and processes
    /// again what came after (protocol §7.4): a killed source then repeats records whatever the connectors do.
    /// `LastSeen` keeps that apart from what they do.
    pub release: ReleasePosition,
    /// How many records.
    pub records: u64,
    /// Bytes of each.
    pub size: usize,
    /// Records a second; `None`: all are there from the start.
    pub rate: Option<u64>,
}

/// The running chain.
#[derive(Debug)]
pub struct Chain {
    /// Writes the records.
    pub feeding: Feeding,
    /// Reads them and sends them to the endpoint.
    pub source: Runtime,
    /// Stands for Wallaroo.
    pub endpoint: Endpoint,
    /// Writes what comes out into the file.
    pub sink: Runtime,
    /// Sees what the endpoint processes.
    pub tap: Tap,
    plan: Plan,
}

impl Chain {
    /// Starts everything.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(plan: Plan) -> anyhow::Result<Chain> {
        let directory = |name: &str| plan.directory.join(name);
        let tap = Tap::start(plan.records, plan.size)?;
        let feeding = Feeding::start(&plan.feed, &plan.directory, plan.records, plan.size, plan.rate)?;

        let sink_port = free_port()?;
        let spec: SinkSpec = serde_json::from_value(json!({"file": {"path": directory("output.txt")}}))?;
        let sink = runtime_config(
            "sink",
            &directory("sink"),
            System::Sink(spec),
            Protocol::Connector,
            &Wallaroo::Listen(sink_port),
        )?;
        let sink = Runtime::start(&plan.runtime, &directory("sink"), &sink)?;

        let source_port = free_port()?;
        let listens = match plan.protocol {
            Protocol::Connector => SourceProtocol::connector(),
            Protocol::FramedTCP => SourceProtocol::framed(),
            Protocol::Stream05 => SourceProtocol::stream05(),
            Protocol::Stream06 => SourceProtocol::stream06(),
        };
        // Over `Connector` each message is a record.
        let out = SinkConfig::new("out", format!("127.0.0.1:{sink_port}"), SinkProtocol::connector());
        let seen = SinkConfig::new("tap", tap.address.clone(), SinkProtocol::FramedTcp);
        let config = EndpointConfig {
            sources: vec![SourceConfig::new("in", format!("127.0.0.1:{source_port}"), listens)],
            sinks: vec![
                SinkConfig { encoder: Encoder::Raw, retry_ms: Some(CHECKPOINT_MS), ..out },
                SinkConfig { encoder: Encoder::LengthPrefixed, ..seen },
            ],
            checkpoint_interval_ms: CHECKPOINT_MS,
            state_directory: Some(directory("endpoint-state")),
            release_position: plan.release,
            ..EndpointConfig::default()
        };
        std::fs::create_dir_all(directory("endpoint-state"))?;
        let endpoint = Endpoint::start(&plan.endpoint, &directory("endpoint"), &config)?;

        let source = runtime_config(
            "source",
            &directory("source"),
            System::Source(feeding.source.clone()),
            plan.protocol,
            &Wallaroo::Connect(endpoint.sources[0].clone()),
        )?;
        let source = Runtime::start(&plan.runtime, &directory("source"), &source)?;
        Ok(Chain { feeding, source, endpoint, sink, tap, plan })
    }

    /// The file that everything ends in.
    pub fn output(&self) -> PathBuf {
        self.plan.directory.join("output.txt")
    }

    /// About how many lines the file has, by its length.
    pub fn written(&self) -> u64 {
        std::fs::metadata(self.output()).map_or(0, |file| file.len()) / (self.plan.size as u64 + 1)
    }

    /// What the file holds.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn account(&self) -> anyhow::Result<Account> {
        Ok(Seen::in_file(&self.output(), self.plan.records, self.plan.size)?.account())
    }

    /// Fails when a process ended by itself, writing failed, or a connector broke the protocol.
    ///
    /// # Errors
    /// Which.
    pub fn healthy(&mut self) -> anyhow::Result<()> {
        let logs = [self.source.log(), self.sink.log()];
        let alive = self
            .source
            .process()
            .alive()
            .and_then(|()| self.sink.process().alive())
            .and_then(|()| self.endpoint.process().alive());
        alive.with_context(|| logs.map(|log| tail(&log)).join("\n"))?;
        self.feeding.works()?;
        let status = self.endpoint.status()?;
        ensure!(status.violation_count == 0, "violations: {:?}", status.violations);
        Ok(())
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    const LINES: usize = 20;
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
