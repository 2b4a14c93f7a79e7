//! The session of a worker's source endpoint, which connectors dial (§3.2, §3.11).

pub mod core;
mod error;
mod interface;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use self::core::Phase;
pub use self::core::Phase as SourceServerPhase;
pub use self::core::{ServerStream, ServerStreamPhase, SourceServerCore};
pub use self::error::{SourceServerError, Tolerated};
pub use self::interface::{SourceServerConfig, SourceServerCounters, SourceServerEvent};
use crate::buffer::{Input, Output};
use crate::frame::{FrameError, PREFIX, peek};
use crate::message::{Message, Positions};
use crate::run::{Data, Next, Run, measure, next};
use crate::wire::{Millis, NONE, StreamId};

/// One session of a worker's source endpoint, with HEAD's behaviour.
///
/// After an error the session is over: write what [`SourceServer::poll_output`] still has, then close. The driver then
/// releases [`SourceServer::streams`] in its registry, with `acked` as HEAD does (§7.4).
#[derive(Clone, Debug)]
pub struct SourceServer {
    config: SourceServerConfig,
    core: SourceServerCore,
    counters: SourceServerCounters,
    /// Frames that cost a credit, and credits that left this session: what an honest client can know of.
    spent: u64,
    granted: u64,
    queued_grants: u64,
    overrun_reported: bool,
    input: Input,
    output: Output,
    events: VecDeque<SourceServerEvent>,
}

impl SourceServer {
    /// A session on a connection just accepted.
    pub fn new(config: SourceServerConfig, _now: Millis) -> SourceServer {
        SourceServer {
            core: SourceServerCore::new(config.max_credits, config.refill_credits),
            config,
            counters: SourceServerCounters::default(),
            spent: 0,
            granted: 0,
            queued_grants: 0,
            overrun_reported: false,
            input: Input::default(),
            output: Output::default(),
            events: VecDeque::new(),
        }
    }

    /// The buffer to read into; it has room for at least 32 KiB.
    pub fn input(&mut self) -> &mut BytesMut {
        self.input.room()
    }

    /// Consumes the whole frames that were read. On error the session is over.
    pub fn handle_input(&mut self, _now: Millis) -> Result<(), SourceServerError> {
        while self.core.phase() != Phase::Over {
            if self.core.phase() == Phase::HoldingOk {
                return Ok(());
            }
            let kind = next(self.input.bytes(), self.config.max_frame);
            match kind.map_err(|error| self.frame_error(error))? {
                Next::Incomplete => return Ok(()),
                Next::Data => self.on_data()?,
                Next::Control(length) => {
                    let body = self.input.take(PREFIX + length).slice(PREFIX..);
                    if self.core.swallowing() {
                        continue;
                    }
                    self.charge();
                    let message = Message::decode(body).map_err(|error| {
                        self.reject("Unable to decode message", SourceServerError::Decode(error))
                    })?;
                    self.on_message(message)?;
                }
            }
        }
        self.input.clear();
        Ok(())
    }

    /// A MESSAGE at the front of the input: the longest run of fresh ones, or this one alone.
    fn on_data(&mut self) -> Result<(), SourceServerError> {
        let SourceServer { core, output, input, counters, spent, queued_grants, .. } = self;
        let mut run: Option<StreamId> = None;
        let extent = measure(input.bytes(), self.config.max_frame, |data| {
            if run.is_some_and(|stream| stream != data.stream)
                || data.id == NONE
                || data.payload.is_empty()
                || !core.is_fresh(data.stream, data.id)
            {
                return false;
            }
            run = Some(data.stream);
            *spent += 1;
            counters.frames += 1;
            if let Some(credits) = core.charge() {
                *queued_grants += u64::from(credits);
                put_ack(output, credits, Positions::default());
            }
            core.seen(data.stream, data.id);
            true
        });
        if let (Some(stream), Some(extent)) = (run, extent) {
            counters.records += extent.len as u64;
            counters.payload_bytes += extent.payload_bytes as u64;
            let frames = input.take(extent.bytes);
            self.events.push_back(SourceServerEvent::Records(Run::new(stream, frames, &extent)));
            self.check_overrun();
            return Ok(());
        }
        self.on_single_data()
    }

