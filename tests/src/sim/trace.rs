//! What happened in a run: a hash to compare two runs by, counts of named events, and broken promises.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lines of the trace that are kept for a failure report.
const KEPT_LINES: usize = 2_000;

/// The shared trace of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    hash: u64,
    last: std::collections::VecDeque<String>,
    named: BTreeMap<&'static str, u64>,
    broken: Vec<String>,
}

impl Trace {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happened now.
    pub fn note(&self, what: &str) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        self.note_at(at, what);
    }

    /// Notes what happened at a simulated time; for use outside of the hosts.
    pub fn note_at(&self, at: std::time::Duration, what: &str) {
        let mut lines = self.lines();
        let line = format!("{:>9.3} {what}", at.as_secs_f64());
        for byte in line.bytes() {
            // FNV-1a: order counts, and that is all that is asked of it.
            lines.hash = (lines.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if lines.last.len() == KEPT_LINES {
            lines.last.pop_front();
        }
        lines.last.push_back(line);
    }

    /// Counts an event of the coverage list.
    pub fn named(&self, event: &'static str) {
        self.count(event, 1);
    }

    /// Counts something of the coverage list.
    pub fn count(&self, what: &'static str, n: u64) {
        if n > 0 {
            *self.lines().named.entry(what).or_default() += n;
        }
    }

    /// How often something was counted.
    pub fn counted(&self, what: &str) -> u64 {
        self.lines().named.get(what).copied().unwrap_or(0)
    }

    /// A promise was broken; the run fails.
    pub fn broken(&self, promise: String) {
        self.lines().broken.push(promise);
    }

    /// Promises that were broken.
    pub fn broken_promises(&self) -> Vec<String> {
        self.lines().broken.clone()
    }

    /// Hash over everything noted.
    pub fn hash(&self) -> u64 {
        self.lines().hash
    }

    /// Counts of named events.
    pub fn coverage(&self) -> BTreeMap<&'static str, u64> {
        self.lines().named.clone()
    }

    /// The last lines, for a report.
    pub fn tail(&self) -> Vec<String> {
        self.lines().last.iter().cloned().collect()
    }
}
