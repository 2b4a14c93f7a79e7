//! Properties of the codecs and sessions under random input: splits, garbage, round trips, and random peers against each other.

#![allow(clippy::unwrap_used)] // a test file

mod codecs;
mod sink_world;
mod source_world;
#[path = "../support/mod.rs"]
mod support;
