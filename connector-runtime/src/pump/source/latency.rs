//! Time from handing a record to Wallaroo to its acknowledgement: one sampled record at a time, so that nothing is kept for
//! the others.

use tokio::time::{Duration, Instant};
use wallaroo_protocol::StreamId;

use crate::record::Position;

/// The record that is being timed, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample(Option<(StreamId, Position, Instant)>);

impl Sample {
    /// Takes this record unless another one is being timed.
    pub(super) fn sent(&mut self, stream: StreamId, position: Position, now: Instant) {
        self.0.get_or_insert((stream, position, now));
    }

    /// Acknowledged up to `position`: the time that the record took, if it lies within.
    pub(super) fn acknowledged(
        &mut self,
        stream: StreamId,
        position: Position,
        now: Instant,
    ) -> Option<Duration> {
        let (_, _, sent) = self.0.take_if(|(key, last, _)| *key == stream && *last <= position)?;
        Some(now.saturating_duration_since(sent))
    }

    /// The session was lost: what was sent is sent again.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_record_is_timed_until_its_acknowledgement() {
        let (stream, other) = (StreamId(1), StreamId(2));
        let mut sample = Sample::default();
        sample.sent(stream, 5, Instant::now());
        tokio::time::advance(Duration::from_millis(300)).await;
        sample.sent(stream, 9, Instant::now());
        assert_eq!(sample.acknowledged(stream, 4, Instant::now()), None);
        assert_eq!(sample.acknowledged(other, 9, Instant::now()), None);
        assert_eq!(sample.acknowledged(stream, 5, Instant::now()), Some(Duration::from_millis(300)));
        assert_eq!(sample.acknowledged(stream, 9, Instant::now()), None);
        sample.sent(stream, 10, Instant::now());
        sample.forget();
        assert_eq!(sample.acknowledged(stream, 10, Instant::now()), None);
    }
}
