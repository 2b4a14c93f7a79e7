//! The product's binaries, built when they are needed.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};

/// Path of `connector-operator`, `connector-runtime` or `wallaroo-endpoint`, all built by the first call.
///
/// `cargo test` builds the binaries of the tested package only, so this asks cargo for them: nothing is done when they
/// are up to date.
///
/// # Errors
///
/// When they cannot be built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    static DIRECTORY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    match directory {
        Ok(directory) => Ok(directory.join(name)),
        Err(error) => anyhow::bail!("{error}"),
    }
}

/// Path of a binary that lies beside the running program, as `./tasks` built it. Nothing is built here: what is measured or
/// killed must not be what these programs' own dependencies make of it.
///
/// # Errors
/// When it is not there.
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("finding the own binary")?.with_file_name(name);
    ensure!(path.exists(), "{} is missing: run this by `./tasks`, which builds it", path.display());
    Ok(path)
}

fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--locked", "--bins"])
        .args(["-p", "connector-operator", "-p", "connector-runtime", "-p", "wallaroo-endpoint"])
        .status()
        .context("starting cargo build")?;
    ensure!(status.success(), "cargo build ended with {status}");
    // Tests lie in `<target>/<profile>/deps`, binaries above.
    let test = std::env::current_exe().context("finding the own binary")?;
    let profile = test.ancestors().nth(2).context("the test lies in no target directory")?;
    Ok(profile.to_owned())
}
