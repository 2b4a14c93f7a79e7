//! Decisions of a source session: phases, credits, stream states. No time, no bytes, so that a model can explore it.

use std::collections::{BTreeMap, VecDeque};

use super::error::{SendError, StreamError};
use crate::wire::StreamId;

/// How far the session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// HELLO is sent.
    #[default]
    Handshake,
    /// OK was received.
    Streaming,
    /// Finished; nothing more happens.
    Over,
}

impl Phase {
    /// When that is, for people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Handshake => "before OK",
            Phase::Streaming => "after OK",
            Phase::Over => "after the end of the session",
        }
    }
}

/// A frame that goes ahead of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// NOTIFY for this stream.
    Notify(StreamId),
    /// EOS for this stream.
    Eos(StreamId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum StreamPhase {
    /// NOTIFY waits for OK or a credit.
    Asking,
    /// NOTIFY is sent; `give_up`: end it once the answer is there.
    Notifying { give_up: bool },
    /// Refused; waits for the retry timer.
    Refused,
    /// Records may be sent.
    Open,
    /// EOS is queued or sent.
    Ending { eos_sent: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stream {
    phase: StreamPhase,
    /// Last id sent in this session, or the position at which the stream was opened.
    last: Option<u64>,
    /// Last id acknowledged in this session.
    acked: Option<u64>,
}

/// What an answer to NOTIFY means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The stream is open behind this position.
    Opened(Option<u64>),
    /// It is open and was given up meanwhile: EOS is queued.
    OpenedAndEnding,
    /// Ask again after a pause.
    Refused,
    /// It was refused and given up meanwhile.
    GivenUp,
    /// For no NOTIFY that is outstanding: ignored.
    Unexpected,
}

/// What an entry of an ACK means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// A position that may be committed now.
    pub progress: Option<u64>,
    /// The position acknowledged so far.
    pub position: Option<u64>,
    /// The stream is finished and forgotten.
    pub ended: bool,
}

/// Why an entry of an ACK is wrong.
pub enum EntryError {
    /// It acknowledges what this session never sent.
    BeyondSent {
        /// What it acknowledges.
        position: u64,
        /// What was sent.
        sent: Option<u64>,
    },
}

/// The decision state of a [`super::SourceClient`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceClientCore {
    phase: Phase,
    credits: u64,
    streams: BTreeMap<StreamId, Stream>,
    queue: VecDeque<Control>,
}

/// Ids start at 1, so 0 says as little as NONE does (§3.5).
fn nothing_is_none(position: Option<u64>) -> Option<u64> {
    position.filter(|position| *position != 0)
}

impl SourceClientCore {
    /// How far the session is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Frames that may still be sent.
    pub fn credits(&self) -> u64 {
        self.credits
    }

