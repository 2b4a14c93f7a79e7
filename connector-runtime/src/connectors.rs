//! The registry: one folder a system, one match arm each.

use std::path::PathBuf;

use connector_crds::{ConnectorIdentity, SinkSpec, SourceSpec};

use crate::board::Board;
use crate::secret::Secrets;
use crate::sink::Sink;
use crate::source::{Source, SystemError};

/// What a connector gets beside its own configuration.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who the Connector is.
    pub identity: ConnectorIdentity,
    /// Directory that relative paths are resolved against.
    pub base: PathBuf,
    /// Mounted Secrets.
    pub secrets: Secrets,
    /// Where drops that only the connector sees (kernel overflow) and its listen address are reported.
    pub board: Board,
    /// Longest payload that Wallaroo takes from a source, in bytes, without key.
    pub max_payload_bytes: usize,
    /// Records and bytes that may be read but not acknowledged: bound of a connector's own prefetch.
    pub in_flight: connector_crds::InFlight,
}
