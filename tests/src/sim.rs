//! The whole data path under one seeded scheduler: simulated network, simulated disks, a model of the external systems.
//!
//! Every run is decided by its seed: the network's delays, the faults and their times, the random numbers of the code
//! under test. A failure prints the seed, and the same seed gives the same run.
//!
//! ```text
//! ModelSource ──► source pump ──► endpoint (checkpoints, two-phase commit) ──► sink pump + transaction log ──► ModelSink
//!    host "source"                   host "wallaroo"                             host "sink"
//! ```

pub mod account;
pub mod disk;
pub mod env;
pub mod faults;
pub mod hosts;
pub mod letters;
pub mod log;
pub mod observer;
pub mod plan;
pub mod random;
pub mod receipts;
pub mod run;
pub mod target;
pub mod trace;
pub mod unsettled;
