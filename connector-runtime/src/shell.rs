//! The process around a pump: arguments, files, threads, signals, admin server.
//!
//! Two threads with a single-threaded runtime each: the pump has one to itself, for it writes and syncs files; the
//! other serves the admin port and watches signals, Secrets and the live file.

pub mod admin;
pub mod args;
pub mod config;
pub mod live;
pub mod metrics;
pub mod readiness;
pub mod telemetry;
