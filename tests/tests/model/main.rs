//! The rules of ownership, acknowledgement and two-phase commit, explored exhaustively: every interleaving of small worlds.
//!
//! The decisions are not modelled but taken from the product: the cores of the four sessions, the pump's table of
//! streams and the transaction log's state. Modelled are the worker's registry and checkpoints, the external system, the
//! disk, and a network that keeps the order and loses what is on its way when a connection ends.
//!
//! A property that never failed proves little: each model also runs with mistakes put in, and has to find them.

mod ownership;
mod recovery;
mod two_phase;

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use ownership::Ownership;
use two_phase::TwoPhase;

/// Fewer states would mean that a bound, or a mistake in the model, keeps it from the interesting ones.
const FEWEST_STATES: usize = 10_000;

/// Explores everything: each `always` holds in every state, each `sometimes` is reached. Prints how much that was.
fn explore<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Clone + PartialEq + Send + Sync + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let started = Instant::now();
    let checker = model.checker().spawn_bfs().join();
    println!(
        "{name}: {} states ({} with repeats), depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64(),
    );
    checker.assert_properties();
    assert!(checker.unique_state_count() > FEWEST_STATES, "too few states to mean anything");
}

/// A mistake is put in: exactly this property has to fail. Prints after how many states.
fn refute<M>(mistake: &str, model: M, property: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Clone + PartialEq + Send + Sync + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(property) else {
        panic!(
            "{mistake}: {states} states, and {property:?} was not refuted: {:?}",
            checker.discoveries().keys()
        );
    };
    let steps: Vec<_> = path.into_actions();
    println!("{mistake}: found after {states} states, {} steps: {steps:?}", steps.len());
}

#[test]
fn a_source_commits_only_what_survives_when_connections_processes_and_checkpoints_fail() {
    explore("one owner, faults", Ownership::faults());
}

#[test]
fn a_stream_moves_to_another_connector_without_loss_and_has_one_owner() {
    explore("the stream moves", Ownership::moves());
}

#[test]
fn a_worker_that_does_not_lead_the_registry_changes_nothing() {
    explore("echoed positions, faults", Ownership { leader: false, ..Ownership::faults() });
}

#[test]
fn a_sink_publishes_exactly_what_the_cluster_committed() {
    explore("two-phase commit", TwoPhase::faults());
}

#[test]
fn a_source_recovers_from_everything() {
    recovery::always("one owner, faults", &Ownership::faults(), Ownership::progress, Ownership::is_done);
}

#[test]
#[should_panic(expected = "the end is out of reach")]
fn a_source_that_passes_records_over_does_not_recover() {
    let model = Ownership { mistake: Some(ownership::Mistake::ResumesOneTooFar), ..Ownership::faults() };
    recovery::always("records passed over", &model, Ownership::progress, Ownership::is_done);
}

#[test]
fn a_sink_recovers_from_everything() {
    recovery::always("two-phase commit", &TwoPhase::faults(), TwoPhase::progress, TwoPhase::is_done);
}

#[test]
fn mistakes_of_a_source_are_found() {
    use ownership::Mistake;
    use ownership::properties as rule;
    for (mistake, records, property) in [
        (Mistake::CommitsOnNotifyAck, 2, rule::SURVIVES),
        (Mistake::ComparesNone, 2, rule::SURVIVES),
        (Mistake::DoesNotChargeEos, 2, rule::CREDITS),
        (Mistake::ResumesOneTooFar, 3, rule::KEPT),
    ] {
        let model = Ownership { mistake: Some(mistake), records, ..Ownership::faults() };
        refute(&format!("{mistake:?}"), model, property);
    }
}

#[test]
fn mistakes_of_a_sink_are_found() {
    use two_phase::Mistake;
    use two_phase::properties as rule;
    for (mistake, property) in [
        (Mistake::VotesBeforeSync, rule::PROMISE),
        (Mistake::DoesNotTruncate, rule::KEPT),
        (Mistake::PublishesAtVote, rule::EXACTLY),
        (Mistake::DecidesByItself, rule::DECISIONS),
        (Mistake::LetsLateConnectionsIn, rule::KEPT),
    ] {
        let model = TwoPhase { mistake: Some(mistake), ..TwoPhase::faults() };
        refute(&format!("{mistake:?}"), model, property);
    }
}
