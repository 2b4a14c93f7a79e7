//! Whose positions a journal holds: a name that a state directory is given once.
//!
//! Workers and incarnations are counted anew when a state volume is replaced. Without this name, a journal that
//! outlived its state volume would answer for streams that never wrote, and their records would be skipped.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use connector_env::{Env, TokioEnv};

use super::journal::sync_parent;

/// Name of the file in the state directory.
const FILE_NAME: &str = "file-sink-owner";

/// The name of a state directory, given now where it has none; durable on return.
pub(super) fn owner(state: &Path) -> io::Result<String> {
    let path = state.join(FILE_NAME);
    match fs::read_to_string(&path) {
        Ok(name) if !name.is_empty() => return Ok(name),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(state)?,
    }
    let name = format!("{:016x}{:016x}", TokioEnv.random(), TokioEnv.random());
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(name.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    sync_parent(&path)?;
    Ok(name)
}
