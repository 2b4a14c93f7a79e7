//! The session of a worker's sink endpoint, which dials an external sink (§4.2, §4.7): one connection.

pub mod core;
mod error;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

pub use self::core::Phase as SinkClientPhase;
pub use self::core::SinkClientCore;
use self::core::{Phase, VoteError};
pub use self::error::{SinkClientError, SinkMisuse};
use crate::buffer::{Input, Output};
use crate::cookie::Cookie;
use crate::frame::{DEFAULT_FRAME_LIMIT, PREFIX, peek};
use crate::message::{MESSAGE_OVERHEAD, Message, SINK_VERSION, put_data};
use crate::run::{Data, Next, next};
use crate::two_phase::{CONTROL_STREAM, DATA_STREAM, Range, TwoPhase};
use crate::wire::{EncodeError, Millis, check_str16, text};

/// `rtag` of the first connection of a worker's sink; each further connection adds 1.
pub const FIRST_RTAG: u64 = 77_778;

/// Settings of a [`SinkClient`].
#[derive(Clone, Debug)]
pub struct SinkClientConfig {
    /// The sink's cookie.
    pub cookie: Cookie,
    /// Name of the Wallaroo application.
    pub application: String,
    /// Name of the worker.
    pub worker: String,
    /// Name of stream 1: `<application>-w-<worker>-id-<number>` at a real worker.
    pub stream_name: String,
    /// Offset that NOTIFY announces; sinks ignore it.
    pub notify_position: u64,
    /// Number of this connection's `LIST_UNCOMMITTED`.
    pub rtag: u64,
    /// Longest frame accepted from the sink.
    pub max_frame: u32,
}

impl SinkClientConfig {
    /// The first connection of a worker, with a stream name like a real worker's.
    pub fn new(cookie: Cookie, application: impl Into<String>, worker: impl Into<String>) -> Self {
        let (application, worker) = (application.into(), worker.into());
        SinkClientConfig {
            cookie,
            stream_name: format!("{application}-w-{worker}-id-1"),
            application,
            worker,
            notify_position: 0,
            rtag: FIRST_RTAG,
            max_frame: DEFAULT_FRAME_LIMIT,
        }
    }
}

/// What a [`SinkClient`] tells its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkClientEvent {
    /// The intro is complete and nothing is undecided.
    Ready,
    /// The intro is complete; these transactions (one) wait for [`SinkClient::phase2`].
    Uncommitted {
        /// The transactions.
        transactions: Vec<Bytes>,
    },
    /// The sink voted on the outstanding transaction.
    Vote {
        /// The transaction.
        transaction: Bytes,
        /// True for commit. After a *no* a real worker closes the connection and decides on the next one.
        commit: bool,
    },
}

/// One connection of a worker to a sink.
///
/// After an error the session is over: write what [`SinkClient::poll_output`] still has, close, and dial again after a second. A worker
/// loses a checkpoint by that.
#[derive(Clone, Debug)]
pub struct SinkClient {
    config: SinkClientConfig,
    core: SinkClientCore,
    input: Input,
    output: Output,
    events: VecDeque<SinkClientEvent>,
}

