//! Whose a state volume is: the identity file, and what happens when it names somebody else.

use std::io;
use std::path::{Path, PathBuf};

use connector_crds::{ConnectorIdentity, Protocol};
use connector_env::{Env, File};
use serde::{Deserialize, Serialize};

use crate::txn_log::{self, LogError};

/// Name of the identity file.
const FILE: &str = "identity.json";

/// Name under which the identity is written before it is renamed.
const TEMPORARY: &str = "identity.json.new";

/// Beginning of the names of archives.
const ARCHIVE: &str = "archived-";

/// Longest identity file that is read, in bytes; names are at most 253 bytes each.
const MAX_BYTES: u64 = 65_536;

/// Who writes to a state volume. Another system never continues in the state of an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Namespace and name of the Connector.
    pub connector: String,
    /// The system, e.g. `redis`.
    pub system: String,
    /// The protocol spoken with Wallaroo.
    pub protocol: Protocol,
}

impl Identity {
    /// The identity of a Connector with this system and protocol.
    pub fn new(connector: &ConnectorIdentity, system: &str, protocol: Protocol) -> Identity {
        Identity {
            connector: format!("{}/{}", connector.namespace, connector.name),
            system: system.to_owned(),
            protocol,
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connector {} with {} over {:?}", self.connector, self.system, self.protocol)
    }
}

/// How a volume was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It was empty of ours.
    New,
    /// It is the same as before.
    Same,
    /// It belonged to another identity, whose state was moved aside.
    Archived {
        /// Who that was.
        before: Identity,
        /// Where its state is now.
        to: PathBuf,
    },
}

/// Why a volume cannot be used. Nothing in it was destroyed.
#[derive(Debug, thiserror::Error)]
pub enum StateVolumeError {
    /// Another identity's output waits in it: `Stalled/StateVolumeInUse`.
    #[error(
        "the state volume belongs to {owner} and holds {bytes} bytes that were not delivered; bring that back until \
         they are, or remove {path}"
    )]
    InUse {
        /// Whose it is.
        owner: Box<Identity>,
        /// Undelivered bytes.
        bytes: u64,
        /// The volume.
        path: PathBuf,
    },
    /// The identity file is not one.
    #[error(
        "{path} is not an identity file ({why}); restore it, or remove it together with the state beside it"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The transaction log in it cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The disk failed.
    #[error("state volume {path}: {cause}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StateVolumeError + '_ {
    move |cause| StateVolumeError::Io { path: path.to_owned(), cause }
}

/// Claims the volume at `directory` (created where missing) for `identity`. Durable on return.
///
/// A crash at any point leaves either the old identity, whose claim then starts over, or the new one.
pub fn claim<E: Env>(env: &E, directory: &Path, identity: &Identity) -> Result<Claim, StateVolumeError> {
    env.create_dir_all(directory).map_err(failed(directory))?;
    let path = directory.join(FILE);
    let before = if env.exists(&path) { Some(read(env, &path)?) } else { None };
    match before {
        Some(before) if before == *identity => Ok(Claim::Same),
        Some(before) => {
            let bytes = txn_log::undelivered(env, &txn_log::directory(directory))?;
            if bytes > 0 {
                return Err(StateVolumeError::InUse {
                    owner: Box::new(before),
                    bytes,
                    path: directory.to_owned(),
                });
            }
            let to = archive(env, directory)?;
            write(env, directory, identity)?;
            Ok(Claim::Archived { before, to })
        }
        None => {
            // State of before there was an identity, or whose identity was just archived, is not ours either.
            let bytes = txn_log::undelivered(env, &txn_log::directory(directory))?;
            if bytes > 0 {
                return Err(StateVolumeError::Unreadable {
                    path,
                    why: format!("missing, but {bytes} undelivered bytes are there"),
                });
            }
            write(env, directory, identity)?;
            Ok(Claim::New)
        }
    }
}

fn read<E: Env>(env: &E, path: &Path) -> Result<Identity, StateVolumeError> {
    let unreadable = |why: String| StateVolumeError::Unreadable { path: path.to_owned(), why };
    let file = env.open(path).map_err(failed(path))?;
    let length = file.len().map_err(failed(path))?;
    if length > MAX_BYTES {
        return Err(unreadable(format!("{length} bytes long")));
    }
    let mut text = vec![0; length as usize];
    let read = file.read_at(0, &mut text).map_err(failed(path))?;
    serde_json::from_slice(&text[..read]).map_err(|error| unreadable(error.to_string()))
}

/// Moves everything of the old identity aside, its name last.
fn archive<E: Env>(env: &E, directory: &Path) -> Result<PathBuf, StateVolumeError> {
    let mut number = env.unix_millis();
    let to = loop {
        let to = directory.join(format!("{ARCHIVE}{number}"));
        if !env.exists(&to) {
            break to;
        }
        number += 1;
    };
    env.create_dir_all(&to).map_err(failed(&to))?;
    for path in env.list_dir(directory).map_err(failed(directory))? {
        let Some(name) = path.file_name() else { continue };
        let text = name.to_string_lossy();
        // `lost+found` belongs to the file system.
        if text.starts_with(ARCHIVE) || text == FILE || text == "lost+found" {
            continue;
        }
        env.rename(&path, &to.join(name)).map_err(failed(&path))?;
    }
    env.sync_dir(&to).map_err(failed(&to))?;
    env.sync_dir(directory).map_err(failed(directory))?;
    let identity = directory.join(FILE);
    env.rename(&identity, &to.join(FILE)).map_err(failed(&identity))?;
    env.sync_dir(&to).map_err(failed(&to))?;
    env.sync_dir(directory).map_err(failed(directory))?;
    Ok(to)
}

fn write<E: Env>(env: &E, directory: &Path, identity: &Identity) -> Result<(), StateVolumeError> {
    let temporary = directory.join(TEMPORARY);
    let mut text = serde_json::to_vec_pretty(identity)
        .map_err(|error| StateVolumeError::Unreadable { path: temporary.clone(), why: error.to_string() })?;
    text.push(b'\n');
    let mut file = env.open(&temporary).map_err(failed(&temporary))?;
    file.truncate(0).map_err(failed(&temporary))?;
    file.append(&text).map_err(failed(&temporary))?;
    file.sync().map_err(failed(&temporary))?;
    env.rename(&temporary, &directory.join(FILE)).map_err(failed(&temporary))?;
    env.sync_dir(directory).map_err(failed(directory))
}

#[cfg(test)]
mod tests;
