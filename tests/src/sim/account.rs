//! The account of every record: when a run is over, what may be missing, what may be there twice.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use connector_crds::{OnError, OnInDoubt};

use super::faults::Fault;
use super::letters::ModelLetters;
use super::log::ModelLog;
use super::plan::{Setting, Way};
use super::receipts::Receipts;
use super::target::ModelTarget;
use super::trace::Trace;
use super::unsettled::Unsettled;

/// Simulated time in which nothing arrives, after which what is missing counts as lost where loss is permitted.
const QUIET: Duration = Duration::from_secs(5);

/// How often, in simulated milliseconds, what is missing is looked for once it is quiet: the logs are read for it.
const LOOK_MS: u128 = 100;

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

/// What became of records that a fresh cluster lost, in the coverage table.
const KEPT: &str = "records kept in doubt at a fresh cluster, as stated";
const CUT_OFF: &str = "records lost at a fresh cluster, as stated";

/// Whether a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something is still to come.
    Wait,
    /// Everything is where it belongs.
    Done,
}

/// What may be missing by now.
enum Permitted {
    /// Exactly these, and why.
    Names(BTreeMap<String, &'static str>),
    /// Anything: the framing is best effort, and something that had taken bytes is gone.
    Any,
}

impl Permitted {
    fn covers(&self, missing: &[String]) -> bool {
        match self {
            Permitted::Names(names) => missing.iter().all(|name| names.contains_key(name)),
            Permitted::Any => true,
        }
    }
}

/// See the module's first line.
pub struct Account {
    way: Way,
    exactly_once: bool,
    on_in_doubt: OnInDoubt,
    /// What the sink's transaction logs hold undecided, or held.
    unsettled: Unsettled,
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
        unsettled: Unsettled,
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
            unsettled,
            expected: handed.difference(&setting.refused).cloned().collect(),
            handed,
            refused,
            receipts,
            letters,
            last: Cell::default(),
            trace,
        }
    }

    /// What may be missing by now. Over `Connector` only a fresh cluster loses records: those of the transaction that it found
    /// undecided, when the sink keeps it for someone to look at, or cuts it off: because its policy says so, or because the fresh
    /// cluster's first rollback aborts what the sink lists, also where the cluster before had committed it and the decision was lost.
    fn permitted(&self) -> Permitted {
        let mut names = BTreeMap::new();
        match self.way {
            Way::Plain => {
                if TAKES_BYTES_ALONG.iter().any(|what| self.trace.counted(what) > 0) {
                    return Permitted::Any;
                }
            }
            Way::Connector => {
                if self.trace.counted(Fault::GracefulStop.name()) > 0 {
                    names.extend(self.unsettled.cut_off().into_iter().map(|name| (name, CUT_OFF)));
                }
                match self.on_in_doubt {
                    OnInDoubt::Hold => {
                        names.extend(self.unsettled.kept(&self.trace).into_iter().map(|name| (name, KEPT)));
                    }
                    OnInDoubt::Deliver | OnInDoubt::Discard => {}
                }
            }
        }
        Permitted::Names(names)
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
        let quiet = now.saturating_sub(self.last.get().1) >= QUIET && now.as_millis().is_multiple_of(LOOK_MS);
        if there < self.expected.len() && !quiet {
            return Verdict::Wait;
        }
        let missing = self.missing(target);
        let enough = missing.is_empty() || (quiet && self.permitted().covers(&missing));
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
        let mut missing = self.missing(target);
        if let Permitted::Names(names) = self.permitted() {
            missing.retain(|name| !names.contains_key(name));
        }
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
        let missing = self.missing(target);
        match &self.receipts {
            Some(receipts) => {
                let lost = "plain: records lost with a worker, a sink or a target";
                self.trace.count(lost, missing.len() as u64);
                let never = receipts.missing(self.handed.iter());
                if let Some(first) = never.first() {
                    self.trace
                        .broken(format!("{} records never reached a worker, first {first}", never.len()));
                }
            }
            None => {
                if let Permitted::Names(names) = self.permitted() {
                    for why in missing.iter().filter_map(|name| names.get(name)) {
                        self.trace.named(why);
                    }
                }
            }
        }
        repeated.len() as u64
    }
}