    /// A MESSAGE that is no record to hand over.
    fn on_single_data(&mut self) -> Result<(), SourceServerError> {
        let Ok(Some(body)) = peek(self.input.bytes(), self.config.max_frame) else { return Ok(()) };
        let length = PREFIX + body.len();
        let parsed = Data::parse(body).map(|data| (data.stream, data.id, data.payload.is_empty()));
        let frame = self.input.take(length);
        if self.core.swallowing() {
            return Ok(());
        }
        self.charge();
        let (stream, id, empty) = parsed
            .map_err(|error| self.reject("Unable to decode message", SourceServerError::Decode(error)))?;
        match self.core.phase() {
            Phase::Streaming => {}
            Phase::Connected | Phase::HoldingOk | Phase::Over => {
                return Err(self.bad_state("MESSAGE", "before HELLO"));
            }
            Phase::Shrinking => return Err(self.bad_state("MESSAGE", "while the worker leaves its cluster")),
        }
        if self.core.rolling_back() {
            self.counters.discarded += 1;
            return Ok(());
        }
        if !self.core.is_open(stream) {
            let text = format!("Bad/unregistered stream_id {stream} with message_id {id}");
            return Err(self.reject(&text, SourceServerError::BadStream { stream, id }));
        }
        if !self.core.is_fresh(stream, id) {
            self.counters.repeats += 1;
            return Ok(());
        }
        self.core.seen(stream, id);
        if id == NONE {
            self.events.push_back(SourceServerEvent::Tolerated(Tolerated::ReservedId { stream }));
        }
        if empty {
            self.counters.empty += 1;
            self.events.push_back(SourceServerEvent::Tolerated(Tolerated::EmptyRecord { stream, id }));
        } else {
            let extent = measure(&frame, self.config.max_frame, |_| true);
            if let Some(extent) = extent {
                self.counters.records += 1;
                self.counters.payload_bytes += extent.payload_bytes as u64;
                self.events.push_back(SourceServerEvent::Records(Run::new(stream, frame, &extent)));
            }
        }
        Ok(())
    }

    fn on_message(&mut self, message: Message) -> Result<(), SourceServerError> {
        let phase = self.core.phase();
        match message {
            Message::Hello { version, cookie, program, instance } => {
                if phase != Phase::Connected {
                    return Err(self.reject("Bad protocol FSM state", SourceServerError::SecondHello));
                }
                self.on_hello(&version, &cookie)?;
                self.events.push_back(SourceServerEvent::Hello { program, instance });
                if !self.config.hold_ok {
                    self.accept();
                }
                Ok(())
            }
            Message::Notify { stream, name, position } => match phase {
                Phase::Streaming => self.on_notify(stream, name, position),
                Phase::Shrinking => Err(self.bad_state("NOTIFY", "while the worker leaves its cluster")),
                Phase::Connected | Phase::HoldingOk | Phase::Over => {
                    Err(self.bad_state("NOTIFY", "before HELLO"))
                }
            },
            Message::Eos { stream } => {
                if self.core.eos(stream) {
                    self.events.push_back(SourceServerEvent::Eos { stream });
                    return Ok(());
                }
                Err(self.reject("Unable to decode message", SourceServerError::BadEos { stream }))
            }
            Message::Error { message } => {
                self.core.close();
                Err(SourceServerError::Peer(crate::wire::text(&message)))
            }
            Message::Ok { .. } => Err(self.invalid("ok")),
            Message::NotifyAck { .. } => Err(self.invalid("notify_ack")),
            Message::Ack { .. } => Err(self.invalid("ack")),
            Message::Restart { .. } => Err(self.invalid("restart")),
            // MESSAGE frames never come here.
            Message::WorkersLeft { .. } | Message::Data { .. } => Ok(()),
        }
    }

