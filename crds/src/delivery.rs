//! Delivery: bounds, what happens to bad records, and the state volume.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{self, Rules};
use crate::union::exactly_one;

/// How records are handed over.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = Rules(&[&rules::DEAD_LETTER_WITH_ON_ERROR]))]
pub struct DeliverySpec {
    /// Bound on what is read but not acknowledged.
    pub in_flight: InFlight,
    /// What happens to a record that can never be delivered.
    pub on_error: OnError,
    /// Where such records go; with `onError: DeadLetter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetter>,
    /// Milliseconds since TCP acknowledged a record before its position is committed, where receipt is all there is.
    #[schemars(range(min = 0, max = 600_000))]
    pub commit_delay_ms: i32,
    /// What a sink over `Connector` does with a voted, undecided transaction of an earlier cluster.
    pub on_in_doubt: OnInDoubt,
    /// What counts as acknowledged over `Connector`; `OnReceipt` only for clusters that make no checkpoints.
    pub ack_mode: AckMode,
}

impl Default for DeliverySpec {
    fn default() -> Self {
        DeliverySpec {
            in_flight: InFlight::default(),
            on_error: OnError::default(),
            dead_letter: None,
            commit_delay_ms: 1_000,
            on_in_doubt: OnInDoubt::default(),
            ack_mode: AckMode::default(),
        }
    }
}

/// Bound on what is read but not acknowledged.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct InFlight {
    /// Records that may be read and not acknowledged; with more, the external system has to wait.
    #[schemars(range(min = 1, max = 100_000_000), extend("x-unit" = "records"))]
    pub records: i32,
    /// Key and payload bytes that may be read and not acknowledged; with more, the external system has to wait.
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

/// What counts as acknowledged over `Connector`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum AckMode {
    /// Wallaroo's checkpoint: sources commit at its acknowledgement, sinks deliver at its decision.
    #[default]
    Checkpoint,
    /// Reception, for a cluster without resilience: sources commit like over `FramedTCP`, sinks deliver at once.
    OnReceipt,
}

/// Where records go that can never be delivered; exactly one field is set.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = exactly_one)]
pub enum DeadLetter {
    /// One JSON object a line, appended to a file.
    File {
        /// Path of the file; under `local` relative to the manifest's directory.
        #[schemars(length(min = 1, max = 4096))]
        path: String,
    },
}

/// The state volume: transaction log, identity.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageSpec {
    /// Bytes of decided but undelivered records at which reading stops; absent: 1 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576, max = 1_125_899_906_842_624_i64))]
    pub backlog_bytes: Option<i64>,
    /// Seconds that delivered records stay in the log, for a target that goes back; whichever of time and bytes is used up first ends it.
    #[schemars(range(min = 0, max = 86_400))]
    pub retain_seconds: i32,
    /// Bytes of delivered records that stay in the log, for a target that goes back.
    #[schemars(range(min = 0, max = 1_125_899_906_842_624_i64))]
    pub retain_bytes: i64,
}

/// What a Redis with `appendfsync everysec` or an asynchronous replica loses at most is younger than this.
const RETAIN_SECONDS: i32 = 30;

/// Bounds what `RETAIN_SECONDS` may take of the volume.
const RETAIN_BYTES: i64 = 64 * 1024 * 1024;

impl Default for StorageSpec {
    fn default() -> Self {
        StorageSpec { backlog_bytes: None, retain_seconds: RETAIN_SECONDS, retain_bytes: RETAIN_BYTES }
    }
}