    /// True if records of this stream may be sent.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|stream| stream.phase == StreamPhase::Open)
    }

    /// Control frames that wait for a credit.
    pub fn waiting_control(&self) -> usize {
        self.queue.len()
    }

    /// Ends the session; nothing is kept.
    pub fn close(&mut self) {
        *self = SourceClientCore { phase: Phase::Over, ..SourceClientCore::default() };
    }

    /// OK came.
    pub fn ready(&mut self, credits: u32) {
        self.phase = Phase::Streaming;
        self.credits = u64::from(credits);
    }

    /// ACK grants credits.
    pub fn grant(&mut self, credits: u32) {
        self.credits = self.credits.saturating_add(u64::from(credits));
    }

    /// A stream is wanted: queues its NOTIFY.
    pub fn open(&mut self, stream: StreamId) -> Result<(), StreamError> {
        if self.phase == Phase::Over {
            return Err(StreamError::Over);
        }
        if self.streams.contains_key(&stream) {
            return Err(StreamError::AlreadyOpen { stream });
        }
        self.streams.insert(stream, Stream { phase: StreamPhase::Asking, last: None, acked: None });
        self.queue.push_back(Control::Notify(stream));
        Ok(())
    }

    /// The pause after a refusal is over.
    pub fn retry(&mut self, stream: StreamId) {
        if let Some(Stream { phase: phase @ StreamPhase::Refused, .. }) = self.streams.get_mut(&stream) {
            *phase = StreamPhase::Asking;
            self.queue.push_back(Control::Notify(stream));
        }
    }

    /// The next control frame, charged, if a credit permits it.
    pub fn next_control(&mut self) -> Option<Control> {
        if self.phase != Phase::Streaming || self.credits == 0 {
            return None;
        }
        let control = self.queue.pop_front()?;
        self.credits -= 1;
        let (stream, phase) = match control {
            Control::Notify(stream) => (stream, StreamPhase::Notifying { give_up: false }),
            Control::Eos(stream) => (stream, StreamPhase::Ending { eos_sent: true }),
        };
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.phase = phase;
        }
        Some(control)
    }

    /// `NOTIFY_ACK` came.
    pub fn notify_answered(&mut self, id: StreamId, success: bool, position: Option<u64>) -> Answered {
        let Some(stream) = self.streams.get_mut(&id) else { return Answered::Unexpected };
        let StreamPhase::Notifying { give_up } = stream.phase else { return Answered::Unexpected };
        match (success, give_up) {
            (true, give_up) => {
                stream.last = nothing_is_none(position);
                if give_up {
                    stream.phase = StreamPhase::Ending { eos_sent: false };
                    self.queue.push_back(Control::Eos(id));
                    return Answered::OpenedAndEnding;
                }
                stream.phase = StreamPhase::Open;
                Answered::Opened(stream.last)
            }
            (false, true) => {
                self.streams.remove(&id);
                Answered::GivenUp
            }
            (false, false) => {
                stream.phase = StreamPhase::Refused;
                Answered::Refused
            }
        }
    }

    /// Credits and last id for sending on an open stream.
    pub fn sending(&self, id: StreamId) -> Result<(u64, Option<u64>), SendError> {
        match self.streams.get(&id) {
            Some(Stream { phase: StreamPhase::Open, last, .. }) => Ok((self.credits, *last)),
            Some(_) | None => Err(SendError::NotOpen { stream: id }),
        }
    }

    /// `count` records up to `last` were sent.
    pub fn sent(&mut self, id: StreamId, count: u64, last: Option<u64>) {
        self.credits = self.credits.saturating_sub(count);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.last = last;
        }
    }

    /// True if the stream is gone at once because it never was open.
    pub fn end(&mut self, id: StreamId) -> Result<bool, StreamError> {
        let stream = self.streams.get_mut(&id).ok_or(StreamError::Unknown { stream: id })?;
        match stream.phase {
            StreamPhase::Asking | StreamPhase::Refused => {
                self.streams.remove(&id);
                self.queue.retain(|control| *control != Control::Notify(id));
                return Ok(true);
            }
            StreamPhase::Notifying { .. } => stream.phase = StreamPhase::Notifying { give_up: true },
            StreamPhase::Open => {
                stream.phase = StreamPhase::Ending { eos_sent: false };
                self.queue.push_back(Control::Eos(id));
            }
            StreamPhase::Ending { .. } => {}
        }
        Ok(false)
    }

    /// An entry of an ACK came.
    pub fn acknowledged(&mut self, id: StreamId, position: Option<u64>) -> Result<Acknowledged, EntryError> {
        let position = nothing_is_none(position);
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(Acknowledged::default()) };
        let eos_sent = match stream.phase {
            // A late ACK for an earlier use of the stream.
            StreamPhase::Asking | StreamPhase::Notifying { .. } | StreamPhase::Refused => {
                return Ok(Acknowledged::default());
            }
            StreamPhase::Open => false,
            StreamPhase::Ending { eos_sent } => eos_sent,
        };
        if let Some(position) = position
            && stream.last.is_none_or(|last| position > last)
        {
            return Err(EntryError::BeyondSent { position, sent: stream.last });
        }
        // `None` is smaller than every position.
        let progress = position.filter(|_| position > stream.acked);
        stream.acked = stream.acked.max(position);
        let acknowledged =
            Acknowledged { progress, position: stream.acked, ended: eos_sent && stream.acked == stream.last };
        if acknowledged.ended {
            self.streams.remove(&id);
        }
        Ok(acknowledged)
    }
}
