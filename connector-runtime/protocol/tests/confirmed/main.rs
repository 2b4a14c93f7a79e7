//! Facts observed on a running worker (§8) and the tables of §4.5, §4.6 and §4.9, as behaviour of the machines.

#![allow(clippy::unwrap_used)] // a test file

mod sink;
mod source;
#[path = "../support/mod.rs"]
mod support;