    fn on_hello(&mut self, version: &Bytes, cookie: &Bytes) -> Result<(), SourceServerError> {
        if *version != self.config.version {
            let got = crate::wire::text(version);
            let reply = format!("Unknown protocol version: {got}");
            return Err(self.reject(&reply, SourceServerError::BadVersion { got }));
        }
        if cookie != self.config.cookie.expose() {
            // The real text, which gives the cookie away.
            let got = String::from_utf8_lossy(cookie);
            let wanted = String::from_utf8_lossy(self.config.cookie.expose());
            let reply = format!("Bad cookie: {got}, wanted: {wanted}");
            return Err(self.reject(&reply, SourceServerError::BadCookie));
        }
        self.core.hello();
        Ok(())
    }

    fn on_notify(
        &mut self,
        stream: StreamId,
        name: Bytes,
        position: Option<u64>,
    ) -> Result<(), SourceServerError> {
        if name.is_empty() {
            self.core.close();
            return Err(SourceServerError::EmptyName { stream });
        }
        if self.core.notify(stream) {
            self.events.push_back(SourceServerEvent::Notify { stream, name, position });
        } else {
            self.put(&Message::NotifyAck { success: false, stream, position });
        }
        Ok(())
    }

    /// Sends OK that the configuration held back, and goes on with what was read behind HELLO at the next
    /// [`SourceServer::handle_input`].
    pub fn accept(&mut self) {
        if self.core.accept() {
            self.queued_grants += u64::from(self.config.max_credits);
            self.put(&Message::Ok { credits: self.config.max_credits });
        }
    }

    /// Answers a [`SourceServerEvent::Notify`]: on success the stream is open behind `position`, otherwise `position`
    /// is only echoed.
    pub fn notify_ack(&mut self, stream: StreamId, success: bool, position: Option<u64>) {
        if self.core.notify_answered(stream, success, position) {
            self.put(&Message::NotifyAck { success, stream, position });
        }
    }

    /// Forgets a pending NOTIFY without an answer, as a worker that leaves its cluster does (§3.4).
    pub fn ignore_notify(&mut self, stream: StreamId) {
        self.core.forget_pending(stream);
    }

    /// The barrier of a checkpoint passes: every open or closing stream will be acknowledged up to what was seen by now.
    pub fn barrier(&mut self) {
        self.core.barrier();
    }

    /// A checkpoint completed: one ACK with these positions and all credits spent so far; none if it would say nothing.
    pub fn acknowledge(&mut self, positions: &[(StreamId, Option<u64>)]) {
        if !self.core.is_streaming() {
            return;
        }
        let credits = self.core.refill();
        if credits > 0 || !positions.is_empty() {
            self.queued_grants += u64::from(credits);
            put_ack(&mut self.output, credits, positions.iter().copied().collect());
        }
    }

    /// Final positions of streams that ended: one ACK without credits; the streams leave the session.
    pub fn acknowledge_ended(&mut self, positions: &[(StreamId, Option<u64>)]) {
        if !self.core.is_streaming() || positions.is_empty() {
            return;
        }
        put_ack(&mut self.output, 0, positions.iter().copied().collect());
        for (stream, _) in positions {
            self.core.remove(*stream);
        }
    }

    /// Sends RESTART. The driver closes after a rollback, and not when the worker leaves its cluster (§7.8).
    pub fn restart(&mut self, address: Option<&str>) {
        let address = address.map(|address| Bytes::copy_from_slice(address.as_bytes()));
        self.put(&Message::Restart { address });
    }

    /// Sends ERROR and ends the session; the driver closes. Texts above 65,535 bytes are cut.
    pub fn error(&mut self, text: &str) {
        self.put_error(text);
        self.core.close();
    }

    /// While the worker rolls back, NOTIFY is refused and records are discarded.
    pub fn set_rolling_back(&mut self, rolling_back: bool) {
        self.core.set_rolling_back(rolling_back);
    }

