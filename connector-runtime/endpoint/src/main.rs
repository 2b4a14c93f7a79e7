//! `wallaroo-endpoint`: a stand-in Wallaroo cluster on one machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use connector_env::TokioEnv;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use wallaroo_endpoint::config::{
    Application, CookieText, Encoder, SinkConfig, SinkProtocol, SourceConfig, SourceProtocol,
};
use wallaroo_endpoint::{Endpoint, EndpointConfig, EndpointError, FaultPlan, Status, admin};

/// Exit code when a peer broke the protocol.
const VIOLATED: u8 = 3;

/// Exit code after a second signal.
const INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "\
Examples:
  A source at port 7100 whose records are only counted:
      wallaroo-endpoint --source in=Connector@127.0.0.1:7100

  Degrees Celsius in, degrees Fahrenheit out to a sink connector at port 7200, with a status page:
      wallaroo-endpoint --application celsius --source in=Connector@127.0.0.1:7100 \\
          --sink out=Connector@127.0.0.1:7200 --admin 127.0.0.1:7300
      curl http://127.0.0.1:7300/status

  Start from a file: print one with these flags, change it, use it:
      wallaroo-endpoint --source in=FramedTCP@127.0.0.1:7100 --print-config > endpoint.json
      wallaroo-endpoint --config endpoint.json

  Test how a connector takes a rollback at record 1000 (all faults: see --print-config, field `faults`):
      echo '{\"rollback_after_records\": 1000}' > faults.json
      wallaroo-endpoint --source in=Connector@127.0.0.1:7100 --faults faults.json

Protocols: Connector, FramedTCP, Stream05, Stream06.

When it listens, one line of JSON on standard output names the addresses; at the end a second one is the final status.
SIGTERM and SIGINT stop it gracefully, which deletes its recovery file as a real worker does; kill -9 does not.
Exit code: 0; 1 if it could not run; 2 for wrong usage; 3 if a peer broke the protocol (see `violations` in the status).";

