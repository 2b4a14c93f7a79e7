//! One worker and one sink with a transaction log: votes, decisions, and a crash of either at every step.
//!
//! Left out: a cluster that starts anew against the state of an older one, where repeats are allowed by policy, and a
//! torn write, which the log's checksums cut off. The cluster begins at its first checkpoint, which asks for no vote.

mod disk;
pub(crate) mod properties;
mod sink;
mod worker;
mod world;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use connector_runtime::txn_log::decisions::LogState;
use stateright::{Model, Property};
use wallaroo_protocol::decisions::sink_client::Phase;
use wallaroo_protocol::{SinkClientCore, SinkMode, SinkServerCore};

use self::disk::Disk;
use self::world::{Completed, Down, Due, Link, Pending, World};

/// The worker's present connection, and one that the sink has not given up yet.
const MOST_LINKS: usize = 2;

/// A mistake of the sink's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// The answer is sent before the log is synced.
    VotesBeforeSync,
    /// An abort leaves the output in the log.
    DoesNotTruncate,
    /// What was voted for is shown at once.
    PublishesAtVote,
    /// A vote that is found after a reconnect counts as a commit.
    DecidesByItself,
    /// A connection whose HELLO comes late ends a newer one of the same worker.
    LetsLateConnectionsIn,
}

/// The bounds of the world.
#[derive(Clone, Debug)]
pub(crate) struct TwoPhase {
    /// Bytes of output, one a message.
    pub(crate) bytes: usize,
    /// Connections, processes and checkpoints that fail in one history.
    pub(crate) faults: u8,
    /// Rounds without output.
    pub(crate) idle: u8,
    /// What the sink does wrong.
    pub(crate) mistake: Option<Mistake>,
}

impl TwoPhase {
    /// Two faults in a history of two bytes.
    pub(crate) fn faults() -> TwoPhase {
        TwoPhase { bytes: 2, faults: 2, idle: 1, mistake: None }
    }
}
/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Dial,
    Produce,
    StartCheckpoint,
    CompleteCheckpoint,
    /// The next message arrives at the sink, or at the worker.
    ToSink(usize),
    ToWorker(usize),
    Sync,
    Publish,
    // Faults. With `cut` the other end does not get what was on its way.
    WorkerLoses {
        cut: bool,
    },
    SinkLoses {
        link: usize,
        cut: bool,
    },
    /// Another sink aborts the checkpoint, or another worker fails: a vote may be overruled.
    Rollback,
    WorkerCrashes {
        cut: bool,
    },
    /// With `power` what was not synced is gone.
    SinkCrashes {
        power: bool,
        cut: bool,
    },
}

impl TwoPhase {
    /// Everything but faults.
    pub(crate) fn progress(&self, world: &World, steps: &mut Vec<Step>) {
        let flows = !world.rolling_back && !world.lost && world.pending.is_none();
        match world.worker() {
            None if world.links.len() < MOST_LINKS => steps.push(Step::Dial),
            Some(core) if flows => {
                if core.may_send().is_ok() && world.output.len() < self.bytes {
                    steps.push(Step::Produce);
                }
                let news = world.output.len() > world.completed.output.len() || world.idle > 0;
                if world.ready && core.is_ready() && news {
                    steps.push(Step::StartCheckpoint);
                }
            }
            Some(_) | None => {}
        }
        if world.pending.as_ref().is_some_and(|pending| pending.agreed) {
            steps.push(Step::CompleteCheckpoint);
        }
        for (id, link) in &world.links {
            if link.sink.is_some() && !link.down.is_empty() && world.due.is_none() {
                steps.push(Step::ToSink(*id));
            }
            if link.worker.is_some() && !link.up.is_empty() {
                steps.push(Step::ToWorker(*id));
            }
        }
        if world.due.is_some() {
            steps.push(Step::Sync);
        } else if self.publishable(world) > world.target.len() as u64 {
            steps.push(Step::Publish);
        }
    }

    fn publishable(&self, world: &World) -> u64 {
        match &world.log.pending {
            Some(pending) if self.mistake == Some(Mistake::PublishesAtVote) => pending.end,
            Some(_) | None => world.log.committed,
        }
    }

    /// True once all output is shown.
    pub(crate) fn is_done(&self, world: &World) -> bool {
        world.completed.output.len() == self.bytes && world.target.len() == self.bytes
    }
}

