//! What a run did: records in, out, rejected and why. Pure.

use super::plan::{Direction, RuntimePlan};
use super::status::{EndpointStatus, RuntimeStatus};
use super::view::grouped;

/// Sums over a whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records that the sources took in.
    pub taken: u64,
    /// Records that the sinks wrote.
    pub written: u64,
    /// Records that ended on the way: dropped, written to a dead letter, or refused by the application.
    pub rejected: u64,
}

/// The last status of everything that ran.
#[derive(Clone, Copy, Debug)]
pub struct Last<'a> {
    /// Connectors with their last status.
    pub connectors: &'a [(&'a RuntimePlan, Option<&'a RuntimeStatus>)],
    /// The embedded Wallaroo.
    pub wallaroo: Option<&'a EndpointStatus>,
}

/// Adds up.
pub fn totals(last: Last<'_>) -> Totals {
    let mut totals = Totals::default();
    for (plan, status) in last.connectors {
        let Some(status) = status else { continue };
        match plan.direction {
            Direction::Source => totals.taken += status.records.read,
            Direction::Sink => totals.written += status.records.written,
        }
        totals.rejected += status.records.dead_letters + status.records.dropped.values().sum::<u64>();
    }
    if let Some(status) = last.wallaroo {
        totals.rejected += status.bad_input.values().map(|bad| bad.count).sum::<u64>();
    }
    totals
}

/// The text, line by line.
pub fn lines(last: Last<'_>) -> Vec<String> {
    let mut lines = vec![String::new(), "Summary".to_owned()];
    let mut rejected = Vec::new();
    for (plan, status) in last.connectors {
        let name = format!("  {} ({})", plan.label, plan.type_name);
        let Some(status) = status else {
            lines.push(format!("{name}: gave no account of itself"));
            continue;
        };
        let records = &status.records;
        let (read, written) = (grouped(records.read), grouped(records.written));
        lines.push(match plan.direction {
            Direction::Source => format!("{name}: {read} records read, {written} sent to Wallaroo"),
            Direction::Sink => format!("{name}: {read} records received, {written} written"),
        });
        for (reason, count) in &records.dropped {
            rejected.push(format!("    {} dropped by {}: {reason}", grouped(*count), plan.label));
        }
        if records.dead_letters > 0 {
            let count = grouped(records.dead_letters);
            rejected.push(format!("    {count} written to the dead letter of {}", plan.label));
        }
        if let Some(stalled) = &status.stalled {
            lines.push(format!("    Stalled/{}: {}", stalled.reason, stalled.message));
        }
    }
    if let Some(status) = last.wallaroo {
        let (records, results) = (grouped(status.records_in), grouped(status.results));
        lines.push(format!("  (wallaroo): {records} records processed, {results} results"));
        if status.repeats_dropped > 0 {
            lines.push(format!("    {} repeats recognised and left out", grouped(status.repeats_dropped)));
        }
        for (reason, bad) in &status.bad_input {
            let count = grouped(bad.count);
            rejected.push(format!(
                "    {count} refused by the application: {reason}; the first: {:?}",
                bad.example
            ));
        }
        for violation in &status.violations {
            lines.push(format!(
                "    violation of the protocol ({}) at {}: {}",
                violation.rule, violation.place, violation.detail
            ));
        }
    }
    let Totals { taken, written, rejected: sum } = totals(last);
    lines.push(format!(
        "  Records in: {}, out: {}, rejected: {}",
        grouped(taken),
        grouped(written),
        grouped(sum)
    ));
    lines.extend(rejected);
    lines
}

#[cfg(test)]
mod tests;
