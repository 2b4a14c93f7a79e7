//! `kill`: real processes killed with -9 while numbered records flow, every record accounted for; and the back-pressure run.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use connector_crds::Protocol;
use connector_tests::binaries::beside;
use connector_tests::kill::campaign::{self, Victim};
use connector_tests::kill::chain::Plan;
use connector_tests::kill::feed::Feed;
use connector_tests::kill::pressure::{self, Stall};
use wallaroo_endpoint::config::ReleasePosition;

const USAGE: &str = "\
usage: kill [--source kafka|file|generator] [--protocol Connector|FramedTCP] [--release last_seen|last_acked]
            [--records N] [--rate N] [--every SECONDS] [--victims V,V]
       kill --stall SECONDS [--stop] [--records N]

  --source     where the records come from [default: kafka]
  --protocol   protocol of the source
  --release    where the endpoint gives a stream back when its source is killed: a real worker does it at its last checkpoint
               (last_acked) and processes again what came after
               [default of both: Connector last_seen, Connector last_acked, FramedTCP last_acked, one after the other]
  --records N  numbered records of 100 bytes [default: 1000000]
  --rate N     records a second that are put in [default: a fiftieth of them]
  --every S    seconds between two kills: source runtime, endpoint, sink runtime, broker in turn [default: 3]
  --victims V  only these of source,endpoint,sink,broker
  --stall S    no kills: the endpoint does not read for so long while Kafka is full
  --stop       with --stall: the endpoint's whole process is stopped instead

Run it by `./tasks kill`, which builds the binaries and starts the servers.";

/// Bytes of a record.
const SIZE: usize = 100;

/// Seconds that the records are spread over.
const SPREAD: u64 = 50;

struct Arguments {
    source: String,
    protocol: Option<Protocol>,
    release: Option<ReleasePosition>,
    records: u64,
    rate: Option<u64>,
    every: Duration,
    victims: Vec<Victim>,
    stall: Option<Duration>,
    stop: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut found = Arguments {
        source: "kafka".into(),
        protocol: None,
        release: None,
        records: 1_000_000,
        rate: None,
        every: Duration::from_secs(3),
        victims: Vec::new(),
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
                found.protocol = Some(serde_json::from_value(value()?.into()).context("--protocol")?);
            }
            "--release" => {
                found.release = Some(serde_json::from_value(value()?.into()).context("--release")?);
            }

            "--records" => found.records = value()?.parse().context("--records")?,
            "--rate" => found.rate = Some(value()?.parse().context("--rate")?),
            "--every" => found.every = seconds(value()?).context("--every")?,
            "--victims" => found.victims = victims(&value()?)?,
            "--stall" => found.stall = Some(seconds(value()?).context("--stall")?),
            "--stop" => found.stop = true,
            _ => bail!("unknown argument {name}\n\n{USAGE}"),
        }
    }
    Ok(found)
}

fn victims(names: &str) -> anyhow::Result<Vec<Victim>> {
    names
        .split(',')
        .map(|name| match name {
            "source" => Ok(Victim::Source),
            "endpoint" => Ok(Victim::Endpoint),
            "sink" => Ok(Victim::Sink),
            "broker" => Ok(Victim::Broker),
            _ => bail!("--victims {name}\n\n{USAGE}"),
        })
        .collect()
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
    let kept = tempfile::tempdir()?;
    let directory = kept.path().to_owned();
    let mut plan = Plan {
        runtime: beside("connector-runtime")?,
        endpoint: beside("wallaroo-endpoint")?,
        directory: directory.clone(),
        feed,
        protocol: Protocol::Connector,
        release: ReleasePosition::LastSeen,
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
    let all = [
        (Protocol::Connector, ReleasePosition::LastSeen),
        (Protocol::Connector, ReleasePosition::LastAcked),
        (Protocol::FramedTCP, ReleasePosition::LastAcked),
    ];
    for (protocol, release) in all {
        let asked = arguments.protocol.is_none_or(|asked| asked == protocol)
            && arguments.release.is_none_or(|asked| asked == release);
        if !asked {
            continue;
        }
        let directory = directory.join(format!("{protocol:?}-{release:?}"));
        std::fs::create_dir(&directory)?;
        let plan = Plan { protocol, release, directory, ..plan.clone() };
        let victims =
            if arguments.victims.is_empty() { Victim::all(&plan.feed) } else { arguments.victims.clone() };
        let report = campaign::run(plan, &victims, arguments.every)?;
        println!("{report}");
        if let Err(error) = report.verdict() {
            bail!("{error:#}\nfiles and logs: {}", kept.keep().display());
        }
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
