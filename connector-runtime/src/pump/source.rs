//! The source pump: an external system's records into Wallaroo.
//!
//! One task, one loop. Each turn does everything that needs no waiting (events, sending what is kept, commits,
//! what streams need next) and then waits for the first of: shutdown, live configuration, the connection, the source, a timer.

mod config;
mod kept;
mod latency;
mod leaving;
mod meter;
mod pace;
mod sending;
mod session;
mod stalls;
mod system;
mod targets;
mod uplink;
mod wallaroo;
mod wire;

use std::future::Future;
use std::pin::pin;

use connector_crds::LiveConfig;
use connector_env::Env;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, sleep_until};

pub use self::config::{CookieFrom, Outcome, PumpError, SourcePumpConfig, Timings};
use self::kept::Queue;
use self::latency::Sample;
use self::meter::Meter;
use self::stalls::Stalls;
use self::wire::Wire;
use super::Shutdown;
use super::dead_letter::DeadLetter;
use super::poison::Suspicion;
use super::retry::Backoff;
use super::streams::{Phase, Streams};
use crate::board::{AckMode, Board};
use crate::source::{Source, SourceEvent, SystemError};

/// Longest time between two turns of the loop, and so between two heartbeats.
const TICK: Duration = Duration::from_secs(1);

/// How long one call of the source may keep the heart beating. Beyond it liveness fails: the call hangs.
const CALL_LIMIT: Duration = Duration::from_mins(2);

/// Shortest time between two looks at what the worker's kernel has.
const RECEIPT_INTERVAL: Duration = Duration::from_millis(5);

/// Moves the records of `source` into Wallaroo until the source is at its end or `shutdown` says so.
///
/// Trouble at either end is retried for ever. `dead_letter` is needed with `onError: DeadLetter`; without it such
/// records stop their stream. Not cancel-safe: a dropped future leaves without commit, as a crash does.
///
/// # Errors
/// [`PumpError`]: a mistake of this program or its configuration, which no retry can mend.
pub async fn run<E: Env>(
    env: E,
    config: SourcePumpConfig,
    source: Box<dyn Source>,
    board: Board,
    live: watch::Receiver<LiveConfig>,
    shutdown: watch::Receiver<Shutdown>,
    dead_letter: Option<Box<dyn DeadLetter>>,
) -> Result<Outcome, PumpError> {
    let wire = Wire::new(env.clone(), config.clone(), board.clone())?;
    let now = Instant::now();
    if config.ack_mode == AckMode::OnReceipt && !wire.is_plain() {
        board.set_ack_mode(AckMode::OnReceipt);
    }
    let pump = Pump {
        streams: Streams::new(config.in_flight_records, config.in_flight_bytes),
        receipts: wire.is_plain() || config.ack_mode == AckMode::OnReceipt,
        wire,
        env,
        config,
        source,
        board,
        live: Watched::new(live),
        shutdown: Watched::new(shutdown),
        dead_letter,
        kept: Queue::default(),
        suspicion: Suspicion::default(),
        latency: Sample::default(),
        meter: Meter::new(now),
        stalls: Stalls::default(),
        backoff: Backoff::dialling(),
        source_open_at: None,
        source_failure: None,
        external_works: false,
        letter_at: None,
        letter_backoff: Backoff::dialling(),
        credits: None,
        last_settle: now,
        hold_since: None,
        checkpoints: Checkpoints::default(),
        last_receipt: now,
        next_tick: now,
        drain_until: None,
        given_up: 0,
    };
    pump.run().await
}

/// A watched value whose sender may be gone.
struct Watched<T> {
    receiver: watch::Receiver<T>,
    open: bool,
}

impl<T> Watched<T> {
    fn new(receiver: watch::Receiver<T>) -> Watched<T> {
        Watched { receiver, open: true }
    }

