//! Trouble of a sink that waits for a change by someone: several may be there at once, the status shows one.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::board::{Board, Stalled};

/// What stalls; the most general first, which is the one shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stall {
    /// The state volume or its log cannot be used.
    Volume,
    /// The target gave a permanent error.
    Target,
    /// The dead letter cannot be written.
    DeadLetter,
    /// The open transaction of a worker fills the volume.
    Space(String),
    /// A stream's delivery cannot go on.
    Stream(String),
    /// A worker decided what this sink voted against.
    Decision(String),
    /// A worker completes no checkpoints.
    NoCheckpoints(String),
    /// A transaction of an ended cluster is kept undecided.
    InDoubt(String),
}

/// Everything that stalls now.
#[derive(Debug, Default)]
pub(crate) struct Stalls(BTreeMap<Stall, Stalled>);

impl Stalls {
    pub(crate) fn set(&mut self, board: &Board, stall: Stall, reason: &str, message: String) {
        let stalled = Stalled { reason: reason.to_owned(), message };
        if self.0.get(&stall) == Some(&stalled) {
            return;
        }
        warn!(reason, "Stalled: {}.", stalled.message);
        self.0.insert(stall, stalled);
        board.set_stalled(self.0.values().next().cloned());
    }

    pub(crate) fn clear(&mut self, board: &Board, stall: &Stall) {
        if let Some(stalled) = self.0.remove(stall) {
            info!(reason = stalled.reason, "No longer stalled.");
            board.set_stalled(self.0.values().next().cloned());
        }
    }
}
