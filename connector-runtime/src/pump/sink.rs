//! The sink pump: Wallaroo's output into an external system.
//!
//! Over `Connector` output goes through the transaction log (`connector`); over the plain framings it goes straight to
//! the target ([`super::sink_plain`]). Either way one task and one loop: each turn does everything that needs no waiting, and then
//! waits for the first of shutdown, live configuration, a new connection, a connection or the target, and a timer. The sink
//! works on beside the sessions, so that a slow target never makes a vote late.

mod config;
mod connector;
mod delivering;
mod incarnations;
mod known;
pub(super) mod link;
pub(super) mod outlet;
mod sessions;
pub(super) mod stalls;

use std::future::poll_fn;
use std::task::{Context, Poll};

use connector_crds::{LiveConfig, Protocol, State};
use connector_env::{Env, Link, Listener};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until, timeout};

pub use self::config::{SinkOutcome, SinkPumpConfig, SinkPumpError};
use self::link::{Links, Talk};
use self::outlet::{Outlet, Report};
use self::stalls::{Stall, Stalls};
use super::Shutdown;
use super::dead_letter::DeadLetter;
use crate::board::Board;
use crate::sink::Sink;
use crate::state_volume::{self, Claim, StateVolumeError};
use crate::txn_log::LogError;

/// Longest time between two turns of a loop, and so between two heartbeats.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Connections served at a time: far more than a cluster has workers, few enough that idle ones cost little. Others wait in the
/// kernel until one ends.
pub(super) const MAX_LINKS: usize = 512;

/// Pause after a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Moves Wallaroo's output into `sink` until `shutdown` says otherwise.
///
/// `letters` is needed with `onError: DeadLetter`. The port is bound, and on the board, before anything else is awaited. A state volume
/// that belongs to somebody else, or a corrupt transaction log, does not end the pump: it reports that as stalled, listens to
/// nobody, changes nothing, and waits for `shutdown`.
pub async fn run<E: Env>(
    env: E,
    config: SinkPumpConfig,
    sink: Box<dyn Sink>,
    letters: Option<Box<dyn DeadLetter>>,
    board: Board,
    live: watch::Receiver<LiveConfig>,
    mut shutdown: watch::Receiver<Shutdown>,
) -> Result<SinkOutcome, SinkPumpError> {
    board.heartbeat();
    match state_volume::claim(&env, &config.state, &config.identity) {
        Ok(Claim::New | Claim::Same) => {}
        Ok(Claim::Archived { before, to }) => {
            tracing::info!(%before, to = %to.display(), "State of another identity was delivered completely and is archived.");
        }
        Err(error) => return unusable(&board, error.into(), &mut shutdown).await,
    }
    let started =
        Start { env, config, sink, letters, board: board.clone(), live, shutdown: shutdown.clone() };
    let ended = match started.config.protocol {
        Protocol::Connector => connector::run(started).await,
        Protocol::FramedTCP | Protocol::Stream05 | Protocol::Stream06 => {
            super::sink_plain::run(started).await
        }
    };
    match ended {
        Err(error @ SinkPumpError::Log(LogError::Corrupt { .. })) => {
            unusable(&board, error, &mut shutdown).await
        }
        other => other,
    }
}

/// What both loops start from.
pub(super) struct Start<E> {
    pub(super) env: E,
    pub(super) config: SinkPumpConfig,
    pub(super) sink: Box<dyn Sink>,
    pub(super) letters: Option<Box<dyn DeadLetter>>,
    pub(super) board: Board,
    pub(super) live: watch::Receiver<LiveConfig>,
    pub(super) shutdown: watch::Receiver<Shutdown>,
}

/// Waits for the shutdown where only a change by someone can help; other errors end the process.
async fn unusable(
    board: &Board,
    error: SinkPumpError,
    shutdown: &mut watch::Receiver<Shutdown>,
) -> Result<SinkOutcome, SinkPumpError> {
    let reason = match &error {
        SinkPumpError::Volume(StateVolumeError::InUse { .. }) => "StateVolumeInUse",
        SinkPumpError::Volume(StateVolumeError::Unreadable { .. }) => "StateVolumeUnreadable",
        SinkPumpError::Log(LogError::Corrupt { .. })
        | SinkPumpError::Volume(StateVolumeError::Log(LogError::Corrupt { .. })) => "TransactionLogCorrupt",
        SinkPumpError::Volume(_) | SinkPumpError::Log(_) | SinkPumpError::Listen { .. } => return Err(error),
    };
    Stalls::default().set(board, Stall::Volume, reason, error.to_string());
    loop {
        board.heartbeat();
        if *shutdown.borrow_and_update() != Shutdown::Run {
            return Ok(SinkOutcome::GivenUp { records: 0 });
        }
        let _ = timeout(TICK, changed(shutdown)).await; // the beat goes on
    }
}

/// Waits for a change; for ever once nobody can make one. Cancel-safe.
pub(super) async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A bound port, as long as connections are wanted.
pub(super) struct Door<E: Env> {
    listener: Option<E::Listener>,
    /// After a failure, e.g. without file descriptors, the next attempt waits.
    not_before: Option<Instant>,
}

impl<E: Env> Door<E> {
    /// Binds the port and puts it on the board.
    pub(super) async fn open(env: &E, address: &str, board: &Board) -> Result<Door<E>, SinkPumpError> {
        let listener = env
            .listen(address)
            .await
            .map_err(|cause| SinkPumpError::Listen { address: address.to_owned(), cause })?;
        let host = address.rsplit_once(':').map_or("", |(host, _)| host);
        board.set_listen(format!("{host}:{}", listener.port()));
        Ok(Door { listener: Some(listener), not_before: None })
    }

    /// Takes no more connections: who dials now is refused.
    pub(super) fn close(&mut self) {
        self.listener = None;
    }

    /// The next connection and its peer's address. Cancel-safe.
    pub(super) async fn accept(&mut self) -> (E::Link, String) {
        loop {
            if let Some(not_before) = self.not_before {
                sleep_until(not_before).await;
                self.not_before = None;
            }
            let Some(listener) = &mut self.listener else { return std::future::pending().await };
            match listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::debug!("A connection could not be accepted: {error}.");
                    self.not_before = Some(Instant::now() + ACCEPT_AGAIN);
                }
            }
        }
    }
}

/// Waits until the target has done something, which is returned, or a link has. Cancel-safe.
pub(super) async fn served<L: Link, T: Talk>(links: &mut Links<L, T>, outlet: &mut Outlet) -> Option<Report> {
    poll_fn(|cx| serve(links, outlet, cx)).await
}

/// As [`served`], without waiting.
pub(super) async fn served_now<L: Link, T: Talk>(
    links: &mut Links<L, T>,
    outlet: &mut Outlet,
) -> Option<Report> {
    poll_fn(|cx| match serve(links, outlet, cx) {
        Poll::Ready(report) => Poll::Ready(report),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn serve<L: Link, T: Talk>(
    links: &mut Links<L, T>,
    outlet: &mut Outlet,
    cx: &mut Context<'_>,
) -> Poll<Option<Report>> {
    // Both are polled each time, so that neither starves the other.
    let links = links.poll(cx);
    match outlet.poll(cx) {
        Poll::Ready(report) => Poll::Ready(Some(report)),
        Poll::Pending => links.map(|()| None),
    }
}

/// True while nothing is to be delivered. A stopped Connector drains, so it delivers.
pub(super) fn is_paused(live: &watch::Receiver<LiveConfig>) -> bool {
    match live.borrow().state {
        State::Paused => true,
        State::Running | State::Stopped => false,
    }
}

#[cfg(test)]
mod tests;
