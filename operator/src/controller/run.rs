//! Starts the control loop, and ends it: signals, a lost Lease, a broken loop.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use futures::StreamExt as _;
use futures::stream;
use kube::Client;
use kube::client::ClientBuilder;
use kube::runtime::controller::{self, Config, Error as ControllerError};
use kube::runtime::events::{Recorder, Reporter};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::admin::{self, Admin};
use super::context::Context;
use super::fence::Fence;
use super::lease::{Election, Lost};
use super::metrics::{CountRequests, key};
use super::notify::Notifier;
use super::outside::Outside;
use super::reconcile::{after_error, reconcile};
use super::stores::{Triggers, Writers, watch};
use crate::names::FIELD_MANAGER;
use crate::settings::OperatorSettings;

/// Connectors that are reconciled at the same time: enough to hide the latency of an API server, few enough not to
/// flood it after a restart.
const CONCURRENCY: u16 = 32;

/// How the operator runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it makes of Connectors.
    pub settings: OperatorSettings,
    /// Namespaces that are watched; empty: all.
    pub namespaces: Vec<String>,
    /// Address of the admin port.
    pub admin: SocketAddr,
    /// Leader election; absent: this process is the only one.
    pub election: Option<ElectionOptions>,
}

/// Leader election.
#[derive(Clone, Debug)]
pub struct ElectionOptions {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// What no other process is called, e.g. the pod's name.
    pub identity: String,
}

/// Why the operator ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no way to an API server.
    #[error("the API server: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The admin port cannot be had.
    #[error("the admin port {0}: {1}")]
    Admin(SocketAddr, #[source] io::Error),
    /// Signals cannot be had.
    #[error("signals: {0}")]
    Signals(#[source] io::Error),
    /// Another process may work by now.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The control loop ended.
    #[error("the control loop ended")]
    Ended,
}

/// Runs until SIGTERM or SIGINT. What is being written then is finished; a second signal ends it at once.
pub async fn run(options: Options) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let admin = Arc::new(Admin::default());
    let fence = if options.election.is_some() { Fence::closed() } else { Fence::open() };
    let client = client(&admin, &fence).await.map_err(|error| RunError::Client(Box::new(error)))?;
    let listener =
        TcpListener::bind(options.admin).await.map_err(|error| RunError::Admin(options.admin, error))?;
    let serving = admin::serve(listener, Arc::clone(&admin));
    let working = work(options.clone(), client, fence, Arc::clone(&admin), &mut signals);
    tokio::select! {
        ended = working => ended,
        served = serving => Err(RunError::Admin(options.admin, served.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))),
    }
}

/// A client by the environment (in a cluster, or a kubeconfig), whose requests are counted, and whose writes pass the fence.
async fn client(admin: &Admin, fence: &Fence) -> Result<Client, kube::Error> {
    let config = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
    let counted = ClientBuilder::try_from(config)?.with_layer(&CountRequests(Arc::clone(&admin.metrics)));
    Ok(counted.with_layer(fence).build())
}

