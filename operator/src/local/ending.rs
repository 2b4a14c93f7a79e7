//! The stages of a run, and when each is over: pure.
//!
//! Sinks start first, then Wallaroo, then the sources; they end the other way round, so that everything that was taken
//! in has its way out.

use std::time::Duration;

use wallaroo_endpoint::config::{EndpointConfig, SinkProtocol};

use super::status::{EndpointStatus, RuntimeStatus};

/// How long the sinks may take to listen before Wallaroo is started all the same; it dials again and again.
const LISTEN_LIMIT: Duration = Duration::from_secs(15);

/// How long results may take to reach the sinks after the last record came in.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);

/// The same, when somebody asked for the end.
const SETTLE_LIMIT_INTERRUPTED: Duration = Duration::from_secs(15);

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The sinks start.
    StartingSinks,
    /// The embedded Wallaroo starts.
    StartingWallaroo,
    /// Records move.
    Running,
    /// The sources drain.
    StoppingSources,
    /// Results are on their way to the sinks.
    SettlingWallaroo,
    /// The embedded Wallaroo ends.
    StoppingWallaroo,
    /// The sinks write what they have.
    SettlingSinks,
    /// The sinks drain.
    StoppingSinks,
    /// Nothing runs any more.
    Over,
}

/// What is known when the next stage is decided.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observation {
    /// Time in this stage.
    pub in_stage: Duration,
    /// Somebody asked for the end.
    pub interrupted: bool,
    /// Something failed for good.
    pub failed: bool,
    /// Every sink listens.
    pub sinks_listen: bool,
    /// The embedded Wallaroo answers, or there is none.
    pub wallaroo_answers: bool,
    /// Every source is finite and complete, and the run has an end.
    pub complete: bool,
    /// No source process is left.
    pub sources_gone: bool,
    /// The embedded Wallaroo has sent out everything, or there is none.
    pub wallaroo_settled: bool,
    /// The process of the embedded Wallaroo is gone, or there is none.
    pub wallaroo_gone: bool,
    /// Every sink has written everything that it has.
    pub sinks_settled: bool,
    /// No sink process is left.
    pub sinks_gone: bool,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This stage goes on.
    Stay,
    /// The next stage.
    Go(Stage),
    /// The next stage, although this one did not reach its end in time.
    GiveUp(Stage),
}

/// Decides.
pub fn next(stage: Stage, seen: &Observation) -> Step {
    let over = seen.interrupted || seen.failed;
    let go = |when: bool, to: Stage| if when { Step::Go(to) } else { Step::Stay };
    let limit = if over { SETTLE_LIMIT_INTERRUPTED } else { SETTLE_LIMIT };
    match stage {
        Stage::StartingSinks | Stage::StartingWallaroo | Stage::Running if over => {
            Step::Go(Stage::StoppingSources)
        }
        Stage::StartingSinks => {
            go(seen.sinks_listen || seen.in_stage >= LISTEN_LIMIT, Stage::StartingWallaroo)
        }
        Stage::StartingWallaroo => go(seen.wallaroo_answers, Stage::Running),
        Stage::Running => go(seen.complete, Stage::StoppingSources),
        Stage::StoppingSources => go(seen.sources_gone, Stage::SettlingWallaroo),
        Stage::SettlingWallaroo if seen.wallaroo_settled || seen.wallaroo_gone => {
            Step::Go(Stage::StoppingWallaroo)
        }
        Stage::SettlingWallaroo if seen.in_stage >= limit => Step::GiveUp(Stage::StoppingWallaroo),
        Stage::StoppingWallaroo => go(seen.wallaroo_gone, Stage::SettlingSinks),
        Stage::SettlingSinks if seen.sinks_settled || seen.sinks_gone => Step::Go(Stage::StoppingSinks),
        Stage::SettlingSinks if seen.in_stage >= limit => Step::GiveUp(Stage::StoppingSinks),
        Stage::StoppingSinks => go(seen.sinks_gone, Stage::Over),
        Stage::SettlingWallaroo | Stage::SettlingSinks | Stage::Over => Step::Stay,
    }
}

/// Whether everything that came into Wallaroo has left it; holds only after the sources are gone.
pub fn wallaroo_settled(config: &EndpointConfig, status: &EndpointStatus) -> bool {
    let two_phase = |name: &str| {
        config.sinks.iter().any(|sink| match &sink.protocol {
            SinkProtocol::Connector { .. } => sink.name == name && config.resilience,
            SinkProtocol::FramedTcp | SinkProtocol::Stream05 | SinkProtocol::Stream06 => false,
        })
    };
    // A connection that is still open may hold records that were not read yet.
    status.sources.iter().all(|source| source.connections == 0)
        && status.sinks.iter().all(|sink| {
            sink.queued == 0
                && sink.transaction.is_none()
                && (!two_phase(&sink.sink) || sink.committed == sink.produced)
        })
}

/// Whether a sink has written what it took: nothing changed since the status before, and nothing decided is open.
pub fn sink_settled(before: &RuntimeStatus, now: &RuntimeStatus) -> bool {
    before.records == now.records
        && now.streams.values().all(|stream| stream.committed >= stream.acknowledged)
}

#[cfg(test)]
mod tests;
