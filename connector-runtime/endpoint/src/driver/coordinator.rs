//! Checkpoints in time: starts them, makes them durable, completes them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use connector_env::Env;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use crate::cluster::{Cluster, StateError, Wake, save};

/// Runs until a checkpoint cannot be made durable, which ends the endpoint: the disk's state is unknown then.
pub(crate) async fn run<E: Env>(
    shared: Arc<Shared<E>>,
    interval: Duration,
    directory: Option<PathBuf>,
) -> Result<(), StateError> {
    let wake = shared.sleeper(Wake::Coordinator);
    let mut due = Instant::now() + interval;
    loop {
        // In one step, so that nothing can abort a checkpoint that is already on the disk.
        let completed = shared.with(|cluster| {
            let Some(snapshot) = cluster.completable() else { return Ok(false) };
            if let Some(directory) = &directory {
                save(&shared.env, directory, &snapshot)?;
            }
            cluster.complete(snapshot.checkpoint);
            Ok(true)
        })?;
        if completed {
            shared.wake_listeners(); // a worker may have left
            due = Instant::now() + interval;
        }
        if shared.with(Cluster::start_what_is_due) {
            continue;
        }
        tokio::select! {
            biased;
            () = wake.notified() => {}
            () = sleep_until(due) => {
                shared.with(Cluster::interval_passed);
                due = Instant::now() + interval;
            }
        }
    }
}