    /// Waits for a change. Cancel-safe.
    async fn changed(&mut self) {
        if self.open {
            self.open = self.receiver.changed().await.is_ok();
        }
        if !self.open {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether this session's worker checkpoints.
#[derive(Clone, Copy, Debug, Default)]
struct Checkpoints {
    seen: bool,
    /// Credits came since the last checkpoint.
    refilled: bool,
    /// Records are unacknowledged, and no checkpoint came, since then.
    waiting_since: Option<Instant>,
}

struct Pump<E: Env> {
    env: E,
    config: SourcePumpConfig,
    source: Box<dyn Source>,
    board: Board,
    live: Watched<LiveConfig>,
    shutdown: Watched<Shutdown>,
    dead_letter: Option<Box<dyn DeadLetter>>,
    wire: Wire<E>,
    streams: Streams,
    /// Commit on receipt by the worker's kernel instead of on acknowledgement.
    receipts: bool,
    kept: Queue,
    suspicion: Suspicion,
    latency: Sample,
    meter: Meter,
    stalls: Stalls,
    backoff: Backoff,
    /// No call of the source before this time.
    source_open_at: Option<Instant>,
    source_failure: Option<(String, Instant)>,
    external_works: bool,
    /// The dead letter is tried again at this time.
    letter_at: Option<Instant>,
    letter_backoff: Backoff,
    /// Credits after the last turn's sending.
    credits: Option<u64>,
    last_settle: Instant,
    hold_since: Option<Instant>,
    checkpoints: Checkpoints,
    last_receipt: Instant,
    next_tick: Instant,
    drain_until: Option<Instant>,
    /// Records outstanding when a session was lost during the drain.
    given_up: u64,
}

enum Woken {
    Nothing,
    Source(Result<SourceEvent, SystemError>),
}

impl<E: Env> Pump<E> {
    async fn run(mut self) -> Result<Outcome, PumpError> {
        loop {
            self.board.heartbeat();
            let now = Instant::now();
            while let Some(event) = self.wire.poll_event() {
                self.on_wire(event);
            }
            self.see_refill();
            self.take_receipts(now);
            self.flush().await?;
            self.commit().await;
            self.act().await;
            if now >= self.next_tick {
                self.tick(now);
            }
            if let Some(outcome) = self.finish().await {
                self.publish();
                return Ok(outcome);
            }
            let hold = self.hold();
            let poll = self.apply_hold(hold);
            self.meter.turn(hold, &self.board);
            match self.wait(poll).await? {
                Woken::Nothing => {}
                Woken::Source(Ok(event)) => {
                    self.source_works();
                    self.on_source(event)?;
                }
                Woken::Source(Err(error)) => self.source_failed(&error),
            }
        }
    }

    async fn wait(&mut self, poll: bool) -> Result<Woken, PumpError> {
        let wake = self.wake();
        let poll = poll && self.source_ready(Instant::now());
        tokio::select! {
            biased;
            () = self.shutdown.changed() => Ok(Woken::Nothing),
            () = self.live.changed() => Ok(Woken::Nothing),
            stepped = self.wire.step() => stepped.map(|()| Woken::Nothing),
            event = self.source.next(), if poll => Ok(Woken::Source(event)),
            () = sleep_until(wake) => Ok(Woken::Nothing),
        }
    }

    fn wake(&self) -> Instant {
        // While reading is held back by what the worker's kernel has not, its answer is looked for often.
        let look = if self.hold_since.is_some() { RECEIPT_INTERVAL } else { self.settle_interval() };
        let receipts = self.receipts && (self.streams.outstanding() > 0 || self.streams.any_ending());
        let receipt = receipts.then(|| self.last_receipt + look);
        let pause = self.hold_since.map(|since| since + self.config.timings.pause_after);
        let pause = pause.filter(|at| *at > Instant::now());
        let timers = [self.source_open_at, self.letter_at, self.streams.next_deadline(), self.drain_until];
        let past = Instant::now();
        let timers = timers.into_iter().flatten().filter(|at| *at > past);
        timers.chain(pause).chain(receipt).fold(self.next_tick, Instant::min)
    }
}

fn publish_stream(board: &Board, stream: &super::streams::Stream) {
    if stream.phase == Phase::Barred {
        return;
    }
    board.stream(&stream.name, |status| {
        status.sent = stream.sent.or(status.sent);
        status.acknowledged = stream.acknowledged;
        status.committed = stream.committed;
    });
}

/// Awaits a call of the system while the heart goes on beating, for two minutes at most.
async fn beating<T>(board: &Board, call: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let mut call = pin!(call);
    loop {
        tokio::select! {
            biased;
            result = &mut call => return result,
            () = sleep(TICK) => {
                if start.elapsed() < CALL_LIMIT {
                    board.heartbeat();
                }
            }
        }
    }
}
