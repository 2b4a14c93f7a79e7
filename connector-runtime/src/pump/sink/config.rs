//! What a sink pump is told at its start, and why it can end early.

use std::io;
use std::path::PathBuf;

use connector_crds::{OnError, OnInDoubt, Protocol, RuntimeConfig, SinkFraming, SinkSpec};
use tokio::time::Duration;

use crate::board::AckMode;
use crate::pump::source::CookieFrom;
use crate::secret::Secrets;
use crate::state_volume::{Identity, StateVolumeError};
use crate::txn_log::{LogError, Retain};

/// Decided and undelivered bytes at which reading stops, when the manifest does not say.
const DEFAULT_BACKLOG_BYTES: u64 = 1_073_741_824;

/// See [`SinkPumpConfig::no_checkpoints_after`].
const NO_CHECKPOINTS_AFTER: Duration = Duration::from_secs(30);

/// Settings of a sink pump.
#[derive(Clone, Debug)]
pub struct SinkPumpConfig {
    /// Whose the state volume is.
    pub identity: Identity,
    /// Directory of the state volume; exists.
    pub state: PathBuf,
    /// Wire protocol.
    pub protocol: Protocol,
    /// How `FramedTCP` output is split into records.
    pub framing: SinkFraming,
    /// Cookie of the `Connector` protocol.
    pub cookie: CookieFrom,
    /// Address to listen on, `host:port`; port 0 for any.
    pub listen: String,
    /// What happens to a record that the target refuses.
    pub on_error: OnError,
    /// What happens to a voted, undecided transaction of an ended cluster.
    pub on_in_doubt: OnInDoubt,
    /// Whether output is delivered at its commit, or at its receipt because the cluster has no checkpoints.
    pub ack_mode: AckMode,
    /// `Connector`: decided and undelivered bytes at which reading stops.
    pub backlog_bytes: u64,
    /// `Connector`: how long delivered output is kept, should the target go back.
    pub retain: Retain,
    /// Plain framings: bytes read and not delivered at which reading stops.
    pub queue_bytes: u64,
    /// `Connector`: output without any phase 1 after which missing checkpoints are reported; they come about once a second.
    pub no_checkpoints_after: Duration,
    /// Longest drain after SIGTERM.
    pub drain_timeout: Duration,
}

impl SinkPumpConfig {
    /// The settings that a rendered configuration asks for. `None` when it is not a sink's.
    pub fn new(config: &RuntimeConfig, secrets: &Secrets) -> Option<SinkPumpConfig> {
        let system = match config.sink.as_ref()? {
            SinkSpec::Custom(_) => "custom",
            SinkSpec::File(_) => "file",
            SinkSpec::Kafka(_) => "kafka",
            SinkSpec::Redis(_) => "redis",
            SinkSpec::Stdout(_) => "stdout",
            SinkSpec::Udp(_) => "udp",
        };
        let wallaroo = &config.wallaroo;
        let delivery = &config.delivery;
        Some(SinkPumpConfig {
            identity: Identity::new(&config.identity, system, wallaroo.protocol),
            state: PathBuf::from(&config.paths.state),
            protocol: wallaroo.protocol,
            framing: wallaroo.sink_framing.unwrap_or(SinkFraming::Lines {}),
            cookie: match &wallaroo.cookie {
                Some(reference) => {
                    CookieFrom::Secret { secrets: secrets.clone(), reference: reference.clone() }
                }
                None => CookieFrom::Default,
            },
            listen: format!("0.0.0.0:{}", wallaroo.listen.unwrap_or(0)),
            on_error: delivery.on_error,
            on_in_doubt: delivery.on_in_doubt,
            ack_mode: match delivery.ack_mode {
                connector_crds::AckMode::Checkpoint => AckMode::Checkpoint,
                connector_crds::AckMode::OnReceipt => AckMode::OnReceipt,
            },
            backlog_bytes: config
                .storage
                .backlog_bytes
                .and_then(|bytes| u64::try_from(bytes).ok())
                .unwrap_or(DEFAULT_BACKLOG_BYTES),
            retain: Retain {
                time: Duration::from_secs(u64::try_from(config.storage.retain_seconds).unwrap_or(0)),
                bytes: u64::try_from(config.storage.retain_bytes).unwrap_or(0),
            },
            queue_bytes: u64::try_from(delivery.in_flight.bytes).unwrap_or(1).max(1),
            no_checkpoints_after: NO_CHECKPOINTS_AFTER,
            drain_timeout: Duration::from_secs(u64::from(config.drain_timeout_seconds)),
        })
    }
}

/// How a sink pump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkOutcome {
    /// Everything decided (plain framings: everything received) was delivered and is durable at the target.
    Drained,
    /// Left earlier. Over `Connector` the rest stays in the transaction log; over the plain framings it is lost.
    GivenUp {
        /// Records received and not durable at the target.
        records: u64,
    },
}

/// What no retry can mend. The process ends with it and recovers from disk when it is started again.
#[derive(Debug, thiserror::Error)]
pub enum SinkPumpError {
    /// The port cannot be bound.
    #[error("wallaroo.listen: cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        cause: io::Error,
    },
    /// The transaction log failed, e.g. its sync: nothing that depends on it was promised to anyone.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state volume failed.
    #[error(transparent)]
    Volume(#[from] StateVolumeError),
}
