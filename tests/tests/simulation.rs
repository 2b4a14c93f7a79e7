//! Deterministic simulation of the whole data path: every seed twice with the same trace, every record accounted for.
//!
//! `SIM_SEED=N` runs one seed and prints its trace; `SIM_SEEDS=N` runs that many, once each, and with many of them every named
//! event has to happen often; `SIM_FIRST=N` starts at another.
//! `SIM_LOG=FILTER` with `SIM_SEED` prints the logs of the code under test too, e.g. `SIM_LOG=debug,turmoil=trace`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use connector_tests::sim::run::{Logs, run};

/// Seeds of the default run.
const SEEDS: u64 = 300;

/// Processes that share the seeds: one run at a time in each.
const PROCESSES: u64 = 2;

/// Seeds from which on the coverage is asked for.
const LONG: u64 = 20_000;

/// How often each named event has to happen in a long run.
const OFTEN: u64 = 100;

/// Events that a long run has to show, beside everything that the plan asks for.
const NAMED: [&str; 26] = [
    "vote lost",
    "decision lost",
    "vote overruled",
    "voted transaction aborted",
    "torn record cut off",
    "torn write",
    "fresh cluster",
    "in doubt at a fresh cluster",
    "records lost at a fresh cluster, as stated",
    "records kept in doubt at a fresh cluster, as stated",
    "nothing known of what was committed",
    "target went back",
    "target crash",
    "answer lost with the target",
    "record refused by the target",
    "rebalance",
    "rollback done",
    "notify refused",
    "worker dialled again",
    "older connection read late",
    "sink lost by its cluster",
    "sink process ended by its disk",
    "write without room",
    "power loss at a write",
    "kill at a write",
    "plain: records lost with a worker, a sink or a target",
];

/// Tells a process of a shared run which seeds are its own: `first,seeds,times`.
const SHARE: &str = "SIM_SHARE";

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

#[test]
fn every_record_is_accounted_for_whatever_fails() {
    if let Some(seed) = number("SIM_SEED") {
        return one(seed);
    }
    if let Ok(share) = std::env::var(SHARE) {
        let numbers: Vec<u64> = share.split(',').map(|number| number.parse().unwrap()).collect();
        return run_share(numbers[0], numbers[1], numbers[2]);
    }
    let first = number("SIM_FIRST").unwrap_or(1);
    let (seeds, times) = number("SIM_SEEDS").map_or((SEEDS, 2), |seeds| (seeds, 1));
    let begin = Instant::now();
    let counted = run_shared(first, seeds, times);
    println!("{seeds} seeds from {first} on, {times} time(s) each, in {:.1?}", begin.elapsed());
    for (name, n) in &counted {
        println!("{n:>9}  {name}");
    }
    let count = |name: &str| counted.get(name).copied().unwrap_or(0);
    assert_eq!(count("seeds with 3 crashes, 1 partition, 1 rollback, 1 rebalance"), seeds);
    if seeds >= LONG {
        let rare: Vec<_> = NAMED.into_iter().filter(|name| count(name) < OFTEN).collect();
        assert!(rare.is_empty(), "too seldom in {seeds} seeds: {rare:?}");
    }
}

fn one(seed: u64) {
    let mut logs = Logs::Observed;
    if let Ok(filter) = std::env::var("SIM_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
        logs = Logs::Printed;
    }
    match run(seed, logs) {
        Ok(outcome) => {
            println!("{}", outcome.tail.join("\n"));
            let (crashes, repeated, took) = (outcome.crashes, outcome.repeated, outcome.took);
            println!("seed {seed}: {crashes} crashes, {repeated} repeated, {took:?}");
        }
        Err(failure) => panic!("{failure}"),
    }
}

/// Runs every seed of a share `times` times and prints what was counted.
fn run_share(first: u64, seeds: u64, times: u64) {
    let mut counted: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in first..first + seeds {
        let once = run(seed, Logs::Observed).unwrap_or_else(|failure| panic!("{failure}"));
        for _ in 1..times {
            let again = run(seed, Logs::Observed).unwrap_or_else(|failure| panic!("{failure}"));
            let differs = once.tail.iter().zip(&again.tail).find(|(a, b)| a != b);
            assert_eq!(once.hash, again.hash, "seed {seed} gave two traces, first at {differs:?}");
        }
        let asked = |name: &str| once.coverage.get(name).copied().unwrap_or(0) > 0;
        let deep = ["partition", "asked: rollback", "asked: rebalance"].into_iter().all(asked);
        let deep = deep && once.crashes >= 3;
        *counted.entry("seeds with 3 crashes, 1 partition, 1 rollback, 1 rebalance").or_default() +=
            u64::from(deep);
        *counted.entry("records there twice, where that is permitted").or_default() += once.repeated;
        for (name, n) in once.coverage {
            *counted.entry(name).or_default() += n;
        }
    }
    for (name, n) in counted {
        println!("{SHARE}\t{n}\t{name}");
    }
}

/// Shares the seeds among processes and adds up what they counted.
fn run_shared(first: u64, seeds: u64, times: u64) -> BTreeMap<String, u64> {
    let share = seeds.div_ceil(PROCESSES);
    let children: Vec<_> = (0..PROCESSES)
        .map(|process| (first + process * share, share.min(seeds.saturating_sub(process * share))))
        .map(|(first, seeds)| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "every_record_is_accounted_for_whatever_fails", "--nocapture"])
                .env(SHARE, format!("{first},{seeds},{times}"))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    // The pipes of one fill while the other is read: both are read at once.
    let readers: Vec<_> = children
        .into_iter()
        .map(|child| std::thread::spawn(move || child.wait_with_output().unwrap()))
        .collect();
    let mut counted = BTreeMap::new();
    for reader in readers {
        let output = reader.join().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for line in text.lines() {
            let mut fields = line.split('\t').skip_while(|field| !field.ends_with(SHARE)).skip(1);
            if let (Some(n), Some(name)) = (fields.next(), fields.next()) {
                *counted.entry(name.to_owned()).or_default() += n.parse::<u64>().unwrap();
            }
        }
    }
    counted
}
