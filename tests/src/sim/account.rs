//! The account of every record: when a run is over, what may be missing, what may be there twice.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use connector_crds::{OnError, OnInDoubt};

use super::letters::ModelLetters;
use super::log::ModelLog;
use super::observer::{RECORDS_ABORTED, RECORDS_IN_DOUBT};
use super::plan::{Setting, Way};
use super::receipts::Receipts;
use super::target::ModelTarget;
use super::trace::Trace;

/// Simulated time in which nothing arrives, after which what is missing counts as lost where loss is permitted.
const QUIET: Duration = Duration::from_secs(5);

/// Simulated time in which nothing arrives, after which an operator looks after a cluster that was started afresh: longer than
/// every back-off of the code under test.
const STUCK: Duration = Duration::from_secs(35);

/// What kills bytes that a worker or a plain sink took: their beginnings in the coverage table.
const TAKES_BYTES_ALONG: [&str; 9] = [
    "kill wallaroo",
    "power loss wallaroo",
    "kill sink",
    "power loss sink",
    "kill at a write",
    "power loss at a write",
    "target crash",
    "sink process ended by its disk",
    "target went back",
];

/// Whether a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something is still to come.
    Wait,
    /// Everything is where it belongs.
    Done,
}

/// See the module's first line.
pub struct Account {
    way: Way,
    exactly_once: bool,
    on_in_doubt: OnInDoubt,
    /// Records that Wallaroo can be handed.
    handed: BTreeSet<String>,
    /// Records that the target takes.
    expected: BTreeSet<String>,
    /// Records that must have become dead letters of the sink.
    refused: BTreeSet<String>,
    /// What the worker's host got over the plain framings.
    pub receipts: Option<Receipts>,
    letters: ModelLetters,
    /// How many records were there, and since when.
    last: Cell<(usize, Duration)>,
    trace: Trace,
}

impl Account {
    /// Of a run with these records.
    pub fn new(
        setting: &Setting,
        handed: BTreeSet<String>,
        receipts: Option<Receipts>,
        letters: ModelLetters,
        trace: Trace,
    ) -> Account {
        let refused = match setting.on_refused {
            OnError::DeadLetter => handed.intersection(&setting.refused).cloned().collect(),
            OnError::Drop | OnError::Stop => BTreeSet::new(),
        };
        Account {
            way: setting.way,
            exactly_once: setting.exactly_once,
            on_in_doubt: setting.on_in_doubt,
            expected: handed.difference(&setting.refused).cloned().collect(),
            handed,
            refused,
            receipts,
            letters,
            last: Cell::default(),
            trace,
        }
    }

    /// Records that may be lost by now.
    fn permitted(&self) -> u64 {
        match self.way {
            Way::Plain => {
                let taken = TAKES_BYTES_ALONG.iter().any(|what| self.trace.counted(what) > 0);
                if taken { u64::MAX } else { 0 }
            }
            Way::Connector => {
                let in_doubt = match self.on_in_doubt {
                    OnInDoubt::Deliver => 0,
                    OnInDoubt::Hold | OnInDoubt::Discard => self.trace.counted(RECORDS_IN_DOUBT),
                };
                in_doubt + self.trace.counted(RECORDS_ABORTED)
            }
        }
    }

    fn missing(&self, target: &ModelTarget) -> Vec<String> {
        let there = target.records();
        let expected = self.expected.iter().filter(|name| !there.contains_key(*name));
        // A letter is as good as a record.
        expected.chain(self.refused.iter().filter(|name| !self.letters.has(name))).cloned().collect()
    }

    /// Whether the run is over; `undisturbed` when nothing is broken and no fault is to come.
    pub fn judge(&self, log: &ModelLog, target: &ModelTarget, now: Duration, undisturbed: bool) -> Verdict {
        let there = target.distinct();
        if self.last.get().0 != there {
            self.last.set((there, now));
        }
        if !undisturbed || !log.is_done() {
            return Verdict::Wait;
        }
        let permitted = self.permitted();
        if permitted == 0 && there < self.expected.len() {
            return Verdict::Wait;
        }
        let missing = self.missing(target).len() as u64;
        let quiet = now.saturating_sub(self.last.get().1) >= QUIET;
        let enough = missing == 0 || (missing <= permitted && quiet);
        if enough { Verdict::Done } else { Verdict::Wait }
    }

    /// True when nothing arrived for long after a graceful stop; asks again only after the same time.
    pub fn is_stuck_without_decision(&self, now: Duration) -> bool {
        let (there, since) = self.last.get();
        let stuck = self.trace.counted("graceful stop of wallaroo") > 0 && now.saturating_sub(since) >= STUCK;
        if stuck {
            self.last.set((there, now));
        }
        stuck
    }

    /// What is wrong with a run that does not end.
    pub fn lost(&self, log: &ModelLog, target: &ModelTarget) -> Vec<String> {
        let missing = self.missing(target);
        let mut wrong = Vec::new();
        if !log.is_done() {
            wrong.push("not everything was committed".to_owned());
        }
        if !missing.is_empty() {
            let first: Vec<_> = missing.iter().take(5).collect();
            wrong.push(format!("{} records lost, first {first:?}", missing.len()));
        }
        wrong
    }

    /// The run is over: notes what is wrong with what is there. Returns how many records are there twice.
    pub fn close(&self, target: &ModelTarget) -> u64 {
        let records = target.records();
        let repeated: Vec<_> = records.iter().filter(|(_, n)| **n > 1).collect();
        if let (true, Some(first)) = (self.exactly_once, repeated.first()) {
            self.trace.broken(format!("{} records repeated, first {first:?}", repeated.len()));
        }
        if let Some(foreign) = records.keys().find(|name| !self.expected.contains(*name)) {
            self.trace.broken(format!("a record that nobody wrote: {foreign:?}"));
        }
        let missing = self.missing(target).len() as u64;
        match &self.receipts {
            Some(receipts) => {
                self.trace.count("plain: records lost with a worker, a sink or a target", missing);
                let never = receipts.missing(self.handed.iter());
                if let Some(first) = never.first() {
                    self.trace
                        .broken(format!("{} records never reached a worker, first {first}", never.len()));
                }
            }
            None => self.trace.count("records lost at a fresh cluster, as stated", missing),
        }
        repeated.len() as u64
    }
}
