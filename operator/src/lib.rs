//! Reconciles Connector resources into pods, and runs the same manifests on one machine.
//!
//! The way of a Connector: [`manifests`] (or the API server) → [`validate`] (pure) → [`build`] (pure) → what carries it
//! out: [`local`] on one machine, [`controller`] in a cluster.

pub mod apply;
pub mod build;
pub mod controller;
pub mod local;
pub mod manifests;
pub mod names;
pub mod runtime_status;
pub mod secret_references;
pub mod settings;
pub mod status;
pub mod validate;
