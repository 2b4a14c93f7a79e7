//! The board: what the pump tells the admin server, and nothing the pump waits for.
//!
//! Counters are atomics that a pump adds to once a batch. States are small and behind a mutex that nobody holds for
//! longer than a copy.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;
use serde::Serialize;
use tokio::time::{Duration, Instant};

use crate::record::Position;
use crate::source::ErrorClass;

/// Streams that `/status` and the metrics list at most; the sums count all.
pub const MAX_LISTED_STREAMS: usize = 1_000;

/// Longest text of an error that is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 1_024;

/// One of the two ends of a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The Wallaroo worker.
    Wallaroo,
    /// The external system.
    External,
}

impl Side {
    /// Both ends.
    pub const ALL: [Side; 2] = [Side::Wallaroo, Side::External];

    /// Label value of the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Side::Wallaroo => "wallaroo",
            Side::External => "external",
        }
    }
}

/// How one end is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all_fields = "camelCase")]
pub enum SideState {
    /// Not tried yet, or (a sink's Wallaroo end) nobody has dialled.
    Waiting,
    /// Data can move.
    Connected,
    /// It cannot, with a reason in CamelCase and a sentence.
    Failed {
        /// Reason, one of the closed list in the troubleshooting page.
        reason: String,
        /// What was tried and what came back.
        message: String,
    },
}

/// Trouble that will not pass without a change by someone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stalled {
    /// Reason in CamelCase.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// What is known of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamStatus {
    /// Last position handed to Wallaroo (sources) or received from it (sinks).
    pub sent: Option<Position>,
    /// Last position that Wallaroo acknowledged (sources) or decided (sinks).
    pub acknowledged: Option<Position>,
    /// Last position committed at the external system (sources) or durable there (sinks).
    pub committed: Option<Position>,
    /// Records that the external system holds beyond `sent`, where it tells.
    pub lag: Option<u64>,
}

/// Why a record was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Longer than a limit.
    TooLarge,
    /// Not what the format asks for, or empty.
    Decode,
    /// Refused by the target, dropped as `onError` asks.
    PolicyDrop,
    /// Lost in the kernel's receive buffer.
    KernelOverflow,
    /// Given up at shutdown.
    Shutdown,
    /// Taken from a volatile system while nothing could be sent.
    NotConnected,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [DropReason; 6] = [
        DropReason::TooLarge,
        DropReason::Decode,
        DropReason::PolicyDrop,
        DropReason::KernelOverflow,
        DropReason::Shutdown,
        DropReason::NotConnected,
    ];

    /// Label value of the metrics.
    pub fn label(self) -> &'static str {
        match self {
            DropReason::TooLarge => "too_large",
            DropReason::Decode => "decode",
            DropReason::PolicyDrop => "policy_drop",
            DropReason::KernelOverflow => "kernel_overflow",
            DropReason::Shutdown => "shutdown",
            DropReason::NotConnected => "not_connected",
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters that only grow.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }
    };
}

counters! {
    /// Records taken from the sending end.
    records_in,
    /// Records handed to the receiving end.
    records_out,
    /// Payload and key bytes taken.
    bytes_in,
    /// Payload and key bytes handed over.
    bytes_out,
    /// Records written to the dead letter.
    dead_letters,
    /// Microseconds in which reading was held back because Wallaroo was slow.
    wallaroo_backpressure_micros,
    /// Microseconds in which reading was held back because the external system was slow.
    external_backpressure_micros,
    /// Microseconds spent with records to send and no credit.
    credit_wait_micros,
    /// Commits at the external system.
    commits,
    /// Transactions decided `commit`.
    transactions_committed,
    /// Transactions decided `abort`, or voted no.
    transactions_aborted,
    /// Transactions of an ended incarnation that stayed in doubt.
    transactions_in_doubt,
    /// Secrets reloaded.
    secret_reloads,
    /// Live configuration reloaded.
    config_reloads,
}

impl Counters {
    /// Adds to a counter; for use once a batch.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }
}

/// Distributions, observed once a batch.
#[derive(Debug)]
pub struct Histograms {
    /// Seconds from handing a record to Wallaroo to its acknowledgement; sources, one sampled record at a time.
    pub end_to_end_seconds: Histogram,
    /// Seconds that one write to the external system took; sinks.
    pub write_seconds: Histogram,
    /// Records of a batch.
    pub batch_records: Histogram,
    /// Key and payload bytes of a batch.
    pub batch_bytes: Histogram,
}

impl Default for Histograms {
    fn default() -> Self {
        Histograms {
            // 0.5 ms to 16 s: from a pass-through to several missed checkpoints.
            end_to_end_seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 16)),
            // 50 µs to 1.6 s.
            write_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            batch_records: Histogram::new(exponential_buckets(1.0, 4.0, 9)),
            batch_bytes: Histogram::new(exponential_buckets(64.0, 4.0, 10)),
        }
    }
}

