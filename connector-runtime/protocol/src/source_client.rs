//! The session of a source connector, which dials a worker (§3.2).

pub mod core;
mod error;
mod interface;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

pub use self::core::Phase as SourceClientPhase;
pub use self::core::SourceClientCore;
use self::core::{Answered, Control, EntryError, Phase};
pub use self::error::{PeerErrorKind, Reaction, SendError, SourceClientError, StreamError};
pub use self::interface::{OutRecord, SourceClientConfig, SourceClientEvent};
use crate::buffer::{Input, Output};
use crate::frame::PREFIX;
use crate::message::{MESSAGE_OVERHEAD, Message, SOURCE_VERSION, put_data};
use crate::run::{Next, next};
use crate::wire::{EncodeError, Millis, NONE, StreamId};

/// What a stream needs beside the decisions in the core.
#[derive(Clone, Debug)]
struct Opening {
    name: Bytes,
    proposal: Option<u64>,
    pause: u64,
    timer: Option<(Wait, Millis)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Answer,
    Retry,
}

/// One session of a source connector.
///
/// Back-pressure: [`SourceClient::send`] takes records only while there are credits, and the driver calls it only while
/// [`SourceClient::output_len`] is small, so that nothing piles up behind a full socket.
///
/// After an error or [`SourceClientEvent::Restart`] the session is over: write what [`SourceClient::poll_output`] still
/// has, close, and start a new session. Nothing that was not acknowledged counts as received.
#[derive(Clone, Debug)]
pub struct SourceClient {
    config: SourceClientConfig,
    core: SourceClientCore,
    openings: BTreeMap<StreamId, Opening>,
    handshake_deadline: Option<Millis>,
    input: Input,
    output: Output,
    events: VecDeque<SourceClientEvent>,
}

impl SourceClient {
    /// A session on a connection just made; HELLO is in the output. Refuses names and a cookie too long for
    /// their fields or for one frame.
    pub fn new(config: SourceClientConfig, now: Millis) -> Result<SourceClient, EncodeError> {
        let mut output = Output::default();
        let hello = Message::Hello {
            version: Bytes::from_static(SOURCE_VERSION),
            cookie: config.cookie.expose().clone(),
            program: Bytes::copy_from_slice(config.program.as_bytes()),
            instance: Bytes::copy_from_slice(config.instance.as_bytes()),
        };
        let length = hello.body_len()?;
        if length > config.send_limit as usize {
            return Err(EncodeError::FrameTooLong { length });
        }
        hello.encode(output.room(0))?;
        Ok(SourceClient {
            handshake_deadline: Some(now.after(config.handshake_timeout)),
            config,
            core: SourceClientCore::default(),
            openings: BTreeMap::new(),
            input: Input::default(),
            output,
            events: VecDeque::new(),
        })
    }

    /// The buffer to read into; it has room for at least 32 KiB.
    pub fn input(&mut self) -> &mut BytesMut {
        self.input.room()
    }

    /// Consumes the whole frames that were read. On error the session is over.
    pub fn handle_input(&mut self, now: Millis) -> Result<(), SourceClientError> {
        while self.core.phase() != Phase::Over {
            let limit = self.config.receive_limit;
            let length = match next(self.input.bytes(), limit).map_err(|error| self.fail(error.into()))? {
                Next::Incomplete => return Ok(()),
                Next::Data => return Err(self.unexpected("MESSAGE")),
                Next::Control(length) => length,
            };
            let body = self.input.take(PREFIX + length).slice(PREFIX..);
            let message = Message::decode(body).map_err(|error| {
                self.say("Unable to decode message");
                self.fail(error.into())
            })?;
            self.on_message(message, now)?;
        }
        self.input.clear();
        Ok(())
    }

