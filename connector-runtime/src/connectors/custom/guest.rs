//! The process's side of the protocol, for custom connectors that are written in Rust: any [`Source`] or [`Sink`] becomes one.
//!
//! A program gives its system to [`serve_source`] or [`serve_sink`]; both dial the runtime again for as long as the program runs, and
//! return when the runtime has told it to leave.

mod link;
mod sink;
mod source;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use sink::serve_sink;
pub use source::serve_source;

use super::frame::FrameError;
use super::{Hello, SECRETS_VARIABLE, SOCKET_VARIABLE};
use crate::sink::Sink;
use crate::source::{Source, SystemError};

/// Why a custom connector's process ends in another way than told.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// It was not started by a runtime.
    #[error("environment variable {0} is missing: the runtime sets it")]
    NotStarted(&'static str),
    /// The runtime speaks another version, or wants the other direction.
    #[error("the runtime wants {wanted}, this program is {is}")]
    Mismatch {
        /// What it wants.
        wanted: String,
        /// What the program is.
        is: String,
    },
    /// The runtime refused what the process did.
    #[error("the runtime refuses this process: {0}")]
    Refused(String),
    /// The configuration cannot be used.
    #[error(transparent)]
    System(#[from] SystemError),
}

/// What a program learns before it makes its system.
#[derive(Clone, Debug)]
pub struct Start {
    /// `config` of the manifest.
    pub config: BTreeMap<String, String>,
    /// The directory of its Secrets: `<directory>/<name>/<key>`.
    pub secrets: PathBuf,
    /// Longest payload that Wallaroo takes, in bytes; sources.
    pub max_payload_bytes: usize,
}

/// Why a connection to the runtime ended.
#[derive(Debug)]
enum Ended {
    /// The runtime told to leave.
    Told,
    /// It is gone; it may come back.
    Gone,
    /// It makes no sense to dial again.
    Failed(GuestError),
}

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Ended::Gone
    }
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Self {
        Ended::Failed(GuestError::Refused(error.to_string()))
    }
}

/// Makes a source of what the manifest says.
pub type MakeSource<'a> = dyn FnMut(&Start) -> Result<Box<dyn Source>, SystemError> + Send + 'a;

/// Makes a sink of what the manifest says.
pub type MakeSink<'a> = dyn FnMut(&Start) -> Result<Box<dyn Sink>, SystemError> + Send + 'a;

fn start(hello: &Hello) -> Start {
    Start {
        config: hello.config.clone(),
        secrets: std::env::var_os(SECRETS_VARIABLE).map(PathBuf::from).unwrap_or_default(),
        max_payload_bytes: usize::try_from(hello.max_payload_bytes).unwrap_or(usize::MAX),
    }
}

/// Path of the runtime's socket, as the environment says.
///
/// # Errors
/// [`GuestError::NotStarted`].
pub fn socket() -> Result<PathBuf, GuestError> {
    std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from).ok_or(GuestError::NotStarted(SOCKET_VARIABLE))
}
