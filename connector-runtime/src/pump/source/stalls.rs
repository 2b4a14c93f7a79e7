//! Trouble that waits for a change by someone: several may be there at once, the status shows one.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::board::{Board, Stalled};
use crate::source::StreamKey;

/// What stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stall {
    /// The system gave a permanent error.
    Source,
    /// A stream cannot go on for what it would send.
    Record(StreamKey),
    /// A stream cannot go on at its system.
    Stream(StreamKey),
    /// The dead letter cannot be written.
    DeadLetter,
    /// The worker completes no checkpoints.
    NoCheckpoints,
}

/// Everything that stalls now.
#[derive(Debug, Default)]
pub(super) struct Stalls(BTreeMap<Stall, Stalled>);

impl Stalls {
    pub(super) fn set(&mut self, board: &Board, stall: Stall, reason: &str, message: String) {
        let stalled = Stalled { reason: reason.to_owned(), message };
        if self.0.get(&stall) == Some(&stalled) {
            return;
        }
        warn!(reason, "Stalled: {}.", stalled.message);
        self.0.insert(stall, stalled);
        board.set_stalled(self.0.values().next().cloned());
    }

    pub(super) fn clear(&mut self, board: &Board, stall: Stall) {
        if let Some(stalled) = self.0.remove(&stall) {
            info!(reason = stalled.reason, "No longer stalled.");
            board.set_stalled(self.0.values().next().cloned());
        }
    }
}
