//! The one table: each path beside its baseline, with the ratio and the goal.

use std::fmt;

use super::meter::Figures;

/// One row: the rounds of a path and of its baseline, taken in turn.
#[derive(Clone, Debug)]
pub struct Row {
    /// The path, e.g. `Kafka → FramedTCP`.
    pub path: String,
    /// Bytes of a record.
    pub size: usize,
    /// What it is measured against.
    pub baseline: String,
    /// Ratio that is aimed at, if any.
    pub goal: Option<f64>,
    /// Pairs of path and baseline, one a round.
    pub rounds: Vec<(Figures, Figures)>,
}

impl Row {
    /// Median of the ratios of the rounds: both were measured at nearly the same time, whatever else the machine did.
    pub fn ratio(&self) -> f64 {
        let ratios = self.rounds.iter().map(|(path, raw)| path.records_per_second / raw.records_per_second);
        median(ratios.collect())
    }

    fn median_of(&self, pick: impl Fn(&(Figures, Figures)) -> Option<f64>) -> Option<f64> {
        let values: Option<Vec<f64>> = self.rounds.iter().map(pick).collect();
        values.filter(|values| !values.is_empty()).map(median)
    }
}

/// The middle value; of an even number the lower one of the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// Heading of the table.
pub fn heading() -> String {
    format!(
        "{:<44} {:>5} {:>11} {:>6} {:>7}   {:<34} {:>11} {:>6} {:>7}   {:>5}  {}",
        "path",
        "bytes",
        "records/s",
        "CPU s",
        "peak",
        "baseline",
        "records/s",
        "CPU s",
        "peak",
        "ratio",
        "goal"
    )
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        let rss =
            |value: Option<f64>| value.map_or("-".into(), |value| format!("{:.1}M", value / 1_048_576.0));
        let rate = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
        let goal = self.goal.map_or("-".into(), |goal| format!("≥ {goal}"));
        write!(
            f,
            "{:<44} {:>5} {:>11} {:>6} {:>7}   {:<34} {:>11} {:>6} {:>7}   {:>5.2}  {goal}",
            self.path,
            self.size,
            rate(self.median_of(|(path, _)| Some(path.records_per_second))),
            cpu(self.median_of(|(path, _)| path.cpu_per_million)),
            rss(self.median_of(|(path, _)| path.peak_rss.map(|bytes| bytes as f64))),
            self.baseline,
            rate(self.median_of(|(_, raw)| Some(raw.records_per_second))),
            cpu(self.median_of(|(_, raw)| raw.cpu_per_million)),
            rss(self.median_of(|(_, raw)| raw.peak_rss.map(|bytes| bytes as f64))),
            self.ratio(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_medians_and_the_median_of_the_ratios() {
        let figures =
            |rate, cpu| Figures { records_per_second: rate, cpu_per_million: cpu, peak_rss: Some(2_097_152) };
        let rounds = vec![
            (figures(100.0, Some(3.0)), figures(100.0, None)),
            (figures(10.0, Some(1.0)), figures(20.0, None)),
            (figures(30.0, Some(2.0)), figures(40.0, None)),
        ];
        let row = Row { path: "a → b".into(), size: 100, baseline: "raw".into(), goal: Some(0.7), rounds };
        assert!((row.ratio() - 0.75).abs() < 1e-9);
        let text = row.to_string();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(
            words,
            ["a", "→", "b", "100", "30", "2.00", "2.0M", "raw", "40", "-", "2.0M", "0.75", "≥", "0.7"]
        );
    }
}
