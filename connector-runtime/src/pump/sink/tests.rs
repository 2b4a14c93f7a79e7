//! Tests of the sink pump: real sockets, a worker's side of the protocol, a disk and a target that lose what they may lose.

mod bench;
mod flights;
mod fresh;
mod plain;
mod recovery;
mod target;
mod targets;
mod trouble;
mod worker;
