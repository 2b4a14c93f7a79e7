//! From every state the end can be reached without another fault: nothing waits for ever, also not in circles.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use stateright::Model;

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Visits every state, and goes back from the ends along steps that are no faults: that has to reach every state again.
pub(crate) fn always<M>(
    name: &str,
    model: &M,
    progress: impl Fn(&M, &M::State, &mut Vec<M::Action>),
    is_done: impl Fn(&M, &M::State) -> bool,
) where
    M: Model,
    M::State: Hash + Debug,
    M::Action: PartialEq + Clone,
{
    let started = Instant::now();
    let mut known: HashMap<u64, usize> = HashMap::new();
    let mut queue = VecDeque::new();
    // For each state those from which a step leads to it.
    let mut before: Vec<Vec<usize>> = Vec::new();
    let mut reached = Vec::new();
    for state in model.init_states() {
        known.insert(fingerprint(&state), before.len());
        queue.push_back((before.len(), state));
        before.push(Vec::new());
    }
    let mut ends = Vec::new();
    while let Some((index, state)) = queue.pop_front() {
        reached.push(false);
        if is_done(model, &state) {
            ends.push(index);
        }
        let (mut actions, mut healthy) = (Vec::new(), Vec::new());
        model.actions(&state, &mut actions);
        progress(model, &state, &mut healthy);
        for action in actions {
            let heals = healthy.contains(&action);
            let Some(next) = model.next_state(&state, action) else { continue };
            let to = *known.entry(fingerprint(&next)).or_insert_with(|| {
                queue.push_back((before.len(), next));
                before.push(Vec::new());
                before.len() - 1
            });
            if heals {
                before[to].push(index);
            }
        }
    }
    assert!(!ends.is_empty(), "the end is never reached");
    let mut recovering = 0;
    while let Some(index) = ends.pop() {
        if !std::mem::replace(&mut reached[index], true) {
            recovering += 1;
            ends.extend(&before[index]);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{name}: {recovering} of {} states recover, {seconds:.1} s", before.len());
    assert_eq!(recovering, before.len(), "from some states the end is out of reach");
}
