//! Logs to standard error, with a level that changes while running.

use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use super::args::LogFormat;

/// Changes the log level.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

/// Level names that the live file may hold; the empty one means `info`.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The filter for a level name; `None` for a name that is none.
fn filter(level: &str) -> Option<EnvFilter> {
    let level = if level.is_empty() { "info" } else { level };
    // Clients speak at `debug` about every request: they stay one step quieter than we are.
    let clients = if level == "trace" { "debug" } else { "warn" };
    LEVELS
        .contains(&level)
        .then(|| EnvFilter::new(format!("{clients},connector_runtime={level},connector_native={level}")))
}

/// Installs the global subscriber. A second call in one process does nothing but return a handle without effect.
pub fn start(format: LogFormat) -> LogLevel {
    let (filter, handle) = reload::Layer::new(filter("info").unwrap_or_default());
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => registry
            .with(fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr))
            .try_init(),
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
    };
    if let Err(error) = started {
        tracing::debug!(%error, "Logging was set up before.");
    }
    LogLevel(handle)
}

impl LogLevel {
    /// Sets the level by name; false for a name that is none.
    pub fn set(&self, level: &str) -> bool {
        filter(level).is_some_and(|filter| self.0.reload(filter).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_names_are_a_closed_list() {
        assert!(LEVELS.iter().all(|level| filter(level).is_some()));
        assert!(filter("").is_some());
        assert!(filter("verbose").is_none());
        assert!(filter("info,hyper=trace").is_none());
    }
}
