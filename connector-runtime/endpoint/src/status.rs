//! What an endpoint has seen, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Snapshot of a running endpoint.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct Status {
    /// The cluster's phase.
    pub phase: Phase,
    /// Names of the workers, in byte order; the first one leads the registry.
    pub workers: Vec<String>,
    /// Source endpoints of every worker.
    pub sources: Vec<SourceStatus>,
    /// Streams that were ever seen, by id in decimal.
    pub streams: BTreeMap<String, StreamStatus>,
    /// Sink links, one per worker and sink.
    pub sinks: Vec<SinkStatus>,
    /// Records taken from sources and processed; repeats are not in it.
    pub records_in: u64,
    /// Payload bytes of those records.
    pub bytes_in: u64,
    /// Records with an id at or below the last one seen, dropped (§3.5).
    pub repeats_dropped: u64,
    /// Results that the application made.
    pub results: u64,
    /// Records that the application could not read, by reason.
    pub bad_input: BTreeMap<String, BadInput>,
    /// Number of the last completed checkpoint; 0 for none.
    pub checkpoint: u64,
    /// Checkpoints completed by this process.
    pub checkpoints_completed: u64,
    /// Checkpoints aborted.
    pub checkpoints_aborted: u64,
    /// Rollbacks finished.
    pub rollbacks: u64,
    /// What peers did wrong, oldest first, at most [`MAX_VIOLATIONS`].
    pub violations: Vec<Violation>,
    /// Number of violations, also those that are not listed.
    pub violation_count: u64,
}

/// More violations than this are only counted.
pub const MAX_VIOLATIONS: usize = 1_000;

/// More streams than this are not listed in a status; they work all the same.
pub const MAX_LISTED_STREAMS: usize = 10_000;

/// What the cluster is doing.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Sources are not read before the first checkpoint.
    #[default]
    Starting,
    /// Records flow.
    Running,
    /// A rollback waits for the sinks.
    RollingBack,
    /// Sources are not read, on request.
    Stalled,
}

/// A source endpoint of one worker.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct SourceStatus {
    /// Name of the worker.
    pub worker: String,
    /// Name of the source.
    pub source: String,
    /// Address that is bound, `host:port`.
    pub address: String,
    /// Connections that are open.
    pub connections: u32,
}

/// A stream of a connector source.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct StreamStatus {
    /// Name, as the connector last gave it; not UTF-8: lossily.
    pub name: String,
    /// Worker on which it is active.
    pub worker: Option<String>,
    /// Id of the last record that was processed.
    pub last_seen: Option<u64>,
    /// Position at the last checkpoint.
    pub last_acked: Option<u64>,
    /// Records processed since the process began, over all sessions.
    pub records: u64,
}

/// A sink link of one worker.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct SinkStatus {
    /// Name of the worker.
    pub worker: String,
    /// Name of the sink.
    pub sink: String,
    /// State of the link.
    pub state: SinkState,
    /// Results handed to this link, repeats after a rollback included.
    pub records: u64,
    /// Bytes produced so far, without those that a rollback withdrew.
    pub produced: u64,
    /// End of the last committed transaction in bytes; 0 for a plain sink.
    pub committed: u64,
    /// Bytes waiting in memory.
    pub queued: u64,
    /// Bytes that a plain sink lost with its connection.
    pub dropped: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Transactions aborted.
    pub aborts: u64,
    /// Transaction that waits for its vote or decision.
    pub transaction: Option<String>,
    /// Connections made so far.
    pub connections: u64,
}

/// State of a sink link.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum SinkState {
    /// Not connected.
    Disconnected,
    /// Connected; its list of uncommitted transactions has not come, or names one that nobody decided.
    Introducing,
    /// Takes part in checkpoints.
    Ready,
    /// Lost without resilience: nothing more is sent (§7.30).
    Closed,
}

/// Records that an application could not read for one reason.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct BadInput {
    /// How many.
    pub count: u64,
    /// The first of them, at most 64 bytes, lossily as text.
    pub example: String,
}

/// Something that a peer must not do.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Violation {
    /// Section of the protocol page that says so.
    pub rule: String,
    /// What happened, as a sentence.
    pub detail: String,
    /// Which connection: `worker/source-or-sink`.
    pub place: String,
    /// A real worker process would have died of it.
    pub kills_worker: bool,
}