    fn on_message(&mut self, message: Message, now: Millis) -> Result<(), SourceClientError> {
        match (self.core.phase(), message) {
            (_, Message::Error { message }) => {
                let error = SourceClientError::from_peer(&message, &self.config.cookie);
                Err(self.fail(error))
            }
            (Phase::Handshake | Phase::Streaming, Message::Restart { address }) => {
                self.core.close();
                let address = address.map(|address| String::from_utf8_lossy(&address).into_owned());
                self.events.push_back(SourceClientEvent::Restart { address });
                Ok(())
            }
            (Phase::Handshake, Message::Ok { credits }) => {
                self.handshake_deadline = None;
                self.core.ready(credits);
                self.events.push_back(SourceClientEvent::Ready { credits });
                self.flush_control(now);
                Ok(())
            }
            (Phase::Streaming, Message::NotifyAck { success, stream, position }) => {
                self.on_notify_ack(success, stream, position, now);
                Ok(())
            }
            (Phase::Streaming, Message::Ack { credits, positions }) => {
                self.core.grant(credits);
                if !positions.is_empty() {
                    self.events.push_back(SourceClientEvent::Checkpoint);
                }
                for (stream, position) in positions.iter() {
                    self.on_ack(stream, position)?;
                }
                self.flush_control(now);
                Ok(())
            }
            (_, message) => Err(self.unexpected(message.name())),
        }
    }

    fn on_notify_ack(&mut self, success: bool, stream: StreamId, position: Option<u64>, now: Millis) {
        let answered = self.core.notify_answered(stream, success, position);
        let Some(opening) = self.openings.get_mut(&stream) else { return };
        match answered {
            Answered::Opened(position) => {
                self.openings.remove(&stream);
                self.events.push_back(SourceClientEvent::Opened { stream, position });
            }
            Answered::OpenedAndEnding => {
                self.openings.remove(&stream);
                self.flush_control(now);
            }
            Answered::Refused => {
                opening.timer = Some((Wait::Retry, now.after(opening.pause)));
                opening.pause = (opening.pause * 2).min(self.config.notify_retry_max);
                self.events.push_back(SourceClientEvent::Refused { stream });
            }
            Answered::GivenUp => {
                self.openings.remove(&stream);
                self.events.push_back(SourceClientEvent::Ended { stream, position: None });
            }
            Answered::Unexpected => {}
        }
    }

    fn on_ack(&mut self, stream: StreamId, position: Option<u64>) -> Result<(), SourceClientError> {
        let acknowledged = self.core.acknowledged(stream, position).map_err(|error| match error {
            EntryError::BeyondSent { position, sent } => {
                self.fail(SourceClientError::AcknowledgedBeyondSent { stream, position, sent })
            }
        })?;
        if let Some(position) = acknowledged.progress {
            self.events.push_back(SourceClientEvent::Acknowledged { stream, position });
        }
        if acknowledged.ended {
            self.events.push_back(SourceClientEvent::Ended { stream, position: acknowledged.position });
        }
        Ok(())
    }

    /// Next thing that happened. Take all of them before reading more.
    pub fn poll_event(&mut self) -> Option<SourceClientEvent> {
        self.events.pop_front()
    }

