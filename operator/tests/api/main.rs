//! The operator as a process beside a real Kubernetes API server with its controllers: `./tasks api` runs these.
//!
//! No node: a task plays the kubelet. Each test has a namespace and an operator of its own.

#![allow(clippy::unwrap_used, reason = "what a test reads is known; a panic is a failed test")]

mod campaign;
mod cluster;
mod election;
mod fields;
mod kubelet;
mod lifecycle;
mod operator;
mod ownership;
mod renderings;
mod scale;
mod steady;
mod storage;