impl Model for TwoPhase {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            links: BTreeMap::new(),
            completed: Completed { checkpoint: 1, transaction: None, output: Vec::new() },
            pending: None,
            last_started: 1,
            output: Vec::new(),
            generation: 0,
            rolling_back: false,
            lost: false,
            ready: false,
            carried: false,
            log: LogState::default(),
            disk: Disk::default(),
            due: None,
            served: None,
            target: Vec::new(),
            faults: self.faults,
            idle: self.idle,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        self.progress(world, steps);
        if world.faults == 0 {
            return;
        }
        for cut in [false, true] {
            if world.worker().is_some() {
                steps.push(Step::WorkerLoses { cut });
            }
            for (link, _) in world.links.iter().filter(|(_, link)| link.sink.is_some()) {
                steps.push(Step::SinkLoses { link: *link, cut });
            }
            steps.push(Step::WorkerCrashes { cut });
            steps.extend([false, true].map(|power| Step::SinkCrashes { power, cut }));
        }
        if !world.rolling_back {
            steps.push(Step::Rollback);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        let current = world.current();
        match step {
            Step::Dial => {
                world.renumber();
                let id = world.links.len();
                let link = Link {
                    worker: Some(SinkClientCore::default()),
                    sink: Some(SinkServerCore::new(SinkMode::TwoPhase)),
                    down: [Down::Intro].into(),
                    up: VecDeque::new(),
                    late: false,
                };
                world.links.insert(id, link);
            }
            Step::Produce => {
                let offset = world.output.len() as u64;
                let byte = world.generation;
                world.output.push(byte);
                world.carried = true;
                world.links.get_mut(&current?)?.down.push_back(Down::Data { offset, byte });
            }
            Step::StartCheckpoint => {
                let (start, end) = (world.completed.output.len() as u64, world.output.len() as u64);
                world.idle -= u8::from(start == end);
                world.last_started += 1;
                let checkpoint = world.last_started;
                let transaction = Bytes::from(format!("c_id={checkpoint}"));
                let link = world.links.get_mut(&current?)?;
                link.worker.as_mut()?.phase1(transaction.clone()).ok()?;
                link.down.push_back(Down::Phase1 { transaction: transaction.clone(), start, end });
                world.pending = Some(Pending { checkpoint, transaction, agreed: false });
            }
            Step::CompleteCheckpoint => {
                let Pending { checkpoint, transaction, .. } = world.pending.take()?;
                world.completed = Completed {
                    checkpoint,
                    transaction: Some(transaction.clone()),
                    output: world.output.clone(),
                };
                if let Some(link) = current.and_then(|id| world.links.get_mut(&id))
                    && let Some(core) = link.worker.as_mut().filter(|core| core.phase() == Phase::Voted)
                {
                    core.phase2(&transaction, true).ok()?;
                    link.down.push_back(Down::Phase2 { transaction, commit: true });
                }
            }
            Step::ToSink(id) => self.at_sink(&mut world, id),
            Step::ToWorker(id) => world.at_worker(id),
            Step::Sync => {
                world.disk.sync();
                if let Some(Due::Vote(id)) = world.due.take() {
                    world.vote(id);
                }
            }
            Step::Publish => {
                let byte = world.disk.byte_at(world.target.len() as u64);
                match byte {
                    Some(byte) => world.target.push(byte),
                    None => world.breaks("what was decided is not in the log"),
                }
            }
            Step::WorkerLoses { cut } => world.worker_loses(cut),
            Step::SinkLoses { link, cut } => world.sink_closes(link, cut),
            Step::Rollback => world.begin_rollback(),
            Step::WorkerCrashes { cut } => {
                world.worker_closes(cut);
                world.recover();
                // A checkpoint that was under way used the next number.
                world.last_started = world.completed.checkpoint + 1;
                world.rolling_back = true;
            }
            Step::SinkCrashes { power, cut } => {
                world.served = None;
                let ids: Vec<usize> = world.links.keys().copied().collect();
                for id in ids {
                    world.sink_closes(id, cut);
                }
                world.sink_starts(power);
            }
        }
        match step {
            Step::WorkerLoses { .. }
            | Step::SinkLoses { .. }
            | Step::Rollback
            | Step::WorkerCrashes { .. }
            | Step::SinkCrashes { .. } => world.faults -= 1,
            Step::Dial
            | Step::Produce
            | Step::StartCheckpoint
            | Step::CompleteCheckpoint
            | Step::ToSink(_)
            | Step::ToWorker(_)
            | Step::Sync
            | Step::Publish => {}
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<TwoPhase>> {
        properties::properties()
    }
}
