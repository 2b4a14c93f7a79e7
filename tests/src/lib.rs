//! Harness shared by the tests, fault programs and benchmarks of the workspace.

pub mod binaries;
pub mod conformance;
pub mod fake_redis;
pub mod sim;
