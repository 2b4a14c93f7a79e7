//! What the tests of the systems share: a context over a temporary directory.

use std::path::Path;

use connector_crds::{ConnectorIdentity, InFlight};

use super::Context;
use crate::board::Board;
use crate::secret::Secrets;

/// A context whose base, state and Secrets are all below `directory`.
pub(crate) fn context(directory: &Path) -> Context {
    Context {
        identity: ConnectorIdentity {
            namespace: "default".into(),
            name: "test".into(),
            epoch: String::new(),
        },
        base: directory.to_owned(),
        state: directory.join("state"),
        socket: directory.join("socket"),
        secrets: Secrets::new(directory.join("secrets")).0,
        board: Board::new(),
        max_payload_bytes: 16_357,
        in_flight: InFlight::default(),
        stable_positions: true,
    }
}
