//! `connector-operator`: the command line.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use connector_operator::controller::args::RunArguments;
use connector_operator::controller::run;
use connector_operator::local::{self, Options, Outcome, Wallaroo};
use connector_operator::manifests;
use tracing_subscriber::EnvFilter;
use wallaroo_endpoint::config::Application;

/// Runs Connectors: bridges between external systems and Wallaroo.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs manifests on this machine, one supervised process a Connector
    Local(LocalArguments),
    /// Reads and validates manifests, and starts nothing
    Check(CheckArguments),
    /// Reconciles the Connectors of a cluster
    Run(RunArguments),
    /// Prints the definition of the resource, for `kubectl apply --server-side -f -`
    Crds,
}

#[derive(Debug, Args)]
struct LocalArguments {
    /// Manifests: a file, or a directory of .yaml, .yml and .json files
    #[arg(short = 'f', long = "file", value_name = "FILE-OR-DIR", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// `embedded` starts a stand-in Wallaroo from the manifests, `embedded=FILE` from its own configuration; absent: the
    /// Wallaroo that the manifests name
    #[arg(long, value_name = "embedded[=FILE]", value_parser = parse_wallaroo)]
    wallaroo: Option<WallarooArgument>,
    /// What the embedded Wallaroo does with records: identity, celsius or word-count
    #[arg(long, value_name = "NAME", default_value = "identity", value_parser = parse_application)]
    app: Application,
    /// Directory that keeps positions, transaction logs and the embedded Wallaroo's checkpoints between runs
    #[arg(long, value_name = "DIR", default_value = ".wallaroo-connectors")]
    state: PathBuf,
    /// Forget the state of earlier runs
    #[arg(long)]
    fresh: bool,
    /// Log level of the Connectors: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: String,
}

#[derive(Debug, Args)]
struct CheckArguments {
    /// Manifests: a file, or a directory of .yaml, .yml and .json files
    #[arg(short = 'f', long = "file", value_name = "FILE-OR-DIR", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct WallarooArgument {
    file: Option<PathBuf>,
}

fn parse_wallaroo(text: &str) -> Result<WallarooArgument, String> {
    match text.split_once('=') {
        None if text == "embedded" => Ok(WallarooArgument { file: None }),
        Some(("embedded", file)) if !file.is_empty() => Ok(WallarooArgument { file: Some(file.into()) }),
        None | Some(_) => Err("expected `embedded` or `embedded=FILE`".into()),
    }
}

fn parse_application(text: &str) -> Result<Application, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected identity, celsius or word-count".into())
}

fn main() -> ExitCode {
    // Several clients bring TLS; one provider serves all, and must be in place before the first is built.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    let command = Arguments::parse().command;
    let (level, json) = match &command {
        Command::Run(_) => ("warn,connector_operator=info", !std::io::stderr().is_terminal()),
        Command::Local(_) | Command::Check(_) | Command::Crds => ("warn", false),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if json {
        log.json().flatten_event(true).init();
    } else {
        log.init();
    }
    match command {
        Command::Local(arguments) => run_local(arguments),
        Command::Check(arguments) => check(&arguments),
        Command::Run(arguments) => operate(arguments),
        Command::Crds => {
            print!("{}", connector_crds::crd_yaml());
            ExitCode::SUCCESS
        }
    }
}

fn operate(arguments: RunArguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(arguments.into())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "The operator ends.");
            ExitCode::FAILURE
        }
    }
}

fn check(arguments: &CheckArguments) -> ExitCode {
    match manifests::read(&arguments.files) {
        Ok(manifests) => {
            for loaded in &manifests.connectors {
                let identity = &loaded.connector.identity;
                let (name, promise) = (loaded.connector.system.type_name(), loaded.connector.promise());
                println!("Connector {}/{} ({name}): valid, {promise}", identity.namespace, identity.name);
            }
            ExitCode::SUCCESS
        }
        Err(errors) => {
            for error in errors {
                eprintln!("error: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run_local(arguments: LocalArguments) -> ExitCode {
    let options = Options {
        files: arguments.files,
        wallaroo: arguments.wallaroo.map_or(Wallaroo::External, |wallaroo| Wallaroo::Embedded {
            application: arguments.app,
            file: wallaroo.file,
        }),
        state: arguments.state,
        fresh: arguments.fresh,
        log_level: arguments.log_level,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(local::run(&options)) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed(failures)) => {
            for failure in failures {
                eprintln!("error: {failure}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("error: {line}");
            }
            ExitCode::FAILURE
        }
    }
}
