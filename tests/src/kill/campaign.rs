//! The kill campaign: processes are killed with -9 in turn while records flow; at the end every record is accounted for.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use connector_crds::Protocol;
use wallaroo_endpoint::config::ReleasePosition;

use super::account::Account;
use super::chain::{Chain, Plan};
use super::feed::Feed;
use crate::processes::wait_for;
use crate::services;

/// The file is counted when it did not grow for so long: longer than any back-off and retry on the way.
const QUIET: Duration = Duration::from_secs(20);

/// Nothing comes out for so long, kills or not: it never will.
const SILENCE: Duration = Duration::from_mins(2);

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Checkpoints after which nothing that was sent is still uncommitted.
const SETTLED: u64 = 3;

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The runtime of the source.
    Source,
    /// The endpoint.
    Endpoint,
    /// The runtime of the sink.
    Sink,
    /// The broker.
    Broker,
}

impl Victim {
    /// Everything that may be killed on the way of such records.
    pub fn all(feed: &Feed) -> Vec<Victim> {
        let mut all = vec![Victim::Source, Victim::Endpoint, Victim::Sink];
        if matches!(feed, Feed::Kafka { .. }) {
            all.push(Victim::Broker);
        }
        all
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Protocol of the source.
    pub protocol: Protocol,
    /// Where the endpoint gave streams back.
    pub release: ReleasePosition,
    /// How many records there were.
    pub records: u64,
    /// Kills of source runtime, endpoint, sink runtime and broker.
    pub kills: [u32; 4],
    /// Records as the endpoint processed them.
    pub processed: Account,
    /// Records in the output file.
    pub output: Account,
    /// From start to count.
    pub took: Duration,
}

impl Report {
    /// What must hold: over `Connector` with two-phase commit behind it nothing is lost; and nothing is there twice, unless the
    /// worker itself processes records again when their source is killed, as real ones do. Over a plain protocol nothing is made
    /// up.
    ///
    /// # Errors
    /// What does not hold.
    pub fn verdict(&self) -> anyhow::Result<()> {
        ensure!(
            self.output.strange == 0 && self.processed.strange == 0,
            "records that were never sent: {self}"
        );
        ensure!(self.kills.iter().sum::<u32>() > 0, "nothing was killed: {self}");
        if self.protocol == Protocol::Connector {
            ensure!(self.output.lost == 0, "records are lost: {self}");
            let by_worker =
                self.release == ReleasePosition::LastAcked && self.kills[Victim::Source as usize] > 0;
            ensure!(by_worker || self.output.repeats == 0, "not exactly once: {self}");
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [source, endpoint, sink, broker] = self.kills;
        writeln!(
            f,
            "{:?} ({:?}), {} records in {:.0} s; killed: source runtime {source}, endpoint {endpoint}, sink runtime {sink}, \
             broker {broker} times",
            self.protocol,
            self.release,
            self.records,
            self.took.as_secs_f64()
        )?;
        writeln!(f, "  processed by the endpoint: {}", self.processed)?;
        write!(f, "  in the output file:        {}", self.output)
    }
}

/// Runs a plan to its end, killing one process after the other, `every` so often, as long as records are missing in the file.
///
/// # Errors
/// When something cannot be started again, ends by itself, breaks the protocol, or nothing moves any more.
pub fn run(plan: Plan, victims: &[Victim], every: Duration) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let (records, protocol, release) = (plan.records, plan.protocol, plan.release);
    let mut chain = Chain::start(plan)?;
    let mut kills = [0; 4];
    let mut turn = victims.iter().copied().cycle();
    wait_for("the first record in the file", SILENCE, || Ok(chain.written() > 0))?;

    let (mut next, mut last, mut grew) = (Instant::now() + every, 0, Instant::now());
    // Over a plain protocol the file may have as many lines, and not all records.
    while chain.written() < records || !chain.feeding.is_over() {
        if chain.written() != last {
            (last, grew) = (chain.written(), Instant::now());
        }
        if grew.elapsed() > QUIET && protocol != Protocol::Connector {
            break; // what is missing may be lost
        }
        ensure!(
            grew.elapsed() < SILENCE,
            "{last} of {records} records in the file, and no more for {SILENCE:?}"
        );
        if Instant::now() >= next
            && let Some(victim) = turn.next()
        {
            chain.healthy()?;
            kill(&mut chain, victim).with_context(|| format!("{victim:?} is killed and started again"))?;
            kills[victim as usize] += 1;
            next = Instant::now() + every;
        }
        std::thread::sleep(LOOK);
    }
    settle(&mut chain)?;
    Ok(Report {
        protocol,
        release,
        records,
        kills,
        processed: chain.tap.account(),
        output: chain.account()?,
        took: begun.elapsed(),
    })
}

fn kill(chain: &mut Chain, victim: Victim) -> anyhow::Result<()> {
    match victim {
        Victim::Source => chain.source.kill_and_restart(),
        Victim::Endpoint => chain.endpoint.kill_and_restart(),
        Victim::Sink => chain.sink.kill_and_restart(),
        Victim::Broker => {
            services::control("kafka", &["kill"]);
            services::control("kafka", &["up"]);
            Ok(())
        }
    }
}

/// Waits until everything is there, or nothing comes any more; and then until nothing is on its way.
pub(super) fn settle(chain: &mut Chain) -> anyhow::Result<()> {
    let (mut last, mut grew) = (chain.written(), Instant::now());
    while chain.account()?.lost > 0 && grew.elapsed() < QUIET {
        let before = Instant::now();
        wait_for("growth", QUIET * 2, || Ok(chain.written() != last || before.elapsed() > QUIET / 4))?;
        if chain.written() != last {
            (last, grew) = (chain.written(), Instant::now());
        }
        chain.healthy()?;
    }
    let completed = chain.endpoint.status()?.checkpoints_completed;
    wait_for("further checkpoints", SILENCE, || {
        Ok(chain.endpoint.status()?.checkpoints_completed >= completed + SETTLED)
    })?;
    chain.healthy()
}
