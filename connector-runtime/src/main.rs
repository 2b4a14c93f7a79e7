//! The `connector-runtime` binary: arguments, then [`connector_runtime::shell`].

use clap::Parser as _;
use connector_runtime::shell;

fn main() -> anyhow::Result<()> {
    shell::main(shell::args::Args::parse())
}
