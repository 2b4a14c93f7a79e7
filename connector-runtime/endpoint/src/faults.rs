//! Misbehaviour on demand: what the endpoint does wrong, and when. Reads from JSON; may be replaced while running.

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// Smallest and largest piece of a split write in bytes.
const SPLIT_RANGE: std::ops::RangeInclusive<usize> = 1..=65_536;

/// A plan of faults. Counters (`refuse_notify`, …) run down; thresholds (`…_after_records`) fire once, when the
/// cluster has processed that many records since the plan was set.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct FaultPlan {
    /// Answer the next n NOTIFYs with `false`.
    pub refuse_notify: u32,
    /// Never answer the next n NOTIFYs.
    pub ignore_notify: u32,
    /// Close the next n source connections without a byte, as a worker does while it recovers.
    pub close_on_accept: u32,
    /// Accept source connections and stay silent: nothing is read, nothing is answered.
    pub silent: bool,
    /// Hold the answer to HELLO back for this time.
    pub delay_ok_ms: u64,
    /// Refuse every HELLO as if its cookie were wrong.
    pub reject_cookie: bool,
    /// Stop reading sources after n records, until told to resume.
    pub stall_after_records: Option<u64>,
    /// Close the source connection that carries record n (bare FIN).
    pub close_after_records: Option<u64>,
    /// Answer record n with ERROR and close.
    pub error_after_records: Option<ErrorAfter>,
    /// Send RESTART on the connection that carries record n.
    pub restart_after_records: Option<RestartAfter>,
    /// Roll the cluster back at record n.
    pub rollback_after_records: Option<u64>,
    /// Close the next n connections to connector sinks right behind their intro, as a worker does around a rollback.
    pub close_after_intro: u32,
    /// At the next n first phases: send PHASE1 and close the sink connection before its vote is read.
    pub drop_before_vote: u32,
    /// At the next n complete votes: the checkpoint completes, and the sink connections close instead of PHASE2.
    pub lose_decision: u32,
    /// At the next n complete votes: the checkpoint is aborted, as if another sink had voted no.
    pub abort_after_vote: u32,
    /// Write at most this many bytes at once to source connections and sinks.
    pub split_writes: Option<usize>,
    /// Start no checkpoint (after the first one, without which no source is read).
    pub no_checkpoints: bool,
}

/// ERROR at a record.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ErrorAfter {
    /// Number of the record.
    pub records: u64,
    /// Text of the ERROR frame.
    pub message: String,
}

/// RESTART at a record.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RestartAfter {
    /// Number of the record.
    pub records: u64,
    /// Address in the RESTART frame; empty for "same endpoint again".
    pub address: String,
    /// Close after it, as a worker does after a rollback; otherwise the client must, as after a shrink.
    #[serde(default)]
    pub close: bool,
}

impl FaultPlan {
    /// Refuses what cannot be done, naming the field.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field: &str, reason: &str| {
            Err(ConfigError::Field { field: format!("faults.{field}"), reason: reason.to_owned() })
        };
        if self.split_writes.is_some_and(|size| !SPLIT_RANGE.contains(&size)) {
            return refuse("split_writes", "must be between 1 and 65536 bytes");
        }
        if self.error_after_records.as_ref().is_some_and(|error| error.message.len() > 1_000) {
            return refuse("error_after_records.message", "must have at most 1000 bytes");
        }
        if self.restart_after_records.as_ref().is_some_and(|restart| restart.address.len() > 1_000) {
            return refuse("restart_after_records.address", "must have at most 1000 bytes");
        }
        Ok(())
    }
}
