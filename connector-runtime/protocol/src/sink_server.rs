//! The session of a sink connector, which workers dial (§4): one accepted connection.

pub mod core;
mod error;
mod interface;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

pub use self::core::Phase as SinkServerPhase;
use self::core::{DataStep, DecideStep, Phase, PrepareStep};
pub use self::core::{Pending, SinkMode, SinkServerCore, WorkerState};
pub use self::error::SinkServerError;
pub use self::interface::{SinkServerConfig, SinkServerEvent};
use crate::buffer::{Input, Output};
use crate::frame::{PREFIX, peek};
use crate::message::{Message, SINK_VERSION};
use crate::run::{Data, Next, Run, measure, next};
use crate::two_phase::{CONTROL_STREAM, DATA_STREAM, TwoPhase};
use crate::wire::{Millis, text};

/// One connection of a worker to a sink.
///
/// After an error, or [`SinkServerEvent::FreshCluster`] with `close_first`, the session is over: write what
/// [`SinkServer::poll_output`] still has and close. The sink also closes when it sees the end of the worker's side: the worker waits
/// for that before it dials again (§4.9). Nothing here ever sends ACK, RESTART, or NOTIFY_ACK with a refusal.
#[derive(Clone, Debug)]
pub struct SinkServer {
    config: SinkServerConfig,
    core: SinkServerCore,
    deadline: Option<Millis>,
    input: Input,
    output: Output,
    events: VecDeque<SinkServerEvent>,
}

impl SinkServer {
    /// A session on a connection just accepted.
    pub fn new(config: SinkServerConfig, now: Millis) -> SinkServer {
        SinkServer {
            core: SinkServerCore::new(config.mode),
            deadline: Some(now.after(config.handshake_timeout)),
            config,
            input: Input::default(),
            output: Output::default(),
            events: VecDeque::new(),
        }
    }

    /// The buffer to read into; it has room for at least 32 KiB.
    pub fn input(&mut self) -> &mut BytesMut {
        self.input.room()
    }

    /// Consumes the whole frames that were read, up to where [`SinkServer::accept`] is awaited. On error the session is over.
    pub fn handle_input(&mut self, _now: Millis) -> Result<(), SinkServerError> {
        loop {
            match self.core.phase() {
                Phase::AwaitHello | Phase::Intro | Phase::Serving => {}
                Phase::AwaitAccept | Phase::AwaitRestart => return Ok(()),
                Phase::Over => {
                    self.input.clear();
                    return Ok(());
                }
            }
            let kind = next(self.input.bytes(), self.config.max_frame);
            match kind.map_err(|error| self.fail(error.into()))? {
                Next::Incomplete => return Ok(()),
                Next::Data => self.on_data()?,
                Next::Control(length) => {
                    let body = self.input.take(PREFIX + length).slice(PREFIX..);
                    let message = Message::decode(body)
                        .map_err(|error| self.reject("Unable to decode message", error.into()))?;
                    self.on_message(message)?;
                }
            }
        }
    }

    fn on_data(&mut self) -> Result<(), SinkServerError> {
        let Ok(Some(body)) = peek(self.input.bytes(), self.config.max_frame) else { return Ok(()) };
        let length = PREFIX + body.len();
        let (stream, id, bytes) = match Data::parse(body) {
            Ok(data) => (data.stream, data.id, data.payload.len()),
            Err(error) => return Err(self.reject("Unable to decode message", error.into())),
        };
        if self.core.phase() != Phase::Serving {
            return Err(self.unexpected("MESSAGE"));
        }
        if stream == CONTROL_STREAM {
            let frame = self.input.take(length);
            let payload = frame.slice(frame.len() - bytes..);
            return self.on_inner(&payload);
        }
        if stream != DATA_STREAM {
            return Err(self.reject("Unknown StreamId", SinkServerError::BadStream { stream }));
        }
        match self.core.data(id, bytes as u64) {
            DataStep::Take => {
                self.take_run();
                Ok(())
            }
            DataStep::Empty | DataStep::Repeat => {
                self.input.take(length);
                Ok(())
            }
            DataStep::Poison { expected, news } => {
                self.input.take(length);
                if news {
                    self.events.push_back(SinkServerEvent::Poisoned { expected, got: id });
                }
                Ok(())
            }
            DataStep::Fresh { close_first, in_doubt } => {
                self.events.push_back(SinkServerEvent::FreshCluster { close_first, in_doubt });
                Ok(())
            }
            DataStep::WhilePending => Err(self.reject(
                "MESSAGE between PHASE1 and PHASE2",
                SinkServerError::DataWhilePending { offset: id },
            )),
        }
    }

