//! A running endpoint: start, control, stop, kill.

use std::sync::Arc;
use std::time::Duration;

use connector_env::{Env, Listener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster, LinkId, ShrinkError, StateError, delete, load, worker_index};
use crate::config::{ConfigError, EndpointConfig, split_address};
use crate::driver::{Shared, coordinator, listener, sink};
use crate::faults::FaultPlan;
use crate::status::Status;

/// Orders that may wait for the endpoint; callers wait beyond that.
const ORDERS: usize = 16;

/// How often [`Control::wait_for`] looks.
const LOOK: Duration = Duration::from_millis(2);

/// Why an endpoint does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The configuration cannot run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The recovery file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A socket cannot be bound.
    #[error("source {name}: cannot listen on {address}: {source}")]
    Listen {
        /// Name of the source.
        name: String,
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A worker cannot leave.
    #[error(transparent)]
    Shrink(#[from] ShrinkError),
    /// The endpoint has ended.
    #[error("the endpoint has ended")]
    Ended,
    /// A condition did not come true in time.
    #[error("{condition} did not come true within {limit:?}; last status: {status:?}")]
    TimedOut {
        /// What was waited for.
        condition: String,
        /// For how long.
        limit: Duration,
        /// What there was instead.
        status: Box<Status>,
    },
}

enum Order {
    Grow(oneshot::Sender<Result<String, EndpointError>>),
    Stop,
}

/// Type-erased access to the cluster, so that [`Endpoint`] and [`Control`] need no type parameter.
trait Access: Send + Sync {
    fn with(&self, job: &mut dyn FnMut(&mut Cluster));
    fn membership_changed(&self);
}

impl<E: Env> Access for Shared<E> {
    fn with(&self, job: &mut dyn FnMut(&mut Cluster)) {
        Shared::with(self, |cluster| job(cluster));
    }

    fn membership_changed(&self) {
        self.wake_listeners();
    }
}

/// Remote control of a running endpoint; clones control the same one. After its end the status stays readable.
#[derive(Clone)]
pub struct Control {
    access: Arc<dyn Access>,
    orders: mpsc::Sender<Order>,
}

/// A running endpoint. Dropping it kills it, as `kill -9` would.
pub struct Endpoint {
    control: Control,
    tracker: TaskTracker,
    task: Option<JoinHandle<Result<(), EndpointError>>>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Binds every source socket, recovers the last checkpoint if there is one, and runs in tasks of the current tokio
    /// runtime. The status server is not started: see [`crate::admin`].
    pub async fn start<E: Env>(env: E, config: EndpointConfig) -> Result<Endpoint, EndpointError> {
        config.check()?;
        let recovered = match &config.state_directory {
            Some(directory) => load(&env, directory)?,
            None => None,
        };
        let cluster = Cluster::new(config.clone(), recovered);
        let names: Vec<String> = cluster.workers().map(str::to_owned).collect();
        let shared = Arc::new(Shared::new(env, cluster));
        let mut bound = Vec::new();
        for name in names {
            bound.push(bind(&shared, &config, &name).await?);
        }
        let (orders, inbox) = mpsc::channel(ORDERS);
        let tracker = shared.tracker.clone();
        let access: Arc<dyn Access> = shared.clone();
        let task = tokio::spawn(tracker.track_future(run(shared, config, bound, inbox)));
        Ok(Endpoint { control: Control { access, orders }, tracker, task: Some(task) })
    }

    /// A remote control.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Address of a source at the first worker, `host:port` with the port that was bound.
    pub fn address(&self, source: &str) -> Option<String> {
        let status = self.control.status();
        status.sources.into_iter().find(|entry| entry.source == source).map(|entry| entry.address)
    }

    /// Waits until the endpoint ends by itself: its recovery file cannot be written any more. Cancel-safe.
    pub async fn ended(&mut self) -> Result<(), EndpointError> {
        let Some(task) = &mut self.task else { return Err(EndpointError::Ended) };
        let result = task.await.unwrap_or(Err(EndpointError::Ended));
        self.task = None;
        result
    }

    /// Stops gracefully: connections close, and the recovery file is deleted, as a real worker does at SIGTERM (§8).
    pub async fn stop(mut self) -> Result<Status, EndpointError> {
        let _ = self.control.orders.send(Order::Stop).await; // has ended already: the result tells
        self.ended().await?;
        self.gone().await;
        Ok(self.control.status())
    }

    /// Ends at once and tells nobody, as `kill -9` would: sockets close, the recovery file stays. Returns when every
    /// socket is closed.
    pub async fn kill(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await; // cancelled, or ended before
        }
        self.gone().await;
    }

    async fn gone(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Control {
    fn with<R>(&self, job: impl FnOnce(&mut Cluster) -> R) -> R {
        let (mut job, mut result) = (Some(job), None);
        self.access.with(&mut |cluster| result = job.take().map(|job| job(cluster)));
        match result {
            Some(result) => result,
            None => unreachable!("`Access::with` runs its job exactly once"),
        }
    }

    /// What the endpoint has seen.
    pub fn status(&self) -> Status {
        self.with(|cluster| cluster.status())
    }

    /// Rolls the cluster back to the last completed checkpoint; nothing without resilience or during a rollback.
    pub fn rollback(&self) {
        self.with(Cluster::begin_rollback);
    }

    /// Stops reading sources; what was read stays and is acknowledged.
    pub fn stall(&self) {
        self.with(|cluster| cluster.set_stalled(true));
    }

    /// Reads sources again.
    pub fn resume(&self) {
        self.with(|cluster| cluster.set_stalled(false));
    }

    /// Replaces the fault plan; its thresholds count from now.
    pub fn set_faults(&self, faults: FaultPlan) -> Result<(), ConfigError> {
        faults.check()?;
        self.with(|cluster| cluster.set_faults(faults));
        Ok(())
    }

    /// Adds a worker; returns its name once its sources are bound.
    pub async fn grow(&self) -> Result<String, EndpointError> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Grow(reply)).await.map_err(|_| EndpointError::Ended)?;
        answer.await.map_err(|_| EndpointError::Ended)?
    }

    /// Lets a worker leave. It has left when the status does not list it any more: at the next completed checkpoint.
    pub fn shrink(&self, worker: &str) -> Result<(), EndpointError> {
        self.with(|cluster| cluster.shrink(worker))?;
        self.access.membership_changed();
        Ok(())
    }

    /// Waits until `condition` holds for the status, and returns that status. `name` is for the error. Cancel-safe.
    pub async fn wait_for(
        &self,
        name: &str,
        limit: Duration,
        mut condition: impl FnMut(&Status) -> bool,
    ) -> Result<Status, EndpointError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let status = self.status();
            if condition(&status) {
                return Ok(status);
            }
            if tokio::time::Instant::now() >= deadline {
                let condition = name.to_owned();
                return Err(EndpointError::TimedOut { condition, limit, status: Box::new(status) });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The sockets of one worker.
struct Bound<L> {
    worker: String,
    listeners: Vec<L>,
}

async fn bind<E: Env>(
    shared: &Shared<E>,
    config: &EndpointConfig,
    worker: &str,
) -> Result<Bound<E::Listener>, EndpointError> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for source in &config.sources {
        let refuse = |address: &str, error| EndpointError::Listen {
            name: source.name.clone(),
            address: address.to_owned(),
            source: error,
        };
        let (host, port) = split_address(&source.listen).unwrap_or(("", 0)); // the configuration was checked
        let port = if port == 0 { 0 } else { u32::from(port) + worker_index(worker) };
        let address = format!("{host}:{port}");
        let listener = shared.env.listen(&address).await.map_err(|error| refuse(&address, error))?;
        addresses.push(format!("{host}:{}", listener.port()));
        listeners.push(listener);
    }
    shared.with(|cluster| cluster.set_addresses(worker, addresses));
    Ok(Bound { worker: worker.to_owned(), listeners })
}

type Tasks = JoinSet<Result<(), EndpointError>>;

fn spawn_worker<E: Env>(tasks: &mut Tasks, shared: &Arc<Shared<E>>, bound: Bound<E::Listener>) {
    let tracker = shared.tracker.clone();
    let links: Vec<LinkId> =
        shared.with(|cluster| cluster.links_of(&bound.worker).map(crate::cluster::Link::id).collect());
    for (index, socket) in bound.listeners.into_iter().enumerate() {
        let (shared, worker) = (shared.clone(), bound.worker.clone());
        tasks.spawn(tracker.track_future(async move {
            listener::run(shared, worker, index, socket).await;
            Ok(())
        }));
    }
    for id in links {
        let shared = shared.clone();
        tasks.spawn(tracker.track_future(async move {
            sink::run(shared, id).await;
            Ok(())
        }));
    }
}

async fn run<E: Env>(
    shared: Arc<Shared<E>>,
    config: EndpointConfig,
    bound: Vec<Bound<E::Listener>>,
    mut orders: mpsc::Receiver<Order>,
) -> Result<(), EndpointError> {
    let mut tasks: Tasks = JoinSet::new();
    for worker in bound {
        spawn_worker(&mut tasks, &shared, worker);
    }
    let interval = Duration::from_millis(config.checkpoint_interval_ms);
    let (checkpoints, directory) = (shared.clone(), config.state_directory.clone());
    tasks.spawn(
        shared
            .tracker
            .track_future(async move { Ok(coordinator::run(checkpoints, interval, directory).await?) }),
    );
    loop {
        tokio::select! {
            biased;
            Some(order) = orders.recv() => match order {
                Order::Grow(reply) => {
                    let _ = reply.send(grow(&mut tasks, &shared, &config).await); // the caller may have gone
                }
                Order::Stop => break,
            },
            Some(ended) = tasks.join_next() => match ended {
                Ok(result) => result?,
                Err(error) => {
                    tracing::error!(%error, "a task of the endpoint ended unexpectedly");
                    return Err(EndpointError::Ended);
                }
            },
            else => return Err(EndpointError::Ended),
        }
    }
    tasks.shutdown().await;
    if let Some(directory) = &config.state_directory {
        delete(&shared.env, directory)?;
    }
    Ok(())
}

async fn grow<E: Env>(
    tasks: &mut Tasks,
    shared: &Arc<Shared<E>>,
    config: &EndpointConfig,
) -> Result<String, EndpointError> {
    let name = shared.with(Cluster::grow);
    match bind(shared, config, &name).await {
        Ok(bound) => {
            spawn_worker(tasks, shared, bound);
            Ok(name)
        }
        Err(error) => {
            shared.with(|cluster| cluster.forget_worker(&name));
            Err(error)
        }
    }
}