impl SinkClient {
    /// A session on a connection just made; the three frames of the intro are in the output.
    pub fn new(config: SinkClientConfig, _now: Millis) -> Result<SinkClient, EncodeError> {
        let mut output = Output::default();
        let out = output.room(0);
        let hello = Message::Hello {
            version: Bytes::from_static(SINK_VERSION),
            cookie: config.cookie.expose().clone(),
            program: Bytes::copy_from_slice(config.application.as_bytes()),
            instance: Bytes::copy_from_slice(config.worker.as_bytes()),
        };
        hello.encode(out)?;
        let notify = Message::Notify {
            stream: DATA_STREAM,
            name: Bytes::copy_from_slice(config.stream_name.as_bytes()),
            position: Some(config.notify_position),
        };
        notify.encode(out)?;
        TwoPhase::ListUncommitted { rtag: config.rtag }.encode(out)?;
        Ok(SinkClient {
            config,
            core: SinkClientCore::default(),
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
    pub fn handle_input(&mut self, _now: Millis) -> Result<(), SinkClientError> {
        while self.core.phase() != Phase::Over {
            let limit = self.config.max_frame;
            match next(self.input.bytes(), limit).map_err(|error| self.fail(error.into()))? {
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
        self.input.clear();
        Ok(())
    }

    fn on_data(&mut self) -> Result<(), SinkClientError> {
        let Ok(Some(body)) = peek(self.input.bytes(), self.config.max_frame) else { return Ok(()) };
        let parsed = Data::parse(body).map(|data| (data.stream, data.payload.len()));
        let frame = self.input.take(PREFIX + body.len());
        let (stream, length) =
            parsed.map_err(|error| self.reject("Unable to decode message", error.into()))?;
        if stream != CONTROL_STREAM || length == 0 {
            return Err(self.reject("Bad msg", SinkClientError::BadMessage { stream, length }));
        }
        let inner = TwoPhase::decode(frame.slice(frame.len() - length..))
            .map_err(|error| self.fail(SinkClientError::BadInner(error)))?;
        match inner {
            TwoPhase::ReplyUncommitted { rtag, transactions } => self.on_list(rtag, transactions),
            TwoPhase::Reply { transaction, commit } => self.on_vote(transaction, commit),
            TwoPhase::ListUncommitted { .. }
            | TwoPhase::Phase1 { .. }
            | TwoPhase::Phase2 { .. }
            | TwoPhase::WorkersLeft { .. } => {
                Err(self.fail(SinkClientError::WrongInner { message: inner.name() }))
            }
        }
    }

    fn on_list(&mut self, rtag: u64, transactions: Vec<Bytes>) -> Result<(), SinkClientError> {
        if self.core.phase() != Phase::Intro {
            return Err(self.reject("Bad msg", SinkClientError::OutOfOrder { frame: "REPLY_UNCOMMITTED" }));
        }
        if !self.core.notify_acked() {
            let error = SinkClientError::OutOfOrder { frame: "REPLY_UNCOMMITTED" };
            return Err(self.reject("Bad msg", error));
        }
        if rtag != self.config.rtag {
            let wanted = self.config.rtag;
            return Err(self.reject("Bad msg", SinkClientError::WrongRtag { got: rtag, wanted }));
        }
        if transactions.len() > 1 {
            return Err(self.fail(SinkClientError::SeveralUncommitted { count: transactions.len() }));
        }
        self.core.listed(transactions.first().cloned());
        let event = if transactions.is_empty() {
            SinkClientEvent::Ready
        } else {
            SinkClientEvent::Uncommitted { transactions }
        };
        self.events.push_back(event);
        Ok(())
    }

    fn on_vote(&mut self, transaction: Bytes, commit: bool) -> Result<(), SinkClientError> {
        match self.core.vote(&transaction) {
            Ok(()) => {
                self.events.push_back(SinkClientEvent::Vote { transaction, commit });
                Ok(())
            }
            Err(VoteError::NotReady) => {
                Err(self.reject("Bad msg", SinkClientError::OutOfOrder { frame: "REPLY" }))
            }
            Err(VoteError::Unasked) => {
                let transaction = text(&transaction);
                Err(self.fail(SinkClientError::UnaskedVote { transaction, commit }))
            }
        }
    }

    fn on_message(&mut self, message: Message) -> Result<(), SinkClientError> {
        match message {
            Message::Ok { credits } => {
                if !self.core.ok() {
                    // The text of a real worker.
                    return Err(
                        self.reject("Bad msg @ line 282", SinkClientError::OutOfOrder { frame: "OK" })
                    );
                }
                if credits < 2 {
                    return Err(self.reject("Bad msg", SinkClientError::TooFewCredits { credits }));
                }
                Ok(())
            }
            Message::NotifyAck { success: false, .. } => {
                Err(self.reject("Got NotifyAck success=false", SinkClientError::NotifyRefused))
            }
            Message::NotifyAck { success: true, stream, .. } => {
                if stream != DATA_STREAM {
                    return Err(self.reject("Bad msg", SinkClientError::BadMessage { stream, length: 0 }));
                }
                if self.core.notify_ack() {
                    return Ok(());
                }
                Err(self.reject("Bad msg", SinkClientError::OutOfOrder { frame: "NOTIFY_ACK" }))
            }
            Message::Ack { .. } => {
                Err(self.reject("Bad External Connection State: F", SinkClientError::AckFromSink))
            }
            Message::Restart { .. } => Err(self.fail(SinkClientError::RestartFromSink)),
            Message::Error { message } => {
                let got = text(&message);
                // The text of a real worker, whose format is broken in this way.
                let reply = format!("Protocol error: Sink sent us ErrorMsg: %s{got}");
                Err(self.reject(&reply, SinkClientError::Peer(got)))
            }
            Message::Hello { .. } | Message::Notify { .. } => {
                let frame = message.name();
                Err(self.reject("Bad msg", SinkClientError::WrongDirection { frame }))
            }
            // Ignored by a real worker. MESSAGE frames never come here.
            Message::Eos { .. } | Message::WorkersLeft { .. } | Message::Data { .. } => Ok(()),
        }
    }

    /// Sends output: each payload is one message, the first at `offset`. Returns the offset behind the last.
    ///
    /// A payload that makes a frame above 4 GiB is refused; those before it were sent. Empty payloads are legal and change nothing.
    pub fn send<'a>(
        &mut self,
        offset: u64,
        payloads: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<u64, SinkMisuse> {
        self.core.may_send()?;
        let mut offset = offset;
        for payload in payloads {
            let size = MESSAGE_OVERHEAD + payload.len();
            if size > u32::MAX as usize {
                return Err(SinkMisuse::Encode(EncodeError::FrameTooLong { length: size }));
            }
            put_data(self.output.room(PREFIX + size), DATA_STREAM, offset, 0, &[], payload);
            offset += payload.len() as u64;
        }
        Ok(offset)
    }

    /// Asks for a vote on bytes `start..end`. No output may follow before [`SinkClient::phase2`].
    pub fn phase1(&mut self, transaction: &[u8], start: u64, end: u64) -> Result<(), SinkMisuse> {
        check_str16(transaction, "txn_id")?;
        let transaction = Bytes::copy_from_slice(transaction);
        self.core.phase1(transaction.clone())?;
        let ranges = vec![Range { stream: DATA_STREAM, start, end }];
        Ok(TwoPhase::Phase1 { transaction, ranges }.encode(self.output.room(0))?)
    }

    /// Sends the decision on the outstanding or listed transaction. An abort of the outstanding one never comes on its own connection at a real
    /// worker; after it this session only waits to be closed.
    pub fn phase2(&mut self, transaction: &[u8], commit: bool) -> Result<(), SinkMisuse> {
        self.core.phase2(transaction, commit)?;
        let transaction = Bytes::copy_from_slice(transaction);
        Ok(TwoPhase::Phase2 { transaction, commit }.encode(self.output.room(0))?)
    }

    /// Tells the sink that workers left the cluster. A real worker uses the number 7.
    pub fn workers_left(&mut self, workers: Vec<Bytes>) -> Result<(), SinkMisuse> {
        self.core.may_talk()?;
        Ok(TwoPhase::WorkersLeft { rtag: 7, workers }.encode(self.output.room(0))?)
    }

    /// Next thing that happened. Take all of them before reading more.
    pub fn poll_event(&mut self) -> Option<SinkClientEvent> {
        self.events.pop_front()
    }

    /// Everything to write, as one buffer. Its memory is used again once the buffer is dropped.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.output.poll()
    }

    /// Bytes waiting in [`SinkClient::poll_output`].
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// This session has no timers: a worker waits for ever.
    pub fn poll_timeout(&self) -> Option<Millis> {
        None
    }

    /// Nothing is ever due.
    pub fn handle_timeout(&mut self, _now: Millis) -> Result<(), SinkClientError> {
        Ok(())
    }

    /// True once the intro is complete and nothing is undecided.
    pub fn is_ready(&self) -> bool {
        self.core.is_ready()
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
    pub fn core(&self) -> &SinkClientCore {
        &self.core
    }

    fn reject(&mut self, text: &str, error: SinkClientError) -> SinkClientError {
        let text = text.as_bytes();
        let text = &text[..text.len().min(usize::from(u16::MAX))];
        let message = Message::Error { message: Bytes::copy_from_slice(text) };
        let _ = message.encode(self.output.room(0)); // the text was cut to what fits
        self.fail(error)
    }

    fn fail(&mut self, error: SinkClientError) -> SinkClientError {
        self.core.close();
        error
    }
}
