//! The endpoint on real loopback sockets, against scripted peers.

mod faults;
mod membership;
mod peers;
mod plain;
mod process;
mod rollback;
mod sink;
mod source;
