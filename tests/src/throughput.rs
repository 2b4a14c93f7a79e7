//! What the program `throughput` is made of: the paths it measures, the raw baselines beside them, and one table.

pub mod baseline;
pub mod delay;
pub mod idle;
pub mod meter;
pub mod paths;
pub mod peers;
pub mod table;
