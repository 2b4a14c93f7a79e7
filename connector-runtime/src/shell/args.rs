//! Command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Bridges one external system to one end of Wallaroo.
#[derive(Debug, Parser)]
#[command(name = "connector-runtime", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move records until told to stop.
    Run(RunArgs),
    /// Judge a configuration without running it.
    Check(CheckArgs),
    /// Show a few records of a source, committing nothing.
    Tap(TapArgs),
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The rendered configuration (JSON).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Write the bound address of the admin server into this file.
    #[arg(long, value_name = "FILE")]
    pub admin_address_file: Option<PathBuf>,
    /// Name of this process in the protocol, e.g. the pod's name.
    #[arg(long, value_name = "NAME", env = "HOSTNAME")]
    pub instance: Option<String>,
    /// Form of the log.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The rendered configuration (JSON).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Also dial both ends; nothing is read or written.
    #[arg(long)]
    pub connect: bool,
}

/// Arguments of `tap`.
#[derive(Debug, clap::Args)]
pub struct TapArgs {
    /// The rendered configuration (JSON) of a source.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Records to show.
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
    /// Seconds to wait for them.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub seconds: u32,
    /// Show sizes instead of keys and payloads.
    #[arg(long)]
    pub redact: bool,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
