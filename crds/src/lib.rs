//! The `Connector` resource: API types, the rules they obey, and what the operator hands to the runtime.
//!
//! `connectors.yaml` beside this crate is generated from these types by the `crdgen` binary; a test compares.

mod connector;
mod delivery;
mod runtime_config;
mod secret;
mod sink;
mod source;
pub mod systems;
mod wallaroo;

pub use connector::{Connector, ConnectorSpec, ConnectorStatus, State};
pub use delivery::{DeadLetter, DeliverySpec, InFlight, OnError, OnInDoubt, StorageSpec};
pub use runtime_config::{ConnectorIdentity, LiveConfig, Paths, RuntimeConfig};
pub use secret::SecretKeyRef;
pub use sink::SinkSpec;
pub use source::SourceSpec;
pub use wallaroo::{ByteOrder, FramingSpec, HeaderWidth, Protocol, SinkFraming, WallarooSpec};

/// API group of the resource.
pub const GROUP: &str = "connectors.wallaroolabs.com";
/// API version of the resource.
pub const VERSION: &str = "v1alpha1";
