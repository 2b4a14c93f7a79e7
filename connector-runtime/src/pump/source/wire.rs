//! The Wallaroo end of a source pump: dial, session, loss, and again.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;

use connector_env::Env;
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tracing::{info, warn};
use wallaroo_protocol::framing::Framing;
use wallaroo_protocol::{
    EncodeError, Millis, PeerErrorKind, Reaction, SourceClient, SourceClientConfig, SourceClientError,
    SourceClientEvent,
};

use super::config::{PumpError, SourcePumpConfig};
use super::session::Session;
use super::targets::Targets;
use super::uplink::Uplink;
use crate::board::{Board, Side, SideState};
use crate::pump::retry::Backoff;
use crate::pump::source_plain::{self, PlainSession};
use crate::source::ErrorClass;

/// Longest wait for a connection, name resolution included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Program name in HELLO.
const PROGRAM: &str = "wallaroo-connector";

/// What the Wallaroo end tells the pump.
#[derive(Debug)]
pub(super) enum WireEvent {
    Session(SourceClientEvent),
    /// The session is gone, and everything unacknowledged with it.
    Lost {
        /// The worker could not decode one of the records.
        undecodable: bool,
    },
}

enum State<L> {
    Down { until: Instant },
    Dialing(Pin<Box<dyn Future<Output = io::Result<L>> + Send>>),
    Up(Box<Uplink<L>>),
}

/// Dials, and keeps a session.
pub(super) struct Wire<E: Env> {
    env: E,
    config: SourcePumpConfig,
    framing: Option<Framing>,
    board: Board,
    clock: Instant,
    targets: Targets,
    backoff: Backoff,
    state: State<E::Link>,
    /// Records can be sent.
    streaming: bool,
    up_since: Instant,
    /// The session showed that it works: the next failure starts with a short pause again.
    healthy: bool,
    not_reading: bool,
    events: VecDeque<WireEvent>,
    last_failure: Option<(String, String)>,
    /// The same error again without a healthy session between slows the retries down.
    last_error: Option<SourceClientError>,
}

impl<E: Env> fmt::Debug for Wire<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("target", &self.targets.current())
            .field("streaming", &self.streaming)
            .finish_non_exhaustive()
    }
}

impl<E: Env> Wire<E> {
    pub(super) fn new(env: E, config: SourcePumpConfig, board: Board) -> Result<Wire<E>, PumpError> {
        let targets = Targets::new(config.targets.clone()).ok_or(PumpError::NoTarget)?;
        let now = Instant::now();
        Ok(Wire {
            framing: source_plain::framing(config.protocol, config.framing),
            env,
            config,
            board,
            clock: now,
            targets,
            backoff: Backoff::dialling(),
            state: State::Down { until: now },
            streaming: false,
            up_since: now,
            healthy: false,
            not_reading: false,
            events: VecDeque::new(),
            last_failure: None,
            last_error: None,
        })
    }

    pub(super) fn is_plain(&self) -> bool {
        self.framing.is_some()
    }

    pub(super) fn now(&self) -> Millis {
        Millis(self.clock.elapsed().as_millis() as u64)
    }

