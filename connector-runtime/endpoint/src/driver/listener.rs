//! The socket of one source of one worker: accepts as many connections as the source's parallelism allows.

use std::sync::Arc;

use connector_env::{Env, Listener};
use tokio::task::JoinSet;

use super::{Shared, plain_source, source};
use crate::config::SourceProtocol;

/// Accepts until the worker leaves; its connections then go on until their clients close. Further clients than
/// `parallelism` stay in the listen backlog: connected, unanswered (§3.1).
pub(crate) async fn run<E: Env>(
    shared: Arc<Shared<E>>,
    worker: String,
    index: usize,
    mut listener: E::Listener,
) {
    let (protocol, parallelism) = shared.with(|cluster| {
        let source = &cluster.config().sources[index];
        (source.protocol.clone(), source.parallelism as usize)
    });
    let membership = shared.listener_sleeper();
    let mut connections = JoinSet::new();
    while shared.with(|cluster| cluster.has_worker(&worker)) {
        let link = tokio::select! {
            biased;
            () = membership.notified() => continue,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < parallelism => match accepted {
                Ok((link, _peer)) => link,
                Err(error) => {
                    // Typically out of file descriptors: wait for a connection to end rather than spin.
                    tracing::warn!(worker, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        if shared.with(crate::cluster::Cluster::closes_on_accept) {
            continue; // `link` drops here
        }
        let (shared, worker) = (shared.clone(), worker.clone());
        let tracker = shared.tracker.clone();
        match &protocol {
            SourceProtocol::Connector { .. } => {
                connections.spawn(tracker.track_future(source::run(shared, worker, index, link)));
            }
            SourceProtocol::FramedTcp { .. }
            | SourceProtocol::Stream05 { .. }
            | SourceProtocol::Stream06 { .. } => {
                connections.spawn(tracker.track_future(plain_source::run(shared, worker, index, link)));
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Pause after a failed accept.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
