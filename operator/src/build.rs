//! From a valid Connector to what is carried out: pure, without clock, files or network.

mod runtime_config;

pub use runtime_config::{Placement, live_config, runtime_config};
