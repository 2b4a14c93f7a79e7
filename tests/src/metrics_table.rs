//! The tables of metrics in the operations page: made from what a scrape says, and compared with the page.
//!
//! Included by path in the tests of both programs, which have no crate in common that may know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

/// The table of an OpenMetrics text, without the labels in `on_all`. Every family needs a sample, or its labels are not seen.
pub(super) fn table(scrape: &str, on_all: &[&str]) -> String {
    let mut metrics: BTreeMap<&str, Metric> = BTreeMap::new();
    for line in scrape.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            metrics.entry(name).or_default().kind = kind.to_owned();
        } else if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '))
        {
            metrics.entry(name).or_default().help = help.trim_end_matches('.').to_owned();
        }
    }
    let families: Vec<&str> = metrics.keys().copied().collect();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let Some(name) = line.split(['{', ' ']).next() else { continue };
        // The longest family that the sample's name begins with: it adds only a suffix such as `_total`.
        let family = families.iter().filter(|family| name.starts_with(**family)).max_by_key(|f| f.len());
        let Some(metric) = family.and_then(|family| metrics.get_mut(family)) else { continue };
        let labels =
            line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(all, _)| all);
        let names = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        metric.labels.extend(names.filter(|name| name != "le" && !on_all.contains(&name.as_str())));
    }
    let mut table = String::from("| Metric | Kind | Labels | What it says |\n| --- | --- | --- | --- |\n");
    for (name, Metric { kind, help, labels }) in metrics {
        let suffix = if kind == "counter" { "_total" } else { "" };
        let labels: Vec<_> = labels.into_iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        writeln!(table, "| `{name}{suffix}` | {kind} | {labels} | {help} |")
            .expect("a string takes everything");
    }
    table
}

/// Compares a table with the one between the markers `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page. With
/// `UPDATE_DOCS=1` in the environment the page is written instead.
pub(super) fn assert_current(page: &Path, name: &str, table: &str) {
    let text = std::fs::read_to_string(page).expect("the page can be read");
    let (begin, end) = (format!("<!-- {name}: begin -->\n\n"), format!("\n<!-- {name}: end -->"));
    let start = text.find(&begin).expect("the page has the marker") + begin.len();
    let stop = start + text[start..].find(&end).expect("the page has the marker of the end");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let new = format!("{}{table}{}", &text[..start], &text[stop..]);
        std::fs::write(page, new).expect("the page can be written");
        return;
    }
    assert_eq!(&text[start..stop], table, "{} is behind: run this test with UPDATE_DOCS=1", page.display());
}