    /// The connection while records can be sent.
    pub(super) fn uplink(&mut self) -> Option<&mut Uplink<E::Link>> {
        match &mut self.state {
            State::Up(uplink) if self.streaming => Some(uplink),
            State::Up(_) | State::Down { .. } | State::Dialing(_) => None,
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<WireEvent> {
        if self.events.is_empty() {
            self.take_events();
        }
        self.events.pop_front()
    }

    /// Waits for something to happen and does it. Cancel-safe.
    pub(super) async fn step(&mut self) -> Result<(), PumpError> {
        match &mut self.state {
            State::Down { until } => {
                sleep_until(*until).await;
                let (env, address) = (self.env.clone(), self.targets.current().to_owned());
                self.state = State::Dialing(Box::pin(async move {
                    match timeout(CONNECT_TIMEOUT, env.connect(&address)).await {
                        Ok(connected) => connected,
                        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s")),
                    }
                }));
                Ok(())
            }
            State::Dialing(dialing) => match dialing.await {
                Ok(link) => self.connected(link),
                Err(error) => {
                    self.dial_failed(&error);
                    Ok(())
                }
            },
            State::Up(uplink) => {
                let clock = self.clock;
                let wake = uplink.session.poll_timeout();
                let wake = wake.map(|Millis(at)| clock + Duration::from_millis(at));
                let step = uplink.step(wake).await;
                let now = Millis(clock.elapsed().as_millis() as u64);
                let handled = match &step {
                    Ok(true) | Err(_) => uplink.session.handle_input(now),
                    Ok(false) => uplink.session.handle_timeout(now),
                };
                self.take_events();
                if !matches!(self.state, State::Up(_)) {
                    return Ok(()); // RESTART
                }
                match (handled, step) {
                    (Err(error), _) => self.session_failed(error),
                    (Ok(()), Err(error)) => self.link_failed(&error),
                    (Ok(()), Ok(_)) => {}
                }
                Ok(())
            }
        }
    }

    fn connected(&mut self, link: E::Link) -> Result<(), PumpError> {
        let now = Instant::now();
        let session = match self.framing {
            Some(framing) => Session::Plain(PlainSession::new(framing, self.config.max_frame_bytes as usize)),
            None => match self.config.cookie.read() {
                Ok(cookie) => {
                    let mut config = SourceClientConfig::new(cookie, PROGRAM, self.config.instance.clone());
                    config.send_limit = config.send_limit.min(self.config.max_frame_bytes);
                    config.handshake_timeout = millis(self.config.timings.handshake);
                    config.notify_timeout = millis(self.config.timings.notify);
                    let client = SourceClient::new(config, self.now());
                    Session::Connector(Box::new(
                        client.map_err(|error: EncodeError| PumpError::Hello(error))?,
                    ))
                }
                Err(error) => {
                    self.failed(error.reason(), &error.to_string(), ErrorClass::Auth);
                    self.pause();
                    return Ok(());
                }
            },
        };
        self.up_since = now;
        self.healthy = false;
        self.not_reading = false;
        self.state = State::Up(Box::new(Uplink::new(link, session, now)));
        if self.is_plain() {
            self.streams();
        }
        Ok(())
    }

    fn streams(&mut self) {
        self.streaming = true;
        self.targets.worked();
        self.board.set_side(Side::Wallaroo, SideState::Connected);
        let again = self.last_failure.take().is_some();
        info!(target_address = self.targets.current(), again, "Connected to Wallaroo.");
    }

    /// Moves the session's events into the queue. RESTART ends the session here.
    fn take_events(&mut self) {
        while let State::Up(uplink) = &mut self.state {
            let Some(event) = uplink.session.poll_event() else { return };
            match event {
                SourceClientEvent::Restart { address } => {
                    self.restart(address.as_deref());
                    return;
                }
                SourceClientEvent::Ready { .. } => {
                    self.events.push_back(WireEvent::Session(event));
                    self.streams();
                }
                SourceClientEvent::Checkpoint => {
                    self.works();
                    self.events.push_back(WireEvent::Session(event));
                }
                SourceClientEvent::Opened { .. }
                | SourceClientEvent::Refused { .. }
                | SourceClientEvent::Acknowledged { .. }
                | SourceClientEvent::Ended { .. } => self.events.push_back(WireEvent::Session(event)),
            }
        }
    }

    /// The session does what sessions are for.
    pub(super) fn works(&mut self) {
        self.healthy = true;
        self.backoff.reset();
        self.last_error = None;
    }

    fn restart(&mut self, address: Option<&str>) {
        let was_streaming = self.streaming;
        if let Err(error) = self.targets.restart(address) {
            warn!(%error, "Wallaroo named an address that cannot be dialled; the present one stays.");
        }
        info!(target_address = self.targets.current(), "Wallaroo asked for a new connection.");
        self.down(false);
        if was_streaming {
            self.state = State::Down { until: Instant::now() };
        } else {
            // In place of OK while the cluster rolls back: it is not over yet.
            self.pause();
        }
    }

    fn dial_failed(&mut self, error: &io::Error) {
        let reason = match error.kind() {
            io::ErrorKind::ConnectionRefused => "Refused",
            _ => "Unreachable",
        };
        let message = format!("dialling {}: {error}", self.targets.current());
        self.failed(reason, &message, ErrorClass::Connect);
        self.targets.failed();
        self.pause();
    }

    fn link_failed(&mut self, error: &io::Error) {
        let target = self.targets.current();
        let message = if self.streaming {
            format!("connection to {target} lost: {error}")
        } else {
            format!(
                "{target} closed the connection before it answered HELLO, as after a wrong cookie: {error}"
            )
        };
        self.failed("SessionLost", &message, ErrorClass::Connect);
        self.next_after_loss();
        self.down(false);
        self.pause();
    }

    fn session_failed(&mut self, error: SourceClientError) {
        let (reason, class) = match &error {
            SourceClientError::CookieRefused => ("CookieRefused", ErrorClass::Auth),
            SourceClientError::VersionRefused(_) => ("VersionRefused", ErrorClass::Protocol),
            SourceClientError::HandshakeTimeout | SourceClientError::NotifyTimeout { .. } => {
                ("NotServed", ErrorClass::Timeout)
            }
            SourceClientError::Peer { .. } => ("SessionEnded", ErrorClass::Rejected),
            SourceClientError::Frame(_)
            | SourceClientError::Decode(_)
            | SourceClientError::Unexpected { .. }
            | SourceClientError::AcknowledgedBeyondSent { .. } => ("ProtocolError", ErrorClass::Protocol),
        };
        let message = format!("{}: {error}", self.targets.current());
        self.failed(reason, &message, class);
        let undecodable = matches!(&error, SourceClientError::Peer { kind: PeerErrorKind::Undecodable, .. });
        let slow = match error.reaction() {
            Reaction::Report => true,
            Reaction::Reconnect => false,
            // Repeated undecodable records are looked for at full pace.
            Reaction::ReconnectOnce => !undecodable && self.last_error.as_ref() == Some(&error),
        };
        self.next_after_loss();
        self.down(undecodable);
        if slow {
            let jitter = Backoff::dialling().pause(self.env.random());
            self.state = State::Down { until: Instant::now() + self.config.timings.slow_retry + jitter };
        } else {
            self.pause();
        }
        self.last_error = Some(error);
    }

    /// A session that worked is looked for at the same worker first.
    fn next_after_loss(&mut self) {
        if !self.healthy && self.up_since.elapsed() < self.config.timings.healthy {
            self.targets.failed();
        } else {
            self.works();
        }
    }

    fn down(&mut self, undecodable: bool) {
        self.streaming = false;
        let old = std::mem::replace(&mut self.state, State::Down { until: Instant::now() });
        if let State::Up(uplink) = old {
            uplink.last_words();
        }
        self.events.push_back(WireEvent::Lost { undecodable });
    }

    fn pause(&mut self) {
        let until = Instant::now() + self.backoff.pause(self.env.random());
        self.state = State::Down { until };
    }

    fn failed(&mut self, reason: &str, message: &str, class: ErrorClass) {
        self.board.error(Side::Wallaroo, class, message, self.env.unix_millis());
        let state = SideState::Failed { reason: reason.to_owned(), message: message.to_owned() };
        self.board.set_side(Side::Wallaroo, state);
        let failure = (reason.to_owned(), message.to_owned());
        if self.last_failure.as_ref() != Some(&failure) {
            warn!(reason, "No session with Wallaroo: {message}.");
            self.last_failure = Some(failure);
        }
    }

    /// Looks after what shows only with time: a worker that does not read.
    pub(super) fn tick(&mut self, now: Instant) {
        let limit = self.config.timings.not_reading;
        let Some(uplink) = self.uplink() else { return };
        let stuck = uplink.stuck_since(now).is_some_and(|since| now.duration_since(since) >= limit);
        if stuck && !self.not_reading {
            let message = format!(
                "{} takes the connection and does not read from it; a worker serves only as many connections at a time \
                 as its source's parallelism says",
                self.targets.current()
            );
            self.failed("NotReading", &message, ErrorClass::Timeout);
        } else if !stuck && self.not_reading {
            self.last_failure = None;
            self.board.set_side(Side::Wallaroo, SideState::Connected);
            info!("Wallaroo reads again.");
        }
        self.not_reading = stuck;
    }

    /// Ends the connection in order.
    pub(super) async fn close(&mut self) {
        self.streaming = false;
        let old = std::mem::replace(&mut self.state, State::Dialing(Box::pin(pending())));
        if let State::Up(uplink) = old {
            uplink.close().await;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
