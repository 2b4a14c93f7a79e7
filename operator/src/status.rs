//! What a Connector's status says: pure, from what was desired, what is observed and what the runtimes say.
//!
//! The rules that tools rely on (kstatus): `Reconciling` and `Stalled` are there only while they are true, never both, and
//! neither while `Ready` is true; everything speaks of the generation that it names.

pub mod compute;
pub mod conditions;
mod ends;
pub mod notices;
pub mod pods;
pub mod reason;

pub use compute::{Facts, Progress, Workload, announce, compute};
pub use pods::{PodFacts, PodTrouble};
pub use reason::{ConditionType, Reason};

#[cfg(test)]
mod tests;