/// A stand-in Wallaroo cluster: takes records at source endpoints, makes checkpoints, sends results out at sink
/// endpoints, and names every rule of the protocol that its peer breaks.
#[derive(Debug, Parser)]
#[command(name = "wallaroo-endpoint", version, after_long_help = EXAMPLES, after_help = "More: --help")]
struct Arguments {
    /// Configuration, a JSON file; the other flags add to it or replace its fields.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What happens to each record [default: identity].
    #[arg(long, value_enum)]
    application: Option<ApplicationFlag>,
    /// Number of workers; worker number i listens on the source's port + i [default: 1].
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// A source endpoint to listen on; may be repeated.
    #[arg(long = "source", value_name = "NAME=PROTOCOL@HOST:PORT")]
    sources: Vec<String>,
    /// A sink connector to dial; may be repeated.
    #[arg(long = "sink", value_name = "NAME=PROTOCOL@HOST:PORT")]
    sinks: Vec<String>,
    /// How a result becomes bytes at the sinks given by --sink [default: lines].
    #[arg(long, value_enum)]
    encoder: Option<EncoderFlag>,
    /// File that holds the cookie of all Connector sources and sinks [default cookie: Dragons-Love-Tacos].
    #[arg(long, value_name = "FILE")]
    cookie_file: Option<PathBuf>,
    /// Milliseconds between checkpoints [default: 1000].
    #[arg(long, value_name = "MS")]
    checkpoint_interval_ms: Option<u64>,
    /// Like a build without resilience: no checkpoints, EOS acknowledged at once, no two-phase commit.
    #[arg(long)]
    no_resilience: bool,
    /// Answer NOTIFY like a worker that does not lead the stream registry.
    #[arg(long)]
    non_leader: bool,
    /// Directory of the recovery file; without it a killed endpoint forgets everything.
    #[arg(long, value_name = "DIR")]
    state_directory: Option<PathBuf>,
    /// Address of the status server (GET /status; POST /rollback, /stall, /resume, /grow, /shrink/WORKER, /faults).
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Fault plan, a JSON file.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Log level on standard error: error, warn, info, debug or trace.
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    log: tracing_subscriber::filter::LevelFilter,
    /// Print the configuration that results from all flags, and end.
    #[arg(long)]
    print_config: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ApplicationFlag {
    /// Bytes pass unchanged.
    Identity,
    /// Degrees Celsius in, degrees Fahrenheit out.
    Celsius,
    /// Running totals of words, `word:total`.
    WordCount,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EncoderFlag {
    /// The result and a line feed.
    Lines,
    /// Length as four bytes, most significant first, then the result.
    LengthPrefixed,
    /// The result alone.
    Raw,
}

#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("--{flag} {value}: expected NAME=PROTOCOL@HOST:PORT with a protocol of {PROTOCOLS}")]
    Place { flag: &'static str, value: String },
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("status server at {address}: {source}")]
    Admin { address: String, source: std::io::Error },
    #[error("cannot watch signals: {0}")]
    Signals(std::io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
}

const PROTOCOLS: &str = "Connector, FramedTCP, Stream05 or Stream06";

fn read(path: &Path) -> Result<String, MainError> {
    fs::read_to_string(path).map_err(|source| MainError::File { path: path.to_owned(), source })
}

fn place<'a>(flag: &'static str, value: &'a str) -> Result<(&'a str, &'a str, &'a str), MainError> {
    value
        .split_once('=')
        .and_then(|(name, rest)| {
            let (protocol, address) = rest.split_once('@')?;
            Some((name, protocol, address))
        })
        .ok_or_else(|| MainError::Place { flag, value: value.to_owned() })
}

fn source(value: &str) -> Result<SourceConfig, MainError> {
    let (name, protocol, address) = place("source", value)?;
    let protocol = match protocol {
        "Connector" => SourceProtocol::connector(),
        "FramedTCP" => SourceProtocol::framed(),
        "Stream05" => SourceProtocol::stream05(),
        "Stream06" => SourceProtocol::stream06(),
        _ => return Err(MainError::Place { flag: "source", value: value.to_owned() }),
    };
    Ok(SourceConfig::new(name, address, protocol))
}

fn sink(value: &str) -> Result<SinkConfig, MainError> {
    let (name, protocol, address) = place("sink", value)?;
    let protocol = match protocol {
        "Connector" => SinkProtocol::connector(),
        "FramedTCP" => SinkProtocol::FramedTcp,
        "Stream05" => SinkProtocol::Stream05,
        "Stream06" => SinkProtocol::Stream06,
        _ => return Err(MainError::Place { flag: "sink", value: value.to_owned() }),
    };
    Ok(SinkConfig::new(name, address, protocol))
}

fn configure(arguments: &Arguments) -> Result<EndpointConfig, MainError> {
    let json = |path: &Path, source| MainError::Json { path: path.to_owned(), source };
    let mut config = match &arguments.config {
        Some(path) => serde_json::from_str(&read(path)?).map_err(|error| json(path, error))?,
        None => EndpointConfig::default(),
    };
    if let Some(application) = arguments.application {
        config.application = match application {
            ApplicationFlag::Identity => Application::Identity,
            ApplicationFlag::Celsius => Application::Celsius,
            ApplicationFlag::WordCount => Application::WordCount,
        };
    }
    for value in &arguments.sources {
        config.sources.push(source(value)?);
    }
    for value in &arguments.sinks {
        let mut sink = sink(value)?;
        if let Some(encoder) = arguments.encoder {
            sink.encoder = match encoder {
                EncoderFlag::Lines => Encoder::Lines,
                EncoderFlag::LengthPrefixed => Encoder::LengthPrefixed,
                EncoderFlag::Raw => Encoder::Raw,
            };
        }
        config.sinks.push(sink);
    }
    if let Some(path) = &arguments.cookie_file {
        let new = CookieText::new(read(path)?.trim_end_matches(['\r', '\n']));
        for source in &mut config.sources {
            if let SourceProtocol::Connector { cookie, .. } = &mut source.protocol {
                *cookie = new.clone();
            }
        }
        for sink in &mut config.sinks {
            if let SinkProtocol::Connector { cookie } = &mut sink.protocol {
                *cookie = new.clone();
            }
        }
    }
    if let Some(path) = &arguments.faults {
        let plan: FaultPlan = serde_json::from_str(&read(path)?).map_err(|error| json(path, error))?;
        config.faults = plan;
    }
    config.workers = arguments.workers.unwrap_or(config.workers);
    config.checkpoint_interval_ms = arguments.checkpoint_interval_ms.unwrap_or(config.checkpoint_interval_ms);
    config.resilience &= !arguments.no_resilience;
    config.non_leader |= arguments.non_leader;
    config.state_directory = arguments.state_directory.clone().or(config.state_directory);
    config.admin = arguments.admin.clone().or(config.admin);
    config.check().map_err(EndpointError::from)?;
    Ok(config)
}

async fn run(config: EndpointConfig) -> Result<Option<Status>, MainError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(MainError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(MainError::Signals)?;
    let address = config.admin.clone();
    let mut endpoint = Endpoint::start(TokioEnv, config).await?;
    let control = endpoint.control();
    let admin = match address {
        Some(address) => Some(
            admin::serve(&address, control.clone())
                .await
                .map_err(|source| MainError::Admin { address, source })?,
        ),
        None => None,
    };
    println!(
        "{}",
        json!({ "sources": control.status().sources, "admin_port": admin.as_ref().map(admin::Admin::port) })
    );
    tokio::select! {
        biased;
        ended = endpoint.ended() => ended?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::select! {
        biased;
        stopped = endpoint.stop() => Ok(Some(stopped?)),
        _ = terminate.recv() => Ok(None),
        _ = interrupt.recv() => Ok(None),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_max_level(arguments.log).with_writer(std::io::stderr).init();
    let outcome = configure(&arguments).and_then(|config| {
        if arguments.print_config {
            println!("{}", serde_json::to_string_pretty(&config).unwrap_or_default());
            return Ok(ExitCode::SUCCESS);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(MainError::Runtime)?;
        let status = runtime.block_on(run(config))?;
        Ok(match status {
            None => ExitCode::from(INTERRUPTED),
            Some(status) => {
                println!("{}", serde_json::to_string(&status).unwrap_or_default());
                if status.violation_count > 0 { ExitCode::from(VIOLATED) } else { ExitCode::SUCCESS }
            }
        })
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("wallaroo-endpoint: {error}");
        ExitCode::FAILURE
    })
}