async fn work(
    options: Options,
    client: Client,
    fence: Fence,
    admin: Arc<Admin>,
    signals: &mut Signals,
) -> Result<(), RunError> {
    let election = options.election.as_ref().map(|election| {
        let ElectionOptions { namespace, name, identity } = election;
        Election::new(client.clone(), namespace, name, identity, fence)
    });
    if let Some(election) = &election {
        // A process that waits for its turn is as ready as it can be: the next to work.
        admin.ready.store(true, Relaxed);
        tokio::select! {
            () = signals.next() => return Ok(()),
            () = election.lead() => {}
        }
    }
    tracing::info!(namespaces = ?options.namespaces, "Working.");
    admin.metrics.leads(true);
    let identity = options.election.as_ref().map(|election| election.identity.clone());
    let (stop_loop, stopped) = tokio::sync::oneshot::channel::<()>();
    let loop_ended = control_loop(&options, client, &admin, identity, stopped);
    let mut loop_ended = std::pin::pin!(loop_ended);
    let kept = async {
        match &election {
            Some(election) => election.keep().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        () = signals.next() => {
            // What was begun is finished, and no new reconciliation starts; a second signal ends that too.
            drop(stop_loop);
            tokio::select! {
                () = &mut loop_ended => {}
                () = signals.next() => {}
            }
            Ok(())
        }
        lost = kept => Err(RunError::Lost(lost)),
        () = &mut loop_ended => Err(RunError::Ended),
    };
    admin.metrics.leads(false);
    if let (Ok(()), Some(election)) = (&ended, &election) {
        election.release().await;
    }
    ended
}

/// Reconciles whatever the watches tell of, until `stopped` resolves; then what was begun is finished.
async fn control_loop(
    options: &Options,
    client: Client,
    admin: &Admin,
    instance: Option<String>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let mut loops = Vec::new();
    let namespaces: Vec<Option<&str>> = if options.namespaces.is_empty() {
        vec![None]
    } else {
        options.namespaces.iter().map(|namespace| Some(namespace.as_str())).collect()
    };
    let stopped = futures::FutureExt::shared(async move { drop(stopped.await) });
    let unlisted = Arc::new(AtomicUsize::new(namespaces.len()));
    for namespace in namespaces {
        let writers = Writers::default();
        let stores = writers.stores();
        admin.metrics.managed().add(stores.connectors.clone());
        let triggers = watch(&client, namespace, writers);
        let reporter = Reporter { controller: FIELD_MANAGER.into(), instance: instance.clone() };
        let context = Arc::new(Context {
            client: client.clone(),
            settings: options.settings.clone(),
            stores,
            notifier: Notifier::new(Recorder::new(client.clone(), reporter)),
            outside: Outside::real(),
            metrics: Arc::clone(&admin.metrics),
            failures: Mutex::new(HashMap::new()),
        });
        let unlisted = Arc::clone(&unlisted);
        let listed = move || {
            if unlisted.fetch_sub(1, Relaxed) == 1 {
                admin.ready.store(true, Relaxed);
            }
        };
        loops.push(reconcile_all(context, triggers, listed, stopped.clone()));
    }
    futures::future::join_all(loops).await;
}

/// One control loop over the triggers of one set of watches; `listed` is called when every watch has listed once.
pub async fn reconcile_all(
    context: Arc<Context>,
    triggers: Triggers,
    listed: impl FnOnce(),
    stopped: impl Future<Output = ()> + Send + 'static,
) {
    let connectors = context.stores.connectors.clone();
    // Nothing is decided before every watch has listed once: an object that was not seen yet would be made again.
    let stores = context.stores.clone();
    let mut listing = std::pin::pin!(stores.ready());
    let mut seen = HashSet::new();
    let metrics = Arc::clone(&context.metrics);
    let triggers = triggers.inspect(move |trigger| match trigger {
        Ok(reference) => {
            metrics.backlog().changed(key(reference.namespace.as_deref(), &reference.name), Instant::now());
        }
        Err(_) => metrics.watch_restarted(),
    });
    let mut triggers = Box::pin(triggers.take_until(stopped));
    loop {
        tokio::select! {
            biased;
            ready = &mut listing => {
                if ready.is_err() {
                    tracing::error!("A watch ended before it had listed.");
                    return;
                }
                listed();
                break;
            }
            trigger = triggers.next() => match trigger {
                Some(Ok(reference)) => drop(seen.insert(reference)),
                Some(Err(error)) => tracing::warn!(%error, "A watch is interrupted, and tried again."),
                None => return,
            },
        }
    }
    let queue = stream::iter(seen.into_iter().map(Ok)).chain(triggers).filter_map(|trigger| async move {
        match trigger {
            Ok(reference) => Some(Ok::<_, std::convert::Infallible>(reference)),
            Err(error) => {
                tracing::warn!(%error, "A watch is interrupted, and tried again.");
                None
            }
        }
    });
    let config = Config::default().concurrency(CONCURRENCY);
    let metrics = Arc::clone(&context.metrics);
    controller::applier(
        |watched, context| Box::pin(reconcile(watched, context)),
        |watched, error, context| after_error(&watched, error, &context),
        context,
        connectors,
        queue,
        config,
    )
    .for_each(|outcome| {
        match outcome {
            // Errors of a reconciliation are logged where they are counted.
            Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
            // Deleted in the meantime.
            Err(ControllerError::ObjectNotFound(gone)) => {
                metrics.backlog().forget(&key(gone.namespace.as_deref(), &gone.name));
            }
            Err(ControllerError::QueueError(never)) => match never {},
            Err(error @ ControllerError::RunnerError(_)) => {
                tracing::error!(%error, "The control loop failed.");
            }
        }
        std::future::ready(())
    })
    .await;
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, RunError> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(RunError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(RunError::Signals)?,
        })
    }

    /// The next of the two. Cancel-safe.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
