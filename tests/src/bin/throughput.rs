//! `throughput`: one table of what the connectors move a second, each path beside a raw baseline of the same run.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use connector_crds::SourceSpec;
use connector_tests::binaries::beside;
use connector_tests::throughput::paths::{self, Bench};
use connector_tests::throughput::{baseline, idle, table};
use serde_json::json;

const USAGE: &str = "\
usage: throughput [--records N] [--rounds N] [--only TEXT] [--no-services]

  --records N     records of a run [default: 2000000]
  --rounds N      runs of each path and its baseline, in turn; the table shows medians [default: 3]
  --only TEXT     only rows whose name holds this text
  --no-services   only what needs neither Kafka nor Redis

Run it by `./tasks throughput`, which builds the binaries and starts the servers.";

/// Bytes a second of 100-byte records that a real worker takes, measured once on two cores: for comparison.
const REAL_WORKER: &str = "a real worker takes about 91,000 records/s of 100 bytes";

struct Arguments {
    records: u64,
    rounds: u32,
    only: Option<String>,
    services: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut found = Arguments { records: 2_000_000, rounds: 3, only: None, services: true };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--records" => found.records = value()?.parse().context("--records")?,
            "--rounds" => found.rounds = value()?.parse().context("--rounds")?,
            "--only" => found.only = Some(value()?),
            "--no-services" => found.services = false,
            _ => bail!("unknown argument {name}\n\n{USAGE}"),
        }
    }
    if found.records < 10_000 || found.rounds == 0 {
        bail!("at least 10000 records and one round, or there is nothing to measure");
    }
    Ok(found)
}

fn run() -> anyhow::Result<()> {
    let arguments = arguments()?;
    let binaries = (beside("connector-runtime")?, beside("wallaroo-endpoint")?);
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let mut bench = Bench::new(binaries.clone(), directory.path().to_owned(), arguments.records);
    println!(
        "{} records a run, median of {}; CPU s: for a million records; peak: resident MiB; {REAL_WORKER}",
        arguments.records, arguments.rounds
    );
    println!("{}", table::heading());
    for (kind, size) in paths::all() {
        let wanted = arguments.only.as_ref().is_none_or(|text| kind.name().contains(text.as_str()));
        if wanted && (arguments.services || !kind.needs_services()) {
            println!("{}", bench.row(kind, size, arguments.rounds)?);
        }
    }
    if arguments.only.is_none() {
        std::fs::write(path("empty.txt"), "")?;
        let source: SourceSpec = serde_json::from_value(json!({"file": {"path": path("empty.txt")}}))?;
        let binaries: (&PathBuf, &PathBuf) = (&binaries.0, &binaries.1);
        let found = idle::measure((binaries.0, binaries.1), directory.path(), "idle", source)?;
        println!(
            "idle: {:.1} MiB resident, {:.2} % of a core; start to ready {} ms; stripped {:.1} MiB",
            found.rss as f64 / 1_048_576.0,
            found.cpu * 100.0,
            found.start_to_ready.as_millis(),
            idle::stripped_size(binaries.0, directory.path())? as f64 / 1_048_576.0
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let all: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match all.split_first() {
        Some((first, rest)) if first == "baseline" => baseline::run(rest),
        _ => run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error:#}");
            ExitCode::FAILURE
        }
    }
}