impl Histograms {
    /// Observes the size of a batch.
    pub fn batch(&self, records: usize, bytes: usize) {
        self.batch_records.observe(records as f64);
        self.batch_bytes.observe(bytes as f64);
    }

    /// Each with its name, help text and unit.
    pub fn list(&self) -> [(&'static str, &'static str, Option<Unit>, &Histogram); 4] {
        [
            (
                "end_to_end",
                "From handing a record to Wallaroo to its acknowledgement, sampled",
                Some(Unit::Seconds),
                &self.end_to_end_seconds,
            ),
            ("write", "One write to the external system", Some(Unit::Seconds), &self.write_seconds),
            ("batch_records", "Records of a batch", None, &self.batch_records),
            ("batch_bytes", "Key and payload bytes of a batch", None, &self.batch_bytes),
        ]
    }
}

#[derive(Debug)]
struct States {
    sides: BTreeMap<Side, SideState>,
    since: BTreeMap<Side, Instant>,
    reconnects: BTreeMap<Side, u64>,
    stalled: Option<Stalled>,
    last_error: Option<LastError>,
    errors: BTreeMap<(Side, &'static str), u64>,
    streams: BTreeMap<String, StreamStatus>,
    listen: Option<String>,
    complete: bool,
    ack_mode: Option<AckMode>,
}

/// How a peer confirms records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum AckMode {
    /// By checkpoints.
    Checkpoint,
    /// Never before the end of a stream: a worker without resilience.
    OnReceipt,
}

/// The last error, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// Which end.
    pub side: Side,
    /// What happened.
    pub message: String,
    /// Milliseconds since the Unix epoch.
    pub unix_millis: i64,
}

/// A copy of everything that `/status` shows.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The Wallaroo end.
    pub wallaroo: SideState,
    /// The external end.
    pub external: SideState,
    /// Set while the connector waits for a change by someone.
    pub stalled: Option<Stalled>,
    /// Set until the process ends.
    pub last_error: Option<LastError>,
    /// Address that a sink or UDP source listens on.
    pub listen: Option<String>,
    /// True when a finite source is at its end and everything is acknowledged and committed.
    pub complete: bool,
    /// How Wallaroo confirms records, once known.
    pub ack_mode: Option<AckMode>,
    /// Per stream, at most [`MAX_LISTED_STREAMS`].
    pub streams: BTreeMap<String, StreamStatus>,
    /// Records in, out and dropped.
    pub records: RecordCounts,
    /// Reconnects of each end.
    pub reconnects: BTreeMap<Side, u64>,
}

/// Records in, out and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordCounts {
    /// Taken from the sending end.
    pub read: u64,
    /// Handed to the receiving end.
    pub written: u64,
    /// Written to the dead letter.
    pub dead_letters: u64,
    /// Dropped, by reason; only those that happened.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// Shared between the pump's thread and the admin server's.
#[derive(Clone, Debug)]
pub struct Board(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    heartbeat_micros: AtomicU64,
    last_record_unix_millis: AtomicI64,
    in_flight_records: AtomicU64,
    in_flight_bytes: AtomicU64,
    credits: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    counters: Counters,
    histograms: Histograms,
    states: Mutex<States>,
}

impl Default for Board {
    fn default() -> Self {
        Board::new()
    }
}

impl Board {
    /// A board on which both ends wait.
    pub fn new() -> Board {
        let now = Instant::now();
        Board(Arc::new(Inner {
            started: now,
            heartbeat_micros: AtomicU64::new(0),
            last_record_unix_millis: AtomicI64::new(0),
            in_flight_records: AtomicU64::new(0),
            in_flight_bytes: AtomicU64::new(0),
            credits: AtomicU64::new(0),
            dropped: Default::default(),
            counters: Counters::default(),
            histograms: Histograms::default(),
            states: Mutex::new(States {
                sides: Side::ALL.into_iter().map(|side| (side, SideState::Waiting)).collect(),
                since: Side::ALL.into_iter().map(|side| (side, now)).collect(),
                reconnects: BTreeMap::new(),
                stalled: None,
                last_error: None,
                errors: BTreeMap::new(),
                streams: BTreeMap::new(),
                listen: None,
                complete: false,
                ack_mode: None,
            }),
        }))
    }

    fn states(&self) -> MutexGuard<'_, States> {
        self.0.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pump's loop turned once more.
    pub fn heartbeat(&self) {
        self.0.heartbeat_micros.store(self.0.started.elapsed().as_micros() as u64, Relaxed);
    }

    /// Time since the pump's loop last turned.
    pub fn silent_for(&self) -> Duration {
        let now = self.0.started.elapsed();
        now.saturating_sub(Duration::from_micros(self.0.heartbeat_micros.load(Relaxed)))
    }

    /// Counters to add to.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Distributions to observe.
    pub fn histograms(&self) -> &Histograms {
        &self.0.histograms
    }

    /// Counts dropped records.
    pub fn dropped(&self, reason: DropReason, n: u64) {
        self.0.dropped[reason as usize].fetch_add(n, Relaxed);
    }

