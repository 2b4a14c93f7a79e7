//! The files of a run: one lock, the rendered configurations, secrets that only their owner can read.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::plan::{Plan, RuntimePlan};

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another run uses it.
    #[error("{path}: is in use by another run; --state names another directory", path = path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be made.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What came back.
        #[source]
        cause: io::Error,
    },
}

/// A directory that this process holds alone. Its `run` part is removed when the run is over; `state` stays.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes the directory, making it where it is missing, and clears what an earlier run left in `run`.
    ///
    /// With `fresh`, the state of every earlier run is forgotten too.
    pub fn take(root: &Path, fresh: bool) -> Result<Directory, DirectoryError> {
        private_directory(root)?;
        let path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DirectoryError::InUse { path: root.to_owned() }),
            Err(TryLockError::Error(cause)) => return Err(DirectoryError::Io { path, cause }),
        }
        let directory = Directory { root: root.to_owned(), _lock: lock };
        remove(&directory.root.join("run"))?;
        if fresh {
            remove(&directory.root.join("state"))?;
        }
        Ok(directory)
    }

    /// Writes every file of a plan.
    pub fn write(&self, plan: &Plan) -> Result<(), DirectoryError> {
        for runtime in &plan.runtimes {
            runtime_files(runtime)?;
        }
        if let Some(endpoint) = &plan.endpoint {
            if let Some(state) = &endpoint.state_directory {
                private_directory(state)?;
            }
            private_directory(&self.root.join("run"))?;
            json(&self.endpoint_config(), endpoint)?;
        }
        Ok(())
    }

    /// The endpoint's configuration file.
    pub fn endpoint_config(&self) -> PathBuf {
        self.root.join("run").join("wallaroo.json")
    }

    /// The endpoint's standard output: where it listens, and at its end what it has seen.
    pub fn endpoint_output(&self) -> PathBuf {
        self.root.join("run").join("wallaroo.out")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run; it is private in the meantime.
        let _ = fs::remove_dir_all(self.root.join("run"));
    }
}

/// The configuration file of a runtime.
pub fn config_file(runtime: &RuntimePlan) -> PathBuf {
    runtime.run_directory.join("config.json")
}

/// Where a runtime writes the address of its admin server.
pub fn admin_file(runtime: &RuntimePlan) -> PathBuf {
    runtime.run_directory.join("admin.address")
}

fn runtime_files(runtime: &RuntimePlan) -> Result<(), DirectoryError> {
    let paths = &runtime.config.paths;
    private_directory(Path::new(&paths.state))?;
    private_directory(Path::new(&paths.secrets))?;
    for secret in &runtime.secrets {
        let directory = Path::new(&paths.secrets).join(&secret.reference.name);
        private_directory(&directory)?;
        write(&directory.join(&secret.reference.key), &secret.value)?;
    }
    json(&config_file(runtime), &runtime.config)?;
    json(Path::new(&paths.live), &runtime.live)
}

fn private_directory(path: &Path) -> Result<(), DirectoryError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))
}

fn json(path: &Path, value: &impl Serialize) -> Result<(), DirectoryError> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| io_error(path)(error.into()))?;
    write(path, &text)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), DirectoryError> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error(path))?;
    file.write_all(bytes).map_err(io_error(path))
}

fn remove(path: &Path) -> Result<(), DirectoryError> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(io_error(path)(cause)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DirectoryError + use<> {
    let path = path.to_owned();
    move |cause| DirectoryError::Io { path, cause }
}

#[cfg(test)]
mod tests;
