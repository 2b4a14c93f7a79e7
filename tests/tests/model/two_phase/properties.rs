//! What must hold, and what must be possible, between a worker and a sink with two-phase commit.

use bytes::Bytes;
use stateright::Property;

use super::TwoPhase;
use super::world::{Up, World};

/// Nothing that is shown has to be taken back, nothing is shown twice, nothing is left out.
pub(crate) const EXACTLY: &str = "what is shown begins like what the cluster committed";
/// Every message fits, the log can be read at every moment, and votes are yes.
pub(crate) const KEPT: &str = "no rule is broken";
/// A vote that the worker can hear of survives a power loss.
pub(crate) const PROMISE: &str = "a vote is never before it is durable";
/// The log has decided what the cluster decided, or is about to hear of the last decision.
pub(crate) const DECISIONS: &str = "a decision is never contradicted, guessed or lost";

fn decisions_agree(world: &World) -> bool {
    let ahead = world.completed.output.len() as u64;
    let decided = world.log.committed == ahead;
    let undecided = world.log.pending.as_ref().is_some_and(|pending| {
        Some(&pending.transaction) == world.completed.transaction.as_ref()
            && pending.start == world.log.committed
            && pending.end == ahead
    });
    decided || undecided
}

/// Transactions that the worker has or gets a yes for.
fn votes(world: &World) -> impl Iterator<Item = &Bytes> {
    let heard = world.pending.iter().filter(|pending| pending.agreed).map(|pending| &pending.transaction);
    let underway = world.links.values().flat_map(|link| &link.up).filter_map(|message| match message {
        Up::Vote { transaction, commit: true } => Some(transaction),
        Up::Vote { .. } | Up::Listed(_) | Up::Fin => None,
    });
    heard.chain(underway)
}

fn listed(world: &World) -> impl Iterator<Item = &Vec<Bytes>> {
    world.links.values().flat_map(|link| &link.up).filter_map(|message| match message {
        Up::Listed(transactions) => Some(transactions),
        Up::Vote { .. } | Up::Fin => None,
    })
}

fn lists(world: &World, committed: bool) -> bool {
    let decided = world.completed.transaction.as_ref();
    listed(world).flatten().any(|transaction| (decided == Some(transaction)) == committed)
}

pub(crate) fn properties() -> Vec<Property<TwoPhase>> {
    vec![
        Property::always(EXACTLY, |_, world: &World| world.completed.output.starts_with(&world.target)),
        Property::always(KEPT, |_, world: &World| world.broken.is_none()),
        Property::always(PROMISE, |_, world: &World| {
            votes(world).all(|transaction| world.disk.promises(transaction))
        }),
        Property::always(DECISIONS, |_, world: &World| decisions_agree(world)),
        Property::always("one transaction is listed at most", |_, world: &World| {
            listed(world).all(|transactions| transactions.len() <= 1)
        }),
        Property::always("nothing gets stuck", |model: &TwoPhase, world: &World| {
            let mut steps = Vec::new();
            model.progress(world, &mut steps);
            model.is_done(world) || world.broken.is_some() || !steps.is_empty()
        }),
        Property::sometimes("everything is shown", |model: &TwoPhase, world| model.is_done(world)),
        Property::sometimes("a decision was lost", |_, world: &World| lists(world, true)),
        Property::sometimes("a vote was lost or overruled", |_, world: &World| lists(world, false)),
        Property::sometimes("a worker dials again before its old connection is over", |_, world: &World| {
            world.links.values().filter(|link| link.sink.is_some()).count() == 2
        }),
        Property::sometimes("other output follows an abort", |_, world: &World| {
            world.target.iter().any(|byte| *byte > 0)
        }),
    ]
}