    /// The first message was found good: hands over all that continue it.
    fn take_run(&mut self) {
        let SinkServer { core, input, .. } = self;
        let extent = measure(input.bytes(), self.config.max_frame, |data| {
            data.stream == DATA_STREAM
                && !data.payload.is_empty()
                && core.take(data.id, data.payload.len() as u64)
        });
        if let Some(extent) = extent {
            let run = Run::new(DATA_STREAM, input.take(extent.bytes), &extent);
            self.events.push_back(SinkServerEvent::Data(run));
        }
    }

    fn on_inner(&mut self, payload: &Bytes) -> Result<(), SinkServerError> {
        let message = TwoPhase::decode(payload.clone())
            .map_err(|error| self.reject("Unable to decode message", error.into()))?;
        match message {
            TwoPhase::ListUncommitted { rtag } => {
                let transactions =
                    self.core.list().ok_or(()).map_err(|()| self.unexpected("LIST_UNCOMMITTED"))?;
                self.put_inner(&TwoPhase::ReplyUncommitted { rtag, transactions });
                self.deadline = None;
                Ok(())
            }
            TwoPhase::Phase1 { transaction, ranges } => match self.core.prepare(&transaction, &ranges) {
                PrepareStep::Vote { start, end, vote } => {
                    self.events.push_back(SinkServerEvent::Prepare { transaction, start, end, vote });
                    Ok(())
                }
                PrepareStep::Fresh { close_first, in_doubt } => {
                    self.events.push_back(SinkServerEvent::FreshCluster { close_first, in_doubt });
                    if !close_first {
                        self.put_back(payload);
                    }
                    Ok(())
                }
                PrepareStep::WhilePending => {
                    Err(self.reject("PHASE1 before PHASE2", SinkServerError::Phase1WhilePending))
                }
            },
            TwoPhase::Phase2 { transaction, commit } => match self.core.decide(&transaction, commit) {
                DecideStep::Decided => {
                    self.events.push_back(SinkServerEvent::Decide { transaction, commit });
                    Ok(())
                }
                DecideStep::Unknown => {
                    self.events.push_back(SinkServerEvent::UnknownDecision { transaction, commit });
                    Ok(())
                }
                DecideStep::Inconsistent => {
                    let transaction = text(&transaction);
                    Err(self.reject(
                        "PHASE2 commit after a vote to abort",
                        SinkServerError::CommitAfterNo { transaction },
                    ))
                }
                DecideStep::BeforeVote => {
                    Err(self.reject("PHASE2 before REPLY", SinkServerError::DecisionBeforeVote))
                }
            },
            TwoPhase::WorkersLeft { workers, .. } => {
                self.events.push_back(SinkServerEvent::WorkersLeft { workers });
                Ok(())
            }
            TwoPhase::ReplyUncommitted { .. } => Err(self.unexpected("REPLY_UNCOMMITTED")),
            TwoPhase::Reply { .. } => Err(self.unexpected("REPLY")),
        }
    }

    fn on_message(&mut self, message: Message) -> Result<(), SinkServerError> {
        match (self.core.phase(), message) {
            (_, Message::Error { message }) => Err(self.fail(SinkServerError::Peer(text(&message)))),
            (Phase::AwaitHello, Message::Hello { version, cookie, program, instance }) => {
                if version != SINK_VERSION {
                    let got = text(&version);
                    let reply = format!("Unknown protocol version: {got}");
                    return Err(self.reject(&reply, SinkServerError::BadVersion { got }));
                }
                if cookie != self.config.cookie.expose() {
                    return Err(self.reject("Bad cookie", SinkServerError::BadCookie));
                }
                self.core.hello();
                self.events.push_back(SinkServerEvent::Hello { application: program, worker: instance });
                Ok(())
            }
            (Phase::Intro | Phase::Serving, Message::Notify { stream, .. }) => {
                if stream != DATA_STREAM {
                    return Err(self.reject("Unknown StreamId", SinkServerError::BadStream { stream }));
                }
                let position = self.core.notify();
                self.put(&Message::NotifyAck { success: true, stream, position: Some(position) });
                Ok(())
            }
            // Never sent by Wallaroo; the specification says to ignore EOS.
            (Phase::Intro | Phase::Serving, Message::Eos { .. }) => Ok(()),
            (Phase::Intro | Phase::Serving, Message::WorkersLeft { workers, .. }) => {
                self.events.push_back(SinkServerEvent::WorkersLeft { workers });
                Ok(())
            }
            (_, message) => Err(self.unexpected(message.name())),
        }
    }

