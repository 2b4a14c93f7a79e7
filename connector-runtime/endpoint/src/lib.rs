//! A stand-in Wallaroo worker: source and sink endpoints, checkpoints, two-phase commit, fault plans.
//!
//! It does what a worker of Wallaroo's last master does on the wire, so that connectors can be run and tested without
//! Wallaroo. Section numbers (§) are those of the protocol's specification.

pub mod application;
pub mod config;
pub mod faults;
pub mod status;

pub use config::{ConfigError, EndpointConfig};
pub use faults::FaultPlan;
pub use status::Status;
