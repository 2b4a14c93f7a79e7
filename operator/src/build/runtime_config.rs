//! What the runtime of a Connector reads: `config.json` and `live.json`.

use connector_crds::{LiveConfig, Paths, RuntimeConfig};

use crate::validate::{System, ValidatedConnector};

/// What differs between the places where a runtime runs: a pod, or a process beside others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where the runtime finds and keeps files.
    pub paths: Paths,
    /// Address of the admin server.
    pub admin: String,
    /// Seconds that a drain may take.
    pub drain_timeout_seconds: u32,
}

/// Renders the immutable file.
pub fn runtime_config(connector: &ValidatedConnector, placement: &Placement) -> RuntimeConfig {
    let (source, sink) = match &connector.system {
        System::Source(source) => (Some(source.clone()), None),
        System::Sink(sink) => (None, Some(sink.clone())),
    };
    RuntimeConfig {
        identity: connector.identity.clone(),
        source,
        sink,
        wallaroo: connector.wallaroo.clone(),
        delivery: connector.delivery.clone(),
        storage: connector.storage.clone(),
        paths: placement.paths.clone(),
        admin: placement.admin.clone(),
        drain_timeout_seconds: placement.drain_timeout_seconds,
    }
}

/// Renders the file that takes effect without a restart.
pub fn live_config(connector: &ValidatedConnector, log_level: &str) -> LiveConfig {
    LiveConfig { log_level: log_level.to_owned(), state: connector.state }
}
