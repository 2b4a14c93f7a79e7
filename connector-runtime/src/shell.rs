//! The process around a pump: arguments, files, threads, signals, admin server.
//!
//! Two threads with a single-threaded runtime each: the pump has one to itself, for it writes and syncs files; the
//! other serves the admin port and watches signals, Secrets and the live file.

pub mod admin;
pub mod args;
pub mod check;
pub mod config;
pub mod live;
pub mod metrics;
pub mod readiness;
pub mod run;
pub mod tap;
pub mod telemetry;

use args::{Args, Command};

/// Runs the command that the arguments name; the process ends with what it returns.
pub fn main(args: Args) -> anyhow::Result<()> {
    // Several clients bring TLS; one provider serves all, and must be in place before the first is built.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is installed already");
    }
    match args.command {
        Command::Run(run) => run::run(run),
        Command::Check(check) => check::check(&check),
        Command::Tap(tap) => tap::tap(&tap),
    }
}
