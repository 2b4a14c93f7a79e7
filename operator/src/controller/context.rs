//! What a reconciliation may use, and why it may fail.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;

use super::metrics::Metrics;
use super::notify::Notifier;
use super::outside::Outside;
use super::stores::Stores;
use crate::apply::io::ApplyError;
use crate::settings::OperatorSettings;

/// Everything that a reconciliation may use.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The operator's own configuration.
    pub settings: OperatorSettings,
    /// What the watches saw.
    pub stores: Stores,
    /// Writes Events.
    pub notifier: Notifier,
    /// The time, and what runtimes answer.
    pub outside: Outside,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Errors in a row, by uid.
    pub failures: Mutex<HashMap<String, u32>>,
}

/// Why a reconciliation ended early; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// An object could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The status could not be written.
    #[error("status: {0}")]
    Status(#[source] Box<kube::Error>),
    /// A pod could not be told of the live file.
    #[error("Pod {0}: {1}")]
    Pod(String, #[source] Box<kube::Error>),
}

impl ReconcileError {
    /// How long the API server wants us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        let cause = match self {
            ReconcileError::Apply(ApplyError::Api { cause, .. })
            | ReconcileError::Status(cause)
            | ReconcileError::Pod(_, cause) => cause,
            ReconcileError::Apply(ApplyError::Refused { .. } | ApplyError::Gone) => return None,
        };
        match cause.as_ref() {
            kube::Error::Api(status) => {
                let seconds = status.details.as_ref()?.retry_after_seconds;
                (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
            }
            _ => None,
        }
    }
}
