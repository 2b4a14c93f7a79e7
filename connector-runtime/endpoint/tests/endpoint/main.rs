//! The endpoint on real loopback sockets, against scripted peers.

#![allow(clippy::unwrap_used)] // the whole file is test code, also outside `#[test]` functions
#![allow(clippy::format_collect)] // short expectations, not hot

mod documentation;
mod faults;
mod membership;
mod peers;
mod plain;
mod process;
mod rollback;
mod sink;
mod source;
