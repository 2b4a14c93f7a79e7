//! A stand-in Wallaroo worker: source and sink endpoints, checkpoints, two-phase commit, fault plans.
//!
//! It does what a worker of Wallaroo's last master does on the wire, so that connectors can be run and tested without
//! Wallaroo. Section numbers (§) are those of the protocol's specification.
//!
//! [`Endpoint::start`] runs a whole cluster (one or more workers) in the current tokio runtime; [`Control`] watches it,
//! rolls it back, stalls it, grows and shrinks it, and sets its [`FaultPlan`]. It is generic over
//! [`connector_env::Env`], so the same endpoint runs in a deterministic simulation.

pub mod admin;
pub mod application;
mod cluster;
pub mod config;
mod cookie;
mod driver;
mod endpoint;
pub mod faults;
pub mod status;

pub use cluster::{FILE_NAME, ShrinkError, StateError};
pub use config::{ConfigError, EndpointConfig};
pub use endpoint::{Control, Endpoint, EndpointError};
pub use faults::FaultPlan;
pub use status::Status;
