//! Delivery: bounds, what happens to bad records, and the state volume.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How records are handed over.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct DeliverySpec {
    /// Bound on what is read but not acknowledged.
    pub in_flight: InFlight,
    /// What happens to a record that can never be delivered.
    pub on_error: OnError,
    /// Where such records go; with `onError: DeadLetter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetter>,
    /// Milliseconds that a record must have been acknowledged by TCP before its position is committed (plain framings).
    #[schemars(range(min = 0, max = 600_000))]
    pub commit_delay_ms: i32,
    /// What happens to a voted, undecided transaction of an earlier cluster.
    pub on_in_doubt: OnInDoubt,
}

impl Default for DeliverySpec {
    fn default() -> Self {
        DeliverySpec {
            in_flight: InFlight::default(),
            on_error: OnError::default(),
            dead_letter: None,
            commit_delay_ms: 1_000,
            on_in_doubt: OnInDoubt::default(),
        }
    }
}

/// Bound on what is read but not acknowledged.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct InFlight {
    /// Records.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub records: i32,
    /// Bytes.
    #[schemars(range(min = 1_024, max = 4_294_967_296_i64))]
    pub bytes: i64,
}

impl Default for InFlight {
    fn default() -> Self {
        InFlight { records: 1_000_000, bytes: 16_777_216 }
    }
}

/// What happens to a record that can never be delivered.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum OnError {
    /// The stream stops at it, and the status says so.
    #[default]
    Stop,
    /// It is dropped and counted.
    Drop,
    /// It goes to `deadLetter`, durably, before the position moves past it.
    DeadLetter,
}

/// What happens to a voted, undecided transaction of an earlier cluster.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum OnInDoubt {
    /// Deliver it: loses nothing, may repeat.
    #[default]
    Deliver,
    /// Keep it and report it.
    Hold,
    /// Drop it and count it.
    Discard,
}

/// Where records go that can never be delivered; exactly one field is set.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum DeadLetter {
    /// One JSON object a line, appended to a file.
    File {
        /// Path of the file; under `local` relative to the manifest's directory.
        #[schemars(length(min = 1, max = 4096))]
        path: String,
    },
}

/// The state volume: transaction log, identity.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Bytes of decided but undelivered records at which reading stops; absent: 1 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576))]
    pub backlog_bytes: Option<i64>,
}
