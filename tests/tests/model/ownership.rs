//! Two connectors, one stream, one worker: who owns the stream, what is acknowledged, what is committed.

mod connector;
pub(crate) mod properties;
mod worker;
mod world;

use std::collections::{BTreeMap, VecDeque};

use connector_runtime::pump::streams::Phase;
use connector_runtime::source::StreamKey;
use stateright::{Model, Property};
use tokio::time::{Duration, Instant};
use wallaroo_protocol::{SourceClientCore, SourceServerCore, StreamId};

use self::world::{Connector, Ending, Link, UNKNOWN, Up, World};

const STREAM: StreamId = StreamId(7);
const KEY: StreamKey = StreamKey(1);

/// Connections at a time: a new one is dialled while the worker has not given up an older one.
const MOST_LINKS: usize = 2;

/// A mistake of the connector's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// `NOTIFY_ACK` is taken as permission to commit.
    CommitsOnNotifyAck,
    /// NONE is a number like others.
    ComparesNone,
    /// EOS costs the connector no credit.
    DoesNotChargeEos,
    /// Reading goes on one record behind the answer's.
    ResumesOneTooFar,
}

/// The bounds of the world.
#[derive(Clone, Debug)]
pub(crate) struct Ownership {
    /// Records of the stream, numbered from 1.
    pub(crate) records: u64,
    /// Credits, and the level of their refill.
    pub(crate) credits: (u32, u32),
    /// Connections, processes and checkpoints that fail in one history.
    pub(crate) faults: u8,
    /// Times that the system moves the stream to the other connector.
    pub(crate) moves: u8,
    /// The worker leads the registry; otherwise it echoes the position of a stream that is new to it.
    pub(crate) leader: bool,
    /// What the connector does wrong.
    pub(crate) mistake: Option<Mistake>,
    /// The beginning of time; nothing but the deadline of a revoked stream depends on it.
    pub(crate) epoch: Instant,
}

impl Ownership {
    /// The stream stays; everything else fails.
    pub(crate) fn faults() -> Ownership {
        Ownership {
            records: 2,
            credits: (3, 1),
            faults: 2,
            moves: 0,
            leader: true,
            mistake: None,
            epoch: Instant::now(),
        }
    }

    /// The stream moves, and one thing fails. Few credits keep the number of histories small.
    pub(crate) fn moves() -> Ownership {
        Ownership { credits: (2, 0), faults: 1, moves: 1, ..Ownership::faults() }
    }
}
/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Dial(usize),
    /// The next frame arrives at the worker, or at the connector.
    ToWorker(usize),
    ToConnector(usize),
    Send(usize),
    Retry(usize),
    Commit(usize),
    StartCheckpoint,
    CompleteCheckpoint,
    EndRollback,
    // Faults.
    /// The connector sees its connection end; with `cut` the worker does not get what was on its way.
    Lose {
        connector: usize,
        cut: bool,
    },
    /// The process is started anew and knows what the external system knows.
    Crash(usize),
    /// A checkpoint is aborted, or a worker died; with `forget` the cluster starts anew without its state.
    Rollback {
        forget: bool,
    },
    // The external system moves the stream.
    Revoke,
    Deadline(usize),
    TakeAway,
}

impl Ownership {
    /// Everything but faults and what the external system wants.
    pub(crate) fn progress(&self, world: &World, steps: &mut Vec<Step>) {
        for (index, side) in world.connectors.iter().enumerate() {
            if side.link.is_none() && !side.streams.is_empty() && world.links.len() < MOST_LINKS {
                steps.push(Step::Dial(index));
            }
            if side.link.is_some_and(|id| !world.links[&id].down.is_empty()) {
                steps.push(Step::ToConnector(index));
            }
            if side.streams.sends(KEY) && side.core.credits() > 0 && side.read < Some(self.records) {
                steps.push(Step::Send(index));
            }
            if side.refused {
                steps.push(Step::Retry(index));
            }
            if !side.streams.commits().is_empty() {
                steps.push(Step::Commit(index));
            }
        }
        for (id, link) in &world.links {
            if link.server.is_some() && !link.up.is_empty() {
                steps.push(Step::ToWorker(*id));
            }
        }
        if world.pending.is_some() {
            steps.push(Step::CompleteCheckpoint);
        } else if !world.rolling_back {
            let news = world.ahead() != world.completed || world.registry.ending == Ending::Waiting;
            if news {
                steps.push(Step::StartCheckpoint);
            }
        }
        if world.rolling_back {
            steps.push(Step::EndRollback);
        }
    }

    /// True once the external system may forget everything.
    pub(crate) fn is_done(&self, world: &World) -> bool {
        world.finished && world.committed == Some(self.records)
    }
}

