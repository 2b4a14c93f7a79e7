//! `kill`: real processes killed with -9 while numbered records flow, every record accounted for; and the back-pressure run.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use connector_crds::Protocol;
use connector_tests::binaries::beside;
use connector_tests::kill::campaign;
use connector_tests::kill::chain::Plan;
use connector_tests::kill::feed::Feed;
use connector_tests::kill::pressure::{self, Stall};

const USAGE: &str = "\
usage: kill [--source kafka|file|generator] [--protocol Connector|FramedTCP] [--records N] [--rate N] [--every SECONDS]
       kill --stall SECONDS [--stop] [--records N]

  --source     where the records come from [default: kafka]
  --protocol   protocol of the source; without it first Connector, then FramedTCP
  --records N  numbered records of 100 bytes [default: 1000000]
  --rate N     records a second that are put in [default: a fiftieth of them]
  --every S    seconds between two kills: source runtime, endpoint, sink runtime, broker in turn [default: 3]
  --stall S    no kills: the endpoint does not read for so long while Kafka is full
  --stop       with --stall: the endpoint's whole process is stopped instead

Run it by `./tasks kill`, which builds the binaries and starts the servers.";

/// Bytes of a record.
const SIZE: usize = 100;

/// Seconds that the records are spread over.
const SPREAD: u64 = 50;

struct Arguments {
    source: String,
    protocols: Vec<Protocol>,
    records: u64,
    rate: Option<u64>,
    every: Duration,
    stall: Option<Duration>,
    stop: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut found = Arguments {
        source: "kafka".into(),
        protocols: vec![Protocol::Connector, Protocol::FramedTCP],
        records: 1_000_000,
        rate: None,
        every: Duration::from_secs(3),
        stall: None,
        stop: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
        let seconds = |text: String| text.parse().map(Duration::from_secs_f64);
        match name.as_str() {
            "--source" => found.source = value()?,
            "--protocol" => {
                found.protocols = vec![serde_json::from_value(value()?.into()).context("--protocol")?]
            }
            "--records" => found.records = value()?.parse().context("--records")?,
            "--rate" => found.rate = Some(value()?.parse().context("--rate")?),
            "--every" => found.every = seconds(value()?).context("--every")?,
            "--stall" => found.stall = Some(seconds(value()?).context("--stall")?),
            "--stop" => found.stop = true,
            _ => bail!("unknown argument {name}\n\n{USAGE}"),
        }
    }
    Ok(found)
}

fn run() -> anyhow::Result<()> {
    let arguments = arguments()?;
    let feed = match arguments.source.as_str() {
        "kafka" => Feed::Kafka {
            brokers: std::env::var("KAFKA_BROKERS")
                .context("KAFKA_BROKERS is not set: run this by `./tasks kill`, or with --source file")?,
        },
        "file" => Feed::File,
        "generator" => Feed::Generator,
        other => bail!("--source {other}\n\n{USAGE}"),
    };
    let directory = tempfile::tempdir()?;
    let mut plan = Plan {
        runtime: beside("connector-runtime")?,
        endpoint: beside("wallaroo-endpoint")?,
        directory: directory.path().to_owned(),
        feed,
        protocol: Protocol::Connector,
        records: arguments.records,
        size: SIZE,
        rate: None,
    };
    if let Some(time) = arguments.stall {
        let stall = if arguments.stop { Stall::Stopped } else { Stall::NotReading };
        let report = pressure::run(plan, stall, time)?;
        println!("{report}");
        return report.verdict();
    }
    plan.rate = Some(arguments.rate.unwrap_or((arguments.records / SPREAD).max(1)));
    for protocol in arguments.protocols {
        let directory = directory.path().join(format!("{protocol:?}"));
        std::fs::create_dir(&directory)?;
        let report = campaign::run(Plan { protocol, directory, ..plan.clone() }, arguments.every)?;
        println!("{report}");
        report.verdict()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kill: {error:#}");
            ExitCode::FAILURE
        }
    }
}
