//! One line a Connector: name, type, records, rate, acknowledged position, state. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::plan::{Direction, RuntimePlan};
use super::process::ProcessState;
use super::status::{EndpointStatus, RuntimeStatus, SideStatus, Trouble};

/// Readings that the rate is taken over.
const RATE_READINGS: usize = 9;

/// Longest cell of the last column, in characters: a sentence of an error fits, a page does not.
const MAX_STATE: usize = 160;

/// The records of the last readings: how fast they move.
#[derive(Clone, Debug, Default)]
pub struct Rate(VecDeque<(Duration, u64)>);

impl Rate {
    /// Adds a reading; `now` counts from any fixed moment.
    pub fn push(&mut self, now: Duration, records: u64) {
        // A restarted process counts from zero.
        if self.0.back().is_some_and(|(_, last)| *last > records) {
            self.0.clear();
        }
        if self.0.len() == RATE_READINGS {
            self.0.pop_front();
        }
        self.0.push_back((now, records));
    }

    /// Records a second.
    pub fn per_second(&self) -> u64 {
        let (Some((from, first)), Some((to, last))) = (self.0.front(), self.0.back()) else { return 0 };
        let millis = u64::try_from(to.saturating_sub(*from).as_millis()).unwrap_or(u64::MAX);
        // A process that moves more than 10^16 records between two readings does not exist.
        (last - first).saturating_mul(1_000).checked_div(millis).unwrap_or(0)
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The columns.
    pub cells: [String; 6],
}

/// The head of the table.
pub fn head() -> Row {
    Row { cells: ["CONNECTOR", "TYPE", "RECORDS", "RATE", "ACKNOWLEDGED", "STATE"].map(str::to_owned) }
}

/// The line of a Connector; `process` is `None` before its start, and for one that is to be stopped.
pub fn connector(
    plan: &RuntimePlan,
    process: Option<&ProcessState>,
    status: Option<&RuntimeStatus>,
    rate: u64,
) -> Row {
    let records = status.map_or(0, |status| moved(plan.direction, status));
    Row {
        cells: [
            plan.label.clone(),
            plan.type_name.to_owned(),
            grouped(records),
            format!("{}/s", grouped(rate)),
            status.map_or_else(|| "-".into(), acknowledged),
            shortened(&state(plan, process, status)),
        ],
    }
}

/// The line of the embedded Wallaroo.
pub fn wallaroo(process: Option<&ProcessState>, status: Option<&EndpointStatus>, rate: u64) -> Row {
    let state = match (process, status) {
        (None, _) => "Waiting".to_owned(),
        (Some(ProcessState::Restarting { ended }), _) => format!("Restarting: {ended}"),
        (Some(ProcessState::Over { failure: Some(failure) }), _) => format!("Failed: {failure}"),
        (Some(ProcessState::Over { failure: None }), _) => "Ended".to_owned(),
        (Some(ProcessState::Running), None) => "Starting".to_owned(),
        (Some(ProcessState::Running), Some(status)) => match status.violations.first() {
            Some(violation) => {
                format!("{:?}, {} violations: {}", status.phase, status.violation_count, violation.detail)
            }
            None => format!("{:?}", status.phase),
        },
    };
    Row {
        cells: [
            "(wallaroo)".to_owned(),
            "embedded".to_owned(),
            grouped(status.map_or(0, |status| status.records_in)),
            format!("{}/s", grouped(rate)),
            status.map_or_else(|| "-".into(), |status| format!("checkpoint {}", status.checkpoint)),
            shortened(&state),
        ],
    }
}

/// Records that the line of a Connector shows: taken in by a source, written by a sink.
pub fn moved(direction: Direction, status: &RuntimeStatus) -> u64 {
    match direction {
        Direction::Source => status.records.read,
        Direction::Sink => status.records.written,
    }
}

/// Lines with aligned columns; numbers to the right.
pub fn table(rows: &[Row]) -> Vec<String> {
    let mut widths = [0; 6];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(&row.cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (column, (cell, width)) in row.cells.iter().zip(widths).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let padding = std::iter::repeat_n(' ', width - cell.chars().count());
                match column {
                    2 | 3 => line.extend(padding.chain(cell.chars())),
                    _ => line.extend(cell.chars().chain(padding)),
                }
            }
            line.trim_end().to_owned()
        })
        .collect()
}

