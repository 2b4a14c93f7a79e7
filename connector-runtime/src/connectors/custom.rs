//! Custom connectors: a user's own process beside the runtime, in any language, over a Unix socket.
//!
//! The runtime listens, the process dials; `docs/custom-protocol.md` is the specification of what they say to each other. Sessions,
//! resume, back-pressure, retries, logs, metrics and status stay with the runtime. [`guest`] is the other side for those who
//! write theirs in Rust.

pub mod frame;
pub mod guest;
mod link;
mod sink;
mod source;

pub use link::Hello;
pub use sink::CustomSink;
pub use source::CustomSource;

/// Version of the protocol.
pub const VERSION: u32 = 1;

/// Environment variable that tells the process the path of the socket.
pub const SOCKET_VARIABLE: &str = "WALLAROO_CONNECTOR_SOCKET";

/// Environment variable that tells the process the directory of its Secrets: `<directory>/<name>/<key>`.
pub const SECRETS_VARIABLE: &str = "WALLAROO_CONNECTOR_SECRETS";

/// Reason of the status where the process says that somebody has to change something.
const FAILED: &str = "CustomConnectorFailed";