    /// Dropped records by reason.
    pub fn dropped_by_reason(&self) -> [(DropReason, u64); DropReason::ALL.len()] {
        DropReason::ALL.map(|reason| (reason, self.0.dropped[reason as usize].load(Relaxed)))
    }

    /// What is read but not acknowledged.
    pub fn set_in_flight(&self, records: u64, bytes: u64) {
        self.0.in_flight_records.store(records, Relaxed);
        self.0.in_flight_bytes.store(bytes, Relaxed);
    }

    /// Records and bytes read but not acknowledged.
    pub fn in_flight(&self) -> (u64, u64) {
        (self.0.in_flight_records.load(Relaxed), self.0.in_flight_bytes.load(Relaxed))
    }

    /// Credits left in the session.
    pub fn set_credits(&self, credits: u64) {
        self.0.credits.store(credits, Relaxed);
    }

    /// Credits left in the session.
    pub fn credits(&self) -> u64 {
        self.0.credits.load(Relaxed)
    }

    /// A batch moved at this time (milliseconds since the Unix epoch).
    pub fn moved_at(&self, unix_millis: i64) {
        self.0.last_record_unix_millis.store(unix_millis, Relaxed);
    }

    /// When a batch last moved; 0 for never.
    pub fn last_moved(&self) -> i64 {
        self.0.last_record_unix_millis.load(Relaxed)
    }

    /// An end changed. Setting the same state again is free of effects.
    pub fn set_side(&self, side: Side, state: SideState) {
        let mut states = self.states();
        let connected = state == SideState::Connected;
        let was = states.sides.insert(side, state);
        if connected != (was == Some(SideState::Connected)) {
            states.since.insert(side, Instant::now());
            if connected {
                *states.reconnects.entry(side).or_default() += 1;
            }
        }
    }

    /// How an end is.
    pub fn side(&self, side: Side) -> SideState {
        self.states().sides.get(&side).cloned().unwrap_or(SideState::Waiting)
    }

    /// For how long an end has been connected (true) or not (false).
    pub fn connected_for(&self, side: Side) -> (bool, Duration) {
        let states = self.states();
        let connected = states.sides.get(&side) == Some(&SideState::Connected);
        (connected, states.since.get(&side).map_or(Duration::ZERO, Instant::elapsed))
    }

    /// Records an error; the caller logs it (rate-limited), the board keeps the last and counts all.
    pub fn error(&self, side: Side, class: ErrorClass, message: &str, unix_millis: i64) {
        let mut states = self.states();
        *states.errors.entry((side, class.label())).or_default() += 1;
        let mut end = message.len().min(MAX_MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        states.last_error = Some(LastError { side, message: message[..end].to_owned(), unix_millis });
    }

    /// Errors by side and class.
    pub fn errors(&self) -> BTreeMap<(Side, &'static str), u64> {
        self.states().errors.clone()
    }

    /// Says or unsays that a change by someone is needed.
    pub fn set_stalled(&self, stalled: Option<Stalled>) {
        self.states().stalled = stalled;
    }

    /// Updates one stream.
    pub fn stream(&self, name: &str, update: impl FnOnce(&mut StreamStatus)) {
        let mut states = self.states();
        let listed = states.streams.len();
        match states.streams.get_mut(name) {
            Some(known) => update(known),
            None if listed < MAX_LISTED_STREAMS => {
                update(states.streams.entry(name.to_owned()).or_default());
            }
            None => {}
        }
    }

    /// Forgets a stream.
    pub fn forget_stream(&self, name: &str) {
        self.states().streams.remove(name);
    }

    /// Address that is listened on.
    pub fn set_listen(&self, address: String) {
        self.states().listen = Some(address);
    }

    /// How Wallaroo confirms records.
    pub fn set_ack_mode(&self, mode: AckMode) {
        self.states().ack_mode = Some(mode);
    }

    /// A finite source is done.
    pub fn set_complete(&self) {
        self.states().complete = true;
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> Snapshot {
        let counters = self.counters();
        let records = RecordCounts {
            read: counters.records_in.load(Relaxed),
            written: counters.records_out.load(Relaxed),
            dead_letters: counters.dead_letters.load(Relaxed),
            dropped: self
                .dropped_by_reason()
                .into_iter()
                .filter(|(_, n)| *n > 0)
                .map(|(reason, n)| (reason.label(), n))
                .collect(),
        };
        let states = self.states();
        let side = |side| states.sides.get(&side).cloned().unwrap_or(SideState::Waiting);
        Snapshot {
            wallaroo: side(Side::Wallaroo),
            external: side(Side::External),
            stalled: states.stalled.clone(),
            last_error: states.last_error.clone(),
            listen: states.listen.clone(),
            complete: states.complete,
            ack_mode: states.ack_mode,
            streams: states.streams.clone(),
            records,
            reconnects: states.reconnects.clone(),
        }
    }
}