    /// Gives the worker's state: after [`SinkServerEvent::Hello`] the intro is answered, and after
    /// [`SinkServerEvent::FreshCluster`] (with an empty state) the connection goes on. Frames read meanwhile are processed now.
    pub fn accept(&mut self, state: WorkerState, now: Millis) -> Result<(), SinkServerError> {
        if self.core.accept(state) {
            self.put(&Message::Ok { credits: self.config.credits });
        }
        self.handle_input(now)
    }

    /// The vote of the last [`SinkServerEvent::Prepare`] is durable: sends it. Does nothing when no vote is due, so REPLY goes out exactly
    /// once (§4.4).
    pub fn voted(&mut self) {
        if let Some((transaction, commit)) = self.core.voted() {
            self.put_inner(&TwoPhase::Reply { transaction, commit });
        }
    }

    /// Sends ERROR and ends the session; the driver closes. Costs the cluster a rollback.
    pub fn error(&mut self, text: &str) {
        let text = text.as_bytes();
        let text = &text[..text.len().min(usize::from(u16::MAX))];
        self.put(&Message::Error { message: Bytes::copy_from_slice(text) });
        self.core.close();
    }

    /// Next thing that happened. Take all of them before reading more.
    pub fn poll_event(&mut self) -> Option<SinkServerEvent> {
        self.events.pop_front()
    }

    /// Everything to write, as one buffer. Its memory is used again once the buffer is dropped.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.output.poll()
    }

    /// Bytes waiting in [`SinkServer::poll_output`].
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// When to call [`SinkServer::handle_timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.deadline.filter(|_| self.core.phase() != Phase::Over)
    }

    /// Ends the session if the intro is not complete in time; calling it early does nothing. The wait for
    /// [`SinkServer::accept`] is not the worker's, and does not count.
    pub fn handle_timeout(&mut self, now: Millis) -> Result<(), SinkServerError> {
        if self.poll_timeout().is_none_or(|deadline| deadline > now) {
            return Ok(());
        }
        match self.core.phase() {
            Phase::AwaitHello => Err(self.fail(SinkServerError::HandshakeTimeout)),
            // Data without LIST_UNCOMMITTED is odd and works; a slow driver is not the worker's fault.
            Phase::AwaitAccept | Phase::AwaitRestart | Phase::Intro | Phase::Serving | Phase::Over => {
                self.deadline = None;
                Ok(())
            }
        }
    }

    /// False while [`SinkServer::accept`] is awaited: reading on would only fill memory.
    pub fn wants_input(&self) -> bool {
        !matches!(self.core.phase(), Phase::AwaitAccept | Phase::AwaitRestart)
    }

    /// True after an error, and after a fresh cluster that needs another connection.
    pub fn is_over(&self) -> bool {
        self.core.phase() == Phase::Over
    }

    /// Bytes of an incomplete frame.
    pub fn buffered(&self) -> usize {
        self.input.len()
    }

    /// The decisions so far.
    pub fn core(&self) -> &SinkServerCore {
        &self.core
    }

    /// Puts an inner message back in front of the input: it is judged again with the new state.
    fn put_back(&mut self, payload: &[u8]) {
        let mut again = BytesMut::with_capacity(payload.len() + self.input.len() + 64);
        crate::message::put_data(&mut again, CONTROL_STREAM, 0, 0, &[], payload);
        self.input.put_front(again);
    }

    fn put(&mut self, message: &Message) {
        let _ = message.encode(self.output.room(0)); // every text was checked or is a constant
    }

    fn put_inner(&mut self, message: &TwoPhase) {
        // Cannot fail: the transaction's name came in a field of the same size.
        let _ = message.encode(self.output.room(0));
    }

    fn reject(&mut self, text: &str, error: SinkServerError) -> SinkServerError {
        self.error(text);
        error
    }

    fn unexpected(&mut self, frame: &'static str) -> SinkServerError {
        let phase = self.core.phase().name();
        self.reject("Unexpected message", SinkServerError::Unexpected { frame, phase })
    }

    fn fail(&mut self, error: SinkServerError) -> SinkServerError {
        self.core.close();
        error
    }
}