/// A number with its thousands parted: `8,759`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn acknowledged(status: &RuntimeStatus) -> String {
    let mut streams = status.streams.values();
    match (streams.next(), streams.next()) {
        (None, _) => "-".into(),
        (Some(one), None) => one.acknowledged.map_or_else(|| "-".into(), |position| position.to_string()),
        (Some(_), Some(_)) => {
            let acknowledged = status.streams.values().filter(|stream| stream.acknowledged.is_some()).count();
            format!("{acknowledged} of {} streams", status.streams.len())
        }
    }
}

fn state(plan: &RuntimePlan, process: Option<&ProcessState>, status: Option<&RuntimeStatus>) -> String {
    use connector_crds::State;
    let why = |what: &str, Trouble { reason, message }: &Trouble| format!("{what}/{reason}: {message}");
    match (process, status) {
        (None, _) if !plan.runs() => "Stopped".into(),
        (None, _) => "Waiting".into(),
        (Some(ProcessState::Restarting { ended }), _) => format!("Restarting: {ended}"),
        (Some(ProcessState::Over { failure: Some(failure) }), _) => format!("Failed: {failure}"),
        (Some(ProcessState::Over { failure: None }), Some(status)) if status.complete => "Complete".into(),
        (Some(ProcessState::Over { failure: None }), _) => "Ended".into(),
        (Some(ProcessState::Running), None) => "Starting".into(),
        (Some(ProcessState::Running), Some(status)) => {
            if status.complete {
                return "Complete".into();
            }
            if let Some(stalled) = &status.stalled {
                return why("Stalled", stalled);
            }
            match (&status.external, &status.wallaroo, plan.direction) {
                (SideStatus::Failed(trouble), _, _) => why("External", trouble),
                (_, SideStatus::Failed(trouble), _) => why("Wallaroo", trouble),
                (_, SideStatus::Waiting, Direction::Sink) => "Listening".into(),
                (SideStatus::Waiting, _, _) | (_, SideStatus::Waiting, _) => "Connecting".into(),
                (SideStatus::Connected, SideStatus::Connected, _) => match plan.live.state {
                    State::Running | State::Stopped => "Running".into(),
                    State::Paused => "Paused".into(),
                },
            }
        }
    }
}

fn shortened(text: &str) -> String {
    let line = text.replace(char::is_control, " ");
    match line.char_indices().nth(MAX_STATE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Rate, Row, grouped, shortened, table};

    #[test]
    fn thousands_are_parted() {
        let numbers = [0, 999, 1_000, 8_759, 1_000_000].map(grouped);
        assert_eq!(numbers, ["0", "999", "1,000", "8,759", "1,000,000"]);
    }

    #[test]
    fn the_rate_is_taken_over_the_last_readings_and_starts_over_with_the_process() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), 0);
        for second in 0..20 {
            rate.push(Duration::from_secs(second), second * second * 10);
        }
        // (19² − 11²) × 10 records in 8 s.
        assert_eq!(rate.per_second(), 300);
        rate.push(Duration::from_secs(20), 5);
        assert_eq!(rate.per_second(), 0);
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_end_of_blanks() {
        let row = |cells: [&str; 6]| Row { cells: cells.map(str::to_owned) };
        let lines = table(&[
            row(["a", "b", "100", "1/s", "-", ""]),
            row(["long", "b", "1", "10/s", "77", "Running"]),
        ]);
        assert_eq!(lines, ["a     b  100   1/s  -", "long  b    1  10/s  77  Running"]);
    }

    #[test]
    fn a_state_is_one_line_of_bounded_length() {
        assert_eq!(shortened("a\nb"), "a b");
        assert_eq!(shortened(&"é".repeat(500)).chars().count(), 161);
    }
}
