//! Ready or not: a pure decision from the board, with hysteresis.

use connector_crds::State;
use tokio::time::Duration;

use crate::board::{Board, Side, SideState};

/// How long an end may be away before a connector that was ready is not any more. Short blips (a worker's rollback, a
/// rebalance) stay below it; with the kubelet's period the status follows within a minute.
pub const HYSTERESIS: Duration = Duration::from_secs(20);

/// The pump's loop turns at least once a second; without a turn for this long it is wedged.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_secs(30);

/// Direction of a connector, from Wallaroo's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Brings records into Wallaroo.
    Source,
    /// Takes records out of Wallaroo.
    Sink,
}

/// Why a connector is not ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// A change by someone is needed.
    #[error("{reason}: {message}")]
    Stalled {
        /// Reason in CamelCase.
        reason: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A sink's port is not bound yet.
    #[error("NotListening: the port that Wallaroo dials is not bound")]
    NotListening,
    /// An end is away.
    #[error("{reason} ({}): {message}", side.label())]
    Away {
        /// Which end.
        side: Side,
        /// Reason in CamelCase.
        reason: String,
        /// What was tried and what came back.
        message: String,
    },
}

/// True while the pump's loop turns.
pub fn alive(board: &Board) -> bool {
    board.silent_for() < HEARTBEAT_LIMIT
}

/// Whether data can move.
///
/// A source needs both ends. A sink needs its port and the external end; whether Wallaroo has dialled is not its to
/// decide, for a worker reports ready only once its sinks listen. While paused the ends still count. A finite source that is
/// complete is ready: it did what was asked.
pub fn ready(board: &Board, direction: Direction, _state: State) -> Result<(), NotReady> {
    let snapshot = board.snapshot();
    if let Some(stalled) = snapshot.stalled {
        return Err(NotReady::Stalled { reason: stalled.reason, message: stalled.message });
    }
    if snapshot.complete {
        return Ok(());
    }
    if direction == Direction::Sink && snapshot.listen.is_none() {
        return Err(NotReady::NotListening);
    }
    let needed: &[Side] = match direction {
        Direction::Source => &Side::ALL,
        Direction::Sink => &[Side::External],
    };
    for side in needed {
        let (connected, since) = board.connected_for(*side);
        let was_connected = snapshot.reconnects.contains_key(side);
        if connected || (was_connected && since < HYSTERESIS) {
            continue;
        }
        let (reason, message) = match board.side(*side) {
            SideState::Failed { reason, message } => (reason, message),
            SideState::Waiting | SideState::Connected => {
                ("Connecting".to_owned(), "no connection has been made yet".to_owned())
            }
        };
        return Err(NotReady::Away { side: *side, reason, message });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Stalled;

    fn failed() -> SideState {
        SideState::Failed { reason: "Unreachable".into(), message: "connection refused".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_needs_both_ends_and_a_sink_its_port_and_the_external_one() {
        let board = Board::new();
        board.set_side(Side::External, SideState::Connected);
        assert!(ready(&board, Direction::Source, State::Running).is_err());
        assert_eq!(ready(&board, Direction::Sink, State::Running), Err(NotReady::NotListening));
        board.set_listen("127.0.0.1:7200".into());
        assert_eq!(ready(&board, Direction::Sink, State::Running), Ok(()));
        board.set_side(Side::Wallaroo, SideState::Connected);
        assert_eq!(ready(&board, Direction::Source, State::Running), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_blip_is_forgiven_and_an_outage_is_not() {
        let board = Board::new();
        for side in Side::ALL {
            board.set_side(side, SideState::Connected);
        }
        board.set_side(Side::Wallaroo, failed());
        tokio::time::advance(HYSTERESIS / 2).await;
        assert_eq!(ready(&board, Direction::Source, State::Running), Ok(()));
        tokio::time::advance(HYSTERESIS).await;
        let error = ready(&board, Direction::Source, State::Running).unwrap_err();
        assert_eq!(error.to_string(), "Unreachable (wallaroo): connection refused");
    }

    #[tokio::test(start_paused = true)]
    async fn never_connected_is_not_ready_from_the_start_and_stalled_never_is() {
        let board = Board::new();
        board.set_side(Side::Wallaroo, failed());
        board.set_side(Side::External, SideState::Connected);
        assert!(ready(&board, Direction::Source, State::Running).is_err());
        board.set_side(Side::Wallaroo, SideState::Connected);
        board.set_stalled(Some(Stalled { reason: "RecordRejected".into(), message: "at 7".into() }));
        assert!(matches!(ready(&board, Direction::Source, State::Running), Err(NotReady::Stalled { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stands_still_is_not_alive() {
        let board = Board::new();
        board.heartbeat();
        assert!(alive(&board));
        tokio::time::advance(HEARTBEAT_LIMIT).await;
        assert!(!alive(&board));
        board.heartbeat();
        assert!(alive(&board));
    }
}
