//! The sink's side: what arrives, the log, the vote after the sync, and what a new process finds.

use bytes::Bytes;
use wallaroo_protocol::SinkServerCore;
use wallaroo_protocol::decisions::sink_server::{DataStep, DecideStep, PrepareStep};
use wallaroo_protocol::two_phase::{DATA_STREAM, Range};

use super::disk::Entry;
use super::world::{Down, Due, Up, World};
use super::{Mistake, TwoPhase};

impl World {
    pub(crate) fn write(&mut self, entry: Entry) {
        if self.log.apply(&entry.record()).is_err() {
            self.breaks("the log does not take it");
        }
        self.disk.live.push(entry);
    }

    /// Output that has no vote is cut off: it comes again.
    pub(crate) fn discard_staged(&mut self) {
        if self.log.pending.is_none() && !self.log.is_settled() {
            self.disk.cut();
            self.log.discard();
        }
        self.disk.sync();
    }

    /// The sink's end is gone.
    pub(crate) fn sink_closes(&mut self, id: usize, cut: bool) {
        if let Some(link) = self.links.get_mut(&id) {
            link.sink = None;
            link.down.clear();
            if cut {
                link.up.clear();
            }
            link.up.push_back(Up::Fin);
        }
        if self.due == Some(Due::Vote(id)) {
            self.due = Some(Due::Nothing);
        }
        if self.served == Some(id) {
            self.served = None;
            self.discard_staged();
        }
        self.forget_links();
    }

    pub(crate) fn sink_starts(&mut self, power: bool) {
        self.due = None;
        if power {
            self.disk.lose_unsynced();
        }
        match self.disk.read() {
            Ok(log) => self.log = log,
            Err(_) => return self.breaks("the log cannot be read"),
        }
        self.discard_staged();
    }

    pub(crate) fn vote(&mut self, id: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if let Some((transaction, commit)) = link.sink.as_mut().and_then(SinkServerCore::voted)
            && link.worker.is_some()
        {
            link.up.push_back(Up::Vote { transaction, commit });
        }
    }
}

impl TwoPhase {
    pub(crate) fn at_sink(&self, world: &mut World, id: usize) {
        let Some(link) = world.links.get_mut(&id) else { return };
        let Some(message) = link.down.pop_front() else { return };
        match message {
            Down::Intro => return self.intro(world, id),
            Down::Fin => return world.sink_closes(id, true),
            Down::Data { .. } | Down::Phase1 { .. } | Down::Phase2 { .. } => {}
        }
        let Some(core) = link.sink.as_mut() else { return };
        match message {
            Down::Data { offset, byte } => match core.data(offset, 1) {
                DataStep::Take if core.take(offset, 1) => world.write(Entry::Data { offset, byte }),
                DataStep::Take
                | DataStep::Empty
                | DataStep::Repeat
                | DataStep::Poison { .. }
                | DataStep::Fresh { .. }
                | DataStep::WhilePending => world.breaks("output that does not fit"),
            },
            Down::Phase1 { transaction, start, end } => {
                match core.prepare(&transaction, &[Range { stream: DATA_STREAM, start, end }]) {
                    PrepareStep::Vote { vote: true, start, end } => {
                        world.write(Entry::Prepare { transaction, start, end });
                        world.due = Some(Due::Vote(id));
                        if self.mistake == Some(Mistake::VotesBeforeSync) {
                            world.vote(id);
                        }
                    }
                    PrepareStep::Vote { .. } | PrepareStep::Fresh { .. } | PrepareStep::WhilePending => {
                        world.breaks("a vote of no, with nothing wrong");
                    }
                }
            }
            Down::Phase2 { transaction, commit } => match core.decide(&transaction, commit) {
                DecideStep::Decided => self.decide(world, transaction, commit),
                DecideStep::Unknown | DecideStep::Inconsistent | DecideStep::BeforeVote => {
                    world.breaks("a decision that does not fit");
                }
            },
            Down::Intro | Down::Fin => {}
        }
    }

    pub(crate) fn decide(&self, world: &mut World, transaction: Bytes, commit: bool) {
        if commit {
            let nothing = world.log.received == world.log.committed;
            world.write(Entry::Commit { transaction });
            if nothing {
                return; // if it is lost, the worker decides again
            }
        } else {
            if self.mistake != Some(Mistake::DoesNotTruncate) {
                world.disk.cut();
            }
            world.log.discard();
            let start = world.log.committed;
            world.write(Entry::RolledBack { transaction, start });
        }
        world.due = Some(Due::Nothing);
    }

    /// The worker is here: whatever it was before is over.
    pub(crate) fn intro(&self, world: &mut World, id: usize) {
        let late = world.links.get(&id).is_some_and(|link| link.late);
        if late && self.mistake != Some(Mistake::LetsLateConnectionsIn) {
            return world.sink_closes(id, false);
        }
        if let Some(older) = world.served {
            world.sink_closes(older, false);
        }
        for (_, older) in world.links.iter_mut().filter(|(older, _)| **older < id) {
            older.late = true;
        }
        world.discard_staged();
        world.served = Some(id);
        if let (Some(Mistake::DecidesByItself), Some(pending)) = (self.mistake, world.log.pending.clone()) {
            world.write(Entry::Commit { transaction: pending.transaction });
        }
        let state = world.log.worker_state();
        let Some(link) = world.links.get_mut(&id) else { return };
        let Some(core) = link.sink.as_mut() else { return };
        core.hello();
        let answered = core.accept(state);
        core.notify();
        match core.list() {
            Some(transactions) if answered => {
                if link.worker.is_some() {
                    link.up.push_back(Up::Listed(transactions));
                }
            }
            Some(_) | None => world.breaks("an intro without an answer"),
        }
    }
}
