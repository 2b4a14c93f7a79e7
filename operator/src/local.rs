//! `local`: the manifests of a cluster on one machine, one supervised runtime a Connector.
//!
//! [`plan`] decides everything (pure); [`directory`] writes the files; [`process`] keeps the processes; [`status`]
//! asks them; [`ending`] decides when to go on to the next stage (pure); [`view`] and [`summary`] make text (pure);
//! [`screen`] prints it; [`run`] is the loop that joins them.

pub mod directory;
pub mod embedded;
pub mod ending;
pub mod plan;
pub mod ports;
pub mod process;
pub mod run;
pub mod screen;
pub mod status;
pub mod summary;
pub mod view;

pub use run::{Options, Outcome, Wallaroo, run};
