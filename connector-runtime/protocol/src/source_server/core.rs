//! Decisions of a worker's source session: credits and streams. No time, no bytes, so that a model can explore it.

use std::collections::BTreeMap;

use crate::wire::{NONE, StreamId};

/// How far the session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// HELLO is awaited.
    Connected,
    /// HELLO was valid; OK is held back.
    HoldingOk,
    /// OK was sent.
    Streaming,
    /// The worker leaves its cluster.
    Shrinking,
    /// Finished.
    Over,
}

/// How far a stream is in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerStreamPhase {
    /// The registry was asked.
    Pending,
    /// Records are taken.
    Open,
    /// EOS arrived; the final acknowledgement is due.
    Closing,
}

/// A stream of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerStream {
    /// How far it is.
    pub phase: ServerStreamPhase,
    /// Last id taken.
    pub seen: Option<u64>,
    /// Last id before the newest barrier: what a checkpoint acknowledges.
    pub acked: Option<u64>,
}

/// The decision state of a [`super::SourceServer`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceServerCore {
    phase: Phase,
    max: u32,
    refill: u32,
    credits: u32,
    rolling_back: bool,
    swallowing: bool,
    streams: BTreeMap<StreamId, ServerStream>,
}

impl SourceServerCore {
    /// The state before HELLO.
    pub fn new(max: u32, refill: u32) -> SourceServerCore {
        SourceServerCore {
            phase: Phase::Connected,
            max,
            refill,
            credits: max,
            rolling_back: false,
            swallowing: false,
            streams: BTreeMap::new(),
        }
    }

    /// How far the session is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Credits left in the worker's own count.
    pub fn credits(&self) -> u32 {
        self.credits
    }

    /// True between OK and the end.
    pub fn is_streaming(&self) -> bool {
        match self.phase {
            Phase::Streaming | Phase::Shrinking => true,
            Phase::Connected | Phase::HoldingOk | Phase::Over => false,
        }
    }

    /// True while the worker rolls back.
    pub fn rolling_back(&self) -> bool {
        self.rolling_back
    }

    /// True while everything is ignored.
    pub fn swallowing(&self) -> bool {
        self.swallowing
    }

    /// While true, NOTIFY is refused and records are discarded.
    pub fn set_rolling_back(&mut self, rolling_back: bool) {
        self.rolling_back = rolling_back;
    }

    /// While true, everything is ignored.
    pub fn set_swallowing(&mut self, swallowing: bool) {
        self.swallowing = swallowing;
    }

    /// The worker leaves its cluster.
    pub fn set_shrinking(&mut self) {
        if self.phase == Phase::Streaming {
            self.phase = Phase::Shrinking;
        }
    }

    /// The streams stay: the driver releases them.
    pub fn close(&mut self) {
        self.phase = Phase::Over;
    }

    /// One frame was read. `Some(credits)`: refill by that much (§3.3, rules 1 and 2).
    pub fn charge(&mut self) -> Option<u32> {
        self.credits = self.credits.wrapping_sub(1);
        if self.phase == Phase::Streaming && self.credits <= self.refill {
            return Some(self.refill()).filter(|credits| *credits > 0);
        }
        None
    }

    /// Restores all credits; returns how many were spent.
    pub fn refill(&mut self) -> u32 {
        let spent = self.max.wrapping_sub(self.credits);
        self.credits = self.max;
        spent
    }

    /// A valid HELLO came.
    pub fn hello(&mut self) {
        self.phase = Phase::HoldingOk;
    }

    /// False unless OK is due.
    pub fn accept(&mut self) -> bool {
        if self.phase != Phase::HoldingOk {
            return false;
        }
        self.phase = Phase::Streaming;
        self.credits = self.max;
        true
    }

    /// True if the registry has to be asked, false for an immediate refusal.
    pub fn notify(&mut self, stream: StreamId) -> bool {
        if self.rolling_back || self.streams.contains_key(&stream) {
            return false;
        }
        let pending = ServerStream { phase: ServerStreamPhase::Pending, seen: None, acked: None };
        self.streams.insert(stream, pending);
        true
    }

    /// False if no such answer is due.
    pub fn notify_answered(&mut self, id: StreamId, success: bool, position: Option<u64>) -> bool {
        match self.streams.get_mut(&id) {
            Some(stream) if stream.phase == ServerStreamPhase::Pending => {
                if success {
                    *stream =
                        ServerStream { phase: ServerStreamPhase::Open, seen: position, acked: position };
                } else {
                    self.streams.remove(&id);
                }
                self.is_streaming()
            }
            Some(_) | None => false,
        }
    }

    /// Forgets a stream whose NOTIFY will not be answered.
    pub fn forget_pending(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|stream| stream.phase == ServerStreamPhase::Pending) {
            self.streams.remove(&id);
        }
    }

    /// True if records of this stream are taken.
    pub fn is_open(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.phase == ServerStreamPhase::Open)
    }

    /// True for a record that is handed over: its stream is open and its id beyond the last one seen (§3.5).
    pub fn is_fresh(&self, id: StreamId, message: u64) -> bool {
        self.phase == Phase::Streaming
            && !self.rolling_back
            && !self.swallowing
            && self.streams.get(&id).is_some_and(|stream| {
                stream.phase == ServerStreamPhase::Open && stream.seen.is_none_or(|seen| message > seen)
            })
    }

    /// 2^64-1 resets what was seen, as on a real worker (§8).
    pub fn seen(&mut self, id: StreamId, message: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.seen = (message != NONE).then_some(message);
        }
    }

    /// False if the stream is not open here.
    pub fn eos(&mut self, id: StreamId) -> bool {
        match self.streams.get_mut(&id) {
            Some(stream) if stream.phase == ServerStreamPhase::Open && self.phase != Phase::Over => {
                stream.phase = ServerStreamPhase::Closing;
                true
            }
            Some(_) | None => false,
        }
    }

    /// A barrier passes: what was seen is what the checkpoint will acknowledge.
    pub fn barrier(&mut self) {
        for stream in self.streams.values_mut() {
            stream.acked = stream.seen;
        }
    }

    /// The end of a stream was acknowledged.
    pub fn remove(&mut self, id: StreamId) {
        self.streams.remove(&id);
    }

    /// All streams.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, ServerStream)> + '_ {
        self.streams.iter().map(|(id, stream)| (*id, *stream))
    }

    /// One stream.
    pub fn stream(&self, id: StreamId) -> Option<ServerStream> {
        self.streams.get(&id).copied()
    }
}
