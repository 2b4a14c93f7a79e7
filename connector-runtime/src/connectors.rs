//! The registry: one folder a system, one match arm each.

use std::path::PathBuf;

use connector_crds::ConnectorIdentity;

use crate::board::Board;
use crate::secret::Secrets;

/// What a connector gets beside its own configuration.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who the Connector is.
    pub identity: ConnectorIdentity,
    /// Directory that relative paths are resolved against.
    pub base: PathBuf,
    /// Directory of the state volume, for positions that a system cannot keep itself. It exists and belongs to this
    /// Connector alone.
    pub state: PathBuf,
    /// Mounted Secrets.
    pub secrets: Secrets,
    /// Where drops that only the connector sees (kernel overflow) and its listen address are reported.
    pub board: Board,
    /// Longest payload that Wallaroo takes from a source, in bytes, without key.
    pub max_payload_bytes: usize,
    /// Records and bytes that may be read but not acknowledged: bound of a connector's own prefetch.
    pub in_flight: connector_crds::InFlight,
    /// True where a sink's records keep their positions over reconnects and restarts (the `Connector` protocol), so that
    /// positions stored at the target mean something. With the plain framings positions start over with each connection.
    pub stable_positions: bool,
}
