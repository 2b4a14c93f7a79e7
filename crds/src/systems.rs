//! Configuration of each system, one file a system.

pub mod custom;
pub mod file;
pub mod generator;
pub mod kafka;
pub mod redis;
pub mod split;
pub mod stdout;
pub mod tls;
pub mod udp;
