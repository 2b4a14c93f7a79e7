//! The whole data path under one seeded scheduler: simulated network, simulated disks, a model of the external system.
//!
//! Every run is decided by its seed: the network's delays, the faults and their times, the random numbers of the code
//! under test. A failure prints the seed, and the same seed gives the same run.

pub mod disk;
pub mod env;
pub mod random;
