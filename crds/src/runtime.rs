//! The pods' process: image, log level, drain, upgrades.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The runtime in the pods.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeSpec {
    /// Image of the runtime; absent: the one of the operator's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// How much the runtime logs; takes effect without a restart.
    #[schemars(extend("x-effect" = "live"))]
    pub log_level: LogLevel,
    /// Seconds that a pod may take to drain before it ends.
    #[schemars(range(min = 0, max = 3_600))]
    pub drain_timeout_seconds: i32,
    /// When an upgrade of the operator changes running pods.
    #[schemars(extend("x-effect" = "nothing"))]
    pub upgrade_policy: UpgradePolicy,
}

/// Long enough for several of Wallaroo's checkpoints, short enough for a node that drains.
const DRAIN_TIMEOUT_SECONDS: i32 = 30;

impl Default for RuntimeSpec {
    fn default() -> Self {
        RuntimeSpec {
            image: None,
            log_level: LogLevel::default(),
            drain_timeout_seconds: DRAIN_TIMEOUT_SECONDS,
            upgrade_policy: UpgradePolicy::default(),
        }
    }
}

/// How much the runtime logs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what went wrong for good.
    Error,
    /// Also what is tried again.
    Warn,
    /// Also what began and ended.
    #[default]
    Info,
    /// Also each batch.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level as the live file holds it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// When an upgrade of the operator changes running pods.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum UpgradePolicy {
    /// With the next change of the spec that restarts pods anyway; until then `status.pendingChange` says what would change.
    #[default]
    OnSpecChange,
    /// At once.
    Immediate,
}
