//! The source pump between a scripted system and a worker's endpoint on real sockets.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod harness;
mod plain;
mod policies;
mod raw;
mod resume;
mod scripted;
mod sessions;
mod shutdown;
mod streams;
mod worker;
