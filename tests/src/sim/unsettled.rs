//! Reads the sink's transaction logs: the records that were voted for and are kept undecided, and those that were cut off.

use std::collections::BTreeSet;
use std::path::Path;

use connector_runtime::txn_log::decisions::{Parsed, Record, parse};
use connector_runtime::txn_log::{directory, kept_in_doubt};

use super::disk::Disk;
use super::env::{Network, SimEnv};
use super::hosts::STATE;
use super::random::Random;
use super::trace::Trace;

/// The sink's disk, read by who judges a run. It is never changed here.
pub struct Unsettled {
    disk: Disk,
    env: SimEnv,
}

impl Unsettled {
    /// Of the logs on `disk`.
    pub fn on(disk: Disk) -> Unsettled {
        // Nothing is connected and nothing is drawn: only files are read.
        let env = SimEnv::new(Network::default(), disk.clone(), Random::new(0));
        Unsettled { disk, env }
    }

    /// Names of the records that are kept because their cluster ended before it decided, of every incarnation.
    pub fn kept(&self, trace: &Trace) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let read = kept_in_doubt(&self.env, &directory(Path::new(STATE)), |_, _, payload| {
            names.insert(String::from_utf8_lossy(payload).into_owned());
        });
        if let Err(error) = read {
            trace.broken(format!("the sink's log cannot be read: {error}"));
        }
        names
    }

    /// Names of the records that were voted for and then cut off.
    pub fn cut_off(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for end in self.disk.cut_off() {
            let (staged, voted) = records(&end);
            if voted {
                names.extend(staged);
            }
        }
        names
    }
}

/// Names of the records in the end of a log, and whether it was voted to deliver them.
fn records(mut end: &[u8]) -> (Vec<String>, bool) {
    let (mut names, mut voted) = (Vec::new(), false);
    while let Parsed::Record { record, length, .. } = parse(end) {
        end = &end[length..];
        match record {
            Record::Data { lengths, mut bytes, .. } => {
                for length in lengths.iter() {
                    let (payload, rest) = bytes.split_at(length); // the sum was checked
                    bytes = rest;
                    names.push(String::from_utf8_lossy(payload).into_owned());
                }
            }
            Record::Prepare { vote, .. } => voted |= vote,
            Record::Header(_)
            | Record::Commit { .. }
            | Record::RolledBack { .. }
            | Record::Delivered { .. }
            | Record::Held { .. }
            | Record::Ended { .. }
            | Record::Synced => {}
        }
    }
    (names, voted)
}
