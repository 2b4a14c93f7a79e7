//! Back-pressure: the endpoint stops reading while Kafka is full. Memory stays flat, the group stays as it is, and then
//! everything arrives.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use super::account::Account;
use super::campaign::settle;
use super::chain::{Chain, Plan};
use super::feed::Feed;
use crate::kafka_topic;
use crate::processes::wait_for;

/// Until then buffers fill to their bounds; from then on nothing grows.
const FILLING: Duration = Duration::from_secs(10);

/// Time between two samples.
const SAMPLE: Duration = Duration::from_secs(1);

/// How much resident memory may differ while everything stands still.
pub const FLAT: u64 = 5 * 1024 * 1024;

/// Longest wait for everything afterwards.
const PATIENCE: Duration = Duration::from_mins(10);

/// How the endpoint stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// It goes on living and does not read its sources.
    NotReading,
    /// The whole process is stopped (SIGSTOP).
    Stopped,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Resident memory of the source runtime in bytes, a sample a second.
    pub rss: Vec<u64>,
    /// State and members of the consumer group before, and all that was seen during the stall and after it.
    pub group: Vec<(String, Vec<String>)>,
    /// Records in the file when the stall began, and when it ended.
    pub written: (u64, u64),
    /// Records in the output file at the end; `None`: see `written`.
    pub output: Account,
}

impl Report {
    /// Difference between the largest and the smallest sample once buffers are full.
    pub fn spread(&self) -> u64 {
        let samples = || self.rss.iter().skip(FILLING.as_secs() as usize);
        samples().max().unwrap_or(&0) - samples().min().unwrap_or(&0)
    }

    /// What must hold.
    ///
    /// # Errors
    /// What does not.
    pub fn verdict(&self) -> anyhow::Result<()> {
        ensure!(self.rss.len() > FILLING.as_secs() as usize, "too short: {self}");
        ensure!(self.spread() <= FLAT, "memory is not flat: {self}");
        ensure!(self.group.len() == 1, "the group changed: {:?}", self.group);
        ensure!(self.output == Account::default(), "not exactly once: {self}");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &u64| format!("{:.1}", *bytes as f64 / 1_048_576.0);
        let series: Vec<String> = self.rss.iter().map(mib).collect();
        writeln!(
            f,
            "stalled with {} records written, {} at the end of the stall",
            self.written.0, self.written.1
        )?;
        writeln!(f, "  resident MiB, a sample a second: {}", series.join(" "))?;
        writeln!(f, "  spread after {FILLING:?}: {} MiB", mib(&self.spread()))?;
        writeln!(f, "  consumer group: {} state(s) seen, {:?}", self.group.len(), self.group)?;
        write!(f, "  afterwards in the output file: {}", self.output)
    }
}

/// Runs a plan whose records are all there from the start, stalls the endpoint once records flow, and lets it go on.
///
/// # Errors
/// When a process ends, or records do not move when they should.
pub fn run(plan: Plan, stall: Stall, time: Duration) -> anyhow::Result<Report> {
    let Feed::Kafka { brokers } = plan.feed.clone() else { anyhow::bail!("this needs Kafka") };
    let records = plan.records;
    let mut chain = Chain::start(plan)?;
    let name = chain.feeding.group().context("no consumer group")?.to_owned();
    wait_for("the first record in the file", PATIENCE, || Ok(chain.written() > 0))?;
    match stall {
        Stall::NotReading => chain.endpoint.post("/stall")?,
        Stall::Stopped => chain.endpoint.process().signal(Signal::SIGSTOP)?,
    }
    let (begun, before) = (Instant::now(), chain.written());
    ensure!(before < records, "everything was written before the stall: more records, please");
    let (mut rss, mut group) = (Vec::new(), Vec::new());
    let look = |group: &mut Vec<_>| -> anyhow::Result<()> {
        let seen = kafka_topic::members(&brokers, &name)?;
        if !group.contains(&seen) {
            group.push(seen);
        }
        Ok(())
    };
    while begun.elapsed() < time {
        chain.source.process().alive()?;
        rss.push(chain.source.process().rss()?);
        look(&mut group)?;
        std::thread::sleep(SAMPLE);
    }
    let after = chain.written();
    match stall {
        Stall::NotReading => chain.endpoint.post("/resume")?,
        Stall::Stopped => chain.endpoint.process().signal(Signal::SIGCONT)?,
    }
    wait_for("everything in the file", PATIENCE, || Ok(chain.written() >= records))
        .with_context(|| format!("{} of {records} records", chain.written()))?;
    settle(&mut chain)?;
    look(&mut group)?;
    Ok(Report { rss, group, written: (before, after), output: chain.account()? })
}