    /// From now on everything is read and ignored, without credits: the session itself waits for a rollback.
    pub fn set_swallowing(&mut self, swallowing: bool) {
        self.core.set_swallowing(swallowing);
    }

    /// From now on NOTIFY and MESSAGE end the session: the worker leaves its cluster.
    pub fn set_shrinking(&mut self) {
        self.core.set_shrinking();
    }

    /// Next thing that happened. Take all of them before reading more.
    pub fn poll_event(&mut self) -> Option<SourceServerEvent> {
        self.events.pop_front()
    }

    /// Everything to write, as one buffer. Its memory is used again once the buffer is dropped.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.granted += std::mem::take(&mut self.queued_grants);
        self.output.poll()
    }

    /// Bytes waiting in [`SourceServer::poll_output`].
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// This session has no timers: a worker waits for ever.
    pub fn poll_timeout(&self) -> Option<Millis> {
        None
    }

    /// Nothing is ever due.
    pub fn handle_timeout(&mut self, _now: Millis) -> Result<(), SourceServerError> {
        Ok(())
    }

    /// Streams of this session, in order of their ids.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, ServerStream)> + '_ {
        self.core.streams()
    }

    /// One stream of this session.
    pub fn stream(&self, stream: StreamId) -> Option<ServerStream> {
        self.core.stream(stream)
    }

    /// What was seen so far.
    pub fn counters(&self) -> SourceServerCounters {
        self.counters
    }

    /// False while OK is held back: reading on would only fill memory.
    pub fn wants_input(&self) -> bool {
        self.core.phase() != Phase::HoldingOk
    }

    /// True after an error.
    pub fn is_over(&self) -> bool {
        self.core.phase() == Phase::Over
    }

    /// Bytes of an incomplete frame.
    pub fn buffered(&self) -> usize {
        self.input.len()
    }

    /// The decisions so far.
    pub fn core(&self) -> &SourceServerCore {
        &self.core
    }

    /// Every frame costs a credit before it is looked at (§3.3).
    fn charge(&mut self) {
        self.counters.frames += 1;
        if self.core.is_streaming() {
            self.spent += 1;
        }
        if let Some(credits) = self.core.charge() {
            self.queued_grants += u64::from(credits);
            put_ack(&mut self.output, credits, Positions::default());
        }
        self.check_overrun();
    }

    fn check_overrun(&mut self) {
        if self.spent > self.granted && !self.overrun_reported && self.core.is_streaming() {
            self.overrun_reported = true;
            let tolerated = Tolerated::CreditsOverrun { spent: self.spent, granted: self.granted };
            self.events.push_back(SourceServerEvent::Tolerated(tolerated));
        }
    }

    fn put(&mut self, message: &Message) {
        // Cannot fail: every text was checked, and lists come from memory far below 4 GiB.
        let _ = message.encode(self.output.room(0));
    }

    fn put_error(&mut self, text: &str) {
        let text = text.as_bytes();
        let text = &text[..text.len().min(usize::from(u16::MAX))];
        self.put(&Message::Error { message: Bytes::copy_from_slice(text) });
    }

    fn reject(&mut self, text: &str, error: SourceServerError) -> SourceServerError {
        self.put_error(text);
        self.core.close();
        error
    }

    fn bad_state(&mut self, frame: &'static str, when: &'static str) -> SourceServerError {
        self.reject("Bad protocol FSM state", SourceServerError::BadState { frame, when })
    }

    fn invalid(&mut self, frame: &'static str) -> SourceServerError {
        self.reject(&format!("Invalid message: {frame}"), SourceServerError::InvalidMessage { frame })
    }

    /// A worker says nothing about impossible lengths.
    fn frame_error(&mut self, error: FrameError) -> SourceServerError {
        self.core.close();
        error.into()
    }
}

fn put_ack(output: &mut Output, credits: u32, positions: Positions) {
    let _ = Message::Ack { credits, positions }.encode(output.room(0)); // lists are far below 4 GiB
}