    /// Everything to write, as one buffer. Its memory is used again once the buffer is dropped.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.output.poll()
    }

    /// Bytes waiting in [`SourceClient::poll_output`].
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// When to call [`SourceClient::handle_timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Millis> {
        if self.core.phase() == Phase::Over {
            return None;
        }
        let timers = self.openings.values().filter_map(|opening| opening.timer.map(|(_, at)| at));
        timers.chain(self.handshake_deadline).min()
    }

    /// Acts on what is due at `now`; calling it early does nothing. On error the session is over.
    pub fn handle_timeout(&mut self, now: Millis) -> Result<(), SourceClientError> {
        if self.core.phase() == Phase::Over {
            return Ok(());
        }
        if self.handshake_deadline.is_some_and(|deadline| deadline <= now) {
            return Err(self.fail(SourceClientError::HandshakeTimeout));
        }
        let mut late = None;
        for (stream, opening) in &mut self.openings {
            match opening.timer {
                Some((Wait::Answer, at)) if at <= now => late = late.or(Some(*stream)),
                Some((Wait::Retry, at)) if at <= now => {
                    opening.timer = None;
                    self.core.retry(*stream);
                }
                Some(_) | None => {}
            }
        }
        if let Some(stream) = late {
            return Err(self.fail(SourceClientError::NotifyTimeout { stream }));
        }
        self.flush_control(now);
        Ok(())
    }

    /// Asks to open a stream; may be called before OK. `position` is the last id known to be durable in Wallaroo, `None`
    /// without any: then Wallaroo's answer decides alone. Answered by [`SourceClientEvent::Opened`].
    pub fn open(
        &mut self,
        stream: StreamId,
        name: &[u8],
        position: Option<u64>,
        now: Millis,
    ) -> Result<(), StreamError> {
        const OVERHEAD: usize = 19;
        if name.is_empty() {
            return Err(StreamError::EmptyName { stream });
        }
        if OVERHEAD + name.len() > self.config.send_limit as usize {
            return Err(StreamError::NameTooLong { stream, length: name.len() });
        }
        if position == Some(NONE) {
            return Err(StreamError::ReservedPosition { stream });
        }
        self.core.open(stream)?;
        let opening = Opening {
            name: Bytes::copy_from_slice(name),
            proposal: position,
            pause: self.config.notify_retry_min,
            timer: None,
        };
        self.openings.insert(stream, opening);
        self.flush_control(now);
        Ok(())
    }

    /// Encodes records of an open stream while credits last; returns how many were taken.
    ///
    /// On error the records before the named one were taken, and nothing of it or behind it: the driver may skip it and go on.
    pub fn send<'a>(
        &mut self,
        stream: StreamId,
        records: impl Iterator<Item = OutRecord<'a>>,
    ) -> Result<usize, SendError> {
        let limit = self.config.send_limit as usize;
        let (credits, mut last) = self.core.sending(stream)?;
        let before = last;
        let (mut taken, mut failure) = (0, None);
        for (index, record) in records.take(usize::try_from(credits).unwrap_or(usize::MAX)).enumerate() {
            let OutRecord { id, time, key, payload } = record;
            let size = MESSAGE_OVERHEAD + key.len() + payload.len();
            if size > limit {
                failure = Some(SendError::TooLarge { index, stream, id, size, limit });
            } else if payload.is_empty() {
                failure = Some(SendError::Empty { index, stream, id });
            } else if id == 0 || id == NONE {
                failure = Some(SendError::ReservedId { index, stream, id });
            } else if last.is_some_and(|last| id <= last) {
                failure = Some(SendError::NotIncreasing { index, stream, id, last: last.unwrap_or(0) });
            } else if key.len() > usize::from(u16::MAX) {
                failure = Some(SendError::KeyTooLong { index, stream, id, length: key.len() });
            }
            if failure.is_some() {
                break;
            }
            put_data(self.output.room(PREFIX + size), stream, id, time, key, payload);
            last = Some(id);
            taken = index + 1;
        }
        if last != before {
            self.core.sent(stream, taken as u64, last);
        }
        failure.map_or(Ok(taken), Err)
    }

    /// Ends a stream: EOS goes out as soon as there is a credit, ahead of records, and
    /// [`SourceClientEvent::Ended`] follows. A stream that is not open yet is given up.
    pub fn end(&mut self, stream: StreamId, now: Millis) -> Result<(), StreamError> {
        if self.core.end(stream)? {
            self.openings.remove(&stream);
            self.events.push_back(SourceClientEvent::Ended { stream, position: None });
        }
        self.flush_control(now);
        Ok(())
    }

    /// Credits left for records.
    pub fn credits(&self) -> u64 {
        self.core.credits()
    }

    /// True after an error or RESTART.
    pub fn is_over(&self) -> bool {
        self.core.phase() == Phase::Over
    }

    /// Bytes of an incomplete frame.
    pub fn buffered(&self) -> usize {
        self.input.len()
    }

    /// The decisions so far.
    pub fn core(&self) -> &SourceClientCore {
        &self.core
    }

    /// Sends the control frames that credits permit; they go ahead of records.
    fn flush_control(&mut self, now: Millis) {
        while let Some(control) = self.core.next_control() {
            let message = match control {
                Control::Notify(stream) => {
                    let Some(opening) = self.openings.get_mut(&stream) else { continue };
                    opening.timer = Some((Wait::Answer, now.after(self.config.notify_timeout)));
                    Message::Notify { stream, name: opening.name.clone(), position: opening.proposal }
                }
                Control::Eos(stream) => Message::Eos { stream },
            };
            // Cannot fail: the name's length was checked in `open`.
            let _ = message.encode(self.output.room(0));
        }
    }

    fn say(&mut self, text: &'static str) {
        let error = Message::Error { message: Bytes::from_static(text.as_bytes()) };
        let _ = error.encode(self.output.room(0)); // a short constant always fits
    }

    fn unexpected(&mut self, frame: &'static str) -> SourceClientError {
        self.say("Unexpected message");
        self.fail(SourceClientError::Unexpected { frame, phase: self.core.phase().name() })
    }

    fn fail(&mut self, error: SourceClientError) -> SourceClientError {
        self.core.close();
        self.input.clear();
        error
    }
}
