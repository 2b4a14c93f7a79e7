//! The live file: log level and `state`, in force without a restart.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use connector_crds::LiveConfig;
use tokio::sync::watch;

use super::telemetry::LogLevel;
use crate::board::{Board, Counters};

/// How often the file is looked at. A change of a mounted ConfigMap takes the kubelet longer than this.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Longest live file, in bytes: two short fields.
const MAX_BYTES: u64 = 65_536;

/// Why a live file is not taken up; the last good one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// It is longer than any live file.
    #[error("longer than {MAX_BYTES} bytes")]
    TooLong,
    /// It is no live file.
    #[error("is not valid: {0}")]
    Parse(#[source] serde_json::Error),
    /// The level is none of the five.
    #[error("logLevel {0:?} is none of error, warn, info, debug, trace")]
    LogLevel(String),
}

/// Reads the file; an absent one means the defaults.
pub fn read(path: &Path) -> Result<LiveConfig, LiveError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LiveConfig::default()),
        Err(error) => return Err(LiveError::Read(error)),
        Ok(metadata) if metadata.len() > MAX_BYTES => return Err(LiveError::TooLong),
        Ok(_) => {}
    }
    let text = std::fs::read(path).map_err(LiveError::Read)?;
    serde_json::from_slice(&text).map_err(LiveError::Parse)
}

/// Takes up changes of the file for ever. Cancel-safe.
pub async fn watch(path: PathBuf, sender: watch::Sender<LiveConfig>, level: LogLevel, board: Board) {
    let mut complained = false;
    loop {
        match take_up(&path, &sender, &level) {
            Ok(changed) => {
                complained = false;
                if changed {
                    Counters::add(&board.counters().config_reloads, 1);
                }
            }
            Err(error) if !complained => {
                complained = true;
                tracing::warn!(file = %path.display(), error = %error, "Live file is not taken up, the last good one stays.");
            }
            Err(_) => {}
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn take_up(path: &Path, sender: &watch::Sender<LiveConfig>, level: &LogLevel) -> Result<bool, LiveError> {
    let live = read(path)?;
    if *sender.borrow() == live {
        return Ok(false);
    }
    if !level.set(&live.log_level) {
        return Err(LiveError::LogLevel(live.log_level));
    }
    tracing::info!(state = ?live.state, log_level = %live.log_level, "Live file taken up.");
    sender.send_replace(live);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::args::LogFormat;
    use connector_crds::State;

    #[test]
    fn an_absent_file_means_running() {
        assert_eq!(read(Path::new("/nonexistent/live.json")).unwrap(), LiveConfig::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_file_leaves_the_last_good_one_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("live.json");
        std::fs::write(&path, r#"{"state":"Paused","newerField":1}"#).unwrap();
        let (sender, mut receiver) = watch::channel(LiveConfig::default());
        let board = Board::new();
        let level = crate::shell::telemetry::start(LogFormat::Text);
        let watcher = tokio::spawn(watch(path.clone(), sender, level, board));
        receiver.wait_for(|live| live.state == State::Paused).await.unwrap();
        std::fs::write(&path, "{").unwrap();
        tokio::time::sleep(WATCH_INTERVAL * 3).await;
        assert_eq!(receiver.borrow().state, State::Paused);
        std::fs::write(&path, "{}").unwrap();
        receiver.wait_for(|live| live.state == State::Running).await.unwrap();
        watcher.abort();
    }
}
