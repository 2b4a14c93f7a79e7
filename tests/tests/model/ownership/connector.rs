//! The connector's side: what the pump does with its streams, and what arrives at it.

use connector_runtime::pump::streams::Action;
use connector_runtime::source::ResumeFrom;
use tokio::time::Duration;
use wallaroo_protocol::NONE;
use wallaroo_protocol::decisions::source_client::{Answered, Control, Phase};

use super::world::{Down, Entry, Up, World};
use super::{KEY, Mistake, Ownership, STREAM};

impl Ownership {
    /// The pump's turn: what its streams need next, until they wait for somebody else.
    pub(crate) fn pump(&self, world: &mut World, index: usize) {
        let now = self.epoch + Duration::from_secs(if world.connectors[index].late { 2 } else { 0 });
        loop {
            let side = &mut world.connectors[index];
            if side.read >= Some(self.records) && side.streams.sends(KEY) {
                side.streams.exhausted(KEY);
            }
            let session = side.core.phase() == Phase::Streaming;
            match side.streams.next_action(now, session, true, |_| false) {
                None => break,
                Some(Action::Open { proposal, .. }) => {
                    side.proposal = proposal;
                    if side.core.open(STREAM).is_err() {
                        break;
                    }
                    side.streams.asked(KEY);
                }
                Some(Action::Resume { from, .. }) => {
                    let after = match from {
                        ResumeFrom::After(position) => position,
                        ResumeFrom::Committed => world.committed.unwrap_or(0),
                    };
                    let skipped = u64::from(self.mistake == Some(Mistake::ResumesOneTooFar) && after > 0);
                    side.read = Some(after.saturating_add(skipped));
                    side.streams.resumed(KEY);
                }
                Some(Action::End { .. }) => {
                    let gone = side.core.end(STREAM);
                    side.streams.ending(KEY);
                    if matches!(gone, Ok(true)) {
                        side.streams.ended(STREAM, None);
                    }
                }
                Some(Action::Release { end, .. }) => {
                    if end.is_some() {
                        let _ = side.core.end(STREAM);
                    }
                    let before = side.streams.completed();
                    side.streams.remove(KEY);
                    (side.read, side.late) = (None, false);
                    let complete = side.streams.completed() > before;
                    if world.owner == index {
                        world.finished = complete;
                        if !complete {
                            world.give(1 - index);
                        }
                    }
                }
            }
        }
        self.flush(world, index);
    }

    pub(crate) fn flush(&self, world: &mut World, index: usize) {
        let side = &mut world.connectors[index];
        let Some(link) = side.link.and_then(|id| world.links.get_mut(&id)) else { return };
        while let Some(control) = side.core.next_control() {
            link.up.push_back(match control {
                Control::Notify(_) => Up::Notify(side.proposal),
                Control::Eos(_) => {
                    if self.mistake == Some(Mistake::DoesNotChargeEos) {
                        side.core.grant(1);
                    }
                    Up::Eos
                }
            });
        }
    }

    /// A position as the connector takes it off the wire.
    pub(crate) fn wire(&self, position: Option<u64>) -> Option<u64> {
        if self.mistake == Some(Mistake::ComparesNone) { position.or(Some(NONE)) } else { position }
    }

    pub(crate) fn at_connector(&self, world: &mut World, index: usize) {
        let side = &mut world.connectors[index];
        let Some(frame) = side.link.and_then(|id| world.links.get_mut(&id)?.down.pop_front()) else { return };
        match frame {
            Down::Ok(credits) => side.core.ready(credits),
            Down::NotifyAck(success, position) => {
                match side.core.notify_answered(STREAM, success, self.wire(position)) {
                    Answered::Opened(position) => {
                        side.streams.answered(STREAM, position);
                        if let (Some(Mistake::CommitsOnNotifyAck), Some(position)) = (self.mistake, position)
                        {
                            side.streams.acknowledge(STREAM, position);
                        }
                    }
                    Answered::Refused => side.refused = true,
                    Answered::GivenUp => side.streams.ended(STREAM, None),
                    Answered::OpenedAndEnding => {}
                    Answered::Unexpected => world.broken = Some("an answer to no question"),
                }
            }
            Down::Ack(credits, entry) => {
                side.core.grant(credits);
                match entry.map(|Entry(position)| side.core.acknowledged(STREAM, self.wire(position))) {
                    None => {}
                    Some(Ok(acknowledged)) => {
                        if let Some(position) = acknowledged.progress {
                            side.streams.acknowledge(STREAM, position);
                        }
                        if acknowledged.ended {
                            side.streams.ended(STREAM, acknowledged.position);
                        }
                    }
                    Some(Err(_)) => world.breaks("an acknowledgement of what was not sent"),
                }
            }
            Down::Fin => world.connection_ends(index, true),
        }
        self.pump(world, index);
    }
}