impl Model for Ownership {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World {
            connectors: [Connector::default(), Connector::default()],
            links: BTreeMap::new(),
            registry: UNKNOWN,
            completed: (false, None),
            pending: None,
            rolling_back: false,
            owner: 0,
            committed: None,
            finished: false,
            safe: None,
            faults: self.faults,
            moves: self.moves,
            broken: None,
        };
        world.give(0);
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if self.is_done(world) || world.broken.is_some() {
            return;
        }
        self.progress(world, steps);
        let owner = &world.connectors[world.owner];
        if world.faults > 0 {
            for (connector, side) in world.connectors.iter().enumerate() {
                if side.link.is_some() {
                    steps.extend([false, true].map(|cut| Step::Lose { connector, cut }));
                }
                if !side.streams.is_empty() {
                    steps.push(Step::Crash(connector));
                }
            }
            if !world.rolling_back {
                steps.extend([false, true].map(|forget| Step::Rollback { forget }));
            }
        }
        if world.moves > 0 && owner.streams.get(KEY).is_some_and(|stream| stream.phase != Phase::Leaving) {
            steps.extend([Step::Revoke, Step::TakeAway]);
        }
        for (index, side) in world.connectors.iter().enumerate() {
            if side.streams.next_deadline().is_some() && !side.late {
                steps.push(Step::Deadline(index));
            }
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Dial(index) => {
                let id = (0..MOST_LINKS).find(|id| !world.links.contains_key(id))?;
                let server = Some(SourceServerCore::new(self.credits.0, self.credits.1));
                let link = Link { server, up: [Up::Hello].into(), down: VecDeque::new(), last: 0 };
                world.links.insert(id, link);
                world.connectors[index].link = Some(id);
                world.connectors[index].core = SourceClientCore::default();
            }
            Step::ToWorker(id) => self.at_worker(&mut world, id),
            Step::ToConnector(index) => self.at_connector(&mut world, index),
            Step::Send(index) => {
                let side = &mut world.connectors[index];
                let id = side.read? + 1;
                let (_, last) = side.core.sending(STREAM).ok()?;
                if last.is_some_and(|last| id <= last) {
                    world.breaks("the source went back within a session");
                    return Some(world);
                }
                side.core.sent(STREAM, 1, Some(id));
                side.streams.sent(KEY, 1, 1, id, id);
                side.read = Some(id);
                world.links.get_mut(&side.link?)?.up.push_back(Up::Record(id));
                self.pump(&mut world, index);
            }
            Step::Retry(index) => {
                world.connectors[index].refused = false;
                world.connectors[index].core.retry(STREAM);
                self.flush(&mut world, index);
            }
            Step::Commit(index) => {
                let side = &mut world.connectors[index];
                let positions = side.streams.commits();
                side.streams.committed(&positions);
                let position = positions.first().map(|(_, position)| *position);
                if world.owner != index {
                    world.breaks("a commit by one who does not own the stream");
                } else if position < world.committed {
                    world.breaks("a commit that goes back");
                } else {
                    world.committed = position;
                }
                self.pump(&mut world, index);
            }
            Step::StartCheckpoint => {
                for server in world.links.values_mut().filter_map(|link| link.server.as_mut()) {
                    server.barrier();
                }
                world.pending = Some(world.position());
                if world.registry.ending == Ending::Waiting {
                    world.registry.ending = Ending::Due;
                }
            }
            Step::CompleteCheckpoint => {
                let snapshot = world.pending.take()?;
                Self::complete(&mut world, snapshot);
            }
            Step::EndRollback => {
                world.rolling_back = false;
                let ids: Vec<usize> = world.links.keys().copied().collect();
                for id in ids {
                    let read = world.links[&id].server.as_ref().is_some_and(SourceServerCore::is_streaming);
                    if read {
                        world.session_ends(id);
                    }
                }
            }
            Step::Lose { connector, cut } => {
                world.faults -= 1;
                world.connection_ends(connector, cut);
                self.pump(&mut world, connector);
            }
            Step::Crash(index) => {
                world.faults -= 1;
                world.connection_ends(index, false);
                world.connectors[index] = Connector::default();
                if world.owner == index {
                    world.give(index);
                }
            }
            Step::Rollback { forget } => {
                world.faults -= 1;
                Self::roll_back(&mut world, forget);
            }
            Step::Revoke => {
                world.moves -= 1;
                let deadline = self.epoch + Duration::from_secs(1);
                let owner = world.owner;
                world.connectors[owner].streams.revoked(KEY, deadline);
                self.pump(&mut world, owner);
            }
            Step::Deadline(index) => {
                world.connectors[index].late = true;
                self.pump(&mut world, index);
            }
            Step::TakeAway => {
                world.moves -= 1;
                let owner = world.owner;
                world.connectors[owner].streams.lost(KEY);
                world.give(1 - owner);
                self.pump(&mut world, owner);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Ownership>> {
        properties::properties(self)
    }
}
