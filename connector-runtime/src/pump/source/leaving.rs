//! The end of a pump: complete, drained, or given up.

use connector_env::Env;
use tokio::time::{Duration, Instant};
use tracing::warn;

use super::config::Outcome;
use super::{Pump, beating};
use crate::pump::Shutdown;

/// Longest time that the source may take for `close` when everything is done.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

impl<E: Env> Pump<E> {
    pub(super) async fn finish(&mut self) -> Option<Outcome> {
        let now = Instant::now();
        let wanted = *self.shutdown.receiver.borrow();
        match wanted {
            Shutdown::Run => {
                let done = self.streams.is_empty() && self.streams.completed() > 0 && self.kept.is_empty();
                if !done || !self.source_ready(now) {
                    return None;
                }
                if let Err(error) = beating(&self.board, self.source.close(now + CLOSE_TIMEOUT)).await {
                    self.source_failed(&error);
                    return None;
                }
                self.wire.close().await;
                self.board.set_complete();
                Some(Outcome::Completed)
            }
            Shutdown::Drain => {
                let deadline = *self.drain_until.get_or_insert(now + self.config.drain_timeout);
                let connected = self.wire.uplink().is_some();
                let on_its_way = connected && self.streams.outstanding() + self.kept.amount().0 > 0;
                let waits = on_its_way || !self.streams.commits().is_empty();
                if waits && now < deadline {
                    return None;
                }
                Some(self.leave(deadline).await)
            }
            Shutdown::Now => Some(self.leave(now).await),
        }
    }

    pub(super) async fn leave(&mut self, deadline: Instant) -> Outcome {
        let records = self.streams.outstanding() + self.kept.amount().0 + self.given_up;
        let committed = self.streams.commits().is_empty();
        let closed = beating(&self.board, self.source.close(deadline)).await;
        if let Err(error) = &closed {
            warn!("Leaving the external system: {error}.");
        }
        self.wire.close().await;
        if records == 0 && committed && closed.is_ok() {
            Outcome::Drained
        } else {
            warn!(
                records,
                "Records were read and are not acknowledged; a system that keeps them gives them again."
            );
            Outcome::GivenUp { records }
        }
    }
}
